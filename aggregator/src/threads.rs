//! A thread for each shard, on which everything happens that is done for its hosts when they send: reading, TLS,
//! HTTP/2, taking a frame in, answering.
//!
//! A fleet sends little and often: most samples come alone. On a pool of threads each step of one wakes the next on
//! another processor, through the kernel, and moves what it works on into that one's cache. Here a sample is read,
//! applied and handed to the log by the thread that the kernel woke for it. Everything else (joining, operators,
//! pages, timers of the fleet) stays on the pool and holds no sample up.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The threads; they end when this is dropped, and what runs on them with them.
pub struct ShardThreads {
    handles: Vec<Handle>,
    _stop: DropGuard,
}

impl ShardThreads {
    /// Starts so many, at least one.
    ///
    /// # Errors
    /// When the system gives no thread or no descriptors for it.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut handles = Vec::new();
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let stop = stop.clone();
            thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || runtime.block_on(stop.cancelled_owned()))?;
        }
        Ok(Self {
            handles,
            _stop: stop.drop_guard(),
        })
    }

    /// Where to spawn, by shard.
    #[must_use]
    pub fn handles(&self) -> &[Handle] {
        &self.handles
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
        for handle in threads.handles() {
            let on_it = handle.spawn(async move { name() });
            names.push(on_it.await.expect("it runs"));
        }
        assert_eq!(
            names,
            ["shard-0", "shard-1"].map(|name| Some(name.to_owned()))
        );
        let endless = threads.handles()[0].spawn(std::future::pending::<()>());
        drop(threads);
        assert!(endless.await.is_err_and(|error| error.is_cancelled()));
    }
}
