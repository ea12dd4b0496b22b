//! Processes by state, and the limits on their number.
//!
//! The whole of `/proc` is walked and a small file read for each process: 10 µs each. So it runs seldom, and
//! more seldom the longer it takes: at most a hundredth of one CPU. Neither names nor arguments are looked at.

use std::time::{Duration, Instant};

use muster_proto::{catalog, time::Timestamp};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

/// Letters of proc_pid_stat(5) that are always shown: what dashboards draw. Others as they are met.
const ALWAYS: &[u8] = b"DIRSTZ";

/// Of the numbers behind the name: the state is the first, the number of threads the eighteenth.
const THREADS_AT: usize = 17;

const THREADS_MAX: &str = "proc/sys/kernel/threads-max";
const PID_MAX: &str = "proc/sys/kernel/pid_max";

/// One walk takes at most this part of the time until the next.
const SHARE_OF_TIME: u32 = 100;

static ABOUT: About = About {
    name: "processes",
    every: Duration::from_secs(30),
    reads: "/proc/<pid>/stat, /proc/sys/kernel/{threads-max,pid_max}",
    needs: "/proc without hidepid; else only the agent's own processes are counted",
    what: "processes by state, threads, and their limits",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Processes {
    names: Names,
    files: Files,
    /// When it walked last, and how long that took.
    walked: Option<(Timestamp, Duration)>,
}

impl Collector for Processes {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if let Some((at, took)) = self.walked
            && !super::is_due(Some(at), took * SHARE_OF_TIME, out.tick())
        {
            return Ok(Outcome::Unchanged);
        }
        let began = Instant::now();
        self.names.list(host, b"proc")?;
        let (mut pids, mut threads) = (0, 0u64);
        let mut states = [0u64; 128];
        for pid in self.names.iter() {
            if numbered(pid, b"").is_none() {
                continue;
            }
            // One that ended meanwhile is no longer there.
            let Ok(stat) = self.files.read(host, &[b"proc/", pid, b"/stat"]) else {
                continue;
            };
            let Some((state, count)) = parse(stat) else {
                continue;
            };
            pids += 1;
            threads = threads.saturating_add(count);
            states[usize::from(state) % states.len()] += 1;
        }
        self.walked = Some((out.tick(), began.elapsed()));
        if pids == 0 {
            return Ok(Outcome::NoData);
        }
        for (letter, &count) in (0u8..).zip(&states) {
            if count > 0 || ALWAYS.contains(&letter) {
                let state = [letter];
                out.unsigned(catalog::PROCESSES_STATE, &[&text::lossy(&state)], count);
            }
        }
        out.unsigned(catalog::PROCESSES_PIDS, &[], pids);
        out.unsigned(catalog::PROCESSES_THREADS, &[], threads);
        for (path, family) in [
            (THREADS_MAX, catalog::PROCESSES_MAX_THREADS),
            (PID_MAX, catalog::PROCESSES_MAX),
        ] {
            if let Some(most) = self.files.unsigned(host, &[path.as_bytes()]) {
                out.unsigned(family, &[], most);
            }
        }
        Ok(Outcome::Read)
    }
}

/// State and number of threads. The name before them stands in brackets and may hold anything, brackets too.
fn parse(stat: &[u8]) -> Option<(u8, u64)> {
    let behind = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields = text::fields(&stat[behind..]);
    let state = match fields.next()? {
        [letter] if letter.is_ascii_alphabetic() => *letter,
        _ => return None,
    };
    Some((state, text::unsigned(fields.nth(THREADS_AT - 1)?)?))
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn stat(name: &str, state: char, threads: u32) -> String {
        let numbers = "1 ".repeat(16);
        format!("7 ({name}) {state} {numbers}{threads} 0 1 2\n")
    }

    #[test]
    fn processes_are_counted_whatever_they_are_called() {
        let mut host = testing::Host::new();
        let mut processes = Processes::default();
        host.write("proc/loadavg", "");
        assert_eq!(host.run(&mut processes).ok(), Some(Outcome::NoData));
        host.write("proc/1/stat", stat("init", 'S', 1));
        host.write("proc/20/stat", stat("a) R 1 (b", 'D', 30));
        host.write("proc/21/stat", stat("gone", 'S', 4));
        host.write("proc/22/stat", "22 (cut) S 1 2\n");
        host.write("proc/23/other", "");
        host.write(THREADS_MAX, "7801\n");
        host.write(PID_MAX, "4194304\n");
        let mut processes = Processes::default();
        let values = host.collect(&mut processes);
        assert_eq!(values[r#"node_processes_state{state="S"}"#], 2.0);
        assert_eq!(values[r#"node_processes_state{state="D"}"#], 1.0);
        assert_eq!(values[r#"node_processes_state{state="Z"}"#], 0.0);
        assert_eq!(values["node_processes_pids"], 3.0);
        assert_eq!(values["node_processes_threads"], 35.0);
        assert_eq!(values["node_processes_max_threads"], 7801.0);
        assert_eq!(values["node_processes_max_processes"], 4_194_304.0);
        assert_eq!(values.len(), 10);
    }

    testing::garbage!(
        Processes::default(),
        "proc/1/stat",
        "1 \\(?[a-z()]{0,5}\\)? [A-Z]?( [0-9x]{1,21}){0,20}\n"
    );
}
