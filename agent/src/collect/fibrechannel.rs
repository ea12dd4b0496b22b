//! `/sys/class/fc_host`: frames, words and errors of Fibre Channel adapters. Kernels print hexadecimal.

use std::time::Duration;

use muster_proto::series::{Kind, Scale};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    attributes::{Attribute, Attributes, attributes},
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/fc_host/";

const FILES: &[Attribute] = attributes! {
    "dumped_frames" "node_fibrechannel_dumped_frames_total" Counter One;
    "error_frames" "node_fibrechannel_error_frames_total" Counter One;
    "invalid_crc_count" "node_fibrechannel_invalid_crc_total" Counter One;
    "rx_frames" "node_fibrechannel_rx_frames_total" Counter One;
    "rx_words" "node_fibrechannel_rx_words_total" Counter One;
    "tx_frames" "node_fibrechannel_tx_frames_total" Counter One;
    "tx_words" "node_fibrechannel_tx_words_total" Counter One;
    "seconds_since_last_reset" "node_fibrechannel_seconds_since_last_reset_total" Counter One;
    "invalid_tx_word_count" "node_fibrechannel_invalid_tx_words_total" Counter One;
    "link_failure_count" "node_fibrechannel_link_failure_total" Counter One;
    "loss_of_sync_count" "node_fibrechannel_loss_of_sync_total" Counter One;
    "loss_of_signal_count" "node_fibrechannel_loss_of_signal_total" Counter One;
    "nos_count" "node_fibrechannel_nos_total" Counter One;
    "fcp_packet_aborts" "node_fibrechannel_fcp_packet_aborts_total" Counter One;
};

/// Files that are labels of `node_fibrechannel_info`.
const LABELS: [&str; 10] = [
    "dev_loss_tmo",
    "fabric_name",
    "port_id",
    "port_name",
    "port_state",
    "port_type",
    "speed",
    "supported_classes",
    "supported_speeds",
    "symbolic_name",
];

static ABOUT: About = About {
    name: "fibrechannel",
    every: Duration::from_secs(30),
    reads: "/sys/class/fc_host",
    needs: "",
    what: "frames, words and errors of Fibre Channel adapters",
};

/// See the module.
#[derive(Debug)]
pub struct Fibrechannel {
    names: Names,
    files: Files,
    attributes: Attributes,
}

impl Default for Fibrechannel {
    fn default() -> Self {
        Self {
            names: Names::default(),
            files: Files::default(),
            attributes: Attributes::new(FILES, &["fc_host"]),
        }
    }
}

impl Collector for Fibrechannel {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if !self.names.list(host, CLASS)? {
            return Ok(Outcome::NoData);
        }
        let mut labels = vec!["fc_host"];
        labels.extend(LABELS);
        let info = "node_fibrechannel_info";
        let info = out.dynamic_family(info, Kind::Gauge, Scale::One, &labels);
        for name in self.names.iter() {
            let folder: [&[u8]; 3] = [CLASS, name, b"/statistics"];
            let adapter = text::lossy(name);
            self.attributes
                .put(&mut self.files, host, &folder, &[&adapter], out);
            let words = LABELS.map(|file| {
                let word = self.files.word(host, &[CLASS, name, b"/", file.as_bytes()]);
                text::lossy(word.unwrap_or_default()).into_owned()
            });
            let mut values = vec![&*adapter];
            values.extend(words.iter().map(String::as_str));
            if let Some(info) = info
                && out.admits_object(1)
            {
                out.int(info, &values, 1);
            }
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn adapters_are_told() {
        let mut host = testing::Host::new();
        let mut collector = Fibrechannel::default();
        assert_eq!(host.run(&mut collector).ok(), Some(Outcome::NoData));
        host.write("sys/class/fc_host/host0/statistics/rx_frames", "0x1f\n");
        host.write(
            "sys/class/fc_host/host0/statistics/nos_count",
            "0xffffffffffffffff\n",
        );
        host.write("sys/class/fc_host/host0/port_state", "Online\n");
        let values = host.collect(&mut collector);
        assert_eq!(
            values[r#"node_fibrechannel_rx_frames_total{fc_host="host0"}"#],
            31.0
        );
        assert!(
            values
                .keys()
                .any(|key| key.contains(r#"port_state="Online""#))
        );
        assert_eq!(values.len(), 3);
    }

    testing::garbage!(
        Fibrechannel::default(),
        "sys/class/fc_host/host0/statistics/rx_frames",
        "(0x)?[0-9a-fx-]{0,22}\n"
    );
}
