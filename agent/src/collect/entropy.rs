//! `/proc/sys/kernel/random`: entropy in the kernel's pool. Since Linux 5.18 always as much as the pool holds.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const AVAILABLE: &str = "proc/sys/kernel/random/entropy_avail";
const POOL_SIZE: &str = "proc/sys/kernel/random/poolsize";

static ABOUT: About = About {
    name: "entropy",
    every: Duration::from_secs(30),
    reads: "/proc/sys/kernel/random/{entropy_avail,poolsize}",
    needs: "",
    what: "entropy in the kernel's pool",
};

/// See the module.
#[derive(Debug)]
pub struct Entropy {
    available: KeptFile,
    pool_size: KeptFile,
}

impl Default for Entropy {
    fn default() -> Self {
        Self {
            available: KeptFile::whole(AVAILABLE),
            pool_size: KeptFile::whole(POOL_SIZE),
        }
    }
}

impl Collector for Entropy {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let mut outcome = Outcome::NoData;
        for (path, file, family) in [
            (AVAILABLE, &mut self.available, catalog::ENTROPY_AVAILABLE),
            (POOL_SIZE, &mut self.pool_size, catalog::ENTROPY_POOL_SIZE),
        ] {
            if let Some(bytes) = file.read_if_there(host)? {
                let what = "a number";
                let bits = text::unsigned(bytes.trim_ascii());
                out.unsigned(
                    family,
                    &[],
                    bits.ok_or(CollectError::Malformed { path, what })?,
                );
                outcome = Outcome::Read;
            }
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn both_numbers_are_read() {
        let mut host = testing::Host::new();
        let mut entropy = Entropy::default();
        assert_eq!(host.run(&mut entropy).ok(), Some(Outcome::NoData));
        host.write(AVAILABLE, "255\n");
        host.write(POOL_SIZE, "256\n");
        let values = host.collect(&mut entropy);
        assert_eq!(values["node_entropy_available_bits"], 255.0);
        assert_eq!(values["node_entropy_pool_size_bits"], 256.0);
        host.write(POOL_SIZE, "some\n");
        assert!(host.fails(&mut entropy));
    }

    testing::garbage!(Entropy::default(), AVAILABLE, "[0-9x-]{0,22}\n");
}
