//! `muster history`, and the way of every command to the past: what is asked, how it comes back.

use std::time::Duration;

use clap::{Args, ValueEnum};
use muster_agent::settings;
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    series,
    time::{Clock as _, SystemClock, Timestamp},
    v1::{self, history_client::HistoryClient, read_history_response::Part},
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    output::{self, Column, List, Rendered, Shown, moment},
    session::{self, Session},
    text::{Text, Tone},
    units::{bits_per_second, bytes, percent_plain},
    when,
};

/// Lines of a table at most unless `-n` says otherwise; a pipe gets all.
const TABLE_ROWS: usize = 200;

/// Which series, of which hosts, of which time.
#[derive(Debug, Clone, Args)]
pub struct Range {
    /// Only of these hosts: names, patterns; also of hosts that are removed
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
    /// From when on: 2h, "today 09:00", 2026-11-01, RFC 3339
    #[arg(long, value_name = "WHEN", default_value = "1h")]
    pub since: String,
    /// Until when
    #[arg(long, value_name = "WHEN", default_value = "now")]
    pub until: String,
}

/// `muster history`
#[derive(Debug, Clone, Args)]
pub struct History {
    /// Name of the metric, with labels if need be: 'node_network_receive_bytes_total{device=eth*}'
    #[arg(value_name = "METRIC", required_unless_present_any = ["status", "forget"])]
    pub metric: Option<String>,
    /// Of which hosts, and when.
    #[command(flatten)]
    pub range: Range,
    /// One value for each of these spans: 10s, 5m, 1h; without it, values as they are kept
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub step: Option<Duration>,
    /// What becomes of the values of a step
    #[arg(long, value_enum)]
    pub agg: Option<Agg>,
    /// How much history there is, how much room it takes, and whether it keeps up
    #[arg(long, conflicts_with_all = ["metric", "forget"])]
    pub status: bool,
    /// Delete what was recorded of this host up to now
    #[arg(long, value_name = "HOST", conflicts_with = "metric", requires = "yes")]
    pub forget: Option<String>,
    /// Do it
    #[arg(long)]
    pub yes: bool,
}

/// What becomes of the values of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Agg {
    /// Rate of counters, mean of everything else
    Auto,
    /// The last one
    Last,
    /// The smallest
    Min,
    /// The largest
    Max,
    /// The mean
    Avg,
    /// The sum
    Sum,
    /// How many samples
    Count,
    /// What a counter grew by, per second
    Rate,
    /// What a counter grew by
    Increase,
}

impl Agg {
    /// As it is asked.
    #[must_use]
    pub const fn fold(self) -> v1::HistoryFold {
        match self {
            Self::Auto => v1::HistoryFold::Auto,
            Self::Last => v1::HistoryFold::Last,
            Self::Min => v1::HistoryFold::Min,
            Self::Max => v1::HistoryFold::Max,
            Self::Avg => v1::HistoryFold::Avg,
            Self::Sum => v1::HistoryFold::Sum,
            Self::Count => v1::HistoryFold::Count,
            Self::Rate => v1::HistoryFold::Rate,
            Self::Increase => v1::HistoryFold::Increase,
        }
    }
}

/// `10s`, `5m`, `1h`: from a second to 31 days.
///
/// # Errors
/// How to write it.
pub fn span(text: &str) -> Result<Duration, String> {
    let span = settings::parse_duration(text)
        .filter(|span| (Duration::from_secs(1)..=Duration::from_secs(31 * 86_400)).contains(span));
    span.ok_or_else(|| "a span is 1s to 31d: 10s, 5m, 1h".to_owned())
}

