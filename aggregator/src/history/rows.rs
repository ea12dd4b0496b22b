//! The samples of one host that are not in a file yet: a row for each tick, in which only what changed stands.
//!
//! Most values of a host do not change from one tick to the next, so a row is a few bytes a change, as in the
//! frames it came in; a column of its own for each series would cost more than what stands in it.
//!
//! ```text
//! row    = zigzag varint: milliseconds from the tick before, less the same of the row before
//!        | varint: changes, times 2, plus 1 if there are absences
//!        | for each change: varint gap | number       gap: from the place after the last one
//!        | [varint count | for each absence: varint gap]
//! number = integers: zigzag varint of the difference; floats: varint of the bit-reversed XOR with the last value
//! ```

use std::{collections::HashMap, sync::Arc};

use muster_proto::series::{Raw, Scale};

use super::{
    SeriesKey,
    column::{Corrupt, put_varint, take_varint, unzigzag, zigzag},
};

/// Rows of one host in one window.
#[derive(Debug, Default)]
pub struct Rows {
    series: Vec<Arc<SeriesKey>>,
    last: Vec<Raw>,
    /// Number of the last row in which the series had a value, from 1.
    seen: Vec<u32>,
    present: usize,
    rows: u32,
    samples: u64,
    last_tick: i64,
    last_step: i64,
    rising: bool,
    bytes: Vec<u8>,
}

/// Samples of one host in columns: what files are made of.
#[derive(Debug, Default)]
pub struct Columns {
    /// Rising, each once.
    pub ticks: Vec<i64>,
    /// One for each series, in no order.
    pub series: Vec<ColumnOf>,
}

/// Ranges of rows: first and number.
pub type Runs = Vec<(u32, u32)>;

/// So many series after the last one are looked at before all are.
const NEAR: usize = 16;

/// Places by the address of the key; the `Arc`s in [`Rows::series`] keep the addresses taken.
type Places = HashMap<usize, u32>;

/// The values of a row, by the place of their series.
type Row = Vec<(u32, Raw)>;

/// Values of one series.
#[derive(Debug)]
pub struct ColumnOf {
    /// Which.
    pub key: Arc<SeriesKey>,
    /// Ranges of rows in which it has a value: first and number.
    pub runs: Runs,
    /// The values.
    pub raws: Vec<Raw>,
}

impl Rows {
    /// Bytes of memory it takes, about.
    #[must_use]
    pub fn memory(&self) -> usize {
        const A_SERIES: usize = 8 + 8 + 4;
        size_of::<Self>() + self.bytes.capacity() + self.series.capacity() * A_SERIES
    }

    /// Samples in it.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Adds a row: all values the host has at this tick.
    pub fn push(&mut self, tick: i64, values: &mut dyn Iterator<Item = (&Arc<SeriesKey>, Raw)>) {
        let before = self.rows;
        self.rows += 1;
        let mut changes: Vec<(u32, Raw)> = Vec::new();
        let (mut cursor, mut count, mut stayed, mut sorted) = (0, 0, 0, true);
        // Made when a series does not stand where it did: in the first row, and after the host numbered its
        // series anew. It would take as much memory as all the rest, so it goes with the row.
        let mut places: Option<Places> = None;
        for (key, raw) in values {
            let place = self.place(cursor, key, &mut places);
            cursor = place + 1;
            let had = self.seen[place] == before && before != 0;
            if self.seen[place] == self.rows {
                // Told twice in one tick: the first stays.
                continue;
            }
            count += 1;
            stayed += usize::from(had);
            self.seen[place] = self.rows;
            if !had || self.last[place] != raw {
                let place = u32::try_from(place).unwrap_or(u32::MAX);
                sorted &= changes.last().is_none_or(|(last, _)| *last < place);
                changes.push((place, raw));
            }
        }
        if !sorted {
            changes.sort_unstable_by_key(|(place, _)| *place);
        }
        self.samples += count as u64;
        let absent = self.present - stayed;
        self.present = count;
        if before == 0 {
            self.shrink();
        }
        self.write(tick, &changes, absent, before);
    }

