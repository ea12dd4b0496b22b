//! The agent's connection over real TLS, on byte pipes with time paused: who is let through, what is said
//! when a certificate is wrong, and how long the agent then waits.

use std::{sync::Arc, time::Duration};

use muster_agent::uplink::{
    Forgetful,
    connect::{Connecting, Connector, handshake},
};
use muster_proto::{
    id::HostId,
    spiffe::{MAIN_CELL, SpiffeId, TrustDomain},
    tls::{self, Credentials, Trust, TrustedTime},
    v1::{self, aggregator_message::Message as Down},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose as Usage, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{io::DuplexStream, sync::mpsc, time};

use crate::aggregator::{self, start_with, welcome};

/// A throwaway installation: one root that signs servers and agents.
struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    domain: TrustDomain,
}

impl Authority {
    fn new(domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self {
            root: CertifiedIssuer::self_signed(params, key).expect("a root"),
            domain: domain.parse().expect("a trust domain"),
        }
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    fn issue(&self, id: &SpiffeId, usage: Usage, until: i32) -> Credentials {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![usage];
        let uri = id.to_string().try_into().expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.root).expect("a certificate");
        Credentials {
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    }

    fn agent(&self) -> Credentials {
        self.issue(&self.agent_id(), Usage::ClientAuth, 4000)
    }

    fn agent_id(&self) -> SpiffeId {
        SpiffeId::Agent {
            domain: self.domain.clone(),
            cell: MAIN_CELL.to_owned(),
            host: HostId::from_bytes([7; 16]),
        }
    }

    fn aggregator_id(&self) -> SpiffeId {
        SpiffeId::Aggregator {
            domain: self.domain.clone(),
        }
    }

    fn trust(&self) -> Trust {
        Trust {
            roots: vec![self.certificate()],
            domain: self.domain.clone(),
            time: TrustedTime::default(),
        }
    }
}

/// TLS over a pipe to a server that has its own TLS.
struct Pipes {
    incoming: mpsc::UnboundedSender<DuplexStream>,
    config: Arc<rustls::ClientConfig>,
}

impl Connector for Pipes {
    fn address(&self) -> &str {
        "aggregator.test:7443"
    }

    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(16 * 1024);
            self.incoming.send(far).expect("the aggregator runs");
            handshake(Arc::clone(&self.config), near).await
        })
    }
}

/// An aggregator that shows `server` and lets in agents of `issuer`.
fn serve(
    server: Credentials,
    issuer: &Authority,
    mut connections: mpsc::UnboundedReceiver<DuplexStream>,
) -> mpsc::UnboundedReceiver<aggregator::Session> {
    let config = tls::server_config_agents(
        server,
        std::slice::from_ref(&issuer.certificate()),
        &issuer.domain,
    );
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("usable")));
    let (accepted, streams) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(connection) = connections.recv().await {
            let Ok(mut stream) = acceptor.accept(connection).await else {
                continue;
            };
            // tonic serves pipes, so what TLS carries goes on through another one.
            let (mut near, far) = tokio::io::duplex(16 * 1024);
            tokio::spawn(
                async move { tokio::io::copy_bidirectional(&mut stream, &mut near).await },
            );
            accepted.send(far).expect("the service runs");
        }
    });
    aggregator::serve(streams)
}

#[tokio::test(start_paused = true)]
async fn both_ends_prove_themselves_or_the_log_says_why_not() {
    let ours = Authority::new("m-aaaaaaaaaa");
    let other = Authority::new("m-aaaaaaaaaa");
    let elsewhere = Authority::new("m-bbbbbbbbbb");
    let server = |authority: &Authority, until| {
        authority.issue(&authority.aggregator_id(), Usage::ServerAuth, until)
    };
    let agent_as_server = ours.issue(&ours.agent_id(), Usage::ServerAuth, 4000);
    for (name, shown, agent, line) in [
        ("right", server(&ours, 4000), ours.agent(), None),
        (
            "another authority",
            server(&other, 4000),
            ours.agent(),
            Some("the aggregator's certificate is not accepted: the certificate was not issued by"),
        ),
        (
            "expired",
            server(&ours, 2020),
            ours.agent(),
            Some(
                "the aggregator's certificate is not accepted: the certificate expired at 2020-01-01",
            ),
        ),
        (
            "an agent in the aggregator's place",
            agent_as_server,
            ours.agent(),
            Some(
                "the aggregator's certificate is not accepted: the certificate speaks for spiffe://m-aaaaaaaaaa/cell",
            ),
        ),
        (
            "an agent of another installation",
            server(&ours, 4000),
            elsewhere.agent(),
            Some("the aggregator refused this host's certificate"),
        ),
        (
            "an agent whose certificate has expired",
            server(&ours, 4000),
            ours.issue(&ours.agent_id(), Usage::ClientAuth, 2020),
            Some("the aggregator refused this host's certificate: it is expired"),
        ),
    ] {
        let (incoming, connections) = mpsc::unbounded_channel();
        let mut sessions = serve(shown, &ours, connections);
        let config = tls::client_config(&ours.trust(), agent).expect("usable");
        let pipes = Pipes {
            incoming,
            config: Arc::new(config),
        };
        let (monitor, _stop, _agent) = start_with(Box::new(pipes), Box::new(Forgetful::default()));
        match line {
            None => {
                let mut session = sessions.recv().await.expect("a session");
                session.hello().await;
                session.say(Down::Welcome(welcome())).await;
                let frame = session.frame().await;
                assert_eq!((frame.seq, frame.lane()), (1, v1::Lane::Live));
                assert!(monitor.is_connected());
            }
            Some(line) => {
                // Not one attempt more before five minutes are over: a person has to act.
                let early = time::timeout(Duration::from_secs(299), sessions.recv()).await;
                assert!(early.is_err(), "{name}: a session");
                let start = "not connected to aggregator.test:7443: ";
                let shown = monitor.line();
                assert!(
                    shown.starts_with(&format!("{start}{line}")),
                    "{name}: {shown}"
                );
            }
        }
    }
}
