//! The agent as a whole: samples on each tick, numbered into the buffer, shipped by the link.
//!
//! An [`Agent`] is one future without threads or tasks of its own beside the connection, so that a demo, a
//! test or a bench runs thousands in one process. Whose values it ships is behind [`Source`].

use std::{
    collections::VecDeque, future::Future, net::SocketAddr, path::PathBuf, sync::Arc, task::Poll,
    time::Duration,
};

use muster_proto::{
    codec::Encoder,
    id::{HostId, Incarnation},
    limits,
    log::Storage,
    series::Table,
    time::{SystemClock, Timestamp},
    v1,
};
use tokio::{
    sync::{Notify, mpsc},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    buffer::{Books, Buffer, BufferLimits, Encoded, Held},
    collect::CollectorFault,
    credentials::Credentials,
    page,
    recorder::{self, Rate, Recorder},
    sample,
    sampler::{Alarm, HostClock, Sampler, Tick},
    spool::{Event, SpoolConfig, SpoolHandle, SpoolLimits},
    status,
    telemetry::{Own, OwnSpool},
    uplink::{Common, Uplink, quiet::Ear},
    watch::left_out_event,
};

/// From the stop signal to the end, whatever the aggregator does.
const GRACE: Duration = Duration::from_secs(4);

/// Longest wait for a tick that is due, for the last round.
const LAST_TICK: Duration = Duration::from_millis(50);

/// With ticks as often as this they are the record.
const OFTEN: Duration = Duration::from_millis(1_500);

/// Times that a part of a recording is tried to be put beside a sample.
const PART_TRIES: u32 = 3;

/// Between an extra round and the round before it: a unit that changes all the time costs no more.
const URGENT_PAUSE: Duration = Duration::from_secs(1);

/// What a host tells, round by round.
pub trait Source: Send {
    /// What the host says about itself; read once at the start.
    fn facts(&self) -> v1::HostFacts;
    /// The kernel's boot id.
    fn boot_id(&self) -> [u8; 16];
    /// Reads everything now. `own` is what the agent counts about itself, to be told with the rest.
    fn sample(&mut self, tick: Timestamp, own: &Own) -> (&Table, Vec<v1::Event>);
    /// What to tell before anything else, and what the event of the agent's start says.
    fn begin(&mut self, _at: Timestamp) -> (Vec<v1::Event>, Vec<v1::EventField>) {
        (Vec::new(), Vec::new())
    }
    /// The agent was told to stop: what to tell of it in a last round.
    fn end(&mut self, _at: Timestamp, _reason: v1::FinReason) -> Option<v1::Event> {
        None
    }
    /// Whether every second is to be recorded.
    fn records(&self) -> bool {
        false
    }
    /// Reads everything now, for the record only; events wait for the next [`Source::sample`].
    fn record(&mut self, _at: Timestamp) -> Option<&Table> {
        None
    }
    /// Who used most of the host lately.
    fn busiest(&self) -> Vec<v1::Busiest> {
        Vec::new()
    }
    /// Collectors whose values are absent or not all there, and why.
    fn faults(&self) -> Vec<CollectorFault> {
        Vec::new()
    }
    /// The values as the last round left them, for whoever wants to see them once more; `None` where there are none
    /// to show.
    fn table(&self) -> Option<&Table> {
        None
    }
    /// Told when something happened that should not wait for the next tick.
    fn urgent(&self) -> Option<Arc<Notify>> {
        None
    }
}

/// How an agent runs.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Whose samples these are: gives the phase of the ticks. The aggregator believes the certificate.
    pub host: HostId,
    /// Time between ticks; the aggregator may bound it.
    pub interval: Duration,
    /// Memory for frames that are not acknowledged.
    pub buffer: BufferLimits,
    /// Where frames outlive the process; `None` for nowhere.
    pub spool: Option<SpoolConfig>,
    /// Where to answer `muster-agent status`; `None` for nowhere.
    pub status_socket: Option<PathBuf>,
    /// Seed of what is left to chance: the incarnation and the waits between connections.
    pub seed: u64,
}

/// One agent, ready to run.
pub struct Agent {
    config: AgentConfig,
    common: Arc<Common>,
    uplink: Uplink,
    source: Box<dyn Source>,
    page: Option<SocketAddr>,
    alone: bool,
}

impl Agent {
    /// An agent on this machine's clocks.
    #[must_use]
    pub fn new(config: AgentConfig, credentials: Credentials, source: Box<dyn Source>) -> Self {
        Self::with_clock(config, credentials, source, Arc::new(SystemClock))
    }

