//! From verdicts to transitions: how long something must hold, and what is open on a host.
//!
//! For every subject that is not simply normal the engine keeps since when it has been abnormal, normal or
//! gone *without a break*. An unknown verdict, or a pause in which a tick was missed, breaks them all: what
//! was not observed cannot be counted, so taking observations away never opens and never clears anything.
//! Observations that were held back count in their own time, but only a live one opens or clears.
//!
//! A host can name as many units as it likes; what is remembered and told of it is bounded. Of each rule so
//! many subjects are followed one by one, and all that is wrong beyond them is one subject more.
//!
//! Which incidents are open is the store's word; [`Engine::adopt`] takes it over after a start. What it
//! holds of a host is serialised in checkpoints, and continues from there with the same bits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    AnomalyView, Cause, Change, Coverage, DetectConfig, Detector, Evidence, Findings, Observation,
    Reason, Rule, Severity, Standing, Transition, Verdict,
    filesystem_full::FilesystemFull,
    filesystem_full_soon::{self, FilesystemFullSoon, Filling},
    forecast::Forecast,
    host_score::{HostScore, Watch},
    host_silent::HostSilent,
    memory_leak::{MemoryLeak, Usage},
    rules::{self, Attention, Bounds, Grown, Overrides, RuleSet, Watcher},
    unit_failed::UnitFailed,
};
use crate::fleet::SIGNALS;

/// Shorter pauses between ticks are not taken as something missed: at an interval of one second a busy
/// host is late by more than that.
const PAUSE_FLOOR: Duration = Duration::from_secs(15);

/// Subjects of one rule that are followed one by one on a host. No one reads more incidents of one host than
/// this, and a host that makes up new units at every tick must not make as many incidents.
pub(super) const MAX_TRACKS: usize = 64;

/// All detectors, with the bounds they were built with.
pub struct Engine {
    host_silent: HostSilent,
    filesystem_full: FilesystemFull,
    filesystem_full_soon: FilesystemFullSoon,
    memory_leak: MemoryLeak,
    unit_failed: UnitFailed,
    host_score: HostScore,
    overrides: Arc<Overrides>,
}

/// What the engine and its detectors remember about one host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostDetection {
    last_tick: Option<Timestamp>,
    silent: Option<Timestamp>,
    score: Watch,
    filling: Filling,
    usage: Usage,
    grown: Grown,
    /// By rule, then by subject; only what is open or on its way.
    tracks: BTreeMap<String, Tracks>,
}

type Tracks = BTreeMap<String, Track>;

/// What is open, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Name of the rule.
    pub rule: String,
    /// What it is about.
    pub subject: String,
    /// How much it matters.
    pub severity: Severity,
    /// Since when it holds.
    pub since: Timestamp,
}

/// One subject of one rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Track {
    /// For each severity, since when it is at least that, without a break.
    abnormal: [Option<Timestamp>; Severity::ALL.len()],
    normal: Option<Timestamp>,
    gone: Option<Timestamp>,
    open: Option<(Severity, Timestamp)>,
    /// What is open began by a clock that was wrong: its beginning names it, and says nothing of when.
    undated: bool,
}

/// Which detectors are asked at a step.
#[derive(Clone, Copy, Default)]
struct Whom<'a> {
    /// Only those with these names, if they are given.
    only: Option<&'a BTreeSet<&'static str>>,
    /// Of those not the ones that sleep.
    attention: Attention,
}

impl Whom<'_> {
    fn is_asked(&self, rule: &str) -> bool {
        self.only.is_none_or(|only| only.contains(rule))
    }
}

/// The circumstances of one step.
#[derive(Clone, Copy)]
struct Step<'a> {
    evidence: Evidence<'a>,
    at: Timestamp,
    live: bool,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(&DetectConfig::default())
    }
}

impl Engine {
    /// An engine with these bounds.
    #[must_use]
    pub fn new(config: &DetectConfig) -> Self {
        Self {
            host_silent: HostSilent,
            filesystem_full: FilesystemFull::new(config),
            filesystem_full_soon: FilesystemFullSoon,
            memory_leak: MemoryLeak,
            unit_failed: UnitFailed,
            host_score: HostScore::new(config),
            // The configuration was checked when it was read; entries that are not acceptable change nothing.
            overrides: Arc::new(Overrides::new(&config.rules).unwrap_or_default()),
        }
    }

