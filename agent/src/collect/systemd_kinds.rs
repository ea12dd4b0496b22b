//! What systemd tells of services, timers and sockets beyond their state, and its series. Pure.

use std::{collections::VecDeque, time::Duration};

use muster_proto::{catalog, time::Timestamp};

use super::Readings;

/// Restarts are counted over this time: a service that is restarted again and again shows as that, whatever
/// state it is in at the moment.
pub(super) const RECENT: Duration = Duration::from_secs(600);

/// Most moments of restarts that are kept of a service: systemd itself gives up after five in ten seconds, by
/// default. More in the same time are counted with the newest.
const MAX_MOMENTS: usize = 64;

/// What is known of a service. What a signal does not tell is left as it was.
#[derive(Debug, Clone, Default)]
pub(super) struct ServiceFacts {
    /// Type= of the service.
    pub(super) kind: Option<String>,
    /// "success", "exit-code", "signal", "oom-kill", ….
    pub(super) result: Option<String>,
    pub(super) restarts: Option<u32>,
    /// Exit status or signal of its main process.
    pub(super) exit: Option<i32>,
    /// How that ended: CLD_EXITED and the like of waitid(2); 0 while nothing has ended.
    pub(super) ended: Option<i32>,
}

/// What a number says that ended a service's main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Status(i32),
    Signal(i32),
}

/// `si_code` of a process that ended by itself, by a signal, and by one with a core dump (waitid(2)).
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

/// What is known of a timer: microseconds since 1970, 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TimerFacts {
    pub(super) last: Option<u64>,
    /// By the wall clock.
    pub(super) next: Option<u64>,
}

/// What is known of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SocketFacts {
    /// Whether systemd accepts the connections itself; only then it counts them.
    pub(super) accepts: bool,
    pub(super) accepted: u32,
    pub(super) connections: u32,
    pub(super) refused: u32,
}

/// Everything beyond the state that is known of a unit.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) service: ServiceFacts,
    pub(super) timer: Option<TimerFacts>,
    pub(super) socket: Option<SocketFacts>,
    /// When it was restarted, and how often then.
    moments: VecDeque<(Timestamp, u32)>,
}

impl Known {
    /// Notes what is told of a service; true if a series changes.
    pub(super) fn set_service(&mut self, facts: ServiceFacts, now: Timestamp) -> bool {
        let mut changed = false;
        if facts.kind.is_some() {
            changed |= self.service.kind != facts.kind;
            self.service.kind = facts.kind;
        }
        if facts.result.is_some() {
            changed |= self.service.result != facts.result;
            self.service.result = facts.result;
        }
        if facts.exit.is_some() {
            changed |= self.service.exit != facts.exit;
            self.service.exit = facts.exit;
        }
        if facts.ended.is_some() {
            self.service.ended = facts.ended;
        }
        if let Some(restarts) = facts.restarts {
            changed |= self.service.restarts != facts.restarts;
            // The first number tells of all the time before; a smaller one was set back by somebody.
            let before = self.service.restarts.unwrap_or(restarts);
            self.restarted(restarts.saturating_sub(before), now);
            self.service.restarts = facts.restarts;
        }
        changed
    }

    fn restarted(&mut self, times: u32, now: Timestamp) {
        if times == 0 {
            return;
        }
        let is_full = self.moments.len() >= MAX_MOMENTS;
        match self.moments.back_mut() {
            Some((_, count)) if is_full => *count += times,
            _ => self.moments.push_back((now, times)),
        }
    }

    /// Notes what is told of a timer; true if a series changes.
    pub(super) fn set_timer(&mut self, facts: TimerFacts) -> bool {
        let before = self.timer.get_or_insert_default();
        let now = TimerFacts {
            last: facts.last.or(before.last),
            next: facts.next.or(before.next),
        };
        let changed = (now.last, now.next) != (before.last, before.next);
        *before = now;
        changed
    }

