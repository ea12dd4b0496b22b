//! The lives of host and agent: whether the host booted since, whether that was clean, and which agent this is.
//!
//! `alive.json` in the state folder says which boot it was, when the agent last lived and how it was stopped.
//! It is written once a minute and when the agent stops; a host that dies leaves it as it was.

use std::path::{Path, PathBuf};

use muster_proto::{
    event,
    time::Timestamp,
    v1::{self, EventField, EventFieldKey, EventKind, FinReason},
};
use serde::{Deserialize, Serialize};

use super::journal::{read_json, write_json};

const FILE: &str = "alive.json";

/// Between two signs of life: how far the time of a host's death may be off.
const EVERY_MS: i64 = 60_000;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Alive {
    /// The kernel's id of the boot.
    boot_id: String,
    /// Version of the agent.
    version: String,
    /// Last sign of life, UTC milliseconds.
    at_ms: i64,
    /// Why the agent was stopped; nothing while it lives.
    stopped: Option<Stopped>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stopped {
    Agent,
    Reboot,
    Shutdown,
}

/// A sign of life on its way to the disk.
#[derive(Debug)]
pub struct Sign {
    path: PathBuf,
    alive: Alive,
}

impl Sign {
    /// Writes it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self) -> std::io::Result<()> {
        write_json(&self.path, &self.alive)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Life {
    path: Option<PathBuf>,
    before: Option<Alive>,
    now: Alive,
}

impl Life {
    /// The life that begins now, on this boot.
    #[must_use]
    pub fn new(state_dir: Option<&Path>, boot_id: &str, version: &str) -> Self {
        let path = state_dir.map(|folder| folder.join(FILE));
        Self {
            before: path.as_deref().and_then(read_json),
            path,
            now: Alive {
                boot_id: boot_id.to_owned(),
                version: version.to_owned(),
                ..Alive::default()
            },
        }
    }

    /// What to tell at the start, before anything else, and what the event of the start itself says.
    pub fn begin(&mut self, at: Timestamp) -> (Vec<v1::Event>, Vec<EventField>) {
        let mut start = vec![event::word(EventFieldKey::To, &self.now.version)];
        let mut events = Vec::new();
        if let Some(before) = &self.before {
            let told = |kind: EventKind, fields| v1::Event {
                kind: kind.into(),
                subject: String::new(),
                at_ms: at.as_millis(),
                fields,
            };
            if before.boot_id != self.now.boot_id {
                let clean = matches!(before.stopped, Some(Stopped::Reboot | Stopped::Shutdown));
                let away = at.as_millis().saturating_sub(before.at_ms).max(0);
                let fields = vec![
                    event::integer(EventFieldKey::Clean, clean.into()),
                    event::integer(EventFieldKey::DownMs, away),
                ];
                events.push(told(EventKind::Booted, fields));
            } else {
                let clean = before.stopped.is_some();
                start.push(event::integer(EventFieldKey::Clean, clean.into()));
            }
            if before.version != self.now.version {
                let fields = vec![
                    event::word(EventFieldKey::From, &before.version),
                    event::word(EventFieldKey::To, &self.now.version),
                ];
                events.push(told(EventKind::AgentUpgraded, fields));
            }
        }
        (events, start)
    }

    /// Whether a sign of life is due: once a minute, also after the clock was set back, and not after the end.
    #[must_use]
    pub fn is_due(&self, at: Timestamp) -> bool {
        let since = at.as_millis().saturating_sub(self.now.at_ms);
        !(0..EVERY_MS).contains(&since) && self.now.stopped.is_none() && self.path.is_some()
    }

    /// A sign of life, if one is due.
    pub fn goes_on(&mut self, at: Timestamp) -> Option<Sign> {
        self.is_due(at).then(|| self.sign(at)).flatten()
    }

    /// The agent was told to stop; what to tell about it.
    pub fn stop(&mut self, at: Timestamp, reason: FinReason) -> v1::Event {
        let (stopped, word) = match reason {
            FinReason::Reboot => (Stopped::Reboot, "reboot"),
            FinReason::Shutdown => (Stopped::Shutdown, "shutdown"),
            FinReason::Stopped | FinReason::Unspecified => (Stopped::Agent, "stopped"),
        };
        self.now.stopped = Some(stopped);
        if let Some(sign) = self.sign(at)
            && let Err(error) = sign.write()
        {
            tracing::warn!(%error, "the end is not noted down: the next start takes it for a crash");
        }
        v1::Event {
            kind: EventKind::AgentStopped.into(),
            subject: String::new(),
            at_ms: at.as_millis(),
            fields: vec![event::word(EventFieldKey::Result, word)],
        }
    }

    fn sign(&mut self, at: Timestamp) -> Option<Sign> {
        self.now.at_ms = at.as_millis();
        Some(Sign {
            path: self.path.clone()?,
            alive: self.now.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::at, *};

    /// Lives one after the other in one state folder: boot, version, how the life ended, expected at its start.
    #[test]
    fn each_life_tells_how_the_one_before_ended() {
        let state = tempfile::tempdir().expect("temporary folder");
        type Row = (
            &'static str,
            &'static str,
            Option<FinReason>,
            &'static [&'static str],
            Option<i64>,
        );
        let table: [Row; 6] = [
            ("a", "1.0", Some(FinReason::Stopped), &[], None),
            ("a", "1.1", None, &["agent 1.0 → 1.1"], Some(1)),
            ("a", "1.1", Some(FinReason::Reboot), &[], Some(0)),
            (
                "b",
                "1.1",
                None,
                &["booted after a shutdown, away for 70 s"],
                None,
            ),
            (
                "c",
                "1.1",
                Some(FinReason::Stopped),
                &["booted, without having been shut down, away for 100 s"],
                None,
            ),
            (
                "d",
                "1.1",
                None,
                &["booted, without having been shut down, away for 70 s"],
                None,
            ),
        ];
        for (number, (boot, version, end, expected, clean)) in table.into_iter().enumerate() {
            let began = at(100 * i64::try_from(number).expect("small"));
            let mut life = Life::new(Some(state.path()), boot, version);
            let (events, start) = life.begin(began);
            let sign = life.goes_on(began).expect("the first is due");
            sign.write().expect("written");
            let words: Vec<String> = events.iter().map(event::words).collect();
            assert_eq!(words, expected, "{number}");
            let started = v1::Event {
                fields: start,
                ..v1::Event::default()
            };
            assert_eq!(
                event::get_integer(&started, EventFieldKey::Clean),
                clean,
                "{number}"
            );
            assert_eq!(event::get_word(&started, EventFieldKey::To), Some(version));
            if let Some(reason) = end {
                life.stop(Timestamp::from_millis(began.as_millis() + 30_000), reason);
            }
        }
    }

    #[test]
    fn signs_of_life_are_written_once_a_minute_and_after_the_clock_went_back() {
        let state = tempfile::tempdir().expect("temporary folder");
        let mut life = Life::new(Some(state.path()), "a", "1");
        for (seconds, written) in [(0, 0), (30, 0), (61, 61), (90, 61), (-500, -500)] {
            if let Some(sign) = life.goes_on(at(seconds)) {
                sign.write().expect("written");
            }
            let kept: Alive = read_json(&state.path().join(FILE)).expect("reads");
            assert_eq!(kept.at_ms, at(written).as_millis(), "{seconds}");
        }
    }
}
