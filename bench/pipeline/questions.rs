//! What a large fleet's aggregator is asked, and how it comes back: the phases of bench/fleet behind the load.
//!
//! Processor time of one answer is taken while the made-up agents stand still (SIGSTOP, for seconds), so that it is not
//! lost in that of their samples; times are taken while they send.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_aggregator::cli::{
    client::{Noted, Target},
    context,
};
use muster_proto::{tls, v1};
use rustix::process::Signal;
use serde::Serialize;
use tokio::runtime;

use crate::{
    count,
    installation::{Installation, get},
    load::{Load, Order, Report},
    peers::process_cpu,
    percentile, rounded,
};

/// Questions of which the mean is taken, and runs of the program.
const QUESTIONS: u32 = 200;
const RUNS: u32 = 100;

/// How long agents stand still at a time: less than it takes to be silent at any interval.
const STILL: Duration = Duration::from_secs(3);

/// Longest wait for something that is to be measured.
const PATIENCE: Duration = Duration::from_secs(300);

/// The ten hosts that have most of something.
#[derive(Debug, Serialize)]
pub(crate) struct Top {
    /// Processor time of the server for one answer, over a connection that is kept.
    gauge_cpu_ms: f64,
    rate_cpu_ms: f64,
    /// `muster top --once`, from its start to its end, while samples come.
    command_ms_p50: f64,
    command_ms_p99: f64,
}

/// The pages of all hosts, one after another, while samples come.
#[derive(Debug, Serialize)]
pub(crate) struct Pages {
    hosts: u32,
    series: u64,
    bytes: u64,
    wall_s: f64,
    cpu_s: f64,
    /// Of the server's processor time beyond what it takes anyway.
    series_per_cpu_s: f64,
    megabytes_per_cpu_s: f64,
    /// Resident memory at its highest beyond what it was before.
    extra_mib: f64,
    ack_ms_p50: f64,
    ack_ms_p99: f64,
}

/// After kill -9.
#[derive(Debug, Serialize)]
pub(crate) struct Restart {
    /// Until it says that it is ready.
    ready_s: f64,
    /// Until the latest values of all hosts are answered, and one metric of all from history.
    latest_s: f64,
    history_s: f64,
    /// Processor time until then.
    latest_cpu_s: f64,
    history_cpu_s: f64,
    /// From when the agents may go on until all are connected, and until each has a sample more acknowledged.
    reconnect_s: f64,
    reconnect_cpu_s: f64,
    settled_s: f64,
    lost: u64,
}

/// `muster hosts --at`, some seconds before.
#[derive(Debug, Serialize)]
pub(crate) struct Past {
    hosts: usize,
    wall_ms: f64,
    cpu_ms: f64,
}

/// More metrics of each host.
#[derive(Debug, Serialize)]
pub(crate) struct More {
    series_a_host: u32,
    /// Resident memory for each, once a minute has passed.
    bytes_a_series: f64,
}

/// The server's processor time in so much time without questions.
struct Quiet {
    cpu_per_second: f64,
}

impl Quiet {
    fn of(installation: &Installation) -> anyhow::Result<Self> {
        let (before, began) = (process_cpu(installation.pid()?)?, Instant::now());
        thread::sleep(STILL);
        let cpu = process_cpu(installation.pid()?)?.saturating_sub(before);
        Ok(Self {
            cpu_per_second: cpu.as_secs_f64() / began.elapsed().as_secs_f64(),
        })
    }

    /// What `work` took of the server's processor time beyond that, in seconds.
    fn beyond(
        &self,
        installation: &Installation,
        work: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let (before, began) = (process_cpu(installation.pid()?)?, Instant::now());
        work()?;
        let cpu = process_cpu(installation.pid()?)?.saturating_sub(before);
        let anyway = self.cpu_per_second * began.elapsed().as_secs_f64();
        Ok((cpu.as_secs_f64() - anyway).max(0.0))
    }
}

/// Runs `work` while the agents stand still.
fn still<T>(load: &Load, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    load.signal(Signal::STOP)?;
    // What is under way arrives.
    thread::sleep(Duration::from_millis(500));
    let done = work();
    load.signal(Signal::CONT)?;
    done
}

