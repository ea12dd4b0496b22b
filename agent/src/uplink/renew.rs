//! Renewing the host's certificate beside a running session.
//!
//! The session goes on with the certificate it was opened with. The new one is stored beside it and used for the
//! next connection; the aggregator puts it in use when it sees it, and only then does it take the old one's place
//! here. A certificate that the aggregator calls expired is renewed at once, on the connection that was refused.

use std::{convert::Infallible, future::pending, time::Duration};

use muster_proto::{limits, time::Timestamp, v1};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Memory, fault::Fault};
use crate::renewal::{Life, Renewal};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest sleep: a host that was suspended finds out within the hour that its certificate is due.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Where a host's certificates are: the one in use, and perhaps a renewed one that waits.
pub trait Slots: Send {
    /// Life of the certificate that the next connection shows.
    fn life(&self) -> Option<Life>;
    /// Whether a renewed one waits to be used.
    fn waiting(&self) -> bool;
    /// A certificate request (PKCS#10, DER) for a key that is made now.
    ///
    /// # Errors
    /// When no key can be made.
    fn request(&mut self) -> Result<Vec<u8>, Fault>;
    /// Stores the answer to the last request beside the certificate in use; the end of its life.
    ///
    /// # Errors
    /// When it is not for this host and that key, or cannot be stored; nothing has changed then.
    fn keep(&mut self, answer: v1::RenewResponse) -> Result<Timestamp, Fault>;
    /// The aggregator accepted what the last connection showed: it is the one in use from now on.
    fn accepted(&mut self);
    /// It did not: the next connection shows the other one, if there is one.
    fn refused(&mut self);
}

/// What a fault says about the certificate that was shown.
pub(super) fn refuses_certificate(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Denied(v1::DenyReason::StaleCopy)
            | Fault::Tls(muster_proto::tls::TlsFault::Refused(_))
    )
}

/// Renewal over the life of an agent.
pub(super) struct Renewing {
    renewal: Renewal,
    /// No attempt before this.
    not_before: Instant,
    /// When to put to use what waits.
    switch_at: Option<Instant>,
}

impl Renewing {
    pub(super) fn new(seed: u64) -> Self {
        let renewal = Renewal::new(seed);
        Self {
            not_before: Instant::now() + renewal.first(),
            switch_at: None,
            renewal,
        }
    }

    /// Renews when it is time, then asks the session to leave: at the first server (`at_home`) earlier than at another,
    /// which may be a stand-in for an hour. Judged by the aggregator's clock, which said
    /// `server` at `heard`: this host's own may be wrong.
    pub(super) async fn tend(
        &mut self,
        memory: &mut dyn Memory,
        channel: Channel,
        (server, heard): (Timestamp, Instant),
        at_home: bool,
        leave: &CancellationToken,
    ) -> Infallible {
        let Some(slots) = memory.slots() else {
            return pending().await;
        };
        while !slots.waiting() {
            let Some(life) = slots.life() else {
                return pending().await;
            };
            let wait = self
                .renewal
                .wait(life, server.plus(heard.elapsed()), at_home);
            let due = (Instant::now() + wait).max(self.not_before);
            let look = Instant::now() + LOOK_EVERY;
            time::sleep_until(due.min(look)).await;
            if due > look {
                continue;
            }
            self.renew(slots, channel.clone()).await;
        }
        let switch_at = *self
            .switch_at
            .get_or_insert_with(|| Instant::now() + self.renewal.succeeded());
        time::sleep_until(switch_at).await;
        tracing::info!("connecting anew, with the renewed certificate");
        leave.cancel();
        pending().await
    }

    /// One attempt; true if a new certificate is stored.
    pub(super) async fn renew(&mut self, slots: &mut dyn Slots, channel: Channel) -> bool {
        match ask(slots, channel).await {
            Ok(until) => {
                self.switch_at = None;
                tracing::info!(%until, "certificate renewed; the next connection uses it");
                true
            }
            Err(fault) => {
                let wait = self.renewal.failed();
                self.not_before = Instant::now() + wait;
                tracing::warn!(
                    cause = fault.cause(),
                    hint = fault.hint(),
                    retry_seconds = wait.as_secs(),
                    "the host's certificate was not renewed"
                );
                false
            }
        }
    }
}

async fn ask(slots: &mut dyn Slots, channel: Channel) -> Result<Timestamp, Fault> {
    let request = v1::RenewRequest {
        csr: slots.request()?,
    };
    let mut client = v1::uplink_client::UplinkClient::new(channel)
        .max_decoding_message_size(limits::MAX_DOWNLINK_MESSAGE_BYTES);
    let answer = time::timeout(PATIENCE, client.renew(request))
        .await
        .map_err(|_| Fault::RenewalTimeout(PATIENCE))?
        .map_err(|status| Fault::from_status(&status, None))?;
    slots.keep(answer.into_inner())
}
