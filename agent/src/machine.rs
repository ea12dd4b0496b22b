//! Whether this is still the machine that joined: an image or a disk that was cloned with its state folder is not.
//!
//! ```text
//! <state>/identity/machine    salt, a space, SHA-256 of salt and machine id, both in hexadecimal
//! ```
//!
//! It is written when the host joins, and by an agent that finds none. Machine ids that were cloned too cannot be told
//! apart here; the aggregator finds those.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_proto::{id::HostId, spiffe::hex};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};

use crate::identity::{self, IdentityError};

const FILE: &str = "machine";
const SALT: usize = 16;

/// Why the machine is not taken for the one that joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Its id is another.
    #[error(
        "this looks like a copy of host {host}: the machine id is not the one it joined with, so the agent does not connect"
    )]
    Copy {
        /// Whose identity is in the state folder.
        host: HostId,
    },
    /// The mark cannot be kept or read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Says whether this is the machine that joined, by the hash of its machine id (empty where there is none, which tells
/// nothing). Leaves a mark where there is none.
///
/// # Errors
/// When it is another, or the mark cannot be read or written.
pub fn check(state: &Path, host: HostId, machine_id_hash: &[u8]) -> Result<(), MachineError> {
    if machine_id_hash.is_empty() {
        return Ok(());
    }
    let path = identity::folder(state).join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(mark(&identity::folder(state), machine_id_hash)?);
        }
        Err(source) => return Err(IdentityError::Read { path, source }.into()),
    };
    let (salt, wanted) = text
        .trim()
        .split_once(' ')
        .ok_or_else(|| wrong(path.clone()))?;
    if hashed(salt, machine_id_hash) == wanted {
        return Ok(());
    }
    Err(MachineError::Copy { host })
}

/// Notes which machine this is; in the place of what was noted before.
///
/// # Errors
/// When it cannot be written.
pub fn mark(folder: &Path, machine_id_hash: &[u8]) -> Result<(), IdentityError> {
    if machine_id_hash.is_empty() {
        return Ok(());
    }
    let mut salt = [0; SALT];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| IdentityError::Write {
            path: folder.join(FILE),
            source: io::Error::other("the system gives no random bytes"),
        })?;
    let salt = hex(&salt);
    let text = format!("{salt} {}\n", hashed(&salt, machine_id_hash));
    identity::replace(folder, FILE, text.as_bytes(), 0o600)
}

/// Removes what makes this host who it is: identity, what is left of a joining, and the samples of the other host that
/// wait on disk.
///
/// # Errors
/// When something cannot be removed.
pub fn reset(state: &Path) -> Result<(), IdentityError> {
    for name in identity::OF_THE_HOST {
        let path = state.join(name);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(IdentityError::Write { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn hashed(salt: &str, machine_id_hash: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(salt.as_bytes());
    context.update(machine_id_hash);
    hex(context.finish().as_ref())
}

fn wrong(path: PathBuf) -> IdentityError {
    IdentityError::Content {
        path,
        wanted: "a salt and the hash of a machine id",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostId = HostId::from_bytes([7; 16]);

    #[test]
    fn another_machine_id_is_a_copy_until_somebody_says_otherwise() {
        let state = tempfile::tempdir().expect("a folder");
        let folder = identity::folder(state.path());
        fs::create_dir(&folder).expect("made");
        let check = |hash: &[u8]| check(state.path(), HOST, hash);
        assert!(check(&[]).is_ok(), "a host without a machine id");
        assert!(check(&[1; 32]).is_ok(), "the first start leaves a mark");
        assert!(check(&[1; 32]).is_ok());
        let error = check(&[2; 32]).expect_err("another machine");
        let text = error.to_string();
        assert!(text.contains(&HOST.to_string()), "{text}");
        assert!(check(&[]).is_ok(), "unknown is not another");
        let shown = fs::read_to_string(folder.join(FILE)).expect("readable");
        assert!(
            !shown.contains(&hex(&[1; 32])),
            "the hash alone would name the machine"
        );
        mark(&folder, &[2; 32]).expect("marked");
        assert!(check(&[2; 32]).is_ok());
        fs::write(folder.join(FILE), "x").expect("written");
        assert!(matches!(check(&[2; 32]), Err(MachineError::Identity(_))));
    }

    #[test]
    fn what_makes_a_host_goes_and_the_rest_stays() {
        let state = tempfile::tempdir().expect("a folder");
        for name in ["identity", "enrolling", "spool", "other"] {
            fs::create_dir(state.path().join(name)).expect("made");
            fs::write(state.path().join(name).join("x"), "x").expect("written");
        }
        reset(state.path()).expect("removed");
        let left: Vec<_> = fs::read_dir(state.path()).expect("readable").collect();
        assert_eq!(left.len(), 1, "{left:?}");
        reset(state.path()).expect("nothing to do");
    }
}
