//! `/proc/spl/kstat/zfs`: statistics of OpenZFS, and the state of each pool.
//!
//! A file has two lines of headings and then name, type and number on each line. Type 4 is an unsigned number
//! and 3 a signed one; what else there is are texts.

use std::time::Duration;

use muster_proto::{
    catalog::FamilyId,
    series::{Kind, Scale},
};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    memo::Memo,
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const FOLDER: &[u8] = b"proc/spl/kstat/zfs/";

/// File, and what stands behind `node_zfs_`.
const KSTATS: [(&str, &str); 11] = [
    ("abdstats", "abd"),
    ("arcstats", "arc"),
    ("dbufstats", "dbuf"),
    ("dmu_tx", "dmu_tx"),
    ("dnodestats", "dnode"),
    ("fm", "fm"),
    ("vdev_cache_stats", "vdev_cache"),
    ("vdev_mirror_stats", "vdev_mirror"),
    ("xuio_stats", "xuio"),
    ("zfetchstats", "zfetch"),
    ("zil", "zil"),
];

/// Most lines of a file; the longest has about 150.
const MAX_LINES: usize = 350;

/// States of a pool; 0 for all but one.
const STATES: [&str; 7] = [
    "online",
    "degraded",
    "faulted",
    "offline",
    "removed",
    "unavail",
    "suspended",
];

static ABOUT: About = About {
    name: "zfs",
    every: Duration::from_secs(30),
    reads: "/proc/spl/kstat/zfs",
    needs: "",
    what: "cache and other statistics of OpenZFS, state of its pools",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Zfs {
    names: Names,
    files: Files,
    known: Memo<Option<FamilyId>>,
}

impl Collector for Zfs {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if !self.names.list(host, FOLDER)? {
            return Ok(Outcome::NoData);
        }
        for (number, (file, prefix)) in KSTATS.into_iter().enumerate() {
            let kstat = self.files.word(host, &[FOLDER, file.as_bytes()]);
            let lines = text::lines(kstat.unwrap_or_default())
                .skip(2)
                .take(MAX_LINES);
            for (at, line) in lines.enumerate() {
                let mut fields = text::fields(line);
                let (Some(name), Some(b"3" | b"4"), Some(value)) =
                    (fields.next(), fields.next(), fields.next())
                else {
                    continue;
                };
                let Some(value) = text::signed(value) else {
                    continue;
                };
                let decide = |name: &[u8]| family(prefix, name, out);
                if let Some(family) = self.known.get(number * MAX_LINES + at, name, decide) {
                    out.int(family, &[], value);
                }
            }
        }
        let labels = ["zpool", "state"];
        let pool_state = "node_zfs_zpool_state";
        let Some(family) = out.dynamic_family(pool_state, Kind::Gauge, Scale::One, &labels) else {
            return Ok(Outcome::Read);
        };
        for pool in self.names.iter() {
            let Some(state) = self.files.word(host, &[FOLDER, pool, b"/state"]) else {
                continue;
            };
            if !out.admits_object(STATES.len()) {
                continue;
            }
            let pool = text::lossy(pool);
            for known in STATES {
                let is = known.as_bytes().eq_ignore_ascii_case(state);
                out.int(family, &[&pool, known], i64::from(is));
            }
        }
        Ok(Outcome::Read)
    }
}

fn family(prefix: &str, name: &[u8], out: &mut Readings) -> Option<FamilyId> {
    let legal = |&byte: &u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte)
        } else {
            '_'
        }
    };
    let name: String = name.iter().map(legal).collect();
    out.dynamic_family(
        &format!("node_zfs_{prefix}_{name}"),
        Kind::Untyped,
        Scale::One,
        &[],
    )
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn numbers_are_shown_and_pools_have_a_state() {
        let mut host = testing::Host::new();
        let mut zfs = Zfs::default();
        assert_eq!(host.run(&mut zfs).ok(), Some(Outcome::NoData));
        host.write(
            "proc/spl/kstat/zfs/arcstats",
            "6 1 0x01 91 4368 5266997922 97951858082072\nname type data\n\
             hits 4 8772612\narc_no_grow 4 0\nmemory_available_bytes 3 -922337203\ntext 7 x\n",
        );
        host.write("proc/spl/kstat/zfs/tank/state", "DEGRADED\n");
        let values = host.collect(&mut zfs);
        assert_eq!(values["node_zfs_arc_hits"], 8_772_612.0);
        assert_eq!(
            values["node_zfs_arc_memory_available_bytes"],
            -922_337_203.0
        );
        assert_eq!(
            values[r#"node_zfs_zpool_state{zpool="tank",state="degraded"}"#],
            1.0
        );
        assert_eq!(
            values[r#"node_zfs_zpool_state{zpool="tank",state="online"}"#],
            0.0
        );
        assert_eq!(values.len(), 3 + 7);
    }

    testing::garbage!(
        Zfs::default(),
        "proc/spl/kstat/zfs/arcstats",
        "[a-z]{0,4} [0-9]? ?-?[0-9x]{0,22}\n"
    );
}
