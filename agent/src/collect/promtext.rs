//! Prometheus' text format 0.0.4, read: what scripts leave for the collector `textfile`.
//!
//! As strict as node_exporter: a file is good or bad as a whole, and one with timestamps is bad, because its
//! values would be shown for moments they are not of. Histograms and summaries come apart into the series they
//! consist of: `_bucket`, `_sum` and `_count` are counters, quantiles gauges.

use std::collections::HashMap;

use muster_proto::{
    limits,
    series::{Kind, is_label_name, is_metric_name},
};

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Labels in the order in which they stand there; none with an empty value.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

/// What is wrong with a file, and in which line of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// What a `# TYPE` line declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Declared {
    Plain(Kind),
    Histogram,
    Summary,
}

/// The samples of a file, in their order.
///
/// # Errors
/// [`ParseError`] for the first line that is none of the format's.
pub fn parse(bytes: &[u8]) -> Result<Vec<Sample>, ParseError> {
    let text = std::str::from_utf8(bytes).map_err(|error| ParseError {
        line: 1 + bytes[..error.valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count(),
        what: "is not UTF-8",
    })?;
    let mut declared = HashMap::new();
    let mut samples = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let failed = |what| ParseError {
            line: number + 1,
            what,
        };
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            declare(comment, &mut declared).map_err(failed)?;
            continue;
        }
        samples.push(sample(line, &declared).map_err(failed)?);
    }
    Ok(samples)
}

/// Notes what `# TYPE name type` declares; other comments are nothing.
fn declare(comment: &str, declared: &mut HashMap<String, Declared>) -> Result<(), &'static str> {
    let mut words = comment.split_ascii_whitespace();
    if words.next() != Some("TYPE") {
        return Ok(());
    }
    let (Some(name), Some(kind), None) = (words.next(), words.next(), words.next()) else {
        return Err("# TYPE takes a name and a type");
    };
    let kind = match kind {
        "counter" => Declared::Plain(Kind::Counter),
        "gauge" => Declared::Plain(Kind::Gauge),
        "untyped" | "unknown" => Declared::Plain(Kind::Untyped),
        "histogram" => Declared::Histogram,
        "summary" => Declared::Summary,
        _ => return Err("a type is one of counter, gauge, histogram, summary, untyped"),
    };
    if !is_metric_name(name) {
        return Err("is no name of a metric");
    }
    match declared.insert(name.to_owned(), kind) {
        Some(_) => Err("a second type for this metric"),
        None => Ok(()),
    }
}

/// `name{label="value",…} value`.
fn sample(line: &str, declared: &HashMap<String, Declared>) -> Result<Sample, &'static str> {
    let end = line
        .find(|c: char| c == '{' || c.is_ascii_whitespace())
        .ok_or("has a name and no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_metric_name(name) {
        return Err("is no name of a metric");
    }
    rest = rest.trim_start();
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels)?;
    }
    let mut words = rest.split_ascii_whitespace();
    let value = words.next().ok_or("has a name and no value")?;
    let value = value.parse().map_err(|_| "the value is no number")?;
    if words.next().is_some() {
        return Err("has a timestamp, which a text file must not have");
    }
    Ok(Sample {
        name: name.to_owned(),
        kind: kind(name, declared),
        labels,
        value,
    })
}

/// Reads behind the opening brace; what follows the closing one.
fn read_labels<'a>(
    mut rest: &'a str,
    labels: &mut Vec<(String, String)>,
) -> Result<&'a str, &'static str> {
    loop {
        rest = rest.trim_start();
        if let Some(behind) = rest.strip_prefix('}') {
            return Ok(behind);
        }
        let (name, behind) = rest.split_once('=').ok_or("a label has no value")?;
        let name = name.trim();
        if !is_label_name(name) {
            return Err("is no name of a label");
        }
        let inside = behind.trim_start().strip_prefix('"');
        let (value, behind) = read_quoted(inside.ok_or("a label's value has no quotes")?)?;
        if labels.iter().any(|(known, _)| known == name) {
            return Err("a label stands there twice");
        }
        if labels.len() >= limits::MAX_LABELS {
            return Err("has more labels than a metric may have");
        }
        if !value.is_empty() {
            labels.push((name.to_owned(), value));
        }
        rest = behind.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(behind) => behind,
            None if rest.starts_with('}') => rest,
            None => return Err("labels are separated by commas"),
        };
    }
}

/// Reads behind the opening quote; the text, and what follows the closing one.
fn read_quoted(rest: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut letters = rest.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &rest[at + 1..])),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                _ => return Err("a backslash stands before none of \\, \" and n"),
            },
            letter => value.push(letter),
        }
    }
    Err("a label's value does not end")
}

