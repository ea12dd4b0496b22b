//! Which incidents nobody is told of: silences and maintenance windows, parsed once and asked often.

use muster_proto::{id::HostId, time::Timestamp};

use super::roster::Roster;
use crate::{
    control::{Phase, Quiet},
    selector::{Selector, pattern::Pattern},
};

/// A silence or window with its selector understood.
#[derive(Debug, Clone)]
pub struct Hush {
    /// As it was made.
    pub quiet: Quiet,
    selector: Selector,
    subject: Option<Pattern>,
}

impl Hush {
    /// Understands a row. One that cannot be understood (made by a newer program) hides nothing: telling too much is
    /// the lesser evil.
    #[must_use]
    pub fn of(quiet: Quiet) -> Option<Self> {
        let selector = Selector::parse(&quiet.selector);
        let subject = match quiet.subject.as_str() {
            "" => Ok(None),
            text => Pattern::parse(text).map(Some),
        };
        match (selector, subject) {
            (Ok(selector), Ok(subject)) => Some(Self {
                quiet,
                selector,
                subject,
            }),
            _ => {
                tracing::warn!(
                    quiet = quiet.id(),
                    selector = quiet.selector,
                    "a silence cannot be understood and hides nothing"
                );
                None
            }
        }
    }

    /// Whether it holds now.
    #[must_use]
    pub fn is_active(&self, now: Timestamp) -> bool {
        matches!(self.quiet.phase(now), Phase::Active(_))
    }

    /// Whether it is about this host. A host that is not known is matched by nothing.
    #[must_use]
    pub fn is_about(&self, host: HostId, roster: &Roster) -> bool {
        roster
            .card(host)
            .is_some_and(|card| self.selector.matches(card))
    }

    /// Whether it is about an incident, be it active or not.
    #[must_use]
    pub fn hides(&self, host: HostId, rule: &str, subject: &str, roster: &Roster) -> bool {
        (self.quiet.rule.is_empty() || self.quiet.rule == rule)
            && self
                .subject
                .as_ref()
                .is_none_or(|pattern| pattern.matches(subject))
            && self.is_about(host, roster)
    }
}
