//! `backup` and `restore`: an aggregator's state in one file, taken while it runs.
//!
//! The file is a tar archive (POSIX ustar), so that any tar lists and unpacks it. It holds, in this order, the authority's keys
//! and certificates (`ca/`), history (`history/`), the checkpoint of latest values, the log behind what history has in files
//! (`log/`), the databases, each as of one moment, and at the end `backup.json`: name, length and checksum of each of them, and
//! that the backup is whole. **Whoever has it is this fleet**: it is written with mode 0600.
//!
//! What is copied later is newer: the log goes on behind the checkpoint and the history that were copied before, and the
//! start after a restore reads on from there, as after a crash. What agents sent after the backup is gone with the old
//! disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{history::manifest, setup};
use muster_proto::log::DiskStorage;

const BLOCK: usize = 512;
/// Name of the last entry.
const LIST: &str = "backup.json";
/// Hosts, tokens, certificates, incidents, audit; events.
const DATABASES: [&str; 2] = ["control.db", "events.db"];
/// Folder in the state folder for what is not a state yet.
const RESTORING: &str = ".restoring";
/// Version of the list.
const VERSION: u32 = 1;
/// Largest list that is believed: a hundred thousand files.
const MAX_LIST_BYTES: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    version: u32,
    program: String,
    files: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
    crc32c: u32,
}

/// What a backup or a restore did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Writes a backup of the state folder to `to`; `-` is standard output.
///
/// # Errors
/// When something cannot be read or written; the file is removed again then.
pub fn backup(state: &Path, to: &Path) -> anyhow::Result<Done> {
    if to == Path::new("-") {
        return write(state, BufWriter::new(io::stdout().lock()));
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .with_context(|| {
            format!(
                "cannot make {}; a backup never replaces a file",
                to.display()
            )
        })?;
    let done = write(state, BufWriter::new(&file)).and_then(|done| {
        file.sync_all()
            .with_context(|| format!("cannot write {}", to.display()))?;
        Ok(done)
    });
    if done.is_err() {
        // Half a backup is worse than none.
        let _ = fs::remove_file(to);
    }
    done
}

fn write(state: &Path, out: impl Write) -> anyhow::Result<Done> {
    let mut archive = Archive {
        out,
        files: Vec::new(),
    };
    let ca = state.join("ca");
    for name in sorted_names(&ca)? {
        archive.file(&format!("ca/{name}"), &ca.join(&name))?;
    }
    let upto = history(state, &mut archive)?;
    let checkpoint = state.join("checkpoint");
    if checkpoint.exists() {
        archive.file("checkpoint", &checkpoint)?;
    }
    log(state, upto, &mut archive)?;
    for name in DATABASES {
        if state.join(name).exists() {
            database(state, name, &mut archive)?;
        }
    }
    archive.finish()
}

/// Copies what the manifest names. Every file is opened before the first is copied, so that what a running aggregator
/// packs meanwhile is still read as it was.
fn history(state: &Path, archive: &mut Archive<impl Write>) -> anyhow::Result<u64> {
    let folder = state.join("history");
    if !folder.join(manifest::MANIFEST).exists() {
        return Ok(0);
    }
    let storage = DiskStorage::open_to_read(&folder)?;
    for _ in 0..ATTEMPTS {
        let bytes = fs::read(folder.join(manifest::MANIFEST))?;
        let Some(known) = manifest::read(&storage)? else {
            return Ok(0);
        };
        let groups = known.groups.iter().flatten().map(|group| &group.file);
        let names = known.files.iter().map(|file| &file.name).chain(groups);
        let opened: io::Result<Vec<(String, File)>> = names
            .map(|name| Ok((name.clone(), File::open(folder.join(name))?)))
            .collect();
        let unchanged = fs::read(folder.join(manifest::MANIFEST))? == bytes;
        match opened {
            Ok(files) if unchanged => {
                archive.bytes("history/manifest", &bytes)?;
                for (name, file) in files {
                    archive.open_file(&format!("history/{name}"), &file)?;
                }
                return Ok(known.upto);
            }
            Err(error) if unchanged => {
                return Err(error).context(
                    "a file of the history cannot be read; muster-aggregator check-store",
                );
            }
            _ => {}
        }
    }
    bail!("the history changed {ATTEMPTS} times while it was looked at; try again")
}

/// How often a history that changes at the wrong moment is looked at again.
const ATTEMPTS: u32 = 20;

/// Copies the segments that hold anything behind record `upto`; the newest as far as it goes now, which a start cuts at the
/// last whole record.
fn log(state: &Path, upto: u64, archive: &mut Archive<impl Write>) -> anyhow::Result<()> {
    let folder = state.join("log");
    if !folder.exists() {
        return Ok(());
    }
    let mut segments: Vec<(u64, String)> = sorted_names(&folder)?
        .into_iter()
        .filter_map(|name| {
            let first = name.strip_suffix(".seg")?.split_once('-')?.1;
            Some((u64::from_str_radix(first, 16).ok()?, name))
        })
        .collect();
    segments.sort();
    let needed = segments
        .iter()
        .rposition(|(first, _)| *first <= upto + 1)
        .unwrap_or(0);
    for (_, name) in &segments[needed..] {
        match File::open(folder.join(name)) {
            Ok(file) => archive.open_file(&format!("log/{name}"), &file)?,
            // Released since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(format!("cannot read log/{name}")),
        }
    }
    Ok(())
}

/// Copies a database as it is at one moment.
fn database(state: &Path, name: &str, archive: &mut Archive<impl Write>) -> anyhow::Result<()> {
    let copy = Scratch(state.join(format!("{name}.backup-{}", std::process::id())));
    let connection = rusqlite::Connection::open_with_flags(
        state.join(name),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .with_context(|| format!("cannot open {name}"))?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    // Made here with its mode, so that the copy is nobody else's for a moment either.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&copy.0)?;
    let path = copy
        .0
        .to_str()
        .context("the state folder's name is not UTF-8")?;
    connection
        .execute("VACUUM INTO ?1", [path])
        .with_context(|| format!("cannot copy {name}"))?;
    archive.file(name, &copy.0)
}

/// A file that is removed again.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it stays, it says by its name what it is.
        let _ = fs::remove_file(&self.0);
    }
}

