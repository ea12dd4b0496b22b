//! Frames that the aggregator does not have for certain yet.
//!
//! A frame is numbered when it enters, and from then on its payload never changes: whatever is sent again
//! is sent byte for byte. It leaves when the aggregator says that it is durable, when the aggregator has
//! refused it, or when there is no room; each way is counted in [`Books`], so that
//! `produced = durable + rejected + lost + held` always holds.
//!
//! Payloads build on one another: a *chain* is a key frame and the deltas up to before the next key frame,
//! and a delta is worth nothing without the frames of its chain before it. Therefore the frames of a chain
//! stay in memory, also when they are durable, until all of a finished chain is settled: an aggregator that
//! has lost its decoder state is given the chain again from its key frame. For the same reason what goes
//! first when memory is full is the oldest chain, whole.
//!
//! Where there is a [spool](crate::spool), it tells which frames are on disk too. Those are not lost when
//! memory is full: they are *spilled*, still held, and sent from the disk. So are frames of which the spool keeps
//! what happened: that is sent in their place when the samples are nowhere any more.

use std::{collections::VecDeque, time::Duration};

use crate::spool::{Event, Spooled};
use bytes::Bytes;
use muster_proto::{
    id::Incarnation,
    limits,
    ranges::RangeSet,
    time::{Timestamp, duration_millis},
    v1,
};

/// What a frame costs besides its payload: the record itself and the allocation of its payload, rounded up.
const FRAME_OVERHEAD_BYTES: usize = 128;

/// Backlog that is sent in the live chain, before anything newer: at 10 s and 500 bytes a frame a quarter of
/// an hour, on a slow line (1 Mbit/s) one second.
const CATCH_UP_BYTES: usize = 128 * 1024;

/// Smallest bound on a buffer: the largest payload fits twice.
pub const MIN_BUFFER_BYTES: usize = 2 * limits::MAX_PAYLOAD_BYTES;

/// Most gaps that are remembered one by one; beyond it the two oldest become one with all between them.
const MAX_GAPS: usize = 32;

/// How large a buffer may be and how long its chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferLimits {
    /// Most bytes of memory for frames, [`MIN_BUFFER_BYTES`] or more.
    pub max_bytes: usize,
    /// A key frame at the latest after this many frames.
    pub key_frames: u32,
    /// A key frame at the latest after this time: an aggregator that begins in the middle of a chain waits
    /// no longer.
    pub key_age: Duration,
}

impl Default for BufferLimits {
    fn default() -> Self {
        Self {
            max_bytes: 4 * 1024 * 1024,
            key_frames: 360,
            key_age: Duration::from_secs(600),
        }
    }
}

/// One encoded sample on its way into the buffer.
#[derive(Debug)]
pub struct Encoded {
    /// The scheduled tick.
    pub tick: Timestamp,
    /// CLOCK_BOOTTIME at the tick, milliseconds.
    pub boottime_ms: i64,
    /// Payload as [`muster_proto::codec::Encoder`] made it.
    pub payload: Bytes,
    /// Whether the payload is a key frame.
    pub key: bool,
    /// Series with a value.
    pub samples: u64,
}

/// A numbered frame.
#[derive(Debug)]
pub struct Held {
    seq: u64,
    crc32c: u32,
    settled: Option<Settled>,
    encoded: Encoded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Durable,
    Rejected,
}

impl Held {
    /// Its number.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The scheduled tick.
    #[must_use]
    pub fn tick(&self) -> Timestamp {
        self.encoded.tick
    }

    /// Whether it can be decoded without the one before it.
    #[must_use]
    pub fn is_key(&self) -> bool {
        self.encoded.key
    }

