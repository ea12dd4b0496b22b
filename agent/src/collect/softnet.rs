//! `/proc/net/softnet_stat`: what each CPU has done with packets that came in.
//!
//! One line of hexadecimal columns for each CPU that is online. Since Linux 5.10 the thirteenth is the CPU's
//! number; before, the lines are counted.

use std::time::Duration;

use muster_proto::catalog::{self, FamilyId};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/net/softnet_stat";

/// Column and family.
const COLUMNS: [(usize, FamilyId); 7] = [
    (0, catalog::SOFTNET_PROCESSED),
    (1, catalog::SOFTNET_DROPPED),
    (2, catalog::SOFTNET_TIMES_SQUEEZED),
    (8, catalog::SOFTNET_CPU_COLLISION),
    (9, catalog::SOFTNET_RECEIVED_RPS),
    (10, catalog::SOFTNET_FLOW_LIMIT),
    (11, catalog::SOFTNET_BACKLOG),
];
const CPU_COLUMN: usize = 12;

/// Columns that every kernel prints.
const ALWAYS: usize = 9;

static ABOUT: About = About {
    name: "softnet",
    every: Duration::from_secs(10),
    reads: "/proc/net/softnet_stat",
    needs: "",
    what: "packets each CPU handled and dropped, times its budget was used up",
};

/// See the module.
#[derive(Debug)]
pub struct Softnet {
    file: KeptFile,
}

impl Default for Softnet {
    fn default() -> Self {
        Self {
            file: KeptFile::lines(PATH),
        }
    }
}

impl Collector for Softnet {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let malformed = |what| CollectError::Malformed { path: PATH, what };
        let mut lines = 0;
        for line in text::lines(self.file.read(host)?) {
            let mut columns = [0; CPU_COLUMN + 1];
            let mut count = 0;
            for (column, field) in columns.iter_mut().zip(text::fields(line)) {
                let number = text::hexadecimal(field);
                *column = number.ok_or(malformed("hexadecimal numbers"))?;
                count += 1;
            }
            if count < ALWAYS {
                return Err(malformed("at least nine columns for a CPU"));
            }
            let cpu = if count > CPU_COLUMN {
                columns[CPU_COLUMN]
            } else {
                lines
            };
            lines += 1;
            if !out.admits_object(COLUMNS.len()) {
                continue;
            }
            let mut digits = text::Digits::default();
            let cpu = digits.of(cpu);
            for (column, family) in COLUMNS {
                if column < count {
                    out.unsigned(family, &[cpu], columns[column]);
                }
            }
        }
        if lines == 0 {
            return Err(malformed("a line for at least one CPU"));
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn cpus_are_counted_or_named() {
        let mut host = testing::Host::new();
        host.write(PATH, "0000000a 1 2 0 0 0 0 0 3\nb 0 0 0 0 0 0 0 0 4 5\n");
        let values = host.collect(&mut Softnet::default());
        assert_eq!(values[r#"node_softnet_processed_total{cpu="0"}"#], 10.0);
        assert_eq!(values[r#"node_softnet_cpu_collision_total{cpu="0"}"#], 3.0);
        assert_eq!(values[r#"node_softnet_received_rps_total{cpu="1"}"#], 4.0);
        assert_eq!(values.len(), 4 + 6);
        host.write(PATH, "1 0 0 0 0 0 0 0 0 0 0 7 ff 0 0\n");
        let values = host.collect(&mut Softnet::default());
        assert_eq!(values[r#"node_softnet_backlog_len{cpu="255"}"#], 7.0);
        for wrong in ["", "1 2\n", "1 0 0 0 0 0 0 0 x\n"] {
            host.write(PATH, wrong);
            assert!(host.fails(&mut Softnet::default()), "{wrong:?}");
        }
    }

    testing::garbage!(Softnet::default(), PATH, "([0-9a-fx]{1,18} ){0,14}\n");
}
