//! Aggregator.

pub mod admin;
pub mod control;
pub mod enrol;
pub mod listen;
pub mod pki;
pub mod setup;
