//! Every rule of the pack from a host's frames to its incident: series as the agent makes them, through the codec, the
//! rates and the engine. What a rule looks at and never gets shows here and nowhere else.

use muster_proto::{
    catalog::METRICS,
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::Timestamp,
    v1,
};
use tokio::time::Instant;

use super::*;
use crate::{
    detect::{Change, DetectConfig, Engine, Transition},
    fleet::{
        Enrolled, HostState,
        host::{FrameIn, Lane, Receiving, Session, Verdict},
        names::Names,
    },
};

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
/// The same in seconds.
const START_SECONDS: f64 = 1.795e9;
const INTERVAL: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// How a series goes on.
#[derive(Debug, Clone, Copy)]
enum Goes {
    /// Stands at this.
    At(f64),
    /// Grows by so much a second.
    By(f64),
    /// Grows by so much, once.
    Once(f64),
}

use Goes::{At, By, Once};

/// A series of a rule: name, labels, how it goes when all is well and when it is not.
type Fed = (
    &'static str,
    &'static [(&'static str, &'static str)],
    Goes,
    Goes,
);

/// Rule, subject, and what makes it so.
type Case = (&'static str, &'static str, &'static [Fed]);

const ETH0: &[(&str, &str)] = &[("device", "eth0")];
const TEMP: &[(&str, &str)] = &[("chip", "k10"), ("sensor", "temp1")];
const ROOT: &[(&str, &str)] = &[
    ("device", "/dev/vda"),
    ("fstype", "ext4"),
    ("mountpoint", "/"),
];
const NFS: &[(&str, &str)] = &[
    ("device", "nas:/x"),
    ("fstype", "nfs4"),
    ("mountpoint", "/mnt"),
];

/// One for each rule of the pack, in its order.
const CASES: &[Case] = &[
    (
        "memory_exhausted",
        "",
        &[
            ("node_memory_MemTotal_bytes", &[], At(1e9), At(1e9)),
            ("node_memory_MemAvailable_bytes", &[], At(5e8), At(1e7)),
            (
                "node_pressure_memory_waiting_seconds_total",
                &[],
                By(0.0),
                By(0.5),
            ),
        ],
    ),
    (
        "oom_kill",
        "",
        &[("node_vmstat_oom_kill", &[], By(0.0), Once(1.0))],
    ),
    (
        "cpu_saturated",
        "",
        &[(
            "node_pressure_cpu_waiting_seconds_total",
            &[],
            By(0.1),
            By(0.95),
        )],
    ),
    (
        "cpu_stolen",
        "",
        &[
            (
                "node_cpu_seconds_total",
                &[("cpu", "0"), ("mode", "idle")],
                By(1.0),
                By(0.5),
            ),
            (
                "node_cpu_seconds_total",
                &[("cpu", "0"), ("mode", "steal")],
                By(0.0),
                By(0.5),
            ),
        ],
    ),
    (
        "disk_saturated",
        "",
        &[(
            "node_pressure_io_waiting_seconds_total",
            &[],
            By(0.1),
            By(0.95),
        )],
    ),
    (
        "swapping",
        "",
        &[
            ("node_vmstat_pswpin", &[], By(0.0), By(1500.0)),
            ("node_vmstat_pswpout", &[], By(0.0), By(1500.0)),
        ],
    ),
    (
        "filesystem_hung",
        "/mnt",
        &[("node_filesystem_device_error", NFS, At(0.0), At(1.0))],
    ),
    (
        "filesystem_readonly",
        "/",
        &[("node_filesystem_readonly", ROOT, At(0.0), At(1.0))],
    ),
    (
        "raid_degraded",
        "md0",
        // One of two was taken out: nothing is marked as failed.
        &[
            (
                "node_md_disks",
                &[("device", "md0"), ("state", "active")],
                At(2.0),
                At(1.0),
            ),
            (
                "node_md_disks",
                &[("device", "md0"), ("state", "failed")],
                At(0.0),
                At(0.0),
            ),
            (
                "node_md_disks",
                &[("device", "md0"), ("state", "spare")],
                At(0.0),
                At(0.0),
            ),
            (
                "node_md_disks_required",
                &[("device", "md0")],
                At(2.0),
                At(2.0),
            ),
        ],
    ),
    (
        "memory_errors",
        "mc0",
        &[(
            "node_edac_uncorrectable_errors_total",
            &[("controller", "mc0")],
            By(0.0),
            Once(1.0),
        )],
    ),
    (
        "network_errors",
        "eth0",
        &[
            ("node_network_receive_errs_total", ETH0, By(0.0), By(50.0)),
            (
                "node_network_receive_packets_total",
                ETH0,
                By(1000.0),
                By(1000.0),
            ),
        ],
    ),
    (
        "bond_degraded",
        "bond0",
        &[
            (
                "node_bonding_active",
                &[("master", "bond0")],
                At(2.0),
                At(1.0),
            ),
            (
                "node_bonding_slaves",
                &[("master", "bond0")],
                At(2.0),
                At(2.0),
            ),
        ],
    ),
    (
        "link_down",
        "eth0",
        &[(
            "node_network_carrier_down_changes_total",
            ETH0,
            By(0.0),
            Once(3.0),
        )],
    ),
    (
        "clock_unsynchronised",
        "",
        &[("node_timex_sync_status", &[], At(1.0), At(0.0))],
    ),
    (
        "conntrack_full",
        "",
        &[
            ("node_nf_conntrack_entries", &[], At(1e3), At(95e3)),
            ("node_nf_conntrack_entries_limit", &[], At(1e5), At(1e5)),
        ],
    ),
    (
        "file_descriptors",
        "",
        &[
            ("node_filefd_allocated", &[], At(1e3), At(95e3)),
            ("node_filefd_maximum", &[], At(1e5), At(1e5)),
        ],
    ),
    (
        "unit_crash_looping",
        "web.service",
        &[(
            "muster_host_systemd_unit_restarts_recent",
            &[("name", "web.service")],
            At(0.0),
            At(6.0),
        )],
    ),
    (
        "timer_missed",
        "backup.timer",
        &[
            (
                "muster_host_systemd_timer_next_trigger_seconds",
                &[("name", "backup.timer")],
                At(START_SECONDS + 86_400.0),
                At(START_SECONDS - 4000.0),
            ),
            (
                "node_systemd_timer_last_trigger_seconds",
                &[("name", "backup.timer")],
                At(START_SECONDS - 1000.0),
                At(START_SECONDS - 90_000.0),
            ),
        ],
    ),
    (
        "reboot_wanted",
        "",
        &[(
            "muster_host_reboot_required_since_seconds",
            &[],
            At(0.0),
            At(START_SECONDS - 15.0 * 86_400.0),
        )],
    ),
    (
        "check_failing",
        "shop",
        &[(
            "muster_check_status",
            &[("check", "shop")],
            At(0.0),
            At(2.0),
        )],
    ),
    (
        "check_unknown",
        "shop",
        &[(
            "muster_check_status",
            &[("check", "shop")],
            At(0.0),
            At(3.0),
        )],
    ),
    (
        "temperature_critical",
        "k10",
        &[
            ("node_hwmon_temp_celsius", TEMP, At(50.0), At(101.0)),
            ("node_hwmon_temp_crit_celsius", TEMP, At(100.0), At(100.0)),
        ],
    ),
    (
        "collector_failing",
        "dmi",
        &[(
            "node_scrape_collector_success",
            &[("collector", "dmi")],
            At(1.0),
            At(0.0),
        )],
    ),
];

/// A family as the agent makes it.
fn family(name: &str) -> Family {
    let metric = METRICS.iter().find(|metric| metric.name == name);
    let (kind, scale, labels): (_, _, &[&str]) = match metric {
        Some(metric) => (metric.kind, metric.scale, metric.labels),
        // What collectors name after what the kernel shows: /proc/meminfo, and sensors.
        None if name.starts_with("node_memory_") => (Kind::Gauge, Scale::Kibi, &[]),
        None => {
            assert!(
                name.starts_with("node_hwmon_temp_"),
                "no collector makes {name}"
            );
            (Kind::Gauge, Scale::Milli, &["chip", "sensor"])
        }
    };
    Family {
        name: name.to_owned(),
        kind,
        scale,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
    }
}

/// A host whose frames are taken in as from the wire.
struct Host {
    state: HostState,
    names: Names,
    changes: Changes,
    engine: Engine,
    encoder: Encoder,
    table: Table,
    seq: u64,
    at: Timestamp,
    interval: Duration,
}

fn who() -> Enrolled {
    Enrolled {
        id: HostId::from_bytes([1; 16]),
        name: "web-01".to_owned(),
        labels: BTreeMap::new(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    }
}

impl Host {
    fn new(interval: Duration) -> Self {
        let mut state = HostState::new(who(), START);
        state.begin_session(Session {
            incarnation: Incarnation(1),
            session: 1,
            boot_id: vec![1; 16],
            interval,
            clock_offset_ms: 0,
        });
        Self {
            state,
            names: Names::default(),
            changes: Changes::default(),
            engine: Engine::default(),
            encoder: Encoder::new(),
            table: Table::default(),
            seq: 0,
            at: START,
            interval,
        }
    }

    /// The place of a series, made where there is none; a label that is not given is `x`.
    fn place(&mut self, name: &str, labels: &[(&str, &str)]) -> usize {
        let table = &mut self.table;
        let known = table.families.iter().position(|known| known.name == name);
        let at = known.unwrap_or_else(|| {
            table.families.push(family(name));
            table.families.len() - 1
        });
        let names = &table.families[at].labels;
        for (key, _) in labels {
            assert!(names.iter().any(|name| name == key), "{name} by {key}");
        }
        let given = |name: &String| labels.iter().find(|(key, _)| key == name);
        let values: Vec<String> = names
            .iter()
            .map(|name| given(name).map_or("x", |(_, value)| value).to_owned())
            .collect();
        let at = u32::try_from(at).expect("few");
        let same = |one: &Series| one.family == at && one.labels == values;
        if let Some(place) = table.series.iter().position(same) {
            return place;
        }
        table.series.push(Series {
            family: at,
            labels: values,
        });
        table.raw.push(Raw::int(0));
        table.present.push(true);
        table.series.len() - 1
    }

    #[expect(clippy::cast_possible_truncation, reason = "figures of the table")]
    fn set(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let place = self.place(name, labels);
        let scale = family(name).scale;
        let unit = scale.value(Raw::int(1));
        self.table.raw[place] = Raw::int((value / unit).round() as i64);
        self.table.present[place] = true;
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let place = self.place(name, labels);
        family(name).scale.value(self.table.raw[place])
    }

    fn hide(&mut self, name: &str, labels: &[(&str, &str)]) {
        let place = self.place(name, labels);
        self.table.present[place] = false;
    }

    /// A collector works, or does not.
    fn collector(&mut self, name: &str, works: bool) {
        let success = "node_scrape_collector_success";
        self.set(success, &[("collector", name)], f64::from(u8::from(works)));
    }

    /// A sample is taken, and received.
    fn tick(&mut self) -> Vec<Transition> {
        self.seq += 1;
        let mut payload = Vec::new();
        self.encoder
            .encode(&self.table, &[], self.seq == 1, &mut payload);
        let frame = FrameIn {
            incarnation: Incarnation(1),
            seq: self.seq,
            lane: Lane::Live,
            tick: self.at,
            received: self.at,
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        };
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: 1000,
            now: Instant::now(),
            replayed: false,
        };
        let mut out = Vec::new();
        let verdict = self.state.receive(&frame, &mut context, &mut out);
        assert_eq!(verdict, Verdict::Store);
        self.state.stored(Incarnation(1), self.seq);
        self.at = self.at.plus(self.interval);
        out
    }

    /// The agent connects anew.
    fn reconnect(&mut self) {
        self.encoder = Encoder::new();
    }

    /// The aggregator is killed after a checkpoint, and starts.
    fn restart(&mut self) {
        let kept = self.state.write_checkpoint().expect("it writes");
        self.names = Names::default();
        self.state = HostState::new(who(), START);
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: 1000,
            now: Instant::now(),
            replayed: false,
        };
        self.state.restore(&kept, &mut context).expect("it reads");
    }

    /// Ticks for so long, with all series going on as `how` picks; what the rule said.
    fn go(&mut self, case: &Case, how: fn(&Fed) -> Goes, time: Duration) -> Vec<&'static str> {
        let (rule, subject, series) = case;
        let mut said = Vec::new();
        for tick in 0..=time.as_secs() / INTERVAL.as_secs() {
            for fed in *series {
                let (name, labels, ..) = *fed;
                let next = match how(fed) {
                    At(value) => value,
                    By(rate) => self.value(name, labels) + rate * INTERVAL.as_secs_f64(),
                    Once(more) if tick == 0 => self.value(name, labels) + more,
                    Once(_) => self.value(name, labels),
                };
                self.set(name, labels, next);
            }
            let told = self.tick();
            let told = told.iter().filter(|one| one.rule == *rule);
            said.extend(told.map(|one| {
                assert_eq!(one.subject, *subject, "{rule}");
                match one.change {
                    Change::Opened { .. } => "+",
                    Change::Cleared { .. } => "-",
                }
            }));
        }
        said
    }

    /// A host on which what the case is about was well, and is not any more.
    fn with_open(case: &Case) -> Self {
        let mut host = Self::new(INTERVAL);
        let (rule, _, _) = case;
        let definition = pack().iter().find(|known| known.name == *rule);
        let definition = definition.expect("it is in the pack");
        for other in ["dmi", "timex"] {
            host.collector(other, true);
        }
        if let Some(collector) = &definition.collector {
            host.collector(collector, true);
        }
        let well = host.go(case, |fed| fed.2, INTERVAL * 3);
        assert_eq!(well, [""; 0], "{rule}: nothing is wrong yet");
        let ill = host.go(case, |fed| fed.3, definition.open_after.0 + INTERVAL * 2);
        assert_eq!(ill, ["+"], "{rule}: it opens");
        host
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn case(rule: &str) -> &'static Case {
    let case = CASES.iter().find(|case| case.0 == rule);
    case.expect("there is one for each rule")
}

