//! What `muster-agent status` shows: one JSON document over a unix socket that only its owner may open.
//!
//! Whoever connects gets the document and the end of the stream; nothing is read from it, so it can change
//! nothing.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{self, Read as _},
    os::unix::net::UnixStream as BlockingStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use muster_proto::time::Timestamp;
use rustix::{fs::Mode, time::ClockId};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt,
    net::UnixListener,
    time::{self, Instant},
};

use crate::{
    collect::CollectorFault,
    spool::{SpoolHandle, SpoolStatus},
    uplink::Common,
};

/// Rounds whose durations are kept for the percentiles: 20 minutes at 10 s.
const KEPT_ROUNDS: usize = 120;
/// Most bytes of a document that the command reads; one has about 1 KiB.
const MAX_DOCUMENT_BYTES: u64 = 256 * 1024;
/// A reader that takes longer is dropped, and a command that waits longer gives up.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a running agent stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `muster/v1`; fields are only ever added.
    pub api_version: String,
    /// Version of the agent.
    pub version: String,
    /// Identity of the host.
    pub host_id: String,
    /// Time since the agent started.
    pub uptime_seconds: u64,
    /// The connection.
    pub link: LinkStatus,
    /// Frames.
    pub frames: FrameStatus,
    /// Frames on disk; absent where none are kept there.
    #[serde(default)]
    pub spool: Option<SpoolStatus>,
    /// Rounds of collectors.
    pub rounds: RoundStatus,
    /// What the agent costs.
    pub cost: CostStatus,
}

/// The connection to the aggregator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// Where the agent is connected to, or tries next.
    pub address: String,
    /// All aggregators it may use, in the order in which they are tried.
    #[serde(default)]
    pub servers: Vec<String>,
    /// How long the session stands; absent without one.
    pub connected_seconds: Option<u64>,
    /// When the next attempt is due; absent while one is made or a session stands.
    pub retry_in_seconds: Option<u64>,
    /// Why there is no session.
    pub fault: Option<String>,
    /// What to try.
    pub hint: Option<String>,
    /// Sessions after the first.
    pub reconnects: u64,
    /// Time since the last acknowledgement.
    pub last_acknowledged_seconds: Option<f64>,
    /// Bytes of messages sent, before TLS.
    pub sent_bytes: u64,
    /// By how much ticks were moved to the aggregator's clock at the last correction.
    pub clock_correction_seconds: f64,
    /// End of the host certificate's life, RFC 3339, where known.
    pub certificate_expires: Option<String>,
    /// Time until then; negative when it is over.
    pub certificate_left_seconds: Option<i64>,
}

/// What became of the frames since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrameStatus {
    /// Numbered.
    pub produced: u64,
    /// Acknowledged as durable.
    pub durable: u64,
    /// Refused by the aggregator.
    pub rejected: u64,
    /// Given up before they were acknowledged.
    pub lost: u64,
    /// Waiting.
    pub queued: u64,
    /// Of these, on disk: a restart does not lose them.
    #[serde(default)]
    pub spooled: u64,
    /// Memory they take, those that are kept for their chain included.
    pub bytes: u64,
}

/// The rounds of collectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoundStatus {
    /// Time between ticks.
    pub interval_seconds: f64,
    /// The last tick, RFC 3339.
    pub last_tick: Option<String>,
    /// Median duration of the last rounds.
    pub took_seconds_p50: f64,
    /// 99th percentile of the last rounds.
    pub took_seconds_p99: f64,
    /// Series in the last round.
    pub series: u64,
    /// Ticks at which nothing was taken.
    pub ticks_missed: u64,
    /// Collectors that failed in the last round.
    pub failing: Vec<String>,
    /// Why they did, and which others have no room for all of their values.
    #[serde(default)]
    pub collector_faults: Vec<CollectorFault>,
}

/// What the agent takes from its host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CostStatus {
    /// CPU time of the process over the time it runs; 1 is one CPU.
    pub cpu_ratio: f64,
    /// Resident memory, where it can be read.
    pub resident_bytes: Option<u64>,
}

/// What the rounds of collectors were like.
#[derive(Debug, Default)]
pub(crate) struct RoundStats {
    last_tick: Option<Timestamp>,
    took: VecDeque<Duration>,
    series: u64,
    ticks_missed: u64,
    faults: Vec<CollectorFault>,
}

impl RoundStats {
    pub(crate) fn note(
        &mut self,
        tick: Timestamp,
        took: Duration,
        series: u64,
        ticks_missed: u64,
        faults: Vec<CollectorFault>,
    ) {
        self.last_tick = Some(tick);
        if self.took.len() == KEPT_ROUNDS {
            self.took.pop_front();
        }
        self.took.push_back(took);
        self.series = series;
        self.ticks_missed = ticks_missed;
        self.faults = faults;
    }

