//! One metric of a host: what is usual of it, seen four ways, and by how much it leaves that.
//!
//! A value is compared with what was just now, with the last hours, with what the host's other metrics let
//! expect, and with the same hour of other days. Of each of these distances a running high quantile tells the
//! usual largest; only what goes beyond counts, in powers of two. So a metric that is always noisy is not
//! unusual, and a flat one never is. A rare burst that the metric has shown before counts for little: beyond
//! the quantile it is measured against the largest of the last week too.
//!
//! Two quantiles of each distance are kept. One follows within hours, and alerts go by it; the other takes days,
//! so that a long disturbance stays ranked while it lasts.

use serde::{Deserialize, Serialize};

/// Half-life of the quick average: what a person would call "just now".
const QUICK_HALF_LIFE_SECONDS: f32 = 300.0;
/// Half-life of the slow average: this part of the day.
const SLOW_HALF_LIFE_SECONDS: f32 = 10_800.0;
/// Half-life of the level that the joint view measures from, and of the range of values.
pub(super) const LEVEL_HALF_LIFE_SECONDS: f32 = 7.0 * 86_400.0;
/// A view is scored after this much history of its own; before, its quantiles grow to what they see.
const WARM_UP_SECONDS: f32 = 21_600.0;
/// Absent for longer than this, a metric starts its quick average anew …
pub(super) const GAP_SECONDS: f32 = 3_600.0;
/// … and is not scored until that has settled.
const SETTLE_SECONDS: f32 = 900.0;
/// The row length at which the steps of the quantiles were chosen; they are steps per time, not per row.
pub(super) const REFERENCE_ROW_SECONDS: f32 = 60.0;
/// A row counts for at most so many reference rows.
const LONGEST_ROWS: f32 = 60.0;

/// Share of time in which a distance stays below "its usual largest".
const QUANTILE: f32 = 0.995;
/// Step a minute of the quantile that alerts go by.
const USUAL_STEP: f32 = 0.02;
/// Step a minute of the one that ranks.
const STEADY_STEP: f32 = 0.002;
/// A distance below this share of the largest of late is no news.
const LARGEST_SHARE: f32 = 0.06;
/// Half-life of the largest distance.
const LARGEST_HALF_LIFE_SECONDS: f32 = 7.0 * 86_400.0;
/// Distances below this share of the metric's range of late are no news, …
pub(super) const RANGE_FLOOR: f32 = 0.01;
/// … nor those below this share of its level.
const RELATIVE_FLOOR: f32 = 1e-3;
/// Smallest distance at all, in the unit of the metric.
pub(super) const ABSOLUTE_FLOOR: f32 = 1e-9;
/// Largest excess one metric can contribute.
const EXCESS_CAP: f32 = 20.0;
/// How long a metric that moved is remembered as a cause.
const CAUSE_HALF_LIFE_SECONDS: f32 = 300.0;
/// Parts of the day of which the usual value is kept.
pub(super) const HOURS: usize = 24;
/// Stands for an hour of which nothing is known.
const UNKNOWN: f32 = f32::INFINITY;
/// Share of the last day in what is usual at an hour.
const DAY_SHARE: f32 = 0.2;

/// What a value is compared with.
const QUICK: usize = 0;
const SLOW: usize = 1;
const OTHERS: usize = 2;
const HOUR: usize = 3;
const VIEWS: usize = 4;

/// The distances of one view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct View {
    /// The usual largest, following within hours.
    usual: f32,
    /// The same over days.
    steady: f32,
    /// The largest of late, fading over a week.
    largest: f32,
    /// Seconds of history, held at the warm-up.
    age: f32,
}

/// What is remembered about one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Metric {
    quick: f32,
    slow: f32,
    level: f32,
    high: f32,
    low: f32,
    views: [View; VIEWS],
    /// What is usual at each hour of the day (UTC); infinite where it is not known, which unlike NaN equals itself.
    hours: [f32; HOURS],
    /// Sum and number of the rows of the hour that goes on.
    hour_sum: f32,
    hour_rows: f32,
    /// Seconds of history, held at a month.
    age: f32,
    /// Seconds since its last value.
    idle: f32,
    /// Seconds for which it is not scored yet after a gap.
    settling: f32,
    /// Sum and number of the ticks of the row that is being gathered.
    sum: f32,
    count: u32,
    /// The largest excess of late, fading, and what was observed and usual then.
    pub(super) excess: f32,
    pub(super) observed: f32,
    pub(super) usual: f32,
}

/// By how much a metric leaves what is usual, in powers of two.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Excess {
    /// Over all views, against what is usual within hours.
    pub(super) sum: f32,
    /// The largest of a view, against what is usual within days.
    pub(super) steady: f32,
}

