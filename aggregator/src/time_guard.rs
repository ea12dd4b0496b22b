//! The aggregator's own clock, watched: a jump must not expire a fleet, nor put wrong dates into certificates.
//!
//! The wall clock is held against the time since boot, which no one sets, and over restarts within one boot against what
//! was kept on disk. When they come apart by more than an hour the clock is in doubt: the aggregator issues nothing then,
//! and judges certificates by the time it was before, going on. The doubt ends when the clocks agree again, when an
//! operator says that the new time is right (`muster-aggregator clock confirm`), when hosts bear out that it was this
//! machine that stood still ([`Said`]), or after 24 hours in which the wall clock went on evenly. After a reboot only a
//! clock that went back can be told.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use muster_proto::{
    id::HostId,
    time::{Clock, Timestamp},
};
use tokio_util::sync::CancellationToken;

use crate::control::{Control, ControlError};

mod witness;

pub use witness::Said;

use witness::Witnesses;

/// Further apart than this the clock is in doubt.
pub const JUMP: Duration = Duration::from_secs(3600);
/// For so long a clock in doubt must go on evenly to be believed.
pub const CONSISTENT: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the time is kept on disk.
const KEEP_EVERY: u32 = 12;

/// Time since boot and the name of the boot.
pub trait BootClock: Send + Sync {
    /// Milliseconds since boot, suspension included.
    fn since_boot_ms(&self) -> i64;
    /// Names the boot; empty when it cannot be told.
    fn boot_id(&self) -> String;
}

/// This machine's.
pub struct Machine;

impl BootClock for Machine {
    fn since_boot_ms(&self) -> i64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        time.tv_sec
            .saturating_mul(1000)
            .saturating_add(time.tv_nsec / 1_000_000)
    }

    fn boot_id(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    }
}

/// What was kept of the clock, over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptTime {
    /// The time as it was believed.
    pub believed_ms: i64,
    /// Time since boot at that moment.
    pub since_boot_ms: i64,
    /// Which boot.
    pub boot_id: String,
}

/// Machines are told the time in the first minutes after boot: those without a clock of their own, and those whose clock
/// is kept in local time, hours ahead or behind. A step is no jump then, unless it goes back behind the time that was
/// kept before.
const SETTLING: Duration = Duration::from_secs(600);

fn is_settling(since_boot_ms: i64) -> bool {
    since_boot_ms < i64::try_from(SETTLING.as_millis()).unwrap_or(i64::MAX)
}

/// Not in doubt.
const NO_DOUBT: i64 = i64::MIN;

/// The clock that identities are judged by.
pub struct GuardedClock {
    wall: Arc<dyn Clock>,
    boot: Box<dyn BootClock>,
    /// Believed wall time minus time since boot, milliseconds.
    offset: AtomicI64,
    /// The time that was kept by the program before, milliseconds; no step goes back behind it unasked. Where nothing
    /// was kept, no step goes back.
    floor: i64,
    /// Since when the clock is in doubt, in time since boot; [`NO_DOUBT`].
    doubt_since: AtomicI64,
    /// Wall time minus time since boot when the doubt began: as long as it stays there the new time is consistent.
    doubted_offset: AtomicI64,
    /// What hosts say of the time.
    witnesses: Mutex<Witnesses>,
}

/// What a look at the clock found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing new.
    Same,
    /// It has jumped by so many milliseconds.
    Jumped(i64),
    /// It is believed again.
    Believed,
}

impl GuardedClock {
    /// Begins with what the wall clock shows, unless what was kept says otherwise.
    #[must_use]
    pub fn new(wall: Arc<dyn Clock>, boot: Box<dyn BootClock>, kept: Option<&KeptTime>) -> Self {
        let since_boot = boot.since_boot_ms();
        let now = wall.now().as_millis();
        let guard = Self {
            offset: AtomicI64::new(now - since_boot),
            doubt_since: AtomicI64::new(NO_DOUBT),
            doubted_offset: AtomicI64::new(0),
            witnesses: Mutex::default(),
            floor: kept.map_or(i64::MAX, |kept| kept.believed_ms),
            wall,
            boot,
        };
        let Some(kept) = kept else {
            return guard;
        };
        let same_boot = !kept.boot_id.is_empty() && kept.boot_id == guard.boot.boot_id();
        let believed = if same_boot {
            kept.believed_ms - kept.since_boot_ms
        } else if now < kept.believed_ms {
            // How long the machine was off is not known, but not less than nothing.
            kept.believed_ms - since_boot
        } else {
            now - since_boot
        };
        guard.offset.store(believed, Ordering::Relaxed);
        guard
    }

