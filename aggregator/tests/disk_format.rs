//! What stands on disk, byte by byte: a checkpoint and one record of each kind, as `golden/*.hex`.
//!
//! A type whose fields change reads old bytes as something else, silently, since postcard writes no names. When a
//! test here fails, either the change was not meant, or the format changed: then raise `VERSION` in
//! `fleet/checkpoint.rs`, or `RECORD_KIND` in `journal.rs` and read the old kind on, and run this test once with
//! `UPDATE_EXPECT=1`, which writes the new bytes.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use muster_aggregator::{
    detect::{DetectConfig, Engine},
    fleet::{
        Enrolled, HostState, Liveness,
        checkpoint::{self, Checkpoint},
        host::{FrameIn, Lane, Receiving, Session, Surroundings, Verdict},
        names::Names,
    },
    journal::Record,
};
use muster_proto::{
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::Timestamp,
    v1,
};
use tokio::time::Instant;

const HOST: HostId = HostId::from_bytes([7; 16]);
const LIFE: Incarnation = Incarnation(42);
const START: i64 = 1_700_000_000_000;

const CHANGED: &str = "the bytes on disk changed: see the head of tests/disk_format.rs \
                       (raise the version, then run once with UPDATE_EXPECT=1)";

/// The bytes that are committed under this name; with `UPDATE_EXPECT` set, after `now` was written there.
fn golden(name: &str, now: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.hex"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let mut text = String::new();
        for line in now.chunks(32) {
            for byte in line {
                write!(text, "{byte:02x}").expect("a String takes everything");
            }
            text.push('\n');
        }
        fs::write(&path, text).expect("the folder is there");
    }
    let text = fs::read_to_string(&path).expect("golden bytes: run once with UPDATE_EXPECT=1");
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("two digits")
    });
    pairs.collect()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(START + seconds * 1000)
}

fn session() -> Session {
    Session {
        incarnation: LIFE,
        session: 3,
        boot_id: vec![1; 16],
        interval: Duration::from_secs(10),
        clock_offset_ms: -250,
    }
}

fn frame(seq: u64, payload: Vec<u8>) -> FrameIn {
    let seconds = i64::try_from(seq).expect("small") * 10;
    FrameIn {
        incarnation: LIFE,
        seq,
        lane: Lane::Live,
        tick: at(seconds),
        received: at(seconds + 1),
        crc32c: crc32c::crc32c(&payload),
        payload: payload.into(),
    }
}

#[test]
fn records_read_as_they_were_written() {
    let records = [
        ("session", Record::Session(session())),
        ("frame", Record::Frame(frame(9, b"sample".to_vec()))),
        (
            "rejected",
            Record::Rejected {
                incarnation: LIFE,
                seq: 300,
                reason: v1::RejectReason::Checksum.into(),
            },
        ),
        (
            "gap",
            Record::Gap {
                incarnation: LIFE,
                first: 10,
                last: 1 << 40,
            },
        ),
        (
            "fin",
            Record::Fin {
                incarnation: LIFE,
                last_seq: 301,
                reason: v1::FinReason::Reboot.into(),
            },
        ),
    ];
    for (name, record) in records {
        let bytes = record.encode(HOST).expect("encodes");
        let kept = golden(&format!("record-{name}"), &bytes);
        let (host, read) = Record::decode(&kept).expect(CHANGED);
        assert_eq!(host, HOST, "{name}: {CHANGED}");
        assert_eq!(format!("{read:?}"), format!("{record:?}"), "{CHANGED}");
        assert_eq!(bytes, kept, "{name}: {CHANGED}");
    }
}

/// A large payload is deflated; with which bytes is the library's business, so only reading is held to the golden file.
#[test]
fn a_deflated_frame_reads_as_it_was_written() {
    let payload = b"node_cpu_seconds_total ".repeat(100);
    let record = Record::Frame(frame(10, payload.clone()));
    let bytes = record.encode(HOST).expect("encodes");
    assert!(bytes.len() < payload.len() / 10, "{} bytes", bytes.len());
    for bytes in [&bytes, &golden("record-frame-deflated", &bytes)] {
        let (host, read) = Record::decode(bytes).expect(CHANGED);
        assert_eq!(host, HOST, "{CHANGED}");
        assert_eq!(format!("{read:?}"), format!("{record:?}"), "{CHANGED}");
    }
    let cut = Record::decode(&bytes[..bytes.len() - 4]);
    assert!(cut.is_err(), "half a payload is none");
}