    /// Forgets restarts that are long past; true if there were some.
    pub(super) fn forget(&mut self, now: Timestamp) -> bool {
        let before = self.moments.len();
        self.moments.retain(|(at, _)| now.since(*at) < RECENT);
        before != self.moments.len()
    }

    /// Restarts of the last [`RECENT`].
    pub(super) fn recent_restarts(&self) -> u32 {
        self.moments.iter().map(|(_, count)| count).sum()
    }

    /// Whether it has restarts that will be forgotten.
    pub(super) fn has_restarted(&self) -> bool {
        !self.moments.is_empty()
    }

    /// How many series [`Known::put`] puts.
    pub(super) fn series(&self) -> usize {
        let service = &self.service;
        usize::from(service.restarts.is_some())
            + usize::from(self.failure().is_some()) * 2
            + usize::from(self.has_restarted())
            + self.timer.map_or(0, |_| 2)
            + self.socket.map_or(0, |_| 3)
    }

    /// Why the service failed, if it did.
    fn failure(&self) -> Option<&str> {
        let result = self.service.result.as_deref()?;
        (!matches!(result, "" | "success")).then_some(result)
    }

    /// How its main process ended, if the service failed and one has ended.
    pub(super) fn exit(&self) -> Option<Exit> {
        let (result, number) = (self.failure()?, self.service.exit?);
        match (self.service.ended, result) {
            (Some(CLD_EXITED), _) => Some(Exit::Status(number)),
            (Some(CLD_KILLED | CLD_DUMPED), _) => Some(Exit::Signal(number)),
            (Some(_), _) => None,
            // Not told yet; the result says it as well, if it is one of these.
            (None, "signal" | "core-dump") => Some(Exit::Signal(number)),
            (None, "exit-code") => Some(Exit::Status(number)),
            (None, _) => None,
        }
    }

