//! Asks again and again, and shows what was found: as a collector that puts series, with an event for each
//! change of status.
//!
//! Each check is a task of its own that sleeps nearly always. A failure is asked about again (`retries`) before
//! the status changes, so that one lost packet pages nobody; what is fine again is fine at once. Starts are
//! spread over the interval, so that a host's checks, and a fleet's, do not all ask in the same second.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::{
    catalog,
    time::{Clock as _, SystemClock, Timestamp},
    v1::{EventFieldKey, EventKind},
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{self, Instant},
};

use super::{Check, ChecksConfig, Memory, Report, Status, Tools};
use crate::{
    collect::{About, CollectError, Collector, Outcome, Readings, word},
    host::HostRoot,
};

/// The first run is at most this long after the start: who restarts an agent wants to know.
const MAX_FIRST_WAIT: Duration = Duration::from_secs(15);

/// Each wait is this much shorter or longer, in percent.
const JITTER_PERCENT: u32 = 5;

/// Series of a check beside what a plugin measures.
const SERIES: usize = 8;

/// Its name as a collector.
pub const NAME: &str = "checks";

static ABOUT: About = About {
    name: NAME,
    every: Duration::ZERO,
    reads: "what [[check]] in the configuration says",
    needs: "",
    what: "results of this host's own checks",
};

/// The checks of a host as a collector. See the module.
pub struct Checks {
    config: ChecksConfig,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    started: bool,
}

struct Shared {
    board: Mutex<Board>,
    urgent: Arc<Notify>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Board> {
        // A run is noted whole.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How all checks stand.
#[derive(Default)]
struct Board {
    /// In the order of their names.
    stands: Vec<Stand>,
    changes: Vec<Change>,
    changed: bool,
}

/// How one check stands.
#[derive(Debug, Default)]
struct Stand {
    status: Option<Status>,
    since: Timestamp,
    runs: u64,
    /// Runs in a row that were not ok.
    failed: u64,
    latest: Option<Report>,
}

struct Change {
    name: String,
    from: Option<Status>,
    to: Status,
    cause: &'static str,
    at: Timestamp,
}

impl Stand {
    /// Notes a run; true if the status is another now.
    fn note(&mut self, report: Report, retries: usize, now: Timestamp) -> bool {
        let found = report.finding.status;
        self.runs += 1;
        self.failed = match found {
            Status::Ok => 0,
            _ => self.failed + 1,
        };
        self.latest = Some(report);
        let was_failing = self.status.is_some_and(|status| status != Status::Ok);
        let holds = found == Status::Ok || was_failing || self.failed > retries as u64;
        let changes = holds && self.status != Some(found);
        if changes {
            self.status = Some(found);
            self.since = now;
        }
        changes
    }

    /// Whether a failure waits to be confirmed.
    fn is_doubtful(&self) -> bool {
        self.failed > 0 && self.status.is_none_or(|status| status == Status::Ok)
    }
}

impl Checks {
    /// These checks; `urgent` is told when a status changes. Nothing is asked before the first round.
    #[must_use]
    pub fn new(config: &ChecksConfig, urgent: Arc<Notify>) -> Self {
        let mut board = Board::default();
        board
            .stands
            .resize_with(config.checks.len(), Stand::default);
        Self {
            config: config.clone(),
            shared: Arc::new(Shared {
                board: Mutex::new(board),
                urgent,
            }),
            tasks: JoinSet::new(),
            started: false,
        }
    }

    fn start(&mut self, runtime: &tokio::runtime::Handle) {
        let tools = Tools::new(&self.config);
        for (place, check) in self.config.checks.values().enumerate() {
            let task = keep_asking(
                check.clone(),
                place,
                tools.clone(),
                Arc::clone(&self.shared),
                fastrand::Rng::new(),
            );
            self.tasks.spawn_on(task, runtime);
        }
    }
}

impl Collector for Checks {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if self.config.checks.is_empty() || !host.is_live() {
            return Ok(Outcome::NoData);
        }
        if !self.started {
            let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                return Ok(Outcome::NoData);
            };
            self.start(&runtime);
            self.started = true;
        }
        let mut board = self.shared.lock();
        Ok(put(&mut board, &self.config, out))
    }
}

async fn keep_asking(
    check: Check,
    place: usize,
    tools: Tools,
    shared: Arc<Shared>,
    mut random: fastrand::Rng,
) {
    let mut memory = Memory::default();
    let spread = check.interval.min(MAX_FIRST_WAIT);
    time::sleep(spread.mul_f64(random.f64())).await;
    loop {
        let began = Instant::now();
        let report = tools.run(&check, &mut memory).await;
        let doubtful = note(&shared, place, &check, report, SystemClock.now());
        let wait = match doubtful {
            true => check.retry_interval,
            false => check.interval,
        };
        time::sleep_until(began + jittered(wait, &mut random)).await;
    }
}

