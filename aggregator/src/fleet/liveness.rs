//! Whether a host is heard: live, late or silent. Pure: time comes in.
//!
//! Liveness goes by when the aggregator received, never by a host's clock. When a host is late goes by the gaps
//! that it usually leaves ([`super::gaps`]). A host that is late may only have a busy network; it is called
//! silent after a grace, and nobody is called silent while the aggregator itself has not been able to listen:
//! after its start, and after its own stall. Why a host is silent is [`super::silence`]'s affair.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use super::silence::Silence;

/// Shortest silence after which a host is silent: the scrape page's `stale_after` of design/http.md.
const SILENT_FLOOR: Duration = Duration::from_secs(15);

/// Intervals without a frame after which a host is silent.
const SILENT_INTERVALS: u32 = 3;

/// How much longer than late a host must be to be silent: one that usually leaves long gaps may leave a longer
/// one.
const GRACE: Duration = Duration::from_secs(5);

/// Longest time in which every agent tries to connect once: its back-off of at most 60 s, and a connection
/// attempt of at most 10 s (agent/src/uplink/backoff.rs). Whoever lost the connection to an aggregator that
/// was away needs this long to be heard again.
const RECONNECT_WINDOW: Duration = Duration::from_secs(75);

/// Connections that agents of a large fleet make in a second, so that a lost one is not made anew at once
/// (`AGENTS_PER_SECOND` of agent/src/uplink/backoff.rs), and the longest time over which they spread.
const AGENTS_PER_SECOND: u64 = 1000;
const RECONNECT_SPREAD_MAX: Duration = Duration::from_secs(300);

/// An attempt to connect, the handshake and the first frame.
const CONNECT: Duration = Duration::from_secs(10);

/// How a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liveness {
    /// Enrolled, nothing heard since.
    Joined,
    /// Heard as often as it should be.
    Live,
    /// Missed what it should have sent, or its connection ended.
    Late,
    /// Missed it for longer than the grace.
    Silent(Silence),
}

/// What is known of a host's voice.
#[derive(Debug, Clone, Copy)]
pub struct Voice {
    /// When its last frame was received; `None` since this aggregator started.
    pub heard: Option<Instant>,
    /// When it first said Hello after that, unless it was silent for no reason that it gave.
    pub greeted: Option<Instant>,
    /// Whether anything was ever received, before a restart of the aggregator too.
    pub ever_heard: bool,
    /// Interval between its ticks.
    pub interval: Duration,
    /// From how long a silence on is not usual for it.
    pub late_after: Duration,
    /// Over how long agents spread when they have lost a stream: [`reconnect_spread`].
    pub reconnect: Duration,
    /// Whether it has an open stream.
    pub connected: bool,
    /// The goodbye after which nothing came.
    pub goodbye: Option<Silence>,
}

/// How long after the last frame a host is called silent that is late after `late_after`.
#[must_use]
pub fn silent_after(interval: Duration, late_after: Duration) -> Duration {
    (interval * SILENT_INTERVALS)
        .max(SILENT_FLOOR)
        .max(late_after + GRACE)
}

/// Over how long the agents of a fleet of this size spread when they have lost their streams.
#[must_use]
pub fn reconnect_spread(hosts: u64) -> Duration {
    Duration::from_secs(hosts / AGENTS_PER_SECOND).min(RECONNECT_SPREAD_MAX)
}

