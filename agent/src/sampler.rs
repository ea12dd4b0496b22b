//! When to take a sample, and which time it bears.
//!
//! Ticks lie at `k x interval + phase`, the phase drawn from the host's identity so that a fleet does not
//! speak in chorus. The time of a tick comes from CLOCK_BOOTTIME plus an offset that is taken from the wall
//! clock once, at the start, and corrected when an aggregator tells its time: a jump of the host's wall
//! clock bends no series, and a correction moves future ticks only. Ticks that were missed, because a round
//! took too long or the host slept, are counted and never made up for.
//!
//! Collecting, recording and shipping are separate rates: this file says when a round of collectors is due
//! and knows nothing of what becomes of it.

use std::{io, os::fd::OwnedFd, time::Duration};

use muster_proto::{
    id::HostId,
    limits,
    time::{Clock, SystemClock, Timestamp, duration_millis},
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time,
};

/// Wall clock and CLOCK_BOOTTIME of a host.
pub trait HostClock: Clock {
    /// Milliseconds since the kernel booted, time asleep included.
    fn boottime_ms(&self) -> i64;
}

impl HostClock for SystemClock {
    fn boottime_ms(&self) -> i64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec
            .saturating_mul(1000)
            .saturating_add(now.tv_nsec / 1_000_000)
    }
}

/// Difference below which the aggregator's time is taken to agree: what the route and two schedulers add.
const TOLERANCE: Duration = Duration::from_millis(250);

/// What fixes the ticks to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// UTC minus CLOCK_BOOTTIME, milliseconds.
    offset_ms: i64,
    interval: Duration,
}

impl Schedule {
    /// A schedule on the host's own clock.
    #[must_use]
    pub fn new(clock: &dyn HostClock, interval: Duration) -> Self {
        Self {
            offset_ms: clock
                .now()
                .millis_since(Timestamp::from_millis(clock.boottime_ms())),
            interval,
        }
    }

    /// Time between ticks.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// The time of an instant of CLOCK_BOOTTIME.
    #[must_use]
    pub fn at(&self, boottime_ms: i64) -> Timestamp {
        Timestamp::from_millis(boottime_ms.saturating_add(self.offset_ms))
    }

    /// The aggregator's clock showed `server` at `boottime_ms`, give or take `uncertainty`. Returns by how
    /// many milliseconds future ticks move; `None` when the clocks agree.
    pub fn correct(
        &mut self,
        server: Timestamp,
        boottime_ms: i64,
        uncertainty: Duration,
    ) -> Option<i64> {
        let difference = server.millis_since(self.at(boottime_ms));
        let tolerated = duration_millis(TOLERANCE.saturating_add(uncertainty));
        if difference.saturating_abs() <= tolerated {
            return None;
        }
        self.offset_ms = self.offset_ms.saturating_add(difference);
        Some(difference)
    }

    /// Brings the interval within the aggregator's bounds (milliseconds, 0 for none); true if it changed.
    pub fn bound(&mut self, wished: Duration, min_ms: u32, max_ms: u32) -> bool {
        let least = Duration::from_millis(min_ms.into()).max(limits::MIN_INTERVAL);
        let most = match max_ms {
            0 => limits::MAX_INTERVAL,
            ms => Duration::from_millis(ms.into()).min(limits::MAX_INTERVAL),
        };
        let interval = wished.max(least).min(most.max(limits::MIN_INTERVAL));
        let changed = interval != self.interval;
        self.interval = interval;
        changed
    }

    fn interval_ms(&self) -> i64 {
        duration_millis(self.interval).max(1)
    }

    /// The last tick at or before `now`.
    fn tick_before(&self, host: HostId, now: Timestamp) -> Timestamp {
        let interval = self.interval_ms();
        let phase = i64::try_from(host.spread() % interval.unsigned_abs()).unwrap_or(0);
        let since = now.as_millis().saturating_sub(phase).rem_euclid(interval);
        Timestamp::from_millis(now.as_millis() - since)
    }
}

/// A moment at which to sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// The scheduled time.
    pub at: Timestamp,
    /// CLOCK_BOOTTIME of the scheduled time, milliseconds.
    pub boottime_ms: i64,
    /// Ticks since the one before at which nothing was taken.
    pub missed: u64,
}

/// A timer of the kernel's on CLOCK_BOOTTIME. It wakes once for a tick, where tokio's timers wake twice for one that
/// is as far away as a second: first to sort it in among the near ones.
#[derive(Debug)]
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    /// What it is set to and has not rung for.
    set_to: Option<i64>,
}

