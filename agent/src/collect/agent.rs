//! The agent itself: what it costs the host, and what became of its frames.
//!
//! Its process is looked at on this machine even when the host is another path.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_proto::{
    catalog::{self, FamilyId},
    time::{Clock, SystemClock, Timestamp},
};

use super::{About, CollectError, Collector, Outcome, Readings, processes::Census, text};
use crate::{
    host::{HostRoot, KeptFile},
    telemetry::OwnSpool,
};

const PATH: &str = "proc/self/status";

/// Its name as a collector.
pub const NAME: &str = "agent";

/// The architecture in Go's words, which dashboards for node_exporter expect.
const GOARCH: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    std::env::consts::ARCH
};

static ABOUT: About = About {
    name: NAME,
    every: Duration::from_secs(15),
    reads: "/proc/self/status, clock_gettime(2)",
    needs: "",
    what: "version, CPU time and memory of the agent, frames sent, held and lost",
};

/// Why frames were given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The room for frames was full.
    Full,
    /// They were too old.
    Age,
    /// They did not read any more from the disk.
    Corrupt,
    /// Memory was full and the disk did not take them.
    DiskError,
    /// The aggregator refused them.
    Refused,
}

/// What other parts of the agent count; they write, the collector reads.
#[derive(Debug, Default)]
pub struct AgentCounters {
    /// Ticks at which no sample was taken.
    pub ticks_missed: AtomicU64,
    /// Frames numbered.
    pub frames_produced: AtomicU64,
    /// Frames held because they are not yet acknowledged as durable. Goes up and down.
    pub frames_queued: AtomicU64,
    /// Connections made after the first.
    pub reconnects: AtomicU64,
    frames_lost_full: AtomicU64,
    frames_lost_age: AtomicU64,
    frames_lost_corrupt: AtomicU64,
    frames_lost_disk: AtomicU64,
    spool: Mutex<Option<OwnSpool>>,
    census: Mutex<Option<Census>>,
    frames_lost_refused: AtomicU64,
}

impl AgentCounters {
    /// Counts frames that were given up.
    pub fn add_lost(&self, reason: Lost, frames: u64) {
        let counter = match reason {
            Lost::Full => &self.frames_lost_full,
            Lost::Age => &self.frames_lost_age,
            Lost::Corrupt => &self.frames_lost_corrupt,
            Lost::DiskError => &self.frames_lost_disk,
            Lost::Refused => &self.frames_lost_refused,
        };
        counter.fetch_add(frames, Ordering::Relaxed);
    }

    /// Notes how the spool stands, where there is one.
    pub fn set_spool(&self, spool: Option<OwnSpool>) {
        *self.spool.lock().unwrap_or_else(PoisonError::into_inner) = spool;
    }

    /// Notes how many processes there are, where somebody has counted them.
    pub fn set_census(&self, census: Census) {
        *self.census.lock().unwrap_or_else(PoisonError::into_inner) = Some(census);
    }

