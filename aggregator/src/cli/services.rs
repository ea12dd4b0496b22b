//! `muster services`: units over all hosts, failing first.

use muster_proto::{time::Timestamp, v1};
use serde_json::json;

use super::{
    output::{Column, List, Shown, moment},
    text::{Text, Tone},
};
use crate::{fleet::CRASH_LOOP, selector::pattern::fold};

/// Every column of a unit over the hosts that have it in one state.
pub static COLUMNS: &[Column<v1::ServiceGroup>] = &[
    Column {
        key: "service",
        title: "SERVICE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.name),
        value: |row| json!(row.name),
    },
    Column {
        key: "state",
        title: "STATE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(tone(&row.state), &row.state),
        value: |row| json!(row.state),
    },
    Column {
        key: "hostCount",
        title: "HOSTS",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.hosts.len().to_string()),
        value: |row| json!(row.hosts.len()),
    },
    Column {
        key: "since",
        title: "SINCE",
        shown: Shown::Always,
        right: true,
        human: |row, view| {
            row.since_ms.map_or_else(Text::unknown, |at| {
                Text::plain(view.when(Timestamp::from_millis(at)))
            })
        },
        value: |row| moment(row.since_ms),
    },
    Column {
        key: "restarts",
        title: "RESTARTS",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.restarts.to_string()),
        value: |row| json!(row.restarts),
    },
    Column {
        key: "hosts",
        title: "WHERE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(fold(row.hosts.iter().map(String::as_str))),
        value: |row| json!(row.hosts),
    },
];

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ListServicesResponse, failed_only: bool) -> List<v1::ServiceGroup> {
    let without = response.hosts_without_services;
    let mut footer = Vec::new();
    if without > 0 {
        footer.push(Text::toned(
            Tone::Dim,
            format!(
                "services unknown on {}: not heard from, or no service manager that could be asked",
                hosts(without)
            ),
        ));
    }
    List {
        columns: COLUMNS,
        rows: response.services,
        name: |row| row.name.clone(),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain(match (failed_only, without) {
            (true, 0) => "no service has failed",
            (true, _) => "no service is known to have failed",
            (false, _) => "no services match",
        }),
    }
}

/// The tone of a unit's state, which may also be that it is in a loop of restarts.
#[must_use]
pub fn tone(state: &str) -> Tone {
    match state {
        "failed" | CRASH_LOOP => Tone::Bad,
        "activating" | "deactivating" => Tone::Warn,
        "inactive" => Tone::Dim,
        _ => Tone::Plain,
    }
}

/// `1 host`, `2 hosts`.
#[must_use]
pub fn hosts(count: u32) -> String {
    if count == 1 {
        "1 host".to_owned()
    } else {
        format!("{count} hosts")
    }
}
