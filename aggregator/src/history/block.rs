//! One file of history: the samples of a group of hosts in one window of time. Immutable.
//!
//! The bytes are drawn in `docs/history-format.md`. In short: pages of chunks, metric by metric and in each metric
//! host by host, so that one metric of many hosts is one stretch of the file; behind them which hosts there are
//! and when they had samples, the names of the series, and where each page lies. A page has a checksum, and
//! so has everything behind the pages. Nothing is loaded that was not asked for but what stands at the end.

use std::{collections::HashMap, io, io::Read as _, sync::Arc};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use muster_proto::{
    id::HostId,
    log::Storage,
    series::{Family, Kind, Raw, Scale},
};

use super::{
    HistoryError, Needs, Point, SeriesName, Tier,
    column::{
        self, Corrupt, Effort, put_runs, put_varint, take_bytes, take_count, take_runs,
        take_varint, unzigzag, zigzag,
    },
    manifest::FileEntry,
};

const MAGIC: &[u8; 8] = b"MUSTHIST";
const END_MAGIC: &[u8; 8] = b"MUSTHEND";
/// Version of the format that is written. Version 1 is read too: it lacks two kinds of numbers, and the length by which
/// the extremes of a roll-up are passed over.
pub const VERSION: u16 = 2;
const HEADER_BYTES: usize = 64;
const FOOTER_BYTES: usize = 96;

/// A page is closed when it has grown to this: what one host's series costs to read, at least.
const PAGE_BYTES: usize = 8 * 1024;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 * 1024;

/// Largest section that is believed: names of 4 million series are less.
const MAX_SECTION_BYTES: u64 = 512 << 20;

/// A chunk has ranges of rows; without this every row has a value.
const HAS_RUNS: u8 = 1;

/// What stands in a file, and where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// How fine.
    pub tier: Tier,
    /// Which hosts.
    pub group: u32,
    /// First millisecond.
    pub start: i64,
    /// The millisecond after the last.
    pub end: i64,
    /// Which change of the store made it.
    pub generation: u64,
}

/// Values of one series of one host, side by side with the times they have.
#[derive(Debug, Clone, PartialEq)]
pub enum Cells {
    /// Samples.
    Raw(Vec<Raw>),
    /// Roll-ups of what goes up and down.
    Gauge(Vec<GaugeCell>),
    /// Roll-ups of what only grows.
    Counter {
        /// The first sample of all.
        first: Raw,
        /// In the order of their times.
        cells: Vec<CounterCell>,
    },
}

/// One roll-up of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterCell {
    /// Samples.
    pub count: u32,
    /// The last one.
    pub last: Raw,
    /// What was lost in resets within it: the sum of the values that stood before each.
    pub dropped: Raw,
}

/// One roll-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GaugeCell {
    /// Samples.
    pub count: u32,
    /// The last one.
    pub last: Raw,
    /// The smallest.
    pub min: Raw,
    /// The largest.
    pub max: Raw,
    /// Their sum; whole numbers beyond 64 bits wrap around.
    pub sum: Raw,
}

impl Cells {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Raw(raws) => raws.len(),
            Self::Gauge(cells) => cells.len(),
            Self::Counter { cells, .. } => cells.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether roll-ups of a family are those of a counter.
#[must_use]
pub fn is_counter(family: &Family) -> bool {
    family.kind == Kind::Counter
}

/// A chunk: times and values.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Rising, each once.
    pub ticks: Vec<i64>,
    /// As many.
    pub cells: Cells,
}

impl Chunk {
    /// The points in base units, from `from` up to `to`; `before` is the point before, whose counter may have been
    /// reset in between.
    pub fn points(&self, family: &Family, from: i64, to: i64, out: &mut Vec<Point>) {
        let scale = family.scale;
        let value = |raw| scale.value(raw);
        let range =
            self.ticks.partition_point(|at| *at < from)..self.ticks.partition_point(|at| *at < to);
        match &self.cells {
            Cells::Raw(raws) => {
                let samples = self.ticks[range.clone()].iter().zip(&raws[range]);
                out.extend(samples.map(|(at, raw)| Point::sample(*at, value(*raw))));
            }
            Cells::Gauge(cells) => {
                out.reserve_exact(range.len());
                for (at, cell) in self.ticks[range.clone()].iter().zip(&cells[range]) {
                    out.push(Point {
                        at: *at,
                        last: value(cell.last),
                        min: value(cell.min),
                        max: value(cell.max),
                        sum: value(cell.sum),
                        count: cell.count,
                        dropped: 0.0,
                    });
                }
            }
            Cells::Counter { first, cells } => {
                let begins = range.start == 0;
                let at_first = out.len();
                let before = out.last().map(|point| point.last);
                out.reserve_exact(range.len());
                for (at, cell) in self.ticks[range.clone()].iter().zip(&cells[range]) {
                    out.push(Point {
                        at: *at,
                        last: value(cell.last),
                        min: f64::NAN,
                        max: f64::NAN,
                        sum: f64::NAN,
                        count: cell.count,
                        dropped: value(cell.dropped),
                    });
                }
                // A reset between two files is seen by the first sample of the later one.
                if begins
                    && let Some(before) = before
                    && let Some(point) = out.get_mut(at_first)
                    && value(*first) < before
                {
                    point.dropped += before;
                }
            }
        }
    }
}

