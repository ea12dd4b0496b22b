//! What people would have been told: the recorded changes of incidents once more through the fold that tells people.
//!
//! The store keeps every change that whoever tells people took in, with the moment of the round that took it in, and
//! the moments of rounds in which something followed from time alone ([`Turned`]). A round in between changed nothing.
//! So [`as_recorded`] runs exactly these rounds, and what was told then comes out of it. [`with_rules`] leaves out or
//! delays changes as other rules would have, and from the first of them on looks every second too, since something may
//! be due where nothing was.
//!
//! Incidents tell what rules do that are switched off, of another severity, or hold for longer. Other bounds and
//! shorter times need the samples: with what [`crate::rejudge`] made of these, [`with_samples`] tells it; without them such
//! changes are named and leave things as they were. Labels and names of hosts are those of today.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use muster_proto::{id::HostId, time::Timestamp};

mod samples;

pub use samples::{MADE_UP, Scope, open_at};

use super::{
    flap::Flap,
    hush::Hush,
    pages::{Lead, News, Pages, Subject, Telling, Turn, World},
    roster::Roster,
};
use crate::{
    control::Quiet,
    detect::{Severity, Transition, rules::Overrides},
    fleet::Enrolled,
};

/// Rounds a second apart are looked at for so long after a change: what waits was told by then, what is clear is
/// over, what flaps has settled. What an acknowledgement or a silence ends later has a recorded round of its own.
const SETTLES: Duration = Duration::from_secs(3600);

/// A moment at which whoever tells people took something in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turned {
    /// The round, by the aggregator's clock.
    pub at: Timestamp,
    /// The incident and what happened; `None`: something followed from time alone.
    pub turn: Option<(u64, Turn)>,
}

/// What is needed to tell it again.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// In their order.
    pub turns: Vec<Turned>,
    /// What the incidents are, by number.
    pub subjects: BTreeMap<u64, Subject>,
    /// Silences and windows, those that are over too.
    pub quiets: Vec<Quiet>,
    /// The hosts, as they are now.
    pub roster: Roster,
}

/// Something that people were told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// When.
    pub at: Timestamp,
    /// Number of the page.
    pub page: u64,
    /// `firing`, `resolved` …
    pub event: String,
}

/// The same with what it was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// When, which, why.
    pub said: Said,
    /// How bad.
    pub severity: Severity,
    /// The incident that gave the page its number.
    pub lead: Lead,
}

impl Told {
    fn of(telling: &Telling) -> Self {
        Self {
            said: Said {
                at: telling.at,
                page: telling.number,
                event: telling.event.as_str().to_owned(),
            },
            severity: telling.severity,
            lead: telling.lead.clone(),
        }
    }
}

/// What other rules come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Other {
    /// What would have been told.
    pub told: Vec<Told>,
    /// Rules whose change only samples could judge.
    pub not_judged: BTreeSet<String>,
}

/// What samples say of it, by the rules as they are and as they would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejudged {
    /// What would have been told by the rules as they are.
    pub again: Vec<Told>,
    /// And by the others.
    pub other: Other,
    /// Incidents of each rule that was judged.
    pub rules: BTreeMap<String, Counts>,
}

/// Incidents of a rule that opened in the time that is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// On record.
    pub recorded: u64,
    /// Of these, such as the samples give again.
    pub found: u64,
    /// Such as the samples give beside.
    pub beside: u64,
    /// By the other rules.
    pub then: u64,
}

/// What was told, from the record.
#[must_use]
pub fn as_recorded(script: &Script) -> Vec<Told> {
    told(script, &script.subjects, &script.turns, None)
}

/// What would have been told with `new` rules in place of the `old` ones.
#[must_use]
pub fn with_rules(
    script: &Script,
    hosts: &HashMap<HostId, Enrolled>,
    old: &Overrides,
    new: &Overrides,
) -> Other {
    other(script, hosts, (old, new), &Scope::default(), None)
}

