//! The connections of the HTTP door, with the bounds hyper leaves open by default.
//!
//! Accepting and TLS are the accept loop's ([`crate::listen`]); this serves what it gives. HTTP/2 only where TLS
//! negotiated it, as Prometheus does by default: without, the first bytes would have to be waited for to tell the
//! versions apart.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::listen::Incoming;

/// How long a connection may be idle, or take for its headers. Above the longest usual scrape interval of
/// 60 s, so that Prometheus keeps its connections.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(75);

/// Most headers of a request; Prometheus sends 6.
const MAX_HEADERS: usize = 64;

/// Most bytes of a request's headers, its address included.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;

/// An HTTP/2 peer that does not answer a ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// After shutdown, requests under way have this long.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Connections at once. A Prometheus server keeps one for each target it scrapes at the same moment;
/// further ones wait in the accept loop.
pub const MAX_CONNECTIONS: usize = 1_024;

/// Serves every connection that is accepted, until `stop` is cancelled or no more come. Returns when the
/// last one has ended, at most 5 s after `stop`.
pub async fn serve_all(mut incoming: Incoming, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let more = connections.len() < MAX_CONNECTIONS;
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = incoming.next(), if more => match accepted {
                Some(Ok(connection)) => {
                    let version = if connection.is_http2() {
                        Version::Http2
                    } else {
                        Version::Http1
                    };
                    let (router, stop) = (router.clone(), stop.clone());
                    connections.spawn(serve(connection, version, router, stop));
                }
                Some(Err(error)) => tracing::warn!(%error, "http connection not accepted"),
                None => break,
            },
        }
    }
    while connections.join_next().await.is_some() {}
}

/// What TLS negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1: also for plain connections.
    Http1,
    /// HTTP/2 (ALPN `h2`).
    Http2,
}

/// Serves `router` on a connection until the peer closes, a bound is passed or `stop` is cancelled.
pub async fn serve<IO>(io: IO, version: Version, router: Router, stop: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(io);
    let service = TowerToHyperService::new(router);
    macro_rules! run {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(SHUTDOWN_GRACE, connection).await.unwrap_or(Ok(()))
                }
            }
        }};
    }
    let ended = match version {
        Version::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_TIMEOUT)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEADER_BYTES);
            run!(builder.serve_connection(io, service))
        }
        Version::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).expect("16 KiB fits"))
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_INTERVAL);
            run!(builder.serve_connection(io, service))
        }
    };
    if let Err(error) = ended {
        // A peer that goes away in the middle is its own affair.
        tracing::debug!(%error, "http connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use axum::{body::Bytes, http, routing::get};
    use http_body_util::{BodyExt as _, Empty};
    use hyper::client::conn as client;
    use muster_proto::{
        time::{Clock as _, SystemClock},
        tls::provider,
    };
    use rustls::{ClientConfig, RootCertStore};
    use rustls_pki_types::{CertificateDer, ServerName};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        net::TcpStream,
    };
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::{
        listen,
        pki::{Authority, Doors},
    };

    fn router() -> Router {
        Router::new().route("/", get(async || "here"))
    }

    /// Sends `request`, keeps the connection open, and gives what came until it was closed.
    async fn exchange(request: &[u8], stop: CancellationToken) -> String {
        let (mut client, server) = duplex(64 * 1024);
        let serving = tokio::spawn(serve(server, Version::Http1, router(), stop));
        client.write_all(request).await.expect("the pipe has room");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("text");
        serving.await.expect("serving does not panic");
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn silent_and_slow_connections_are_closed() {
        for begun in [&b""[..], b"GET / HTTP/1.1\r\nHost: local"] {
            let began = tokio::time::Instant::now();
            exchange(begun, CancellationToken::new()).await;
            assert!(began.elapsed() <= 2 * HEADERS_TIMEOUT, "{begun:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_and_closes_an_idle_connection() {
        let answer = exchange(
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            CancellationToken::new(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhere"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn stops_when_told() {
        let stop = CancellationToken::new();
        stop.cancel();
        let began = tokio::time::Instant::now();
        exchange(b"", stop).await;
        assert!(began.elapsed() <= SHUTDOWN_GRACE);
    }

    #[tokio::test]
    async fn serves_what_is_accepted_until_stopped() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = listen::bind(loopback).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let (limits, counters) = (listen::Limits::default(), Arc::default());
        let incoming = listen::plain(listener, limits, counters, stop.clone());
        let serving = tokio::spawn(serve_all(incoming, router(), stop.clone()));
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        client.write_all(request).await.expect("connected");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("text");
        assert!(answer.ends_with("\r\n\r\nhere"), "{answer}");
        let idle = TcpStream::connect(address).await.expect("it listens");
        stop.cancel();
        serving.await.expect("serving does not panic");
        drop(idle);
    }

    /// Asks for `/` over TLS as `localhost`, offering these protocols, and gives the version of the answer. The
    /// client trusts the root alone and checks the name, as Prometheus does with `ca_file`.
    async fn asked(
        address: SocketAddr,
        root: &CertificateDer<'static>,
        alpn: &[&str],
    ) -> http::Version {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).expect("a root");
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tcp = TcpStream::connect(address).await.expect("it listens");
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, tcp).await.expect("trusted");
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let request = http::Request::get("https://localhost/")
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .expect("a request");
        let io = TokioIo::new(stream);
        let answer = if h2 {
            let (mut send, connection) = client::http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("HTTP/2");
            tokio::spawn(connection);
            send.send_request(request).await.expect("an answer")
        } else {
            let (mut send, connection) = client::http1::handshake(io).await.expect("HTTP/1.1");
            tokio::spawn(connection);
            send.send_request(request).await.expect("an answer")
        };
        assert_eq!(answer.status(), 200);
        let version = answer.version();
        let body = answer.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), "here");
        version
    }

    #[tokio::test]
    async fn the_version_is_the_one_that_tls_negotiated() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = SystemClock.now();
        let authority = Authority::init(folder.path(), &[], now).expect("an authority");
        let root = authority.root();
        let doors = Doors::new(Arc::new(authority), &[], now).expect("configurations");
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = listen::bind(loopback).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let (limits, counters) = (listen::Limits::default(), Arc::default());
        let incoming = listen::tls(listener, doors.http, limits, counters, stop.clone());
        let serving = tokio::spawn(serve_all(incoming, router(), stop.clone()));
        for (alpn, expected) in [
            (&["h2", "http/1.1"][..], http::Version::HTTP_2),
            (&["http/1.1"], http::Version::HTTP_11),
            (&[], http::Version::HTTP_11),
        ] {
            assert_eq!(asked(address, &root, alpn).await, expected, "{alpn:?}");
        }
        stop.cancel();
        serving.await.expect("serving does not panic");
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_headers_are_refused() {
        let mut request = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
        for n in 0..MAX_HEADERS {
            request.extend_from_slice(format!("x-{n}: 1\r\n").as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        let answer = exchange(&request, CancellationToken::new()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}
