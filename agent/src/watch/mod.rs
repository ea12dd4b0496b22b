//! What changes on a host seldom, seen by looking now and then: the change journal, and what no counter tells.
//!
//! Every `QUICK` (where rounds are rarer, with each) the clocks are compared and the kernel is asked whether anything
//! about mounts and links changed, which costs microseconds and waits for nothing. Only when it did, or when it is time
//! for what may cost milliseconds (every `SLOW` packages, unit files, ports, settings; the processes that use most, as
//! `busiest` says), is a look taken. Each look has a thread of its own, which ends with it: whatever hangs or is slow
//! there delays no sample, is not started again before it returns, and a host where nothing hangs has a thread less.
//! What a look finds waits, bounded, for the next round.
//!
//! What is known is kept on disk, so that a change while the agent was down is told once, when it starts again
//! ([`journal`]). The first look of all tells nothing: it only learns how things are.

pub mod busiest;
pub mod cgroups;
pub mod clock;
pub mod journal;
pub mod life;
pub mod links;
pub mod mounts;
pub mod packages;
pub mod ports;
pub mod settings;
pub mod unit_files;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use muster_proto::{
    event, limits,
    time::{Clock, SystemClock, Timestamp},
    v1::{self, EventField, EventKind},
};

use self::{
    busiest::{Busiest, BusiestConfig},
    clock::ClockWatch,
    journal::{Journal, Known},
    life::Life,
    links::Links,
    mounts::Mounts,
};
use crate::{
    collect::{
        AgentCounters,
        processes::{Census, thread_cpu},
    },
    host::HostRoot,
    sampler::HostClock,
};

/// Between questions about mounts, links and the clock.
const QUICK: Duration = Duration::from_secs(5);

/// Rounds may come a little early: that must not cost a whole one.
const SLACK: Duration = Duration::from_millis(250);

/// Between looks at packages, unit files, ports and settings.
const SLOW: Duration = Duration::from_secs(60);

/// After the start, before the first slow look: a boot has better things to do.
const SETTLE: Duration = Duration::from_secs(20);

/// Events that wait for the next round; more are counted and told as a number.
const MAX_WAITING: usize = 512;

/// Changes of one kind that are told one by one in one look; a distribution upgrade changes thousands.
pub const MAX_EACH: usize = 64;

/// How a host is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchConfig {
    /// Whether changes are looked for at all.
    pub enabled: bool,
    /// Where what is known outlives the process; `None` for nowhere.
    pub state_dir: Option<PathBuf>,
    /// Interfaces that are left out: patterns.
    pub links_exclude: Vec<String>,
    /// The processes and units that use most.
    pub busiest: BusiestConfig,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            state_dir: None,
            links_exclude: links::EXCLUDED.map(str::to_owned).to_vec(),
            busiest: BusiestConfig::default(),
        }
    }
}

/// Where a look puts what it found.
#[derive(Debug, Default)]
pub struct Found {
    events: Vec<v1::Event>,
    left_out: u64,
}

impl Found {
    /// Something that happened at `at`, by the host's clock.
    pub fn event(
        &mut self,
        at: Timestamp,
        kind: EventKind,
        subject: &str,
        fields: Vec<EventField>,
    ) {
        if self.events.len() >= MAX_WAITING {
            self.left_out += 1;
            return;
        }
        self.events.push(v1::Event {
            kind: kind.into(),
            subject: event::printable(subject, limits::MAX_EVENT_SUBJECT_BYTES),
            at_ms: at.as_millis(),
            fields,
        });
    }

    /// The events so far; how many had no room is the last of them.
    pub fn take(&mut self, at: Timestamp) -> Vec<v1::Event> {
        let mut events = std::mem::take(&mut self.events);
        match std::mem::take(&mut self.left_out) {
            0 => {}
            left_out => events.push(left_out_event(at, left_out)),
        }
        events
    }

    #[cfg(test)]
    fn words(&mut self) -> Vec<String> {
        let events = std::mem::take(&mut self.events);
        assert!(events.iter().all(event::is_sound), "{events:?}");
        events.iter().map(event::words).collect()
    }
}

