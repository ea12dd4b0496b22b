//! Asks filesystems for their space in a thread of its own, since the question may never return: a dead
//! NFS server or FUSE daemon holds statvfs(2) for ever, and nothing can interrupt it.
//!
//! Promised: at most [`MAX_HUNG`] threads hang and one works. A mount point whose question hangs is not
//! asked again until it returns, nor is any other of its server. Time is the caller's, of a clock that
//! nobody sets; nothing here waits but [`Prober::wait`], and that is bounded.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::host::HostRoot;

/// A question that has not returned for so long hangs. Slow servers answer within a second.
pub const HUNG_AFTER: Duration = Duration::from_secs(5);

/// Most threads that hang before no more filesystems are asked.
pub const MAX_HUNG: usize = 3;

/// Stack of the thread: statvfs(2) and a path need a few KiB.
const STACK_BYTES: usize = 128 * 1024;

/// Space of a filesystem, in bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Size.
    pub size: u64,
    /// Free.
    pub free: u64,
    /// Free for ordinary users.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}

impl Space {
    /// From the fields of statvfs(3); `unit` is the size of a block in bytes.
    #[must_use]
    pub fn of_blocks(unit: u64, blocks: [u64; 3], inodes: [u64; 2]) -> Self {
        let [size, free, available] = blocks.map(|count| count.saturating_mul(unit));
        let [files, files_free] = inodes;
        Self {
            size,
            free,
            available,
            files,
            files_free,
        }
    }
}

/// Where a mount point's space is known from; a test's may hang.
pub trait Probe: Send + Sync {
    /// The space of the filesystem at this mount point.
    ///
    /// # Errors
    /// What the kernel says.
    fn space(&self, point: &[u8]) -> io::Result<Space>;
}

/// statvfs(2), below a host's root.
#[derive(Debug)]
pub struct Statvfs(pub HostRoot);

impl Probe for Statvfs {
    fn space(&self, point: &[u8]) -> io::Result<Space> {
        let path = self.0.join(PathBuf::from(OsStr::from_bytes(point)));
        let stat = rustix::fs::statvfs(&path)?;
        Ok(Space::of_blocks(
            stat.f_frsize,
            [stat.f_blocks, stat.f_bfree, stat.f_bavail],
            [stat.f_files, stat.f_ffree],
        ))
    }
}

/// A mount point to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub point: Vec<u8>,
    /// The server it comes from, where it comes from one: what hangs with it.
    pub server: Option<String>,
}

/// A question that hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hung {
    /// What was asked.
    pub mounted: Mounted,
    /// When it was first seen under way.
    pub since: Instant,
}

/// The last answer about a mount point.
pub type Answer = Result<Space, io::ErrorKind>;

/// See the module.
pub struct Prober {
    probe: Arc<dyn Probe>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Mounted>,
    answers: Vec<(Vec<u8>, Answer)>,
    /// The thread that takes from the queue, and what it asks; a thread that hangs is no longer it.
    worker: Option<Worker>,
    /// By the number of the question.
    hung: HashMap<u64, Hung>,
    /// Numbers threads and questions, so that a late one knows that it is not waited for.
    next: u64,
}

struct Worker {
    id: u64,
    asking: Option<Question>,
}

struct Question {
    mounted: Mounted,
    number: u64,
    /// When it was first seen under way.
    seen: Option<Instant>,
}

impl Prober {
    /// Asks through `probe`. No thread is started yet.
    #[must_use]
    pub fn new(probe: Arc<dyn Probe>) -> Self {
        Self {
            probe,
            shared: Arc::default(),
        }
    }

    /// Asks for the space of these mount points, but for those that hang. What is still waiting from
    /// before is forgotten.
    pub fn ask(&self, mounts: impl Iterator<Item = Mounted>) {
        let mut state = self.shared.lock();
        let asking = state
            .asking()
            .map(|question| question.mounted.point.clone());
        let mounts = mounts
            .filter(|mounted| !state.hangs(mounted) && Some(&mounted.point) != asking.as_ref());
        state.queue = mounts.collect();
        self.start_worker(&mut state);
    }

    /// Waits until every question is answered, but no longer than `patience`.
    pub fn wait(&self, patience: Duration) {
        let state = self.shared.lock();
        let busy = |state: &mut State| state.worker.is_some();
        // Whether time ran out shows in what is answered.
        let _ = self.shared.idle.wait_timeout_while(state, patience, busy);
    }

