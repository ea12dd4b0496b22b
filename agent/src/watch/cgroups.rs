//! Which unit lost processes to the out-of-memory killer: `memory.events` of its cgroup.
//!
//! The kernel counts kills for the whole host in `/proc/vmstat`, which the sampler reads anyway. Only when that
//! count has risen are the cgroups looked at and compared with the look before; a cgroup that is new began at
//! 0. Kills that no cgroup accounts for, of a unit that is gone or without cgroup v2, are told without a unit.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use muster_proto::{
    event,
    time::Timestamp,
    v1::{EventFieldKey, EventKind},
};

use super::Found;
use crate::{collect::text, host::HostRoot};

/// Where cgroups v2 are.
pub const ROOT: &str = "sys/fs/cgroup";

/// Slices below slices: user.slice/user-1000.slice/user@1000.service/app.slice/x.service.
const MAX_DEPTH: usize = 6;

/// Most units that are looked at.
pub const MAX_UNITS: usize = 2_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Cgroups {
    /// Kills of each cgroup, by its path.
    kills: HashMap<PathBuf, u64>,
    learnt: bool,
}

impl Cgroups {
    /// Finds out whose the `killed` processes were.
    pub fn look(&mut self, host: &HostRoot, at: Timestamp, killed: u64, found: &mut Found) {
        if self.learnt && killed == 0 {
            return;
        }
        let first = !std::mem::replace(&mut self.learnt, true);
        let units = units(host);
        let mut unaccounted = killed;
        let mut seen = HashSet::new();
        for unit in &units {
            let Some(kills) = kills(host, &unit.path) else {
                continue;
            };
            seen.insert(unit.path.clone());
            let before = self.kills.insert(unit.path.clone(), kills);
            let new = kills.saturating_sub(before.unwrap_or(if first { kills } else { 0 }));
            if new > 0 {
                tell(&unit.name, new, at, found);
                unaccounted = unaccounted.saturating_sub(new);
            }
        }
        self.kills.retain(|path, _| seen.contains(path));
        if unaccounted > 0 {
            tell("", unaccounted, at, found);
        }
    }
}

fn tell(unit: &str, count: u64, at: Timestamp, found: &mut Found) {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let fields = vec![event::integer(EventFieldKey::Count, count)];
    found.event(at, EventKind::OomKill, unit, fields);
}

/// A unit with a cgroup of its own.
#[derive(Debug)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Its cgroup, below the host's root.
    pub path: PathBuf,
}

/// Services and scopes that have a cgroup, at most [`MAX_UNITS`]; none without cgroup v2.
#[must_use]
pub fn units(host: &HostRoot) -> Vec<Unit> {
    let mut units = Vec::new();
    walk(host, Path::new(ROOT), MAX_DEPTH, &mut units);
    units
}

fn walk(host: &HostRoot, below: &Path, depth: usize, units: &mut Vec<Unit>) {
    let Ok(folder) = fs::read_dir(host.join(below)) else {
        return;
    };
    for entry in folder.flatten() {
        if units.len() >= MAX_UNITS {
            return;
        }
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let is_unit = name.ends_with(".service") || name.ends_with(".scope");
        // A user's manager is a service with services below it.
        let is_parent = name.ends_with(".slice") || name.starts_with("user@");
        if !(is_unit || is_parent) || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = below.join(&name);
        if is_parent && depth > 0 {
            walk(host, &path, depth - 1, units);
        }
        if is_unit && !is_parent {
            units.push(Unit { name, path });
        }
    }
}

/// `oom_kill` of a cgroup and all below it.
fn kills(host: &HostRoot, cgroup: &Path) -> Option<u64> {
    let events = host.read(cgroup.join("memory.events")).ok()?;
    text::lines(&events).find_map(|line| {
        let mut fields = text::fields(line);
        (fields.next()? == b"oom_kill").then(|| text::unsigned(fields.next()?))?
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Tree, at},
        *,
    };

    #[test]
    fn kills_are_told_with_their_unit_and_the_rest_without() {
        let tree = Tree::new(&[]);
        let set = |path: &str, kills: u32| {
            let events = format!("low 0\noom 1\noom_kill {kills}\noom_group_kill 0\n");
            tree.write(&format!("{ROOT}/{path}/memory.events"), &events);
        };
        set("system.slice/db.service", 4);
        set(
            "user.slice/user-1000.slice/user@1000.service/app.slice/editor.scope",
            0,
        );
        let (mut cgroups, mut found) = (Cgroups::default(), Found::default());
        let mut look = |killed| {
            cgroups.look(&tree.host(), at(0), killed, &mut found);
            found.words()
        };
        assert!(look(0).is_empty(), "kills of before are not news");
        set("system.slice/db.service", 5);
        assert!(look(0).is_empty(), "not looked at without need");
        assert_eq!(look(1), ["out of memory: 1 killed in db.service"]);
        set(
            "user.slice/user-1000.slice/user@1000.service/app.slice/editor.scope",
            2,
        );
        set("system.slice/new.service", 1);
        let mut words = look(4);
        words.sort();
        assert_eq!(
            words,
            [
                "out of memory: 1 killed",
                "out of memory: 1 killed in new.service",
                "out of memory: 2 killed in editor.scope",
            ]
        );
    }

    #[test]
    fn without_cgroups_kills_are_told_all_the_same() {
        let (mut cgroups, mut found) = (Cgroups::default(), Found::default());
        cgroups.look(&Tree::new(&[]).host(), at(0), 3, &mut found);
        assert_eq!(found.words(), ["out of memory: 3 killed"]);
    }
}
