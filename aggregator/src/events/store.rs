//! The tables of events and recordings: `<state>/events.db`, SQLite.
//!
//! Pure over a connection: no threads, no clocks. An event is known by (host, incarnation, frame, place in the
//! frame), so that what comes again, from an agent or from the log, changes nothing. What is too old or too
//! much is dropped oldest first. A file that is damaged is set aside and begun anew: the events of frames that
//! no checkpoint covers come again from the log.
//!
//! | table | row | dropped |
//! | --- | --- | --- |
//! | `event` | one event, 200 to 550 bytes with its indexes | by age, then by size |
//! | `recording` | one answer of a flight recorder | by age; the oldest at half of the size |
//! | `recording_part` | one part of it, up to 96 KiB | with its recording |

use std::{
    collections::HashSet,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::{
    id::{HostId, Incarnation},
    limits, owner,
    time::Timestamp,
    v1,
};
use prost::Message as _;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params, params_from_iter};

/// Name of the file in the state folder.
pub const FILE: &str = "events.db";

/// Written as `user_version`.
const VERSION: i64 = 1;

/// The one version there is.
const SCHEMA: &str = include_str!("schema.sql");

/// How long to wait for another process that reads.
const BUSY: Duration = Duration::from_secs(5);

/// Hosts that are looked up one by one; of more, all rows are looked at.
const MAX_NAMED: usize = 64;

/// Rows that one question looks at, at most, whether they are chosen or not: below a second.
pub const MAX_SCANNED: usize = 500_000;

/// Why events cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// Made by a newer aggregator; it was not touched.
    #[error("{path} has version {found}, this program knows {VERSION}: it was left untouched, install the newer aggregator again", path = path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// The file cannot be made or opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file cannot be made.
    #[error("cannot make {}", path.display())]
    Make {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A question or a write failed.
    #[error("the store of events failed")]
    Sql(#[from] rusqlite::Error),
    /// The store is shutting down.
    #[error("the store of events is closed")]
    Closed,
}

/// Bounds of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// Most bytes on disk; recordings take at most half of them.
    pub max_bytes: u64,
    /// Older ones are dropped.
    pub max_age: Duration,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            max_bytes: 512 << 20,
            max_age: Duration::from_secs(90 * 86_400),
        }
    }
}

/// One event on its way into the store.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Whose certificate the frame came with.
    pub host: HostId,
    /// Life of the agent.
    pub incarnation: Incarnation,
    /// Number of the frame.
    pub seq: u64,
    /// Place in the frame.
    pub place: usize,
    /// When this aggregator received the frame.
    pub received: Timestamp,
    /// Whether it was held on the host.
    pub late: bool,
    /// What happened.
    pub event: v1::Event,
}

/// An event that is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// In the order received.
    pub number: i64,
    /// On which host.
    pub host: HostId,
    /// When this aggregator received it.
    pub received: Timestamp,
    /// Whether it was held on the host.
    pub late: bool,
    /// What happened.
    pub event: v1::Event,
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Of these hosts; `None` for all.
    pub hosts: Option<Vec<HostId>>,
    /// `v1::EventKind`; empty for all.
    pub kinds: Vec<i32>,
    /// Not before, by the host's time.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Received after this one.
    pub after: Option<i64>,
    /// Most rows.
    pub limit: usize,
    /// From the newest back; else on from `after`.
    pub newest: bool,
}

impl Choice {
    /// Whether it asks for a time. Then the newest are those that happened last, not those received last: that a host
    /// told late what happened long ago is no reason to look at all that came since.
    fn is_of_a_time(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// Where an event stands among those that are chosen.
    fn place(&self, kept: &Kept) -> (i64, i64) {
        match self.newest && self.is_of_a_time() {
            true => (kept.event.at_ms, kept.number),
            false => (kept.number, 0),
        }
    }
}

/// What a question gave.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order received.
    pub events: Vec<Kept>,
    /// There are more, received before the first of these.
    pub more: bool,
    /// Not all that is kept was looked at: of the newest, only those from this moment on, by the host's time.
    pub cut_short: Option<Timestamp>,
    /// If there is more, or not all was looked at: from the oldest on, all up to this one is here.
    pub upto: Option<i64>,
}

/// A recording that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRecording {
    /// Names it.
    pub number: i64,
    /// Whose it is.
    pub host: HostId,
    /// When the agent was asked.
    pub asked: Timestamp,
    /// First round.
    pub from: Timestamp,
    /// Last round.
    pub to: Timestamp,
    /// Parts it has.
    pub parts: u32,
    /// Of these, here.
    pub parts_here: u32,
    /// Size of these.
    pub bytes: u64,
}

