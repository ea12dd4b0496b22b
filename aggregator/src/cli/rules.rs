//! `muster rules list|explain|test`: what Muster calls wrong, and whether a change of it would be taken.
//!
//! The rules are those of this program, which is the aggregator's own build; no aggregator is asked.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use clap::Subcommand;
use muster_agent::settings::show_duration;
use muster_proto::v1;
use serde_json::{Map, Value, json};

use super::{
    failure::{Code, Failure},
    output::{self, Column, Detail, List, Options, Rendered, Shown},
    text::{Text, Tone},
    units::View,
};
use crate::detect::rules::{BUILT_IN, Definition, Overrides, Reading, link, pack};

/// `muster rules …`
#[derive(Debug, Clone, Subcommand)]
pub enum Rules {
    /// List the rules: severity, condition, how long it must hold
    List,
    /// Say what one rule looks at, when it opens and clears, and what to do
    Explain {
        /// Name of the rule
        #[arg(value_name = "RULE")]
        name: String,
    },
    /// Check the rules tables of a configuration file
    Test {
        /// File with rules tables, aggregator.toml for example
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Does it; what is printed.
///
/// # Errors
/// When there is no such rule, or the file does not hold what it should.
pub fn run(command: &Rules, options: &Options, view: &View) -> Result<Rendered, Failure> {
    match command {
        Rules::List => output::list(list(view), options, view),
        Rules::Explain { name } => output::detail(explain(name, view)?, options),
        Rules::Test { file } => test(file).map(Rendered::text),
    }
}

/// A rule in the list.
pub struct Row {
    name: &'static str,
    severity: &'static str,
    /// Whether a rules table can change it.
    changeable: bool,
    opens: String,
}

/// Every column of a rule.
static COLUMNS: &[Column<Row>] = &[
    Column {
        key: "name",
        title: "RULE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, row.name),
        value: |row| json!(row.name),
    },
    Column {
        key: "severity",
        title: "SEVERITY",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            let tone = match row.severity {
                "critical" => Tone::Bad,
                "warning" => Tone::Warn,
                _ => Tone::Plain,
            };
            Text::toned(tone, row.severity)
        },
        value: |row| json!(row.severity),
    },
    Column {
        key: "changeable",
        title: "KIND",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            Text::plain(if row.changeable {
                "can be changed"
            } else {
                "in the program"
            })
        },
        value: |row| json!(row.changeable),
    },
    Column {
        key: "opens",
        title: "OPENS",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.opens),
        value: |row| json!(row.opens),
    },
];

/// What this program knows by itself is known whole.
fn whole(view: &View) -> v1::AnswerMeta {
    v1::AnswerMeta {
        complete: true,
        missing: Vec::new(),
        as_of_ms: view.now.as_millis(),
    }
}

fn list(view: &View) -> List<Row> {
    let built_in = BUILT_IN.iter().map(|known| Row {
        name: known.name,
        severity: known.severity,
        changeable: false,
        opens: known.opens.to_owned(),
    });
    let of_pack = pack().iter().map(|rule| Row {
        name: &rule.name,
        severity: rule.severity.0.as_str(),
        changeable: true,
        opens: line(rule),
    });
    List {
        columns: COLUMNS,
        rows: built_in.chain(of_pack).collect(),
        name: |row| row.name.to_owned(),
        meta: whole(view),
        footer: Vec::new(),
        empty: Text::plain("no rules"),
    }
}

/// `above 90.0 %, clears below 80.0 %, for 2m`.
fn line(rule: &Definition) -> String {
    let held = rule.open_after.0;
    if held == Duration::ZERO {
        return rule.condition();
    }
    format!("{}, for {}", rule.condition(), show_duration(held))
}

/// One rule, from what its words are called to what they say.
fn told(
    name: &str,
    severity: &str,
    kind: &str,
    words: Vec<(&'static str, String)>,
    view: &View,
) -> Detail {
    let mut item = Map::new();
    item.insert("name".to_owned(), json!(name));
    item.insert("severity".to_owned(), json!(severity));
    let mut lines = vec![Text::toned(Tone::Strong, name).and(format!(" ({severity}{kind})"))];
    for (what, said) in words {
        lines.push(Text::plain(format!("  {what:<7} {said}")));
        let key = if what == "to do" { "runbook" } else { what };
        item.insert(key.to_owned(), json!(said));
    }
    Detail {
        name: name.to_owned(),
        item: Value::Object(item),
        lines,
        meta: whole(view),
    }
}

fn explain(name: &str, view: &View) -> Result<Detail, Failure> {
    let more = link(name).unwrap_or_default();
    if let Some(known) = BUILT_IN.iter().find(|known| known.name == name) {
        let words = vec![
            ("opens", known.opens.to_owned()),
            ("to do", known.runbook.to_owned()),
            ("more", more),
        ];
        return Ok(told(name, known.severity, ", in the program", words, view));
    }
    let Some(rule) = pack().iter().find(|rule| rule.name == name) else {
        let failure = Failure::new(Code::NotFound, format!("there is no rule {name:?}"));
        return Err(failure.hint("muster rules list", "the rules there are"));
    };
    let value = &rule.value;
    let of = value.metric.as_deref().or(value.signal.as_deref());
    let mut looks = of.unwrap_or_default().to_owned();
    for (key, allowed) in &value.labels {
        let _ = write!(looks, " with {key} {}", allowed.join(" or "));
    }
    let _ = write!(
        looks,
        ", {}",
        match value.reading {
            Reading::Value => "as it is",
            Reading::Rate => "by the second",
            Reading::Recent => "what it grew by lately (half counts after 15 min)",
            Reading::Turned => "once it was seen at 0",
            Reading::Age => "how long ago that was (bounds are seconds)",
            Reading::Overdue => "how long it has passed and was not done (bounds are seconds)",
        }
    );
    if let Some(per) = &value.per {
        let _ = write!(looks, ", over {per}");
    }
    if let Some(done) = &value.done {
        let _ = write!(looks, ", by {done}");
    }
    let mut opens = line(rule);
    if let Some((and, bound)) = rule.and.as_ref().zip(rule.and_above) {
        let metric = and.metric.as_deref().unwrap_or_default();
        let _ = write!(
            opens,
            ", only if {metric} grows by more than {bound} a second"
        );
    }
    let bound = rule.above.or(rule.below).unwrap_or(rule.clear);
    let label = rule.detail.as_ref().map(|detail| &*detail.label);
    let cleared = show_duration(rule.clear_after.0);
    let words = vec![
        ("says", rule.sentence("SUBJECT", bound, label)),
        ("looks", looks),
        (
            "each",
            rule.subject.clone().unwrap_or_else(|| "host".to_owned()),
        ),
        ("opens", opens),
        ("clears", format!("after {cleared} on the other side")),
        ("to do", rule.runbook.clone()),
        ("more", more),
    ];
    Ok(told(name, rule.severity.0.as_str(), "", words, view))
}

fn test(file: &PathBuf) -> Result<String, Failure> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| {
        Failure::new(Code::Usage, format!("cannot read {shown}")).because(error.to_string())
    })?;
    let overrides = Overrides::parse(&text).map_err(|error| {
        Failure::new(Code::Usage, format!("{shown} would not be taken")).because(error.to_string())
    })?;
    Ok(format!(
        "{shown}: {} changes of rules, all of which would be taken\n",
        overrides.len()
    ))
}
