//! One host in virtual time: its goodbyes, returns and restarts of the aggregator, as its detectors hear of them.

use muster_proto::{
    codec::Encoder,
    series::{Kind, Scale, Series, Table},
};

use super::*;
use crate::detect::Change;

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const INTERVAL: Duration = Duration::from_secs(10);
/// How long agents have to come back to an aggregator that was away: 75 s, and a step.
const PATIENCE: u64 = 76;

fn who() -> Enrolled {
    Enrolled {
        id: HostId::from_bytes([1; 16]),
        name: "web-01".to_owned(),
        labels: BTreeMap::new(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    }
}

struct Lab {
    host: HostState,
    names: Names,
    changes: Changes,
    engine: Engine,
    start: Instant,
    now: Duration,
    listening_since: Instant,
    seq: u64,
    life: Incarnation,
    /// What the detectors concluded, as `+critical` and `-critical`, with the second.
    told: Vec<(u64, &'static str)>,
}

impl Lab {
    /// A host that was heard for a while.
    fn new() -> Self {
        let start = Instant::now();
        let mut lab = Self {
            host: HostState::new(who(), START),
            names: Names::default(),
            changes: Changes::default(),
            engine: Engine::default(),
            start,
            now: Duration::ZERO,
            listening_since: start,
            seq: 0,
            life: Incarnation(1),
            told: Vec::new(),
        };
        lab.hello(1);
        for _ in 0..20 {
            lab.frame();
            lab.pass(10);
        }
        lab.frame();
        assert_eq!(lab.host.liveness(), Liveness::Live);
        lab
    }

    fn wall(&self) -> Timestamp {
        START.plus(self.now)
    }

    fn session(&self) -> Session {
        Session {
            incarnation: self.life,
            session: self.life.0,
            boot_id: vec![u8::try_from(self.life.0).expect("few"); 16],
            interval: INTERVAL,
            clock_offset_ms: 0,
        }
    }

    /// It connects, on the boot of that number.
    fn hello(&mut self, boot: u64) {
        if self.life != Incarnation(boot) {
            (self.life, self.seq) = (Incarnation(boot), 0);
        }
        self.host.begin_session(self.session());
        self.host.set_connected(true);
        self.host.greeted(self.start + self.now);
    }

    fn frame(&mut self) {
        let mut payload = Vec::new();
        Encoder::new().encode(&Table::default(), &[], true, &mut payload);
        self.sends(payload, self.wall());
    }

    /// A frame with this sample, which the host's clock says was taken then.
    fn sends(&mut self, payload: Vec<u8>, tick: Timestamp) {
        self.seq += 1;
        let frame = FrameIn {
            incarnation: self.life,
            seq: self.seq,
            lane: Lane::Live,
            tick,
            received: self.wall(),
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        };
        let now = self.start + self.now;
        let verdict = self.with(now, |host, context| {
            host.receive(&frame, context, &mut Vec::new())
        });
        assert_eq!(verdict, Verdict::Store);
        self.host.stored(self.life, self.seq);
    }

    fn with<T>(
        &mut self,
        now: Instant,
        f: impl FnOnce(&mut HostState, &mut Receiving<'_>) -> T,
    ) -> T {
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: 1000,
            now,
            replayed: false,
        };
        f(&mut self.host, &mut context)
    }

    fn ends(&mut self) {
        let wall = self.wall();
        self.host.ended(Ended::Closed, wall);
        self.host.set_connected(false);
    }

    fn goodbye(&mut self, reason: v1::FinReason) {
        self.host.fin(self.life, self.seq, reason);
        self.ends();
    }

    /// A frame with this number; what becomes of it.
    fn numbered(&mut self, seq: u64) -> Verdict {
        let mut payload = Vec::new();
        Encoder::new().encode(&Table::default(), &[], true, &mut payload);
        let frame = FrameIn {
            incarnation: self.life,
            seq,
            lane: Lane::Backfill,
            tick: self.wall(),
            received: self.wall(),
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        };
        let now = self.start + self.now;
        self.with(now, |host, context| {
            host.receive(&frame, context, &mut Vec::new())
        })
    }

    fn balance(&self) -> (u64, u64) {
        let books = self.host.books();
        let outstanding = books.produced - books.stored - books.rejected - books.lost;
        (books.lost, outstanding)
    }

    /// Seconds go by, and it is judged twice in each.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.now += Duration::from_millis(500);
            let wall = self.wall();
            let surroundings =
                Surroundings::alone(self.start + self.now, wall, self.listening_since);
            if self.host.judge(&surroundings).is_none() {
                continue;
            }
            let mut out = Vec::new();
            self.host.observe_liveness(&self.engine, wall, &mut out);
            let at = self.now.as_secs();
            self.told.extend(out.iter().map(|one| match one.change {
                Change::Opened { .. } => (at, "+"),
                Change::Cleared { .. } => (at, "-"),
            }));
        }
    }

    /// kill -9 of the aggregator, and its start from this; in the store is what `open` says.
    fn restart(&mut self, from: &CheckpointedHost, open: &[Opening]) {
        self.host = HostState::new(who(), START);
        let now = self.start + self.now;
        self.with(now, |host, context| host.restore(from, context))
            .expect("it reads");
        self.host.adopt(&self.engine, open);
        self.listening_since = now;
    }

    fn checkpoint(&mut self) -> CheckpointedHost {
        self.host.write_checkpoint().expect("it writes")
    }
}

