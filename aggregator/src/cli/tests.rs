//! What the command line prints, compared with `golden/*.txt`: fixed answers, fixed clock, fixed width.
//!
//! `UPDATE_EXPECT=1 cargo test -p muster-aggregator cli::tests` writes them anew; the diff is reviewed.

use std::{collections::BTreeMap, env, fs, path::Path};

use clap::CommandFactory as _;
use jiff::tz::TimeZone;
use muster_proto::{time::Timestamp, v1};

use super::{
    anomalies,
    args::Cli,
    checks,
    doctor::{self, Check, Verdict},
    export::{Door, Scrape},
    host, hosts, incidents,
    output::{self, Format, Options},
    quiet, services, summary,
    units::View,
};

/// 2026-11-21T14:13:00Z.
const NOW: i64 = 1_795_270_380_000;
const MINUTE: i64 = 60_000;

fn view() -> View {
    View {
        now: Timestamp::from_millis(NOW),
        zone: TimeZone::UTC,
        width: Some(100),
    }
}

fn options(format: Format) -> Options {
    Options {
        format,
        columns: Vec::new(),
        sort: None,
        limit: None,
    }
}

fn meta() -> Option<v1::AnswerMeta> {
    Some(v1::AnswerMeta {
        complete: true,
        missing: Vec::new(),
        as_of_ms: NOW,
    })
}

/// Compares without colours.
fn golden(name: &str, text: &str) {
    let plain = anstream::adapter::strip_str(text).to_string();
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/cli/golden")
        .join(format!("{name}.txt"));
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder can be made");
        fs::write(&path, &plain).expect("the golden file can be written");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        plain == expected,
        "{name} differs from {}; UPDATE_EXPECT=1 rewrites it\n--- expected\n{expected}--- found\n{plain}",
        path.display()
    );
}

fn web(number: u32, cpu: f64) -> v1::HostRow {
    v1::HostRow {
        name: format!("web-{number:02}"),
        host_id: vec![u8::try_from(number).expect("a small number"); 16],
        state: v1::HostState::Live.into(),
        state_since_ms: NOW - 90 * MINUTE,
        labels: BTreeMap::from([
            ("env".to_owned(), "prod".to_owned()),
            ("role".to_owned(), "web".to_owned()),
        ]),
        cpu_ratio: Some(cpu),
        memory_ratio: Some(0.54),
        disk_ratio: Some(0.4),
        disk_mountpoint: "/".to_owned(),
        load1: Some(6.1),
        io_ratio: Some(0.03),
        network_receive_bytes_per_second: Some(76.3e6),
        network_transmit_bytes_per_second: Some(1.2e5),
        pressure_ratio: Some(0.0),
        services: Some(41),
        services_failed: Some(0),
        anomaly_score: Some(0.71),
        last_seen_ms: Some(NOW - 1_200),
        agent_version: "0.1.0".to_owned(),
        os: "debian 12".to_owned(),
        kernel: "6.1.0-28-amd64".to_owned(),
        interval_ms: 10_000,
        open_incidents: 0,
        series: 461,
        ..v1::HostRow::default()
    }
}

/// A hot host, a usual one, one that learns with a failed unit, a silent one, and one with a forged name.
fn fleet() -> v1::ListHostsResponse {
    let mut hot = web(31, 0.97);
    hot.memory_ratio = Some(0.88);
    hot.anomaly_score = Some(1.93);
    hot.open_incidents = 1;
    let mut learning = web(17, 0.12);
    learning.services_failed = Some(1);
    learning.anomaly_score = None;
    let silent = v1::HostRow {
        name: "web-09".to_owned(),
        host_id: vec![9; 16],
        state: v1::HostState::Silent.into(),
        silence_cause: v1::SilenceCause::Unknown.into(),
        state_since_ms: NOW - 4 * MINUTE,
        last_seen_ms: Some(NOW - 4 * MINUTE),
        interval_ms: 10_000,
        ..v1::HostRow::default()
    };
    let mut forged = web(66, 0.5);
    forged.name = "x\u{1b}[2J\u{202e}y".to_owned();
    forged.os = "=cmd()".to_owned();
    v1::ListHostsResponse {
        meta: meta(),
        hosts: vec![hot, web(2, 0.81), learning, silent, forged],
        matched: 96,
        unknown_names: Vec::new(),
    }
}

fn render<R>(list: output::List<R>, options: &Options) -> String {
    let rendered = output::list(list, options, &view()).expect("rendered");
    assert_eq!(rendered.missing, Vec::<String>::new());
    rendered.text
}

