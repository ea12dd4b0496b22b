//! Events and recordings over the whole way: a real agent with a spool, real TLS, a real aggregator and its store.

#[expect(dead_code, reason = "the other tests of the whole way use the rest")]
mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_agent::{
    Agent, AgentConfig, Credentials, Source,
    buffer::BufferLimits,
    spool::{SpoolConfig, SpoolLimits},
    telemetry::Own,
};
use muster_aggregator::{
    events::{Choice, Kept, recorded},
    serve::Aggregator,
};
use muster_proto::{
    event, limits,
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::Timestamp,
    v1::{self, EventKind},
};
use support::{Enrolment, PATIENCE, Site, until};
use tokio::time;
use tokio_util::sync::CancellationToken;

/// A host on which something happens at every tick, with one unit that may fail.
struct Eventful {
    table: Table,
    samples: i64,
    fails: Arc<AtomicBool>,
}

impl Eventful {
    fn new(fails: Arc<AtomicBool>) -> Self {
        let family = |name: &str, kind, labels: &[&str]| Family {
            name: name.to_owned(),
            kind,
            scale: Scale::One,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        };
        let series = |family, labels: &[&str]| Series {
            family,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        };
        let unit = |state| series(1, &["web.service", state, "simple"]);
        Self {
            table: Table {
                families: vec![
                    family("node_load1", Kind::Gauge, &[]),
                    family(
                        "node_systemd_unit_state",
                        Kind::Gauge,
                        &["name", "state", "type"],
                    ),
                ],
                series: vec![series(0, &[]), unit("active"), unit("failed")],
                raw: vec![Raw::int(0), Raw::int(1), Raw::int(0)],
                present: vec![true; 3],
                ..Table::default()
            },
            samples: 0,
            fails,
        }
    }
}

impl Source for Eventful {
    fn facts(&self) -> v1::HostFacts {
        v1::HostFacts {
            hostname: "eventful".into(),
            ..v1::HostFacts::default()
        }
    }

    fn boot_id(&self) -> [u8; 16] {
        [7; 16]
    }

    fn sample(&mut self, tick: Timestamp, _: &Own) -> (&Table, Vec<v1::Event>) {
        self.samples += 1;
        let fails = i64::from(self.fails.load(Ordering::SeqCst));
        self.table.raw = vec![Raw::int(self.samples), Raw::int(1 - fails), Raw::int(fails)];
        let told = v1::Event {
            kind: EventKind::OomKill.into(),
            subject: "web.service".to_owned(),
            at_ms: tick.as_millis(),
            fields: vec![event::integer(v1::EventFieldKey::Count, self.samples)],
        };
        (&self.table, vec![told])
    }

    fn end(&mut self, at: Timestamp, _: v1::FinReason) -> Option<v1::Event> {
        Some(v1::Event {
            kind: EventKind::AgentStopped.into(),
            at_ms: at.as_millis(),
            ..v1::Event::default()
        })
    }

    fn records(&self) -> bool {
        true
    }

    fn busiest(&self) -> Vec<v1::Busiest> {
        vec![v1::Busiest {
            at_ms: muster_proto::time::Clock::now(&muster_proto::time::SystemClock).as_millis() - 1,
            ..v1::Busiest::default()
        }]
    }
}

fn agent(host: &Enrolment, fails: &Arc<AtomicBool>) -> Agent {
    let limits = SpoolLimits {
        // The machine that runs the tests may be nearly full.
        min_free_bytes: 0,
        ..SpoolLimits::default()
    };
    let config = AgentConfig {
        host: host.host,
        interval: limits::MIN_INTERVAL,
        buffer: BufferLimits::default(),
        spool: Some(SpoolConfig {
            folder: host.state.path().join("spool"),
            limits,
        }),
        status_socket: None,
        seed: 3,
    };
    let credentials = Credentials::on_disk(host.state.path(), host.uplink.clone());
    Agent::new(
        config,
        credentials,
        Box::new(Eventful::new(Arc::clone(fails))),
    )
}

async fn kept(aggregator: &Aggregator) -> Vec<Kept> {
    let choice = Choice {
        limit: 10_000,
        newest: true,
        ..Choice::default()
    };
    aggregator
        .events()
        .find(choice)
        .await
        .expect("reads")
        .events
}

