//! Incidents and their transitions. Opening and resolving can be repeated: an operation id acts once.

use std::time::Duration;

use muster_proto::{id::HostId, time::Timestamp, v1};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Ack, Control, ControlError, db::uuid_v7, pages::leave_news};
use crate::incident::{flap::Flap, machine, pages::Turn};

const OPEN: i32 = v1::IncidentState::Open as i32;
const RESOLVED: i32 = v1::IncidentState::Resolved as i32;

/// Something to open an incident for.
#[derive(Debug, Clone)]
pub struct NewIncident {
    /// Names this operation: repeating it changes nothing.
    pub op_id: String,
    /// Which host.
    pub host_id: HostId,
    /// Name of the detector.
    pub rule: String,
    /// What it is about: a mount point, a unit; empty for the host.
    pub subject: String,
    /// How bad.
    pub severity: v1::Severity,
    /// One line for people.
    pub summary: String,
    /// What was seen.
    pub evidence: String,
    /// Since when it holds, in the host's own time.
    pub since: Timestamp,
    /// Now.
    pub at: Timestamp,
}

/// What became of an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The incident's number.
    pub number: u64,
    /// It was opened by this very call; otherwise it was open already, the operation had been done before, or the host
    /// was removed (then there is no number).
    pub new: bool,
}

/// The end of an incident.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// Names this operation: repeating it changes nothing.
    pub op_id: String,
    /// Which host.
    pub host_id: HostId,
    /// Name of the detector.
    pub rule: String,
    /// What it is about.
    pub subject: String,
    /// What was seen.
    pub evidence: String,
    /// Now.
    pub at: Timestamp,
}

/// An incident as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// UUIDv7.
    pub id: String,
    /// For people: I-number.
    pub number: u64,
    /// Which host.
    pub host_id: HostId,
    /// Name of the detector.
    pub rule: String,
    /// What it is about; empty for the host.
    pub subject: String,
    /// How bad.
    pub severity: v1::Severity,
    /// Open or resolved.
    pub state: v1::IncidentState,
    /// One line for people.
    pub summary: String,
    /// When it was opened.
    pub opened: Timestamp,
    /// Since when it held, in the host's own time.
    pub since: Timestamp,
    /// When it was resolved.
    pub resolved: Option<Timestamp>,
    /// Who said that they see to it, last.
    pub ack: Option<Ack>,
}

impl Incident {
    /// The acknowledgement that holds: of an open incident, and not past its end.
    #[must_use]
    pub fn acknowledged(&self, now: Timestamp) -> Option<&Ack> {
        let open = self.state == v1::IncidentState::Open;
        self.ack.as_ref().filter(|ack| open && ack.holds(now))
    }
}

/// Something that happened to an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// To which state; unspecified for what leaves it as it is.
    pub to: v1::IncidentState,
    /// `open`, `resolved`, `acknowledged` …
    pub what: String,
    /// The operator who did it; empty when nobody did.
    pub actor: String,
    /// What was seen, or said.
    pub evidence: String,
}

/// Which incidents to list.
#[derive(Debug, Clone, Default)]
pub struct IncidentFilter {
    /// Also resolved ones.
    pub all: bool,
    /// Only of this host.
    pub host_id: Option<HostId>,
    /// Only of this severity.
    pub severity: Option<v1::Severity>,
    /// At most so many; 0: no limit.
    pub limit: u32,
}

/// How long a resolved incident is kept: a year and a month, so that a year can be compared with the last.
pub const KEPT_FOR: Duration = Duration::from_secs(400 * 86_400);

/// Most resolved incidents that are kept: about 60 MiB with their transitions. A fleet of a thousand hosts
/// with one incident a week each makes half of that in a year.
const KEPT_ROWS: u32 = 100_000;

/// Openings from one look for incidents to let go to the next; a look reads the resolved ones once.
const LOOK_EVERY: u32 = 256;

/// Most that one look lets go: more than come between two, few enough for others not to wait.
const LET_GO_AT_ONCE: u32 = 1024;

