//! The frames of one incarnation on disk: its log, and of each chain where it lies and what it holds.
//!
//! A chain is a key frame and the deltas that build on it, with numbers that rise by one. Only whole chains
//! are worth anything, so they are what is sent, let go and given up. A delta whose chain is broken before it
//! (by damage, or because the disk was away) belongs to none and is named as missing.

use std::collections::VecDeque;

use muster_proto::{
    id::Incarnation,
    log::{Log, LogConfig, LogError, Segment, Storage},
    ranges::RangeSet,
    time::Timestamp,
    v1,
};

use super::record::Spooled;

/// What is remembered of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chain {
    /// Record number of its key frame, and one more than that of its last frame.
    record: u64,
    record_end: u64,
    /// First and last frame.
    first: u64,
    last: u64,
    samples: u64,
    tick: Timestamp,
}

/// Frames that are gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Whose they were.
    pub incarnation: Incarnation,
    /// First number.
    pub first: u64,
    /// Last number.
    pub last: u64,
    /// Samples in them, as far as they were counted.
    pub samples: u64,
    /// Why.
    pub reason: v1::GapReason,
    /// Where several became one: how many frames they were, without those between them.
    pub merged: Option<u64>,
}

impl Missing {
    /// How many frames.
    pub(super) fn frames(&self) -> u64 {
        self.merged.unwrap_or(self.last - self.first + 1)
    }

    /// What is left of it without these numbers, which ascend. All samples are counted with the first part.
    pub(super) fn without(self, kept: &[u64]) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        let within = kept
            .iter()
            .filter(|seq| (self.first..=self.last).contains(*seq));
        let mut first = self.first;
        for &seq in within.chain([&(self.last + 1)]) {
            if first < seq {
                let samples = if parts.is_empty() { self.samples } else { 0 };
                parts.push(Self {
                    first,
                    last: seq - 1,
                    samples,
                    ..self
                });
            }
            first = seq + 1;
        }
        parts
    }

    /// Both as one, with all between them.
    pub(super) fn with(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            samples: self.samples + other.samples,
            merged: Some(self.frames() + other.frames()),
            ..self
        }
    }

    /// Appends it, as one with the last where it continues that.
    fn join(self, missing: &mut Vec<Self>) {
        match missing.last_mut() {
            Some(last)
                if (last.incarnation, last.reason, last.last + 1)
                    == (self.incarnation, self.reason, self.first) =>
            {
                last.last = self.last;
                last.samples += self.samples;
            }
            _ => missing.push(self),
        }
    }

    /// The message that says so.
    #[must_use]
    pub fn to_wire(&self) -> v1::Gap {
        v1::Gap {
            incarnation: self.incarnation.0,
            first: self.first,
            last: self.last,
            reason: self.reason.into(),
            samples: self.samples,
        }
    }
}

/// See the head of this file.
pub(super) struct Shelf<S: Storage> {
    incarnation: Incarnation,
    log: Log<S>,
    chains: VecDeque<Chain>,
    settled: RangeSet,
    /// Highest number that was ever seen here, 0 without one.
    last_seen: u64,
    /// Number of the next record to read in this session.
    cursor: u64,
    scratch: Vec<u8>,
}

impl<S: Storage> Shelf<S> {
    /// Opens what an incarnation has left, or a new log for one that begins. What is known to be missing
    /// from it is appended to `missing`.
    pub(super) fn open(
        storage: S,
        incarnation: Incarnation,
        missing: &mut Vec<Missing>,
    ) -> Result<Self, LogError> {
        let (log, recovery) = Log::open(storage, LogConfig::spool(incarnation.0))?;
        let mut shelf = Self {
            incarnation,
            log,
            chains: VecDeque::new(),
            settled: RangeSet::default(),
            last_seen: 0,
            cursor: 0,
            scratch: Vec::new(),
        };
        let damaged_from = recovery.missing.iter().map(|range| *range.start()).min();
        shelf.take_stock(damaged_from, missing);
        Ok(shelf)
    }

