//! What is in the folder when a log is opened, and what is done about damage.
//!
//! Contents never stop a start. Only two things do: a folder that cannot be listed, and a segment of a
//! newer program, which is found before anything is changed. Every repair is safe to interrupt at any
//! operation, and a repair the disk does not allow is left for the next start: the readable records are
//! the same with or without it.

use std::io;
use std::ops::{Range, RangeInclusive};

use super::format::{
    HEADER_BYTES, MAX_PAYLOAD_BYTES, Name, RECORD_BYTES, bad_name, record_at, segment_name,
    temporary_name,
};
use super::scan::{Opened, Scanner, Step, read_full};
use super::storage::Storage;
use super::{LogConfig, LogError, Segment};

/// Most `.bad` files kept in a folder: enough for a person to look at, never a leak.
pub const MAX_SET_ASIDE: usize = 3;

/// How far numbering jumps over a last segment that the disk does not give back. No segment holds as
/// many records, so no number is ever used twice.
const UNKNOWN_RECORDS: u64 = 1 << 32;

/// What was found, and done, when a log was opened.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Recovery {
    /// Records that can be read.
    pub records: u64,
    /// Bytes cut from the end of the last segment: a write that a crash interrupted. They were never
    /// reported durable, so this is no loss.
    pub torn_bytes: u64,
    /// Segments found damaged by this start, oldest first.
    pub quarantined: Vec<Quarantined>,
    /// Record numbers that cannot be read, whenever they were lost; released ones are not counted.
    pub missing: Vec<RangeInclusive<u64>>,
}

/// One damaged segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Quarantined {
    /// File name of the segment.
    pub segment: String,
    /// First record number that is lost; those before it in the segment stay readable.
    pub first: u64,
    /// Last record number that is lost, as far as can be known.
    pub last: Option<u64>,
    /// Name of the `.bad` file with the damaged bytes. `None` when the disk did not give them, or not
    /// the room to copy them: then they stay in the segment and the next start tries again.
    pub set_aside: Option<String>,
}

/// What the log goes on with.
pub(super) struct Recovered {
    pub(super) segments: Vec<Segment>,
    pub(super) next: u64,
    /// Bytes of this stream's `.bad` files.
    pub(super) bad_bytes: u64,
    pub(super) recovery: Recovery,
}

/// This stream's files by what they are, in order of their numbers.
struct Inventory {
    segments: Vec<u64>,
    bad: Vec<(u64, u64)>,
    temporary: Vec<String>,
}

pub(super) fn recover<S: Storage>(storage: &S, config: &LogConfig) -> Result<Recovered, LogError> {
    let inventory = take_inventory(storage, config.stream)?;
    refuse_newer(storage, config.stream, &inventory.segments)?;
    for name in &inventory.temporary {
        // Worth nothing, and removed again before its name is used; only space is at stake.
        let _ = storage.remove(name);
    }
    let mut work = Repair {
        storage,
        stream: config.stream,
        segments: Vec::new(),
        next: config.next_at_least.max(1),
        recovery: Recovery::default(),
    };
    for (_, last) in &inventory.bad {
        work.next = work.next.max(last + 1);
    }
    for (index, &first) in inventory.segments.iter().enumerate() {
        let following = inventory.segments.get(index + 1).copied();
        let bad = inventory.bad.iter().map(|(bad, _)| *bad);
        let limit = following
            .into_iter()
            .chain(bad.filter(|bad| *bad > first))
            .min();
        work.segment(first, limit);
    }
    let bad_bytes = limit_set_aside(storage, config.stream);
    Ok(work.finish(bad_bytes))
}

fn take_inventory<S: Storage>(storage: &S, stream: u64) -> Result<Inventory, LogError> {
    let names = storage
        .list()
        .map_err(|source| LogError::io(storage, "list the files of", ".", source))?;
    let mut inventory = Inventory {
        segments: Vec::new(),
        bad: Vec::new(),
        temporary: Vec::new(),
    };
    for text in names {
        match Name::parse(&text) {
            Some(name) if name.stream() != stream => {}
            Some(Name::Segment { first, .. }) => inventory.segments.push(first),
            Some(Name::Bad { first, last, .. }) => inventory.bad.push((first, last)),
            Some(Name::Temporary { .. }) => inventory.temporary.push(text),
            None => {}
        }
    }
    inventory.segments.sort_unstable();
    inventory.bad.sort_unstable();
    Ok(inventory)
}

fn refuse_newer<S: Storage>(storage: &S, stream: u64, segments: &[u64]) -> Result<(), LogError> {
    for &first in segments {
        let name = segment_name(stream, first);
        if let Opened::Newer(version) = Scanner::open(storage, &name) {
            return Err(LogError::NewerVersion {
                folder: storage.folder().to_owned(),
                name,
                version,
            });
        }
    }
    Ok(())
}

