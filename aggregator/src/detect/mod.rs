//! From what hosts show to what is wrong: the contract between detectors and everything around them.
//!
//! A [`Detector`] is a fold over event time. It reads no clock and no disk and draws no random number, so
//! the same observations give the same verdicts, bit by bit, live, from a backlog or from the log after a
//! restart. Its verdict is one of three, and [`Verdict::Unknown`] opens nothing and closes nothing: taking
//! observations away can only move an answer towards it.
//!
//! [`Engine`] holds the one list of detectors, how long something must hold before it is told, and what is
//! open on a host. What becomes of a [`Transition`] is the incident module's business; a detector has never
//! heard of numbers, stores or people.

mod budget;
mod engine;
mod filesystem_full;
mod filesystem_full_soon;
pub mod forecast;
mod host_score;
mod host_silent;
mod joint;
pub mod memory_leak;
mod metric;
mod novelty;
pub mod offline;
pub mod peers;
mod reason;
mod ring;
pub mod rules;
mod score;
mod slope;
mod unit_failed;

use std::time::Duration;

use muster_proto::{time::Timestamp, v1};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use engine::{Engine, HostDetection, Opening};
pub use host_score::{AnomalyView, Cause};
pub use novelty::{Novel, Novelty};
pub use reason::{Hours, Reason};
pub use score::ScoreState;

use crate::fleet::{Enrolled, FilesystemPoint, Liveness, Signals, Unit, silence::Past};

/// Bounds an operator may move. Those that no one has had a reason to move are constants of the detectors.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectConfig {
    /// Share of a filesystem in use, of space or of inodes, from which it is a warning; 0 to 1.
    pub filesystem_warning_ratio: f64,
    /// Share from which it is critical; 0 to 1.
    pub filesystem_critical_ratio: f64,
    /// With more bytes than this left, a filesystem is not nearly full, whatever its share.
    pub filesystem_available_bytes: f64,
    /// How many alerts a host-week its score may list it for falsely.
    pub budget_per_host_week: f64,
    /// What an operator changes about the rules of the pack.
    #[serde(skip)]
    pub rules: Vec<rules::Override>,
    /// Labels that say which hosts are peers: the first of them that a host has. None: nobody is compared.
    pub peer_labels: Vec<String>,
}

impl Default for DetectConfig {
    fn default() -> Self {
        Self {
            filesystem_warning_ratio: 0.90,
            filesystem_critical_ratio: 0.97,
            filesystem_available_bytes: 50.0 * 1024.0 * 1024.0 * 1024.0,
            budget_per_host_week: budget::DEFAULT_PER_WEEK,
            rules: Vec::new(),
            peer_labels: ["role", "group", "app", "service", "cluster"]
                .map(str::to_owned)
                .into(),
        }
    }
}

/// A rule in the program, beside those of the pack, which samples in history can judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampled {
    /// Its name.
    pub rule: &'static str,
    /// How far it looks back: what it says of a moment follows from that and from nothing before.
    pub looks_back: Duration,
}

/// Those rules. When a host was heard is not in its samples, and peers are held against what was learnt of them for
/// weeks, so `host_silent` and `peer_outlier` are not among them.
pub static SAMPLED: [Sampled; 4] = [
    Sampled {
        rule: filesystem_full::RULE.name,
        looks_back: Duration::ZERO,
    },
    Sampled {
        rule: filesystem_full_soon::RULE.name,
        looks_back: filesystem_full_soon::LOOKS_BACK,
    },
    Sampled {
        rule: memory_leak::RULE.name,
        looks_back: memory_leak::LOOKS_BACK,
    },
    Sampled {
        rule: unit_failed::RULE.name,
        looks_back: Duration::ZERO,
    },
];

/// What a host showed at one tick.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// The host's own time of the sample; it grows from one observation to the next.
    pub tick: Timestamp,
    /// Interval between its ticks. A longer pause means that something was not observed.
    pub interval: Duration,
    /// Received as it was taken. What was held back is judged in its own time: it teaches what is usual and
    /// counts towards how long something holds, but by itself opens and clears nothing.
    pub live: bool,
    /// One value for each of the fleet's `SIGNALS`, NaN where absent.
    pub signals: &'a Signals,
    /// The host's filesystems.
    pub filesystems: &'a [FilesystemPoint],
    /// Whether they were asked; otherwise `filesystems` says nothing.
    pub filesystems_known: bool,
    /// The units of its service manager.
    pub units: &'a [Unit],
    /// Whether it reports any; otherwise `units` says nothing.
    pub units_known: bool,
    /// The series that rules of the pack look at.
    pub samples: &'a [rules::Sample<'a>],
    /// Who it is, for overrides of the rules that are not for all.
    pub who: Option<&'a Enrolled>,
}