/// A failed unit and a counter.
fn table() -> Table {
    let family = |name: &str, kind, labels: &[&str]| Family {
        name: name.into(),
        kind,
        scale: Scale::One,
        labels: labels.iter().map(|&label| label.into()).collect(),
    };
    let unit = ["name", "state", "type"];
    Table {
        families: vec![
            family("node_systemd_unit_state", Kind::Gauge, &unit),
            family(
                "node_network_receive_bytes_total",
                Kind::Counter,
                &["device"],
            ),
        ],
        series: vec![
            Series {
                family: 0,
                labels: ["cron.service", "failed", "simple"]
                    .map(Into::into)
                    .to_vec(),
            },
            Series {
                family: 1,
                labels: vec!["eth0".into()],
            },
        ],
        raw: vec![Raw::int(1), Raw::int(0)],
        present: vec![true, true],
        ..Table::default()
    }
}

/// A host of which everything that a checkpoint holds is known, and what it is restored with.
struct Sample {
    host: HostState,
    names: Names,
    changes: Changes,
    engine: Engine,
    /// Stands still: how long something took must not change the bytes.
    now: Instant,
}

impl Sample {
    fn new() -> Self {
        let who = Enrolled {
            id: HOST,
            name: "web-01".into(),
            labels: BTreeMap::new(),
            facts: v1::HostFacts::default(),
            certificate_not_after: None,
        };
        Self {
            host: HostState::new(who, at(0)),
            names: Names::default(),
            changes: Changes::default(),
            engine: Engine::new(&DetectConfig::default()),
            now: Instant::now(),
        }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut HostState, &mut Receiving<'_>) -> T) -> T {
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: 1000,
            now: self.now,
            replayed: false,
        };
        f(&mut self.host, &mut context)
    }

    fn live(mut self) -> Self {
        self.host.begin_session(session());
        let (mut table, mut encoder) = (table(), Encoder::new());
        for seq in 1..=2 {
            table.raw[1] = Raw::int(i64::try_from(seq).expect("small") * 5000);
            let mut payload = Vec::new();
            encoder.encode(&table, &[], seq == 1, &mut payload);
            let mut told = Vec::new();
            let frame = frame(seq, payload);
            let verdict = self.with(|host, context| host.receive(&frame, context, &mut told));
            assert_eq!(verdict, Verdict::Store);
            assert_eq!(told.len(), usize::from(seq == 1), "the unit has failed");
            self.host.stored(LIFE, seq);
        }
        self.host.rejected(LIFE, 3);
        self.host.gap(LIFE, 5, 8);
        let now = self.now;
        self.host.set_connected(true);
        self.host.judge(&Surroundings::alone(now, at(21), now));
        self
    }
}

#[test]
fn a_checkpoint_reads_as_it_was_written() {
    let mut sample = Sample::new().live();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoint");
    let host = sample.host.write_checkpoint().expect("encodes");
    let written = Checkpoint {
        covers: 77,
        hosts: vec![host],
    };
    checkpoint::write(&path, &written).expect("written");
    let bytes = fs::read(&path).expect("readable");
    let kept = golden("checkpoint", &bytes);

    fs::write(&path, &kept).expect("written");
    let read = checkpoint::read(&path).expect(CHANGED).expect("is there");
    assert_eq!(read.covers, 77);
    let mut restored = Sample::new();
    restored
        .with(|host, context| host.restore(&read.hosts[0], context))
        .expect(CHANGED);
    let host = &restored.host;
    let books = host.books();
    assert_eq!(
        (books.produced, books.stored, books.rejected, books.lost),
        (8, 2, 1, 4),
        "{CHANGED}"
    );
    assert_eq!(host.last_tick(), Some(at(20)), "{CHANGED}");
    assert_eq!(host.last_seen(), Some(at(21)), "{CHANGED}");
    assert_eq!(host.liveness(), Liveness::Live, "{CHANGED}");
    assert_eq!(host.interval(), Duration::from_secs(10), "{CHANGED}");
    assert_eq!(host.units(), sample.host.units(), "{CHANGED}");
    assert_eq!(host.units().len(), 1, "{CHANGED}");
    assert_eq!(host.series_count(), 2, "{CHANGED}");
    assert_eq!(host.detection(), sample.host.detection(), "{CHANGED}");
    assert!(bytes == kept, "{CHANGED}");
}
