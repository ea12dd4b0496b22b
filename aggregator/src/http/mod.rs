//! The HTTP door: what Prometheus and probes read. `docs/prometheus.md` describes it for people.
//!
//! ```text
//! connection ▸ rules ▸ router ▸ handler ▸ fleet (inside the shards) ▸ page bytes ▸ gzip
//! ```
//!
//! Nothing here changes anything. Listening, TLS and client certificates are left to the accept loop,
//! which hands each connection to [`connection::serve`].

pub mod connection;
mod fleet_page;
pub mod history_page;
pub mod live;
pub mod negotiate;
pub mod page;
mod process;
pub mod rules;
pub mod sd;
pub mod source;
pub mod telling_page;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware,
    response::Response,
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use self::{
    fleet_page::{HostPoint, Requests},
    negotiate::Format,
    page::Freshness,
    process::Process,
    rules::{Access, AllowedHosts},
    sd::{HostEntry, InstanceFormat, QueryError, RawQuery},
    source::{FleetRead, HostView},
};
use crate::config::HttpConfig;

/// Where host pages begin; the host's name follows.
const HOST_PAGE_PREFIX: &str = "/metrics/hosts/";

/// Requests that are worked on at once; more wait, within the time each has.
const MAX_AT_ONCE: usize = 64;

/// Answers below this are not worth compressing: they fit one packet.
const GZIP_FROM_BYTES: usize = 1_000;

/// Answers above this are compressed off the runtime: it takes more than a few milliseconds.
const GZIP_ASIDE_FROM_BYTES: usize = 256 * 1024;

/// Whether the aggregator is ready to be relied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet; what it is doing, e.g. "replaying the log".
    Starting(&'static str),
    /// It is.
    Ready,
    /// It is shutting down.
    Stopping,
}

/// What the operator configures.
#[derive(Clone)]
pub struct Settings {
    /// Names under which the listener answers.
    pub allowed_hosts: AllowedHosts,
    /// Who may read.
    pub access: Access,
    /// `host:port` at which Prometheus reaches this listener, for `/sd`. Without it, what the request for
    /// `/sd` itself was addressed to.
    pub external_address: Option<String>,
    /// How `instance` is made unless the request says.
    pub instance: InstanceFormat,
}

impl Default for Settings {
    /// For a plain listener on loopback.
    fn default() -> Self {
        Self {
            allowed_hosts: AllowedHosts::Loopback(Vec::new()),
            access: Access::Open,
            external_address: None,
            instance: InstanceFormat::default(),
        }
    }
}

impl Settings {
    /// What the configuration says, which is checked already.
    ///
    /// # Errors
    /// When `instance` is no instance format.
    pub fn of(config: &HttpConfig) -> Result<Self, QueryError> {
        // With TLS, the certificate binds the name.
        let allowed_hosts = if config.tls && config.hosts.is_empty() {
            AllowedHosts::Any
        } else {
            let lower = |name: &String| name.to_ascii_lowercase();
            AllowedHosts::Loopback(config.hosts.iter().map(lower).collect())
        };
        let external = &config.external_address;
        Ok(Self {
            allowed_hosts,
            access: match &config.token {
                Some(token) => Access::bearer(token),
                None => Access::Open,
            },
            external_address: (!external.is_empty()).then(|| external.clone()),
            // Written there as `host:9100`.
            instance: InstanceFormat::parse(&config.instance.replacen("host", "{host}", 1))?,
        })
    }
}

/// What every handler shares.
pub struct HttpState<F>(Arc<Shared<F>>);

impl<F> Clone for HttpState<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<F> {
    fleet: F,
    settings: Settings,
    readiness: watch::Receiver<Readiness>,
    turns: Semaphore,
    requests: Mutex<Requests>,
}

impl<F: FleetRead> HttpState<F> {
    /// Brings together what the door reads.
    pub fn new(fleet: F, settings: Settings, readiness: watch::Receiver<Readiness>) -> Self {
        Self(Arc::new(Shared {
            fleet,
            settings,
            readiness,
            turns: Semaphore::new(MAX_AT_ONCE),
            requests: Mutex::new(BTreeMap::new()),
        }))
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Waits for a place among the requests at work.
    async fn turn(&self) -> SemaphorePermit<'_> {
        let turn = self.0.turns.acquire().await;
        turn.expect("the semaphore is never closed")
    }