    fn shrink(&mut self) {
        self.series.shrink_to_fit();
        self.last.shrink_to_fit();
        self.seen.shrink_to_fit();
    }

    fn place(&mut self, cursor: usize, key: &Arc<SeriesKey>, places: &mut Option<Places>) -> usize {
        // Those between are absent now.
        let near = self.series.iter().skip(cursor).take(NEAR);
        if let Some(passed) = near.into_iter().position(|at| Arc::ptr_eq(at, key)) {
            return cursor + passed;
        }
        let places = places.get_or_insert_with(|| {
            let all = self.series.iter().zip(0..);
            all.map(|(key, place)| (Arc::as_ptr(key).addr(), place))
                .collect()
        });
        if let Some(place) = places.get(&Arc::as_ptr(key).addr()) {
            return *place as usize;
        }
        let place = self.series.len();
        places.insert(
            Arc::as_ptr(key).addr(),
            u32::try_from(place).unwrap_or(u32::MAX),
        );
        self.series.push(Arc::clone(key));
        self.last.push(Raw(0));
        self.seen.push(0);
        place
    }

    fn write(&mut self, tick: i64, changes: &[(u32, Raw)], absent: usize, before: u32) {
        let step = tick.wrapping_sub(self.last_tick);
        self.rising = if before == 0 {
            true
        } else {
            self.rising && step > 0
        };
        put_varint(&mut self.bytes, zigzag(step.wrapping_sub(self.last_step)));
        (self.last_tick, self.last_step) = (tick, step);
        let head = (changes.len() as u64) << 1 | u64::from(absent > 0);
        put_varint(&mut self.bytes, head);
        let mut next = 0;
        for &(place, raw) in changes {
            put_varint(&mut self.bytes, u64::from(place - next));
            next = place + 1;
            let at = place as usize;
            put_raw(
                &mut self.bytes,
                self.series[at].family.scale,
                raw,
                self.last[at],
            );
            self.last[at] = raw;
        }
        if absent > 0 {
            put_varint(&mut self.bytes, absent as u64);
            let mut next = 0;
            for (place, seen) in (0u32..).zip(&self.seen) {
                if *seen == before {
                    put_varint(&mut self.bytes, u64::from(place - next));
                    next = place + 1;
                }
            }
        }
    }

    /// What stands in it, by time; where a series has two values of one time the first counts.
    ///
    /// # Errors
    /// When the bytes are not what was written, which only a fault of the memory can do.
    pub fn columns(&self) -> Result<Columns, Corrupt> {
        self.some(|_| true)
    }

