//! The pieces of a payload: numbers, texts, families, series and bitmaps, written and read.

use super::DecodeError;
use crate::{
    limits, series,
    series::{Family, Kind, Raw, Scale},
};

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text);
}

pub(super) fn put_family(out: &mut Vec<u8>, family: &Family) {
    put_text(out, family.name.as_bytes());
    out.push(kind_code(family.kind) << 4 | scale_code(family.scale));
    put_varint(out, family.labels.len() as u64);
    for label in &family.labels {
        put_text(out, label.as_bytes());
    }
}

pub(super) fn put_series(out: &mut Vec<u8>, family: u32, labels: &[String], before: &[String]) {
    put_varint(out, u64::from(family));
    for (at, label) in labels.iter().enumerate() {
        let shared = before
            .get(at)
            .map_or(0, |other| shared_prefix(label, other));
        put_varint(out, shared as u64);
        put_text(out, &label.as_bytes()[shared..]);
    }
}

pub(super) fn shared_prefix(one: &str, other: &str) -> usize {
    one.bytes()
        .zip(other.bytes())
        .take_while(|(a, b)| a == b)
        .count()
}

pub(super) fn put_ids(out: &mut Vec<u8>, ids: &[usize]) {
    put_varint(out, ids.len() as u64);
    let mut next = 0;
    for &id in ids {
        put_varint(out, (id - next) as u64);
        next = id + 1;
    }
}

pub(super) fn put_bitmap(out: &mut Vec<u8>, bitmap: &[u8]) {
    let presence_at = out.len();
    out.resize(presence_at + bitmap.len().div_ceil(8), 0);
    for (at, &byte) in bitmap.iter().enumerate() {
        if byte != 0 {
            out[presence_at + at / 8] |= 1 << (at % 8);
            out.push(byte);
        }
    }
}

pub(super) fn put_number(out: &mut Vec<u8>, scale: Scale, raw: Raw, last: Raw) {
    let number = if scale == Scale::Float {
        (raw.0 ^ last.0).reverse_bits()
    } else {
        let difference = raw.as_int().wrapping_sub(last.as_int());
        ((difference << 1) ^ (difference >> 63)).cast_unsigned()
    };
    put_varint(out, number);
}

pub(super) const fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Counter => 0,
        Kind::Gauge => 1,
        Kind::Untyped => 2,
    }
}

pub(super) const fn scale_code(scale: Scale) -> u8 {
    match scale {
        Scale::One => 0,
        Scale::Kibi => 1,
        Scale::Sector => 2,
        Scale::Centi => 3,
        Scale::Milli => 4,
        Scale::Micro => 5,
        Scale::Nano => 6,
        Scale::Float => 7,
    }
}

pub(super) fn read_family(input: &mut Input<'_>) -> Result<Family, DecodeError> {
    let name = input.text("metric name", limits::MAX_NAME_BYTES)?;
    if !series::is_metric_name(&name) {
        return Err(DecodeError::Invalid("metric name"));
    }
    let code = input.byte("type")?;
    let kind = match code >> 4 {
        0 => Kind::Counter,
        1 => Kind::Gauge,
        2 => Kind::Untyped,
        _ => return Err(DecodeError::Invalid("type")),
    };
    let scale = match code & 0xf {
        0 => Scale::One,
        1 => Scale::Kibi,
        2 => Scale::Sector,
        3 => Scale::Centi,
        4 => Scale::Milli,
        5 => Scale::Micro,
        6 => Scale::Nano,
        7 => Scale::Float,
        _ => return Err(DecodeError::Invalid("unit")),
    };
    let count = input.count("label count")?;
    if count > limits::MAX_LABELS {
        return Err(DecodeError::TooMany("labels"));
    }
    let mut labels: Vec<String> = Vec::with_capacity(count);
    for _ in 0..count {
        let label = input.text("label name", limits::MAX_NAME_BYTES)?;
        if !series::is_label_name(&label) || labels.contains(&label) {
            return Err(DecodeError::Invalid("label name"));
        }
        labels.push(label);
    }
    Ok(Family {
        name,
        kind,
        scale,
        labels,
    })
}

pub(super) fn read_labels(
    input: &mut Input<'_>,
    count: usize,
    before: &[String],
) -> Result<Vec<String>, DecodeError> {
    let mut labels = Vec::with_capacity(count);
    for at in 0..count {
        let shared = input.count("shared length")?;
        let prefix = match before.get(at) {
            Some(other) => other.as_bytes().get(..shared),
            None => (shared == 0).then_some(&[][..]),
        }
        .ok_or(DecodeError::Invalid("shared length"))?;
        let rest = input.block("label value")?;
        if prefix.len() + rest.len() > limits::MAX_LABEL_VALUE_BYTES {
            return Err(DecodeError::Invalid("label value"));
        }
        let label = String::from_utf8([prefix, rest].concat())
            .map_err(|_| DecodeError::Invalid("label value"))?;
        if label.chars().any(char::is_control) {
            return Err(DecodeError::Invalid("label value"));
        }
        labels.push(label);
    }
    Ok(labels)
}

/// What is left of a payload.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take(
        &mut self,
        count: usize,
        what: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?[0])
    }

    pub(super) fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Invalid(what));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid(what))
    }

    /// A number of things or a place in a list: never more than fits in memory.
    pub(super) fn count(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.varint(what)?;
        u32::try_from(count)
            .ok()
            .and_then(|count| usize::try_from(count).ok())
            .ok_or(DecodeError::Invalid(what))
    }

    pub(super) fn block(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.count(what)?;
        self.take(length, what)
    }

    pub(super) fn text(&mut self, what: &'static str, most: usize) -> Result<String, DecodeError> {
        let bytes = self.block(what)?;
        if bytes.len() > most {
            return Err(DecodeError::Invalid(what));
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Invalid(what))
    }

    pub(super) fn number(&mut self, scale: Scale, last: Raw) -> Result<Raw, DecodeError> {
        let number = self.varint("value")?;
        Ok(if scale == Scale::Float {
            Raw(number.reverse_bits() ^ last.0)
        } else {
            let difference = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
            Raw::int(last.as_int().wrapping_add(difference))
        })
    }
}
