//! All of a shard and the log behind it, in one thread and without sockets.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use muster_aggregator::{
    detect::{Engine, Transition},
    events::{EventLimits, Events},
    fleet::{
        Counters, Fleet, FleetConfig, INBOX,
        host::FrameIn,
        neighbours::Neighbourhood,
        shard::{Common, Message, Shard, TransitionSink},
    },
    journal::Journal,
};
use muster_proto::{
    id::{HostId, Incarnation},
    log::{DiskStorage, Log, LogConfig},
    time::{FakeClock, Timestamp},
    v1::{self, aggregator_message},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{START, Stage, enrolled, host_id, session};

/// As many as an agent's stream has.
const TO_AGENT: usize = 16;

/// Time between two rounds, less what a commit waits for.
const PAUSE: Duration = Duration::from_millis(950);

struct Nobody;

impl TransitionSink for Nobody {
    fn report(&self, _host: HostId, _name: &str, _transitions: Vec<Transition>) {}
}

type FromShard = mpsc::Receiver<Box<v1::AggregatorMessage>>;

pub(crate) struct OneShard {
    runtime: Runtime,
    clock: Arc<FakeClock>,
    fleet: Fleet,
    agents: Vec<FromShard>,
}

impl OneShard {
    pub(crate) fn start(hosts: u64, folder: &Path) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()?;
        std::fs::create_dir_all(folder.join("log"))?;
        let clock = Arc::new(FakeClock::at(Timestamp::from_millis(START)));
        let counters = Arc::new(Counters::default());
        let common = Common {
            engine: Arc::new(Engine::default()),
            sink: Arc::new(Nobody),
            clock: Arc::clone(&clock) as _,
            counters: Arc::clone(&counters),
            neighbours: Arc::new(Neighbourhood::default()),
            events: Events::open(folder, EventLimits::default(), Arc::clone(&clock) as _)?,
        };
        let mut shard = Shard::new(0, FleetConfig::default(), common);
        for number in 0..hosts {
            shard.upsert(enrolled(number));
        }
        let (log, _) = Log::open(
            DiskStorage::open(folder.join("log"))?,
            LogConfig::aggregator(),
        )?;
        let (sender, inbox) = mpsc::channel(INBOX);
        let (journal, written) = Journal::in_task(log, vec![sender.clone()], u64::MAX, 0);
        let fleet = Fleet::new(vec![sender], counters);
        runtime.spawn(written);
        runtime.spawn(shard.run(inbox, journal, CancellationToken::new()));
        let mut agents = Vec::new();
        for number in 0..hosts {
            let (to_agent, from_shard) = mpsc::channel(TO_AGENT);
            runtime.block_on(attach(&fleet, host_id(number), to_agent))?;
            agents.push(from_shard);
        }
        Ok(Self {
            runtime,
            clock,
            fleet,
            agents,
        })
    }
}

async fn attach(
    fleet: &Fleet,
    host: HostId,
    to_agent: mpsc::Sender<Box<v1::AggregatorMessage>>,
) -> anyhow::Result<()> {
    let (reply, answer) = oneshot::channel();
    fleet
        .tell(
            host,
            Message::Attach {
                host,
                connection: 1,
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                session: session(),
                holds: vec![Incarnation(1)],
                to_agent,
                close: CancellationToken::new(),
                welcome: Box::default(),
                reply,
            },
        )
        .await;
    let let_in = answer.await.context("the shard has ended")?;
    ensure!(let_in.is_ok(), "not let in: {let_in:?}");
    Ok(())
}

impl Stage for OneShard {
    fn take(&mut self, round: Vec<(HostId, FrameIn)>) -> anyhow::Result<()> {
        if let Some((_, frame)) = round.first() {
            self.clock.set(frame.received);
        }
        let (fleet, agents) = (&self.fleet, &mut self.agents);
        self.runtime.block_on(async move {
            let last = round.first().map_or(0, |(_, frame)| frame.seq);
            for (host, frame) in round {
                fleet
                    .tell(
                        host,
                        Message::Frame {
                            host,
                            connection: 1,
                            frame,
                            credit: None,
                        },
                    )
                    .await;
            }
            for agent in agents {
                acknowledged(agent, last).await?;
            }
            time::sleep(PAUSE).await;
            Ok(())
        })
    }
}

/// Waits until the frame with this number is durable.
async fn acknowledged(agent: &mut FromShard, seq: u64) -> anyhow::Result<()> {
    loop {
        let told = agent.recv().await.context("the stream was closed")?;
        if let Some(aggregator_message::Message::Ack(ack)) = told.message
            && ack.durable.iter().any(|range| range.last >= seq)
        {
            return Ok(());
        }
    }
}
