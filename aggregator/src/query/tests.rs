//! The service over hosts that were fed frames, and a real control store.

use std::{collections::HashMap, sync::Arc, time::Duration};

use muster_proto::{
    catalog::{
        CHECK_DURATION, CHECK_FAILED_RUNS, CHECK_INFO, CHECK_PERFDATA, CHECK_RESULT, CHECK_RUNS,
        CHECK_SINCE, CHECK_STATUS, FamilyId, METRICS,
    },
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    series::{Family, Kind, Raw, Scale, Series, Table},
    spiffe::SpiffeId,
    time::{Clock, FakeClock, Timestamp},
    v1::{
        self, checks_server::Checks as _, operator_server::Operator as _,
        paging_server::Paging as _,
    },
};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Request};

use super::{
    About, ChecksService, HttpDoor, OperatorService, PagingService, access::ACCESS, rows::Asked,
};
use crate::{
    control::{Control, NewIncident, OperatorRole},
    detect::{DetectConfig, Engine},
    fleet::{
        Counters, Enrolled, Fleet, HostState, ReadContext,
        host::{FrameIn, Lane, Receiving, Session, Surroundings},
        names::Names,
        shard::Message,
    },
    http::source::{HostView, OpenIncidents},
    listen::Peer,
    pki::{Authority, Request as CertificateRequest},
    selector::Selector,
};

/// 2026-11-21T14:13:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_795_270_380_000);

struct Lab {
    service: OperatorService,
    paging: PagingService,
    control: Control,
    authority: Authority,
    _state: tempfile::TempDir,
}

impl Lab {
    /// Four hosts: two live, one stopped, one that was never heard. `shards` that answer, and some that do not.
    async fn new(dead_shards: usize) -> Self {
        let state = tempfile::tempdir().expect("temporary folder");
        let authority = Authority::init(state.path(), &[], NOW).expect("an authority");
        let control = Control::open(state.path()).expect("a store");
        let hosts = [
            live(
                1,
                "web-01",
                0.5,
                &[("nginx.service", "active"), ("cron.service", "failed")],
            ),
            live(
                2,
                "web-02",
                14.0,
                &[("nginx.service", "active"), ("cron.service", "failed")],
            ),
            stopped(3, "db-01"),
            HostState::new(enrolled(4, "db-02"), NOW),
        ];
        let (sender, inbox) = mpsc::channel(8);
        tokio::spawn(shard(
            hosts.into_iter().map(|host| (host.id(), host)).collect(),
            inbox,
        ));
        let mut shards = vec![sender];
        // A sender whose receiver is gone is a shard that has ended.
        shards.extend((0..dead_shards).map(|_| mpsc::channel(1).0));
        let clock = Arc::new(FakeClock::at(NOW));
        let about = About {
            fleet_name: "lab".to_owned(),
            started: NOW,
            certificate_not_after: Box::new(|| Some(NOW.plus(Duration::from_secs(86_400)))),
            problems: Box::new(|| vec!["the disk is nearly full".to_owned()]),
            http: HttpDoor {
                address: "127.0.0.1:7446".to_owned(),
                tls: false,
                token_needed: false,
            },
            budget_per_host_week: 1.0,
        };
        let fleet = Fleet::new(shards, Arc::new(Counters::default()));
        let lab = Self {
            paging: PagingService::new(
                fleet.clone(),
                control.clone(),
                crate::notify::Told::default(),
                Arc::clone(&clock) as Arc<dyn Clock>,
            ),
            service: OperatorService::new(
                fleet,
                control.clone(),
                about,
                Arc::clone(&clock) as Arc<dyn Clock>,
            ),
            control,
            authority,
            _state: state,
        };
        lab.allow("jo", OperatorRole::Viewer).await;
        lab
    }

