//! `/proc/loadavg`: the three load averages, in hundredths as the kernel prints them.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/loadavg";

static ABOUT: About = About {
    name: "loadavg",
    every: Duration::ZERO,
    reads: "/proc/loadavg",
    needs: "",
    what: "load averages over 1, 5 and 15 minutes",
};

/// See the module.
#[derive(Debug)]
pub struct Loadavg {
    file: KeptFile,
}

impl Default for Loadavg {
    fn default() -> Self {
        Self {
            file: KeptFile::whole(PATH),
        }
    }
}

impl Collector for Loadavg {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let mut fields = text::fields(self.file.read(host)?);
        for family in [catalog::LOAD1, catalog::LOAD5, catalog::LOAD15] {
            let load = fields.next().and_then(text::hundredths);
            let load = load.ok_or(CollectError::Malformed {
                path: PATH,
                what: "three numbers with two decimals",
            })?;
            out.unsigned(family, &[], load);
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn three_loads_are_read() {
        let mut host = testing::Host::new();
        host.write(PATH, "0.52 12.00 100.59 1/467 12345\n");
        let values = host.collect(&mut Loadavg::default());
        assert_eq!(values["node_load1"], 0.52);
        assert_eq!(values["node_load5"], 12.0);
        assert_eq!(values["node_load15"], 100.59);
        for text in ["", "0.52 1.00", "a b c"] {
            host.write(PATH, text);
            assert!(host.fails(&mut Loadavg::default()), "{text:?}");
        }
    }

    testing::garbage!(
        Loadavg::default(),
        PATH,
        "([0-9]{1,22}\\.[0-9]{1,3} ?){0,4}"
    );
}
