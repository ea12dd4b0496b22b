//! From the log to the store: the thread that turns stored frames into samples.
//!
//! The log's thread offers what it has just made durable ([`Feed::offer`]) and never waits: if the queue is full
//! the offer is dropped and counted, and this side, which sees a hole in the numbers, reads the log itself. So
//! nothing is lost by being slow, and a start simply reads on from where the files end.
//!
//! A second thread packs files that are full and removes old ones, so that a large merge does not hold up what is
//! new.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use muster_proto::{
    codec::Changes,
    id::HostId,
    log::{Follower, Gap, Storage},
    time::Clock,
};

use super::{
    EmbeddedStore, HistoryError, SampleStore as _, Token,
    chains::{Chains, KeptChain},
    store::Opened,
};
use crate::{
    chain,
    fleet::{host::FrameIn, names::Names},
    journal::{JournalHealth, Record},
};

/// Offers that wait at most, and the bytes in them: half a minute of 10,000 hosts at ten seconds.
const QUEUE: usize = 4_096;
const QUEUE_BYTES: u64 = 32 * 1024 * 1024;

/// How often it is looked whether something is to be written, when nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether something is to be packed.
const PACK_EVERY: Duration = Duration::from_secs(5);

/// A sample older than this when it was received is not kept: an agent holds a backlog for seven days, and a clock
/// that is wrong by years would make a file for each window of them.
pub const MAX_LATE_MS: i64 = 8 * 86_400_000;

/// Records read from the log between two looks at whether memory is full.
const READ_AT_ONCE: u64 = 32_768;

/// Largest state of chains that is believed.
const MAX_ASIDE_BYTES: u64 = 1 << 30;

/// Records as they stand in the log, one after another.
#[derive(Debug, Default)]
pub struct Batch {
    first: Token,
    records: Vec<Vec<u8>>,
    bytes: u64,
}

impl Batch {
    /// Adds the record after the last one.
    pub fn push(&mut self, number: Token, record: Vec<u8>) {
        if self.records.is_empty() {
            self.first = number;
        }
        self.bytes += record.len() as u64;
        self.records.push(record);
    }
}

/// How the feeding goes. Only grows, but for the bytes that wait.
#[derive(Debug, Default)]
pub struct FeedHealth {
    queued_bytes: AtomicU64,
    /// Offers that found the queue full and were read from the log.
    pub reread: AtomicU64,
    /// The last record that was taken or passed over.
    pub taken: AtomicU64,
    /// Samples of hosts taken.
    pub frames: AtomicU64,
    /// Frames whose state before is not here, or that are damaged: not in history.
    pub undecoded: AtomicU64,
    /// Frames too old to be kept.
    pub too_old: AtomicU64,
    /// Records that the log did not give any more.
    pub missing: AtomicU64,
    stop: AtomicBool,
    problems: Mutex<Problems>,
}

/// What does not go, in words for people.
#[derive(Debug, Default)]
struct Problems {
    /// Samples cannot be written, or memory is full because they cannot.
    unwritten: Option<String>,
    /// The log cannot be read.
    unread: Option<String>,
    /// Files cannot be packed, or old ones not removed.
    unpacked: Option<String>,
    /// Files go before their time.
    cramped: Option<String>,
}

impl FeedHealth {
    /// Bytes that wait to be taken.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// What is wrong at the moment, for people.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let all = [
            &problems.unwritten,
            &problems.unread,
            &problems.unpacked,
            &problems.cramped,
        ];
        all.into_iter().flatten().cloned().collect()
    }

    /// Notes one; whether it is news: nothing of its kind stood there before, or nothing stands there any more.
    fn note(
        &self,
        which: impl FnOnce(&mut Problems) -> &mut Option<String>,
        what: Option<String>,
    ) -> bool {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let place = which(&mut problems);
        let before = std::mem::replace(place, what);
        before.is_some() != place.is_some()
    }
}

