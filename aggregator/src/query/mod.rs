//! What operators ask: the service behind the `muster` command line.
//!
//! [`access`] decides who may ask what, `ask` reads what a question says, [`rows`] turns a host into messages, `glance` sums them up,
//! [`order`] sorts them, and
//! [`service`], [`identity`], [`paging`], [`past`] and the others answer. Everything is read from the fleet's shards and from the control store; nothing here
//! changes a host. Every list is ordered and says whether it is complete and as of when.

pub mod access;
mod ask;
pub mod checks;
pub mod events;
mod glance;
pub mod history;
pub mod identity;
pub mod order;
pub mod paging;
pub mod past;
pub mod replay;
mod rotation;
pub mod rows;
pub mod service;

#[cfg(test)]
mod tests;

pub use checks::ChecksService;
pub use events::EventsService;
pub use history::HistoryService;
pub use identity::{IdentityParts, IdentityService};
pub use paging::PagingService;
pub use past::PastService;
pub use replay::ReplayService;
pub use service::{About, HttpDoor, OperatorService};
