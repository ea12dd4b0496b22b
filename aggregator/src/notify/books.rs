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
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
        }
    }
}
