//! The rules' numbers out of a host's series, and what they say.
//!
//! Which series a rule looks at is found once, when a series' name is interned ([`uses_of`]); at each tick the
//! fold hands over only those ([`Sample`]). Everything else here is a pure step.

use std::{collections::BTreeMap, sync::LazyLock};

use muster_proto::{
    catalog::{self, METRICS},
    series::Family,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{Definition, Reading, Value, overrides::Bounds, pack};
use crate::{
    detect::{Coverage, Findings, Observation, Reason, Severity, Verdict},
    fleet::SIGNALS,
};

/// Half of what a counter grew counts after this.
const RECENT_HALF_LIFE_SECONDS: f64 = 900.0;
/// Subjects of one rule whose growth is followed.
const MAX_GROWING: usize = 64;
/// What has faded to this is forgotten.
const FADED: f64 = 0.01;
/// Most subjects of a host of which something else is remembered: that they were seen at 0, or a promise.
const MAX_HELD: usize = 512;
/// A clock that shows seconds may be behind by one.
const CLOCK_SECONDS: f64 = 1.0;

/// A place of a series in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    rule: u8,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Value,
    Per,
    And,
    Done,
    Detail,
    Unless,
    /// Whether the rule's collector worked.
    Read,
    /// That the host does not have what the rule's collector reads.
    Absent,
}

/// Some rules of the pack, a bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleSet(u64);

impl RuleSet {
    /// Those that look at a series with these places.
    #[must_use]
    pub fn of(uses: &[Use]) -> Self {
        Self(
            uses.iter()
                .fold(0, |bits, used| bits | bit(used.rule.into())),
        )
    }

    /// Those of the pack that are so.
    fn that(is: impl Fn(usize, &Definition) -> bool) -> Self {
        let all = pack().iter().enumerate();
        let those = all.filter(|(at, definition)| is(*at, definition));
        Self(those.fold(0, |bits, (at, _)| bits | bit(at)))
    }

    /// These, and those.
    #[must_use]
    pub fn and(self, those: Self) -> Self {
        Self(self.0 | those.0)
    }

    /// These but for those.
    #[must_use]
    pub fn but(self, those: Self) -> Self {
        Self(self.0 & !those.0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn has(self, at: usize) -> bool {
        self.0 & bit(at) != 0
    }
}

/// The bit of a rule. There is none beyond the 64th, and a rule without one would not be shown its samples once the
/// others sleep: a test holds the pack to 64.
fn bit(at: usize) -> u64 {
    u32::try_from(at).map_or(0, |at| 1u64.checked_shl(at).unwrap_or(0))
}

/// What an engine need not look at again at a tick.
///
/// A rule sleeps when nothing that it looks at has another value or rate than when it was judged last, and nothing is
/// open or on its way of it: judged again it would say the same, which changed nothing. Most rules of most hosts look
/// at what stays as it is for days.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attention {
    /// The rules that sleep: samples of them may be left out.
    pub asleep: RuleSet,
    /// The host lists its collectors, whether the samples of that are here or not.
    pub lists_collectors: bool,
}

/// Rules whose word depends on the time too, or on a signal: they never sleep.
fn restless() -> RuleSet {
    static RESTLESS: LazyLock<RuleSet> = LazyLock::new(|| {
        RuleSet::that(|_, definition| {
            let timed = matches!(definition.value.reading, Reading::Age | Reading::Overdue);
            timed || definition.value.signal.is_some()
        })
    });
    *RESTLESS
}

/// Whether a series with these places says that a collector is there.
#[must_use]
pub fn lists_collector(uses: &[Use]) -> bool {
    uses.iter().any(|used| used.part == Part::Read)
}

/// One series of a host that a rule looks at, at one tick.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Where.
    pub used: Use,
    /// Its family and the values of its labels.
    pub family: &'a Family,
    /// One for each label of the family.
    pub labels: &'a [String],
    /// Its value.
    pub value: f64,
    /// What it grew by a second over the last tick or between its last two readings, where that is known.
    pub rate: Option<f64>,
    /// What it grew by since the tick before.
    pub grown: Option<f64>,
}

