//! What is mounted: filesystems that appeared, went, or became read-only.
//!
//! The kernel tells on an open mount table whether it changed (proc(5): `POLLPRI`), so finding out that nothing did
//! is one system call. Tables of which the kernel cannot tell, such as captured ones, are read each time.

use std::{collections::BTreeMap, fs::File, os::fd::AsFd as _};

use muster_proto::{
    event,
    time::Timestamp,
    v1::{EventField, EventFieldKey, EventKind},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Found, MAX_EACH, left_out_event};
use crate::{
    collect::{mounts, text},
    host::HostRoot,
};

/// PID 1's table, and our own where that may not be read.
const TABLES: [&str; 2] = ["proc/1/mountinfo", "proc/self/mountinfo"];

/// Kinds of filesystems that come and go without anybody having done anything: containers, sessions, services'
/// credentials.
const PASSING: [&str; 6] = [
    "overlay",
    "nsfs",
    "fuse.portal",
    "ramfs",
    "autofs",
    "squashfs",
];

/// Mount points below which things come and go by themselves.
const PASSING_BELOW: [&str; 7] = [
    "/run/user/",
    "/run/credentials/",
    "/run/systemd/",
    "/run/docker/",
    "/run/netns/",
    "/var/lib/docker/",
    "/var/lib/containers/",
];

/// Most mounts that are compared; more are not looked at.
const MAX_MOUNTS: usize = 4_096;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    source: String,
    fstype: String,
    readonly: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Mounts {
    known: Option<BTreeMap<String, Mounted>>,
    /// Held open to be told of changes.
    table: Option<File>,
    /// Something changed that was not looked at.
    news: bool,
}

impl Mounts {
    /// Whether the kernel says that nothing was mounted or unmounted since the last call: then a look finds nothing.
    /// Waits for nothing.
    pub fn is_quiet(&mut self, host: &HostRoot) -> bool {
        let quiet = self.known.is_some() && host.is_live() && !self.has_changed();
        self.news |= !quiet;
        quiet
    }

    /// Compares with the look before, unless [`Mounts::is_quiet`] has found nothing since.
    pub fn look(&mut self, host: &HostRoot, at: Timestamp, found: &mut Found) {
        if !std::mem::take(&mut self.news) && self.known.is_some() && host.is_live() {
            return;
        }
        if host.is_live() && self.table.is_none() {
            // First, so that what changes while it is read is news.
            let open = |table: &&str| File::open(host.join(table)).ok();
            self.table = TABLES.iter().find_map(open);
        }
        let Some(now) = read(host) else {
            return;
        };
        let Some(before) = self.known.replace(now) else {
            return;
        };
        let now = self.known.iter().flatten();
        let mut told = 0;
        let mut tell = |kind, point: &str, fields| {
            told += 1;
            if told <= MAX_EACH {
                found.event(at, kind, point, fields);
            }
        };
        for (point, mount) in now.clone() {
            match before.get(point) {
                Some(old) if old.source != mount.source || old.fstype != mount.fstype => {
                    tell(EventKind::MountGone, point, what(old));
                    tell(EventKind::MountAppeared, point, what(mount));
                }
                Some(old) if old.readonly != mount.readonly => {
                    let mode = |readonly| if readonly { "ro" } else { "rw" };
                    let fields = vec![
                        event::word(EventFieldKey::From, mode(old.readonly)),
                        event::word(EventFieldKey::To, mode(mount.readonly)),
                    ];
                    tell(EventKind::MountModeChanged, point, fields);
                }
                Some(_) => {}
                None => tell(EventKind::MountAppeared, point, what(mount)),
            }
        }
        let now: BTreeMap<&String, &Mounted> = now.collect();
        for (point, mount) in before.iter().filter(|(point, _)| !now.contains_key(point)) {
            tell(EventKind::MountGone, point, what(mount));
        }
        if let Some(more) = told.checked_sub(MAX_EACH).filter(|more| *more > 0) {
            found.events.push(left_out_event(at, more as u64));
        }
    }

    fn has_changed(&self) -> bool {
        let Some(table) = &self.table else {
            return true;
        };
        let mut asked = [PollFd::from_borrowed_fd(table.as_fd(), PollFlags::PRI)];
        let now = Timespec::default();
        match poll(&mut asked, Some(&now)) {
            Ok(_) => asked[0]
                .revents()
                .intersects(PollFlags::PRI | PollFlags::ERR),
            Err(_) => true,
        }
    }
}

fn what(mount: &Mounted) -> Vec<EventField> {
    vec![
        event::word(EventFieldKey::Source, &mount.source),
        event::word(EventFieldKey::Type, &mount.fstype),
    ]
}

fn read(host: &HostRoot) -> Option<BTreeMap<String, Mounted>> {
    let table = TABLES.iter().find_map(|table| host.read(table).ok())?;
    let all = mounts::parse(&table)?;
    let lasting = all.into_iter().take(MAX_MOUNTS).filter_map(|mount| {
        let point = text::lossy(&mount.point).into_owned();
        let passing = PASSING.contains(&mount.fstype.as_str())
            || PASSING_BELOW.iter().any(|below| point.starts_with(below));
        let mounted = Mounted {
            source: mount.source,
            fstype: mount.fstype,
            readonly: mount.readonly,
        };
        (!passing).then_some((point, mounted))
    });
    Some(lasting.collect())
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Tree, at},
        *,
    };

    const ROOT: &str = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n";

    #[test]
    fn mounts_that_come_go_and_turn_read_only_are_told() {
        let tree = Tree::new(&[("proc/1/mountinfo", ROOT)]);
        let (mut watch, mut found) = (Mounts::default(), Found::default());
        let mut look = |table: &str| {
            tree.write("proc/1/mountinfo", table);
            watch.look(&tree.host(), at(0), &mut found);
            found.words()
        };
        assert!(look(ROOT).is_empty(), "the first look only learns");
        let nfs = "30 22 0:50 / /srv rw - nfs4 nas:/export rw\n";
        let passing = "31 22 0:51 / /run/user/1000 rw - tmpfs tmpfs rw\n32 22 0:52 / /x rw - overlay overlay rw\n";
        assert_eq!(
            look(&format!("{ROOT}{nfs}{passing}")),
            ["/srv mounted (nfs4 nas:/export)"]
        );
        assert!(look(&format!("{ROOT}{nfs}")).is_empty());
        let broken = ROOT.replace("/dev/sda1 rw,", "/dev/sda1 ro,");
        assert_eq!(look(&format!("{broken}{nfs}")), ["/ became read-only"]);
        assert_eq!(
            look(ROOT),
            ["/ became writable", "/srv unmounted (nfs4 nas:/export)"]
        );
        assert!(
            look("not a mount table\n").is_empty(),
            "what is not understood is no change"
        );
        assert!(look(ROOT).is_empty());
    }

    #[test]
    fn a_storm_of_mounts_is_told_as_a_number() {
        let tree = Tree::new(&[("proc/1/mountinfo", ROOT)]);
        let (mut watch, mut found) = (Mounts::default(), Found::default());
        watch.look(&tree.host(), at(0), &mut found);
        let many: String = (0..500)
            .map(|n| format!("{n} 22 0:{n} / /m{n} rw - tmpfs t rw\n"))
            .collect();
        tree.write("proc/1/mountinfo", &format!("{ROOT}{many}"));
        watch.look(&tree.host(), at(1), &mut found);
        let words = found.words();
        assert_eq!(words.len(), MAX_EACH + 1);
        assert_eq!(words[MAX_EACH], "436 events were left out");
    }
}