    async fn allow(&self, name: &str, role: OperatorRole) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .expect("a request");
        let request = CertificateRequest::check(csr.der()).expect("acceptable");
        let issued = self
            .authority
            .issue_operator(&request, name, NOW)
            .expect("issued");
        self.control
            .operator_issued("test", name, role, &issued, [0; 32], NOW)
            .await
            .expect("written");
    }

    async fn incident(&self, host: u8, subject: &str) {
        self.control
            .open_incident(NewIncident {
                op_id: format!("{host}{subject}"),
                host_id: HostId::from_bytes([host; 16]),
                rule: "unit_failed".to_owned(),
                subject: subject.to_owned(),
                severity: v1::Severity::Warning,
                summary: format!("{subject} failed"),
                evidence: "active to failed".to_owned(),
                since: NOW,
                at: NOW,
            })
            .await
            .expect("written");
    }

    fn peer(&self, name: &str) -> Peer {
        Peer {
            addr: ([127, 0, 0, 1], 1).into(),
            id: Some(SpiffeId::Operator {
                domain: self.authority.trust_domain().clone(),
                name: name.to_owned(),
            }),
            serial: None,
            cert_not_after: Some(NOW),
            origin: None,
            ending: crate::listen::Ending::default(),
        }
    }

    fn ask<T>(&self, name: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(self.peer(name));
        request
    }

    async fn hosts(&self, selector: &str, sort: &str, limit: u32) -> v1::ListHostsResponse {
        let request = v1::ListHostsRequest {
            selector: selector.to_owned(),
            sort: sort.to_owned(),
            limit,
            ..v1::ListHostsRequest::default()
        };
        let response = self.service.list_hosts(self.ask("jo", request)).await;
        response.expect("an answer").into_inner()
    }
}

async fn shard(hosts: HashMap<HostId, HostState>, mut inbox: mpsc::Receiver<Message>) {
    while let Some(message) = inbox.recv().await {
        if let Message::Read(reader) = message {
            reader(&hosts, &ReadContext { now: NOW });
        }
    }
}

fn enrolled(number: u8, name: &str) -> Enrolled {
    Enrolled {
        id: HostId::from_bytes([number; 16]),
        name: name.to_owned(),
        labels: [("role".to_owned(), name[..name.len() - 3].to_owned())].into(),
        facts: v1::HostFacts {
            os_id: "debian".to_owned(),
            os_version: "12".to_owned(),
            agent_version: "0.1.0".to_owned(),
            ..v1::HostFacts::default()
        },
        certificate_not_after: None,
    }
}

/// The series of a check "shop" that fails where there is much to do.
fn check(load: f64) -> Vec<(FamilyId, Vec<&'static str>, Raw)> {
    let (status, result, failed) = match load > 10.0 {
        true => (2, "timeout", 3),
        false => (0, "ok", 0),
    };
    vec![
        (CHECK_INFO, vec!["shop", "critical", "http"], Raw::int(1)),
        (CHECK_STATUS, vec!["shop"], Raw::int(status)),
        (CHECK_SINCE, vec!["shop"], Raw::int(NOW.as_millis() / 1000)),
        (CHECK_RESULT, vec!["shop", result], Raw::int(1)),
        (CHECK_DURATION, vec!["shop"], Raw::int(1_500_000)),
        (CHECK_RUNS, vec!["shop"], Raw::int(17)),
        (CHECK_FAILED_RUNS, vec!["shop"], Raw::int(failed)),
        (
            CHECK_PERFDATA,
            vec!["shop", "time", "seconds"],
            Raw::float(f64::NAN),
        ),
    ]
}

