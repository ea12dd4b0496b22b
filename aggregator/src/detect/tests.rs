//! Detectors and engine, replayed: tables, missing data, restarts.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::time::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::fleet::{SIGNALS, Silence, UnitState};

mod bounds;
mod clocks;

/// Interval of the hosts in these tests, in seconds.
const INTERVAL: i64 = 10;

const QUIET: Signals = [f32::NAN; SIGNALS.len()];

/// A host that is shown to the engine tick by tick.
struct Host {
    engine: Engine,
    state: HostDetection,
    told: Vec<Transition>,
    /// Between its ticks, in seconds.
    interval: u64,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            engine: Engine::default(),
            state: HostDetection::default(),
            told: Vec::new(),
            interval: INTERVAL.unsigned_abs(),
        }
    }
}

/// What one tick shows.
#[derive(Debug, Clone, Default)]
struct Shown {
    /// `None`: not asked.
    filesystems: Option<Vec<FilesystemPoint>>,
    units: Option<Vec<Unit>>,
    backfilled: bool,
}

impl Host {
    fn show(&mut self, second: i64, shown: &Shown) {
        let seen = Observation {
            tick: at(second),
            interval: Duration::from_secs(self.interval),
            live: !shown.backfilled,
            signals: &QUIET,
            filesystems: shown.filesystems.as_deref().unwrap_or_default(),
            filesystems_known: shown.filesystems.is_some(),
            units: shown.units.as_deref().unwrap_or_default(),
            units_known: shown.units.is_some(),
            samples: &[],
            who: None,
        };
        self.engine.step(&mut self.state, &seen, &mut self.told);
    }

    fn hear(&mut self, second: i64, liveness: Liveness) {
        let standing = Standing {
            liveness,
            past: None,
            account: "",
        };
        self.engine
            .standing(&mut self.state, at(second), &standing, &mut self.told);
    }