/// How many events were not told.
#[must_use]
pub fn left_out_event(at: Timestamp, count: u64) -> v1::Event {
    v1::Event {
        kind: EventKind::EventsLeftOut.into(),
        subject: String::new(),
        at_ms: at.as_millis(),
        fields: vec![event::integer(
            v1::EventFieldKey::Count,
            i64::try_from(count).unwrap_or(i64::MAX),
        )],
    }
}

/// What looks, and what it has found.
pub struct Watch {
    shared: Arc<Shared>,
    /// The one that looks, while it does not.
    watcher: Arc<Mutex<Option<Watcher>>>,
    /// When it is to look again.
    due: Instant,
    complained: bool,
}

#[derive(Default)]
struct Shared {
    found: Mutex<Found>,
    busiest: Mutex<busiest::Ring>,
    /// Processes that the kernel killed for want of memory and nobody has looked after.
    killed: AtomicU64,
}

impl Watch {
    /// Watches the host from the first [`Watch::take`] on. Nothing is looked at yet.
    #[must_use]
    pub fn new(
        host: HostRoot,
        config: &WatchConfig,
        life: Arc<Mutex<Life>>,
        counters: Arc<AgentCounters>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let now = Instant::now();
        let watcher = Watcher {
            looks: Looks::new(host, config),
            shared: Arc::clone(&shared),
            life,
            counters,
            slow_at: now + SETTLE,
            busiest_at: now,
            complained: false,
        };
        Self {
            shared,
            watcher: Arc::new(Mutex::new(Some(watcher))),
            due: now,
            complained: false,
        }
    }

    /// What was found since the last call, in order. Starts a look when one is due and none is under way.
    #[must_use]
    pub fn take(&mut self, at: Timestamp) -> Vec<v1::Event> {
        let now = Instant::now();
        if now >= self.due {
            self.due = now + QUICK - SLACK;
            self.look();
        }
        lock(&self.shared.found).take(at)
    }

    fn look(&mut self) {
        // Without one it looks already.
        let more = lock(&self.watcher).as_mut().is_some_and(Watcher::glance);
        if !more {
            return;
        }
        let ours = Arc::clone(&self.watcher);
        let look = move || {
            // Where two threads were started, one finds nothing to do.
            let taken = lock(&ours).take();
            if let Some(mut watcher) = taken {
                watcher.look();
                *lock(&ours) = Some(watcher);
            }
        };
        if let Err(error) = thread::Builder::new().name("watch".into()).spawn(look)
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(%error, "changes of this host are not watched: there can be no thread");
        }
    }

    /// Processes were killed for want of memory: which unit's, the next look finds out, and that is soon.
    pub fn killed(&mut self, count: u64) {
        self.shared.killed.fetch_add(count, Ordering::Relaxed);
        self.due = Instant::now();
    }

    /// Who used most lately, oldest first.
    #[must_use]
    pub fn busiest(&self) -> Vec<v1::Busiest> {
        lock(&self.shared.busiest).all()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watcher {
    looks: Looks,
    shared: Arc<Shared>,
    life: Arc<Mutex<Life>>,
    counters: Arc<AgentCounters>,
    slow_at: Instant,
    busiest_at: Instant,
    complained: bool,
}

impl Watcher {
    /// What waits for nothing; whether there is more to look at, which might.
    fn glance(&mut self) -> bool {
        let now = Instant::now();
        let mut found = Found::default();
        let news = self.looks.glance(&SystemClock, &mut found);
        self.put(found);
        news || now >= self.slow_at
            || (self.looks.busiest.is_some() && now >= self.busiest_at)
            || self.shared.killed.load(Ordering::Relaxed) > 0
            || lock(&self.life).is_due(SystemClock.now())
    }

    fn look(&mut self) {
        let now = Instant::now();
        let mut found = Found::default();
        let at = SystemClock.now();
        self.give_sign(at);
        self.looks.quick(
            at,
            self.shared.killed.swap(0, Ordering::Relaxed),
            &mut found,
        );
        if now >= self.slow_at {
            self.slow_at = now + SLOW;
            self.looks.slow(at, &mut found);
        }
        if now >= self.busiest_at {
            let began = thread_cpu();
            let (scan, census) = self.looks.busiest(at);
            let pause = busiest::pause(thread_cpu().saturating_sub(began));
            self.busiest_at = now + pause - SLACK;
            if let Some(scan) = scan {
                lock(&self.shared.busiest).push(scan);
            }
            if let Some(census) = census {
                self.counters.set_census(census);
            }
        }
        self.put(found);
    }

    fn give_sign(&mut self, at: Timestamp) {
        // Written without the lock: a disk that hangs holds up nobody but this thread.
        let sign = lock(&self.life).goes_on(at);
        if let Some(Err(error)) = sign.map(|sign| sign.write())
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(%error, "signs of life are not kept: after a reboot it is not told whether that was clean");
        }
    }

    fn put(&self, new: Found) {
        let mut found = lock(&self.shared.found);
        found.left_out += new.left_out;
        for event in new.events {
            if found.events.len() < MAX_WAITING {
                found.events.push(event);
            } else {
                found.left_out += 1;
            }
        }
    }
}

