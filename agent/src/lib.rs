//! Gathers what a Linux host can tell and streams it to a Muster aggregator.
//!
//! The straight line: [`sampler`] says when, a [`Source`] tells the values ([`collect`] reads those of a real
//! [`host`]), the codec makes a payload of them, [`buffer`] numbers and keeps it until [`uplink`] has it
//! acknowledged as durable. [`watch`] looks for what changes seldom, [`recorder`] holds every second of ten minutes. [`Agent`] ties these together; the program around it is `main.rs`. Who the host is
//! is [`identity`], made by [`enrol`]. [`simulate`] is a source of made-up hosts for demos and benches.

mod agent;
pub mod buffer;
pub mod capture;
pub mod check;
pub mod collect;
pub mod config;
mod credentials;
pub mod enrol;
pub mod goodbye;
pub mod host;
pub mod identity;
mod live;
pub mod lock;
pub mod machine;
pub mod page;
pub mod recorder;
pub mod renewal;
pub mod sample;
pub mod sampler;
pub mod sandbox;
pub mod settings;
pub mod simulate;
pub mod spool;
pub mod status;
pub mod suggest;
pub mod telemetry;
pub mod uplink;
pub mod watch;

pub use agent::{Agent, AgentConfig, Monitor, Source};
pub use credentials::Credentials;
pub use live::LiveHost;
pub use telemetry::LogHandle;
