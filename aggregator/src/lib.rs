//! The aggregator: keeps the state of a fleet, detects what is wrong, answers operators.

pub mod admin;
pub mod backup;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod detect;
pub mod directory;
pub mod enrol;
pub mod events;
pub mod fleet;
pub mod history;
pub mod http;
pub mod incident;
pub mod ingest;
pub mod journal;
pub mod listen;
pub mod notify;
pub mod peers;
pub mod pki;
pub mod query;
pub mod rejudge;
pub mod selector;
pub mod serve;
pub mod setup;
pub mod status;
pub mod threads;
pub mod time_guard;

/// An error and its causes in one line, as logs and operators get it.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// RFC 3339 in UTC with the milliseconds there are.
#[must_use]
pub fn rfc3339(at: muster_proto::time::Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.as_millis()).map_or_else(
        |_| at.as_millis().to_string(),
        |instant| instant.to_string(),
    )
}

/// Prints a line to standard output. Whoever reads it may have had enough (`| head`): that is no failure.
pub fn print_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;

    let _ = writeln!(std::io::stdout(), "{line}");
}

/// [`print_line`] with the words of `println!`.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {
        $crate::print_line(format_args!($($words)*))
    };
}