    fn is_near(&self) -> bool {
        let since_boot = self.boot.since_boot_ms();
        self.is_believable(self.wall.now().as_millis(), since_boot)
    }

    /// Whether a time is near to what is believed, or a step that a machine makes soon after boot.
    fn is_believable(&self, wall: i64, since_boot: i64) -> bool {
        let apart = wall - since_boot - self.offset.load(Ordering::Relaxed);
        let settles = is_settling(since_boot) && (apart > 0 || wall >= self.floor);
        u128::from(apart.unsigned_abs()) <= JUMP.as_millis() || settles
    }

    /// What to say to people while the clock is in doubt.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.in_doubt().then(|| {
            format!(
                "the aggregator's clock jumped: it shows {}, {} was expected; no certificate is issued, and samples later than expected are not taken but wait with the agents (set it right, or on its host: muster-aggregator clock confirm)",
                self.wall.now(),
                self.now()
            )
        })
    }

    /// What is to be kept on disk.
    #[must_use]
    pub fn keep(&self) -> KeptTime {
        let since_boot_ms = self.boot.since_boot_ms();
        KeptTime {
            believed_ms: self.offset.load(Ordering::Relaxed) + since_boot_ms,
            since_boot_ms,
            boot_id: self.boot.boot_id(),
        }
    }

    /// The wall clock is right, whatever was believed.
    pub fn confirm(&self) {
        let offset = self.wall.now().as_millis() - self.boot.since_boot_ms();
        self.offset.store(offset, Ordering::Relaxed);
        self.doubt_since.store(NO_DOUBT, Ordering::Relaxed);
    }

    /// A host connects and says this of its clocks. While the clock is in doubt because it jumped ahead: the time it
    /// shows, when enough hosts bear it out.
    pub fn hear(&self, host: HostId, said: &Said) -> Option<Timestamp> {
        let (wall, since_boot) = (self.wall.now(), self.boot.since_boot_ms());
        let ahead = wall.as_millis() - since_boot - self.offset.load(Ordering::Relaxed) > 0;
        let mut witnesses = self
            .witnesses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !self.in_doubt() {
            witnesses.remember(host, said, wall.as_millis());
            return None;
        }
        // Who stands still is late, never early.
        (ahead && witnesses.hear(host, said, wall.as_millis())).then_some(wall)
    }

    /// Compares the clocks.
    pub fn look(&self) -> Look {
        let since_boot = self.boot.since_boot_ms();
        let offset = self.wall.now().as_millis() - since_boot;
        let jump = i64::try_from(JUMP.as_millis()).unwrap_or(i64::MAX);
        let apart = offset - self.offset.load(Ordering::Relaxed);
        if self.is_believable(offset + since_boot, since_boot) {
            // What NTP corrects in small steps is followed.
            self.offset.store(offset, Ordering::Relaxed);
            let was = self.doubt_since.swap(NO_DOUBT, Ordering::Relaxed);
            return if was == NO_DOUBT {
                Look::Same
            } else {
                Look::Believed
            };
        }
        let since = self.doubt_since.load(Ordering::Relaxed);
        let moved = (offset - self.doubted_offset.load(Ordering::Relaxed)).abs() > jump;
        if since == NO_DOUBT || moved {
            self.doubt_since.store(since_boot, Ordering::Relaxed);
            self.doubted_offset.store(offset, Ordering::Relaxed);
            return Look::Jumped(apart);
        }
        let consistent = i64::try_from(CONSISTENT.as_millis()).unwrap_or(i64::MAX);
        if since_boot - since >= consistent {
            self.confirm();
            return Look::Believed;
        }
        Look::Same
    }

    /// Looks at the clock until `stop`, keeps the time, and hears when an operator confirms.
    pub async fn run(&self, control: Control, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let mut round = 0_u32;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.look() {
                Look::Same => {}
                Look::Jumped(by_ms) => tracing::error!(
                    seconds = by_ms / 1000,
                    "the clock has jumped: nothing is issued and nothing expires until it is right again, or `muster-aggregator clock confirm` says that it is"
                ),
                Look::Believed => tracing::warn!("the clock is believed again"),
            }
            let outcome = self
                .exchange(&control, round.is_multiple_of(KEEP_EVERY))
                .await;
            if let Err(error) = outcome {
                tracing::warn!(error = crate::chain(&error), "the time cannot be kept");
            }
            round = round.wrapping_add(1);
        }
    }

    async fn exchange(&self, control: &Control, keep: bool) -> Result<(), ControlError> {
        let mut confirmed = false;
        if self.in_doubt() && control.take_clock_confirmation(self.wall.now()).await? {
            self.confirm();
            confirmed = true;
            tracing::warn!("an operator confirmed the clock");
        }
        // A time that may still be stepped back must not be what no step goes back behind.
        if confirmed || (keep && !is_settling(self.boot.since_boot_ms())) {
            control.keep_time(self.keep()).await?;
        }
        Ok(())
    }
}

