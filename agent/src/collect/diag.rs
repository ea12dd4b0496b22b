//! TCP sockets as the kernel tells of them over netlink (sock_diag(7)).
//!
//! The kernel goes through its whole table of connections for an answer, whatever is in it: a millisecond on a machine
//! with much memory. So both address families are asked for at once, which only the older form of the question can, and
//! who wants listening sockets asks for those only: they have a small table of their own. A line of `/proc/net/tcp` costs
//! ten times what a socket costs here.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt::Timeout,
    },
};

/// Every state.
pub const ALL: u32 = u32::MAX;
/// `TCP_LISTEN` (tcp_states.h).
pub const LISTENING: u32 = 1 << 10;

/// `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32; native byte order.
const HEADER_BYTES: usize = 16;
/// Messages begin at multiples of this.
const ALIGNMENT: usize = 4;
/// linux/netlink.h, linux/sock_diag.h and, for the older form, linux/inet_diag.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCPDIAG_GETSOCK: u16 = 18;
const NLM_F_REQUEST_DUMP: u16 = 0x001 | 0x300;
const IPPROTO_TCP: u8 = 6;
/// `struct inet_diag_req`: family u8, two lengths u8, extensions u8, socket id 48, states u32, u32. The family is not
/// looked at.
const OLD_STATES_AT: usize = HEADER_BYTES + 4 + 48;
const OLD_BYTES: usize = OLD_STATES_AT + 8;
/// `struct inet_diag_req_v2`: family u8, protocol u8, extensions u8, padding u8, states u32, socket id 48.
const NEW_STATES_AT: usize = HEADER_BYTES + 4;
const NEW_BYTES: usize = NEW_STATES_AT + 4 + 48;
/// In `struct inet_diag_msg`: family u8, state u8, timer u8, retransmissions u8, socket id 48 (port u16, peer's port
/// u16, address 16, …), expiry u32, receive queue u32, send queue u32, user u32, inode u32. Ports and addresses are in
/// network byte order.
const STATE_AT: usize = 1;
const PORT_AT: usize = 4;
const ADDRESS_AT: usize = 8;
const RECEIVE_QUEUE_AT: usize = 4 + 48 + 4;
const SEND_QUEUE_AT: usize = RECEIVE_QUEUE_AT + 4;
const PATIENCE: Duration = Duration::from_millis(250);
/// The kernel fills what is offered, up to 32 KiB.
const RECEIVE_BYTES: usize = 32 * 1024;

/// A socket of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// The kernel's number of its state.
    pub state: u8,
    /// The address it is bound to.
    pub address: IpAddr,
    /// The port it is bound to.
    pub port: u16,
    /// Bytes that wait to be read; of one that listens, connections that wait.
    pub receive_queue: u32,
    /// Bytes that wait to be sent; of one that listens, connections that may wait.
    pub send_queue: u32,
}

/// Gives `each` the TCP sockets of both address families in these states. A kernel without a family has none of it.
///
/// # Errors
/// What the kernel says, and what `each` does: then no more are asked for.
pub fn ask(
    states: u32,
    buffer: &mut Vec<u8>,
    each: &mut dyn FnMut(Socket) -> io::Result<()>,
) -> io::Result<()> {
    match dump(&of_all(states), buffer, each) {
        Err(error) if is_unknown(&error) => {
            for family in [AddressFamily::INET, AddressFamily::INET6] {
                dump(&of_family(family, states), buffer, each)?;
            }
            Ok(())
        }
        outcome => outcome,
    }
}

/// Whether the kernel has given the older form up.
fn is_unknown(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn dump(
    request: &[u8],
    buffer: &mut Vec<u8>,
    each: &mut dyn FnMut(Socket) -> io::Result<()>,
) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // The kernel has its answer ready when the question is sent; should it not, nobody waits for long.
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    rustix::net::send(&socket, request, SendFlags::empty())?;
    buffer.resize(RECEIVE_BYTES, 0);
    while !receive(&socket, buffer, each)? {}
    Ok(())
}

fn of_all(states: u32) -> [u8; OLD_BYTES] {
    let mut request = [0; OLD_BYTES];
    put_header(&mut request, TCPDIAG_GETSOCK);
    request[OLD_STATES_AT..OLD_STATES_AT + 4].copy_from_slice(&states.to_ne_bytes());
    request
}

fn of_family(family: AddressFamily, states: u32) -> [u8; NEW_BYTES] {
    let mut request = [0; NEW_BYTES];
    put_header(&mut request, SOCK_DIAG_BY_FAMILY);
    request[HEADER_BYTES] = u8::try_from(family.as_raw()).unwrap_or(0);
    request[HEADER_BYTES + 1] = IPPROTO_TCP;
    request[NEW_STATES_AT..NEW_STATES_AT + 4].copy_from_slice(&states.to_ne_bytes());
    request
}

