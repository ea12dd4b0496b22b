//! A fleet of plain values whose incidents come and go by the second; optionally everything is restored from what was
//! written after each second.

use std::collections::BTreeMap;

use super::*;
use crate::{
    control::{Quiet, QuietKind},
    incident::roster::Card,
};

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn host(number: u64) -> HostId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    HostId::from_bytes(bytes)
}

/// 1,000 hosts in 25 racks and 20 roles.
fn world() -> World {
    let hosts = (0..1000).map(|number| {
        let labels = [
            ("rack".to_owned(), format!("r{}", number / 40)),
            ("role".to_owned(), format!("role{}", number % 20)),
        ];
        let card = Card {
            name: format!("h{number:03}"),
            labels: labels.into(),
            ..Card::default()
        };
        (host(number), card)
    });
    World {
        roster: Roster::of(hosts),
        hushes: Vec::new(),
    }
}

struct Sim {
    pages: Pages,
    world: World,
    now: u64,
    /// The store's rows.
    written: (BTreeMap<u64, Page>, BTreeMap<u64, Member>),
    /// Number of what is or was open for a key.
    numbers: BTreeMap<(u64, String, String), u64>,
    next: u64,
    told: Vec<(u64, Telling)>,
    /// Restores from the rows after each second.
    kills: bool,
}

impl Sim {
    fn new() -> Self {
        Self {
            pages: Pages::default(),
            world: world(),
            now: 0,
            written: (BTreeMap::new(), BTreeMap::new()),
            numbers: BTreeMap::new(),
            next: 1,
            told: Vec::new(),
            kills: false,
        }
    }

    fn at(&self) -> Timestamp {
        START.plus(Duration::from_secs(self.now))
    }

    fn turn(&mut self, number: u64, subject: Subject, turn: Turn) {
        let row = self.written.1.get(&number);
        let flap = row.map(|row| row.flap).unwrap_or_default();
        let news = News {
            seq: 0,
            number,
            subject: subject.clone(),
            flap,
            turn,
        };
        let now = self.at();
        let row = self.written.1.entry(number).or_insert(Member {
            subject,
            open: true,
            flap: Flap::default(),
            ack: None,
            page: None,
        });
        match turn {
            Turn::Opened => (row.open, row.ack) = (true, None),
            Turn::Cleared => row.open = false,
            Turn::Acknowledged(until) => row.ack = Some(until),
            Turn::Unacknowledged => row.ack = None,
        }
        self.pages.news(news, now);
    }

    fn subject(at: u64, rule: &str, subject: &str, severity: Severity, number: u64) -> Subject {
        Subject {
            id: format!("id-{number}"),
            host: host(at),
            rule: rule.to_owned(),
            subject: subject.to_owned(),
            severity,
            summary: format!("{rule} {subject}"),
            evidence: String::new(),
            since: START,
        }
    }

    /// As the store does: what failed a moment ago goes on under its number.
    fn open(&mut self, at: u64, rule: &str, subject: &str) -> u64 {
        self.open_as(at, rule, subject, Severity::Warning)
    }

    fn open_as(&mut self, at: u64, rule: &str, subject: &str, severity: Severity) -> u64 {
        let key = (at, rule.to_owned(), subject.to_owned());
        let now = self.at();
        let again = self.numbers.get(&key).copied().filter(|number| {
            self.written.1.get(number).is_some_and(|row| {
                let lately = row.flap.flapping || now.since(row.flap.at) <= HOLD;
                row.ack.is_none() && lately && row.subject.severity == severity
            })
        });
        let number = again.unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.numbers.insert(key, number);
        let subject = Self::subject(at, rule, subject, severity, number);
        self.turn(number, subject, Turn::Opened);
        number
    }

    fn clear(&mut self, number: u64) {
        let subject = self.written.1[&number].subject.clone();
        self.turn(number, subject, Turn::Cleared);
    }

