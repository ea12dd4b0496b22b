//! Clocks that were wrong and were mended: detection goes on at once, with what it learnt.

use super::*;

/// A day ahead, in seconds.
const AHEAD: i64 = 86_400;

#[test]
fn after_a_clock_was_set_back_things_open_and_clear_again() {
    let mut host = Host::default();
    for tick in 0..=30 {
        host.show(AHEAD + tick * INTERVAL, &full(0.95));
    }
    assert_eq!(host.told(), ["+warning / 86400..86700"]);
    // Without a word the engine takes the past for a repetition.
    let before = host.state.clone();
    host.show(0, &full(0.5));
    assert_eq!(host.state, before);

    host.state.forget_time();
    let both = |used| Shown {
        units: unit(UnitState::Failed).units,
        ..full(used)
    };
    host.show(10, &both(0.5));
    assert_eq!(host.told(), ["+warning cron.service 10..10"]);
    for tick in 2..=31 {
        host.show(tick * INTERVAL, &both(0.5));
    }
    assert_eq!(host.told(), ["-warning / 86400..310"], "under its own name");
    for tick in 32..=62 {
        host.show(tick * INTERVAL, &both(0.95));
    }
    assert_eq!(host.told(), ["+warning / 320..620"]);
}

#[test]
fn what_was_open_stays_open_and_is_mended_over_a_restart() {
    let mut host = Host::default();
    for tick in 0..=30 {
        host.show(AHEAD + tick * INTERVAL, &full(0.95));
    }
    host.told();
    host.state.forget_time();
    for tick in 0..60 {
        host.show(tick * INTERVAL, &Shown::default());
    }
    let open = opening("/", Severity::Warning, AHEAD);
    host.engine.adopt(&mut host.state, &[open]);
    assert!(host.told().is_empty(), "not observed is not well");
    for tick in 60..=90 {
        host.show(tick * INTERVAL, &full(0.5));
    }
    assert_eq!(host.told(), ["-warning / 86400..900"]);
}

#[test]
fn a_silence_that_began_in_the_future_ends_when_the_host_is_heard() {
    let mut host = Host::default();
    host.hear(AHEAD, Liveness::Silent(Silence::Unknown));
    host.told();
    host.state.forget_time();
    host.hear(100, Liveness::Live);
    assert_eq!(host.told(), ["-critical host_silent 86400..100"]);
}

#[test]
fn the_score_keeps_what_it_learnt() {
    let mut host = Host::default();
    let day = AHEAD / 60;
    behave(day..2 * day, 60, &mut host, |_, _| {});
    assert!(!host.state.learning());
    host.state.forget_time();
    assert!(!host.state.learning());
    assert_eq!((host.state.score(), host.state.anomaly()), (None, None));
    // As after a gap: a quarter of an hour to settle, then it is judged by the day before.
    behave(0..60, 60, &mut host, |_, _| {});
    assert!(host.state.score().is_some());
    assert_eq!(host.state.anomaly(), None);
    behave(60..90, 60, &mut host, |_, signals| {
        signals[0] = 0.9;
        signals[2] = 50_000.0;
    });
    let anomaly = host.state.anomaly().expect("this is unusual");
    assert!(anomaly.since < at(90 * 60));
}
