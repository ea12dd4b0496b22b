//! Refusals in the audit log: a few of each who is refused, and how many were left out.
//!
//! Whoever may do nothing may still be refused a hundred times a second, and every line of the audit log stays for
//! ever.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use muster_proto::time::Timestamp;
use tokio::time::Instant;

use super::{Control, ControlError};

/// Refusals of one that are written down at once, and each minute.
const AT_ONCE: f64 = 10.0;
const PER_MINUTE: f64 = 10.0;

/// Those that are told apart; beyond, all others are one.
const MAX_KNOWN: usize = 4_096;

/// Who the others are.
const OTHERS: &str = "others";

/// What is known of those who were refused; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals(Arc<Mutex<HashMap<String, Refused>>>);

#[derive(Debug)]
struct Refused {
    room: f64,
    at: Instant,
    left_out: u64,
}

impl Refused {
    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.room = (self.room + passed * PER_MINUTE / 60.0).min(AT_ONCE);
        self.at = now;
    }
}

impl Refusals {
    /// Whether one more refusal of `who` is written down; how many were left out since the last that was.
    pub(super) fn note(&self, who: &str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_KNOWN && !all.contains_key(who) {
            // Who has had nothing left out, and would have none, need not be known.
            all.retain(|_, refused| {
                refused.fill(now);
                refused.left_out > 0 || refused.room < AT_ONCE
            });
        }
        let full = all.len() >= MAX_KNOWN && !all.contains_key(who);
        let who = if full { OTHERS } else { who };
        let refused = all.entry(who.to_owned()).or_insert(Refused {
            room: AT_ONCE,
            at: now,
            left_out: 0,
        });
        refused.fill(now);
        if refused.room < 1.0 {
            refused.left_out += 1;
            return None;
        }
        refused.room -= 1.0;
        Some(std::mem::take(&mut refused.left_out))
    }

    /// An outcome with the number of those that were left out before it.
    pub(super) fn told(outcome: &str, left_out: u64) -> String {
        match left_out {
            0 => outcome.to_owned(),
            _ => format!("{outcome}; {left_out} refusals before it were not written down"),
        }
    }
}

impl Control {
    /// Writes a refusal to the audit log, unless there were many of this actor lately: ten at once, then ten a minute;
    /// the next that is written says how many were not.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn audit_refusal(
        &self,
        at: Timestamp,
        actor: &str,
        action: &str,
        subject: &str,
        outcome: &str,
    ) -> Result<(), ControlError> {
        match self.refusals.note(actor, Instant::now()) {
            Some(left_out) => {
                let outcome = Refusals::told(outcome, left_out);
                self.audit(at, actor, action, subject, &outcome).await
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ten_at_once_then_ten_a_minute_and_the_rest_is_counted() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let written = |who: &str, seconds, times: usize| {
            let noted = (0..times).map(|_| refusals.note(who, at(seconds)));
            noted.flatten().collect::<Vec<u64>>()
        };
        assert_eq!(written("eve", 0, 1_000), [0; 10]);
        assert_eq!(written("jo", 0, 3), [0; 3], "others are not concerned");
        assert_eq!(written("eve", 6, 100), [990]);
        assert_eq!(written("eve", 66, 100).len(), 10);
        assert_eq!(written("eve", 66 + 3_600, 1), [90]);
    }

    #[test]
    fn many_names_are_one_and_are_forgotten_again() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        for number in 0..MAX_KNOWN {
            assert_eq!(refusals.note(&number.to_string(), begin), Some(0));
        }
        let later = (0..100).filter_map(|number| refusals.note(&format!("late {number}"), begin));
        assert_eq!(later.count(), 10, "together");
        let hour = begin + Duration::from_secs(3_600);
        assert_eq!(refusals.note("late", hour), Some(0));
        assert!(refusals.0.lock().expect("no panic").len() < 10);
    }
}
