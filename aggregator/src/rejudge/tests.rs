//! A fleet that was live once, with its samples in a store, judged again: by the same rules the same, by others what
//! they would have said.

use muster_proto::{
    codec::{Changes, Encoder},
    id::Incarnation,
    series::{Family, Kind, Raw, Scale, Series, Table},
    v1,
};
use tokio::time::Instant;

use super::*;
use crate::{
    detect::{Change, DetectConfig, SAMPLED, rules::Overrides},
    fleet::{
        HostState,
        host::{FrameIn, Lane, Receiving, Session, Verdict},
    },
    history::{Caps, PlainStore, ReadReport, Token},
    incident::{
        pages::{self, Turn},
        replay::{self, Rejudged, Scope, Script, Told, Turned},
        roster::{Card, Roster},
    },
};

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const INTERVAL: Duration = Duration::from_secs(10);
const TICKS: u32 = 720;
const LIFE: Incarnation = Incarnation(1);

fn id(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

fn at(tick: u32) -> Timestamp {
    START.plus(INTERVAL * tick)
}

fn who(number: u8) -> Enrolled {
    Enrolled {
        id: id(number),
        name: format!("web-{number}"),
        labels: [("rack".to_owned(), format!("r{number}"))].into(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    }
}

/// What a host shows at a tick: 1 has its table of connections full for a while and an error of its memory, which is read
/// each minute, 2 has the table nearly full, 3 waits for its CPUs.
fn table(host: u8, tick: u32) -> Table {
    let family = |name: &str, kind, labels: &[&str]| Family {
        name: name.into(),
        kind,
        scale: Scale::One,
        labels: labels.iter().map(|&label| label.into()).collect(),
    };
    let middle = (200..320).contains(&tick);
    let entries = match host {
        1 if middle => 95_000,
        2 if middle => 85_000,
        _ => 20_000 + i64::from(tick % 7),
    };
    // It boots at 400, and its counters begin anew.
    let waited = f64::from(tick % 400) * if host == 3 { 9.3 } else { 0.01 };
    let families = vec![
        family("node_nf_conntrack_entries", Kind::Gauge, &[]),
        family("node_nf_conntrack_entries_limit", Kind::Gauge, &[]),
        Family {
            scale: Scale::Float,
            ..family(
                "node_pressure_cpu_waiting_seconds_total",
                Kind::Counter,
                &[],
            )
        },
        family("muster_check_status", Kind::Gauge, &["check"]),
        family("node_boot_time_seconds", Kind::Gauge, &[]),
        family("node_scrape_collector_success", Kind::Gauge, &["collector"]),
        family(
            "node_edac_uncorrectable_errors_total",
            Kind::Counter,
            &["controller"],
        ),
    ];
    let failing = host == 2 && (500..510).contains(&tick);
    let labels = [
        vec![],
        vec![],
        vec![],
        vec!["web"],
        vec![],
        vec!["checks"],
        vec!["0"],
    ];
    let series = (0..).zip(labels).map(|(family, labels)| Series {
        family,
        labels: labels.into_iter().map(Into::into).collect(),
    });
    Table {
        families,
        series: series.collect(),
        raw: vec![
            Raw::int(entries),
            Raw::int(100_000),
            Raw::float(waited),
            Raw::int(if failing { 2 } else { 0 }),
            Raw::int(if tick < 400 {
                1_700_000_000
            } else {
                1_795_004_000
            }),
            Raw::int(1),
            Raw::int(i64::from(host == 1 && (300..400).contains(&tick))),
        ],
        present: vec![true; 7],
        ..Table::default()
    }
}

/// Ten days at 20 min, for the rules in the program: the disk of 1 fills up, a unit of 2 fails, and fails and is removed,
/// and 3 has a leak until it boots at 400.
fn slow_table(host: u8, tick: u32) -> Table {
    const UNIT: &[&str] = &["name", "state", "type"];
    const MOUNT: &[&str] = &["device", "fstype", "mountpoint"];
    let family = |name: &str, labels: &[&str]| Family {
        name: name.into(),
        kind: Kind::Gauge,
        scale: Scale::One,
        labels: labels.iter().map(|&label| label.into()).collect(),
    };
    let mut table = Table::default();
    let mut add = |family: Family, labels: &[&str], value: i64, present: bool| {
        table.series.push(Series {
            family: table.families.len().try_into().expect("some"),
            labels: labels.iter().map(|&label| label.into()).collect(),
        });
        table.families.push(family);
        table.raw.push(Raw::int(value));
        table.present.push(present);
    };
    let booted = if tick < 400 {
        1_700_000_000
    } else {
        1_795_480_000
    };
    add(family("node_boot_time_seconds", &[]), &[], booted, true);
    let mount = ["/dev/sda", "ext4", "/"];
    let used = match tick {
        _ if host != 1 => 20_000,
        0..500 => 20_000 + 41 * i64::from(tick),
        _ => 12_000,
    };
    for (name, value) in [
        ("node_filesystem_size_bytes", 40_000_000_000),
        (
            "node_filesystem_free_bytes",
            40_000_000_000 - used * 1_000_000,
        ),
        (
            "node_filesystem_avail_bytes",
            40_000_000_000 - used * 1_000_000,
        ),
        ("node_filesystem_files", 1_000_000),
        ("node_filesystem_files_free", 700_000),
        ("node_filesystem_readonly", 0),
        ("node_filesystem_device_error", 0),
    ] {
        add(family(name, MOUNT), &mount, value.max(0), true);
    }
    // Eight hundredths of it a day.
    let leaked = if host == 3 {
        80 * i64::from(tick % 400) / 72
    } else {
        0
    };
    add(family("node_memory_MemTotal_bytes", &[]), &[], 1_000, true);
    add(
        family("node_memory_MemAvailable_bytes", &[]),
        &[],
        600 - leaked,
        true,
    );
    let units = ["app.service", "old.service", "cron.service"];
    for unit in units {
        let failed = match unit {
            "app.service" => host == 2 && (100..110).contains(&tick),
            "old.service" => host == 2 && tick >= 300,
            _ => false,
        };
        let listed = unit != "old.service" || tick < 320;
        for (state, is_so) in [
            ("active", !failed),
            ("failed", failed),
            ("activating", false),
        ] {
            let labels = [unit, state, "simple"];
            let value = i64::from(is_so);
            add(
                family("node_systemd_unit_state", UNIT),
                &labels,
                value,
                listed,
            );
        }
        let restarts = family("node_systemd_service_restart_total", &["name"]);
        add(restarts, &[unit], i64::from(failed) * 5, listed);
    }
    table
}

/// The fleet as it was: its samples, and what the live path made of them.
struct Past {
    store: PlainStore,
    live: Vec<(HostId, Transition)>,
    interval: Duration,
    table: fn(u8, u32) -> Table,
    /// Most points of a metric that are read at once.
    max_points: u64,
}

impl Past {
    fn new() -> Self {
        Self::of(INTERVAL, table)
    }

    fn of(interval: Duration, table: fn(u8, u32) -> Table) -> Self {
        let mut past = Self {
            store: PlainStore::default(),
            live: Vec::new(),
            interval,
            table,
            max_points: MAX_POINTS,
        };
        for host in 1..=3 {
            past.live(host);
        }
        past
    }

    fn live(&mut self, number: u8) {
        let mut host = HostState::new(who(number), START);
        let (engine, mut changes) = (Engine::default(), Changes::default());
        let (mut names, mut stored, mut encoder) =
            (Names::default(), Names::default(), Encoder::new());
        let session = |boot| Session {
            incarnation: LIFE,
            session: 1,
            boot_id: vec![boot; 16],
            interval: self.interval,
            clock_offset_ms: 0,
        };
        let at = |tick| START.plus(self.interval * tick);
        host.begin_session(session(1));
        let ticks = (0..TICKS).filter(|tick| !(600..606).contains(tick));
        for (seq, tick) in (1..).zip(ticks) {
            if tick == 400 {
                host.begin_session(session(2));
            }
            let table = (self.table)(number, tick);
            let mut payload = Vec::new();
            encoder.encode(&table, &[], seq == 1, &mut payload);
            let frame = FrameIn {
                incarnation: LIFE,
                seq,
                lane: Lane::Live,
                tick: at(tick),
                received: at(tick),
                crc32c: crc32c::crc32c(&payload),
                payload: payload.into(),
            };
            let mut context = Receiving {
                names: &mut names,
                engine: &engine,
                changes: &mut changes,
                series_quota: 100,
                now: Instant::now(),
                replayed: false,
            };
            let mut out = Vec::new();
            let verdict = host.receive(&frame, &mut context, &mut out);
            assert_eq!(verdict, Verdict::Store);
            self.live
                .extend(out.into_iter().map(|one| (id(number), one)));
            let keys: Vec<_> = table
                .series
                .iter()
                .map(|series| {
                    let family = &table.families[series.family as usize];
                    let family = stored.family(family.clone());
                    let labels: Vec<String> = series
                        .labels
                        .iter()
                        .map(|label| label.to_string())
                        .collect();
                    stored.series(&family, &labels)
                })
                .collect();
            let values = keys.iter().zip(table.raw.iter().copied());
            let mut values = values
                .zip(&table.present)
                .filter_map(|(value, present)| present.then_some(value));
            self.store
                .append(seq, id(number), at(tick).as_millis(), &mut values)
                .expect("a map takes everything");
        }
    }

    /// The record of it, with a round every second.
    fn script(&self) -> Script {
        let mut script = Script {
            roster: Roster::of((1..=3).map(|number| {
                let card = Card {
                    name: who(number).name,
                    labels: who(number).labels,
                    ..Card::default()
                };
                (id(number), card)
            })),
            ..Script::default()
        };
        // Of a long time the rounds that were due are those of its changes, and what settles after them.
        let rounds = u64::from(TICKS) * self.interval.as_secs();
        let rounds = (0..rounds).filter(|second| {
            let near = |one: &(HostId, Transition)| {
                let of = one.1.at.since(START).as_secs();
                (of..of + 600).contains(second)
            };
            self.interval == INTERVAL || self.live.iter().any(near)
        });
        let seconds = rounds.map(|second| Turned {
            at: START.plus(Duration::from_secs(second)),
            turn: None,
        });
        script.turns.extend(seconds);
        let mut ordered: Vec<_> = self.live.iter().collect();
        ordered.sort_by_key(|(_, one)| one.at);
        let mut open = HashMap::new();
        for (host, one) in ordered {
            let key = (*host, one.rule, one.subject.clone());
            let (number, turn) = match &one.change {
                Change::Opened { summary, .. } => {
                    let number = script.subjects.len() as u64 + 1;
                    open.insert(key, number);
                    let subject = pages::Subject {
                        id: format!("id {number}"),
                        host: *host,
                        rule: one.rule.to_owned(),
                        subject: one.subject.clone(),
                        severity: one.severity,
                        summary: summary.clone(),
                        evidence: String::new(),
                        since: one.since,
                    };
                    script.subjects.insert(number, subject);
                    (number, Turn::Opened)
                }
                Change::Cleared { .. } => (open[&key], Turn::Cleared),
            };
            script.turns.push(Turned {
                at: one.at.plus(Duration::from_secs(1)),
                turn: Some((number, turn)),
            });
        }
        // What happened is taken in before the round looks at the time.
        script.turns.sort_by_key(|one| (one.at, one.turn.is_none()));
        script
    }

    fn judge(&self, new: &str, all: bool) -> (Rejudged, Report, Vec<Judged>) {
        let script = self.script();
        let rules = || Overrides::default();
        let parsed = || Overrides::parse(new).expect("they read");
        let bounds = crate::config::detect_of(new).expect("they read");
        let mut scope = Scope {
            from: START,
            ..Scope::default()
        };
        for number in 1..=3 {
            for rule in rules::pack() {
                let change = rules().change_to(&parsed(), &rule.name, Some(&who(number)));
                if all || change.needs_samples {
                    let judged = scope.rules.entry(id(number)).or_default();
                    judged.insert(&*rule.name);
                }
            }
            for known in SAMPLED.iter().filter(|_| all || bounds.is_some()) {
                scope
                    .rules
                    .entry(id(number))
                    .or_default()
                    .insert(known.rule);
            }
        }
        let hosts = scope.rules.iter().map(|(id, rules)| Subject {
            who: who(id.as_bytes()[0]),
            interval: self.interval,
            open: Vec::new(),
            rules: rules.clone(),
        });
        let question = Question {
            store: &self.store,
            hosts: hosts.collect(),
            old: Engine::of_rules(&DetectConfig::default(), Arc::new(rules())),
            new: Engine::of_rules(&bounds.unwrap_or_default(), Arc::new(parsed())),
            from: START,
            to: START.plus(self.interval * TICKS),
            give_up: GiveUp::default(),
        };
        let mut judged = Vec::new();
        let mut windows = (0, 0);
        let mut progress = |done, of| windows = (done, of);
        let mut each = |one| judged.push(one);
        let report = judge_within(question, self.max_points, &mut each, &mut progress)
            .expect("nobody gives up");
        assert_eq!(windows.0, windows.1, "it says when it is done");
        let said = [0, 1].map(|which| {
            let of = |one: &Judged| {
                let said = if which == 0 { &one.old } else { &one.new };
                let host = one.host;
                said.iter()
                    .map(move |one| (host, one.clone()))
                    .collect::<Vec<_>>()
            };
            judged.iter().flat_map(of).collect::<Vec<_>>()
        });
        let names = (1..=3).map(|number| (id(number), who(number))).collect();
        let [by_old, by_new] = &said;
        let rejudged = replay::with_samples(
            &script,
            &names,
            (&rules(), &parsed()),
            &scope,
            [by_old, by_new],
            START,
        );
        (rejudged, report, judged)
    }
}

/// `second: event rule on host`.
fn words(told: &[Told]) -> Vec<String> {
    let word = |one: &Told| {
        let second = one.said.at.since(START).as_secs();
        let (event, lead) = (&one.said.event, &one.lead);
        format!("{second}: {event} {} on {}", lead.rule, lead.host)
    };
    told.iter().map(word).collect()
}

#[test]
fn the_same_rules_say_the_same_of_the_same_samples() {
    let past = Past::new();
    let (rejudged, report, judged) = past.judge("", true);
    let again: Vec<_> = judged
        .iter()
        .flat_map(|one| one.old.iter().map(|said| (one.host, said.clone())))
        .collect();
    assert_eq!(again, past.live, "bit by bit, evidence and all");
    assert!(judged.iter().all(|one| one.old == one.new));
    let recorded = replay::as_recorded(&past.script());
    assert_eq!(words(&rejudged.again), words(&recorded));
    assert_eq!(rejudged.again, recorded);
    assert_eq!(rejudged.other.told, recorded, "no page more, none less");
    assert!(words(&recorded).len() >= 4, "{:?}", words(&recorded));
    for (rule, counts) in &rejudged.rules {
        assert_eq!(
            (counts.found, counts.beside),
            (counts.recorded, 0),
            "{rule}"
        );
    }
    assert_eq!(report.ticks, 3 * u64::from(TICKS - 6));
    assert_eq!((report.coarse, report.every_since), (0, None));
    assert!(report.missing.is_empty());
}

#[test]
fn what_is_too_much_at_once_is_judged_in_parts() {
    // Of 714 points of a metric and host: fewer hosts, and less time too.
    let mut past = Past::new();
    for max_points in [1_500, 100] {
        past.max_points = max_points;
        let (_, report, judged) = past.judge("", true);
        let again: Vec<_> = judged
            .iter()
            .flat_map(|one| one.old.iter().map(|said| (one.host, said.clone())))
            .collect();
        assert!(report.missing.is_empty(), "{:?}", report.missing);
        assert_eq!(again, past.live, "{max_points}: bit by bit");
        assert_eq!(report.ticks, 3 * u64::from(TICKS - 6));
    }
}

#[test]
fn what_cannot_be_divided_is_named_and_ends() {
    let past = Past {
        max_points: 0,
        ..Past::new()
    };
    let (_, report, judged) = past.judge("", true);
    assert!(!report.missing.is_empty());
    assert!(judged.iter().all(|one| one.old.is_empty()));
}

const SLOW: Duration = Duration::from_secs(1200);

/// A store of which one metric cannot be read for a while: a damaged file, or one that is named as missing.
struct Holed<'a> {
    store: &'a PlainStore,
    metric: &'static str,
    hole: (i64, i64),
    /// The store gives what it has, and names the rest; else it fails midway.
    named: bool,
}

impl SampleStore for Holed<'_> {
    fn caps(&self) -> Caps {
        self.store.caps()
    }

    fn append(
        &self,
        token: Token,
        host: HostId,
        tick: i64,
        values: &mut dyn Iterator<Item = (&Arc<SeriesKey>, Raw)>,
    ) -> Result<(), HistoryError> {
        self.store.append(token, host, tick, values)
    }

    fn durable(&self) -> Token {
        self.store.durable()
    }

    fn read(
        &self,
        query: &SampleQuery,
        sink: &mut dyn FnMut(HostSeries) -> ControlFlow<()>,
    ) -> Result<ReadReport, HistoryError> {
        let here = query.from < self.hole.1 && query.to > self.hole.0;
        if !here || query.metric.as_deref() != Some(self.metric) {
            return self.store.read(query, sink);
        }
        let mut first = true;
        let mut half = |series| {
            // Series that came before the damage.
            if std::mem::take(&mut first) {
                sink(series)
            } else {
                ControlFlow::Continue(())
            }
        };
        let mut report = self.store.read(query, &mut half)?;
        if self.named {
            report.missing.push("a block is damaged".into());
            return Ok(report);
        }
        Err(HistoryError::Damaged {
            name: "raw-1".into(),
            what: "a block",
        })
    }

    fn forget(&self, host: HostId, upto: Token) -> Result<(), HistoryError> {
        self.store.forget(host, upto)
    }

    fn stats(&self) -> StoreStats {
        self.store.stats()
    }
}

