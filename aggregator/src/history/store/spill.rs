//! What a group holds in memory becomes files.

use std::{collections::HashMap, sync::Arc};

use muster_proto::{id::HostId, log::Storage};

use super::{Counters, EmbeddedStore, Flushing, Window, file_name, lock, name_of};
use crate::history::{
    HistoryError, SeriesKey, SeriesName, Tier, Token,
    block::{Cells, Span, Writer, put_chunk, tick_runs},
    column::Effort,
    manifest::{self, FileEntry, GroupEntry, GroupState},
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
        let written = self.write_group(group, &flushing);
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

    fn write_group(&self, group: usize, flushing: &Flushing) -> Result<(), HistoryError> {
        let mut names = Vec::new();
        let upto = self.upto(Some(group)).min(flushing.token);
        let written = self.write_files(group, flushing, upto, &mut names);
        let (added, entry) =
            written.inspect_err(|_| self.discard(&names, &mut self.committed()))?;
        self.commit(names, |manifest| {
            manifest.upto = manifest.upto.max(upto);
            let upto = manifest.upto;
            manifest.passed_over.retain(|(_, record)| *record > upto);
            if manifest.groups.len() <= group {
                manifest.groups.resize(group + 1, None);
            }
            manifest.groups[group] = Some(entry);
            manifest.files.extend(added);
        })
    }

    /// Writes a group's files; `names` has them also after an error.
    fn write_files(
        &self,
        group: usize,
        flushing: &Flushing,
        upto: Token,
        names: &mut Vec<String>,
    ) -> Result<(Vec<FileEntry>, GroupEntry), HistoryError> {
        let generation = self.new_generation();
        let number = u32::try_from(group).unwrap_or(u32::MAX);
        let mut added = Vec::new();
        for (start, window) in &flushing.windows {
            let span = Span {
                tier: Tier::Raw,
                group: number,
                start: *start,
                end: start + Tier::Raw.window_ms(),
                generation,
            };
            let name = file_name(&span);
            names.push(name.clone());
            if let Some(entry) = self.write_window(name, span, window, &flushing.hosts)? {
                Counters::add(&self.counters.spilled_files, 1);
                added.push(entry);
            }
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
        Ok((added, GroupEntry { covered, file }))
    }

    fn write_window(
        &self,
        name: String,
        span: Span,
        window: &Window,
        hosts: &[HostId],
    ) -> Result<Option<FileEntry>, HistoryError> {
        // By host first, as memory has them; then series by series, as files have them.
        let mut order: Vec<(HostId, &Rows)> = window
            .iter()
            .filter_map(|(place, rows)| Some((*hosts.get(*place as usize)?, rows)))
            .collect();
        order.sort_by_key(|(host, _)| *host);
        let mut listed = Vec::with_capacity(order.len());
        let mut bytes = Vec::new();
        let mut names: HashMap<usize, u32> = HashMap::new();
        let mut keys: Vec<Arc<SeriesKey>> = Vec::new();
        let mut chunks: Vec<(u32, u32, usize, usize, usize)> = Vec::new();
        for ((host, rows), place) in order.into_iter().zip(0u32..) {
            let columns = rows.columns().map_err(|_| HistoryError::Damaged {
                name: name.clone(),
                what: "rows in memory",
            })?;
            for column in &columns.series {
                let index = *names
                    .entry(Arc::as_ptr(&column.key).addr())
                    .or_insert_with(|| {
                        keys.push(Arc::clone(&column.key));
                        u32::try_from(keys.len() - 1).unwrap_or(u32::MAX)
                    });
                let from = bytes.len();
                let cells = Cells::Raw(column.raws.clone());
                put_chunk(
                    column.key.family.scale,
                    &column.runs,
                    columns.ticks.len(),
                    &cells,
                    Effort::Quick,
                    &mut bytes,
                );
                chunks.push((index, place, from, bytes.len(), column.raws.len()));
            }
            listed.push((host, tick_runs(&columns.ticks)));
        }
        if listed.is_empty() {
            return Ok(None);
        }
        let names: Vec<SeriesName> = keys.iter().map(|key| name_of(key)).collect();
        let mut ranks: Vec<usize> = (0..names.len()).collect();
        ranks.sort_by(|one, other| names[*one].order(&names[*other]));
        let mut rank_of = vec![0; names.len()];
        for (rank, index) in ranks.iter().enumerate() {
            rank_of[*index] = rank;
        }
        chunks.sort_unstable_by_key(|(index, place, ..)| (rank_of[*index as usize], *place));
        let mut writer = Writer::create(&self.storage, name, span, listed)?;
        let mut current = None;
        for (index, place, from, to, points) in chunks {
            if current != Some(index) {
                writer.series(&names[index as usize])?;
                current = Some(index);
            }
            writer.chunk(place, points, &bytes[from..to])?;
        }
        let entry = writer.finish()?;
        Counters::add(&self.counters.written_bytes, entry.bytes);
        Ok(Some(entry))
    }
}
