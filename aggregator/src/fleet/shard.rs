//! One shard: a task that owns its hosts, so that nothing on the way of a frame takes a lock.
//!
//! Everything that concerns a host comes to its shard as a [`Message`]. The shard never waits for a
//! disk or a reader: the log is asked through a bounded queue, and when that is full the stream is told
//! to come back later, with nothing acknowledged.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, binary_heap::PeekMut},
    net::IpAddr,
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
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

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
    detect::{Change, Engine, Opening, Severity, Transition},
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

/// Where the messages to one agent's stream go. Boxed: a channel holds room for 32 of them, and there is one for each
/// host.
pub type ToAgent = mpsc::Sender<Box<v1::AggregatorMessage>>;

/// Bytes of an agent's credit that are in use, until this is dropped.
pub type Credit = Option<OwnedSemaphorePermit>;

/// A connection of an agent, numbered by the process.
pub type Connection = u64;

/// Reads one host or all of a shard.
pub type Reader = Box<dyn FnOnce(&HashMap<HostId, HostState>, &ReadContext) + Send>;

/// What a shard can be told.
pub enum Message {
    /// A host was enrolled, or its record changed.
    Upsert(Box<Enrolled>),
    /// A host was removed by an operator.
    Forget(HostId),
    /// A host's certificates of before are refused from now on: a stream it has is closed.
    Cut(HostId),
    /// An agent says Hello.
    Attach {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// Where it comes from.
        address: IpAddr,
        /// What it says.
        session: Session,
        /// Incarnations of which it still holds frames.
        holds: Vec<Incarnation>,
        /// Where to answer.
        to_agent: ToAgent,
        /// Cancelled when the shard lets go of the stream.
        close: CancellationToken,
        /// What the Welcome says beside what is here: it is sent by the shard, before anything else.
        welcome: Box<v1::Welcome>,
        /// Whether the agent was let in, or why not.
        reply: oneshot::Sender<Result<(), v1::DenyReason>>,
    },
    /// A frame of an attached agent.
    Frame {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// What it sent.
        frame: FrameIn,
        /// Its share of the agent's credit, given back when the frame is on disk or refused.
        credit: Credit,
    },
    /// Frames that will never come.
    Gap {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// Which.
        gap: v1::Gap,
    },
    /// A goodbye.
    Fin {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// What it says.
        fin: v1::Fin,
    },
    /// The stream has ended.
    Detach {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// How.
        ended: Ended,
    },
    /// Someone who presented a host's identity was not let in.
    Refused {
        /// The host.
        host: HostId,
        /// Why not.
        why: Refused,
    },
    /// Frames are on disk.
    Stored(Vec<Stored>),
    /// Frames did not get to the disk.
    NotStored(Vec<Stored>),
    /// Someone asks.
    Read(Reader),
    /// The state of these hosts is to be carried over a restart.
    Checkpoint(Vec<HostId>, oneshot::Sender<Vec<CheckpointedHost>>),
    /// The aggregator stops: all agents are asked to leave, each within the spread, and those that come back are
    /// sent away again.
    Drain(Duration),
    /// All agents are asked to connect anew, each within the spread: something new is to be told.
    Nudge(Duration),
}

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
    /// Acknowledgements that found no room on their way, by life of the agent, with the refusals they were to tell.
    untold: BTreeMap<Incarnation, Vec<v1::Rejected>>,
    /// What is on disk and could not be said yet, because there was no room.
    unsaid: Vec<Answer>,
    to_agent: ToAgent,
    close: CancellationToken,
}

/// Refusals that are logged for each stream; all are counted.
const REFUSALS_LOGGED: u64 = 3;

