//! Numbers in few bytes: what stands in a chunk of a file.
//!
//! ```text
//! numbers = kind u8 | …                                   how many is known from elsewhere
//!   0 constant: the number
//!   1 linear:   the first | the difference                integers only
//!   2 changes:  the first | (varint: how many stay | change)*   the last pair may lack its change
//!   3 pco:      chunk meta and one page of the pco format, version in the file's header
//! number  = integers: zigzag varint; floats: 8 bytes little endian
//! change  = integers: zigzag varint of the difference; floats: varint of the bit-reversed XOR
//! runs    = varint count | (varint gap | varint length)*   rows with a value, gaps from the end of the last run
//! ```
//!
//! Everything read is bounded by what the reader expects before anything is allocated: `n` numbers, never
//! more.

use pco::{
    ChunkConfig, DeltaSpec, ModeSpec,
    data_types::Number,
    wrapped::{FileCompressor, FileDecompressor},
};

const CONSTANT: u8 = 0;
const LINEAR: u8 = 1;
const CHANGES: u8 = 2;
const PCO: u8 = 3;

/// From how many bytes of changes on pco is tried: below, its own meta data outweighs what it saves.
const PCO_FROM_BYTES: usize = 40;

/// Most numbers in one column: a window of two hours at one second, and a good deal more.
pub const MAX_NUMBERS: usize = 1 << 20;

/// The bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes that are no numbers")]
pub struct Corrupt;

/// How much work is put into few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// For what is written again soon.
    Quick,
    /// For what stays.
    Full,
}

/// Appends a number of 7 bits a byte, low ones first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Reads what [`put_varint`] wrote.
///
/// # Errors
/// [`Corrupt`].
pub fn take_varint(input: &mut &[u8]) -> Result<u64, Corrupt> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first().ok_or(Corrupt)?;
        *input = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(Corrupt);
        }
        value |= bits << shift;
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Corrupt)
}

/// Reads a number that fits `usize`.
///
/// # Errors
/// [`Corrupt`].
pub fn take_count(input: &mut &[u8]) -> Result<usize, Corrupt> {
    usize::try_from(take_varint(input)?).map_err(|_| Corrupt)
}

/// Reads this many bytes.
///
/// # Errors
/// [`Corrupt`].
pub fn take_bytes<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], Corrupt> {
    let (taken, rest) = input.split_at_checked(count).ok_or(Corrupt)?;
    *input = rest;
    Ok(taken)
}

/// Small numbers of either sign as small numbers.
#[must_use]
pub const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Back from [`zigzag`].
#[must_use]
pub const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// A kind of number a column holds.
pub trait Value: Number + PartialEq + Copy + Default {
    /// Appends the number itself.
    fn put(self, out: &mut Vec<u8>);
    /// Reads it.
    ///
    /// # Errors
    /// [`Corrupt`].
    fn take(input: &mut &[u8]) -> Result<Self, Corrupt>;
    /// The change from `last` as a number that is small for a small change, 0 for none.
    fn change(self, last: Self) -> u64;
    /// Back from [`Self::change`].
    fn changed(last: Self, change: u64) -> Self;
    /// The difference if adding it again and again gives all of `values`.
    fn step(values: &[Self]) -> Option<Self>;
    /// `count` values from this one on.
    fn linear(self, step: Self, count: usize) -> Vec<Self>;
    /// How pco is to take it.
    fn config() -> ChunkConfig;
    /// The same, bit for bit.
    fn same(self, other: Self) -> bool {
        self.change(other) == 0
    }
}

impl Value for i64 {
    fn put(self, out: &mut Vec<u8>) {
        put_varint(out, zigzag(self));
    }

    fn take(input: &mut &[u8]) -> Result<Self, Corrupt> {
        take_varint(input).map(unzigzag)
    }

    fn change(self, last: Self) -> u64 {
        zigzag(self.wrapping_sub(last))
    }

    fn changed(last: Self, change: u64) -> Self {
        last.wrapping_add(unzigzag(change))
    }

    fn step(values: &[Self]) -> Option<Self> {
        let step = values.get(1)?.wrapping_sub(values[0]);
        let even = |pair: &[Self]| pair[1].wrapping_sub(pair[0]) == step;
        values.windows(2).all(even).then_some(step)
    }

