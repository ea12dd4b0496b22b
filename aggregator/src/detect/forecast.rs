//! When something that fills up will be full.
//!
//! Three looks at one level, 0 to 1, each by what it is good for. The *envelope*: maxima of six hours over two
//! days, which saw-teeth and office hours do not fool; it gives the hours that people are told. The *day*: the
//! robust slope of half-hour points, which one large file does not fool. It must agree before anyone is called, or
//! the six-hour minima must rise too, as those of a saw do whose teeth the day's slope cannot see past. The
//! *runaway*: the robust slopes of half an hour and of an hour agree on a few hours, on a level clearly higher
//! than any of the three days before, for a while; that is what fills a disk between two looks of the others.
//!
//! ```text
//! 12 six-hour maxima, 12 minima, 49 half-hour points, 61 minute points, 2 bytes each: 268 bytes, about 350 with the rest
//! ```

use std::time::Duration;

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ring::Ring,
    slope::{Slope, theil_sen},
};

const MINUTE_MS: i64 = 60_000;
const HALF_HOUR_MS: i64 = 30 * MINUTE_MS;
const WINDOW_MS: i64 = 6 * 60 * MINUTE_MS;
const WINDOW_HOURS: f64 = 6.0;

/// Windows of the envelope, and of what counts as the past: two and three days.
const ENVELOPE: usize = 8;
const PAST: usize = 12;
/// Least windows, and half-hour points, for a forecast.
const ENVELOPE_LEAST: usize = 4;
const DAY_LEAST: usize = 20;

/// A drop by this share, to below all that was seen lately, is a clean-up and not a tooth of a saw.
const RESET_DROP: f64 = 0.05;

/// Hours to full from which on a runaway is one.
const RUNAWAY_HOURS: f64 = 6.0;
/// Minutes for which it must be one: so many for each hour that is left, within these bounds. What fills up in
/// two hours is told with an hour to go; what has time is given the time to be a large file.
const RUNAWAY_HOLD_AN_HOUR: f64 = 15.0;
const RUNAWAY_HOLD_LEAST: f64 = 25.0;
const RUNAWAY_HOLD_MOST: f64 = 60.0;
/// The same for a level that is known for less than a day: each large file is the first one there.
const RUNAWAY_HOURS_NEW: f64 = 1.5;
/// By how much of the range of the days before the level must be above it.
const RUNAWAY_ABOVE: f64 = 0.25;
/// Share of the envelope's slope by which the minima must rise too.
const MINIMA_SHARE: f64 = 0.5;
/// Slopes below this share an hour are rounding and noise.
const LEAST_SLOPE: f64 = 1e-5;
/// Beyond this nobody plans by it.
const HORIZON_HOURS: f64 = 24.0 * 30.0;

/// The level of one thing over the last three days.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    highest: Ring<PAST>,
    lowest: Ring<PAST>,
    half_hours: Ring<49>,
    minutes: Ring<61>,
    now: f64,
    /// Minutes for which the runaway rule holds.
    runaway_minutes: u8,
    envelope: Option<Forecast>,
    /// The minima rise with the maxima.
    minima_rise: bool,
    day: Option<Forecast>,
    runaway: Option<Forecast>,
    /// It began anew with a clean-up.
    cleaned_up: bool,
}

/// When a level will be 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Hours from now.
    pub hours: f64,
    /// If it grows as fast as a tenth of the slopes do.
    pub low: f64,
    /// If it grows as slowly as a tenth of them; infinite where these do not grow.
    pub high: f64,
}

impl Forecast {
    /// Of what has so much room left and grows by the hour as `slope` says; `None` if it does not.
    pub(super) fn of(room: f64, slope: &Slope) -> Option<Self> {
        if slope.median < LEAST_SLOPE {
            return None;
        }
        let room = room.max(0.0);
        let hours = room / slope.median;
        (hours <= HORIZON_HOURS).then(|| Self {
            hours,
            low: room / slope.high.max(slope.median),
            high: if slope.low < LEAST_SLOPE {
                f64::INFINITY
            } else {
                room / slope.low
            },
        })
    }

    /// The time from now.
    #[must_use]
    pub fn time(&self) -> Duration {
        Duration::try_from_secs_f64(self.hours * 3600.0).unwrap_or(Duration::MAX)
    }
}

impl Level {
    /// Takes in the level at a time. What is not a number is not taken.
    pub fn step(&mut self, tick: Timestamp, level: f64) {
        if !level.is_finite() {
            return;
        }
        let level = level.clamp(0.0, 1.0);
        if self.is_cleaned_up(level) {
            *self = Self {
                cleaned_up: true,
                ..Self::default()
            };
        }
        self.now = level;
        let slot = |length: i64| tick.as_millis().div_euclid(length);
        self.highest.put(slot(WINDOW_MS), level, f64::max);
        self.lowest.put(slot(WINDOW_MS), level, f64::min);
        let last = |_: f64, now: f64| now;
        if self.half_hours.put(slot(HALF_HOUR_MS), level, last) {
            self.day = self.of_the_day();
        }
        if self.minutes.put(slot(MINUTE_MS), level, last) {
            (self.envelope, self.minima_rise) = match self.of_the_envelope(tick) {
                Some((forecast, minima_rise)) => (Some(forecast), minima_rise),
                None => (None, false),
            };
            self.runaway = self.of_the_hour();
            let holds = self.runaway.is_some();
            self.runaway_minutes = match holds {
                true => self.runaway_minutes.saturating_add(1),
                false => 0,
            };
        }
    }

