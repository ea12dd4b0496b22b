//! Which hosts fell silent together: what tells a cut network, or a dark rack, from one dead host.
//!
//! A host has neighbours in several scopes: the values of its labels of place ([`PLACE_LABELS`]), the network its
//! stream came from, and the whole fleet. Shards note here when a host is heard and when it is not any more, which
//! is rare, and ask when they look for the cause of a silence. For each scope only counts are kept, by when the
//! hosts were last heard in steps of five seconds, so asking costs the same in a fleet of any size.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::id::HostId;
use tokio::time::Instant;

/// Labels whose values say where a host is.
pub const PLACE_LABELS: [&str; 11] = [
    "switch",
    "rack",
    "row",
    "room",
    "cell",
    "zone",
    "az",
    "site",
    "dc",
    "datacenter",
    "region",
];

/// Hosts last heard within this of one another fell silent together, where their intervals are shorter.
const TOGETHER: Duration = Duration::from_secs(30);
/// What last hearings are counted by.
const STEP: Duration = Duration::from_secs(5);
/// Others that must have fallen silent with a host before that says anything.
const LEAST_OTHERS: u32 = 2;

/// Something that hosts share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(String);

impl Scope {
    /// For people: `rack=r3`, `network 10.1.2.0/24`, `the fleet`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where a host with these labels, connected from this address, is.
    #[must_use]
    pub fn all_of(labels: &BTreeMap<String, String>, address: Option<IpAddr>) -> Vec<Self> {
        let placed = PLACE_LABELS
            .iter()
            .filter_map(|&key| Some(Self(format!("{key}={}", labels.get(key)?))));
        let network = address.map(|address| address.to_canonical());
        // On loopback everything is one machine, and agents there are simulated.
        let network = network.filter(|address| !address.is_loopback());
        let network = network.map(|address| Self(prefix(address)));
        let fleet = Self("the fleet".to_owned());
        placed.chain(network).chain([fleet]).collect()
    }
}

fn prefix(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("network {a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("network {a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

/// How many of those around a host fell silent with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// What they share.
    pub scope: Scope,
    /// Hosts that fell silent with it.
    pub others: u32,
    /// Hosts beside it that were heard until then.
    pub of: u32,
    /// Of the others, those whose streams were reset.
    pub reset: u32,
}

/// How the stream of a host that is not heard any more stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Open, or ended from our side.
    Open,
    /// Closed in order from its side.
    Closed,
    /// Reset.
    Reset,
}

/// All hosts that were heard since the start, by what they share.
#[derive(Debug)]
pub struct Neighbourhood {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hosts: HashMap<HostId, Member>,
    scopes: HashMap<Scope, Counts>,
}

#[derive(Debug, Clone, PartialEq)]
struct Member {
    scopes: Vec<Scope>,
    voice: Heard,
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Now,
    /// Last in this step; what its stream was left as.
    Until(u64, Left),
}

#[derive(Debug, Default)]
struct Counts {
    live: u32,
    /// Unheard hosts by the step in which they were last heard: those that left their streams open, those
    /// whose streams were closed, and of these such as were reset.
    until: BTreeMap<u64, u32>,
    closed: BTreeMap<u64, u32>,
    reset: BTreeMap<u64, u32>,
}

impl Default for Neighbourhood {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::default(),
        }
    }
}

impl Neighbourhood {
    /// The host is heard.
    pub fn heard(&self, host: HostId, scopes: Vec<Scope>) {
        self.set(host, Some((scopes, Heard::Now)));
    }

    /// It is not heard any more since `last`.
    pub fn unheard(&self, host: HostId, last: Instant, left: Left) {
        let voice = Heard::Until(self.step(last), left);
        let scopes = self
            .lock()
            .hosts
            .get(&host)
            .map(|member| member.scopes.clone());
        // Who was never heard here is nobody's neighbour.
        if let Some(scopes) = scopes {
            self.set(host, Some((scopes, voice)));
        }
    }

