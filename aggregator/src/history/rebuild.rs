//! A manifest made from the files that are there, when the one at hand is damaged or gone.
//!
//! Every file says itself what it is, and is whole or does not open. So all files that open are taken, those that a
//! packing had already replaced as well: a point that stands in two files counts once. A group's file says how far the log
//! is in files, and the file `forgotten` who was forgotten, so nothing comes back that was deleted, and nothing
//! that the log still has is left out. A group whose own file is damaged too begins with the log as far back as there is
//! one; what came from there before counts once, too.
//!
//! ```text
//! new group files | what is damaged → ….damaged | manifest.tmp | manifest → manifest.damaged | manifest.tmp → manifest
//! ```
//! After a crash at any step the next start does the same again.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
};

use muster_proto::{id::HostId, log::Storage};

use super::{
    HistoryError,
    block::{Block, io_error},
    manifest::{self, Forgotten, GroupEntry, GroupState, MANIFEST, Manifest},
};

/// Where the damaged manifest is kept, for whoever wants to know.
pub const DAMAGED: &str = "manifest.damaged";

/// Most groups that file names may speak of: 4 million hosts. A number beyond is of something else.
const MAX_GROUPS: u32 = 4096;

/// What the files say.
#[derive(Debug, Default)]
pub struct Survey {
    /// With files and with groups that have a file of their own; what the manifest alone knew is not in it.
    pub manifest: Manifest,
    /// What is wrong, in words for people.
    pub problems: Vec<String>,
    /// Hosts of a group, as its files of samples have them.
    members: BTreeMap<u32, BTreeSet<HostId>>,
    /// The newest state of each group.
    states: BTreeMap<u32, GroupState>,
    /// Files that are not what was written.
    damaged: Vec<String>,
}

/// Whether there is anything that a manifest could name.
#[must_use]
pub fn has_files(listed: &[String]) -> bool {
    listed.iter().any(|name| numbers(name).is_some())
}

/// Looks at all files; of a manifest that is whole (`known`), only at those that it names, and what it says is kept.
/// Changes nothing.
///
/// # Errors
/// When the folder cannot be read, or a newer program wrote here: its data are not ours to judge.
pub fn survey<S: Storage>(storage: &S, known: Option<&Manifest>) -> Result<Survey, HistoryError> {
    let mut listed = storage
        .list()
        .map_err(|error| io_error("list", ".", error))?;
    // In the order of their groups and generations.
    listed.sort_unstable();
    let mut survey = Survey::default();
    for name in &listed {
        let Some((number, generation)) = numbers(name) else {
            continue;
        };
        survey.manifest.generation = survey.manifest.generation.max(generation);
        if known.is_some_and(|known| !known.names(name)) {
            continue;
        }
        let taken = if name.ends_with(".mhb") {
            survey.samples(storage, name)
        } else {
            survey.group(storage, name, number, generation)
        };
        match taken {
            Ok(()) => {}
            Err(error @ HistoryError::Damaged { .. }) => {
                survey.problems.push(crate::chain(&error));
                survey.damaged.push(name.clone());
            }
            // A disk that is ill for a while must not cost what is on it.
            Err(error) => return Err(error),
        }
    }
    match known {
        Some(known) => survey.keep(known),
        None => survey.forgotten(storage)?,
    }
    Ok(survey)
}

/// Makes a manifest of what is there, and writes it. What is wrong is told with it.
///
/// # Errors
/// As [`survey`], and when the disk refuses.
pub fn rebuild<S: Storage>(
    storage: &S,
    known: Option<&Manifest>,
) -> Result<(Manifest, Vec<String>), HistoryError> {
    let mut survey = survey(storage, known)?;
    survey.manifest.generation += 1;
    survey.groups(storage)?;
    let Survey {
        manifest,
        mut problems,
        damaged,
        ..
    } = survey;
    for name in damaged.iter().filter(|name| !manifest.names(name)) {
        // What no manifest names is removed at the start; this may be all there is of two hours.
        let kept = format!("{name}.damaged");
        storage
            .rename(name, &kept)
            .map_err(|error| io_error("rename", name, error))?;
    }
    manifest::prepare(storage, &manifest)?;
    if known.is_none() {
        match storage.rename(MANIFEST, DAMAGED) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("rename", MANIFEST, error));
            }
            _ => {}
        }
    }
    manifest::replace(storage)?;
    problems.push(format!(
        "the manifest of the history was made anew from {} files",
        manifest.files.len()
    ));
    Ok((manifest, problems))
}

impl Survey {
    fn samples<S: Storage>(&mut self, storage: &S, name: &str) -> Result<(), HistoryError> {
        let block = Block::open(storage, name)?;
        let entry = block.entry();
        let members = self.members.entry(entry.group).or_default();
        members.extend(block.hosts().iter().copied());
        self.manifest.files.push(entry);
        Ok(())
    }

