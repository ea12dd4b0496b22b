//! The hosts as those who judge incidents need them: names, labels, and how many hosts share a label.
//!
//! A copy that is taken from the shards now and then; what it says of a host changes rarely (a label, a version). A
//! host that is not in it has no labels, so it is never counted as part of anything.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use muster_proto::id::HostId;

use crate::{
    fleet::{Fleet, HostState},
    selector::{NumberField, Subject, TextField},
};

/// One host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// Name for people.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `debian 12`.
    pub os: String,
    /// Version of the agent.
    pub agent: String,
    /// Kernel release.
    pub kernel: String,
}

impl Card {
    fn of(host: &HostState) -> Self {
        let facts = host.facts();
        Self {
            name: host.name().to_owned(),
            labels: host.labels().clone(),
            os: format!("{} {}", facts.os_id, facts.os_version)
                .trim()
                .to_owned(),
            agent: facts.agent_version.clone(),
            kernel: facts.kernel.clone(),
        }
    }
}

impl Subject for Card {
    fn name(&self) -> &str {
        &self.name
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    fn text(&self, field: TextField) -> Option<Cow<'_, str>> {
        let text = match field {
            TextField::Name => &self.name,
            TextField::Os => &self.os,
            TextField::Agent => &self.agent,
            TextField::Kernel => &self.kernel,
            TextField::State => return None,
        };
        (!text.is_empty()).then_some(Cow::Borrowed(text.as_str()))
    }

    fn number(&self, _: NumberField) -> Option<f64> {
        None
    }
}

/// All hosts.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    hosts: HashMap<HostId, Card>,
    /// Hosts that have a label of this value.
    shared: BTreeMap<String, BTreeMap<String, u32>>,
}

impl Roster {
    /// Copies what the shards know; those that do not answer are named.
    pub async fn read(fleet: &Fleet) -> (Self, Vec<String>) {
        let answer = fleet
            .each(|host, _| Some((host.id(), Card::of(host))))
            .await;
        (Self::of(answer.items), answer.missing)
    }

    /// What is known of before where this says nothing: not all shards answered.
    #[must_use]
    pub fn over(self, before: &Self) -> Self {
        let mut hosts = before.hosts.clone();
        hosts.extend(self.hosts);
        Self::of(hosts)
    }

    /// Of these hosts.
    #[must_use]
    pub fn of(hosts: impl IntoIterator<Item = (HostId, Card)>) -> Self {
        let hosts: HashMap<HostId, Card> = hosts.into_iter().collect();
        let mut shared: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for (key, value) in hosts.values().flat_map(|card| &card.labels) {
            let values = shared.entry(key.clone()).or_default();
            *values.entry(value.clone()).or_default() += 1;
        }
        Self { hosts, shared }
    }

    /// One host.
    #[must_use]
    pub fn card(&self, host: HostId) -> Option<&Card> {
        self.hosts.get(&host)
    }

    /// Every host, in no order.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, &Card)> {
        self.hosts.iter().map(|(id, card)| (*id, card))
    }

    /// What people call a host: its name, or its id when it is not known any more.
    #[must_use]
    pub fn name(&self, host: HostId) -> String {
        self.card(host)
            .map_or_else(|| host.to_string(), |card| card.name.clone())
    }

    /// How many hosts have a label of this value.
    #[must_use]
    pub fn sharing(&self, key: &str, value: &str) -> u32 {
        let values = self.shared.get(key);
        values
            .and_then(|values| values.get(value))
            .copied()
            .unwrap_or(0)
    }

    /// How many hosts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}
