//! What outlives the bulk of a spool: a small log of its own, at most 256 KiB on disk.
//!
//! Two things are kept there. Of each frame in which something happened its *outline*: the same number, the same
//! tick, the events and no samples. It is sent in the place of its frame when that is dropped for lack of room, by
//! age, by damage, or by a disk that does not take it; so what happened is known when the samples are gone. And of
//! each earlier incarnation its *end*: the last number it is known to have given, until the aggregator has noted it.
//!
//! What it promises: an entry stays until it is settled or, with more than 128 KiB of outlines, the oldest goes,
//! which is told to the caller. Entries are in memory and, as far as the disk takes them, on disk; a start never
//! fails because of what is there. The log is stream 0 of the spool's folder; records of kind 3 are outlines (number
//! of the incarnation, then as in `record`), of kind 4 ends (number of the incarnation, last frame), little endian.

use std::collections::VecDeque;

use muster_proto::{
    id::Incarnation,
    log::{Log, LogConfig, LogError, Record, Storage},
    v1,
};

use super::record::Spooled;

/// The log's stream. No incarnation has this number.
pub(super) const STREAM: u64 = 0;

/// Bytes on disk above which what is still wanted is written anew behind the rest.
const MAX_DISK_BYTES: u64 = 256 << 10;
/// Bytes of outlines that are kept. Half of the above, so that writing anew always makes room.
const MAX_KEPT_BYTES: usize = 128 << 10;
/// Larger outlines are not kept: one frame must not push out all others.
pub(super) const MAX_OUTLINE_BYTES: usize = 32 << 10;
/// Small, so that little is carried along with what is wanted.
const SEGMENT_BYTES: u64 = 32 << 10;
/// Ends that are kept; design/delivery.md §2.
const MAX_ENDS: usize = 64;

/// Kinds of records.
const OUTLINE: u8 = 3;
const END: u8 = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Outline(Spooled),
    End(u64),
}

#[derive(Debug)]
struct Entry {
    incarnation: Incarnation,
    what: What,
    /// Its number in the log, once it is there.
    record: Option<u64>,
    /// Given out in this session.
    sent: bool,
}

impl Entry {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Outline(frame) => frame.payload.len() + 64,
            What::End(_) => 0,
        }
    }

    fn seq(&self) -> Option<u64> {
        match &self.what {
            What::Outline(frame) => Some(frame.seq),
            What::End(_) => None,
        }
    }

    fn is_end(&self) -> bool {
        matches!(self.what, What::End(_))
    }

    fn encode(&self, out: &mut Vec<u8>) -> u8 {
        let mut frame = Vec::new();
        let kind = match &self.what {
            What::Outline(outline) => {
                outline.encode(&mut frame);
                OUTLINE
            }
            What::End(last) => {
                frame.extend(last.to_le_bytes());
                END
            }
        };
        out.clear();
        out.extend(self.incarnation.0.to_le_bytes());
        out.extend(frame);
        kind
    }

    fn decode(record: &Record) -> Option<Self> {
        let (incarnation, rest) = record.payload.split_first_chunk::<8>()?;
        let what = match record.kind {
            OUTLINE => What::Outline(Spooled::decode_key(rest)?),
            END => What::End(u64::from_le_bytes(rest.try_into().ok()?)),
            _ => return None,
        };
        Some(Self {
            incarnation: Incarnation(u64::from_le_bytes(*incarnation)),
            what,
            record: Some(record.number),
            sent: false,
        })
    }
}

/// See the head of this file.
pub(super) struct Ledger<S: Storage> {
    /// `None` when it cannot be read: then entries are in memory only.
    log: Option<Log<S>>,
    /// Oldest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    scratch: Vec<u8>,
}

