//! From transitions to incidents: numbered, durable, at most one open for each (host, rule, subject).
//!
//! [`machine`] decides, purely; [`store`] is the seam to the control store; [`task`] carries what shards
//! report to the store, without ever making a shard wait and without forgetting anything while the store
//! cannot be written. Telling people is not done here.
//!
//! Every operation has an id that is derived from what it says. A report that comes again, from the log
//! after a kill or because an answer was lost, is recognised by the store and changes nothing.

pub mod hush;
pub mod machine;
pub mod roster;
pub mod store;
pub mod task;

pub use task::Incidents;
