//! The link to the aggregator: connect, hold a session, wait, again; until told to stop.
//!
//! Everything about one stream is in `session`, how long to wait in [`backoff`], what went wrong in
//! [`fault`], bytes in [`connect`]. A failing link never disturbs sampling: frames wait in the buffer.

mod aside;
pub mod backoff;
pub mod connect;
pub mod fault;
pub mod quiet;
pub mod renew;
pub mod servers;
mod session;

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use muster_proto::{time::Timestamp, v1};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    buffer::Buffer,
    sampler::{HostClock, Schedule},
    spool::{Event, SpoolHandle},
    status::RoundStats,
};

use backoff::{Backoff, Ended};
use connect::{Connector, Watched, Witness};
use fault::Fault;
use quiet::Ear;
use renew::{Renewing, Slots, refuses_certificate};
use servers::{Announced, Servers};
use session::{End, OpenError, Session};

/// Resolve, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 windows: acknowledgements are small, and so is an agent.
const WINDOW_BYTES: u32 = 64 * 1024;
/// HTTP/2 pings find a peer that vanished without a word, also while nothing is sent.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// After a certificate was renewed: within this time a new connection stands.
const SWITCH_SPREAD: Duration = Duration::from_secs(2);
/// Who is at another server than the first looks for that after this time, and so much more as is drawn.
const HOME_FROM: Duration = Duration::from_secs(300);
const HOME_SPREAD_MS: u64 = 300_000;
/// So many sessions in a row that ended with a Throttle and took nothing count as a failure of that server.
const MAX_THROTTLED: u32 = 3;
/// Tells the draws for that from the others.
const HOME_SEED: u64 = 0x686f_6d65_7761_7264;
/// Tells the draws for renewals from those for connections.
const RENEWAL_SEED: u64 = 0x7265_6e65_7761_6c73;

/// What an identity remembers between sessions.
pub trait Memory: Send {
    /// A number larger than any before it for this identity, also after a restart.
    fn next_session(&mut self) -> Result<u64, Fault>;
    /// What the last Welcome gave, empty before the first.
    fn ratchet(&self) -> Vec<u8>;
    /// Keeps what a Welcome gave: ratchet, time, and the trust bundle if it is newer.
    fn welcomed(&mut self, welcome: &v1::Welcome) -> io::Result<()>;
    /// Version of the trust bundle held.
    fn bundle_version(&self) -> u64;
    /// The servers that were announced last.
    fn servers(&self) -> Vec<Announced> {
        Vec::new()
    }
    /// Keeps the servers that were announced.
    fn keep_servers(&mut self, _servers: &[Announced]) -> io::Result<()> {
        Ok(())
    }
    /// End of the host certificate's life, where there is one.
    fn certificate_expires(&self) -> Option<Timestamp> {
        None
    }
    /// The host's certificates, where they can be renewed.
    fn slots(&mut self) -> Option<&mut dyn Slots> {
        None
    }
}

/// A memory that ends with the process: for hosts that are made up.
#[derive(Debug, Default)]
pub struct Forgetful {
    session: u64,
    ratchet: Vec<u8>,
}

impl Memory for Forgetful {
    fn next_session(&mut self) -> Result<u64, Fault> {
        // Seconds since 1970 in the upper half keep it growing over restarts.
        let now = muster_proto::time::Clock::now(&muster_proto::time::SystemClock);
        let start = now.as_millis().max(0).unsigned_abs() << 16;
        self.session = start.max(self.session + 1);
        Ok(self.session)
    }

    fn ratchet(&self) -> Vec<u8> {
        self.ratchet.clone()
    }

    fn welcomed(&mut self, welcome: &v1::Welcome) -> io::Result<()> {
        self.ratchet.clone_from(&welcome.ratchet);
        Ok(())
    }

    fn bundle_version(&self) -> u64 {
        0
    }
}