/// Everything that is looked at. No thread, no waiting: tests call it step by step.
struct Looks {
    host: HostRoot,
    enabled: bool,
    mounts: Mounts,
    links: Links,
    clock: ClockWatch,
    cgroups: cgroups::Cgroups,
    journal: Journal,
    busiest: Option<Busiest>,
}

impl Looks {
    fn new(host: HostRoot, config: &WatchConfig) -> Self {
        Self {
            enabled: config.enabled,
            mounts: Mounts::default(),
            links: Links::new(&config.links_exclude),
            clock: ClockWatch::default(),
            cgroups: cgroups::Cgroups::default(),
            journal: Journal::new(config.state_dir.as_deref()),
            busiest: config
                .busiest
                .enabled
                .then(|| Busiest::new(&config.busiest)),
            host,
        }
    }

    /// The clocks; and whether mounts or links may have changed.
    fn glance(&mut self, clock: &dyn HostClock, found: &mut Found) -> bool {
        if !self.enabled {
            return false;
        }
        self.clock.look(clock, found);
        // Both are asked: what the kernel has told once it does not tell again.
        let quiet = [
            self.mounts.is_quiet(&self.host),
            self.links.is_quiet(&self.host),
        ];
        quiet.contains(&false)
    }

    fn quick(&mut self, at: Timestamp, killed: u64, found: &mut Found) {
        if !self.enabled {
            return;
        }
        self.mounts.look(&self.host, at, found);
        self.links.look(&self.host, at, found);
        self.cgroups.look(&self.host, at, killed, found);
    }

    fn slow(&mut self, at: Timestamp, found: &mut Found) {
        if !self.enabled {
            return;
        }
        let host = &self.host;
        self.journal.update(|known: &mut Known| {
            let mut changed = settings::look(host, at, &mut known.settings, found);
            changed |= packages::look(host, at, &mut known.packages, found);
            changed |= unit_files::look(host, at, &mut known.unit_files, found);
            changed | ports::look(host, at, &mut known.ports, found)
        });
    }

    /// Who uses most, and how many processes there are.
    fn busiest(&mut self, at: Timestamp) -> (Option<v1::Busiest>, Option<Census>) {
        let Some(busiest) = &mut self.busiest else {
            return (None, None);
        };
        (busiest.look(&self.host, at), busiest.take_census())
    }
}

#[cfg(test)]
mod testing {
    use std::{fs, path::Path};

    use super::*;

