//! History: the samples of all hosts over time.
//!
//! [`SampleStore`] is the seam, cut at the domain: a host's values at a tick go in, one metric of some hosts
//! over a range comes out. [`EmbeddedStore`] keeps them in immutable files per time window (`docs/history-format.md`);
//! [`PlainStore`] keeps them in a map and is what tests compare with. `conformance` is the suite both must pass,
//! and any other store later.
//!
//! What is stored are raw values as hosts sent them, counters included; resets are seen when a rate is asked
//! for, in one place ([`fold`]). Stored times are the hosts' own ticks. The log of frames is the truth: the store
//! says up to which record it is durable, and whoever feeds it begins there after a restart ([`feed`]).

pub mod block;
pub mod chains;
pub mod check;
pub mod column;
pub mod config;
#[cfg(test)]
mod conformance;
pub mod expr;
pub mod feed;
pub mod fold;
pub mod jobs;
pub mod manifest;
pub mod merge;
pub mod plain;
pub mod rebuild;
pub mod rows;
pub mod store;
pub mod then;

use std::{
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_proto::{
    id::HostId,
    series::{Family, Raw},
};

use self::fold::Fold;
pub use self::{config::HistoryConfig, plain::PlainStore, store::EmbeddedStore};
pub use crate::fleet::names::SeriesKey;

/// Number of a record of the log: what a store says it holds everything up to.
pub type Token = u64;

/// How fine points are.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Tier {
    /// Every sample.
    Raw,
    /// One point a minute.
    Minute,
    /// One point a quarter of an hour.
    Quarter,
}

impl Tier {
    /// All, finest first.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Minute, Self::Quarter];

    /// Milliseconds between points; `None` where they are as they came.
    #[must_use]
    pub const fn step_ms(self) -> Option<i64> {
        match self {
            Self::Raw => None,
            Self::Minute => Some(60_000),
            Self::Quarter => Some(900_000),
        }
    }

    /// The word that stands in file names and on pages.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Minute => "1m",
            Self::Quarter => "15m",
        }
    }
}

/// A name of a series: the family and one value for each of its labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeriesName {
    /// Name, type, unit, label names.
    pub family: Arc<Family>,
    /// One value for each label name.
    pub labels: Vec<String>,
}

impl SeriesName {
    /// The order in which series stand in files: by metric, then labels, then what else tells families apart.
    #[must_use]
    pub fn order(&self, other: &Self) -> std::cmp::Ordering {
        let key = |name: &Self| (name.family.kind as u8, name.family.scale as u8);
        self.family
            .name
            .cmp(&other.family.name)
            .then_with(|| self.family.labels.cmp(&other.family.labels))
            .then_with(|| self.labels.cmp(&other.labels))
            .then_with(|| key(self).cmp(&key(other)))
    }
}

/// A point of a series, in base units. One sample is a point with `count` 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// UTC milliseconds: the tick of a sample, the begin of a roll-up.
    pub at: i64,
    /// The last value.
    pub last: f64,
    /// The smallest value; of counters, not told: NaN.
    pub min: f64,
    /// The largest value; of counters, not told: NaN.
    pub max: f64,
    /// The sum of the values; of counters, not told: NaN.
    pub sum: f64,
    /// How many samples.
    pub count: u32,
    /// Of counters in roll-ups: what was lost in resets within the point, so that the increase from the point
    /// before is `last - before.last + dropped`.
    pub dropped: f64,
}

impl Point {
    /// One sample.
    #[must_use]
    pub const fn sample(at: i64, value: f64) -> Self {
        Self {
            at,
            last: value,
            min: value,
            max: value,
            sum: value,
            count: 1,
            dropped: 0.0,
        }
    }
}

/// What a label must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMatch {
    /// Name of the label; a series without it has the empty value.
    pub label: String,
    /// Alternatives; `*` stands for anything.
    pub patterns: Vec<String>,
    /// Must be none of them.
    pub negated: bool,
}

impl LabelMatch {
    /// Whether the value is as it must be.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        self.patterns.iter().any(|pattern| glob(pattern, value)) != self.negated
    }
}

/// Whether `text` is what `pattern` says; `*` stands for any number of characters.
#[must_use]
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else {
        return false;
    };
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Tells whoever works on a question that nobody wants the answer any more, or not that late. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct GiveUp(Arc<AtomicBool>);

impl GiveUp {
    /// From now on.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Goes on, unless it was told.
    ///
    /// # Errors
    /// [`HistoryError::GivenUp`].
    pub fn check(&self) -> Result<(), HistoryError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(HistoryError::GivenUp);
        }
        Ok(())
    }
}

/// What is needed of points besides times, last values, how many samples there were, and resets. The rest costs as much
/// again to read; a store may give it all the same, or NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The smallest and the largest value.
    pub extremes: bool,
    /// The sum.
    pub sums: bool,
}

impl Needs {
    /// Everything.
    pub const ALL: Self = Self {
        extremes: true,
        sums: true,
    };

    /// What it takes for a fold.
    #[must_use]
    pub const fn of(fold: Fold) -> Self {
        Self {
            extremes: matches!(fold, Fold::Min | Fold::Max),
            sums: matches!(fold, Fold::Avg | Fold::Sum | Fold::Auto),
        }
    }
}

/// What is asked of a store.
#[derive(Debug, Clone)]
pub struct SampleQuery {
    /// Of which hosts.
    pub hosts: Vec<HostId>,
    /// Name of the metric; `None` for all.
    pub metric: Option<String>,
    /// What its labels must be.
    pub labels: Vec<LabelMatch>,
    /// First millisecond.
    pub from: i64,
    /// The millisecond after the last.
    pub to: i64,
    /// The coarsest points that will do, in milliseconds; 0 for every sample. Coarser ones come where finer ones
    /// are kept no longer.
    pub step_ms: i64,
    /// Which parts of the points are looked at.
    pub needs: Needs,
    /// Most points that may be read for the answer.
    pub max_points: u64,
    /// Looked at between files and between series.
    pub give_up: GiveUp,
}

