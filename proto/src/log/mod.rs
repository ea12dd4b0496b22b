//! A log of numbered records in segment files: the aggregator's log and the agent's spool.
//!
//! # What it promises
//!
//! * Records are numbered from 1 and the number goes on over segments and restarts. A number is never
//!   given to two different records that were both read or reported durable.
//! * What [`Log::commit`] reported durable is there after a crash, once and in order.
//! * Damage costs the records from the damage to the end of its segment, never the start of the program,
//!   and is reported as a range of numbers, by [`Recovery`] and by [`Reader`].
//! * A segment written by a newer program is refused and nothing in the folder is touched.
//!
//! It leaves to others: what a record means, when to commit, how much may be kept ([`Log::release_before`]),
//! and running it away from an async runtime, because every call may wait for the disk.
//!
//! # Files
//!
//! One folder holds `<stream>-<first>.seg` (stream and number of the first record, 16 hexadecimal digits
//! each), `….bad` (what was set aside as damaged, at most 3), `….tmp` (a segment being made) and
//! `lock`. A stream is one numbering: 0 for the aggregator, the incarnation for an agent, whose folder
//! can hold the remains of earlier incarnations; each is opened as a log of its own over a clone of
//! the one storage. The bytes inside are drawn in [`mod@format`] and in `docs/log-format.md`.
//!
//! # Rules that make it safe
//!
//! 1. *Order.* A segment's contents are synced before the next segment is made; a new segment is written
//!    under a temporary name, synced, renamed, and its folder synced, before a record goes into it.
//! 2. *A file is written by one run only.* After a start, and after any failed write or sync, nothing more
//!    is written to that file: the kernel may have dropped pages it reported as failed once. What was not
//!    committed is still in memory and goes, under the same numbers, to a new segment.
//! 3. *The later file wins.* A segment counts only up to the first number of the file that follows it,
//!    `.bad` files included. So what a failed write left at the end of a segment never comes back, and
//!    needs no repair on a disk that refuses repairs. Two files never share a first number: the new one
//!    replaces the one of that name, which had nothing committed.
//! 4. *A torn end is only that.* Bad bytes at the end of the newest segment are cut, unless a whole record
//!    stands behind them; then it is damage, the bytes are set aside, and the name of the `.bad` file keeps
//!    the numbers that must not be used again.
//! 5. *The newest segment is never released*, because the next number is known from it.
//!
//! # Use
//!
//! ```no_run
//! use muster_proto::log::{DiskStorage, Log, LogConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let storage = DiskStorage::open("state/log")?;
//! let (mut log, recovery) = Log::open(storage, LogConfig::aggregator())?;
//! for lost in &recovery.missing {
//!     eprintln!("records {} to {} are lost", lost.start(), lost.end());
//! }
//! log.append(1, b"one frame")?;
//! let number = log.append(1, b"another")?;
//! assert_eq!(log.commit()?, number);
//! for record in log.read_from(number) {
//!     match record {
//!         Ok(record) => assert_eq!(record.payload, b"another"),
//!         Err(gap) => eprintln!("{gap}"),
//!     }
//! }
//! log.release_before(number)?;
//! # Ok(())
//! # }
//! ```

#[cfg(any(test, feature = "testing"))]
mod faulty;
mod follow;
pub mod format;
mod read;
mod recover;
mod scan;
mod storage;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;

use crate::time::{Clock as _, SystemClock, Timestamp};

#[cfg(any(test, feature = "testing"))]
pub use faulty::{Fault, FaultyStorage};
pub use follow::Follower;
pub use format::MAX_PAYLOAD_BYTES;
pub use read::{Gap, Reader, Record};
pub use recover::{MAX_SET_ASIDE, Quarantined, Recovery};
pub use storage::{DiskStorage, FolderError, Storage};

use format::{HEADER_BYTES, Header, MAX_NUMBER, Name, RECORD_BYTES, segment_name, temporary_name};

