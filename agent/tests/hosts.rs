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
const LEFT_OUT: [&str; 5] = [
    "muster_agent_",
    // When the repository was checked out.
    "node_textfile_mtime_seconds",
    "muster_host_textfile_stale",
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

/// More of everything than a host has: as a test of bounds, made here because nobody wants 30,000 files.
fn crowded(root: &Path) {
    let write = |path: &str, content: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        fs::write(path, content).expect("written");
    };
    let lines =
        |count: usize, line: &dyn Fn(usize) -> String| -> String { (0..count).map(line).collect() };
    write(
        "proc/1/mountinfo",
        &lines(4_000, &|n| {
            format!("{} 1 8:{n} / /mnt/{n} rw - ext4 /dev/sd{n} rw\n", n + 30)
        }),
    );
    write(
        "proc/diskstats",
        &lines(2_000, &|n| {
            format!("253 {n} dm-{n} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n")
        }),
    );
    let numbers = " 1".repeat(16);
    let interfaces = lines(1_000, &|n| format!("veth{n}:{numbers}\n"));
    write("proc/net/dev", &format!("a|b\nc|d\n{interfaces}"));
    for n in 0..1_000 {
        write(&format!("sys/class/net/veth{n}/flags"), "0x1003\n");
        write(&format!("sys/class/net/veth{n}/mtu"), "1500\n");
    }
    write(
        "proc/stat",
        &lines(256, &|n| format!("cpu{} 1 1 1 1 1 1 1 1 1 1\n", n * 2)),
    );
    write("proc/meminfo", "MemTotal: 1 kB\n");
    write("proc/loadavg", "0.10 0.20 0.30 1/2 3\n");
    let neighbours = lines(10_000, &|n| format!("0 0x1 0x2 0 * veth{n}\n"));
    write("proc/net/arp", &format!("headings\n{neighbours}"));
    let sockets = lines(20_000, &|n| format!("{n}: 0:0 0:0 01 00000001:00000000\n"));
    write("proc/net/tcp", &format!("headings\n{sockets}"));
    write(
        "../statvfs.txt",
        &lines(4_000, &|n| format!("/mnt/{n} 4096 9 8 7 6 5\n")),
    );
    write(
        "var/lib/prometheus/node-exporter/many.prom",
        &lines(20_000, &|n| format!("many{{n=\"{n}\"}} 1\n")),
    );
}

#[test]
fn a_crowded_host_stays_within_bounds_and_says_what_is_left_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("root");
    crowded(&root);
    let config = CollectConfig::default();
    let mut collection = Collection::new(HostRoot::at(root), &config);
    let first = page(&mut collection, TICK);
    let present = collection.table().present_count();
    assert!(present <= config.max_series, "{present}");
    let cut: Vec<String> = collection
        .faults()
        .into_iter()
        .filter(|fault| !fault.failed)
        .map(|fault| fault.collector)
        .collect();
    for collector in ["diskstats", "filesystem"] {
        assert!(
            cut.iter().any(|name| name == collector),
            "{collector}: {cut:?}"
        );
    }
    // What is about the host as a whole has its place, whatever else there is.
    for series in ["node_load1 ", "node_memory_MemTotal_bytes "] {
        assert!(first.contains(series), "{series}");
    }
    let generation = collection.table().generation;
    page(
        &mut collection,
        TICK.plus(std::time::Duration::from_secs(61)),
    );
    assert_eq!(collection.table().present_count(), present);
    assert_eq!(
        collection.table().generation,
        generation,
        "the same objects are shown"
    );
}
