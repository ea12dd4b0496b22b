//! What `muster-agent capture` writes: a copy of everything the collectors read of a host, so that a fault
//! seen on one machine becomes a folder that can be looked at, and tested, on another.
//!
//! Nobody keeps a list of the files: one round of all collectors runs while a [`Recorder`] notes each file, folder
//! and link that is read. What they ask the kernel otherwise stands in files beside the root:
//!
//! ```text
//! DIR/root/…        files, folders and links, at their places
//! DIR/statvfs.txt   mount point, unit, blocks, free, available, inodes, free inodes of each filesystem
//! DIR/timex.txt     the clock's state
//! ```
//!
//! Left out or blanked: addresses of sockets and neighbours, names of processes, options of mounts; and, unless
//! they are asked for, serial numbers and UUIDs. Neither the machine id nor the product's serial is ever
//! read. systemd's units are told over a bus and are not captured.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, symlink},
    },
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use muster_proto::{catalog, series::Table, time::Timestamp};

use crate::{
    collect::{CollectConfig, Collection, diskinfo, systemd, text, timex, uname},
    host::HostRoot,
};

/// Most bytes of files that are noted: a large host has a few MiB.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Most files, folders and links that are noted.
const MAX_ENTRIES: usize = 200_000;

/// Where a live host tells its sockets; on it the collector asks the kernel instead.
const SOCKETS: [&str; 2] = ["proc/net/tcp", "proc/net/tcp6"];

/// The second round comes so much later: filesystems are asked in threads of their own.
pub const PAUSE: Duration = Duration::from_millis(300);

/// Why nothing, or not all, was written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is something already.
    #[error("{path} is there and not empty", path = .0.display())]
    NotEmpty(PathBuf),
    /// A file or folder could not be written.
    #[error("cannot write {path}", path = .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Files, folders and links for which there was no room.
    pub left_out: usize,
}

/// A host that is being captured: two rounds, then the writing.
pub struct Capture {
    collection: Collection,
    recorder: Arc<Recorder>,
    with_serials: bool,
}

impl Capture {
    /// Of this host, by the collectors that the configuration leaves on. `with_serials` keeps serial numbers
    /// and UUIDs of disks and batteries.
    #[must_use]
    pub fn new(host: &HostRoot, config: &CollectConfig, with_serials: bool) -> Self {
        let recorder = Arc::new(Recorder::default());
        let mut config = config.clone();
        config.disabled.push(systemd::NAME.to_owned());
        let host = host.recorded(Arc::clone(&recorder));
        Self {
            collection: Collection::new(host, &config),
            recorder,
            with_serials,
        }
    }

    /// Runs all collectors that are due. Call it twice, with a [`PAUSE`] between.
    pub fn round(&mut self, tick: Timestamp) {
        self.collection.run(tick);
    }

    /// Writes what was read below `folder`.
    ///
    /// # Errors
    /// [`CaptureError`] if the folder holds something already, or cannot be written.
    pub fn write(self, folder: &Path) -> Result<Written, CaptureError> {
        prepare(folder)?;
        let host = self.collection.host();
        if host.is_live() {
            self.ask_the_kernel(host);
        }
        let space = space(self.collection.table());
        self.recorder
            .file(Path::new("../statvfs.txt"), space.as_bytes());
        let noted = std::mem::take(&mut *self.recorder.lock());
        let root = folder.join("root");
        make_folder(&root)?;
        for (path, real) in &noted.links {
            write_link(&root, path, real)?;
        }
        let mut written = Written {
            left_out: noted.left_out,
            ..Written::default()
        };
        for (path, content) in &noted.files {
            let Some(content) = scrubbed(path, content, self.with_serials) else {
                continue;
            };
            let Some(place) = place(&root, path) else {
                continue;
            };
            let modified = noted.times.get(path).copied();
            write_file(&place, &content, modified)?;
            written.files += 1;
            written.bytes += content.len();
        }
        for (path, &file) in &noted.entries {
            let Some(place) = place(&root, path) else {
                continue;
            };
            if place.symlink_metadata().is_ok() {
                continue;
            }
            // A file that only had to be there; what it holds was not looked at.
            if file && noted.files.contains_key(path) {
                continue;
            }
            if file {
                write_file(&place, &[], None)?;
            } else {
                make_folder(&place)?;
            }
        }
        Ok(written)
    }

