//! Where the host's `/proc`, `/sys` and `/etc` are, and how they are read.
//!
//! The host is a path, not a trait: `/` is this machine, `/host` a machine seen from a container, and a
//! captured folder is a host too. Files that are read every round are kept open and read with `pread`
//! into a buffer that is used again, so a round opens and allocates nothing. What the bytes mean is the
//! collectors' business.

use std::{
    fs::File,
    io,
    io::Read,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_proto::{limits, v1};
use ring::digest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    capture::Recorder,
    collect::{os, text},
};

/// Largest file that is read: `/proc/<pid>/mountinfo` of 4,000 mounts is under 1 MiB.
const MAX_FILE_BYTES: usize = 8 * 1024 * 1024;

/// First size of a kept file's buffer: one page holds most of what `/proc` prints.
const FIRST_BUFFER_BYTES: usize = 4096;

/// Buffers beyond this are worth giving back between reads that are seldom.
const LARGE_BUFFER_BYTES: usize = 64 * 1024;

/// Precedes the machine id in the hash, as machine-id(5) asks applications to do.
const MACHINE_ID_PREFIX: &[u8] = b"muster.v1 machine id\n";

/// Why a file of the host was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel refused.
    #[error("cannot read {path}", path = .path.display())]
    Io {
        /// The file, below the host's root.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Nothing that is read here is that large.
    #[error("{path} has more than {MAX_FILE_BYTES} bytes", path = .path.display())]
    TooLarge {
        /// The file, below the host's root.
        path: PathBuf,
    },
}

impl ReadError {
    /// Whether the host has no such file, or the kernel no such feature: a fact, not a failure.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        // ENXIO, ENODEV and EOPNOTSUPP are what files of features that are built in and switched off say.
        source.kind() == io::ErrorKind::NotFound
            || [
                rustix::io::Errno::NXIO,
                rustix::io::Errno::NODEV,
                rustix::io::Errno::OPNOTSUPP,
            ]
            .iter()
            .any(|absent| source.raw_os_error() == Some(absent.raw_os_error()))
    }
}

/// The host that is looked at.
#[derive(Debug, Clone)]
pub struct HostRoot {
    path: PathBuf,
    /// Notes what is read, for `muster-agent capture`.
    recorder: Option<Arc<Recorder>>,
}

impl HostRoot {
    /// The host whose root is at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            recorder: None,
        }
    }

    /// The same host; what is read of it from now on is noted.
    #[must_use]
    pub fn recorded(&self, recorder: Arc<Recorder>) -> Self {
        Self {
            path: self.path.clone(),
            recorder: Some(recorder),
        }
    }

    /// Who notes what is read, if anybody does.
    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_deref()
    }

    /// Where the root is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the machine the agent runs on, so that system calls speak of it too.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Where the host's `relative` path is, whether that begins with `/` or not.
    #[must_use]
    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        let relative = relative.as_ref();
        self.path
            .join(relative.strip_prefix("/").unwrap_or(relative))
    }

    /// Reads a file that is not read often; the descriptor is closed again.
    ///
    /// # Errors
    /// [`ReadError`] as for [`KeptFile::read`].
    pub fn read(&self, relative: impl AsRef<Path>) -> Result<Vec<u8>, ReadError> {
        let relative = relative.as_ref();
        let path = self.join(relative);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| {
            let bound = MAX_FILE_BYTES as u64 + 1;
            file.take(bound).read_to_end(&mut bytes)
        });
        match read {
            Ok(length) if length > MAX_FILE_BYTES => Err(ReadError::TooLarge { path }),
            Ok(_) => {
                if let Some(recorder) = &self.recorder {
                    recorder.file(relative, &bytes);
                }
                Ok(bytes)
            }
            Err(source) => Err(ReadError::Io { path, source }),
        }
    }

    /// The first line of a small file without the white space around it; `None` if it cannot be read or
    /// is empty. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn word(&self, relative: impl AsRef<Path>) -> Option<String> {
        let bytes = self.read(relative).ok()?;
        let line = bytes.split(|&byte| byte == b'\n').next()?.trim_ascii();
        (!line.is_empty()).then(|| String::from_utf8_lossy(line).into_owned())
    }
}

/// How the kernel hands out a file, which tells when a read was the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Anyhow: only an empty read is the end.
    Unknown,
    /// As a whole (single_open, sysctl): what is less than there was room for is all.
    Whole,
    /// In pages filled with whole lines (seq_file): a page with room for the longest line is the last.
    Lines,
}

/// The smallest page, and a line longer than any in the files that [`KeptFile::lines`] is for.
const PAGE_BYTES: usize = 4096;
const LONG_LINE_BYTES: usize = 1024;

/// A file that is read every round: its descriptor and its buffer stay.
#[derive(Debug)]
pub struct KeptFile {
    relative: PathBuf,
    shape: Shape,
    file: Option<File>,
    buffer: Vec<u8>,
}

