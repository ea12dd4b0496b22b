//! The embedded store: an open window in memory, everything else in immutable files.
//!
//! Hosts are put into groups in the order in which they come; a group shares files. What a group holds in memory
//! is written to a file for each window when it has grown too large, or its window is over
//! ([`EmbeddedStore::flush`]); files of a window that is over are packed into one, with its roll-ups, and roll-ups
//! into longer windows ([`EmbeddedStore::maintain`]). Every change is one replacement of the manifest, so a crash
//! leaves the store as it was before the change or after it.
//!
//! How memory becomes files is in `spill`, how files are packed and go in `pack`, how questions are answered in
//! `read`; here is what they share: groups, the manifest and its replacement.
//!
//! Two callers change it: the one that appends also flushes; another maintains. Readers wait for neither but
//! while a group's rows are being appended to or read, and for the list of files.

mod pack;
mod read;
mod spill;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use muster_proto::{id::HostId, log::Storage, series::Raw};

use super::{
    Caps, HistoryConfig, HistoryError, HostSeries, ReadReport, SampleQuery, SampleStore, SeriesKey,
    SeriesName, StoreStats, Tier, Token,
    block::{Block, Span, io_error},
    config::GRACE_MS,
    jobs::SetAside,
    manifest::{self, FileEntry, GroupEntry, Manifest},
    rebuild,
    rows::Rows,
};

/// Open files whose names and indices are kept in memory: a day of a group, in every tier.
const OPEN_BLOCKS: usize = 64;

/// With this many times its due memory a group takes no more: its disk does not take what it has.
const BACKLOG: usize = 4;

/// Pause before what could not be written is tried again, in milliseconds.
const RETRY_MS: u64 = 5_000;

/// Rows of one window: hosts by their place in the group.
type Window = BTreeMap<u32, Rows>;

/// Windows by their first millisecond.
type Windows = BTreeMap<i64, Window>;

