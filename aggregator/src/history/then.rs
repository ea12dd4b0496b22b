//! Hosts as they were at a moment, made of samples: what a host is listed by now, from what is kept of then.
//!
//! First it is asked when each host was last heard before the moment and how far apart its ticks were; then only
//! those two ticks are read, of the metrics that are needed. What a series says counts if the host said it at its last
//! tick before the moment: a filesystem that was unmounted earlier was not there. Where samples are kept no longer,
//! a roll-up stands for the tick: the one that the moment falls into, with the last values of its minute or quarter,
//! and rates over it.
//!
//! Who was in the fleet, what was open and who may ask is left to the caller.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
};

use muster_proto::{id::HostId, time::Timestamp};

use super::{GiveUp, HistoryError, HostSeries, Needs, SampleQuery, SampleStore, fold};
use crate::fleet::{
    Derived, Unit, UnitState,
    derive::{FilesystemFigure, Gather, Input, filesystems},
};

/// Present at every tick of a host: of every agent; and where samples come from elsewhere.
const PROBES: [&str; 2] = ["muster_agent_info", "node_load1"];

/// What a host is listed by, gauges and what never changes.
const GAUGES: &[&str] = &[
    "node_load1",
    "node_memory_MemTotal_bytes",
    "node_memory_MemAvailable_bytes",
    "node_filesystem_size_bytes",
    "node_filesystem_free_bytes",
    "node_filesystem_avail_bytes",
    "node_filesystem_readonly",
    "node_filesystem_device_error",
    "muster_agent_info",
    "muster_agent_series",
    "node_uname_info",
    "node_os_info",
];

/// Rates are made of these.
const COUNTERS: &[&str] = &[
    "node_cpu_seconds_total",
    "node_disk_io_time_seconds_total",
    "node_network_receive_bytes_total",
    "node_network_transmit_bytes_total",
    "node_pressure_cpu_waiting_seconds_total",
    "node_pressure_memory_waiting_seconds_total",
    "node_pressure_io_waiting_seconds_total",
];

/// Units; what tells of loops comes before the states, which are judged by it.
const UNITS: &[&str] = &[
    "muster_host_systemd_unit_restarts_recent",
    "node_systemd_service_restart_total",
    "node_systemd_unit_state",
];

/// In place of the kernel's estimate of available memory where there is none (before 3.14).
const OLD_MEMORY: &[&str] = &[
    "node_memory_MemFree_bytes",
    "node_memory_Buffers_bytes",
    "node_memory_Cached_bytes",
];

/// What one host is shown by besides.
const CLOSE_GAUGES: &[&str] = &[
    "node_boot_time_seconds",
    "node_filesystem_files",
    "node_filesystem_files_free",
    "node_scrape_collector_success",
    "muster_agent_collector_absent",
];
const CLOSE_COUNTERS: &[&str] = &[
    "node_disk_read_bytes_total",
    "node_disk_written_bytes_total",
    "node_network_receive_errs_total",
    "node_network_transmit_errs_total",
    "node_pressure_memory_stalled_seconds_total",
    "node_pressure_io_stalled_seconds_total",
];

/// Ticks before the last one that one host's figures are shown of.
const RECENT: usize = 10;

/// A host is late that misses this many of its ticks, silent at one more, and neither before these times: as the
/// fleet judges a host of which it knows little (`fleet/liveness.rs`).
const LATE_TICKS: i64 = 2;
const LATE_MS: i64 = 10_000;
const SILENT_MS: i64 = 20_000;

/// Spacing of a host of which one tick is known.
const UNKNOWN_SPACING_MS: i64 = 10_000;

/// How much is wanted of each host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// What it is listed by.
    Row,
    /// Its units, each.
    Units,
    /// Both.
    RowAndUnits,
    /// Everything.
    Close,
}

/// What is asked.
pub struct Question<'a> {
    /// Samples.
    pub store: &'a dyn SampleStore,
    /// Of which hosts.
    pub hosts: &'a [HostId],
    /// UTC milliseconds.
    pub at: i64,
    /// How far before the moment hosts are looked for.
    pub back_ms: i64,
    /// How much of each.
    pub what: What,
    /// Most points that may be read.
    pub max_points: u64,
    /// Looked at with every series.
    pub give_up: GiveUp,
}

/// The answer.
#[derive(Debug, Default)]
pub struct Found {
    /// Hosts of which anything was found.
    pub hosts: HashMap<HostId, Seen>,
    /// Points read.
    pub points: u64,
    /// What could not be read.
    pub missing: Vec<String>,
}