    fn linear(self, step: Self, count: usize) -> Vec<Self> {
        std::iter::successors(Some(self), |last| Some(last.wrapping_add(step)))
            .take(count)
            .collect()
    }

    fn config() -> ChunkConfig {
        ChunkConfig::default()
            .with_mode_spec(ModeSpec::Classic)
            .with_delta_spec(DeltaSpec::Auto)
    }
}

impl Value for f64 {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn take(input: &mut &[u8]) -> Result<Self, Corrupt> {
        let bytes = take_bytes(input, 8)?.first_chunk().ok_or(Corrupt)?;
        Ok(Self::from_le_bytes(*bytes))
    }

    fn change(self, last: Self) -> u64 {
        (self.to_bits() ^ last.to_bits()).reverse_bits()
    }

    fn changed(last: Self, change: u64) -> Self {
        Self::from_bits(last.to_bits() ^ change.reverse_bits())
    }

    fn step(_: &[Self]) -> Option<Self> {
        None
    }

    fn linear(self, _: Self, _: usize) -> Vec<Self> {
        Vec::new()
    }

    fn config() -> ChunkConfig {
        ChunkConfig::default()
    }
}

/// Appends numbers.
pub fn put<T: Value>(values: &[T], effort: Effort, out: &mut Vec<u8>) {
    let Some((&first, rest)) = values.split_first() else {
        return;
    };
    if rest.iter().all(|value| value.same(first)) {
        out.push(CONSTANT);
        first.put(out);
        return;
    }
    if values.len() > 2
        && let Some(step) = T::step(values)
    {
        out.push(LINEAR);
        first.put(out);
        step.put(out);
        return;
    }
    let start = out.len();
    out.push(CHANGES);
    first.put(out);
    let (mut last, mut stay) = (first, 0u64);
    for &value in rest {
        let change = value.change(last);
        if change == 0 {
            stay += 1;
            continue;
        }
        put_varint(out, stay);
        put_varint(out, change);
        (last, stay) = (value, 0);
    }
    if stay > 0 {
        put_varint(out, stay);
    }
    if effort == Effort::Full && out.len() - start >= PCO_FROM_BYTES {
        let mut packed = vec![PCO];
        if pco_put(values, &mut packed).is_ok() && packed.len() < out.len() - start {
            out.truncate(start);
            out.extend_from_slice(&packed);
        }
    }
}

fn pco_put<T: Value>(values: &[T], out: &mut Vec<u8>) -> Result<(), pco::errors::PcoError> {
    let mut chunk = FileCompressor::default().chunk_compressor(values, &T::config())?;
    chunk.write_meta(&mut *out)?;
    chunk.write_page(0, &mut *out)?;
    Ok(())
}

/// Reads `count` numbers.
///
/// # Errors
/// [`Corrupt`].
pub fn take<T: Value>(input: &mut &[u8], count: usize) -> Result<Vec<T>, Corrupt> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > MAX_NUMBERS {
        return Err(Corrupt);
    }
    match take_bytes(input, 1)?[0] {
        CONSTANT => Ok(vec![T::take(input)?; count]),
        LINEAR => {
            let (first, step) = (T::take(input)?, T::take(input)?);
            let values = first.linear(step, count);
            if values.len() == count {
                Ok(values)
            } else {
                Err(Corrupt)
            }
        }
        CHANGES => take_changes(input, count),
        PCO => take_pco(input, count),
        _ => Err(Corrupt),
    }
}

fn take_changes<T: Value>(input: &mut &[u8], count: usize) -> Result<Vec<T>, Corrupt> {
    let mut values = Vec::with_capacity(count);
    let mut last = T::take(input)?;
    values.push(last);
    while values.len() < count {
        let stay = take_count(input)?;
        if stay > count - values.len() {
            return Err(Corrupt);
        }
        values.resize(values.len() + stay, last);
        if values.len() < count {
            last = T::changed(last, take_varint(input)?);
            values.push(last);
        }
    }
    Ok(values)
}

