//! Which aggregator is tried next, where there are several. Pure: what happened and a time in, an address out.
//!
//! The configured addresses come first, in their order, then those that an aggregator has announced. A server that fails
//! gives way to the next; when all have failed the wait grows as it does with one. Whoever is elsewhere looks now and
//! then whether the first is back (`go_home`).
//!
//! What an aggregator that was taken over can do with this is bounded: it can name addresses, but what answers there must
//! show a certificate of the fleet's own authority; it can redirect, but only within the list, once in ten minutes, and
//! for an hour; and the configured addresses stay at the head, whatever it announces.

use std::time::Duration;

use muster_proto::v1;
use tokio::time::Instant;

/// Servers of a list that are taken.
pub const MAX_SERVERS: usize = 16;
/// Longest address, a DNS name with a port, and longest id, which may be an address.
const MAX_TEXT_BYTES: usize = 261;
/// A redirect is obeyed at most once in this time.
const REDIRECT_EVERY: Duration = Duration::from_secs(600);
/// For so long the target of a redirect counts as the first.
const REDIRECT_HOLDS: Duration = Duration::from_secs(3600);

/// A server that an aggregator has announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Short name, for redirects.
    pub id: String,
    /// `host:port`.
    pub address: String,
}

/// Why a redirect is not obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// The list has no such server.
    #[error("it names no server of the list")]
    Unknown,
    /// One was obeyed a moment ago.
    #[error("another one was obeyed less than ten minutes ago")]
    TooOften,
    /// It names the server that says it.
    #[error("it leads to where this agent is")]
    Here,
}

/// The servers of one agent.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    configured: Vec<String>,
    announced: Vec<Announced>,
    /// The one in use, or tried next.
    current: String,
    /// So many have failed in a row.
    failed: usize,
    /// Where a redirect led, and when.
    redirected: Option<(String, Instant)>,
    last_redirect: Option<Instant>,
}

impl Servers {
    /// The configured ones, of which there is one at least, and those that were announced before.
    #[must_use]
    pub fn new(configured: Vec<String>, announced: Vec<Announced>) -> Self {
        Self {
            current: configured.first().cloned().unwrap_or_default(),
            configured,
            announced,
            ..Self::default()
        }
    }

    /// `host:port` of the one in use, or of the one that is tried next.
    #[must_use]
    pub fn current(&self) -> &str {
        &self.current
    }

    /// All addresses, in the order in which they are tried.
    #[must_use]
    pub fn addresses(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::with_capacity(MAX_SERVERS);
        let announced = self.announced.iter().map(|server| &server.address);
        for address in self.configured.iter().chain(announced) {
            if !all.contains(&address.as_str()) {
                all.push(address);
            }
        }
        all
    }

