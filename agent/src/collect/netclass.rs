//! `/sys/class/net`: state, speed and properties of each network interface.
//!
//! What a driver or the state of a link refuses to tell is absent: speed and duplex of an interface that is
//! down, the carrier of one that is switched off. The speed of virtual interfaces is -1, and left out.
//!
//! An interface has two dozen files, of which hardly one ever changes. So while the kernel tells of no change
//! ([`super::link_news`]) they are read once a minute. Where it does not tell, only those are read each time that
//! change with the link, its state or its settings.

use std::time::Duration;

use muster_proto::{
    catalog::{self, FamilyId},
    time::Timestamp,
};

use super::{
    About, CollectError, Collector, NetworkConfig, Outcome, Readings, glob,
    link_news::LinkNews,
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/net/";

/// Files with a number, and their families.
const NUMBERS: [(&[u8], FamilyId); 17] = [
    (b"/addr_assign_type", catalog::NETWORK_ADDRESS_ASSIGN_TYPE),
    (b"/carrier", catalog::NETWORK_CARRIER),
    (b"/carrier_changes", catalog::NETWORK_CARRIER_CHANGES),
    (b"/carrier_up_count", catalog::NETWORK_CARRIER_UP_CHANGES),
    (
        b"/carrier_down_count",
        catalog::NETWORK_CARRIER_DOWN_CHANGES,
    ),
    (b"/dev_id", catalog::NETWORK_DEVICE_ID),
    (b"/dormant", catalog::NETWORK_DORMANT),
    (b"/flags", catalog::NETWORK_FLAGS),
    (b"/ifindex", catalog::NETWORK_IFACE_ID),
    (b"/iflink", catalog::NETWORK_IFACE_LINK),
    (b"/link_mode", catalog::NETWORK_IFACE_LINK_MODE),
    (b"/mtu", catalog::NETWORK_MTU),
    (b"/name_assign_type", catalog::NETWORK_NAME_ASSIGN_TYPE),
    (b"/netdev_group", catalog::NETWORK_NET_DEV_GROUP),
    (b"/tx_queue_len", catalog::NETWORK_TRANSMIT_QUEUE_LENGTH),
    (b"/type", catalog::NETWORK_PROTOCOL_TYPE),
    (
        b"/statistics/rx_nohandler",
        catalog::NETWORK_RECEIVE_NOHANDLER,
    ),
];

/// Those, and info, up and speed.
const SERIES_PER_DEVICE: usize = NUMBERS.len() + 3;

/// Files of the labels of `node_network_info`, from the second on; adminstate comes from the flags.
const LABELS: [&[u8]; 5] = [
    b"/address",
    b"/broadcast",
    b"/duplex",
    b"/operstate",
    b"/ifalias",
];
const OPERSTATE: usize = 3;

/// Files that say whether something has changed: the link went down and up, its state, and what an administrator
/// sets; speed and duplex change with the first.
const TELL_TALES: [&[u8]; 4] = [b"/flags", b"/operstate", b"/carrier_changes", b"/mtu"];

/// All files are read this often in any case: where the kernel tells of changes, and where it does not.
const ALL_EVERY_TOLD: Duration = Duration::from_secs(300);
const ALL_EVERY: Duration = Duration::from_secs(60);

/// Megabits a second in bytes a second.
const MEGABIT: u64 = 125_000;

/// netdevice(7).
const IFF_UP: u64 = 1;

static ABOUT: About = About {
    name: "netclass",
    every: Duration::from_secs(10),
    reads: "/sys/class/net",
    needs: "",
    what: "state, speed, carrier changes and properties of each network interface",
};

/// See the module.
#[derive(Debug)]
pub struct Netclass {
    exclude: glob::Filter,
    names: Names,
    files: Files,
    labels: [String; LABELS.len()],
    /// What the files said that are read each time, and when all were read.
    tell_tale: Vec<u8>,
    all_read: Option<Timestamp>,
    news: LinkNews,
}

impl Netclass {
    /// Leaves out what the configuration says.
    #[must_use]
    pub fn new(config: &NetworkConfig) -> Self {
        Self {
            exclude: glob::Filter::new(&config.devices_exclude),
            names: Names::default(),
            files: Files::default(),
            labels: Default::default(),
            tell_tale: Vec::new(),
            all_read: None,
            news: LinkNews::default(),
        }
    }

    /// Whether the files that tell of changes say what they said before, of the same interfaces.
    fn is_as_before(&mut self, host: &HostRoot) -> bool {
        let mut now = Vec::with_capacity(self.tell_tale.len());
        for (number, name) in self.names.iter().enumerate() {
            if self.exclude.matches(number, name) {
                continue;
            }
            now.extend_from_slice(name);
            for file in TELL_TALES {
                now.push(b'\n');
                let word = self.files.word(host, &[CLASS, name, file]);
                now.extend_from_slice(word.unwrap_or_default());
            }
            now.push(b'\n');
        }
        let same = now == self.tell_tale;
        self.tell_tale = now;
        same
    }
}

impl Collector for Netclass {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        // Until the folder is listed: what was told before a failure is gone, and told anew.
        let all_read = self.all_read.take();
        let every = match self.news.is_told(host) {
            true => ALL_EVERY_TOLD,
            false => ALL_EVERY,
        };
        let is_recent = !super::is_due(all_read, every, out.tick());
        if self.news.is_quiet(host) && is_recent {
            self.all_read = all_read;
            return Ok(Outcome::Unchanged);
        }
        if !self.names.list(host, CLASS)? {
            return Ok(Outcome::NoData);
        }
        if self.is_as_before(host) && is_recent {
            self.all_read = all_read;
            return Ok(Outcome::Unchanged);
        }
        let mut outcome = Outcome::NoData;
        for (number, name) in self.names.iter().enumerate() {
            if self.exclude.matches(number, name) {
                continue;
            }
            let files = &mut self.files;
            // bonding_masters is a file among them.
            let Some(flags) = files.unsigned(host, &[CLASS, name, b"/flags"]) else {
                continue;
            };
            outcome = Outcome::Read;
            if !out.admits_detail(SERIES_PER_DEVICE) {
                continue;
            }
            let device = text::lossy(name);
            for (label, file) in self.labels.iter_mut().zip(LABELS) {
                label.clear();
                if let Some(word) = files.word(host, &[CLASS, name, file]) {
                    label.push_str(&text::lossy(word));
                }
            }
            let [address, broadcast, duplex, operstate, ifalias] =
                self.labels.each_ref().map(String::as_str);
            let adminstate = if flags & IFF_UP != 0 { "up" } else { "down" };
            let info = [
                &*device, address, broadcast, duplex, operstate, adminstate, ifalias,
            ];
            out.int(catalog::NETWORK_INFO, &info, 1);
            let up = i64::from(self.labels[OPERSTATE] == "up");
            out.int(catalog::NETWORK_UP, &[&device], up);
            if let Some(speed) = files.unsigned(host, &[CLASS, name, b"/speed"]) {
                let speed = speed.saturating_mul(MEGABIT);
                out.unsigned(catalog::NETWORK_SPEED, &[&device], speed);
            }
            for (file, family) in NUMBERS {
                if let Some(value) = files.unsigned(host, &[CLASS, name, file]) {
                    out.unsigned(family, &[&device], value);
                }
            }
        }
        if outcome == Outcome::Read {
            self.all_read = Some(out.tick());
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn netclass() -> Netclass {
        Netclass::new(&NetworkConfig::default())
    }

    #[test]
    fn what_a_device_refuses_is_absent() {
        let mut host = testing::Host::new();
        assert_eq!(host.run(&mut netclass()).ok(), Some(Outcome::NoData));
        host.write("sys/class/net/bonding_masters", "bond0\n");
        for (file, content) in [
            ("flags", "0x1003"),
            ("operstate", "up"),
            ("address", "02:fc:00:00:00:01"),
            ("speed", "10000"),
            ("mtu", "1500"),
            ("carrier_changes", "2"),
            ("statistics/rx_nohandler", "3"),
            ("ifalias", "uplink to \"core\""),
        ] {
            host.write(
                &format!("sys/class/net/eth0/{file}"),
                format!("{content}\n"),
            );
        }
        host.write("sys/class/net/tun0/flags", "0x1002\n");
        host.write("sys/class/net/tun0/speed", "-1\n");
        let mut collector = netclass();
        let values = host.collect(&mut collector);
        let info = values
            .keys()
            .find(|key| key.contains("info{device=\"eth0\""));
        let info = info.expect("info");
        assert!(info.contains(r#"ifalias="uplink to \"core\"""#), "{info}");
        assert!(info.contains(r#"adminstate="up""#), "{info}");
        let of = |name: &str| values.get(&format!("node_network_{name}")).copied();
        assert_eq!(of(r#"up{device="eth0"}"#), Some(1.0));
        assert_eq!(of(r#"up{device="tun0"}"#), Some(0.0));
        assert_eq!(of(r#"speed_bytes{device="eth0"}"#), Some(1.25e9));
        assert_eq!(of(r#"speed_bytes{device="tun0"}"#), None);
        assert_eq!(of(r#"flags{device="eth0"}"#), Some(4099.0));
        assert_eq!(of(r#"receive_nohandler_total{device="eth0"}"#), Some(3.0));
        assert_eq!(values.len(), 7 + 3);
        let config = NetworkConfig {
            devices_exclude: vec!["tun*".to_owned()],
        };
        assert_eq!(host.collect(&mut Netclass::new(&config)).len(), 7);
    }

    #[test]
    fn what_stays_is_read_once_a_minute_and_a_change_at_once() {
        let mut host = testing::Host::new();
        for (file, content) in [
            ("flags", "0x1003"),
            ("carrier_changes", "2"),
            ("speed", "10"),
        ] {
            host.write(&format!("sys/class/net/eth0/{file}"), content);
        }
        let speed = r#"node_network_speed_bytes{device="eth0"}"#;
        let mut collector = netclass();
        host.set_tick(0);
        assert_eq!(host.collect(&mut collector)[speed], 1_250_000.0);
        // Nothing tells of it.
        host.write("sys/class/net/eth0/speed", "100");
        host.set_tick(10);
        assert_eq!(host.run(&mut collector).ok(), Some(Outcome::Unchanged));
        host.write("sys/class/net/eth0/carrier_changes", "4");
        assert_eq!(host.collect(&mut collector)[speed], 12_500_000.0);
        host.write("sys/class/net/eth0/speed", "1000");
        host.set_tick(70);
        assert_eq!(host.collect(&mut collector)[speed], 125_000_000.0);
        host.write("sys/class/net/eth1/flags", "0x1002");
        host.set_tick(80);
        let values = host.collect(&mut collector);
        assert_eq!(values[r#"node_network_up{device="eth1"}"#], 0.0);
    }

    #[test]
    fn what_a_failure_took_away_is_told_again_though_nothing_changed() {
        let mut host = testing::Host::new();
        host.write("sys/class/net/eth0/flags", "0x1003");
        let mut collector = netclass();
        let up = host.collect(&mut collector).len();
        host.remove("sys/class/net/eth0/flags");
        std::fs::remove_dir_all(host.root().join("sys/class/net")).expect("removed");
        host.write("sys/class/net", "no folder");
        assert!(host.fails(&mut collector));
        host.remove("sys/class/net");
        host.write("sys/class/net/eth0/flags", "0x1003");
        assert_eq!(host.collect(&mut collector).len(), up);
    }

    testing::garbage!(
        netclass(),
        "sys/class/net/e/flags",
        "(0x)?[0-9a-fx-]{0,20}\n"
    );
}
