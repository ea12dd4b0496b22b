//! Leaks of memory: the protocol of design/detection.md.
//!
//! 200 hosts of each kind, a value every 10 min. All have the load of the day, less of it at the weekend, and the
//! saw-teeth of a collector of garbage. Leaks of 0.5 to 10 % of the memory a day begin within the first week and go
//! on until all is used; were they seen a day before? Caches that fill up and level off, and hosts on which nothing
//! grows, are watched for two weeks; was anyone called?

use std::ops::Range;

use fastrand::Rng;
use muster_aggregator::detect::memory_leak::Usage;
use muster_proto::time::Timestamp;

const HOSTS: u64 = 200;
const STEP_MINUTES: u32 = 10;
/// How long an alarm must hold: the rule's own time.
const HOLD_MINUTES: u32 = 30;

/// What a host has beside what grows on it.
struct Load {
    random: Rng,
    base: f64,
    daily: f64,
    noise: f64,
    tooth: f64,
    period_hours: f64,
}

impl Load {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        Self {
            base: 0.2 + 0.3 * random.f64(),
            daily: 0.02 + 0.13 * random.f64(),
            noise: 0.002 + 0.008 * random.f64(),
            tooth: 0.01 + 0.04 * random.f64(),
            period_hours: 0.5 + 5.5 * random.f64(),
            random,
        }
    }

    fn at(&mut self, hours: f64) -> f64 {
        let day = (hours / 24.0).floor() % 7.0;
        let busy = if day >= 5.0 { 0.6 } else { 1.0 };
        let of_day = 0.5 - 0.5 * (std::f64::consts::TAU * hours / 24.0).cos();
        let tooth = self.tooth * (hours % self.period_hours) / self.period_hours;
        let noise = self.noise * (self.random.f64() - 0.5);
        self.base + self.daily * busy * of_day + tooth + noise
    }
}

/// When the first alarm came, in hours, of a host that uses so much memory by the hour until `until`.
fn watch(until: f64, mut used: impl FnMut(f64) -> f64) -> (Option<f64>, f64) {
    let mut usage = Usage::default();
    let (mut held, mut alarm, mut step) = (0, None, 0_u32);
    loop {
        let hours = f64::from(step * STEP_MINUTES) / 60.0;
        let level = used(hours);
        if level >= 1.0 || hours >= until {
            return (alarm, hours);
        }
        let tick = 1_704_067_200_000 + i64::from(step) * i64::from(STEP_MINUTES) * 60_000;
        usage.step(Timestamp::from_millis(tick), level);
        held = if usage.alarm().is_some() {
            held + STEP_MINUTES
        } else {
            0
        };
        if held > HOLD_MINUTES {
            alarm.get_or_insert(hours);
        }
        step += 1;
    }
}

pub(crate) fn run() {
    println!("\nThe hosts that the constants were chosen on:");
    table(0..HOSTS);
    println!("Others:");
    table(10_000..10_000 + 2 * HOSTS);
}

fn table(seeds: Range<u64>) {
    let hosts = seeds.end - seeds.start;
    for (name, slow, fast) in [("0.5 to 1", 0.005, 0.01), ("1 to 10", 0.01, 0.1)] {
        let mut leads: Vec<f64> = seeds
            .clone()
            .map(|seed| {
                let mut load = Load::new(seed);
                let a_day = slow + (fast - slow) * load.random.f64();
                let begin = 24.0 * 7.0 * load.random.f64();
                let (alarm, end) = watch(24.0 * 365.0, |hours| {
                    load.at(hours) + a_day * (hours - begin).max(0.0) / 24.0
                });
                alarm.map_or(0.0, |alarm| end - alarm)
            })
            .collect();
        let seen = leads.iter().filter(|lead| **lead >= 24.0).count();
        println!(
            "leaks of {name} % a day: {:.1} % of {hosts} seen a day before the end; lead in hours p10/p50 {:.0} / {:.0}",
            100.0 * seen as f64 / hosts as f64,
            super::disk::rank(&mut leads, 10),
            super::disk::rank(&mut leads, 50),
        );
    }
    for name in ["caches that level off", "nothing grows"] {
        let called = seeds.clone().filter(|seed| {
            let mut load = Load::new(*seed);
            let cached = match name {
                "nothing grows" => 0.0,
                _ => (0.92 - load.base - load.daily - load.tooth) * (0.3 + 0.7 * load.random.f64()),
            };
            let days = 0.2 + 5.8 * load.random.f64();
            let (alarm, _) = watch(24.0 * 14.0, |hours| {
                load.at(hours) + cached * (1.0 - (-hours / 24.0 / days).exp())
            });
            alarm.is_some()
        });
        let called = called.count();
        let weeks = hosts as f64 * 2.0;
        println!(
            "{name}: {called} called in {weeks:.0} host-weeks, {:.1} in 1000",
            called as f64 * 1000.0 / weeks
        );
    }
    println!("state: {} bytes in memory", size_of::<Usage>());
}