    /// What was told since the last call: `+` or `-`, severity, since and when in seconds.
    fn told(&mut self) -> Vec<String> {
        let told = self.told.drain(..).map(|one| {
            let sign = match one.change {
                Change::Opened { .. } => '+',
                Change::Cleared { .. } => '-',
            };
            let seconds = |time: Timestamp| time.as_millis() / 1000;
            format!(
                "{sign}{} {}{} {}..{}",
                one.severity.as_str(),
                one.subject,
                if one.subject.is_empty() { one.rule } else { "" },
                seconds(one.since),
                seconds(one.at)
            )
        });
        told.collect()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_millis(second * 1000)
}

fn filesystem(used_ratio: f64) -> FilesystemPoint {
    let size = 100e9;
    FilesystemPoint {
        mountpoint: "/".to_owned(),
        size,
        available: size * (1.0 - used_ratio),
        used_ratio,
        inodes_used_ratio: Some(0.1),
        ..FilesystemPoint::default()
    }
}

fn full(used_ratio: f64) -> Shown {
    Shown {
        filesystems: Some(vec![filesystem(used_ratio)]),
        ..Shown::default()
    }
}

fn unit(state: UnitState) -> Shown {
    let name = "cron.service".to_owned();
    Shown {
        units: Some(vec![Unit {
            name,
            state,
            since: None,
            restarts: 0,
            restarts_recent: 0,
        }]),
        ..Shown::default()
    }
}

/// A name, what is shown for how many ticks, and what must be told.
type Replay = (&'static str, Vec<(usize, Shown)>, Vec<&'static str>);

/// Shows each phase for so many ticks, one after the other; what was told.
fn replay(phases: &[(usize, Shown)]) -> Vec<String> {
    let mut host = Host::default();
    let ticks = phases.iter().flat_map(|(ticks, shown)| vec![shown; *ticks]);
    for (shown, second) in ticks.zip((0..).step_by(10)) {
        host.show(second, shown);
    }
    host.told()
}

#[test]
fn filesystems_open_and_clear_after_five_minutes_without_a_break() {
    let unknown = Shown::default;
    let late = |used| Shown {
        backfilled: true,
        ..full(used)
    };
    let hung = || {
        let point = FilesystemPoint {
            hung: true,
            ..filesystem(f64::NAN)
        };
        Shown {
            filesystems: Some(vec![point]),
            ..Shown::default()
        }
    };
    let gone = || Shown {
        filesystems: Some(Vec::new()),
        ..Shown::default()
    };
    let readonly = || {
        let point = FilesystemPoint {
            readonly: true,
            ..filesystem(1.0)
        };
        Shown {
            filesystems: Some(vec![point]),
            ..Shown::default()
        }
    };
    let large = |available: f64| {
        let point = FilesystemPoint {
            available,
            size: available * 20.0,
            ..filesystem(0.95)
        };
        Shown {
            filesystems: Some(vec![point]),
            ..Shown::default()
        }
    };
    let inodes = |used: f64| {
        let point = FilesystemPoint {
            inodes_used_ratio: Some(used),
            ..filesystem(0.1)
        };
        Shown {
            filesystems: Some(vec![point]),
            ..Shown::default()
        }
    };
    let flapping = |low: f64, high: f64| {
        let pairs = (0..60).flat_map(|_| [(1, full(low)), (1, full(high))]);
        pairs.collect::<Vec<_>>()
    };
    let opening = [(31, full(0.92))];
    let after = |more: &[(usize, Shown)]| [&opening[..], more].concat();
    let opened = "+warning / 0..300";
    let table: Vec<Replay> = vec![
        ("room", vec![(100, full(0.5))], vec![]),
        (
            "too short",
            vec![(30, full(0.92)), (1, full(0.5)), (30, full(0.92))],
            vec![],
        ),
        ("warning", opening.to_vec(), vec![opened]),
        (
            "critical at once",
            vec![(31, full(0.99))],
            vec!["+critical / 0..300"],
        ),
        (
            "raised",
            after(&[(31, full(0.98))]),
            vec![opened, "-warning / 0..610", "+critical / 310..610"],
        ),
        (
            "not lowered",
            vec![(31, full(0.98)), (99, full(0.92))],
            vec!["+critical / 0..300"],
        ),
        (
            "cleared",
            after(&[(31, full(0.87))]),
            vec![opened, "-warning / 0..610"],
        ),
        (
            "between the bounds",
            after(&[(99, full(0.89))]),
            vec![opened],
        ),
        ("around the bound, closed", flapping(0.895, 0.905), vec![]),
        (
            "around the bound, open",
            after(&flapping(0.875, 0.885)),
            vec![opened],
        ),
        (
            "from low to high, open",
            after(&flapping(0.5, 0.95)),
            vec![opened],
        ),
        ("hung is no recovery", after(&[(99, hung())]), vec![opened]),
        (
            "not asked is no recovery",
            after(&[(99, unknown())]),
            vec![opened],
        ),
        (
            "not mounted is no recovery",
            after(&[(99, gone())]),
            vec![opened],
        ),
        (
            "gone for a day",
            after(&[(8641, gone())]),
            vec![opened, "-warning / 0..86710"],
        ),
        ("read-only", vec![(99, readonly())], vec![]),
        ("much is left", vec![(99, large(60e9))], vec![]),
        ("near the guard", vec![(99, large(55e9))], vec![]),
        ("little is left", vec![(31, large(50e9))], vec![opened]),
        (
            "inodes",
            vec![(31, inodes(0.93))],
            vec!["+warning / inodes 0..300"],
        ),
        (
            "unknown breaks the run",
            vec![(30, full(0.95)), (1, unknown()), (30, full(0.95))],
            vec![],
        ),
        (
            "held back alone tells nothing",
            vec![(99, late(0.95))],
            vec![],
        ),
        (
            "held back counts once it is seen live",
            vec![(99, late(0.95)), (1, full(0.95))],
            vec!["+warning / 0..990"],
        ),
        (
            "held back clears nothing",
            after(&[(99, late(0.5))]),
            vec![opened],
        ),
    ];
    for (name, phases, expected) in table {
        assert_eq!(replay(&phases), expected, "{name}");
    }
}

/// A host that ticks each minute.
fn minutely() -> Host {
    Host {
        interval: 60,
        ..Host::default()
    }
}

/// A filesystem that is empty for half a day and then grows by this share an hour; what is told by when.
fn grows(by_hour: f64, minutes: std::ops::Range<i64>, host: &mut Host) {
    for minute in minutes {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let grown = ((minute - 720).max(0) as f64 / 60.0) * by_hour;
        // Sixty days at this rate would fill it, or less; the guard of `filesystem_full` is not asked.
        let point = FilesystemPoint {
            inodes_used_ratio: None,
            ..filesystem((0.3 + grown).min(1.0))
        };
        host.show(
            minute * 60,
            &Shown {
                filesystems: Some(vec![point]),
                ..Shown::default()
            },
        );
    }
}

#[test]
fn a_runaway_is_told_hours_before_it_fills_the_disk() {
    let mut host = minutely();
    // Full seven hours after it began.
    grows(0.1, 0..720 + 360, &mut host);
    let told: Vec<_> = host
        .told
        .drain(..)
        .filter(|one| one.rule == "filesystem_full_soon")
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let summary = match &told[0].change {
        Change::Opened { summary, .. } => summary.as_str(),
        Change::Cleared { .. } => "cleared",
    };
    assert!(summary.starts_with("/ full in "), "{summary}");
    let left = (720 + 420) * 60 - told[0].at.as_millis() / 1000;
    assert!(left >= 3600, "told {left} s before the end");
    // What is shown beside the filesystem is what was told.
    let [space, inodes] = host.state.full_in("/");
    let space = space.expect("a forecast");
    assert!((0.5..2.0).contains(&space.hours), "{space:?}");
    assert_eq!(inodes, None);
}

/// One filesystem, this full.
fn shows(host: &mut Host, minute: i64, used: f64) {
    let point = FilesystemPoint {
        inodes_used_ratio: None,
        ..filesystem(used)
    };
    let shown = Shown {
        filesystems: Some(vec![point]),
        ..Shown::default()
    };
    host.show(minute * 60, &shown);
}

/// What was told of disks that will be full: whether it opened, and the minute.
fn full_soon(host: &Host) -> Vec<(bool, i64)> {
    let told = host.told.iter();
    told.filter(|one| one.rule == "filesystem_full_soon")
        .map(|one| {
            let opened = matches!(one.change, Change::Opened { .. });
            (opened, one.at.as_millis() / 60_000)
        })
        .collect()
}

#[test]
fn a_clean_up_ends_what_was_told_and_the_next_growth_is_told_anew() {
    let mut host = minutely();
    grows(0.1, 0..1080, &mut host);
    // Somebody makes room; nothing grows for two hours, then it runs away again.
    for minute in 1080..1200 {
        shows(&mut host, minute, 0.2);
    }
    for minute in 1200..1560 {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let grown = (minute - 1200) as f64 / 60.0 * 0.14;
        shows(&mut host, minute, (0.2 + grown).min(1.0));
    }
    let told = full_soon(&host);
    let changes: Vec<bool> = told.iter().map(|(opened, _)| *opened).take(3).collect();
    assert_eq!(changes, [true, false, true], "{told:?}");
    let (cleared, again) = (told[1].1, told[2].1);
    assert_eq!(cleared, 1140, "an hour after the clean-up");
    assert!((1200..1500).contains(&again), "{told:?}");
}

#[test]
fn what_is_not_known_yet_ends_nothing() {
    // Its detectors know of no time any more, as after a clock that was wrong; in the store it is open.
    let mut host = minutely();
    grows(0.1, 0..1080, &mut host);
    host.state.forget_time();
    host.told.clear();
    for minute in 1080..1440 {
        shows(&mut host, minute, 0.9);
    }
    assert_eq!(full_soon(&host), []);
}

#[test]
fn a_reboot_ends_a_leak() {
    use super::memory_leak::Usage;
    let mut usage = Usage::default();
    usage.restarted();
    assert_ne!(
        usage,
        Usage::default(),
        "it is told apart from what is not known yet"
    );
    usage.forget();
    assert_eq!(usage, Usage::default());
}

#[test]
fn what_does_not_grow_or_is_not_asked_has_no_forecast() {
    let mut flat = minutely();
    grows(0.0, 0..2 * 1440, &mut flat);
    assert!(flat.told.is_empty());
    assert_eq!(flat.state.full_in("/"), [None, None]);
    let mut hung = minutely();
    for minute in 0..1440 {
        let point = FilesystemPoint {
            hung: true,
            ..filesystem(0.5)
        };
        hung.show(
            minute * 60,
            &Shown {
                filesystems: Some(vec![point]),
                ..Shown::default()
            },
        );
    }
    assert_eq!(hung.state.full_in("/"), [None, None]);
    assert!(hung.told.is_empty());
}

#[test]
fn a_missed_tick_breaks_the_run() {
    for (missed, expected) in [(0, vec!["+warning / 0..300"]), (1, vec![]), (30, vec![])] {
        let mut host = Host::default();
        for tick in (0..31).filter(|tick| !(20..20 + missed).contains(tick)) {
            host.show(tick * INTERVAL, &full(0.95));
        }
        assert_eq!(host.told(), expected, "{missed} missed");
    }
}

#[test]
fn units_are_told_when_they_fail_and_clear_after_a_minute() {
    use UnitState::{Activating, Active, Deactivating, Failed, Inactive};
    let unknown = Shown::default;
    let gone = || Shown {
        units: Some(Vec::new()),
        ..Shown::default()
    };
    let failed = "+warning cron.service 10..10";
    let after = |more: &[(usize, Shown)]| [&[(1, unit(Active)), (1, unit(Failed))], more].concat();
    let table: Vec<Replay> = vec![
        (
            "works",
            vec![(9, unit(Active)), (9, unit(Inactive))],
            vec![],
        ),
        ("starts for ever", vec![(99, unit(Activating))], vec![]),
        ("fails", after(&[(99, unit(Failed))]), vec![failed]),
        (
            "active",
            after(&[(7, unit(Active))]),
            vec![failed, "-warning cron.service 10..80"],
        ),
        (
            "inactive",
            after(&[(7, unit(Inactive))]),
            vec![failed, "-warning cron.service 10..80"],
        ),
        (
            "on its way",
            after(&[(99, unit(Deactivating))]),
            vec![failed],
        ),
        (
            "crash loop is one incident",
            after(&vec![[(3, unit(Active)), (1, unit(Failed))]; 20].concat()),
            vec![failed],
        ),
        (
            "no manager is no recovery",
            after(&[(999, unknown())]),
            vec![failed],
        ),
        ("removed", after(&[(90, gone())]), vec![failed]),
        (
            "removed",
            after(&[(91, gone())]),
            vec![failed, "-warning cron.service 10..920"],
        ),
        (
            "listed again",
            after(&[(80, gone()), (1, unit(Failed)), (80, gone())]),
            vec![failed],
        ),
    ];
    for (name, phases, expected) in table {
        assert_eq!(replay(&phases), expected, "{name}");
    }
}

#[test]
fn silence_is_told_unless_it_was_announced() {
    use Liveness::{Joined, Late, Live, Silent};
    let told = |stands: &[Liveness]| {
        let mut host = Host::default();
        for (liveness, second) in stands.iter().zip((100..).step_by(100)) {
            host.hear(second, *liveness);
        }
        host.told()
    };
    let opened = "+critical host_silent 300..300";
    let silent = Silent(Silence::Unknown);
    for (stands, expected) in [
        (vec![Joined, Late, Live, Late, Live], vec![]),
        (vec![Live, Late, silent, silent], vec![opened]),
        (vec![Live, Late, silent, Late], vec![opened]),
        (
            vec![Live, Late, silent, Live],
            vec![opened, "-critical host_silent 300..400"],
        ),
        (vec![Live, Silent(Silence::Stopped), Live], vec![]),
        (vec![Live, Silent(Silence::Reboot), Late], vec![]),
        // Announced, and late back: one incident.
        (
            vec![
                Live,
                Silent(Silence::Reboot),
                Silent(Silence::Overdue),
                Live,
            ],
            vec![opened, "-critical host_silent 300..400"],
        ),
        // The cause becomes clear: still one.
        (
            vec![Live, Late, silent, Silent(Silence::Certificate)],
            vec![opened],
        ),
        // The goodbye arrives late, with the backlog of another life: the silence was still unannounced.
        (
            vec![Live, Late, silent, Silent(Silence::Shutdown)],
            vec![opened],
        ),
    ] {
        assert_eq!(told(&stands), expected, "{stands:?}");
    }
}

#[test]
fn ticks_of_a_host_neither_open_nor_clear_its_silence() {
    let mut host = Host::default();
    host.show(0, &full(0.5));
    host.hear(60, Liveness::Silent(Silence::Unknown));
    let change = host.told.first().map(|told| told.change.clone());
    let evidence = "last sample 1970-01-01T00:00:00Z by the host's clock".to_owned();
    let summary = "silent: nothing tells why".to_owned();
    assert_eq!(change, Some(Change::Opened { summary, evidence }));
    assert_eq!(host.told(), ["+critical host_silent 60..60"]);
    // A backlog comes in before the host counts as heard.
    for second in 1..100 {
        host.show(second * INTERVAL, &full(0.5));
    }
    assert!(host.told().is_empty());
    host.hear(2000, Liveness::Live);
    assert_eq!(host.told(), ["-critical host_silent 60..2000"]);
}

fn opening(subject: &str, severity: Severity, since: i64) -> Opening {
    let rule = "filesystem_full".to_owned();
    Opening {
        rule,
        subject: subject.to_owned(),
        severity,
        since: at(since),
    }
}

#[test]
fn what_is_open_is_the_word_of_the_store() {
    // Lost track: open until observed normal.
    let mut host = Host::default();
    host.engine
        .adopt(&mut host.state, &[opening("/", Severity::Critical, -5000)]);
    for tick in 0..99 {
        host.show(tick * INTERVAL, &Shown::default());
    }
    assert!(host.told().is_empty());
    for tick in 99..150 {
        host.show(tick * INTERVAL, &full(0.5));
    }
    assert_eq!(host.told(), ["-critical / -5000..1290"]);

    // Never stored: told again, as the same opening.
    let mut host = Host::default();
    for tick in 0..31 {
        host.show(tick * INTERVAL, &full(0.95));
    }
    let first = host.told.clone();
    host.told.clear();
    host.engine.adopt(&mut host.state, &[]);
    host.show(310, &full(0.95));
    assert_eq!(host.told.len(), 1);
    assert_eq!(
        (host.told[0].since, host.told[0].severity),
        (first[0].since, first[0].severity)
    );
}

#[test]
fn a_replay_does_not_undo_what_the_store_knows_of_later() {
    let mut host = Host::default();
    // The checkpoint is from before; in the store an incident is open since second 1000.
    host.engine
        .adopt(&mut host.state, &[opening("/", Severity::Warning, 1000)]);
    for tick in 0..100 {
        host.show(tick * INTERVAL, &full(0.5));
    }
    for tick in 100..140 {
        host.show(tick * INTERVAL, &full(0.95));
    }
    assert!(host.told().is_empty());
    for tick in 140..171 {
        host.show(tick * INTERVAL, &full(0.5));
    }
    assert_eq!(host.told(), ["-warning / 1000..1700"]);
}

/// What a host may show at one tick.
fn shown() -> impl Strategy<Value = Shown> {
    let ratio = prop::sample::select(vec![0.5, 0.87, 0.89, 0.91, 0.98]);
    let state = prop::sample::select(UnitState::ALL.to_vec());
    (ratio, state, prop::bool::weighted(0.1)).prop_map(|(ratio, state, backfilled)| Shown {
        filesystems: full(ratio).filesystems,
        units: unit(state).units,
        backfilled,
    })
}

/// A host that stays as it is for a while, so that runs come to their length, with moments between them; and
/// what is missing of each phase.
fn phases() -> impl Strategy<Value = Vec<(Shown, Missing)>> {
    let length = prop_oneof![1_usize..3, 20_usize..60];
    let phase = (length, shown(), missing());
    prop::collection::vec(phase, 1..30).prop_map(|phases| {
        let ticks = phases.into_iter();
        ticks
            .flat_map(|(length, shown, missing)| vec![(shown, missing); length])
            .collect()
    })
}

/// What is missing of a tick.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Missing {
    Nothing,
    Filesystems,
    Units,
    Everything,
    /// The tick itself.
    Tick,
}

