//! `muster`: the fleet on one screen.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::{time::Timestamp, v1};
use serde_json::{Value, json};

use super::{
    anomalies::figure,
    hosts::state_word,
    output::Detail,
    services::hosts,
    text::{Text, Tone},
    units::{percent_plain, rfc3339, short},
};
use crate::selector::pattern::fold;

/// Entries of a line that lists things.
const SHOWN: usize = 4;

/// The summary of an answer.
#[must_use]
pub fn detail(summary: v1::Summary) -> Detail {
    let item = item(&summary);
    let mut lines = lines(&summary, Some(summary.frames_dropped));
    lines.push(Text::toned(Tone::Dim, "next: ").and(next(&summary).join(" · ")));
    Detail {
        name: summary.fleet_name.clone(),
        item,
        lines,
        meta: summary.meta.unwrap_or_default(),
    }
}

/// The summary of an answer about a time that is past.
#[must_use]
pub fn detail_then(summary: v1::Summary) -> Detail {
    let mut item = item(&summary);
    if let Value::Object(item) = &mut item {
        for key in [
            "framesDropped",
            "mostDropped",
            "anomaliesPerHostWeek",
            "anomalyBudgetPerHostWeek",
        ] {
            item.insert(key.to_owned(), Value::Null);
        }
    }
    let mut lines = lines(&summary, None);
    let at = rfc3339(Timestamp::from_millis(
        summary.meta.as_ref().map_or(0, |meta| meta.as_of_ms),
    ));
    let next = next(&summary).into_iter();
    let next: Vec<String> = next.map(|next| format!("{next} --at {at}")).collect();
    lines.push(Text::toned(Tone::Dim, "next: ").and(next.join(" · ")));
    Detail {
        name: summary.fleet_name.clone(),
        item,
        lines,
        meta: summary.meta.unwrap_or_default(),
    }
}

fn lines(summary: &v1::Summary, dropped: Option<u64>) -> Vec<Text> {
    let mut lines = vec![fleet_line(summary), incident_line(summary, dropped)];
    if !summary.worst.is_empty() {
        lines.push(worst_line(&summary.worst));
    }
    lines.push(service_line(summary));
    lines.extend(anomaly_line(summary));
    lines
}

fn count(summary: &v1::Summary, state: v1::HostState) -> u32 {
    let of_state = |entry: &&v1::StateCount| entry.state() == state;
    summary
        .states
        .iter()
        .filter(of_state)
        .map(|entry| entry.hosts)
        .sum()
}

fn fleet_line(summary: &v1::Summary) -> Text {
    let total: u32 = summary.states.iter().map(|entry| entry.hosts).sum();
    let mut line = Text::toned(Tone::Strong, &summary.fleet_name)
        .and("  ")
        .and(hosts(total));
    let states = [
        (v1::HostState::Live, Tone::Good),
        (v1::HostState::Late, Tone::Warn),
        (v1::HostState::Silent, Tone::Bad),
        (v1::HostState::Joined, Tone::Plain),
    ];
    for (state, tone) in states {
        let hosts = count(summary, state);
        // Good news is always told, trouble only when there is some.
        if hosts > 0 || state == v1::HostState::Live {
            line = line
                .and("   ")
                .with(tone, format!("{hosts} {}", state_word(state)));
        }
    }
    let versions: Vec<String> = summary
        .agent_versions
        .iter()
        .take(SHOWN)
        .map(|version| format!("{} ({})", version.version, version.hosts))
        .collect();
    if !versions.is_empty() {
        line = line.with(Tone::Dim, format!("      agent {}", versions.join(", ")));
    }
    line
}

fn incident_line(summary: &v1::Summary, dropped: Option<u64>) -> Text {
    let counts = [
        (summary.incidents_critical, "critical", Tone::Bad),
        (summary.incidents_warning, "warning", Tone::Warn),
        (summary.incidents_info, "info", Tone::Plain),
    ];
    let open: u32 = counts.iter().map(|(count, _, _)| count).sum();
    let mut line = Text::plain("incidents   ");
    if open == 0 {
        line.push(Tone::Good, "none open");
    } else {
        line.push(Tone::Plain, format!("{open} open:"));
        let mut between = " ";
        for (count, word, tone) in counts.into_iter().filter(|(count, _, _)| *count > 0) {
            line = line.and(between).with(tone, format!("{count} {word}"));
            between = ", ";
        }
    }
    let age = summary.newest_sample_ms.map_or_else(
        || "no sample yet".to_owned(),
        |age| {
            let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
            format!("last sample {} ago", short(age))
        },
    );
    let line = line.with(Tone::Dim, format!("           {age}"));
    let Some(dropped) = dropped else { return line };
    let tone = if dropped > 0 { Tone::Warn } else { Tone::Dim };
    line.with(Tone::Dim, ", ")
        .with(tone, format!("{dropped} dropped"))
}

