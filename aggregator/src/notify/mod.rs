//! Telling people: from incidents to messages, from messages to channels, at least once and each under one key.
//!
//! [`teller`] reads what changed, lets [`crate::incident::pages`] judge, and writes pages and messages in one
//! transaction. [`queue`] has one task for each channel that takes its messages from the store, sends them ([`send`])
//! and notes what became of them; a channel that is dead holds up nobody else. [`heartbeat`] tells somebody outside
//! that this aggregator lives. [`message`] is what is said, in words and as JSON; [`config`] the keys of the
//! configuration file.
//!
//! What was queued survives a kill. A message may come twice (a kill between its delivery and the note of it), then
//! with the same key, by which receivers can tell.

pub mod books;
pub mod config;
pub mod heartbeat;
pub mod http;
pub mod message;
pub mod queue;
pub mod send;
pub mod smtp;
pub mod teller;
#[cfg(test)]
mod testing;

pub use books::Books;
pub use config::{Channel, Heartbeat, Kind, NotifyConfig};
pub use message::Message;
pub use teller::{Told, start};
