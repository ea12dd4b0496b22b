//! Answers: what is in memory and in files, put together for each series, each time once.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, PoisonError},
};

use muster_proto::{id::HostId, log::Storage};

use super::{EmbeddedStore, Windows, lock, name_of};
use crate::history::{
    HistoryError, HostSeries, Point, ReadReport, SampleQuery, SeriesKey, SeriesName, Tier,
    block::{Block, Cells, Chunk},
    manifest::FileEntry,
    merge,
    rows::Columns,
};

impl<S: Storage> EmbeddedStore<S> {
    pub(super) fn read_hosts(
        &self,
        group: usize,
        hosts: &[HostId],
        query: &SampleQuery,
        report: &mut ReadReport,
    ) -> Result<Vec<HostSeries>, HistoryError> {
        let mut found = Found::new(query, report.points);
        // Memory first: what moves from there to a file meanwhile is read twice and counts once.
        let in_memory = self.read_head(group, hosts, query);
        let files = self.files();
        let forgotten = merge::forgotten_by(&self.forgotten());
        let plan = plan(&files, u32::try_from(group).unwrap_or(u32::MAX), query);
        for (file, parts) in plan {
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
            if let Err(error) = read_block(&block, &places, &parts, query, &mut found) {
                report.missing.push(crate::chain(&error));
            }
            found.check()?;
        }
        for (host, key, chunk) in in_memory {
            found.add(host, &name_of(&key), |points| {
                chunk.points(&key.family, query.from, query.to, points);
            });
        }
        found.check()?;
        report.points = found.points;
        Ok(found.finish())
    }

    pub(super) fn read_head(
        &self,
        group: usize,
        hosts: &[HostId],
        query: &SampleQuery,
    ) -> Vec<(HostId, Arc<SeriesKey>, Chunk)> {
        let Some(head) = self.group(group) else {
            return Vec::new();
        };
        let places: Vec<(HostId, u32)> = {
            let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
            let place = |host: &HostId| groups.of.get(host).map(|(_, place)| (*host, *place));
            hosts.iter().filter_map(place).collect()
        };
        let mut out = Vec::new();
        let mut read = |windows: &Windows| {
            let from = Tier::Raw.window_of(query.from);
            for (_, window) in windows.range(from..query.to.max(from)) {
                for (host, place) in &places {
                    let Some(rows) = window.get(place) else {
                        continue;
                    };
                    // Bytes of our own memory that do not read are as good as none.
                    let columns = rows.some(|key| query.wants(&key.family, &key.labels));
                    for (key, chunk) in chunks_of(columns.unwrap_or_default()) {
                        out.push((*host, key, chunk));
                    }
                }
            }
        };
        let head = lock(&head);
        if let Some(flushing) = &head.flushing {
            read(&flushing.windows);
        }
        read(&head.windows);
        out
    }
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
        if !query.wants(&name.family, &name.labels) {
            continue;
        }
        block.chunks(
            index,
            |place| places.contains_key(&place),
            |place, chunk| {
                if let Some(host) = places.get(&place) {
                    found.add(*host, name, |points| {
                        for &(from, to) in parts {
                            chunk.points(&name.family, from, to, points);
                        }
                    });
                }
            },
        )?;
        if found.points > query.max_points {
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
    points: u64,
    series: BTreeMap<FoundKey, (SeriesName, Vec<Point>)>,
}

impl<'q> Found<'q> {
    fn new(query: &'q SampleQuery, points: u64) -> Self {
        Self {
            query,
            points,
            series: BTreeMap::new(),
        }
    }

    fn add(&mut self, host: HostId, name: &SeriesName, add: impl FnOnce(&mut Vec<Point>)) {
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
        add(points);
        self.points += (points.len() - before) as u64;
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
