//! Copies of a host: two machines with one identity, by cloning a disk, restoring a snapshot or copying a state folder.
//!
//! What tells them apart is kept with the host and looked at with each Hello that is not refused already because the
//! other one is connected ([`crate::ingest`]):
//!
//! | sign | what an honest host does |
//! |---|---|
//! | a session number that was used before | draws larger ones for ever, also after a crash |
//! | an older ratchet value from another boot | shows the last value it was given, or the one before it |
//! | the boot id of an earlier boot, after another | never returns to a boot |
//!
//! One sign alone may be a snapshot that was restored, which is no crime: it is taken, and on record. At the third
//! within ten minutes there are two machines taking turns: from then on only the boot that is connected then is
//! listened to, until an operator decides. Their data is never mixed by taking turns for long, and what came before
//! stands in the audit log with times and boot ids.

use std::time::Duration;

use muster_proto::{id::HostId, spiffe::hex, time::Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Control, ControlError, db::audit};

/// So many signs within [`COPY_WINDOW`] put a host into quarantine.
pub const COPY_SIGNS: usize = 3;
/// See [`COPY_SIGNS`].
pub const COPY_WINDOW: Duration = Duration::from_secs(600);
/// Of a host in quarantine one sign is noted in this time: what else is to be said was said.
const SIGN_EVERY: Duration = Duration::from_secs(60);
/// Boots of a host that are remembered.
const BOOTS: usize = 8;
/// Bytes of a ratchet value.
const RATCHET: usize = 16;

/// What a host says of itself that tells copies apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Number of the session.
    pub session: u64,
    /// Of this boot; 16 bytes.
    pub boot_id: Vec<u8>,
    /// The value of the last Welcome; empty before the first.
    pub ratchet: Vec<u8>,
    /// Of the trust bundle it holds.
    pub bundle_version: u64,
}

/// What comes of a greeting or of a sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeted {
    /// To be shown with the next greeting.
    pub ratchet: Vec<u8>,
    /// What was a sign of a copy, in words.
    pub sign: Option<&'static str>,
    /// The host is in quarantine since then.
    pub quarantined: Option<Timestamp>,
    /// It came into quarantine by this.
    pub newly: bool,
    /// Whether this boot is listened to.
    pub heard: bool,
}

/// What is kept of a host.
struct Kept {
    ratchet: Option<Vec<u8>>,
    ratchet_before: Option<Vec<u8>>,
    last_session: Option<u64>,
    /// Newest first.
    boots: Vec<String>,
    signs: Vec<i64>,
    quarantined: Option<Timestamp>,
}

impl Control {
    /// Takes a host's greeting, and gives the value it shows next time.
    ///
    /// # Errors
    /// When nobody has this id, or it cannot be read or written.
    pub async fn greet(
        &self,
        host: HostId,
        greeting: Greeting,
        now: Timestamp,
    ) -> Result<Greeted, ControlError> {
        let epoch = self.epoch;
        let mut next = vec![0; RATCHET];
        SystemRandom::new()
            .fill(&mut next)
            .map_err(|_| ControlError::Random)?;
        self.write(move |connection| {
            let mut kept = read(connection, host)?;
            let boot = hex(&greeting.boot_id);
            if kept.quarantined.is_some() && kept.boots.first() != Some(&boot) {
                return Ok(kept.greeted(greeting.ratchet, None, false, false));
            }
            let sign = kept.sign(&greeting, &boot);
            let newly = match sign {
                Some(sign) => kept.note(connection, epoch, host, sign, &boot, now)?,
                None => false,
            };
            kept.boots.retain(|known| *known != boot);
            kept.boots.insert(0, boot);
            kept.boots.truncate(BOOTS);
            kept.ratchet_before = Some(kept.ratchet.take().unwrap_or_default());
            kept.ratchet = Some(next.clone());
            kept.last_session = Some(greeting.session);
            write(connection, epoch, host, &kept, greeting.bundle_version)?;
            Ok(kept.greeted(next, sign, newly, true))
        })
        .await
    }

    /// Whether this boot of a host is listened to: any, unless the host is in quarantine.
    ///
    /// # Errors
    /// When nobody has this id, or it cannot be read.
    pub async fn is_heard(&self, host: HostId, boot_id: &[u8]) -> Result<bool, ControlError> {
        let boot = hex(boot_id);
        self.read(move |connection| {
            let kept = read(connection, host)?;
            Ok(kept.quarantined.is_none() || kept.boots.first() == Some(&boot))
        })
        .await
    }

