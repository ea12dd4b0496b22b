//! `/proc/net/ip_vs_stats` and `ip_vs`: what the kernel's load balancer has carried, and its backends.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use muster_proto::series::{Kind, Scale};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const STATISTICS: &str = "proc/net/ip_vs_stats";
const SERVICES: &str = "proc/net/ip_vs";

/// Totals in the third line, hexadecimal.
const TOTALS: [&str; 5] = [
    "node_ipvs_connections_total",
    "node_ipvs_incoming_packets_total",
    "node_ipvs_outgoing_packets_total",
    "node_ipvs_incoming_bytes_total",
    "node_ipvs_outgoing_bytes_total",
];

const LABELS: [&str; 6] = [
    "local_address",
    "local_port",
    "remote_address",
    "remote_port",
    "proto",
    "local_mark",
];

static ABOUT: About = About {
    name: "ipvs",
    every: Duration::from_secs(30),
    reads: "/proc/net/{ip_vs_stats,ip_vs}",
    needs: "",
    what: "connections, packets and backends of the kernel's load balancer",
};

/// See the module.
#[derive(Debug)]
pub struct Ipvs {
    statistics: KeptFile,
    services: KeptFile,
}

impl Default for Ipvs {
    fn default() -> Self {
        Self {
            statistics: KeptFile::new(STATISTICS),
            services: KeptFile::new(SERVICES),
        }
    }
}

/// The virtual service whose backends follow.
#[derive(Debug, Default)]
struct Service {
    address: String,
    port: String,
    proto: String,
    mark: String,
}

impl Collector for Ipvs {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let Some(bytes) = self.statistics.read_if_there(host)? else {
            return Ok(Outcome::NoData);
        };
        let malformed = |path, what| CollectError::Malformed { path, what };
        let totals = text::lines(bytes).nth(2).unwrap_or_default();
        let mut fields = text::fields(totals);
        for name in TOTALS {
            let value = fields.next().and_then(text::hexadecimal);
            let value = value.ok_or(malformed(STATISTICS, "five totals in the third line"))?;
            if let Some(family) = out.dynamic_family(name, Kind::Counter, Scale::One, &[]) {
                out.unsigned(family, &[], value);
            }
        }
        let Some(bytes) = self.services.read_if_there(host)? else {
            return Ok(Outcome::Read);
        };
        let names = ["active", "inactive", "weight"].map(|name| match name {
            "weight" => "node_ipvs_backend_weight".to_owned(),
            name => format!("node_ipvs_backend_connections_{name}"),
        });
        let families =
            names.map(|name| out.dynamic_family(&name, Kind::Gauge, Scale::One, &LABELS));
        let [Some(active), Some(inactive), Some(weight)] = families else {
            return Ok(Outcome::Read);
        };
        let mut service = Service::default();
        for line in text::lines(bytes) {
            let mut fields = text::fields(line);
            match fields.next() {
                Some(proto @ (b"TCP" | b"UDP" | b"SCTP")) => {
                    let local = fields.next().and_then(endpoint);
                    let (address, port) =
                        local.ok_or(malformed(SERVICES, "an address behind a protocol"))?;
                    service = Service {
                        address,
                        port,
                        proto: text::lossy(proto).into_owned(),
                        mark: String::new(),
                    };
                }
                Some(b"FWM") => {
                    service = Service {
                        proto: "FWM".to_owned(),
                        mark: text::lossy(fields.next().unwrap_or_default()).into_owned(),
                        ..Service::default()
                    };
                }
                // Not the line of headings, which has a word in place of an address.
                Some(b"->") if !service.proto.is_empty() => {
                    let remote = fields.next().and_then(endpoint);
                    let (address, port) =
                        remote.ok_or(malformed(SERVICES, "an address behind an arrow"))?;
                    // Forwarding, weight, active, inactive.
                    let _forwarding = fields.next();
                    let mut number = || fields.next().and_then(text::unsigned);
                    let (of_weight, of_active, of_inactive) = (number(), number(), number());
                    if !out.admits_object(3) {
                        continue;
                    }
                    let labels = [
                        service.address.as_str(),
                        &service.port,
                        &address,
                        &port,
                        &service.proto,
                        &service.mark,
                    ];
                    for (family, value) in [
                        (active, of_active),
                        (inactive, of_inactive),
                        (weight, of_weight),
                    ] {
                        let what = "weight and connections of a backend";
                        out.unsigned(family, &labels, value.ok_or(malformed(SERVICES, what))?);
                    }
                }
                _ => {}
            }
        }
        Ok(Outcome::Read)
    }
}

/// `C0A80016:0CEA`, or `[2001:db8::1]:0CEA`; the port is hexadecimal in both.
fn endpoint(field: &[u8]) -> Option<(String, String)> {
    let colon = field.iter().rposition(|&byte| byte == b':')?;
    let (address, port) = (&field[..colon], &field[colon + 1..]);
    let port = text::hexadecimal(port)?.to_string();
    if let Some(inside) = address.strip_prefix(b"[") {
        let inside = std::str::from_utf8(inside.strip_suffix(b"]")?).ok()?;
        let address: Ipv6Addr = inside.parse().ok()?;
        return Some((address.to_string(), port));
    }
    let bits = u32::try_from(text::hexadecimal(address)?).ok()?;
    Some((Ipv4Addr::from_bits(bits).to_string(), port))
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn totals_and_backends_are_told() {
        let mut host = testing::Host::new();
        let mut ipvs = Ipvs::default();
        assert_eq!(host.run(&mut ipvs).ok(), Some(Outcome::NoData));
        host.write(
            STATISTICS,
            "   Total Incoming Outgoing\n   Conns  Packets  Packets Bytes Bytes\n 16AA370 E33656E5 0 51D8C8883AB3 0\n\n Conns/s\n",
        );
        host.write(
            SERVICES,
            "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
             -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
             TCP  C0A80016:0CEA wlc\n  -> C0A85216:0CEA      Tunnel  100    248        2\n\
             FWM  10001000 wlc\n  -> [2620:0000:0000:0000:0000:0000:0000:0001]:0050 Route 20 0 21\n",
        );
        let values = host.collect(&mut ipvs);
        assert_eq!(values["node_ipvs_connections_total"], 23_765_872.0);
        let tcp = r#"{local_address="192.168.0.22",local_port="3306",remote_address="192.168.82.22",remote_port="3306",proto="TCP",local_mark=""}"#;
        assert_eq!(
            values[&format!("node_ipvs_backend_connections_active{tcp}")],
            248.0
        );
        assert_eq!(values[&format!("node_ipvs_backend_weight{tcp}")], 100.0);
        let mark = r#"remote_address="2620::1",remote_port="80",proto="FWM",local_mark="10001000""#;
        assert!(values.keys().any(|key| key.contains(mark)), "{values:#?}");
        assert_eq!(values.len(), 5 + 6);
        host.write(STATISTICS, "one\ntwo\n1 2\n");
        assert!(host.fails(&mut ipvs));
    }

    testing::garbage!(Ipvs::default(), STATISTICS, "([0-9A-Fx]{1,17} ){0,6}\n");

    proptest::proptest! {
        #[test]
        fn any_address_is_survived(bytes: Vec<u8>, near in "\\[?[0-9A-F:]{0,12}\\]?:?[0-9A-F]{0,5}") {
            let _ = (endpoint(&bytes), endpoint(near.as_bytes()));
        }
    }
}
