//! `muster audit`: who did what, newest first.

use muster_proto::{time::Timestamp, v1};
use serde_json::json;

use super::{
    output::{Column, List, Shown, moment},
    text::Text,
};

/// Every column of a line.
pub static COLUMNS: &[Column<v1::AuditLine>] = &[
    Column {
        key: "at",
        title: "WHEN",
        shown: Shown::Always,
        right: true,
        human: |row, view| Text::plain(view.when(Timestamp::from_millis(row.at_ms))),
        value: |row| moment(Some(row.at_ms)),
    },
    Column {
        key: "actor",
        title: "WHO",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.actor),
        value: |row| json!(row.actor),
    },
    Column {
        key: "action",
        title: "ACTION",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.action),
        value: |row| json!(row.action),
    },
    Column {
        key: "subject",
        title: "ON",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.subject),
        value: |row| json!(row.subject),
    },
    Column {
        key: "outcome",
        title: "OUTCOME",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.outcome),
        value: |row| json!(row.outcome),
    },
];

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ListAuditResponse) -> List<v1::AuditLine> {
    List {
        columns: COLUMNS,
        rows: response.lines,
        name: |row| row.subject.clone(),
        meta: response.meta.unwrap_or_default(),
        footer: Vec::new(),
        empty: Text::plain("nothing was recorded yet"),
    }
}