    /// A second machine spoke with a host's identity while the first one was connected, and was turned away.
    ///
    /// # Errors
    /// When nobody has this id, or it cannot be read or written.
    pub async fn second_machine(
        &self,
        host: HostId,
        boot_id: &[u8],
        now: Timestamp,
    ) -> Result<Greeted, ControlError> {
        let (epoch, boot) = (self.epoch, hex(boot_id));
        self.write(move |connection| {
            let mut kept = read(connection, host)?;
            if kept.quarantined.is_some() {
                return Ok(kept.greeted(Vec::new(), None, false, false));
            }
            let sign = "another machine is connected with this identity";
            let newly = kept.note(connection, epoch, host, sign, &boot, now)?;
            connection.execute(
                "UPDATE hosts SET copy_signs = ?2, quarantined_ms = ?3 WHERE host_id = ?1 AND epoch = ?4",
                params![
                    host.to_string(),
                    kept.shown_signs(),
                    kept.quarantined.map(Timestamp::as_millis),
                    epoch
                ],
            )?;
            Ok(kept.greeted(Vec::new(), Some(sign), newly, false))
        })
        .await
    }

    /// An operator says that the host in quarantine is what it should be: whichever machine greets next is it. Since
    /// when it was in quarantine; `None` when it was not.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub async fn release_host(
        &self,
        host: HostId,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, ControlError> {
        let (actor, epoch) = (actor.to_owned(), self.epoch);
        self.write(move |connection| {
            let since = read(connection, host)?.quarantined;
            if let Some(since) = since {
                connection.execute(
                    "UPDATE hosts SET quarantined_ms = NULL, copy_signs = '', boots = '', last_session = NULL,
                                      ratchet_before = ratchet
                     WHERE host_id = ?1 AND epoch = ?2",
                    params![host.to_string(), epoch],
                )?;
                let said = format!("it was in quarantine since {since}");
                let subject = host.to_string();
                audit(connection, epoch, now, [&actor, "release host", &subject, &said])?;
            }
            Ok(since)
        })
        .await
    }

    /// Hosts in quarantine, and since when.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn quarantined_hosts(&self) -> Result<Vec<(HostId, Timestamp)>, ControlError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT host_id, quarantined_ms FROM hosts
                 WHERE quarantined_ms IS NOT NULL AND removed_ms IS NULL ORDER BY quarantined_ms",
            )?;
            let mut rows = query.query([])?;
            let mut hosts = Vec::new();
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                let id = id.parse().map_err(|_| ControlError::Row("hosts"))?;
                hosts.push((id, Timestamp::from_millis(row.get(1)?)));
            }
            Ok(hosts)
        })
        .await
    }
}

impl Kept {
    /// What about a greeting no honest host would say.
    fn sign(&self, greeting: &Greeting, boot: &str) -> Option<&'static str> {
        let last_boot = self.boots.first();
        if self
            .last_session
            .is_some_and(|last| greeting.session <= last)
        {
            return Some("it shows a session number that was used before");
        }
        if last_boot.is_some_and(|last| last != boot)
            && self.boots[1..].iter().any(|old| old == boot)
        {
            return Some("it is back in a boot that another one followed");
        }
        let known = [&self.ratchet, &self.ratchet_before];
        let fresh = self.ratchet.is_none()
            || known
                .into_iter()
                .flatten()
                .any(|value| *value == greeting.ratchet);
        // From the same boot it is a state folder that cannot be written.
        if !fresh && last_boot.is_some_and(|last| last != boot) {
            return Some("its state is older than what it was last given");
        }
        None
    }

    /// Counts a sign; true when it is the one that puts the host into quarantine.
    fn note(
        &mut self,
        connection: &Connection,
        epoch: i64,
        host: HostId,
        sign: &str,
        boot: &str,
        now: Timestamp,
    ) -> Result<bool, ControlError> {
        let last = self.signs.last().copied().map(Timestamp::from_millis);
        if self.quarantined.is_some() && last.is_some_and(|last| now.since(last) < SIGN_EVERY) {
            return Ok(false);
        }
        let oldest = now.minus(COPY_WINDOW).as_millis();
        self.signs
            .retain(|at| (oldest..=now.as_millis()).contains(at));
        self.signs.push(now.as_millis());
        // More of them would say nothing more.
        let surplus = self.signs.len().saturating_sub(COPY_SIGNS);
        self.signs.drain(..surplus);
        let newly = self.quarantined.is_none() && self.signs.len() >= COPY_SIGNS;
        let subject = host.to_string();
        let actor = format!("agent/{host}");
        let said = format!("{sign}, boot id {boot}");
        audit(
            connection,
            epoch,
            now,
            [&actor, "sign of a copy", &subject, &said],
        )?;
        if newly {
            self.quarantined = Some(now);
            let last = self.boots.first().map_or("the next", String::as_str);
            let said = format!(
                "{COPY_SIGNS} signs of a copy within 10 minutes; listening to the boot {last}"
            );
            audit(
                connection,
                epoch,
                now,
                ["aggregator", "quarantine host", &subject, &said],
            )?;
        }
        Ok(newly)
    }

    fn greeted(
        &self,
        ratchet: Vec<u8>,
        sign: Option<&'static str>,
        newly: bool,
        heard: bool,
    ) -> Greeted {
        Greeted {
            ratchet,
            sign,
            quarantined: self.quarantined,
            newly,
            heard,
        }
    }

    fn shown_signs(&self) -> String {
        let signs: Vec<String> = self.signs.iter().map(i64::to_string).collect();
        signs.join(",")
    }
}