/// What a span of time comes to: computed once a row, not once a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    elapsed: f32,
    /// Weights of a row in the averages.
    quick: f32,
    slow: f32,
    level: f32,
    /// What is left of the largest distance, and of the excess that names a cause.
    largest: f32,
    cause: f32,
    usual: Steps,
    steady: Steps,
}

/// Factors of a running quantile that was exceeded, and of one that was not.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Steps {
    up: f32,
    down: f32,
}

impl Steps {
    fn of(step: f32) -> Self {
        Self {
            up: (step * QUANTILE).exp(),
            down: (-step * (1.0 - QUANTILE)).exp(),
        }
    }

    fn follow(self, level: f32, value: f32) -> f32 {
        level * if value > level { self.up } else { self.down }
    }
}

impl Pace {
    /// Of a row that took so many seconds.
    pub(super) fn of(elapsed: f32) -> Self {
        let weight = |half_life: f32| 1.0 - halvings(elapsed, half_life);
        Self {
            elapsed,
            quick: weight(QUICK_HALF_LIFE_SECONDS),
            slow: weight(SLOW_HALF_LIFE_SECONDS),
            level: weight(LEVEL_HALF_LIFE_SECONDS),
            largest: halvings(elapsed, LARGEST_HALF_LIFE_SECONDS),
            cause: halvings(elapsed, CAUSE_HALF_LIFE_SECONDS),
            usual: Steps::of(USUAL_STEP * rows(elapsed)),
            steady: Steps::of(STEADY_STEP * rows(elapsed)),
        }
    }
}

/// Where in the day a row lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hour {
    /// The hour, its neighbour that is nearest, and how much that one counts: 0 to 0.5.
    pub(super) place: usize,
    neighbour: usize,
    share: f32,
}

impl Hour {
    /// Of a time of day in seconds.
    pub(super) fn of(second: f32) -> Self {
        let position = second / 86_400.0 * HOURS as f32;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a time of day gives 0 to HOURS"
        )]
        let place = (position as usize).min(HOURS - 1);
        let from_middle = position - place as f32 - 0.5;
        let neighbour = if from_middle < 0.0 {
            (place + HOURS - 1) % HOURS
        } else {
            (place + 1) % HOURS
        };
        Self {
            place,
            neighbour,
            share: from_middle.abs().min(0.5),
        }
    }
}

impl Default for Metric {
    fn default() -> Self {
        Self {
            quick: 0.0,
            slow: 0.0,
            level: 0.0,
            high: 0.0,
            low: 0.0,
            views: [View::default(); VIEWS],
            hours: [UNKNOWN; HOURS],
            hour_sum: 0.0,
            hour_rows: 0.0,
            age: 0.0,
            idle: 0.0,
            settling: 0.0,
            sum: 0.0,
            count: 0,
            excess: 0.0,
            observed: 0.0,
            usual: 0.0,
        }
    }
}

impl Metric {
    pub(super) fn is_warm(&self) -> bool {
        self.views[SLOW].age >= WARM_UP_SECONDS
    }

    /// Seconds of its history, at most a month.
    pub(super) fn age(&self) -> f32 {
        self.age
    }

    /// Its mean over the last weeks.
    pub(super) fn level(&self) -> f32 {
        self.level
    }

    /// How far its values of late lie apart.
    pub(super) fn range(&self) -> f32 {
        self.high - self.low
    }

    pub(super) fn forget_row(&mut self) {
        self.sum = 0.0;
        self.count = 0;
    }

    /// How long it was not seen is not known: as after a gap, it settles before it is scored.
    pub(super) fn forget_time(&mut self) {
        self.forget_row();
        self.idle = 2.0 * GAP_SECONDS;
        (self.hour_sum, self.hour_rows) = (0.0, 0.0);
    }

    pub(super) fn gather(&mut self, value: f32) {
        if value.is_finite() {
            self.sum += value;
            self.count += 1;
        }
    }

    /// The mean of the row that was gathered, which begins anew; NaN if it was absent.
    pub(super) fn take_row(&mut self) -> f32 {
        let value = if self.count == 0 {
            f32::NAN
        } else {
            self.sum / self.count as f32
        };
        self.forget_row();
        value
    }

    /// The hour is over: what is usual at it takes in this day. `days` were learnt before.
    pub(super) fn close_hour(&mut self, place: usize, days: u8) {
        if self.hour_rows > 0.0
            && let Some(usual) = self.hours.get_mut(place)
        {
            let mean = self.hour_sum / self.hour_rows;
            *usual = if *usual == UNKNOWN {
                mean
            } else {
                let share = DAY_SHARE.max(1.0 / (f32::from(days) + 1.0));
                *usual + share * (mean - *usual)
            };
        }
        (self.hour_sum, self.hour_rows) = (0.0, 0.0);
    }

