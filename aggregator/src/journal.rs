//! The aggregator's log: what agents said, on disk before it is acknowledged.
//!
//! One thread owns the segmented log. It takes what has gathered in its queue, writes it with one write
//! and one fdatasync, and only then tells the shards which frames are durable. What comes alone is written at
//! once; of what comes all the time, what gathers in [`GATHER`] shares a commit (`docs/decisions/070`). A record
//! carries the sample and its duplicate mark (host, incarnation, number) in one piece.
//!
//! What is on disk is offered to the history, which reads the log itself for what it could not take.
//!
//! In a simulation a task takes the thread's place ([`Journal::in_task`]).
//!
//! If the disk fails or is full, nothing of the group is acknowledged; the agents are asked to come back
//! and send it again. The thread goes on and recovers by itself once the disk does.

use std::{
    cell::RefCell,
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use flate2::{Compress, Compression, FlushCompress, Status, read::DeflateDecoder};
use muster_proto::{
    id::{HostId, Incarnation},
    limits::MAX_PAYLOAD_BYTES,
    log::{Log, LogError, Storage},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time};

use crate::{
    fleet::{
        host::{FrameIn, Session},
        shard::{Credit, Message},
    },
    history::feed::{Batch, Feed},
};

/// Kind of all records, in the log's own header. The variants stand in the record. Records of kind 1 are read too: none of
/// them has a payload that is deflated.
pub const RECORD_KIND: u8 = 2;

/// In the place of a variant: a frame whose payload is deflated.
const DEFLATED: u8 = 0x20;

/// Payloads of this size are deflated. They are key frames, which say names again and again: a quarter of it is left.
const DEFLATE_FROM: usize = 1024;

/// Entries that wait for the disk at most.
const QUEUE: usize = 16 * 1024;

/// Bytes that wait for the disk at most: the global budget of design/delivery.md §7.
const QUEUE_BYTES: u64 = 64 * 1024 * 1024;

/// A group is written when it has grown to this, if more is waiting.
const GROUP_BYTES: u64 = 256 * 1024;

/// Pause after a failed commit, so that a full disk is not asked a thousand times a second.
const RETRY: Duration = Duration::from_secs(1);

/// What the log holds of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Record {
    /// An agent connected.
    Session(Session),
    /// A frame.
    Frame(FrameIn),
    /// A frame that was refused for good.
    Rejected {
        /// Life of the agent.
        incarnation: Incarnation,
        /// Number within it.
        seq: u64,
        /// `v1::RejectReason`.
        reason: i32,
    },
    /// Frames that will never come.
    Gap {
        /// Life of the agent.
        incarnation: Incarnation,
        /// First number.
        first: u64,
        /// Last number.
        last: u64,
    },
    /// The clean end of an incarnation.
    Fin {
        /// Life of the agent.
        incarnation: Incarnation,
        /// Last number given.
        last_seq: u64,
        /// `v1::FinReason`.
        reason: i32,
    },
}

impl Record {
    /// The bytes of the record of this host: 16 bytes of host id, then postcard.
    pub fn encode(&self, host: HostId) -> Result<Vec<u8>, postcard::Error> {
        let payload = match self {
            Self::Frame(frame) => frame.payload.len(),
            _ => 0,
        };
        // What stands around a payload is some 30 bytes; a session is longer, and rare.
        let mut bytes = Vec::with_capacity(16 + payload + 64);
        bytes.extend_from_slice(host.as_bytes());
        if let Self::Frame(frame) = self
            && let Some(payload) = deflated(&frame.payload)
        {
            bytes.push(DEFLATED);
            let frame = FrameIn {
                payload: payload.into(),
                ..frame.clone()
            };
            return postcard::to_extend(&frame, bytes);
        }
        postcard::to_extend(self, bytes)
    }

