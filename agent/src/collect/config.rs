//! What an administrator may set about the collectors, and the defaults.
//!
//! Plain values: the configuration file is parsed and checked elsewhere. Patterns are globs
//! ([`super::glob`]). The defaults leave out what node_exporter leaves out, so that the same dashboards
//! show the same devices.

use std::{path::PathBuf, time::Duration};

use muster_proto::limits;

/// Series of a service: five states and its restarts.
const SERIES_PER_UNIT: usize = 6;

/// Which collectors run, and what they leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectConfig {
    /// Names of collectors that do not run.
    pub disabled: Vec<String>,
    /// Most series the host may have; at most [`limits::MAX_SERIES`].
    pub max_series: usize,
    /// Disks.
    pub disk: DiskConfig,
    /// Filesystems.
    pub filesystem: FilesystemConfig,
    /// Network interfaces.
    pub network: NetworkConfig,
    /// Services.
    pub systemd: SystemdConfig,
    /// Text files of scripts.
    pub textfile: TextfileConfig,
}

impl CollectConfig {
    /// Whether the collector of this name runs.
    #[must_use]
    pub fn is_enabled(&self, name: &str) -> bool {
        !self.disabled.iter().any(|disabled| disabled == name)
            && (!matches!(name, "systemd" | "unit_usage") || self.systemd.enabled)
    }

    /// What holds for systemd, with no more units than have room in half of all series.
    #[must_use]
    pub fn systemd_in_quota(&self) -> SystemdConfig {
        let room = self.max_series / 2 / SERIES_PER_UNIT;
        SystemdConfig {
            max_units: self.systemd.max_units.min(room),
            ..self.systemd.clone()
        }
    }
}

impl Default for CollectConfig {
    fn default() -> Self {
        Self {
            disabled: Vec::new(),
            max_series: limits::DEFAULT_SERIES_QUOTA,
            disk: DiskConfig::default(),
            filesystem: FilesystemConfig::default(),
            network: NetworkConfig::default(),
            systemd: SystemdConfig::default(),
            textfile: TextfileConfig::default(),
        }
    }
}

/// Which disks are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Globs on device names.
    pub devices_exclude: Vec<String>,
}

impl Default for DiskConfig {
    /// Memory and loop devices, floppies, and partitions: their disk shows the same I/O.
    fn default() -> Self {
        Self {
            devices_exclude: owned(&[
                "ram[0-9]*",
                "zram[0-9]*",
                "loop[0-9]*",
                "fd[0-9]*",
                "[hsv]d[a-z]*[0-9]",
                "xvd[a-z]*[0-9]",
                "nvme[0-9]*n[0-9]*p[0-9]*",
            ]),
        }
    }
}

/// Which filesystems are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemConfig {
    /// Globs on mount points.
    pub mount_points_exclude: Vec<String>,
    /// Globs on filesystem types.
    pub types_exclude: Vec<String>,
}

impl Default for FilesystemConfig {
    /// What has no space of its own, or is shown under another mount point.
    fn default() -> Self {
        Self {
            mount_points_exclude: owned(&[
                "/dev",
                "/dev/*",
                "/proc",
                "/proc/*",
                "/sys",
                "/sys/*",
                "/run/credentials/*",
                "/var/lib/docker/*",
                "/var/lib/containers/storage/*",
            ]),
            types_exclude: owned(&[
                "autofs",
                "binfmt_misc",
                "bpf",
                "cgroup",
                "cgroup2",
                "configfs",
                "debugfs",
                "devpts",
                "devtmpfs",
                "efivarfs",
                "erofs",
                "fusectl",
                "hugetlbfs",
                "iso9660",
                "mqueue",
                "nsfs",
                "overlay",
                "proc",
                "procfs",
                "pstore",
                "rpc_pipefs",
                "securityfs",
                "selinuxfs",
                "squashfs",
                "sysfs",
                "tracefs",
            ]),
        }
    }
}

/// Which network interfaces are left out; none by default, the loopback included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Globs on interface names.
    pub devices_exclude: Vec<String>,
}

/// Which systemd units are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemdConfig {
    /// Whether units are watched at all.
    pub enabled: bool,
    /// Globs on unit names; a unit must match one of them.
    pub include: Vec<String>,
    /// Globs on unit names; a unit that matches one of them is left out.
    pub exclude: Vec<String>,
    /// Most units that are watched; at most as many as have room in half of all series.
    pub max_units: usize,
}

impl Default for SystemdConfig {
    /// All but the kinds of unit that come and go with devices, mounts and logins.
    fn default() -> Self {
        Self {
            enabled: true,
            include: owned(&["*"]),
            exclude: owned(&["*.automount", "*.device", "*.mount", "*.scope", "*.slice"]),
            max_units: 2_000,
        }
    }
}

/// Where scripts leave their text files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextfileConfig {
    /// Folders; those that are not there are no fault.
    pub folders: Vec<PathBuf>,
    /// A file that was not written to for longer is flagged.
    pub stale_after: Duration,
}

impl TextfileConfig {
    /// [`TextfileConfig::stale_after`] in seconds.
    #[must_use]
    pub fn stale_after_seconds(&self) -> i64 {
        i64::try_from(self.stale_after.as_secs()).unwrap_or(i64::MAX)
    }
}

impl Default for TextfileConfig {
    /// The folder of Debian's package, and the one most instructions name. Daily scripts may be late.
    fn default() -> Self {
        let folders = [
            "/var/lib/prometheus/node-exporter",
            "/var/lib/node_exporter/textfile_collector",
        ];
        Self {
            folders: folders.map(PathBuf::from).to_vec(),
            stale_after: Duration::from_secs(36 * 3600),
        }
    }
}

fn owned(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|&pattern| pattern.to_owned()).collect()
}
