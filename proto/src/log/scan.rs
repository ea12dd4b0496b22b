//! Walks one segment from its header, record by record, through a small window of memory.
//!
//! Recovery and reading see a segment only through [`Scanner`], so what counts as damage is decided
//! here alone: a record is good when it is whole, its checksum holds and it has the number after the
//! one before it.

use std::io;

use super::format::{HEADER_BYTES, Header, HeaderFault, Name, RECORD_BYTES, RecordHeader};
use super::storage::Storage;

/// Bytes read at a time. Large enough that a 16 MiB segment takes 128 calls, small enough for an agent
/// of a few MiB; a longer record makes the window grow to hold it.
const WINDOW_BYTES: usize = 128 * 1024;

/// How often a file is opened or read before it is given up: a bad sector stays bad, a hiccup of the bus
/// does not, and giving up costs records.
const READ_ATTEMPTS: u32 = 3;

/// What stands at the scanner's position.
pub(super) enum Step<'a> {
    /// A good record.
    Record {
        number: u64,
        kind: u8,
        payload: &'a [u8],
    },
    /// The file ends where a record ends.
    End,
    /// Something else than the next record, or part of one.
    Damaged,
    /// The disk does not give the bytes.
    Unreadable(io::Error),
}

/// What a segment's header turned out to be.
pub(super) enum Opened<'s, S: Storage> {
    Scanner(Scanner<'s, S>),
    Damaged,
    Newer(u16),
    Unreadable(io::Error),
}

/// A position in a segment.
pub(super) struct Scanner<'s, S: Storage> {
    storage: &'s S,
    file: S::File,
    /// Length of the file in bytes.
    len: u64,
    header: Header,
    window: Vec<u8>,
    /// Offset in the file of the first byte of the window.
    base: u64,
    /// Where the next record begins in the window.
    at: usize,
    /// The number it must have.
    next: u64,
}

impl<'s, S: Storage> Scanner<'s, S> {
    /// Opens a segment and checks its header against its name.
    pub(super) fn open(storage: &'s S, name: &str) -> Opened<'s, S> {
        let file = match attempt(|| storage.open(name)) {
            Ok(file) => file,
            Err(error) => return Opened::Unreadable(error),
        };
        let len = match attempt(|| storage.len(&file)) {
            Ok(len) => len,
            Err(error) => return Opened::Unreadable(error),
        };
        let mut bytes = [0; HEADER_BYTES];
        match read_full(storage, &file, 0, &mut bytes) {
            Ok(HEADER_BYTES) => {}
            Ok(_) => return Opened::Damaged,
            Err(error) => return Opened::Unreadable(error),
        }
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(HeaderFault::Newer(version)) => return Opened::Newer(version),
            Err(HeaderFault::Damaged) => return Opened::Damaged,
        };
        let Header { stream, first, .. } = header;
        if Name::parse(name) != Some(Name::Segment { stream, first }) {
            return Opened::Damaged;
        }
        Opened::Scanner(Self {
            storage,
            file,
            len,
            header,
            window: Vec::new(),
            base: HEADER_BYTES as u64,
            at: 0,
            next: first,
        })
    }

    /// The segment's header.
    pub(super) fn header(&self) -> Header {
        self.header
    }

    /// Number the next record must have: one more than the last good one.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Offset in the file behind the last good record.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Length of the file in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Steps over the next record. Anything but a record leaves the position where it is.
    pub(super) fn step(&mut self) -> Step<'_> {
        let head = match self.have(RECORD_BYTES) {
            Ok(true) => self.window[self.at..].first_chunk(),
            Ok(false) if self.offset() == self.len => return Step::End,
            Ok(false) => return Step::Damaged,
            Err(error) => return Step::Unreadable(error),
        };
        let Some(record) = head.and_then(RecordHeader::decode) else {
            return Step::Damaged;
        };
        if record.number != self.next {
            return Step::Damaged;
        }
        match self.have(RECORD_BYTES + record.payload_bytes) {
            Ok(true) => {}
            Ok(false) => return Step::Damaged,
            Err(error) => return Step::Unreadable(error),
        }
        let start = self.at + RECORD_BYTES;
        let payload = &self.window[start..start + record.payload_bytes];
        if !record.proves(payload) {
            return Step::Damaged;
        }
        self.at = start + record.payload_bytes;
        self.next += 1;
        Step::Record {
            number: record.number,
            kind: record.kind,
            payload,
        }
    }

    /// Gets at least `wanted` bytes from the position on into the window; false if the file ends before.
    fn have(&mut self, wanted: usize) -> io::Result<bool> {
        if self.window.len() - self.at >= wanted {
            return Ok(true);
        }
        let left = self.len.saturating_sub(self.offset());
        if left < wanted as u64 {
            return Ok(false);
        }
        self.window.drain(..self.at);
        self.base += self.at as u64;
        self.at = 0;
        let kept = self.window.len();
        // Never more than the file has: an agent's segments are small.
        let size = usize::try_from(left).unwrap_or(usize::MAX);
        self.window.resize(size.min(wanted.max(WINDOW_BYTES)), 0);
        let offset = self.base + kept as u64;
        let read = read_full(self.storage, &self.file, offset, &mut self.window[kept..]);
        self.window.truncate(kept + *read.as_ref().unwrap_or(&0));
        read?;
        Ok(self.window.len() >= wanted)
    }
}

/// Reads until `into` is full or the file ends; the number of bytes read.
pub(super) fn read_full<S: Storage>(
    storage: &S,
    file: &S::File,
    offset: u64,
    into: &mut [u8],
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        let from = offset + filled as u64;
        match attempt(|| storage.read_at(file, from, &mut into[filled..]))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn attempt<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut attempt = 1;
    loop {
        match read() {
            Err(_) if attempt < READ_ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}