    /// Puts the series of a unit of this name.
    pub(super) fn put(&self, name: &str, out: &mut Readings) {
        if let Some(restarts) = self.service.restarts {
            out.int(catalog::SYSTEMD_SERVICE_RESTARTS, &[name], restarts.into());
        }
        if self.has_restarted() {
            let recent = self.recent_restarts().into();
            out.int(catalog::SYSTEMD_RECENT_RESTARTS, &[name], recent);
        }
        if let Some(result) = self.failure() {
            out.int(catalog::SYSTEMD_UNIT_RESULT, &[name, result], 1);
            if let Some(exit) = self.service.exit {
                out.int(catalog::SYSTEMD_UNIT_EXIT, &[name], exit.into());
            }
        }
        if let Some(timer) = self.timer {
            out.unsigned(
                catalog::SYSTEMD_TIMER_LAST,
                &[name],
                timer.last.unwrap_or(0),
            );
            // One that is not going to run has no next time.
            if let Some(next) = timer.next.filter(|next| !matches!(*next, 0 | u64::MAX)) {
                out.unsigned(catalog::SYSTEMD_TIMER_NEXT, &[name], next);
            }
        }
        if let Some(socket) = self.socket {
            let SocketFacts {
                accepted,
                connections,
                refused,
                ..
            } = socket;
            out.int(catalog::SYSTEMD_SOCKET_ACCEPTED, &[name], accepted.into());
            out.int(catalog::SYSTEMD_SOCKET_CURRENT, &[name], connections.into());
            out.int(catalog::SYSTEMD_SOCKET_REFUSED, &[name], refused.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn restarts(restarts: u32) -> ServiceFacts {
        ServiceFacts {
            restarts: Some(restarts),
            ..ServiceFacts::default()
        }
    }

    #[test]
    fn restarts_of_the_last_ten_minutes_are_counted() {
        let mut known = Known::default();
        known.set_service(restarts(100), at(0));
        assert_eq!(known.recent_restarts(), 0, "of the time before");
        for (number, seconds) in [(101, 10), (103, 20), (103, 30), (106, 500)] {
            known.set_service(restarts(number), at(seconds));
        }
        assert_eq!(known.recent_restarts(), 6);
        assert!(!known.forget(at(609)));
        assert!(known.forget(at(620)));
        assert_eq!(known.recent_restarts(), 3);
        known.set_service(restarts(0), at(630));
        assert_eq!(known.recent_restarts(), 3, "somebody set it back");
        assert!(known.forget(at(5_000)) && !known.has_restarted());
        for number in 1..=1_000 {
            known.set_service(restarts(number), at(6_000));
        }
        assert_eq!(known.recent_restarts(), 1_000);
        assert!(known.moments.len() <= MAX_MOMENTS);
    }

    #[test]
    fn an_exit_status_is_told_from_a_signal() {
        for (result, ended, exit) in [
            ("exit-code", Some(CLD_EXITED), Some(Exit::Status(9))),
            ("signal", Some(CLD_KILLED), Some(Exit::Signal(9))),
            ("core-dump", Some(CLD_DUMPED), Some(Exit::Signal(9))),
            // The stop took too long: ended by systemd, or by itself in the end.
            ("timeout", Some(CLD_KILLED), Some(Exit::Signal(9))),
            ("timeout", Some(CLD_EXITED), Some(Exit::Status(9))),
            // Nothing was ever started.
            ("resources", Some(0), None),
            ("exit-code", None, Some(Exit::Status(9))),
            ("signal", None, Some(Exit::Signal(9))),
            ("timeout", None, None),
            ("success", Some(CLD_EXITED), None),
        ] {
            let mut known = Known::default();
            let facts = ServiceFacts {
                result: Some(result.to_owned()),
                exit: Some(9),
                ended,
                ..ServiceFacts::default()
            };
            known.set_service(facts, at(0));
            assert_eq!(known.exit(), exit, "{result} {ended:?}");
        }
    }

    #[test]
    fn series_are_as_many_as_announced() {
        let mut known = Known::default();
        let failed = ServiceFacts {
            kind: Some("simple".to_owned()),
            result: Some("exit-code".to_owned()),
            restarts: Some(0),
            exit: Some(3),
            ended: Some(CLD_EXITED),
        };
        assert!(known.set_service(failed.clone(), at(0)));
        assert!(!known.set_service(failed, at(1)), "nothing new");
        known.set_service(restarts(2), at(2));
        assert!(known.set_timer(TimerFacts {
            last: Some(1_500_000),
            next: None,
        }));
        assert!(known.set_timer(TimerFacts {
            last: None,
            next: Some(2_500_000),
        }));
        assert!(
            !known.set_timer(TimerFacts::default()),
            "a signal of another property"
        );
        known.socket = Some(SocketFacts {
            accepts: true,
            accepted: 5,
            connections: 1,
            refused: 2,
        });
        let mut out = Readings::default();
        out.begin(0);
        known.put("a.unit", &mut out);
        out.end(true);
        assert_eq!(out.table().present_count(), known.series());
        let page = crate::sample::render(out.table(), at(0), crate::sample::Format::Prometheus);
        let page = String::from_utf8(page).expect("text");
        for line in [
            "node_systemd_service_restart_total{name=\"a.unit\"} 2",
            "muster_host_systemd_unit_restarts_recent{name=\"a.unit\"} 2",
            "muster_host_systemd_unit_result{name=\"a.unit\",result=\"exit-code\"} 1",
            "muster_host_systemd_unit_exit_status{name=\"a.unit\"} 3",
            "node_systemd_timer_last_trigger_seconds{name=\"a.unit\"} 1.5",
            "muster_host_systemd_timer_next_trigger_seconds{name=\"a.unit\"} 2.5",
            "node_systemd_socket_accepted_connections_total{name=\"a.unit\"} 5",
            "node_systemd_socket_current_connections{name=\"a.unit\"} 1",
            "node_systemd_socket_refused_connections_total{name=\"a.unit\"} 2",
        ] {
            assert!(page.contains(&format!("{line}\n")), "{line}\n{page}");
        }
    }
}
