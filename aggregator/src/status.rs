//! What a running aggregator does, held against its limits: `muster-aggregator status`.
//!
//! Everything stands on its own scrape page; this is the page for a person at a terminal of that machine, with the
//! limits of the configuration beside the figures, and what was refused or dropped since the start.

use std::{
    fmt::Write as _,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use muster_proto::tls::provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::ServerName;

use crate::{
    cli::units,
    config::Config,
    pki::{Authority, PkiError},
};

/// Longest wait for the page.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest page that is read: a thousand times what it is.
const MAX_PAGE: u64 = 16 << 20;

/// Why there is nothing to tell.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The http door speaks TLS, and whom to trust cannot be read.
    #[error(
        "cannot read the authority in state_dir, which tells whom to trust where the http door speaks TLS; run this as the aggregator's own user"
    )]
    Trust(#[source] PkiError),
    /// The http door speaks TLS, and the roots cannot be used.
    #[error("the roots of the authority in state_dir cannot be used")]
    Roots(#[source] rustls::Error),
    /// Nobody answers.
    #[error("cannot read {url}; does the aggregator run, with this configuration?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It answered something else.
    #[error("{url} answers {status}")]
    Answer {
        /// What was asked.
        url: String,
        /// The first line.
        status: String,
    },
}

/// Asks the aggregator of this configuration.
///
/// # Errors
/// When its page cannot be read.
pub fn status(config: &Config) -> Result<String, StatusError> {
    let mut address = config.http.listen;
    // What listens everywhere is asked here.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let tls = config.http.tls.then(|| trust(config)).transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{address}/metrics");
    let answer = match fetch(address, tls, config.http.token.as_deref()) {
        Ok(answer) => answer,
        Err(source) => return Err(StatusError::Unreachable { url, source }),
    };
    let (head, page) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        let status = status.chars().filter(|letter| !letter.is_control());
        let status = status.take(100).collect();
        return Err(StatusError::Answer { url, status });
    }
    Ok(render(&Page(page), config))
}

/// Trusts the installation's own roots and nobody else, not even the machine's: what answers here is shown to somebody
/// who acts on it, and it is given a token.
fn trust(config: &Config) -> Result<ClientConnection, StatusError> {
    let authority = Authority::open(&config.state_dir).map_err(StatusError::Trust)?;
    let mut roots = RootCertStore::empty();
    for root in authority.roots() {
        roots.add(root).map_err(StatusError::Roots)?;
    }
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(StatusError::Roots)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every certificate of an aggregator carries loopback's names, wherever it listens.
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    ClientConnection::new(Arc::new(tls), name).map_err(StatusError::Roots)
}

fn fetch(
    address: SocketAddr,
    tls: Option<ClientConnection>,
    token: Option<&str>,
) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match tls {
        Some(tls) => ask(StreamOwned::new(tls, stream), address, token),
        None => ask(stream, address, token),
    }
}

fn ask(
    mut stream: impl io::Read + io::Write,
    address: SocketAddr,
    token: Option<&str>,
) -> io::Result<String> {
    // HTTP/1.0: the answer comes in one piece and ends with the connection.
    // By the one name that every door answers to.
    let port = address.port();
    let mut request = format!("GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n");
    if let Some(token) = token {
        request.push_str("Authorization: Bearer ");
        request.push_str(token);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_PAGE).read_to_string(&mut answer)?;
    Ok(answer)
}

/// A scrape page.
struct Page<'a>(&'a str);

impl<'a> Page<'a> {
    /// Labels and value of each sample of a metric.
    fn samples(&self, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> + use<'a> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(metric)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            Some((labels, value.parse().ok()?))
        })
    }

    fn sum(&self, metric: &'a str) -> f64 {
        self.samples(metric).map(|(_, value)| value).sum()
    }

    /// Those that are not 0, by the value of their label.
    fn by_reason(&self, metric: &'a str) -> String {
        let told = self.samples(metric).filter(|(_, value)| *value != 0.0);
        let words = told.map(|(labels, value)| {
            let word = labels.split('"').nth(1).unwrap_or(labels);
            format!("{} {word}", count(value))
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        }
    }
}

