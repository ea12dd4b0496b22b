//! What made-up hosts have that real ones have only on bad days: clocks that jump, and series without end.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU32, Ordering},
};

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

/// A host that can be told to have more series than it has by itself.
pub(crate) struct Wider {
    host: SimulatedHost,
    more: Arc<AtomicU32>,
    table: Table,
    /// What the table's series were made of: the host's generation and number of series, and how many more.
    of: Option<(u64, usize, u32)>,
}

impl Wider {
    /// Has so many more as `more` says at a tick.
    pub(crate) fn new(host: SimulatedHost, more: Arc<AtomicU32>) -> Self {
        Self {
            host,
            more,
            table: Table::default(),
            of: None,
        }
    }
}

/// The host's series and then those beyond.
fn widen(wide: &mut Table, host: &Table, more: u32) {
    wide.families.clone_from(&host.families);
    wide.series.clone_from(&host.series);
    let family = u32::try_from(wide.families.len()).unwrap_or(u32::MAX);
    wide.families.push(Family {
        name: "queue_length".to_owned(),
        kind: Kind::Gauge,
        scale: Scale::One,
        labels: vec!["queue".to_owned()],
    });
    wide.series.extend((0..more).map(|number| Series {
        family,
        labels: vec![number.to_string()],
    }));
    wide.generation += 1;
}

impl Source for Wider {
    fn facts(&self) -> v1::HostFacts {
        self.host.facts()
    }

    fn boot_id(&self) -> [u8; 16] {
        self.host.boot_id()
    }

    fn sample(&mut self, tick: Timestamp, own: &Own) -> (&Table, Vec<v1::Event>) {
        let more = self.more.load(Ordering::Relaxed);
        let (host, events) = self.host.sample(tick, own);
        if more == 0 {
            return (host, events);
        }
        let wide = &mut self.table;
        let of = (host.generation, host.series.len(), more);
        if self.of != Some(of) {
            widen(wide, host, more);
            self.of = Some(of);
        }
        let second = tick.as_millis() / 1000;
        let beyond = (0..i64::from(more)).map(|number| Raw::int((second + number) % 97));
        wide.raw.clone_from(&host.raw);
        wide.raw.extend(beyond);
        wide.present.clone_from(&host.present);
        wide.present.resize(wide.series.len(), true);
        (wide, events)
    }
}
