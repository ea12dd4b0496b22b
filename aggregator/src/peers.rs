//! Runs [`crate::detect::peers`] over the fleet: once a minute every host that is heard, with its group.
//!
//! A group is the first of the configured labels that a host has ([`DetectConfig::peer_labels`]). What is learnt is
//! written every five minutes and at the end, and read at the start; a minute that is lost by a kill teaches nothing
//! twice. Outliers go to the incidents as any transition does; what is open is what the store says, which is taken over of
//! each host when it is met first after a start. Where nobody is compared any more, what is open ends.
//!
//! [`DetectConfig::peer_labels`]: crate::detect::DetectConfig

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::{id::HostId, time::Clock};
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    chain,
    detect::peers::{self, FIGURES, Peers, Row, Shift},
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
        // What groups showed when they were compared says nothing of now.
        _ if parts.labels.is_empty() => {}
        Ok(Some(peers)) => *watch.lock() = peers,
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(error = %chain(&error), "what was learnt of groups of hosts does not read; it is learnt anew");
        }
    }
    let task = Task {
        parts,
        watch: watch.clone(),
        adopted: HashSet::new(),
        steps: 0,
    };
    (watch, task.run(stop))
}

struct Task {
    parts: Parts,
    watch: PeerWatch,
    /// Hosts of which what the store has open was taken over.
    adopted: HashSet<HostId>,
    steps: u32,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        let compares = !self.parts.labels.is_empty();
        let mut ticks = time::interval(MINUTE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            if !compares {
                if self.end_all().await {
                    return stop.cancelled().await;
                }
                continue;
            }
            self.step().await;
            self.steps += 1;
            if self.steps.is_multiple_of(WRITE_EVERY) {
                self.write().await;
            }
        }
        if compares {
            self.write().await;
        }
    }

    /// Nobody is compared: ends what was told when hosts were. Whether all of them were looked at.
    async fn end_all(&mut self) -> bool {
        let all = self
            .parts
            .fleet
            .each(|host, _| Some((host.id(), host.name().to_owned())));
        let answer = all.await;
        let now = self.parts.clock.now();
        for (host, name) in answer.items {
            let ended = peers::ended(&self.parts.incidents.open_on(host), now);
            if self.adopted.insert(host) && !ended.is_empty() {
                self.parts.incidents.report(host, &name, ended);
            }
        }
        answer.missing.is_empty()
    }

    async fn step(&mut self) {
        let labels = self.parts.labels.clone();
        let answer = self
            .parts
            .fleet
            .each(move |host, _| {
                let row = row(host, &labels);
                Some((host.id(), row.map(|row| (host.name().to_owned(), row))))
            })
            .await;
        if !answer.missing.is_empty() {
            // Medians of a part of the fleet are those of another group.
            return;
        }
        let (hosts, seen): (Vec<HostId>, Vec<_>) = answer.items.into_iter().unzip();
        let (names, rows): (Vec<String>, Vec<Row>) = seen.into_iter().flatten().unzip();
        let now = self.parts.clock.now();
        let mut out = Vec::new();
        {
            let mut peers = self.watch.lock();
            for host in hosts {
                if self.adopted.insert(host) {
                    peers.adopt(host, &self.parts.incidents.open_on(host), now);
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
    use std::collections::{BTreeMap, HashMap};

    use muster_proto::{
        codec::{Changes, Encoder},
        id::Incarnation,
        series::{Family, Kind, Raw, Scale, Series, Table},
        time::{FakeClock, Timestamp},
        v1,
    };
    use tokio::{sync::mpsc, time::Instant};

    use super::*;
    use crate::{
        control::{Control, NewIncident},
        detect::{Engine, peers::RULE},
        fleet::{
            Enrolled, ReadContext,
            host::{FrameIn, Lane, Receiving, Session, Surroundings},
            names::Names,
            shard::Message,
        },
        incident::store::IncidentStore as _,
    };

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    fn id(number: u8) -> HostId {
        HostId::from_bytes([number; 16])
    }

    /// A host that uses a quarter of its memory, heard now or not yet.
    fn host(number: u8, heard: bool) -> HostState {
        let who = Enrolled {
            id: id(number),
            name: format!("web-{number}"),
            labels: BTreeMap::from([("role".to_owned(), "web".to_owned())]),
            facts: v1::HostFacts::default(),
            certificate_not_after: None,
        };
        let mut host = HostState::new(who, NOW);
        if !heard {
            return host;
        }
        let family = |name: &str| Family {
            name: name.to_owned(),
            kind: Kind::Gauge,
            scale: Scale::One,
            labels: Vec::new(),
        };
        let series = |family| Series {
            family,
            labels: Vec::new(),
        };
        let table = Table {
            families: vec![
                family("node_memory_MemTotal_bytes"),
                family("node_memory_MemAvailable_bytes"),
            ],
            series: vec![series(0), series(1)],
            raw: vec![Raw::int(100), Raw::int(75)],
            present: vec![true; 2],
            generation: 0,
        };
        let mut payload = Vec::new();
        Encoder::new().encode(&table, &[], true, &mut payload);
        let frame = FrameIn {
            incarnation: Incarnation(1),
            seq: 1,
            lane: Lane::Live,
            tick: NOW,
            received: NOW,
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        };
        host.begin_session(Session {
            incarnation: Incarnation(1),
            session: 1,
            boot_id: vec![1; 16],
            interval: Duration::from_secs(10),
            clock_offset_ms: 0,
        });
        host.set_connected(true);
        let now = Instant::now();
        let mut context = Receiving {
            names: &mut Names::default(),
            engine: &Engine::default(),
            changes: &mut Changes::default(),
            series_quota: 10,
            now,
            replayed: false,
        };
        host.receive(&frame, &mut context, &mut Vec::new());
        host.judge(&Surroundings::alone(now, NOW, now));
        assert_eq!(host.liveness(), Liveness::Live);
        host
    }

    /// Six hosts of which one has an outlier open in the store, and no file of what was learnt: as after a kill.
    struct Lab {
        control: Control,
        stop: CancellationToken,
        task: Task,
        clock: Arc<FakeClock>,
        hosts: Arc<Mutex<HashMap<HostId, HostState>>>,
        carrier: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
        _folder: tempfile::TempDir,
    }

    impl Lab {
        async fn new(labels: &[&str]) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let control = Control::open(folder.path()).expect("a store");
            let open = NewIncident {
                op_id: "1".to_owned(),
                host_id: id(3),
                rule: RULE.to_owned(),
                subject: "memory".to_owned(),
                severity: v1::Severity::Info,
                summary: String::new(),
                evidence: String::new(),
                since: NOW,
                at: NOW,
            };
            control.open_incident(open).await.expect("written");
            let stop = CancellationToken::new();
            let (incidents, carrier) = Incidents::start(control.clone(), stop.clone())
                .await
                .expect("readable");
            let hosts: HashMap<_, _> = (1..=6).map(|one| (id(one), host(one, false))).collect();
            let hosts = Arc::new(Mutex::new(hosts));
            let (shard, mut inbox) = mpsc::channel(8);
            let of_shard = Arc::clone(&hosts);
            tokio::spawn(async move {
                while let Some(message) = inbox.recv().await {
                    if let Message::Read(reader) = message {
                        reader(&of_shard.lock().expect("whole"), &ReadContext { now: NOW });
                    }
                }
            });
            let clock = Arc::new(FakeClock::at(NOW));
            let parts = Parts {
                fleet: Fleet::new(vec![shard], Arc::default()),
                incidents,
                clock: Arc::clone(&clock) as Arc<dyn Clock>,
                path: folder.path().join("peers"),
                labels: labels.iter().map(|&label| label.to_owned()).collect(),
            };
            let task = Task {
                parts,
                watch: PeerWatch::default(),
                adopted: HashSet::new(),
                steps: 0,
            };
            Self {
                control,
                stop,
                task,
                clock,
                hosts,
                carrier: Box::pin(carrier),
                _folder: folder,
            }
        }

        async fn minutes(&mut self, minutes: u32) {
            for _ in 0..minutes {
                self.task.step().await;
                self.clock.advance(MINUTE);
            }
        }

        fn hear_all(&self) {
            let all = (1..=6).map(|one| (id(one), host(one, true)));
            self.hosts.lock().expect("whole").extend(all);
        }

        /// What is open in the store in the end.
        async fn open(self) -> usize {
            self.stop.cancel();
            self.carrier.await;
            let open = self.control.list_open(None).await;
            open.expect("readable").len()
        }
    }

    #[tokio::test]
    async fn what_was_open_before_a_kill_ends_once_its_host_is_seen_to_be_well() {
        let mut lab = Lab::new(&["role"]).await;
        // At the first step nobody is heard yet.
        lab.minutes(2).await;
        lab.hear_all();
        lab.minutes(380).await;
        assert_eq!(lab.open().await, 0);
    }

    #[tokio::test]
    async fn what_was_open_before_a_kill_ends_after_a_day_when_its_host_is_not_heard_again() {
        for (minutes, open) in [(1000, 1), (1450, 0)] {
            let mut lab = Lab::new(&["role"]).await;
            lab.minutes(minutes).await;
            assert_eq!(lab.open().await, open, "{minutes} min");
        }
    }

    #[tokio::test]
    async fn what_is_open_ends_when_nobody_is_compared_any_more() {
        let mut lab = Lab::new(&[]).await;
        assert!(lab.task.end_all().await);
        assert_eq!(lab.open().await, 0);
    }

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
                host: id(host),
                group: "role=web".to_owned(),
                figures: [0.1 * f32::from(host); FIGURES.len()],
            })
            .collect();
        for minute in 0..10 {
            let at = Timestamp::from_millis(minute * 60_000);
            peers.step(at, &rows, &mut Vec::new());
        }
        checkpoint::replace(&path, MAGIC, VERSION, &peers).expect("written");
        assert_eq!(read(&path).expect("reads"), Some(peers.clone()));
        checkpoint::replace(&path, MAGIC, VERSION + 1, &peers).expect("written");
        assert!(matches!(read(&path), Err(CheckpointError::Unusable { .. })));
    }
}
