//! From what is on disk to a running fleet: checkpoint, then the log behind it, then the shards.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use muster_proto::{
    id::HostId,
    log::{DiskStorage, FolderError, Follower, Log, LogConfig, LogError, Storage},
    time::Clock,
};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Counters, Enrolled, Fleet, FleetConfig, INBOX,
    checkpoint::{self, Checkpoint, CheckpointError},
    host::CheckpointedHost,
    neighbours::Neighbourhood,
    shard::{Common, Shard, TransitionSink},
};
use crate::{
    detect::{Engine, Opening},
    events::Events,
    history::{
        self, EmbeddedStore, HistoryConfig,
        feed::{self, Feed, FeedHealth},
    },
    journal::{Journal, Record},
    threads::ShardThread,
};

/// How often the state is put into a checkpoint. A start applies at most this much of the log again, plus
/// what came while the checkpoint was written.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// A start that applied more of the log again makes a checkpoint at once: killed before the first one, it would have
/// as much to do the next time, and what has come since.
const REPLAYED_MANY: u64 = 2_000;

/// How often it is looked whether the log's thread still runs.
const LOOK_AT_THREAD: Duration = Duration::from_secs(1);

/// Each step of stopping has this long.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What a fleet is made of.
pub struct Parts {
    /// Bounds and terms.
    pub config: FleetConfig,
    /// Folder of the aggregator's state.
    pub state_dir: PathBuf,
    /// Size at which the log's oldest segments go.
    pub log_max_bytes: u64,
    /// The thread of each shard; as many as processors are right.
    pub threads: Vec<ShardThread>,
    /// Detectors.
    pub engine: Arc<Engine>,
    /// Takes what the detectors conclude.
    pub sink: Arc<dyn TransitionSink>,
    /// What is open on a host in the store, for detectors that lost their memory of it.
    pub open: Box<dyn Fn(HostId) -> Vec<Opening> + Send>,
    /// What is kept of the past.
    pub history: HistoryConfig,
    /// Dates.
    pub clock: Arc<dyn Clock>,
    /// Keeps what stands beside the samples.
    pub events: Events,
}

/// The past of the fleet, for readers.
#[derive(Clone)]
pub struct History {
    /// Samples.
    pub store: Arc<EmbeddedStore<DiskStorage>>,
    /// How they come in.
    pub health: Arc<FeedHealth>,
}