    /// Reads all records once, for the chains. Records from `damaged_from` on are not all there.
    fn take_stock(&mut self, damaged_from: Option<u64>, missing: &mut Vec<Missing>) {
        let mut chains = VecDeque::new();
        let mut last_seen = 0;
        let mut next = None;
        let mut broken = false;
        let mut lose = |first, last, samples| {
            let gone = Missing {
                incarnation: self.incarnation,
                first,
                last,
                samples,
                reason: v1::GapReason::Corrupt,
                merged: None,
            };
            gone.join(missing);
        };
        for record in self.log.read_from(1) {
            let number = record.as_ref().map_or(0, |record| record.number);
            let Some(frame) = record.ok().and_then(Spooled::decode) else {
                broken = true;
                continue;
            };
            // What the oldest segment begins with when the one before it was let go or dropped: the rest of a chain
            // of which all was settled, or told as dropped then.
            let is_leftover = chains.is_empty()
                && !frame.key
                && !broken
                && damaged_from.is_none_or(|damaged| number < damaged);
            if is_leftover {
                continue;
            }
            if broken && let Some(next) = next.filter(|next| *next < frame.seq) {
                lose(next, frame.seq - 1, 0);
            }
            let joined = if frame.key {
                broken = false;
                begin(&mut chains, &frame, number);
                true
            } else {
                !broken && extend(&mut chains, &frame, number)
            };
            if !joined {
                broken = true;
                lose(frame.seq, frame.seq, frame.samples.into());
            }
            next = Some(frame.seq + 1);
            last_seen = last_seen.max(frame.seq);
        }
        self.last_seen = last_seen;
        self.chains = chains;
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn log(&self) -> &Log<S> {
        &self.log
    }

    /// Highest number that was ever seen here, 0 without one.
    pub(super) fn last_seen(&self) -> u64 {
        self.last_seen
    }

    /// Whether the frame is here and still to be delivered.
    pub(super) fn holds(&self, seq: u64) -> bool {
        let after = self.chains.partition_point(|chain| chain.first <= seq);
        let chain = after.checked_sub(1).and_then(|at| self.chains.get(at));
        !self.settled.contains(seq) && chain.is_some_and(|chain| seq <= chain.last)
    }

    /// Whether what is read next continues what was read last.
    pub(super) fn is_mid_chain(&self) -> bool {
        let within = |chain: &Chain| chain.record < self.cursor && self.cursor < chain.record_end;
        self.chains.iter().any(within)
    }

    /// The first frame that is here.
    pub(super) fn first(&self) -> Option<u64> {
        self.chains.front().map(|chain| chain.first)
    }

    /// The tick of the oldest chain.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.chains.front().map(|chain| chain.tick)
    }

    /// Whether a frame can be appended: a key frame, or the one that follows.
    pub(super) fn accepts(&self, frame: &Spooled) -> bool {
        let follows = |chain: &Chain| chain.last + 1 == frame.seq;
        frame.key || self.chains.back().is_some_and(follows)
    }

    /// Takes a frame that is accepted; it stands in memory until the next flush or commit.
    pub(super) fn append(&mut self, frame: &Spooled) -> Result<(), LogError> {
        frame.encode(&mut self.scratch);
        let number = self.log.append(frame.kind(), &self.scratch)?;
        self.last_seen = self.last_seen.max(frame.seq);
        if frame.key {
            begin(&mut self.chains, frame, number);
        } else {
            extend(&mut self.chains, frame, number);
        }
        Ok(())
    }

    /// Hands what was appended to the operating system.
    pub(super) fn flush(&mut self) -> Result<(), LogError> {
        self.log.flush()
    }

    /// Makes all that was appended durable. Returns the last frame that is, if there is one.
    pub(super) fn commit(&mut self) -> Result<Option<u64>, LogError> {
        self.log.commit()?;
        Ok(self.chains.back().map(|chain| chain.last))
    }

    /// The last frame that is durable, if its chain is still known.
    pub(super) fn durable_to(&self) -> Option<u64> {
        let durable = self.log.durable();
        let chain = self.chains.iter().rfind(|chain| chain.record <= durable)?;
        let behind = (chain.record_end - 1).saturating_sub(durable);
        Some(chain.last - behind)
    }

    /// Gives up what is not durable: the disk stays away.
    pub(super) fn forget_pending(&mut self) {
        let durable = self.log.durable();
        self.log.forget_pending();
        while let Some(chain) = self.chains.back_mut() {
            if chain.record <= durable {
                chain.last -= (chain.record_end - 1).saturating_sub(durable);
                chain.record_end = chain.record_end.min(durable + 1);
                return;
            }
            self.chains.pop_back();
        }
    }

    /// These frames are at the aggregator, or refused by it.
    pub(super) fn settle(&mut self, first: u64, last: u64) {
        self.settled.insert_range(first, last);
    }

    /// How many of these are settled.
    pub(super) fn settled_in(&self, first: u64, last: u64) -> u64 {
        self.settled.count_in(first, last)
    }

    fn is_settled(&self, chain: &Chain) -> bool {
        self.settled.count_in(chain.first, chain.last) == chain.last - chain.first + 1
    }

    /// Frames that are not settled.
    pub(super) fn open_frames(&self) -> u64 {
        let open = |chain: &Chain| {
            chain.last - chain.first + 1 - self.settled.count_in(chain.first, chain.last)
        };
        self.chains.iter().map(open).sum()
    }

    /// First and last frame that are not known to be settled, and bytes on disk.
    pub(super) fn range(&self) -> Option<v1::SpoolRange> {
        let open = |chain: &&Chain| !self.is_settled(chain);
        Some(v1::SpoolRange {
            incarnation: self.incarnation.0,
            first: self.chains.iter().find(open)?.first,
            last: self.chains.back()?.last,
            bytes: self.log.bytes_on_disk(),
        })
    }