/// The places of a series in the rules of the pack.
#[must_use]
pub fn uses_of(family: &Family, labels: &[String]) -> Box<[Use]> {
    let mut uses = Vec::new();
    for (rule, definition) in (0..).zip(pack()) {
        let mut put = |part| uses.push(Use { rule, part });
        if definition.value.takes(family, labels) {
            put(Part::Value);
        }
        let is = |metric: Option<&str>| metric == Some(family.name.as_str());
        if is(definition.value.per.as_deref()) {
            put(Part::Per);
        }
        if is(definition.value.done.as_deref()) {
            put(Part::Done);
        }
        if definition
            .and
            .as_ref()
            .is_some_and(|and| and.takes(family, labels))
        {
            put(Part::And);
        }
        if is(definition.detail.as_ref().map(|detail| &*detail.metric)) {
            put(Part::Detail);
        }
        if is(definition.unless.as_deref()) {
            put(Part::Unless);
        }
        if definition.collector.is_some()
            && definition.collector.as_deref() == label(family, labels, "collector")
        {
            if is(Some(
                METRICS[catalog::SCRAPE_COLLECTOR_SUCCESS.0 as usize].name,
            )) {
                put(Part::Read);
            }
            if is(Some(
                METRICS[catalog::AGENT_COLLECTOR_ABSENT.0 as usize].name,
            )) {
                put(Part::Absent);
            }
        }
    }
    uses.into()
}

impl Value {
    fn takes(&self, family: &Family, labels: &[String]) -> bool {
        self.metric.as_deref() == Some(family.name.as_str())
            && self.labels.iter().all(|(key, allowed)| {
                let value = label(family, labels, key);
                value.is_some_and(|value| allowed.iter().any(|one| one == value))
            })
    }
}

/// Whether a rule looks at how a series grows, whatever its type says: /proc/vmstat's counters are untyped.
#[must_use]
pub fn need_rate(uses: &[Use]) -> bool {
    uses.iter().any(|used| {
        let Some(definition) = pack().get(usize::from(used.rule)) else {
            return false;
        };
        let grows = |reading| matches!(reading, Reading::Rate | Reading::Recent);
        match used.part {
            Part::Value => grows(definition.value.reading),
            Part::Per => definition.value.reading == Reading::Rate,
            Part::And => definition
                .and
                .as_ref()
                .is_some_and(|and| grows(and.reading)),
            Part::Done | Part::Detail | Part::Unless | Part::Read | Part::Absent => false,
        }
    })
}

fn label<'a>(family: &Family, labels: &'a [String], key: &str) -> Option<&'a str> {
    let at = family.labels.iter().position(|name| name == key)?;
    labels.get(at).map(String::as_str)
}

/// How much counters grew lately, by rule and subject; only of those that did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::detect) struct Grown {
    counts: BTreeMap<String, BTreeMap<String, f64>>,
    at: Option<Timestamp>,
    /// By checksum of a rule and a series: 0 once it was seen at 0, or the second that was promised.
    held: BTreeMap<u32, u32>,
    /// A series was at 0 at the last tick and there was no room to note it. The next tick tells it again.
    #[serde(skip)]
    unnoted: bool,
}

/// What tells a series of a rule from others, in few bytes: there is one for each filesystem and timer of each host.
fn held_as(rule: &str, labels: &[String]) -> u32 {
    let start = crc32c::crc32c(rule.as_bytes());
    labels.iter().fold(start, |sum, label| {
        crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0]), label.as_bytes())
    })
}

impl Grown {
    /// Lets what there is fade until `tick`, whose series come next.
    fn fade(&mut self, tick: Timestamp) {
        self.unnoted = false;
        let passed = self
            .at
            .replace(tick)
            .map_or(0.0, |at| tick.since(at).as_secs_f64());
        let left = 0.5_f64.powf(passed / RECENT_HALF_LIFE_SECONDS);
        self.counts.retain(|_, subjects| {
            subjects.retain(|_, count| {
                *count *= left;
                *count > FADED
            });
            !subjects.is_empty()
        });
    }

    fn add(&mut self, rule: &str, subject: &str, grown: f64) -> f64 {
        if grown > 0.0 {
            let subjects = self.counts.entry(rule.to_owned()).or_default();
            if subjects.contains_key(subject) || subjects.len() < MAX_GROWING {
                *subjects.entry(subject.to_owned()).or_default() += grown;
            }
        }
        let subjects = self.counts.get(rule);
        subjects
            .and_then(|subjects| subjects.get(subject))
            .copied()
            .unwrap_or(0.0)
    }

    /// Whether there is room for it.
    fn hold(&mut self, key: u32, second: u32) -> bool {
        let room = self.held.contains_key(&key) || self.held.len() < MAX_HELD;
        if room {
            self.held.insert(key, second);
        }
        room
    }

