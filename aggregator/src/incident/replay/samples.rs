//! From what samples say again to turns like those on record.
//!
//! Transitions go through [`OpenBook`], as live ones do, and come out as incidents: each under the number that the record
//! has for the same host, rule and subject at that time, else under one of its own, so that what was acknowledged stays
//! so and the two tellings can be compared by number. A turn that the record has too happens at its time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use muster_proto::{id::HostId, time::Timestamp};

use super::{Script, Turned};
use crate::{
    detect::{Opening, Severity, Transition},
    incident::{
        flap::Flap,
        machine::{self, Key, Op, OpenBook},
        pages::{Subject, Turn},
        store::OpenIncident,
    },
};

/// A turn follows its tick by no more than this: the way here, the store, and a round.
const FOLLOWS: Duration = Duration::from_secs(120);
/// What the record does not know follows its tick by this.
const USUALLY: Duration = Duration::from_secs(1);
/// Incidents that nobody ever saw are numbered from here on.
pub const MADE_UP: u64 = 1 << 40;

/// Hosts and rules that were judged again, and from when on.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// By host.
    pub rules: BTreeMap<HostId, BTreeSet<&'static str>>,
    /// From here on samples say what happened; before, the record.
    pub from: Timestamp,
}

impl Scope {
    /// Whether this was judged again.
    #[must_use]
    pub fn has(&self, subject: &Subject) -> bool {
        let rules = self.rules.get(&subject.host);
        rules.is_some_and(|rules| rules.contains(subject.rule.as_str()))
    }
}

/// One incident: when it was open, from its first opening to its last clearing.
#[derive(Debug, Clone)]
struct Life {
    number: u64,
    opened: Timestamp,
    cleared: Option<Timestamp>,
}

/// The incidents of each key: what the record has, and what was made up beside.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    lives: BTreeMap<Key, Vec<Life>>,
    made_up: u64,
}

impl Known {
    /// What the record has of what was judged again.
    #[must_use]
    pub(super) fn of(script: &Script, scope: &Scope) -> Self {
        let mut known = Self::default();
        let mut places: HashMap<u64, (Key, usize)> = HashMap::new();
        for (at, number, turn) in turns(script) {
            let Some(subject) = script.subjects.get(&number).filter(|one| scope.has(one)) else {
                continue;
            };
            let key = key(subject);
            let (key, place) = places.entry(number).or_insert_with(|| {
                let lives = known.lives.entry(key.clone()).or_default();
                lives.push(Life {
                    number,
                    opened: at,
                    cleared: None,
                });
                (key, lives.len() - 1)
            });
            if let Some(life) = known.lives.get_mut(key).and_then(|all| all.get_mut(*place)) {
                match turn {
                    Turn::Opened => life.cleared = None,
                    Turn::Cleared => life.cleared = Some(at),
                    Turn::Acknowledged(_) | Turn::Unacknowledged => {}
                }
            }
        }
        known
    }

    /// The first incident of the key that was open at some time of these and is not taken yet.
    fn number(
        &mut self,
        key: &Key,
        (opened, cleared): (Timestamp, Option<Timestamp>),
        taken: &mut BTreeSet<u64>,
    ) -> u64 {
        let lives = self.lives.entry(key.clone()).or_default();
        let ends = |at: Option<Timestamp>| at.map_or(i64::MAX, Timestamp::as_millis);
        let meets = |life: &&Life| {
            life.opened <= Timestamp::from_millis(ends(cleared)).plus(FOLLOWS)
                && opened <= Timestamp::from_millis(ends(life.cleared)).plus(FOLLOWS)
                && !taken.contains(&life.number)
        };
        let number = match lives.iter().find(meets) {
            Some(life) => life.number,
            None => {
                let number = MADE_UP + self.made_up;
                self.made_up += 1;
                lives.push(Life {
                    number,
                    opened,
                    cleared,
                });
                number
            }
        };
        taken.insert(number);
        number
    }
}

