//! What hosts that fail together have in common: the label that explains them.
//!
//! For each label value the question is how likely it is that, of the hosts that fail, so many have it by chance: the
//! upper tail of the hypergeometric distribution over the fleet. A value explains when that is below one in a million
//! and at least four hosts have it. Of those that explain and of whose hosts at least half fail, the widest is taken:
//! a switch rather than each of its racks. When none is half hit (yet), the least likely one is taken.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::id::HostId;
use serde::{Deserialize, Serialize};

use super::roster::Roster;

/// Fewer hosts than this share nothing (design/incidents.md).
pub const MIN_HOSTS: usize = 4;
/// Less likely than this is no chance (design/incidents.md).
const CHANCE: f64 = 1e-6;

/// A label with one or several values: `rack=r7`, or `rack in (r1,r2)`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shared {
    /// The label.
    pub key: String,
    /// Its values; at least one.
    pub values: BTreeSet<String>,
}

impl Shared {
    /// Whether a host has it.
    #[must_use]
    pub fn has(&self, host: HostId, roster: &Roster) -> bool {
        let value = roster
            .card(host)
            .and_then(|card| card.labels.get(&self.key));
        value.is_some_and(|value| self.values.contains(value))
    }
}

/// The groups that labels explain among hosts which fail alike, each with its hosts; hosts that none explains are in
/// none. Several values of one label are one group: what hits two racks at once is one thing.
#[must_use]
pub fn explain(failing: &BTreeSet<HostId>, roster: &Roster) -> Vec<(Shared, BTreeSet<HostId>)> {
    let mut rest = failing.clone();
    let mut found: BTreeMap<String, (Shared, BTreeSet<HostId>)> = BTreeMap::new();
    while let Some((key, value)) = best(&rest, roster) {
        let one = Shared {
            key: key.clone(),
            values: BTreeSet::from([value]),
        };
        let (inside, outside) = rest.into_iter().partition(|host| one.has(*host, roster));
        rest = outside;
        let inside: BTreeSet<HostId> = inside;
        match found.get_mut(&key) {
            Some((shared, hosts)) => {
                shared.values.extend(one.values);
                hosts.extend(inside);
            }
            None => {
                found.insert(key, (one, inside));
            }
        }
    }
    found.into_values().collect()
}

/// The label value that explains best.
fn best(failing: &BTreeSet<HostId>, roster: &Roster) -> Option<(String, String)> {
    if failing.len() < MIN_HOSTS {
        return None;
    }
    let mut hits: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for card in failing.iter().filter_map(|host| roster.card(*host)) {
        for (key, value) in &card.labels {
            *hits.entry((key, value)).or_default() += 1;
        }
    }
    let drawn = u32::try_from(failing.len()).unwrap_or(u32::MAX);
    let fleet = u32::try_from(roster.len()).unwrap_or(u32::MAX);
    let explains = hits.into_iter().filter_map(|((key, value), hits)| {
        let marked = roster.sharing(key, value);
        if (hits as usize) < MIN_HOSTS {
            return None;
        }
        let chance = tail(fleet, marked, drawn, hits);
        (chance < CHANCE).then_some(Candidate {
            key,
            value,
            covered: 2 * u64::from(hits) >= u64::from(marked),
            marked,
            chance,
        })
    });
    let best = explains.reduce(|best, next| if next.beats(&best) { next } else { best })?;
    Some((best.key.to_owned(), best.value.to_owned()))
}

struct Candidate<'a> {
    key: &'a str,
    value: &'a str,
    /// At least half of those who have it fail.
    covered: bool,
    marked: u32,
    chance: f64,
}

impl Candidate<'_> {
    fn beats(&self, other: &Self) -> bool {
        match (self.covered, other.covered) {
            (true, true) => self.marked > other.marked,
            (false, false) => self.chance < other.chance,
            (covered, _) => covered,
        }
    }
}

/// Probability that at least `hits` of `drawn` out of `all` are among the `marked`, drawn by chance.
#[must_use]
pub fn tail(all: u32, marked: u32, drawn: u32, hits: u32) -> f64 {
    let most = marked.min(drawn);
    if marked > all || drawn > all || hits > most {
        return 0.0;
    }
    let least = (marked + drawn).saturating_sub(all);
    if hits <= least {
        return 1.0;
    }
    let (n, k, d, h) = (
        f64::from(all),
        f64::from(marked),
        f64::from(drawn),
        f64::from(hits),
    );
    let log = choose(k, h) + choose(n - k, d - h) - choose(n, d);
    let mut term = log.exp();
    let mut sum = term;
    for hit in hits..most {
        let i = f64::from(hit);
        // Each term from the one before: exact where the logarithms of large numbers would cancel.
        term *= (k - i) * (d - i) / ((i + 1.0) * (n - k - d + i + 1.0));
        sum += term;
        if term < sum * 1e-12 {
            break;
        }
    }
    sum.min(1.0)
}

