//! Runs [`crate::detect::peers`] over the fleet: once a minute every host that is heard, with its group.
//!
//! A group is the first of the configured labels that a host has ([`DetectConfig::peer_labels`]). What is learnt is
//! written every five minutes and at the end, and read at the start; a minute that is lost by a kill teaches nothing
//! twice. Outliers go to the incidents as any transition does; what is open is what the store says.
//!
//! [`DetectConfig::peer_labels`]: crate::detect::DetectConfig

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::time::Clock;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    chain,
    detect::peers::{FIGURES, Peers, Row, Shift},
    fleet::{
        Fleet, HostState, Liveness,
        checkpoint::{self, CheckpointError},
        shard::TransitionSink as _,
    },
    incident::Incidents,
};

/// A step.
const MINUTE: Duration = Duration::from_secs(60);
/// Steps from one writing to the next.
const WRITE_EVERY: u32 = 5;
/// How long a shift that is over is still told of.
const TOLD_FOR: Duration = Duration::from_secs(86_400);

const MAGIC: &[u8; 8] = b"MUSTERPR";
/// To be raised with every change of [`Peers`]; a file of another version is left aside, and what was learnt with it.
const VERSION: u32 = 1;

/// What the groups of the fleet show. Cloning gives another handle to the same.
#[derive(Clone, Default)]
pub struct PeerWatch {
    peers: Arc<Mutex<Peers>>,
}

/// What the task needs.
pub struct Parts {
    /// The hosts.
    pub fleet: Fleet,
    /// Where outliers are told.
    pub incidents: Incidents,
    /// Dates.
    pub clock: Arc<dyn Clock>,
    /// Where what is learnt is kept.
    pub path: PathBuf,
    /// Labels that make groups, the first that a host has; none: nobody is compared.
    pub labels: Vec<String>,
}

impl PeerWatch {
    /// Groups that have shifted, those that go on first, and such as did within a day.
    #[must_use]
    pub fn shifts(&self, now: muster_proto::time::Timestamp) -> Vec<Shift> {
        let peers = self.lock();
        let told = |shift: &&Shift| shift.until.is_none_or(|until| now.since(until) < TOLD_FOR);
        peers.shifts().filter(told).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Peers> {
        // A minute is taken in whole.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what was learnt. The future is the task; it ends soon after `stop`, when it has written what it knows.
pub fn start(
    parts: Parts,
    stop: CancellationToken,
) -> (PeerWatch, impl Future<Output = ()> + Send) {
    let watch = PeerWatch::default();
    match read(&parts.path) {
        Ok(Some(peers)) => *watch.lock() = peers,
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(error = %chain(&error), "what was learnt of groups of hosts does not read; it is learnt anew");
        }
    }
    let task = Task {
        parts,
        watch: watch.clone(),
        adopted: false,
        steps: 0,
    };
    (watch, task.run(stop))
}

struct Task {
    parts: Parts,
    watch: PeerWatch,
    /// What the store has open was taken over.
    adopted: bool,
    steps: u32,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        if self.parts.labels.is_empty() {
            return stop.cancelled().await;
        }
        let mut ticks = time::interval(MINUTE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            self.step().await;
            self.steps += 1;
            if self.steps.is_multiple_of(WRITE_EVERY) {
                self.write().await;
            }
        }
        self.write().await;
    }

    async fn step(&mut self) {
        let labels = self.parts.labels.clone();
        let answer = self
            .parts
            .fleet
            .each(move |host, _| row(host, &labels).map(|row| (host.name().to_owned(), row)))
            .await;
        if !answer.missing.is_empty() {
            // Medians of a part of the fleet are those of another group.
            return;
        }
        let (names, rows): (Vec<String>, Vec<Row>) = answer.items.into_iter().unzip();
        let now = self.parts.clock.now();
        let mut out = Vec::new();
        {
            let mut peers = self.watch.lock();
            if !std::mem::replace(&mut self.adopted, true) {
                for row in &rows {
                    peers.adopt(row.host, &self.parts.incidents.open_on(row.host));
                }
            }
            let before = peers.shifts().filter(|shift| shift.until.is_none()).count();
            peers.step(now, &rows, &mut out);
            let going_on = peers.shifts().filter(|shift| shift.until.is_none());
            for shift in going_on.filter(|shift| shift.since == now) {
                tracing::info!(
                    group = shift.group,
                    figure = shift.figure,
                    hosts = shift.hosts,
                    before = f64::from(shift.before),
                    moved = f64::from(shift.moved),
                    others = before,
                    "a group has shifted"
                );
            }
        }
        for (host, transition) in out {
            let at = rows.iter().position(|row| row.host == host);
            let name = at.and_then(|at| names.get(at)).map_or("", String::as_str);
            self.parts.incidents.report(host, name, vec![transition]);
        }
    }

    async fn write(&self) {
        let (peers, path) = (self.watch.lock().clone(), self.parts.path.clone());
        let written =
            tokio::task::spawn_blocking(move || checkpoint::replace(&path, MAGIC, VERSION, &peers));
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "what was learnt of groups of hosts cannot be written");
            }
            Err(error) => tracing::warn!(%error, "writing what was learnt of groups was ended"),
        }
    }
}

