//! The door as a whole: what is asked, what is answered.

use std::{collections::HashSet, io::Read, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use flate2::read::GzDecoder;
use http_body_util::BodyExt;
use muster_proto::{
    series::Kind,
    v1::{HostState, SilenceCause},
};
use proptest::prelude::*;
use tokio::sync::watch;
use tower::ServiceExt;

use super::{
    HttpState, Readiness, Settings,
    negotiate::Format,
    page,
    rules::{Access, AllowedHosts},
    sd::InstanceFormat,
    source::OpenIncidents,
    testing::{FakeFleet, FakeHost, NOW, family},
};
use crate::config::HttpConfig;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("pages are UTF-8")
    }

    fn header(&self, name: header::HeaderName) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str());
        value.map_or("", |value| value.expect("headers are ASCII"))
    }
}

fn door(fleet: FakeFleet, settings: Settings, readiness: Readiness) -> Router {
    let (_, receiver) = watch::channel(readiness);
    super::router(HttpState::new(fleet, settings, receiver))
}

fn ready(fleet: FakeFleet) -> Router {
    door(fleet, Settings::default(), Readiness::Ready)
}

async fn ask(door: &Router, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(target);
    let named = headers.iter().any(|(name, _)| *name == "host");
    if !named {
        request = request.header("host", "localhost:7446");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).expect("a legal request");
    let Ok(response) = door.clone().oneshot(request).await;
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.expect("in memory").to_bytes().into(),
    }
}

/// Names of [`fleet`], sorted.
const ALL: [&str; 5] = ["db-01", "edge-01", "late-01", "new-01", "web-01"];

async fn get(door: &Router, target: &str) -> Answer {
    ask(door, "GET", target, &[]).await
}

fn fleet() -> FakeFleet {
    let silent = FakeHost {
        state: HostState::Silent,
        cause: SilenceCause::Stopped,
        labels: Vec::new(),
        ..FakeHost::live("db-01", 2)
    };
    let new = FakeHost {
        state: HostState::Joined,
        last_seen: None,
        ..FakeHost::live("new-01", 3)
    };
    let late = FakeHost {
        state: HostState::Late,
        last_seen: Some(NOW.minus(Duration::from_secs(31))),
        ..FakeHost::live("late-01", 4)
    };
    let catching_up = FakeHost {
        last_tick: Some(NOW.minus(Duration::from_secs(3_600))),
        ..FakeHost::live("edge-01", 5)
    };
    FakeFleet::of([FakeHost::live("web-01", 1), silent, new, late, catching_up])
}

#[tokio::test]
async fn statuses() {
    let door = ready(fleet());
    let id = "01".repeat(16);
    for (target, status, text) in [
        ("/-/healthy", 200, "healthy\n"),
        ("/-/ready", 200, "ready\n"),
        ("/", 200, "Muster aggregator"),
        ("/metrics", 200, "# HELP muster_build_info"),
        (
            "/metrics/hosts/web-01",
            200,
            "# HELP node_cpu_seconds_total",
        ),
        (
            &format!("/metrics/hosts/{id}"),
            200,
            "# HELP node_cpu_seconds_total",
        ),
        (
            "/probe?target=web-01&module=node",
            200,
            "# HELP node_cpu_seconds_total",
        ),
        (
            "/probe?target=db-01",
            503,
            "host \"db-01\" is silent, its agent was stopped; last sample 2 s ago\n",
        ),
        (
            "/metrics/hosts/new-01",
            503,
            "host \"new-01\" is enrolled but has sent nothing yet\n",
        ),
        (
            "/metrics/hosts/late-01",
            503,
            "host \"late-01\" is late; last sample 31 s ago, stale after 30 s\n",
        ),
        (
            "/metrics/hosts/web-02",
            404,
            "no host \"web-02\" is enrolled; /sd lists those that are\n",
        ),
        (
            "/metrics/hosts/a%0Ab%1B%2F",
            404,
            "no host \"a\\nb\\u{1b}/\" is enrolled",
        ),
        (
            "/metrics/hosts/%ff",
            400,
            "the name of the host is not UTF-8",
        ),
        ("/metrics/hosts/", 404, "no such page"),
        ("/probe", 400, "no target; ask for /probe?target=NAME\n"),
        ("/probe?target=", 400, "no target"),
        (
            "/sd?selector=role%20in",
            400,
            "bad selector: column 8: expected",
        ),
        ("/sd?shard=5/4", 400, "bad shard \"5/4\""),
        ("/sd?promote=instance", 400, "cannot promote \"instance\""),
        ("/sd?instance=host", 400, "bad instance format \"host\""),
        (
            "/sd?selectr=a",
            400,
            "there is no parameter \"selectr\"; did you mean \"selector\"? /sd takes",
        ),
        (
            "/sd?shard=1/2&shard=2/2",
            400,
            "the parameter \"shard\" is given twice\n",
        ),
        ("/nothing", 404, "no such page"),
    ] {
        let answer = get(&door, target).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
        assert!(
            answer.text().starts_with(text),
            "{target}: {}",
            answer.text()
        );
        if status != 200 {
            assert_eq!(
                answer.text().lines().count(),
                1,
                "{target}: {}",
                answer.text()
            );
        }
    }
}