fn sorted_names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A tar archive that is being written.
struct Archive<W: Write> {
    out: W,
    files: Vec<Entry>,
}

impl<W: Write> Archive<W> {
    fn file(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.open_file(name, &file)
    }

    /// Copies what the file has now; what is appended meanwhile is left out.
    fn open_file(&mut self, name: &str, file: &File) -> anyhow::Result<()> {
        let bytes = file.metadata()?.len();
        self.out.write_all(&header(name, bytes)?)?;
        let mut source = BufReader::new(file).take(bytes);
        let (mut copied, mut checksum) = (0u64, 0);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = source
                .read(&mut buffer)
                .with_context(|| format!("cannot read {name}"))?;
            if read == 0 {
                break;
            }
            checksum = crc32c::crc32c_append(checksum, &buffer[..read]);
            self.out
                .write_all(&buffer[..read])
                .context("cannot write the backup")?;
            copied += read as u64;
        }
        ensure!(
            copied == bytes,
            "{name} became shorter while it was read; try again"
        );
        self.pad(bytes)?;
        self.note(name, bytes, checksum);
        Ok(())
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.out.write_all(&header(name, bytes.len() as u64)?)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)?;
        self.note(name, bytes.len() as u64, crc32c::crc32c(bytes));
        Ok(())
    }

    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        let over = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
        self.out.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
    }

    fn note(&mut self, name: &str, bytes: u64, crc32c: u32) {
        self.files.push(Entry {
            name: name.to_owned(),
            bytes,
            crc32c,
        });
    }

    fn finish(mut self) -> anyhow::Result<Done> {
        let done = Done {
            files: self.files.len() as u64,
            bytes: self.files.iter().map(|file| file.bytes).sum(),
        };
        let list = List {
            version: VERSION,
            program: format!("muster-aggregator {}", env!("CARGO_PKG_VERSION")),
            files: std::mem::take(&mut self.files),
        };
        self.bytes(LIST, &serde_json::to_vec_pretty(&list)?)?;
        self.out.write_all(&[0; BLOCK * 2])?;
        self.out.flush().context("cannot write the backup")?;
        Ok(done)
    }
}

