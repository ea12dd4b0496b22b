//! The contract of Muster: all that may pass between a host, its aggregator and an operator.
//!
//! Both ends think in the types of this crate: the generated messages in [`v1`], identifiers that are
//! parsed once and valid ever after ([`id`], [`spiffe`], [`token`]), the metric [`catalog`], the encoding
//! of samples ([`codec`]), the segmented [`log`] in which frames are kept, and the [`limits`] of all of
//! them. Nothing here does network input or output.

pub mod catalog;
pub mod codec;
pub mod event;
pub mod exposition;
pub mod id;
pub mod limits;
pub mod log;
pub mod owner;
pub mod ranges;
pub mod series;
pub mod spiffe;
pub mod time;
pub mod tls;
pub mod token;
pub mod words;

/// Messages and services generated from `proto/muster/v1/*.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::all,
    reason = "generated code; the .proto files carry the documentation"
)]
pub mod v1 {
    include!("../gen/muster.v1.rs");
}
