//! What is known of one host: its latest values, its books, how it stands.
//!
//! A host is a fold over what it sent. [`HostState::receive`] judges a frame, [`HostState::stored`] notes that it
//! is on disk; both are idempotent by (incarnation, sequence number), so frames may come again after a
//! reconnection and from the log after a restart.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    codec::{self, Changes, DecodeError, Decoder},
    event,
    id::{HostId, Incarnation},
    limits,
    ranges::RangeSet,
    series::{Family, Raw},
    time::Timestamp,
    v1, words,
};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    before::Before,
    cadence::{Changed, Readings, Round},
    derive::{self, Derived, Gather, Input, Signals},
    gaps::Gaps,
    liveness::{self, Liveness, Silence, Voice},
    names::{Names, SeriesKey},
    neighbours::{Neighbourhood, Scope},
    silence::{self, Ended, Mark, Past, Question, Refused, Return, Strain, Trace},
};
use crate::detect::{
    Engine, HostDetection, Observation, Opening, Standing, Transition,
    rules::{Attention, RuleSet, Sample},
};

/// Recent values kept of each field of [`RECENT_FIELDS`].
const RECENT_TICKS: usize = 30;

/// Fields of `HostRow` of which recent values are kept.
pub const RECENT_FIELDS: [&str; 5] = [
    "cpu_ratio",
    "memory_ratio",
    "disk_ratio",
    "network_receive_bytes_per_second",
    "network_transmit_bytes_per_second",
];

/// Events kept for `muster host`.
const RECENT_EVENTS: usize = 32;

/// Incarnations whose books are kept apart (design/delivery.md §2); older ones are added up.
const MAX_INCARNATIONS: usize = 64;

/// Samples whose clocks are compared: a step of the host's clock shows within so many ticks.
const CLOCK_SAMPLES: usize = 8;

/// Checksums kept to tell a repeated frame from another one under the same number.
const RECENT_CHECKSUMS: usize = 16;

/// A longer pause between two ticks gives no rate: it would be the mean of a time nobody saw.
pub(crate) const MAX_RATE_SPAN: Duration = Duration::from_secs(3600);

/// A frame as a host sent it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrameIn {
    /// Life of the agent.
    pub incarnation: Incarnation,
    /// Number within it.
    pub seq: u64,
    /// Which chain it belongs to, and whether it is news.
    pub lane: Lane,
    /// The host's own time of the sample.
    pub tick: Timestamp,
    /// When this aggregator received it.
    pub received: Timestamp,
    /// CRC-32C of the payload.
    pub crc32c: u32,
    /// The encoded sample.
    pub payload: bytes::Bytes,
}

/// Which of the two chains of a stream a frame belongs to, and whether it is news. In the order of their
/// numbers in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lane {
    /// In the live chain, held back before: what follows builds on it.
    Late,
    /// In the live chain, sent as it was taken.
    Live,
    /// In the chain beside it: fills the books and history, never touches what is known of now.
    Backfill,
}

impl Lane {
    /// The lane of a message. One that is not known is live: an agent that is newer means nothing old.
    #[must_use]
    pub fn of_wire(lane: v1::Lane) -> Self {
        match lane {
            v1::Lane::Backfill => Self::Backfill,
            v1::Lane::Late => Self::Late,
            v1::Lane::Live | v1::Lane::Unspecified => Self::Live,
        }
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To be written to the log.
    Store,
    /// On its way to the disk already, or on it.
    Duplicate,
    /// Never to be sent again.
    Rejected(v1::RejectReason),
    /// Not to be answered: the number is none that an agent gives.
    Violation,
}

/// What a host says of itself when it connects.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// Life of the agent.
    pub incarnation: Incarnation,
    /// Number of the connection, growing over the host's life.
    pub session: u64,
    /// Boot of the host.
    pub boot_id: Vec<u8>,
    /// Interval between ticks.
    pub interval: Duration,
    /// The agent's clock minus the aggregator's.
    pub clock_offset_ms: i64,
}

/// What a frame that is on disk was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// On disk already.
    Before,
    /// Not yet.
    First,
    /// Told as lost; it came after all.
    Found,
}

/// The books of one incarnation.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Ledger {
    /// Highest number that is known to have been given.
    produced: u64,
    durable: RangeSet,
    rejected: RangeSet,
    lost: RangeSet,
    /// The three together: what is not here is still to come.
    settled: RangeSet,
    /// Handed to the log, not yet on disk.
    #[serde(skip)]
    in_flight: RangeSet,
}

/// A unit of the host's service manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Full name, e.g. `cron.service`.
    pub name: String,
    /// Active state.
    pub state: UnitState,
    /// Since when, where the change was seen.
    pub since: Option<Timestamp>,
    /// Automatic restarts as the service manager counts them.
    pub restarts: u64,
    /// Those of the last ten minutes. Not kept: the next sample tells it again.
    #[serde(skip)]
    pub restarts_recent: u64,
}

/// Automatic restarts within ten minutes from which on a unit is in a loop. systemd's own limit (five within ten
/// seconds) ends only loops that are quick; a service that dies every minute is restarted for ever.
const LOOP_RESTARTS: u64 = 3;

/// The word for a unit in a loop of restarts.
pub const CRASH_LOOP: &str = "crash-loop";

impl Unit {
    /// Whether it dies and is restarted again and again. Between two deaths it is active or activating, so that its
    /// state at any moment says nothing; one that systemd has given up on is failed, and one that was stopped is not
    /// restarted any more.
    #[must_use]
    pub fn is_crash_loop(&self) -> bool {
        let ended = matches!(self.state, UnitState::Failed | UnitState::Inactive);
        self.restarts_recent >= LOOP_RESTARTS && !ended
    }

    /// Whether somebody should look at it: it failed, or fails again and again.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.state == UnitState::Failed || self.is_crash_loop()
    }

    /// Its state in a word: systemd's, or [`CRASH_LOOP`].
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.is_crash_loop() {
            true => CRASH_LOOP,
            false => self.state.as_str(),
        }
    }
}

/// systemd's active states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "systemd's own words")]
pub enum UnitState {
    Active,
    Activating,
    Deactivating,
    Inactive,
    Failed,
}

impl UnitState {
    /// All of them, in the order in which pages list them.
    pub const ALL: [Self; 5] = [
        Self::Active,
        Self::Activating,
        Self::Deactivating,
        Self::Inactive,
        Self::Failed,
    ];

    /// systemd's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Activating => "activating",
            Self::Deactivating => "deactivating",
            Self::Inactive => "inactive",
            Self::Failed => "failed",
        }
    }

    /// The state of systemd's word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A boot of a host, as its agent told of it afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastBoot {
    /// When the agent began again, by the host's clock.
    pub at: Timestamp,
    /// Whether the agent had been told that the host goes down.
    pub clean: bool,
    /// From the agent's last sign of life, a minute exact.
    pub away: Duration,
}

fn is_boot(event: &v1::Event) -> bool {
    event.kind() == v1::EventKind::Booted
}

/// One series with a value, as readers see it.
#[derive(Debug, Clone, Copy)]
pub struct SeriesView<'a> {
    /// Name, type, label names.
    pub family: &'a Family,
    /// One value for each label name.
    pub labels: &'a [String],
    /// Latest value in base units.
    pub value: f64,
    /// Counters: per second, over the time between the last two readings.
    pub rate: Option<f64>,
}

/// Who a host is, as the control store knows it.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Identity.
    pub id: HostId,
    /// Unique name for people.
    pub name: String,
    /// Labels for selection.
    pub labels: BTreeMap<String, String>,
    /// What the host last said of itself.
    pub facts: v1::HostFacts,
    /// End of life of its newest certificate.
    pub certificate_not_after: Option<Timestamp>,
}

