//! History end to end: agents over real TLS, what they sent answered by the store, through a restart and a backup.

#[expect(dead_code, reason = "the other tests of the whole way use the rest")]
mod support;

use std::{
    ops::ControlFlow,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use muster_aggregator::{
    backup,
    config::Config,
    history::{GiveUp, Needs, SampleQuery, SampleStore as _},
    serve::Aggregator,
    status,
};
use muster_proto::{id::HostId, time::Timestamp};
use serde_json::Value;
use support::{Site, page, until};
use tokio::process::Command;

/// Ticks of the host's load average in history.
fn ticks(aggregator: &Aggregator, host: HostId) -> Vec<i64> {
    let history = aggregator.history().expect("there is a history");
    let query = SampleQuery {
        hosts: vec![host],
        metric: Some("node_load1".into()),
        labels: Vec::new(),
        from: 0,
        to: i64::MAX,
        step_ms: 0,
        needs: Needs::ALL,
        max_points: 100_000,
        give_up: GiveUp::default(),
    };
    let mut ticks = Vec::new();
    let report = history.store.read(&query, &mut |series| {
        ticks.extend(series.points.iter().map(|point| point.at));
        ControlFlow::Continue(())
    });
    assert_eq!(report.expect("not too much").missing, [""; 0]);
    ticks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agents_sent_is_there_after_a_restart_and_in_a_backup() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let agent = site.agent(&aggregator, 1).await;
    let host = agent.host;
    let books = agent.durable(3).await;
    let whole = until("history has what is durable", async || {
        let ticks = ticks(&aggregator, host);
        (ticks.len() as u64 >= books.durable).then_some(ticks)
    })
    .await;
    assert!(whole.is_sorted(), "each tick once, in order");
    let (status, text) = page(&aggregator, "/metrics").await;
    assert_eq!(status, 200);
    assert!(
        text.contains("muster_aggregator_history_frames_total"),
        "{text}"
    );

    let file = site.config.runtime_dir.join("backup.tar");
    let done = backup::backup(&site.config.state_dir, &file).expect("backed up while it runs");
    assert!(done.files >= 4);

    let books = agent.stop().await;
    aggregator.stop().await;
    let aggregator = site.start().await;
    let again = until("history is back", async || {
        let ticks = ticks(&aggregator, host);
        (ticks.len() as u64 >= books.durable).then_some(ticks)
    })
    .await;
    assert_eq!(
        again[..whole.len()],
        whole,
        "nothing is lost, nothing is there twice"
    );
    assert_eq!(again.len() as u64, books.durable);
    aggregator.stop().await;

    // Another machine takes over from the backup.
    let state = site.config.runtime_dir.join("restored");
    backup::restore(&file, &state).expect("restored");
    site.config.state_dir = state;
    let aggregator = site.start().await;
    let restored = until("history is read from the log of the backup", async || {
        let ticks = ticks(&aggregator, host);
        (ticks.len() >= whole.len()).then_some(ticks)
    })
    .await;
    assert_eq!(restored[..whole.len()], whole);
    aggregator.stop().await;
}

/// The program with nothing of this machine's environment: exit code, stdout, stderr.
async fn muster(config: &Path, arguments: &[&str]) -> (i32, String, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(arguments)
        .stdin(Stdio::null())
        .env_clear()
        .env("MUSTER_CONFIG", config)
        .env("TZ", "UTC")
        .kill_on_drop(true)
        .output();
    let run = tokio::time::timeout(Duration::from_secs(60), run);
    let Output {
        status,
        stdout,
        stderr,
    } = run.await.expect("it ends by itself").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (
        status.code().expect("it was not killed"),
        text(stdout),
        text(stderr),
    )
}

fn items(answer: &(i32, String, String)) -> Vec<Value> {
    assert_eq!(answer.0, 0, "{}", answer.2);
    let json: Value = serde_json::from_str(&answer.1).expect("JSON");
    assert_eq!(json["complete"], true, "{json}");
    json["items"].as_array().expect("items").clone()
}

/// A host that was evicted since was there then, with what it had measured; and its history has a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_as_it_was() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let config = site.config.runtime_dir.join("home/config.toml");
    let socket = aggregator.admin_socket().display().to_string();
    let login = [
        "login",
        "--admin-socket",
        &socket,
        "--name",
        "jo",
        "--role",
        "admin",
    ];
    let said = muster(&config, &login).await;
    assert_eq!(said.0, 0, "{}", said.2);

    let stays = site.agent(&aggregator, 1).await;
    let goes = site.agent(&aggregator, 2).await;
    let (stays_name, goes_name) = (stays.name.clone(), goes.name.clone());
    stays.durable(5).await;
    goes.durable(5).await;
    let both = until("history has five ticks of both", async || {
        let of = [stays.host, goes.host].map(|host| ticks(&aggregator, host));
        of.iter().all(|ticks| ticks.len() >= 5).then_some(of)
    })
    .await;
    // A moment at which both had been heard several times.
    let then = both
        .iter()
        .filter_map(|ticks| ticks.last())
        .max()
        .expect("some");
    let at = Timestamp::from_millis(*then).to_string();
    goes.stop().await;
    let evicted = muster(&config, &["host", &goes_name, "evict", "--yes"]).await;
    assert_eq!(evicted.0, 0, "{}", evicted.2);
    let now = muster(&config, &["hosts", "-o", "name"]).await;
    assert_eq!(now.1.trim(), stays_name);

    let mut names = vec![stays_name.clone(), goes_name.clone()];
    names.sort();
    let hosts = items(&muster(&config, &["hosts", "--at", &at, "-o", "json"]).await);
    let named: Vec<&str> = hosts
        .iter()
        .filter_map(|host| host["name"].as_str())
        .collect();
    assert_eq!(named, names);
    for host in &hosts {
        assert_eq!(host["state"], "live", "{host}");
        for key in [
            "cpuRatio",
            "memoryRatio",
            "diskRatio",
            "load1",
            "services",
            "kernel",
        ] {
            assert!(!host[key].is_null(), "{key} of {host}");
        }
        assert_eq!(host["intervalSeconds"], 1.0, "{host}");
        // What is not kept over time is not made up.
        assert!(host["anomalyScore"].is_null(), "{host}");
    }
    let table = muster(&config, &["hosts", "--at", &at, "-o", "table"]).await;
    assert!(
        table.2.contains("not kept over time: anomaly score"),
        "{}",
        table.2
    );
    assert!(
        table.2.contains("as they are now: name, labels"),
        "{}",
        table.2
    );

    let top = ["top", "--by", "mem", "--at", &at, "-n", "1", "-o", "json"];
    let top = items(&muster(&config, &top).await);
    let most = hosts.iter().max_by(|a, b| {
        let of = |host: &Value| host["memoryRatio"].as_f64().unwrap_or(0.0);
        of(a).total_cmp(&of(b))
    });
    assert_eq!(top[0]["name"], most.expect("one")["name"]);

    let host = items(&muster(&config, &["host", &goes_name, "--at", &at, "-o", "json"]).await);
    assert_eq!(host[0]["name"], goes_name.as_str());
    assert!(
        host[0]["filesystems"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    assert!(host[0]["frames"].is_null());
    let shown = muster(&config, &["host", &goes_name, "--at", &at, "-o", "table"]).await;
    assert!(
        shown.1.contains("CPU") && !shown.1.contains("frames"),
        "{}",
        shown.1
    );
    assert!(
        shown.2.contains("was removed from the fleet"),
        "{}",
        shown.2
    );

    let summary = items(&muster(&config, &["--at", &at, "-o", "json"]).await);
    assert_eq!(summary[0]["hosts"]["live"], 2, "{}", summary[0]);
    let services = items(&muster(&config, &["services", "--at", &at, "-o", "json"]).await);
    assert!(!services.is_empty());
    let incidents = muster(&config, &["incidents", "--at", &at, "-o", "json"]).await;
    let _known = items(&incidents);

    // History of the one that has gone, by its name.
    let query = ["history", "node_load1", "--host", &goes_name, "-o", "csv"];
    let history = muster(&config, &query).await;
    assert_eq!(history.0, 0, "{}", history.2);
    assert!(history.1.contains(&goes_name), "{}", history.1);
    assert!(
        history.2.contains("was removed from the fleet"),
        "{}",
        history.2
    );
    let query = ["query", "node_load1", "--host", &goes_name, "--at", &at];
    let answer = muster(&config, &query).await;
    assert_eq!((answer.0, answer.1.is_empty()), (0, false), "{}", answer.2);

    for (at, code, why) in [
        ("soon", 2, "is no moment"),
        ("2099-01-01", 2, "is still to come"),
        ("2001-01-01", 1, "nothing is kept of"),
    ] {
        let refused = muster(&config, &["hosts", "--at", at]).await;
        assert_eq!(refused.0, code, "{at}: {}", refused.2);
        assert!(refused.2.contains(why), "{at}: {}", refused.2);
    }
    let refused = muster(&config, &["host", "nobody", "--at", &at]).await;
    assert_eq!(refused.0, 3, "{}", refused.2);

    // The same from disk.
    let host = stays.host;
    stays.stop().await;
    aggregator.stop().await;
    let aggregator = site.start().await;
    let again = until("history is back", async || {
        let known = ticks(&aggregator, host);
        known.contains(&both[0][0]).then_some(known)
    });
    again.await;
    let hosts_again = items(&muster(&config, &["hosts", "--at", &at, "-o", "json"]).await);
    assert_eq!(hosts_again, hosts);
    aggregator.stop().await;
}

/// Who the door is must be known before it is given a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_is_read_where_the_door_speaks_tls() {
    let mut site = Site::new();
    site.config.http.tls = true;
    site.config.http.token = Some("0123456789abcdef".to_owned());
    let aggregator = site.start().await;
    let read = |config: Config| tokio::task::spawn_blocking(move || status::status(&config));
    let told = read(site.config.clone()).await.expect("no panic");
    let told = told.expect("it is read");
    assert!(told.contains("0 connected"), "{told}");

    let other = Site::new();
    let mut config = site.config.clone();
    config.state_dir = other.config.state_dir.clone();
    let refused = read(config).await.expect("no panic");
    assert!(matches!(
        refused,
        Err(status::StatusError::Unreachable { .. })
    ));
    let mut config = site.config.clone();
    config.http.token = None;
    let refused = read(config).await.expect("no panic");
    assert!(matches!(refused, Err(status::StatusError::Answer { .. })));
    aggregator.stop().await;
}
