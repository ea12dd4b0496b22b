//! A TCP connection whose incoming bytes wake nobody while nobody waits for them.
//!
//! Once a second a frame goes out, and some milliseconds later its acknowledgement comes back. To be woken for that costs
//! as much as reading half of the host. So while a session has nothing under way but its newest frame, the kernel is not
//! asked to tell of bytes that come in; they are read when the next round begins ([`Ear::ring`]), before it is taken.
//! What then is known a second later than it could be: that a frame is durable, that the aggregator wants
//! something, and that the connection has ended.
//!
//! [`Ear`] is what both ends of that share. It listens until it is told to doze, and only where its owner rings
//! ([`Ear::will_be_rung`]).

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::fd::{AsRawFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// Whether a connection's incoming bytes are waited for. One for all connections of an agent: that of its session, and
/// one that tries meanwhile whether the first server is back.
#[derive(Debug, Default)]
pub struct Ear {
    is_rung: AtomicBool,
    dozes: AtomicBool,
    /// How often it was rung.
    rings: AtomicU64,
    readers: Mutex<Vec<Waker>>,
}

impl Ear {
    /// Somebody rings at each round: without that, bytes would never be read.
    pub fn will_be_rung(&self) {
        self.is_rung.store(true, Ordering::Relaxed);
    }

    /// From now on bytes that come in wait for the next ring (`true`), or are read as they come.
    pub fn doze(&self, dozes: bool) {
        let dozes = dozes && self.is_rung.load(Ordering::Relaxed);
        if self.dozes.swap(dozes, Ordering::Relaxed) && !dozes {
            self.wake();
        }
    }

    /// Whether bytes that come in wait for the next ring.
    pub fn dozes(&self) -> bool {
        self.dozes.load(Ordering::Relaxed)
    }

    /// What came in meanwhile is to be read now; whether it was waiting for this. The reader is woken.
    pub fn ring(&self) -> bool {
        let dozes = self.dozes();
        if dozes {
            self.rings.fetch_add(1, Ordering::Relaxed);
            self.wake();
        }
        dozes
    }

    fn wake(&self) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.drain(..).for_each(Waker::wake);
    }

    fn keep(&self, waker: &Waker) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if !readers.iter().any(|kept| kept.will_wake(waker)) {
            readers.push(waker.clone());
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct QuietTcp {
    /// Registered for writing only, and for what breaks it.
    stream: AsyncFd<TcpStream>,
    /// The same connection, registered for reading; none while the ear dozes.
    incoming: Option<AsyncFd<OwnedFd>>,
    ear: Arc<Ear>,
    /// The rings after which all that was there has been read.
    heard: u64,
}

#[expect(
    deprecated,
    reason = "unsound for descriptors that close under it, which those that are owned do not; what replaces it is unsafe"
)]
fn registered<T: AsRawFd>(owned: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owned, interest)
}