    /// An engine with these changes of the rules, and the other bounds of `config`.
    #[must_use]
    pub fn of_rules(config: &DetectConfig, overrides: Arc<Overrides>) -> Self {
        Self {
            overrides,
            ..Self::new(config)
        }
    }

    /// Takes in what a host showed; what that opens or clears is appended to `out`. An observation that is
    /// not later than the last one changes nothing.
    pub fn step(
        &self,
        state: &mut HostDetection,
        seen: &Observation<'_>,
        out: &mut Vec<Transition>,
    ) {
        self.step_attending(state, seen, Attention::default(), out);
    }

    /// The same without the rules that sleep; gives those that may sleep until the next tick.
    pub fn step_attending(
        &self,
        state: &mut HostDetection,
        seen: &Observation<'_>,
        attention: Attention,
        out: &mut Vec<Transition>,
    ) -> RuleSet {
        let Some(step) = state.advance(seen) else {
            return RuleSet::default();
        };
        let whom = Whom {
            attention,
            ..Whom::default()
        };
        self.judge(state, step, whom, out);
        let HostDetection { grown, tracks, .. } = state;
        grown.may_sleep(|rule| tracks.contains_key(rule))
    }

    /// The same for the rules with these names alone, whatever else the observation holds.
    pub fn step_only(
        &self,
        state: &mut HostDetection,
        seen: &Observation<'_>,
        only: &BTreeSet<&'static str>,
        out: &mut Vec<Transition>,
    ) {
        if let Some(step) = state.advance(seen) {
            let whom = Whom {
                only: Some(only),
                ..Whom::default()
            };
            self.judge(state, step, whom, out);
        }
    }

    /// Takes in how the host stands at the aggregator's time `at`.
    pub fn standing(
        &self,
        state: &mut HostDetection,
        at: Timestamp,
        standing: &Standing<'_>,
        out: &mut Vec<Transition>,
    ) {
        let step = Step {
            evidence: Evidence::Liveness(standing),
            at,
            live: true,
        };
        self.judge(state, step, Whom::default(), out);
    }

    /// Makes what counts as open here what is open in the store, which survives what a checkpoint does not.
    ///
    /// To be called when a host was restored, before the log is replayed. An incident whose track was lost
    /// stays open until it is observed normal; one that the store never got is opened again by the replay or
    /// the next live observation.
    pub fn adopt(&self, state: &mut HostDetection, open: &[Opening]) {
        let mut before = HashMap::new();
        for (rule, tracks) in &mut state.tracks {
            for (subject, track) in tracks {
                if let Some(open) = track.open.take()
                    && std::mem::take(&mut track.undated)
                {
                    before.insert((rule.clone(), subject.clone()), open);
                }
            }
        }
        for opening in open {
            let tracks = state.tracks.entry(opening.rule.clone()).or_default();
            let track = tracks.entry(opening.subject.clone()).or_default();
            let open = (opening.severity, opening.since);
            track.open = Some(open);
            let key = (opening.rule.clone(), opening.subject.clone());
            track.undated = before.get(&key) == Some(&open);
        }
        state.forget_settled();
    }

    /// The one list of detectors.
    fn judge(
        &self,
        state: &mut HostDetection,
        step: Step<'_>,
        whom: Whom<'_>,
        out: &mut Vec<Transition>,
    ) {
        let HostDetection {
            silent,
            score,
            filling,
            usage,
            grown,
            tracks,
            ..
        } = state;
        if let Evidence::Tick(seen) = &step.evidence {
            self.judge_pack((grown, tracks), seen, whom, step, out);
        }
        let tracks = &mut Asked { tracks, whom };
        tracks.run(&self.host_silent, silent, step, out);
        tracks.run(&self.filesystem_full, &mut (), step, out);
        tracks.run(&self.filesystem_full_soon, filling, step, out);
        tracks.run(&self.memory_leak, usage, step, out);
        tracks.run(&self.unit_failed, &mut (), step, out);
        tracks.run(&self.host_score, score, step, out);
    }
}

/// What is open or on its way, for those detectors that are asked.
struct Asked<'a> {
    tracks: &'a mut BTreeMap<String, Tracks>,
    whom: Whom<'a>,
}

impl Asked<'_> {
    fn run<D: Detector>(
        &mut self,
        detector: &D,
        own: &mut D::State,
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) {
        if self.whom.is_asked(detector.rule().name) {
            run(detector, own, self.tracks, step, out);
        }
    }
}

/// One rule of the pack at one tick.
struct OfPack<'a> {
    watcher: &'a Watcher<'a>,
    at: usize,
    bounds: &'a Bounds,
    rule: &'a Rule,
}

