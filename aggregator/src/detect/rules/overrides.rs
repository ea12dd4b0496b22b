//! What an operator changes about the rules of the pack, for some hosts or for all.
//!
//! ```toml
//! [[rules]]
//! rule = "cpu_saturated"
//! hosts = "role=batch"     # a selector over names, labels, os, kernel, agent; left out: all hosts
//! enabled = false
//!
//! [[rules]]
//! rule = "conntrack_full"
//! above = 0.8
//! clear = 0.7
//! for = "10m"
//! severity = "warning"
//! ```
//! The last entry that names a rule and picks a host holds for it.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{Definition, Time, Word, pack, plain};
use crate::{
    detect::{Rule, Severity},
    fleet::Enrolled,
    selector::{NumberField, Selector, Subject, TextField},
};

/// Entries there may be.
const MAX_OVERRIDES: usize = 256;

/// One entry of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Name of the rule.
    pub rule: String,
    /// Selector of the hosts that it is for; empty: all.
    #[serde(default)]
    pub hosts: String,
    /// Whether the rule holds at all.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Bound that opens, of a rule that opens above one.
    #[serde(default)]
    pub above: Option<f64>,
    /// Bound that opens, of a rule that opens below one.
    #[serde(default)]
    pub below: Option<f64>,
    /// Bound that clears.
    #[serde(default)]
    pub clear: Option<f64>,
    /// How long it must be abnormal.
    #[serde(default, rename = "for")]
    pub open_after: Option<Time>,
    /// How long it must be normal.
    #[serde(default, rename = "clear_for")]
    pub clear_after: Option<Time>,
    /// How much it matters.
    #[serde(default)]
    pub severity: Option<Word>,
}

/// Why an entry is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// The file is not what it should be.
    #[error("{0}")]
    Syntax(String),
    /// More entries than are looked through for each host.
    #[error("{0} entries are more than {MAX_OVERRIDES}")]
    TooMany(usize),
    /// No such rule that can be changed.
    #[error("rule {0:?} is not in the pack; `muster rules list` shows those that can be changed")]
    NoSuchRule(String),
    /// The selector does not read, or asks for what changes.
    #[error("rule {rule}: hosts = {selector:?}: {why}")]
    Selector {
        /// Of this entry.
        rule: String,
        /// What stands there.
        selector: String,
        /// What is wrong with it.
        why: String,
    },
    /// Bounds that do not fit the rule or each other.
    #[error("rule {rule}: {why}")]
    Bounds {
        /// Of this entry.
        rule: String,
        /// What is wrong.
        why: String,
    },
}

/// The bounds of a rule for one host.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    pub(super) enabled: bool,
    pub(super) severity: Severity,
    pub(super) critical_above: Option<f64>,
    pub(super) above: Option<f64>,
    pub(super) below: Option<f64>,
    pub(super) clear: f64,
}

/// What other entries make of a rule for one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Whether the rule holds at all.
    pub enabled: bool,
    /// From which severity to which.
    pub severity: Option<(Severity, Severity)>,
    /// How much longer it must be abnormal.
    pub later: Duration,
    /// Something else changes: bounds, or a time that is shorter or that clears.
    pub needs_samples: bool,
}

/// What holds of one rule for the hosts that an entry picks.
#[derive(Debug)]
struct Entry {
    hosts: Option<Selector>,
    bounds: Bounds,
    rule: Rule,
}

/// The entries of a configuration, checked.
#[derive(Debug, Default)]
pub struct Overrides {
    /// By place of the rule in the pack; the last that picks a host holds.
    entries: BTreeMap<usize, Vec<Entry>>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    rules: Vec<Override>,
}

impl Overrides {
    /// Reads the `[[rules]]` of a file; other tables in it are ignored.
    ///
    /// # Errors
    /// What is wrong with the first entry that cannot be used.
    pub fn parse(text: &str) -> Result<Self, OverrideError> {
        let file: File =
            toml::from_str(text).map_err(|error| OverrideError::Syntax(error.to_string()))?;
        Self::new(&file.rules)
    }

