//! One connection to the aggregator: TCP, TLS on it, and what it saw when it broke.
//!
//! gRPC reports a connection that breaks with whatever words its layers have left; the first error of the
//! socket or of TLS is kept beside the connection, so that "certificate expired" is said and not "h2
//! protocol error".

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use muster_proto::tls;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time,
};

use super::{
    fault::Fault,
    quiet::{Ear, QuietTcp},
};

/// A byte stream to the aggregator.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a connector's future resolves to.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, Fault>> + Send + 'a>>;

/// Makes connections. [`TlsConnector`] in earnest; tests put byte pipes in its place.
pub trait Connector: Send + Sync {
    /// Where it leads, as shown to people.
    fn address(&self) -> &str;
    /// A new connection, ready for HTTP/2. The caller sets the deadline.
    fn connect(&self) -> Connecting<'_>;
    /// All addresses it was configured with, the one of [`Connector::address`] first.
    fn servers(&self) -> Vec<String> {
        vec![self.address().to_owned()]
    }
    /// Tells its connections whether incoming bytes are waited for, where they can be told.
    fn ear(&self) -> Option<Arc<Ear>> {
        None
    }
    /// As [`Connector::connect`], to one of several servers. Where there is one way only, that is taken.
    fn connect_to<'a>(&'a self, _server: &'a str) -> Connecting<'a> {
        self.connect()
    }
}

/// Gives the TLS configuration for the next connection: certificates change while the agent runs.
pub type TlsSource = Box<dyn Fn() -> Result<Arc<rustls::ClientConfig>, Fault> + Send + Sync>;

/// Longest for one of several addresses: those after one that swallows everything must have their turn.
const PER_ADDRESS: Duration = Duration::from_secs(3);

/// Longest for the disk to give the identity.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// TCP and TLS to one address.
pub struct TlsConnector {
    /// In the order in which they are preferred.
    servers: Vec<String>,
    tls: Arc<TlsSource>,
    /// Attempts that failed: the next begins with another of the name's addresses.
    failures: AtomicUsize,
    ear: Arc<Ear>,
}

impl TlsConnector {
    /// Connects to `servers` (`host:port`), the first of which is preferred.
    #[must_use]
    pub fn new(servers: Vec<String>, tls: TlsSource) -> Self {
        Self {
            servers,
            tls: Arc::new(tls),
            failures: AtomicUsize::new(0),
            ear: Arc::default(),
        }
    }
}

impl TlsConnector {
    /// Reads what is on disk in a thread of its own: a disk that hangs must not stop the samples, which are
    /// taken on this one.
    async fn config(&self) -> Result<Arc<rustls::ClientConfig>, Fault> {
        let tls = Arc::clone(&self.tls);
        let read = tokio::task::spawn_blocking(move || tls());
        match time::timeout(DISK_PATIENCE, read).await {
            Ok(Ok(config)) => config,
            Ok(Err(broken)) => Err(Fault::Identity(broken.to_string())),
            Err(_) => Err(Fault::Disk(DISK_PATIENCE)),
        }
    }
}

impl Connector for TlsConnector {
    fn address(&self) -> &str {
        self.servers.first().map_or("", String::as_str)
    }

    fn connect(&self) -> Connecting<'_> {
        self.connect_to(self.address())
    }

    fn servers(&self) -> Vec<String> {
        self.servers.clone()
    }

    fn ear(&self) -> Option<Arc<Ear>> {
        Some(Arc::clone(&self.ear))
    }

    fn connect_to<'a>(&'a self, server: &'a str) -> Connecting<'a> {
        Box::pin(async move {
            let config = self.config().await?;
            // Counted beforehand: the caller may drop this at its deadline.
            let failures = self.failures.fetch_add(1, Ordering::Relaxed);
            let tcp = dial(server, failures).await?;
            tcp.set_nodelay(true).map_err(Fault::Tcp)?;
            let tcp = QuietTcp::new(tcp, Arc::clone(&self.ear)).map_err(Fault::Tcp)?;
            let stream = handshake(config, tcp).await?;
            self.failures.store(failures, Ordering::Relaxed);
            Ok(stream)
        })
    }
}

