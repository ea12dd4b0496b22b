//! Several files of one group made one, and finer points made coarser.
//!
//! Deterministic: the same samples give the same bytes, in whatever pieces they came. Where two files have a point
//! of the same time, the one made of more samples counts, else the older file's: a sample that came twice counts
//! once, and a roll-up of everything wins over one of a part.

use std::collections::{BTreeMap, HashSet};

use muster_proto::{
    id::HostId,
    log::Storage,
    series::{Family, Raw, Scale},
};

use super::{
    HistoryError, SeriesName, Tier,
    block::{
        Block, Cells, Chunk, CounterCell, GaugeCell, Span, TickRun, Writer, all_ticks, is_counter,
        put_chunk, tick_runs,
    },
    column::Effort,
    manifest::FileEntry,
};

/// Samples that are put together with others: a file, or what is in memory, as it would stand in one.
pub trait Input {
    /// Which change of the store it belongs to.
    fn generation(&self) -> u64;
    /// Its hosts by place.
    fn hosts(&self) -> &[HostId];
    /// When the host at a place had samples.
    fn ticks(&self, place: u32) -> &[TickRun];
    /// Its series, in order.
    fn series(&self) -> &[SeriesName];
    /// Gives `each` the chunks of the series at this index, of the hosts for which `wanted` holds.
    ///
    /// # Errors
    /// When it does not read.
    fn chunks(
        &self,
        series: usize,
        wanted: &mut dyn FnMut(u32) -> bool,
        each: &mut dyn FnMut(u32, Chunk),
    ) -> Result<(), HistoryError>;
}

impl<S: Storage> Input for Block<S> {
    fn generation(&self) -> u64 {
        self.span().generation
    }

    fn hosts(&self) -> &[HostId] {
        Self::hosts(self)
    }

    fn ticks(&self, place: u32) -> &[TickRun] {
        Self::ticks(self, place)
    }

    fn series(&self) -> &[SeriesName] {
        Self::series(self)
    }

    fn chunks(
        &self,
        series: usize,
        wanted: &mut dyn FnMut(u32) -> bool,
        each: &mut dyn FnMut(u32, Chunk),
    ) -> Result<(), HistoryError> {
        Self::chunks(self, series, wanted, each)
    }
}

/// A file to be written: its name and what it is to hold.
pub struct Target {
    /// Never used before.
    pub name: String,
    /// What it will hold.
    pub span: Span,
}

/// An output with the ticks of its hosts.
struct Output<'s, S: Storage> {
    tier: Tier,
    writer: Writer<'s, S>,
    ticks: Vec<Vec<i64>>,
}

/// Writes what the inputs hold, which are of one tier and in the order of their generations, as the first target,
/// and rolled up as the others. Hosts for which `forgotten` holds of an input's generation are left out of it.
/// Nothing is written without any points; then the list is empty.
///
/// # Errors
/// When an input does not read or the disk refuses; the targets are worthless then.
pub fn merge<S: Storage>(
    storage: &S,
    inputs: &[&dyn Input],
    targets: Vec<Target>,
    forgotten: &dyn Fn(HostId, u64) -> bool,
) -> Result<Vec<FileEntry>, HistoryError> {
    let mut ticks: BTreeMap<HostId, Vec<i64>> = BTreeMap::new();
    for input in inputs {
        for (host, place) in input.hosts().iter().zip(0..) {
            if !forgotten(*host, input.generation()) {
                let of_host = ticks.entry(*host).or_default();
                of_host.extend(all_ticks(input.ticks(place)));
            }
        }
    }
    for of_host in ticks.values_mut() {
        of_host.sort_unstable();
        of_host.dedup();
    }
    ticks.retain(|_, of_host| !of_host.is_empty());
    if ticks.is_empty() {
        return Ok(Vec::new());
    }
    let hosts: Vec<HostId> = ticks.keys().copied().collect();
    let ticks: Vec<Vec<i64>> = ticks.into_values().collect();
    let mut outputs = Vec::with_capacity(targets.len());
    for target in targets {
        outputs.push(output(storage, target, &hosts, &ticks)?);
    }
    for group in same_series(inputs) {
        series(inputs, &group, &hosts, forgotten, &mut outputs)?;
    }
    let mut written = Vec::with_capacity(outputs.len());
    for output in outputs {
        let mut entry = output.writer.finish()?;
        entry.packed = true;
        written.push(entry);
    }
    Ok(written)
}