impl<S: Storage> Ledger<S> {
    /// Reads what is there.
    ///
    /// # Errors
    /// If a newer program has written there.
    pub(super) fn open(storage: S) -> Result<Self, LogError> {
        let config = LogConfig {
            stream: STREAM,
            segment_bytes: SEGMENT_BYTES,
            pending_bytes_max: 2 * MAX_KEPT_BYTES,
            next_at_least: 1,
        };
        let log = match Log::open(storage, config) {
            Ok((log, _)) => Some(log),
            Err(error @ LogError::NewerVersion { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "what happened is not kept apart from the samples on disk");
                None
            }
        };
        let mut ledger = Self {
            log: None,
            entries: VecDeque::new(),
            bytes: 0,
            scratch: Vec::new(),
        };
        for record in log.iter().flat_map(|log| log.read_from(1)).flatten() {
            if let Some(entry) = Entry::decode(&record) {
                ledger.take(entry);
            }
        }
        ledger.log = log;
        Ok(ledger)
    }

    /// Takes an entry in, in the place of the one it repeats if there is one.
    fn take(&mut self, entry: Entry) {
        let known = self
            .entries
            .iter_mut()
            .find(|known| (known.incarnation, known.seq()) == (entry.incarnation, entry.seq()));
        match known {
            Some(known) => known.record = entry.record,
            None => {
                self.bytes += entry.bytes();
                self.entries.push_back(entry);
            }
        }
    }