/// Refusals of one life that are kept for an agent that does not read; beyond, they are told when the frame comes again.
const MAX_UNTOLD: usize = 1024;
/// Lives of an agent of which anything is kept so.
const MAX_UNTOLD_LIVES: usize = 64;

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
                    unsaid: Vec::new(),
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
                self.acknowledge(&Answer {
                    host: id,
                    incarnation,
                    frames: (seq, seq),
                });
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
        let durable = self
            .hosts
            .get(&id)
            .map(|host| host.durable(frame.incarnation));
        self.send_ack(
            id,
            frame.incarnation,
            durable.unwrap_or_default(),
            vec![rejected],
        );
    }

    fn gap(&mut self, id: HostId, connection: Connection, gap: &v1::Gap) {
        if !self.is_stream(id, connection) {
            return;
        }
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let incarnation = Incarnation(gap.incarnation);
        if gap.first == 0 || gap.first > gap.last {
            self.violation(id, "it names frames as lost that cannot be");
            return;
        }
        if host.knows_up_to(incarnation, gap.last) {
            self.lost(id, incarnation, gap.first, gap.last);
            self.bound_holes(id, incarnation);
        } else {
            self.disbelieved(id, "lost frames", gap.last);
        }
    }

    /// Frames that will never come are noted, and written where that is news.
    fn lost(&mut self, id: HostId, incarnation: Incarnation, first: u64, last: u64) {
        let host = self.hosts.get_mut(&id);
        // Told again, or told of frames that came: nothing changed.
        match host.and_then(|host| host.gap(incarnation, first, last)) {
            None | Some(0) => {}
            Some(lost) => self.note_lost(id, incarnation, (first, last), lost),
        }
    }

    fn note_lost(
        &mut self,
        id: HostId,
        incarnation: Incarnation,
        (first, last): (u64, u64),
        lost: u64,
    ) {
        self.counters.frames_lost.fetch_add(lost, Ordering::Relaxed);
        let record = Record::Gap {
            incarnation,
            first,
            last,
        };
        self.write_or_throttle(id, &record);
    }

    /// Books that fall into too many ranges give up their oldest holes.
    fn bound_holes(&mut self, id: HostId, incarnation: Incarnation) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if let Some((first, last, lost)) = host.bound_holes(incarnation) {
            tracing::info!(
                host = %id, name = host.name(), first, last, lost,
                "too many holes in what came of this host; the oldest are counted as lost unless they still come"
            );
            self.note_lost(id, incarnation, (first, last), lost);
        }
    }

    /// A claim about numbers far beyond what was heard of is noted nowhere. A host of a fleet that was restored from a
    /// backup, or has moved here, may well say the truth: it is not sent away for it.
    fn disbelieved(&mut self, id: HostId, what: &str, last: u64) {
        let (Some(stream), Some(host)) = (self.streams.get_mut(&id), self.hosts.get(&id)) else {
            return;
        };
        stream.refused += 1;
        if stream.refused <= REFUSALS_LOGGED {
            tracing::warn!(
                host = %id, name = host.name(), what, last,
                "the host names numbers far beyond those that were heard of here; what it says of them is not counted"
            );
        }
    }

    fn fin(&mut self, id: HostId, connection: Connection, fin: v1::Fin) {
        if !self.is_stream(id, connection) {
            return;
        }
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let reason = v1::FinReason::try_from(fin.reason).unwrap_or_default();
        let incarnation = Incarnation(fin.incarnation);
        if fin.complete {
            let believed = host.knows_up_to(incarnation, fin.last_seq);
            match host.missing(incarnation, fin.last_seq) {
                Some(missing) => self.complete(id, incarnation, &missing),
                None => self.violation(id, "it ends the life that speaks"),
            }
            if !believed {
                self.disbelieved(id, "end of an earlier life", fin.last_seq);
            }
        }
        let Some(host) = self
            .hosts
            .get_mut(&id)
            .filter(|_| is_open(&self.streams, id, connection))
        else {
            return;
        };
        host.fin(incarnation, fin.last_seq, reason);
        let record = Record::Fin {
            incarnation,
            last_seq: fin.last_seq,
            reason: fin.reason,
        };
        self.write_or_throttle(id, &record);
        self.judge_one(id, Instant::now());
    }

    /// Nothing more will come of an earlier life of the agent: what is missing of it is lost.
    fn complete(&mut self, id: HostId, incarnation: Incarnation, missing: &[(u64, u64)]) {
        for &(first, last) in missing {
            self.lost(id, incarnation, first, last);
        }
        let lost: u64 = missing.iter().map(|(first, last)| last - first + 1).sum();
        if let Some(host) = self.hosts.get(&id).filter(|_| lost > 0) {
            tracing::info!(
                host = %id, name = host.name(), frames = lost,
                "an earlier life of the agent is over; what did not come of it is lost"
            );
        }
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

    fn settled(&mut self, stored: &[Stored], durable: bool) {
        // Neighbours are usually of one host: one answer for all of them.
        let mut last: Option<Answer> = None;
        for key in stored {
            let Some(host) = self.hosts.get_mut(&key.host) else {
                continue;
            };
            if durable {
                if host.stored(key.incarnation, key.seq) {
                    self.counters.frames_stored.fetch_add(1, Ordering::Relaxed);
                }
            } else {
                host.not_stored(key.incarnation, key.seq);
            }
            let this = Answer::to(key);
            match &mut last {
                Some(answer) if answer.is_with(&this) => answer.join(this.frames),
                _ => {
                    if let Some(before) = last.replace(this) {
                        self.answer(&before, durable);
                    }
                }
            }
        }
        if let Some(answer) = last {
            self.answer(&answer, durable);
        }
    }

    fn answer(&mut self, to: &Answer, durable: bool) {
        if durable {
            self.acknowledge(to);
        } else {
            self.throttle(to.host);
        }
    }

    /// Says what is on disk: all of it, where one Ack can say so. Of books with more holes than that at least what is
    /// there of these frames: an agent that sends what lies scattered (events whose samples are gone) hears of each.
    fn acknowledge(&mut self, to: &Answer) {
        let unsaid = self
            .streams
            .get_mut(&to.host)
            .map(|stream| &mut stream.unsaid);
        let mut answers = unsaid.map(std::mem::take).unwrap_or_default();
        if answers.is_empty() {
            // As always, but for an agent that reads slowly.
            if !self.acknowledge_one(to) {
                answers.push(to.clone());
            }
        } else {
            match answers.iter_mut().find(|answer| answer.is_with(to)) {
                Some(answer) => answer.join(to.frames),
                None => answers.push(to.clone()),
            }
            answers.retain(|answer| !self.acknowledge_one(answer));
        }
        if let Some(stream) = self.streams.get_mut(&to.host) {
            stream.unsaid = answers;
        }
    }

    /// False when not all of it could be said.
    fn acknowledge_one(&mut self, to: &Answer) -> bool {
        let &Answer {
            host: id,
            incarnation,
            frames: (first, last),
        } = to;
        let Some(host) = self.hosts.get(&id) else {
            return true;
        };
        let highest = host.durable(incarnation);
        let told = |range: &v1::Range| range.first <= first;
        if highest.len() < limits::MAX_ACK_RANGES || highest.first().is_some_and(told) {
            self.send_ack(id, incarnation, highest, Vec::new());
            // If there was no room it is told when there is some: ranges are cumulative.
            return true;
        }
        let newest = highest.last().copied();
        let within: Vec<v1::Range> = host.durable_within(incarnation, first, last).collect();
        within.chunks(limits::MAX_ACK_RANGES - 1).all(|part| {
            let durable = part.iter().copied().chain(newest).collect();
            self.send_ack(id, incarnation, durable, Vec::new())
        })
    }

    /// False when there was no room.
    fn send_ack(
        &mut self,
        id: HostId,
        incarnation: Incarnation,
        durable: Vec<v1::Range>,
        rejected: Vec<v1::Rejected>,
    ) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return true;
        };
        let mut all = stream.untold.remove(&incarnation).unwrap_or_default();
        all.extend(rejected);
        let ack = v1::Ack {
            incarnation: incarnation.0,
            received: stream.received,
            durable,
            rejected: all.clone(),
            credit_bytes: self.config.credit_bytes,
            epoch: self.config.epoch,
        };
        let told = send(&stream.to_agent, v1::aggregator_message::Message::Ack(ack));
        if !told {
            // More was answered at once than has room on the way. Refusals are told once only; and of an earlier life
            // there may be nothing more to answer, so that its agent would wait for this for ever.
            all.truncate(MAX_UNTOLD);
            if stream.untold.len() < MAX_UNTOLD_LIVES {
                stream.untold.insert(incarnation, all);
            }
        }
        told
    }

    /// Tells agents what found no room on its way to them.
    fn tell_untold(&mut self) {
        let streams = self.streams.iter();
        let untold: Vec<(HostId, Incarnation)> = streams
            .flat_map(|(id, stream)| stream.untold.keys().map(|whose| (*id, *whose)))
            .collect();
        for (id, incarnation) in untold {
            let host = self.hosts.get(&id);
            let durable = host.map_or_else(Vec::new, |host| host.durable(incarnation));
            self.send_ack(id, incarnation, durable, Vec::new());
        }
        let streams = self.streams.iter();
        let unsaid: Vec<HostId> = streams
            .filter(|(_, stream)| !stream.unsaid.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in unsaid {
            let stream = self.streams.get_mut(&id);
            let mut answers =
                stream.map_or_else(Vec::new, |stream| std::mem::take(&mut stream.unsaid));
            answers.retain(|answer| !self.acknowledge_one(answer));
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.unsaid = answers;
            }
        }
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
        let surroundings = Surroundings {
            now,
            wall,
            listening_since: self.listening_since,
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

/// Frames that are answered together.
#[derive(Clone)]
struct Answer {
    host: HostId,
    incarnation: Incarnation,
    /// First and last number.
    frames: (u64, u64),
}

impl Answer {
    fn to(key: &Stored) -> Self {
        Self {
            host: key.host,
            incarnation: key.incarnation,
            frames: (key.seq, key.seq),
        }
    }

    fn is_with(&self, other: &Self) -> bool {
        (self.host, self.incarnation) == (other.host, other.incarnation)
    }

    fn join(&mut self, (first, last): (u64, u64)) {
        self.frames = (self.frames.0.min(first), self.frames.1.max(last));
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

impl Shard {
    /// Something begins on a host: what its flight recorder holds of the minutes before is evidence. The agent
    /// sends it beside its next samples, if it wants to.
    fn recall(&mut self, id: HostId) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        if !self.recalls.admits(id, Instant::now()) {
            return;
        }
        let now = self.clock.now();
        let recall = v1::Recall {
            from_ms: now.minus(limits::MAX_RECORDING).as_millis(),
            to_ms: now.as_millis(),
        };
        send(
            &stream.to_agent,
            v1::aggregator_message::Message::Recall(recall),
        );
    }
}

/// Whether an incident begins that is worth a recording.
fn begins_incident(transition: &Transition) -> bool {
    let opened = matches!(transition.change, Change::Opened { .. });
    opened && matches!(transition.severity, Severity::Critical | Severity::Warning)
}

/// How often recordings are asked for: a storm of incidents must not become a storm of recordings, of up to
/// 2 MiB each, in the log.
#[derive(Debug)]
struct Recalls {
    /// Hosts that were asked, and when.
    asked: HashMap<HostId, Instant>,
    tokens: f64,
    as_of: Option<Instant>,
}

/// A host is asked again after what its recorder holds.
const RECALL_EVERY: Duration = limits::MAX_RECORDING;
/// Recordings of a shard's hosts at once, and a second over time.
const RECALL_BURST: f64 = 10.0;
const RECALLS_PER_SECOND: f64 = 1.0 / 30.0;

impl Default for Recalls {
    fn default() -> Self {
        Self {
            asked: HashMap::new(),
            tokens: RECALL_BURST,
            as_of: None,
        }
    }
}

impl Recalls {
    fn admits(&mut self, host: HostId, now: Instant) -> bool {
        let as_of = self.as_of.replace(now).unwrap_or(now);
        let earned = (now - as_of).as_secs_f64() * RECALLS_PER_SECOND;
        self.tokens = (self.tokens + earned).min(RECALL_BURST);
        self.asked.retain(|_, at| now - *at < RECALL_EVERY);
        if self.tokens < 1.0 || self.asked.contains_key(&host) {
            return false;
        }
        self.tokens -= 1.0;
        self.asked.insert(host, now);
        true
    }
}

/// False when there was no room, or nobody hears any more.
fn send(to_agent: &ToAgent, message: v1::aggregator_message::Message) -> bool {
    let message = Box::new(v1::AggregatorMessage {
        message: Some(message),
    });
    to_agent.try_send(message).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_shows_on_either_clock() {
        let start = Instant::now();
        let wall = |millis: i64| Timestamp::from_millis(1_700_000_000_000 + millis);
        let mono = |millis: u64| start + Duration::from_millis(millis);
        for (mono_ms, wall_ms, stalled) in [
            (500, 500, false),
            (1900, 1900, false),
            (2100, 2100, true),
            // The machine slept, and its monotonic clock with it.
            (500, 60_000, true),
            // Someone set the clock back.
            (500, -3_600_000, true),
            (500, 2400, false),
        ] {
            let away = stood_still((start, wall(0)), (mono(mono_ms), wall(wall_ms)));
            assert_eq!(away.is_some(), stalled, "{mono_ms} {wall_ms}");
        }
    }

    struct Nobody;

    impl TransitionSink for Nobody {
        fn report(&self, _: HostId, _: &str, _: Vec<Transition>) {}
    }

    fn shard(state: &std::path::Path) -> Shard {
        let clock: Arc<dyn Clock> = Arc::new(muster_proto::time::SystemClock);
        let limits = crate::events::EventLimits::default();
        let common = Common {
            engine: Arc::default(),
            sink: Arc::new(Nobody),
            clock: Arc::clone(&clock),
            counters: Arc::default(),
            neighbours: Arc::default(),
            events: Events::open(state, limits, clock).expect("opens"),
        };
        // No log: it takes nothing, like one whose disk is full.
        Shard::new(0, FleetConfig::default(), common)
    }

    fn knocks(shard: &mut Shard, host: HostId, connection: Connection) {
        let (to_agent, _gone) = mpsc::channel(8);
        let session = Session {
            incarnation: Incarnation(1),
            session: connection,
            boot_id: vec![1; 16],
            interval: Duration::from_secs(10),
            clock_offset_ms: 0,
        };
        shard.handle(Message::Attach {
            host,
            connection,
            address: IpAddr::from([127, 0, 0, 1]),
            session,
            holds: Vec::new(),
            to_agent,
            close: CancellationToken::new(),
            welcome: Box::default(),
            reply: oneshot::channel().0,
        });
    }

    /// To be put in by hand: a shard without a log sends away who says Hello.
    fn stream(to_agent: ToAgent) -> Stream {
        Stream {
            connection: 1,
            incarnation: Incarnation(1),
            received: 0,
            refused: 0,
            untold: BTreeMap::new(),
            unsaid: Vec::new(),
            to_agent,
            close: CancellationToken::new(),
        }
    }

    fn enrolled(shard: &mut Shard, id: HostId) {
        shard.upsert(Enrolled {
            id,
            name: id.to_string(),
            labels: BTreeMap::new(),
            facts: v1::HostFacts::default(),
            certificate_not_after: None,
        });
    }

    fn first_frame(tick: Timestamp, received: Timestamp) -> FrameIn {
        let mut payload = Vec::new();
        let table = muster_proto::series::Table::default();
        muster_proto::codec::Encoder::new().encode(&table, &[], true, &mut payload);
        FrameIn {
            incarnation: Incarnation(1),
            seq: 1,
            lane: super::super::host::Lane::Live,
            tick,
            received,
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        }
    }

    /// A first sample of the host.
    fn heard(shard: &mut Shard, id: HostId) {
        let mut context = Receiving {
            names: &mut shard.names,
            engine: &shard.engine,
            changes: &mut shard.changes,
            series_quota: 10,
            now: Instant::now(),
            replayed: false,
        };
        let now = shard.clock.now();
        let frame = first_frame(now, now);
        let host = shard.hosts.get_mut(&id).expect("enrolled");
        host.receive(&frame, &mut context, &mut Vec::new());
    }

    fn is_silent(shard: &Shard, host: HostId) -> bool {
        let liveness = shard.hosts[&host].liveness();
        matches!(liveness, crate::fleet::Liveness::Silent(_))
    }

    struct Doubtful(bool);

    impl Clock for Doubtful {
        fn now(&self) -> Timestamp {
            muster_proto::time::SystemClock.now()
        }

        fn in_doubt(&self) -> bool {
            self.0
        }
    }

    #[tokio::test]
    async fn while_the_clock_is_in_doubt_nothing_is_refused_for_good_as_from_the_future() {
        for in_doubt in [true, false] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut shard = shard(folder.path());
            shard.clock = Arc::new(Doubtful(in_doubt));
            let id = HostId::from_bytes([1; 16]);
            enrolled(&mut shard, id);
            let (to_agent, mut said) = mpsc::channel(8);
            shard.streams.insert(id, stream(to_agent));
            let now = shard.clock.now();
            let ahead = now.plus(Duration::from_secs(2 * 3600));
            shard.frame(id, 1, first_frame(ahead, now), None);
            let refused = shard.hosts[&id].books().rejected;
            assert_eq!(refused, u64::from(!in_doubt));
            let answer = said.try_recv().expect("an answer").message;
            let throttled = matches!(answer, Some(v1::aggregator_message::Message::Throttle(_)));
            assert_eq!(throttled, in_doubt, "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whom_a_full_log_sends_away_is_not_silent_and_who_is_dead_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shard = shard(folder.path());
        let hosts = [1, 2].map(|number| HostId::from_bytes([number; 16]));
        for (connection, id) in (1..).zip(hosts) {
            enrolled(&mut shard, id);
            knocks(&mut shard, id, connection);
            heard(&mut shard, id);
        }
        for connection in 3..63 {
            knocks(&mut shard, hosts[0], connection);
            time::advance(Duration::from_secs(5)).await;
            shard.judge_all(Instant::now());
            assert!(!is_silent(&shard, hosts[0]), "it knocks every 5 s");
        }
        assert!(is_silent(&shard, hosts[1]), "nothing is heard of it");
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_on_the_way_to_an_agent_is_told_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shard = shard(folder.path());
        let id = HostId::from_bytes([1; 16]);
        enrolled(&mut shard, id);
        let (to_agent, mut told) = mpsc::channel(2);
        shard.streams.insert(id, stream(to_agent));
        let now = shard.clock.now();
        for (incarnation, seq) in (1..=50).map(|seq| (1, seq)).chain([(7, 1), (7, 2)]) {
            let frame = FrameIn {
                incarnation: Incarnation(incarnation),
                seq,
                lane: super::super::host::Lane::Backfill,
                tick: now,
                received: now,
                // Of nothing that was sent: refused.
                crc32c: 1,
                payload: vec![0; 10].into(),
            };
            shard.frame(id, 1, frame, None);
        }
        let mut refused = Vec::new();
        for _ in 0..4 {
            while let Ok(message) = told.try_recv() {
                if let Some(v1::aggregator_message::Message::Ack(ack)) = message.message {
                    refused.extend(ack.rejected.iter().map(|no| (ack.incarnation, no.seq)));
                }
            }
            shard.tell_untold();
        }
        let all: Vec<(u64, u64)> = (1..=50)
            .map(|seq| (1, seq))
            .chain([(7, 1), (7, 2)])
            .collect();
        assert_eq!(refused, all);
        assert!(shard.streams[&id].untold.is_empty(), "told once");
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_send_nothing_while_the_log_fails_is_not_silent_and_has_time_afterwards() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shard = shard(folder.path());
        let [open, gone] = [1, 2].map(|number| HostId::from_bytes([number; 16]));
        for id in [open, gone] {
            enrolled(&mut shard, id);
            heard(&mut shard, id);
        }
        let host = shard.hosts.get_mut(&open).expect("enrolled");
        host.set_connected(true);
        shard.held_up = true;
        for _ in 0..60 {
            time::advance(Duration::from_secs(5)).await;
            for id in [open, gone] {
                shard.judge_one(id, Instant::now());
            }
            assert!(!is_silent(&shard, open), "its stream is open");
        }
        assert!(is_silent(&shard, gone), "it has no stream");
        shard.held_up = false;
        time::advance(Duration::from_secs(5)).await;
        shard.judge_one(open, Instant::now());
        assert!(!is_silent(&shard, open), "it is let send again");
        for _ in 0..60 {
            time::advance(Duration::from_secs(5)).await;
            shard.judge_one(open, Instant::now());
        }
        assert!(is_silent(&shard, open), "and sends nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn stalls_again_and_again_take_away_no_more_than_they_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shard = shard(folder.path());
        let began = Instant::now();
        for _ in 0..20 {
            time::advance(Duration::from_secs(10)).await;
            shard.stood_still(Duration::from_secs(3), Instant::now());
        }
        assert_eq!(shard.listening_since - began, Duration::from_secs(60));
        shard.stood_still(Duration::from_secs(30), Instant::now());
        assert_eq!(shard.listening_since, Instant::now());
        assert_eq!(shard.counters.totals().stalls, 21);
    }

    #[test]
    fn recordings_are_asked_for_seldom_of_a_host_and_of_a_fleet() {
        let mut recalls = Recalls::default();
        let began = Instant::now();
        let host = |number: u8| HostId::from_bytes([number; 16]);
        let after = |seconds| began + Duration::from_secs(seconds);
        assert!(recalls.admits(host(0), began));
        assert!(!recalls.admits(host(0), after(599)));
        assert!(recalls.admits(host(0), after(601)));
        let storm = (1..=100).filter(|number| recalls.admits(host(*number), after(602)));
        assert_eq!(storm.count(), 9, "what is left of ten");
        assert!(!recalls.admits(host(200), after(610)));
        assert!(recalls.admits(host(200), after(640)));
        assert!(recalls.asked.len() <= 21, "forgotten when it is over");
    }
}
