//! Checks: questions that the host's own configuration asks, about itself and what it can reach.
//!
//! A [`Check`] is one `[[check]]` of agent.toml; nothing but that file defines one, and no message of an
//! aggregator can. [`Tools::run`] asks once and answers with a [`Report`] in bounded time; [`schedule`] asks
//! again and again, and shows what was found as series and events. A check that hangs holds its own place and
//! no other's: everything is asynchronous but what the kernel gives no other way (files, processes, the
//! resolver), and that runs on at most [`BLOCKING`] threads, each check on one at most.
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
mod tls;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, Instant},
};

pub use self::config::{Check, ChecksConfig, Kind};

/// Threads for what cannot be asked without waiting. Half of those that the runtime has: the other half is for
/// the link's own resolver.
pub const BLOCKING: usize = 4;

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
    blocking: Arc<Semaphore>,
    plugins: Arc<Semaphore>,
    tls: tls::Clients,
}

impl Tools {
    /// For checks of this configuration.
    #[must_use]
    pub fn new(config: &ChecksConfig) -> Self {
        Self {
            blocking: Arc::new(Semaphore::new(BLOCKING)),
            plugins: Arc::new(Semaphore::new(config.max_exec)),
            tls: tls::Clients::default(),
        }
    }

    /// Asks once. `memory` is the check's own, from run to run. Ends within the check's timeout, but for a
    /// plugin that waits for others to end before it may start.
    pub async fn run(&self, check: &Check, memory: &mut Memory) -> Report {
        let began = Instant::now();
        let place = Arc::clone(&memory.place).try_acquire_owned();
        let finding = match place {
            Ok(place) => {
                let run = Run {
                    tools: self,
                    check,
                    place: Arc::new(place),
                };
                match &check.kind {
                    // Kills what it started before it ends.
                    Kind::Exec(exec) => exec::run(&run, exec).await,
                    _ => time::timeout(check.timeout, run.ask(memory))
                        .await
                        .unwrap_or_else(|_| run.timed_out()),
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
}

impl Run<'_> {
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

    fn timed_out(&self) -> Finding {
        let after = crate::settings::show_duration(self.check.timeout);
        Finding::critical(Cause::Timeout, format!("no answer in {after}"))
    }

    /// Runs what cannot be asked without waiting on one of few threads. If this future is dropped, the thread
    /// keeps its place and the check's until the kernel lets it go.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Finding> {
        let thread = Arc::clone(&self.tools.blocking).acquire_owned().await;
        let place = Arc::clone(&self.place);
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop((thread, place));
            result
        });
        done.await
            .map_err(|_| Finding::unknown(Cause::Error, "the check ended before its time"))
    }
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
        let run = Run {
            tools: &tools,
            check: &check,
            place: Arc::new(place.expect("nothing runs yet")),
        };
        let hanging = run.aside(move || held.recv());
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
}
