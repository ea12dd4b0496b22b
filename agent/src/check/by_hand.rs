//! `muster-agent check`: some checks once, now, for the person who writes or debugs them.

use std::fmt::Write as _;

use super::{Check, ChecksConfig, Memory, Report, Status, Tools};
use crate::settings::suggestion;

/// There is no such check.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChooseError {
    /// None of this name.
    #[error("there is no check {name:?}{meant}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What was probably meant, as the second half of the sentence.
        meant: String,
    },
    /// None at all.
    #[error(
        "no check is defined; checks are [[check]] tables of the configuration, see muster-agent(8)"
    )]
    None,
}

/// The checks of these names; all of them if none is named.
///
/// # Errors
/// [`ChooseError`] for a name that is none.
pub fn choose<'a>(
    config: &'a ChecksConfig,
    names: &[String],
) -> Result<Vec<&'a Check>, ChooseError> {
    if config.checks.is_empty() {
        return Err(ChooseError::None);
    }
    if names.is_empty() {
        return Ok(config.checks.values().collect());
    }
    let find = |name: &String| {
        config.checks.get(name).ok_or_else(|| ChooseError::Unknown {
            name: name.clone(),
            meant: suggestion(name, config.checks.keys().map(String::as_str)),
        })
    };
    names.iter().map(find).collect()
}

/// Runs each once, one after the other; the answers in their order.
pub async fn run<'a>(config: &ChecksConfig, checks: &[&'a Check]) -> Vec<(&'a Check, Report)> {
    let tools = Tools::new(config);
    let mut reports = Vec::with_capacity(checks.len());
    for &check in checks {
        reports.push((check, tools.run(check, &mut Memory::default()).await));
    }
    reports
}

/// The status that weighs most: unknown less than critical, as for those who are paged.
#[must_use]
pub fn worst(reports: &[(&Check, Report)]) -> Status {
    let weight = |status: &Status| match status {
        Status::Ok => 0,
        Status::Warning => 1,
        Status::Unknown => 2,
        Status::Critical => 3,
    };
    let all = reports.iter().map(|(_, report)| report.finding.status);
    all.max_by_key(weight).unwrap_or(Status::Unknown)
}

/// A line for each, and one for each number of a plugin.
#[must_use]
pub fn render(reports: &[(&Check, Report)]) -> String {
    let width = |of: fn(&(&Check, Report)) -> usize| reports.iter().map(of).max().unwrap_or(0);
    let name_width = width(|(check, _)| check.name.len());
    let mut text = String::new();
    for (check, report) in reports {
        let finding = &report.finding;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<8}  {:name_width$}  {:<7}  {:>8.3} s  {}: {}",
            finding.status.word().to_uppercase(),
            check.name,
            check.kind.word(),
            report.took.as_secs_f64(),
            finding.cause.word(),
            finding.message,
        );
        for measure in &finding.measures {
            let _ = writeln!(
                text,
                "{:10}{} {} {}",
                "",
                measure.label.escape_debug(),
                measure.value,
                measure.unit
            );
        }
    }
    text
}

/// The same as JSON; the shape is part of the command line's promise.
#[must_use]
pub fn json(reports: &[(&Check, Report)]) -> String {
    let items: Vec<_> = reports
        .iter()
        .map(|(check, report)| {
            let finding = &report.finding;
            let measures: Vec<_> = finding
                .measures
                .iter()
                .map(|measure| {
                    serde_json::json!({
                        "label": measure.label,
                        "unit": measure.unit,
                        "value": measure.value,
                    })
                })
                .collect();
            serde_json::json!({
                "name": check.name,
                "type": check.kind.word(),
                "status": finding.status.word(),
                "result": finding.cause.word(),
                "message": finding.message,
                "durationSeconds": report.took.as_secs_f64(),
                "certificateExpires": finding.expires,
                "measures": measures,
            })
        })
        .collect();
    let document = serde_json::json!({
        "apiVersion": "muster/v1",
        "kind": "CheckList",
        "items": items,
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::check::{Cause, Finding};

    fn config() -> ChecksConfig {
        let mut config = ChecksConfig::default();
        for name in ["web", "db"] {
            config.checks.insert(name.to_owned(), Check::named(name));
        }
        config
    }

    #[test]
    fn checks_are_chosen_by_name() {
        let config = config();
        assert_eq!(choose(&config, &[]).map(|all| all.len()), Ok(2));
        let names = ["web".to_owned()];
        assert_eq!(choose(&config, &names).map(|all| all.len()), Ok(1));
        let error = choose(&config, &["wbe".to_owned()]).expect_err("no such check");
        assert_eq!(
            error.to_string(),
            "there is no check \"wbe\"; did you mean \"web\"?"
        );
        assert_eq!(
            choose(&ChecksConfig::default(), &[]),
            Err(ChooseError::None)
        );
    }

    #[test]
    fn answers_are_lines_and_json() {
        let config = config();
        let report = |status, cause, message: &str| Report {
            finding: Finding::new(status, cause, message),
            took: Duration::from_millis(12),
        };
        let reports = [
            (
                &config.checks["db"],
                report(Status::Unknown, Cause::Denied, "no"),
            ),
            (
                &config.checks["web"],
                report(Status::Critical, Cause::Refused, "nobody"),
            ),
        ];
        assert_eq!(
            render(&reports),
            "UNKNOWN   db   file        0.012 s  denied: no\n\
             CRITICAL  web  file        0.012 s  refused: nobody\n"
        );
        assert_eq!(worst(&reports), Status::Critical);
        let json: serde_json::Value = serde_json::from_str(&json(&reports)).expect("JSON");
        assert_eq!(json["items"][1]["result"], "refused");
    }
}