impl Detector for OfPack<'_> {
    type State = ();

    fn rule(&self) -> &Rule {
        self.rule
    }

    fn step(&self, (): &mut (), _: &Evidence<'_>, findings: &mut Findings<'_>) -> Coverage {
        let Some(definition) = rules::pack().get(self.at) else {
            return Coverage::Partial;
        };
        if !self.bounds.enabled() {
            return Coverage::Off;
        }
        self.watcher
            .judge(self.at, definition, self.bounds, findings)
    }
}

impl Engine {
    /// Runs the rules of the pack that know something or have something open.
    fn judge_pack(
        &self,
        (grown, tracks): (&mut Grown, &mut BTreeMap<String, Tracks>),
        seen: &Observation<'_>,
        whom: Whom<'_>,
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) {
        let watcher = Watcher::new(seen, whom.attention, grown);
        for (at, definition) in rules::pack().iter().enumerate() {
            if watcher.sleeps(at) {
                continue;
            }
            if !watcher.knows(at) && !tracks.contains_key(&definition.name)
                || !whom.is_asked(&definition.name)
            {
                continue;
            }
            let (bounds, rule) = self.overrides.of(at, seen.who);
            let one = OfPack {
                watcher: &watcher,
                at,
                bounds: &bounds,
                rule,
            };
            run(&one, &mut (), tracks, step, out);
        }
    }
}

impl HostDetection {
    /// The host score against the bar of the budget: from 1 on it is an anomaly. Nothing while it learns or too
    /// little is observed.
    #[must_use]
    pub fn score(&self) -> Option<f64> {
        self.score.shown()
    }

    /// The anomaly that goes on, if one does.
    #[must_use]
    pub fn anomaly(&self) -> Option<AnomalyView> {
        let episode = self.score.episode.as_ref()?;
        let causes = episode.moved.iter().filter_map(|moved| {
            Some(Cause {
                signal: SIGNALS.get(usize::try_from(moved.metric).ok()?)?,
                observed: f64::from(moved.observed),
                usual: f64::from(moved.usual),
                excess: f64::from(moved.excess),
                since: moved.since,
            })
        });
        Some(AnomalyView {
            score: self.score()?,
            since: episode.since,
            causes: causes.collect(),
        })
    }

    /// The host was booted: its memory begins anew.
    pub fn rebooted(&mut self) {
        self.usage.restarted();
    }

    /// When the filesystem mounted there will be full of data, and when of inodes, if they grow.
    #[must_use]
    pub fn full_in(&self, mountpoint: &str) -> [Option<Forecast>; 2] {
        let inodes = filesystem_full_soon::inodes(mountpoint);
        [mountpoint, &inodes].map(|subject| self.filling.forecast(subject))
    }

    /// Alerts of the host score and weeks in which it was scored, of late.
    #[must_use]
    pub fn told(&self) -> (f64, f64) {
        self.score.told()
    }

    /// Whether it is still learning what is usual on this host.
    #[must_use]
    pub fn learning(&self) -> bool {
        self.score.score.learning()
    }

    /// What a rule has open or on its way.
    pub fn followed(&self, rule: &str) -> impl Iterator<Item = &str> {
        let tracks = self.tracks.get(rule);
        tracks
            .into_iter()
            .flat_map(BTreeMap::keys)
            .map(|subject| &**subject)
    }

    /// How many subjects of a rule are followed, the rest counting as one.
    #[cfg(test)]
    pub(super) fn tracks_of(&self, rule: &str) -> usize {
        self.tracks.get(rule).map_or(0, BTreeMap::len)
    }

    /// Forgets when things were, and keeps what was learnt and what is open.
    ///
    /// To be called when the host's last tick turns out to lie in the future, because its clock or the
    /// aggregator's was wrong and was mended. Without it every observation would be out of order, and nothing
    /// would open or clear, until the clocks had come to that tick. The next observation is taken as the first
    /// after a gap: what must hold for some time begins anew, an anomaly that went on is over.
    pub fn forget_time(&mut self) {
        self.last_tick = None;
        self.silent = None;
        self.score.forget_time();
        self.filling.forget_time();
        self.usage.forget();
        self.grown.forget_time();
        for track in self.tracks.values_mut().flat_map(BTreeMap::values_mut) {
            track.interrupt();
            track.undated = track.open.is_some();
        }
        self.forget_settled();
    }