    /// Bytes of payload.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.encoded.payload.len() as u64
    }

    /// Whether the aggregator is known to have it, so that it is sent only for the frames after it.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.settled == Some(Settled::Durable)
    }

    /// The message that carries it.
    #[must_use]
    pub fn to_wire(&self, incarnation: Incarnation, lane: v1::Lane) -> v1::Frame {
        v1::Frame {
            incarnation: incarnation.0,
            seq: self.seq,
            lane: lane.into(),
            tick_ms: self.encoded.tick.as_millis(),
            boottime_ms: self.encoded.boottime_ms,
            payload: self.encoded.payload.clone().into(),
            crc32c: self.crc32c,
        }
    }

    /// What the spool keeps of it.
    #[must_use]
    pub fn to_spool(&self) -> Spooled {
        Spooled {
            seq: self.seq,
            tick: self.encoded.tick,
            boottime_ms: self.encoded.boottime_ms,
            samples: u32::try_from(self.encoded.samples).unwrap_or(u32::MAX),
            crc32c: self.crc32c,
            key: self.encoded.key,
            payload: self.encoded.payload.clone(),
        }
    }

    fn cost(&self) -> usize {
        self.encoded.payload.len() + FRAME_OVERHEAD_BYTES
    }
}

/// What became of the frames of this incarnation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// Frames numbered.
    pub produced: u64,
    /// Acknowledged as durable.
    pub durable: u64,
    /// Refused by the aggregator.
    pub rejected: u64,
    /// Given up before they were acknowledged.
    pub lost: u64,
    /// Of these, because they were too old.
    pub lost_age: u64,
    /// Of these, because they did not read any more from the disk.
    pub lost_corrupt: u64,
    /// Of these, because memory was full and the disk did not take them.
    pub lost_disk: u64,
    /// Waiting to be acknowledged.
    pub held: u64,
    /// Of these, on disk: a restart does not lose them.
    pub spooled: u64,
}

/// Frames that will never be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lost {
    first: u64,
    last: u64,
    samples: u64,
    reason: v1::GapReason,
    /// In this session: the number of the first frame sent after the announcement.
    announced_before: Option<u64>,
}

/// Where the lanes of a session begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// First number of the live chain.
    pub live_from: u64,
    /// First number in memory that goes beside it, with all up to `live_from`.
    pub aside_from: u64,
}

/// The frames of one incarnation; see the head of this file.
#[derive(Debug)]
pub struct Buffer {
    incarnation: Incarnation,
    limits: BufferLimits,
    /// Numbers rise by one from frame to frame.
    frames: VecDeque<Held>,
    bytes: usize,
    next_seq: u64,
    /// Highest number that was ever put on a stream.
    sent_to: u64,
    /// Highest number that is durable.
    newest_durable: u64,
    lost: Vec<Lost>,
    /// Why frames are lost for which memory has no room.
    loss_reason: v1::GapReason,
    /// Numbers that are on disk and not settled.
    spooled: RangeSet,
    /// Numbers of which the spool keeps what happened, whatever becomes of the samples, and that are not settled.
    outlined: RangeSet,
    /// Of both, the numbers that are not in memory any more.
    spilled: RangeSet,
    books: Books,
    key_wanted: bool,
    chain: Chain,
}

/// The chain that the next delta would continue.
#[derive(Debug, Default)]
struct Chain {
    frames: u32,
    bytes: usize,
    began: Timestamp,
}

impl Buffer {
    /// An empty buffer.
    #[must_use]
    pub fn new(incarnation: Incarnation, limits: BufferLimits) -> Self {
        Self {
            incarnation,
            limits,
            frames: VecDeque::new(),
            bytes: 0,
            next_seq: 1,
            sent_to: 0,
            newest_durable: 0,
            lost: Vec::new(),
            loss_reason: v1::GapReason::Full,
            spooled: RangeSet::default(),
            outlined: RangeSet::default(),
            spilled: RangeSet::default(),
            books: Books::default(),
            key_wanted: true,
            chain: Chain::default(),
        }
    }