#[test]
fn a_planned_reboot_is_no_silence_until_the_first_samples_either() {
    for reason in [v1::FinReason::Reboot, v1::FinReason::Stopped] {
        let mut lab = Lab::new();
        lab.goodbye(reason);
        lab.pass(120);
        assert_eq!(
            lab.host.liveness(),
            Liveness::Silent(Silence::of_goodbye(reason))
        );
        lab.hello(2);
        lab.pass(9);
        assert_eq!(lab.host.liveness(), Liveness::Late);
        lab.frame();
        lab.pass(1);
        assert_eq!(lab.host.liveness(), Liveness::Live);
        assert_eq!(lab.told, []);
    }
}

#[test]
fn who_comes_back_from_a_reboot_and_sends_nothing_is_silent() {
    let mut lab = Lab::new();
    lab.goodbye(v1::FinReason::Reboot);
    lab.pass(120);
    lab.hello(2);
    lab.pass(60);
    // 30 s after its Hello.
    assert_eq!(lab.told, [(350, "+")]);
    // Again and again it says Hello, and nothing else: that is no sign of life.
    for _ in 0..10 {
        lab.ends();
        lab.hello(2);
        lab.pass(10);
    }
    assert!(matches!(lab.host.liveness(), Liveness::Silent(_)));
    lab.frame();
    lab.pass(1);
    assert_eq!(lab.told, [(350, "+"), (480, "-")]);
}

#[test]
fn an_agent_that_only_says_hello_is_silent_in_time() {
    let mut lab = Lab::new();
    for _ in 0..10 {
        lab.ends();
        lab.hello(1);
        lab.pass(10);
    }
    assert_eq!(lab.told, [(230, "+")]);
}

#[test]
fn an_announced_silence_that_ended_before_a_restart_is_over() {
    let mut lab = Lab::new();
    lab.goodbye(v1::FinReason::Stopped);
    lab.pass(60);
    let kept = lab.checkpoint();
    // It came back after the checkpoint, which the log says, and died while the aggregator was down.
    lab.restart(&kept, &[]);
    (lab.life, lab.seq) = (Incarnation(2), 0);
    let session = lab.session();
    lab.host.begin_session(session);
    lab.pass(1);
    assert_eq!(lab.host.liveness(), Liveness::Late, "stopped it is no more");
    lab.pass(PATIENCE - 1);
    assert_eq!(lab.told.len(), 1, "{:?}", lab.told);
    assert!(matches!(lab.host.liveness(), Liveness::Silent(cause) if !cause.is_announced()));
}

#[test]
fn what_the_store_never_got_is_told_again_after_a_restart() {
    let opening = |lab: &Lab| Opening {
        rule: "host_silent".to_owned(),
        subject: String::new(),
        severity: crate::detect::Severity::Critical,
        since: lab.wall(),
    };
    for stored in [false, true] {
        let mut lab = Lab::new();
        lab.pass(60);
        let open = opening(&lab);
        assert_eq!(std::mem::take(&mut lab.told).len(), 1);
        let kept = lab.checkpoint();
        let open = if stored { vec![open] } else { Vec::new() };
        lab.restart(&kept, &open);
        lab.pass(PATIENCE * 2);
        assert_eq!(lab.told.len(), usize::from(!stored), "stored: {stored}");
    }
    // The same for its end.
    let mut lab = Lab::new();
    let (open, kept) = (opening(&lab), lab.checkpoint());
    lab.pass(1);
    lab.restart(&kept, &[open]);
    lab.hello(1);
    lab.frame();
    lab.pass(1);
    assert_eq!(
        lab.told.iter().map(|(_, what)| *what).collect::<Vec<_>>(),
        ["-"]
    );
}

