//! The way to the aggregator's operator door: name, TCP, TLS, gRPC, each with its own error.
//!
//! A connection is dialled here and handed to tonic ready, so that what fails is told by the step that
//! failed. `doctor` walks the same steps one by one.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    tls::{self, TlsFault},
    v1::operator_client::OperatorClient,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::failure::{Code, Failure, chain};
use crate::query::access::RENEW_FIRST;

/// Port of the operator door when a server is named without one.
pub const OPERATOR_PORT: u16 = 7445;

/// An aggregator and the right to talk to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The context it comes from.
    pub context: String,
    /// The file the context stands in.
    pub file: PathBuf,
    /// `host:port`.
    pub server: String,
    /// Ready for a handshake.
    pub tls: Arc<rustls::ClientConfig>,
    /// Why the connection was refused after its handshake.
    pub refusal: Noted,
}

/// The step that failed on the way.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The server's name has no address.
    #[error("the name {name} cannot be resolved")]
    Name {
        /// Without the port.
        name: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// Nobody answers at any address.
    #[error("no connection to {address}")]
    Tcp {
        /// The last one tried.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers, but not as a trusted aggregator that lets us in.
    #[error("TLS failed")]
    Tls {
        /// Why, as [`tls::fault`] can tell.
        source: io::Error,
    },
    /// HTTP/2 could not begin.
    #[error("the connection was closed at once")]
    Http {
        /// Why.
        source: tonic::transport::Error,
    },
    /// It took longer than allowed.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
}

impl Target {
    /// Every address of the server.
    ///
    /// # Errors
    /// When its name cannot be resolved.
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>, DialError> {
        let (name, port) = split_server(&self.server);
        let failed = |source| DialError::Name {
            name: name.to_owned(),
            source,
        };
        let found = tokio::net::lookup_host((name, port))
            .await
            .map_err(failed)?;
        let addresses: Vec<SocketAddr> = found.collect();
        if addresses.is_empty() {
            return Err(failed(io::Error::other("it has no address")));
        }
        Ok(addresses)
    }

    /// The first address that answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn tcp(addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
        let mut failed = None;
        for &address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // A question is one small packet; waiting to fill it would only cost time.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(source) => failed = Some(DialError::Tcp { address, source }),
            }
        }
        Err(failed.unwrap_or_else(|| DialError::Name {
            name: String::new(),
            source: io::Error::other("there is no address to try"),
        }))
    }

    /// The handshake.
    ///
    /// # Errors
    /// When the other side is not a trusted aggregator.
    pub async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, DialError> {
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(tls::server_name(), stream)
            .await
            .map_err(|source| DialError::Tls { source })
    }

    /// The whole way, within `timeout`.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn client(&self, timeout: Duration) -> Result<OperatorClient<Channel>, DialError> {
        let channel = self.channel(timeout).await?;
        Ok(OperatorClient::new(channel).max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES))
    }

    /// As [`Target::client`], for any service behind the door.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn channel(&self, timeout: Duration) -> Result<Channel, DialError> {
        let dial = async {
            let addresses = self.resolve().await?;
            let stream = Self::tcp(&addresses).await?;
            let stream = self.handshake(stream).await?;
            channel(stream, Arc::clone(&self.refusal))
                .await
                .map_err(|source| DialError::Http { source })
        };
        tokio::time::timeout(timeout, dial)
            .await
            .map_err(|_| DialError::Timeout(timeout))?
    }

    /// What to say when the way failed.
    #[must_use]
    pub fn unreachable(&self, error: &DialError) -> Failure {
        let server = &self.server;
        let why = match error {
            DialError::Name { name, source } => {
                format!("the name {name} cannot be resolved: {}", chain(source))
            }
            DialError::Tcp { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                "connection refused".to_owned()
            }
            DialError::Tcp { source, .. } => chain(source),
            DialError::Tls { source } => return self.tls_failure(source),
            DialError::Http { source } => match self.refusal() {
                Some(fault) => return self.fault_failure(&fault),
                None => chain(source),
            },
            DialError::Timeout(_) => chain(error),
        };
        let failure = Failure::new(Code::Unreachable, format!("cannot reach {server} ({why})"))
            .because(self.origin());
        self.ask_for_door(failure)
            .hint(
                "muster doctor",
                "check name, route, TLS and clock step by step",
            )
            .hint(
                "muster --context NAME …",
                "use another aggregator (muster context list)",
            )
    }

    fn tls_failure(&self, error: &io::Error) -> Failure {
        if let Some(fault) = tls::fault(error) {
            return self.fault_failure(&fault);
        }
        let why = if error.kind() == io::ErrorKind::UnexpectedEof {
            "the connection was closed in the TLS handshake".to_owned()
        } else {
            chain(error)
        };
        let failure = Failure::new(
            Code::Unreachable,
            format!("no TLS with {} ({why})", self.server),
        )
        .because(self.origin());
        self.ask_for_door(failure).hint(
            "muster doctor",
            "check name, route, TLS and clock step by step",
        )
    }

    /// An aggregator has several doors, and all but one are the wrong ones.
    fn ask_for_door(&self, failure: Failure) -> Failure {
        let (_, port) = split_server(&self.server);
        if port == OPERATOR_PORT {
            return failure;
        }
        failure.because(format!(
            "is {port} the port of an operator door? it usually is {OPERATOR_PORT}"
        ))
    }

    /// What to say when one side did not accept the other's certificate.
    #[must_use]
    pub fn fault_failure(&self, fault: &TlsFault) -> Failure {
        let ours = matches!(fault, TlsFault::Refused(_) | TlsFault::CertificateRequired);
        if ours {
            let failure = Failure::new(
                Code::Denied,
                format!("{} does not accept your certificate ({fault})", self.server),
            )
            .because(self.origin());
            return self.ask_for_door(failure).hint(
                "muster login --admin-socket PATH",
                "on the aggregator's host, for a new certificate",
            );
        }
        let not_ours = matches!(fault, TlsFault::NotTls | TlsFault::Incompatible);
        let what = if not_ours {
            format!("{} is not a Muster operator door ({fault})", self.server)
        } else {
            format!(
                "{} is not the aggregator it should be ({fault})",
                self.server
            )
        };
        let failure = Failure::new(Code::Unreachable, what).because(self.origin());
        self.ask_for_door(failure)
            .hint(
                "muster doctor",
                "check name, route, TLS and clock step by step",
            )
            .hint(
                "muster context list",
                "is this the address of the operator door (port 7445)?",
            )
    }

    /// What to say when the aggregator answered with an error.
    #[must_use]
    pub fn refused(&self, status: &tonic::Status) -> Failure {
        if let Some(fault) = self.refusal() {
            return self.fault_failure(&fault);
        }
        let message = status.message();
        // What the aggregator itself answers has no cause on this side.
        if let Some(cause) = std::error::Error::source(status) {
            let failure = Failure::new(
                Code::Unreachable,
                format!("{} did not answer ({})", self.server, chain(cause)),
            )
            .because(self.origin());
            return self.ask_for_door(failure).hint(
                "muster doctor",
                "check name, route, TLS and clock step by step",
            );
        }
        match status.code() {
            tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
                Failure::new(Code::Denied, format!("{} does not allow this", self.server))
                    .because(message)
                    .because(self.origin())
                    .hint("muster whoami", "see who you are to the aggregator")
            }
            tonic::Code::FailedPrecondition if status.metadata().contains_key(RENEW_FIRST) => {
                Failure::new(Code::Denied, message)
                    .because(self.origin())
                    .hint(
                        "muster login --admin-socket PATH",
                        "on the aggregator's host, for a new one",
                    )
            }
            tonic::Code::FailedPrecondition => Failure::new(Code::Failed, message),
            tonic::Code::NotFound => Failure::new(Code::NotFound, message),
            tonic::Code::InvalidArgument => Failure::new(Code::Usage, message),
            tonic::Code::ResourceExhausted => Failure::new(Code::Failed, message)
                .because("the aggregator limits how often one operator may ask")
                .hint("", "wait a few seconds, or ask less often"),
            tonic::Code::Unimplemented => Failure::new(
                Code::Failed,
                format!("{} is too old to answer this", self.server),
            )
            .hint(
                "muster version",
                "compare with the aggregator's, which muster whoami shows",
            ),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                Failure::new(
                    Code::Unreachable,
                    format!("{} did not answer ({message})", self.server),
                )
                .because(self.origin())
                .hint(
                    "muster doctor",
                    "check name, route, TLS and clock step by step",
                )
            }
            code => Failure::new(
                Code::Failed,
                format!("{} failed ({code:?}: {message})", self.server),
            )
            .because(self.origin())
            .hint(
                "journalctl -u muster-aggregator",
                "on its host: what went wrong there",
            ),
        }
    }

    /// What to say when it took too long.
    #[must_use]
    pub fn late(&self, timeout: Duration) -> Failure {
        Failure::new(
            Code::Unreachable,
            format!(
                "{} gave no answer within {} s",
                self.server,
                timeout.as_secs_f64()
            ),
        )
        .because(self.origin())
        .hint("muster --timeout 60 …", "wait longer")
        .hint(
            "muster doctor",
            "check name, route, TLS and clock step by step",
        )
    }

    /// Why the connection was refused after its handshake, if it was.
    #[must_use]
    pub fn refusal(&self) -> Option<TlsFault> {
        let refusal = self.refusal.lock();
        refusal.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn origin(&self) -> String {
        format!(
            "context \"{}\" from {}",
            self.context,
            tilde(&self.file.display().to_string())
        )
    }
}