fn put_header(request: &mut [u8], kind: u16) {
    let length = u32::try_from(request.len()).unwrap_or(0);
    request[0..4].copy_from_slice(&length.to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
}

/// Takes what is there; true at the end of the answer.
fn receive(
    socket: &OwnedFd,
    buffer: &mut [u8],
    each: &mut dyn FnMut(Socket) -> io::Result<()>,
) -> io::Result<bool> {
    let (length, _) = rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?;
    parse(&buffer[..length], each)
}

/// Reads the messages of one answer; true if the last of all was among them.
fn parse(mut rest: &[u8], each: &mut dyn FnMut(Socket) -> io::Result<()>) -> io::Result<bool> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    if rest.is_empty() {
        return Err(cut());
    }
    while !rest.is_empty() {
        let length = usize::try_from(u32_at(rest, 0).ok_or_else(cut)?).map_err(|_| cut())?;
        let kind = u16::from_ne_bytes(array_at(rest, 4).ok_or_else(cut)?);
        let body = rest.get(HEADER_BYTES..length).ok_or_else(cut)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return refused(body),
            SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK => each(diagnosed(body).ok_or_else(cut)?)?,
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

fn diagnosed(body: &[u8]) -> Option<Socket> {
    let is_four = u16::from(*body.first()?) == AddressFamily::INET.as_raw();
    let address = match is_four {
        true => Ipv4Addr::from(array_at::<4>(body, ADDRESS_AT)?).into(),
        false => Ipv6Addr::from(array_at::<16>(body, ADDRESS_AT)?).into(),
    };
    Some(Socket {
        state: *body.get(STATE_AT)?,
        address,
        port: u16::from_be_bytes(array_at(body, PORT_AT)?),
        receive_queue: u32_at(body, RECEIVE_QUEUE_AT)?,
        send_queue: u32_at(body, SEND_QUEUE_AT)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + body.len()).expect("short");
        let mut message = length.to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.resize(HEADER_BYTES, 0);
        message.extend_from_slice(body);
        message
    }

    fn diagnosis(kind: u16, state: u8, queues: [u32; 2]) -> Vec<u8> {
        let mut body = vec![2, state, 0, 0, 0x1f, 0x90, 0, 0, 127, 0, 0, 1];
        body.resize(RECEIVE_QUEUE_AT, 0);
        body.extend(queues.into_iter().flat_map(u32::to_ne_bytes));
        body.resize(72, 0);
        message(kind, &body)
    }

    fn parsed(bytes: &[u8]) -> io::Result<(bool, Vec<Socket>)> {
        let mut all = Vec::new();
        let mut each = |socket| {
            all.push(socket);
            Ok(())
        };
        let end = parse(bytes, &mut each)?;
        Ok((end, all))
    }

    #[test]
    fn the_kernels_answers_are_understood() {
        let first = diagnosis(SOCK_DIAG_BY_FAMILY, 1, [5, 7]);
        let answer = [first.clone(), diagnosis(TCPDIAG_GETSOCK, 10, [1, 128])].concat();
        let (end, all) = parsed(&answer).expect("more comes");
        assert!(!end && all.len() == 2);
        let socket = Socket {
            state: 1,
            address: Ipv4Addr::LOCALHOST.into(),
            port: 8080,
            receive_queue: 5,
            send_queue: 7,
        };
        assert_eq!(all[0], socket);
        let answer = [first.clone(), message(NLMSG_DONE, &[0; 4])].concat();
        assert!(parsed(&answer).expect("the end").0);
        let error = |errno: i32| parsed(&message(NLMSG_ERROR, &errno.to_ne_bytes()));
        assert!(error(-2).expect("no such family").0);
        assert_eq!(error(-1).expect_err("refused").raw_os_error(), Some(1));
        assert!(is_unknown(&error(-95).expect_err("unknown")));
        assert!(parsed(&first[..40]).is_err() && parsed(&[]).is_err());
        let enough = &mut |_| Err(io::Error::other("enough"));
        assert!(parse(&first, enough).is_err());
    }

    #[test]
    fn this_machine_answers_both_forms_alike() {
        let four = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let own = four.local_addr().expect("an address");
        let is_own = |socket: &Socket| (socket.address, socket.port) == (own.ip(), own.port());
        let heard = |request: &[u8]| {
            let mut all = Vec::new();
            let mut each = |socket: Socket| {
                all.push(socket);
                Ok(())
            };
            dump(request, &mut Vec::new(), &mut each).expect("answered");
            all
        };
        for request in [
            &of_all(LISTENING)[..],
            &of_all(ALL),
            &of_family(AddressFamily::INET, LISTENING),
        ] {
            let all = heard(request);
            assert!(all.iter().any(is_own), "{own}");
        }
        let listening = heard(&of_all(LISTENING));
        assert!(listening.iter().all(|socket| socket.state == 10));
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes: Vec<u8>, at in 0usize..200, byte: u8) {
            let _ = parsed(&bytes);
            let first = diagnosis(TCPDIAG_GETSOCK, 1, [5, 7]);
            let mut near = [first, message(NLMSG_DONE, &[0; 4])].concat();
            if let Some(place) = near.get_mut(at) {
                *place = byte;
            }
            let _ = parsed(&near);
        }
    }
}
