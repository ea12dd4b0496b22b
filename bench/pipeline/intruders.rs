//! Peers that no agent is: with a stolen or forged identity, or with a good one and no manners.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use muster_agent::{Source as _, enrol, identity::Identity, simulate::SimulatedHost};
use muster_proto::{
    spiffe::{MAIN_CELL, SpiffeId},
    tls::{Credentials, TrustedTime, server_name},
    token::Token,
    v1::{AggregatorMessage, DenyReason, aggregator_message},
};
use prost::Message as _;
use rcgen::{Certificate, CertificateParams, KeyPair, SanType};
use rustls::{ClientConfig, HandshakeKind, client::Resumption};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::run::Run;

/// Each hostile connection must be over within this, as every silent one must.
const OVER_WITHIN: Duration = Duration::from_secs(15);

/// HTTP/2 (RFC 9113): preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
/// Before a message of gRPC: whether it is compressed, and its length.
const GRPC_HEAD: usize = 5;
/// What a reset says: CANCEL.
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// What a peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Shows no certificate, one that it made itself, or one at a door it is not for.
    WrongIdentity,
    /// Opens streams and resets them, as fast as it can.
    RapidReset,
    /// Sends more than anyone takes.
    Oversized,
}

/// One peer of the kind, beside the fleet; the doors are where the aggregator has them.
pub(crate) fn meet(run: &mut Run, peer: Peer, count: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let state = run.installation.folder().join("peer");
    if !state.exists() {
        runtime.block_on(join(run, state.clone()))?;
    }
    let identity = Identity::load(&state)?;
    let (uplink, operator) = (run.installation.uplink(), run.installation.operator_door());
    let mut slowest = Duration::ZERO;
    for number in 0..count {
        let began = Instant::now();
        let done = async {
            match peer {
                Peer::WrongIdentity => wrong_identity(&identity, uplink, operator, number).await,
                Peer::RapidReset => rapid_reset(&identity, uplink).await.map(|resets| {
                    run.worst("resets_taken", f64::from(resets));
                }),
                Peer::Oversized => oversized(&identity, uplink, number).await,
            }
        };
        runtime
            .block_on(async { time::timeout(OVER_WITHIN, done).await })
            .with_context(|| format!("{peer:?} number {number} was not ended in time"))??;
        slowest = slowest.max(began.elapsed());
    }
    run.add("peers", f64::from(count));
    run.worst("ended_after_seconds_max", slowest.as_secs_f64());
    // The fleet goes on meanwhile, and does for a while.
    run.pass(Duration::from_secs(1))
}

/// A host that joins for this, as an attacker's would.
async fn join(run: &Run, state: PathBuf) -> anyhow::Result<()> {
    std::fs::create_dir(&state)?;
    let token: Token = run.plan().token.parse()?;
    let facts = SimulatedHost::new(u64::MAX).facts();
    let door = run.plan().enrolment.to_string();
    enrol::enrol(&door, &token, facts, &state).await?;
    Ok(())
}

type Tls = TlsStream<TcpStream>;

async fn connect(config: ClientConfig, to: SocketAddr) -> io::Result<Tls> {
    let tcp = TcpStream::connect(to).await?;
    TlsConnector::from(Arc::new(config))
        .connect(server_name(), tcp)
        .await
}

fn trusted(identity: &Identity) -> anyhow::Result<ClientConfig> {
    Ok(identity.client_config(&TrustedTime::default())?)
}

/// Reads until the other end closes, in whatever way.
async fn closed(stream: &mut Tls) {
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes).await, Ok(count) if count > 0) {}
}

