//! `/proc/net/arp`: neighbours of each device.
//!
//! Only their number is shown, never an address. node_exporter counts entries that are reachable or not;
//! so does the kernel's table.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/net/arp";

/// Most devices with neighbours.
const MAX_DEVICES: usize = 4096;

static ABOUT: About = About {
    name: "arp",
    every: Duration::from_secs(30),
    reads: "/proc/net/arp",
    needs: "",
    what: "number of neighbours of each network interface",
};

/// See the module.
#[derive(Debug)]
pub struct Arp {
    file: KeptFile,
    /// Devices and their neighbours, in the order in which they were met.
    devices: Vec<(Vec<u8>, u64)>,
}

impl Default for Arp {
    fn default() -> Self {
        Self {
            file: KeptFile::lines(PATH),
            devices: Vec::new(),
        }
    }
}

impl Collector for Arp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let Some(bytes) = self.file.read_if_there(host)? else {
            return Ok(Outcome::NoData);
        };
        for (_, count) in &mut self.devices {
            *count = 0;
        }
        // The first line is headings; the device is the last of six columns.
        for line in text::lines(bytes).skip(1) {
            let device = text::fields(line).nth(5).ok_or(CollectError::Malformed {
                path: PATH,
                what: "six columns",
            })?;
            match self.devices.iter().position(|(name, _)| name == device) {
                Some(at) => self.devices[at].1 += 1,
                None if self.devices.len() < MAX_DEVICES => {
                    self.devices.push((device.to_owned(), 1));
                }
                None => {}
            }
        }
        self.devices.retain(|(_, count)| *count > 0);
        for (name, count) in &self.devices {
            if out.admits_object(1) {
                out.unsigned(catalog::ARP_ENTRIES, &[&text::lossy(name)], *count);
            }
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    const HEADINGS: &str = "IP address  HW type  Flags  HW address  Mask  Device\n";

    #[test]
    fn neighbours_are_counted_and_devices_go() {
        let mut host = testing::Host::new();
        let mut arp = Arp::default();
        assert_eq!(host.run(&mut arp).ok(), Some(Outcome::NoData));
        let line = |device: &str| format!("192.0.2.1 0x1 0x2 02:fc:00:00:00:05 * {device}\n");
        host.write(
            PATH,
            format!("{HEADINGS}{}{}{}", line("eth0"), line("br0"), line("eth0")),
        );
        let values = host.collect(&mut arp);
        assert_eq!(values[r#"node_arp_entries{device="eth0"}"#], 2.0);
        assert_eq!(values[r#"node_arp_entries{device="br0"}"#], 1.0);
        host.write(PATH, HEADINGS);
        assert!(host.collect(&mut arp).is_empty());
        host.write(PATH, format!("{HEADINGS}192.0.2.1 0x1\n"));
        assert!(host.fails(&mut arp));
    }

    testing::garbage!(Arp::default(), PATH, "([a-z0-9.]{1,4} ){0,7}\n");
}
