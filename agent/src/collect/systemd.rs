//! systemd's units: which state each is in, and every change of state as an event.
//!
//! Nothing is polled: a task follows the system bus (`systemd_bus`) and keeps the state of all
//! units here; a round puts what has changed since the last. A host without systemd has no values and no
//! failure; a bus that goes away is one failure until it is back.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::{
    catalog, event,
    time::{Clock, SystemClock, Timestamp},
    v1::{EventFieldKey, EventKind},
};
use tokio::{sync::Notify, task::AbortHandle};

use super::{
    About, CollectError, Collector, Outcome, Readings, SystemdConfig, glob, systemd_bus,
    systemd_kinds::{Exit, Known, ServiceFacts, SocketFacts, TimerFacts},
    word,
};
use crate::host::HostRoot;

/// The states that are shown for each unit, in node_exporter's words. In another ("reloading",
/// "maintenance") a unit has 0 for all five.
const STATES: [&str; 5] = ["active", "activating", "deactivating", "inactive", "failed"];

/// Most units of which the state is known; for the counts, units that are not watched are known too.
const MAX_KNOWN: usize = 10_000;

/// Most changes that wait for the next round.
const MAX_CHANGES: usize = 1_000;

/// Longest word taken from the bus: what an event's field may hold.
const MAX_WORD_BYTES: usize = 64;

/// Its name as a collector.
pub const NAME: &str = "systemd";

static ABOUT: About = About {
    name: NAME,
    every: Duration::ZERO,
    reads: "the system bus: org.freedesktop.systemd1",
    needs: "systemd, and a user that may talk to the system bus (not DynamicUser)",
    what: "state of each unit, results and restarts of services, timers, sockets, changes of state as events",
};

/// See the module.
pub struct Systemd {
    shared: Arc<Shared>,
    task: Option<AbortHandle>,
}

impl Systemd {
    /// Watches what the configuration says; `urgent` is told when a unit changed its state. Nothing is
    /// connected yet.
    #[must_use]
    pub fn new(config: &SystemdConfig, urgent: Arc<Notify>) -> Self {
        Self {
            shared: Arc::new(Shared {
                units: Mutex::new(Units::new(config)),
                work: Notify::new(),
                urgent,
            }),
            task: None,
        }
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Does not start a task of its own: this one follows the bus.
    #[cfg(test)]
    pub(super) fn follows(&mut self, task: AbortHandle) {
        self.task = Some(task);
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Collector for Systemd {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if !host.is_live() {
            return Ok(Outcome::NoData);
        }
        if self.task.is_none() {
            let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                return Ok(Outcome::NoData);
            };
            let task = runtime.spawn(systemd_bus::follow(Arc::clone(&self.shared)));
            self.task = Some(task.abort_handle());
        }
        self.shared.lock().put(out)
    }
}

/// What the task that follows the bus and the collector share.
pub(super) struct Shared {
    units: Mutex<Units>,
    /// Told when there is something to ask the bus for.
    pub(super) work: Notify,
    urgent: Arc<Notify>,
}

impl Shared {
    /// The units; held for a few lines, never across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Units> {
        // A change is whole before anything that could panic.
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait what there is to do.
    pub(super) fn tell(&self) {
        let units = self.lock();
        if units.wants() {
            self.work.notify_one();
        }
        if !units.changes.is_empty() || units.fresh {
            self.urgent.notify_one();
        }
    }
}

/// What systemd says about a unit in a listing.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) load_state: String,
    pub(super) active_state: String,
}

/// All units, and what has happened to them since the last round. Pure: no bus, no waiting.
pub(super) struct Units {
    config: SystemdConfig,
    bus: Bus,
    all: BTreeMap<String, Unit>,
    watched: usize,
    version: String,
    running: Option<bool>,
    /// Units to ask for, or all of them.
    pending: BTreeSet<String>,
    relist: bool,
    /// systemd reads its unit files anew: it forgets all units and makes them again.
    reloading: bool,
    /// Whether there are units that are `gone`.
    some_gone: bool,
    /// Whether the state of the whole system is to be asked for.
    system_stale: bool,
    /// Units of which a signal came since the last question was sent: its answer may be older.
    signalled: HashSet<String>,
    changes: Vec<Change>,
    /// Changes that had no room among those.
    changes_left_out: u64,
    /// Whether what was put last no longer holds.
    changed: bool,
    /// Whether everything was listed since the last round.
    fresh: bool,
    /// Whether there are restarts that will be forgotten.
    some_restarted: bool,
}

