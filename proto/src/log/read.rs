//! Reads committed records in order, one window of one segment in memory at a time.
//!
//! Damage that appears after the start is a gap in what is read, never its end and never a panic.

use std::collections::vec_deque;
use std::io;
use std::iter::Peekable;

use super::Segment;
use super::format::segment_name;
use super::scan::{Opened, Scanner, Step};
use super::storage::Storage;

/// One record of a log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Its number, from 1.
    pub number: u64,
    /// What the writer said it is.
    pub kind: u8,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// Records that cannot be read; those after `last` follow.
#[derive(Debug, thiserror::Error)]
pub enum Gap {
    /// No segment has them: they were lost before this start and reported then.
    #[error("records {first} to {last} are in no segment")]
    Missing {
        /// First number that is missing.
        first: u64,
        /// Last number that is missing.
        last: u64,
    },
    /// The bytes are not what was written.
    #[error("records {first} to {last} are lost: segment {segment} is damaged at byte {offset}")]
    Damaged {
        /// First number that is lost.
        first: u64,
        /// Last number that is lost.
        last: u64,
        /// File name of the segment.
        segment: String,
        /// Where the damage begins, in bytes from the start of the file.
        offset: u64,
    },
    /// The disk does not give the bytes.
    #[error("records {first} to {last} cannot be read from segment {segment}")]
    Unreadable {
        /// First number that was not read.
        first: u64,
        /// Last number that was not read.
        last: u64,
        /// File name of the segment.
        segment: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
}

/// Iterator over committed records; made by [`Log::read_from`](super::Log::read_from).
pub struct Reader<'l, S: Storage> {
    storage: &'l S,
    stream: u64,
    segments: Peekable<vec_deque::Iter<'l, Segment>>,
    current: Option<(Scanner<'l, S>, u64)>,
    /// Next number to hand out or to report.
    expected: u64,
    /// One more than the last committed number.
    end: u64,
}

impl<'l, S: Storage> Reader<'l, S> {
    pub(super) fn new(
        storage: &'l S,
        stream: u64,
        segments: vec_deque::Iter<'l, Segment>,
        from: u64,
        end: u64,
    ) -> Self {
        Self {
            storage,
            stream,
            segments: segments.peekable(),
            current: None,
            expected: from,
            end,
        }
    }

    /// The next record of the open segment, or the gap that ends it; `None` when there is no more in it.
    fn in_segment(&mut self) -> Option<Result<Record, Gap>> {
        let (scanner, end) = self.current.as_mut()?;
        let end = *end;
        while scanner.next_number() < end {
            let offset = scanner.offset();
            let fault = match scanner.step() {
                Step::Record { number, .. } if number < self.expected => continue,
                Step::Record {
                    number,
                    kind,
                    payload,
                } => {
                    self.expected = number + 1;
                    return Some(Ok(Record {
                        number,
                        kind,
                        payload: payload.to_vec(),
                    }));
                }
                Step::End | Step::Damaged => None,
                Step::Unreadable(source) => Some(source),
            };
            let segment = segment_name(self.stream, scanner.header().first);
            self.current = None;
            return self.gap(end, segment, offset, fault);
        }
        self.current = None;
        None
    }

    fn gap(
        &mut self,
        end: u64,
        segment: String,
        offset: u64,
        fault: Option<io::Error>,
    ) -> Option<Result<Record, Gap>> {
        let (first, last) = (self.expected, end - 1);
        self.expected = end;
        Some(Err(match fault {
            Some(source) => Gap::Unreadable {
                first,
                last,
                segment,
                source,
            },
            None => Gap::Damaged {
                first,
                last,
                segment,
                offset,
            },
        }))
    }

    /// Opens the segment, or says what is lost with it.
    fn enter(&mut self, segment: &Segment) -> Option<Result<Record, Gap>> {
        let name = segment_name(self.stream, segment.first);
        match Scanner::open(self.storage, &name) {
            Opened::Scanner(scanner) => {
                self.current = Some((scanner, segment.end));
                None
            }
            Opened::Damaged | Opened::Newer(_) => self.gap(segment.end, name, 0, None),
            Opened::Unreadable(source) => self.gap(segment.end, name, 0, Some(source)),
        }
    }

    fn missing_before(&mut self, number: u64) -> Option<Result<Record, Gap>> {
        let first = self.expected;
        (first < number).then(|| {
            self.expected = number;
            Err(Gap::Missing {
                first,
                last: number - 1,
            })
        })
    }
}

impl<S: Storage> Iterator for Reader<'_, S> {
    type Item = Result<Record, Gap>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.in_segment() {
                return Some(item);
            }
            let Some(&segment) = self.segments.peek() else {
                return self.missing_before(self.end);
            };
            if segment.end > self.expected
                && segment.end > segment.first
                && let Some(gap) = self.missing_before(segment.first)
            {
                return Some(gap);
            }
            self.segments.next();
            if segment.end > self.expected
                && let Some(gap) = self.enter(segment)
            {
                return Some(gap);
            }
        }
    }
}