/// Appends a chunk: `runs` are the host's rows with a value, of `rows`.
pub fn put_chunk(
    scale: Scale,
    runs: &[(u32, u32)],
    rows: usize,
    cells: &Cells,
    effort: Effort,
    out: &mut Vec<u8>,
) {
    let full = matches!(runs, [(0, count)] if *count as usize == rows);
    out.push(if full { 0 } else { HAS_RUNS });
    if !full {
        put_runs(runs, out);
    }
    match cells {
        Cells::Raw(raws) => put_raws(scale, raws.iter().copied(), effort, out),
        Cells::Gauge(cells) => {
            let counts: Vec<i64> = cells.iter().map(|cell| i64::from(cell.count)).collect();
            column::put(&counts, effort, out);
            put_raws(scale, cells.iter().map(|cell| cell.last), effort, out);
            // What differs little from the last value is written as the difference.
            let is_float = scale == Scale::Float;
            let less = |one: Raw, other: Raw| {
                if is_float {
                    one
                } else {
                    Raw::int(one.as_int().wrapping_sub(other.as_int()))
                }
            };
            let mut extremes = Vec::new();
            let below = |cell: &GaugeCell| match is_float {
                true => cell.min,
                false => less(cell.last, cell.min),
            };
            put_raws(scale, cells.iter().map(below), effort, &mut extremes);
            let above = cells.iter().map(|cell| less(cell.max, cell.last));
            put_raws(scale, above, effort, &mut extremes);
            put_varint(out, extremes.len() as u64);
            out.extend_from_slice(&extremes);
            let beside = |cell: &GaugeCell| less(cell.sum, all_last(cell.count, cell.last));
            put_raws(scale, cells.iter().map(beside), effort, out);
        }
        Cells::Counter { first, cells } => {
            let counts: Vec<i64> = cells.iter().map(|cell| i64::from(cell.count)).collect();
            column::put(&counts, effort, out);
            put_raws(scale, std::iter::once(*first), effort, out);
            put_raws(scale, cells.iter().map(|cell| cell.last), effort, out);
            let resets = (0u64..).zip(cells).filter(|(_, cell)| cell.dropped != ZERO);
            put_varint(out, resets.clone().count() as u64);
            let mut next = 0;
            for (at, cell) in resets {
                put_varint(out, at - next);
                put_raws(scale, std::iter::once(cell.dropped), effort, out);
                next = at + 1;
            }
        }
    }
}

/// The bits of 0 and of 0.0.
const ZERO: Raw = Raw(0);

fn all_last(count: u32, last: Raw) -> Raw {
    Raw::int(last.as_int().wrapping_mul(i64::from(count)))
}

fn put_raws(scale: Scale, raws: impl Iterator<Item = Raw>, effort: Effort, out: &mut Vec<u8>) {
    if scale == Scale::Float {
        let values: Vec<f64> = raws.map(|raw| f64::from_bits(raw.0)).collect();
        column::put(&values, effort, out);
    } else {
        let values: Vec<i64> = raws.map(Raw::as_int).collect();
        column::put(&values, effort, out);
    }
}

fn take_raws(scale: Scale, input: &mut &[u8], count: usize) -> Result<Vec<Raw>, Corrupt> {
    Ok(if scale == Scale::Float {
        let values: Vec<f64> = column::take(input, count)?;
        values.into_iter().map(Raw::float).collect()
    } else {
        let values: Vec<i64> = column::take(input, count)?;
        values.into_iter().map(Raw::int).collect()
    })
}

fn take_one(scale: Scale, input: &mut &[u8]) -> Result<Raw, Corrupt> {
    take_raws(scale, input, 1)?.first().copied().ok_or(Corrupt)
}

/// How the chunks of a file are written.
#[derive(Debug, Clone, Copy)]
struct Format {
    tier: Tier,
    version: u16,
}

/// Reads which of the host's ticks a chunk has values at.
fn take_ticks(input: &mut &[u8], ticks: &[TickRun]) -> Result<Vec<i64>, Corrupt> {
    match take_bytes(input, 1)?[0] {
        0 => Ok(all_ticks(ticks)),
        HAS_RUNS => {
            let rows = ticks.iter().map(|run| run.count as usize).sum();
            let runs = take_runs(input, rows)?;
            let all = all_ticks(ticks);
            let chosen = runs
                .iter()
                .flat_map(|(first, count)| &all[*first as usize..(first + count) as usize]);
            Ok(chosen.copied().collect())
        }
        _ => Err(Corrupt),
    }
}

/// Reads a chunk of a host that has these ticks.
fn take_chunk(
    format: Format,
    family: &Family,
    ticks: &[TickRun],
    mut input: &[u8],
) -> Result<Chunk, Corrupt> {
    let input = &mut input;
    let scale = family.scale;
    let tier = format.tier;
    let ticks = take_ticks(input, ticks)?;
    let n = ticks.len();
    let cells = if tier == Tier::Raw {
        Cells::Raw(take_raws(scale, input, n)?)
    } else if is_counter(family) {
        take_counter(scale, input, n)?
    } else {
        take_gauge(format, scale, input, n)?
    };
    Ok(Chunk { ticks, cells })
}

