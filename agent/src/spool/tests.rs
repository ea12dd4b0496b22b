//! The spool on a disk that forgets, fills and fails; with the buffer beside it, as in the agent.

use std::{collections::BTreeMap, sync::Arc};

use muster_proto::{
    codec::{Changes, Decoder, Intern},
    log::{Fault, FaultyStorage},
    series::Family,
};
use proptest::prelude::*;

use super::*;
use crate::buffer::{Books, Buffer, BufferLimits, Encoded, Held, MIN_BUFFER_BYTES};

const START: i64 = 1_700_000_000_000;

fn frame(incarnation: u64, seq: u64, key: bool, bytes: usize) -> Spooled {
    let payload = format!("{incarnation} {seq} ").repeat(bytes / 4 + 1);
    let payload = bytes::Bytes::from(payload.into_bytes());
    Spooled {
        seq,
        tick: Timestamp::from_millis(START + seq.cast_signed() * 10_000),
        boottime_ms: seq.cast_signed() * 10_000,
        samples: 3,
        crc32c: crc32c::crc32c(&payload),
        key,
        payload,
    }
}

fn open(storage: &FaultyStorage, incarnation: u64, limits: SpoolLimits) -> Spool<FaultyStorage> {
    Spool::open(storage.clone(), Incarnation(incarnation), limits).expect("the folder is listed")
}

/// Frames 1 to `last` of an incarnation, every fifth a key frame, committed.
fn written(storage: &FaultyStorage, incarnation: u64, last: u64) {
    let mut spool = open(storage, incarnation, SpoolLimits::default());
    for seq in 1..=last {
        spool.append(&frame(incarnation, seq, seq % 5 == 1, 100));
    }
    spool.commit();
}

/// Everything the spool would send now.
#[derive(Debug, Default)]
struct Drained {
    /// Incarnation, number, key.
    sent: Vec<(u64, u64, bool)>,
    /// Incarnation and number of those that are outlines, with what happened in them.
    outlines: Vec<(u64, u64, Vec<v1::Event>)>,
    gaps: Vec<v1::Gap>,
    /// Incarnation and last number.
    ends: Vec<(u64, u64)>,
}

fn drain_all(spool: &mut Spool<FaultyStorage>) -> Drained {
    spool.rewind((1..1_000).map(Incarnation).collect());
    let mut drained = Drained::default();
    loop {
        let batch = spool.next_batch(u64::MAX, 300);
        if batch.is_empty() {
            return drained;
        }
        drained.gaps.extend(batch.gaps);
        for end in batch.ends {
            assert!(end.complete);
            drained.ends.push((end.incarnation, end.last_seq));
        }
        for frame in batch.frames {
            assert_eq!(frame.crc32c, crc32c::crc32c(&frame.payload));
            let whose = batch.incarnation.0;
            drained.sent.push((whose, frame.seq, frame.key));
            // What stands for a sample in these tests is text.
            if let Ok(beside) = muster_proto::codec::beside(&frame.payload) {
                assert!(decodes_alone(&frame), "{whose} {}", frame.seq);
                drained.outlines.push((whose, frame.seq, beside.events));
            }
        }
    }
}

struct Nameless;

impl Intern for Nameless {
    type Key = ();

    fn series(&mut self, _: &Arc<Family>, _: &[String]) {}
}

/// Whether an aggregator takes it without anything before it, as a frame without series.
fn decodes_alone(frame: &Spooled) -> bool {
    let (mut decoder, mut changes) = (Decoder::default(), Changes::default());
    let decoded = decoder.apply(frame.seq, &frame.payload, 10, &mut Nameless, &mut changes);
    decoded.is_ok() && decoder.slots().is_empty() && !changes.events.is_empty()
}

fn drain(spool: &mut Spool<FaultyStorage>) -> (Vec<(u64, u64, bool)>, Vec<v1::Gap>) {
    let Drained { sent, gaps, .. } = drain_all(spool);
    (sent, gaps)
}

fn happened(at: u64) -> Vec<v1::Event> {
    vec![v1::Event {
        kind: v1::EventKind::UnitStateChanged.into(),
        subject: format!("unit-{at}.service"),
        at_ms: START,
        fields: Vec::new(),
    }]
}

