//! Hosts: who they are to people. Identity is the id; names and facts are attributes.

use std::collections::BTreeMap;

use muster_proto::{id::HostId, time::Timestamp, v1};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::{Control, ControlError, db::audit};

/// Labels of a host, by key.
pub type Labels = BTreeMap<String, String>;

/// Longest host name (RFC 1035).
const MAX_NAME: usize = 253;

/// What a host says about itself; the stored form of [`v1::HostFacts`] without its labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are those of HostFacts, described there"
)]
pub struct Facts {
    pub hostname: String,
    pub os_id: String,
    pub os_version: String,
    pub os_pretty: String,
    pub kernel: String,
    pub architecture: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub agent_version: String,
    pub machine_id_hash: Vec<u8>,
}

impl From<v1::HostFacts> for Facts {
    fn from(facts: v1::HostFacts) -> Self {
        Self {
            hostname: facts.hostname,
            os_id: facts.os_id,
            os_version: facts.os_version,
            os_pretty: facts.os_pretty,
            kernel: facts.kernel,
            architecture: facts.architecture,
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
            agent_version: facts.agent_version,
            machine_id_hash: facts.machine_id_hash.to_vec(),
        }
    }
}

/// A host as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Identity.
    pub host_id: HostId,
    /// For people; unique.
    pub name: String,
    /// What it last said about itself.
    pub facts: Facts,
    /// Its own labels, and over them those of its join token.
    pub labels: Labels,
    /// When it joined.
    pub created: Timestamp,
    /// Serial of the certificate it was given last.
    pub cert_serial: String,
    /// End of that certificate's life.
    pub cert_not_after: Timestamp,
    /// When an operator removed it.
    pub removed: Option<Timestamp>,
}

impl Host {
    /// What it is called, or was when it was removed: its name as kept says that it is removed, so that another may
    /// have it.
    #[must_use]
    pub fn called(&self) -> &str {
        match self.removed {
            Some(_) => self
                .name
                .split_once(REMOVED)
                .map_or(&self.name, |(name, _)| name),
            None => &self.name,
        }
    }

    /// Whether it was in the fleet at a moment.
    #[must_use]
    pub fn was_there(&self, at: Timestamp) -> bool {
        self.created <= at && self.removed.is_none_or(|removed| removed > at)
    }
}

/// Stands in the name of a host that is removed, before its id.
pub(super) const REMOVED: &str = ".removed-";

const COLUMNS: &str = "host_id, name, facts, labels, token_labels, created_ms, cert_serial, \
                       cert_not_after_ms, removed_ms";

impl Control {
    /// All hosts, by name, removed ones too.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn hosts(&self) -> Result<Vec<Host>, ControlError> {
        self.read(|connection| {
            let mut query =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM hosts ORDER BY name"))?;
            let mut rows = query.query([])?;
            let mut hosts = Vec::new();
            while let Some(row) = rows.next()? {
                hosts.push(host(row)?);
            }
            Ok(hosts)
        })
        .await
    }

    /// One host.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn host(&self, host_id: HostId) -> Result<Option<Host>, ControlError> {
        self.read(move |connection| find(connection, host_id)).await
    }

    /// Takes what a host says about itself now, with its own labels. Its name follows its host name; the answer is
    /// the host as it is then.
    ///
    /// # Errors
    /// When nobody has this id, or it cannot be written.
    pub async fn upsert_host_facts(
        &self,
        host_id: HostId,
        facts: Facts,
        labels: Labels,
        now: Timestamp,
    ) -> Result<Host, ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| {
            let before = find(connection, host_id)?.ok_or(ControlError::UnknownHost(host_id))?;
            let name = if before.facts.hostname == facts.hostname {
                before.name
            } else {
                free_name(connection, epoch, &facts.hostname, host_id, now)?
            };
            connection
                .prepare_cached(
                    "UPDATE hosts SET name = ?2, facts = ?3, labels = ?4
                     WHERE host_id = ?1 AND epoch = ?5",
                )?
                .execute(params![
                    host_id.to_string(),
                    name,
                    json(&facts),
                    json(&labels),
                    epoch
                ])?;
            find(connection, host_id)?.ok_or(ControlError::UnknownHost(host_id))
        })
        .await
    }
}

pub(super) fn find(connection: &Connection, host_id: HostId) -> Result<Option<Host>, ControlError> {
    let mut query =
        connection.prepare_cached(&format!("SELECT {COLUMNS} FROM hosts WHERE host_id = ?1"))?;
    let mut rows = query.query([host_id.to_string()])?;
    rows.next()?.map(host).transpose()
}

fn host(row: &Row<'_>) -> Result<Host, ControlError> {
    let wrong = || ControlError::Row("hosts");
    let text = |column: &str| row.get::<_, String>(column);
    let mut labels: Labels = serde_json::from_str(&text("labels")?).map_err(|_| wrong())?;
    let fixed: Labels = serde_json::from_str(&text("token_labels")?).map_err(|_| wrong())?;
    labels.extend(fixed);
    let removed: Option<i64> = row.get("removed_ms")?;
    Ok(Host {
        host_id: text("host_id")?.parse().map_err(|_| wrong())?,
        name: text("name")?,
        facts: serde_json::from_str(&text("facts")?).map_err(|_| wrong())?,
        labels,
        created: Timestamp::from_millis(row.get("created_ms")?),
        cert_serial: text("cert_serial")?,
        cert_not_after: Timestamp::from_millis(row.get("cert_not_after_ms")?),
        removed: removed.map(Timestamp::from_millis),
    })
}

/// A name that no other host has: the host name itself, or with the first free number from 2.
pub(super) fn free_name(
    connection: &Connection,
    epoch: i64,
    hostname: &str,
    host_id: HostId,
    now: Timestamp,
) -> Result<String, ControlError> {
    let wanted = presentable(hostname, host_id);
    let mut query =
        connection.prepare_cached("SELECT 1 FROM hosts WHERE name = ?1 AND host_id <> ?2")?;
    let mut name = wanted.clone();
    let mut number = 2_u32;
    while query
        .query_row(params![name, host_id.to_string()], |_| Ok(()))
        .optional()?
        .is_some()
    {
        name = format!("{wanted}-{number}");
        number += 1;
    }
    if name != wanted {
        tracing::warn!(host = %host_id, hostname = wanted, name, "another host has this host name");
        let said = format!("another host is called {wanted}; this one is called {name}");
        let subject = host_id.to_string();
        audit(
            connection,
            epoch,
            now,
            ["aggregator", "host name taken", &subject, &said],
        )?;
    }
    Ok(name)
}

/// Host names come from hosts: only letters, digits, dot, underscore and hyphen stay.
fn presentable(hostname: &str, host_id: HostId) -> String {
    let name: String = hostname
        .chars()
        .take(MAX_NAME)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    if name.trim_matches(['.', '-']).is_empty() {
        return format!("host-{}", &host_id.to_string()[..8]);
    }
    name
}

/// Plain maps and structs of text and numbers.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text keys and plain values become JSON")
}
