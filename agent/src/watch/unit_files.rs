//! Unit files and drop-ins that administrators and packages put in place.
//!
//! Which files there are is read each time; a file is hashed only when its time, size or inode changed, and is
//! told only when its content did: what configuration management writes again and again is no change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use muster_proto::{
    event,
    time::Timestamp,
    v1::{EventFieldKey, EventKind},
};
use serde::{Deserialize, Serialize};

use super::{Found, MAX_EACH, left_out_event, packages::Stamp};
use crate::{collect::text, host::HostRoot};

/// Where administrators put them; what packages bring is told with the packages.
const FOLDERS: [&str; 3] = [
    "etc/systemd/system",
    "usr/local/lib/systemd/system",
    "etc/systemd/system.conf.d",
];

/// Most files that are compared, and the largest that is hashed.
const MAX_FILES: usize = 4_096;
const MAX_BYTES: u64 = 256 * 1024;

/// What is known.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    files: Option<BTreeMap<String, Known1>>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known1 {
    stamp: Option<Stamp>,
    /// CRC-32C of the content; of a link, of where it leads.
    sum: u32,
}

/// Compares with what is known; true if that changed.
pub fn look(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let before = known.files.take();
    let empty = BTreeMap::new();
    let old = before.as_ref().unwrap_or(&empty);
    let now: BTreeMap<String, Known1> = files(host)
        .into_iter()
        .map(|path| {
            let name = format!("/{}", text::lossy(path.as_os_str().as_encoded_bytes()));
            let file = read(&host.join(&path), old.get(&name));
            (name, file)
        })
        .collect();
    let changed = before.as_ref() != Some(&now);
    if before.is_some() && changed {
        tell(old, &now, at, found);
    }
    known.files = Some(now);
    changed
}

fn tell(
    old: &BTreeMap<String, Known1>,
    now: &BTreeMap<String, Known1>,
    at: Timestamp,
    found: &mut Found,
) {
    let names: BTreeSet<&String> = old.keys().chain(now.keys()).collect();
    let mut told = 0;
    for name in names {
        let to = match (old.get(name), now.get(name)) {
            (None, _) => "added",
            (_, None) => "removed",
            (Some(old), Some(now)) if old.sum != now.sum => "changed",
            _ => continue,
        };
        told += 1;
        if told <= MAX_EACH {
            let fields = vec![event::word(EventFieldKey::To, to)];
            found.event(at, EventKind::UnitFileChanged, name, fields);
        }
    }
    if let Some(more) = told.checked_sub(MAX_EACH).filter(|more| *more > 0) {
        found.events.push(left_out_event(at, more as u64));
    }
}

/// The files below the folders, two levels deep: units, and drop-ins in `x.service.d` and `x.target.wants`.
fn files(host: &HostRoot) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut todo: Vec<(PathBuf, bool)> = FOLDERS.map(|folder| (folder.into(), true)).to_vec();
    while let Some((folder, deeper)) = todo.pop() {
        let Ok(entries) = fs::read_dir(host.join(&folder)) else {
            continue;
        };
        for entry in entries.flatten() {
            if all.len() + todo.len() >= MAX_FILES {
                return all;
            }
            let path = folder.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && deeper => todo.push((path, false)),
                Ok(kind) if kind.is_file() || kind.is_symlink() => all.push(path),
                _ => {}
            }
        }
    }
    all
}

fn read(path: &Path, old: Option<&Known1>) -> Known1 {
    if let Ok(target) = fs::read_link(path) {
        return Known1 {
            stamp: None,
            sum: crc32c::crc32c(target.as_os_str().as_encoded_bytes()),
        };
    }
    let stamp = Stamp::of(path);
    if let Some(old) = old.filter(|old| old.stamp == stamp && stamp.is_some()) {
        return old.clone();
    }
    let small = fs::metadata(path).is_ok_and(|meta| meta.len() <= MAX_BYTES);
    // What may not be read is known by its time and size alone.
    let content = Some(path)
        .filter(|_| small)
        .and_then(|path| fs::read(path).ok());
    let sum = match content {
        Some(content) => crc32c::crc32c(&content),
        None => crc32c::crc32c(format!("{stamp:?}").as_bytes()),
    };
    Known1 { stamp, sum }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Tree, at},
        *,
    };

    #[test]
    fn files_are_told_when_their_content_changes() {
        let tree = Tree::new(&[
            (
                "etc/systemd/system/web.service",
                "[Service]\nExecStart=/one\n",
            ),
            ("usr/lib/systemd/system/cron.service", "of a package"),
        ]);
        let (mut known, mut found) = (Known::default(), Found::default());
        let mut look = || {
            let changed = look(&tree.host(), at(0), &mut known, &mut found);
            (changed, found.words())
        };
        assert_eq!(look(), (true, vec![]), "the first look only learns");
        assert_eq!(look(), (false, vec![]));
        tree.write(
            "etc/systemd/system/web.service",
            "[Service]\nExecStart=/two!\n",
        );
        tree.write(
            "etc/systemd/system/web.service.d/limits.conf",
            "[Service]\n",
        );
        tree.write("usr/lib/systemd/system/cron.service", "of a newer package");
        let expected = [
            "unit file /etc/systemd/system/web.service changed",
            "unit file /etc/systemd/system/web.service.d/limits.conf added",
        ];
        assert_eq!(look(), (true, expected.map(str::to_owned).to_vec()));
        // Written again as it is: another inode, the same content.
        tree.remove("etc/systemd/system/web.service");
        tree.write("etc/systemd/system/other", "x");
        tree.remove("etc/systemd/system/other");
        tree.write(
            "etc/systemd/system/web.service",
            "[Service]\nExecStart=/two!\n",
        );
        assert_eq!(look().1, [""; 0]);
        let wants = tree
            .path()
            .join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants).expect("made");
        std::os::unix::fs::symlink("/etc/systemd/system/web.service", wants.join("web.service"))
            .expect("linked");
        tree.remove("etc/systemd/system/web.service.d/limits.conf");
        let expected = [
            "unit file /etc/systemd/system/multi-user.target.wants/web.service added",
            "unit file /etc/systemd/system/web.service.d/limits.conf removed",
        ];
        assert_eq!(look(), (true, expected.map(str::to_owned).to_vec()));
    }
}