    /// Takes a group's file, unless a newer one was taken.
    fn group<S: Storage>(
        &mut self,
        storage: &S,
        name: &str,
        number: u32,
        generation: u64,
    ) -> Result<(), HistoryError> {
        let state = manifest::read_group(storage, name)?;
        let place = usize::try_from(number).unwrap_or(usize::MAX);
        let groups = &mut self.manifest.groups;
        if groups.len() <= place {
            groups.resize(place + 1, None);
        }
        let newer = |held: &GroupEntry| numbers(&held.file).is_some_and(|(_, of)| of > generation);
        if groups[place].as_ref().is_some_and(newer) {
            return Ok(());
        }
        groups[place] = Some(GroupEntry {
            covered: state.covered,
            file: name.to_owned(),
        });
        self.states.insert(number, state);
        Ok(())
    }

    /// What a manifest that is whole says counts.
    fn keep(&mut self, known: &Manifest) {
        let manifest = &mut self.manifest;
        manifest.generation = manifest.generation.max(known.generation);
        manifest.files.clone_from(&known.files);
        manifest.forgotten.clone_from(&known.forgotten);
        manifest.passed_over.clone_from(&known.passed_over);
        manifest.upto = known.upto;
        if manifest.groups.len() < known.groups.len() {
            manifest.groups.resize(known.groups.len(), None);
        }
        for (entry, known) in manifest.groups.iter_mut().zip(&known.groups) {
            if let (Some(entry), Some(known)) = (entry, known) {
                entry.covered = known.covered;
            }
        }
    }

    fn forgotten<S: Storage>(&mut self, storage: &S) -> Result<(), HistoryError> {
        let upto = self.states.values().map(|state| state.upto).max();
        self.manifest.upto = upto.unwrap_or(0);
        match manifest::read_forgotten(storage) {
            Ok(Forgotten {
                forgotten,
                passed_over,
            }) => {
                self.manifest.forgotten = forgotten;
                self.manifest.passed_over = passed_over;
            }
            Err(error @ HistoryError::NewerVersion { .. }) => return Err(error),
            Err(error) => self.problems.push(format!(
                "{}; hosts that were forgotten and not yet removed may be there again: forget them once more",
                crate::chain(&error)
            )),
        }
        Ok(())
    }

    /// Completes the groups: each has all hosts that have files. One that does not know how far the log is in its
    /// files reads it from its beginning.
    fn groups<S: Storage>(&mut self, storage: &S) -> Result<(), HistoryError> {
        let last = self.members.keys().max().copied().unwrap_or(0);
        let groups = &mut self.manifest.groups;
        let all = usize::try_from(last).unwrap_or(0) + 1;
        if groups.len() < all && !self.members.is_empty() {
            groups.resize(all, None);
        }
        for (entry, number) in groups.iter_mut().zip(0u32..) {
            let mut state = self.states.remove(&number).unwrap_or_default();
            let held: HashSet<HostId> = state.hosts.iter().copied().collect();
            let of_files = self.members.get(&number).into_iter().flatten();
            let lacking: Vec<HostId> = of_files
                .filter(|host| !held.contains(host))
                .copied()
                .collect();
            let knows = entry.as_ref().is_some_and(|entry| entry.covered > 0);
            if state.hosts.is_empty() && lacking.is_empty() {
                *entry = None;
                continue;
            }
            if knows && lacking.is_empty() {
                continue;
            }
            // Hosts whose records are not known to be in files, and chains that do not fit what is read again.
            state.hosts.extend(lacking);
            state.aside = Vec::new();
            (state.covered, state.upto) = (0, 0);
            self.manifest.upto = 0;
            let file = format!("group-{number:06x}-{:016x}.mhg", self.manifest.generation);
            manifest::write_group(storage, &file, &state)?;
            *entry = Some(GroupEntry { covered: 0, file });
        }
        Ok(())
    }
}

/// Group and generation in a file's name.
fn numbers(name: &str) -> Option<(u32, u64)> {
    let (stem, end) = name.rsplit_once('.')?;
    let words: Vec<&str> = stem.split('-').collect();
    let (group, generation) = match (words.as_slice(), end) {
        ([tier, group, _, generation], "mhb") if ["raw", "1m", "15m"].contains(tier) => {
            (group, generation)
        }
        (["group", group, generation], "mhg") => (group, generation),
        _ => return None,
    };
    let group = u32::from_str_radix(group, 16).ok()?;
    let generation = u64::from_str_radix(generation, 16).ok()?;
    (group < MAX_GROUPS && generation < u64::MAX / 2).then_some((group, generation))
}