    /// Checks the entries.
    ///
    /// # Errors
    /// What is wrong with the first entry that cannot be used.
    pub fn new(entries: &[Override]) -> Result<Self, OverrideError> {
        if entries.len() > MAX_OVERRIDES {
            return Err(OverrideError::TooMany(entries.len()));
        }
        let mut checked = Self::default();
        for entry in entries {
            let at = pack().iter().position(|rule| rule.name == entry.rule);
            let at = at.ok_or_else(|| OverrideError::NoSuchRule(entry.rule.clone()))?;
            checked
                .entries
                .entry(at)
                .or_default()
                .push(check(entry, at, &pack()[at])?);
        }
        Ok(checked)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What other entries make of a rule for a host; nothing of one that is not in the pack.
    #[must_use]
    pub fn change_to(&self, other: &Self, rule: &str, host: Option<&Enrolled>) -> Difference {
        let Some(at) = pack().iter().position(|known| known.name == rule) else {
            return Difference {
                enabled: true,
                severity: None,
                later: Duration::ZERO,
                needs_samples: false,
            };
        };
        let (old, old_rule) = self.of(at, host);
        let (new, new_rule) = other.of(at, host);
        let switched_on = new.enabled && !old.enabled;
        let bounds = (old.above, old.below, old.clear) != (new.above, new.below, new.clear);
        let times = new_rule.open_after < old_rule.open_after
            || new_rule.clear_after != old_rule.clear_after;
        Difference {
            enabled: new.enabled || !old.enabled,
            severity: (old.severity != new.severity).then_some((old.severity, new.severity)),
            later: new_rule.open_after.saturating_sub(old_rule.open_after),
            needs_samples: switched_on || (new.enabled && (bounds || times)),
        }
    }

    /// How long a rule of the pack must hold on a host, of opening and of clearing the longer.
    #[must_use]
    pub fn held(&self, rule: &str, host: Option<&Enrolled>) -> Duration {
        let at = pack().iter().position(|known| known.name == rule);
        at.map_or(Duration::ZERO, |at| {
            let (_, rule) = self.of(at, host);
            rule.open_after.max(rule.clear_after)
        })
    }

    /// What holds of the rule at this place of the pack for a host.
    pub(in crate::detect) fn of(
        &self,
        at: usize,
        host: Option<&Enrolled>,
    ) -> (Cow<'_, Bounds>, &Rule) {
        let picks = |entry: &&Entry| match (&entry.hosts, host) {
            (None, _) => true,
            (Some(selector), Some(host)) => selector.matches(&Who(host)),
            (Some(_), None) => false,
        };
        let entries = self.entries.get(&at);
        match entries.and_then(|entries| entries.iter().rev().find(picks)) {
            Some(entry) => (Cow::Borrowed(&entry.bounds), &entry.rule),
            None => (Cow::Owned(bounds(&pack()[at])), plain(at)),
        }
    }
}

impl Bounds {
    /// Whether the rule is on.
    pub(in crate::detect) fn enabled(&self) -> bool {
        self.enabled
    }
}

fn bounds(definition: &Definition) -> Bounds {
    Bounds {
        enabled: true,
        severity: definition.severity.0,
        critical_above: definition.critical_above,
        above: definition.above,
        below: definition.below,
        clear: definition.clear,
    }
}

fn check(entry: &Override, at: usize, definition: &Definition) -> Result<Entry, OverrideError> {
    let wrong = |why: String| OverrideError::Bounds {
        rule: entry.rule.clone(),
        why,
    };
    let mut changed = definition.clone();
    for (given, known, word) in [
        (entry.above, &mut changed.above, "above"),
        (entry.below, &mut changed.below, "below"),
    ] {
        if let Some(bound) = given {
            if known.is_none() || !bound.is_finite() {
                let condition = definition.condition();
                return Err(wrong(format!(
                    "`{word} = {bound}` does not fit it: it opens {condition}"
                )));
            }
            *known = Some(bound);
        }
    }
    changed.clear = entry.clear.unwrap_or(changed.clear);
    if let Some(fault) = changed.fault() {
        return Err(wrong(fault));
    }
    let plain = plain(at);
    let rule = Rule {
        name: plain.name,
        open_after: entry.open_after.map_or(plain.open_after, |time| time.0),
        clear_after: entry.clear_after.map_or(plain.clear_after, |time| time.0),
        gone_after: plain.gone_after,
        makes_incidents: true,
        more: plain.more,
    };
    let hosts = match entry.hosts.trim() {
        "" => None,
        text => Some(selector(text).map_err(|why| OverrideError::Selector {
            rule: entry.rule.clone(),
            selector: text.to_owned(),
            why,
        })?),
    };
    Ok(Entry {
        hosts,
        bounds: Bounds {
            enabled: entry.enabled.unwrap_or(true),
            severity: entry.severity.unwrap_or(definition.severity).0,
            // Who names a severity means that one.
            critical_above: definition
                .critical_above
                .filter(|_| entry.severity.is_none()),
            ..bounds(&changed)
        },
        rule,
    })
}

/// A selector of hosts by what they are, not by how they are just now.
fn selector(text: &str) -> Result<Selector, String> {
    let selector = Selector::parse(text).map_err(|error| error.to_string())?;
    match selector.fleeting() {
        Some(field) => Err(format!(
            "{field} changes from minute to minute; use labels, names, os, kernel or agent"
        )),
        None => Ok(selector),
    }
}

/// What of a host does not change from tick to tick: no selector that asks for more is taken.
struct Who<'a>(&'a Enrolled);

impl Subject for Who<'_> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.0.labels.get(key).map(String::as_str)
    }

    fn text(&self, field: TextField) -> Option<Cow<'_, str>> {
        let facts = &self.0.facts;
        match field {
            TextField::Name => Some(Cow::Borrowed(&self.0.name)),
            TextField::State => None,
            TextField::Os => Some(Cow::Owned(format!("{} {}", facts.os_id, facts.os_version))),
            TextField::Agent => Some(Cow::Borrowed(&facts.agent_version)),
            TextField::Kernel => Some(Cow::Borrowed(&facts.kernel)),
        }
    }

    fn number(&self, _: NumberField) -> Option<f64> {
        None
    }
}
