//! What every store of samples must do, written against the trait, and run on those there are.
//!
//! Chance is seeded; the plain store is the model that the embedded one is compared with, through flushes,
//! packing, restarts and crashes.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Duration};

use fastrand::Rng;
use muster_proto::{
    codec::Intern as _,
    id::HostId,
    log::{Fault, FaultyStorage, Storage as _},
    series::{Family, Kind, Raw, Scale},
};

use super::{
    EmbeddedStore, GiveUp, HistoryConfig, HistoryError, HostSeries, LabelMatch, Needs, PlainStore,
    Point, SampleQuery, SampleStore, SeriesKey, Tier, Token, check,
    config::RAW_WINDOW_MS,
    fold::{self, Fold},
};
use crate::fleet::names::Names;

const START: i64 = 1_767_225_600_000; // 2026-01-01, the begin of a window of every tier but the longest.
const HOUR: i64 = 3_600_000;

fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

fn family(name: &str, kind: Kind, scale: Scale, labels: &[&str]) -> Family {
    Family {
        name: name.into(),
        kind,
        scale,
        labels: labels.iter().map(|label| (*label).into()).collect(),
    }
}

/// The series of the made-up hosts.
struct World {
    keys: Vec<Arc<SeriesKey>>,
    raws: BTreeMap<HostId, Vec<Raw>>,
    random: Rng,
    token: Token,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut names = Names::default();
        let mut keys = Vec::new();
        let bytes = family("x_bytes_total", Kind::Counter, Scale::One, &["device"]);
        let bytes = names.family(bytes);
        for device in ["eth0", "eth1"] {
            keys.push(names.series(&bytes, &[device.into()]));
        }
        for (name, kind, scale) in [
            ("load", Kind::Gauge, Scale::Centi),
            ("ratio", Kind::Gauge, Scale::Float),
            ("constant", Kind::Gauge, Scale::Kibi),
            ("seconds_total", Kind::Counter, Scale::Float),
        ] {
            let family = names.family(family(name, kind, scale, &[]));
            keys.push(names.series(&family, &[]));
        }
        Self {
            keys,
            raws: BTreeMap::new(),
            random: Rng::with_seed(seed),
            token: 0,
        }
    }

    /// The host's next values; some are absent, counters are reset now and then.
    fn next(&mut self, host: HostId) -> Vec<(Arc<SeriesKey>, Raw)> {
        let random = &mut self.random;
        let raws = self.raws.entry(host).or_insert_with(|| vec![Raw(0); 6]);
        let reset = random.u8(..40) == 0;
        for raw in &mut raws[..2] {
            let last = if reset { 0 } else { raw.as_int() };
            *raw = Raw::int(last + random.i64(0..1000));
        }
        raws[2] = Raw::int(random.i64(0..400));
        raws[3] = Raw::float(random.f64());
        raws[4] = Raw::int(77);
        let last = if reset {
            0.0
        } else {
            f64::from_bits(raws[5].0)
        };
        raws[5] = Raw::float(last + random.f64());
        let mut values: Vec<_> = self
            .keys
            .iter()
            .cloned()
            .zip(raws.iter().copied())
            .collect();
        if random.u8(..8) == 0 {
            values.remove(random.usize(..values.len()));
        }
        if random.u8(..16) == 0 {
            values.reverse();
        }
        values
    }

    fn append(&mut self, stores: &[&dyn SampleStore], host: HostId, tick: i64) {
        let values = self.next(host);
        self.token += 1;
        for store in stores {
            let mut iter = values.iter().map(|(key, raw)| (key, *raw));
            store
                .append(self.token, host, tick, &mut iter)
                .expect("there is room");
        }
    }
}

fn query(from: i64, to: i64) -> SampleQuery {
    SampleQuery {
        hosts: (0..10).map(host).collect(),
        metric: None,
        labels: Vec::new(),
        from,
        to,
        step_ms: 0,
        needs: Needs::ALL,
        max_points: 10_000_000,
        give_up: GiveUp::default(),
    }
}