#[test]
fn every_rule_opens_and_clears_by_what_a_host_sends() {
    for definition in pack() {
        let case = CASES.iter().find(|case| case.0 == definition.name);
        assert!(
            case.is_some(),
            "{}: add what opens it to CASES",
            definition.name
        );
        let Some(case) = case else {
            continue;
        };
        let mut host = Host::with_open(case);
        let cleared = host.go(case, |fed| fed.2, definition.clear_after.0 + HOUR);
        assert_eq!(cleared, ["-"], "{}: it clears", definition.name);
    }
}

#[test]
fn what_a_rule_that_is_switched_off_had_open_ends() {
    for rule in ["conntrack_full", "cpu_saturated", "raid_degraded"] {
        let mut host = Host::with_open(case(rule));
        host.engine = Engine::new(&DetectConfig {
            rules: vec![Override {
                rule: rule.to_owned(),
                enabled: Some(false),
                ..Override::default()
            }],
            ..DetectConfig::default()
        });
        let told = host.tick();
        assert_eq!(told.len(), 1, "{rule}: {told:?}");
        let because = "the rule is switched off for this host".to_owned();
        assert_eq!(told[0].change, Change::Cleared { evidence: because });
        let ill = host.go(case(rule), |fed| fed.3, HOUR);
        assert_eq!(ill, [""; 0], "{rule} is off");
    }
}

