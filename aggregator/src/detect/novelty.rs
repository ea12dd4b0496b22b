//! What a single series has not done before: range novelty.
//!
//! A service's latency or request rate stands alone; there are no other metrics of a host to weigh it by. So only
//! what is new counts: a value, its mean over an hour or six, or its roughness beyond all that it showed in the last
//! weeks. A series that repeats itself, however wildly, stays silent, and so does a flat one.
//!
//! A fold over event time with a state of fixed size. The first crossing counts: what stays beyond its range is
//! told once, and again only when it goes further.

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::metric::halvings;

/// Half-lives of the averages that stand for means over one hour and over six, and of the roughness over three.
const HOUR_HALF_LIFE_SECONDS: f32 = 1_800.0;
const LONG_HALF_LIFE_SECONDS: f32 = 10_800.0;
const ROUGH_HALF_LIFE_SECONDS: f32 = 5_400.0;
/// Half-life of the ranges.
const RANGE_HALF_LIFE_SECONDS: f32 = 30.0 * 86_400.0;
/// History before anything is told: a day has most of what a series does.
const WARM_UP_SECONDS: f32 = 86_400.0;
/// What is within this share of the level, or for roughness of the range, is no news.
const LEVEL_FLOOR: f32 = 1e-3;
const ROUGH_FLOOR: f32 = 0.01;
/// Smallest range, in the unit of the series.
const ABSOLUTE_FLOOR: f32 = 1e-9;
/// How much leaving a range counts: by a quarter of it, one power of two.
const STEEPNESS: f32 = 4.0;
/// A crossing is told once in so many hours.
const QUIET_HOURS: usize = 12;
/// Smaller crossings do not silence those that follow.
const LEAST: f32 = 0.02;
/// From this score on it is an anomaly: a tenth of its range beyond it.
const ALERT: f32 = 0.5;

const CHANNELS: usize = 4;
const ROUGHNESS: usize = 3;

/// The lowest and highest of late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Range {
    low: f32,
    high: f32,
}

/// What is remembered about one series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Novelty {
    first_tick: Option<Timestamp>,
    last_tick: Option<Timestamp>,
    last: f32,
    hour: f32,
    long: f32,
    rough: f32,
    ranges: [Range; CHANNELS],
    /// Values learnt, held where it changes nothing any more.
    learnt: u8,
    /// Largest crossing of each of the last hours, and which hour since 1970 goes on.
    crossed: [f32; QUIET_HOURS],
    crossed_hour: i64,
}

/// What is said of one value.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Novel {
    /// By how much it leaves what the series showed, and crossed of late, in powers of two.
    pub score: f32,
    /// Whether that is worth telling.
    pub alert: bool,
}

impl Novelty {
    /// Judges a value, then learns it. One that is not finite, or not later than the last, changes nothing.
    pub fn step(&mut self, tick: Timestamp, value: f32) -> Novel {
        if !value.is_finite() || self.last_tick.is_some_and(|last| tick <= last) {
            return Novel::default();
        }
        let first = *self.first_tick.get_or_insert(tick);
        let elapsed = self.last_tick.map_or(1.0, |last| seconds(last, tick));
        self.last_tick = Some(tick);
        let age = seconds(first, tick);
        self.average(value, age, elapsed);
        let channels = [value, self.hour, self.long, self.rough];
        self.learnt = self.learnt.saturating_add(1);
        if self.learnt <= 2 {
            self.ranges = channels.map(|value| Range {
                low: value,
                high: value,
            });
            return Novel::default();
        }
        let beyond = self.beyond(channels, elapsed);
        let beyond = if age > WARM_UP_SECONDS { beyond } else { 0.0 };
        let score = self.first_crossing(tick, beyond);
        Novel {
            score,
            alert: score >= ALERT,
        }
    }

