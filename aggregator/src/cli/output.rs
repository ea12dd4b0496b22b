//! One answer in every form it can be asked for: table, wide, json, jsonl, csv, name, and plain tabs in a pipe.
//!
//! A list is described once, by its columns; each form is made from that description. JSON fields are the
//! columns' keys: stable, in base units, times in RFC 3339 UTC, absent values null. A table shows the same
//! values in human units.

use std::{cmp::Ordering, fmt::Write as _};

use clap::ValueEnum;
use muster_proto::{time::Timestamp, v1};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::{
    failure::{Code, Failure},
    table::{self, Heading},
    text::{Text, acts_on_terminal, visible},
    units::{View, rfc3339},
};

/// Version of the JSON this program writes; fields are only ever added to it.
pub const API_VERSION: &str = "muster/v1";

/// Forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for a person (the default on a terminal)
    Table,
    /// A table with every column
    Wide,
    /// One object: apiVersion, items, complete, missing, asOf
    Json,
    /// One object a line for each item
    Jsonl,
    /// Comma-separated with a heading line
    Csv,
    /// Only names, one a line
    Name,
    /// Tab-separated without a heading line (the default in a pipe)
    Tsv,
}

/// Where a column is shown; machine forms have all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// In every table, and in a pipe.
    Always,
    /// In wide tables.
    Wide,
    /// In a pipe and in json, jsonl and csv: what tables show inside another column.
    Pipe,
    /// Only in json, jsonl and csv, or when named.
    Machine,
}

/// One column of a list of `R`.
pub struct Column<R> {
    /// Stable name in JSON and CSV.
    pub key: &'static str,
    /// Heading in tables; its lower-case form names the column too.
    pub title: &'static str,
    /// Where it is shown.
    pub shown: Shown,
    /// Numbers stand at the right.
    pub right: bool,
    /// For people.
    pub human: fn(&R, &View) -> Text,
    /// For programs.
    pub value: fn(&R) -> Value,
}

impl<R> Column<R> {
    fn is_called(&self, word: &str) -> bool {
        self.key.eq_ignore_ascii_case(word)
            || self.title.eq_ignore_ascii_case(word)
            || snake(self.key) == word
    }
}

/// `cpuRatio` as `cpu_ratio`, as the fields of the contract are spelt.
#[must_use]
pub fn snake(key: &str) -> String {
    let mut out = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Rows and what is said about them.
pub struct List<R: 'static> {
    /// Description of a row.
    pub columns: &'static [Column<R>],
    /// In the order in which they are shown.
    pub rows: Vec<R>,
    /// A row's name for `-o name`.
    pub name: fn(&R) -> String,
    /// How far the answer can be relied on.
    pub meta: v1::AnswerMeta,
    /// Lines below a table.
    pub footer: Vec<Text>,
    /// What a table without rows says instead.
    pub empty: Text,
}

/// One thing looked at closely.
pub struct Detail {
    /// For `-o name`.
    pub name: String,
    /// For programs.
    pub item: Value,
    /// For people.
    pub lines: Vec<Text>,
    /// How far the answer can be relied on.
    pub meta: v1::AnswerMeta,
}

/// How the operator wants to see it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Form.
    pub format: Format,
    /// Columns by key or title; empty: the usual ones.
    pub columns: Vec<String>,
    /// Column to order by, `-` before it for the largest first; only where the aggregator did not do it.
    pub sort: Option<String>,
    /// Most rows.
    pub limit: Option<usize>,
}

/// An answer ready to be written to stdout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// With colours.
    pub text: String,
    /// What to know about it, one a line; goes to where errors go.
    pub notes: Vec<String>,
    /// Parts of the fleet that could not be asked.
    pub missing: Vec<String>,
    /// Hosts that were named and do not exist.
    pub unknown: Vec<String>,
    /// The answer is there and it is a bad one: exit 1.
    pub bad: bool,
}

impl Rendered {
    /// Text that is complete.
    #[must_use]
    pub fn text(text: String) -> Self {
        Self {
            text,
            ..Self::default()
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a, I: Serialize> {
    api_version: &'static str,
    items: I,
    complete: bool,
    missing: &'a [String],
    as_of: String,
}

/// One item with its keys in the order of the columns.
struct Item<'a, R: 'static> {
    columns: &'a [&'static Column<R>],
    row: &'a R,
}

impl<R> Serialize for Item<'_, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for column in self.columns {
            map.serialize_entry(column.key, &(column.value)(self.row))?;
        }
        map.end()
    }
}

