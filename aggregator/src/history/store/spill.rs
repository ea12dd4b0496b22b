//! What a group holds in memory becomes files.

use std::{collections::HashMap, ops::Range, sync::Arc};

use muster_proto::{id::HostId, log::Storage};

use super::{Counters, EmbeddedStore, Flushing, Window, file_name, lock, name_of, pack::targets};
use crate::history::{
    HistoryError, SeriesKey, SeriesName, Tier, Token,
    block::{Cells, Chunk, Span, TickRun, Writer, put_chunk, take_samples, tick_runs},
    column::Effort,
    config::GRACE_MS,
    jobs::Job,
    manifest::{self, FileEntry, GroupEntry, GroupState},
    merge::Input,
    rows::Rows,
};

impl<S: Storage> EmbeddedStore<S> {
    /// Writes what a group holds in memory. `token` is the last record that was appended, `aside` is kept with
    /// it. What an earlier call could not write is written first, and alone.
    ///
    /// # Errors
    /// When the disk refuses; everything stays in memory and can be read.
    pub fn flush(
        &self,
        group: usize,
        token: Token,
        now: i64,
        aside: impl FnOnce(&[HostId]) -> Vec<u8>,
    ) -> Result<(), HistoryError> {
        let Some(head) = self.group(group) else {
            return Ok(());
        };
        let flushing = {
            let mut head = lock(&head);
            head.flushed_at = now;
            match &head.flushing {
                Some(waiting) => Arc::clone(waiting),
                None => {
                    let fresh = Arc::new(Flushing {
                        aside: aside(&head.hosts),
                        windows: std::mem::take(&mut head.windows),
                        first: head.first.take(),
                        token,
                        hosts: head.hosts.clone(),
                        samples: std::mem::take(&mut head.samples),
                        memory: std::mem::take(&mut head.memory),
                    });
                    head.flushing = Some(Arc::clone(&fresh));
                    fresh
                }
            }
        };
        let written = self.write_group(group, &flushing, now);
        if let Err(error) = written {
            Counters::add(&self.counters.failures, 1);
            return Err(error);
        }
        let mut head = lock(&head);
        head.flushing = None;
        head.covered = flushing.token;
        head.known = flushing.hosts.len();
        Ok(())
    }

    fn write_group(&self, group: usize, flushing: &Flushing, now: i64) -> Result<(), HistoryError> {
        let mut names = Vec::new();
        let upto = self.upto(Some(group)).min(flushing.token);
        let written = self.write_files(group, flushing, (upto, now), &mut names);
        let (windows, entry) =
            written.inspect_err(|_| self.discard(&names, &mut self.committed()))?;
        self.commit(names, |manifest| {
            manifest.upto = manifest.upto.max(upto);
            let upto = manifest.upto;
            manifest.passed_over.retain(|(_, record)| *record > upto);
            if manifest.groups.len() <= group {
                manifest.groups.resize(group + 1, None);
            }
            manifest.groups[group] = Some(entry);
            for mut window in windows {
                let (all, of) = (&mut manifest.files, &window.instead_of);
                let before = all.len();
                all.retain(|file| !of.contains(&file.name));
                if before - all.len() < of.len() {
                    // Packed or dropped meanwhile by the other caller: what has become of it is put together later.
                    window.files.iter_mut().for_each(|file| file.packed = false);
                }
                manifest.files.append(&mut window.files);
            }
        })
    }

