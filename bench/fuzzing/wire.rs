//! What comes from peers and people: messages, payloads, requests, tokens, names, configurations.

use std::{collections::BTreeMap, fs, str, time::Duration};

use anyhow::Context as _;
use muster_agent::{Source as _, simulate::SimulatedHost, telemetry::Own};
use muster_aggregator::{
    detect::Engine,
    fleet::{
        Enrolled, HostState,
        host::{FrameIn, Lane, Receiving, Session, Verdict},
        names::Names,
    },
    pki::Request,
};
use muster_proto::{
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    limits,
    spiffe::{SpiffeId, peer_id},
    time::Timestamp,
    token::Token,
    v1,
};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio::time::Instant;

use crate::Target;

const START_MS: i64 = 1_700_000_000_000;

/// All of them.
pub(crate) fn targets() -> anyhow::Result<Vec<Box<dyn Target>>> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    let spiffe = "spiffe://m-abcdefghjk/cell/main/agent/000102030405060708090a0b0c0d0e0f";
    let mut named = CertificateParams::default();
    named.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
    let certificate = named.self_signed(&key)?;
    let random = ring::rand::SystemRandom::new();
    let token = Token::generate([7; 32], &random).map_err(|_| anyhow::anyhow!("no chance"))?;
    Ok(vec![
        Box::new(Frames::new()),
        Box::new(Reader {
            name: "agent-message",
            seeds: agent_messages(),
            read: |bytes| v1::AgentMessage::decode(bytes).is_ok(),
        }),
        Box::new(Reader {
            name: "csr",
            seeds: vec![request.der().to_vec()],
            read: |bytes| Request::check(bytes).is_ok(),
        }),
        Box::new(Reader {
            name: "certificate",
            seeds: vec![certificate.der().to_vec()],
            read: |bytes| peer_id(&bytes.into()).is_ok(),
        }),
        Box::new(Reader {
            name: "token",
            seeds: vec![token.to_string().into_bytes()],
            read: |bytes| text(bytes).is_some_and(|text| text.parse::<Token>().is_ok()),
        }),
        Box::new(Reader {
            name: "spiffe-id",
            seeds: vec![spiffe.into(), "spiffe://m-abcdefghjk/operator/jo".into()],
            read: |bytes| text(bytes).is_some_and(|text| text.parse::<SpiffeId>().is_ok()),
        }),
        Box::new(Configuration::new("agent-config", AGENT_CONFIG, |path| {
            muster_agent::config::Config::load(Some(path)).is_ok()
        })?),
        Box::new(Configuration::new(
            "aggregator-config",
            AGGREGATOR_CONFIG,
            |path| muster_aggregator::config::load(Some(path)).is_ok(),
        )?),
    ])
}

const AGENT_CONFIG: &str = include_str!("../../packaging/agent.toml");
const AGGREGATOR_CONFIG: &str = include_str!("../../packaging/aggregator.toml");

fn text(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()
}

/// A function of the bytes alone.
struct Reader {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    read: fn(&[u8]) -> bool,
}

impl Target for Reader {
    fn name(&self) -> &'static str {
        self.name
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        self.seeds.clone()
    }

    fn read(&mut self, _: usize, bytes: &[u8]) -> anyhow::Result<bool> {
        Ok((self.read)(bytes))
    }
}

/// A file that a person writes.
struct Configuration {
    name: &'static str,
    seed: Vec<u8>,
    folder: tempfile::TempDir,
    load: fn(&std::path::Path) -> bool,
}

impl Configuration {
    fn new(
        name: &'static str,
        example: &str,
        load: fn(&std::path::Path) -> bool,
    ) -> anyhow::Result<Self> {
        // The example's keys are commented out: here they count.
        let lines = example.lines().map(|line| {
            let key = line.strip_prefix('#').unwrap_or(line);
            let is_key = key.contains(" = ") && !key.starts_with(' ');
            if is_key { key } else { line }
        });
        Ok(Self {
            name,
            seed: lines.collect::<Vec<_>>().join("\n").into_bytes(),
            folder: tempfile::tempdir()?,
            load,
        })
    }
}