/// The store. See the module's own words.
pub struct EmbeddedStore<S: Storage> {
    storage: S,
    config: HistoryConfig,
    groups: RwLock<Groups>,
    files: RwLock<Arc<Vec<FileEntry>>>,
    /// Hosts that were forgotten, and up to which generation; beside the manifest, which is locked while it is written.
    forgotten: RwLock<Arc<Vec<(HostId, u64)>>>,
    committed: Mutex<Committed>,
    open: Mutex<VecDeque<(String, Arc<Block<S>>)>>,
    aside: Mutex<SetAside>,
    /// As it stood in the manifest at the start; for hosts that are in no group's file yet.
    passed_over: HashMap<HostId, Token>,
    /// The last record that was appended.
    newest: AtomicU64,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    written_bytes: AtomicU64,
    dropped_by_age: AtomicU64,
    dropped_by_size: AtomicU64,
    spilled_files: AtomicU64,
    merged_files: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Groups {
    of: HashMap<HostId, (usize, u32)>,
    list: Vec<Arc<Mutex<Head>>>,
}

/// What a group holds in memory.
#[derive(Default)]
struct Head {
    hosts: Vec<HostId>,
    /// Hosts that stand in the group's file on disk: for them `covered` holds.
    known: usize,
    windows: Windows,
    memory: usize,
    samples: u64,
    /// Being written, or not written because the disk refused.
    flushing: Option<Arc<Flushing>>,
    /// On disk up to here.
    covered: Token,
    /// The first record of which something stands in `windows`.
    first: Option<Token>,
    /// When it was last flushed, by the wall clock.
    flushed_at: i64,
    /// Of hosts, by place, that were forgotten: records up to here are not taken.
    passed_over: HashMap<u32, Token>,
}

struct Flushing {
    windows: Windows,
    first: Option<Token>,
    token: Token,
    aside: Vec<u8>,
    hosts: Vec<HostId>,
    samples: u64,
    memory: usize,
}

struct Committed {
    manifest: Manifest,
    /// Never used for a name.
    next: u64,
    /// Files of changes of which it is not known whether they happened; the next change that does removes them.
    strays: Vec<String>,
}

/// What a store was found to be at the start.
#[derive(Debug, Default)]
pub struct Opened {
    /// For each group what its feeder kept with it.
    pub aside: Vec<Vec<u8>>,
    /// What is wrong, in words for people.
    pub problems: Vec<String>,
}

impl<S: Storage> EmbeddedStore<S> {
    /// Opens the store in a folder, and removes what does not belong to it. `now` is the wall clock in
    /// milliseconds.
    ///
    /// # Errors
    /// When the folder cannot be used, or a newer program wrote here. A manifest that is damaged, or a group's file, is
    /// made anew; damaged files of samples are found when they are read.
    pub fn open(
        storage: S,
        config: HistoryConfig,
        now: i64,
    ) -> Result<(Self, Opened), HistoryError> {
        let mut opened = Opened::default();
        let manifest = Self::known(&storage, &mut opened)?;
        let mut groups = Groups::default();
        let passed_over: HashMap<HostId, Token> = manifest.passed_over.iter().copied().collect();
        for (number, entry) in manifest.groups.iter().enumerate() {
            let mut head = Head {
                flushed_at: now,
                ..Head::default()
            };
            let mut aside = Vec::new();
            if let Some(entry) = entry {
                let state = manifest::read_group(&storage, &entry.file)?;
                for (host, place) in state.hosts.iter().zip(0..) {
                    groups.of.insert(*host, (number, place));
                    if let Some(upto) = passed_over.get(host) {
                        head.passed_over.insert(place, *upto);
                    }
                }
                head.known = state.hosts.len();
                head.hosts = state.hosts;
                head.covered = entry.covered;
                aside = state.aside;
            }
            groups.list.push(Arc::new(Mutex::new(head)));
            opened.aside.push(aside);
        }
        let listed = storage
            .list()
            .map_err(|error| io_error("list", ".", error))?;
        let mut here = HashSet::new();
        let copied = listed.iter().any(|name| name == manifest::FORGOTTEN);
        for name in listed {
            if manifest.names(&name) {
                here.insert(name);
            } else if name.ends_with(".mhb") || name.ends_with(".mhg") || name.ends_with(".tmp") {
                // Of a change that did not happen. If it stays, the next start tries again.
                let _ = storage.remove(&name);
            }
        }
        for file in &manifest.files {
            if !here.contains(&file.name) {
                opened.problems.push(format!("{} is missing", file.name));
            }
        }
        let forgets = !(manifest.forgotten.is_empty() && manifest.passed_over.is_empty());
        if forgets && !copied {
            // Of a program that kept no copy.
            manifest::write_forgotten(&storage, &manifest)?;
        }
        let (next, upto) = (manifest.generation + 1, manifest.upto);
        let store = Self {
            storage,
            config,
            groups: RwLock::new(groups),
            files: RwLock::new(Arc::new(manifest.files.clone())),
            forgotten: RwLock::new(Arc::new(manifest.forgotten.clone())),
            committed: Mutex::new(Committed {
                manifest,
                next,
                strays: Vec::new(),
            }),
            open: Mutex::default(),
            aside: Mutex::default(),
            passed_over,
            newest: AtomicU64::new(upto),
            counters: Counters::default(),
        };
        Ok((store, opened))
    }

