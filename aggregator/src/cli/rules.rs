//! `muster rules list|explain|test`: what Muster calls wrong, and whether a change of it would be taken.
//!
//! The rules are those of this program, which is the aggregator's own build; no aggregator is asked.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use clap::Subcommand;
use muster_agent::settings::show_duration;

use super::failure::{Code, Failure};
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
    /// Check the [[rules]] of a configuration file
    Test {
        /// File with [[rules]] entries, aggregator.toml for example
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Does it; what is printed.
///
/// # Errors
/// When there is no such rule, or the file does not hold what it should.
pub fn run(command: &Rules) -> Result<String, Failure> {
    match command {
        Rules::List => Ok(list()),
        Rules::Explain { name } => explain(name),
        Rules::Test { file } => test(file),
    }
}

fn list() -> String {
    let mut text = String::new();
    let built_in = BUILT_IN.iter().map(|known| {
        let opens = known.opens.to_owned();
        (known.name, known.severity, opens, "in the program")
    });
    let of_pack = pack().iter().map(|rule| {
        let severity = rule.severity.0.as_str();
        (rule.name.as_str(), severity, line(rule), "can be changed")
    });
    for (name, severity, condition, kind) in built_in.chain(of_pack) {
        // A String takes everything.
        let _ = writeln!(text, "{name:<22} {severity:<9} {kind:<15} {condition}");
    }
    text
}

/// `above 90.0 %, clears below 80.0 %, for 2m`.
fn line(rule: &Definition) -> String {
    let held = rule.open_after.0;
    if held == Duration::ZERO {
        return rule.condition();
    }
    format!("{}, for {}", rule.condition(), show_duration(held))
}

fn explain(name: &str) -> Result<String, Failure> {
    let more = link(name).unwrap_or_default();
    if let Some(known) = BUILT_IN.iter().find(|known| known.name == name) {
        return Ok(format!(
            "{name} ({}, in the program)\n  opens   {}\n  to do   {}\n  more    {more}\n",
            known.severity, known.opens, known.runbook
        ));
    }
    let Some(rule) = pack().iter().find(|rule| rule.name == name) else {
        let failure = Failure::new(Code::NotFound, format!("there is no rule {name:?}"));
        return Err(failure.hint("muster rules list", "the rules there are"));
    };
    let mut text = format!("{} ({})\n", rule.name, rule.severity.0.as_str());
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
        }
    );
    if let Some(per) = &value.per {
        let _ = write!(looks, ", over {per}");
    }
    let mut opens = line(rule);
    if let Some((and, bound)) = rule.and.as_ref().zip(rule.and_above) {
        let metric = and.metric.as_deref().unwrap_or_default();
        let _ = write!(
            opens,
            ", only if {metric} grows by more than {bound} a second"
        );
    }
    for (what, words) in [
        (
            "says",
            rule.sentence(
                "SUBJECT",
                rule.above.or(rule.below).unwrap_or(rule.clear),
                rule.detail.as_ref().map(|detail| &*detail.label),
            ),
        ),
        ("looks", looks),
        (
            "each",
            rule.subject.clone().unwrap_or_else(|| "host".to_owned()),
        ),
        ("opens", opens),
        (
            "clears",
            format!(
                "after {} on the other side",
                show_duration(rule.clear_after.0)
            ),
        ),
        ("to do", rule.runbook.clone()),
        ("more", more),
    ] {
        let _ = writeln!(text, "  {what:<7} {words}");
    }
    Ok(text)
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
