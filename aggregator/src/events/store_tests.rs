use muster_proto::v1::EventKind;

use super::*;

fn host(byte: u8) -> HostId {
    HostId::from_bytes([byte; 16])
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_795_270_380_000 + seconds * 1000)
}

fn new(byte: u8, seq: u64, kind: EventKind) -> NewEvent {
    NewEvent {
        host: host(byte),
        incarnation: Incarnation(u64::MAX - 1),
        seq,
        place: 0,
        received: at(seq.cast_signed()),
        late: false,
        event: v1::Event {
            kind: kind.into(),
            subject: format!("s{seq}"),
            at_ms: at(seq.cast_signed()).as_millis(),
            fields: Vec::new(),
        },
    }
}

fn part(asked: i64, number: u32, parts: u32, bytes: usize) -> v1::RecordingPart {
    v1::RecordingPart {
        asked_ms: at(asked).as_millis(),
        number,
        parts,
        from_ms: at(asked - 600).as_millis(),
        to_ms: at(asked).as_millis(),
        rounds: vec![v1::RecordedRound {
            tick_ms: at(asked).as_millis(),
            payload: vec![7; bytes],
        }],
        busiest: Vec::new(),
    }
}

fn store() -> (tempfile::TempDir, Connection) {
    let state = tempfile::tempdir().expect("temporary folder");
    let connection = open(state.path()).expect("opens");
    (state, connection)
}

fn subjects(connection: &Connection, choice: &Choice) -> Vec<String> {
    let found = find(connection, choice).expect("reads");
    found
        .events
        .into_iter()
        .map(|kept| kept.event.subject)
        .collect()
}

fn all() -> Choice {
    Choice {
        limit: 100,
        newest: true,
        ..Choice::default()
    }
}

#[test]
fn what_comes_again_is_kept_once_also_over_a_restart() {
    let (state, connection) = store();
    assert!(add(&connection, &new(1, 1, EventKind::OomKill)).expect("writes"));
    assert!(!add(&connection, &new(1, 1, EventKind::OomKill)).expect("writes"));
    assert!(add(&connection, &new(2, 1, EventKind::OomKill)).expect("writes"));
    let mut second = new(1, 1, EventKind::OomKill);
    second.place = 1;
    assert!(add(&connection, &second).expect("writes"));
    drop(connection);
    let connection = open(state.path()).expect("opens again");
    assert!(!add(&connection, &second).expect("writes"));
    assert_eq!(subjects(&connection, &all()).len(), 3);
}

#[test]
fn events_are_chosen_by_host_kind_and_time_newest_last() {
    let (_state, connection) = store();
    for seq in 1..=6 {
        let kind = if seq % 2 == 0 {
            EventKind::OomKill
        } else {
            EventKind::Booted
        };
        let byte = if seq <= 3 { 1 } else { 2 };
        add(&connection, &new(byte, seq, kind)).expect("writes");
    }
    let of = |change: fn(&mut Choice)| {
        let mut choice = all();
        change(&mut choice);
        subjects(&connection, &choice)
    };
    assert_eq!(of(|_| ()), ["s1", "s2", "s3", "s4", "s5", "s6"]);
    assert_eq!(of(|c| c.limit = 2), ["s5", "s6"]);
    assert_eq!(of(|c| c.hosts = Some(vec![host(1)])), ["s1", "s2", "s3"]);
    assert_eq!(of(|c| c.hosts = Some(Vec::new())), [""; 0]);
    assert_eq!(
        of(|c| (c.hosts, c.limit) = (Some(vec![host(2), host(1), host(2)]), 4)),
        ["s3", "s4", "s5", "s6"]
    );
    assert_eq!(
        of(|c| (c.hosts, c.newest, c.limit) = (Some(vec![host(2), host(1)]), false, 4)),
        ["s1", "s2", "s3", "s4"]
    );
    assert_eq!(
        of(|c| c.kinds = vec![EventKind::OomKill.into()]),
        ["s2", "s4", "s6"]
    );
    assert_eq!(
        of(|c| (c.since, c.until) = (Some(at(2)), Some(at(4)))),
        ["s2", "s3", "s4"]
    );
    assert_eq!(
        of(|c| (c.newest, c.after, c.limit) = (false, Some(2), 2)),
        ["s3", "s4"]
    );
    let many: Vec<HostId> = (0..=MAX_NAMED + 1)
        .map(|n| host(u8::try_from(n % 200).unwrap_or(0)))
        .collect();
    let choice = Choice {
        hosts: Some(many.into_iter().filter(|id| *id != host(1)).collect()),
        ..all()
    };
    assert_eq!(
        subjects(&connection, &choice),
        ["s4", "s5", "s6"],
        "too many to name"
    );
    assert!(
        find(&connection, &Choice { limit: 2, ..all() })
            .expect("reads")
            .more
    );
}