/// A path as people write it.
#[must_use]
pub fn tilde(path: &str) -> String {
    match std::env::var("HOME") {
        Ok(home) if !home.is_empty() && home != "/" => match path.strip_prefix(&home) {
            Some(rest) if rest.starts_with('/') => format!("~{rest}"),
            _ => path.to_owned(),
        },
        _ => path.to_owned(),
    }
}

/// Name and port of `host:port`, `host`, `[::1]:port` or `::1`.
#[must_use]
pub fn split_server(server: &str) -> (&str, u16) {
    if server.parse::<std::net::Ipv6Addr>().is_ok() {
        return (server, OPERATOR_PORT);
    }
    let (name, port) = match server.rsplit_once(':') {
        Some((name, port)) => match port.parse() {
            Ok(port) => (name, port),
            Err(_) => (server, OPERATOR_PORT),
        },
        None => (server, OPERATOR_PORT),
    };
    // What is left of "[::1]" without a port was split inside the address.
    let name = if server.ends_with(']') { server } else { name };
    (name.trim_start_matches('[').trim_end_matches(']'), port)
}

/// A channel over a connection that is there already; it does not reconnect. Why it was refused is noted in
/// `fault`: the errors that reach the caller do not carry it.
///
/// # Errors
/// When HTTP/2 cannot begin on it.
pub async fn channel<S>(stream: S, fault: Noted) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = Noting {
        stream,
        fault,
        broken: false,
    };
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| io::Error::other("the connection is over")) }
    });
    // The authority is not looked at: the certificate says who the server is.
    Endpoint::from_static("http://aggregator.muster.internal")
        .connect_with_connector(connector)
        .await
}

