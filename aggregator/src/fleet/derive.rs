//! Counters to rates, and series to the few quantities a host is judged and listed by.
//!
//! This is the one place where rates are made. A counter that went down, or a new boot, is a reset: no
//! rate at that tick, so neither a negative one nor a spike. What is not known stays unknown: `None` in
//! [`Derived`], NaN in [`Signals`].

use std::{borrow::Cow, collections::HashMap, hash::Hash};

use muster_proto::series::{Family, Kind};
use serde::{Deserialize, Serialize};

/// Names of what the host score looks at, one value a tick each. Quantities of many CPUs, disks or
/// interfaces are grouped to one, so that 64 cores do not outvote one disk.
pub const SIGNALS: &[&str] = &[
    "cpu_busy_ratio",
    "cpu_user_ratio",
    "cpu_system_ratio",
    "cpu_iowait_ratio",
    "cpu_steal_ratio",
    "load1",
    "procs_running",
    "procs_blocked",
    "context_switches_per_second",
    "forks_per_second",
    "interrupts_per_second",
    "memory_used_ratio",
    "memory_cached_ratio",
    "memory_dirty_bytes",
    "swap_used_ratio",
    "page_faults_per_second",
    "major_faults_per_second",
    "swap_pages_per_second",
    "disk_read_bytes_per_second",
    "disk_written_bytes_per_second",
    "disk_requests_per_second",
    "disk_busy_ratio_max",
    "network_receive_bytes_per_second",
    "network_transmit_bytes_per_second",
    "network_receive_packets_per_second",
    "network_transmit_packets_per_second",
    "network_errors_per_second",
    "pressure_cpu_ratio",
    "pressure_memory_ratio",
    "pressure_io_ratio",
    "filesystem_used_ratio_max",
    "filefd_ratio",
];

/// Place of a signal in [`SIGNALS`], at compile time: a name that is none does not compile.
#[must_use]
pub(crate) const fn place_of(signal: &str) -> usize {
    let mut place = 0;
    while !same(SIGNALS[place].as_bytes(), signal.as_bytes()) {
        place += 1;
    }
    place
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// One value for each of [`SIGNALS`]; NaN where it is not known.
pub type Signals = [f32; SIGNALS.len()];

/// What a host is listed by.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Derived {
    /// Share of CPU time that was neither idle nor waiting for I/O, all CPUs together.
    pub cpu_ratio: Option<f64>,
    /// Share of CPU time by node_exporter's modes.
    pub cpu_modes: Vec<(Cow<'static, str>, f64)>,
    /// 1 - available / total. Without the kernel's estimate (before 3.14), free, buffers and cache count
    /// as available.
    pub memory_ratio: Option<f64>,
    /// Used / (used + available to users) of the fullest filesystem that is not read-only.
    pub disk_ratio: Option<f64>,
    /// Where that filesystem is mounted.
    pub disk_mountpoint: String,
    /// Load average over 1 minute.
    pub load1: Option<f64>,
    /// Busiest disk's share of time with a request in flight.
    pub io_ratio: Option<f64>,
    /// All interfaces but loopback.
    pub network_receive_bytes_per_second: Option<f64>,
    /// All interfaces but loopback.
    pub network_transmit_bytes_per_second: Option<f64>,
    /// Share of time in which some task was stalled: the worst of CPU, memory and I/O.
    pub pressure_ratio: Option<f64>,
    /// All filesystems the host reports.
    pub filesystems: Vec<FilesystemPoint>,
}

/// One filesystem of a host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FilesystemPoint {
    /// Where it is mounted.
    pub mountpoint: String,
    /// What is mounted.
    pub device: String,
    /// Its type.
    pub fstype: String,
    /// Bytes; NaN when the filesystem did not answer.
    pub size: f64,
    /// Bytes that ordinary users may still use; NaN when the filesystem did not answer.
    pub available: f64,
    /// Used / (used + available), as df(1) shows it; NaN when the filesystem did not answer.
    pub used_ratio: f64,
    /// Share of inodes in use; absent where the filesystem has no fixed number of them.
    pub inodes_used_ratio: Option<f64>,
    /// Mounted read-only.
    pub readonly: bool,
    /// statvfs(2) does not return, or failed.
    pub hung: bool,
}

