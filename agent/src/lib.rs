//! The agent: gathers what a Linux host can tell and streams it to an aggregator.

pub mod collect;
pub mod host;
pub mod sample;
