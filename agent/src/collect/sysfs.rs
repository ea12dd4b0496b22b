//! Many small files and folders, one after the other: how the collectors that walk `/sys` read.
//!
//! A path is put together from parts in a buffer that is used again, a file is opened, read and closed, and
//! its content stands in a second buffer: a usual round allocates nothing, and a host with a thousand
//! interfaces costs no descriptors. What cannot be read is absent: attributes come with drivers and go with
//! links, and half of them refuse to be read in some state of the device.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, RawDir};

use super::text;
use crate::host::{HostRoot, ReadError};

/// Most bytes of a file that are looked at. sysfs gives a page; statistics of filesystems some KiB.
const MAX_FILE_BYTES: usize = 256 * 1024;

/// Most bytes of names in one folder: 100,000 processes have under 1 MiB.
const MAX_NAMES_BYTES: usize = 4 * 1024 * 1024;

/// First size of a buffer for a file: a page, which is all that most of sysfs may print.
const FIRST_BUFFER_BYTES: usize = 4096;

/// Folders hand out as many names at a time as fit.
const DIRECTORY_BUFFER_BYTES: usize = 8192;

/// Reads small files through one path and one buffer.
#[derive(Debug, Default)]
pub struct Files {
    path: Vec<u8>,
    bytes: Vec<u8>,
}

impl Files {
    /// The content of the file whose path below the host's root is these parts, put together as they are.
    ///
    /// # Errors
    /// [`ReadError`] when it cannot be opened or read. What is beyond the bound is cut off.
    pub fn read(&mut self, host: &HostRoot, parts: &[&[u8]]) -> Result<&[u8], ReadError> {
        match self.fill(host, parts) {
            Ok(length) => Ok(&self.bytes[..length]),
            Err(errno) => Err(ReadError::Io {
                path: Path::new(OsStr::from_bytes(&self.path)).to_owned(),
                source: errno.into(),
            }),
        }
    }

    /// The same, without the white space around it; `None` if it cannot be read or is empty.
    pub fn word(&mut self, host: &HostRoot, parts: &[&[u8]]) -> Option<&[u8]> {
        let length = self.fill(host, parts).ok()?;
        let word = self.bytes[..length].trim_ascii();
        (!word.is_empty()).then_some(word)
    }

    /// The number the file holds; hexadecimal if it begins with `0x`.
    pub fn unsigned(&mut self, host: &HostRoot, parts: &[&[u8]]) -> Option<u64> {
        let word = self.word(host, parts)?;
        match word.strip_prefix(b"0x") {
            Some(digits) => text::hexadecimal(digits),
            None => text::unsigned(word),
        }
    }

    /// The number the file holds, which may be negative.
    pub fn signed(&mut self, host: &HostRoot, parts: &[&[u8]]) -> Option<i64> {
        text::signed(self.word(host, parts)?)
    }

    /// Whether the file or folder is there.
    pub fn exists(&mut self, host: &HostRoot, parts: &[&[u8]]) -> bool {
        self.set_path(host, parts);
        let there = rustix::fs::stat(&self.path[..]).is_ok();
        if there && let Some(recorder) = host.recorder() {
            recorder.exists(&joined(parts));
        }
        there
    }

    /// Where the file or folder really is, below the host's root, with all links followed.
    pub fn canonical(&mut self, host: &HostRoot, parts: &[&[u8]]) -> Option<PathBuf> {
        self.set_path(host, parts);
        let real = std::fs::canonicalize(Path::new(OsStr::from_bytes(&self.path))).ok()?;
        let root = std::fs::canonicalize(host.path()).ok()?;
        let relative = real.strip_prefix(root).ok()?.to_owned();
        if let Some(recorder) = host.recorder() {
            recorder.link(&joined(parts), &relative);
        }
        Some(relative)
    }

    /// Size and time of the file; `None` if it is not there, or is no plain file.
    pub fn stamp(&mut self, host: &HostRoot, parts: &[&[u8]]) -> Option<Stamp> {
        self.set_path(host, parts);
        let status = rustix::fs::stat(&self.path[..]).ok()?;
        let plain = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
        plain.then(|| Stamp {
            bytes: u64::try_from(status.st_size).unwrap_or(0),
            millis: status
                .st_mtime
                .saturating_mul(1000)
                .saturating_add(i64::try_from(status.st_mtime_nsec / 1_000_000).unwrap_or(0)),
            inode: status.st_ino,
        })
    }