fn take_counter(scale: Scale, input: &mut &[u8], n: usize) -> Result<Cells, Corrupt> {
    let counts: Vec<i64> = column::take(input, n)?;
    let first = take_one(scale, input)?;
    let last = take_raws(scale, input, n)?;
    let mut cells = Vec::with_capacity(n);
    for (count, last) in counts.into_iter().zip(last) {
        cells.push(CounterCell {
            count: u32::try_from(count).map_err(|_| Corrupt)?,
            last,
            dropped: ZERO,
        });
    }
    let mut next = 0usize;
    for _ in 0..take_count(input)? {
        let at = next.checked_add(take_count(input)?).ok_or(Corrupt)?;
        cells.get_mut(at).ok_or(Corrupt)?.dropped = take_one(scale, input)?;
        next = at + 1;
    }
    Ok(Cells::Counter { first, cells })
}

/// Where the extremes of roll-ups stand: they are passed over, or read from what is returned.
fn take_extremes<'b>(format: Format, input: &mut &'b [u8]) -> Result<Option<&'b [u8]>, Corrupt> {
    if format.version < 2 {
        return Ok(None);
    }
    let length = take_count(input)?;
    take_bytes(input, length).map(Some)
}

fn take_gauge(format: Format, scale: Scale, input: &mut &[u8], n: usize) -> Result<Cells, Corrupt> {
    let counts: Vec<i64> = column::take(input, n)?;
    let last = take_raws(scale, input, n)?;
    // The length is for who needs no extremes.
    let mut extremes = take_extremes(format, input)?;
    let input_of_extremes = extremes.as_mut().unwrap_or(input);
    let min = take_raws(scale, input_of_extremes, n)?;
    let max = take_raws(scale, input_of_extremes, n)?;
    let sum = take_raws(scale, input, n)?;
    let less = |one: Raw, other: Raw| Raw::int(one.as_int().wrapping_sub(other.as_int()));
    let plus = |one: Raw, other: Raw| Raw::int(one.as_int().wrapping_add(other.as_int()));
    let mut cells = Vec::with_capacity(n);
    for at in 0..n {
        let count = u32::try_from(counts[at]).map_err(|_| Corrupt)?;
        let last = last[at];
        let (min, max, sum) = if scale == Scale::Float {
            (min[at], max[at], sum[at])
        } else {
            (
                less(last, min[at]),
                plus(last, max[at]),
                plus(all_last(count, last), sum[at]),
            )
        };
        cells.push(GaugeCell {
            count,
            last,
            min,
            max,
            sum,
        });
    }
    Ok(Cells::Gauge(cells))
}

/// Columns that are read again and again, one chunk after another.
#[derive(Default)]
struct Columns {
    counts: Vec<i64>,
    last: Vec<i64>,
    min: Vec<i64>,
    max: Vec<i64>,
    sum: Vec<i64>,
}

impl Columns {
    /// Appends the roll-ups of a gauge of whole numbers that lie in `ranges`, with the parts that are needed.
    fn points(
        &mut self,
        (family, needs): (&Family, Needs),
        ticks: &[TickRun],
        mut input: &[u8],
        ranges: &[(i64, i64)],
        out: &mut Vec<Point>,
    ) -> Result<(), Corrupt> {
        let input = &mut input;
        let ticks = take_ticks(input, ticks)?;
        let n = ticks.len();
        column::take_into(input, n, &mut self.counts)?;
        column::take_into(input, n, &mut self.last)?;
        let length = take_count(input)?;
        let mut extremes = take_bytes(input, length)?;
        if needs.extremes {
            column::take_into(&mut extremes, n, &mut self.min)?;
            column::take_into(&mut extremes, n, &mut self.max)?;
        }
        if needs.sums {
            column::take_into(input, n, &mut self.sum)?;
        }
        let value = |raw: i64| family.scale.value(Raw::int(raw));
        for (from, to) in ranges {
            let range = ticks.partition_point(|at| at < from)..ticks.partition_point(|at| at < to);
            out.reserve_exact(range.len());
            for at in range {
                let (last, count) = (self.last[at], self.counts[at]);
                let mut point = Point {
                    at: ticks[at],
                    last: value(last),
                    min: f64::NAN,
                    max: f64::NAN,
                    sum: f64::NAN,
                    count: u32::try_from(count).map_err(|_| Corrupt)?,
                    dropped: 0.0,
                };
                if needs.extremes {
                    point.min = value(last.wrapping_sub(self.min[at]));
                    point.max = value(last.wrapping_add(self.max[at]));
                }
                if needs.sums {
                    point.sum = value(last.wrapping_mul(count).wrapping_add(self.sum[at]));
                }
                out.push(point);
            }
        }
        Ok(())
    }
}

