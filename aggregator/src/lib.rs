//! Aggregator.

pub mod cli;
pub mod selector;
