//! The rules' numbers out of a host's series, and what they say.
//!
//! Which series a rule looks at is found once, when a series' name is interned ([`uses_of`]); at each tick the
//! fold hands over only those ([`Sample`]). Everything else here is a pure step.

use std::collections::BTreeMap;

use muster_proto::{series::Family, time::Timestamp};
use serde::{Deserialize, Serialize};

use super::{Definition, Reading, Value, overrides::Bounds, pack};
use crate::{
    detect::{Coverage, Findings, Observation, Reason, Verdict},
    fleet::SIGNALS,
};

/// Half of what a counter grew counts after this.
const RECENT_HALF_LIFE_SECONDS: f64 = 900.0;
/// Subjects of one rule whose growth is followed.
const MAX_GROWING: usize = 64;
/// What has faded to this is forgotten.
const FADED: f64 = 0.01;

/// A place of a series in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    rule: u8,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Value,
    Per,
    And,
}

/// One series of a host that a rule looks at, at one tick.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Where.
    pub used: Use,
    /// Its family and the values of its labels.
    pub family: &'a Family,
    /// One for each label of the family.
    pub labels: &'a [String],
    /// Its value.
    pub value: f64,
    /// What it grew by a second over the last tick, where that is known.
    pub rate: Option<f64>,
    /// What it grew by.
    pub grown: Option<f64>,
}

/// The places of a series in the rules of the pack.
#[must_use]
pub fn uses_of(family: &Family, labels: &[String]) -> Box<[Use]> {
    let mut uses = Vec::new();
    for (rule, definition) in (0..).zip(pack()) {
        let mut put = |part| uses.push(Use { rule, part });
        if definition.value.takes(family, labels) {
            put(Part::Value);
        }
        if definition.value.per.as_deref() == Some(family.name.as_str()) {
            put(Part::Per);
        }
        if definition
            .and
            .as_ref()
            .is_some_and(|and| and.takes(family, labels))
        {
            put(Part::And);
        }
    }
    uses.into()
}

impl Value {
    fn takes(&self, family: &Family, labels: &[String]) -> bool {
        self.metric.as_deref() == Some(family.name.as_str())
            && self.labels.iter().all(|(key, allowed)| {
                let value = label(family, labels, key);
                value.is_some_and(|value| allowed.iter().any(|one| one == value))
            })
    }
}

fn label<'a>(family: &Family, labels: &'a [String], key: &str) -> Option<&'a str> {
    let at = family.labels.iter().position(|name| name == key)?;
    labels.get(at).map(String::as_str)
}

/// How much counters grew lately, by rule and subject; only of those that did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::detect) struct Grown {
    counts: BTreeMap<String, BTreeMap<String, f64>>,
    at: Option<Timestamp>,
}

impl Grown {
    /// Lets what there is fade until `tick`.
    fn fade(&mut self, tick: Timestamp) {
        let passed = self
            .at
            .replace(tick)
            .map_or(0.0, |at| tick.since(at).as_secs_f64());
        let left = 0.5_f64.powf(passed / RECENT_HALF_LIFE_SECONDS);
        self.counts.retain(|_, subjects| {
            subjects.retain(|_, count| {
                *count *= left;
                *count > FADED
            });
            !subjects.is_empty()
        });
    }

    fn add(&mut self, rule: &str, subject: &str, grown: f64) -> f64 {
        if grown > 0.0 {
            let subjects = self.counts.entry(rule.to_owned()).or_default();
            if subjects.contains_key(subject) || subjects.len() < MAX_GROWING {
                *subjects.entry(subject.to_owned()).or_default() += grown;
            }
        }
        let subjects = self.counts.get(rule);
        subjects
            .and_then(|subjects| subjects.get(subject))
            .copied()
            .unwrap_or(0.0)
    }

    pub(in crate::detect) fn forget_time(&mut self) {
        self.at = None;
    }
}

/// The numbers of one rule at one tick, by subject.
#[derive(Debug, Default)]
struct Numbers<'a> {
    values: BTreeMap<&'a str, f64>,
    pers: BTreeMap<&'a str, f64>,
    and: Option<f64>,
}

/// What all rules of the pack say of one tick.
pub(in crate::detect) struct Watcher<'a> {
    numbers: Vec<Numbers<'a>>,
}