    /// The value of a series that matters only if it was 0 before.
    fn turned(&mut self, key: u32, value: f64) -> f64 {
        if value > 0.0 {
            return if self.held.contains_key(&key) {
                value
            } else {
                f64::NAN
            };
        }
        self.unnoted |= !self.hold(key, 0);
        0.0
    }

    /// How long a promise has not been kept, in seconds; `next` is what is promised now, `done` when one was last kept.
    ///
    /// A promise that is due stands, whatever is promised after it, until it is kept: a host that was off at that time
    /// promises the next day, and did not do what it should have. One that is not due yet is replaced by a new one.
    fn overdue(&mut self, key: u32, now: f64, next: Option<f64>, done: f64) -> Option<f64> {
        let held = self.held.get(&key).copied().map(f64::from);
        let due = held.filter(|due| now > *due && done + CLOCK_SECONDS < *due);
        if let (Some(due), Some(_)) = (due, next) {
            return Some(now - due);
        }
        match next.filter(|next| *next > done) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a float to integer cast saturates: no promise is made for after 2106"
            )]
            Some(next) => {
                self.hold(key, next as u32);
            }
            None => {
                self.held.remove(&key);
            }
        }
        next.map(|_| 0.0)
    }

    /// The rules that may sleep after a tick, of which nothing is open or on its way but for those that `follows` names.
    pub(in crate::detect) fn may_sleep(&self, follows: impl Fn(&str) -> bool) -> RuleSet {
        // What grew lately fades.
        let stirred = |name: &str| follows(name) || self.counts.contains_key(name);
        // As soon as there is room the 0 is to be noted, or the turn from it is missed.
        let waits = |reading| self.unnoted && reading == Reading::Turned;
        RuleSet::that(|_, definition| {
            !stirred(&definition.name) && !waits(definition.value.reading)
        })
        .but(restless())
    }

    pub(in crate::detect) fn forget_time(&mut self) {
        self.at = None;
        // Promises were made by that clock.
        self.held.retain(|_, second| *second == 0);
    }
}

/// What a number belongs to: its subject and, where it is one of two that are compared, all of its labels, so that
/// the temperature of one sensor is not held against the limit of another. Where the rule itself says what the other
/// labels are, the divisor does not have them, and the subject is all.
type Place<'a> = (&'a str, &'a [String]);

/// A map in a list: most have one entry, and there are some dozens of them at each tick of each host.
#[derive(Debug)]
struct Sorted<K, V>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> Sorted<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    /// The value of the key, which is `value` if it had none.
    fn or_insert(&mut self, key: K, value: V) -> &mut V {
        let at = match self.find(&key) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (key, value));
                at
            }
        };
        &mut self.0[at].1
    }

    fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }
}

/// The numbers of one rule at one tick.
#[derive(Debug, Default)]
struct Numbers<'a> {
    values: Sorted<Place<'a>, f64>,
    pers: Sorted<Place<'a>, f64>,
    and: Option<f64>,
    dones: Sorted<Place<'a>, f64>,
    details: Sorted<&'a str, &'a str>,
    unless: Sorted<&'a str, ()>,
    /// Whether the rule's collector worked, or had nothing to read; `None` where the host says nothing of it.
    read: Option<bool>,
    /// The host does not have what the rule's collector reads.
    absent: bool,
}

impl<'a> Numbers<'a> {
    fn take(
        &mut self,
        definition: &Definition,
        sample: &Sample<'a>,
        tick: Timestamp,
        grown: &mut Grown,
    ) {
        let subject = definition.subject.as_deref();
        let subject = subject.and_then(|key| label(sample.family, sample.labels, key));
        let subject = subject.unwrap_or("");
        let value = &definition.value;
        let compared = value.per.is_some() || value.done.is_some();
        let apart = compared && value.labels.is_empty();
        let labels = if apart { sample.labels } else { &[] };
        match sample.used.part {
            Part::Value => {
                if let Some(value) = read(definition, sample, subject, tick, grown) {
                    let kept = self.values.or_insert((subject, labels), value);
                    *kept = definition.worse(*kept, value);
                }
            }
            Part::Per => {
                let rate = definition.value.reading == Reading::Rate;
                let value = if rate {
                    sample.rate
                } else {
                    Some(sample.value)
                };
                if let Some(value) = value {
                    self.pers.insert((subject, labels), value);
                }
            }
            Part::And => self.and = sample.rate.or(self.and),
            Part::Done => {
                self.dones.insert((subject, labels), sample.value);
            }
            Part::Detail => {
                let key = definition.detail.as_ref().map(|detail| &*detail.label);
                let word = key.and_then(|key| label(sample.family, sample.labels, key));
                if let Some(word) = word.filter(|_| sample.value > 0.0) {
                    self.details.insert(subject, word);
                }
            }
            Part::Unless => {
                if sample.value > 0.0 {
                    self.unless.insert(subject, ());
                }
            }
            Part::Read => self.read = Some(self.read == Some(true) || sample.value > 0.0),
            Part::Absent => {
                if sample.value > 0.0 {
                    (self.read, self.absent) = (Some(true), true);
                }
            }
        }
    }
}

