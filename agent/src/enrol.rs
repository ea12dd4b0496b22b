//! Joining: from a token to an identity.
//!
//! The key is made here and never leaves. Nothing is sent before the aggregator has shown the root whose
//! fingerprint stands in the token. An attempt that broke off can be repeated with the same token: the key is kept,
//! so the aggregator answers with the same identity.

use std::{
    fs,
    io::{self, BufRead as _, Write as _},
    net::Ipv6Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use muster_proto::{
    id::HostId,
    limits::MAX_DOWNLINK_MESSAGE_BYTES,
    spiffe::{TrustDomain, hex, peer_id},
    tls::{TlsFault, client_config_enrolment, fault, server_name},
    token::{Token, TokenError, pin_of},
    v1::{self, enrolment_client::EnrolmentClient},
};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Endpoint;

use crate::{
    identity::{IdentityError, Joining},
    uplink::connect::first_that_answers,
};

/// Port of the enrolment door when none is given.
pub const DEFAULT_PORT: u16 = 7444;

/// Name of the environment variable that may hold the token.
pub const TOKEN_VARIABLE: &str = "MUSTER_TOKEN";

/// How long a closed door is knocked at, and how often.
const DOOR_OPENS: Duration = Duration::from_secs(3);
const DOOR_KNOCK: Duration = Duration::from_millis(200);

/// Bounds on what the aggregator may ask a host to wait.
const WAIT_FROM: Duration = Duration::from_millis(500);
const WAIT_TO: Duration = Duration::from_secs(30);

/// Characters of a key's fingerprint that people compare: 64 bits.
const SHOWN_KEY: usize = 16;

/// Bound on connecting, and again on the answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the host did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Nobody answers.
    #[error(
        "cannot reach {address}: is the aggregator running, is a token live (the enrolment port is open only then), does a firewall stand between?"
    )]
    Unreachable {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// None of several aggregators could be asked. Nothing was sent to any of them.
    #[error("none of the {} aggregators could be asked:\n  {}", .0.len(), .0.join("\n  "))]
    Nobody(Vec<String>),
    /// The address cannot be dialled. Nothing was.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// What answers is not the enrolment door of the aggregator that made the token. Nothing was sent.
    #[error(
        "{address} is not trusted, nothing was sent to it: is this the enrolment door (port {DEFAULT_PORT}) of the aggregator that made the token?"
    )]
    WrongDoor {
        /// What was dialled.
        address: String,
        /// What gave it away.
        #[source]
        source: TlsFault,
    },
    /// The aggregator cannot be trusted for another reason. Nothing was sent.
    #[error("{address} is not trusted, nothing was sent to it")]
    Untrusted {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: TlsFault,
    },
    /// The handshake broke.
    #[error("the TLS handshake with {address} broke")]
    Handshake {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The aggregator says no.
    #[error("the aggregator refused: {0}")]
    Refused(String),
    /// The aggregator does not listen to this address for a while.
    #[error("the aggregator refused for now: {0}")]
    NotNow(String),
    /// The aggregator cannot answer now; the same token works again later.
    #[error("the aggregator gave no answer ({0}): run the same command again, with the same token")]
    NoAnswer(String),
    /// The answer is not what it should be.
    #[error("the aggregator's answer cannot be used: {0}")]
    Answer(&'static str),
    /// The key cannot be made or used.
    #[error("the host's key cannot be used")]
    Key(#[source] rcgen::Error),
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl EnrolError {
    /// Whether it came to an end before the token and the host's key were shown.
    fn nothing_was_sent(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::WrongDoor { .. }
                | Self::Untrusted { .. }
                | Self::Handshake { .. }
        )
    }
}

/// What joining gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Who this host is from now on.
    pub host_id: HostId,
    /// The installation it belongs to.
    pub trust_domain: TrustDomain,
    /// host:port of the uplink.
    pub uplink_address: String,
}

/// Why an address is none of an enrolment door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no address of an enrolment door: {wrong}; write HOST or HOST:PORT, for example muster.example:{DEFAULT_PORT}"
)]
pub struct AddressError {
    given: String,
    wrong: &'static str,
}