    fn count(&self, handler: &'static str, status: StatusCode) {
        let mut requests = self
            .0
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *requests.entry((handler, status.as_u16())).or_default() += 1;
    }

    fn requests(&self) -> Requests {
        self.0
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The whole door as a service.
pub fn router<F: FleetRead>(state: HttpState<F>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/-/healthy", get(healthy))
        .route("/-/ready", get(ready))
        .route("/sd", get(discovery))
        .route("/metrics", get(fleet_metrics))
        .route("/metrics/hosts/{*name}", get(host_metrics))
        .route("/probe", get(probe))
        .fallback(no_such_page)
        .layer(middleware::from_fn_with_state(state.clone(), rules::apply))
        .with_state(state)
}

/// The handler a path belongs to, for counting: a small set whatever is asked for.
fn handler_name(path: &str) -> &'static str {
    match path {
        "/-/healthy" | "/-/ready" => "health",
        "/sd" => "sd",
        "/metrics" => "fleet",
        "/probe" => "host",
        _ if path.starts_with(HOST_PAGE_PREFIX) => "host",
        _ => "other",
    }
}

async fn index() -> Response {
    let text = concat!(
        "Muster aggregator ",
        env!("CARGO_PKG_VERSION"),
        "\n",
        "\n",
        "/metrics             this aggregator and the fleet in sum\n",
        "/metrics/hosts/NAME  one host, as node_exporter would show it\n",
        "/probe?target=NAME   the same\n",
        "/sd                  every host as a Prometheus target (?selector=, ?shard=1/4, ?promote=role,env)\n",
        "/-/healthy           the process answers\n",
        "/-/ready             the fleet state is loaded\n",
    );
    plain(StatusCode::OK, text)
}

async fn healthy() -> Response {
    plain(StatusCode::OK, "healthy\n")
}

async fn ready<F: FleetRead>(State(state): State<HttpState<F>>) -> Response {
    let readiness = state.0.readiness.borrow().clone();
    match readiness {
        Readiness::Ready => plain(StatusCode::OK, "ready\n"),
        Readiness::Starting(doing) => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("not ready: {doing}"),
        ),
        Readiness::Stopping => refusal(StatusCode::SERVICE_UNAVAILABLE, "not ready: stopping"),
    }
}

/// A list made before the fleet state is loaded would lack hosts, and Prometheus would drop them.
fn unready<F: FleetRead>(state: &HttpState<F>) -> Option<Response> {
    let readiness = state.0.readiness.borrow().clone();
    let Readiness::Starting(doing) = readiness else {
        return None;
    };
    let text = format!("not ready: {doing}");
    Some(refusal(StatusCode::SERVICE_UNAVAILABLE, &text))
}

async fn discovery<F: FleetRead>(
    State(state): State<HttpState<F>>,
    query: Result<Query<Parameters>, QueryRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = unready(&state) {
        return refused;
    }
    let query = match query {
        Ok(Query(given)) => {
            let instance = &state.settings().instance;
            match RawQuery::of(given).and_then(|raw| raw.check(instance)) {
                Ok(query) => query,
                Err(error) => return refusal(StatusCode::BAD_REQUEST, &crate::chain(&error)),
            }
        }
        Err(_) => return refusal(StatusCode::BAD_REQUEST, UNREADABLE),
    };
    let Some(address) = address(state.settings(), &uri, &headers) else {
        let text = "the request names no host to put into the targets; set the external address of the \
                    HTTP listener in the aggregator's configuration";
        return refusal(StatusCode::BAD_REQUEST, text);
    };
    let (reading, incidents) = (query.clone(), state.0.fleet.clone());
    let read = state.0.fleet.each(move |host, _| {
        let open = incidents.open_incidents(host.id());
        Some(HostEntry::of(host, &reading, open))
    });
    let gathered = read.await;
    if !gathered.missing.is_empty() {
        let missing = gathered.missing.join(", ");
        let text = format!("the list would not be complete: no answer from {missing}");
        return refusal(StatusCode::SERVICE_UNAVAILABLE, &text);
    }
    let targets = sd::targets(gathered.items, &query, &address);
    let body = serde_json::to_vec(&targets).expect("strings and maps of strings are JSON");
    encoded(body, "application/json", &headers, "Accept-Encoding").await
}