/// Reads a chunk of samples that stands in no file yet.
pub(super) fn take_samples(
    family: &Family,
    ticks: &[TickRun],
    bytes: &[u8],
) -> Result<Chunk, Corrupt> {
    let format = Format {
        tier: Tier::Raw,
        version: VERSION,
    };
    take_chunk(format, family, ticks, bytes)
}

/// Ticks at one distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TickRun {
    /// The first.
    pub first: i64,
    /// Milliseconds from one to the next.
    pub step: i64,
    /// How many.
    pub count: u32,
}

/// Rising ticks as few runs.
#[must_use]
pub fn tick_runs(ticks: &[i64]) -> Vec<TickRun> {
    let mut runs: Vec<TickRun> = Vec::new();
    for &tick in ticks {
        if let Some(run) = runs.last_mut() {
            let step = tick - (run.first + run.step * (i64::from(run.count) - 1));
            if run.count == 1 || step == run.step {
                run.step = step;
                run.count += 1;
                continue;
            }
        }
        runs.push(TickRun {
            first: tick,
            step: 0,
            count: 1,
        });
    }
    runs
}

/// All ticks of runs.
#[must_use]
pub fn all_ticks(runs: &[TickRun]) -> Vec<i64> {
    let each = |run: &TickRun| {
        let run = *run;
        (0..i64::from(run.count)).map(move |at| run.first + run.step * at)
    };
    runs.iter().flat_map(each).collect()
}

/// Writes a file, series by series in their order, hosts by their place in the list.
pub struct Writer<'s, S: Storage> {
    storage: &'s S,
    file: S::File,
    name: String,
    span: Span,
    hosts: Vec<(HostId, Vec<TickRun>)>,
    buffer: Vec<u8>,
    written: u64,
    families: Vec<Arc<Family>>,
    series: Vec<(u32, Vec<String>)>,
    /// Pages of each series.
    pages: Vec<Vec<Page>>,
    /// The page that is being filled: places and lengths of its chunks, and the chunks.
    open: Vec<(u32, usize)>,
    chunks: Vec<u8>,
    points: u64,
}

/// Where a page lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    offset: u64,
    length: u32,
    /// The place of its first host.
    first: u32,
    checksum: u32,
}

impl<'s, S: Storage> Writer<'s, S> {
    /// Begins a file with the ticks of all its hosts, which are in the order of their ids.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(
        storage: &'s S,
        name: String,
        span: Span,
        hosts: Vec<(HostId, Vec<TickRun>)>,
    ) -> Result<Self, HistoryError> {
        // A file of this name is what a crash left of an unfinished change.
        match storage.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &name, error));
            }
            _ => {}
        }
        let file = storage
            .create(&name)
            .map_err(|error| io_error("create", &name, error))?;
        let mut writer = Self {
            storage,
            file,
            name,
            span,
            hosts,
            buffer: Vec::with_capacity(BUFFER_BYTES + PAGE_BYTES),
            written: 0,
            families: Vec::new(),
            series: Vec::new(),
            pages: Vec::new(),
            open: Vec::new(),
            chunks: Vec::new(),
            points: 0,
        };
        writer.buffer.extend_from_slice(&header(&span));
        Ok(writer)
    }

    /// Begins a series; those before it are of lower order.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn series(&mut self, name: &SeriesName) -> Result<(), HistoryError> {
        self.close_page()?;
        if self
            .families
            .last()
            .is_none_or(|last| **last != *name.family)
        {
            self.families.push(Arc::clone(&name.family));
        }
        let family = u32::try_from(self.families.len() - 1).unwrap_or(u32::MAX);
        self.series.push((family, name.labels.clone()));
        self.pages.push(Vec::new());
        Ok(())
    }

    /// Adds the chunk of the host at this place; rising within a series.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn chunk(&mut self, place: u32, points: usize, bytes: &[u8]) -> Result<(), HistoryError> {
        if !self.open.is_empty() && self.chunks.len() + bytes.len() > PAGE_BYTES {
            self.close_page()?;
        }
        self.open.push((place, bytes.len()));
        self.chunks.extend_from_slice(bytes);
        self.points += points as u64;
        Ok(())
    }

    fn close_page(&mut self) -> Result<(), HistoryError> {
        let Some(&(first, _)) = self.open.first() else {
            return Ok(());
        };
        let begin = self.buffer.len();
        put_varint(&mut self.buffer, self.open.len() as u64);
        let mut next = first;
        for &(place, length) in &self.open {
            put_varint(&mut self.buffer, u64::from(place - next));
            put_varint(&mut self.buffer, length as u64);
            next = place + 1;
        }
        self.buffer.extend_from_slice(&self.chunks);
        let page = Page {
            offset: self.written + begin as u64,
            length: u32::try_from(self.buffer.len() - begin).unwrap_or(u32::MAX),
            first,
            checksum: crc32c::crc32c(&self.buffer[begin..]),
        };
        self.pages
            .last_mut()
            .expect("a chunk belongs to a series")
            .push(page);
        self.open.clear();
        self.chunks.clear();
        if self.buffer.len() >= BUFFER_BYTES {
            self.write_buffer()?;
        }
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<(), HistoryError> {
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            match self.storage.append(&mut self.file, rest) {
                Ok(0) => {
                    return Err(io_error(
                        "write",
                        &self.name,
                        io::ErrorKind::WriteZero.into(),
                    ));
                }
                Ok(written) => rest = &rest[written.min(rest.len())..],
                Err(error) => return Err(io_error("write", &self.name, error)),
            }
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what stands behind the pages and makes the file durable. Its name becomes so with the folder's
    /// next sync.
    ///
    /// # Errors
    /// When the disk refuses; the file is worthless then.
    pub fn finish(mut self) -> Result<FileEntry, HistoryError> {
        self.close_page()?;
        let sections = [
            self.hosts_section(),
            deflated(&names_section(&self.families, &self.series)),
            self.index_section(),
        ];
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        for section in sections {
            footer.extend_from_slice(&(self.written + self.buffer.len() as u64).to_le_bytes());
            footer.extend_from_slice(&(section.len() as u64).to_le_bytes());
            footer.extend_from_slice(&crc32c::crc32c(&section).to_le_bytes());
            self.buffer.extend_from_slice(&section);
        }
        footer.extend_from_slice(&self.points.to_le_bytes());
        footer.extend_from_slice(&[0; 16]);
        footer.extend_from_slice(END_MAGIC);
        footer.extend_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
        self.buffer.extend_from_slice(&footer);
        self.write_buffer()?;
        self.storage
            .sync(&mut self.file)
            .map_err(|error| io_error("sync", &self.name, error))?;
        Ok(FileEntry {
            name: self.name,
            tier: self.span.tier,
            group: self.span.group,
            start: self.span.start,
            end: self.span.end,
            generation: self.span.generation,
            bytes: self.written,
            points: self.points,
            packed: false,
        })
    }

    fn hosts_section(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.hosts.len() as u64);
        for (host, runs) in &self.hosts {
            out.extend_from_slice(host.as_bytes());
            put_varint(&mut out, runs.len() as u64);
            let mut last = self.span.start;
            for run in runs {
                put_varint(&mut out, zigzag(run.first - last));
                put_varint(&mut out, zigzag(run.step));
                put_varint(&mut out, u64::from(run.count));
                last = run.first + run.step * (i64::from(run.count) - 1);
            }
        }
        out
    }

    fn index_section(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.pages.len() as u64);
        for pages in &self.pages {
            put_varint(&mut out, pages.len() as u64);
            for page in pages {
                put_varint(&mut out, u64::from(page.first));
                put_varint(&mut out, u64::from(page.length));
                out.extend_from_slice(&page.checksum.to_le_bytes());
            }
        }
        out
    }
}

