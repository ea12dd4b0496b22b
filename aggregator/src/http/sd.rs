//! `/sd`: the fleet as Prometheus' HTTP service discovery reads it, one target for each host.
//!
//! Every enrolled host is listed, silent ones too: their page answers 503 and Prometheus shows `up` 0. A
//! list that is not complete is never given, because Prometheus would drop the targets that are missing;
//! it keeps the last list when discovery fails.

use std::collections::{BTreeMap, HashMap};

use muster_agent::settings::suggestion;
use muster_proto::{id::HostId, series::is_label_name, v1::HostState};
use serde::Serialize;

use super::source::{HostView, OpenIncidents, state_word};
use crate::selector::{Selector, SelectorError};

/// Stands for the host's name in an instance format.
const HOST_WORD: &str = "{host}";

/// Most shards a fleet is split into; each is one Prometheus server.
const MAX_SHARDS: u64 = 1_000;

/// Labels that a promoted label cannot be: Prometheus or this list sets them.
const TAKEN_LABELS: [&str; 2] = ["instance", "job"];

/// The parameters as they stand in the address.
#[derive(Debug, Default)]
pub(super) struct RawQuery {
    selector: Option<String>,
    shard: Option<String>,
    promote: Option<String>,
    instance: Option<String>,
}

/// The parameters, checked.
#[derive(Debug, Clone)]
pub(super) struct Query {
    selector: Selector,
    shard: Shard,
    promote: Vec<String>,
    instance: InstanceFormat,
}

/// Why a request for targets is refused.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// There is no such parameter.
    #[error("there is no parameter {0:?}{meant} /sd takes selector, shard, promote and instance", meant = meant(.0))]
    Unknown(String),
    /// Which of them holds?
    #[error("the parameter {0:?} is given twice")]
    Twice(String),
    /// The selector does not parse.
    #[error("bad selector")]
    Selector(#[from] SelectorError),
    /// Not `i/n`.
    #[error("bad shard {0:?}: expected i/n with 1 <= i <= n <= {MAX_SHARDS}, e.g. 1/4")]
    Shard(String),
    /// No name for a target label.
    #[error(
        "cannot promote {0:?}: not a label name, or one that Prometheus or this list sets itself"
    )]
    Promote(String),
    /// See [`InstanceFormat::parse`].
    #[error(
        "bad instance format {0:?}: expected text with {HOST_WORD} in it once, e.g. {HOST_WORD}:9100"
    )]
    Instance(String),
}

/// How the label `instance` is made of a host's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFormat {
    before: String,
    after: String,
}

impl Default for InstanceFormat {
    /// The name alone.
    fn default() -> Self {
        let (before, after) = (String::new(), String::new());
        Self { before, after }
    }
}

impl InstanceFormat {
    /// Reads a format such as `{host}:9100`.
    ///
    /// # Errors
    /// When `{host}` is not in it exactly once, or a control character is.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        match text.split_once(HOST_WORD) {
            Some((before, after))
                if !after.contains(HOST_WORD) && !text.chars().any(char::is_control) =>
            {
                let (before, after) = (before.to_owned(), after.to_owned());
                Ok(Self { before, after })
            }
            _ => Err(QueryError::Instance(text.to_owned())),
        }
    }

    fn of(&self, name: &str) -> String {
        [&self.before, name, &self.after].concat()
    }
}

/// Part of the fleet: hosts are spread by their id, so a host stays where it is when others come or go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shard {
    /// From 0.
    index: u64,
    count: u64,
}

impl Shard {
    const WHOLE: Self = Self { index: 0, count: 1 };

    fn parse(text: &str) -> Option<Self> {
        let (number, count) = text.split_once('/')?;
        let (number, count) = (number.parse::<u64>().ok()?, count.parse::<u64>().ok()?);
        let legal = (1..=count).contains(&number) && count <= MAX_SHARDS;
        legal.then(|| Self {
            index: number - 1,
            count,
        })
    }

    fn holds(self, host: HostId) -> bool {
        host.spread() % self.count == self.index
    }
}

/// The parameters of `/sd`.
const PARAMETERS: [&str; 4] = ["selector", "shard", "promote", "instance"];

fn meant(parameter: &str) -> String {
    match suggestion(parameter, PARAMETERS) {
        meant if meant.is_empty() => ";".to_owned(),
        meant => meant,
    }
}

impl RawQuery {
    /// Sorts what stands in the address.
    pub(super) fn of(given: Vec<(String, String)>) -> Result<Self, QueryError> {
        let mut raw = Self::default();
        for (name, value) in given {
            let place = match name.as_str() {
                "selector" => &mut raw.selector,
                "shard" => &mut raw.shard,
                "promote" => &mut raw.promote,
                "instance" => &mut raw.instance,
                _ => return Err(QueryError::Unknown(name)),
            };
            if place.replace(value).is_some() {
                return Err(QueryError::Twice(name));
            }
        }
        Ok(raw)
    }

