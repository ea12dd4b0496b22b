//! Processes by state, and the limits on their number.
//!
//! The whole of `/proc` is walked and a small file read for each process: 10 µs each. So it runs seldom, and
//! more seldom the longer it takes: at most a five-thousandth of one CPU. Where who uses most is looked for
//! (`crate::watch::busiest`), that walk has counted them too, and its count is taken if it is of the last minute.
//! Neither names nor arguments are looked at.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::{catalog, time::Timestamp};

use super::{
    About, AgentCounters, CollectError, Collector, Outcome, Readings,
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

/// One walk takes at most this part of a CPU's time until the next.
const SHARE_OF_TIME: u32 = 5_000;

/// … but not more seldom than this.
const SELDOM: Duration = Duration::from_secs(300);

/// Oldest count of another that is taken: where that walk takes long it comes once a minute.
const RECENT: Duration = Duration::from_secs(60);

static ABOUT: About = About {
    name: "processes",
    every: Duration::from_secs(30),
    reads: "/proc/<pid>/stat, /proc/sys/kernel/{threads-max,pid_max}",
    needs: "/proc without hidepid; else only the agent's own processes are counted",
    what: "processes by state, threads, and their limits",
};

/// All processes at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// When they were counted.
    at: Instant,
    /// How many there are.
    pub pids: u64,
    /// Threads of all of them.
    pub threads: u64,
    /// By the letter of their state.
    states: [u64; 128],
}

impl Default for Census {
    fn default() -> Self {
        Self {
            at: Instant::now(),
            pids: 0,
            threads: 0,
            states: [0; 128],
        }
    }
}

impl Census {
    /// Counts a process.
    pub fn count(&mut self, state: u8, threads: u64) {
        self.pids += 1;
        self.threads = self.threads.saturating_add(threads);
        self.states[usize::from(state) % self.states.len()] += 1;
    }

    fn put(&self, out: &mut Readings) {
        for (letter, &count) in (0u8..).zip(&self.states) {
            if count > 0 || ALWAYS.contains(&letter) {
                let state = [letter];
                out.unsigned(catalog::PROCESSES_STATE, &[&text::lossy(&state)], count);
            }
        }
        out.unsigned(catalog::PROCESSES_PIDS, &[], self.pids);
        out.unsigned(catalog::PROCESSES_THREADS, &[], self.threads);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Processes {
    names: Names,
    files: Files,
    counters: Arc<AgentCounters>,
    /// When it walked last, and how much of a CPU's time that took.
    walked: Option<(Timestamp, Duration)>,
}

impl Processes {
    /// Takes the count that others note there.
    #[must_use]
    pub fn new(counters: Arc<AgentCounters>) -> Self {
        Self {
            counters,
            ..Self::default()
        }
    }

    fn counted(&self, host: &HostRoot) -> Option<Census> {
        let census = self.counters.census().filter(|_| host.is_live())?;
        (census.at.elapsed() <= RECENT && host.recorder().is_none()).then_some(census)
    }

    fn walk(&mut self, host: &HostRoot) -> Result<Census, CollectError> {
        let mut census = Census::default();
        self.names.list(host, b"proc")?;
        for pid in self.names.iter() {
            if numbered(pid, b"").is_none() {
                continue;
            }
            // One that ended meanwhile is no longer there.
            let Ok(stat) = self.files.read(host, &[b"proc/", pid, b"/stat"]) else {
                continue;
            };
            if let Some((state, threads)) = parse(stat) {
                census.count(state, threads);
            }
        }
        Ok(census)
    }
}

impl Collector for Processes {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let census = match self.counted(host) {
            Some(census) => census,
            None => {
                if let Some((at, took)) = self.walked
                    && !super::is_due(Some(at), pause(took), out.tick())
                {
                    return Ok(Outcome::Unchanged);
                }
                let began = thread_cpu();
                let census = self.walk(host)?;
                self.walked = Some((out.tick(), thread_cpu().saturating_sub(began)));
                census
            }
        };
        if census.pids == 0 {
            return Ok(Outcome::NoData);
        }
        census.put(out);
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

/// Until the next walk of something without bound, after one that took so much of a CPU's time.
#[must_use]
pub fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE_OF_TIME).min(SELDOM)
}

/// The time that this thread has had a CPU: on a busy machine a walk takes longer and costs no more.
#[must_use]
pub fn thread_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let nanos = u32::try_from(used.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(used.tv_sec).unwrap_or(0), nanos)
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

    #[test]
    fn the_count_of_another_is_taken_while_it_is_recent() {
        let counters = Arc::new(AgentCounters::default());
        let mut processes = Processes::new(Arc::clone(&counters));
        let mut host = testing::Host::new();
        let mut census = Census::default();
        for (state, threads) in [(b'R', 70_000), (b'Q', 5)] {
            census.count(state, threads);
        }
        counters.set_census(census);
        assert_eq!(host.run_live(&mut processes).ok(), Some(Outcome::Read));
        let values = host.values();
        assert_eq!(values["node_processes_threads"], 70_005.0);
        assert_eq!(values[r#"node_processes_state{state="Q"}"#], 1.0);
        // Of a folder it says nothing, and one of long ago of nobody.
        assert!(processes.counted(&HostRoot::at("/nowhere")).is_none());
        census.at = census.at.checked_sub(RECENT * 2).expect("since the boot");
        counters.set_census(census);
        assert!(processes.counted(&HostRoot::at("/")).is_none());
        let walks = [(1, 5_000), (15, 75_000), (900, 300_000)];
        for (took, expected) in walks.map(|(took, next)| (took, Duration::from_millis(next))) {
            assert_eq!(pause(Duration::from_millis(took)), expected);
        }
    }

    testing::garbage!(
        Processes::default(),
        "proc/1/stat",
        "1 \\(?[a-z()]{0,5}\\)? [A-Z]?( [0-9x]{1,21}){0,20}\n"
    );
}