/// Opens or makes the database for writing; a damaged one is set aside.
///
/// # Errors
/// When the folder or the file cannot be used, or is of a newer version, which stays untouched.
pub fn open(state: &Path) -> Result<Connection, EventsError> {
    let path = state.join(FILE);
    match open_whole(&path, state) {
        Err(EventsError::Open { source, .. }) if is_damage(&source) => {
            tracing::error!(path = %path.display(), error = %source, "the store of events is damaged; it is set aside and begun anew");
            for suffix in ["", "-wal", "-shm"] {
                let beside = |end: &str| state.join(format!("{FILE}{end}{suffix}"));
                // What is not there need not be moved; what cannot be moved fails below.
                let _ = std::fs::rename(beside(""), beside(".damaged"));
            }
            open_whole(&path, state)
        }
        other => other,
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn open_whole(path: &Path, state: &Path) -> Result<Connection, EventsError> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let made = match made {
        Ok(file) => owner::give_file(&file, state),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    made.map_err(|source| EventsError::Make {
        path: path.to_owned(),
        source,
    })?;
    let failed = |source| EventsError::Open {
        path: path.to_owned(),
        source,
    };
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed)?;
    if found > VERSION {
        return Err(EventsError::Newer {
            path: path.to_owned(),
            found,
        });
    }
    prepare(&connection, found).map_err(failed)?;
    Ok(connection)
}

fn prepare(connection: &Connection, found: i64) -> rusqlite::Result<()> {
    if found == 0 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit need not be on disk before a checkpoint covers its frames; `sync` sees to that.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    if found == 0 {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT"
        ))?;
    }
    // Not of version 1 from the start; a program that does not know them is not disturbed by them.
    connection.execute_batch(
        "CREATE INDEX IF NOT EXISTS event_at ON event (at_ms);
         CREATE INDEX IF NOT EXISTS event_of_host_at ON event (host, at_ms);",
    )?;
    // Reads the first pages of each table: damage shows now, where it can be answered.
    for table in ["event", "recording"] {
        connection.query_row(&format!("SELECT max(number) FROM {table}"), [], |_| Ok(()))?;
    }
    Ok(())
}

/// Opens the database a second time, for reading.
///
/// # Errors
/// When it cannot be opened.
pub fn open_reader(state: &Path) -> Result<Connection, EventsError> {
    let path = state.join(FILE);
    let opened = Connection::open(&path).and_then(|connection| {
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    });
    opened.map_err(|source| EventsError::Open { path, source })
}

/// Keeps an event; false if it was kept before.
///
/// # Errors
/// When it cannot be written.
pub fn add(connection: &Connection, new: &NewEvent) -> rusqlite::Result<bool> {
    let added = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO event
             (host, incarnation, seq, place, received_ms, at_ms, kind, late, event)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            &new.host.as_bytes()[..],
            new.incarnation.0.cast_signed(),
            new.seq.cast_signed(),
            i64::try_from(new.place).unwrap_or(i64::MAX),
            new.received.as_millis(),
            new.event.at_ms,
            new.event.kind,
            new.late,
            new.event.encode_to_vec(),
        ])?;
    Ok(added == 1)
}

/// Keeps a part of a recording; false if it was kept before, or makes no sense.
///
/// # Errors
/// When it cannot be written.
pub fn add_part(
    connection: &Connection,
    host: HostId,
    received: Timestamp,
    part: &v1::RecordingPart,
) -> rusqlite::Result<bool> {
    let plausible = part.number < part.parts && part.parts <= limits::MAX_RECORDING_PARTS;
    if !plausible {
        return Ok(false);
    }
    let host = &host.as_bytes()[..];
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO recording (host, asked_ms, from_ms, to_ms, parts, received_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            host,
            part.asked_ms,
            part.from_ms,
            part.to_ms,
            part.parts,
            received.as_millis()
        ])?;
    let added = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO recording_part (recording, part, bytes)
             SELECT number, ?3, ?4 FROM recording
             WHERE host = ?1 AND asked_ms = ?2 AND parts = ?5",
        )?
        .execute(params![
            host,
            part.asked_ms,
            part.number,
            part.encode_to_vec(),
            part.parts
        ])?;
    Ok(added == 1)
}

/// The number of the newest event; 0 without one.
///
/// # Errors
/// When it cannot be read.
pub fn newest(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT coalesce(max(number), 0) FROM event", [], |row| {
        row.get(0)
    })
}

