//! The host's own clock when the sample is taken. The tick is another time, corrected to the aggregator's:
//! the difference of the two shows a clock that is wrong, and some dashboards choose a cluster by this series.

use std::time::Duration;

use muster_proto::{
    catalog,
    time::{Clock as _, SystemClock},
};

use super::{About, CollectError, Collector, Outcome, Readings};
use crate::host::HostRoot;

static ABOUT: About = About {
    name: "time",
    every: Duration::ZERO,
    reads: "clock_gettime(2)",
    needs: "",
    what: "the host's clock when the sample was taken",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Time(());

impl Collector for Time {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        // A captured host has no clock of its own.
        let now = match host.is_live() {
            true => SystemClock.now(),
            false => out.tick(),
        };
        out.int(catalog::TIME_SECONDS, &[], now.as_millis());
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn a_live_host_has_a_clock_of_its_own_and_a_captured_one_has_the_tick() {
        let mut host = testing::Host::new();
        // Far from any clock this runs on.
        host.set_tick(1_000);
        let values = host.collect(&mut Time::default());
        assert_eq!(values["node_time_seconds"], 1_000.0);
        let before = SystemClock.now().as_seconds_f64();
        host.run_live(&mut Time::default()).expect("collects");
        let values = host.values();
        assert!(values["node_time_seconds"] >= before, "not the tick");
    }
}