/// An entry's header (POSIX.1-1988 ustar): numbers are octal digits.
fn header(name: &str, bytes: u64) -> anyhow::Result<[u8; BLOCK]> {
    ensure!(
        name.len() < 100,
        "{name} is too long a name for the archive"
    );
    // 11 octal digits.
    ensure!(bytes < 1 << 33, "{name} is larger than 8 GiB");
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{bytes:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

/// Name and length of an entry; `None` at the archive's end.
fn parse_header(block: &[u8; BLOCK]) -> anyhow::Result<Option<(String, u64)>> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let octal = |range: std::ops::Range<usize>| {
        let text = std::str::from_utf8(&block[range]).ok()?;
        u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
    };
    let mut blank = *block;
    blank[148..156].fill(b' ');
    let sum: u64 = blank.iter().map(|byte| u64::from(*byte)).sum();
    ensure!(
        octal(148..156) == Some(sum),
        "this is no backup, or it is damaged"
    );
    let end = block[..100]
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(100);
    let name = std::str::from_utf8(&block[..end]).context("a name in the backup is damaged")?;
    let bytes = octal(124..136).context("a length in the backup is damaged")?;
    Ok(Some((name.to_owned(), bytes)))
}

/// Unpacks a backup into a state folder that is new or empty; `-` is standard input.
///
/// It is unpacked into a folder of its own in there, made durable, and only then moved to its place, the authority last:
/// whatever ends it, nothing is there that a service takes for a state and that is half of one. What an earlier restore
/// left that was ended is removed.
///
/// # Errors
/// When the folder is not empty, or the backup is not whole. Then the folder is as it was.
pub fn restore(from: &Path, state: &Path) -> anyhow::Result<Done> {
    let restoring = state.join(RESTORING);
    let authority = state.join("ca");
    if restoring.exists() && !authority.exists() {
        empty(state);
    }
    let is_empty = match fs::read_dir(state) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", state.display()));
        }
    };
    ensure!(
        is_empty,
        "{} is not empty; a restore never replaces anything: stop the aggregator and move the folder away first",
        state.display()
    );
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&restoring)?;
    let done = if from == Path::new("-") {
        unpack(io::stdin().lock(), &restoring)
    } else {
        File::open(from)
            .with_context(|| format!("cannot read {}", from.display()))
            .and_then(|file| unpack(BufReader::new(file), &restoring))
    };
    let done = done.and_then(|done| {
        put_in_place(&restoring, state)
            .with_context(|| format!("cannot move what was unpacked to {}", state.display()))?;
        Ok(done)
    });
    if done.is_err() && !authority.exists() {
        empty(state);
    }
    done
}