fn output<'s, S: Storage>(
    storage: &'s S,
    target: Target,
    hosts: &[HostId],
    ticks: &[Vec<i64>],
) -> Result<Output<'s, S>, HistoryError> {
    let tier = target.span.tier;
    let ticks: Vec<Vec<i64>> = match tier.step_ms() {
        // The inputs' own tier, or every sample.
        None => ticks.to_vec(),
        Some(step) => ticks.iter().map(|ticks| buckets(ticks, step)).collect(),
    };
    let runs = ticks.iter().map(|ticks| tick_runs(ticks));
    let listed = hosts.iter().copied().zip(runs).collect();
    Ok(Output {
        tier,
        writer: Writer::create(storage, target.name, target.span, listed)?,
        ticks,
    })
}

fn buckets(ticks: &[i64], step: i64) -> Vec<i64> {
    let mut out: Vec<i64> = ticks.iter().map(|at| at - at.rem_euclid(step)).collect();
    out.dedup();
    out
}

/// Where each series stands in the inputs: in the order of the series, (input, index) in the order of the inputs.
fn same_series(inputs: &[&dyn Input]) -> Vec<Vec<(usize, usize)>> {
    let name =
        |(input, index): &(usize, usize)| -> &SeriesName { &inputs[*input].series()[*index] };
    let mut all: Vec<(usize, usize)> = Vec::new();
    for (at, input) in inputs.iter().enumerate() {
        all.extend((0..input.series().len()).map(|index| (at, index)));
    }
    all.sort_by(|one, other| name(one).order(name(other)).then(one.cmp(other)));
    all.chunk_by(|one, other| name(one) == name(other))
        .map(<[_]>::to_vec)
        .collect()
}

