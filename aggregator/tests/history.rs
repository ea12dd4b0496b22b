//! History end to end: agents over real TLS, what they sent answered by the store, through a restart and a backup.

#[expect(dead_code, reason = "the other tests of the whole way use the rest")]
mod support;

use std::ops::ControlFlow;

use muster_aggregator::{
    backup,
    history::{GiveUp, SampleQuery, SampleStore as _},
    serve::Aggregator,
};
use muster_proto::id::HostId;
use support::{Site, page, until};

/// Ticks of the host's load average in history.
fn ticks(aggregator: &Aggregator, host: HostId) -> Vec<i64> {
    let history = aggregator.history().expect("there is a history");
    let query = SampleQuery {
        hosts: vec![host],
        metric: Some("node_load1".into()),
        labels: Vec::new(),
        from: 0,
        to: i64::MAX,
        step_ms: 0,
        max_points: 100_000,
        give_up: GiveUp::default(),
    };
    let mut ticks = Vec::new();
    let report = history.store.read(&query, &mut |series| {
        ticks.extend(series.points.iter().map(|point| point.at));
        ControlFlow::Continue(())
    });
    assert_eq!(report.expect("not too much").missing, [""; 0]);
    ticks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agents_sent_is_there_after_a_restart_and_in_a_backup() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let agent = site.agent(&aggregator, 1).await;
    let host = agent.host;
    let books = agent.durable(3).await;
    let whole = until("history has what is durable", async || {
        let ticks = ticks(&aggregator, host);
        (ticks.len() as u64 >= books.durable).then_some(ticks)
    })
    .await;
    assert!(whole.is_sorted(), "each tick once, in order");
    let (status, text) = page(&aggregator, "/metrics").await;
    assert_eq!(status, 200);
    assert!(
        text.contains("muster_aggregator_history_frames_total"),
        "{text}"
    );

    let file = site.config.runtime_dir.join("backup.tar");
    let done = backup::backup(&site.config.state_dir, &file).expect("backed up while it runs");
    assert!(done.files >= 4);

    let books = agent.stop().await;
    aggregator.stop().await;
    let aggregator = site.start().await;
    let again = until("history is back", async || {
        let ticks = ticks(&aggregator, host);
        (ticks.len() as u64 >= books.durable).then_some(ticks)
    })
    .await;
    assert_eq!(
        again[..whole.len()],
        whole,
        "nothing is lost, nothing is there twice"
    );
    assert_eq!(again.len() as u64, books.durable);
    aggregator.stop().await;

    // Another machine takes over from the backup.
    let state = site.config.runtime_dir.join("restored");
    backup::restore(&file, &state).expect("restored");
    site.config.state_dir = state;
    let aggregator = site.start().await;
    let restored = until("history is read from the log of the backup", async || {
        let ticks = ticks(&aggregator, host);
        (ticks.len() >= whole.len()).then_some(ticks)
    })
    .await;
    assert_eq!(restored[..whole.len()], whole);
    aggregator.stop().await;
}
