//! Hosts as they were, against samples that were written by hand.

use std::sync::Arc;

use muster_proto::{
    codec::Intern as _,
    log::FaultyStorage,
    series::{Family, Kind, Raw, Scale},
};

use super::*;
use crate::{
    fleet::names::Names,
    history::{EmbeddedStore, HistoryConfig, PlainStore, SeriesKey},
};

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;
const HOUR: i64 = 3_600_000;

fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

/// Series as a small host has them.
struct World {
    names: Names,
    token: u64,
}

impl World {
    fn new() -> Self {
        Self {
            names: Names::default(),
            token: 0,
        }
    }

    fn key(&mut self, name: &str, labels: &[(&str, &str)]) -> Arc<SeriesKey> {
        let kind = if name.ends_with("_total") {
            Kind::Counter
        } else {
            Kind::Gauge
        };
        let family = self.names.family(Family {
            name: name.into(),
            kind,
            scale: Scale::Float,
            labels: labels.iter().map(|(label, _)| (*label).into()).collect(),
        });
        let values: Vec<String> = labels.iter().map(|(_, value)| (*value).into()).collect();
        self.names.series(&family, &values)
    }

    /// A tick at which the CPU was busy for this share of the time since `START`.
    fn tick(&mut self, store: &dyn SampleStore, number: u8, at: i64, busy: f64, mounted: bool) {
        #[expect(clippy::cast_precision_loss, reason = "a few hours")]
        let seconds = (at - START) as f64 / 1000.0;
        let mut values = vec![
            (self.key("muster_agent_info", &[("version", "1.2")]), 1.0),
            (self.key("muster_agent_series", &[]), 20.0),
            (self.key("node_load1", &[]), busy * 10.0),
            (self.key("node_memory_MemTotal_bytes", &[]), 1000.0),
            (self.key("node_memory_MemAvailable_bytes", &[]), 250.0),
            (
                self.key("node_os_info", &[("id", "debian"), ("version_id", "12")]),
                1.0,
            ),
            (
                self.key("node_network_receive_bytes_total", &[("device", "eth0")]),
                seconds * 100.0,
            ),
            (self.key("node_boot_time_seconds", &[]), 1_767_000_000.0),
        ];
        for (mode, share) in [("user", busy), ("idle", 1.0 - busy)] {
            let key = self.key("node_cpu_seconds_total", &[("cpu", "0"), ("mode", mode)]);
            values.push((key, seconds * share));
        }
        let mut mounts = vec![("/", 0.5)];
        if mounted {
            mounts.push(("/data", 0.9));
        }
        for (mount, used) in mounts {
            let labels = [("device", mount), ("fstype", "ext4"), ("mountpoint", mount)];
            for (metric, value) in [
                ("node_filesystem_size_bytes", 100.0),
                ("node_filesystem_free_bytes", 100.0 * (1.0 - used)),
                ("node_filesystem_avail_bytes", 100.0 * (1.0 - used)),
            ] {
                values.push((self.key(metric, &labels), value));
            }
        }
        for (unit, state, restarts) in [
            ("nginx.service", "active", 0.0),
            ("cron.service", "failed", 0.0),
            ("app.service", "activating", 7.0),
        ] {
            for word in ["active", "activating", "failed"] {
                let labels = [("name", unit), ("state", word), ("type", "simple")];
                let value = f64::from(u8::from(word == state));
                values.push((self.key("node_systemd_unit_state", &labels), value));
            }
            let recent = "muster_host_systemd_unit_restarts_recent";
            values.push((self.key(recent, &[("name", unit)]), restarts));
        }
        self.token += 1;
        let mut values = values.iter().map(|(key, value)| (key, Raw::float(*value)));
        store
            .append(self.token, host(number), at, &mut values)
            .expect("there is room");
    }
}

fn ask(store: &dyn SampleStore, at: i64, back_ms: i64, what: What) -> Found {
    let question = Question {
        store,
        hosts: &[host(1), host(2), host(3)],
        at,
        back_ms,
        what,
        max_points: 10_000,
        give_up: GiveUp::default(),
    };
    then(&question).expect("it is answered")
}

fn about(value: Option<f64>, expected: f64) {
    let value = value.expect("it is known");
    assert!((value - expected).abs() < 1e-6, "{value} for {expected}");
}

