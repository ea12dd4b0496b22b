//! Tracked connections: how many there are and may be, and what became of those that did not fit.
//!
//! The two numbers are in `/proc/sys/net/netfilter`, where the module is loaded. Statistics by CPU, in
//! hexadecimal columns, are in `/proc/net/stat/nf_conntrack`, which only root may read.

use std::time::Duration;

use muster_proto::catalog::{self, FamilyId};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const COUNT: &str = "proc/sys/net/netfilter/nf_conntrack_count";
const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const STATISTICS: &str = "proc/net/stat/nf_conntrack";

/// Columns of the statistics by name; they moved from kernel to kernel.
const COLUMNS: [(&[u8], FamilyId); 8] = [
    (b"found", catalog::CONNTRACK_FOUND),
    (b"invalid", catalog::CONNTRACK_INVALID),
    (b"ignore", catalog::CONNTRACK_IGNORE),
    (b"insert", catalog::CONNTRACK_INSERT),
    (b"insert_failed", catalog::CONNTRACK_INSERT_FAILED),
    (b"drop", catalog::CONNTRACK_DROP),
    (b"early_drop", catalog::CONNTRACK_EARLY_DROP),
    (b"search_restart", catalog::CONNTRACK_SEARCH_RESTART),
];

static ABOUT: About = About {
    name: "conntrack",
    every: Duration::from_secs(10),
    reads: "/proc/sys/net/netfilter/nf_conntrack_{count,max}, /proc/net/stat/nf_conntrack",
    needs: "root for the statistics; the two numbers need nothing",
    what: "tracked connections and their limit",
};

/// See the module.
#[derive(Debug)]
pub struct Conntrack {
    count: KeptFile,
    max: KeptFile,
    statistics: KeptFile,
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            count: KeptFile::whole(COUNT),
            max: KeptFile::whole(MAX),
            statistics: KeptFile::lines(STATISTICS),
        }
    }
}

impl Collector for Conntrack {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        for (path, file, family) in [
            (COUNT, &mut self.count, catalog::CONNTRACK_ENTRIES),
            (MAX, &mut self.max, catalog::CONNTRACK_LIMIT),
        ] {
            let Some(bytes) = file.read_if_there(host)? else {
                return Ok(Outcome::NoData);
            };
            let what = "a number";
            let number = text::unsigned(bytes.trim_ascii());
            out.unsigned(
                family,
                &[],
                number.ok_or(CollectError::Malformed { path, what })?,
            );
        }
        // Refused to all but root: then it is absent.
        if let Ok(bytes) = self.statistics.read(host) {
            put_statistics(bytes, out)?;
        }
        Ok(Outcome::Read)
    }
}

fn put_statistics(bytes: &[u8], out: &mut Readings) -> Result<(), CollectError> {
    let mut lines = text::lines(bytes);
    let Some(names) = lines.next() else {
        return Ok(());
    };
    let mut sums: [Option<u64>; COLUMNS.len()] = [None; COLUMNS.len()];
    for line in lines {
        for (name, field) in text::fields(names).zip(text::fields(line)) {
            let Some(at) = COLUMNS.iter().position(|(column, _)| *column == name) else {
                continue;
            };
            let number = text::hexadecimal(field).ok_or(CollectError::Malformed {
                path: STATISTICS,
                what: "hexadecimal numbers",
            })?;
            sums[at] = Some(sums[at].unwrap_or(0).saturating_add(number));
        }
    }
    for ((_, family), sum) in COLUMNS.into_iter().zip(sums) {
        if let Some(sum) = sum {
            out.unsigned(family, &[], sum);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn numbers_are_read_and_cpus_added_up() {
        let mut host = testing::Host::new();
        let mut conntrack = Conntrack::default();
        assert_eq!(host.run(&mut conntrack).ok(), Some(Outcome::NoData));
        host.write(COUNT, "123\n");
        host.write(MAX, "262144\n");
        assert_eq!(host.collect(&mut conntrack).len(), 2);
        host.write(
            STATISTICS,
            "entries  found drop search_restart\n0000007b  0000000a 1 0\n0000007b  00000001 2 0\n",
        );
        let values = host.collect(&mut conntrack);
        assert_eq!(values["node_nf_conntrack_entries"], 123.0);
        assert_eq!(values["node_nf_conntrack_entries_limit"], 262_144.0);
        assert_eq!(values["node_nf_conntrack_stat_found"], 11.0);
        assert_eq!(values["node_nf_conntrack_stat_drop"], 3.0);
        assert_eq!(values.len(), 5);
        host.write(STATISTICS, "found\nx\n");
        assert!(host.fails(&mut conntrack));
        host.write(COUNT, "-1\n");
        assert!(host.fails(&mut Conntrack::default()));
    }

    testing::garbage!(Conntrack::default(), COUNT, "[0-9x-]{0,22}\n");

    proptest::proptest! {
        #[test]
        fn statistics_survive_garbage(bytes: Vec<u8>, lines in "((found|drop|[0-9a-f]{1,17}) ?){0,9}\n") {
            let mut readings = Readings::default();
            readings.begin(0);
            let _ = put_statistics(&bytes, &mut readings);
            let _ = put_statistics(lines.as_bytes(), &mut readings);
        }
    }
}
