//! `/proc/net/dev`: what each network interface has carried, the loopback included.

use std::time::Duration;

use muster_proto::catalog::{self, FamilyId};

use super::{About, CollectError, Collector, NetworkConfig, Outcome, Readings, glob, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/net/dev";

/// The columns after the name: received, then sent.
const COLUMNS: [FamilyId; 16] = [
    catalog::NETWORK_RECEIVE_BYTES,
    catalog::NETWORK_RECEIVE_PACKETS,
    catalog::NETWORK_RECEIVE_ERRS,
    catalog::NETWORK_RECEIVE_DROP,
    catalog::NETWORK_RECEIVE_FIFO,
    catalog::NETWORK_RECEIVE_FRAME,
    catalog::NETWORK_RECEIVE_COMPRESSED,
    catalog::NETWORK_RECEIVE_MULTICAST,
    catalog::NETWORK_TRANSMIT_BYTES,
    catalog::NETWORK_TRANSMIT_PACKETS,
    catalog::NETWORK_TRANSMIT_ERRS,
    catalog::NETWORK_TRANSMIT_DROP,
    catalog::NETWORK_TRANSMIT_FIFO,
    catalog::NETWORK_TRANSMIT_COLLS,
    catalog::NETWORK_TRANSMIT_CARRIER,
    catalog::NETWORK_TRANSMIT_COMPRESSED,
];

static ABOUT: About = About {
    name: "netdev",
    every: Duration::ZERO,
    reads: "/proc/net/dev",
    needs: "",
    what: "bytes, packets, errors and drops of each network interface",
};

/// See the module.
#[derive(Debug)]
pub struct Netdev {
    file: KeptFile,
    exclude: glob::Filter,
}

impl Netdev {
    /// Leaves out what the configuration says.
    #[must_use]
    pub fn new(config: &NetworkConfig) -> Self {
        Self {
            file: KeptFile::lines(PATH),
            exclude: glob::Filter::new(&config.devices_exclude),
        }
    }
}

impl Collector for Netdev {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let mut devices = false;
        for (number, line) in text::lines(self.file.read(host)?).enumerate() {
            // The two lines of headings.
            if line.contains(&b'|') {
                continue;
            }
            // The kernel allows no colon in a name, and old ones print no space behind it.
            let colon = line.iter().rposition(|&byte| byte == b':');
            let colon = colon.ok_or(malformed("a colon behind a name"))?;
            let name = line[..colon].trim_ascii();
            devices = true;
            if self.exclude.matches(number, name) {
                continue;
            }
            if !out.admits_object(COLUMNS.len()) {
                continue;
            }
            let device = text::lossy(name);
            let mut fields = text::fields(&line[colon + 1..]);
            for family in COLUMNS {
                let value = fields.next().and_then(text::unsigned);
                let value = value.ok_or(malformed("sixteen numbers behind a name"))?;
                out.unsigned(family, &[&device], value);
            }
        }
        if !devices {
            return Err(malformed("a line for at least one interface"));
        }
        Ok(Outcome::Read)
    }
}

fn malformed(what: &'static str) -> CollectError {
    CollectError::Malformed { path: PATH, what }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    const HEADINGS: &str = "Inter-|   Receive   |  Transmit\n face |bytes    packets|bytes\n";

    fn netdev() -> Netdev {
        Netdev::new(&NetworkConfig::default())
    }

    #[test]
    fn sixteen_columns_are_read_with_and_without_a_space() {
        let mut host = testing::Host::new();
        let lines = "    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                     veth1:18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n";
        host.write(PATH, format!("{HEADINGS}{lines}"));
        let values = host.collect(&mut netdev());
        assert_eq!(values.len(), 32);
        assert_eq!(
            values[r#"node_network_receive_multicast_total{device="lo"}"#],
            8.0
        );
        assert_eq!(
            values[r#"node_network_transmit_carrier_total{device="lo"}"#],
            15.0
        );
        let config = NetworkConfig {
            devices_exclude: vec!["veth*".to_owned()],
        };
        let mut without = testing::Host::new();
        without.write(PATH, format!("{HEADINGS}{lines}"));
        assert_eq!(without.collect(&mut Netdev::new(&config)).len(), 16);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "",
            HEADINGS,
            "eth0 1 2\n",
            "eth0: 1 2\n",
            "eth0: a b c d e f g h i j k l m n o p\n",
        ] {
            let mut host = testing::Host::new();
            host.write(PATH, text);
            assert!(host.fails(&mut netdev()), "{text:?}");
        }
    }

    testing::garbage!(netdev(), PATH, " *[a-z0-9|]{0,6}:?( ?[0-9x]{1,22}){0,17}\n");
}
