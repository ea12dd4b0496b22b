//! What a fleet looks like at a glance: each host in a few words, and their sums.

use std::collections::BTreeMap;

use muster_proto::{id::HostId, time::Timestamp, v1};

use super::{ask::count, rows};
use crate::fleet::{Derived, HostState, Unit, UnitState};

/// Entries of "worst now".
const WORST: usize = 8;
/// From which share on something is worth looking at: CPU busy, memory, filesystem, disk busy, stalled.
const WORTH: [f64; 5] = [0.80, 0.90, 0.90, 0.90, 0.20];

/// What the summary takes from a host.
pub(super) struct Glance {
    pub(super) id: HostId,
    pub(super) state: v1::HostState,
    pub(super) version: String,
    pub(super) last_seen: Option<Timestamp>,
    pub(super) worst: Option<v1::WorstEntry>,
    /// Whether its services are known now.
    pub(super) has_units: bool,
    pub(super) failing: HostUnits,
    /// Frames refused or reported lost, by its books.
    pub(super) dropped: u64,
    /// Alerts of its score and weeks with one.
    pub(super) told: (f64, f64),
}

impl Glance {
    pub(super) fn of(host: &HostState) -> Self {
        let units = rows::units(host);
        let books = host.books();
        let failing = units.unwrap_or_default().iter();
        let failing = failing.filter(|unit| unit.is_failing());
        Self {
            id: host.id(),
            state: rows::state(host.liveness()).0,
            version: host.facts().agent_version.clone(),
            last_seen: host.last_seen(),
            worst: rows::is_current(host)
                .then(|| worst_of(host.name(), host.derived()))
                .flatten(),
            has_units: units.is_some(),
            dropped: books.rejected + books.lost,
            told: host.detection().told(),
            failing: HostUnits {
                host: host.name().to_owned(),
                units: failing.cloned().collect(),
            },
        }
    }
}

/// Units of one host.
pub(super) struct HostUnits {
    pub(super) host: String,
    pub(super) units: Vec<Unit>,
}

/// What most deserves a look on a host, if anything does.
pub(super) fn worst_of(host: &str, derived: &Derived) -> Option<v1::WorstEntry> {
    let values = [
        derived.cpu_ratio,
        derived.memory_ratio,
        derived.disk_ratio,
        derived.io_ratio,
        derived.pressure_ratio,
    ];
    let (at, value) = values
        .iter()
        .enumerate()
        .filter_map(|(at, value)| {
            value
                .filter(|value| *value >= WORTH[at])
                .map(|value| (at, value))
        })
        .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let what = match at {
        0 => "cpu".to_owned(),
        1 => "memory".to_owned(),
        2 => format!("disk {}", derived.disk_mountpoint),
        3 => "io busy".to_owned(),
        _ => "stalled".to_owned(),
    };
    Some(v1::WorstEntry {
        host: host.to_owned(),
        what,
        value,
    })
}

/// The worst of them, worst first.
pub(super) fn worst(mut worst: Vec<v1::WorstEntry>) -> Vec<v1::WorstEntry> {
    worst.sort_by(|a, b| {
        b.value
            .total_cmp(&a.value)
            .then_with(|| a.host.cmp(&b.host))
    });
    worst.truncate(WORST);
    worst
}

/// How many of these are in each state, every state present.
pub(super) fn state_counts(
    states: impl Iterator<Item = v1::HostState> + Clone,
) -> Vec<v1::StateCount> {
    [
        v1::HostState::Joined,
        v1::HostState::Live,
        v1::HostState::Late,
        v1::HostState::Silent,
    ]
    .into_iter()
    .map(|state| v1::StateCount {
        state: state.into(),
        hosts: count(states.clone().filter(|one| *one == state).count()),
    })
    .collect()
}

/// Hosts by version of their agent, the most frequent first.
pub(super) fn version_counts<'a>(versions: impl Iterator<Item = &'a str>) -> Vec<v1::VersionCount> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for version in versions.filter(|version| !version.is_empty()) {
        *counts.entry(version).or_default() += 1;
    }
    let mut versions: Vec<v1::VersionCount> = counts
        .into_iter()
        .map(|(version, hosts)| v1::VersionCount {
            version: version.to_owned(),
            hosts,
        })
        .collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version.hosts));
    versions
}

/// Units of many hosts as one group for each name and state: failing first, then the most widespread.
pub(super) fn group_services(hosts: impl Iterator<Item = HostUnits>) -> Vec<v1::ServiceGroup> {
    let mut groups: BTreeMap<(u8, String), v1::ServiceGroup> = BTreeMap::new();
    for HostUnits { host, units } in hosts {
        for unit in units {
            let state = unit.word();
            let group = groups
                .entry((rank(&unit), unit.name.clone()))
                .or_insert_with(|| v1::ServiceGroup {
                    name: unit.name,
                    state: state.to_owned(),
                    ..v1::ServiceGroup::default()
                });
            group.hosts.push(host.clone());
            group.restarts += unit.restarts;
            if let Some(since) = unit.since.map(Timestamp::as_millis) {
                group.since_ms = Some(group.since_ms.map_or(since, |first| first.min(since)));
            }
        }
    }
    let mut groups: Vec<((u8, String), v1::ServiceGroup)> = groups.into_iter().collect();
    groups.sort_by(|((a, a_name), a_group), ((b, b_name), b_group)| {
        let most = b_group.hosts.len().cmp(&a_group.hosts.len());
        a.cmp(b).then(most).then_with(|| a_name.cmp(b_name))
    });
    groups
        .into_iter()
        .map(|(_, mut group)| {
            group.hosts.sort();
            group
        })
        .collect()
}

fn rank(unit: &Unit) -> u8 {
    match unit.state {
        UnitState::Failed => 0,
        _ if unit.is_crash_loop() => 1,
        UnitState::Activating => 2,
        UnitState::Deactivating => 3,
        UnitState::Active => 4,
        UnitState::Inactive => 5,
    }
}

/// Alerts of host scores a host-week, of hosts' alerts and weeks; of a few hours no rate can be told.
pub(super) fn told_rate(told: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (alerts, weeks) = told.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    (weeks >= 1.0).then(|| alerts / weeks)
}
