//! The authority's files: written all or none, keys never readable by others.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use muster_proto::owner;

use super::PkiError;

/// A folder that takes its name only when everything in it is on disk.
pub(super) struct Fresh {
    folder: PathBuf,
}

impl Fresh {
    /// Begins one beside its final place; what an interrupted attempt left there is removed.
    pub(super) fn begin(place: &Path) -> Result<Self, PkiError> {
        let folder = place.with_extension("new");
        let failed = |source| PkiError::Write {
            path: folder.clone(),
            source,
        };
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(failed)?;
        }
        fs::create_dir_all(&folder).map_err(failed)?;
        owner::give_folder(&folder).map_err(failed)?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(failed)?;
        Ok(Self { folder })
    }

    pub(super) fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), PkiError> {
        let path = self.folder.join(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| {
                owner::give_file(&file, &self.folder)?;
                file.write_all(content)?;
                file.sync_all()
            });
        written.map_err(|source| PkiError::Write { path, source })
    }

    pub(super) fn finish(self, place: &Path) -> Result<(), PkiError> {
        let parent = place.parent().unwrap_or(Path::new("."));
        let done = File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .and_then(|()| fs::rename(&self.folder, place))
            .and_then(|()| File::open(parent)?.sync_all());
        done.map_err(|source| PkiError::Write {
            path: place.to_owned(),
            source,
        })
    }
}

/// Replaces a file whole: the old content or the new, never a part.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let beside = path.with_extension("new");
    let written = match fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside),
    };
    written
        .and_then(|mut file| {
            owner::give_file(&file, folder)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            File::open(folder)?.sync_all()
        })
        .map_err(|source| PkiError::Write {
            path: path.to_owned(),
            source,
        })
}

pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Refuses a key whose group or others have any right to it.
pub(super) fn check_private(path: &Path) -> Result<(), PkiError> {
    let metadata = fs::metadata(path).map_err(|source| PkiError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(PkiError::Exposed {
        path: path.to_owned(),
        mode,
    })
}
