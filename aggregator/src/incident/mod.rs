//! From transitions to incidents: numbered, durable, at most one open for each (host, rule, subject).
//!
//! [`machine`] decides, purely; [`store`] is the seam to the control store; [`task`] carries what shards
//! report to the store, without ever making a shard wait and without forgetting anything while the store
//! cannot be written.
//!
//! [`pages`] gathers incidents into what people are told, with [`enrich`] for what hosts have in common, [`flap`] for
//! what fails again and again, and [`hush`] for silences; [`roster`] is what it knows of hosts. It is pure; who tells
//! people is [`crate::notify`]. [`replay`] runs it again over what is on record.
//!
//! Every operation has an id that is derived from what it says. A report that comes again, from the log
//! after a kill or because an answer was lost, is recognised by the store and changes nothing.

pub mod enrich;
pub mod flap;
pub mod hush;
pub mod machine;
pub mod pages;
pub mod replay;
pub mod roster;
pub mod store;
pub mod task;

pub use task::Incidents;