/// What the link, the sampler and the status page share. Locks are held for a few lines.
pub(crate) struct Common {
    buffer: Mutex<Buffer>,
    /// Where frames outlive the process, if anywhere.
    spool: OnceLock<SpoolHandle>,
    link: Mutex<Link>,
    servers: Mutex<Servers>,
    rounds: Mutex<RoundStats>,
    /// Of the connections, where they have one.
    ear: OnceLock<Arc<Ear>>,
    schedule: watch::Sender<Schedule>,
    fin_reason: AtomicI32,
    /// What the aggregator recalls of the flight recorder, until it is answered.
    recall: Mutex<Option<v1::Recall>>,
    /// Something was recalled.
    pub(crate) recalled: Notify,
    /// A frame was appended.
    pub(crate) appended: Notify,
    pub(crate) clock: Arc<dyn HostClock>,
    pub(crate) facts: v1::HostFacts,
    pub(crate) boot_id: [u8; 16],
    /// The interval the configuration asks for.
    pub(crate) wished_interval: Duration,
}

impl Common {
    pub(crate) fn new(
        buffer: Buffer,
        clock: Arc<dyn HostClock>,
        facts: v1::HostFacts,
        boot_id: [u8; 16],
        interval: Duration,
    ) -> Self {
        Self {
            buffer: Mutex::new(buffer),
            spool: OnceLock::new(),
            link: Mutex::new(Link::default()),
            servers: Mutex::default(),
            rounds: Mutex::new(RoundStats::default()),
            ear: OnceLock::new(),
            schedule: watch::Sender::new(Schedule::new(&*clock, interval)),
            fin_reason: AtomicI32::new(v1::FinReason::Stopped.into()),
            recall: Mutex::default(),
            recalled: Notify::new(),
            appended: Notify::new(),
            clock,
            facts,
            boot_id,
            wished_interval: interval,
        }
    }

    pub(crate) fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives frames a place on disk; once.
    pub(crate) fn set_spool(&self, spool: SpoolHandle) {
        // There is one call of this, where the agent is made.
        let _ = self.spool.set(spool);
    }

    pub(crate) fn spool(&self) -> Option<&SpoolHandle> {
        self.spool.get()
    }

    /// What the spool has to say to the buffer.
    pub(crate) fn told(&self, event: Event) {
        self.buffer().told(event);
        if matches!(event, Event::Dropped(_) | Event::Due) {
            // A gap is to be announced, or the spool to be asked again.
            self.appended.notify_one();
        }
    }

    /// The aggregator asks for what the flight recorder holds. Only its newest wish counts.
    pub(crate) fn set_recall(&self, recall: v1::Recall) {
        *self.recall.lock().unwrap_or_else(PoisonError::into_inner) = Some(recall);
        self.recalled.notify_one();
    }

    pub(crate) fn take_recall(&self) -> Option<v1::Recall> {
        let mut recall = self.recall.lock().unwrap_or_else(PoisonError::into_inner);
        recall.take()
    }

    pub(crate) fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn servers(&self) -> MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `host:port` of the aggregator in use, or of the one that is tried next.
    pub(crate) fn server(&self) -> String {
        self.servers().current().to_owned()
    }

    /// Whether incoming bytes are waited for, where connections can be told.
    pub(crate) fn ear(&self) -> Option<&Ear> {
        self.ear.get().map(|ear| &**ear)
    }

    pub(crate) fn rounds(&self) -> MutexGuard<'_, RoundStats> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn schedule(&self) -> Schedule {
        *self.schedule.borrow()
    }

    pub(crate) fn watch_schedule(&self) -> watch::Receiver<Schedule> {
        self.schedule.subscribe()
    }

    pub(crate) fn interval(&self) -> Duration {
        self.schedule.borrow().interval()
    }

    pub(crate) fn set_fin_reason(&self, reason: v1::FinReason) {
        self.fin_reason.store(reason.into(), Ordering::SeqCst);
    }

    fn fin_reason(&self) -> v1::FinReason {
        v1::FinReason::try_from(self.fin_reason.load(Ordering::SeqCst)).unwrap_or_default()
    }
}