    /// The duration in seconds that this share of the last rounds stayed within.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted: Vec<_> = self.took.iter().collect();
        sorted.sort();
        let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(at).map_or(0.0, |took| took.as_secs_f64())
    }
}

/// What does not change while the agent runs.
pub(crate) struct Fixed {
    pub(crate) host_id: String,
    pub(crate) started: Instant,
}

fn status(common: &Common, fixed: &Fixed) -> Status {
    let now = Instant::now();
    let wall = common.clock.now();
    let uptime = now - fixed.started;
    let books = common.buffer().books();
    let bytes = common.buffer().bytes() as u64;
    let (address, servers) = {
        let servers = common.servers();
        let all = servers.addresses().into_iter().map(ToOwned::to_owned);
        (servers.current().to_owned(), all.collect())
    };
    let link = {
        let link = common.link();
        let (fault, hint) = link.fault.clone().unzip();
        LinkStatus {
            address,
            servers,
            connected_seconds: link.connected_since.map(|since| (now - since).as_secs()),
            retry_in_seconds: link.retry_at.map(|at| (at - now).as_secs()),
            fault,
            hint: hint.map(ToOwned::to_owned),
            reconnects: link.sessions.saturating_sub(1),
            last_acknowledged_seconds: link.last_ack.map(|at| (now - at).as_secs_f64()),
            sent_bytes: link.sent_bytes,
            clock_correction_seconds: Timestamp::from_millis(link.clock_correction_ms)
                .as_seconds_f64(),
            certificate_expires: link.certificate_expires.map(|at| at.to_string()),
            certificate_left_seconds: link
                .certificate_expires
                .map(|at| at.millis_since(wall).div_euclid(1000)),
        }
    };
    let interval = common.interval();
    let rounds = common.rounds();
    Status {
        api_version: "muster/v1".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        host_id: fixed.host_id.clone(),
        uptime_seconds: uptime.as_secs(),
        link,
        frames: FrameStatus {
            produced: books.produced,
            durable: books.durable,
            rejected: books.rejected,
            lost: books.lost,
            queued: books.held,
            spooled: books.spooled,
            bytes,
        },
        spool: common.spool().map(SpoolHandle::status),
        rounds: RoundStatus {
            interval_seconds: interval.as_secs_f64(),
            last_tick: rounds.last_tick.map(|at| at.to_string()),
            took_seconds_p50: rounds.percentile(50),
            took_seconds_p99: rounds.percentile(99),
            series: rounds.series,
            ticks_missed: rounds.ticks_missed,
            failing: rounds
                .faults
                .iter()
                .filter(|fault| fault.failed)
                .map(|fault| fault.collector.clone())
                .collect(),
            collector_faults: rounds.faults.clone(),
        },
        cost: cost(uptime),
    }
}

