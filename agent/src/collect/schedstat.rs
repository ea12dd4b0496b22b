//! `/proc/schedstat`: how long each CPU ran tasks and tasks waited for it.
//!
//! Of the line of a CPU the seventh to the ninth number count: time running, time waiting, both in
//! nanoseconds, and time slices (kernel Documentation/scheduler/sched-stats.rst).

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, sysfs, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/schedstat";

/// Numbers before the first that counts.
const BEFORE: usize = 6;

static ABOUT: About = About {
    name: "schedstat",
    every: Duration::from_secs(10),
    reads: "/proc/schedstat",
    needs: "",
    what: "time each CPU ran tasks and tasks waited for it",
};

/// See the module.
#[derive(Debug)]
pub struct Schedstat {
    file: KeptFile,
}

impl Default for Schedstat {
    fn default() -> Self {
        Self {
            file: KeptFile::lines(PATH),
        }
    }
}

impl Collector for Schedstat {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let Some(bytes) = self.file.read_if_there(host)? else {
            return Ok(Outcome::NoData);
        };
        for line in text::lines(bytes) {
            let mut fields = text::fields(line);
            let key = fields.next().unwrap_or_default();
            let Some(cpu) = sysfs::numbered(key, b"cpu") else {
                continue;
            };
            if !out.admits_object(3) {
                continue;
            }
            let cpu = text::lossy(cpu);
            let mut fields = fields.skip(BEFORE).map(text::unsigned);
            for family in [
                catalog::SCHEDSTAT_RUNNING,
                catalog::SCHEDSTAT_WAITING,
                catalog::SCHEDSTAT_TIMESLICES,
            ] {
                let value = fields.next().flatten().ok_or(CollectError::Malformed {
                    path: PATH,
                    what: "nine numbers for a CPU",
                })?;
                out.unsigned(family, &[&cpu], value);
            }
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn times_are_seconds_and_domains_are_left_out() {
        let mut host = testing::Host::new();
        let mut schedstat = Schedstat::default();
        assert_eq!(host.run(&mut schedstat).ok(), Some(Outcome::NoData));
        host.write(
            PATH,
            "version 15\ntimestamp 15819019232\ncpu0 0 0 0 0 0 0 2000000000 500000000 33\n\
             domain0 00000003 1 2 3\ncpu12 0 0 0 0 0 0 1 2 3\n",
        );
        let values = host.collect(&mut schedstat);
        assert_eq!(
            values[r#"node_schedstat_running_seconds_total{cpu="0"}"#],
            2.0
        );
        assert_eq!(
            values[r#"node_schedstat_waiting_seconds_total{cpu="0"}"#],
            0.5
        );
        assert_eq!(values[r#"node_schedstat_timeslices_total{cpu="12"}"#], 3.0);
        assert_eq!(values.len(), 6);
        host.write(PATH, "cpu0 1 2 3\n");
        assert!(host.fails(&mut schedstat));
    }

    testing::garbage!(
        Schedstat::default(),
        PATH,
        "(cpu[0-9x]{0,3})( [0-9x]{1,21}){0,9}\n"
    );
}
