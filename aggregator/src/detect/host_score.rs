//! Hosts that behave unusually, all their metrics together.
//!
//! One score a host from [`super::score`]; here, when it is worth listing, since when, and which metrics
//! moved. It makes no incident: at its best such a score still speaks falsely once a week on every host,
//! which is 143 times a day on a thousand, so alone it ranks and explains and never calls anyone.

use std::time::Duration;

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Coverage, DetectConfig, Detector, Evidence, Findings, Reason, Rule, ScoreState, Severity,
    Verdict, budget::Budget,
};

/// An anomaly is over after this long below half of what listed it.
const CLEAR_AFTER: Duration = Duration::from_secs(900);
/// Metrics named as causes.
const CAUSES: usize = 5;

const RULE: Rule = Rule {
    name: "host_score",
    // The score is held and its anomalies end by their own rule below.
    open_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    gone_after: None,
    makes_incidents: false,
    more: None,
};

/// A metric that moved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Moved {
    /// Its place in the list of metrics.
    pub(super) metric: u32,
    pub(super) observed: f32,
    pub(super) usual: f32,
    /// Log2 by which its distances exceed their usual largest.
    pub(super) excess: f32,
    /// When it was first among those that moved most.
    pub(super) since: Timestamp,
}

/// A time of unusual behaviour that goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Episode {
    pub(super) since: Timestamp,
    /// Excess of the row that `moved` tells of, the largest so far.
    peak: f32,
    /// Since when the score is below the level that ends it.
    below_since: Option<Timestamp>,
    pub(super) moved: Vec<Moved>,
}

/// What is remembered of one host: the score, and the episode if there is one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    pub(super) score: ScoreState,
    budget: Budget,
    pub(super) episode: Option<Episode>,
}

impl Watch {
    /// Forgets when things were; what was learnt stays. An episode ends, as its times mean nothing any more.
    pub(super) fn forget_time(&mut self) {
        self.score.forget_time();
        self.budget.forget_time();
        self.episode = None;
    }

    /// Alerts and weeks of late.
    pub(super) fn told(&self) -> (f64, f64) {
        self.budget.told()
    }

    /// Takes in the metrics of one tick; it is listed so often a week that nothing is wrong.
    pub(super) fn step(&mut self, tick: Timestamp, values: &[f32], per_week: f64) {
        if !self.score.step(tick, values) {
            return;
        }
        let Some(score) = self.score.score() else {
            // Not observed: nothing begins and nothing ends.
            if let Some(episode) = &mut self.episode {
                episode.below_since = None;
            }
            return;
        };
        self.budget.learn(tick, score);
        let (score, threshold) = (f64::from(score), self.budget.threshold(per_week));
        if score >= threshold {
            if self.episode.is_none() {
                self.budget.tell();
            }
            let episode = self.episode.get_or_insert(Episode {
                since: tick,
                peak: 0.0,
                below_since: None,
                moved: Vec::new(),
            });
            episode.below_since = None;
            let excess = self.score.host_excess();
            if excess > episode.peak {
                episode.peak = excess;
                episode.moved = since(self.score.largest(CAUSES), &episode.moved, tick);
            }
            return;
        }
        let Some(episode) = &mut self.episode else {
            return;
        };
        if score >= threshold / 2.0 {
            episode.below_since = None;
            return;
        }
        let below_since = *episode.below_since.get_or_insert(tick);
        if tick.since(below_since) >= CLEAR_AFTER {
            self.episode = None;
        }
    }
}

/// Those that moved, each since it was first named.
fn since(mut moved: Vec<Moved>, before: &[Moved], now: Timestamp) -> Vec<Moved> {
    for one in &mut moved {
        let known = before.iter().find(|known| known.metric == one.metric);
        one.since = known.map_or(now, |known| known.since);
    }
    moved
}

pub(super) struct HostScore {
    per_week: f64,
}

impl HostScore {
    pub(super) fn new(config: &DetectConfig) -> Self {
        Self {
            per_week: config.budget_per_host_week,
        }
    }
}

impl Detector for HostScore {
    type State = Watch;

    fn rule(&self) -> &'static Rule {
        &RULE
    }

    fn step(
        &self,
        state: &mut Watch,
        evidence: &Evidence<'_>,
        findings: &mut Findings<'_>,
    ) -> Coverage {
        let Evidence::Tick(seen) = evidence else {
            return Coverage::NotAsked;
        };
        state.step(seen.tick, seen.signals, self.per_week);
        let verdict = match state.score.score().map(f64::from) {
            None => Verdict::Unknown,
            Some(score) if state.episode.is_some() => Verdict::Abnormal {
                severity: Severity::Info,
                reason: Reason::Score(score),
            },
            Some(score) => Verdict::Normal(Reason::Score(score)),
        };
        findings.add("", verdict);
        Coverage::Complete
    }
}

/// An anomaly as people are shown it.
#[derive(Debug, Clone, PartialEq)]
pub struct AnomalyView {
    /// Score now.
    pub score: f64,
    /// Since when, in the host's own time.
    pub since: Timestamp,
    /// What moved most when it was at its largest, largest first.
    pub causes: Vec<Cause>,
}

/// One metric of an anomaly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cause {
    /// Name of the signal.
    pub signal: &'static str,
    /// Its value then.
    pub observed: f64,
    /// What is usual at that time of day; its mean over the hours before while no day is known.
    pub usual: f64,
    /// Log2 by which the deviation exceeds the largest usual one.
    pub excess: f64,
    /// When it was first among what moved most, in the host's own time.
    pub since: Timestamp,
}