/// A metric as it is written: `name` or `name{label=pattern,label!=pattern}`.
///
/// # Errors
/// Points at the place.
pub fn metric(text: &str) -> Result<(String, Vec<v1::HistoryLabelMatch>), Failure> {
    let wrong = |at: usize, what: &str| {
        let column = text[..at.min(text.len())].chars().count();
        Failure::new(Code::Usage, format!("this is no metric: {what}"))
            .because(text)
            .because(format!("{}^", " ".repeat(column)))
            .hint(
                "muster history 'node_network_receive_bytes_total{device=eth*}'",
                "a name, and labels with * for anything",
            )
    };
    let (name, rest) = match text.find('{') {
        Some(at) => (&text[..at], Some(at + 1)),
        None => (text, None),
    };
    if !series::is_metric_name(name) {
        return Err(wrong(0, "a name is letters, digits and _"));
    }
    let Some(start) = rest else {
        return Ok((name.to_owned(), Vec::new()));
    };
    let Some(inside) = text[start..].strip_suffix('}') else {
        return Err(wrong(text.len(), "the } is missing"));
    };
    let mut labels = Vec::new();
    let mut at = start;
    for part in inside.split(',') {
        if !part.trim().is_empty() {
            let (label, pattern) = part
                .split_once('=')
                .ok_or_else(|| wrong(at, "a label is LABEL=VALUE or LABEL!=VALUE"))?;
            let (label, negated) = match label.strip_suffix('!') {
                Some(label) => (label.trim(), true),
                None => (label.trim(), false),
            };
            if !series::is_label_name(label) {
                return Err(wrong(at, "a label's name is letters, digits and _"));
            }
            // Quotation marks as Prometheus wants them do no harm.
            let pattern = pattern.trim();
            let bare = pattern
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'));
            labels.push(v1::HistoryLabelMatch {
                label: label.to_owned(),
                patterns: bare
                    .unwrap_or(pattern)
                    .split('|')
                    .map(ToOwned::to_owned)
                    .collect(),
                negated,
            });
        }
        at += part.len() + 1;
    }
    Ok((name.to_owned(), labels))
}

impl Range {
    /// The question for a metric; an empty one is every metric.
    ///
    /// # Errors
    /// What is written wrongly.
    pub fn request(
        &self,
        session: &Session,
        text: &str,
    ) -> Result<v1::ReadHistoryRequest, Failure> {
        session::check_selector(&self.selector)?;
        let names = session::names(&self.host)?;
        if session::chose_nothing(&self.host, &names) {
            return Err(Failure::new(Code::NotFound, "standard input names no host"));
        }
        let (metric, labels) = if text.is_empty() {
            (String::new(), Vec::new())
        } else {
            metric(text)?
        };
        let now = SystemClock.now();
        let at = |text: &str| {
            when::moment(text, now, session.zone()).map_err(|why| Failure::new(Code::Usage, why))
        };
        let (from, to) = (at(&self.since)?, at(&self.until)?);
        if from >= to {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "--since {} is not before --until {}",
                    self.since, self.until
                ),
            ));
        }
        Ok(v1::ReadHistoryRequest {
            metric,
            labels,
            names,
            selector: self.selector.clone(),
            from_ms: from.as_millis(),
            // What is asked for until now has the sample of now in it.
            to_ms: to.as_millis() + 1,
            step_ms: 0,
            fold: v1::HistoryFold::Last.into(),
        })
    }
}

/// Asks, and gives `each` the series as they come; what the answer ends with.
///
/// # Errors
/// Whatever stood in the way; what `each` fails with.
pub async fn read(
    session: &Session,
    request: v1::ReadHistoryRequest,
    each: impl FnMut(v1::HistorySeries) -> Result<(), Failure>,
) -> Result<v1::HistoryEnd, Failure> {
    let stream = session
        .ask_door(async move |channel| {
            HistoryClient::new(channel)
                .max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
                .read_history(request)
                .await
        })
        .await?;
    receive(session, stream, each).await
}

/// Gives `each` the series of an answer as they come; what it ends with.
///
/// # Errors
/// As [`read`].
pub async fn receive(
    session: &Session,
    mut stream: tonic::Streaming<v1::ReadHistoryResponse>,
    mut each: impl FnMut(v1::HistorySeries) -> Result<(), Failure>,
) -> Result<v1::HistoryEnd, Failure> {
    let target = session.target()?;
    loop {
        // The time limit is for silence: a long answer may take long.
        let next = tokio::time::timeout(session.global.timeout.max(MIN_SILENCE), stream.message());
        match next.await {
            Ok(Ok(Some(message))) => match message.part {
                Some(Part::Series(series)) => each(series)?,
                Some(Part::End(end)) => return Ok(end),
                None => {}
            },
            Ok(Ok(None)) => {
                return Err(Failure::new(
                    Code::Partial,
                    format!("{} broke off its answer", target.server),
                ));
            }
            Ok(Err(status)) if status.code() == tonic::Code::OutOfRange => {
                return Err(Failure::new(Code::Failed, status.message()).because(
                    "the aggregator bounds what one question may cost (points read: [history] max_points)",
                ));
            }
            Ok(Err(status)) => return Err(target.refused(&status)),
            Err(_) => return Err(target.late(session.global.timeout)),
        }
    }
}

