//! What a question may say, read in one place; and the answers when the control store does not answer.

use std::sync::Arc;

use muster_proto::v1;
use tonic::Status;

use crate::{
    chain,
    control::ControlError,
    selector::{Selector, pattern::Pattern},
};

/// Empty for all.
pub(super) fn parse_severity(word: &str) -> Result<Option<v1::Severity>, Status> {
    match word {
        "" => Ok(None),
        "critical" => Ok(Some(v1::Severity::Critical)),
        "warning" => Ok(Some(v1::Severity::Warning)),
        "info" => Ok(Some(v1::Severity::Info)),
        other => Err(Status::invalid_argument(format!(
            "a severity is critical, warning or info, not {other:?}"
        ))),
    }
}

pub(super) fn parse_selector(text: &str) -> Result<Selector, Status> {
    Selector::parse(text)
        .map_err(|error| Status::invalid_argument(format!("this is no selector: {error}")))
}

pub(super) fn parse_names(names: &[String]) -> Result<Arc<[Pattern]>, Status> {
    let mut patterns = Vec::new();
    for name in names {
        let list = Pattern::parse_list(name).map_err(|error| {
            Status::invalid_argument(format!("{name:?} is no name or pattern: {error}"))
        })?;
        patterns.extend(list);
    }
    Ok(patterns.into())
}

pub(super) fn store_failed(error: &ControlError) -> Status {
    tracing::error!(error = %chain(error), "the control store cannot be read");
    Status::unavailable("the control store cannot be read, see the aggregator's log")
}

pub(super) fn not_written(error: &ControlError) -> Status {
    tracing::error!(error = %chain(error), "the control store cannot be written");
    Status::unavailable(
        "nothing was changed: the control store cannot be written, see the aggregator's log",
    )
}

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// 0 stands for no limit.
pub(super) fn limit(limit: u32) -> usize {
    match limit {
        0 => usize::MAX,
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    }
}