impl Numbers<'_> {
    /// Makes of what is promised for how long it has not been kept.
    fn settle(&mut self, definition: &Definition, tick: Timestamp, grown: &mut Grown) {
        let promised = std::mem::take(&mut self.values);
        for (place @ (_, labels), done) in &self.dones.0 {
            let key = held_as(&definition.name, labels);
            let next = promised.get(place).copied();
            if let Some(value) = grown.overdue(key, seconds(tick), next, *done) {
                self.values.insert(*place, value);
            }
        }
    }
}

impl Definition {
    /// The worse of two values.
    fn worse(&self, one: f64, other: f64) -> f64 {
        if self.below.is_some() {
            one.min(other)
        } else {
            one.max(other)
        }
    }
}

/// What all rules of the pack say of one tick.
pub(in crate::detect) struct Watcher<'a> {
    numbers: Vec<Numbers<'a>>,
    asleep: RuleSet,
    /// The host lists its collectors: one that is not among them is switched off.
    lists: bool,
}

impl<'a> Watcher<'a> {
    /// Takes the numbers out of what a host showed.
    pub(in crate::detect) fn new(
        seen: &'a Observation<'a>,
        attention: Attention,
        grown: &mut Grown,
    ) -> Self {
        let asleep = attention.asleep;
        grown.fade(seen.tick);
        let mut numbers: Vec<Numbers<'_>> = Vec::new();
        numbers.resize_with(pack().len(), Numbers::default);
        for sample in seen.samples {
            let rule = usize::from(sample.used.rule);
            if asleep.has(rule) {
                continue;
            }
            if let Some((definition, numbers)) = pack().get(rule).zip(numbers.get_mut(rule)) {
                numbers.take(definition, sample, seen.tick, grown);
            }
        }
        for (definition, numbers) in pack().iter().zip(&mut numbers) {
            if definition.value.reading == Reading::Overdue {
                numbers.settle(definition, seen.tick, grown);
            }
            let signal = definition.value.signal.as_deref();
            let at = signal.and_then(|name| SIGNALS.iter().position(|known| *known == name));
            let value = at.map(|at| f64::from(seen.signals[at]));
            if let Some(value) = value.filter(|value| value.is_finite()) {
                numbers.values.insert(("", &[]), value);
            }
        }
        let told = numbers.iter().any(|numbers| numbers.read.is_some());
        Self {
            numbers,
            asleep,
            lists: attention.lists_collectors || told,
        }
    }

    /// Whether the rule at this place of the pack would say what it said before.
    pub(in crate::detect) fn sleeps(&self, at: usize) -> bool {
        self.asleep.has(at)
    }

    /// Whether anything is known of the rule at this place of the pack.
    pub(in crate::detect) fn knows(&self, at: usize) -> bool {
        self.numbers
            .get(at)
            .is_some_and(|numbers| !numbers.values.0.is_empty())
    }

    /// What the rule at this place of the pack says, with an operator's bounds.
    pub(in crate::detect) fn judge(
        &self,
        at: usize,
        definition: &'static Definition,
        bounds: &Bounds,
        findings: &mut Findings<'_>,
    ) -> Coverage {
        let numbers = &self.numbers[at];
        // Places are in the order of their subjects, so those of one stand together.
        let mut worst: Vec<(&str, Option<f64>)> = Vec::new();
        for (place @ (subject, _), value) in &numbers.values.0 {
            if numbers.unless.get(subject).is_some() {
                continue;
            }
            let value = match &definition.value.per {
                Some(_) => numbers.pers.get(place).map(|per| value / per),
                None => Some(*value),
            };
            let value = value.filter(|value| value.is_finite());
            match worst.last_mut() {
                // One sensor that is not known does not hide that another is too hot.
                Some((last, kept)) if last == subject => {
                    *kept = match (*kept, value) {
                        (Some(kept), Some(value)) => Some(definition.worse(kept, value)),
                        (kept, value) => kept.or(value),
                    };
                }
                _ => worst.push((*subject, value)),
            }
        }
        for (subject, value) in worst {
            let detail = numbers.details.get(&subject).copied();
            let verdict = verdict(definition, bounds, value, detail, numbers.and);
            findings.add(subject, verdict);
        }
        if numbers.complete(definition, self.lists) {
            Coverage::Complete
        } else {
            Coverage::Partial
        }
    }
}

