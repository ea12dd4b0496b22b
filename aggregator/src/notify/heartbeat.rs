//! A dead-man's heartbeat: while this aggregator works, somebody outside hears of it, and tells people when that stops.

use std::time::Duration;

use http::{Method, Request, header};
use http_body_util::Full;
use hyper::body::Bytes;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{Heartbeat, Told, http::SendError};
use crate::{chain, fleet::Fleet};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends it until `stop`. While a shard hangs, or changes cannot be stored or are not judged, it is not sent: an aggregator that cannot
/// tell people is as good as dead.
pub async fn run(heartbeat: Heartbeat, fleet: Fleet, told: Told, stop: CancellationToken) {
    let mut ticks = time::interval(heartbeat.interval);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !fleet.is_alive().await || !told.is_working() {
            tracing::warn!(
                to = heartbeat.shown(),
                "no heartbeat: this aggregator does not work as it should"
            );
            continue;
        }
        match beat(&heartbeat).await {
            Ok(()) => {
                if failing {
                    tracing::info!(to = heartbeat.shown(), "the heartbeat arrives again");
                }
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(to = heartbeat.shown(), error = %chain(&error), "the heartbeat did not arrive");
                }
                failing = true;
            }
        }
    }
}

async fn beat(heartbeat: &Heartbeat) -> Result<(), SendError> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(heartbeat.url.clone())
        .header(
            header::USER_AGENT,
            concat!("muster/", env!("CARGO_PKG_VERSION")),
        )
        .body(Full::new(Bytes::new()))
        .map_err(|error| SendError::Message(error.to_string()))?;
    let reply = heartbeat.client.send(request, TIMEOUT).await?;
    reply.accepted(&heartbeat.url).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        fleet::Counters,
        notify::testing::{self, Receiver},
    };

    #[tokio::test]
    async fn it_beats_while_every_shard_answers() {
        let receiver = Receiver::start(None).await;
        let stop = CancellationToken::new();
        let fleet = Fleet::new(Vec::new(), Arc::new(Counters::default()));
        let beats = run(
            testing::heartbeat(&receiver),
            fleet,
            Told::default(),
            stop.clone(),
        );
        let beats = tokio::spawn(beats);
        let heard = async {
            while receiver.got().len() < 2 {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(Duration::from_secs(60), heard)
            .await
            .expect("it beats");
        stop.cancel();
        beats.await.expect("it ends");
        assert!(receiver.got()[0].head.starts_with("GET /hook"));

        // A sender whose receiver is gone is a shard that has ended.
        let dead = Fleet::new(
            vec![tokio::sync::mpsc::channel(1).0],
            Arc::new(Counters::default()),
        );
        let (receiver, stop) = (Receiver::start(None).await, CancellationToken::new());
        let beats = run(
            testing::heartbeat(&receiver),
            dead,
            Told::default(),
            stop.clone(),
        );
        let _ = time::timeout(Duration::from_millis(100), beats).await;
        assert_eq!(receiver.got().len(), 0);
    }
}