#[test]
fn what_cannot_be_read_clears_nothing() {
    fn failing(host: u8, tick: u32) -> Table {
        let mut table = table(host, tick);
        if (100..500).contains(&tick) {
            table.raw[3] = Raw::int(2);
        }
        table
    }
    let checks = Past::of(SLOW, failing);
    let others = Past::of(SLOW, slow_table);
    let cases = [
        (&checks, "check_failing", "muster_check_status", 300..320),
        (
            &checks,
            "check_failing",
            "node_scrape_collector_success",
            300..320,
        ),
        (
            &others,
            "filesystem_full",
            "node_filesystem_size_bytes",
            420..440,
        ),
        (&others, "unit_failed", UNIT_METRICS[0], 103..106),
    ];
    for (past, rule, metric, hole) in cases {
        for named in [false, true] {
            let at = |tick| START.plus(SLOW * tick);
            let store = Holed {
                store: &past.store,
                metric,
                hole: (at(hole.start).as_millis(), at(hole.end).as_millis()),
                named,
            };
            let hosts = (1..=3).map(|number| Subject {
                who: who(number),
                interval: SLOW,
                open: Vec::new(),
                rules: BTreeSet::from([rule]),
            });
            let question = Question {
                store: &store,
                hosts: hosts.collect(),
                old: Engine::default(),
                new: Engine::default(),
                from: START,
                to: at(TICKS),
                give_up: GiveUp::default(),
            };
            let mut again = Vec::new();
            let mut each = |one: Judged| {
                again.extend(one.new.into_iter().map(|said| (one.host, said)));
            };
            let report = judge(question, &mut each, &mut |_, _| {}).expect("it ends");
            let live = past.live.iter().filter(|(_, one)| one.rule == rule);
            let live: Vec<_> = live.cloned().collect();
            assert!(live.len() >= 2, "it opens before and clears after");
            assert_eq!(again, live, "{metric}, named: {named}");
            assert_eq!(report.missing.len(), 1, "{:?}", report.missing);
        }
    }
}

