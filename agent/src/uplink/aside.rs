//! What goes beside the live chain of a session: the backlog, oldest first.
//!
//! First what earlier incarnations left on disk, then what this one has there, then what is still in memory; and
//! when all of an earlier incarnation is delivered, that nothing more will come of it.
//! It takes at most half of the aggregator's credit, so that a live frame never waits for it.

use std::collections::VecDeque;

use muster_proto::v1;
use tokio::sync::oneshot;

use crate::{
    buffer::{Buffer, Held, Plan},
    spool::{Batch, SpoolHandle},
};

/// The backlog of one session.
pub(super) struct Aside {
    /// What was read from the disk and is not sent yet.
    ready: VecDeque<v1::agent_message::Message>,
    asked: Option<oneshot::Receiver<Batch>>,
    /// The disk has no more, as long as memory begins with this frame.
    disk_done: Option<u64>,
    /// The disk was asked when it was known what it holds.
    disk_known: bool,
    /// Frames in memory: the next one, and where the live chain begins.
    cursor: u64,
    until: u64,
    /// Incarnation, number and bytes of payload.
    in_flight: VecDeque<(u64, u64, u64)>,
    in_flight_bytes: u64,
}

impl Aside {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            ready: VecDeque::new(),
            asked: None,
            disk_done: None,
            disk_known: false,
            cursor: plan.aside_from,
            until: plan.live_from,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// Asks the disk for more, if it may have some and nothing is left to send.
    pub(super) fn ask(&mut self, spool: &SpoolHandle, buffer: &Buffer) {
        let front = buffer.first_in_memory();
        let spilled =
            self.disk_done.is_some_and(|at| at != front) && buffer.first_spilled().is_some();
        // Between a frame in memory and the one that builds on it nothing may come.
        let mid_chain =
            self.disk_done.is_some() && self.in_memory(buffer).is_some_and(|frame| !frame.is_key());
        let more = spilled || !self.disk_known && spool.is_open() || spool.has_due();
        if more && !mid_chain {
            // Memory has given more to the disk, or the disk has only now been read.
            self.disk_done = None;
        }
        if self.ready.is_empty() && self.asked.is_none() && self.disk_done.is_none() {
            self.disk_known = spool.is_open();
            self.asked = Some(spool.next_batch(front));
        }
    }

    /// Waits for the disk's answer; for ever if nothing was asked. Dropping the future loses nothing.
    pub(super) async fn answer(&mut self) -> Batch {
        match &mut self.asked {
            // A spool that is not there has nothing.
            Some(asked) => asked.await.unwrap_or_default(),
            None => std::future::pending().await,
        }
    }

    /// Takes over what the disk gave.
    pub(super) fn take(&mut self, batch: Batch, buffer: &Buffer) {
        self.asked = None;
        if batch.is_empty() {
            self.disk_done = Some(buffer.first_in_memory());
        }
        let incarnation = batch.incarnation;
        let gaps = batch.gaps.into_iter().map(v1::agent_message::Message::Gap);
        let frames = batch.frames.iter();
        let frames =
            frames.map(|frame| v1::agent_message::Message::Frame(frame.to_wire(incarnation)));
        let ends = batch.ends.into_iter().map(v1::agent_message::Message::Fin);
        self.ready.extend(gaps.chain(frames).chain(ends));
    }

    /// Bytes of payload of what is to be sent next; `None` if nothing is at hand.
    fn next_bytes(&self, buffer: &Buffer) -> Option<u64> {
        match self.ready.front() {
            Some(v1::agent_message::Message::Frame(frame)) => Some(frame.payload.len() as u64),
            Some(_) => Some(0),
            // From memory only when the disk, which has what is older, has no more.
            None if self.disk_done.is_none() => None,
            None => Some(self.in_memory(buffer)?.payload_bytes()),
        }
    }

    /// The next frame from memory.
    fn in_memory<'b>(&self, buffer: &'b Buffer) -> Option<&'b Held> {
        buffer
            .from(self.cursor)
            .filter(|frame| frame.seq() < self.until)
    }

    /// Whether the next one may be sent with this credit, of which `live_bytes` are in use.
    pub(super) fn may_send(&self, buffer: &Buffer, credit_bytes: u64, live_bytes: u64) -> bool {
        let Some(bytes) = self.next_bytes(buffer) else {
            return false;
        };
        let after = self.in_flight_bytes.saturating_add(bytes);
        let fits = after <= credit_bytes / 2 && after.saturating_add(live_bytes) <= credit_bytes;
        fits || (self.in_flight.is_empty() && live_bytes == 0 && credit_bytes > 0)
    }

    /// Whether something is at hand, sendable or not.
    pub(super) fn has_next(&self, buffer: &Buffer) -> bool {
        self.next_bytes(buffer).is_some()
    }

    /// The next message, if there is one.
    pub(super) fn next(&mut self, buffer: &mut Buffer) -> Option<v1::agent_message::Message> {
        let message = match self.ready.pop_front() {
            Some(message) => message,
            None => {
                self.disk_done?;
                let frame = self.in_memory(buffer)?;
                let wire = frame.to_wire(buffer.incarnation(), v1::Lane::Backfill);
                self.cursor = wire.seq + 1;
                v1::agent_message::Message::Frame(wire)
            }
        };
        if let v1::agent_message::Message::Frame(frame) = &message {
            if frame.incarnation == buffer.incarnation().0 {
                buffer.mark_sent(frame.seq);
            }
            let bytes = frame.payload.len() as u64;
            self.in_flight
                .push_back((frame.incarnation, frame.seq, bytes));
            self.in_flight_bytes += bytes;
        }
        Some(message)
    }

    /// First and last frame in memory that were not sent.
    pub(super) fn unsent(&self, buffer: &Buffer) -> Option<(u64, u64)> {
        let first = self.in_memory(buffer)?.seq();
        Some((first, self.until - 1))
    }

    /// Without a disk all that is older is in memory.
    pub(super) fn without_disk(&mut self) {
        self.disk_done = Some(0);
    }

    pub(super) fn is_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// These frames need not be waited for any more.
    pub(super) fn settle(&mut self, incarnation: u64, ranges: &[(u64, u64)]) {
        let bytes = &mut self.in_flight_bytes;
        self.in_flight.retain(|&(whose, seq, size)| {
            let settled = whose == incarnation
                && ranges
                    .iter()
                    .any(|&(first, last)| (first..=last).contains(&seq));
            if settled {
                *bytes = bytes.saturating_sub(size);
            }
            !settled
        });
    }
}
