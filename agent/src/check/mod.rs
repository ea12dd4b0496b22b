//! Checks: questions that the host's own configuration asks, about itself and what it can reach.
//!
//! A [`Check`] is one `[[check]]` of agent.toml; nothing but that file defines one, and no message of an
//! aggregator can. [`Tools::run`] asks once and answers with a [`Report`] in bounded time; [`schedule`] asks
//! again and again, and shows what was found as series and events. A check that hangs holds its own place and
//! no other's: everything is asynchronous but what the kernel gives no other way (files, processes, the
//! resolver, the start of a program), and that runs on at most [`BLOCKING`] threads, each check on one at most.
//! Names and files have threads apart, so that a resolver that does not answer stops no check of a file. A check
//! that finds all threads taken says that it could not ask, and never that what it asks about is broken.
//!
//! Texts that a peer or a plugin sent stay on the host: they are shown by `muster-agent check` and in its log.
//! What is told to the aggregator is numbers and words of closed sets ([`Status`], [`Cause`]).

pub mod by_hand;
pub mod config;
mod dns;
mod exec;
mod file;
mod http;
mod net;
mod plugin;
mod process;
pub mod schedule;
mod starttls;
mod tls;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{self, Instant},
};

pub use self::config::{Check, ChecksConfig, Kind};

/// Threads for names, and as many for files and processes: what cannot be asked without waiting.
const THREADS_EACH: usize = 4;

/// Most threads that checks take: for names, for files and processes, and one a plugin to start it. The runtime
/// needs more than these, for the link's own resolver.
pub const BLOCKING: usize = 2 * THREADS_EACH + config::MAX_EXEC;

/// Longest text for people, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// How it is, in the numbers of monitoring plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok = 0,
    /// Someone should look at it by day.
    Warning = 1,
    /// Not as it should be.
    Critical = 2,
    /// Nobody can tell: the check itself does not work.
    Unknown = 3,
}

impl Status {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Unknown => "unknown",
        }
    }
}

/// What a run found, in a word of a closed set: who is paged sees at once whether nobody listened or nobody
/// answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing wrong.
    Ok,
    /// No answer in time.
    Timeout,
    /// Nobody listens there.
    Refused,
    /// No way there.
    Unreachable,
    /// The name has no address, or the DNS says no.
    Name,
    /// The peer ended the connection early, or spoke another protocol.
    Protocol,
    /// TLS could not be agreed upon.
    Tls,
    /// The certificate's issuer is not trusted.
    CertificateUntrusted,
    /// The certificate is of another name.
    CertificateName,
    /// The certificate has expired, or will soon.
    CertificateExpiry,
    /// An HTTP status that is not among those expected.
    HttpStatus,
    /// The answer is not the one expected.
    Content,
    /// Right, but too slow.
    Slow,
    /// It is not there.
    Missing,
    /// It is there and should not be.
    Present,
    /// Not changed for too long.
    Age,
    /// Too small or too large.
    Size,
    /// Grows too fast.
    Growth,
    /// Too few or too many.
    Count,
    /// A plugin said so.
    Plugin,
    /// A plugin was ended by a signal.
    Signal,
    /// The agent may not.
    Denied,
    /// It could not be tried.
    Error,
}

impl Cause {
    /// In a word: the label `result` of `muster_check_result`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Name => "name",
            Self::Protocol => "protocol",
            Self::Tls => "tls",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::CertificateName => "certificate_name",
            Self::CertificateExpiry => "certificate_expiry",
            Self::HttpStatus => "http_status",
            Self::Content => "content",
            Self::Slow => "slow",
            Self::Missing => "missing",
            Self::Present => "present",
            Self::Age => "age",
            Self::Size => "size",
            Self::Growth => "growth",
            Self::Count => "count",
            Self::Plugin => "plugin",
            Self::Signal => "signal",
            Self::Denied => "denied",
            Self::Error => "error",
        }
    }
}

