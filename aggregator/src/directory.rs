//! What is known of hosts beyond their data, between the control store, the fleet and those who connect.
//!
//! What a host says of itself is checked before anything is kept of it: it comes from a program that may be broken
//! or somebody else's, and ends in lists, pages and the scrape.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_proto::{
    id::HostId,
    limits::{MAX_HOST_LABEL_KEY_BYTES, MAX_HOST_LABEL_VALUE_BYTES, MAX_HOST_LABELS},
    time::{Clock, Timestamp},
    v1,
};

use crate::{
    control::{CertificateRefusal, Control, Facts, Host, Presented},
    fleet::Enrolled,
};

/// Longest text a host says of itself. A host name has 253 bytes at most (RFC 1035), the names of kernels and
/// distributions some sixty.
const MAX_FACT_BYTES: usize = 256;

/// Longest hash of a machine id; agents send 32 bytes.
const MAX_HASH_BYTES: usize = 64;

/// A host is renamed at most once in this time: each change is a line for people and a row in the audit log.
const RENAME_EVERY: Duration = Duration::from_secs(3600);

/// Why what a host says of itself is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// A text is too long.
    #[error("{field} has {length} bytes, {most} are allowed")]
    TooLong {
        /// Field of `HostFacts`.
        field: &'static str,
        /// How long it is, in bytes.
        length: usize,
        /// How long it may be, in bytes.
        most: usize,
    },
    /// A text has characters that move the cursor or end a line.
    #[error("{0} has control characters")]
    Control(&'static str),
    /// More labels than a host may carry.
    #[error("{0} labels, {MAX_HOST_LABELS} are allowed")]
    Labels(usize),
    /// A key that no selector could name.
    #[error("a label's key is 1 to {MAX_HOST_LABEL_KEY_BYTES} of a-z A-Z 0-9 . _ - /")]
    LabelKey,
}

