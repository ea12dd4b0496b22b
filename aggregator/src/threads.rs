//! A thread for each shard, on which everything happens that is done for its hosts when they send: reading, TLS,
//! HTTP/2, taking a frame in, answering.
//!
//! A fleet sends little and often: most samples come alone. On a pool of threads each step of one wakes the next on
//! another processor, through the kernel, and moves what it works on into that one's cache. Here a sample is read,
//! applied and handed to the log by the thread that the kernel woke for it. Everything else (joining, operators,
//! pages, timers of the fleet) stays on the pool and holds no sample up.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a thread rests between two turns while something comes more often than that.
///
/// A sample that comes alone is waited for by the kernel, woken for, and found by caches that something else has used
/// since: that costs more than the sample. So what comes while the thread rests is done together, as network cards do
/// with packets. The first after a quiet time is done at once. Nobody notices: acknowledgements wait for longer
/// ([`crate::journal::GATHER`]), and whoever asks a question ends the rest ([`ShardThread::rouse`]).
pub const REST: Duration = Duration::from_millis(20);

/// So many tasks run before the kernel is asked again what came, if there are as many: each sample takes a few.
const TURNS: u32 = 512;

/// The threads; they end when this is dropped, and what runs on them with them.
pub struct ShardThreads {
    threads: Vec<ShardThread>,
    _stop: DropGuard,
}

/// One of them.
#[derive(Clone)]
pub struct ShardThread {
    /// Where to spawn what is to run on it.
    pub runtime: Handle,
    rest: Arc<Rest>,
}

impl ShardThread {
    /// Ends its rest, if it rests: somebody waits for an answer.
    pub fn rouse(&self) {
        if let Some(thread) = self.rest.thread.get() {
            thread.unpark();
        }
    }
}

/// When a thread sleeps until something comes, and when it only rests.
struct Rest {
    thread: OnceLock<thread::Thread>,
    began: Instant,
    /// When it last went to sleep, microseconds since it began.
    slept: AtomicU64,
    /// It was woken so soon that more is likely to come soon.
    busy: AtomicBool,
}

impl Rest {
    fn new() -> Self {
        Self {
            thread: OnceLock::new(),
            began: Instant::now(),
            slept: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// There is nothing more to do.
    fn before_sleep(&self) {
        if self.busy.load(Ordering::Relaxed) {
            thread::park_timeout(REST);
        }
        self.slept.store(self.now(), Ordering::Relaxed);
    }

    /// Something came.
    fn after_sleep(&self) {
        let slept = self
            .now()
            .saturating_sub(self.slept.load(Ordering::Relaxed));
        let busy = u128::from(slept) < REST.as_micros();
        self.busy.store(busy, Ordering::Relaxed);
    }
}

impl ShardThreads {
    /// Starts so many, at least one.
    ///
    /// # Errors
    /// When the system gives no thread or no descriptors for it.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut threads = Vec::new();
        for index in 0..count.max(1) {
            let rest = Arc::new(Rest::new());
            let (before, after) = (Arc::clone(&rest), Arc::clone(&rest));
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(TURNS)
                .on_thread_park(move || before.before_sleep())
                .on_thread_unpark(move || after.after_sleep())
                .build()?;
            let thread = ShardThread {
                runtime: runtime.handle().clone(),
                rest,
            };
            let stop = stop.clone();
            let running = thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || runtime.block_on(stop.cancelled_owned()))?;
            // Set once: it was made here.
            let _ = thread.rest.thread.set(running.thread().clone());
            threads.push(thread);
        }
        Ok(Self {
            threads,
            _stop: stop.drop_guard(),
        })
    }

    /// Each of them, by shard.
    #[must_use]
    pub fn each(&self) -> &[ShardThread] {
        &self.threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_shard_has_a_thread_that_ends_with_the_last_holder() {
        let threads = ShardThreads::start(2).expect("threads");
        let name = || thread::current().name().map(str::to_owned);
        let mut names = Vec::new();
        for thread in threads.each() {
            let on_it = thread.runtime.spawn(async move { name() });
            names.push(on_it.await.expect("it runs"));
        }
        assert_eq!(
            names,
            ["shard-0", "shard-1"].map(|name| Some(name.to_owned()))
        );
        let endless = threads.each()[0]
            .runtime
            .spawn(std::future::pending::<()>());
        drop(threads);
        assert!(endless.await.is_err_and(|error| error.is_cancelled()));
    }

    #[test]
    fn who_was_woken_soon_rests_and_can_be_roused() {
        let rest = Rest::new();
        rest.before_sleep();
        assert!(
            !rest.busy.load(Ordering::Relaxed),
            "the first does not rest"
        );
        rest.after_sleep();
        assert!(rest.busy.load(Ordering::Relaxed), "woken at once");
        // Roused before it rests, so that it does not.
        thread::current().unpark();
        rest.before_sleep();
        rest.slept.store(0, Ordering::Relaxed);
        let long_ago = Rest {
            began: Instant::now() - REST * 2,
            ..rest
        };
        long_ago.after_sleep();
        assert!(
            !long_ago.busy.load(Ordering::Relaxed),
            "nothing came for longer than a rest"
        );
    }
}