    /// Host and record of the bytes.
    pub fn decode(bytes: &[u8]) -> Result<(HostId, Self), postcard::Error> {
        let (id, rest) = bytes
            .split_at_checked(16)
            .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        let id = HostId::from_slice(id).map_err(|_| postcard::Error::DeserializeBadEncoding)?;
        let Some((&DEFLATED, frame)) = rest.split_first() else {
            return Ok((id, postcard::from_bytes(rest)?));
        };
        let mut frame: FrameIn = postcard::from_bytes(frame)?;
        frame.payload = inflated(&frame.payload)?.into();
        Ok((id, Self::Frame(frame)))
    }
}

thread_local! {
    /// 300 KiB that are not to be made anew for each payload.
    static DEFLATER: RefCell<Compress> = RefCell::new(Compress::new(Compression::fast(), false));
}

/// A large payload in fewer bytes; `None` if it is small, or does not become smaller.
fn deflated(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() < DEFLATE_FROM {
        return None;
    }
    DEFLATER.with_borrow_mut(|deflater| {
        deflater.reset();
        let mut out = Vec::with_capacity(payload.len());
        let status = deflater.compress_vec(payload, &mut out, FlushCompress::Finish);
        matches!(status, Ok(Status::StreamEnd)).then_some(out)
    })
}

