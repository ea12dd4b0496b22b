//! `--at`: the fleet as it was, in the columns and lines in which it is.
//!
//! What is not kept over time is an en dash, or null, and a note says what that is; ages are told from the moment that
//! is asked about.

use std::{sync::LazyLock, time::Duration};

use clap::Args;
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::{Clock as _, SystemClock, Timestamp},
    v1::{self, past_client::PastClient},
};
use serde_json::Value;
use tonic::transport::Channel;

use super::{
    failure::{Code, Failure},
    host, hosts, incidents,
    output::{self, Column, List, Rendered, moment},
    services,
    session::Session,
    summary,
    text::Text,
    units::{View, short},
    when,
};

/// Reading what is kept of a whole fleet takes its time: at least this long, whatever `--timeout` says. The
/// aggregator itself gives up a little earlier.
const PATIENCE: Duration = Duration::from_secs(60);

/// `--at`, of commands that show what is now without it.
#[derive(Debug, Clone, Default, Args)]
pub struct At {
    /// As it was then: 2h, "yesterday 03:10", 2026-11-01T03:10:00Z
    #[arg(long, value_name = "WHEN")]
    pub at: Option<String>,
}

impl At {
    /// The moment, if one is asked for.
    ///
    /// # Errors
    /// How to write one.
    pub fn moment(&self, session: &Session) -> Result<Option<i64>, Failure> {
        let Some(text) = &self.at else {
            return Ok(None);
        };
        let at = when::moment(text, SystemClock.now(), session.zone());
        let at = at.map_err(|why| Failure::new(Code::Usage, why))?;
        Ok(Some(at.as_millis()))
    }
}

async fn ask<T, F>(
    session: &Session,
    question: impl FnOnce(PastClient<Channel>) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let patience = session.global.timeout.max(PATIENCE);
    let to_past = |channel| {
        question(PastClient::new(channel).max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES))
    };
    session.ask_door_within(patience, to_past).await
}

/// `muster hosts --at`, `muster top --at`.
///
/// # Errors
/// Whatever stood in the way.
pub async fn hosts(
    session: &Session,
    at_ms: i64,
    question: v1::ListHostsRequest,
) -> Result<(List<v1::HostRow>, Vec<String>, Vec<String>), Failure> {
    let limit = Some(question.limit).filter(|limit| *limit > 0);
    let request = v1::HostsAtRequest {
        at_ms,
        question: Some(question),
    };
    let response = ask(session, async move |mut past| past.hosts_at(request).await).await?;
    let answer = response.answer.unwrap_or_default();
    let view = session.view(answer.meta.as_ref());
    let notes = notes(response.reach.as_ref(), &view);
    let unknown = answer.unknown_names.clone();
    let list = List {
        columns: &HOST_COLUMNS,
        ..hosts::list(answer, limit)
    };
    Ok((list, notes, unknown))
}

/// `muster host NAME --at`.
///
/// # Errors
/// Whatever stood in the way.
pub async fn host(session: &Session, at_ms: i64, name: &str) -> Result<Rendered, Failure> {
    let request = v1::HostAtRequest {
        at_ms,
        name: name.to_owned(),
    };
    let response = ask(session, async move |mut past| past.host_at(request).await).await?;
    let answer = response.answer.unwrap_or_default();
    let view = session.view(answer.meta.as_ref());
    let mut notes = notes(response.reach.as_ref(), &view);
    if let Some(removed) = response.removed_ms {
        let removed = Timestamp::from_millis(removed);
        notes.push(format!("{name} was removed from the fleet at {removed}"));
    }
    let rendered = output::detail(host::detail_then(answer, &view), &session.options)?;
    Ok(Rendered { notes, ..rendered })
}

/// `muster --at`.
///
/// # Errors
/// Whatever stood in the way.
pub async fn summary(session: &Session, at_ms: i64) -> Result<Rendered, Failure> {
    let request = v1::SummaryAtRequest {
        at_ms,
        question: Some(v1::GetSummaryRequest::default()),
    };
    let response = ask(session, async move |mut past| {
        past.summary_at(request).await
    })
    .await?;
    let answer = response.answer.unwrap_or_default();
    let view = session.view(answer.meta.as_ref());
    let notes = notes(response.reach.as_ref(), &view);
    let rendered = output::detail(summary::detail_then(answer), &session.options)?;
    Ok(Rendered { notes, ..rendered })
}

/// `muster services --at`.
///
/// # Errors
/// Whatever stood in the way.
pub async fn services(
    session: &Session,
    at_ms: i64,
    question: v1::ListServicesRequest,
) -> Result<Rendered, Failure> {
    let failed = question.failed_only;
    let request = v1::ServicesAtRequest {
        at_ms,
        question: Some(question),
    };
    let response = ask(session, async move |mut past| {
        past.services_at(request).await
    })
    .await?;
    let answer = response.answer.unwrap_or_default();
    let view = session.view(answer.meta.as_ref());
    let notes = notes(response.reach.as_ref(), &view);
    let rendered = output::list(services::list(answer, failed), &session.options, &view)?;
    Ok(Rendered { notes, ..rendered })
}