/// Notes a run; whether it waits to be confirmed.
fn note(shared: &Shared, place: usize, check: &Check, report: Report, now: Timestamp) -> bool {
    let mut board = shared.lock();
    let board = &mut *board;
    let Some(stand) = board.stands.get_mut(place) else {
        return false;
    };
    let before = stand.status;
    let cause = report.finding.cause.word();
    let (found, message) = (report.finding.status, report.finding.message.clone());
    board.changed = true;
    if stand.note(report, check.retries, now) {
        board.changes.push(Change {
            name: check.name.clone(),
            from: before,
            to: found,
            cause,
            at: now,
        });
        let (check, status) = (&check.name, found.word());
        match found {
            Status::Ok if before.is_none() => {}
            Status::Ok => tracing::info!(check, message, "check is ok again"),
            _ => tracing::warn!(check, status, result = cause, message, "check fails"),
        }
        shared.urgent.notify_one();
    }
    stand.is_doubtful()
}

fn jittered(wait: Duration, random: &mut fastrand::Rng) -> Duration {
    let percent = random.u32(100 - JITTER_PERCENT..=100 + JITTER_PERCENT);
    wait * percent / 100
}

/// Puts what has changed since the last round.
fn put(board: &mut Board, config: &ChecksConfig, out: &mut Readings) -> Outcome {
    for change in board.changes.drain(..) {
        // The first result of all is no change, unless it is bad.
        if change.from.is_none() && change.to == Status::Ok {
            continue;
        }
        let mut fields = Vec::with_capacity(3);
        fields.extend(
            change
                .from
                .map(|from| word(EventFieldKey::From, from.word())),
        );
        fields.push(word(EventFieldKey::To, change.to.word()));
        fields.push(word(EventFieldKey::Result, change.cause));
        out.event_at(change.at, EventKind::CheckChanged, &change.name, fields);
    }
    if !std::mem::take(&mut board.changed) {
        let told = board.stands.iter().any(|stand| stand.runs > 0);
        return if told {
            Outcome::Unchanged
        } else {
            Outcome::NoData
        };
    }
    for (check, stand) in config.checks.values().zip(&board.stands) {
        put_one(check, stand, out);
    }
    Outcome::Read
}