/// How a host stood, by its samples alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heard {
    /// As often as it should be.
    Live,
    /// Ticks are missing.
    Late,
    /// More are.
    #[default]
    Silent,
}

/// One counter's rate, as a page on one host shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rated {
    /// The metric.
    pub metric: String,
    /// Its first label: a device.
    pub device: String,
    /// Per second.
    pub rate: f64,
}

/// One host.
#[derive(Debug, Default)]
pub struct Seen {
    /// Its last tick, not after the moment.
    pub tick: i64,
    /// The one before, 0 if none was found.
    pub before: i64,
    /// How it stood by that.
    pub heard: Heard,
    /// What it is listed by; nothing of a host that was silent.
    pub derived: Derived,
    /// Whether it told the states of its units.
    pub has_units: bool,
    /// How many units it told of.
    pub units: u32,
    /// Those of them that were failing; all, where units are asked for.
    pub listed: Vec<Unit>,
    /// `debian 12`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Version of the agent.
    pub agent: String,
    /// Series that the agent sent.
    pub series: Option<u32>,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: Option<f64>,
    /// When it booted.
    pub boot_time: Option<Timestamp>,
    /// Rates by device, where everything is asked for.
    pub rates: Vec<Rated>,
    /// Collectors that failed, where everything is asked for.
    pub failing_collectors: Vec<String>,
    /// What it was listed by at the ticks before and at the last, oldest first, where everything is asked for.
    pub recent: Vec<Derived>,
    parts: Parts,
    earlier: BTreeMap<i64, Parts>,
    recent_restarts: HashMap<String, u64>,
    restarts: HashMap<String, u64>,
    absent: Vec<String>,
}

/// What is gathered of one tick.
#[derive(Debug, Default)]
struct Parts {
    gather: Gather,
    figures: Vec<(FilesystemFigure, Vec<String>, f64)>,
}

impl Parts {
    fn add(&mut self, input: Input, labels: &[String], value: f64, rate: Option<f64>) {
        if let Input::Filesystem(figure) = input {
            self.figures.push((figure, labels.to_vec(), value));
        } else {
            self.gather.add(input, value, rate);
        }
    }

    fn derived(&self) -> Derived {
        let figures = self.figures.iter();
        let figures = figures.map(|(figure, labels, value)| (*figure, &labels[..], *value));
        self.gather.derived(filesystems(figures))
    }
}

impl Seen {
    /// Milliseconds from tick to tick; of a single tick not known.
    #[must_use]
    pub fn spacing_ms(&self) -> Option<i64> {
        (self.before > 0).then(|| self.tick - self.before)
    }

    fn note(&mut self, at: i64) {
        if at > self.tick {
            self.before = std::mem::replace(&mut self.tick, at);
        } else if at < self.tick && at > self.before {
            self.before = at;
        }
    }

    fn judge(&mut self, at: i64) {
        let spacing = self.spacing_ms().unwrap_or(UNKNOWN_SPACING_MS);
        let age = at - self.tick;
        self.heard = match () {
            () if age <= (LATE_TICKS * spacing).max(LATE_MS) => Heard::Live,
            () if age <= ((LATE_TICKS + 1) * spacing).max(SILENT_MS) => Heard::Late,
            () => Heard::Silent,
        };
    }

    /// Takes a series; whether it was of the host's last tick.
    fn take(&mut self, series: &HostSeries, what: What) -> bool {
        let (family, labels) = (&series.name.family, &series.name.labels[..]);
        let input = Input::of(family, labels);
        let rated = input.is_rated(family.kind);
        let points = &series.points[..];
        for (place, point) in points.iter().enumerate() {
            let before = place.checked_sub(1).map(|before| &points[before]);
            let rate = before
                .filter(|_| rated)
                .and_then(|before| rate(before, point));
            if point.at == self.tick {
                self.parts.add(input, labels, point.last, rate);
                self.of_last_tick(series, input, point.last, rate, what);
            }
            if let Some(parts) = self.earlier.get_mut(&point.at) {
                parts.add(input, labels, point.last, rate);
            }
        }
        points.last().is_some_and(|last| last.at == self.tick)
    }