    /// Judges a row, then learns it; its excess if it can be judged.
    ///
    /// `beyond` is how far it lies from what the other metrics let expect, where that is known.
    pub(super) fn close_row(
        &mut self,
        value: f32,
        beyond: Option<f32>,
        hour: Hour,
        pace: &Pace,
    ) -> Option<Excess> {
        self.excess *= pace.cause;
        if value.is_nan() {
            self.idle += pace.elapsed;
            return None;
        }
        if self.idle > 0.0 {
            let longer = Pace::of(pace.elapsed + std::mem::take(&mut self.idle));
            return self.take(value, beyond, hour, &longer);
        }
        self.take(value, beyond, hour, pace)
    }

    fn take(&mut self, value: f32, beyond: Option<f32>, hour: Hour, pace: &Pace) -> Option<Excess> {
        let elapsed = pace.elapsed;
        if self.age == 0.0 {
            self.age = elapsed.min(REFERENCE_ROW_SECONDS);
            (self.quick, self.slow, self.level) = (value, value, value);
            (self.high, self.low) = (value, value);
            return None;
        }
        if elapsed > GAP_SECONDS {
            self.quick = value;
            self.settling = SETTLE_SECONDS;
            return None;
        }
        let at_hour = self.usual_at(hour);
        let mut distances = [f32::NAN; VIEWS];
        distances[QUICK] = (value - self.quick).abs();
        distances[SLOW] = (value - self.slow).abs();
        distances[OTHERS] = beyond.map_or(f32::NAN, f32::abs);
        distances[HOUR] = (value - at_hour).abs();
        let floor = RELATIVE_FLOOR * self.slow.abs() + RANGE_FLOOR * self.range() + ABSOLUTE_FLOOR;
        let mut excess = Excess::default();
        for (view, distance) in self.views.iter_mut().zip(distances) {
            if !distance.is_nan() {
                view.take(distance, floor, pace, &mut excess);
            }
        }
        excess.sum = excess.sum.min(EXCESS_CAP);
        let judged = self.is_warm() && self.settling <= 0.0;
        if judged && excess.sum >= self.excess {
            let usual = if at_hour.is_nan() { self.slow } else { at_hour };
            (self.excess, self.observed, self.usual) = (excess.sum, value, usual);
        }
        self.learn(value, pace);
        judged.then_some(excess)
    }

    fn learn(&mut self, value: f32, pace: &Pace) {
        let elapsed = pace.elapsed;
        let share = elapsed / (self.age + elapsed);
        self.quick += pace.quick.max(share) * (value - self.quick);
        self.slow += pace.slow.max(share) * (value - self.slow);
        self.level += pace.level.max(share) * (value - self.level);
        self.high = value.max(self.high - pace.level * (self.high - self.slow));
        self.low = value.min(self.low + pace.level * (self.slow - self.low));
        self.hour_sum += value;
        self.hour_rows += 1.0;
        self.age = (self.age + elapsed).min(30.0 * 86_400.0);
        self.settling = (self.settling - elapsed).max(0.0);
    }

    /// What is usual at this time of day, between the middles of two hours; NaN where it is not known.
    fn usual_at(&self, hour: Hour) -> f32 {
        let (here, beside) = (self.hours[hour.place], self.hours[hour.neighbour]);
        if here == UNKNOWN || beside == UNKNOWN {
            return f32::NAN;
        }
        here * (1.0 - hour.share) + beside * hour.share
    }
}

impl View {
    /// Adds by how much a distance exceeds what is usual, then learns it.
    fn take(&mut self, distance: f32, floor: f32, pace: &Pace, excess: &mut Excess) {
        let least = floor.max(LARGEST_SHARE * self.largest);
        if self.age < WARM_UP_SECONDS {
            self.age += pace.elapsed;
            let grown = distance.max(self.usual * 0.999).max(floor / 10.0);
            (self.usual, self.steady) = (grown, grown);
        } else {
            excess.sum += log_excess(distance, self.usual.max(least));
            excess.steady = excess
                .steady
                .max(log_excess(distance, self.steady.max(least)));
            self.usual = pace.usual.follow(self.usual, distance).max(floor / 10.0);
            self.steady = pace.steady.follow(self.steady, distance).max(floor / 10.0);
        }
        self.largest = distance.max(self.largest * pace.largest);
    }
}

/// Log2 by which a distance exceeds its usual largest; 0 when it does not.
fn log_excess(distance: f32, usual: f32) -> f32 {
    if distance > usual {
        (distance / usual).log2()
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
pub(super) fn halvings(elapsed: f32, half_life: f32) -> f32 {
    0.5_f32.powf(elapsed / half_life)
}

/// How many reference rows a row of this length is worth.
pub(super) fn rows(elapsed: f32) -> f32 {
    (elapsed / REFERENCE_ROW_SECONDS).min(LONGEST_ROWS)
}