/// What a series contributes to [`Signals`] and [`Derived`]; found once, when its name is interned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    None,
    /// Its rate is added up.
    SumRate(Quantity),
    /// Its rate counts if it is the largest.
    MaxRate(Quantity),
    /// Its value is taken.
    Value(Quantity),
    /// A figure of a filesystem.
    Filesystem(FilesystemFigure),
    /// The state of a unit of the service manager.
    UnitState,
    /// The restarts of a unit of the service manager.
    UnitRestarts,
    /// Those of the last ten minutes.
    UnitRestartsRecent,
    /// Whether a collector worked.
    CollectorSuccess,
    /// That a host does not have what a collector reads, which is no failure.
    CollectorAbsent,
}

/// Figures of a filesystem that come as series of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesystemFigure {
    /// Size in bytes.
    Size,
    /// Free bytes, root's reserve included.
    Free,
    /// Bytes available to ordinary users.
    Available,
    /// Inodes.
    Files,
    /// Free inodes.
    FilesFree,
    /// Mounted read-only.
    Readonly,
    /// Could not be asked.
    DeviceError,
}

/// Sums, largest values and plain values that the signals are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after the metric it gathers")]
pub enum Quantity {
    CpuUser,
    CpuNice,
    CpuSystem,
    CpuIdle,
    CpuIowait,
    CpuIrq,
    CpuSoftirq,
    CpuSteal,
    Load1,
    Running,
    Blocked,
    ContextSwitches,
    Forks,
    Interrupts,
    MemoryTotal,
    MemoryAvailable,
    MemoryFree,
    MemoryBuffers,
    MemoryCached,
    MemoryDirty,
    SwapTotal,
    SwapFree,
    PageFaults,
    MajorFaults,
    SwapPages,
    DiskReadBytes,
    DiskWrittenBytes,
    DiskRequests,
    DiskBusy,
    NetworkReceiveBytes,
    NetworkTransmitBytes,
    NetworkReceivePackets,
    NetworkTransmitPackets,
    NetworkErrors,
    PressureCpu,
    PressureMemory,
    PressureIo,
    FilefdAllocated,
    FilefdMaximum,
    BootTime,
    HostClock,
    Count,
}

/// CPU modes in node_exporter's names, in the order of their quantities.
const CPU_MODES: [(&str, Quantity); 8] = [
    ("user", Quantity::CpuUser),
    ("nice", Quantity::CpuNice),
    ("system", Quantity::CpuSystem),
    ("idle", Quantity::CpuIdle),
    ("iowait", Quantity::CpuIowait),
    ("irq", Quantity::CpuIrq),
    ("softirq", Quantity::CpuSoftirq),
    ("steal", Quantity::CpuSteal),
];