    /// Comes to the tick of an observation; `None` if it was there before.
    fn advance<'a>(&mut self, seen: &'a Observation<'a>) -> Option<Step<'a>> {
        if let Some(last) = self.last_tick {
            if seen.tick <= last {
                return None;
            }
            let longest = seen.interval.saturating_mul(3) / 2;
            if seen.tick.since(last) > longest.max(PAUSE_FLOOR) {
                self.interrupt();
            }
        }
        self.last_tick = Some(seen.tick);
        Some(Step {
            evidence: Evidence::Tick(seen),
            at: seen.tick,
            live: seen.live,
        })
    }

    /// Something was not observed.
    fn interrupt(&mut self) {
        for track in self.tracks.values_mut().flat_map(BTreeMap::values_mut) {
            track.interrupt();
        }
        self.forget_settled();
    }

    fn forget_settled(&mut self) {
        self.tracks.retain(|_, tracks| {
            tracks.retain(|_, track| !track.is_settled());
            !tracks.is_empty()
        });
    }
}

/// Runs one detector and takes its findings to its tracks.
fn run<D: Detector>(
    detector: &D,
    own: &mut D::State,
    all: &mut BTreeMap<String, Tracks>,
    step: Step<'_>,
    out: &mut Vec<Transition>,
) {
    let rule = detector.rule();
    if !rule.makes_incidents {
        let sink = &mut |_: &str, _: Verdict<'_>| {};
        detector.step(own, &step.evidence, &mut Findings { sink });
        return;
    }
    // Most hosts have nothing open: no entry is made unless something is to be remembered.
    let mut before = all.remove(rule.name).unwrap_or_default();
    let mut after = Tracks::new();
    let rest_track = rule.more.and_then(|more| before.remove(more));
    let mut rest = Rest::default();
    let sink = &mut |subject: &str, verdict: Verdict<'_>| {
        let mut entry = before.remove_entry(subject);
        if entry.is_none() && matches!(verdict, Verdict::Abnormal { .. }) {
            let place = before.len() + after.len() < MAX_TRACKS && rule.more != Some(subject);
            if rule.more.is_none() || place {
                entry = Some((subject.to_owned(), Track::default()));
            }
        }
        if entry.is_none() {
            rest.add(verdict);
        }
        if let Some((subject, mut track)) = entry {
            track.observe(rule, &subject, verdict, step, out);
            if !track.is_settled() {
                after.insert(subject, track);
            }
        }
    };
    let coverage = detector.step(own, &step.evidence, &mut Findings { sink });
    for (subject, mut track) in before {
        match coverage {
            Coverage::NotAsked => {}
            Coverage::Partial => track.interrupt(),
            Coverage::Complete => {
                track.observe_gone(rule, &subject, Reason::Gone, step, out);
            }
            Coverage::Off => track.observe_off(rule, &subject, step, out),
        }
        if !track.is_settled() {
            after.insert(subject, track);
        }
    }
    if let Some(more) = rule.more
        && let Some(track) = rest.judge(rest_track, coverage, (rule, more), step, out)
    {
        after.insert(more.to_owned(), track);
    }
    if !after.is_empty() {
        all.insert(rule.name.to_owned(), after);
    }
}

/// What a detector found wrong beyond [`MAX_TRACKS`]: one subject, however much it is.
#[derive(Default)]
struct Rest {
    count: u32,
    gravest: Option<Severity>,
    /// Something else was not observed: it may be one that was counted before.
    unknown: bool,
}

impl Rest {
    fn add(&mut self, verdict: Verdict<'_>) {
        match verdict {
            Verdict::Normal(_) => {}
            Verdict::Unknown => self.unknown = true,
            Verdict::Abnormal { severity, .. } => {
                self.count = self.count.saturating_add(1);
                self.gravest = self.gravest.max(Some(severity));
            }
        }
    }

    /// Takes the count to its track; the track, if there is something to remember.
    fn judge(
        &self,
        track: Option<Track>,
        coverage: Coverage,
        (rule, more): (&Rule, &'static str),
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) -> Option<Track> {
        if track.is_none() && self.gravest.is_none() {
            return None;
        }
        let mut track = track.unwrap_or_default();
        let reason = Reason::More {
            count: self.count,
            followed: MAX_TRACKS,
        };
        match (self.gravest, coverage) {
            (_, Coverage::NotAsked) => {}
            (_, Coverage::Off) => track.observe_off(rule, more, step, out),
            (Some(severity), _) => {
                let verdict = Verdict::Abnormal { severity, reason };
                track.observe(rule, more, verdict, step, out);
            }
            // Which ones they were is not remembered, so they may as well be gone as be well: the longer of
            // the two times holds.
            (None, Coverage::Complete) if !self.unknown => {
                track.observe_gone(rule, more, reason, step, out);
            }
            (None, _) => track.interrupt(),
        }
        (!track.is_settled()).then_some(track)
    }
}

impl Track {
    /// Nothing to remember.
    fn is_settled(&self) -> bool {
        self.open.is_none() && self.abnormal[0].is_none()
    }