    /// What the live host tells by system calls, and another host by files.
    fn ask_the_kernel(&self, host: &HostRoot) {
        let names = uname::names(host);
        for (file, content) in [
            ("ostype", names.sysname),
            ("osrelease", names.release),
            ("version", names.version),
            ("arch", names.machine),
            ("hostname", names.nodename),
            ("domainname", names.domainname),
        ] {
            let path = Path::new("proc/sys/kernel").join(file);
            self.recorder.file(&path, format!("{content}\n").as_bytes());
        }
        if let Ok(state) = timex::State::of_this_machine() {
            let path = Path::new(timex::CAPTURED);
            self.recorder.file(path, state.to_line().as_bytes());
        }
        for path in SOCKETS {
            // Read for the sake of the recorder; a kernel without IPv6 has one of them.
            let _ = host.read(path);
        }
    }
}

fn prepare(folder: &Path) -> Result<(), CaptureError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            Some(_) => Err(CaptureError::NotEmpty(folder.to_owned())),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_folder(folder),
        Err(source) => Err(CaptureError::Write {
            path: folder.to_owned(),
            source,
        }),
    }
}

fn make_folder(path: &Path) -> Result<(), CaptureError> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|source| CaptureError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write_file(path: &Path, content: &[u8], modified: Option<i64>) -> Result<(), CaptureError> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let write = || {
        fs::write(path, content)?;
        let Some(millis) = modified.and_then(|millis| u64::try_from(millis).ok()) else {
            return Ok(());
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        fs::File::options()
            .write(true)
            .open(path)?
            .set_modified(time)
    };
    write().map_err(|source| CaptureError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Makes `path` a link to `real`, both below the root, and a folder there.
fn write_link(root: &Path, path: &Path, real: &Path) -> Result<(), CaptureError> {
    let (Some(place), Some(target)) = (place(root, path), place(root, real)) else {
        return Ok(());
    };
    if path == real || place.symlink_metadata().is_ok() {
        return Ok(());
    }
    make_folder(&target)?;
    let folder = place.parent().unwrap_or(root);
    make_folder(folder)?;
    let up = path.components().count().saturating_sub(1);
    let relative: PathBuf = std::iter::repeat_n(Component::ParentDir, up)
        .map(|part| part.as_os_str())
        .chain(real.iter())
        .collect();
    symlink(&relative, &place).map_err(|source| CaptureError::Write {
        path: place,
        source,
    })
}

/// Where a path below the host's root is written; what is beside the root, beside it. `None` for any other
/// that leads out.
fn place(root: &Path, path: &Path) -> Option<PathBuf> {
    let beside = path.strip_prefix("..").ok();
    let inside = beside.unwrap_or(path);
    let inside = inside.strip_prefix("/").unwrap_or(inside);
    let mut parts = inside.components();
    if inside.as_os_str().is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    match beside {
        Some(_) => Some(root.parent()?.join(inside)),
        None => Some(root.join(inside)),
    }
}

/// The lines of `statvfs.txt`: bytes as blocks of 1.
fn space(table: &Table) -> String {
    let families = [
        catalog::FILESYSTEM_SIZE,
        catalog::FILESYSTEM_FREE,
        catalog::FILESYSTEM_AVAIL,
        catalog::FILESYSTEM_FILES,
        catalog::FILESYSTEM_FILES_FREE,
    ];
    let mut points: BTreeMap<&str, [i64; 5]> = BTreeMap::new();
    for ((series, raw), _) in table
        .series
        .iter()
        .zip(&table.raw)
        .zip(&table.present)
        .filter(|(_, present)| **present)
    {
        let figure = families.iter().position(|family| family.0 == series.family);
        if let (Some(figure), Some(point)) = (figure, series.labels.last()) {
            points.entry(point).or_default()[figure] = raw.as_int();
        }
    }
    let mut lines = String::new();
    for (point, figures) in points {
        for letter in point.chars() {
            match letter {
                ' ' | '\t' | '\n' | '\\' => {
                    lines.push_str(&format!("\\{:03o}", u32::from(letter)));
                }
                letter => lines.push(letter),
            }
        }
        let figures = figures.map(|figure| figure.to_string()).join(" ");
        lines.push_str(&format!(" 1 {figures}\n"));
    }
    lines
}

/// A file's content as it may leave the host; `None` if it must not.
fn scrubbed<'a>(path: &Path, content: &'a [u8], with_serials: bool) -> Option<Cow<'a, [u8]>> {
    let parts: Vec<&[u8]> = path.iter().map(OsStr::as_bytes).collect();
    let blank = |line: fn(&[u8]) -> Vec<u8>| Some(Cow::Owned(by_line(content, line)));
    match parts.as_slice() {
        [b"proc", _, b"mountinfo"] => blank(mount),
        [b"proc", b"net", b"tcp" | b"tcp6" | b"udp" | b"udp6"] => blank(socket),
        [b"proc", b"net", b"arp"] => blank(neighbour),
        [b"proc", pid, b"stat"] if text::unsigned(pid).is_some() => blank(process),
        [b"run", b"udev", b"data", _] => {
            let keeps = |line: &&[u8]| diskinfo::reads(line, with_serials);
            let kept: Vec<&[u8]> = text::lines(content).filter(keeps).collect();
            Some(Cow::Owned([kept.join(&b'\n'), b"\n".to_vec()].concat()))
        }
        [.., b"serial" | b"serial_number"] if !with_serials => None,
        _ => Some(Cow::Borrowed(content)),
    }
}