    /// The incarnation whose frames these are.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Number of the newest frame, 0 before the first.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// What became of all frames so far.
    #[must_use]
    pub fn books(&self) -> Books {
        Books {
            spooled: self.spooled.count_in(0, u64::MAX),
            ..self.books
        }
    }

    /// Takes over what the spool has to say.
    pub fn told(&mut self, event: Event) {
        match event {
            Event::Durable { first, last } => {
                let mut from = first.max(1);
                while let Some(seq) = self.next_open(from).filter(|seq| *seq <= last) {
                    self.spooled.insert(seq);
                    from = seq + 1;
                }
            }
            Event::Dropped(gone) => {
                let (mut first, mut samples) = (gone.first, gone.samples);
                while let Some(seq) = self.next_elsewhere(first)
                    && seq <= gone.last
                {
                    self.spooled.remove(seq);
                    self.outlined.remove(seq);
                    if self.spilled.remove(seq) {
                        self.books.held -= 1;
                        self.lose(seq, std::mem::take(&mut samples), gone.reason);
                    }
                    first = seq + 1;
                }
            }
            Event::Outlined(seq) => {
                if self.is_open(seq) {
                    self.outlined.insert(seq);
                }
            }
            Event::Due => {}
            Event::WantKey => self.key_wanted = true,
            Event::LossReason(reason) => self.loss_reason = reason,
        }
    }

    /// The first number from here on of which the spool holds something.
    fn next_elsewhere(&self, from: u64) -> Option<u64> {
        let sets = [&self.spooled, &self.outlined];
        sets.into_iter()
            .filter_map(|set| set.next_present(from))
            .min()
    }

    /// Whether the frame is on disk and not settled.
    #[must_use]
    pub fn is_spooled(&self, seq: u64) -> bool {
        self.spooled.contains(seq)
    }

    /// The oldest frame that is only on disk.
    #[must_use]
    pub fn first_spilled(&self) -> Option<u64> {
        self.spilled.next_present(0)
    }

    /// Everything below this number is settled: durable, refused or given up.
    #[must_use]
    pub fn settled_below(&self) -> u64 {
        let in_memory = self.next_open(0).unwrap_or(self.next_seq);
        self.first_spilled()
            .map_or(in_memory, |spilled| in_memory.min(spilled))
    }

    /// The highest number that is known to be durable; 0 before the first.
    #[must_use]
    pub fn newest_durable(&self) -> u64 {
        self.newest_durable
    }

    /// Number of the oldest frame in memory; the next number without one.
    #[must_use]
    pub fn first_in_memory(&self) -> u64 {
        self.frames.front().map_or(self.next_seq, |frame| frame.seq)
    }

    /// The newest frame.
    #[must_use]
    pub fn newest(&self) -> Option<&Held> {
        self.frames.back()
    }

    /// The first frame in memory from this number on that is not settled.
    fn next_open(&self, seq: u64) -> Option<u64> {
        let at = usize::try_from(seq.saturating_sub(self.first_in_memory())).ok()?;
        let mut rest = self.frames.range(at.min(self.frames.len())..);
        rest.find(|frame| frame.settled.is_none())
            .map(|frame| frame.seq)
    }

    /// Bytes of memory that frames take now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the sample of this tick has to be encoded as a key frame.
    #[must_use]
    pub fn needs_key(&self, tick: Timestamp) -> bool {
        self.key_wanted
            || self.chain.frames >= self.limits.key_frames
            // Chains are what is given up whole, so one takes at most a quarter of the room.
            || self.chain.bytes >= self.limits.max_bytes / 4
            || tick.millis_since(self.chain.began).abs() >= duration_millis(self.limits.key_age)
    }

    /// Asks for the next frame to be a key frame.
    pub fn want_key(&mut self) {
        self.key_wanted = true;
    }

