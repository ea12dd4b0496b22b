//! `muster hosts` and `muster top`: the fleet as a table.

use muster_proto::{id::HostId, time::Timestamp, v1};
use serde_json::{Value, json};

use crate::fleet::Silence;

use super::{
    failure::Failure,
    output::{Column, List, Shown, find, moment, number, snake},
    text::{Text, Tone},
    units::{View, bits_per_second, number as decimal, percent},
};

/// Every column of a host.
pub static COLUMNS: &[Column<v1::HostRow>] = &[
    column(
        "name",
        "NAME",
        Shown::Always,
        false,
        |row, _| Text::toned(Tone::Strong, &row.name),
        |row| json!(row.name),
    ),
    column(
        "state",
        "STATE",
        Shown::Always,
        false,
        |row, _| state_text(row),
        |row| json!(state_word(row.state())),
    ),
    column(
        "cpuRatio",
        "CPU",
        Shown::Always,
        true,
        |row, _| percent(row.cpu_ratio),
        |row| number(row.cpu_ratio),
    ),
    column(
        "memoryRatio",
        "MEM",
        Shown::Always,
        true,
        |row, _| percent(row.memory_ratio),
        |row| number(row.memory_ratio),
    ),
    column(
        "diskRatio",
        "DISK",
        Shown::Always,
        true,
        |row, _| percent(row.disk_ratio),
        |row| number(row.disk_ratio),
    ),
    column(
        "load1",
        "LOAD",
        Shown::Always,
        true,
        |row, _| decimal(row.load1, 1),
        |row| number(row.load1),
    ),
    column(
        "ioRatio",
        "IO",
        Shown::Wide,
        true,
        |row, _| percent(row.io_ratio),
        |row| number(row.io_ratio),
    ),
    column(
        "pressureRatio",
        "PSI",
        Shown::Wide,
        true,
        |row, _| percent(row.pressure_ratio),
        |row| number(row.pressure_ratio),
    ),
    column(
        "networkReceiveBytesPerSecond",
        "NET IN",
        Shown::Wide,
        true,
        |row, _| rate(row.network_receive_bytes_per_second),
        |row| number(row.network_receive_bytes_per_second),
    ),
    column(
        "networkTransmitBytesPerSecond",
        "NET OUT",
        Shown::Wide,
        true,
        |row, _| rate(row.network_transmit_bytes_per_second),
        |row| number(row.network_transmit_bytes_per_second),
    ),
    column(
        "services",
        "SERVICES",
        Shown::Always,
        true,
        |row, _| services(row),
        |row| json!(row.services),
    ),
    column(
        "servicesFailed",
        "FAILED",
        Shown::Pipe,
        true,
        |row, _| {
            row.services_failed
                .map_or_else(Text::unknown, |n| Text::plain(n.to_string()))
        },
        |row| json!(row.services_failed),
    ),
    column(
        "anomalyScore",
        "ANOMALY",
        Shown::Always,
        true,
        |row, _| anomaly(row.anomaly_score),
        |row| number(row.anomaly_score),
    ),
    column(
        "openIncidents",
        "INC",
        Shown::Wide,
        true,
        |row, _| match row.open_incidents {
            0 => Text::toned(Tone::Dim, "0"),
            open => Text::toned(Tone::Warn, open.to_string()),
        },
        |row| json!(row.open_incidents),
    ),
    column(
        "lastSeen",
        "SEEN",
        Shown::Always,
        true,
        |row, view| {
            row.last_seen_ms.map_or_else(Text::unknown, |at| {
                Text::plain(view.ago(Timestamp::from_millis(at)))
            })
        },
        |row| moment(row.last_seen_ms),
    ),
    column(
        "agentVersion",
        "AGENT",
        Shown::Wide,
        false,
        |row, _| word(&row.agent_version),
        |row| optional(&row.agent_version),
    ),
    column(
        "os",
        "OS",
        Shown::Wide,
        false,
        |row, _| word(&row.os),
        |row| optional(&row.os),
    ),
    column(
        "kernel",
        "KERNEL",
        Shown::Wide,
        false,
        |row, _| word(&row.kernel),
        |row| optional(&row.kernel),
    ),
    column(
        "labels",
        "LABELS",
        Shown::Wide,
        false,
        |row, _| word(&labels(row)),
        |row| json!(row.labels),
    ),
    column(
        "diskMountpoint",
        "MOUNT",
        Shown::Machine,
        false,
        |row, _| word(&row.disk_mountpoint),
        |row| optional(&row.disk_mountpoint),
    ),
    column(
        "stateSince",
        "SINCE",
        Shown::Machine,
        true,
        |row, view| Text::plain(view.when(Timestamp::from_millis(row.state_since_ms))),
        |row| moment(Some(row.state_since_ms)),
    ),
    column(
        "silenceCause",
        "CAUSE",
        Shown::Machine,
        false,
        |row, _| word(silence_word(row).unwrap_or("")),
        |row| json!(silence_word(row)),
    ),
    column(
        "hostId",
        "ID",
        Shown::Machine,
        false,
        |row, _| word(&id(row)),
        |row| optional(&id(row)),
    ),
    column(
        "intervalSeconds",
        "INTERVAL",
        Shown::Machine,
        true,
        |row, _| decimal(Some(f64::from(row.interval_ms) / 1000.0), 0),
        |row| json!(f64::from(row.interval_ms) / 1000.0),
    ),
    column(
        "series",
        "SERIES",
        Shown::Machine,
        true,
        |row, _| Text::plain(row.series.to_string()),
        |row| json!(row.series),
    ),
];

