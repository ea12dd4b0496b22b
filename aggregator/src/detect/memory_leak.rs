//! Memory that is used more every day and will be used up.
//!
//! What a leak leaves behind shows where everything else is at its least: in the minima of six hours. They are
//! compared only with those of the same hours of other days, so the day's load is no trend. Someone is called when
//! almost all of them rise (Mann 1945, Kendall 1975), the rise has not slowed down, as that of a cache does which
//! fills up, and the largest use of the last day plus that rise comes to all of the memory within three days.
//!
//! A new boot begins anew, and so does a fall to below all of the week: something was restarted. What is
//! judged is the host's memory, [`Signals`](crate::fleet::Signals)' `memory_used_ratio`, which counts what the
//! kernel could give away as free. Per-service memory is not collected yet.
//!
//! ```text
//! 28 six-hour minima and 5 maxima, 2 bytes each: 66 bytes, about 120 with the rest
//! ```

use std::time::Duration;

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Coverage, Detector, Evidence, Findings, Reason, Rule, Severity, Verdict,
    forecast::Forecast,
    ring::Ring,
    slope::{Slope, theil_sen_seasonal},
};
use crate::fleet::derive::place_of;

/// What is judged, among the signals.
const MEMORY_USED: usize = place_of("memory_used_ratio");
const WINDOW_MS: i64 = 6 * 3_600_000;
const WINDOW_HOURS: f64 = 6.0;
/// A week of windows and the one that has begun.
pub(super) const LOOKS_BACK: Duration = Duration::from_secs((WEEK as u64 + 1) * 6 * 3600);
/// Windows of a day, and of the week that is looked at.
const DAY: usize = 4;
const WEEK: usize = 28;
/// Least windows for a verdict: three days.
const LEAST: usize = 3 * DAY;
/// Share of pairs of minima that must rise.
const RISING: f64 = 0.8;
/// By how much the rise of the later half may be less than that of the earlier.
const SLOWING: f64 = 0.7;
/// Hours to the end from which on someone is called, and beyond which it is well again.
const ALARM_HOURS: f64 = 72.0;
const CLEAR_HOURS: f64 = 120.0;
/// A fall to this much below all of the week is a restart of what leaked.
const RESET_DROP: f64 = 0.05;

pub(super) const RULE: Rule = Rule {
    name: "memory_leak",
    open_after: Duration::from_secs(1800),
    clear_after: Duration::from_secs(3600),
    gone_after: None,
    makes_incidents: true,
    more: None,
};

/// The memory of one host over the last week.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    lowest: Ring<WEEK>,
    highest: Ring<5>,
    forecast: Option<Forecast>,
    /// Whether there is history enough to say that nothing leaks.
    known: bool,
    /// It began anew with a reboot, or with the restart of what leaked: what was told before is over.
    anew: bool,
}

impl Usage {
    /// Takes in the share of memory in use.
    pub fn step(&mut self, tick: Timestamp, used: f64) {
        if !used.is_finite() {
            return;
        }
        let lowest = self.lowest.last(WEEK).map(|(_, low)| low);
        if used + RESET_DROP < lowest.fold(f64::INFINITY, f64::min) && self.known {
            self.restarted();
        }
        let window = tick.as_millis().div_euclid(WINDOW_MS);
        self.highest.put(window, used, f64::max);
        if self.lowest.put(window, used, f64::min) {
            self.judge();
        }
    }

    /// When all of the memory will be used, if it leaks.
    #[must_use]
    pub fn alarm(&self) -> Option<Forecast> {
        self.forecast
            .filter(|forecast| forecast.hours <= ALARM_HOURS)
    }

    /// Begins anew: the host was booted.
    pub(super) fn restarted(&mut self) {
        *self = Self {
            anew: true,
            ..Self::default()
        };
    }

    /// Begins anew, after a clock that was wrong.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Judges the windows that are over; the newest has just begun.
    fn judge(&mut self) {
        let points: Vec<(f64, f64)> = (1..WEEK)
            .filter_map(|age| Some((-(age as f64), self.lowest.at(age)?)))
            .collect();
        self.known = points.len() >= LEAST;
        self.forecast = self.leak(&points);
    }

    fn leak(&self, points: &[(f64, f64)]) -> Option<Forecast> {
        if !self.known {
            return None;
        }
        let slope = theil_sen_seasonal(points, DAY)?;
        if slope.rising < RISING {
            return None;
        }
        // Newest first; each half has at least six windows.
        let (later, earlier) = points.split_at(points.len() / 2);
        let of_half = |half: &[(f64, f64)]| {
            // Windows of the same hours where there are two days of them, else of all.
            theil_sen_seasonal(half, DAY).map_or(0.0, |slope| slope.median)
        };
        if of_half(later) < SLOWING * of_half(earlier) {
            return None;
        }
        let highest = (1..5)
            .filter_map(|age| self.highest.at(age))
            .reduce(f64::max)?;
        let by_hour = |slope: f64| slope / WINDOW_HOURS;
        let slope = Slope {
            low: by_hour(slope.low),
            median: by_hour(slope.median),
            high: by_hour(slope.high),
            rising: slope.rising,
        };
        Forecast::of(1.0 - highest, &slope)
    }
}

pub(super) struct MemoryLeak;

impl Detector for MemoryLeak {
    type State = Usage;

    fn rule(&self) -> &'static Rule {
        &RULE
    }

    fn step(
        &self,
        state: &mut Usage,
        evidence: &Evidence<'_>,
        findings: &mut Findings<'_>,
    ) -> Coverage {
        let Evidence::Tick(seen) = evidence else {
            return Coverage::NotAsked;
        };
        let used = f64::from(seen.signals[MEMORY_USED]);
        state.step(seen.tick, used);
        let verdict = match state.forecast {
            _ if !used.is_finite() || !(state.known || state.anew) => Verdict::Unknown,
            Some(forecast) if forecast.hours <= ALARM_HOURS => Verdict::Abnormal {
                severity: Severity::Warning,
                reason: Reason::Leak {
                    forecast,
                    used_ratio: used,
                },
            },
            Some(forecast) if forecast.hours <= CLEAR_HOURS => Verdict::Unknown,
            _ => Verdict::Normal(Reason::NoLeak { used_ratio: used }),
        };
        findings.add("", verdict);
        Coverage::Complete
    }
}