    /// Lets the segments go of which all is settled. The newest chain stays: it may still grow.
    pub(super) fn release(&mut self) -> Result<(), LogError> {
        while self.chains.len() > 1 && self.is_settled(&self.chains[0]) {
            self.chains.pop_front();
        }
        match self.chains.front() {
            Some(chain) => self.log.release_before(chain.record),
            None => Ok(()),
        }
    }

    /// Whether all is settled.
    pub(super) fn is_done(&self) -> bool {
        self.chains.iter().all(|chain| self.is_settled(chain))
    }

    /// Removes everything.
    pub(super) fn remove(self) -> Result<(), LogError> {
        self.log.remove_all()
    }

    /// Whether something can be dropped without ending the numbering of a log that is written.
    pub(super) fn can_drop(&self) -> bool {
        self.log.segments().len() > 1
    }

    /// The tick of the newest chain that begins in the oldest segment, or of the chain that runs through it.
    pub(super) fn oldest_segment_tick(&self) -> Option<Timestamp> {
        let end = self.log.segments().next()?.end;
        let within = |chain: &&Chain| chain.record < end;
        self.chains
            .iter()
            .rfind(within)
            .or(self.chains.front())
            .map(|chain| chain.tick)
    }

    /// Drops the oldest segment, and with it the chains that begin in it.
    pub(super) fn drop_segment(
        &mut self,
        reason: v1::GapReason,
        missing: &mut Vec<Missing>,
    ) -> Result<(), LogError> {
        let Some(&Segment { end, .. }) = self.log.segments().next() else {
            return Ok(());
        };
        self.log.release_before(end)?;
        while self.chains.front().is_some_and(|chain| chain.record < end) {
            let chain = self.chains.pop_front();
            self.lose(chain.expect("it was just looked at"), reason, missing);
        }
        Ok(())
    }

    /// Drops everything.
    pub(super) fn drop_all(
        mut self,
        reason: v1::GapReason,
        missing: &mut Vec<Missing>,
    ) -> Result<(), LogError> {
        while let Some(chain) = self.chains.pop_front() {
            self.lose(chain, reason, missing);
        }
        self.log.remove_all()
    }

    fn lose(&self, chain: Chain, reason: v1::GapReason, missing: &mut Vec<Missing>) {
        let first = self.settled.first_missing(chain.first);
        if first <= chain.last {
            let gone = Missing {
                incarnation: self.incarnation,
                first,
                last: chain.last,
                samples: chain.samples,
                reason,
                merged: None,
            };
            gone.join(missing);
        }
    }

    /// A session begins: all that is not settled is to be read again.
    pub(super) fn rewind(&mut self) {
        self.cursor = 0;
    }

    /// Reads the next frames of chains that are not settled and end before frame `below`: at least one frame
    /// if there is one, and no more after `bytes`. What cannot be read is given up.
    pub(super) fn read(
        &mut self,
        below: u64,
        bytes: usize,
        out: &mut Vec<Spooled>,
        missing: &mut Vec<Missing>,
    ) {
        let mut budget = bytes;
        while budget > 0 {
            let cursor = self.cursor;
            let wanted = |chain: &&Chain| {
                chain.record_end > cursor && chain.last < below && !self.is_settled(chain)
            };
            let Some(&chain) = self.chains.iter().find(wanted) else {
                return;
            };
            self.cursor = cursor.max(chain.record);
            for record in self.log.read_from(self.cursor) {
                let frame = record
                    .ok()
                    .filter(|record| record.number < chain.record_end);
                let number = frame.as_ref().map(|record| record.number);
                let frame = frame.and_then(Spooled::decode);
                let (Some(number), Some(frame)) = (number, frame) else {
                    break;
                };
                if number != self.cursor {
                    break;
                }
                self.cursor = number + 1;
                budget = budget.saturating_sub(frame.payload.len().max(1));
                out.push(frame);
                if budget == 0 || self.cursor == chain.record_end {
                    break;
                }
            }
            if budget > 0 && self.cursor < chain.record_end {
                let first = chain.first + (self.cursor - chain.record);
                let gone = Missing {
                    incarnation: self.incarnation,
                    first,
                    last: chain.last,
                    samples: 0,
                    reason: v1::GapReason::Corrupt,
                    merged: None,
                };
                gone.join(missing);
                self.settled.insert_range(first, chain.last);
                self.cursor = chain.record_end;
            }
        }
    }
}

fn begin(chains: &mut VecDeque<Chain>, frame: &Spooled, record: u64) {
    chains.push_back(Chain {
        record,
        record_end: record + 1,
        first: frame.seq,
        last: frame.seq,
        samples: frame.samples.into(),
        tick: frame.tick,
    });
}

fn extend(chains: &mut VecDeque<Chain>, frame: &Spooled, record: u64) -> bool {
    match chains.back_mut() {
        Some(chain) if chain.last + 1 == frame.seq && chain.record_end == record => {
            chain.record_end = record + 1;
            chain.last = frame.seq;
            chain.samples += u64::from(frame.samples);
            true
        }
        _ => false,
    }
}