fn read(path: &std::path::Path) -> Result<Option<Peers>, CheckpointError> {
    let Some(body) = checkpoint::content(path, MAGIC, VERSION)? else {
        return Ok(None);
    };
    let peers = postcard::from_bytes(&body);
    peers.map(Some).map_err(|_| CheckpointError::Unusable {
        path: path.to_owned(),
    })
}

/// What a host showed in the last minute; `None` of one that is not heard or has no group.
fn row(host: &HostState, labels: &[String]) -> Option<Row> {
    if host.liveness() != Liveness::Live {
        return None;
    }
    let group = labels.iter().find_map(|key| {
        let value = host.labels().get(key)?;
        Some(format!("{key}={value}"))
    })?;
    let ticks = MINUTE.as_millis() / host.interval().as_millis().max(1);
    let ticks = usize::try_from(ticks).unwrap_or(usize::MAX).max(1);
    let derived = host.derived();
    #[expect(clippy::cast_possible_truncation, reason = "7 digits do for a share")]
    let latest = |value: Option<f64>| value.map_or(f32::NAN, |value| value as f32);
    let figures: [f32; FIGURES.len()] = [
        mean(&host.recent("cpu_ratio"), ticks),
        mean(&host.recent("memory_ratio"), ticks),
        latest(derived.io_ratio),
        latest(derived.pressure_ratio),
    ];
    Some(Row {
        host: host.id(),
        group,
        figures,
    })
}

/// The mean of the last so many that are known.
fn mean(values: &[f32], last: usize) -> f32 {
    let values = &values[values.len().saturating_sub(last)..];
    let known = values.iter().filter(|value| value.is_finite());
    let (sum, count) = known.fold((0.0_f32, 0.0_f32), |(sum, count), value| {
        (sum + value, count + 1.0)
    });
    if count > 0.0 { sum / count } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_the_mean_of_what_is_known_of_it() {
        let values = [0.9, 0.1, f32::NAN, 0.3];
        for (last, expected) in [(1, 0.3), (2, 0.3), (3, 0.2), (100, 1.3 / 3.0)] {
            assert!((mean(&values, last) - expected).abs() < 1e-6, "{last}");
        }
        assert!(mean(&[f32::NAN], 3).is_nan());
        assert!(mean(&[], 3).is_nan());
    }

    #[test]
    fn what_was_learnt_reads_as_it_was_written() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("peers");
        assert_eq!(read(&path).expect("no file is no error"), None);
        let mut peers = Peers::default();
        let rows: Vec<Row> = (0..6_u8)
            .map(|host| Row {
                host: muster_proto::id::HostId::from_bytes([host; 16]),
                group: "role=web".to_owned(),
                figures: [0.1 * f32::from(host); FIGURES.len()],
            })
            .collect();
        for minute in 0..10 {
            let at = muster_proto::time::Timestamp::from_millis(minute * 60_000);
            peers.step(at, &rows, &mut Vec::new());
        }
        checkpoint::replace(&path, MAGIC, VERSION, &peers).expect("written");
        assert_eq!(read(&path).expect("reads"), Some(peers.clone()));
        checkpoint::replace(&path, MAGIC, VERSION + 1, &peers).expect("written");
        assert!(matches!(read(&path), Err(CheckpointError::Unusable { .. })));
    }
}
