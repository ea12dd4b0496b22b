//! A door in front of the agents' connections that can be shut: what stands breaks, what is new is refused.

use std::{
    io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use muster_agent::uplink::{
    connect::{Connecting, Connector, Stream},
    fault::Fault,
};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The door; open at first.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<CancellationToken>);

impl Gate {
    fn now(&self) -> CancellationToken {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Shuts it.
    pub(crate) fn cut(&self) {
        self.now().cancel();
    }

    /// Opens it.
    pub(crate) fn heal(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = CancellationToken::new();
    }
}

/// A connector behind the door.
pub(crate) struct Gated {
    /// What connects.
    pub inner: Box<dyn Connector>,
    /// The door.
    pub gate: Arc<Gate>,
}

impl Connector for Gated {
    fn address(&self) -> &str {
        self.inner.address()
    }

    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            let shut = self.gate.now();
            if shut.is_cancelled() {
                return Err(Fault::Tcp(io::ErrorKind::ConnectionRefused.into()));
            }
            let inner = self.inner.connect().await?;
            let shut = Box::pin(shut.cancelled_owned());
            Ok(Box::new(Breakable { inner, shut }) as Box<dyn Stream>)
        })
    }
}

/// A stream that ends when the door is shut.
struct Breakable {
    inner: Box<dyn Stream>,
    shut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Breakable {
    fn broken(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.shut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Breakable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.broken(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.broken(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.broken(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
