//! How the channels stand, read from the store now and then for those who ask often (`/metrics`).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_proto::time::Timestamp;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::Told;
use crate::{
    chain,
    control::{ChannelBooks, Control},
};

/// Prometheus asks four times a minute.
const EVERY: Duration = Duration::from_secs(15);

/// The books of each channel by its name. Cloning gives another handle to the same.
#[derive(Clone, Default)]
pub struct Books(Arc<Mutex<BTreeMap<String, ChannelBooks>>>);

impl Books {
    /// As they were read last; counts are of what ended since the start.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, ChannelBooks> {
        // Replaced whole.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads them again and again; what ended before `since` is not counted.
    pub async fn run(
        self,
        told: Told,
        control: Control,
        since: Timestamp,
        stop: CancellationToken,
    ) {
        let mut ticks = time::interval(EVERY);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let mut all = BTreeMap::new();
            for channel in told.channels() {
                match control.channel_books(&channel.name, since).await {
                    Ok(books) => {
                        all.insert(channel.name.clone(), books);
                    }
                    Err(error) => {
                        tracing::warn!(channel = channel.name, error = %chain(&error), "how a channel stands cannot be read");
                    }
                }
            }
            self.put(all);
        }
    }

    /// Puts what was read. What was counted once stays counted, though rows go after three months; a channel that
    /// could not be read stays as it was.
    fn put(&self, read: BTreeMap<String, ChannelBooks>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, mut books) in read {
            if let Some(before) = all.get(&name) {
                books.delivered = books.delivered.max(before.delivered);
                books.held_back = books.held_back.max(before.held_back);
                books.given_up = books.given_up.max(before.given_up);
            }
            all.insert(name, books);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_never_fall_and_a_channel_that_cannot_be_read_stays() {
        let books = Books::default();
        let one = |delivered, given_up, waiting| ChannelBooks {
            delivered,
            given_up,
            waiting,
            ..ChannelBooks::default()
        };
        let put = |all: &[(&str, ChannelBooks)]| {
            let each = all
                .iter()
                .map(|(name, books)| ((*name).to_owned(), books.clone()));
            books.put(each.collect());
        };
        put(&[("ops", one(5, 3, 2)), ("mail", one(1, 0, 0))]);
        put(&[("ops", one(9, 2, 0))]);
        let all = books.read();
        let ops = &all["ops"];
        assert_eq!((ops.delivered, ops.given_up, ops.waiting), (9, 3, 0));
        assert_eq!(all["mail"].delivered, 1);
    }
}
