//! `muster ack ID` and `muster unack ID`: who sees to an incident.

use clap::Args;
use muster_proto::{
    time::Timestamp,
    v1::{self, paging_client::PagingClient},
};

use super::{
    failure::{Code, Failure},
    incidents::{id, parse_id},
    moment,
    session::Session,
};

/// `muster ack`
#[derive(Debug, Clone, Args)]
pub struct Ack {
    /// As muster incidents shows it: I-2041
    #[arg(value_name = "ID", value_parser = parse_id)]
    pub number: u64,
    /// What you do about it, for the others on call
    #[arg(
        short,
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub message: String,
    /// End it then, should the incident still be open: 2h, 15:20, "2026-11-22 09:00"
    #[arg(long, value_name = "WHEN")]
    pub until: Option<String>,
}

/// Acknowledges; says what was done.
///
/// # Errors
/// A time that cannot be read, and whatever stood in the way.
pub async fn ack(session: &Session, ack: &Ack) -> Result<String, Failure> {
    let view = session.view(None);
    let until = ack
        .until
        .as_deref()
        .map(|text| moment::future(text, &view))
        .transpose()
        .map_err(|why| Failure::new(Code::Usage, why))?;
    let request = v1::AcknowledgeIncidentRequest {
        number: ack.number,
        text: ack.message.clone(),
        until_ms: until.map(Timestamp::as_millis),
    };
    let done = session
        .ask_door(async move |channel| {
            PagingClient::new(channel)
                .acknowledge_incident(request)
                .await
        })
        .await
        .map_err(unknown)?;
    let until = match until {
        Some(at) => format!("until {}, or until it clears", view.absolute_short(at)),
        None => "until it clears".to_owned(),
    };
    Ok(format!(
        "acknowledged {} {until}\nundo: muster unack {}",
        together(&done.numbers, ack.number),
        id(ack.number)
    ))
}

/// Takes it back; says what was done.
///
/// # Errors
/// Whatever stood in the way.
pub async fn unack(session: &Session, number: u64) -> Result<String, Failure> {
    let request = v1::UnacknowledgeIncidentRequest { number };
    let done = session
        .ask_door(async move |channel| {
            PagingClient::new(channel)
                .unacknowledge_incident(request)
                .await
        })
        .await
        .map_err(unknown)?;
    Ok(format!(
        "{} is nobody's again",
        together(&done.numbers, number)
    ))
}

/// `I-12`, or `I-12 and 37 more`.
fn together(numbers: &[u64], asked: u64) -> String {
    match numbers.len().saturating_sub(1) {
        0 => id(asked),
        more => format!("{} and {more} more that were told with it", id(asked)),
    }
}

fn unknown(failure: Failure) -> Failure {
    super::not_found(failure, "muster incidents", "the incidents that are open")
}
