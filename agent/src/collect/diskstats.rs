//! `/proc/diskstats`: what each disk has done.
//!
//! Sectors are 512 bytes and times milliseconds whatever the disk is (kernel
//! Documentation/admin-guide/iostats.rst). Kernels before 4.18 have no columns for discards, those before
//! 5.5 none for flushes: then these families are absent.

use std::time::Duration;

use muster_proto::catalog::{self, FamilyId};

use super::{About, CollectError, Collector, DiskConfig, Outcome, Readings, glob, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/diskstats";

/// The columns after major number, minor number and name.
const COLUMNS: [FamilyId; 17] = [
    catalog::DISK_READS_COMPLETED,
    catalog::DISK_READS_MERGED,
    catalog::DISK_READ_BYTES,
    catalog::DISK_READ_TIME,
    catalog::DISK_WRITES_COMPLETED,
    catalog::DISK_WRITES_MERGED,
    catalog::DISK_WRITTEN_BYTES,
    catalog::DISK_WRITE_TIME,
    catalog::DISK_IO_NOW,
    catalog::DISK_IO_TIME,
    catalog::DISK_IO_TIME_WEIGHTED,
    catalog::DISK_DISCARDS_COMPLETED,
    catalog::DISK_DISCARDS_MERGED,
    catalog::DISK_DISCARDED_SECTORS,
    catalog::DISK_DISCARD_TIME,
    catalog::DISK_FLUSH_REQUESTS,
    catalog::DISK_FLUSH_TIME,
];

/// Columns that every kernel since 2.6.25 prints, for partitions too.
const ALWAYS: usize = 11;

static ABOUT: About = About {
    name: "diskstats",
    every: Duration::ZERO,
    reads: "/proc/diskstats",
    needs: "",
    what: "reads, writes, bytes and busy time of each disk",
};

/// See the module.
#[derive(Debug)]
pub struct Diskstats {
    file: KeptFile,
    exclude: glob::Filter,
}

impl Diskstats {
    /// Leaves out what the configuration says.
    #[must_use]
    pub fn new(config: &DiskConfig) -> Self {
        Self {
            file: KeptFile::lines(PATH),
            exclude: glob::Filter::new(&config.devices_exclude),
        }
    }
}

impl Collector for Diskstats {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let diskstats = match self.file.read(host) {
            Ok(bytes) => bytes,
            // A kernel without block devices, or a container that hides them.
            Err(error) if error.is_absent() => return Ok(Outcome::NoData),
            Err(error) => return Err(error.into()),
        };
        for (number, line) in text::lines(diskstats).enumerate() {
            let mut fields = text::fields(line);
            let mut device_number = || fields.next().and_then(text::unsigned);
            if device_number().is_none() || device_number().is_none() {
                return Err(malformed("two device numbers before a name"));
            }
            let name = fields.next().ok_or(malformed("a device name"))?;
            if self.exclude.matches(number, name) {
                continue;
            }
            put_disk(&text::lossy(name), fields, out)?;
        }
        Ok(Outcome::Read)
    }
}

fn put_disk<'a>(
    device: &str,
    fields: impl Iterator<Item = &'a [u8]>,
    out: &mut Readings,
) -> Result<(), CollectError> {
    if !out.admits_object(COLUMNS.len()) {
        return Ok(());
    }
    let mut columns = 0;
    for (&family, field) in COLUMNS.iter().zip(fields) {
        let value = text::unsigned(field).ok_or(malformed("a number for each column"))?;
        out.unsigned(family, &[device], value);
        columns += 1;
    }
    if columns < ALWAYS {
        return Err(malformed("at least eleven columns for a disk"));
    }
    Ok(())
}

fn malformed(what: &'static str) -> CollectError {
    CollectError::Malformed { path: PATH, what }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn diskstats() -> Diskstats {
        Diskstats::new(&DiskConfig::default())
    }

    #[test]
    fn columns_have_their_units_and_partitions_are_left_out() {
        let mut host = testing::Host::new();
        host.write(
            PATH,
            "   8       0 sda 1 2 3 4000 5 6 7 8000 9 10000 11000 12 13 14 15000 16 17000 18\n\
             \x20  8       1 sda1 1 2 3 4 5 6 7 8 9 10 11\n\
             \x20  7       0 loop0 1 2 3 4 5 6 7 8 9 10 11\n\
             \x20 259       0 nvme0n1 1 2 3 4 5 6 7 8 9 10 11\n",
        );
        let values = host.collect(&mut diskstats());
        assert_eq!(values.len(), 17 + 11);
        let sda = |name: &str| values[&format!("node_disk_{name}{{device=\"sda\"}}")];
        assert_eq!(sda("read_bytes_total"), 3.0 * 512.0);
        assert_eq!(sda("read_time_seconds_total"), 4.0);
        assert_eq!(sda("io_now"), 9.0);
        assert_eq!(sda("io_time_seconds_total"), 10.0);
        assert_eq!(sda("discarded_sectors_total"), 14.0);
        assert_eq!(sda("flush_requests_time_seconds_total"), 17.0);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "x",
            "8 0\n",
            "8 0 sda 1 2\n",
            "8 0 sda 1 2 3 x 5 6 7 8 9 10 11\n",
        ] {
            let mut host = testing::Host::new();
            host.write(PATH, text);
            assert!(host.fails(&mut diskstats()), "{text:?}");
        }
    }

    #[test]
    fn no_disks_and_no_file_are_no_failure() {
        let mut host = testing::Host::new();
        assert_eq!(host.run(&mut diskstats()).ok(), Some(Outcome::NoData));
        host.write(PATH, "");
        assert!(host.collect(&mut diskstats()).is_empty());
    }

    testing::garbage!(
        diskstats(),
        PATH,
        " [0-9]{1,3} [0-9]{1,3} [a-z]{0,5}[0-9]?( [0-9x]{1,22}){0,18}\n"
    );
}