/// A host of which one sample has come, with this load and these units.
fn heard(number: u8, name: &str, load: f64, units: &[(&str, &str)]) -> HostState {
    let mut table = Table {
        families: vec![
            Family {
                name: "node_load1".to_owned(),
                kind: Kind::Gauge,
                scale: Scale::Float,
                labels: Vec::new(),
            },
            Family {
                name: "node_systemd_unit_state".to_owned(),
                kind: Kind::Gauge,
                scale: Scale::One,
                labels: vec!["name".to_owned(), "state".to_owned()],
            },
            Family {
                name: "muster_host_systemd_unit_restarts_recent".to_owned(),
                kind: Kind::Gauge,
                scale: Scale::One,
                labels: vec!["name".to_owned()],
            },
        ],
        ..Table::default()
    };
    let units_in_loops = units
        .iter()
        .map(|(unit, _)| *unit)
        .filter(|unit| unit.starts_with("loops"));
    let units = units.iter().map(|(unit, state)| {
        (
            1,
            vec![(*unit).to_owned(), (*state).to_owned()],
            Raw::int(1),
        )
    });
    let loops = units_in_loops.map(|unit| (2, vec![unit.to_owned()], Raw::int(5)));
    let first = table.families.len();
    let checks = check(load).into_iter().enumerate();
    let checks: Vec<_> = checks
        .map(|(at, (family, labels, raw))| {
            let metric = &METRICS[family.0 as usize];
            table.families.push(Family {
                name: metric.name.to_owned(),
                kind: metric.kind,
                scale: metric.scale,
                labels: metric
                    .labels
                    .iter()
                    .map(|&label| label.to_owned())
                    .collect(),
            });
            let family = u32::try_from(first + at).expect("few");
            (
                family,
                labels.iter().map(|&label| label.to_owned()).collect(),
                raw,
            )
        })
        .collect();
    let all = std::iter::once((0, Vec::new(), Raw::float(load)));
    for (family, labels, raw) in all.chain(units).chain(loops).chain(checks) {
        table.series.push(Series { family, labels });
        table.raw.push(raw);
        table.present.push(true);
    }
    let mut payload = Vec::new();
    Encoder::new().encode(&table, &[], true, &mut payload);
    let mut host = HostState::new(enrolled(number, name), NOW);
    let incarnation = Incarnation(1);
    host.begin_session(Session {
        incarnation,
        session: 1,
        boot_id: vec![1; 16],
        interval: Duration::from_secs(10),
        clock_offset_ms: 0,
    });
    host.set_connected(true);
    let mut context = Receiving {
        names: &mut Names::default(),
        engine: &Engine::new(&DetectConfig::default()),
        changes: &mut Changes::default(),
        series_quota: 100,
        now: Instant::now(),
        replayed: false,
    };
    let frame = FrameIn {
        incarnation,
        seq: 1,
        lane: Lane::Live,
        tick: NOW,
        received: NOW,
        crc32c: crc32c::crc32c(&payload),
        payload: payload.into(),
    };
    host.receive(&frame, &mut context, &mut Vec::new());
    host.stored(incarnation, 1);
    host
}

fn live(number: u8, name: &str, load: f64, units: &[(&str, &str)]) -> HostState {
    let mut host = heard(number, name, load, units);
    host.judge(&Surroundings::alone(Instant::now(), NOW, Instant::now()));
    host
}

#[test]
fn a_unit_that_dies_again_and_again_is_in_a_loop_until_it_is_stopped_or_given_up() {
    for (state, word, failing) in [
        ("active", "crash-loop", true),
        ("activating", "crash-loop", true),
        ("failed", "failed", true),
        ("inactive", "inactive", false),
    ] {
        let units = [("fine.service", state), ("loops.service", state)];
        let host = live(1, "web-01", 0.1, &units);
        let units = host.units();
        assert_eq!(units[0].word(), state);
        assert_eq!((units[1].word(), units[1].is_failing()), (word, failing));
    }
}

fn stopped(number: u8, name: &str) -> HostState {
    let mut host = heard(number, name, 3.0, &[("cron.service", "failed")]);
    host.fin(Incarnation(1), 1, v1::FinReason::Shutdown);
    host.judge(&Surroundings::alone(Instant::now(), NOW, Instant::now()));
    host
}

fn names(response: &v1::ListHostsResponse) -> Vec<&str> {
    response
        .hosts
        .iter()
        .map(|host| host.name.as_str())
        .collect()
}

#[tokio::test]
async fn hosts_are_chosen_ordered_and_cut() {
    let lab = Lab::new(0).await;
    let all = lab.hosts("", "", 0).await;
    assert_eq!(names(&all), ["db-01", "db-02", "web-01", "web-02"]);
    assert_eq!(
        all.meta.map(|meta| (meta.complete, meta.as_of_ms)),
        Some((true, NOW.as_millis()))
    );
    let loaded = lab.hosts("", "-load", 3).await;
    assert_eq!(names(&loaded), ["web-02", "web-01", "db-01"]);
    assert_eq!(loaded.matched, 4);
    for (selector, expected) in [
        ("role=web,load>1", &["web-02"][..]),
        ("state=silent", &["db-01"]),
        ("!load", &["db-01", "db-02"]),
        ("failed>0", &["web-01", "web-02"]),
        ("os=debian*,name!=web-*", &["db-01", "db-02"]),
    ] {
        assert_eq!(
            names(&lab.hosts(selector, "", 0).await),
            expected,
            "{selector}"
        );
    }
}

