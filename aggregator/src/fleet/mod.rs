//! The state of the fleet: the latest of every host, in memory, in shards that own their hosts.
//!
//! [`Fleet`] is the handle that everyone else holds: ingest sends it what agents say, readers run
//! short functions on hosts inside the shard that owns them. Hosts are spread over shards by their
//! random id, so shards are even.

mod before;
pub mod cadence;
pub mod checkpoint;
pub mod derive;
pub mod gaps;
pub mod host;
pub mod liveness;
pub mod names;
pub mod neighbours;
pub mod shard;
pub mod silence;
pub mod start;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_proto::{id::HostId, limits, time::Timestamp, v1};
use tokio::sync::{mpsc, oneshot};

pub use self::{
    derive::{Derived, FilesystemPoint, SIGNALS, Signals},
    host::{CRASH_LOOP, Enrolled, HostState, SeriesView, Unit, UnitState},
    liveness::{Liveness, Silence},
};
use self::{
    host::CheckpointedHost,
    shard::{Message, Reader},
};
use crate::threads::ShardThread;

/// Messages a shard holds before its senders wait: the stream is then read more slowly.
pub const INBOX: usize = 1024;

/// Longest a reader waits for a shard before the answer goes out without it.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Hosts whose state is put into a checkpoint between two looks at what came: some milliseconds.
const CHECKPOINT_PART: usize = 128;

/// What the shards are told at start.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Most series of a host; its frames are refused beyond.
    pub series_quota: usize,
    /// Most series of all hosts together; frames that would bring more are refused.
    pub series_in_all: u64,
    /// Most bytes of payload an agent may have sent and not seen durable.
    pub credit_bytes: u64,
    /// Epoch of this aggregator's ownership; stands in every durable write.
    pub epoch: u64,
    /// How long an agent that lost its stream may be with another aggregator before it looks here again.
    pub elsewhere: Duration,
}

/// 100,000 hosts of 200 series. What is to be kept of that in memory is some 2 GB.
pub const DEFAULT_SERIES_IN_ALL: u64 = 20_000_000;

impl FleetConfig {
    /// Most series of a host that has `held` of `all` now.
    fn quota(&self, held: usize, all: u64) -> usize {
        let left = usize::try_from(self.series_in_all.saturating_sub(all)).unwrap_or(usize::MAX);
        self.series_quota.min(held.saturating_add(left))
    }
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            series_quota: limits::DEFAULT_SERIES_QUOTA,
            series_in_all: DEFAULT_SERIES_IN_ALL,
            credit_bytes: 1024 * 1024,
            epoch: 1,
            elsewhere: Duration::ZERO,
        }
    }
}

/// What happened since start. Only grows, but for `hosts`, `connected` and `series`.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is named for what it counts")]
pub struct Counters {
    pub hosts: AtomicU64,
    pub connected: AtomicU64,
    pub series: AtomicU64,
    pub frames_received: AtomicU64,
    pub frames_stored: AtomicU64,
    pub frames_replayed: AtomicU64,
    pub frames_duplicate: AtomicU64,
    pub frames_lost: AtomicU64,
    /// Of frames that were told as lost, now or before the start, those that came after all.
    pub frames_found: AtomicU64,
    pub throttled: AtomicU64,
    pub stalls: AtomicU64,
    rejected: [AtomicU64; REJECT_REASONS.len()],
}

/// Reasons under which refused frames are counted.
pub const REJECT_REASONS: [v1::RejectReason; 6] = [
    v1::RejectReason::Malformed,
    v1::RejectReason::Checksum,
    v1::RejectReason::Future,
    v1::RejectReason::SeqConflict,
    v1::RejectReason::Quota,
    v1::RejectReason::NoKeyFrame,
];

impl Counters {
    /// A host has so many series now, after so many before.
    pub fn series_changed(&self, before: usize, now: usize) {
        if now >= before {
            self.series
                .fetch_add((now - before) as u64, Ordering::Relaxed);
        } else {
            self.series
                .fetch_sub((before - now) as u64, Ordering::Relaxed);
        }
    }