#[test]
fn what_was_measured_then_is_told_and_nothing_of_later() {
    let (store, mut world) = (PlainStore::default(), World::new());
    for step in 0..60 {
        let at = START + step * 10_000;
        // Idle for five minutes, then busy; /data is there for the first four.
        let busy = if step < 30 { 0.25 } else { 0.75 };
        world.tick(&store, 1, at, busy, step < 24);
        // Each second tick; and ends after two minutes.
        if step % 2 == 0 {
            world.tick(&store, 2, at + 3_000, 0.5, false);
        }
        if step < 12 {
            world.tick(&store, 3, at, 0.5, false);
        }
    }
    let at = START + 205_000;
    let found = ask(&store, at, 300_000, What::Row);
    assert_eq!(found.missing, [""; 0]);
    let one = &found.hosts[&host(1)];
    assert_eq!(
        (one.tick, one.spacing_ms()),
        (START + 200_000, Some(10_000))
    );
    assert_eq!(one.heard, Heard::Live);
    about(one.derived.cpu_ratio, 0.25);
    about(one.derived.memory_ratio, 0.75);
    about(one.derived.load1, 2.5);
    about(one.derived.network_receive_bytes_per_second, 100.0);
    about(one.derived.disk_ratio, 0.9);
    assert_eq!(one.derived.disk_mountpoint, "/data");
    assert_eq!((one.os.as_str(), one.agent.as_str()), ("debian 12", "1.2"));
    assert_eq!((one.series, one.units), (Some(20), 3));
    let failing: Vec<(&str, &str)> = one
        .listed
        .iter()
        .map(|unit| (unit.name.as_str(), unit.word()))
        .collect();
    assert_eq!(
        failing,
        [("app.service", "crash-loop"), ("cron.service", "failed")]
    );
    let two = &found.hosts[&host(2)];
    assert_eq!(two.spacing_ms(), Some(20_000));
    about(two.derived.cpu_ratio, 0.5);
    let three = &found.hosts[&host(3)];
    assert_eq!(three.heard, Heard::Silent);
    assert_eq!(three.derived, Derived::default(), "old numbers are not new");

    // What was unmounted a minute ago is not there, though it is within what is looked at.
    let found = ask(&store, START + 300_000, 300_000, What::Row);
    about(found.hosts[&host(1)].derived.disk_ratio, 0.5);
    assert!(ask(&store, START - 1, 300_000, What::Row).hosts.is_empty());
}

#[test]
fn one_host_is_shown_with_what_came_before() {
    let (store, mut world) = (PlainStore::default(), World::new());
    for step in 0..60 {
        let busy = if step == 35 { 0.75 } else { 0.5 };
        world.tick(&store, 1, START + step * 10_000, busy, false);
    }
    let found = ask(&store, START + 401_000, 300_000, What::Close);
    let one = &found.hosts[&host(1)];
    assert_eq!(one.recent.len(), 11);
    assert!(one.recent.iter().all(|at| at.cpu_ratio.is_some()));
    assert_eq!(one.recent.last(), Some(&one.derived));
    let load = |back: usize| one.recent[10 - back].load1;
    about(load(5), 7.5);
    about(load(4), 5.0);
    assert_eq!(one.cpus, 1);
    assert_eq!(
        one.boot_time,
        Some(Timestamp::from_millis(1_767_000_000_000))
    );
    let rate = one.rates.iter().find(|rated| rated.device == "eth0");
    about(rate.map(|rated| rated.rate), 100.0);
}

#[test]
fn units_are_listed_each_when_they_are_asked_for() {
    let (store, mut world) = (PlainStore::default(), World::new());
    for step in 0..3 {
        world.tick(&store, 1, START + step * 10_000, 0.5, false);
    }
    for (what, cpu) in [(What::Units, false), (What::RowAndUnits, true)] {
        let found = ask(&store, START + 25_000, 300_000, what);
        let one = &found.hosts[&host(1)];
        assert_eq!(one.listed.len(), 3, "{what:?}");
        assert_eq!(one.derived.cpu_ratio.is_some(), cpu, "{what:?}");
    }
}

#[test]
fn what_it_may_cost_is_bounded_and_nobody_need_wait() {
    let (store, mut world) = (PlainStore::default(), World::new());
    for step in 0..6 {
        world.tick(&store, 1, START + step * 10_000, 0.5, false);
    }
    let give_up = GiveUp::default();
    let mut question = Question {
        store: &store,
        hosts: &[host(1)],
        at: START + 55_000,
        back_ms: 300_000,
        what: What::Row,
        max_points: 20,
        give_up: give_up.clone(),
    };
    let refused = then(&question).expect_err("too much");
    assert!(
        matches!(refused, HistoryError::TooMuch { limit: 20 }),
        "{refused}"
    );
    question.max_points = 10_000;
    assert!(then(&question).is_ok());
    give_up.now();
    let refused = then(&question).expect_err("given up");
    assert!(matches!(refused, HistoryError::GivenUp), "{refused}");
}

/// Samples are kept for six hours here; of the day before there are minutes.
#[test]
fn minutes_stand_for_samples_that_are_kept_no_longer() {
    let storage = FaultyStorage::new();
    let config = HistoryConfig {
        raw: std::time::Duration::from_secs(6 * 3600),
        memory_per_host: 1 << 20,
        ..HistoryConfig::default()
    };
    let (store, _) = EmbeddedStore::open(storage, config, START).expect("it opens");
    let mut world = World::new();
    for step in 0..4 * 360 {
        world.tick(&store, 1, START + step * 10_000, 0.25, true);
    }
    let now = START + 30 * HOUR;
    for group in store.unsaved() {
        let flushed = store.flush(group, world.token, now, |_| Vec::new());
        flushed.expect("the disk is well");
    }
    while store.maintain(now).expect("the disk is well") {}
    assert_eq!(store.stats().files[0], 0, "samples are gone");
    let at = START + 2 * HOUR + 90_000;
    let found = ask(&store, at, 15 * 60_000, What::Row);
    let one = &found.hosts[&host(1)];
    assert_eq!((one.tick, one.spacing_ms()), (at - 30_000, Some(60_000)));
    assert_eq!(one.heard, Heard::Live);
    about(one.derived.cpu_ratio, 0.25);
    about(one.derived.network_receive_bytes_per_second, 100.0);
    assert_eq!((one.units, one.listed.len()), (3, 2));
}