fn header(span: &Span) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10] = span.tier as u8;
    bytes[12..16].copy_from_slice(&span.group.to_le_bytes());
    bytes[16..24].copy_from_slice(&span.start.to_le_bytes());
    bytes[24..32].copy_from_slice(&span.end.to_le_bytes());
    bytes[32..40].copy_from_slice(&span.generation.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Families and series as postcard writes them.
fn names_section(families: &[Arc<Family>], series: &[(u32, Vec<String>)]) -> Vec<u8> {
    let families: Vec<&Family> = families.iter().map(|family| &**family).collect();
    postcard::to_stdvec(&(families, series)).unwrap_or_default()
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    // Writing to a Vec does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

fn inflated(bytes: &[u8]) -> Result<Vec<u8>, Corrupt> {
    let mut out = Vec::new();
    DeflateDecoder::new(bytes)
        .take(MAX_SECTION_BYTES)
        .read_to_end(&mut out)
        .map_err(|_| Corrupt)?;
    Ok(out)
}

pub(super) fn io_error(action: &'static str, name: &str, source: io::Error) -> HistoryError {
    HistoryError::Io {
        action,
        name: name.to_owned(),
        source,
    }
}

/// A file that is open for reading: what stands at its end is in memory.
pub struct Block<S: Storage> {
    storage: S,
    file: S::File,
    name: String,
    bytes: u64,
    points: u64,
    span: Span,
    version: u16,
    hosts: Vec<HostId>,
    ticks: Vec<Vec<TickRun>>,
    places: HashMap<HostId, u32>,
    series: Vec<SeriesName>,
    pages: Vec<Vec<Page>>,
}

impl<S: Storage> Block<S> {
    /// Opens a file and checks everything but its pages.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub fn open(storage: &S, name: &str) -> Result<Self, HistoryError> {
        let failed = |error| io_error("read", name, error);
        let file = storage.open(name).map_err(failed)?;
        let len = storage.len(&file).map_err(failed)?;
        let damaged = |what| HistoryError::Damaged {
            name: name.to_owned(),
            what,
        };
        let head: Vec<u8> = read_exact(storage, &file, name, 0, HEADER_BYTES as u64)?;
        let (span, version) = parse_header(&head).map_err(|fault| match fault {
            HeaderFault::Damaged => damaged("its header"),
            HeaderFault::Newer(version) => HistoryError::NewerVersion {
                name: name.to_owned(),
                version,
                supported: VERSION,
            },
        })?;
        let footer_at = len
            .checked_sub(FOOTER_BYTES as u64)
            .filter(|at| *at >= HEADER_BYTES as u64)
            .ok_or_else(|| damaged("it is cut off"))?;
        let footer = read_exact(storage, &file, name, footer_at, FOOTER_BYTES as u64)?;
        let checksum = u32::from_le_bytes(array(&footer[92..]));
        if &footer[84..92] != END_MAGIC || crc32c::crc32c(&footer[..92]) != checksum {
            return Err(damaged("its end"));
        }
        let section = |at: usize| {
            let offset = u64::from_le_bytes(array(&footer[at..at + 8]));
            let length = u64::from_le_bytes(array(&footer[at + 8..at + 16]));
            let fits = offset
                .checked_add(length)
                .is_some_and(|end| end <= footer_at);
            if !fits || length > MAX_SECTION_BYTES {
                return Err(damaged("its end"));
            }
            let bytes = read_exact(storage, &file, name, offset, length)?;
            if crc32c::crc32c(&bytes) != u32::from_le_bytes(array(&footer[at + 16..at + 20])) {
                return Err(damaged("what stands behind its pages"));
            }
            Ok(bytes)
        };
        let (hosts, names, index) = (section(0)?, section(20)?, section(40)?);
        let corrupt = |_| damaged("what stands behind its pages");
        let (hosts, ticks) = parse_hosts(&hosts, &span).map_err(corrupt)?;
        let series = parse_names(&names).map_err(corrupt)?;
        let pages = parse_index(&index, series.len(), footer_at).map_err(corrupt)?;
        Ok(Self {
            places: hosts.iter().copied().zip(0..).collect(),
            storage: storage.clone(),
            file,
            name: name.to_owned(),
            bytes: len,
            points: u64::from_le_bytes(array(&footer[60..68])),
            span,
            version,
            hosts,
            ticks,
            series,
            pages,
        })
    }

    /// What a manifest says of it, as far as the file tells: not whether it was made from all of its window.
    pub fn entry(&self) -> FileEntry {
        FileEntry {
            name: self.name.clone(),
            tier: self.span.tier,
            group: self.span.group,
            start: self.span.start,
            end: self.span.end,
            generation: self.span.generation,
            bytes: self.bytes,
            points: self.points,
            packed: false,
        }
    }

    /// What stands in it.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Its hosts by place.
    pub fn hosts(&self) -> &[HostId] {
        &self.hosts
    }

    /// When the host at a place had samples.
    pub fn ticks(&self, place: u32) -> &[TickRun] {
        self.ticks.get(place as usize).map_or(&[], Vec::as_slice)
    }

    /// The place of a host.
    pub fn place(&self, host: HostId) -> Option<u32> {
        self.places.get(&host).copied()
    }

    /// Its series, in order.
    pub fn series(&self) -> &[SeriesName] {
        &self.series
    }

    /// Gives `each` the chunks of the series at this index, of the hosts for which `wanted` holds.
    ///
    /// # Errors
    /// When a page cannot be read or is damaged; what came before was given.
    pub fn chunks(
        &self,
        series: usize,
        wanted: impl FnMut(u32) -> bool,
        mut each: impl FnMut(u32, Chunk),
    ) -> Result<(), HistoryError> {
        let family = self.family(series)?;
        let format = self.format();
        self.encoded(series, wanted, |place, ticks, bytes| {
            let chunk = take_chunk(format, family, ticks, bytes)?;
            if chunk.ticks.len() != chunk.cells.len() {
                return Err(Corrupt);
            }
            each(place, chunk);
            Ok(())
        })
    }

    /// As [`Self::chunks`], but points in base units of the ranges and with the parts that are asked for: `each` is given
    /// what appends them.
    ///
    /// # Errors
    /// As [`Self::chunks`].
    pub fn points(
        &self,
        series: usize,
        wanted: impl FnMut(u32) -> bool,
        (needs, ranges): (Needs, &[(i64, i64)]),
        mut each: impl FnMut(
            u32,
            &mut dyn FnMut(&mut Vec<Point>) -> Result<(), Corrupt>,
        ) -> Result<(), Corrupt>,
    ) -> Result<(), HistoryError> {
        let family = self.family(series)?;
        let format = self.format();
        let is_gauge = format.tier != Tier::Raw && !is_counter(family);
        let is_fast = is_gauge && family.scale != Scale::Float && format.version >= 2;
        let mut columns = Columns::default();
        self.encoded(series, wanted, |place, ticks, bytes| {
            each(place, &mut |points| {
                if is_fast {
                    return columns.points((family, needs), ticks, bytes, ranges, points);
                }
                let chunk = take_chunk(format, family, ticks, bytes)?;
                if chunk.ticks.len() != chunk.cells.len() {
                    return Err(Corrupt);
                }
                for &(from, to) in ranges {
                    chunk.points(family, from, to, points);
                }
                Ok(())
            })
        })
    }

    fn format(&self) -> Format {
        Format {
            tier: self.span.tier,
            version: self.version,
        }
    }

    fn family(&self, series: usize) -> Result<&Family, HistoryError> {
        let name = self.series.get(series);
        name.map(|name| &*name.family)
            .ok_or_else(|| self.damaged_page())
    }

    fn damaged_page(&self) -> HistoryError {
        HistoryError::Damaged {
            name: self.name.clone(),
            what: "a page",
        }
    }

    /// Gives `each` the chunks of a series as they are written, with the ticks of their hosts.
    fn encoded(
        &self,
        series: usize,
        mut wanted: impl FnMut(u32) -> bool,
        mut each: impl FnMut(u32, &[TickRun], &[u8]) -> Result<(), Corrupt>,
    ) -> Result<(), HistoryError> {
        let damaged = || self.damaged_page();
        let pages = self.pages.get(series).ok_or_else(damaged)?;
        for (at, page) in pages.iter().enumerate() {
            let end = pages.get(at + 1).map_or(
                u32::try_from(self.hosts.len()).unwrap_or(u32::MAX),
                |next| next.first,
            );
            if !(page.first..end).any(&mut wanted) {
                continue;
            }
            let length = u64::from(page.length);
            let bytes = read_exact(&self.storage, &self.file, &self.name, page.offset, length)?;
            if crc32c::crc32c(&bytes) != page.checksum {
                return Err(damaged());
            }
            let mut input = &bytes[..];
            let directory = parse_page(&mut input, page.first).map_err(|_| damaged())?;
            for (place, length) in directory {
                let chunk = take_bytes(&mut input, length).map_err(|_| damaged())?;
                if !wanted(place) {
                    continue;
                }
                let ticks = self.ticks.get(place as usize).ok_or_else(damaged)?;
                each(place, ticks, chunk).map_err(|_| damaged())?;
            }
        }
        Ok(())
    }
}

fn parse_page(input: &mut &[u8], first: u32) -> Result<Vec<(u32, usize)>, Corrupt> {
    let count = take_count(input)?;
    if count > input.len() {
        return Err(Corrupt);
    }
    let mut next = first;
    let mut directory = Vec::with_capacity(count);
    for _ in 0..count {
        let gap = u32::try_from(take_varint(input)?).map_err(|_| Corrupt)?;
        let place = next.checked_add(gap).ok_or(Corrupt)?;
        directory.push((place, take_count(input)?));
        next = place.checked_add(1).ok_or(Corrupt)?;
    }
    Ok(directory)
}

enum HeaderFault {
    Damaged,
    Newer(u16),
}

fn parse_header(bytes: &[u8]) -> Result<(Span, u16), HeaderFault> {
    let checksum = u32::from_le_bytes(array(&bytes[60..64]));
    if &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..60]) != checksum {
        return Err(HeaderFault::Damaged);
    }
    let version = u16::from_le_bytes(array(&bytes[8..10]));
    if version > VERSION {
        return Err(HeaderFault::Newer(version));
    }
    let tier = Tier::ALL
        .into_iter()
        .find(|tier| *tier as u8 == bytes[10])
        .ok_or(HeaderFault::Damaged)?;
    let span = Span {
        tier,
        group: u32::from_le_bytes(array(&bytes[12..16])),
        start: i64::from_le_bytes(array(&bytes[16..24])),
        end: i64::from_le_bytes(array(&bytes[24..32])),
        generation: u64::from_le_bytes(array(&bytes[32..40])),
    };
    Ok((span, version))
}

