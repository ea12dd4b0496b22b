//! What is known of hosts beyond their data, between the control store, the fleet and those who connect.

use std::sync::Arc;

use muster_proto::{id::HostId, time::Clock, v1};

use crate::{
    control::{CertificateRefusal, Control, Facts, Host, Presented},
    fleet::Enrolled,
};

/// Reads and keeps hosts in the control store.
#[derive(Clone)]
pub struct Directory {
    control: Control,
    clock: Arc<dyn Clock>,
}

/// What the store says of a host that connects.
#[derive(Debug)]
pub enum Known {
    /// It is enrolled.
    Yes(Box<Enrolled>),
    /// It is not, or an operator removed it.
    No,
    /// The store cannot be asked; the fleet's own memory decides.
    Unavailable,
}

/// Whether a certificate may speak for its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It may.
    Yes,
    /// It may not.
    No(CertificateRefusal),
    /// The store cannot be asked; the fleet's own memory decides.
    Unavailable,
}

impl Directory {
    /// A directory on this store.
    #[must_use]
    pub fn new(control: Control, clock: Arc<dyn Clock>) -> Self {
        Self { control, clock }
    }

    /// All hosts that are enrolled.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn hosts(&self) -> Result<Vec<Enrolled>, crate::control::ControlError> {
        let hosts = self.control.hosts().await?;
        let kept = hosts.into_iter().filter(|host| host.removed.is_none());
        Ok(kept.map(enrolled).collect())
    }

    /// One host, if it is enrolled.
    pub async fn host(&self, id: HostId) -> Known {
        match self.control.host(id).await {
            Ok(Some(host)) if host.removed.is_none() => Known::Yes(Box::new(enrolled(host))),
            Ok(_) => Known::No,
            Err(error) => {
                tracing::warn!(host = %id, error = crate::chain(&error), "the control store cannot be read");
                Known::Unavailable
            }
        }
    }

    /// Judges the certificate of a connection, and puts one that was renewed in use.
    pub async fn admit(&self, presented: &Presented) -> Admitted {
        let host = presented.host_id;
        let judged = self
            .control
            .admit_host(presented.clone(), self.clock.now())
            .await;
        match judged {
            Ok(Ok(())) => Admitted::Yes,
            Ok(Err(refusal)) => {
                tracing::warn!(%host, serial = presented.serial, why = %refusal, "certificate refused");
                Admitted::No(refusal)
            }
            Err(error) => {
                tracing::warn!(%host, error = crate::chain(&error), "the control store cannot be asked");
                Admitted::Unavailable
            }
        }
    }

    /// A host connected and says this about itself: it is written if it changed.
    pub async fn connected(&self, id: HostId, facts: v1::HostFacts) -> Known {
        let known = match self.control.host(id).await {
            Ok(Some(host)) if host.removed.is_none() => host,
            Ok(_) => return Known::No,
            Err(error) => {
                tracing::warn!(host = %id, error = crate::chain(&error), "the control store cannot be read");
                return Known::Unavailable;
            }
        };
        let labels = facts.labels.clone();
        let facts = Facts::from(facts);
        let same_labels = labels
            .iter()
            .all(|(key, value)| known.labels.get(key) == Some(value));
        if known.facts == facts && same_labels {
            return Known::Yes(Box::new(enrolled(known)));
        }
        let now = self.clock.now();
        match self.control.upsert_host_facts(id, facts, labels, now).await {
            Ok(host) => Known::Yes(Box::new(enrolled(host))),
            Err(error) => {
                tracing::warn!(host = %id, error = crate::chain(&error), "what the host says of itself was not kept");
                Known::Yes(Box::new(enrolled(known)))
            }
        }
    }
}

fn enrolled(host: Host) -> Enrolled {
    let Facts {
        hostname,
        os_id,
        os_version,
        os_pretty,
        kernel,
        architecture,
        cpus,
        memory_bytes,
        agent_version,
        machine_id_hash,
    } = host.facts;
    Enrolled {
        id: host.host_id,
        name: host.name,
        labels: host.labels,
        facts: v1::HostFacts {
            hostname,
            os_id,
            os_version,
            os_pretty,
            kernel,
            architecture,
            cpus,
            memory_bytes,
            agent_version,
            machine_id_hash,
            labels: std::collections::BTreeMap::new(),
        },
        certificate_not_after: Some(host.cert_not_after),
    }
}
