//! The same samples in Prometheus and VictoriaMetrics, as the distribution has them: over remote write, faster than
//! they would come, then put into their final form and looked at on disk.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_proto::series::Table;
use serde::Serialize;

use crate::{http::request, recorded::free};

/// Longest wait for a server to do what takes it a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// Samples of a host that are sent together, and bytes of a request.
const TICKS: usize = 60;
const REQUEST_BYTES: usize = 4 << 20;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// `prometheus`, Debian's package of that name.
    Prometheus,
    /// `victoria-metrics`, Debian's package of that name.
    VictoriaMetrics,
}

/// What it used.
#[derive(Debug, Serialize)]
pub(crate) struct PeerFigures {
    peer: &'static str,
    samples: u64,
    bytes_sample_disk: f64,
    bytes_sample_data: f64,
    bytes_sample_index: f64,
    /// Bytes it wrote, for each that is kept.
    write_amplification: f64,
    take_cpu_us_sample: f64,
    /// One metric of all hosts over the whole time, a point a minute.
    read_cpu_ms: f64,
    read_wall_ms: f64,
    /// After kill -9, until the newest value of all hosts is answered.
    restart_wall_ms: f64,
    restart_cpu_ms: f64,
}

/// A running server.
pub(crate) struct Server {
    peer: Peer,
    folder: PathBuf,
    address: SocketAddr,
    process: Child,
    sender: Sender,
    cpu_before: Duration,
}

impl Peer {
    /// All.
    pub(crate) const ALL: [Self; 2] = [Self::Prometheus, Self::VictoriaMetrics];

    fn program(self) -> &'static str {
        match self {
            Self::Prometheus => "prometheus",
            Self::VictoriaMetrics => "victoria-metrics",
        }
    }

    fn spawn(self, folder: &Path, address: SocketAddr) -> std::io::Result<Child> {
        let data = folder.join("data");
        let (config, data) = (folder.join("empty.yml"), data.display());
        fs::write(&config, "scrape_configs: []\n")?;
        let options = match self {
            Self::Prometheus => vec![
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={data}"),
                format!("--web.listen-address={address}"),
                "--web.enable-remote-write-receiver".to_owned(),
                "--web.enable-admin-api".to_owned(),
                "--log.level=error".to_owned(),
            ],
            Self::VictoriaMetrics => vec![
                format!("-storageDataPath={data}"),
                format!("-httpListenAddr={address}"),
                "-search.latencyOffset=0s".to_owned(),
                "-search.disableCache".to_owned(),
                "-loggerLevel=ERROR".to_owned(),
            ],
        };
        Command::new(self.program())
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    }
}

