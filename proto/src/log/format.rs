//! Bytes of a log: file names, the segment header and the record header.
//!
//! Everything is little endian and every checksum is CRC-32C (Castagnoli). `docs/log-format.md` shows the
//! same tables with an example. Only this file knows the offsets; decoding never panics and never
//! allocates, whatever the bytes are.
//!
//! Segment header, 48 bytes:
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic `MUSTRLOG` |
//! | 8 | 2 | version, now 1 |
//! | 10 | 2 | flags, 0 in version 1 |
//! | 12 | 4 | reserved, 0 |
//! | 16 | 8 | stream |
//! | 24 | 8 | number of the first record |
//! | 32 | 8 | time of creation, UTC milliseconds, signed; for people, nothing is decided by it |
//! | 40 | 4 | reserved, 0 |
//! | 44 | 4 | checksum of bytes 0..44 |
//!
//! Magic, version and checksum stay where they are in every future version: that is how a flipped bit in
//! the version (damage) is told from a newer program's file (refused, untouched).
//!
//! Record, 20 bytes and the payload:
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 4 | length of the payload, at most 1 MiB |
//! | 4 | 8 | number |
//! | 12 | 1 | kind, the writer's business |
//! | 13 | 1 | flags, 0 in version 1 |
//! | 14 | 2 | reserved, 0 |
//! | 16 | 4 | checksum of bytes 0..16 and the payload |
//! | 20 | length | payload |

use crate::time::Timestamp;

/// Newest segment version this program reads, and the one it writes.
pub const VERSION: u16 = 1;

/// Size of a segment's header in bytes.
pub const HEADER_BYTES: usize = 48;

/// Size of a record without its payload, in bytes.
pub const RECORD_BYTES: usize = 20;

/// Largest payload of a record, in bytes: twice the largest frame, so that a frame and what the
/// aggregator writes beside it always fit; small enough to be checked before anything is allocated.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

/// Highest record number. At a million records a second it lasts 290,000 years; a number above it in a
/// file name or header is damage, and the half of `u64` left over makes additions safe.
pub(super) const MAX_NUMBER: u64 = u64::MAX >> 1;

const MAGIC: &[u8; 8] = b"MUSTRLOG";

/// What a valid segment header says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) stream: u64,
    pub(super) first: u64,
    pub(super) created: Timestamp,
}

/// What can be wrong with a segment header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HeaderFault {
    /// Not a header, or not the one this file name promises.
    Damaged,
    /// A whole header, written by a newer program.
    Newer(u16),
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.stream.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.created.as_millis().to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderFault> {
        let sum = u32::from_le_bytes(part(bytes, 44));
        if &bytes[0..8] != MAGIC || crc32c::crc32c(&bytes[..44]) != sum {
            return Err(HeaderFault::Damaged);
        }
        let version = u16::from_le_bytes(part(bytes, 8));
        if version > VERSION {
            return Err(HeaderFault::Newer(version));
        }
        if version == 0 {
            return Err(HeaderFault::Damaged);
        }
        Ok(Self {
            stream: u64::from_le_bytes(part(bytes, 16)),
            first: u64::from_le_bytes(part(bytes, 24)),
            created: Timestamp::from_millis(i64::from_le_bytes(part(bytes, 32))),
        })
    }
}

/// A record's fixed part, not yet proved by its checksum.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RecordHeader {
    pub(super) payload_bytes: usize,
    pub(super) number: u64,
    pub(super) kind: u8,
    sum_of_head: u32,
    sum: u32,
}

impl RecordHeader {
    /// Reads the fixed part; `None` when the length is beyond [`MAX_PAYLOAD_BYTES`].
    pub(super) fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let payload_bytes = usize::try_from(u32::from_le_bytes(part(bytes, 0))).ok()?;
        if payload_bytes > MAX_PAYLOAD_BYTES {
            return None;
        }
        Some(Self {
            payload_bytes,
            number: u64::from_le_bytes(part(bytes, 4)),
            kind: bytes[12],
            sum_of_head: crc32c::crc32c(&bytes[..16]),
            sum: u32::from_le_bytes(part(bytes, 16)),
        })
    }

    /// Whether the checksum holds over the fixed part and `payload`.
    pub(super) fn proves(&self, payload: &[u8]) -> bool {
        payload.len() == self.payload_bytes
            && crc32c::crc32c_append(self.sum_of_head, payload) == self.sum
    }
}

/// Adds one record to the end of `buffer`. The caller has checked the payload's length.
pub(super) fn encode_record(buffer: &mut Vec<u8>, number: u64, kind: u8, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("append refuses payloads over 1 MiB");
    let mut head = [0; RECORD_BYTES];
    head[0..4].copy_from_slice(&len.to_le_bytes());
    head[4..12].copy_from_slice(&number.to_le_bytes());
    head[12] = kind;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), payload);
    head[16..20].copy_from_slice(&sum.to_le_bytes());
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(payload);
}

/// Length of the record at the start of `bytes`, which [`encode_record`] wrote.
pub(super) fn record_bytes(bytes: &[u8]) -> usize {
    let head = bytes.first_chunk().and_then(RecordHeader::decode);
    RECORD_BYTES + head.expect("the buffer holds whole records").payload_bytes
}