impl Target for Configuration {
    fn name(&self) -> &'static str {
        self.name
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![Vec::new(), self.seed.clone()]
    }

    fn read(&mut self, at: usize, bytes: &[u8]) -> anyhow::Result<bool> {
        let path = self.folder.path().join("fuzzed.toml");
        fs::write(&path, bytes).context("cannot write the configuration")?;
        let accepted = (self.load)(&path);
        // The example with all its keys need not be a working configuration: files it names may be missing.
        Ok(accepted || (at == 1 && bytes == self.seed))
    }
}

fn agent_messages() -> Vec<Vec<u8>> {
    use v1::agent_message::Message;
    let host = SimulatedHost::new(1);
    let frames = payloads().into_iter().enumerate().map(|(at, payload)| {
        Message::Frame(v1::Frame {
            incarnation: 1,
            seq: at as u64 + 1,
            crc32c: crc32c::crc32c(&payload),
            payload,
            ..v1::Frame::default()
        })
    });
    let hello = Message::Hello(v1::Hello {
        incarnation: 1,
        session: 1,
        boot_id: vec![1; 16],
        facts: Some(host.facts()),
        ..v1::Hello::default()
    });
    let messages = frames.chain([hello]).map(|message| v1::AgentMessage {
        message: Some(message),
    });
    messages.map(|message| message.encode_to_vec()).collect()
}

/// A key frame and the deltas after it.
fn payloads() -> Vec<Vec<u8>> {
    let mut host = SimulatedHost::new(1);
    let mut encoder = Encoder::new();
    (0..4)
        .map(|tick| {
            let at = Timestamp::from_millis(START_MS + tick * 1000);
            let (table, events) = host.sample(at, &Own::default());
            let mut payload = Vec::new();
            encoder.encode(table, &events, false, &mut payload);
            payload
        })
        .collect()
}

/// Payloads at the fold of a host: what is refused changes nothing, the books hold.
struct Frames {
    payloads: Vec<Vec<u8>>,
}

impl Frames {
    fn new() -> Self {
        Self {
            payloads: payloads(),
        }
    }
}

impl Target for Frames {
    fn name(&self) -> &'static str {
        "frame"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        self.payloads.clone()
    }

    fn read(&mut self, at: usize, bytes: &[u8]) -> anyhow::Result<bool> {
        let who = Enrolled {
            id: HostId::from_bytes([7; 16]),
            name: "fuzzed".into(),
            labels: BTreeMap::new(),
            facts: v1::HostFacts::default(),
            certificate_not_after: None,
        };
        let mut host = HostState::new(who, Timestamp::from_millis(START_MS));
        host.begin_session(Session {
            incarnation: Incarnation(1),
            session: 1,
            boot_id: vec![1; 16],
            interval: Duration::from_secs(1),
            clock_offset_ms: 0,
        });
        let (engine, mut names, mut changes) =
            (Engine::default(), Names::default(), Changes::default());
        let mut accepted = false;
        for place in 0..=at {
            let payload = if place == at {
                bytes
            } else {
                &self.payloads[place]
            };
            let tick = START_MS + place as i64 * 1000;
            let frame = FrameIn {
                incarnation: Incarnation(1),
                seq: place as u64 + 1,
                lane: Lane::Live,
                tick: Timestamp::from_millis(tick),
                received: Timestamp::from_millis(tick),
                crc32c: crc32c::crc32c(payload),
                payload: payload.to_vec().into(),
            };
            let mut context = Receiving {
                names: &mut names,
                engine: &engine,
                changes: &mut changes,
                series_quota: limits::DEFAULT_SERIES_QUOTA,
                now: Instant::now(),
                replayed: false,
            };
            let verdict = host.receive(&frame, &mut context, &mut Vec::new());
            accepted = verdict == Verdict::Store;
            if accepted {
                host.stored(frame.incarnation, frame.seq);
            }
        }
        let books = host.books();
        anyhow::ensure!(
            books.produced == books.stored + books.rejected + books.lost,
            "the books do not balance: {books:?}"
        );
        anyhow::ensure!(
            host.series_count() <= limits::DEFAULT_SERIES_QUOTA,
            "the quota does not hold"
        );
        Ok(accepted)
    }
}
