//! The real parts over a real store, a real socket and a receiver that dies; killed at every point in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    task::{Context, Poll},
};

use muster_proto::{id::HostId, time::FakeClock, v1};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{
    control::{NewIncident, Quiet, QuietKind, Resolution},
    fleet::{Counters, Enrolled, HostState, ReadContext, shard},
    incident::pages::{Lead, WAIT},
    notify::testing::{Does, Receiver, webhook},
    selector::Selector,
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
        let fleet = Fleet::new(Vec::new(), Arc::new(Counters::default()));
        Self::begin_with(folder, clock, webhook(receiver), fleet).await
    }

    async fn begin_with(
        folder: &std::path::Path,
        clock: &Arc<FakeClock>,
        channel: Channel,
        fleet: Fleet,
    ) -> Self {
        let control = Control::open(folder).expect("the folder is ours");
        let channel = Arc::new(channel);
        let dates: Arc<dyn Clock> = Arc::clone(clock) as Arc<dyn Clock>;
        let told = Told {
            shared: Arc::new(Shared {
                state: Mutex::new(State::read(&control).await.expect("readable")),
                channels: vec![Arc::clone(&channel)],
                round: Mutex::new(Some(Instant::now())),
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
                fleet,
                clock: dates,
                wakes: Vec::new(),
                began: Instant::now(),
                roster: None,
                proved: None,
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
            self.fails(HOST, subject).await;
            self.after(200).await;
        }
        for subject in ["cron.service", "nginx.service"] {
            self.recovers(HOST, subject).await;
        }
        self.after(300).await;
    }

    /// A unit fails on a host.
    async fn fails(&self, host: HostId, unit: &str) {
        let new = NewIncident {
            op_id: format!("open {unit} {host}"),
            host_id: host,
            rule: "unit_failed".to_owned(),
            subject: unit.to_owned(),
            severity: v1::Severity::Critical,
            summary: format!("{unit} is failed"),
            evidence: String::new(),
            since: START,
            at: START,
        };
        self.control.open_incident(new).await.expect("written");
    }

    async fn recovers(&self, host: HostId, unit: &str) {
        let end = Resolution {
            op_id: format!("resolve {unit} {host}"),
            host_id: host,
            rule: "unit_failed".to_owned(),
            subject: unit.to_owned(),
            evidence: String::new(),
            at: START,
        };
        self.control.resolve_incident(end).await.expect("written");
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

impl Life {
    /// As [`Life::after`], for half a minute and no longer.
    async fn soon(&mut self) {
        for _ in 0..2 {
            self.teller.round().await.expect("the store works");
            self.clock.advance(WAIT + Duration::from_secs(10));
        }
        while self.queue.step(&mut self.failures).await.is_zero() {}
    }
}

fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

/// A shard that answers what it is asked of its hosts (number and label `team`), until it is dropped.
fn team(hosts: &[(u8, &str)]) -> (mpsc::Sender<shard::Message>, AbortOnDropHandle<()>) {
    let of = |&(number, team): &(u8, &str)| {
        let who = Enrolled {
            id: host(number),
            name: format!("{team}-{number}"),
            labels: [("team".to_owned(), team.to_owned())].into(),
            facts: v1::HostFacts::default(),
            certificate_not_after: None,
        };
        (who.id, HostState::new(who, START))
    };
    let hosts: HashMap<HostId, HostState> = hosts.iter().map(of).collect();
    let (sender, mut inbox) = mpsc::channel(1);
    let answers = async move {
        while let Some(message) = inbox.recv().await {
            if let shard::Message::Read(reader) = message {
                reader(&hosts, &ReadContext { now: START });
            }
        }
    };
    (sender, AbortOnDropHandle::new(tokio::spawn(answers)))
}

fn fleet(shards: impl IntoIterator<Item = mpsc::Sender<shard::Message>>) -> Fleet {
    Fleet::new(shards.into_iter().collect(), Arc::default())
}

fn for_team(receiver: &Receiver, selector: &str) -> Channel {
    let mut channel = webhook(receiver);
    channel.selector = Selector::parse(selector).expect("a selector");
    channel
}

fn events(receiver: &Receiver) -> Vec<String> {
    receiver
        .told()
        .into_iter()
        .map(|(_, event)| event)
        .collect()
}

#[tokio::test]
async fn an_alert_keeps_its_name_over_restarts_and_whatever_becomes_of_its_host() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(FakeClock::at(START));
    let receiver = Receiver::start(None).await;
    let channel = for_team(&receiver, "team=db");
    let expected = Lead {
        rule: "unit_failed".to_owned(),
        host: "db-1".to_owned(),
        labels: [("team".to_owned(), "db".to_owned())].into(),
    };
    for (life, hosts) in [vec![(1, "db")], vec![(1, "web")], vec![]]
        .iter()
        .enumerate()
    {
        let (shard, _answers) = team(hosts);
        let fleet = fleet([shard]);
        let mut life_of = Life::begin_with(folder.path(), &clock, channel.clone(), fleet).await;
        let told = life_of.teller.told.clone();
        assert_eq!(
            told.standing(&channel, clock.now()),
            [],
            "nothing is known yet"
        );
        if life == 0 {
            life_of.fails(host(1), "cron.service").await;
        }
        life_of.after(60).await;
        let standing = told.standing(&channel, clock.now());
        let leads: Vec<&Lead> = standing.iter().map(|message| &message.lead).collect();
        assert_eq!(leads, [&expected], "life {life}");
        if life == 2 {
            life_of.recovers(host(1), "cron.service").await;
            life_of.after(300).await;
        }
    }
    assert_eq!(events(&receiver), ["firing", "resolved"]);
    let lead = |got: &crate::notify::testing::Got| -> Message {
        serde_json::from_str(&got.body).expect("a message")
    };
    assert!(receiver.got().iter().all(|got| lead(got).lead == expected));
}

#[tokio::test]
async fn a_channel_hears_of_a_page_once_it_is_about_its_hosts() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(FakeClock::at(START));
    let receiver = Receiver::start(None).await;
    let channel = for_team(&receiver, "team=b");
    let (shard, _answers) = team(&[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "b"), (6, "b")]);
    let fleet = fleet([shard]);
    let mut life = Life::begin_with(folder.path(), &clock, channel, fleet).await;
    for number in 1..=4 {
        life.fails(host(number), "nginx.service").await;
    }
    life.soon().await;
    assert_eq!(events(&receiver), [""; 0]);
    life.fails(host(5), "nginx.service").await;
    life.soon().await;
    assert_eq!(events(&receiver), ["grew"]);
    life.fails(host(6), "nginx.service").await;
    life.soon().await;
    assert_eq!(events(&receiver), ["grew"], "once");
    for number in 1..=6 {
        life.recovers(host(number), "nginx.service").await;
    }
    life.after(300).await;
    assert_eq!(events(&receiver), ["grew", "resolved"]);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_hangs_takes_away_no_silence_and_at_the_start_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(FakeClock::at(START));
    let receiver = Receiver::start(None).await;
    let quiet = Quiet {
        number: 0,
        kind: QuietKind::Silence,
        selector: "team=b".to_owned(),
        rule: String::new(),
        subject: String::new(),
        starts: START,
        ends: Some(START.plus(Duration::from_secs(7200))),
        weekly: None,
        text: String::new(),
        made_by: "anna".to_owned(),
        made: START,
        ended: None,
    };
    let (shard, answers) = team(&[(1, "b")]);
    let mut life = Life::begin_with(
        folder.path(),
        &clock,
        webhook(&receiver),
        fleet([shard.clone()]),
    )
    .await;
    life.control.add_quiet(quiet).await.expect("written");
    life.teller.round().await.expect("the store works");
    drop(answers);
    tokio::task::yield_now().await;
    // Of the second host nothing is known, so all are asked anew.
    for number in [1, 2] {
        life.fails(host(number), "cron.service").await;
        life.teller.round().await.expect("the store works");
    }
    clock.advance(WAIT * 2);
    life.teller.round().await.expect("the store works");
    let told = &life.teller.told;
    assert_eq!(told.standing_of(1, clock.now()).quiet, "silence S-1");
    assert_ne!(told.standing_of(2, clock.now()).page, 0);
    drop(life);

    // After a restart nobody is told until that shard answers, but not for ever.
    let mut life =
        Life::begin_with(folder.path(), &clock, webhook(&receiver), fleet([shard])).await;
    life.fails(host(3), "cron.service").await;
    for _ in 0..2 {
        life.teller.round().await.expect("the store works");
        clock.advance(WAIT * 2);
    }
    assert_eq!(life.teller.told.standing_of(3, clock.now()).page, 0);
    assert!(!life.teller.told.lock().judged);
    time::advance(WAIT_FOR_SHARDS).await;
    assert!(
        !life.teller.told.is_working(),
        "and no heartbeat says that all is well"
    );
    for _ in 0..2 {
        life.teller.round().await.expect("the store works");
        clock.advance(WAIT * 2);
    }
    assert_ne!(life.teller.told.standing_of(3, clock.now()).page, 0);
    assert!(life.teller.told.is_working());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_can_only_be_read_does_not_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::new(FakeClock::at(START));
    let receiver = Receiver::start(None).await;
    let mut life = Life::begin(folder.path(), &clock, &receiver).await;
    life.teller.round().await.expect("the store works");
    let other = rusqlite::Connection::open(folder.path().join("control.db")).expect("it is there");
    other
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(FAIL, 'full'); END",
        )
        .expect("written");
    time::advance(PROVE_EVERY).await;
    assert!(
        life.teller.round().await.is_err(),
        "nothing happened, and it shows"
    );
    assert!(!life.teller.told.is_working());
    other.execute_batch("DROP TRIGGER full").expect("written");
    life.teller.round().await.expect("the store works again");
    // Whatever the clock on the wall says meanwhile.
    clock.set(START.minus(Duration::from_secs(7200)));
    assert!(life.teller.told.is_working());
    time::advance(WORKS_WITHIN).await;
    assert!(!life.teller.told.is_working());
}