#[test]
fn rows_that_are_not_chosen_cost_as_much_as_those_that_are() {
    let (_state, connection) = store();
    for seq in 1..=10 {
        add(&connection, &new(1, seq, EventKind::Booted)).expect("writes");
    }
    for choice in [
        Choice {
            kinds: vec![EventKind::OomKill.into()],
            ..all()
        },
        Choice {
            kinds: vec![EventKind::OomKill.into()],
            since: Some(at(1)),
            ..all()
        },
    ] {
        let scan = |most| scan(&connection, &choice, None, &|_| true, most).expect("reads");
        let cut = scan(9).cut_short;
        assert_eq!(cut, Some(at(2)), "one row was not looked at");
        assert_eq!(scan(10).cut_short, None);
    }
}

#[test]
fn what_lies_outside_the_time_that_is_asked_for_costs_nothing() {
    let (_state, connection) = store();
    for seq in 1..=1_000 {
        add(&connection, &new(1, seq, EventKind::Booted)).expect("writes");
    }
    // Told long after they happened, the older one last.
    for (seq, happened) in [(2_000, 101), (3_000, 50)] {
        let late = NewEvent {
            seq,
            ..new(2, happened, EventKind::OomKill)
        };
        add(&connection, &late).expect("writes");
    }
    let asked = |since: i64, until: i64, host, limit| {
        let choice = Choice {
            since: Some(at(since)),
            until: Some(at(until)),
            limit,
            ..all()
        };
        let found = scan(&connection, &choice, host, &|_| true, 10).expect("reads");
        let each = found.events.into_iter();
        let subjects: Vec<String> = each.map(|kept| kept.event.subject).collect();
        (subjects, found.more, found.cut_short)
    };
    let whole = |subjects: &[&str]| {
        let subjects = subjects.iter().map(|&one| one.to_owned()).collect();
        (subjects, false, None)
    };
    assert_eq!(asked(1_000, 9_999, None, 10), whole(&["s1000"]));
    assert_eq!(asked(100, 101, None, 10), whole(&["s100", "s101", "s101"]));
    assert_eq!(asked(1, 9_999, Some(host(2)), 10), whole(&["s101", "s50"]));
    let (subjects, more, _) = asked(1, 101, None, 2);
    assert_eq!(subjects, ["s101", "s101"], "the last to happen");
    assert!(more);
}

#[test]
fn whoever_follows_goes_on_where_the_look_ended() {
    let (_state, connection) = store();
    for seq in 1..=10 {
        let byte = if seq <= 4 { 1 } else { 2 };
        add(&connection, &new(byte, seq, EventKind::Booted)).expect("writes");
    }
    let following = Choice {
        newest: false,
        after: Some(0),
        ..all()
    };
    let cut = scan(&connection, &following, None, &|id| *id == host(2), 3).expect("reads");
    assert_eq!((cut.events.len(), cut.upto), (0, Some(3)));
    let both = Choice {
        hosts: Some(vec![host(1), host(2)]),
        limit: 3,
        ..following.clone()
    };
    let (mut seen, mut told) = (0, Vec::new());
    loop {
        let after = Some(seen);
        let found = find(
            &connection,
            &Choice {
                after,
                ..both.clone()
            },
        )
        .expect("reads");
        told.extend(found.events.iter().map(|kept| kept.number));
        let Some(upto) = found.upto else { break };
        assert!(upto > seen, "it goes on");
        seen = upto;
    }
    assert_eq!(told, (1..=10).collect::<Vec<_>>());
}

