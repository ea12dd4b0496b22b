//! The aggregator's log: what agents said, on disk before it is acknowledged.
//!
//! One thread owns the segmented log. It takes what has gathered in its queue, writes it with one write
//! and one fdatasync, and only then tells the shards which frames are durable. What comes alone is written at
//! once; of what comes all the time, what gathers in [`GATHER`] shares a commit (`docs/decisions/070`). A record
//! carries the sample and its duplicate mark (host, incarnation, number) in one piece.
//!
//! What is on disk is offered to the history, which reads the log itself for what it could not take.
//!
//! If the disk fails or is full, nothing of the group is acknowledged; the agents are asked to come back
//! and send it again. The thread goes on and recovers by itself once the disk does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use muster_proto::{
    id::{HostId, Incarnation},
    log::{Log, LogError, Storage},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    fleet::{
        host::{FrameIn, Session},
        shard::{Credit, Message},
    },
    history::feed::{Batch, Feed},
};

/// Kind of all records, in the log's own header. The variants stand in the record.
pub const RECORD_KIND: u8 = 1;

/// Entries that wait for the disk at most.
const QUEUE: usize = 16 * 1024;

/// Bytes that wait for the disk at most: the global budget of design/delivery.md §7.
const QUEUE_BYTES: u64 = 64 * 1024 * 1024;

/// A group is written when it has grown to this, if more is waiting.
const GROUP_BYTES: usize = 256 * 1024;

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
        postcard::to_extend(self, bytes)
    }

    /// Host and record of the bytes.
    pub fn decode(bytes: &[u8]) -> Result<(HostId, Self), postcard::Error> {
        let (id, rest) = bytes
            .split_at_checked(16)
            .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        let id = HostId::from_slice(id).map_err(|_| postcard::Error::DeserializeBadEncoding)?;
        Ok((id, postcard::from_bytes(rest)?))
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
    writer: thread::Thread,
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
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(inbox))?;
        let journal = Self {
            queue,
            health,
            writer: thread.thread().clone(),
        };
        Ok((journal, thread))
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
        } else if before < GROUP_BYTES as u64 && before + bytes >= GROUP_BYTES as u64 {
            // A whole group is here: it waits for no more.
            self.writer.unpark();
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

impl<S: Storage> Writer<S> {
    fn run(mut self, mut inbox: mpsc::Receiver<Entry>) {
        let mut group: Vec<(usize, Stored)> = Vec::new();
        let mut credits: Vec<Credit> = Vec::new();
        let mut stored = Batch::default();
        let mut committed: Option<Instant> = None;
        loop {
            // Waited before the queue is looked at, so that nobody needs to wake this thread for each entry.
            self.gather(committed);
            let Some(first) = inbox.blocking_recv() else {
                return;
            };
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(mut entry) = next {
                bytes += entry.bytes.len();
                credits.push(entry.credit.take());
                self.append(entry, &mut group, &mut stored);
                next = if bytes < GROUP_BYTES {
                    inbox.try_recv().ok()
                } else {
                    None
                };
            }
            let Some(durable) = self.commit() else {
                tracing::warn!("stopped with frames that the log could not take; agents keep them");
                return;
            };
            committed = Some(Instant::now());
            credits.clear();
            self.health
                .queued_bytes
                .fetch_sub(bytes as u64, Ordering::Relaxed);
            self.health
                .written_bytes
                .fetch_add(bytes as u64, Ordering::Relaxed);
            self.tell(&mut group, Message::Stored);
            // After the shards were told: a checkpoint that begins now has all up to here.
            self.health.durable.store(durable, Ordering::Release);
            let stored = std::mem::take(&mut stored);
            if let Some(history) = &self.history {
                history.offer(stored);
            }
            self.release();
            self.health
                .disk_bytes
                .store(self.log.bytes_on_disk(), Ordering::Relaxed);
        }
    }

    /// Waits until the time between two commits is over, or enough for one is here.
    fn gather(&self, committed: Option<Instant>) {
        let Some(committed) = committed else { return };
        loop {
            let rest = GATHER.saturating_sub(committed.elapsed());
            if rest.is_zero()
                || self.health.queued_bytes() >= GROUP_BYTES as u64
                || self.health.stopping.load(Ordering::Relaxed)
            {
                return;
            }
            thread::park_timeout(rest);
        }
    }

    fn append(&mut self, entry: Entry, group: &mut Vec<(usize, Stored)>, stored: &mut Batch) {
        match self.log.append(RECORD_KIND, &entry.bytes) {
            Ok(number) => {
                group.extend(entry.key.map(|key| (entry.shard, key)));
                if self.history.is_some() {
                    stored.push(number, entry.bytes);
                }
            }
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "record left out of the log");
                let refused = entry.key.map(|key| (entry.shard, key));
                self.tell(&mut refused.into_iter().collect(), Message::NotStored);
            }
        }
    }

    /// Commits, however long the disk takes to be well again: the group stays in memory, the queue
    /// fills, and when it is full the shards send agents away. Nothing is acknowledged meanwhile.
    ///
    /// `None` when the process stops first: what was not acknowledged, the agents still have.
    fn commit(&mut self) -> Option<u64> {
        loop {
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
                    return Some(durable);
                }
                Err(error) => self.failed(&error),
            }
            if self.health.stopping.load(Ordering::Relaxed) {
                return None;
            }
            thread::sleep(RETRY);
        }
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

    fn tell(&self, group: &mut Vec<(usize, Stored)>, message: fn(Vec<Stored>) -> Message) {
        for (index, shard) in self.shards.iter().enumerate() {
            let keys = group.iter().filter(|(at, _)| *at == index);
            let keys: Vec<Stored> = keys.map(|(_, key)| *key).collect();
            if !keys.is_empty() {
                // A shard that is gone is past caring: the process stops.
                let _ = shard.blocking_send(message(keys));
            }
        }
        group.clear();
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
