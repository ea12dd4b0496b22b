//! TCP sockets in each state, 0 for those nobody is in.
//!
//! The kernel is asked over netlink (sock_diag(7)): a socket costs 72 bytes and under a microsecond, where
//! `/proc/net/tcp` costs ten times that. Another host than this machine is read from there. What the
//! counting may cost is bounded all the same: it runs as seldom as keeps it below a hundredth of one CPU,
//! and a host with more than [`MAX_SOCKETS`] gets no numbers and a failed collector.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use muster_proto::{catalog, time::Timestamp};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt::Timeout,
};

use super::{About, CollectError, Collector, Outcome, Readings, sockets};
use crate::host::{HostRoot, KeptFile, ReadError};

const FILES: [&str; 2] = ["proc/net/tcp", "proc/net/tcp6"];

/// The values of the label, by the kernel's number of the state (tcp_states.h), from 1. The twelfth, a
/// request that is not yet a connection, is `syn_recv` to everybody else too.
const STATES: [&str; 11] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
];
const NEW_SYN_RECV: u64 = 12;
const SYN_RECV: u64 = 3;
const LISTEN: u64 = 10;

/// More are not counted: that would take half a second.
const MAX_SOCKETS: usize = 1_000_000;

/// One counting takes at most this part of the time until the next.
const SHARE_OF_TIME: u32 = 100;

static ABOUT: About = About {
    name: "tcpstat",
    every: Duration::from_secs(10),
    reads: "netlink(7) sock_diag; of another root /proc/net/{tcp,tcp6}",
    needs: "AF_NETLINK, which the agent's unit allows",
    what: "TCP sockets in each state",
};

/// See the module.
#[derive(Debug)]
pub struct Tcpstat {
    files: [KeptFile; 2],
    buffer: Vec<u8>,
    /// When it counted last, and how long that took.
    counted: Option<(Timestamp, Duration)>,
}

impl Default for Tcpstat {
    fn default() -> Self {
        Self {
            files: FILES.map(KeptFile::new),
            buffer: Vec::new(),
            counted: None,
        }
    }
}

/// Sockets by state, and bytes in their queues.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    states: [u64; STATES.len()],
    sockets: usize,
    receive_queue: u64,
    send_queue: u64,
}

impl Count {
    fn add(&mut self, socket: sockets::Socket) {
        let state = match socket.state {
            NEW_SYN_RECV => SYN_RECV,
            state => state,
        };
        let at = usize::try_from(state).unwrap_or(0).wrapping_sub(1);
        if let Some(count) = self.states.get_mut(at) {
            *count += 1;
        }
        self.sockets += 1;
        if state == LISTEN {
            // Its queues are connections that wait and how many may: no bytes.
            return;
        }
        self.receive_queue = self.receive_queue.saturating_add(socket.receive_queue);
        self.send_queue = self.send_queue.saturating_add(socket.send_queue);
    }

    fn put(&self, out: &mut Readings) {
        for (state, count) in STATES.into_iter().zip(self.states) {
            out.unsigned(catalog::TCP_STATES, &[state], count);
        }
        out.unsigned(
            catalog::TCP_STATES,
            &["rx_queued_bytes"],
            self.receive_queue,
        );
        out.unsigned(catalog::TCP_STATES, &["tx_queued_bytes"], self.send_queue);
    }
}

impl Collector for Tcpstat {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if let Some((at, took)) = self.counted
            && !super::is_due(Some(at), took * SHARE_OF_TIME, out.tick())
        {
            return Ok(Outcome::Unchanged);
        }
        let began = Instant::now();
        let mut count = Count::default();
        let outcome = if host.is_live() {
            for family in [AddressFamily::INET, AddressFamily::INET6] {
                ask(family, &mut self.buffer, &mut count).map_err(|source| ReadError::Io {
                    path: "netlink sock_diag".into(),
                    source,
                })?;
            }
            Outcome::Read
        } else {
            self.read(host, &mut count)?
        };
        self.counted = Some((out.tick(), began.elapsed()));
        if outcome == Outcome::Read {
            count.put(out);
        }
        Ok(outcome)
    }
}