const COLUMNS: &str = "id, number, host_id, rule, subject, severity, state, summary, opened_ms, \
                       since_ms, resolved_ms, ack_by, ack_ms, ack_until_ms, ack_text";

impl Control {
    /// Opens an incident, unless one is open for the same host, rule and subject. Now and then this lets the
    /// oldest resolved ones go.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn open_incident(&self, new: NewIncident) -> Result<Opened, ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| open(connection, epoch, &new))
            .await
    }

    /// Resolves the open incident of this host, rule and subject; its number, or none when there is none or the
    /// operation had been done before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn resolve_incident(&self, end: Resolution) -> Result<Option<u64>, ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| resolve(connection, epoch, &end))
            .await
    }

    /// Incidents that match, newest first, and how many match without the limit.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn incidents(
        &self,
        filter: IncidentFilter,
    ) -> Result<(Vec<Incident>, usize), ControlError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM incidents
                 WHERE (?1 OR state = {OPEN}) AND (?2 IS NULL OR host_id = ?2)
                   AND (?3 IS NULL OR severity = ?3)
                 ORDER BY opened_ms DESC, number DESC"
            ))?;
            let host = filter.host_id.map(|id| id.to_string());
            let severity = filter.severity.map(|severity| severity as i32);
            let mut rows = query.query(params![filter.all, host, severity])?;
            let (mut listed, mut matched) = (Vec::new(), 0);
            let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
            while let Some(row) = rows.next()? {
                if limit == 0 || matched < limit {
                    listed.push(incident(row)?);
                }
                matched += 1;
            }
            Ok((listed, matched))
        })
        .await
    }

    /// Incidents that were open at a moment, newest first, as they stood then: open, with the acknowledgement if it
    /// had been given, and since when they held.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn incidents_at(&self, at: Timestamp) -> Result<Vec<Incident>, ControlError> {
        self.read(move |connection| {
            // One that has cleared and come back is the same: what counts is its last change before the moment.
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM incidents
                 WHERE opened_ms <= ?1 AND (resolved_ms IS NULL OR resolved_ms > ?1)
                   AND (SELECT to_state FROM incident_transitions
                        WHERE incident_id = id AND at_ms <= ?1 ORDER BY seq DESC LIMIT 1) = {OPEN}
                 ORDER BY opened_ms DESC, number DESC"
            ))?;
            let mut rows = query.query([at.as_millis()])?;
            let mut open = Vec::new();
            while let Some(row) = rows.next()? {
                let mut incident = incident(row)?;
                incident.state = v1::IncidentState::Open;
                incident.resolved = None;
                incident.ack = incident.ack.filter(|ack| ack.at <= at);
                // Of one that came back later, the first time is as near as is known.
                if incident.since > at {
                    incident.since = incident.opened;
                }
                open.push(incident);
            }
            Ok(open)
        })
        .await
    }

    /// One incident with what happened to it, oldest first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn incident(
        &self,
        number: u64,
    ) -> Result<Option<(Incident, Vec<Transition>)>, ControlError> {
        let Ok(number) = i64::try_from(number) else {
            return Ok(None);
        };
        self.read(move |connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM incidents WHERE number = ?1"
            ))?;
            let mut rows = query.query([number])?;
            let Some(found) = rows.next()?.map(incident).transpose()? else {
                return Ok(None);
            };
            let transitions = timeline(connection, &found.id)?;
            Ok(Some((found, transitions)))
        })
        .await
    }
}

/// What happened to an incident, by time; of one moment, its states in their order and then the rest.
fn timeline(connection: &Connection, incident: &str) -> Result<Vec<Transition>, ControlError> {
    let mut query = connection.prepare_cached(
        "SELECT at_ms, to_state, evidence, NULL, '', 0, seq
         FROM incident_transitions WHERE incident_id = ?1
         UNION ALL
         SELECT at_ms, 0, text, what, actor, 1, seq FROM incident_notes WHERE incident_id = ?1
         ORDER BY 1, 6, 7",
    )?;
    let mut rows = query.query([incident])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        let to = state(row.get(1)?)?;
        let word = match to {
            v1::IncidentState::Open => "open",
            v1::IncidentState::Resolved => "resolved",
            v1::IncidentState::Unspecified => "",
        };
        steps.push(Transition {
            at: Timestamp::from_millis(row.get(0)?),
            to,
            what: row
                .get::<_, Option<String>>(3)?
                .unwrap_or_else(|| word.to_owned()),
            actor: row.get(4)?,
            evidence: row.get(2)?,
        });
    }
    Ok(steps)
}

