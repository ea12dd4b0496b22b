//! Files become fewer and smaller, and go when their time is over.
//!
//! The files of a window that is over become one, with its roll-ups; roll-ups become longer windows.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use muster_proto::{id::HostId, log::Storage};

use super::{Counters, EmbeddedStore, file_name};
use crate::history::{
    HistoryError, Tier,
    block::{Block, Span},
    config::GRACE_MS,
    manifest::FileEntry,
    merge::{self, Target},
};

impl<S: Storage> EmbeddedStore<S> {
    /// Packs one window that is over, if there is one to pack; whether there was. Then files that are too old, or
    /// too many, go.
    ///
    /// # Errors
    /// When a file does not read or the disk refuses; the store is as it was.
    pub fn maintain(&self, now: i64) -> Result<bool, HistoryError> {
        let files = self.files();
        if let Some(job) = next_job(&files, now) {
            self.pack(&files, &job)?;
            return Ok(true);
        }
        if self.purge(&files)? {
            return Ok(true);
        }
        self.expire(now)?;
        Ok(false)
    }

    /// Writes one file again without the hosts that were forgotten, if there is one that still has them; whether
    /// there was. When there is none, what was forgotten needs to be known no longer.
    fn purge(&self, files: &[FileEntry]) -> Result<bool, HistoryError> {
        let list = self.forgotten();
        let Some(newest) = list.iter().map(|(_, until)| *until).max() else {
            return Ok(false);
        };
        let forgotten = merge::forgotten_by(&list);
        // Of files that are alike the smallest, so that most are soon done.
        let mut concerned: Vec<&FileEntry> = files
            .iter()
            .filter(|file| file.generation <= newest)
            .collect();
        concerned.sort_by_key(|file| file.bytes);
        for file in concerned {
            let block = match self.block(&file.name) {
                Ok(block) => block,
                // It is named when it is read, and gives nobody's samples any more.
                Err(HistoryError::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            if block
                .hosts()
                .iter()
                .any(|host| forgotten(*host, file.generation))
            {
                self.write_again(file, block, &forgotten)?;
                return Ok(true);
            }
        }
        self.commit(|manifest| manifest.forgotten.retain(|entry| !list.contains(entry)))?;
        Ok(false)
    }

    fn write_again(
        &self,
        file: &FileEntry,
        block: Arc<Block<S>>,
        forgotten: &dyn Fn(HostId, u64) -> bool,
    ) -> Result<(), HistoryError> {
        let span = Span {
            generation: self.new_generation(),
            ..*block.span()
        };
        let target = Target {
            name: file_name(&span),
            span,
        };
        let mut written = merge::merge(&self.storage, &[block], vec![target], forgotten)?;
        for entry in &mut written {
            Counters::add(&self.counters.written_bytes, entry.bytes);
            Counters::add(&self.counters.merged_files, 1);
            entry.packed = file.packed;
        }
        self.commit(|manifest| {
            manifest.files.retain(|held| held.name != file.name);
            manifest.files.extend(written);
        })
    }

    fn pack(&self, files: &[FileEntry], job: &Job) -> Result<(), HistoryError> {
        let mut inputs: Vec<&FileEntry> = files.iter().filter(|file| job.takes(file)).collect();
        inputs.sort_by_key(|file| file.generation);
        let generation = self.new_generation();
        let span = |tier| Span {
            tier,
            group: job.group,
            start: job.start,
            end: job.end,
            generation,
        };
        let target = |tier| Target {
            name: file_name(&span(tier)),
            span: span(tier),
        };
        let mut targets = vec![target(job.tier)];
        if job.tier == Tier::Raw {
            targets.extend([target(Tier::Minute), target(Tier::Quarter)]);
        }
        let mut blocks = Vec::with_capacity(inputs.len());
        for input in &inputs {
            blocks.push(self.block(&input.name)?);
        }
        let forgotten = merge::forgotten_by(&self.forgotten());
        let mut written = merge::merge(&self.storage, &blocks, targets, &forgotten)?;
        for entry in &mut written {
            Counters::add(&self.counters.written_bytes, entry.bytes);
            Counters::add(&self.counters.merged_files, 1);
            // A roll-up of one window may still be put together with its neighbours.
            entry.packed = entry.tier == job.tier;
        }
        let names: HashSet<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        self.commit(|manifest| {
            manifest
                .files
                .retain(|file| !names.contains(file.name.as_str()));
            manifest.files.extend(written);
        })
    }

    fn expire(&self, now: i64) -> Result<(), HistoryError> {
        let files = self.files();
        let old = |file: &FileEntry| {
            // Raw samples that came late are rolled up before they go.
            let done = file.tier != Tier::Raw || file.packed;
            done && file.end <= now.saturating_sub(self.config.keep_ms(file.tier))
        };
        let mut gone: HashSet<String> = files
            .iter()
            .filter(|file| old(file))
            .map(|file| file.name.clone())
            .collect();
        let by_age = gone.len() as u64;
        let mut left: Vec<&FileEntry> = files
            .iter()
            .filter(|file| !gone.contains(&file.name))
            .collect();
        let mut bytes: u64 = left.iter().map(|file| file.bytes).sum();
        // The finest first, the oldest of it first: a day of samples costs as much as a year of roll-ups.
        left.sort_by_key(|file| (file.tier, file.end));
        let mut by_size = 0;
        for file in left {
            if bytes <= self.config.max_bytes {
                break;
            }
            if file.end + GRACE_MS > now {
                // What is being filled now is the last that anybody wants to lose.
                continue;
            }
            tracing::warn!(
                file = file.name,
                tier = file.tier.word(),
                bytes,
                limit = self.config.max_bytes,
                "the history is larger than history.max_size; its oldest file goes before its time"
            );
            bytes -= file.bytes;
            by_size += 1;
            gone.insert(file.name.clone());
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.commit(|manifest| {
            manifest.files.retain(|file| !gone.contains(&file.name));
            // Nothing is left of what a host was forgotten in.
            let oldest = manifest.files.iter().map(|file| file.generation).min();
            manifest
                .forgotten
                .retain(|(_, until)| oldest.is_some_and(|oldest| oldest <= *until));
        })?;
        Counters::add(&self.counters.dropped_by_age, by_age);
        Counters::add(&self.counters.dropped_by_size, by_size);
        Ok(())
    }
}

/// Files to be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Job {
    tier: Tier,
    group: u32,
    start: i64,
    end: i64,
}

impl Job {
    fn takes(&self, file: &FileEntry) -> bool {
        file.tier == self.tier
            && file.group == self.group
            && file.start >= self.start
            && file.end <= self.end
    }
}

/// The oldest window that is over and not in one packed file; samples first.
fn next_job(files: &[FileEntry], now: i64) -> Option<Job> {
    const DAY: i64 = 86_400_000;
    const LEVELS: [(Tier, i64); 4] = [
        (Tier::Raw, Tier::Raw.window_ms()),
        (Tier::Minute, DAY),
        (Tier::Quarter, DAY),
        (Tier::Quarter, Tier::Quarter.window_ms()),
    ];
    for (tier, length) in LEVELS {
        let mut windows: BTreeMap<(i64, u32), (usize, bool)> = BTreeMap::new();
        for file in files
            .iter()
            .filter(|file| file.tier == tier && file.end - file.start <= length)
        {
            let start = file.start - file.start.rem_euclid(length);
            let (count, loose) = windows.entry((start, file.group)).or_default();
            *count += 1;
            *loose |= !file.packed;
        }
        for ((start, group), (count, loose)) in windows {
            let end = start + length;
            let needed = if tier == Tier::Raw { loose } else { count > 1 };
            if needed && end + GRACE_MS <= now {
                return Some(Job {
                    tier,
                    group,
                    start,
                    end,
                });
            }
        }
    }
    None
}
