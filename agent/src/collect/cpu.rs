//! `/proc/stat`: time each CPU spent in each mode, and the kernel's totals.
//!
//! One series for each logical CPU that is online and each mode; the line that sums all CPUs is left
//! to whoever asks. Columns are in clock ticks of 1/100 s.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/stat";

/// Columns of a `cpuN` line (proc_stat(5)); old kernels have fewer.
const MODES: [&str; 8] = [
    "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal",
];

/// Columns after those.
const GUEST_MODES: [&str; 2] = ["user", "nice"];

const COLUMNS: usize = MODES.len() + GUEST_MODES.len();

/// The kernel computes idle and iowait anew on each read and they may step back a little. Up to 3 s,
/// node_exporter's bound too, that is no restart, and what was shown stays.
const JITTER_TICKS: u64 = 300;

static ABOUT: About = About {
    name: "cpu",
    every: Duration::ZERO,
    reads: "/proc/stat",
    needs: "",
    what: "time of each CPU by mode, context switches, interrupts, forks, boot time",
};

/// See the module.
#[derive(Debug)]
pub struct Cpu {
    file: KeptFile,
    /// What was shown last, in the order of the lines.
    shown: Vec<Shown>,
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    cpu: u64,
    ticks: [u64; COLUMNS],
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            file: KeptFile::whole(PATH),
            shown: Vec::new(),
        }
    }
}

impl Collector for Cpu {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let stat = self.file.read(host)?;
        let mut cpus = 0;
        for line in text::lines(stat) {
            let mut fields = text::fields(line);
            let Some(key) = fields.next() else { continue };
            if let Some(number) = key.strip_prefix(b"cpu") {
                if !number.is_empty() {
                    put_cpu(&mut self.shown, cpus, number, fields, out)?;
                    cpus += 1;
                }
                continue;
            }
            let family = match key {
                b"intr" => catalog::INTERRUPTS,
                b"ctxt" => catalog::CONTEXT_SWITCHES,
                b"btime" => catalog::BOOT_TIME_SECONDS,
                b"processes" => catalog::FORKS,
                b"procs_running" => catalog::PROCS_RUNNING,
                b"procs_blocked" => catalog::PROCS_BLOCKED,
                _ => continue,
            };
            // `intr` goes on with one column for each interrupt; the first is the sum.
            let value = fields.next().and_then(text::unsigned);
            out.unsigned(
                family,
                &[],
                value.ok_or(malformed("a number after a name"))?,
            );
        }
        self.shown.truncate(cpus);
        if cpus == 0 {
            return Err(malformed("a line for at least one CPU"));
        }
        Ok(Outcome::Read)
    }
}

fn put_cpu<'a>(
    shown: &mut Vec<Shown>,
    line: usize,
    number: &[u8],
    fields: impl Iterator<Item = &'a [u8]>,
    out: &mut Readings,
) -> Result<(), CollectError> {
    let cpu = text::unsigned(number).ok_or(malformed("a number after cpu"))?;
    let label = text::lossy(number);
    let mut ticks = [0; COLUMNS];
    let mut columns = 0;
    for (column, field) in fields.take(COLUMNS).enumerate() {
        ticks[column] = text::unsigned(field).ok_or(malformed("a number of clock ticks"))?;
        columns = column + 1;
    }
    // The first four are as old as /proc/stat itself.
    if columns < 4 {
        return Err(malformed("at least four columns for a CPU"));
    }
    match shown.get_mut(line) {
        Some(before) if before.cpu == cpu => {
            hold(&mut ticks, &before.ticks);
            before.ticks = ticks;
        }
        // CPUs came or went: from here on nothing is known.
        _ => {
            shown.truncate(line);
            shown.push(Shown { cpu, ticks });
        }
    }
    for (mode, &value) in MODES.iter().zip(&ticks[..columns]) {
        out.unsigned(catalog::CPU_SECONDS, &[&label, mode], value);
    }
    let guest = ticks[..columns].iter().skip(MODES.len());
    for (mode, &value) in GUEST_MODES.iter().zip(guest) {
        out.unsigned(catalog::CPU_GUEST_SECONDS, &[&label, mode], value);
    }
    Ok(())
}

/// Keeps what was shown where the kernel stepped back by no more than its jitter.
fn hold(ticks: &mut [u64; COLUMNS], shown: &[u64; COLUMNS]) {
    for (now, &before) in ticks.iter_mut().zip(shown) {
        if *now < before && before - *now <= JITTER_TICKS {
            *now = before;
        }
    }
}

fn malformed(what: &'static str) -> CollectError {
    CollectError::Malformed { path: PATH, what }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn steps_back_are_held_and_restarts_are_not() {
        let mut host = testing::Host::new();
        let mut cpu = Cpu::default();
        let mut idle = |text: &str, series: &str| {
            host.write(PATH, text);
            host.collect(&mut cpu).get(series).copied()
        };
        let series = r#"node_cpu_seconds_total{cpu="2",mode="idle"}"#;
        assert_eq!(idle("cpu0 1 1 1 1\ncpu2 0 0 0 5000\n", series), Some(50.0));
        assert_eq!(idle("cpu0 1 1 1 1\ncpu2 0 0 0 4990\n", series), Some(50.0));
        assert_eq!(idle("cpu2 0 0 0 4990\n", series), Some(49.9), "other lines");
        assert_eq!(idle("cpu2 0 0 0 7\n", series), Some(0.07), "a restart");
        assert_eq!(idle("cpu0 1 1 1 1\n", series), None);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "",
            "ctxt 5\n",
            "cpu0 1 2\n",
            "cpu0 a b c d\n",
            "cpux 1 2 3 4\n",
            "cpu0 1 1 1 1\nctxt\n",
        ] {
            let mut host = testing::Host::new();
            host.write(PATH, text);
            assert!(host.fails(&mut Cpu::default()), "{text:?}");
        }
    }

    testing::garbage!(
        Cpu::default(),
        PATH,
        "(cpu[0-9]{0,3}|intr|ctxt|btime)( [0-9x]{1,22}){0,12}\n"
    );
}