fn all(store: &dyn SampleStore, query: &SampleQuery) -> Vec<HostSeries> {
    let mut found = Vec::new();
    let report = store
        .read(query, &mut |series| {
            found.push(series);
            ControlFlow::Continue(())
        })
        .expect("not too much");
    assert_eq!(report.missing, [""; 0]);
    let key = |series: &HostSeries| {
        let name = &series.name;
        (name.family.name.clone(), name.labels.clone(), series.host)
    };
    found.sort_by_key(key);
    found
}

fn same(one: &dyn SampleStore, other: &dyn SampleStore, query: &SampleQuery) {
    let (one, other) = (all(one, query), all(other, query));
    assert_eq!(
        one.len(),
        other.len(),
        "series in {}..{}",
        query.from,
        query.to
    );
    for (one, other) in one.iter().zip(&other) {
        assert_eq!((one.host, &one.name), (other.host, &other.name));
        assert_eq!(
            one.points, other.points,
            "{} of {}",
            one.name.family.name, one.host
        );
    }
}

/// Every fold of every series, of each tier, is the same whether its points were asked for with what it needs or with
/// everything, and in both stores.
fn folds_need_no_more_than_they_say(one: &dyn SampleStore, other: &dyn SampleStore) {
    let folds = [
        Fold::Last,
        Fold::Min,
        Fold::Max,
        Fold::Avg,
        Fold::Sum,
        Fold::Count,
        Fold::Rate,
        Fold::Increase,
    ];
    let folded = |store: &dyn SampleStore, how: Fold, step_ms: i64, needs: Needs| {
        let asked = SampleQuery {
            step_ms,
            needs,
            ..query(0, i64::MAX)
        };
        let found = all(store, &asked).into_iter();
        found
            .map(|series| (series.host, fold::fold(&series.points, how, step_ms, 0)))
            .collect::<Vec<_>>()
    };
    for how in folds {
        for step_ms in [0, 60_000, 900_000] {
            let few = folded(one, how, step_ms, Needs::of(how));
            assert_eq!(
                few,
                folded(one, how, step_ms, Needs::ALL),
                "{how:?} {step_ms}"
            );
            if step_ms == 0 {
                assert_eq!(few, folded(other, how, step_ms, Needs::ALL), "{how:?}");
            }
        }
    }
}

fn small() -> HistoryConfig {
    HistoryConfig {
        group_hosts: 3,
        memory_per_host: 4 << 10,
        memory_floor: 8 << 10,
        ..HistoryConfig::default()
    }
}

fn embedded(storage: &FaultyStorage) -> EmbeddedStore<FaultyStorage> {
    let (store, opened) =
        EmbeddedStore::open(storage.clone(), small(), START).expect("the store opens");
    assert_eq!(opened.problems, [""; 0]);
    store
}

/// The suite. Any store passes it, new and empty.
fn conforms(store: &dyn SampleStore) {
    let caps = store.caps();
    let model = PlainStore::default();
    let mut world = World::new(5);
    let both: [&dyn SampleStore; 2] = [store, &model];
    for step in 0..200 {
        for number in 0..4 {
            world.append(
                &both,
                host(number),
                START + step * 10_000 + i64::from(number),
            );
        }
    }
    if caps.reads_own_writes {
        for (from, to) in [
            (START, START + HOUR),
            (START + 15_000, START + 16_000),
            (START + 500_000, START + 900_001),
            (0, i64::MAX),
            (START - HOUR, START),
        ] {
            same(store, &model, &query(from, to));
        }
        let mut asked = query(START, START + HOUR);
        asked.metric = Some("x_bytes_total".into());
        asked.labels = vec![LabelMatch {
            label: "device".into(),
            patterns: vec!["*1".into()],
            negated: false,
        }];
        asked.hosts = vec![host(1), host(9)];
        assert_eq!(all(store, &asked).len(), 1);
        same(store, &model, &asked);
    }
    if caps.takes_late {
        for step in 0..20 {
            world.append(&both, host(1), START - 5 * HOUR + step * 7_000);
            world.append(&both, host(2), START + 10_000 * step + 5_000);
        }
        same(store, &model, &query(0, i64::MAX));
    }
    if caps.deduplicates {
        for step in 0..10 {
            world.append(&both, host(0), START + step * 10_000);
        }
        same(store, &model, &query(0, i64::MAX));
    }
    folds_need_no_more_than_they_say(store, &model);
    let mut bounded = query(0, i64::MAX);
    bounded.max_points = 10;
    let refused = store.read(&bounded, &mut |_| ControlFlow::Continue(()));
    assert!(
        matches!(refused, Err(HistoryError::TooMuch { limit: 10 })),
        "{refused:?}"
    );
    let mut given = 0;
    let broken_off = store.read(&query(0, i64::MAX), &mut |_| {
        given += 1;
        ControlFlow::Break(())
    });
    assert!(broken_off.is_ok() && given == 1);
    if caps.forgets {
        for store in both {
            store.forget(host(3), 0).expect("forgotten");
            store
                .forget(host(200), 0)
                .expect("a host that nobody knows");
        }
        same(store, &model, &query(0, i64::MAX));
    }
}

