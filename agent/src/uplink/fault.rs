//! Why a link does not work, and what a person can do about it.
//!
//! Every message names the cause in the words of whoever is on call; the address stands beside it in the log
//! and in `muster-agent status`. Text that a peer sent is cut short and stripped of control characters before
//! it is shown.

use std::{io, time::Duration};

use muster_proto::{
    tls::{self, TlsFault},
    v1, words,
};

use super::backoff::Ended;

/// Longest text of a peer that is shown, in characters.
const MAX_PEER_TEXT: usize = 200;

/// Why there is no session, or no longer one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The name did not resolve.
    #[error("the name does not resolve")]
    Resolve(#[source] io::Error),
    /// TCP failed.
    #[error("{}", describe_io(.0))]
    Tcp(#[source] io::Error),
    /// No TCP connection and TLS handshake in time.
    #[error("no connection within {} s", .0.as_secs())]
    ConnectTimeout(Duration),
    /// One end does not accept the other's certificate.
    #[error("{}", describe_tls(.0))]
    Tls(TlsFault),
    /// TLS failed in another way.
    #[error("the TLS handshake failed: {0}")]
    Handshake(rustls::Error),
    /// The peer closed the connection or broke it off.
    #[error("the aggregator closed the connection")]
    Closed,
    /// The aggregator answered with an error.
    #[error("the aggregator answered {code:?}: {message}")]
    Status {
        /// gRPC status.
        code: tonic::Code,
        /// The aggregator's words, made harmless.
        message: String,
    },
    /// Connected, but no Welcome came.
    #[error("connected, but no welcome within {} s", .0.as_secs())]
    WelcomeTimeout(Duration),
    /// A renewal was asked for and not answered.
    #[error("no answer to the renewal within {} s", .0.as_secs())]
    RenewalTimeout(Duration),
    /// The peer does not speak the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// Frames made in this session are ahead of the aggregator's clock: it was set back, and is learnt anew
    /// with the next session.
    #[error("the aggregator's clock was set back: it takes this host's samples for the future's")]
    Future,
    /// Frames were sent and no acknowledgement came.
    #[error("no acknowledgement for {} s while frames are outstanding", .0.as_secs())]
    NoProgress(Duration),
    /// The aggregator does not want this agent.
    #[error("the aggregator refused this host: {}", words::denied(*.0))]
    Denied(v1::DenyReason),
    /// Another machine is connected with this host's identity.
    #[error(
        "another machine is connected with this host's identity, from {address}, boot id {boot}: is one a copy of the other?"
    )]
    Occupied {
        /// Where it calls from.
        address: String,
        /// Of its boot.
        boot: String,
    },
    /// The disk does not give the identity.
    #[error("the disk with this host's identity does not answer within {} s", .0.as_secs())]
    Disk(Duration),
    /// The identity on disk cannot be used.
    #[error("the identity of this host cannot be used: {0}")]
    Identity(String),
}

impl Fault {
    /// What an RPC that failed means, given what the connection below it saw.
    #[must_use]
    pub fn from_status(status: &tonic::Status, below: Option<Self>) -> Self {
        match (below, status.code()) {
            (Some(fault), _) => fault,
            (None, tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown)
                if std::error::Error::source(status).is_some() =>
            {
                Self::Closed
            }
            (None, code) => Self::Status {
                code,
                message: harmless(status.message()),
            },
        }
    }

    /// What an error of a socket or of TLS on it means.
    #[must_use]
    pub fn from_io(error: io::Error) -> Self {
        Self::of_tls(&error).unwrap_or(Self::Tcp(error))
    }

    /// What TLS has to say about an error of the stream above it, if anything.
    #[must_use]
    pub fn of_tls(error: &io::Error) -> Option<Self> {
        if let Some(fault) = tls::fault(error) {
            return Some(Self::Tls(fault));
        }
        let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(Self::Handshake(inner.clone()))
    }

