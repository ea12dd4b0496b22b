//! What people are told: incidents gathered into pages, a pure fold over their changes and the time.
//!
//! | what happens | what becomes of it |
//! |---|---|
//! | an incident opens | it waits 20 s for others of the same fault |
//! | it clears before | nobody is told |
//! | a silence, a window, the silence of its host and three minutes more, an acknowledgement | it goes on waiting; told when that ends |
//! | its host is in a page for less than two minutes | it joins that page, nobody is told again |
//! | it is of the kind and the scope of a page that grew within ten minutes | the same |
//! | it is graver than the page, or failed anew after somebody had acknowledged it there | a page of its own |
//! | a label explains the hosts that fail alike (`enrich`) | one page for all of them |
//! | the same goes wrong on four hosts at once, and nothing explains it | the same |
//! | everything else | a page for each host |
//! | all of a page is clear for three minutes | it is closed, and told as resolved |
//! | an incident flaps (`flap`) | its page stays; told when it has settled |
//!
//! Who is told only of some hosts hears of a page when the first of them comes into it.
//!
//! A page is told once when it opens, when a wider scope has half as many hosts more, once when what flapped has settled,
//! once when an acknowledgement ran out, and once when it closes. Times are the aggregator's, handed in; nothing here
//! reads a clock or a disk, so a restart goes on from the rows of [`Changes`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use muster_proto::{id::HostId, time::Timestamp};
use serde::{Deserialize, Serialize};

mod group;

use super::{enrich::Shared, flap::Flap, hush::Hush, roster::Roster};
use crate::detect::Severity;

/// How long an incident waits for others before anybody is told (design/incidents.md, Grouping).
pub const WAIT: Duration = Duration::from_secs(20);
/// How long after a host came into a page what else goes wrong with it counts as the same fault. Longer hides a second
/// fault, shorter tells one fault twice; the simulator in `bench/incidents` measures both.
const SAME_FAULT: Duration = Duration::from_secs(120);
/// How long after its last addition a group takes in more hosts of its kind.
const GROWS: Duration = Duration::from_secs(600);
/// How long after it was opened a page can become part of a wider one.
const WIDENS: Duration = Duration::from_secs(120);
/// How long all must be clear before a page is over: longer than what toggles every two minutes is up.
pub const HOLD: Duration = Duration::from_secs(180);
/// By more than this no clock is set back without it being a step: what is dated later than that from now is taken as
/// long ago, so that nobody waits until the clock has come there again.
pub(super) const STEP_BACK: Duration = Duration::from_secs(60);
/// A page whose scope has become wider is told again when half as many hosts are new: a second rack is news.
const GREW_HALVES: u32 = 3;
/// Members that a message describes; the others are counted.
const DESCRIBED: usize = 10;
/// The rule whose incident says that nothing is heard of a host.
pub const HOST_SILENT: &str = "host_silent";

/// What an incident is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// UUIDv7.
    pub id: String,
    /// Which host.
    pub host: HostId,
    /// Which rule.
    pub rule: String,
    /// A mount point, a unit; empty for the host.
    pub subject: String,
    /// How bad.
    pub severity: Severity,
    /// One line for people.
    pub summary: String,
    /// What was seen when it opened.
    pub evidence: String,
    /// Since when it holds, by the host's clock.
    pub since: Timestamp,
}

/// How an incident changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It opened, or failed again.
    Opened,
    /// It cleared.
    Cleared,
    /// Somebody sees to it, until then or until it clears.
    Acknowledged(Option<Timestamp>),
    /// Nobody does any more.
    Unacknowledged,
}

/// A change of an incident.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// Place in the order of all changes.
    pub seq: i64,
    /// The incident.
    pub number: u64,
    /// What it is.
    pub subject: Subject,
    /// How often its kind has changed on that host before.
    pub flap: Flap,
    /// What happened.
    pub turn: Turn,
}

/// What the incidents of a page have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One host.
    Host(HostId),
    /// A label.
    Label(Shared),
    /// Only that it is the same, at once.
    Alike {
        /// Rule.
        rule: String,
        /// Subject.
        subject: String,
    },
}