impl Input {
    /// What the series of `family` with these label values contributes.
    #[must_use]
    pub fn of(family: &Family, labels: &[String]) -> Self {
        use FilesystemFigure as Fs;
        use Input::{Filesystem, MaxRate, SumRate, Value};
        use Quantity as Q;

        let label = |name: &str| {
            let at = family.labels.iter().position(|label| label == name);
            at.and_then(|at| labels.get(at)).map_or("", String::as_str)
        };
        match family.name.as_str() {
            "node_cpu_seconds_total" => CPU_MODES
                .iter()
                .find(|(mode, _)| *mode == label("mode"))
                .map_or(Self::None, |&(_, quantity)| SumRate(quantity)),
            "node_load1" => Value(Q::Load1),
            "node_procs_running" => Value(Q::Running),
            "node_procs_blocked" => Value(Q::Blocked),
            "node_context_switches_total" => SumRate(Q::ContextSwitches),
            "node_forks_total" => SumRate(Q::Forks),
            "node_intr_total" => SumRate(Q::Interrupts),
            "node_memory_MemTotal_bytes" => Value(Q::MemoryTotal),
            "node_memory_MemAvailable_bytes" => Value(Q::MemoryAvailable),
            "node_memory_MemFree_bytes" => Value(Q::MemoryFree),
            "node_memory_Buffers_bytes" => Value(Q::MemoryBuffers),
            "node_memory_Cached_bytes" => Value(Q::MemoryCached),
            "node_memory_Dirty_bytes" => Value(Q::MemoryDirty),
            "node_memory_SwapTotal_bytes" => Value(Q::SwapTotal),
            "node_memory_SwapFree_bytes" => Value(Q::SwapFree),
            "node_vmstat_pgfault" => SumRate(Q::PageFaults),
            "node_vmstat_pgmajfault" => SumRate(Q::MajorFaults),
            "node_vmstat_pswpin" | "node_vmstat_pswpout" => SumRate(Q::SwapPages),
            "node_disk_read_bytes_total" => SumRate(Q::DiskReadBytes),
            "node_disk_written_bytes_total" => SumRate(Q::DiskWrittenBytes),
            "node_disk_reads_completed_total" | "node_disk_writes_completed_total" => {
                SumRate(Q::DiskRequests)
            }
            "node_disk_io_time_seconds_total" => MaxRate(Q::DiskBusy),
            name if name.starts_with("node_network_") && label("device") != "lo" => match name {
                "node_network_receive_bytes_total" => SumRate(Q::NetworkReceiveBytes),
                "node_network_transmit_bytes_total" => SumRate(Q::NetworkTransmitBytes),
                "node_network_receive_packets_total" => SumRate(Q::NetworkReceivePackets),
                "node_network_transmit_packets_total" => SumRate(Q::NetworkTransmitPackets),
                "node_network_receive_errs_total"
                | "node_network_transmit_errs_total"
                | "node_network_receive_drop_total"
                | "node_network_transmit_drop_total" => SumRate(Q::NetworkErrors),
                _ => Self::None,
            },
            "node_pressure_cpu_waiting_seconds_total" => SumRate(Q::PressureCpu),
            "node_pressure_memory_waiting_seconds_total" => SumRate(Q::PressureMemory),
            "node_pressure_io_waiting_seconds_total" => SumRate(Q::PressureIo),
            "node_filefd_allocated" => Value(Q::FilefdAllocated),
            "node_filefd_maximum" => Value(Q::FilefdMaximum),
            "node_boot_time_seconds" => Value(Q::BootTime),
            "node_time_seconds" => Value(Q::HostClock),
            "node_filesystem_size_bytes" => Filesystem(Fs::Size),
            "node_filesystem_free_bytes" => Filesystem(Fs::Free),
            "node_filesystem_avail_bytes" => Filesystem(Fs::Available),
            "node_filesystem_files" => Filesystem(Fs::Files),
            "node_filesystem_files_free" => Filesystem(Fs::FilesFree),
            "node_filesystem_readonly" => Filesystem(Fs::Readonly),
            "node_filesystem_device_error" => Filesystem(Fs::DeviceError),
            "node_systemd_unit_state" => Self::UnitState,
            "node_systemd_service_restart_total" => Self::UnitRestarts,
            "muster_host_systemd_unit_restarts_recent" => Self::UnitRestartsRecent,
            "node_scrape_collector_success" => Self::CollectorSuccess,
            "muster_agent_collector_absent" => Self::CollectorAbsent,
            _ => Self::None,
        }
    }

    /// Whether a rate of the series is kept: of every counter, and of the untyped ones that count.
    #[must_use]
    pub fn is_rated(self, kind: Kind) -> bool {
        kind == Kind::Counter || matches!(self, Self::SumRate(_) | Self::MaxRate(_))
    }
}