    /// Why the aggregator does not want this agent.
    #[must_use]
    pub fn denied(deny: &v1::Deny) -> Self {
        let reason = deny.reason();
        if reason != v1::DenyReason::AlreadyConnected || deny.other_address.is_empty() {
            return Self::Denied(reason);
        }
        let boot = deny.other_boot_id.get(..16).unwrap_or_default();
        Self::Occupied {
            address: harmless(&deny.other_address),
            boot: muster_proto::spiffe::hex(boot),
        }
    }

    /// Which wait follows; `worked` says whether the aggregator had acknowledged anything.
    #[must_use]
    pub fn ended(&self, worked: bool) -> Ended {
        match self {
            Self::Denied(v1::DenyReason::AlreadyConnected) | Self::Occupied { .. } => {
                Ended::Occupied
            }
            Self::Denied(_) | Self::Identity(_) => Ended::Refused,
            Self::Tls(fault) if is_about_certificates(fault) => Ended::Refused,
            Self::Status {
                code: tonic::Code::PermissionDenied | tonic::Code::Unauthenticated,
                ..
            } => Ended::Refused,
            _ if worked => Ended::Lost,
            Self::Resolve(_) => Ended::Unreached,
            Self::Tcp(error) if !is_broken_off(error) => Ended::Unreached,
            _ => Ended::Failed,
        }
    }

    /// What to try, for a person.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Resolve(_) => {
                "check the address in the identity or in [uplink] address, and this host's resolver"
            }
            Self::Tcp(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "is muster-aggregator running there, and is this its uplink port?"
            }
            Self::Tcp(error) if is_broken_off(error) => {
                "look at the aggregator's log; the agent keeps its samples and tries again"
            }
            Self::Tcp(_) | Self::ConnectTimeout(_) => {
                "check route and firewall between this host and the aggregator"
            }
            Self::Tls(fault) => tls_hint(fault),
            Self::Handshake(_) => "look at the aggregator's log",
            Self::Future => {
                "check the clock of the aggregator (date -u); ticks follow it again with the next connection"
            }
            Self::Closed
            | Self::NoProgress(_)
            | Self::WelcomeTimeout(_)
            | Self::RenewalTimeout(_) => {
                "look at the aggregator's log; the agent keeps its samples and tries again"
            }
            Self::Status {
                code: tonic::Code::Unimplemented,
                ..
            } => {
                "the address is probably another door of the aggregator; the uplink's default port is 7443"
            }
            Self::Status { .. } | Self::Protocol(_) => "look at the aggregator's log",
            Self::Denied(reason) => denial_hint(*reason),
            Self::Occupied { .. } => denial_hint(v1::DenyReason::AlreadyConnected),
            Self::Disk(_) => {
                "look at the disk below the state folder (dmesg); the agent tries again"
            }
            Self::Identity(_) => "run muster-agent enrol with a new token",
        }
    }

    /// A word that stays the same while the cause does: repeats of it are counted, not logged.
    #[must_use]
    pub fn cause(&self) -> String {
        self.to_string()
    }
}

/// A peer's text, short and without control characters.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(MAX_PEER_TEXT)
        .collect()
}

/// Whether a connection that stood was ended from the other side.
fn is_broken_off(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::TimedOut => "connection timed out".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".into(),
        io::ErrorKind::UnexpectedEof => "the aggregator closed the connection".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "no route to the aggregator".into()
        }
        _ => error.to_string(),
    }
}

fn is_about_certificates(fault: &TlsFault) -> bool {
    !matches!(fault, TlsFault::NotTls | TlsFault::Incompatible)
}

/// Whose certificate it is about stands first: on a page at night that is the question.
fn describe_tls(fault: &TlsFault) -> String {
    match fault {
        TlsFault::CertificateRequired => {
            "the aggregator wants a certificate and this host showed none".into()
        }
        TlsFault::Refused(why) => format!("the aggregator refused this host's certificate: {why}"),
        TlsFault::NotTls | TlsFault::Incompatible => fault.to_string(),
        about_theirs => format!("the aggregator's certificate is not accepted: {about_theirs}"),
    }
}