fn cost(uptime: Duration) -> CostStatus {
    let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let cpu = Duration::try_from(cpu).unwrap_or_default();
    CostStatus {
        cpu_ratio: cpu.as_secs_f64() / uptime.as_secs_f64().max(1.0),
        resident_bytes: resident_bytes(),
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Answers on the socket; never ends. Without a socket it only waits: an agent works without its status.
pub(crate) async fn serve(socket: Option<&Path>, common: Arc<Common>, fixed: Fixed) {
    let Some(path) = socket else {
        return std::future::pending().await;
    };
    let listener = match bind(path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(socket = %path.display(), %error, "muster-agent status will not work");
            return std::future::pending().await;
        }
    };
    answer(&listener, &common, &fixed).await
}

async fn answer(listener: &UnixListener, common: &Common, fixed: &Fixed) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: others need them more.
            time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let document = serde_json::to_vec(&status(common, fixed)).unwrap_or_default();
        let answer = async {
            stream.write_all(&document).await?;
            stream.shutdown().await
        };
        // A reader that goes away or sleeps has only itself to blame.
        let _ = time::timeout(PATIENCE, answer).await;
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if BlockingStream::connect(path).is_ok() {
        return Err(io::Error::other("another agent answers there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // The socket must never be open to others, not even between bind and chmod.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody answers at the socket.
    #[error("no agent runs here (nothing answers at {path})")]
    NotRunning {
        /// The socket.
        path: String,
    },
    /// Only the agent's user and root may ask.
    #[error("not allowed to ask the agent at {path}")]
    NotAllowed {
        /// The socket.
        path: String,
    },
    /// The answer could not be read.
    #[error("the agent's answer cannot be read")]
    Answer(#[source] io::Error),
}

/// Asks the agent at this socket.
///
/// # Errors
/// See [`StatusError`].
pub fn fetch(socket: &Path) -> Result<Status, StatusError> {
    let path = socket.display().to_string();
    let mut stream = BlockingStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => StatusError::NotAllowed { path },
        _ => StatusError::NotRunning { path },
    })?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(StatusError::Answer)?;
    let mut document = Vec::new();
    io::Read::by_ref(&mut stream)
        .take(MAX_DOCUMENT_BYTES)
        .read_to_end(&mut document)
        .map_err(StatusError::Answer)?;
    serde_json::from_slice(&document).map_err(|error| StatusError::Answer(error.into()))
}

/// The status for people.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    let link = &status.link;
    // Writing to a String does not fail.
    let _ = match link.connected_seconds {
        Some(seconds) => write!(
            out,
            "connected to {} (uplink) for {}",
            link.address,
            span(seconds)
        ),
        None => write!(out, "not connected to {} (uplink)", link.address),
    };
    if let Some(at) = link.servers.iter().position(|one| *one == link.address)
        && link.servers.len() > 1
    {
        let _ = write!(out, ", server {} of {}", at + 1, link.servers.len());
    }
    if let Some(left) = link.certificate_left_seconds {
        let days = left.div_euclid(86_400);
        let _ = write!(out, ", certificate {days} d left");
    }
    out.push('\n');
    if link.connected_seconds.is_none() {
        let _ = writeln!(
            out,
            "  because: {}",
            link.fault
                .as_deref()
                .unwrap_or("the first attempt is not over")
        );
        if let Some(hint) = &link.hint {
            let _ = writeln!(out, "  try: {hint}");
        }
        if let Some(seconds) = link.retry_in_seconds {
            let _ = writeln!(out, "  next attempt in {}", span(seconds));
        }
    }
    let _ = write!(
        out,
        "sent {}, queue {}",
        bytes(link.sent_bytes),
        status.frames.queued
    );
    if let Some(ago) = link.last_acknowledged_seconds {
        let _ = write!(out, ", last acknowledged {ago:.1} s ago");
    }
    let _ = writeln!(out, ", reconnects {}", link.reconnects);
    let frames = &status.frames;
    let _ = writeln!(
        out,
        "frames {} produced, {} durable, {} refused, {} lost",
        frames.produced, frames.durable, frames.rejected, frames.lost
    );
    if let Some(spool) = &status.spool {
        let _ = write!(
            out,
            "spool {}, {} of this run",
            bytes(spool.bytes),
            frames.spooled
        );
        if spool.incarnations > 0 {
            let _ = write!(out, " and {} of earlier runs wait", spool.frames);
        } else {
            out.push_str(" wait");
        }
        if let Some(age) = spool
            .oldest_seconds
            .filter(|_| frames.spooled + spool.frames > 0)
        {
            let _ = write!(out, ", oldest {} old", span(age));
        }
        out.push('\n');
        if let Some(fault) = &spool.fault {
            let _ = writeln!(out, "  not written to: {fault}");
            out.push_str(
                "  frames are in memory only, and a restart loses them; it is tried every minute\n",
            );
        }
    }
    let _ = write!(out, "cost {:.2} % CPU", status.cost.cpu_ratio * 100.0);
    if let Some(resident) = status.cost.resident_bytes {
        let _ = write!(out, ", {} RSS", bytes(resident));
    }
    let rounds = &status.rounds;
    let _ = writeln!(
        out,
        ", pass {:.1} ms p50 {:.1} ms p99, {} series, {} ticks missed",
        rounds.took_seconds_p50 * 1000.0,
        rounds.took_seconds_p99 * 1000.0,
        rounds.series,
        rounds.ticks_missed
    );
    if rounds.collector_faults.is_empty() {
        out.push_str("collectors all ok\n");
    }
    for fault in &rounds.collector_faults {
        let state = if fault.failed {
            "fails"
        } else {
            "is cut short"
        };
        let _ = writeln!(
            out,
            "collector {} {state}\n  because: {}",
            fault.collector, fault.why
        );
    }
    out
}

/// A time span in its two largest units.
fn span(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::servers::Servers;

    fn example() -> Status {
        Status {
            api_version: "muster/v1".into(),
            version: "0.1.0".into(),
            host_id: "00".into(),
            uptime_seconds: 300_000,
            link: LinkStatus {
                address: "muster.example:7443".into(),
                servers: vec!["muster.example:7443".into()],
                connected_seconds: Some(273_600),
                retry_in_seconds: None,
                fault: None,
                hint: None,
                reconnects: 2,
                last_acknowledged_seconds: Some(0.42),
                sent_bytes: 2_150_000,
                clock_correction_seconds: 0.0,
                certificate_expires: Some("1970-03-03T00:00:00Z".into()),
                certificate_left_seconds: Some(61 * 86_400 + 5),
            },
            frames: FrameStatus {
                produced: 100,
                durable: 97,
                rejected: 1,
                lost: 2,
                queued: 0,
                spooled: 0,
                bytes: 3_000,
            },
            spool: None,
            rounds: RoundStatus {
                interval_seconds: 10.0,
                last_tick: Some("1970-01-01T00:00:10Z".into()),
                took_seconds_p50: 0.003_1,
                took_seconds_p99: 0.006,
                series: 412,
                ticks_missed: 0,
                failing: vec!["hwmon".into()],
                collector_faults: vec![CollectorFault {
                    collector: "hwmon".into(),
                    failed: true,
                    why: "cannot read sys/x: not allowed".into(),
                }],
            },
            cost: CostStatus {
                cpu_ratio: 0.0019,
                resident_bytes: Some(8_178_892),
            },
        }
    }

    #[test]
    fn people_read_one_screen() {
        let mut status = example();
        assert_eq!(
            render(&status),
            "connected to muster.example:7443 (uplink) for 3d 4h, certificate 61 d left\n\
             sent 2.1 MiB, queue 0, last acknowledged 0.4 s ago, reconnects 2\n\
             frames 100 produced, 97 durable, 1 refused, 2 lost\n\
             cost 0.19 % CPU, 7.8 MiB RSS, pass 3.1 ms p50 6.0 ms p99, 412 series, 0 ticks missed\n\
             collector hwmon fails\n  because: cannot read sys/x: not allowed\n"
        );
        status.frames.spooled = 7;
        status.spool = Some(SpoolStatus {
            bytes: 3 << 20,
            oldest_seconds: Some(3_720),
            incarnations: 1,
            frames: 40,
            fault: Some("disk full".into()),
            ..SpoolStatus::default()
        });
        let text = render(&status);
        assert!(
            text.contains(
                "spool 3.0 MiB, 7 of this run and 40 of earlier runs wait, oldest 1h 2m old\n  \
                 not written to: disk full\n"
            ),
            "{text}"
        );
        status.link.connected_seconds = None;
        status.link.fault = Some("connection refused".into());
        status.link.hint = Some("look".into());
        status.link.retry_in_seconds = Some(61);
        let text = render(&status);
        assert!(
            text.starts_with(
                "not connected to muster.example:7443 (uplink), certificate 61 d left\n  \
                 because: connection refused\n  try: look\n  next attempt in 1m 1s\n"
            ),
            "{text}"
        );
    }

    /// As in the operators' command line: camel case, seconds and RFC 3339, whatever is added.
    #[test]
    fn programs_read_one_style() {
        fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
            if let serde_json::Value::Object(map) = value {
                for (key, value) in map {
                    found.push(key.clone());
                    keys(value, found);
                }
            }
        }
        let mut found = Vec::new();
        let document = serde_json::to_value(example()).expect("JSON");
        keys(&document, &mut found);
        assert_eq!(document["rounds"]["intervalSeconds"], 10.0);
        for key in found {
            assert!(!key.contains('_') && !key.ends_with("Ms"), "{key}");
        }
    }

    #[test]
    fn percentiles_come_from_the_last_rounds() {
        let mut rounds = RoundStats::default();
        assert_eq!(rounds.percentile(50), 0.0);
        for ms in 1..=300 {
            let at = Timestamp::from_millis(0);
            rounds.note(at, Duration::from_millis(ms), 1, 0, Vec::new());
        }
        assert_eq!(rounds.took.len(), KEPT_ROUNDS);
        assert_eq!(
            (rounds.percentile(50), rounds.percentile(99)),
            (0.24, 0.299)
        );
    }

    #[test]
    fn without_an_agent_it_says_so() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let error = fetch(&folder.path().join("status.sock")).expect_err("nobody answers");
        assert!(
            error.to_string().starts_with("no agent runs here"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_socket_is_private_and_answers_once_per_connection() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("run").join("status.sock");
        let common = Arc::new(Common::new(
            crate::buffer::Buffer::new(muster_proto::id::Incarnation(1), Default::default()),
            Arc::new(muster_proto::time::SystemClock),
            muster_proto::v1::HostFacts::default(),
            [0; 16],
            Duration::from_secs(10),
        ));
        *common.servers() = Servers::new(vec!["a:1".into()], Vec::new());
        let fixed = Fixed {
            host_id: "ab".into(),
            started: Instant::now(),
        };
        let listener = bind(&path).expect("bound");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&path).expect("it is there").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        assert!(bind(&path).is_err(), "a second agent");
        tokio::spawn(async move { answer(&listener, &common, &fixed).await });
        for _ in 0..2 {
            let path = path.clone();
            let status = tokio::task::spawn_blocking(move || fetch(&path)).await;
            let status = status.expect("no panic").expect("answered");
            assert_eq!(
                (status.link.address.as_str(), status.host_id.as_str()),
                ("a:1", "ab")
            );
        }
    }
}