impl QuietTcp {
    /// Takes over a connection.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(stream: tokio::net::TcpStream, ear: Arc<Ear>) -> io::Result<Self> {
        Ok(Self {
            stream: registered(stream.into_std()?, Interest::WRITABLE)?,
            incoming: None,
            heard: ear.rings.load(Ordering::Relaxed),
            ear,
        })
    }

    /// Reads what is there.
    fn read(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let length = self.stream.get_ref().read(buf.initialize_unfilled())?;
        buf.advance(length);
        Ok(())
    }

    /// Reads what is there if the ear was rung, and else leaves it.
    fn poll_rung(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.incoming = None;
        // Before looking whether it was rung, so that a ring meanwhile is not missed.
        self.ear.keep(cx.waker());
        let rings = self.ear.rings.load(Ordering::Relaxed);
        while self.heard != rings {
            match self.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.heard = rings,
                outcome => {
                    // With less than there was room for this was all; with more to come another ring reads it.
                    if buf.remaining() > 0 {
                        self.heard = rings;
                    }
                    return Poll::Ready(outcome);
                }
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for QuietTcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ear.dozes() {
            return this.poll_rung(cx, buf);
        }
        this.ear.keep(cx.waker());
        let incoming = match this.incoming.take() {
            Some(incoming) => incoming,
            None => {
                let same: OwnedFd = this.stream.get_ref().try_clone()?.into();
                registered(same, Interest::READABLE)?
            }
        };
        let incoming = this.incoming.insert(incoming);
        loop {
            let mut guard = ready!(incoming.poll_read_ready(cx))?;
            let length = guard.try_io(|_| this.stream.get_ref().read(buf.initialize_unfilled()));
            match length {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Ok(length)) => {
                    if length > 0 && length < buf.remaining() {
                        // That was all: the kernel tells when there is more.
                        guard.clear_ready();
                    }
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl QuietTcp {
    fn poll_to_write(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut &TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.stream.poll_write_ready(cx))?;
            match guard.try_io(|stream| write(&mut stream.get_ref())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => return Poll::Ready(outcome),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for QuietTcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_to_write(cx, |stream| stream.write(buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(std::net::Shutdown::Write))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_to_write(cx, |stream| stream.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn pair(ear: &Arc<Ear>) -> (QuietTcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        let quiet = QuietTcp::new(ours.expect("connected"), Arc::clone(ear)).expect("watched");
        (quiet, theirs.expect("accepted").0)
    }

    /// What there is to read without waiting.
    async fn at_once(stream: &mut QuietTcp) -> Option<Vec<u8>> {
        let mut bytes = [0; 64];
        let mut buf = ReadBuf::new(&mut bytes);
        let read =
            std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_read(cx, &mut buf)));
        match read.await {
            Poll::Ready(outcome) => {
                outcome.expect("reads");
                Some(buf.filled().to_vec())
            }
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn a_listening_ear_reads_what_comes_and_a_dozing_one_what_is_there_when_it_is_rung() {
        let ear = Arc::new(Ear::default());
        let (mut ours, mut theirs) = pair(&ear).await;
        let mut bytes = [0; 5];
        theirs.write_all(b"hello").await.expect("written");
        let read = timeout(LONG, ours.read_exact(&mut bytes)).await;
        read.expect("woken").expect("read");
        assert_eq!(&bytes, b"hello");

        ear.doze(true);
        assert!(!ear.ring(), "where nobody rings, nobody dozes");
        ear.will_be_rung();
        ear.doze(true);
        assert_eq!(at_once(&mut ours).await, None);
        assert!(ours.incoming.is_none(), "the kernel is not asked");
        theirs.write_all(b"later").await.expect("written");
        // On the loopback what is written is there at once.
        assert_eq!(at_once(&mut ours).await, None, "left until it is rung");
        assert!(ear.ring());
        assert_eq!(at_once(&mut ours).await.as_deref(), Some(&b"later"[..]));
        assert_eq!(at_once(&mut ours).await, None);
        assert_eq!(ours.heard, 1, "one ring, one look");

        // Who waits is woken by the ring, and when the ear listens again.
        theirs.write_all(b"again").await.expect("written");
        let (read, ()) = tokio::join!(timeout(LONG, ours.read_exact(&mut bytes)), async {
            ear.ring();
        });
        read.expect("woken").expect("read");
        assert_eq!(&bytes, b"again");
        let (read, ()) = tokio::join!(timeout(LONG, ours.read_exact(&mut bytes)), async {
            ear.doze(false);
            theirs.write_all(b"awake").await.expect("written");
        });
        read.expect("woken").expect("read");
        assert_eq!(&bytes, b"awake");
    }

    #[tokio::test]
    async fn a_ring_is_for_all_connections() {
        let ear = Arc::new(Ear::default());
        ear.will_be_rung();
        ear.doze(true);
        let (mut one, mut to_one) = pair(&ear).await;
        let (mut other, mut to_other) = pair(&ear).await;
        to_one.write_all(b"1").await.expect("written");
        to_other.write_all(b"2").await.expect("written");
        let (mut first, mut second) = ([0], [0]);
        let reads =
            async { tokio::join!(one.read_exact(&mut first), other.read_exact(&mut second)) };
        let (reads, ()) = tokio::join!(timeout(LONG, reads), async {
            assert!(ear.ring());
        });
        let (one, other) = reads.expect("both are woken");
        assert!(one.is_ok() && other.is_ok());
        assert_eq!((&first, &second), (b"1", b"2"));
    }

    #[tokio::test]
    async fn both_ways_hold_more_than_the_kernel_and_end() {
        let ear = Arc::new(Ear::default());
        let (ours, theirs) = pair(&ear).await;
        let much = vec![7u8; 8 << 20];
        let (mut from, mut to) = tokio::io::split(ours);
        let (mut their_from, mut their_to) = theirs.into_split();
        let write = async {
            to.write_all(&much).await.expect("written");
            to.shutdown().await.expect("shut");
        };
        let echo = async {
            tokio::io::copy(&mut their_from, &mut their_to)
                .await
                .expect("copied");
            their_to.shutdown().await.expect("shut");
        };
        let mut back = Vec::new();
        let read = async { from.read_to_end(&mut back).await.expect("read") };
        let ((), (), length) = timeout(LONG, async { tokio::join!(write, echo, read) })
            .await
            .expect("to an end");
        assert_eq!(length, much.len());
    }
}
