//! Rules judged once more over the samples in history: as they are, and as they would be. Those of the pack, and of those
//! in the program such as samples can judge ([`crate::detect::SAMPLED`]).
//!
//! The samples of a host go through the engine of the live path ([`Engine::step_only`]), tick by tick in event time, under
//! both sets of rules at once. Only hosts and rules are looked at whose answer can differ, only the series these rules
//! look at are read, a window of a few hosts at a time and less where that is too much, so memory is bounded whatever is
//! asked; [`GiveUp`] ends it between two windows. What comes out are transitions; [`crate::incident::replay`] makes pages
//! of them. What cannot be read says nothing: rules that look at it wait, with what they have open, until it can.
//!
//! Where every sample is kept the live path's transitions come out again. Beyond, a point of a minute or of a quarter of an
//! hour stands for all its samples by its last, so that answers are near the truth and not the truth; [`Report`] counts
//! both. Samples that came late were never judged live, and are judged here: history does not tell them apart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    catalog::{self, METRICS},
    codec::Intern as _,
    id::HostId,
    time::Timestamp,
};

use crate::{
    detect::{
        Engine, HostDetection, Observation, Opening, Transition,
        rules::{self, Definition, Value},
    },
    fleet::{
        Enrolled,
        cadence::{Changed, Readings, Round},
        derive::{self, FILESYSTEM_METRICS, Gather, Input, UNIT_METRICS},
        host::{held_rate, kept_rate, rate_seconds, rule_samples, units},
        names::Names,
    },
    history::{
        GiveUp, HistoryError, HostSeries, Needs, Point, SampleQuery, SampleStore, SeriesKey,
        StoreStats, Tier, fold,
    },
};

mod failed;

/// Hosts whose samples are in memory at a time: of some ten series each a few MB.
const HOSTS_AT_ONCE: usize = 16;
/// Ticks of a window, about: the packed files of raw samples cover as many at 10 s.
const TICKS_A_WINDOW: i64 = 720;
/// Shortest and longest time between raw samples of which windows are made, in milliseconds.
const RAW_STEP_MS: (i64, i64) = (1_000, 10_000);
/// Most points of one metric of the hosts of a window, 56 bytes each; of more, fewer hosts or less time is read at once.
const MAX_POINTS: u64 = 1_000_000;
/// Openings and clearings of a replay: what says more is no rule that anybody would want.
const MAX_TRANSITIONS: usize = 200_000;
/// A host that booted has another boot time by more than what setting its clock moves it.
const SAME_BOOT_SECONDS: f64 = 30.0;

/// A host, and what was open on it when the replay begins.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Who it is, as selectors of rules see it.
    pub who: Enrolled,
    /// Interval between its ticks, as it is now.
    pub interval: Duration,
    /// What was open then of the rules that are judged.
    pub open: Vec<Opening>,
    /// Names of the rules that are judged on it.
    pub rules: BTreeSet<&'static str>,
}

/// What is to be judged.
pub struct Question<'a> {
    /// Where the samples are.
    pub store: &'a dyn SampleStore,
    /// Hosts with a rule to judge.
    pub hosts: Vec<Subject>,
    /// The rules as they are.
    pub old: Engine,
    /// The rules as they would be.
    pub new: Engine,
    /// From here on samples are read.
    pub from: Timestamp,
    /// Up to here.
    pub to: Timestamp,
    /// Nobody wants to know any more.
    pub give_up: GiveUp,
}

/// What rules say of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Whose.
    pub host: HostId,
    /// By the rules as they are.
    pub old: Vec<Transition>,
    /// By the rules as they would be.
    pub new: Vec<Transition>,
}

/// How far it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Ticks that were judged as they were.
    pub ticks: u64,
    /// Ticks of which one sample stands for a minute, or for a quarter of an hour.
    pub coarse: u64,
    /// Since when every sample is kept; `None`: all along.
    pub every_since: Option<Timestamp>,
    /// What could not be read, in words for people.
    pub missing: BTreeSet<String>,
}

/// Since when points are as fine as that.
#[derive(Debug, Clone, Copy)]
struct Fineness {
    raw: i64,
    minute: i64,
}

