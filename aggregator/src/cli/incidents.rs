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
        human: |row, _| match word(row) {
            "open" if !row.quiet.is_empty() => Text::toned(Tone::Dim, "quiet"),
            "resolved" => Text::toned(Tone::Dim, "resolved"),
            "acknowledged" => Text::toned(Tone::Dim, "acked"),
            other => Text::plain(other),
        },
        value: |row| json!(word(row)),
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
        key: "hosts",
        title: "HOSTS",
        shown: Shown::Always,
        right: true,
        human: |row, _| match row.hosts {
            0 => Text::new(),
            hosts => Text::plain(hosts.to_string()),
        },
        value: |row| json!(row.hosts.max(1)),
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
        human: |row, _| match &row.acknowledgement {
            Some(ack) if ack.text.is_empty() => {
                Text::plain(&row.summary).with(Tone::Dim, format!(" ({})", ack.by))
            }
            Some(ack) => Text::plain(&row.summary)
                .with(Tone::Dim, format!(" ({}: \"{}\")", ack.by, ack.text)),
            None => Text::plain(&row.summary),
        },
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
        key: "quiet",
        title: "QUIET",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(&row.quiet),
        value: |row| json!(Some(&row.quiet).filter(|why| !why.is_empty())),
    },
    Column {
        key: "partOf",
        title: "PART OF",
        shown: Shown::Machine,
        right: false,
        human: |row, _| {
            if is_part(row) {
                Text::plain(id(row.page))
            } else {
                Text::new()
            }
        },
        value: |row| json!(is_part(row).then(|| id(row.page))),
    },
    Column {
        key: "told",
        title: "TOLD",
        shown: Shown::Machine,
        right: true,
        human: |row, view| {
            row.told_ms.map_or_else(Text::unknown, |at| {
                Text::plain(view.when(Timestamp::from_millis(at)))
            })
        },
        value: |row| moment(row.told_ms),
    },
    Column {
        key: "acknowledgedBy",
        title: "ACKED BY",
        shown: Shown::Machine,
        right: false,
        human: |row, _| {
            let by = row.acknowledgement.as_ref().map(|ack| &ack.by);
            by.map_or_else(Text::unknown, Text::plain)
        },
        value: |row| json!(row.acknowledgement.as_ref().map(|ack| &ack.by)),
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
pub fn list(response: v1::ListIncidentsResponse, all: bool, each: bool) -> List<v1::IncidentRow> {
    let mut response = response;
    let told_with = response.incidents.iter().filter(|row| is_part(row)).count();
    if !each {
        response.incidents.retain(|row| !is_part(row));
    }
    let shown = response.incidents.len();
    let mut footer = Vec::new();
    if told_with > 0 && !each {
        footer.push(Text::toned(
            Tone::Dim,
            format!("{told_with} more are part of these (--each lists them)"),
        ));
    }
    if usize::try_from(response.matched).is_ok_and(|matched| matched > shown + told_with) {
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

/// Whether people are told of it under another one.
fn is_part(row: &v1::IncidentRow) -> bool {
    row.page != 0 && row.page != row.number
}

/// One incident with what became of it.
#[must_use]
pub fn detail(response: v1::IncidentDetail, view: &View) -> Detail {
    let row = response.row.unwrap_or_default();
    let mut head = Text::toned(Tone::Strong, id(row.number))
        .and("  ")
        .with(severity_tone(row.severity()), severity(row.severity()))
        .and(format!("  {}  ", word(&row)));
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
    if !row.quiet.is_empty() {
        let line =
            Text::plain("quiet     ").with(Tone::Warn, format!("nobody is told: {}", row.quiet));
        lines.push(line);
    }
    if is_part(&row) {
        lines.push(Text::plain("part of   ").and(id(row.page)));
    } else if row.hosts > 1 {
        lines.push(Text::plain("hosts     ").and(format!("{} are part of it", row.hosts)));
    }
    if let Some(told) = row.told_ms {
        lines.push(Text::plain("told      ").and(view.since(Timestamp::from_millis(told))));
    }
    if let Some(ack) = &row.acknowledgement {
        let mut line = Text::plain("acked     by ").with(Tone::Strong, &ack.by);
        line = line.and(format!(" {}", view.when(Timestamp::from_millis(ack.at_ms))));
        if let Some(until) = ack.until_ms {
            let until = view.absolute_short(Timestamp::from_millis(until));
            line = line.and(format!(", until {until} at the latest"));
        }
        if !ack.text.is_empty() {
            line = line.and(format!(": {}", ack.text));
        }
        lines.push(line);
    }
    lines.push(Text::new());
    for step in &response.transitions {
        lines.push(
            Text::toned(Tone::Dim, view.exact(Timestamp::from_millis(step.at_ms)))
                .and(format!("  {:<12}  ", happened(step)))
                .and(said(step)),
        );
    }
    let mut next = format!("muster host {}", row.host);
    if row.acknowledgement.is_none() && row.state() == v1::IncidentState::Open {
        next.push_str(&format!(" · muster ack {} -m '…'", id(row.number)));
    }
    lines.push(Text::toned(Tone::Dim, "next: ").and(next));
    let mut item = serde_json::Map::new();
    for column in COLUMNS {
        item.insert(column.key.to_owned(), (column.value)(&row));
    }
    let transitions = response.transitions.iter().map(|step| {
        json!({
            "at": moment(Some(step.at_ms)),
            "to": Some(step.to()).filter(|to| *to != v1::IncidentState::Unspecified).map(state),
            "what": happened(step),
            "actor": Some(&step.actor).filter(|actor| !actor.is_empty()),
            "evidence": step.evidence,
        })
    });
    let ack = row.acknowledgement.as_ref().map(|ack| {
        json!({
            "by": ack.by,
            "at": moment(Some(ack.at_ms)),
            "until": moment(ack.until_ms),
            "text": ack.text,
        })
    });
    item.insert("acknowledgement".to_owned(), json!(ack));
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

/// How an incident stands, in one word.
fn word(row: &v1::IncidentRow) -> &'static str {
    match row.state() {
        v1::IncidentState::Open if row.acknowledgement.is_some() => "acknowledged",
        v1::IncidentState::Open if row.flapping => "flapping",
        other => state(other),
    }
}

/// The word for a step; an older aggregator says only to which state.
fn happened(step: &v1::IncidentTransition) -> &str {
    if step.what.is_empty() {
        return state(step.to());
    }
    &step.what
}

/// What was seen, or who said what.
fn said(step: &v1::IncidentTransition) -> String {
    match (step.actor.as_str(), step.evidence.as_str()) {
        ("", evidence) => evidence.to_owned(),
        (actor, "") => format!("by {actor}"),
        (actor, text) => format!("by {actor}: {text}"),
    }
}

fn state(state: v1::IncidentState) -> &'static str {
    match state {
        v1::IncidentState::Unspecified => "unknown",
        v1::IncidentState::Open => "open",
        v1::IncidentState::Resolved => "resolved",
    }
}
