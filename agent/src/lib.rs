//! Agent.

pub mod settings;