    fn of_last_tick(
        &mut self,
        series: &HostSeries,
        input: Input,
        value: f64,
        rate: Option<f64>,
        what: What,
    ) {
        let label = |name: &str| {
            let at = series.name.family.labels.iter().position(|l| l == name);
            at.and_then(|at| series.name.labels.get(at))
                .map_or("", String::as_str)
        };
        let first = series.name.labels.first().map_or("", String::as_str);
        match (series.name.family.name.as_str(), input) {
            ("node_cpu_seconds_total", _) if label("mode") == "idle" => self.cpus += 1,
            ("node_memory_MemTotal_bytes", _) => self.memory_bytes = Some(value),
            ("muster_agent_info", _) => label("version").clone_into(&mut self.agent),
            ("muster_agent_series", _) => self.series = Some(whole(value)),
            ("node_uname_info", _) => label("release").clone_into(&mut self.kernel),
            ("node_os_info", _) => {
                let os = format!("{} {}", label("id"), label("version_id"));
                os.trim().clone_into(&mut self.os);
            }
            (_, Input::UnitRestarts) => {
                self.restarts.insert(first.to_owned(), whole(value).into());
            }
            (_, Input::UnitRestartsRecent) if value > 0.0 => {
                self.recent_restarts
                    .insert(first.to_owned(), whole(value).into());
            }
            (_, Input::UnitState) => {
                self.has_units = true;
                if value >= 1.0
                    && let Some(state) = UnitState::parse(label("state"))
                {
                    self.unit(first, state, what);
                }
            }
            (_, Input::CollectorSuccess) if value == 0.0 => {
                self.failing_collectors.push(first.to_owned());
            }
            (_, Input::CollectorAbsent) if value != 0.0 => self.absent.push(first.to_owned()),
            _ => {}
        }
        if let Some(rate) = rate.filter(|_| what == What::Close) {
            self.rates.push(Rated {
                metric: series.name.family.name.clone(),
                device: first.to_owned(),
                rate,
            });
        }
    }

    fn unit(&mut self, name: &str, state: UnitState, what: What) {
        self.units += 1;
        let of = |counts: &HashMap<String, u64>| counts.get(name).copied().unwrap_or(0);
        let unit = Unit {
            name: name.to_owned(),
            state,
            since: None,
            restarts: of(&self.restarts),
            restarts_recent: of(&self.recent_restarts),
        };
        if matches!(what, What::Units | What::RowAndUnits) || unit.is_failing() {
            self.listed.push(unit);
        }
    }

    fn finish(&mut self) {
        self.derived = self.parts.derived();
        let absent = std::mem::take(&mut self.absent);
        self.failing_collectors
            .retain(|name| !absent.contains(name));
        self.boot_time = self
            .parts
            .gather
            .boot_time_seconds()
            .map(|seconds| Timestamp::from_millis(millis(seconds)));
        let mut earlier = std::mem::take(&mut self.earlier);
        earlier.pop_first();
        self.recent = earlier.into_values().map(|parts| parts.derived()).collect();
        if !self.recent.is_empty() {
            self.recent.push(self.derived.clone());
        }
        (self.recent_restarts, self.restarts) = (HashMap::new(), HashMap::new());
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a time of the kernel, in seconds since 1970; one beyond saturates"
)]
fn millis(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of a host; one beyond saturates"
)]
fn whole(value: f64) -> u32 {
    value as u32
}

#[expect(clippy::cast_precision_loss, reason = "at most an hour")]
fn rate(before: &super::Point, point: &super::Point) -> Option<f64> {
    let span = point.at - before.at;
    let known = span > 0 && span <= fold::MAX_RATE_SPAN_MS;
    known.then(|| fold::increase(before, point) * 1000.0 / span as f64)
}

/// Answers the question.
///
/// # Errors
/// When it would cost too much, or is not wanted any more. What cannot be read is named in the answer.
pub fn then(question: &Question<'_>) -> Result<Found, HistoryError> {
    let mut reading = Reading {
        question,
        found: Found::default(),
    };
    reading.probe()?;
    let classes = reading.classes();
    for class in &classes {
        reading.class(class)?;
    }
    let mut found = reading.found;
    for seen in found.hosts.values_mut() {
        seen.finish();
    }
    found.missing.sort_unstable();
    found.missing.dedup();
    Ok(found)
}

/// Hosts that are read together since their ticks are about as far apart.
#[derive(Default)]
struct Class {
    hosts: Vec<HostId>,
    /// From here on all of them have their last tick.
    last_from: i64,
    /// From here on all of them have their last two.
    from: i64,
}

struct Reading<'a> {
    question: &'a Question<'a>,
    found: Found,
}