impl Clock for GuardedClock {
    /// What is believed: the wall clock, and while that is in doubt the time before, going on.
    fn now(&self) -> Timestamp {
        if self.is_near() {
            return self.wall.now();
        }
        Timestamp::from_millis(self.offset.load(Ordering::Relaxed) + self.boot.since_boot_ms())
    }

    /// Nothing is issued then, and nothing refused for good as from the future.
    fn in_doubt(&self) -> bool {
        // A jump is not believed even before the next look at it.
        self.doubt_since.load(Ordering::Relaxed) != NO_DOUBT || !self.is_near()
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::time::FakeClock;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    const HOUR: i64 = 3_600_000;

    struct FakeBoot(Arc<AtomicI64>, &'static str);

    impl BootClock for FakeBoot {
        fn since_boot_ms(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }

        fn boot_id(&self) -> String {
            self.1.to_owned()
        }
    }

    struct Lab {
        wall: Arc<FakeClock>,
        boot: Arc<AtomicI64>,
        guard: GuardedClock,
    }

    fn lab(kept: Option<&KeptTime>, boot_id: &'static str, since_boot: i64) -> Lab {
        let wall = Arc::new(FakeClock::at(NOW));
        let boot = Arc::new(AtomicI64::new(since_boot));
        let fake = FakeBoot(Arc::clone(&boot), boot_id);
        let clock = Arc::clone(&wall) as Arc<dyn Clock>;
        Lab {
            guard: GuardedClock::new(clock, Box::new(fake), kept),
            wall,
            boot,
        }
    }

    impl Lab {
        /// Time passes on both clocks.
        fn pass(&self, millis: i64) {
            self.boot.fetch_add(millis, Ordering::Relaxed);
            self.set_by(millis);
        }

        /// Somebody sets the wall clock.
        fn set_by(&self, millis: i64) {
            let now = self.wall.now().as_millis();
            self.wall.set(Timestamp::from_millis(now + millis));
        }
    }

    #[test]
    fn a_jump_is_not_believed_until_it_is_taken_back_confirmed_or_a_day_old() {
        for jump in [HOUR * 24 * 400, -HOUR * 24 * 400, HOUR + 1_000] {
            let lab = lab(None, "a", HOUR);
            lab.pass(HOUR * 100);
            assert_eq!(lab.guard.look(), Look::Same);
            let before = lab.guard.now();
            lab.set_by(jump);
            assert_eq!(lab.guard.now(), before, "at once, before anybody looked");
            assert_eq!(lab.guard.look(), Look::Jumped(jump));
            assert!(lab.guard.in_doubt());
            lab.pass(HOUR);
            assert_eq!(
                lab.guard.now(),
                before.plus(JUMP),
                "the time of before goes on"
            );
            assert_eq!(lab.guard.look(), Look::Same);
            lab.set_by(-jump);
            assert_eq!(lab.guard.look(), Look::Believed);
            assert!(!lab.guard.in_doubt());
            lab.set_by(jump);
            assert_eq!(lab.guard.look(), Look::Jumped(jump));
            lab.guard.confirm();
            assert_eq!(
                (lab.guard.look(), lab.guard.now()),
                (Look::Same, lab.wall.now())
            );
        }
        let lab = lab(None, "a", HOUR);
        lab.set_by(HOUR * 50);
        assert_eq!(lab.guard.look(), Look::Jumped(HOUR * 50));
        lab.pass(HOUR * 23);
        assert_eq!(lab.guard.look(), Look::Same);
        // It jumps again: the day begins anew.
        lab.set_by(HOUR * 5);
        assert_eq!(lab.guard.look(), Look::Jumped(HOUR * 55));
        lab.pass(HOUR * 23);
        assert_eq!(lab.guard.look(), Look::Same);
        lab.pass(HOUR);
        assert_eq!(lab.guard.look(), Look::Believed);
        assert_eq!(lab.guard.now(), lab.wall.now());
    }

    #[test]
    fn hosts_bear_out_that_it_was_this_machine_that_stood_still() {
        for (jump, expected) in [(2 * HOUR, true), (-2 * HOUR, false)] {
            let lab = lab(None, "a", HOUR * 100);
            let said = |passed: i64| Said {
                boot_id: vec![1; 16],
                wall_ms: NOW.as_millis() + passed,
                since_boot_ms: HOUR + passed,
            };
            let host = |number| HostId::from_bytes([number; 16]);
            let hear =
                |passed| (1..=4).find_map(|number| lab.guard.hear(host(number), &said(passed)));
            assert_eq!(hear(0), None, "nothing is in doubt");
            lab.set_by(jump);
            assert!(matches!(lab.guard.look(), Look::Jumped(_)));
            let borne_out = hear(jump);
            assert_eq!(borne_out.is_some(), expected, "{jump}");
            assert_eq!(borne_out, expected.then(|| lab.wall.now()));
        }
    }

    #[test]
    fn a_machine_that_learns_the_time_after_boot_is_believed() {
        let lab = lab(None, "a", 5_000);
        lab.set_by(HOUR * 9_000);
        assert!(!lab.guard.in_doubt());
        assert_eq!(lab.guard.look(), Look::Same);
        assert_eq!(lab.guard.now(), lab.wall.now());
        lab.set_by(-HOUR * 9_000);
        assert!(
            matches!(lab.guard.look(), Look::Jumped(_)),
            "but not that it is earlier"
        );
    }

    #[test]
    fn a_clock_in_local_time_that_is_set_right_after_boot_is_believed() {
        let now = NOW.as_millis();
        // Kept ten minutes before by the boot before; the machine begins two hours ahead.
        for (kept_before, doubted) in [(HOUR / 6, false), (HOUR * 9_000, false), (-HOUR, true)] {
            let kept = KeptTime {
                believed_ms: now - HOUR * 2 - kept_before,
                since_boot_ms: HOUR,
                boot_id: "a".to_owned(),
            };
            let lab = lab(Some(&kept), "b", 30_000);
            assert_eq!(lab.guard.look(), Look::Same);
            lab.pass(60_000);
            lab.set_by(-HOUR * 2);
            assert_eq!(lab.guard.in_doubt(), doubted, "behind what was kept");
            lab.guard.look();
            assert_eq!(lab.guard.in_doubt(), doubted);
            assert_eq!(lab.guard.now() == lab.wall.now(), !doubted);
        }
        let kept = KeptTime {
            believed_ms: now - HOUR * 9,
            since_boot_ms: HOUR,
            boot_id: "a".to_owned(),
        };
        let lab = lab(Some(&kept), "b", 30_000);
        lab.pass(HOUR);
        lab.guard.look();
        lab.set_by(-HOUR * 2);
        assert!(lab.guard.in_doubt(), "later it is a jump");
        let said = lab.guard.problem().expect("it is said");
        assert!(
            said.contains("samples") && said.contains("certificate"),
            "{said}"
        );
    }

    #[test]
    fn small_corrections_are_followed() {
        let lab = lab(None, "a", 0);
        for _ in 0..100 {
            lab.set_by(HOUR / 2);
            assert_eq!(lab.guard.look(), Look::Same);
        }
        assert_eq!(lab.guard.now(), lab.wall.now());
    }

    #[test]
    fn a_jump_while_the_program_was_down_is_noticed() {
        let kept = |believed_ms: i64, since_boot_ms| KeptTime {
            believed_ms,
            since_boot_ms,
            boot_id: "a".to_owned(),
        };
        let now = NOW.as_millis();
        for (kept, boot_id, since_boot, doubted) in [
            // The same boot: exactly as much has passed as since the boot.
            (kept(now - HOUR, HOUR), "a", HOUR * 2, false),
            (kept(now - HOUR * 400, HOUR), "a", HOUR * 2, true),
            (kept(now + HOUR * 400, HOUR), "a", HOUR * 2, true),
            // Another boot: it was off for any time, but never for less than none.
            (kept(now - HOUR * 9_000, HOUR), "b", 5_000, false),
            (kept(now + HOUR * 2, HOUR), "b", 5_000, true),
            (kept(now - HOUR * 9_000, HOUR), "", 5_000, false),
        ] {
            let lab = lab(Some(&kept), boot_id, since_boot);
            lab.guard.look();
            assert_eq!(lab.guard.in_doubt(), doubted, "{kept:?}");
        }
    }
}