/// The type of a series: its own, or that of the histogram or summary it is part of.
fn kind(name: &str, declared: &HashMap<String, Declared>) -> Kind {
    match declared.get(name) {
        Some(Declared::Plain(kind)) => return *kind,
        // The quantiles; a histogram has no series of its own name.
        Some(Declared::Summary | Declared::Histogram) => return Kind::Gauge,
        None => {}
    }
    let part_of = |suffix: &str| declared.get(name.strip_suffix(suffix)?);
    let is_part = matches!(part_of("_bucket"), Some(Declared::Histogram))
        || ["_sum", "_count"].into_iter().any(|suffix| {
            matches!(
                part_of(suffix),
                Some(Declared::Histogram | Declared::Summary)
            )
        });
    if is_part {
        Kind::Counter
    } else {
        Kind::Untyped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "# HELP backup_age_seconds Age.\n# TYPE backup_age_seconds gauge\n\
        backup_age_seconds{job=\"db\",path=\"C:\\\\x \\\"y\\\"\\nz\",empty=\"\"} 1.5e3\r\n\
        backup_age_seconds {  job = \"web\" , } +Inf\n\n\
        # TYPE took histogram\ntook_bucket{le=\"0.5\"} 3\ntook_sum 4.5\ntook_count 3\n\
        # TYPE old summary\nold{quantile=\"0.9\"} 7\nold_count 1\n\
        plain\t-2\n# a comment\n#TYPE x counter\nx 1\n";

    #[test]
    fn good_files_are_read() {
        let samples = parse(GOOD.as_bytes()).expect("good");
        let shape: Vec<_> = samples
            .iter()
            .map(|s| (s.name.as_str(), s.kind, s.value))
            .collect();
        assert_eq!(
            shape,
            [
                ("backup_age_seconds", Kind::Gauge, 1500.0),
                ("backup_age_seconds", Kind::Gauge, f64::INFINITY),
                ("took_bucket", Kind::Counter, 3.0),
                ("took_sum", Kind::Counter, 4.5),
                ("took_count", Kind::Counter, 3.0),
                ("old", Kind::Gauge, 7.0),
                ("old_count", Kind::Counter, 1.0),
                ("plain", Kind::Untyped, -2.0),
                ("x", Kind::Counter, 1.0),
            ]
        );
        let labels: Vec<_> = samples[0]
            .labels
            .iter()
            .map(|(k, v)| (&**k, &**v))
            .collect();
        assert_eq!(labels, [("job", "db"), ("path", "C:\\x \"y\"\nz")]);
    }

    #[test]
    fn the_first_wrong_line_is_named() {
        for (text, line, what) in [
            ("a 1\nb\n", 2, "has a name and no value"),
            ("a x\n", 1, "the value is no number"),
            (
                "a 1 1700000000\n",
                1,
                "has a timestamp, which a text file must not have",
            ),
            ("1a 1\n", 1, "is no name of a metric"),
            ("a{b=\"c\" 1\n", 1, "labels are separated by commas"),
            ("a{b=\"c} 1\n", 1, "a label's value does not end"),
            ("a{b=c} 1\n", 1, "a label's value has no quotes"),
            ("a{b} 1\n", 1, "a label has no value"),
            ("a{-=\"c\"} 1\n", 1, "is no name of a label"),
            ("a{b=\"c\",b=\"d\"} 1\n", 1, "a label stands there twice"),
            (
                "a{b=\"\\c\"} 1\n",
                1,
                "a backslash stands before none of \\, \" and n",
            ),
            (
                "# TYPE a gauge\n# TYPE a gauge\n",
                2,
                "a second type for this metric",
            ),
            (
                "# TYPE a number\n",
                1,
                "a type is one of counter, gauge, histogram, summary, untyped",
            ),
            ("# TYPE a\n", 1, "# TYPE takes a name and a type"),
        ] {
            assert_eq!(
                parse(text.as_bytes()),
                Err(ParseError { line, what }),
                "{text}"
            );
        }
        let what = "is not UTF-8";
        assert_eq!(parse(b"a 1\nb \xff\n"), Err(ParseError { line: 2, what }));
    }

    proptest! {
        #[test]
        fn garbage_is_survived(bytes: Vec<u8>, at in 0usize..400, byte: u8) {
            let _ = parse(&bytes);
            let mut near = GOOD.as_bytes().to_vec();
            if let Some(place) = near.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&near);
            near.truncate(at);
            let _ = parse(&near);
        }
    }
}