#[test]
fn the_plain_store_conforms() {
    conforms(&PlainStore::default());
}

#[test]
fn the_embedded_store_conforms() {
    conforms(&embedded(&FaultyStorage::new()));
}

/// Flushes and packs all that is due, without anything kept aside.
fn settle(store: &EmbeddedStore<FaultyStorage>, token: Token, now: i64) {
    for group in store.unsaved() {
        store
            .flush(group, token, now, |_| Vec::new())
            .expect("the disk is well");
    }
    while store.maintain(now).expect("the disk is well") {}
}

#[test]
fn whatever_is_flushed_and_packed_reads_the_same() {
    let storage = FaultyStorage::new();
    let mut store = embedded(&storage);
    let model = PlainStore::default();
    let mut world = World::new(7);
    let mut random = Rng::with_seed(9);
    let mut now = START;
    for round in 0..600i64 {
        now = START + round * 60_000;
        for number in 0..7 {
            let late = if random.u8(..20) == 0 {
                random.i64(0..3 * HOUR)
            } else {
                0
            };
            world.append(&[&store, &model], host(number), now - late);
        }
        if random.u8(..30) == 0 {
            settle(&store, world.token, now);
        }
        if random.u8(..60) == 0 {
            settle(&store, world.token, now);
            store = embedded(&storage);
        }
    }
    same(&store, &model, &query(0, i64::MAX));
    settle(&store, world.token, now + RAW_WINDOW_MS + HOUR);
    same(&store, &model, &query(0, i64::MAX));
    same(&store, &model, &query(START + HOUR, START + 5 * HOUR));
    let stats = store.stats();
    let packed = store.files();
    let raw: Vec<_> = packed
        .iter()
        .filter(|file| file.tier == Tier::Raw)
        .collect();
    assert!(raw.iter().all(|file| file.packed));
    assert_eq!(stats.head_samples, 0);
    for file in &raw {
        let others = raw
            .iter()
            .filter(|other| (other.group, other.start) == (file.group, file.start));
        assert_eq!(others.count(), 1, "one file a window");
    }
}

/// What a roll-up must say, from the samples of the model.
fn rolled(model: &PlainStore, step: i64) -> Vec<HostSeries> {
    let mut series = all(model, &query(0, i64::MAX));
    for series in &mut series {
        let counter = series.name.family.kind == Kind::Counter;
        let mut out: Vec<Point> = Vec::new();
        let mut before: Option<f64> = None;
        for point in &series.points {
            let at = point.at - point.at.rem_euclid(step);
            let dropped = before.filter(|before| point.last < *before).unwrap_or(0.0);
            before = Some(point.last);
            match out.last_mut().filter(|last| last.at == at) {
                Some(last) => {
                    last.last = point.last;
                    last.min = last.min.min(point.last);
                    last.max = last.max.max(point.last);
                    last.sum += point.last;
                    last.count += 1;
                    last.dropped += dropped;
                }
                None => out.push(Point {
                    at,
                    dropped,
                    ..*point
                }),
            }
        }
        for point in &mut out {
            if counter {
                (point.min, point.max, point.sum) = (f64::NAN, f64::NAN, f64::NAN);
            } else {
                point.dropped = 0.0;
            }
        }
        series.points = out;
    }
    series
}

