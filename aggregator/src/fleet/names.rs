//! Names of series, kept once for all hosts of a shard.
//!
//! A thousand hosts have the same few hundred series but for device names; each host keeps one pointer a
//! series. Names that no host uses any more are swept out from time to time.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use muster_proto::{
    codec::Intern,
    series::{Family, Kind},
};

use super::{cadence::Cadence, derive::Input};
use crate::detect::rules::{RuleSet, Use, lists_collector, need_rate, uses_of};

/// A series of any host: family, label values, and what it contributes to what is derived.
#[derive(Debug)]
pub struct SeriesKey {
    /// Name, type and label names.
    pub family: Arc<Family>,
    /// One value for each label name.
    pub labels: Vec<String>,
    /// What derive makes of it.
    pub input: Input,
    /// Whether a rate is kept for it.
    pub rated: bool,
    /// Its collector, if a rate is kept and that is slower than ticks may be.
    pub cadence: Option<Cadence>,
    /// Whether it restarts with the agent and not with the host.
    pub of_agent: bool,
    /// Rules that look at it.
    pub rules: Box<[Use]>,
    /// The same as a set.
    pub rule_set: RuleSet,
    /// Whether it says that the host has a collector.
    pub lists_collector: bool,
}

/// The table of names.
#[derive(Debug, Default)]
pub struct Names {
    hasher: RandomState,
    /// By hash; two series with the same hash stand in one list.
    series: HashMap<u64, Vec<Arc<SeriesKey>>>,
    families: HashMap<String, Vec<Arc<Family>>>,
    held: usize,
    sweep_at: usize,
}

/// Fewest names at which a sweep is worth its time.
const SWEEP_FLOOR: usize = 10_000;

impl Names {
    /// Number of names held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether no name is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Drops names that no host uses, if their number has doubled since the last sweep.
    pub fn sweep_if_grown(&mut self) {
        if self.held < self.sweep_at.max(SWEEP_FLOOR) {
            return;
        }
        self.series.retain(|_, keys| {
            keys.retain(|key| Arc::strong_count(key) > 1);
            !keys.is_empty()
        });
        self.families.retain(|_, families| {
            families.retain(|family| Arc::strong_count(family) > 1);
            !families.is_empty()
        });
        self.held = self.series.values().map(Vec::len).sum();
        self.sweep_at = self.held * 2;
    }
}

impl Intern for Names {
    type Key = Arc<SeriesKey>;

    fn family(&mut self, family: Family) -> Arc<Family> {
        let known = self.families.entry(family.name.clone()).or_default();
        if let Some(same) = known.iter().find(|known| ***known == family) {
            return Arc::clone(same);
        }
        let fresh = Arc::new(family);
        known.push(Arc::clone(&fresh));
        fresh
    }

    fn series(&mut self, family: &Arc<Family>, labels: &[String]) -> Self::Key {
        // A family is held once, so its address tells it.
        let hash = self.hasher.hash_one((Arc::as_ptr(family).addr(), labels));
        if let Some(same) = self.series.get(&hash).and_then(|keys| {
            keys.iter()
                .find(|key| Arc::ptr_eq(&key.family, family) && key.labels == labels)
        }) {
            return Arc::clone(same);
        }
        let input = Input::of(family, labels);
        let rules = uses_of(family, labels);
        let rated = input.is_rated(family.kind) || need_rate(&rules);
        let key = Arc::new(SeriesKey {
            family: Arc::clone(family),
            labels: labels.to_vec(),
            input,
            rated,
            cadence: Cadence::of(&family.name).filter(|_| rated),
            rule_set: RuleSet::of(&rules),
            lists_collector: lists_collector(&rules),
            rules,
            of_agent: family.kind == Kind::Counter && family.name.starts_with("muster_agent_"),
        });
        self.series.entry(hash).or_default().push(Arc::clone(&key));
        self.held += 1;
        key
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::series::Scale;

    use super::*;

    #[test]
    fn one_name_is_held_once_and_goes_when_unused() {
        let mut names = Names::default();
        let told = Family {
            name: "node_network_receive_bytes_total".into(),
            kind: Kind::Counter,
            scale: Scale::One,
            labels: vec!["device".into()],
        };
        let family = names.family(told.clone());
        let again = names.family(told);
        let one = names.series(&family, &["eth0".into()]);
        let other = names.series(&again, &["eth0".into()]);
        assert!(Arc::ptr_eq(&one, &other));
        for at in 0..SWEEP_FLOOR {
            names.series(&family, &[format!("veth{at}")]);
        }
        names.sweep_if_grown();
        assert_eq!(names.len(), 1);
        assert!(one.rated);
    }
}
