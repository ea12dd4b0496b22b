//! `/sys/fs/xfs/<device>/stats/stats`: what each XFS filesystem has done, since it was mounted.

use std::time::Duration;

use muster_proto::{
    catalog::FamilyId,
    series::{Kind, Scale},
};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const FOLDER: &[u8] = b"sys/fs/xfs/";

/// First word of a line, and what its numbers are (kernel fs/xfs/xfs_stats.c); between `node_xfs_` and `_total`.
const LINES: [(&[u8], &[&str]); 8] = [
    (
        b"extent_alloc",
        &[
            "extent_allocation_extents_allocated",
            "extent_allocation_blocks_allocated",
            "extent_allocation_extents_freed",
            "extent_allocation_blocks_freed",
        ],
    ),
    (
        b"abt",
        &[
            "allocation_btree_lookups",
            "allocation_btree_compares",
            "allocation_btree_records_inserted",
            "allocation_btree_records_deleted",
        ],
    ),
    (
        b"blk_map",
        &[
            "block_mapping_reads",
            "block_mapping_writes",
            "block_mapping_unmaps",
            "block_mapping_extent_list_insertions",
            "block_mapping_extent_list_deletions",
            "block_mapping_extent_list_lookups",
            "block_mapping_extent_list_compares",
        ],
    ),
    (
        b"bmbt",
        &[
            "block_map_btree_lookups",
            "block_map_btree_compares",
            "block_map_btree_records_inserted",
            "block_map_btree_records_deleted",
        ],
    ),
    (
        b"dir",
        &[
            "directory_operation_lookup",
            "directory_operation_create",
            "directory_operation_remove",
            "directory_operation_getdents",
        ],
    ),
    (
        b"ig",
        &[
            "inode_operation_attempts",
            "inode_operation_found",
            "inode_operation_recycled",
            "inode_operation_missed",
            "inode_operation_duplicates",
            "inode_operation_reclaims",
            "inode_operation_attribute_changes",
        ],
    ),
    (b"rw", &["write_calls", "read_calls"]),
    (
        b"vnodes",
        &[
            "vnode_active",
            "vnode_allocate",
            "vnode_get",
            "vnode_hold",
            "vnode_release",
            "vnode_reclaim",
            "vnode_remove",
        ],
    ),
];

/// Numbers of all lines.
const SERIES: usize = 39;

static ABOUT: About = About {
    name: "xfs",
    every: Duration::from_secs(30),
    reads: "/sys/fs/xfs",
    needs: "",
    what: "operations of each XFS filesystem",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Xfs {
    names: Names,
    files: Files,
    families: Vec<Vec<Option<FamilyId>>>,
}

impl Collector for Xfs {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.names.list(host, FOLDER)?;
        for name in self.names.iter() {
            // `stats` is the sum of all.
            let path: [&[u8]; 3] = [FOLDER, name, b"/stats/stats"];
            let Some(stats) = self.files.word(host, &path) else {
                continue;
            };
            if !out.admits_object(SERIES) {
                continue;
            }
            if self.families.is_empty() {
                let mut open = |name: &&str| {
                    let name = format!("node_xfs_{name}_total");
                    out.dynamic_family(&name, Kind::Counter, Scale::One, &["device"])
                };
                let lines = LINES
                    .iter()
                    .map(|(_, names)| names.iter().map(&mut open).collect());
                self.families = lines.collect();
            }
            let device = text::lossy(name);
            for line in text::lines(stats) {
                let mut fields = text::fields(line);
                let key = fields.next();
                let Some(at) = LINES.iter().position(|(name, _)| Some(*name) == key) else {
                    continue;
                };
                for (family, field) in self.families[at].iter().zip(fields) {
                    if let (Some(family), Some(value)) = (family, text::unsigned(field)) {
                        out.unsigned(*family, &[&device], value);
                    }
                }
            }
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn lines_become_counters() {
        let mut host = testing::Host::new();
        assert!(host.collect(&mut Xfs::default()).is_empty());
        host.write(
            "sys/fs/xfs/sda1/stats/stats",
            "extent_alloc 1 0 5 7\nrw 28 0\nxpc 399724544 1\ndebug 0\nvnodes 4 0 0 0 1 1 9 0\n",
        );
        let values = host.collect(&mut Xfs::default());
        let of = |name: &str| values[&format!("node_xfs_{name}_total{{device=\"sda1\"}}")];
        assert_eq!(
            (of("extent_allocation_blocks_freed"), of("write_calls")),
            (7.0, 28.0)
        );
        assert_eq!((of("vnode_remove"), values.len()), (9.0, 13));
        assert_eq!(
            LINES.iter().map(|(_, names)| names.len()).sum::<usize>(),
            SERIES
        );
    }

    testing::garbage!(
        Xfs::default(),
        "sys/fs/xfs/sda1/stats/stats",
        "(abt|rw|x)( [0-9x]{1,21}){0,9}\n"
    );
}