/// A frame in which something happened, with its outline.
fn eventful(incarnation: u64, seq: u64, key: bool, bytes: usize) -> (Spooled, Spooled) {
    let frame = frame(incarnation, seq, key, bytes);
    let outline = frame.outline(&happened(seq)).expect("something happened");
    (frame, outline)
}

#[test]
fn what_is_left_comes_oldest_first_and_goes_when_it_is_settled() {
    let storage = FaultyStorage::new();
    written(&storage, 2, 7);
    written(&storage, 1, 3);
    let mut spool = open(&storage, 9, SpoolLimits::default());
    let (sent, gaps) = drain(&mut spool);
    let expected: Vec<_> = (1..=3)
        .map(|seq| (1, seq, seq == 1))
        .chain((1..=7).map(|seq| (2, seq, seq % 5 == 1)))
        .collect();
    assert_eq!((sent, gaps.len()), (expected, 0));
    // A chain begins at its key frame again, however much of it is settled; a settled one does not.
    spool.settle(Incarnation(2), 1, 6);
    spool.settle(Incarnation(1), 1, 3);
    assert_eq!(drain(&mut spool).0, [(2, 6, true), (2, 7, false)]);
    assert_eq!((spool.status().incarnations, spool.status().frames), (1, 1));
    spool.settle(Incarnation(2), 1, u64::MAX);
    assert_eq!(spool.status().delivered, 10);
    let bulk = |name: &String| name.ends_with(".seg") && !name.starts_with(&"0".repeat(16));
    assert!(!storage.files().keys().any(bulk));
    // What is delivered has ended, which is said until it is confirmed, over restarts too.
    assert_eq!(drain_all(&mut spool).ends, [(1, 3), (2, 7)]);
    spool.commit();
    drop(spool);
    let mut spool = open(&storage, 10, SpoolLimits::default());
    assert_eq!(drain_all(&mut spool).ends, [(1, 3), (2, 7)]);
    spool.confirm(Incarnation(1));
    assert_eq!(drain_all(&mut spool).ends, [(2, 7)]);
    spool.confirm(Incarnation(2));
    spool.commit();
    assert!(!spool.has_due());
}

#[test]
fn an_incarnation_ends_only_when_all_of_it_is_delivered() {
    let storage = FaultyStorage::new();
    written(&storage, 1, 7);
    let mut spool = open(&storage, 2, SpoolLimits::default());
    assert!(drain_all(&mut spool).ends.is_empty());
    spool.settle(Incarnation(1), 1, 6);
    assert!(drain_all(&mut spool).ends.is_empty(), "one is left");
    spool.settle(Incarnation(1), 7, 7);
    assert!(spool.has_due());
    assert_eq!(drain_all(&mut spool).ends, [(1, 7)]);
}

#[test]
fn what_happened_outlives_the_samples_and_a_restart() {
    let storage = FaultyStorage::new();
    let limits = SpoolLimits {
        max_bytes: MIN_SPOOL_BYTES,
        ..SpoolLimits::default()
    };
    let mut spool = open(&storage, 1, limits);
    let mut dropped = Vec::new();
    let seqs = [3u64, 8, 9, 58];
    for seq in 1..=60 {
        let (frame, outline) = eventful(1, seq, seq % 5 == 1, 60_000);
        spool.append(&frame);
        if seqs.contains(&seq) {
            spool.keep(outline);
        }
        for event in spool.take_events() {
            if let Event::Dropped(gone) = event {
                dropped.extend(gone.first..=gone.last);
            }
        }
    }
    spool.commit();
    assert!(dropped.contains(&1) && dropped.contains(&10), "{dropped:?}");
    assert!(seqs.iter().all(|seq| !dropped.contains(seq)), "{dropped:?}");
    assert!(spool.status().bytes <= MIN_SPOOL_BYTES);
    drop(spool);

    let mut spool = open(&storage, 2, limits);
    assert!(
        spool
            .ranges()
            .iter()
            .any(|range| range.incarnation == 1 && range.last == 60),
        "{:?}",
        spool.ranges()
    );
    let drained = drain_all(&mut spool);
    let expected: Vec<_> = [3, 8, 9].map(|seq| (1, seq, happened(seq))).into();
    assert_eq!(drained.outlines, expected, "58 is there with its samples");
    assert_eq!(drained.sent.last(), Some(&(1, 60, false)));
    // Not before the aggregator has said what it has of that incarnation: it may have had the frame itself.
    spool.rewind(vec![Incarnation(2)]);
    let first = spool.next_batch(u64::MAX, 300).frames;
    assert!(first.iter().all(|frame| frame.seq > 9), "{first:?}");
    // What is settled is not told again, and all of it together is the end.
    spool.settle(Incarnation(1), 8, 60);
    let drained = drain_all(&mut spool);
    assert_eq!(
        (drained.sent, drained.ends),
        (vec![(1, 3, true)], Vec::new())
    );
    spool.settle(Incarnation(1), 3, 3);
    assert_eq!(drain_all(&mut spool).ends, [(1, 60)]);
}

