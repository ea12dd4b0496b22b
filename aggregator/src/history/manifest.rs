//! What belongs to the store: the one file whose replacement makes a change happen.
//!
//! ```text
//! manifest                   magic "MUSTHMAN" | version u32 | crc32c u32 of the body | body: postcard of Manifest
//!                            (version 1: without its last field)
//! group-<number>-<gen>.mhg   magic "MUSTHGRP" | the same | body: postcard of GroupState
//!                            (version 1: without its last two fields)
//! forgotten                  magic "MUSTHFGT" | the same | body: postcard of Forgotten
//! ```
//! Little endian. Files are written and synced under names that were never used, then the manifest that names
//! them is written beside the one at hand, synced, renamed over it, and the folder synced. Whatever the manifest
//! does not name is what a crash or an earlier change left, and is removed. `forgotten` is a copy of what the manifest
//! says of hosts that were forgotten, written before it: the one thing that files do not say themselves, should it
//! have to be made anew ([`super::rebuild`]).

use std::io;

use muster_proto::{id::HostId, log::Storage};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    HistoryError, Tier, Token,
    block::{io_error, read_exact},
};

/// Name of the manifest.
pub const MANIFEST: &str = "manifest";
const TEMPORARY: &str = "manifest.tmp";
const MANIFEST_MAGIC: &[u8; 8] = b"MUSTHMAN";
const GROUP_MAGIC: &[u8; 8] = b"MUSTHGRP";
/// Version 1 did not say up to which record of the log hosts are forgotten.
const MANIFEST_VERSION: u32 = 2;
/// Version 1 did not say how far the log was.
const GROUP_VERSION: u32 = 2;
/// Name of the copy of who was forgotten.
pub const FORGOTTEN: &str = "forgotten";
const FORGOTTEN_TEMPORARY: &str = "forgotten.tmp";
const FORGOTTEN_MAGIC: &[u8; 8] = b"MUSTHFGT";
const FORGOTTEN_VERSION: u32 = 1;
const HEADER_BYTES: u64 = 16;

/// A file of samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// How fine.
    pub tier: Tier,
    /// Which hosts.
    pub group: u32,
    /// First millisecond of its window.
    pub start: i64,
    /// The millisecond after the last.
    pub end: i64,
    /// Which change made it.
    pub generation: u64,
    /// Its size.
    pub bytes: u64,
    /// Samples or roll-ups in it.
    pub points: u64,
    /// Whether it was made from all there was of its window.
    pub packed: bool,
}

/// What is known of a group of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEntry {
    /// Everything up to this record of the log is in files.
    pub covered: Token,
    /// The file with its hosts.
    pub file: String,
}

/// All that belongs to the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Number of the change that made it.
    pub generation: u64,
    /// Everything up to this record of the log is in files.
    pub upto: Token,
    /// By number; `None` for one that has nothing on disk yet.
    pub groups: Vec<Option<GroupEntry>>,
    /// Files of samples, in no order.
    pub files: Vec<FileEntry>,
    /// Hosts whose samples count no more in files up to this generation.
    pub forgotten: Vec<(HostId, u64)>,
    /// Hosts whose records of the log, up to this one, are not taken again; until everything up to it is in files.
    pub passed_over: Vec<(HostId, Token)>,
}

/// A manifest as version 1 had it.
#[derive(Debug, Serialize, Deserialize)]
struct ManifestV1 {
    generation: u64,
    upto: Token,
    groups: Vec<Option<GroupEntry>>,
    files: Vec<FileEntry>,
    forgotten: Vec<(HostId, u64)>,
}

impl From<ManifestV1> for Manifest {
    fn from(old: ManifestV1) -> Self {
        Self {
            generation: old.generation,
            upto: old.upto,
            groups: old.groups,
            files: old.files,
            forgotten: old.forgotten,
            passed_over: Vec::new(),
        }
    }
}

/// The hosts of a group, and what its feeder keeps with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// By place.
    pub hosts: Vec<HostId>,
    /// As it was given.
    pub aside: Vec<u8>,
    /// Everything of them up to this record of the log is in files; 0 where that is not known.
    pub covered: Token,
    /// Everything of all groups up to this record is in files.
    pub upto: Token,
}

