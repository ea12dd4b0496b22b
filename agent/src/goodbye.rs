//! Why the agent is told to stop: alone, or with its host.
//!
//! A host that goes down on purpose is no incident. When the stop signal comes, systemd is asked which jobs
//! it runs; a queued start of one of the targets that end a boot tells. Without an answer in time the agent
//! says that only it was stopped, which is what an operator wants to hear about if it is wrong.

use std::time::Duration;

use muster_proto::v1::FinReason;
use tokio::time;
use zbus::{Connection, OwnedObjectPath, Proxy};

/// The goodbye itself must fit into the five seconds of a stop.
const PATIENCE: Duration = Duration::from_millis(500);

/// A job of systemd's: id, unit, kind, state, paths of job and unit.
type Job = (
    u32,
    String,
    String,
    String,
    OwnedObjectPath,
    OwnedObjectPath,
);

/// Asks systemd why this process is stopped.
pub async fn reason() -> FinReason {
    match time::timeout(PATIENCE, jobs()).await {
        Ok(Ok(jobs)) => of_jobs(jobs.iter().map(|job| (job.1.as_str(), job.2.as_str()))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "systemd does not say why the agent is stopped");
            FinReason::Stopped
        }
        Err(_) => FinReason::Stopped,
    }
}

async fn jobs() -> zbus::Result<Vec<Job>> {
    let bus = Connection::system().await?;
    let manager = Proxy::new(
        &bus,
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
    )
    .await?;
    manager.call("ListJobs", &()).await
}

/// What these jobs, as (unit, kind), mean for the host.
fn of_jobs<'j>(jobs: impl Iterator<Item = (&'j str, &'j str)>) -> FinReason {
    jobs.filter(|&(_, kind)| kind == "start")
        .find_map(|(unit, _)| match unit {
            "reboot.target" | "kexec.target" | "soft-reboot.target" => Some(FinReason::Reboot),
            "poweroff.target" | "halt.target" => Some(FinReason::Shutdown),
            _ => None,
        })
        .unwrap_or(FinReason::Stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_tell_what_becomes_of_the_host() {
        let agent = ("muster-agent.service", "stop");
        for (other, reason) in [
            (("cron.service", "restart"), FinReason::Stopped),
            (("reboot.target", "start"), FinReason::Reboot),
            (("kexec.target", "start"), FinReason::Reboot),
            (("reboot.target", "stop"), FinReason::Stopped),
            (("poweroff.target", "start"), FinReason::Shutdown),
            (("halt.target", "start"), FinReason::Shutdown),
        ] {
            assert_eq!(of_jobs([agent, other].into_iter()), reason, "{other:?}");
        }
    }
}
