//! Agent.

mod agent;
pub mod buffer;
pub mod collect;
pub mod config;
pub mod enrol;
pub mod host;
pub mod identity;
mod live;
pub mod sampler;
pub mod settings;
pub mod simulate;
pub mod status;
pub mod telemetry;
pub mod uplink;
