//! The table of faults, and what was said of each.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use muster_aggregator::fleet::silence::{Ended, Refused, Silence};
use muster_proto::v1::FinReason;

use crate::fleet::{Fleet, PER_RACK};

/// What happens, what is true of it while nothing is heard, and what once the host is back.
struct Fault {
    name: &'static str,
    /// What is right while the host is silent.
    silent: Silence,
    /// Whether anything that can be seen from outside before it is back tells that: a single host that has lost its power,
    /// is cut off or stands still shows the same, nothing. Of these `unknown` is right.
    knowable: bool,
    back: Silence,
    /// Brings it about; the hosts that it hits.
    run: fn(&mut Fleet, &mut Rng) -> Vec<usize>,
}

const FAULTS: [Fault; 19] = [
    Fault {
        name: "agent stopped",
        silent: Silence::Stopped,
        knowable: true,
        back: Silence::Stopped,
        run: stopped,
    },
    Fault {
        name: "shutdown",
        silent: Silence::Shutdown,
        knowable: true,
        back: Silence::Shutdown,
        run: shutdown,
    },
    Fault {
        name: "planned reboot",
        silent: Silence::Reboot,
        knowable: true,
        back: Silence::Reboot,
        run: reboot,
    },
    Fault {
        name: "planned reboot, late",
        silent: Silence::Overdue,
        knowable: true,
        back: Silence::Overdue,
        run: overdue,
    },
    Fault {
        name: "agent killed",
        silent: Silence::Crashed,
        knowable: true,
        back: Silence::Crashed,
        run: killed,
    },
    Fault {
        name: "agent killed for memory",
        silent: Silence::Crashed,
        knowable: true,
        back: Silence::Crashed,
        run: oom,
    },
    Fault {
        name: "bad release of agents",
        silent: Silence::Crashed,
        knowable: true,
        back: Silence::Crashed,
        run: release,
    },
    Fault {
        name: "host lost power",
        silent: Silence::Died,
        knowable: false,
        back: Silence::Died,
        run: power,
    },
    Fault {
        name: "host panics, back at once",
        silent: Silence::Died,
        knowable: true,
        back: Silence::Died,
        run: panic,
    },
    Fault {
        name: "rack lost power",
        silent: Silence::Network,
        knowable: true,
        back: Silence::Died,
        run: dark_rack,
    },
    Fault {
        name: "rack cut off",
        silent: Silence::Network,
        knowable: true,
        back: Silence::Network,
        run: cut_rack,
    },
    Fault {
        name: "rack reset, cut off",
        silent: Silence::Network,
        knowable: true,
        back: Silence::Network,
        run: reset_rack,
    },
    Fault {
        name: "one host cut off",
        silent: Silence::Network,
        knowable: false,
        back: Silence::Network,
        run: cut_host,
    },
    Fault {
        name: "certificate expired",
        silent: Silence::Certificate,
        knowable: true,
        back: Silence::Certificate,
        run: expired,
    },
    Fault {
        name: "certificate of others",
        silent: Silence::Certificate,
        knowable: true,
        back: Silence::Certificate,
        run: foreign,
    },
    Fault {
        name: "clock an hour ahead",
        silent: Silence::Clock,
        knowable: true,
        back: Silence::Clock,
        run: clock,
    },
    Fault {
        name: "out of memory",
        silent: Silence::Overloaded,
        knowable: true,
        back: Silence::Overloaded,
        run: strained,
    },
    Fault {
        name: "machine or agent paused",
        silent: Silence::Paused,
        knowable: false,
        back: Silence::Paused,
        run: paused,
    },
    Fault {
        name: "clone",
        silent: Silence::Clone,
        knowable: true,
        back: Silence::Clone,
        run: cloned,
    },
];

#[derive(Default)]
struct Score {
    right: u32,
    unknown: u32,
    wrong: u32,
}

impl Score {
    fn add(&mut self, said: Option<Silence>, truth: Silence) {
        match said {
            Some(said) if said == truth => self.right += 1,
            Some(Silence::Unknown) | None => self.unknown += 1,
            Some(_) => self.wrong += 1,
        }
    }

    fn line(&self) -> String {
        let all = f64::from(self.right + self.unknown + self.wrong);
        let share = |count: u32| 100.0 * f64::from(count) / all;
        format!(
            "right {:.1} %, unknown {:.1} %, wrong {:.1} %",
            share(self.right),
            share(self.unknown),
            share(self.wrong)
        )
    }
}