#[test]
fn hosts_in_every_form() {
    for (name, format) in [
        ("hosts-table", Format::Table),
        ("hosts-json", Format::Json),
        ("hosts-jsonl", Format::Jsonl),
        ("hosts-csv", Format::Csv),
        ("hosts-name", Format::Name),
        ("hosts-tsv", Format::Tsv),
    ] {
        golden(
            name,
            &render(hosts::list(fleet(), Some(5)), &options(format)),
        );
    }
    let unlimited = View {
        width: None,
        ..view()
    };
    let wide = output::list(
        hosts::list(fleet(), None),
        &options(Format::Wide),
        &unlimited,
    );
    golden("hosts-wide", &wide.expect("rendered").text);
}

#[test]
fn json_of_a_list_is_one_object_with_items() {
    let text = render(hosts::list(fleet(), None), &options(Format::Json));
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["apiVersion"], "muster/v1");
    assert_eq!(value["complete"], true);
    assert_eq!(value["asOf"], "2026-11-21T14:13:00Z");
    assert_eq!(value["items"].as_array().map(Vec::len), Some(5));
    assert_eq!(value["items"][3]["cpuRatio"], serde_json::Value::Null);
}

#[test]
fn columns_are_chosen_and_ordered() {
    let chosen = Options {
        columns: vec!["SEEN".to_owned(), "name".to_owned(), "cpuRatio".to_owned()],
        sort: Some("-cpu".to_owned()),
        limit: Some(4),
        ..options(Format::Table)
    };
    golden(
        "hosts-columns",
        &render(hosts::list(fleet(), None), &chosen),
    );
    let unknown = Options {
        columns: vec!["colour".to_owned()],
        ..options(Format::Table)
    };
    let failure = output::list(hosts::list(fleet(), None), &unknown, &view()).expect_err("refused");
    assert_eq!(failure.code as u8, 2);
    golden("hosts-unknown-column", &failure.lines());
}

/// Whatever stands above a column or names it in JSON orders by it, for the aggregator too.
#[test]
fn every_column_of_a_host_can_be_ordered_by() {
    for column in hosts::COLUMNS {
        for word in [column.key, column.title] {
            let sort = hosts::sort(&format!("-{word}")).expect("a column");
            crate::query::order::Order::parse(&sort).expect("an order");
        }
    }
    let failure = hosts::sort("colour").expect_err("no column");
    assert_eq!(failure.code as u8, 2);
}

#[test]
fn an_incomplete_answer_says_so() {
    let mut response = fleet();
    response.meta = Some(v1::AnswerMeta {
        complete: false,
        missing: vec!["shard 1".to_owned()],
        as_of_ms: NOW,
    });
    let rendered = output::list(hosts::list(response, None), &options(Format::Name), &view());
    assert_eq!(rendered.expect("rendered").missing, ["shard 1"]);
}

#[test]
fn no_hosts() {
    let response = v1::ListHostsResponse {
        meta: meta(),
        ..v1::ListHostsResponse::default()
    };
    golden(
        "hosts-none",
        &render(hosts::list(response.clone(), None), &options(Format::Table)),
    );
    golden(
        "hosts-none-json",
        &render(hosts::list(response, None), &options(Format::Json)),
    );
}

fn failing() -> Vec<v1::ServiceGroup> {
    vec![
        v1::ServiceGroup {
            name: "backup.service".to_owned(),
            state: "failed".to_owned(),
            hosts: vec!["db-03".to_owned(), "db-07".to_owned()],
            since_ms: Some(NOW - 11 * 60 * MINUTE),
            restarts: 0,
        },
        v1::ServiceGroup {
            name: "nginx.service".to_owned(),
            state: "failed".to_owned(),
            hosts: vec!["web-17".to_owned()],
            since_ms: Some(NOW - 4 * MINUTE),
            restarts: 3,
        },
        v1::ServiceGroup {
            name: "php-fpm.service".to_owned(),
            state: "activating".to_owned(),
            hosts: (1..=12).map(|n| format!("web-{n:02}")).collect(),
            since_ms: None,
            restarts: 6,
        },
    ]
}