/// A number that a plugin measured, in base units.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// The plugin's name of it.
    pub label: String,
    /// "seconds", "bytes", "percent", "count" or nothing.
    pub unit: &'static str,
    /// The number.
    pub value: f64,
}

/// What was found, before anything is made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// How it is.
    pub status: Status,
    /// Why.
    pub cause: Cause,
    /// For people, on one line.
    pub message: String,
    /// When the certificate that was seen expires, in seconds since 1970.
    pub expires: Option<i64>,
    /// What a plugin measured.
    pub measures: Vec<Measure>,
}

impl Finding {
    fn new(status: Status, cause: Cause, message: impl Into<String>) -> Self {
        Self {
            status,
            cause,
            message: message.into(),
            expires: None,
            measures: Vec::new(),
        }
    }

    fn ok(message: impl Into<String>) -> Self {
        Self::new(Status::Ok, Cause::Ok, message)
    }

    fn critical(cause: Cause, message: impl Into<String>) -> Self {
        Self::new(Status::Critical, cause, message)
    }

    fn unknown(cause: Cause, message: impl Into<String>) -> Self {
        Self::new(Status::Unknown, cause, message)
    }
}

/// One run of a check.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What was found; its status is at most what the check's severity allows.
    pub finding: Finding,
    /// How long it took.
    pub took: Duration,
}

/// What runs of checks share, and what bounds them.
#[derive(Debug, Clone)]
pub struct Tools {
    names: Arc<Semaphore>,
    files: Arc<Semaphore>,
    plugins: Arc<Semaphore>,
    tls: tls::Clients,
}

impl Tools {
    /// For checks of this configuration.
    #[must_use]
    pub fn new(config: &ChecksConfig) -> Self {
        Self {
            names: Arc::new(Semaphore::new(THREADS_EACH)),
            files: Arc::new(Semaphore::new(THREADS_EACH)),
            plugins: Arc::new(Semaphore::new(config.max_exec)),
            tls: tls::Clients::default(),
        }
    }

    /// Asks once. `memory` is the check's own, from run to run. Ends within the check's timeout, and for as long
    /// again where it waits for a thread; a plugin waits for others at most for the check's interval.
    pub async fn run(&self, check: &Check, memory: &mut Memory) -> Report {
        let began = Instant::now();
        let place = Arc::clone(&memory.place).try_acquire_owned();
        let finding = match place {
            Ok(place) => {
                let run = Run::new(self, check, place);
                match &check.kind {
                    // Kills what it started before it ends.
                    Kind::Exec(exec) => exec::run(&run, exec).await,
                    _ => run.in_time(run.ask(memory)).await,
                }
            }
            Err(_) => Finding::critical(
                Cause::Timeout,
                "an earlier run still hangs in the kernel; it is not started again until that returns",
            ),
        };
        let mut finding = finding;
        if finding.status == Status::Critical {
            finding.status = check.severity;
        }
        finding.message = one_line(&finding.message);
        Report {
            finding,
            took: began.elapsed(),
        }
    }
}

/// What a check remembers from one run to the next.
#[derive(Debug)]
pub struct Memory {
    /// Taken by a run until all it started has ended.
    place: Arc<Semaphore>,
    /// Size of a file when it was last looked at.
    size: Option<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            place: Arc::new(Semaphore::new(1)),
            size: None,
        }
    }
}

/// A run while it lasts.
struct Run<'a> {
    tools: &'a Tools,
    check: &'a Check,
    place: Arc<OwnedSemaphorePermit>,
    waits: Mutex<Waits>,
    /// Told when a wait for a thread begins or ends.
    waits_changed: Notify,
}

/// How long a run has waited for a thread: that is no fault of what it asks about, and does not count as its time.
#[derive(Debug, Default)]
struct Waits {
    total: Duration,
    waiting: bool,
}

/// Which threads a piece of work may take.
#[derive(Debug, Clone, Copy)]
enum Threads {
    /// Those of the resolver.
    Names,
    /// Those of files and processes.
    Files,
}