/// A group's state as version 1 had it.
#[derive(Debug, Serialize, Deserialize)]
struct GroupStateV1 {
    hosts: Vec<HostId>,
    aside: Vec<u8>,
}

impl From<GroupStateV1> for GroupState {
    fn from(old: GroupStateV1) -> Self {
        Self {
            hosts: old.hosts,
            aside: old.aside,
            covered: 0,
            upto: 0,
        }
    }
}

/// Who was forgotten, as the manifest says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// As in [`Manifest`].
    pub forgotten: Vec<(HostId, u64)>,
    /// As in [`Manifest`].
    pub passed_over: Vec<(HostId, Token)>,
}

impl Manifest {
    /// Whether a file of this name belongs to the store.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        name == MANIFEST
            || name == FORGOTTEN
            || self.files.iter().any(|file| file.name == name)
            || self.groups.iter().flatten().any(|group| group.file == name)
    }
}

/// Reads the manifest; `None` if there is none.
///
/// # Errors
/// When it cannot be read, is damaged, or of a newer program.
pub fn read<S: Storage>(storage: &S) -> Result<Option<Manifest>, HistoryError> {
    match read_sealed(storage, MANIFEST, MANIFEST_MAGIC, MANIFEST_VERSION) {
        Ok((1, body)) => parse::<ManifestV1>(MANIFEST, &body).map(|old| Some(old.into())),
        Ok((_, body)) => parse(MANIFEST, &body).map(Some),
        Err(HistoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Writes a manifest beside the one at hand; [`replace`] makes it count. Its size.
///
/// # Errors
/// When the disk refuses; nothing is left of it then.
pub fn prepare<S: Storage>(storage: &S, manifest: &Manifest) -> Result<u64, HistoryError> {
    let body = postcard::to_stdvec(manifest).map_err(|_| unwritable(MANIFEST))?;
    let version = MANIFEST_VERSION;
    let written = write_sealed(storage, TEMPORARY, MANIFEST_MAGIC, version, &body);
    written.inspect_err(|_| {
        // What it takes of a disk that is full is needed for something else.
        let _ = storage.remove(TEMPORARY);
    })
}

/// Makes the prepared manifest the one that counts. After an error either the old one or this one counts at the next
/// start.
///
/// # Errors
/// When the disk refuses.
pub fn replace<S: Storage>(storage: &S) -> Result<(), HistoryError> {
    storage
        .rename(TEMPORARY, MANIFEST)
        .and_then(|()| storage.sync_folder())
        .map_err(|error| io_error("replace", MANIFEST, error))
}

/// Reads a group's file.
///
/// # Errors
/// As [`read`].
pub fn read_group<S: Storage>(storage: &S, name: &str) -> Result<GroupState, HistoryError> {
    match read_sealed(storage, name, GROUP_MAGIC, GROUP_VERSION)? {
        (1, body) => parse::<GroupStateV1>(name, &body).map(Into::into),
        (_, body) => parse(name, &body),
    }
}

/// Reads the copy of who was forgotten; nobody was, if there is none.
///
/// # Errors
/// As [`read`].
pub fn read_forgotten<S: Storage>(storage: &S) -> Result<Forgotten, HistoryError> {
    match read_sealed(storage, FORGOTTEN, FORGOTTEN_MAGIC, FORGOTTEN_VERSION) {
        Ok((_, body)) => parse(FORGOTTEN, &body),
        Err(HistoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Forgotten::default())
        }
        Err(error) => Err(error),
    }
}

/// Writes the copy of who is forgotten by a manifest that is to come.
///
/// # Errors
/// When the disk refuses; the copy is as it was then, or as it was to be.
pub fn write_forgotten<S: Storage>(storage: &S, manifest: &Manifest) -> Result<u64, HistoryError> {
    let copy = Forgotten {
        forgotten: manifest.forgotten.clone(),
        passed_over: manifest.passed_over.clone(),
    };
    let body = postcard::to_stdvec(&copy).map_err(|_| unwritable(FORGOTTEN))?;
    let (name, version) = (FORGOTTEN_TEMPORARY, FORGOTTEN_VERSION);
    let written = write_sealed(storage, name, FORGOTTEN_MAGIC, version, &body);
    let written = written.inspect_err(|_| {
        let _ = storage.remove(name);
    })?;
    storage
        .rename(FORGOTTEN_TEMPORARY, FORGOTTEN)
        .and_then(|()| storage.sync_folder())
        .map_err(|error| io_error("replace", FORGOTTEN, error))?;
    Ok(written)
}

/// Writes a group's file under a name that was never used.
///
/// # Errors
/// When the disk refuses.
pub fn write_group<S: Storage>(
    storage: &S,
    name: &str,
    state: &GroupState,
) -> Result<u64, HistoryError> {
    let body = postcard::to_stdvec(state).map_err(|_| unwritable(name))?;
    write_sealed(storage, name, GROUP_MAGIC, GROUP_VERSION, &body)
}

fn unwritable(name: &str) -> HistoryError {
    io_error("encode", name, io::ErrorKind::InvalidData.into())
}

fn parse<T: DeserializeOwned>(name: &str, body: &[u8]) -> Result<T, HistoryError> {
    postcard::from_bytes(body).map_err(|_| damaged(name))
}

fn damaged(name: &str) -> HistoryError {
    HistoryError::Damaged {
        name: name.to_owned(),
        what: "its checksum does not hold",
    }
}

fn write_sealed<S: Storage>(
    storage: &S,
    name: &str,
    magic: &[u8; 8],
    version: u32,
    body: &[u8],
) -> Result<u64, HistoryError> {
    match storage.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", name, error));
        }
        _ => {}
    }
    let mut bytes = Vec::with_capacity(body.len() + 16);
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    bytes.extend_from_slice(body);
    let failed = |error| io_error("write", name, error);
    let mut file = storage.create(name).map_err(failed)?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match storage.append(&mut file, rest).map_err(failed)? {
            0 => return Err(failed(io::ErrorKind::WriteZero.into())),
            written => rest = &rest[written.min(rest.len())..],
        }
    }
    storage.sync(&mut file).map_err(failed)?;
    Ok(bytes.len() as u64)
}

