//! From "so many alerts a host-week" to a threshold: the tail of each host's own scores.
//!
//! The largest score of each hour is what is counted, so that hosts at one second and at five minutes are alike.
//! Two running quantiles of it, the median and the upper quartile, tell how wide a host's usual hours spread; both
//! lie below anything unusual, so a week of trouble does not raise the bar behind it. Beyond the quartile the tail
//! is taken as a generalised Pareto one (as in SPOT; Siffer et al., KDD 2017) whose shape is the same for all
//! hosts: a single host has too few such hours to tell a shape from.
//!
//! What is kept to is a rate of alerts a host in trouble rarely, judged on labelled hosts (docs/detection.md);
//! the rate that is really told is counted here, for people to compare.

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::metric::follow;

/// Budget without a configuration, in alerts a host-week.
pub(super) const DEFAULT_PER_WEEK: f64 = 1.0;
const HOURS_A_WEEK: f32 = 168.0;

/// Quantiles of the hours' largest scores.
const MEDIAN: f32 = 0.5;
const QUARTILE: f32 = 0.75;
/// What a host is taken for before it has shown any hour; it counts as much as three hours.
const FIRST_QUARTILE: f32 = 2.0;
const FIRST_MEDIAN: f32 = 1.3;
const FIRST_HOURS: f32 = 3.0;
/// Step of the quantiles per hour once they have settled.
const STEP: f32 = 0.01;
/// No score is below this for the quantiles, which move by factors.
const LEAST_SCORE: f32 = 0.05;
/// The spread is taken as at least this, so that a host which never moves is not listed for a breath.
const LEAST_SPREAD: f32 = 0.3;
/// Shape of the tail, and its scale as a share of the spread. With labelled hosts of two sources these give the
/// rate that is asked for on both, at a budget of a day and of a week.
const SHAPE: f32 = 0.35;
const SCALE: f32 = 0.42;
/// What was told is remembered with this half-life.
const TOLD_HALF_LIFE_HOURS: f32 = 14.0 * 24.0;

/// The usual hours of one host, and what was told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Budget {
    /// Hours since 1970 of the one that goes on, and its largest score.
    hour: i64,
    max: Option<f32>,
    median: f32,
    quartile: f32,
    /// Hours learnt, held where it changes nothing any more.
    learnt: u16,
    /// Alerts and hours of the last weeks, both fading.
    told: f32,
    hours: f32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            hour: 0,
            max: None,
            median: FIRST_MEDIAN,
            quartile: FIRST_QUARTILE,
            learnt: 0,
            told: 0.0,
            hours: 0.0,
        }
    }
}

impl Budget {
    /// Takes in a score; the hours before this one are learnt, this one is not yet.
    pub(super) fn learn(&mut self, tick: Timestamp, score: f32) {
        let hour = tick.as_millis().div_euclid(3_600_000);
        if hour != self.hour {
            if let Some(max) = self.max.take() {
                self.close(max.max(LEAST_SCORE));
            }
            self.hour = hour;
        }
        self.max = Some(self.max.map_or(score, |max| max.max(score)));
    }

    fn close(&mut self, max: f32) {
        self.learnt = self.learnt.saturating_add(1);
        let step = STEP.max(1.0 / (f32::from(self.learnt) + FIRST_HOURS));
        self.median = follow(self.median, max, MEDIAN, step).max(LEAST_SCORE);
        self.quartile = follow(self.quartile, max, QUARTILE, step).max(self.median);
        let left = 0.5_f32.powf(1.0 / TOLD_HALF_LIFE_HOURS);
        self.told *= left;
        self.hours = self.hours * left + 1.0;
    }

    /// The hour that goes on is none of the host's hours.
    pub(super) fn forget_time(&mut self) {
        self.max = None;
    }

    /// The score that this host's usual hours reach so often a week.
    pub(super) fn threshold(&self, per_week: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, reason = "a rate of alerts")]
        let per_week = per_week as f32;
        let spread = (self.quartile - self.median) / ((1.0 - MEDIAN) / (1.0 - QUARTILE)).ln();
        let rarer = ((1.0 - QUARTILE) * HOURS_A_WEEK / per_week).max(1.0);
        let beyond = SCALE * spread.max(LEAST_SPREAD) * (rarer.powf(SHAPE) - 1.0) / SHAPE;
        f64::from(self.quartile + beyond)
    }

    /// An alert was told.
    pub(super) fn tell(&mut self) {
        self.told += 1.0;
    }

    /// Alerts and weeks of late, recent ones counting more.
    pub(super) fn told(&self) -> (f64, f64) {
        (f64::from(self.told), f64::from(self.hours / HOURS_A_WEEK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hours whose largest scores spread exponentially by `spread`, seen every so many seconds.
    fn hours(count: u32, seconds: i64, spread: f32) -> Budget {
        let mut budget = Budget::default();
        for hour in 0..count {
            // A low-discrepancy sequence in place of chance.
            let place = (f64::from(hour) * 0.618_033_988_75).fract();
            #[expect(clippy::cast_possible_truncation, reason = "a score")]
            let max = 1.0 - spread * (1.0 - place as f32).ln();
            for second in (0..3600).step_by(usize::try_from(seconds).expect("positive")) {
                let tick = i64::from(hour) * 3_600_000 + second * 1000;
                budget.learn(Timestamp::from_millis(tick), max / 2.0);
                budget.learn(Timestamp::from_millis(tick), max);
            }
        }
        budget
    }

    #[test]
    fn a_smaller_budget_is_a_higher_bar() {
        let budget = hours(500, 300, 1.0);
        let bars = [7.0, 1.0, 0.25].map(|per_week| budget.threshold(per_week));
        assert!(bars[0] < bars[1] && bars[1] < bars[2], "{bars:?}");
        // Quartile 1 + ln 4, median 1 + ln 2, and the tail of the figures above.
        assert!((bars[1] - 5.6).abs() < 0.5, "{bars:?}");
    }

    #[test]
    fn the_interval_does_not_matter_and_the_spread_does() {
        let (quick, slow) = (hours(500, 60, 1.0), hours(500, 300, 1.0));
        assert_eq!(
            quick.threshold(1.0).to_bits(),
            slow.threshold(1.0).to_bits()
        );
        assert!(hours(500, 300, 2.0).threshold(1.0) > slow.threshold(1.0) * 1.4);
    }

    #[test]
    fn trouble_does_not_raise_the_bar_behind_it() {
        let mut budget = hours(500, 300, 1.0);
        let before = budget.threshold(1.0);
        for hour in 500..512 {
            budget.learn(Timestamp::from_millis(hour * 3_600_000), 500.0);
        }
        assert!(budget.threshold(1.0) < before * 1.3);
    }

    #[test]
    fn what_was_told_is_counted_by_the_week() {
        let mut budget = hours(2 * 168 + 1, 3600, 1.0);
        budget.tell();
        budget.tell();
        let (told, weeks) = budget.told();
        assert!((told - 2.0).abs() < 1e-6);
        assert!((1.3..2.0).contains(&weeks), "{weeks}");
    }
}
