//! The state of all hosts in one file, so that a start reads a little log instead of all of it.
//!
//! ```text
//! magic "MUSTERCP" | version u32 | crc32c u32 of the body | body: postcard of Checkpoint
//! ```
//! Little endian. The file is replaced whole (temporary file, fdatasync, rename, fsync of the folder). It
//! holds at least everything up to the log record it names; later records are applied again at the next
//! start, which changes nothing where they are contained already.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek as _, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::host::CheckpointedHost;

const MAGIC: &[u8; 8] = b"MUSTERCP";
const VERSION: u32 = 9;
const HEADER_BYTES: usize = 16;

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Highest record of the log that is contained for sure.
    pub covers: u64,
    /// All hosts.
    pub hosts: Vec<CheckpointedHost>,
}

/// Why a checkpoint was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk refused.
    #[error("cannot {action} checkpoint {path}", path = .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// It is not what was written, or of another version.
    #[error("checkpoint {path} is damaged or of another version", path = .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
    },
    /// It could not be put into bytes.
    #[error("cannot encode checkpoint")]
    Encode(#[from] postcard::Error),
}

/// Reads the file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
    let Some(body) = content(path, MAGIC, VERSION)? else {
        return Ok(None);
    };
    let checkpoint = postcard::from_bytes(&body);
    checkpoint.map(Some).map_err(|_| CheckpointError::Unusable {
        path: path.to_owned(),
    })
}

/// Replaces the file.
pub fn write(path: &Path, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let mut writer = Writer::begin(path, checkpoint.covers, checkpoint.hosts.len())?;
    writer.add(&checkpoint.hosts)?;
    writer.finish()
}

/// Replaces the file host by host, so that a fleet never lies in memory twice. Dropped before its end it replaces
/// nothing.
pub struct Writer(Draft);

impl Writer {
    /// Begins the file of so many hosts; as many are to be added.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin(path: &Path, covers: u64, hosts: usize) -> Result<Self, CheckpointError> {
        // What is written is a `Checkpoint`, field after field.
        let mut draft = Draft::begin(path)?;
        draft.put(&covers)?;
        draft.put(&hosts)?;
        Ok(Self(draft))
    }

    /// Adds hosts.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn add(&mut self, hosts: &[CheckpointedHost]) -> Result<(), CheckpointError> {
        hosts.iter().try_for_each(|host| self.0.put(host))
    }

    /// Puts the file in the place of the one before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> Result<(), CheckpointError> {
        self.0.finish(MAGIC, VERSION)
    }
}

/// The body of a file with such a head; `None` if there is none.
pub(crate) fn content(
    path: &Path,
    magic: &[u8; 8],
    version: u32,
) -> Result<Option<Vec<u8>>, CheckpointError> {
    let mut bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CheckpointError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            });
        }
    };
    let unusable = || CheckpointError::Unusable {
        path: path.to_owned(),
    };
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(unusable)?;
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if &header[..8] != magic || word(8) != version || word(12) != crc32c::crc32c(body) {
        return Err(unusable());
    }
    Ok(Some(bytes.split_off(HEADER_BYTES)))
}

/// Bytes that are handed to the kernel together.
const WRITE_BYTES: usize = 256 * 1024;

/// Adds up the checksum of what is written, and keeps the error that postcard has no words for.
struct Summed<W> {
    to: W,
    checksum: u32,
    failed: Option<io::Error>,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.to.write(bytes) {
            Ok(written) => {
                self.checksum = crc32c::crc32c_append(self.checksum, &bytes[..written]);
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Replaces a file by this value with its head.
pub(crate) fn replace(
    path: &Path,
    magic: &[u8; 8],
    version: u32,
    value: &impl Serialize,
) -> Result<(), CheckpointError> {
    let mut draft = Draft::begin(path)?;
    draft.put(value)?;
    draft.finish(magic, version)
}

/// A file that is being written beside the one that it will replace.
struct Draft {
    path: PathBuf,
    temporary: PathBuf,
    body: BufWriter<Summed<File>>,
}

impl Draft {
    fn begin(path: &Path) -> Result<Self, CheckpointError> {
        let temporary = path.with_extension("tmp");
        let io = |action| io_error(action, path);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io("create"))?;
        // The body goes to the file as it is made: it is the whole fleet. Its checksum stands before it.
        file.write_all(&[0; HEADER_BYTES]).map_err(io("write"))?;
        let summed = Summed {
            to: file,
            checksum: 0,
            failed: None,
        };
        Ok(Self {
            path: path.to_owned(),
            temporary,
            body: BufWriter::with_capacity(WRITE_BYTES, summed),
        })
    }

    fn put(&mut self, value: &impl Serialize) -> Result<(), CheckpointError> {
        let encoded = postcard::to_io(value, &mut self.body).map(|_| ());
        match self.body.get_mut().failed.take() {
            Some(source) => Err(io_error("write", &self.path)(source)),
            None => Ok(encoded?),
        }
    }

    fn finish(mut self, magic: &[u8; 8], version: u32) -> Result<(), CheckpointError> {
        let io = |action| io_error(action, &self.path);
        self.body.flush().map_err(io("write"))?;
        let Summed {
            to: mut file,
            checksum,
            ..
        } = self.body.into_parts().0;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(magic);
        header.extend_from_slice(&version.to_le_bytes());
        header.extend_from_slice(&checksum.to_le_bytes());
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&header))
            .and_then(|()| file.sync_data())
            .map_err(io("write"))?;
        fs::rename(&self.temporary, &self.path).map_err(io("replace"))?;
        match self.path.parent() {
            Some(folder) => File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(io("replace")),
            None => Ok(()),
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_found() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("checkpoint");
        assert!(read(&path).expect("no file is no error").is_none());
        let checkpoint = Checkpoint {
            covers: 77,
            hosts: Vec::new(),
        };
        write(&path, &checkpoint).expect("written");
        assert_eq!(read(&path).expect("reads").expect("is there").covers, 77);
        let whole = fs::read(&path).expect("reads");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, &damaged).expect("written");
            assert!(
                matches!(read(&path), Err(CheckpointError::Unusable { .. })),
                "byte {at}"
            );
            fs::write(&path, &whole[..at]).expect("written");
            assert!(
                matches!(read(&path), Err(CheckpointError::Unusable { .. })),
                "cut at {at}"
            );
        }
    }
}