    /// Writes a group's files; `names` has them also after an error.
    fn write_files(
        &self,
        group: usize,
        flushing: &Flushing,
        (upto, now): (Token, i64),
        names: &mut Vec<String>,
    ) -> Result<(Vec<Written>, GroupEntry), HistoryError> {
        let generation = self.new_generation();
        let number = u32::try_from(group).unwrap_or(u32::MAX);
        let mut windows = Vec::new();
        for (start, window) in &flushing.windows {
            let job = Job {
                tier: Tier::Raw,
                group: number,
                start: *start,
                end: start + Tier::Raw.window_ms(),
            };
            let gathered = Gathered::of(window, &flushing.hosts, generation)?;
            if gathered.hosts.is_empty() {
                continue;
            }
            let packed = if job.end + GRACE_MS <= now {
                self.write_packed(&job, &gathered, names)
            } else {
                None
            };
            windows.push(match packed {
                Some(packed) => packed,
                None => self.write_loose(&job, gathered, names)?,
            });
        }
        let state = GroupState {
            hosts: flushing.hosts.clone(),
            aside: flushing.aside.clone(),
            covered: flushing.token,
            upto,
        };
        let file = format!("group-{number:06x}-{generation:016x}.mhg");
        names.push(file.clone());
        let written = manifest::write_group(&self.storage, &file, &state)?;
        Counters::add(&self.counters.written_bytes, written);
        let covered = flushing.token;
        Ok((windows, GroupEntry { covered, file }))
    }

    /// Writes what memory has of a window that is over at once in its last form, together with what files have of it
    /// already, unless they have more: a large group is packed by whoever does nothing else. `None` also when that does
    /// not go, because a file is damaged or goes just now; the packing names it.
    fn write_packed(
        &self,
        job: &Job,
        gathered: &Gathered,
        names: &mut Vec<String>,
    ) -> Option<Written> {
        let files = self.files();
        let mut earlier: Vec<&FileEntry> = files.iter().filter(|file| job.takes(file)).collect();
        earlier.sort_by_key(|file| file.generation);
        let points: u64 = earlier.iter().map(|file| file.points).sum();
        if points > gathered.points {
            return None;
        }
        let mut blocks = Vec::with_capacity(earlier.len());
        for file in &earlier {
            blocks.push(self.block(&file.name).ok()?);
        }
        let mut inputs: Vec<&dyn Input> =
            blocks.iter().map(|block| &**block as &dyn Input).collect();
        inputs.push(gathered);
        let targets = targets(job, gathered.generation);
        let new: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
        let Ok(files) = self.put_together(&inputs, targets) else {
            self.discard(&new, &mut self.committed());
            return None;
        };
        names.extend(new);
        Some(Written {
            files,
            instead_of: earlier.iter().map(|file| file.name.clone()).collect(),
        })
    }

    /// Writes what memory has of a window beside what files have of it.
    fn write_loose(
        &self,
        job: &Job,
        gathered: Gathered,
        names: &mut Vec<String>,
    ) -> Result<Written, HistoryError> {
        let span = Span {
            tier: job.tier,
            group: job.group,
            start: job.start,
            end: job.end,
            generation: gathered.generation,
        };
        let name = file_name(&span);
        names.push(name.clone());
        let listed = gathered.hosts.into_iter().zip(gathered.ticks).collect();
        let mut writer = Writer::create(&self.storage, name, span, listed)?;
        for (name, range) in gathered.names.iter().zip(&gathered.ranges) {
            writer.series(name)?;
            for chunk in &gathered.chunks[range.clone()] {
                let bytes = &gathered.bytes[chunk.bytes.clone()];
                writer.chunk(chunk.place, chunk.points, bytes)?;
            }
        }
        let entry = writer.finish()?;
        Counters::add(&self.counters.written_bytes, entry.bytes);
        Counters::add(&self.counters.spilled_files, 1);
        Ok(Written {
            files: vec![entry],
            instead_of: Vec::new(),
        })
    }
}

/// Files that were written of a window, and those they replace.
struct Written {
    files: Vec<FileEntry>,
    instead_of: Vec<String>,
}

/// What memory has of a window, as it stands in a file.
struct Gathered {
    generation: u64,
    /// In the order of their ids, with their ticks.
    hosts: Vec<HostId>,
    ticks: Vec<Vec<TickRun>>,
    /// In order, with where their chunks are.
    names: Vec<SeriesName>,
    ranges: Vec<Range<usize>>,
    chunks: Vec<Encoded>,
    bytes: Vec<u8>,
    points: u64,
}

/// A chunk of samples, as it stands in a file.
struct Encoded {
    /// Index of its series; at first in the order in which they came.
    series: u32,
    place: u32,
    bytes: Range<usize>,
    points: usize,
}