/// What an aggregator keeps of the books of one life, and into how many ranges they fell at the worst.
fn told(drained: &Drained, incarnation: u64) -> (RangeSet, usize) {
    let (mut settled, mut worst) = (RangeSet::new(), 0);
    for gap in drained
        .gaps
        .iter()
        .filter(|gap| gap.incarnation == incarnation)
    {
        settled.insert_range(gap.first, gap.last);
        worst = worst.max(settled.len());
    }
    for (whose, seq, _) in &drained.sent {
        if *whose == incarnation {
            settled.insert(*seq);
            worst = worst.max(settled.len());
        }
    }
    (settled, worst)
}

#[test]
fn many_outlines_of_an_earlier_life_leave_no_holes_between_them() {
    let small = SpoolLimits {
        max_bytes: MIN_SPOOL_BYTES,
        ..SpoolLimits::default()
    };
    let large = SpoolLimits::default();
    // The samples go while that life runs, whose memory of it dies with it; or at the start of the next; or in part.
    for (first_limits, second_limits) in [(small, small), (large, small), (large, large)] {
        let storage = FaultyStorage::new();
        let mut spool = open(&storage, 1, first_limits);
        for seq in 1..=600 {
            let (frame, outline) = eventful(1, seq, seq % 5 == 1, 8_000);
            spool.append(&frame);
            if seq % 2 == 0 {
                spool.keep(outline);
            }
        }
        spool.commit();
        drop(spool);
        let mut spool = open(&storage, 2, second_limits);
        let drained = drain_all(&mut spool);
        let (settled, worst) = told(&drained, 1);
        assert!(worst <= MAX_GAPS + 1, "{worst} ranges");
        assert_eq!(settled.iter().collect::<Vec<_>>(), [(1, 600)]);
        assert!(drained.gaps.len() <= MAX_GAPS + 1);
        let dropped = second_limits == small;
        assert_eq!(drained.outlines.len() > 150, dropped);
        // Told in the order in which it holds: each number was named as lost or sent, and no sample that is here as lost.
        let from_samples = drained.sent.len() - drained.outlines.len();
        let kept_from = 600 - from_samples as u64;
        assert!(drained.gaps.iter().all(|gap| gap.last <= kept_from));
    }
}

#[test]
fn with_too_much_that_happened_the_oldest_goes_and_is_named() {
    let storage = FaultyStorage::new();
    let limits = SpoolLimits {
        max_bytes: MIN_SPOOL_BYTES,
        ..SpoolLimits::default()
    };
    let mut spool = open(&storage, 1, limits);
    let long = |seq: u64| {
        let frame = frame(1, seq, true, 30_000);
        let mut events = happened(seq);
        events[0].subject = "x".repeat(20_000);
        let outline = frame.outline(&events).expect("kept");
        (frame, outline)
    };
    let mut dropped = Vec::new();
    for seq in 1..=200 {
        let (frame, outline) = long(seq);
        spool.append(&frame);
        spool.keep(outline);
        spool.commit();
        for event in spool.take_events() {
            if let Event::Dropped(gone) = event {
                dropped.extend(gone.first..=gone.last);
            }
        }
        let apart: u64 = storage
            .files()
            .iter()
            .filter(|(name, _)| name.starts_with(&"0".repeat(16)))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        assert!(apart <= (256 << 10) + (64 << 10), "{apart} at {seq}");
    }
    let sent = drain(&mut spool).0;
    assert_eq!(sent.len() + dropped.len(), 200);
    let mut all: Vec<u64> = sent.iter().map(|(_, seq, _)| *seq).chain(dropped).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=200), "each is sent or named");
}