/// Memory kept for the next records after a commit, in bytes. A commit is asked for every 256 KiB, so a
/// larger buffer is the trace of a disk that was away.
const KEPT_BUFFER_BYTES: usize = 512 * 1024;

/// How a log is cut and bounded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogConfig {
    /// Which numbering: 0 for the aggregator, the incarnation for an agent.
    pub stream: u64,
    /// Size at which a new segment begins, in bytes. A record longer than this gets a segment of its own.
    pub segment_bytes: u64,
    /// Most bytes waiting in memory for a commit; then [`Log::append`] refuses.
    pub pending_bytes_max: usize,
    /// No lower number is given to a record: one more than the highest the caller has noted elsewhere, so
    /// that a log whose files were lost does not reuse it. 1 if nothing is noted.
    pub next_at_least: u64,
}

impl LogConfig {
    /// The aggregator's log: stream 0, segments of 16 MiB, 64 MiB in memory (its budget of credits).
    #[must_use]
    pub const fn aggregator() -> Self {
        Self {
            stream: 0,
            segment_bytes: 16 << 20,
            pending_bytes_max: 64 << 20,
            next_at_least: 1,
        }
    }

    /// An agent's spool: segments of 1 MiB, 4 MiB in memory while the disk is away.
    #[must_use]
    pub const fn spool(incarnation: u64) -> Self {
        Self {
            stream: incarnation,
            segment_bytes: 1 << 20,
            pending_bytes_max: 4 << 20,
            next_at_least: 1,
        }
    }
}

/// Why a log did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused. After a failed [`Log::commit`] nothing is lost: call it again later.
    #[error(
        "cannot {action} {name} in the log folder {folder}; check that the folder is writable and its disk has room",
        folder = .folder.display()
    )]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file; `.` is the folder itself.
        name: String,
        /// The log's folder.
        folder: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// A newer program wrote here. Nothing was changed.
    #[error(
        "segment {name} in the log folder {folder} has version {version}, this program reads up to {supported}; \
         start the program that wrote it, or move the folder away",
        folder = .folder.display(),
        supported = format::VERSION
    )]
    NewerVersion {
        /// The log's folder.
        folder: PathBuf,
        /// File name of the segment.
        name: String,
        /// The version it says.
        version: u16,
    },
    /// The payload is longer than [`MAX_PAYLOAD_BYTES`].
    #[error("a record of {bytes} bytes is longer than the log's limit of {MAX_PAYLOAD_BYTES}")]
    PayloadTooLarge {
        /// Length of the payload.
        bytes: usize,
    },
    /// As much waits for a commit as may wait; the disk is slow or away.
    #[error("{pending_bytes} bytes wait to be written to the log, which is the most allowed")]
    Backlog {
        /// Bytes waiting.
        pending_bytes: usize,
    },
    /// A file name or a caller claims the highest number there is.
    #[error("the log has no record numbers left; move its folder away and start again")]
    Exhausted,
}

impl LogError {
    fn io<S: Storage>(
        storage: &S,
        action: &'static str,
        name: impl Into<String>,
        source: io::Error,
    ) -> Self {
        Self::Io {
            action,
            name: name.into(),
            folder: storage.folder().to_owned(),
            source,
        }
    }
}

/// One segment of an open log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Number of its first record.
    pub first: u64,
    /// One more than the number of its last committed record; equal to `first` while it is empty.
    pub end: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// When the file was made, by this machine's clock.
    pub created: Timestamp,
}

/// An open log. Dropping it does not commit.
pub struct Log<S: Storage> {
    storage: S,
    config: LogConfig,
    /// All segments in order of their numbers; the last is the one being written if there is one.
    segments: VecDeque<Segment>,
    /// Handle of the last segment, while nothing has failed on it.
    active: Option<S::File>,
    /// Records not yet committed, as they will stand in a segment.
    pending: Vec<u8>,
    /// So many bytes of `pending` stand in the open file already, not synced.
    written: usize,
    /// Number of the next record.
    next: u64,
    /// Highest number that is durable.
    durable: u64,
    bad_bytes: u64,
}

