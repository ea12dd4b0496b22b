//! `muster export metrics`: samples over time as OpenMetrics text or CSV, written as they come.
//!
//! OpenMetrics with timestamps is what `promtool tsdb create-blocks-from openmetrics` reads. Its rules ask for all
//! samples of a family together, and a family's answer comes in parts, so each metric is asked for by itself.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use clap::{Args, ValueEnum};
use muster_proto::v1;

use super::{
    failure::{Code, Failure},
    history::{self, Range, points},
    output::Rendered,
    session::Session,
    units::rfc3339,
};

/// `muster export metrics`
#[derive(Debug, Clone, Args)]
pub struct Metrics {
    /// Metrics to write, with labels if need be; without any, all of them
    #[arg(value_name = "METRIC")]
    pub metrics: Vec<String>,
    /// Of which hosts, and when.
    #[command(flatten)]
    pub range: Range,
    /// One value for each of these spans; without it, every sample
    #[arg(long, value_name = "SPAN", value_parser = history::span)]
    pub step: Option<std::time::Duration>,
    /// Form
    #[arg(long, value_enum, default_value_t = Form::Openmetrics)]
    pub format: Form,
}

/// Forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// OpenMetrics text with timestamps
    Openmetrics,
    /// Comma-separated: time, host, metric, labels, value
    Csv,
}

/// Runs `muster export metrics`.
///
/// # Errors
/// What stood in the way. What was written until then stands in the output.
pub async fn run(session: &Session, args: &Metrics) -> Result<Rendered, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let outcome = write(session, args, &mut out).await;
    match outcome {
        Err(failure) if failure.what == ENOUGH => Ok(Rendered::default()),
        Err(failure) => Err(failure),
        Ok(end) => {
            out.flush().map_err(|error| unwritten(&error))?;
            Ok(history::rendered(String::new(), end))
        }
    }
}

async fn write(
    session: &Session,
    args: &Metrics,
    out: &mut impl Write,
) -> Result<v1::HistoryEnd, Failure> {
    let mut texts = args.metrics.clone();
    if texts.is_empty() {
        texts = every_metric(session, args).await?.into_iter().collect();
    }
    if args.format == Form::Csv {
        put(out, "time,host,metric,labels,value\r\n")?;
    }
    let mut whole = v1::HistoryEnd::default();
    for text in &texts {
        let mut request = args.range.request(session, text)?;
        request.step_ms = args.step.map_or(0, muster_proto::time::duration_millis);
        let mut named = BTreeSet::new();
        let end = history::read(session, request, |series| match args.format {
            Form::Openmetrics => openmetrics(&series, &mut named, out),
            Form::Csv => csv(&series, out),
        })
        .await?;
        let meta = whole.meta.get_or_insert_default();
        let missing = end.meta.unwrap_or_default().missing;
        meta.missing
            .extend(missing.into_iter().filter(|part| !part.is_empty()));
        meta.missing.dedup();
        whole.unknown_names = end.unknown_names;
    }
    if args.format == Form::Openmetrics {
        put(out, "# EOF\n")?;
    }
    Ok(whole)
}

/// Names of all metrics that the chosen hosts have in the range.
async fn every_metric(session: &Session, args: &Metrics) -> Result<BTreeSet<String>, Failure> {
    let mut request = args.range.request(session, "")?;
    // The coarsest points will do to learn the names.
    request.step_ms = 900_000;
    let mut names = BTreeSet::new();
    history::read(session, request, |series| {
        names.insert(series.metric);
        Ok(())
    })
    .await?;
    Ok(names)
}

fn openmetrics(
    series: &v1::HistorySeries,
    named: &mut BTreeSet<String>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    // A counter's family is called without the suffix that its samples have.
    let counter = series.kind == "counter" && series.metric.ends_with("_total");
    if named.insert(series.metric.clone()) {
        let family = series.metric.strip_suffix("_total").filter(|_| counter);
        let kind = match (series.kind.as_str(), counter) {
            (_, true) => "counter",
            ("gauge", _) => "gauge",
            _ => "unknown",
        };
        let family = family.unwrap_or(&series.metric);
        put(out, &format!("# TYPE {family} {kind}\n"))?;
    }
    let mut labels = format!("host=\"{}\"", escaped(&series.host));
    for (name, value) in series.label_names.iter().zip(&series.label_values) {
        labels.push_str(&format!(",{name}=\"{}\"", escaped(value)));
    }
    let metric = &series.metric;
    for (at, value) in points(series) {
        let (seconds, millis) = (
            at.as_millis().div_euclid(1000),
            at.as_millis().rem_euclid(1000),
        );
        put(
            out,
            &format!(
                "{metric}{{{labels}}} {} {seconds}.{millis:03}\n",
                number(value)
            ),
        )?;
    }
    Ok(())
}

fn csv(series: &v1::HistorySeries, out: &mut impl Write) -> Result<(), Failure> {
    let (host, labels) = (quoted(&series.host), quoted(&history::labels(series)));
    for (at, value) in points(series) {
        let time = rfc3339(at);
        let metric = &series.metric;
        put(
            out,
            &format!("{time},{host},{metric},{labels},{}\r\n", number(value)),
        )?;
    }
    Ok(())
}

fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    value.to_string()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// RFC 4180. Names and labels of Muster have no control characters; a terminal that shows them is safe.
fn quoted(text: &str) -> String {
    let text = super::text::visible(text);
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.into_owned()
}

/// What stops the reading when whoever reads us (`| head`) has enough.
const ENOUGH: &str = "enough";

fn put(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Failed, ENOUGH))
        }
        Err(error) => Err(unwritten(&error)),
    }
}

fn unwritten(error: &io::Error) -> Failure {
    Failure::new(Code::Failed, format!("cannot write the answer ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(metric: &str, kind: &str) -> v1::HistorySeries {
        v1::HistorySeries {
            host: "web-01".into(),
            metric: metric.into(),
            kind: kind.into(),
            label_names: vec!["device".into()],
            label_values: vec!["a\"b,".into()],
            at_ms: vec![1_700_000_000_000, 10_500],
            values: vec![1.0, f64::NAN],
            ..v1::HistorySeries::default()
        }
    }

    #[test]
    fn openmetrics_as_its_rules_ask() {
        let (mut out, mut named) = (Vec::new(), BTreeSet::new());
        let counter = series("node_x_bytes_total", "counter");
        openmetrics(&counter, &mut named, &mut out).expect("a Vec");
        openmetrics(&counter, &mut named, &mut out).expect("a Vec");
        openmetrics(&series("node_y", "untyped"), &mut named, &mut out).expect("a Vec");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 8);
        assert_eq!(lines[0], "# TYPE node_x_bytes counter");
        assert_eq!(
            lines[1],
            "node_x_bytes_total{host=\"web-01\",device=\"a\\\"b,\"} 1 1700000000.000"
        );
        assert_eq!(
            lines[2],
            "node_x_bytes_total{host=\"web-01\",device=\"a\\\"b,\"} NaN 1700000010.500"
        );
        assert_eq!(lines[5], "# TYPE node_y unknown");
    }

    #[test]
    fn csv_as_a_spreadsheet_reads_it() {
        let mut out = Vec::new();
        csv(&series("node_y", "gauge"), &mut out).expect("a Vec");
        let text = String::from_utf8(out).expect("text");
        let first = text.lines().next().expect("a line");
        assert_eq!(
            first,
            "2023-11-14T22:13:20Z,web-01,node_y,\"device=\"\"a\\\"\"b,\"\"\",1"
        );
    }
}
