//! `/sys/fs/btrfs/<uuid>`: space of each Btrfs filesystem by kind of data and layout, devices, commits.
//!
//! Errors of devices are told by an ioctl that only root may use, and are not shown.

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

const FOLDER: &[u8] = b"sys/fs/btrfs/";

const KINDS: [&str; 3] = ["data", "metadata", "system"];

/// Most filesystems, devices of one, and layouts of one kind of data.
const MAX_EACH: usize = 64;

static ABOUT: About = About {
    name: "btrfs",
    every: Duration::from_secs(60),
    reads: "/sys/fs/btrfs",
    needs: "",
    what: "space of Btrfs filesystems by kind of data and layout",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Btrfs {
    names: Names,
    inner: Names,
    files: Files,
    folder: Vec<u8>,
}

impl Collector for Btrfs {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.names.list(host, FOLDER)?;
        // `features` is what the kernel can do; a filesystem's name is its UUID.
        let is_uuid = |name: &&[u8]| name.len() == 36 && name.contains(&b'-');
        let uuids = self.names.iter().filter(is_uuid).take(MAX_EACH);
        let uuids: Vec<Vec<u8>> = uuids.map(<[u8]>::to_vec).collect();
        for uuid in uuids {
            if out.admits_object(32) {
                self.put(host, &uuid, out)?;
            }
        }
        Ok(Outcome::Read)
    }
}

impl Btrfs {
    fn put(
        &mut self,
        host: &HostRoot,
        uuid: &[u8],
        out: &mut Readings,
    ) -> Result<(), CollectError> {
        let label = self.files.word(host, &[FOLDER, uuid, b"/label"]);
        let label = text::lossy(label.unwrap_or_default()).into_owned();
        let name = text::lossy(uuid);
        put(
            out,
            "info",
            Kind::Gauge,
            Scale::One,
            &[("label", &label), ("uuid", &name)],
            1,
        );
        let size = self
            .files
            .unsigned(host, &[FOLDER, uuid, b"/allocation/global_rsv_size"]);
        if let Some(size) = size {
            put(
                out,
                "global_rsv_size_bytes",
                Kind::Gauge,
                Scale::One,
                &[("uuid", &name)],
                size,
            );
        }
        self.put_commits(host, uuid, out);
        self.folder = [FOLDER, uuid, b"/devices"].concat();
        self.inner.list(host, &self.folder)?;
        let devices = self.inner.count();
        for device in self.inner.iter().take(MAX_EACH) {
            if let Some(sectors) = self
                .files
                .unsigned(host, &[&self.folder, b"/", device, b"/size"])
            {
                let labels = [("device", &*text::lossy(device)), ("uuid", &*name)];
                put(
                    out,
                    "device_size_bytes",
                    Kind::Gauge,
                    Scale::Sector,
                    &labels,
                    sectors,
                );
            }
        }
        for kind in KINDS {
            self.put_kind(host, uuid, kind, devices, out)?;
        }
        Ok(())
    }

    /// Since Linux 6.0: `commits 3`, `last_commit_ms 1`, `max_commit_ms 9`, `total_commit_ms 12`.
    fn put_commits(&mut self, host: &HostRoot, uuid: &[u8], out: &mut Readings) {
        let stats = self.files.word(host, &[FOLDER, uuid, b"/commit_stats"]);
        for line in text::lines(stats.unwrap_or_default()) {
            let mut fields = text::fields(line);
            let (name, kind, scale) = match fields.next() {
                Some(b"commits") => ("commits_total", Kind::Counter, Scale::One),
                Some(b"last_commit_ms") => ("last_commit_seconds", Kind::Gauge, Scale::Milli),
                Some(b"max_commit_ms") => ("max_commit_seconds", Kind::Gauge, Scale::Milli),
                Some(b"total_commit_ms") => ("commit_seconds_total", Kind::Counter, Scale::Milli),
                _ => continue,
            };
            if let Some(value) = fields.next().and_then(text::unsigned) {
                put(
                    out,
                    name,
                    kind,
                    scale,
                    &[("uuid", &text::lossy(uuid))],
                    value,
                );
            }
        }
    }

