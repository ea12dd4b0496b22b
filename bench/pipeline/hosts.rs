//! What made-up hosts have that real ones have only on bad days: clocks that jump, and series without end.

use std::sync::atomic::{AtomicI64, Ordering};

use muster_agent::{Source, sampler::HostClock, simulate::SimulatedHost, telemetry::Own};
use muster_proto::{
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::{Clock, SystemClock, Timestamp, duration_millis},
    v1,
};
use tokio::time::Instant;

/// Clocks that follow tokio's, which may be virtual, and jump when they are told to.
pub(crate) struct Jumping {
    began: Instant,
    /// What the clocks showed then.
    wall_ms: i64,
    boottime_ms: i64,
    jumped_ms: AtomicI64,
    slept_ms: AtomicI64,
}

impl Jumping {
    /// Clocks that show what the machine's show.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            wall_ms: SystemClock.now().as_millis(),
            boottime_ms: SystemClock.boottime_ms(),
            jumped_ms: AtomicI64::new(0),
            slept_ms: AtomicI64::new(0),
        }
    }

    /// The wall clock jumps.
    pub(crate) fn jump(&self, ms: i64) {
        self.jumped_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// The host was asleep until now: its clocks went on and its timers did not.
    pub(crate) fn sleep(&self, ms: i64) {
        self.slept_ms.fetch_add(ms, Ordering::SeqCst);
    }

    fn passed_ms(&self) -> i64 {
        duration_millis(self.began.elapsed()) + self.slept_ms.load(Ordering::SeqCst)
    }
}

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        let jumped = self.jumped_ms.load(Ordering::SeqCst);
        Timestamp::from_millis(self.wall_ms + self.passed_ms() + jumped)
    }
}

impl HostClock for Jumping {
    fn boottime_ms(&self) -> i64 {
        self.boottime_ms + self.passed_ms()
    }
}

/// A host whose series are new ones in each sample.
pub(crate) struct Restless {
    /// Gives the facts.
    host: SimulatedHost,
    each: u32,
    made: u64,
    table: Table,
}

impl Restless {
    /// So many series in each sample.
    pub(crate) fn new(host: SimulatedHost, each: u32) -> Self {
        let family = Family {
            name: "request_total".to_owned(),
            kind: Kind::Counter,
            scale: Scale::One,
            labels: vec!["id".to_owned()],
        };
        Self {
            host,
            each,
            made: 0,
            table: Table {
                families: vec![family],
                ..Table::default()
            },
        }
    }
}

impl Source for Restless {
    fn facts(&self) -> v1::HostFacts {
        self.host.facts()
    }

    fn boot_id(&self) -> [u8; 16] {
        self.host.boot_id()
    }

    fn sample(&mut self, _tick: Timestamp, _own: &Own) -> (&Table, Vec<v1::Event>) {
        let table = &mut self.table;
        table.series.clear();
        for _ in 0..self.each {
            self.made += 1;
            table.series.push(Series {
                family: 0,
                labels: vec![format!("{:012}", self.made)],
            });
        }
        table.raw = vec![Raw::unsigned(self.made); table.series.len()];
        table.present = vec![true; table.series.len()];
        table.generation += 1;
        (table, Vec::new())
    }
}
