//! Carries what shards report to the store.
//!
//! [`Incidents::report`] only notes it, under a lock that is held for a few lines, so no shard ever waits. The
//! task takes it to the store, key by key in order and many keys at once. What the store cannot take stays
//! noted and is tried again; for each key only so much is kept that a whole opening and clearing which nobody
//! could have been told of gives way to what came later, and for each host only so many keys. So memory is bounded by the number of things that can be
//! wrong, and what holds in the end is never lost.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use muster_proto::id::HostId;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    machine::{Key, Op, OpenBook},
    store::{IncidentStore, OpenIncident},
};
use crate::{
    chain,
    control::{NewIncident, Resolution},
    detect::{Change, Opening, Severity, Transition},
    fleet::shard::TransitionSink,
};

/// Transitions kept for one key while the store cannot take them.
const PENDING_PER_KEY: usize = 8;
/// Keys of one host that wait at most: twice what its detectors follow at a time, with room for what ended. Before
/// another one is taken in, whole histories that nobody could have been told of give way.
const PENDING_PER_HOST: usize = 512;
/// Keys carried at once: the store commits together what waits together.
const AT_ONCE: usize = 64;
/// Pause after a failure of the store, doubling up to the largest.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Handle to the incidents of the fleet.
#[derive(Clone, Default)]
pub struct Incidents {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
    stored: AtomicU64,
    failures: AtomicU64,
    superseded: AtomicU64,
}

#[derive(Default)]
struct State {
    book: OpenBook,
    pending: BTreeMap<Key, Pending>,
}

struct Pending {
    host_name: String,
    /// Oldest first. The first may be on its way to the store, so it stays.
    transitions: VecDeque<Transition>,
    /// Since when the first is.
    waits_since: Instant,
    /// The first is on its way to the store.
    carried: bool,
}

/// Figures of the task itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IncidentTotals {
    /// Operations that the store has done.
    pub stored: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Transitions that gave way to later ones while the store could not be written.
    pub superseded: u64,
    /// Keys that wait for the store now.
    pub waiting: u64,
}