/// What happens while a host waits to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A person must approve it; told once.
    Waiting {
        /// Under which number the aggregator lists it.
        number: u32,
        /// Begin of the fingerprint of its key, as the aggregator lists it.
        key: String,
    },
    /// The aggregator has too much to do and is asked again.
    Busy,
    /// The aggregator does not answer while the host waits; it is asked again. Told when the cause changes.
    Unanswered(String),
}

/// [`enrol_telling`] without a word.
///
/// # Errors
/// As [`enrol_telling`].
pub async fn enrol(
    address: &str,
    token: &Token,
    facts: v1::HostFacts,
    state: &Path,
) -> Result<Joined, EnrolError> {
    enrol_telling(&[address.to_owned()], token, facts, state, |_| {}).await
}

/// Joins the aggregator at one of these addresses (host, or host:port) and stores the identity under `state`. Where a
/// person must approve the host first this takes until then, over restarts of the aggregator; what happens meanwhile is
/// `told`. Broken off and called again with the same token, it goes on where it was.
///
/// Addresses are tried in turn, and the token's fingerprint of the root is held against each. The next one is tried only
/// while nothing was sent to those before it: an aggregator that may have let the host in is not passed over for another,
/// which would make it a second host.
///
/// # Errors
/// When the host has joined before, no aggregator can be reached, the one that answers is another than the token's or
/// refuses, or the identity cannot be stored.
pub async fn enrol_telling(
    addresses: &[String],
    token: &Token,
    facts: v1::HostFacts,
    state: &Path,
    mut told: impl FnMut(Progress),
) -> Result<Joined, EnrolError> {
    let doors: Vec<(String, u16)> = addresses
        .iter()
        .map(|address| split_address(address))
        .collect::<Result<_, _>>()?;
    let joining = Joining::begin(state)?;
    let key = match joining.key()? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(EnrolError::Key)?,
        None => {
            let key = KeyPair::generate().map_err(EnrolError::Key)?;
            joining.store_key(&key.serialize_pem())?;
            key
        }
    };
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .map_err(EnrolError::Key)?;

    let machine = facts.machine_id_hash.clone();
    let request = v1::EnrolRequest {
        token_id: token.id().to_owned(),
        token_secret: token.secret().to_owned(),
        csr: csr.der().to_vec(),
        facts: Some(facts),
    };
    let mut waiting = Waiting {
        key: shown_key(&key),
        number: None,
        unanswered: None,
    };
    let mut unasked = Vec::new();
    let mut answered = None;
    for (host, port) in doors {
        let dialled = format!("{host}:{port}");
        match ask_until(&dialled, token, &request, &mut waiting, &mut told).await {
            Ok((trust_domain, answer)) => {
                answered = Some((host, trust_domain, answer));
                break;
            }
            Err(error) if error.nothing_was_sent() && addresses.len() > 1 => {
                unasked.push(in_full(&error));
            }
            Err(error) => return Err(error),
        }
    }
    let (host, trust_domain, answer) = answered.ok_or(EnrolError::Nobody(unasked))?;

    let host_id = HostId::from_slice(&answer.host_id)
        .map_err(|_| EnrolError::Answer("it carries no host id"))?;
    let chain: Vec<CertificateDer<'static>> = answer
        .certificate_chain
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    check_leaf(chain.first(), host_id, &trust_domain)?;
    let bundle = answer
        .bundle
        .filter(|bundle| !bundle.roots.is_empty())
        .ok_or(EnrolError::Answer("it carries no trust bundle"))?;
    let uplink_address = if answer.uplink_address.starts_with(':') {
        format!("{host}{}", answer.uplink_address)
    } else {
        answer.uplink_address
    };
    let joined = Joined {
        host_id,
        trust_domain: trust_domain.clone(),
        uplink_address: uplink_address.clone(),
    };
    joining.finish(
        host_id,
        trust_domain,
        uplink_address,
        &chain,
        &bundle,
        &machine,
    )?;
    Ok(joined)
}

