//! `muster checks`: the checks of all hosts, failing first.

use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::Timestamp,
    v1::{self, checks_client::ChecksClient},
};
use serde_json::json;

use super::{
    failure::Failure,
    output::{self, Column, List, Rendered, Shown, moment},
    services::hosts,
    session::{self, Session},
    text::{Text, Tone},
    units::{View, short},
};

/// `muster checks`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Checks or patterns: shop, 'backup*'
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Only with these: ok, warn, crit, unknown, or pending for those not decided yet
    #[arg(long, value_name = "STATUS,…", value_delimiter = ',', value_parser = status)]
    pub status: Vec<v1::CheckStatus>,
    /// Only of this host; a pattern for several
    #[arg(
        long,
        value_name = "HOST",
        default_value = "",
        hide_default_value = true
    )]
    pub host: String,
    /// Only of hosts for which this holds
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    pub selector: String,
}

fn status(text: &str) -> Result<v1::CheckStatus, String> {
    match text.to_ascii_lowercase().as_str() {
        "ok" => Ok(v1::CheckStatus::Ok),
        "warn" | "warning" => Ok(v1::CheckStatus::Warning),
        "crit" | "critical" => Ok(v1::CheckStatus::Critical),
        "unknown" => Ok(v1::CheckStatus::Unknown),
        "pending" => Ok(v1::CheckStatus::Unspecified),
        _ => Err("expected ok, warn, crit, unknown or pending".to_owned()),
    }
}

/// A status in a word.
#[must_use]
pub fn word(status: v1::CheckStatus) -> &'static str {
    match status {
        v1::CheckStatus::Unspecified => "pending",
        v1::CheckStatus::Ok => "ok",
        v1::CheckStatus::Warning => "warning",
        v1::CheckStatus::Critical => "critical",
        v1::CheckStatus::Unknown => "unknown",
    }
}

/// The tone of a status.
#[must_use]
pub fn tone(status: v1::CheckStatus) -> Tone {
    match status {
        v1::CheckStatus::Unspecified => Tone::Dim,
        v1::CheckStatus::Ok => Tone::Plain,
        v1::CheckStatus::Warning | v1::CheckStatus::Unknown => Tone::Warn,
        v1::CheckStatus::Critical => Tone::Bad,
    }
}

/// What the latest run found, where that tells more than the status.
fn result(row: &v1::CheckRow, _: &View) -> Text {
    let more = row.failed_runs > 0 && row.status() != v1::CheckStatus::Ok;
    let doubtful = row.failed_runs > 0 && !more;
    let words = row.result.replace('_', " ");
    match (doubtful, row.failed_runs) {
        (true, 1) => Text::toned(Tone::Warn, format!("{words}, being tried again")),
        (true, runs) => Text::toned(
            Tone::Warn,
            format!("{words}, {runs} times, being tried again"),
        ),
        (false, 0) => Text::toned(Tone::Dim, words),
        (false, _) => Text::plain(words),
    }
}

fn seconds(row: &v1::CheckRow, _: &View) -> Text {
    let seconds = row.duration_seconds;
    Text::plain(match seconds < 10.0 {
        true => format!("{:.0} ms", seconds * 1000.0),
        false => format!("{seconds:.1} s"),
    })
}

