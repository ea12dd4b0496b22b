//! The audit log: every line carries a hash over the line before it, so that a line that was changed, removed or put
//! in between is found.
//!
//! ```text
//! hash(n) = SHA-256("muster audit 1" ‖ hash(n-1) ‖ seq ‖ at_ms ‖ epoch ‖ each text with its length before it)
//! ```
//!
//! `hash(0)` is 32 zero bytes, numbers are 8 bytes big-endian, and lines are numbered from 1 without holes. Whoever
//! can write the database can also compute hashes: against that helps only a copy elsewhere, of the lines or at least
//! of the newest number and hash ([`AuditVerdict::head`]), which is why both are told at every start and can be
//! exported. A line is written in the transaction of what it tells of.

use std::sync::Arc;

use muster_proto::{spiffe::hex, time::Timestamp};
use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use super::{Control, ControlError, db::BUSY};

const BEGIN: [u8; 32] = [0; 32];
const DOMAIN: &[u8] = b"muster audit 1";
/// Key in `meta` of the newest line: its number, a colon, its hash in hexadecimal.
const HEAD: &str = "audit_head";
/// Faults that are told; a log that is broken everywhere is broken enough.
const MAX_FAULTS: usize = 100;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLine {
    /// Its number, from 1.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who: an operator, `agent/` and a host id, `uid` and a number, an address.
    pub actor: String,
    /// Did what.
    pub action: String,
    /// To whom or what.
    pub subject: String,
    /// What came of it.
    pub outcome: String,
    /// Links it to the line before; empty when it has none, which is a fault.
    pub hash: Vec<u8>,
    /// Claim of the aggregator that wrote it; part of the hash.
    pub epoch: i64,
}

impl AuditLine {
    /// What its hash must be after a line with the hash `before`.
    fn linked(&self, before: &[u8]) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(DOMAIN);
        context.update(before);
        for number in [self.seq, self.at.as_millis(), self.epoch] {
            context.update(&number.to_be_bytes());
        }
        for text in [&self.actor, &self.action, &self.subject, &self.outcome] {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

/// Which lines are asked for; texts match where they are contained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Most lines, the newest.
    pub limit: u32,
    /// From this moment on.
    pub since: Option<Timestamp>,
    /// Part of the actor.
    pub actor: String,
    /// Part of the action.
    pub action: String,
    /// Part of the subject.
    pub subject: String,
}

/// What a walk along the chain found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditVerdict {
    /// How many lines there are.
    pub lines: u64,
    /// Number and hash of the newest.
    pub head: Option<(i64, Vec<u8>)>,
    /// What is wrong, in sentences; at most 100.
    pub faults: Vec<String>,
}

impl Control {
    /// Writes a line of the audit log.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn audit(
        &self,
        at: Timestamp,
        actor: &str,
        action: &str,
        subject: &str,
        outcome: &str,
    ) -> Result<(), ControlError> {
        let [actor, action, subject, outcome] =
            [actor, action, subject, outcome].map(str::to_owned);
        let epoch = self.epoch;
        self.write(move |connection| {
            append(connection, epoch, at, [&actor, &action, &subject, &outcome])
        })
        .await
    }

    /// The last lines of the audit log, newest first: time, actor, action, subject, outcome.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn audit_log(
        &self,
        limit: u32,
    ) -> Result<Vec<(Timestamp, [String; 4])>, ControlError> {
        let filter = AuditFilter {
            limit,
            ..AuditFilter::default()
        };
        let lines = self.audit_lines(filter).await?;
        let plain = |line: AuditLine| {
            let said = [line.actor, line.action, line.subject, line.outcome];
            (line.at, said)
        };
        Ok(lines.into_iter().map(plain).collect())
    }

    /// Lines of the audit log, newest first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn audit_lines(&self, filter: AuditFilter) -> Result<Vec<AuditLine>, ControlError> {
        // On a connection of its own: a search through all of a long log holds up nobody who asks for a role.
        self.read_beside(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT seq, at_ms, actor, action, subject, outcome, epoch, hash FROM audit
                 WHERE (?2 IS NULL OR at_ms >= ?2)
                   AND instr(actor, ?3) > 0 AND instr(action, ?4) > 0 AND instr(subject, ?5) > 0
                 ORDER BY seq DESC LIMIT ?1",
            )?;
            let since = filter.since.map(Timestamp::as_millis);
            let asked = params![
                filter.limit,
                since,
                filter.actor,
                filter.action,
                filter.subject
            ];
            let rows = query.query_map(asked, line)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Lines after the one with this number, oldest first: to be copied elsewhere.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn audit_after(&self, seq: i64, limit: u32) -> Result<Vec<AuditLine>, ControlError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT seq, at_ms, actor, action, subject, outcome, epoch, hash FROM audit
                 WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )?;
            let rows = query.query_map(params![seq, limit], line)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Walks the whole chain. `known` is a number and hash that were noted down elsewhere.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn verify_audit(
        &self,
        known: Option<(i64, Vec<u8>)>,
    ) -> Result<AuditVerdict, ControlError> {
        // On a connection of its own: the walk may be long, and reading goes on beside it.
        self.read_beside(move |connection| verify(connection, known.as_ref()))
            .await
    }

    /// Runs `work`, which may be long, on a connection of its own.
    pub(super) async fn read_beside<T, W>(&self, work: W) -> Result<T, ControlError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, ControlError> + Send + 'static,
    {
        let path = Arc::clone(&self.path);
        let done = tokio::task::spawn_blocking(move || {
            let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.busy_timeout(BUSY)?;
            work(&connection)
        });
        done.await.map_err(|_| ControlError::Closed)?
    }
}