/// Begin of the fingerprint of a key, as people compare it.
fn shown_key(key: &KeyPair) -> String {
    let fingerprint = pin_of(&rcgen::PublicKeyData::subject_public_key_info(key));
    hex(&fingerprint).chars().take(SHOWN_KEY).collect()
}

/// Asks one aggregator until it has decided.
async fn ask_until(
    address: &str,
    token: &Token,
    request: &v1::EnrolRequest,
    waiting: &mut Waiting,
    told: &mut impl FnMut(Progress),
) -> Result<(TrustDomain, v1::EnrolResponse), EnrolError> {
    loop {
        let asked = ask_once(address, token, request.clone()).await;
        match waiting.next(asked, told)? {
            Next::Answer(trust_domain, answer) => return Ok((trust_domain, *answer)),
            Next::After(pause) => sleep(pause).await,
        }
    }
}

/// An error with its causes, in a line.
fn in_full(error: &EnrolError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(because) = cause {
        text.push_str(&format!(": {because}"));
        cause = because.source();
    }
    text
}

async fn ask_once(
    address: &str,
    token: &Token,
    request: v1::EnrolRequest,
) -> Result<(TrustDomain, v1::EnrolResponse), EnrolError> {
    let stream = connect(address, token).await?;
    let trust_domain = domain_of(&stream)?;
    Ok((trust_domain, ask(stream, request).await?))
}

/// A host that may have to wait.
struct Waiting {
    key: String,
    /// Told.
    number: Option<u32>,
    /// Told.
    unanswered: Option<String>,
}

enum Next {
    Answer(TrustDomain, Box<v1::EnrolResponse>),
    After(Duration),
}

impl Waiting {
    fn next(
        &mut self,
        asked: Result<(TrustDomain, v1::EnrolResponse), EnrolError>,
        told: &mut impl FnMut(Progress),
    ) -> Result<Next, EnrolError> {
        let answer = match asked {
            Ok((trust_domain, answer)) if answer.wait_ms == 0 => {
                return Ok(Next::Answer(trust_domain, Box::new(answer)));
            }
            Ok((_, answer)) => answer,
            // Once it was heard that the token is good, an aggregator that is gone comes back. So does one that does
            // not listen because somebody else behind the same address failed.
            Err(
                error @ (EnrolError::Unreachable { .. }
                | EnrolError::Handshake { .. }
                | EnrolError::NotNow(_)
                | EnrolError::NoAnswer(_)),
            ) if self.number.is_some() => {
                let cause = error.to_string();
                if self.unanswered.as_ref() != Some(&cause) {
                    told(Progress::Unanswered(cause.clone()));
                    self.unanswered = Some(cause);
                }
                return Ok(Next::After(WAIT_TO));
            }
            Err(error) => return Err(error),
        };
        self.unanswered = None;
        if answer.waiting_number == 0 {
            told(Progress::Busy);
        } else if self.number.replace(answer.waiting_number) != Some(answer.waiting_number) {
            told(Progress::Waiting {
                number: answer.waiting_number,
                key: self.key.clone(),
            });
        }
        let pause = Duration::from_millis(answer.wait_ms.into());
        Ok(Next::After(pause.clamp(WAIT_FROM, WAIT_TO)))
    }
}

/// Says whether [`enrol`] could dial this address.
///
/// # Errors
/// When it could not: what is wrong, and what to write.
pub fn check_address(address: &str) -> Result<(), AddressError> {
    split_address(address).map(|_| ())
}

