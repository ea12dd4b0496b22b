//! One agent for one identity: two would push each other out of the aggregator, again and again.
//!
//! The kernel keeps the lock (flock(2)) for as long as the file is open, and lets go of it whatever ends the
//! process: there is nothing to clean up after a crash.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use muster_proto::owner;

/// In the folder of the state.
const NAME: &str = "lock";

/// The folder is this process's until this is dropped.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "open, it holds the lock")] File);

/// Why the folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another agent runs with the identity in {state_dir}", state_dir = .0.display())]
    Taken(PathBuf),
    /// The file of the lock cannot be opened, owned or locked.
    #[error("cannot lock {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Takes the folder for this process alone. A folder that is not there holds no identity, and needs none: `None`.
///
/// # Errors
/// See [`LockError`].
pub fn take(state_dir: &Path) -> Result<Option<StateLock>, LockError> {
    let path = state_dir.join(NAME);
    let opened = File::options().create(true).append(true).open(&path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Root may be the first to run an agent here; the service's user must be able to do so after that.
        opened => opened.and_then(|file| owner::give_file(&file, state_dir).map(|()| file)),
    };
    let failed = |source| LockError::Io {
        path: path.clone(),
        source,
    };
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(StateLock(file))),
        Err(TryLockError::WouldBlock) => Err(LockError::Taken(state_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_agents_until_that_ends() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = take(folder.path()).expect("free");
        assert!(first.is_some());
        let error = take(folder.path()).expect_err("taken");
        assert!(matches!(&error, LockError::Taken(_)), "{error}");
        assert!(
            error
                .to_string()
                .contains(&folder.path().display().to_string())
        );
        drop(first);
        assert!(take(folder.path()).expect("free again").is_some());
        let missing = take(&folder.path().join("missing")).expect("nothing to lock");
        assert!(missing.is_none());
    }
}
