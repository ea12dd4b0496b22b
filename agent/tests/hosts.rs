//! Every host under `fixtures/hosts` gives exactly its `expected.txt`.
//!
//! A host is a folder: `root/` with the files the collectors read, `statvfs.txt` with the space of its
//! mounts, and `expected.txt`, the round as Prometheus text. `UPDATE_EXPECT=1` rewrites the latter; the
//! difference is then reviewed like code. What depends on the run (durations, the agent's own process,
//! the build) is left out.

use std::{fs, path::Path, path::PathBuf};

use muster_agent::{
    collect::{CollectConfig, Collection},
    host::HostRoot,
    sample::{Format, render},
};
use muster_proto::time::Timestamp;

/// Metrics that differ from run to run.
const LEFT_OUT: [&str; 3] = [
    "muster_agent_",
    "node_scrape_collector_duration_seconds",
    "node_exporter_build_info",
];

const TICK: Timestamp = Timestamp::from_millis(1_795_700_000_000);

fn hosts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hosts");
    let entries = fs::read_dir(folder).expect("the folder of hosts");
    let mut hosts: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    hosts.sort();
    hosts
}

fn page(collection: &mut Collection, tick: Timestamp) -> String {
    let page = render(collection.run(tick), tick, Format::Prometheus);
    let page = String::from_utf8(page).expect("the page is UTF-8 whatever the host is");
    let stays = |line: &&str| {
        let name = line
            .trim_start_matches("# HELP ")
            .trim_start_matches("# TYPE ");
        !LEFT_OUT.iter().any(|left_out| name.starts_with(left_out))
    };
    page.lines()
        .filter(stays)
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn every_host_is_read_as_expected() {
    let mut different = Vec::new();
    for host in hosts() {
        let root = HostRoot::at(host.join("root"));
        let mut collection = Collection::new(root, &CollectConfig::default());
        let page = page(&mut collection, TICK);
        let expected = host.join("expected.txt");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &page).expect("expected.txt is written");
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        if page != expected {
            let line = page.lines().zip(expected.lines()).position(|(a, b)| a != b);
            different.push(format!("{}: first at line {line:?}", host.display()));
        }
    }
    assert!(
        different.is_empty(),
        "run with UPDATE_EXPECT=1 and review the difference: {different:#?}"
    );
}

#[test]
fn a_second_round_differs_in_the_clock_only() {
    for host in hosts() {
        let root = HostRoot::at(host.join("root"));
        let mut collection = Collection::new(root, &CollectConfig::default());
        let without_clock = |page: String| -> Vec<String> {
            let lines = page
                .lines()
                .filter(|line| !line.starts_with("node_time_seconds"));
            lines.map(str::to_owned).collect()
        };
        let first = without_clock(page(&mut collection, TICK));
        let generation = collection.table().generation;
        let later = TICK.plus(std::time::Duration::from_secs(31));
        let second = without_clock(page(&mut collection, later));
        assert_eq!(first, second, "{}", host.display());
        assert_eq!(collection.table().generation, generation);
    }
}
