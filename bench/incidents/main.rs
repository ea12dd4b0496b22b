//! What people would be told in a month: 1,000 hosts in 25 racks, five to a switch, and 20 roles; 179 faults of a rack, a
//! switch, a deployment, a host or a disk, every fourth followed by another within minutes. Virtual time, the very fold
//! that the aggregator runs, and the truth of which incident belongs to which fault.
//!
//! ```text
//! cargo run --release --example incidents -p muster-aggregator [-- SEEDS]
//! ```
//!
//! Prints, for each seed and for all: notifications per fault (mean, most), faults nobody was told of, purity of pages
//! (share of incidents that belong to the page's main fault), time from a fault's first incident to the first message about
//! it (median, most); and how long 10,000 incidents of one second take to be grouped.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use muster_aggregator::{
    detect::Severity,
    incident::{
        flap::Flap,
        pages::{Event, HOST_SILENT, News, Pages, Subject, Turn, World},
        roster::{Card, Roster},
    },
};
use muster_proto::{id::HostId, time::Timestamp};

const HOSTS: u64 = 1000;
const RACKS: u64 = 25;
const ROLES: u64 = 20;
const FAULTS: usize = 179;
const DAYS: u64 = 30;
const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn host(number: u64) -> HostId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    HostId::from_bytes(bytes)
}

fn world(hosts: u64) -> World {
    let per_rack = hosts / RACKS;
    let cards = (0..hosts).map(|number| {
        let rack = number / per_rack;
        let labels = [
            ("env".to_owned(), "prod".to_owned()),
            ("rack".to_owned(), format!("r{rack}")),
            ("role".to_owned(), format!("role{}", number * 7 % ROLES)),
            ("switch".to_owned(), format!("s{}", rack / 5)),
        ];
        let card = Card {
            name: format!("h{number}"),
            labels: labels.into(),
            ..Card::default()
        };
        (host(number), card)
    });
    World {
        roster: Roster::of(cards),
        hushes: Vec::new(),
    }
}

/// One incident of a fault: when it opens and clears, in seconds.
struct Planned {
    fault: usize,
    host: u64,
    rule: &'static str,
    subject: String,
    severity: Severity,
    opens: u64,
    clears: u64,
}

/// The incidents of a month.
fn plan(chance: &mut fastrand::Rng) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mut starts: Vec<u64> = Vec::new();
    while starts.len() < FAULTS {
        let at = chance.u64(0..DAYS * 86_400);
        starts.push(at);
        if chance.u32(0..4) == 0 && starts.len() < FAULTS {
            starts.push(at + chance.u64(60..300));
        }
    }
    for (fault, at) in starts.into_iter().enumerate() {
        match chance.u32(0..10) {
            0 => {
                let rack = chance.u64(0..RACKS);
                cut_off(&mut planned, chance, fault, at, rack * 40..rack * 40 + 40);
            }
            1 => {
                let switch = chance.u64(0..RACKS / 5);
                cut_off(
                    &mut planned,
                    chance,
                    fault,
                    at,
                    switch * 200..switch * 200 + 200,
                );
            }
            2 | 3 => deployment(&mut planned, chance, fault, at),
            4..7 => one_host(&mut planned, chance, fault, at),
            _ => disk(&mut planned, chance, fault, at),
        }
    }
    unseen(&mut planned);
    planned
}

/// What goes wrong on a host that is not heard is seen when it is heard again, if it still does.
fn unseen(planned: &mut Vec<Planned>) {
    let silences: Vec<(u64, u64, u64)> = planned
        .iter()
        .filter(|one| one.rule == HOST_SILENT)
        .map(|one| (one.host, one.opens, one.clears))
        .collect();
    planned.retain_mut(|one| {
        for (host, from, until) in &silences {
            if one.rule != HOST_SILENT && *host == one.host && (*from..*until).contains(&one.opens)
            {
                one.opens = until + 5;
            }
        }
        one.opens < one.clears
    });
}

/// A rack or switch: its hosts fall silent within a quarter of a minute, and come back within a minute and a half.
fn cut_off(
    planned: &mut Vec<Planned>,
    chance: &mut fastrand::Rng,
    fault: usize,
    at: u64,
    hosts: std::ops::Range<u64>,
) {
    let lasts = chance.u64(600..3600);
    for host in hosts {
        planned.push(Planned {
            fault,
            host,
            rule: HOST_SILENT,
            subject: String::new(),
            severity: Severity::Critical,
            opens: at + chance.u64(0..15),
            clears: at + lasts + chance.u64(0..90),
        });
    }
}