impl Fineness {
    fn of(stats: &StoreStats) -> Self {
        let [raw, minute, quarter] = stats.oldest_ms;
        // Without files of a kind there is nothing finer than the next; without any, all is in memory, as it came.
        let since = |own: i64, coarser: i64| match (own, coarser) {
            (0, 0) => i64::MIN,
            (0, _) => i64::MAX,
            (own, _) => own,
        };
        Self {
            raw: since(raw, minute.max(quarter)),
            minute: since(minute, quarter),
        }
    }

    fn at(self, at: i64) -> Tier {
        match at {
            at if at >= self.raw => Tier::Raw,
            at if at >= self.minute => Tier::Minute,
            _ => Tier::Quarter,
        }
    }
}

/// Why rules were not judged.
#[derive(Debug, thiserror::Error)]
pub enum RejudgeError {
    /// Nobody waits for it.
    #[error("nobody waits for the answer")]
    GivenUp,
    /// Their bounds are within what is usual.
    #[error(
        "these rules would open and clear more than {MAX_TRANSITIONS} times; compare a shorter time, or less eager rules"
    )]
    TooMany,
}

/// Judges; `each` takes what comes of a host, `progress` how many of how many windows are done.
///
/// # Errors
/// [`RejudgeError`]. What cannot be read is named in the report.
pub fn judge(
    question: Question<'_>,
    each: &mut dyn FnMut(Judged),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, RejudgeError> {
    judge_within(question, MAX_POINTS, each, progress)
}

/// The same with at most so many points of a metric at once.
fn judge_within(
    question: Question<'_>,
    max_points: u64,
    each: &mut dyn FnMut(Judged),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, RejudgeError> {
    let Question {
        store,
        hosts,
        old,
        new,
        from,
        to,
        give_up,
    } = question;
    let fineness = Fineness::of(&store.stats());
    let of_all: BTreeSet<&str> = hosts.iter().flat_map(|host| host.rules.clone()).collect();
    // A host has a series for each of its CPUs and their modes.
    let has_signal = rules::pack()
        .iter()
        .any(|rule| of_all.contains(&*rule.name) && rule.value.signal.is_some());
    let at_once = if has_signal { 1 } else { HOSTS_AT_ONCE };
    let mut by_step: BTreeMap<i64, Vec<(i64, i64)>> = BTreeMap::new();
    let mut of = 0;
    for batch in hosts.chunks(at_once) {
        let step = raw_step(batch);
        let windows = by_step
            .entry(step)
            .or_insert_with(|| windows(from.as_millis(), to.as_millis(), fineness, step));
        of += windows.len() as u64;
    }
    let engines = [old, new];
    let mut judging = Judging {
        store,
        engines: &engines,
        give_up: &give_up,
        fineness,
        max_points,
        metrics: BTreeSet::new(),
        names: Names::default(),
        report: Report::default(),
    };
    let (mut done, mut said) = (0, 0);
    for batch in hosts.chunks(at_once) {
        judging.names = Names::default();
        judging.metrics = metrics(batch.iter().flat_map(|host| host.rules.iter().copied()));
        let mut folds: Vec<Fold> = batch
            .iter()
            .map(|host| Fold::new(host.clone(), &engines))
            .collect();
        let windows = by_step.get(&raw_step(batch)).map_or(&[][..], Vec::as_slice);
        for &window in windows {
            judging.window(&mut folds, window)?;
            if said + folds.iter().map(Fold::said).sum::<usize>() > MAX_TRANSITIONS {
                return Err(RejudgeError::TooMany);
            }
            done += 1;
            progress(done, of);
        }
        for fold in folds {
            said += fold.said();
            each(fold.end());
        }
    }
    let mut report = judging.report;
    if fineness.raw > from.as_millis() {
        let since = fineness.raw.min(to.as_millis());
        report.every_since = Some(Timestamp::from_millis(since));
    }
    Ok(report)
}

/// Milliseconds between the raw samples of the host of a batch that sends most often.
fn raw_step(batch: &[Subject]) -> i64 {
    let (shortest, longest) = RAW_STEP_MS;
    let intervals = batch.iter().map(|host| host.interval.as_millis());
    let step = intervals.min().and_then(|step| i64::try_from(step).ok());
    step.unwrap_or(longest).clamp(shortest, longest)
}

/// The windows from one time to another: as long as is read at once where points are as fine, with raw samples each
/// `raw_step` milliseconds.
fn windows(from: i64, to: i64, fineness: Fineness, raw_step: i64) -> Vec<(i64, i64)> {
    let mut windows = Vec::new();
    let mut begin = from;
    while begin < to {
        let (step, until) = match fineness.at(begin) {
            Tier::Raw => (raw_step, to),
            Tier::Minute => (60_000, fineness.raw),
            Tier::Quarter => (900_000, fineness.minute.min(fineness.raw)),
        };
        let end = (begin + step * TICKS_A_WINDOW).min(until).min(to);
        windows.push((begin, end));
        begin = end;
    }
    windows
}

/// What is at hand while hosts are judged.
struct Judging<'a> {
    store: &'a dyn SampleStore,
    engines: &'a [Engine; 2],
    give_up: &'a GiveUp,
    fineness: Fineness,
    /// Most points of a metric at once.
    max_points: u64,
    /// What the rules of these hosts look at.
    metrics: BTreeSet<&'static str>,
    names: Names,
    report: Report,
}

impl Judging<'_> {
    /// Judges the hosts of a batch in a window, and forgets the names of series that none of them needs any more.
    fn window(&mut self, folds: &mut [Fold], window: (i64, i64)) -> Result<(), RejudgeError> {
        self.stretch(folds, window)?;
        self.names.sweep_if_grown();
        Ok(())
    }

    /// Judges hosts from one time to another: what is too much at once by half of the hosts, and one host by half of the
    /// time.
    fn stretch(
        &mut self,
        folds: &mut [Fold],
        (begin, end): (i64, i64),
    ) -> Result<(), RejudgeError> {
        self.give_up.check().map_err(|_| RejudgeError::GivenUp)?;
        let step = self.fineness.at(begin).step_ms().unwrap_or(RAW_STEP_MS.0);
        let half = (end - begin) / 2 / step * step;
        let divisible = folds.len() > 1 || half > 0;
        match self.read(folds, (begin, end), divisible) {
            Ok(found) => {
                self.fold(folds, found);
                Ok(())
            }
            Err(Unread::GivenUp) => Err(RejudgeError::GivenUp),
            Err(Unread::TooMuch) if folds.len() > 1 => {
                let (some, others) = folds.split_at_mut(folds.len() / 2);
                self.stretch(some, (begin, end))?;
                self.stretch(others, (begin, end))
            }
            Err(Unread::TooMuch) => {
                self.stretch(folds, (begin, begin + half))?;
                self.stretch(folds, (begin + half, end))
            }
        }
    }

    /// All that the rules of these hosts look at, from one time to another.
    fn read(
        &mut self,
        folds: &[Fold],
        (from, to): (i64, i64),
        divisible: bool,
    ) -> Result<Found, Unread> {
        let query = SampleQuery {
            hosts: folds.iter().map(|fold| fold.who.id).collect(),
            metric: None,
            labels: Vec::new(),
            from,
            to,
            step_ms: 0,
            needs: Needs::ALL,
            max_points: self.max_points,
            give_up: self.give_up.clone(),
        };
        let mut reading = Reading {
            store: self.store,
            divisible,
            found: Found::default(),
            report: &mut self.report,
        };
        for metric in &self.metrics {
            let query = SampleQuery {
                metric: Some((*metric).to_owned()),
                ..query.clone()
            };
            let mut read = Vec::new();
            // Of what could not be read whole nothing is taken: rules that look at it are not judged.
            if reading.metric(metric, &query, &mut |series| read.push(series))? {
                for series in read {
                    let of = reading.found.series.entry(series.host).or_default();
                    of.push(series);
                }
            }
        }
        let followed = folds.iter().filter_map(Fold::units).collect();
        failed::read(&mut reading, &query, &followed)?;
        Ok(reading.found)
    }

    /// Takes hosts through what was read.
    fn fold(&mut self, folds: &mut [Fold], mut found: Found) {
        for fold in folds {
            let id = fold.who.id;
            let series = found.series.remove(&id).unwrap_or_default();
            let series = series.into_iter().map(|one| {
                let family = self.names.family((*one.name.family).clone());
                (self.names.series(&family, &one.name.labels), one.points)
            });
            let series: Vec<_> = series.collect();
            let named = found.named.remove(&id).unwrap_or_default();
            let lost = found.lost.remove(&id).unwrap_or_default();
            fold.leave_out(&lost);
            fold.window(
                &series,
                &named,
                self.engines,
                self.fineness,
                &mut self.report,
            );
        }
    }
}

