//! The states of units, of those units alone that matter.
//!
//! A host has hundreds of units and a series for each of them and each state. Of a unit that never failed and is not
//! followed nothing is ever said, so what is read first is who failed, and all states of these alone.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::id::HostId;

use super::{Reading, Unread};
use crate::{
    fleet::derive::UNIT_METRICS,
    history::{LabelMatch, SampleQuery},
};

/// The rule that looks at units.
pub(super) const RULE: &str = "unit_failed";

/// Hosts of which it is read together who failed: of some hundred units each, some hundred thousand points.
const HOSTS_AT_ONCE: usize = 4;

/// Reads the states of the units that failed or are followed, by host, and when each host named its units.
pub(super) fn read(
    reading: &mut Reading<'_>,
    query: &SampleQuery,
    followed: &BTreeMap<HostId, BTreeSet<String>>,
) -> Result<(), Unread> {
    let mut wanted = followed.clone();
    let hosts: Vec<HostId> = followed.keys().copied().collect();
    for hosts in hosts.chunks(HOSTS_AT_ONCE) {
        let query = of_label(query, hosts.to_vec(), UNIT_METRICS[0], "state", ["failed"]);
        let mut named: BTreeMap<HostId, BTreeSet<i64>> = BTreeMap::new();
        reading.metric(UNIT_METRICS[0], &query, &mut |series| {
            let ticks = named.entry(series.host).or_default();
            ticks.extend(series.points.iter().map(|point| point.at));
            let failed = series.points.iter().any(|point| point.last > 0.0);
            if let (true, Some(name)) = (failed, series.name.labels.first()) {
                let wanted = wanted.entry(series.host).or_default();
                wanted.insert(name.clone());
            }
        })?;
        reading.found.named.extend(named);
    }
    for (host, names) in wanted.iter().filter(|(_, names)| !names.is_empty()) {
        for metric in UNIT_METRICS {
            let names = names.iter().map(String::as_str);
            let query = of_label(query, vec![*host], metric, "name", names);
            let mut read = Vec::new();
            reading.metric(metric, &query, &mut |series| read.push(series))?;
            let of = reading.found.series.entry(*host).or_default();
            of.append(&mut read);
        }
    }
    Ok(())
}

/// The question for the series of a metric of which one label is one of these.
fn of_label<'a>(
    query: &SampleQuery,
    hosts: Vec<HostId>,
    metric: &str,
    label: &str,
    values: impl IntoIterator<Item = &'a str>,
) -> SampleQuery {
    let one = LabelMatch {
        label: label.to_owned(),
        patterns: values.into_iter().map(str::to_owned).collect(),
        negated: false,
    };
    SampleQuery {
        hosts,
        metric: Some(metric.to_owned()),
        labels: vec![one],
        ..query.clone()
    }
}
