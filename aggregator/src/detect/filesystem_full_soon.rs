//! Filesystems that will be full within a day, of space or of inodes, if they go on as they do.
//!
//! [`super::forecast`] makes the forecast; here are its subjects. Of the filesystems that can fill up the fullest
//! are followed, at most [`MAX_FOLLOWED`] levels of a host and 350 bytes each. Hung, read-only and not asked are
//! unknown, and so is a filesystem that is not known for a day yet.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Coverage, Detector, Evidence, Findings, Reason, Rule, Severity, Verdict,
    engine::MAX_TRACKS,
    forecast::{Forecast, Level},
};
use crate::fleet::FilesystemPoint;

/// Hours to full from which on someone is called, and from which on at once.
pub(super) const WARNING_HOURS: f64 = 24.0;
pub(super) const CRITICAL_HOURS: f64 = 3.0;
/// Hours beyond which it is well again.
const CLEAR_HOURS: f64 = 36.0;
/// The level's three days ([`super::forecast`]) and what is beginning.
pub(super) const LOOKS_BACK: Duration = Duration::from_secs(4 * 86_400);
/// Levels of one host that are followed: two of each filesystem.
const MAX_FOLLOWED: usize = MAX_TRACKS;

pub(super) const RULE: Rule = Rule {
    name: "filesystem_full_soon",
    // The forecast has held for its own time.
    open_after: Duration::ZERO,
    clear_after: Duration::from_secs(3600),
    gone_after: Some(Duration::from_secs(86_400)),
    makes_incidents: true,
    more: Some("more filesystems"),
};

/// The levels of one host by mount point, inodes under the mount point followed by ` inodes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Filling {
    levels: BTreeMap<String, Level>,
}

impl Filling {
    /// The forecast for a subject.
    pub(super) fn forecast(&self, subject: &str) -> Option<Forecast> {
        self.levels.get(subject)?.forecast()
    }

    pub(super) fn forget_time(&mut self) {
        self.levels.values_mut().for_each(Level::forget_time);
    }

    /// Takes in a level; the level's history, unless it is one too many.
    fn follow(&mut self, subject: &str, tick: Timestamp, used: f64) -> Option<&Level> {
        if !self.levels.contains_key(subject) {
            if self.levels.len() >= MAX_FOLLOWED {
                return None;
            }
            self.levels.insert(subject.to_owned(), Level::default());
        }
        let level = self.levels.get_mut(subject)?;
        level.step(tick, used);
        Some(level)
    }
}

/// The name under which the inodes of a filesystem are followed.
pub(super) fn inodes(mountpoint: &str) -> String {
    format!("{mountpoint} inodes")
}

pub(super) struct FilesystemFullSoon;

impl Detector for FilesystemFullSoon {
    type State = Filling;

    fn rule(&self) -> &'static Rule {
        &RULE
    }

    fn step(
        &self,
        state: &mut Filling,
        evidence: &Evidence<'_>,
        findings: &mut Findings<'_>,
    ) -> Coverage {
        let Evidence::Tick(seen) = evidence else {
            return Coverage::NotAsked;
        };
        if !seen.filesystems_known {
            return Coverage::Partial;
        }
        // What is not mounted any more makes room for what is.
        if state.levels.len() >= MAX_FOLLOWED {
            let mounted = |subject: &str| {
                let of = |point: &FilesystemPoint| {
                    let rest = subject.strip_prefix(point.mountpoint.as_str());
                    rest == Some("") || rest == Some(" inodes")
                };
                seen.filesystems.iter().any(of)
            };
            state.levels.retain(|subject, _| mounted(subject));
        }
        for point in seen.filesystems {
            let mountpoint = point.mountpoint.as_str();
            let asked = !point.hung && !point.readonly;
            let mut judge = |subject: &str, used: f64| {
                let known = asked && used.is_finite();
                let level = known.then(|| state.follow(subject, seen.tick, used));
                findings.add(subject, verdict(level.flatten(), used));
            };
            judge(mountpoint, point.used_ratio);
            if let Some(used) = point.inodes_used_ratio {
                judge(&inodes(mountpoint), used);
            }
        }
        Coverage::Complete
    }
}

fn verdict(level: Option<&Level>, used_ratio: f64) -> Verdict<'static> {
    let Some(level) = level else {
        return Verdict::Unknown;
    };
    if let Some(forecast) = level.alarm(WARNING_HOURS) {
        let reason = Reason::FullIn {
            forecast,
            used_ratio,
        };
        let severity = if forecast.hours <= CRITICAL_HOURS {
            Severity::Critical
        } else {
            Severity::Warning
        };
        return Verdict::Abnormal { severity, reason };
    }
    match level.forecast() {
        _ if !level.is_known() => Verdict::Unknown,
        Some(forecast) if forecast.hours <= CLEAR_HOURS => Verdict::Unknown,
        forecast => Verdict::Normal(Reason::NotFullSoon {
            forecast,
            used_ratio,
        }),
    }
}