impl<'a> Run<'a> {
    fn new(tools: &'a Tools, check: &'a Check, place: OwnedSemaphorePermit) -> Self {
        Self {
            tools,
            check,
            place: Arc::new(place),
            waits: Mutex::default(),
            waits_changed: Notify::new(),
        }
    }

    async fn ask(&self, memory: &mut Memory) -> Finding {
        let found = match &self.check.kind {
            Kind::Http(http) => http::ask(self, http).await,
            Kind::Tcp(tcp) => net::ask(self, tcp).await,
            Kind::Tls(tls) => tls::ask(self, tls).await,
            Kind::Dns(dns) => dns::ask(self, dns).await,
            Kind::File(file) => file::ask(self, file, &mut memory.size).await,
            Kind::Process(process) => process::ask(self, process).await,
            Kind::Exec(exec) => Ok(exec::run(self, exec).await),
        };
        found.unwrap_or_else(|finding| finding)
    }

    /// What is found within the check's timeout. It stands still while the run waits for a thread.
    async fn in_time(&self, asked: impl Future<Output = Finding>) -> Finding {
        let began = Instant::now();
        let mut asked = std::pin::pin!(asked);
        loop {
            let (waiting, deadline) = {
                let waits = self.waits();
                (waits.waiting, began + self.check.timeout + waits.total)
            };
            tokio::select! {
                biased;
                found = &mut asked => return found,
                () = self.waits_changed.notified() => {}
                // A wait has an end of its own.
                () = time::sleep_until(deadline), if !waiting => return self.timed_out(),
            }
        }
    }

    fn timed_out(&self) -> Finding {
        let after = crate::settings::show_duration(self.check.timeout);
        Finding::critical(Cause::Timeout, format!("no answer in {after}"))
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place among the threads of this sort; all waits of a run together take no longer than its timeout.
    async fn thread(&self, threads: Threads) -> Result<OwnedSemaphorePermit, Finding> {
        let (places, what) = match threads {
            Threads::Names => (&self.tools.names, "names to be resolved"),
            Threads::Files => (&self.tools.files, "files that do not answer"),
        };
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(place);
        }
        let patience = {
            let mut waits = self.waits();
            waits.waiting = true;
            self.check.timeout.saturating_sub(waits.total)
        };
        self.waits_changed.notify_one();
        let began = Instant::now();
        let place = time::timeout(patience, Arc::clone(places).acquire_owned()).await;
        {
            let mut waits = self.waits();
            waits.waiting = false;
            waits.total += began.elapsed();
        }
        self.waits_changed.notify_one();
        match place {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Finding::unknown(
                Cause::Error,
                format!("not asked: no thread is free, other checks wait for {what}"),
            )),
        }
    }

    /// Runs what cannot be asked without waiting on one of few threads. If this future is dropped, the thread
    /// keeps its place and the check's until the kernel lets it go.
    async fn aside<T: Send + 'static>(
        &self,
        threads: Threads,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Finding> {
        let thread = self.thread(threads).await?;
        let place = Arc::clone(&self.place);
        spawn(move || {
            let result = work();
            drop((thread, place));
            result
        })
        .await
    }
}

async fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Finding> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Finding::unknown(Cause::Error, "the check ended before its time"))
}

