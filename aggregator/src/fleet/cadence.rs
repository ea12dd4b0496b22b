//! Counters that the agent reads less often than it ticks.
//!
//! What is read every 5 s stands still for four ticks of a second and then grows by five seconds' worth. A rate over the
//! tick would be nothing four times and five times too much once, and no rule could say that something went on for ten
//! minutes. So such a rate is that of the time between two readings, and holds until the next.
//!
//! A frame does not say what was read for it, but it shows: a value of the collector changed, or its time has come and
//! nothing has changed, which is how a counter that rests is read. When something changes earlier than it can have been
//! read again, the reading before was none, and the time between two readings is the collector's own.

use std::time::Duration;

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Collectors that rest between two readings, with the beginning of their counters' names and the time from one to the
/// next in seconds. A test holds them against the agent's own.
const SLOW: &[(&str, &str, u64)] = &[
    ("vmstat", "node_vmstat_", 5),
    ("netclass", "node_network_carrier_", 10),
    ("netstat", "node_netstat_", 10),
    ("softnet", "node_softnet_", 10),
    ("schedstat", "node_schedstat_", 10),
    ("rapl", "node_rapl_", 10),
    ("timex", "node_timex_", 10),
    ("edac", "node_edac_", 60),
    ("cpuinfo", "node_cpu_core_throttles_", 60),
    ("cpuinfo", "node_cpu_package_throttles_", 60),
    ("infiniband", "node_infiniband_", 30),
    ("fibrechannel", "node_fibrechannel_", 30),
    ("ipvs", "node_ipvs_", 30),
    ("nfs", "node_nfs_", 30),
    ("nfsd", "node_nfsd_", 30),
    ("tapestats", "node_tape_", 30),
    ("unit_usage", "muster_host_systemd_unit_cpu_", 30),
    ("xfs", "node_xfs_", 30),
    ("zfs", "node_zfs_", 30),
];

/// The agent's ticks may be early by so much.
const SLACK: Duration = Duration::from_millis(250);

/// A collector that is slower than the fastest ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence(u8);

impl Cadence {
    /// That of a family; `None` of one that is read at each tick.
    #[must_use]
    pub fn of(family: &str) -> Option<Self> {
        let slow = (0..).zip(SLOW);
        let mut named = slow.filter(|(_, (_, start, _))| family.starts_with(start));
        named.next().map(|(number, _)| Self(number))
    }

    fn number(self) -> usize {
        usize::from(self.0)
    }
}

/// When the slow collectors of a host ran last, and what their counters grew by since the run before.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Readings {
    /// By collector.
    last: Vec<Option<Timestamp>>,
    /// Of the slow series in their order; only while it is on its way to a checkpoint or from there.
    pub(crate) rates: Vec<f32>,
}

/// What a slow collector did at a tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// It ran: what its counters show is of now.
    pub(crate) ran: bool,
    /// Time since it ran before, where that is known.
    pub(crate) since: Option<Duration>,
}

/// What all slow collectors did at a tick.
#[derive(Debug, Default)]
pub(crate) struct Round([Reading; SLOW.len()]);

impl Round {
    /// What one did.
    pub(crate) fn of(&self, cadence: Cadence) -> Reading {
        self.0.get(cadence.number()).copied().unwrap_or_default()
    }
}

/// The collectors that show a value that is new.
#[derive(Debug, Default)]
pub(crate) struct Changed(u32);

impl Changed {
    pub(crate) fn note(&mut self, cadence: Cadence) {
        self.0 |= 1 << cadence.0;
    }
}

impl Readings {
    /// Takes in a tick.
    pub(crate) fn step(&mut self, tick: Timestamp, changed: &Changed) -> Round {
        self.last.resize(SLOW.len(), None);
        let mut round = Round::default();
        let slots = self.last.iter_mut().zip(SLOW).zip(&mut round.0);
        for (number, ((last, (_, _, seconds)), reading)) in (0..).zip(slots) {
            let every = Duration::from_secs(*seconds);
            let passed = last.map(|last| tick.since(last));
            let due = passed.is_none_or(|passed| passed + SLACK >= every);
            if due || changed.0 & (1 << number) != 0 {
                *last = Some(tick);
                *reading = Reading {
                    ran: true,
                    since: passed.map(|passed| passed.max(every)),
                };
            }
        }
        round
    }

    /// The clock by which it was noted was wrong.
    pub(crate) fn forget_time(&mut self) {
        self.last.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_as_slow_as_the_agent_says() {
        let agent = muster_agent::config::Config::default();
        let described = muster_agent::collect::describe(&agent.collect);
        assert!(SLOW.len() <= 32, "they are bits of a number");
        for (name, start, seconds) in SLOW {
            let of_name = |one: &&muster_agent::collect::CollectorInfo| one.about.name == *name;
            let found = described.iter().find(of_name);
            let every = found.map(|one| one.about.every);
            assert_eq!(every, Some(Duration::from_secs(*seconds)), "{name}");
            let others = SLOW.iter().filter(|(_, other, _)| other.starts_with(start));
            assert_eq!(others.count(), 1, "{start} begins another's names");
        }
        assert_eq!(Cadence::of("node_vmstat_pgfault"), Some(Cadence(0)));
        assert_eq!(Cadence::of("node_network_receive_bytes_total"), None);
    }

    #[test]
    fn a_collector_ran_when_it_shows_or_its_time_has_come() {
        let vmstat = Cadence::of("node_vmstat_pgfault").expect("it is slow");
        let mut readings = Readings::default();
        let mut step = |second: u64, shows: bool| {
            let mut changed = Changed::default();
            if shows {
                changed.note(vmstat);
            }
            let tick = Timestamp::from_millis(0).plus(Duration::from_secs(second));
            let reading = readings.step(tick, &changed).of(vmstat);
            (reading.ran, reading.since.map(|since| since.as_secs()))
        };
        for (second, shows, expected) in [
            (100, true, (true, None)),
            (101, false, (false, None)),
            (104, false, (false, None)),
            (105, true, (true, Some(5))),
            (106, false, (false, None)),
            // Nothing grew.
            (110, false, (true, Some(5))),
            (114, false, (false, None)),
            // Ticks were lost, and with them when it ran.
            (118, true, (true, Some(8))),
            (120, true, (true, Some(5))),
            (124, false, (false, None)),
            (125, true, (true, Some(5))),
            // A host that ticks more slowly shows each reading.
            (185, true, (true, Some(60))),
            (245, false, (true, Some(60))),
        ] {
            assert_eq!(step(second, shows), expected, "at {second}");
        }
    }
}
