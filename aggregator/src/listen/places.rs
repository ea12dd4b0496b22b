//! How many connections one peer may have, by who it proved to be.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use muster_proto::spiffe::SpiffeId;

use super::Refused;

/// Connections of one agent: the one it uses, one that takes its place, and two that the network has lost and the
/// keepalive has not yet found out about. More is a broken agent, or two with one identity.
const PER_AGENT: usize = 4;

/// Connections of one operator: a person, their pages and a few scripts.
const PER_OPERATOR: usize = 32;

/// How many connections each peer has.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<SpiffeId, usize>>>);

/// One of them; given back when dropped.
pub(super) struct Place {
    places: Places,
    holder: SpiffeId,
}

impl Places {
    pub(super) fn take_of(&self, id: &SpiffeId) -> Result<Place, Refused> {
        let most = match id {
            SpiffeId::Operator { .. } => PER_OPERATOR,
            SpiffeId::Agent { .. } | SpiffeId::Aggregator { .. } => PER_AGENT,
        };
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = taken.get(id).copied().unwrap_or(0);
        if held >= most {
            return Err(Refused::PeerLimit(id.clone()));
        }
        taken.insert(id.clone(), held + 1);
        Ok(Place {
            places: self.clone(),
            holder: id.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = taken.get_mut(&self.holder) {
            *held -= 1;
            if *held == 0 {
                taken.remove(&self.holder);
            }
        }
    }
}