/// The metrics that a signal is made of, for those that rules look at; nothing of any other.
#[must_use]
pub fn made_of(signal: &str) -> &'static [&'static str] {
    match signal {
        "cpu_steal_ratio" => &["node_cpu_seconds_total"],
        "swap_pages_per_second" => &["node_vmstat_pswpin", "node_vmstat_pswpout"],
        "memory_used_ratio" => &[
            "node_memory_MemTotal_bytes",
            "node_memory_MemAvailable_bytes",
            "node_memory_MemFree_bytes",
            "node_memory_Buffers_bytes",
            "node_memory_Cached_bytes",
        ],
        _ => &[],
    }
}

/// The metrics that [`filesystems`] are made of.
pub const FILESYSTEM_METRICS: [&str; 7] = [
    "node_filesystem_size_bytes",
    "node_filesystem_free_bytes",
    "node_filesystem_avail_bytes",
    "node_filesystem_files",
    "node_filesystem_files_free",
    "node_filesystem_readonly",
    "node_filesystem_device_error",
];

/// The metric of the states of units, one series for each unit and state, and that of their restarts.
pub const UNIT_METRICS: [&str; 2] = [
    "node_systemd_unit_state",
    "node_systemd_service_restart_total",
];

/// Gathers the quantities of one tick.
#[derive(Debug)]
pub struct Gather {
    quantities: [f64; Quantity::Count as usize],
}

impl Default for Gather {
    fn default() -> Self {
        Self {
            quantities: [f64::NAN; Quantity::Count as usize],
        }
    }
}

impl Gather {
    /// Takes one series with a value: `rate` is per second over the last tick, where it is known.
    pub fn add(&mut self, input: Input, value: f64, rate: Option<f64>) {
        match input {
            Input::SumRate(quantity) => {
                if let Some(rate) = rate {
                    let sum = &mut self.quantities[quantity as usize];
                    *sum = if sum.is_nan() { rate } else { *sum + rate };
                }
            }
            Input::MaxRate(quantity) => {
                if let Some(rate) = rate {
                    let most = &mut self.quantities[quantity as usize];
                    *most = most.max(rate);
                }
            }
            Input::Value(quantity) => self.quantities[quantity as usize] = value,
            _ => {}
        }
    }

    /// The kernel's boot time, seconds since 1970.
    #[must_use]
    pub fn boot_time_seconds(&self) -> Option<f64> {
        self.known(Quantity::BootTime)
    }

    /// The host's clock when the sample was taken, seconds since 1970.
    #[must_use]
    pub fn host_clock_seconds(&self) -> Option<f64> {
        self.known(Quantity::HostClock)
    }

    fn get(&self, quantity: Quantity) -> f64 {
        self.quantities[quantity as usize]
    }

    fn known(&self, quantity: Quantity) -> Option<f64> {
        Some(self.get(quantity)).filter(|value| value.is_finite())
    }

    /// What the host is listed by; `filesystems` as [`filesystems`] made them.
    #[must_use]
    pub fn derived(&self, filesystems: Vec<FilesystemPoint>) -> Derived {
        let mut derived = Derived {
            filesystems,
            ..Derived::default()
        };
        self.derive_into(&mut derived);
        derived
    }

    /// The same in the place of what a host was listed by before; its filesystems are as they are now.
    pub fn derive_into(&self, derived: &mut Derived) {
        use Quantity as Q;

        let total: f64 = self.cpu_total();
        let share = |rate: f64| Some(rate / total).filter(|share| share.is_finite());
        derived.cpu_ratio = finite(self.cpu_busy());
        derived.cpu_modes.clear();
        let modes = CPU_MODES.iter().filter_map(|&(mode, quantity)| {
            Some((mode.into(), share(self.get(quantity))?.clamp(0.0, 1.0)))
        });
        derived.cpu_modes.extend(modes);
        derived.memory_ratio = finite(self.memory_used());
        let fullest = fullest(&derived.filesystems);
        derived.disk_ratio = fullest.map(|filesystem| filesystem.used_ratio);
        let mountpoint = fullest.map_or("", |filesystem| &filesystem.mountpoint);
        if derived.disk_mountpoint != mountpoint {
            derived.disk_mountpoint = mountpoint.to_owned();
        }
        derived.load1 = self.known(Q::Load1);
        derived.io_ratio = self.known(Q::DiskBusy).map(|busy| busy.clamp(0.0, 1.0));
        derived.network_receive_bytes_per_second = self.known(Q::NetworkReceiveBytes);
        derived.network_transmit_bytes_per_second = self.known(Q::NetworkTransmitBytes);
        derived.pressure_ratio = [Q::PressureCpu, Q::PressureMemory, Q::PressureIo]
            .into_iter()
            .filter_map(|quantity| self.known(quantity))
            .reduce(f64::max)
            .map(|ratio| ratio.clamp(0.0, 1.0));
    }

