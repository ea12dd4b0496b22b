//! Every operation of a disk fails once, and for ever: under the aggregator's log and under an agent's spool.
//!
//! The disk is the one in memory of `proto/src/log/faulty.rs`. The same work is done again and again; in each round
//! another of its operations fails, in another way. Then the disk is well again, the work goes on, the power goes,
//! and what was reported durable must be there, as it was written, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use muster_agent::spool::{Event, Spool, SpoolLimits, Spooled};
use muster_proto::{
    id::Incarnation,
    log::{Fault, FaultyStorage, Log, LogConfig},
    time::Timestamp,
};
use serde::Serialize;

const FAULTS: [Fault; 4] = [
    Fault::NoSpace,
    Fault::InputOutput,
    Fault::ShortWrite,
    Fault::TornWrite,
];

/// Records and frames of one round, and after how many of them they are made durable.
const RECORDS: u64 = 60;
const COMMIT_EVERY: u64 = 3;

/// After the disk is well again, so many commits may fail: the log begins a new file with the first.
const COMMITS_TO_RECOVER: u32 = 2;

/// What a sweep found; all but the counts of rounds is zero in a run that ends well.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Swept {
    pub log_operations: u64,
    pub log_rounds: u64,
    pub spool_operations: u64,
    pub spool_rounds: u64,
    pub durable_checked: u64,
}

/// Sweeps both, with this seed of the crashes.
pub(crate) fn sweep(seed: u64) -> anyhow::Result<Swept> {
    let mut swept = Swept::default();
    let well = FaultyStorage::new();
    log_round(&well, seed, &mut swept).context("the log on a disk that is well")?;
    swept.log_operations = well.operations();
    let well = FaultyStorage::new();
    spool_round(&well, seed, &mut swept).context("the spool on a disk that is well")?;
    swept.spool_operations = well.operations();
    for fault in FAULTS {
        for for_ever in [false, true] {
            for operation in 0..swept.log_operations {
                let disk = FaultyStorage::new();
                disk.fail(operation, fault, for_ever);
                log_round(&disk, seed ^ operation, &mut swept).with_context(|| {
                    format!("log: {fault:?} at operation {operation}, for ever: {for_ever}")
                })?;
                swept.log_rounds += 1;
            }
            for operation in 0..swept.spool_operations {
                let disk = FaultyStorage::new();
                disk.fail(operation, fault, for_ever);
                spool_round(&disk, seed ^ operation, &mut swept).with_context(|| {
                    format!("spool: {fault:?} at operation {operation}, for ever: {for_ever}")
                })?;
                swept.spool_rounds += 1;
            }
        }
    }
    Ok(swept)
}

/// What stands in record `number`, written for the `times`-th time: another text if a number were given twice.
fn contents(times: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(times);
    let length = random.usize(50..700);
    (0..length).map(|_| random.u8(..)).collect()
}

fn log_config() -> LogConfig {
    LogConfig {
        // Small, so that files are made and removed all the time.
        segment_bytes: 4096,
        ..LogConfig::aggregator()
    }
}

