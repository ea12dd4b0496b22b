//! What a transition means for the incidents that are open: a pure step from one to operations of the store.
//!
//! | open for the key | transition | operations |
//! |---|---|---|
//! | nothing | opened | open |
//! | nothing | cleared | none |
//! | another opening, or the same | opened, not graver or begun earlier | none: one at a time, or a replay |
//! | another opening | opened, graver, begun no earlier | resolve that, open |
//! | the opening that it names | cleared | resolve |
//! | another opening | cleared | none: it tells of one that is over |
//!
//! An opening is known by rule, subject, severity and since when it holds, never by when we heard of it.

use std::collections::BTreeMap;

use muster_proto::{id::HostId, time::Timestamp};
use ring::digest;

use super::{flap::Flap, pages::HOLD, store::OpenIncident};
use crate::{
    control::{NewIncident, Resolution},
    detect::{Change, Opening, Severity, Transition},
};

/// What an incident is about. At most one is open for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Whose.
    pub host: HostId,
    /// Name of the rule.
    pub rule: String,
    /// A mount point, a unit; empty for the host as a whole.
    pub subject: String,
}

impl Key {
    /// The key of what a host reports.
    #[must_use]
    pub fn of(host: HostId, transition: &Transition) -> Self {
        let rule = transition.rule.to_owned();
        Self {
            host,
            rule,
            subject: transition.subject.clone(),
        }
    }
}

/// Something to be done in the store.
#[derive(Debug, Clone)]
pub enum Op {
    /// Open an incident.
    Open(NewIncident),
    /// Resolve the one that is open for the key.
    Resolve(Resolution),
}

/// What is open in the store, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenBook(BTreeMap<Key, (Severity, Timestamp)>);

impl OpenBook {
    /// The next operation that a transition of a host asks for; none when it asks for nothing more.
    #[must_use]
    pub fn next(&self, host: HostId, transition: &Transition) -> Option<Op> {
        let key = Key::of(host, transition);
        let opening = (transition.severity, transition.since);
        match (&transition.change, self.0.get(&key).copied()) {
            // What began earlier than what is open is a replay of something that is over.
            (Change::Opened { .. }, Some((severity, since)))
                if severity >= transition.severity || since > transition.since =>
            {
                None
            }
            (Change::Opened { .. }, Some(lesser)) => {
                let evidence = format!("became {}", transition.severity.as_str());
                Some(resolve(key, lesser, transition.at, evidence))
            }
            (Change::Opened { summary, evidence }, None) => Some(Op::Open(NewIncident {
                op_id: op_id(&key, opening, "open"),
                host_id: host,
                rule: key.rule,
                subject: key.subject,
                severity: transition.severity.to_wire(),
                summary: summary.clone(),
                evidence: evidence.clone(),
                since: transition.since,
                at: transition.at,
            })),
            (Change::Cleared { evidence }, Some(open)) if open == opening => {
                Some(resolve(key, open, transition.at, evidence.clone()))
            }
            (Change::Cleared { .. }, _) => None,
        }
    }

    /// Whether something is open for a key.
    #[must_use]
    pub fn is_open(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }

    /// Notes what is open for a key now.
    pub fn opened(&mut self, open: OpenIncident) {
        self.0.insert(open.key, (open.severity, open.since));
    }

    /// Notes that nothing is open for a key any more.
    pub fn resolved(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// What is open on a host, by rule and subject.
    pub fn of_host(&self, host: HostId) -> impl Iterator<Item = Opening> + '_ {
        let first = Key {
            host,
            rule: String::new(),
            subject: String::new(),
        };
        let of_host = self
            .0
            .range(first..)
            .take_while(move |(key, _)| key.host == host);
        of_host.map(|(key, &(severity, since))| Opening {
            rule: key.rule.clone(),
            subject: key.subject.clone(),
            severity,
            since,
        })
    }
}

/// Whether what fails anew goes on under its number: it was clear for a moment only, or it flaps.
#[must_use]
pub fn goes_on(cleared: Timestamp, flap: &Flap, at: Timestamp) -> bool {
    at.since(cleared) <= HOLD || flap.flapping
}

fn resolve(key: Key, opening: (Severity, Timestamp), at: Timestamp, evidence: String) -> Op {
    Op::Resolve(Resolution {
        op_id: op_id(&key, opening, "resolve"),
        host_id: key.host,
        rule: key.rule,
        subject: key.subject,
        evidence,
        at,
    })
}

/// Identity of an operation: 128 bits of a digest of what it says, so that doing it again is recognised.
fn op_id(key: &Key, (severity, since): (Severity, Timestamp), change: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"muster incident 1\0");
    context.update(key.host.as_bytes());
    for part in [key.rule.as_str(), &key.subject, severity.as_str(), change] {
        // With the lengths, parts cannot run into one another.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.update(&since.as_millis().to_be_bytes());
    let digest = context.finish();
    digest.as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
