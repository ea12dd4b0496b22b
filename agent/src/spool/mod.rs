//! Frames on disk, until the aggregator has them: what a restart or a long outage would lose from memory.
//!
//! Frames are written as they come, those that come together with one write and no sync, and made durable every 10 s or
//! 256 KiB and at the end. The remains of earlier incarnations lie beside it, each in a log of its own, and are read
//! oldest first, chain by chain, when there is an aggregator to take them.
//!
//! What it promises: a start never fails because of what is in the folder; what is dropped is counted by
//! reason and named to the aggregator as a gap; nothing is written beyond the bounds on size, age and free
//! space. A disk that fails three times, or is nearly full, is left alone for a minute at a time: until it is
//! well, frames are in memory only, as they would be without a spool.
//!
//! What happened on the host outlives the samples: of each frame with events an outline is kept apart
//! (`ledger`) and takes the place of its frame when that is dropped. There, too, stands where each earlier
//! incarnation ended, until the aggregator knows that nothing more will come of it.
//!
//! [`Spool`] is plain code over a [`Storage`]; [`SpoolHandle`] is the thread that runs it, because every call
//! may wait for the disk. The segments are those of [`muster_proto::log`], the records those of `record`.

mod handle;
mod ledger;
mod record;
mod shelf;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::Duration,
};

use muster_proto::{
    id::Incarnation,
    log::{self, LogError, Storage},
    ranges::RangeSet,
    time::Timestamp,
    v1,
};
use serde::{Deserialize, Serialize};

pub use handle::SpoolHandle;
pub use record::Spooled;
pub use shelf::Missing;

use ledger::Ledger;
use shelf::Shelf;

/// Bytes after which what was written is made durable, whatever the time.
const COMMIT_BYTES: usize = 256 * 1024;
/// Failures in a row after which the disk is left alone.
const MAX_FAILURES: u32 = 3;
/// Most ranges of one earlier incarnation that are named as missing one by one; beyond it the two oldest become one with
/// all between them, outlines that are still to come among it: those count as stored when they come.
const MAX_GAPS: usize = 32;
/// Most incarnations a Hello names (design/delivery.md §2: 64 for an agent, its own included).
const MAX_NAMED: usize = 60;

/// Smallest bound on the spool's size: two segments.
pub const MIN_SPOOL_BYTES: u64 = 2 << 20;

/// Free space that is left to others in any case, and the share of the filesystem where that is more.
const MIN_FREE_BYTES: u64 = 200 << 20;
const MIN_FREE_SHARE: u64 = 20;

/// Where the spool is and how much it may keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// Its folder, made when it is missing.
    pub folder: PathBuf,
    /// Bounds.
    pub limits: SpoolLimits,
}

/// How much a spool may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Most bytes on disk, [`MIN_SPOOL_BYTES`] or more. The newest segment (1 MiB) always stays.
    pub max_bytes: u64,
    /// Older samples go, once an aggregator has confirmed the clock: a host that boots with its clock a week ahead
    /// must not take all it has for old.
    pub max_age: Duration,
    /// With less free on the filesystem, or less than 5 % of it, nothing is written. 0 for no such bound, as where a
    /// test cannot choose its filesystem.
    pub min_free_bytes: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_age: Duration::from_secs(7 * 24 * 3600),
            min_free_bytes: MIN_FREE_BYTES,
        }
    }
}

/// The share of a filesystem of this size that is left free, in bytes.
fn free_share(filesystem_bytes: u64) -> u64 {
    filesystem_bytes / MIN_FREE_SHARE
}

/// What the buffer of the running incarnation has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// All frames between these numbers are on disk.
    Durable {
        /// First number.
        first: u64,
        /// Last number.
        last: u64,
    },
    /// Frames of the running incarnation are not on disk any more.
    Dropped(Missing),
    /// What happened in this frame is kept, whatever becomes of its samples.
    Outlined(u64),
    /// Something can be sent that could not before.
    Due,
    /// Only a key frame can be written next.
    WantKey,
    /// Why frames that memory cannot hold are lost from now on.
    LossReason(v1::GapReason),
}