#[test]
fn names_that_nobody_shows_any_more_are_dropped_and_rates_keep_theirs() {
    let store = PlainStore::default();
    let mut stored = Names::default();
    let family = |name: &str, kind, labels: &[&str]| Family {
        name: name.into(),
        kind,
        scale: Scale::One,
        labels: labels.iter().map(|&label| label.into()).collect(),
    };
    let status = stored.family(family("muster_check_status", Kind::Gauge, &["check"]));
    let errors = "node_edac_uncorrectable_errors_total";
    let errors = stored.family(family(errors, Kind::Counter, &["controller"]));
    let counted = stored.series(&errors, &["0".into()]);
    let ticks = 1_440;
    for tick in 0..ticks {
        let fresh = (0..20).map(|nth| stored.series(&status, &[format!("{tick}-{nth}")]));
        let fresh: Vec<_> = fresh.chain([Arc::clone(&counted)]).collect();
        let mut values = fresh.iter().map(|key| (key, Raw::int(0)));
        store
            .append(0, id(1), at(tick).as_millis(), &mut values)
            .expect("a map takes everything");
    }
    let engines = [Engine::default(), Engine::default()];
    let rules = BTreeSet::from(["check_failing", "memory_errors"]);
    let host = Subject {
        who: who(1),
        interval: INTERVAL,
        open: Vec::new(),
        rules: rules.clone(),
    };
    let mut folds = [Fold::new(host, &engines)];
    let mut judging = Judging {
        store: &store,
        engines: &engines,
        give_up: &GiveUp::default(),
        fineness: Fineness::of(&store.stats()),
        max_points: MAX_POINTS,
        metrics: metrics(rules.into_iter()),
        names: Names::default(),
        report: Report::default(),
    };
    for window in [(at(0), at(720)), (at(720), at(ticks))] {
        let (begin, end) = (window.0.as_millis(), window.1.as_millis());
        judging.window(&mut folds, (begin, end)).expect("it reads");
    }
    assert_eq!(judging.report.ticks, u64::from(ticks));
    assert!(judging.names.len() < 100, "{} names", judging.names.len());
    let family = judging.names.family((*errors).clone());
    let key = judging.names.series(&family, &["0".into()]);
    let (held, ..) = &folds[0].before[&place(&key)];
    assert!(Arc::ptr_eq(held, &key), "the name it had before");
    assert_eq!(folds[0].before.len(), 1);
}

