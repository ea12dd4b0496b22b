//! Aggregator.

pub mod pki;