impl Reading<'_> {
    fn read(
        &mut self,
        hosts: &[HostId],
        metric: &str,
        from: i64,
        each: &mut dyn FnMut(&mut HashMap<HostId, Seen>, &HostSeries),
    ) -> Result<(), HistoryError> {
        if hosts.is_empty() {
            return Ok(());
        }
        let query = SampleQuery {
            hosts: hosts.to_vec(),
            metric: Some(metric.to_owned()),
            labels: Vec::new(),
            from,
            to: self.question.at.saturating_add(1),
            step_ms: 0,
            needs: Needs::of(fold::Fold::Last),
            max_points: self.question.max_points.saturating_sub(self.found.points),
            give_up: self.question.give_up.clone(),
        };
        let seen = &mut self.found.hosts;
        let read = self.question.store.read(&query, &mut |series| {
            each(seen, &series);
            ControlFlow::Continue(())
        });
        let report = read.map_err(|error| match error {
            // The bound on the whole question, not on what was left of it.
            HistoryError::TooMuch { .. } => HistoryError::TooMuch {
                limit: self.question.max_points,
            },
            error => error,
        })?;
        self.found.points += report.points;
        self.found.missing.extend(report.missing);
        Ok(())
    }

    /// When hosts were last heard.
    fn probe(&mut self) -> Result<(), HistoryError> {
        let (at, what) = (self.question.at, self.question.what);
        let from = at.saturating_sub(self.question.back_ms);
        for metric in PROBES {
            let known = &self.found.hosts;
            let hosts = self
                .question
                .hosts
                .iter()
                .filter(|id| !known.contains_key(id));
            let hosts: Vec<HostId> = hosts.copied().collect();
            self.read(&hosts, metric, from, &mut |seen, series| {
                let seen = seen.entry(series.host).or_default();
                for point in &series.points {
                    if what == What::Close {
                        seen.earlier.insert(point.at, Parts::default());
                    }
                    seen.note(point.at);
                }
            })?;
        }
        for seen in self.found.hosts.values_mut() {
            seen.judge(at);
            seen.earlier.remove(&seen.tick);
            // One more than is shown, for the rates of the first.
            while seen.earlier.len() > RECENT + 1 {
                seen.earlier.pop_first();
            }
        }
        Ok(())
    }

    /// Hosts that were heard, by the power of two above the age of their last tick but one.
    fn classes(&self) -> Vec<Class> {
        let at = self.question.at;
        let mut classes: BTreeMap<u64, Class> = BTreeMap::new();
        for (id, seen) in &self.found.hosts {
            if seen.heard == Heard::Silent {
                continue;
            }
            let mut from = if seen.before > 0 {
                seen.before
            } else {
                seen.tick
            };
            if let Some((first, _)) = seen.earlier.first_key_value() {
                from = from.min(*first);
            }
            let class = classes
                .entry(at.abs_diff(from).next_power_of_two())
                .or_insert_with(|| Class {
                    hosts: Vec::new(),
                    last_from: at,
                    from: at,
                });
            class.hosts.push(*id);
            class.last_from = class.last_from.min(seen.tick);
            class.from = class.from.min(from);
        }
        classes.into_values().collect()
    }

    fn class(&mut self, class: &Class) -> Result<(), HistoryError> {
        let what = self.question.what;
        let gauges_from = match what {
            What::Close => class.from,
            What::Row | What::Units | What::RowAndUnits => class.last_from,
        };
        let mut plan: Vec<(&str, i64)> = Vec::new();
        let mut add = |metrics: &'static [&'static str], from| {
            plan.extend(metrics.iter().map(|metric| (*metric, from)));
        };
        if what != What::Units {
            add(GAUGES, gauges_from);
            add(COUNTERS, class.from);
        }
        if what == What::Close {
            add(CLOSE_GAUGES, gauges_from);
            add(CLOSE_COUNTERS, class.from);
        }
        add(UNITS, class.last_from);
        let mut estimated = std::collections::HashSet::new();
        for (metric, from) in plan {
            self.read(&class.hosts, metric, from, &mut |seen, series| {
                let Some(seen) = seen.get_mut(&series.host) else {
                    return;
                };
                if seen.take(series, what) && metric == "node_memory_MemAvailable_bytes" {
                    estimated.insert(series.host);
                }
            })?;
        }
        if what == What::Units {
            return Ok(());
        }
        let old = class.hosts.iter().filter(|id| !estimated.contains(id));
        let old: Vec<HostId> = old.copied().collect();
        for metric in OLD_MEMORY {
            self.read(&old, metric, gauges_from, &mut |seen, series| {
                if let Some(seen) = seen.get_mut(&series.host) {
                    seen.take(series, what);
                }
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
