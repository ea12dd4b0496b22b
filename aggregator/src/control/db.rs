//! The database file: opening, migrating, the writing thread, the reading connection.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use muster_proto::{owner, time::Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

/// A line of the audit log inside a write: actor, action, subject, outcome.
pub(super) use super::audit::append as audit;
use super::{ControlError, SharedSqlError, audit::chain_old_lines, refusals::Refusals};

const FILE: &str = "control.db";

/// Applied in order; the position of the last one, from 1, is `user_version`.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/001_begin.sql"),
    include_str!("migrations/002_renewal.sql"),
    include_str!("migrations/003_denied.sql"),
    include_str!("migrations/004_identity.sql"),
    include_str!("migrations/005_acks.sql"),
    include_str!("migrations/009_pages.sql"),
    include_str!("migrations/010_joining.sql"),
    include_str!("migrations/012_paging.sql"),
    include_str!("migrations/013_doubts.sql"),
    include_str!("migrations/014_turns.sql"),
    include_str!("migrations/015_readers.sql"),
    include_str!("migrations/016_joined.sql"),
];

/// How long to wait for another process that writes (`token create`).
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// Writes that may wait; more callers wait for a place.
const WAITING: usize = 1024;

/// Writes in one transaction: bounds how long the first of them waits for its answer.
const BATCH: usize = 256;

type Answer = Box<dyn FnOnce(Result<(), ControlError>) + Send>;
/// Given the connection inside a transaction, or why there is none.
type Job = Box<dyn FnOnce(Result<&Connection, ControlError>) -> Answer + Send>;

/// The control state; clones share it.
#[derive(Clone)]
pub struct Control {
    jobs: mpsc::Sender<Job>,
    reader: Arc<Mutex<Connection>>,
    /// The file.
    pub(super) path: Arc<Path>,
    pub(super) epoch: i64,
    pub(super) refusals: Refusals,
    /// Everything is done on `reader` by whoever asks.
    at_once: bool,
}

impl Control {
    /// Opens or makes `<state>/control.db`, bringing an older version up to date.
    ///
    /// # Errors
    /// When it cannot be opened, or is of a newer version, which stays untouched.
    pub fn open(state: &Path) -> Result<Self, ControlError> {
        let path = state.join(FILE);
        let opened = |error: rusqlite::Error| ControlError::Open {
            path: path.clone(),
            source: SharedSqlError(Arc::new(error)),
        };
        make(&path, state)
            .map_err(|error| opened(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        let mut writer = Connection::open(&path).map_err(opened)?;
        migrate(&mut writer, &path).map_err(|error| match error {
            Migration::Newer { found } => ControlError::Newer {
                path: path.clone(),
                found,
                known: known_version(),
            },
            Migration::Sql(error) => opened(error),
        })?;
        let epoch = read_epoch(&writer).map_err(opened)?;
        let reader = Connection::open(&path).map_err(opened)?;
        reader.busy_timeout(BUSY).map_err(opened)?;
        reader
            .pragma_update(None, "query_only", true)
            .map_err(opened)?;

        let (jobs, waiting) = mpsc::channel(WAITING);
        thread::Builder::new()
            .name("control-writer".to_owned())
            .spawn(move || write_all(&writer, waiting))
            .map_err(|error| opened(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        Ok(Self {
            jobs,
            reader: Arc::new(Mutex::new(reader)),
            path: path.into(),
            epoch,
            refusals: Refusals::default(),
            at_once: false,
        })
    }

    /// A store in memory whose calls are done when they return, by whoever makes them: for simulations, in which a
    /// thread would be a matter of chance.
    ///
    /// # Errors
    /// When SQLite cannot make it.
    pub fn in_memory() -> Result<Self, ControlError> {
        let path = Path::new(":memory:");
        let opened = |error: rusqlite::Error| ControlError::Open {
            path: path.to_owned(),
            source: SharedSqlError(Arc::new(error)),
        };
        let mut connection = Connection::open_in_memory().map_err(opened)?;
        migrate(&mut connection, path).map_err(|error| match error {
            Migration::Newer { found } => ControlError::Newer {
                path: path.to_owned(),
                found,
                known: known_version(),
            },
            Migration::Sql(error) => opened(error),
        })?;
        let epoch = read_epoch(&connection).map_err(opened)?;
        Ok(Self {
            jobs: mpsc::channel(1).0,
            reader: Arc::new(Mutex::new(connection)),
            path: path.into(),
            epoch,
            refusals: Refusals::default(),
            at_once: true,
        })
    }

    fn locked(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the writing thread, inside the transaction of its batch; answers after the commit. When
    /// `work` fails, what it wrote is undone and the rest of the batch stands.
    pub(super) async fn write<T, W>(&self, work: W) -> Result<T, ControlError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, ControlError> + Send + 'static,
    {
        if self.at_once {
            return in_savepoint(&self.locked(), work);
        }
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let outcome = connection.and_then(|connection| in_savepoint(connection, work));
            Box::new(move |committed| {
                // The caller may have gone away; the write stands all the same.
                let _gone = answer.send(committed.and(outcome));
            })
        });
        self.jobs
            .send(job)
            .await
            .map_err(|_| ControlError::Closed)?;
        answered.await.map_err(|_| ControlError::Closed)?
    }

    /// Runs `work` on the reading connection, off the runtime.
    pub(super) async fn read<T, W>(&self, work: W) -> Result<T, ControlError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, ControlError> + Send + 'static,
    {
        if self.at_once {
            return work(&self.locked());
        }
        let reader = Arc::clone(&self.reader);
        let done = tokio::task::spawn_blocking(move || {
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            work(&connection)
        });
        done.await.map_err(|_| ControlError::Closed)?
    }
}

fn read_epoch(connection: &Connection) -> rusqlite::Result<i64> {
    let epoch = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'epoch'";
    connection.query_row(epoch, [], |row| row.get(0))
}

/// Makes the file if there is none, for the owner of the state folder: SQLite gives the files beside it to whom the
/// database belongs, when root opens it. Never opens one that is there, as closing it would end SQLite's locks.
fn make(path: &Path, state: &Path) -> io::Result<()> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(file) => owner::give_file(&file, state),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// A new UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds, then random bits.
pub(super) fn uuid_v7(at: Timestamp) -> Result<String, ControlError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ControlError::Random)?;
    bytes[..6].copy_from_slice(&at.as_millis().to_be_bytes()[2..]);
    bytes[6] = bytes[6] & 0x0f | 0x70;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = muster_proto::spiffe::hex(&bytes);
    Ok(format!(
        "{}-{}-{}-{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..]
    ))
}

fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    connection.execute_batch("SAVEPOINT job")?;
    let outcome = work(connection);
    if outcome.is_err() {
        connection.execute_batch("ROLLBACK TO job")?;
    }
    connection.execute_batch("RELEASE job")?;
    outcome
}