fn inflated(bytes: &[u8]) -> Result<Vec<u8>, postcard::Error> {
    let mut payload = Vec::new();
    // One byte more than there may be tells what is too long from what ends there.
    let mut bounded = DeflateDecoder::new(bytes).take(MAX_PAYLOAD_BYTES as u64 + 1);
    match bounded.read_to_end(&mut payload) {
        Ok(length) if length <= MAX_PAYLOAD_BYTES => Ok(payload),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

/// Names a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Whose it is.
    pub host: HostId,
    /// Life of the agent.
    pub incarnation: Incarnation,
    /// Number within it.
    pub seq: u64,
}

/// A record on its way to the disk.
#[derive(Debug)]
pub struct Entry {
    /// Shard that is told when it is on disk.
    pub shard: usize,
    /// The frame it holds, if it holds one.
    pub key: Option<Stored>,
    /// The encoded record.
    pub bytes: Vec<u8>,
    /// Given back when the record is on disk.
    pub credit: Credit,
}

/// How the log is doing.
#[derive(Debug, Default)]
pub struct JournalHealth {
    queued_bytes: AtomicU64,
    /// Highest record number that is on disk and told to the shards.
    durable: AtomicU64,
    /// Commits that failed since start.
    pub failures: AtomicU64,
    /// Commits since start.
    pub commits: AtomicU64,
    /// Microseconds spent in commits since start.
    pub commit_micros: AtomicU64,
    /// Bytes of records written since start.
    pub written_bytes: AtomicU64,
    /// Size of all segments.
    pub disk_bytes: AtomicU64,
    /// Highest record that a checkpoint on disk contains.
    covered: AtomicU64,
    /// Highest record up to which the history has everything in files; `u64::MAX` without a history.
    historied: AtomicU64,
    /// Records that left the log before the history had them.
    pub unhistoried: AtomicU64,
    /// A failing disk is not waited for any more.
    stopping: AtomicBool,
    problem: std::sync::Mutex<Option<String>>,
}

impl JournalHealth {
    /// Bytes that wait for the disk.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// Highest record number that is on disk and told to the shards.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// A checkpoint contains everything up to this record.
    pub fn set_covered(&self, record: u64) {
        self.covered.store(record, Ordering::Release);
    }

    /// The history has everything up to this record in files.
    pub fn set_historied(&self, record: u64) {
        self.historied.store(record, Ordering::Release);
    }

    /// The process stops: a disk that fails is given up.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Why nothing can be stored, if so.
    pub fn problem(&self) -> Option<String> {
        match self.problem.lock() {
            Ok(problem) => problem.clone(),
            Err(poisoned) => poisoned.into_inner().clone(),
        }
    }

    fn set_problem(&self, now: Option<String>) {
        match self.problem.lock() {
            Ok(mut problem) => *problem = now,
            Err(poisoned) => *poisoned.into_inner() = now,
        }
    }
}

/// Handle to the thread that owns the log.
#[derive(Clone)]
pub struct Journal {
    queue: mpsc::Sender<Entry>,
    health: Arc<JournalHealth>,
    /// The thread, which may be waiting for more to gather.
    writer: Option<thread::Thread>,
}

impl Journal {
    /// Starts the thread. `covered` is the highest record that the checkpoint on disk contains. It ends when all handles are gone and the queue is written.
    pub fn start<S>(
        log: Log<S>,
        shards: Vec<mpsc::Sender<Message>>,
        keep_bytes: u64,
        covered: u64,
        history: Option<Feed>,
    ) -> std::io::Result<(Self, thread::JoinHandle<()>)>
    where
        S: Storage + Send + 'static,
        S::File: Send,
    {
        let (mut journal, writer, inbox) = Self::made(log, shards, keep_bytes, covered, history);
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(inbox))?;
        journal.writer = Some(thread.thread().clone());
        Ok((journal, thread))
    }

    /// As [`Journal::start`] without a history, kept by the future instead of a thread: for simulations, in which
    /// nobody has to wait for a disk and all that happens follows from a seed.
    pub fn in_task<S>(
        log: Log<S>,
        shards: Vec<mpsc::Sender<Message>>,
        keep_bytes: u64,
        covered: u64,
    ) -> (Self, impl Future<Output = ()> + Send)
    where
        S: Storage + Send + 'static,
        S::File: Send,
    {
        let (journal, writer, inbox) = Self::made(log, shards, keep_bytes, covered, None);
        (journal, writer.run_in_task(inbox))
    }

    fn made<S: Storage>(
        log: Log<S>,
        shards: Vec<mpsc::Sender<Message>>,
        keep_bytes: u64,
        covered: u64,
        history: Option<Feed>,
    ) -> (Self, Writer<S>, mpsc::Receiver<Entry>) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let health = Arc::new(JournalHealth::default());
        health.covered.store(covered, Ordering::Release);
        // Until the history says where it is, nothing is let go of that it may need.
        health.set_historied(if history.is_some() { 0 } else { u64::MAX });
        health.durable.store(log.durable(), Ordering::Release);
        health
            .disk_bytes
            .store(log.bytes_on_disk(), Ordering::Relaxed);
        let writer = Writer {
            log,
            shards,
            keep_bytes,
            history,
            health: Arc::clone(&health),
        };
        let journal = Self {
            queue,
            health,
            writer: None,
        };
        (journal, writer, inbox)
    }

    /// Hands an entry over; false if the queue is full, which is when the disk is slower than the fleet.
    #[must_use]
    pub fn try_write(&self, entry: Entry) -> bool {
        let bytes = entry.bytes.len() as u64;
        if self.health.queued_bytes() + bytes > QUEUE_BYTES {
            return false;
        }
        // Counted before it can be taken out, so that the sum never goes below zero.
        let before = self.health.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = self.queue.try_send(entry).is_ok();
        if !sent {
            self.health.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        } else if before < GROUP_BYTES
            && before + bytes >= GROUP_BYTES
            && let Some(writer) = &self.writer
        {
            // A whole group is here: it waits for no more.
            writer.unpark();
        }
        sent
    }

    /// How the log is doing.
    #[must_use]
    pub fn health(&self) -> &Arc<JournalHealth> {
        &self.health
    }
}

/// Between two commits at least, unless a whole group is here. What comes alone is written at once; of what comes all
/// the time, as much shares a write, an fdatasync and the waking of everyone concerned as comes in this time.
/// Acknowledgements are later by it, which nobody waits for: an agent keeps its frames for hours. What a query or a
/// detector sees is not later: a frame is applied before it is durable (`docs/decisions/001`).
pub const GATHER: Duration = Duration::from_millis(50);

struct Writer<S: Storage> {
    log: Log<S>,
    shards: Vec<mpsc::Sender<Message>>,
    keep_bytes: u64,
    history: Option<Feed>,
    health: Arc<JournalHealth>,
}

