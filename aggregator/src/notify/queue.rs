//! One channel's queue: takes what is due from the store, sends it, notes what became of it.
//!
//! What fails is tried again after 2 s, doubling to 10 min, with jitter; given up after three days, or after five times
//! when the other side says that it will never take it. While nobody answers at all, one message is tried at a time and
//! the others wait with it. A channel's limit keeps back what is beyond it, and says so once an hour; ends of what was
//! told are never kept back. A mail that its server takes for some of its readers goes to each of the others later, as a
//! copy that waits only for what else waits for that reader.

use std::{sync::Arc, time::Duration};

use muster_proto::time::{Clock, Timestamp};
use tokio::{sync::Notify, time};
use tokio_util::sync::CancellationToken;

use super::{
    Channel, Kind, Message, Told,
    config::is_limited,
    http::SendError,
    send::{self, To},
};
use crate::{
    chain,
    control::{Control, ControlError, Delivery, Fate, NewDelivery},
};

const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// After so long a message says nothing of now.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 86_400);
/// So often what is refused for good is tried: the refusal may be a mistake that is mended.
const REFUSALS: u32 = 5;
const HOUR: Duration = Duration::from_secs(3600);
/// How often Alertmanagers hear of what goes on: five times within an alert's life.
const REFRESH: Duration = Duration::from_secs(60);
/// How long the queue waits at most before it looks again: a backstop should a wake-up be lost.
const LOOK: Duration = Duration::from_secs(30);

/// A channel's task.
pub struct Queue {
    /// The channel.
    pub channel: Arc<Channel>,
    /// Where the queue is.
    pub control: Control,
    /// Now.
    pub clock: Arc<dyn Clock>,
    /// Rings when something was queued.
    pub wake: Arc<Notify>,
    /// What goes on, for those who must hear it again and again.
    pub told: Told,
}

impl Queue {
    /// Sends until `stop`. What is under way then is sent again after the next start, with the same key.
    pub async fn run(self, stop: CancellationToken) {
        let mut failures = 0;
        let mut refresh = time::interval(REFRESH);
        refresh.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let refreshes = matches!(self.channel.kind, Kind::Alertmanager { .. });
        loop {
            let pause = tokio::select! {
                () = stop.cancelled() => return,
                _ = refresh.tick(), if refreshes => {
                    self.refresh().await;
                    Duration::ZERO
                }
                pause = self.step(&mut failures) => pause,
            };
            if pause.is_zero() {
                continue;
            }
            let waits = failures > 0;
            tokio::select! {
                () = stop.cancelled() => return,
                _ = refresh.tick(), if refreshes => self.refresh().await,
                // Who does not answer is not asked faster because there is more to say.
                () = self.wake.notified(), if !waits => {}
                () = time::sleep(pause) => {}
            }
        }
    }

