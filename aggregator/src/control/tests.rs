//! The store on a temporary folder.

use muster_proto::{id::HostId, time::Timestamp, v1};

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const HOST: HostId = HostId::from_bytes([1; 16]);

fn opened() -> (tempfile::TempDir, Control) {
    let folder = tempfile::tempdir().expect("a folder");
    let control = Control::open(folder.path()).expect("a new store");
    (folder, control)
}

fn opening(op_id: &str, subject: &str) -> NewIncident {
    NewIncident {
        op_id: op_id.to_owned(),
        host_id: HOST,
        rule: "filesystem_full".to_owned(),
        subject: subject.to_owned(),
        severity: v1::Severity::Warning,
        summary: format!("{subject} is nearly full"),
        evidence: "96 %".to_owned(),
        since: NOW,
        at: NOW,
    }
}

fn end(op_id: &str, subject: &str) -> Resolution {
    Resolution {
        op_id: op_id.to_owned(),
        host_id: HOST,
        rule: "filesystem_full".to_owned(),
        subject: subject.to_owned(),
        evidence: "80 %".to_owned(),
        at: NOW.plus(std::time::Duration::from_secs(60)),
    }
}

#[tokio::test]
async fn an_incident_opens_once_and_resolves_once() {
    let (folder, control) = opened();
    let opened = async |op, subject| {
        let done = control.open_incident(opening(op, subject)).await;
        let Opened { number, new } = done.expect("written");
        (number, new)
    };
    assert_eq!(opened("a", "/").await, (1, true));
    assert_eq!(opened("a", "/").await, (1, false), "the same operation");
    assert_eq!(opened("b", "/").await, (1, false), "open already");
    assert_eq!(opened("c", "/var").await, (2, true));
    let resolved = async |op, subject| {
        let done = control.resolve_incident(end(op, subject)).await;
        done.expect("written")
    };
    assert_eq!(resolved("d", "/").await, Some(1));
    assert_eq!(resolved("d", "/").await, None, "the same operation");
    assert_eq!(resolved("e", "/tmp").await, None, "never open");
    assert_eq!(opened("a", "/").await, (1, false), "an old operation again");
    assert_eq!(opened("f", "/").await, (1, true), "it goes on");
    assert_eq!(resolved("d", "/").await, None, "an old operation again");
    assert_eq!(resolved("g", "/").await, Some(1));
    assert_eq!(opened("h", "/home").await, (3, true));

    drop(control);
    let control = Control::open(folder.path()).expect("opens again");
    let listed = async |filter| {
        let (rows, matched) = control.incidents(filter).await.expect("readable");
        let numbers: Vec<u64> = rows.iter().map(|row| row.number).collect();
        (numbers, matched)
    };
    assert_eq!(listed(IncidentFilter::default()).await, (vec![3, 2], 2));
    let all = IncidentFilter {
        all: true,
        limit: 1,
        ..IncidentFilter::default()
    };
    assert_eq!(listed(all).await, (vec![3], 3));
    let other = IncidentFilter {
        host_id: Some(HostId::from_bytes([2; 16])),
        ..IncidentFilter::default()
    };
    assert_eq!(listed(other).await, (vec![], 0));

    let (first, transitions) = control.incident(1).await.expect("readable").expect("there");
    assert_eq!(first.state, v1::IncidentState::Resolved);
    assert_eq!(first.id.as_bytes()[14], b'7', "UUID version 7");
    let states: Vec<_> = transitions.iter().map(|one| one.to).collect();
    let (open, resolved) = (v1::IncidentState::Open, v1::IncidentState::Resolved);
    // By time, and here both openings are of one moment.
    assert_eq!(states, [open, open, resolved, resolved]);
    assert!(control.incident(9).await.expect("readable").is_none());
}

