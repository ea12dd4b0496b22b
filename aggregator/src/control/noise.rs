//! The noise ledger: what each rule told people, and whether anybody had a use for it.

use std::time::Duration;

use muster_proto::time::Timestamp;
use rusqlite::params;

use super::{Control, ControlError};

/// What is clear so soon without anybody's doing need not have been told.
const FAST: Duration = Duration::from_secs(300);

/// What one rule told people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoiseRow {
    /// Name of the rule of the page's first incident.
    pub rule: String,
    /// Pages that opened.
    pub pages: u32,
    /// Such as somebody acknowledged.
    pub acted_on: u32,
    /// Such as were clear within five minutes, without that.
    pub cleared_fast: u32,
    /// Messages that were delivered for them.
    pub messages: u32,
}

impl Control {
    /// The pages that opened since then, by rule, the most told first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn noise(&self, since: Timestamp) -> Result<Vec<NoiseRow>, ControlError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT i.rule, count(*), sum(p.acted_ms IS NOT NULL),
                        sum(p.acted_ms IS NULL AND p.closed_ms IS NOT NULL AND p.clear_ms - p.opened_ms <= ?2),
                        sum((SELECT count(*) FROM deliveries d WHERE d.page = p.number AND d.state = 2
                                AND d.reader = ''))
                 FROM pages p JOIN incidents i ON i.number = p.number
                 WHERE p.opened_ms >= ?1 GROUP BY i.rule ORDER BY 2 DESC, 1",
            )?;
            let fast = i64::try_from(FAST.as_millis()).unwrap_or(i64::MAX);
            let rows = query.query_map(params![since.as_millis(), fast], |row| {
                Ok(NoiseRow {
                    rule: row.get(0)?,
                    pages: row.get(1)?,
                    acted_on: row.get(2)?,
                    cleared_fast: row.get(3)?,
                    messages: row.get(4)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{id::HostId, v1};

    use super::*;
    use crate::{
        control::{Ack, AckOutcome, Consequence, NewIncident},
        detect::Severity,
        incident::pages::{Changes, Page, Scope},
    };

    const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    #[tokio::test]
    async fn each_rule_has_its_pages_and_what_became_of_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a new store");
        let host = HostId::from_bytes([1; 16]);
        // Rule, minutes until it was clear, and whether somebody saw to it.
        for (number, (rule, clear, acted)) in [
            ("unit_failed", Some(2), false),
            ("unit_failed", Some(2), true),
            ("unit_failed", Some(60), false),
            ("host_silent", None, false),
        ]
        .into_iter()
        .enumerate()
        {
            let number = number as u64 + 1;
            let new = NewIncident {
                op_id: number.to_string(),
                host_id: host,
                rule: rule.to_owned(),
                subject: number.to_string(),
                severity: v1::Severity::Warning,
                summary: String::new(),
                evidence: String::new(),
                since: START,
                at: START,
            };
            control.open_incident(new).await.expect("written");
            let page = Page {
                id: number.to_string(),
                scope: Scope::Host(host),
                lead: None,
                severity: Severity::Warning,
                opened: START,
                grown: START,
                clear: clear.map(|minutes| START.plus(Duration::from_secs(minutes * 60))),
                tellings: 1,
                told_hosts: 1,
            };
            let mut changes = Changes::default();
            changes.pages.insert(number, page);
            let flap = crate::incident::flap::Flap::default();
            changes
                .members
                .insert(number, (Some((number, START)), flap));
            let all = Consequence {
                changes: changes.clone(),
                at: START,
                ..Consequence::default()
            };
            control.conclude(all).await.expect("written");
            if acted {
                let ack = Ack {
                    by: "anna".to_owned(),
                    at: START,
                    until: None,
                    text: String::new(),
                };
                let done = control.acknowledge(number, ack).await.expect("written");
                assert_eq!(done, AckOutcome::Done(vec![number]));
            }
            if clear.is_some() {
                changes.closed.insert(number);
                let all = Consequence {
                    changes,
                    at: START,
                    ..Consequence::default()
                };
                control.conclude(all).await.expect("written");
            }
        }
        let row = |rule: &str, pages, acted_on, cleared_fast| NoiseRow {
            rule: rule.to_owned(),
            pages,
            acted_on,
            cleared_fast,
            messages: 0,
        };
        let rows = control.noise(START).await.expect("readable");
        assert_eq!(
            rows,
            [row("unit_failed", 3, 1, 1), row("host_silent", 1, 0, 0)]
        );
        let later = START.plus(Duration::from_secs(1));
        assert_eq!(control.noise(later).await.expect("readable"), []);
    }
}