fn parse_hosts(mut input: &[u8], span: &Span) -> Result<(Vec<HostId>, Vec<Vec<TickRun>>), Corrupt> {
    let input = &mut input;
    let count = take_count(input)?;
    if count > input.len() {
        return Err(Corrupt);
    }
    let (mut hosts, mut ticks) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        hosts.push(HostId::from_slice(take_bytes(input, 16)?).map_err(|_| Corrupt)?);
        let count = take_count(input)?;
        if count > input.len() {
            return Err(Corrupt);
        }
        let mut runs = Vec::with_capacity(count);
        let (mut last, mut rows) = (span.start, 0usize);
        for _ in 0..count {
            let run = TickRun {
                first: last.wrapping_add(unzigzag(take_varint(input)?)),
                step: unzigzag(take_varint(input)?),
                count: u32::try_from(take_varint(input)?).map_err(|_| Corrupt)?,
            };
            rows = rows.saturating_add(run.count as usize);
            let length = run
                .step
                .checked_mul(i64::from(run.count) - 1)
                .ok_or(Corrupt)?;
            last = run.first.checked_add(length).ok_or(Corrupt)?;
            runs.push(run);
        }
        if rows > column::MAX_NUMBERS {
            return Err(Corrupt);
        }
        ticks.push(runs);
    }
    Ok((hosts, ticks))
}