    /// An agent on other clocks.
    #[must_use]
    pub fn with_clock(
        config: AgentConfig,
        credentials: Credentials,
        source: Box<dyn Source>,
        clock: Arc<dyn HostClock>,
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(config.seed);
        let buffer = Buffer::new(Incarnation(random.u64(..)), config.buffer);
        let common = Arc::new(Common::new(
            buffer,
            clock,
            source.facts(),
            source.boot_id(),
            config.interval,
        ));
        if let Some(spool) = config.spool.clone() {
            start_spool(spool, &common);
        }
        let uplink = Uplink::new(
            Arc::clone(&common),
            credentials.connector,
            credentials.memory,
            random.u64(..),
        );
        Self {
            config,
            common,
            uplink,
            source,
            page: None,
            alone: false,
        }
    }

    /// It has the process for itself, and this machine's clocks: a timer of the kernel's wakes it for its ticks.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Serves the values of the latest round at this address too ([`page`]).
    #[must_use]
    pub fn with_page(mut self, address: Option<SocketAddr>) -> Self {
        self.page = address;
        self
    }

    /// Keeps a spool on this disk, by a task of this runtime: for simulations ([`SpoolHandle::in_task`]).
    #[must_use]
    pub fn with_spool_in_task<S>(self, storage: S, limits: SpoolLimits) -> Self
    where
        S: Storage + Send + 'static,
        S::File: Send,
    {
        let (incarnation, told) = listener(&self.common);
        let spool = SpoolHandle::in_task(storage, limits, incarnation, told);
        self.common.set_spool(spool);
        self
    }

    /// Looks at the agent while it runs.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor {
            common: Arc::clone(&self.common),
        }
    }

    /// Runs until `shutdown` completes and says why; then ships what is held, says goodbye and ends within
    /// five seconds. Returns what became of its frames.
    pub async fn run(self, shutdown: impl Future<Output = v1::FinReason>) -> Books {
        let Self {
            config,
            common,
            uplink,
            source,
            page,
            alone,
        } = self;
        let fixed = status::Fixed {
            host_id: config.host.to_string(),
            started: time::Instant::now(),
        };
        let stop = CancellationToken::new();
        let mut rounds = Rounds::new(source, &common);
        {
            let mut linked = std::pin::pin!(uplink.run(stop.clone()));
            let mut urgent = Urgent::new(rounds.source.urgent());
            // Without a timer tokio's do.
            let alarm = alone.then(|| Alarm::new().ok()).flatten();
            let schedule = common.watch_schedule();
            let mut sampler = Sampler::new(config.host, &*common.clock, schedule).woken_by(alarm);
            let mut shutdown = std::pin::pin!(shutdown);
            let mut answered = std::pin::pin!(status::serve(
                config.status_socket.as_deref(),
                Arc::clone(&common),
                fixed,
            ));
            if let Some(ear) = common.ear().filter(|_| alone) {
                ear.will_be_rung();
            }
            // A tick that waits until what came in since the last is read.
            let mut begun = None;
            let (pages, mut asked) = mpsc::channel(page::MAX_ASKED);
            let mut paged = std::pin::pin!(page::serve(page, pages));
            loop {
                tokio::select! {
                    reason = &mut shutdown => {
                        common.set_fin_reason(reason);
                        // Its own clock: a tick that is due is as good as a round in between.
                        let tick = match begun.take().or_else(|| sampler.extra()) {
                            Some(tick) => Some(tick),
                            None => time::timeout(LAST_TICK, sampler.next()).await.ok(),
                        };
                        match tick {
                            Some(tick) => rounds.end(tick, reason),
                            // Stopped before its first tick, or right after its clock was set: the end is noted
                            // down all the same, so that the next start does not take it for a crash.
                            None => drop(rounds.source.end(sampler.now(), reason)),
                        }
                        break;
                    }
                    tick = sampler.next(), if begun.is_none() => {
                        if common.ear().is_some_and(Ear::ring) {
                            begun = Some(tick);
                        } else {
                            rounds.take(tick);
                            urgent.done();
                        }
                    }
                    () = others_have_run(), if begun.is_some() => {
                        if let Some(tick) = begun.take() {
                            rounds.take(tick);
                            urgent.done();
                        }
                    }
                    () = urgent.due(), if begun.is_none() => {
                        // With a tick about to come, that one has it.
                        if let Some(tick) = sampler.extra() {
                            rounds.take(tick);
                        }
                        urgent.done();
                    }
                    () = time::sleep_until(rounds.due()), if rounds.records() && begun.is_none() => {
                        // With a tick about to come, that one is recorded.
                        match sampler.extra() {
                            Some(tick) if rounds.is_sending() => {
                                rounds.take(tick);
                                urgent.done();
                            }
                            Some(tick) => rounds.record(tick),
                            None => rounds.rest(),
                        }
                    }
                    () = common.recalled.notified() => rounds.recall(),
                    // Neither ends before it is stopped.
                    () = &mut linked => break,
                    () = &mut answered => break,
                    () = &mut paged => break,
                    Some(reply) = asked.recv() => rounds.show(reply),
                }
            }
            stop.cancel();
            if let Some(spool) = common.spool() {
                // Before the goodbye, which may take as long as we are given.
                spool.commit();
            }
            if time::timeout(GRACE, linked).await.is_err() {
                tracing::warn!(grace_seconds = GRACE.as_secs(), "shutdown grace is over");
            }
        }
        if let Some(spool) = common.spool() {
            spool.stop().await;
        }
        let mut buffer = common.buffer();
        buffer.abandon();
        let books = buffer.books();
        tracing::info!(
            produced = books.produced,
            durable = books.durable,
            rejected = books.rejected,
            lost = books.lost,
            kept_on_disk = books.held,
            "agent stopped"
        );
        books
    }
}

