//! Hosts as witnesses of the time: whether it was this machine that stood still.
//!
//! A virtual machine that is paused does not know it. When it goes on and its clock is set right, the clock has jumped,
//! and nobody here can tell that from a clock that was set wrong. The hosts can. A host whose wall clock has not moved
//! against its own time since boot, from before the jump until now, has not been set by anybody meanwhile, and it did not
//! stand still; where it agrees with the new time, the new time is right. A false source of time that sets the
//! aggregator and its hosts alike moves the hosts' clocks too: then they are no witnesses, and a person decides.
//!
//! Said by one host it is worth nothing, since any may lie: it takes a majority of those that this process has heard, and
//! three at least.

use std::collections::{HashMap, HashSet};

use muster_proto::id::HostId;

/// A host whose clock is further off is no witness, milliseconds.
const NEAR_MS: u64 = 60_000;
/// What a clock may wander against the time since boot without having been set, milliseconds: both go at the pace that NTP
/// gives them.
const STEADY_MS: u64 = 5_000;
/// Fewer do not make a majority.
const FEWEST: usize = 3;

/// What a host says of its clocks when it connects.
#[derive(Debug, Clone)]
pub struct Said {
    /// Which boot.
    pub boot_id: Vec<u8>,
    /// Its wall clock, UTC milliseconds.
    pub wall_ms: i64,
    /// Its time since boot, suspension included, milliseconds.
    pub since_boot_ms: i64,
}

/// What is remembered of a host.
#[derive(Debug)]
struct Known {
    /// The first 8 bytes of its boot's id.
    boot: [u8; 8],
    /// Wall clock minus time since boot.
    offset_ms: i64,
}

/// What hosts said. Bounded by the hosts that have a certificate.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    known: HashMap<HostId, Known>,
    /// Of the doubt that goes on: who bears the new time out, and who does not.
    agree: HashSet<HostId>,
    differ: HashSet<HostId>,
}

impl Witnesses {
    /// The clock, which shows `wall_ms`, is not in doubt.
    pub(super) fn remember(&mut self, host: HostId, said: &Said, wall_ms: i64) {
        (self.agree, self.differ) = (HashSet::new(), HashSet::new());
        let now = Known {
            boot: boot(said),
            offset_ms: said.wall_ms.saturating_sub(said.since_boot_ms),
        };
        if said.wall_ms.abs_diff(wall_ms) <= NEAR_MS {
            self.known.insert(host, now);
        } else if !self
            .known
            .get(&host)
            .is_some_and(|known| known.is_same(&now))
        {
            // Where it has not moved it may be our clock that is late, and nobody knows it yet.
            self.known.remove(&host);
        }
    }

    /// The clock has jumped ahead, to `wall_ms`; true when enough hosts bear that out.
    pub(super) fn hear(&mut self, host: HostId, said: &Said, wall_ms: i64) -> bool {
        let now = Known {
            boot: boot(said),
            offset_ms: said.wall_ms.saturating_sub(said.since_boot_ms),
        };
        self.agree.remove(&host);
        self.differ.remove(&host);
        if !self
            .known
            .get(&host)
            .is_some_and(|known| known.is_same(&now))
        {
            return false;
        }
        if said.wall_ms.abs_diff(wall_ms) > NEAR_MS {
            self.differ.insert(host);
            return false;
        }
        self.agree.insert(host);
        self.agree.len() >= FEWEST && self.agree.len() > self.known.len() / 2
    }
}

impl Known {
    /// Whether the clock was not set in between.
    fn is_same(&self, later: &Self) -> bool {
        self.boot == later.boot && self.offset_ms.abs_diff(later.offset_ms) <= STEADY_MS
    }
}

fn boot(said: &Said) -> [u8; 8] {
    let mut boot = [0; 8];
    boot.iter_mut()
        .zip(&said.boot_id)
        .for_each(|(to, from)| *to = *from);
    boot
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000_000;
    const HOUR: i64 = 3_600_000;

    fn host(number: u8) -> HostId {
        HostId::from_bytes([number; 16])
    }

    /// A host that has been up for this long.
    fn said(boot: u8, wall_ms: i64, since_boot_ms: i64) -> Said {
        Said {
            boot_id: vec![boot; 16],
            wall_ms,
            since_boot_ms,
        }
    }

    /// Five hosts that are known from an hour after their boot.
    fn five() -> Witnesses {
        let mut witnesses = Witnesses::default();
        for number in 1..=5 {
            witnesses.remember(host(number), &said(number, NOW, HOUR), NOW);
        }
        witnesses
    }

    #[test]
    fn a_majority_whose_clocks_were_not_touched_bears_out_that_we_stood_still() {
        let mut witnesses = five();
        let later = NOW + 2 * HOUR;
        let steady = |number| said(number, later + 900, 3 * HOUR);
        assert!(!witnesses.hear(host(1), &steady(1), later));
        assert!(!witnesses.hear(host(1), &steady(1), later), "one is one");
        assert!(!witnesses.hear(host(2), &steady(2), later));
        assert!(!witnesses.hear(host(9), &steady(9), later), "never heard");
        assert!(witnesses.hear(host(3), &steady(3), later));
    }

    #[test]
    fn whoever_was_set_rebooted_or_disagrees_is_no_witness() {
        let later = NOW + 2 * HOUR;
        for (what, other) in [
            // What sets us sets them: they stood as long as we did, or were set as we were.
            ("set ahead", said(0, later, HOUR)),
            ("another boot", said(99, later, 3 * HOUR)),
            ("still at the time of before", said(0, NOW, HOUR)),
            ("far off", said(0, later + 10 * HOUR, 13 * HOUR)),
        ] {
            let mut witnesses = five();
            for number in 1..=5 {
                let mut said = other.clone();
                if said.boot_id[0] == 0 {
                    said.boot_id = vec![number; 16];
                }
                assert!(!witnesses.hear(host(number), &said, later), "{what}");
            }
        }
    }

    #[test]
    fn two_hosts_or_a_minority_decide_nothing() {
        let later = NOW + 2 * HOUR;
        let steady = |number| said(number, later, 3 * HOUR);
        let mut two = Witnesses::default();
        for number in 1..=2 {
            two.remember(host(number), &said(number, NOW, HOUR), NOW);
        }
        assert!((1..=2).all(|number| !two.hear(host(number), &steady(number), later)));
        let mut witnesses = five();
        for number in 6..=9 {
            witnesses.remember(host(number), &said(number, NOW, HOUR), NOW);
        }
        for number in 1..=4 {
            assert!(!witnesses.hear(host(number), &steady(number), later));
        }
        assert!(witnesses.hear(host(5), &steady(5), later), "five of nine");
    }

    #[test]
    fn hosts_that_come_back_before_our_clock_is_set_right_stay_witnesses() {
        let mut witnesses = five();
        // We went on two hours late and do not know it yet.
        for number in 1..=5 {
            witnesses.remember(host(number), &said(number, NOW + 2 * HOUR, 3 * HOUR), NOW);
        }
        let steady = |number| said(number, NOW + 2 * HOUR + 60, 3 * HOUR + 60);
        let heard =
            (1..=5).filter(|&number| witnesses.hear(host(number), &steady(number), NOW + 2 * HOUR));
        assert_eq!(heard.count(), 3, "from the third on");
        // One whose clock is elsewhere and was set is forgotten.
        witnesses.remember(host(1), &said(1, NOW + 9 * HOUR, 3 * HOUR), NOW + 2 * HOUR);
        assert!(!witnesses.known.contains_key(&host(1)));
    }
}