/// How the host stands at `now`. `listening_since` is when the aggregator could last begin to listen to it:
/// its start, the end of its own stall, or when it last sent the host away.
#[must_use]
pub fn judge(voice: &Voice, now: Instant, listening_since: Instant) -> Liveness {
    if !voice.ever_heard {
        return Liveness::Joined;
    }
    // Who says Hello has until its first samples; those alone make it live.
    let last = voice.heard.max(voice.greeted);
    let reference = last.unwrap_or(listening_since);
    if let Some(cause) = voice.goodbye {
        return Liveness::Silent(cause);
    }
    let silence = now.saturating_duration_since(reference);
    let listened = now.saturating_duration_since(listening_since);
    let mut grace = silent_after(voice.interval, voice.late_after);
    if !voice.connected {
        // Its stream may have broken by no fault of its own: it has until its turn to connect.
        grace = grace.max(voice.reconnect + CONNECT);
    }
    // A host that was heard since then has found its way back; of the others nobody can tell yet.
    let back = last.is_some_and(|last| last > listening_since);
    let patience = if back {
        grace
    } else {
        grace.max(RECONNECT_WINDOW + voice.reconnect)
    };
    if silence > grace && listened > patience {
        return Liveness::Silent(Silence::Unknown);
    }
    let usual = |heard| now.saturating_duration_since(heard) <= voice.late_after;
    if voice.connected && voice.heard.is_some_and(usual) {
        Liveness::Live
    } else {
        Liveness::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice(heard: Option<Instant>) -> Voice {
        Voice {
            heard,
            greeted: None,
            ever_heard: true,
            interval: Duration::from_secs(10),
            late_after: Duration::from_secs(20),
            reconnect: reconnect_spread(500),
            connected: true,
            goodbye: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn from_live_to_silent() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let heard = voice(Some(at(100)));
        for (now, expected) in [
            (100, Liveness::Live),
            (120, Liveness::Live),
            (121, Liveness::Late),
            (130, Liveness::Late),
            (131, Liveness::Silent(Silence::Unknown)),
        ] {
            assert_eq!(judge(&heard, at(now), start), expected, "at {now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_stream_is_late_at_once_and_silent_after_the_grace() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let closed = Voice {
            connected: false,
            ..voice(Some(at(100)))
        };
        assert_eq!(judge(&closed, at(101), start), Liveness::Late);
        assert_eq!(
            judge(&closed, at(131), start),
            Liveness::Silent(Silence::Unknown)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_broke_in_a_large_fleet_has_until_its_turn() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let closed = Voice {
            connected: false,
            reconnect: reconnect_spread(100_000),
            ..voice(Some(at(1000)))
        };
        assert_eq!(judge(&closed, at(1110), start), Liveness::Late);
        assert_eq!(
            judge(&closed, at(1111), start),
            Liveness::Silent(Silence::Unknown)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_usually_leaves_long_gaps_is_given_them() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let slow = Voice {
            interval: Duration::from_secs(1),
            late_after: Duration::from_secs(22),
            ..voice(Some(at(100)))
        };
        for (now, expected) in [
            (122, Liveness::Live),
            (123, Liveness::Late),
            (127, Liveness::Late),
            (128, Liveness::Silent(Silence::Unknown)),
        ] {
            assert_eq!(judge(&slow, at(now), start), expected, "at {now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_was_away_accuses_nobody() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let heard = voice(Some(at(100)));
        // The aggregator stood still from 100 to 200.
        assert_eq!(judge(&heard, at(201), at(200)), Liveness::Late);
        assert_eq!(judge(&heard, at(275), at(200)), Liveness::Late);
        assert_eq!(
            judge(&heard, at(276), at(200)),
            Liveness::Silent(Silence::Unknown)
        );
        // After a restart nothing was heard yet, and agents come back within their back-off.
        assert_eq!(judge(&voice(None), at(75), start), Liveness::Late);
        assert_eq!(
            judge(&voice(None), at(76), start),
            Liveness::Silent(Silence::Unknown)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_hello_has_until_its_first_samples() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let back = Voice {
            greeted: Some(at(400)),
            ..voice(Some(at(100)))
        };
        for (now, expected) in [
            (400, Liveness::Late),
            (430, Liveness::Late),
            (431, Liveness::Silent(Silence::Unknown)),
        ] {
            assert_eq!(judge(&back, at(now), start), expected, "at {now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_sent_away_has_the_time_to_come_back() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let away = Voice {
            connected: false,
            ..voice(Some(at(100)))
        };
        assert_eq!(judge(&away, at(175), at(100)), Liveness::Late);
        assert_eq!(
            judge(&away, at(176), at(100)),
            Liveness::Silent(Silence::Unknown)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_goodbye_names_the_cause_at_once() {
        let start = Instant::now();
        let gone = Voice {
            goodbye: Some(Silence::Reboot),
            connected: false,
            ..voice(Some(start))
        };
        assert_eq!(
            judge(&gone, start + Duration::from_secs(1), start),
            Liveness::Silent(Silence::Reboot)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_enrolled_host_that_never_spoke_is_not_silent() {
        let never = Voice {
            ever_heard: false,
            ..voice(None)
        };
        let now = Instant::now() + Duration::from_secs(1000);
        assert_eq!(
            judge(&never, now, now - Duration::from_secs(900)),
            Liveness::Joined
        );
    }
}
