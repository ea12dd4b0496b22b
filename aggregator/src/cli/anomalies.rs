//! `muster anomalies`: hosts that do not behave as they usually do, and what moved.

use muster_proto::{time::Timestamp, v1};
use serde_json::json;

use super::{
    hosts::anomaly,
    output::{Column, List, Shown, moment, number},
    services::hosts,
    text::{Text, Tone},
    units::{bits_per_second, bytes, percent_plain},
};

/// Causes shown in a table; JSON has all.
const SHOWN_CAUSES: usize = 3;

/// Every column of an anomaly.
pub static COLUMNS: &[Column<v1::Anomaly>] = &[
    Column {
        key: "host",
        title: "HOST",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.host),
        value: |row| json!(row.host),
    },
    Column {
        key: "score",
        title: "SCORE",
        shown: Shown::Always,
        right: true,
        human: |row, _| anomaly(Some(row.score)),
        value: |row| number(Some(row.score)),
    },
    Column {
        key: "since",
        title: "SINCE",
        shown: Shown::Always,
        right: true,
        human: |row, view| Text::plain(view.when(Timestamp::from_millis(row.since_ms))),
        value: |row| moment(Some(row.since_ms)),
    },
    Column {
        key: "causes",
        title: "WHAT MOVED",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            // Of those that moved most, what moved first comes first.
            let mut shown: Vec<&v1::AnomalyCause> = row.causes.iter().take(SHOWN_CAUSES).collect();
            shown.sort_by_key(|cause| cause.since_ms);
            let causes: Vec<String> = shown.into_iter().map(cause).collect();
            Text::plain(causes.join(", "))
        },
        value: |row| {
            let cause = |cause: &v1::AnomalyCause| {
                json!({
                    "signal": cause.signal,
                    "observed": number(Some(cause.observed)),
                    "usual": number(Some(cause.usual)),
                    "excess": number(Some(cause.excess)),
                    "since": moment(Some(cause.since_ms)),
                })
            };
            row.causes.iter().map(cause).collect()
        },
    },
];

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ListAnomaliesResponse) -> List<v1::Anomaly> {
    let learning = response.hosts_learning;
    let mut footer = vec![Text::toned(Tone::Dim, kept(&response))];
    footer.extend(response.group_shifts.iter().map(shift));
    if learning > 0 {
        footer.push(Text::toned(
            Tone::Dim,
            format!("{} still learning what is usual", hosts(learning)),
        ));
    }
    List {
        columns: COLUMNS,
        rows: response.anomalies,
        name: |row| row.host.clone(),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain("no host is off its usual range"),
    }
}

/// `role=web shifted: cpu 34% to 61%, 38 hosts, since 2026-11-21T14:02:00Z`
fn shift(shift: &v1::GroupShift) -> Text {
    let (tone, when) = match shift.until_ms {
        None => (Tone::Warn, String::new()),
        Some(until) => (
            Tone::Dim,
            format!(" until {}", Timestamp::from_millis(until)),
        ),
    };
    Text::toned(
        tone,
        format!(
            "{} shifted: {} {} to {}, {}, since {}{when}",
            shift.group,
            shift.figure,
            percent_plain(shift.before),
            percent_plain(shift.farthest),
            hosts(shift.hosts),
            Timestamp::from_millis(shift.since_ms),
        ),
    )
}

/// `budget: 1 false alert a host-week; 1.3 a host-week were listed of late, true ones included`
fn kept(response: &v1::ListAnomaliesResponse) -> String {
    let budget = figure(response.budget_per_host_week);
    let alerts = if budget == "1" { "alert" } else { "alerts" };
    let told = response.told_per_host_week.map_or_else(
        || "too early to say what is kept to".to_owned(),
        |told| format!("{told:.1} a host-week were listed of late, true ones included"),
    );
    format!("budget: {budget} false {alerts} a host-week; {told}")
}

/// Two digits after the point, and none that say nothing.
pub(super) fn figure(value: f64) -> String {
    let digits = format!("{value:.2}");
    digits
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

/// `cpu busy 97% (usual 31%)`: a signal by its unit, which its name ends with.
fn cause(cause: &v1::AnomalyCause) -> String {
    let value = |value: f64| {
        let signal = cause.signal.as_str();
        if signal.contains("_ratio") {
            percent_plain(value)
        } else if signal.starts_with("network_") && signal.ends_with("_bytes_per_second") {
            bits_per_second(value)
        } else if signal.ends_with("_bytes_per_second") {
            format!("{}/s", bytes(value))
        } else if signal.ends_with("_bytes") {
            bytes(value)
        } else if signal.ends_with("_per_second") {
            format!("{value:.0}/s")
        } else {
            format!("{value:.1}")
        }
    };
    format!(
        "{} {} (usual {})",
        words(&cause.signal),
        value(cause.observed),
        value(cause.usual)
    )
}

/// A signal's name without its unit: `pressure memory`.
#[must_use]
pub fn words(signal: &str) -> String {
    signal
        .replace("_bytes_per_second", "")
        .replace("_per_second", "")
        .replace("_ratio", "")
        .replace('_', " ")
}
