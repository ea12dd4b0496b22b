//! Aggregator.

pub mod selector;