fn read_sealed<S: Storage>(
    storage: &S,
    name: &str,
    magic: &[u8; 8],
    supported: u32,
) -> Result<(u32, Vec<u8>), HistoryError> {
    let failed = |error| io_error("read", name, error);
    let file = storage.open(name).map_err(failed)?;
    let len = storage.len(&file).map_err(failed)?;
    let head = read_exact(storage, &file, name, 0, HEADER_BYTES)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if &head[..8] != magic {
        return Err(damaged(name));
    }
    if word(8) > supported {
        return Err(HistoryError::NewerVersion {
            name: name.to_owned(),
            version: u16::try_from(word(8)).unwrap_or(u16::MAX),
            supported: u16::try_from(supported).unwrap_or(u16::MAX),
        });
    }
    let body = read_exact(
        storage,
        &file,
        name,
        HEADER_BYTES,
        len.saturating_sub(HEADER_BYTES),
    )?;
    if crc32c::crc32c(&body) != word(12) {
        return Err(damaged(name));
    }
    Ok((word(8), body))
}

#[cfg(test)]
mod tests {
    use muster_proto::log::FaultyStorage;

    use super::*;

    #[test]
    fn a_manifest_of_the_version_before_is_read() {
        let storage = FaultyStorage::new();
        let host = HostId::from_bytes([7; 16]);
        let old = ManifestV1 {
            generation: 9,
            upto: 4,
            groups: vec![None],
            files: Vec::new(),
            forgotten: vec![(host, 3)],
        };
        let body = postcard::to_stdvec(&old).expect("plain numbers");
        write_sealed(&storage, MANIFEST, MANIFEST_MAGIC, 1, &body).expect("the disk is well");
        let found = read(&storage).expect("it is read").expect("it is there");
        assert_eq!(found, Manifest::from(old));
        assert_eq!(found.forgotten, [(host, 3)]);
        write_sealed(&storage, TEMPORARY, MANIFEST_MAGIC, 3, &body).expect("written");
        replace(&storage).expect("replaced");
        assert!(matches!(
            read(&storage),
            Err(HistoryError::NewerVersion {
                version: 3,
                supported: 2,
                ..
            })
        ));
    }
}