impl<S: Storage> Log<S> {
    /// Opens the log of one stream and repairs what a crash or a disk has done to it.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`] if the folder cannot be listed, [`LogError::NewerVersion`] if a newer program wrote
    /// a segment. Damaged contents are no error: they are in [`Recovery`].
    pub fn open(storage: S, config: LogConfig) -> Result<(Self, Recovery), LogError> {
        let recovered = recover::recover(&storage, &config)?;
        sync_newest(&storage, config.stream, &recovered.segments);
        let log = Self {
            storage,
            config,
            segments: recovered.segments.into(),
            active: None,
            pending: Vec::new(),
            written: 0,
            next: recovered.next,
            durable: recovered.next - 1,
            bad_bytes: recovered.bad_bytes,
        };
        Ok((log, recovered.recovery))
    }

    /// Gives the record its number and keeps it in memory until [`commit`](Self::commit).
    ///
    /// # Errors
    ///
    /// [`LogError::PayloadTooLarge`], [`LogError::Backlog`] or [`LogError::Exhausted`]; the log is unchanged.
    pub fn append(&mut self, kind: u8, payload: &[u8]) -> Result<u64, LogError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(LogError::PayloadTooLarge {
                bytes: payload.len(),
            });
        }
        let pending_bytes = self.pending.len();
        if pending_bytes + RECORD_BYTES + payload.len() > self.config.pending_bytes_max {
            return Err(LogError::Backlog { pending_bytes });
        }
        if self.next > MAX_NUMBER {
            return Err(LogError::Exhausted);
        }
        let number = self.next;
        format::encode_record(&mut self.pending, number, kind, payload);
        self.next += 1;
        Ok(number)
    }

    /// Hands what was appended to the operating system, with one write and no sync: it survives the end of
    /// the process, not that of the machine. Where that takes a new segment it is a [`commit`](Self::commit).
    ///
    /// # Errors
    ///
    /// [`LogError::Io`], as of a commit: nothing is lost.
    pub fn flush(&mut self) -> Result<(), LogError> {
        if self.pending.len() as u64 > self.room() {
            return self.commit().map(drop);
        }
        let Some(mut file) = self.active.take() else {
            return self.commit().map(drop);
        };
        let rest = &self.pending[std::mem::take(&mut self.written)..];
        if let Err(source) = append_all(&self.storage, &mut file, rest) {
            let segment = self
                .segments
                .back_mut()
                .expect("the open file is the last segment's");
            segment.bytes = self.storage.len(&file).unwrap_or(segment.bytes);
            let name = segment_name(self.config.stream, segment.first);
            return Err(LogError::io(&self.storage, "write", name, source));
        }
        self.written = self.pending.len();
        self.active = Some(file);
        Ok(())
    }

    /// Makes all appended records durable: one write and one `fdatasync` for each segment they go to.
    /// Returns the highest durable number.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]. Then only what [`durable`](Self::durable) says is durable; the rest is kept and
    /// the next call writes it to a new segment.
    pub fn commit(&mut self) -> Result<u64, LogError> {
        let mut written = 0;
        let mut result = Ok(());
        while written < self.pending.len() && result.is_ok() {
            match self.commit_part(written) {
                Ok(bytes) => written += bytes,
                Err(error) => result = Err(error),
            }
        }
        self.pending.drain(..written);
        if self.pending.is_empty() {
            self.pending.shrink_to(KEPT_BUFFER_BYTES);
        }
        result.map(|()| self.durable)
    }

    /// Commits the records from byte `from` of the buffer that go to one segment; the number of bytes.
    fn commit_part(&mut self, from: usize) -> Result<usize, LogError> {
        // Out of `self` until all went well, so that after any error the file is never touched again.
        let usable = self.active.take().filter(|_| self.fits_one(from));
        let written = std::mem::take(&mut self.written);
        let (mut file, written) = match usable {
            Some(file) => (file, written),
            None => (self.create_segment()?, 0),
        };
        let (bytes, last) = self.part(from);
        let segment = self
            .segments
            .back_mut()
            .expect("the open file is the last segment's");
        let name = segment_name(self.config.stream, segment.first);
        // A flush writes only what fits, so what it wrote is part of this part.
        let records = &self.pending[from + written..from + bytes];
        let outcome = append_all(&self.storage, &mut file, records)
            .and_then(|()| self.storage.sync(&mut file));
        if let Err(source) = outcome {
            // Part of it may be there, and takes room until the segment is released.
            segment.bytes = self.storage.len(&file).unwrap_or(segment.bytes);
            return Err(LogError::io(&self.storage, "write", name, source));
        }
        segment.bytes += bytes as u64;
        segment.end = last + 1;
        self.durable = last;
        self.active = Some(file);
        Ok(bytes)
    }

    /// Room left in the last segment, in bytes.
    fn room(&self) -> u64 {
        let used = self.segments.back().map_or(0, |segment| segment.bytes);
        self.config.segment_bytes.saturating_sub(used)
    }

    fn fits_one(&self, from: usize) -> bool {
        let record = format::record_bytes(&self.pending[from..]);
        self.room() >= record as u64
    }

    /// How many bytes from `from` on go to the last segment, and the number of the last record in them.
    /// An empty segment takes at least one record, however long.
    fn part(&self, from: usize) -> (usize, u64) {
        let room = self.room();
        if (self.pending.len() - from) as u64 <= room {
            return (self.pending.len() - from, self.next - 1);
        }
        let mut bytes = format::record_bytes(&self.pending[from..]);
        let mut last = self.durable + 1;
        loop {
            let rest = &self.pending[from + bytes..];
            let more = if rest.is_empty() {
                0
            } else {
                format::record_bytes(rest)
            };
            if more == 0 || (bytes + more) as u64 > room {
                return (bytes, last);
            }
            bytes += more;
            last += 1;
        }
    }

    fn create_segment(&mut self) -> Result<S::File, LogError> {
        let header = Header {
            stream: self.config.stream,
            first: self.durable + 1,
            created: SystemClock.now(),
        };
        let name = segment_name(header.stream, header.first);
        let temporary = temporary_name(header.stream, header.first);
        let file = self
            .create_durably(&temporary, &name, header)
            .map_err(|source| {
                // Tried again before the name is used; only its space is at stake.
                let _ = self.storage.remove(&temporary);
                LogError::io(&self.storage, "create", &name, source)
            })?;
        // The file of this name, if there was one, had no committed record and has just been replaced.
        while self
            .segments
            .back()
            .is_some_and(|last| last.first >= header.first)
        {
            self.segments.pop_back();
        }
        self.segments.push_back(Segment {
            first: header.first,
            end: header.first,
            bytes: HEADER_BYTES as u64,
            created: header.created,
        });
        Ok(file)
    }

    fn create_durably(&self, temporary: &str, name: &str, header: Header) -> io::Result<S::File> {
        let storage = &self.storage;
        match storage.remove(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = storage.create(temporary)?;
        append_all(storage, &mut file, &header.encode())?;
        storage.sync(&mut file)?;
        storage.rename(temporary, name)?;
        storage.sync_folder()?;
        Ok(file)
    }

    /// Gives up what was appended and is not durable, for a disk that stays away. The numbers are given again:
    /// nobody was told that they were kept. What a flush left in a file may still be read after a start.
    pub fn forget_pending(&mut self) {
        self.active = None;
        self.pending = Vec::new();
        self.written = 0;
        self.next = self.durable + 1;
    }

    /// Committed records from `number` on, or from the oldest if that is later.
    pub fn read_from(&self, number: u64) -> Reader<'_, S> {
        Reader::new(
            &self.storage,
            self.config.stream,
            self.segments.iter(),
            number.max(self.first()),
            self.durable + 1,
        )
    }

    /// Removes the segments whose records are all below `number`; never the newest one, from which the
    /// next number is known.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]; what was not removed stays in the log and can be released again.
    pub fn release_before(&mut self, number: u64) -> Result<(), LogError> {
        let mut removed = false;
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && oldest.end <= number
        {
            self.remove(&segment_name(self.config.stream, oldest.first))?;
            self.segments.pop_front();
            removed = true;
        }
        if removed {
            self.sync_removals()
        } else {
            Ok(())
        }
    }

    /// Removes the whole stream, `.bad` files included: for an earlier incarnation's remains when they are
    /// delivered. Its numbers are forgotten with it, so the stream must never be written again.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]; opening the stream and removing it again finishes the work.
    pub fn remove_all(mut self) -> Result<(), LogError> {
        self.active = None;
        let names = self
            .storage
            .list()
            .map_err(|source| LogError::io(&self.storage, "list the files of", ".", source))?;
        let stream = self.config.stream;
        for name in names {
            if Name::parse(&name).is_some_and(|parsed| parsed.stream() == stream) {
                self.remove(&name)?;
            }
        }
        self.sync_removals()
    }

    fn remove(&self, name: &str) -> Result<(), LogError> {
        match self.storage.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogError::io(&self.storage, "remove", name, error))
            }
            _ => Ok(()),
        }
    }

    fn sync_removals(&self) -> Result<(), LogError> {
        self.storage
            .sync_folder()
            .map_err(|source| LogError::io(&self.storage, "sync", ".", source))
    }

    /// Number of the oldest record kept, or of the next one if there is none.
    pub fn first(&self) -> u64 {
        let kept = self
            .segments
            .iter()
            .find(|segment| segment.end > segment.first);
        kept.map_or(self.durable + 1, |segment| segment.first)
    }

    /// Number the next appended record gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Highest durable number; 0 before the first.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Bytes in memory that wait for a commit.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// The segments, oldest first: for bounds on age and for reports.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &Segment> {
        self.segments.iter()
    }

    /// Bytes of this stream's files, those set aside included.
    pub fn bytes_on_disk(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.bytes)
            .sum::<u64>()
            + self.bad_bytes
    }

    /// The storage below, for its free bytes.
    pub fn storage(&self) -> &S {
        &self.storage
    }
}

/// The streams that have segments in the folder, in order.
///
/// # Errors
///
/// [`LogError::Io`] if the folder cannot be listed.
pub fn streams<S: Storage>(storage: &S) -> Result<Vec<u64>, LogError> {
    let names = storage
        .list()
        .map_err(|source| LogError::io(storage, "list the files of", ".", source))?;
    let streams: BTreeSet<u64> = names
        .iter()
        .filter_map(|name| match Name::parse(name)? {
            Name::Segment { stream, .. } => Some(stream),
            Name::Bad { .. } | Name::Temporary { .. } => None,
        })
        .collect();
    Ok(streams.into_iter().collect())
}

/// What the run before flushed and did not commit is read again and counts as durable, so it is synced. If
/// the disk refuses, nothing that was reported by a commit is at stake, and the next commit will tell.
fn sync_newest<S: Storage>(storage: &S, stream: u64, segments: &[Segment]) {
    if let Some(newest) = segments.last()
        && let Ok(mut file) = storage.open(&segment_name(stream, newest.first))
    {
        let _ = storage.sync(&mut file);
    }
}

/// Appends all of `bytes`; usually one write.
fn append_all<S: Storage>(storage: &S, file: &mut S::File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match storage.append(file, bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written.min(bytes.len())..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
