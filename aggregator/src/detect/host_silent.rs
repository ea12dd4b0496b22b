//! A host that fell silent without saying why, or that has not come back when it should have.
//!
//! When a host counts as silent is decided by its liveness, grace and the aggregator's own stalls included.
//! A goodbye before (the agent was stopped, the host reboots or shuts down) is an announcement, not a fault,
//! and neither it nor mere lateness says anything about a silence that is open: only being heard ends that.

use std::time::Duration;

use super::{Coverage, Detector, Evidence, Findings, Reason, Rule, Severity, Verdict};
use crate::fleet::Liveness;
use muster_proto::time::Timestamp;

const RULE: Rule = Rule {
    name: "host_silent",
    open_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    gone_after: None,
    makes_incidents: true,
    more: None,
};

pub(super) struct HostSilent;

impl Detector for HostSilent {
    /// The host's own time of its last sample.
    type State = Option<Timestamp>;

    fn rule(&self) -> &'static Rule {
        &RULE
    }

    fn step(
        &self,
        state: &mut Self::State,
        evidence: &Evidence<'_>,
        findings: &mut Findings<'_>,
    ) -> Coverage {
        let standing = match evidence {
            Evidence::Liveness(standing) => *standing,
            Evidence::Tick(seen) => {
                *state = Some(seen.tick);
                return Coverage::NotAsked;
            }
        };
        findings.add(
            "",
            match standing.liveness {
                Liveness::Live => Verdict::Normal(Reason::Heard {
                    past: standing.past,
                    account: standing.account,
                }),
                Liveness::Silent(cause) if !cause.is_announced() => Verdict::Abnormal {
                    severity: Severity::Critical,
                    reason: Reason::Silence {
                        last_tick: *state,
                        cause,
                        account: standing.account,
                    },
                },
                Liveness::Silent(_) | Liveness::Late | Liveness::Joined => Verdict::Unknown,
            },
        );
        Coverage::Partial
    }
}
