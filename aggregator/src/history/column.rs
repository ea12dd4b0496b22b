//! Numbers in few bytes: what stands in a chunk of a file.
//!
//! ```text
//! numbers = kind u8 | …                                   how many is known from elsewhere
//!   0 constant: the number
//!   1 linear:   the first | the difference                integers only
//!   2 changes:  the first | (varint: how many stay | change)*   the last pair may lack its change
//!   3 pco:      chunk meta and one page of the pco format, version in the file's header
//!   4 scaled:   the first | varint: divisor | numbers      integers only: differences from the first, divided
//!   5 rice:     the first | k u8 | bits                    a change: quotient by 2^k in ones, a zero, k bits
//! number  = integers: zigzag varint; floats: 8 bytes little endian
//! change  = integers: zigzag varint of the difference; floats: varint of the bit-reversed XOR
//! bits    = low ones first, zeroes up to the next byte; a quotient of 24 ones has no zero: 64 bits of the change follow
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
const SCALED: u8 = 4;
const RICE: u8 = 5;

/// From how many bytes on pco is tried: below, its own meta data outweighs what it saves.
const PCO_FROM_BYTES: usize = 40;

/// A quotient of this many ones stands for a change that is written out.
const RICE_ESCAPE: u32 = 24;
/// The largest `k`: what is as wide as that is better off in another kind.
const RICE_MAX_K: u32 = 40;

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
    /// The largest number above 1 that divides every difference from the first value, with the quotients. Memory comes
    /// in pages and disks in blocks.
    fn divided(values: &[Self]) -> Option<(u64, Vec<Self>)>;
    /// Back from [`Self::divided`]; `None` for a kind of number that is never divided.
    fn multiplied(self, quotient: Self, divisor: u64) -> Option<Self>;
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

    fn divided(values: &[Self]) -> Option<(u64, Vec<Self>)> {
        let (&first, rest) = values.split_first()?;
        let mut divisor = 0;
        for value in rest {
            divisor = common_divisor(divisor, value.wrapping_sub(first).unsigned_abs());
            if divisor == 1 {
                return None;
            }
        }
        let by = i64::try_from(divisor).ok().filter(|by| *by > 1)?;
        let quotient = |value: &Self| value.wrapping_sub(first) / by;
        Some((divisor, values.iter().map(quotient).collect()))
    }

    fn multiplied(self, quotient: Self, divisor: u64) -> Option<Self> {
        Some(self.wrapping_add(quotient.wrapping_mul(divisor.cast_signed())))
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

    fn divided(_: &[Self]) -> Option<(u64, Vec<Self>)> {
        None
    }

    fn multiplied(self, _: Self, _: u64) -> Option<Self> {
        None
    }

    fn config() -> ChunkConfig {
        ChunkConfig::default()
    }
}

/// The largest number that divides both; 0 is divided by every number.
const fn common_divisor(mut one: u64, mut other: u64) -> u64 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
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
    if let Some((divisor, quotients)) = T::divided(values) {
        out.push(SCALED);
        first.put(out);
        put_varint(out, divisor);
        put_uneven(&quotients, effort, out);
        if effort == Effort::Full && out.len() - start >= PCO_FROM_BYTES {
            // What the divisor costs is nothing beside what it saves.
            return;
        }
    }
    let scaled = out.len() - start;
    let plain = out.len();
    put_uneven(values, effort, out);
    if scaled > 0 && scaled <= out.len() - plain {
        out.truncate(plain);
    } else {
        out.drain(start..plain);
    }
}

/// Appends numbers that are neither all the same nor in even steps, in the kind that takes the fewest bytes.
fn put_uneven<T: Value>(values: &[T], effort: Effort, out: &mut Vec<u8>) {
    let start = out.len();
    put_changes(values, out);
    if let Some((k, bytes)) = rice_size(values)
        && bytes < out.len() - start
    {
        out.truncate(start);
        put_rice(values, k, out);
    }
    if effort == Effort::Full && out.len() - start >= PCO_FROM_BYTES {
        let mut packed = vec![PCO];
        if pco_put(values, &mut packed).is_ok() && packed.len() < out.len() - start {
            out.truncate(start);
            out.extend_from_slice(&packed);
        }
    }
}

fn put_changes<T: Value>(values: &[T], out: &mut Vec<u8>) {
    let Some((&first, rest)) = values.split_first() else {
        return;
    };
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
}

/// The changes from each value to the next.
fn changes<T: Value>(values: &[T]) -> impl Iterator<Item = u64> {
    values.windows(2).map(|pair| pair[1].change(pair[0]))
}