impl Tcpstat {
    fn read(&mut self, host: &HostRoot, count: &mut Count) -> Result<Outcome, CollectError> {
        let mut outcome = Outcome::NoData;
        for (path, file) in FILES.into_iter().zip(&mut self.files) {
            let Some(bytes) = file.read_if_there(host)? else {
                continue;
            };
            for socket in sockets::parse(bytes) {
                let what = "sockets with a state and two queues";
                count.add(socket.ok_or(CollectError::Malformed { path, what })?);
            }
            outcome = Outcome::Read;
        }
        Ok(outcome)
    }
}

/// `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32; native byte order.
const HEADER_BYTES: usize = 16;
/// Messages begin at multiples of this.
const ALIGNMENT: usize = 4;
/// linux/netlink.h and linux/sock_diag.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x001 | 0x300;
const IPPROTO_TCP: u8 = 6;
/// `struct inet_diag_req_v2`: family u8, protocol u8, extensions u8, padding u8, states u32, socket id 48.
const REQUEST_BYTES: usize = HEADER_BYTES + 8 + 48;
/// In `struct inet_diag_msg`: family u8, state u8, timer u8, retransmissions u8, socket id 48, expiry u32, receive
/// queue u32, send queue u32, user u32, inode u32.
const STATE_AT: usize = 1;
const RECEIVE_QUEUE_AT: usize = 4 + 48 + 4;
const SEND_QUEUE_AT: usize = RECEIVE_QUEUE_AT + 4;
const PATIENCE: Duration = Duration::from_millis(250);
/// The kernel fills what is offered, up to 32 KiB.
const RECEIVE_BYTES: usize = 32 * 1024;

/// Adds the sockets of one address family; a kernel without it has none.
fn ask(family: AddressFamily, buffer: &mut Vec<u8>, count: &mut Count) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // The kernel has its answer ready when the question is sent; should it not, nobody waits for long.
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    rustix::net::send(&socket, &request(family), SendFlags::empty())?;
    buffer.resize(RECEIVE_BYTES, 0);
    while !receive(&socket, buffer, count)? {
        if count.sockets > MAX_SOCKETS {
            return Err(io::Error::other(format!(
                "the host has more than {MAX_SOCKETS} TCP sockets"
            )));
        }
    }
    Ok(())
}

fn request(family: AddressFamily) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let length = u32::try_from(REQUEST_BYTES).unwrap_or(0);
    request[0..4].copy_from_slice(&length.to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request[HEADER_BYTES] = u8::try_from(family.as_raw()).unwrap_or(0);
    request[HEADER_BYTES + 1] = IPPROTO_TCP;
    // All states.
    request[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
    request
}

/// Takes what is there; true at the end of the answer.
fn receive(socket: &OwnedFd, buffer: &mut [u8], count: &mut Count) -> io::Result<bool> {
    let (length, _) = rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?;
    parse(&buffer[..length], count)
}

/// Reads the messages of one answer; true if the last of all was among them.
fn parse(mut rest: &[u8], count: &mut Count) -> io::Result<bool> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    if rest.is_empty() {
        return Err(cut());
    }
    while !rest.is_empty() {
        let length = usize::try_from(u32_at(rest, 0).ok_or_else(cut)?).map_err(|_| cut())?;
        let kind = u16_at(rest, 4).ok_or_else(cut)?;
        let body = rest.get(HEADER_BYTES..length).ok_or_else(cut)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return refused(body),
            SOCK_DIAG_BY_FAMILY => count.add(diagnosed(body).ok_or_else(cut)?),
            _ => {}
        }
        let next = length.next_multiple_of(ALIGNMENT).min(rest.len());
        rest = &rest[next..];
    }
    Ok(false)
}

/// The kernel's negative errno. One without IPv6, or without the module for TCP, says ENOENT.
fn refused(body: &[u8]) -> io::Result<bool> {
    let errno = u32_at(body, 0).map_or(0, u32::cast_signed).saturating_neg();
    let error = io::Error::from_raw_os_error(errno);
    match error.kind() {
        io::ErrorKind::NotFound => Ok(true),
        _ => Err(error),
    }
}

