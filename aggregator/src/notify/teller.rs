//! From what changed to what is told: reads the news of incidents, lets [`Pages`] judge, and writes what follows.
//!
//! Once a second, and not before what was written is on disk. When it cannot be written, what was judged is thrown away
//! and judged again from the store: nothing is sent that is not queued, and nothing is forgotten.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use muster_proto::time::{Clock, Timestamp};
use tokio::{sync::Notify, time};
use tokio_util::sync::CancellationToken;

use super::{Channel, Message, NotifyConfig, heartbeat, queue::Queue};
use crate::{
    chain,
    control::{Consequence, Control, ControlError, NewDelivery},
    fleet::Fleet,
    incident::{
        hush::Hush,
        pages::{Changes, News, Pages, Telling, Why, World},
        roster::Roster,
    },
};

const TICK: Duration = Duration::from_secs(1);
/// A copy of the hosts' labels that is older is taken anew before it is used.
const ROSTER_AGE: Duration = Duration::from_secs(60);
/// Without a round for so long, it does not work.
const WORKS_WITHIN: Duration = Duration::from_secs(60);
/// Pause after a failure of the store.
const RETRY: Duration = Duration::from_secs(5);

/// What people were told, for those who ask. Clones share it; the default knows nothing.
#[derive(Clone, Default)]
pub struct Told {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    fleet_name: String,
    channels: Vec<Arc<Channel>>,
    /// Last round, milliseconds of the wall clock.
    round: AtomicI64,
    now: Option<Arc<dyn Clock>>,
}

#[derive(Default)]
struct State {
    pages: Pages,
    world: World,
}

/// How an incident stands with those who are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Number of the page; 0 while there is none.
    pub page: u64,
    /// Hosts of the page when this is its first incident.
    pub hosts: u32,
    /// Whether it flaps.
    pub flapping: bool,
    /// Why nobody is told.
    pub quiet: String,
    /// When people were told.
    pub told: Option<Timestamp>,
}

/// One task, by name.
pub type Task = (
    &'static str,
    std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
);