const fn column(
    key: &'static str,
    title: &'static str,
    shown: Shown,
    right: bool,
    human: fn(&v1::HostRow, &View) -> Text,
    value: fn(&v1::HostRow) -> Value,
) -> Column<v1::HostRow> {
    Column {
        key,
        title,
        shown,
        right,
        human,
        value,
    }
}

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ListHostsResponse, limit: Option<u32>) -> List<v1::HostRow> {
    let shown = response.hosts.len();
    let mut footer = Vec::new();
    if usize::try_from(response.matched).is_ok_and(|matched| matched > shown) {
        let limit = limit.map_or(String::new(), |limit| format!(" (-n {limit})"));
        footer.push(Text::toned(
            Tone::Dim,
            format!("{shown} of {} hosts{limit}", response.matched),
        ));
    }
    List {
        columns: COLUMNS,
        rows: response.hosts,
        name: |row| row.name.clone(),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain("no hosts match"),
    }
}

/// The order as the aggregator reads it, from a heading or JSON name with `-` before it or not.
///
/// # Errors
/// What is no column of a host.
pub fn sort(word: &str) -> Result<String, Failure> {
    let (sign, word) = match word.strip_prefix('-') {
        Some(word) => ("-", word),
        None => ("", word),
    };
    // Both directions of the network together have no column, and are what top compares by.
    if word.is_empty() || word.eq_ignore_ascii_case("net") {
        return Ok(format!("{sign}{}", word.to_lowercase()));
    }
    let column = find(COLUMNS, word)?;
    Ok(format!("{sign}{}", snake(column.key)))
}

/// The word for a host's state, as selectors spell it.
#[must_use]
pub fn state_word(state: v1::HostState) -> &'static str {
    match state {
        v1::HostState::Unspecified => "unknown",
        v1::HostState::Joined => "joined",
        v1::HostState::Live => "live",
        v1::HostState::Late => "late",
        v1::HostState::Silent => "silent",
    }
}

/// Why a silent host is silent, as far as that was seen.
#[must_use]
pub fn silence_word(row: &v1::HostRow) -> Option<&'static str> {
    if row.state() != v1::HostState::Silent {
        return None;
    }
    Some(Silence::word(row.silence_cause())).filter(|word| !word.is_empty())
}

/// A host's state for people: silence that was announced is no alarm.
#[must_use]
pub fn state_text(row: &v1::HostRow) -> Text {
    let word = state_word(row.state());
    let tone = match (row.state(), row.silence_cause()) {
        (v1::HostState::Live, _) => Tone::Good,
        (v1::HostState::Late, _) => Tone::Warn,
        (
            v1::HostState::Silent,
            v1::SilenceCause::Stopped | v1::SilenceCause::Reboot | v1::SilenceCause::Shutdown,
        ) => Tone::Warn,
        (v1::HostState::Silent, _) => Tone::Bad,
        _ => Tone::Dim,
    };
    Text::toned(tone, word)
}

/// A host score: 1 is the most a normal hour reaches.
#[must_use]
pub fn anomaly(score: Option<f64>) -> Text {
    let Some(score) = score else {
        return Text::unknown();
    };
    let tone = if score >= 1.0 {
        Tone::Warn
    } else {
        Tone::Plain
    };
    Text::toned(tone, format!("{score:.2}"))
}

/// Labels as `key=value` separated by spaces, in order.
#[must_use]
pub fn labels(row: &v1::HostRow) -> String {
    let pairs = row
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(" ")
}

fn services(row: &v1::HostRow) -> Text {
    let Some(services) = row.services else {
        return Text::unknown();
    };
    let failed = row.services_failed.unwrap_or(0);
    let tone = if failed > 0 { Tone::Bad } else { Tone::Plain };
    Text::toned(
        tone,
        format!("{}/{services}", services.saturating_sub(failed)),
    )
}

fn rate(bytes_per_second: Option<f64>) -> Text {
    bytes_per_second.map_or_else(Text::unknown, |rate| Text::plain(bits_per_second(rate)))
}

fn word(text: &str) -> Text {
    if text.is_empty() {
        return Text::unknown();
    }
    Text::plain(text)
}

fn optional(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    json!(text)
}

fn id(row: &v1::HostRow) -> String {
    HostId::from_slice(&row.host_id).map_or(String::new(), |id| id.to_string())
}
