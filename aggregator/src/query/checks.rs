//! The `Checks` service at the operators' door: how the checks of the fleet's hosts stand.
//!
//! Everything is read from the latest values that hosts sent (`muster_check_*`); the aggregator keeps nothing of
//! its own about checks. A host that is not heard from has none, and is counted.

use std::{cmp::Ordering, collections::BTreeMap};

use muster_proto::{
    catalog::{self, FamilyId, METRICS},
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    v1::{
        self,
        checks_server::{Checks, ChecksServer},
    },
};
use tonic::{Request, Response, Status};

use super::{rows::is_current, service::OperatorService};
use crate::fleet::{HostState, SeriesView};

/// Largest question: a few thousand names.
const MAX_QUESTION_BYTES: usize = 1024 * 1024;

/// Most rows of an answer: about 3 MB, and more than anybody reads.
const MAX_ROWS: usize = 20_000;

/// Answers operators about checks.
#[derive(Clone)]
pub struct ChecksService {
    operator: OperatorService,
}

impl ChecksService {
    /// Chooses hosts and admits callers as this service does.
    #[must_use]
    pub fn new(operator: OperatorService) -> Self {
        Self { operator }
    }

    /// As a tonic service with its limits. The transport must give each request its [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> ChecksServer<Self> {
        ChecksServer::new(self)
            .max_decoding_message_size(MAX_QUESTION_BYTES)
            .max_encoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
    }

    async fn list(&self, request: v1::ListChecksRequest) -> Result<v1::ListChecksResponse, Status> {
        let statuses: Vec<v1::CheckStatus> = request.statuses().collect();
        let chosen = self
            .operator
            .on_hosts(
                &request.selector,
                &request.host,
                &request.names,
                move |host, names| {
                    if !is_current(host) {
                        return None;
                    }
                    let mut checks = of_host(host);
                    checks.retain(|check| {
                        let named =
                            names.is_empty() || names.iter().any(|name| name.matches(&check.name));
                        named && (statuses.is_empty() || statuses.contains(&check.status()))
                    });
                    Some(checks)
                },
            )
            .await?;
        let not_heard = chosen
            .items
            .iter()
            .filter(|checks| checks.is_none())
            .count();
        let mut checks: Vec<v1::CheckRow> = chosen.items.into_iter().flatten().flatten().collect();
        checks.sort_by(worst_first);
        let left_out = checks.len().saturating_sub(MAX_ROWS);
        checks.truncate(MAX_ROWS);
        Ok(v1::ListChecksResponse {
            meta: Some(self.operator.meta(chosen.missing)),
            checks,
            left_out: left_out as u64,
            hosts_not_heard: u32::try_from(not_heard).unwrap_or(u32::MAX),
        })
    }
}

#[tonic::async_trait]
impl Checks for ChecksService {
    async fn list_checks(
        &self,
        request: Request<v1::ListChecksRequest>,
    ) -> Result<Response<v1::ListChecksResponse>, Status> {
        self.operator.access().admit(&request, "ListChecks").await?;
        self.list(request.into_inner()).await.map(Response::new)
    }
}

fn worst_first(a: &v1::CheckRow, b: &v1::CheckRow) -> Ordering {
    let weight = |row: &v1::CheckRow| match row.status() {
        v1::CheckStatus::Critical => 0,
        v1::CheckStatus::Unknown => 1,
        v1::CheckStatus::Warning => 2,
        v1::CheckStatus::Unspecified => 3,
        v1::CheckStatus::Ok => 4,
    };
    let key = |row: &v1::CheckRow| (weight(row), row.name.clone(), row.host.clone());
    key(a).cmp(&key(b))
}

/// The checks of a host, by name. Those that have not been run yet have no series, and are not there.
#[must_use]
pub fn of_host(host: &HostState) -> Vec<v1::CheckRow> {
    let mut checks: BTreeMap<String, v1::CheckRow> = BTreeMap::new();
    for series in host.series() {
        let Some(name) = check_of(&series) else {
            continue;
        };
        let row = checks
            .entry(name.to_owned())
            .or_insert_with(|| v1::CheckRow {
                host: host.name().to_owned(),
                name: name.to_owned(),
                ..v1::CheckRow::default()
            });
        note(row, &series);
    }
    checks.into_values().collect()
}

/// The check that a series is about.
fn check_of<'a>(series: &SeriesView<'a>) -> Option<&'a str> {
    if !series.family.name.starts_with("muster_check_") {
        return None;
    }
    label(series, "check")
}

fn label<'a>(series: &SeriesView<'a>, name: &str) -> Option<&'a str> {
    let at = series
        .family
        .labels
        .iter()
        .position(|label| label == name)?;
    series.labels.get(at).map(String::as_str)
}

/// The numbers are a host's own: any, and not to be trusted to be whole or in bounds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of a float saturates, and NaN becomes 0"
)]
fn note(row: &mut v1::CheckRow, series: &SeriesView<'_>) {
    let is = |family: FamilyId| series.family.name == METRICS[family.0 as usize].name;
    let text = |name| label(series, name).unwrap_or_default().to_owned();
    let millis = (series.value * 1000.0) as i64;
    if is(catalog::CHECK_INFO) {
        row.kind = text("type");
        row.severity = text("severity");
    } else if is(catalog::CHECK_STATUS) {
        let status = match series.value as i64 {
            0 => v1::CheckStatus::Ok,
            1 => v1::CheckStatus::Warning,
            2 => v1::CheckStatus::Critical,
            _ => v1::CheckStatus::Unknown,
        };
        row.set_status(status);
    } else if is(catalog::CHECK_SINCE) {
        row.since_ms = Some(millis);
    } else if is(catalog::CHECK_RESULT) {
        row.result = text("result");
    } else if is(catalog::CHECK_DURATION) {
        row.duration_seconds = series.value;
    } else if is(catalog::CHECK_RUNS) {
        row.runs = series.value as u64;
    } else if is(catalog::CHECK_FAILED_RUNS) {
        row.failed_runs = series.value as u64;
    } else if is(catalog::CHECK_CERTIFICATE_EXPIRY) {
        row.certificate_expires_ms = Some(millis);
    } else if is(catalog::CHECK_PERFDATA) {
        row.measures.push(v1::CheckMeasure {
            label: text("label"),
            unit: text("unit"),
            value: series.value,
        });
    }
}
