//! Units that the host's service manager calls failed.
//!
//! Told at once: the manager has already tried what it was told to try. Normal again after a minute active or
//! inactive; a unit on its way from one state to another is neither. A failed unit stays loaded until it is
//! reset, so one that is not listed any more for a quarter of an hour was removed or reset, and that clears it.

use std::time::Duration;

use super::{Coverage, Detector, Evidence, Findings, Reason, Rule, Severity, Verdict};
use crate::fleet::UnitState;

pub(super) const RULE: Rule = Rule {
    name: "unit_failed",
    open_after: Duration::ZERO,
    clear_after: Duration::from_secs(60),
    gone_after: Some(Duration::from_secs(900)),
    makes_incidents: true,
    more: Some("more units"),
};

pub(super) struct UnitFailed;

impl Detector for UnitFailed {
    type State = ();

    fn rule(&self) -> &'static Rule {
        &RULE
    }

    fn step(&self, (): &mut (), evidence: &Evidence<'_>, findings: &mut Findings<'_>) -> Coverage {
        let Evidence::Tick(seen) = evidence else {
            return Coverage::NotAsked;
        };
        if !seen.units_known {
            return Coverage::Partial;
        }
        for unit in seen.units {
            let reason = Reason::Unit {
                state: unit.state,
                restarts: unit.restarts,
            };
            findings.add(
                &unit.name,
                match unit.state {
                    UnitState::Failed => Verdict::Abnormal {
                        severity: Severity::Warning,
                        reason,
                    },
                    UnitState::Active | UnitState::Inactive => Verdict::Normal(reason),
                    UnitState::Activating | UnitState::Deactivating => Verdict::Unknown,
                },
            );
        }
        Coverage::Complete
    }
}