    /// Where the agent should be.
    #[must_use]
    pub fn home(&self, now: Instant) -> &str {
        match &self.redirected {
            Some((target, since)) if now.duration_since(*since) < REDIRECT_HOLDS => target,
            _ => self.configured.first().unwrap_or(&self.current),
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_home(&self, now: Instant) -> bool {
        self.home(now) == self.current
    }

    /// The server of the last attempt was of no use: the next one's turn. True when each has had its turn, so that it
    /// is time for a longer wait.
    pub fn failed(&mut self) -> bool {
        if self
            .redirected
            .as_ref()
            .is_some_and(|(target, _)| *target == self.current)
        {
            self.redirected = None;
        }
        let all = self.addresses();
        let count = all.len().max(1);
        let at = all.iter().position(|address| *address == self.current);
        let next = at.map_or(0, |at| (at + 1) % count);
        if let Some(next) = all.get(next).map(|next| (*next).to_owned()) {
            self.current = next;
        }
        self.failed += 1;
        let round = self.failed >= count;
        if round {
            self.failed = 0;
        }
        round
    }

    /// The server works.
    pub fn worked(&mut self) {
        self.failed = 0;
    }

    /// The next connection goes to where the agent should be.
    pub fn go_home(&mut self, now: Instant) {
        self.current = self.home(now).to_owned();
        self.failed = 0;
    }

    /// Takes over what an aggregator announces. True if it is another list than before; an empty one changes nothing.
    pub fn announce(&mut self, list: &v1::ServerList) -> bool {
        let sound = sound(list);
        let is_new = !sound.is_empty() && sound != self.announced;
        if is_new {
            self.announced = sound;
        }
        is_new
    }

    /// What was announced last.
    #[must_use]
    pub fn announced(&self) -> &[Announced] {
        &self.announced
    }

    /// An aggregator sends the agent to another one; the next connection goes there.
    ///
    /// # Errors
    /// When it is not obeyed.
    pub fn redirect(&mut self, id: &str, now: Instant) -> Result<(), Ignored> {
        let announced = self.announced.iter().find(|server| server.id == id);
        let target = match announced {
            Some(server) => server.address.clone(),
            None => {
                let mut configured = self.configured.iter();
                let found = configured.find(|address| *address == id);
                found.ok_or(Ignored::Unknown)?.clone()
            }
        };
        if target == self.current {
            return Err(Ignored::Here);
        }
        if self
            .last_redirect
            .is_some_and(|last| now.duration_since(last) < REDIRECT_EVERY)
        {
            return Err(Ignored::TooOften);
        }
        self.last_redirect = Some(now);
        self.redirected = Some((target.clone(), now));
        self.current = target;
        self.failed = 0;
        Ok(())
    }
}

/// What of a list can be used.
fn sound(list: &v1::ServerList) -> Vec<Announced> {
    let sound = list.servers.iter().filter_map(|server| {
        let announced = Announced {
            id: server.id.clone(),
            address: server.address.clone(),
        };
        is_sound(&announced).then_some(announced)
    });
    sound.take(MAX_SERVERS).collect()
}

/// Whether it can be shown, written down in a line, and dialled.
#[must_use]
pub fn is_sound(server: &Announced) -> bool {
    let plain = |text: &str| {
        (1..=MAX_TEXT_BYTES).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let port = server.address.rsplit_once(':').map(|(_, port)| port);
    plain(&server.id)
        && plain(&server.address)
        && port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(servers: &[(&str, &str)]) -> v1::ServerList {
        let servers = servers.iter().map(|(id, address)| v1::Server {
            id: (*id).to_owned(),
            address: (*address).to_owned(),
            weight: 0,
        });
        v1::ServerList {
            generation: 1,
            servers: servers.collect(),
        }
    }

    fn three() -> Servers {
        let mut servers = Servers::new(vec!["a:1".into(), "b:1".into()], Vec::new());
        // The first is known already; the third is new.
        assert!(servers.announce(&list(&[("one", "a:1"), ("three", "c:1")])));
        servers
    }

    #[tokio::test(start_paused = true)]
    async fn each_has_its_turn_and_the_first_is_home() {
        let mut servers = three();
        assert_eq!(servers.addresses(), ["a:1", "b:1", "c:1"]);
        let mut tried = Vec::new();
        for _ in 0..7 {
            tried.push((servers.current().to_owned(), servers.failed()));
        }
        let rounds: Vec<bool> = tried.iter().map(|(_, round)| *round).collect();
        let order: Vec<&str> = tried.iter().map(|(address, _)| address.as_str()).collect();
        assert_eq!(order, ["a:1", "b:1", "c:1", "a:1", "b:1", "c:1", "a:1"]);
        assert_eq!(rounds, [false, false, true, false, false, true, false]);
        let now = Instant::now();
        assert!(!servers.is_home(now));
        servers.go_home(now);
        assert_eq!((servers.current(), servers.is_home(now)), ("a:1", true));
        let mut alone = Servers::new(vec!["a:1".into()], Vec::new());
        assert!(alone.failed() && alone.failed(), "each failure is a round");
        assert_eq!(alone.current(), "a:1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_redirect_is_obeyed_within_the_list_seldom_and_for_an_hour() {
        let mut servers = three();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        for (at, id, expected, current) in [
            (0, "evil:1", Err(Ignored::Unknown), "a:1"),
            (0, "one", Err(Ignored::Here), "a:1"),
            (0, "three", Ok(()), "c:1"),
            (1, "b:1", Err(Ignored::TooOften), "c:1"),
            (599, "one", Err(Ignored::TooOften), "c:1"),
            (600, "b:1", Ok(()), "b:1"),
        ] {
            assert_eq!(servers.redirect(id, after(at)), expected, "{at} {id}");
            assert_eq!(servers.current(), current, "{at} {id}");
        }
        assert_eq!(servers.home(after(4_199)), "b:1");
        assert_eq!(servers.home(after(4_200)), "a:1", "after an hour");
        // A target that fails is given up at once.
        servers.failed();
        assert_eq!(
            (servers.current(), servers.home(after(601))),
            ("c:1", "a:1")
        );
    }

    #[test]
    fn what_cannot_be_dialled_or_shown_is_not_taken() {
        let mut servers = Servers::new(vec!["a:1".into()], Vec::new());
        let long = "x".repeat(300);
        for (id, address) in [
            ("", "b:1"),
            ("b", ""),
            ("b", "b"),
            ("b", "b:0"),
            ("b", "b:99999"),
            ("b c", "b:1"),
            ("b", "b\n:1"),
            (&long, "b:1"),
            ("b", &format!("{long}:1")),
        ] {
            assert!(!servers.announce(&list(&[(id, address)])), "{id} {address}");
        }
        let many: Vec<(String, String)> = (0..40)
            .map(|at| (format!("s{at}"), format!("s{at}:1")))
            .collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(id, at)| (&**id, &**at)).collect();
        assert!(servers.announce(&list(&many)));
        assert!(!servers.announce(&list(&many)), "the same again");
        assert_eq!(servers.announced().len(), MAX_SERVERS);
        assert!(!servers.announce(&list(&[])), "nothing is no news");
        assert_eq!(servers.addresses()[0], "a:1", "the configured stays first");
    }
}
