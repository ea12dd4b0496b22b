//! Filesystems that are nearly full, of space or of inodes.
//!
//! By level only: from 90 % for five minutes a warning, from 97 % critical, until five minutes below the
//! warning by a margin. A share alone misleads on large disks, so nothing is said while more than 50 GiB
//! are left. What cannot fill up (mounted read-only) or did not answer (hung) is unknown. A forecast of when
//! it will be full is not made here yet.

use std::time::Duration;

use super::{
    Coverage, DetectConfig, Detector, Evidence, Findings, Reason, Rule, Severity, Verdict,
};
use crate::fleet::FilesystemPoint;

/// How far below the warning it must fall to count as normal again.
const CLEAR_MARGIN: f64 = 0.02;
/// How much more than the guard must be left to count as normal by the guard alone.
const GUARD_MARGIN: f64 = 1.1;

pub(super) const RULE: Rule = Rule {
    name: "filesystem_full",
    open_after: Duration::from_secs(300),
    clear_after: Duration::from_secs(300),
    // A filesystem that is not mounted is not known to have room; after a day it is no one's worry.
    gone_after: Some(Duration::from_secs(86_400)),
    makes_incidents: true,
    more: Some("more filesystems"),
};

pub(super) struct FilesystemFull {
    warning: f64,
    critical: f64,
    available_bytes: f64,
}

impl FilesystemFull {
    pub(super) fn new(config: &DetectConfig) -> Self {
        Self {
            warning: config.filesystem_warning_ratio,
            critical: config.filesystem_critical_ratio,
            available_bytes: config.filesystem_available_bytes,
        }
    }

    fn space(&self, point: &FilesystemPoint) -> Verdict<'static> {
        if point.available.is_nan() {
            return Verdict::Unknown;
        }
        let reason = Reason::Space {
            used_ratio: point.used_ratio,
            available_bytes: point.available,
        };
        if point.available > self.available_bytes * GUARD_MARGIN {
            return Verdict::Normal(reason);
        }
        let verdict = self.level(point.used_ratio, reason);
        match verdict {
            Verdict::Abnormal { .. } if point.available > self.available_bytes => Verdict::Unknown,
            verdict => verdict,
        }
    }

    fn level<'a>(&self, used_ratio: f64, reason: Reason<'a>) -> Verdict<'a> {
        if used_ratio >= self.critical {
            Verdict::Abnormal {
                severity: Severity::Critical,
                reason,
            }
        } else if used_ratio >= self.warning {
            Verdict::Abnormal {
                severity: Severity::Warning,
                reason,
            }
        } else if used_ratio < self.warning - CLEAR_MARGIN {
            Verdict::Normal(reason)
        } else {
            // Between the bounds, or not a number.
            Verdict::Unknown
        }
    }
}

impl Detector for FilesystemFull {
    type State = ();

    fn rule(&self) -> &'static Rule {
        &RULE
    }

    fn step(&self, (): &mut (), evidence: &Evidence<'_>, findings: &mut Findings<'_>) -> Coverage {
        let Evidence::Tick(seen) = evidence else {
            return Coverage::NotAsked;
        };
        if !seen.filesystems_known {
            return Coverage::Partial;
        }
        for point in seen.filesystems {
            let mountpoint = point.mountpoint.as_str();
            let inodes = format!("{mountpoint} inodes");
            if point.hung || point.readonly {
                findings.add(mountpoint, Verdict::Unknown);
                findings.add(&inodes, Verdict::Unknown);
                continue;
            }
            findings.add(mountpoint, self.space(point));
            findings.add(
                &inodes,
                match point.inodes_used_ratio {
                    Some(used_ratio) => self.level(
                        used_ratio,
                        Reason::Inodes {
                            mountpoint,
                            used_ratio,
                        },
                    ),
                    None => Verdict::Unknown,
                },
            );
        }
        Coverage::Complete
    }
}