    /// Counts a refused frame.
    pub fn rejected(&self, reason: v1::RejectReason) {
        if let Some(at) = REJECT_REASONS.iter().position(|known| *known == reason) {
            self.rejected[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Refused frames by reason.
    pub fn rejected_by_reason(&self) -> impl Iterator<Item = (v1::RejectReason, u64)> + '_ {
        let counts = self
            .rejected
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        REJECT_REASONS.into_iter().zip(counts)
    }

    /// The figures at this moment.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            hosts: load(&self.hosts),
            connected: load(&self.connected),
            series: load(&self.series),
            frames_received: load(&self.frames_received),
            frames_stored: load(&self.frames_stored),
            frames_replayed: load(&self.frames_replayed),
            frames_duplicate: load(&self.frames_duplicate),
            frames_lost: load(&self.frames_lost),
            frames_found: load(&self.frames_found),
            frames_rejected: self.rejected_by_reason().map(|(_, count)| count).sum(),
            throttled: load(&self.throttled),
            stalls: load(&self.stalls),
        }
    }
}

/// [`Counters`] at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named for what it counts")]
pub struct Totals {
    pub hosts: u64,
    pub connected: u64,
    pub series: u64,
    pub frames_received: u64,
    pub frames_stored: u64,
    pub frames_replayed: u64,
    pub frames_duplicate: u64,
    pub frames_lost: u64,
    pub frames_found: u64,
    pub frames_rejected: u64,
    pub throttled: u64,
    pub stalls: u64,
}

/// What a reader is told beside the host.
#[derive(Debug, Clone, Copy)]
pub struct ReadContext {
    /// The aggregator's wall clock.
    pub now: Timestamp,
}

/// What readers got.
#[derive(Debug)]
pub struct Answer<T> {
    /// One for each host for which the reader gave one; in no order.
    pub items: Vec<T>,
    /// Shards that did not answer, by name; empty when the answer is complete.
    pub missing: Vec<String>,
}

/// Handle to the shards.
#[derive(Clone)]
pub struct Fleet {
    shards: Arc<[mpsc::Sender<Message>]>,
    counters: Arc<Counters>,
    /// Of each shard, where it has one to itself.
    threads: Arc<[ShardThread]>,
}

impl Fleet {
    /// A handle to shards that listen on the other ends of `shards`.
    #[must_use]
    pub fn new(shards: Vec<mpsc::Sender<Message>>, counters: Arc<Counters>) -> Self {
        Self::on_threads(shards, counters, Vec::new())
    }

    /// The same of shards that run on threads of their own, which are woken for questions.
    #[must_use]
    pub fn on_threads(
        shards: Vec<mpsc::Sender<Message>>,
        counters: Arc<Counters>,
        threads: Vec<ShardThread>,
    ) -> Self {
        Self {
            shards: shards.into(),
            counters,
            threads: threads.into(),
        }
    }

    /// Somebody waits for what this shard was asked.
    fn rouse(&self, shard: usize) {
        if let Some(thread) = self.threads.get(shard) {
            thread.rouse();
        }
    }

    /// The shard a host belongs to, of this many.
    #[must_use]
    pub fn shard_of(host: HostId, shards: usize) -> usize {
        let shards = u64::try_from(shards.max(1)).unwrap_or(1);
        usize::try_from(host.spread() % shards).unwrap_or(0)
    }

    /// Tells the host's shard; waits while its inbox is full. False once the fleet has stopped.
    pub async fn tell(&self, host: HostId, message: Message) -> bool {
        let shard = &self.shards[Self::shard_of(host, self.shards.len())];
        shard.send(message).await.is_ok()
    }

    /// Takes in a host that was enrolled, or whose record changed.
    pub async fn upsert(&self, who: Enrolled) -> bool {
        self.tell(who.id, Message::Upsert(Box::new(who))).await
    }

    /// Forgets a host that was removed, and closes its stream with the reason.
    pub async fn forget(&self, host: HostId) -> bool {
        self.tell(host, Message::Forget(host)).await
    }

    /// Closes a host's stream: the certificate it was opened with is refused from now on.
    pub async fn cut(&self, host: HostId) -> bool {
        self.tell(host, Message::Cut(host)).await
    }

    /// Asks all agents to connect anew, each within the spread: a Welcome has something new for them.
    pub async fn nudge(&self, spread: Duration) {
        for shard in self.shards.iter() {
            // A shard that is gone has no agents.
            let _ = shard.send(Message::Nudge(spread)).await;
        }
    }

    /// The aggregator stops: asks all agents to leave, each within the spread. From now on nobody is let in: who
    /// says Hello is asked the same.
    pub async fn drain(&self, spread: Duration) {
        for shard in self.shards.iter() {
            // A shard that is gone has no agents.
            let _ = shard.send(Message::Drain(spread)).await;
        }
    }

