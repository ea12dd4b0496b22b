//! Which page an incident comes into: one that is open, one that explains several, or its own.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::{id::HostId, time::Timestamp};

use super::{
    Event, GREW_HALVES, GROWS, Lead, Member, Page, Pages, SAME_FAULT, Scope, Subject, WAIT, WIDENS,
    World, age, count,
};
use crate::{
    detect::Severity,
    incident::{
        enrich::{self, MIN_HOSTS},
        roster::Roster,
    },
};

impl Pages {
    pub(super) fn group(&mut self, now: Timestamp, world: &World) {
        let due = |member: &Member| age(member.flap.at, now) >= WAIT || member.flap.flapping;
        let ready: Vec<u64> = self
            .waiting
            .iter()
            .copied()
            .filter(|number| {
                self.members.get(number).is_some_and(|member| {
                    (member.open || member.flap.flapping)
                        && self.quiet(member, now, world).is_none()
                })
            })
            .collect();
        let late: BTreeSet<u64> = ready
            .iter()
            .copied()
            .filter(|number| self.members.get(number).is_some_and(due))
            .collect();
        if late.is_empty() {
            return;
        }
        let mut rest: BTreeSet<u64> = ready.into_iter().collect();
        rest.retain(|number| !self.join(*number, now, world));
        for group in self.groups(&rest, now, world) {
            let bases = self.bases(&group, now);
            if bases.is_empty() && group.members.is_disjoint(&late) {
                continue;
            }
            for number in &group.members {
                rest.remove(number);
            }
            self.take_up(&group, &bases, now, &world.roster);
        }
        rest.retain(|number| !self.join(*number, now, world));
        let mut by_host: BTreeMap<HostId, BTreeSet<u64>> = BTreeMap::new();
        for number in rest {
            if let Some(member) = self.members.get(&number) {
                by_host
                    .entry(member.subject.host)
                    .or_default()
                    .insert(number);
            }
        }
        for (host, members) in by_host {
            if !members.is_disjoint(&late) {
                let group = Group {
                    scope: Scope::Host(host),
                    rules: BTreeSet::new(),
                    members,
                    hosts: BTreeSet::from([host]),
                };
                self.take_up(&group, &[], now, &world.roster);
            }
        }
    }

    /// Puts an incident into a page that is open, if it belongs to one.
    fn join(&mut self, number: u64, now: Timestamp, world: &World) -> bool {
        let Some(member) = self.members.get(&number) else {
            return false;
        };
        let own = self.of_host.get(&member.subject.host);
        let same_fault = own
            .into_iter()
            .flatten()
            .find(|(page, since)| age(**since, now) <= SAME_FAULT && self.takes(**page, member));
        let grows = || {
            self.wide.iter().find(|page| {
                self.takes(**page, member) && self.is_of(**page, member, now, &world.roster)
            })
        };
        let Some(page) = same_fault
            .map(|(page, _)| *page)
            .or_else(|| grows().copied())
        else {
            return false;
        };
        self.attach(number, page, now);
        true
    }

    /// Whether a page can take a member at all: not what is graver, and not what failed anew after somebody saw to it.
    fn takes(&self, page: u64, member: &Member) -> bool {
        let Some(found) = self.pages.get(&page) else {
            return false;
        };
        member.subject.severity <= found.severity && !self.is_seen_to(page, member)
    }

    /// Whether somebody had acknowledged in a page what fails anew.
    fn is_seen_to(&self, page: u64, member: &Member) -> bool {
        let members = self.of_page.get(&page).into_iter().flatten();
        members
            .filter_map(|number| self.members.get(number))
            .any(|other| {
                other.ack.is_some()
                    && other.subject.host == member.subject.host
                    && other.subject.rule == member.subject.rule
                    && other.subject.subject == member.subject.subject
            })
    }