/// When an extra round is due.
struct Urgent {
    told: Option<Arc<Notify>>,
    waiting: bool,
    last_round: time::Instant,
}

impl Urgent {
    fn new(told: Option<Arc<Notify>>) -> Self {
        Self {
            told,
            waiting: false,
            last_round: time::Instant::now(),
        }
    }

    /// Waits until something urgent happened and the last round is long enough ago. Dropping the future
    /// loses nothing.
    async fn due(&mut self) {
        if !self.waiting {
            match &self.told {
                Some(told) => told.notified().await,
                None => std::future::pending().await,
            }
            self.waiting = true;
        }
        time::sleep_until(self.last_round + URGENT_PAUSE).await;
    }

    /// A round was taken: it has all that happened before.
    fn done(&mut self) {
        self.waiting = false;
        self.last_round = time::Instant::now();
    }
}

/// Completes when the tasks that are ready now, and the link after them, have run.
async fn others_have_run() {
    let mut left = 2;
    std::future::poll_fn(|cx| match left {
        0 => Poll::Ready(()),
        _ => {
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// Whose frames a spool keeps, and who hears what it has to say.
fn listener(common: &Arc<Common>) -> (Incarnation, impl FnMut(Event) + Send + 'static) {
    // The spool must not keep alive what ends it.
    let listener = Arc::downgrade(common);
    let told = move |event| {
        if let Some(common) = listener.upgrade() {
            common.told(event);
        }
    };
    (common.buffer().incarnation(), told)
}

/// Without a spool the agent goes on with memory, as it does when the disk fails later.
fn start_spool(config: SpoolConfig, common: &Arc<Common>) {
    let (incarnation, told) = listener(common);
    match SpoolHandle::start(config, incarnation, told) {
        Ok(spool) => common.set_spool(spool),
        Err(error) => tracing::warn!(%error, "no spool: a restart loses what is in memory"),
    }
}

/// A look at an agent that runs.
#[derive(Clone)]
pub struct Monitor {
    common: Arc<Common>,
}

impl Monitor {
    /// Whether a session with the aggregator stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.common.link().connected_since.is_some()
    }

    /// The life of the agent under which its frames are numbered.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.common.buffer().incarnation()
    }

    /// What became of the frames so far.
    #[must_use]
    pub fn books(&self) -> Books {
        self.common.buffer().books()
    }

    /// Everything below this number is settled: durable, refused or given up.
    #[must_use]
    pub fn settled_below(&self) -> u64 {
        self.common.buffer().settled_below()
    }

    /// The highest number of this life that is known to be durable; 0 before the first.
    #[must_use]
    pub fn newest_durable(&self) -> u64 {
        self.common.buffer().newest_durable()
    }

    /// Frames of earlier lives of the agent that wait on disk; `None` while it is not known what the disk holds.
    #[must_use]
    pub fn left_by_earlier_lives(&self) -> Option<u64> {
        match self.common.spool() {
            Some(spool) => spool.is_open().then(|| spool.status().frames),
            None => Some(0),
        }
    }

    /// `host:port` of the aggregator in use, or of the one that is tried next.
    #[must_use]
    pub fn server(&self) -> String {
        self.common.server()
    }

    /// How the link stands, in one line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let server = self.common.server();
        let link = self.common.link();
        match (link.connected_since, &link.fault) {
            (Some(_), _) => format!("connected to {server}"),
            (None, Some((cause, _))) => format!("not connected to {server}: {cause}"),
            (None, None) => format!("connecting to {server}"),
        }
    }
}

/// The rounds of a source, encoded and numbered.
struct Rounds<'a> {
    source: Box<dyn Source>,
    common: &'a Common,
    encoder: Encoder,
    ticks_missed: u64,
    /// Room for a payload; the frame gets a copy of its exact size.
    scratch: Vec<u8>,
    /// Whether the last payload was larger than the aggregator takes.
    too_large: bool,
    recorder: Option<Recorder>,
    rate: Rate,
    /// Parts of a recording that wait to travel beside a sample.
    parts: VecDeque<v1::RecordingPart>,
    part_tries: u32,
    /// The recording is complete: to the disk with it.
    commit: bool,
    last_word: Option<v1::Event>,
    /// When the last round was, for the recorder.
    last: time::Instant,
    /// The tick of the last round.
    latest: Option<Timestamp>,
}

