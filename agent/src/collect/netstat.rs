//! `/proc/net/netstat`, `snmp` and `snmp6`: what the network protocols have done.
//!
//! Of about 400 fields those are shown that node_exporter shows by default. Names are
//! `node_netstat_<protocol>_<field>`. The first two files have for each protocol a line of names and a line
//! of numbers; the third has a name and a number on each line, and a kernel without IPv6 does not have it.

use std::time::Duration;

use muster_proto::{
    catalog::FamilyId,
    series::{Kind, Scale},
};

use super::{About, CollectError, Collector, Outcome, Readings, memo::Memo, text};
use crate::host::{HostRoot, KeptFile};

const NETSTAT: &str = "proc/net/netstat";
const SNMP: &str = "proc/net/snmp";
const SNMP6: &str = "proc/net/snmp6";

/// Fields that are shown, by protocol. `*` at the end stands for anything.
const CHOSEN: [(&str, &[&str]); 11] = [
    ("Ip", &["Forwarding"]),
    ("IpExt", &["InOctets", "OutOctets"]),
    ("Ip6", &["InOctets", "OutOctets"]),
    ("Icmp", &["InMsgs", "OutMsgs"]),
    ("Icmp6", &["InMsgs", "OutMsgs"]),
    ("Tcp", TCP),
    ("TcpExt", TCP_EXT),
    ("Udp", UDP),
    ("Udp6", UDP),
    ("UdpLite", &[]),
    ("UdpLite6", &[]),
];
const TCP: &[&str] = &[
    "ActiveOpens",
    "CurrEstab",
    "InSegs",
    "OutRsts",
    "OutSegs",
    "PassiveOpens",
    "RetransSegs",
];
const TCP_EXT: &[&str] = &[
    "Listen*",
    "Syncookies*",
    "TCPOFOQueue",
    "TCPRcvQDrop",
    "TCPSynRetrans",
    "TCPTimeouts",
];
const UDP: &[&str] = &[
    "InDatagrams",
    "NoPorts",
    "OutDatagrams",
    "RcvbufErrors",
    "SndbufErrors",
];

/// Fields that are shown of every protocol.
const ALWAYS: [&str; 2] = ["InErrors", "InErrs"];

/// Most columns of a line; `TcpExt` has about 130.
const MAX_COLUMNS: usize = 512;

static ABOUT: About = About {
    name: "netstat",
    every: Duration::from_secs(10),
    reads: "/proc/net/{netstat,snmp,snmp6}",
    needs: "",
    what: "segments, datagrams, errors, drops and resets of TCP, UDP, IP and ICMP",
};

/// See the module.
#[derive(Debug)]
pub struct Netstat {
    netstat: KeptFile,
    snmp: KeptFile,
    snmp6: KeptFile,
    /// The columns of each line of names: by protocol, in the order of both files.
    columns: [Vec<Columns>; 2],
    lines6: Memo<Option<FamilyId>>,
}

/// A line of names and where its chosen fields stand.
#[derive(Debug)]
struct Columns {
    names: Vec<u8>,
    chosen: Vec<(usize, FamilyId)>,
}

impl Default for Netstat {
    fn default() -> Self {
        Self {
            netstat: KeptFile::whole(NETSTAT),
            snmp: KeptFile::whole(SNMP),
            snmp6: KeptFile::whole(SNMP6),
            columns: [Vec::new(), Vec::new()],
            lines6: Memo::default(),
        }
    }
}

impl Collector for Netstat {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let [netstat, snmp] = &mut self.columns;
        put_pairs(NETSTAT, self.netstat.read(host)?, netstat, out)?;
        put_pairs(SNMP, self.snmp.read(host)?, snmp, out)?;
        let Some(snmp6) = self.snmp6.read_if_there(host)? else {
            return Ok(Outcome::Read);
        };
        for (place, line) in text::lines(snmp6).enumerate() {
            let mut fields = text::fields(line);
            let Some(name) = fields.next() else { continue };
            let family = self.lines6.get(place, name, |name| family6(name, out));
            if let Some(family) = family {
                let value = fields.next().and_then(text::signed);
                let malformed = CollectError::Malformed {
                    path: SNMP6,
                    what: "a number after a name",
                };
                out.int(family, &[], value.ok_or(malformed)?);
            }
        }
        Ok(Outcome::Read)
    }
}

/// Puts the chosen fields of a file of pairs of lines.
fn put_pairs(
    path: &'static str,
    bytes: &[u8],
    known: &mut Vec<Columns>,
    out: &mut Readings,
) -> Result<(), CollectError> {
    let malformed = |what| CollectError::Malformed { path, what };
    let mut lines = text::lines(bytes);
    let mut place = 0;
    while let Some(names) = lines.next() {
        let numbers = lines.next();
        let numbers = numbers.ok_or(malformed("a line of numbers behind one of names"))?;
        let colon = names.iter().position(|&byte| byte == b':');
        let colon = colon.ok_or(malformed("a protocol with a colon"))?;
        if numbers.get(..=colon) != names.get(..=colon) {
            return Err(malformed("two lines for each protocol"));
        }
        if known
            .get(place)
            .is_none_or(|columns| columns.names != names)
        {
            known.truncate(place);
            known.push(Columns::of(names, colon, out));
        }
        let mut fields = text::fields(&numbers[colon + 1..]);
        let mut next = 0;
        for &(at, family) in &known[place].chosen {
            let value = fields.nth(at - next).and_then(text::signed);
            out.int(
                family,
                &[],
                value.ok_or(malformed("a number for each name"))?,
            );
            next = at + 1;
        }
        place += 1;
    }
    known.truncate(place);
    if place == 0 {
        return Err(malformed("two lines for at least one protocol"));
    }
    Ok(())
}