fn checks() -> Vec<v1::CheckRow> {
    let row =
        |host: &str, name: &str, kind: &str, status: v1::CheckStatus, result: &str| v1::CheckRow {
            host: host.to_owned(),
            name: name.to_owned(),
            kind: kind.to_owned(),
            severity: "critical".to_owned(),
            status: status.into(),
            since_ms: Some(NOW - 7 * MINUTE),
            result: result.to_owned(),
            duration_seconds: 0.012,
            runs: 1_440,
            ..v1::CheckRow::default()
        };
    let mut failing = row(
        "web-17",
        "shop",
        "http",
        v1::CheckStatus::Critical,
        "timeout",
    );
    (failing.failed_runs, failing.duration_seconds) = (4, 10.0);
    let mut expiring = row(
        "web-17",
        "cert",
        "tls",
        v1::CheckStatus::Warning,
        "certificate_expiry",
    );
    (expiring.failed_runs, expiring.certificate_expires_ms) =
        (9, Some(NOW + 18 * 24 * 60 * MINUTE));
    let mut pending = row(
        "db-01",
        "backup\x1b[2J",
        "file",
        v1::CheckStatus::Unspecified,
        "age",
    );
    (pending.failed_runs, pending.since_ms) = (1, None);
    let mut doubtful = row("db-01", "postgres", "tcp", v1::CheckStatus::Ok, "refused");
    doubtful.failed_runs = 2;
    let mut fine = row("db-01", "load", "exec", v1::CheckStatus::Ok, "ok");
    fine.measures = vec![v1::CheckMeasure {
        label: "load1".to_owned(),
        unit: String::new(),
        value: 0.5,
    }];
    vec![failing, expiring, pending, doubtful, fine]
}

#[test]
fn checks_failing_first() {
    let response = v1::ListChecksResponse {
        meta: meta(),
        checks: checks(),
        left_out: 3,
        hosts_not_heard: 1,
    };
    for (name, format) in [
        ("checks-table", Format::Table),
        ("checks-wide", Format::Wide),
        ("checks-json", Format::Json),
        ("checks-tsv", Format::Tsv),
    ] {
        golden(
            name,
            &render(checks::list(response.clone(), false), &options(format)),
        );
    }
    let none = v1::ListChecksResponse {
        meta: meta(),
        ..v1::ListChecksResponse::default()
    };
    golden(
        "checks-none",
        &render(checks::list(none, false), &options(Format::Table)),
    );
}

#[test]
fn services_failing_first() {
    let response = v1::ListServicesResponse {
        meta: meta(),
        services: failing(),
        hosts_without_services: 2,
    };
    golden(
        "services-table",
        &render(
            services::list(response.clone(), false),
            &options(Format::Table),
        ),
    );
    golden(
        "services-json",
        &render(services::list(response, false), &options(Format::Json)),
    );
    let none = v1::ListServicesResponse {
        meta: meta(),
        ..v1::ListServicesResponse::default()
    };
    golden(
        "services-none",
        &render(services::list(none, true), &options(Format::Table)),
    );
}

#[test]
fn anomalies_say_what_moved() {
    let cause = |signal: &str, observed, usual| v1::AnomalyCause {
        signal: signal.to_owned(),
        observed,
        usual,
        excess: 2.5,
        since_ms: NOW - 11 * MINUTE,
    };
    let response = v1::ListAnomaliesResponse {
        meta: meta(),
        anomalies: vec![v1::Anomaly {
            host: "web-31".to_owned(),
            score: 1.93,
            since_ms: NOW - 11 * MINUTE,
            causes: vec![
                cause("pressure_memory_ratio", 0.42, 0.0),
                cause("major_faults_per_second", 812.0, 0.2),
                cause("network_receive_bytes_per_second", 76.3e6, 1.0e6),
                cause("load1", 14.2, 0.8),
            ],
        }],
        hosts_learning: 7,
        budget_per_host_week: 1.0,
        told_per_host_week: Some(1.34),
        group_shifts: vec![
            v1::GroupShift {
                group: "role=web".to_owned(),
                figure: "cpu".to_owned(),
                since_ms: NOW - 11 * MINUTE,
                until_ms: None,
                before: 0.34,
                farthest: 0.61,
                hosts: 38,
            },
            v1::GroupShift {
                group: "role=db".to_owned(),
                figure: "disk time".to_owned(),
                since_ms: NOW - 300 * MINUTE,
                until_ms: Some(NOW - 200 * MINUTE),
                before: 0.5,
                farthest: 0.2,
                hosts: 6,
            },
        ],
    };
    golden(
        "anomalies-table",
        &render(anomalies::list(response.clone()), &options(Format::Table)),
    );
    golden(
        "anomalies-json",
        &render(anomalies::list(response), &options(Format::Json)),
    );
}