/// A bad version of one role, rolled out within a minute: the unit fails on most hosts, and some are busy with it.
fn deployment(planned: &mut Vec<Planned>, chance: &mut fastrand::Rng, fault: usize, at: u64) {
    let (role, lasts) = (chance.u64(0..ROLES), chance.u64(600..2400));
    for host in (0..HOSTS).filter(|number| number * 7 % ROLES == role) {
        let begins = at + chance.u64(0..60);
        let mut one = |rule, subject: &str, opens| {
            planned.push(Planned {
                fault,
                host,
                rule,
                subject: subject.to_owned(),
                severity: Severity::Warning,
                opens,
                clears: at + lasts + chance.u64(0..60),
            });
        };
        if host % 10 != 0 {
            one("unit_failed", "app.service", begins);
        }
        if host % 3 == 0 {
            one("cpu_saturated", "", begins + 20);
        }
    }
}

/// One host: it dies, or several of its units fail one after the other.
fn one_host(planned: &mut Vec<Planned>, chance: &mut fastrand::Rng, fault: usize, at: u64) {
    let (host, lasts) = (chance.u64(0..HOSTS), chance.u64(300..7200));
    let dies = chance.bool();
    for number in 0..chance.u64(1..5) {
        planned.push(Planned {
            fault,
            host,
            rule: if dies { HOST_SILENT } else { "unit_failed" },
            subject: if dies {
                String::new()
            } else {
                format!("u{fault}-{number}.service")
            },
            severity: if dies {
                Severity::Critical
            } else {
                Severity::Warning
            },
            opens: at + number * chance.u64(1..20),
            clears: at + lasts,
        });
        if dies {
            break;
        }
    }
}

/// A filesystem fills.
fn disk(planned: &mut Vec<Planned>, chance: &mut fastrand::Rng, fault: usize, at: u64) {
    planned.push(Planned {
        fault,
        host: chance.u64(0..HOSTS),
        rule: "filesystem_full",
        subject: format!("/srv/{fault}"),
        severity: Severity::Warning,
        opens: at,
        clears: at + chance.u64(1200..86_400),
    });
}

/// What a month came to.
#[derive(Default)]
struct Outcome {
    notifications: Vec<usize>,
    never: usize,
    pure: usize,
    members: usize,
    /// Seconds.
    first: Vec<u64>,
}

fn month(seed: u64) -> Outcome {
    let mut chance = fastrand::Rng::with_seed(seed);
    let planned = plan(&mut chance);
    let mut due: BTreeMap<u64, Vec<(usize, Turn)>> = BTreeMap::new();
    for (number, one) in planned.iter().enumerate() {
        due.entry(one.opens)
            .or_default()
            .push((number, Turn::Opened));
        let clears = one.clears.max(one.opens + 30);
        due.entry(clears).or_default().push((number, Turn::Cleared));
    }
    let (world, mut pages) = (world(HOSTS), Pages::default());
    // Incident to page, and page to its incidents; several faults may want one (host, rule, subject): the first has it.
    let mut of_page: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
    let mut taken: BTreeMap<(u64, &str, &str), usize> = BTreeMap::new();
    let mut hidden: BTreeSet<usize> = BTreeSet::new();
    let mut told: BTreeMap<usize, u64> = BTreeMap::new();
    let mut counts = vec![0; FAULTS];
    let mut outcome = Outcome::default();
    let mut now = 0;
    let mut busy_until = 0;
    while let Some(next) = due.first_entry() {
        if now < *next.key() && now > busy_until {
            now = *next.key();
        }
        let at = START.plus(Duration::from_secs(now));
        if *next.key() <= now {
            busy_until = now + 3 * 3600;
            for (number, turn) in next.remove() {
                let one = &planned[number];
                let key = (one.host, one.rule, one.subject.as_str());
                match turn {
                    Turn::Opened if taken.contains_key(&key) => {
                        hidden.insert(number);
                        continue;
                    }
                    Turn::Opened => {
                        taken.insert(key, number);
                    }
                    _ if taken.get(&key) == Some(&number) => {
                        taken.remove(&key);
                    }
                    _ => continue,
                }
                pages.news(news(number, one, turn), at);
            }
        }
        pages.tick(at, &world);
        let changes = pages.take();
        for (number, (page, _)) in &changes.members {
            if let (Some((page, _)), Ok(number)) = (page, usize::try_from(*number)) {
                of_page.entry(*page).or_default().insert(number);
            }
        }
        for telling in changes.tellings.iter().filter(|one| !one.event.is_end()) {
            let members = of_page.get(&telling.number).cloned().unwrap_or_default();
            let mut faults: BTreeMap<usize, usize> = BTreeMap::new();
            for number in &members {
                *faults.entry(planned[*number].fault).or_default() += 1;
            }
            if let Some((main, _)) = faults.iter().max_by_key(|(_, count)| **count) {
                counts[*main] += 1;
            }
            if matches!(telling.event, Event::Firing | Event::Grew) {
                for fault in faults.keys() {
                    told.entry(*fault).or_insert(now);
                }
            }
        }
        now += 1;
    }
    for (fault, &count) in counts.iter().enumerate() {
        let of_fault = planned
            .iter()
            .enumerate()
            .filter(|(_, one)| one.fault == fault);
        // What the same (host, rule, subject) of an earlier fault stands for cannot be told apart by anybody.
        let seen = of_fault.filter(|(number, _)| !hidden.contains(number));
        let Some(began) = seen.map(|(_, one)| one.opens).min() else {
            continue;
        };
        outcome.notifications.push(count);
        match told.get(&fault) {
            Some(at) => outcome.first.push(at.saturating_sub(began)),
            None => {
                outcome.never += 1;
                if std::env::var_os("EXPLAIN").is_some() {
                    let one = planned.iter().find(|one| one.fault == fault);
                    let one = one.map(|one| (one.host, one.rule, one.opens));
                    eprintln!("seed {seed}: fault {fault} was not told: {one:?}");
                }
            }
        }
    }
    for members in of_page.values() {
        let mut faults: BTreeMap<usize, usize> = BTreeMap::new();
        for number in members {
            *faults.entry(planned[*number].fault).or_default() += 1;
        }
        outcome.pure += faults.values().max().copied().unwrap_or(0);
        outcome.members += members.len();
    }
    outcome
}

