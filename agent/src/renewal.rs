//! When to renew the host's certificate. Pure: lives, failures and a seed in, times out.
//!
//! A fleet that was enrolled in one afternoon must not renew in one afternoon, so every host takes its own moment
//! around two thirds of a certificate's life: days 18 to 22 of 30. A healthy agent so always has a week left, and
//! an outage of a week strands nobody.

use std::time::Duration;

use muster_proto::time::Timestamp;

/// Widest wait before the first attempt after a start: a rack that comes back from a power cut spreads out.
const FIRST_WITHIN: Duration = Duration::from_secs(10 * 60);
/// Window of the wait after the first failure; it doubles with each.
const RETRY_FROM: Duration = Duration::from_secs(60);
/// Widest window after failures.
const RETRY_TO: Duration = Duration::from_secs(6 * 3600);
/// Widest wait before the renewed certificate is put to use, which takes a new connection.
const SWITCH_WITHIN: Duration = Duration::from_secs(10 * 60);

/// A certificate's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its begin.
    pub not_before: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

impl Life {
    /// The moment to renew at the first server: after two thirds of the life, moved by `spread` tenths of that, -1
    /// to 1.
    #[must_use]
    pub fn due(self, spread: f64) -> Timestamp {
        let two_thirds = self.not_after.since(self.not_before) * 2 / 3;
        let factor = 1.0 + spread.clamp(-1.0, 1.0) / 10.0;
        self.not_before.plus(two_thirds.mul_f64(factor))
    }

    /// The moment to renew elsewhere: when half of what was left then is over, about day 25 of 30.
    #[must_use]
    pub fn due_elsewhere(self, spread: f64) -> Timestamp {
        let due = self.due(spread);
        due.plus(self.not_after.since(due) / 2)
    }
}

/// The moments of one agent.
#[derive(Debug)]
pub struct Renewal {
    random: fastrand::Rng,
    spread: f64,
    first: Duration,
    failures: u32,
}

impl Renewal {
    /// Draws from this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            spread: random.f64() * 2.0 - 1.0,
            first: within(&mut random, FIRST_WITHIN),
            failures: 0,
            random,
        }
    }

    /// How long after the start the first attempt may come at the earliest.
    #[must_use]
    pub fn first(&self) -> Duration {
        self.first
    }

    /// How long to wait with a certificate of this life; nothing when it is due. At home, the first server, that is
    /// earlier than elsewhere: one that is back within days renews its hosts itself.
    #[must_use]
    pub fn wait(&self, life: Life, now: Timestamp, at_home: bool) -> Duration {
        let due = match at_home {
            true => life.due(self.spread),
            false => life.due_elsewhere(self.spread),
        };
        due.since(now)
    }

    /// How long to wait after one more failure: evenly from a window of 1 min that doubles up to 6 h.
    pub fn failed(&mut self) -> Duration {
        let window = RETRY_FROM.saturating_mul(2u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        within(&mut self.random, window.min(RETRY_TO))
    }

    /// A new certificate is here: how long to wait before it is put to use.
    pub fn succeeded(&mut self) -> Duration {
        self.failures = 0;
        self.spread = self.random.f64() * 2.0 - 1.0;
        within(&mut self.random, SWITCH_WITHIN)
    }
}

fn within(random: &mut fastrand::Rng, window: Duration) -> Duration {
    window.mul_f64(random.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const BEGIN: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    const LIFE: Life = Life {
        not_before: BEGIN,
        not_after: Timestamp::from_millis(1_795_000_000_000 + 30 * 86_400_000),
    };

    #[test]
    fn two_thirds_of_a_life_a_tenth_earlier_or_later() {
        for (spread, days) in [(0.0, 20), (-1.0, 18), (1.0, 22), (7.0, 22)] {
            assert_eq!(LIFE.due(spread), BEGIN.plus(DAY * days), "{spread}");
            let elsewhere = BEGIN.plus(DAY * days + DAY * (30 - days) / 2);
            assert_eq!(LIFE.due_elsewhere(spread), elsewhere, "{spread}");
        }
        let over = Life {
            not_before: LIFE.not_after,
            not_after: BEGIN,
        };
        assert_eq!(
            over.due(0.0),
            LIFE.not_after,
            "no life at all is due at once"
        );
    }

    #[test]
    fn hosts_spread_over_four_days_and_each_keeps_its_moment() {
        let waits: Vec<Duration> = (0..200)
            .map(|seed| Renewal::new(seed).wait(LIFE, BEGIN, true))
            .collect();
        let again: Vec<Duration> = (0..200)
            .map(|seed| Renewal::new(seed).wait(LIFE, BEGIN, true))
            .collect();
        assert_eq!(waits, again);
        assert!(
            waits
                .iter()
                .all(|wait| (DAY * 18..=DAY * 22).contains(wait))
        );
        assert!(waits.iter().any(|wait| *wait < DAY * 37 / 2));
        assert!(waits.iter().any(|wait| *wait > DAY * 43 / 2));
        assert!((0..200).all(|seed| Renewal::new(seed).first() <= FIRST_WITHIN));
        let late = Renewal::new(1).wait(LIFE, BEGIN.plus(DAY * 23), true);
        assert_eq!(late, Duration::ZERO);
    }

    #[test]
    fn failures_widen_the_window_up_to_six_hours() {
        let longest = |failures: usize| {
            (0..300).fold(Duration::ZERO, |longest, seed| {
                let mut renewal = Renewal::new(seed);
                let last = (0..=failures).map(|_| renewal.failed()).last();
                longest.max(last.expect("at least one"))
            })
        };
        for (failures, minutes) in [(0, 1), (1, 2), (5, 32), (9, 360), (40, 360)] {
            let (found, window) = (longest(failures), Duration::from_secs(60 * minutes));
            assert!(found <= window, "{failures}: {found:?}");
            assert!(found > window.mul_f64(0.9), "{failures}: {found:?}");
        }
        let mut renewal = Renewal::new(2);
        for _ in 0..20 {
            renewal.failed();
        }
        assert!(renewal.succeeded() <= SWITCH_WITHIN);
        assert!(renewal.failed() <= RETRY_FROM);
    }
}