fn by_line(content: &[u8], blank: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut lines = Vec::with_capacity(content.len());
    for line in text::lines(content) {
        lines.extend_from_slice(&blank(line));
        lines.push(b'\n');
    }
    lines
}

/// Of the options of a filesystem only whether it is read-only stays: others may name users and servers.
fn mount(line: &[u8]) -> Vec<u8> {
    let mut fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    if let Some(options) = fields.last_mut() {
        let mut each = options.split(|&byte| byte == b',');
        *options = if each.any(|option| option == b"ro") {
            b"ro"
        } else {
            b"rw"
        };
    }
    fields.join(&b' ')
}

/// Addresses go, states and queues stay.
fn socket(line: &[u8]) -> Vec<u8> {
    let mut fields = text::fields(line);
    let number = fields.next().unwrap_or_default();
    let rest: Vec<&[u8]> = fields.skip(2).take(2).collect();
    [&[number, b"0:0", b"0:0"][..], &rest].concat().join(&b' ')
}

/// The device stays, and that it has a neighbour.
fn neighbour(line: &[u8]) -> Vec<u8> {
    let device = text::fields(line).nth(5).unwrap_or_default();
    [b"0.0.0.0 0x1 0x2 00:00:00:00:00:00 *", device].join(&b' ')
}

/// The name goes.
fn process(line: &[u8]) -> Vec<u8> {
    let open = line.iter().position(|&byte| byte == b'(');
    let close = line.iter().rposition(|&byte| byte == b')');
    match (open, close) {
        (Some(open), Some(close)) if open < close => {
            [&line[..=open], b"x", &line[close..]].concat()
        }
        _ => line.to_vec(),
    }
}

/// Notes what is read of a host.
#[derive(Debug, Default)]
pub struct Recorder {
    noted: Mutex<Noted>,
}

/// What was read, by path below the host's root.
#[derive(Debug, Default)]
struct Noted {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// What is only known to exist; true for a plain file.
    entries: BTreeMap<PathBuf, bool>,
    links: BTreeMap<PathBuf, PathBuf>,
    /// When files were last written to, in milliseconds since 1970, where that is looked at.
    times: BTreeMap<PathBuf, i64>,
    bytes: usize,
    /// What had no room.
    left_out: usize,
}