#[tokio::test]
async fn writes_that_come_together_are_all_answered() {
    let (_folder, control) = opened();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..500 {
        let control = control.clone();
        tasks.spawn(async move {
            let opened = control.open_incident(opening(&format!("op{at}"), &format!("/{at}")));
            opened.await.map(|done| done.number)
        });
    }
    let mut numbers: Vec<u64> = tasks
        .join_all()
        .await
        .into_iter()
        .map(|done| done.expect("written"))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_newer_database_stays_untouched() {
    // Made without a Control, whose threads would close it, and so write to it, at a moment of their own.
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.db");
    let newer = rusqlite::Connection::open(&path).expect("opens");
    newer
        .execute_batch("CREATE TABLE of_tomorrow (x); PRAGMA user_version = 99;")
        .expect("made");
    drop(newer);
    let before = std::fs::read(&path).expect("readable");
    let error = Control::open(folder.path()).err().expect("refused");
    assert!(
        matches!(error, ControlError::Newer { found: 99, .. }),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).expect("readable"), before);
}

#[tokio::test]
async fn a_full_database_says_so_and_can_still_be_read() {
    let (_folder, control) = opened();
    let first = control.open_incident(opening("a", "/")).await;
    assert!(first.is_ok());
    control
        .write(|connection| {
            let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
            connection.pragma_update(None, "max_page_count", pages)?;
            Ok(())
        })
        .await
        .expect("set");
    let mut failed = None;
    for at in 0..1000 {
        let mut large = opening(&format!("x{at}"), &format!("/{at}"));
        large.evidence = "x".repeat(4096);
        if let Err(error) = control.open_incident(large).await {
            failed = Some(error);
            break;
        }
    }
    assert!(matches!(failed, Some(ControlError::Full)), "{failed:?}");
    assert!(control.incident(1).await.expect("readable").is_some());
}

#[tokio::test]
async fn facts_of_a_stranger_are_refused_and_options_are_checked() {
    let (_folder, control) = opened();
    let unknown = control
        .upsert_host_facts(HOST, Facts::default(), Labels::new(), NOW)
        .await;
    assert!(matches!(unknown, Err(ControlError::UnknownHost(HOST))));
    for (uses, days) in [(0, 1), (1, 0), (1, 8)] {
        let options = TokenOptions {
            uses,
            ttl: std::time::Duration::from_secs(days * 86_400),
            ..TokenOptions::default()
        };
        let made = control.create_token([0; 32], options, "test", NOW).await;
        assert!(matches!(made, Err(ControlError::TokenOption(_))));
    }
    assert!(!control.live_token_exists(NOW).await.expect("readable"));
}

#[tokio::test]
async fn what_is_open_on_a_host_ends_with_its_eviction_and_nothing_opens_after_it() {
    for (removal, reason) in [
        (Removal::Evict, "host evicted by jo"),
        (Removal::Ban, "host banned by jo"),
    ] {
        let (folder, control) = opened();
        let file = rusqlite::Connection::open(folder.path().join("control.db")).expect("opened");
        file.execute(
            "INSERT INTO hosts (host_id, name, facts, labels, token_labels, created_ms, cert_serial, cert_not_after_ms, epoch)
             VALUES (?1, 'web', '{}', '{}', '{}', 0, 'a', 0, 1)",
            [HOST.to_string()],
        )
        .expect("a host");
        for (op, subject) in [("a", "/"), ("b", "/var")] {
            let new = opening(op, subject);
            assert!(control.open_incident(new).await.expect("written").new);
        }
        let other = NewIncident {
            host_id: HostId::from_bytes([2; 16]),
            ..opening("c", "/")
        };
        control.open_incident(other).await.expect("written");
        let removed = control.remove_host(HOST, removal, "jo", NOW).await;
        assert!(removed.expect("written").is_some());
        let (open, _) = control
            .incidents(IncidentFilter::default())
            .await
            .expect("readable");
        assert_eq!(open.len(), 1, "that of the other host");
        for number in [1, 2] {
            let found = control.incident(number).await.expect("readable");
            let (incident, steps) = found.expect("kept");
            assert_eq!(incident.state, v1::IncidentState::Resolved);
            let last = steps.last().expect("its end");
            assert_eq!(last.evidence, reason);
        }
        // What was on its way to the store when the host was removed.
        let late = control.open_incident(opening("d", "/home")).await;
        assert!(!late.expect("written").new);
        let (open, _) = control
            .incidents(IncidentFilter::default())
            .await
            .expect("readable");
        assert_eq!(open.len(), 1);
    }
}