/// The part of a host that is carried over a restart. Written by postcard; a change of this type needs a
/// new version of the checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    session: Option<Session>,
    ledgers: Vec<(Incarnation, Ledger)>,
    settled: SettledBooks,
    decoding: Option<Incarnation>,
    last_tick: Option<Timestamp>,
    last_received: Option<Timestamp>,
    goodbye: Option<Silence>,
    liveness: Option<Liveness>,
    state_since: Timestamp,
    /// Since when the host was not silent.
    live_since: Option<Timestamp>,
    /// `v1::EventList`: what `muster host` shows as having happened lately.
    events: Vec<u8>,
    boot_time_seconds: Option<f64>,
    derived: Derived,
    recent: VecDeque<[f32; RECENT_FIELDS.len()]>,
    units: Vec<Unit>,
    has_units: bool,
    /// How long it usually leaves between two signs of life.
    gaps: Gaps,
    /// What was seen around its silences.
    trace: Trace,
    /// When counters were read that are not at each tick.
    readings: Readings,
    detection: HostDetection,
}

/// Books of incarnations that are no longer kept apart.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct SettledBooks {
    produced: u64,
    stored: u64,
    rejected: u64,
    lost: u64,
}

/// One host. See the module's own words.
#[derive(Debug)]
pub struct HostState {
    who: Enrolled,
    kept: Kept,
    duplicates: u64,
    decoder: Decoder<Arc<SeriesKey>>,
    /// State of the backfilled chain; ends with the stream, and the agent begins that chain again.
    aside: Option<(Incarnation, Decoder<Arc<SeriesKey>>)>,
    /// The value each series had at the tick before; parallel to the decoder's slots.
    before: Vec<Before>,
    rates: Vec<f32>,
    /// Rules that sleep until what they look at changes.
    asleep: RuleSet,
    /// The decoder has taken in changes that nothing was made of.
    unseen_changes: bool,
    events: VecDeque<v1::Event>,
    checksums: VecDeque<(Incarnation, u64, u32)>,
    heard: Option<Instant>,
    /// When it first said Hello after that.
    greeted: Option<Instant>,
    /// When it was last sent away, or held up, by no fault of its own.
    excused: Option<Instant>,
    /// Whether the detectors were told how it stands since this process started.
    observed: bool,
    /// The last sign of life from which the next gap counts: on the stream that is open, with us listening.
    gap_from: Option<Instant>,
    connected: bool,
    /// Where its last stream came from.
    address: Option<IpAddr>,
    /// Host's clock minus ours in the last samples, milliseconds.
    clock_offsets: VecDeque<i64>,
}

impl HostState {
    /// A host of which nothing was heard yet.
    #[must_use]
    pub fn new(who: Enrolled, now: Timestamp) -> Self {
        Self {
            who,
            kept: Kept {
                state_since: now,
                ..Kept::default()
            },
            duplicates: 0,
            decoder: Decoder::default(),
            aside: None,
            before: Vec::new(),
            rates: Vec::new(),
            asleep: RuleSet::default(),
            unseen_changes: false,
            events: VecDeque::new(),
            checksums: VecDeque::new(),
            heard: None,
            greeted: None,
            excused: None,
            observed: false,
            gap_from: None,
            connected: false,
            address: None,
            clock_offsets: VecDeque::new(),
        }
    }

    // ---- what readers ask ----

    /// Identity.
    #[must_use]
    pub fn id(&self) -> HostId {
        self.who.id
    }