/// What the other side had against us, once it said so.
pub type Noted = Arc<Mutex<Option<TlsFault>>>;

/// A connection that remembers why it was refused. In TLS 1.3 a server judges our certificate after our handshake
/// is done, so its refusal comes with the first read; tonic would drop it and try to connect again.
struct Noting<S> {
    stream: S,
    fault: Noted,
    /// Writing has failed.
    broken: bool,
}

impl<S: AsyncRead + Unpin> Noting<S> {
    fn note(&self, error: &io::Error) {
        let mut noted = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_none() {
            *noted = tls::fault(error);
        }
    }

    /// Writing failed because the other side is gone; what it said before is still there to read. Ready when
    /// that is done; as the other side has closed, it soon is.
    fn last_words(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let mut bytes = [0; 256];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) => break,
                Err(error) => {
                    self.note(&error);
                    break;
                }
            }
        }
        Poll::Ready(io::ErrorKind::BrokenPipe.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.note(error);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.broken {
            match ready!(Pin::new(&mut self.stream).poll_write(context, bytes)) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(_) => self.broken = true,
            }
        }
        Poll::Ready(Err(ready!(self.last_words(context))))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.broken {
            match ready!(Pin::new(&mut self.stream).poll_flush(context)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(_) => self.broken = true,
            }
        }
        Poll::Ready(Err(ready!(self.last_words(context))))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_a_name_and_a_port() {
        for (server, expected) in [
            ("muster.example:7000", ("muster.example", 7000)),
            ("muster.example", ("muster.example", 7445)),
            ("[::1]:7000", ("::1", 7000)),
            ("[::1]", ("::1", 7445)),
            ("::1", ("::1", 7445)),
            ("10.0.0.5:1", ("10.0.0.5", 1)),
        ] {
            assert_eq!(split_server(server), expected, "{server}");
        }
    }
}