fn tls_hint(fault: &TlsFault) -> &'static str {
    match fault {
        TlsFault::Expired { .. } | TlsFault::NotYetValid { .. } => {
            "check the clocks here and on the aggregator (date -u)"
        }
        TlsFault::CertificateRequired | TlsFault::Refused(_) => {
            "enrol this host again: muster-agent enrol ADDRESS with a new token"
        }
        TlsFault::NotTls | TlsFault::Incompatible => {
            "is this the aggregator's uplink port (default 7443)?"
        }
        _ => {
            "is this the aggregator this host enrolled with? if its authority was made anew, enrol again"
        }
    }
}

fn denial_hint(reason: v1::DenyReason) -> &'static str {
    match reason {
        v1::DenyReason::Protocol => "upgrade the agent or the aggregator",
        v1::DenyReason::Removed | v1::DenyReason::Expired => {
            "to bring the host back: muster-agent enrol ADDRESS with a new token"
        }
        v1::DenyReason::AlreadyConnected | v1::DenyReason::StaleCopy => {
            "if this machine is the copy: muster-agent reset-identity, then enrol; else muster host NAME release there"
        }
        v1::DenyReason::ProtocolViolation | v1::DenyReason::Unspecified => {
            "look at the aggregator's log and report it as a bug"
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[test]
    fn each_fault_has_its_words_and_its_wait() {
        let tls = |error| Fault::from_io(io::Error::new(io::ErrorKind::InvalidData, error));
        let refused = || Fault::Tcp(io::ErrorKind::ConnectionRefused.into());
        for (fault, worked, words, ended) in [
            (refused(), false, "connection refused", Ended::Unreached),
            (refused(), true, "connection refused", Ended::Lost),
            (
                Fault::Tcp(io::ErrorKind::TimedOut.into()),
                false,
                "connection timed out",
                Ended::Unreached,
            ),
            (
                // Somebody was there.
                Fault::Tcp(io::ErrorKind::ConnectionReset.into()),
                false,
                "connection reset",
                Ended::Failed,
            ),
            (
                Fault::Resolve(io::ErrorKind::NotFound.into()),
                false,
                "the name does not resolve",
                Ended::Unreached,
            ),
            (
                tls(rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer,
                )),
                false,
                "the aggregator's certificate is not accepted: the certificate was not issued by an authority that is trusted here",
                Ended::Refused,
            ),
            (
                tls(rustls::Error::AlertReceived(AlertDescription::UnknownCA)),
                true,
                "the aggregator refused this host's certificate: it was issued by another authority than this door trusts",
                Ended::Refused,
            ),
            (
                tls(rustls::Error::AlertReceived(
                    AlertDescription::InternalError,
                )),
                false,
                "the TLS handshake failed: received fatal alert: InternalError",
                Ended::Failed,
            ),
            (
                Fault::Denied(v1::DenyReason::Removed),
                false,
                "the aggregator refused this host: an operator removed it from the fleet",
                Ended::Refused,
            ),
            (
                Fault::Denied(v1::DenyReason::AlreadyConnected),
                true,
                "the aggregator refused this host: another machine with the same identity is connected",
                Ended::Occupied,
            ),
            (
                Fault::from_status(&tonic::Status::permission_denied("no\u{1b}[2J"), None),
                false,
                "the aggregator answered PermissionDenied: no\u{fffd}[2J",
                Ended::Refused,
            ),
        ] {
            assert_eq!(
                (fault.to_string().as_str(), fault.ended(worked)),
                (words, ended)
            );
            assert!(!fault.hint().is_empty());
        }
    }

    #[test]
    fn what_tls_saw_explains_a_status() {
        let below = Fault::Tls(TlsFault::CertificateRequired);
        let fault = Fault::from_status(&tonic::Status::unknown("h2 protocol error"), Some(below));
        assert!(matches!(fault, Fault::Tls(_)), "{fault}");
    }
}
