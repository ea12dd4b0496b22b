//! One stream: Hello and Welcome, then frames and gaps up and acknowledgements down, until an end.
//!
//! Frames of the live chain go in the order of their numbers, because payloads build on one another; one that
//! is older than one interval when it is sent is marked as late, so that the aggregator does not take it for
//! news. A longer backlog goes beside it, see [`super::aside`]. What was sent and is not yet durable never
//! exceeds the aggregator's credit.

use std::{collections::VecDeque, time::Duration};

use crate::spool::SpoolHandle;
use muster_proto::{
    id::Incarnation,
    limits,
    time::{Timestamp, duration_millis},
    tls::EARLIEST_CREDIBLE,
    v1::{self, agent_message::Message as Up, aggregator_message::Message as Down},
    words,
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{Common, Memory, aside::Aside, fault::Fault, quiet::Ear};

/// From the open stream to Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Least patience for an acknowledgement; three intervals if those are longer.
const MIN_PROGRESS: Duration = Duration::from_secs(15);
/// After the stop signal: time for the last frames and their acknowledgements.
const GOODBYE: Duration = Duration::from_secs(2);
/// Beyond that: for the messages that name what could not be sent.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Messages between this task and the HTTP/2 connection. Few: what waits here counts as sent.
pub(super) const QUEUE: usize = 4;
/// From the time of the build: for so long an aggregator's time is believed.
const CREDIBLE_FOR: Duration = Duration::from_secs(50 * 365 * 86_400);
/// With rounds as often as this the acknowledgement of one may wait for the next.
const OFTEN: Duration = Duration::from_millis(1_500);
/// Refusals of frames that are logged one by one in a session.
const LOGGED_REJECTIONS: u64 = 5;

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Fin was said.
    Stopped,
    /// It broke, or the aggregator refused us.
    Fault(Fault),
    /// The aggregator stops; come back within this.
    Drained(Duration),
    /// The aggregator is busy; come back after this.
    Throttled(Duration),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What Hello and Welcome settled.
pub(super) struct Opened {
    pub(super) welcome: v1::Welcome,
    pub(super) inbound: Streaming<v1::AggregatorMessage>,
}

/// Makes the Hello of a new session.
pub(super) fn hello(common: &Common, session: u64, memory: &dyn Memory) -> v1::AgentMessage {
    let buffer = common.buffer();
    // Named also when nothing is held, so that the aggregator says where its decoder stands.
    let mut spool = match buffer.last_seq() {
        0 => Vec::new(),
        _ => vec![buffer.spool_range()],
    };
    spool.extend(common.spool().into_iter().flat_map(SpoolHandle::ranges));
    message(Up::Hello(v1::Hello {
        protocol: limits::PROTOCOL_VERSION,
        incarnation: buffer.incarnation().0,
        session,
        boot_id: common.boot_id.to_vec(),
        wall_ms: common.clock.now().as_millis(),
        boottime_ms: common.clock.boottime_ms(),
        spool,
        bundle_version: memory.bundle_version(),
        ratchet: memory.ratchet(),
        epoch: common.link().epoch,
        facts: Some(common.facts.clone()),
        interval_ms: u32::try_from(common.interval().as_millis()).unwrap_or(u32::MAX),
    }))
}

/// Opens the stream and waits for Welcome. Hello is already in `outbound`.
pub(super) async fn open(
    channel: tonic::transport::Channel,
    outbound: mpsc::Receiver<v1::AgentMessage>,
) -> Result<Opened, OpenError> {
    let mut client = v1::uplink_client::UplinkClient::new(channel)
        .max_decoding_message_size(limits::MAX_DOWNLINK_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_UPLINK_MESSAGE_BYTES);
    let greeting = async {
        let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
        let mut inbound = client
            .session(outbound)
            .await
            .map_err(OpenError::Status)?
            .into_inner();
        match inbound.message().await.map_err(OpenError::Status)? {
            None => Err(OpenError::End(Fault::Closed.into())),
            Some(v1::AggregatorMessage { message }) => match message {
                Some(Down::Welcome(welcome)) => Ok(Opened { welcome, inbound }),
                Some(Down::Deny(deny)) => Err(OpenError::End(Fault::denied(&deny).into())),
                Some(Down::Throttle(throttle)) => Err(OpenError::End(throttled(throttle))),
                Some(Down::Drain(drain)) => Err(OpenError::End(drained(drain))),
                Some(Down::Ack(_) | Down::Redirect(_) | Down::Recall(_)) | None => Err(
                    OpenError::End(Fault::Protocol("its first message is no welcome").into()),
                ),
            },
        }
    };
    match time::timeout(WELCOME_TIMEOUT, greeting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(OpenError::End(
            Fault::WelcomeTimeout(WELCOME_TIMEOUT).into(),
        )),
    }
}

/// What no aggregator says, however far it or we are behind the times.
pub(super) fn check(welcome: &v1::Welcome) -> Result<(), Fault> {
    let latest = EARLIEST_CREDIBLE.plus(CREDIBLE_FOR);
    let server = Timestamp::from_millis(welcome.server_wall_ms);
    if !(EARLIEST_CREDIBLE..=latest).contains(&server) {
        return Err(Fault::Protocol("its clock shows an impossible date"));
    }
    let too_many = |have: &v1::Have| have.durable.len() > limits::MAX_ACK_RANGES;
    if welcome.have.iter().any(too_many) {
        return Err(Fault::Protocol("too many ranges in its welcome"));
    }
    Ok(())
}

/// Why there was no Welcome.
pub(super) enum OpenError {
    /// gRPC failed: the caller knows what the connection below saw.
    Status(tonic::Status),
    /// An end that is clear by itself.
    End(End),
}

fn throttled(throttle: v1::Throttle) -> End {
    End::Throttled(Duration::from_millis(throttle.retry_after_ms.into()))
}

fn drained(drain: v1::Drain) -> End {
    End::Drained(Duration::from_millis(drain.spread_ms.into()))
}

fn message(message: Up) -> v1::AgentMessage {
    v1::AgentMessage {
        message: Some(message),
    }
}

/// A frame on its way.
struct Sent {
    seq: u64,
    bytes: u64,
    /// It was durable before and is only sent for the frames that build on it: done when received.
    again: bool,
}

/// Why the session is coming to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// The agent stops: what is held is sent, then Fin.
    Stopping,
    /// The aggregator stops: nothing new is sent, acknowledgements are still read.
    Draining(Duration),
    /// A new connection is wanted here: as when draining.
    Switching,
}

