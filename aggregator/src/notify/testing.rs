//! Receivers over real sockets that do what tests ask of them.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::{Channel, Kind, config::Heartbeat, http::Client};
use crate::{detect::Severity, selector::Selector};

/// What a receiver does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    /// Takes it, with this status.
    Answers(u16),
    /// Reads it and closes the connection.
    Dies,
}

/// What was received.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) head: String,
    pub(super) body: String,
}

impl Got {
    /// A header by its lower-case name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// An HTTP server that follows a script; with an empty script it takes everything.
pub(super) struct Receiver {
    pub(super) url: String,
    got: Arc<Mutex<Vec<Got>>>,
    script: Arc<Mutex<VecDeque<Does>>>,
    _server: AbortOnDropHandle<()>,
}

impl Receiver {
    pub(super) async fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (got, script) = (Arc::default(), Arc::default());
        let scheme = if tls.is_some() {
            "https://localhost"
        } else {
            "http://127.0.0.1"
        };
        let (seen, plan) = (Arc::clone(&got), Arc::clone(&script));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, plan) = (Arc::clone(&seen), Arc::clone(&plan));
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                                answer(stream, &seen, &plan).await;
                            }
                        }
                        None => answer(stream, &seen, &plan).await,
                    }
                });
            }
        });
        Self {
            url: format!("{scheme}:{port}/hook"),
            got,
            script,
            _server: AbortOnDropHandle::new(server),
        }
    }

    pub(super) fn plan(&self, does: impl IntoIterator<Item = Does>) {
        lock(&self.script).extend(does);
    }

    pub(super) fn got(&self) -> Vec<Got> {
        lock(&self.got).clone()
    }

    /// Keys and events, in the order in which they came.
    pub(super) fn told(&self) -> Vec<(String, String)> {
        let told = |got: &Got| {
            let body: serde_json::Value = serde_json::from_str(&got.body).expect("JSON");
            let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            (text("key"), text("event"))
        };
        self.got().iter().map(told).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    got: &Mutex<Vec<Got>>,
    script: &Mutex<VecDeque<Does>>,
) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut one = Got {
        head,
        body: String::new(),
    };
    let length = one
        .header("content-length")
        .and_then(|value| value.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    one.body = String::from_utf8(body).expect("JSON is UTF-8");
    lock(got).push(one);
    let does = lock(script).pop_front().unwrap_or(Does::Answers(200));
    if let Does::Answers(status) = does {
        let reply =
            format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        // The other side may be gone; that is what is tested.
        let _ = stream.write_all(reply.as_bytes()).await;
        let _ = stream.flush().await;
    }
}

/// A certificate for `localhost`, and the file with its root.
pub(super) fn certificate(folder: &Path) -> (Arc<ServerConfig>, std::path::PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let file = folder.join("root.pem");
    std::fs::write(&file, made.cert.pem()).expect("written");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(muster_proto::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("they belong together");
    (Arc::new(config), file)
}

/// A channel of this kind that takes everything.
pub(super) fn channel(name: &str, kind: Kind) -> Channel {
    Channel {
        name: name.to_owned(),
        kind,
        severities: Severity::ALL.to_vec(),
        selector: Selector::default(),
        resolved: true,
        limit_per_hour: 0,
        title: None,
        text: None,
        timeout: Duration::from_secs(20),
        client: Client::new(None).expect("the system's roots"),
    }
}

/// A webhook at a receiver.
pub(super) fn webhook(receiver: &Receiver) -> Channel {
    let url = receiver.url.parse().expect("an address");
    let secret = Some(b"0123456789012345678901".to_vec());
    channel("ops", Kind::Webhook { url, secret })
}

/// A heartbeat at a receiver.
pub(super) fn heartbeat(receiver: &Receiver) -> Heartbeat {
    Heartbeat {
        url: receiver.url.parse().expect("an address"),
        interval: Duration::from_millis(10),
        client: Client::new(None).expect("the system's roots"),
    }
}