/// How often each of the numbered events is there, and whether it came late.
fn numbered(kept: &[Kept]) -> BTreeMap<i64, Vec<bool>> {
    let mut numbered: BTreeMap<i64, Vec<bool>> = BTreeMap::new();
    for one in kept {
        if let Some(number) = event::get_integer(&one.event, v1::EventFieldKey::Count) {
            numbered.entry(number).or_default().push(one.late);
        }
    }
    numbered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_kept_once_over_an_outage_and_an_incident_brings_a_recording() {
    let mut site = Site::new();
    let fails = Arc::new(AtomicBool::new(false));
    let aggregator = site.start().await;
    let host = site
        .enrol(&aggregator, Eventful::new(Arc::clone(&fails)).facts())
        .await;
    let agent = agent(&host, &fails);
    let (monitor, stop) = (agent.monitor(), CancellationToken::new());
    let stopped = stop.clone();
    let task = tokio::spawn(agent.run(async move {
        stopped.cancelled().await;
        v1::FinReason::Stopped
    }));
    until("some frames are durable", async || {
        (monitor.books().durable >= 3).then_some(())
    })
    .await;
    assert!(
        aggregator
            .events()
            .recordings(None, (None, None), 9)
            .await
            .expect("reads")
            .is_empty()
    );

    // Something begins: the agent is asked for its record, and sends it beside its samples.
    fails.store(true, Ordering::SeqCst);
    let recording = until("the recording is here", async || {
        let listed = aggregator
            .events()
            .recordings(Some(host.host), (None, None), 9)
            .await;
        let listed = listed.expect("reads").into_iter();
        listed.into_iter().find(|one| one.parts_here == one.parts)
    })
    .await;
    let (_, parts) = aggregator
        .events()
        .recording(recording.number)
        .await
        .expect("reads")
        .expect("there");
    assert!(parts[0].busiest.len() <= 1);
    let seconds = recorded::seconds(&parts);
    assert!(seconds.len() >= 3, "{seconds:?}");
    let loads: Vec<Option<f64>> = seconds.iter().map(|second| second.load1).collect();
    let first = loads[0].expect("a load");
    for (at, load) in (0u32..).zip(&loads) {
        assert_eq!(
            *load,
            Some(first + f64::from(at)),
            "each second once, in order: {loads:?}"
        );
    }

    // An outage, and what happens in it.
    aggregator.stop().await;
    until("frames are held", async || {
        (monitor.books().held >= 3).then_some(())
    })
    .await;
    let aggregator = site.start().await;
    until("the backlog has arrived", async || {
        (monitor.books().held == 0).then_some(())
    })
    .await;
    stop.cancel();
    let ended = time::timeout(PATIENCE, task).await;
    let books = ended.expect("a stop is bounded").expect("no panic");
    assert_eq!((books.durable, books.lost), (books.produced, 0));
    assert!(aggregator.events().settle().await);
    let all = kept(&aggregator).await;
    let told = numbered(&all);
    let produced = i64::try_from(books.produced).expect("few");
    assert!(told.keys().copied().eq(1..=produced), "{told:?}");
    assert!(told.values().all(|times| times.len() == 1), "{told:?}");
    assert!(
        told.values().any(|times| times[0]),
        "some were held and are late: {told:?}"
    );
    let kinds: Vec<EventKind> = all.iter().map(|kept| kept.event.kind()).collect();
    assert_eq!(kinds[0], EventKind::AgentStarted);
    assert_eq!(kinds[kinds.len() - 1], EventKind::AgentStopped);

    // The log again, as after a loss of everything but the log: nothing comes twice.
    aggregator.stop().await;
    std::fs::remove_file(site.config.state_dir.join("checkpoint")).expect("there was one");
    let aggregator = site.start().await;
    assert!(aggregator.events().settle().await);
    assert_eq!(kept(&aggregator).await, all);
    assert!(aggregator.events().health().again.load(Ordering::Relaxed) > 0);
    aggregator.stop().await;

    // And without the store: the log has it all.
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(site.config.state_dir.join(format!("events.db{suffix}")));
    }
    std::fs::remove_file(site.config.state_dir.join("checkpoint")).expect("there was one");
    let aggregator = site.start().await;
    assert!(aggregator.events().settle().await);
    assert_eq!(numbered(&kept(&aggregator).await), told);
    aggregator.stop().await;
}
