//! Answers: from files and memory to series, a piece at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    io,
    ops::ControlFlow,
    sync::{Arc, PoisonError},
};

use muster_proto::{id::HostId, log::Storage, series::Family};

use super::{EmbeddedStore, Windows, lock, name_of};
use crate::history::{
    HistoryError, HostSeries, Point, ReadReport, SampleQuery, SeriesKey, SeriesName, Tier,
    block::{Block, Cells, Chunk},
    manifest::FileEntry,
    merge,
    rows::Columns,
};

/// Hosts of a group that are read together, so that an answer is never in memory as a whole.
const HOSTS_AT_ONCE: usize = 64;

/// Points that are read together, unless one series of one host has more: 14 MiB. Tests have so few that answers are
/// cut into pieces all the same.
const POINTS_AT_ONCE: u64 = if cfg!(test) { 2_000 } else { 1 << 18 };

impl<S: Storage> EmbeddedStore<S> {
    /// Hosts of a group, as many at a time as are held in memory well.
    pub(super) fn read_group(
        &self,
        group: usize,
        mut hosts: &[HostId],
        query: &SampleQuery,
        report: &mut ReadReport,
        sink: &mut dyn FnMut(HostSeries) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, HistoryError> {
        let mut at_once = HOSTS_AT_ONCE;
        while !hosts.is_empty() {
            let (some, rest) = hosts.split_at(at_once.min(hosts.len()));
            let piece = Piece {
                group,
                hosts: some,
                names: None,
                most: POINTS_AT_ONCE,
            };
            match self.read_piece(&piece, query, report)? {
                Some(series) => {
                    if give(series, sink).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    hosts = rest;
                }
                None if some.len() > 1 => at_once = some.len() / 2,
                None => {
                    if self.read_alone(&piece, query, report, sink)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    hosts = rest;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One host of which there is too much at a time: some of its series, then others.
    fn read_alone(
        &self,
        whole: &Piece<'_>,
        query: &SampleQuery,
        report: &mut ReadReport,
        sink: &mut dyn FnMut(HostSeries) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, HistoryError> {
        let names = self.names_in(whole, query)?;
        let mut open = vec![&names[..]];
        while let Some(names) = open.pop() {
            let piece = Piece {
                names: Some(names),
                most: if names.len() == 1 {
                    u64::MAX
                } else {
                    POINTS_AT_ONCE
                },
                ..*whole
            };
            match self.read_piece(&piece, query, report)? {
                Some(series) => {
                    if give(series, sink).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                None => {
                    let (first, last) = names.split_at(names.len() / 2);
                    open.extend([last, first]);
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Names of the series that files and memory have for the question; in order, each once.
    fn names_in(
        &self,
        piece: &Piece<'_>,
        query: &SampleQuery,
    ) -> Result<Vec<NameKey>, HistoryError> {
        let mut names = BTreeSet::new();
        let files = self.files();
        let group = u32::try_from(piece.group).unwrap_or(u32::MAX);
        for (file, _) in plan(&files, group, query) {
            query.give_up.check()?;
            // One that does not read is named when its points are read.
            let Ok(block) = self.block(&file.name) else {
                continue;
            };
            for name in block.series() {
                if query.wants(&name.family, &name.labels) {
                    names.insert(key_of(name));
                }
            }
        }
        let everything = Piece {
            most: u64::MAX,
            ..*piece
        };
        let in_memory = self.read_head(&everything, query).unwrap_or_default();
        names.extend(in_memory.iter().map(|(_, key, _)| key_of(&name_of(key))));
        Ok(names.into_iter().collect())
    }

    /// A piece of an answer; `None` if it is larger than it may be.
    fn read_piece(
        &self,
        piece: &Piece<'_>,
        query: &SampleQuery,
        report: &mut ReadReport,
    ) -> Result<Option<Vec<HostSeries>>, HistoryError> {
        let (group, hosts) = (piece.group, piece.hosts);
        let mut found = Found::new(query, piece, report.points);
        // Memory first: what moves from there to a file meanwhile is read twice and counts once.
        let Some(in_memory) = self.read_head(piece, query) else {
            return Ok(None);
        };
        let files = self.files();
        let forgotten = merge::forgotten_by(&self.forgotten());
        let plan = plan(&files, u32::try_from(group).unwrap_or(u32::MAX), query);
        for (file, parts) in plan {
            query.give_up.check()?;
            let block = match self.block(&file.name) {
                Ok(block) => block,
                // Dropped since the list was read: as if it had been asked for a moment later.
                Err(HistoryError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound
                        && !self.files().iter().any(|held| held.name == file.name) =>
                {
                    continue;
                }
                Err(error) => {
                    report.missing.push(crate::chain(&error));
                    continue;
                }
            };
            let generation = file.generation;
            let places: HashMap<u32, HostId> = hosts
                .iter()
                .filter(|host| !forgotten(**host, generation))
                .filter_map(|host| Some((block.place(*host)?, *host)))
                .collect();
            if places.is_empty() {
                continue;
            }
            match read_block(&block, &places, &parts, query, &mut found) {
                Ok(()) => {}
                Err(error @ HistoryError::GivenUp) => return Err(error),
                Err(error) => report.missing.push(crate::chain(&error)),
            }
            found.check()?;
            if found.too_large() {
                return Ok(None);
            }
        }
        for (host, key, chunk) in in_memory {
            let Ok(()) = found.add(host, &name_of(&key), |points| {
                chunk.points(&key.family, query.from, query.to, points);
                Ok::<_, Infallible>(())
            });
        }
        found.check()?;
        if found.too_large() {
            return Ok(None);
        }
        report.points = found.points;
        Ok(Some(found.finish()))
    }

    /// What memory has of a piece; `None` if that is more than the piece may have.
    fn read_head(
        &self,
        piece: &Piece<'_>,
        query: &SampleQuery,
    ) -> Option<Vec<(HostId, Arc<SeriesKey>, Chunk)>> {
        let Some(head) = self.group(piece.group) else {
            return Some(Vec::new());
        };
        let places: Vec<(HostId, u32)> = {
            let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
            let place = |host: &HostId| groups.of.get(host).map(|(_, place)| (*host, *place));
            piece.hosts.iter().filter_map(place).collect()
        };
        let (mut out, mut samples) = (Vec::new(), 0);
        let mut read = |windows: &Windows| {
            let from = Tier::Raw.window_of(query.from);
            for (_, window) in windows.range(from..query.to.max(from)) {
                for (host, place) in &places {
                    let Some(rows) = window.get(place) else {
                        continue;
                    };
                    // Bytes of our own memory that do not read are as good as none.
                    let columns = rows.some(|key| {
                        query.wants(&key.family, &key.labels) && piece.has(&key.family, &key.labels)
                    });
                    for (key, chunk) in chunks_of(columns.unwrap_or_default()) {
                        samples += chunk.ticks.len() as u64;
                        out.push((*host, key, chunk));
                    }
                    if samples > piece.most {
                        return;
                    }
                }
            }
        };
        let head = lock(&head);
        if let Some(flushing) = &head.flushing {
            read(&flushing.windows);
        }
        read(&head.windows);
        (samples <= piece.most).then_some(out)
    }
}

/// What tells series apart that are the same metric: its name, label names, label values.
type NameKey = (String, Vec<String>, Vec<String>);

fn key_of(name: &SeriesName) -> NameKey {
    (
        name.family.name.clone(),
        name.family.labels.clone(),
        name.labels.clone(),
    )
}

/// A part of an answer that is read at a time.
#[derive(Clone, Copy)]
struct Piece<'a> {
    group: usize,
    hosts: &'a [HostId],
    /// Series from the first of these to the last; `None`: all.
    names: Option<&'a [NameKey]>,
    /// Most points.
    most: u64,
}

impl Piece<'_> {
    fn has(&self, family: &Family, labels: &[String]) -> bool {
        let Some(([first, ..], [.., last])) = self.names.map(|names| (names, names)) else {
            return self.names.is_none();
        };
        let name = (&family.name[..], &family.labels[..], labels);
        let (first, last) = (
            (&first.0[..], &first.1[..], &first.2[..]),
            (&last.0[..], &last.1[..], &last.2[..]),
        );
        first <= name && name <= last
    }
}

/// Hands series over until no more are wanted.
fn give(
    series: Vec<HostSeries>,
    sink: &mut dyn FnMut(HostSeries) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for series in series {
        sink(series)?;
    }
    ControlFlow::Continue(())
}

/// Chunks of all columns.
fn chunks_of(columns: Columns) -> impl Iterator<Item = (Arc<SeriesKey>, Chunk)> {
    let all = columns.ticks;
    columns.series.into_iter().map(move |column| {
        let rows = column
            .runs
            .iter()
            .flat_map(|(first, count)| *first as usize..(*first + *count) as usize);
        let chunk = Chunk {
            ticks: rows.map(|row| all[row]).collect(),
            cells: Cells::Raw(column.raws),
        };
        (column.key, chunk)
    })
}

fn read_block<S: Storage>(
    block: &Block<S>,
    places: &HashMap<u32, HostId>,
    parts: &[(i64, i64)],
    query: &SampleQuery,
    found: &mut Found<'_>,
) -> Result<(), HistoryError> {
    let names = block.series();
    let range = match &query.metric {
        Some(metric) => {
            names.partition_point(|name| name.family.name < *metric)
                ..names.partition_point(|name| name.family.name <= *metric)
        }
        None => 0..names.len(),
    };
    for index in range {
        let name = &names[index];
        if !query.wants(&name.family, &name.labels) || !found.piece.has(&name.family, &name.labels)
        {
            continue;
        }
        query.give_up.check()?;
        block.points(
            index,
            |place| places.contains_key(&place),
            (query.needs, parts),
            |place, append| match places.get(&place) {
                Some(host) => found.add(*host, name, append),
                None => Ok(()),
            },
        )?;
        if found.points > query.max_points || found.too_large() {
            return Ok(());
        }
    }
    Ok(())
}

/// Metric, label names, label values, host: what families of other units are the same metric by.
type FoundKey = (String, Vec<String>, Vec<String>, HostId);

/// Series put together from pieces.
struct Found<'q> {
    query: &'q SampleQuery,
    piece: &'q Piece<'q>,
    /// Points of the pieces before.
    before: u64,
    points: u64,
    series: BTreeMap<FoundKey, (SeriesName, Vec<Point>)>,
}

impl<'q> Found<'q> {
    fn new(query: &'q SampleQuery, piece: &'q Piece<'q>, before: u64) -> Self {
        Self {
            query,
            piece,
            before,
            points: before,
            series: BTreeMap::new(),
        }
    }

    /// Adds what `add` appends. When that fails, what it appended before stays, as it does with a page before a damaged
    /// one.
    fn add<E>(
        &mut self,
        host: HostId,
        name: &SeriesName,
        add: impl FnOnce(&mut Vec<Point>) -> Result<(), E>,
    ) -> Result<(), E> {
        let key = (
            name.family.name.clone(),
            name.family.labels.clone(),
            name.labels.clone(),
            host,
        );
        let (_, points) = self
            .series
            .entry(key)
            .or_insert_with(|| (name.clone(), Vec::new()));
        let before = points.len();
        let added = add(points);
        self.points += (points.len() - before) as u64;
        added
    }

    /// Whether it has more than a piece may have.
    fn too_large(&self) -> bool {
        self.points - self.before > self.piece.most
    }

    fn check(&self) -> Result<(), HistoryError> {
        if self.points > self.query.max_points {
            return Err(HistoryError::TooMuch {
                limit: self.query.max_points,
            });
        }
        Ok(())
    }

    fn finish(self) -> Vec<HostSeries> {
        let mut out = Vec::with_capacity(self.series.len());
        for ((_, _, _, host), (name, mut points)) in self.series {
            // Of one time, the point of most samples, else the first that came.
            if !points.windows(2).all(|pair| pair[0].at < pair[1].at) {
                points.sort_by_key(|point| (point.at, std::cmp::Reverse(point.count)));
                points.dedup_by_key(|point| point.at);
            }
            if !points.is_empty() {
                out.push(HostSeries { host, name, points });
            }
        }
        out
    }
}

/// Which files of a group are read, and which parts of them: the tier that suits the step where it is, else the
/// next finer, else what there is. In the order in which their points are put together.
fn plan<'f>(
    files: &'f [FileEntry],
    group: u32,
    query: &SampleQuery,
) -> Vec<(&'f FileEntry, Vec<(i64, i64)>)> {
    let order = match query.step_ms {
        900_000.. => [Tier::Quarter, Tier::Minute, Tier::Raw],
        60_000.. => [Tier::Minute, Tier::Raw, Tier::Quarter],
        _ => [Tier::Raw, Tier::Minute, Tier::Quarter],
    };
    let mut open = vec![(query.from, query.to.max(query.from))];
    let mut chosen = Vec::new();
    for tier in order {
        let of_tier = files
            .iter()
            .filter(|file| file.tier == tier && file.group == group);
        let mut taken = Vec::new();
        for file in of_tier {
            let parts = cut(&open, file.start, file.end);
            if !parts.is_empty() {
                taken.push((file.start, file.end));
                chosen.push((file, parts));
            }
        }
        for (start, end) in taken {
            open = without(&open, start, end);
        }
    }
    chosen.sort_by_key(|(file, _)| (file.start, file.generation));
    chosen
}

/// The parts of `ranges` within `start..end`.
fn cut(ranges: &[(i64, i64)], start: i64, end: i64) -> Vec<(i64, i64)> {
    let part = |(from, to): &(i64, i64)| ((*from).max(start), (*to).min(end));
    ranges
        .iter()
        .map(part)
        .filter(|(from, to)| from < to)
        .collect()
}

/// The parts of `ranges` outside `start..end`.
fn without(ranges: &[(i64, i64)], start: i64, end: i64) -> Vec<(i64, i64)> {
    let parts = |(from, to): &(i64, i64)| [(*from, (*to).min(start)), ((*from).max(end), *to)];
    ranges
        .iter()
        .flat_map(parts)
        .filter(|(from, to)| from < to)
        .collect()
}
