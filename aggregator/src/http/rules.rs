//! What holds for every request on the HTTP door, before any page is asked.
//!
//! Reading only; the `Host` must be one of ours (a page elsewhere on the web could otherwise point its own
//! name at this address and read through the visitor's browser); a bearer token where one is set; a bound
//! on the time and the number of requests at once; and headers on every answer that keep a browser from
//! doing anything with it. There is no CORS: no other origin may read.

use std::{net::IpAddr, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use ring::digest;

use super::{HttpState, refusal, source::FleetRead};

/// Longest time for an answer. Prometheus gives up after 10 s by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest path and query. A selector is at most 8 KiB.
const MAX_TARGET_BYTES: usize = 12 * 1024;

/// Characters shown of a foreign `Host`: the longest DNS name has 253.
const MAX_HOST_SHOWN: usize = 253;

/// Which names a request may be addressed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHosts {
    /// Any: for listeners with TLS, where the certificate binds the name.
    Any,
    /// `localhost`, loopback addresses and these names, in lower case and without a port.
    Loopback(Vec<String>),
}

/// Who may read.
#[derive(Clone)]
pub enum Access {
    /// Whoever reaches the listener: on loopback, or behind a client certificate that the TLS layer checks.
    Open,
    /// Whoever presents the bearer token with this SHA-256.
    Bearer([u8; 32]),
}

impl Access {
    /// Whoever presents this token; only its digest is kept.
    #[must_use]
    pub fn bearer(token: &str) -> Self {
        Self::Bearer(sha256(token))
    }
}

fn sha256(text: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Marks the answer to a request that was allowed to read: [`super::connection`] keeps such connections open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admitted;

/// Applies the rules. Outermost of the router, so that its answers get the headers too.
pub(super) async fn apply<F: FleetRead>(
    State(state): State<HttpState<F>>,
    request: Request,
    next: Next,
) -> Response {
    let handler = super::handler_name(request.uri().path());
    let open = matches!(state.settings().access, Access::Open);
    let mut response = match refuse(&state, &request, handler) {
        Some(refused) => refused,
        None => {
            let mut response = answer(&state, request, next).await;
            // A probe proves nothing where a token is asked for.
            if open || handler != "health" {
                response.extensions_mut().insert(Admitted);
            }
            response
        }
    };
    let headers = response.headers_mut();
    for (name, value) in SAFE_HEADERS {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    state.count(handler, response.status());
    response
}

/// On every answer, unless the page sets its own.
const SAFE_HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (header::CACHE_CONTROL, "no-store"),
];

async fn answer<F: FleetRead>(state: &HttpState<F>, request: Request, next: Next) -> Response {
    let in_turn = async {
        let _turn = state.turn().await;
        next.run(request).await
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, in_turn).await {
        Ok(response) => response,
        Err(_) => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "the aggregator did not answer within 10 s; it is overloaded or stuck, see its log",
        ),
    }
}

fn refuse<F: FleetRead>(
    state: &HttpState<F>,
    request: &Request,
    handler: &'static str,
) -> Option<Response> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "only GET and HEAD are served here";
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, text);
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allow);
        return Some(response);
    }
    let target = request.uri().path_and_query();
    if target.is_some_and(|target| target.as_str().len() > MAX_TARGET_BYTES) {
        let text = "the address is too long";
        return Some(refusal(StatusCode::URI_TOO_LONG, text));
    }
    if let AllowedHosts::Loopback(names) = &state.settings().allowed_hosts
        && let Some(host) = foreign(request, names)
    {
        let text = format!(
            "the Host {host:?} is not served here; ask for localhost, or add the name to hosts in [http] of the aggregator's configuration"
        );
        return Some(refusal(StatusCode::MISDIRECTED_REQUEST, &text));
    }
    // Probes of load balancers carry no token and learn nothing but "alive".
    if let Access::Bearer(expected) = &state.settings().access
        && handler != "health"
        && !bears(request.headers(), expected)
    {
        let text = "a bearer token is required: set authorization.credentials_file in Prometheus, or \
                    curl -H 'Authorization: Bearer ...'";
        let mut response = refusal(StatusCode::UNAUTHORIZED, text);
        let challenge = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
        return Some(response);
    }
    None
}

/// Every name the request gives must be ours, and there must be one: HTTP/2 has it in `:authority`,
/// HTTP/1.1 in `Host`, and either can have both. Gives the first that is not, as far as it is worth showing.
fn foreign(request: &Request, names: &[String]) -> Option<String> {
    let in_target = request.uri().authority().map(Authority::as_str);
    let mut given = request
        .headers()
        .get_all(header::HOST)
        .iter()
        .map(|value| value.to_str().unwrap_or_default())
        .chain(in_target)
        .peekable();
    if given.peek().is_none() {
        return Some(String::new());
    }
    given
        .find(|authority| !is_our_authority(authority, names))
        .map(|authority| authority.chars().take(MAX_HOST_SHOWN).collect())
}

fn is_our_authority(authority: &str, names: &[String]) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else {
        return false;
    };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host().to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    host == "localhost"
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || names.iter().any(|name| name == host)
}

/// Compares digests, so what time the comparison takes tells nothing about the token.
fn bears(headers: &HeaderMap, expected: &[u8; 32]) -> bool {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    token.is_some_and(|(_, token)| sha256(token.trim()) == *expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_ours() {
        let names = ["muster.example".to_owned()];
        for ours in [
            "localhost",
            "LocalHost:7446",
            "localhost.",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]",
            "[::1]:7446",
            "muster.example:7446",
        ] {
            assert!(is_our_authority(ours, &names), "{ours}");
        }
        for foreign in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.example@localhost",
            "localhost@evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "[::1",
            "localhost/..",
            "muster.example.evil",
        ] {
            assert!(!is_our_authority(foreign, &names), "{foreign}");
        }
    }
}
