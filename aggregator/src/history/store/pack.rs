//! Files become fewer and smaller, lose hosts that were forgotten, and go when their time is over.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use muster_agent::settings;
use muster_proto::{id::HostId, log::Storage};

use super::{Counters, EmbeddedStore, file_name, lock};
use crate::history::{
    HistoryError, Tier,
    block::{Block, Span},
    config::GRACE_MS,
    jobs::{Job, jobs},
    manifest::FileEntry,
    merge::{self, Input, Target},
};

impl<S: Storage> EmbeddedStore<S> {
    /// Removes files that are too old, or too many; then packs one window that is over, if there is one to pack, or writes
    /// one file again without who was forgotten; whether there was. A window that does not pack is set aside
    /// ([`crate::history::jobs::SetAside`]), so that the next call goes on with another.
    ///
    /// # Errors
    /// When a file does not read or the disk refuses; the store is as it was.
    pub fn maintain(&self, now: i64) -> Result<bool, HistoryError> {
        // First, and whatever comes of packing: what must go makes room for it.
        let expired = self.expire(now);
        let files = self.files();
        let mut jobs = jobs(&files, now);
        jobs.retain(|job| !self.is_open(job));
        let next = lock(&self.aside).next(&jobs, now);
        let Some(job) = next else {
            expired?;
            return self.purge(&files, now);
        };
        match self.pack(&files, &job) {
            Ok(()) => {
                lock(&self.aside).packed(&job);
                expired.map(|()| true)
            }
            Err(error) => {
                Counters::add(&self.counters.failures, 1);
                lock(&self.aside).failed(job, now, &error);
                Err(error)
            }
        }
    }

    /// That files go before their time for want of room, for people. It stays until the next start, at which the room
    /// can be another.
    pub fn cramped(&self) -> Option<String> {
        let dropped = self.counters.dropped_by_size.load(Ordering::Relaxed);
        (dropped > 0).then(|| {
            format!(
                "history.max_size ({}) is too small for what is to be kept: {dropped} files went before their time since \
                 the start; give it some 30 MiB a host, or keep less (keep_raw, keep_1m, keep_15m)",
                settings::show_bytes(self.config.max_bytes)
            )
        })
    }

    /// What could not be packed, for people.
    pub fn unpacked(&self) -> Option<String> {
        let aside = lock(&self.aside);
        let (count, why) = aside.first()?;
        Some(format!(
            "history cannot pack {count} windows, which are kept as they are for as long as samples are: {why}"
        ))
    }

    fn pack(&self, files: &[FileEntry], job: &Job) -> Result<(), HistoryError> {
        let mut inputs: Vec<&FileEntry> = files.iter().filter(|file| job.takes(file)).collect();
        inputs.sort_by_key(|file| file.generation);
        let targets = targets(job, self.new_generation());
        let mut blocks = Vec::with_capacity(inputs.len());
        for input in &inputs {
            blocks.push(self.block(&input.name)?);
        }
        let blocks: Vec<&dyn Input> = blocks.iter().map(|block| &**block as &dyn Input).collect();
        let new: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
        let written = self.put_together(&blocks, targets);
        let written = written.inspect_err(|_| self.discard(&new, &mut self.committed()))?;
        let names: HashSet<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        self.commit(new, |manifest| {
            manifest
                .files
                .retain(|file| !names.contains(file.name.as_str()));
            manifest.files.extend(written);
        })
    }

    /// Writes the inputs, which are in the order of their generations, as the first target, and rolled up as the others.
    pub(super) fn put_together(
        &self,
        inputs: &[&dyn Input],
        targets: Vec<Target>,
    ) -> Result<Vec<FileEntry>, HistoryError> {
        let tier = targets.first().map(|target| target.span.tier);
        let forgotten = merge::forgotten_by(&self.forgotten());
        let mut written = merge::merge(&self.storage, inputs, targets, &forgotten)?;
        for entry in &mut written {
            Counters::add(&self.counters.written_bytes, entry.bytes);
            Counters::add(&self.counters.merged_files, 1);
            // A roll-up of one window may still be put together with its neighbours.
            entry.packed = Some(entry.tier) == tier;
        }
        Ok(written)
    }

