//! A real store, a real fold, and the same once more from the record.

use fastrand::Rng;
use muster_proto::v1;

use super::*;
use crate::{
    control::{Ack, Consequence, Control, NewIncident, QuietKind, Resolution},
    incident::roster::Card,
};

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const RULES: [&str; 3] = ["check_failing", "unit_crash_looping", "conntrack_full"];

fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

fn roster() -> Roster {
    Roster::of((0..40).map(|number| {
        let labels = [("rack".to_owned(), format!("r{}", number / 8))];
        let card = Card {
            name: format!("h{number}"),
            labels: labels.into(),
            ..Card::default()
        };
        (host(number), card)
    }))
}

fn enrolled() -> HashMap<HostId, Enrolled> {
    let hosts = (0..40).map(|number| {
        let who = Enrolled {
            id: host(number),
            name: format!("h{number}"),
            labels: [("rack".to_owned(), format!("r{}", number / 8))].into(),
            facts: v1::HostFacts::default(),
            certificate_not_after: None,
        };
        (host(number), who)
    });
    hosts.collect()
}

/// The part of an aggregator that tells people, at moments of the test's choice.
struct Life {
    control: Control,
    pages: Pages,
    world: World,
    now: Timestamp,
    operations: u32,
}

impl Life {
    fn begin(folder: &std::path::Path) -> Self {
        Self {
            control: Control::open(folder).expect("the folder is ours"),
            pages: Pages::default(),
            world: World {
                roster: roster(),
                hushes: Vec::new(),
            },
            now: START,
            operations: 0,
        }
    }

    async fn open(&mut self, number: u8, rule: &str) {
        self.operations += 1;
        let new = NewIncident {
            op_id: format!("op {}", self.operations),
            host_id: host(number),
            rule: rule.to_owned(),
            subject: String::new(),
            severity: v1::Severity::Warning,
            summary: format!("{rule} on {number}"),
            evidence: String::new(),
            since: self.now,
            at: self.now,
        };
        self.control.open_incident(new).await.expect("written");
    }

    async fn clear(&mut self, number: u8, rule: &str) {
        self.operations += 1;
        let end = Resolution {
            op_id: format!("op {}", self.operations),
            host_id: host(number),
            rule: rule.to_owned(),
            subject: String::new(),
            evidence: String::new(),
            at: self.now,
        };
        self.control.resolve_incident(end).await.expect("written");
    }

    /// What the task that tells people does in a round.
    async fn round(&mut self) {
        let quiets = self.control.quiets(false, self.now).await.expect("reads");
        self.world.hushes = quiets.into_iter().filter_map(Hush::of).collect();
        let news = self.control.news(0).await.expect("reads");
        let through = news.last().map_or(0, |last| last.seq);
        for one in news {
            self.pages.news(one, self.now);
        }
        self.pages.tick(self.now, &self.world);
        let changes = self.pages.take();
        if through > 0 || !changes.is_empty() {
            let consequence = Consequence {
                changes,
                deliveries: Vec::new(),
                through,
                at: self.now,
            };
            self.control.conclude(consequence).await.expect("written");
        }
    }

    /// Rounds about a second apart.
    async fn pass(&mut self, seconds: u32, random: &mut Rng) {
        for _ in 0..seconds {
            self.now = self.now.plus(Duration::from_millis(990 + random.u64(..20)));
            self.round().await;
        }
    }

    async fn script(&self) -> (Script, Vec<Said>) {
        let record = self.control.turn_record().await.expect("reads");
        let script = Script {
            turns: record.turns,
            subjects: record.subjects,
            quiets: self.control.quiets(true, self.now).await.expect("reads"),
            roster: roster(),
        };
        (script, record.told)
    }
}

fn said(told: &[Told]) -> Vec<Said> {
    told.iter().map(|told| told.said.clone()).collect()
}

fn rules(text: &str) -> Overrides {
    Overrides::parse(text).expect("sound")
}

