//! Three racks of hosts in virtual time: real frames into real host states, judged twice a second.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use muster_aggregator::{
    detect::{DetectConfig, Engine},
    fleet::{
        Enrolled, HostState, Liveness,
        host::{FrameIn, Lane, Receiving, Session, Surroundings},
        names::Names,
        neighbours::Neighbourhood,
        silence::{Ended, Refused, Silence},
    },
};
use muster_proto::{
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::Timestamp,
    v1,
};
use tokio::time::Instant;

pub(crate) const RACKS: usize = 3;
pub(crate) const PER_RACK: usize = 8;
/// A moment of the fleet's wall clock.
const START_MS: i64 = 1_700_000_000_000;
const STEP: Duration = Duration::from_millis(500);

/// A host as it is, which the aggregator does not see.
pub(crate) struct Machine {
    pub(crate) boot: u8,
    pub(crate) life: u64,
    /// Highest number its agent has given.
    produced: u64,
    encoder: Encoder,
    memory_stalled_ms: i64,
    /// Its agent runs.
    pub(crate) running: bool,
    /// What it sends arrives.
    pub(crate) reachable: bool,
    /// A stream of it is open, as the aggregator sees it.
    streaming: bool,
    /// Share of time its tasks wait for memory.
    pub(crate) strain: f64,
    /// Its clock minus the true one.
    pub(crate) clock_ms: i64,
    /// Where in the interval it ticks.
    phase: Duration,
}

pub(crate) struct Fleet {
    start: Instant,
    pub(crate) now: Duration,
    interval: Duration,
    pub(crate) machines: Vec<Machine>,
    hosts: Vec<HostState>,
    neighbours: Neighbourhood,
    listening_since: Duration,
    /// What was last said of a host while it was silent.
    pub(crate) presumed: Vec<Option<Silence>>,
    names: Names,
    changes: Changes,
    engine: Engine,
}

impl Fleet {
    pub(crate) fn new(interval: Duration, random: &mut fastrand::Rng) -> Self {
        let count = RACKS * PER_RACK;
        let machines = (0..count).map(|_| Machine {
            boot: 1,
            life: random.u64(1..),
            produced: 0,
            encoder: Encoder::new(),
            memory_stalled_ms: 0,
            running: true,
            reachable: true,
            streaming: false,
            strain: 0.0,
            clock_ms: 0,
            phase: interval.mul_f64(random.f64()),
        });
        let mut fleet = Self {
            start: Instant::now(),
            now: Duration::ZERO,
            interval,
            machines: machines.collect(),
            hosts: (0..count).map(host).collect(),
            neighbours: Neighbourhood::default(),
            listening_since: Duration::ZERO,
            presumed: vec![None; count],
            names: Names::default(),
            changes: Changes::default(),
            engine: Engine::new(&DetectConfig::default()),
        };
        for at in 0..count {
            fleet.attach(at);
        }
        fleet.pass(interval * 20);
        fleet
    }

