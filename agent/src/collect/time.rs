//! The host's clock at the tick: some dashboards choose a cluster by this series.

use std::time::Duration;

use muster_proto::catalog;

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

    fn collect(&mut self, _: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let now = out.tick().as_millis();
        out.int(catalog::TIME_SECONDS, &[], now);
        Ok(Outcome::Read)
    }
}