#[test]
fn the_oldest_go_first_by_age_and_by_size() {
    let (_state, connection) = store();
    for seq in 1..=2_000 {
        add(&connection, &new(1, seq, EventKind::Booted)).expect("writes");
    }
    let young = EventLimits {
        max_bytes: 1 << 30,
        max_age: Duration::from_secs(1_000),
    };
    assert_eq!(
        prune(&connection, &young, at(2_000)).expect("prunes"),
        (999, 0)
    );
    assert_eq!(
        subjects(
            &connection,
            &Choice {
                limit: 1,
                newest: false,
                ..all()
            }
        ),
        ["s1000"]
    );
    let used = used_bytes(&connection).expect("reads");
    let small = EventLimits {
        max_bytes: used / 2,
        ..young
    };
    let (dropped, _) = prune(&connection, &small, at(2_000)).expect("prunes");
    assert!(dropped > 300, "{dropped}");
    assert!(used_bytes(&connection).expect("reads") <= used / 2);
    assert_eq!(
        subjects(&connection, &Choice { limit: 1, ..all() }),
        ["s2000"]
    );
    let number = newest(&connection).expect("reads");
    connection
        .execute("DELETE FROM event", [])
        .expect("deletes");
    add(&connection, &new(1, 9_000, EventKind::Booted)).expect("writes");
    assert!(
        newest(&connection).expect("reads") > number,
        "a number is never given twice"
    );
}

#[test]
fn recordings_are_whole_when_all_parts_are_here_and_bounded_in_size() {
    let (_state, connection) = store();
    for number in [1, 0, 1] {
        let added = add_part(&connection, host(1), at(0), &part(0, number, 3, 10)).expect("writes");
        let _ = added;
    }
    for bad in [
        part(0, 3, 3, 1),
        part(0, 0, 4, 1),
        part(9, 0, limits::MAX_RECORDING_PARTS + 1, 1),
    ] {
        assert!(
            !add_part(&connection, host(1), at(0), &bad).expect("writes"),
            "{bad:?}"
        );
    }
    let listed = recordings(&connection, Some(host(1)), (None, None), 10).expect("reads");
    assert_eq!((listed[0].parts, listed[0].parts_here), (3, 2));
    let (row, parts) = recording(&connection, listed[0].number)
        .expect("reads")
        .expect("there");
    assert_eq!(row, listed[0]);
    assert_eq!(
        parts.iter().map(|part| part.number).collect::<Vec<_>>(),
        [0, 1]
    );
    assert!(recording(&connection, 999).expect("reads").is_none());
    let window = |from, to| {
        let between = (Some(at(from)), Some(at(to)));
        recordings(&connection, None, between, 10)
            .expect("reads")
            .len()
    };
    assert_eq!(
        (window(-50, 100), window(1, 100), window(-900, -700)),
        (1, 0, 0)
    );

    for asked in 1..=20 {
        add_part(&connection, host(2), at(asked), &part(asked, 0, 1, 50_000)).expect("writes");
    }
    let limits = EventLimits {
        max_bytes: 1 << 20,
        ..EventLimits::default()
    };
    let (_, dropped) = prune(&connection, &limits, at(20)).expect("prunes");
    assert!((10..15).contains(&dropped), "{dropped}");
    let newest = recordings(&connection, None, (None, None), 1).expect("reads");
    assert_eq!(newest[0].asked, at(20));
}

#[test]
fn a_damaged_file_is_set_aside_and_a_newer_one_left_alone() {
    let (state, connection) = store();
    drop(connection);
    let path = state.path().join(FILE);
    std::fs::write(
        &path,
        "not a database, but long enough to be looked at".repeat(200),
    )
    .expect("written");
    let connection = open(state.path()).expect("begun anew");
    assert!(subjects(&connection, &all()).is_empty());
    assert!(state.path().join("events.db.damaged").exists());
    connection
        .pragma_update(None, "user_version", VERSION + 1)
        .expect("written");
    drop(connection);
    assert!(matches!(
        open(state.path()),
        Err(EventsError::Newer { found: 2, .. })
    ));
}