    /// Numbers a frame and keeps it; older chains go if there is no room. Returns the number.
    ///
    /// A payload that no aggregator would accept ([`limits::MAX_PAYLOAD_BYTES`]) is numbered and given up
    /// at once.
    pub fn append(&mut self, encoded: Encoded) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.books.produced += 1;
        self.books.held += 1;
        if encoded.key {
            self.key_wanted = false;
            self.chain = Chain {
                began: encoded.tick,
                ..Chain::default()
            };
        }
        let too_large = encoded.payload.len() > limits::MAX_PAYLOAD_BYTES;
        let frame = Held {
            seq,
            crc32c: crc32c::crc32c(&encoded.payload),
            settled: None,
            encoded,
        };
        self.chain.frames += 1;
        self.chain.bytes += frame.cost();
        self.bytes += frame.cost();
        self.frames.push_back(frame);
        if too_large {
            // What follows would build on it.
            self.key_wanted = true;
            self.give_up(self.frames.len() - 1..self.frames.len());
        }
        self.retire();
        while self.bytes > self.limits.max_bytes.max(MIN_BUFFER_BYTES) {
            let chain = self.first_chain();
            self.key_wanted |= chain == self.frames.len();
            self.give_up(0..chain);
        }
        seq
    }

    /// Where a new session begins to send, given the last number the aggregator's decoder has applied (0:
    /// none). Announcements of gaps begin again too.
    ///
    /// That is the first frame that is not settled if it can be decoded there, else the key frame of its
    /// chain. With nothing to send again and a decoder that has lost its place, the next frame becomes a
    /// key frame.
    pub fn resume(&mut self, decoded_to: u64) -> u64 {
        for gap in &mut self.lost {
            gap.announced_before = None;
        }
        let Some(open) = self.frames.iter().position(|frame| frame.settled.is_none()) else {
            self.key_wanted |= decoded_to.checked_add(1) != Some(self.next_seq);
            return self.next_seq;
        };
        let first = self.frames[open].seq;
        if decoded_to.checked_add(1) == Some(first) {
            return first;
        }
        let key = self
            .frames
            .range(..=open)
            .rposition(|frame| frame.encoded.key);
        key.map_or(first, |at| self.frames[at].seq)
    }

    /// Where a new session begins to send, with two lanes; see [`Plan`].
    ///
    /// A short backlog is caught up with in the live chain. Behind a long one the live chain begins anew, with
    /// the newest chain if that is short and else with the next frame, and the backlog goes beside it.
    pub fn plan(&mut self, decoded_to: u64) -> Plan {
        let first = self.resume(decoded_to);
        let behind = self.bytes_from(first);
        if self.spilled.is_empty() && behind <= CATCH_UP_BYTES {
            return Plan {
                live_from: first,
                aside_from: first,
            };
        }
        let newest_key = self.frames.iter().rfind(|frame| frame.encoded.key);
        let newest = newest_key
            .map(|frame| frame.seq)
            .filter(|seq| *seq >= first);
        let live_from = match newest {
            Some(seq) if self.bytes_from(seq) <= CATCH_UP_BYTES => seq,
            _ => {
                self.key_wanted = true;
                self.next_seq
            }
        };
        // Beside the live chain no decoder stands anywhere yet: from a key frame on.
        let open = self.next_open(0).unwrap_or(self.next_seq);
        let key = self
            .frames
            .iter()
            .rfind(|frame| frame.seq <= open && frame.encoded.key);
        Plan {
            live_from,
            aside_from: key.map_or(open, |frame| frame.seq).min(live_from),
        }
    }

    fn bytes_from(&self, seq: u64) -> usize {
        let at = usize::try_from(seq.saturating_sub(self.first_in_memory())).unwrap_or(usize::MAX);
        let frames = self.frames.range(at.min(self.frames.len())..);
        frames.map(Held::cost).sum()
    }

    /// The first frame from `seq` on that may be sent.
    #[must_use]
    pub fn from(&self, seq: u64) -> Option<&Held> {
        let front = self.frames.front()?.seq;
        let at = usize::try_from(seq.saturating_sub(front)).ok()?;
        if at >= self.frames.len() {
            return None;
        }
        self.frames
            .range(at..)
            .find(|frame| frame.settled != Some(Settled::Rejected))
    }

    /// Notes that the frame was put on a stream.
    pub fn mark_sent(&mut self, seq: u64) {
        self.sent_to = self.sent_to.max(seq);
        for gap in &mut self.lost {
            if gap.announced_before == Some(0) {
                gap.announced_before = Some(seq);
            }
        }
    }

    /// Numbers and bytes of payload that are not settled: first, last, bytes. With nothing held the range
    /// is empty, its first number one above its last.
    #[must_use]
    pub fn spool_range(&self) -> v1::SpoolRange {
        let mut open = self.frames.iter().filter(|frame| frame.settled.is_none());
        let in_memory = open.clone().next().map(|frame| frame.seq);
        let first = self.first_spilled().or(in_memory).unwrap_or(self.next_seq);
        let last = open
            .clone()
            .next_back()
            .map_or(self.next_seq - 1, |frame| frame.seq);
        v1::SpoolRange {
            incarnation: self.incarnation.0,
            first,
            last,
            bytes: open.by_ref().map(Held::payload_bytes).sum(),
        }
    }

    /// The aggregator has `first..=last` on disk. Numbers that were never sent are not believed.
    pub fn release(&mut self, first: u64, last: u64) {
        let last = last.min(self.sent_to);
        if first <= last {
            self.newest_durable = self.newest_durable.max(last);
        }
        self.lost.retain(|gap| {
            !gap.announced_before
                .is_some_and(|seq| seq > 0 && (first..=last).contains(&seq))
        });
        self.settle_spilled(first, last, Settled::Durable);
        for seq in self.held_range(first, last) {
            self.settle(seq, Settled::Durable);
        }
        self.retire();
    }

    /// The aggregator has refused the frame and does not want to see it again. True if it was held.
    pub fn reject(&mut self, seq: u64, reason: v1::RejectReason) -> bool {
        // After these the aggregator's decoder has no state that a delta could build on.
        self.key_wanted |= matches!(
            reason,
            v1::RejectReason::NoKeyFrame
                | v1::RejectReason::Malformed
                | v1::RejectReason::Checksum
                | v1::RejectReason::Future
                | v1::RejectReason::Quota
        );
        if seq > self.sent_to {
            return false;
        }
        let was_held = self.settle_spilled(seq, seq, Settled::Rejected)
            || !self.held_range(seq, seq).is_empty() && self.settle(seq, Settled::Rejected);
        self.retire();
        was_held
    }

    /// Whether the frame still waits for an answer.
    #[must_use]
    pub fn is_open(&self, seq: u64) -> bool {
        self.from(seq)
            .is_some_and(|frame| frame.seq == seq && frame.settled.is_none())
    }

    /// The next gap to announce on this stream, if any. It is announced again on each stream until a frame
    /// sent after it is durable.
    pub fn next_gap(&mut self) -> Option<v1::Gap> {
        let incarnation = self.incarnation.0;
        let gap = self
            .lost
            .iter_mut()
            .find(|gap| gap.announced_before.is_none())?;
        gap.announced_before = Some(0);
        Some(v1::Gap {
            incarnation,
            first: gap.first,
            last: gap.last,
            reason: gap.reason.into(),
            samples: gap.samples,
        })
    }

    /// Whether [`Buffer::next_gap`] has one.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        self.lost.iter().any(|gap| gap.announced_before.is_none())
    }

    /// Samples in the frames in memory of this range that are not settled.
    #[must_use]
    pub fn samples(&self, first: u64, last: u64) -> u64 {
        let within = |frame: &&Held| frame.settled.is_none() && (first..=last).contains(&frame.seq);
        let open = self.frames.iter().filter(within);
        open.map(|frame| frame.encoded.samples).sum()
    }

    /// Of these numbers, as ranges, those that end with the process: not settled, and nothing of them on disk.
    #[must_use]
    pub fn only_in_memory(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut only = RangeSet::new();
        let frames = self.frames.iter();
        let open = frames
            .filter(|frame| frame.settled.is_none())
            .map(Held::seq);
        for seq in open.filter(|seq| (first..=last).contains(seq)) {
            if !self.spooled.contains(seq) && !self.outlined.contains(seq) {
                only.insert(seq);
            }
        }
        only.iter().collect()
    }

    /// Gives up what is in memory, because the process ends. What is on disk stays held.
    pub fn abandon(&mut self) {
        self.key_wanted = true;
        self.give_up(0..self.frames.len());
    }

    fn held_range(&self, first: u64, last: u64) -> std::ops::RangeInclusive<u64> {
        let front = self.frames.front().map_or(self.next_seq, |frame| frame.seq);
        first.max(front)..=last.min(self.next_seq - 1)
    }

    /// Notes that frames are settled that are only on disk; true if there were any.
    fn settle_spilled(&mut self, first: u64, last: u64, how: Settled) -> bool {
        let mut any = false;
        while let Some(seq) = self.spilled.next_present(first)
            && seq <= last
        {
            self.spilled.remove(seq);
            self.spooled.remove(seq);
            self.outlined.remove(seq);
            self.count(how);
            any = true;
        }
        any
    }

    fn count(&mut self, how: Settled) {
        self.books.held -= 1;
        match how {
            Settled::Durable => self.books.durable += 1,
            Settled::Rejected => self.books.rejected += 1,
        }
    }

    fn settle(&mut self, seq: u64, how: Settled) -> bool {
        let Some(front) = self.frames.front().map(|frame| frame.seq) else {
            return false;
        };
        let Some(frame) = usize::try_from(seq - front)
            .ok()
            .and_then(|at| self.frames.get_mut(at))
        else {
            return false;
        };
        if frame.settled.is_some() {
            return false;
        }
        frame.settled = Some(how);
        self.spooled.remove(seq);
        self.outlined.remove(seq);
        self.count(how);
        true
    }

    /// Number of frames of the oldest chain.
    fn first_chain(&self) -> usize {
        let next = self
            .frames
            .iter()
            .skip(1)
            .position(|frame| frame.encoded.key);
        next.map_or(self.frames.len(), |at| at + 1)
    }

    /// Lets go of finished chains of which all is settled.
    fn retire(&mut self) {
        loop {
            let chain = self.first_chain();
            if chain == self.frames.len() {
                return;
            }
            if self
                .frames
                .range(..chain)
                .any(|frame| frame.settled.is_none())
            {
                return;
            }
            self.give_up(0..chain);
        }
    }

    /// Removes frames from memory; those that are neither settled nor on disk are lost.
    fn give_up(&mut self, places: std::ops::Range<usize>) {
        let gone: Vec<Held> = self.frames.drain(places).collect();
        for frame in gone {
            self.bytes -= frame.cost();
            if frame.settled.is_some() {
                continue;
            }
            if self.spooled.contains(frame.seq) || self.outlined.contains(frame.seq) {
                self.spilled.insert(frame.seq);
                continue;
            }
            self.books.held -= 1;
            self.lose(frame.seq, frame.encoded.samples, self.loss_reason);
        }
    }

    /// Counts a frame that will never be sent, and keeps in mind to say so.
    fn lose(&mut self, seq: u64, samples: u64, reason: v1::GapReason) {
        self.books.lost += 1;
        match reason {
            v1::GapReason::Age => self.books.lost_age += 1,
            v1::GapReason::Corrupt => self.books.lost_corrupt += 1,
            v1::GapReason::DiskError => self.books.lost_disk += 1,
            v1::GapReason::Full | v1::GapReason::Unspecified => {}
        }
        let at = self.lost.partition_point(|gap| gap.first <= seq);
        let before = at.checked_sub(1).map(|before| &mut self.lost[before]);
        match before {
            Some(gap)
                if gap.last + 1 == seq
                    && gap.reason == reason
                    && gap.announced_before.is_none() =>
            {
                gap.last = seq;
                gap.samples += samples;
            }
            _ => self.lost.insert(
                at,
                Lost {
                    first: seq,
                    last: seq,
                    samples,
                    reason,
                    announced_before: None,
                },
            ),
        }
        if self.lost.len() > MAX_GAPS {
            // What lies between and comes after all counts as stored: the aggregator keeps what it has.
            let second = self.lost.remove(1);
            self.lost[0].last = second.last;
            self.lost[0].samples += second.samples;
            self.lost[0].announced_before = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(key: bool, payload_bytes: usize) -> Encoded {
        Encoded {
            tick: Timestamp::from_millis(0),
            boottime_ms: 0,
            payload: vec![1; payload_bytes].into(),
            key,
            samples: 3,
        }
    }

    fn buffer() -> Buffer {
        let limits = BufferLimits {
            max_bytes: MIN_BUFFER_BYTES,
            ..BufferLimits::default()
        };
        Buffer::new(Incarnation(7), limits)
    }

    /// A buffer with frames of 10 bytes; `k` is a key frame, `d` a delta. All are marked as sent.
    fn filled(kinds: &str) -> Buffer {
        let mut buffer = buffer();
        for kind in kinds.chars() {
            let seq = buffer.append(encoded(kind == 'k', 10));
            buffer.mark_sent(seq);
        }
        buffer
    }

    #[test]
    fn a_session_resumes_where_it_decodes() {
        // (frames, durable up to, decoded to, first sent, key frame wanted)
        for (kinds, durable, decoded, first, key) in [
            ("kddd", 0, 0, 1, false),
            ("kddd", 2, 2, 3, false),
            ("kddd", 2, 0, 1, false),
            ("kddd", 2, 4, 1, false),
            ("kddkd", 4, 0, 4, false),
            ("kddkd", 3, 0, 4, false),
            ("kddd", 4, 4, 5, false),
            ("kddd", 4, 0, 5, true),
            ("kddd", 4, u64::MAX, 5, true),
        ] {
            let mut buffer = filled(kinds);
            buffer.release(1, durable);
            assert_eq!(buffer.resume(decoded), first, "{kinds} {durable} {decoded}");
            assert_eq!(buffer.key_wanted, key, "{kinds} {durable} {decoded}");
        }
    }

    #[test]
    fn a_full_buffer_gives_up_its_oldest_chain_whole() {
        let mut buffer = buffer();
        let large = limits::MAX_PAYLOAD_BYTES / 2;
        for kind in [true, false, true, false] {
            buffer.append(encoded(kind, large));
        }
        let gap = buffer.next_gap().expect("the first chain is gone");
        assert_eq!((gap.first, gap.last, gap.samples), (1, 2, 6));
        assert_eq!(buffer.from(1).map(Held::seq), Some(3));
        assert_eq!(buffer.books().lost, 2);
        assert!(!buffer.needs_key(Timestamp::from_millis(0)) || buffer.chain.bytes > 0);
    }

    #[test]
    fn a_gap_is_announced_until_a_frame_after_it_is_durable() {
        let mut buffer = filled("k");
        buffer.give_up(0..1);
        assert!(buffer.next_gap().is_some() && buffer.next_gap().is_none());
        buffer.resume(0);
        assert!(buffer.next_gap().is_some());
        let seq = buffer.append(encoded(true, 10));
        buffer.mark_sent(seq);
        buffer.release(seq, seq);
        buffer.resume(seq);
        assert!(buffer.next_gap().is_none());
    }

    #[test]
    fn what_ends_with_the_process_is_what_is_neither_settled_nor_on_disk() {
        let mut buffer = filled("kdddkdd");
        buffer.release(1, 2);
        buffer.told(Event::Durable { first: 4, last: 4 });
        buffer.told(Event::Outlined(6));
        assert_eq!(buffer.only_in_memory(1, 9), [(3, 3), (5, 5), (7, 7)]);
        assert_eq!(buffer.only_in_memory(4, 6), [(5, 5)]);
    }

    #[test]
    fn numbers_that_were_never_sent_are_not_let_go() {
        let mut buffer = filled("kd");
        buffer.append(encoded(false, 10));
        buffer.release(0, u64::MAX);
        assert_eq!((buffer.books().durable, buffer.books().held), (2, 1));
    }

    #[test]
    fn a_payload_beyond_the_limit_is_lost_and_the_next_is_a_key_frame() {
        let mut buffer = filled("k");
        buffer.append(encoded(false, limits::MAX_PAYLOAD_BYTES + 1));
        assert_eq!(buffer.books().lost, 1);
        assert!(buffer.needs_key(Timestamp::from_millis(0)));
    }

    #[test]
    fn chains_end_by_count_and_by_age() {
        let mut buffer = filled("k");
        assert!(!buffer.needs_key(Timestamp::from_millis(599_999)));
        assert!(buffer.needs_key(Timestamp::from_millis(600_000)));
        for _ in 1..360 {
            assert!(!buffer.needs_key(Timestamp::from_millis(0)));
            buffer.append(encoded(false, 1));
        }
        assert!(buffer.needs_key(Timestamp::from_millis(0)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(usize),
        Sent(u64),
        Release(u64, u64),
        Reject(u64),
        Resume(u64),
        Gap,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            5 => (1usize..200_000).prop_map(Step::Append),
            3 => (1u64..80).prop_map(Step::Sent),
            3 => (0u64..80, 0u64..20).prop_map(|(first, more)| Step::Release(first, first + more)),
            1 => (0u64..80).prop_map(Step::Reject),
            1 => (0u64..80).prop_map(Step::Resume),
            1 => Just(Step::Gap),
        ];
        prop::collection::vec(one, 0..120)
    }

    proptest! {
        /// The books balance, the bound holds, and all that is sent after a resumption decodes.
        #[test]
        fn the_books_balance(steps in steps()) {
            let mut buffer = buffer();
            for step in steps {
                match step {
                    Step::Append(bytes) => {
                        let key = buffer.needs_key(Timestamp::from_millis(0));
                        buffer.append(encoded(key, bytes));
                    }
                    Step::Sent(seq) => buffer.mark_sent(seq.min(buffer.last_seq())),
                    Step::Release(first, last) => buffer.release(first, last),
                    Step::Reject(seq) => {
                        buffer.reject(seq, v1::RejectReason::Quota);
                    }
                    Step::Resume(decoded) => {
                        let first = buffer.resume(decoded);
                        if let Some(frame) = buffer.from(first) && frame.seq == first {
                            prop_assert!(frame.encoded.key || first == decoded + 1);
                        }
                    }
                    Step::Gap => {
                        buffer.next_gap();
                    }
                }
                let books = buffer.books();
                prop_assert_eq!(books.produced, buffer.last_seq());
                prop_assert_eq!(books.produced, books.durable + books.rejected + books.lost + books.held);
                let open = buffer.frames.iter().filter(|frame| frame.settled.is_none()).count();
                prop_assert_eq!(books.held, open as u64);
                prop_assert!(buffer.bytes <= MIN_BUFFER_BYTES);
                prop_assert_eq!(buffer.bytes, buffer.frames.iter().map(Held::cost).sum::<usize>());
                prop_assert!(buffer.frames.front().is_none_or(|frame| frame.encoded.key));
                prop_assert!(buffer.lost.len() <= MAX_GAPS);
            }
        }
    }
}
