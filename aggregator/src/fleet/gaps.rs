//! How long a host usually leaves between two signs of life, and from when its silence is not usual.
//!
//! ```text
//! 96 buckets u16, 24 a decade: bucket i counts gaps from 0.1 s * 10^(i/24); the last takes all longer ones
//! ```
//! 192 bytes a host. The bound follows the host's own tail, where the normal tail of phi-accrual detectors is
//! wrong: a host behind a lossy line is given the time that it needs, one on a clean line is missed within
//! seconds. When a bucket is full all are halved, so at one second the past counts for about a day.

use std::time::Duration;

use serde::{Deserialize, Serialize};

const BUCKETS: usize = 96;
const BUCKETS_PER_DECADE: f64 = 24.0;
/// Lower end of the first bucket; no interval is shorter than a second.
const FIRST_SECONDS: f64 = 0.1;
/// Share of gaps that may be longer than the usual longest.
const EXCEEDED_SHARE: f64 = 1e-4;
/// History from which a host's own gaps count.
const ENOUGH: Duration = Duration::from_secs(3600);
/// Patience until then.
const UNKNOWN: Duration = Duration::from_secs(15);
/// Least and most patience, where the interval does not ask for more.
const FLOOR: Duration = Duration::from_secs(3);
const CAP: Duration = Duration::from_secs(30);

/// The gaps of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub struct Gaps {
    buckets: [u16; BUCKETS],
    covered: Duration,
    /// The usual longest; made of the others.
    longest: Option<Duration>,
}

/// As it stands in a checkpoint: only the buckets that hold something, five or so.
#[derive(Serialize, Deserialize)]
struct Kept {
    covered: Duration,
    filled: Vec<(u8, u16)>,
}

impl Default for Gaps {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            covered: Duration::ZERO,
            longest: None,
        }
    }
}

impl Gaps {
    /// Takes note of the time between two signs of life on one open stream.
    pub fn note(&mut self, gap: Duration) {
        let at = bucket(gap);
        if self.buckets[at] == u16::MAX {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
        }
        self.buckets[at] += 1;
        self.covered = self.covered.saturating_add(gap).min(ENOUGH * 24 * 365);
        self.longest = self.quantile();
    }

    /// From how long a silence on is not usual for this host.
    #[must_use]
    pub fn late_after(&self, interval: Duration) -> Duration {
        match self.longest.filter(|_| self.covered >= ENOUGH) {
            Some(longest) => (longest * 2).clamp(FLOOR, CAP.max(interval * 3)),
            None => UNKNOWN.max(interval * 2),
        }
    }

    /// The upper end of the bucket that one gap in ten thousand exceeds.
    fn quantile(&self) -> Option<Duration> {
        let total: u32 = self.buckets.iter().map(|&count| u32::from(count)).sum();
        let total = f64::from(total);
        let mut longer = 0.0;
        for (at, &count) in self.buckets.iter().enumerate().rev() {
            longer += f64::from(count);
            if longer > total * EXCEEDED_SHARE {
                return Some(upper_end(at));
            }
        }
        None
    }
}

impl From<Kept> for Gaps {
    fn from(kept: Kept) -> Self {
        let mut gaps = Self {
            covered: kept.covered,
            ..Self::default()
        };
        for (at, count) in kept.filled {
            if let Some(bucket) = gaps.buckets.get_mut(usize::from(at)) {
                *bucket = count;
            }
        }
        gaps.longest = gaps.quantile();
        gaps
    }
}

impl From<Gaps> for Kept {
    fn from(gaps: Gaps) -> Self {
        let filled = (0..).zip(gaps.buckets).filter(|(_, count)| *count > 0);
        Self {
            covered: gaps.covered,
            filled: filled.collect(),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the buckets there are"
)]
fn bucket(gap: Duration) -> usize {
    let decades = (gap.as_secs_f64() / FIRST_SECONDS).log10();
    (decades * BUCKETS_PER_DECADE).clamp(0.0, (BUCKETS - 1) as f64) as usize
}

fn upper_end(at: usize) -> Duration {
    let decades = (at + 1) as f64 / BUCKETS_PER_DECADE;
    Duration::from_secs_f64(FIRST_SECONDS * 10_f64.powf(decades))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn after(gaps: impl IntoIterator<Item = f64>) -> Gaps {
        let mut seen = Gaps::default();
        for gap in gaps {
            seen.note(Duration::from_secs_f64(gap));
        }
        seen
    }

    #[test]
    fn patience_follows_the_hosts_own_tail() {
        let clean = after(std::iter::repeat_n(1.0, 20_000));
        assert_eq!(clean.late_after(SECOND), FLOOR);
        // One gap in five thousand of six seconds is usual; one in fifty thousand is not.
        let lossy = (0..50_000).map(|at| if at % 5000 == 0 { 6.0 } else { 1.0 });
        let patience = after(lossy).late_after(SECOND).as_secs_f64();
        assert!((12.0..14.0).contains(&patience), "{patience}");
        let once = (0..50_000).map(|at| if at == 7 { 20.0 } else { 1.0 });
        assert_eq!(after(once).late_after(SECOND), FLOOR);
        let awful = after((0..20_000).map(|at| if at % 100 == 0 { 300.0 } else { 1.0 }));
        assert_eq!(awful.late_after(SECOND), CAP);
    }

    #[test]
    fn a_new_host_is_given_time() {
        let new = after(std::iter::repeat_n(1.0, 3599));
        assert_eq!(new.late_after(SECOND), UNKNOWN);
        assert_eq!(new.late_after(SECOND * 60), SECOND * 120);
        assert_eq!(
            after(std::iter::repeat_n(1.0, 3600)).late_after(SECOND),
            FLOOR
        );
    }

    #[test]
    fn slow_intervals_are_not_capped_below_themselves() {
        let minutes = after(std::iter::repeat_n(60.0, 100));
        let patience = minutes.late_after(SECOND * 60);
        assert!(
            (SECOND * 120..=SECOND * 180).contains(&patience),
            "{patience:?}"
        );
    }

    #[test]
    fn the_past_fades_and_survives_a_restart() {
        let mut host = after((0..60_000).map(|at| if at % 1000 == 0 { 9.0 } else { 1.0 }));
        let kept = postcard::to_stdvec(&host).expect("it serialises");
        assert!(kept.len() < 32, "{} bytes", kept.len());
        let restored: Gaps = postcard::from_bytes(&kept).expect("and back");
        assert_eq!(restored, host);
        assert!(host.late_after(SECOND) > SECOND * 15);
        // The line was mended: within days at one second it is forgotten.
        for _ in 0..4 * 86_400 {
            host.note(SECOND);
        }
        assert_eq!(host.late_after(SECOND), FLOOR);
    }
}
