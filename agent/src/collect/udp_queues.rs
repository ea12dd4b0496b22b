//! `/proc/net/udp` and `udp6`: bytes that wait in the queues of UDP sockets, summed over all of them.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, sockets};
use crate::host::{HostRoot, KeptFile};

/// Files, and the value of the label `ip`.
const FILES: [(&str, &str); 2] = [("proc/net/udp", "v4"), ("proc/net/udp6", "v6")];

static ABOUT: About = About {
    name: "udp_queues",
    every: Duration::from_secs(30),
    reads: "/proc/net/{udp,udp6}",
    needs: "",
    what: "bytes that wait in the queues of UDP sockets",
};

/// See the module.
#[derive(Debug)]
pub struct UdpQueues {
    files: [KeptFile; 2],
}

impl Default for UdpQueues {
    fn default() -> Self {
        Self {
            files: FILES.map(|(path, _)| KeptFile::lines(path)),
        }
    }
}

impl Collector for UdpQueues {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let mut outcome = Outcome::NoData;
        for ((path, ip), file) in FILES.into_iter().zip(&mut self.files) {
            let Some(bytes) = file.read_if_there(host)? else {
                continue;
            };
            let (mut sent, mut received) = (0u64, 0u64);
            for socket in sockets::parse(bytes) {
                let what = "sockets with two queues";
                let socket = socket.ok_or(CollectError::Malformed { path, what })?;
                sent = sent.saturating_add(socket.send_queue);
                received = received.saturating_add(socket.receive_queue);
            }
            out.unsigned(catalog::UDP_QUEUES, &["tx", ip], sent);
            out.unsigned(catalog::UDP_QUEUES, &["rx", ip], received);
            outcome = Outcome::Read;
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn queues_are_added_up() {
        let mut host = testing::Host::new();
        let mut queues = UdpQueues::default();
        assert_eq!(host.run(&mut queues).ok(), Some(Outcome::NoData));
        let lines = "  sl  local_address rem_address   st tx_queue rx_queue\n\
                     1: 00000000:0044 00000000:0000 07 00000001:00000015 00:00000000\n\
                     2: 00000000:0045 00000000:0000 07 00000002:00000001 00:00000000\n";
        host.write(FILES[0].0, lines);
        let values = host.collect(&mut queues);
        assert_eq!(values[r#"node_udp_queues{queue="tx",ip="v4"}"#], 3.0);
        assert_eq!(values[r#"node_udp_queues{queue="rx",ip="v4"}"#], 22.0);
        assert_eq!(values.len(), 2);
        host.write(FILES[1].0, "headings\n1: 2\n");
        assert!(host.fails(&mut queues));
    }

    testing::garbage!(
        UdpQueues::default(),
        FILES[0].0,
        "([0-9A-Fx:]{1,17} ){0,6}\n"
    );
}