/// An incident that is open, or part of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// What it is.
    pub subject: Subject,
    /// Whether it fails now.
    pub open: bool,
    /// How often it changed of late; its time is that of the last change.
    pub flap: Flap,
    /// Somebody sees to it; until when.
    pub ack: Option<Option<Timestamp>>,
    /// The page it is told under, and since when.
    pub page: Option<(u64, Timestamp)>,
}

/// The incident that gave a page its number, as it was when people were told first. Other systems know the page by it,
/// so it stays the same whatever becomes of the host's name and labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// Name of its rule.
    pub rule: String,
    /// Name of its host.
    pub host: String,
    /// Labels of its host.
    pub labels: BTreeMap<String, String>,
}

impl Lead {
    fn of(subject: &Subject, roster: &Roster) -> Self {
        let card = roster.card(subject.host);
        Self {
            rule: subject.rule.clone(),
            host: roster.name(subject.host),
            labels: card.map(|card| card.labels.clone()).unwrap_or_default(),
        }
    }
}

/// What people are told as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// UUIDv7 of its first incident: names it to other systems.
    pub id: String,
    /// What its incidents have in common.
    pub scope: Scope,
    /// What names it to other systems; `None` only of a page that was written before leads were, until the next look.
    pub lead: Option<Lead>,
    /// The gravest it was told with.
    pub severity: Severity,
    /// When people were told first.
    pub opened: Timestamp,
    /// When the last incident joined.
    pub grown: Timestamp,
    /// Since when all of it is clear.
    pub clear: Option<Timestamp>,
    /// Numbers the next telling.
    pub tellings: u32,
    /// Hosts it had when it was told last.
    pub told_hosts: u32,
}

/// Why people are told of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It opened.
    Firing,
    /// It is much wider than what was told.
    Grew,
    /// What flapped fails without a break now.
    Steady,
    /// An acknowledgement ran out, and it still fails.
    Reminder,
    /// It is over.
    Resolved,
    /// It goes on in another page.
    Merged,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Firing,
        Self::Grew,
        Self::Steady,
        Self::Reminder,
        Self::Resolved,
        Self::Merged,
    ];

    /// The word in keys, messages and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Grew => "grew",
            Self::Steady => "steady",
            Self::Reminder => "reminder",
            Self::Resolved => "resolved",
            Self::Merged => "merged",
        }
    }

    /// Whether the page is over with it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Resolved | Self::Merged)
    }
}

/// Something to tell people, with all that is known at that moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Telling {
    /// Number of the page.
    pub number: u64,
    /// UUIDv7 of the page.
    pub id: String,
    /// Why.
    pub event: Event,
    /// Counts the tellings of the page, from 0: with the id it names this one for ever.
    pub ordinal: u32,
    /// The page into which it went.
    pub into: Option<u64>,
    /// How bad.
    pub severity: Severity,
    /// What it is about.
    pub scope: Scope,
    /// The incident that gave it its number.
    pub lead: Lead,
    /// Hosts of it, sorted.
    pub hosts: Vec<HostId>,
    /// The gravest and first incidents.
    pub members: Vec<(u64, Member)>,
    /// How many there are.
    pub count: usize,
    /// Whether something of it flaps.
    pub flapping: bool,
    /// When people were told first.
    pub opened: Timestamp,
    /// Now.
    pub at: Timestamp,
}

/// What has to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Pages as they are now.
    pub pages: BTreeMap<u64, Page>,
    /// Pages that are over.
    pub closed: BTreeSet<u64>,
    /// Incidents: page, and how often they changed.
    pub members: BTreeMap<u64, (Option<(u64, Timestamp)>, Flap)>,
    /// Incidents that began to flap (true) or settled (false).
    pub turned: Vec<(u64, bool)>,
    /// Incidents whose acknowledgement ran out.
    pub lapsed: Vec<u64>,
    /// What to tell.
    pub tellings: Vec<Telling>,
    /// Pages that have hosts which they had not, and of which nothing else is told: for those who were told nothing of
    /// the page, because it was not about their hosts.
    pub gained: Vec<Telling>,
}

impl Changes {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why nobody is told of an incident that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A silence or a maintenance window, by its id.
    Quiet(String),
    /// Its host is silent, which was told under this incident.
    Silent(u64),
    /// Somebody sees to it already.
    Acknowledged,
    /// It opened just now.
    Gathering,
}