#[test]
fn who_was_sent_away_has_time_to_come_back_and_then_is_silent() {
    let mut lab = Lab::new();
    for _ in 0..5 {
        lab.host.set_connected(false);
        lab.host.excuse(lab.start + lab.now);
        lab.pass(60);
    }
    assert_eq!(lab.told, []);
    assert_eq!(lab.host.liveness(), Liveness::Late);
    lab.pass(PATIENCE);
    assert_eq!(lab.told, [(515, "+")]);
}

#[test]
fn the_last_boot_outlives_all_that_the_boot_brings() {
    let who = Enrolled {
        id: HostId::from_bytes([1; 16]),
        name: "web-01".to_owned(),
        labels: BTreeMap::new(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    };
    let mut host = HostState::new(who, Timestamp::from_millis(0));
    let mut tell = |kind: v1::EventKind, at_ms, fields| {
        let event = v1::Event {
            kind: kind.into(),
            at_ms,
            fields,
            ..v1::Event::default()
        };
        let mut changes = Changes {
            events: vec![event],
            ..Changes::default()
        };
        host.take_events(&mut changes);
        (host.last_boot(), host.events().count())
    };
    let boot = |clean| {
        let key = v1::EventFieldKey::Clean;
        vec![
            event::integer(key, clean),
            event::integer(v1::EventFieldKey::DownMs, 90_000),
        ]
    };
    assert_eq!(
        tell(v1::EventKind::UnitStateChanged, 0, Vec::new()),
        (None, 1)
    );
    for (at_ms, clean) in [(1_000, 0), (2_000, 1)] {
        tell(v1::EventKind::Booted, at_ms, boot(clean));
        for _ in 0..3 * RECENT_EVENTS {
            let expected = LastBoot {
                at: Timestamp::from_millis(at_ms),
                clean: clean == 1,
                away: Duration::from_secs(90),
            };
            let (last, kept) = tell(v1::EventKind::UnitStateChanged, at_ms, Vec::new());
            assert_eq!(last, Some(expected));
            assert!(kept <= RECENT_EVENTS);
        }
    }
}

#[test]
fn books_in_eight_thousand_pieces_take_no_more_and_balance() {
    let mut lab = Lab::new();
    let life = lab.life;
    // What there is of 21 is one piece; each of these is another, with a hole before it.
    let last = 21 + 2 * (MAX_PIECES as u64 - 1);
    for seq in (23..=last).step_by(2) {
        assert_eq!(lab.numbered(seq), Verdict::Store, "{seq}");
        assert_eq!(lab.host.stored(life, seq), Noted::First);
        lab.host.bound_holes(life);
    }
    let lists = |lab: &Lab| {
        let ledger = lab.host.ledger(life).expect("there");
        let holes = ledger.settled.len();
        assert!(holes <= MAX_HOLES, "{holes}");
        (ledger.durable.len(), ledger.lost.len())
    };
    let (durable, lost) = lists(&lab);
    assert_eq!(durable, MAX_PIECES);
    assert!(lost < MAX_PIECES, "{lost}");
    let (lost_frames, outstanding) = lab.balance();
    assert_eq!(
        lost_frames + outstanding,
        MAX_PIECES as u64 - 1,
        "the holes"
    );

    // One more piece is refused, and noted nowhere; what joins pieces is taken.
    let quota = Verdict::Rejected(v1::RejectReason::Quota);
    assert_eq!(lab.numbered(last + 2), quota);
    assert_eq!(lab.numbered(last + 1), Verdict::Store);
    assert_eq!(lab.host.stored(life, last + 1), Noted::First);
    assert_eq!(lists(&lab).0, MAX_PIECES);
    // A lost one that comes after all is no longer lost.
    assert_eq!(lab.numbered(22), Verdict::Store);
    assert_eq!(lab.host.stored(life, 22), Noted::Found);
    assert_eq!(lab.host.stored(life, 22), Noted::Before);
    assert_eq!(lists(&lab).0, MAX_PIECES - 1);
    assert_eq!(lab.balance().0, lost_frames - 1);
    // So there is room for one again.
    assert_eq!(lab.numbered(last + 4), Verdict::Store);
    assert_eq!(lab.host.stored(life, last + 4), Noted::First);
    lab.host.bound_holes(life);
    assert_eq!(lists(&lab).0, MAX_PIECES);
    assert_eq!(lab.numbered(last + 6), quota);

    // All of it goes through a checkpoint.
    let checkpoint = lab.host.write_checkpoint().expect("encodes");
    let (before, now) = (lab.host.books(), lab.start);
    let mut other = HostState::new(who(), START);
    let restored = lab.with(now, |_, context| other.restore(&checkpoint, context));
    restored.expect("reads");
    assert_eq!(other.books(), before);
}

#[test]
fn an_agent_that_tells_single_frames_as_lost_makes_no_long_list() {
    let mut lab = Lab::new();
    let life = lab.life;
    for seq in (23..40_000).step_by(2) {
        assert_eq!(lab.host.gap(life, seq, seq), Some(1), "{seq}");
        lab.host.bound_holes(life);
        let ledger = lab.host.ledger(life).expect("there");
        let lengths = (ledger.lost.len(), ledger.settled.len());
        assert!(
            lengths.0 <= MAX_HOLES && lengths.1 <= MAX_HOLES,
            "{lengths:?}"
        );
    }
    let (lost, outstanding) = lab.balance();
    assert_eq!(lost + outstanding, 39_999 - 21);
}

/// A unit that is active, then failed (0, 1), its restarts of late (2), and something that changes at each tick (3).
fn of_a_unit() -> Table {
    let family = |name: &str, labels: &[&str]| Family {
        name: name.to_owned(),
        kind: Kind::Gauge,
        scale: Scale::One,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
    };
    let series = |family, labels: &[&str]| Series {
        family,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
    };
    Table {
        families: vec![
            family("node_systemd_unit_state", &["name", "state"]),
            family("muster_host_systemd_unit_restarts_recent", &["name"]),
            family("node_procs_running", &[]),
        ],
        series: vec![
            series(0, &["shop.service", "active"]),
            series(0, &["shop.service", "failed"]),
            series(1, &["shop.service"]),
            series(2, &[]),
        ],
        raw: [1, 0, 5, 1].map(Raw::int).to_vec(),
        present: vec![true; 4],
        generation: 0,
    }
}

#[test]
fn what_a_unit_did_while_the_clock_was_back_is_seen_at_the_next_tick() {
    for restarted in [false, true] {
        let (mut lab, mut table) = (Lab::new(), of_a_unit());
        let mut encoder = Encoder::new();
        let mut take = |table: &Table, key| {
            let mut payload = Vec::new();
            encoder.encode(table, &[], key, &mut payload);
            payload
        };
        lab.pass(10);
        lab.sends(take(&table, true), lab.wall());
        assert_eq!(lab.host.units()[0].state, UnitState::Active);
        lab.pass(10);
        (table.raw[0], table.raw[1]) = (Raw::int(0), Raw::int(1));
        let back = Timestamp::from_millis(lab.wall().as_millis() - 30_000);
        lab.sends(take(&table, false), back);
        if restarted {
            let kept = lab.checkpoint();
            lab.restart(&kept, &[]);
        }
        assert_eq!(lab.host.units()[0].state, UnitState::Active);
        lab.pass(10);
        table.raw[3] = Raw::int(2);
        lab.sends(take(&table, false), lab.wall());
        let failed = lab.host.units()[0].state == UnitState::Failed;
        assert!(failed, "restarted: {restarted}");
    }
}

#[test]
fn a_unit_in_a_loop_is_in_it_after_a_restart_too() {
    let (mut lab, mut table) = (Lab::new(), of_a_unit());
    let mut encoder = Encoder::new();
    for (key, running) in [(true, 1), (false, 2)] {
        lab.pass(10);
        table.raw[3] = Raw::int(running);
        let mut payload = Vec::new();
        encoder.encode(&table, &[], key, &mut payload);
        lab.sends(payload, lab.wall());
        assert!(lab.host.units()[0].is_crash_loop(), "key: {key}");
        let kept = lab.checkpoint();
        lab.restart(&kept, &[]);
    }
}