/// Makes the text of a list.
///
/// # Errors
/// A column that does not exist.
pub fn list<R>(mut list: List<R>, options: &Options, view: &View) -> Result<Rendered, Failure> {
    if let Some(sort) = &options.sort {
        sort_rows(&mut list, sort)?;
    }
    if let Some(limit) = options.limit {
        list.rows.truncate(limit);
    }
    let columns = choose(list.columns, options)?;
    let mut out = String::new();
    match options.format {
        Format::Table | Format::Wide => {
            if list.rows.is_empty() {
                list.empty.line_to(&mut out);
            } else {
                let headings: Vec<Heading> = columns
                    .iter()
                    .map(|column| Heading {
                        title: column.title,
                        right: column.right,
                    })
                    .collect();
                let cells = |row: &R| columns.iter().map(|c| (c.human)(row, view)).collect();
                let rows = list.rows.iter().map(cells).collect();
                table::draw(&headings, rows, view.width, &mut out);
            }
            for line in &list.footer {
                line.line_to(&mut out);
            }
        }
        Format::Json => {
            let items: Vec<_> = list
                .rows
                .iter()
                .map(|row| Item {
                    columns: &columns,
                    row,
                })
                .collect();
            write_json(&mut out, &items, &list.meta)?;
        }
        Format::Jsonl => {
            for row in &list.rows {
                let item = Item {
                    columns: &columns,
                    row,
                };
                let line = serde_json::to_string(&item).map_err(|error| not_json(&error))?;
                push_json(&mut out, &line);
            }
        }
        Format::Csv => {
            let keys = columns.iter().map(|column| csv_field(column.key));
            out.push_str(&keys.collect::<Vec<_>>().join(","));
            out.push_str("\r\n");
            for row in &list.rows {
                let fields = columns
                    .iter()
                    .map(|column| csv_field(&plain(&(column.value)(row))));
                out.push_str(&fields.collect::<Vec<_>>().join(","));
                out.push_str("\r\n");
            }
        }
        Format::Name => {
            for row in &list.rows {
                let _ = writeln!(out, "{}", visible(&(list.name)(row)));
            }
        }
        Format::Tsv => {
            for row in &list.rows {
                let fields = columns
                    .iter()
                    .map(|column| visible(&plain(&(column.value)(row))).into_owned());
                let _ = writeln!(out, "{}", fields.collect::<Vec<_>>().join("\t"));
            }
        }
    }
    Ok(Rendered {
        text: out,
        missing: list.meta.missing,
        ..Rendered::default()
    })
}

/// Makes the text of one thing; tabs and CSV give a line for each number in it.
///
/// # Errors
/// When columns are asked for, which one thing does not have.
pub fn detail(detail: Detail, options: &Options) -> Result<Rendered, Failure> {
    if !options.columns.is_empty() || options.sort.is_some() {
        return Err(Failure::new(
            Code::Usage,
            "--columns and --sort are for lists, this is one thing",
        ));
    }
    let mut out = String::new();
    match options.format {
        Format::Table | Format::Wide => {
            for line in &detail.lines {
                line.line_to(&mut out);
            }
        }
        Format::Json => write_json(&mut out, [&detail.item], &detail.meta)?,
        Format::Jsonl => {
            push_json(&mut out, &detail.item.to_string());
        }
        Format::Name => {
            let _ = writeln!(out, "{}", visible(&detail.name));
        }
        Format::Tsv => flatten("", &detail.item, &mut |path, value| {
            let _ = writeln!(out, "{}\t{}", visible(path), visible(value));
        }),
        Format::Csv => {
            out.push_str("field,value\r\n");
            flatten("", &detail.item, &mut |path, value| {
                let _ = write!(out, "{},{}\r\n", csv_field(path), csv_field(value));
            });
        }
    }
    Ok(Rendered {
        text: out,
        missing: detail.meta.missing,
        ..Rendered::default()
    })
}

fn write_json(
    out: &mut String,
    items: impl Serialize,
    meta: &v1::AnswerMeta,
) -> Result<(), Failure> {
    let envelope = Envelope {
        api_version: API_VERSION,
        items,
        complete: meta.complete,
        missing: &meta.missing,
        as_of: rfc3339(Timestamp::from_millis(meta.as_of_ms)),
    };
    let text = serde_json::to_string_pretty(&envelope).map_err(|error| not_json(&error))?;
    push_json(out, &text);
    Ok(())
}