#[test]
fn the_rules_in_the_program_say_the_same_of_the_same_samples() {
    let past = Past::of(SLOW, slow_table);
    let (rejudged, _, judged) = past.judge("", true);
    let again: Vec<_> = judged
        .iter()
        .flat_map(|one| one.old.iter().map(|said| (one.host, said.clone())))
        .collect();
    assert_eq!(again, past.live, "bit by bit, evidence and all");
    let said: BTreeSet<&str> = again.iter().map(|(_, one)| one.rule).collect();
    let all: BTreeSet<&str> = SAMPLED.iter().map(|known| known.rule).collect();
    assert!(said.is_superset(&all), "{said:?}");
    assert!(again.iter().all(|(_, one)| one.rule != "host_score"));
    let recorded = replay::as_recorded(&past.script());
    assert_eq!(rejudged.again, recorded);
    assert_eq!(rejudged.other.told, recorded, "no page more, none less");
}

#[test]
fn another_bound_of_a_filesystem_moves_its_page() {
    let past = Past::of(SLOW, slow_table);
    let (rejudged, _, judged) = past.judge("[detect]\nfilesystem_warning_ratio = 0.8\n", false);
    let opened = |said: &[Transition]| {
        let mut of = said.iter().filter(|one| one.rule == "filesystem_full");
        of.next().map(|one| one.at)
    };
    let host = judged
        .iter()
        .find(|one| one.host == id(1))
        .expect("it was judged");
    let (before, then) = (opened(&host.old), opened(&host.new));
    // It grows by 0.1025 % a tick.
    let earlier = before.expect("it opens").since(then.expect("it opens"));
    assert_eq!(earlier, SLOW * 98);
    let counts = rejudged.rules["filesystem_full"];
    // A warning, then critical.
    assert_eq!((counts.recorded, counts.found, counts.beside), (2, 2, 0));
    assert_eq!(counts.then, 2);
}