impl Gathered {
    fn of(window: &Window, hosts: &[HostId], generation: u64) -> Result<Self, HistoryError> {
        // By host first, as memory has them; then series by series, as files have them.
        let mut order: Vec<(HostId, &Rows)> = window
            .iter()
            .filter_map(|(place, rows)| Some((*hosts.get(*place as usize)?, rows)))
            .collect();
        order.sort_by_key(|(host, _)| *host);
        let mut all = Self {
            generation,
            hosts: Vec::with_capacity(order.len()),
            ticks: Vec::with_capacity(order.len()),
            names: Vec::new(),
            ranges: Vec::new(),
            chunks: Vec::new(),
            bytes: Vec::new(),
            points: 0,
        };
        let mut indices: HashMap<usize, u32> = HashMap::new();
        let mut keys: Vec<Arc<SeriesKey>> = Vec::new();
        for ((host, rows), place) in order.into_iter().zip(0u32..) {
            let columns = rows.columns().map_err(|_| unreadable())?;
            for column in columns.series {
                let series = *indices
                    .entry(Arc::as_ptr(&column.key).addr())
                    .or_insert_with(|| {
                        keys.push(Arc::clone(&column.key));
                        u32::try_from(keys.len() - 1).unwrap_or(u32::MAX)
                    });
                let (from, points) = (all.bytes.len(), column.raws.len());
                put_chunk(
                    column.key.family.scale,
                    &column.runs,
                    columns.ticks.len(),
                    &Cells::Raw(column.raws),
                    Effort::Quick,
                    &mut all.bytes,
                );
                all.points += points as u64;
                all.chunks.push(Encoded {
                    series,
                    place,
                    bytes: from..all.bytes.len(),
                    points,
                });
            }
            all.hosts.push(host);
            all.ticks.push(tick_runs(&columns.ticks));
        }
        all.order(&keys);
        Ok(all)
    }

    /// Puts chunks into the order of files.
    fn order(&mut self, keys: &[Arc<SeriesKey>]) {
        let names: Vec<SeriesName> = keys.iter().map(|key| name_of(key)).collect();
        let mut ranks: Vec<usize> = (0..names.len()).collect();
        ranks.sort_by(|one, other| names[*one].order(&names[*other]));
        let mut rank_of = vec![0; names.len()];
        for (rank, series) in ranks.iter().enumerate() {
            rank_of[*series] = rank;
        }
        self.chunks
            .sort_unstable_by_key(|chunk| (rank_of[chunk.series as usize], chunk.place));
        let mut begin = 0;
        for chunks in self
            .chunks
            .chunk_by(|one, other| one.series == other.series)
        {
            self.names.push(names[chunks[0].series as usize].clone());
            self.ranges.push(begin..begin + chunks.len());
            begin += chunks.len();
        }
    }
}

impl Input for Gathered {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn hosts(&self) -> &[HostId] {
        &self.hosts
    }

    fn ticks(&self, place: u32) -> &[TickRun] {
        self.ticks.get(place as usize).map_or(&[], Vec::as_slice)
    }

    fn series(&self) -> &[SeriesName] {
        &self.names
    }

    fn chunks(
        &self,
        series: usize,
        wanted: &mut dyn FnMut(u32) -> bool,
        each: &mut dyn FnMut(u32, Chunk),
    ) -> Result<(), HistoryError> {
        let (Some(name), Some(range)) = (self.names.get(series), self.ranges.get(series)) else {
            return Ok(());
        };
        for chunk in &self.chunks[range.clone()] {
            if wanted(chunk.place) {
                let (ticks, bytes) = (self.ticks(chunk.place), &self.bytes[chunk.bytes.clone()]);
                let samples = take_samples(&name.family, ticks, bytes);
                each(chunk.place, samples.map_err(|_| unreadable())?);
            }
        }
        Ok(())
    }
}

fn unreadable() -> HistoryError {
    HistoryError::Damaged {
        name: "in memory".to_owned(),
        what: "its rows",
    }
}
