//! How much history is kept, and in what.

use std::time::Duration;

use super::Tier;

/// Settings of the embedded store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryConfig {
    /// Whether samples are kept at all.
    pub enabled: bool,
    /// Every sample is kept for this long.
    pub raw: Duration,
    /// Points of a minute are kept for this long.
    pub minute: Duration,
    /// Points of a quarter of an hour are kept for this long.
    pub quarter: Duration,
    /// Most bytes on disk; beyond, the oldest files go.
    pub max_bytes: u64,
    /// Memory for what is not in files yet, for each host; beyond, it is spilled to a file early.
    pub memory_per_host: usize,
    /// The same for all hosts together is never less than this.
    pub memory_floor: usize,
    /// Hosts that share files.
    pub group_hosts: usize,
    /// Most points that one question may read.
    pub max_points: u64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self {
            enabled: true,
            raw: days(2),
            minute: days(30),
            quarter: days(400),
            max_bytes: 20 << 30,
            memory_per_host: 16 << 10,
            memory_floor: 32 << 20,
            group_hosts: 1024,
            max_points: 30_000_000,
        }
    }
}

/// Two hours: at ten seconds 720 samples of a series stand together, from where on they pack well.
pub const RAW_WINDOW_MS: i64 = 2 * 3_600_000;

/// How long after its end a window is open for what comes late before it is packed.
pub const GRACE_MS: i64 = 10 * 60_000;

impl Tier {
    /// Milliseconds that one packed file covers: about as many points each.
    #[must_use]
    pub const fn window_ms(self) -> i64 {
        match self {
            Self::Raw => RAW_WINDOW_MS,
            Self::Minute => 86_400_000,
            Self::Quarter => 16 * 86_400_000,
        }
    }

    /// Begin of the window that a time falls into.
    #[must_use]
    pub const fn window_of(self, at: i64) -> i64 {
        at - at.rem_euclid(self.window_ms())
    }
}

impl HistoryConfig {
    /// For how long a tier is kept, in milliseconds.
    #[must_use]
    pub fn keep_ms(&self, tier: Tier) -> i64 {
        let keep = match tier {
            Tier::Raw => self.raw,
            Tier::Minute => self.minute,
            Tier::Quarter => self.quarter,
        };
        i64::try_from(keep.as_millis()).unwrap_or(i64::MAX)
    }
}