    /// Checks the parameters; `instance` is the format that holds where none is asked for.
    pub(super) fn check(self, instance: &InstanceFormat) -> Result<Query, QueryError> {
        let shard = match self.shard {
            Some(text) => Shard::parse(&text).ok_or(QueryError::Shard(text))?,
            None => Shard::WHOLE,
        };
        let promote = self.promote.unwrap_or_default();
        let promote = promote
            .split(',')
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(|key| {
                let legal = is_label_name(key) && !TAKEN_LABELS.contains(&key);
                let key = key.to_owned();
                if legal {
                    Ok(key)
                } else {
                    Err(QueryError::Promote(key))
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Query {
            selector: Selector::parse(&self.selector.unwrap_or_default())?,
            shard,
            promote,
            instance: match self.instance {
                Some(text) => InstanceFormat::parse(&text)?,
                None => instance.clone(),
            },
        })
    }
}

/// What the list needs of one host.
#[derive(Debug, Clone)]
pub(super) struct HostEntry {
    id: HostId,
    name: String,
    labels: Vec<(String, String)>,
    os: String,
    architecture: String,
    agent_version: String,
    state: HostState,
    /// Whether the request asks for it.
    chosen: bool,
}

impl HostEntry {
    /// Reads a host. Those that are not asked for are read too: whether a name is unique is a question to
    /// the whole fleet.
    pub(super) fn of(host: &impl HostView, query: &Query, incidents: OpenIncidents) -> Self {
        let facts = host.facts();
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let chosen = query.shard.holds(host.id()) && host.matches(&query.selector, incidents);
        Self {
            id: host.id(),
            name: host.name().to_owned(),
            labels: if chosen {
                host.labels().map(own).collect()
            } else {
                Vec::new()
            },
            os: format!("{} {}", facts.os_id, facts.os_version)
                .trim()
                .to_owned(),
            architecture: facts.architecture.clone(),
            agent_version: facts.agent_version.clone(),
            state: host.state(),
            chosen,
        }
    }
}

/// One entry of the list.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct TargetGroup {
    targets: [String; 1],
    labels: BTreeMap<String, String>,
}

/// Makes the list, sorted by name, so that an unchanged fleet gives the same bytes.
pub(super) fn targets(mut hosts: Vec<HostEntry>, query: &Query, address: &str) -> Vec<TargetGroup> {
    let mut bearers: HashMap<String, u32> = HashMap::new();
    for host in &hosts {
        *bearers.entry(host.name.clone()).or_default() += 1;
    }
    hosts.retain(|host| host.chosen);
    hosts.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    let group = |host: HostEntry| {
        let unique = bearers.get(&host.name) == Some(&1);
        TargetGroup {
            targets: [address.to_owned()],
            labels: labels(host, unique, query),
        }
    };
    hosts.into_iter().map(group).collect()
}

fn labels(host: HostEntry, unique: bool, query: &Query) -> BTreeMap<String, String> {
    let id = host.id.to_string();
    // Two hosts of one name are two targets, or Prometheus would mix their series.
    let instance = if unique {
        query.instance.of(&host.name)
    } else {
        query.instance.of(&format!("{}-{}", host.name, &id[..8]))
    };
    // Not percent-encoded: Prometheus encodes the path itself.
    let page = if unique { &host.name } else { &id };
    let path = format!("{}{page}", super::HOST_PAGE_PREFIX);
    let mut labels = BTreeMap::new();
    for (key, value) in host.labels {
        if query.promote.contains(&key) {
            labels.insert(key.clone(), value.clone());
        }
        if key == "site" {
            labels.insert("__meta_muster_site".to_owned(), value.clone());
        }
        labels.insert(format!("__meta_muster_label_{}", label_name(&key)), value);
    }
    labels.extend([
        ("__metrics_path__".to_owned(), path),
        ("instance".to_owned(), instance),
        ("__meta_muster_name".to_owned(), host.name),
        ("__meta_muster_id".to_owned(), id),
        ("__meta_muster_os".to_owned(), host.os),
        ("__meta_muster_architecture".to_owned(), host.architecture),
        ("__meta_muster_agent_version".to_owned(), host.agent_version),
        (
            "__meta_muster_state".to_owned(),
            state_word(host.state).to_owned(),
        ),
    ]);
    labels
}

/// The key with everything a label name cannot have made an underscore, as other discoveries do.
fn label_name(key: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    key.chars().map(legal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_partition_the_fleet() {
        let hosts = (0..100_u64).map(|n| {
            let mut bytes = [0; 16];
            bytes[8..].copy_from_slice(&(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
            HostId::from_bytes(bytes)
        });
        let shards: Vec<Shard> = ["1/4", "2/4", "3/4", "4/4"]
            .iter()
            .map(|text| Shard::parse(text).expect("legal"))
            .collect();
        for host in hosts {
            let holders = shards.iter().filter(|shard| shard.holds(host)).count();
            assert_eq!(holders, 1, "{host}");
        }
        for wrong in [
            "", "1", "0/4", "5/4", "1/0", "a/b", "1/4/2", "-1/4", "1/1001",
        ] {
            assert_eq!(Shard::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn instances() {
        let of = |text| InstanceFormat::parse(text).map(|format| format.of("web-01"));
        assert_eq!(of("{host}").expect("legal"), "web-01");
        assert_eq!(of("{host}:9100").expect("legal"), "web-01:9100");
        assert_eq!(InstanceFormat::default().of("web-01"), "web-01");
        for wrong in ["", "host", "{host}{host}", "{host}\n"] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn promoted_labels_must_be_free() {
        let check = |promote: &str| {
            let raw = RawQuery {
                promote: Some(promote.to_owned()),
                ..RawQuery::default()
            };
            raw.check(&InstanceFormat::default())
                .map(|query| query.promote)
        };
        assert_eq!(check("role, env,").expect("legal"), ["role", "env"]);
        for wrong in ["instance", "job", "__address__", "9a", "a-b", "role,a b"] {
            assert!(
                matches!(check(wrong), Err(QueryError::Promote(_))),
                "{wrong}"
            );
        }
    }
}
