//! `/sys/class/infiniband`: packets, bytes and errors of each port. Data is counted in words of four bytes.

use std::time::Duration;

use muster_proto::{
    catalog::FamilyId,
    series::{Kind, Scale},
};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    attributes::{Attribute, Attributes, attributes},
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/infiniband/";

const FILES: &[Attribute] = attributes! {
    "counters_ext/port_multicast_rcv_packets" "node_infiniband_legacy_multicast_packets_received_total" Counter One;
    "counters_ext/port_multicast_xmit_packets" "node_infiniband_legacy_multicast_packets_transmitted_total" Counter One;
    "counters_ext/port_rcv_data_64" "node_infiniband_legacy_data_received_bytes_total" Counter One * 4;
    "counters_ext/port_rcv_packets_64" "node_infiniband_legacy_packets_received_total" Counter One;
    "counters_ext/port_unicast_rcv_packets" "node_infiniband_legacy_unicast_packets_received_total" Counter One;
    "counters_ext/port_unicast_xmit_packets" "node_infiniband_legacy_unicast_packets_transmitted_total" Counter One;
    "counters_ext/port_xmit_data_64" "node_infiniband_legacy_data_transmitted_bytes_total" Counter One * 4;
    "counters_ext/port_xmit_packets_64" "node_infiniband_legacy_packets_transmitted_total" Counter One;
    "counters/excessive_buffer_overrun_errors" "node_infiniband_excessive_buffer_overrun_errors_total" Counter One;
    "counters/link_downed" "node_infiniband_link_downed_total" Counter One;
    "counters/link_error_recovery" "node_infiniband_link_error_recovery_total" Counter One;
    "counters/local_link_integrity_errors" "node_infiniband_local_link_integrity_errors_total" Counter One;
    "counters/multicast_rcv_packets" "node_infiniband_multicast_packets_received_total" Counter One;
    "counters/multicast_xmit_packets" "node_infiniband_multicast_packets_transmitted_total" Counter One;
    "counters/port_rcv_constraint_errors" "node_infiniband_port_constraint_errors_received_total" Counter One;
    "counters/port_xmit_constraint_errors" "node_infiniband_port_constraint_errors_transmitted_total" Counter One;
    "counters/port_rcv_data" "node_infiniband_port_data_received_bytes_total" Counter One * 4;
    "counters/port_xmit_data" "node_infiniband_port_data_transmitted_bytes_total" Counter One * 4;
    "counters/port_rcv_discards" "node_infiniband_port_discards_received_total" Counter One;
    "counters/port_xmit_discards" "node_infiniband_port_discards_transmitted_total" Counter One;
    "counters/port_rcv_errors" "node_infiniband_port_errors_received_total" Counter One;
    "counters/port_rcv_packets" "node_infiniband_port_packets_received_total" Counter One;
    "counters/port_xmit_packets" "node_infiniband_port_packets_transmitted_total" Counter One;
    "counters/port_xmit_wait" "node_infiniband_port_transmit_wait_total" Counter One;
    "counters/unicast_rcv_packets" "node_infiniband_unicast_packets_received_total" Counter One;
    "counters/unicast_xmit_packets" "node_infiniband_unicast_packets_transmitted_total" Counter One;
    "counters/port_rcv_remote_physical_errors" "node_infiniband_port_receive_remote_physical_errors_total" Counter One;
    "counters/port_rcv_switch_relay_errors" "node_infiniband_port_receive_switch_relay_errors_total" Counter One;
    "counters/symbol_error" "node_infiniband_symbol_error_total" Counter One;
    "counters/VL15_dropped" "node_infiniband_vl15_dropped_total" Counter One;
};

/// Files that begin with a number and go on with words, the metric, and what one counts.
const WORDED: [(&[u8], &str, u64); 3] = [
    (b"/state", "node_infiniband_state_id", 1),
    (b"/phys_state", "node_infiniband_physical_state_id", 1),
    // `40 Gb/sec (4X QDR)`.
    (
        b"/rate",
        "node_infiniband_rate_bytes_per_second",
        125_000_000,
    ),
];

