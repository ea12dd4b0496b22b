//! The log as its callers see it; what crashes, failing disks and damage do to it is in the files below.

mod damage;
mod faults;
mod model;

use super::*;

/// Segments so small that a few records fill one.
fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 256,
        ..LogConfig::aggregator()
    }
}

fn open(storage: &FaultyStorage) -> (Log<FaultyStorage>, Recovery) {
    Log::open(storage.clone(), small()).expect("nothing fails")
}

/// The payload of the record with this number in tests that need no other: 0 to 59 bytes of it.
fn payload(number: u64) -> Vec<u8> {
    let len = usize::try_from(number * 7 % 60).expect("below 60");
    vec![number.to_le_bytes()[0]; len]
}

/// A log of `records` committed records over several segments.
fn filled(records: u64) -> FaultyStorage {
    let storage = FaultyStorage::new();
    let (mut log, _) = open(&storage);
    for number in 1..=records {
        let given = log.append(1, &payload(number)).expect("there is room");
        assert_eq!(given, number);
        if number % 3 == 0 || number == records {
            log.commit().expect("nothing fails");
        }
    }
    storage
}

fn numbers(log: &Log<FaultyStorage>, from: u64) -> Vec<u64> {
    let records = log.read_from(from).map(|record| record.expect("no damage"));
    records
        .inspect(|record| assert_eq!(record.payload, payload(record.number)))
        .map(|record| record.number)
        .collect()
}

#[test]
fn numbers_go_on_over_segments_and_restarts() {
    let storage = filled(40);
    let (mut log, recovery) = open(&storage);
    assert_eq!(
        recovery,
        Recovery {
            records: 40,
            ..Recovery::default()
        }
    );
    assert!(log.segments().len() > 4);
    assert_eq!(log.append(1, &payload(41)).expect("there is room"), 41);
    assert_eq!(
        numbers(&log, 1),
        (1..=40).collect::<Vec<_>>(),
        "not committed, not read"
    );
    assert_eq!(log.commit().expect("nothing fails"), 41);
    assert_eq!(numbers(&log, 33), (33..=41).collect::<Vec<_>>());
    assert_eq!(numbers(&log, 42), []);
    let on_disk: usize = storage.files().values().map(Vec::len).sum();
    assert_eq!(log.bytes_on_disk(), on_disk as u64);
}

#[test]
fn a_commit_is_one_write_and_one_sync() {
    let storage = FaultyStorage::new();
    let (mut log, _) = Log::open(storage.clone(), LogConfig::aggregator()).expect("nothing fails");
    log.append(1, b"makes the segment").expect("there is room");
    log.commit().expect("nothing fails");
    let before = storage.operations();
    for _ in 0..1000 {
        log.append(1, &[7; 200]).expect("there is room");
    }
    log.commit().expect("nothing fails");
    assert_eq!(storage.operations() - before, 2);
    log.commit().expect("nothing to do");
    assert_eq!(storage.operations() - before, 2);
}

#[test]
fn a_flush_is_one_write_and_survives_the_process() {
    let storage = FaultyStorage::new();
    let (mut log, _) = Log::open(storage.clone(), LogConfig::aggregator()).expect("nothing fails");
    log.append(1, b"makes the segment").expect("there is room");
    log.flush().expect("nothing fails");
    let before = storage.operations();
    for _ in 0..3 {
        log.append(1, b"more").expect("there is room");
        log.flush().expect("nothing fails");
    }
    assert_eq!((storage.operations() - before, log.durable()), (3, 1));
    drop(log);
    let (log, _) = Log::open(storage, LogConfig::aggregator()).expect("nothing fails");
    assert_eq!(log.read_from(1).filter_map(Result::ok).count(), 4);
}

#[test]
fn what_a_failed_flush_left_behind_is_written_anew() {
    for (fault, synced) in [(Fault::TornWrite, false), (Fault::InputOutput, true)] {
        let storage = FaultyStorage::new();
        let (mut log, _) = open(&storage);
        log.append(1, &payload(1)).expect("there is room");
        log.commit().expect("nothing fails");
        log.append(1, &payload(2)).expect("there is room");
        log.flush().expect("nothing fails");
        log.append(1, &payload(3)).expect("there is room");
        // The write of the flush fails, or the sync of a commit after it.
        storage.fail(u64::from(synced), fault, false);
        let failed = log.flush().and_then(|()| log.commit().map(drop));
        failed.expect_err("the disk fails");
        assert_eq!(log.commit().expect("the disk is well"), 3, "{fault:?}");
        assert_eq!(numbers(&log, 1), [1, 2, 3]);
        storage.crash(1);
        assert_eq!(numbers(&open(&storage).0, 1), [1, 2, 3], "{fault:?}");
    }
}

