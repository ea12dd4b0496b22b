//! What the detectors cost: processor time for each metric of each tick, over a fleet that ticks once a second.
//!
//! One host lives through three days, so that everything is learnt and warm; the fleet is made of copies of it, which then
//! see each a day of their own. Every tick goes through the engine with four filesystems and forty units, as in a shard.

use std::time::Duration;

use fastrand::Rng;
use muster_aggregator::{
    detect::{Engine, HostDetection, Observation},
    fleet::{FilesystemPoint, SIGNALS, Signals, Unit, UnitState},
};
use muster_proto::time::Timestamp;

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const HOSTS: u32 = 3_000;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const LEARNT: u32 = 3 * 1_440;
/// Seconds that are measured: closings of rows, and the six-hourly inversion now and then.
const MEASURED: u32 = 180;
/// What is asked of: so many metrics a host (design/detection.md).
const METRICS_ASKED: f64 = 100.0;

/// A host and what it shows.
struct Host {
    state: HostDetection,
    random: Rng,
    filesystems: Vec<FilesystemPoint>,
    units: Vec<Unit>,
}

impl Host {
    fn new() -> Self {
        let filesystem = |mountpoint: &str| FilesystemPoint {
            mountpoint: mountpoint.to_owned(),
            size: 1e11,
            available: 6e10,
            used_ratio: 0.4,
            inodes_used_ratio: Some(0.1),
            ..FilesystemPoint::default()
        };
        let unit = |number: u32| Unit {
            name: format!("unit-{number}.service"),
            state: UnitState::Active,
            since: None,
            restarts: 0,
            restarts_recent: 0,
        };
        Self {
            state: HostDetection::default(),
            random: Rng::with_seed(1),
            filesystems: ["/", "/var", "/home", "/srv"].map(filesystem).into(),
            units: (0..40).map(unit).collect(),
        }
    }

    fn tick(&mut self, engine: &Engine, tick: Timestamp, interval: Duration) {
        let mut signals: Signals = [0.0; SIGNALS.len()];
        signals.fill_with(|| 0.3 + 0.1 * self.random.f32());
        let seen = Observation {
            tick,
            interval,
            live: true,
            signals: &signals,
            filesystems: &self.filesystems,
            filesystems_known: true,
            units: &self.units,
            units_known: true,
            samples: &[],
            who: None,
        };
        engine.step(&mut self.state, &seen, &mut Vec::new());
    }
}

/// Processor time of this process.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

pub(crate) fn run() {
    let engine = Engine::default();
    let mut first = Host::new();
    for minute in 0..LEARNT {
        first.tick(&engine, START.plus(MINUTE * minute), MINUTE);
    }
    let begin = START.plus(MINUTE * LEARNT);
    let mut fleet: Vec<Host> = (0..HOSTS)
        .map(|number| Host {
            state: first.state.clone(),
            random: Rng::with_seed(number.into()),
            filesystems: first.filesystems.clone(),
            units: first.units.clone(),
        })
        .collect();
    let before = cpu();
    for second in 0..MEASURED {
        for host in &mut fleet {
            host.tick(&engine, begin.plus(SECOND * second), SECOND);
        }
    }
    let took = (cpu() - before).as_secs_f64();
    let ticks = f64::from(HOSTS) * f64::from(MEASURED);
    #[expect(clippy::cast_precision_loss, reason = "some dozens")]
    let updates = ticks * SIGNALS.len() as f64;
    let nanoseconds = took * 1e9 / updates;
    println!(
        "\nCost: {HOSTS} hosts, {MEASURED} ticks of a second, {} metrics a tick, four filesystems, forty units",
        SIGNALS.len()
    );
    println!(
        "{:.2} us a tick, {nanoseconds:.1} ns a metric",
        took * 1e6 / ticks
    );
    println!(
        "{HOSTS} hosts at 1 s: {:.1} % of a core; at {METRICS_ASKED} metrics each it would be {:.1} %",
        100.0 * took / f64::from(MEASURED),
        f64::from(HOSTS) * METRICS_ASKED * nanoseconds / 1e9 * 100.0
    );
}