impl Alarm {
    /// A timer that is not set; for a runtime of tokio that is running.
    ///
    /// # Errors
    /// What the kernel says when there can be no more descriptors.
    #[expect(
        deprecated,
        reason = "unsound for descriptors that close under it, which an OwnedFd does not; what replaces it is unsafe"
    )]
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Self {
            timer: AsyncFd::with_interest(timer, Interest::READABLE)?,
            set_to: None,
        })
    }

    /// Waits until CLOCK_BOOTTIME shows so many milliseconds, or now and then for nothing: the caller looks at the
    /// clock. Dropping the future loses nothing.
    async fn ring(&mut self, boottime_ms: i64) -> io::Result<()> {
        if self.set_to != Some(boottime_ms) {
            // Zero would switch it off.
            let at = boottime_ms.max(1);
            let once = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec {
                    tv_sec: at / 1000,
                    tv_nsec: at % 1000 * 1_000_000,
                },
            };
            timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
            self.set_to = Some(boottime_ms);
        }
        // It is set anew before it is waited for again, which also makes it unreadable: nobody has to read it.
        self.timer.readable().await?.clear_ready();
        self.set_to = None;
        Ok(())
    }
}

/// Gives the ticks of one host, one after the other.
pub struct Sampler<'a> {
    host: HostId,
    clock: &'a dyn HostClock,
    schedule: watch::Receiver<Schedule>,
    /// The last tick and the schedule it followed.
    last: Option<(Timestamp, Schedule)>,
    /// The last time given that was no tick, and the schedule it followed: after a step back of the clock, times
    /// before it are new ones.
    extra: Option<(Timestamp, Schedule)>,
    /// What wakes it; else tokio's timers do.
    alarm: Option<Alarm>,
}

impl<'a> Sampler<'a> {
    /// Ticks of `host` on a schedule that may change at any time.
    #[must_use]
    pub fn new(
        host: HostId,
        clock: &'a dyn HostClock,
        schedule: watch::Receiver<Schedule>,
    ) -> Self {
        Self {
            host,
            clock,
            schedule,
            last: None,
            extra: None,
            alarm: None,
        }
    }

    /// The same, woken by this timer. Only where `clock` is the machine's.
    #[must_use]
    pub fn woken_by(mut self, alarm: Option<Alarm>) -> Self {
        self.alarm = alarm;
        self
    }

    /// The present as the time of a round between two ticks, after all that were given before. Such a time
    /// lies off the grid, and is right there: what happened is told with the values of the moment at which
    /// it was seen, and to bear the time of a tick they would have to be older or newer than they are.
    /// Rates follow from the times of samples, whatever lies between them, and the grid stays where it is.
    /// `None` while a tick is due, which serves as well, or when the clock was set back.
    pub fn extra(&mut self) -> Option<Tick> {
        let schedule = *self.schedule.borrow();
        let boottime_ms = self.clock.boottime_ms();
        let at = schedule.at(boottime_ms);
        let (last, under) = self.last?;
        let is_due = under != schedule || at >= self.due_after(&schedule, at);
        let given = |(extra, under)| under == schedule && at <= extra;
        if is_due || at <= last || self.extra.is_some_and(given) {
            return None;
        }
        self.extra = Some((at, schedule));
        Some(Tick {
            at,
            boottime_ms,
            missed: 0,
        })
    }

    /// The present, whether or not a round can bear it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.schedule.borrow().at(self.clock.boottime_ms())
    }

    /// Waits for the next tick. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Tick {
        loop {
            let schedule = *self.schedule.borrow_and_update();
            let boottime_ms = self.clock.boottime_ms();
            let now = schedule.at(boottime_ms);
            let due = self.due_after(&schedule, now);
            let changed = {
                let left = due.since(now);
                let at = boottime_ms.saturating_add(duration_millis(left));
                let wait = wait(self.alarm.as_mut(), at, left);
                tokio::select! {
                    () = wait => false,
                    // A sender that is gone changes nothing any more.
                    Ok(()) = self.schedule.changed() => true,
                }
            };
            let boottime_ms = self.clock.boottime_ms();
            let now = schedule.at(boottime_ms);
            if changed || now < due {
                continue;
            }
            let at = schedule.tick_before(self.host, now);
            self.last = Some((at, schedule));
            return Tick {
                at,
                boottime_ms: boottime_ms - now.millis_since(at),
                missed: at.millis_since(due).unsigned_abs() / schedule.interval_ms().unsigned_abs(),
            };
        }
    }

    fn due_after(&self, schedule: &Schedule, now: Timestamp) -> Timestamp {
        match self.last {
            // Also when it has passed: it is then due at once, and those after it are missed.
            Some((last, under)) if under == *schedule => last.plus(schedule.interval()),
            last => {
                let next = schedule
                    .tick_before(self.host, now)
                    .plus(schedule.interval());
                // A small step back must not give one tick two samples.
                match last {
                    Some((last, _)) if last == next => next.plus(schedule.interval()),
                    _ => next,
                }
            }
        }
    }
}