/// The events that are chosen.
///
/// # Errors
/// When they cannot be read.
pub fn find(connection: &Connection, choice: &Choice) -> rusqlite::Result<Found> {
    let Some(hosts) = &choice.hosts else {
        return scan(connection, choice, None, &|_| true, MAX_SCANNED);
    };
    let hosts: HashSet<HostId> = hosts.iter().copied().collect();
    if hosts.len() > MAX_NAMED {
        let among = |host: &HostId| hosts.contains(host);
        return scan(connection, choice, None, &among, MAX_SCANNED);
    }
    // Each by the index, then put together: a database that sorts them looks at all their rows first.
    let mut all = Found::default();
    let share = MAX_SCANNED / hosts.len().max(1);
    for host in hosts {
        let found = scan(connection, choice, Some(host), &|_| true, share)?;
        all.events.extend(found.events);
        all.more |= found.more;
        // Where nothing was cut short, all was looked at.
        all.cut_short = all.cut_short.max(found.cut_short);
        all.upto = [all.upto, found.upto].into_iter().flatten().min();
    }
    all.events.sort_by_key(|kept| choice.place(kept));
    if let Some(upto) = all.upto.filter(|_| !choice.newest) {
        // Of one host there may be more before what is here of another.
        all.events.retain(|kept| kept.number <= upto);
    }
    if all.events.len() > choice.limit {
        all.more = true;
        if choice.newest {
            all.events.drain(..all.events.len() - choice.limit);
        } else {
            all.events.truncate(choice.limit);
            all.upto = all.events.last().map(|kept| kept.number);
        }
    }
    all.events.sort_by_key(|kept| kept.number);
    Ok(all)
}

/// Rows of a host, of all without one, in order; what they must be is looked at here, so that each row counts.
fn scan(
    connection: &Connection,
    choice: &Choice,
    host: Option<HostId>,
    chosen: &dyn Fn(&HostId) -> bool,
    most: usize,
) -> rusqlite::Result<Found> {
    // Which index is said: one that does not give the order would have all rows looked at to sort them.
    let (index, order) = match (choice.newest, choice.is_of_a_time(), host) {
        (true, true, None) => ("INDEXED BY event_at", "at_ms DESC, number DESC"),
        (true, true, Some(_)) => ("INDEXED BY event_of_host_at", "at_ms DESC, number DESC"),
        (true, false, Some(_)) => ("INDEXED BY event_of_host", "number DESC"),
        (false, _, Some(_)) => ("INDEXED BY event_of_host", "number"),
        (true, false, None) => ("NOT INDEXED", "number DESC"),
        (false, _, None) => ("NOT INDEXED", "number"),
    };
    let of_host = if host.is_some() { "AND host = ?4" } else { "" };
    let sql = format!(
        "SELECT number, host, received_ms, late, event, kind, at_ms FROM event {index}
         WHERE number > ?1 AND at_ms BETWEEN ?2 AND ?3 {of_host} ORDER BY {order}"
    );
    let mut values: Vec<rusqlite::types::Value> = vec![
        choice.after.unwrap_or(0).into(),
        choice.since.map_or(i64::MIN, Timestamp::as_millis).into(),
        choice.until.map_or(i64::MAX, Timestamp::as_millis).into(),
    ];
    values.extend(host.map(|host| host.as_bytes().to_vec().into()));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut found = Found::default();
    let (mut scanned, mut before) = (0, choice.after.unwrap_or(0));
    let mut at = None;
    while let Some(row) = rows.next()? {
        scanned += 1;
        if scanned > most {
            found.cut_short = Some(at.unwrap_or(choice.until.unwrap_or_default()));
            found.upto = Some(before);
            break;
        }
        let number = row.get(0)?;
        let kind: i32 = row.get(5)?;
        at = Some(Timestamp::from_millis(row.get(6)?));
        let of_kind = choice.kinds.is_empty() || choice.kinds.contains(&kind);
        if of_kind && let Some(kept) = kept(row)?.filter(|kept| chosen(&kept.host)) {
            if found.events.len() == choice.limit {
                found.more = true;
                found.upto = Some(before);
                break;
            }
            found.events.push(kept);
        }
        before = number;
    }
    found.events.sort_by_key(|kept| kept.number);
    Ok(found)
}

