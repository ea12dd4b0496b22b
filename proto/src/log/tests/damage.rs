//! Bytes changed behind the log's back: flips, cuts, holes, lost files, files of a newer program.

use std::collections::BTreeSet;

use super::*;

const RECORDS: u64 = 40;

/// Changes one file at random, as a bad disk or a careless person would. False if it was the newest.
fn damage(storage: &FaultyStorage, random: &mut fastrand::Rng) -> bool {
    let names: Vec<String> = storage.files().into_keys().collect();
    let chosen = random.usize(..names.len());
    let name = &names[chosen];
    storage.edit(name, |bytes| match random.u8(..6) {
        _ if bytes.is_empty() => {}
        0..=2 => {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        }
        3 => bytes.truncate(random.usize(..bytes.len())),
        4 => {
            let at = random.usize(..bytes.len());
            let end = bytes.len().min(at + random.usize(1..100));
            bytes[at..end].fill_with(|| random.u8(..));
        }
        _ => bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(50)),
    });
    chosen + 1 < names.len()
}

fn copy_of(files: &std::collections::BTreeMap<String, Vec<u8>>) -> FaultyStorage {
    let storage = FaultyStorage::new();
    for (name, bytes) in files {
        storage.put(name, bytes);
    }
    storage
}

/// Numbers of what can be read, each checked to be as it was written.
fn readable(log: &Log<FaultyStorage>) -> Vec<u64> {
    let records = log.read_from(1).filter_map(Result::ok);
    records
        .inspect(|record| assert_eq!(record.payload, payload(record.number)))
        .map(|record| record.number)
        .collect()
}

#[test]
fn damage_never_stops_a_start_nor_makes_a_record_up() {
    let files = filled(RECORDS).files();
    let mut random = fastrand::Rng::with_seed(0x10C);
    for round in 0..4000 {
        let storage = copy_of(&files);
        let mut only_older = true;
        for _ in 0..random.u8(1..4) {
            only_older &= damage(&storage, &mut random);
        }
        let (mut log, recovery) = open(&storage);
        let read: BTreeSet<u64> = readable(&log).into_iter().collect();
        assert_eq!(read.len() as u64, recovery.records, "round {round}");
        let missing = |number| recovery.missing.iter().any(|range| range.contains(&number));
        if only_older {
            let accounted = (1..=RECORDS).all(|number| read.contains(&number) || missing(number));
            assert!(accounted, "round {round}: {read:?} {recovery:?}");
        }
        let next = log.append(1, b"after").expect("there is room");
        assert!(read.iter().all(|number| *number < next), "round {round}");
        log.commit().expect("nothing fails");
        drop(log);
        let (log, again) = open(&storage);
        assert_eq!(
            again.quarantined,
            [],
            "round {round}: damage is dealt with once"
        );
        let after = log
            .read_from(1)
            .filter_map(Result::ok)
            .map(|record| record.number);
        assert!(after.eq(read.into_iter().chain([next])), "round {round}");
    }
}

#[test]
fn a_damaged_segment_costs_what_follows_the_damage_in_it() {
    let storage = filled(RECORDS);
    let (log, _) = open(&storage);
    let second = *log.segments().nth(1).expect("several segments");
    drop(log);
    let name = segment_name(0, second.first);
    // Past the header and the first record, into the second.
    let at = HEADER_BYTES + RECORD_BYTES + payload(second.first).len() + 3;
    storage.edit(&name, |bytes| bytes[at] ^= 1);
    let (log, recovery) = open(&storage);
    let (first, last) = (second.first + 1, second.end - 1);
    let bad = format::bad_name(0, first, last);
    let expected = Quarantined {
        segment: name,
        first,
        last: Some(last),
        set_aside: Some(bad),
    };
    assert_eq!(recovery.quarantined, [expected]);
    assert_eq!(recovery.missing, [first..=last]);
    let gap = format!("records {first} to {last} are in no segment");
    let gaps: Vec<_> = log
        .read_from(1)
        .filter_map(Result::err)
        .map(|g| g.to_string())
        .collect();
    assert_eq!(gaps, [gap]);
    assert_eq!(recovery.records + (last - first + 1), RECORDS);
}