impl Server {
    /// Starts it in a folder of its own; `None` if it is not installed.
    pub(crate) fn start(peer: Peer, folder: &Path) -> anyhow::Result<Option<Self>> {
        let folder = folder.join(peer.program());
        fs::create_dir_all(&folder)?;
        let address = free()?;
        let process = match peer.spawn(&folder, address) {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("{} is not installed and left out", peer.program());
                return Ok(None);
            }
            Err(error) => return Err(error).context(peer.program()),
        };
        let mut server = Self {
            peer,
            folder,
            address,
            process,
            sender: Sender::default(),
            cpu_before: Duration::ZERO,
        };
        server.ready()?;
        server.cpu_before = server.cpu()?;
        Ok(Some(server))
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let name = self.peer.program();
        loop {
            let path = match self.peer {
                Peer::Prometheus => "/-/ready",
                Peer::VictoriaMetrics => "/health",
            };
            if matches!(request(self.address, "GET", path, &[], &[]), Ok((200, _))) {
                return Ok(());
            }
            ensure!(self.process.try_wait()?.is_none(), "{name} ended by itself");
            ensure!(began.elapsed() < PATIENCE, "{name} is not ready");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes what a host has at a tick.
    pub(crate) fn take(&mut self, host: usize, at: i64, table: &Table) -> anyhow::Result<()> {
        self.sender.take(host, at, table);
        if self.sender.bytes >= REQUEST_BYTES {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        let body = self.sender.request();
        if body.is_empty() {
            return Ok(());
        }
        let headers = [
            ("Content-Encoding", "snappy"),
            ("Content-Type", "application/x-protobuf"),
            ("X-Prometheus-Remote-Write-Version", "0.1.0"),
        ];
        let (status, answer) = request(self.address, "POST", "/api/v1/write", &headers, &body)?;
        ensure!(
            status / 100 == 2,
            "{}: {status} {}",
            self.peer.program(),
            String::from_utf8_lossy(&answer)
        );
        Ok(())
    }

    /// Looks at what became of all that was taken: samples from `from` to `to`, of so many hosts.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn figures(
        mut self,
        metric: &str,
        hosts: usize,
        (from, to): (i64, i64),
    ) -> anyhow::Result<PeerFigures> {
        self.sender.flush();
        self.send()?;
        let samples = self.sender.samples;
        let taken = self.cpu()? - self.cpu_before;
        if self.peer == Peer::VictoriaMetrics {
            // What it has just taken is not answered for a second or two, or at once when it is told so.
            request(self.address, "GET", "/internal/force_flush", &[], &[])?;
        }
        let (read_cpu_ms, read_wall_ms) = self.read(metric, hosts, from, to)?;
        let (data, index) = match self.peer {
            Peer::Prometheus => self.snapshot()?,
            Peer::VictoriaMetrics => self.merged()?,
        };
        let written = self.written()?;
        let (restart_wall_ms, restart_cpu_ms) = self.restart(metric, hosts, to)?;
        let each = |bytes: u64| bytes as f64 / samples.max(1) as f64;
        Ok(PeerFigures {
            peer: self.peer.program(),
            samples,
            bytes_sample_disk: each(data + index),
            bytes_sample_data: each(data),
            bytes_sample_index: each(index),
            write_amplification: written as f64 / (data + index).max(1) as f64,
            take_cpu_us_sample: taken.as_secs_f64() * 1e6 / samples.max(1) as f64,
            read_cpu_ms,
            read_wall_ms,
            restart_wall_ms,
            restart_cpu_ms,
        })
    }

    /// Chunks and indices of a snapshot: what is in memory is put into a block for it.
    fn snapshot(&self) -> anyhow::Result<(u64, u64)> {
        let path = "/api/v1/admin/tsdb/snapshot";
        let (status, answer) = request(self.address, "POST", path, &[], &[])?;
        ensure!(status == 200, "prometheus made no snapshot: {status}");
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        let name = answer["data"]["name"].as_str().context("no snapshot")?;
        let folder = self.folder.join("data/snapshots").join(name);
        let (mut data, mut index) = (0, 0);
        for block in fs::read_dir(&folder)? {
            let block = block?.path();
            data += size_of(&block.join("chunks"))?;
            index += fs::metadata(block.join("index"))?.len();
        }
        Ok((data, index))
    }

    /// Data and index after everything was merged.
    fn merged(&self) -> anyhow::Result<(u64, u64)> {
        for path in ["/internal/force_flush", "/internal/force_merge"] {
            request(self.address, "GET", path, &[], &[])?;
            thread::sleep(Duration::from_secs(2));
        }
        let began = Instant::now();
        loop {
            let (_, page) = request(self.address, "GET", "/metrics", &[], &[])?;
            let page = String::from_utf8_lossy(&page);
            let busy = sum(&page, "vm_active_force_merges") + sum(&page, "vm_active_merges");
            if busy == 0.0 {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "numbers of bytes"
                )]
                let bytes =
                    |of: &str| sum(&page, &format!("vm_data_size_bytes{{type=\"{of}")) as u64;
                return Ok((bytes("storage"), bytes("indexdb")));
            }
            ensure!(began.elapsed() < PATIENCE, "victoria-metrics still merges");
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn read(&self, metric: &str, hosts: usize, from: i64, to: i64) -> anyhow::Result<(f64, f64)> {
        const TIMES: u32 = 5;
        let path = format!(
            "/api/v1/query_range?query={metric}&start={}&end={}&step=60",
            (from / 60_000 + 1) * 60,
            to / 1000
        );
        let (before, began) = (self.cpu()?, Instant::now());
        for _ in 0..TIMES {
            let (status, answer) = request(self.address, "GET", &path, &[], &[])?;
            ensure!(status == 200, "{path}: {status}");
            let answer = String::from_utf8_lossy(&answer);
            ensure!(
                answer.matches("\"metric\"").count() >= hosts,
                "{path} left hosts out"
            );
        }
        let each = |all: Duration| all.as_secs_f64() * 1e3 / f64::from(TIMES);
        Ok((each(self.cpu()? - before), each(began.elapsed())))
    }

    fn restart(&mut self, metric: &str, hosts: usize, to: i64) -> anyhow::Result<(f64, f64)> {
        self.process.kill()?;
        self.process.wait()?;
        let began = Instant::now();
        self.process = self.peer.spawn(&self.folder, self.address)?;
        self.ready()?;
        let path = format!("/api/v1/query?query=count({metric})&time={}", to / 1000);
        loop {
            let (status, answer) = request(self.address, "GET", &path, &[], &[])?;
            let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
            let counted = answer["data"]["result"][0]["value"][1].as_str();
            if status == 200 && counted == Some(&hosts.to_string()) {
                let cpu = self.cpu()?.as_secs_f64() * 1e3;
                return Ok((began.elapsed().as_secs_f64() * 1e3, cpu));
            }
            ensure!(began.elapsed() < PATIENCE, "not all hosts came back");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processor time as the scheduler counted it, in nanoseconds; neither server ends a thread.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let counted = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let first = counted.split(' ').next().and_then(|word| word.parse().ok());
            nanos += first.unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Bytes handed to the kernel by write, answers included.
    fn written(&self) -> anyhow::Result<u64> {
        let io = fs::read_to_string(format!("/proc/{}/io", self.process.id()))?;
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        Ok(line.context("no wchar")?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn size_of(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for file in fs::read_dir(folder)? {
        bytes += file?.metadata()?.len();
    }
    Ok(bytes)
}

/// All lines of a page that begin so, added up.
fn sum(page: &str, begin: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(begin));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

/// Remote write, version 0.1.
#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

/// Gathers samples into requests.
#[derive(Default)]
struct Sender {
    /// By host: its series, and how many ticks are gathered.
    hosts: Vec<(Vec<TimeSeries>, usize)>,
    ready: WriteRequest,
    bytes: usize,
    samples: u64,
}

impl Sender {
    fn take(&mut self, host: usize, at: i64, table: &Table) {
        if self.hosts.len() <= host {
            self.hosts.resize_with(host + 1, Default::default);
        }
        let (series, ticks) = &mut self.hosts[host];
        for place in series.len()..table.series.len() {
            series.push(TimeSeries {
                labels: labels(table, place, host),
                samples: Vec::new(),
            });
        }
        for (place, series) in series.iter_mut().enumerate() {
            if table.present[place] {
                let family = table.series[place].family as usize;
                let value = table.families[family].scale.value(table.raw[place]);
                series.samples.push(Sample {
                    value,
                    timestamp: at,
                });
                self.samples += 1;
            }
        }
        *ticks += 1;
        if *ticks >= TICKS {
            self.gathered(host);
        }
    }

    fn gathered(&mut self, host: usize) {
        let (series, ticks) = &mut self.hosts[host];
        *ticks = 0;
        for series in series
            .iter_mut()
            .filter(|series| !series.samples.is_empty())
        {
            self.bytes += 16 * series.samples.len() + 200;
            self.ready.timeseries.push(TimeSeries {
                labels: series.labels.clone(),
                samples: std::mem::take(&mut series.samples),
            });
        }
    }

    fn flush(&mut self) {
        for host in 0..self.hosts.len() {
            self.gathered(host);
        }
    }

    /// What is ready, as snappy that compresses nothing: one literal.
    fn request(&mut self) -> Vec<u8> {
        use prost::Message as _;

        let ready = std::mem::take(&mut self.ready);
        self.bytes = 0;
        if ready.timeseries.is_empty() {
            return Vec::new();
        }
        let plain = ready.encode_to_vec();
        let mut out = Vec::with_capacity(plain.len() + 16);
        prost::encoding::encode_varint(plain.len() as u64, &mut out);
        out.push(63 << 2);
        let length = u32::try_from(plain.len() - 1).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&plain);
        out
    }
}

/// Labels of a series in the order of their names, as the protocol wants it.
fn labels(table: &Table, place: usize, host: usize) -> Vec<Label> {
    let series = &table.series[place];
    let family = &table.families[series.family as usize];
    let mut labels = vec![
        ("__name__".to_owned(), family.name.clone()),
        ("instance".to_owned(), format!("host-{host:05}")),
    ];
    labels.extend(
        family
            .labels
            .iter()
            .cloned()
            .zip(series.labels.iter().cloned()),
    );
    labels.sort();
    labels
        .into_iter()
        .map(|(name, value)| Label { name, value })
        .collect()
}