fn open(connection: &Connection, epoch: i64, new: &NewIncident) -> Result<Opened, ControlError> {
    let host = new.host_id.to_string();
    if let Some(number) = done_before(connection, &new.op_id)? {
        return Ok(Opened { number, new: false });
    }
    if let Some((_, number)) = current(connection, &host, &new.rule, &new.subject)? {
        return Ok(Opened { number, new: false });
    }
    if is_removed(connection, &host)? {
        // It was on its way when the host was evicted: nothing is wrong with a host that is not there.
        return Ok(Opened {
            number: 0,
            new: false,
        });
    }
    let last = last_of(connection, &host, &new.rule, &new.subject)?;
    if let Some(last) = last.as_ref().filter(|last| last.goes_on(new)) {
        return reopen(connection, epoch, last, new);
    }
    let flap = last.map(|last| last.flap).unwrap_or_default();
    let number: u32 = connection.query_row(
        "SELECT coalesce(max(number), 0) + 1 FROM incidents",
        [],
        |row| row.get(0),
    )?;
    let id = uuid_v7(new.at)?;
    connection
        .prepare_cached(
            "INSERT INTO incidents (id, number, host_id, rule, subject, severity, state, summary,
                                    opened_ms, since_ms, flap, flap_ms, flapping, epoch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            id,
            number,
            host,
            new.rule,
            new.subject,
            new.severity as i32,
            OPEN,
            new.summary,
            new.at.as_millis(),
            new.since.as_millis(),
            flap.count,
            flap.at.as_millis(),
            flap.flapping,
            epoch
        ])?;
    transition(
        connection,
        epoch,
        &id,
        OPEN,
        new.at,
        &new.evidence,
        &new.op_id,
    )?;
    leave_news(connection, epoch, number.into(), Turn::Opened)?;
    if number.is_multiple_of(LOOK_EVERY) {
        let gone = let_go(connection, new.at, KEPT_ROWS)?;
        if gone > 0 {
            tracing::info!(incidents = gone, "old resolved incidents let go");
        }
    }
    Ok(Opened {
        number: number.into(),
        new: true,
    })
}

fn is_removed(connection: &Connection, host: &str) -> Result<bool, ControlError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM hosts WHERE host_id = ?1 AND removed_ms IS NOT NULL")?
        .exists([host])?)
}