impl<'a> Rounds<'a> {
    fn new(source: Box<dyn Source>, common: &'a Common) -> Self {
        Self {
            recorder: source.records().then(Recorder::default),
            rate: Rate::default(),
            parts: VecDeque::new(),
            part_tries: 0,
            commit: false,
            last_word: None,
            last: time::Instant::now(),
            source,
            common,
            encoder: Encoder::new(),
            ticks_missed: 0,
            scratch: Vec::new(),
            too_large: false,
            latest: None,
        }
    }

    /// Whether rounds between ticks are wanted.
    fn records(&self) -> bool {
        let often = self.common.interval() <= OFTEN;
        self.is_sending() || (self.recorder.is_some() && !often)
    }

    /// Whether parts of a recording wait for samples to go beside.
    fn is_sending(&self) -> bool {
        !self.parts.is_empty()
    }

    /// When the next round for the recorder is.
    fn due(&self) -> time::Instant {
        self.last + recorder::EVERY
    }

    /// There is no round between ticks now.
    fn rest(&mut self) {
        self.last = time::Instant::now();
    }

    /// A round for the recorder alone.
    fn record(&mut self, tick: Tick) {
        self.rest();
        self.latest = Some(tick.at);
        if let Some(recorder) = &mut self.recorder
            && let Some(table) = self.source.record(tick.at)
        {
            recorder.record(table, tick.at);
        }
    }

    /// The aggregator asks for what the recorder holds.
    fn recall(&mut self) {
        let Some(recall) = self.common.take_recall() else {
            return;
        };
        let Some(recorder) = self.recorder.as_ref().filter(|_| self.parts.is_empty()) else {
            return;
        };
        let boottime_ms = self.common.clock.boottime_ms();
        if !self.rate.admits(Timestamp::from_millis(boottime_ms)) {
            tracing::debug!(
                "the aggregator asks for recordings too often; this one it does not get"
            );
            return;
        }
        self.parts = recorder.recall(
            Timestamp::from_millis(recall.from_ms),
            Timestamp::from_millis(recall.to_ms),
            self.common.schedule().at(boottime_ms),
            self.source.busiest(),
        );
        tracing::info!(
            parts = self.parts.len(),
            "the aggregator recalls what the flight recorder holds"
        );
    }

    /// The last round: with what the source has to say about the end.
    fn end(&mut self, tick: Tick, reason: v1::FinReason) {
        if let Some(event) = self.source.end(tick.at, reason) {
            self.last_word = Some(event);
            self.take(tick);
        }
    }