fn worst_line(worst: &[v1::WorstEntry]) -> Text {
    // Hosts with the same trouble stand together: the same words, the same percent.
    let mut groups: BTreeMap<(String, &str), (f64, Vec<&str>)> = BTreeMap::new();
    for entry in worst {
        let key = (percent_plain(entry.value), entry.what.as_str());
        let group = groups.entry(key).or_insert((entry.value, Vec::new()));
        group.1.push(&entry.host);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(_, (a, _)), (_, (b, _))| b.total_cmp(a));
    let mut line = Text::plain("worst now  ");
    for ((percent, what), (value, hosts)) in groups.into_iter().take(SHOWN) {
        let tone = if value >= 0.9 {
            Tone::Warn
        } else {
            Tone::Plain
        };
        line = line
            .and(" ")
            .with(Tone::Strong, fold(hosts))
            .and(format!(" {what} "))
            .with(tone, percent)
            .and("  ");
    }
    line
}

fn service_line(summary: &v1::Summary) -> Text {
    let failing = &summary.failing_services;
    let total: u32 = summary.states.iter().map(|entry| entry.hosts).sum();
    let without = summary.hosts_without_services;
    let mut line = Text::plain("services    ");
    // What is not known is not healthy.
    if without >= total {
        return line.with(Tone::Dim, "unknown: no host tells its services now");
    }
    let unknown = match without {
        0 => String::new(),
        without => format!(", {} unknown", hosts(without)),
    };
    if failing.is_empty() {
        let tone = if without > 0 { Tone::Plain } else { Tone::Good };
        return line.with(tone, "none failing").with(Tone::Dim, unknown);
    }
    line.push(Tone::Bad, format!("{} failing", failing.len()));
    let words: Vec<String> = failing
        .iter()
        .take(SHOWN)
        .map(|group| {
            let count = u32::try_from(group.hosts.len()).unwrap_or(u32::MAX);
            format!("{} ({})", group.name, hosts(count))
        })
        .collect();
    let more = failing.len().saturating_sub(SHOWN);
    line.push(Tone::Plain, format!(": {}", words.join(", ")));
    if more > 0 {
        line.push(Tone::Plain, format!(" and {more} more"));
    }
    line.with(Tone::Dim, unknown)
}

/// A budget that is not kept to is worth knowing: it counts true anomalies too, but half as many again are not chance.
const KEPT: f64 = 1.4;

/// How often hosts were listed as unusual, against the budget; nothing while it is too early to say.
fn anomaly_line(summary: &v1::Summary) -> Option<Text> {
    let told = summary.told_per_host_week?;
    let budget = summary.budget_per_host_week;
    let tone = if told > KEPT * budget {
        Tone::Warn
    } else {
        Tone::Plain
    };
    let line = Text::plain("anomalies   ").with(tone, format!("{told:.1} a host-week"));
    let words = format!(" listed of late, budget {} false ones", figure(budget));
    Some(line.with(Tone::Dim, words))
}

fn next(summary: &v1::Summary) -> Vec<&'static str> {
    let mut next = Vec::new();
    if summary.incidents_critical + summary.incidents_warning + summary.incidents_info > 0 {
        next.push("muster incidents");
    }
    if count(summary, v1::HostState::Silent) > 0 {
        next.push("muster hosts -l state=silent");
    }
    if !summary.failing_services.is_empty() {
        next.push("muster services --failed");
    }
    next.push("muster hosts");
    next.push("muster top");
    next.truncate(3);
    next
}

fn item(summary: &v1::Summary) -> Value {
    let states: serde_json::Map<String, Value> = [
        v1::HostState::Joined,
        v1::HostState::Live,
        v1::HostState::Late,
        v1::HostState::Silent,
    ]
    .into_iter()
    .map(|state| (state_word(state).to_owned(), json!(count(summary, state))))
    .collect();
    let versions = summary
        .agent_versions
        .iter()
        .map(|version| json!({"version": version.version, "hosts": version.hosts}));
    let worst = summary
        .worst
        .iter()
        .map(|entry| json!({"host": entry.host, "what": entry.what, "ratio": entry.value}));
    let failing = summary
        .failing_services
        .iter()
        .map(|group| json!({"service": group.name, "hosts": group.hosts}));
    let most = (summary.most_dropped > 0)
        .then(|| json!({"host": summary.most_dropped_host, "frames": summary.most_dropped}));
    json!({
        "fleet": summary.fleet_name,
        "hosts": states,
        "agentVersions": versions.collect::<Value>(),
        "openIncidents": {
            "critical": summary.incidents_critical,
            "warning": summary.incidents_warning,
            "info": summary.incidents_info,
        },
        "newestSampleAgeSeconds": summary.newest_sample_ms.map(seconds),
        "framesDropped": summary.frames_dropped,
        "worst": worst.collect::<Value>(),
        "failingServices": failing.collect::<Value>(),
        "hostsWithoutServices": summary.hosts_without_services,
        "mostDropped": most,
        "anomaliesPerHostWeek": summary.told_per_host_week,
        "anomalyBudgetPerHostWeek": summary.budget_per_host_week,
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an age in milliseconds is far below 2^53"
)]
fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}
