//! What is known of a host between two looks, kept on disk: `changes.json` in the state folder.
//!
//! Written whole, beside the old one and renamed, only when something changed. What does not read is begun
//! anew, which costs the changes of one downtime and nothing else. Losing the last write to a power cut costs
//! that a change is told twice, so it is not synced.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{packages, ports, settings, unit_files};

const FILE: &str = "changes.json";

/// Largest file that is read back: 20,000 packages and 10,000 unit files.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// What is known. Each part is `None` until it was looked at once.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// Kernel, kernel settings, whether a reboot is wanted.
    pub settings: settings::Known,
    /// Packages.
    pub packages: packages::Known,
    /// Unit files and drop-ins.
    pub unit_files: unit_files::Known,
    /// Listening ports.
    pub ports: ports::Known,
}

/// [`Known`] and where it is kept.
#[derive(Debug, Default)]
pub struct Journal {
    path: Option<PathBuf>,
    known: Known,
    complained: bool,
}

impl Journal {
    /// What was known when the file was written last.
    #[must_use]
    pub fn new(state_dir: Option<&Path>) -> Self {
        let path = state_dir.map(|folder| folder.join(FILE));
        let known = path.as_deref().and_then(read_json).unwrap_or_default();
        Self {
            path,
            known,
            complained: false,
        }
    }

    /// Looks; writes the file if `look` says that something changed.
    pub fn update(&mut self, look: impl FnOnce(&mut Known) -> bool) {
        if !look(&mut self.known) {
            return;
        }
        let Some(path) = &self.path else {
            return;
        };
        if let Err(error) = write_json(path, &self.known)
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(path = %path.display(), %error, "what is known of this host is not kept: after a restart of the agent changes are told again");
        }
    }
}

/// What a file of this program's own holds; `None` (and said, unless it is missing) if it does not read.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the file is too large");
    let read = fs::metadata(path).and_then(|file| {
        if file.len() > MAX_BYTES {
            return Err(too_large());
        }
        fs::read(path)
    });
    match read {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "what was known of this host does not read; it is learnt anew");
            })
            .ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what was known of this host cannot be read; it is learnt anew");
            None
        }
    }
}

/// Writes a file of this program's own as a whole.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    let beside = path.with_extension("new");
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_read_is_begun_anew() {
        let state = tempfile::tempdir().expect("temporary folder");
        for content in ["", "{", "[]", "{\"packages\": 7}", "\u{0}\u{1}"] {
            fs::write(state.path().join(FILE), content).expect("written");
            let mut journal = Journal::new(Some(state.path()));
            assert!(journal.known.ports.open.is_none(), "{content:?}");
            journal.update(|known| {
                known.ports.open = Some(Default::default());
                true
            });
            let again = Journal::new(Some(state.path()));
            assert!(again.known.ports.open.is_some(), "{content:?}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_stops_nothing() {
        let mut journal = Journal::new(Some(Path::new("/nonexistent/folder")));
        journal.update(|_| true);
        assert!(journal.complained);
    }
}