    /// Bytes on disk.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        self.log.as_ref().map_or(0, Log::bytes_on_disk)
    }

    /// Keeps an outline. Gives those that went for it.
    pub(super) fn keep(
        &mut self,
        incarnation: Incarnation,
        outline: Spooled,
    ) -> Vec<(Incarnation, u64)> {
        self.take(Entry {
            incarnation,
            what: What::Outline(outline),
            record: None,
            sent: false,
        });
        let mut gone = Vec::new();
        while self.bytes > MAX_KEPT_BYTES
            && let Some(at) = self.entries.iter().position(|entry| !entry.is_end())
            && let Some(entry) = self.entries.remove(at)
        {
            self.bytes -= entry.bytes();
            gone.extend(entry.seq().map(|seq| (entry.incarnation, seq)));
        }
        gone
    }

    /// Notes where an earlier incarnation ended, until that is confirmed.
    pub(super) fn end(&mut self, incarnation: Incarnation, last: u64) {
        let ends = |entry: &Entry| entry.is_end();
        if last == 0 {
            return;
        }
        if self.entries.iter().filter(|entry| ends(entry)).count() >= MAX_ENDS
            && let Some(oldest) = self.entries.iter().position(ends)
        {
            self.entries.remove(oldest);
        }
        self.take(Entry {
            incarnation,
            what: What::End(last),
            record: None,
            sent: false,
        });
    }

    /// The aggregator has noted the end of an incarnation.
    pub(super) fn confirm(&mut self, incarnation: Incarnation) {
        self.entries
            .retain(|entry| entry.incarnation != incarnation || !entry.is_end());
    }

    /// These frames need not be told of any more.
    pub(super) fn settle(&mut self, incarnation: Incarnation, first: u64, last: u64) {
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            let settled = entry.incarnation == incarnation
                && entry.seq().is_some_and(|seq| (first..=last).contains(&seq));
            if settled {
                *bytes -= entry.bytes();
            }
            !settled
        });
    }

    /// Numbers of outlines of an incarnation, ascending.
    pub(super) fn outlined(&self, incarnation: Incarnation) -> Vec<u64> {
        let of_it = |entry: &&Entry| entry.incarnation == incarnation;
        let mut seqs: Vec<u64> = self
            .entries
            .iter()
            .filter(of_it)
            .filter_map(Entry::seq)
            .collect();
        seqs.sort_unstable();
        seqs
    }

    /// Incarnations of which there are outlines, oldest first.
    pub(super) fn incarnations(&self) -> Vec<Incarnation> {
        let mut all = Vec::new();
        for entry in self.entries.iter().filter(|entry| !entry.is_end()) {
            if !all.contains(&entry.incarnation) {
                all.push(entry.incarnation);
            }
        }
        all
    }

    /// A session begins: everything may be given out again.
    pub(super) fn rewind(&mut self) {
        for entry in &mut self.entries {
            entry.sent = false;
        }
    }

    /// The next outline that was not given out in this session and that is `wanted`.
    pub(super) fn next_outline(
        &self,
        wanted: impl Fn(Incarnation, u64) -> bool,
    ) -> Option<(Incarnation, &Spooled)> {
        self.entries.iter().find_map(|entry| match &entry.what {
            What::Outline(frame) if !entry.sent && wanted(entry.incarnation, frame.seq) => {
                Some((entry.incarnation, frame))
            }
            _ => None,
        })
    }

    /// The outline was given out.
    pub(super) fn outline_sent(&mut self, incarnation: Incarnation, seq: u64) {
        for entry in &mut self.entries {
            entry.sent |= entry.incarnation == incarnation && entry.seq() == Some(seq);
        }
    }

    /// Ends that were not given out in this session and that are `wanted`, each as the message that says it.
    pub(super) fn ends(
        &self,
        wanted: impl Fn(Incarnation) -> bool,
    ) -> impl Iterator<Item = v1::Fin> {
        let fins = self.entries.iter().filter_map(move |entry| {
            let What::End(last_seq) = entry.what else {
                return None;
            };
            (!entry.sent && wanted(entry.incarnation)).then(|| v1::Fin {
                incarnation: entry.incarnation.0,
                last_seq,
                reason: v1::FinReason::Unspecified.into(),
                complete: true,
            })
        });
        fins.collect::<Vec<_>>().into_iter()
    }

    /// The end of an incarnation was given out.
    pub(super) fn end_sent(&mut self, incarnation: Incarnation) {
        for entry in &mut self.entries {
            entry.sent |= entry.incarnation == incarnation && entry.is_end();
        }
    }

    /// Hands what is not on disk yet to the operating system, and lets go of what is not wanted.
    ///
    /// # Errors
    /// When the disk refuses; all stays in memory.
    pub(super) fn write(&mut self) -> Result<(), LogError> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let mut any = false;
        for entry in self
            .entries
            .iter_mut()
            .filter(|entry| entry.record.is_none())
        {
            let kind = entry.encode(&mut self.scratch);
            entry.record = Some(log.append(kind, &self.scratch)?);
            any = true;
        }
        if any {
            log.flush()?;
        }
        let oldest = self.entries.iter().filter_map(|entry| entry.record).min();
        log.release_before(oldest.unwrap_or(log.next()))?;
        self.make_room()
    }

    /// Writes what is wanted of the oldest segments anew, so that those can go.
    fn make_room(&mut self) -> Result<(), LogError> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let segments = log.segments().len();
        for _ in 1..segments {
            if log.bytes_on_disk() <= MAX_DISK_BYTES {
                break;
            }
            let Some(end) = log.segments().next().map(|segment| segment.end) else {
                break;
            };
            for entry in &mut self.entries {
                if entry.record.is_some_and(|record| record < end) {
                    let kind = entry.encode(&mut self.scratch);
                    entry.record = Some(log.append(kind, &self.scratch)?);
                }
            }
            log.commit()?;
            log.release_before(end)?;
        }
        Ok(())
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// When the disk refuses; all stays in memory.
    pub(super) fn commit(&mut self) -> Result<(), LogError> {
        self.write()?;
        match &mut self.log {
            Some(log) if log.pending_bytes() > 0 => log.commit().map(drop),
            _ => Ok(()),
        }
    }

    /// Gives up what the disk has not taken: it is written again when the disk is well.
    pub(super) fn forget_pending(&mut self) {
        if let Some(log) = &mut self.log {
            let durable = log.durable();
            log.forget_pending();
            for entry in &mut self.entries {
                entry.record = entry.record.filter(|record| *record <= durable);
            }
        }
    }
}