    /// One value for each of [`SIGNALS`].
    #[must_use]
    pub fn signals(&self, derived: &Derived) -> Signals {
        use Quantity as Q;

        let total = self.cpu_total();
        let user = self.get(Q::CpuUser) + or_zero(self.get(Q::CpuNice));
        let system = self.get(Q::CpuSystem)
            + or_zero(self.get(Q::CpuIrq))
            + or_zero(self.get(Q::CpuSoftirq));
        let swap_used = match self.get(Q::SwapTotal) {
            0.0 => 0.0,
            total => 1.0 - self.get(Q::SwapFree) / total,
        };
        let values = [
            self.cpu_busy(),
            user / total,
            system / total,
            self.get(Q::CpuIowait) / total,
            self.get(Q::CpuSteal) / total,
            self.get(Q::Load1),
            self.get(Q::Running),
            self.get(Q::Blocked),
            self.get(Q::ContextSwitches),
            self.get(Q::Forks),
            self.get(Q::Interrupts),
            self.memory_used(),
            self.get(Q::MemoryCached) / self.get(Q::MemoryTotal),
            self.get(Q::MemoryDirty),
            swap_used,
            self.get(Q::PageFaults),
            self.get(Q::MajorFaults),
            self.get(Q::SwapPages),
            self.get(Q::DiskReadBytes),
            self.get(Q::DiskWrittenBytes),
            self.get(Q::DiskRequests),
            self.get(Q::DiskBusy),
            self.get(Q::NetworkReceiveBytes),
            self.get(Q::NetworkTransmitBytes),
            self.get(Q::NetworkReceivePackets),
            self.get(Q::NetworkTransmitPackets),
            self.get(Q::NetworkErrors),
            self.get(Q::PressureCpu),
            self.get(Q::PressureMemory),
            self.get(Q::PressureIo),
            derived.disk_ratio.unwrap_or(f64::NAN),
            self.get(Q::FilefdAllocated) / self.get(Q::FilefdMaximum),
        ];
        values.map(single)
    }

    /// CPU seconds per second over all modes: about the number of CPUs.
    fn cpu_total(&self) -> f64 {
        CPU_MODES
            .iter()
            .map(|&(_, quantity)| self.get(quantity))
            .filter(|rate| !rate.is_nan())
            .sum()
    }

    fn cpu_busy(&self) -> f64 {
        let resting = self.get(Quantity::CpuIdle) + or_zero(self.get(Quantity::CpuIowait));
        (1.0 - resting / self.cpu_total()).clamp(0.0, 1.0)
    }

    fn memory_used(&self) -> f64 {
        use Quantity as Q;

        let available = self.known(Q::MemoryAvailable).unwrap_or_else(|| {
            self.get(Q::MemoryFree) + self.get(Q::MemoryBuffers) + self.get(Q::MemoryCached)
        });
        (1.0 - available / self.get(Q::MemoryTotal)).clamp(0.0, 1.0)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "seven digits are plenty for a signal"
)]
fn single(value: f64) -> f32 {
    value as f32
}

fn or_zero(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value }
}

fn finite(value: f64) -> Option<f64> {
    Some(value).filter(|value| value.is_finite())
}

fn fullest(filesystems: &[FilesystemPoint]) -> Option<&FilesystemPoint> {
    filesystems
        .iter()
        .filter(|filesystem| !filesystem.readonly && filesystem.used_ratio.is_finite())
        .max_by(|one, other| one.used_ratio.total_cmp(&other.used_ratio))
}