    /// Unique name for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.who.name
    }

    /// Labels for selection.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.who.labels
    }

    /// What the host said of itself when it last connected.
    #[must_use]
    pub fn facts(&self) -> &v1::HostFacts {
        &self.who.facts
    }

    /// Interval between its ticks; the default until it said so.
    #[must_use]
    pub fn interval(&self) -> Duration {
        let session = self.kept.session.as_ref();
        session.map_or(Duration::from_secs(10), |session| session.interval)
    }

    /// How it stands.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        self.kept.liveness.unwrap_or(Liveness::Joined)
    }

    /// Since when it stands so.
    #[must_use]
    pub fn state_since(&self) -> Timestamp {
        self.kept.state_since
    }

    /// When this aggregator last received a frame of it.
    #[must_use]
    pub fn last_seen(&self) -> Option<Timestamp> {
        self.kept.last_received
    }

    /// The host's own time of its last sample.
    #[must_use]
    pub fn last_tick(&self) -> Option<Timestamp> {
        self.kept.last_tick
    }

    /// When its kernel booted, by its own clock.
    #[must_use]
    pub fn boot_time(&self) -> Option<Timestamp> {
        self.kept.boot_time_seconds.map(from_seconds)
    }

    /// The host's clock minus the aggregator's.
    ///
    /// From the clock in the last few samples and when they came: each is late by its way here, so the
    /// largest difference is the nearest to the truth, and too small by the shortest way. From the Hello
    /// until there is a sample.
    #[must_use]
    pub fn clock_offset_ms(&self) -> Option<i64> {
        let measured = self.clock_offsets.iter().max().copied();
        measured.or_else(|| Some(self.kept.session.as_ref()?.clock_offset_ms))
    }

    /// End of life of its newest certificate.
    #[must_use]
    pub fn certificate_not_after(&self) -> Option<Timestamp> {
        self.who.certificate_not_after
    }

    /// Series with a value now, in the order of the host's dictionary.
    pub fn series(&self) -> impl Iterator<Item = SeriesView<'_>> {
        let slots = self.decoder.slots().iter().zip(&self.rates);
        slots
            .filter(|(slot, _)| slot.present)
            .map(|(slot, &rate)| SeriesView {
                family: &slot.key.family,
                labels: &slot.key.labels,
                value: slot.scale.value(slot.raw),
                rate: (slot.key.rated && !rate.is_nan()).then_some(f64::from(rate)),
            })
    }

    /// Number of series with a value now.
    #[must_use]
    pub fn series_count(&self) -> usize {
        self.decoder.slots().iter().filter(|s| s.present).count()
    }

    /// Number of series that are held for it, with a value now or not.
    #[must_use]
    pub fn series_held(&self) -> usize {
        self.decoder.slots().len()
    }

    /// What the host is listed by.
    #[must_use]
    pub fn derived(&self) -> &Derived {
        &self.kept.derived
    }

    /// Recent values of a field of [`RECENT_FIELDS`], oldest first; NaN where it was not known.
    #[must_use]
    pub fn recent(&self, field: &str) -> Vec<f32> {
        let at = RECENT_FIELDS.iter().position(|known| *known == field);
        at.map_or_else(Vec::new, |at| {
            self.kept.recent.iter().map(|values| values[at]).collect()
        })
    }

    /// Units of its service manager, by name.
    #[must_use]
    pub fn units(&self) -> &[Unit] {
        &self.kept.units
    }

    /// Whether it reports a service manager.
    #[must_use]
    pub fn has_units(&self) -> bool {
        self.kept.has_units
    }

    /// What happened on it lately, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &v1::Event> {
        self.events.iter()
    }

    /// The last boot that its agent has told of.
    #[must_use]
    pub fn last_boot(&self) -> Option<LastBoot> {
        let boot = self.events.iter().rfind(|event| is_boot(event))?;
        let away = event::get_integer(boot, v1::EventFieldKey::DownMs)?;
        Some(LastBoot {
            at: Timestamp::from_millis(boot.at_ms),
            clean: event::get_integer(boot, v1::EventFieldKey::Clean)? == 1,
            away: Duration::from_millis(u64::try_from(away).unwrap_or(0)),
        })
    }

    /// Collectors that failed in its last sample: not those that have nothing to read on this host.
    #[must_use]
    pub fn failing_collectors(&self) -> Vec<String> {
        let named = |input: Input, value: i64| {
            let slots = self.decoder.slots().iter().filter(move |slot| {
                slot.present && slot.key.input == input && slot.raw.as_int() == value
            });
            slots.filter_map(|slot| slot.key.labels.first())
        };
        let absent: HashSet<&String> = named(Input::CollectorAbsent, 1).collect();
        named(Input::CollectorSuccess, 0)
            .filter(|name| !absent.contains(name))
            .cloned()
            .collect()
    }

    /// What became of its frames.
    #[must_use]
    pub fn books(&self) -> v1::Books {
        let SettledBooks {
            produced,
            stored,
            rejected,
            lost,
        } = self
            .kept
            .ledgers
            .iter()
            .fold(self.kept.settled, |sum, (_, ledger)| sum.plus(ledger));
        v1::Books {
            produced,
            stored,
            rejected,
            lost,
            duplicate: self.duplicates,
        }
    }

    /// The books of the lives of its agent that are kept apart, oldest first.
    #[must_use]
    pub fn lives(&self) -> Vec<v1::LifeBooks> {
        let lives = self.kept.ledgers.iter().map(|(incarnation, ledger)| {
            let of_it = SettledBooks::default().plus(ledger);
            v1::LifeBooks {
                incarnation: incarnation.0,
                produced: of_it.produced,
                stored: of_it.stored,
                rejected: of_it.rejected,
                lost: of_it.lost,
                newest: self.is_newest(*incarnation),
            }
        });
        lives.collect()
    }

    /// What was seen around its silences: the account of one that goes on, the last one that is over.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.kept.trace
    }

    /// What its detectors remember.
    #[must_use]
    pub fn detection(&self) -> &HostDetection {
        &self.kept.detection
    }

    // ---- what the shard does with it ----

    /// Takes over what enrolment or a Hello changed about it.
    pub fn set_identity(&mut self, who: Enrolled) {
        self.who = who;
        // Other labels may mean other bounds.
        self.asleep = RuleSet::default();
    }

    /// The boot id of the host's newest session.
    #[must_use]
    pub fn boot_id(&self) -> Option<&[u8]> {
        Some(&self.kept.session.as_ref()?.boot_id)
    }

    /// Whether it has an open stream.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// When its last frame was received, since this process started.
    #[must_use]
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// A stream was opened or closed.
    pub fn set_connected(&mut self, connected: bool) {
        self.aside = None;
        self.connected = connected;
        self.gap_from = None;
        if connected {
            self.kept.trace.ended = None;
        }
    }

    /// It said Hello. One that keeps saying it and sends nothing has time from the first on; and one that was silent
    /// without a word before is so until its first samples.
    pub fn greeted(&mut self, now: Instant) {
        let silent = matches!(self.liveness(), Liveness::Silent(cause) if !cause.is_announced());
        if !silent {
            self.greeted.get_or_insert(now);
        }
    }

    /// What it sends cannot be taken now: it is silent by no fault of its own, and has time to come back from now on.
    pub fn excuse(&mut self, now: Instant) {
        self.excused = Some(now);
    }

    /// Where its stream comes from.
    pub fn set_address(&mut self, address: Option<IpAddr>) {
        self.address = address;
    }

    /// How its stream ended.
    pub fn ended(&mut self, ended: Ended, at: Timestamp) {
        self.kept.trace.ended = Some((ended, at));
    }

    /// Someone who presented this host's identity was refused.
    pub fn refused(&mut self, why: Refused, at: Timestamp) {
        let trace = &mut self.kept.trace;
        if let Some((Refused::OtherBoot, before)) = trace.refused
            && self.kept.last_received.is_some_and(|heard| heard > before)
        {
            // The boot that was here before goes on, and another one asks: those are two machines.
            trace.clone_seen = Some(at);
        }
        trace.refused = Some((why, at));
    }

    /// A new session begins: from a Hello, or from the log.
    pub fn begin_session(&mut self, session: Session) {
        let new_boot = self.boot_id() != Some(&session.boot_id);
        // Whose memory was lost has not rebooted by that.
        if new_boot && self.boot_id().is_some() {
            self.kept.detection.rebooted();
        }
        let last = self
            .kept
            .session
            .as_ref()
            .map(|session| session.incarnation);
        let new_agent = last != Some(session.incarnation);
        if new_boot || new_agent {
            let parallel = self.before.iter_mut().zip(&mut self.rates);
            for (slot, (before, rate)) in self.decoder.slots().iter().zip(parallel) {
                if new_boot || slot.key.of_agent {
                    (*before, *rate) = (Before::NONE, f32::NAN);
                }
            }
        }
        self.kept.session = Some(session);
        self.kept.goodbye = None;
        self.kept.trace.goodbye_at = None;
        if matches!(self.kept.liveness, Some(Liveness::Silent(cause)) if cause.is_announced()) {
            // What was announced is over. From here on its silence would be its own, after a restart of ours too.
            self.kept.liveness = Some(Liveness::Late);
        }
    }

    /// What is already here of an incarnation, for the Welcome.
    #[must_use]
    pub fn have(&self, incarnation: Incarnation) -> v1::Have {
        let decoding = self.kept.decoding == Some(incarnation);
        v1::Have {
            incarnation: incarnation.0,
            durable: self.durable(incarnation),
            decoded_to: if decoding {
                self.decoder.decoded_to()
            } else {
                0
            },
        }
    }

    /// What is on disk of an incarnation, at most as many ranges as an Ack may carry: the highest.
    #[must_use]
    pub fn durable(&self, incarnation: Incarnation) -> Vec<v1::Range> {
        self.ledger(incarnation).map_or_else(Vec::new, |ledger| {
            ledger.durable.to_wire(limits::MAX_ACK_RANGES)
        })
    }

    /// What is on disk of these frames of an incarnation, lowest first.
    pub fn durable_within(
        &self,
        incarnation: Incarnation,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = v1::Range> {
        let durable = self.ledger(incarnation).map(|ledger| ledger.durable.iter());
        durable
            .into_iter()
            .flatten()
            .filter(move |&(low, high)| high >= first && low <= last)
            .map(|(first, last)| v1::Range { first, last })
    }

    /// Judges a frame and, if it is new, takes it into the latest values.
    ///
    /// `replayed` frames come from the log: they are on disk already and are applied without judging
    /// their time. What the detectors conclude is appended to `out`.
    pub fn receive(
        &mut self,
        frame: &FrameIn,
        context: &mut Receiving<'_>,
        out: &mut Vec<Transition>,
    ) -> Verdict {
        let key = (frame.incarnation, frame.seq);
        if frame.seq == 0 || frame.seq > MAX_SEQ {
            return Verdict::Violation;
        }
        let of_now = frame.lane != Lane::Backfill;
        if !context.replayed && of_now {
            // Refused or not, it is a sign of life.
            self.heard = Some(context.now);
            self.greeted = None;
            if let Some(before) = self.gap_from.replace(context.now) {
                let gap = context.now.saturating_duration_since(before);
                self.kept.gaps.note(gap);
            }
        }
        let ledger = self.ledger_mut(frame.incarnation);
        ledger.produced = ledger.produced.max(frame.seq);
        if ledger.durable.contains(frame.seq) || ledger.in_flight.contains(frame.seq) {
            if !context.replayed {
                self.duplicates += 1;
            }
            let other = |&(incarnation, seq, crc): &(Incarnation, u64, u32)| {
                (incarnation, seq) == key && crc != frame.crc32c
            };
            if self.checksums.iter().any(other) {
                return Verdict::Rejected(v1::RejectReason::SeqConflict);
            }
            self.prime(frame, context);
            return Verdict::Duplicate;
        }
        if !context.replayed {
            let refused = ledger.rejected.contains(frame.seq);
            if refused && !self.decodes_next(frame) {
                // The answer was lost; it is the same now.
                return Verdict::Rejected(v1::RejectReason::Unspecified);
            }
            if !refused && self.ledger_mut(frame.incarnation).is_shattered(frame.seq) {
                // Not noted either: that is what there is no room for.
                return Verdict::Rejected(v1::RejectReason::Quota);
            }
            if crc32c::crc32c(&frame.payload) != frame.crc32c {
                return self.reject(frame, v1::RejectReason::Checksum);
            }
            if frame.tick > frame.received.plus(limits::MAX_FUTURE) {
                self.kept.trace.future_seen = Some(frame.received);
                return self.reject(frame, v1::RejectReason::Future);
            }
        }
        if let Err(reason) = self.apply(frame, context, out) {
            if !context.replayed {
                return self.reject(frame, reason);
            }
            // It is on disk and was acknowledged, whether its values can be told any more or not.
            tracing::debug!(host = %self.who.id, seq = frame.seq, reason = words::rejected(reason), "stored frame does not decode without what was before it");
        }
        if self.checksums.len() == RECENT_CHECKSUMS {
            self.checksums.pop_front();
        }
        self.checksums
            .push_back((frame.incarnation, frame.seq, frame.crc32c));
        if of_now {
            self.kept.trace.future_seen = None;
            self.kept.last_received = self.kept.last_received.max(Some(frame.received));
        }
        if context.replayed {
            self.stored(frame.incarnation, frame.seq);
        } else {
            let ledger = self.ledger_mut(frame.incarnation);
            ledger.in_flight.insert(frame.seq);
        }
        Verdict::Store
    }

    fn reject(&mut self, frame: &FrameIn, reason: v1::RejectReason) -> Verdict {
        self.rejected(frame.incarnation, frame.seq);
        Verdict::Rejected(reason)
    }

    /// Notes that a frame was refused for good.
    pub fn rejected(&mut self, incarnation: Incarnation, seq: u64) {
        let ledger = self.ledger_mut(incarnation);
        ledger.produced = ledger.produced.max(seq);
        if !ledger.is_shattered(seq) && ledger.settled.insert(seq) {
            ledger.rejected.insert(seq);
        }
    }

    /// Notes that a frame is on disk.
    pub fn stored(&mut self, incarnation: Incarnation, seq: u64) -> Noted {
        let ledger = self.ledger_mut(incarnation);
        ledger.in_flight.remove(seq);
        // What was refused or given up and comes after all counts as stored only.
        ledger.rejected.remove(seq);
        let found = ledger.lost.remove(seq);
        ledger.settled.insert(seq);
        match ledger.durable.insert(seq) {
            false => Noted::Before,
            true if found => Noted::Found,
            true => Noted::First,
        }
    }

    /// Notes that a frame did not get to the disk: it may come again.
    pub fn not_stored(&mut self, incarnation: Incarnation, seq: u64) {
        self.ledger_mut(incarnation).in_flight.remove(seq);
    }

    /// Whether it is believed that an incarnation gave this number: not far beyond those that were heard of.
    #[must_use]
    pub fn knows_up_to(&self, incarnation: Incarnation, seq: u64) -> bool {
        let unknown = Ledger::default();
        seq <= self.ledger(incarnation).unwrap_or(&unknown).plausible()
    }

    /// Notes that frames will never come. Only numbers that did not come count.
    ///
    /// Gives how many, or `None` for a claim that is not believed: no range, or numbers far beyond those that were
    /// heard of. It may still be true, where this aggregator does not know the host well: it has begun from a backup, or
    /// stands in for another.
    pub fn gap(&mut self, incarnation: Incarnation, first: u64, last: u64) -> Option<u64> {
        let ledger = self.ledger_mut(incarnation);
        if first == 0 || first > last || last > ledger.plausible() {
            return None;
        }
        let mut named = 0;
        let mut from = ledger.settled.first_missing(first);
        while from <= last {
            let next = ledger.settled.next_present(from);
            let until = next.map_or(last, |next| last.min(next - 1));
            ledger.lost.insert_range(from, until);
            ledger.settled.insert_range(from, until);
            named += until - from + 1;
            from = ledger.settled.first_missing(until);
        }
        ledger.produced = ledger.produced.max(last);
        Some(named)
    }

    /// When the books of an incarnation fall into more ranges than are kept track of: counts the oldest holes as lost,
    /// which leaves three quarters of the ranges, and gives from where to where they lay and how many numbers that
    /// were, to be written down as a gap. What comes of them after all counts as stored. What lies before all that is
    /// known is not touched.
    pub fn bound_holes(&mut self, incarnation: Incarnation) -> Option<(u64, u64, u64)> {
        let settled = &self.ledger(incarnation)?.settled;
        let more = settled.len().checked_sub(MAX_HOLES + 1)?;
        let (_, known) = settled.iter().next()?;
        let (kept, _) = settled.iter().nth(more + MAX_HOLES / 4)?;
        let (first, last) = (known + 1, kept - 1);
        let lost = self.gap(incarnation, first, last)?;
        Some((first, last, lost))
    }

    /// The clean end of an incarnation.
    pub fn fin(&mut self, incarnation: Incarnation, last_seq: u64, reason: v1::FinReason) {
        let ledger = self.ledger_mut(incarnation);
        if last_seq <= ledger.plausible() {
            ledger.produced = ledger.produced.max(last_seq);
        }
        if self.is_newest(incarnation) {
            self.kept.goodbye = Some(Silence::of_goodbye(reason));
            self.greeted = None;
            // The last frame came just before it, and that time is in the log too.
            self.kept.trace.goodbye_at = self.kept.last_received;
        }
    }

    /// What is missing of an earlier incarnation of which nothing more will come: numbers up to the last it gave, as it
    /// says or as was heard of it, whichever is more. A last number that is not believed, see [`HostState::gap`], counts
    /// for nothing. `None` for the incarnation that speaks: it cannot be over.
    #[must_use]
    pub fn missing(&self, incarnation: Incarnation, last_seq: u64) -> Option<Vec<(u64, u64)>> {
        if self.is_newest(incarnation) {
            return None;
        }
        let unknown = Ledger::default();
        let ledger = self.ledger(incarnation).unwrap_or(&unknown);
        let believed = if last_seq <= ledger.plausible() {
            last_seq
        } else {
            0
        };
        let last = ledger.produced.max(believed);
        let mut missing = Vec::new();
        let mut from = ledger.settled.first_missing(1);
        while from <= last {
            let next = ledger.settled.next_present(from);
            let until = next.map_or(last, |next| last.min(next - 1));
            missing.push((from, until));
            from = ledger.settled.first_missing(until + 1);
        }
        Some(missing)
    }

    /// Whether it is the life of the agent that spoke last.
    fn is_newest(&self, incarnation: Incarnation) -> bool {
        let newest = self.kept.session.as_ref();
        newest.is_some_and(|session| session.incarnation == incarnation)
    }

    /// How the host stands now, if that changed or nobody was told since this process started.
    pub fn judge(&mut self, surroundings: &Surroundings<'_>) -> Option<Liveness> {
        let &Surroundings {
            now,
            wall,
            listening_since,
            ..
        } = surroundings;
        let listening_since = self
            .excused
            .map_or(listening_since, |excused| listening_since.max(excused));
        self.listened_since(listening_since);
        if self.goes_on(now) {
            return None;
        }
        let voice = Voice {
            heard: self.heard,
            greeted: self.greeted,
            ever_heard: self.kept.last_received.is_some(),
            interval: self.interval(),
            late_after: self.kept.gaps.late_after(self.interval()),
            reconnect: liveness::reconnect_spread(surroundings.hosts),
            connected: self.connected,
            goodbye: self.kept.goodbye,
        };
        let mut liveness = liveness::judge(&voice, now, listening_since);
        let before = self.kept.liveness;
        if self.heard.is_none()
            && matches!(before, Some(Liveness::Silent(_)))
            && liveness == Liveness::Late
        {
            // It was silent when this aggregator started and nothing was heard since: it still is.
            return None;
        }
        if let Liveness::Silent(_) = liveness {
            liveness = Liveness::Silent(self.presume(before, surroundings));
        }
        // What the detectors concluded before a restart may not have come to the store: they are told once anew.
        let settled = matches!(liveness, Liveness::Live | Liveness::Silent(_));
        let first = settled && !self.observed;
        self.observed |= settled;
        if before == Some(liveness) && !first {
            return None;
        }
        self.tell_neighbours(liveness, surroundings);
        match (before, liveness) {
            // Only the cause became clearer.
            (Some(Liveness::Silent(_)), Liveness::Silent(_)) => {}
            // A host that was late for a moment has been live all along, over a restart of the aggregator too.
            (_, Liveness::Live) => {
                self.conclude(wall);
                self.kept.state_since = *self.kept.live_since.get_or_insert(wall);
            }
            (_, Liveness::Silent(_)) => {
                self.kept.live_since = None;
                self.kept.state_since = wall;
            }
            _ => self.kept.state_since = wall,
        }
        self.kept.liveness = Some(liveness);
        Some(liveness)
    }

    /// Nobody listened to it before.
    pub fn listened_since(&mut self, since: Instant) {
        // We did not listen in between: it is no gap of the host's.
        self.gap_from = self.gap_from.filter(|from| *from >= since);
    }

    /// Whether it was live, which everybody knows, and was heard since as often as it should be: then it still is.
    fn goes_on(&self, now: Instant) -> bool {
        self.lives_until(now).is_some()
    }

    /// Until when it counts as live at least, if it does now and everybody knows; it may still say goodbye, or its
    /// stream end.
    #[must_use]
    pub fn lives_until(&self, now: Instant) -> Option<Instant> {
        let known = self.kept.liveness == Some(Liveness::Live)
            && self.observed
            && self.connected
            && self.kept.goodbye.is_none();
        let heard = self.heard.filter(|_| known)?;
        let until = heard + self.kept.gaps.late_after(self.interval());
        (now <= until).then_some(until)
    }

    /// The cause of the silence as far as it can be told now.
    fn presume(&mut self, before: Option<Liveness>, surroundings: &Surroundings<'_>) -> Silence {
        let interval = self.interval();
        let question = Question {
            goodbye: self.kept.goodbye,
            trace: &self.kept.trace,
            heard: self.kept.last_received.unwrap_or(self.kept.state_since),
            interval,
            clock_offset_ms: self.clock_offset_ms(),
            shared: surroundings
                .neighbours
                .and_then(|all| all.shared(self.who.id, interval)),
            now: surroundings.wall,
        };
        let heard = question.heard;
        let (mut cause, account) = silence::presume(&question);
        match before {
            Some(Liveness::Silent(known)) if silence::stays(known, cause) => cause = known,
            _ => self.kept.trace.account = account,
        }
        self.mark(heard, cause);
        cause
    }

    /// Remembers where the host stood when it fell silent, and what is presumed of it.
    fn mark(&mut self, heard: Timestamp, cause: Silence) {
        if let Some(mark) = &mut self.kept.trace.mark {
            mark.cause = cause;
            return;
        }
        let Some(session) = &self.kept.session else {
            return;
        };
        let ledger = self.ledger(session.incarnation);
        self.kept.trace.mark = Some(Mark {
            heard,
            boot_id: session.boot_id.clone(),
            incarnation: session.incarnation,
            produced: ledger.map_or(0, |ledger| ledger.produced),
            cause,
            strain: self.kept.trace.strain,
        });
    }

    /// A silence is over: what the host shows of itself tells what it was.
    fn conclude(&mut self, wall: Timestamp) {
        let Some(mark) = self.kept.trace.mark.take() else {
            return;
        };
        let Some(session) = &self.kept.session else {
            return;
        };
        let ledger = self.ledger(session.incarnation);
        let back = Return {
            boot_id: &session.boot_id,
            incarnation: session.incarnation,
            produced: ledger.map_or(0, |ledger| ledger.produced),
            interval: session.interval,
            tick: self.kept.last_tick,
            now: wall,
        };
        let (cause, account) = silence::conclude(&mark, &back);
        let rebooted =
            matches!(cause, Silence::Reboot | Silence::Overdue) && session.boot_id != mark.boot_id;
        let trace = &mut self.kept.trace;
        if rebooted {
            trace.last_reboot = Some(wall.since(mark.heard));
        }
        trace.past = Some(Past {
            since: mark.heard,
            until: wall,
            cause,
        });
        trace.account = account;
        trace.refused = None;
    }

    fn tell_neighbours(&self, liveness: Liveness, surroundings: &Surroundings<'_>) {
        let Some(neighbours) = surroundings.neighbours else {
            return;
        };
        let id = self.who.id;
        match (liveness, self.heard) {
            (Liveness::Joined, _) | (_, None) => {}
            (Liveness::Live, Some(_)) => {
                neighbours.heard(id, Scope::all_of(&self.who.labels, self.address));
            }
            (Liveness::Silent(cause), _) if cause.is_announced() => neighbours.gone(id),
            (Liveness::Late | Liveness::Silent(_), Some(heard)) => {
                let ended = self.kept.trace.ended.map(|(ended, _)| ended);
                neighbours.unheard(id, heard, ended.unwrap_or_default().left());
            }
        }
    }

    /// Tells the detectors how the host stands.
    pub fn observe_liveness(&mut self, engine: &Engine, at: Timestamp, out: &mut Vec<Transition>) {
        let standing = Standing {
            liveness: self.liveness(),
            past: self.kept.trace.past,
            account: &self.kept.trace.account,
        };
        engine.standing(&mut self.kept.detection, at, &standing, out);
    }

    /// Tells the detectors what is open in the store.
    pub fn adopt(&mut self, engine: &Engine, open: &[Opening]) {
        self.asleep = RuleSet::default();
        engine.adopt(&mut self.kept.detection, open);
    }

    fn ledger(&self, incarnation: Incarnation) -> Option<&Ledger> {
        let found = self.kept.ledgers.iter().find(|(id, _)| *id == incarnation);
        found.map(|(_, ledger)| ledger)
    }

    fn ledger_mut(&mut self, incarnation: Incarnation) -> &mut Ledger {
        let ledgers = &mut self.kept.ledgers;
        if let Some(at) = ledgers.iter().rposition(|(id, _)| *id == incarnation) {
            return &mut ledgers[at].1;
        }
        if ledgers.len() == MAX_INCARNATIONS {
            let (_, oldest) = ledgers.remove(0);
            self.kept.settled = self.kept.settled.plus(&oldest);
        }
        ledgers.push((incarnation, Ledger::default()));
        let last = ledgers.len() - 1;
        &mut ledgers[last].1
    }

    /// Whether the frame is the next of its chain, or begins one after what was decoded.
    fn decodes_next(&self, frame: &FrameIn) -> bool {
        let same = self.kept.decoding == Some(frame.incarnation);
        let after = !same || frame.seq > self.decoder.decoded_to();
        let follows = same && self.decoder.accepts(frame.seq, &frame.payload);
        after && (follows || codec::is_key_frame(&frame.payload))
    }

    /// Takes a frame that is stored already into the decoder, where that lost its state: the agent sends it
    /// again from its key frame on so that what follows can be decoded.
    fn prime(&mut self, frame: &FrameIn, context: &mut Receiving<'_>) {
        if frame.lane == Lane::Backfill {
            if crc32c::crc32c(&frame.payload) == frame.crc32c {
                // If it does not decode, what builds on it will be refused by name.
                let _ = self.decode_aside(frame, context);
            }
            return;
        }
        let lost = self.kept.decoding != Some(frame.incarnation) || self.decoder.decoded_to() == 0;
        let follows = self.decoder.decoded_to() < frame.seq;
        let begins = codec::is_key_frame(&frame.payload);
        if (lost && begins) || (!lost && follows) {
            // It was judged when it was stored; its time is over, so it opens and closes nothing.
            let mut nothing = Vec::new();
            if let Err(reason) = self.apply(frame, context, &mut nothing) {
                tracing::debug!(host = %self.who.id, seq = frame.seq, reason = words::rejected(reason), "stored frame does not decode any more");
            }
        }
    }

    /// Takes the frame's sample into the latest values, unless it is there already.
    fn apply(
        &mut self,
        frame: &FrameIn,
        context: &mut Receiving<'_>,
        out: &mut Vec<Transition>,
    ) -> Result<(), v1::RejectReason> {
        if frame.lane == Lane::Backfill {
            return self.decode_aside(frame, context);
        }
        if self.kept.decoding == Some(frame.incarnation) && frame.seq <= self.decoder.decoded_to() {
            return Ok(());
        }
        if self.kept.decoding != Some(frame.incarnation) {
            if !codec::is_key_frame(&frame.payload) {
                return Err(v1::RejectReason::NoKeyFrame);
            }
            self.kept.decoding = Some(frame.incarnation);
        }
        let old = codec::is_key_frame(&frame.payload).then(|| self.last_values());
        let decoded = self.decoder.apply(
            frame.seq,
            &frame.payload,
            context.series_quota,
            context.names,
            context.changes,
        );
        if let Err(error) = decoded {
            tracing::debug!(host = %self.who.id, seq = frame.seq, %error, "frame refused");
            if self.decoder.decoded_to() == 0 {
                self.before.clear();
                self.rates.clear();
            }
            return Err(refusal(&error));
        }
        if let Some(old) = old {
            self.carry_over(&old);
        }
        self.before.resize(self.decoder.slots().len(), Before::NONE);
        self.rates.resize(self.decoder.slots().len(), f32::NAN);
        self.take_events(context.changes);
        let ahead = |tick: Timestamp| tick > frame.received.plus(limits::MAX_FUTURE);
        if self.kept.last_tick.is_some_and(ahead) {
            // A clock was wrong when that sample was taken, ours or the host's, and is not any more: what is
            // right now must not wait until then.
            self.kept.last_tick = None;
            self.asleep = RuleSet::default();
            self.kept.readings.forget_time();
            self.kept.detection.forget_time();
        }
        if self.kept.last_tick >= Some(frame.tick) {
            // Out of order: it completes the books and the decoder, and tells nothing about now.
            self.unseen_changes = true;
            return Ok(());
        }
        let span = self.kept.last_tick.map(|last| frame.tick.since(last));
        let Tick {
            signals,
            clock,
            attention,
            round,
        } = self.derive(frame.tick, context.changes);
        if let Some(clock) = clock.filter(|_| frame.lane == Lane::Live && !context.replayed) {
            if self.clock_offsets.len() == CLOCK_SAMPLES {
                self.clock_offsets.pop_front();
            }
            self.clock_offsets
                .push_back(clock.millis_since(frame.received));
        }
        self.kept.last_tick = Some(frame.tick);
        self.kept.trace.strain = strain(&signals);
        let slots = self.decoder.slots().iter().zip(&self.rates);
        let shown = slots
            .filter(|(slot, _)| slot.present && !slot.key.rule_set.but(attention.asleep).is_empty())
            .map(|(slot, rate)| (&*slot.key, slot.scale.value(slot.raw), *rate));
        let samples = rule_samples(shown, span, &round);
        let seen = Observation {
            tick: frame.tick,
            interval: self.interval(),
            live: frame.lane == Lane::Live,
            signals: &signals,
            filesystems: &self.kept.derived.filesystems,
            filesystems_known: !self.kept.derived.filesystems.is_empty(),
            units: &self.kept.units,
            units_known: self.kept.has_units,
            samples: &samples,
            who: Some(&self.who),
        };
        let detection = &mut self.kept.detection;
        self.asleep = context
            .engine
            .step_attending(detection, &seen, attention, out);
        Ok(())
    }

    /// Checks that a backfilled frame decodes. From the log it was checked before, and nothing is made of it.
    fn decode_aside(
        &mut self,
        frame: &FrameIn,
        context: &mut Receiving<'_>,
    ) -> Result<(), v1::RejectReason> {
        if context.replayed {
            return Ok(());
        }
        let (incarnation, decoder) = self
            .aside
            .get_or_insert_with(|| (frame.incarnation, Decoder::default()));
        if *incarnation != frame.incarnation {
            (*incarnation, *decoder) = (frame.incarnation, Decoder::default());
        }
        if frame.seq <= decoder.decoded_to() && !codec::is_key_frame(&frame.payload) {
            return Ok(());
        }
        let (quota, names) = (context.series_quota, &mut *context.names);
        decoder
            .apply(frame.seq, &frame.payload, quota, names, context.changes)
            .map_err(|error| {
                tracing::debug!(host = %self.who.id, seq = frame.seq, %error, "backfilled frame refused");
                refusal(&error)
            })
    }

    /// Values and rates before a key frame, by series.
    fn last_values(&self) -> HashMap<*const SeriesKey, (Raw, f32)> {
        let parallel = self.before.iter().zip(&self.rates);
        let slots = self.decoder.slots().iter().zip(parallel);
        slots
            .filter_map(|(slot, (before, rate))| {
                Some((Arc::as_ptr(&slot.key), (before.get()?, *rate)))
            })
            .collect()
    }

    /// Finds the values before a key frame again under the series' new numbers.
    fn carry_over(&mut self, old: &HashMap<*const SeriesKey, (Raw, f32)>) {
        let slots = self.decoder.slots().iter();
        (self.before, self.rates) = slots
            .map(|slot| {
                let held = old.get(&Arc::as_ptr(&slot.key));
                held.map_or((Before::NONE, f32::NAN), |(raw, rate)| {
                    (Before::of(*raw), *rate)
                })
            })
            .unzip();
    }

    fn take_events(&mut self, changes: &mut Changes) {
        for happened in changes.events.drain(..) {
            if !event::is_sound(&happened) {
                continue;
            }
            if self.events.len() == RECENT_EVENTS {
                // The last boot stays, whatever follows it: it says why the host was away.
                let boot = self.events.iter().rposition(is_boot);
                self.events.remove(usize::from(boot == Some(0)));
            }
            self.events.push_back(happened);
        }
    }

    /// Rates of all counters, then everything made of them.
    fn derive(&mut self, tick: Timestamp, changes: &Changes) -> Tick {
        let span = self.kept.last_tick.map(|last| tick.since(last));
        let seconds = rate_seconds(span);
        let mut gather = Gather::default();
        let (mut filesystem_seen, mut lists_collectors) = (false, false);
        let (mut any_slow, mut changed) = (false, Changed::default());
        let mut touched = RuleSet::default();
        let parallel = self.before.iter_mut().zip(&mut self.rates);
        let slots = self.decoder.slots();
        for (slot, (before, rate)) in slots.iter().zip(parallel) {
            if !slot.present {
                *before = Before::NONE;
                *rate = f32::NAN;
                continue;
            }
            if let Some(cadence) = slot.key.cadence {
                if *before != Before::of(slot.raw) {
                    changed.note(cadence);
                }
                any_slow = true;
                lists_collectors |= slot.key.lists_collector;
                continue;
            }
            let value = slot.scale.value(slot.raw);
            let mut per_second = None;
            if slot.key.rated {
                per_second = rate_since(*before, slot, seconds);
                let now = kept_rate(per_second);
                if now.to_bits() != rate.to_bits() {
                    touched = touched.and(slot.key.rule_set);
                }
                *rate = now;
                *before = Before::of(slot.raw);
            }
            filesystem_seen |= matches!(slot.key.input, Input::Filesystem(_));
            lists_collectors |= slot.key.lists_collector;
            gather.add(slot.key.input, value, per_second);
        }
        let round = self.kept.readings.step(tick, &changed);
        let parallel = self.before.iter_mut().zip(&mut self.rates);
        let parallel = slots.iter().zip(parallel).filter(|_| any_slow);
        for (slot, (before, rate)) in parallel.filter(|(slot, _)| slot.present) {
            let Some(cadence) = slot.key.cadence else {
                continue;
            };
            let reading = round.of(cadence);
            if reading.ran {
                let per_second = rate_since(*before, slot, rate_seconds(reading.since));
                let now = kept_rate(per_second);
                if now.to_bits() != rate.to_bits() {
                    touched = touched.and(slot.key.rule_set);
                }
                *rate = now;
                *before = Before::of(slot.raw);
            }
            gather.add(slot.key.input, slot.scale.value(slot.raw), held_rate(*rate));
        }
        self.kept.boot_time_seconds = gather.boot_time_seconds().or(self.kept.boot_time_seconds);
        let unseen = std::mem::take(&mut self.unseen_changes);
        if unseen {
            self.asleep = RuleSet::default();
        }
        let mut filesystem_changed = changes.key || unseen;
        for &number in changes.changed.iter().chain(&changes.absent) {
            let key = &slots[number as usize].key;
            touched = touched.and(key.rule_set);
            filesystem_changed |= matches!(key.input, Input::Filesystem(_));
        }
        if !filesystem_seen {
            self.kept.derived.filesystems.clear();
        } else if filesystem_changed || self.kept.derived.filesystems.is_empty() {
            let mut points = std::mem::take(&mut self.kept.derived.filesystems);
            if !derive::refresh(&mut points, self.filesystem_figures()) {
                points = derive::filesystems(self.filesystem_figures());
            }
            self.kept.derived.filesystems = points;
        }
        gather.derive_into(&mut self.kept.derived);
        self.derive_units(tick, changes, unseen);
        let recent = RECENT_FIELDS.map(|field| self.recent_value(field));
        if self.kept.recent.len() == RECENT_TICKS {
            self.kept.recent.pop_front();
        }
        self.kept.recent.push_back(recent);
        Tick {
            signals: gather.signals(&self.kept.derived),
            clock: gather.host_clock_seconds().map(from_seconds),
            attention: Attention {
                asleep: self.asleep.but(touched),
                lists_collectors,
            },
            round,
        }
    }

    fn filesystem_figures(
        &self,
    ) -> impl Iterator<Item = (derive::FilesystemFigure, &[String], f64)> {
        let present = self.decoder.slots().iter().filter(|slot| slot.present);
        present.filter_map(|slot| match slot.key.input {
            Input::Filesystem(figure) => {
                Some((figure, &slot.key.labels[..], slot.scale.value(slot.raw)))
            }
            _ => None,
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "for a chart of one line")]
    fn recent_value(&self, field: &str) -> f32 {
        let derived = &self.kept.derived;
        let value = match field {
            "cpu_ratio" => derived.cpu_ratio,
            "memory_ratio" => derived.memory_ratio,
            "disk_ratio" => derived.disk_ratio,
            "network_receive_bytes_per_second" => derived.network_receive_bytes_per_second,
            _ => derived.network_transmit_bytes_per_second,
        };
        value.unwrap_or(f64::NAN) as f32
    }

    /// Brings the list of units up to date, if one of their series changed, or may have with what was `unseen`.
    fn derive_units(&mut self, tick: Timestamp, changes: &Changes, unseen: bool) {
        let slots = self.decoder.slots();
        let touched = |id: &u32| {
            let input = slots[*id as usize].key.input;
            matches!(
                input,
                Input::UnitState | Input::UnitRestarts | Input::UnitRestartsRecent
            )
        };
        let mut named = changes.changed.iter().chain(&changes.absent);
        if !changes.key && !unseen && !named.any(touched) {
            return;
        }
        let present = slots.iter().filter(|slot| slot.present);
        let reported =
            units(present.map(|slot| (slot.key.input, &slot.key.labels[..], slot.raw.as_int())));
        self.kept.has_units = reported.is_some();
        let mut units = reported.unwrap_or_default();
        let known: HashMap<&str, (UnitState, Option<Timestamp>)> = self
            .kept
            .units
            .iter()
            .map(|unit| (unit.name.as_str(), (unit.state, unit.since)))
            .collect();
        for unit in &mut units {
            unit.since = match known.get(unit.name.as_str()) {
                Some((before, since)) if *before == unit.state => *since,
                Some(_) => Some(tick),
                None => None,
            };
        }
        self.kept.units = units;
    }

    // ---- over a restart ----

    /// What is carried over a restart.
    pub fn write_checkpoint(&mut self) -> Result<CheckpointedHost, postcard::Error> {
        let events = v1::EventList {
            events: self.events.iter().cloned().collect(),
        };
        self.kept.events = events.encode_to_vec();
        let slots = self.decoder.slots().iter().zip(&self.rates);
        self.kept.readings.rates = slots
            .filter(|(slot, _)| slot.key.cadence.is_some())
            .map(|(_, rate)| *rate)
            .collect();
        let mut decoder = Vec::new();
        if self.decoder.decoded_to() != 0 {
            self.decoder.snapshot(|key| &key.labels[..], &mut decoder);
        }
        decoder.shrink_to_fit();
        let kept = postcard::to_stdvec(&self.kept);
        self.kept.readings.rates = Vec::new();
        let mut kept = kept?;
        // All hosts' wait for the file at once.
        kept.shrink_to_fit();
        Ok(CheckpointedHost {
            id: self.who.id,
            kept,
            decoded_to: self.decoder.decoded_to(),
            decoder,
        })
    }

    /// Takes over what a checkpoint holds of this host. On an error the host begins anew, as if only
    /// enrolled.
    pub fn restore(
        &mut self,
        checkpoint: &CheckpointedHost,
        context: &mut Receiving<'_>,
    ) -> Result<(), postcard::Error> {
        let kept: Kept = postcard::from_bytes(&checkpoint.kept)?;
        self.kept = kept;
        // What does not read is only not shown.
        let events = v1::EventList::decode(&*self.kept.events).unwrap_or_default();
        self.events = events.events.into();
        if checkpoint.decoded_to == 0 {
            return Ok(());
        }
        let decoded = self.decoder.apply(
            checkpoint.decoded_to,
            &checkpoint.decoder,
            limits::MAX_SERIES,
            context.names,
            context.changes,
        );
        if let Err(error) = decoded {
            tracing::warn!(host = %self.who.id, %error, "latest values could not be restored; the agent will send them again");
            return Ok(());
        }
        let slots = self.decoder.slots();
        self.before = slots
            .iter()
            .map(|slot| {
                if slot.present && slot.key.rated {
                    Before::of(slot.raw)
                } else {
                    Before::NONE
                }
            })
            .collect();
        // What is read seldom has the rate that it had until it is read again.
        let mut held = std::mem::take(&mut self.kept.readings.rates).into_iter();
        self.rates = slots
            .iter()
            .map(|slot| match slot.key.cadence {
                Some(_) => held.next().unwrap_or(f32::NAN),
                None => f32::NAN,
            })
            .collect();
        // What was made of the latest values may be older than they are, and not all of it is kept.
        self.unseen_changes = true;
        Ok(())
    }
}

/// What is made of a sample, beside what the host is listed by.
struct Tick {
    signals: Signals,
    /// The host's clock, where it is in the sample.
    clock: Option<Timestamp>,
    attention: Attention,
    /// What the slow collectors did.
    round: Round,
}

/// Units of the service manager as series of a tick name them, by name; `None` where none does. Since when a unit is
/// as it is these do not tell.
pub(crate) fn units<'a>(
    series: impl Iterator<Item = (Input, &'a [String], i64)>,
) -> Option<Vec<Unit>> {
    let mut states: BTreeMap<&str, UnitState> = BTreeMap::new();
    let mut restarts: HashMap<&str, u64> = HashMap::new();
    let mut recent: HashMap<&str, u64> = HashMap::new();
    let mut reported = false;
    for (input, labels, value) in series {
        let Some(name) = labels.first() else {
            continue;
        };
        match input {
            Input::UnitState => {
                reported = true;
                let state = labels.get(1).and_then(|word| UnitState::parse(word));
                if let (1, Some(state)) = (value, state) {
                    states.insert(name, state);
                }
            }
            Input::UnitRestarts => {
                restarts.insert(name, u64::try_from(value).unwrap_or(0));
            }
            Input::UnitRestartsRecent => {
                recent.insert(name, u64::try_from(value).unwrap_or(0));
            }
            _ => {}
        }
    }
    let units = states.into_iter().map(|(name, state)| Unit {
        name: name.to_owned(),
        state,
        since: None,
        restarts: restarts.get(name).copied().unwrap_or(0),
        restarts_recent: recent.get(name).copied().unwrap_or(0),
    });
    reported.then(|| units.collect())
}

/// The time of a rate in seconds; none of a pause that is too long to say anything of now.
pub(crate) fn rate_seconds(span: Option<Duration>) -> Option<f64> {
    let span = span.filter(|span| *span <= MAX_RATE_SPAN)?;
    Some(span.as_secs_f64())
}

/// What a series grew by a second since it had the value before.
fn rate_since(
    before: Before,
    slot: &codec::Slot<Arc<SeriesKey>>,
    seconds: Option<f64>,
) -> Option<f64> {
    let last = slot.scale.value(before.get()?);
    derive::rate(last, slot.scale.value(slot.raw), seconds?)
}

/// A rate as it is kept: NaN where there is none.
#[expect(clippy::cast_possible_truncation, reason = "7 digits do for a rate")]
pub(crate) fn kept_rate(rate: Option<f64>) -> f32 {
    rate.unwrap_or(f64::NAN) as f32
}

/// A rate that was kept.
pub(crate) fn held_rate(rate: f32) -> Option<f64> {
    Some(f64::from(rate)).filter(|rate| rate.is_finite())
}

/// What rules of the pack look at, of series with their values and rates (NaN: none); `span` is the time since the tick
/// before, `round` what slow collectors did.
pub(crate) fn rule_samples<'a>(
    series: impl Iterator<Item = (&'a SeriesKey, f64, f32)>,
    span: Option<Duration>,
    round: &Round,
) -> Vec<Sample<'a>> {
    let mut samples = Vec::new();
    for (key, value, rate) in series {
        let rate = held_rate(rate);
        let since = match key.cadence.map(|cadence| round.of(cadence)) {
            None => span,
            Some(reading) if reading.ran => reading.since,
            // It grows when it is read.
            Some(_) => Some(Duration::ZERO),
        };
        let grown = rate
            .zip(since)
            .map(|(rate, since)| rate * since.as_secs_f64());
        samples.extend(key.rules.iter().map(|&used| Sample {
            used,
            family: &key.family,
            labels: &key.labels,
            value,
            rate,
            grown,
        }));
    }
    samples
}