#[test]
fn a_disk_that_fails_costs_samples_and_not_what_happened() {
    let mut host = Host::start(FaultyStorage::new(), 1);
    host.storage.fail(0, Fault::InputOutput, true);
    for seq in 1..=100 {
        assert_eq!(host.sample(60_000), seq);
        if seq == 4 {
            let (_, outline) = eventful(1, seq, false, 10);
            host.spool.keep(outline);
            host.pass_on();
        }
    }
    let books = host.buffer.books();
    assert!(balanced(books) && books.lost > 4, "{books:?}");
    assert_eq!(
        host.buffer.first_spilled(),
        Some(4),
        "held, though nowhere on disk"
    );
    let front = host.buffer.first_in_memory();
    host.spool.rewind(vec![Incarnation(1)]);
    let batch = host.spool.next_batch(front, 100_000);
    let seqs: Vec<u64> = batch.frames.iter().map(|frame| frame.seq).collect();
    // Something happens in every seventh frame of such a host too.
    assert!(
        seqs.iter()
            .copied()
            .eq((1..front).filter(|seq| *seq == 4 || seq.is_multiple_of(7))),
        "{seqs:?}"
    );
    host.buffer.mark_sent(front);
    for &seq in &seqs {
        host.buffer.release(seq, seq);
        host.spool.settle(Incarnation(1), seq, seq);
    }
    assert_eq!(host.buffer.books().durable, seqs.len() as u64);
    assert!(balanced(host.buffer.books()));
    assert!(host.spool.next_batch(front, 100_000).is_empty());
}

#[test]
fn damage_costs_the_rest_of_the_chain_and_is_named() {
    let storage = FaultyStorage::new();
    written(&storage, 1, 12);
    let names: Vec<String> = storage.files().into_keys().collect();
    let name = names.iter().find(|name| name.ends_with(".seg"));
    // The second record; its payload is at 48 + 20 + 32 + … and what lies there is text.
    storage.edit(name.expect("one segment"), |bytes| bytes[48 + 250] ^= 1);
    let mut spool = open(&storage, 2, SpoolLimits::default());
    let (sent, gaps) = drain(&mut spool);
    let named: u64 = gaps.iter().map(|gap| gap.last - gap.first + 1).sum();
    // The log gives up from the damage to the end of its segment; a start goes on in any case.
    assert!(sent.len() as u64 + named <= 12 && !sent.is_empty());
    assert!(
        sent.iter()
            .all(|&(incarnation, seq, _)| incarnation == 1 && seq <= 2),
        "{sent:?}"
    );
}