#[test]
fn damage_that_appears_after_the_start_is_a_gap_in_reading() {
    let storage = filled(RECORDS);
    let (log, _) = open(&storage);
    let second = *log.segments().nth(1).expect("several segments");
    let name = segment_name(0, second.first);
    storage.edit(&name, |bytes| bytes[HEADER_BYTES] ^= 1);
    let third = *log.segments().nth(2).expect("several segments");
    storage.edit(&segment_name(0, third.first), |bytes| bytes.truncate(5));
    let mut read: Vec<u64> = (1..second.first).collect();
    read.extend(third.end..=RECORDS);
    assert_eq!(readable(&log), read);
    let gaps: Vec<_> = log
        .read_from(second.first + 1)
        .filter_map(Result::err)
        .map(|gap| match gap {
            Gap::Damaged { first, last, .. } => (first, last),
            other => unreachable!("{other}"),
        })
        .collect();
    assert_eq!(
        gaps,
        [
            (second.first + 1, second.end - 1),
            (third.first, third.end - 1)
        ]
    );
}

#[test]
fn a_torn_end_is_cut_but_numbers_seen_behind_damage_are_not_reused() {
    let storage = filled(4);
    let whole = storage.files();
    let name = segment_name(0, 1);
    storage.edit(&name, |bytes| bytes.truncate(bytes.len() - 1));
    let (log, recovery) = open(&storage);
    assert_eq!(
        (recovery.records, recovery.quarantined.len(), log.next()),
        (3, 0, 4)
    );
    assert_eq!(
        recovery.torn_bytes,
        (RECORD_BYTES + payload(4).len() - 1) as u64
    );

    let storage = copy_of(&whole);
    storage.edit(&name, |bytes| {
        bytes[HEADER_BYTES + RECORD_BYTES + payload(1).len()] ^= 1
    });
    let (log, recovery) = open(&storage);
    assert_eq!(
        (recovery.records, recovery.torn_bytes, log.next()),
        (1, 0, 5)
    );
    assert_eq!(recovery.missing, [2..=4]);
    drop(log);
    let (log, again) = open(&storage);
    assert_eq!(
        (again.quarantined.len(), log.next()),
        (0, 5),
        "known from the .bad file's name"
    );
}

#[test]
fn what_the_disk_does_not_give_now_it_may_give_later() {
    let storage = filled(RECORDS);
    let names: Vec<String> = storage.files().into_keys().collect();
    let newest = names.last().expect("several segments");
    let before = storage.files();
    for name in [&names[1], newest] {
        storage.unreadable(name, true);
    }
    let (mut log, recovery) = open(&storage);
    let set_aside = recovery.quarantined.iter().map(|bad| bad.set_aside.clone());
    assert!(set_aside.eq([None, None]), "{recovery:?}");
    assert_eq!(storage.files(), before, "nothing is touched");
    let next = log.append(1, b"later").expect("there is room");
    assert!(next > RECORDS, "{next} may be in use in the newest segment");
    log.commit().expect("only reading fails");
    assert_eq!(readable_after(&log, RECORDS), [next]);
    drop(log);
    for name in [&names[1], newest] {
        storage.unreadable(name, false);
    }
    let (log, recovery) = open(&storage);
    assert_eq!(
        (recovery.records, recovery.quarantined),
        (RECORDS + 1, vec![])
    );
    assert!(log.read_from(1).filter_map(Result::ok).count() as u64 == RECORDS + 1);
}

/// Numbers above `number` that can be read.
fn readable_after(log: &Log<FaultyStorage>, number: u64) -> Vec<u64> {
    let records = log.read_from(number + 1).filter_map(Result::ok);
    records.map(|record| record.number).collect()
}

#[test]
fn at_most_three_damaged_files_are_kept() {
    let storage = filled(RECORDS);
    let names: Vec<String> = storage.files().into_keys().collect();
    for name in &names[..6] {
        storage.edit(name, |bytes| bytes[20] ^= 1);
    }
    let (log, recovery) = open(&storage);
    assert_eq!(recovery.quarantined.len(), 6);
    let files = storage.files();
    let bad = files.keys().filter(|name| name.ends_with(".bad"));
    assert_eq!(bad.count(), MAX_SET_ASIDE);
    let on_disk: usize = files.values().map(Vec::len).sum();
    assert_eq!(log.bytes_on_disk(), on_disk as u64);
}

#[test]
fn a_newer_segment_is_refused_and_nothing_is_touched() {
    let storage = filled(RECORDS);
    let names: Vec<String> = storage.files().into_keys().collect();
    storage.edit(&names[0], |bytes| bytes.truncate(60));
    storage.edit(&names[2], |bytes| {
        bytes[8] = 2;
        let sum = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&sum.to_le_bytes());
    });
    storage.put("0000000000000000-0000000000000001.tmp", b"left by a crash");
    let before = storage.files();
    let error = Log::open(storage.clone(), small())
        .err()
        .expect("a newer version is refused");
    let text = error.to_string();
    assert!(
        text.contains("has version 2") && text.contains(&names[2]),
        "{text}"
    );
    assert_eq!(storage.files(), before);
}
