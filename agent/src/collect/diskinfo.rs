//! What each disk is: numbers, model, serial, the volume it is, the filesystem on it, its write cache.
//!
//! From udev's database in `/run/udev/data`, a file for each device with lines `E:KEY=value`. Without udev, as
//! in most containers, only the device's numbers are known, and whether it turns.

use std::time::Duration;

use muster_proto::catalog::{self, FamilyId};

use super::{
    About, CollectError, Collector, DiskConfig, Outcome, Readings, glob, sysfs::Files, text,
};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/diskstats";

/// Info, filesystem, device mapper, three of ATA.
const SERIES_PER_DISK: usize = 6;

/// Properties of `node_disk_info`, behind device and numbers.
const INFO: [&str; 5] = [
    "ID_PATH",
    "ID_WWN",
    "ID_MODEL",
    "ID_SERIAL_SHORT",
    "ID_REVISION",
];
/// Takes the place of the serial where the disk says it itself.
const SCSI_SERIAL: &str = "SCSI_IDENT_SERIAL";
const FILESYSTEM: [&str; 4] = ["ID_FS_TYPE", "ID_FS_USAGE", "ID_FS_UUID", "ID_FS_VERSION"];
const MAPPER: [&str; 5] = [
    "DM_NAME",
    "DM_UUID",
    "DM_VG_NAME",
    "DM_LV_NAME",
    "DM_LV_LAYER",
];
const ATA: [(&str, FamilyId); 3] = [
    ("ID_ATA_WRITE_CACHE", catalog::DISK_ATA_WRITE_CACHE),
    (
        "ID_ATA_WRITE_CACHE_ENABLED",
        catalog::DISK_ATA_WRITE_CACHE_ENABLED,
    ),
    ("ID_ATA_ROTATION_RATE_RPM", catalog::DISK_ATA_ROTATION_RATE),
];

/// Properties by which one piece of hardware or one volume is known from all others.
const IDENTITIES: [&str; 5] = [
    "ID_WWN",
    "ID_SERIAL_SHORT",
    SCSI_SERIAL,
    "ID_FS_UUID",
    "DM_UUID",
];

/// Whether the collector reads this line of udev's database; those of an identity only `with_identities`.
#[must_use]
pub fn reads(line: &[u8], with_identities: bool) -> bool {
    let key = line.strip_prefix(b"E:").unwrap_or_default();
    let key = key.split(|&byte| byte == b'=').next().unwrap_or_default();
    let stands_in = |keys: &[&str]| keys.iter().any(|known| known.as_bytes() == key);
    let ata = ATA.map(|(key, _)| key);
    let read: [&[&str]; 5] = [&INFO, &FILESYSTEM, &MAPPER, &ata, &[SCSI_SERIAL]];
    read.into_iter().any(stands_in) && (with_identities || !stands_in(&IDENTITIES))
}

static ABOUT: About = About {
    name: "diskinfo",
    every: Duration::from_secs(60),
    reads: "/run/udev/data, /proc/diskstats, /sys/block/<disk>/queue/rotational",
    needs: "",
    what: "model, serial, volume and filesystem of each disk, in labels",
};

/// See the module.
#[derive(Debug)]
pub struct Diskinfo {
    file: KeptFile,
    exclude: glob::Filter,
    udev: Files,
    files: Files,
}

impl Diskinfo {
    /// Leaves out what the configuration says.
    #[must_use]
    pub fn new(config: &DiskConfig) -> Self {
        Self {
            file: KeptFile::new(PATH),
            exclude: glob::Filter::new(&config.devices_exclude),
            udev: Files::default(),
            files: Files::default(),
        }
    }
}

impl Collector for Diskinfo {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let Some(diskstats) = self.file.read_if_there(host)? else {
            return Ok(Outcome::NoData);
        };
        for (number, line) in text::lines(diskstats).enumerate() {
            let mut fields = text::fields(line);
            let (Some(major), Some(minor), Some(name)) =
                (fields.next(), fields.next(), fields.next())
            else {
                let what = "two device numbers before a name";
                return Err(CollectError::Malformed { path: PATH, what });
            };
            if text::unsigned(major).is_none() || text::unsigned(minor).is_none() {
                let what = "two device numbers before a name";
                return Err(CollectError::Malformed { path: PATH, what });
            }
            if self.exclude.matches(number, name) || !out.admits_object(SERIES_PER_DISK) {
                continue;
            }
            let path: [&[u8]; 4] = [b"run/udev/data/b", major, b":", minor];
            let udev = Properties(self.udev.word(host, &path).unwrap_or_default());
            let path: [&[u8]; 3] = [b"sys/block/", name, b"/queue/rotational"];
            let rotational = self.files.word(host, &path).unwrap_or_default();
            let (device, rotational) = (text::lossy(name), text::lossy(rotational));
            let numbers = [text::lossy(major), text::lossy(minor)];
            udev.put(&device, &numbers, &rotational, out);
        }
        Ok(Outcome::Read)
    }
}