/// With so many times its bound the log lets go of records that the history does not have: a history whose
/// disk is full must not fill that of the log.
const HISTORY_PATIENCE: u64 = 2;

/// What goes to the disk together.
#[derive(Default)]
struct Group {
    bytes: u64,
    keys: Vec<(usize, Stored)>,
    /// Those that the log does not take at all.
    refused: Vec<(usize, Stored)>,
    credits: Vec<Credit>,
    for_history: Batch,
}

impl<S: Storage> Writer<S> {
    fn run(mut self, mut inbox: mpsc::Receiver<Entry>) {
        let mut committed: Option<Instant> = None;
        loop {
            // Waited before the queue is looked at, so that nobody needs to wake this thread for each entry.
            self.wait_for_more(committed);
            let Some(first) = inbox.blocking_recv() else {
                return;
            };
            let mut group = self.gather(first, &mut inbox);
            for (shard, refused) in self.addressed(&group.refused) {
                // A shard that is gone is past caring: the process stops.
                let _ = self.shards[shard].blocking_send(Message::NotStored(refused));
            }
            let durable = loop {
                match self.commit() {
                    Some(durable) => break durable,
                    None if self.gives_up() => return,
                    None => thread::sleep(RETRY),
                }
            };
            committed = Some(Instant::now());
            self.give_back(&mut group);
            for (shard, stored) in self.addressed(&group.keys) {
                // As above.
                let _ = self.shards[shard].blocking_send(Message::Stored(stored));
            }
            self.done(durable, group);
        }
    }

    async fn run_in_task(mut self, mut inbox: mpsc::Receiver<Entry>) {
        let mut committed: Option<time::Instant> = None;
        loop {
            if let Some(committed) = committed {
                time::sleep(self.rest(committed.elapsed())).await;
            }
            let Some(first) = inbox.recv().await else {
                return;
            };
            let mut group = self.gather(first, &mut inbox);
            for (shard, refused) in self.addressed(&group.refused) {
                // As in a thread.
                let _ = self.shards[shard].send(Message::NotStored(refused)).await;
            }
            let durable = loop {
                match self.commit() {
                    Some(durable) => break durable,
                    None if self.gives_up() => return,
                    None => time::sleep(RETRY).await,
                }
            };
            committed = Some(time::Instant::now());
            self.give_back(&mut group);
            for (shard, stored) in self.addressed(&group.keys) {
                let _ = self.shards[shard].send(Message::Stored(stored)).await;
            }
            self.done(durable, group);
        }
    }

    /// Waits until the time between two commits is over, or enough for one is here.
    fn wait_for_more(&self, committed: Option<Instant>) {
        let Some(committed) = committed else { return };
        loop {
            let rest = self.rest(committed.elapsed());
            if rest.is_zero() {
                return;
            }
            thread::park_timeout(rest);
        }
    }

    /// How long it is still worth to wait, with the last commit so long ago.
    fn rest(&self, since_commit: Duration) -> Duration {
        let enough = self.health.queued_bytes() >= GROUP_BYTES;
        if enough || self.health.stopping.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        GATHER.saturating_sub(since_commit)
    }

    /// Takes what has gathered into the log's memory.
    fn gather(&mut self, first: Entry, inbox: &mut mpsc::Receiver<Entry>) -> Group {
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(mut entry) = next {
            group.bytes += entry.bytes.len() as u64;
            group.credits.push(entry.credit.take());
            self.append(entry, &mut group);
            next = if group.bytes < GROUP_BYTES {
                inbox.try_recv().ok()
            } else {
                None
            };
        }
        group
    }