    /// Whether what is open began later than this: the store knows it already, and a replay of the log has
    /// not come to it yet.
    fn is_ahead_of(&self, at: Timestamp) -> bool {
        !self.undated && self.open.is_some_and(|(_, since)| at < since)
    }

    fn interrupt(&mut self) {
        *self = Self {
            open: self.open,
            undated: self.undated,
            ..Self::default()
        };
    }

    fn observe(
        &mut self,
        rule: &Rule,
        subject: &str,
        verdict: Verdict<'_>,
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) {
        if self.is_ahead_of(step.at) {
            return;
        }
        match verdict {
            Verdict::Unknown => self.interrupt(),
            Verdict::Normal(reason) => {
                let since = self.normal.unwrap_or(step.at);
                self.interrupt();
                self.normal = Some(since);
                if step.at.since(since) >= rule.clear_after {
                    self.clear(rule, subject, reason, step, out);
                }
            }
            Verdict::Abnormal { severity, reason } => {
                (self.normal, self.gone) = (None, None);
                for (level, since) in Severity::ALL.into_iter().zip(&mut self.abnormal) {
                    *since = (level <= severity).then(|| since.unwrap_or(step.at));
                }
                self.open(rule, subject, reason, step, out);
            }
        }
    }

    fn observe_gone(
        &mut self,
        rule: &Rule,
        subject: &str,
        reason: Reason<'_>,
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) {
        if self.is_ahead_of(step.at) {
            return;
        }
        let since = self.gone.unwrap_or(step.at);
        self.interrupt();
        self.gone = Some(since);
        if rule
            .gone_after
            .is_some_and(|after| step.at.since(since) >= after)
        {
            self.clear(rule, subject, reason, step, out);
        }
    }

    /// Nobody asks any more whether it holds: an operator said so, which is not to be waited for.
    fn observe_off(
        &mut self,
        rule: &Rule,
        subject: &str,
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) {
        if !self.is_ahead_of(step.at) {
            self.interrupt();
            self.clear(rule, subject, Reason::Off, step, out);
        }
    }

    /// Opens at the gravest severity that has held for long enough, or raises what is open to it.
    fn open(
        &mut self,
        rule: &Rule,
        subject: &str,
        reason: Reason<'_>,
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) {
        let held = Severity::ALL.into_iter().zip(self.abnormal).rev();
        let mut held = held.filter_map(|(severity, since)| Some((severity, since?)));
        let Some((severity, since)) =
            held.find(|(_, since)| step.at.since(*since) >= rule.open_after)
        else {
            return;
        };
        if !step.live || self.open.is_some_and(|(current, _)| current >= severity) {
            return;
        }
        if let Some((lesser, since)) = self.open.take() {
            let evidence = format!("became {}: {reason}", severity.as_str());
            out.push(transition(
                rule,
                subject,
                lesser,
                since,
                step.at,
                Change::Cleared { evidence },
            ));
        }
        self.open = Some((severity, since));
        self.undated = false;
        let change = Change::Opened {
            summary: reason.summary(subject),
            evidence: reason.to_string(),
        };
        out.push(transition(rule, subject, severity, since, step.at, change));
    }

    fn clear(
        &mut self,
        rule: &Rule,
        subject: &str,
        reason: Reason<'_>,
        step: Step<'_>,
        out: &mut Vec<Transition>,
    ) {
        if !step.live {
            return;
        }
        if let Some((severity, since)) = self.open.take() {
            self.undated = false;
            let evidence = reason.to_string();
            let change = Change::Cleared { evidence };
            out.push(transition(rule, subject, severity, since, step.at, change));
        }
    }
}

fn transition(
    rule: &Rule,
    subject: &str,
    severity: Severity,
    since: Timestamp,
    at: Timestamp,
    change: Change,
) -> Transition {
    Transition {
        rule: rule.name,
        subject: subject.to_owned(),
        severity,
        since,
        at,
        change,
    }
}
