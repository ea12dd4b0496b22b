//! The thread that runs a spool, and the handle to it.
//!
//! The handle never waits for the disk. What it cannot hand over (the thread is behind by a thousand frames)
//! is not on disk, which the spool notices by the hole in the numbers.
//!
//! Waking a thread for each frame costs more than writing it. So frames are handed over together, every
//! [`HOLD`], as long as each is acknowledged before the next comes; one that is not goes to the thread with the
//! next, and so does all that follows. At any moment at most the newest frame is neither at the aggregator nor with
//! the thread: kill -9 takes no more than that (design/delivery.md §3).
//!
//! In a simulation a task takes the thread's place ([`SpoolHandle::in_task`]), so that what happens follows from a
//! seed: its disk is in memory, and its time is the runtime's.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use muster_proto::{
    id::Incarnation,
    log::{DiskStorage, Storage},
    ranges::RangeSet,
    v1,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{Batch, Event, Spool, SpoolConfig, SpoolLimits, SpoolStatus, Spooled, chain};

/// What was written is made durable this often, if there is any.
const COMMIT_EVERY: Duration = Duration::from_secs(10);
/// A disk that was left alone is tried again this often.
const PROBE_EVERY: Duration = Duration::from_secs(60);
/// A folder that another process holds, most likely the agent before, is tried again sooner at first.
const REOPEN_EVERY: Duration = Duration::from_millis(500);
const QUICK_REOPENS: u32 = 20;
/// Commands that wait for the thread.
const QUEUE: usize = 1024;
/// Longest that frames which the aggregator has are kept from the thread.
const HOLD: Duration = COMMIT_EVERY;
/// Payload of such frames: as much as is made durable at a time.
const HOLD_BYTES: usize = 64 * 1024;
/// Ranges of what it has; mostly there is one.
const HOLD_RANGES: usize = 256;
/// Commands that are obeyed before the books are looked at again.
const MAX_AT_ONCE: usize = 32;
/// Payload that is read from the disk at a time.
const BATCH_BYTES: usize = 128 * 1024;
/// Longest wait for the last commit when the agent stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