impl Recorder {
    /// Notes a file and what it holds; a later content replaces an earlier one.
    pub(crate) fn file(&self, path: &Path, content: &[u8]) {
        let mut noted = self.lock();
        if !noted.has_room(content.len()) {
            return;
        }
        noted.bytes += content.len();
        noted.files.insert(path.to_owned(), content.to_owned());
    }

    /// Notes that a folder exists, or a file that was not read.
    pub(crate) fn exists(&self, path: &[u8]) {
        self.add_entry(PathBuf::from(OsStr::from_bytes(path)), false);
    }

    /// Notes an entry of a folder.
    pub(crate) fn entry(&self, folder: &[u8], name: &[u8], file: bool) {
        let path = Path::new(OsStr::from_bytes(folder)).join(OsStr::from_bytes(name));
        self.add_entry(path, file);
    }

    /// Notes that a path is really another one, both below the host's root.
    pub(crate) fn link(&self, path: &[u8], real: &Path) {
        let mut noted = self.lock();
        if noted.has_room(0) {
            let path = PathBuf::from(OsStr::from_bytes(path));
            noted.links.insert(path, real.to_owned());
        }
    }

    /// Notes when a file was last written to.
    pub(crate) fn time(&self, path: &[u8], millis: i64) {
        let mut noted = self.lock();
        if noted.has_room(0) {
            noted
                .times
                .insert(PathBuf::from(OsStr::from_bytes(path)), millis);
        }
    }

    fn add_entry(&self, path: PathBuf, file: bool) {
        let mut noted = self.lock();
        if noted.has_room(0) {
            noted.entries.insert(path, file);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        // Nothing is left half done under this lock.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn has_room(&mut self, bytes: usize) -> bool {
        let entries = self.files.len() + self.entries.len() + self.links.len();
        let room = self.bytes + bytes <= MAX_BYTES && entries < MAX_ENTRIES;
        self.left_out += usize::from(!room);
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Format, render};

    fn host(folder: &Path) -> HostRoot {
        let files: &[(&str, &str)] = &[
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("etc/os-release", "ID=debian\nVERSION_ID=12\n"),
            ("proc/stat", "cpu0 1 2 3 4\nbtime 5\n"),
            (
                "proc/7/stat",
                "7 (secret-name) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 3 0 1\n",
            ),
            (
                "proc/net/tcp",
                "headings\n0: C0A80101:0016 C0A80102:8000 01 00000002:00000003 00:0\n",
            ),
            (
                "proc/net/arp",
                "headings\n192.168.1.9 0x1 0x2 aa:bb:cc:dd:ee:ff * eth0\n",
            ),
            (
                "proc/1/mountinfo",
                "22 1 8:1 / / rw - ext4 /dev/sda1 rw,username=joe\n\
                 23 22 8:2 / /a\\040b rw - ext4 /dev/sda2 ro\n",
            ),
            ("proc/diskstats", "8 0 sda 1 2 3 4 5 6 7 8 9 10 11\n"),
            (
                "run/udev/data/b8:0",
                "E:ID_MODEL=Disk\nE:ID_SERIAL_SHORT=SER1AL\nE:ID_WWN=0x5000SER1AL\nE:OTHER=SER1AL\n",
            ),
            ("sys/class/nvme/nvme0/serial", "SER1AL\n"),
            ("sys/class/nvme/nvme0/model", "Fast\n"),
            ("sys/class/dmi/id/product_serial", "SER1AL\n"),
            ("sys/class/dmi/id/product_name", "Box\n"),
            ("sys/class/net/eth0/flags", "0x1003\n"),
            ("sys/class/net/bonding_masters", "\n"),
            ("sys/devices/platform/chip.0/temp1_input", "1000\n"),
            ("sys/devices/platform/chip.0/hwmon/hwmon0/name", "chip\n"),
            ("var/lib/prometheus/node-exporter/a.prom", "a{b=\"c\"} 1\n"),
            (
                "../statvfs.txt",
                "/ 4096 10 5 4 100 50\n/a\\040b 1 7 6 5 4 3\n",
            ),
            ("../timex.txt", "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"),
        ];
        let root = folder.join("root");
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
            fs::write(path, content).expect("written");
        }
        fs::create_dir_all(root.join("sys/class/hwmon")).expect("made");
        let chip = "devices/platform/chip.0/hwmon/hwmon0";
        symlink(format!("../../{chip}"), root.join("sys/class/hwmon/hwmon0")).expect("linked");
        symlink("../../../chip.0", root.join(format!("sys/{chip}/device"))).expect("linked");
        HostRoot::at(root)
    }