    /// The same of some series only.
    ///
    /// # Errors
    /// As [`Self::columns`].
    pub fn some(&self, mut wanted: impl FnMut(&SeriesKey) -> bool) -> Result<Columns, Corrupt> {
        let wanted: Vec<bool> = self.series.iter().map(|key| wanted(key)).collect();
        if self.rising || self.rows == 0 {
            return self.decode(&wanted);
        }
        // Not in order of time: written anew in it, which is rare and costs little.
        let mut rows = self.decode_rows()?;
        rows.sort_by_key(|(tick, _)| *tick);
        rows.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1.append(&mut later.1);
                first.1.sort_by_key(|(place, _)| *place);
                first.1.dedup_by_key(|(place, _)| *place);
            }
            same
        });
        let mut ordered = Self {
            series: self.series.clone(),
            last: vec![Raw(0); self.series.len()],
            seen: vec![0; self.series.len()],
            ..Self::default()
        };
        for (tick, values) in &rows {
            let mut values = values
                .iter()
                .map(|(place, raw)| (&self.series[*place as usize], *raw));
            ordered.push(*tick, &mut values);
        }
        ordered.decode(&wanted)
    }

    fn decode(&self, wanted: &[bool]) -> Result<Columns, Corrupt> {
        let mut out = Columns {
            ticks: Vec::with_capacity(self.rows as usize),
            series: Vec::new(),
        };
        // A question is about few series of many.
        let places = wanted.iter().enumerate().filter(|(_, wanted)| **wanted);
        let mut columns: Vec<(usize, (Runs, Vec<Raw>))> = places
            .map(|(place, _)| (place, Default::default()))
            .collect();
        if columns.is_empty() {
            return Ok(out);
        }
        let mut reader = Reader::new(self);
        for row in 0..self.rows {
            out.ticks.push(reader.next(self)?);
            for (place, (runs, raws)) in &mut columns {
                let place = *place;
                if !reader.present[place] {
                    continue;
                }
                match runs.last_mut() {
                    Some((first, count)) if *first + *count == row => *count += 1,
                    _ => runs.push((row, 1)),
                }
                raws.push(reader.last[place]);
            }
        }
        for (place, (runs, raws)) in columns {
            if !raws.is_empty() {
                out.series.push(ColumnOf {
                    key: Arc::clone(&self.series[place]),
                    runs,
                    raws,
                });
            }
        }
        Ok(out)
    }

    fn decode_rows(&self) -> Result<Vec<(i64, Row)>, Corrupt> {
        let mut reader = Reader::new(self);
        let mut rows = Vec::new();
        for _ in 0..self.rows {
            let tick = reader.next(self)?;
            let present = (0u32..).zip(reader.present.iter().zip(&reader.last));
            let values = present.filter(|(_, (present, _))| **present);
            rows.push((
                tick,
                values.map(|(place, (_, raw))| (place, *raw)).collect(),
            ));
        }
        Ok(rows)
    }
}

/// Walks rows from the first.
struct Reader<'a> {
    input: &'a [u8],
    tick: i64,
    step: i64,
    last: Vec<Raw>,
    present: Vec<bool>,
}

impl<'a> Reader<'a> {
    fn new(rows: &'a Rows) -> Self {
        Self {
            input: &rows.bytes,
            tick: 0,
            step: 0,
            last: vec![Raw(0); rows.series.len()],
            present: vec![false; rows.series.len()],
        }
    }

    fn next(&mut self, rows: &Rows) -> Result<i64, Corrupt> {
        let input = &mut self.input;
        self.step = self.step.wrapping_add(unzigzag(take_varint(input)?));
        self.tick = self.tick.wrapping_add(self.step);
        let head = take_varint(input)?;
        let mut next = 0usize;
        let mut place = |input: &mut &[u8]| {
            let gap = usize::try_from(take_varint(input)?).map_err(|_| Corrupt)?;
            let at = next.checked_add(gap).ok_or(Corrupt)?;
            next = at + 1;
            Ok::<_, Corrupt>(at)
        };
        for _ in 0..head >> 1 {
            let at = place(input)?;
            let key = rows.series.get(at).ok_or(Corrupt)?;
            self.last[at] = take_raw(input, key.family.scale, self.last[at])?;
            self.present[at] = true;
        }
        if head & 1 == 1 {
            let count = take_varint(input)?;
            let mut next = 0usize;
            for _ in 0..count {
                let gap = usize::try_from(take_varint(input)?).map_err(|_| Corrupt)?;
                let at = next.checked_add(gap).ok_or(Corrupt)?;
                *self.present.get_mut(at).ok_or(Corrupt)? = false;
                next = at + 1;
            }
        }
        Ok(self.tick)
    }
}

fn put_raw(out: &mut Vec<u8>, scale: Scale, raw: Raw, last: Raw) {
    if scale == Scale::Float {
        put_varint(out, (raw.0 ^ last.0).reverse_bits());
    } else {
        put_varint(out, zigzag(raw.as_int().wrapping_sub(last.as_int())));
    }
}

fn take_raw(input: &mut &[u8], scale: Scale, last: Raw) -> Result<Raw, Corrupt> {
    let number = take_varint(input)?;
    Ok(if scale == Scale::Float {
        Raw(number.reverse_bits() ^ last.0)
    } else {
        Raw::int(last.as_int().wrapping_add(unzigzag(number)))
    })
}
