//! False alarms and delays over four kinds of lines: the classes of design/detection.md.
//!
//! A heartbeat each second. A lost one never comes (over TCP it would come late, which is kinder); one that is
//! held back comes after those before it. Hosts learn for a day, then are watched.

use std::time::Duration;

use fastrand::Rng;
use muster_aggregator::fleet::{gaps::Gaps, liveness::silent_after};

const INTERVAL: Duration = Duration::from_secs(1);
const DAY: u64 = 86_400;
/// How often a shard judges.
const JUDGE_SECONDS: f64 = 0.5;
/// Deaths that are tried on each line.
const DEATHS: usize = 2000;

#[derive(Debug, Clone, Copy)]
enum Line {
    Clean,
    Lossy,
    Stalling,
    Bursty,
}

/// The arrivals of one host's heartbeats.
struct Host {
    line: Line,
    random: Rng,
    sent: f64,
    /// Nothing arrives before this.
    held_until: f64,
    burst_until: f64,
    last_arrival: f64,
}

impl Host {
    fn new(line: Line, seed: u64) -> Self {
        Self {
            line,
            random: Rng::with_seed(seed),
            sent: 0.0,
            held_until: 0.0,
            burst_until: 0.0,
            last_arrival: 0.0,
        }
    }

    /// When the next heartbeat arrives, as seconds.
    fn next(&mut self) -> f64 {
        loop {
            self.sent += 1.0;
            let lost = match self.line {
                Line::Lossy => 0.02,
                Line::Clean | Line::Stalling | Line::Bursty => 0.0005,
            };
            if self.random.f64() < lost {
                continue;
            }
            let mut latency = 0.02 + 0.03 * self.random.f64();
            match self.line {
                // A stall of 2 to 12 s about once an hour.
                Line::Stalling if self.random.f64() < 1.0 / 3600.0 => {
                    self.held_until = self.sent + 2.0 + 10.0 * self.random.f64();
                }
                // Half a minute of latencies up to 2 s, a few times an hour.
                Line::Bursty => {
                    if self.random.f64() < 4.0 / 3600.0 {
                        self.burst_until = self.sent + 30.0;
                    }
                    if self.sent < self.burst_until {
                        latency += 2.0 * self.random.f64().powi(2);
                    }
                }
                Line::Clean | Line::Lossy | Line::Stalling => {}
            }
            let arrival = (self.sent + latency)
                .max(self.held_until)
                .max(self.last_arrival);
            self.last_arrival = arrival;
            return arrival;
        }
    }
}

pub(crate) fn run(days: u32) {
    println!(
        "heartbeats of 1 s, {days} host-days a line after a day of learning; per 1000 host-days, and seconds from death"
    );
    println!(
        "{:<10} {:>12} {:>14} {:>22} {:>22}",
        "line", "false late", "false silent", "late p50/p99/max", "silent p50/p99/max"
    );
    for line in [Line::Clean, Line::Lossy, Line::Stalling, Line::Bursty] {
        let mut sum = Figures::default();
        for host in 0..days.div_ceil(10) {
            watch(line, u64::from(host), 10, &mut sum);
        }
        let per_thousand = |count: u32| f64::from(count) * 1000.0 / f64::from(sum.days);
        println!(
            "{:<10} {:>12.2} {:>14.2} {:>22} {:>22}",
            format!("{line:?}").to_lowercase(),
            per_thousand(sum.late),
            per_thousand(sum.silent),
            spread(&mut sum.until_late),
            spread(&mut sum.until_silent),
        );
    }
}

#[derive(Default)]
struct Figures {
    days: u32,
    late: u32,
    silent: u32,
    until_late: Vec<f64>,
    until_silent: Vec<f64>,
}

fn watch(line: Line, seed: u64, days: u32, sum: &mut Figures) {
    let mut host = Host::new(line, seed * 4 + line as u64);
    let mut deaths = Rng::with_seed(seed);
    let mut gaps = Gaps::default();
    let mut heard = host.next();
    let end = f64::from(days + 1) * DAY as f64;
    while heard < end {
        let arrival = host.next();
        let gap = arrival - heard;
        if heard > DAY as f64 {
            let late = gaps.late_after(INTERVAL);
            let silent = silent_after(INTERVAL, late).as_secs_f64();
            let late = late.as_secs_f64();
            sum.late += u32::from(gap > late);
            sum.silent += u32::from(gap > silent);
            let wanted = sum.until_late.len() < DEATHS;
            if wanted && deaths.f64() < 1e-3 {
                // Dead at some moment after this heartbeat; a shard looks twice a second.
                let died = gap.min(1.0) * deaths.f64();
                let look = JUDGE_SECONDS * deaths.f64();
                sum.until_late.push(late - died + look);
                sum.until_silent.push(silent - died + look);
            }
        }
        gaps.note(Duration::from_secs_f64(gap));
        heard = arrival;
    }
    sum.days += days;
}

fn spread(values: &mut [f64]) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let rank = |percent: usize| {
        let at = values.len().saturating_sub(1) * percent / 100;
        values.get(at).copied().unwrap_or(f64::NAN)
    };
    format!("{:.1} / {:.1} / {:.1}", rank(50), rank(99), rank(100))
}