#[test]
fn frames_that_were_never_handed_over_are_not_told_durable() {
    let storage = FaultyStorage::new();
    let mut spool = open(&storage, 1, SpoolLimits::default());
    // 3 found no room on its way here, so 4, which builds on it, cannot be kept either.
    for (seq, key) in [(1, true), (2, false), (4, false), (5, true), (6, false)] {
        spool.append(&frame(1, seq, key, 100));
    }
    spool.commit();
    let events = spool.take_events();
    let durable: Vec<u64> = events
        .iter()
        .filter_map(|event| match *event {
            Event::Durable { first, last } => Some(first..=last),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(durable, [1, 2, 5, 6]);
    assert!(events.contains(&Event::WantKey));
}

#[test]
fn a_tick_costs_one_write_and_no_sync() {
    let storage = FaultyStorage::new();
    let mut spool = open(&storage, 1, SpoolLimits::default());
    spool.append(&frame(1, 1, true, 100));
    let before = storage.operations();
    for seq in 2..=11 {
        spool.append(&frame(1, seq, false, 100));
    }
    assert_eq!(storage.operations() - before, 10);
}

#[test]
fn a_full_disk_is_left_alone_and_taken_up_again() {
    for (fault, reason) in [
        (Fault::NoSpace, v1::GapReason::Full),
        (Fault::InputOutput, v1::GapReason::DiskError),
    ] {
        let storage = FaultyStorage::new();
        let mut spool = open(&storage, 1, SpoolLimits::default());
        spool.append(&frame(1, 1, true, 100));
        spool.commit();
        spool.take_events();
        storage.fail(0, fault, true);
        for seq in 2..=4 {
            assert!(!spool.is_suspended(), "{seq}");
            spool.append(&frame(1, seq, false, 100));
        }
        assert!(spool.is_suspended() && spool.status().fault.is_some());
        assert_eq!(spool.take_events(), [Event::LossReason(reason)]);
        // Nothing is tried while it is left alone.
        let before = storage.operations();
        spool.append(&frame(1, 5, false, 100));
        spool.commit();
        assert_eq!(storage.operations(), before);

        storage.heal();
        spool.probe();
        assert!(spool.take_events().contains(&Event::WantKey));
        spool.append(&frame(1, 6, false, 100));
        assert_eq!(
            spool.take_events(),
            [Event::WantKey],
            "its chain has a hole"
        );
        spool.append(&frame(1, 7, true, 100));
        spool.commit();
        assert!(
            spool
                .take_events()
                .contains(&Event::Durable { first: 7, last: 7 })
        );
        drop(spool);
        storage.crash(3);
        let mut spool = open(&storage, 2, SpoolLimits::default());
        let sent = drain(&mut spool).0;
        assert_eq!(
            (sent.first(), sent.last()),
            (Some(&(1, 1, true)), Some(&(1, 7, true)))
        );
    }
}

#[test]
fn nothing_is_written_where_little_is_free() {
    let storage = FaultyStorage::new();
    let mut spool = open(&storage, 1, SpoolLimits::default());
    storage.limit_bytes(MIN_FREE_BYTES);
    spool.append(&frame(1, 1, true, 100));
    spool.commit();
    assert!(spool.is_suspended());
    spool.probe();
    assert!(spool.is_suspended(), "as little is free as before");
    storage.heal();
    spool.probe();
    assert!(!spool.is_suspended());
}

#[test]
fn bounds_drop_the_oldest_and_say_so() {
    let storage = FaultyStorage::new();
    written(&storage, 1, 5);
    let limits = SpoolLimits {
        max_bytes: MIN_SPOOL_BYTES,
        ..SpoolLimits::default()
    };
    let mut spool = open(&storage, 2, limits);
    for seq in 1..=60 {
        spool.append(&frame(2, seq, seq % 5 == 1, 60_000));
        assert!(spool.status().bytes <= MIN_SPOOL_BYTES + 2 * 300_000);
    }
    spool.commit();
    assert!(spool.status().bytes <= MIN_SPOOL_BYTES);
    assert_eq!(spool.status().dropped_full, 0, "counted when it is told");
    let dropped: u64 = spool
        .take_events()
        .iter()
        .filter_map(|event| match event {
            Event::Dropped(gone) => Some(gone.frames()),
            _ => None,
        })
        .sum();
    let (sent, gaps) = drain(&mut spool);
    assert_eq!((gaps.len(), gaps[0].incarnation, gaps[0].last), (1, 1, 5));
    assert_eq!(gaps[0].reason(), v1::GapReason::Full);
    assert_eq!(spool.status().dropped_full, 5);
    assert_eq!(sent.len() as u64 + dropped, 60);
    assert_eq!(sent.last(), Some(&(2, 60, false)));
    // A week later.
    let mut late = frame(2, 61, true, 100);
    late.tick = Timestamp::from_millis(START + 8 * 24 * 3_600_000);
    spool.append(&late);
    spool.commit();
    assert!(dropped_by_age(&mut spool));
}

fn dropped_by_age(spool: &mut Spool<FaultyStorage>) -> bool {
    let events = spool.take_events();
    let mut events = events.iter();
    events.any(|event| matches!(event, Event::Dropped(gone) if gone.reason == v1::GapReason::Age))
}

#[test]
fn a_clock_that_is_ahead_makes_nothing_old() {
    let week = 8 * 24 * 3_600_000;
    let storage = FaultyStorage::new();
    written(&storage, 1, 10);
    let mut spool = open(&storage, 2, SpoolLimits::default());
    for seq in 1..=40 {
        // A host that boots with its clock ahead, and is cut off.
        let mut ahead = frame(2, seq, seq % 5 == 1, 60_000);
        ahead.tick = Timestamp::from_millis(ahead.tick.as_millis() + week);
        spool.append(&ahead);
    }
    spool.commit();
    assert_eq!(
        spool.status().incarnations,
        1,
        "nobody has confirmed the clock"
    );
    // Drained as by a session, which corrects the clock; the next tick is of today.
    assert_eq!(drain(&mut spool).0.len(), 50);
    spool.append(&frame(2, 41, true, 100));
    spool.commit();
    assert!(!dropped_by_age(&mut spool), "the clock is followed back");
    assert_eq!(drain(&mut spool).0.len(), 51);
}

#[test]
fn leftovers_of_a_settled_chain_are_no_damage() {
    let storage = FaultyStorage::new();
    let mut spool = open(&storage, 1, SpoolLimits::default());
    // A segment of 1 MiB ends within a chain.
    for seq in 1..=32 {
        spool.append(&frame(1, seq, seq % 5 == 1, 60_000));
    }
    spool.commit();
    let segments = |storage: &FaultyStorage| {
        let files = storage.files();
        files.keys().filter(|name| name.ends_with(".seg")).count()
    };
    let before = segments(&storage);
    spool.settle(Incarnation(1), 1, 25);
    assert!(segments(&storage) < before, "a segment was let go");
    drop(spool);
    let mut spool = open(&storage, 2, SpoolLimits::default());
    let (sent, gaps) = drain(&mut spool);
    assert_eq!(gaps, [], "nothing is missing");
    let open_from = sent.first().map(|&(_, seq, key)| (seq <= 26, key));
    assert_eq!(open_from, Some((true, true)));
    assert_eq!(sent.last(), Some(&(1, 32, false)));
    assert_eq!(spool.status().dropped_corrupt, 0);
}

/// A buffer and a spool as the agent has them.
struct Host {
    storage: FaultyStorage,
    incarnation: u64,
    buffer: Buffer,
    spool: Spool<FaultyStorage>,
}

impl Host {
    fn start(storage: FaultyStorage, incarnation: u64) -> Self {
        let limits = BufferLimits {
            max_bytes: MIN_BUFFER_BYTES,
            ..BufferLimits::default()
        };
        Self {
            buffer: Buffer::new(Incarnation(incarnation), limits),
            spool: open(&storage, incarnation, SpoolLimits::default()),
            incarnation,
            storage,
        }
    }

    fn pass_on(&mut self) {
        for event in self.spool.take_events() {
            self.buffer.told(event);
        }
    }

    fn sample(&mut self, bytes: usize) -> u64 {
        let frame = frame(self.incarnation, self.buffer.last_seq() + 1, false, bytes);
        let key = self.buffer.needs_key(frame.tick);
        let seq = self.buffer.append(Encoded {
            tick: frame.tick,
            boottime_ms: frame.boottime_ms,
            payload: frame.payload,
            key,
            samples: 3,
        });
        if let Some(frame) = self.buffer.newest().map(Held::to_spool) {
            self.spool.append(&frame);
            if seq.is_multiple_of(7) {
                let outline = frame.outline(&happened(seq));
                self.spool.keep(outline.expect("something happened"));
            }
        }
        self.pass_on();
        seq
    }

    fn commit(&mut self) {
        self.spool.commit();
        self.pass_on();
    }
}

fn balanced(books: Books) -> bool {
    books.produced == books.durable + books.rejected + books.lost + books.held
        && books.spooled <= books.held
}

#[test]
fn an_outage_longer_than_memory_loses_nothing() {
    let mut host = Host::start(FaultyStorage::new(), 1);
    for _ in 0..100 {
        host.sample(60_000);
    }
    host.commit();
    let books = host.buffer.books();
    assert!(balanced(books), "{books:?}");
    assert_eq!((books.lost, books.held, books.spooled), (0, 100, 100));
    let front = host.buffer.first_in_memory();
    assert!(front > 50 && host.buffer.first_spilled() == Some(1));
    // The link is back: the live chain begins with a frame to come, all else goes beside it.
    let plan = host.buffer.plan(0);
    assert_eq!(plan.live_from, 101);
    assert!(host.buffer.needs_key(Timestamp::from_millis(START)));
    host.spool.rewind(vec![Incarnation(1)]);
    let mut next = 1;
    loop {
        let batch = host.spool.next_batch(front, 100_000);
        let Some(last) = batch.frames.last().map(|frame| frame.seq) else {
            break;
        };
        assert_eq!(batch.frames[0].seq, next);
        next = last + 1;
    }
    assert_eq!((next, plan.aside_from), (front, front));
    host.buffer.mark_sent(100);
    host.buffer.release(1, 100);
    host.spool.settle(Incarnation(1), 1, 100);
    let books = host.buffer.books();
    assert_eq!((books.durable, books.held, books.spooled), (100, 0, 0));
}

#[test]
fn without_a_disk_memory_drops_its_oldest_and_says_why() {
    let mut host = Host::start(FaultyStorage::new(), 1);
    host.storage.fail(0, Fault::InputOutput, true);
    for _ in 0..100 {
        host.sample(60_000);
    }
    let books = host.buffer.books();
    assert!(balanced(books) && books.lost > 0, "{books:?}");
    assert_eq!(books.lost, books.lost_disk);
    let gap = host.buffer.next_gap().expect("the first chain is gone");
    assert_eq!((gap.first, gap.reason()), (1, v1::GapReason::DiskError));
}

#[derive(Debug, Clone)]
enum Step {
    Sample(usize),
    Commit,
    /// kill -9 and a new start.
    Restart,
    PowerCut(u64),
    /// The aggregator takes so many of the oldest frames of an incarnation.
    Deliver(u64, u64),
    Fail(u64, bool),
    Heal,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        12 => (10usize..60_000).prop_map(Step::Sample),
        3 => Just(Step::Commit),
        1 => Just(Step::Restart),
        1 => any::<u64>().prop_map(Step::PowerCut),
        3 => (0u64..4, 1u64..30).prop_map(|(back, count)| Step::Deliver(back, count)),
        1 => (0u64..8, any::<bool>()).prop_map(|(after, ever)| Step::Fail(after, ever)),
        1 => Just(Step::Heal),
    ];
    prop::collection::vec(one, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// What was called durable and not settled is sent after any crash, unchanged, from a key frame on and in
    /// order; what is sent was produced under its number; the books balance at each step.
    #[test]
    fn what_is_on_disk_survives(steps in steps()) {
        let mut host = Host::start(FaultyStorage::new(), 1);
        // By incarnation: highest number produced, and highest number delivered.
        let mut produced: BTreeMap<u64, u64> = BTreeMap::new();
        let mut delivered: BTreeMap<u64, u64> = BTreeMap::new();
        // What was on disk when its incarnation ended, not settled then.
        let mut owed: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Sample(bytes) => {
                    let seq = host.sample(bytes);
                    produced.insert(host.incarnation, seq);
                }
                Step::Commit => host.commit(),
                Step::Restart | Step::PowerCut(_) => {
                    let durable = (1..=host.buffer.last_seq()).filter(|seq| host.buffer.is_spooled(*seq));
                    owed.extend(durable.map(|seq| (host.incarnation, seq)));
                    let Host { storage, incarnation, spool, .. } = host;
                    drop(spool);
                    storage.heal();
                    if let Step::PowerCut(seed) = step {
                        storage.crash(seed);
                    }
                    host = Host::start(storage, incarnation + 1);
                }
                Step::Deliver(back, count) => {
                    let whose = host.incarnation.saturating_sub(back).max(1);
                    let to = delivered.entry(whose).or_default();
                    *to = (*to + count).min(produced.get(&whose).copied().unwrap_or(0));
                    host.spool.settle(Incarnation(whose), 1, *to);
                    if whose == host.incarnation {
                        host.buffer.mark_sent(*to);
                        host.buffer.release(1, *to);
                    }
                    host.pass_on();
                }
                Step::Fail(after, ever) => host.storage.fail(after, Fault::InputOutput, ever),
                Step::Heal => {
                    host.storage.heal();
                    host.spool.probe();
                    host.pass_on();
                }
            }
            prop_assert!(balanced(host.buffer.books()), "{:?}", host.buffer.books());
        }
        host.storage.heal();
        let done = |(whose, seq): &(u64, u64)| delivered.get(whose).is_some_and(|to| seq <= to);
        for (&whose, &to) in &delivered {
            host.spool.settle(Incarnation(whose), 1, to);
        }
        let (sent, _) = drain(&mut host.spool);
        let mut before: Option<(u64, u64)> = None;
        for &(whose, seq, key) in &sent {
            let follows = before.is_some_and(|(last_whose, last)| last_whose == whose && last + 1 == seq);
            prop_assert!(key || follows, "{whose} {seq} does not decode");
            prop_assert!(seq <= produced[&whose]);
            before = Some((whose, seq));
        }
        let missing: Vec<_> = owed
            .iter()
            .filter(|owed| !done(owed) && !sent.iter().any(|(whose, seq, _)| (*whose, *seq) == **owed))
            .collect();
        prop_assert!(missing.is_empty(), "{missing:?}");
    }
}
