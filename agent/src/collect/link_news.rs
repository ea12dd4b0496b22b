//! Whether anything about network interfaces has changed, by what the kernel tells of it (rtnetlink(7)).
//!
//! Flags, state, addresses, names, sizes and carriers of interfaces are two dozen files each, of which hardly one
//! ever changes. The kernel sends a message for each change to whoever listens, so that a look which finds nothing
//! is one system call, whatever the number of interfaces. What the messages say is not looked at: the files have it.
//! Where there can be no such socket, or the host is a folder, nothing is ever quiet.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink},
};

use crate::host::HostRoot;

/// linux/rtnetlink.h: interfaces that are new, gone or different.
const RTMGRP_LINK: u32 = 1;

/// Messages taken in one look; with more than these the next look finds some again.
const MAX_MESSAGES: usize = 1_024;

/// Quiet looks in a row before one is not: in a container the files may be those of other interfaces than the messages.
const MAX_QUIET: u32 = 11;

/// See the module.
#[derive(Debug, Default)]
pub struct LinkNews {
    heard: Heard,
    quiet: u32,
}

#[derive(Debug, Default)]
enum Heard {
    #[default]
    NotYet,
    On(OwnedFd),
    /// There can be no such socket.
    Never,
}

impl LinkNews {
    /// Whether the kernel tells of changes.
    #[must_use]
    pub fn is_told(&self, host: &HostRoot) -> bool {
        matches!(self.heard, Heard::On(_)) && host.is_live() && host.recorder().is_none()
    }

    /// Whether nothing has changed since the last call. The first finds nothing quiet.
    pub fn is_quiet(&mut self, host: &HostRoot) -> bool {
        if !host.is_live() || host.recorder().is_some() {
            return false;
        }
        match &self.heard {
            Heard::On(socket) => {
                let quiet = is_quiet(socket) && self.quiet < MAX_QUIET;
                self.quiet = if quiet { self.quiet + 1 } else { 0 };
                quiet
            }
            Heard::Never => false,
            Heard::NotYet => {
                self.heard = listen().map_or(Heard::Never, Heard::On);
                // What changed before is in no message.
                false
            }
        }
    }
}

fn listen() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // The protocol 0 is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, RTMGRP_LINK))?;
    Ok(socket)
}

/// Takes what there is; messages that had no room in the socket (ENOBUFS) are news as well.
fn is_quiet(socket: &OwnedFd) -> bool {
    let mut quiet = true;
    let mut begin = [0u8; 64];
    for _ in 0..MAX_MESSAGES {
        match rustix::net::recv(socket, &mut begin, RecvFlags::TRUNC) {
            Err(Errno::AGAIN) => break,
            Ok(_) | Err(_) => quiet = false,
        }
    }
    quiet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_never_quiet() {
        let mut news = LinkNews::default();
        for _ in 0..2 {
            assert!(!news.is_quiet(&HostRoot::at("/nowhere")));
        }
        assert!(matches!(news.heard, Heard::NotYet), "nothing is opened");
    }

    #[test]
    fn what_comes_is_news_once() {
        use rustix::net::{SendFlags, SocketFlags, socketpair};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        let (kernel, socket) = pair.expect("a pair of sockets");
        assert!(is_quiet(&socket));
        for _ in 0..3 {
            rustix::net::send(&kernel, &[7; 900], SendFlags::empty()).expect("room");
        }
        assert!(!is_quiet(&socket));
        assert!(is_quiet(&socket), "all three were taken");
        let live = HostRoot::at("/");
        let mut news = LinkNews {
            heard: Heard::On(socket),
            quiet: 0,
        };
        let looks: Vec<bool> = (0..2 * MAX_QUIET + 2)
            .map(|_| news.is_quiet(&live))
            .collect();
        assert_eq!(looks.iter().filter(|quiet| !**quiet).count(), 2);
        news.heard = Heard::Never;
        assert!(!news.is_quiet(&live));
    }
}