#[test]
fn roll_ups_say_what_the_samples_said() {
    let near =
        |a: f64, b: f64| (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 * a.abs().max(1.0);
    let storage = FaultyStorage::new();
    let store = embedded(&storage);
    let model = PlainStore::default();
    let mut world = World::new(11);
    let hours = 26;
    for step in 0..hours * 120 {
        for number in 0..2 {
            world.append(&[&store, &model], host(number), START + step * 30_000);
        }
        if step % 500 == 0 {
            settle(&store, world.token, START + step * 30_000);
        }
    }
    folds_need_no_more_than_they_say(&store, &model);
    settle(&store, world.token, START + 40 * 24 * HOUR);
    let stats = store.stats();
    assert_eq!(stats.files[0], 0, "samples are older than they are kept");
    assert_eq!(stats.files[1], 0, "and so are minutes");
    let quarters = all(&store, &query(0, i64::MAX));
    let expected = rolled(&model, 900_000);
    assert_eq!(quarters.len(), expected.len());
    for (found, expected) in quarters.iter().zip(&expected) {
        assert_eq!(
            found.points.len(),
            expected.points.len(),
            "{}",
            found.name.family.name
        );
        for (a, b) in found.points.iter().zip(&expected.points) {
            let pairs = [
                (a.last, b.last),
                (a.min, b.min),
                (a.max, b.max),
                (a.sum, b.sum),
                (a.dropped, b.dropped),
            ];
            assert!(a.at == b.at && a.count == b.count, "{a:?} {b:?}");
            assert!(
                pairs.into_iter().all(|(a, b)| near(a, b)),
                "{} {a:?} {b:?}",
                found.name.family.name
            );
        }
    }
    // The increase over everything is that of the samples, whatever it is made of.
    let whole = all(&model, &query(0, i64::MAX));
    for (rolled, samples) in quarters.iter().zip(&whole) {
        if samples.name.family.kind == Kind::Counter {
            let of = |points: &[Point]| {
                let grown = fold::fold(points, Fold::Increase, 1 << 50, 0);
                grown.iter().map(|(_, value)| value).sum::<f64>()
            };
            // Quarters begin at their last sample, so the first quarter's own growth is not in them.
            let first = samples
                .points
                .iter()
                .rposition(|point| point.at < START + 900_000);
            let rest = &samples.points[first.expect("the first quarter has samples")..];
            assert!(
                near(of(&rolled.points), of(rest)),
                "{}",
                samples.name.family.name
            );
        }
    }
}

#[test]
fn replayed_samples_give_the_same_bytes() {
    let files = |pieces: i64| {
        let storage = FaultyStorage::new();
        let store = embedded(&storage);
        let mut world = World::new(3);
        for step in 0..240 {
            world.append(&[&store], host(1), START + step * 30_000);
            if step % pieces == 0 {
                for group in store.unsaved() {
                    let token = world.token;
                    store
                        .flush(group, token, START, |_| Vec::new())
                        .expect("written");
                }
            }
        }
        settle(&store, world.token, START + 4 * HOUR);
        let files = store.files();
        let bytes = storage.files();
        let mut contents: Vec<(Tier, Vec<u8>)> = files
            .iter()
            // All but the header, which says which change made the file.
            .map(|file| (file.tier, bytes[&file.name][64..].to_vec()))
            .collect();
        contents.sort();
        contents
    };
    let whole = files(1000);
    assert_eq!(whole.len(), 3);
    assert_eq!(whole, files(17));
}

#[test]
fn every_crash_leaves_all_that_was_flushed() {
    let run =
        |storage: &FaultyStorage,
         until: &mut dyn FnMut(&EmbeddedStore<FaultyStorage>, &PlainStore, Token)| {
            let Ok((store, _)) = EmbeddedStore::open(storage.clone(), small(), START) else {
                return;
            };
            let model = PlainStore::default();
            let mut world = World::new(21);
            for step in 0..60 {
                for number in 0..4 {
                    world.append(&[&store, &model], host(number), START + step * 300_000);
                }
                if step % 9 == 8 {
                    let now = START + step * 300_000;
                    for group in store.unsaved() {
                        // After a fault everything stays readable; nothing is durable that was not said to be.
                        let _ = store.flush(group, world.token, now, |_| vec![1, 2, 3]);
                    }
                    let _ = store.maintain(now);
                    until(&store, &model, world.token);
                }
            }
        };
    let healthy = FaultyStorage::new();
    run(&healthy, &mut |_, _, _| {});
    let operations = healthy.operations();
    assert!(operations > 100, "{operations}");
    for seed in 0..operations {
        for fault in [Fault::InputOutput, Fault::TornWrite, Fault::NoSpace] {
            let storage = FaultyStorage::new();
            storage.fail(seed, fault, seed % 3 == 0);
            let mut durable: BTreeMap<HostId, Token> = BTreeMap::new();
            let mut whole = Vec::new();
            run(&storage, &mut |store, model, _| {
                for number in 0..4 {
                    durable.insert(host(number), store.covered(host(number)));
                }
                whole = all(model, &query(0, i64::MAX));
                let everything = query(0, i64::MAX);
                let mut found = Vec::new();
                let report = store.read(&everything, &mut |series| {
                    found.push(series);
                    ControlFlow::Continue(())
                });
                // What is in memory is never missing; a file may not read while the disk is ill.
                if report.is_ok_and(|report| report.missing.is_empty()) {
                    let points =
                        |all: &[HostSeries]| all.iter().map(|s| s.points.len()).sum::<usize>();
                    assert_eq!(
                        points(&found),
                        points(&whole),
                        "operation {seed}, {fault:?}"
                    );
                }
            });
            storage.heal();
            storage.crash(seed);
            let opened = EmbeddedStore::open(storage.clone(), small(), START);
            let why = opened.as_ref().err().map(ToString::to_string);
            assert_eq!(why, None, "operation {seed}, {fault:?}");
            let (store, opened) = opened.expect("no error");
            assert_eq!(opened.problems, [""; 0], "operation {seed}");
            let kept = all(&store, &query(0, i64::MAX));
            for series in &whole {
                // Each host has a sample a round, four tokens apart.
                let token = durable[&series.host];
                let until = i64::try_from(token / 4).expect("small") * 300_000 + START;
                let expected = series.points.iter().filter(|point| point.at < until);
                let found = kept
                    .iter()
                    .find(|kept| kept.host == series.host && kept.name == series.name);
                for point in expected {
                    let there = found.is_some_and(|found| {
                        found
                            .points
                            .iter()
                            .any(|kept| (kept.at, kept.last) == (point.at, point.last))
                    });
                    assert!(
                        there,
                        "operation {seed}, {fault:?}: {} of {}",
                        point.at, series.host
                    );
                }
            }
        }
    }
}

#[test]
fn old_files_go_and_a_full_store_drops_its_oldest_samples_first() {
    let storage = FaultyStorage::new();
    let config = HistoryConfig {
        raw: Duration::from_secs(6 * 3600),
        ..small()
    };
    let (store, _) = EmbeddedStore::open(storage.clone(), config, START).expect("opens");
    let mut world = World::new(2);
    for step in 0..24 * 60 {
        world.append(&[&store], host(1), START + step * 60_000);
    }
    settle(&store, world.token, START + 24 * HOUR + 11 * 60_000);
    let oldest = store.stats().oldest_ms;
    assert_eq!(
        oldest[0],
        START + 18 * HOUR,
        "raw files of the last six hours"
    );
    assert_eq!(oldest[1], START);
    assert_eq!(store.stats().dropped_by_age, 9);
    drop(store);
    let config = HistoryConfig {
        max_bytes: 1,
        ..small()
    };
    let (store, _) = EmbeddedStore::open(storage, config, START).expect("opens");
    settle(&store, world.token, START + 24 * HOUR + 11 * 60_000);
    let stats = store.stats();
    assert_eq!(stats.files, [0, 0, 0]);
    assert!(stats.dropped_by_size >= 4);
    let told = store.cramped().expect("it is a problem");
    assert!(told.contains("history.max_size"), "{told}");
    let now = START + 24 * HOUR + 11 * 60_000;
    world.append(&[&store], host(1), now);
    settle(&store, world.token, now);
    assert_eq!(
        store.stats().files,
        [1, 0, 0],
        "what covers the present stays"
    );
}

#[test]
fn damage_is_named_and_the_rest_is_read() {
    let storage = FaultyStorage::new();
    let store = embedded(&storage);
    let mut world = World::new(2);
    for step in 0..6 * 60 {
        world.append(&[&store], host(1), START + step * 60_000);
    }
    settle(&store, world.token, START + 9 * HOUR);
    let files = store.files();
    let raw: Vec<_> = files.iter().filter(|file| file.tier == Tier::Raw).collect();
    assert_eq!(raw.len(), 3);
    let whole = all(&store, &query(0, i64::MAX));
    let len = storage.files()[&raw[0].name].len();
    for at in (0..len).step_by(97) {
        let before = storage.files()[&raw[0].name].clone();
        storage.edit(&raw[0].name, |bytes| bytes[at] ^= 0x10);
        let (store, _) = EmbeddedStore::open(storage.clone(), small(), START).expect("opens");
        let mut found = Vec::new();
        let report = store
            .read(&query(0, i64::MAX), &mut |series| {
                found.push(series);
                ControlFlow::Continue(())
            })
            .expect("not too much");
        // Every byte is under some checksum, but for what nothing reads.
        if report.missing.is_empty() {
            assert_eq!(found.len(), whole.len(), "byte {at}");
        } else {
            assert!(
                report.missing[0].contains(&raw[0].name),
                "{:?}",
                report.missing
            );
            assert!(
                found.iter().all(|series| series.points.len() >= 200),
                "the other windows"
            );
        }
        storage.edit(&raw[0].name, |bytes| *bytes = before);
    }
}

/// What memory has of a window that is over is written once, with what was written of it before; unless that is damaged.
#[test]
fn a_window_that_is_over_is_written_packed() {
    for damage in [false, true] {
        let storage = FaultyStorage::new();
        let store = embedded(&storage);
        let model = PlainStore::default();
        let mut world = World::new(9);
        for (minutes, now) in [(0..30, START + HOUR), (30..120, START + 3 * HOUR)] {
            for minute in minutes {
                for number in 0..2 {
                    world.append(&[&store, &model], host(number), START + minute * 60_000);
                }
            }
            if damage && now == START + 3 * HOUR {
                let name = store.files()[0].name.clone();
                storage.edit(&name, |bytes| bytes[100] ^= 1);
            }
            store
                .flush(0, world.token, now, |_| Vec::new())
                .expect("the disk is well");
        }
        let files = store.files();
        let of = |tier| files.iter().filter(move |file| file.tier == tier);
        let packed = of(Tier::Raw).filter(|file| file.packed).count();
        assert!(
            files
                .iter()
                .all(|file| storage.files().contains_key(&file.name)),
            "nothing is named that is not there"
        );
        if damage {
            assert_eq!((of(Tier::Raw).count(), packed), (2, 0));
            assert_eq!(files.len(), 2, "nothing is left of what did not go");
            continue;
        }
        assert_eq!((of(Tier::Raw).count(), packed), (1, 1));
        assert_eq!(
            (of(Tier::Minute).count(), of(Tier::Quarter).count()),
            (1, 1)
        );
        same(&store, &model, &query(0, i64::MAX));
        let done = store.maintain(START + 3 * HOUR);
        assert!(
            matches!(done, Ok(false)),
            "there is nothing to do: {done:?}"
        );
    }
}

/// One damaged window of one group, and old files of another.
#[test]
fn a_window_that_does_not_pack_stops_nothing_else() {
    let storage = FaultyStorage::new();
    let config = HistoryConfig {
        raw: Duration::from_secs(6 * 3600),
        ..small()
    };
    let (store, _) = EmbeddedStore::open(storage.clone(), config.clone(), START).expect("opens");
    let mut world = World::new(3);
    for step in 0..4 * 60 {
        for number in 0..6 {
            world.append(&[&store], host(number), START + step * 60_000);
        }
    }
    for group in store.unsaved() {
        // Before the windows are over, or they would be packed at once.
        store
            .flush(group, world.token, START, |_| Vec::new())
            .expect("the disk is well");
    }
    let damaged = store.files()[0].clone();
    storage.edit(&damaged.name, |bytes| bytes[100] ^= 1);
    let (store, _) = EmbeddedStore::open(storage.clone(), config, START).expect("opens");
    let now = START + 5 * HOUR;
    let (mut failed, mut packed) = (0, 0);
    loop {
        match store.maintain(now) {
            Ok(true) => packed += 1,
            Ok(false) => break,
            Err(_) => failed += 1,
        }
        assert!(failed < 5, "it is not tried for ever");
    }
    assert_eq!((failed, packed), (1, 3), "four windows, one damaged");
    assert_eq!(store.stats().failures, 1);
    let problem = store.unpacked().expect("it is a problem");
    assert!(problem.contains(&damaged.name), "{problem}");
    let loose = store
        .files()
        .iter()
        .filter(|file| !file.packed && file.tier == Tier::Raw)
        .count();
    assert!(loose >= 1, "what cannot be packed is kept");
    let known: Vec<String> = store.files().iter().map(|file| file.name.clone()).collect();
    let groups = store.manifest().groups;
    for name in storage.files().keys() {
        let of_group = groups.iter().flatten().any(|group| group.file == *name);
        assert!(
            known.contains(name) || of_group || name == "manifest",
            "{name} is left of a failed packing"
        );
    }
    // Its time comes as that of any other.
    let later = now + 6 * HOUR;
    while !matches!(store.maintain(later), Ok(false)) {}
    assert_eq!(
        store.stats().files[0],
        0,
        "samples are older than six hours"
    );
    assert!(matches!(store.maintain(later), Ok(false)));
    assert_eq!(store.unpacked(), None, "its files are gone");
}

/// Space that a failed flush or packing has taken must be free again, or a full disk stays full.
#[test]
fn a_full_disk_keeps_nothing_of_what_failed() {
    for after in 0..40 {
        let storage = FaultyStorage::new();
        let store = embedded(&storage);
        let mut world = World::new(4);
        for step in 0..3 * 60 {
            world.append(&[&store], host(1), START + step * 60_000);
        }
        let token = world.token;
        let flush = || store.flush(0, token, START, |_| Vec::new());
        storage.fail(after, Fault::NoSpace, false);
        if flush().is_err() {
            flush().expect("the disk is well again");
        }
        storage.fail(after, Fault::NoSpace, false);
        let mut now = START + 5 * HOUR;
        while !matches!(store.maintain(now), Ok(false)) || store.unpacked().is_some() {
            now += HOUR;
        }
        storage.heal();
        // What could not be removed then goes with the next change.
        world.append(&[&store], host(1), now);
        store
            .flush(0, world.token, now, |_| Vec::new())
            .expect("the disk is well");
        let manifest = store.manifest();
        for name in storage.files().keys() {
            assert!(manifest.names(name), "{name} is left, operation {after}");
        }
        assert_eq!(all(&store, &query(0, i64::MAX)).len(), 6);
    }
}

/// Everything there is, in every tier, in a form that can be compared: what is not told of roll-ups is NaN.
fn everything(store: &dyn SampleStore) -> [String; 3] {
    [0, 60_000, 900_000].map(|step_ms| {
        let query = SampleQuery {
            step_ms,
            ..query(0, i64::MAX)
        };
        format!("{:?}", all(store, &query))
    })
}

/// Some hours of five hosts, in files of every tier; one is forgotten.
fn filled(storage: &FaultyStorage, hours: i64) -> (EmbeddedStore<FaultyStorage>, World) {
    let store = embedded(storage);
    let mut world = World::new(4);
    for step in 0..hours * 60 {
        for number in 0..5 {
            world.append(&[&store], host(number), START + step * 60_000);
        }
        if step % 50 == 0 {
            settle(&store, world.token, START + step * 60_000);
        }
    }
    settle(&store, world.token, START + hours * HOUR);
    store.forget(host(2), world.token).expect("forgotten");
    (store, world)
}

#[test]
fn a_manifest_is_made_anew_from_the_files() {
    type Harm = fn(&FaultyStorage);
    let harms: [(&str, Harm); 4] = [
        ("damaged", |storage| {
            storage.edit("manifest", |bytes| bytes[20] ^= 1);
        }),
        ("cut off", |storage| {
            storage.edit("manifest", |bytes| bytes.truncate(3));
        }),
        ("gone", |storage| {
            storage.remove("manifest").expect("removed");
        }),
        ("a group's file", |storage| {
            let files = storage.files();
            let name = files.keys().find(|name| name.ends_with(".mhg"));
            let name = name.expect("there is one").clone();
            storage.edit(&name, |bytes| bytes[20] ^= 1);
        }),
    ];
    for (what, harm) in harms {
        let storage = FaultyStorage::new();
        let (store, mut world) = filled(&storage, 6);
        let before = everything(&store);
        let (upto, covered) = (store.durable(), store.covered(host(1)));
        drop(store);
        harm(&storage);
        let report = check::check(&storage).expect("it is read");
        assert!(!report.problems.is_empty(), "{what}: check-store tells");
        assert!(report.files > 0, "{what}: and reads the rest");
        let opened = EmbeddedStore::open(storage.clone(), small(), START);
        let (store, opened) = opened.expect("it opens");
        assert!(!opened.problems.is_empty(), "{what}: it is said");
        assert_eq!(
            everything(&store),
            before,
            "{what}: nothing is lost, and nobody is back"
        );
        if what == "a group's file" {
            assert_eq!(store.durable(), 0, "what the log has is read again");
        } else {
            let known = (store.durable(), store.covered(host(1)));
            assert_eq!(known, (upto, covered), "{what}: nothing is read twice");
        }
        // It goes on, and is whole from then on.
        world.append(&[&store], host(1), START + 10 * HOUR);
        settle(&store, world.token, START + 13 * HOUR);
        let whole = everything(&store);
        let store = embedded(&storage);
        assert_eq!(everything(&store), whole, "{what}");
        let report = check::check(&storage).expect("it is read");
        assert_eq!(report.problems, [""; 0], "{what}");
    }
}

/// The power fails at each step of making a manifest anew.
#[test]
fn a_crash_while_the_manifest_is_made_anew_costs_nothing() {
    let whole = FaultyStorage::new();
    let before = everything(&filled(&whole, 3).0);
    let files = whole.files();
    let group = files.keys().find(|name| name.ends_with(".mhg"));
    let group = group.expect("there is one");
    for harmed in [&["manifest"][..], &["manifest", group], &[group]] {
        let mut broken_off = 0;
        for after in 0.. {
            let storage = FaultyStorage::new();
            for (name, bytes) in &files {
                storage.put(name, bytes);
            }
            for name in harmed {
                storage.edit(name, |bytes| bytes[20] ^= 1);
            }
            storage.fail(after, Fault::InputOutput, true);
            let opened = EmbeddedStore::open(storage.clone(), small(), START);
            let failed = opened.is_err();
            drop(opened);
            storage.heal();
            storage.crash(after);
            let opened = EmbeddedStore::open(storage.clone(), small(), START);
            let (store, _) = opened.expect("it opens");
            assert_eq!(everything(&store), before, "{harmed:?}, operation {after}");
            if !failed {
                break;
            }
            broken_off += 1;
        }
        assert!(broken_off > 5, "{harmed:?}: {broken_off}");
    }
}

#[test]
fn what_was_forgotten_leaves_the_disk() {
    let storage = FaultyStorage::new();
    let (store, world) = filled(&storage, 6);
    // Roll-ups of the last window are made on the way.
    let [before, ..] = everything(&store);
    let now = START + 8 * HOUR;
    settle(&store, world.token, now);
    assert_eq!(store.manifest().forgotten, [], "nobody need be remembered");
    assert!(everything(&store)[0] == before, "nobody else lost anything");
    for file in store.files().iter() {
        let block = store.block(&file.name).expect("it opens");
        assert_eq!(block.place(host(2)), None, "{}", file.name);
    }
    let written = store.stats().written_bytes;
    assert!(!store.maintain(now).expect("the disk is well"));
    assert_eq!(store.stats().written_bytes, written, "once is enough");
    let whole = everything(&store);
    drop(store);
    let store = embedded(&storage);
    assert!(everything(&store) == whole, "and is so from disk");
}