#[test]
fn what_concerns_the_host_ends_when_its_collector_says_there_is_no_such_thing() {
    let none: Case = ("conntrack_full", "", &[]);
    let absent = (
        "muster_agent_collector_absent",
        [("collector", "conntrack")],
    );
    for (what, cleared) in [
        ("fails", false),
        ("says nothing", false),
        ("works", false),
        ("has nothing to read", true),
        ("is switched off", true),
    ] {
        let mut host = Host::with_open(case("conntrack_full"));
        host.hide("node_nf_conntrack_entries", &[]);
        host.hide("node_nf_conntrack_entries_limit", &[]);
        let success = "node_scrape_collector_success";
        match what {
            "fails" => host.collector("conntrack", false),
            "says nothing" => {
                for name in ["conntrack", "dmi", "timex"] {
                    host.hide(success, &[("collector", name)]);
                }
            }
            "works" => {}
            "has nothing to read" => {
                host.collector("conntrack", false);
                host.set(absent.0, &absent.1, 1.0);
            }
            _ => host.hide(success, &[("collector", "conntrack")]),
        }
        let told = host.go(&none, |fed| fed.2, DAY * 2);
        let expected: &[&str] = if cleared { &["-"] } else { &[] };
        assert_eq!(told, expected, "the collector {what}");
    }
}

