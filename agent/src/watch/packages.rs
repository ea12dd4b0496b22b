//! Packages that were installed, upgraded or removed.
//!
//! dpkg's status file is read when its time or size changed, and compared by name and version. Of rpm only the
//! databases' times and sizes are known: that something changed, not what.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path};

use muster_proto::{
    event, limits,
    time::Timestamp,
    v1::{EventFieldKey, EventKind},
};
use serde::{Deserialize, Serialize};

use super::{Found, MAX_EACH};
use crate::{collect::text, host::HostRoot};

const DPKG: &str = "var/lib/dpkg/status";

/// rpm's databases, newest form first: SQLite, NDB, Berkeley DB; and their place on image-based systems.
const RPM: [&str; 4] = [
    "var/lib/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/Packages.db",
    "var/lib/rpm/Packages",
];

/// Most packages that are compared.
const MAX_PACKAGES: usize = 20_000;

/// What is known.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    dpkg: Option<Stamp>,
    /// Name (with architecture where there are several) to version.
    versions: BTreeMap<String, String>,
    rpm: Option<BTreeMap<String, Stamp>>,
}

/// By which a file is known to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Inode: package managers replace their files.
    inode: u64,
    size: u64,
    mtime_ns: i128,
}

impl Stamp {
    /// Of the file at `path`, if there is one.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        })
    }
}

/// Compares with what is known; true if that changed.
pub fn look(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let dpkg = look_at_dpkg(host, at, known, found);
    look_at_rpm(host, at, known, found) | dpkg
}

fn look_at_dpkg(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let stamp = Stamp::of(&host.join(DPKG));
    if stamp.is_none() || stamp == known.dpkg {
        return false;
    }
    // Too large or unreadable: nothing is known, and nothing is told.
    let Ok(status) = host.read(DPKG) else {
        return false;
    };
    let now = versions(&status);
    // dpkg writes the file anew and renames it, so half of it is never seen; an empty one is no answer.
    if now.is_empty() {
        return false;
    }
    let first = known.dpkg.is_none();
    known.dpkg = stamp;
    let before = std::mem::replace(&mut known.versions, now);
    if first {
        return true;
    }
    let names: std::collections::BTreeSet<&String> =
        before.keys().chain(known.versions.keys()).collect();
    let changed: Vec<_> = names
        .into_iter()
        .map(|name| (name, before.get(name), known.versions.get(name)))
        .filter(|(_, before, now)| before != now)
        .collect();
    for (name, before, now) in changed.iter().take(MAX_EACH) {
        let sides = [(EventFieldKey::From, before), (EventFieldKey::To, now)];
        let fields = sides
            .into_iter()
            .filter_map(|(key, version)| Some(event::word(key, version.as_ref()?)));
        found.event(at, EventKind::PackageChanged, name, fields.collect());
    }
    if let Some(more) = changed.len().checked_sub(MAX_EACH).filter(|more| *more > 0) {
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        let fields = vec![event::integer(EventFieldKey::Count, more)];
        found.event(at, EventKind::PackagesChanged, "dpkg, not named", fields);
    }
    true
}

/// Packages that are there and their versions; states as in dpkg-query(1). Paragraphs of `Key: value` lines, as deb-control(5) has them.
fn versions(status: &[u8]) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let (mut name, mut version, mut architecture, mut installed) = (None, None, None, false);
    // An empty line ends a paragraph; one more ends the last.
    for line in status.split(|&byte| byte == b'\n').chain([&b""[..]]) {
        if line.is_empty() {
            let whole = (name.take(), version.take(), architecture.take());
            if let (Some(name), Some(version), architecture) = whole
                && std::mem::take(&mut installed)
                && versions.len() < MAX_PACKAGES
            {
                insert(&mut versions, name, architecture, version);
            }
            installed = false;
            continue;
        }
        let value = |key: &[u8]| line.strip_prefix(key).map(<[u8]>::trim_ascii);
        if let Some(value) = value(b"Package:") {
            name = Some(text::lossy(value).into_owned());
        } else if let Some(value) = value(b"Version:") {
            version = Some(text::lossy(value).into_owned());
        } else if let Some(value) = value(b"Architecture:") {
            architecture = Some(text::lossy(value).into_owned());
        } else if let Some(value) = value(b"Status:") {
            // A package is also there while it is unpacked, half configured or waits for triggers.
            let state = value.rsplit(|&byte| byte == b' ').next();
            installed = !matches!(state, Some(b"not-installed" | b"config-files" | b"") | None);
        }
    }
    versions
}