/// How many incidents of each rule that was judged again opened from a time on, and how many of them the record has.
#[must_use]
pub(super) fn openings(
    script: &Script,
    scope: &Scope,
    since: Timestamp,
) -> BTreeMap<String, (u64, u64)> {
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (at, number, turn) in turns(script) {
        let subject = script.subjects.get(&number).filter(|one| scope.has(one));
        if let Some(subject) = subject.filter(|_| turn == Turn::Opened && at >= since)
            && seen.insert(number)
        {
            let (all, recorded) = counts.entry(subject.rule.clone()).or_default();
            *all += 1;
            *recorded += u64::from(number < MADE_UP);
        }
    }
    counts
}

/// What was open at the begin, of what is judged again, as the engine takes it over.
#[must_use]
pub fn open_at(script: &Script, scope: &Scope) -> BTreeMap<HostId, Vec<Opening>> {
    let mut open: BTreeMap<HostId, Vec<Opening>> = BTreeMap::new();
    for number in open_numbers(script, scope) {
        if let Some(subject) = script.subjects.get(&number) {
            open.entry(subject.host).or_default().push(Opening {
                rule: subject.rule.clone(),
                subject: subject.subject.clone(),
                severity: subject.severity,
                since: subject.since,
            });
        }
    }
    open
}

fn open_numbers(script: &Script, scope: &Scope) -> BTreeSet<u64> {
    let mut open = BTreeSet::new();
    for (_, number, turn) in turns(script).take_while(|(at, ..)| *at < scope.from) {
        match turn {
            Turn::Opened => open.insert(number),
            Turn::Cleared => open.remove(&number),
            Turn::Acknowledged(_) | Turn::Unacknowledged => continue,
        };
    }
    open.retain(|number| {
        script
            .subjects
            .get(number)
            .is_some_and(|one| scope.has(one))
    });
    open
}

fn turns(script: &Script) -> impl Iterator<Item = (Timestamp, u64, Turn)> + '_ {
    let with_number = |one: &Turned| one.turn.map(|(number, turn)| (one.at, number, turn));
    script.turns.iter().filter_map(with_number)
}

fn key(subject: &Subject) -> Key {
    Key {
        host: subject.host,
        rule: subject.rule.clone(),
        subject: subject.subject.clone(),
    }
}

/// An incident on its way through the transitions.
struct Made {
    key: Key,
    severity: Severity,
    summary: String,
    since: Timestamp,
    /// Its number, of one that was open at the begin.
    number: Option<u64>,
    turns: Vec<(Timestamp, Turn)>,
}

/// The script with what the samples say in place of what the record says. Transitions of a host stand in their order.
#[must_use]
pub(super) fn replaced(
    script: &Script,
    scope: &Scope,
    known: &mut Known,
    transitions: &[(HostId, Transition)],
) -> Script {
    let mut taken = BTreeSet::new();
    let made = incidents(script, scope, transitions);
    let recorded = recorded_times(script);
    let mut subjects = script.subjects.clone();
    let mut added = Vec::new();
    // Those that go on have their numbers; the others must not take them.
    taken.extend(made.iter().filter_map(|one| one.number));
    for one in made {
        let first = one.turns.first().map_or(scope.from, |(at, _)| *at);
        let last = one.turns.last().filter(|(_, turn)| *turn == Turn::Cleared);
        let number = one.number.unwrap_or_else(|| {
            known.number(&one.key, (first, last.map(|(at, _)| *at)), &mut taken)
        });
        let id = match subjects.get(&number) {
            Some(subject) => subject.id.clone(),
            None => format!("replay-{number}"),
        };
        subjects.insert(
            number,
            Subject {
                id,
                host: one.key.host,
                rule: one.key.rule,
                subject: one.key.subject,
                severity: one.severity,
                summary: one.summary,
                evidence: String::new(),
                since: one.since,
            },
        );
        added.extend(one.turns.into_iter().map(|(at, turn)| Turned {
            at: time_of(&recorded, number, turn, at),
            turn: Some((number, turn)),
        }));
    }
    let stays = |one: &&Turned| {
        let Some((number, turn)) = one.turn else {
            return true;
        };
        let judged = script
            .subjects
            .get(&number)
            .is_some_and(|one| scope.has(one));
        match turn {
            _ if !judged || one.at < scope.from => true,
            Turn::Opened | Turn::Cleared => false,
            Turn::Acknowledged(_) | Turn::Unacknowledged => taken.contains(&number),
        }
    };
    let mut turns: Vec<Turned> = script.turns.iter().filter(stays).copied().collect();
    turns.extend(added);
    // Of one moment, in the order of the record; what that does not know comes last.
    let places = script.turns.iter().enumerate();
    let places: HashMap<(Timestamp, Option<u64>), usize> = places
        .map(|(place, one)| ((one.at, one.turn.map(|(number, _)| number)), place))
        .collect();
    turns.sort_by_key(|one| {
        let place = places.get(&(one.at, one.turn.map(|(number, _)| number)));
        (one.at, place.copied().unwrap_or(usize::MAX))
    });
    Script {
        turns,
        subjects,
        quiets: script.quiets.clone(),
        roster: script.roster.clone(),
    }
}