/// Host and port; an IPv6 address gets brackets if it has none.
fn split_address(address: &str) -> Result<(String, u16), AddressError> {
    let wrong = |wrong| AddressError {
        given: address.to_owned(),
        wrong,
    };
    if address.contains("://") {
        return Err(wrong("it is no URL"));
    }
    if let Ok(bare) = address.parse::<Ipv6Addr>() {
        return Ok((format!("[{bare}]"), DEFAULT_PORT));
    }
    let without_port = address.ends_with(']') || !address.contains(':');
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !without_port => (host, Some(port)),
        _ => (address, None),
    };
    let port = match port.map(str::parse) {
        None => DEFAULT_PORT,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => return Err(wrong("a port is a number from 1 to 65535")),
    };
    let inside = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let right = match inside {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => {
            let legal = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
            !host.is_empty() && host.chars().all(legal)
        }
    };
    if !right {
        return Err(wrong("its host is neither a name nor an IP address"));
    }
    Ok((host.to_owned(), port))
}

/// An aggregator's other doors keep the root to themselves, another aggregator has another, and the HTTP door does
/// not speak TLS by default: in all these cases the address is what to look at first.
fn distrusted(address: &str, source: TlsFault) -> EnrolError {
    let address = address.to_owned();
    match source {
        TlsFault::WrongPin { .. }
        | TlsFault::NotTls
        | TlsFault::Incompatible
        | TlsFault::CertificateRequired => EnrolError::WrongDoor { address, source },
        source => EnrolError::Untrusted { address, source },
    }
}

async fn connect(address: &str, token: &Token) -> Result<TlsStream<TcpStream>, EnrolError> {
    let unreachable = |source| EnrolError::Unreachable {
        address: address.to_owned(),
        source,
    };
    let tcp = timeout(PATIENCE, dial(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    let config = Arc::new(client_config_enrolment(*token.pin()));
    timeout(
        PATIENCE,
        TlsConnector::from(config).connect(server_name(), tcp),
    )
    .await
    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    .map_err(|error| match fault(&error) {
        Some(source) => distrusted(address, source),
        None => EnrolError::Handshake {
            address: address.to_owned(),
            source: error,
        },
    })
}

/// Connects. The door opens within a second after a token was made, so a refusal is tried again for a little
/// longer than that: whoever makes a token and uses it at once is not turned away.
async fn dial(address: &str) -> io::Result<TcpStream> {
    let began = Instant::now();
    let mut failures = 0;
    loop {
        let addresses = tokio::net::lookup_host(address).await?.collect();
        match first_that_answers(addresses, failures, TcpStream::connect).await {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && began.elapsed() < DOOR_OPENS =>
            {
                failures += 1;
                sleep(DOOR_KNOCK).await;
            }
            outcome => return outcome,
        }
    }
}

/// The installation as the verified leaf names it.
fn domain_of(stream: &TlsStream<TcpStream>) -> Result<TrustDomain, EnrolError> {
    let (_, session) = stream.get_ref();
    session
        .peer_certificates()
        .and_then(|chain| peer_id(chain.first()?).ok())
        .map(|peer| peer.id.domain().clone())
        .ok_or(EnrolError::Answer("its certificate names nobody"))
}

async fn ask(
    stream: TlsStream<TcpStream>,
    request: v1::EnrolRequest,
) -> Result<v1::EnrolResponse, EnrolError> {
    let mut one = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = one.take();
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
        }
    });
    let channel = Endpoint::from_static("https://aggregator.muster.internal")
        .timeout(PATIENCE)
        .connect_with_connector(connector)
        .await
        .map_err(|error| EnrolError::NoAnswer(error.to_string()))?;
    let answer = EnrolmentClient::new(channel)
        .max_decoding_message_size(MAX_DOWNLINK_MESSAGE_BYTES)
        .enrol(request)
        .await;
    answer.map(tonic::Response::into_inner).map_err(|status| {
        use tonic::Code;
        let said = status.message().to_owned();
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => {
                EnrolError::Refused(said)
            }
            Code::ResourceExhausted => EnrolError::NotNow(said),
            code => EnrolError::NoAnswer(format!("{code:?}: {said}")),
        }
    })
}