    /// Whether a member is of the kind and within the scope of a page that still grows.
    fn is_of(&self, page: u64, member: &Member, now: Timestamp, roster: &Roster) -> bool {
        let Some(found) = self.pages.get(&page) else {
            return false;
        };
        if age(found.grown, now) > GROWS {
            return false;
        }
        let inside = match &found.scope {
            Scope::Host(host) => *host == member.subject.host,
            Scope::Label(shared) => shared.has(member.subject.host, roster),
            Scope::Alike { rule, subject } => {
                return *rule == member.subject.rule && *subject == member.subject.subject;
            }
        };
        inside && self.has_rule(page, &member.subject.rule)
    }

    /// Whether at least [`MIN_HOSTS`] of a page, or all of it, fail by this rule.
    fn has_rule(&self, page: u64, rule: &str) -> bool {
        let members = self.of_page.get(&page).into_iter().flatten();
        let mut seen = 0;
        let of_rule = members
            .filter_map(|number| self.members.get(number))
            .filter(|member| {
                seen += 1;
                member.subject.rule == rule
            });
        let found = of_rule.take(MIN_HOSTS).count();
        found == MIN_HOSTS || (found > 0 && found == seen)
    }

    /// The groups among incidents that wait.
    fn groups(&self, rest: &BTreeSet<u64>, now: Timestamp, world: &World) -> Vec<Group> {
        let mut by_rule: BTreeMap<&str, Vec<(u64, &Subject)>> = BTreeMap::new();
        for number in rest {
            if let Some(member) = self.members.get(number) {
                let of_rule = by_rule.entry(&member.subject.rule).or_default();
                of_rule.push((*number, &member.subject));
            }
        }
        let mut groups: Vec<Group> = Vec::new();
        for (rule, waiting) in by_rule {
            let mut failing: BTreeSet<HostId> = waiting.iter().map(|(_, one)| one.host).collect();
            failing.extend(self.told_lately(rule, now));
            let mut explained = BTreeSet::new();
            for (shared, hosts) in enrich::explain(&failing, &world.roster) {
                let inside = waiting.iter().filter(|(_, one)| hosts.contains(&one.host));
                let members: BTreeSet<u64> = inside.map(|(number, _)| *number).collect();
                if members.is_empty() {
                    continue;
                }
                explained.extend(members.iter().copied());
                let scope = Scope::Label(shared);
                let rules = BTreeSet::from([rule.to_owned()]);
                match groups.iter_mut().find(|group| group.scope == scope) {
                    Some(group) => {
                        group.members.extend(members);
                        group.hosts.extend(hosts);
                        group.rules.extend(rules);
                    }
                    None => groups.push(Group {
                        scope,
                        rules,
                        members,
                        hosts,
                    }),
                }
            }
            let unexplained = waiting
                .into_iter()
                .filter(|(number, _)| !explained.contains(number));
            groups.extend(alike(rule, unexplained));
        }
        groups
    }

    /// Hosts that fail by a rule in pages which may still become part of a wider one.
    fn told_lately(&self, rule: &str, now: Timestamp) -> BTreeSet<HostId> {
        let lately = self.pages.iter();
        let lately = lately.filter(|(_, page)| age(page.opened, now) <= WIDENS);
        lately
            .flat_map(|(number, _)| self.of_page.get(number).into_iter().flatten())
            .filter_map(|number| self.members.get(number))
            .filter(|member| member.open && member.subject.rule == rule)
            .map(|member| member.subject.host)
            .collect()
    }