fn take_pco<T: Value>(input: &mut &[u8], count: usize) -> Result<Vec<T>, Corrupt> {
    let (file, _) = FileDecompressor::new(pco_header()).map_err(|_| Corrupt)?;
    let (mut chunk, rest) = file
        .chunk_decompressor::<T, _>(*input)
        .map_err(|_| Corrupt)?;
    let mut page = chunk.page_decompressor(rest, count).map_err(|_| Corrupt)?;
    let mut values = vec![T::default(); count];
    let progress = page.read(&mut values).map_err(|_| Corrupt)?;
    if progress.n_processed != count {
        return Err(Corrupt);
    }
    *input = page.into_src();
    Ok(values)
}

/// The version of the pco format that is written, as its own header says it: format 4.1.
const fn pco_header() -> &'static [u8] {
    &[4, 1]
}

/// Appends the rows that have a value.
pub fn put_runs(runs: &[(u32, u32)], out: &mut Vec<u8>) {
    put_varint(out, runs.len() as u64);
    let mut next = 0;
    for &(first, count) in runs {
        put_varint(out, u64::from(first - next));
        put_varint(out, u64::from(count));
        next = first + count;
    }
}

/// Reads the rows that have a value, of `rows` there are.
///
/// # Errors
/// [`Corrupt`].
pub fn take_runs(input: &mut &[u8], rows: usize) -> Result<Vec<(u32, u32)>, Corrupt> {
    let count = take_count(input)?;
    if count > rows {
        return Err(Corrupt);
    }
    let mut runs = Vec::with_capacity(count);
    let mut next = 0usize;
    for _ in 0..count {
        let first = next.checked_add(take_count(input)?).ok_or(Corrupt)?;
        let length = take_count(input)?;
        next = first.checked_add(length).ok_or(Corrupt)?;
        if next > rows || length == 0 {
            return Err(Corrupt);
        }
        let narrow = |number| u32::try_from(number).map_err(|_| Corrupt);
        runs.push((narrow(first)?, narrow(length)?));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn roundtrip<T: Value + std::fmt::Debug>(values: &[T]) -> usize {
        let mut sizes = Vec::new();
        for effort in [Effort::Quick, Effort::Full] {
            let mut bytes = Vec::new();
            put(values, effort, &mut bytes);
            sizes.push(bytes.len());
            bytes.push(77);
            let mut input = &bytes[..];
            let back: Vec<T> = take(&mut input, values.len()).expect("own bytes");
            assert_eq!(input, [77], "reads just its own bytes");
            assert!(
                back.iter().zip(values).all(|(a, b)| a.same(*b)),
                "{values:?}"
            );
        }
        sizes[1]
    }

    #[test]
    fn the_pco_header_is_that_of_the_crate() {
        let header = FileCompressor::default()
            .write_header(Vec::new())
            .expect("a Vec");
        assert_eq!(
            header,
            pco_header(),
            "a new format: raise the version of history files"
        );
    }

    #[test]
    fn kinds() {
        assert_eq!(roundtrip(&[7i64; 720]), 2);
        assert_eq!(
            roundtrip(&(0..720).map(|n| n * 10).collect::<Vec<i64>>()),
            3
        );
        assert_eq!(roundtrip(&[0.25f64; 100]), 9);
        assert_eq!(roundtrip(&[f64::NAN; 3]), 9);
        assert!(roundtrip(&[5i64, 5, 5, 6, 6, 6, 6, 5]) <= 8);
        let mut random = fastrand::Rng::with_seed(1);
        let mut total = 0;
        let counter: Vec<i64> = (0..720)
            .map(|_| {
                total += 950 + random.i64(0..100);
                total
            })
            .collect();
        let bytes = roundtrip(&counter);
        assert!(bytes < 720, "{bytes} bytes: 6.6 bits a value are the least");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            ints in prop::collection::vec(prop_oneof![any::<i64>(), -3i64..3, Just(5)], 0..400),
            floats in prop::collection::vec(prop_oneof![any::<f64>(), Just(1.5)], 0..200),
        ) {
            roundtrip(&ints);
            roundtrip(&floats);
        }

        #[test]
        fn garbage_is_an_error_or_numbers(bytes in prop::collection::vec(any::<u8>(), 0..200), n in 0usize..500) {
            // Either outcome is fine; a panic is not.
            let _ = take::<i64>(&mut &bytes[..], n);
            let _ = take::<f64>(&mut &bytes[..], n);
            let _ = take_runs(&mut &bytes[..], n);
        }
    }
}
