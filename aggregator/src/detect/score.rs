//! How unusual a host behaves, as one number: residual excess over fast baselines.
//!
//! A fold over rows of any number of metrics; the caller names them. For each metric it keeps two moving
//! averages (half-lives 15 min and 6 h) and a running high quantile of the distance to each. What counts is
//! only by how much, in powers of two, a distance exceeds its usual largest; the mean of that over the
//! host's metrics, measured against the same host's own past, is the score. So a metric that is always
//! noisy, or a host that is always busy, is not unusual; a flat one never is.
//!
//! It reads no clock: time is the tick of the data, so a replay, a backlog or a restart in between gives the
//! same bits. Missing values are left out, never taken as 0. What to do about a score is left to others.
//!
//! Ticks of less than a minute are averaged into rows of about a minute first: the constants below are times,
//! but a quantile of one-second residuals would be one of sampling noise, and a fleet at 1 s would pay
//! sixty times for it.

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::host_score::Moved;

/// Half-life of the quick average: what a person would call "just now".
const QUICK_HALF_LIFE_SECONDS: f32 = 900.0;
/// Half-life of the slow average: the same part of the day.
const SLOW_HALF_LIFE_SECONDS: f32 = 21_600.0;
/// A metric is scored after this much history of its own; before, its quantiles grow to what they see.
const WARM_UP_SECONDS: f32 = 21_600.0;
/// Absent for longer than this, a metric starts its quick average anew …
const GAP_SECONDS: f32 = 3_600.0;
/// … and is not scored until that has settled.
const SETTLE_SECONDS: f32 = 900.0;
/// A row closes with the first tick this long after the last: a minute, less what a scheduler jitters.
const ROW_SECONDS: f32 = 55.0;
/// The row length at which the steps of the quantiles were chosen; shorter and longer ones are scaled.
const REFERENCE_ROW_SECONDS: f32 = 60.0;

/// Share of time in which a residual stays below "its usual largest".
const RESIDUAL_QUANTILE: f32 = 0.995;
const RESIDUAL_STEP: f32 = 0.05;
/// Share of time in which a host's mean excess stays below the level that it is measured against.
const HOST_QUANTILE: f32 = 0.95;
const HOST_STEP: f32 = 0.02;
/// Added to that level, so that a host which never moves is not divided by nothing.
const HOST_FLOOR: f32 = 0.02;
/// Residuals below this share of the metric's own level are no news.
const RELATIVE_FLOOR: f32 = 1e-3;
/// Smallest residual at all, in the unit of the metric.
const ABSOLUTE_FLOOR: f32 = 1e-9;
/// Largest excess one metric can contribute: a factor of a million.
const EXCESS_CAP: f32 = 20.0;
/// Rows that the host's excess is averaged over.
const MEAN_ROWS: usize = 3;
/// How long a metric that moved is remembered as a cause.
const CAUSE_HALF_LIFE_SECONDS: f32 = 300.0;
/// A high score fades with this half-life instead of dropping.
const HOLD_HALF_LIFE_SECONDS: f32 = 900.0;

/// What is remembered about one metric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Metric {
    quick: f32,
    slow: f32,
    quick_quantile: f32,
    slow_quantile: f32,
    /// Seconds of history, held at a day: beyond that it changes nothing.
    age: f32,
    /// Seconds since its last value.
    idle: f32,
    /// Seconds for which it is not scored yet after a gap.
    settling: f32,
    /// Sum and number of the ticks of the row that is being gathered.
    sum: f32,
    count: u32,
    /// Largest excess of late, fading, and what was observed and usual then.
    excess: f32,
    observed: f32,
    usual: f32,
}

/// What is remembered about one host: its metrics, in the caller's order, and the level of its own past.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreState {
    metrics: Vec<Metric>,
    last_tick: Option<Timestamp>,
    row_closed: Option<Timestamp>,
    recent: [f32; MEAN_ROWS],
    recent_rows: usize,
    host_quantile: f32,
    score: Option<f32>,
}

