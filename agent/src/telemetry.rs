//! What the agent tells about itself: its counters and its log.
//!
//! The log goes to standard error. Under journald each line begins with its priority in angle brackets and
//! bears no time, because the journal has both; elsewhere a line begins with the time.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use muster_proto::catalog::{self, FamilyId};
use tracing::{Event, Level, Metadata, Subscriber, callsite, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer as _, Registry,
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::{Format, Writer},
    },
    layer::{Context, Filter, SubscriberExt},
    registry::LookupSpan,
    reload,
};

use crate::settings::{Section, word};

/// What the agent counts about its own work since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    /// Ticks at which no sample was taken.
    pub ticks_missed: u64,
    /// Frames numbered.
    pub frames_produced: u64,
    /// Frames given up before they were acknowledged.
    pub frames_lost: u64,
    /// Of these, by age, by damage and because the disk did not take what memory could not hold.
    pub frames_lost_on_disk: [u64; 3],
    /// Frames the aggregator refused.
    pub frames_refused: u64,
    /// Frames that wait for an acknowledgement.
    pub frames_queued: u64,
    /// Sessions after the first.
    pub reconnects: u64,
    /// Frames on disk, where there are any.
    pub spool: Option<OwnSpool>,
}

/// What the agent tells about its spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnSpool {
    /// Size on disk.
    pub bytes: u64,
    /// Frames that wait, of this run and earlier ones.
    pub frames: u64,
    /// Failures of the disk.
    pub failures: u64,
    /// Frames of earlier runs that were dropped: for lack of room, by age, by damage.
    pub dropped: [u64; 3],
}

impl Own {
    /// The families of the catalogue with the value of each, and the `reason` where the family has that label.
    #[must_use]
    pub fn series(&self) -> [(FamilyId, Option<&'static str>, u64); 6] {
        [
            (catalog::AGENT_TICKS_MISSED, None, self.ticks_missed),
            (catalog::AGENT_FRAMES_PRODUCED, None, self.frames_produced),
            (catalog::AGENT_FRAMES_LOST, Some("full"), self.frames_lost),
            (
                catalog::AGENT_FRAMES_LOST,
                Some("refused"),
                self.frames_refused,
            ),
            (catalog::AGENT_FRAMES_QUEUED, None, self.frames_queued),
            (catalog::AGENT_RECONNECTS, None, self.reconnects),
        ]
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// Shape of a line.
    pub format: LogFormat,
    /// What is left out.
    pub level: LogLevel,
}

impl LogConfig {
    /// Reads the keys of the section `log`, which both programs have.
    pub fn keys(&mut self, log: &mut Section<'_, '_>) {
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        log.value("format", &mut self.format, |value| word(value, &formats));
        log.value("level", &mut self.level, |value| {
            word(value, &LogLevel::NAMES)
        });
    }
}

/// Shape of a line of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The least severe messages that are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Someone must act.
    Error,
    /// It degraded.
    Warn,
    /// It changed state.
    #[default]
    Info,
    /// What it does.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Levels by name.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

/// Changes the level of the running log.
pub struct LogHandle(reload::Handle<LevelFilter, Registry>);

impl LogHandle {
    /// From now on this level.
    pub fn set_level(&self, level: LogLevel) {
        // It fails only when the log is gone, and then there is nobody to tell.
        let _ = self.0.reload(level.filter());
    }
}

/// Starts the log of this process. Called once, before anything is logged.
///
/// # Errors
/// When the process has a log already.
pub fn start_log(
    config: LogConfig,
) -> Result<LogHandle, tracing::subscriber::SetGlobalDefaultError> {
    let journald = std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let (filter, handle) = reload::Layer::new(config.level.filter());
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(io::stderr);
    let plain = Format::default().with_ansi(false).with_target(false);
    match (config.format, journald) {
        (LogFormat::Json, journald) => {
            let format = Prioritised {
                inner: Format::default().json().flatten_event(true),
                journald,
            };
            let fields = fmt::format::JsonFields::new();
            let lines = lines.fmt_fields(fields).event_format(format);
            tracing::subscriber::set_global_default(
                registry.with(lines.with_filter(Library::default())),
            )
        }
        (LogFormat::Text, true) => {
            let format = Prioritised {
                inner: plain.with_level(false).without_time(),
                journald,
            };
            let lines = lines.event_format(format).with_filter(Library::default());
            tracing::subscriber::set_global_default(registry.with(lines))
        }
        (LogFormat::Text, false) => {
            let lines = lines.event_format(plain).with_filter(Library::default());
            tracing::subscriber::set_global_default(registry.with(lines))
        }
    }?;
    Ok(LogHandle(handle))
}

/// What libraries say of a peer they say as often as the peer wants (h2 warns once for each connection that resets streams
/// too fast). Of each such line some are written a minute; what is ours has its own bounds.
#[derive(Default)]
struct Library(Mutex<HashMap<callsite::Identifier, (Instant, u32)>>);

/// Lines of one place in a library within [`LIBRARY_WINDOW`].
const LIBRARY_LINES: u32 = 10;
const LIBRARY_WINDOW: Duration = Duration::from_secs(60);

impl Library {
    fn admits(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        if metadata.target().starts_with("muster") {
            return true;
        }
        // Bounded: the places stand in the program.
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, lines) = said.entry(metadata.callsite()).or_insert((now, 0));
        if now.saturating_duration_since(*since) >= LIBRARY_WINDOW {
            (*since, *lines) = (now, 0);
        }
        *lines = lines.saturating_add(1);
        *lines <= LIBRARY_LINES
    }
}

impl<S> Filter<S> for Library {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

/// Lines with journald's priority in front (sd-daemon(3)).
struct Prioritised<F> {
    inner: F,
    journald: bool,
}

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if self.journald {
            let priority = match *event.metadata().level() {
                Level::ERROR => 3,
                Level::WARN => 4,
                Level::INFO => 6,
                Level::DEBUG | Level::TRACE => 7,
            };
            write!(writer, "<{priority}>")?;
        }
        self.inner.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_library_says_a_thing_ten_times_a_minute_and_we_as_often_as_we_will() {
        let sink = Sink::default();
        let written = sink.clone();
        let lines = fmt::layer()
            .with_writer(move || written.clone())
            .with_filter(Library::default());
        let log = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(log, || {
            for number in 0..100 {
                tracing::warn!(target: "h2::proto", number, "too many resets");
                tracing::warn!(target: "h2::codec", number, "another line");
                tracing::warn!(target: "muster_aggregator::ingest", number, "ours");
            }
        });
        let bytes = sink.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("text");
        for (line, times) in [("too many resets", 10), ("another line", 10), ("ours", 100)] {
            assert_eq!(text.matches(line).count(), times, "{line}");
        }
    }