/// What was read, by host.
#[derive(Default)]
struct Found {
    series: HashMap<HostId, Vec<HostSeries>>,
    /// When it named its units.
    named: HashMap<HostId, BTreeSet<i64>>,
    /// Metrics that could not be read, or not whole.
    lost: HashMap<HostId, BTreeSet<&'static str>>,
}

/// Why nothing is judged by what was read.
enum Unread {
    GivenUp,
    /// Less may be asked at once.
    TooMuch,
}

/// Metrics being read.
struct Reading<'a> {
    store: &'a dyn SampleStore,
    /// Less can be asked at once, if this is too much.
    divisible: bool,
    found: Found,
    report: &'a mut Report,
}

impl Reading<'_> {
    /// Gives `sink` what the store has for a question about this metric. What cannot be read is named, and `false` is given
    /// if that is any of it.
    fn metric(
        &mut self,
        metric: &'static str,
        query: &SampleQuery,
        sink: &mut dyn FnMut(HostSeries),
    ) -> Result<bool, Unread> {
        let outcome = self.store.read(query, &mut |series| {
            sink(series);
            ControlFlow::Continue(())
        });
        match outcome {
            Ok(read) if read.missing.is_empty() => return Ok(true),
            Ok(read) => self.report.missing.extend(read.missing),
            Err(HistoryError::GivenUp) => return Err(Unread::GivenUp),
            Err(HistoryError::TooMuch { .. }) if self.divisible => return Err(Unread::TooMuch),
            Err(error) => {
                let error = crate::chain(&error);
                self.report.missing.insert(format!("{metric}: {error}"));
            }
        }
        for host in &query.hosts {
            self.found.lost.entry(*host).or_default().insert(metric);
        }
        Ok(false)
    }
}

