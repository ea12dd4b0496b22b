//! Ports on which the host listens: `/proc/net/{tcp,tcp6,udp,udp6}`, and of this machine for TCP what the kernel tells
//! over netlink, which does not go through all its connections for those that listen.
//!
//! A port is told when two looks in a row agree: what is open for a moment is no change of the host. UDP has no
//! listening; a socket without a peer on a port below the ephemeral range is taken for a server's.

use std::{collections::BTreeSet, net::IpAddr};

use muster_proto::{
    event,
    time::Timestamp,
    v1::{EventFieldKey, EventKind},
};
use serde::{Deserialize, Serialize};

use super::{Found, MAX_EACH, left_out_event};
use crate::{
    collect::{diag, text},
    host::HostRoot,
};

const FILES: [(&str, &str); 4] = [
    ("tcp", "proc/net/tcp"),
    ("tcp", "proc/net/tcp6"),
    ("udp", "proc/net/udp"),
    ("udp", "proc/net/udp6"),
];

/// `TCP_LISTEN` and, for UDP, `TCP_CLOSE` (include/net/tcp_states.h), as the files print them.
const TCP_LISTENS: &[u8] = b"0A";
const UDP_WAITS: &[u8] = b"07";

/// First port that the kernel gives to clients, unless it says otherwise.
const EPHEMERAL: u16 = 32_768;

/// Most ports that are remembered.
const MAX_PORTS: usize = 2_048;

/// What is known.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// Ports that are taken for open: `tcp 0.0.0.0:22`.
    pub open: Option<BTreeSet<String>>,
    /// Of the look before.
    seen: BTreeSet<String>,
}

/// Compares with what is known; true if that changed.
pub fn look(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let Some(now) = read(host) else {
        return false;
    };
    let before = std::mem::replace(&mut known.seen, now.clone());
    let Some(open) = &mut known.open else {
        known.open = Some(now);
        return true;
    };
    let opened: Vec<String> = now
        .iter()
        .filter(|port| before.contains(*port) && !open.contains(*port))
        .cloned()
        .collect();
    let closed: Vec<String> = open
        .iter()
        .filter(|port| !before.contains(*port) && !now.contains(*port))
        .cloned()
        .collect();
    let changed = before != now || !opened.is_empty() || !closed.is_empty();
    let told = opened.iter().map(|port| (port, "open"));
    let told = told.chain(closed.iter().map(|port| (port, "closed")));
    for (port, to) in told.take(MAX_EACH) {
        let fields = vec![event::word(EventFieldKey::To, to)];
        found.event(at, EventKind::PortChanged, port, fields);
    }
    let all = opened.len() + closed.len();
    if let Some(more) = all.checked_sub(MAX_EACH).filter(|more| *more > 0) {
        found.events.push(left_out_event(at, more as u64));
    }
    open.retain(|port| !closed.contains(port));
    open.extend(opened);
    changed
}

/// The ports that are open now; `None` if not one of the files can be read.
fn read(host: &HostRoot) -> Option<BTreeSet<String>> {
    let range = host.word("proc/sys/net/ipv4/ip_local_port_range");
    let ephemeral = range
        .and_then(|range| range.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(EPHEMERAL);
    let mut ports = asked(host);
    let has_tcp = ports.is_some();
    for (protocol, path) in FILES {
        if has_tcp && protocol == "tcp" {
            continue;
        }
        let Ok(table) = host.read(path) else {
            continue;
        };
        let ports = ports.get_or_insert_with(BTreeSet::new);
        for line in text::lines(&table).skip(1) {
            if ports.len() >= MAX_PORTS {
                break;
            }
            ports.extend(listening(protocol, line, ephemeral));
        }
    }
    ports
}

/// TCP's as the kernel of this machine tells them; `None` if it does not, or this is another host.
fn asked(host: &HostRoot) -> Option<BTreeSet<String>> {
    if !host.is_live() || host.recorder().is_some() {
        return None;
    }
    let mut ports = BTreeSet::new();
    let mut each = |socket: diag::Socket| {
        if socket.port != 0 && ports.len() < MAX_PORTS {
            ports.insert(name("tcp", socket.address, socket.port));
        }
        Ok(())
    };
    diag::ask(diag::LISTENING, &mut Vec::new(), &mut each).ok()?;
    Some(ports)
}

fn name(protocol: &str, address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{protocol} {address}:{port}"),
        IpAddr::V6(address) => format!("{protocol} [{address}]:{port}"),
    }
}

