//! A manifest made from the files that are there, when the one at hand is damaged or gone.
//!
//! Every file says itself what it is, and is whole or does not open. So all files that open are taken: those that a
//! merge had already replaced as well, since a point that stands in two files counts once. What only the manifest
//! knew is lost: which hosts were forgotten and not yet removed, and how far the log is in files. The log is
//! therefore read from its beginning again; what came from there before counts once, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use muster_proto::{id::HostId, log::Storage};

use super::{
    HistoryError,
    block::{Block, io_error},
    manifest::{self, FileEntry, GroupEntry, GroupState, MANIFEST, Manifest},
};

/// Where the damaged manifest is kept, for whoever wants to know.
pub const DAMAGED: &str = "manifest.damaged";

/// Most groups that file names may speak of: 4 million hosts. A number beyond is a file of something else.
const MAX_GROUPS: u32 = 4096;

/// Makes a manifest, and writes it. What is wrong is told in `problems`.
///
/// # Errors
/// When the folder cannot be read or written, or a newer program wrote here.
pub fn rebuild<S: Storage>(
    storage: &S,
    problems: &mut Vec<String>,
) -> Result<Manifest, HistoryError> {
    let listed = storage
        .list()
        .map_err(|error| io_error("list", ".", error))?;
    let mut manifest = Manifest::default();
    let mut members: BTreeMap<u32, BTreeSet<HostId>> = BTreeMap::new();
    let mut states: BTreeMap<u32, (u64, String, GroupState)> = BTreeMap::new();
    for name in &listed {
        let Some((number, generation)) = numbers(name) else {
            continue;
        };
        manifest.generation = manifest.generation.max(generation);
        let taken = if name.ends_with(".mhb") {
            file(storage, name).map(|(entry, hosts)| {
                members.entry(entry.group).or_default().extend(hosts);
                manifest.files.push(entry);
            })
        } else {
            manifest::read_group(storage, name).map(|state| {
                let newest = states.entry(number);
                let fresh = (generation, name.clone(), state);
                newest
                    .and_modify(|held| {
                        if held.0 < generation {
                            *held = fresh.clone();
                        }
                    })
                    .or_insert(fresh);
            })
        };
        match taken {
            Ok(()) => {}
            // Its data are not ours to throw away.
            Err(error @ HistoryError::NewerVersion { .. }) => return Err(error),
            Err(error) => problems.push(crate::chain(&error)),
        }
    }
    manifest.generation += 1;
    groups(storage, &mut manifest, members, states)?;
    match storage.rename(MANIFEST, DAMAGED) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("rename", MANIFEST, error));
        }
        _ => {}
    }
    manifest::write(storage, &manifest)?;
    problems.push(format!(
        "the manifest was damaged or gone and was made anew from {} files; hosts that were forgotten and not yet \
         removed are there again: forget them once more",
        manifest.files.len()
    ));
    Ok(manifest)
}

/// Group and generation in a file's name.
fn numbers(name: &str) -> Option<(u32, u64)> {
    let (stem, end) = name.rsplit_once('.')?;
    let words: Vec<&str> = stem.split('-').collect();
    let group = match (words.as_slice(), end) {
        ([_, group, ..], "mhb") => group,
        (["group", group, _], "mhg") => group,
        _ => return None,
    };
    let group = u32::from_str_radix(group, 16).ok()?;
    let generation = u64::from_str_radix(words.last()?, 16).ok()?;
    (group < MAX_GROUPS && generation < u64::MAX / 2).then_some((group, generation))
}

fn file<S: Storage>(storage: &S, name: &str) -> Result<(FileEntry, Vec<HostId>), HistoryError> {
    let block = Block::open(storage, name)?;
    Ok((block.entry(), block.hosts().to_vec()))
}

/// Groups with all hosts that have files, in the places they had where that is known.
fn groups<S: Storage>(
    storage: &S,
    manifest: &mut Manifest,
    members: BTreeMap<u32, BTreeSet<HostId>>,
    mut states: BTreeMap<u32, (u64, String, GroupState)>,
) -> Result<(), HistoryError> {
    let last = members.keys().chain(states.keys()).max().copied();
    for number in 0..last.map_or(0, |last| last + 1) {
        let known = states.remove(&number);
        let (mut state, mut file) =
            known.map_or_else(Default::default, |(_, file, state)| (state, file));
        let of_files = members.get(&number).into_iter().flatten();
        let missing: Vec<HostId> = of_files
            .filter(|host| !state.hosts.contains(host))
            .copied()
            .collect();
        if !missing.is_empty() {
            state.hosts.extend(missing);
            file = format!("group-{number:06x}-{:016x}.mhg", manifest.generation);
            manifest::write_group(storage, &file, &state)?;
        }
        let entry = GroupEntry { covered: 0, file };
        manifest
            .groups
            .push((!state.hosts.is_empty()).then_some(entry));
    }
    Ok(())
}