fn log_round(disk: &FaultyStorage, seed: u64, swept: &mut Swept) -> anyhow::Result<()> {
    let mut written: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut durable, mut released) = (0, 0);
    // A start may fail with the disk; the next one does not.
    let opened = Log::open(disk.clone(), log_config());
    let mut log = match opened {
        Ok((log, _)) => log,
        Err(_) => {
            disk.heal();
            Log::open(disk.clone(), log_config())?.0
        }
    };
    for times in 1..=RECORDS {
        if let Ok(number) = log.append(1, &contents(times)) {
            written.insert(number, times);
        }
        if times % COMMIT_EVERY == 0
            && let Ok(to) = log.commit()
        {
            durable = durable.max(to);
        }
        if times % 20 == 0 && durable > 10 {
            // One that fails may have removed some.
            released = durable - 10;
            let _ = log.release_before(released);
        }
    }
    disk.heal();
    let mut failures = 0;
    durable = loop {
        match log.commit() {
            Ok(to) => break durable.max(to),
            Err(error) => {
                failures += 1;
                ensure!(
                    failures <= COMMITS_TO_RECOVER,
                    "it does not recover: {error}"
                );
            }
        }
    };
    drop(log);
    disk.crash(seed);
    let (log, _) = Log::open(disk.clone(), log_config())?;
    let mut found = BTreeSet::new();
    for record in log.read_from(1) {
        let record = record.context("a hole")?;
        let times = written.get(&record.number);
        let times = times.with_context(|| format!("record {} was never written", record.number))?;
        ensure!(
            record.payload == contents(*times),
            "record {} is another",
            record.number
        );
        ensure!(
            found.insert(record.number),
            "record {} twice",
            record.number
        );
    }
    for number in written
        .keys()
        .filter(|number| **number > released && **number <= durable)
    {
        ensure!(
            found.contains(number),
            "record {number} of {durable} durable ones is gone"
        );
        swept.durable_checked += 1;
    }
    Ok(())
}

fn spool_frame(seq: u64) -> Spooled {
    let payload = contents(seq);
    Spooled {
        seq,
        tick: Timestamp::from_millis(1_795_000_000_000 + i64::try_from(seq).unwrap_or(0) * 1000),
        boottime_ms: 0,
        samples: 1,
        crc32c: crc32c::crc32c(&payload),
        key: seq % 5 == 1,
        payload: payload.into(),
    }
}

fn spool_round(disk: &FaultyStorage, seed: u64, swept: &mut Swept) -> anyhow::Result<()> {
    let limits = SpoolLimits {
        min_free_bytes: 0,
        ..SpoolLimits::default()
    };
    let first = Incarnation(7);
    let opened = Spool::open(disk.clone(), first, limits);
    let mut spool = match opened {
        Ok(spool) => spool,
        Err(_) => {
            disk.heal();
            Spool::open(disk.clone(), first, limits)?
        }
    };
    let mut durable = BTreeSet::new();
    let mut gone = BTreeSet::new();
    // After a hole only a key frame is taken; the agent's encoder makes one when it is asked.
    let mut wants_key = false;
    for seq in 1..=RECORDS {
        let mut frame = spool_frame(seq);
        frame.key |= wants_key;
        wants_key = false;
        spool.append(&frame);
        if seq % COMMIT_EVERY == 0 {
            spool.commit();
        }
        if seq == RECORDS / 2 {
            spool.settle(first, 1, 10);
            gone.extend(1..=10);
        }
        if seq == RECORDS - 5 {
            disk.heal();
            spool.probe();
        }
        for event in spool.take_events() {
            match event {
                Event::Durable { first, last } => durable.extend(first..=last),
                Event::Dropped(missing) => gone.extend(missing.first..=missing.last),
                Event::WantKey => wants_key = true,
                Event::LossReason(_) | Event::Outlined(_) | Event::Due => {}
            }
        }
    }
    disk.heal();
    drop(spool);
    disk.crash(seed);
    let mut spool = Spool::open(disk.clone(), Incarnation(8), limits)?;
    let mut found = BTreeSet::new();
    loop {
        let batch = spool.next_batch(u64::MAX, 64 * 1024);
        if batch.is_empty() {
            break;
        }
        for frame in &batch.frames {
            let wanted = spool_frame(frame.seq);
            ensure!(
                frame.payload == wanted.payload,
                "frame {} is another",
                frame.seq
            );
            found.insert(frame.seq);
        }
        gone.extend(batch.gaps.iter().flat_map(|gap| gap.first..=gap.last));
    }
    for seq in durable.difference(&gone) {
        ensure!(
            found.contains(seq),
            "frame {seq}, told durable, is gone without a word"
        );
        swept.durable_checked += 1;
    }
    Ok(())
}
