//! What `muster-agent status` shows: one JSON document over a unix socket that only its owner may open.

use std::{path::Path, sync::Arc, time::Duration};

use muster_proto::time::Timestamp;

use crate::uplink::Common;

/// What the rounds of collectors were like.
#[derive(Debug, Default)]
pub(crate) struct RoundStats {
    last_tick: Option<Timestamp>,
    last_took: Duration,
    series: u64,
    ticks_missed: u64,
    collectors: Vec<(String, Option<String>)>,
}

impl RoundStats {
    pub(crate) fn note(
        &mut self,
        tick: Timestamp,
        took: Duration,
        series: u64,
        ticks_missed: u64,
        collectors: Vec<(String, Option<String>)>,
    ) {
        self.last_tick = Some(tick);
        self.last_took = took;
        self.series = series;
        self.ticks_missed = ticks_missed;
        self.collectors = collectors;
    }
}

/// Answers on the socket; never ends.
pub(crate) async fn serve(socket: Option<&Path>, common: Arc<Common>) {
    let _ = (socket, common);
    std::future::pending().await
}