/// Why a fleet does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be used.
    #[error("cannot use {path}", path = .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// The log's folder cannot be used.
    #[error(transparent)]
    LogFolder(#[from] FolderError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The checkpoint cannot be read for want of rights or a sick disk; a damaged one is only reported.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// No thread could be made.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A running fleet.
pub struct Started {
    /// The handle everyone else holds.
    pub fleet: Fleet,
    /// The log.
    pub journal: Journal,
    /// The past; why there is none otherwise.
    pub history: Result<History, String>,
    history_threads: Option<feed::Running>,
    checkpoints: Checkpoints,
    tasks: JoinSet<()>,
    journal_thread: thread::JoinHandle<()>,
    stop: CancellationToken,
}

/// Reads what is on disk and starts the shards.
///
/// # Errors
/// When the state folder or the log cannot be used. Damage never stops the start: it is set aside and
/// reported.
pub fn start(parts: Parts, hosts: Vec<Enrolled>) -> Result<Started, StartError> {
    let began = Instant::now();
    let log_folder = parts.state_dir.join("log");
    fs::create_dir_all(&log_folder).map_err(|source| StartError::Folder {
        path: log_folder.clone(),
        source,
    })?;
    let checkpoint_path = parts.state_dir.join("checkpoint");
    let kept = read_checkpoint(&checkpoint_path)?;
    let opened = open_history(&parts);
    // Numbers that history has seen must not come again for something else, should the log be lost.
    let seen = opened.as_ref().map_or(0, |(store, _)| store.highest());
    let mut log_config = LogConfig::aggregator();
    log_config.next_at_least = kept.covers.max(seen) + 1;
    let (log, recovery) = Log::open(DiskStorage::open(log_folder)?, log_config)?;
    for damaged in &recovery.quarantined {
        tracing::error!(
            segment = damaged.segment,
            first = damaged.first,
            last = damaged.last,
            set_aside = damaged.set_aside,
            "part of the log is damaged and was set aside; latest values come again from the agents"
        );
    }

    let counters = Arc::new(Counters::default());
    let common = Common {
        engine: Arc::clone(&parts.engine),
        sink: Arc::clone(&parts.sink),
        clock: Arc::clone(&parts.clock),
        counters: Arc::clone(&counters),
        neighbours: Arc::new(Neighbourhood::default()),
        events: parts.events.clone(),
    };
    let mut shards: Vec<Shard> = (0..parts.threads.len().max(1))
        .map(|index| Shard::new(index, parts.config.clone(), common.clone()))
        .collect();
    let count = shards.len();
    let enrolled = hosts.len();
    let ids: Vec<HostId> = hosts.iter().map(|who| who.id).collect();
    for who in hosts {
        shards[Fleet::shard_of(who.id, count)].upsert(who);
    }
    for host in &kept.hosts {
        shards[Fleet::shard_of(host.id(), count)].restore(host);
    }
    for id in ids {
        shards[Fleet::shard_of(id, count)].adopt(id, &(parts.open)(id));
    }
    let replayed = replay(&log, kept.covers + 1, &mut shards);
    tracing::info!(
        hosts = enrolled,
        replayed,
        torn_bytes = recovery.torn_bytes,
        seconds = began.elapsed().as_secs_f64(),
        "state is back"
    );

    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(INBOX)).unzip();
    let follower = Follower::new(log.storage().clone(), log_config.stream);
    let (offered, inbox) = Feed::new();
    let feed = opened.is_ok().then_some(offered);
    let (journal, journal_thread) =
        Journal::start(log, senders.clone(), parts.log_max_bytes, kept.covers, feed)
            .map_err(StartError::Thread)?;
    let mut history_threads = None;
    let history = match opened {
        Ok((store, opened)) => {
            let store = Arc::new(store);
            let parts = feed::Parts {
                store: Arc::clone(&store),
                opened,
                log: follower,
                journal: Arc::clone(journal.health()),
                clock: Arc::clone(&parts.clock),
            };
            let running = feed::start(inbox, parts).map_err(StartError::Thread)?;
            let health = Arc::clone(running.health());
            history_threads = Some(running);
            Ok(History { store, health })
        }
        Err(why) => Err(why),
    };
    let fleet = Fleet::on_threads(senders, counters, parts.threads.clone());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for (index, (shard, inbox)) in shards.into_iter().zip(inboxes).enumerate() {
        let running = shard.run(inbox, journal.clone(), stop.clone());
        match parts.threads.get(index) {
            Some(thread) => tasks.spawn_on(running, &thread.runtime),
            None => tasks.spawn(running),
        };
    }
    let checkpoints = Checkpoints {
        fleet: fleet.clone(),
        journal: journal.clone(),
        events: parts.events,
        path: checkpoint_path,
        turn: Arc::default(),
    };
    tasks.spawn(
        checkpoints
            .clone()
            .run(stop.clone(), replayed >= REPLAYED_MANY),
    );
    Ok(Started {
        fleet,
        journal,
        history,
        history_threads,
        checkpoints,
        tasks,
        journal_thread,
        stop,
    })
}

impl Started {
    /// Waits until a task ends that should run for ever; says which.
    pub async fn failed(&mut self) -> &'static str {
        let mut look = time::interval(LOOK_AT_THREAD);
        loop {
            tokio::select! {
                Some(_) = self.tasks.join_next() => return "a shard of the fleet, or its checkpoints,",
                _ = look.tick() => {
                    if self.journal_thread.is_finished() {
                        return "the log's thread";
                    }
                    if self.history_threads.as_ref().is_some_and(feed::Running::failed) {
                        return "a thread of the history";
                    }
                }
            }
        }
    }

    /// Makes a last checkpoint, ends all tasks, and writes what is queued still. Streams must have ended: what
    /// they sent and the disk could not take is not acknowledged, and the agents have it. Bounded in time,
    /// also with a disk that fails.
    pub async fn stop(mut self) {
        self.journal.health().stop();
        let last = self.checkpoints.write();
        if time::timeout(STOP_PATIENCE, last).await.is_err() {
            tracing::warn!("no last checkpoint in time; the next start reads more of the log");
        }
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // A task that hangs ends with the process.
        let _ = time::timeout(STOP_PATIENCE, ended).await;
        self.tasks.abort_all();
        drop((self.fleet, self.journal, self.checkpoints));
        let thread = self.journal_thread;
        let joined = tokio::task::spawn_blocking(move || thread.join());
        if time::timeout(STOP_PATIENCE, joined).await.is_err() {
            tracing::warn!("the disk does not answer; what it did not take was not acknowledged");
            return;
        }
        if let Some(threads) = self.history_threads {
            let joined = tokio::task::spawn_blocking(move || threads.join());
            if time::timeout(STOP_PATIENCE, joined).await.is_err() {
                tracing::warn!(
                    "history is not written to its end; the next start reads it from the log"
                );
            }
        }
    }
}