    /// The manifest, made anew if it or a group's file is not what was written.
    fn known(storage: &S, opened: &mut Opened) -> Result<Manifest, HistoryError> {
        let damaged = match manifest::read(storage) {
            Ok(Some(manifest)) => {
                let whole = |group: &GroupEntry| match manifest::read_group(storage, &group.file) {
                    Ok(_) => Ok(true),
                    Err(HistoryError::Damaged { .. }) => Ok(false),
                    Err(HistoryError::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotFound =>
                    {
                        Ok(false)
                    }
                    Err(error) => Err(error),
                };
                for group in manifest.groups.iter().flatten() {
                    if !whole(group)? {
                        opened.problems.push(format!("{} is damaged", group.file));
                        let (manifest, mut problems) = rebuild::rebuild(storage, Some(&manifest))?;
                        opened.problems.append(&mut problems);
                        return Ok(manifest);
                    }
                }
                return Ok(manifest);
            }
            Ok(None) => {
                let listed = storage.list();
                let listed = listed.map_err(|error| io_error("list", ".", error))?;
                if !rebuild::has_files(&listed) {
                    // From now on there is one before there are files: where there are only files, it was lost.
                    let empty = Manifest::default();
                    manifest::prepare(storage, &empty)?;
                    manifest::replace(storage)?;
                    return Ok(empty);
                }
                "the manifest of the history is gone".to_owned()
            }
            Err(error @ HistoryError::Damaged { .. }) => crate::chain(&error),
            Err(error) => return Err(error),
        };
        opened.problems.push(damaged);
        let (manifest, mut problems) = rebuild::rebuild(storage, None)?;
        opened.problems.append(&mut problems);
        Ok(manifest)
    }

    /// Its settings.
    pub fn config(&self) -> &HistoryConfig {
        &self.config
    }

    /// Where it is.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The files there are.
    pub fn files(&self) -> Arc<Vec<FileEntry>> {
        Arc::clone(&self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn forgotten(&self) -> Arc<Vec<(HostId, u64)>> {
        let forgotten = self.forgotten.read();
        Arc::clone(&forgotten.unwrap_or_else(PoisonError::into_inner))
    }

    /// The manifest as it is on disk.
    pub fn manifest(&self) -> Manifest {
        self.committed().manifest.clone()
    }

    /// Up to which record the samples of this host are on disk; 0 for a host that is new.
    pub fn covered(&self, host: HostId) -> Token {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let Some(&(group, place)) = groups.of.get(&host) else {
            return 0;
        };
        let head = lock(&groups.list[group]);
        if (place as usize) < head.known {
            head.covered
        } else {
            0
        }
    }

    /// The group of a host, if it has one.
    pub fn group_of(&self, host: HostId) -> Option<usize> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.of.get(&host).map(|(group, _)| *group)
    }

    fn group(&self, number: usize) -> Option<Arc<Mutex<Head>>> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.list.get(number).cloned()
    }

    /// The host's group and place; new hosts go to the last group that has room.
    fn place(&self, host: HostId, now: i64) -> (Arc<Mutex<Head>>, u32) {
        {
            let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(&(group, place)) = groups.of.get(&host) {
                return (Arc::clone(&groups.list[group]), place);
            }
        }
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let room = |head: &Arc<Mutex<Head>>| lock(head).hosts.len() < self.config.group_hosts;
        if !groups.list.last().is_some_and(room) {
            let head = Head {
                flushed_at: now,
                ..Head::default()
            };
            groups.list.push(Arc::new(Mutex::new(head)));
        }
        let number = groups.list.len() - 1;
        let head = Arc::clone(&groups.list[number]);
        let place = {
            let mut head = lock(&head);
            head.hosts.push(host);
            let place = u32::try_from(head.hosts.len() - 1).unwrap_or(u32::MAX);
            if let Some(upto) = self.passed_over.get(&host) {
                head.passed_over.insert(place, *upto);
            }
            place
        };
        groups.of.insert(host, (number, place));
        (head, place)
    }

    fn committed(&self) -> MutexGuard<'_, Committed> {
        self.committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that a group of this many hosts may fill before it is flushed.
    fn due_memory(&self, hosts: usize, all: usize) -> usize {
        let share = self.config.memory_floor / all.max(1) * hosts;
        share.max(self.config.memory_per_host * hosts)
    }

    /// Groups that should be flushed now.
    pub fn due(&self, now: i64) -> Vec<usize> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let all = groups.of.len();
        let due = |(number, head): (usize, &Arc<Mutex<Head>>)| {
            let head = lock(head);
            if head.flushing.is_some() {
                // Also when the clock was put back.
                let rested = head.flushed_at.abs_diff(now) >= RETRY_MS;
                return rested.then_some(number);
            }
            let full = head.memory > self.due_memory(head.hosts.len(), all);
            let over = |start: &i64| start + Tier::Raw.window_ms() + GRACE_MS <= now;
            let rested = head.flushed_at + GRACE_MS <= now;
            let oldest = head.windows.keys().next();
            (full || (rested && oldest.is_some_and(over))).then_some(number)
        };
        groups.list.iter().enumerate().filter_map(due).collect()
    }

