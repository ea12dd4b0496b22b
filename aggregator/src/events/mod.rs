//! What happened on hosts, kept where it can be asked for.
//!
//! The log has everything that agents send; here is what people ask of it: events in the order received, and
//! recordings of flight recorders. A shard offers each frame that it stores, live or from the log; what stands
//! beside the frame's sample goes through a bounded queue to one thread that writes it. A shard never waits
//! for it: when the queue is full, because the disk is slower than the fleet for long, events are left out,
//! counted and said. A checkpoint of the fleet waits until what it covers is here ([`Events::settle`]), so a
//! crash loses nothing: what is not here comes again from the log and is known by its place in its frame.
//!
//! One host cannot fill the store: beyond [`BURST`] events at once and [`PER_SECOND`] over time its events are
//! left out and counted.

pub mod recorded;
pub mod store;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use muster_proto::{
    codec, event,
    id::HostId,
    time::{Clock, Timestamp},
    v1,
};
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

pub use self::store::{Choice, EventLimits, EventsError, Found, Kept, KeptRecording, NewEvent};
use crate::fleet::host::{FrameIn, Lane};

/// Items that wait for the disk at most: a boot of 1,000 hosts at once.
const QUEUE: usize = 64 * 1024;

/// Items in one transaction.
const BATCH: usize = 1_024;

/// Pause after a write that failed.
const RETRY: Duration = Duration::from_secs(1);

/// How often it is looked for what is too old or too much.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Longest wait of a checkpoint.
const SETTLE_PATIENCE: Duration = Duration::from_secs(3);

/// Events of one host that may come at once: a boot of 2,000 units.
pub const BURST: f64 = 4_000.0;

/// Events of one host a second, over time. Its agent sends ten at most.
pub const PER_SECOND: f64 = 10.0;

/// Hosts whose rates are remembered; more than that are swept.
const MAX_BUCKETS: usize = 100_000;

/// What waits to be written.
enum Item {
    // Boxed: the queue has room for 65,536 items from the start.
    Event(Box<NewEvent>),
    Part(HostId, Timestamp, Box<v1::RecordingPart>),
    /// Answered when all before it is on disk.
    Settle(oneshot::Sender<()>),
}

/// How the store is doing.
#[derive(Debug, Default)]
pub struct EventsHealth {
    /// Events kept since start.
    pub kept: AtomicU64,
    /// Events that came again.
    pub again: AtomicU64,
    /// Events left out because they break the contract.
    pub unsound: AtomicU64,
    /// Events left out because their host sends too many.
    pub too_many: AtomicU64,
    /// Events left out because the queue was full.
    pub overflowed: AtomicU64,
    /// Parts of recordings kept since start.
    pub parts: AtomicU64,
    /// Events and recordings dropped for age or size.
    pub dropped: AtomicU64,
    /// Bytes in use.
    pub bytes: AtomicU64,
    failing: AtomicBool,
}

impl EventsHealth {
    /// Events that are kept nowhere but in the log.
    #[must_use]
    pub fn not_kept(&self) -> u64 {
        let causes = [&self.unsound, &self.too_many, &self.overflowed];
        causes
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// What is wrong, for people.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.failing.load(Ordering::Relaxed).then(|| {
            "events are not written: see the aggregator's log; they wait in memory and in the log"
                .to_owned()
        })
    }
}

/// Handle to the store; clones share it.
#[derive(Clone)]
pub struct Events {
    queue: SyncSender<Item>,
    reader: Arc<Mutex<Connection>>,
    newest: watch::Receiver<i64>,
    health: Arc<EventsHealth>,
}