impl ScoreState {
    /// Takes in what a host showed at `tick`; true when that closed a row, so that [`Self::score`] is new.
    ///
    /// Values that are not finite are absent. A tick that is not later than the last one is ignored: the
    /// past cannot be learnt twice.
    pub fn step(&mut self, tick: Timestamp, values: &[f32]) -> bool {
        let gap = match self.last_tick {
            Some(last) if tick <= last => return false,
            Some(last) => seconds(last, tick),
            None => 0.0,
        };
        self.last_tick = Some(tick);
        if values.len() > self.metrics.len() {
            self.metrics.resize(values.len(), Metric::default());
        }
        if gap > GAP_SECONDS {
            self.metrics.iter_mut().for_each(Metric::forget_row);
            self.recent_rows = 0;
        }
        for (metric, &value) in self.metrics.iter_mut().zip(values) {
            metric.gather(value);
        }
        let elapsed = match self.row_closed {
            Some(closed) => seconds(closed, tick),
            None => REFERENCE_ROW_SECONDS,
        };
        if elapsed < ROW_SECONDS {
            return false;
        }
        self.row_closed = Some(tick);
        self.close_row(elapsed);
        true
    }

    /// Forgets when its rows were: the next tick is the first, whatever its time. What is usual stays.
    pub(super) fn forget_time(&mut self) {
        (self.last_tick, self.row_closed) = (None, None);
        self.metrics.iter_mut().for_each(Metric::forget_time);
        self.recent_rows = 0;
        self.score = None;
    }

    /// Score of the last row: about 1 is what a busy hour of this host reaches. Nothing while it learns and
    /// while too little is observed.
    #[must_use]
    pub fn score(&self) -> Option<f32> {
        self.score
    }

    /// Whether no metric has had the history yet that scoring takes.
    #[must_use]
    pub fn learning(&self) -> bool {
        !self.metrics.iter().any(Metric::is_warm)
    }

    /// What the score is made of: the host's mean excess over its last rows.
    pub(super) fn host_excess(&self) -> f32 {
        let rows = &self.recent[MEAN_ROWS - self.recent_rows.min(MEAN_ROWS)..];
        rows.iter().sum::<f32>() / rows.len().max(1) as f32
    }

    /// The metrics that exceed most, largest first, at most `count`.
    pub(super) fn largest(&self, count: usize) -> Vec<Moved> {
        let exceeding = self
            .metrics
            .iter()
            .zip(0..)
            .filter(|(metric, _)| metric.excess > 0.0);
        let mut moved: Vec<Moved> = exceeding
            .map(|(metric, place)| Moved {
                metric: place,
                observed: metric.observed,
                usual: metric.usual,
                excess: metric.excess,
            })
            .collect();
        moved.sort_by(|a, b| b.excess.total_cmp(&a.excess).then(a.metric.cmp(&b.metric)));
        // What moved a tenth as much as the first does not explain.
        let least = moved.first().map_or(0.0, |first| first.excess / 10.0);
        moved.retain(|one| one.excess >= least);
        moved.truncate(count);
        moved
    }

    fn close_row(&mut self, elapsed: f32) {
        let (mut sum, mut scored) = (0.0, 0.0);
        for metric in &mut self.metrics {
            if let Some(excess) = metric.close_row(elapsed) {
                sum += excess;
                scored += 1.0;
            }
        }
        if scored == 0.0 {
            self.score = None;
            return;
        }
        self.recent.rotate_left(1);
        // Two residuals a metric.
        self.recent[MEAN_ROWS - 1] = sum / scored / 2.0;
        self.recent_rows = (self.recent_rows + 1).min(MEAN_ROWS);
        let smooth = self.host_excess();
        let value = smooth / (self.host_quantile + HOST_FLOOR);
        self.host_quantile = follow(
            self.host_quantile.max(HOST_FLOOR / 10.0),
            smooth,
            HOST_QUANTILE,
            HOST_STEP * scale(elapsed),
        )
        .max(HOST_FLOOR / 10.0);
        let held = self.score.unwrap_or(0.0) * halvings(elapsed, HOLD_HALF_LIFE_SECONDS);
        self.score = Some(value.max(held));
    }
}