enum Command {
    Append(Spooled, Option<Spooled>),
    Settle(Incarnation, Vec<(u64, u64)>),
    Rewind(Vec<Incarnation>),
    Confirm(Incarnation),
    Next(u64, oneshot::Sender<Batch>),
    Commit,
    Stop(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
struct Shared {
    status: SpoolStatus,
    ranges: Vec<v1::SpoolRange>,
    is_open: bool,
    has_due: bool,
}

/// Handle to a spool; see the head of this file. The thread ends with it, after a commit. What waits then and was not
/// handed over is gone, as with the process: [`SpoolHandle::stop`] is the end in order.
pub struct SpoolHandle {
    commands: Commands,
    incarnation: Incarnation,
    waiting: Mutex<Waiting>,
    shared: Arc<Mutex<Shared>>,
}

/// Who obeys.
enum Commands {
    Thread(SyncSender<Command>),
    Task(mpsc::Sender<Command>),
}

impl Commands {
    /// False without room for it.
    fn send(&self, command: Command) -> bool {
        match self {
            Self::Thread(queue) => queue.try_send(command).is_ok(),
            Self::Task(queue) => queue.try_send(command).is_ok(),
        }
    }
}

/// What has not been handed over yet, of the running incarnation.
#[derive(Default)]
struct Waiting {
    frames: Vec<(Spooled, Option<Spooled>)>,
    /// What the aggregator has said of frames, these or earlier ones.
    settled: RangeSet,
    /// Since when.
    since: Option<Instant>,
    bytes: usize,
    /// The newest of the frames, until it is settled.
    open: Option<u64>,
}

impl Waiting {
    /// Takes a frame; whether it is time to hand over.
    fn append(&mut self, frame: Spooled, outline: Option<Spooled>, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.bytes += frame.payload.len();
        let before = self.open.replace(frame.seq);
        let has_events = outline.is_some();
        self.frames.push((frame, outline));
        before.is_some() || has_events || self.bytes >= HOLD_BYTES || now - since >= HOLD
    }

    /// Notes what is settled; whether it is time to hand over.
    fn settle(&mut self, ranges: &[(u64, u64)], now: Instant) -> bool {
        self.since.get_or_insert(now);
        for &(first, last) in ranges {
            self.settled.insert_range(first, last);
            if self.open.is_some_and(|seq| (first..=last).contains(&seq)) {
                self.open = None;
            }
        }
        self.settled.len() >= HOLD_RANGES
    }

    /// All that waited, frames first: what is settled must be known.
    fn take(&mut self, incarnation: Incarnation) -> impl Iterator<Item = Command> + use<> {
        let all = std::mem::take(self);
        let frames = all.frames.into_iter();
        let frames = frames.map(|(frame, outline)| Command::Append(frame, outline));
        let settled: Vec<(u64, u64)> = all.settled.iter().collect();
        let settled = (!settled.is_empty()).then(|| Command::Settle(incarnation, settled));
        frames.chain(settled)
    }
}

impl SpoolHandle {
    /// Starts the thread. `told` hears what the buffer has to know.
    ///
    /// # Errors
    /// If there can be no thread. All that is wrong with the folder is in [`SpoolHandle::status`].
    pub fn start(
        config: SpoolConfig,
        incarnation: Incarnation,
        told: impl FnMut(Event) + Send + 'static,
    ) -> io::Result<Self> {
        let (commands, queue) = sync_channel(QUEUE);
        let folder = config.folder.clone();
        let open = move || DiskStorage::open(&folder).map_err(|error| chain(&error));
        let (keeper, shared) = Keeper::new(config, incarnation, open, told);
        thread::Builder::new()
            .name("spool".into())
            .spawn(move || keeper.run(&queue))?;
        Ok(Self::new(Commands::Thread(commands), incarnation, shared))
    }

    /// A spool on `storage` that a task of this runtime keeps, for simulations: nobody may have to wait for its disk.
    pub fn in_task<S>(
        storage: S,
        limits: SpoolLimits,
        incarnation: Incarnation,
        told: impl FnMut(Event) + Send + 'static,
    ) -> Self
    where
        S: Storage + Send + 'static,
        S::File: Send,
    {
        let (commands, queue) = mpsc::channel(QUEUE);
        let config = SpoolConfig {
            folder: storage.folder().to_owned(),
            limits: SpoolLimits {
                min_free_bytes: 0,
                ..limits
            },
        };
        let open = move || Ok(storage.clone());
        let (keeper, shared) = Keeper::new(config, incarnation, open, told);
        tokio::spawn(keeper.run_in_task(queue));
        Self::new(Commands::Task(commands), incarnation, shared)
    }

    fn new(commands: Commands, incarnation: Incarnation, shared: Arc<Mutex<Shared>>) -> Self {
        Self {
            commands,
            incarnation,
            waiting: Mutex::default(),
            shared,
        }
    }

    /// Hands over what waits, and then this; whether there was room for it.
    fn command(&self, command: Command) -> bool {
        self.hand_over(&mut lock(&self.waiting));
        self.commands.send(command)
    }

    fn hand_over(&self, waiting: &mut Waiting) {
        for command in waiting.take(self.incarnation) {
            let _ = self.commands.send(command);
        }
    }

    /// Hands over a frame of this incarnation, and its [`Spooled::outline`] if it has one; now or, while the
    /// aggregator acknowledges each before the next, with those that follow. What happened on the host never waits.
    pub fn append(&self, frame: Spooled, outline: Option<Spooled>) {
        let mut waiting = lock(&self.waiting);
        if waiting.append(frame, outline, Instant::now()) {
            self.hand_over(&mut waiting);
        }
    }

    /// The aggregator has these frames, or has refused them. Said again with every acknowledgement, so one
    /// that finds no room is no loss.
    pub fn settle(&self, incarnation: Incarnation, ranges: Vec<(u64, u64)>) {
        if ranges.is_empty() {
            return;
        }
        if incarnation == self.incarnation {
            let mut waiting = lock(&self.waiting);
            if waiting.settle(&ranges, Instant::now()) {
                self.hand_over(&mut waiting);
            }
            return;
        }
        self.command(Command::Settle(incarnation, ranges));
    }

    /// The aggregator has noted that nothing more will come of an earlier incarnation. If it finds no room it is told
    /// again in the next session, and noted again.
    pub fn confirm(&self, incarnation: Incarnation) {
        self.command(Command::Confirm(incarnation));
    }

    /// A session begins, in which the aggregator has said what it has of these incarnations: what is not settled is
    /// to be sent again.
    pub fn rewind(&self, named: Vec<Incarnation>) {
        self.command(Command::Rewind(named));
    }

    /// Asks for what is to be sent next beside the live chain; see [`Spool::next_batch`].
    #[must_use]
    pub fn next_batch(&self, own_below: u64) -> oneshot::Receiver<Batch> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Next(own_below, reply));
        answer
    }

    /// Makes durable what was handed over, without waiting for it.
    pub fn commit(&self) {
        self.command(Command::Commit);
    }