/// What the fold looks at beside the incidents.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The hosts.
    pub roster: Roster,
    /// Silences and windows.
    pub hushes: Vec<Hush>,
}

/// All pages and the incidents that are open.
#[derive(Debug, Clone, Default)]
pub struct Pages {
    members: BTreeMap<u64, Member>,
    pages: BTreeMap<u64, Page>,
    of_page: BTreeMap<u64, BTreeSet<u64>>,
    waiting: BTreeSet<u64>,
    flapping: BTreeSet<u64>,
    /// Pages that a host is in, since when.
    of_host: HashMap<HostId, BTreeMap<u64, Timestamp>>,
    /// The incidents that say a host is silent.
    silent: HashMap<HostId, BTreeSet<u64>>,
    /// Pages of more than a host.
    wide: BTreeSet<u64>,
    /// Pages that differ from what was written.
    dirty: BTreeSet<u64>,
    /// Pages that have hosts which they had not.
    gained: BTreeSet<u64>,
    changes: Changes,
}

impl Pages {
    /// From what was written before.
    #[must_use]
    pub fn restore(
        pages: impl IntoIterator<Item = (u64, Page)>,
        members: impl IntoIterator<Item = (u64, Member)>,
    ) -> Self {
        let mut all = Self::default();
        for (number, page) in pages {
            if !matches!(page.scope, Scope::Host(_)) {
                all.wide.insert(number);
            }
            all.pages.insert(number, page);
        }
        for (number, mut member) in members {
            if member
                .page
                .is_some_and(|(page, _)| !all.pages.contains_key(&page))
            {
                member.page = None;
            }
            match member.page {
                Some((page, joined)) => all.index(number, member.subject.host, page, joined),
                None => {
                    all.waiting.insert(number);
                }
            }
            if member.flap.flapping {
                all.flapping.insert(number);
            }
            if member.subject.rule == HOST_SILENT {
                all.silent
                    .entry(member.subject.host)
                    .or_default()
                    .insert(number);
            }
            all.members.insert(number, member);
        }
        all
    }

