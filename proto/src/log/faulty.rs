//! A disk in memory that crashes, tears and fails on command, for tests.
//!
//! It keeps two images: what the program sees, and what a crash leaves. Behind the feature `testing` so
//! that the tests of other crates can use it while no shipped program carries a disk that forgets.
//!
//! How it forgets: a crash keeps a seeded part of the unsynced end of each file (sometimes with a hole in
//! it, as pages are written in any order) and a seeded number of the unsynced folder changes, in order.
//! After a failed sync those bytes are never made durable by a later sync of the same file, as on Linux.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::Storage;

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Fails with `ENOSPC`, nothing done.
    NoSpace,
    /// Fails with `EIO`, nothing done.
    InputOutput,
    /// A write takes only half of its bytes and says so; other operations succeed.
    ShortWrite,
    /// A write takes half of its bytes and fails with `EIO`; other operations fail with nothing done.
    TornWrite,
}

/// The disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct FaultyStorage {
    state: Arc<Mutex<State>>,
    folder: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// Folder changes since the folder was last synced.
    unsynced: Vec<Change>,
    operations: u64,
    plan: Option<Plan>,
    capacity: Option<u64>,
}

#[derive(Debug, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// A sync has failed: the unsynced bytes are clean in the kernel's eyes and will not be written.
    lost: bool,
    unreadable: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    operation: u64,
    fault: Fault,
    for_ever: bool,
}

impl FaultyStorage {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            folder: PathBuf::from("simulated"),
        }
    }

    /// Makes the operation that follows `after` others fail, and all later ones if `for_ever`.
    pub fn fail(&self, after: u64, fault: Fault, for_ever: bool) {
        let mut state = self.state();
        let operation = state.operations + after;
        state.plan = Some(Plan {
            operation,
            fault,
            for_ever,
        });
    }

    /// Plans the same fault, at the same operation, as another disk.
    pub fn fail_like(&self, other: &Self) {
        let plan = other.state().plan;
        self.state().plan = plan;
    }

    /// Ends all faults, and the limit on space.
    pub fn heal(&self) {
        let mut state = self.state();
        state.plan = None;
        state.capacity = None;
    }

    /// Sets how many bytes all files together may have; beyond, writes are short and then `ENOSPC`.
    pub fn limit_bytes(&self, capacity: u64) {
        self.state().capacity = Some(capacity);
    }

    /// Operations so far, failed ones included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Pulls the plug: what was not synced is gone, torn or still there, as `seed` decides.
    pub fn crash(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut state = self.state();
        let state = &mut *state;
        let kept = random.usize(..=state.unsynced.len());
        for change in state.unsynced.drain(..).take(kept) {
            change.apply(&mut state.durable);
        }
        state.live = state.durable.clone();
        for file in &mut state.files {
            file.crash(&mut random);
        }
    }

    /// Changes a file behind the program's back, in both images.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if let Some(&id) = state.live.get(name) {
            let file = &mut state.files[id];
            change(&mut file.live);
            file.durable = file.live.clone();
        }
    }

    /// From now on the contents of a file cannot be read (`EIO`), or can be again.
    pub fn unreadable(&self, name: &str, unreadable: bool) {
        let mut state = self.state();
        if let Some(&id) = state.live.get(name) {
            state.files[id].unreadable = unreadable;
        }
    }

    /// Puts a file there, durably, replacing one of that name.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let id = state.files.len();
        state.files.push(Contents {
            live: bytes.to_vec(),
            durable: bytes.to_vec(),
            ..Contents::default()
        });
        state.live.insert(name.to_owned(), id);
        state.durable.insert(name.to_owned(), id);
    }

    /// All files as the program sees them, by name.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let files = state.live.iter();
        files
            .map(|(name, id)| (name.clone(), state.files[*id].live.clone()))
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation and says what happens to it.
    fn begin(&self) -> (MutexGuard<'_, State>, Option<Fault>) {
        let mut state = self.state();
        let now = state.operations;
        state.operations += 1;
        let hit = state
            .plan
            .filter(|plan| plan.operation == now || (plan.for_ever && plan.operation < now));
        (state, hit.map(|plan| plan.fault))
    }

    /// The same for an operation that cannot be done by half.
    fn begin_whole(&self) -> io::Result<MutexGuard<'_, State>> {
        match self.begin() {
            (state, None | Some(Fault::ShortWrite)) => Ok(state),
            (_, Some(fault)) => Err(fault.error()),
        }
    }
}