/// The address that scrapers are told.
fn address(settings: &Settings, uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let asked = || {
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        uri.authority().map(|authority| authority.as_str()).or(host)
    };
    let address = settings.external_address.as_deref().or_else(asked)?;
    (!address.is_empty()).then(|| address.to_owned())
}

async fn fleet_metrics<F: FleetRead>(
    State(state): State<HttpState<F>>,
    headers: HeaderMap,
) -> Response {
    let format = negotiate::format(&headers);
    let incidents = state.0.fleet.clone();
    let read = state.0.fleet.each(move |host, now| {
        Some(HostPoint::of(
            host,
            now,
            incidents.open_incidents(host.id()),
        ))
    });
    let points = read.await;
    let totals = state.0.fleet.totals();
    let page = fleet_page::render(
        &points,
        &totals,
        &state.requests(),
        &Process::read(),
        format,
    );
    metrics(page, format, &headers).await
}

async fn host_metrics<F: FleetRead>(
    State(state): State<HttpState<F>>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    match name {
        Ok(Path(name)) => host_page(&state, &name, &headers).await,
        Err(_) => refusal(
            StatusCode::BAD_REQUEST,
            "the name of the host is not UTF-8; percent-encode it as such",
        ),
    }
}

/// The parameters of a request as they stand in its address.
type Parameters = Vec<(String, String)>;

/// What is said of parameters that cannot be taken apart.
const UNREADABLE: &str =
    "the parameters cannot be read; write ?name=value&name=value, percent-encoded";

async fn probe<F: FleetRead>(
    State(state): State<HttpState<F>>,
    query: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let Ok(Query(given)) = query else {
        return refusal(StatusCode::BAD_REQUEST, UNREADABLE);
    };
    // Other parameters are passed over: scrape jobs written for multi-target exporters send `module`.
    match given.iter().find(|(name, _)| name == "target") {
        Some((_, name)) if !name.is_empty() => host_page(&state, name, &headers).await,
        _ => refusal(
            StatusCode::BAD_REQUEST,
            "no target; ask for /probe?target=NAME",
        ),
    }
}

async fn host_page<F: FleetRead>(
    state: &HttpState<F>,
    name: &str,
    headers: &HeaderMap,
) -> Response {
    let format = negotiate::format(headers);
    let incidents = state.0.fleet.clone();
    let read = state
        .0
        .fleet
        .host(name, move |host, now| match page::freshness(host, now) {
            Freshness::Fresh(age) => {
                let open = incidents.open_incidents(host.id());
                Ok(page::render(host, age, open, format))
            }
            Freshness::Stale(why) => Err(why),
        });
    match read.await {
        Some(Ok(page)) => metrics(page, format, headers).await,
        Some(Err(why)) => refusal(StatusCode::SERVICE_UNAVAILABLE, &why),
        None => unready(state).unwrap_or_else(|| {
            let text = format!("no host {name:?} is enrolled; /sd lists those that are");
            refusal(StatusCode::NOT_FOUND, &text)
        }),
    }
}

async fn no_such_page() -> Response {
    refusal(
        StatusCode::NOT_FOUND,
        "no such page; / lists those there are",
    )
}

/// An answer in an exposition format.
async fn metrics(page: Vec<u8>, format: Format, headers: &HeaderMap) -> Response {
    encoded(
        page,
        format.content_type(),
        headers,
        "Accept, Accept-Encoding",
    )
    .await
}

/// An answer that is compressed if the asker takes that. `vary` names what it was made from.
async fn encoded(
    body: Vec<u8>,
    content_type: &'static str,
    headers: &HeaderMap,
    vary: &'static str,
) -> Response {
    let small = body.len() < GZIP_FROM_BYTES;
    let compress = !small && negotiate::accepts_gzip(headers);
    let body = if !compress {
        body
    } else if body.len() < GZIP_ASIDE_FROM_BYTES {
        gzip(&body)
    } else {
        let aside = tokio::task::spawn_blocking(move || gzip(&body)).await;
        aside.expect("compressing into memory neither panics nor is cancelled")
    };
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::VARY, HeaderValue::from_static(vary));
    if compress {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Level 1: pages are read once, by a neighbour.
fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder
        .write_all(body)
        .and_then(|()| encoder.finish())
        .expect("writing to a Vec does not fail")
}

/// An answer that says no, in one line.
fn refusal(status: StatusCode, text: &str) -> Response {
    plain(status, format!("{text}\n"))
}

fn plain(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
