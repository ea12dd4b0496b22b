//! Rotation of the authority, as operators drive it: what stands in the way of a step, the step, and telling everybody.

use std::{collections::HashSet, time::Duration};

use muster_proto::{id::HostId, v1};
use tonic::Status;

use super::{
    identity::{IdentityParts, complete, failed},
    rows,
};
use crate::{
    chain,
    control::Holder,
    pki::{Phase, PkiError, Step},
};

/// Longest PEM of a private key that is taken: RSA of 4096 bits has 3.2 KiB.
const MAX_ROOT_KEY: usize = 16 * 1024;
/// Names in an answer.
const MAX_NAMES: usize = 1_000;
/// Of the hosts that are live so many must know the next authority before it signs: 99 %.
const INFORMED: (usize, usize) = (99, 100);
/// Agents that connect anew within a second, and the shortest time over which they do.
const ANEW_PER_SECOND: u64 = 100;
const ANEW_FLOOR: Duration = Duration::from_secs(10);

/// Who is how far.
struct Standing {
    phase: Phase,
    version: u64,
    newest: u32,
    holders: Vec<Holder>,
}

impl Standing {
    async fn read(parts: &IdentityParts) -> Result<Self, Status> {
        let generations = parts.authority.generations();
        let newest = generations.last().map_or(1, |one| one.number);
        let now = parts.clock.now();
        let holders = parts.control.bundle_holders(newest, now).await;
        Ok(Self {
            phase: parts.authority.phase(),
            version: parts.authority.bundle_version(),
            newest,
            holders: holders.map_err(|error| failed("the hosts cannot be read", &error))?,
        })
    }

    fn uninformed(&self) -> impl Iterator<Item = &Holder> {
        self.holders
            .iter()
            .filter(|holder| holder.bundle_version < self.version)
    }

    fn on_old(&self) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(|holder| holder.old_certificate)
    }
}

/// Names for people, not too many.
fn names<'a>(holders: impl Iterator<Item = &'a Holder>) -> Vec<String> {
    let named = holders.take(MAX_NAMES).map(|holder| holder.name.clone());
    named.collect()
}

fn count<'a>(holders: impl Iterator<Item = &'a Holder>) -> u32 {
    u32::try_from(holders.count()).unwrap_or(u32::MAX)
}

pub(super) async fn status(parts: &IdentityParts) -> Result<v1::AuthorityStatus, Status> {
    let standing = Standing::read(parts).await?;
    let generations = parts.authority.generations();
    let uninformed = count(standing.uninformed());
    let on_old = count(standing.on_old());
    let hosts = u32::try_from(standing.holders.len()).unwrap_or(u32::MAX);
    let next = match standing.phase {
        Phase::Settled => "",
        Phase::Prepared if uninformed == 0 => "muster ca rotate activate",
        Phase::Prepared => {
            "wait until the hosts have connected anew, then muster ca rotate activate"
        }
        Phase::Activated if uninformed == 0 && on_old == 0 => "muster ca rotate retire",
        Phase::Activated => {
            "wait until certificates have renewed, which takes up to 22 days, then muster ca rotate retire"
        }
    };
    Ok(v1::AuthorityStatus {
        meta: Some(complete(parts.clock.now())),
        phase: standing.phase.word().to_owned(),
        bundle_version: standing.version,
        generations: generations
            .into_iter()
            .map(|one| v1::AuthorityGeneration {
                number: one.number,
                pin: one.pin.to_vec(),
                active: one.active,
                cross_signed: one.cross_signed,
            })
            .collect(),
        hosts,
        hosts_informed: hosts.saturating_sub(uninformed),
        uninformed: names(standing.uninformed()),
        hosts_on_old_certificates: on_old,
        on_old_certificates: names(standing.on_old()),
        next: next.to_owned(),
    })
}