    fn append(&mut self, entry: Entry, group: &mut Group) {
        match self.log.append(RECORD_KIND, &entry.bytes) {
            Ok(number) => {
                group.keys.extend(entry.key.map(|key| (entry.shard, key)));
                if self.history.is_some() {
                    group.for_history.push(number, entry.bytes);
                }
            }
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "record left out of the log");
                group
                    .refused
                    .extend(entry.key.map(|key| (entry.shard, key)));
            }
        }
    }

    /// The keys of each shard that has any.
    fn addressed(&self, keys: &[(usize, Stored)]) -> Vec<(usize, Vec<Stored>)> {
        let shards = 0..self.shards.len();
        let of = shards.map(|shard| {
            let keys = keys.iter().filter(|(at, _)| *at == shard);
            (shard, keys.map(|(_, key)| *key).collect::<Vec<_>>())
        });
        of.filter(|(_, keys)| !keys.is_empty()).collect()
    }

    /// On disk: agents may send as much again.
    fn give_back(&self, group: &mut Group) {
        group.credits.clear();
        self.health
            .queued_bytes
            .fetch_sub(group.bytes, Ordering::Relaxed);
        self.health
            .written_bytes
            .fetch_add(group.bytes, Ordering::Relaxed);
    }

    /// The shards were told: a checkpoint that begins now has all up to here.
    fn done(&mut self, durable: u64, group: Group) {
        self.health.durable.store(durable, Ordering::Release);
        if let Some(history) = &self.history {
            history.offer(group.for_history);
        }
        self.release();
        self.health
            .disk_bytes
            .store(self.log.bytes_on_disk(), Ordering::Relaxed);
    }

    /// Tries to bring the group to the disk. It is tried again however long the disk takes to be well: the group
    /// stays in memory, the queue fills, and when it is full the shards send agents away. Nothing is acknowledged
    /// meanwhile.
    fn commit(&mut self) -> Option<u64> {
        let began = Instant::now();
        let committed = self.log.commit();
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.health.commits.fetch_add(1, Ordering::Relaxed);
        self.health.commit_micros.fetch_add(took, Ordering::Relaxed);
        match committed {
            Ok(durable) => {
                if self.health.problem().is_some() {
                    tracing::info!("the log can be written again");
                    self.health.set_problem(None);
                }
                Some(durable)
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Whether the process stops: what was not acknowledged, the agents still have.
    fn gives_up(&self) -> bool {
        let stopping = self.health.stopping.load(Ordering::Relaxed);
        if stopping {
            tracing::warn!("stopped with frames that the log could not take; agents keep them");
        }
        stopping
    }

    fn failed(&self, error: &LogError) {
        self.health.failures.fetch_add(1, Ordering::Relaxed);
        let text = crate::chain(error);
        if self.health.problem().is_none() {
            tracing::error!(
                error = text,
                "nothing is acknowledged until the log can be written; agents keep their frames. \
                 Free space on its disk, or lower storage.log_max_size"
            );
        }
        self.health.set_problem(Some(text));
    }

    /// Lets the oldest segments go when the log has grown over its bound.
    fn release(&mut self) {
        if self.log.bytes_on_disk() <= self.keep_bytes {
            return;
        }
        // What no checkpoint contains yet is needed for the next start, however much it is.
        let covered = self.health.covered.load(Ordering::Acquire) + 1;
        let historied = self
            .health
            .historied
            .load(Ordering::Acquire)
            .saturating_add(1);
        let patient = self.log.bytes_on_disk() <= self.keep_bytes.saturating_mul(HISTORY_PATIENCE);
        let covered = if patient {
            covered.min(historied)
        } else {
            covered
        };
        let second = self.log.segments().nth(1).map(|segment| segment.first);
        let Some(second) = second.filter(|second| *second <= covered) else {
            return;
        };
        if second > historied {
            let lost = second - historied.max(self.log.first());
            self.health.unhistoried.fetch_add(lost, Ordering::Relaxed);
            tracing::error!(
                records = lost,
                "the log is twice as large as it may be and lets go of samples that the history could not take; \
                 is the history's disk full or failing?"
            );
        }
        if let Err(error) = self.log.release_before(second) {
            tracing::warn!(
                error = crate::chain(&error),
                "oldest segment of the log not removed"
            );
        }
    }
}
