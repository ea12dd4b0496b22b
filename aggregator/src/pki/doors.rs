//! The TLS configurations of all doors, and the aggregator's own certificate behind them.
//!
//! The certificate is made at the start and lives in memory only; when less than a third of its life is left, a
//! new one takes its place without touching a connection.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use muster_proto::{
    time::{Clock, Timestamp},
    tls::{
        server_config_agents, server_config_enrolment, server_config_http, server_config_operators,
    },
};
use rustls::{ServerConfig, pki_types::UnixTime, time_provider::TimeProvider};
use tokio_util::sync::CancellationToken;

use super::{Authority, PkiError, Role, SERVER_LIFE};

/// How often the certificate's age is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(3600);

/// Current configurations; the accept loops read them for every connection.
pub struct Doors {
    /// Trusts the agents' issuer.
    pub agents: Arc<ArcSwap<ServerConfig>>,
    /// Trusts the operators' issuer.
    pub operators: Arc<ArcSwap<ServerConfig>>,
    /// Authenticates the server only.
    pub enrolment: Arc<ArcSwap<ServerConfig>>,
    /// Page and scrape, HTTP/1.1 and HTTP/2; authenticates the server only.
    pub http: Arc<ArcSwap<ServerConfig>>,
    not_after: ArcSwap<Timestamp>,
    authority: Arc<Authority>,
    names: Vec<String>,
    /// What clients' certificates are judged by; the machine's clock without one.
    judged_by: Option<Arc<dyn Clock>>,
}

/// A clock as TLS asks it.
struct DoorTime(Arc<dyn Clock>);

impl fmt::Debug for DoorTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DoorTime({})", self.0.now())
    }
}

impl TimeProvider for DoorTime {
    fn current_time(&self) -> Option<UnixTime> {
        let millis = u64::try_from(self.0.now().as_millis()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(millis)))
    }
}

struct Made {
    agents: ServerConfig,
    operators: ServerConfig,
    enrolment: ServerConfig,
    http: ServerConfig,
    not_after: Timestamp,
}

impl Doors {
    /// Makes the aggregator's certificate and the configurations that present it. `hosts` are names of the
    /// configuration, which the certificate carries beside those of [`Authority::server_names`].
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn new(
        authority: Arc<Authority>,
        hosts: &[String],
        now: Timestamp,
    ) -> Result<Self, PkiError> {
        let names = authority.server_names(hosts);
        Self::with(authority, names, None, now)
    }

    /// As [`Doors::new`], with clients' certificates judged by a clock.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn judged_by(
        authority: Arc<Authority>,
        hosts: &[String],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, PkiError> {
        let names = authority.server_names(hosts);
        let now = clock.now();
        Self::with(authority, names, Some(clock), now)
    }

    fn with(
        authority: Arc<Authority>,
        names: Vec<String>,
        judged_by: Option<Arc<dyn Clock>>,
        now: Timestamp,
    ) -> Result<Self, PkiError> {
        let made = make(&authority, &names, judged_by.as_ref(), now)?;
        let swap = |config| Arc::new(ArcSwap::from_pointee(config));
        Ok(Self {
            agents: swap(made.agents),
            operators: swap(made.operators),
            enrolment: swap(made.enrolment),
            http: swap(made.http),
            not_after: ArcSwap::from_pointee(made.not_after),
            authority,
            names,
            judged_by,
        })
    }

    /// Names and addresses under which the certificate can be asked for.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// End of life of the certificate presented now.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        **self.not_after.load()
    }

    /// Puts a new certificate in place when less than a third of the present one's life is left. True when it did.
    ///
    /// # Errors
    /// When a certificate cannot be made; the present one stays.
    pub fn renew_if_due(&self, now: Timestamp) -> Result<bool, PkiError> {
        if self.not_after().since(now) >= SERVER_LIFE / 3 {
            return Ok(false);
        }
        self.reload(now)?;
        Ok(true)
    }

    /// Puts a new certificate in place, and trusts whom the authority trusts now. Connections that stand are not touched.
    ///
    /// # Errors
    /// When a certificate cannot be made; everything stays as it was.
    pub fn reload(&self, now: Timestamp) -> Result<(), PkiError> {
        let made = make(&self.authority, &self.names, self.judged_by.as_ref(), now)?;
        self.agents.store(Arc::new(made.agents));
        self.operators.store(Arc::new(made.operators));
        self.enrolment.store(Arc::new(made.enrolment));
        self.http.store(Arc::new(made.http));
        self.not_after.store(Arc::new(made.not_after));
        Ok(())
    }

    /// Renews in time until `stop`.
    pub async fn run(&self, clock: Arc<dyn Clock>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.renew_if_due(clock.now()) {
                Ok(true) => tracing::info!("the aggregator's certificate was renewed"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(
                        error = crate::chain(&error),
                        "the aggregator's certificate cannot be renewed"
                    );
                }
            }
        }
    }
}

fn make(
    authority: &Authority,
    names: &[String],
    clock: Option<&Arc<dyn Clock>>,
    now: Timestamp,
) -> Result<Made, PkiError> {
    let (credentials, not_after) = authority.issue_server(names, now)?;
    let domain = authority.trust_domain();
    let mut with_root = credentials.clone();
    with_root.chain.extend(authority.roots());
    let mut made = Made {
        agents: server_config_agents(credentials.clone(), &authority.issuers(Role::Agent), domain)?,
        operators: server_config_operators(
            credentials.clone(),
            &authority.issuers(Role::Operator),
            domain,
        )?,
        enrolment: server_config_enrolment(with_root)?,
        http: server_config_http(credentials, None)?,
        not_after,
    };
    if let Some(clock) = clock {
        for config in [&mut made.agents, &mut made.operators] {
            config.time_provider = Arc::new(DoorTime(Arc::clone(clock)));
        }
    }
    Ok(made)
}
