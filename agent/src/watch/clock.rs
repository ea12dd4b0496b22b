//! Steps of the wall clock: its distance from CLOCK_BOOTTIME changed at once.
//!
//! A clock that is slewed moves at most 500 ppm, 2.5 ms between two looks; sleep moves both clocks.

use muster_proto::{
    event,
    v1::{EventFieldKey, EventKind},
};

use super::Found;
use crate::sampler::HostClock;

/// Least step that is told: far above slewing and the time between two system calls.
const LEAST_MS: i64 = 500;

/// See the module.
#[derive(Debug, Default)]
pub struct ClockWatch {
    offset_ms: Option<i64>,
}

impl ClockWatch {
    /// Compares the clocks.
    pub fn look(&mut self, clock: &dyn HostClock, found: &mut Found) {
        let now = clock.now();
        let offset_ms = now.as_millis().saturating_sub(clock.boottime_ms());
        let Some(before) = self.offset_ms.replace(offset_ms) else {
            return;
        };
        let by_ms = offset_ms.saturating_sub(before);
        if by_ms.abs() >= LEAST_MS {
            let fields = vec![event::integer(EventFieldKey::ByMs, by_ms)];
            found.event(now, EventKind::ClockStepped, "", fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::time::{Clock, Timestamp};

    use super::*;

    struct Clocks {
        wall_ms: i64,
        boottime_ms: i64,
    }

    impl Clock for Clocks {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.wall_ms)
        }
    }

    impl HostClock for Clocks {
        fn boottime_ms(&self) -> i64 {
            self.boottime_ms
        }
    }

    #[test]
    fn steps_are_told_and_slewing_and_sleep_are_not() {
        let (mut watch, mut found) = (ClockWatch::default(), Found::default());
        for (wall_ms, boottime_ms, expected) in [
            (1_000_000, 5_000, vec![]),
            (1_005_002, 10_000, vec![]),
            (9_005_002, 8_010_000, vec![]),
            (9_011_502, 8_015_000, vec!["clock set by +1.500 s"]),
            (9_016_502, 8_020_000, vec![]),
            (5_416_502, 8_025_000, vec!["clock set by -3605.000 s"]),
        ] {
            let clocks = Clocks {
                wall_ms,
                boottime_ms,
            };
            watch.look(&clocks, &mut found);
            assert_eq!(found.words(), expected, "{wall_ms}");
        }
    }
}
