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
    Verdict, score::follow,
};

/// Times the level of the host's busy hours from which it is listed: one false alert in three days on the
/// labelled hosts (docs/detection.md).
pub(super) const DEFAULT_THRESHOLD: f64 = 1.7;
/// Share of hours whose largest score stays below that level.
const BUSY_QUANTILE: f32 = 0.9;
/// Step of the level per hour once it has settled.
const BUSY_STEP: f32 = 0.02;
/// The level never falls below this, so that a calm host is not listed for a breath.
const BUSY_FLOOR: f32 = 0.5;
/// An anomaly is over after this long below half of the threshold.
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
    /// Log2 by which its two residuals exceed their usual largest.
    pub(super) excess: f32,
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

/// What the score of this host reaches in a busy hour. By the hour and not by the row: so hosts at one second
/// and at five minutes are listed equally often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BusyHours {
    /// Hours since 1970 of the one that goes on, and its largest score.
    hour: i64,
    max: Option<f32>,
    level: f32,
    learnt: u16,
}

impl Default for BusyHours {
    fn default() -> Self {
        Self {
            hour: 0,
            max: None,
            level: 1.0,
            learnt: 0,
        }
    }
}

impl BusyHours {
    fn learn(&mut self, tick: Timestamp, score: f32) {
        let hour = tick.as_millis().div_euclid(3_600_000);
        if hour != self.hour {
            if let Some(max) = self.max.take() {
                self.learnt = self.learnt.saturating_add(1);
                let step = BUSY_STEP.max(1.0 / (f32::from(self.learnt) + 1.0));
                self.level = follow(self.level, max, BUSY_QUANTILE, step).max(BUSY_FLOOR);
            }
            self.hour = hour;
        }
        self.max = Some(self.max.map_or(score, |max| max.max(score)));
    }
}

/// What is remembered of one host: the score, and the episode if there is one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    pub(super) score: ScoreState,
    busy: BusyHours,
    pub(super) episode: Option<Episode>,
}

impl Watch {
    /// Forgets when things were; what was learnt stays. An episode ends, as its times mean nothing any more.
    pub(super) fn forget_time(&mut self) {
        self.score.forget_time();
        // The hour that went on is not one of the host's hours.
        self.busy.max = None;
        self.episode = None;
    }

    /// Takes in the metrics of one tick.
    pub(super) fn step(&mut self, tick: Timestamp, values: &[f32], threshold: f64) {
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
        self.busy.learn(tick, score);
        let (score, threshold) = (f64::from(score), threshold * f64::from(self.busy.level));
        if score >= threshold {
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
                episode.moved = self.score.largest(CAUSES);
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

pub(super) struct HostScore {
    threshold: f64,
}

impl HostScore {
    pub(super) fn new(config: &DetectConfig) -> Self {
        Self {
            threshold: config.anomaly_threshold,
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
        state.step(seen.tick, seen.signals, self.threshold);
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
    /// Its mean over the hours before.
    pub usual: f64,
    /// Log2 by which the deviation exceeds the largest usual one.
    pub excess: f64,
}