/// Units of which more is known than their state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Service,
    Timer,
    Socket,
}

impl Sort {
    fn of(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "service" => Some(Self::Service),
            "timer" => Some(Self::Timer),
            "socket" => Some(Self::Socket),
            _ => None,
        }
    }
}

enum Bus {
    /// Not reached so far.
    Never,
    /// Reached, and everything listed.
    Up,
    /// Was up, and went.
    Lost(String),
}

#[derive(Debug, Default)]
struct Unit {
    state: String,
    known: Known,
    watched: bool,
    /// Matches the patterns, but is beyond the bound.
    beyond: bool,
    /// systemd said that it forgot the unit; it may come back in the same breath.
    gone: bool,
}

/// A watched unit's change of state.
#[derive(Debug)]
struct Change {
    name: String,
    from: String,
    to: String,
    result: String,
    exit: Option<Exit>,
    at: Timestamp,
}

/// What to ask the bus for.
pub(super) enum Question {
    All,
    Named(Vec<String>),
    /// Only the state of the whole system.
    System,
}

impl Units {
    fn new(config: &SystemdConfig) -> Self {
        Self {
            config: config.clone(),
            bus: Bus::Never,
            all: BTreeMap::new(),
            watched: 0,
            version: String::new(),
            running: None,
            pending: BTreeSet::new(),
            relist: true,
            reloading: false,
            some_gone: false,
            system_stale: true,
            signalled: HashSet::new(),
            changes: Vec::new(),
            changes_left_out: 0,
            changed: false,
            fresh: false,
            some_restarted: false,
        }
    }

    fn wants(&self) -> bool {
        let something = self.system_stale || self.some_gone || !self.pending.is_empty();
        (self.relist || something) && !self.reloading
    }

    /// What to ask for now, if anything. From here on signals are newer than the answer.
    pub(super) fn question(&mut self) -> Option<Question> {
        if !self.wants() {
            return None;
        }
        self.system_stale = false;
        self.signalled.clear();
        if !self.relist {
            self.bury();
        }
        let named: Vec<String> = std::mem::take(&mut self.pending).into_iter().collect();
        Some(if std::mem::take(&mut self.relist) {
            Question::All
        } else if named.is_empty() {
            Question::System
        } else {
            Question::Named(named)
        })
    }

    /// A connection begins: everything is to be listed.
    pub(super) fn begin(&mut self, version: &str) {
        self.version = bounded(version);
        self.relist = true;
        self.reloading = false;
    }

    /// The connection ended, or there is none.
    pub(super) fn lost(&mut self, why: &str) {
        if matches!(self.bus, Bus::Up) {
            self.bus = Bus::Lost(why.to_owned());
        }
        self.relist = true;
    }