/// How the link stands, for people.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Since when a session is established.
    pub(crate) connected_since: Option<Instant>,
    /// When the next attempt is due.
    pub(crate) retry_at: Option<Instant>,
    /// Why there is none, and what to try.
    pub(crate) fault: Option<(String, &'static str)>,
    pub(crate) last_ack: Option<Instant>,
    pub(crate) sent_bytes: u64,
    pub(crate) sessions: u64,
    pub(crate) epoch: u64,
    /// What the aggregator's time was ahead of ours at the last correction, milliseconds.
    pub(crate) clock_correction_ms: i64,
    pub(crate) certificate_expires: Option<Timestamp>,
}

/// The link's task.
pub(crate) struct Uplink {
    common: Arc<Common>,
    connector: Box<dyn Connector>,
    memory: Box<dyn Memory>,
    backoff: Backoff,
    renewing: Renewing,
    random: fastrand::Rng,
    last_cause: Option<String>,
    repeats: u64,
    /// Sessions in a row that ended with a Throttle before anything was acknowledged.
    throttled: u32,
}

impl Uplink {
    pub(crate) fn new(
        common: Arc<Common>,
        connector: Box<dyn Connector>,
        memory: Box<dyn Memory>,
        seed: u64,
    ) -> Self {
        *common.servers() = Servers::new(connector.servers(), memory.servers());
        if let Some(ear) = connector.ear() {
            // There is one connector.
            let _ = common.ear.set(ear);
        }
        Self {
            common,
            connector,
            memory,
            random: fastrand::Rng::with_seed(seed ^ HOME_SEED),
            backoff: Backoff::new(seed),
            renewing: Renewing::new(seed ^ RENEWAL_SEED),
            last_cause: None,
            repeats: 0,
            throttled: 0,
        }
    }