pub(crate) fn run(runs: u32) {
    println!(
        "\n{runs} runs of each fault, half at 1 s and half at 10 s; hosts by what was said of them"
    );
    println!("{:<26} {:<34} once back", "fault", "while silent");
    let (mut silent, mut back) = (Score::default(), Score::default());
    let mut knowable = Score::default();
    let mut others = 0;
    for (number, fault) in (0..).zip(&FAULTS) {
        let (mut said, mut told) = (BTreeMap::new(), BTreeMap::new());
        for run in 0..runs {
            let mut random = Rng::with_seed(number * 1_000_003 + u64::from(run));
            let interval = Duration::from_secs(if run % 2 == 0 { 1 } else { 10 });
            let mut fleet = Fleet::new(interval, &mut random);
            let hit = (fault.run)(&mut fleet, &mut random);
            for &at in &hit {
                let (now, then) = (fleet.presumed[at], fleet.concluded(at));
                *said.entry(word(now)).or_insert(0) += 1;
                *told.entry(word(then)).or_insert(0) += 1;
                silent.add(now, fault.silent);
                if fault.knowable {
                    knowable.add(now, fault.silent);
                }
                back.add(then, fault.back);
            }
            let bystanders = (0..fleet.presumed.len()).filter(|at| !hit.contains(at));
            others += bystanders
                .filter(|&at| fleet.presumed[at].is_some())
                .count();
        }
        println!("{:<26} {:<34} {}", fault.name, counts(&said), counts(&told));
    }
    println!("while silent: {}", silent.line());
    println!("of what can be known then: {}", knowable.line());
    println!("once back:    {}", back.line());
    println!("hosts called silent that were not: {others}");
    stalls(runs);
}

/// The aggregator stands still: nobody may be called silent for it.
fn stalls(runs: u32) {
    let mut accused = 0;
    for run in 0..runs {
        let mut random = Rng::with_seed(u64::from(run));
        let mut fleet = Fleet::new(Duration::from_secs(1), &mut random);
        fleet.stall(Duration::from_secs(random.u64(3..600)));
        fleet.pass(Duration::from_secs(120));
        accused += fleet.presumed.iter().flatten().count();
    }
    println!(
        "hosts called silent after {runs} stalls of the aggregator of 3 s to 10 min: {accused}"
    );
}

fn word(cause: Option<Silence>) -> &'static str {
    cause.map_or("-", |cause| Silence::word(cause.to_wire()))
}

fn counts(of: &BTreeMap<&str, u32>) -> String {
    let parts: Vec<String> = of
        .iter()
        .map(|(word, count)| format!("{word} {count}"))
        .collect();
    parts.join(", ")
}

const MINUTE: Duration = Duration::from_secs(60);

fn one(random: &mut Rng) -> usize {
    random.usize(..PER_RACK)
}

fn rack() -> Vec<usize> {
    (0..PER_RACK).collect()
}

fn said_goodbye(
    fleet: &mut Fleet,
    at: usize,
    reason: FinReason,
    away: Duration,
    boot: bool,
) -> Vec<usize> {
    fleet.goodbye(at, reason);
    fleet.pass(away);
    fleet.start(at, boot);
    fleet.pass(MINUTE);
    vec![at]
}

fn stopped(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    said_goodbye(fleet, one(random), FinReason::Stopped, MINUTE * 30, false)
}

fn shutdown(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    said_goodbye(fleet, one(random), FinReason::Shutdown, MINUTE * 30, true)
}

fn reboot(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let away = Duration::from_secs(random.u64(30..590));
    said_goodbye(fleet, one(random), FinReason::Reboot, away, true)
}

fn overdue(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let away = Duration::from_secs(random.u64(620..3000));
    said_goodbye(fleet, one(random), FinReason::Reboot, away, true)
}

/// The process ends; a kernel closes, or resets where something was still to be read.
fn kill(fleet: &mut Fleet, at: usize, random: &mut Rng) {
    fleet.machines[at].running = false;
    let how = if random.bool() {
        Ended::Closed
    } else {
        Ended::Reset
    };
    fleet.end(at, how);
}

fn killed(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    kill(fleet, at, random);
    fleet.pass(MINUTE * 3);
    fleet.start(at, false);
    fleet.pass(MINUTE);
    vec![at]
}

fn oom(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    fleet.machines[at].strain = 0.5 + random.f64() / 2.0;
    fleet.pass(MINUTE * 2);
    let hit = killed_at(fleet, at, random);
    fleet.machines[at].strain = 0.0;
    hit
}