/// The record that begins at `offset` of `bytes`, if it is whole and its checksum holds: its header and
/// the offset behind it.
pub(super) fn record_at(bytes: &[u8], offset: usize) -> Option<(RecordHeader, usize)> {
    let start = offset.checked_add(RECORD_BYTES)?;
    let head = bytes.get(offset..start)?.first_chunk()?;
    let header = RecordHeader::decode(head)?;
    let end = start.checked_add(header.payload_bytes)?;
    header
        .proves(bytes.get(start..end)?)
        .then_some((header, end))
}

fn part<const N: usize, const M: usize>(bytes: &[u8; M], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

/// A name in the log's folder that means something to the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Name {
    /// `<stream>-<first>.seg`: records from `first` on.
    Segment { stream: u64, first: u64 },
    /// `<stream>-<first>-<last>.bad`: what was set aside, and the numbers that went with it.
    Bad { stream: u64, first: u64, last: u64 },
    /// `<stream>-….tmp`: never finished, worth nothing.
    Temporary { stream: u64 },
}

impl Name {
    /// Reads a file name; anything else in the folder is none of the log's business.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (stem, extension) = name.rsplit_once('.')?;
        let mut parts = stem.split('-').map(hex);
        let stream = parts.next()??;
        match (extension, parts.next(), parts.next(), parts.next()) {
            ("tmp", Some(_), _, None) => Some(Self::Temporary { stream }),
            ("seg", Some(first), None, None) => Some(Self::Segment {
                stream,
                first: number(first?)?,
            }),
            ("bad", Some(first), Some(last), None) => Some(Self::Bad {
                stream,
                first: number(first?)?,
                last: number(last?)?,
            }),
            _ => None,
        }
    }

    /// The stream the file belongs to.
    pub(super) fn stream(self) -> u64 {
        match self {
            Self::Segment { stream, .. }
            | Self::Bad { stream, .. }
            | Self::Temporary { stream } => stream,
        }
    }
}

/// `<stream>-<first>.seg`, both as 16 hexadecimal digits so that names sort as numbers do.
pub(super) fn segment_name(stream: u64, first: u64) -> String {
    format!("{stream:016x}-{first:016x}.seg")
}

/// `<stream>-<first>-<last>.bad`.
pub(super) fn bad_name(stream: u64, first: u64, last: u64) -> String {
    format!("{stream:016x}-{first:016x}-{last:016x}.bad")
}

/// `<stream>-<first>.tmp`.
pub(super) fn temporary_name(stream: u64, first: u64) -> String {
    format!("{stream:016x}-{first:016x}.tmp")
}

/// Exactly what `{:016x}` writes, so that one number has one name.
fn hex(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u64::from_str_radix(text, 16).ok())?
}

fn number(value: u64) -> Option<u64> {
    (1..=MAX_NUMBER).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_was_written_and_nothing_else() {
        let name = segment_name(7, 300);
        assert_eq!(name, "0000000000000007-000000000000012c.seg");
        let parsed = Name::parse(&name);
        assert_eq!(
            parsed,
            Some(Name::Segment {
                stream: 7,
                first: 300
            })
        );
        let bad = Name::parse(&bad_name(u64::MAX, 1, 9));
        assert_eq!(
            bad,
            Some(Name::Bad {
                stream: u64::MAX,
                first: 1,
                last: 9
            })
        );
        let temporary = Name::parse(&temporary_name(1, 2));
        assert_eq!(temporary, Some(Name::Temporary { stream: 1 }));
        for other in [
            "",
            "lock",
            ".seg",
            "7-12c.seg",
            "0000000000000007-000000000000012C.seg",
            "0000000000000007-+00000000000012c.seg",
            "0000000000000007-0000000000000000.seg",
            "0000000000000007-ffffffffffffffff.seg",
            "0000000000000007.seg",
            "0000000000000007-000000000000012c-0000000000000001.seg",
        ] {
            assert_eq!(Name::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_header_is_whole_newer_or_damaged() {
        let header = Header {
            stream: 3,
            first: 9,
            created: Timestamp::from_millis(-1),
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for at in 0..HEADER_BYTES {
            let mut flipped = bytes;
            flipped[at] ^= 0x10;
            assert_eq!(
                Header::decode(&flipped),
                Err(HeaderFault::Damaged),
                "byte {at}"
            );
        }
        assert_eq!(Header::decode(&newer(bytes)), Err(HeaderFault::Newer(2)));
    }

    fn newer(mut bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        bytes[8] = 2;
        let sum = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_record_is_bytes_as_documented() {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, 0x0102, 5, b"abc");
        assert_eq!(
            bytes[..16],
            [3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]
        );
        assert_eq!(&bytes[20..], b"abc");
        assert_eq!(
            record_at(&bytes, 0).map(|(header, end)| (header.number, end)),
            Some((0x0102, 23))
        );
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(record_at(&flipped, 0), None, "byte {at}");
        }
        assert_eq!(record_at(&bytes[..22], 0), None);
    }
}