/// Checks what a host says of itself: the bounds that the agent's own configuration keeps to, and no others.
///
/// # Errors
/// The first fault; its text never repeats what the host said.
pub fn checked(facts: &v1::HostFacts) -> Result<(), FactsError> {
    let text = |field, said: &str, most| {
        let length = said.len();
        if length > most {
            return Err(FactsError::TooLong {
                field,
                length,
                most,
            });
        }
        if said.chars().any(char::is_control) {
            return Err(FactsError::Control(field));
        }
        Ok(())
    };
    for (field, said) in [
        ("hostname", &facts.hostname),
        ("os_id", &facts.os_id),
        ("os_version", &facts.os_version),
        ("os_pretty", &facts.os_pretty),
        ("kernel", &facts.kernel),
        ("architecture", &facts.architecture),
        ("agent_version", &facts.agent_version),
    ] {
        text(field, said, MAX_FACT_BYTES)?;
    }
    let length = facts.machine_id_hash.len();
    if length > MAX_HASH_BYTES {
        return Err(FactsError::TooLong {
            field: "machine_id_hash",
            length,
            most: MAX_HASH_BYTES,
        });
    }
    if facts.labels.len() > MAX_HOST_LABELS {
        return Err(FactsError::Labels(facts.labels.len()));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    for (key, value) in &facts.labels {
        let length = 1..=MAX_HOST_LABEL_KEY_BYTES;
        if !length.contains(&key.len()) || !key.chars().all(legal) {
            return Err(FactsError::LabelKey);
        }
        text("a label's value", value, MAX_HOST_LABEL_VALUE_BYTES)?;
    }
    Ok(())
}

/// Reads and keeps hosts in the control store.
#[derive(Clone)]
pub struct Directory {
    control: Control,
    clock: Arc<dyn Clock>,
    /// When hosts were renamed, for [`RENAME_EVERY`].
    renamed: Arc<Mutex<HashMap<HostId, Timestamp>>>,
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
    /// What it says of itself cannot be taken, and why.
    Refused(FactsError),
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
        Self {
            control,
            clock,
            renamed: Arc::default(),
        }
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

    /// A host connected and says this about itself: it is written if it changed. A host name that changes again
    /// within an hour is taken with the first connection after that.
    pub async fn connected(&self, id: HostId, facts: v1::HostFacts) -> Known {
        if let Err(error) = checked(&facts) {
            return Known::Refused(error);
        }
        let known = match self.control.host(id).await {
            Ok(Some(host)) if host.removed.is_none() => host,
            Ok(_) => return Known::No,
            Err(error) => {
                tracing::warn!(host = %id, error = crate::chain(&error), "the control store cannot be read");
                return Known::Unavailable;
            }
        };
        let labels = facts.labels.clone();
        let now = self.clock.now();
        let mut facts = Facts::from(facts);
        if facts.hostname != known.facts.hostname && !self.may_rename(id, now) {
            tracing::debug!(host = %id, name = known.name, "renamed less than an hour ago: the new name waits");
            facts.hostname.clone_from(&known.facts.hostname);
        }
        let same_labels = labels
            .iter()
            .all(|(key, value)| known.labels.get(key) == Some(value));
        if known.facts == facts && same_labels {
            return Known::Yes(Box::new(enrolled(known)));
        }
        match self.control.upsert_host_facts(id, facts, labels, now).await {
            Ok(host) => Known::Yes(Box::new(enrolled(host))),
            Err(error) => {
                tracing::warn!(host = %id, error = crate::chain(&error), "what the host says of itself was not kept");
                Known::Yes(Box::new(enrolled(known)))
            }
        }
    }

    fn may_rename(&self, id: HostId, now: Timestamp) -> bool {
        let mut renamed = self.renamed.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back ends the wait too.
        renamed.retain(|_, last| *last <= now && now.since(*last) < RENAME_EVERY);
        if renamed.contains_key(&id) {
            return false;
        }
        renamed.insert(id, now);
        true
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

#[cfg(test)]
mod tests {
    use super::*;

    fn said(change: impl FnOnce(&mut v1::HostFacts)) -> Result<(), FactsError> {
        let mut facts = v1::HostFacts {
            hostname: "web-1.example.org".to_owned(),
            os_pretty: "Debian GNU/Linux 13 (trixie) für alle".to_owned(),
            machine_id_hash: vec![7; 32],
            ..v1::HostFacts::default()
        };
        let label = ("site/rack".to_owned(), "fra 3".to_owned());
        facts.labels.extend([label]);
        change(&mut facts);
        checked(&facts)
    }

    #[test]
    fn what_agents_say_is_taken_and_what_is_too_much_is_not() {
        assert_eq!(said(|_| {}), Ok(()));
        assert_eq!(said(|facts| facts.kernel = "k".repeat(256)), Ok(()));
        let long = said(|facts| facts.kernel = "k".repeat(257));
        assert_eq!(
            long.expect_err("too long").to_string(),
            "kernel has 257 bytes, 256 are allowed"
        );
        let hash = said(|facts| facts.machine_id_hash = vec![0; 65]);
        assert!(matches!(hash, Err(FactsError::TooLong { .. })));
        for evil in ["a\nb", "\x1b[2J", "a\u{9b}b", "\0"] {
            let control = said(|facts| facts.hostname = evil.to_owned());
            assert_eq!(control, Err(FactsError::Control("hostname")), "{evil:?}");
        }
        let label = |key: &str, value: &str| {
            let label = (key.to_owned(), value.to_owned());
            said(|facts| facts.labels.extend([label]))
        };
        assert_eq!(label(&"k".repeat(64), &"v".repeat(256)), Ok(()));
        for key in ["", "a b", "schlüssel", "a\"b", &"k".repeat(65)] {
            assert_eq!(label(key, ""), Err(FactsError::LabelKey), "{key:?}");
        }
        assert!(matches!(
            label("k", &"v".repeat(257)),
            Err(FactsError::TooLong { .. })
        ));
        assert!(matches!(label("k", "a\rb"), Err(FactsError::Control(_))));
        let labels = |count: usize| {
            let many = (0..count).map(|at| (format!("k{at}"), String::new()));
            said(|facts| facts.labels = many.collect())
        };
        assert_eq!(labels(MAX_HOST_LABELS), Ok(()));
        let over = MAX_HOST_LABELS + 1;
        assert_eq!(labels(over), Err(FactsError::Labels(over)));
    }
}
