//! Gathers what a Linux host can tell and streams it to a Muster aggregator.

pub mod buffer;
pub mod sampler;