impl Fault {
    fn error(self) -> io::Error {
        let errno = match self {
            Self::NoSpace => rustix::io::Errno::NOSPC,
            Self::InputOutput | Self::ShortWrite | Self::TornWrite => rustix::io::Errno::IO,
        };
        errno.into()
    }
}

impl Change {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create(name, id) => {
                names.insert(name, id);
            }
            Self::Rename(from, to) => {
                if let Some(id) = names.remove(&from) {
                    names.insert(to, id);
                }
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}

impl Contents {
    fn crash(&mut self, random: &mut fastrand::Rng) {
        let unsynced = self.live.get(self.durable.len()..).unwrap_or_default();
        let mut tail = unsynced[..random.usize(..=unsynced.len())].to_vec();
        if !tail.is_empty() && random.u8(..4) == 0 {
            let hole = random.usize(..tail.len());
            let end = tail.len().min(hole + 1 + random.usize(..512));
            tail[hole..end].fill(0);
        }
        self.durable.append(&mut tail);
        self.live = self.durable.clone();
        self.lost = false;
    }
}

impl Storage for FaultyStorage {
    type File = usize;

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.begin_whole()?.live.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<usize> {
        let mut state = self.begin_whole()?;
        if state.live.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.files.len();
        state.files.push(Contents::default());
        state.live.insert(name.to_owned(), id);
        state.unsynced.push(Change::Create(name.to_owned(), id));
        Ok(id)
    }

    fn append(&self, file: &mut usize, bytes: &[u8]) -> io::Result<usize> {
        let (mut state, fault) = self.begin();
        let mut taken = match fault {
            None => bytes.len(),
            Some(Fault::ShortWrite | Fault::TornWrite) => bytes.len() / 2,
            Some(fault) => return Err(fault.error()),
        };
        if let Some(room) = state.room() {
            taken = taken.min(usize::try_from(room).unwrap_or(usize::MAX));
            if taken == 0 && !bytes.is_empty() {
                return Err(Fault::NoSpace.error());
            }
        }
        state.files[*file].live.extend_from_slice(&bytes[..taken]);
        match fault {
            Some(Fault::TornWrite) => Err(Fault::TornWrite.error()),
            _ => Ok(taken),
        }
    }

    fn sync(&self, file: &mut usize) -> io::Result<()> {
        match self.begin() {
            (mut state, None | Some(Fault::ShortWrite)) => {
                let contents = &mut state.files[*file];
                if !contents.lost {
                    contents.durable = contents.live.clone();
                }
                Ok(())
            }
            (mut state, Some(fault)) => {
                state.files[*file].lost = true;
                Err(fault.error())
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin_whole()?;
        if !state.live.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.begin_whole()?;
        if !state.live.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.begin_whole()?;
        state.durable = state.live.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn open(&self, name: &str) -> io::Result<usize> {
        let state = self.begin_whole()?;
        state
            .live
            .get(name)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_at(&self, file: &usize, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.begin_whole()?;
        if state.files[*file].unreadable {
            return Err(Fault::InputOutput.error());
        }
        let live = &state.files[*file].live;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(live.len());
        let read = into.len().min(live.len() - start);
        into[..read].copy_from_slice(&live[start..start + read]);
        Ok(read)
    }

    fn len(&self, file: &usize) -> io::Result<u64> {
        Ok(self.begin_whole()?.files[*file].live.len() as u64)
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        let mut state = self.begin_whole()?;
        let Some(&id) = state.live.get(name) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let file = &mut state.files[id];
        file.live
            .truncate(usize::try_from(len).unwrap_or(usize::MAX));
        file.durable = file.live.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.begin_whole()?.room().unwrap_or(u64::MAX))
    }
}

impl State {
    fn change(&mut self, change: Change) {
        change.clone().apply(&mut self.live);
        self.unsynced.push(change);
    }

    /// Bytes that may still be written, if there is a limit.
    fn room(&self) -> Option<u64> {
        let used: u64 = self
            .live
            .values()
            .map(|id| self.files[*id].live.len() as u64)
            .sum();
        self.capacity.map(|capacity| capacity.saturating_sub(used))
    }
}