/// The readings that tell how hard a host is pressed.
fn strain(signals: &Signals) -> Strain {
    Strain {
        cpu: signals[const { derive::place_of("pressure_cpu_ratio") }],
        memory: signals[const { derive::place_of("pressure_memory_ratio") }],
        io: signals[const { derive::place_of("pressure_io_ratio") }],
        memory_used: signals[const { derive::place_of("memory_used_ratio") }],
    }
}

/// Ranges an incarnation's books may fall into. An agent of ours leaves so many only when a bad line cuts it off again
/// and again; then its oldest holes are given up, never the host.
const MAX_HOLES: usize = 256;

/// Pieces that what came of an incarnation may lie in, between numbers that are lost: events whose samples are gone, of
/// which an agent keeps some 2,000 at a time. More is for nobody's good, and refused.
const MAX_PIECES: usize = 8192;

#[expect(
    clippy::cast_possible_truncation,
    reason = "a float to integer cast saturates; nonsense stays nonsense"
)]
fn from_seconds(seconds: f64) -> Timestamp {
    Timestamp::from_millis((seconds * 1000.0) as i64)
}

/// Highest number a frame may have: a frame each millisecond for 8,900 years.
const MAX_SEQ: u64 = 1 << 48;

/// How far beyond what is known a host may say that numbers were given: a week of ticks at 1 s.
const MAX_GAP_AHEAD: u64 = 7 * 24 * 3600;