    const TICK: Timestamp = Timestamp::from_millis(1_795_700_000_000);

    fn config() -> CollectConfig {
        CollectConfig {
            disabled: vec!["agent".to_owned(), systemd::NAME.to_owned()],
            ..CollectConfig::default()
        }
    }

    fn page(host: HostRoot) -> String {
        let mut collection = Collection::new(host, &config());
        let page = render(collection.run(TICK), TICK, Format::Prometheus);
        let page = String::from_utf8(page).expect("UTF-8");
        let lines = page.lines().filter(|line| {
            !line.contains("_seconds{collector=") && !line.contains("muster_agent_round")
        });
        lines.map(|line| format!("{line}\n")).collect()
    }

    fn capture(host: &HostRoot, to: &Path, with_serials: bool) -> Written {
        let mut capture = Capture::new(host, &config(), with_serials);
        capture.round(TICK);
        capture.write(to).expect("written")
    }

    /// All that stands in the files of a folder.
    fn all_text(folder: &Path) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(folder).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.symlink_metadata().expect("there").is_dir() {
                text += &all_text(&path);
            } else if path.is_file() {
                text += &fs::read_to_string(&path).expect("read");
            }
        }
        text
    }

    #[test]
    fn a_captured_host_tells_what_the_host_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let host = host(folder.path());
        let to = folder.path().join("captured");
        let written = capture(&host, &to, true);
        assert!(written.files > 10 && written.left_out == 0, "{written:?}");
        let (before, after) = (page(host), page(HostRoot::at(to.join("root"))));
        assert_eq!(before, after);
        for part in [
            "platform_chip_0",
            "SER1AL",
            "mountpoint=\"/a b\"",
            "node_timex",
            "a{b=",
        ] {
            assert!(after.contains(part), "{part}: {after}");
        }
        // Captured again, it stays the same.
        let again = folder.path().join("again");
        capture(&HostRoot::at(to.join("root")), &again, true);
        assert_eq!(page(HostRoot::at(again.join("root"))), after);
    }

    #[test]
    fn secrets_stay_on_the_host() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let host = host(folder.path());
        let to = folder.path().join("captured");
        capture(&host, &to, false);
        let text = all_text(&to);
        for secret in [
            "SER1AL",
            "0123456789abcdef",
            "secret-name",
            "C0A8",
            "192.168",
            "aa:bb",
            "joe",
        ] {
            assert!(!text.contains(secret), "{secret}");
        }
        let differs = |page: String| -> Vec<String> {
            let plain = page.lines().filter(|line| !line.contains("_info{"));
            plain.map(str::to_owned).collect()
        };
        assert_eq!(
            differs(page(host)),
            differs(page(HostRoot::at(to.join("root"))))
        );
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let host = host(folder.path());
        let refused = Capture::new(&host, &config(), false).write(folder.path());
        assert!(
            matches!(refused, Err(CaptureError::NotEmpty(_))),
            "{refused:?}"
        );
    }

    #[test]
    fn nothing_is_written_elsewhere() {
        let root = Path::new("/captured/root");
        assert_eq!(
            place(root, Path::new("proc/stat")),
            Some(root.join("proc/stat"))
        );
        assert_eq!(
            place(root, Path::new("/proc/stat")),
            Some(root.join("proc/stat"))
        );
        assert_eq!(
            place(root, Path::new("../timex.txt")),
            Some("/captured/timex.txt".into())
        );
        for wrong in ["", "..", "../..", "a/../../b", "../../x"] {
            assert_eq!(place(root, Path::new(wrong)), None, "{wrong}");
        }
    }
}
