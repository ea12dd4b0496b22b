//! `muster incidents` and `muster incident ID`.

use muster_proto::{time::Timestamp, v1};
use serde_json::{Value, json};

use super::{
    output::{Column, Detail, List, Shown, moment},
    text::{Text, Tone},
    units::{View, short},
};

/// Every column of an incident.
pub static COLUMNS: &[Column<v1::IncidentRow>] = &[
    Column {
        key: "id",
        title: "ID",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, id(row.number)),
        value: |row| json!(id(row.number)),
    },
    Column {
        key: "severity",
        title: "SEVERITY",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(severity_tone(row.severity()), severity(row.severity())),
        value: |row| json!(severity(row.severity())),
    },
    Column {
        key: "state",
        title: "STATE",
        shown: Shown::Always,
        right: false,
        human: |row, _| match row.state() {
            v1::IncidentState::Resolved => Text::toned(Tone::Dim, "resolved"),
            other => Text::plain(state(other)),
        },
        value: |row| json!(state(row.state())),
    },
    Column {
        key: "opened",
        title: "AGE",
        shown: Shown::Always,
        right: true,
        human: |row, view| {
            Text::plain(short(view.now.since(Timestamp::from_millis(row.opened_ms))))
        },
        value: |row| moment(Some(row.opened_ms)),
    },
    Column {
        key: "host",
        title: "HOST",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.host),
        value: |row| json!(row.host),
    },
    Column {
        key: "rule",
        title: "RULE",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(&row.rule),
        value: |row| json!(row.rule),
    },
    Column {
        key: "summary",
        title: "WHAT",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.summary),
        value: |row| json!(row.summary),
    },
    Column {
        key: "subject",
        title: "SUBJECT",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(&row.subject),
        value: |row| json!(row.subject),
    },
    Column {
        key: "since",
        title: "SINCE",
        shown: Shown::Machine,
        right: true,
        human: |row, view| Text::plain(view.when(Timestamp::from_millis(row.since_ms))),
        value: |row| moment(Some(row.since_ms)),
    },
    Column {
        key: "resolved",
        title: "RESOLVED",
        shown: Shown::Machine,
        right: true,
        human: |row, view| {
            row.resolved_ms.map_or_else(Text::unknown, |at| {
                Text::plain(view.when(Timestamp::from_millis(at)))
            })
        },
        value: |row| moment(row.resolved_ms),
    },
    Column {
        key: "uuid",
        title: "UUID",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(&row.id),
        value: |row| json!(row.id),
    },
];

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ListIncidentsResponse, all: bool) -> List<v1::IncidentRow> {
    let shown = response.incidents.len();
    let mut footer = Vec::new();
    if usize::try_from(response.matched).is_ok_and(|matched| matched > shown) {
        footer.push(Text::toned(
            Tone::Dim,
            format!("{shown} of {} incidents", response.matched),
        ));
    }
    List {
        columns: COLUMNS,
        rows: response.incidents,
        name: |row| id(row.number),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain(if all {
            "no incidents"
        } else {
            "no open incidents"
        }),
    }
}

/// One incident with what became of it.
#[must_use]
pub fn detail(response: v1::IncidentDetail, view: &View) -> Detail {
    let row = response.row.unwrap_or_default();
    let mut head = Text::toned(Tone::Strong, id(row.number))
        .and("  ")
        .with(severity_tone(row.severity()), severity(row.severity()))
        .and(format!("  {}  ", state(row.state())));
    head.push(Tone::Strong, &row.summary);
    let since = Timestamp::from_millis(row.since_ms);
    let mut lines = vec![
        head,
        Text::plain("host      ").and(&row.host),
        Text::plain("rule      ").and(&row.rule),
    ];
    if !row.subject.is_empty() {
        lines.push(Text::plain("subject   ").and(&row.subject));
    }
    lines.push(Text::plain("since     ").and(view.since(since)));
    if let Some(at) = row.resolved_ms {
        lines.push(Text::plain("resolved  ").and(view.since(Timestamp::from_millis(at))));
    }
    lines.push(Text::new());
    for step in &response.transitions {
        lines.push(
            Text::toned(Tone::Dim, view.exact(Timestamp::from_millis(step.at_ms)))
                .and(format!("  {:<8}  ", state(step.to())))
                .and(&step.evidence),
        );
    }
    lines.push(Text::toned(Tone::Dim, "next: ").and(format!("muster host {}", row.host)));
    let mut item = serde_json::Map::new();
    for column in COLUMNS {
        item.insert(column.key.to_owned(), (column.value)(&row));
    }
    let transitions = response.transitions.iter().map(|step| {
        json!({"at": moment(Some(step.at_ms)), "to": state(step.to()), "evidence": step.evidence})
    });
    item.insert("transitions".to_owned(), transitions.collect());
    Detail {
        name: id(row.number),
        item: Value::Object(item),
        lines,
        meta: response.meta.unwrap_or_default(),
    }
}

/// `I-2041`.
#[must_use]
pub fn id(number: u64) -> String {
    format!("I-{number}")
}

/// Reads `I-2041`, `i-2041` or `2041`.
///
/// # Errors
/// What such an id looks like.
pub fn parse_id(text: &str) -> Result<u64, String> {
    let digits = text
        .strip_prefix("I-")
        .or_else(|| text.strip_prefix("i-"))
        .unwrap_or(text);
    digits
        .parse()
        .map_err(|_| "an incident is I- and a number, as muster incidents shows it".to_owned())
}

/// The word for a severity.
#[must_use]
pub fn severity(severity: v1::Severity) -> &'static str {
    match severity {
        v1::Severity::Unspecified => "unknown",
        v1::Severity::Info => "info",
        v1::Severity::Warning => "warning",
        v1::Severity::Critical => "critical",
    }
}

/// The tone of a severity.
#[must_use]
pub fn severity_tone(severity: v1::Severity) -> Tone {
    match severity {
        v1::Severity::Critical => Tone::Bad,
        v1::Severity::Warning => Tone::Warn,
        _ => Tone::Plain,
    }
}

fn state(state: v1::IncidentState) -> &'static str {
    match state {
        v1::IncidentState::Unspecified => "unknown",
        v1::IncidentState::Open => "open",
        v1::IncidentState::Resolved => "resolved",
    }
}
