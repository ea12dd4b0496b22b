//! Aggregator.

pub mod http;
pub mod selector;