/// The same, with what samples say by the `old` and the `new` rules of the hosts and rules of `scope`.
#[must_use]
pub fn with_samples(
    script: &Script,
    hosts: &HashMap<HostId, Enrolled>,
    (old, new): (&Overrides, &Overrides),
    scope: &Scope,
    said: [&[(HostId, Transition)]; 2],
    since: Timestamp,
) -> Rejudged {
    let mut known = samples::Known::of(script, scope);
    let [by_old, by_new] = said.map(|said| samples::replaced(script, scope, &mut known, said));
    let from = first_difference(&script.turns, &by_old.turns);
    let again = told(&by_old, &by_old.subjects, &by_old.turns, from);
    let from = first_difference(&script.turns, &by_new.turns);
    let other = other(&by_new, hosts, (old, new), scope, from);
    let mut rules: BTreeMap<String, Counts> = BTreeMap::new();
    for (rule, (all, _)) in samples::openings(script, scope, since) {
        rules.entry(rule).or_default().recorded = all;
    }
    for (rule, (all, recorded)) in samples::openings(&by_old, scope, since) {
        let counts = rules.entry(rule).or_default();
        (counts.found, counts.beside) = (recorded, all - recorded);
    }
    for (rule, (all, _)) in samples::openings(&by_new, scope, since) {
        rules.entry(rule).or_default().then = all;
    }
    Rejudged {
        again,
        other,
        rules,
    }
}

/// When two records part; `None` if they are the same.
fn first_difference(one: &[Turned], other: &[Turned]) -> Option<Timestamp> {
    let both = one.iter().zip(other);
    let parted = both.filter(|(one, other)| one != other);
    let parted = parted.map(|(one, other)| one.at.min(other.at)).next();
    let longer = if one.len() > other.len() { one } else { other };
    let rest = longer.get(one.len().min(other.len())).map(|one| one.at);
    parted.or(rest)
}

/// What follows from these turns; from `every_second` on something may be due where nothing was.
fn told(
    script: &Script,
    subjects: &BTreeMap<u64, Subject>,
    turns: &[Turned],
    every_second: Option<Timestamp>,
) -> Vec<Told> {
    let beside = |last: Option<Timestamp>| {
        last.filter(|last| every_second.is_some_and(|from| from <= *last))
    };
    let mut run = Run::new(script, subjects);
    let mut last: Option<Timestamp> = None;
    for round in turns.chunk_by(|one, next| one.at == next.at) {
        let at = round[0].at;
        run.seconds(beside(last), at);
        run.round(round);
        last = Some(at);
    }
    if let Some(last) = beside(last) {
        run.seconds(Some(last), last.plus(SETTLES));
    }
    run.told
}

/// What incidents tell of other rules. What samples have judged stays as it is.
fn other(
    script: &Script,
    hosts: &HashMap<HostId, Enrolled>,
    (old, new): (&Overrides, &Overrides),
    scope: &Scope,
    from: Option<Timestamp>,
) -> Other {
    let mut not_judged = BTreeSet::new();
    let mut subjects = script.subjects.clone();
    let mut delays: BTreeMap<u64, Option<Duration>> = BTreeMap::new();
    let mut differ = BTreeSet::new();
    for (number, subject) in &mut subjects {
        if scope.has(subject) {
            continue;
        }
        let change = old.change_to(new, &subject.rule, hosts.get(&subject.host));
        if change.needs_samples {
            not_judged.insert(subject.rule.clone());
        }
        if let Some((from, to)) = change.severity
            && subject.severity == from
        {
            subject.severity = to;
            differ.insert(*number);
        }
        if !change.enabled || change.later > Duration::ZERO {
            differ.insert(*number);
        }
        delays.insert(*number, change.enabled.then_some(change.later));
    }
    // Until the first change that is another one all goes as it went, round by round.
    let is_other = |one: &&Turned| one.turn.is_some_and(|(number, _)| differ.contains(&number));
    let first = script.turns.iter().find(is_other).map(|one| one.at);
    let from = first.into_iter().chain(from).min();
    let turns = delayed(&script.turns, &delays);
    Other {
        told: told(script, &subjects, &turns, from),
        not_judged,
    }
}

