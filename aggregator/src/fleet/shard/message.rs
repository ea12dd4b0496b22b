//! What a shard can be told, and the ends of what it says.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use muster_proto::{
    id::{HostId, Incarnation},
    v1,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{
        ReadContext,
        host::{CheckpointedHost, Enrolled, FrameIn, HostState, Session},
        silence::{Ended, Refused},
    },
    journal::Stored,
};

/// Where the messages to one agent's stream go. Boxed: a channel holds room for 32 of them, and there is one for each
/// host.
pub type ToAgent = mpsc::Sender<Box<v1::AggregatorMessage>>;

/// Bytes of an agent's credit that are in use, until this is dropped.
pub type Credit = Option<OwnedSemaphorePermit>;

/// A connection of an agent, numbered by the process.
pub type Connection = u64;

/// Reads one host or all of a shard.
pub type Reader = Box<dyn FnOnce(&HashMap<HostId, HostState>, &ReadContext) + Send>;

/// What a shard can be told.
pub enum Message {
    /// A host was enrolled, or its record changed.
    Upsert(Box<Enrolled>),
    /// A host was removed by an operator.
    Forget(HostId),
    /// A host's certificates of before are refused from now on: a stream it has is closed.
    Cut(HostId),
    /// An agent says Hello.
    Attach {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// Where it comes from.
        address: IpAddr,
        /// What it says.
        session: Session,
        /// Incarnations of which it still holds frames.
        holds: Vec<Incarnation>,
        /// Where to answer.
        to_agent: ToAgent,
        /// Cancelled when the shard lets go of the stream.
        close: CancellationToken,
        /// What the Welcome says beside what is here: it is sent by the shard, before anything else.
        welcome: Box<v1::Welcome>,
        /// Whether the agent was let in, or why not.
        reply: oneshot::Sender<Result<(), v1::DenyReason>>,
    },
    /// A frame of an attached agent.
    Frame {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// What it sent.
        frame: FrameIn,
        /// Its share of the agent's credit, given back when the frame is on disk or refused.
        credit: Credit,
    },
    /// Frames that will never come.
    Gap {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// Which.
        gap: v1::Gap,
    },
    /// A goodbye.
    Fin {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// What it says.
        fin: v1::Fin,
    },
    /// The stream has ended.
    Detach {
        /// Whose certificate it is.
        host: HostId,
        /// The stream.
        connection: Connection,
        /// How.
        ended: Ended,
    },
    /// Someone who presented a host's identity was not let in.
    Refused {
        /// The host.
        host: HostId,
        /// Why not.
        why: Refused,
    },
    /// Frames are on disk.
    Stored(Vec<Stored>),
    /// Frames did not get to the disk.
    NotStored(Vec<Stored>),
    /// Someone asks.
    Read(Reader),
    /// The state of these hosts is to be carried over a restart.
    Checkpoint(Vec<HostId>, oneshot::Sender<Vec<CheckpointedHost>>),
    /// The aggregator stops: all agents are asked to leave, each within the spread, and those that come back are
    /// sent away again.
    Drain(Duration),
    /// All agents are asked to connect anew, each within the spread: something new is to be told.
    Nudge(Duration),
}
