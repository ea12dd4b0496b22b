//! The agent's filter of system calls: programs cannot be run, and everything that is collected is.
//!
//! A filter is for the whole life of a process, so each of these tests runs a child: this very program, asked for
//! one of the ignored tests below.

#![expect(
    clippy::print_stdout,
    reason = "what a child found is told to its parent on standard output"
)]

use std::{collections::BTreeSet, io::ErrorKind, process::Command, thread};

use muster_agent::{
    collect::{CollectConfig, Collection},
    host::HostRoot,
    sandbox::give_up_programs,
};
use muster_proto::time::{Clock as _, SystemClock};

/// Runs one of the tests of this program as a process of its own; what it printed.
fn child(test: &str) -> String {
    let this = std::env::current_exe().expect("this program has a path");
    let output = Command::new(this)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .expect("started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{test}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn programs_cannot_be_run_and_threads_can() {
    assert!(child("in_the_sandbox").contains("nothing ran"));
}

#[test]
#[ignore = "a child of another test"]
fn in_the_sandbox() {
    let tried = || Command::new("/bin/true").status();
    assert!(tried().is_ok_and(|status| status.success()), "before");
    // Takes in threads that are there already.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let before = thread::spawn(move || {
        let _ = wait.recv();
        Command::new("/bin/true").status()
    });
    give_up_programs().expect("this kernel has filters");
    let denied = |result: std::io::Result<_>| {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    assert!(denied(tried()), "from this thread");
    drop(go);
    assert!(denied(before.join().expect("ran")), "from an older one");
    let younger = thread::spawn(move || Command::new("/bin/true").status());
    assert!(denied(younger.join().expect("ran")), "from a younger one");
    give_up_programs().expect("a second time changes nothing");
    println!("nothing ran");
}

/// All series of this host, by name and labels; values stand still in none of them.
fn series() -> BTreeSet<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // What systemd tells comes when it comes.
        let config = CollectConfig {
            disabled: vec!["systemd".to_owned()],
            ..CollectConfig::default()
        };
        let mut collection = Collection::new(HostRoot::at("/"), &config);
        // Filesystems are asked in threads, which must have been started and have answered.
        collection.run(SystemClock.now());
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let table = collection.run(SystemClock.now());
        let shown = (0..table.series.len()).filter(|&place| table.present[place]);
        let name = |place: usize| {
            let series = &table.series[place];
            let family = &table.families[series.family as usize];
            format!("series {} {:?}", family.name, series.labels)
        };
        shown.map(name).collect()
    })
}

fn told(output: &str) -> BTreeSet<&str> {
    output
        .lines()
        .filter(|line| line.starts_with("series "))
        .collect()
}

#[test]
fn everything_is_collected_all_the_same() {
    let (free, boxed) = (child("series_outside"), child("series_inside"));
    let (free, boxed) = (told(&free), told(&boxed));
    assert!(free.len() > 100, "{free:?}");
    let lost: Vec<_> = free.difference(&boxed).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
#[ignore = "a child of another test"]
fn series_outside() {
    series().iter().for_each(|series| println!("{series}"));
}

#[test]
#[ignore = "a child of another test"]
fn series_inside() {
    give_up_programs().expect("this kernel has filters");
    series().iter().for_each(|series| println!("{series}"));
}
