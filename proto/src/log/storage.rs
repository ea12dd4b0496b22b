//! The seam between the log and a disk, and the real disk behind it.
//!
//! [`Storage`] is as small as the log needs: append, sync, rename, read. [`DiskStorage`] does it in one
//! folder that no other user may read, and holds a lock on it so that two processes never write one log.
//! When to sync, and what to do when that fails, is the log's business, not this file's.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags};

/// What the log asks of a disk: one flat folder of files. A clone is another handle on the same folder.
///
/// Nothing is promised to survive a crash before [`sync`](Self::sync) (contents) or
/// [`sync_folder`](Self::sync_folder) (names) has succeeded; names become durable in the order they were
/// changed, as on any journaling filesystem.
pub trait Storage: Clone {
    /// An open file; it stays usable when the file is renamed.
    type File;

    /// The folder, as messages name it.
    fn folder(&self) -> &Path;
    /// Names of all files in the folder, in any order; names that are not UTF-8 are left out.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new empty file for appending; an error if the name exists.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Writes once at the end of the file; may write less than asked, and says how much.
    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<usize>;
    /// Makes the contents of the file durable (`fdatasync`).
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;
    /// Gives a file another name, replacing what had that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_folder(&self) -> io::Result<()>;
    /// Opens a file for reading.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Reads once from `offset`; 0 at the end of the file.
    fn read_at(&self, file: &Self::File, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Length of an open file in bytes.
    fn len(&self, file: &Self::File) -> io::Result<u64>;
    /// Shortens a file to `len` bytes, durably.
    fn truncate(&self, name: &str, len: u64) -> io::Result<()>;
    /// Bytes this user can still write to the filesystem.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// Name of the file whose lock says that the folder is in use. It is never removed: removing it would
/// let two processes lock two files of the same name.
const LOCK_NAME: &str = "lock";

/// Owner only: a log holds what hosts report about themselves.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Why a folder cannot be used for a log.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder is missing and cannot be made, or may not be used by this user.
    #[error(
        "cannot use the log folder {folder}; it must be a folder that this program's user may write",
        folder = .folder.display()
    )]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process, or another part of this one, has the folder open.
    #[error(
        "the log folder {folder} is in use by another process; stop it first, or give this one another folder",
        folder = .folder.display()
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
}

/// One folder on a real filesystem, locked as long as a clone of this value lives.
#[derive(Clone, Debug)]
pub struct DiskStorage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    folder: File,
    /// Held, never read: closing it gives the lock back.
    _lock: Option<File>,
}

impl DiskStorage {
    /// Opens `folder`, making it (mode 0700) and its parents where they are missing, and locks it.
    ///
    /// # Errors
    ///
    /// [`FolderError`], naming the folder.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = folder.into();
        match Self::lock(&path) {
            Ok(Some((folder, lock))) => Ok(Self {
                inner: Arc::new(Inner {
                    path,
                    folder,
                    _lock: Some(lock),
                }),
            }),
            Ok(None) => Err(FolderError::Locked { folder: path }),
            Err(source) => Err(FolderError::Unusable {
                folder: path,
                source,
            }),
        }
    }

    /// Opens `folder` for reading beside whoever has it open, without its lock and without making it. Nothing may
    /// be written through it; what is read may be removed meanwhile.
    ///
    /// # Errors
    ///
    /// [`FolderError::Unusable`], naming the folder.
    pub fn open_to_read(folder: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = folder.into();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(folder) => Ok(Self {
                inner: Arc::new(Inner {
                    path,
                    folder: File::from(folder),
                    _lock: None,
                }),
            }),
            Err(error) => Err(FolderError::Unusable {
                folder: path,
                source: error.into(),
            }),
        }
    }

    fn lock(path: &Path) -> io::Result<Option<(File, File)>> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        // Said at the start, where someone is looking, and not at the first commit.
        let access = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(&folder, ".", access, AtFlags::EACCESS)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = File::from(rustix::fs::openat(&folder, LOCK_NAME, flags, FILE_MODE)?);
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some((folder, lock))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open_with(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.inner.folder, name, flags, FILE_MODE)?;
        Ok(File::from(file))
    }
}

impl Storage for DiskStorage {
    type File = File;

    fn folder(&self) -> &Path {
        &self.inner.path
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.inner.folder)? {
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        self.open_with(
            name,
            OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL,
        )
    }

    fn append(&self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let folder = &self.inner.folder;
        Ok(rustix::fs::renameat(folder, from, folder, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.inner.folder,
            name,
            AtFlags::empty(),
        )?)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.inner.folder.sync_all()
    }

    fn open(&self, name: &str) -> io::Result<File> {
        // Without NONBLOCK a named pipe put in place of a segment would hold the start for ever.
        self.open_with(name, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    fn read_at(&self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match file.read_at(into, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        let file = self.open_with(name, OFlags::WRONLY | OFlags::NONBLOCK)?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.inner.folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        let metadata = std::fs::metadata(path).expect("the file was just made");
        metadata.permissions().mode() & 0o777
    }

    #[test]
    fn a_folder_is_private_and_has_one_owner() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("state/log");
        let disk = DiskStorage::open(&path).expect("a new folder opens");
        disk.create("a").expect("a new file");
        assert_eq!((mode(&path), mode(&path.join("a"))), (0o700, 0o600));
        assert!(disk.free_bytes().expect("statvfs works") > 0);

        let second = DiskStorage::open(&path);
        assert!(matches!(second, Err(FolderError::Locked { .. })));
        let clone = disk.clone();
        drop(disk);
        assert!(
            DiskStorage::open(&path).is_err(),
            "the clone still holds it"
        );
        drop(clone);
        DiskStorage::open(&path).expect("the lock is given back");
    }

    #[test]
    fn links_and_pipes_are_not_followed() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let disk = DiskStorage::open(parent.path()).expect("the folder opens");
        std::os::unix::fs::symlink("/etc/passwd", parent.path().join("link")).expect("a link");
        assert!(disk.open("link").is_err());
        assert!(disk.create("link").is_err());
        assert!(disk.truncate("link", 0).is_err());
    }

    #[test]
    fn what_cannot_be_a_folder_is_named() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("file");
        std::fs::write(&path, b"x").expect("a file");
        let error = DiskStorage::open(&path).expect_err("a file is no folder");
        assert!(error.to_string().contains("/file;"), "{error}");
    }
}