    /// The host was removed, or says that it leaves.
    pub fn gone(&self, host: HostId) {
        self.set(host, None);
    }

    /// The scope in which most fell silent with a host and in the same manner, if at least half of those around
    /// it did.
    #[must_use]
    pub fn shared(&self, host: HostId, interval: Duration) -> Option<Shared> {
        let state = self.lock();
        let member = state.hosts.get(&host)?;
        let Heard::Until(until, left) = member.voice else {
            return None;
        };
        let reach = steps(TOGETHER.max(interval * 2));
        let around = until.saturating_sub(reach)..=until.saturating_add(reach);
        // Scopes come from narrow to wide. Where most around a host are heard, what is dark further off is not its
        // affair.
        let mut near = true;
        let candidates = member.scopes.iter().filter_map(|scope| {
            let counts = state.scopes.get(scope).filter(|_| near)?;
            let beside = |counts: &BTreeMap<u64, u32>, itself: bool| {
                let together: u32 = counts.range(around.clone()).map(|(_, count)| count).sum();
                together.saturating_sub(u32::from(itself))
            };
            let of_manner = match left {
                Left::Open => &counts.until,
                Left::Closed | Left::Reset => &counts.closed,
            };
            let others = beside(of_manner, true);
            let reset = match left {
                Left::Open => 0,
                left => beside(&counts.reset, left == Left::Reset),
            };
            let of = others + counts.live;
            near = of < LEAST_OTHERS || others * 2 >= of;
            (near && others >= LEAST_OTHERS).then_some((scope, others, of, reset))
        });
        // The widest of those that are hit whole says most.
        let best = candidates.reduce(|best, next| {
            let share = |(_, others, of, _): (_, u32, u32, _)| f64::from(others) / f64::from(of);
            if share(next) >= share(best) {
                next
            } else {
                best
            }
        });
        best.map(|(scope, others, of, reset)| Shared {
            scope: scope.clone(),
            others,
            of,
            reset,
        })
    }

    fn set(&self, host: HostId, next: Option<(Vec<Scope>, Heard)>) {
        let mut state = self.lock();
        let next = next.map(|(scopes, voice)| Member { scopes, voice });
        let before = match &next {
            Some(member) => state.hosts.insert(host, member.clone()),
            None => state.hosts.remove(&host),
        };
        if before == next {
            return;
        }
        if let Some(before) = before {
            state.count(&before, false);
        }
        if let Some(next) = next {
            state.count(&next, true);
        }
    }

    fn step(&self, at: Instant) -> u64 {
        steps(at.saturating_duration_since(self.start))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts are only wrong by one host after a panic between two of them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, member: &Member, up: bool) {
        for scope in &member.scopes {
            let counts = self.scopes.entry(scope.clone()).or_default();
            match member.voice {
                Heard::Now => add(&mut counts.live, up),
                Heard::Until(step, Left::Open) => add_at(&mut counts.until, step, up),
                Heard::Until(step, left) => {
                    add_at(&mut counts.closed, step, up);
                    if left == Left::Reset {
                        add_at(&mut counts.reset, step, up);
                    }
                }
            }
            if counts.live == 0 && counts.until.is_empty() && counts.closed.is_empty() {
                self.scopes.remove(scope);
            }
        }
    }
}

fn steps(duration: Duration) -> u64 {
    duration.as_secs() / STEP.as_secs()
}

fn add_at(counts: &mut BTreeMap<u64, u32>, step: u64, up: bool) {
    let count = counts.entry(step).or_default();
    add(count, up);
    if *count == 0 {
        counts.remove(&step);
    }
}

