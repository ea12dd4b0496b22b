//! What a detector sees and says. Stand-in until the detection branch lands.

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fleet::{FilesystemPoint, Liveness, Signals, Unit};

/// One host at one tick.
#[derive(Debug)]
pub struct Observation<'a> {
    /// Host's own time.
    pub tick: Timestamp,
    /// False: held back, to be judged in its own time.
    pub live: bool,
    /// See [`crate::fleet::SIGNALS`].
    pub signals: &'a Signals,
    /// Filesystems.
    pub filesystems: &'a [FilesystemPoint],
    /// Whether filesystems were reported.
    pub filesystems_known: bool,
    /// Units.
    pub units: &'a [Unit],
    /// Whether a service manager was reported.
    pub units_known: bool,
}

/// What detectors remember of a host.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HostDetection {}

/// What detectors conclude.
#[derive(Debug)]
pub struct Transition {}

/// The detectors.
#[derive(Debug, Default)]
pub struct Engine {}

impl Engine {
    /// Takes one tick of one host.
    pub fn step(&self, _: &mut HostDetection, _: &Observation<'_>, _: &mut Vec<Transition>) {}

    /// Takes how a host stands.
    pub fn liveness(
        &self,
        _: &mut HostDetection,
        _: Timestamp,
        _: Liveness,
        _: &mut Vec<Transition>,
    ) {
    }
}