/// The top ten.
pub(crate) fn top(installation: &Installation, load: &Load) -> anyhow::Result<Top> {
    installation.operator(&["top", "--once"])?;
    let mut took = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        installation.operator(&["top", "--once"])?;
        took.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_unstable_by(f64::total_cmp);
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let target = target(installation)?;
    let mut client = runtime.block_on(target.client(PATIENCE))?;
    let mut cpu_of = |sort: &str| -> anyhow::Result<f64> {
        let request = v1::ListHostsRequest {
            sort: sort.to_owned(),
            limit: 10,
            ..v1::ListHostsRequest::default()
        };
        let quiet = Quiet::of(installation)?;
        let cpu = quiet.beyond(installation, || {
            for _ in 0..QUESTIONS {
                let answer = runtime.block_on(client.list_hosts(request.clone()))?;
                let rows = answer.into_inner().hosts.len();
                ensure!(rows == 10, "{rows} hosts are the top ten");
            }
            Ok(())
        })?;
        Ok(rounded(cpu * 1000.0 / f64::from(QUESTIONS)))
    };
    let gauge_cpu_ms = still(load, || cpu_of("-mem"))?;
    let rate_cpu_ms = still(load, || cpu_of("-net"))?;
    Ok(Top {
        gauge_cpu_ms,
        rate_cpu_ms,
        command_ms_p50: rounded(percentile(&took, 50)),
        command_ms_p99: rounded(percentile(&took, 99)),
    })
}

/// The operator door with the credentials that [`Installation::operator`] got.
fn target(installation: &Installation) -> anyhow::Result<Target> {
    let file = installation.operator_config()?;
    let config = context::read(&file)?;
    let name = config.current.clone().context("nobody is signed in")?;
    let context = config.contexts.get(&name).context("no such context")?;
    let (trust, credentials) = context.credentials(&file)?;
    let tls = tls::client_config(&trust, credentials)?;
    Ok(Target {
        context: name,
        file,
        server: installation.operator_door().to_string(),
        tls: std::sync::Arc::new(tls),
        refusal: Noted::default(),
    })
}

/// The page of every host.
pub(crate) fn pages(installation: &Installation, load: &mut Load) -> anyhow::Result<Pages> {
    let names = names(installation)?;
    let background = Quiet::of(installation)?;
    load.books()?;
    installation.forget_peak()?;
    let before = installation.memory("VmRSS")?;
    let (mut series, mut bytes) = (0, 0);
    let began = Instant::now();
    let cpu_s = background.beyond(installation, || {
        let mut door = Door::open(installation.http())?;
        for name in &names {
            let page = door.get(&format!("/metrics/hosts/{name}"))?;
            let lines = page.split(|byte| *byte == b'\n');
            series += lines
                .filter(|line| line.first().is_some_and(|first| *first != b'#'))
                .count() as u64;
            bytes += page.len() as u64;
        }
        Ok(())
    })?;
    let wall_s = began.elapsed().as_secs_f64();
    let peak = installation.memory("VmHWM")?;
    let mut ack_ms = load.books()?.ack_ms;
    ack_ms.sort_unstable_by(f64::total_cmp);
    Ok(Pages {
        hosts: u32::try_from(names.len())?,
        series,
        bytes,
        wall_s: rounded(wall_s),
        cpu_s: rounded(cpu_s),
        series_per_cpu_s: (count(series) / cpu_s).round(),
        megabytes_per_cpu_s: rounded(count(bytes) / 1e6 / cpu_s),
        extra_mib: rounded((peak - before) / 1024.0),
        ack_ms_p50: rounded(percentile(&ack_ms, 50)),
        ack_ms_p99: rounded(percentile(&ack_ms, 99)),
    })
}

fn names(installation: &Installation) -> anyhow::Result<Vec<String>> {
    let list = installation.operator(&["hosts", "-o", "name", "--limit", "0"])?;
    Ok(list.lines().map(ToOwned::to_owned).collect())
}

/// A connection to the HTTP door that is kept.
struct Door {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Door {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: BufReader::with_capacity(64 * 1024, stream),
            address,
        })
    }

    /// The body of a page, which must be there and tell its length.
    fn get(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length) = (String::new(), None);
        self.stream.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{path} answers {line}");
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let head = line.trim_end();
            if head.is_empty() {
                break;
            }
            if let Some((name, value)) = head.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let mut body = vec![0; length.with_context(|| format!("{path} tells no length"))?];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }
}