    #[test]
    fn after_a_minute_a_library_is_heard_again() {
        struct Once(Arc<Mutex<Option<&'static Metadata<'static>>>>);
        impl<S: Subscriber> tracing_subscriber::Layer<S> for Once {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                *self.0.lock().expect("not poisoned") = Some(event.metadata());
            }
        }
        let seen = Arc::default();
        let log = tracing_subscriber::registry().with(Once(Arc::clone(&seen)));
        tracing::subscriber::with_default(log, || tracing::warn!(target: "h2", "resets"));
        let metadata = seen.lock().expect("not poisoned").expect("seen");
        let (library, begin) = (Library::default(), Instant::now());
        let admitted = |after| {
            let now = begin + Duration::from_secs(after);
            (0..50).filter(|_| library.admits(metadata, now)).count()
        };
        assert_eq!((admitted(0), admitted(59), admitted(60)), (10, 0, 10));
    }

    #[test]
    fn lines_for_journald_begin_with_their_priority() {
        let sink = Sink::default();
        let format = Prioritised {
            inner: Format::default()
                .with_ansi(false)
                .with_target(false)
                .with_level(false)
                .without_time(),
            journald: true,
        };
        let written = sink.clone();
        let lines = fmt::layer()
            .event_format(format)
            .with_writer(move || written.clone());
        let log = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(log, || {
            tracing::warn!(cause = "test", "no link");
            tracing::info!("connected");
        });
        let text = String::from_utf8(sink.0.lock().expect("not poisoned").clone());
        assert_eq!(
            text.as_deref(),
            Ok("<4>no link cause=\"test\"\n<6>connected\n")
        );
    }
}