/// All that these rules look at; of units only some are read, which is an affair of its own.
fn metrics(judged: impl Iterator<Item = &'static str>) -> BTreeSet<&'static str> {
    let judged: BTreeSet<&str> = judged.collect();
    judged.into_iter().flat_map(metrics_of).collect()
}

/// What a rule looks at, units aside.
fn metrics_of(rule: &'static str) -> BTreeSet<&'static str> {
    let name = |id: catalog::FamilyId| METRICS[id.0 as usize].name;
    // Counters begin anew with the host.
    let mut metrics = BTreeSet::from([name(catalog::BOOT_TIME_SECONDS)]);
    match rule {
        "filesystem_full" | "filesystem_full_soon" => metrics.extend(FILESYSTEM_METRICS),
        "memory_leak" => metrics.extend(derive::made_of("memory_used_ratio")),
        _ => {}
    }
    for definition in rules::pack().iter().filter(|known| *known.name == *rule) {
        metrics.extend(looks_at(definition));
        if definition.collector.is_some() {
            metrics.insert(name(catalog::SCRAPE_COLLECTOR_SUCCESS));
            metrics.insert(name(catalog::AGENT_COLLECTOR_ABSENT));
        }
    }
    metrics
}

/// Whether nothing can be said by a rule without these metrics.
fn needs_any(rule: &'static str, lost: &BTreeSet<&'static str>) -> bool {
    let of_units = rule == failed::RULE && UNIT_METRICS.iter().any(|unit| lost.contains(unit));
    of_units || !metrics_of(rule).is_disjoint(lost)
}

/// The metrics that stand in a rule, and those its signal is made of.
fn looks_at(rule: &'static Definition) -> impl Iterator<Item = &'static str> {
    let of = |value: &'static Value| {
        let signal = value.signal.as_deref().map_or(&[][..], derive::made_of);
        let named = [&value.metric, &value.per, &value.done];
        named
            .into_iter()
            .filter_map(Option::as_deref)
            .chain(signal.iter().copied())
    };
    let detail = rule.detail.as_ref().map(|detail| &*detail.metric);
    of(&rule.value)
        .chain(rule.and.iter().flat_map(of))
        .chain(detail)
        .chain(rule.unless.as_deref())
}

/// What a host showed at a tick.
struct Tick<'a> {
    at: Timestamp,
    interval: Duration,
    shown: &'a [(&'a Arc<SeriesKey>, Point)],
    /// It named its units, of which those are shown that matter.
    units_known: bool,
}