    /// Runs `f` on every host inside its shard; hosts for which it gives `None` are left out.
    ///
    /// `f` runs between frames, so it should be short and leave sorting and writing to the caller.
    pub async fn each<T: Send + 'static>(
        &self,
        f: impl Fn(&HostState, &ReadContext) -> Option<T> + Send + Sync + Clone + 'static,
    ) -> Answer<T> {
        let mut asked = Vec::with_capacity(self.shards.len());
        for (index, shard) in self.shards.iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            let f = f.clone();
            let reader: Reader = Box::new(move |hosts, context| {
                let items: Vec<T> = hosts.values().filter_map(|host| f(host, context)).collect();
                // The reader may have gone; then nobody wants it.
                let _ = reply.send(items);
            });
            let sent = tokio::time::timeout(READ_TIMEOUT, shard.send(Message::Read(reader)));
            asked.push(matches!(sent.await, Ok(Ok(()))).then_some(answer));
            self.rouse(index);
        }
        let mut whole = Answer {
            items: Vec::new(),
            missing: Vec::new(),
        };
        for (index, answer) in asked.into_iter().enumerate() {
            let items = match answer {
                Some(answer) => tokio::time::timeout(READ_TIMEOUT, answer)
                    .await
                    .ok()
                    .and_then(Result::ok),
                None => None,
            };
            match items {
                Some(items) => whole.items.extend(items),
                None => whole.missing.push(format!("shard {index}")),
            }
        }
        whole
    }

    /// Runs `f` on the host with this name, or with this id in 32 digits.
    pub async fn host<T: Send + 'static>(
        &self,
        name_or_id: &str,
        f: impl FnOnce(&HostState, &ReadContext) -> T + Send + 'static,
    ) -> Option<T> {
        let id = match name_or_id.parse::<HostId>() {
            Ok(id) => id,
            Err(_) => self.find(name_or_id).await?,
        };
        let (reply, answer) = oneshot::channel();
        let reader: Reader = Box::new(move |hosts: &HashMap<HostId, HostState>, context| {
            if let Some(host) = hosts.get(&id) {
                // The reader may have gone; then nobody wants it.
                let _ = reply.send(f(host, context));
            }
        });
        self.tell(id, Message::Read(reader)).await.then_some(())?;
        self.rouse(Self::shard_of(id, self.shards.len()));
        tokio::time::timeout(READ_TIMEOUT, answer).await.ok()?.ok()
    }

    async fn find(&self, name: &str) -> Option<HostId> {
        let name = name.to_owned();
        let found = self
            .each(move |host, _| (host.name() == name).then(|| host.id()))
            .await;
        found.items.first().copied()
    }

    /// The state of all hosts for a checkpoint; `None` if a shard did not answer.
    pub async fn checkpoint(&self) -> Option<Vec<CheckpointedHost>> {
        let mut all = Vec::new();
        for part in self.checkpoint_parts().await? {
            all.extend(self.checkpoint_of(part).await?);
        }
        Some(all)
    }

    /// All hosts, in parts that [`Fleet::checkpoint_of`] is to be asked for one after another, so that a shard is not
    /// held up by all of its hosts, and their states never lie in memory all at once. `None` if a shard did not answer.
    pub async fn checkpoint_parts(&self) -> Option<Vec<Vec<HostId>>> {
        let all = self.each(|host, _| Some(host.id())).await;
        if !all.missing.is_empty() {
            return None;
        }
        let shards = self.shards.len();
        let mut of_shard = vec![Vec::new(); shards];
        for id in all.items {
            of_shard[Self::shard_of(id, shards)].push(id);
        }
        let parts = of_shard.iter().flat_map(|ids| ids.chunks(CHECKPOINT_PART));
        Some(parts.map(<[HostId]>::to_vec).collect())
    }

    /// The state of the hosts of a part, one for each of them; `None` if the shard did not answer.
    pub async fn checkpoint_of(&self, part: Vec<HostId>) -> Option<Vec<CheckpointedHost>> {
        let index = Self::shard_of(*part.first()?, self.shards.len());
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let message = Message::Checkpoint(part, reply);
            self.shards[index].send(message).await.ok()?;
            self.rouse(index);
            answer.await.ok()
        };
        tokio::time::timeout(READ_TIMEOUT, asked).await.ok()?
    }

    /// Whether every shard still answers.
    pub async fn is_alive(&self) -> bool {
        self.each(|_, _| None::<()>).await.missing.is_empty()
    }

    /// What happened since start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// The counters themselves.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