impl Metric {
    fn is_warm(&self) -> bool {
        self.age >= WARM_UP_SECONDS
    }

    fn forget_row(&mut self) {
        self.sum = 0.0;
        self.count = 0;
    }

    /// How long it was not seen is not known: as after a gap, it settles before it is scored.
    fn forget_time(&mut self) {
        self.forget_row();
        self.idle = GAP_SECONDS;
    }

    fn gather(&mut self, value: f32) {
        if value.is_finite() {
            self.sum += value;
            self.count += 1;
        }
    }

    /// Judges the row, then learns it; its excess if it can be judged.
    fn close_row(&mut self, elapsed: f32) -> Option<f32> {
        self.excess *= halvings(elapsed, CAUSE_HALF_LIFE_SECONDS);
        if self.count == 0 {
            self.idle += elapsed;
            return None;
        }
        let value = self.sum / self.count as f32;
        self.forget_row();
        let elapsed = elapsed + self.idle;
        self.idle = 0.0;
        if self.age == 0.0 {
            self.age = elapsed.min(REFERENCE_ROW_SECONDS);
            (self.quick, self.slow) = (value, value);
            return None;
        }
        if elapsed > GAP_SECONDS {
            self.quick = value;
            self.settling = SETTLE_SECONDS;
            return None;
        }
        let quick_residual = (value - self.quick).abs();
        let slow_residual = (value - self.slow).abs();
        let floor = RELATIVE_FLOOR * self.slow.abs() + ABSOLUTE_FLOOR;
        let excess = (log_excess(quick_residual, self.quick_quantile.max(floor))
            + log_excess(slow_residual, self.slow_quantile.max(floor)))
        .min(EXCESS_CAP);

        let warm = self.is_warm();
        let judged = warm && self.settling <= 0.0;
        if judged && excess >= self.excess {
            (self.excess, self.observed, self.usual) = (excess, value, self.slow);
        }
        for (quantile, residual) in [
            (&mut self.quick_quantile, quick_residual),
            (&mut self.slow_quantile, slow_residual),
        ] {
            *quantile = if warm {
                follow(
                    *quantile,
                    residual,
                    RESIDUAL_QUANTILE,
                    RESIDUAL_STEP * scale(elapsed),
                )
            } else {
                residual.max(*quantile * 0.999)
            }
            .max(floor / 10.0);
        }

        let share = elapsed / (self.age + elapsed);
        let weight = |half_life: f32| (1.0 - halvings(elapsed, half_life)).max(share);
        self.quick += weight(QUICK_HALF_LIFE_SECONDS) * (value - self.quick);
        self.slow += weight(SLOW_HALF_LIFE_SECONDS) * (value - self.slow);
        self.age = (self.age + elapsed).min(86_400.0);
        self.settling = (self.settling - elapsed).max(0.0);
        judged.then_some(excess)
    }
}

/// Log2 by which a residual exceeds its usual largest; 0 when it does not.
fn log_excess(residual: f32, usual: f32) -> f32 {
    if residual > usual {
        (residual / usual).log2()
    } else {
        0.0
    }
}

/// One step of a running quantile: up by much when exceeded, down by little when not, so that it settles
/// where it is exceeded in a share `1 - quantile` of the steps.
pub(super) fn follow(level: f32, value: f32, quantile: f32, step: f32) -> f32 {
    if value > level {
        level * (step * quantile).exp()
    } else {
        level * (-step * (1.0 - quantile)).exp()
    }
}

/// What is left after `elapsed` of something that halves every `half_life`.
fn halvings(elapsed: f32, half_life: f32) -> f32 {
    0.5_f32.powf(elapsed / half_life)
}

/// How much of a reference step a row of this length is worth.
fn scale(elapsed: f32) -> f32 {
    (elapsed / REFERENCE_ROW_SECONDS).min(1.0)
}

fn seconds(from: Timestamp, to: Timestamp) -> f32 {
    to.millis_since(from) as f32 / 1000.0
}
