//! Every operation of a fixed piece of work fails once, each in each way, for a moment or for good.

use std::collections::BTreeMap;

use super::*;

const FAULTS: [Fault; 4] = [
    Fault::NoSpace,
    Fault::InputOutput,
    Fault::ShortWrite,
    Fault::TornWrite,
];

/// What the log has claimed, to be held against it.
#[derive(Default)]
struct Claims {
    appended: BTreeMap<u64, Vec<u8>>,
    durable: u64,
    released: u64,
    /// Makes every payload different, so that no record can pass for another.
    serial: u32,
}

impl Claims {
    /// Two lives of a log: records over several segments, a release, a restart, more records. Errors are
    /// what the disk's fault makes them; what is reported durable is noted.
    fn work(&mut self, storage: &FaultyStorage) -> Option<Log<FaultyStorage>> {
        let mut log = Log::open(storage.clone(), small()).ok()?.0;
        self.rounds(&mut log);
        drop(log);
        let mut log = Log::open(storage.clone(), small()).ok()?.0;
        self.rounds(&mut log);
        Some(log)
    }

    fn rounds(&mut self, log: &mut Log<FaultyStorage>) {
        for round in 0..8 {
            for _ in 0..3 {
                self.append(log);
            }
            let result = log.commit();
            assert!(log.durable() >= self.durable, "durable is not taken back");
            self.durable = log.durable();
            assert!(result.is_err() || self.durable + 1 == log.next());
            if round == 3 {
                let below = log.durable().saturating_sub(5);
                self.released = self.released.max(below);
                let _ = log.release_before(below);
            }
        }
    }

    fn append(&mut self, log: &mut Log<FaultyStorage>) {
        self.serial += 1;
        let mut payload = self.serial.to_le_bytes().to_vec();
        // Two commits to a segment, so that a failed one leaves its bytes behind committed records.
        payload.resize(12, 0xAA);
        let number = log.append(1, &payload).expect("there is room in memory");
        assert!(number > self.durable, "{number} is in use");
        self.appended.insert(number, payload);
    }

    /// All that was claimed is there, once, in order, and nothing that was never written.
    fn hold(&self, log: &Log<FaultyStorage>, case: &str) {
        let mut last = 0;
        let mut read = BTreeMap::new();
        for record in log.read_from(1).filter_map(Result::ok) {
            assert!(
                record.number > last,
                "{case}: {} after {last}",
                record.number
            );
            last = record.number;
            read.insert(record.number, record.payload);
        }
        for (number, payload) in &read {
            assert_eq!(
                self.appended.get(number),
                Some(payload),
                "{case}: record {number}"
            );
        }
        for number in self.appended.range(self.released..) {
            if *number.0 > self.durable {
                break;
            }
            assert!(
                read.contains_key(number.0),
                "{case}: record {} is lost",
                number.0
            );
        }
    }
}

fn operations_of_the_work() -> u64 {
    let storage = FaultyStorage::new();
    let mut claims = Claims::default();
    let log = claims.work(&storage).expect("nothing fails");
    claims.hold(&log, "no fault");
    assert_eq!(claims.durable, 48);
    storage.operations()
}

fn every_fault(check: impl Fn(&FaultyStorage, bool, u64, &str)) {
    let operations = operations_of_the_work();
    assert!(
        operations > 100,
        "the work is large enough to mean something: {operations}"
    );
    for after in 0..operations {
        for fault in FAULTS {
            for for_ever in [false, true] {
                let storage = FaultyStorage::new();
                storage.fail(after, fault, for_ever);
                let case = format!("{fault:?} after {after}, for ever: {for_ever}");
                check(&storage, for_ever, after, &case);
            }
        }
    }
}

#[test]
fn no_claim_is_broken_by_a_crash_in_the_middle_of_a_fault() {
    every_fault(|storage, _, after, case| {
        for seed in 0..4 {
            let planned = storage;
            let storage = FaultyStorage::new();
            storage.fail_like(planned);
            let mut claims = Claims::default();
            drop(claims.work(&storage));
            storage.crash(after * 4 + seed);
            storage.heal();
            let (mut log, _) = open(&storage);
            claims.hold(&log, case);
            claims.durable = log.durable();
            claims.append(&mut log);
            claims.durable = log.commit().expect("the disk is well");
            storage.crash(after);
            claims.hold(&open(&storage).0, case);
        }
    });
}

#[test]
fn a_log_goes_on_by_itself_when_the_disk_is_well_again() {
    every_fault(|storage, for_ever, after, case| {
        let mut claims = Claims::default();
        let Some(mut log) = claims.work(storage) else {
            return; // Could not be opened: the other test's business.
        };
        if for_ever {
            storage.heal();
        }
        claims.append(&mut log);
        // A passing fault may be hit by this very call, and only by one.
        let result = log.commit();
        let result = if for_ever {
            result
        } else {
            result.or_else(|_| log.commit())
        };
        claims.durable = result.unwrap_or_else(|error| unreachable!("{case}: {error}"));
        assert_eq!(
            claims.durable + 1,
            log.next(),
            "{case}: nothing waits any more"
        );
        claims.hold(&log, case);
        drop(log);
        storage.crash(after);
        let (log, recovery) = open(storage);
        claims.hold(&log, case);
        // What failed writes left behind is neither damage nor counted twice.
        let read = log.read_from(1).filter_map(Result::ok).count();
        assert_eq!(recovery.records, read as u64, "{case}");
        assert_eq!(
            (recovery.quarantined, recovery.torn_bytes),
            (vec![], 0),
            "{case}"
        );
    });
}

#[test]
fn a_full_disk_holds_back_commits_and_loses_nothing() {
    let storage = filled(20);
    let (mut log, _) = open(&storage);
    let used = log.bytes_on_disk();
    storage.limit_bytes(used + 100);
    for number in 21..=40 {
        log.append(1, &payload(number))
            .expect("there is room in memory");
    }
    for _ in 0..3 {
        let error = log.commit().expect_err("the disk is full");
        assert!(error.to_string().contains("has room"), "{error}");
    }
    assert!(log.durable() < 40);
    let on_disk: usize = storage.files().values().map(Vec::len).sum();
    assert_eq!(log.bytes_on_disk(), on_disk as u64);
    storage.limit_bytes(1 << 20);
    assert_eq!(log.commit().expect("there is room again"), 40);
    drop(log);
    storage.crash(1);
    let (log, recovery) = open(&storage);
    assert_eq!((recovery.missing, recovery.quarantined), (vec![], vec![]));
    assert_eq!(numbers(&log, 1), (1..=40).collect::<Vec<_>>());
}