impl<'a> Watcher<'a> {
    /// Takes the numbers out of what a host showed.
    pub(in crate::detect) fn new(seen: &'a Observation<'a>, grown: &mut Grown) -> Self {
        grown.fade(seen.tick);
        let mut numbers: Vec<Numbers<'_>> = Vec::new();
        numbers.resize_with(pack().len(), Numbers::default);
        for sample in seen.samples {
            let rule = usize::from(sample.used.rule);
            let Some((definition, numbers)) = pack().get(rule).zip(numbers.get_mut(rule)) else {
                continue;
            };
            let subject = definition.subject.as_deref();
            let subject = subject.and_then(|key| label(sample.family, sample.labels, key));
            let subject = subject.unwrap_or("");
            match sample.used.part {
                Part::Value => {
                    if let Some(value) = read(definition, sample, subject, grown) {
                        // Several series of one subject: the worst.
                        let worst = if definition.below.is_some() {
                            f64::min
                        } else {
                            f64::max
                        };
                        let kept = numbers.values.entry(subject).or_insert(value);
                        *kept = worst(*kept, value);
                    }
                }
                Part::Per => {
                    let rate = definition.value.reading == Reading::Rate;
                    if let Some(value) = if rate {
                        sample.rate
                    } else {
                        Some(sample.value)
                    } {
                        numbers.pers.insert(subject, value);
                    }
                }
                Part::And => numbers.and = sample.rate.or(numbers.and),
            }
        }
        for (definition, numbers) in pack().iter().zip(&mut numbers) {
            let signal = definition.value.signal.as_deref();
            let at = signal.and_then(|name| SIGNALS.iter().position(|known| *known == name));
            if let Some(value) = at
                .map(|at| f64::from(seen.signals[at]))
                .filter(|v| v.is_finite())
            {
                numbers.values.insert("", value);
            }
        }
        Self { numbers }
    }

    /// Whether anything is known of the rule at this place of the pack.
    pub(in crate::detect) fn knows(&self, at: usize) -> bool {
        self.numbers
            .get(at)
            .is_some_and(|numbers| !numbers.values.is_empty())
    }

    /// What the rule at this place of the pack says, with an operator's bounds.
    pub(in crate::detect) fn judge(
        &self,
        at: usize,
        definition: &'static Definition,
        bounds: &Bounds,
        findings: &mut Findings<'_>,
    ) -> Coverage {
        let numbers = &self.numbers[at];
        if numbers.values.is_empty() {
            return Coverage::Partial;
        }
        for (subject, value) in &numbers.values {
            let value = match &definition.value.per {
                Some(_) => numbers.pers.get(subject).map(|per| value / per),
                None => Some(*value),
            };
            let value = value.filter(|value| value.is_finite());
            findings.add(subject, verdict(definition, bounds, value, numbers.and));
        }
        Coverage::Complete
    }
}

fn read(
    definition: &Definition,
    sample: &Sample<'_>,
    subject: &str,
    grown: &mut Grown,
) -> Option<f64> {
    match definition.value.reading {
        Reading::Value => Some(sample.value),
        Reading::Rate => sample.rate,
        // Without growth in this tick it is not known, and what there was has faded.
        Reading::Recent => Some(grown.add(&definition.name, subject, sample.grown?)),
    }
}

fn verdict(
    definition: &'static Definition,
    bounds: &Bounds,
    value: Option<f64>,
    and: Option<f64>,
) -> Verdict<'static> {
    let Some(value) = value else {
        return Verdict::Unknown;
    };
    let reason = Reason::Number { definition, value };
    let (over, well) = match (bounds.above, bounds.below) {
        (Some(above), _) => (value > above, value < bounds.clear),
        (None, Some(below)) => (value < below, value > bounds.clear),
        (None, None) => return Verdict::Unknown,
    };
    if definition
        .above_is_unknown
        .is_some_and(|limit| value > limit)
    {
        return Verdict::Unknown;
    }
    if over {
        return match (definition.and_above, and) {
            (None, _) => Verdict::Abnormal {
                severity: bounds.severity,
                reason,
            },
            (Some(least), Some(and)) if and > least => Verdict::Abnormal {
                severity: bounds.severity,
                reason,
            },
            (Some(_), _) => Verdict::Unknown,
        };
    }
    if well {
        Verdict::Normal(reason)
    } else {
        Verdict::Unknown
    }
}
