//! Aggregator.

pub mod listen;
pub mod pki;