    /// Whether memory has something of the window of samples: it comes to its files within minutes, and packs them.
    fn is_open(&self, job: &Job) -> bool {
        let Some(head) = self
            .group(job.group as usize)
            .filter(|_| job.tier == Tier::Raw)
        else {
            return false;
        };
        let head = lock(&head);
        let waiting = head.flushing.as_ref();
        head.windows.contains_key(&job.start)
            || waiting.is_some_and(|waiting| waiting.windows.contains_key(&job.start))
    }

    /// Writes one file again without the hosts that were forgotten, if there is one that still has them; whether
    /// there was. When there is none left, who was forgotten need not be known any longer. Files of windows that are not
    /// over wait until they are packed.
    fn purge(&self, files: &[FileEntry], now: i64) -> Result<bool, HistoryError> {
        let list = self.forgotten();
        let Some(newest) = list.iter().map(|(_, until)| *until).max() else {
            return Ok(false);
        };
        let forgotten = merge::forgotten_by(&list);
        let mut whole = true;
        for file in files.iter().filter(|file| file.generation <= newest) {
            if file.end + GRACE_MS > now {
                whole = false;
                continue;
            }
            let block = match self.block(&file.name) {
                Ok(block) => block,
                Err(HistoryError::Damaged { .. }) => {
                    // It is named when it is read, and goes when its time is over.
                    whole = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut hosts = block.hosts().iter();
            if hosts.any(|host| forgotten(*host, file.generation)) {
                match self.write_again(file, block, &forgotten) {
                    // As above: a page that does not read must not keep the others.
                    Err(HistoryError::Damaged { .. }) => whole = false,
                    Err(error) => return Err(error),
                    Ok(()) => return Ok(true),
                }
            }
        }
        if whole {
            self.commit(Vec::new(), |manifest| {
                manifest.forgotten.retain(|entry| !list.contains(entry));
            })?;
        }
        Ok(false)
    }

    /// Replaces a file by what it holds of the hosts that were not forgotten.
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
        let name = file_name(&span);
        let target = Target {
            name: name.clone(),
            span,
        };
        let written = merge::merge(&self.storage, &[&*block], vec![target], forgotten);
        let new = vec![name];
        let mut written = written.inspect_err(|_| self.discard(&new, &mut self.committed()))?;
        for entry in &mut written {
            Counters::add(&self.counters.written_bytes, entry.bytes);
            Counters::add(&self.counters.merged_files, 1);
            entry.packed = file.packed;
        }
        self.commit(new, |manifest| {
            manifest.files.retain(|held| held.name != file.name);
            manifest.files.extend(written);
        })
    }

    fn expire(&self, now: i64) -> Result<(), HistoryError> {
        let files = self.files();
        let aside = lock(&self.aside);
        let old = |file: &FileEntry| {
            // Raw samples are rolled up before they go, if that can ever be.
            let done = file.tier != Tier::Raw || file.packed || aside.has_given_up(file);
            done && file.end <= now.saturating_sub(self.config.keep_ms(file.tier))
        };
        let mut gone: HashSet<String> = files
            .iter()
            .filter(|file| old(file))
            .map(|file| file.name.clone())
            .collect();
        drop(aside);
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
        self.commit(Vec::new(), |manifest| {
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

/// What a job writes: its files as one, and of samples their roll-ups.
pub(super) fn targets(job: &Job, generation: u64) -> Vec<Target> {
    let rolled = if job.tier == Tier::Raw {
        &[Tier::Minute, Tier::Quarter][..]
    } else {
        &[]
    };
    let tiers = std::iter::once(job.tier).chain(rolled.iter().copied());
    tiers
        .map(|tier| {
            let span = Span {
                tier,
                group: job.group,
                start: job.start,
                end: job.end,
                generation,
            };
            Target {
                name: file_name(&span),
                span,
            }
        })
        .collect()
}