    /// Sends one message, if one is due; how long to wait then.
    pub(super) async fn step(&self, failures: &mut u32) -> Duration {
        match self.try_step(failures).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(channel = self.channel.name, error = %chain(&error), "the queue of messages cannot be used");
                *failures += 1;
                pause(*failures)
            }
        }
    }

    async fn try_step(&self, failures: &mut u32) -> Result<Duration, ControlError> {
        let (name, now) = (&self.channel.name, self.clock.now());
        let Some(delivery) = self.control.due_delivery(name, now).await? else {
            let next = self.control.next_due(name).await?;
            let wait = next.map_or(LOOK, |next| next.since(now));
            return Ok(wait.clamp(Duration::from_millis(100), LOOK));
        };
        let Ok(message) = serde_json::from_str::<Message>(&delivery.message) else {
            let error = "the message cannot be read; it was written by another version".to_owned();
            self.end(&delivery, Fate::GivenUp { error }, None).await?;
            return Ok(Duration::ZERO);
        };
        if message.is_end() && !self.control.was_told(name, delivery.page).await? {
            self.end(&delivery, Fate::HeldBack, None).await?;
            return Ok(Duration::ZERO);
        }
        if let Some(notice) = self.over_limit(&delivery, &message, now).await? {
            self.end(&delivery, Fate::HeldBack, Some(notice)).await?;
            return Ok(Duration::ZERO);
        }
        if let Some(fate) = self.too_late(&delivery, &message, now).await? {
            self.end(&delivery, fate, None).await?;
            return Ok(Duration::ZERO);
        }
        // Who waits for something gets what comes after it after it.
        let behind = match (&self.channel.kind, delivery.reader.is_empty()) {
            (Kind::Email(smtp), true) => {
                let mut behind = self.control.readers_behind(name).await?;
                behind.retain(|reader| smtp.to.contains(reader));
                behind
            }
            _ => Vec::new(),
        };
        let to = match delivery.reader.as_str() {
            "" => To::AllBut(behind.clone()),
            reader => To::One(reader.to_owned()),
        };
        match send::send(&self.channel, &message, &to, now).await {
            Ok(taken) => {
                *failures = 0;
                let mut later = behind;
                later.extend(taken.later);
                let fate = Fate::Delivered {
                    refused: taken.refused,
                    later,
                    again: now.plus(pause(1)),
                };
                self.end(&delivery, fate, None).await?;
                tracing::info!(
                    channel = name,
                    key = delivery.key,
                    incident = message.incident,
                    event = message.event,
                    "told"
                );
                Ok(Duration::ZERO)
            }
            Err(error) => self.failed(&delivery, &error, failures).await,
        }
    }

    /// What becomes of a message that says nothing of now any more: its channel was away for days, or the reader it
    /// did not reach before would hear that something begins which is over, or how it went before it began anew.
    async fn too_late(
        &self,
        delivery: &Delivery,
        message: &Message,
        now: Timestamp,
    ) -> Result<Option<Fate>, ControlError> {
        let copy = !delivery.reader.is_empty();
        if message.is_end() && !copy {
            return Ok(None);
        }
        if now.since(delivery.made) >= GIVE_UP_AFTER {
            let error = "it waited for three days: what it says is old".to_owned();
            return Ok(Some(Fate::GivenUp { error }));
        }
        if !copy {
            return Ok(None);
        }
        let stands = self.control.page_stands(delivery.page).await?;
        let old = stands
            .is_some_and(|(opened, over)| delivery.made < opened || (over && !message.is_end()));
        Ok(old.then_some(Fate::HeldBack))
    }

    async fn failed(
        &self,
        delivery: &Delivery,
        error: &SendError,
        failures: &mut u32,
    ) -> Result<Duration, ControlError> {
        let now = self.clock.now();
        let why = chain(error);
        let attempts = delivery.attempts + 1;
        let copy = !delivery.reader.is_empty();
        let in_vain = match error {
            // As for those of a mail's readers whom it refuses so when others are taken (RFC 5321, 4.2.1).
            SendError::Refused { answer, .. } if copy => answer.starts_with('5'),
            _ => error.is_for_good() && attempts >= REFUSALS,
        };
        let fate = if in_vain || now.since(delivery.made) >= GIVE_UP_AFTER {
            tracing::error!(
                channel = self.channel.name,
                key = delivery.key,
                attempts,
                reader = delivery.reader,
                error = why,
                "a message was given up: {}",
                if copy {
                    "this reader was not told"
                } else {
                    "nobody was told by this channel"
                }
            );
            Fate::GivenUp { error: why }
        } else {
            let after = error.after().unwrap_or_default().min(LONGEST_PAUSE);
            let wait = pause(attempts).max(after);
            tracing::warn!(
                channel = self.channel.name,
                key = delivery.key,
                attempts,
                error = why,
                again_seconds = wait.as_secs(),
                "a message did not arrive"
            );
            Fate::Again {
                due: now.plus(wait),
                error: why,
            }
        };
        self.end(delivery, fate, None).await?;
        let answered = matches!(error, SendError::Refused { .. });
        if error.is_for_good() || (answered && copy) {
            // It is the message, or who reads it, not the way.
            return Ok(Duration::ZERO);
        }
        *failures += 1;
        Ok(pause(*failures))
    }

    /// When a message is beyond the channel's limit, the word about that.
    async fn over_limit(
        &self,
        delivery: &Delivery,
        message: &Message,
        now: Timestamp,
    ) -> Result<Option<NewDelivery>, ControlError> {
        let (name, limit) = (&self.channel.name, self.channel.limit_per_hour);
        if limit == 0 || !delivery.reader.is_empty() || !is_limited(message) {
            return Ok(None);
        }
        let sent = self.control.delivered_since(name, now.minus(HOUR)).await?;
        if sent < limit {
            return Ok(None);
        }
        let hour = now.as_millis() / 3_600_000;
        let title = format!(
            "channel {name} has had its {limit} messages of this hour: what comes beyond is kept back; muster incidents shows it"
        );
        let notice = Message::about(
            "limited",
            format!("limited.{name}.{hour}"),
            &message.fleet,
            title,
            now,
        );
        notice
            .for_channel(name, 0, "limited")
            .map(Some)
            .map_err(|_| ControlError::Row("deliveries"))
    }

    async fn end(
        &self,
        delivery: &Delivery,
        fate: Fate,
        next: Option<NewDelivery>,
    ) -> Result<(), ControlError> {
        let now = self.clock.now();
        self.control
            .delivery_ended(delivery.seq, fate, next, now)
            .await
    }

    /// Tells Alertmanagers of what goes on.
    async fn refresh(&self) {
        let now = self.clock.now();
        let messages = self.told.standing(&self.channel, now);
        if messages.is_empty() {
            return;
        }
        let sent = send::refresh(&self.channel, &self.channel.client, &messages, now).await;
        if let Err(error) = sent {
            tracing::warn!(channel = self.channel.name, error = %chain(&error), "no Alertmanager hears of what goes on");
        }
    }
}

/// The pause after this many failures: 2 s, 4 s … 10 min, up to a fifth more or less, so that many do not come at once.
fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled
        .min(LONGEST_PAUSE)
        .mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests;