fn put_one(check: &Check, stand: &Stand, out: &mut Readings) {
    let Some(report) = &stand.latest else {
        return;
    };
    let finding = &report.finding;
    if !out.admits_object(SERIES + finding.measures.len()) {
        return;
    }
    let name = [check.name.as_str()];
    let info = [name[0], check.severity.word(), check.kind.word()];
    out.int(catalog::CHECK_INFO, &info, 1);
    if let Some(status) = stand.status {
        out.int(catalog::CHECK_STATUS, &name, status as i64);
        out.int(catalog::CHECK_SINCE, &name, stand.since.as_millis() / 1000);
    }
    let result = [name[0], finding.cause.word()];
    out.int(catalog::CHECK_RESULT, &result, 1);
    let micros = u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX);
    out.unsigned(catalog::CHECK_DURATION, &name, micros);
    out.unsigned(catalog::CHECK_RUNS, &name, stand.runs);
    out.unsigned(catalog::CHECK_FAILED_RUNS, &name, stand.failed);
    if let Some(expires) = finding.expires {
        out.int(catalog::CHECK_CERTIFICATE_EXPIRY, &name, expires);
    }
    for measure in &finding.measures {
        let labels = [name[0], &measure.label, measure.unit];
        out.float(catalog::CHECK_PERFDATA, &labels, measure.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Cause, Finding, Kind, Measure, config::FileCheck, testing};

    fn report(status: Status) -> Report {
        let cause = match status {
            Status::Ok => Cause::Ok,
            _ => Cause::Timeout,
        };
        Report {
            finding: Finding::new(status, cause, "text"),
            took: Duration::from_millis(1500),
        }
    }

    #[test]
    fn a_status_changes_after_its_retries_and_is_fine_at_once() {
        use Status::{Critical, Ok, Unknown, Warning};
        // What was found, the status then, whether another run is due soon.
        let runs = [
            (Critical, None, true),
            (Ok, Some(Ok), false),
            (Critical, Some(Ok), true),
            (Warning, Some(Ok), true),
            (Critical, Some(Critical), false),
            (Warning, Some(Warning), false),
            (Unknown, Some(Unknown), false),
            (Ok, Some(Ok), false),
            (Critical, Some(Ok), true),
            (Ok, Some(Ok), false),
        ];
        let mut stand = Stand::default();
        for (number, (found, status, doubtful)) in runs.into_iter().enumerate() {
            let now = Timestamp::from_millis(i64::try_from(number).expect("few") * 1000);
            let before = stand.status;
            let changed = stand.note(report(found), 2, now);
            assert_eq!(stand.status, status, "run {number}");
            assert_eq!(stand.is_doubtful(), doubtful, "run {number}");
            assert_eq!(changed, before != status);
            assert!(!changed || stand.since == now);
        }
        assert_eq!(stand.runs, 10);
        let mut hasty = Stand::default();
        assert!(hasty.note(report(Critical), 0, Timestamp::default()));
    }

    fn config(names: &[&str]) -> ChecksConfig {
        let mut config = ChecksConfig::default();
        for name in names {
            let check = Check {
                retries: 0,
                ..Check::named(name)
            };
            config.checks.insert((*name).to_owned(), check);
        }
        config
    }

    #[test]
    fn what_was_found_becomes_series_and_events() {
        let config = config(&["a", "b"]);
        let checks = Checks::new(&config, Arc::default());
        let mut out = Readings::default();
        let round = |out: &mut Readings| {
            out.begin(0);
            let outcome = put(&mut checks.shared.lock(), &config, out);
            if outcome == Outcome::Read {
                out.end(true);
            }
            outcome
        };
        assert_eq!(round(&mut out), Outcome::NoData);
        let now = Timestamp::from_millis(7_000);
        let mut good = report(Status::Ok);
        good.finding.expires = Some(99);
        good.finding.measures = vec![Measure {
            label: "time".into(),
            unit: "seconds",
            value: 0.5,
        }];
        note(&checks.shared, 0, &config.checks["a"], good, now);
        assert_eq!(round(&mut out), Outcome::Read);
        assert!(out.take_events().is_empty(), "the first is no change");
        note(
            &checks.shared,
            0,
            &config.checks["a"],
            report(Status::Critical),
            now,
        );
        note(
            &checks.shared,
            1,
            &config.checks["b"],
            report(Status::Unknown),
            now,
        );
        assert_eq!(round(&mut out), Outcome::Read);
        let events = out.take_events();
        let subjects: Vec<_> = events.iter().map(|event| event.subject.as_str()).collect();
        assert_eq!(subjects, ["a", "b"]);
        let fields = [
            word(EventFieldKey::From, "ok"),
            word(EventFieldKey::To, "critical"),
            word(EventFieldKey::Result, "timeout"),
        ];
        assert_eq!(events[0].fields, fields);
        let page = crate::sample::render(out.table(), now, crate::sample::Format::Prometheus);
        let page = String::from_utf8(page).expect("text");
        for line in [
            "muster_check_info{check=\"a\",severity=\"critical\",type=\"file\"} 1",
            "muster_check_status{check=\"a\"} 2",
            "muster_check_status{check=\"b\"} 3",
            "muster_check_status_since_timestamp_seconds{check=\"a\"} 7",
            "muster_check_result{check=\"a\",result=\"timeout\"} 1",
            "muster_check_duration_seconds{check=\"a\"} 1.5",
            "muster_check_runs_total{check=\"a\"} 2",
            "muster_check_failed_runs{check=\"a\"} 1",
        ] {
            assert!(page.contains(&format!("{line}\n")), "{line}\n{page}");
        }
        assert!(!page.contains("result=\"ok\"") && !page.contains("perfdata"));
        assert_eq!(round(&mut out), Outcome::Unchanged);
    }

    #[test]
    fn waits_are_spread_a_little() {
        let mut random = fastrand::Rng::with_seed(7);
        let minute = Duration::from_secs(60);
        for _ in 0..100 {
            let wait = jittered(minute, &mut random);
            assert!((57..=63).contains(&wait.as_secs()), "{wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_asked_about_again_soon() {
        let check = Check {
            interval: Duration::from_secs(60),
            retry_interval: Duration::from_secs(5),
            retries: 2,
            ..testing::check(Kind::File(FileCheck::at("/does/not/exist")))
        };
        let mut config = ChecksConfig::default();
        config.checks.insert(check.name.clone(), check);
        let urgent = Arc::new(Notify::new());
        let mut checks = Checks::new(&config, Arc::clone(&urgent));
        let began = Instant::now();
        checks.start(&tokio::runtime::Handle::current());
        urgent.notified().await;
        // The first wait, two retries with their jitter, and not a minute.
        assert!(began.elapsed() < MAX_FIRST_WAIT + Duration::from_secs(12));
        let board = checks.shared.lock();
        assert_eq!(board.stands[0].status, Some(Status::Critical));
        assert_eq!(board.stands[0].runs, 3);
    }
}
