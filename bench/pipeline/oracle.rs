//! What the aggregator's log holds, held against what agents know: the judge of every scenario.
//!
//! The log is read from a copy, as the next start of the aggregator will read it. A file of it is written by one
//! run only, so after a kill only the files that the ended run wrote are new: [`Disk::read_on`] reads these and
//! remembers the rest, which keeps thousands of kills cheap. [`Disk::read`] reads all of it anew, to find what
//! would have vanished from older files.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use muster_aggregator::{
    control::{Control, IncidentFilter},
    journal::Record,
};
use muster_proto::{
    id::Incarnation,
    log::{DiskStorage, Log, LogConfig},
    ranges::RangeSet,
};

use crate::load::AgentBooks;

/// What the log holds of one life of an agent.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// Frames that are there.
    pub stored: RangeSet,
    /// Frames that were refused for good.
    pub rejected: RangeSet,
    /// Frames that will never come.
    pub lost: RangeSet,
}

impl Life {
    /// All numbers of which something is known.
    pub(crate) fn known(&self) -> RangeSet {
        let mut all = self.stored.clone();
        for (first, last) in self.rejected.iter().chain(self.lost.iter()) {
            all.insert_range(first, last);
        }
        all
    }

    /// Frames that the agent knows to be durable and the log does not hold.
    ///
    /// Below `settled_below` every number must be known. Above it some may be durable too, since there are two
    /// lanes: of these the count must be right.
    fn acked_lost(&self, agent: &AgentBooks) -> u64 {
        let settled = agent.settled_below.saturating_sub(1);
        let holes = settled - self.known().count_in(1, settled).min(settled);
        let missing = agent.durable.saturating_sub(count(&self.stored));
        holes.max(missing)
    }
}

/// How many numbers are in a set.
pub(crate) fn count(set: &RangeSet) -> u64 {
    set.count_in(0, u64::MAX)
}

/// What a log holds.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// By host and life.
    pub lives: BTreeMap<(String, Incarnation), Life>,
    /// Frames that stand in it twice.
    pub duplicates: u64,
    /// Whether a torn tail or damage had to be repaired to read it the last time.
    pub repaired: bool,
    /// Highest record that was read.
    read_to: u64,
}

impl Disk {
    /// Reads all of a log, from a copy, so that the next start of the aggregator finds it as it was left.
    pub(crate) fn read(log: &Path, copy: &Path) -> anyhow::Result<Self> {
        let mut disk = Self::default();
        disk.read_on(log, copy)?;
        Ok(disk)
    }

    /// Reads what has come to the log since the last time.
    pub(crate) fn read_on(&mut self, log: &Path, copy: &Path) -> anyhow::Result<()> {
        if copy.exists() {
            fs::remove_dir_all(copy)?;
        }
        fs::create_dir(copy)?;
        for name in names_from(log, self.read_to + 1)? {
            fs::copy(log.join(&name), copy.join(&name))?;
        }
        let (log, recovery) = Log::open(DiskStorage::open(copy)?, LogConfig::aggregator())?;
        self.repaired = recovery.torn_bytes > 0 || !recovery.quarantined.is_empty();
        for record in log.read_from(self.read_to + 1) {
            let record = record.context("the log has a hole")?;
            self.read_to = record.number;
            let (host, record) = Record::decode(&record.payload)?;
            self.take(&host.to_string(), &record);
        }
        Ok(())
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
            Record::Gap { first, last, .. } => life.lost.insert_range(first, last),
            Record::Session(_) | Record::Fin { .. } => {}
        }
    }

    /// What it holds of this life, if anything.
    pub(crate) fn life(&self, host: &str, incarnation: u64) -> Option<&Life> {
        self.lives.get(&(host.to_owned(), Incarnation(incarnation)))
    }

    /// All numbers of which it knows something, of this life.
    pub(crate) fn known(&self, host: &str, incarnation: u64) -> RangeSet {
        let life = self.life(host, incarnation);
        life.map(Life::known).unwrap_or_default()
    }

    /// Frames that these agents know to be durable and the log does not hold.
    pub(crate) fn acked_lost(&self, agents: &[AgentBooks]) -> u64 {
        let lost = agents
            .iter()
            .map(|agent| match self.life(&agent.host, agent.incarnation) {
                Some(life) => life.acked_lost(agent),
                None => Life::default().acked_lost(agent),
            });
        lost.sum()
    }
}

/// The files of a log that may hold records from this number on: the last segment that begins at or before it, and
/// what is newer. What is set aside counts too, as it does for a start.
fn names_from(log: &Path, number: u64) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(log)? {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    let first = |name: &str| {
        let (_stream, rest) = name.split_once('-')?;
        u64::from_str_radix(rest.split_once('.')?.0, 16).ok()
    };
    let begin = names.iter().filter_map(|name| first(name));
    let begin = begin.filter(|first| *first <= number).max().unwrap_or(0);
    names.retain(|name| first(name).is_none_or(|first| first >= begin));
    Ok(names)
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