/// What an agent is told of a frame that does not decode.
fn refusal(error: &DecodeError) -> v1::RejectReason {
    match error {
        DecodeError::NoKeyFrame { .. } => v1::RejectReason::NoKeyFrame,
        DecodeError::TooMany("series") => v1::RejectReason::Quota,
        _ => v1::RejectReason::Malformed,
    }
}

impl Ledger {
    /// Highest number of which it is believed that it was given.
    fn plausible(&self) -> u64 {
        self.produced.saturating_add(MAX_GAP_AHEAD).min(MAX_SEQ)
    }

    /// Whether what came is in so many pieces that one more, with this number alone, is not kept track of.
    fn is_shattered(&self, seq: u64) -> bool {
        let pieces = [&self.durable, &self.rejected, &self.in_flight];
        let beside = |set: &&RangeSet| {
            set.contains(seq.saturating_sub(1)) || set.contains(seq.saturating_add(1))
        };
        pieces.iter().map(|set| set.len()).sum::<usize>() >= MAX_PIECES
            && !pieces.iter().any(beside)
    }
}

impl SettledBooks {
    fn plus(self, ledger: &Ledger) -> Self {
        let count = |set: &RangeSet| set.count_in(0, u64::MAX);
        Self {
            produced: self.produced.saturating_add(ledger.produced),
            stored: self.stored.saturating_add(count(&ledger.durable)),
            rejected: self.rejected.saturating_add(count(&ledger.rejected)),
            lost: self.lost.saturating_add(count(&ledger.lost)),
        }
    }
}