fn incident() -> v1::IncidentRow {
    v1::IncidentRow {
        number: 2038,
        id: "01932b1e-0000-7000-8000-000000000001".to_owned(),
        severity: v1::Severity::Warning.into(),
        state: v1::IncidentState::Open.into(),
        rule: "filesystem_full".to_owned(),
        host: "db-07".to_owned(),
        subject: "/".to_owned(),
        summary: "disk / on db-07 is 96% full".to_owned(),
        opened_ms: NOW - 3 * 60 * MINUTE,
        resolved_ms: None,
        since_ms: NOW - 3 * 60 * MINUTE - 5 * MINUTE,
        acknowledgement: Some(v1::Acknowledgement {
            by: "anna".to_owned(),
            at_ms: NOW - 10 * MINUTE,
            until_ms: Some(NOW + 60 * MINUTE),
            text: "growing the volume".to_owned(),
        }),
        ..v1::IncidentRow::default()
    }
}

#[test]
fn incidents_and_one_of_them() {
    let response = v1::ListIncidentsResponse {
        meta: meta(),
        incidents: vec![incident()],
        matched: 2,
    };
    golden(
        "incidents-table",
        &render(
            incidents::list(response.clone(), false, false),
            &options(Format::Table),
        ),
    );
    golden(
        "incidents-json",
        &render(
            incidents::list(response, false, false),
            &options(Format::Json),
        ),
    );
    let detail = v1::IncidentDetail {
        meta: meta(),
        row: Some(incident()),
        transitions: vec![
            v1::IncidentTransition {
                at_ms: NOW - 3 * 60 * MINUTE,
                to: v1::IncidentState::Open.into(),
                evidence: "91% used for 5 min, 18 GiB available".to_owned(),
                ..v1::IncidentTransition::default()
            },
            v1::IncidentTransition {
                at_ms: NOW - 10 * MINUTE,
                what: "acknowledged".to_owned(),
                actor: "anna".to_owned(),
                evidence: "growing the volume".to_owned(),
                ..v1::IncidentTransition::default()
            },
        ],
    };
    for (name, format) in [
        ("incident-table", Format::Table),
        ("incident-json", Format::Json),
    ] {
        let detail = incidents::detail(detail.clone(), &view());
        golden(
            name,
            &output::detail(detail, &options(format))
                .expect("rendered")
                .text,
        );
    }
}

#[test]
fn the_fleet_on_one_screen() {
    let state = |state: v1::HostState, hosts| v1::StateCount {
        state: state.into(),
        hosts,
    };
    let worst = |host: &str, what: &str, value| v1::WorstEntry {
        host: host.to_owned(),
        what: what.to_owned(),
        value,
    };
    let full = v1::Summary {
        meta: meta(),
        fleet_name: "prod".to_owned(),
        states: vec![
            state(v1::HostState::Joined, 1),
            state(v1::HostState::Live, 405),
            state(v1::HostState::Late, 4),
            state(v1::HostState::Silent, 2),
        ],
        agent_versions: vec![
            v1::VersionCount {
                version: "0.3.1".to_owned(),
                hosts: 398,
            },
            v1::VersionCount {
                version: "0.3.0".to_owned(),
                hosts: 14,
            },
        ],
        incidents_critical: 1,
        incidents_warning: 1,
        incidents_info: 0,
        newest_sample_ms: Some(840),
        frames_dropped: 0,
        worst: vec![
            worst("db-07", "disk /", 0.96),
            worst("web-31", "stalled", 0.42),
            worst("web-02", "cpu", 0.91),
            worst("web-03", "cpu", 0.91),
        ],
        failing_services: failing()[..2].to_vec(),
        budget_per_host_week: 1.0,
        told_per_host_week: Some(1.34),
        ..v1::Summary::default()
    };
    let quiet = v1::Summary {
        meta: meta(),
        fleet_name: "lab".to_owned(),
        states: vec![state(v1::HostState::Live, 1)],
        ..v1::Summary::default()
    };
    let partly = v1::Summary {
        states: vec![
            state(v1::HostState::Live, 4),
            state(v1::HostState::Silent, 1),
        ],
        hosts_without_services: 1,
        frames_dropped: 7,
        most_dropped_host: "db-07".to_owned(),
        most_dropped: 5,
        ..quiet.clone()
    };
    let unknown = v1::Summary {
        states: vec![state(v1::HostState::Silent, 2)],
        hosts_without_services: 2,
        ..quiet.clone()
    };
    for (name, summary, format) in [
        ("summary-partly-unknown", &partly, Format::Table),
        ("summary-unknown", &unknown, Format::Table),
        ("summary", &full, Format::Table),
        ("summary-json", &full, Format::Json),
        ("summary-tsv", &full, Format::Tsv),
        ("summary-quiet", &quiet, Format::Table),
    ] {
        let detail = summary::detail(summary.clone());
        golden(
            name,
            &output::detail(detail, &options(format))
                .expect("rendered")
                .text,
        );
    }
}

