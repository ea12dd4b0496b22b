//! Flapping: something fails and recovers again and again.
//!
//! Each change counts one and fades with a half-life of ten minutes. From five on it flaps, below two it has
//! settled: between the two nothing changes, so that the state itself does not flap.

use std::time::Duration;

use muster_proto::time::Timestamp;

use super::pages::is_ahead;

/// Time in which a change comes to count half (design/detection.md, Flapping).
const HALF_LIFE: Duration = Duration::from_secs(600);
/// From here on it flaps.
const ENTER: f64 = 5.0;
/// Below this it has settled.
const LEAVE: f64 = 2.0;
/// No more is counted: what toggled every few seconds settles in 23 minutes, not in hours.
const MOST: f64 = 10.0;

/// How often something has changed of late.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Flap {
    /// Changes, faded to `at`.
    pub count: f64,
    /// When it changed last, by the aggregator's clock.
    pub at: Timestamp,
    /// Whether it flaps.
    pub flapping: bool,
}

impl Flap {
    /// Notes a change; true when it flaps from now on.
    pub fn change(&mut self, now: Timestamp) -> bool {
        self.rebase(now);
        self.count = (self.faded(now) + 1.0).min(MOST);
        self.at = self.at.max(now);
        let begins = !self.flapping && self.count >= ENTER;
        self.flapping |= begins;
        begins
    }

    /// Looks whether it has settled; true when it flaps no more from now on.
    pub fn settle(&mut self, now: Timestamp) -> bool {
        self.rebase(now);
        let ends = self.flapping && self.faded(now) < LEAVE;
        self.flapping &= !ends;
        ends
    }

    /// After a clock was set back it fades from then on, not when the clock has come to where it was.
    fn rebase(&mut self, now: Timestamp) {
        if is_ahead(self.at, now) {
            self.at = now;
        }
    }

    fn faded(&self, now: Timestamp) -> f64 {
        let half_lives = now.since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.count * 0.5_f64.powf(half_lives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_795_000_000_000).plus(Duration::from_secs(seconds))
    }

    #[test]
    fn what_toggles_for_an_hour_flaps_once_and_settles_once() {
        for every in [5, 10, 30, 60, 90, 120] {
            let (mut flap, mut begun, mut ended) = (Flap::default(), 0, 0);
            for second in 0..3 * 3600 {
                if second < 3600 && second % every == 0 {
                    begun += u32::from(flap.change(at(second)));
                }
                ended += u32::from(flap.settle(at(second)));
            }
            assert_eq!((begun, ended), (1, 1), "every {every} s");
        }
    }

    #[test]
    fn a_restart_or_a_slow_change_is_no_flapping() {
        let mut flap = Flap::default();
        assert!(!flap.change(at(0)));
        assert!(!flap.change(at(10)));
        let mut slow = Flap::default();
        for round in 0..100 {
            assert!(!slow.change(at(round * 240)), "every four minutes");
        }
    }

    #[test]
    fn a_clock_that_goes_back_counts_no_less() {
        let mut flap = Flap::default();
        for _ in 0..4 {
            flap.change(at(100));
        }
        assert!(flap.change(at(50)));
        assert!(!flap.settle(at(0)));
        assert!(flap.settle(at(100 + 900)));
        let mut flap = Flap::default();
        for _ in 0..5 {
            flap.change(at(10_000));
        }
        assert!(
            !flap.settle(at(0)),
            "set back by hours, it fades from then on"
        );
        assert!(flap.settle(at(900)));
    }
}