impl Events {
    /// Opens or makes the store in the state folder and starts its thread, which ends with the last handle.
    ///
    /// # Errors
    /// When it cannot be opened, or is of a newer version, which stays untouched.
    pub fn open(
        state: &Path,
        limits: EventLimits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EventsError> {
        let connection = store::open(state)?;
        let reader = store::open_reader(state)?;
        let (news, newest) = watch::channel(store::newest(&connection)?);
        let (queue, inbox) = sync_channel(QUEUE);
        let health = Arc::new(EventsHealth::default());
        let writer = Writer {
            connection,
            limits,
            clock,
            news,
            health: Arc::clone(&health),
            buckets: HashMap::new(),
            pruned: None,
        };
        thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(|source| EventsError::Make {
                path: state.join(store::FILE),
                source,
            })?;
        Ok(Self {
            queue,
            reader: Arc::new(Mutex::new(reader)),
            newest,
            health,
        })
    }

    /// How it is doing.
    #[must_use]
    pub fn health(&self) -> &Arc<EventsHealth> {
        &self.health
    }

    /// Takes what stands beside the sample of a frame that was just taken into the fleet's state. Never waits.
    pub fn offer(&self, host: HostId, frame: &FrameIn) {
        self.take(host, frame, |item| {
            if let Err(TrySendError::Full(_)) = self.queue.try_send(item) {
                let before = self.health.overflowed.fetch_add(1, Ordering::Relaxed);
                if before.is_multiple_of(10_000) {
                    tracing::error!(
                        left_out = before + 1,
                        "events come faster than the disk takes them; some are left out"
                    );
                }
            }
        });
    }

    /// As [`Events::offer`] for a frame from the log, when nobody waits for the caller: waits for room.
    pub fn replay(&self, host: HostId, frame: &FrameIn) {
        self.take(host, frame, |item| {
            // Only fails when the thread is gone, which others notice.
            let _ = self.queue.send(item);
        });
    }

    fn take(&self, host: HostId, frame: &FrameIn, send: impl Fn(Item)) {
        let beside = match codec::beside(&frame.payload) {
            Ok(beside) => beside,
            // From the log of an older or newer aggregator; live frames were decoded already.
            Err(error) => {
                tracing::debug!(%host, seq = frame.seq, %error, "events of a frame do not read");
                return;
            }
        };
        for (place, event) in beside.events.into_iter().enumerate() {
            if !event::is_sound(&event) {
                self.health.unsound.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            send(Item::Event(Box::new(NewEvent {
                host,
                incarnation: frame.incarnation,
                seq: frame.seq,
                place,
                received: frame.received,
                late: frame.lane != Lane::Live,
                event,
            })));
        }
        if let Some(part) = beside.recording {
            send(Item::Part(host, frame.received, Box::new(part)));
        }
    }

    /// Waits until all that was offered is on disk, within reason; false (and said) if it is not.
    pub async fn settle(&self) -> bool {
        let (done, settled) = oneshot::channel();
        let mut item = Item::Settle(done);
        let handed_over = async {
            loop {
                match self.queue.try_send(item) {
                    Ok(()) => return,
                    Err(TrySendError::Disconnected(_)) => return std::future::pending().await,
                    Err(TrySendError::Full(back)) => item = back,
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(SETTLE_PATIENCE, async {
            handed_over.await;
            settled.await
        });
        let done = matches!(waited.await, Ok(Ok(())));
        if !done {
            tracing::warn!("events are not on disk yet; a crash now would lose some of them");
        }
        done
    }

    /// Changes with each batch that is kept; the number of the newest event.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<i64> {
        self.newest.clone()
    }

    /// The events that are chosen.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn find(&self, choice: Choice) -> Result<Found, EventsError> {
        self.read(move |connection| store::find(connection, &choice))
            .await
    }

    /// Recordings of a host, of all without one, that overlap these moments; newest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn recordings(
        &self,
        host: Option<HostId>,
        between: (Option<Timestamp>, Option<Timestamp>),
        limit: usize,
    ) -> Result<Vec<KeptRecording>, EventsError> {
        self.read(move |connection| store::recordings(connection, host, between, limit))
            .await
    }

    /// A recording with its parts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn recording(
        &self,
        number: i64,
    ) -> Result<Option<(KeptRecording, Vec<v1::RecordingPart>)>, EventsError> {
        self.read(move |connection| store::recording(connection, number))
            .await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, EventsError> {
        let reader = Arc::clone(&self.reader);
        let done = tokio::task::spawn_blocking(move || {
            work(&reader.lock().unwrap_or_else(PoisonError::into_inner))
        });
        Ok(done.await.map_err(|_| EventsError::Closed)??)
    }
}

/// What the thread owns.
struct Writer {
    connection: Connection,
    limits: EventLimits,
    clock: Arc<dyn Clock>,
    news: watch::Sender<i64>,
    health: Arc<EventsHealth>,
    /// Events that each host may still send, and as of when.
    buckets: HashMap<HostId, (f64, Timestamp)>,
    pruned: Option<Instant>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Item>) {
        loop {
            self.prune();
            let first = match inbox.recv_timeout(PRUNE_EVERY) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    // What was committed is in the file; the disk has it soon.
                    let _ = store::sync(&self.connection);
                    return;
                }
            };
            let mut batch = vec![first];
            batch.extend(inbox.try_iter().take(BATCH - 1));
            self.write(batch);
        }
    }

    /// Writes a batch, however long the disk takes to be well again: meanwhile the queue fills.
    fn write(&mut self, batch: Vec<Item>) {
        let (mut waiting, mut items) = (Vec::new(), Vec::new());
        for item in batch {
            match item {
                Item::Settle(done) => waiting.push(done),
                item => items.push(item),
            }
        }
        // Once, not once a try: a disk that is full for a minute must not use up what hosts may send.
        self.ration(&mut items);
        loop {
            let outcome = self.commit(&items).and_then(|()| match waiting.is_empty() {
                true => Ok(()),
                false => store::sync(&self.connection),
            });
            let failing = outcome.is_err();
            let before = self.health.failing.swap(failing, Ordering::Relaxed);
            match outcome {
                Ok(()) => {
                    if before {
                        tracing::info!("events can be written again");
                    }
                    break;
                }
                Err(error) if !before => {
                    tracing::error!(%error, "events cannot be written; trying again each second");
                }
                Err(_) => {}
            }
            // Whoever settles has its own patience; with nobody left who sends, there is nothing to wait for.
            if waiting.iter().any(|done| done.is_closed()) && items.is_empty() {
                break;
            }
            thread::sleep(RETRY);
        }
        if !items.is_empty()
            && let Ok(newest) = store::newest(&self.connection)
        {
            self.news.send_replace(newest);
        }
        for done in waiting {
            // Whoever asked may have lost patience.
            let _ = done.send(());
        }
    }

    /// Leaves out the events of hosts that send too many.
    fn ration(&mut self, items: &mut Vec<Item>) {
        let all = items.len();
        items.retain(|item| match item {
            Item::Event(new) => admits(&mut self.buckets, new),
            _ => true,
        });
        let too_many = (all - items.len()) as u64;
        let before = self.health.too_many.fetch_add(too_many, Ordering::Relaxed);
        if too_many > 0 && before == 0 {
            tracing::warn!("a host sends more events than are kept of one host; they are counted");
        }
    }

    fn commit(&mut self, items: &[Item]) -> rusqlite::Result<()> {
        let began = self.connection.unchecked_transaction()?;
        let (mut kept, mut again, mut parts) = (0, 0, 0);
        for item in items {
            match item {
                Item::Event(new) => match store::add(&began, new)? {
                    true => kept += 1,
                    false => again += 1,
                },
                Item::Part(host, received, part) => {
                    parts += u64::from(store::add_part(&began, *host, *received, part)?);
                }
                Item::Settle(_) => {}
            }
        }
        began.commit()?;
        let count = |counter: &AtomicU64, by| counter.fetch_add(by, Ordering::Relaxed);
        count(&self.health.kept, kept);
        count(&self.health.again, again);
        count(&self.health.parts, parts);
        Ok(())
    }

    fn prune(&mut self) {
        let now = Instant::now();
        if self.pruned.is_some_and(|at| now - at < PRUNE_EVERY) {
            return;
        }
        self.pruned = Some(now);
        if self.buckets.len() > MAX_BUCKETS {
            self.buckets.clear();
        }
        match store::prune(&self.connection, &self.limits, self.clock.now()) {
            Ok((events, recordings)) => {
                let dropped = (events + recordings) as u64;
                self.health.dropped.fetch_add(dropped, Ordering::Relaxed);
                if dropped > 0 {
                    tracing::info!(events, recordings, "the oldest events were dropped");
                }
            }
            Err(error) => tracing::warn!(%error, "old events cannot be dropped"),
        }
        if let Ok(bytes) = store::used_bytes(&self.connection) {
            self.health.bytes.store(bytes, Ordering::Relaxed);
        }
    }
}

