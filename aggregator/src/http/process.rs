//! The `process_*` metrics of the aggregator's own process, with the meaning Prometheus' clients give them.
//!
//! Read from `/proc/self`, which only Linux has; what is not there is left out of the page. Parsing is
//! apart from reading, so that it is tested on text.

use std::fs;

use muster_proto::series::Kind;

use super::page::{Own, Writer, whole};

/// `/proc` counts CPU time in 1/100 s whatever the kernel's own tick (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// What the kernel says of this process; `None` for what it does not say.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Process {
    cpu_seconds: Option<f64>,
    /// Since the machine booted.
    start_seconds: Option<f64>,
    boot_time_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    open_files: Option<u64>,
    max_files: Option<u64>,
}

impl Process {
    /// Reads a handful of small files; takes well under a millisecond.
    pub(super) fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count() as u64);
        Self {
            open_files: open.ok(),
            ..Self::parse(
                &text("/proc/self/stat"),
                &text("/proc/self/status"),
                &text("/proc/self/limits"),
                &text("/proc/stat"),
            )
        }
    }

    fn parse(stat: &str, status: &str, limits: &str, machine: &str) -> Self {
        // The program's name may contain anything; the fields after its last parenthesis cannot.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |field: usize| {
            // proc(5) numbers fields from 1, and the first after the name is 3.
            let text = after_name.split_ascii_whitespace().nth(field - 3)?;
            text.parse::<f64>().ok()
        };
        let number = |text: &str, key: &str, place: usize| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_ascii_whitespace()
                .nth(place)?
                .parse::<u64>()
                .ok()
        };
        let kib = |key| number(status, key, 0).map(|kib| kib * 1024);
        Self {
            cpu_seconds: ticks(14)
                .zip(ticks(15))
                .map(|(user, system)| (user + system) / TICKS_PER_SECOND),
            start_seconds: ticks(22).map(|ticks| ticks / TICKS_PER_SECOND),
            boot_time_seconds: number(machine, "btime", 0).map(whole),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            open_files: None,
            max_files: number(limits, "Max open files", 0),
        }
    }

    /// Writes what is known.
    pub(super) fn write(&self, page: &mut Writer) {
        let start = self.boot_time_seconds.zip(self.start_seconds);
        for (own, value) in [
            (&CPU, self.cpu_seconds),
            (&RESIDENT, self.resident_bytes.map(whole)),
            (&VIRTUAL, self.virtual_bytes.map(whole)),
            (&OPEN_FILES, self.open_files.map(whole)),
            (&MAX_FILES, self.max_files.map(whole)),
            (&START, start.map(|(boot, since)| boot + since)),
        ] {
            if let Some(value) = value {
                page.own(own).sample([], value);
            }
        }
    }
}

const CPU: Own = Own(
    "process_cpu_seconds_total",
    Kind::Counter,
    "CPU time of the aggregator, user and system.",
);
const RESIDENT: Own = Own(
    "process_resident_memory_bytes",
    Kind::Gauge,
    "Resident memory of the aggregator.",
);
const VIRTUAL: Own = Own(
    "process_virtual_memory_bytes",
    Kind::Gauge,
    "Virtual memory of the aggregator.",
);
const OPEN_FILES: Own = Own(
    "process_open_fds",
    Kind::Gauge,
    "File descriptors the aggregator has open.",
);
const MAX_FILES: Own = Own(
    "process_max_fds",
    Kind::Gauge,
    "File descriptors the aggregator may have open.",
);
const START: Own = Own(
    "process_start_time_seconds",
    Kind::Gauge,
    "When the aggregator started, in seconds since 1970.",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_the_kernel_prints() {
        let stat = "4711 (odd) name) S 1 4711 4711 0 -1 4194560 2610 0 1 0 150 50 0 0 20 0 6 0 12345 \
                    1000000 500 18446744073709551615 1 1";
        let process = Process::parse(
            stat,
            "Name:\todd\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\n",
            "Limit  Soft  Hard  Units\nMax open files            1024  4096  files\n",
            "cpu 1 2 3\nbtime 1700000000\n",
        );
        assert_eq!(
            process,
            Process {
                cpu_seconds: Some(2.0),
                start_seconds: Some(123.45),
                boot_time_seconds: Some(1_700_000_000.0),
                resident_bytes: Some(1024 * 1024),
                virtual_bytes: Some(2048 * 1024),
                open_files: None,
                max_files: Some(1024),
            }
        );
    }

    #[test]
    fn what_is_not_there_is_absent() {
        let unlimited = "Max open files unlimited unlimited files";
        let process = Process::parse("", "VmRSS: many", unlimited, "btime");
        assert_eq!(process, Process::default());
    }
}