/// `muster incidents --at`.
///
/// # Errors
/// Whatever stood in the way.
pub async fn incidents(
    session: &Session,
    at_ms: i64,
    question: v1::ListIncidentsRequest,
) -> Result<Rendered, Failure> {
    let request = v1::IncidentsAtRequest {
        at_ms,
        question: Some(question),
    };
    let response = ask(session, async move |mut past| {
        past.incidents_at(request).await
    })
    .await?;
    let answer = response.answer.unwrap_or_default();
    let view = session.view(answer.meta.as_ref());
    let notes = notes(response.reach.as_ref(), &view);
    let list = List {
        columns: &INCIDENT_COLUMNS,
        empty: Text::plain("no incident was open"),
        ..incidents::list(answer, false, true)
    };
    let rendered = output::list(list, &session.options, &view)?;
    Ok(Rendered { notes, ..rendered })
}

/// The columns of now, without what is not kept over time.
static HOST_COLUMNS: LazyLock<Vec<Column<v1::HostRow>>> = LazyLock::new(|| {
    let column = |column: &Column<v1::HostRow>| match column.key {
        "anomalyScore" | "silenceCause" => unknown(column),
        "stateSince" => Column {
            human: |row: &v1::HostRow, view: &View| match row.state_since_ms {
                0 => Text::unknown(),
                since => Text::plain(view.when(Timestamp::from_millis(since))),
            },
            value: |row: &v1::HostRow| moment(Some(row.state_since_ms).filter(|since| *since > 0)),
            ..*column
        },
        "intervalSeconds" => Column {
            human: |row: &v1::HostRow, _: &View| match row.interval_ms {
                0 => Text::unknown(),
                ms => Text::plain(short(Duration::from_millis(ms.into()))),
            },
            value: |row: &v1::HostRow| match row.interval_ms {
                0 => Value::Null,
                ms => (f64::from(ms) / 1000.0).into(),
            },
            ..*column
        },
        "series" => Column {
            human: |row: &v1::HostRow, _: &View| match row.series {
                0 => Text::unknown(),
                series => Text::plain(series.to_string()),
            },
            value: |row: &v1::HostRow| Some(row.series).filter(|series| *series > 0).into(),
            ..*column
        },
        _ => Column { ..*column },
    };
    hosts::COLUMNS.iter().map(column).collect()
});

static INCIDENT_COLUMNS: LazyLock<Vec<Column<v1::IncidentRow>>> = LazyLock::new(|| {
    let column = |column: &Column<v1::IncidentRow>| match column.key {
        "hosts" | "quiet" | "partOf" | "told" => unknown(column),
        _ => Column { ..*column },
    };
    incidents::COLUMNS.iter().map(column).collect()
});

fn unknown<R>(column: &Column<R>) -> Column<R> {
    Column {
        human: |_, _| Text::unknown(),
        value: |_| Value::Null,
        ..*column
    }
}

/// What to know about an answer.
fn notes(reach: Option<&v1::PastReach>, view: &View) -> Vec<String> {
    let Some(reach) = reach else {
        return Vec::new();
    };
    let words = |fields: &[String]| {
        let words = fields.iter().map(|field| field.trim_end_matches("_ms"));
        words
            .map(|field| field.replace('_', " "))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let resolution = match reach.resolution_ms {
        0 => String::new(),
        ms => format!(
            ", by what is kept of each {}",
            short(Duration::from_millis(ms.unsigned_abs()))
        ),
    };
    let mut notes = vec![format!("as of {}{resolution}", view.now)];
    if reach.hosts_without_samples > 0 {
        notes.push(format!(
            "nothing that was measured then is kept of {}",
            services::hosts(reach.hosts_without_samples)
        ));
    }
    if !reach.of_now.is_empty() {
        notes.push(format!("as they are now: {}", words(&reach.of_now)));
    }
    if !reach.unknown.is_empty() {
        notes.push(format!("not kept over time: {}", words(&reach.unknown)));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_now_is_there_and_what_is_not_kept_is_unknown() {
        let keys = |columns: &[Column<v1::HostRow>]| -> Vec<&str> {
            columns.iter().map(|column| column.key).collect()
        };
        assert_eq!(keys(&HOST_COLUMNS), keys(hosts::COLUMNS));
        let row = v1::HostRow {
            anomaly_score: Some(2.0),
            ..v1::HostRow::default()
        };
        for key in ["anomalyScore", "stateSince", "intervalSeconds", "series"] {
            let column = HOST_COLUMNS.iter().find(|column| column.key == key);
            let value = column.map(|column| (column.value)(&row));
            assert_eq!(value, Some(Value::Null), "{key}");
        }
    }
}