impl SampleQuery {
    /// Whether a series is asked for.
    #[must_use]
    pub fn wants(&self, family: &Family, labels: &[String]) -> bool {
        if self
            .metric
            .as_ref()
            .is_some_and(|metric| *metric != family.name)
        {
            return false;
        }
        self.labels.iter().all(|wanted| {
            let at = family
                .labels
                .iter()
                .position(|label| *label == wanted.label);
            let value = at.and_then(|at| labels.get(at)).map_or("", String::as_str);
            wanted.matches(value)
        })
    }
}

/// One series of one host in an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct HostSeries {
    /// Whose.
    pub host: HostId,
    /// Which.
    pub name: SeriesName,
    /// Rising in time, each time once.
    pub points: Vec<Point>,
}

/// How far an answer goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Points given.
    pub points: u64,
    /// What could not be read, in words for people; the rest was given.
    pub missing: Vec<String>,
}

/// What a store can do; the conformance suite holds it to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// A sample that comes twice counts once, and the first stays.
    pub deduplicates: bool,
    /// Older samples than the newest of the series are taken.
    pub takes_late: bool,
    /// What was appended can be read at once.
    pub reads_own_writes: bool,
    /// What was forgotten is not read any more at once.
    pub forgets: bool,
}

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreStats {
    /// Files, by tier.
    pub files: [u64; 3],
    /// Bytes on disk, by tier.
    pub bytes: [u64; 3],
    /// Points on disk, by tier.
    pub points: [u64; 3],
    /// First millisecond on disk, by tier; 0 without files.
    pub oldest_ms: [i64; 3],
    /// Hosts known.
    pub hosts: u64,
    /// Bytes of memory for samples that are not in files yet.
    pub head_bytes: u64,
    /// Samples that are not in files yet.
    pub head_samples: u64,
    /// Bytes written to disk since start.
    pub written_bytes: u64,
    /// Files dropped since start because of their age.
    pub dropped_by_age: u64,
    /// Files dropped since start because the store was larger than it may be.
    pub dropped_by_size: u64,
    /// Files written since start: spilled from memory, and merged.
    pub spilled_files: u64,
    /// See `spilled_files`.
    pub merged_files: u64,
    /// Writes and packings that failed since start.
    pub failures: u64,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The disk refused.
    #[error("cannot {action} {name} of the history")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        name: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("history file {name} is damaged: {what}")]
    Damaged {
        /// The file.
        name: String,
        /// Where.
        what: &'static str,
    },
    /// A newer program wrote it.
    #[error(
        "history file {name} has version {version}, this program reads {supported}; start the program that wrote it, or move the folder away"
    )]
    NewerVersion {
        /// The file.
        name: String,
        /// What it says.
        version: u16,
        /// What this program reads.
        supported: u16,
    },
    /// The question is too large.
    #[error(
        "the answer needs more than {limit} points; ask for fewer hosts, a shorter range or a longer --step"
    )]
    TooMuch {
        /// The most that is allowed.
        limit: u64,
    },
    /// The answer is too large to be held in memory.
    #[error(
        "the answer would have more than {limit} values at a time; ask for fewer hosts, a shorter range, a longer --step, or for sum by (…) of them"
    )]
    TooWide {
        /// The most that is allowed.
        limit: u64,
    },
    /// Whoever asked has gone, or the time is over.
    #[error("the question was given up: it takes too long, or nobody waits for its answer")]
    GivenUp,
    /// More waits in memory than may wait; the disk is slow or away.
    #[error("the history's memory is full: its disk does not take what is in it")]
    Backlog,
    /// What is to be forgotten is being written.
    #[error("what is in memory of this host is being written; try again in a few seconds")]
    Busy,
}

/// A store of samples. See the module's own words.
pub trait SampleStore: Send + Sync {
    /// What it can do.
    fn caps(&self) -> Caps;

    /// Takes the values of a host at a tick: all that it has then. `token` says what the store has, once this is
    /// durable, everything up to.
    ///
    /// # Errors
    /// [`HistoryError::Backlog`]; then nothing was taken.
    fn append(
        &self,
        token: Token,
        host: HostId,
        tick: i64,
        values: &mut dyn Iterator<Item = (&Arc<SeriesKey>, Raw)>,
    ) -> Result<(), HistoryError>;

    /// Everything up to here survives a crash.
    fn durable(&self) -> Token;

    /// Gives `sink` each series that is asked for, with its points; it may break off.
    ///
    /// # Errors
    /// [`HistoryError::TooMuch`], [`HistoryError::GivenUp`]. What cannot be read is named in the report instead.
    fn read(
        &self,
        query: &SampleQuery,
        sink: &mut dyn FnMut(HostSeries) -> ControlFlow<()>,
    ) -> Result<ReadReport, HistoryError>;

    /// Forgets all that is known of a host up to now, and what the log has of it up to record `upto`, whether it
    /// was taken already or not.
    ///
    /// # Errors
    /// When it could not be made durable; then the host is not forgotten.
    fn forget(&self, host: HostId, upto: Token) -> Result<(), HistoryError>;

    /// What it holds.
    fn stats(&self) -> StoreStats;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth0", true),
            ("*", "", true),
            ("*0", "eth0", true),
            ("e*h*0", "eth10", true),
            ("e*x*0", "eth10", false),
            ("a*a", "a", false),
            ("/*/log", "/var/log", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