/// How the spool stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpoolStatus {
    /// Bytes on disk.
    pub bytes: u64,
    /// Age of the oldest sample on disk when the newest was taken.
    pub oldest_seconds: Option<u64>,
    /// Earlier incarnations of which frames wait.
    pub incarnations: u64,
    /// Frames of earlier incarnations that wait.
    pub frames: u64,
    /// Why nothing is written to disk now.
    pub fault: Option<String>,
    /// Failures of the disk since the start.
    pub failures: u64,
    /// Frames of earlier incarnations acknowledged as durable or refused.
    pub delivered: u64,
    /// Frames of earlier incarnations dropped for lack of room.
    pub dropped_full: u64,
    /// Frames of earlier incarnations dropped by age.
    pub dropped_age: u64,
    /// Frames of earlier incarnations that do not read any more.
    pub dropped_corrupt: u64,
}

/// What is to be sent next beside the live chain.
#[derive(Debug)]
pub struct Batch {
    /// Whose frames.
    pub incarnation: Incarnation,
    /// In order, each chain from its key frame on.
    pub frames: Vec<Spooled>,
    /// What will never come, to be told first.
    pub gaps: Vec<v1::Gap>,
    /// Earlier incarnations of which nothing more will come, to be told last.
    pub ends: Vec<v1::Fin>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            incarnation: Incarnation(0),
            frames: Vec::new(),
            gaps: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl Batch {
    /// Whether there is nothing more to send for now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.gaps.is_empty() && self.ends.is_empty()
    }
}

/// See the head of this file.
pub struct Spool<S: Storage> {
    storage: S,
    limits: SpoolLimits,
    own: Shelf<S>,
    /// Earlier incarnations, oldest first.
    older: VecDeque<Shelf<S>>,
    /// What happened, and where incarnations ended.
    ledger: Ledger<S>,
    /// Incarnations of which the aggregator has said in this session what it has.
    named: Vec<Incarnation>,
    /// Earlier incarnations of which it was told in this session from where on there still is something.
    begun: Vec<Incarnation>,
    /// Frames of this incarnation from this number on are in memory.
    own_below: u64,
    missing: Vec<Missing>,
    events: Vec<Event>,
    /// Bytes handed over since the last commit.
    uncommitted: usize,
    /// Whether something was put since the last write.
    unwritten: bool,
    /// Frames that were written and not yet told to be durable. What was never handed over is a hole among them.
    untold: RangeSet,
    /// The tick that was handed over last: the clock may have been set back since the one before.
    now: Timestamp,
    /// An aggregator has said what time it is. Before, a wrong clock must not make samples old.
    clock_confirmed: bool,
    failures: u32,
    /// Nothing is written until a probe.
    suspended: bool,
    status: SpoolStatus,
}

