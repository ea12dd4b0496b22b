//! The made-up hosts of the load as targets for servers that scrape: one process, one port, `/t/<number>/metrics`.
//!
//! The process is this program again with `targets` as its first argument. Its pages are what the agents of the same
//! numbers would send at that moment, in Prometheus' text format; it ends when its standard input does.

use std::{
    collections::HashMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use muster_agent::{Source as _, simulate::SimulatedHost, telemetry::Own};
use muster_proto::{
    exposition::{write_label_value, write_value},
    series::{Kind, Table},
    time::{Clock as _, SystemClock},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Longest head of a request.
const MOST_HEAD: usize = 16 * 1024;

type Hosts = Arc<Mutex<HashMap<u64, SimulatedHost>>>;

/// The other process.
pub(crate) struct Targets {
    process: Child,
    _until: ChildStdin,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Targets {
    /// Starts it.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg("targets")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let until = process.stdin.take().context("no standard input")?;
        let from = process.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line)?;
        let address = line.trim().parse().context("the targets did not begin")?;
        Ok(Self {
            process,
            _until: until,
            address,
        })
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process was started as the targets; if so, runs them to their end.
pub(crate) fn ran_as_targets() -> anyhow::Result<bool> {
    if env::args().nth(1).as_deref() != Some("targets") {
        return Ok(false);
    }
    crate::load::allow_descriptors()?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            println!("{}", listener.local_addr()?);
            std::io::stdout().flush()?;
            let mut ended = crate::load::lines();
            let hosts = Hosts::default();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted?;
                        tokio::spawn(serve(stream, Arc::clone(&hosts)));
                    }
                    line = ended.recv() => if line.is_none() {
                        return anyhow::Ok(());
                    },
                }
            }
        })?;
    Ok(true)
}

/// Answers one connection until it ends; what goes wrong with it is the peer's affair.
async fn serve(mut stream: TcpStream, hosts: Hosts) {
    let mut head = Vec::new();
    loop {
        let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else {
            match stream.read_buf(&mut head).await {
                Ok(read) if read > 0 && head.len() < MOST_HEAD => continue,
                _ => return,
            }
        };
        let number = number_of(&head[..end]);
        head.drain(..end + 4);
        let body = number.map(|number| body(&hosts, number));
        let status = if body.is_some() {
            "200 OK"
        } else {
            "404 Not Found"
        };
        let body = body.unwrap_or_default();
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn number_of(head: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(head).ok()?.lines().next()?;
    let path = line.split(' ').nth(1)?;
    path.strip_prefix("/t/")?
        .strip_suffix("/metrics")?
        .parse()
        .ok()
}

fn body(hosts: &Hosts, number: u64) -> Vec<u8> {
    let mut hosts = hosts.lock().unwrap_or_else(PoisonError::into_inner);
    let host = hosts
        .entry(number)
        .or_insert_with(|| SimulatedHost::new(number));
    let (table, _) = host.sample(SystemClock.now(), &Own::default());
    page(table)
}

/// The table as a scrape page.
fn page(table: &Table) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 * 1024);
    for (number, family) in (0u32..).zip(&table.families) {
        let mut said = false;
        for (place, series) in table.series.iter().enumerate() {
            if series.family != number || !table.present[place] {
                continue;
            }
            if !said {
                said = true;
                let kind = match family.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Untyped => "untyped",
                };
                out.extend_from_slice(format!("# TYPE {} {kind}\n", family.name).as_bytes());
            }
            out.extend_from_slice(family.name.as_bytes());
            for (at, (name, value)) in family.labels.iter().zip(&series.labels).enumerate() {
                out.push(if at == 0 { b'{' } else { b',' });
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"=\"");
                write_label_value(&mut out, value);
                out.push(b'"');
            }
            out.extend_from_slice(if family.labels.is_empty() {
                b" "
            } else {
                b"} "
            });
            write_value(&mut out, family.scale.value(table.raw[place]));
            out.push(b'\n');
        }
    }
    out
}