/// Reading old files takes its time before the first series comes.
const MIN_SILENCE: Duration = Duration::from_secs(30);

/// That data may be of two machines, and when, for people.
#[must_use]
pub fn doubt_words(doubt: &v1::Doubt) -> String {
    format!(
        "data from {} to {} may be of two machines with one identity; muster audit --action copy has the signs",
        Timestamp::from_millis(doubt.from_ms),
        Timestamp::from_millis(doubt.until_ms)
    )
}

/// What to know about an answer, one a line.
#[must_use]
pub fn notes(end: &v1::HistoryEnd) -> Vec<String> {
    let doubts = end.doubts.iter().filter_map(|doubtful| {
        let doubt = doubtful.doubt?;
        Some(format!("{}: {}", doubtful.host, doubt_words(&doubt)))
    });
    let removed = end.removed.iter().map(|host| {
        let at = Timestamp::from_millis(host.removed_ms);
        format!(
            "{} was removed from the fleet at {at}; this is what was recorded of it",
            host.name
        )
    });
    doubts.chain(removed).collect()
}

/// What an answer lacks, for whoever prints it.
#[must_use]
pub fn rendered(text: String, end: v1::HistoryEnd) -> Rendered {
    Rendered {
        text,
        notes: notes(&end),
        missing: end.meta.unwrap_or_default().missing,
        unknown: end.unknown_names,
        ..Rendered::default()
    }
}

/// One value.
#[derive(Debug, Clone)]
pub struct Row {
    host: String,
    metric: String,
    labels: String,
    at: Timestamp,
    value: f64,
    unit: UnitOf,
}

/// `device="eth0",…`, as Prometheus writes it.
#[must_use]
pub fn labels(series: &v1::HistorySeries) -> String {
    let pairs = series.label_names.iter().zip(&series.label_values);
    let pairs: Vec<String> = pairs
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    pairs.join(",")
}

/// How values of a series are shown to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitOf {
    /// Bytes.
    Bytes,
    /// Bytes a second of a network.
    Network,
    /// Bytes a second.
    BytesPerSecond,
    /// A share of 1.
    Ratio,
    /// Something a second.
    PerSecond,
    /// Just a number.
    Plain,
}

impl UnitOf {
    /// By the name of the metric and what was made of it.
    #[must_use]
    pub fn of(series: &v1::HistorySeries) -> Self {
        let name = series
            .metric
            .strip_suffix("_total")
            .unwrap_or(&series.metric);
        let rate = series.fold() == v1::HistoryFold::Rate;
        match (name, rate) {
            (name, true) if name.starts_with("node_network_") && name.ends_with("_bytes") => {
                Self::Network
            }
            (name, true) if name.ends_with("_bytes") => Self::BytesPerSecond,
            // Seconds a second: how much of the time.
            (name, true) if name.ends_with("_seconds") => Self::Ratio,
            (_, true) => Self::PerSecond,
            (_, false) if series.fold() == v1::HistoryFold::Count => Self::Plain,
            (name, false) if name.ends_with("_bytes") => Self::Bytes,
            (name, false) if name.ends_with("_ratio") => Self::Ratio,
            _ => Self::Plain,
        }
    }

    /// The value with its unit.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Bytes => bytes(value),
            Self::Network => bits_per_second(value),
            Self::BytesPerSecond => format!("{}/s", bytes(value)),
            Self::Ratio => percent_plain(value),
            Self::PerSecond => format!("{}/s", short(value)),
            Self::Plain => short(value),
        }
    }
}

/// A number with as many digits as say something.
#[must_use]
pub fn short(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.2e}"),
    }
}

static COLUMNS: &[Column<Row>] = &[
    Column {
        key: "time",
        title: "TIME",
        shown: Shown::Always,
        right: false,
        human: |row, view| Text::toned(Tone::Dim, view.exact(row.at)),
        value: |row| moment(Some(row.at.as_millis())),
    },
    Column {
        key: "host",
        title: "HOST",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.host),
        value: |row| json!(row.host),
    },
    Column {
        key: "metric",
        title: "METRIC",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(&row.metric),
        value: |row| json!(row.metric),
    },
    Column {
        key: "labels",
        title: "LABELS",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.labels),
        value: |row| json!(row.labels),
    },
    Column {
        key: "value",
        title: "VALUE",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.unit.show(row.value)),
        value: |row| output::number(Some(row.value)),
    },
];

