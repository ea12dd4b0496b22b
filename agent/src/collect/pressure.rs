//! `/proc/pressure`: time in which tasks were stalled for lack of CPU, memory or I/O, in microseconds.
//!
//! Kernels before 4.20, and those with `psi=0`, have none of it; `irq` came with 6.1.

use std::time::Duration;

use muster_proto::{
    catalog::{self, FamilyId},
    time::Timestamp,
};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

/// File, and the families of its lines `some` and `full`.
type Resource = (&'static str, Option<FamilyId>, Option<FamilyId>);

/// The kernel prints `full` for the CPU too, always 0: it has no meaning there.
const RESOURCES: [Resource; 4] = [
    (
        "proc/pressure/cpu",
        Some(catalog::PRESSURE_CPU_WAITING),
        None,
    ),
    (
        "proc/pressure/memory",
        Some(catalog::PRESSURE_MEMORY_WAITING),
        Some(catalog::PRESSURE_MEMORY_STALLED),
    ),
    (
        "proc/pressure/io",
        Some(catalog::PRESSURE_IO_WAITING),
        Some(catalog::PRESSURE_IO_STALLED),
    ),
    (
        "proc/pressure/irq",
        None,
        Some(catalog::PRESSURE_IRQ_STALLED),
    ),
];

static ABOUT: About = About {
    name: "pressure",
    every: Duration::ZERO,
    reads: "/proc/pressure/{cpu,memory,io,irq}",
    needs: "Linux 4.20 with PSI on (psi=1)",
    what: "time tasks were stalled for lack of CPU, memory or I/O",
};

/// A file that is not there is looked for again after this: a kernel does not grow one while it runs.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Pressure {
    files: [KeptFile; RESOURCES.len()],
    /// When each was found to be missing.
    missing: [Option<Timestamp>; RESOURCES.len()],
}

impl Default for Pressure {
    fn default() -> Self {
        Self {
            files: RESOURCES.map(|(path, _, _)| KeptFile::whole(path)),
            missing: [None; RESOURCES.len()],
        }
    }
}

impl Collector for Pressure {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let tick = out.tick();
        let mut outcome = Outcome::NoData;
        let files = self.files.iter_mut().zip(&mut self.missing);
        for ((path, some, full), (file, missing)) in RESOURCES.into_iter().zip(files) {
            if missing.is_some() && !super::is_due(*missing, LOOK_AGAIN, tick) {
                continue;
            }
            *missing = None;
            let bytes = match file.read(host) {
                Ok(bytes) => bytes,
                Err(error) if error.is_absent() => {
                    *missing = Some(tick);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let malformed = |what| CollectError::Malformed { path, what };
            let mut lines = 0;
            for line in text::lines(bytes) {
                let (family, rest) = if let Some(rest) = line.strip_prefix(b"some ") {
                    (some, rest)
                } else if let Some(rest) = line.strip_prefix(b"full ") {
                    (full, rest)
                } else {
                    continue;
                };
                let total = text::fields(rest).find_map(|field| field.strip_prefix(b"total="));
                let total = total.and_then(text::unsigned);
                let total = total.ok_or(malformed("total= and a number"))?;
                if let Some(family) = family {
                    out.unsigned(family, &[], total);
                }
                lines += 1;
            }
            if lines == 0 {
                return Err(malformed("a line some or full"));
            }
            outcome = Outcome::Read;
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    const TWO: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n\
                       full avg10=0.00 avg60=0.00 avg300=0.00 total=250000\n";

    #[test]
    fn totals_become_seconds() {
        let mut host = testing::Host::new();
        let mut pressure = Pressure::default();
        assert_eq!(host.run(&mut pressure).ok(), Some(Outcome::NoData));
        for resource in ["cpu", "memory", "io"] {
            host.write(&format!("proc/pressure/{resource}"), TWO);
        }
        host.set_tick(59);
        assert_eq!(host.run(&mut pressure).ok(), Some(Outcome::NoData));
        host.set_tick(60);
        let values = host.collect(&mut pressure);
        assert_eq!(values.len(), 5);
        assert_eq!(values["node_pressure_cpu_waiting_seconds_total"], 1.5);
        assert_eq!(values["node_pressure_io_stalled_seconds_total"], 0.25);
        host.write("proc/pressure/io", "some avg10=0.00\n");
        assert!(host.fails(&mut Pressure::default()));
    }

    testing::garbage!(
        Pressure::default(),
        "proc/pressure/io",
        "(some|full|x) (avg10=0.1 )?(total=[0-9x]{0,22})?\n"
    );
}