    fn put_kind(
        &mut self,
        host: &HostRoot,
        uuid: &[u8],
        kind: &str,
        devices: usize,
        out: &mut Readings,
    ) -> Result<(), CollectError> {
        self.folder = [FOLDER, uuid, b"/allocation/", kind.as_bytes()].concat();
        let name = text::lossy(uuid);
        let reserved = self
            .files
            .unsigned(host, &[&self.folder, b"/bytes_reserved"]);
        if let Some(bytes) = reserved {
            let labels = [("block_group_type", kind), ("uuid", &*name)];
            put(
                out,
                "reserved_bytes",
                Kind::Gauge,
                Scale::One,
                &labels,
                bytes,
            );
        }
        self.inner.list(host, &self.folder)?;
        for layout in self.inner.iter() {
            // Layouts are the folders among files.
            let size = self
                .files
                .unsigned(host, &[&self.folder, b"/", layout, b"/total_bytes"]);
            let used = self
                .files
                .unsigned(host, &[&self.folder, b"/", layout, b"/used_bytes"]);
            let (Some(size), Some(used)) = (size, used) else {
                continue;
            };
            let mode = text::lossy(layout);
            let labels = [
                ("block_group_type", kind),
                ("mode", &*mode),
                ("uuid", &*name),
            ];
            put(out, "size_bytes", Kind::Gauge, Scale::One, &labels, size);
            put(out, "used_bytes", Kind::Gauge, Scale::One, &labels, used);
            if let Some(ratio) = ratio(layout, devices)
                && let Some((family, values)) =
                    family(out, "allocation_ratio", Kind::Gauge, Scale::Float, &labels)
            {
                out.float(family, &values, ratio);
            }
        }
        Ok(())
    }
}

fn put(
    out: &mut Readings,
    name: &str,
    kind: Kind,
    scale: Scale,
    labels: &[(&str, &str)],
    value: u64,
) {
    if let Some((family, values)) = family(out, name, kind, scale, labels) {
        out.unsigned(family, &values, value);
    }
}

fn family<'a>(
    out: &mut Readings,
    name: &str,
    kind: Kind,
    scale: Scale,
    labels: &[(&str, &'a str)],
) -> Option<(FamilyId, Vec<&'a str>)> {
    let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
    let family = out.dynamic_family(&format!("node_btrfs_{name}"), kind, scale, &names)?;
    Some((family, values))
}

/// Bytes on devices for a byte of data.
#[expect(
    clippy::cast_precision_loss,
    reason = "devices of one filesystem are few"
)]
fn ratio(layout: &[u8], devices: usize) -> Option<f64> {
    let parity = |parities: usize| {
        let data = devices.checked_sub(parities).filter(|&data| data > 0)?;
        Some(devices as f64 / data as f64)
    };
    match layout {
        b"single" | b"raid0" => Some(1.0),
        b"dup" | b"raid1" | b"raid10" => Some(2.0),
        b"raid1c3" => Some(3.0),
        b"raid1c4" => Some(4.0),
        b"raid5" => parity(1),
        b"raid6" => parity(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    const UUID: &str = "0abb23a9-579b-43e6-ad30-227ef47fcb9d";

    #[test]
    fn space_is_told_by_kind_and_layout() {
        let mut host = testing::Host::new();
        assert!(host.collect(&mut Btrfs::default()).is_empty());
        let base = format!("sys/fs/btrfs/{UUID}");
        for (file, content) in [
            ("label", "fixture"),
            ("allocation/global_rsv_size", "16777216"),
            ("allocation/data/bytes_reserved", "7"),
            ("allocation/data/raid5/total_bytes", "300"),
            ("allocation/data/raid5/used_bytes", "100"),
            ("devices/sda/size", "20"),
            ("devices/sdb/size", "20"),
            ("devices/sdc/size", "20"),
            ("commit_stats", "commits 3\nlast_commit_ms 1500"),
        ] {
            host.write(&format!("{base}/{file}"), format!("{content}\n"));
        }
        host.write("sys/fs/btrfs/features/raid56", "0\n");
        let values = host.collect(&mut Btrfs::default());
        let data = format!("block_group_type=\"data\",mode=\"raid5\",uuid=\"{UUID}\"");
        assert_eq!(
            values[&format!("node_btrfs_allocation_ratio{{{data}}}")],
            1.5
        );
        assert_eq!(values[&format!("node_btrfs_used_bytes{{{data}}}")], 100.0);
        let uuid = format!("{{uuid=\"{UUID}\"}}");
        assert_eq!(
            values[&format!("node_btrfs_last_commit_seconds{uuid}")],
            1.5
        );
        let device = format!("node_btrfs_device_size_bytes{{device=\"sdb\",uuid=\"{UUID}\"}}");
        assert_eq!(values[&device], 10_240.0);
        assert_eq!(values.len(), 2 + 2 + 3 + 1 + 3);
    }

    testing::garbage!(
        Btrfs::default(),
        "sys/fs/btrfs/0abb23a9-579b-43e6-ad30-227ef47fcb9d/commit_stats",
        "(commits|max_commit_ms) ?[0-9x]{0,22}\n"
    );
}