/// What a rule says of a counter of /proc/vmstat or of a link while a host ticks every second; they are read every 5
/// and 10 s. `grows` says by how much at a second.
fn by_the_second(
    host: &mut Host,
    (name, labels): (&str, &[(&str, &str)]),
    seconds: std::ops::Range<u64>,
    grows: impl Fn(u64) -> f64,
) -> Vec<(u64, &'static str, bool)> {
    let mut told = Vec::new();
    for second in seconds {
        let more = grows(second);
        let value = host.value(name, labels);
        host.set(name, labels, value + more);
        let opened = |one: &Transition| matches!(one.change, Change::Opened { .. });
        let now = host.tick();
        told.extend(now.iter().map(|one| (second, one.rule, opened(one))));
    }
    told
}

#[test]
fn what_is_read_every_few_seconds_goes_on_between_two_readings() {
    let mut host = Host::new(SECOND);
    let swapped = ("node_vmstat_pswpin", &[][..]);
    let read = |second: u64, pages: f64| {
        if second.is_multiple_of(5) { pages } else { 0.0 }
    };
    let told = by_the_second(&mut host, swapped, 0..20, |_| 0.0);
    assert_eq!(told, []);
    // 3,000 pages a second, seen by the first reading after it begins.
    let told = by_the_second(&mut host, swapped, 20..402, |at| read(at, 15_000.0));
    assert_eq!(told, []);
    // Between two readings the agent connects anew, with a key frame, and the aggregator is killed.
    host.reconnect();
    host.restart();
    let told = by_the_second(&mut host, swapped, 402..700, |at| read(at, 15_000.0));
    assert_eq!(told, [(620, "swapping", true)]);
    let told = by_the_second(&mut host, swapped, 700..1100, |_| 0.0);
    assert_eq!(
        told,
        [(1000, "swapping", false)],
        "from 700 on nothing grew"
    );
}

