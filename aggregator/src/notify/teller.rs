//! From what changed to what is told: reads the news of incidents, lets [`Pages`] judge, and writes what follows.
//!
//! Once a second, and not before what was written is on disk. When it cannot be written, what was judged is thrown away
//! and judged again from the store: nothing is sent that is not queued, and nothing is forgotten.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::time::{Clock, Timestamp};
use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    Channel, Message, NotifyConfig, heartbeat,
    queue::{GIVE_UP_AFTER, Queue},
};
use crate::{
    chain,
    control::{Consequence, Control, ControlError, NewDelivery},
    detect::rules::Runbooks,
    fleet::Fleet,
    incident::{
        Incidents,
        hush::Hush,
        pages::{Changes, News, Pages, Telling, Why, World},
        roster::Roster,
    },
};

const TICK: Duration = Duration::from_secs(1);
/// A copy of the hosts' labels that is older is taken anew before it is used.
const ROSTER_AGE: Duration = Duration::from_secs(60);
/// A copy without the hosts of a shard that did not answer is taken anew so soon.
const PARTIAL_ROSTER_AGE: Duration = Duration::from_secs(10);
/// Until all shards have answered once, nothing is judged, for no longer than this: silences and selectors go by what
/// the shards know, but telling too many people is better than telling nobody.
const WAIT_FOR_SHARDS: Duration = Duration::from_secs(60);
/// Without a round for so long, or when a change of an incident waits so long for the store, it does not work.
const WORKS_WITHIN: Duration = Duration::from_secs(60);
/// How often it is proved that the store can be written, when nothing has to be.
const PROVE_EVERY: Duration = Duration::from_secs(60);
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
    runbooks: Runbooks,
    channels: Vec<Arc<Channel>>,
    /// The last round; `None` where there are none.
    round: Mutex<Option<Instant>>,
    /// What waits for the store before anybody can be told of it.
    incidents: Incidents,
}

#[derive(Default)]
struct State {
    pages: Pages,
    world: World,
    /// Channels that have a message of a page which is open.
    told: HashMap<u64, BTreeSet<String>>,
    /// What was open before the start was judged by what is known now.
    judged: bool,
}

impl State {
    /// What the store has of pages that are open.
    async fn read(control: &Control) -> Result<Self, ControlError> {
        let (pages, members) = control.open_pages().await?;
        let mut told: HashMap<u64, BTreeSet<String>> = HashMap::new();
        for (page, channel) in control.told_channels().await? {
            told.entry(page).or_default().insert(channel);
        }
        Ok(Self {
            pages: Pages::restore(pages, members),
            told,
            ..Self::default()
        })
    }

    fn has_told(&self, channel: &Channel, page: u64) -> bool {
        let told = self.told.get(&page);
        told.is_some_and(|told| told.contains(&channel.name))
    }