fn write_all(connection: &Connection, mut waiting: mpsc::Receiver<Job>) {
    while let Some(first) = waiting.blocking_recv() {
        let begun = connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(ControlError::from);
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            answers.push(job(begun
                .as_ref()
                .map(|()| connection)
                .map_err(Clone::clone)));
            next = if answers.len() < BATCH {
                waiting.try_recv().ok()
            } else {
                None
            };
        }
        let committed = begun.and_then(|()| Ok(connection.execute_batch("COMMIT")?));
        if let Err(error) = &committed {
            tracing::error!(
                error = crate::chain(error),
                writes = answers.len(),
                "control writes were refused"
            );
            if !connection.is_autocommit()
                && let Err(error) = connection.execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "the failed transaction cannot be undone");
            }
        }
        for answer in answers {
            answer(committed.clone());
        }
    }
}

enum Migration {
    Newer { found: i64 },
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Migration {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Whether the audit log was a chain before this program touched it: only then are its lines left as they are.
fn has_chain(connection: &Connection) -> rusqlite::Result<bool> {
    connection
        .prepare("SELECT 1 FROM pragma_table_info('audit') WHERE name = 'hash'")?
        .exists([])
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Migration> {
    connection.busy_timeout(BUSY)?;
    // Looked at before anything is written, even the journal's mode.
    let version = |connection: &Connection| {
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
    };
    let found = version(connection)?;
    if found > known_version() {
        return Err(Migration::Newer { found });
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Again, because another process may have been faster.
    let found = version(&transaction)?;
    let done = usize::try_from(found).unwrap_or(0);
    let chained = has_chain(&transaction)?;
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(migration)?;
    }
    if !chained {
        chain_old_lines(&transaction)?;
    }
    if found < known_version() {
        transaction.pragma_update(None, "user_version", known_version())?;
        tracing::info!(path = %path.display(), from = found, to = known_version(), "control database migrated");
    }
    transaction.commit()?;
    Ok(())
}