    fn average(&mut self, value: f32, age: f32, elapsed: f32) {
        if self.learnt == 0 {
            (self.hour, self.long, self.last) = (value, value, value);
        }
        let share = elapsed / (age + elapsed);
        let weight = |half_life: f32| (1.0 - halvings(elapsed, half_life)).max(share);
        self.hour += weight(HOUR_HALF_LIFE_SECONDS) * (value - self.hour);
        self.long += weight(LONG_HALF_LIFE_SECONDS) * (value - self.long);
        let jump = (value - self.last).abs();
        self.rough += weight(ROUGH_HALF_LIFE_SECONDS) * (jump - self.rough);
        self.last = value;
    }

    /// By how much, in powers of two, a channel leaves its range at most; the ranges learn it.
    fn beyond(&mut self, channels: [f32; CHANNELS], elapsed: f32) -> f32 {
        let span = self.ranges[0].high - self.ranges[0].low;
        let shrink = 1.0 - halvings(elapsed, RANGE_HALF_LIFE_SECONDS);
        let mut most = 0.0_f32;
        for (channel, (range, value)) in self.ranges.iter_mut().zip(channels).enumerate() {
            let floor = match channel {
                ROUGHNESS => ROUGH_FLOOR * span,
                _ => LEVEL_FLOOR * self.long.abs(),
            } + ABSOLUTE_FLOOR;
            let width = (range.high - range.low).max(floor);
            let excess = (value - range.high).max(range.low - value).max(0.0);
            most = most.max((1.0 + STEEPNESS * excess / width).log2());
            let half = (range.high - range.low) / 2.0;
            range.high = value.max(range.high - shrink * half);
            range.low = value.min(range.low + shrink * half);
        }
        most
    }

    /// What of a crossing is new against the last hours.
    fn first_crossing(&mut self, tick: Timestamp, beyond: f32) -> f32 {
        let hour = tick.as_millis().div_euclid(3_600_000);
        let passed = usize::try_from(hour - self.crossed_hour).unwrap_or(QUIET_HOURS);
        let passed = passed.min(QUIET_HOURS);
        self.crossed.rotate_left(passed);
        self.crossed[QUIET_HOURS - passed..].fill(0.0);
        self.crossed_hour = hour;
        let before = self.crossed.iter().copied().fold(0.0, f32::max);
        if beyond > LEAST {
            let now = &mut self.crossed[QUIET_HOURS - 1];
            *now = now.max(beyond);
        }
        (beyond - before).max(0.0)
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f32 {
    to.millis_since(from) as f32 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five-minute values of so many days, and the alerts among them by row.
    fn alerts(days: i64, value: impl Fn(i64) -> f32) -> Vec<i64> {
        let mut novelty = Novelty::default();
        (0..days * 288)
            .filter(|&row| {
                let tick = Timestamp::from_millis(row * 300_000);
                novelty.step(tick, value(row)).alert
            })
            .collect()
    }

    fn daily(row: i64) -> f32 {
        let part = (row % 288) as f32 / 288.0;
        50.0 + 30.0 * (part * std::f32::consts::TAU).sin()
    }

    #[test]
    fn what_repeats_itself_is_silent_and_so_is_what_is_flat() {
        assert_eq!(alerts(14, daily), [0; 0]);
        assert_eq!(alerts(14, |_| 42.0), [0; 0]);
        assert_eq!(
            alerts(14, |row| if row % 50 < 25 { 0.0 } else { 1.0 }),
            [0; 0]
        );
    }

    #[test]
    fn a_new_height_is_told_once_and_again_when_it_goes_further() {
        let told = alerts(14, |row| match row {
            2000..=2100 => 120.0,
            2101..=2120 => 1000.0,
            _ => daily(row),
        });
        assert_eq!(told.first(), Some(&2000));
        assert!(told.contains(&2101), "{told:?}");
        assert!(told.len() <= 4, "{told:?}");
    }

    #[test]
    fn noise_where_there_was_none_is_told() {
        let told = alerts(14, |row| {
            let rough = if row >= 2000 && row % 2 == 0 {
                20.0
            } else {
                0.0
            };
            (daily(row) + rough).min(80.0)
        });
        assert!(
            told.iter().any(|row| (2000..2030).contains(row)),
            "{told:?}"
        );
        assert!(told.iter().all(|&row| row >= 2000), "{told:?}");
    }
}