impl Numbers<'_> {
    /// Whether what is not named here is not there: by the word of the rule's collector, never because a number is
    /// missing. Of a subject it is enough that the collector works; the host as a whole does not go, so for a rule about
    /// it the collector must say that the host has no such thing, or be switched off there.
    fn complete(&self, definition: &Definition, lists: bool) -> bool {
        let named = !self.values.0.is_empty();
        let switched_off = definition.collector.is_some() && lists && self.read.is_none();
        match definition.subject {
            Some(_) => self.read.unwrap_or(named || switched_off),
            None => named || self.absent || switched_off,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970")]
fn seconds(tick: Timestamp) -> f64 {
    tick.as_millis() as f64 / 1000.0
}

fn read(
    definition: &Definition,
    sample: &Sample<'_>,
    subject: &str,
    tick: Timestamp,
    grown: &mut Grown,
) -> Option<f64> {
    match definition.value.reading {
        Reading::Value => Some(sample.value),
        Reading::Rate => sample.rate,
        Reading::Turned => {
            let key = held_as(&definition.name, sample.labels);
            Some(grown.turned(key, sample.value))
        }
        Reading::Age if sample.value > 0.0 => Some((seconds(tick) - sample.value).max(0.0)),
        Reading::Age => Some(0.0),
        // What is promised; `settle` makes the rest of it when all is known.
        Reading::Overdue => Some(sample.value),
        // Without growth in this tick it is not known, and what there was has faded.
        Reading::Recent => Some(grown.add(&definition.name, subject, sample.grown?)),
    }
}

fn verdict<'a>(
    definition: &'static Definition,
    bounds: &Bounds,
    value: Option<f64>,
    detail: Option<&'a str>,
    and: Option<f64>,
) -> Verdict<'a> {
    let Some(value) = value else {
        return Verdict::Unknown;
    };
    let opens = match (bounds.above, bounds.below) {
        (Some(above), _) => value > above,
        (None, Some(below)) => value < below,
        (None, None) => return Verdict::Unknown,
    };
    let clears = match bounds.above {
        Some(_) => value < bounds.clear,
        None => value > bounds.clear,
    };
    let reason = Reason::Number {
        definition,
        value,
        bounds: (bounds.above, bounds.below, bounds.clear),
        detail,
    };
    let tells_nothing = definition
        .above_is_unknown
        .is_some_and(|limit| value > limit);
    let rest_holds = definition
        .and_above
        .is_none_or(|least| and.is_some_and(|and| and > least));
    if tells_nothing {
        Verdict::Unknown
    } else if opens && rest_holds {
        let critical = bounds.critical_above.is_some_and(|bound| value > bound);
        Verdict::Abnormal {
            severity: if critical {
                Severity::Critical
            } else {
                bounds.severity
            },
            reason,
        }
    } else if clears {
        Verdict::Normal(reason)
    } else {
        Verdict::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_of_the_pack_has_a_bit() {
        for (at, definition) in pack().iter().enumerate() {
            assert_ne!(bit(at), 0, "{}", definition.name);
        }
    }

    #[test]
    fn a_rule_stays_awake_until_each_0_that_may_turn_is_noted() {
        let at = pack()
            .iter()
            .position(|definition| definition.value.reading == Reading::Turned);
        let at = at.expect("the pack has one");
        let mut grown = Grown::default();
        let tick = |grown: &mut Grown, key| {
            grown.fade(Timestamp::from_millis(0));
            grown.turned(key, 0.0);
            grown.may_sleep(|_| false).has(at)
        };
        // A timer, and filesystems for the rest of the room.
        grown.overdue(0, 0.0, Some(100.0), 0.0);
        for key in (1..).take(MAX_HELD - 1) {
            assert!(tick(&mut grown, key), "{key}");
        }
        assert!(!tick(&mut grown, u32::MAX), "there is no room for it");
        // The timer goes too late in the same tick to make room in it.
        grown.overdue(0, 0.0, None, 0.0);
        assert!(!grown.may_sleep(|_| false).has(at), "it is not noted yet");
        assert!(tick(&mut grown, u32::MAX), "it is noted");
        let turned = grown.turned(u32::MAX, 1.0);
        assert!(turned > 0.0, "so its turn is seen");
    }
}
