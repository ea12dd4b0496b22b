//! Connections of each source address that have not proved who they are.
//!
//! So many of one address are heard at a time; a few more may wait for their turn, because a whole site can stand
//! behind one address and comes back at once after an outage. Beyond that an address is refused. An address without
//! connections is forgotten.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All addresses with connections.
#[derive(Clone, Default)]
pub(super) struct Visits(Arc<Mutex<HashMap<IpAddr, Entry>>>);

struct Entry {
    turns: Arc<Semaphore>,
    connections: usize,
}

/// A connection of an address, until it is dropped.
pub(super) struct Visit {
    visits: Visits,
    address: IpAddr,
    turns: Arc<Semaphore>,
}

/// A visit that is heard, until it is dropped.
pub(super) struct Turn {
    // Dropped first: the next one is heard before the address may be forgotten.
    _permit: OwnedSemaphorePermit,
    _visit: Visit,
}

impl Visits {
    /// One more connection of an address, of which `most` may be there and `heard` may be heard at a time.
    pub(super) fn begin(&self, address: IpAddr, most: usize, heard: usize) -> Option<Visit> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(address).or_insert_with(|| Entry {
            turns: Arc::new(Semaphore::new(heard)),
            connections: 0,
        });
        if entry.connections >= most {
            return None;
        }
        entry.connections += 1;
        Some(Visit {
            visits: self.clone(),
            address,
            turns: Arc::clone(&entry.turns),
        })
    }
}

impl Visit {
    /// Waits until the address may be heard once more; first come, first heard.
    pub(super) async fn turn(self) -> Option<Turn> {
        let permit = Arc::clone(&self.turns).acquire_owned().await.ok()?;
        Some(Turn {
            _permit: permit,
            _visit: self,
        })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut all = self.visits.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = all.get_mut(&self.address) {
            entry.connections -= 1;
            if entry.connections == 0 {
                all.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn an_address_is_heard_in_turn_and_forgotten_at_the_end() {
        let visits = Visits::default();
        let begin = |last| visits.begin(address(last), 3, 1);
        let first = begin(1).expect("room").turn().now_or_never();
        let first = first.expect("at once").expect("open");
        let mut second = Box::pin(begin(1).expect("room").turn());
        assert!(second.as_mut().now_or_never().is_none(), "one at a time");
        let third = begin(1).expect("room");
        assert!(begin(1).is_none(), "three are there");
        assert!(begin(2).is_some(), "another address is not concerned");

        drop(first);
        let second = second.now_or_never().expect("its turn");
        drop((second, third));
        assert!(visits.0.lock().expect("no panic").is_empty());
    }
}