/// What judging how a host stands needs beside the host itself.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Now, by the monotonic clock.
    pub now: Instant,
    /// Now, by the aggregator's wall clock.
    pub wall: Timestamp,
    /// When the aggregator could last begin to listen.
    pub listening_since: Instant,
    /// Hosts of the fleet.
    pub hosts: u64,
    /// Who fell silent with whom.
    pub neighbours: Option<&'a Neighbourhood>,
}

impl Surroundings<'_> {
    /// Of the only host there is.
    #[must_use]
    pub fn alone(now: Instant, wall: Timestamp, listening_since: Instant) -> Self {
        Self {
            now,
            wall,
            listening_since,
            hosts: 1,
            neighbours: None,
        }
    }
}

/// What receiving needs beside the host itself.
pub struct Receiving<'a> {
    /// Names of the shard.
    pub names: &'a mut Names,
    /// Detectors.
    pub engine: &'a Engine,
    /// Reused between frames.
    pub changes: &'a mut Changes,
    /// Most series of a host.
    pub series_quota: usize,
    /// Monotonic time of reception.
    pub now: Instant,
    /// Whether the frame comes from the log.
    pub replayed: bool,
}

/// One host in a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub struct CheckpointedHost {
    id: HostId,
    kept: Vec<u8>,
    decoded_to: u64,
    decoder: Vec<u8>,
}

impl CheckpointedHost {
    /// In the place of one of which there is nothing to keep: it does not read.
    pub(super) fn nothing(id: HostId) -> Self {
        Self {
            id,
            kept: Vec::new(),
            decoded_to: 0,
            decoder: Vec::new(),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> HostId {
        self.id
    }
}

#[cfg(test)]
mod tests;