/// The same package of several architectures stands several times.
fn insert(
    versions: &mut BTreeMap<String, String>,
    name: String,
    architecture: Option<String>,
    version: String,
) {
    let bound = |text: &str, most| event::printable(text, most);
    let name = bound(&name, limits::MAX_EVENT_SUBJECT_BYTES / 2);
    let version = bound(&version, limits::MAX_EVENT_WORD_BYTES);
    let key = match versions.contains_key(&name) {
        false => name,
        true => format!("{name}:{}", bound(&architecture.unwrap_or_default(), 32)),
    };
    versions.insert(key, version);
}

fn look_at_rpm(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let now: BTreeMap<String, Stamp> = RPM
        .into_iter()
        .filter_map(|path| Some((path.to_owned(), Stamp::of(&host.join(path))?)))
        .collect();
    if known.rpm.as_ref() == Some(&now) {
        return false;
    }
    if known.rpm.replace(now).is_some() {
        found.event(at, EventKind::PackagesChanged, "rpm", Vec::new());
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::testing::{Tree, at},
        *,
    };

    fn status(packages: &[(&str, &str, &str)]) -> String {
        let paragraph = |(name, version, state): &(&str, &str, &str)| {
            format!(
                "Package: {name}\nStatus: install ok {state}\nArchitecture: amd64\nVersion: {version}\nDescription: x\n Version: 9 of the text\n\n"
            )
        };
        packages.iter().map(paragraph).collect()
    }

    #[test]
    fn packages_are_compared_by_name_and_version() {
        let tree = Tree::new(&[]);
        let (mut known, mut found) = (Known::default(), Found::default());
        let mut look = |packages: &[(&str, &str, &str)]| {
            tree.write(DPKG, &status(packages));
            let changed = look(&tree.host(), at(0), &mut known, &mut found);
            (changed, found.words())
        };
        let first = [("bash", "5.2-1", "installed"), ("vim", "9.0", "installed")];
        assert_eq!(look(&first), (true, vec![]), "the first look only learns");
        let second = [
            ("bash", "5.2-10", "installed"),
            ("vim", "9.0", "config-files"),
            ("zsh", "5.9", "installed"),
        ];
        let expected = [
            "package bash 5.2-1 → 5.2-10",
            "package vim 9.0 removed",
            "package zsh 5.9 installed",
        ];
        assert_eq!(look(&second), (true, expected.map(str::to_owned).to_vec()));
        assert_eq!(look(&second).1, [""; 0]);
        // In the middle of an upgrade nothing is removed, and in the end nothing installed anew.
        for state in [
            "unpacked",
            "half-configured",
            "triggers-pending",
            "installed",
        ] {
            let mut third = second;
            third[0].2 = state;
            assert_eq!(look(&third).1, [""; 0], "{state}");
        }
    }

    #[test]
    fn an_upgrade_of_everything_is_told_as_some_and_a_number() {
        let tree = Tree::new(&[]);
        let (mut known, mut found) = (Known::default(), Found::default());
        for version in ["1", "22"] {
            let all: Vec<String> = (0..1_000).map(|n| format!("p{n:04}")).collect();
            let all: Vec<_> = all
                .iter()
                .map(|name| (name.as_str(), version, "installed"))
                .collect();
            tree.write(DPKG, &status(&all));
            look(&tree.host(), at(0), &mut known, &mut found);
        }
        let words = found.words();
        assert_eq!(words.len(), MAX_EACH + 1);
        assert_eq!(words[MAX_EACH], "936 packages changed (dpkg, not named)");
    }

    #[test]
    fn of_rpm_it_is_known_that_something_changed() {
        let tree = Tree::new(&[("var/lib/rpm/rpmdb.sqlite", "one")]);
        let (mut known, mut found) = (Known::default(), Found::default());
        assert!(look(&tree.host(), at(0), &mut known, &mut found));
        assert!(!look(&tree.host(), at(1), &mut known, &mut found));
        tree.write("var/lib/rpm/rpmdb.sqlite", "other");
        assert!(look(&tree.host(), at(2), &mut known, &mut found));
        assert_eq!(found.words(), ["packages changed (rpm)"]);
    }

    proptest! {
        #[test]
        fn nothing_in_the_file_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut odd = status(&[("a", "1", "installed")]).into_bytes();
            let at = bytes.len() % odd.len();
            odd.splice(at..at, bytes);
            prop_assert!(versions(&odd).len() <= MAX_PACKAGES);
        }
    }
}