/// A figure of a filesystem: which, [device, fstype, mountpoint], value.
type Figure<'a> = (FilesystemFigure, &'a [String], f64);

/// The figures of a filesystem, until all of them are known.
#[derive(Clone, Copy)]
struct Parts {
    size: f64,
    free: f64,
    available: f64,
    files: f64,
    files_free: f64,
    readonly: bool,
    hung: bool,
    seen: bool,
}

impl Parts {
    const NONE: Self = Self {
        size: f64::NAN,
        free: f64::NAN,
        available: f64::NAN,
        files: f64::NAN,
        files_free: f64::NAN,
        readonly: false,
        hung: false,
        seen: false,
    };
}

/// Lists up to this long are searched from their end: most hosts have few filesystems.
const FEW: usize = 16;

/// Where each key is in a list; the last one of those that are the same. The effort of a list that is built and asked
/// for grows as the list does, not as its square: a host may have thousands of mounts.
struct Places<K> {
    keys: Vec<K>,
    /// Empty as long as there are [`FEW`].
    at: HashMap<K, usize>,
}

impl<K: Copy + Eq + Hash> Places<K> {
    fn of(keys: impl Iterator<Item = K>) -> Self {
        let mut places = Self {
            keys: Vec::new(),
            at: HashMap::new(),
        };
        for key in keys {
            places.push(key);
        }
        places
    }

    /// Puts it at the end of the list; where that is.
    fn push(&mut self, key: K) -> usize {
        let place = self.keys.len();
        self.keys.push(key);
        if place == FEW {
            self.at.extend(self.keys.iter().copied().zip(0..));
        } else if place > FEW {
            self.at.insert(key, place);
        }
        place
    }

    fn find(&self, key: K) -> Option<usize> {
        if self.keys.len() > FEW {
            return self.at.get(&key).copied();
        }
        // Figures of one filesystem come close together, usually the last one's.
        self.keys.iter().rposition(|known| *known == key)
    }
}

/// What tells a filesystem from others, of the labels of its figures: what differs most comes first.
fn key_of(labels: &[String]) -> Option<[&str; 3]> {
    let [device, fstype, mountpoint] = labels else {
        return None;
    };
    Some([mountpoint, device, fstype])
}

/// Puts the figures of filesystems together.
#[must_use]
pub fn filesystems<'a>(figures: impl Iterator<Item = Figure<'a>>) -> Vec<FilesystemPoint> {
    let (mut places, mut parts) = (Places::of(std::iter::empty()), Vec::new());
    for figure in figures {
        let Some(key) = key_of(figure.1) else {
            continue;
        };
        let at = places.find(key).unwrap_or_else(|| {
            parts.push(Parts::NONE);
            places.push(key)
        });
        parts[at].take(figure);
    }
    let named = places.keys.iter().zip(&parts);
    named
        .map(|([mountpoint, device, fstype], parts)| {
            let mut point = FilesystemPoint {
                mountpoint: (*mountpoint).to_owned(),
                device: (*device).to_owned(),
                fstype: (*fstype).to_owned(),
                ..FilesystemPoint::default()
            };
            point.put(parts);
            point
        })
        .collect()
}

/// Puts them together in the place of what was made of the figures before. False when those were not of the same
/// filesystems: then what is there means nothing.
#[must_use]
pub fn refresh<'a>(
    points: &mut [FilesystemPoint],
    figures: impl Iterator<Item = Figure<'a>>,
) -> bool {
    let mut parts = vec![Parts::NONE; points.len()];
    let places = Places::of(points.iter().map(FilesystemPoint::key));
    for figure in figures {
        let Some(key) = key_of(figure.1) else {
            continue;
        };
        let Some(at) = places.find(key) else {
            return false;
        };
        parts[at].take(figure);
    }
    for (point, parts) in points.iter_mut().zip(&parts) {
        point.put(parts);
    }
    parts.iter().all(|parts| parts.seen)
}

