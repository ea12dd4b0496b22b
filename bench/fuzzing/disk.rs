//! What lies on disks: the log, the spool, the checkpoint, the control database, an agent's identity.
//!
//! One file of a valid folder is changed; the program opens the folder as it does at a start.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use muster_agent::{
    enrol,
    identity::Identity,
    spool::{Spool, SpoolLimits, Spooled},
};
use muster_aggregator::{
    control::{Control, TokenOptions},
    enrol::EnrolDoor,
    fleet::checkpoint::{self, Checkpoint},
    listen::{Counters, Limits},
    pki::{Authority, Doors},
};
use muster_proto::{
    id::Incarnation,
    log::{DiskStorage, Log, LogConfig},
    time::{Clock, SystemClock, Timestamp},
    v1,
};
use tokio_util::sync::CancellationToken;

use crate::Target;

/// Records of the log that is changed.
const RECORDS: u64 = 60;

/// Frames of each life in the spool that is changed.
const FRAMES: u64 = 40;

/// All of them, in folders below `scratch`.
pub(crate) fn targets(scratch: &Path) -> anyhow::Result<Vec<Box<dyn Target>>> {
    Ok(vec![
        Box::new(Folder::make("log", scratch, make_log, read_log)?),
        Box::new(Folder::make("spool", scratch, make_spool, read_spool)?),
        Box::new(Folder::make(
            "checkpoint",
            scratch,
            make_checkpoint,
            read_checkpoint,
        )?),
        Box::new(Folder::make(
            "database",
            scratch,
            make_database,
            read_database,
        )?),
        Box::new(Folder::make(
            "identity",
            scratch,
            make_identity,
            read_identity,
        )?),
    ])
}

/// A folder of which one file is changed.
struct Folder {
    name: &'static str,
    place: std::path::PathBuf,
    /// Paths below the folder, and contents.
    files: Vec<(std::path::PathBuf, Vec<u8>)>,
    read: fn(&Path) -> anyhow::Result<bool>,
    /// Cases so far. Each has a folder of its own: what the case before opened may still be closing.
    cases: u64,
}

impl Folder {
    fn make(
        name: &'static str,
        scratch: &Path,
        make: fn(&Path) -> anyhow::Result<()>,
        read: fn(&Path) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Self> {
        let place = scratch.join(name);
        fs::create_dir(&place)?;
        make(&place).with_context(|| format!("cannot make a valid {name}"))?;
        let mut files = Vec::new();
        collect(&place, Path::new(""), &mut files)?;
        // Locks and such have nothing that could be changed.
        ensure!(
            files.iter().any(|(_, bytes)| !bytes.is_empty()),
            "{name} has no bytes"
        );
        files.sort();
        Ok(Self {
            name,
            place,
            files,
            read,
            cases: 0,
        })
    }
}

fn collect(
    place: &Path,
    below: &Path,
    files: &mut Vec<(std::path::PathBuf, Vec<u8>)>,
) -> anyhow::Result<()> {
    for entry in fs::read_dir(place.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(place, &path, files)?;
        } else {
            files.push((path.clone(), fs::read(place.join(&path))?));
        }
    }
    Ok(())
}

impl Target for Folder {
    fn name(&self) -> &'static str {
        self.name
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        self.files.iter().map(|(_, bytes)| bytes.clone()).collect()
    }

    fn read(&mut self, at: usize, bytes: &[u8]) -> anyhow::Result<bool> {
        // Gone with the scratch folder at the latest.
        let _ = fs::remove_dir_all(self.place.join(self.cases.to_string()));
        self.cases += 1;
        let folder = self.place.join(self.cases.to_string());
        fs::create_dir_all(&folder)?;
        for (place, (path, original)) in self.files.iter().enumerate() {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().context("below the folder")?)?;
            private(&path, if place == at { bytes } else { original })?;
        }
        (self.read)(&folder)
    }
}

/// Keys must not be readable by others.
fn private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(bytes)?)
}

fn record(number: u64) -> Vec<u8> {
    format!(
        "record {number} {}",
        "x".repeat(usize::try_from(number % 50).unwrap_or(0))
    )
    .into_bytes()
}

fn make_log(folder: &Path) -> anyhow::Result<()> {
    let config = LogConfig {
        segment_bytes: 1024,
        ..LogConfig::aggregator()
    };
    let (mut log, _) = Log::open(DiskStorage::open(folder)?, config)?;
    for number in 1..=RECORDS {
        ensure!(log.append(1, &record(number))? == number, "numbers from 1");
        log.commit()?;
    }
    Ok(())
}

fn read_log(folder: &Path) -> anyhow::Result<bool> {
    let Ok((log, _)) = Log::open(DiskStorage::open(folder)?, LogConfig::aggregator()) else {
        return Ok(false);
    };
    let mut last = 0;
    for record_or_gap in log.read_from(0) {
        let Ok(found) = record_or_gap else { continue };
        ensure!(found.number > last, "record {} after {last}", found.number);
        last = found.number;
        ensure!(
            found.payload == record(last),
            "record {last} is not what was written"
        );
    }
    Ok(true)
}