/// `0: 0100007F:0277 00000000:0000 0A …`
fn listening(protocol: &str, line: &[u8], ephemeral: u16) -> Option<String> {
    let mut fields = text::fields(line).skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (address, port) = endpoint(local)?;
    let open = match protocol {
        "tcp" => state == TCP_LISTENS,
        _ => state == UDP_WAITS && endpoint(remote)?.1 == 0 && port < ephemeral,
    };
    (open && port != 0).then(|| name(protocol, address, port))
}

/// `0100007F:0277`: the address as 32-bit words in the byte order of the machine, the port as a number.
fn endpoint(field: &[u8]) -> Option<(IpAddr, u16)> {
    let (address, port) = std::str::from_utf8(field).ok()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes);
    match address.len() {
        8 => Some((word(address)?.into(), port)),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(address.get(at * 8..at * 8 + 8)?)?);
            }
            Some((bytes.into(), port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::testing::{Tree, at},
        *,
    };

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue\n";
    const SSH: &str = "   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n";
    const WEB: &str = "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n";
    const SESSION: &str = "   2: 0100007F:0016 0200007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n";

    #[test]
    fn ports_are_told_when_two_looks_agree() {
        let tree = Tree::new(&[]);
        let (mut known, mut found) = (Known::default(), Found::default());
        let mut look = |lines: &[&str]| {
            tree.write("proc/net/tcp", &format!("{HEAD}{}", lines.concat()));
            look(&tree.host(), at(0), &mut known, &mut found);
            found.words()
        };
        assert!(
            look(&[SSH, SESSION]).is_empty(),
            "the first look only learns"
        );
        assert!(look(&[SSH, WEB]).is_empty(), "perhaps for a moment");
        assert!(look(&[SSH]).is_empty(), "it was");
        assert!(look(&[SSH, WEB]).is_empty());
        assert_eq!(look(&[SSH, WEB]), ["port tcp 127.0.0.1:8080 open"]);
        assert!(look(&[WEB]).is_empty(), "perhaps it restarts");
        assert_eq!(look(&[WEB]), ["port tcp 0.0.0.0:22 closed"]);
    }

    #[test]
    fn this_machine_tells_what_its_files_tell() {
        let four = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let own = four.local_addr().expect("an address").to_string();
        let live = HostRoot::at("/");
        let asked = asked(&live).expect("answered");
        assert!(asked.contains(&format!("tcp {own}")), "{asked:?}");
        let table = live.read("proc/net/tcp").expect("reads");
        let lines = text::lines(&table).filter_map(|line| listening("tcp", line, EPHEMERAL));
        let of_file: Vec<String> = lines.filter(|port| port.ends_with(&own)).collect();
        assert_eq!(of_file, [format!("tcp {own}")], "the same words");
    }

    #[test]
    fn udp_and_both_addresses_are_read() {
        let table = [
            (
                "udp",
                "1: 00000000:0035 00000000:0000 07 0",
                Some("udp 0.0.0.0:53"),
            ),
            ("udp", "1: 00000000:D431 00000000:0000 07 0", None),
            ("udp", "1: 0100007F:0035 0100007F:0400 07 0", None),
            (
                "tcp",
                "1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0",
                Some("tcp [::]:80"),
            ),
            (
                "tcp",
                "1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0",
                Some("tcp [::1]:80"),
            ),
            ("tcp", "1: 0000:0050 00000000:0000 0A 0", None),
            ("tcp", "1: 00000000:0050", None),
        ];
        for (protocol, line, expected) in table {
            let open = listening(protocol, line.as_bytes(), EPHEMERAL);
            assert_eq!(open.as_deref(), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_odd(line in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = listening("tcp", &line, EPHEMERAL);
            let _ = endpoint(&line);
        }
    }
}
