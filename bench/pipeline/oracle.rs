//! What the aggregator's log holds, held against what agents know: the judge of every scenario.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::Context as _;
use muster_aggregator::{
    control::{Control, IncidentFilter},
    journal::Record,
};
use muster_proto::{
    id::Incarnation,
    log::{DiskStorage, Log, LogConfig},
};

use crate::load::AgentBooks;

/// What the log holds of one life of an agent.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// Frames that are there.
    pub stored: BTreeSet<u64>,
    /// Frames that were refused for good.
    pub rejected: BTreeSet<u64>,
    /// Frames that will never come.
    pub lost: BTreeSet<u64>,
}

impl Life {
    /// All numbers of which something is known.
    pub(crate) fn known(&self) -> BTreeSet<u64> {
        let all = [&self.stored, &self.rejected, &self.lost];
        all.into_iter().flatten().copied().collect()
    }

    /// Frames that the agent knows to be durable and the log does not hold.
    ///
    /// Below `settled_below` every number must be known. Above it some may be durable too, since there are two
    /// lanes: of these the count must be right.
    fn acked_lost(&self, agent: &AgentBooks) -> u64 {
        let known = self.known();
        let below = known.range(1..agent.settled_below).count() as u64;
        let holes = agent.settled_below.saturating_sub(1).saturating_sub(below);
        let missing = agent.durable.saturating_sub(self.stored.len() as u64);
        holes.max(missing)
    }
}

/// What a log holds.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// By host and life.
    pub lives: BTreeMap<(String, Incarnation), Life>,
    /// Frames that stand in it twice.
    pub duplicates: u64,
    /// Whether a torn tail or damage had to be repaired to read it.
    pub repaired: bool,
}

impl Disk {
    /// Reads a copy of the log, so that the next start of the aggregator finds it as it was left.
    pub(crate) fn read(log: &Path, copy: &Path) -> anyhow::Result<Self> {
        if copy.exists() {
            fs::remove_dir_all(copy)?;
        }
        fs::create_dir(copy)?;
        for entry in fs::read_dir(log)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), copy.join(entry.file_name()))?;
            }
        }
        let (log, recovery) = Log::open(DiskStorage::open(copy)?, LogConfig::aggregator())?;
        let mut disk = Self {
            repaired: recovery.torn_bytes > 0 || !recovery.quarantined.is_empty(),
            ..Self::default()
        };
        for record in log.read_from(0) {
            let record = record.context("the log has a hole")?;
            let (host, record) = Record::decode(&record.payload)?;
            disk.take(&host.to_string(), &record);
        }
        Ok(disk)
    }

    fn take(&mut self, host: &str, record: &Record) {
        let incarnation = match *record {
            Record::Frame(ref frame) => frame.incarnation,
            Record::Rejected { incarnation, .. } | Record::Gap { incarnation, .. } => incarnation,
            Record::Session(_) | Record::Fin { .. } => return,
        };
        let key = (host.to_owned(), incarnation);
        let life = self.lives.entry(key).or_default();
        match *record {
            Record::Frame(ref frame) => {
                self.duplicates += u64::from(!life.stored.insert(frame.seq));
            }
            Record::Rejected { seq, .. } => {
                life.rejected.insert(seq);
            }
            Record::Gap { first, last, .. } => life.lost.extend(first..=last),
            Record::Session(_) | Record::Fin { .. } => {}
        }
    }

    /// What it holds of this life.
    pub(crate) fn life(&self, host: &str, incarnation: u64) -> &Life {
        const NONE: &Life = &Life {
            stored: BTreeSet::new(),
            rejected: BTreeSet::new(),
            lost: BTreeSet::new(),
        };
        let key = (host.to_owned(), Incarnation(incarnation));
        self.lives.get(&key).unwrap_or(NONE)
    }

    /// Frames that these agents know to be durable and the log does not hold.
    pub(crate) fn acked_lost(&self, agents: &[AgentBooks]) -> u64 {
        let lost = agents.iter().map(|agent| {
            let life = self.life(&agent.host, agent.incarnation);
            life.acked_lost(agent)
        });
        lost.sum()
    }
}

/// Incidents that ever called a host silent.
pub(crate) fn silent_incidents(state: &Path) -> anyhow::Result<u64> {
    let control = Control::open(state)?;
    let all = IncidentFilter {
        all: true,
        ..IncidentFilter::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (incidents, _) = runtime.block_on(control.incidents(all))?;
    let silent = incidents.iter().filter(|found| found.rule == "host_silent");
    Ok(silent.count() as u64)
}
