//! TCP sockets in each state, 0 for those nobody is in.
//!
//! The kernel is asked over netlink ([`super::diag`]). Another host than this machine is read from `/proc/net`. What the
//! counting may cost is bounded all the same: on a machine with much memory the table alone, whatever is in it, takes a
//! millisecond. So it runs as seldom as keeps it below a twenty-thousandth of one CPU, but once a minute unless that is
//! above a hundredth, and a host with more than `MAX_SOCKETS` gets no numbers and a failed collector.

use std::{io, time::Duration};

use muster_proto::{catalog, time::Timestamp};

use super::{
    About, CollectError, Collector, Outcome, Readings, diag, processes::thread_cpu, sockets,
};
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

/// One counting takes at most this part of a CPU's time until the next, up to [`SELDOM`], and never more than the other.
const SHARE_OF_TIME: u32 = 20_000;
const LARGEST_SHARE: u32 = 100;
const SELDOM: Duration = Duration::from_secs(60);

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
    /// When it counted last, and how much of a CPU's time that took.
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
            && !super::is_due(Some(at), pause(took), out.tick())
        {
            return Ok(Outcome::Unchanged);
        }
        let began = thread_cpu();
        let mut count = Count::default();
        let outcome = if host.is_live() {
            ask(&mut self.buffer, &mut count).map_err(|source| ReadError::Io {
                path: "netlink sock_diag".into(),
                source,
            })?;
            Outcome::Read
        } else {
            self.read(host, &mut count)?
        };
        self.counted = Some((out.tick(), thread_cpu().saturating_sub(began)));
        if outcome == Outcome::Read {
            count.put(out);
        }
        Ok(outcome)
    }
}

/// Until the next counting, after one that took so much.
fn pause(took: Duration) -> Duration {
    let usual = took.saturating_mul(SHARE_OF_TIME).min(SELDOM);
    usual.max(took.saturating_mul(LARGEST_SHARE))
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

/// Adds the sockets of this machine.
fn ask(buffer: &mut Vec<u8>, count: &mut Count) -> io::Result<()> {
    diag::ask(diag::ALL, buffer, &mut |socket| {
        count.add(sockets::Socket {
            state: socket.state.into(),
            receive_queue: socket.receive_queue.into(),
            send_queue: socket.send_queue.into(),
        });
        match count.sockets > MAX_SOCKETS {
            true => Err(io::Error::other(format!(
                "the host has more than {MAX_SOCKETS} TCP sockets"
            ))),
            false => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
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
        host.set_tick(1_059);
        assert_eq!(host.run(&mut tcpstat).ok(), Some(Outcome::Unchanged));
        host.set_tick(1_060);
        assert_eq!(host.run(&mut tcpstat).ok(), Some(Outcome::Read));
    }

    #[test]
    fn the_dearer_a_counting_the_more_seldom() {
        for (took_micros, pause_ms) in [
            (100, 2_000),
            (1_000, 20_000),
            (5_000, 60_000),
            (500_000, 60_000),
            (900_000, 90_000),
        ] {
            let found = pause(Duration::from_micros(took_micros));
            assert_eq!(found.as_millis(), pause_ms, "{took_micros}");
        }
    }

    #[test]
    fn this_machine_answers() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let (mut buffer, mut count) = (Vec::new(), Count::default());
        ask(&mut buffer, &mut count).expect("answered");
        assert!(count.states[9] > 0, "{count:?}");
    }

    testing::garbage!(Tcpstat::default(), FILES[0], "([0-9A-Fx:]{1,17} ){0,6}\n");
}