    fn take(&mut self, tick: Tick) {
        self.rest();
        self.ticks_missed += tick.missed;
        self.latest = Some(tick.at);
        if tick.missed > 0 {
            tracing::debug!(missed = tick.missed, "ticks missed");
        }
        let own = self.own();
        let began = time::Instant::now();
        let first = (own.frames_produced == 0).then(|| self.source.begin(tick.at));
        let (table, mut events) = self.source.sample(tick.at, &own);
        let took = began.elapsed();
        if let Some((mut before, start)) = first {
            before.push(started(tick.at, start));
            events.splice(0..0, before);
        }
        events.extend(self.last_word.take());
        if events.len() > limits::MAX_EVENTS_PER_FRAME {
            // Sources leave room for these; one that does not loses by number, not in silence.
            let kept = limits::MAX_EVENTS_PER_FRAME - 1;
            let left_out = (events.len() - kept) as u64;
            events.truncate(kept);
            events.push(left_out_event(tick.at, left_out));
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.record(table, tick.at);
        }
        let key = self.common.buffer().needs_key(tick.at);
        self.scratch.clear();
        let part = self.parts.front();
        let mut key = self
            .encoder
            .encode_with(table, &events, part, key, &mut self.scratch);
        if self.scratch.len() <= limits::MAX_PAYLOAD_BYTES {
            self.part_tries = 0;
            let was_last = self.parts.pop_front().is_some() && self.parts.is_empty();
            self.commit |= was_last;
        } else if part.is_some() {
            // Beside a key frame there may be no room; the next one is a delta.
            self.scratch.clear();
            key = self.encoder.encode(table, &events, true, &mut self.scratch);
            self.part_tries += 1;
            if self.part_tries == PART_TRIES {
                self.parts.clear();
                tracing::warn!(
                    "a recording finds no room beside the samples of this host; it is given up"
                );
            }
        }
        let too_large = self.scratch.len() > limits::MAX_PAYLOAD_BYTES;
        if too_large && !self.too_large {
            tracing::error!(
                bytes = self.scratch.len(),
                most = limits::MAX_PAYLOAD_BYTES,
                "frames are larger than the aggregator takes, and are lost; lower [collectors] max_series"
            );
        }
        self.too_large = too_large;
        let encoded = Encoded {
            tick: tick.at,
            boottime_ms: tick.boottime_ms,
            payload: bytes::Bytes::copy_from_slice(&self.scratch),
            key,
            samples: table.present_count() as u64,
        };
        let series = encoded.samples;
        let spooled = {
            let mut buffer = self.common.buffer();
            let seq = buffer.append(encoded);
            let kept = buffer.newest().filter(|frame| frame.seq() == seq);
            kept.map(Held::to_spool)
        };
        if let Some((spool, frame)) = self.common.spool().zip(spooled) {
            let outline = frame.outline(&events);
            spool.append(frame, outline);
            if std::mem::take(&mut self.commit) {
                // A recording is evidence: it must not wait for the next commit.
                spool.commit();
            }
        }
        self.common.appended.notify_one();
        let faults = self.source.faults();
        self.common
            .rounds()
            .note(tick.at, took, series, self.ticks_missed, faults);
    }

    /// Answers who wants to see the latest round.
    fn show(&self, reply: page::Asked) {
        let shown = self.latest.and_then(|tick| {
            let table = self.source.table()?;
            Some(sample::render(table, tick, sample::Format::Prometheus))
        });
        // Who asked may have gone.
        let _ = reply.send(shown);
    }

    fn own(&self) -> Own {
        let books = self.common.buffer().books();
        Own {
            ticks_missed: self.ticks_missed,
            frames_produced: books.produced,
            frames_lost: books.lost,
            frames_lost_on_disk: [books.lost_age, books.lost_corrupt, books.lost_disk],
            frames_refused: books.rejected,
            frames_queued: books.held,
            reconnects: self.common.link().sessions.saturating_sub(1),
            spool: self.common.spool().map(|spool| {
                let status = spool.status();
                OwnSpool {
                    bytes: status.bytes,
                    frames: books.spooled + status.frames,
                    failures: status.failures,
                    dropped: [
                        status.dropped_full,
                        status.dropped_age,
                        status.dropped_corrupt,
                    ],
                }
            }),
        }
    }
}

/// The first event of an incarnation.
fn started(tick: Timestamp, fields: Vec<v1::EventField>) -> v1::Event {
    v1::Event {
        kind: v1::EventKind::AgentStarted.into(),
        subject: String::new(),
        at_ms: tick.as_millis(),
        fields,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn extra_rounds_come_at_most_once_a_second_and_none_is_forgotten() {
        let told = Arc::new(Notify::new());
        let mut urgent = Urgent::new(Some(Arc::clone(&told)));
        let began = time::Instant::now();
        let wait = Duration::from_millis(300);
        assert!(
            time::timeout(wait, urgent.due()).await.is_err(),
            "nothing happened"
        );
        told.notify_one();
        // Dropped while it waits for the second to pass.
        assert!(time::timeout(wait, urgent.due()).await.is_err());
        urgent.due().await;
        assert_eq!(began.elapsed(), URGENT_PAUSE);
        urgent.done();
        told.notify_one();
        urgent.due().await;
        assert_eq!(began.elapsed(), URGENT_PAUSE * 2);
        urgent.done();
        assert!(time::timeout(URGENT_PAUSE * 5, urgent.due()).await.is_err());
        let never = time::timeout(URGENT_PAUSE * 5, async { Urgent::new(None).due().await });
        assert!(never.await.is_err());
    }
}