/// One host on its way through time.
struct Fold {
    who: Enrolled,
    interval: Duration,
    rules: BTreeSet<&'static str>,
    /// Those of them that are judged in this window: what they look at could be read.
    asked: BTreeSet<&'static str>,
    last_tick: Option<Timestamp>,
    boot: Option<f64>,
    /// Of each series that has a rate the point at which it was read last, and the rate then; by [`place`], which is that
    /// of no other series while its name is held here.
    before: HashMap<usize, (Arc<SeriesKey>, Point, f32)>,
    /// When counters were read that are not at each tick.
    readings: Readings,
    /// By the rules as they are and as they would be.
    states: [HostDetection; 2],
    told: [Vec<Transition>; 2],
}

impl Fold {
    fn new(host: Subject, engines: &[Engine; 2]) -> Self {
        let mut states = [HostDetection::default(), HostDetection::default()];
        for (state, engine) in states.iter_mut().zip(engines) {
            engine.adopt(state, &host.open);
        }
        Self {
            who: host.who,
            interval: host.interval,
            asked: host.rules.clone(),
            rules: host.rules,
            last_tick: None,
            boot: None,
            before: HashMap::new(),
            readings: Readings::default(),
            states,
            told: [Vec::new(), Vec::new()],
        }
    }

    /// The units whose samples are needed whatever these say; `None` where nobody asks for units.
    fn units(&self) -> Option<(HostId, BTreeSet<String>)> {
        let followed = self
            .states
            .iter()
            .flat_map(|state| state.followed(failed::RULE));
        self.rules
            .contains(failed::RULE)
            .then(|| (self.who.id, followed.map(str::to_owned).collect()))
    }

    /// Leaves out, until the next window, the rules that look at metrics that were lost: nobody knows what they would have
    /// seen, so what they have open stays open, and what must hold for some time begins anew.
    fn leave_out(&mut self, lost: &BTreeSet<&'static str>) {
        self.asked.clone_from(&self.rules);
        if lost.is_empty() {
            return;
        }
        self.asked.retain(|rule| !needs_any(rule, lost));
        for rule in self.rules.difference(&self.asked) {
            for state in &mut self.states {
                state.interrupt_rule(rule);
            }
        }
    }

    /// Goes through the ticks of a window; at those of `named` the host named its units.
    fn window(
        &mut self,
        series: &[(Arc<SeriesKey>, Vec<Point>)],
        named: &BTreeSet<i64>,
        engines: &[Engine; 2],
        fineness: Fineness,
        report: &mut Report,
    ) {
        let ticks: BTreeSet<i64> = series
            .iter()
            .flat_map(|(_, points)| points.iter().map(|point| point.at))
            .chain(named.iter().copied())
            .collect();
        let mut rest: Vec<&[Point]> = series.iter().map(|(_, points)| &points[..]).collect();
        let mut shown: Vec<(&Arc<SeriesKey>, Point)> = Vec::new();
        for at in ticks {
            shown.clear();
            for ((key, _), points) in series.iter().zip(&mut rest) {
                if let Some((point, later)) = points.split_first().filter(|(p, _)| p.at == at) {
                    shown.push((key, *point));
                    *points = later;
                }
            }
            let step = fineness.at(at).step_ms();
            match step {
                None => report.ticks += 1,
                Some(_) => report.coarse += 1,
            }
            let step = Duration::from_millis(step.unwrap_or(0).unsigned_abs());
            let tick = Tick {
                at: Timestamp::from_millis(at),
                interval: self.interval.max(step),
                shown: &shown,
                units_known: named.contains(&at),
            };
            self.tick(&tick, engines);
        }
    }

