//! Rules that look at one number of a host: a pack in the program, and the overrides of an operator.
//!
//! Each rule names a number (a metric as it is, its rate, how much it grew lately, or a signal; perhaps over
//! another), the bound that opens, the bound that clears, and how long each must hold. Three-valued: a number that
//! is not there, or lies between the bounds, is unknown. `watch` evaluates them; holding, opening and
//! clearing are the engine's.
//!
//! The pack is `pack.toml`, read once. Overrides change bounds, times, severity, or switch a rule off for hosts that
//! a selector picks; they cannot make a rule look at something else, so what is kept of a host does not depend
//! on them.

mod overrides;
mod runbook;
mod watch;

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use serde::Deserialize;

pub use overrides::{Bounds, Difference, Override, OverrideError, Overrides};
pub use runbook::{BUILT_IN, BuiltIn, Runbooks, link, page, runbook};
pub use watch::{Attention, RuleSet, Sample, Use, lists_collector, need_rate, uses_of};
pub(super) use watch::{Grown, Watcher};

use super::{Rule, Severity};

/// What the program holds.
const TEXT: &str = include_str!("pack.toml");

/// A rule of the pack.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Identifies it.
    pub name: String,
    /// What people read; `{value}` and `{subject}` stand for what was found.
    pub says: String,
    /// How much it matters.
    pub severity: Word,
    /// What it looks at.
    pub value: Value,
    /// Label whose values are its subjects; without, the host as a whole.
    #[serde(default)]
    pub subject: Option<String>,
    /// The collector that reads it. While it works, a subject that it does not name is gone; without, subjects are
    /// gone when others are named.
    #[serde(default)]
    pub collector: Option<String>,
    /// How long a subject, or of a rule about the host as a whole what the collector reads, must be gone before that
    /// clears it.
    #[serde(default = "a_day")]
    pub gone: Time,
    /// Metric that says of a subject that the rule is not about it: while it is above 0.
    #[serde(default)]
    pub unless: Option<String>,
    /// A label that says more of the subject: `{detail}` in what people read.
    #[serde(default)]
    pub detail: Option<Detail>,
    /// Opens above this.
    #[serde(default)]
    pub above: Option<f64>,
    /// Above this it is critical, whatever `severity` says.
    #[serde(default)]
    pub critical_above: Option<f64>,
    /// Above this, which is above `above`, it is unknown: the value says so.
    #[serde(default)]
    pub above_is_unknown: Option<f64>,
    /// Opens below this.
    #[serde(default)]
    pub below: Option<f64>,
    /// Clears when the value is on the other side of this.
    pub clear: f64,
    /// Something else that must hold too for it to open.
    #[serde(default)]
    pub and: Option<Value>,
    /// The bound of that.
    #[serde(default)]
    pub and_above: Option<f64>,
    /// How long it must be abnormal before it opens.
    #[serde(rename = "for")]
    pub open_after: Time,
    /// How long it must be normal before it clears.
    #[serde(rename = "clear_for")]
    pub clear_after: Time,
    /// How the value reads.
    pub unit: Unit,
    /// What to do.
    pub runbook: String,
}

/// A label of another metric that says more of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detail {
    /// The metric; its value is above 0 where the label holds.
    pub metric: String,
    /// The label.
    pub label: String,
}

/// A number of a host.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// Name of a metric, ...
    #[serde(default)]
    pub metric: Option<String>,
    /// ... or of a signal.
    #[serde(default)]
    pub signal: Option<String>,
    /// Labels that its series must have, each with the values that will do.
    #[serde(default)]
    pub labels: BTreeMap<String, Vec<String>>,
    /// What of it.
    #[serde(default, rename = "as")]
    pub reading: Reading,
    /// Metric by which it is divided: of the same reading if it counts, else as it is.
    #[serde(default)]
    pub per: Option<String>,
    /// Of a promise: the metric that says when it was last kept.
    #[serde(default)]
    pub done: Option<String>,
}

/// What of a metric counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reading {
    /// Its value.
    #[default]
    Value,
    /// Its growth a second, over the last tick or, where it is read less often, between its last two readings.
    Rate,
    /// How much it grew lately: half of what it grew counts after 15 min, a quarter after 30.
    Recent,
    /// Its value, once it was seen at 0: what has always been so did not become so, and is unknown.
    Turned,
    /// How many seconds ago the moment was that it names; 0 where it names none.
    Age,
    /// How many seconds the moment that it promised has passed without [`Value::done`] having come to it.
    Overdue,
}

/// How a value reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// 0 to 1, shown in percent.
    Ratio,
    /// A number of things.
    Count,
    /// So many a second.
    Rate,
    /// Yes or no.
    Flag,
    /// The status of a check: 0 ok, 1 warning, 2 critical, 3 unknown.
    Status,
    /// Seconds.
    Time,
}