/// Moves what was unpacked, which is durable, to its place. Without an authority no aggregator starts: it comes last, when
/// all else is there and belongs to whom it must.
fn put_in_place(restoring: &Path, state: &Path) -> anyhow::Result<()> {
    setup::hand_over(state)?;
    for name in ["history", "log", "checkpoint"].iter().chain(&DATABASES) {
        match fs::rename(restoring.join(name), state.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    File::open(state)?.sync_all()?;
    fs::rename(restoring.join("ca"), state.join("ca"))?;
    File::open(state)?.sync_all()?;
    fs::remove_dir(restoring)?;
    Ok(())
}

/// Removes what an unfinished restore left.
fn empty(state: &Path) {
    for name in ["history", "log", RESTORING] {
        let _ = fs::remove_dir_all(state.join(name));
    }
    for name in ["checkpoint"].iter().chain(&DATABASES) {
        let _ = fs::remove_file(state.join(name));
    }
}

fn unpack(mut input: impl Read, state: &Path) -> anyhow::Result<Done> {
    let mut unpacked: Vec<Entry> = Vec::new();
    loop {
        let mut block = [0; BLOCK];
        input
            .read_exact(&mut block)
            .context("the backup is cut off")?;
        let Some((name, bytes)) = parse_header(&block)? else {
            bail!("the backup is cut off: it does not say that it is whole");
        };
        let padding = (BLOCK as u64 - bytes % BLOCK as u64) % BLOCK as u64;
        if name == LIST {
            ensure!(bytes <= MAX_LIST_BYTES, "the backup's list is damaged");
            let mut list = Vec::new();
            (&mut input).take(bytes).read_to_end(&mut list)?;
            return whole(&list, &unpacked, state);
        }
        let path = state.join(safe(&name)?);
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        let checksum =
            copy(&mut input, bytes, &path).with_context(|| format!("cannot unpack {name}"))?;
        io::copy(&mut (&mut input).take(padding), &mut io::sink())?;
        unpacked.push(Entry {
            name,
            bytes,
            crc32c: checksum,
        });
    }
}

fn copy(input: &mut impl Read, bytes: u64, path: &Path) -> anyhow::Result<u32> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let (mut left, mut checksum) = (bytes, 0);
    let mut buffer = vec![0; 256 * 1024];
    while left > 0 {
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = input.read(&mut buffer[..most])?;
        ensure!(read > 0, "the backup is cut off");
        checksum = crc32c::crc32c_append(checksum, &buffer[..read]);
        file.write_all(&buffer[..read])?;
        left -= read as u64;
    }
    file.sync_all()?;
    Ok(checksum)
}

/// A name that a backup may have: a file, or one in one of the folders.
fn safe(name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(name);
    let parts: Vec<Component<'_>> = path.components().collect();
    let plain = parts
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    let known = match parts.as_slice() {
        [Component::Normal(file)] => {
            *file == "checkpoint" || DATABASES.iter().any(|name| file == name)
        }
        [Component::Normal(folder), _] => {
            ["ca", "history", "log"].iter().any(|known| folder == known)
        }
        _ => false,
    };
    ensure!(plain && known, "{name:?} is nothing that a backup holds");
    Ok(path.to_owned())
}

fn whole(list: &[u8], unpacked: &[Entry], state: &Path) -> anyhow::Result<Done> {
    let list: List = serde_json::from_slice(list).context("the backup's list is damaged")?;
    ensure!(
        list.version <= VERSION,
        "the backup is of a newer program ({}); restore it with that one",
        list.program
    );
    for expected in &list.files {
        let found = unpacked.iter().find(|entry| entry.name == expected.name);
        ensure!(
            found == Some(expected),
            "{} is damaged in the backup",
            expected.name
        );
    }
    ensure!(
        list.files.len() == unpacked.len(),
        "the backup holds what its list does not name"
    );
    for folder in ["ca", "history", "log", ""] {
        match File::open(state.join(folder)) {
            Ok(folder) => folder.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Done {
        files: unpacked.len() as u64,
        bytes: unpacked.iter().map(|entry| entry.bytes).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        for name in ["ca", "log"] {
            fs::create_dir(path.join(name)).expect("a folder");
        }
        fs::write(path.join("ca/root.key"), "secret").expect("written");
        fs::write(path.join("checkpoint"), vec![7; 1000]).expect("written");
        fs::write(
            path.join("log/0000000000000000-0000000000000001.seg"),
            vec![1; 512],
        )
        .expect("written");
        let database = rusqlite::Connection::open(path.join("control.db")).expect("opened");
        database
            .execute_batch("create table t (x); insert into t values (42);")
            .expect("filled");
        folder
    }

    #[test]
    fn what_is_backed_up_is_restored() {
        use std::os::unix::fs::PermissionsExt as _;

        let from = state();
        let file = from.path().join("b.tar");
        let done = backup(from.path(), &file).expect("backed up");
        assert_eq!(done.files, 4);
        let mode = fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            backup(from.path(), &file).is_err(),
            "it never replaces a file"
        );

        let to = tempfile::tempdir().expect("a folder");
        let state = to.path().join("state");
        assert_eq!(restore(&file, &state).expect("restored"), done);
        for name in [
            "ca/root.key",
            "checkpoint",
            "log/0000000000000000-0000000000000001.seg",
        ] {
            let read = |folder: &Path| fs::read(folder.join(name)).expect("read");
            assert_eq!(read(&state), read(from.path()), "{name}");
        }
        let database = rusqlite::Connection::open(state.join("control.db")).expect("opened");
        let x: i64 = database
            .query_row("select x from t", [], |row| row.get(0))
            .expect("there");
        assert_eq!(x, 42);
        assert!(restore(&file, &state).is_err(), "it never replaces a state");
    }

    #[test]
    fn a_damaged_backup_leaves_nothing() {
        let from = state();
        let file = from.path().join("b.tar");
        backup(from.path(), &file).expect("backed up");
        let good = fs::read(&file).expect("read");
        let to = tempfile::tempdir().expect("a folder");
        let state = to.path().join("state");
        for at in [0, 514, 1100, 2600, good.len() - 2000] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).expect("written");
            assert!(restore(&file, &state).is_err(), "byte {at}");
            assert_eq!(fs::read_dir(&state).expect("there").count(), 0, "byte {at}");
        }
        for len in [0, 100, 512, 2000, good.len() - 3000] {
            fs::write(&file, &good[..len]).expect("written");
            assert!(restore(&file, &state).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn what_a_killed_restore_left_is_no_state_and_is_removed() {
        let from = state();
        let file = from.path().join("b.tar");
        backup(from.path(), &file).expect("backed up");
        let to = tempfile::tempdir().expect("a folder");
        let state = to.path().join("state");
        let restoring = state.join(RESTORING);
        // Killed while it unpacked, and while it moved things to their place.
        for moved in [&[][..], &["log"], &["log", "checkpoint", "control.db"]] {
            fs::create_dir_all(&restoring).expect("made");
            unpack(File::open(&file).expect("opened"), &restoring).expect("unpacked");
            for name in moved {
                fs::rename(restoring.join(name), state.join(name)).expect("moved");
            }
            assert!(!state.join("ca").exists(), "nothing that starts");
            restore(&file, &state).expect("restored");
            assert!(!restoring.exists());
            assert!(state.join("ca/root.key").exists());
            fs::remove_dir_all(&state).expect("removed");
        }
        // Killed at the very end: a state, and not to be touched.
        restore(&file, &state).expect("restored");
        fs::create_dir(&restoring).expect("made");
        assert!(restore(&file, &state).is_err());
        assert!(state.join("ca/root.key").exists());
    }

    #[test]
    fn names_stay_within_the_folder() {
        for name in [
            "../x",
            "/etc/passwd",
            "ca/../../x",
            "ca/a/b",
            "bin/x",
            "ca",
            "",
            "x",
        ] {
            assert!(safe(name).is_err(), "{name}");
        }
        assert!(safe("history/raw-000000-0-1.mhb").is_ok());
    }
}