/// Every column of a check of a host.
pub static COLUMNS: &[Column<v1::CheckRow>] = &[
    Column {
        key: "status",
        title: "STATUS",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(tone(row.status()), word(row.status())),
        value: |row| json!(word(row.status())),
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
        key: "check",
        title: "CHECK",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.name),
        value: |row| json!(row.name),
    },
    Column {
        key: "type",
        title: "TYPE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.kind),
        value: |row| json!(row.kind),
    },
    Column {
        key: "result",
        title: "RESULT",
        shown: Shown::Always,
        right: false,
        human: result,
        value: |row| json!(row.result),
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
        key: "durationSeconds",
        title: "TOOK",
        shown: Shown::Always,
        right: true,
        human: seconds,
        value: |row| json!(row.duration_seconds),
    },
    Column {
        key: "certificateExpires",
        title: "CERTIFICATE",
        shown: Shown::Wide,
        right: true,
        human: |row, view| {
            row.certificate_expires_ms.map_or_else(Text::unknown, |at| {
                let at = Timestamp::from_millis(at);
                match at > view.now {
                    true => Text::plain(format!("{} left", short(at.since(view.now)))),
                    false => Text::toned(Tone::Bad, "expired"),
                }
            })
        },
        value: |row| moment(row.certificate_expires_ms),
    },
    Column {
        key: "severity",
        title: "SEVERITY",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(&row.severity),
        value: |row| json!(row.severity),
    },
    Column {
        key: "failedRuns",
        title: "FAILED",
        shown: Shown::Wide,
        right: true,
        human: |row, _| Text::plain(row.failed_runs.to_string()),
        value: |row| json!(row.failed_runs),
    },
    Column {
        key: "runs",
        title: "RUNS",
        shown: Shown::Wide,
        right: true,
        human: |row, _| Text::plain(row.runs.to_string()),
        value: |row| json!(row.runs),
    },
    Column {
        key: "measures",
        title: "MEASURES",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(row.measures.len().to_string()),
        value: |row| {
            let one = |measure: &v1::CheckMeasure| {
                json!({
                    "label": measure.label,
                    "unit": measure.unit,
                    "value": Some(measure.value).filter(|value| value.is_finite()),
                })
            };
            row.measures.iter().map(one).collect()
        },
    },
];

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ListChecksResponse, some_chosen: bool) -> List<v1::CheckRow> {
    let mut footer = Vec::new();
    if response.hosts_not_heard > 0 {
        let not_heard = hosts(response.hosts_not_heard);
        let line = format!("checks unknown on {not_heard}: not heard from");
        footer.push(Text::toned(Tone::Dim, line));
    }
    if response.left_out > 0 {
        let line = format!(
            "{} more are left out; choose with --status or -l",
            response.left_out
        );
        footer.push(Text::toned(Tone::Warn, line));
    }
    List {
        columns: COLUMNS,
        rows: response.checks,
        name: |row| format!("{}/{}", row.host, row.name),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain(match some_chosen {
            true => "no checks match",
            false => "no host defines checks; they are [[check]] tables in a host's agent.toml",
        }),
    }
}

/// A check as JSON.
#[must_use]
pub fn item(row: &v1::CheckRow) -> serde_json::Value {
    let fields = COLUMNS
        .iter()
        .map(|column| (column.key.to_owned(), (column.value)(row)));
    fields.collect::<serde_json::Map<_, _>>().into()
}

/// One line of `muster host NAME`: the checks that are not ok; nothing for a host without checks.
#[must_use]
pub fn of_host(checks: u32, failing: &[v1::CheckRow], view: &View) -> Option<Text> {
    if checks == 0 {
        return None;
    }
    let mut line = Text::plain("checks    ");
    if failing.is_empty() {
        return Some(line.and(format!("all {checks} ok")));
    }
    for (at, check) in failing.iter().enumerate() {
        let between = if at > 0 { ", " } else { "" };
        line = line.and(between).with(tone(check.status()), &check.name);
        line.push(Tone::Plain, format!(" {}", word(check.status())));
        line.push(
            Tone::Plain,
            format!(" ({})", check.result.replace('_', " ")),
        );
        if let Some(since) = check.since_ms {
            let since = view.when(Timestamp::from_millis(since));
            line.push(Tone::Plain, format!(" {since}"));
        }
    }
    Some(line.and(format!("  of {checks} checks")))
}

/// Asks and answers.
///
/// # Errors
/// Whatever stood in the way.
pub async fn answer(session: &Session, args: &Args) -> Result<Rendered, Failure> {
    session::check_selector(&args.selector)?;
    session::check_hosts(&args.host)?;
    let names = session::names(&args.names)?;
    if session::chose_nothing(&args.names, &names) {
        let response = v1::ListChecksResponse {
            meta: Some(session::own_meta()),
            ..v1::ListChecksResponse::default()
        };
        return output::list(list(response, true), &session.options, &session.view(None));
    }
    let chosen = !(names.is_empty() && args.status.is_empty());
    let chosen = chosen || !(args.selector.is_empty() && args.host.is_empty());
    let request = v1::ListChecksRequest {
        selector: args.selector.clone(),
        names,
        host: args.host.clone(),
        statuses: args.status.iter().map(|&status| status.into()).collect(),
    };
    let question = async move |channel| {
        let client = ChecksClient::new(channel);
        let mut client = client.max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES);
        client.list_checks(request).await
    };
    let response = session
        .ask_door(question)
        .await
        .map_err(|failure| super::not_found(failure, "muster hosts", "the hosts there are"))?;
    let view = session.view(response.meta.as_ref());
    output::list(list(response, chosen), &session.options, &view)
}
