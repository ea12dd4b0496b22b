//! `muster query`: an expression over what is and what was.

use std::time::Duration;

use clap::Args;
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::{Clock as _, SystemClock, Timestamp},
    v1::{self, history_client::HistoryClient},
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    history::{self, points, short},
    output::{self, Column, List, Rendered, Shown, moment},
    session::{self, Session},
    text::{Text, Tone},
    when,
};
use crate::history::expr::parse;

/// `muster query`
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  muster query 'topk(5, rate(node_network_receive_bytes_total{device!=lo}))'\n  \
                  muster query 'avg by (role) (cpu)' --since 6h --step 15m\n  muster query 'mem@db-* > 0.9'\n\
                  The language is described in docs/query.md."
)]
pub struct Query {
    /// What is asked: 'avg by (role) (cpu)', 'topk(5, node_load1)', 'mem@db-* > 0.9'
    #[arg(value_name = "EXPR")]
    pub expression: String,
    /// Only of these hosts: names or patterns
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Only of hosts for which this holds
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    pub selector: String,
    /// The moment that is asked about
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "now",
        conflicts_with = "since"
    )]
    pub at: String,
    /// Many moments from this one on
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// The last of them
    #[arg(long, value_name = "WHEN", default_value = "now", requires = "since")]
    pub until: String,
    /// From one to the next
    #[arg(long, value_name = "SPAN", default_value = "1m", requires = "since", value_parser = history::span)]
    pub step: Duration,
}

struct Row {
    labels: String,
    host: String,
    at: Timestamp,
    value: f64,
}

static COLUMNS: &[Column<Row>] = &[
    Column {
        key: "time",
        title: "TIME",
        shown: Shown::Wide,
        right: false,
        human: |row, view| Text::toned(Tone::Dim, view.exact(row.at)),
        value: |row| moment(Some(row.at.as_millis())),
    },
    Column {
        key: "labels",
        title: "SERIES",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.labels),
        value: |row| json!(row.labels),
    },
    Column {
        key: "value",
        title: "VALUE",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(short(row.value)),
        value: |row| output::number(Some(row.value)),
    },
];

/// The same with the time in every table: of an answer for many moments.
static COLUMNS_OVER_TIME: &[Column<Row>] = &[
    Column {
        key: "time",
        title: "TIME",
        shown: Shown::Always,
        right: false,
        human: |row, view| Text::toned(Tone::Dim, view.exact(row.at)),
        value: |row| moment(Some(row.at.as_millis())),
    },
    Column {
        key: "labels",
        title: "SERIES",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.labels),
        value: |row| json!(row.labels),
    },
    Column {
        key: "value",
        title: "VALUE",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(short(row.value)),
        value: |row| output::number(Some(row.value)),
    },
];

/// Runs `muster query`.
///
/// # Errors
/// What stood in the way.
pub async fn run(session: &Session, args: &Query) -> Result<Rendered, Failure> {
    session::check_selector(&args.selector)?;
    let names = session::names(&args.host)?;
    // Said here, where it was typed, before anybody is asked.
    if let Err(error) = parse::parse(&args.expression) {
        return Err(session::pointed(
            "this cannot be asked",
            &args.expression,
            error.column,
            &error.what,
        )
        .hint(
            "muster query --help",
            "examples; docs/query.md has the language",
        ));
    }
    let now = SystemClock.now();
    let at = |text: &str| {
        when::moment(text, now, session.zone()).map_err(|why| Failure::new(Code::Usage, why))
    };
    let (from, to) = match &args.since {
        Some(since) => (at(since)?, at(&args.until)?),
        None => (at(&args.at)?, at(&args.at)?),
    };
    if from > to {
        return Err(Failure::new(Code::Usage, "--since is after --until"));
    }
    let request = v1::QueryHistoryRequest {
        expression: args.expression.clone(),
        names,
        selector: args.selector.clone(),
        from_ms: from.as_millis(),
        to_ms: to.as_millis(),
        step_ms: muster_proto::time::duration_millis(args.step),
    };
    let stream = session
        .ask_door(async move |channel| {
            HistoryClient::new(channel)
                .max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
                .query_history(request)
                .await
        })
        .await?;
    let mut rows = Vec::new();
    let end = history::receive(session, stream, |series| {
        let labels = match history::labels(&series) {
            labels if labels.is_empty() => "{}".to_owned(),
            labels => labels,
        };
        for (at, value) in points(&series) {
            rows.push(Row {
                labels: labels.clone(),
                host: series.host.clone(),
                at,
                value,
            });
        }
        Ok(())
    })
    .await?;
    let view = session.view(end.meta.as_ref());
    let notes = history::notes(&end);
    let list = List {
        columns: if args.since.is_some() {
            COLUMNS_OVER_TIME
        } else {
            COLUMNS
        },
        rows,
        name: |row| row.host.clone(),
        meta: end.meta.unwrap_or_default(),
        footer: Vec::new(),
        empty: Text::plain("nothing, at that time"),
    };
    let rendered = output::list(list, &session.options, &view)?;
    Ok(Rendered {
        notes,
        unknown: end.unknown_names,
        ..rendered
    })
}
