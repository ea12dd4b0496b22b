//! The embedded store: an open window in memory, everything else in immutable files.
//!
//! Hosts are put into groups in the order in which they come; a group shares files. What a group holds in memory
//! is written to a file for each window when it has grown too large, or its window is over
//! ([`EmbeddedStore::flush`]); files of a window that is over are packed into one, with its roll-ups, and roll-ups
//! into longer windows ([`EmbeddedStore::maintain`]). Every change is one replacement of the manifest, so a crash
//! leaves the store as it was before the change or after it.
//!
//! Two callers change it: the one that appends also flushes; another maintains. Readers wait for neither but
//! while a group's rows are being appended to or read, and for the list of files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    io,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use muster_proto::{
    id::HostId,
    log::Storage,
    series::{Family, Raw},
};

use super::{
    Caps, HistoryConfig, HistoryError, HostSeries, Point, ReadReport, SampleQuery, SampleStore,
    SeriesKey, SeriesName, StoreStats, Tier, Token,
    block::{Block, Cells, Chunk, Span, Writer, put_chunk, tick_runs},
    column::Effort,
    config::GRACE_MS,
    jobs::{Job, SetAside, jobs},
    manifest::{self, FileEntry, GroupEntry, GroupState, Manifest},
    merge::{self, Target},
    rows::{Columns, Rows},
};

/// Open files whose names and indices are kept in memory: a day of a group, in every tier.
const OPEN_BLOCKS: usize = 64;

/// Hosts of a group that are read together, so that an answer is never in memory as a whole.
const HOSTS_AT_ONCE: usize = 64;

/// Points that are read together, unless one series of one host has more: 14 MiB. Tests have so few that answers are
/// cut into pieces all the same.
const POINTS_AT_ONCE: u64 = if cfg!(test) { 2_000 } else { 1 << 18 };

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
    /// When the folder cannot be used, the manifest is damaged, or a newer program wrote here. Damaged files of
    /// samples are found when they are read.
    pub fn open(
        storage: S,
        config: HistoryConfig,
        now: i64,
    ) -> Result<(Self, Opened), HistoryError> {
        let manifest = manifest::read(&storage)?.unwrap_or_default();
        let mut opened = Opened::default();
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
            .map_err(|error| super::block::io_error("list", ".", error))?;
        let mut here = HashSet::new();
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
        let written = self.write_files(group, flushing, &mut names);
        let (added, entry) =
            written.inspect_err(|_| self.discard(&names, &mut self.committed()))?;
        let upto = self.upto(Some(group)).min(flushing.token);
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
        };
        let file = format!("group-{number:06x}-{generation:016x}.mhg");
        names.push(file.clone());
        let written = manifest::write_group(&self.storage, &file, &state)?;
        Counters::add(&self.counters.written_bytes, written);
        let covered = flushing.token;
        Ok((added, GroupEntry { covered, file }))
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
        let written = manifest::prepare(&self.storage, &manifest);
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

    /// Removes files that are too old, or too many; then packs one window that is over, if there is one to pack;
    /// whether there was. A window that does not pack is set aside ([`SetAside`]), so that the next call goes on with
    /// another.
    ///
    /// # Errors
    /// When a file does not read or the disk refuses; the store is as it was.
    pub fn maintain(&self, now: i64) -> Result<bool, HistoryError> {
        // First, and whatever comes of packing: what must go makes room for it.
        let expired = self.expire(now);
        let files = self.files();
        let next = lock(&self.aside).next(&jobs(&files, now), now);
        let Some(job) = next else {
            return expired.map(|()| false);
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
        let new: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
        let written = merge::merge(&self.storage, &blocks, targets, &forgotten);
        let mut written = written.inspect_err(|_| self.discard(&new, &mut self.committed()))?;
        for entry in &mut written {
            Counters::add(&self.counters.written_bytes, entry.bytes);
            Counters::add(&self.counters.merged_files, 1);
            // A roll-up of one window may still be put together with its neighbours.
            entry.packed = entry.tier == job.tier;
        }
        let names: HashSet<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        self.commit(new, |manifest| {
            manifest
                .files
                .retain(|file| !names.contains(file.name.as_str()));
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

    /// Hosts of a group, as many at a time as are held in memory well.
    fn read_group(
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
            found.add(host, &name_of(&key), |points| {
                chunk.points(&key.family, query.from, query.to, points);
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