/// Does a step, unless it would leave somebody behind.
pub(super) async fn step(
    parts: &IdentityParts,
    step: v1::AuthorityStep,
    (force, root_key): (bool, &[u8]),
    actor: &str,
) -> Result<(), Status> {
    let root_key = match std::str::from_utf8(root_key) {
        Ok("") => None,
        Ok(pem) if pem.len() <= MAX_ROOT_KEY => Some(pem),
        _ => {
            return Err(Status::invalid_argument(
                "the root's key is no PEM private key",
            ));
        }
    };
    let (step, word) = match step {
        v1::AuthorityStep::Prepare => (Step::Prepare, "prepare"),
        v1::AuthorityStep::Activate => (Step::Activate, "activate"),
        v1::AuthorityStep::Retire => (Step::Retire, "retire"),
        v1::AuthorityStep::Back => (Step::Back, "back"),
        v1::AuthorityStep::Now => (Step::Now, "now"),
        v1::AuthorityStep::Unspecified => {
            return Err(Status::invalid_argument("no step was named"));
        }
    };
    let before = Standing::read(parts).await?;
    if !force && let Some(why) = in_the_way(parts, step, &before).await? {
        return Err(Status::failed_precondition(format!(
            "{why}; --force does it all the same"
        )));
    }
    let trusted = |parts: &IdentityParts| -> Vec<u32> {
        let generations = parts.authority.generations().into_iter();
        generations.map(|one| one.number).collect()
    };
    let (old, now) = (trusted(parts), parts.clock.now());
    let phase = parts
        .authority
        .rotate_with(step, root_key, now)
        .map_err(|error| match error {
            PkiError::RootKey => Status::invalid_argument(error.to_string()),
            PkiError::Step { .. } => Status::failed_precondition(error.to_string()),
            error => {
                tracing::error!(error = chain(&error), "the authority was not rotated");
                Status::unavailable("the authority was not rotated, see the aggregator's log")
            }
        })?;
    let new = trusted(parts);
    let refused: Vec<u32> = old.into_iter().filter(|one| !new.contains(one)).collect();
    tracing::warn!(
        step = word,
        phase = phase.word(),
        operator = actor,
        "the authority was rotated"
    );
    let is_refusing = !refused.is_empty();
    let outcome = format!(
        "{}, trust bundle version {}",
        phase.word(),
        parts.authority.bundle_version()
    );
    // The step stands; whatever fails from here on is said, and mended by a restart at the latest.
    let written = parts
        .control
        .rotated(word, refused, outcome, actor, now)
        .await;
    let reloaded = parts.doors.reload(now);
    tell(parts, step, is_refusing).await;
    if let Err(error) = reloaded {
        tracing::error!(
            error = chain(&error),
            "the doors do not present what the authority signs now"
        );
        return Err(Status::unavailable(
            "the step was done, but the doors could not be set up anew: restart the aggregator",
        ));
    }
    written.map_err(|error| failed("the step was done, but not written down", &error))
}

/// Why a step should not be done now.
async fn in_the_way(
    parts: &IdentityParts,
    step: Step,
    standing: &Standing,
) -> Result<Option<String>, Status> {
    let some = |holders: Vec<String>| {
        let shown = holders.iter().take(5).cloned().collect::<Vec<_>>();
        shown.join(", ")
    };
    Ok(match (step, standing.phase) {
        (Step::Activate, Phase::Prepared) => {
            let live = live(parts).await;
            let all = standing.holders.iter();
            let live_holders = all.filter(|holder| live.contains(&holder.host_id));
            let (informed, lacking): (Vec<_>, Vec<_>) =
                live_holders.partition(|holder| holder.bundle_version >= standing.version);
            let enough =
                informed.len() * INFORMED.1 >= (informed.len() + lacking.len()) * INFORMED.0;
            (!enough).then(|| {
                format!(
                    "{} of {} live hosts do not know the new authority yet ({})",
                    lacking.len(),
                    informed.len() + lacking.len(),
                    some(names(lacking.into_iter()))
                )
            })
        }
        (Step::Retire, Phase::Activated) => {
            let behind = count(standing.uninformed()).max(count(standing.on_old()));
            (behind > 0).then(|| {
                format!(
                    "{behind} hosts would be cut off, because they do not know the new authority or have no certificate of it ({})",
                    some(names(standing.uninformed().chain(standing.on_old())))
                )
            })
        }
        (Step::Back, Phase::Prepared) => {
            let now = parts.clock.now();
            let of_newest = parts.control.certificates_of(standing.newest, now).await;
            let of_newest =
                of_newest.map_err(|error| failed("the certificates cannot be read", &error))?;
            (of_newest > 0).then(|| {
                format!(
                    "{of_newest} certificates of the new authority are in use and would be refused"
                )
            })
        }
        _ => None,
    })
}

/// Hosts that are live.
async fn live(parts: &IdentityParts) -> HashSet<HostId> {
    let answer = parts
        .fleet
        .each(|host, _| {
            let (state, _) = rows::state(host.liveness());
            (state == v1::HostState::Live).then(|| host.id())
        })
        .await;
    answer.items.into_iter().collect()
}

/// Agents connect anew to be told of another bundle; where certificates are refused, streams opened with them end.
async fn tell(parts: &IdentityParts, step: Step, is_refusing: bool) {
    if is_refusing && step == Step::Now {
        let all = parts.fleet.each(|host, _| Some(host.id())).await;
        for host in all.items {
            parts.fleet.cut(host).await;
        }
        return;
    }
    if step != Step::Activate {
        let hosts = parts.fleet.totals().hosts;
        let spread = Duration::from_secs(hosts / ANEW_PER_SECOND);
        parts.fleet.nudge(spread.max(ANEW_FLOOR)).await;
    }
}