#[tokio::test]
async fn the_record_gives_exactly_what_was_told() {
    for seed in 0..3 {
        let folder = tempfile::tempdir().expect("a folder");
        let mut life = Life::begin(folder.path());
        let mut random = Rng::with_seed(seed);
        let mut open: BTreeSet<(u8, &str)> = BTreeSet::new();
        for _ in 0..40 {
            // A host, or a whole rack; something flaps, somebody sees to it, somebody wants to hear nothing.
            let rule = RULES[random.usize(..RULES.len())];
            let hosts = match random.u8(..4) {
                0 => {
                    let rack = random.u8(..5) * 8;
                    rack..rack + 8
                }
                _ => {
                    let one = random.u8(..40);
                    one..one + 1
                }
            };
            for number in hosts {
                if open.remove(&(number, rule)) {
                    life.clear(number, rule).await;
                } else {
                    open.insert((number, rule));
                    life.open(number, rule).await;
                }
            }
            match random.u8(..10) {
                0 => {
                    let ack = Ack {
                        by: "anna".to_owned(),
                        at: life.now,
                        until: random
                            .bool()
                            .then(|| life.now.plus(Duration::from_secs(40))),
                        text: String::new(),
                    };
                    // Which of the numbers there are is chance, too.
                    let number = random.u64(1..30);
                    life.control
                        .acknowledge(number, ack)
                        .await
                        .expect("written");
                }
                1 => {
                    let quiet = Quiet {
                        number: 0,
                        kind: QuietKind::Silence,
                        selector: format!("rack=r{}", random.u8(..5)),
                        rule: String::new(),
                        subject: String::new(),
                        starts: life.now,
                        ends: Some(life.now.plus(Duration::from_secs(random.u64(30..300)))),
                        weekly: None,
                        text: String::new(),
                        made_by: "anna".to_owned(),
                        made: life.now,
                        ended: None,
                    };
                    life.control.add_quiet(quiet).await.expect("written");
                }
                _ => {}
            }
            let seconds = [2, 25, 90, 200][random.usize(..4)];
            life.pass(seconds, &mut random).await;
        }
        life.pass(600, &mut random).await;
        let (script, told) = life.script().await;
        assert!(told.len() > 10, "seed {seed}: {} tellings", told.len());
        let mut again = said(&as_recorded(&script));
        let mut told = told;
        // Of one moment the store has no order of its own.
        again.sort();
        told.sort();
        assert_eq!(again, told, "seed {seed}");
        let same = with_rules(&script, &enrolled(), &rules(""), &rules(""));
        assert_eq!(same.told, as_recorded(&script), "seed {seed}");
        assert!(same.not_judged.is_empty());
    }
}

#[tokio::test]
async fn other_rules_tell_less() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut life = Life::begin(folder.path());
    let mut random = Rng::with_seed(1);
    // For a minute, for ten minutes, and another rule.
    life.open(1, "check_failing").await;
    life.pass(60, &mut random).await;
    life.clear(1, "check_failing").await;
    life.pass(400, &mut random).await;
    life.open(2, "check_failing").await;
    life.open(3, "conntrack_full").await;
    life.pass(600, &mut random).await;
    life.clear(2, "check_failing").await;
    life.clear(3, "conntrack_full").await;
    life.pass(400, &mut random).await;
    let (script, told) = life.script().await;
    assert_eq!(told.len(), 6);
    for (text, expected, severity, not_judged) in [
        ("", vec![1, 1, 2, 2, 3, 3], Severity::Warning, None),
        (
            "[[rules]]\nrule = \"check_failing\"\nenabled = false",
            vec![3, 3],
            Severity::Warning,
            None,
        ),
        (
            "[[rules]]\nrule = \"check_failing\"\nhosts = \"rack=r9\"\nenabled = false",
            vec![1, 1, 2, 2, 3, 3],
            Severity::Warning,
            None,
        ),
        (
            "[[rules]]\nrule = \"check_failing\"\nfor = \"5m\"",
            vec![2, 2, 3, 3],
            Severity::Warning,
            None,
        ),
        (
            "[[rules]]\nrule = \"check_failing\"\nseverity = \"info\"",
            vec![1, 1, 2, 2, 3, 3],
            Severity::Info,
            None,
        ),
        (
            "[[rules]]\nrule = \"conntrack_full\"\nabove = 0.95",
            vec![1, 1, 2, 2, 3, 3],
            Severity::Warning,
            Some("conntrack_full"),
        ),
    ] {
        let other = with_rules(&script, &enrolled(), &rules(""), &rules(text));
        let mut pages: Vec<u64> = other.told.iter().map(|one| one.said.page).collect();
        pages.sort_unstable();
        assert_eq!(pages, expected, "{text}");
        let of_checks = other
            .told
            .iter()
            .find(|one| one.lead.rule == "check_failing");
        if let Some(one) = of_checks {
            assert_eq!(one.severity, severity, "{text}");
        }
        let named: Vec<&str> = other.not_judged.iter().map(String::as_str).collect();
        assert_eq!(named, not_judged.into_iter().collect::<Vec<_>>(), "{text}");
    }
}
