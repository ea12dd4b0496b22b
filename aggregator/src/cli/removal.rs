//! `muster host NAME evict|ban` and `muster operator NAME revoke`: nothing happens without `--yes`.

use muster_proto::{spiffe::hex, v1};

use super::{
    args::{HostAct, OperatorAct},
    failure::{Code, Failure},
    session::Session,
};

/// Removes a host; says what was done.
///
/// # Errors
/// Without `--yes`, and whatever stood in the way.
pub async fn host(session: &Session, name: &str, act: HostAct) -> Result<String, Failure> {
    let name = name.to_owned();
    match act {
        HostAct::Evict { yes } => {
            confirmed(
                yes,
                &format!("muster host {name} evict --yes"),
                &format!(
                    "{name} would be cut off at once; with a new token it may enrol again, as a new host"
                ),
            )?;
            let request = v1::EvictHostRequest { name };
            let done = session
                .ask(async move |mut client| client.evict_host(request).await)
                .await?;
            Ok(format!(
                "evicted {} ({}): its stream is closed and its certificate refused\nits history is kept; to bring the machine back: muster-aggregator token create",
                done.name,
                hex(&done.host_id)
            ))
        }
        HostAct::Release { yes } => {
            confirmed(
                yes,
                &format!("muster host {name} release --yes"),
                &format!(
                    "whichever machine connects next would be {name}: first give the copy an identity of its own (muster-agent reset-identity there)"
                ),
            )?;
            let request = v1::ReleaseHostRequest { name };
            let done = session
                .ask_identity(async move |mut client| client.release_host(request).await)
                .await?;
            Ok(format!(
                "released {}: whichever machine connects next is it",
                done.name
            ))
        }
        HostAct::Ban { yes } => {
            confirmed(
                yes,
                &format!("muster host {name} ban --yes"),
                &format!("{name} would be cut off at once, and tokens refused to the machine"),
            )?;
            let request = v1::BanHostRequest { name };
            let done = session
                .ask(async move |mut client| client.ban_host(request).await)
                .await?;
            let machine = if done.machine_known {
                "tokens are refused to the machine"
            } else {
                "it never told a machine id, so a token would let the machine in again"
            };
            Ok(format!(
                "banned {} ({}): its stream is closed and its certificate refused\n{machine}",
                done.name,
                hex(&done.host_id)
            ))
        }
    }
}

/// Withdraws an operator; says what was done.
///
/// # Errors
/// Without `--yes`, and whatever stood in the way.
pub async fn operator(session: &Session, name: &str, act: OperatorAct) -> Result<String, Failure> {
    let OperatorAct::Revoke { yes } = act;
    confirmed(
        yes,
        &format!("muster operator {name} revoke --yes"),
        &format!("every certificate of {name} would be refused at once"),
    )?;
    let request = v1::RevokeOperatorRequest {
        name: name.to_owned(),
    };
    let done = session
        .ask(async move |mut client| client.revoke_operator(request).await)
        .await?;
    Ok(format!(
        "revoked {name}: {} certificates are refused from now on\na new one is given by muster login on the aggregator's host",
        done.certificates
    ))
}

fn confirmed(yes: bool, command: &str, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    Err(Failure::new(Code::Usage, "nothing was done without --yes")
        .because(what)
        .hint(command, "if you mean it"))
}