impl KeptFile {
    /// The file at `relative` below the host's root; opened by the first read.
    #[must_use]
    pub fn new(relative: impl Into<PathBuf>) -> Self {
        Self {
            relative: relative.into(),
            shape: Shape::Unknown,
            file: None,
            buffer: Vec::new(),
        }
    }

    /// What the file holds now; `None` where the host has no such file.
    ///
    /// # Errors
    /// As [`KeptFile::read`].
    pub fn read_if_there(&mut self, host: &HostRoot) -> Result<Option<&[u8]>, ReadError> {
        match self.read(host) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One that the kernel hands out as a whole: it takes one read where others take two.
    #[must_use]
    pub fn whole(relative: impl Into<PathBuf>) -> Self {
        Self {
            shape: Shape::Whole,
            ..Self::new(relative)
        }
    }

    /// One that the kernel hands out in lines, none of which is longer than 1 KiB.
    #[must_use]
    pub fn lines(relative: impl Into<PathBuf>) -> Self {
        Self {
            shape: Shape::Lines,
            ..Self::new(relative)
        }
    }

    /// What the file holds now.
    ///
    /// # Errors
    /// [`ReadError`] when it cannot be opened or read, or is too large; the next call opens it anew.
    pub fn read(&mut self, host: &HostRoot) -> Result<&[u8], ReadError> {
        match self.fill(host) {
            Ok(length) => {
                if let Some(recorder) = host.recorder() {
                    recorder.file(&self.relative, &self.buffer[..length]);
                }
                Ok(&self.buffer[..length])
            }
            Err(error) => {
                self.file = None;
                Err(error)
            }
        }
    }

    /// Whether the kernel does not say that the file is as it was at the last call: of tables of mounts it tells
    /// (proc(5): `POLLPRI`) when something was mounted or unmounted. One that is not open has news.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let Some(file) = &self.file else {
            return true;
        };
        let mut asked = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
        match poll(&mut asked, Some(&Timespec::default())) {
            Ok(_) => asked[0]
                .revents()
                .intersects(PollFlags::PRI | PollFlags::ERR),
            Err(_) => true,
        }
    }

    /// Gives back a buffer that had to grow far; the next read makes it anew.
    pub fn let_go(&mut self) {
        if self.buffer.len() > LARGE_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
    }

    fn fill(&mut self, host: &HostRoot) -> Result<usize, ReadError> {
        let failed = |source| ReadError::Io {
            path: host.join(&self.relative),
            source,
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(host.join(&self.relative)).map_err(failed)?),
        };
        if self.buffer.is_empty() {
            self.buffer.resize(FIRST_BUFFER_BYTES, 0);
        }
        let mut length = 0;
        loop {
            let asked = self.buffer.len() - length;
            match rustix::io::pread(&*file, &mut self.buffer[length..], length as u64) {
                Ok(read) => {
                    length += read;
                    let is_last = match self.shape {
                        Shape::Unknown => read == 0,
                        Shape::Whole => read < asked,
                        Shape::Lines => read < asked && read <= PAGE_BYTES - LONG_LINE_BYTES,
                    };
                    if is_last {
                        return Ok(length);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
            if length == self.buffer.len() {
                if length >= MAX_FILE_BYTES {
                    let path = host.join(&self.relative);
                    return Err(ReadError::TooLarge { path });
                }
                self.buffer.resize(length * 2, 0);
            }
        }
    }
}

/// What the host says about itself, read once at start. What cannot be read is empty or 0.
#[must_use]
pub fn facts(host: &HostRoot, labels: &[(String, String)]) -> v1::HostFacts {
    let os = os::Release::read(host).unwrap_or_default();
    let names = crate::collect::uname::names(host);
    v1::HostFacts {
        hostname: bounded(names.nodename, 253),
        os_id: bounded(os.value("ID").to_owned(), limits::MAX_LABEL_VALUE_BYTES),
        os_version: bounded(
            os.value("VERSION_ID").to_owned(),
            limits::MAX_LABEL_VALUE_BYTES,
        ),
        os_pretty: bounded(
            os.value("PRETTY_NAME").to_owned(),
            limits::MAX_LABEL_VALUE_BYTES,
        ),
        kernel: bounded(names.release, limits::MAX_LABEL_VALUE_BYTES),
        architecture: bounded(names.machine, limits::MAX_LABEL_VALUE_BYTES),
        cpus: cpus(host),
        memory_bytes: memory_bytes(host),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine_id_hash: machine_id_hash(host),
        labels: labels.iter().cloned().collect(),
    }
}

/// The kernel's id of this boot; empty if it cannot be read.
#[must_use]
pub fn boot_id(host: &HostRoot) -> String {
    host.word("proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
}

/// SHA-256 of a fixed prefix and the machine id; empty on a host without one.
fn machine_id_hash(host: &HostRoot) -> Vec<u8> {
    let id = host
        .word("etc/machine-id")
        .or_else(|| host.word("var/lib/dbus/machine-id"));
    // "uninitialized" is what images hold before their first boot: it tells nothing apart.
    let Some(id) = id.filter(|id| id != "uninitialized") else {
        return Vec::new();
    };
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(MACHINE_ID_PREFIX);
    context.update(id.as_bytes());
    context.finish().as_ref().to_vec()
}

fn cpus(host: &HostRoot) -> u32 {
    let stat = host.read("proc/stat").unwrap_or_default();
    let numbered = |line: &&[u8]| {
        line.strip_prefix(b"cpu")
            .is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit))
    };
    u32::try_from(text::lines(&stat).filter(numbered).count()).unwrap_or(u32::MAX)
}

