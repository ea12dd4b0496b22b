//! A frame as it stands in the spool.
//!
//! The record's kind says whether it is a key frame (1) or a delta (2); its payload, little endian:
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 8 | number of the frame within its incarnation |
//! | 8 | 8 | tick, UTC milliseconds, signed |
//! | 16 | 8 | CLOCK_BOOTTIME at the tick, milliseconds, signed |
//! | 24 | 4 | series with a value |
//! | 28 | 4 | CRC-32C of the frame's payload |
//! | 32 | rest | the frame's payload |

use bytes::Bytes;
use muster_proto::{
    codec::Encoder, id::Incarnation, log::Record, series::Table, time::Timestamp, v1,
};

use super::ledger::MAX_OUTLINE_BYTES;

/// Kinds of records.
const KEY: u8 = 1;
const DELTA: u8 = 2;

/// What stands before the frame's payload.
const HEADER_BYTES: usize = 32;

/// A numbered frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spooled {
    /// Number within its incarnation.
    pub seq: u64,
    /// The scheduled tick.
    pub tick: Timestamp,
    /// CLOCK_BOOTTIME at the tick, milliseconds.
    pub boottime_ms: i64,
    /// Series with a value.
    pub samples: u32,
    /// CRC-32C of the payload.
    pub crc32c: u32,
    /// Whether it is a key frame.
    pub key: bool,
    /// The encoded sample.
    pub payload: Bytes,
}

impl Spooled {
    /// The record's kind.
    pub(super) fn kind(&self) -> u8 {
        if self.key { KEY } else { DELTA }
    }

    /// The record's payload.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.reserve_exact(HEADER_BYTES + self.payload.len());
        out.extend(self.seq.to_le_bytes());
        out.extend(self.tick.as_millis().to_le_bytes());
        out.extend(self.boottime_ms.to_le_bytes());
        out.extend(self.samples.to_le_bytes());
        out.extend(self.crc32c.to_le_bytes());
        out.extend_from_slice(&self.payload);
    }

    /// The frame of a record; `None` if another program wrote it.
    pub(super) fn decode(record: Record) -> Option<Self> {
        let key = match record.kind {
            KEY => true,
            DELTA => false,
            _ => return None,
        };
        Self::parse(Bytes::from(record.payload), key)
    }

    /// The key frame that is encoded so.
    pub(super) fn decode_key(encoded: &[u8]) -> Option<Self> {
        Self::parse(Bytes::copy_from_slice(encoded), true)
    }

    fn parse(mut payload: Bytes, key: bool) -> Option<Self> {
        if payload.len() < HEADER_BYTES {
            return None;
        }
        let header = payload.split_to(HEADER_BYTES);
        let eight = |at: usize| {
            let bytes = header[at..at + 8].try_into();
            u64::from_le_bytes(bytes.expect("eight bytes were cut"))
        };
        let four = |at: usize| {
            let bytes = header[at..at + 4].try_into();
            u32::from_le_bytes(bytes.expect("four bytes were cut"))
        };
        Some(Self {
            seq: eight(0),
            tick: Timestamp::from_millis(eight(8).cast_signed()),
            boottime_ms: eight(16).cast_signed(),
            samples: four(24),
            crc32c: four(28),
            key,
            payload,
        })
    }

    /// What outlives this frame when there is no room for it: its number and what happened in it, as a key frame
    /// without samples. `None` if nothing happened, or too much to be kept apart.
    #[must_use]
    pub fn outline(&self, events: &[v1::Event]) -> Option<Self> {
        if events.is_empty() {
            return None;
        }
        let mut payload = Vec::new();
        Encoder::new().encode(&Table::default(), events, true, &mut payload);
        (payload.len() <= MAX_OUTLINE_BYTES).then(|| Self {
            samples: 0,
            crc32c: crc32c::crc32c(&payload),
            key: true,
            payload: payload.into(),
            ..*self
        })
    }

    /// The message that carries it beside the live chain.
    #[must_use]
    pub fn to_wire(&self, incarnation: Incarnation) -> v1::Frame {
        v1::Frame {
            incarnation: incarnation.0,
            seq: self.seq,
            lane: v1::Lane::Backfill.into(),
            tick_ms: self.tick.as_millis(),
            boottime_ms: self.boottime_ms,
            payload: self.payload.clone().into(),
            crc32c: self.crc32c,
        }
    }
}
