//! Agent.

pub mod enrol;
pub mod identity;
pub mod settings;