/// The log's end of the queue.
#[derive(Debug, Clone)]
pub struct Feed {
    queue: SyncSender<Batch>,
    health: Arc<FeedHealth>,
}

impl Feed {
    /// A queue and its other end.
    #[must_use]
    pub fn new() -> (Self, Inbox) {
        let (queue, batches) = sync_channel(QUEUE);
        let health = Arc::new(FeedHealth::default());
        let inbox = Inbox {
            batches,
            health: Arc::clone(&health),
        };
        (Self { queue, health }, inbox)
    }

    /// Offers records that are durable. Never waits.
    pub fn offer(&self, batch: Batch) {
        if batch.records.is_empty() {
            return;
        }
        let bytes = batch.bytes;
        let room = self.health.queued_bytes() + bytes <= QUEUE_BYTES;
        self.health.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if !room || self.queue.try_send(batch).is_err() {
            self.health.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.health.reread.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The history's end of the queue.
#[derive(Debug)]
pub struct Inbox {
    batches: Receiver<Batch>,
    health: Arc<FeedHealth>,
}

/// What the threads work on.
pub struct Parts<S: Storage, L: Storage> {
    /// Where samples go.
    pub store: Arc<EmbeddedStore<S>>,
    /// What was found when it was opened.
    pub opened: Opened,
    /// The log.
    pub log: Follower<L>,
    /// How far the log is; told how far the files are.
    pub journal: Arc<JournalHealth>,
    /// Dates.
    pub clock: Arc<dyn Clock>,
}

/// The running threads.
#[derive(Debug)]
pub struct Running {
    health: Arc<FeedHealth>,
    feeder: thread::JoinHandle<()>,
    packer: thread::JoinHandle<()>,
}

impl Running {
    /// How the feeding goes.
    #[must_use]
    pub fn health(&self) -> &Arc<FeedHealth> {
        &self.health
    }

    /// Whether a thread has ended, which it should not.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.feeder.is_finished() || self.packer.is_finished()
    }

    /// Waits until what is in memory is in files. The log's end of the queue must be gone, or this never ends.
    pub fn join(self) {
        // A thread that panicked has said so; the log has what it held.
        let _ = self.feeder.join();
        self.health.stop.store(true, Ordering::Release);
        self.packer.thread().unpark();
        let _ = self.packer.join();
    }
}

/// Starts the threads.
///
/// # Errors
/// When the system gives no thread.
pub fn start<S, L>(inbox: Inbox, parts: Parts<S, L>) -> std::io::Result<Running>
where
    S: Storage + Send + Sync + 'static,
    S::File: Send + Sync,
    L: Storage + Send + 'static,
{
    let health = Arc::clone(&inbox.health);
    let (store, clock) = (Arc::clone(&parts.store), Arc::clone(&parts.clock));
    let stop = Arc::clone(&health);
    let packer = thread::Builder::new()
        .name("history-pack".into())
        .spawn(move || pack(&store, &*clock, &stop))?;
    let mut feeder = Feeder::new(inbox.health, parts);
    let batches = inbox.batches;
    let feeder = thread::Builder::new()
        .name("history".into())
        .spawn(move || feeder.run(&batches))?;
    Ok(Running {
        health,
        feeder,
        packer,
    })
}

fn pack<S>(store: &EmbeddedStore<S>, clock: &dyn Clock, health: &FeedHealth)
where
    S: Storage,
{
    while !health.stop.load(Ordering::Acquire) {
        let done = store.maintain(clock.now().as_millis());
        // What is set aside is a problem until it is packed or gone, also while another window is packed.
        let problem =
            match &done {
                Ok(_) => store.unpacked(),
                Err(error) => Some(store.unpacked().unwrap_or_else(|| {
                    format!("old history files are not removed: {}", chain(error))
                })),
            };
        let (well, why) = (problem.is_none(), problem.clone());
        if health.note(|problems| &mut problems.unpacked, problem) {
            if well {
                tracing::info!("history files are packed again");
            } else {
                tracing::error!(
                    error = why,
                    "history files are not packed; what is new is still taken. muster-aggregator check-store names \
                     what is damaged"
                );
            }
        }
        // Each file that goes is logged where it goes.
        health.note(|problems| &mut problems.cramped, store.cramped());
        if !matches!(done, Ok(true)) {
            thread::park_timeout(PACK_EVERY);
        }
    }
}

/// The state of the feeding thread.
pub struct Feeder<S: Storage, L: Storage> {
    store: Arc<EmbeddedStore<S>>,
    log: Follower<L>,
    journal: Arc<JournalHealth>,
    clock: Arc<dyn Clock>,
    health: Arc<FeedHealth>,
    hosts: HashMap<HostId, Chains>,
    names: Names,
    changes: Changes,
    /// The record that comes next.
    next: Token,
}

impl<S, L> Feeder<S, L>
where
    S: Storage + Send + Sync,
    S::File: Send + Sync,
    L: Storage,
{
    /// Begins where the files end.
    pub fn new(health: Arc<FeedHealth>, parts: Parts<S, L>) -> Self {
        let (mut names, mut changes) = (Names::default(), Changes::default());
        let mut hosts = HashMap::new();
        for aside in &parts.opened.aside {
            for (host, kept) in unpack(aside) {
                hosts.insert(host, Chains::restore(&kept, &mut names, &mut changes));
            }
        }
        for problem in &parts.opened.problems {
            tracing::error!(problem, "part of the history is not there");
        }
        Self {
            next: parts.store.durable() + 1,
            store: parts.store,
            log: parts.log,
            journal: parts.journal,
            clock: parts.clock,
            health,
            hosts,
            names,
            changes,
        }
    }

    /// Runs until the log's thread is gone, then writes what is in memory.
    fn run(&mut self, batches: &Receiver<Batch>) {
        self.catch_up(self.journal.durable() + 1);
        loop {
            self.write_due();
            self.journal.set_historied(self.store.durable());
            match batches.recv_timeout(LOOK_EVERY) {
                Ok(batch) => {
                    self.health
                        .queued_bytes
                        .fetch_sub(batch.bytes, Ordering::Relaxed);
                    self.take(&batch);
                }
                // An offer that was dropped, and nothing after it.
                Err(RecvTimeoutError::Timeout) => self.catch_up(self.journal.durable() + 1),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.catch_up(self.journal.durable() + 1);
        self.write_all();
    }

    fn take(&mut self, batch: &Batch) {
        self.catch_up(batch.first);
        for (number, record) in (batch.first..).zip(&batch.records) {
            if number < self.next {
                continue;
            }
            if !self.record(number, record) {
                // The rest is read from the log when there is room again.
                return;
            }
        }
    }

    /// Reads the log up to, not including, `end`.
    pub fn catch_up(&mut self, end: Token) {
        while self.next < end {
            let log = self.log.clone();
            let (from, upto) = (self.next, end.min(self.next + READ_AT_ONCE));
            let mut room = true;
            let read = log.read(from, upto, |item| {
                room = match item {
                    Ok(record) => self.record(record.number, &record.payload),
                    Err(gap) => {
                        self.missing(&gap);
                        true
                    }
                };
                if room {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            let unread = read.as_ref().err().map(|error| {
                let why = chain(error);
                format!("history cannot read the log, from which it takes its samples: {why}")
            });
            let why = unread.clone();
            if self.health.note(|problems| &mut problems.unread, unread) {
                match why {
                    Some(error) => tracing::error!(error, "history falls behind"),
                    None => tracing::info!("the history can read the log again"),
                }
            }
            if read.is_err() {
                return;
            }
            self.write_due();
            self.journal.set_historied(self.store.durable());
            if !room {
                return;
            }
            self.next = self.next.max(upto);
        }
    }

    fn missing(&mut self, gap: &Gap) {
        let (Gap::Missing { first, last }
        | Gap::Damaged { first, last, .. }
        | Gap::Unreadable { first, last, .. }) = gap;
        self.health
            .missing
            .fetch_add(last - first + 1, Ordering::Relaxed);
        tracing::error!(
            error = chain(gap),
            "part of the log does not come into history"
        );
        self.next = self.next.max(last + 1);
    }

    /// Takes a record; false if there is no room in memory.
    fn record(&mut self, number: Token, bytes: &[u8]) -> bool {
        if let Ok((host, Record::Frame(frame))) = Record::decode(bytes)
            && number > self.store.covered(host)
            && !self.frame(number, host, &frame)
        {
            return false;
        }
        self.next = number + 1;
        self.store.seen(number);
        self.health.taken.store(number, Ordering::Relaxed);
        true
    }

    fn frame(&mut self, number: Token, host: HostId, frame: &FrameIn) -> bool {
        // Asked before the chain moves on: what is refused here comes again from the log.
        if !self.store.has_room(host) {
            self.complain(&chain(&HistoryError::Backlog));
            return false;
        }
        let chains = self.hosts.entry(host).or_default();
        let mut values = match chains.apply(frame, &mut self.names, &mut self.changes) {
            Ok(values) => values,
            Err(error) => {
                self.health.undecoded.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%host, seq = frame.seq, %error, "frame is not in history");
                return true;
            }
        };
        if frame.received.millis_since(frame.tick) > MAX_LATE_MS {
            self.health.too_old.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let tick = frame.tick.as_millis();
        if self.store.append(number, host, tick, &mut values).is_ok() {
            self.health.frames.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn write_due(&mut self) {
        let due = self.store.due(self.clock.now().as_millis());
        self.write(&due);
    }

    fn write_all(&mut self) {
        let all = self.store.unsaved();
        self.write(&all);
    }

    fn write(&mut self, groups: &[usize]) {
        for group in groups {
            let written = flush(
                &self.store,
                &self.hosts,
                *group,
                self.next - 1,
                self.clock.now().as_millis(),
            );
            if let Err(error) = written {
                self.complain(&chain(&error));
            }
        }
        if !groups.is_empty() {
            self.names.sweep_if_grown();
            // One group that is written does not mend another that waits.
            if !self.store.waits() && self.health.note(|problems| &mut problems.unwritten, None) {
                tracing::info!("the history can be written again");
            }
        }
    }

    fn complain(&mut self, why: &str) {
        let problem = format!(
            "history is not written, samples stay in memory and in the log: {why}. Free space on its disk, or lower \
             history.max_size"
        );
        if self
            .health
            .note(|problems| &mut problems.unwritten, Some(problem))
        {
            tracing::error!(
                error = why,
                "history is not written; samples stay in memory and in the log. Free space on its disk, or lower \
                 history.max_size"
            );
        }
    }
}

fn flush<S: Storage>(
    store: &EmbeddedStore<S>,
    hosts: &HashMap<HostId, Chains>,
    group: usize,
    token: Token,
    now: i64,
) -> Result<(), HistoryError> {
    store.flush(group, token, now, |members| {
        let kept = members
            .iter()
            .filter_map(|host| Some((*host, hosts.get(host)?.keep())));
        packed(&kept.collect::<Vec<_>>())
    })
}

/// Chains of hosts as they are kept in a group's file.
fn packed(kept: &[(HostId, Vec<KeptChain>)]) -> Vec<u8> {
    use std::io::Write as _;

    let bytes = postcard::to_stdvec(kept).unwrap_or_default();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    // Writing to a Vec does not fail.
    let _ = encoder.write_all(&bytes);
    encoder.finish().unwrap_or_default()
}

/// Back from [`packed`]; nothing if it does not read, which costs samples up to the next key frames.
fn unpack(bytes: &[u8]) -> Vec<(HostId, Vec<KeptChain>)> {
    use std::io::Read as _;

    let mut plain = Vec::new();
    let read = DeflateDecoder::new(bytes)
        .take(MAX_ASIDE_BYTES)
        .read_to_end(&mut plain);
    match read {
        Ok(_) => postcard::from_bytes(&plain).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