/// Logarithm of the number of ways to choose `k` of `n`.
fn choose(n: f64, k: f64) -> f64 {
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

/// Logarithm of n!: Stirling's series from 10 on, where its error is below 1e-12 (Abramowitz and Stegun 6.1.40).
fn ln_factorial(n: f64) -> f64 {
    if n < 10.0 {
        let mut product = 1.0;
        let mut factor = 2.0;
        while factor <= n {
            product *= factor;
            factor += 1.0;
        }
        return product.ln();
    }
    let x = n + 1.0;
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3)) + 1.0 / (1260.0 * x.powi(5));
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::roster::Card;

    fn host(number: u16) -> HostId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        HostId::from_bytes(bytes)
    }

    /// 1,000 hosts: 25 racks of 40, five to a switch; 20 roles.
    fn fleet() -> Roster {
        Roster::of((0..1000).map(|number| {
            let labels = [
                ("env".to_owned(), "prod".to_owned()),
                ("rack".to_owned(), format!("r{}", number / 40)),
                ("role".to_owned(), format!("role{}", number % 20)),
                ("switch".to_owned(), format!("s{}", number / 200)),
            ];
            let card = Card {
                name: format!("h{number}"),
                labels: labels.into(),
                ..Card::default()
            };
            (host(number), card)
        }))
    }

    fn explained(failing: impl IntoIterator<Item = u16>) -> Vec<(String, String, usize)> {
        let failing = failing.into_iter().map(host).collect();
        let groups = explain(&failing, &fleet()).into_iter();
        groups
            .map(|(shared, hosts)| {
                let values: Vec<String> = shared.values.into_iter().collect();
                (shared.key, values.join(","), hosts.len())
            })
            .collect()
    }

    #[test]
    fn the_tail_is_that_of_the_distribution() {
        // Against exact values by counting (Python: fractions and math.comb).
        for (all, marked, drawn, hits, expected) in [
            (10, 5, 4, 4, 5.0 / 210.0),
            (10, 5, 4, 3, 55.0 / 210.0),
            (50, 5, 10, 4, 4.083_520_549_755e-3),
            (1000, 40, 10, 4, 3.886_531_749e-4),
            (1000, 40, 4, 4, 2.206_575_192_064e-6),
        ] {
            let found = tail(all, marked, drawn, hits);
            assert!(
                (found / expected - 1.0).abs() < 1e-9,
                "{all} {marked} {drawn} {hits}: {found:e}, expected {expected:e}"
            );
        }
        assert!((tail(1000, 1000, 40, 40) - 1.0).abs() < f64::EPSILON);
        assert!(tail(100_000, 5_000, 4_000, 4_000) < 1e-300);
    }

    #[test]
    fn the_widest_that_is_mostly_hit_explains() {
        let rack = |number: u16| number * 40..number * 40 + 40;
        let of = |key: &str, values: &str, hosts| (key.to_owned(), values.to_owned(), hosts);
        assert_eq!(explained(rack(3)), [of("rack", "r3", 40)]);
        assert_eq!(explained(200..400), [of("switch", "s1", 200)]);
        assert_eq!(
            explained(rack(1).chain(rack(9))),
            [of("rack", "r1,r9", 80)],
            "two racks at once are one thing"
        );
        assert_eq!(
            explained((0..1000).filter(|number| number % 20 == 7)),
            [of("role", "role7", 50)]
        );
        // The first six of a rack.
        assert_eq!(explained(80..86), [of("rack", "r2", 6)]);
    }

    #[test]
    fn a_lone_host_beside_a_group_is_not_in_it() {
        let groups = explained((120..160).chain([777]));
        assert_eq!(groups, [("rack".to_owned(), "r3".to_owned(), 40)]);
    }

    #[test]
    fn chance_and_few_hosts_explain_nothing() {
        assert_eq!(explained([1, 2, 3]), []);
        assert_eq!(explained([1, 101, 202, 303, 404, 505, 606]), []);
        assert_eq!(
            explained(0..1000),
            [],
            "the whole fleet has nothing in particular"
        );
    }
}