    /// As `HostState` takes a sample in, for the part of it that these rules look at.
    fn tick(&mut self, tick: &Tick<'_>, engines: &[Engine; 2]) {
        let &Tick {
            at: tick,
            interval,
            shown,
            units_known,
        } = tick;
        let span = self.last_tick.map(|last| tick.since(last));
        let mut gather = Gather::default();
        let round = self.rates(tick, span, shown);
        let mut valued = Vec::with_capacity(shown.len());
        for (key, point) in shown {
            let rate = self
                .before
                .get(&place(key))
                .map_or(f32::NAN, |(_, _, rate)| *rate);
            gather.add(key.input, point.last, held_rate(rate));
            valued.push((&***key, point.last, rate));
        }
        let filesystems = shown.iter().filter_map(|(key, point)| match key.input {
            Input::Filesystem(figure) => Some((figure, &key.labels[..], point.last)),
            _ => None,
        });
        let derived = gather.derived(derive::filesystems(filesystems));
        let signals = gather.signals(&derived);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "counts of restarts, 0 and 1"
        )]
        let of_units = shown
            .iter()
            .map(|(key, point)| (key.input, &key.labels[..], point.last as i64));
        let units = units(of_units).unwrap_or_default();
        let samples = rule_samples(valued.into_iter(), span, &round);
        let seen = Observation {
            tick,
            interval,
            live: true,
            signals: &signals,
            filesystems: &derived.filesystems,
            filesystems_known: !derived.filesystems.is_empty(),
            units: &units,
            units_known,
            samples: &samples,
            who: Some(&self.who),
        };
        let mut out = Vec::new();
        for ((engine, state), told) in engines.iter().zip(&mut self.states).zip(&mut self.told) {
            engine.step_only(state, &seen, &self.asked, &mut out);
            told.append(&mut out);
        }
        self.last_tick = Some(tick);
    }

    /// Brings up to date what each series grew by a second, as `HostState` does; what slow collectors did.
    fn rates(
        &mut self,
        tick: Timestamp,
        span: Option<Duration>,
        shown: &[(&Arc<SeriesKey>, Point)],
    ) -> Round {
        self.notice_boot(shown);
        let mut changed = Changed::default();
        for (key, point) in shown {
            if let Some(cadence) = key.cadence
                && self
                    .before
                    .get(&place(key))
                    .is_none_or(|(_, before, _)| before.last.to_bits() != point.last.to_bits())
            {
                changed.note(cadence);
            }
        }
        let round = self.readings.step(tick, &changed);
        let mut now = HashMap::with_capacity(self.before.len());
        for (key, point) in shown.iter().filter(|(key, _)| key.rated) {
            let place = place(key);
            let before = self.before.get(&place);
            let since = match key.cadence.map(|cadence| round.of(cadence)) {
                None => span,
                Some(reading) if reading.ran => reading.since,
                Some(_) => {
                    now.extend(before.map(|before| (place, before.clone())));
                    continue;
                }
            };
            let rate = before
                .zip(rate_seconds(since))
                .and_then(|((_, before, _), seconds)| rate_between(before, point, seconds));
            now.insert(place, (Arc::clone(key), *point, kept_rate(rate)));
        }
        self.before = now;
        round
    }

    /// Counters begin anew with the host.
    fn notice_boot(&mut self, shown: &[(&Arc<SeriesKey>, Point)]) {
        let boot_time = METRICS[catalog::BOOT_TIME_SECONDS.0 as usize].name;
        let mut boots = shown.iter().filter(|(key, _)| key.family.name == boot_time);
        let Some((_, boot)) = boots.next() else {
            return;
        };
        let before = self.boot.replace(boot.last);
        if before.is_some_and(|before| (before - boot.last).abs() > SAME_BOOT_SECONDS) {
            self.before.clear();
            self.states.iter_mut().for_each(HostDetection::rebooted);
        }
    }

    /// How often something opened or cleared.
    fn said(&self) -> usize {
        self.told.iter().map(Vec::len).sum()
    }

    fn end(self) -> Judged {
        let [old, new] = self.told;
        Judged {
            host: self.who.id,
            old,
            new,
        }
    }
}

/// A series, by where its name is.
fn place(key: &Arc<SeriesKey>) -> usize {
    Arc::as_ptr(key).addr()
}

/// What a counter grew by a second from one point to the next.
fn rate_between(before: &Point, point: &Point, seconds: f64) -> Option<f64> {
    if point.dropped == 0.0 {
        return derive::rate(before.last, point.last, seconds);
    }
    // A counter began anew within the point: what it lost then is known.
    Some(fold::increase(before, point) / seconds).filter(|rate| *rate >= 0.0)
}

#[cfg(test)]
mod tests;
