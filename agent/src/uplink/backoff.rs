//! How long to wait before the next connection. Pure: an end and a seed in, a time out.
//!
//! A thousand agents that lose one aggregator at the same moment must not come back at the same moment, so
//! every wait is drawn evenly from a window. The window grows with the fleet (the aggregator says roughly how
//! many agents it has) and doubles with each failure: less far where nobody was there at all, because such an attempt
//! costs an aggregator nothing (docs/decisions/093).

use std::time::Duration;

/// Narrowest window: a small fleet is back at once.
const MIN_SPREAD: Duration = Duration::from_secs(2);
/// Handshakes that an aggregator takes in a second without effort; the window of a fleet follows from it.
const AGENTS_PER_SECOND: u32 = 1_000;
/// Widest window of a fleet, whatever size the aggregator gives it.
const MAX_FLEET_SPREAD: Duration = Duration::from_secs(300);
/// Widest window while an aggregator fails to answer: it is found again within a minute.
const MAX_SPREAD: Duration = Duration::from_secs(60);
/// The same while no connection comes about: after a partition the last agent is back within half a minute.
const UNREACHED_SPREAD: Duration = Duration::from_secs(20);
/// Window after a refusal that only a person can lift.
const SLOW_FROM: Duration = Duration::from_secs(5 * 60);
const SLOW_TO: Duration = Duration::from_secs(15 * 60);
/// Window after "another stream of this identity is live": that stream is the host before its crash as
/// often as a clone, and then it is gone within a minute.
const OCCUPIED_FROM: Duration = Duration::from_secs(60);
const OCCUPIED_TO: Duration = Duration::from_secs(90);
/// No peer can send an agent away for longer.
const MAX_ORDERED: Duration = Duration::from_secs(3600);

/// How a connection, or the attempt to make one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It worked, then it was lost.
    Lost,
    /// It never came to work.
    Failed,
    /// There was not even a connection: nobody there, or no way.
    Unreached,
    /// The aggregator is stopping and gave a spread.
    Drained(Duration),
    /// The aggregator is busy and gave a time.
    Throttled(Duration),
    /// This identity has another live stream.
    Occupied,
    /// Refused in a way that repeating does not heal.
    Refused,
}

/// The waits of one agent.
#[derive(Debug)]
pub struct Backoff {
    random: fastrand::Rng,
    fleet_hint: u32,
    failures: u32,
}

