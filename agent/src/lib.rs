//! Agent.

pub mod enrol;
pub mod identity;
