//! A TCP proxy in front of a door, with weather: what networks do to connections on bad days.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::watch,
    time,
};

/// What is read at a time.
const CHUNK: usize = 16 * 1024;

/// How long each chunk is held up in [`Weather::Slow`].
const DELAY: Duration = Duration::from_millis(200);

/// Of so many chunks one is damaged in [`Weather::Flips`].
const DAMAGED: u32 = 20;

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Nothing.
    Clear,
    /// They arrive one by one, each in a packet of its own.
    Bytewise,
    /// They arrive late.
    Slow,
    /// Now and then one is another.
    Flips,
    /// One direction ends, the other goes on.
    HalfClosed,
    /// They vanish, and nobody is told.
    Blackhole,
    /// Connections are reset, new ones at once.
    Refused,
}

/// All but the clear sky; what lasts longest comes last.
pub(crate) const BAD: [Weather; 6] = [
    Weather::Bytewise,
    Weather::Slow,
    Weather::Flips,
    Weather::HalfClosed,
    Weather::Refused,
    Weather::Blackhole,
];

/// The proxy; ends with the value.
pub(crate) struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Runs it.
    _runtime: Runtime,
}

impl Proxy {
    /// A proxy in front of `door`, under a clear sky. Its own door is on loopback.
    pub(crate) fn before(door: SocketAddr, seed: u64) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("no free port for the proxy")?;
        let address = listener.local_addr()?;
        let (weather, now) = watch::channel(Weather::Clear);
        runtime.spawn(accept(listener, door, now, seed));
        Ok(Self {
            address,
            weather,
            _runtime: runtime,
        })
    }

    /// Where to connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather, also for connections that stand.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn accept(
    listener: TcpListener,
    door: SocketAddr,
    weather: watch::Receiver<Weather>,
    mut seed: u64,
) {
    loop {
        // Out of descriptors, or a peer that has gone: the next one is another.
        let Ok((near, _)) = listener.accept().await else {
            time::sleep(DELAY).await;
            continue;
        };
        seed = seed.wrapping_add(1);
        tokio::spawn(relay(near, door, weather.clone(), seed));
    }
}

/// What one connection goes through; ends with its first direction that breaks.
async fn relay(near: TcpStream, door: SocketAddr, weather: watch::Receiver<Weather>, seed: u64) {
    if *weather.borrow() == Weather::Refused {
        reset(&near);
        return;
    }
    let Ok(far) = TcpStream::connect(door).await else {
        return;
    };
    // Without this bytes are gathered again that were taken apart.
    if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
        return;
    }
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    let up = pump(
        from_near,
        to_far,
        weather.clone(),
        fastrand::Rng::with_seed(seed),
    );
    let down = pump(from_far, to_near, weather, fastrand::Rng::with_seed(!seed));
    // A half that has ended in order lets the other go on; one that broke does not.
    tokio::select! {
        Err(_) = up => {}
        Err(_) = down => {}
        else => {}
    }
}

/// With nothing lingering, closing is a reset.
fn reset(stream: &TcpStream) {
    // One that fails has gone already.
    let _ = stream.set_zero_linger();
}

/// A half that is not shut down in order when it goes: a connection that is reset must not end before.
struct Half(Option<OwnedWriteHalf>);

impl Half {
    fn half(&mut self) -> io::Result<&mut OwnedWriteHalf> {
        self.0.as_mut().ok_or(io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(half) = self.0.take() {
            half.forget();
        }
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    mut random: fastrand::Rng,
) -> io::Result<()> {
    let mut to = Half(Some(to));
    let mut bytes = vec![0; CHUNK];
    let mut half_closed = false;
    loop {
        let now = *weather.borrow_and_update();
        if now == Weather::Refused {
            reset(from.as_ref());
            reset((*to.half()?).as_ref());
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if now == Weather::HalfClosed && !half_closed && random.bool() {
            half_closed = true;
            to.half()?.shutdown().await?;
        }
        let count = tokio::select! {
            read = from.read(&mut bytes) => read?,
            // A sender that is gone is the end of the run.
            changed = weather.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
        };
        if count == 0 {
            return to.half()?.shutdown().await;
        }
        let chunk = &mut bytes[..count];
        match now {
            // What was swallowed cannot be made up for: the stream has a hole, and ends with the weather.
            Weather::Blackhole => {
                weather
                    .wait_for(|now| *now != Weather::Blackhole)
                    .await
                    .ok();
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            _ if half_closed => continue,
            Weather::Bytewise => {
                for byte in chunk.iter() {
                    to.half()?.write_all(std::slice::from_ref(byte)).await?;
                }
                continue;
            }
            Weather::Slow => time::sleep(DELAY).await,
            Weather::Flips if random.u32(..DAMAGED) == 0 => {
                let at = random.usize(..chunk.len());
                chunk[at] ^= 1 << random.u32(..8);
            }
            _ => {}
        }
        to.half()?.write_all(chunk).await?;
    }
}