/// The `k` that suits the changes, and about how many bytes they take with it; `None` if they are too wide.
fn rice_size<T: Value>(values: &[T]) -> Option<(u32, usize)> {
    let count = values.len() as u64 - 1;
    let sum = changes(values).try_fold(0u64, u64::checked_add)?;
    // Of numbers that become rarer as they become larger this is the best, or next to it.
    let k = (sum / count.max(1)).checked_ilog2().unwrap_or(0);
    if k > RICE_MAX_K {
        return None;
    }
    let bits = |k: u32| {
        let each = |change: u64| match change >> k {
            quotient if quotient < u64::from(RICE_ESCAPE) => quotient + 1 + u64::from(k),
            _ => u64::from(RICE_ESCAPE) + 64,
        };
        changes(values).map(each).sum::<u64>()
    };
    let (bits, k) = (k.saturating_sub(1)..=k).map(|k| (bits(k), k)).min()?;
    // Kind, `k` and a first value of usual length.
    Some((k, usize::try_from(bits.div_ceil(8)).ok()? + 6))
}

fn put_rice<T: Value>(values: &[T], k: u32, out: &mut Vec<u8>) {
    out.push(RICE);
    if let Some(first) = values.first() {
        first.put(out);
    }
    out.push(k.to_le_bytes()[0]);
    let mut bits = BitWriter {
        out,
        held: 0,
        have: 0,
    };
    for change in changes(values) {
        match u32::try_from(change >> k) {
            Ok(quotient) if quotient < RICE_ESCAPE => {
                bits.put((1 << quotient) - 1, quotient + 1);
                bits.put(change & ((1 << k) - 1), k);
            }
            _ => {
                bits.put((1 << RICE_ESCAPE) - 1, RICE_ESCAPE);
                bits.put(change & 0xffff_ffff, 32);
                bits.put(change >> 32, 32);
            }
        }
    }
    bits.finish();
}

/// Bits, low ones first.
struct BitWriter<'o> {
    out: &'o mut Vec<u8>,
    held: u64,
    have: u32,
}

impl BitWriter<'_> {
    /// At most [`RICE_MAX_K`] bits.
    fn put(&mut self, bits: u64, count: u32) {
        self.held |= bits << self.have;
        self.have += count;
        while self.have >= 8 {
            self.out.push(self.held.to_le_bytes()[0]);
            self.held >>= 8;
            self.have -= 8;
        }
    }

    fn finish(self) {
        if self.have > 0 {
            self.out.push(self.held.to_le_bytes()[0]);
        }
    }
}

/// Back from [`BitWriter`].
struct BitReader<'i, 'b> {
    input: &'i mut &'b [u8],
    held: u64,
    have: u32,
}

impl BitReader<'_, '_> {
    /// Holds at least so many bits, 56 at most, or all there are.
    fn fill(&mut self, count: u32) {
        if self.have >= count {
            return;
        }
        if let Some((bytes, _)) = self.input.split_first_chunk::<8>() {
            self.held |= u64::from_le_bytes(*bytes) << self.have;
            let taken = (63 - self.have) >> 3;
            *self.input = &self.input[taken as usize..];
            self.have += taken * 8;
            // What was shifted in beyond the whole bytes comes again with them.
            self.held &= u64::MAX >> (64 - self.have);
            return;
        }
        while self.have < count
            && let Some((byte, rest)) = self.input.split_first()
        {
            self.held |= u64::from(*byte) << self.have;
            *self.input = rest;
            self.have += 8;
        }
    }

    fn take(&mut self, count: u32) -> Result<u64, Corrupt> {
        self.fill(count);
        if self.have < count {
            return Err(Corrupt);
        }
        let bits = self.held & ((1 << count) - 1);
        self.held >>= count;
        self.have -= count;
        Ok(bits)
    }

