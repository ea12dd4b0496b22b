//! An accepted connection: the bytes above TLS or without it, who is at the other end, and how that one ended it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use muster_proto::{id::HostId, spiffe::SpiffeId, time::Timestamp};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{places::Place, visits::Turn};
use crate::{fleet::silence::Ended, pki::Origin};

/// HTTP/2 in the negotiation of TLS (RFC 9113, 3.1).
pub(super) const ALPN_H2: &[u8] = b"h2";

/// Who is at the other end, as the handshake proved it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where the connection comes from.
    pub addr: SocketAddr,
    /// Whom the certificate names; absent where no client certificate is asked for.
    pub id: Option<SpiffeId>,
    /// The certificate's serial, lower-case hexadecimal.
    pub serial: Option<String>,
    /// End of the certificate's life.
    pub cert_not_after: Option<Timestamp>,
    /// Of an agent's certificate what orders it among those of its host.
    pub origin: Option<Origin>,
    /// How the other side ended the connection, once it has.
    pub ending: Ending,
}

/// How the other side ended a connection: seen by whoever reads it, asked by whoever served it.
#[derive(Debug, Clone, Default)]
pub struct Ending(Arc<AtomicU8>);

impl Ending {
    const CLOSED: u8 = 1;
    const RESET: u8 = 2;
    const TIMED_OUT: u8 = 3;

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Ended {
        match self.0.load(Ordering::Acquire) {
            Self::CLOSED => Ended::Closed,
            Self::RESET => Ended::Reset,
            Self::TIMED_OUT => Ended::TimedOut,
            _ => Ended::ByUs,
        }
    }

    /// Takes note of what reading gave: the end of what the other side sends, or an error.
    fn note(&self, read: Result<usize, &io::Error>) {
        let ended = match read {
            Ok(0) => Self::CLOSED,
            Ok(_) => return,
            Err(error) => match error.kind() {
                // The end of the connection without the end of TLS: the process was killed.
                io::ErrorKind::UnexpectedEof => Self::CLOSED,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::RESET,
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => Self::TIMED_OUT,
                _ => return,
            },
        };
        // What was seen first is how it ended.
        let _ = self
            .0
            .compare_exchange(0, ended, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Peer {
    /// The host whose agent this is, if it is an agent.
    #[must_use]
    pub fn agent(&self) -> Option<HostId> {
        match self.id {
            Some(SpiffeId::Agent { host, .. }) => Some(host),
            _ => None,
        }
    }

    /// The operator this is, if it is one.
    #[must_use]
    pub fn operator(&self) -> Option<&str> {
        match &self.id {
            Some(SpiffeId::Operator { name, .. }) => Some(name),
            _ => None,
        }
    }
}

/// An accepted connection: bytes, and who is at the other end.
pub struct Conn {
    pub(super) io: Io,
    pub(super) peer: Peer,
    pub(super) _held: Held,
}

/// What a connection holds for its whole life.
pub(super) enum Held {
    Nothing,
    /// A place of the peer it proved to be.
    Peer(#[expect(dead_code, reason = "given back when dropped")] Place),
    /// A turn of its address, where nothing was proved.
    Address(#[expect(dead_code, reason = "given back when dropped")] Turn),
}

impl From<Option<Turn>> for Held {
    fn from(turn: Option<Turn>) -> Self {
        turn.map_or(Self::Nothing, Self::Address)
    }
}

pub(super) enum Io {
    Tls(Box<TlsStream<Socket>>),
    Plain(Socket),
}

/// The bytes below TLS, from whichever runtime.
pub(super) struct Socket(pub(super) Option<TcpStream>);

impl Socket {
    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let stream = self.0.as_mut().map(Pin::new);
        stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// From now on it is this thread's runtime that waits for it.
    fn adopt(&mut self) -> io::Result<()> {
        if let Some(stream) = self.0.take() {
            self.0 = Some(TcpStream::from_std(stream.into_std()?)?);
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Conn {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The connection on the runtime that this is called on, whichever accepted it.
    ///
    /// # Errors
    /// When the socket cannot be handed over, for want of memory.
    pub fn moved(mut self) -> io::Result<Self> {
        match &mut self.io {
            Io::Tls(stream) => stream.get_mut().0.adopt()?,
            Io::Plain(socket) => socket.adopt()?,
        }
        Ok(self)
    }

    /// Whether TLS negotiated HTTP/2 (ALPN). A client that names no protocol, and any without TLS, speaks HTTP/1.1.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        match &self.io {
            Io::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(ALPN_H2),
            Io::Plain(_) => false,
        }
    }
}

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        match &read {
            Poll::Ready(Ok(())) if room > 0 => {
                self.peer.ending.note(Ok(buffer.filled().len() - before));
            }
            Poll::Ready(Err(error)) => self.peer.ending.note(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tls(stream) => stream.is_write_vectored(),
            Io::Plain(stream) => stream.is_write_vectored(),
        }
    }
}
