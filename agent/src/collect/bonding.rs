//! `/sys/class/net/bonding_masters`: bonds, their links and how many of those are up.

use std::time::Duration;

use muster_proto::catalog;

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, is_part},
    text,
};
use crate::host::{HostRoot, KeptFile};

const MASTERS: &str = "sys/class/net/bonding_masters";
const CLASS: &[u8] = b"sys/class/net/";

static ABOUT: About = About {
    name: "bonding",
    every: Duration::from_secs(10),
    reads: "/sys/class/net/bonding_masters, /sys/class/net/<bond>/bonding",
    needs: "",
    what: "links of each bond, and how many are up",
};

/// See the module.
#[derive(Debug)]
pub struct Bonding {
    masters: KeptFile,
    files: Files,
    status: Files,
}

impl Default for Bonding {
    fn default() -> Self {
        Self {
            masters: KeptFile::new(MASTERS),
            files: Files::default(),
            status: Files::default(),
        }
    }
}

impl Collector for Bonding {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let Some(masters) = self.masters.read_if_there(host)? else {
            return Ok(Outcome::NoData);
        };
        for master in masters.split(u8::is_ascii_whitespace) {
            if !is_part(master) || !out.admits_object(2) {
                continue;
            }
            let (mut links, mut up) = (0, 0);
            // A bond without links has an empty file; one that went meanwhile has none.
            let slaves = self.files.word(host, &[CLASS, master, b"/bonding/slaves"]);
            for slave in slaves.unwrap_or_default().split(u8::is_ascii_whitespace) {
                if !is_part(slave) {
                    continue;
                }
                links += 1;
                let status: [&[u8]; 5] = [
                    CLASS,
                    master,
                    b"/lower_",
                    slave,
                    b"/bonding_slave/mii_status",
                ];
                let older: [&[u8]; 5] = [
                    CLASS,
                    master,
                    b"/slave_",
                    slave,
                    b"/bonding_slave/mii_status",
                ];
                let is_up = match self.status.word(host, &status) {
                    Some(status) => status == b"up",
                    None => self.status.word(host, &older) == Some(b"up"),
                };
                up += u64::from(is_up);
            }
            let master = text::lossy(master);
            out.unsigned(catalog::BONDING_SLAVES, &[&master], links);
            out.unsigned(catalog::BONDING_ACTIVE, &[&master], up);
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn links_are_counted_on_old_and_new_kernels() {
        let mut host = testing::Host::new();
        let mut bonding = Bonding::default();
        assert_eq!(host.run(&mut bonding).ok(), Some(Outcome::NoData));
        host.write(MASTERS, "bond0 idle ../..\n");
        host.write("sys/class/net/bond0/bonding/slaves", "eth0 eth1 eth2\n");
        let status = "bonding_slave/mii_status";
        host.write(&format!("sys/class/net/bond0/lower_eth0/{status}"), "up\n");
        host.write(&format!("sys/class/net/bond0/slave_eth1/{status}"), "up\n");
        host.write(
            &format!("sys/class/net/bond0/lower_eth2/{status}"),
            "down\n",
        );
        let values = host.collect(&mut bonding);
        assert_eq!(values[r#"node_bonding_slaves{master="bond0"}"#], 3.0);
        assert_eq!(values[r#"node_bonding_active{master="bond0"}"#], 2.0);
        assert_eq!(values[r#"node_bonding_slaves{master="idle"}"#], 0.0);
        assert_eq!(values.len(), 4);
    }

    testing::garbage!(Bonding::default(), MASTERS, "[a-z./ ]{0,20}\n");
}