/// Whether the event's host may send one more: a bucket of tokens, filled by the time of reception.
fn admits(buckets: &mut HashMap<HostId, (f64, Timestamp)>, new: &NewEvent) -> bool {
    let (tokens, as_of) = buckets.entry(new.host).or_insert((BURST, new.received));
    let passed = new.received.since(*as_of).as_secs_f64();
    *tokens = (*tokens + passed * PER_SECOND).min(BURST);
    *as_of = (*as_of).max(new.received);
    if *tokens < 1.0 {
        return false;
    }
    *tokens -= 1.0;
    true
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use muster_proto::{
        codec::Encoder, id::Incarnation, series::Table, time::FakeClock, v1::EventKind,
    };

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_270_380_000);

    fn frame(seq: u64, lane: Lane, events: &[v1::Event]) -> FrameIn {
        let mut payload = Vec::new();
        Encoder::new().encode(&Table::default(), events, true, &mut payload);
        FrameIn {
            incarnation: Incarnation(5),
            seq,
            lane,
            tick: NOW,
            received: NOW,
            crc32c: 0,
            payload: Bytes::from(payload),
        }
    }

    fn event(subject: &str) -> v1::Event {
        v1::Event {
            kind: EventKind::OomKill.into(),
            subject: subject.to_owned(),
            at_ms: NOW.as_millis(),
            fields: Vec::new(),
        }
    }

    fn events(state: &Path) -> Events {
        let clock = Arc::new(FakeClock::at(NOW));
        Events::open(state, EventLimits::default(), clock).expect("opens")
    }

    async fn subjects(events: &Events) -> Vec<(String, bool)> {
        let choice = Choice {
            limit: 100_000,
            newest: true,
            ..Choice::default()
        };
        let found = events.find(choice).await.expect("reads");
        let each = found.events.into_iter();
        each.map(|kept| (kept.event.subject, kept.late)).collect()
    }

    #[tokio::test]
    async fn offered_events_are_kept_once_in_order_and_the_late_ones_marked() {
        let state = tempfile::tempdir().expect("temporary folder");
        let host = HostId::from_bytes([1; 16]);
        let store = events(state.path());
        let mut newest = store.newest();
        newest.mark_unchanged();
        store.offer(host, &frame(1, Lane::Live, &[event("a"), event("b")]));
        store.offer(host, &frame(2, Lane::Live, &[]));
        store.offer(
            host,
            &frame(9, Lane::Backfill, &[event("old"), event("bad\u{7}")]),
        );
        assert!(store.settle().await);
        assert!(newest.has_changed().expect("the thread runs"));
        store.replay(host, &frame(1, Lane::Live, &[event("a"), event("b")]));
        assert!(store.settle().await);
        let expected = [("a", false), ("b", false), ("old", true)];
        let expected = expected.map(|(subject, late)| (subject.to_owned(), late));
        assert_eq!(subjects(&store).await, expected);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let health = store.health();
        assert_eq!((count(&health.kept), count(&health.again)), (3, 2));
        assert_eq!(health.not_kept(), 1, "the one that breaks the contract");
    }

    #[tokio::test]
    async fn one_host_does_not_fill_the_store() {
        let state = tempfile::tempdir().expect("temporary folder");
        let store = events(state.path());
        let many: Vec<v1::Event> = (0..250).map(|n| event(&n.to_string())).collect();
        for seq in 1..=20 {
            store.replay(HostId::from_bytes([1; 16]), &frame(seq, Lane::Live, &many));
        }
        store.replay(HostId::from_bytes([2; 16]), &frame(1, Lane::Live, &many));
        assert!(store.settle().await);
        assert_eq!(subjects(&store).await.len(), 4_000 + 250);
        assert_eq!(store.health().not_kept(), 1_000);
    }

    #[tokio::test]
    async fn a_disk_that_refuses_costs_a_host_none_of_what_it_may_send() {
        let state = tempfile::tempdir().expect("temporary folder");
        let store = events(state.path());
        let beside = Connection::open(state.path().join(store::FILE)).expect("opens");
        let rename = |from: &str, to: &str| {
            let sql = format!("ALTER TABLE {from} RENAME TO {to}");
            beside.execute_batch(&sql).expect("renamed");
        };
        rename("event", "away");
        let many: Vec<v1::Event> = (0..250).map(|n| event(&n.to_string())).collect();
        for seq in 1..=12 {
            store.replay(HostId::from_bytes([1; 16]), &frame(seq, Lane::Live, &many));
        }
        while store.health().problem().is_none() {
            tokio::task::yield_now().await;
        }
        rename("away", "event");
        assert!(store.settle().await);
        assert_eq!(subjects(&store).await.len(), 3_000);
        assert_eq!(store.health().not_kept(), 0);
        assert_eq!(store.health().problem(), None);
    }

    #[tokio::test]
    async fn a_part_of_a_recording_is_kept_with_its_host() {
        let state = tempfile::tempdir().expect("temporary folder");
        let store = events(state.path());
        let part = v1::RecordingPart {
            asked_ms: 5,
            parts: 1,
            ..v1::RecordingPart::default()
        };
        let mut carrying = frame(1, Lane::Live, &[]);
        let mut payload = Vec::new();
        Encoder::new().encode_with(&Table::default(), &[], Some(&part), true, &mut payload);
        carrying.payload = Bytes::from(payload);
        let host = HostId::from_bytes([1; 16]);
        store.offer(host, &carrying);
        store.offer(host, &carrying);
        assert!(store.settle().await);
        let listed = store
            .recordings(Some(host), (None, None), 9)
            .await
            .expect("reads");
        assert_eq!(listed.len(), 1);
        let (_, parts) = store
            .recording(listed[0].number)
            .await
            .expect("reads")
            .expect("there");
        assert_eq!(parts, [part]);
    }
}