/// The first line of a text, printable and of bounded length.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or("").trim();
    let mut shown: String = line
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if shown.len() > MAX_MESSAGE_BYTES {
        shown.truncate(shown.floor_char_boundary(MAX_MESSAGE_BYTES));
        shown.push('…');
    }
    shown
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A check of this kind with half a minute's patience.
    pub(crate) fn check(kind: Kind) -> Check {
        Check {
            kind,
            ..Check::named("it")
        }
    }

    /// Asks once.
    pub(crate) async fn run(kind: Kind) -> Finding {
        run_check(&check(kind)).await
    }

    /// Asks once.
    pub(crate) async fn run_check(check: &Check) -> Finding {
        let tools = Tools::new(&ChecksConfig::default());
        tools.run(check, &mut Memory::default()).await.finding
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn messages_are_one_printable_line() {
        assert_eq!(one_line("a\tb\x1b[2J\nc"), "a\u{fffd}b\u{fffd}[2J");
        assert_eq!(one_line(""), "");
        assert!(one_line(&"ü".repeat(5000)).len() <= MAX_MESSAGE_BYTES + '…'.len_utf8());
    }

    #[tokio::test]
    async fn what_hangs_in_the_kernel_is_not_started_again_until_it_returns() {
        let tools = Tools::new(&ChecksConfig::default());
        let check = testing::check(Kind::File(config::FileCheck::at("/")));
        let mut memory = Memory::default();
        let (release, held) = mpsc::channel::<()>();
        let place = Arc::clone(&memory.place).try_acquire_owned();
        let run = Run::new(&tools, &check, place.expect("nothing runs yet"));
        let hanging = run.aside(Threads::Files, move || held.recv());
        // Polled once, so that the thread starts; then given up as by a timeout.
        assert!(time::timeout(Duration::ZERO, hanging).await.is_err());
        drop(run);
        let report = tools.run(&check, &mut memory).await;
        assert_eq!(report.finding.cause, Cause::Timeout);
        assert!(report.finding.message.contains("earlier run"));
        drop(release);
        let free = Arc::clone(&memory.place).acquire_owned().await;
        drop(free);
        let report = tools.run(&check, &mut memory).await;
        assert_eq!(report.finding.status, Status::Ok);
    }

    /// All threads for names taken, as by a resolver that does not answer.
    fn take_all(threads: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
        let take = || Arc::clone(threads).try_acquire_owned().ok();
        std::iter::from_fn(take).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_hangs_makes_no_other_check_critical() {
        let tools = Tools::new(&ChecksConfig::default());
        let taken = take_all(&tools.names);
        assert_eq!(taken.len(), THREADS_EACH);
        let there = testing::check(Kind::File(config::FileCheck::at("/")));
        let report = tools.run(&there, &mut Memory::default()).await;
        assert_eq!(report.finding.status, Status::Ok);
        // One that needs a name says that it could not ask, in bounded time.
        let named = testing::check(Kind::Tcp(config::TcpCheck {
            host: "host.invalid".to_owned(),
            port: 1,
            send: String::new(),
            expect: String::new(),
            slow: None,
        }));
        let report = tools.run(&named, &mut Memory::default()).await;
        assert_eq!(
            (report.finding.status, report.finding.cause),
            (Status::Unknown, Cause::Error)
        );
        assert!(
            report.finding.message.contains("no thread is free"),
            "{}",
            report.finding.message
        );
        assert!(report.took <= named.timeout * 2, "{:?}", report.took);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_thread_is_not_the_time_of_the_check() {
        let tools = Tools::new(&ChecksConfig::default());
        let check = testing::check(Kind::File(config::FileCheck::at("/")));
        let place = Arc::clone(&Memory::default().place).try_acquire_owned();
        let run = Run::new(&tools, &check, place.expect("nothing runs yet"));
        let mut taken = take_all(&tools.files);
        let most = check.timeout.mul_f64(0.9);
        let free = async {
            time::sleep(most).await;
            taken.pop();
        };
        // Waits for most of its time, then needs most of its time.
        let asked = async {
            let thread = run.thread(Threads::Files).await?;
            time::sleep(most).await;
            drop(thread);
            Ok(Finding::ok("found"))
        };
        let asked = async { asked.await.unwrap_or_else(|finding: Finding| finding) };
        let (finding, ()) = tokio::join!(run.in_time(asked), free);
        assert_eq!(finding.message, "found");
        let began = Instant::now();
        let finding = run.in_time(std::future::pending()).await;
        assert_eq!(finding.cause, Cause::Timeout);
        assert!(began.elapsed() < check.timeout * 2);
    }
}