    /// Lets time pass: ticks, frames, judgements.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            let before = self.now;
            self.now += STEP;
            for at in 0..self.machines.len() {
                let phase = self.machines[at].phase;
                let ticks = |now: Duration| {
                    (now + self.interval - phase).as_millis() / self.interval.as_millis()
                };
                if ticks(self.now) > ticks(before) {
                    self.tick(at);
                }
            }
            self.judge();
        }
    }

    /// Nobody judges and nobody is heard for so long; then the shard finds out that it stood still.
    pub(crate) fn stall(&mut self, time: Duration) {
        self.now += time;
        self.listening_since = self.now;
        self.judge();
    }

    fn tick(&mut self, at: usize) {
        let interval_ms = i64::try_from(self.interval.as_millis()).unwrap_or(i64::MAX);
        let tick = self.wall().plus(Duration::ZERO);
        let machine = &mut self.machines[at];
        if !machine.running {
            return;
        }
        machine.produced += 1;
        #[expect(clippy::cast_possible_truncation, reason = "a share of an interval")]
        {
            machine.memory_stalled_ms += (machine.strain * interval_ms as f64) as i64;
        }
        if !machine.reachable {
            return;
        }
        if !machine.streaming {
            self.attach(at);
        }
        let machine = &mut self.machines[at];
        let mut payload = Vec::new();
        let table = table(machine.memory_stalled_ms);
        // What was not sent is not acknowledged, so a key frame follows a gap.
        machine.encoder.encode(&table, &[], true, &mut payload);
        let frame = FrameIn {
            incarnation: Incarnation(machine.life),
            seq: machine.produced,
            lane: Lane::Live,
            tick: Timestamp::from_millis(tick.as_millis() + machine.clock_ms),
            received: tick,
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        };
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: 1000,
            now: self.start + self.now,
            replayed: false,
        };
        let host = &mut self.hosts[at];
        host.receive(&frame, &mut context, &mut Vec::new());
        host.stored(frame.incarnation, frame.seq);
    }

    /// The agent connects and is let in.
    pub(crate) fn attach(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        machine.streaming = true;
        let session = Session {
            incarnation: Incarnation(machine.life),
            session: machine.life,
            boot_id: vec![machine.boot; 16],
            interval: self.interval,
            clock_offset_ms: machine.clock_ms,
        };
        let host = &mut self.hosts[at];
        host.begin_session(session);
        host.set_connected(true);
        host.greeted(self.start + self.now);
        host.set_address(Some(IpAddr::from([10, 0, 0, 1])));
    }

    /// The aggregator sees the stream end.
    pub(crate) fn end(&mut self, at: usize, how: Ended) {
        let wall = self.wall();
        self.machines[at].streaming = false;
        let host = &mut self.hosts[at];
        host.ended(how, wall);
        host.set_connected(false);
    }

    /// The keepalive finds nobody: from our side the stream ends within half a minute.
    pub(crate) fn let_go(&mut self, hit: &[usize]) {
        self.pass(Duration::from_secs(25));
        for &at in hit {
            self.end(at, Ended::ByUs);
        }
    }

    pub(crate) fn goodbye(&mut self, at: usize, reason: v1::FinReason) {
        let machine = &mut self.machines[at];
        machine.running = false;
        let (life, produced) = (Incarnation(machine.life), machine.produced);
        self.hosts[at].fin(life, produced, reason);
        self.end(at, Ended::Closed);
    }

    pub(crate) fn refused(&mut self, at: usize, why: Refused) {
        let wall = self.wall();
        self.hosts[at].refused(why, wall);
    }

    /// Another life of the agent; on another boot if it says so.
    pub(crate) fn start(&mut self, at: usize, new_boot: bool) {
        let machine = &mut self.machines[at];
        machine.life += 1;
        machine.produced = 0;
        machine.boot += u8::from(new_boot);
        machine.running = true;
        machine.reachable = true;
        machine.streaming = false;
        machine.encoder = Encoder::new();
    }

    fn judge(&mut self) {
        let surroundings = Surroundings {
            now: self.start + self.now,
            wall: self.wall(),
            listening_since: self.start + self.listening_since,
            hosts: self.hosts.len() as u64,
            neighbours: Some(&self.neighbours),
        };
        for (host, presumed) in self.hosts.iter_mut().zip(&mut self.presumed) {
            if let Some(Liveness::Silent(cause)) = host.judge(&surroundings) {
                *presumed = Some(cause);
            }
        }
    }

    /// What its return told, if it was silent and is back.
    pub(crate) fn concluded(&self, at: usize) -> Option<Silence> {
        self.hosts[at].trace().past.map(|past| past.cause)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(START_MS).plus(self.now)
    }
}

fn host(number: usize) -> HostState {
    let rack = format!("r{}", number / PER_RACK);
    let byte = u8::try_from(number).unwrap_or(u8::MAX);
    let who = Enrolled {
        id: HostId::from_bytes([byte; 16]),
        name: format!("host-{number:02}"),
        labels: BTreeMap::from([
            ("rack".to_owned(), rack),
            ("site".to_owned(), "fra".to_owned()),
        ]),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    };
    HostState::new(who, Timestamp::from_millis(START_MS))
}

/// What a host tells of its memory.
fn table(memory_stalled_ms: i64) -> Table {
    let family = |name: &str, kind, scale| Family {
        name: name.into(),
        kind,
        scale,
        labels: Vec::new(),
    };
    Table {
        families: vec![
            family(
                "node_pressure_memory_waiting_seconds_total",
                Kind::Counter,
                Scale::Milli,
            ),
            family("node_memory_MemTotal_bytes", Kind::Gauge, Scale::One),
            family("node_memory_MemAvailable_bytes", Kind::Gauge, Scale::One),
        ],
        series: (0..3)
            .map(|family| Series {
                family,
                labels: Vec::new(),
            })
            .collect(),
        raw: vec![
            Raw::int(memory_stalled_ms),
            Raw::int(64 << 30),
            Raw::int(20 << 30),
        ],
        present: vec![true; 3],
        ..Table::default()
    }
}