static ABOUT: About = About {
    name: "infiniband",
    every: Duration::from_secs(30),
    reads: "/sys/class/infiniband",
    needs: "",
    what: "packets, bytes and errors of InfiniBand ports",
};

/// See the module.
#[derive(Debug)]
pub struct Infiniband {
    devices: Names,
    ports: Names,
    files: Files,
    folder: Vec<u8>,
    attributes: Attributes,
}

impl Default for Infiniband {
    fn default() -> Self {
        Self {
            devices: Names::default(),
            ports: Names::default(),
            files: Files::default(),
            folder: Vec::new(),
            attributes: Attributes::new(FILES, &["device", "port"]),
        }
    }
}

impl Collector for Infiniband {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if !self.devices.list(host, CLASS)? {
            return Ok(Outcome::NoData);
        }
        let labels = ["device", "board_id", "firmware_version", "hca_type"];
        let info = out.dynamic_family("node_infiniband_info", Kind::Gauge, Scale::One, &labels);
        let worded = WORDED.map(|(_, name, _)| {
            out.dynamic_family(name, Kind::Gauge, Scale::One, &["device", "port"])
        });
        for name in self.devices.iter() {
            let device = text::lossy(name);
            put_info(&mut self.files, host, name, info, out);
            self.folder.clear();
            for part in [CLASS, name, b"/ports/"] {
                self.folder.extend_from_slice(part);
            }
            self.ports.list(host, &self.folder)?;
            for port_name in self.ports.iter() {
                let folder: [&[u8]; 2] = [&self.folder, port_name];
                let labels = [&*device, &*text::lossy(port_name)];
                self.attributes
                    .put(&mut self.files, host, &folder, &labels, out);
                for ((file, _, unit), family) in WORDED.into_iter().zip(worded) {
                    let path: [&[u8]; 3] = [&self.folder, port_name, file];
                    let number = self.files.word(host, &path).and_then(first_number);
                    if let (Some(family), Some(number)) = (family, number) {
                        out.unsigned(family, &labels, number.saturating_mul(unit));
                    }
                }
            }
        }
        Ok(Outcome::Read)
    }
}

fn put_info(
    files: &mut Files,
    host: &HostRoot,
    name: &[u8],
    info: Option<FamilyId>,
    out: &mut Readings,
) {
    let words = [&b"/board_id"[..], b"/fw_ver", b"/hca_type"].map(|file| {
        let word = files.word(host, &[CLASS, name, file]);
        text::lossy(word.unwrap_or_default()).into_owned()
    });
    let [board, firmware, kind] = words.each_ref().map(String::as_str);
    if let Some(info) = info
        && out.admits_object(1)
    {
        out.int(info, &[&*text::lossy(name), board, firmware, kind], 1);
    }
}

/// 4 of `4: ACTIVE`.
fn first_number(word: &[u8]) -> Option<u64> {
    let end = word.iter().position(|byte| !byte.is_ascii_digit());
    text::unsigned(&word[..end.unwrap_or(word.len())])
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn ports_are_told() {
        let mut host = testing::Host::new();
        let mut collector = Infiniband::default();
        assert_eq!(host.run(&mut collector).ok(), Some(Outcome::NoData));
        let base = "sys/class/infiniband/mlx4_0";
        host.write(&format!("{base}/fw_ver"), "2.31.5050\n");
        host.write(&format!("{base}/ports/1/counters/port_rcv_data"), "100\n");
        host.write(&format!("{base}/ports/1/rate"), "40 Gb/sec (4X QDR)\n");
        host.write(&format!("{base}/ports/1/state"), "4: ACTIVE\n");
        let values = host.collect(&mut collector);
        let of =
            |name: &str| values[&format!("node_infiniband_{name}{{device=\"mlx4_0\",port=\"1\"}}")];
        assert_eq!(of("port_data_received_bytes_total"), 400.0);
        assert_eq!((of("rate_bytes_per_second"), of("state_id")), (5e9, 4.0));
        assert_eq!(values.len(), 4);
    }

    testing::garbage!(
        Infiniband::default(),
        "sys/class/infiniband/a/ports/1/rate",
        "[0-9 a-z-]{0,22}\n"
    );
}