/// The list of all hosts as it was half a minute ago.
pub(crate) fn past(installation: &Installation, load: &Load) -> anyhow::Result<Past> {
    let mut found = (0, 0.0);
    let cpu = still(load, || {
        let quiet = Quiet::of(installation)?;
        quiet.beyond(installation, || {
            let began = Instant::now();
            let told = installation.operator(&["hosts", "--at", "30s", "--limit", "0"])?;
            found = (told.lines().count(), began.elapsed().as_secs_f64() * 1000.0);
            Ok(())
        })
    })?;
    Ok(Past {
        hosts: found.0,
        wall_ms: rounded(found.1),
        cpu_ms: rounded(cpu * 1000.0),
    })
}

/// kill -9, and everything back.
pub(crate) fn restart(
    installation: &mut Installation,
    load: &mut Load,
    hosts: u32,
) -> anyhow::Result<Restart> {
    load.books()?;
    // The agents wait, so that what the start takes is not what they take.
    load.signal(Signal::STOP)?;
    installation.end(Signal::KILL)?;
    let began = Instant::now();
    let ready = installation.start()?;
    let cpu = |installation: &Installation| -> anyhow::Result<f64> {
        Ok(process_cpu(installation.pid()?)?.as_secs_f64())
    };
    until(|| {
        let (status, page) = get(installation.http(), "/metrics")?;
        // A host without its values has no CPU utilisation; that of the whole fleet is told by its counts.
        let series = crate::installation::value(&page, "muster_aggregator_series");
        Ok(status == 200 && series.is_some_and(|series| series >= f64::from(hosts) * 100.0))
    })?;
    let latest_s = began.elapsed().as_secs_f64();
    let latest_cpu_s = cpu(installation)?;
    until(|| {
        let told = installation.operator(&["query", "count(node_load1)"]);
        // It may still be reading the log.
        let told = told.unwrap_or_default();
        Ok(told.contains(&hosts.to_string()))
    })?;
    let history_s = began.elapsed().as_secs_f64();
    let history_cpu_s = cpu(installation)?;
    load.signal(Signal::CONT)?;
    let began = Instant::now();
    let settled_before = load.books()?;
    let connected = |report: &Report| report.connected() == u64::from(hosts);
    // What they noted before the kill is not a connection.
    until(|| Ok(session_count(installation)? >= f64::from(hosts) && connected(&load.books()?)))?;
    let reconnect_s = began.elapsed().as_secs_f64();
    let reconnect_cpu_s = cpu(installation)? - history_cpu_s;
    until(|| {
        let now = load.books()?;
        let mut both = now.agents.iter().zip(&settled_before.agents);
        Ok(both.all(|(now, before)| now.durable > before.durable))
    })?;
    Ok(Restart {
        ready_s: rounded(ready.as_secs_f64()),
        latest_s: rounded(latest_s),
        history_s: rounded(history_s),
        latest_cpu_s: rounded(latest_cpu_s),
        history_cpu_s: rounded(history_cpu_s),
        reconnect_s: rounded(reconnect_s),
        reconnect_cpu_s: rounded(reconnect_cpu_s),
        settled_s: rounded(began.elapsed().as_secs_f64()),
        lost: load.books()?.sum(|agent| agent.rejected + agent.lost),
    })
}

fn session_count(installation: &Installation) -> anyhow::Result<f64> {
    let page = installation.metrics()?;
    crate::installation::value(&page, "muster_aggregator_agents_connected")
        .context("/metrics does not say how many agents are connected")
}

fn until(mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < PATIENCE, "it took more than {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// So many metrics more of each host.
pub(crate) fn more(
    installation: &Installation,
    load: &mut Load,
    (hosts, interval): (u32, u32),
    series: u32,
) -> anyhow::Result<More> {
    let before = installation.memory("VmRSS")?;
    load.order(Order::More(series))?;
    thread::sleep(Duration::from_secs(u64::from(interval) * 3 + 10));
    let after = installation.memory("VmRSS")?;
    Ok(More {
        series_a_host: series,
        bytes_a_series: rounded((after - before) * 1024.0 / f64::from(hosts) / f64::from(series)),
    })
}