impl Parts {
    fn take(&mut self, (figure, _, value): Figure<'_>) {
        self.seen = true;
        match figure {
            FilesystemFigure::Size => self.size = value,
            FilesystemFigure::Available => self.available = value,
            FilesystemFigure::Free => self.free = value,
            FilesystemFigure::Files => self.files = value,
            FilesystemFigure::FilesFree => self.files_free = value,
            FilesystemFigure::Readonly => self.readonly = value != 0.0,
            FilesystemFigure::DeviceError => self.hung = value != 0.0,
        }
    }
}

impl FilesystemPoint {
    fn key(&self) -> [&str; 3] {
        [&self.mountpoint, &self.device, &self.fstype]
    }

    fn put(&mut self, parts: &Parts) {
        (self.size, self.available) = (parts.size, parts.available);
        (self.readonly, self.hung) = (parts.readonly, parts.hung);
        let used = self.size - parts.free;
        self.used_ratio = match used + self.available {
            0.0 => f64::NAN,
            reachable => used / reachable,
        };
        self.inodes_used_ratio =
            finite(1.0 - parts.files_free / parts.files).filter(|_| parts.files > 0.0);
    }
}

/// Rate of a counter between two readings, per second; `None` after a reset or without time between.
#[must_use]
pub fn rate(before: f64, now: f64, seconds: f64) -> Option<f64> {
    let grown = now - before;
    (seconds > 0.0 && grown >= 0.0).then(|| grown / seconds)
}

#[cfg(test)]
mod tests {
    use muster_proto::series::Scale;

    use super::*;

    fn family(name: &str, labels: &[&str]) -> Family {
        Family {
            name: name.into(),
            kind: Kind::Counter,
            scale: Scale::One,
            labels: labels.iter().map(|&label| label.into()).collect(),
        }
    }

    #[test]
    fn rates_survive_resets() {
        assert_eq!(rate(100.0, 150.0, 10.0), Some(5.0));
        assert_eq!(rate(100.0, 100.0, 10.0), Some(0.0));
        assert_eq!(rate(100.0, 3.0, 10.0), None);
        assert_eq!(rate(100.0, 150.0, 0.0), None);
        assert_eq!(rate(f64::NAN, 150.0, 1.0), None);
    }

    #[test]
    fn cpu_shares_add_up_over_cpus() {
        let cpu = family("node_cpu_seconds_total", &["cpu", "mode"]);
        let mut gather = Gather::default();
        for cpu_number in ["0", "1"] {
            for (mode, rate) in [
                ("user", 0.25),
                ("system", 0.15),
                ("idle", 0.5),
                ("iowait", 0.1),
            ] {
                let input = Input::of(&cpu, &[cpu_number.into(), mode.into()]);
                gather.add(input, 0.0, Some(rate));
            }
        }
        let derived = gather.derived(Vec::new());
        assert!((derived.cpu_ratio.expect("known") - 0.4).abs() < 1e-9);
        assert_eq!(derived.cpu_modes.len(), 4);
        let signals = gather.signals(&derived);
        assert!((signals[3] - 0.1).abs() < 1e-6, "iowait {}", signals[3]);
    }

    #[test]
    fn nothing_known_is_nothing_claimed() {
        let gather = Gather::default();
        let derived = gather.derived(Vec::new());
        assert_eq!(derived, Derived::default());
        assert!(
            gather
                .signals(&derived)
                .iter()
                .all(|signal| signal.is_nan())
        );
    }

    #[test]
    fn loopback_is_left_out() {
        let bytes = family("node_network_receive_bytes_total", &["device"]);
        assert_eq!(Input::of(&bytes, &["lo".into()]), Input::None);
        assert_ne!(Input::of(&bytes, &["eth0".into()]), Input::None);
    }