impl Columns {
    fn of(names: &[u8], colon: usize, out: &mut Readings) -> Self {
        let protocol = &names[..colon];
        let fields = text::fields(&names[colon + 1..]).take(MAX_COLUMNS);
        let chosen = fields.enumerate().filter_map(|(at, field)| {
            let family = family(protocol, field, out)?;
            Some((at, family))
        });
        Self {
            chosen: chosen.collect(),
            names: names.to_owned(),
        }
    }
}

/// `Udp6InErrors`: the protocol ends with its 6.
fn family6(name: &[u8], out: &mut Readings) -> Option<FamilyId> {
    let six = name.iter().position(|&byte| byte == b'6')?;
    let (protocol, field) = name.split_at(six + 1);
    family(protocol, field, out)
}

/// The family of a field, if it is chosen.
fn family(protocol: &[u8], field: &[u8], out: &mut Readings) -> Option<FamilyId> {
    let is = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => field.starts_with(beginning.as_bytes()),
        None => field == pattern.as_bytes(),
    };
    let listed = CHOSEN.iter().find(|(name, _)| name.as_bytes() == protocol);
    let chosen = ALWAYS.iter().any(|&always| is(always))
        || listed.is_some_and(|(_, fields)| fields.iter().any(|&field| is(field)));
    if !chosen {
        return None;
    }
    let name = format!(
        "node_netstat_{}_{}",
        text::lossy(protocol),
        text::lossy(field)
    );
    out.dynamic_family(&name, Kind::Untyped, Scale::One, &[])
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    const PAIRS: &str = "TcpExt: SyncookiesSent ListenDrops Other TCPTimeouts\n\
                         TcpExt: 1 2 3 4\n\
                         IpExt: InNoRoutes InOctets\nIpExt: 5 6\n";
    const MIB: &str = "Ip: Forwarding DefaultTTL\nIp: 2 64\n\
                       Tcp: MaxConn CurrEstab InErrs\nTcp: -1 7 8\n\
                       UdpLite: InErrors\nUdpLite: 9\n";

    #[test]
    fn node_exporters_fields_are_shown() {
        let mut host = testing::Host::new();
        host.write(NETSTAT, PAIRS);
        host.write(SNMP, MIB);
        let mut netstat = Netstat::default();
        assert_eq!(host.collect(&mut netstat).len(), 8, "without IPv6");
        host.write(
            SNMP6,
            "Ip6InOctets  \t10\nUdp6InErrors 11\nUdpLite6InErrors 12\nIp6InPkts 1\nIcmp6OutMsgs 13\n",
        );
        let values = host.collect(&mut netstat);
        let table = [
            ("TcpExt_SyncookiesSent", 1.0),
            ("TcpExt_ListenDrops", 2.0),
            ("TcpExt_TCPTimeouts", 4.0),
            ("IpExt_InOctets", 6.0),
            ("Ip_Forwarding", 2.0),
            ("Tcp_CurrEstab", 7.0),
            ("Tcp_InErrs", 8.0),
            ("UdpLite_InErrors", 9.0),
            ("Ip6_InOctets", 10.0),
            ("Udp6_InErrors", 11.0),
            ("UdpLite6_InErrors", 12.0),
            ("Icmp6_OutMsgs", 13.0),
        ];
        for (name, value) in table {
            assert_eq!(
                values.get(&format!("node_netstat_{name}")),
                Some(&value),
                "{name}"
            );
        }
        assert_eq!(values.len(), table.len());
        // A module was loaded, and a protocol has more columns than before.
        host.write(
            SNMP,
            MIB.replace("InErrs\n", "OutRsts InErrs\n")
                .replace("7 8", "7 70 8"),
        );
        let values = host.collect(&mut netstat);
        assert_eq!(values["node_netstat_Tcp_OutRsts"], 70.0);
        assert_eq!(values["node_netstat_Tcp_InErrs"], 8.0);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for wrong in [
            "",
            "Tcp: InErrs\n",
            "Tcp: InErrs\nUdp: 1\n",
            "Tcp: InErrs\nTcp: \n",
            "Tcp: InErrs\nTcp: x\n",
            "Tcp InErrs\nTcp 1\n",
        ] {
            let mut host = testing::Host::new();
            host.write(NETSTAT, PAIRS);
            host.write(SNMP, wrong);
            assert!(host.fails(&mut Netstat::default()), "{wrong:?}");
        }
    }

    testing::garbage!(
        Netstat::default(),
        NETSTAT,
        "(Tcp|Udp|x):?( (InErrs|InErrors|-?[0-9]{1,21}|x)){0,4}\n"
    );
}
