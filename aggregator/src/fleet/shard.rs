//! One shard: a task that owns its hosts, so that nothing on the way of a frame takes a lock.
//!
//! Everything that concerns a host comes to its shard as a [`Message`]. The shard never waits for a
//! disk or a reader: the log is asked through a bounded queue, and when that is full the stream is told
//! to come back later, with nothing acknowledged.

mod answers;
mod books;
mod message;
mod recalls;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, binary_heap::PeekMut},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use muster_proto::{
    codec::Changes,
    id::{HostId, Incarnation},
    limits,
    time::{Clock, Timestamp},
    v1, words,
};
use tokio::{
    sync::mpsc,
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

pub use self::message::{Connection, Credit, Message, Reader, ToAgent};
use self::{
    answers::Untold,
    recalls::{Recalls, begins_incident},
};
use super::{
    Counters, FleetConfig, ReadContext,
    host::{
        CheckpointedHost, Enrolled, FrameIn, HostState, Receiving, Session, Surroundings, Verdict,
    },
    names::Names,
    neighbours::Neighbourhood,
    silence::{Ended, Refused},
};
use crate::{
    detect::{Engine, Opening, Transition},
    events::Events,
    journal::{Entry, Journal, Record, Stored},
};

/// How often a shard asks itself who has fallen silent.
const JUDGE_EVERY: Duration = Duration::from_millis(500);

/// Messages that are taken out of the inbox at once.
const TOGETHER: usize = 64;

/// A shard that was kept from judging for longer than this has not been listening either.
const STALL: Duration = Duration::from_secs(2);

/// Up to here a stall breaks no stream, so that agents need not come back: it only takes away from the time in which
/// they could be heard. An aggregator that stalls again and again still finds out who is dead.
const SHORT_STALL: Duration = Duration::from_secs(5);

/// How long an agent is asked to stay away when the log cannot take its frames.
const LOG_RETRY: Duration = Duration::from_secs(5);

/// Receives what the detectors conclude.
pub trait TransitionSink: Send + Sync {
    /// Takes transitions of one host; never blocks.
    fn report(&self, host: HostId, name: &str, transitions: Vec<Transition>);
}

struct Stream {
    connection: Connection,
    incarnation: Incarnation,
    received: u64,
    /// Frames of it that were refused.
    refused: u64,
    /// What found no room on its way to the agent, by the life of the agent that it is about.
    untold: BTreeMap<Incarnation, Untold>,
    to_agent: ToAgent,
    close: CancellationToken,
}

/// Refusals that are logged for each stream; all are counted.
const REFUSALS_LOGGED: u64 = 3;

/// A shard. See the module's own words.
pub struct Shard {
    index: usize,
    config: FleetConfig,
    hosts: HashMap<HostId, HostState>,
    streams: HashMap<HostId, Stream>,
    /// When each host is to be judged, if nothing is heard of it: once for each.
    looks: BinaryHeap<Reverse<(Instant, HostId)>>,
    names: Names,
    changes: Changes,
    engine: Arc<Engine>,
    journal: Option<Journal>,
    sink: Arc<dyn TransitionSink>,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    neighbours: Arc<Neighbourhood>,
    /// Keeps what stands beside the samples.
    events: Events,
    listening_since: Instant,
    /// The log's disk fails: nothing is acknowledged, so agents run out of what they may send.
    held_up: bool,
    transitions: Vec<Transition>,
    /// Set once the aggregator is stopping.
    draining: Option<v1::Drain>,
    recalls: Recalls,
}

/// What all shards of a fleet share.
#[derive(Clone)]
pub struct Common {
    /// Detectors.
    pub engine: Arc<Engine>,
    /// Takes what they conclude.
    pub sink: Arc<dyn TransitionSink>,
    /// Dates.
    pub clock: Arc<dyn Clock>,
    /// What happened since start.
    pub counters: Arc<Counters>,
    /// Who fell silent with whom.
    pub neighbours: Arc<Neighbourhood>,
    /// Keeps what stands beside the samples.
    pub events: Events,
}

impl Shard {
    /// A shard without hosts.
    #[must_use]
    pub fn new(index: usize, config: FleetConfig, common: Common) -> Self {
        let Common {
            engine,
            sink,
            clock,
            counters,
            neighbours,
            events,
        } = common;
        Self {
            index,
            config,
            hosts: HashMap::new(),
            streams: HashMap::new(),
            looks: BinaryHeap::new(),
            names: Names::default(),
            changes: Changes::default(),
            engine,
            journal: None,
            sink,
            clock,
            counters,
            neighbours,
            events,
            listening_since: Instant::now(),
            held_up: false,
            transitions: Vec::new(),
            draining: None,
            recalls: Recalls::default(),
        }
    }

    /// Takes in a host of the control store, before or while running.
    pub fn upsert(&mut self, who: Enrolled) {
        let now = self.clock.now();
        match self.hosts.get_mut(&who.id) {
            Some(host) => host.set_identity(who),
            None => {
                self.look_at(who.id, Instant::now());
                self.hosts.insert(who.id, HostState::new(who, now));
                self.counters.hosts.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes over a host of a checkpoint. Hosts that the control store no longer knows are left out.
    pub fn restore(&mut self, checkpoint: &CheckpointedHost) {
        let Some(host) = self.hosts.get_mut(&checkpoint.id()) else {
            return;
        };
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: limits::MAX_SERIES,
            now: Instant::now(),
            replayed: true,
        };
        let before = host.series_held();
        if let Err(error) = host.restore(checkpoint, &mut context) {
            tracing::warn!(host = %checkpoint.id(), %error, "checkpoint of the host does not read; its state begins anew");
        }
        self.counters.series_changed(before, host.series_held());
    }

    /// Tells the detectors what is open on a host in the store.
    pub fn adopt(&mut self, id: HostId, open: &[Opening]) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.adopt(&self.engine, open);
        }
    }

    /// Applies a record of the log that is not in the checkpoint.
    pub fn replay(&mut self, id: HostId, record: Record) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        match record {
            Record::Session(session) => host.begin_session(session),
            Record::Frame(frame) => {
                let mut context = Receiving {
                    names: &mut self.names,
                    engine: &self.engine,
                    changes: &mut self.changes,
                    series_quota: limits::MAX_SERIES,
                    now: Instant::now(),
                    replayed: true,
                };
                let before = host.series_held();
                let verdict = host.receive(&frame, &mut context, &mut self.transitions);
                self.counters.series_changed(before, host.series_held());
                if verdict == Verdict::Store {
                    self.counters
                        .frames_replayed
                        .fetch_add(1, Ordering::Relaxed);
                    self.events.replay(id, &frame);
                }
                self.report(id);
            }
            Record::Rejected {
                incarnation, seq, ..
            } => host.rejected(incarnation, seq),
            Record::Gap {
                incarnation,
                first,
                last,
            } => {
                host.gap(incarnation, first, last);
            }
            Record::Fin {
                incarnation,
                last_seq,
                reason,
            } => host.fin(
                incarnation,
                last_seq,
                v1::FinReason::try_from(reason).unwrap_or_default(),
            ),
        }
    }

    /// Runs until it is stopped, or all senders of messages are gone.
    pub async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        journal: Journal,
        stop: CancellationToken,
    ) {
        self.journal = Some(journal);
        self.listening_since = Instant::now();
        let mut judge = time::interval(JUDGE_EVERY);
        judge.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut judged = (Instant::now(), self.clock.now());
        let mut stopped = pin!(stop.cancelled());
        let mut messages = Vec::with_capacity(TOGETHER);
        loop {
            // The tick comes first: after a stall nothing is judged before it is known that there was one.
            tokio::select! {
                biased;
                () = &mut stopped => return,
                _ = judge.tick() => {
                    let now = Instant::now();
                    let wall = self.clock.now();
                    if let Some(away) = stood_still(judged, (now, wall)) {
                        self.stood_still(away, now);
                    } else {
                        self.judge_all(now);
                    }
                    judged = (now, wall);
                    self.tell_untold();
                    self.names.sweep_if_grown();
                }
                count = inbox.recv_many(&mut messages, TOGETHER) => {
                    if count == 0 {
                        return;
                    }
                    messages.drain(..).for_each(|message| self.handle(message));
                },
            }
        }
    }

    /// The aggregator did not listen for so long. What came meanwhile is taken in before anybody is judged.
    fn stood_still(&mut self, away: Duration, now: Instant) {
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            shard = self.index,
            seconds = away.as_secs_f64(),
            "the aggregator stood still, or its clock jumped; nobody is called silent before all could be heard again"
        );
        self.listening_since = if away <= SHORT_STALL {
            now.min(self.listening_since + away)
        } else {
            now
        };
        for host in self.hosts.values_mut() {
            host.listened_since(self.listening_since);
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Upsert(who) => self.upsert(*who),
            Message::Forget(host) => self.forget(host),
            Message::Cut(host) => self.cut(host),
            Message::Attach {
                host,
                connection,
                address,
                session,
                holds,
                to_agent,
                close,
                welcome,
                reply,
            } => {
                let stream = Stream {
                    connection,
                    incarnation: session.incarnation,
                    received: 0,
                    refused: 0,
                    untold: BTreeMap::new(),
                    to_agent,
                    close,
                };
                let answer = self.attach(host, session, &holds, *welcome, stream);
                if let (Ok(()), Some(host)) = (answer, self.hosts.get_mut(&host)) {
                    host.set_address(Some(address));
                }
                // The stream may be gone already; its Detach follows.
                let _ = reply.send(answer);
            }
            Message::Frame {
                host,
                connection,
                frame,
                credit,
            } => self.frame(host, connection, frame, credit),
            Message::Gap {
                host,
                connection,
                gap,
            } => self.gap(host, connection, &gap),
            Message::Fin {
                host,
                connection,
                fin,
            } => self.fin(host, connection, fin),
            Message::Detach {
                host,
                connection,
                ended,
            } => self.detach(host, connection, ended),
            Message::Refused { host, why } => self.refused(host, why),
            Message::Stored(stored) => self.settled(&stored, true),
            Message::NotStored(stored) => self.settled(&stored, false),
            Message::Read(reader) => reader(
                &self.hosts,
                &ReadContext {
                    now: self.clock.now(),
                },
            ),
            Message::Checkpoint(ids, reply) => {
                let hosts = ids.into_iter().map(|id| self.checkpointed(id));
                // Whoever asked may have given up; the next checkpoint comes.
                let _ = reply.send(hosts.collect());
            }
            Message::Nudge(spread) => self.ask_to_leave(drain_within(spread)),
            Message::Drain(spread) => {
                let drain = drain_within(spread);
                self.draining = Some(drain);
                self.ask_to_leave(drain);
            }
        }
    }

    /// A host as it is carried over a restart. One that was removed meanwhile is carried over without anything: nobody
    /// asks for it.
    fn checkpointed(&mut self, id: HostId) -> CheckpointedHost {
        let written = self.hosts.get_mut(&id).map(HostState::write_checkpoint);
        let written = written.and_then(|written| {
            written
                .inspect_err(|error| {
                    tracing::error!(host = %id, %error, "host left out of the checkpoint");
                })
                .ok()
        });
        written.unwrap_or_else(|| CheckpointedHost::nothing(id))
    }

    /// Agents that leave come back, each at its own moment.
    fn ask_to_leave(&self, drain: v1::Drain) {
        for stream in self.streams.values() {
            send(
                &stream.to_agent,
                v1::aggregator_message::Message::Drain(drain),
            );
        }
    }

    fn attach(
        &mut self,
        id: HostId,
        session: Session,
        holds: &[Incarnation],
        mut welcome: v1::Welcome,
        stream: Stream,
    ) -> Result<(), v1::DenyReason> {
        let now = Instant::now();
        if let Some(drain) = self.draining {
            // It came back too early: the aggregator is still stopping.
            send(
                &stream.to_agent,
                v1::aggregator_message::Message::Welcome(welcome),
            );
            send(
                &stream.to_agent,
                v1::aggregator_message::Message::Drain(drain),
            );
            stream.close.cancel();
            return Ok(());
        }
        let wall = self.clock.now();
        let Some(host) = self.hosts.get_mut(&id) else {
            tracing::warn!(host = %id, "a certificate of ours, but no such host is enrolled; denied");
            return Err(v1::DenyReason::Removed);
        };
        let other_boot = host.boot_id().is_some_and(|boot| boot != session.boot_id);
        let recent = host
            .heard()
            .is_some_and(|heard| now - heard <= host.interval() * 2);
        if host.is_connected() && other_boot && recent {
            tracing::warn!(
                host = %id, name = host.name(),
                "a second machine speaks with this host's identity: a clone? the one that was first stays"
            );
            host.refused(Refused::OtherBoot, wall);
            return Err(v1::DenyReason::AlreadyConnected);
        }
        let incarnation = session.incarnation;
        host.begin_session(session.clone());
        host.set_connected(true);
        host.greeted(now);
        welcome.have = holds.iter().map(|&held| host.have(held)).collect();
        // The stream is new, so there is room, and nothing goes before it.
        send(
            &stream.to_agent,
            v1::aggregator_message::Message::Welcome(welcome),
        );
        match self.streams.insert(id, stream) {
            Some(older) => {
                // The same agent over a new connection is the usual case; another life of the agent, while
                // the one before was heard a moment ago and said no goodbye, is a second one.
                if older.incarnation != incarnation && recent {
                    tracing::warn!(
                        host = %id, name = host.name(),
                        "a second agent speaks with this host's identity, from the same boot: is its state folder used twice, or copied? the older one is sent away"
                    );
                    let deny = v1::Deny {
                        reason: v1::DenyReason::AlreadyConnected.into(),
                        ..v1::Deny::default()
                    };
                    send(&older.to_agent, v1::aggregator_message::Message::Deny(deny));
                }
                older.close.cancel();
            }
            None => {
                self.counters.connected.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !self.write(id, None, &Record::Session(session), None) {
            // Without it, what follows could not be told apart after a restart.
            self.throttle(id);
        }
        Ok(())
    }

    fn forget(&mut self, id: HostId) {
        if let Some(stream) = self.streams.get(&id) {
            // An agent that misses this is told when it comes back.
            let deny = v1::Deny {
                reason: v1::DenyReason::Removed.into(),
                ..v1::Deny::default()
            };
            send(
                &stream.to_agent,
                v1::aggregator_message::Message::Deny(deny),
            );
        }
        self.close(id);
        if let Some(gone) = self.hosts.remove(&id) {
            self.counters.hosts.fetch_sub(1, Ordering::Relaxed);
            self.counters.series_changed(gone.series_held(), 0);
            self.neighbours.gone(id);
        }
    }

    /// Someone with the host's identity stands at the door and is not let in.
    fn refused(&mut self, id: HostId, why: Refused) {
        let wall = self.clock.now();
        if let Some(host) = self.hosts.get_mut(&id) {
            host.refused(why, wall);
            self.judge_one(id, Instant::now());
        }
    }

    fn cut(&mut self, id: HostId) {
        if let Some(stream) = self.streams.get(&id) {
            let deny = v1::Deny {
                reason: v1::DenyReason::StaleCopy.into(),
                ..v1::Deny::default()
            };
            send(
                &stream.to_agent,
                v1::aggregator_message::Message::Deny(deny),
            );
        }
        self.close(id);
    }

    fn detach(&mut self, id: HostId, connection: Connection, ended: Ended) {
        let ours = self
            .streams
            .get(&id)
            .is_some_and(|stream| stream.connection == connection);
        if !ours {
            return;
        }
        let wall = self.clock.now();
        if let Some(host) = self.hosts.get_mut(&id) {
            host.ended(ended, wall);
        }
        self.close(id);
    }

    fn close(&mut self, id: HostId) {
        if let Some(stream) = self.streams.remove(&id) {
            stream.close.cancel();
            self.counters.connected.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(host) = self.hosts.get_mut(&id) {
            host.set_connected(false);
        }
        self.judge_one(id, Instant::now());
    }

    fn frame(&mut self, id: HostId, connection: Connection, frame: FrameIn, credit: Credit) {
        let (Some(host), Some(stream)) = (self.hosts.get_mut(&id), self.streams.get_mut(&id))
        else {
            return;
        };
        if stream.connection != connection {
            return;
        }
        if frame.tick > frame.received.plus(limits::MAX_FUTURE) && self.clock.in_doubt() {
            // It may be our clock that stood still. A refusal is for good, and would cost all that agents keep.
            self.throttle(id);
            return;
        }
        if frame.incarnation == stream.incarnation {
            stream.received = stream.received.max(frame.seq);
        }
        let held = host.series_held();
        let all = self.counters.series.load(Ordering::Relaxed);
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: self.config.quota(held, all),
            now: Instant::now(),
            replayed: false,
        };
        let verdict = host.receive(&frame, &mut context, &mut self.transitions);
        self.counters.series_changed(held, host.series_held());
        let (incarnation, seq) = (frame.incarnation, frame.seq);
        self.counters
            .frames_received
            .fetch_add(1, Ordering::Relaxed);
        match verdict {
            Verdict::Store => {
                self.events.offer(id, &frame);
                let key = Stored {
                    host: id,
                    incarnation: frame.incarnation,
                    seq: frame.seq,
                };
                if !self.write(id, Some(key), &Record::Frame(frame), credit) {
                    self.throttle(id);
                }
            }
            Verdict::Duplicate => {
                self.counters
                    .frames_duplicate
                    .fetch_add(1, Ordering::Relaxed);
                self.tell(id, incarnation, Untold::frames((seq, seq)));
            }
            Verdict::Rejected(reason) => self.rejected(id, &frame, reason),
            Verdict::Violation => self.violation(id, "it gives impossible numbers"),
        }
        self.bound_holes(id, incarnation);
        self.report(id);
        self.judge_one(id, Instant::now());
    }

    fn rejected(&mut self, id: HostId, frame: &FrameIn, reason: v1::RejectReason) {
        self.counters.rejected(reason);
        let record = Record::Rejected {
            incarnation: frame.incarnation,
            seq: frame.seq,
            reason: reason.into(),
        };
        if reason != v1::RejectReason::SeqConflict {
            self.write(id, None, &record, None);
        }
        if let (Some(stream), Some(host)) = (self.streams.get_mut(&id), self.hosts.get(&id)) {
            stream.refused += 1;
            if stream.refused <= REFUSALS_LOGGED {
                let last = stream.refused == REFUSALS_LOGGED;
                tracing::warn!(
                    host = %id, name = host.name(), seq = frame.seq, reason = words::rejected(reason),
                    more = if last { "further ones of this stream are only counted" } else { "" },
                    "frame refused"
                );
            }
        }
        let rejected = v1::Rejected {
            seq: frame.seq,
            reason: reason.into(),
            samples: 0,
        };
        self.tell(id, frame.incarnation, Untold::refused(rejected));
    }

    fn is_stream(&self, id: HostId, connection: Connection) -> bool {
        is_open(&self.streams, id, connection)
    }

    /// The agent broke the contract: its stream ends with a word about it.
    fn violation(&mut self, id: HostId, what: &str) {
        let name = self.hosts.get(&id).map_or("", HostState::name);
        tracing::warn!(host = %id, name, what, "the agent breaks the contract; its stream is closed");
        if let Some(stream) = self.streams.get(&id) {
            let deny = v1::Deny {
                reason: v1::DenyReason::ProtocolViolation.into(),
                ..v1::Deny::default()
            };
            send(
                &stream.to_agent,
                v1::aggregator_message::Message::Deny(deny),
            );
        }
        self.close(id);
    }

    /// Hands over a record that is no frame. When the log cannot take it, the agent is sent away and says it
    /// again when it comes back.
    fn write_or_throttle(&mut self, id: HostId, record: &Record) {
        if !self.write(id, None, record, None) {
            self.throttle(id);
        }
    }

    /// Hands a record to the log; false if the log cannot take it now.
    fn write(
        &mut self,
        host: HostId,
        key: Option<Stored>,
        record: &Record,
        credit: Credit,
    ) -> bool {
        let Some(journal) = &self.journal else {
            return false;
        };
        let entry = match record.encode(host) {
            Ok(bytes) => Entry {
                shard: self.index,
                key,
                bytes,
                credit,
            },
            Err(error) => {
                tracing::error!(%host, %error, "record cannot be written");
                return false;
            }
        };
        if journal.try_write(entry) {
            return true;
        }
        if let (Some(key), Some(host)) = (key, self.hosts.get_mut(&host)) {
            host.not_stored(key.incarnation, key.seq);
        }
        false
    }

    /// The log cannot take frames: the agent keeps them and comes back. Until it has had the time to, its silence is
    /// ours; other hosts are judged as before.
    fn throttle(&mut self, id: HostId) {
        self.counters.throttled.fetch_add(1, Ordering::Relaxed);
        if let Some(host) = self.hosts.get_mut(&id) {
            host.excuse(Instant::now());
        }
        if let Some(stream) = self.streams.get(&id) {
            let throttle = v1::Throttle {
                retry_after_ms: u32::try_from(LOG_RETRY.as_millis()).unwrap_or(u32::MAX),
            };
            send(
                &stream.to_agent,
                v1::aggregator_message::Message::Throttle(throttle),
            );
        }
        self.close(id);
    }

    /// Judges everybody of whom it is not known that nothing changes until later.
    fn judge_all(&mut self, now: Instant) {
        let journal = self.journal.as_ref();
        self.held_up = journal.is_some_and(|journal| journal.health().problem().is_some());
        let wall = self.clock.now();
        if self.held_up {
            // All who are connected have time from now on.
            let ids: Vec<HostId> = self.hosts.keys().copied().collect();
            for id in ids {
                self.judge_at(id, now, wall);
            }
            return;
        }
        let mut looked_at = Vec::new();
        while let Some(next) = self.looks.peek_mut().filter(|next| next.0.0 <= now) {
            looked_at.push(PeekMut::pop(next).0.1);
        }
        for id in looked_at {
            self.judge_at(id, now, wall);
            // One that was removed is looked at no more.
            if let Some(host) = self.hosts.get(&id) {
                self.look_at(id, host.lives_until(now).unwrap_or(now));
            }
        }
    }

    /// A host is to be judged at this time, if nothing happens before.
    fn look_at(&mut self, id: HostId, at: Instant) {
        self.looks.push(Reverse((at, id)));
    }

    fn judge_one(&mut self, id: HostId, now: Instant) {
        let wall = self.clock.now();
        self.judge_at(id, now, wall);
    }

    fn judge_at(&mut self, id: HostId, now: Instant, wall: Timestamp) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if self.held_up && host.is_connected() {
            host.excuse(now);
        }
        // Who was not heard since this aggregator began to listen may be with another, and look here later.
        let is_back = host
            .heard()
            .is_some_and(|heard| heard > self.listening_since);
        let elsewhere = match is_back {
            true => Duration::ZERO,
            false => self.config.elsewhere,
        };
        let surroundings = Surroundings {
            now,
            wall,
            listening_since: self.listening_since + elsewhere,
            hosts: self.counters.hosts.load(Ordering::Relaxed),
            neighbours: Some(&self.neighbours),
        };
        let Some(liveness) = host.judge(&surroundings) else {
            return;
        };
        tracing::debug!(host = %id, name = host.name(), ?liveness, "host state");
        host.observe_liveness(&self.engine, wall, &mut self.transitions);
        self.report(id);
    }

    fn report(&mut self, id: HostId) {
        if self.transitions.is_empty() {
            return;
        }
        let transitions = std::mem::take(&mut self.transitions);
        if transitions.iter().any(begins_incident) {
            self.recall(id);
        }
        if let Some(host) = self.hosts.get(&id) {
            self.sink.report(id, host.name(), transitions);
        }
    }
}

/// Whether this is the host's stream.
fn is_open(streams: &HashMap<HostId, Stream>, id: HostId, connection: Connection) -> bool {
    let stream = streams.get(&id);
    stream.is_some_and(|stream| stream.connection == connection)
}

fn drain_within(spread: Duration) -> v1::Drain {
    v1::Drain {
        spread_ms: u32::try_from(spread.as_millis()).unwrap_or(u32::MAX),
    }
}

/// For how long the aggregator did not run between two looks at its clocks, if that was too long: its process
/// was stopped, or its machine (then the monotonic clock may not tell, but the wall clock jumps).
fn stood_still(before: (Instant, Timestamp), now: (Instant, Timestamp)) -> Option<Duration> {
    let passed = now.0 - before.0;
    let jumped = now.1.millis_since(before.1).unsigned_abs();
    let jumped = Duration::from_millis(jumped).abs_diff(passed);
    Some(passed.max(jumped)).filter(|away| *away > STALL)
}

/// False when there was no room, or nobody hears any more.
fn send(to_agent: &ToAgent, message: v1::aggregator_message::Message) -> bool {
    let message = Box::new(v1::AggregatorMessage {
        message: Some(message),
    });
    to_agent.try_send(message).is_ok()
}