#[tokio::test]
async fn nothing_is_listed_before_the_state_is_loaded() {
    let starting = Readiness::Starting("replaying the log");
    let door = door(FakeFleet::default(), Settings::default(), starting);
    for (target, status) in [
        ("/-/healthy", 200),
        ("/-/ready", 503),
        ("/sd", 503),
        ("/metrics", 200),
        ("/metrics/hosts/web-01", 503),
    ] {
        assert_eq!(get(&door, target).await.status, status, "{target}");
    }
    assert_eq!(
        get(&door, "/sd").await.text(),
        "not ready: replaying the log\n"
    );
}

#[tokio::test]
async fn only_reading() {
    let door = ready(fleet());
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "ODD"] {
        let answer = ask(&door, method, "/metrics", &[]).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header(header::ALLOW), "GET, HEAD");
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let door = ready(fleet());
    for target in [
        "/metrics/hosts/web-01",
        "/sd",
        "/-/ready",
        "/metrics/hosts/db-01",
    ] {
        let get = get(&door, target).await;
        let head = ask(&door, "HEAD", target, &[]).await;
        assert_eq!(head.status, get.status, "{target}");
        assert!(head.body.is_empty(), "{target}");
        assert_eq!(
            head.header(header::CONTENT_LENGTH),
            get.body.len().to_string()
        );
        assert_eq!(
            head.header(header::CONTENT_TYPE),
            get.header(header::CONTENT_TYPE)
        );
    }
}

