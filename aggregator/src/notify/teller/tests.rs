//! The real parts over a real store, a real socket and a receiver that dies; killed at every point in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    task::{Context, Poll},
};

use muster_proto::{id::HostId, time::FakeClock, v1};

use super::*;
use crate::{
    control::{NewIncident, Resolution},
    fleet::Counters,
    notify::testing::{Does, Receiver, webhook},
};

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const HOST: HostId = HostId::from_bytes([7; 16]);

/// One life of the aggregator's part that tells people.
struct Life {
    control: Control,
    clock: Arc<FakeClock>,
    teller: Teller,
    queue: Queue,
    failures: u32,
}

impl Life {
    async fn begin(folder: &std::path::Path, clock: &Arc<FakeClock>, receiver: &Receiver) -> Self {
        let control = Control::open(folder).expect("the folder is ours");
        let (pages, members) = control.open_pages().await.expect("readable");
        let channel = Arc::new(webhook(receiver));
        let dates: Arc<dyn Clock> = Arc::clone(clock) as Arc<dyn Clock>;
        let told = Told {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    pages: Pages::restore(pages, members),
                    world: World::default(),
                }),
                channels: vec![Arc::clone(&channel)],
                ..Shared::default()
            }),
        };
        Self {
            queue: Queue {
                channel,
                control: control.clone(),
                clock: Arc::clone(&dates),
                wake: Arc::default(),
                told: told.clone(),
            },
            teller: Teller {
                told,
                control: control.clone(),
                fleet: Fleet::new(Vec::new(), Arc::new(Counters::default())),
                clock: dates,
                wakes: Vec::new(),
                roster_read: None,
                stale: false,
            },
            control,
            clock: Arc::clone(clock),
            failures: 0,
        }
    }

    /// What happens on one night; every part of it can be done again.
    async fn night(&mut self) {
        for subject in ["cron.service", "nginx.service"] {
            let new = NewIncident {
                op_id: format!("open {subject}"),
                host_id: HOST,
                rule: "unit_failed".to_owned(),
                subject: subject.to_owned(),
                severity: v1::Severity::Critical,
                summary: format!("{subject} is failed"),
                evidence: String::new(),
                since: START,
                at: START,
            };
            self.control.open_incident(new).await.expect("written");
            self.after(200).await;
        }
        for subject in ["cron.service", "nginx.service"] {
            let end = Resolution {
                op_id: format!("resolve {subject}"),
                host_id: HOST,
                rule: "unit_failed".to_owned(),
                subject: subject.to_owned(),
                evidence: String::new(),
                at: START,
            };
            self.control.resolve_incident(end).await.expect("written");
        }
        self.after(300).await;
    }

    /// A look, some time, another look, and all messages that are due.
    async fn after(&mut self, seconds: u64) {
        self.teller.round().await.expect("the store works");
        self.clock.advance(Duration::from_secs(seconds));
        self.teller.round().await.expect("the store works");
        while self.queue.step(&mut self.failures).await.is_zero() || self.failures > 0 {
            self.clock.advance(Duration::from_secs(601));
        }
    }
}

/// Ends a future for good after so many polls: a kill between any two of its steps.
struct Killed<F> {
    work: Pin<Box<F>>,
    polls: u32,
}

impl<F: Future<Output = ()>> Future for Killed<F> {
    /// Whether it came to its end.
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        if self.polls == 0 {
            return Poll::Ready(false);
        }
        self.polls -= 1;
        self.work.as_mut().poll(context).map(|()| true)
    }
}

/// Lives through the night, killed after `polls` steps and then once more to its end: messages by key.
async fn survive(polls: u32, does: Vec<Does>) -> (bool, BTreeMap<String, usize>) {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(FakeClock::at(START));
    let receiver = Receiver::start(None).await;
    receiver.plan(does);
    let mut life = Life::begin(folder.path(), &clock, &receiver).await;
    let work = Box::pin(life.night());
    let whole = Killed { work, polls }.await;
    drop(life);
    let mut life = Life::begin(folder.path(), &clock, &receiver).await;
    life.night().await;
    // The key without the time of the page: a kill before anything was queued may move that.
    let mut keys: BTreeMap<String, usize> = BTreeMap::new();
    let mut of_event: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (key, event) in receiver.told() {
        *keys.entry(key.clone()).or_default() += 1;
        let (id, rest) = key.split_once('.').expect("id, time, number, event");
        let ordinal = rest.split('.').nth(1).expect("a number");
        let name = format!("{id} {ordinal} {event}");
        of_event.entry(name).or_default().insert(key);
    }
    assert!(
        of_event.values().all(|keys| keys.len() == 1),
        "one key for each: {of_event:?}"
    );
    (whole, keys)
}

#[tokio::test]
async fn a_kill_at_any_point_forgets_no_page_and_changes_no_key() {
    let mut polls = 0;
    loop {
        let (whole, keys) = survive(polls, Vec::new()).await;
        let mut events: Vec<&str> = keys
            .keys()
            .map(|key| key.rsplit('.').next().unwrap_or_default())
            .collect();
        events.sort_unstable();
        assert_eq!(
            events,
            ["firing", "firing", "resolved", "resolved"],
            "killed after {polls}: {keys:?}"
        );
        assert!(
            keys.values().all(|times| (1..=2).contains(times)),
            "killed after {polls}: {keys:?}"
        );
        if whole {
            assert!(
                keys.values().all(|times| *times == 1),
                "nothing was killed: {keys:?}"
            );
            break;
        }
        polls += 1;
    }
    assert!(polls > 20, "only {polls} points were tried");
}

#[tokio::test]
async fn a_receiver_that_dies_hears_it_again_under_the_same_key() {
    use Does::{Answers, Dies};
    for script in [
        vec![Dies],
        vec![Answers(500), Dies, Answers(503)],
        vec![Answers(200), Dies, Dies, Answers(429), Answers(404)],
    ] {
        let failures = script.iter().filter(|does| **does != Answers(200)).count();
        let (_, keys) = survive(0, script).await;
        assert_eq!(keys.len(), 4, "{keys:?}");
        assert_eq!(keys.values().sum::<usize>(), 4 + failures);
    }
}

#[tokio::test]
async fn what_is_refused_for_good_is_given_up_and_others_go_on() {
    let (_, keys) = survive(0, vec![Does::Answers(422); 5]).await;
    let mut times: Vec<usize> = keys.into_values().collect();
    times.sort_unstable();
    // The end of what was never heard of is not told either.
    assert_eq!(times, [1, 1, 5]);
}

#[tokio::test]
async fn a_signature_can_be_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(FakeClock::at(START));
    let receiver = Receiver::start(None).await;
    let mut life = Life::begin(folder.path(), &clock, &receiver).await;
    life.night().await;
    let got = &receiver.got()[0];
    let seconds = got.header("muster-timestamp").expect("a time");
    let secret = b"0123456789012345678901";
    let expected = super::super::send::signature(secret, seconds, got.body.as_bytes());
    assert_eq!(got.header("muster-signature"), Some(expected.as_str()));
    assert_eq!(
        got.header("idempotency-key"),
        Some(receiver.told()[0].0.as_str())
    );
}
