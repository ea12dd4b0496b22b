//! The payload of a frame: how one sample of a host becomes few bytes and comes back.
//!
//! The first payload of a chain is a *key frame*: the dictionary (families and series, numbered from 0 in
//! the order in which they stand) and every value. The following ones carry only what changed since the
//! payload before: a bitmap over the series and one variable-length number for each bit that is set.
//! A payload never changes once it is numbered, so a replay is byte-identical.
//!
//! ```text
//! payload    = version u8 (1) | flags u8 | [events] | [recording] | [dictionary] | values | [absent]
//! flags      = 1 key frame | 2 events | 4 dictionary | 8 absent | 16 recording
//! events     = length varint | muster.v1.EventList
//! recording  = length varint | muster.v1.RecordingPart; only sent to those who asked for it (Recall)
//! dictionary = count varint | family* | count varint | series*         numbered on from what is known
//! family     = name | kind and scale u8 | count varint | label name*   text = length varint | UTF-8
//! series     = family varint | for each label: shared varint | text    shared: bytes in common with the
//!                                                                      same label of the series before
//! absent     = count varint | (id minus the one before) varint*        series that have no value any more
//! values     = series varint | bitmap | number*
//! bitmap     = presence of its bytes (1 bit each) | the bytes that are not 0; bit i of byte j is series 8j+i
//! number     = integers: zigzag varint of the difference from the last value (0 at first)
//!              floats: varint of the bit-reversed XOR with the last value
//! ```
//!
//! Varints are LEB128 of at most 10 bytes. Everything is bounded before anything is allocated.

use prost::Message;

use crate::{limits, v1};

mod decode;
mod encode;
mod wire;

pub use decode::{Changes, Decoder, Intern, Slot};
pub use encode::Encoder;
use wire::Input;

const VERSION: u8 = 1;
const KEY: u8 = 1;
const EVENTS: u8 = 2;
const DICTIONARY: u8 = 4;
const ABSENT: u8 = 8;
const RECORDING: u8 = 16;

/// Why a payload does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It was cut off, or a length in it points past its end.
    #[error("payload ends within {0}")]
    Truncated(&'static str),
    /// A later version of this format.
    #[error("payload has version {0}, this build reads version 1")]
    Version(u8),
    /// A number or text outside what the format allows.
    #[error("payload has an invalid {0}")]
    Invalid(&'static str),
    /// More than the limits allow.
    #[error("payload has too many {0}")]
    TooMany(&'static str),
    /// A delta, but the state it builds on is not here.
    #[error("delta of sequence number {seq} does not follow {decoded_to}")]
    NoKeyFrame {
        /// The payload's number.
        seq: u64,
        /// The last one decoded, 0 for none.
        decoded_to: u64,
    },
}

/// What stands in a payload beside its sample.
#[derive(Debug, Default, PartialEq)]
pub struct Beside {
    /// What happened on the host, in order.
    pub events: Vec<v1::Event>,
    /// A part of what its flight recorder held.
    pub recording: Option<v1::RecordingPart>,
}

impl Beside {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.recording.is_none()
    }
}

/// What stands beside the sample of a payload. Needs no other payload: also what builds on frames that are not
/// here tells its events.
///
/// # Errors
/// When the payload is cut off, of another version, or holds more than the limits allow.
pub fn beside(payload: &[u8]) -> Result<Beside, DecodeError> {
    // Nearly all payloads: nothing is read but two bytes.
    if payload.first() == Some(&VERSION)
        && payload
            .get(1)
            .is_some_and(|flags| flags & (EVENTS | RECORDING) == 0)
    {
        return Ok(Beside::default());
    }
    let mut input = Input(payload);
    read_beside(&mut input).map(|(_, beside)| beside)
}

/// The head of a payload and what stands beside its sample; gives the flags.
fn read_beside(input: &mut Input<'_>) -> Result<(u8, Beside), DecodeError> {
    let version = input.byte("version")?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let flags = input.byte("flags")?;
    if flags & !(KEY | EVENTS | DICTIONARY | ABSENT | RECORDING) != 0 {
        return Err(DecodeError::Invalid("flag"));
    }
    let mut beside = Beside::default();
    if flags & EVENTS != 0 {
        let bytes = input.block("events")?;
        let list = v1::EventList::decode(bytes).map_err(|_| DecodeError::Invalid("event list"))?;
        if list.events.len() > limits::MAX_EVENTS_PER_FRAME {
            return Err(DecodeError::TooMany("events"));
        }
        beside.events = list.events;
    }
    if flags & RECORDING != 0 {
        let bytes = input.block("recording")?;
        let part =
            v1::RecordingPart::decode(bytes).map_err(|_| DecodeError::Invalid("recording"))?;
        if part.rounds.len() > limits::MAX_RECORDED_ROUNDS
            || part.busiest.len() > limits::MAX_RECORDED_ROUNDS
        {
            return Err(DecodeError::TooMany("recorded rounds"));
        }
        beside.recording = Some(part);
    }
    Ok((flags, beside))
}

/// Whether a payload is a key frame, from its first bytes.
#[must_use]
pub fn is_key_frame(payload: &[u8]) -> bool {
    payload.len() >= 2 && payload[1] & KEY != 0
}

#[cfg(test)]
mod tests;