fn parse_names(bytes: &[u8]) -> Result<Vec<SeriesName>, Corrupt> {
    let bytes = inflated(bytes)?;
    let (families, series): (Vec<Family>, Vec<(u32, Vec<String>)>) =
        postcard::from_bytes(&bytes).map_err(|_| Corrupt)?;
    let families: Vec<Arc<Family>> = families.into_iter().map(Arc::new).collect();
    series
        .into_iter()
        .map(|(family, labels)| {
            let family = families.get(family as usize).ok_or(Corrupt)?;
            if family.labels.len() != labels.len() {
                return Err(Corrupt);
            }
            Ok(SeriesName {
                family: Arc::clone(family),
                labels,
            })
        })
        .collect()
}

fn parse_index(mut input: &[u8], series: usize, end: u64) -> Result<Vec<Vec<Page>>, Corrupt> {
    let input = &mut input;
    if take_count(input)? != series {
        return Err(Corrupt);
    }
    let mut offset = HEADER_BYTES as u64;
    let mut all = Vec::with_capacity(series);
    for _ in 0..series {
        let count = take_count(input)?;
        if count > input.len() {
            return Err(Corrupt);
        }
        let mut pages = Vec::with_capacity(count);
        for _ in 0..count {
            let narrow = |number| u32::try_from(number).map_err(|_| Corrupt);
            let page = Page {
                offset,
                first: narrow(take_varint(input)?)?,
                length: narrow(take_varint(input)?)?,
                checksum: u32::from_le_bytes(array(take_bytes(input, 4)?)),
            };
            offset += u64::from(page.length);
            if offset > end {
                return Err(Corrupt);
            }
            pages.push(page);
        }
        all.push(pages);
    }
    Ok(all)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let n = bytes.len().min(N);
    out[..n].copy_from_slice(&bytes[..n]);
    out
}