fn line(row: &Row<'_>) -> rusqlite::Result<AuditLine> {
    Ok(AuditLine {
        seq: row.get(0)?,
        at: Timestamp::from_millis(row.get(1)?),
        actor: row.get(2)?,
        action: row.get(3)?,
        subject: row.get(4)?,
        outcome: row.get(5)?,
        epoch: row.get(6)?,
        hash: row.get::<_, Option<Vec<u8>>>(7)?.unwrap_or_default(),
    })
}

/// A line inside a write: actor, action, subject, outcome.
pub(super) fn append(
    connection: &Connection,
    epoch: i64,
    at: Timestamp,
    [actor, action, subject, outcome]: [&str; 4],
) -> Result<(), ControlError> {
    let before: Option<(i64, Option<Vec<u8>>)> = connection
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (last, before) = before.unwrap_or((0, None));
    let mut line = AuditLine {
        seq: last + 1,
        at,
        actor: actor.to_owned(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        outcome: outcome.to_owned(),
        hash: Vec::new(),
        epoch,
    };
    line.hash = line.linked(&before.unwrap_or(BEGIN.to_vec())).to_vec();
    connection
        .prepare_cached(
            "INSERT INTO audit (seq, at_ms, actor, action, subject, outcome, epoch, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            line.seq,
            at.as_millis(),
            actor,
            action,
            subject,
            outcome,
            epoch,
            line.hash
        ])?;
    keep_head(connection, line.seq, &line.hash)
}

fn keep_head(connection: &Connection, seq: i64, hash: &[u8]) -> Result<(), ControlError> {
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![HEAD, head_text(seq, hash)])?;
    Ok(())
}

fn head_text(seq: i64, hash: &[u8]) -> String {
    format!("{seq}:{}", hex(hash))
}

/// Links the lines that were written before there was a chain, once, in the transaction of the migration.
pub(super) fn chain_old_lines(connection: &Connection) -> Result<(), rusqlite::Error> {
    let mut lines: Vec<AuditLine> = connection
        .prepare("SELECT seq, at_ms, actor, action, subject, outcome, epoch, hash FROM audit ORDER BY seq")?
        .query_map([], line)?
        .collect::<Result<_, _>>()?;
    let mut before = BEGIN.to_vec();
    let mut change = connection.prepare("UPDATE audit SET hash = ?2 WHERE seq = ?1")?;
    for line in &mut lines {
        before = line.linked(&before).to_vec();
        change.execute(params![line.seq, before])?;
    }
    if let Some(last) = lines.last() {
        connection.execute(
            "INSERT INTO meta (key, value) VALUES (?1, ?2)",
            params![HEAD, head_text(last.seq, &before)],
        )?;
    }
    Ok(())
}

fn verify(
    connection: &Connection,
    known: Option<&(i64, Vec<u8>)>,
) -> Result<AuditVerdict, ControlError> {
    let mut query = connection.prepare(
        "SELECT seq, at_ms, actor, action, subject, outcome, epoch, hash FROM audit ORDER BY seq",
    )?;
    let mut rows = query.query([])?;
    let mut walk = Walk::default();
    while let Some(row) = rows.next()? {
        walk.step(&line(row)?, known);
    }
    if let Some((seq, _)) = known
        && *seq > walk.last
    {
        walk.fault(format!(
            "line {seq}, which is known from elsewhere, is missing: the log ends with line {}",
            walk.last
        ));
    }
    let kept: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [HEAD], |row| {
            row.get(0)
        })
        .optional()?;
    let found = walk.verdict.head.as_ref();
    let found = found.map(|(seq, hash)| head_text(*seq, hash));
    if kept != found {
        let told = |head: Option<&str>| {
            head.and_then(|head| head.split(':').next())
                .map_or_else(|| "no line".to_owned(), |seq| format!("line {seq}"))
        };
        walk.fault(format!(
            "the log ends with {}, and was left ending with {}: lines at its end were removed, added or changed",
            told(found.as_deref()),
            told(kept.as_deref())
        ));
    }
    Ok(walk.verdict)
}