/// A file of udev's database.
struct Properties<'a>(&'a [u8]);

impl Properties<'_> {
    /// The value of a property; empty if it is not there.
    fn value(&self, key: &str) -> std::borrow::Cow<'_, str> {
        let value = text::lines(self.0).find_map(|line| {
            let rest = line.strip_prefix(b"E:")?.strip_prefix(key.as_bytes())?;
            rest.strip_prefix(b"=")
        });
        text::lossy(value.unwrap_or_default())
    }

    fn put(
        &self,
        device: &str,
        [major, minor]: &[std::borrow::Cow<'_, str>; 2],
        rotational: &str,
        out: &mut Readings,
    ) {
        let info = INFO.map(|key| self.value(key));
        let [path, wwn, model, short, revision] = info.each_ref().map(|value| &**value);
        let own = self.value(SCSI_SERIAL);
        let serial = if own.is_empty() { short } else { &*own };
        let labels = [
            device, major, minor, path, wwn, model, serial, revision, rotational,
        ];
        out.int(catalog::DISK_INFO, &labels, 1);
        let filesystem = FILESYSTEM.map(|key| self.value(key));
        let [kind, usage, uuid, version] = filesystem.each_ref().map(|value| &**value);
        if !kind.is_empty() {
            let labels = [device, kind, usage, uuid, version];
            out.int(catalog::DISK_FILESYSTEM_INFO, &labels, 1);
        }
        let mapper = MAPPER.map(|key| self.value(key));
        let [name, uuid, group, volume, layer] = mapper.each_ref().map(|value| &**value);
        if !name.is_empty() {
            let labels = [device, name, uuid, group, volume, layer];
            out.int(catalog::DISK_DEVICE_MAPPER_INFO, &labels, 1);
        }
        for (key, family) in ATA {
            if let Some(value) = text::unsigned(self.value(key).as_bytes()) {
                out.unsigned(family, &[device], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn diskinfo() -> Diskinfo {
        Diskinfo::new(&DiskConfig::default())
    }

    #[test]
    fn udev_tells_what_a_disk_is() {
        let mut host = testing::Host::new();
        assert_eq!(host.run(&mut diskinfo()).ok(), Some(Outcome::NoData));
        host.write(
            PATH,
            "8 0 sda 1 2\n8 1 sda1 1 2\n253 0 dm-0 1\n252 0 vda 1\n",
        );
        host.write(
            "run/udev/data/b8:0",
            "S:disk/by-id/x\nE:ID_MODEL=VBOX\\x20HARDDISK\nE:ID_SERIAL_SHORT=S1\nE:ID_ATA=1\n\
             E:ID_ATA_WRITE_CACHE=1\nE:ID_ATA_ROTATION_RATE_RPM=7200\n",
        );
        host.write(
            "run/udev/data/b253:0",
            "E:DM_NAME=vg-root\nE:DM_VG_NAME=vg\nE:DM_LV_NAME=root\nE:ID_FS_TYPE=ext4\n",
        );
        host.write("sys/block/sda/queue/rotational", "1\n");
        let values = host.collect(&mut diskinfo());
        let has = |parts: &[&str]| {
            values
                .keys()
                .any(|key| parts.iter().all(|part| key.contains(part)))
        };
        assert!(has(&[
            "node_disk_info",
            "sda",
            r#"serial="S1""#,
            r#"rotational="1""#,
            r#"major="8""#
        ]));
        assert!(has(&["node_disk_info", r#"device="vda""#, r#"model="""#]));
        assert!(has(&[
            "node_disk_device_mapper_info",
            r#"name="vg-root""#,
            r#"lv_name="root""#
        ]));
        assert!(has(&[
            "node_disk_filesystem_info",
            r#"device="dm-0""#,
            r#"type="ext4""#
        ]));
        assert_eq!(
            values[r#"node_disk_ata_rotation_rate_rpm{device="sda"}"#],
            7200.0
        );
        assert_eq!(values.len(), 3 + 1 + 1 + 2);
        host.write(PATH, "sda 1 2\n");
        assert!(host.fails(&mut diskinfo()));
    }

    testing::garbage!(diskinfo(), PATH, "[0-9x]{0,22} [0-9]{0,3} [a-z./]{0,9}\n");
}