    /// What was noted last.
    #[must_use]
    pub fn census(&self) -> Option<Census> {
        *self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spool(&self) -> Option<OwnSpool> {
        *self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Agent {
    machine: HostRoot,
    status: KeptFile,
    started: Timestamp,
    counters: Arc<AgentCounters>,
}

impl Agent {
    /// Began now; shows these counters.
    #[must_use]
    pub fn new(counters: Arc<AgentCounters>) -> Self {
        Self {
            machine: HostRoot::at("/"),
            status: KeptFile::whole(PATH),
            started: SystemClock.now(),
            counters,
        }
    }
}

impl Collector for Agent {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, _: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let version = env!("CARGO_PKG_VERSION");
        out.int(catalog::AGENT_INFO, &[version], 1);
        let build = ["", GOARCH, "linux", "", "", "", version];
        out.int(catalog::EXPORTER_BUILD_INFO, &build, 1);
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let micros = cpu.tv_sec.saturating_mul(1_000_000) + cpu.tv_nsec / 1_000;
        out.int(catalog::AGENT_CPU_SECONDS, &[], micros);
        out.int(catalog::AGENT_START_TIME, &[], self.started.as_millis());
        let counters = &self.counters;
        let plain: [(FamilyId, &AtomicU64); 4] = [
            (catalog::AGENT_TICKS_MISSED, &counters.ticks_missed),
            (catalog::AGENT_FRAMES_PRODUCED, &counters.frames_produced),
            (catalog::AGENT_FRAMES_QUEUED, &counters.frames_queued),
            (catalog::AGENT_RECONNECTS, &counters.reconnects),
        ];
        for (family, counter) in plain {
            out.unsigned(family, &[], counter.load(Ordering::Relaxed));
        }
        let lost = [
            ("full", &counters.frames_lost_full),
            ("refused", &counters.frames_lost_refused),
        ];
        for (reason, counter) in lost {
            let frames = counter.load(Ordering::Relaxed);
            out.unsigned(catalog::AGENT_FRAMES_LOST, &[reason], frames);
        }
        if let Some(spool) = counters.spool() {
            out.unsigned(catalog::AGENT_SPOOL_BYTES, &[], spool.bytes);
            out.unsigned(catalog::AGENT_SPOOL_FRAMES, &[], spool.frames);
            out.unsigned(catalog::AGENT_SPOOL_FAILURES, &[], spool.failures);
            for (reason, frames) in ["full", "age", "corrupt"].into_iter().zip(spool.dropped) {
                out.unsigned(catalog::AGENT_SPOOL_DROPPED, &[reason], frames);
            }
            for (reason, counter) in [
                ("age", &counters.frames_lost_age),
                ("corrupt", &counters.frames_lost_corrupt),
                ("disk_error", &counters.frames_lost_disk),
            ] {
                let frames = counter.load(Ordering::Relaxed);
                out.unsigned(catalog::AGENT_FRAMES_LOST, &[reason], frames);
            }
        }
        // Without /proc, as on other systems than Linux, the rest is known all the same.
        if let Ok(status) = self.status.read(&self.machine)
            && let Some(kibi) = resident_kibi(status)
        {
            out.unsigned(
                catalog::AGENT_RESIDENT_BYTES,
                &[],
                kibi.saturating_mul(1024),
            );
        }
        Ok(Outcome::Read)
    }
}

fn resident_kibi(status: &[u8]) -> Option<u64> {
    let rest = text::lines(status).find_map(|line| line.strip_prefix(b"VmRSS:"))?;
    text::unsigned(text::fields(rest).next()?)
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn what_others_count_is_shown() {
        let counters = Arc::new(AgentCounters::default());
        counters.frames_produced.store(7, Ordering::Relaxed);
        counters.add_lost(Lost::Full, 3);
        counters.add_lost(Lost::Age, 2);
        counters.set_spool(Some(OwnSpool {
            bytes: 1024,
            dropped: [0, 0, 5],
            ..OwnSpool::default()
        }));
        let mut host = testing::Host::new();
        let values = host.collect(&mut Agent::new(counters));
        assert_eq!(values["muster_agent_frames_produced_total"], 7.0);
        assert_eq!(
            values[r#"muster_agent_frames_lost_total{reason="full"}"#],
            3.0
        );
        assert_eq!(
            values[r#"muster_agent_frames_lost_total{reason="refused"}"#],
            0.0
        );
        for (name, value) in [
            (r#"muster_agent_frames_lost_total{reason="age"}"#, 2.0),
            ("muster_agent_spool_bytes", 1024.0),
            (
                r#"muster_agent_spool_dropped_frames_total{reason="corrupt"}"#,
                5.0,
            ),
        ] {
            assert_eq!(values[name], value, "{name}");
        }
        assert!(values["muster_agent_cpu_seconds_total"] > 0.0);
    }

    #[test]
    fn resident_memory_is_found_in_the_status() {
        let status = b"Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t    6400 kB\n";
        assert_eq!(resident_kibi(status), Some(6400));
        assert_eq!(resident_kibi(b"VmRSS: lots\n"), None);
    }
}