fn render(page: &Page<'_>, config: &Config) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{name:<12}{text}");
    };
    let bytes = |metric| units::bytes(page.sum(metric));
    let number = |metric| count(page.sum(metric));
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let most = |limit: u64| units::bytes(limit as f64);
    line(
        "memory",
        format!("{} resident", bytes("process_resident_memory_bytes")),
    );
    line(
        "agents",
        format!("{} connected", number("muster_aggregator_agents_connected")),
    );
    line(
        "series",
        format!(
            "{} of at most {} (limits.series_in_all), {} a host (limits.series_per_host)",
            number("muster_aggregator_series"),
            config.series_in_all,
            config.series_per_host
        ),
    );
    line(
        "frames",
        format!(
            "{} stored since the start, {} twice, {} given up by agents, {} came after all; refused: {}",
            number("muster_aggregator_frames_stored_total"),
            number("muster_aggregator_frames_duplicate_total"),
            number("muster_aggregator_frames_lost_total"),
            number("muster_aggregator_frames_found_total"),
            page.by_reason("muster_aggregator_frames_rejected_total")
        ),
    );
    line(
        "log",
        format!(
            "{} of at most {} (storage.log_max_size); {} wait, {} commits failed",
            bytes("muster_aggregator_log_size_bytes"),
            most(config.log_max_bytes),
            bytes("muster_aggregator_ingest_queue_bytes"),
            number("muster_aggregator_log_commit_failures_total")
        ),
    );
    if config.history.enabled {
        line(
            "history",
            format!(
                "{} of at most {} (history.max_size); files dropped: {}",
                bytes("muster_aggregator_history_size_bytes"),
                most(config.history.max_bytes),
                page.by_reason("muster_aggregator_history_files_dropped_total")
            ),
        );
        line(
            "",
            format!(
                "{} in memory, {} wait, {} writes failed; frames not in it: {}",
                bytes("muster_aggregator_history_memory_bytes"),
                bytes("muster_aggregator_history_queue_bytes"),
                number("muster_aggregator_history_write_failures_total"),
                page.by_reason("muster_aggregator_history_frames_lost_total")
            ),
        );
    } else {
        line("history", "off (history.enabled)".to_owned());
    }
    line(
        "incidents",
        format!(
            "{} changes wait for the store",
            number("muster_aggregator_incident_changes_waiting")
        ),
    );
    let refused = page
        .samples("muster_aggregator_connections_total")
        .filter(|(labels, value)| *value != 0.0 && !labels.contains("\"accepted\""))
        .map(|(labels, value)| {
            let words: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
            format!("{} {}", count(value), words.join(" "))
        });
    let refused: Vec<String> = refused.collect();
    line(
        "refused",
        if refused.is_empty() {
            "no connection".to_owned()
        } else {
            format!("connections: {}", refused.join(", "))
        },
    );
    out
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_stand_beside_what_is_used() {
        let page = Page(
            "# HELP process_resident_memory_bytes x\n\
             process_resident_memory_bytes 2097152\n\
             muster_aggregator_agents_connected 12\n\
             muster_aggregator_series 2040\n\
             muster_aggregator_frames_rejected_total{reason=\"quota\"} 3\n\
             muster_aggregator_frames_rejected_total{reason=\"future\"} 0\n\
             muster_aggregator_history_size_bytes{tier=\"raw\"} 1048576\n\
             muster_aggregator_history_size_bytes{tier=\"1m\"} 1048576\n\
             muster_aggregator_connections_total{door=\"uplink\",outcome=\"accepted\"} 12\n\
             muster_aggregator_connections_total{door=\"uplink\",outcome=\"certificate\"} 2\n",
        );
        let text = render(&page, &Config::default());
        for expected in [
            "memory      2.0 MiB resident",
            "agents      12 connected",
            "series      2040 of at most 20000000 (limits.series_in_all), 4000 a host",
            "refused: 3 quota\n",
            "history     2.0 MiB of at most 20 GiB (history.max_size); files dropped: none",
            "refused     connections: 2 uplink certificate",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
    }
}