#[test]
fn a_lower_bound_names_the_page_that_it_makes() {
    let text = "[[rules]]\nrule = \"conntrack_full\"\nabove = 0.8\nclear = 0.7\n";
    let (rejudged, ..) = Past::new().judge(text, false);
    let (before, then) = (words(&rejudged.again), words(&rejudged.other.told));
    let new: Vec<_> = then.iter().filter(|one| !before.contains(one)).collect();
    // From tick 200 on, for two minutes, told a second after its tick and gathered for 20 s.
    let opens = 2000 + 120 + 1 + 20;
    let ends = 3200 + 300 + 1 + 180;
    assert_eq!(
        new,
        [
            &format!("{opens}: firing conntrack_full on web-2"),
            &format!("{ends}: resolved conntrack_full on web-2"),
        ]
    );
    assert!(
        before.iter().all(|one| then.contains(one)),
        "nothing is gone"
    );
    let counts = rejudged.rules["conntrack_full"];
    assert_eq!((counts.recorded, counts.found, counts.then), (1, 1, 2));
    assert!(rejudged.other.not_judged.is_empty());
}

#[test]
fn a_higher_bound_takes_its_page_away_and_a_longer_time_moves_it() {
    let past = Past::new();
    let higher = "[[rules]]\nrule = \"conntrack_full\"\nabove = 0.97\nclear = 0.9\n";
    let (rejudged, ..) = past.judge(higher, false);
    let gone = |one: &String| one.contains("conntrack_full");
    assert_eq!(
        words(&rejudged.again)
            .iter()
            .filter(|one| gone(one))
            .count(),
        2
    );
    assert_eq!(
        words(&rejudged.other.told)
            .iter()
            .filter(|one| gone(one))
            .count(),
        0
    );
    // With another bound, so that samples judge it; the same incident, later.
    let later = "[[rules]]\nrule = \"conntrack_full\"\nabove = 0.94\nclear = 0.8\nfor = \"10m\"\n";
    let (rejudged, ..) = past.judge(later, false);
    let firing = |told: &[Told]| {
        let one = told.iter().find(|one| one.lead.rule == "conntrack_full");
        one.map(|one| (one.said.page, one.said.at))
    };
    let (page, before) = firing(&rejudged.again).expect("it was told");
    let (same, then) = firing(&rejudged.other.told).expect("it would be told");
    assert_eq!((page, then.since(before)), (same, Duration::from_secs(480)));
}