/// The turns with openings so much later; without those of incidents that there would not be, and without openings
/// that cleared before.
fn delayed(turns: &[Turned], delays: &BTreeMap<u64, Option<Duration>>) -> Vec<Turned> {
    let mut kept: Vec<Turned> = Vec::new();
    // Openings of each number that wait for their time, by place in `kept`.
    let mut waiting: HashMap<u64, usize> = HashMap::new();
    let mut dropped = BTreeSet::new();
    for one in turns {
        let Some((number, turn)) = one.turn else {
            kept.push(*one);
            continue;
        };
        // What is not known any more is as it was.
        let delay = delays.get(&number).copied().unwrap_or(Some(Duration::ZERO));
        let Some(delay) = delay else {
            continue;
        };
        match turn {
            Turn::Opened => {
                waiting.insert(number, kept.len());
                kept.push(Turned {
                    at: one.at.plus(delay),
                    ..*one
                });
            }
            Turn::Cleared => match waiting.remove(&number) {
                Some(opened) if kept[opened].at > one.at => {
                    dropped.insert(opened);
                }
                _ => kept.push(*one),
            },
            Turn::Acknowledged(_) | Turn::Unacknowledged => kept.push(*one),
        }
    }
    let mut place = 0;
    kept.retain(|_| {
        place += 1;
        !dropped.contains(&(place - 1))
    });
    kept.sort_by_key(|one| one.at);
    kept
}

/// The fold on its way through the record.
struct Run<'a> {
    script: &'a Script,
    subjects: &'a BTreeMap<u64, Subject>,
    pages: Pages,
    world: World,
    /// Moments at which a silence was made or ended, still to come.
    edges: Vec<Timestamp>,
    /// How often each kind has changed on its host, as the rows of incidents say it.
    flaps: HashMap<(HostId, String, String), Flap>,
    told: Vec<Told>,
}

impl<'a> Run<'a> {
    fn new(script: &'a Script, subjects: &'a BTreeMap<u64, Subject>) -> Self {
        let ends = script
            .quiets
            .iter()
            .filter_map(|quiet| quiet.ended.as_ref());
        let ends = ends.map(|(_, at)| *at);
        let mut edges: Vec<Timestamp> = script
            .quiets
            .iter()
            .map(|quiet| quiet.made)
            .chain(ends)
            .collect();
        edges.sort_unstable_by(|one, other| other.cmp(one));
        Self {
            script,
            subjects,
            pages: Pages::default(),
            world: World {
                roster: script.roster.clone(),
                hushes: Vec::new(),
            },
            edges,
            flaps: HashMap::new(),
            told: Vec::new(),
        }
    }

    /// Rounds a second apart, after one and before another, as long as anything can be due.
    fn seconds(&mut self, last: Option<Timestamp>, before: Timestamp) {
        let Some(last) = last else {
            return;
        };
        let until = before.min(last.plus(SETTLES));
        let mut at = last.plus(Duration::from_secs(1));
        while at < until {
            self.tick(at);
            at = at.plus(Duration::from_secs(1));
        }
    }

    fn round(&mut self, round: &[Turned]) {
        let Some(at) = round.first().map(|one| one.at) else {
            return;
        };
        for (number, turn) in round.iter().filter_map(|one| one.turn) {
            let Some(subject) = self.subjects.get(&number) else {
                continue;
            };
            let news = News {
                seq: 0,
                number,
                subject: subject.clone(),
                flap: self.flaps.get(&kind(subject)).copied().unwrap_or_default(),
                turn,
            };
            self.pages.news(news, at);
        }
        self.tick(at);
    }

    fn tick(&mut self, at: Timestamp) {
        if self.edges.last().is_some_and(|edge| *edge <= at) {
            while self.edges.last().is_some_and(|edge| *edge <= at) {
                self.edges.pop();
            }
            let known = self.script.quiets.iter().filter(|quiet| quiet.made <= at);
            let known = known.map(|quiet| Quiet {
                ended: quiet.ended.clone().filter(|(_, ended)| *ended <= at),
                ..quiet.clone()
            });
            self.world.hushes = known.filter_map(Hush::of).collect();
        }
        self.pages.tick(at, &self.world);
        let changes = self.pages.take();
        for (number, (_, flap)) in &changes.members {
            if let Some(subject) = self.subjects.get(number) {
                self.flaps.insert(kind(subject), *flap);
            }
        }
        self.told.extend(changes.tellings.iter().map(Told::of));
    }
}

fn kind(subject: &Subject) -> (HostId, String, String) {
    (subject.host, subject.rule.clone(), subject.subject.clone())
}

#[cfg(test)]
mod tests;