/// JSON with `\uXXXX` for what serde writes as it is and a terminal would act on. Such characters can stand
/// only inside strings, so this is the same JSON.
fn push_json(out: &mut String, json: &str) {
    for c in json.chars() {
        if c != '\n' && acts_on_terminal(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out.push('\n');
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::new(
        Code::Failed,
        format!("the answer cannot be written as JSON ({error})"),
    )
}

fn choose<R>(
    all: &'static [Column<R>],
    options: &Options,
) -> Result<Vec<&'static Column<R>>, Failure> {
    if !options.columns.is_empty() {
        return options.columns.iter().map(|word| find(all, word)).collect();
    }
    let wanted = |column: &&Column<R>| match options.format {
        Format::Table | Format::Name => column.shown == Shown::Always,
        Format::Tsv => matches!(column.shown, Shown::Always | Shown::Pipe),
        Format::Wide => matches!(column.shown, Shown::Always | Shown::Wide),
        Format::Json | Format::Jsonl | Format::Csv => true,
    };
    Ok(all.iter().filter(wanted).collect())
}

/// The column of this heading or JSON name, in any case.
///
/// # Errors
/// All that there are.
pub fn find<R>(all: &'static [Column<R>], word: &str) -> Result<&'static Column<R>, Failure> {
    all.iter()
        .find(|column| column.is_called(word))
        .ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|column| column.key).collect();
            let some: Vec<&str> = known.iter().take(2).copied().collect();
            Failure::new(Code::Usage, format!("there is no column {word:?} here"))
                .because(format!("columns: {}", known.join(", ")))
                .because("their headings will do as well")
                .hint(format!("-c {}", some.join(",")), "to show just these")
                .hint(
                    format!("-S {}", some.last().unwrap_or(&"name")),
                    "to order by one; - before it for the largest first",
                )
        })
}

fn sort_rows<R>(list: &mut List<R>, sort: &str) -> Result<(), Failure> {
    let (word, descending) = match sort.strip_prefix('-') {
        Some(word) => (word, true),
        None => (sort, false),
    };
    let column = find(list.columns, word)?;
    list.rows.sort_by(|a, b| {
        let (a, b) = ((column.value)(a), (column.value)(b));
        // What is not known comes last whichever way.
        match (a.is_null(), b.is_null()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) if descending => compare(&b, &a),
            (false, false) => compare(&a, &b),
        }
    });
    Ok(())
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => plain(a).cmp(&plain(b)),
    }
}

/// A value without JSON's quotation marks; lists separated by spaces, maps as `key=value`.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| format!("{key}={}", plain(value)))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn flatten(path: &str, value: &Value, each: &mut impl FnMut(&str, &str)) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&below(key), value, each);
            }
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (at, value) in items.iter().enumerate() {
                flatten(&below(&at.to_string()), value, each);
            }
        }
        // Unknown is an empty cell, so that every answer has the same lines.
        _ => each(path, &plain(value)),
    }
}

/// RFC 4180; a field that a spreadsheet would take for a formula is given a quotation mark before it.
fn csv_field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '@', '\t', '\r'])
        || (text.starts_with('-') && text.parse::<f64>().is_err());
    let mut text = visible(text).into_owned();
    if formula {
        text.insert(0, '\'');
    }
    if text.contains([',', '"']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

/// A number, or null when it is absent or not finite.
#[must_use]
pub fn number(value: Option<f64>) -> Value {
    value.map_or(Value::Null, Value::from)
}

/// A moment in RFC 3339, or null; 0 stands for "not known" in the contract.
#[must_use]
pub fn moment(millis: Option<i64>) -> Value {
    match millis {
        None | Some(0) => Value::Null,
        Some(millis) => rfc3339(Timestamp::from_millis(millis)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_are_quoted_and_no_formulas() {
        let cases = [
            ("web-01", "web-01"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
            ("-0.5", "-0.5"),
            ("-cmd", "'-cmd"),
        ];
        for (text, expected) in cases {
            assert_eq!(csv_field(text), expected);
        }
    }

    #[test]
    fn json_keeps_its_meaning_and_moves_no_cursor() {
        let name = "a\u{9b}2J\u{202e}\u{e0041}\n";
        let mut out = String::new();
        push_json(&mut out, &json_of(name));
        assert_eq!(out, "\"a\\u009b2J\\u202e\\udb40\\udc41\\n\"\n");
        assert_eq!(
            serde_json::from_str::<String>(&out).ok().as_deref(),
            Some(name)
        );
    }

    fn json_of(text: &str) -> String {
        serde_json::to_string(text).expect("a string is JSON")
    }

    #[test]
    fn keys_have_a_snake_form() {
        assert_eq!(
            snake("networkReceiveBytesPerSecond"),
            "network_receive_bytes_per_second"
        );
        assert_eq!(snake("load1"), "load1");
    }

    #[test]
    fn one_thing_becomes_paths() {
        let item =
            serde_json::json!({"a": {"b": 1, "c": null}, "d": ["x", "y"], "e": [{"f": true}]});
        let mut lines = Vec::new();
        flatten("", &item, &mut |path, value| {
            lines.push(format!("{path}={value}"))
        });
        assert_eq!(lines, ["a.b=1", "a.c=", "d=x y", "e.0.f=true"]);
    }
}