#[tokio::test]
async fn a_silent_host_shows_no_old_numbers() {
    let lab = Lab::new(0).await;
    let silent = lab.hosts("name=db-01", "", 0).await.hosts.remove(0);
    assert_eq!(silent.state(), v1::HostState::Silent);
    assert_eq!(silent.silence_cause(), v1::SilenceCause::Shutdown);
    assert_eq!(silent.last_seen_ms, Some(NOW.as_millis()));
    assert_eq!(
        (silent.load1, silent.services, silent.services_failed),
        (None, None, None)
    );
    let live = lab.hosts("name=web-02", "", 0).await.hosts.remove(0);
    assert_eq!(
        (live.load1, live.services, live.services_failed),
        (Some(14.0), Some(2), Some(1))
    );
}

#[test]
fn discovery_chooses_hosts_as_operators_do() {
    let units = [("cron.service", "failed")];
    let (live, silent) = (live(1, "db-01", 3.0, &units), stopped(2, "db-02"));
    for (selector, of_live, of_silent) in [
        ("load>1", true, false),
        ("load<=1", false, false),
        ("!load", false, true),
        ("failed>0", true, false),
        ("state=silent", false, true),
        ("incidents>0", true, true),
    ] {
        let parsed = Selector::parse(selector).expect("a selector");
        for (host, expected) in [(&live, of_live), (&silent, of_silent)] {
            let asked = Asked {
                host,
                open_incidents: 1,
            };
            let incidents = OpenIncidents {
                info: 1,
                ..OpenIncidents::default()
            };
            let name = host.name();
            assert_eq!(parsed.matches(&asked), expected, "{selector} {name}");
            let discovered = HostView::matches(host, &parsed, incidents);
            assert_eq!(discovered, expected, "/sd: {selector} {name}");
        }
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let lab = Lab::new(1).await;
    let response = lab.hosts("", "", 0).await;
    let meta = response.meta.expect("always there");
    assert!(!meta.complete);
    assert_eq!(meta.missing, ["shard 1"]);
    assert_eq!(response.hosts.len(), 4);
}

#[tokio::test]
async fn services_are_grouped_over_hosts() {
    let lab = Lab::new(0).await;
    let list = async |request| {
        let response = lab.service.list_services(lab.ask("jo", request)).await;
        response.expect("an answer").into_inner()
    };
    let all = list(v1::ListServicesRequest::default()).await;
    let groups: Vec<(&str, &str, usize)> = all
        .services
        .iter()
        .map(|group| (group.name.as_str(), group.state.as_str(), group.hosts.len()))
        .collect();
    assert_eq!(
        groups,
        [
            ("cron.service", "failed", 2),
            ("nginx.service", "active", 2)
        ]
    );
    // The stopped host and the one that was never heard.
    assert_eq!(all.hosts_without_services, 2);
    let one = list(v1::ListServicesRequest {
        names: vec!["cron*".to_owned()],
        host: "web-01".to_owned(),
        ..v1::ListServicesRequest::default()
    })
    .await;
    assert_eq!(one.services.len(), 1);
    assert_eq!(one.services[0].hosts, ["web-01"]);
}

#[tokio::test]
async fn checks_come_worst_first_and_only_from_hosts_that_are_heard() {
    let lab = Lab::new(0).await;
    let service = ChecksService::new(lab.service.clone());
    let list = async |request| {
        let response = service.list_checks(lab.ask("jo", request)).await;
        response.expect("an answer").into_inner()
    };
    let all = list(v1::ListChecksRequest::default()).await;
    let rows: Vec<_> = all
        .checks
        .iter()
        .map(|row| (row.host.as_str(), row.status()))
        .collect();
    let (bad, good) = (v1::CheckStatus::Critical, v1::CheckStatus::Ok);
    assert_eq!(rows, [("web-02", bad), ("web-01", good)]);
    assert_eq!(all.hosts_not_heard, 2);
    let row = &all.checks[0];
    assert_eq!(
        (
            row.kind.as_str(),
            row.severity.as_str(),
            row.result.as_str()
        ),
        ("http", "critical", "timeout")
    );
    assert_eq!(
        (row.runs, row.failed_runs, row.duration_seconds),
        (17, 3, 1.5)
    );
    assert_eq!(row.since_ms, Some(NOW.as_millis() / 1000 * 1000));
    assert_eq!(row.measures.len(), 1);
    for (request, expected) in [
        (
            v1::ListChecksRequest {
                statuses: vec![bad.into()],
                ..Default::default()
            },
            1,
        ),
        (
            v1::ListChecksRequest {
                names: vec!["sh*".into()],
                ..Default::default()
            },
            2,
        ),
        (
            v1::ListChecksRequest {
                names: vec!["other".into()],
                ..Default::default()
            },
            0,
        ),
        (
            v1::ListChecksRequest {
                host: "web-01".into(),
                ..Default::default()
            },
            1,
        ),
        (
            v1::ListChecksRequest {
                selector: "load>10".into(),
                ..Default::default()
            },
            1,
        ),
    ] {
        assert_eq!(
            list(request.clone()).await.checks.len(),
            expected,
            "{request:?}"
        );
    }
    let request = v1::GetHostRequest {
        name: "web-02".into(),
    };
    let host = lab.service.get_host(lab.ask("jo", request)).await;
    let host = host.expect("an answer").into_inner();
    assert_eq!((host.checks, host.failing_checks.len()), (1, 1));
}

#[tokio::test]
async fn incidents_reach_hosts_summary_and_lists() {
    let lab = Lab::new(0).await;
    for (host, subject) in [
        (1, "cron.service"),
        (2, "cron.service"),
        (2, "nginx.service"),
    ] {
        lab.incident(host, subject).await;
    }
    assert_eq!(names(&lab.hosts("incidents>1", "", 0).await), ["web-02"]);
    let summary = lab
        .service
        .get_summary(lab.ask("jo", v1::GetSummaryRequest::default()));
    let summary = summary.await.expect("an answer").into_inner();
    assert_eq!(
        (summary.incidents_critical, summary.incidents_warning),
        (0, 3)
    );
    assert_eq!(summary.failing_services.len(), 1);
    assert_eq!(summary.newest_sample_ms, Some(0));
    let request = v1::ListIncidentsRequest {
        selector: "name=web-02".to_owned(),
        limit: 1,
        ..v1::ListIncidentsRequest::default()
    };
    let list = lab.service.list_incidents(lab.ask("jo", request)).await;
    let list = list.expect("an answer").into_inner();
    assert_eq!((list.incidents.len(), list.matched), (1, 2));
    assert_eq!(list.incidents[0].host, "web-02");
    let request = v1::GetIncidentRequest { number: 1 };
    let incident = lab.service.get_incident(lab.ask("jo", request)).await;
    let incident = incident.expect("an answer").into_inner();
    assert_eq!(incident.transitions.len(), 1);
    assert_eq!(incident.row.map(|row| row.host).as_deref(), Some("web-01"));
    let request = v1::GetHostRequest {
        name: "web-02".to_owned(),
    };
    let host = lab.service.get_host(lab.ask("jo", request)).await;
    let host = host.expect("an answer").into_inner();
    assert_eq!(host.incidents.len(), 2);
    assert_eq!(host.row.map(|row| row.open_incidents), Some(2));
    assert_eq!(host.failing_services.len(), 1);
}

#[tokio::test]
async fn wrong_questions_are_told_what_is_wrong() {
    let lab = Lab::new(0).await;
    let request = v1::GetHostRequest {
        name: "wbe-01".to_owned(),
    };
    let status = lab
        .service
        .get_host(lab.ask("jo", request))
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(
        status.message(),
        "no host is called wbe-01, did you mean web-01?"
    );
    let request = v1::ListHostsRequest {
        selector: "cpu=9".to_owned(),
        ..v1::ListHostsRequest::default()
    };
    let status = lab
        .service
        .list_hosts(lab.ask("jo", request))
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("column 4"),
        "{}",
        status.message()
    );
    let request = v1::ListHostsRequest {
        sort: "colour".to_owned(),
        ..v1::ListHostsRequest::default()
    };
    let status = lab
        .service
        .list_hosts(lab.ask("jo", request))
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    let request = v1::GetIncidentRequest { number: 7 };
    let status = lab
        .service
        .get_incident(lab.ask("jo", request))
        .await
        .expect_err("refused");
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "there is no incident I-7")
    );
}