    /// The pages that a group goes on from, the first told first: of the same scope, or with all hosts in it.
    fn bases(&self, group: &Group, now: Timestamp) -> Vec<u64> {
        if !matches!(group.scope, Scope::Label(_)) {
            return Vec::new();
        }
        let gravest = self.gravest(&group.members);
        let is_base = |(number, page): &(&u64, &Page)| {
            let age = age(page.opened, now);
            if age > WIDENS || Some(page.severity) < gravest {
                return false;
            }
            let members = group.members.iter();
            let mut members = members.filter_map(|member| self.members.get(member));
            if members.any(|member| self.is_seen_to(**number, member)) {
                return false;
            }
            let of_rule = group.rules.iter().any(|rule| self.has_rule(**number, rule));
            if page.scope == group.scope {
                return of_rule || age <= SAME_FAULT;
            }
            of_rule && self.hosts(**number).is_subset(&group.hosts)
        };
        let bases = self.pages.iter().filter(is_base);
        bases.map(|(number, _)| *number).collect()
    }

    /// Puts what belongs together into one page, a new one or the first that there is, and tells of it.
    fn take_up(&mut self, group: &Group, bases: &[u64], now: Timestamp, roster: &Roster) {
        let Some((&page, others)) = bases.split_first() else {
            self.open_page(group, now, roster);
            return;
        };
        for number in &group.members {
            self.attach(*number, page, now);
        }
        for other in others {
            self.tell(*other, Event::Merged, Some(page), now);
            for number in self.of_page.get(other).cloned().unwrap_or_default() {
                self.attach(number, page, now);
            }
            self.remove(*other);
        }
        let hosts = count(self.hosts(page).len());
        let Some(found) = self.pages.get_mut(&page) else {
            return;
        };
        if found.scope != group.scope {
            found.scope = group.scope.clone();
            self.wide.insert(page);
            if hosts.saturating_mul(2) >= found.told_hosts.saturating_mul(GREW_HALVES) {
                self.tell(page, Event::Grew, None, now);
            }
        }
    }

    fn open_page(&mut self, group: &Group, now: Timestamp, roster: &Roster) {
        let Some(number) = group.members.first().copied() else {
            return;
        };
        let Some(first) = self.members.get(&number) else {
            return;
        };
        let page = Page {
            id: first.subject.id.clone(),
            scope: group.scope.clone(),
            lead: Some(Lead::of(&first.subject, roster)),
            severity: self
                .gravest(&group.members)
                .unwrap_or(first.subject.severity),
            opened: now,
            grown: now,
            clear: None,
            tellings: 0,
            told_hosts: 0,
        };
        self.pages.insert(number, page);
        if !matches!(group.scope, Scope::Host(_)) {
            self.wide.insert(number);
        }
        for member in &group.members {
            self.attach(*member, number, now);
        }
        self.tell(number, Event::Firing, None, now);
        // What flaps may be clear at this moment.
        self.note_clear(number, now);
    }

    fn gravest(&self, members: &BTreeSet<u64>) -> Option<Severity> {
        let members = members.iter().filter_map(|number| self.members.get(number));
        members.map(|member| member.subject.severity).max()
    }
}

/// Incidents that belong together.
#[derive(Debug)]
struct Group {
    scope: Scope,
    rules: BTreeSet<String>,
    members: BTreeSet<u64>,
    /// Hosts that fail in this way, those that were told before included.
    hosts: BTreeSet<HostId>,
}

/// The same on many hosts at once, which nothing explains.
fn alike<'a>(rule: &str, incidents: impl Iterator<Item = (u64, &'a Subject)>) -> Vec<Group> {
    let mut by_subject: BTreeMap<&str, BTreeMap<HostId, u64>> = BTreeMap::new();
    for (number, one) in incidents {
        let hosts = by_subject.entry(&one.subject).or_default();
        hosts.insert(one.host, number);
    }
    by_subject.retain(|_, hosts| hosts.len() >= MIN_HOSTS);
    let group = |(subject, hosts): (&str, BTreeMap<HostId, u64>)| Group {
        scope: Scope::Alike {
            rule: rule.to_owned(),
            subject: subject.to_owned(),
        },
        rules: BTreeSet::from([rule.to_owned()]),
        members: hosts.values().copied().collect(),
        hosts: hosts.into_keys().collect(),
    };
    by_subject.into_iter().map(group).collect()
}
