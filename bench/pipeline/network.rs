//! What networks and clocks do to a fleet.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    load::{Order, Report},
    proxy::{BAD, Weather},
    run::Run,
    scenarios::resident_bytes,
};

/// Longest bad weather of the kinds that show at once.
const WEATHER_MS: u64 = 5_000;

/// A black hole lasts longer than an agent waits for an acknowledgement (`MIN_PROGRESS` of
/// `agent/src/uplink/session.rs`).
const BLACKHOLE: Duration = Duration::from_secs(20);

/// The aggregator asks its database this often whether an operator has confirmed the clock, and twice is enough.
const CONFIRMED: Duration = Duration::from_secs(11);

/// Memory is looked at for so long before a partition.
const STEADY: Duration = Duration::from_secs(20);

/// Longest time in which a backlog may be drained.
const DRAINED: Duration = Duration::from_secs(15 * 60);

/// Of a small process a part of its memory is no measure.
const SMALL_MIB: f64 = 32.0;

/// Bad weather of one kind after the other between agents and aggregator.
pub(crate) fn weather(run: &mut Run, time: u32) -> anyhow::Result<()> {
    let bad = BAD[(time as usize - 1) % BAD.len()];
    let lasts = match bad {
        Weather::Blackhole => BLACKHOLE,
        _ => Duration::from_millis(run.random.u64(1_000..WEATHER_MS)),
    };
    run.weather(bad)?;
    thread::sleep(lasts);
    run.weather(Weather::Clear)
}

/// What is watched while a fleet comes back.
struct Healing {
    began: Instant,
    /// Frames each agent had made when the network healed.
    made: Vec<u64>,
    fresh: Vec<Option<Duration>>,
}

impl Healing {
    fn watch(&mut self, report: &Report) {
        let agents = self.fresh.iter_mut().zip(&self.made).zip(&report.agents);
        for ((fresh, made), agent) in agents {
            if agent.newest_durable > *made {
                fresh.get_or_insert(self.began.elapsed());
            }
        }
    }
}

/// All agents are cut off for hours, which pass as fast as they can fill their spools; then all come back with what
/// they have.
pub(crate) fn partition(run: &mut Run, hours: u64) -> anyhow::Result<()> {
    let mut steady = 0;
    let until = Instant::now() + STEADY;
    while Instant::now() < until {
        run.pass(Duration::from_secs(1))?;
        steady = resident_bytes(run)?.max(steady);
    }
    run.order(Order::Cut)?;
    let began = Instant::now();
    let gone = run.order(Order::Away(hours * 3600))?;
    eprintln!("{hours} h passed in {} s", began.elapsed().as_secs());
    run.clocks_ahead(i64::try_from(hours * 3600)?)?;
    run.installation.confirm_clock()?;
    thread::sleep(CONFIRMED);

    let backlog = gone.sum(|agent| agent.produced - agent.durable);
    let mut healing = Healing {
        began: Instant::now(),
        made: gone.agents.iter().map(|agent| agent.produced).collect(),
        fresh: vec![None; gone.agents.len()],
    };
    let mut report = run.order(Order::Heal)?;
    let mut most = steady;
    let is_back = |report: &Report, healing: &Healing| {
        let open = report.sum(|agent| agent.produced - agent.durable - agent.rejected - agent.lost);
        open <= report.agents.len() as u64 && healing.fresh.iter().all(Option::is_some)
    };
    while !is_back(&report, &healing) {
        ensure!(
            healing.began.elapsed() < DRAINED,
            "the backlog is not drained after a quarter of an hour"
        );
        thread::sleep(Duration::from_millis(100));
        report = run.load()?.books()?;
        healing.watch(&report);
        most = resident_bytes(run)?.max(most);
    }
    let drained = healing.began.elapsed();
    let fresh = healing.fresh.iter().flatten().max().copied();
    run.worst("backlog_frames", count(backlog));
    run.worst("fresh_seconds_max", fresh.unwrap_or_default().as_secs_f64());
    run.worst("drained_seconds", drained.as_secs_f64());
    run.worst("resident_mib_steady", mib(steady));
    run.worst("resident_mib_max", mib(most));
    run.worst("resident_ratio", count(most) / count(steady));
    let grown = mib(most) - mib(steady);
    ensure!(
        count(most) <= 1.5 * count(steady) || grown <= SMALL_MIB,
        "the aggregator grew from {:.0} to {:.0} MiB",
        mib(steady),
        mib(most)
    );
    let lost = report.sum(|agent| agent.lost + agent.rejected);
    ensure!(lost == 0, "{lost} frames were lost or refused");
    Ok(())
}

/// Jumps of a clock, in seconds: minutes, hours, a year, ten years.
const JUMPS: [i64; 4] = [300, 7_200, 31_536_000, 315_360_000];

/// A clock jumps, or all hosts sleep for a while.
pub(crate) fn clocks(run: &mut Run, time: u32) -> anyhow::Result<()> {
    let by = JUMPS[run.random.usize(..JUMPS.len())];
    let by = if run.random.bool() { by } else { -by };
    match time % 3 {
        // The agents' wall clocks: their ticks follow the time since boot.
        0 => {
            run.order(Order::Wall(by * 1000))?;
            run.pass(Duration::from_secs(2))?;
        }
        // The aggregator's, by so much that it doubts it; then it is set right.
        1 => {
            let by = if by.abs() < 7_200 { by * 24 } else { by };
            run.clocks_ahead(by)?;
            run.pass(Duration::from_secs(4))?;
            run.clocks_ahead(-by)?;
        }
        // Everybody slept.
        _ => {
            let by = by.abs().min(7_200) / 4;
            run.order(Order::Asleep(by * 1000))?;
            run.clocks_ahead(by)?;
            run.pass(Duration::from_secs(2))?;
        }
    }
    run.add("jumps", 1.0);
    let report = run.load()?.books()?;
    let refused = report.sum(|agent| agent.rejected + agent.lost);
    ensure!(refused == 0, "{refused} frames were refused or lost");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn count(value: u64) -> f64 {
    value as f64
}

fn mib(bytes: u64) -> f64 {
    count(bytes) / (1024.0 * 1024.0)
}