#[tokio::test]
async fn other_names_are_refused_on_loopback() {
    let settings = |allowed_hosts| Settings {
        allowed_hosts,
        ..Settings::default()
    };
    let named = AllowedHosts::Loopback(vec!["muster.example".to_owned()]);
    for (allowed, target, host, status) in [
        (AllowedHosts::Loopback(vec![]), "/sd", "127.0.0.1:7446", 200),
        (AllowedHosts::Loopback(vec![]), "/sd", "evil.example", 421),
        (
            AllowedHosts::Loopback(vec![]),
            "/-/healthy",
            "evil.example",
            421,
        ),
        (
            AllowedHosts::Loopback(vec![]),
            "http://evil.example/sd",
            "localhost",
            421,
        ),
        (
            AllowedHosts::Loopback(vec![]),
            "http://localhost/sd",
            "evil.example",
            421,
        ),
        (
            AllowedHosts::Loopback(vec![]),
            "http://localhost/sd",
            "localhost",
            200,
        ),
        (named.clone(), "/sd", "Muster.Example:7446", 200),
        (named, "/sd", "muster.example.evil", 421),
        (AllowedHosts::Any, "/sd", "muster.example", 200),
    ] {
        let door = door(fleet(), settings(allowed), Readiness::Ready);
        let answer = ask(&door, "GET", target, &[("host", host)]).await;
        assert_eq!(answer.status, status, "{target} {host}: {}", answer.text());
        let refused = format!(
            "the Host {:?}",
            if host == "localhost" {
                "evil.example"
            } else {
                host
            }
        );
        assert_eq!(
            answer.text().contains(&refused),
            status == 421,
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn a_token_is_asked_for_where_one_is_set() {
    let access = Access::bearer("sesame");
    let settings = Settings {
        access,
        ..Settings::default()
    };
    let door = door(fleet(), settings, Readiness::Ready);
    for (target, authorization, status) in [
        ("/sd", "", 401),
        ("/sd", "Bearer sesame", 200),
        ("/sd", "bearer  sesame", 200),
        ("/sd", "Bearer Sesame", 401),
        ("/sd", "Bearer", 401),
        ("/sd", "Basic sesame", 401),
        ("/-/healthy", "", 200),
    ] {
        let headers = [("authorization", authorization)];
        let answer = ask(&door, "GET", target, &headers).await;
        assert_eq!(answer.status, status, "{target} {authorization:?}");
        let challenge = answer.header(header::WWW_AUTHENTICATE);
        assert_eq!(challenge, if status == 401 { "Bearer" } else { "" });
    }
}

#[test]
fn settings_come_from_the_configuration() {
    let plain = HttpConfig {
        listen: ([127, 0, 0, 1], 7446).into(),
        tls: false,
        token: None,
        hosts: vec!["Muster.example".to_owned()],
        external_address: String::new(),
        instance: "host".to_owned(),
    };
    let settings = Settings::of(&plain).expect("legal");
    let names = AllowedHosts::Loopback(vec!["muster.example".to_owned()]);
    assert_eq!(settings.allowed_hosts, names);
    assert!(matches!(settings.access, Access::Open));
    assert_eq!(settings.external_address, None);
    assert_eq!(settings.instance, InstanceFormat::default());

    let beyond = HttpConfig {
        tls: true,
        token: Some("sesame".to_owned()),
        hosts: Vec::new(),
        external_address: "muster.example:7446".to_owned(),
        instance: "host:9100".to_owned(),
        ..plain
    };
    let settings = Settings::of(&beyond).expect("legal");
    assert_eq!(settings.allowed_hosts, AllowedHosts::Any);
    assert!(matches!(settings.access, Access::Bearer(_)));
    assert_eq!(
        settings.external_address.as_deref(),
        Some("muster.example:7446")
    );
    let format = InstanceFormat::parse("{host}:9100").expect("legal");
    assert_eq!(settings.instance, format);
}

#[tokio::test]
async fn every_answer_is_safe_in_a_browser() {
    let door = ready(fleet());
    for target in ["/", "/metrics", "/sd", "/metrics/hosts/db-01", "/nothing"] {
        let answer = ask(&door, "GET", target, &[("origin", "http://evil.example")]).await;
        let policy = answer.header(header::CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'none';"), "{target}");
        assert_eq!(answer.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
        assert_eq!(answer.header(header::CACHE_CONTROL), "no-store");
        assert_eq!(answer.header(header::ACCESS_CONTROL_ALLOW_ORIGIN), "");
    }
}

#[tokio::test]
async fn long_addresses_are_refused() {
    let target = format!("/sd?selector={}", "a".repeat(12 * 1024));
    assert_eq!(get(&ready(fleet()), &target).await.status, 414);
}

#[tokio::test]
async fn formats_and_encodings_are_negotiated() {
    let mut host = FakeHost::live("web-01", 1);
    host.series = (0..100)
        .map(|n| (1, vec![n.to_string(), "idle".to_owned()], 1.0))
        .collect();
    let door = ready(FakeFleet::of([host]));
    let plain = get(&door, "/metrics/hosts/web-01").await;
    assert_eq!(
        plain.header(header::CONTENT_TYPE),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert_eq!(plain.header(header::VARY), "Accept, Accept-Encoding");
    assert_eq!(plain.header(header::CONTENT_ENCODING), "");

    let headers = [
        ("accept", "application/openmetrics-text;version=1.0.0"),
        ("accept-encoding", "gzip"),
    ];
    let packed = ask(&door, "GET", "/metrics/hosts/web-01", &headers).await;
    let content_type = packed.header(header::CONTENT_TYPE);
    assert_eq!(
        content_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert_eq!(packed.header(header::CONTENT_ENCODING), "gzip");
    assert!(packed.body.len() * 4 < plain.body.len());
    let mut text = String::new();
    GzDecoder::new(&packed.body[..])
        .read_to_string(&mut text)
        .expect("gzip of text");
    assert!(
        text.contains("# TYPE node_cpu_seconds counter\nnode_cpu_seconds_total{"),
        "{text}"
    );
    assert!(text.ends_with("\n# EOF\n"), "{text}");
}

#[tokio::test]
async fn discovery_lists_every_host() {
    let door = ready(fleet());
    let answer = get(&door, "/sd?selector=name%3Dweb-01&promote=role,env").await;
    assert_eq!(answer.header(header::CONTENT_TYPE), "application/json");
    let list: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let id = "01".repeat(16);
    let expected = serde_json::json!([{
        "targets": ["localhost:7446"],
        "labels": {
            "__metrics_path__": "/metrics/hosts/web-01",
            "instance": "web-01",
            "role": "web",
            "__meta_muster_agent_version": "0.1.0",
            "__meta_muster_architecture": "x86_64",
            "__meta_muster_id": id,
            "__meta_muster_label_role": "web",
            "__meta_muster_label_site": "fra",
            "__meta_muster_name": "web-01",
            "__meta_muster_os": "debian 12",
            "__meta_muster_site": "fra",
            "__meta_muster_state": "live",
        },
    }]);
    assert_eq!(list, expected);

    let instances = async |target: &str| {
        let answer = get(&door, target).await;
        let list: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        let list = list.as_array().expect("a list").clone();
        let instance = |group: serde_json::Value| {
            group["labels"]["instance"]
                .as_str()
                .expect("text")
                .to_owned()
        };
        list.into_iter().map(instance).collect::<Vec<_>>()
    };
    assert_eq!(instances("/sd").await, ALL);
    assert_eq!(instances("/sd?selector=state%3Dsilent").await, ["db-01"]);
    assert_eq!(
        instances("/sd?selector=role").await,
        ["edge-01", "late-01", "new-01", "web-01"]
    );
    assert_eq!(
        instances("/sd?selector=!role&instance={host}:9100").await,
        ["db-01:9100"]
    );
    let mut halves = instances("/sd?shard=1/2").await;
    halves.extend(instances("/sd?shard=2/2").await);
    halves.sort();
    assert_eq!(halves, ALL);
}

#[tokio::test]
async fn hosts_of_one_name_stay_apart() {
    let twins = [FakeHost::live("clone", 1), FakeHost::live("clone", 2)];
    let door = ready(FakeFleet::of(twins));
    // Also when only one of them is asked for: 0x0101… is odd.
    let answer = get(&door, "/sd?shard=2/2").await;
    let list: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    let labels = &list[0]["labels"];
    assert_eq!(labels["instance"], "clone-01010101");
    let path = format!("/metrics/hosts/{}", "01".repeat(16));
    assert_eq!(labels["__metrics_path__"], path);
    assert_eq!(get(&door, &path).await.status, 200);
}

#[tokio::test]
async fn an_incomplete_list_is_not_given() {
    let fleet = FakeFleet {
        missing: vec!["shard 3".to_owned()],
        ..fleet()
    };
    let door = ready(fleet);
    let answer = get(&door, "/sd").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("shard 3"), "{}", answer.text());
    let page = get(&door, "/metrics").await;
    assert!(
        page.text()
            .contains("\nmuster_aggregator_shards_missing 1\n")
    );
}

#[tokio::test]
async fn targets_carry_the_configured_address() {
    let settings = Settings {
        external_address: Some("muster.example:7446".to_owned()),
        instance: InstanceFormat::parse("{host}:9100").expect("legal"),
        ..Settings::default()
    };
    let door = door(fleet(), settings, Readiness::Ready);
    let answer = get(&door, "/sd").await;
    let list: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(
        list[0]["targets"],
        serde_json::json!(["muster.example:7446"])
    );
    assert_eq!(list[0]["labels"]["instance"], "db-01:9100");
}

#[tokio::test]
async fn the_fleet_page_sums_up_and_names_no_host() {
    let door = ready(fleet());
    get(&door, "/sd").await;
    get(&door, "/metrics/hosts/db-01").await;
    let answer = get(&door, "/metrics").await;
    let page = answer.text();
    for line in [
        "muster_build_info{version=\"0.1.0\"} 1",
        "muster_hosts{state=\"joined\"} 1",
        "muster_hosts{state=\"late\"} 1",
        "muster_hosts{state=\"live\"} 2",
        "muster_hosts{state=\"silent\"} 1",
        // Of the three hosts whose samples arrive.
        "muster_services{state=\"active\"} 3",
        "muster_services{state=\"inactive\"} 0",
        "muster_incidents{state=\"open\",severity=\"warning\"} 5",
        "muster_incidents{state=\"open\",severity=\"critical\"} 0",
        "muster_fleet_cpu_utilisation_ratio{stat=\"p95\"} 0.5",
        "muster_fleet_sample_age_seconds{stat=\"p50\"} 2",
        "muster_fleet_sample_age_seconds{stat=\"max\"} 31",
        "muster_fleet_clock_offset_seconds{stat=\"max\"} 0.125",
        "muster_fleet_certificate_expiry_timestamp_seconds{stat=\"min\"} 1700086400",
        "muster_aggregator_frames_stored_total 1000",
        "muster_aggregator_frames_rejected_total{reason=\"future\"} 2",
        "muster_aggregator_frames_rejected_total{reason=\"damaged\"} 0",
        "muster_aggregator_connections_total{door=\"uplink\",outcome=\"certificate\"} 3",
        "muster_aggregator_http_requests_total{handler=\"sd\",code=\"200\"} 1",
        "muster_aggregator_http_requests_total{handler=\"host\",code=\"503\"} 1",
        "muster_aggregator_shards_missing 0",
        "muster_aggregator_telling_works 1",
        "muster_aggregator_notifications_waiting{channel=\"oncall\"} 3",
        "muster_aggregator_notification_oldest_seconds{channel=\"oncall\"} 90.5",
        "muster_aggregator_notifications_total{channel=\"oncall\",outcome=\"given_up\"} 1",
        "muster_aggregator_events_left_out_total{reason=\"too_many\"} 4",
        "muster_aggregator_events_failing 0",
        "muster_fleet_groups_shifted 1",
    ] {
        assert!(
            page.lines().any(|own| own == line),
            "{line} is not in\n{page}"
        );
    }
    assert!(!page.contains("web-01"), "{page}");
    strict_parse(page, Format::Text);

    // The same size with a hundred times the hosts.
    let many = (0..=255).map(|n| FakeHost::live(&format!("web-{n}"), n));
    let large = get(&ready(FakeFleet::of(many)), "/metrics").await;
    let lines = page
        .lines()
        .filter(|line| !line.contains("http_requests_total{"));
    assert_eq!(large.text().lines().count(), lines.count());
}

#[tokio::test]
async fn an_empty_fleet_has_a_page() {
    let answer = get(&ready(FakeFleet::default()), "/metrics").await;
    assert!(answer.text().contains("\nmuster_hosts{state=\"live\"} 0\n"));
    strict_parse(answer.text(), Format::Text);
}

fn rendered(host: &FakeHost, format: Format) -> String {
    let open = OpenIncidents {
        critical: 1,
        ..OpenIncidents::default()
    };
    let page = page::render(host, Duration::from_millis(2_500), open, format);
    String::from_utf8(page).expect("pages are UTF-8")
}

/// `UPDATE_EXPECT=1` rewrites the file; the difference is then reviewed.
#[test]
fn golden_page() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/golden_host_page.txt");
    let page = rendered(&FakeHost::live("web-01", 1), Format::Text);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &page).expect("the source tree is writable");
    }
    let expected = std::fs::read_to_string(path).expect("the golden file is in the tree");
    assert_eq!(page, expected);
}

#[test]
fn a_host_cannot_speak_in_the_aggregators_name() {
    let mut host = FakeHost::live("web-01", 1);
    host.families
        .push(family("muster_incident_open", Kind::Gauge, &["severity"]));
    host.series.push((3, vec!["critical".to_owned()], 0.0));
    let page = rendered(&host, Format::Text);
    assert!(
        page.contains("muster_incident_open{severity=\"critical\"} 1\n"),
        "{page}"
    );
    strict_parse(&page, Format::Text);
}

#[test]
fn families_of_one_name_stand_together() {
    let mut host = FakeHost::live("web-01", 1);
    host.families = vec![
        family("b_total", Kind::Counter, &["x"]),
        family("a", Kind::Gauge, &[]),
        family("b_total", Kind::Counter, &[]),
        family("b", Kind::Gauge, &[]),
        family("c", Kind::Counter, &[]),
    ];
    host.series = vec![
        (0, vec!["1".to_owned()], 1.0),
        (1, vec![], 2.0),
        (2, vec![], 3.0),
        (0, vec!["2".to_owned()], 4.0),
        (3, vec![], 5.0),
        (4, vec![], 6.0),
    ];
    for format in [Format::Text, Format::OpenMetrics] {
        let page = rendered(&host, format);
        let parsed = strict_parse(&page, format);
        let of_agent: Vec<&str> = parsed
            .iter()
            .map(|sample| sample.name.as_str())
            .take_while(|name| name.len() <= "b_total".len())
            .collect();
        assert_eq!(of_agent, ["a", "b", "b_total", "b_total", "b_total", "c"]);
    }
    // Not counters in OpenMetrics: the name `b` is taken, and `c` lacks the suffix.
    let page = rendered(&host, Format::OpenMetrics);
    assert!(page.contains("# TYPE b_total unknown\n"), "{page}");
    assert!(page.contains("# TYPE c unknown\n"), "{page}");
}

#[test]
fn help_texts_need_no_escaping_in_either_format() {
    let page = rendered(&FakeHost::live("web-01", 1), Format::Text);
    for line in page.lines().filter(|line| line.starts_with("# HELP")) {
        assert!(!line.contains(['"', '\\']), "{line}");
        assert!(line.ends_with('.'), "{line}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        labels in prop::collection::vec(("\\PC*|[\\\\\"\n\r\t ,={}#]*", any::<f64>()), 0..20),
    ) {
        let mut host = FakeHost::live("web-01", 1);
        host.families = vec![family("odd_metric", Kind::Gauge, &["at", "value"])];
        host.series = labels
            .iter()
            .enumerate()
            .map(|(at, (label, value))| (0, vec![at.to_string(), label.clone()], *value))
            .collect();
        for format in [Format::Text, Format::OpenMetrics] {
            let page = rendered(&host, format);
            let parsed: Vec<_> = strict_parse(&page, format)
                .into_iter()
                .filter(|sample| sample.name == "odd_metric")
                .collect();
            prop_assert_eq!(parsed.len(), labels.len());
            for (sample, (label, value)) in parsed.iter().zip(&labels) {
                prop_assert_eq!(&sample.labels[1].1, label);
                let same = sample.value.to_bits() == value.to_bits()
                    || sample.value.is_nan() && value.is_nan()
                    || sample.value == 0.0 && *value == 0.0;
                prop_assert!(same, "{} {}", sample.value, value);
            }
        }
    }
}

struct Parsed {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Reads a page by the letter of its format and fails on anything a strict reader could refuse: a family
/// twice, samples outside their family, a series twice, an illegal name or escape, a timestamp.
fn strict_parse(page: &str, format: Format) -> Vec<Parsed> {
    let body = match format {
        Format::Text => page,
        Format::OpenMetrics => page.strip_suffix("# EOF\n").expect("ends with # EOF"),
    };
    assert!(body.is_empty() || body.ends_with('\n'), "last line ends");
    let mut titles = HashSet::new();
    let mut series = HashSet::new();
    let mut samples = Vec::new();
    let mut current = (String::new(), String::new());
    let mut lines = body.split_terminator('\n');
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (title, _) = help.split_once(' ').expect("help has a text");
            assert!(titles.insert(title.to_owned()), "{title} twice");
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
            let (typed, kind) = kind
                .and_then(|kind| kind.split_once(' '))
                .expect("a type follows");
            assert_eq!(typed, title);
            let known: &[&str] = match format {
                Format::Text => &["counter", "gauge", "untyped"],
                Format::OpenMetrics => &["counter", "gauge", "unknown"],
            };
            assert!(known.contains(&kind), "{line}: {kind}");
            current = (title.to_owned(), kind.to_owned());
            continue;
        }
        assert!(!line.starts_with('#'), "{line}");
        let sample = parse_sample(line);
        let expected = match (format, current.1.as_str()) {
            (Format::OpenMetrics, "counter") => format!("{}_total", current.0),
            _ => current.0.clone(),
        };
        assert_eq!(sample.name, expected, "sample outside its family");
        assert!(
            series.insert((sample.name.clone(), sample.labels.clone())),
            "{line} twice"
        );
        samples.push(sample);
    }
    samples
}

fn parse_sample(line: &str) -> Parsed {
    let end = line.find(['{', ' ']).expect("a name ends");
    let (name, mut rest) = line.split_at(end);
    assert!(muster_proto::series::is_metric_name(name), "{name}");
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").expect("label=\"");
            assert!(muster_proto::series::is_label_name(label), "{label}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let closed = loop {
                match chars.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().expect("an escape").1 {
                        'n' => value.push('\n'),
                        c => {
                            assert!(matches!(c, '\\' | '"'), "unknown escape {c:?}");
                            value.push(c);
                        }
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &after[closed + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect("a closing brace");
    }
    let value = rest.strip_prefix(' ').expect("a space before the value");
    assert!(!value.contains(' '), "a timestamp in {line}");
    let value = value.parse().expect("a number");
    Parsed {
        name: name.to_owned(),
        labels,
        value,
    }
}