#[test]
fn nobody_who_gave_up_is_worked_for() {
    let past = Past::new();
    let question = Question {
        store: &past.store,
        hosts: vec![Subject {
            who: who(1),
            interval: INTERVAL,
            open: Vec::new(),
            rules: BTreeSet::from(["conntrack_full"]),
        }],
        old: Engine::default(),
        new: Engine::default(),
        from: START,
        to: at(TICKS),
        give_up: GiveUp::default(),
    };
    question.give_up.now();
    let outcome = judge(question, &mut |_| {}, &mut |_, _| {});
    assert!(matches!(outcome, Err(RejudgeError::GivenUp)));
}

#[test]
fn windows_go_on_from_one_another_and_are_as_long_as_their_points_are_coarse() {
    let stats = |oldest_ms| StoreStats {
        oldest_ms,
        ..StoreStats::default()
    };
    let (hour, day) = (3_600_000, 86_400_000);
    let all = Fineness::of(&stats([0, 0, 0]));
    assert_eq!(all.at(1), Tier::Raw, "all of it is in memory");
    let fineness = Fineness::of(&stats([28 * day, 10 * day, day]));
    let tiers = [5, 15, 29].map(|at| fineness.at(at * day));
    assert_eq!(tiers, [Tier::Quarter, Tier::Minute, Tier::Raw]);
    let windows = windows(2 * day, 30 * day, fineness, 10_000);
    assert_eq!(
        (windows[0].0, windows[windows.len() - 1].1),
        (2 * day, 30 * day)
    );
    assert!(windows.windows(2).all(|two| two[0].1 == two[1].0));
    let spans: BTreeSet<i64> = windows.iter().map(|(from, to)| to - from).collect();
    assert!(spans.contains(&(2 * hour)) && spans.contains(&(12 * hour)));
    assert!(windows.len() < 100, "{} windows", windows.len());
}

#[test]
fn a_window_is_as_short_as_its_busiest_host_is_quick() {
    let batch = |seconds: &[u64]| {
        let hosts = seconds.iter().map(|&seconds| Subject {
            who: who(1),
            interval: Duration::from_secs(seconds),
            open: Vec::new(),
            rules: BTreeSet::new(),
        });
        raw_step(&hosts.collect::<Vec<_>>())
    };
    let steps = [&[1, 10][..], &[10], &[60, 300], &[5]].map(batch);
    assert_eq!(steps, [1_000, 10_000, 10_000, 5_000]);
    let all = Fineness::of(&StoreStats::default());
    let windows = windows(0, 7_200_000, all, 1_000);
    assert_eq!((windows.len(), windows[0]), (10, (0, 720_000)));
}