    /// Makes durable what was handed over and lets go of the folder.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        if !self.command(Command::Stop(reply))
            || tokio::time::timeout(STOP_PATIENCE, done).await.is_err()
        {
            tracing::warn!("the disk of the spool is too slow: the newest frames may not be on it");
        }
    }

    /// Whether the folder has been read. Before, nothing is known of what it holds.
    #[must_use]
    pub fn is_open(&self) -> bool {
        lock(&self.shared).is_open
    }

    /// Whether there is something for [`SpoolHandle::next_batch`] that was not there before.
    #[must_use]
    pub fn has_due(&self) -> bool {
        lock(&self.shared).has_due
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> SpoolStatus {
        lock(&self.shared).status.clone()
    }

    /// What Hello says of earlier incarnations.
    #[must_use]
    pub fn ranges(&self) -> Vec<v1::SpoolRange> {
        lock(&self.shared).ranges.clone()
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread owns.
struct Keeper<S: Storage, O, F> {
    config: SpoolConfig,
    incarnation: Incarnation,
    spool: Option<Spool<S>>,
    /// Gives the disk, or says why not.
    disk: O,
    /// Why there is none.
    fault: Option<String>,
    reopens: u32,
    probe_at: Instant,
    commit_at: Instant,
    shared: Arc<Mutex<Shared>>,
    told: F,
}

impl<S, O, F> Keeper<S, O, F>
where
    S: Storage,
    O: FnMut() -> Result<S, String>,
    F: FnMut(Event),
{
    fn new(
        config: SpoolConfig,
        incarnation: Incarnation,
        disk: O,
        told: F,
    ) -> (Self, Arc<Mutex<Shared>>) {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let keeper = Self {
            config,
            incarnation,
            spool: None,
            disk,
            fault: None,
            reopens: 0,
            probe_at: Instant::now(),
            commit_at: Instant::now() + COMMIT_EVERY,
            shared: Arc::clone(&shared),
            told,
        };
        (keeper, shared)
    }

    fn run(mut self, queue: &Receiver<Command>) {
        loop {
            self.attend();
            let wait = self.due().saturating_duration_since(Instant::now());
            let mut next = match queue.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.commit();
                    return;
                }
            };
            // They come several at a time; what is due by time does not wait for the whole of a long queue.
            let mut left = MAX_AT_ONCE;
            while let Some(command) = next.take() {
                if let Command::Stop(reply) = command {
                    return self.end(reply);
                }
                self.obey(command);
                left -= 1;
                if left > 0 {
                    next = queue.try_recv().ok();
                }
            }
            self.write();
        }
    }

    async fn run_in_task(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            self.attend();
            let due = self.due();
            tokio::select! {
                biased;
                command = queue.recv() => match command {
                    Some(Command::Stop(reply)) => return self.end(reply),
                    Some(command) => {
                        self.obey(command);
                        self.write();
                    }
                    None => {
                        self.commit();
                        return;
                    }
                },
                () = sleep_until(due) => {}
            }
        }
    }

    /// When something is to be done without a command.
    fn due(&self) -> Instant {
        match &self.spool {
            Some(_) => self.commit_at,
            None => self.commit_at.min(self.probe_at),
        }
    }

    fn end(&mut self, reply: oneshot::Sender<()>) {
        self.commit();
        drop(self.spool.take());
        // Whoever asked may have lost patience.
        let _ = reply.send(());
    }

    /// What is due by time, and what others want to know.
    fn attend(&mut self) {
        let now = Instant::now();
        if now >= self.probe_at {
            match &mut self.spool {
                None => self.open(now),
                Some(spool) if spool.is_suspended() => {
                    spool.probe();
                    self.probe_at = now + PROBE_EVERY;
                }
                // A failure from now on is probed a minute after it.
                Some(_) => {}
            }
        }
        if now >= self.commit_at {
            self.commit();
        }
        let Some(spool) = &mut self.spool else {
            return;
        };
        let is_due = spool.has_due();
        let was_due = {
            // First, so that whoever is told finds it there.
            let mut shared = lock(&self.shared);
            shared.is_open = true;
            shared.status = spool.status();
            shared.ranges = spool.ranges();
            std::mem::replace(&mut shared.has_due, is_due)
        };
        for event in spool.take_events() {
            if matches!(event, Event::LossReason(_)) && spool.is_suspended() {
                self.probe_at = now + PROBE_EVERY;
            }
            (self.told)(event);
        }
        if is_due && !was_due {
            (self.told)(Event::Due);
        }
    }

    fn commit(&mut self) {
        self.commit_at = Instant::now() + COMMIT_EVERY;
        if let Some(spool) = &mut self.spool {
            spool.commit();
            for event in spool.take_events() {
                (self.told)(event);
            }
        }
    }

    /// Writes the frames that came together.
    fn write(&mut self) {
        if let Some(spool) = &mut self.spool {
            spool.write();
        }
    }

    fn obey(&mut self, command: Command) {
        let Some(spool) = &mut self.spool else {
            // A reply that is dropped says that there is nothing.
            return;
        };
        if !matches!(command, Command::Append(..)) {
            spool.write();
        }
        match command {
            Command::Append(frame, outline) => {
                spool.put(&frame);
                if let Some(outline) = outline {
                    spool.write();
                    spool.keep(outline);
                }
            }
            Command::Confirm(incarnation) => spool.confirm(incarnation),
            Command::Settle(incarnation, ranges) => {
                for (first, last) in ranges {
                    spool.settle(incarnation, first, last);
                }
            }
            Command::Rewind(named) => spool.rewind(named),
            Command::Next(own_below, reply) => {
                // A session that has ended asks again in the next.
                let _ = reply.send(spool.next_batch(own_below, BATCH_BYTES));
            }
            Command::Commit => self.commit(),
            Command::Stop(_) => {}
        }
    }

    fn open(&mut self, now: Instant) {
        self.reopens += 1;
        self.probe_at = now
            + if self.reopens <= QUICK_REOPENS {
                REOPEN_EVERY
            } else {
                PROBE_EVERY
            };
        let opened = (self.disk)().and_then(|storage| {
            let limits = self.limits();
            Spool::open(storage, self.incarnation, limits).map_err(|error| chain(&error))
        });
        match opened {
            Ok(spool) => {
                self.spool = Some(spool);
                self.fault = None;
                (self.told)(Event::LossReason(v1::GapReason::Full));
            }
            Err(why) => {
                if self.fault.as_ref() != Some(&why) {
                    tracing::warn!(
                        why,
                        "no spool on disk: frames are in memory only, and a restart loses them"
                    );
                }
                lock(&self.shared).status.fault = Some(why.clone());
                self.fault = Some(why);
                (self.told)(Event::LossReason(v1::GapReason::DiskError));
            }
        }
    }

    /// The bounds, with the share of this filesystem that is left free, where anything is to be.
    fn limits(&self) -> SpoolLimits {
        let mut limits = self.config.limits;
        if limits.min_free_bytes > 0 {
            let total = rustix::fs::statvfs(&self.config.folder)
                .map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
            limits.min_free_bytes = limits.min_free_bytes.max(super::free_share(total));
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::time::Timestamp;

    use super::*;

    const LIFE: Incarnation = Incarnation(7);

    fn frame(seq: u64) -> Spooled {
        Spooled {
            seq,
            tick: Timestamp::from_millis(0),
            boottime_ms: 0,
            samples: 1,
            crc32c: 0,
            key: seq == 1,
            payload: bytes::Bytes::from_static(b"payload"),
        }
    }

    /// What is handed over, as words.
    fn handed(waiting: &mut Waiting) -> Vec<String> {
        let word = |command| match command {
            Command::Append(frame, _) => format!("frame {}", frame.seq),
            Command::Settle(LIFE, ranges) => format!("settled {ranges:?}"),
            _ => "another".to_owned(),
        };
        waiting.take(LIFE).map(word).collect()
    }

    #[test]
    fn frames_wait_while_each_is_settled_before_the_next_comes() {
        let mut waiting = Waiting::default();
        let began = Instant::now();
        for seq in 1..=9 {
            let now = began + Duration::from_secs(seq);
            assert!(!waiting.append(frame(seq), None, now), "{seq}");
            assert!(!waiting.settle(&[(seq, seq)], now));
        }
        assert!(waiting.append(frame(10), None, began + Duration::from_secs(1) + HOLD));
        let mut expected: Vec<String> = (1..=10).map(|seq| format!("frame {seq}")).collect();
        expected.push("settled [(1, 9)]".to_owned());
        assert_eq!(handed(&mut waiting), expected);
        assert!(handed(&mut waiting).is_empty());
    }

    #[test]
    fn only_the_newest_frame_is_nowhere_else() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        assert!(!waiting.append(frame(1), None, now));
        assert!(!waiting.settle(&[(2, 9)], now), "that is another");
        assert!(
            waiting.append(frame(2), None, now),
            "the first was not settled"
        );
        assert_eq!(handed(&mut waiting).len(), 3);
        let outline = Some(frame(3));
        assert!(waiting.append(frame(3), outline, now), "something happened");
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        let large = Spooled {
            payload: vec![0; HOLD_BYTES].into(),
            ..frame(1)
        };
        assert!(waiting.append(large, None, now));
        drop(handed(&mut waiting));
        let odd = (0..HOLD_RANGES as u64).map(|number| (number * 2, number * 2));
        let odd: Vec<(u64, u64)> = odd.collect();
        assert!(waiting.settle(&odd, now));
    }
}