    /// Lets a capture of the host keep the time of a file.
    pub fn note_time(&self, host: &HostRoot, parts: &[&[u8]], stamp: &Stamp) {
        if let Some(recorder) = host.recorder() {
            recorder.time(&joined(parts), stamp.millis);
        }
    }

    fn set_path(&mut self, host: &HostRoot, parts: &[&[u8]]) {
        set_root(&mut self.path, host);
        for part in parts {
            self.path.extend_from_slice(part);
        }
    }

    fn fill(&mut self, host: &HostRoot, parts: &[&[u8]]) -> Result<usize, rustix::io::Errno> {
        self.set_path(host, parts);
        // A pipe that somebody put there must not hold the round up.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(&self.path[..], flags, Mode::empty())?;
        if self.bytes.is_empty() {
            self.bytes.resize(FIRST_BUFFER_BYTES, 0);
        }
        let whole = is_handed_out_whole(parts);
        let mut length = 0;
        loop {
            match rustix::io::read(&file, &mut self.bytes[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            // A second read would only say that this was all.
            if whole && length < self.bytes.len() {
                break;
            }
            if length == self.bytes.len() {
                if length >= MAX_FILE_BYTES {
                    break;
                }
                self.bytes.resize(length * 2, 0);
            }
        }
        if let Some(recorder) = host.recorder() {
            let path = joined(parts);
            recorder.file(Path::new(OsStr::from_bytes(&path)), &self.bytes[..length]);
        }
        Ok(length)
    }
}

/// Whether one read gives all there is: of an attribute of sysfs, and of the files of one process, which the kernel
/// prints in one go.
fn is_handed_out_whole(parts: &[&[u8]]) -> bool {
    match parts {
        [first, ..] if first.starts_with(b"sys/") => true,
        [first, pid, file] => {
            let of_process = *first == b"proc/" && numbered(pid, b"").is_some();
            of_process && (*file == b"/stat" || *file == b"/io")
        }
        _ => false,
    }
}

/// What differs when a file has been written to or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Size.
    pub bytes: u64,
    /// When it was last written to, in milliseconds since 1970.
    pub millis: i64,
    /// Which file it is.
    pub inode: u64,
}

impl Stamp {
    /// When it was last written to, in seconds since 1970.
    #[must_use]
    pub fn seconds(&self) -> i64 {
        self.millis / 1000
    }
}

/// Begins a path with the host's root and a slash.
fn set_root(path: &mut Vec<u8>, host: &HostRoot) {
    path.clear();
    path.extend_from_slice(host.path().as_os_str().as_bytes());
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// The names in a folder, sorted; the buffers stay.
#[derive(Debug, Default)]
pub struct Names {
    path: Vec<u8>,
    buffer: Vec<u8>,
    text: Vec<u8>,
    /// Where each name begins and ends in the text.
    places: Vec<(u32, u32)>,
}

impl Names {
    /// Lists the folder; `false`, and no names, if there is none. `.` and `..` are no names.
    ///
    /// # Errors
    /// [`ReadError`] when it is there and cannot be listed, or has more names than anything here has.
    pub fn list(&mut self, host: &HostRoot, folder: &[u8]) -> Result<bool, ReadError> {
        self.text.clear();
        self.places.clear();
        set_root(&mut self.path, host);
        self.path.extend_from_slice(folder);
        let listed = self.fill(host, folder);
        let error = match listed {
            Ok(()) => {
                let text = &self.text;
                let name = |&(from, to): &(u32, u32)| &text[from as usize..to as usize];
                self.places.sort_unstable_by(|a, b| name(a).cmp(name(b)));
                return Ok(true);
            }
            Err(error) => error,
        };
        self.places.clear();
        let error = ReadError::Io {
            path: Path::new(OsStr::from_bytes(&self.path)).to_owned(),
            source: error,
        };
        if error.is_absent() {
            Ok(false)
        } else {
            Err(error)
        }
    }

    fn fill(&mut self, host: &HostRoot, folder: &[u8]) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let handle = rustix::fs::open(&self.path[..], flags, Mode::empty())?;
        if let Some(recorder) = host.recorder() {
            recorder.exists(folder);
        }
        self.buffer.reserve(DIRECTORY_BUFFER_BYTES);
        let mut entries = RawDir::new(handle, self.buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if self.text.len() + name.len() > MAX_NAMES_BYTES {
                return Err(io::Error::other("the folder has too many names"));
            }
            if let Some(recorder) = host.recorder() {
                let file = entry.file_type() == FileType::RegularFile;
                recorder.entry(folder, name, file);
            }
            let from = self.text.len();
            self.text.extend_from_slice(name);
            if let (Ok(from), Ok(to)) = (u32::try_from(from), u32::try_from(self.text.len())) {
                self.places.push((from, to));
            }
        }
        Ok(())
    }

    /// How many names there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// The names, sorted by their bytes.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.places
            .iter()
            .map(|&(from, to)| &self.text[from as usize..to as usize])
    }
}