impl Backoff {
    /// Draws from this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            fleet_hint: 0,
            failures: 0,
        }
    }

    /// A connection works: windows begin small again, sized for this many agents.
    pub fn succeeded(&mut self, fleet_hint: u32) {
        self.failures = 0;
        self.fleet_hint = fleet_hint;
    }

    /// How long to wait now.
    pub fn after(&mut self, ended: Ended) -> Duration {
        let (from, to) = self.window(ended);
        let width = u64::try_from(to.saturating_sub(from).as_millis()).unwrap_or(u64::MAX - 1);
        from + Duration::from_millis(self.random.u64(0..=width))
    }

    /// The window from which the wait is drawn; counts a failure.
    fn window(&mut self, ended: Ended) -> (Duration, Duration) {
        let fleet = Duration::from_secs(1) * (self.fleet_hint / AGENTS_PER_SECOND);
        let first = fleet.clamp(MIN_SPREAD, MAX_FLEET_SPREAD);
        match ended {
            Ended::Lost => (Duration::ZERO, first),
            Ended::Failed => (Duration::ZERO, self.doubled(first, MAX_SPREAD)),
            Ended::Unreached => {
                // With waits of half the window on average, so many come in a second as after a loss.
                let most = first.saturating_mul(2).clamp(UNREACHED_SPREAD, MAX_SPREAD);
                (Duration::ZERO, self.doubled(first, most))
            }
            Ended::Drained(spread) => (Duration::ZERO, spread.clamp(first, MAX_ORDERED)),
            Ended::Throttled(after) => {
                let after = after.min(MAX_ORDERED);
                (after, after + MIN_SPREAD)
            }
            Ended::Occupied => (OCCUPIED_FROM, OCCUPIED_TO),
            Ended::Refused => (SLOW_FROM, SLOW_TO),
        }
    }

    /// The window after one more failure: twice the last, but no wider than `most` or the first, whichever is more.
    fn doubled(&mut self, first: Duration, most: Duration) -> Duration {
        let doubled = first.saturating_mul(2u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        doubled.min(most.max(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(window: (Duration, Duration)) -> (u64, u64) {
        (window.0.as_secs(), window.1.as_secs())
    }

    #[test]
    fn windows_follow_the_end_and_the_fleet() {
        let drained = Ended::Drained(Duration::from_secs(30));
        let at_once = Ended::Drained(Duration::ZERO);
        let for_ever = Ended::Drained(Duration::MAX);
        let throttled = Ended::Throttled(Duration::from_secs(10));
        for (fleet, ended, window) in [
            (0, Ended::Lost, (0, 2)),
            (50_000, Ended::Lost, (0, 50)),
            (100_000, Ended::Failed, (0, 100)),
            (0, drained, (0, 30)),
            (0, at_once, (0, 2)),
            (50_000, at_once, (0, 50)),
            (u32::MAX, at_once, (0, 300)),
            (u32::MAX, Ended::Lost, (0, 300)),
            (u32::MAX, Ended::Failed, (0, 300)),
            (0, for_ever, (0, 3600)),
            (0, throttled, (10, 12)),
            (0, Ended::Occupied, (60, 90)),
            (50_000, Ended::Refused, (300, 900)),
        ] {
            let mut backoff = Backoff::new(1);
            backoff.succeeded(fleet);
            assert_eq!(seconds(backoff.window(ended)), window, "{fleet} {ended:?}");
        }
    }

    #[test]
    fn failures_double_the_window_until_a_success() {
        let mut backoff = Backoff::new(1);
        let mut widths = Vec::new();
        for _ in 0..40 {
            widths.push(seconds(backoff.window(Ended::Failed)).1);
        }
        assert_eq!(widths[..7], [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(widths[39], 60);
        backoff.succeeded(0);
        assert_eq!(seconds(backoff.window(Ended::Failed)), (0, 2));
    }

    #[test]
    fn where_nobody_was_there_the_window_stays_small_for_a_small_fleet() {
        // (agents, widest window while nobody is there, widest while somebody fails)
        for (fleet, unreached, failed) in [
            (0, 20, 60),
            (10_000, 20, 60),
            (20_000, 40, 60),
            (30_000, 60, 60),
            (100_000, 100, 100),
            (u32::MAX, 300, 300),
        ] {
            for (ended, widest) in [(Ended::Unreached, unreached), (Ended::Failed, failed)] {
                let mut backoff = Backoff::new(1);
                backoff.succeeded(fleet);
                let widths: Vec<u64> = (0..40).map(|_| seconds(backoff.window(ended)).1).collect();
                assert!(widths.is_sorted(), "{fleet} {ended:?}");
                assert_eq!(widths[39], widest, "{fleet} {ended:?}");
            }
        }
    }

    #[test]
    fn waits_fill_the_window_and_come_from_the_seed() {
        let draw = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..200)
                .map(|_| backoff.after(Ended::Refused))
                .collect::<Vec<_>>()
        };
        let waits = draw(3);
        assert_eq!(waits, draw(3));
        assert_ne!(waits, draw(4));
        assert!(
            waits
                .iter()
                .all(|wait| (SLOW_FROM..=SLOW_TO).contains(wait))
        );
        assert!(
            waits
                .iter()
                .any(|wait| *wait < SLOW_FROM + Duration::from_secs(60))
        );
        assert!(
            waits
                .iter()
                .any(|wait| *wait > SLOW_TO - Duration::from_secs(60))
        );
    }
}