    fn ack(&mut self, number: u64, until: Option<u64>) {
        let subject = self.written.1[&number].subject.clone();
        let until = until.map(|at| START.plus(Duration::from_secs(at)));
        self.turn(number, subject, Turn::Acknowledged(until));
    }

    /// Lets seconds pass.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.pages.tick(self.at(), &self.world);
            let changes = self.pages.take();
            let (pages, members) = &mut self.written;
            pages.extend(changes.pages);
            pages.retain(|number, _| !changes.closed.contains(number));
            for (number, (page, flap)) in changes.members {
                if let Some(row) = members.get_mut(&number) {
                    (row.page, row.flap) = (page, flap);
                }
            }
            for number in changes.lapsed {
                if let Some(row) = members.get_mut(&number) {
                    row.ack = None;
                }
            }
            for telling in changes.tellings {
                self.told.push((self.now, telling));
            }
            if self.kills {
                let open = members.iter().filter(|(_, row)| {
                    row.open
                        || row.flap.flapping
                        || row.page.is_some_and(|(page, _)| pages.contains_key(&page))
                });
                let open = open.map(|(number, row)| (*number, row.clone()));
                self.pages = Pages::restore(pages.clone(), open);
            }
            self.now += 1;
        }
    }

    fn silence(&mut self, selector: &str, seconds: u64) {
        let quiet = Quiet {
            number: 3,
            kind: QuietKind::Silence,
            selector: selector.to_owned(),
            rule: String::new(),
            subject: String::new(),
            starts: START,
            ends: Some(self.at().plus(Duration::from_secs(seconds))),
            weekly: None,
            text: String::new(),
            made_by: "anna".to_owned(),
            made: START,
            ended: None,
        };
        self.world.hushes.extend(Hush::of(quiet));
    }

    /// When what was told of which page.
    fn said(&self) -> Vec<(u64, u64, &'static str)> {
        let told = self.told.iter();
        told.map(|(at, one)| (*at, one.number, one.event.as_str()))
            .collect()
    }

    /// The same without the times.
    fn events(&self) -> Vec<(u64, &'static str)> {
        self.said()
            .into_iter()
            .map(|(_, page, event)| (page, event))
            .collect()
    }
}

#[test]
fn a_failure_is_told_after_its_wait_and_its_end_after_the_hold() {
    let mut sim = Sim::new();
    let number = sim.open(1, "unit_failed", "cron.service");
    sim.pass(100);
    sim.clear(number);
    sim.pass(300);
    assert_eq!(sim.said(), [(20, 1, "firing"), (280, 1, "resolved")]);
    let keys: Vec<_> = sim
        .told
        .iter()
        .map(|(_, one)| (one.id.as_str(), one.ordinal))
        .collect();
    assert_eq!(keys, [("id-1", 0), ("id-1", 1)]);
}

#[test]
fn what_clears_at_once_is_not_told() {
    let mut sim = Sim::new();
    let number = sim.open(1, "unit_failed", "cron.service");
    sim.pass(15);
    sim.clear(number);
    sim.pass(600);
    assert_eq!(sim.said(), []);
    assert!(sim.pages.members.is_empty(), "and nothing of it is kept");
}

#[test]
fn what_toggles_for_an_hour_is_told_twice() {
    for every in [5, 10, 17, 30, 60, 90, 120] {
        for kills in [false, true] {
            for ends_failed in [false, true] {
                let mut sim = Sim::new();
                sim.kills = kills;
                let mut number = 0;
                let mut failed = false;
                while sim.now < 3600 || failed != ends_failed {
                    if failed {
                        sim.clear(number);
                    } else {
                        number = sim.open(1, "unit_failed", "cron.service");
                    }
                    failed = !failed;
                    sim.pass(every);
                }
                sim.pass(2 * 3600);
                let last = if ends_failed { "steady" } else { "resolved" };
                assert_eq!(
                    sim.events(),
                    [(1, "firing"), (1, last)],
                    "every {every} s, kills {kills}: {:?}",
                    sim.said()
                );
                assert_eq!(sim.next, 2, "one incident, not a stream of them");
            }
        }
    }
}

