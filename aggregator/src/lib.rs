//! Aggregator.