impl Incidents {
    /// Reads what is open. The future is the task; it ends soon after `stop`, when it has tried to store what
    /// waits.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start<S: IncidentStore>(
        store: S,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send), S::Error> {
        let incidents = Self::default();
        for open in store.list_open(None).await? {
            incidents.lock().book.opened(open);
        }
        let carrier = Carrier {
            store,
            incidents: incidents.clone(),
        };
        Ok((incidents, carrier.run(stop)))
    }

    /// How long the oldest change has waited for the store; `None` when nothing waits.
    #[must_use]
    pub fn waiting_for(&self) -> Option<Duration> {
        let state = self.lock();
        let since = state.pending.values().map(|pending| pending.waits_since);
        since.min().map(|since| since.elapsed())
    }

    /// What is open on a host in the store, for `detect::Engine::adopt`.
    #[must_use]
    pub fn open_on(&self, host: HostId) -> Vec<Opening> {
        self.lock().book.of_host(host).collect()
    }

    /// How many incidents are open on a host.
    #[must_use]
    pub fn open_count(&self, host: HostId) -> u32 {
        self.open_by_severity(host)
            .into_iter()
            .map(|(_, count)| count)
            .sum()
    }

    /// How many incidents of each severity are open on a host, every severity present.
    #[must_use]
    pub fn open_by_severity(&self, host: HostId) -> [(Severity, u32); Severity::ALL.len()] {
        let mut counts = Severity::ALL.map(|severity| (severity, 0));
        for open in self.lock().book.of_host(host) {
            for (severity, count) in &mut counts {
                *count += u32::from(*severity == open.severity);
            }
        }
        counts
    }

    /// Figures of the task itself.
    #[must_use]
    pub fn totals(&self) -> IncidentTotals {
        IncidentTotals {
            stored: self.shared.stored.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
            superseded: self.shared.superseded.load(Ordering::Relaxed),
            waiting: self.lock().pending.len() as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves it half changed.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl TransitionSink for Incidents {
    fn report(&self, host: HostId, name: &str, transitions: Vec<Transition>) {
        let mut superseded = 0;
        let mut state = self.lock();
        for transition in transitions {
            let key = Key::of(host, &transition);
            if !state.pending.contains_key(&key) {
                let (given_up, room) = state.make_room(host);
                superseded += given_up;
                if !room {
                    superseded += 1;
                    tracing::error!(%host, name, rule = key.rule, "too much waits for the store: a change of an incident was left out");
                    continue;
                }
            }
            let pending = state.pending.entry(key).or_insert_with(|| Pending {
                host_name: name.to_owned(),
                transitions: VecDeque::new(),
                waits_since: Instant::now(),
                carried: false,
            });
            superseded += pending.push(transition);
        }
        drop(state);
        self.shared
            .superseded
            .fetch_add(superseded, Ordering::Relaxed);
        self.shared.wake.notify_one();
    }
}

impl State {
    /// Sees to it that one more key of a host can wait: how many transitions gave way, and whether there is room.
    fn make_room(&mut self, host: HostId) -> (u64, bool) {
        let first = Key {
            host,
            rule: String::new(),
            subject: String::new(),
        };
        let of_host = |(key, _): &(&Key, &Pending)| key.host == host;
        let waiting = self.pending.range(first.clone()..).take_while(of_host);
        if waiting.count() < PENDING_PER_HOST {
            return (0, true);
        }
        let over: Vec<Key> = self
            .pending
            .range(first..)
            .take_while(of_host)
            .filter(|(key, pending)| !self.book.is_open(key) && pending.is_over())
            .map(|(key, _)| key.clone())
            .collect();
        let room = !over.is_empty();
        let mut gone = 0;
        for pending in over.iter().filter_map(|key| self.pending.remove(key)) {
            gone += pending.transitions.len() as u64;
        }
        (gone, room)
    }
}

impl Pending {
    /// Whether it began and ended while the store heard nothing of it, where nothing was open before.
    fn is_over(&self) -> bool {
        let began = matches!(
            self.transitions.front(),
            Some(Transition {
                change: Change::Opened { .. },
                ..
            })
        );
        let ended = matches!(
            self.transitions.back(),
            Some(Transition {
                change: Change::Cleared { .. },
                ..
            })
        );
        began && ended && !self.carried
    }

    /// Appends a transition; how many gave way to it.
    fn push(&mut self, transition: Transition) -> u64 {
        if self.transitions.back() == Some(&transition) {
            return 0;
        }
        self.transitions.push_back(transition);
        if self.transitions.len() <= PENDING_PER_KEY {
            return 0;
        }
        // An opening and its end, both after the first: told together, they change nothing.
        let whole = |at: &usize| {
            let (opened, cleared) = (&self.transitions[*at], &self.transitions[at + 1]);
            matches!(opened.change, Change::Opened { .. })
                && matches!(cleared.change, Change::Cleared { .. })
        };
        let gone = match (1..self.transitions.len() - 1).find(whole) {
            Some(at) => self.transitions.drain(at..at + 2).count(),
            None => self.transitions.drain(1..2).count(),
        };
        gone as u64
    }
}

/// The task: the store, and what waits for it.
struct Carrier<S> {
    store: S,
    incidents: Incidents,
}

impl<S: IncidentStore> Carrier<S> {
    async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY;
        loop {
            if self.carry_all().await {
                pause = RETRY;
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = self.incidents.shared.wake.notified() => {}
                }
            } else {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
        self.carry_all().await;
    }

    /// Carries what waits; false when the store failed.
    async fn carry_all(&self) -> bool {
        loop {
            let keys: Vec<Key> = self.incidents.lock().pending.keys().cloned().collect();
            if keys.is_empty() {
                return true;
            }
            let carried = stream::iter(keys)
                .map(|key| self.carry(key))
                .buffer_unordered(AT_ONCE);
            if let Err(error) = carried
                .fold(Ok(()), |all, one| async { all.and(one) })
                .await
            {
                self.incidents
                    .shared
                    .failures
                    .fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    error = %chain(&error),
                    waiting = self.incidents.totals().waiting,
                    "incidents cannot be stored; they are kept and tried again"
                );
                return false;
            }
        }
    }

    /// Carries what waits for one key, in order.
    async fn carry(&self, key: Key) -> Result<(), S::Error> {
        let carried = self.carry_each(&key).await;
        if let Some(pending) = self.incidents.lock().pending.get_mut(&key) {
            pending.carried = false;
        }
        carried
    }

    async fn carry_each(&self, key: &Key) -> Result<(), S::Error> {
        loop {
            let (name, first, op) = {
                let mut state = self.incidents.lock();
                let State { book, pending } = &mut *state;
                let Some(waiting) = pending.get_mut(key) else {
                    return Ok(());
                };
                let Some(first) = waiting.transitions.front().cloned() else {
                    pending.remove(key);
                    return Ok(());
                };
                waiting.carried = true;
                let op = book.next(key.host, &first);
                (waiting.host_name.clone(), first, op)
            };
            let over = match op {
                None => true,
                Some(Op::Open(new)) => {
                    self.open(key, &name, &first, new).await?;
                    true
                }
                Some(Op::Resolve(end)) => {
                    self.resolve(key, &name, end).await?;
                    // A graver opening has its own operation yet to come.
                    matches!(first.change, Change::Cleared { .. })
                }
            };
            if over && let Some(pending) = self.incidents.lock().pending.get_mut(key) {
                pending.transitions.pop_front();
                pending.waits_since = Instant::now();
            }
        }
    }

    async fn open(
        &self,
        key: &Key,
        name: &str,
        first: &Transition,
        new: NewIncident,
    ) -> Result<(), S::Error> {
        let summary = new.summary.clone();
        let opened = self.store.open(new).await?;
        self.incidents.shared.stored.fetch_add(1, Ordering::Relaxed);
        let open = if opened.new {
            tracing::info!(
                host = %key.host, name, incident = opened.number, rule = key.rule,
                severity = first.severity.as_str(), summary, "incident opened"
            );
            let (severity, since) = (first.severity, first.since);
            Some(OpenIncident {
                key: key.clone(),
                severity,
                since,
            })
        } else {
            // Done before, and perhaps over since: only the store knows.
            let open = self.store.list_open(Some(key.host)).await?;
            open.into_iter().find(|open| open.key == *key)
        };
        let book = &mut self.incidents.lock().book;
        match open {
            Some(open) => book.opened(open),
            None => book.resolved(key),
        }
        Ok(())
    }

    async fn resolve(&self, key: &Key, name: &str, end: Resolution) -> Result<(), S::Error> {
        let resolved = self.store.resolve(end).await?;
        self.incidents.shared.stored.fetch_add(1, Ordering::Relaxed);
        if let Some(number) = resolved {
            tracing::info!(
                host = %key.host, name, incident = number, rule = key.rule, "incident resolved"
            );
        }
        self.incidents.lock().book.resolved(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