/// Reads `length` bytes at `offset`, all of them.
pub(super) fn read_exact<S: Storage>(
    storage: &S,
    file: &S::File,
    name: &str,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, HistoryError> {
    let length = usize::try_from(length).map_err(|_| HistoryError::Damaged {
        name: name.to_owned(),
        what: "a length in it",
    })?;
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match storage.read_at(file, offset + filled as u64, &mut bytes[filled..]) {
            Ok(0) => {
                return Err(HistoryError::Damaged {
                    name: name.to_owned(),
                    what: "it is cut off",
                });
            }
            Ok(read) => filled += read,
            Err(error) => return Err(io_error("read", name, error)),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Family {
        Family {
            name: "load".into(),
            kind: Kind::Gauge,
            scale: Scale::Centi,
            labels: Vec::new(),
        }
    }

    /// Five roll-ups of a gauge.
    fn cells() -> Vec<GaugeCell> {
        let cell = |at: i64| GaugeCell {
            count: 6,
            last: Raw::int(50 + at * at),
            min: Raw::int(40),
            max: Raw::int(90 + at),
            sum: Raw::int(6 * (50 + at * at) + at),
        };
        (0..5).map(cell).collect()
    }

    const TICKS: [TickRun; 1] = [TickRun {
        first: 0,
        step: 60_000,
        count: 5,
    }];

    #[test]
    fn roll_ups_of_version_1_are_read() {
        let cells = cells();
        let mut bytes = vec![0];
        let mut column = |of: &dyn Fn(&GaugeCell) -> i64| {
            let values: Vec<i64> = cells.iter().map(of).collect();
            column::put(&values, Effort::Full, &mut bytes);
        };
        column(&|cell| i64::from(cell.count));
        column(&|cell| cell.last.as_int());
        column(&|cell| cell.last.as_int() - cell.min.as_int());
        column(&|cell| cell.max.as_int() - cell.last.as_int());
        column(&|cell| cell.sum.as_int() - i64::from(cell.count) * cell.last.as_int());
        let format = Format {
            tier: Tier::Minute,
            version: 1,
        };
        let chunk = take_chunk(format, &load(), &TICKS, &bytes).expect("version 1");
        assert_eq!(chunk.cells, Cells::Gauge(cells));
    }

    #[test]
    fn what_is_not_needed_is_passed_over() {
        let (family, cells) = (load(), cells());
        let mut bytes = Vec::new();
        let gauge = Cells::Gauge(cells.clone());
        put_chunk(family.scale, &[(0, 5)], 5, &gauge, Effort::Full, &mut bytes);
        for (extremes, sums) in [(false, false), (true, false), (false, true), (true, true)] {
            let needs = Needs { extremes, sums };
            let mut points = Vec::new();
            Columns::default()
                .points(
                    (&family, needs),
                    &TICKS,
                    &bytes,
                    &[(60_000, 180_000)],
                    &mut points,
                )
                .expect("own bytes");
            let told = |asked: bool, raw: Raw| {
                if asked {
                    family.scale.value(raw)
                } else {
                    f64::NAN
                }
            };
            assert_eq!(points.len(), 2);
            for (point, cell) in points.iter().zip(&cells[1..]) {
                let wanted = [
                    family.scale.value(cell.last),
                    told(extremes, cell.min),
                    told(extremes, cell.max),
                    told(sums, cell.sum),
                ];
                let found = [point.last, point.min, point.max, point.sum];
                assert_eq!(
                    found.map(f64::to_bits),
                    wanted.map(f64::to_bits),
                    "{needs:?}"
                );
                assert_eq!(point.count, 6);
            }
        }
    }
}