async fn wrong_identity(
    identity: &Identity,
    uplink: SocketAddr,
    operator: SocketAddr,
    number: u32,
) -> anyhow::Result<()> {
    let (config, door) = match number % 3 {
        0 => {
            let mut config = trusted(identity)?;
            config.client_auth_cert_resolver = Arc::new(NoCertificate);
            (config, uplink)
        }
        1 => (trusted(&forged(identity)?)?, uplink),
        _ => (trusted(identity)?, operator),
    };
    // With TLS 1.3 the refusal of a certificate shows at the first read.
    let Ok(mut stream) = connect(config, door).await else {
        return Ok(());
    };
    if stream.write_all(PREFACE).await.is_err() {
        return Ok(());
    }
    let mut first = [0; 9];
    match stream.read_exact(&mut first).await {
        Err(_) => Ok(()),
        Ok(_) => bail!(
            "a peer with the wrong identity (kind {}) was let in",
            number % 3
        ),
    }
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// The same host by its name, vouched for by nobody.
fn forged(identity: &Identity) -> anyhow::Result<Identity> {
    let (certificate, key) = self_made(identity)?;
    Ok(Identity {
        host_id: identity.host_id,
        trust_domain: identity.trust_domain.clone(),
        uplink_address: identity.uplink_address.clone(),
        credentials: Credentials {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        },
        roots: identity.roots.clone(),
        bundle_version: identity.bundle_version,
        is_next: false,
    })
}

/// A certificate that names the host, made by itself, and its key.
pub(crate) fn self_made(identity: &Identity) -> anyhow::Result<(Certificate, KeyPair)> {
    let key = KeyPair::generate()?;
    let name = SpiffeId::Agent {
        domain: identity.trust_domain.clone(),
        cell: MAIN_CELL.to_owned(),
        host: identity.host_id,
    };
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name.to_string().try_into()?)];
    let certificate = params.self_signed(&key)?;
    Ok((certificate, key))
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Begins a call of the uplink (RFC 7541 with nothing kept in its table).
fn request(stream: u32) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (&[0x04][..], &b"/muster.v1.Uplink/Session"[..]),
        (&[0x01], b"aggregator"),
        (&[0x0f, 0x10], b"application/grpc"),
        (b"\0\x02te", b"trailers"),
    ] {
        block.extend(name);
        block.push(u8::try_from(value.len()).unwrap_or(0));
        block.extend(value);
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// Resets that are tried at most.
const RESETS: u32 = 100_000;

/// How many the other end took before it closed.
async fn rapid_reset(identity: &Identity, uplink: SocketAddr) -> anyhow::Result<u32> {
    let stream = connect(trusted(identity)?, uplink).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let drain = async {
        let mut bytes = [0; 4096];
        while matches!(from.read(&mut bytes).await, Ok(count) if count > 0) {}
    };
    let mut sent = 0;
    let flood = async {
        to.write_all(PREFACE).await?;
        while sent < RESETS {
            let stream = sent * 2 + 1;
            let mut bytes = request(stream);
            bytes.extend(frame(RST_STREAM, 0, stream, &CANCEL));
            to.write_all(&bytes).await?;
            to.flush().await?;
            sent += 1;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        () = drain => {}
        _ = flood => {}
    }
    ensure!(
        sent < RESETS,
        "{RESETS} streams were opened and reset, and nobody minded"
    );
    Ok(sent)
}

/// A message that says it has 4 GiB, or a frame of the largest length that HTTP/2 can write.
async fn oversized(identity: &Identity, uplink: SocketAddr, number: u32) -> anyhow::Result<()> {
    let mut stream = connect(trusted(identity)?, uplink).await?;
    let mut bytes = PREFACE.to_vec();
    bytes.extend(request(1));
    if number.is_multiple_of(2) {
        bytes.extend(frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]));
    } else {
        bytes.extend([0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]);
    }
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    if number.is_multiple_of(2) {
        // The call ends, not the connection: its trailers have END_STREAM, or it is reset.
        call_ended(&mut stream).await?;
        return Ok(());
    }
    closed(&mut stream).await;
    Ok(())
}

/// Hears the call to its end, or that of the connection; what was answered until then, as gRPC sends it.
async fn call_ended(stream: &mut Tls) -> anyhow::Result<Vec<u8>> {
    let mut answered = Vec::new();
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return Ok(answered);
        }
        let [_, _, _, kind, flags, ..] = head;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        let of_call = head[8] == 1;
        if of_call && kind == DATA {
            answered.extend(payload);
        }
        if of_call && (kind == RST_STREAM || flags & END_STREAM != 0) {
            return Ok(answered);
        }
    }
}

/// TLS with a peer's identity and a memory for tickets, which agents do not have, to come back with.
pub(crate) struct Returning {
    config: Arc<ClientConfig>,
    door: SocketAddr,
}

impl Returning {
    /// Connects once and keeps the tickets.
    pub(crate) async fn after_a_visit(state: PathBuf, door: SocketAddr) -> anyhow::Result<Self> {
        let mut config = trusted(&Identity::load(&state)?)?;
        config.resumption = Resumption::default();
        let config = Arc::new(config);
        let returning = Self { config, door };
        let mut stream = returning.connect().await?;
        stream.write_all(PREFACE).await?;
        // Tickets come with the first bytes.
        let mut first = [0; 9];
        stream.read_exact(&mut first).await?;
        Ok(returning)
    }

    async fn connect(&self) -> io::Result<Tls> {
        let tcp = TcpStream::connect(self.door).await?;
        TlsConnector::from(Arc::clone(&self.config))
            .connect(server_name(), tcp)
            .await
    }

    /// Comes back with a Hello; whether TLS was resumed, and the reason of the Deny that ended the call.
    pub(crate) async fn is_denied(&self, hello: &[u8]) -> anyhow::Result<(bool, DenyReason)> {
        let mut stream = self.connect().await?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        let mut bytes = PREFACE.to_vec();
        bytes.extend(request(1));
        bytes.extend(frame(DATA, 0, 1, hello));
        stream.write_all(&bytes).await?;
        let ended = time::timeout(OVER_WITHIN, call_ended(&mut stream)).await;
        let answered = ended.context("the call was let in")??;
        let message = answered.get(GRPC_HEAD..).context("no answer")?;
        match AggregatorMessage::decode(message)?.message {
            Some(aggregator_message::Message::Deny(deny)) => Ok((resumed, deny.reason())),
            other => bail!("no refusal but {other:?}"),
        }
    }
}