    /// Takes in what happened.
    pub fn news(&mut self, news: News, now: Timestamp) {
        let number = news.number;
        match news.turn {
            Turn::Opened => self.opened(news, now),
            Turn::Cleared => self.cleared(number, now),
            Turn::Acknowledged(until) => {
                if let Some(member) = self.members.get_mut(&number) {
                    member.ack = Some(until);
                }
            }
            Turn::Unacknowledged => {
                if let Some(member) = self.members.get_mut(&number) {
                    member.ack = None;
                }
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Timestamp, world: &World) {
        self.name_pages(&world.roster);
        self.settle(now);
        self.remind(now);
        self.group(now, world);
        self.close(now);
        self.tell_gained(now);
    }

    /// What has to be written since the last time.
    pub fn take(&mut self) -> Changes {
        let mut changes = std::mem::take(&mut self.changes);
        for number in std::mem::take(&mut self.dirty) {
            if let Some(page) = self.pages.get(&number) {
                changes.pages.insert(number, page.clone());
            }
        }
        changes
    }

    /// The page under which people were told of an incident.
    #[must_use]
    pub fn page_of(&self, number: u64) -> Option<(u64, &Page)> {
        let (page, _) = self.members.get(&number)?.page?;
        Some((page, self.pages.get(&page)?))
    }

    /// How many hosts a page stands for.
    #[must_use]
    pub fn hosts_of(&self, page: u64) -> usize {
        self.hosts(page).len()
    }

    /// Whether an incident flaps.
    #[must_use]
    pub fn is_flapping(&self, number: u64) -> bool {
        self.flapping.contains(&number)
    }

    /// Why nobody is told of an incident; `None` when it was told, or nothing is known of it.
    #[must_use]
    pub fn why_quiet(&self, number: u64, now: Timestamp, world: &World) -> Option<Why> {
        let member = self.members.get(&number)?;
        if member.page.is_some() {
            return None;
        }
        let gathering = self.waiting.contains(&number).then_some(Why::Gathering);
        self.quiet(member, now, world).or(gathering)
    }

    /// Pages that are open and were told, each as it would be told now: for those who must hear of it again and again.
    pub fn standing(&self, now: Timestamp) -> impl Iterator<Item = Telling> + '_ {
        let firing = move |number: &u64| self.telling(*number, Event::Firing, None, now);
        self.pages.keys().filter_map(firing)
    }

    fn opened(&mut self, news: News, now: Timestamp) {
        let number = news.number;
        let host = news.subject.host;
        let mut member = match self.members.remove(&number) {
            Some(known) => Member {
                subject: news.subject,
                open: true,
                ack: None,
                ..known
            },
            None => Member {
                subject: news.subject,
                open: true,
                // What was counted just now is not in its row yet.
                flap: match self.changes.members.get(&number) {
                    Some((_, flap)) => *flap,
                    None => news.flap,
                },
                ack: None,
                page: None,
            },
        };
        if member.subject.rule == HOST_SILENT {
            self.silent.entry(host).or_default().insert(number);
        }
        self.turn(number, &mut member, now);
        match member.page {
            Some((page, _)) => {
                if let Some(found) = self.pages.get_mut(&page) {
                    found.clear = None;
                    self.dirty.insert(page);
                }
            }
            None => {
                self.waiting.insert(number);
            }
        }
        self.members.insert(number, member);
    }

    fn cleared(&mut self, number: u64, now: Timestamp) {
        let Some(mut member) = self.members.remove(&number) else {
            return;
        };
        member.open = false;
        self.turn(number, &mut member, now);
        let page = member.page;
        self.members.insert(number, member);
        match page {
            Some((page, _)) => self.note_clear(page, now),
            None => self.give_up_one(number),
        }
    }

    /// Drops what cleared before anybody was told, unless it flaps, which is told.
    fn give_up_one(&mut self, number: u64) {
        let keeps = |member: &Member| member.open || member.flap.flapping || member.page.is_some();
        if !self.members.get(&number).is_some_and(keeps) {
            self.waiting.remove(&number);
            self.forget(number);
        }
    }

    /// Counts a change of a member.
    fn turn(&mut self, number: u64, member: &mut Member, now: Timestamp) {
        if member.flap.change(now) {
            self.flapping.insert(number);
            self.changes.turned.push((number, true));
        }
        self.changes
            .members
            .insert(number, (member.page, member.flap));
    }

    fn is_open(&self, number: u64) -> bool {
        self.members.get(&number).is_some_and(|member| member.open)
    }

    /// What flapped and has settled.
    fn settle(&mut self, now: Timestamp) {
        let mut settled = Vec::new();
        for number in &self.flapping {
            let Some(member) = self.members.get_mut(number) else {
                settled.push((*number, None));
                continue;
            };
            if member.flap.settle(now) {
                self.changes
                    .members
                    .insert(*number, (member.page, member.flap));
                self.changes.turned.push((*number, false));
                let fails = member.open.then_some(member.page).flatten();
                settled.push((*number, fails));
            }
        }
        for (number, fails) in settled {
            self.flapping.remove(&number);
            self.give_up_one(number);
            if let Some((page, _)) = fails {
                self.tell(page, Event::Steady, None, now);
            }
        }
    }

    /// Acknowledgements that ran out while it still fails.
    fn remind(&mut self, now: Timestamp) {
        let mut pages = BTreeSet::new();
        for (number, member) in &mut self.members {
            if let Some(Some(until)) = member.ack
                && until <= now
            {
                member.ack = None;
                self.changes.lapsed.push(*number);
                if member.open {
                    pages.extend(member.page.map(|(page, _)| page));
                }
            }
        }
        for page in pages {
            self.tell(page, Event::Reminder, None, now);
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(member) = self.members.remove(&number) else {
            return;
        };
        let host = member.subject.host;
        if let Some(silent) = self.silent.get_mut(&host) {
            silent.remove(&number);
            if silent.is_empty() {
                self.silent.remove(&host);
            }
        }
    }

    /// Why nobody is to be told of a member, were it not told yet.
    fn quiet(&self, member: &Member, now: Timestamp, world: &World) -> Option<Why> {
        let Subject {
            host,
            rule,
            subject,
            ..
        } = &member.subject;
        if member
            .ack
            .is_some_and(|until| until.is_none_or(|until| now < until))
        {
            return Some(Why::Acknowledged);
        }
        let hush = world
            .hushes
            .iter()
            .find(|hush| hush.is_active(now) && hush.hides(*host, rule, subject, &world.roster));
        if let Some(hush) = hush {
            return Some(Why::Quiet(hush.quiet.id()));
        }
        if rule == HOST_SILENT {
            return None;
        }
        // Until its own silence is over for good, whatever its page waits for: what is old news may clear with the
        // first samples.
        let mut silent = self.silent.get(host)?.iter().rev();
        let silent = silent.find(|number| {
            self.members.get(number).is_some_and(|member| {
                let Flap { flapping, at, .. } = member.flap;
                member.open || flapping || age(at, now) <= HOLD
            })
        })?;
        Some(Why::Silent(*silent))
    }

    // ---- pages ---------------------------------------------------------------------------------------

    fn attach(&mut self, number: u64, page: u64, now: Timestamp) {
        let Some(member) = self.members.get_mut(&number) else {
            return;
        };
        if let Some((before, _)) = member.page {
            if let Some(members) = self.of_page.get_mut(&before) {
                members.remove(&number);
            }
            if let Some(pages) = self.of_host.get_mut(&member.subject.host) {
                pages.remove(&before);
            }
        }
        let known = self.of_host.get(&member.subject.host);
        if !known.is_some_and(|pages| pages.contains_key(&page)) {
            self.gained.insert(page);
        }
        member.page = Some((page, now));
        let (host, open, flap) = (member.subject.host, member.open, member.flap);
        self.waiting.remove(&number);
        self.index(number, host, page, now);
        self.changes
            .members
            .insert(number, (Some((page, now)), flap));
        if let Some(found) = self.pages.get_mut(&page) {
            found.grown = now;
            if open {
                found.clear = None;
            }
            self.dirty.insert(page);
        }
    }

    fn index(&mut self, number: u64, host: HostId, page: u64, joined: Timestamp) {
        self.of_page.entry(page).or_default().insert(number);
        let pages = self.of_host.entry(host).or_default();
        let first = pages.entry(page).or_insert(joined);
        *first = joined.min(*first);
    }

    fn hosts(&self, page: u64) -> BTreeSet<HostId> {
        let members = self.of_page.get(&page).into_iter().flatten();
        members
            .filter_map(|number| self.members.get(number))
            .map(|member| member.subject.host)
            .collect()
    }

    /// Gives pages of before leads were written theirs.
    fn name_pages(&mut self, roster: &Roster) {
        for (number, page) in &mut self.pages {
            if page.lead.is_some() {
                continue;
            }
            let first = self.of_page.get(number).and_then(BTreeSet::first);
            // The first is gone only when another page took it in.
            let lead = self
                .members
                .get(number)
                .or_else(|| self.members.get(first?));
            page.lead = lead.map(|lead| Lead::of(&lead.subject, roster));
            self.dirty.insert(*number);
        }
    }

    /// Has those told who were not told of a page before it was about their hosts.
    fn tell_gained(&mut self, now: Timestamp) {
        for number in std::mem::take(&mut self.gained) {
            let told = self.changes.tellings.iter();
            if told.into_iter().any(|telling| telling.number == number) {
                continue;
            }
            let Some(telling) = self.telling(number, Event::Grew, None, now) else {
                continue;
            };
            self.changes.gained.push(telling);
            if let Some(page) = self.pages.get_mut(&number) {
                // So that what is told next has a number of its own.
                page.tellings += 1;
                self.dirty.insert(number);
            }
        }
    }

    /// Notes when the last of a page has cleared.
    fn note_clear(&mut self, page: u64, now: Timestamp) {
        let members = self.of_page.get(&page).into_iter().flatten();
        let clear = members.copied().all(|number| !self.is_open(number));
        if clear && let Some(found) = self.pages.get_mut(&page) {
            found.clear = Some(now);
            self.dirty.insert(page);
        }
    }

    /// Ends the pages that have been clear for long enough.
    fn close(&mut self, now: Timestamp) {
        for (number, page) in &mut self.pages {
            if page.clear.is_some_and(|clear| is_ahead(clear, now)) {
                page.clear = Some(now);
                self.dirty.insert(*number);
            }
        }
        let over: Vec<u64> = self
            .pages
            .iter()
            .filter(|(_, page)| page.clear.is_some_and(|clear| now.since(clear) >= HOLD))
            .map(|(number, _)| *number)
            .filter(|number| {
                let members = self.of_page.get(number);
                members.is_none_or(|members| members.is_disjoint(&self.flapping))
            })
            .collect();
        for number in over {
            match self.goes_on_in(number) {
                Some(into) => self.end(number, Event::Merged, Some(into), now),
                None => self.end(number, Event::Resolved, None, now),
            }
        }
    }

    /// The page in which everything of this one goes on: it became graver.
    fn goes_on_in(&self, page: u64) -> Option<u64> {
        let mut into = None;
        for number in self.of_page.get(&page)? {
            let own = &self.members.get(number)?.subject;
            let pages = self
                .of_host
                .get(&own.host)?
                .keys()
                .filter(|one| **one != page);
            let next = pages.copied().find(|other| {
                let members = self.of_page.get(other).into_iter().flatten();
                members
                    .filter_map(|number| self.members.get(number))
                    .any(|member| {
                        member.open
                            && member.subject.host == own.host
                            && member.subject.rule == own.rule
                            && member.subject.subject == own.subject
                    })
            })?;
            if into.is_some_and(|into| into != next) {
                return None;
            }
            into = Some(next);
        }
        into
    }

    fn end(&mut self, page: u64, event: Event, into: Option<u64>, now: Timestamp) {
        self.tell(page, event, into, now);
        for number in self.of_page.get(&page).cloned().unwrap_or_default() {
            let host = self.members.get(&number).map(|member| member.subject.host);
            if let Some(pages) = host.and_then(|host| self.of_host.get_mut(&host)) {
                pages.remove(&page);
            }
            self.forget(number);
        }
        self.remove(page);
    }

    fn remove(&mut self, page: u64) {
        self.of_page.remove(&page);
        if let Some(found) = self.pages.remove(&page) {
            self.changes.pages.insert(page, found);
        }
        self.wide.remove(&page);
        self.dirty.remove(&page);
        self.changes.closed.insert(page);
    }

    fn tell(&mut self, page: u64, event: Event, into: Option<u64>, now: Timestamp) {
        let Some(telling) = self.telling(page, event, into, now) else {
            return;
        };
        if let Some(found) = self.pages.get_mut(&page) {
            found.tellings += 1;
            found.told_hosts = count(telling.hosts.len());
            self.dirty.insert(page);
        }
        self.changes.tellings.push(telling);
    }

    fn telling(
        &self,
        number: u64,
        event: Event,
        into: Option<u64>,
        at: Timestamp,
    ) -> Option<Telling> {
        let page = self.pages.get(&number)?;
        let numbers = self.of_page.get(&number).into_iter().flatten();
        let mut members: Vec<(u64, &Member)> = numbers
            .filter_map(|number| Some((*number, self.members.get(number)?)))
            .collect();
        let (count, flapping) = (
            members.len(),
            members.iter().any(|(_, member)| member.flap.flapping),
        );
        let lead = page.lead.clone()?;
        members.sort_by_key(|(number, member)| {
            (
                !member.open,
                std::cmp::Reverse(member.subject.severity),
                *number,
            )
        });
        let described = members.into_iter().take(DESCRIBED);
        Some(Telling {
            number,
            id: page.id.clone(),
            event,
            ordinal: page.tellings,
            into,
            severity: page.severity,
            scope: page.scope.clone(),
            lead,
            hosts: self.hosts(number).into_iter().collect(),
            members: described
                .map(|(number, member)| (number, member.clone()))
                .collect(),
            count,
            flapping,
            opened: page.opened,
            at,
        })
    }
}

/// Whether a time is of before the clock was set back.
pub(super) fn is_ahead(then: Timestamp, now: Timestamp) -> bool {
    then.since(now) > STEP_BACK
}

/// How long ago something was.
fn age(then: Timestamp, now: Timestamp) -> Duration {
    if is_ahead(then, now) {
        return Duration::MAX;
    }
    now.since(then)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