    /// Groups that have something in memory.
    pub fn unsaved(&self) -> Vec<usize> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let unsaved = |(number, head): (usize, &Arc<Mutex<Head>>)| {
            let head = lock(head);
            (head.flushing.is_some() || !head.windows.is_empty()).then_some(number)
        };
        groups.list.iter().enumerate().filter_map(unsaved).collect()
    }

    /// Whether something could not be written and waits for the next try.
    pub fn waits(&self) -> bool {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.list.iter().any(|head| lock(head).flushing.is_some())
    }

    /// Removes files that no manifest names. One that stays goes with the next change, or at the next start.
    fn discard(&self, names: &[String], committed: &mut Committed) {
        for name in names {
            match self.storage.remove(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    committed.strays.push(name.clone());
                }
                _ => {}
            }
        }
    }

    /// Everything up to here is in files, or will be with this group's flush.
    fn upto(&self, flushing: Option<usize>) -> Token {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let mut upto = self.newest.load(Ordering::Acquire);
        for (number, head) in groups.list.iter().enumerate() {
            let head = lock(head);
            let waiting = head.flushing.as_ref().filter(|_| flushing != Some(number));
            let first = waiting.and_then(|waiting| waiting.first).or(head.first);
            upto = first.map_or(upto, |first| upto.min(first.saturating_sub(1)));
        }
        upto
    }

    /// The highest record of the log that it has seen.
    pub fn highest(&self) -> Token {
        let committed = self.committed();
        let groups = committed.manifest.groups.iter().flatten();
        let covered = groups.map(|group| group.covered).max().unwrap_or(0);
        covered.max(committed.manifest.upto)
    }

    /// Whether the group of this host takes more; else its disk does not take what it has.
    pub fn has_room(&self, host: HostId) -> bool {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let Some((group, _)) = groups.of.get(&host) else {
            return true;
        };
        let head = lock(&groups.list[*group]);
        self.room(&head, groups.of.len())
    }

    fn room(&self, head: &Head, all: usize) -> bool {
        let due = self.due_memory(head.hosts.len(), all).max(1 << 20);
        let waiting = head.flushing.as_ref().map_or(0, |flushing| flushing.memory);
        head.memory + waiting <= BACKLOG * due
    }

    /// Notes that everything up to here was appended, or has nothing to append.
    pub fn seen(&self, token: Token) {
        self.newest.fetch_max(token, Ordering::AcqRel);
    }

    fn new_generation(&self) -> u64 {
        let mut committed = self.committed();
        committed.next += 1;
        committed.next - 1
    }

    /// Replaces the manifest by a changed one, then the list of files that readers see, then removes what does not
    /// belong to it any more. `new` are the files that the change brings: they go if it does not happen.
    fn commit(
        &self,
        new: Vec<String>,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<(), HistoryError> {
        let mut committed = self.committed();
        let mut manifest = committed.manifest.clone();
        change(&mut manifest);
        manifest.generation = committed.next;
        committed.next += 1;
        let before = &committed.manifest;
        let copied = if (&before.forgotten, &before.passed_over)
            == (&manifest.forgotten, &manifest.passed_over)
        {
            Ok(0)
        } else {
            manifest::write_forgotten(&self.storage, &manifest)
        };
        let written = copied.and_then(|_| manifest::prepare(&self.storage, &manifest));
        let written = written.inspect_err(|_| self.discard(&new, &mut committed))?;
        Counters::add(&self.counters.written_bytes, written);
        if let Err(error) = manifest::replace(&self.storage) {
            // After a crash now either manifest may count: the files stay until one is on disk that leaves them out.
            committed.strays.extend(new);
            return Err(error);
        }
        *self
            .forgotten
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(manifest.forgotten.clone());
        *self.files.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(manifest.files.clone());
        let before = std::mem::replace(&mut committed.manifest, manifest);
        let strays = std::mem::take(&mut committed.strays);
        let kept: HashSet<&str> = committed
            .manifest
            .files
            .iter()
            .map(|file| file.name.as_str())
            .chain(
                committed
                    .manifest
                    .groups
                    .iter()
                    .flatten()
                    .map(|group| group.file.as_str()),
            )
            .collect();
        let gone: Vec<String> = before
            .files
            .iter()
            .map(|file| &file.name)
            .chain(before.groups.iter().flatten().map(|group| &group.file))
            .chain(&strays)
            .filter(|name| !kept.contains(name.as_str()))
            .cloned()
            .collect();
        for name in &gone {
            self.close(name);
        }
        self.discard(&gone, &mut committed);
        Ok(())
    }

    fn close(&self, name: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(held, _)| held != name);
    }

    /// The file, from memory if it was used lately.
    ///
    /// # Errors
    /// When it does not read.
    pub fn block(&self, name: &str) -> Result<Arc<Block<S>>, HistoryError> {
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = open.iter().position(|(held, _)| held == name)
                && let Some(found) = open.remove(at)
            {
                let block = Arc::clone(&found.1);
                open.push_back(found);
                return Ok(block);
            }
        }
        let block = Arc::new(Block::open(&self.storage, name)?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN_BLOCKS {
            open.pop_front();
        }
        open.push_back((name.to_owned(), Arc::clone(&block)));
        Ok(block)
    }
}