/// What a detector is asked to judge.
#[derive(Debug, Clone, Copy)]
pub enum Evidence<'a> {
    /// A sample of the host.
    Tick(&'a Observation<'a>),
    /// How the host stands, as the aggregator hears it.
    Liveness(&'a Standing<'a>),
}

/// How a host stands, and what was seen behind it.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// How it stands.
    pub liveness: Liveness,
    /// Its last silence that is over.
    pub past: Option<Past>,
    /// What was seen of a silence that goes on, or of that last one.
    pub account: &'a str,
}

/// One way to judge a host. A pure step: same state and evidence, same findings.
pub trait Detector {
    /// What it remembers about one host; the engine keeps it, writes it to checkpoints and restores it.
    type State: Default + Serialize + DeserializeOwned;

    /// Its name, and how long its findings must hold.
    fn rule(&self) -> &Rule;

    /// Judges the evidence, one finding for each subject it can say something about.
    fn step(
        &self,
        state: &mut Self::State,
        evidence: &Evidence<'_>,
        findings: &mut Findings<'_>,
    ) -> Coverage;
}

/// How far a detector's findings reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// The evidence is of a kind that it does not look at.
    NotAsked,
    /// What it did not name is unknown.
    Partial,
    /// It named every subject there is; what it did not name is gone.
    Complete,
    /// It is switched off for this host: what it had opened is not judged any more, and ends.
    Off,
}

/// What holds for all findings of a detector.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Identifies it in incidents, queries and the documentation.
    pub name: &'static str,
    /// How long it must be abnormal without a break before it opens.
    pub open_after: Duration,
    /// How long it must be normal without a break before it clears.
    pub clear_after: Duration,
    /// How long a subject must be gone without a break before that clears it; `None`: never.
    pub gone_after: Option<Duration>,
    /// Whether it makes incidents; otherwise it only ranks hosts.
    pub makes_incidents: bool,
    /// Subject of the one incident that stands for all subjects beyond those that are followed one by one;
    /// `None` where the host as a whole is the only subject.
    pub more: Option<&'static str>,
}

/// What a detector says of one subject.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict<'a> {
    /// As it should be.
    Normal(Reason<'a>),
    /// Not as it should be.
    Abnormal {
        /// How much it matters.
        severity: Severity,
        /// The figures behind it.
        reason: Reason<'a>,
    },
    /// Not observed, or between the bound that opens and the one that clears.
    Unknown,
}

/// Takes the findings of one step.
pub struct Findings<'a> {
    sink: &'a mut dyn FnMut(&str, Verdict<'_>),
}

impl Findings<'_> {
    /// What is said of `subject`: a mount point, a unit; empty for the host as a whole.
    pub fn add(&mut self, subject: &str, verdict: Verdict<'_>) {
        (self.sink)(subject, verdict);
    }
}

/// How much something matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Someone should act today.
    Warning,
    /// Someone should act now.
    Critical,
}

impl Severity {
    /// From the least to the gravest.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Critical];

    /// The word that people and the store use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// As messages carry it.
    #[must_use]
    pub const fn to_wire(self) -> v1::Severity {
        match self {
            Self::Info => v1::Severity::Info,
            Self::Warning => v1::Severity::Warning,
            Self::Critical => v1::Severity::Critical,
        }
    }

    /// From a message; `None` where it says none.
    #[must_use]
    pub fn of_wire(severity: v1::Severity) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.to_wire() == severity)
    }
}

/// Something began to be wrong with a host, or ceased to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Name of the rule.
    pub rule: &'static str,
    /// What it is about; empty for the host as a whole.
    pub subject: String,
    /// How much it matters; of what ceased, how much it did.
    pub severity: Severity,
    /// Since when it holds or held. With rule, subject and severity this tells one opening from another,
    /// so that a replay is recognised.
    pub since: Timestamp,
    /// When the evidence sufficed: the host's time of the tick, or the aggregator's for silence.
    pub at: Timestamp,
    /// Which of the two.
    pub change: Change,
}

/// The two ways in which things change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It began.
    Opened {
        /// One line for people.
        summary: String,
        /// The figures.
        evidence: String,
    },
    /// It ceased, and that was observed.
    Cleared {
        /// The figures.
        evidence: String,
    },
}

#[cfg(test)]
mod tests;