impl<S: Storage> Spool<S> {
    /// Opens what is in the folder, and a log for this incarnation.
    ///
    /// # Errors
    /// If the folder cannot be listed, or a newer program has written there.
    pub fn open(
        storage: S,
        incarnation: Incarnation,
        limits: SpoolLimits,
    ) -> Result<Self, LogError> {
        let mut missing = Vec::new();
        let mut older = Vec::new();
        let mut unreadable = 0u64;
        for stream in log::streams(&storage)? {
            if stream == incarnation.0 || stream == ledger::STREAM {
                continue;
            }
            match Shelf::open(storage.clone(), Incarnation(stream), &mut missing) {
                Ok(shelf) => older.push(shelf),
                Err(error @ LogError::NewerVersion { .. }) => return Err(error),
                Err(_) => unreadable += 1,
            }
        }
        if unreadable > 0 {
            tracing::warn!(
                incarnations = unreadable,
                "part of the spool cannot be read"
            );
        }
        older.sort_by_key(|shelf| (shelf.oldest(), shelf.incarnation().0));
        let own = Shelf::open(storage.clone(), incarnation, &mut missing)?;
        let ledger = Ledger::open(storage.clone())?;
        let mut spool = Self {
            storage,
            limits,
            own,
            older: older.into(),
            ledger,
            named: Vec::new(),
            begun: Vec::new(),
            own_below: 0,
            missing: Vec::new(),
            events: Vec::new(),
            uncommitted: 0,
            unwritten: false,
            untold: RangeSet::new(),
            now: Timestamp::from_millis(i64::MIN / 2),
            clock_confirmed: false,
            failures: 0,
            suspended: false,
            status: SpoolStatus::default(),
        };
        spool.lose(missing);
        spool.clear_done();
        spool.enforce_bounds();
        Ok(spool)
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> SpoolStatus {
        let shelves = || self.older.iter().chain([&self.own]);
        let oldest = shelves().filter_map(Shelf::oldest).min();
        SpoolStatus {
            bytes: self.bytes(),
            oldest_seconds: oldest.map(|oldest| self.now.since(oldest).as_secs()),
            incarnations: self.older.len() as u64,
            frames: self.older.iter().map(Shelf::open_frames).sum(),
            ..self.status.clone()
        }
    }

    /// What Hello says of earlier incarnations.
    #[must_use]
    pub fn ranges(&self) -> Vec<v1::SpoolRange> {
        let mut ranges: Vec<v1::SpoolRange> = self.older.iter().filter_map(Shelf::range).collect();
        for incarnation in self.ledger.incarnations() {
            let named = ranges
                .iter()
                .any(|range| range.incarnation == incarnation.0);
            let outlined = self.ledger.outlined(incarnation);
            if let (false, Some(&first), Some(&last)) = (
                named || incarnation == self.own.incarnation(),
                outlined.first(),
                outlined.last(),
            ) {
                ranges.push(v1::SpoolRange {
                    incarnation: incarnation.0,
                    first,
                    last,
                    bytes: 0,
                });
            }
        }
        ranges.truncate(MAX_NAMED);
        ranges
    }

    fn bytes(&self) -> u64 {
        let shelves = self.older.iter().chain([&self.own]);
        let bulk: u64 = shelves.map(|shelf| shelf.log().bytes_on_disk()).sum();
        bulk + self.ledger.bytes_on_disk()
    }

    /// Writes a frame of this incarnation. It is on disk for certain when [`Event::Durable`] says so.
    pub fn append(&mut self, frame: &Spooled) {
        self.put(frame);
        self.write();
    }

    /// As [`Spool::append`], but that it goes with others at the next [`Spool::write`], which must come before
    /// anything else is asked.
    pub fn put(&mut self, frame: &Spooled) {
        self.now = frame.tick;
        if self.suspended {
            return;
        }
        if !self.own.accepts(frame) {
            self.events.push(Event::WantKey);
            return;
        }
        self.untold.insert(frame.seq);
        self.uncommitted += frame.payload.len();
        match self.own.append(frame) {
            Ok(()) if self.uncommitted >= COMMIT_BYTES => self.commit(),
            Ok(()) => self.unwritten = true,
            Err(error) => self.failed(&error),
        }
    }

    /// Hands what was put to the operating system, with one write.
    pub fn write(&mut self) {
        if !std::mem::take(&mut self.unwritten) || self.suspended {
            return;
        }
        match self.own.flush() {
            Ok(()) => self.tell_durable(),
            Err(error) => self.failed(&error),
        }
    }

    /// Keeps what happened in a frame of this incarnation, which [`Spooled::outline`] gave.
    pub fn keep(&mut self, outline: Spooled) {
        let own = self.own.incarnation();
        self.events.push(Event::Outlined(outline.seq));
        let pushed_out = self.ledger.keep(own, outline);
        for (incarnation, seq) in pushed_out {
            if self
                .shelf(incarnation)
                .is_none_or(|shelf| !shelf.holds(seq))
            {
                self.lose(vec![Missing {
                    incarnation,
                    first: seq,
                    last: seq,
                    samples: 0,
                    reason: v1::GapReason::Full,
                    merged: None,
                }]);
            }
        }
        if !self.suspended
            && let Err(error) = self.ledger.write()
        {
            self.ledger_failed(&error);
        }
    }

    /// What is not on disk stays in memory and is written with what comes next.
    fn ledger_failed(&mut self, error: &LogError) {
        self.status.failures += 1;
        tracing::debug!(error = chain(error), "what happened is not on disk");
        self.ledger.forget_pending();
    }

    /// Makes durable what was written, and keeps the bounds.
    pub fn commit(&mut self) {
        if self.suspended {
            return;
        }
        if self
            .storage
            .free_bytes()
            .is_ok_and(|free| free < self.limits.min_free_bytes)
        {
            self.suspend(
                v1::GapReason::Full,
                format!(
                    "less than {} MiB are free on the filesystem of the spool",
                    self.limits.min_free_bytes >> 20
                ),
            );
            return;
        }
        if let Err(error) = self.ledger.commit() {
            self.ledger_failed(&error);
        }
        match self.own.commit() {
            Ok(_) => {
                self.uncommitted = 0;
                self.failures = 0;
                self.tell_durable();
            }
            Err(error) => self.failed(&error),
        }
        self.enforce_bounds();
    }

    /// A commit may have happened on the way of a write.
    fn tell_durable(&mut self) {
        let Some(durable) = self.own.durable_to() else {
            return;
        };
        if self
            .untold
            .next_present(0)
            .is_none_or(|first| first > durable)
        {
            return;
        }
        let mut still = RangeSet::new();
        for (first, last) in self.untold.iter() {
            if first <= durable {
                let last = last.min(durable);
                self.events.push(Event::Durable { first, last });
            }
            still.insert_range(first.max(durable + 1), last);
        }
        self.untold = still;
    }

    fn failed(&mut self, error: &LogError) {
        self.tell_durable();
        self.failures += 1;
        self.status.failures += 1;
        if self.failures >= MAX_FAILURES {
            let full = matches!(error, LogError::Io { source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull);
            let reason = if full {
                v1::GapReason::Full
            } else {
                v1::GapReason::DiskError
            };
            self.suspend(reason, chain(error));
        }
    }

    fn suspend(&mut self, reason: v1::GapReason, why: String) {
        tracing::warn!(
            why,
            "the spool is not written to for a minute; frames are in memory only, and a restart loses them"
        );
        self.suspended = true;
        self.status.fault = Some(why);
        self.own.forget_pending();
        self.ledger.forget_pending();
        self.uncommitted = 0;
        self.untold = RangeSet::new();
        self.events.push(Event::LossReason(reason));
    }

    /// Whether nothing is written.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Tries a disk that was left alone again, with the next frame.
    pub fn probe(&mut self) {
        let free = self.storage.free_bytes();
        if !self.suspended || free.is_ok_and(|free| free < self.limits.min_free_bytes) {
            return;
        }
        self.suspended = false;
        // One more failure is enough to leave it alone again.
        self.failures = MAX_FAILURES - 1;
        self.status.fault = None;
        self.events.push(Event::LossReason(v1::GapReason::Full));
        self.events.push(Event::WantKey);
    }

    /// The aggregator has these, or has refused them.
    pub fn settle(&mut self, incarnation: Incarnation, first: u64, last: u64) {
        self.ledger.settle(incarnation, first, last);
        let before = self
            .shelf(incarnation)
            .map_or(0, |shelf| shelf.open_frames());
        let own = incarnation == self.own.incarnation();
        let Some(shelf) = self.shelf(incarnation) else {
            return;
        };
        shelf.settle(first, last);
        let settled = before - shelf.open_frames();
        let released = shelf.release();
        if !own {
            self.status.delivered += settled;
        }
        if let Err(error) = released {
            self.cannot_remove(&error);
        }
        self.clear_done();
    }

    fn shelf(&mut self, incarnation: Incarnation) -> Option<&mut Shelf<S>> {
        let shelves = self.older.iter_mut().chain([&mut self.own]);
        shelves
            .into_iter()
            .find(|shelf| shelf.incarnation() == incarnation)
    }

    /// The aggregator has noted that nothing more will come of an earlier incarnation.
    pub fn confirm(&mut self, incarnation: Incarnation) {
        self.ledger.confirm(incarnation);
    }

    /// A session begins, in which the aggregator has said what it has of these incarnations. Ticks follow its clock from
    /// now on, so what is old is known.
    pub fn rewind(&mut self, named: Vec<Incarnation>) {
        self.clock_confirmed = true;
        self.named = named;
        self.begun.clear();
        self.ledger.rewind();
        for shelf in self.older.iter_mut().chain([&mut self.own]) {
            shelf.rewind();
        }
    }

    /// The next frames to send beside the live chain, about `bytes` of payload. Of this incarnation those of
    /// chains that end before `own_below`: the others are in memory.
    pub fn next_batch(&mut self, own_below: u64, bytes: usize) -> Batch {
        let mut batch = Batch::default();
        let own = self.own.incarnation();
        self.own_below = own_below;
        let mut missing = Vec::new();
        let told = std::mem::take(&mut self.missing);
        if !self.is_mid_chain() {
            self.read_outlines(bytes, &mut batch);
        }
        for shelf in self.older.iter_mut().chain([&mut self.own]) {
            if !batch.frames.is_empty() {
                break;
            }
            let below = if shelf.incarnation() == own {
                own_below
            } else {
                u64::MAX
            };
            shelf.read(below, bytes, &mut batch.frames, &mut missing);
            batch.incarnation = shelf.incarnation();
        }
        self.lose(missing);
        for gone in told.into_iter().chain(std::mem::take(&mut self.missing)) {
            self.count(&gone);
            batch.gaps.push(gone.to_wire());
        }
        batch.gaps.extend(self.beginning(&batch));
        self.clear_done();
        batch.ends = self.due_ends();
        for end in &batch.ends {
            self.ledger.end_sent(Incarnation(end.incarnation));
        }
        batch
    }

    /// Whether what is read next builds on what was read last.
    fn is_mid_chain(&self) -> bool {
        let mut shelves = self.older.iter().chain([&self.own]);
        shelves.any(Shelf::is_mid_chain)
    }

    /// Outlines of frames that are nowhere else, of one incarnation. They stand for themselves, so they must not
    /// come between a frame and the one that builds on it.
    fn read_outlines(&mut self, bytes: usize, batch: &mut Batch) {
        let mut budget = bytes;
        while budget > 0 {
            let next = self.ledger.next_outline(|incarnation, seq| {
                let same = batch.frames.is_empty() || incarnation == batch.incarnation;
                same && self.is_due(incarnation, seq)
            });
            let Some((incarnation, frame)) = next.map(|(whose, frame)| (whose, frame.clone()))
            else {
                return;
            };
            self.ledger.outline_sent(incarnation, frame.seq);
            budget = budget.saturating_sub(frame.payload.len().max(1));
            batch.incarnation = incarnation;
            batch.frames.push(frame);
        }
    }

    /// What is gone of an earlier incarnation before all that is left of its samples, to be told before the first of its
    /// outlines. The incarnation itself knew of it, but may not have come to say so; told as one, the outlines
    /// leave no holes between them.
    fn beginning(&mut self, batch: &Batch) -> Option<v1::Gap> {
        let incarnation = batch.incarnation;
        if batch.frames.is_empty()
            || incarnation == self.own.incarnation()
            || !self.named.contains(&incarnation)
            || self.begun.contains(&incarnation)
        {
            return None;
        }
        let outlined = self.ledger.outlined(incarnation);
        let outlines_to = outlined.last().copied()?;
        self.begun.push(incarnation);
        let kept = self.shelf(incarnation).and_then(|shelf| shelf.first());
        let last = kept.map_or(outlines_to, |first| first - 1);
        (last > 0).then(|| v1::Gap {
            incarnation: incarnation.0,
            first: 1,
            last,
            reason: v1::GapReason::Full.into(),
            samples: 0,
        })
    }

    /// Whether the outline of a frame is to be sent: the frame itself is nowhere any more, and the aggregator has said
    /// what it has of that incarnation, so that it is not told what it knows.
    fn is_due(&self, incarnation: Incarnation, seq: u64) -> bool {
        let own = incarnation == self.own.incarnation();
        let mut shelves = self.older.iter().chain([&self.own]);
        self.named.contains(&incarnation)
            && (!own || seq < self.own_below)
            && !shelves.any(|shelf| shelf.incarnation() == incarnation && shelf.holds(seq))
    }

    /// Ends of incarnations of which nothing is left to be sent.
    fn due_ends(&self) -> Vec<v1::Fin> {
        let outlined = self.ledger.incarnations();
        let ends = self.ledger.ends(|incarnation| {
            let shelved = self
                .older
                .iter()
                .any(|shelf| shelf.incarnation() == incarnation);
            let untold = self
                .missing
                .iter()
                .any(|gone| gone.incarnation == incarnation);
            !shelved && !untold && !outlined.contains(&incarnation)
        });
        ends.collect()
    }

    /// Whether [`Spool::next_batch`] has something that stands beside the samples.
    #[must_use]
    pub fn has_due(&self) -> bool {
        let outline = self
            .ledger
            .next_outline(|incarnation, seq| self.is_due(incarnation, seq));
        outline.is_some() || !self.due_ends().is_empty()
    }

    /// Notes what will never come. Frames of which the events are kept are not lost.
    fn lose(&mut self, missing: Vec<Missing>) {
        for gone in missing {
            for rest in gone.without(&self.ledger.outlined(gone.incarnation)) {
                if rest.incarnation == self.own.incarnation() {
                    // The buffer tells it, with what memory has lost.
                    self.events.push(Event::Dropped(rest));
                } else {
                    self.missing.push(rest);
                }
            }
        }
        self.merge_missing();
    }

    /// Keeps at most [`MAX_GAPS`] ranges of each earlier incarnation to be told.
    fn merge_missing(&mut self) {
        if self.missing.len() <= MAX_GAPS {
            return;
        }
        let mut by_life: BTreeMap<Incarnation, Vec<Missing>> = BTreeMap::new();
        for gone in self.missing.drain(..) {
            by_life.entry(gone.incarnation).or_default().push(gone);
        }
        for (_, mut gaps) in by_life {
            gaps.sort_by_key(|gone| gone.first);
            let more = gaps.len().saturating_sub(MAX_GAPS);
            let oldest = gaps.drain(..=more).reduce(Missing::with);
            self.missing.extend(oldest.into_iter().chain(gaps));
        }
    }

    fn count(&mut self, gone: &Missing) {
        let settled = self
            .shelf(gone.incarnation)
            .map_or(0, |shelf| shelf.settled_in(gone.first, gone.last));
        // Of merged ones only those that are lost were counted to begin with.
        let frames = match gone.merged {
            Some(frames) => frames,
            None => gone.frames() - settled,
        };
        match gone.reason {
            v1::GapReason::Age => self.status.dropped_age += frames,
            v1::GapReason::Corrupt => self.status.dropped_corrupt += frames,
            _ => self.status.dropped_full += frames,
        }
    }

    /// Removes what is left of earlier incarnations of which all is settled.
    fn clear_done(&mut self) {
        let (done, open): (VecDeque<_>, VecDeque<_>) =
            self.older.drain(..).partition(Shelf::is_done);
        self.older = open;
        for shelf in done {
            self.ledger.end(shelf.incarnation(), shelf.last_seen());
            if let Err(error) = shelf.remove() {
                self.cannot_remove(&error);
            }
        }
    }

    fn cannot_remove(&mut self, error: &LogError) {
        self.status.failures += 1;
        tracing::debug!(
            error = chain(error),
            "delivered part of the spool not removed"
        );
    }

    /// Drops what is too old or too much, oldest first.
    fn enforce_bounds(&mut self) {
        let oldest_kept = self.now.minus(self.limits.max_age);
        let mut missing = Vec::new();
        loop {
            let reason = if self.bytes() > self.limits.max_bytes {
                v1::GapReason::Full
            } else if self.clock_confirmed
                && self.oldest_tick().is_some_and(|tick| tick < oldest_kept)
            {
                v1::GapReason::Age
            } else {
                break;
            };
            let dropped = match self.older.pop_front() {
                Some(mut shelf) if shelf.can_drop() => {
                    let dropped = shelf.drop_segment(reason, &mut missing);
                    self.older.push_front(shelf);
                    dropped
                }
                Some(shelf) => {
                    self.ledger.end(shelf.incarnation(), shelf.last_seen());
                    shelf.drop_all(reason, &mut missing)
                }
                None if self.own.can_drop() => self.own.drop_segment(reason, &mut missing),
                None => break,
            };
            if let Err(error) = dropped {
                self.cannot_remove(&error);
                break;
            }
        }
        self.lose(missing);
    }

    /// Tick of the newest samples of what would go first.
    fn oldest_tick(&self) -> Option<Timestamp> {
        match self.older.front() {
            Some(shelf) => shelf.oldest_segment_tick(),
            None => self.own.oldest_segment_tick(),
        }
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