    /// Whether a channel hears of this: what it was told of once it hears of to its end, whatever has become of the
    /// hosts and their labels since.
    fn hears(&self, channel: &Channel, telling: &Telling) -> bool {
        channel.takes(telling, &self.world.roster)
            || (channel.wants(telling) && self.has_told(channel, telling.number))
    }
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
    incidents: Incidents,
    fleet_name: String,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(Told, Vec<Task>), ControlError> {
    let state = State::read(&control).await?;
    let channels: Vec<Arc<Channel>> = config.channels.values().cloned().map(Arc::new).collect();
    let told = Told {
        shared: Arc::new(Shared {
            state: Mutex::new(state),
            fleet_name,
            runbooks: config.runbooks.clone(),
            channels: channels.clone(),
            round: Mutex::new(Some(Instant::now())),
            incidents,
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
        began: Instant::now(),
        roster: None,
        proved: None,
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
        let State { pages, world, .. } = &*state;
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

    /// What goes on and a channel takes, as messages; nothing before the first look at the hosts.
    #[must_use]
    pub fn standing(&self, channel: &Channel, now: Timestamp) -> Vec<Message> {
        let state = self.lock();
        if !state.judged {
            return Vec::new();
        }
        state
            .pages
            .standing(now)
            .filter(|telling| state.hears(channel, telling))
            .map(|telling| self.message(&telling, &state.world.roster))
            .collect()
    }

    /// What is said of a telling.
    fn message(&self, telling: &Telling, roster: &Roster) -> Message {
        let Shared {
            fleet_name,
            runbooks,
            ..
        } = &*self.shared;
        Message::of(telling, fleet_name, roster, runbooks)
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

    /// Whether what changes is still stored and judged, by the monotonic clock.
    #[must_use]
    pub fn is_working(&self) -> bool {
        let waits = self.shared.incidents.waiting_for();
        let round = *self.last_round();
        [waits, round.map(|round| round.elapsed())]
            .into_iter()
            .flatten()
            .all(|passed| passed < WORKS_WITHIN)
    }

    fn last_round(&self) -> MutexGuard<'_, Option<Instant>> {
        let round = self.shared.round.lock();
        round.unwrap_or_else(PoisonError::into_inner)
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
    began: Instant,
    /// When the hosts were read last, and whether all shards answered.
    roster: Option<(Instant, bool)>,
    /// When the store was last written.
    proved: Option<Instant>,
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
            let state = State::read(&self.control).await?;
            let mut old = self.told.lock();
            (old.pages, old.told) = (state.pages, state.told);
            self.stale = false;
        }
        self.prove(now).await?;
        let news = self.control.news(0).await?;
        if !self.look_around(&news, now).await? {
            return Ok(());
        }
        let through = news.last().map_or(0, |last| last.seq);
        let (changes, deliveries) = {
            let mut state = self.told.lock();
            let State { pages, world, .. } = &mut *state;
            for one in news {
                pages.news(one, now);
            }
            pages.tick(now, world);
            let mut changes = pages.take();
            state.judged = true;
            let deliveries = self.deliveries(&mut changes, &mut state);
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
            self.proved = Some(Instant::now());
            for wake in &self.wakes {
                wake.notify_one();
            }
        }
        *self.told.last_round() = Some(Instant::now());
        Ok(())
    }

    /// Writes something now and then: a store that can only be read looks well until somebody must be told.
    async fn prove(&mut self, now: Timestamp) -> Result<(), ControlError> {
        let proved = self.proved;
        if proved.is_some_and(|proved| proved.elapsed() < PROVE_EVERY) {
            return Ok(());
        }
        let channels = self.told.shared.channels.iter();
        let channels: Vec<String> = channels.map(|channel| channel.name.clone()).collect();
        let before = now.minus(GIVE_UP_AFTER);
        self.control.keep_house(&channels, before, now).await?;
        self.proved = Some(Instant::now());
        Ok(())
    }

    /// Reads silences, and the hosts when they may have changed since what is known of them. False while too little is
    /// known to judge by.
    async fn look_around(&mut self, news: &[News], now: Timestamp) -> Result<bool, ControlError> {
        let hushes = self.control.quiets(false, now).await?;
        let hushes: Vec<Hush> = hushes.into_iter().filter_map(Hush::of).collect();
        if self.must_read_roster(news) {
            let (roster, missing) = Roster::read(&self.fleet).await;
            let whole = missing.is_empty();
            let mut state = self.told.lock();
            state.world.roster = if whole {
                roster
            } else {
                // What a shard that hangs told before still holds: its silences and channels too.
                roster.over(&state.world.roster)
            };
            self.roster = Some((Instant::now(), whole));
        }
        let mut state = self.told.lock();
        state.world.hushes = hushes;
        let whole = self.roster.is_some_and(|(_, whole)| whole);
        Ok(whole || state.judged || self.began.elapsed() >= WAIT_FOR_SHARDS)
    }

    fn must_read_roster(&self, news: &[News]) -> bool {
        let Some((read, whole)) = self.roster else {
            return true;
        };
        let age = read.elapsed();
        if !whole && age >= PARTIAL_ROSTER_AGE {
            return true;
        }
        // A host that joined since has a name already; people are not told of its id.
        let state = self.told.lock();
        let roster = &state.world.roster;
        let unknown = |one: &News| roster.card(one.subject.host).is_none();
        news.iter().any(unknown) || (age >= ROSTER_AGE && !news.is_empty())
    }

    /// The messages that follow, for each channel that hears of it. What is told to those alone who were not told of a
    /// page before it came to their hosts becomes a telling like the others.
    fn deliveries(&self, changes: &mut Changes, state: &mut State) -> Vec<NewDelivery> {
        let known: &State = state;
        let roster = &known.world.roster;
        let mut all = Vec::new();
        let mut send = |telling: &Telling, to: &dyn Fn(&Channel) -> bool| {
            let message = self.told.message(telling, roster);
            let channels = self.told.shared.channels.iter();
            let mut sent = Vec::new();
            for channel in channels.filter(|channel| to(channel)) {
                all.extend(queued(&message, channel, telling));
                sent.push(channel.name.clone());
            }
            sent
        };
        let mut told: Vec<(u64, Vec<String>)> = Vec::new();
        for telling in &changes.tellings {
            let sent = send(telling, &|channel| known.hears(channel, telling));
            told.push((telling.number, sent));
        }
        for telling in std::mem::take(&mut changes.gained) {
            let sent = send(&telling, &|channel| {
                channel.takes(&telling, roster) && !known.has_told(channel, telling.number)
            });
            if !sent.is_empty() {
                told.push((telling.number, sent));
                changes.tellings.push(telling);
            }
        }
        for (page, channels) in told {
            state.told.entry(page).or_default().extend(channels);
        }
        for page in &changes.closed {
            state.told.remove(page);
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