/// Until CLOCK_BOOTTIME shows `boottime_ms`, which is `left` from now.
async fn wait(alarm: Option<&mut Alarm>, boottime_ms: i64, left: Duration) {
    if let Some(alarm) = alarm
        && !left.is_zero()
        && alarm.ring(boottime_ms).await.is_ok()
    {
        return;
    }
    time::sleep(left).await;
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    };

    use super::*;

    /// Boot time follows tokio's clock; the wall clock is that plus what a test sets.
    struct Host {
        started: time::Instant,
        asleep_ms: AtomicI64,
        wall_ms: AtomicI64,
    }

    impl Host {
        fn new(wall_ms: i64) -> Arc<Self> {
            Arc::new(Self {
                started: time::Instant::now(),
                asleep_ms: AtomicI64::new(0),
                wall_ms: AtomicI64::new(wall_ms),
            })
        }
    }

    impl Clock for Host {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.wall_ms.load(Ordering::SeqCst) + self.boottime_ms())
        }
    }

    impl HostClock for Host {
        fn boottime_ms(&self) -> i64 {
            duration_millis(self.started.elapsed()) + self.asleep_ms.load(Ordering::SeqCst)
        }
    }

    const TEN: Duration = Duration::from_secs(10);

    fn host_id(spread: u64) -> HostId {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&spread.to_le_bytes());
        HostId::from_bytes(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_lie_on_the_grid_of_the_host() {
        let host = Host::new(1_000_000_123_456);
        let (_sender, schedule) = watch::channel(Schedule::new(&*host, TEN));
        let mut sampler = Sampler::new(host_id(23_001), &*host, schedule);
        let mut ticks = Vec::new();
        for _ in 0..3 {
            ticks.push(sampler.next().await);
        }
        let at: Vec<_> = ticks.iter().map(|tick| tick.at.as_millis()).collect();
        assert_eq!(
            at,
            [1_000_000_133_001, 1_000_000_143_001, 1_000_000_153_001]
        );
        assert!(ticks.iter().all(|tick| tick.missed == 0));
    }

    #[tokio::test]
    async fn an_alarm_rings_when_it_is_time_and_again_when_it_is_set_again() {
        let now = || SystemClock.boottime_ms();
        let mut alarm = Alarm::new().expect("a timer");
        for _ in 0..3 {
            let at = now() + 20;
            while now() < at {
                alarm.ring(at).await.expect("rings");
            }
        }
        // Dropped while it waits, and asked for the same: it is set still.
        let at = now() + 30;
        let early = Duration::from_millis(1);
        assert!(time::timeout(early, alarm.ring(at)).await.is_err());
        assert_eq!(alarm.set_to, Some(at));
        // Another moment, which has passed.
        alarm.ring(now() - 1_000).await.expect("rings at once");
        assert_eq!(alarm.set_to, None);
    }

    #[tokio::test]
    async fn ticks_are_the_same_by_an_alarm() {
        let interval = Duration::from_millis(100);
        let clock = SystemClock;
        let (_sender, schedule) = watch::channel(Schedule::new(&clock, interval));
        let alarm = Alarm::new().expect("a timer");
        let mut sampler = Sampler::new(host_id(7), &clock, schedule).woken_by(Some(alarm));
        let first = sampler.next().await;
        let second = sampler.next().await;
        let steps = i64::try_from(second.missed).expect("few") + 1;
        assert_eq!(second.at.millis_since(first.at), 100 * steps);
        assert_eq!(second.at.as_millis().rem_euclid(100), 7);
        assert!(clock.boottime_ms() >= second.boottime_ms);
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_wall_clock_bends_nothing() {
        let host = Host::new(1_000_000);
        let (_sender, schedule) = watch::channel(Schedule::new(&*host, TEN));
        let mut sampler = Sampler::new(host_id(0), &*host, schedule);
        let first = sampler.next().await.at;
        host.wall_ms.store(9_000_000, Ordering::SeqCst);
        assert_eq!(sampler.next().await.at, first.plus(TEN));
    }

    #[tokio::test(start_paused = true)]
    async fn missed_ticks_are_counted_and_not_made_up_for() {
        let host = Host::new(1_000_000);
        let (_sender, schedule) = watch::channel(Schedule::new(&*host, TEN));
        let mut sampler = Sampler::new(host_id(0), &*host, schedule);
        let first = sampler.next().await;
        // A round that takes 34 s.
        time::advance(Duration::from_secs(34)).await;
        let second = sampler.next().await;
        assert_eq!((second.at, second.missed), (first.at.plus(TEN * 3), 2));
        // A night asleep: tokio's clock stands still, CLOCK_BOOTTIME does not.
        host.asleep_ms.store(3_600_000, Ordering::SeqCst);
        let third = sampler.next().await;
        assert_eq!(third.at.since(second.at).as_secs() % 10, 0);
        assert_eq!(third.missed, third.at.since(second.at).as_secs() / 10 - 1);
        assert_eq!(sampler.next().await.at, third.at.plus(TEN));
    }

    #[tokio::test(start_paused = true)]
    async fn extra_rounds_rise_between_ticks_and_leave_the_grid_alone() {
        let host = Host::new(1_000_000);
        let (sender, schedule) = watch::channel(Schedule::new(&*host, TEN));
        let mut sampler = Sampler::new(host_id(0), &*host, schedule);
        assert_eq!(sampler.extra(), None, "the first tick comes first");
        let first = sampler.next().await;
        assert_eq!(sampler.extra(), None, "not later than the tick");
        time::advance(Duration::from_millis(3_456)).await;
        let extra = sampler.extra().expect("between two ticks");
        assert_eq!(extra.at.millis_since(first.at), 3_456);
        assert_eq!(extra.boottime_ms - first.boottime_ms, 3_456);
        assert_eq!(sampler.extra(), None, "not twice at one time");
        assert_eq!(sampler.next().await.at, first.at.plus(TEN));
        time::advance(TEN).await;
        assert_eq!(sampler.extra(), None, "a tick is due");
        let last = sampler.next().await;
        time::advance(Duration::from_secs(2)).await;
        assert!(sampler.extra().is_some());
        sender.send_modify(|schedule| {
            let server = last.at.minus(Duration::from_secs(60));
            schedule.correct(server, host.boottime_ms(), Duration::ZERO);
        });
        assert_eq!(sampler.extra(), None, "the clock was set back");
        // The first tick of the new schedule lies before the extra round of the old one, and so do those after it.
        let back = sampler.next().await;
        assert!(back.at < last.at);
        time::advance(Duration::from_secs(1)).await;
        assert!(
            sampler.extra().is_some(),
            "a time of the schedule that holds"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_aggregators_time_moves_future_ticks_only() {
        for ahead in [-7_200_000, -3_000, 3_000, 86_400_000] {
            let host = Host::new(1_000_000_000);
            let (sender, schedule) = watch::channel(Schedule::new(&*host, TEN));
            let mut sampler = Sampler::new(host_id(4_000), &*host, schedule);
            let first = sampler.next().await;
            sender.send_modify(|schedule| {
                let server = schedule.at(host.boottime_ms() + ahead);
                let moved = schedule.correct(server, host.boottime_ms(), Duration::ZERO);
                assert_eq!(moved, Some(ahead));
            });
            let began = time::Instant::now();
            let second = sampler.next().await;
            let true_now = Timestamp::from_millis(host.now().as_millis() + ahead);
            assert!(
                true_now.millis_since(second.at) < 10,
                "stamped with the true time"
            );
            assert!(began.elapsed() <= TEN * 2, "{ahead}: {:?}", began.elapsed());
            assert_ne!(second.at, first.at);
            assert_eq!(second.at.as_millis().rem_euclid(10_000), 4_000);
        }
    }

    #[test]
    fn clocks_that_agree_within_the_route_are_left_alone() {
        let mut schedule = Schedule {
            offset_ms: 1_000,
            interval: TEN,
        };
        let mut correct = |server, uncertainty| {
            schedule.correct(
                Timestamp::from_millis(server),
                0,
                Duration::from_millis(uncertainty),
            )
        };
        assert_eq!(correct(1_250, 0), None);
        assert_eq!(correct(1_700, 500), None);
        assert_eq!(correct(700, 0), Some(-300));
        assert_eq!(correct(i64::MAX, 0).map(|by| by > 0), Some(true));
    }

    #[test]
    fn the_interval_keeps_to_the_bounds_of_both_sides() {
        // (wished, min, max, result), milliseconds
        for (wished, min, max, result) in [
            (10_000, 0, 0, 10_000),
            (1_000, 5_000, 60_000, 5_000),
            (600_000, 1_000, 60_000, 60_000),
            (10_000, 0, 10, 1_000),
            (10_000, u32::MAX, 0, 600_000),
        ] {
            let mut schedule = Schedule {
                offset_ms: 0,
                interval: TEN,
            };
            schedule.bound(Duration::from_millis(wished), min, max);
            assert_eq!(
                schedule.interval.as_millis(),
                result,
                "{wished} {min} {max}"
            );
        }
    }
}