/// Resolves everything that is open on a host, for one reason; how much that was.
pub(super) fn resolve_all(
    connection: &Connection,
    epoch: i64,
    host_id: HostId,
    evidence: &str,
    now: Timestamp,
) -> Result<usize, ControlError> {
    let open: Vec<(String, String)> = connection
        .prepare_cached("SELECT rule, subject FROM incidents WHERE host_id = ?1 AND state = ?2")?
        .query_map(params![host_id.to_string(), OPEN], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<Result<_, _>>()?;
    for (rule, subject) in &open {
        let end = Resolution {
            op_id: uuid_v7(now)?,
            host_id,
            rule: rule.clone(),
            subject: subject.clone(),
            evidence: evidence.to_owned(),
            at: now,
        };
        resolve(connection, epoch, &end)?;
    }
    Ok(open.len())
}

fn resolve(
    connection: &Connection,
    epoch: i64,
    end: &Resolution,
) -> Result<Option<u64>, ControlError> {
    if done_before(connection, &end.op_id)?.is_some() {
        return Ok(None);
    }
    let host = end.host_id.to_string();
    let Some((id, number)) = current(connection, &host, &end.rule, &end.subject)? else {
        return Ok(None);
    };
    connection
        .prepare_cached(
            "UPDATE incidents SET state = ?2, resolved_ms = ?3 WHERE id = ?1 AND epoch = ?4",
        )?
        .execute(params![id, RESOLVED, end.at.as_millis(), epoch])?;
    transition(
        connection,
        epoch,
        &id,
        RESOLVED,
        end.at,
        &end.evidence,
        &end.op_id,
    )?;
    leave_news(connection, epoch, number, Turn::Cleared)?;
    Ok(Some(number))
}

/// The newest incident of a key, which is over.
struct Last {
    id: String,
    number: u64,
    severity: i32,
    resolved: Timestamp,
    acknowledged: bool,
    flap: Flap,
}

impl Last {
    /// Whether a new failure is the same incident again: it was clear for a moment only, or it flaps. What somebody
    /// had seen to is over with its clearing, and what is graver is another one.
    fn goes_on(&self, new: &NewIncident) -> bool {
        self.severity == new.severity as i32
            && !self.acknowledged
            && machine::goes_on(self.resolved, &self.flap, new.at)
    }
}

fn last_of(
    connection: &Connection,
    host: &str,
    rule: &str,
    subject: &str,
) -> Result<Option<Last>, ControlError> {
    Ok(connection
        .prepare_cached(
            "SELECT id, number, severity, resolved_ms, ack_by, flap, flap_ms, flapping FROM incidents
             WHERE host_id = ?1 AND rule = ?2 AND subject = ?3 AND resolved_ms IS NOT NULL
             ORDER BY number DESC LIMIT 1",
        )?
        .query_row([host, rule, subject], |row| {
            Ok(Last {
                id: row.get(0)?,
                number: row.get::<_, u32>(1)?.into(),
                severity: row.get(2)?,
                resolved: Timestamp::from_millis(row.get(3)?),
                acknowledged: row.get::<_, Option<String>>(4)?.is_some(),
                flap: Flap {
                    count: row.get(5)?,
                    at: Timestamp::from_millis(row.get(6)?),
                    flapping: row.get(7)?,
                },
            })
        })
        .optional()?)
}

/// What failed a moment ago fails again, under its number.
fn reopen(
    connection: &Connection,
    epoch: i64,
    last: &Last,
    new: &NewIncident,
) -> Result<Opened, ControlError> {
    connection
        .prepare_cached(
            "UPDATE incidents SET state = ?2, resolved_ms = NULL, since_ms = ?3, summary = ?4 WHERE id = ?1",
        )?
        .execute(params![last.id, OPEN, new.since.as_millis(), new.summary])?;
    transition(
        connection,
        epoch,
        &last.id,
        OPEN,
        new.at,
        &new.evidence,
        &new.op_id,
    )?;
    leave_news(connection, epoch, last.number, Turn::Opened)?;
    Ok(Opened {
        number: last.number,
        new: true,
    })
}

/// Deletes resolved incidents that are too old at `now`, or more than `kept`: those resolved first go first. How
/// many it deleted. Numbers are not given again: what was opened last is open, and stays.
fn let_go(connection: &Connection, now: Timestamp, kept: u32) -> Result<usize, ControlError> {
    let resolved: u32 = connection
        .prepare_cached(&format!(
            "SELECT count(*) FROM incidents WHERE state = {RESOLVED}"
        ))?
        .query_row([], |row| row.get(0))?;
    let mut oldest = connection.prepare_cached(&format!(
        "SELECT id, resolved_ms < ?1 FROM incidents WHERE state = {RESOLVED}
         ORDER BY resolved_ms, number LIMIT {LET_GO_AT_ONCE}"
    ))?;
    let mut transitions =
        connection.prepare_cached("DELETE FROM incident_transitions WHERE incident_id = ?1")?;
    let mut notes =
        connection.prepare_cached("DELETE FROM incident_notes WHERE incident_id = ?1")?;
    let mut incident = connection.prepare_cached("DELETE FROM incidents WHERE id = ?1")?;
    let too_many = usize::try_from(resolved.saturating_sub(kept)).unwrap_or(usize::MAX);
    let rows = oldest.query_map([now.minus(KEPT_FOR).as_millis()], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    let oldest: Vec<(String, bool)> = rows.collect::<Result<_, _>>()?;
    connection
        .prepare_cached("DELETE FROM pages WHERE closed_ms < ?1")?
        .execute([now.minus(KEPT_FOR).as_millis()])?;
    let mut gone = 0;
    for (id, too_old) in oldest {
        if !too_old && gone >= too_many {
            break;
        }
        transitions.execute([&id])?;
        notes.execute([&id])?;
        incident.execute([&id])?;
        gone += 1;
    }
    Ok(gone)
}

fn done_before(connection: &Connection, op_id: &str) -> Result<Option<u64>, ControlError> {
    Ok(connection
        .prepare_cached(
            "SELECT number FROM incidents JOIN incident_transitions ON incident_id = id
             WHERE op_id = ?1",
        )?
        .query_row([op_id], |row| Ok(row.get::<_, u32>(0)?.into()))
        .optional()?)
}

fn current(
    connection: &Connection,
    host: &str,
    rule: &str,
    subject: &str,
) -> Result<Option<(String, u64)>, ControlError> {
    Ok(connection
        .prepare_cached(&format!(
            "SELECT id, number FROM incidents
             WHERE host_id = ?1 AND rule = ?2 AND subject = ?3 AND state = {OPEN}"
        ))?
        .query_row([host, rule, subject], |row| {
            Ok((row.get(0)?, row.get::<_, u32>(1)?.into()))
        })
        .optional()?)
}

fn transition(
    connection: &Connection,
    epoch: i64,
    id: &str,
    to: i32,
    at: Timestamp,
    evidence: &str,
    op_id: &str,
) -> Result<(), ControlError> {
    connection
        .prepare_cached(
            "INSERT INTO incident_transitions (incident_id, seq, at_ms, to_state, evidence, op_id, epoch)
             SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3, ?4, ?5, ?6
             FROM incident_transitions WHERE incident_id = ?1",
        )?
        .execute(params![id, at.as_millis(), to, evidence, op_id, epoch])?;
    Ok(())
}

fn state(value: i32) -> Result<v1::IncidentState, ControlError> {
    v1::IncidentState::try_from(value).map_err(|_| ControlError::Row("incidents"))
}

fn incident(row: &Row<'_>) -> Result<Incident, ControlError> {
    let wrong = || ControlError::Row("incidents");
    let host: String = row.get("host_id")?;
    let resolved: Option<i64> = row.get("resolved_ms")?;
    Ok(Incident {
        id: row.get("id")?,
        number: row.get::<_, u32>("number")?.into(),
        host_id: host.parse().map_err(|_| wrong())?,
        rule: row.get("rule")?,
        subject: row.get("subject")?,
        severity: v1::Severity::try_from(row.get::<_, i32>("severity")?).map_err(|_| wrong())?,
        state: state(row.get("state")?)?,
        summary: row.get("summary")?,
        opened: Timestamp::from_millis(row.get("opened_ms")?),
        since: Timestamp::from_millis(row.get("since_ms")?),
        resolved: resolved.map(Timestamp::from_millis),
        ack: ack(row)?,
    })
}

fn ack(row: &Row<'_>) -> Result<Option<Ack>, ControlError> {
    let (by, at): (Option<String>, Option<i64>) = (row.get("ack_by")?, row.get("ack_ms")?);
    let (Some(by), Some(at)) = (by, at) else {
        return Ok(None);
    };
    let until: Option<i64> = row.get("ack_until_ms")?;
    Ok(Some(Ack {
        by,
        at: Timestamp::from_millis(at),
        until: until.map(Timestamp::from_millis),
        text: row
            .get::<_, Option<String>>("ack_text")?
            .unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    fn after(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    /// Opens an incident and, if it ends, resolves it; times in seconds.
    async fn happen(control: &Control, at: u64, ends: Option<u64>) {
        let (host_id, rule) = (HostId::from_bytes([1; 16]), "unit_failed".to_owned());
        let new = NewIncident {
            op_id: format!("open {at}"),
            host_id,
            rule: rule.clone(),
            subject: at.to_string(),
            severity: v1::Severity::Warning,
            summary: String::new(),
            evidence: String::new(),
            since: after(at),
            at: after(at),
        };
        control.open_incident(new).await.expect("written");
        if let Some(ends) = ends {
            let end = Resolution {
                op_id: format!("resolve {at}"),
                host_id,
                rule,
                subject: at.to_string(),
                evidence: String::new(),
                at: after(ends),
            };
            control.resolve_incident(end).await.expect("written");
        }
    }

    async fn look(control: &Control, now: Timestamp, kept: u32) -> (usize, Vec<u64>) {
        let gone = control
            .write(move |connection| let_go(connection, now, kept))
            .await
            .expect("written");
        let filter = IncidentFilter {
            all: true,
            ..IncidentFilter::default()
        };
        let (rows, _) = control.incidents(filter).await.expect("readable");
        let mut numbers: Vec<u64> = rows.iter().map(|row| row.number).collect();
        numbers.sort_unstable();
        (gone, numbers)
    }

    #[tokio::test]
    async fn what_was_resolved_first_goes_first_and_open_ones_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a new store");
        // 1 is open for ever; 2 was resolved after 3 and 4.
        happen(&control, 1, None).await;
        happen(&control, 2, Some(900)).await;
        happen(&control, 3, Some(30)).await;
        happen(&control, 4, Some(40)).await;
        happen(&control, 5, Some(1000)).await;
        assert_eq!(look(&control, START, 4).await, (0, vec![1, 2, 3, 4, 5]));
        assert_eq!(look(&control, START, 3).await, (1, vec![1, 2, 4, 5]));
        let late = after(35).plus(KEPT_FOR);
        assert_eq!(look(&control, late, 3).await, (0, vec![1, 2, 4, 5]));
        let later = after(901).plus(KEPT_FOR);
        assert_eq!(look(&control, later, 3).await, (2, vec![1, 5]));
        assert!(control.incident(2).await.expect("readable").is_none());
        happen(&control, 6, None).await;
        assert_eq!(look(&control, later, 3).await, (0, vec![1, 5, 6]));
    }

    /// What came back is the same incident, and was not open in between.
    #[tokio::test]
    async fn what_was_open_at_a_moment() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a new store");
        let step = |at: u64, opens: bool| {
            let (host_id, rule) = (HostId::from_bytes([1; 16]), "unit_failed".to_owned());
            let control = control.clone();
            async move {
                if opens {
                    let new = NewIncident {
                        op_id: format!("open {at}"),
                        host_id,
                        rule,
                        subject: String::new(),
                        severity: v1::Severity::Warning,
                        summary: String::new(),
                        evidence: String::new(),
                        since: after(at - 5),
                        at: after(at),
                    };
                    let opened = control.open_incident(new).await.expect("written");
                    assert_eq!(opened.number, 1, "one incident");
                } else {
                    let end = Resolution {
                        op_id: format!("resolve {at}"),
                        host_id,
                        rule,
                        subject: String::new(),
                        evidence: String::new(),
                        at: after(at),
                    };
                    control.resolve_incident(end).await.expect("written");
                }
            }
        };
        for (at, opens) in [(100, true), (200, false), (250, true), (400, false)] {
            step(at, opens).await;
        }
        for (at, open) in [
            (99, false),
            (100, true),
            (199, true),
            (200, false),
            (249, false),
            (250, true),
            (399, true),
            (400, false),
        ] {
            let found = control.incidents_at(after(at)).await.expect("readable");
            assert_eq!(found.len(), usize::from(open), "at {at}");
            for incident in found {
                assert_eq!(incident.state, v1::IncidentState::Open, "at {at}");
                assert_eq!(incident.resolved, None, "at {at}");
                assert!(incident.since <= after(at), "at {at}");
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_is_only_opened_into_lets_go_by_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a new store");
        happen(&control, 1, Some(2)).await;
        let years = 2 * KEPT_FOR.as_secs();
        for at in 0..u64::from(LOOK_EVERY) {
            happen(&control, years + at, None).await;
        }
        assert!(control.incident(1).await.expect("readable").is_none());
    }
}