fn missing() -> impl Strategy<Value = Missing> {
    prop_oneof![
        6 => Just(Missing::Nothing),
        1 => Just(Missing::Filesystems),
        1 => Just(Missing::Units),
        1 => Just(Missing::Everything),
        1 => Just(Missing::Tick),
    ]
}

type OpenNow = BTreeMap<(&'static str, String), Severity>;

/// Applies what was told to what is open.
fn apply(open: &mut OpenNow, told: &[Transition]) {
    for one in told {
        let key = (one.rule, one.subject.clone());
        match one.change {
            Change::Opened { .. } => open.insert(key, one.severity),
            Change::Cleared { .. } => open.remove(&key),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Taking observations away only moves answers towards unknown: what then opens is open in the full
    /// history too, and as grave; what then clears is not open in it.
    #[test]
    fn what_is_missing_opens_nothing_and_clears_nothing(
        phases in phases(),
    ) {
        let (mut whole, mut parts) = (Host::default(), Host::default());
        let mut open = OpenNow::new();
        for ((shown, missing), second) in phases.iter().zip((0..).step_by(10)) {
            whole.show(second, shown);
            apply(&mut open, &std::mem::take(&mut whole.told));
            let mut left = shown.clone();
            if matches!(missing, Missing::Filesystems | Missing::Everything) {
                left.filesystems = None;
            }
            if matches!(missing, Missing::Units | Missing::Everything) {
                left.units = None;
            }
            if *missing != Missing::Tick {
                parts.show(second, &left);
            }
            let told = std::mem::take(&mut parts.told);
            for (index, one) in told.iter().enumerate() {
                let there = open.get(&(one.rule, one.subject.clone()));
                match one.change {
                    Change::Opened { .. } => prop_assert!(there >= Some(&one.severity)),
                    // Replaced by a graver one in the same breath.
                    Change::Cleared { .. }
                        if told.get(index + 1).is_some_and(|next| next.subject == one.subject) => {}
                    Change::Cleared { .. } => prop_assert_eq!(there, None),
                }
            }
        }
    }

    /// A restart from a checkpoint at any tick tells what would have been told, and scores with the same bits.
    #[test]
    fn a_restart_changes_no_bit(
        history in phases(),
        restart in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let (mut steady, mut restarted) = (Host::default(), Host::default());
        let restart = restart.index(history.len());
        let mut noise = Noise(seed);
        for (tick, (shown, _)) in history.iter().enumerate() {
            if tick == restart {
                let kept = postcard::to_stdvec(&restarted.state).expect("it serialises");
                restarted.state = postcard::from_bytes(&kept).expect("and back");
            }
            // Ten minutes a tick, so that scoring begins within the history.
            let second = i64::try_from(tick).expect("short") * 600;
            let mut signals = QUIET;
            signals[..8].fill_with(|| noise.next());
            for host in [&mut steady, &mut restarted] {
                let seen = Observation {
                    tick: at(second),
                    interval: Duration::from_secs(600),
                    live: !shown.backfilled,
                    signals: &signals,
                    filesystems: shown.filesystems.as_deref().unwrap_or_default(),
                    filesystems_known: true,
                    units: shown.units.as_deref().unwrap_or_default(),
                    units_known: true,
                    samples: &[],
                    who: None,
                };
                host.engine.step(&mut host.state, &seen, &mut host.told);
            }
            prop_assert_eq!(
                steady.state.score().map(f64::to_bits),
                restarted.state.score().map(f64::to_bits)
            );
        }
        prop_assert_eq!(&steady.told, &restarted.told);
        prop_assert_eq!(steady.state, restarted.state);
    }
}

/// Numbers between 0 and 1 from a seed (Vigna's splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        f32::from(u16::try_from(bits >> 48).expect("16 bits are left")) / 65_536.0
    }
}

/// Shows a host of four signals second by second; `spoil` may change them.
fn behave(
    ticks: std::ops::Range<i64>,
    interval: i64,
    host: &mut Host,
    mut spoil: impl FnMut(i64, &mut [f32]),
) {
    let mut noise = Noise(7);
    for tick in ticks {
        let mut signals = QUIET;
        for (signal, usual) in signals.iter_mut().zip([0.2, 1.5, 3000.0, 0.6]) {
            *signal = usual * (1.0 + 0.1 * noise.next());
        }
        spoil(tick, &mut signals);
        let seen = Observation {
            tick: at(tick * interval),
            interval: Duration::from_secs(interval.unsigned_abs()),
            live: true,
            signals: &signals,
            filesystems: &[],
            filesystems_known: false,
            units: &[],
            units_known: false,
            samples: &[],
            who: None,
        };
        host.engine.step(&mut host.state, &seen, &mut host.told);
    }
}

#[test]
fn the_score_names_what_moved_and_makes_no_incident() {
    // At 10 s, 30 s and five minutes alike: a day of the usual, then two metrics that leave it.
    for interval in [10, 30, 300] {
        let mut host = Host::default();
        let day = 86_400 / interval;
        behave(0..day, interval, &mut host, |_, _| {});
        assert!(!host.state.learning());
        assert_eq!(host.state.anomaly(), None, "interval {interval}");
        let hour = 3600 / interval;
        behave(day..day + hour, interval, &mut host, |_, signals| {
            signals[0] = 0.9;
            signals[2] = 50_000.0;
        });
        let anomaly = host.state.anomaly().expect("this is unusual");
        let names: Vec<_> = anomaly.causes.iter().map(|cause| cause.signal).collect();
        assert_eq!(names, [SIGNALS[2], SIGNALS[0]], "interval {interval}");
        assert!(
            (0.19..0.25).contains(&anomaly.causes[1].usual),
            "{:?}",
            anomaly.causes
        );
        let began = anomaly.since.millis_since(at(day * interval));
        assert!(
            (0..=600_000).contains(&began),
            "interval {interval}: {began}"
        );
        assert!(host.told.is_empty(), "a lone host's anomaly calls nobody");
        // It becomes the usual, and the anomaly ends.
        behave(day + hour..2 * day, interval, &mut host, |_, signals| {
            signals[0] = 0.9;
            signals[2] = 50_000.0;
        });
        assert_eq!(host.state.anomaly(), None, "interval {interval}");
    }
}

#[test]
fn nothing_is_scored_while_learning_and_after_a_gap() {
    let mut host = Host::default();
    behave(0..359, 60, &mut host, |_, _| {});
    assert!(host.state.learning());
    assert_eq!(host.state.score(), None);
    behave(359..800, 60, &mut host, |_, _| {});
    assert!(host.state.score().is_some());
    // Two hours of nothing, then a changed host: a quarter of an hour without a judgement.
    behave(920..934, 60, &mut host, |_, signals| signals[0] = 0.9);
    assert_eq!(host.state.score(), None);
    behave(934..940, 60, &mut host, |_, _| {});
    assert!(host.state.score().is_some());
}

#[test]
fn a_flat_host_is_never_unusual() {
    let mut host = Host::default();
    behave(0..3000, 60, &mut host, |_, signals| signals.fill(42.0));
    assert_eq!(host.state.score(), Some(0.0));
}

#[test]
fn a_table_is_scored_by_the_same_fold() {
    let mut table = "t,anything,at all\n".to_owned();
    let mut noise = Noise(3);
    for minute in 0..1000 {
        let second = minute * 60;
        let value = if minute > 990 { 9.0 } else { noise.next() };
        table.push_str(&format!("{second},{value},\n"));
    }
    let scored = offline::score_csv(table.as_bytes(), &DetectConfig::default());
    let scored = scored.expect("the table is well formed");
    assert_eq!(scored.len(), 1000);
    assert!(scored[..980].iter().all(|row| !row.alert));
    assert!(scored[995].alert && scored[995].score > 5.0);
    assert_eq!(scored[995].first, Some(0));
    let wrong = offline::score_csv("t,x\nnow,1\n".as_bytes(), &DetectConfig::default());
    let message = wrong.expect_err("no time").to_string();
    assert_eq!(message, "line 2: `now` is no time in seconds");
}