/// Names beyond [`MAX_SET_ASIDE`] are removed, other streams' first and then the oldest. The newest stays,
/// because its name says which numbers must not be used again. Returns the bytes this stream keeps.
fn limit_set_aside<S: Storage>(storage: &S, stream: u64) -> u64 {
    let mut bad: Vec<(bool, String)> = storage
        .list()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|text| match Name::parse(&text)? {
            name @ Name::Bad { .. } => Some((name.stream() == stream, text)),
            Name::Segment { .. } | Name::Temporary { .. } => None,
        })
        .collect();
    bad.sort_unstable();
    let surplus = bad.len().saturating_sub(MAX_SET_ASIDE);
    for (_, name) in bad.drain(..surplus) {
        // A file too many is no reason not to start.
        let _ = storage.remove(&name);
    }
    let own = bad.iter().filter(|(own, _)| *own);
    own.map(|(_, name)| length(storage, name).unwrap_or(0))
        .sum()
}

fn length<S: Storage>(storage: &S, name: &str) -> io::Result<u64> {
    storage.len(&storage.open(name)?)
}

struct Repair<'s, S: Storage> {
    storage: &'s S,
    stream: u64,
    segments: Vec<Segment>,
    next: u64,
    recovery: Recovery,
}

impl<S: Storage> Repair<'_, S> {
    /// Judges one segment. `limit` is where the numbers of the following file begin: a segment has to be
    /// whole only up to there, since what comes after was written again in that file.
    fn segment(&mut self, first: u64, limit: Option<u64>) {
        let name = segment_name(self.stream, first);
        let mut scanner = match Scanner::open(self.storage, &name) {
            Opened::Scanner(scanner) => scanner,
            Opened::Unreadable(_) => return self.unreadable(name, first, limit),
            Opened::Damaged | Opened::Newer(_) => return self.bad_header(&name, first, limit),
        };
        let fault = loop {
            if limit.is_some_and(|limit| scanner.next_number() >= limit) {
                break None;
            }
            match scanner.step() {
                Step::Record { .. } => {}
                Step::End => break None,
                Step::Damaged => break Some(true),
                Step::Unreadable(_) => break Some(false),
            }
        };
        let (end, offset) = (scanner.next_number(), scanner.offset());
        let len = scanner.len().max(offset);
        let created = scanner.header().created;
        drop(scanner);
        self.next = self.next.max(end);
        let bytes = match fault {
            None => len,
            Some(false) => {
                self.unreadable(name, end, limit);
                len
            }
            Some(true) => self.bad_record(name, end, offset..len, limit),
        };
        if bytes > 0 {
            self.recovery.records += end - first;
            self.segments.push(Segment {
                first,
                end,
                bytes,
                created,
            });
        }
    }

    /// The bytes may come back (a cable, a controller), so the file stays as it is.
    fn unreadable(&mut self, segment: String, first: u64, limit: Option<u64>) {
        self.next = self
            .next
            .max(limit.unwrap_or(first.saturating_add(UNKNOWN_RECORDS)));
        let last = limit.map(|limit| limit - 1);
        self.recovery.quarantined.push(Quarantined {
            segment,
            first,
            last,
            set_aside: None,
        });
    }

    /// Without its header nothing in the file is trusted; the whole file is set aside.
    fn bad_header(&mut self, name: &str, first: u64, limit: Option<u64>) {
        let last = match limit {
            Some(limit) => limit - 1,
            None => match self.highest_number(name, first, HEADER_BYTES as u64) {
                Some(highest) => highest,
                None => first + most_records(length(self.storage, name)),
            },
        };
        self.next = self.next.max(last + 1);
        let set_aside = self.set_aside_whole(name, first, last);
        self.quarantine(name, first, last, set_aside);
    }

    /// Good records up to `end`, then damage. Returns the bytes the segment keeps, 0 if it is gone.
    fn bad_record(
        &mut self,
        name: String,
        end: u64,
        damage: Range<u64>,
        limit: Option<u64>,
    ) -> u64 {
        let last = match limit {
            Some(limit) => Some(limit - 1),
            None => self.highest_number(&name, end, damage.start),
        };
        let Some(last) = last else {
            // The end of the newest segment and no record behind it: a torn write.
            self.recovery.torn_bytes += damage.end - damage.start;
            let cut = self.storage.truncate(&name, damage.start);
            return if cut.is_ok() {
                damage.start
            } else {
                damage.end
            };
        };
        self.next = self.next.max(last + 1);
        if damage.start == HEADER_BYTES as u64 {
            let set_aside = self.set_aside_whole(&name, end, last);
            let gone = set_aside.is_some();
            self.quarantine(&name, end, last, set_aside);
            return if gone { 0 } else { damage.end };
        }
        let set_aside = self.set_aside_rest(&name, end, last, damage.clone());
        // The good records stay; the damaged bytes go only once their copy is safe.
        let cut = set_aside.is_some() && self.storage.truncate(&name, damage.start).is_ok();
        self.quarantine(&name, end, last, set_aside);
        if cut { damage.start } else { damage.end }
    }

    fn quarantine(&mut self, name: &str, first: u64, last: u64, set_aside: Option<String>) {
        self.recovery.quarantined.push(Quarantined {
            segment: name.to_owned(),
            first,
            last: Some(last),
            set_aside,
        });
    }

    fn set_aside_whole(&self, name: &str, first: u64, last: u64) -> Option<String> {
        let bad = bad_name(self.stream, first, last);
        self.storage.rename(name, &bad).ok()?;
        // Undone by a crash, it is simply done again.
        let _ = self.storage.sync_folder();
        Some(bad)
    }

    fn set_aside_rest(
        &self,
        name: &str,
        first: u64,
        last: u64,
        damage: Range<u64>,
    ) -> Option<String> {
        let bad = bad_name(self.stream, first, last);
        let temporary = temporary_name(self.stream, first);
        let copied = self.copy(name, damage, &temporary).and_then(|()| {
            self.storage.rename(&temporary, &bad)?;
            self.storage.sync_folder()
        });
        if copied.is_err() {
            // Whatever is left of it goes with the next start's temporary files.
            let _ = self.storage.remove(&temporary);
            return None;
        }
        Some(bad)
    }

    fn copy(&self, name: &str, range: Range<u64>, to: &str) -> io::Result<()> {
        let source = self.storage.open(name)?;
        let mut target = self.storage.create(to)?;
        let mut window = vec![0; 64 * 1024];
        let mut offset = range.start;
        while offset < range.end {
            let read = read_full(self.storage, &source, offset, &mut window)?;
            if read == 0 {
                break;
            }
            super::append_all(self.storage, &mut target, &window[..read])?;
            offset += read as u64;
        }
        self.storage.sync(&mut target)
    }

    /// The highest number from `expected` on of any whole record that begins at or after `offset`. Found
    /// behind damage, it says that more than a torn write was lost.
    fn highest_number(&self, name: &str, expected: u64, offset: u64) -> Option<u64> {
        let file = self.storage.open(name).ok()?;
        let len = self.storage.len(&file).ok()?.saturating_sub(offset);
        let mut window = vec![0; SEARCH_BYTES.min(usize::try_from(len).ok()?)];
        let possible = expected..=expected.saturating_add(len / RECORD_BYTES as u64);
        let mut base = offset;
        let mut highest = None;
        loop {
            let read = read_full(self.storage, &file, base, &mut window).unwrap_or(0);
            let window = &window[..read];
            for at in 0..read.saturating_sub(RECORD_BYTES - 1) {
                let number = window[at + 4..]
                    .first_chunk()
                    .map(|b| u64::from_le_bytes(*b));
                if number.is_some_and(|number| possible.contains(&number) && highest < Some(number))
                    && let Some((record, _)) = record_at(window, at)
                {
                    highest = Some(record.number);
                }
            }
            if read < SEARCH_BYTES {
                return highest;
            }
            // Windows overlap by the longest record, so that each is whole in one of them.
            base += (SEARCH_BYTES - LONGEST_RECORD_BYTES) as u64;
        }
    }

    fn finish(mut self, bad_bytes: u64) -> Recovered {
        let earliest = self.recovery.quarantined.first().map(|bad| bad.first);
        let mut expected = earliest.unwrap_or(u64::MAX);
        expected = expected.min(
            self.segments
                .first()
                .map_or(self.next, |segment| segment.first),
        );
        for segment in &self.segments {
            if segment.first > expected {
                self.recovery.missing.push(expected..=segment.first - 1);
            }
            expected = expected.max(segment.end);
        }
        if self.next > expected {
            self.recovery.missing.push(expected..=self.next - 1);
        }
        Recovered {
            segments: self.segments,
            next: self.next,
            bad_bytes,
            recovery: self.recovery,
        }
    }
}

/// Most records a file of this length can hold.
fn most_records(len: io::Result<u64>) -> u64 {
    len.map_or(UNKNOWN_RECORDS, |len| len / RECORD_BYTES as u64)
}

/// Longest record with its header, in bytes.
const LONGEST_RECORD_BYTES: usize = RECORD_BYTES + MAX_PAYLOAD_BYTES;

/// Memory of the search behind damage: twice the longest record, so that overlapping costs half.
const SEARCH_BYTES: usize = 2 * LONGEST_RECORD_BYTES;