/// `None` for a row that another program wrote.
fn kept(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Kept>> {
    let host = row.get_ref(1)?.as_blob().unwrap_or_default();
    let event = row.get_ref(4)?.as_blob().unwrap_or_default();
    let (Ok(host), Ok(event)) = (HostId::from_slice(host), v1::Event::decode(event)) else {
        return Ok(None);
    };
    Ok(Some(Kept {
        number: row.get(0)?,
        host,
        received: Timestamp::from_millis(row.get(2)?),
        late: row.get(3)?,
        event,
    }))
}

/// Recordings of a host (of all without one) that overlap these moments, newest first.
///
/// # Errors
/// When they cannot be read.
pub fn recordings(
    connection: &Connection,
    host: Option<HostId>,
    between: (Option<Timestamp>, Option<Timestamp>),
    limit: usize,
) -> rusqlite::Result<Vec<KeptRecording>> {
    let mut statement = connection.prepare_cached(&format!(
        "{RECORDING} WHERE (?1 IS NULL OR host = ?1) AND to_ms >= ?2 AND from_ms <= ?3
         GROUP BY number ORDER BY number DESC LIMIT ?4"
    ))?;
    let rows = statement.query_map(
        params![
            host.map(|host| host.as_bytes().to_vec()),
            between.0.map_or(i64::MIN, Timestamp::as_millis),
            between.1.map_or(i64::MAX, Timestamp::as_millis),
            i64::try_from(limit).unwrap_or(i64::MAX),
        ],
        recording_row,
    )?;
    Ok(rows
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

const RECORDING: &str = "SELECT number, host, asked_ms, from_ms, to_ms, parts, count(part), coalesce(sum(length(bytes)), 0)
     FROM recording LEFT JOIN recording_part ON recording = number";

fn recording_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<KeptRecording>> {
    let Ok(host) = HostId::from_slice(row.get_ref(1)?.as_blob().unwrap_or_default()) else {
        return Ok(None);
    };
    Ok(Some(KeptRecording {
        number: row.get(0)?,
        host,
        asked: Timestamp::from_millis(row.get(2)?),
        from: Timestamp::from_millis(row.get(3)?),
        to: Timestamp::from_millis(row.get(4)?),
        parts: row.get(5)?,
        parts_here: row.get(6)?,
        bytes: row.get::<_, i64>(7)?.unsigned_abs(),
    }))
}

/// A recording with its parts in order; `None` if there is none of this number.
///
/// # Errors
/// When it cannot be read.
pub fn recording(
    connection: &Connection,
    number: i64,
) -> rusqlite::Result<Option<(KeptRecording, Vec<v1::RecordingPart>)>> {
    let row = connection
        .prepare_cached(&format!("{RECORDING} WHERE number = ?1 GROUP BY number"))?
        .query_row([number], recording_row)
        .optional()?
        .flatten();
    let Some(row) = row else {
        return Ok(None);
    };
    let mut statement = connection
        .prepare_cached("SELECT bytes FROM recording_part WHERE recording = ?1 ORDER BY part")?;
    let parts = statement.query_map([number], |row| row.get::<_, Vec<u8>>(0))?;
    let mut decoded = Vec::new();
    for bytes in parts {
        // What another program wrote is left out.
        decoded.extend(v1::RecordingPart::decode(&*bytes?).ok());
    }
    Ok(Some((row, decoded)))
}

/// Drops what is too old or too much; how many events and recordings went.
///
/// # Errors
/// When it cannot be written.
pub fn prune(
    connection: &Connection,
    limits: &EventLimits,
    now: Timestamp,
) -> rusqlite::Result<(usize, usize)> {
    let before = now.minus(limits.max_age).as_millis();
    let mut events = connection.execute("DELETE FROM event WHERE received_ms < ?1", [before])?;
    let mut recordings =
        connection.execute("DELETE FROM recording WHERE received_ms < ?1", [before])?;
    let recorded = |connection: &Connection| {
        connection.query_row(
            "SELECT coalesce(sum(length(bytes)), 0) FROM recording_part",
            [],
            |row| row.get::<_, i64>(0),
        )
    };
    while recorded(connection)?.unsigned_abs() > limits.max_bytes / 2 {
        let dropped = connection.execute(
            "DELETE FROM recording WHERE number = (SELECT min(number) FROM recording)",
            [],
        )?;
        if dropped == 0 {
            break;
        }
        recordings += dropped;
    }
    while used_bytes(connection)? > limits.max_bytes {
        // A twentieth at a time: what is dropped for size is not asked for again with each batch.
        let dropped = connection.execute(
            "DELETE FROM event WHERE number IN
             (SELECT number FROM event ORDER BY number LIMIT 1 + (SELECT count(*) FROM event) / 20)",
            [],
        )?;
        if dropped == 0 {
            break;
        }
        events += dropped;
    }
    if events + recordings > 0 {
        connection.execute_batch("PRAGMA incremental_vacuum")?;
    }
    Ok((events, recordings))
}

/// Bytes in use, free pages left out.
///
/// # Errors
/// When it cannot be read.
pub fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = pragma("page_count")? - pragma("freelist_count")?;
    Ok((pages * pragma("page_size")?).unsigned_abs())
}

/// Brings what was committed to the disk, whatever the machine does next.
///
/// # Errors
/// When the disk refuses.
pub fn sync(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