fn add(count: &mut u32, up: bool) {
    *count = if up {
        count.saturating_add(1)
    } else {
        count.saturating_sub(1)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(10);

    fn host(number: u8) -> HostId {
        HostId::from_bytes([number; 16])
    }

    fn scopes(rack: u8, site: &str) -> Vec<Scope> {
        let labels = [("rack", format!("r{rack}")), ("site", site.to_owned())];
        let labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
        Scope::all_of(&labels, None)
    }

    /// Two racks of five in one site, all heard.
    fn fleet() -> Neighbourhood {
        let fleet = Neighbourhood::default();
        for number in 0..10 {
            fleet.heard(host(number), scopes(number / 5, "fra"));
        }
        fleet
    }

    fn text(shared: Option<Shared>) -> Option<String> {
        shared.map(|shared| {
            format!(
                "{}: {} of {}",
                shared.scope.as_str(),
                shared.others,
                shared.of
            )
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_dark_rack_is_told_from_a_dead_host() {
        let fleet = fleet();
        let now = Instant::now() + Duration::from_secs(100);
        fleet.unheard(host(7), now, Left::Open);
        assert_eq!(fleet.shared(host(7), TICK), None, "alone");
        for number in 0..5 {
            fleet.unheard(
                host(number),
                now + Duration::from_secs(number.into()),
                Left::Open,
            );
        }
        assert_eq!(
            text(fleet.shared(host(2), TICK)).as_deref(),
            Some("rack=r0: 4 of 4")
        );
        assert_eq!(
            fleet.shared(host(7), TICK),
            None,
            "a single host in the other rack"
        );
        // They come back: nothing is left of it.
        for number in 0..5 {
            fleet.heard(host(number), scopes(0, "fra"));
        }
        assert_eq!(fleet.shared(host(7), TICK), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happened_at_another_time_or_by_the_hosts_own_doing_is_not_shared() {
        let fleet = fleet();
        let now = Instant::now() + Duration::from_secs(1000);
        for number in 0..3 {
            fleet.unheard(host(number), now - Duration::from_secs(300), Left::Open);
        }
        fleet.unheard(host(3), now, Left::Open);
        assert_eq!(fleet.shared(host(3), TICK), None, "five minutes apart");
        fleet.unheard(host(9), now, Left::Open);
        for number in 5..9 {
            fleet.unheard(host(number), now, Left::Closed);
        }
        assert_eq!(fleet.shared(host(9), TICK), None, "the others were closed");
        assert_eq!(
            text(fleet.shared(host(6), TICK)).as_deref(),
            Some("rack=r1: 3 of 3")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_that_were_closed_it_is_known_how_many_were_reset() {
        let fleet = fleet();
        let now = Instant::now() + Duration::from_secs(100);
        for number in 0..4 {
            fleet.unheard(host(number), now, Left::Reset);
        }
        fleet.unheard(host(4), now, Left::Closed);
        let of = |number| {
            let shared = fleet.shared(host(number), TICK);
            shared.map(|shared| (shared.others, shared.reset))
        };
        assert_eq!((of(0), of(4)), (Some((4, 3)), Some((4, 4))));
        fleet.heard(host(3), scopes(0, "fra"));
        assert_eq!((of(0), of(4)), (Some((3, 2)), Some((3, 3))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_widest_that_is_hit_whole_is_named() {
        let fleet = fleet();
        let now = Instant::now() + Duration::from_secs(100);
        for number in 0..10 {
            fleet.unheard(host(number), now, Left::Open);
        }
        assert_eq!(
            text(fleet.shared(host(2), TICK)).as_deref(),
            Some("the fleet: 9 of 9")
        );
        fleet.gone(host(9));
        assert_eq!(
            text(fleet.shared(host(2), TICK)).as_deref(),
            Some("the fleet: 8 of 8")
        );
    }

    #[test]
    fn scopes_of_addresses() {
        let of = |address: &str| {
            let all = Scope::all_of(&BTreeMap::new(), Some(address.parse().expect("an address")));
            all.iter().map(|scope| scope.0.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of("10.1.2.3"), ["network 10.1.2.0/24", "the fleet"]);
        assert_eq!(of("::ffff:10.1.2.3"), ["network 10.1.2.0/24", "the fleet"]);
        assert_eq!(
            of("2001:db8:1:2::7"),
            ["network 2001:db8:1:2::/64", "the fleet"]
        );
        assert_eq!(of("127.0.0.1"), ["the fleet"]);
    }
}
