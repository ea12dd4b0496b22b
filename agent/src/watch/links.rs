//! Network interfaces that go up and down: `/sys/class/net/*/operstate` and `carrier_changes`.
//!
//! Interfaces of containers and virtual machines come and go with these; they are left out by name. A link
//! that went down and up between two looks is told by the kernel's count of its changes. While the kernel tells of no
//! change, nothing is read.

use std::{collections::BTreeMap, fs};

use muster_proto::{
    event,
    time::Timestamp,
    v1::{EventFieldKey, EventKind},
};

use super::Found;
use crate::{
    collect::{glob, link_news::LinkNews},
    host::HostRoot,
};

/// Patterns of what is left out unless the configuration says otherwise.
pub const EXCLUDED: [&str; 8] = [
    "lo", "veth*", "docker*", "br-*", "cali*", "flannel*", "vnet*", "tap*",
];

/// Most interfaces that are looked at.
const MAX_LINKS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    up: bool,
    changes: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Links {
    excluded: Vec<String>,
    known: Option<BTreeMap<String, Link>>,
    heard: LinkNews,
    /// Something changed that was not looked at.
    news: bool,
}

impl Links {
    /// Leaves out interfaces that match one of these patterns.
    #[must_use]
    pub fn new(excluded: &[String]) -> Self {
        Self {
            excluded: excluded.to_vec(),
            known: None,
            heard: LinkNews::default(),
            news: false,
        }
    }

    /// Whether the kernel says that nothing changed since the last call: then a look finds nothing. Waits for nothing.
    pub fn is_quiet(&mut self, host: &HostRoot) -> bool {
        let quiet = self.heard.is_quiet(host) && self.known.is_some();
        self.news |= !quiet;
        quiet
    }

    /// Compares with the look before, unless [`Links::is_quiet`] has found nothing since.
    pub fn look(&mut self, host: &HostRoot, at: Timestamp, found: &mut Found) {
        if !std::mem::take(&mut self.news) && self.known.is_some() && host.is_live() {
            return;
        }
        let Some(now) = self.read(host) else {
            return;
        };
        let Some(before) = self.known.replace(now) else {
            return;
        };
        for (name, link) in self.known.iter().flatten() {
            // One that is new was down before, wherever it was.
            let new = Link {
                up: false,
                changes: link.changes,
            };
            let old = before.get(name).unwrap_or(&new);
            let changes = link.changes.saturating_sub(old.changes);
            if old.up != link.up || changes > 1 {
                tell(name, old.up, link.up, changes, at, found);
            }
        }
        for (name, old) in &before {
            let gone = self.known.iter().flatten().all(|(known, _)| known != name);
            if gone && old.up {
                tell(name, true, false, 0, at, found);
            }
        }
    }

    fn read(&self, host: &HostRoot) -> Option<BTreeMap<String, Link>> {
        let folder = fs::read_dir(host.join("sys/class/net")).ok()?;
        let mut links = BTreeMap::new();
        for entry in folder.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if glob::any(&self.excluded, name.as_bytes()) || links.len() >= MAX_LINKS {
                continue;
            }
            let path = |file: &str| format!("sys/class/net/{name}/{file}");
            // "unknown" is what drivers without a carrier say: tunnels that are up.
            let up = match host.word(path("operstate")).as_deref() {
                Some("up" | "unknown" | "dormant" | "testing") => true,
                Some("down" | "lowerlayerdown" | "notpresent") => false,
                _ => continue,
            };
            let changes = host.word(path("carrier_changes"));
            let changes = changes.and_then(|word| word.parse().ok()).unwrap_or(0);
            links.insert(name, Link { up, changes });
        }
        Some(links)
    }
}

fn tell(name: &str, from: bool, to: bool, changes: u64, at: Timestamp, found: &mut Found) {
    let word = |up| if up { "up" } else { "down" };
    let mut fields = vec![
        event::word(EventFieldKey::From, word(from)),
        event::word(EventFieldKey::To, word(to)),
    ];
    if changes > 1 {
        let changes = i64::try_from(changes).unwrap_or(i64::MAX);
        fields.push(event::integer(EventFieldKey::Count, changes));
    }
    found.event(at, EventKind::LinkChanged, name, fields);
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Tree, at},
        *,
    };

    #[test]
    fn links_that_change_are_told_and_those_of_containers_are_not() {
        let tree = Tree::new(&[]);
        let set = |name: &str, state: &str, changes: u32| {
            tree.write(
                &format!("sys/class/net/{name}/operstate"),
                &format!("{state}\n"),
            );
            tree.write(
                &format!("sys/class/net/{name}/carrier_changes"),
                &format!("{changes}\n"),
            );
        };
        let mut watch = Links::new(&EXCLUDED.map(str::to_owned));
        let mut found = Found::default();
        let mut look = || {
            watch.look(&tree.host(), at(0), &mut found);
            found.words()
        };
        set("eth0", "up", 2);
        set("veth12", "up", 2);
        assert!(look().is_empty(), "the first look only learns");
        set("eth0", "down", 3);
        set("veth12", "down", 3);
        assert_eq!(look(), ["link eth0 down"]);
        set("eth0", "up", 4);
        assert_eq!(look(), ["link eth0 up"]);
        set("eth0", "up", 10);
        assert_eq!(look(), ["link eth0 up, after 6 changes"]);
        set("wg0", "unknown", 0);
        assert_eq!(look(), ["link wg0 up"]);
        fs::remove_dir_all(tree.path().join("sys/class/net/wg0")).expect("removed");
        assert_eq!(look(), ["link wg0 down"]);
        set("eth0", "no such word", 11);
        assert_eq!(look(), ["link eth0 down"], "as good as gone");
    }
}