    #[test]
    fn old_kernels_have_no_estimate_of_available_memory() {
        let mut gather = Gather::default();
        for (name, value) in [
            ("node_memory_MemTotal_bytes", 100.0),
            ("node_memory_MemFree_bytes", 10.0),
            ("node_memory_Buffers_bytes", 5.0),
            ("node_memory_Cached_bytes", 25.0),
        ] {
            gather.add(Input::of(&family(name, &[]), &[]), value, None);
        }
        let ratio = gather.derived(Vec::new()).memory_ratio.expect("known");
        assert!((ratio - 0.6).abs() < 1e-9);
    }

    #[test]
    fn filesystems_are_put_together_as_df_does() {
        use FilesystemFigure::{Available, DeviceError, Files, FilesFree, Free, Readonly, Size};

        let root: Vec<String> = ["/dev/vda", "ext4", "/"].map(String::from).to_vec();
        let nfs: Vec<String> = ["nas:/x", "nfs", "/mnt"].map(String::from).to_vec();
        let points = filesystems(
            [
                (Size, &root[..], 100.0),
                (Free, &root, 30.0),
                (Available, &root, 20.0),
                (Files, &root, 1000.0),
                (FilesFree, &root, 900.0),
                (Readonly, &root, 0.0),
                (DeviceError, &nfs, 1.0),
            ]
            .into_iter(),
        );
        assert!((points[0].used_ratio - 70.0 / 90.0).abs() < 1e-9);
        assert!((points[0].inodes_used_ratio.expect("known") - 0.1).abs() < 1e-9);
        assert!(points[1].hung && points[1].used_ratio.is_nan());
        let derived = Gather::default().derived(points);
        assert_eq!(derived.disk_mountpoint, "/");
    }

    /// A number of which it is counted how often it is compared.
    #[derive(Clone, Copy)]
    struct Counted<'a>(u32, &'a std::cell::Cell<usize>);

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.1.set(self.1.get() + 1);
            self.0 == other.0
        }
    }

    impl Eq for Counted<'_> {}

    impl Hash for Counted<'_> {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn thousands_of_mounts_are_found_without_comparing_each_with_each() {
        let (count, numbers) = (std::cell::Cell::new(0), 4000);
        let mut places = Places::of(std::iter::empty());
        for number in 0..numbers {
            let key = Counted(number, &count);
            assert_eq!(places.find(key), None);
            places.push(key);
        }
        for number in 0..numbers {
            let found = places.find(Counted(number, &count));
            assert_eq!(found, Some(number as usize));
        }
        let most = numbers as usize * 4;
        assert!(count.get() < most, "{} comparisons", count.get());
    }

    #[test]
    fn filesystems_are_refreshed_to_what_they_would_be_made_anew() {
        use FilesystemFigure::{Available, Free, Readonly, Size};

        for mounts in [1, FEW - 1, FEW, FEW + 1, 100] {
            let labels: Vec<Vec<String>> = (0..mounts)
                .map(|mount| vec!["nas:/x".into(), "nfs".into(), format!("/mnt/{mount}")])
                .collect();
            let figures = |free: f64| {
                let all = [(Size, 100.0), (Free, free), (Available, free)];
                let all = all.into_iter();
                all.flat_map(|(figure, value)| {
                    labels
                        .iter()
                        .map(move |labels| (figure, &labels[..], value))
                })
                .collect::<Vec<_>>()
            };
            let mut points = filesystems(figures(30.0).into_iter());
            assert_eq!(points.len(), mounts);
            assert_eq!(points[mounts - 1].mountpoint, labels[mounts - 1][2]);
            let mut now = figures(20.0);
            now.push((Readonly, &labels[0], 1.0));
            assert!(refresh(&mut points, now.clone().into_iter()), "{mounts}");
            assert_eq!(points, filesystems(now.clone().into_iter()), "{mounts}");
            // One that is gone, and one that is new.
            let gone = now.iter().filter(|figure| figure.1 != labels[0]).copied();
            assert!(!refresh(&mut points.clone(), gone), "{mounts}");
            let new = ["nas:/x", "nfs", "/mnt/new"].map(String::from);
            now.push((Size, &new, 1.0));
            assert!(!refresh(&mut points, now.into_iter()), "{mounts}");
        }
    }
}
