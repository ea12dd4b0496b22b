//! The time as it was believed last, and an operator's word that the clock is right: kept over restarts.

use std::time::Duration;

use muster_proto::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Control, ControlError, db::audit};
use crate::time_guard::KeptTime;

/// Keys in `meta`.
const TIME: &str = "time";
const CONFIRMED: &str = "clock_confirmed";
/// A confirmation is of the time that was shown when it was given: it is not good for a later jump.
const GOOD_FOR: Duration = Duration::from_secs(600);

impl Control {
    /// What [`Control::keep_time`] kept; none before the first time, or when it does not read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn kept_time(&self) -> Result<Option<KeptTime>, ControlError> {
        self.read(|connection| Ok(get(connection, TIME)?.and_then(|text| parse(&text))))
            .await
    }

    /// Keeps the time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn keep_time(&self, time: KeptTime) -> Result<(), ControlError> {
        let KeptTime {
            believed_ms,
            since_boot_ms,
            boot_id,
        } = time;
        let text = format!("{believed_ms} {since_boot_ms} {boot_id}");
        self.write(move |connection| set(connection, TIME, &text))
            .await
    }

    /// An operator says that the clock, which shows `wall`, is right.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn confirm_clock(&self, actor: &str, wall: Timestamp) -> Result<(), ControlError> {
        let (actor, epoch) = (actor.to_owned(), self.epoch);
        self.write(move |connection| {
            set(connection, CONFIRMED, &wall.as_millis().to_string())?;
            let said = format!("it shows {wall}");
            audit(
                connection,
                epoch,
                wall,
                [&actor, "confirm clock", "aggregator", &said],
            )
        })
        .await
    }

    /// Whether an operator confirmed the time that the wall clock shows now; a confirmation is good once.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub async fn take_clock_confirmation(&self, wall: Timestamp) -> Result<bool, ControlError> {
        let found = self.read(|connection| get(connection, CONFIRMED)).await?;
        let Some(found) = found else {
            return Ok(false);
        };
        self.write(|connection| {
            connection.execute("DELETE FROM meta WHERE key = ?1", [CONFIRMED])?;
            Ok(())
        })
        .await?;
        let at = found.parse().map(Timestamp::from_millis);
        Ok(at.is_ok_and(|at| {
            u128::from(wall.millis_since(at).unsigned_abs()) <= GOOD_FOR.as_millis()
        }))
    }
}

fn parse(text: &str) -> Option<KeptTime> {
    let mut words = text.splitn(3, ' ');
    Some(KeptTime {
        believed_ms: words.next()?.parse().ok()?,
        since_boot_ms: words.next()?.parse().ok()?,
        boot_id: words.next()?.to_owned(),
    })
}

fn get(connection: &Connection, key: &str) -> Result<Option<String>, ControlError> {
    Ok(connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?)
}

fn set(connection: &Connection, key: &str, value: &str) -> Result<(), ControlError> {
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    #[tokio::test]
    async fn the_time_and_a_confirmation_outlive_a_restart_and_the_latter_is_good_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || Control::open(folder.path()).expect("a store");
        assert_eq!(open().kept_time().await.expect("readable"), None);
        let kept = KeptTime {
            believed_ms: NOW.as_millis(),
            since_boot_ms: 7,
            boot_id: "a-b".to_owned(),
        };
        open().keep_time(kept.clone()).await.expect("written");
        assert_eq!(open().kept_time().await.expect("readable"), Some(kept));

        let taken = async |wall| {
            open()
                .take_clock_confirmation(wall)
                .await
                .expect("readable")
        };
        assert!(!taken(NOW).await);
        open().confirm_clock("local", NOW).await.expect("written");
        assert!(taken(NOW.plus(Duration::from_secs(60))).await);
        assert!(!taken(NOW).await);
        open().confirm_clock("local", NOW).await.expect("written");
        assert!(
            !taken(NOW.plus(Duration::from_secs(3600))).await,
            "of another time"
        );
    }
}