fn detail() -> v1::HostDetail {
    let mut row = web(31, 0.97);
    row.services_failed = Some(1);
    row.anomaly_score = Some(1.93);
    row.open_incidents = 1;
    v1::HostDetail {
        checks: 5,
        failing_checks: checks().into_iter().take(2).collect(),
        meta: meta(),
        row: Some(row),
        facts: Some(v1::HostFacts {
            hostname: "web-31".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 8,
            memory_bytes: 31 * 1024 * 1024 * 1024,
            ..v1::HostFacts::default()
        }),
        boot_time_ms: Some(NOW - 41 * 24 * 60 * MINUTE),
        clock_offset_ms: Some(2),
        certificate_expires_ms: NOW + 61 * 24 * 60 * MINUTE,
        filesystems: vec![
            v1::Filesystem {
                mountpoint: "/".to_owned(),
                device: "/dev/vda1".to_owned(),
                fstype: "ext4".to_owned(),
                size_bytes: 50e9,
                available_bytes: 19e9,
                used_ratio: 0.61,
                inodes_used_ratio: Some(0.08),
                ..v1::Filesystem::default()
            },
            v1::Filesystem {
                mountpoint: "/mnt/nfs".to_owned(),
                used_ratio: f64::NAN,
                hung: true,
                ..v1::Filesystem::default()
            },
        ],
        interfaces: vec![v1::Interface {
            device: "eth0".to_owned(),
            receive_bytes_per_second: Some(76.3e6),
            transmit_bytes_per_second: Some(10e6),
            errors_per_second: Some(0.0),
        }],
        disks: vec![v1::Disk {
            device: "vda".to_owned(),
            busy_ratio: Some(0.03),
            read_bytes_per_second: Some(0.0),
            written_bytes_per_second: Some(2.5e6),
        }],
        failing_services: vec![v1::ServiceRow {
            name: "php-fpm.service".to_owned(),
            state: "failed".to_owned(),
            since_ms: Some(NOW - 10 * MINUTE),
            restarts: 6,
        }],
        incidents: vec![incident()],
        events: vec![v1::Event {
            kind: v1::EventKind::UnitStateChanged.into(),
            subject: "php-fpm.service".to_owned(),
            at_ms: NOW - 10 * MINUTE,
            fields: vec![
                field(v1::EventFieldKey::From, "active"),
                field(v1::EventFieldKey::To, "failed"),
                field(v1::EventFieldKey::Result, "oom-kill"),
            ],
        }],
        failing_collectors: vec!["systemd".to_owned()],
        recent: vec![v1::RecentSeries {
            field: "cpu_ratio".to_owned(),
            values: vec![0.2, 0.2, 0.25, f32::NAN, 0.3, 0.25, 0.3, 0.7, 0.9, 0.97],
        }],
        books: Some(v1::Books {
            produced: 3600,
            stored: 3599,
            lost: 1,
            ..v1::Books::default()
        }),
        cpu_modes: BTreeMap::from([
            ("user".to_owned(), 0.61),
            ("system".to_owned(), 0.3),
            ("steal".to_owned(), 0.0),
        ]),
        pressure: BTreeMap::from([("memory some".to_owned(), 0.42)]),
        anomaly_causes: vec!["pressure_memory_ratio".to_owned()],
        ..v1::HostDetail::default()
    }
}

fn field(key: v1::EventFieldKey, word: &str) -> v1::EventField {
    v1::EventField {
        key: key.into(),
        value: Some(v1::event_field::Value::Word(word.to_owned())),
    }
}

#[test]
fn one_host_on_one_screen() {
    for (name, format) in [("host", Format::Table), ("host-json", Format::Json)] {
        let detail = host::detail(detail(), &view());
        golden(
            name,
            &output::detail(detail, &options(format))
                .expect("rendered")
                .text,
        );
    }
    let silent = v1::HostDetail {
        meta: meta(),
        row: Some(v1::HostRow {
            name: "web-09".to_owned(),
            state: v1::HostState::Silent.into(),
            silence_cause: v1::SilenceCause::Reboot.into(),
            state_since_ms: NOW - 4 * MINUTE,
            last_seen_ms: Some(NOW - 4 * MINUTE),
            ..v1::HostRow::default()
        }),
        ..v1::HostDetail::default()
    };
    let detail = host::detail(silent, &view());
    golden(
        "host-silent",
        &output::detail(detail, &options(Format::Table))
            .expect("rendered")
            .text,
    );
}