/// A session after Welcome.
pub(super) struct Session<'a> {
    common: &'a Common,
    /// `None` once nothing more is sent.
    outbound: Option<mpsc::Sender<v1::AgentMessage>>,
    inbound: Streaming<v1::AggregatorMessage>,
    credit_bytes: u64,
    /// Number of the next frame to send.
    cursor: u64,
    in_flight: VecDeque<Sent>,
    in_flight_bytes: u64,
    aside: Aside,
    /// Since when frames are outstanding without an acknowledgement.
    waiting_since: Instant,
    /// Something was not answered in its time: until it is, the connection does not doze.
    must_listen: bool,
    last_sent: Instant,
    heartbeat: Option<Duration>,
    leaving: Option<(Leaving, Instant)>,
    fin_sent: bool,
    rejections: u64,
    acknowledged: bool,
    /// Number of the first frame that is made in this session, by the clock that its Welcome gave.
    first_own: u64,
    /// Earlier incarnations whose end was told, each with the number of the first new frame after that: once that
    /// frame is durable, so is the end.
    ends: Vec<(Incarnation, Option<u64>)>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        common: &'a Common,
        outbound: mpsc::Sender<v1::AgentMessage>,
        opened: Opened,
    ) -> Self {
        let Opened { welcome, inbound } = opened;
        if let Some(spool) = common.spool() {
            for have in &welcome.have {
                let durable = have.durable.iter();
                let durable = durable.map(|range| (range.first, range.last)).collect();
                spool.settle(Incarnation(have.incarnation), durable);
            }
            let named = welcome.have.iter();
            spool.rewind(named.map(|have| Incarnation(have.incarnation)).collect());
        }
        let plan = {
            let mut buffer = common.buffer();
            let own = buffer.incarnation().0;
            let have = welcome.have.iter().find(|have| have.incarnation == own);
            for range in have.iter().flat_map(|have| &have.durable) {
                buffer.release(range.first, range.last);
            }
            buffer.plan(have.map_or(0, |have| have.decoded_to))
        };
        let mut aside = Aside::new(plan);
        if common.spool().is_none() {
            aside.without_disk();
        }
        let now = Instant::now();
        Self {
            common,
            outbound: Some(outbound),
            inbound,
            credit_bytes: welcome.credit_bytes,
            cursor: plan.live_from,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            aside,
            waiting_since: now,
            must_listen: false,
            last_sent: now,
            heartbeat: match welcome.heartbeat_ms {
                0 => None,
                ms => Some(Duration::from_millis(ms.into()).max(limits::MIN_INTERVAL)),
            },
            leaving: None,
            fin_sent: false,
            rejections: 0,
            acknowledged: false,
            first_own: common.buffer().last_seq() + 1,
            ends: Vec::new(),
        }
    }

    /// Whether the aggregator has acknowledged anything in this session.
    pub(super) fn worked(&self) -> bool {
        self.acknowledged
    }

    /// Runs until an end; `leave` asks for one, with everything under way acknowledged first. `Err` is gRPC's word for it; the caller knows what the connection saw.
    pub(super) async fn run(
        &mut self,
        stop: &CancellationToken,
        leave: &CancellationToken,
    ) -> Result<End, tonic::Status> {
        loop {
            if self.is_finished() {
                self.outbound = None;
            }
            if let Some(spool) = self.common.spool().filter(|_| self.leaving.is_none()) {
                self.aside.ask(spool, &self.common.buffer());
            }
            let outbound = self.outbound.clone();
            let may_send = outbound.is_some() && self.has_more();
            if let Some(ear) = self.common.ear() {
                ear.doze(!may_send && self.may_doze());
            }
            let stopping = matches!(self.leaving, Some((Leaving::Stopping, _)));
            let patience = self.patience();
            let waiting = !self.in_flight.is_empty() || self.aside.is_in_flight();
            let progress = waiting.then(|| self.waiting_since + patience);
            let beat = self.heartbeat.filter(|_| outbound.is_some() && !may_send);
            let beat = beat.map(|beat| self.last_sent + beat);
            let until = self.leaving.map(|(_, until)| until);
            tokio::select! {
                biased;
                answer = self.inbound.message() => match answer? {
                    Some(v1::AggregatorMessage { message }) => {
                        if let Some(end) = message.and_then(|message| self.receive(message)) {
                            return Ok(end);
                        }
                    }
                    None => return Ok(self.closed()),
                },
                () = stop.cancelled(), if !stopping => {
                    self.leaving = Some((Leaving::Stopping, Instant::now() + GOODBYE));
                }
                () = leave.cancelled(), if self.leaving.is_none() => {
                    self.leaving = Some((Leaving::Switching, Instant::now() + GOODBYE));
                }
                permit = reserve(outbound.as_ref()), if may_send => match permit {
                    Some(permit) => self.send(permit),
                    // The connection task is gone; the stream above says why.
                    None => self.outbound = None,
                },
                batch = self.aside.answer() => self.aside.take(batch, &self.common.buffer()),
                () = self.common.appended.notified(), if self.leaving.is_none() => {}
                () = sleep_until(progress) => match self.common.ear().is_some_and(Ear::dozes) {
                    // Whoever stood still for so long has not looked: the answer may lie there unread.
                    true => {
                        self.waiting_since = Instant::now();
                        self.must_listen = true;
                    }
                    false => return Ok(Fault::NoProgress(patience).into()),
                },
                () = sleep_until(beat) => self.beat(),
                () = sleep_until(until) => match self.leaving {
                    Some((Leaving::Stopping, _)) if !self.fin_sent => self.last_words(),
                    _ => return Ok(self.closed()),
                },
            }
        }
    }

    /// The stream is over, by its end or by the deadline of leaving.
    fn closed(&mut self) -> End {
        match self.leaving {
            Some((Leaving::Draining(spread), _)) => End::Drained(spread),
            Some((Leaving::Switching, _)) => End::Drained(super::SWITCH_SPREAD),
            Some((Leaving::Stopping, _)) => End::Stopped,
            None => Fault::Closed.into(),
        }
    }

    /// At the end of the time for a goodbye: names what was not sent, unless it is on disk for the next
    /// incarnation to send, and says Fin, if there is room. Without room the aggregator learns of the loss by the
    /// numbers that are missing when the next incarnation comes.
    fn last_words(&mut self) {
        self.leaving = Some((Leaving::Stopping, Instant::now() + LAST_WORDS));
        self.fin_sent = true;
        let Some(outbound) = self.outbound.take() else {
            return;
        };
        let buffer = self.common.buffer();
        let last = buffer.last_seq();
        let beside = self.aside.unsent(&buffer);
        let live = (self.cursor <= last).then_some((self.cursor, last));
        let unsent = beside.into_iter().chain(live);
        for (first, last) in unsent.flat_map(|(first, last)| buffer.only_in_memory(first, last)) {
            let gap = v1::Gap {
                incarnation: buffer.incarnation().0,
                first,
                last,
                reason: v1::GapReason::Unspecified.into(),
                samples: buffer.samples(first, last),
            };
            if outbound.try_send(message(Up::Gap(gap))).is_err() {
                return;
            }
        }
        drop(buffer);
        let _ = outbound.try_send(self.fin());
    }

    fn fin(&self) -> v1::AgentMessage {
        let buffer = self.common.buffer();
        message(Up::Fin(v1::Fin {
            incarnation: buffer.incarnation().0,
            last_seq: buffer.last_seq(),
            reason: self.common.fin_reason().into(),
            complete: false,
        }))
    }

    /// Whether nothing is left to be sent for good.
    fn is_finished(&self) -> bool {
        match self.leaving {
            Some((Leaving::Stopping, _)) => self.fin_sent && self.in_flight.is_empty(),
            Some((Leaving::Draining(_) | Leaving::Switching, _)) => self.in_flight.is_empty(),
            None => false,
        }
    }

    /// Whether nothing is expected that could not wait for the next round.
    fn may_doze(&self) -> bool {
        self.leaving.is_none()
            && self.acknowledged
            && !self.must_listen
            && self.in_flight.len() <= 1
            && !self.aside.is_in_flight()
            && self.common.interval() <= OFTEN
    }

    fn has_more(&self) -> bool {
        match self.leaving {
            Some((Leaving::Draining(_) | Leaving::Switching, _)) => false,
            Some((Leaving::Stopping, _)) if self.fin_sent => false,
            leaving => {
                let buffer = self.common.buffer();
                buffer.has_gap()
                    || match buffer.from(self.cursor) {
                        Some(frame) => self.has_credit(frame.payload_bytes()),
                        None if self.sends_aside() && self.aside.has_next(&buffer) => {
                            let (credit, used) = (self.credit_bytes, self.in_flight_bytes);
                            self.aside.may_send(&buffer, credit, used)
                        }
                        None => leaving.is_some(),
                    }
            }
        }
    }

    /// At the end there is no time for a backlog that will be there after the next start.
    fn sends_aside(&self) -> bool {
        self.leaving.is_none() || self.common.spool().is_none()
    }

    /// A frame larger than the whole credit goes alone, else it would never go.
    fn has_credit(&self, bytes: u64) -> bool {
        let used = self.in_flight_bytes + self.aside.in_flight_bytes();
        let after = used.saturating_add(bytes);
        after <= self.credit_bytes || (self.in_flight.is_empty() && self.credit_bytes > 0)
    }

    /// Sends the next gap, frame or Fin. `has_more` has just said that there is one.
    fn send(&mut self, permit: mpsc::OwnedPermit<v1::AgentMessage>) {
        let now = Instant::now();
        let next = self.next_message(now);
        let fin = next.is_none();
        let next = next.unwrap_or_else(|| self.fin());
        self.fin_sent |= fin;
        self.last_sent = now;
        self.common.link().sent_bytes += prost_len(&next);
        permit.send(next);
    }

    fn next_message(&mut self, now: Instant) -> Option<v1::AgentMessage> {
        let mut buffer = self.common.buffer();
        if let Some(gap) = buffer.next_gap() {
            return Some(message(Up::Gap(gap)));
        }
        let incarnation = buffer.incarnation();
        if self.in_flight.is_empty() && !self.aside.is_in_flight() {
            self.waiting_since = now;
        }
        let Some(frame) = buffer.from(self.cursor) else {
            let next = self.sends_aside().then(|| self.aside.next(&mut buffer));
            let next = next.flatten();
            if let Some(Up::Fin(fin)) = &next {
                self.ends.push((Incarnation(fin.incarnation), None));
            }
            return next.map(message);
        };
        let (seq, bytes, again) = (frame.seq(), frame.payload_bytes(), frame.is_durable());
        let wire = frame.to_wire(incarnation, self.lane(frame.tick()));
        buffer.mark_sent(seq);
        drop(buffer);
        if seq >= self.first_own {
            for (_, after) in &mut self.ends {
                after.get_or_insert(seq);
            }
        }
        self.cursor = seq + 1;
        self.in_flight.push_back(Sent { seq, bytes, again });
        self.in_flight_bytes += bytes;
        Some(message(Up::Frame(wire)))
    }

    /// Ends that were told before a frame that is durable are noted for good: the aggregator has one log.
    fn confirm_ends(&mut self, durable: &[v1::Range]) {
        let holds = |seq: u64| {
            durable
                .iter()
                .any(|range| (range.first..=range.last).contains(&seq))
        };
        let common = self.common;
        self.ends.retain(|&(incarnation, after)| {
            let noted = after.is_some_and(holds);
            if let Some(spool) = common.spool().filter(|_| noted) {
                spool.confirm(incarnation);
            }
            !noted
        });
    }

    fn lane(&self, tick: Timestamp) -> v1::Lane {
        let schedule = self.common.schedule();
        let age = schedule
            .at(self.common.clock.boottime_ms())
            .millis_since(tick);
        if age > duration_millis(schedule.interval()) {
            v1::Lane::Late
        } else {
            v1::Lane::Live
        }
    }

    fn patience(&self) -> Duration {
        MIN_PROGRESS.max(self.common.interval() * 3)
    }

    /// Says that the agent is alive, with an empty message.
    fn beat(&mut self) {
        self.last_sent = Instant::now();
        if let Some(outbound) = &self.outbound {
            // No room means that something else is on its way.
            let _ = outbound.try_send(v1::AgentMessage { message: None });
        }
    }

    fn receive(&mut self, message: Down) -> Option<End> {
        match message {
            Down::Ack(ack) if ack.durable.len() > limits::MAX_ACK_RANGES => {
                Some(Fault::Protocol("too many ranges in an acknowledgement").into())
            }
            Down::Ack(ack) => self.acknowledge(&ack),
            Down::Throttle(throttle) => Some(throttled(throttle)),
            Down::Deny(deny) => Some(Fault::denied(&deny).into()),
            Down::Drain(drain) => {
                let spread = Duration::from_millis(drain.spread_ms.into());
                if self.leaving.is_none() {
                    tracing::info!(spread_ms = drain.spread_ms, "aggregator is stopping");
                    self.leaving = Some((Leaving::Draining(spread), Instant::now() + GOODBYE));
                }
                None
            }
            Down::Redirect(redirect) => {
                self.redirect(&redirect.server_id);
                None
            }
            Down::Recall(recall) => {
                self.common.set_recall(recall);
                None
            }
            Down::Welcome(_) => Some(Fault::Protocol("a second welcome").into()),
        }
    }

    /// Another server is to be used for a while; what is under way is acknowledged first.
    fn redirect(&mut self, server_id: &str) {
        let server = super::fault::harmless(server_id);
        let obeyed = self.common.servers().redirect(server_id, Instant::now());
        match obeyed {
            Ok(()) => {
                tracing::info!(%server, "the aggregator sends this agent to another server");
                if self.leaving.is_none() {
                    self.leaving = Some((Leaving::Switching, Instant::now() + GOODBYE));
                }
            }
            Err(why) => tracing::warn!(%server, %why, "redirect not obeyed"),
        }
    }

    /// Takes over what was decided about frames; an end when they show that the clocks disagree again.
    fn acknowledge(&mut self, ack: &v1::Ack) -> Option<End> {
        self.acknowledged = true;
        self.waiting_since = Instant::now();
        self.must_listen = false;
        self.credit_bytes = ack.credit_bytes;
        let durable = ack.durable.iter().map(|range| (range.first, range.last));
        let rejected = ack
            .rejected
            .iter()
            .map(|rejected| (rejected.seq, rejected.seq));
        let settled: Vec<(u64, u64)> = durable.chain(rejected).collect();
        self.aside.settle(ack.incarnation, &settled);
        if let Some(spool) = self.common.spool() {
            spool.settle(Incarnation(ack.incarnation), settled);
        }
        let mut buffer = self.common.buffer();
        if ack.incarnation != buffer.incarnation().0 {
            drop(buffer);
            self.common.link().last_ack = Some(Instant::now());
            return None;
        }
        let mut future = false;
        for range in &ack.durable {
            buffer.release(range.first, range.last);
        }
        self.confirm_ends(&ack.durable);
        for rejected in &ack.rejected {
            // Older ones bear the time of a clock that this session's Welcome has corrected.
            future |=
                rejected.reason() == v1::RejectReason::Future && rejected.seq >= self.first_own;
            if buffer.reject(rejected.seq, rejected.reason()) {
                self.rejections += 1;
                if self.rejections <= LOGGED_REJECTIONS {
                    tracing::warn!(
                        seq = rejected.seq,
                        reason = words::rejected(rejected.reason()),
                        samples = rejected.samples,
                        "the aggregator refused a frame"
                    );
                }
            }
        }
        let received = ack.received;
        let bytes = &mut self.in_flight_bytes;
        self.in_flight.retain(|sent| {
            let open = buffer.is_open(sent.seq) || (sent.again && sent.seq > received);
            if !open {
                *bytes = bytes.saturating_sub(sent.bytes);
            }
            open
        });
        drop(buffer);
        let mut link = self.common.link();
        link.epoch = link.epoch.max(ack.epoch);
        link.last_ack = Some(Instant::now());
        future.then(|| Fault::Future.into())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(ear) = self.common.ear() {
            ear.doze(false);
        }
        if self.rejections > LOGGED_REJECTIONS {
            tracing::warn!(frames = self.rejections, "frames refused in this session");
        }
    }
}

fn prost_len(message: &v1::AgentMessage) -> u64 {
    prost::Message::encoded_len(message) as u64
}

async fn reserve(
    outbound: Option<&mpsc::Sender<v1::AgentMessage>>,
) -> Option<mpsc::OwnedPermit<v1::AgentMessage>> {
    outbound?.clone().reserve_owned().await.ok()
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
