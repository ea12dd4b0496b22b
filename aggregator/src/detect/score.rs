//! How unusual a host behaves, as one number.
//!
//! A fold over rows of any number of metrics; the caller names them. [`super::metric`] says of each by how much,
//! in powers of two, it leaves what is usual. The mean of that over the host's metrics, measured against the
//! same host's own past, is the score; so a host that is always busy is not unusual. Two such means are added:
//! one whose idea of the usual follows within hours, for alerts, and, up to a bound, one that takes days, so that
//! a disturbance which lasts stays ranked above what is normal.
//!
//! It reads no clock: time is the tick of the data, so a replay, a backlog or a restart in between gives the
//! same bits. Missing values are left out, never taken as 0. What to do about a score is left to others.
//!
//! Ticks of less than a minute are averaged into rows of about a minute first: the constants are times, but a
//! quantile of one-second distances would be one of sampling noise, and a fleet at 1 s would pay sixty times.

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    host_score::Moved,
    joint::Joint,
    metric::{
        Excess, GAP_SECONDS, HOURS, Hour, Metric, Pace, REFERENCE_ROW_SECONDS, follow, halvings,
        rows,
    },
};

/// A row closes with the first tick this long after the last: a minute, less what a scheduler jitters.
const ROW_SECONDS: f32 = 55.0;
/// Share of time in which a host's mean excess stays below the level that it is measured against.
const HOST_QUANTILE: f32 = 0.95;
/// Step of that level a minute.
const HOST_STEP: f32 = 0.005;
/// Added to that level, so that a host which never moves is not divided by nothing.
const HOST_FLOOR: f32 = 0.05;
/// The level starts and stays above this.
const LEAST_LEVEL: f32 = HOST_FLOOR / 10.0;
/// Rows that the excess of alerts, and that of ranking, is averaged over.
const ALERT_ROWS: usize = 2;
const RANK_ROWS: usize = 3;
const LONGEST_ROWS: usize = 3;
/// How much the ranking excess counts, and up to what: below the least score of an alert.
const RANK_WEIGHT: f32 = 2.0;
const RANK_CAP: f32 = 1.0;
/// A high score fades with this half-life instead of dropping.
const HOLD_HALF_LIFE_SECONDS: f32 = 900.0;

/// An excess of the host against its own past.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Lane {
    recent: [f32; LONGEST_ROWS],
    filled: u8,
    level: f32,
    held: f32,
}

/// What is remembered about one host: its metrics, in the caller's order, and the level of its own past.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreState {
    metrics: Vec<Metric>,
    joint: Joint,
    /// How many days are known of each hour.
    days: [u8; HOURS],
    /// The hour that goes on.
    hour: Option<u8>,
    last_tick: Option<Timestamp>,
    row_closed: Option<Timestamp>,
    alert: Lane,
    rank: Lane,
    score: Option<f32>,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            recent: [0.0; LONGEST_ROWS],
            filled: 0,
            level: LEAST_LEVEL,
            held: 0.0,
        }
    }
}

impl Lane {
    /// Takes in the excess of a row; how the mean of so many rows stands against the host's past, held for a
    /// while.
    fn step(&mut self, excess: f32, count: usize, elapsed: f32) -> f32 {
        self.recent.rotate_left(1);
        self.recent[LONGEST_ROWS - 1] = excess;
        self.filled = self.filled.saturating_add(1);
        let mean = self.mean(count);
        let value = mean / (self.level + HOST_FLOOR);
        let step = HOST_STEP * rows(elapsed);
        self.level = follow(self.level, mean, HOST_QUANTILE, step).max(LEAST_LEVEL);
        self.held = value.max(self.held * halvings(elapsed, HOLD_HALF_LIFE_SECONDS));
        self.held
    }

    /// Mean of the last rows, at most so many.
    fn mean(&self, count: usize) -> f32 {
        let filled = usize::from(self.filled).min(count);
        let sum: f32 = self.recent[LONGEST_ROWS - filled..].iter().sum();
        sum / filled.max(1) as f32
    }
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
            self.forget_rows();
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
        self.close_row(tick, elapsed);
        true
    }

    /// Forgets when its rows were: the next tick is the first, whatever its time. What is usual stays.
    pub(super) fn forget_time(&mut self) {
        (self.last_tick, self.row_closed) = (None, None);
        self.metrics.iter_mut().for_each(Metric::forget_time);
        self.forget_rows();
        // The hour that went on is no hour of the host's day.
        self.hour = None;
        self.score = None;
    }

    /// Score of the last row: 3 is reached falsely about once a day, 6 once a week. Nothing while it learns and
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
        self.alert.mean(ALERT_ROWS)
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
                since: self.row_closed.unwrap_or(Timestamp::from_millis(0)),
            })
            .collect();
        moved.sort_by(|a, b| b.excess.total_cmp(&a.excess).then(a.metric.cmp(&b.metric)));
        // What moved a tenth as much as the first does not explain.
        let least = moved.first().map_or(0.0, |first| first.excess / 10.0);
        moved.retain(|one| one.excess >= least);
        moved.truncate(count);
        moved
    }

    fn forget_rows(&mut self) {
        for lane in [&mut self.alert, &mut self.rank] {
            (lane.filled, lane.held) = (0, 0.0);
        }
    }

    fn close_row(&mut self, tick: Timestamp, elapsed: f32) {
        let row: Vec<f32> = self.metrics.iter_mut().map(Metric::take_row).collect();
        let hour = Hour::of(second_of_day(tick));
        self.enter(hour);
        let beyond = self.joint.residuals(&self.metrics, &row);
        self.joint.learn(&self.metrics, &row, elapsed);
        let mut all = Excess::default();
        let mut scored = 0.0;
        let pace = Pace::of(elapsed);
        for (place, (metric, &value)) in self.metrics.iter_mut().zip(&row).enumerate() {
            let beyond = beyond.get(place).copied();
            if let Some(excess) = metric.close_row(value, beyond, hour, &pace) {
                all.sum += excess.sum;
                all.steady += excess.steady;
                scored += 2.0;
            }
        }
        if scored == 0.0 {
            self.score = None;
            return;
        }
        let alert = self.alert.step(all.sum / scored, ALERT_ROWS, elapsed);
        let rank = self.rank.step(all.steady / scored, RANK_ROWS, elapsed);
        self.score = Some(alert + RANK_WEIGHT * rank.min(RANK_CAP));
    }

    /// Learns the hour that is over when another began.
    fn enter(&mut self, hour: Hour) {
        let now = u8::try_from(hour.place).unwrap_or_default();
        let Some(before) = self.hour.replace(now).map(usize::from) else {
            return;
        };
        if before == hour.place {
            return;
        }
        if let Some(days) = self.days.get_mut(before) {
            for metric in &mut self.metrics {
                metric.close_hour(before, *days);
            }
            *days = days.saturating_add(1);
        }
    }
}

/// Seconds since midnight, UTC.
fn second_of_day(tick: Timestamp) -> f32 {
    tick.as_millis().rem_euclid(86_400_000) as f32 / 1000.0
}

fn seconds(from: Timestamp, to: Timestamp) -> f32 {
    to.millis_since(from) as f32 / 1000.0
}