/// TLS on a stream that stands, with the peer's identity checked as `config` says.
///
/// # Errors
/// What the handshake found. With TLS 1.3 the peer's refusal of our certificate shows only at the first read.
pub async fn handshake(
    config: Arc<rustls::ClientConfig>,
    stream: impl Stream + 'static,
) -> Result<Box<dyn Stream>, Fault> {
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(tls::server_name(), stream)
        .await
        .map_err(Fault::from_io)?;
    Ok(Box::new(stream))
}

async fn dial(address: &str, failures: usize) -> Result<TcpStream, Fault> {
    let addresses = tokio::net::lookup_host(address)
        .await
        .map_err(Fault::Resolve)?;
    first_that_answers(addresses.collect(), failures, |address| {
        TcpStream::connect(address)
    })
    .await
    .map_err(Fault::Tcp)
}

/// Tries the addresses one after the other, beginning with another after each failure.
pub(crate) async fn first_that_answers<T, F: Future<Output = io::Result<T>>>(
    mut addresses: Vec<SocketAddr>,
    failures: usize,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let count = addresses.len().max(1);
    addresses.rotate_left(failures % count);
    for address in addresses {
        match time::timeout(PER_ADDRESS, connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// What a [`Watched`] stream broke with: the first error of TLS, else the last of the socket.
#[derive(Debug, Clone, Default)]
pub struct Witness(Arc<Mutex<Option<Fault>>>);

impl Witness {
    /// Takes what was seen.
    #[must_use]
    pub fn take(&self) -> Option<Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note<T>(&self, outcome: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = outcome {
            let copy = Fault::of_tls(error).unwrap_or_else(|| Fault::Tcp(error.kind().into()));
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A reset often overtakes the alert that explains it.
            if !matches!(*seen, Some(Fault::Tls(_) | Fault::Handshake(_))) {
                *seen = Some(copy);
            }
        }
    }
}

/// A stream that remembers its first error.
pub struct Watched {
    inner: Box<dyn Stream>,
    witness: Witness,
}

impl Watched {
    /// Watches a stream.
    #[must_use]
    pub fn new(inner: Box<dyn Stream>) -> (Self, Witness) {
        let witness = Witness::default();
        let watched = Self {
            inner,
            witness: witness.clone(),
        };
        (watched, witness)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.witness.note(&outcome);
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.witness.note(&outcome);
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.witness.note(&outcome);
        outcome
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.witness.note(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_stops_nothing_else() {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let tls = move || {
            // Until the test lets go.
            let _ = wait.lock().expect("not poisoned").recv();
            Err(Fault::Closed)
        };
        let connector = TlsConnector::new(vec!["192.0.2.1:1".into()], Box::new(tls));
        let mut connecting = connector.connect();
        // On a runtime of one thread this comes back only if the disk is read on another.
        let polled = at_once(&mut connecting).await;
        assert!(polled.is_none());
        drop(release);
        assert!(matches!(connecting.await, Err(Fault::Closed)));
    }

    /// What a future has now, without waiting for it.
    async fn at_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_swallows_everything_costs_three_seconds_and_then_its_place() {
        let address = |last| SocketAddr::from(([192, 0, 2, last], 1));
        let all = vec![address(1), address(2), address(3)];
        let connect = |to: SocketAddr| async move {
            if to == address(3) {
                Ok(to)
            } else {
                std::future::pending().await
            }
        };
        for (failures, seconds) in [(0, 6), (1, 3), (2, 0), (3, 6)] {
            let began = time::Instant::now();
            let answered = first_that_answers(all.clone(), failures, connect).await;
            assert_eq!(answered.ok(), Some(address(3)));
            assert_eq!(began.elapsed().as_secs(), seconds, "{failures}");
        }
        let none = first_that_answers(Vec::new(), 5, connect).await;
        assert!(none.is_err());
    }
}