/// Reads what was told before. The tasks are to be run until `stop`.
///
/// # Errors
/// When the store cannot be read.
pub async fn start(
    config: &NotifyConfig,
    control: Control,
    fleet: Fleet,
    fleet_name: String,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(Told, Vec<Task>), ControlError> {
    let (pages, members) = control.open_pages().await?;
    let channels: Vec<Arc<Channel>> = config.channels.values().cloned().map(Arc::new).collect();
    let told = Told {
        shared: Arc::new(Shared {
            state: Mutex::new(State {
                pages: Pages::restore(pages, members),
                world: World::default(),
            }),
            fleet_name,
            channels: channels.clone(),
            round: AtomicI64::new(clock.now().as_millis()),
            now: Some(Arc::clone(&clock)),
        }),
    };
    let mut tasks: Vec<Task> = Vec::new();
    let mut wakes = Vec::new();
    for channel in channels {
        let wake = Arc::new(Notify::new());
        wakes.push(Arc::clone(&wake));
        let queue = Queue {
            channel,
            control: control.clone(),
            clock: Arc::clone(&clock),
            wake,
            told: told.clone(),
        };
        tasks.push(("a channel of messages", Box::pin(queue.run(stop.clone()))));
    }
    if let Some(heartbeat) = config.heartbeat.clone() {
        let beats = heartbeat::run(heartbeat, fleet.clone(), told.clone(), stop.clone());
        tasks.push(("heartbeat", Box::pin(beats)));
    }
    let teller = Teller {
        told: told.clone(),
        control,
        fleet,
        clock,
        wakes,
        roster_read: None,
        stale: false,
    };
    tasks.push(("telling people", Box::pin(teller.run(stop))));
    Ok((told, tasks))
}

impl Told {
    /// How an incident that is open stands.
    #[must_use]
    pub fn standing_of(&self, number: u64, now: Timestamp) -> Standing {
        let state = self.lock();
        let State { pages, world } = &*state;
        let mut standing = Standing {
            flapping: pages.is_flapping(number),
            ..Standing::default()
        };
        match pages.page_of(number) {
            Some((page, found)) => {
                standing.page = page;
                standing.told = Some(found.opened);
                if page == number {
                    standing.hosts = u32::try_from(pages.hosts_of(page)).unwrap_or(u32::MAX);
                }
            }
            None => {
                standing.quiet = match pages.why_quiet(number, now, world) {
                    Some(Why::Quiet(id)) if id.starts_with('M') => format!("maintenance {id}"),
                    Some(Why::Quiet(id)) => format!("silence {id}"),
                    Some(Why::Silent(host)) => format!("host silent (I-{host})"),
                    Some(Why::Acknowledged | Why::Gathering) | None => String::new(),
                };
            }
        }
        standing
    }

    /// What goes on and a channel takes, as messages.
    #[must_use]
    pub fn standing(&self, channel: &Channel, now: Timestamp) -> Vec<Message> {
        let state = self.lock();
        let State { pages, world } = &*state;
        pages
            .standing(now)
            .filter(|telling| channel.takes(telling, &world.roster))
            .map(|telling| Message::of(&telling, &self.shared.fleet_name, &world.roster))
            .collect()
    }

    /// The channels there are.
    #[must_use]
    pub fn channels(&self) -> &[Arc<Channel>] {
        &self.shared.channels
    }

    /// Name of the fleet.
    #[must_use]
    pub fn fleet_name(&self) -> &str {
        &self.shared.fleet_name
    }

    /// Whether what changes is still judged.
    #[must_use]
    pub fn is_working(&self) -> bool {
        let Some(clock) = &self.shared.now else {
            return true;
        };
        let round = Timestamp::from_millis(self.shared.round.load(Ordering::Relaxed));
        clock.now().since(round) < WORKS_WITHIN
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves it half changed.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct Teller {
    told: Told,
    control: Control,
    fleet: Fleet,
    clock: Arc<dyn Clock>,
    wakes: Vec<Arc<Notify>>,
    roster_read: Option<Timestamp>,
    /// What was judged last could not be written: the store knows better.
    stale: bool,
}

impl Teller {
    async fn run(mut self, stop: CancellationToken) {
        let mut ticks = time::interval(TICK);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.round().await {
                tracing::warn!(error = %chain(&error), "what changed cannot be told yet; it is tried again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = time::sleep(RETRY) => {}
                }
                self.stale = true;
            }
        }
    }

    /// One look at what changed.
    async fn round(&mut self) -> Result<(), ControlError> {
        let now = self.clock.now();
        if self.stale {
            let (pages, members) = self.control.open_pages().await?;
            self.told.lock().pages = Pages::restore(pages, members);
            self.stale = false;
        }
        let news = self.control.news(0).await?;
        self.look_around(&news, now).await?;
        let through = news.last().map_or(0, |last| last.seq);
        let (changes, deliveries) = {
            let mut state = self.told.lock();
            let State { pages, world } = &mut *state;
            for one in news {
                pages.news(one, now);
            }
            pages.tick(now, world);
            let changes = pages.take();
            let deliveries = self.deliveries(&changes, &world.roster);
            (changes, deliveries)
        };
        if through > 0 || !changes.is_empty() {
            self.control
                .conclude(Consequence {
                    changes,
                    deliveries,
                    through,
                    at: now,
                })
                .await?;
            for wake in &self.wakes {
                wake.notify_one();
            }
        }
        self.told
            .shared
            .round
            .store(now.as_millis(), Ordering::Relaxed);
        Ok(())
    }

    /// Reads silences, and the hosts when they may have changed since what is known of them.
    async fn look_around(&mut self, news: &[News], now: Timestamp) -> Result<(), ControlError> {
        let hushes = self.control.quiets(false, now).await?;
        let hushes: Vec<Hush> = hushes.into_iter().filter_map(Hush::of).collect();
        let old = self
            .roster_read
            .is_none_or(|read| now.since(read) >= ROSTER_AGE || now < read);
        let unknown = {
            let state = self.told.lock();
            let roster = &state.world.roster;
            news.iter()
                .any(|one| roster.card(one.subject.host).is_none())
        };
        let roster = if (old && (unknown || !news.is_empty())) || self.roster_read.is_none() {
            let (roster, missing) = Roster::read(&self.fleet).await;
            if missing.is_empty() {
                self.roster_read = Some(now);
            }
            Some(roster)
        } else {
            None
        };
        let mut state = self.told.lock();
        state.world.hushes = hushes;
        if let Some(roster) = roster {
            state.world.roster = roster;
        }
        Ok(())
    }

    /// The messages that follow, for each channel that takes them.
    fn deliveries(&self, changes: &Changes, roster: &Roster) -> Vec<NewDelivery> {
        let mut all = Vec::new();
        for telling in &changes.tellings {
            let message = Message::of(telling, &self.told.shared.fleet_name, roster);
            for channel in &self.told.shared.channels {
                if channel.takes(telling, roster) {
                    all.extend(queued(&message, channel, telling));
                }
            }
        }
        all
    }
}

fn queued(message: &Message, channel: &Channel, telling: &Telling) -> Option<NewDelivery> {
    let event = telling.event.as_str();
    match message.for_channel(&channel.name, telling.number, event) {
        Ok(delivery) => Some(delivery),
        Err(error) => {
            tracing::error!(channel = channel.name, %error, "a message cannot be written");
            None
        }
    }
}

#[cfg(test)]
mod tests;