/// The certificate must be for the host id beside it, in the aggregator's own installation.
fn check_leaf(
    leaf: Option<&CertificateDer<'_>>,
    host_id: HostId,
    trust_domain: &TrustDomain,
) -> Result<(), EnrolError> {
    let leaf = leaf.ok_or(EnrolError::Answer("it carries no certificate"))?;
    let peer = peer_id(leaf).map_err(|_| EnrolError::Answer("its certificate names nobody"))?;
    if peer.id.host() == Some(host_id) && peer.id.domain() == trust_domain {
        return Ok(());
    }
    Err(EnrolError::Answer("its certificate is for another host"))
}

// ---- where the token comes from ----------------------------------------------------------------------

/// Where a token is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Given on the command line, where other users of the host can see it.
    Argument(String),
    /// A file; `-` is standard input.
    File(PathBuf),
    /// [`TOKEN_VARIABLE`] if it is set, else asked for.
    Ask,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenSourceError {
    /// It cannot be read.
    #[error("cannot read the join token from {from}")]
    Read {
        /// Where from.
        from: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was read is no token.
    #[error("what was given is no join token")]
    Token(#[from] TokenError),
}

/// Reads the token. One given as an argument is taken, with a warning on standard error.
///
/// # Errors
/// When it cannot be read or is no token.
pub fn read_token(source: &TokenSource) -> Result<Token, TokenSourceError> {
    let text = match source {
        TokenSource::Argument(text) => {
            eprintln!(
                "warning: every user of this host can see a token on the command line; use --token-file or paste it when asked"
            );
            text.clone()
        }
        TokenSource::File(path) if path == Path::new("-") => first_line()?,
        TokenSource::File(path) => {
            fs::read_to_string(path).map_err(|source| TokenSourceError::Read {
                from: path.display().to_string(),
                source,
            })?
        }
        TokenSource::Ask => match std::env::var(TOKEN_VARIABLE) {
            Ok(text) => text,
            Err(_) => {
                eprint!("Join token: ");
                // Without a prompt the question is only less clear.
                let _shown = io::stderr().flush();
                first_line()?
            }
        },
    };
    Ok(text.parse()?)
}

fn first_line() -> Result<String, TokenSourceError> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|source| TokenSourceError::Read {
            from: "standard input".to_owned(),
            source,
        })?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_come_without_its_port() {
        for (address, wanted) in [
            ("agg", ("agg", 7444)),
            ("agg.example:9000", ("agg.example", 9000)),
            ("192.0.2.1", ("192.0.2.1", 7444)),
            ("[2001:db8::1]", ("[2001:db8::1]", 7444)),
            ("[2001:db8::1]:9000", ("[2001:db8::1]", 9000)),
            ("2001:db8::1", ("[2001:db8::1]", 7444)),
        ] {
            let (host, port) = split_address(address).expect(address);
            assert_eq!((host.as_str(), port), wanted);
        }
    }

    #[test]
    fn an_address_that_cannot_be_dialled_says_what_to_write() {
        for (address, why) in [
            ("", "neither a name nor an IP address"),
            (":7444", "neither a name nor an IP address"),
            ("agg:", "from 1 to 65535"),
            ("agg:0", "from 1 to 65535"),
            ("agg:74440", "from 1 to 65535"),
            ("agg:seven", "from 1 to 65535"),
            ("agg:1:2", "neither a name nor an IP address"),
            ("agg/x", "neither a name nor an IP address"),
            ("two words", "neither a name nor an IP address"),
            ("[agg]:7444", "neither a name nor an IP address"),
            ("https://agg:7444", "no URL"),
        ] {
            let error = check_address(address).expect_err(address).to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.ends_with("muster.example:7444"), "{error}");
        }
    }

    #[test]
    fn a_wrong_door_is_asked_about_and_both_fingerprints_are_shown() {
        let pins = TlsFault::WrongPin {
            expected: "aa".to_owned(),
            found: "bb".to_owned(),
        };
        let error = distrusted("agg:7443", pins);
        assert!(error.to_string().contains("(port 7444)"), "{error}");
        let why = std::error::Error::source(&error)
            .expect("a cause")
            .to_string();
        assert!(why.contains("aa") && why.contains("bb"), "{why}");
        let plain = distrusted("agg:7446", TlsFault::NotTls);
        assert!(matches!(plain, EnrolError::WrongDoor { .. }));
        let other = distrusted("agg:7444", TlsFault::WrongIssuer);
        assert!(matches!(other, EnrolError::Untrusted { .. }));
    }

    #[test]
    fn a_host_waits_politely_and_says_each_thing_once() {
        let domain: TrustDomain = "m-abcdefghij".parse().expect("a trust domain");
        let answer = |wait_ms, waiting_number| {
            let answer = v1::EnrolResponse {
                wait_ms,
                waiting_number,
                ..v1::EnrolResponse::default()
            };
            Ok((domain.clone(), answer))
        };
        let gone = || {
            Err(EnrolError::Unreachable {
                address: "agg:7444".to_owned(),
                source: io::ErrorKind::ConnectionRefused.into(),
            })
        };
        let mut waiting = Waiting {
            key: "ab".to_owned(),
            number: None,
            unanswered: None,
        };
        let mut said = Vec::new();
        let mut step = |asked| match waiting.next(asked, &mut |progress| said.push(progress)) {
            Ok(Next::After(pause)) => Some(pause.as_millis()),
            Ok(Next::Answer(..)) => None,
            Err(_) => Some(0),
        };
        assert_eq!(step(gone()), Some(0), "nobody was ever there");
        let early = Err(EnrolError::NotNow("too many failures".to_owned()));
        assert_eq!(step(early), Some(0), "its own, as far as is known");
        assert_eq!(step(answer(1, 0)), Some(500), "no faster than this");
        assert_eq!(step(answer(5_000, 3)), Some(5_000));
        assert_eq!(step(answer(5_000, 3)), Some(5_000));
        assert_eq!(step(gone()), Some(30_000));
        assert_eq!(step(gone()), Some(30_000));
        assert_eq!(
            step(answer(u32::MAX, 3)),
            Some(30_000),
            "no longer than this"
        );
        let not_now = || Err(EnrolError::NotNow("a neighbour failed".to_owned()));
        assert_eq!(step(not_now()), Some(30_000), "not its own fault");
        assert_eq!(step(answer(5_000, 3)), Some(5_000));
        assert_eq!(step(Err(EnrolError::Refused("denied".to_owned()))), Some(0));
        assert_eq!(step(answer(0, 0)), None);
        let number = |progress: &Progress| matches!(progress, Progress::Waiting { number: 3, .. });
        assert_eq!(said[0], Progress::Busy);
        assert!(
            number(&said[1])
                && matches!(
                    (&said[2], &said[3]),
                    (Progress::Unanswered(_), Progress::Unanswered(_))
                ),
            "{said:?}"
        );
        assert_eq!(said.len(), 4, "{said:?}");
    }

    #[test]
    fn a_token_file_may_end_with_a_line_break() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let token = Token::generate([1; 32], &ring::rand::SystemRandom::new()).expect("random");
        fs::write(&path, format!("{token}\n")).expect("written");
        let read = read_token(&TokenSource::File(path.clone())).expect("a token");
        assert_eq!(read, token);
        fs::write(&path, "mj1-zzz").expect("written");
        assert!(matches!(
            read_token(&TokenSource::File(path)),
            Err(TokenSourceError::Token(_))
        ));
    }
}