    /// Takes the answers that have come.
    #[must_use]
    pub fn take_answers(&self) -> Vec<(Vec<u8>, Answer)> {
        std::mem::take(&mut self.shared.lock().answers)
    }

    /// Notices a question that hangs, and goes on with the others in a new thread.
    pub fn watch(&self, now: Instant) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let Some(question) = state
            .worker
            .as_mut()
            .and_then(|worker| worker.asking.as_mut())
        else {
            return;
        };
        let since = *question.seen.get_or_insert(now);
        if now.saturating_duration_since(since) < HUNG_AFTER {
            return;
        }
        let (number, mounted) = (question.number, question.mounted.clone());
        state.hung.insert(number, Hung { mounted, since });
        state.worker = None;
        let mut queue = std::mem::take(&mut state.queue);
        queue.retain(|mounted| !state.hangs(mounted));
        state.queue = queue;
        self.start_worker(state);
    }

    /// The questions that hang.
    #[must_use]
    pub fn hung(&self) -> Vec<Hung> {
        self.shared.lock().hung.values().cloned().collect()
    }

    fn start_worker(&self, state: &mut State) {
        if state.worker.is_some() || state.queue.is_empty() || state.hung.len() >= MAX_HUNG {
            return;
        }
        state.next += 1;
        let id = state.next;
        let (shared, probe) = (Arc::clone(&self.shared), Arc::clone(&self.probe));
        let spawned = thread::Builder::new()
            .name("filesystem".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || work(id, &shared, probe.as_ref()));
        match spawned {
            Ok(_) => state.worker = Some(Worker { id, asking: None }),
            Err(error) => {
                tracing::warn!(%error, "cannot start the thread that asks filesystems for their space; trying again later");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn asking(&self) -> Option<&Question> {
        self.worker.as_ref()?.asking.as_ref()
    }

    /// Whether a question about this mount point hangs, or about another of its server.
    fn hangs(&self, mounted: &Mounted) -> bool {
        self.hung.values().any(|hung| {
            let other = &hung.mounted;
            other.point == mounted.point
                || (mounted.server.is_some() && other.server == mounted.server)
        })
    }
}

/// One thread: takes from the queue until it is empty, or until it is no longer waited for.
fn work(id: u64, shared: &Shared, probe: &dyn Probe) {
    while let Some((mounted, number)) = next_question(id, shared) {
        let answer = probe.space(&mounted.point).map_err(|error| error.kind());
        let mut state = shared.lock();
        let waited_for = state
            .asking()
            .is_some_and(|question| question.number == number);
        if !waited_for {
            // It hung, and returned at last; another thread has taken over.
            state.hung.remove(&number);
        }
        state.answers.push((mounted.point, answer));
        if !waited_for {
            return;
        }
    }
}

fn next_question(id: u64, shared: &Shared) -> Option<(Mounted, u64)> {
    let mut guard = shared.lock();
    let state = &mut *guard;
    let worker = state.worker.as_mut().filter(|worker| worker.id == id)?;
    let Some(mounted) = state.queue.pop_front() else {
        state.worker = None;
        shared.idle.notify_all();
        return None;
    };
    state.next += 1;
    worker.asking = Some(Question {
        mounted: mounted.clone(),
        number: state.next,
        seen: None,
    });
    Some((mounted, state.next))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Answers, but hangs at mount points that begin with `/hung` until they are let go. A mount point's
    /// size is the length of its name.
    #[derive(Default)]
    pub(crate) struct Gate {
        open: Mutex<bool>,
        opened: Condvar,
        /// Questions under way.
        pub(crate) inside: Mutex<Vec<Vec<u8>>>,
        entered: Condvar,
    }

    impl Gate {
        pub(crate) fn open(&self) {
            *self.open.lock().expect("not poisoned") = true;
            self.opened.notify_all();
        }

        /// Waits until so many questions hang.
        pub(crate) fn wait_inside(&self, count: usize) {
            let inside = self.inside.lock().expect("not poisoned");
            let fewer = |inside: &mut Vec<Vec<u8>>| inside.len() < count;
            let (inside, _) = self
                .entered
                .wait_timeout_while(inside, Duration::from_secs(20), fewer)
                .expect("not poisoned");
            assert_eq!(inside.len(), count);
        }
    }

    impl Probe for Gate {
        fn space(&self, point: &[u8]) -> io::Result<Space> {
            if point.starts_with(b"/hung") {
                self.inside
                    .lock()
                    .expect("not poisoned")
                    .push(point.to_vec());
                self.entered.notify_all();
                let closed = |open: &mut bool| !*open;
                let guard = self.open.lock().expect("not poisoned");
                drop(self.opened.wait_while(guard, closed).expect("not poisoned"));
            }
            Ok(Space {
                size: point.len() as u64,
                ..Space::default()
            })
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    /// What comes before the colon is the server.
    fn mounted(point: &str) -> Mounted {
        let (server, point) = point.split_once(':').unwrap_or(("", point));
        Mounted {
            point: point.as_bytes().to_vec(),
            server: (!server.is_empty()).then(|| server.to_owned()),
        }
    }

    fn points(points: &[&str]) -> impl Iterator<Item = Mounted> {
        points.iter().map(|point| mounted(point))
    }

    fn answered(prober: &Prober) -> Vec<String> {
        let answers = prober.take_answers();
        let mut names: Vec<String> = answers
            .into_iter()
            .map(|(point, _)| String::from_utf8(point).expect("a test's name"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_hung_mount_delays_no_other_and_is_asked_once() {
        let gate = Arc::new(Gate::default());
        let prober = Prober::new(Arc::clone(&gate) as Arc<dyn Probe>);
        prober.ask(points(&["/a", "/hung", "/b"]));
        gate.wait_inside(1);
        assert_eq!(answered(&prober), ["/a"]);
        let began = Instant::now();
        prober.watch(began);
        prober.watch(began + Duration::from_secs(4));
        assert!(prober.hung().is_empty());
        prober.watch(began + Duration::from_secs(5));
        let hung = Hung {
            mounted: mounted("/hung"),
            since: began,
        };
        assert_eq!(prober.hung(), [hung]);
        prober.wait(LONG);
        assert_eq!(answered(&prober), ["/b"]);

        prober.ask(points(&["/a", "/hung", "/b"]));
        prober.wait(LONG);
        assert_eq!(answered(&prober), ["/a", "/b"]);
        assert_eq!(gate.inside.lock().expect("not poisoned").len(), 1);

        gate.open();
        while !prober.hung().is_empty() {
            thread::yield_now();
        }
        assert_eq!(answered(&prober), ["/hung"]);
        prober.ask(points(&["/hung"]));
        prober.wait(LONG);
        assert_eq!(answered(&prober), ["/hung"]);
    }

    #[test]
    fn threads_that_hang_are_bounded() {
        let gate = Arc::new(Gate::default());
        let prober = Prober::new(Arc::clone(&gate) as Arc<dyn Probe>);
        let names: Vec<String> = (0..MAX_HUNG + 3).map(|n| format!("/hung{n}")).collect();
        let all = || names.iter().map(|name| mounted(name));
        let began = Instant::now();
        prober.ask(all());
        for round in 0..MAX_HUNG {
            gate.wait_inside(round + 1);
            prober.watch(began);
            prober.watch(began + LONG);
        }
        assert_eq!(prober.hung().len(), MAX_HUNG);
        prober.ask(all());
        prober.watch(began + 2 * LONG);
        assert_eq!(gate.inside.lock().expect("not poisoned").len(), MAX_HUNG);
        gate.open();
        while !prober.hung().is_empty() {
            thread::yield_now();
        }
        prober.ask(all());
        prober.wait(LONG);
        let mut names = names.clone();
        names.dedup();
        assert!(names.iter().all(|name| answered_contains(&prober, name)));
    }

    #[test]
    fn the_other_mounts_of_a_server_that_hangs_are_not_asked() {
        let gate = Arc::new(Gate::default());
        let prober = Prober::new(Arc::clone(&gate) as Arc<dyn Probe>);
        let all = ["one:/hung1", "one:/hung2", "one:/three", "two:/four"];
        prober.ask(points(&all));
        gate.wait_inside(1);
        let began = Instant::now();
        prober.watch(began);
        prober.watch(began + HUNG_AFTER);
        prober.wait(LONG);
        assert_eq!(answered(&prober), ["/four"]);
        prober.ask(points(&all));
        prober.wait(LONG);
        assert_eq!(answered(&prober), ["/four"]);
        assert_eq!(gate.inside.lock().expect("not poisoned").len(), 1);
        gate.open();
    }

    fn answered_contains(prober: &Prober, name: &str) -> bool {
        let state = prober.shared.lock();
        state
            .answers
            .iter()
            .any(|(point, _)| point == name.as_bytes())
    }
}