/// The walk along the chain.
struct Walk {
    last: i64,
    before: Vec<u8>,
    verdict: AuditVerdict,
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            last: 0,
            before: BEGIN.to_vec(),
            verdict: AuditVerdict::default(),
        }
    }
}

impl Walk {
    fn fault(&mut self, fault: String) {
        if self.verdict.faults.len() < MAX_FAULTS {
            self.verdict.faults.push(fault);
        }
    }

    fn step(&mut self, line: &AuditLine, known: Option<&(i64, Vec<u8>)>) {
        let expected = self.last + 1;
        if line.seq == expected + 1 {
            self.fault(format!("line {expected} is missing"));
        } else if line.seq != expected {
            self.fault(format!(
                "lines {expected} to {} are missing",
                line.seq.saturating_sub(1)
            ));
        } else if line.hash != line.linked(&self.before) {
            // After a hole there is nothing to compare with: the hole is the fault.
            self.fault(format!(
                "line {} ({} · {} · {}) does not follow from the line before: one of the two was changed or put there",
                line.seq, line.at, line.actor, line.action
            ));
        }
        if let Some((seq, hash)) = known
            && *seq == line.seq
            && *hash != line.hash
        {
            self.fault(format!(
                "line {seq} is not the one that is known from elsewhere: it or a line before it was changed, and the chain made anew"
            ));
        }
        self.last = line.seq;
        self.before.clone_from(&line.hash);
        self.verdict.lines += 1;
        self.verdict.head = Some((line.seq, line.hash.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    /// A log of six lines, then `harm` done to it behind its back; what is found.
    async fn harmed(harm: &str) -> AuditVerdict {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a store");
        for number in 1..=6 {
            let subject = format!("thing {number}");
            let written = control.audit(NOW, "jo", "touch", &subject, "done").await;
            written.expect("written");
        }
        let file = Connection::open(folder.path().join("control.db")).expect("opened");
        file.execute_batch(harm).expect("harmed");
        control.verify_audit(None).await.expect("readable")
    }

    #[tokio::test]
    async fn a_log_left_alone_holds_and_tells_its_head() {
        let verdict = harmed("").await;
        assert_eq!(verdict.faults, [""; 0]);
        assert_eq!(verdict.lines, 6);
        assert_eq!(verdict.head.expect("a head").0, 6);
    }

    #[tokio::test]
    async fn whatever_is_changed_removed_or_put_in_between_is_found_and_named() {
        for (harm, named) in [
            ("UPDATE audit SET outcome = 'nothing' WHERE seq = 3", "line 3 ("),
            ("UPDATE audit SET actor = 'eve' WHERE seq = 1", "line 1 ("),
            ("UPDATE audit SET at_ms = at_ms - 1 WHERE seq = 6", "line 6 ("),
            ("UPDATE audit SET epoch = 2 WHERE seq = 2", "line 2 ("),
            ("UPDATE audit SET hash = NULL WHERE seq = 4", "line 4 ("),
            // Two texts that read the same when they are put together.
            (
                "UPDATE audit SET actor = 'j', action = 'otouch' WHERE seq = 5",
                "line 5 (",
            ),
            ("DELETE FROM audit WHERE seq = 3", "line 3 is missing"),
            ("DELETE FROM audit WHERE seq IN (1, 2)", "lines 1 to 2 are missing"),
            (
                "DELETE FROM audit WHERE seq = 6",
                "the log ends with line 5, and was left ending with line 6",
            ),
            (
                "DELETE FROM audit",
                "the log ends with no line, and was left ending with line 6",
            ),
            // Removed, and the numbers closed up.
            (
                "DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = seq - 1 WHERE seq > 3",
                "line 3 (",
            ),
            // Put in between, with the numbers made room for it.
            (
                "UPDATE audit SET seq = 7 WHERE seq = 6; UPDATE audit SET seq = 6 WHERE seq = 5;
                 INSERT INTO audit SELECT 5, at_ms, 'eve', action, subject, outcome, epoch, hash FROM audit WHERE seq = 4",
                "line 5 (",
            ),
            (
                "INSERT INTO audit SELECT 7, at_ms, actor, action, subject, outcome, epoch, hash FROM audit WHERE seq = 6",
                "line 7 (",
            ),
        ] {
            let verdict = harmed(harm).await;
            let first = verdict.faults.first().map_or("nothing", String::as_str);
            assert!(first.contains(named), "{harm}: {:?}", verdict.faults);
        }
    }

    #[tokio::test]
    async fn lines_of_before_are_chained_once_when_the_store_is_brought_up_to_date() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control.db");
        let old = Connection::open(&path).expect("a database");
        for migration in [
            include_str!("migrations/001_begin.sql"),
            include_str!("migrations/002_renewal.sql"),
            include_str!("migrations/003_denied.sql"),
        ] {
            old.execute_batch(migration).expect("made");
        }
        for seq in 1..=3 {
            old.execute(
                "INSERT INTO audit VALUES (?1, 5, 'jo', 'touch', 'x', 'done', 1)",
                [seq],
            )
            .expect("written");
        }
        old.pragma_update(None, "user_version", 3).expect("marked");
        let control = Control::open(folder.path()).expect("brought up to date");
        control
            .audit(NOW, "jo", "touch", "y", "done")
            .await
            .expect("written");
        let verdict = control.verify_audit(None).await.expect("readable");
        assert_eq!((verdict.lines, verdict.faults), (4, Vec::new()));
        // Another start does not heal what was harmed since.
        old.execute_batch("UPDATE audit SET hash = NULL WHERE seq = 2")
            .expect("harmed");
        let control = Control::open(folder.path()).expect("opened again");
        let verdict = control.verify_audit(None).await.expect("readable");
        assert!(verdict.faults[0].contains("line 2 ("), "{verdict:?}");
    }

    #[tokio::test]
    async fn a_chain_made_anew_is_found_by_a_head_known_from_elsewhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a store");
        for outcome in ["one", "two", "three"] {
            control
                .audit(NOW, "jo", "touch", "x", outcome)
                .await
                .expect("written");
        }
        let head = control.verify_audit(None).await.expect("readable").head;
        let good = control.verify_audit(head.clone()).await.expect("readable");
        assert_eq!(good.faults, [""; 0]);
        let file = Connection::open(folder.path().join("control.db")).expect("opened");
        file.execute_batch("UPDATE audit SET outcome = 'zero' WHERE seq = 1; DELETE FROM meta WHERE key = 'audit_head'")
            .expect("changed");
        chain_old_lines(&file).expect("chained anew");
        let blind = control.verify_audit(None).await.expect("readable");
        assert_eq!(blind.faults, [""; 0], "who can write all of it can hide it");
        let told = control.verify_audit(head).await.expect("readable");
        assert!(told.faults[0].contains("line 3 is not the one"), "{told:?}");
        let gone = control
            .verify_audit(Some((9, vec![1; 32])))
            .await
            .expect("readable");
        assert!(
            gone.faults[0].contains("line 9, which is known"),
            "{gone:?}"
        );
    }

    #[tokio::test]
    async fn lines_are_found_by_what_they_contain() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a store");
        for (millis, actor, action) in [
            (0, "jo", "evict host"),
            (5, "eve", "ban host"),
            (9, "jo", "ask"),
        ] {
            let at = Timestamp::from_millis(NOW.as_millis() + millis);
            control
                .audit(at, actor, action, "web-1", "done")
                .await
                .expect("written");
        }
        let found = async |filter: AuditFilter| {
            let filter = AuditFilter {
                limit: 10,
                ..filter
            };
            let lines = control.audit_lines(filter).await.expect("readable");
            lines.iter().map(|line| line.seq).collect::<Vec<_>>()
        };
        let any = AuditFilter::default;
        assert_eq!(found(any()).await, [3, 2, 1]);
        assert_eq!(
            found(AuditFilter {
                actor: "jo".to_owned(),
                ..any()
            })
            .await,
            [3, 1]
        );
        assert_eq!(
            found(AuditFilter {
                action: "host".to_owned(),
                ..any()
            })
            .await,
            [2, 1]
        );
        let since = Some(Timestamp::from_millis(NOW.as_millis() + 5));
        assert_eq!(found(AuditFilter { since, ..any() }).await, [3, 2]);
        assert_eq!(
            found(AuditFilter {
                subject: "web-2".to_owned(),
                ..any()
            })
            .await,
            [0; 0]
        );
        let after = control.audit_after(1, 1).await.expect("readable");
        assert_eq!(after.first().map(|line| line.seq), Some(2));
    }
}