    /// What people are told: the envelope's forecast, or the runaway's where that is nearer.
    #[must_use]
    pub fn forecast(&self) -> Option<Forecast> {
        match (self.envelope, self.runaway_that_holds()) {
            (Some(envelope), Some(runaway)) if envelope.hours <= runaway.hours => Some(envelope),
            (envelope, runaway) => runaway.or(envelope),
        }
    }

    /// What someone is called for: a forecast that two looks agree on, within so many hours.
    #[must_use]
    pub fn alarm(&self, hours: f64) -> Option<Forecast> {
        let within = |forecast: &Forecast| forecast.hours <= hours;
        let agreed = self.minima_rise || self.day.as_ref().is_some_and(within);
        let slow = self.envelope.filter(within).filter(|_| agreed);
        self.runaway_that_holds().or(slow)
    }

    fn runaway_that_holds(&self) -> Option<Forecast> {
        self.runaway.filter(|forecast| {
            let hold = forecast.hours * RUNAWAY_HOLD_AN_HOUR;
            let hold = hold.clamp(RUNAWAY_HOLD_LEAST, RUNAWAY_HOLD_MOST);
            f64::from(self.runaway_minutes) >= hold
        })
    }

    /// Whether there is history enough to say that nothing fills up. After a clean-up there is: what was told before is
    /// over, and what fills up again is seen as on a new level.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.cleaned_up
            || self.highest.last(ENVELOPE).count() >= ENVELOPE_LEAST
                && self.half_hours.last(49).count() >= DAY_LEAST
    }

    /// Forgets when things were, after a clock that was wrong.
    pub(super) fn forget_time(&mut self) {
        self.highest.clear();
        self.lowest.clear();
        self.half_hours.clear();
        self.minutes.clear();
        (self.envelope, self.day, self.runaway) = (None, None, None);
        self.minima_rise = false;
        self.runaway_minutes = 0;
        self.cleaned_up = false;
    }

    fn is_cleaned_up(&self, level: f64) -> bool {
        let lowest = self.lowest.last(PAST).map(|(_, low)| low);
        let lowest = lowest.fold(f64::INFINITY, f64::min);
        self.now - level > RESET_DROP && level < lowest
    }

    /// The envelope's forecast, and whether the minima rise with it.
    fn of_the_envelope(&self, tick: Timestamp) -> Option<(Forecast, bool)> {
        // Hours since the window began that goes on; the others ended before it, six hours apart.
        let now = tick.as_millis().rem_euclid(WINDOW_MS) as f64 / WINDOW_MS as f64 * WINDOW_HOURS;
        let end_of = |age: f64| {
            if age == 0.0 {
                now
            } else {
                (1.0 - age) * WINDOW_HOURS
            }
        };
        let windows = self.highest.last(ENVELOPE);
        let mut points: Vec<(f64, f64)> = windows.map(|(age, top)| (end_of(age), top)).collect();
        // A window that has just begun has not seen its maximum.
        if now < WINDOW_HOURS / 2.0 && points.len() > ENVELOPE_LEAST {
            points.remove(0);
        }
        if points.len() < ENVELOPE_LEAST {
            return None;
        }
        let slope = theil_sen(&points)?;
        let (end, top) = *points.first()?;
        let reached = (top + slope.median.max(0.0) * (now - end)).max(self.now);
        let minima: Vec<(f64, f64)> = self
            .lowest
            .last(ENVELOPE)
            .map(|(age, low)| (end_of(age), low))
            .collect();
        let rise = theil_sen(&minima).map_or(0.0, |slope| slope.median);
        let forecast = Forecast::of(1.0 - reached, &slope)?;
        Some((forecast, rise >= slope.median * MINIMA_SHARE))
    }

    fn of_the_day(&self) -> Option<Forecast> {
        let points: Vec<(f64, f64)> = self
            .half_hours
            .last(49)
            .map(|(age, value)| (-age / 2.0, value))
            .collect();
        if points.len() < DAY_LEAST {
            return None;
        }
        Forecast::of(1.0 - self.now, &theil_sen(&points)?)
    }

    /// The runaway rule at this minute.
    fn of_the_hour(&self) -> Option<Forecast> {
        // Most levels do not grow like that, which the first and the last point tell.
        let first = self.minutes.last(31).last()?.1;
        let room = 1.0 - self.now;
        if (self.now - first) * 4.0 * RUNAWAY_HOURS < room {
            return None;
        }
        // The window that goes on and the one before may hold the runaway itself.
        let past = |ring: &Ring<PAST>, join: fn(f64, f64) -> f64| {
            (2..PAST).filter_map(|age| ring.at(age)).reduce(join)
        };
        let highest = past(&self.highest, f64::max);
        if let Some((low, high)) = past(&self.lowest, f64::min).zip(highest)
            && self.now <= high + RUNAWAY_ABOVE * (high - low)
        {
            return None;
        }
        let slope_of = |minutes: usize| {
            let points: Vec<(f64, f64)> = self
                .minutes
                .last(minutes + 1)
                .map(|(age, value)| (-age / 60.0, value))
                .collect();
            (points.len() * 3 >= minutes * 2).then(|| theil_sen(&points))?
        };
        let (half, whole) = (slope_of(30)?, slope_of(60)?);
        let half = Forecast::of(room, &half)?;
        let whole = Forecast::of(room, &whole)?;
        let near = if self.highest.at(ENVELOPE_LEAST).is_some() {
            RUNAWAY_HOURS
        } else {
            RUNAWAY_HOURS_NEW
        };
        (half.hours <= near && whole.hours <= near * 2.0).then_some(half)
    }
}