fn news(number: usize, one: &Planned, turn: Turn) -> News {
    News {
        seq: 0,
        number: number as u64,
        subject: Subject {
            id: format!("id-{number}"),
            host: host(one.host),
            rule: one.rule.to_owned(),
            subject: one.subject.clone(),
            severity: one.severity,
            summary: one.rule.to_owned(),
            evidence: String::new(),
            since: START,
        },
        flap: Flap::default(),
        turn,
    }
}

fn line(name: &str, mut all: Outcome) {
    all.first.sort_unstable();
    let count = all.notifications.len().max(1);
    let sum: usize = all.notifications.iter().sum();
    println!(
        "{name:>6}  {count:>5} faults  notifications mean {:.3} most {}  not told {}  purity {:.4}  first after {} s, most {} s",
        sum as f64 / count as f64,
        all.notifications.iter().max().copied().unwrap_or(0),
        all.never,
        all.pure as f64 / all.members.max(1) as f64,
        all.first.get(all.first.len() / 2).copied().unwrap_or(0),
        all.first.last().copied().unwrap_or(0),
    );
}

/// How long 10,000 incidents that open within a second take, from the news to what is told.
/// CPU time of this thread so far, which says the same on a loaded machine; the first number of proc(5)'s schedstat, in
/// nanoseconds.
fn cpu_millis() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.map_or(f64::NAN, |nanos: f64| nanos / 1e6)
}

fn burst(hosts: u64, each: u64) {
    let world = world(hosts);
    let mut pages = Pages::default();
    let began = cpu_millis();
    for number in 0..hosts * each {
        let one = Planned {
            fault: 0,
            host: number % hosts,
            rule: if number % 2 == 0 {
                "unit_failed"
            } else {
                "cpu_saturated"
            },
            subject: format!("{}", number / hosts),
            severity: Severity::Warning,
            opens: 0,
            clears: 0,
        };
        let number = usize::try_from(number).unwrap_or(0);
        pages.news(news(number, &one, Turn::Opened), START);
    }
    let taken_in = cpu_millis() - began;
    let began = cpu_millis();
    pages.tick(START.plus(Duration::from_secs(20)), &world);
    let told = pages.take().tellings.len();
    println!(
        "{} incidents of {hosts} hosts: taken in within {taken_in:.0} ms of CPU, grouped within {:.0} ms into {told} pages",
        hosts * each,
        cpu_millis() - began
    );
}

fn main() {
    let seeds = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(5);
    let mut all = Outcome::default();
    for seed in 1..=seeds {
        let one = month(seed);
        all.notifications.extend(&one.notifications);
        all.first.extend(&one.first);
        all.never += one.never;
        all.pure += one.pure;
        all.members += one.members;
        line(&format!("seed {seed}"), one);
    }
    line("all", all);
    burst(1000, 10);
    burst(10_000, 1);
}