#[test]
fn release_takes_whole_segments_and_keeps_the_newest() {
    let storage = filled(40);
    let (mut log, _) = open(&storage);
    log.release_before(20).expect("nothing fails");
    let first = log.first();
    assert!((10..=20).contains(&first), "{first}");
    assert_eq!(
        numbers(&log, 1),
        (first..=40).collect::<Vec<_>>(),
        "what is released is no gap"
    );
    log.release_before(u64::MAX).expect("nothing fails");
    assert_eq!(log.segments().len(), 1);
    let (log, recovery) = open(&storage);
    assert_eq!((log.next(), recovery.missing.len()), (41, 0));
}

#[test]
fn bounds_are_refused_and_change_nothing() {
    let config = LogConfig {
        pending_bytes_max: 3000,
        ..small()
    };
    let (mut log, _) = Log::open(FaultyStorage::new(), config).expect("nothing fails");
    let long = vec![0; MAX_PAYLOAD_BYTES + 1];
    assert!(matches!(
        log.append(1, &long),
        Err(LogError::PayloadTooLarge { .. })
    ));
    assert_eq!(log.append(1, &[1; 2000]).expect("it fits"), 1);
    assert!(matches!(
        log.append(1, &[1; 2000]),
        Err(LogError::Backlog {
            pending_bytes: 2020
        })
    ));
    assert_eq!(log.commit().expect("longer than a segment is allowed"), 1);
    assert_eq!(log.append(1, &[1; 2000]).expect("there is room again"), 2);

    let config = LogConfig {
        next_at_least: u64::MAX,
        ..small()
    };
    let (mut log, _) = Log::open(FaultyStorage::new(), config).expect("nothing fails");
    assert!(matches!(log.append(1, b""), Err(LogError::Exhausted)));
}

#[test]
fn the_longest_record_survives_small_segments() {
    let storage = FaultyStorage::new();
    let (mut log, _) = open(&storage);
    for byte in 1..=3 {
        log.append(byte, &vec![byte; MAX_PAYLOAD_BYTES])
            .expect("the longest allowed");
        log.append(byte, b"short").expect("there is room");
    }
    log.commit().expect("nothing fails");
    let (log, _) = open(&storage);
    let read: Vec<_> = log.read_from(1).map(|r| r.expect("no damage")).collect();
    let shape: Vec<_> = read
        .iter()
        .map(|r| (r.number, r.kind, r.payload.len()))
        .collect();
    let long = MAX_PAYLOAD_BYTES;
    assert_eq!(
        shape,
        [
            (1, 1, long),
            (2, 1, 5),
            (3, 2, long),
            (4, 2, 5),
            (5, 3, long),
            (6, 3, 5)
        ]
    );
}

#[test]
fn streams_share_a_folder_without_seeing_each_other() {
    let storage = filled(10);
    let spool = LogConfig {
        segment_bytes: 256,
        ..LogConfig::spool(9)
    };
    let (mut log, recovery) = Log::open(storage.clone(), spool).expect("nothing fails");
    assert_eq!(recovery, Recovery::default());
    assert_eq!(log.append(1, b"mine").expect("there is room"), 1);
    log.commit().expect("nothing fails");
    assert_eq!(streams(&storage).expect("nothing fails"), [0, 9]);
    log.remove_all().expect("nothing fails");
    assert_eq!(streams(&storage).expect("nothing fails"), [0]);
    assert_eq!(open(&storage).1.records, 10);
}

#[test]
fn a_number_noted_elsewhere_is_not_given_again() {
    let config = LogConfig {
        next_at_least: 50,
        ..small()
    };
    let storage = filled(10);
    let (mut log, recovery) = Log::open(storage.clone(), config).expect("nothing fails");
    assert_eq!(recovery.missing, [11..=49]);
    assert_eq!(log.append(1, &payload(50)).expect("there is room"), 50);
    log.commit().expect("nothing fails");
    let read: Vec<_> = log
        .read_from(10)
        .map(|r| r.map(|r| r.number).map_err(|g| g.to_string()))
        .collect();
    let gap = "records 11 to 49 are in no segment".to_owned();
    assert_eq!(read, [Ok(10), Err(gap), Ok(50)]);
}

#[test]
fn a_real_disk_keeps_what_was_committed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk = DiskStorage::open(folder.path()).expect("the folder opens");
    let (mut log, _) = Log::open(disk, small()).expect("nothing fails");
    for number in 1..=30 {
        log.append(2, &payload(number)).expect("there is room");
        log.commit().expect("nothing fails");
    }
    log.append(2, b"not committed").expect("there is room");
    log.release_before(12).expect("nothing fails");
    let first = log.first();
    drop(log);
    let disk = DiskStorage::open(folder.path()).expect("the lock is given back");
    let (log, recovery) = Log::open(disk, small()).expect("nothing fails");
    assert_eq!(
        recovery,
        Recovery {
            records: 31 - first,
            ..Recovery::default()
        }
    );
    let read = log.read_from(1).map(|record| record.expect("no damage"));
    assert!(
        read.map(|r| (r.number, r.payload))
            .eq((first..=30).map(|n| (n, payload(n))))
    );
}