/// When the record has each turn of a number.
type Times = HashMap<u64, Vec<(Timestamp, Turn)>>;

fn recorded_times(script: &Script) -> Times {
    let mut times = Times::new();
    for (at, number, turn) in turns(script) {
        times.entry(number).or_default().push((at, turn));
    }
    times
}

/// When a turn was taken in, if it is on record; else when it would have been.
fn time_of(recorded: &Times, number: u64, turn: Turn, at: Timestamp) -> Timestamp {
    let same = |(then, other): &&(Timestamp, Turn)| {
        *other == turn && at <= *then && then.since(at) <= FOLLOWS
    };
    let found = recorded.get(&number).and_then(|all| all.iter().find(same));
    found.map_or_else(|| at.plus(USUALLY), |(then, _)| *then)
}

/// The incidents that transitions come to, as the store would have made them.
fn incidents(script: &Script, scope: &Scope, transitions: &[(HostId, Transition)]) -> Vec<Made> {
    let mut book = OpenBook::default();
    let mut made: Vec<Made> = Vec::new();
    // The newest of each key: its place, and how often it changed.
    let mut newest: HashMap<Key, (usize, Flap)> = HashMap::new();
    for number in open_numbers(script, scope) {
        let Some(subject) = script.subjects.get(&number) else {
            continue;
        };
        let key = key(subject);
        book.opened(OpenIncident {
            key: key.clone(),
            severity: subject.severity,
            since: subject.since,
        });
        newest.insert(key.clone(), (made.len(), Flap::default()));
        made.push(Made {
            key,
            severity: subject.severity,
            summary: subject.summary.clone(),
            since: subject.since,
            number: Some(number),
            turns: Vec::new(),
        });
    }
    let mut ordered: Vec<&(HostId, Transition)> = transitions.iter().collect();
    ordered.sort_by_key(|(_, transition)| transition.at);
    for (host, transition) in ordered {
        let key = Key::of(*host, transition);
        while let Some(op) = book.next(*host, transition) {
            let at = transition.at;
            match op {
                Op::Resolve(_) => {
                    book.resolved(&key);
                    if let Some((place, flap)) = newest.get_mut(&key) {
                        flap.change(at);
                        made[*place].turns.push((at, Turn::Cleared));
                    }
                }
                Op::Open(new) => {
                    book.opened(OpenIncident {
                        key: key.clone(),
                        severity: transition.severity,
                        since: transition.since,
                    });
                    let last = newest.get_mut(&key).and_then(|(place, flap)| {
                        flap.settle(at);
                        let last = &made[*place];
                        let cleared = last.turns.last().map(|(at, _)| *at)?;
                        let same = last.severity == transition.severity;
                        (same && machine::goes_on(cleared, flap, at)).then_some(*place)
                    });
                    let place = last.unwrap_or(made.len());
                    if place == made.len() {
                        made.push(Made {
                            key: key.clone(),
                            severity: transition.severity,
                            summary: new.summary,
                            since: transition.since,
                            number: None,
                            turns: Vec::new(),
                        });
                    }
                    made[place].turns.push((at, Turn::Opened));
                    let (newest_place, flap) = newest.entry(key.clone()).or_default();
                    *newest_place = place;
                    flap.change(at);
                }
            }
        }
    }
    made
}