fn series<S: Storage>(
    inputs: &[&dyn Input],
    of: &[(usize, usize)],
    hosts: &[HostId],
    forgotten: &dyn Fn(HostId, u64) -> bool,
    outputs: &mut [Output<'_, S>],
) -> Result<(), HistoryError> {
    let Some(name) = of
        .first()
        .map(|(input, index)| &inputs[*input].series()[*index])
    else {
        return Ok(());
    };
    let mut chunks: BTreeMap<u32, Vec<Chunk>> = BTreeMap::new();
    for &(at, index) in of {
        let input = inputs[at];
        let generation = input.generation();
        let place = |place: u32| {
            let host = *input.hosts().get(place as usize)?;
            let found = hosts.binary_search(&host).ok()?;
            (!forgotten(host, generation)).then(|| u32::try_from(found).unwrap_or(u32::MAX))
        };
        let places: Vec<Option<u32>> = (0u32..)
            .zip(input.hosts())
            .map(|(at, _)| place(at))
            .collect();
        input.chunks(
            index,
            &mut |at| places[at as usize].is_some(),
            &mut |at, chunk| {
                if let Some(place) = places[at as usize] {
                    chunks.entry(place).or_default().push(chunk);
                }
            },
        )?;
    }
    if chunks.is_empty() {
        return Ok(());
    }
    for output in outputs.iter_mut() {
        output.writer.series(name)?;
    }
    let mut bytes = Vec::new();
    for (place, pieces) in chunks {
        let whole = join(name.family.scale, pieces);
        for output in outputs.iter_mut() {
            let rolled;
            let chunk = match (&whole.cells, output.tier.step_ms()) {
                (Cells::Raw(_), Some(step)) => {
                    rolled = roll_up(&name.family, &whole, step);
                    &rolled
                }
                _ => &whole,
            };
            let all = &output.ticks[place as usize];
            let runs = runs_of(&chunk.ticks, all);
            bytes.clear();
            put_chunk(
                name.family.scale,
                &runs,
                all.len(),
                &chunk.cells,
                Effort::Full,
                &mut bytes,
            );
            output.writer.chunk(place, chunk.ticks.len(), &bytes)?;
        }
    }
    Ok(())
}

/// The rows of `all` that `some` has; both rise, and all of `some` is in `all`.
fn runs_of(some: &[i64], all: &[i64]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let mut some = some.iter().peekable();
    for (row, tick) in (0u32..).zip(all) {
        if some.peek() != Some(&tick) {
            continue;
        }
        some.next();
        match runs.last_mut() {
            Some((first, count)) if *first + *count == row => *count += 1,
            _ => runs.push((row, 1)),
        }
    }
    runs
}

/// Pieces of one series of one host, oldest file first, as one.
#[must_use]
pub fn join(scale: Scale, mut pieces: Vec<Chunk>) -> Chunk {
    if pieces.len() == 1
        && let Some(only) = pieces.pop()
    {
        return only;
    }
    match pieces.first().map(|piece| &piece.cells) {
        Some(Cells::Gauge(_)) => join_gauge(pieces),
        Some(Cells::Counter { .. }) => join_counter(scale, pieces),
        _ => join_raw(pieces),
    }
}

fn join_raw(pieces: Vec<Chunk>) -> Chunk {
    let mut samples: Vec<(i64, Raw)> = Vec::new();
    for piece in pieces {
        if let Cells::Raw(raws) = piece.cells {
            samples.extend(piece.ticks.into_iter().zip(raws));
        }
    }
    samples.sort_by_key(|(at, _)| *at);
    samples.dedup_by_key(|(at, _)| *at);
    let (ticks, raws) = samples.into_iter().unzip();
    Chunk {
        ticks,
        cells: Cells::Raw(raws),
    }
}

fn join_gauge(pieces: Vec<Chunk>) -> Chunk {
    let mut all: BTreeMap<i64, GaugeCell> = BTreeMap::new();
    for piece in pieces {
        if let Cells::Gauge(cells) = piece.cells {
            for (at, cell) in piece.ticks.into_iter().zip(cells) {
                let held = all.entry(at).or_insert(cell);
                if held.count < cell.count {
                    *held = cell;
                }
            }
        }
    }
    let (ticks, cells) = all.into_iter().unzip();
    Chunk {
        ticks,
        cells: Cells::Gauge(cells),
    }
}

fn join_counter(scale: Scale, mut pieces: Vec<Chunk>) -> Chunk {
    // A piece whose first sample is below the last one before it began after a reset.
    pieces.sort_by_key(|piece| piece.ticks.first().copied());
    let mut all: BTreeMap<i64, CounterCell> = BTreeMap::new();
    let mut whole_first = None;
    for piece in pieces {
        let Cells::Counter { first, cells } = piece.cells else {
            continue;
        };
        whole_first.get_or_insert(first);
        for (at, (tick, mut cell)) in piece.ticks.into_iter().zip(cells).enumerate() {
            let before = all.range(..tick).next_back().map(|(_, cell)| cell.last);
            if at == 0
                && let Some(before) = before
                && scale.value(first) < scale.value(before)
            {
                cell.dropped = plus(scale, cell.dropped, before);
            }
            let held = all.entry(tick).or_insert(cell);
            if held.count < cell.count {
                *held = cell;
            }
        }
    }
    let (ticks, cells) = all.into_iter().unzip();
    Chunk {
        ticks,
        cells: Cells::Counter {
            first: whole_first.unwrap_or_default(),
            cells,
        },
    }
}

fn plus(scale: Scale, one: Raw, other: Raw) -> Raw {
    if scale == Scale::Float {
        Raw::float(f64::from_bits(one.0) + f64::from_bits(other.0))
    } else {
        Raw::int(one.as_int().wrapping_add(other.as_int()))
    }
}

/// Samples as points of `step` milliseconds.
#[must_use]
pub fn roll_up(family: &Family, samples: &Chunk, step: i64) -> Chunk {
    let Cells::Raw(raws) = &samples.cells else {
        return samples.clone();
    };
    let scale = family.scale;
    let less = |one: Raw, other: Raw| {
        if scale == Scale::Float {
            f64::from_bits(one.0) < f64::from_bits(other.0)
        } else {
            one.as_int() < other.as_int()
        }
    };
    let mut ticks: Vec<i64> = Vec::new();
    let mut gauges: Vec<GaugeCell> = Vec::new();
    let mut counters: Vec<CounterCell> = Vec::new();
    let counter = is_counter(family);
    let mut before: Option<Raw> = None;
    for (at, &raw) in samples.ticks.iter().zip(raws) {
        let bucket = at - at.rem_euclid(step);
        if ticks.last() != Some(&bucket) {
            ticks.push(bucket);
            if counter {
                counters.push(CounterCell {
                    count: 0,
                    last: raw,
                    dropped: Raw(0),
                });
            } else {
                gauges.push(GaugeCell {
                    count: 0,
                    last: raw,
                    min: raw,
                    max: raw,
                    sum: Raw(0),
                });
            }
        }
        if let Some(cell) = counters.last_mut() {
            if let Some(before) = before.filter(|before| less(raw, *before)) {
                cell.dropped = plus(scale, cell.dropped, before);
            }
            cell.count += 1;
            cell.last = raw;
        }
        if let Some(cell) = gauges.last_mut() {
            cell.count += 1;
            cell.last = raw;
            if less(raw, cell.min) {
                cell.min = raw;
            }
            if less(cell.max, raw) {
                cell.max = raw;
            }
            cell.sum = plus(scale, cell.sum, raw);
        }
        before = Some(raw);
    }
    let cells = if counter {
        Cells::Counter {
            first: raws.first().copied().unwrap_or_default(),
            cells: counters,
        }
    } else {
        Cells::Gauge(gauges)
    };
    Chunk { ticks, cells }
}

/// Hosts that count no more, by the generation up to which they do not.
pub fn forgotten_by(list: &[(HostId, u64)]) -> impl Fn(HostId, u64) -> bool + use<> {
    let list: HashSet<(HostId, u64)> = list.iter().copied().collect();
    move |host, generation| {
        list.iter()
            .any(|(id, until)| *id == host && generation <= *until)
    }
}