#[test]
fn what_happened_once_counts_once_however_often_it_is_shown() {
    let mut host = Host::new(SECOND);
    let downs = ("node_network_carrier_down_changes_total", ETH0);
    let told = by_the_second(&mut host, downs, 0..120, |second| match second {
        60 => 2.0,
        _ => 0.0,
    });
    assert_eq!(told, [], "twice is not three times");
}

#[test]
fn a_rule_that_sleeps_says_what_it_would_say_awake() {
    let mut random = fastrand::Rng::with_seed(7);
    let (mut sleeps, mut wakes) = (Host::new(INTERVAL), Host::new(INTERVAL));
    let all: Vec<&Fed> = CASES.iter().flat_map(|case| case.2).collect();
    let mut ill = vec![false; all.len()];
    let mut said = 0;
    for _ in 0..3000 {
        for ((name, labels, well, sick), ill) in all.iter().copied().zip(&mut ill) {
            let turns = random.u32(..300) == 0;
            *ill ^= turns;
            let hidden = random.u32(..500) == 0;
            for host in [&mut sleeps, &mut wakes] {
                let before = host.value(name, labels);
                let next = match if *ill { *sick } else { *well } {
                    At(value) => value,
                    By(rate) => before + rate * INTERVAL.as_secs_f64(),
                    Once(more) if turns => before + more,
                    Once(_) => before,
                };
                host.set(name, labels, next);
                if hidden {
                    host.hide(name, labels);
                }
            }
        }
        if random.u32(..300) == 0 {
            sleeps.reconnect();
            wakes.reconnect();
        }
        // Its labels might have changed, and with them its bounds: all rules look again.
        wakes.state.set_identity(who());
        // Some samples are older than what is known: they are decoded, and nothing is made of them.
        let late = if random.u32(..50) == 0 { 15_000 } else { 0 };
        for host in [&mut sleeps, &mut wakes] {
            host.at = Timestamp::from_millis(host.at.as_millis() - late);
        }
        let told = sleeps.tick();
        assert_eq!(told, wakes.tick());
        said += told.len();
        for host in [&mut sleeps, &mut wakes] {
            host.at = Timestamp::from_millis(host.at.as_millis() + late);
        }
    }
    assert!(said > 100, "{said} is too little to say anything");
}