    /// A host in a temporary folder.
    pub(super) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(super) fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().expect("temporary folder"));
            for (path, content) in files {
                tree.write(path, content);
            }
            tree
        }

        pub(super) fn write(&self, path: &str, content: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
            fs::write(path, content).expect("written");
        }

        pub(super) fn remove(&self, path: &str) {
            fs::remove_file(self.0.path().join(path)).expect("removed");
        }

        pub(super) fn host(&self) -> HostRoot {
            HostRoot::at(self.0.path())
        }

        pub(super) fn path(&self) -> &Path {
            self.0.path()
        }
    }

    pub(super) fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_795_270_380_000 + seconds * 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::Tree, *};

    #[test]
    fn looks_have_a_thread_each_and_never_two_at_once() {
        let tree = Tree::new(&[("proc/7/stat", "7 (x) S 1\n")]);
        let life = Arc::new(Mutex::new(Life::new(None, "", "1")));
        let config = WatchConfig::default();
        let mut watch = Watch::new(tree.host(), &config, life, Arc::default());
        // As while one hangs: its place is empty, and nothing is started.
        let hangs = lock(&watch.watcher).take();
        watch.due = Instant::now();
        assert!(watch.take(testing::at(0)).is_empty());
        assert!(
            watch.due > Instant::now(),
            "asked again when it is due again"
        );
        *lock(&watch.watcher) = hangs;
        // Started at once, though the last look was just now.
        watch.killed(2);
        let mut events = Vec::new();
        while events.is_empty() {
            events = watch.take(testing::at(1));
            thread::yield_now();
        }
        let words: Vec<String> = events.iter().map(event::words).collect();
        assert_eq!(words, ["out of memory: 2 killed"]);
        while lock(&watch.watcher).is_none() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_host_on_which_nothing_changes_is_not_looked_at_in_a_thread() {
        let tree = Tree::new(&[]);
        let life = Arc::new(Mutex::new(Life::new(None, "", "1")));
        let config = WatchConfig {
            busiest: BusiestConfig {
                enabled: false,
                ..BusiestConfig::default()
            },
            ..WatchConfig::default()
        };
        // This machine; what changes on it meanwhile is no part of this test.
        let mut watch = Watch::new(HostRoot::at("/"), &config, life, Arc::default());
        let mut watcher = lock(&watch.watcher).take().expect("it does not look");
        assert!(watcher.glance(), "the first look learns");
        watcher.looks.host = tree.host();
        watcher.looks.enabled = false;
        assert!(!watcher.glance());
        watcher.slow_at = Instant::now();
        assert!(watcher.glance(), "it is time for the slow look");
        watcher.slow_at = Instant::now() + SLOW;
        assert!(!watcher.glance());
        watch.killed(1);
        assert!(watcher.glance(), "somebody was killed");
    }

    #[test]
    fn what_has_no_room_is_counted_and_told() {
        let mut found = Found::default();
        for number in 0..MAX_WAITING + 3 {
            found.event(
                testing::at(0),
                EventKind::PortChanged,
                &number.to_string(),
                Vec::new(),
            );
        }
        let events = found.take(testing::at(1));
        assert_eq!(events.len(), MAX_WAITING + 1);
        assert_eq!(event::words(&events[MAX_WAITING]), "3 events were left out");
        assert!(found.take(testing::at(2)).is_empty());
    }

    #[test]
    fn a_change_while_nobody_looked_is_told_once() {
        let tree = Tree::new(&[
            ("proc/sys/kernel/osrelease", "6.1.0-1\n"),
            (
                "var/lib/dpkg/status",
                "Package: vim\nStatus: install ok installed\nVersion: 1\n",
            ),
        ]);
        let state = tempfile::tempdir().expect("temporary folder");
        let config = WatchConfig {
            state_dir: Some(state.path().to_owned()),
            ..WatchConfig::default()
        };
        let look = |seconds| {
            let mut found = Found::default();
            Looks::new(tree.host(), &config).slow(testing::at(seconds), &mut found);
            found.words()
        };
        assert!(look(0).is_empty(), "the first look only learns");
        tree.write("proc/sys/kernel/osrelease", "6.1.0-2\n");
        tree.write(
            "var/lib/dpkg/status",
            "Package: vim\nStatus: install ok installed\nVersion: 22\n",
        );
        assert_eq!(look(1), ["kernel 6.1.0-1 → 6.1.0-2", "package vim 1 → 22"]);
        assert!(look(2).is_empty());
    }
}
