//! The states of units, of those units alone that matter.
//!
//! A host has hundreds of units and a series for each of them and each state. Of a unit that never failed and is not
//! followed nothing is ever said, so what is read first is who failed, and all states of these alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use muster_proto::id::HostId;

use super::{RejudgeError, Report, read_metric};
use crate::{
    fleet::derive::UNIT_METRICS,
    history::{HostSeries, LabelMatch, SampleQuery, SampleStore},
};

/// The rule that looks at units.
pub(super) const RULE: &str = "unit_failed";

/// Hosts of which it is read together who failed: of some hundred units each, some hundred thousand points.
const HOSTS_AT_ONCE: usize = 4;

/// Reads the states of the units that failed or are followed, by host, into what was read; when each host named its
/// units.
pub(super) fn read(
    store: &dyn SampleStore,
    query: &SampleQuery,
    followed: &BTreeMap<HostId, BTreeSet<String>>,
    into: &mut HashMap<HostId, Vec<HostSeries>>,
    report: &mut Report,
) -> Result<HashMap<HostId, BTreeSet<i64>>, RejudgeError> {
    let mut named: HashMap<HostId, BTreeSet<i64>> = HashMap::new();
    let mut wanted = followed.clone();
    let hosts: Vec<HostId> = followed.keys().copied().collect();
    for hosts in hosts.chunks(HOSTS_AT_ONCE) {
        let query = of_label(query, hosts.to_vec(), UNIT_METRICS[0], "state", ["failed"]);
        read_metric(store, &query, report, &mut |series| {
            let ticks = named.entry(series.host).or_default();
            ticks.extend(series.points.iter().map(|point| point.at));
            let failed = series.points.iter().any(|point| point.last > 0.0);
            if let (true, Some(name)) = (failed, series.name.labels.first()) {
                let wanted = wanted.entry(series.host).or_default();
                wanted.insert(name.clone());
            }
        })?;
    }
    for (host, names) in wanted.iter().filter(|(_, names)| !names.is_empty()) {
        for metric in UNIT_METRICS {
            let names = names.iter().map(String::as_str);
            let query = of_label(query, vec![*host], metric, "name", names);
            read_metric(store, &query, report, &mut |series| {
                into.entry(*host).or_default().push(series);
            })?;
        }
    }
    Ok(named)
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