#[test]
fn doctor_says_where_it_stops() {
    let check = |step, verdict, detail: &str, fix: &str| Check {
        step,
        verdict,
        detail: detail.to_owned(),
        fix: fix.to_owned(),
    };
    let checks = vec![
        check(
            "config",
            Verdict::Ok,
            "~/.config/muster/config.toml, context prod",
            "",
        ),
        check(
            "clock",
            Verdict::Warn,
            "this machine is 4.2 s behind the aggregator",
            "check chrony or systemd-timesyncd here",
        ),
        check("tcp", Verdict::Fail, "no connection", "is it running?"),
        check("tls", Verdict::Skipped, "not tried", ""),
    ];
    golden("doctor", &doctor::lines(&checks));
    golden(
        "doctor-tsv",
        &render(doctor::list(checks), &options(Format::Tsv)),
    );
}

#[test]
fn pressure_has_keys_without_spaces() {
    let json = output::detail(host::detail(detail(), &view()), &options(Format::Json));
    let value: serde_json::Value =
        serde_json::from_str(&json.expect("rendered").text).expect("JSON");
    let item = &value["items"][0];
    let pressure = item["pressure"].as_object().expect("an object");
    assert!(pressure.contains_key("memorySome"), "{pressure:?}");
    assert!(pressure.keys().all(|key| !key.contains(' ')));
    assert_eq!(
        item["filesystems"][0]["sizeBytes"].as_u64(),
        Some(50_000_000_000)
    );
}

#[test]
fn silences_that_hide_something_or_match_nothing_stand_out() {
    let row = |number, hosts, hides: &[u64]| v1::QuietRow {
        quiet: Some(v1::Quiet {
            kind: v1::QuietKind::Silence.into(),
            number,
            selector: "role=db".to_owned(),
            rule: "filesystem_full".to_owned(),
            text: "growing the volume".to_owned(),
            made_by: "anna".to_owned(),
            made_ms: NOW - MINUTE,
            ..v1::Quiet::default()
        }),
        active: number < 3,
        changes_ms: Some(NOW + 90 * MINUTE),
        hosts,
        hides: hides.to_vec(),
    };
    let response = v1::ListQuietsResponse {
        meta: meta(),
        quiets: vec![
            row(3, 4, &[]),
            row(2, 0, &[]),
            row(1, 4, &[2038, 2040, 2041, 2042, 2043]),
        ],
    };
    let kind = crate::control::QuietKind::Silence;
    for (name, format) in [
        ("silences-table", Format::Table),
        ("silences-json", Format::Json),
    ] {
        let list = quiet::rows(response.clone(), kind);
        golden(name, &render(list, &options(format)));
    }
}

#[test]
fn the_scrape_block() {
    let mut scrape = Scrape {
        door: Door::of_url("https://muster.example:7446/").expect("a door"),
        ca: "muster-ca.pem".to_owned(),
        credentials: "muster.token".to_owned(),
        selector: "env=prod,cpu>90".to_owned(),
    };
    golden("prometheus-config", &scrape.yaml());
    scrape.door = Door::of_url("http://muster.example:7446").expect("a door");
    scrape.selector = String::new();
    golden("prometheus-config-plain", &scrape.yaml());
    for wrong in [
        "",
        "muster.example:7446",
        "ftp://x",
        "http://",
        "http://a/b",
        "http://a\"b",
    ] {
        assert_eq!(Door::of_url(wrong), None, "{wrong}");
    }
}

#[test]
fn help_of_every_command() {
    let mut text = String::new();
    let mut command = Cli::command().term_width(100);
    command.build();
    collect_help(&mut command, "muster", &mut text);
    golden("help", &text);
}

fn collect_help(command: &mut clap::Command, path: &str, out: &mut String) {
    out.push_str(&format!("$ {path} --help\n{}\n", command.render_help()));
    let told = |sub: &&mut clap::Command| sub.get_name() != "help";
    for sub in command.get_subcommands_mut().filter(told) {
        let path = format!("{path} {}", sub.get_name());
        collect_help(sub, &path, out);
    }
}