#[test]
fn a_rack_is_one_page_and_one_end() {
    let mut sim = Sim::new();
    let mut silent = Vec::new();
    for second in 0..10 {
        for number in 0..4 {
            let at = 120 + second * 4 + number;
            silent.push(sim.open_as(at, HOST_SILENT, "", Severity::Critical));
        }
        sim.pass(1);
    }
    sim.pass(60);
    assert_eq!(sim.said(), [(20, 1, "firing")]);
    let (_, telling) = &sim.told[0];
    assert_eq!(telling.hosts.len(), 40);
    let shared = match &telling.scope {
        Scope::Label(shared) => Some((shared.key.as_str(), shared.values.len())),
        _ => None,
    };
    assert_eq!(shared, Some(("rack", 1)));
    // They come back one by one.
    for number in silent {
        sim.clear(number);
        sim.pass(20);
    }
    sim.pass(300);
    assert_eq!(sim.events(), [(1, "firing"), (1, "resolved")]);
    assert!(sim.pages.members.is_empty() && sim.pages.of_host.values().all(BTreeMap::is_empty));
}

#[test]
fn a_rack_that_falls_slowly_widens_the_first_page() {
    let mut sim = Sim::new();
    for at in 0..40 {
        sim.open_as(at, HOST_SILENT, "", Severity::Critical);
        sim.pass(if at < 3 { 25 } else { 1 });
    }
    sim.pass(120);
    let mut events = sim.events();
    assert_eq!(events[..3], [(1, "firing"), (2, "firing"), (3, "firing")]);
    events.drain(..3);
    assert_eq!(events, [(2, "merged"), (3, "merged"), (1, "grew")]);
    assert_eq!(sim.pages.pages.len(), 1);
    assert_eq!(sim.pages.hosts_of(1), 40);
}

#[test]
fn an_independent_failure_inside_a_storm_is_told() {
    let mut sim = Sim::new();
    for at in 120..160 {
        sim.open(at, "unit_failed", "nginx.service");
    }
    sim.pass(300);
    // On a host of the storm, another kind; and another host with the storm's kind.
    sim.open(125, "filesystem_full", "/");
    sim.open(700, "unit_failed", "nginx.service");
    sim.pass(60);
    assert_eq!(
        sim.said(),
        [(20, 1, "firing"), (320, 41, "firing"), (320, 42, "firing")]
    );
    // A latecomer of the rack belongs to it.
    let late = sim.open(120, "unit_failed", "php.service");
    sim.pass(60);
    assert_eq!(sim.told.len(), 3);
    assert_eq!(sim.pages.page_of(late).map(|(page, _)| page), Some(1));
}

#[test]
fn two_kinds_of_one_fault_are_one_page() {
    let mut sim = Sim::new();
    for at in (7..1000).step_by(20) {
        sim.open(at, "unit_failed", "app.service");
    }
    sim.pass(8);
    for at in (7..1000).step_by(20) {
        sim.open(at, "cpu_saturated", "");
    }
    sim.pass(60);
    assert_eq!(sim.said(), [(20, 1, "firing")]);
    assert_eq!(sim.told[0].1.count, 100);
}