/// Opens the history. One that cannot be used stops nothing but itself: who is paged needs the latest values.
fn open_history(
    parts: &Parts,
) -> Result<(EmbeddedStore<DiskStorage>, history::store::Opened), String> {
    if !parts.history.enabled {
        return Err("history is turned off ([history] enabled)".to_owned());
    }
    let now = parts.clock.now().as_millis();
    let opened = DiskStorage::open(parts.state_dir.join("history"))
        .map_err(|error| crate::chain(&error))
        .and_then(|storage| {
            EmbeddedStore::open(storage, parts.history.clone(), now)
                .map_err(|error| crate::chain(&error))
        });
    opened.inspect_err(|error| {
        tracing::error!(
            error,
            "there is no history: nothing is recorded until this is mended; everything else works"
        );
    })
}

fn read_checkpoint(path: &Path) -> Result<Checkpoint, StartError> {
    match checkpoint::read(path) {
        Ok(kept) => Ok(kept.unwrap_or_default()),
        Err(error @ CheckpointError::Unusable { .. }) => {
            tracing::error!(
                error = crate::chain(&error),
                "the state is made anew from the whole log instead"
            );
            Ok(Checkpoint::default())
        }
        Err(error) => Err(error.into()),
    }
}

/// Applies the log from record `from` on; the number of records applied.
fn replay<S: Storage>(log: &Log<S>, from: u64, shards: &mut [Shard]) -> u64 {
    let count = shards.len();
    let mut applied = 0;
    for record in log.read_from(from) {
        match record {
            Ok(record) => match Record::decode(&record.payload) {
                Ok((host, decoded)) => {
                    shards[Fleet::shard_of(host, count)].replay(host, decoded);
                    applied += 1;
                }
                Err(error) => {
                    tracing::error!(number = record.number, %error, "record of the log does not read; left out");
                }
            },
            Err(gap) => tracing::error!(error = crate::chain(&gap), "part of the log is missing"),
        }
    }
    applied
}

/// Puts the state of all hosts into a file.
#[derive(Clone)]
struct Checkpoints {
    fleet: Fleet,
    journal: Journal,
    events: Events,
    path: PathBuf,
    /// Whose the file is that is being written: the last one, as everything stops, waits for one that is on its way.
    turn: Arc<Mutex<()>>,
}

impl Checkpoints {
    /// One every [`CHECKPOINT_EVERY`], until `stop`; the first `at_once` if asked for.
    async fn run(self, stop: CancellationToken, at_once: bool) {
        let mut ticks = time::interval(CHECKPOINT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !at_once {
            ticks.tick().await;
        }
        let mut covered = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            // Nothing new on disk: the file at hand still says it all.
            let now = self.journal.health().durable();
            if covered != Some(now) && self.write().await {
                covered = Some(now);
            }
        }
    }

    /// Writes one; false (and said) if that was not possible.
    async fn write(&self) -> bool {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // Read before the shards are asked: all up to here is in what they answer.
        let covers = self.journal.health().durable();
        let Some(parts) = self.fleet.checkpoint_parts().await else {
            return false;
        };
        let count = parts.iter().map(Vec::len).sum();
        // Dropped without the last word it ends the writing, and the file that is there stays.
        let (to_file, states) = mpsc::channel(1);
        let path = self.path.clone();
        let writing = tokio::task::spawn_blocking(move || {
            // Until the thread is done with the file, also when nobody waits for it any more.
            let _turn = turn;
            write_hosts(&path, covers, count, states)
        });
        for part in parts {
            let Some(hosts) = self.fleet.checkpoint_of(part).await else {
                return false;
            };
            // A writer that has ended says why.
            let _ = to_file.send(Some(hosts)).await;
        }
        // What the checkpoint covers is not read from the log again. If the events are not on disk in time, it is
        // written all the same: a log that grows without end would be worse.
        self.events.settle().await;
        let _ = to_file.send(None).await;
        match writing.await {
            Ok(Ok(true)) => {
                self.journal.health().set_covered(covers);
                true
            }
            Ok(Ok(false)) => false,
            Ok(Err(error)) => {
                tracing::error!(
                    error = crate::chain(&error),
                    "no checkpoint; the next start reads more of the log"
                );
                false
            }
            Err(_) => false,
        }
    }
}

/// Writes the states as they come, up to the `None` that says that those were all; false if that does not come.
fn write_hosts(
    path: &Path,
    covers: u64,
    count: usize,
    mut states: mpsc::Receiver<Option<Vec<CheckpointedHost>>>,
) -> Result<bool, CheckpointError> {
    let mut writer = checkpoint::Writer::begin(path, covers, count)?;
    while let Some(hosts) = states.blocking_recv() {
        match hosts {
            Some(hosts) => writer.add(&hosts)?,
            None => return writer.finish().map(|()| true),
        }
    }
    Ok(false)
}
