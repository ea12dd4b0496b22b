//! Prometheus and VictoriaMetrics, as the distribution has them, scraping the hosts of [`crate::targets`].
//!
//! One after the other, each on a throw-away folder with its own defaults, so that neither disturbs the other nor
//! the aggregator. What is read of them is what the kernel counts of their process.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::{installation::get, targets::Targets};

/// Longest wait for a server that should take a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is measured beside the aggregator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// `prometheus` of the package of that name.
    Prometheus,
    /// `victoria-metrics` of the package of that name.
    VictoriaMetrics,
}

/// What a peer used. Names as in the aggregator's figures.
#[derive(Debug, Serialize)]
pub(crate) struct PeerFigures {
    /// The program.
    pub(crate) peer: &'static str,
    /// Processor time for one scrape of one host.
    pub(crate) cpu_us_host_round: f64,
    /// Resident memory beyond what it takes without a host.
    pub(crate) rss_kib_host: f64,
    /// Resident memory.
    pub(crate) rss_kib: f64,
    /// Processor time and time of one question: the ten largest of a gauge, of a rate.
    pub(crate) top_gauge_cpu_ms: f64,
    pub(crate) top_gauge_wall_ms: f64,
    pub(crate) top_rate_cpu_ms: f64,
    pub(crate) top_rate_wall_ms: f64,
}

/// What they are to scrape.
pub(crate) struct Task<'a> {
    pub(crate) targets: &'a Targets,
    pub(crate) hosts: u32,
    pub(crate) interval: u32,
    pub(crate) seconds: u32,
}

impl Peer {
    /// All, in the order in which they are measured.
    pub(crate) const ALL: [Self; 2] = [Self::Prometheus, Self::VictoriaMetrics];

    fn program(self) -> &'static str {
        match self {
            Self::Prometheus => "prometheus",
            Self::VictoriaMetrics => "victoria-metrics",
        }
    }

    fn command(self, folder: &Path, config: &Path, address: SocketAddr) -> Command {
        let mut command = Command::new(self.program());
        let data = folder.join("data");
        let (data, config) = (data.display(), config.display());
        match self {
            Self::Prometheus => command.args([
                format!("--config.file={config}"),
                format!("--storage.tsdb.path={data}"),
                format!("--web.listen-address={address}"),
                "--log.level=error".to_owned(),
            ]),
            Self::VictoriaMetrics => command.args([
                format!("-promscrape.config={config}"),
                format!("-storageDataPath={data}"),
                format!("-httpListenAddr={address}"),
                "-search.latencyOffset=1s".to_owned(),
                "-search.disableCache".to_owned(),
                "-loggerLevel=ERROR".to_owned(),
            ]),
        };
        command
    }

    /// Runs it over the task; `None` if it is not installed.
    pub(crate) fn measure(
        self,
        folder: &Path,
        task: &Task<'_>,
    ) -> anyhow::Result<Option<PeerFigures>> {
        let folder = folder.join(self.program());
        fs::create_dir(&folder)?;
        let config = folder.join("scrape.json");
        // JSON is YAML.
        fs::write(&config, scrape_config(task).to_string())?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let started = self
            .command(&folder, &config, address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut server = match started {
            Ok(process) => Server { process, address },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("{} is not installed and left out", self.program());
                return Ok(None);
            }
            Err(error) => return Err(error).context(self.program()),
        };
        server.figures(self.program(), task).map(Some)
    }
}

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn figures(&mut self, peer: &'static str, task: &Task<'_>) -> anyhow::Result<PeerFigures> {
        let began = Instant::now();
        while !matches!(get(self.address, "/-/healthy"), Ok((200, _))) {
            ensure!(self.process.try_wait()?.is_none(), "{peer} ended by itself");
            ensure!(began.elapsed() < PATIENCE, "{peer} does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        let empty = self.resident_kib()?;
        eprintln!("{peer} scrapes {} hosts", task.hosts);
        // As the aggregator: three samples of each first.
        let interval = Duration::from_secs(task.interval.into());
        thread::sleep(interval * 3 + Duration::from_secs(5));
        let before = self.cpu()?;
        thread::sleep(Duration::from_secs(task.seconds.into()));
        let cpu = self.cpu()? - before;
        let rss_kib = self.resident_kib()?;
        let hosts = f64::from(task.hosts);
        let rounds = hosts * f64::from(task.seconds) / f64::from(task.interval);
        let background = cpu.as_secs_f64() / f64::from(task.seconds);
        let gauge = self.ask("topk(10,node_load1)", background)?;
        let rate = format!(
            "topk(10,sum by(instance)(rate(node_network_receive_bytes_total[{}s])))",
            task.interval * 4
        );
        let rate = self.ask(&rate, background)?;
        Ok(PeerFigures {
            peer,
            cpu_us_host_round: cpu.as_secs_f64() * 1e6 / rounds,
            rss_kib_host: (rss_kib - empty) / hosts,
            rss_kib,
            top_gauge_cpu_ms: gauge.0,
            top_gauge_wall_ms: gauge.1,
            top_rate_cpu_ms: rate.0,
            top_rate_wall_ms: rate.1,
        })
    }

    /// Processor time, less what it uses anyway, and time of one answer, milliseconds; of so many that the kernel's
    /// count is exact enough.
    fn ask(&self, query: &str, background: f64) -> anyhow::Result<(f64, f64)> {
        const TIMES: u32 = 40;
        let encoded: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let path = format!("/api/v1/query?query={encoded}");
        let (before, began) = (self.cpu()?, Instant::now());
        for _ in 0..TIMES {
            let (status, answer) = get(self.address, &path)?;
            ensure!(status == 200, "{query}: {status} {answer}");
            ensure!(
                answer.matches("\"metric\"").count() == 10,
                "{query} gave something else than ten hosts"
            );
        }
        let wall = began.elapsed().as_secs_f64();
        let cpu = (self.cpu()? - before).as_secs_f64() - background * wall;
        Ok((
            cpu.max(0.0) * 1e3 / f64::from(TIMES),
            wall * 1e3 / f64::from(TIMES),
        ))
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        process_cpu(self.process.id())
    }

    fn resident_kib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(proc(self.process.id(), "status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmRSS")?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn proc(pid: u32, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(file)
}

/// Processor time of a process: what the scheduler counted of its threads, in nanoseconds. Threads that ended are
/// not in it; neither server ends any.
pub(crate) fn process_cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(proc(pid, "task"))? {
        let counted = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let first = counted.split(' ').next().and_then(|word| word.parse().ok());
        nanos += first.unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

fn scrape_config(task: &Task<'_>) -> serde_json::Value {
    let interval = format!("{}s", task.interval);
    let target = |number: u32| {
        serde_json::json!({
            "targets": [task.targets.address.to_string()],
            "labels": {
                "__metrics_path__": format!("/t/{number}/metrics"),
                "instance": format!("host-{number:05}"),
            },
        })
    };
    let targets: Vec<serde_json::Value> = (1..=task.hosts).map(target).collect();
    serde_json::json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{"job_name": "node", "static_configs": targets}],
    })
}