/// Runs `muster history`.
///
/// # Errors
/// What stood in the way.
pub async fn run(session: &Session, args: &History) -> Result<Rendered, Failure> {
    if args.status {
        return super::history_status::run(session).await;
    }
    if let Some(host) = &args.forget {
        return super::history_status::forget(session, host).await;
    }
    let text = args.metric.as_deref().unwrap_or_default();
    let mut request = args.range.request(session, text)?;
    request.step_ms = args.step.map_or(0, muster_proto::time::duration_millis);
    let agg = args.agg.unwrap_or(if args.step.is_some() {
        Agg::Auto
    } else {
        Agg::Last
    });
    request.fold = agg.fold().into();
    let mut rows = Vec::new();
    let end = read(session, request, |series| {
        let (labels, unit) = (labels(&series), UnitOf::of(&series));
        for (at, value) in points(&series) {
            rows.push(Row {
                host: series.host.clone(),
                metric: series.metric.clone(),
                labels: labels.clone(),
                at,
                value,
                unit,
            });
        }
        Ok(())
    })
    .await?;
    rows.sort_by(|a, b| (&a.host, &a.labels, a.at).cmp(&(&b.host, &b.labels, b.at)));
    if rows.is_empty() && !end.unknown_names.is_empty() {
        let names = end.unknown_names.join(", ");
        return Err(
            Failure::new(Code::NotFound, format!("no host is called {names}"))
                .hint("muster hosts", "the hosts there are"),
        );
    }
    let mut footer = Vec::new();
    if session.for_people() && session.options.limit.is_none() && rows.len() > TABLE_ROWS {
        let left = rows.len() - TABLE_ROWS;
        footer.push(Text::toned(
            Tone::Dim,
            format!(
                "{left} more rows: -n {} for all, --step 5m for fewer, muster plot for a picture",
                rows.len()
            ),
        ));
        rows.truncate(TABLE_ROWS);
    }
    let view = session.view(end.meta.as_ref());
    let notes = notes(&end);
    let list = List {
        columns: COLUMNS,
        rows,
        name: |row| row.host.clone(),
        meta: end.meta.unwrap_or_default(),
        footer,
        empty: Text::plain(format!("nothing of {text} was recorded then")),
    };
    let rendered = output::list(list, &session.options, &view)?;
    Ok(Rendered {
        notes,
        unknown: end.unknown_names,
        ..rendered
    })
}

/// The points of a series.
pub fn points(series: &v1::HistorySeries) -> impl Iterator<Item = (Timestamp, f64)> + '_ {
    let at = series.at_ms.iter().scan(0i64, |at, step| {
        *at = at.saturating_add(*step);
        Some(Timestamp::from_millis(*at))
    });
    at.zip(series.values.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_with_labels() {
        let (name, none) = metric("node_load1").expect("a name");
        assert_eq!((name.as_str(), none.len()), ("node_load1", 0));
        let (_, labels) =
            metric("node_cpu_seconds_total{mode!=idle|iowait, cpu=\"0\"}").expect("labels");
        let told: Vec<(&str, Vec<&str>, bool)> = labels
            .iter()
            .map(|label| {
                let patterns = label.patterns.iter().map(String::as_str).collect();
                (label.label.as_str(), patterns, label.negated)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("mode", vec!["idle", "iowait"], true),
                ("cpu", vec!["0"], false)
            ]
        );
        for (wrong, column) in [
            ("9x", 0),
            ("node_load1{cpu=0", 16),
            ("node_load1{cpu}", 11),
            ("node_load1{a=b,c-d=e}", 15),
        ] {
            let failure = metric(wrong).expect_err(wrong);
            assert_eq!(failure.code, Code::Usage);
            assert_eq!(failure.why[1].len(), column + 1, "{wrong}");
        }
    }

    #[test]
    fn numbers_have_the_digits_that_say_something() {
        for (value, expected) in [
            (0.0, "0"),
            (7.0, "7"),
            (12_345.678, "12346"),
            (12.345, "12.3"),
            (0.123, "0.12"),
            (0.000_123, "1.23e-4"),
        ] {
            assert_eq!(short(value), expected);
        }
    }
}