fn read(connection: &Connection, host: HostId) -> Result<Kept, ControlError> {
    let list = |text: String| -> Vec<String> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    };
    connection
        .prepare_cached(
            "SELECT ratchet, ratchet_before, last_session, boots, copy_signs, quarantined_ms
             FROM hosts WHERE host_id = ?1 AND removed_ms IS NULL",
        )?
        .query_row([host.to_string()], |row| {
            let signs = list(row.get(4)?);
            Ok(Kept {
                ratchet: row.get(0)?,
                ratchet_before: row.get(1)?,
                // Kept bit for bit: SQLite's numbers have a sign.
                last_session: row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned),
                boots: list(row.get(3)?),
                signs: signs.iter().filter_map(|at| at.parse().ok()).collect(),
                quarantined: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
            })
        })
        .optional()?
        .ok_or(ControlError::UnknownHost(host))
}

fn write(
    connection: &Connection,
    epoch: i64,
    host: HostId,
    kept: &Kept,
    bundle_version: u64,
) -> Result<(), ControlError> {
    connection
        .prepare_cached(
            "UPDATE hosts SET ratchet = ?2, ratchet_before = ?3, last_session = ?4, boots = ?5,
                              copy_signs = ?6, quarantined_ms = ?7, bundle_version = ?8
             WHERE host_id = ?1 AND epoch = ?9",
        )?
        .execute(params![
            host.to_string(),
            kept.ratchet,
            kept.ratchet_before,
            kept.last_session.map(u64::cast_signed),
            kept.boots.join(","),
            kept.shown_signs(),
            kept.quarantined.map(Timestamp::as_millis),
            bundle_version.cast_signed(),
            epoch
        ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    const HOST: HostId = HostId::from_bytes([1; 16]);
    const SECOND: Duration = Duration::from_secs(1);

    /// A state folder of an agent; cloning it clones the host.
    #[derive(Clone)]
    struct Folder {
        session: u64,
        ratchet: Vec<u8>,
    }

    struct Lab {
        _folder: tempfile::TempDir,
        control: Control,
        now: Timestamp,
    }

    impl Lab {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let control = Control::open(folder.path()).expect("a store");
            let file = Connection::open(folder.path().join("control.db")).expect("opened");
            file.execute(
                "INSERT INTO hosts (host_id, name, facts, labels, token_labels, created_ms, cert_serial, cert_not_after_ms, epoch)
                 VALUES (?1, 'web', '{}', '{}', '{}', 0, 'a', 0, 1)",
                [HOST.to_string()],
            )
            .expect("a host");
            Self {
                _folder: folder,
                control,
                now: NOW,
            }
        }

        async fn greet(&mut self, folder: &mut Folder, boot: u8) -> Greeted {
            self.now = self.now.plus(SECOND);
            folder.session += 1;
            let greeting = Greeting {
                session: folder.session,
                boot_id: vec![boot; 16],
                ratchet: folder.ratchet.clone(),
                bundle_version: 1,
            };
            let greeted = self.control.greet(HOST, greeting, self.now).await;
            let greeted = greeted.expect("written");
            if greeted.heard {
                folder.ratchet.clone_from(&greeted.ratchet);
            }
            greeted
        }
    }

    fn fresh() -> Folder {
        Folder {
            session: 0,
            ratchet: Vec::new(),
        }
    }

    #[tokio::test]
    async fn an_honest_host_reboots_crashes_and_loses_writes_without_a_sign() {
        let (mut lab, mut host) = (Lab::new(), fresh());
        for step in 0..200_u8 {
            let before = host.ratchet.clone();
            let greeted = lab.greet(&mut host, step / 3).await;
            assert_eq!(greeted.sign, None, "{step}");
            if step % 3 == 2 {
                // The answer, or what it gave, was lost in a crash; session numbers are drawn ahead.
                host.ratchet = before;
                host.session += 60;
            }
        }
        // A state folder that cannot be written any more, while the agent runs on.
        let stuck = host.ratchet.clone();
        for _ in 0..50 {
            host.ratchet.clone_from(&stuck);
            assert_eq!(lab.greet(&mut host, 100).await.sign, None);
        }
    }

    #[tokio::test]
    async fn a_clone_that_takes_turns_is_in_quarantine_at_the_third_sign() {
        let (mut lab, mut first) = (Lab::new(), fresh());
        for _ in 0..5 {
            lab.greet(&mut first, 1).await;
        }
        let mut clone = first.clone();
        let mut signs = 0;
        let mut turns = 0;
        let last = loop {
            turns += 1;
            let greeted = if turns % 2 == 1 {
                lab.greet(&mut clone, 2).await
            } else {
                lab.greet(&mut first, 1).await
            };
            signs += usize::from(greeted.sign.is_some());
            if greeted.newly {
                break if turns % 2 == 1 { 2 } else { 1 };
            }
            assert!(turns < 10, "found within ten turns");
        };
        assert_eq!(signs, COPY_SIGNS);
        // From now on only the boot that was listened to last is.
        let (mut heard, mut other) = if last == 1 {
            (first, clone)
        } else {
            (clone, first)
        };
        let other_boot = 3 - last;
        assert!(!lab.greet(&mut other, other_boot).await.heard);
        assert!(lab.greet(&mut heard, last).await.heard);
        assert_eq!(
            lab.control
                .quarantined_hosts()
                .await
                .expect("readable")
                .len(),
            1
        );
        let log = lab.control.audit_log(100).await.expect("readable");
        let quarantined = log.iter().filter(|line| line.1[1] == "quarantine host");
        assert_eq!(quarantined.count(), 1, "told once");
        // An operator releases it, and whichever greets next is the host.
        let released = lab.control.release_host(HOST, "jo", lab.now).await;
        assert!(released.expect("written").is_some());
        assert!(lab.greet(&mut heard, last).await.heard);
        assert_eq!(lab.greet(&mut heard, last).await.sign, None);
    }

    #[tokio::test]
    async fn a_restored_snapshot_is_taken_and_on_record_and_old_signs_are_forgotten() {
        let (mut lab, mut host) = (Lab::new(), fresh());
        let mut boot = 0;
        for _ in 0..6 {
            for _ in 0..4 {
                boot += 1;
                assert_eq!(lab.greet(&mut host, boot).await.sign, None);
            }
            let snapshot = Folder {
                session: host.session - 3,
                ratchet: host.ratchet.clone(),
            };
            host = snapshot;
            boot += 1;
            let greeted = lab.greet(&mut host, boot).await;
            assert!(greeted.sign.is_some() && greeted.heard);
            assert_eq!(greeted.quarantined, None);
            host.session += 10;
            lab.now = lab.now.plus(COPY_WINDOW);
        }
    }

    #[tokio::test]
    async fn a_host_that_repeats_itself_fills_neither_its_row_nor_the_audit_log() {
        let (mut lab, mut host) = (Lab::new(), fresh());
        lab.greet(&mut host, 1).await;
        for _ in 0..300 {
            // The same session number over and over, a second apart.
            host.session -= 1;
            lab.greet(&mut host, 1).await;
        }
        let log = lab.control.audit_log(1_000).await.expect("readable");
        let signs = log.iter().filter(|line| line.1[1] == "sign of a copy");
        assert_eq!(signs.count(), COPY_SIGNS + 4, "then one a minute");
        let kept = lab.control.read(|connection| read(connection, HOST)).await;
        assert_eq!(kept.expect("readable").signs.len(), COPY_SIGNS);
    }

    #[tokio::test]
    async fn two_that_are_up_at_once_are_in_quarantine_and_the_first_stays() {
        let (mut lab, mut first) = (Lab::new(), fresh());
        lab.greet(&mut first, 1).await;
        for turn in 1..=COPY_SIGNS {
            let told = lab.control.second_machine(HOST, &[2; 16], lab.now).await;
            assert_eq!(told.expect("written").newly, turn == COPY_SIGNS, "{turn}");
        }
        assert!(lab.greet(&mut first, 1).await.heard);
        let mut clone = first.clone();
        assert!(!lab.greet(&mut clone, 2).await.heard);
    }
}