    fn change(&mut self, k: u32) -> Result<u64, Corrupt> {
        self.fill(RICE_ESCAPE + 1);
        let ones = self.held.trailing_ones().min(RICE_ESCAPE);
        if ones == RICE_ESCAPE {
            self.take(RICE_ESCAPE)?;
            return Ok(self.take(32)? | self.take(32)? << 32);
        }
        self.take(ones + 1)?;
        Ok(u64::from(ones) << k | self.take(k)?)
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
    let mut values = Vec::new();
    take_into(input, count, &mut values)?;
    Ok(values)
}

/// Reads `count` numbers in the place of what `values` holds.
///
/// # Errors
/// [`Corrupt`]; then `values` holds anything.
pub fn take_into<T: Value>(
    input: &mut &[u8],
    count: usize,
    values: &mut Vec<T>,
) -> Result<(), Corrupt> {
    values.clear();
    if count == 0 {
        return Ok(());
    }
    if count > MAX_NUMBERS {
        return Err(Corrupt);
    }
    match take_bytes(input, 1)?[0] {
        SCALED => {
            let (first, divisor) = (T::take(input)?, take_varint(input)?);
            let kind = take_bytes(input, 1)?[0];
            take_kind(kind, input, count, values)?;
            for value in values {
                *value = first.multiplied(*value, divisor).ok_or(Corrupt)?;
            }
            Ok(())
        }
        kind => take_kind(kind, input, count, values),
    }
}

/// Reads numbers of a kind that stands for itself.
fn take_kind<T: Value>(
    kind: u8,
    input: &mut &[u8],
    count: usize,
    values: &mut Vec<T>,
) -> Result<(), Corrupt> {
    values.reserve_exact(count);
    match kind {
        CONSTANT => values.resize(count, T::take(input)?),
        LINEAR => {
            let (first, step) = (T::take(input)?, T::take(input)?);
            values.extend(first.linear(step, count));
            if values.len() != count {
                return Err(Corrupt);
            }
        }
        CHANGES => take_changes(input, count, values)?,
        PCO => take_pco(input, count, values)?,
        RICE => take_rice(input, count, values)?,
        _ => return Err(Corrupt),
    }
    Ok(())
}

fn take_changes<T: Value>(
    input: &mut &[u8],
    count: usize,
    values: &mut Vec<T>,
) -> Result<(), Corrupt> {
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
    Ok(())
}

fn take_rice<T: Value>(
    input: &mut &[u8],
    count: usize,
    values: &mut Vec<T>,
) -> Result<(), Corrupt> {
    let mut last = T::take(input)?;
    let k = u32::from(take_bytes(input, 1)?[0]);
    if k > RICE_MAX_K {
        return Err(Corrupt);
    }
    values.push(last);
    let whole = *input;
    let mut rest = whole;
    let mut bits = BitReader {
        input: &mut rest,
        held: 0,
        have: 0,
    };
    for _ in 1..count {
        last = T::changed(last, bits.change(k)?);
        values.push(last);
    }
    // Whole bytes that are held already belong to what comes next.
    let ahead = (bits.have / 8) as usize;
    let taken = whole.len() - rest.len() - ahead;
    take_bytes(input, taken)?;
    Ok(())
}

fn take_pco<T: Value>(input: &mut &[u8], count: usize, values: &mut Vec<T>) -> Result<(), Corrupt> {
    let (file, _) = FileDecompressor::new(pco_header()).map_err(|_| Corrupt)?;
    let (mut chunk, rest) = file
        .chunk_decompressor::<T, _>(*input)
        .map_err(|_| Corrupt)?;
    let mut page = chunk.page_decompressor(rest, count).map_err(|_| Corrupt)?;
    values.resize(count, T::default());
    let progress = page.read(values).map_err(|_| Corrupt)?;
    if progress.n_processed != count {
        return Err(Corrupt);
    }
    *input = page.into_src();
    Ok(())
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
        let pages: Vec<i64> = (0..720).map(|_| random.i64(0..1_000) * 4096).collect();
        let bytes = roundtrip(&pages);
        assert!(
            bytes < 960,
            "{bytes} bytes: 10 bits a value are the least, 22 without the divisor"
        );
    }

    #[test]
    fn what_is_written_again_soon_is_small_already() {
        let mut random = fastrand::Rng::with_seed(2);
        let noisy: Vec<i64> = (0..48).map(|_| 5_000 + random.i64(0..256)).collect();
        let mut bytes = Vec::new();
        put(&noisy, Effort::Quick, &mut bytes);
        assert!(
            bytes.len() < 72,
            "{} bytes: 9 bits for a change are the least",
            bytes.len()
        );
    }

    #[test]
    fn extremes_come_back() {
        roundtrip(&[i64::MIN, i64::MAX, 0, i64::MIN]);
        roundtrip(&[0, 1 << 62, -(1 << 62), 1 << 62]);
        // A change that is written out among small ones, and what comes behind it.
        let mut jumps: Vec<i64> = (0..200).map(|n| n % 7).collect();
        jumps[77] = i64::MAX;
        jumps[150] = -1;
        roundtrip(&jumps);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            ints in prop::collection::vec(prop_oneof![any::<i64>(), -3i64..3, -9_000i64..9_000, Just(5)], 0..400),
            narrow in prop::collection::vec(-9_000i64..9_000, 0..400),
            divisor in 1i64..100_000,
            floats in prop::collection::vec(prop_oneof![any::<f64>(), Just(1.5)], 0..200),
        ) {
            roundtrip(&ints);
            roundtrip(&narrow);
            roundtrip(&narrow.iter().map(|n| n * divisor).collect::<Vec<_>>());
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