/// Whether this may stand in a path as one part: what a file names must not lead elsewhere.
#[must_use]
pub fn is_part(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

/// The number behind a prefix, and nothing else: 7 of `cpu7`.
#[must_use]
pub fn numbered<'a>(name: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let number = name.strip_prefix(prefix)?;
    text::unsigned(number).map(|_| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_are_read_below_the_root() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |path: &str| folder.path().join(path);
        std::fs::create_dir_all(at("sys/b")).expect("made");
        std::fs::create_dir_all(at("devices/card0")).expect("made");
        std::fs::write(at("sys/b/number"), "17\n").expect("written");
        std::fs::write(at("sys/b/hex"), "0x1f\n").expect("written");
        std::fs::write(at("sys/b/less"), "-3\n").expect("written");
        std::fs::write(at("sys/b/long"), "y".repeat(MAX_FILE_BYTES * 2)).expect("written");
        std::fs::write(at("sys/a"), " two words \n").expect("written");
        std::os::unix::fs::symlink("../devices/card0/", at("sys/link")).expect("linked");
        let host = HostRoot::at(folder.path());
        let mut files = Files::default();
        assert_eq!(files.word(&host, &[b"sys/", b"a"]), Some(&b"two words"[..]));
        assert_eq!(files.unsigned(&host, &[b"sys/b/", b"number"]), Some(17));
        assert_eq!(files.unsigned(&host, &[b"sys/b/hex"]), Some(31));
        assert_eq!(files.unsigned(&host, &[b"sys/b/less"]), None);
        assert_eq!(files.signed(&host, &[b"sys/b/less"]), Some(-3));
        assert_eq!(
            files.read(&host, &[b"sys/b/long"]).expect("cut").len(),
            MAX_FILE_BYTES
        );
        assert!(
            files
                .read(&host, &[b"sys/none"])
                .expect_err("none")
                .is_absent()
        );
        assert_eq!(files.word(&host, &[b"sys/b\0x"]), None);
        let real = files.canonical(&host, &[b"sys/link"]);
        assert_eq!(real.as_deref(), Some(Path::new("devices/card0")));
        let mut names = Names::default();
        assert!(names.list(&host, b"sys").expect("lists"));
        let all: Vec<&[u8]> = names.iter().collect();
        assert_eq!(all, [&b"a"[..], b"b", b"link"]);
        assert!(!names.list(&host, b"none").expect("absent"));
        assert_eq!(names.count(), 0);
        assert!(names.list(&host, b"sys/a").is_err(), "no folder");
    }

    #[test]
    fn what_leads_elsewhere_is_no_part() {
        for wrong in ["", ".", "..", "a/b", "a\0b"] {
            assert!(!is_part(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(is_part(b"eth0.7") && is_part(b"..a"));
        assert_eq!(numbered(b"cpu17", b"cpu"), Some(&b"17"[..]));
        assert_eq!(numbered(b"cpufreq", b"cpu"), None);
    }
}