fn killed_at(fleet: &mut Fleet, at: usize, random: &mut Rng) -> Vec<usize> {
    kill(fleet, at, random);
    fleet.pass(MINUTE * 3);
    fleet.start(at, false);
    fleet.pass(MINUTE);
    vec![at]
}

/// One host of each rack and some more, within seconds.
fn release(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let hit = vec![0, 1, PER_RACK, PER_RACK + 1, 2 * PER_RACK];
    for &at in &hit {
        kill(fleet, at, random);
        fleet.pass(Duration::from_secs(random.u64(..4)));
    }
    fleet.pass(MINUTE * 3);
    for &at in &hit {
        fleet.start(at, false);
    }
    fleet.pass(MINUTE);
    hit
}

fn dark(fleet: &mut Fleet, hit: Vec<usize>, minutes: u32) -> Vec<usize> {
    for &at in &hit {
        fleet.machines[at].running = false;
    }
    fleet.let_go(&hit);
    fleet.pass(MINUTE * minutes);
    for &at in &hit {
        fleet.start(at, true);
    }
    fleet.pass(MINUTE);
    hit
}

fn power(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    dark(fleet, vec![at], 10)
}

/// Back before its stream was given up: refused as another boot until it is.
fn panic(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    fleet.machines[at].running = false;
    fleet.pass(Duration::from_secs(12));
    fleet.refused(at, Refused::OtherBoot);
    fleet.pass(Duration::from_secs(15));
    fleet.end(at, Ended::ByUs);
    fleet.pass(MINUTE);
    fleet.start(at, true);
    fleet.pass(MINUTE);
    vec![at]
}

fn dark_rack(fleet: &mut Fleet, _: &mut Rng) -> Vec<usize> {
    dark(fleet, rack(), 10)
}

fn cut(fleet: &mut Fleet, hit: Vec<usize>, how: Option<Ended>, minutes: u32) -> Vec<usize> {
    for &at in &hit {
        fleet.machines[at].reachable = false;
        if let Some(how) = how {
            fleet.end(at, how);
        }
    }
    fleet.let_go(&if how.is_some() {
        Vec::new()
    } else {
        hit.clone()
    });
    fleet.pass(MINUTE * minutes);
    for &at in &hit {
        fleet.machines[at].reachable = true;
    }
    fleet.pass(MINUTE);
    hit
}

fn cut_rack(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    cut(fleet, rack(), None, random.u32(1..20))
}

fn reset_rack(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    cut(fleet, rack(), Some(Ended::Reset), random.u32(1..20))
}

fn cut_host(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    cut(fleet, vec![at], None, random.u32(1..20))
}

/// It tries again and again, and is refused each time, until someone mends it.
fn turned_away(fleet: &mut Fleet, at: usize, why: Refused) -> Vec<usize> {
    fleet.machines[at].reachable = false;
    fleet.end(at, Ended::ByUs);
    for _ in 0..20 {
        fleet.pass(Duration::from_secs(7));
        fleet.refused(at, why);
    }
    fleet.start(at, false);
    fleet.pass(MINUTE);
    vec![at]
}

fn expired(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    turned_away(fleet, one(random), Refused::Expired)
}

fn foreign(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    turned_away(fleet, one(random), Refused::NotOurs)
}

fn cloned(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    turned_away(fleet, one(random), Refused::Superseded)
}

/// Its samples are refused, and when its stream breaks it does not believe our certificate any more.
fn clock(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    fleet.machines[at].clock_ms = 3_600_000;
    fleet.pass(MINUTE);
    fleet.machines[at].reachable = false;
    fleet.end(at, Ended::Closed);
    fleet.pass(MINUTE * 3);
    fleet.machines[at].clock_ms = 0;
    fleet.machines[at].reachable = true;
    fleet.pass(MINUTE);
    vec![at]
}

fn stand_still(fleet: &mut Fleet, at: usize) -> Vec<usize> {
    fleet.machines[at].running = false;
    fleet.let_go(&[at]);
    fleet.pass(MINUTE * 2);
    fleet.machines[at].running = true;
    fleet.pass(MINUTE);
    vec![at]
}

fn strained(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    fleet.machines[at].strain = 0.4 + 0.6 * random.f64();
    fleet.pass(MINUTE * 2);
    stand_still(fleet, at)
}

fn paused(fleet: &mut Fleet, random: &mut Rng) -> Vec<usize> {
    let at = one(random);
    stand_still(fleet, at)
}