    /// Whether the bus is reached and everything was listed.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.bus, Bus::Up)
    }

    /// The answer to a question: all units, or those that were named.
    pub(super) fn listed(&mut self, listed: &[Listed], all: bool) {
        if all {
            let names: HashSet<&str> = listed.iter().map(|unit| unit.name.as_str()).collect();
            let gone: Vec<String> = self
                .all
                .keys()
                .filter(|name| !names.contains(name.as_str()) && !self.signalled.contains(*name))
                .cloned()
                .collect();
            for name in gone {
                self.remove(&name);
            }
        }
        for unit in listed {
            if self.signalled.contains(&unit.name) {
                // A signal overtook the answer; it is asked again.
                self.pending.insert(unit.name.clone());
            } else if unit.load_state == "loaded" {
                self.set_state(&unit.name, &unit.active_state);
                self.revive(&unit.name);
            } else {
                // Named by another unit, and not there.
                self.remove(&unit.name);
            }
        }
        if all {
            let came_up = !self.is_up();
            self.changed |= came_up;
            self.fresh |= came_up;
            self.bus = Bus::Up;
        }
    }

    /// The state of the whole system: "running", "degraded", ….
    pub(super) fn set_system_state(&mut self, state: &str) {
        let running = Some(state == "running");
        self.changed |= self.running != running;
        self.running = running;
    }

    /// Watched services, timers and sockets of which nothing but the state is known yet.
    pub(super) fn unknown(&self) -> Vec<(String, Sort)> {
        let unknown = |(name, unit): (&String, &Unit)| {
            let sort = Sort::of(name)?;
            let known = match sort {
                Sort::Service => unit.known.service.kind.is_some(),
                Sort::Timer => unit.known.timer.is_some(),
                Sort::Socket => unit.known.socket.is_some(),
            };
            (unit.watched && !known).then(|| (name.clone(), sort))
        };
        self.all.iter().filter_map(unknown).collect()
    }

    /// Watched sockets whose connections systemd counts; it sends no signal when one comes.
    pub(super) fn counting_sockets(&self) -> Vec<String> {
        let counts = |unit: &Unit| unit.known.socket.is_some_and(|socket| socket.accepts);
        let counting = self
            .all
            .iter()
            .filter(|(_, unit)| unit.watched && counts(unit));
        counting.map(|(name, _)| name.clone()).collect()
    }

    /// What is known of a service; `None` leaves it as it was.
    pub(super) fn set_service(&mut self, name: &str, facts: ServiceFacts) {
        let Some(unit) = self.all.get_mut(name) else {
            return;
        };
        let facts = ServiceFacts {
            kind: facts.kind.map(|kind| bounded(&kind)),
            result: facts.result.map(|result| bounded(&result)),
            ..facts
        };
        self.changed |= unit.known.set_service(facts, SystemClock.now());
        self.some_restarted |= unit.known.has_restarted();
    }

    /// What is known of a timer; `None` leaves it as it was.
    pub(super) fn set_timer(&mut self, name: &str, facts: TimerFacts) {
        if let Some(unit) = self.all.get_mut(name) {
            self.changed |= unit.known.set_timer(facts);
        }
    }

    /// What is known of a socket.
    pub(super) fn set_socket(&mut self, name: &str, facts: SocketFacts) {
        if let Some(unit) = self.all.get_mut(name) {
            self.changed |= unit.known.socket.replace(facts) != Some(facts);
        }
    }

    /// Forgets restarts that are long past.
    fn forget_restarts(&mut self, now: Timestamp) {
        if !self.some_restarted {
            return;
        }
        self.some_restarted = false;
        for unit in self.all.values_mut() {
            self.changed |= unit.known.forget(now);
            self.some_restarted |= unit.known.has_restarted();
        }
    }

    /// A signal: systemd loaded the unit.
    pub(super) fn appeared(&mut self, name: &str) {
        self.signalled.insert(name.to_owned());
        if self.all.contains_key(name) {
            self.revive(name);
        } else {
            // What was just loaded has not been started.
            self.set_state(name, "inactive");
        }
        // Whether it is there at all, the listing says.
        self.pending.insert(name.to_owned());
    }

    /// A signal: systemd forgot the unit. A reload forgets all units and makes them again, so it is
    /// kept until the next question.
    pub(super) fn vanished(&mut self, name: &str) {
        self.signalled.insert(name.to_owned());
        self.pending.remove(name);
        if let Some(unit) = self.all.get_mut(name) {
            unit.gone = true;
            self.some_gone = true;
        }
    }

    /// A signal: the unit's state.
    pub(super) fn signalled_state(&mut self, name: &str, state: &str) {
        self.signalled.insert(name.to_owned());
        if !self.all.contains_key(name) {
            self.pending.insert(name.to_owned());
        }
        self.set_state(name, state);
        self.system_stale = true;
    }

    /// A signal: unit files begin to be read anew, or were.
    pub(super) fn reloading(&mut self, begins: bool) {
        self.reloading = begins;
        self.relist = true;
    }

    fn revive(&mut self, name: &str) {
        if let Some(unit) = self.all.get_mut(name) {
            unit.gone = false;
        }
    }

    /// Forgets the units that systemd forgot.
    fn bury(&mut self) {
        if !std::mem::take(&mut self.some_gone) {
            return;
        }
        let gone = self.all.iter().filter(|(_, unit)| unit.gone);
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.remove(&name);
        }
    }

    /// Forgets the unit. Only what is not running is ever forgotten: a failed one has not failed any
    /// more, and whoever waits for that is told.
    fn remove(&mut self, name: &str) {
        if self.all.contains_key(name) {
            self.set_state(name, "inactive");
        }
        if let Some(unit) = self.all.remove(name) {
            self.watched -= usize::from(unit.watched);
            self.changed = true;
        }
    }

    fn set_state(&mut self, name: &str, state: &str) {
        let state = bounded(state);
        if let Some(unit) = self.all.get_mut(name) {
            if unit.state == state {
                return;
            }
            self.changed = true;
            let from = std::mem::replace(&mut unit.state, state.clone());
            if unit.watched && self.changes.len() >= MAX_CHANGES {
                self.changes_left_out += 1;
            } else if unit.watched {
                self.changes.push(Change {
                    name: name.to_owned(),
                    from,
                    to: state,
                    result: unit.known.service.result.clone().unwrap_or_default(),
                    exit: unit.known.exit(),
                    at: SystemClock.now(),
                });
            }
            return;
        }
        if self.all.len() >= MAX_KNOWN {
            return;
        }
        let wanted = glob::any(&self.config.include, name.as_bytes())
            && !glob::any(&self.config.exclude, name.as_bytes());
        let watched = wanted && self.watched < self.config.max_units;
        if wanted && !watched {
            tracing::debug!(unit = name, "unit is beyond the bound and not watched");
        }
        self.watched += usize::from(watched);
        self.changed = true;
        let unit = Unit {
            state,
            watched,
            beyond: wanted && !watched,
            ..Unit::default()
        };
        self.all.insert(name.to_owned(), unit);
    }

    /// Puts what has changed since the last round.
    fn put(&mut self, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.fresh = false;
        self.forget_restarts(SystemClock.now());
        out.leave_out_events(std::mem::take(&mut self.changes_left_out));
        for change in self.changes.drain(..) {
            let mut fields = vec![
                word(EventFieldKey::From, &change.from),
                word(EventFieldKey::To, &change.to),
            ];
            if !change.result.is_empty() {
                fields.push(word(EventFieldKey::Result, &change.result));
            }
            fields.extend(change.exit.map(|exit| match exit {
                Exit::Status(status) => event::integer(EventFieldKey::Code, status.into()),
                Exit::Signal(signal) => event::integer(EventFieldKey::Signal, signal.into()),
            }));
            out.event_at(change.at, EventKind::UnitStateChanged, &change.name, fields);
        }
        match &self.bus {
            Bus::Never => return Ok(Outcome::NoData),
            Bus::Lost(why) => return Err(CollectError::Bus { why: why.clone() }),
            Bus::Up => {}
        }
        if !std::mem::take(&mut self.changed) {
            return Ok(Outcome::Unchanged);
        }
        let mut counts = [0u64; STATES.len()];
        let mut beyond = 0u64;
        for (name, unit) in &self.all {
            for (state, count) in STATES.iter().zip(&mut counts) {
                *count += u64::from(*state == unit.state);
            }
            beyond += u64::from(unit.beyond);
            // Until its type is known, a service would stand there as another series.
            let known = unit.known.service.kind.is_some() || !name.ends_with(".service");
            if unit.watched && known && out.admits_object(STATES.len() + unit.known.series()) {
                put_unit(name, unit, out);
            }
        }
        for (state, count) in STATES.iter().zip(counts) {
            out.unsigned(catalog::SYSTEMD_UNITS, &[state], count);
        }
        out.unsigned(catalog::SYSTEMD_UNITS_UNOBSERVED, &[], beyond);
        if let Some(running) = self.running {
            out.int(catalog::SYSTEMD_SYSTEM_RUNNING, &[], i64::from(running));
        }
        if let Some(number) = version_number(&self.version) {
            out.float(catalog::SYSTEMD_VERSION, &[&self.version], number);
        }
        Ok(Outcome::Read)
    }
}