fn frame(incarnation: u64, seq: u64) -> Spooled {
    let payload = Bytes::from(format!("life {incarnation} frame {seq}"));
    Spooled {
        seq,
        tick: Timestamp::from_millis(1_700_000_000_000 + i64::try_from(seq).unwrap_or(0)),
        boottime_ms: 0,
        samples: 1,
        crc32c: crc32c::crc32c(&payload),
        key: seq % 10 == 1,
        payload,
    }
}

fn limits() -> SpoolLimits {
    SpoolLimits {
        min_free_bytes: 0,
        max_age: std::time::Duration::MAX,
        ..SpoolLimits::default()
    }
}

fn make_spool(folder: &Path) -> anyhow::Result<()> {
    for incarnation in 1..=2 {
        let storage = DiskStorage::open(folder)?;
        let mut spool = Spool::open(storage, Incarnation(incarnation), limits())?;
        for seq in 1..=FRAMES {
            spool.append(&frame(incarnation, seq));
        }
        spool.commit();
    }
    Ok(())
}

fn read_spool(folder: &Path) -> anyhow::Result<bool> {
    let storage = DiskStorage::open(folder)?;
    let Ok(mut spool) = Spool::open(storage, Incarnation(3), limits()) else {
        return Ok(false);
    };
    // As many batches as there can be lives; what was read is settled, as the aggregator would.
    for _ in 0..64 {
        let batch = spool.next_batch(u64::MAX, 1 << 20);
        if batch.is_empty() {
            break;
        }
        let life = batch.incarnation;
        for found in &batch.frames {
            ensure!(
                *found == frame(life.0, found.seq) && found.seq <= FRAMES,
                "life {} frame {} is not what was written",
                life.0,
                found.seq
            );
            spool.settle(life, found.seq, found.seq);
        }
        for gap in &batch.gaps {
            spool.settle(Incarnation(gap.incarnation), gap.first, gap.last);
        }
    }
    Ok(true)
}

fn make_checkpoint(folder: &Path) -> anyhow::Result<()> {
    let checkpoint = Checkpoint {
        covers: RECORDS,
        ..Checkpoint::default()
    };
    Ok(checkpoint::write(&folder.join("checkpoint"), &checkpoint)?)
}

fn read_checkpoint(folder: &Path) -> anyhow::Result<bool> {
    match checkpoint::read(&folder.join("checkpoint")) {
        Ok(Some(found)) => {
            ensure!(found.covers == RECORDS, "covers {}", found.covers);
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn make_database(folder: &Path) -> anyhow::Result<()> {
    let control = Control::open(folder)?;
    runtime()?.block_on(async {
        for _ in 0..8 {
            let options = TokenOptions::default();
            control
                .create_token([7; 32], options, "fuzz", SystemClock.now())
                .await?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    drop(control);
    // SQLite removes the write-ahead log when the last connection closes, which the store's threads do.
    let wal = folder.join("control.db-wal");
    for _ in 0..500 {
        if !wal.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

fn read_database(folder: &Path) -> anyhow::Result<bool> {
    let Ok(control) = Control::open(folder) else {
        return Ok(false);
    };
    // Pages of SQLite carry no checksum: that it answers or says why is all that can be asked.
    Ok(runtime()?
        .block_on(control.list_tokens(SystemClock.now()))
        .is_ok())
}

/// Joins for real: the files are those of an enrolment.
fn make_identity(folder: &Path) -> anyhow::Result<()> {
    let aggregator = tempfile::tempdir()?;
    let now = SystemClock.now();
    let authority = Arc::new(Authority::init(aggregator.path(), &[], now)?);
    let control = Control::open(aggregator.path())?;
    runtime()?.block_on(async {
        let token = control
            .create_token(authority.pin(), TokenOptions::default(), "fuzz", now)
            .await?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let door = EnrolDoor {
            control,
            doors: Arc::new(Doors::new(Arc::clone(&authority), &[], now)?),
            authority,
            uplink_address: ":7443".to_owned(),
            limits: Limits::default(),
            counters: Arc::new(Counters::of("enrolment")),
            clock: Arc::new(SystemClock) as Arc<dyn Clock>,
            joined: tokio::sync::mpsc::channel(1).0,
        };
        let stop = CancellationToken::new();
        let served = tokio::spawn(door.serve(listener, stop.clone()));
        let facts = v1::HostFacts::default();
        enrol::enrol(&address.to_string(), &token, facts, folder).await?;
        stop.cancel();
        served.await?;
        Ok(())
    })
}

fn read_identity(folder: &Path) -> anyhow::Result<bool> {
    Ok(Identity::load(folder).is_ok())
}
