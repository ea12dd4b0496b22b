//! The connections of the HTTP door, with the bounds hyper leaves open by default.
//!
//! Accepting and TLS are the accept loop's ([`crate::listen`]); this serves what it gives. HTTP/2 only where TLS
//! negotiated it, as Prometheus does by default: without, the first bytes would have to be waited for to tell the
//! versions apart.
//!
//! Nothing is proved before a request shows the token, so a connection is kept for those that do: one without such a
//! request, or that does not take its answers, is closed.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::rules::Admitted;
use crate::listen::Incoming;

/// How long a connection may be idle, or take for its headers. Above the longest usual scrape interval of
/// 60 s, so that Prometheus keeps its connections.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(75);

/// A connection without a request that was allowed to read is closed after this. The same for the same reason.
const UNUSED: Duration = HEADERS_TIMEOUT;

/// A peer that takes nothing of its answers for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

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
const MAX_CONNECTIONS: usize = 1_024;

/// The same of one address, which may have proved nothing.
pub const MAX_OF_ADDRESS: usize = 256;

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
    let io = TokioIo::new(Taken::new(io));
    let used = Used::default();
    let noted = middleware::from_fn_with_state(used.clone(), note);
    let service = TowerToHyperService::new(router.layer(noted));
    macro_rules! run {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            let over = async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = used.no_more() => {}
                }
            };
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = over => {
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

/// When a connection was last used by somebody who may.
#[derive(Debug, Clone)]
struct Used(Arc<Mutex<Instant>>);

impl Default for Used {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Used {
    fn last(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when it was not used for too long.
    async fn no_more(&self) {
        loop {
            let end = *self.last() + UNUSED;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}

async fn note(State(used): State<Used>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if response.extensions().get::<Admitted>().is_some() {
        *used.last() = Instant::now();
    }
    response
}

/// A connection whose other side must take what it is sent.
struct Taken<IO> {
    io: IO,
    /// Runs while something waits to be taken.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<IO> Taken<IO> {
    fn new(io: IO) -> Self {
        Self { io, patience: None }
    }

    /// What a write gave, unless it has been waiting for too long.
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Taken<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Taken<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.io).poll_shutdown(context);
        self.in_time(context, ended)
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
            let began = Instant::now();
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

    /// Requests, ten seconds apart, on one connection until it is closed; how long it was open.
    async fn kept_open(router: Router) -> Duration {
        let (mut client, server) = duplex(64 * 1024);
        let began = Instant::now();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(server, Version::Http1, router, stop));
        let mut answers = [0; 1024];
        while began.elapsed() < 4 * UNUSED {
            sleep(Duration::from_secs(10)).await;
            let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            if client.write_all(request).await.is_err()
                || !matches!(client.read(&mut answers).await, Ok(1..))
            {
                break;
            }
        }
        drop(client);
        serving.await.expect("serving does not panic");
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_may_read_keeps_a_connection() {
        let refused = kept_open(router()).await;
        assert!(
            refused <= UNUSED + SHUTDOWN_GRACE + Duration::from_secs(10),
            "{refused:?}"
        );
        let page = get(async || {
            let mut response = axum::response::IntoResponse::into_response("here");
            response.extensions_mut().insert(Admitted);
            response
        });
        let admitted = kept_open(Router::new().route("/", page)).await;
        assert!(admitted >= 4 * UNUSED, "{admitted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_an_answer_is_cut() {
        let page = get(async || vec![b'x'; 1 << 20]);
        let (mut client, server) = duplex(1024);
        let began = Instant::now();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", page);
        let serving = tokio::spawn(serve(server, Version::Http1, router, stop));
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(request).await.expect("the pipe has room");
        serving.await.expect("serving does not panic");
        assert!(began.elapsed() <= WRITE_TIMEOUT + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn stops_when_told() {
        let stop = CancellationToken::new();
        stop.cancel();
        let began = Instant::now();
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