fn put_unit(name: &str, unit: &Unit, out: &mut Readings) {
    let kind = unit.known.service.kind.as_deref().unwrap_or_default();
    for state in STATES {
        let is = i64::from(state == unit.state);
        out.int(catalog::SYSTEMD_UNIT_STATE, &[name, state, kind], is);
    }
    unit.known.put(name, out);
}

/// "252.36-1~deb12u1" is 252.36.
fn version_number(version: &str) -> Option<f64> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let major = digits(version);
    let minor = version[major..]
        .strip_prefix('.')
        .map_or(0, |rest| 1 + digits(rest));
    let length = if minor > 1 { major + minor } else { major };
    version[..length].parse().ok()
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_WORD_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn listed(units: &[(&str, &str)]) -> Vec<Listed> {
        let unit = |&(name, state): &(&str, &str)| Listed {
            name: name.to_owned(),
            load_state: "loaded".to_owned(),
            active_state: state.to_owned(),
        };
        units.iter().map(unit).collect()
    }

    fn units(config: &SystemdConfig, all: &[(&str, &str)]) -> Units {
        let mut units = Units::new(config);
        units.begin("252.36-1~deb12u1");
        assert!(matches!(units.question(), Some(Question::All)));
        units.listed(&listed(all), true);
        units
    }

    /// A collector around units that no bus changes.
    struct Fixed(Units);

    impl Collector for Fixed {
        fn about(&self) -> &'static About {
            &ABOUT
        }

        fn collect(&mut self, _: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
            self.0.put(out)
        }
    }

    #[test]
    fn five_states_for_each_watched_unit_and_counts_of_all() {
        let all = [
            ("a.service", "failed"),
            ("b.timer", "active"),
            ("c.device", "active"),
            ("d.mount", "reloading"),
        ];
        let mut fixed = Fixed(units(&SystemdConfig::default(), &all));
        let facts = ServiceFacts {
            kind: Some("notify".to_owned()),
            result: Some("exit-code".to_owned()),
            restarts: Some(3),
            exit: Some(1),
            ended: Some(1),
        };
        fixed.0.set_service("a.service", facts);
        fixed.0.set_system_state("degraded");
        let mut host = testing::Host::new();
        let values = host.collect(&mut fixed);
        let state = |state| {
            values[&format!(
                "node_systemd_unit_state{{name=\"a.service\",state=\"{state}\",type=\"notify\"}}"
            )]
        };
        assert_eq!(STATES.map(state), [0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(
            values[r#"node_systemd_service_restart_total{name="a.service"}"#],
            3.0
        );
        assert_eq!(values[r#"node_systemd_units{state="active"}"#], 2.0);
        assert_eq!(values["node_systemd_system_running"], 0.0);
        assert_eq!(
            values[r#"node_systemd_version{version="252.36-1~deb12u1"}"#],
            252.36
        );
        assert_eq!(
            values[r#"muster_host_systemd_unit_result{name="a.service",result="exit-code"}"#],
            1.0
        );
        assert_eq!(values.len(), 2 * 5 + 3 + 5 + 1 + 1 + 1);
        assert_eq!(host.run(&mut fixed).ok(), Some(Outcome::Unchanged));
    }

    #[test]
    fn changes_become_events_and_an_old_answer_changes_nothing() {
        let mut fixed = Fixed(units(&SystemdConfig::default(), &[("a.service", "active")]));
        let mut host = testing::Host::new();
        host.collect(&mut fixed);
        fixed.0.reloading(false);
        assert!(matches!(fixed.0.question(), Some(Question::All)));
        let facts = ServiceFacts {
            result: Some("signal".to_owned()),
            ..ServiceFacts::default()
        };
        fixed.0.set_service("a.service", facts);
        fixed.0.signalled_state("a.service", "failed");
        fixed.0.appeared("new.service");
        fixed.0.signalled_state("new.service", "activating");
        fixed.0.listed(&listed(&[("a.service", "active")]), true);
        host.collect(&mut fixed);
        let events = host.readings().take_events();
        let subjects: Vec<_> = events.iter().map(|event| event.subject.as_str()).collect();
        assert_eq!(subjects, ["a.service", "new.service"]);
        let expected = [
            word(EventFieldKey::From, "active"),
            word(EventFieldKey::To, "failed"),
            word(EventFieldKey::Result, "signal"),
        ];
        assert_eq!(events[0].fields, expected);
        let Some(Question::Named(named)) = fixed.0.question() else {
            unreachable!("the overtaken answer is asked for again");
        };
        assert_eq!(named, ["a.service", "new.service"]);
        let mut gone = listed(&[("a.service", "failed"), ("new.service", "inactive")]);
        gone[1].load_state = "not-found".to_owned();
        fixed.0.listed(&gone, false);
        assert_eq!(fixed.0.all.len(), 1);
    }

    #[test]
    fn a_reload_forgets_all_units_and_makes_them_again_without_an_event() {
        let all = [
            ("a.timer", "active"),
            ("b.timer", "failed"),
            ("old.timer", "inactive"),
        ];
        let mut fixed = Fixed(units(&SystemdConfig::default(), &all));
        let mut host = testing::Host::new();
        host.collect(&mut fixed);
        fixed.0.reloading(true);
        for (name, _) in all {
            fixed.0.vanished(name);
        }
        fixed.0.appeared("a.timer");
        assert!(fixed.0.question().is_none(), "not in the middle of it");
        fixed.0.reloading(false);
        assert!(matches!(fixed.0.question(), Some(Question::All)));
        fixed.0.appeared("b.timer");
        let now = listed(&[("a.timer", "active"), ("b.timer", "failed")]);
        fixed.0.listed(&now, true);
        let Some(Question::Named(named)) = fixed.0.question() else {
            unreachable!("b.timer appeared after the question");
        };
        assert_eq!(named, ["b.timer"]);
        fixed.0.listed(&now[1..], false);
        let values = host.collect(&mut fixed);
        assert_eq!(
            values[r#"node_systemd_unit_state{name="b.timer",state="failed",type=""}"#],
            1.0
        );
        assert_eq!(fixed.0.all.len(), 2);
        assert!(host.readings().take_events().is_empty());
    }

    #[test]
    fn a_failed_unit_that_is_forgotten_has_not_failed_any_more() {
        let all = [("once.service", "failed")];
        let mut fixed = Fixed(units(&SystemdConfig::default(), &all));
        let mut host = testing::Host::new();
        fixed.0.question();
        fixed.0.vanished("once.service");
        assert!(matches!(fixed.0.question(), Some(Question::System)));
        let values = host.collect(&mut fixed);
        assert!(!values.keys().any(|key| key.contains("once.service")));
        let events = host.readings().take_events();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].fields[1], word(EventFieldKey::To, "inactive"));
    }

    #[test]
    fn units_beyond_the_bound_are_counted() {
        let config = SystemdConfig {
            max_units: 2,
            exclude: vec!["no*".to_owned()],
            ..SystemdConfig::default()
        };
        let all = [
            ("a.timer", "active"),
            ("b.timer", "active"),
            ("c.timer", "active"),
            ("no.timer", "active"),
        ];
        let mut fixed = Fixed(units(&config, &all));
        let values = testing::Host::new().collect(&mut fixed);
        assert_eq!(values["muster_host_systemd_units_unobserved"], 1.0);
        let states = values.keys().filter(|key| key.contains("unit_state"));
        assert_eq!(states.count(), 2 * 5);
    }

    #[test]
    fn a_bus_never_reached_is_no_failure_and_a_lost_one_is() {
        let mut host = testing::Host::new();
        let mut fixed = Fixed(Units::new(&SystemdConfig::default()));
        fixed.0.lost("no such file");
        assert_eq!(host.run(&mut fixed).ok(), Some(Outcome::NoData));
        let mut fixed = Fixed(units(&SystemdConfig::default(), &[("a.service", "active")]));
        host.collect(&mut fixed);
        fixed.0.lost("connection closed");
        assert!(host.fails(&mut fixed));
        fixed.0.begin("252");
        assert!(fixed.0.question().is_some());
        fixed.0.listed(&listed(&[("a.service", "failed")]), true);
        assert!(!host.collect(&mut fixed).is_empty());
        assert_eq!(
            host.readings().take_events().len(),
            1,
            "it failed meanwhile"
        );
    }

    #[test]
    fn versions_become_numbers() {
        let table = [
            ("252.36-1~deb12u1", Some(252.36)),
            ("219", Some(219.0)),
            ("257~rc1", Some(257.0)),
            ("v2.", None),
            ("", None),
        ];
        for (version, number) in table {
            assert_eq!(version_number(version), number, "{version}");
        }
    }
}