#[tokio::test]
async fn only_operators_of_the_store_are_answered() {
    let lab = Lab::new(0).await;
    let request = lab.ask("jo", v1::GetStatusRequest::default());
    let status = lab
        .service
        .get_status(request)
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!(
        (status.operator_name.as_str(), status.role.as_str()),
        ("jo", "viewer")
    );
    assert_eq!(status.problems, ["the disk is nearly full"]);

    let nobody = lab.ask("eve", v1::GetStatusRequest::default());
    let refused = lab.service.get_status(nobody).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let audit = lab.control.audit_log(1).await.expect("readable");
    assert_eq!(audit[0].1, ["eve", "ask", "GetStatus", "refused, no role"]);

    let without = Request::new(v1::GetStatusRequest::default());
    let refused = lab.service.get_status(without).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut agent = Request::new(v1::GetStatusRequest::default());
    agent.extensions_mut().insert(Peer {
        id: Some(SpiffeId::Agent {
            domain: lab.authority.trust_domain().clone(),
            cell: "main".to_owned(),
            host: HostId::from_bytes([1; 16]),
        }),
        ..lab.peer("jo")
    });
    let refused = lab.service.get_status(agent).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn calls_are_limited_for_each_operator() {
    let lab = Lab::new(0).await;
    lab.allow("al", OperatorRole::Admin).await;
    let call = async |name: &str| {
        let request = lab.ask(name, v1::GetStatusRequest::default());
        lab.service
            .get_status(request)
            .await
            .map(|_| ())
            .map_err(|status| status.code())
    };
    for _ in 0..60 {
        assert_eq!(call("jo").await, Ok(()));
    }
    assert_eq!(call("jo").await, Err(Code::ResourceExhausted));
    assert_eq!(call("al").await, Ok(()));
    tokio::time::advance(Duration::from_millis(150)).await;
    assert_eq!(call("jo").await, Ok(()));
    assert_eq!(call("jo").await, Err(Code::ResourceExhausted));
}

#[test]
fn every_method_of_the_contract_has_a_row() {
    let contract = [
        include_str!("../../../proto/muster/v1/operator.proto"),
        include_str!("../../../proto/muster/v1/events.proto"),
        include_str!("../../../proto/muster/v1/identity.proto"),
        include_str!("../../../proto/muster/v1/checks.proto"),
        include_str!("../../../proto/muster/v1/paging.proto"),
        include_str!("../../../proto/muster/v1/replay.proto"),
        include_str!("../../../proto/muster/v1/history.proto"),
        include_str!("../../../proto/muster/v1/past.proto"),
    ];
    let mut methods: Vec<&str> = contract
        .iter()
        .flat_map(|proto| proto.lines())
        .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
        // Of the admin socket, whose callers the kernel names.
        .filter(|method| *method != "IssueOperator")
        .collect();
    methods.sort_unstable();
    let mut rows: Vec<&str> = ACCESS.iter().map(|rule| rule.method).collect();
    rows.sort_unstable();
    assert_eq!(rows, methods);
}

fn silence(selector: &str, hours: u64) -> v1::AddQuietRequest {
    v1::AddQuietRequest {
        quiet: Some(v1::Quiet {
            kind: v1::QuietKind::Silence.into(),
            selector: selector.to_owned(),
            ends_ms: Some(NOW.plus(Duration::from_secs(hours * 3600)).as_millis()),
            text: "growing the volume".to_owned(),
            ..v1::Quiet::default()
        }),
    }
}

#[tokio::test]
async fn incidents_are_acknowledged_by_those_who_may() {
    let lab = Lab::new(0).await;
    lab.allow("anna", OperatorRole::Operator).await;
    lab.incident(1, "cron.service").await;
    let ack = |name: &str, number, until_ms| {
        let request = v1::AcknowledgeIncidentRequest {
            number,
            text: "rolling back".to_owned(),
            until_ms,
        };
        lab.paging.acknowledge_incident(lab.ask(name, request))
    };
    let refused = ack("jo", 1, None).await.expect_err("a viewer");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let unknown = ack("anna", 7, None).await.expect_err("no such incident");
    assert_eq!(unknown.code(), Code::NotFound);
    let late = ack("anna", 1, Some(NOW.as_millis()))
        .await
        .expect_err("over");
    assert_eq!(late.code(), Code::InvalidArgument);
    let done = ack("anna", 1, None).await.expect("done").into_inner();
    assert_eq!(done.numbers, [1]);

    let request = v1::GetIncidentRequest { number: 1 };
    let incident = lab.service.get_incident(lab.ask("jo", request)).await;
    let incident = incident.expect("an answer").into_inner();
    let by = incident.row.and_then(|row| row.acknowledgement);
    assert_eq!(by.map(|ack| ack.by).as_deref(), Some("anna"));
    let steps: Vec<_> = incident
        .transitions
        .iter()
        .map(|step| {
            (
                step.what.as_str(),
                step.actor.as_str(),
                step.evidence.as_str(),
            )
        })
        .collect();
    assert_eq!(
        steps,
        [
            ("open", "", "active to failed"),
            ("acknowledged", "anna", "rolling back")
        ]
    );

    let unack = |name: &str| {
        let request = v1::UnacknowledgeIncidentRequest { number: 1 };
        lab.paging.unacknowledge_incident(lab.ask(name, request))
    };
    assert!(unack("anna").await.is_ok());
    let again = unack("anna").await.expect_err("nobody's");
    assert_eq!(again.code(), Code::FailedPrecondition);
    let end = crate::control::Resolution {
        op_id: "end".to_owned(),
        host_id: HostId::from_bytes([1; 16]),
        rule: "unit_failed".to_owned(),
        subject: "cron.service".to_owned(),
        evidence: String::new(),
        at: NOW,
    };
    lab.control.resolve_incident(end).await.expect("written");
    let over = ack("anna", 1, None).await.expect_err("it has cleared");
    assert_eq!(over.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_silence_says_what_it_matches_and_what_it_hides() {
    let lab = Lab::new(0).await;
    lab.allow("anna", OperatorRole::Operator).await;
    lab.incident(1, "cron.service").await;
    lab.incident(3, "cron.service").await;
    let add = |name: &str, request| lab.paging.add_quiet(lab.ask(name, request));
    for (wrong, why) in [
        (silence("", 1), "an empty selector"),
        (silence("cpu>90", 1), "cpu changes from minute to minute"),
        (silence("state=silent", 1), "state changes"),
        (silence("role in", 1), "no selector"),
        (silence("role=web", 0), "would end before it begins"),
        (silence("role=web", 24 * 91), "ends within 90 days"),
    ] {
        let status = add("anna", wrong).await.expect_err(why);
        assert_eq!(status.code(), Code::InvalidArgument, "{why}");
        assert!(
            status.message().contains(why),
            "{why}: {}",
            status.message()
        );
    }
    let refused = add("jo", silence("role=web", 1))
        .await
        .expect_err("a viewer");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let added = add("anna", silence("role=web", 2)).await.expect("added");
    let added = added.into_inner();
    assert_eq!((added.number, added.hosts, added.hides), (1, 2, 1));
    let mut other = silence("name=web-*", 2);
    if let Some(quiet) = &mut other.quiet {
        quiet.subject = "nginx.service".to_owned();
    }
    assert_eq!(
        add("anna", other).await.expect("added").into_inner().hides,
        0
    );
    add("anna", silence("role=mail", 2)).await.expect("added");

    let list = async |all| {
        let request = v1::ListQuietsRequest {
            kind: v1::QuietKind::Silence.into(),
            all,
        };
        let answer = lab.paging.list_quiets(lab.ask("jo", request)).await;
        let quiets = answer.expect("an answer").into_inner().quiets;
        let row = |row: v1::QuietRow| {
            let number = row.quiet.map(|quiet| quiet.number).unwrap_or_default();
            (number, row.active, row.hosts, row.hides)
        };
        quiets.into_iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(
        list(false).await,
        [
            (3, true, 0, vec![]),
            (2, true, 2, vec![]),
            (1, true, 2, vec![1])
        ]
    );
    let end = |number| {
        let request = v1::EndQuietRequest {
            kind: v1::QuietKind::Silence.into(),
            number,
        };
        lab.paging.end_quiet(lab.ask("anna", request))
    };
    assert_eq!(end(9).await.expect_err("none").code(), Code::NotFound);
    assert!(!end(1).await.expect("ended").into_inner().was_over);
    assert!(end(1).await.expect("ended").into_inner().was_over);
    assert_eq!(list(false).await.len(), 2);
    assert_eq!(list(true).await[2], (1, false, 2, vec![]));
}