fn memory_bytes(host: &HostRoot) -> u64 {
    let meminfo = host.read("proc/meminfo").unwrap_or_default();
    text::lines(&meminfo)
        .find_map(|line| line.strip_prefix(b"MemTotal:"))
        .and_then(|rest| text::unsigned(text::fields(rest).next()?))
        .map_or(0, |kibi| kibi.saturating_mul(1024))
}

fn bounded(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_with(files: &[(&str, &str)]) -> (tempfile::TempDir, HostRoot) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
            std::fs::write(path, content).expect("written");
        }
        let host = HostRoot::at(folder.path());
        (folder, host)
    }

    #[test]
    fn a_kept_file_is_read_whole_again_and_again() {
        let long = "x".repeat(FIRST_BUFFER_BYTES * 3 + 1);
        let (folder, host) = host_with(&[("proc/long", &long)]);
        let mut file = KeptFile::new("proc/long");
        assert_eq!(file.read(&host).expect("reads"), long.as_bytes());
        std::fs::write(folder.path().join("proc/long"), "short").expect("written");
        assert_eq!(file.read(&host).expect("reads"), b"short");
    }

    #[test]
    fn a_buffer_that_grew_is_given_back_and_a_plain_file_has_no_news() {
        let long = "x".repeat(LARGE_BUFFER_BYTES + 1);
        let (_folder, host) = host_with(&[("long", &long), ("short", "y")]);
        let mut file = KeptFile::new("long");
        assert!(file.has_news(), "it is not open");
        for _ in 0..2 {
            assert_eq!(file.read(&host).expect("reads"), long.as_bytes());
            file.let_go();
            assert!(file.buffer.is_empty());
        }
        let mut short = KeptFile::new("short");
        assert_eq!(short.read(&host).expect("reads"), b"y");
        short.let_go();
        assert!(!short.buffer.is_empty() && !short.has_news());
    }

    #[test]
    fn every_shape_of_file_is_read_to_its_end() {
        for size in [0, 1, 3_000, 3_073, 4_095, 4_096, 4_097, 20_000] {
            let line = "0123456789abcde\n";
            let text: String = line.chars().cycle().take(size).collect();
            let (_folder, host) = host_with(&[("f", &text)]);
            for mut file in [
                KeptFile::new("f"),
                KeptFile::whole("f"),
                KeptFile::lines("f"),
            ] {
                for _ in 0..2 {
                    assert_eq!(file.read(&host).expect("read"), text.as_bytes(), "{size}");
                }
            }
        }
    }

    #[test]
    fn a_missing_file_is_absent_and_may_come_later() {
        let (folder, host) = host_with(&[("proc/other", "")]);
        let mut file = KeptFile::new("proc/late");
        assert!(file.read(&host).expect_err("missing").is_absent());
        std::fs::write(folder.path().join("proc/late"), "now").expect("written");
        assert_eq!(file.read(&host).expect("reads"), b"now");
    }

    #[test]
    fn paths_stay_below_the_root() {
        let host = HostRoot::at("/host");
        assert_eq!(host.join("proc/stat"), Path::new("/host/proc/stat"));
        assert_eq!(host.join("/proc/stat"), Path::new("/host/proc/stat"));
    }

    #[test]
    fn facts_come_from_plain_files_and_hide_the_machine_id() {
        let (_folder, host) = host_with(&[
            ("proc/stat", "cpu 1\ncpu0 1 2\ncpu3 1 2\nbtime 5\n"),
            ("proc/meminfo", "MemTotal:        2048 kB\n"),
            ("proc/sys/kernel/hostname", "web-1\n"),
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            (
                "etc/os-release",
                "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian 12\"\n",
            ),
        ]);
        let facts = facts(&host, &[("role".to_owned(), "web".to_owned())]);
        assert_eq!(facts.hostname, "web-1");
        assert_eq!((facts.cpus, facts.memory_bytes), (2, 2048 * 1024));
        assert_eq!(
            (facts.os_id.as_str(), facts.os_version.as_str()),
            ("debian", "12")
        );
        assert_eq!(facts.machine_id_hash.len(), 32);
        assert_eq!(facts.labels["role"], "web");

        let (_folder, unborn) = host_with(&[("etc/machine-id", "uninitialized\n")]);
        assert!(machine_id_hash(&unborn).is_empty());
    }
}