impl<S> SampleStore for EmbeddedStore<S>
where
    S: Storage + Send + Sync,
    S::File: Send + Sync,
{
    fn caps(&self) -> Caps {
        Caps {
            deduplicates: true,
            takes_late: true,
            reads_own_writes: true,
            forgets: true,
        }
    }

    fn append(
        &self,
        token: Token,
        host: HostId,
        tick: i64,
        values: &mut dyn Iterator<Item = (&Arc<SeriesKey>, Raw)>,
    ) -> Result<(), HistoryError> {
        let (head, place) = self.place(host, tick);
        let all = self
            .groups
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .of
            .len();
        let mut head = lock(&head);
        let covered = if (place as usize) < head.known {
            head.covered
        } else {
            0
        };
        let passed = head.passed_over.get(&place).copied().unwrap_or(0);
        if token != 0 && token <= covered.max(passed) {
            return Ok(());
        }
        if !self.room(&head, all) {
            return Err(HistoryError::Backlog);
        }
        let window = Tier::Raw.window_of(tick);
        let rows = head
            .windows
            .entry(window)
            .or_default()
            .entry(place)
            .or_default();
        let (memory, samples) = (rows.memory(), rows.samples());
        rows.push(tick, values);
        let (memory, samples) = (rows.memory() - memory, rows.samples() - samples);
        head.memory += memory;
        head.samples += samples;
        head.first.get_or_insert(token);
        self.seen(token);
        Ok(())
    }

    fn durable(&self) -> Token {
        self.upto(None)
    }

    fn read(
        &self,
        query: &SampleQuery,
        sink: &mut dyn FnMut(HostSeries) -> ControlFlow<()>,
    ) -> Result<ReadReport, HistoryError> {
        let mut by_group: BTreeMap<usize, Vec<HostId>> = BTreeMap::new();
        for host in &query.hosts {
            if let Some(group) = self.group_of(*host) {
                by_group.entry(group).or_default().push(*host);
            }
        }
        let mut report = ReadReport::default();
        for (group, mut hosts) in by_group {
            hosts.sort_unstable();
            hosts.dedup();
            let read = self.read_group(group, &hosts, query, &mut report, sink)?;
            if read.is_break() {
                return Ok(report);
            }
        }
        report.missing.sort_unstable();
        report.missing.dedup();
        Ok(report)
    }

    fn forget(&self, host: HostId, upto: Token) -> Result<(), HistoryError> {
        let Some(group) = self.group_of(host) else {
            return Ok(());
        };
        let Some(head) = self.group(group) else {
            return Ok(());
        };
        // Held until it is on disk: nothing of the host is written to a file in between. It is an admin who asked.
        let mut head = lock(&head);
        if head.flushing.is_some() {
            return Err(HistoryError::Busy);
        }
        let Some(place) = head.hosts.iter().position(|held| *held == host) else {
            return Ok(());
        };
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        // A restart reads the log again from before here.
        let upto = upto.max(self.newest.load(Ordering::Acquire));
        let until = self.new_generation();
        self.commit(Vec::new(), |manifest| {
            manifest.forgotten.push((host, until));
            manifest.passed_over.retain(|(id, _)| *id != host);
            manifest.passed_over.push((host, upto));
        })?;
        head.passed_over.insert(place, upto);
        let mut gone = (0, 0);
        for window in head.windows.values_mut() {
            if let Some(rows) = window.remove(&place) {
                gone = (gone.0 + rows.memory(), gone.1 + rows.samples());
            }
        }
        head.memory = head.memory.saturating_sub(gone.0);
        head.samples = head.samples.saturating_sub(gone.1);
        head.windows.retain(|_, window| !window.is_empty());
        if head.windows.is_empty() {
            // Nothing in memory needs the log any more.
            head.first = None;
        }
        Ok(())
    }

    fn stats(&self) -> StoreStats {
        let mut stats = StoreStats::default();
        for file in self.files().iter() {
            let tier = file.tier as usize;
            stats.files[tier] += 1;
            stats.bytes[tier] += file.bytes;
            stats.points[tier] += file.points;
            let oldest = &mut stats.oldest_ms[tier];
            *oldest = if *oldest == 0 {
                file.start
            } else {
                (*oldest).min(file.start)
            };
        }
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        stats.hosts = groups.of.len() as u64;
        for head in &groups.list {
            let head = lock(head);
            let waiting = head.flushing.as_ref();
            stats.head_bytes += head.memory as u64;
            stats.head_bytes += waiting.map_or(0, |flushing| flushing.memory as u64);
            stats.head_samples += head.samples + waiting.map_or(0, |flushing| flushing.samples);
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        stats.written_bytes = load(&self.counters.written_bytes);
        stats.dropped_by_age = load(&self.counters.dropped_by_age);
        stats.dropped_by_size = load(&self.counters.dropped_by_size);
        stats.spilled_files = load(&self.counters.spilled_files);
        stats.merged_files = load(&self.counters.merged_files);
        stats.failures = load(&self.counters.failures);
        stats
    }
}

fn file_name(span: &Span) -> String {
    format!(
        "{}-{:06x}-{}-{:016x}.mhb",
        span.tier.word(),
        span.group,
        span.start,
        span.generation
    )
}

/// The name of a series as answers have it.
#[must_use]
pub fn name_of(key: &SeriesKey) -> SeriesName {
    SeriesName {
        family: Arc::clone(&key.family),
        labels: key.labels.clone(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether two series stand in a file as they must.
#[must_use]
pub fn name_order(one: &SeriesName, other: &SeriesName) -> bool {
    one.order(other).is_lt()
}