#[test]
fn hosts_without_anything_in_common_are_one_page_when_it_is_the_same() {
    let mut sim = Sim::new();
    for at in [3, 144, 285, 426, 567, 708] {
        sim.open(at, "unit_failed", "backup.service");
        sim.open(at + 1, "unit_failed", &format!("{at}.service"));
    }
    sim.pass(60);
    let pages: Vec<_> = sim.told.iter().map(|(_, one)| one.hosts.len()).collect();
    assert_eq!(pages, [6, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn a_silence_hides_until_it_ends() {
    let mut sim = Sim::new();
    sim.silence("name=h001", 500);
    let hidden = sim.open(1, "unit_failed", "cron.service");
    let gone = sim.open(1, "unit_failed", "php.service");
    sim.open(2, "unit_failed", "cron.service");
    sim.pass(100);
    let why = sim.pages.why_quiet(hidden, sim.at(), &sim.world);
    assert_eq!(why, Some(Why::Quiet("S-3".to_owned())));
    sim.clear(gone);
    sim.pass(900);
    assert_eq!(sim.said(), [(20, 3, "firing"), (500, 1, "firing")]);
}

#[test]
fn a_silent_host_hides_what_is_on_it() {
    let mut sim = Sim::new();
    let silent = sim.open_as(1, HOST_SILENT, "", Severity::Critical);
    let unit = sim.open(1, "unit_failed", "cron.service");
    sim.pass(400);
    assert_eq!(sim.events(), [(1, "firing")]);
    let why = sim.pages.why_quiet(unit, sim.at(), &sim.world);
    assert_eq!(why, Some(Why::Silent(silent)));
    // It is heard again, and what is on it still fails when that is sure.
    sim.clear(silent);
    sim.pass(HOLD.as_secs() + 1);
    assert_eq!(sim.events(), [(1, "firing"), (1, "resolved")]);
    sim.pass(2);
    assert_eq!(sim.events()[2..], [(2, "firing")]);
}

#[test]
fn a_rack_that_came_back_hides_nothing_while_one_of_it_stays_dead() {
    for kills in [false, true] {
        let mut sim = Sim::new();
        sim.kills = kills;
        let silent: Vec<u64> = (120..160)
            .map(|at| sim.open_as(at, HOST_SILENT, "", Severity::Critical))
            .collect();
        sim.pass(60);
        for number in &silent[1..] {
            sim.clear(*number);
        }
        sim.pass(30);
        // On one that is back, while that is not sure yet, and on the one that is not.
        let back = sim.open(130, "unit_failed", "cron.service");
        let dead = sim.open(120, "unit_failed", "cron.service");
        sim.pass(HOLD.as_secs() - 40);
        assert_eq!(sim.events(), [(1, "firing")]);
        let why = sim.pages.why_quiet(back, sim.at(), &sim.world);
        assert_eq!(why, Some(Why::Silent(silent[10])));
        sim.pass(30);
        assert_eq!(sim.events()[1..], [(back, "firing")]);
        let why = sim.pages.why_quiet(dead, sim.at(), &sim.world);
        assert_eq!(why, Some(Why::Silent(silent[0])));
        sim.pass(86_400);
        assert_eq!(sim.told.len(), 2, "{:?}", sim.said());
        assert_eq!(sim.pages.page_of(silent[39]).map(|(page, _)| page), Some(1));
    }
}

#[test]
fn a_failure_after_it_was_seen_to_is_told_in_a_page_of_many_hosts_too() {
    let mut sim = Sim::new();
    let failed: Vec<u64> = (120..160)
        .map(|at| sim.open(at, "unit_failed", "nginx.service"))
        .collect();
    sim.pass(60);
    sim.ack(failed[0], None);
    sim.clear(failed[0]);
    sim.pass(20);
    let again = sim.open(120, "unit_failed", "nginx.service");
    assert_ne!(again, failed[0]);
    // What somebody sees to on one host says nothing of the others of the rack.
    let other = sim.open(121, "unit_failed", "php.service");
    sim.pass(60);
    assert_eq!(sim.events(), [(1, "firing"), (again, "firing")]);
    assert_eq!(sim.pages.page_of(other).map(|(page, _)| page), Some(1));
}

#[test]
fn a_clock_that_is_set_back_keeps_nobody_waiting() {
    for kills in [false, true] {
        let mut sim = Sim::new();
        sim.kills = kills;
        sim.now = 7200;
        let told = sim.open(1, "unit_failed", "cron.service");
        sim.pass(60);
        sim.clear(told);
        sim.open(2, "unit_failed", "cron.service");
        sim.pass(5);
        sim.now -= 3600;
        let before = sim.now;
        sim.pass(1);
        assert_eq!(sim.said()[1..], [(before, 2, "firing")]);
        // Its host came into a page an hour from now: that is no fault of this minute.
        sim.open(1, "filesystem_full", "/");
        sim.pass(600);
        let end = before + HOLD.as_secs();
        assert_eq!(
            sim.said()[2..],
            [(before + 21, 3, "firing"), (end, 1, "resolved")]
        );
    }
}

#[test]
fn who_sees_to_it_is_not_told_again_until_they_said() {
    let mut sim = Sim::new();
    let first = sim.open(1, "unit_failed", "cron.service");
    sim.ack(first, None);
    sim.pass(100);
    assert_eq!(sim.said(), [], "somebody was faster");
    let second = sim.open(2, "unit_failed", "cron.service");
    sim.pass(50);
    sim.ack(second, Some(1000));
    sim.pass(1000);
    assert_eq!(sim.said(), [(120, 2, "firing"), (1000, 2, "reminder")]);
    // Once it has cleared, a new failure is a new page.
    let third = sim.open(3, "unit_failed", "cron.service");
    sim.pass(200);
    sim.ack(third, None);
    sim.clear(third);
    sim.pass(60);
    let again = sim.open(3, "unit_failed", "cron.service");
    assert_ne!(third, again);
    sim.pass(60);
    assert_eq!(sim.events()[2..], [(third, "firing"), (again, "firing")]);
}

#[test]
fn what_becomes_graver_is_told_and_goes_on_there() {
    let mut sim = Sim::new();
    let warning = sim.open(1, "filesystem_full", "/");
    sim.pass(60);
    sim.clear(warning);
    let critical = sim.open_as(1, "filesystem_full", "/", Severity::Critical);
    sim.pass(600);
    assert_eq!(
        sim.events(),
        [
            (warning, "firing"),
            (critical, "firing"),
            (warning, "merged")
        ]
    );
    assert_eq!(sim.told[2].1.into, Some(critical));
}

/// A few hosts of two racks that fail in every way, seeded.
fn storm(seed: u64, kills: bool) -> Sim {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut sim = Sim::new();
    sim.kills = kills;
    let mut open: Vec<u64> = Vec::new();
    for _ in 0..400 {
        match chance.u32(0..10) {
            0..4 => {
                let (rule, severity) = [
                    ("unit_failed", Severity::Warning),
                    ("filesystem_full", Severity::Critical),
                    (HOST_SILENT, Severity::Critical),
                ][chance.usize(0..3)];
                let number = sim.open_as(chance.u64(0..12) * 10, rule, "x", severity);
                if !open.contains(&number) {
                    open.push(number);
                }
            }
            4..8 if !open.is_empty() => {
                let number = open.swap_remove(chance.usize(0..open.len()));
                sim.clear(number);
            }
            8 if !open.is_empty() => {
                let number = open[chance.usize(0..open.len())];
                sim.ack(number, chance.bool().then_some(sim.now + 100));
            }
            _ => {}
        }
        sim.pass(chance.u64(1..40));
    }
    for number in open {
        sim.clear(number);
    }
    sim.pass(3 * 3600);
    sim
}

#[test]
fn a_kill_after_any_second_changes_nothing_and_every_page_ends_once() {
    for seed in 0..20 {
        let (calm, killed) = (storm(seed, false), storm(seed, true));
        assert_eq!(calm.said(), killed.said(), "seed {seed}");
        let mut ends: BTreeMap<(u64, Timestamp), usize> = BTreeMap::new();
        let mut keys = BTreeSet::new();
        for (_, one) in &calm.told {
            let key = (one.number, one.opened);
            *ends.entry(key).or_default() += usize::from(one.event.is_end());
            assert!(keys.insert((key, one.ordinal)), "a key is used once");
        }
        assert!(
            !ends.is_empty() && ends.values().all(|ends| *ends == 1),
            "seed {seed}: {ends:?}"
        );
        assert!(
            calm.pages.pages.is_empty() && calm.pages.members.is_empty(),
            "seed {seed}"
        );
    }
}