impl Unit {
    /// The value for people.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{:.1} %", value * 100.0),
            Self::Count => format!("{:.0}", value.ceil()),
            Self::Rate => format!("{value:.0}"),
            Self::Flag => if value > 0.5 { "yes" } else { "no" }.to_owned(),
            Self::Status => match value {
                value if value < 0.5 => "ok",
                value if value < 1.5 => "warning",
                value if value < 2.5 => "critical",
                _ => "unknown",
            }
            .to_owned(),
            Self::Time => match value {
                value if value < 2.0 * 3600.0 => format!("{:.0} min", value / 60.0),
                value if value < 2.0 * 86_400.0 => format!("{:.0} h", value / 3600.0),
                value => format!("{:.0} days", value / 86_400.0),
            },
        }
    }
}

/// A severity as the file writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(pub Severity);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = String::deserialize(from)?;
        let known = Severity::ALL.into_iter().find(|one| one.as_str() == word);
        known.map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{word:?} is no severity: write info, warning or critical"
            ))
        })
    }
}

/// A time as the file writes it: `90s`, `5m`, `2h`, `1d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        time(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is no time: write 90s, 5m, 2h or 1d"))
        })
    }
}

/// A device that is gone cannot be well; after a day it is no one's worry.
fn a_day() -> Time {
    Time(Duration::from_secs(86_400))
}

fn time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(Duration::from_secs(u64::from(number) * seconds))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pack {
    rule: Vec<Definition>,
}

/// The rules of the pack, in its order.
#[must_use]
pub fn pack() -> &'static [Definition] {
    static PACK: LazyLock<Vec<Definition>> = LazyLock::new(|| {
        // The test below reads it too, so a program that was tested holds one that reads.
        let pack: Pack =
            toml::from_str(TEXT).expect("the pack in the program reads, as its test says");
        pack.rule
    });
    &PACK
}

/// What the engine is told of a rule as the pack has it.
pub(super) fn plain(at: usize) -> &'static Rule {
    static RULES: LazyLock<Vec<Rule>> =
        LazyLock::new(|| pack().iter().map(|definition| definition.rule()).collect());
    &RULES[at]
}

impl Definition {
    fn rule(&'static self) -> Rule {
        Rule {
            name: &self.name,
            open_after: self.open_after.0,
            clear_after: self.clear_after.0,
            gone_after: (self.subject.is_some() || self.collector.is_some()).then_some(self.gone.0),
            makes_incidents: true,
            more: self.subject.as_ref().map(|_| "more"),
        }
    }

    /// What people read of a finding.
    #[must_use]
    pub fn sentence(&self, subject: &str, value: f64, detail: Option<&str>) -> String {
        let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
        // The subject last: it is the host's own word and may hold a brace.
        self.says
            .replace("{value}", &self.unit.show(value))
            .replace("{detail}", &detail)
            .replace("{subject}", subject)
    }

    /// The condition in a line: `above 90.0 %, clears below 80.0 %`.
    #[must_use]
    pub fn condition(&self) -> String {
        self.condition_of(self.above, self.below, self.clear)
    }

    /// The condition with other bounds.
    #[must_use]
    pub fn condition_of(&self, above: Option<f64>, below: Option<f64>, clear: f64) -> String {
        let show = |bound: f64| match self.unit {
            // Between two of its values: `above 0.5`, not `above yes`.
            Unit::Flag | Unit::Status => format!("{bound}"),
            Unit::Count if bound.fract() != 0.0 => format!("{bound}"),
            _ => self.unit.show(bound),
        };
        let mut text = match (above, below) {
            (Some(above), _) => format!("above {}", show(above)),
            (None, Some(below)) => format!("below {}", show(below)),
            (None, None) => return "never".to_owned(),
        };
        if let Some(critical) = self.critical_above {
            text += &format!(" (critical: above {})", show(critical));
        }
        if let Some(limit) = self.above_is_unknown {
            text += &format!(" and up to {}", show(limit));
        }
        let side = if above.is_some() { "below" } else { "above" };
        text + &format!(", clears {side} {}", show(clear))
    }

    /// What is wrong with it in itself.
    pub(super) fn fault(&self) -> Option<String> {
        match (self.above, self.below) {
            (Some(_), Some(_)) | (None, None) => Some("needs one of above and below".to_owned()),
            (Some(above), None) if self.clear > above => Some(format!(
                "clears below {}, which is above {above}, where it opens",
                self.clear
            )),
            (None, Some(below)) if self.clear < below => Some(format!(
                "clears above {}, which is below {below}, where it opens",
                self.clear
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod through;