    /// Runs until `stop`, then says goodbye if there is a session.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let (end, worked) = self.attempt(&stop).await;
            self.common.link().connected_since = None;
            self.throttled = match end {
                End::Throttled(_) if !worked => self.throttled.saturating_add(1),
                _ => 0,
            };
            let ended = match end {
                End::Stopped => return,
                End::Drained(spread) => Ended::Drained(spread),
                End::Throttled(after) => {
                    tracing::info!(after_ms = after.as_millis(), "aggregator is busy");
                    self.throttled_away(after)
                }
                End::Fault(fault) => {
                    self.report(&fault);
                    if refuses_certificate(&fault)
                        && let Some(slots) = self.memory.slots()
                    {
                        slots.refused();
                    }
                    match fault.ended(worked) {
                        // Another server may take us at once.
                        Ended::Failed | Ended::Unreached | Ended::Refused
                            if !self.common.servers().failed() =>
                        {
                            Ended::Lost
                        }
                        ended => ended,
                    }
                }
            };
            let wait = self.backoff.after(ended);
            tracing::debug!(wait_ms = wait.as_millis(), "next connection");
            let retry_at = Instant::now() + wait;
            self.common.link().retry_at = Some(retry_at);
            tokio::select! {
                () = time::sleep_until(retry_at) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// An aggregator that takes nothing, time after time, is of no use, whatever it says (its disk may be full): another
    /// server may take us. With one server only its word counts.
    fn throttled_away(&mut self, after: Duration) -> Ended {
        if self.throttled < MAX_THROTTLED {
            return Ended::Throttled(after);
        }
        self.throttled = 0;
        let from = self.common.server();
        if self.common.servers().failed() {
            return Ended::Throttled(after);
        }
        tracing::warn!(
            address = from,
            next = self.common.server(),
            "the aggregator has taken nothing for {MAX_THROTTLED} connections; trying the next server"
        );
        Ended::Lost
    }

    /// One connection and its session; true if it came to acknowledgements.
    async fn attempt(&mut self, stop: &CancellationToken) -> (End, bool) {
        self.common.link().certificate_expires = self.memory.certificate_expires();
        let server = self.common.server();
        let connected = tokio::select! {
            connected = connect(&*self.connector, &server) => connected,
            () = stop.cancelled() => return (End::Stopped, false),
        };
        let (channel, witness) = match connected {
            Ok(connected) => connected,
            Err(fault) => return (fault.into(), false),
        };
        let session = match self.memory.next_session() {
            Ok(session) => session,
            Err(fault) => return (fault.into(), false),
        };
        let (outbound, queue) = mpsc::channel(session::QUEUE);
        let hello = session::hello(&self.common, session, &*self.memory);
        if outbound.try_send(hello).is_err() {
            return (Fault::Closed.into(), false);
        }
        let asked = Instant::now();
        let opened = tokio::select! {
            opened = session::open(channel.clone(), queue) => opened,
            () = stop.cancelled() => return (End::Stopped, false),
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(OpenError::End(end)) => return (self.renew_expired(end, channel).await, false),
            Err(OpenError::Status(status)) => {
                return (Fault::from_status(&status, witness.take()).into(), false);
            }
        };
        if let Err(fault) = session::check(&opened.welcome) {
            return (fault.into(), false);
        }
        self.welcomed(&opened.welcome, asked.elapsed());
        let server = Timestamp::from_millis(opened.welcome.server_wall_ms);
        let server = (server, Instant::now());
        let common = Arc::clone(&self.common);
        let fleet_hint = opened.welcome.fleet_hint;
        let mut session = Session::new(&common, outbound, opened);
        let leave = CancellationToken::new();
        let is_home = common.servers().is_home(Instant::now());
        let wait = HOME_FROM + Duration::from_millis(self.random.u64(0..=HOME_SPREAD_MS));
        let outcome = tokio::select! {
            outcome = session.run(stop, &leave) => outcome,
            never = self.renewing.tend(&mut *self.memory, channel, server, is_home, &leave) => match never {},
            never = go_home(&common, &*self.connector, wait, &leave) => match never {},
        };
        let worked = session.worked();
        if worked {
            self.backoff.succeeded(fleet_hint);
            common.servers().worked();
        }
        match outcome {
            Ok(end) => (end, worked),
            Err(_) if stop.is_cancelled() => (End::Stopped, worked),
            Err(status) => (Fault::from_status(&status, witness.take()).into(), worked),
        }
    }

    /// An expired certificate is good for one thing: to renew it.
    async fn renew_expired(&mut self, end: End, channel: Channel) -> End {
        if !matches!(end, End::Fault(Fault::Denied(v1::DenyReason::Expired))) {
            return end;
        }
        let Some(slots) = self.memory.slots() else {
            return end;
        };
        tracing::warn!("the aggregator says that this host's certificate has expired; renewing it");
        if self.renewing.renew(slots, channel).await {
            return End::Drained(SWITCH_SPREAD);
        }
        end
    }

    fn welcomed(&mut self, welcome: &v1::Welcome, round_trip: Duration) {
        if let Some(slots) = self.memory.slots() {
            slots.accepted();
        }
        if let Err(error) = self.memory.welcomed(welcome) {
            // The aggregator accepts the value before the last, so one lost write is harmless.
            tracing::warn!(%error, "cannot keep on disk what the aggregator's welcome gave");
        }
        let list = welcome.servers.as_ref();
        if list.is_some_and(|list| self.common.servers().announce(list)) {
            let announced = self.common.servers().announced().to_vec();
            tracing::info!(
                servers = announced.len(),
                "the aggregator announces servers"
            );
            if let Err(error) = self.memory.keep_servers(&announced) {
                // They come again with the next Welcome.
                tracing::warn!(%error, "the announced servers are not kept on disk");
            }
        }
        self.correct_clock(welcome, round_trip);
        let (wished, mut bounded) = (self.common.wished_interval, false);
        self.common.schedule.send_if_modified(|schedule| {
            bounded = schedule.bound(wished, welcome.min_interval_ms, welcome.max_interval_ms);
            bounded
        });
        if bounded {
            let interval = self.common.interval();
            tracing::info!(
                interval_ms = interval.as_millis(),
                "interval set by the aggregator's bounds"
            );
        }
        let mut link = self.common.link();
        link.connected_since = Some(Instant::now());
        link.retry_at = None;
        link.fault = None;
        link.sessions += 1;
        link.epoch = link.epoch.max(welcome.epoch);
        drop(link);
        tracing::info!(
            address = self.common.server(),
            after_failures = self.repeats,
            "connected to the aggregator"
        );
        self.last_cause = None;
        self.repeats = 0;
    }

    fn correct_clock(&self, welcome: &v1::Welcome, round_trip: Duration) {
        let server = Timestamp::from_millis(welcome.server_wall_ms).plus(round_trip / 2);
        let boottime_ms = self.common.clock.boottime_ms();
        let mut moved = None;
        self.common.schedule.send_if_modified(|schedule| {
            moved = schedule.correct(server, boottime_ms, round_trip / 2);
            moved.is_some()
        });
        if let Some(by_ms) = moved {
            self.common.link().clock_correction_ms = by_ms;
            tracing::info!(by_ms, "ticks follow the aggregator's clock from now on");
        }
    }

    /// Logs a fault once for each change of cause.
    fn report(&mut self, fault: &Fault) {
        let cause = fault.cause();
        let hint = fault.hint();
        self.common.link().fault = Some((cause.clone(), hint));
        if self.last_cause.as_ref() == Some(&cause) {
            self.repeats += 1;
            tracing::debug!(cause, repeats = self.repeats, "no link to the aggregator");
            return;
        }
        tracing::warn!(
            address = self.common.server(),
            cause,
            hint,
            repeats_of_last = self.repeats,
            "no link to the aggregator"
        );
        self.last_cause = Some(cause);
        self.repeats = 0;
    }
}

/// At another server than the first, looks now and then whether that is back; it is when TLS stands, with a certificate
/// of the fleet's authority. Then the session is asked to leave, with everything under way acknowledged.
async fn go_home(
    common: &Common,
    connector: &dyn Connector,
    wait: Duration,
    leave: &CancellationToken,
) -> Infallible {
    loop {
        time::sleep(wait).await;
        let home = {
            let (servers, now) = (common.servers(), Instant::now());
            (!servers.is_home(now)).then(|| servers.home(now).to_owned())
        };
        let Some(home) = home else { continue };
        match time::timeout(CONNECT_TIMEOUT, connector.connect_to(&home)).await {
            Ok(Ok(_)) => {
                tracing::info!(address = home, "the first server is back");
                common.servers().go_home(Instant::now());
                leave.cancel();
                std::future::pending::<()>().await;
            }
            Ok(Err(fault)) => {
                tracing::debug!(
                    address = home,
                    cause = fault.cause(),
                    "the first server is away"
                );
            }
            Err(_) => tracing::debug!(address = home, "the first server does not answer"),
        }
    }
}

/// A connection with HTTP/2 on it, and the witness of its end.
async fn connect(connector: &dyn Connector, server: &str) -> Result<(Channel, Witness), Fault> {
    let stream = time::timeout(CONNECT_TIMEOUT, connector.connect_to(server))
        .await
        .map_err(|_| Fault::ConnectTimeout(CONNECT_TIMEOUT))??;
    let (stream, witness) = Watched::new(stream);
    let mut once = Some(TokioIo::new(stream));
    let hand_over = tower::service_fn(move |_: http::Uri| {
        // A channel that wants a second connection has lost the first: that is for the loop above.
        let stream = once.take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // The name stands in :authority only; who the peer is was settled by TLS.
    let channel = Endpoint::from_static("http://aggregator")
        .buffer_size(1)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(hand_over)
        .await
        .map_err(|_| witness.take().unwrap_or(Fault::Closed))?;
    Ok((channel, witness))
}