fn diagnosed(body: &[u8]) -> Option<sockets::Socket> {
    let state = *body.get(STATE_AT)?;
    let queue = |at| u32_at(body, at).map(u64::from);
    Some(sockets::Socket {
        state: state.into(),
        receive_queue: queue(RECEIVE_QUEUE_AT)?,
        send_queue: queue(SEND_QUEUE_AT)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing, *};

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n\
        0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000\n\
        1: 0100007F:0016 0100007F:8000 01 00000015:00000001 00:00000000\n";
    const TCP6: &str = "headings\n\
        0: 0:0016 0:8000 0C 00000000:00000000 00:00000000\n\
        1: 0:0016 0:8000 06 00000000:00000000 00:00000000\n";

    #[test]
    fn every_state_is_shown_and_nobody_is_zero() {
        let mut host = testing::Host::new();
        let mut tcpstat = Tcpstat::default();
        assert_eq!(host.run(&mut tcpstat).ok(), Some(Outcome::NoData));
        let mut tcpstat = Tcpstat::default();
        host.write(FILES[0], TCP);
        host.write(FILES[1], TCP6);
        let values = host.collect(&mut tcpstat);
        let of = |state: &str| values[&format!("node_tcp_connection_states{{state={state:?}}}")];
        assert_eq!((of("listen"), of("established")), (1.0, 1.0));
        assert_eq!((of("syn_recv"), of("time_wait")), (1.0, 1.0));
        assert_eq!((of("tx_queued_bytes"), of("rx_queued_bytes")), (21.0, 1.0));
        assert_eq!((of("closing"), values.len()), (0.0, 13));
        host.write(FILES[0], "headings\n0: a b\n");
        assert!(host.fails(&mut Tcpstat::default()));
    }

    #[test]
    fn what_took_long_is_not_done_again_soon() {
        let mut host = testing::Host::new();
        host.write(FILES[0], TCP);
        let mut tcpstat = Tcpstat::default();
        host.set_tick(1_000);
        host.collect(&mut tcpstat);
        tcpstat.counted = tcpstat
            .counted
            .map(|(at, _)| (at, Duration::from_millis(300)));
        host.set_tick(1_029);
        assert_eq!(host.run(&mut tcpstat).ok(), Some(Outcome::Unchanged));
        host.set_tick(1_030);
        assert_eq!(host.run(&mut tcpstat).ok(), Some(Outcome::Read));
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + body.len()).expect("short");
        let mut message = length.to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.resize(HEADER_BYTES, 0);
        message.extend_from_slice(body);
        message
    }

    fn diagnosis(state: u8, queues: [u32; 2]) -> Vec<u8> {
        let mut body = vec![2, state];
        body.resize(RECEIVE_QUEUE_AT, 0);
        body.extend(queues.into_iter().flat_map(u32::to_ne_bytes));
        body.resize(72, 0);
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    #[test]
    fn the_kernels_answers_are_understood() {
        let mut count = Count::default();
        let answer = [diagnosis(1, [5, 7]), diagnosis(10, [1, 128])].concat();
        assert!(!parse(&answer, &mut count).expect("more comes"));
        let answer = [diagnosis(12, [0, 0]), message(NLMSG_DONE, &[0; 4])].concat();
        assert!(parse(&answer, &mut count).expect("the end"));
        assert_eq!((count.receive_queue, count.send_queue), (5, 7));
        assert_eq!(
            (count.states[0], count.states[2], count.states[9]),
            (1, 1, 1)
        );
        let error = |errno: i32| {
            parse(
                &message(NLMSG_ERROR, &errno.to_ne_bytes()),
                &mut Count::default(),
            )
        };
        assert!(error(-2).expect("no such family"));
        assert_eq!(error(-1).expect_err("refused").raw_os_error(), Some(1));
        assert!(parse(&diagnosis(1, [0, 0])[..40], &mut count).is_err());
        assert!(parse(&[], &mut count).is_err());
    }

    #[test]
    fn this_machine_answers() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let (mut buffer, mut count) = (Vec::new(), Count::default());
        ask(AddressFamily::INET, &mut buffer, &mut count).expect("answered");
        assert!(count.states[9] > 0, "{count:?}");
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes: Vec<u8>, at in 0usize..200, byte: u8) {
            let _ = parse(&bytes, &mut Count::default());
            let mut near = [diagnosis(1, [5, 7]), message(NLMSG_DONE, &[0; 4])].concat();
            if let Some(place) = near.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&near, &mut Count::default());
        }
    }

    testing::garbage!(Tcpstat::default(), FILES[0], "([0-9A-Fx:]{1,17} ){0,6}\n");
}
