//! Incidents against a store in memory that can fail, and lose its answers.

use std::{convert::Infallible, io};

use muster_proto::time::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::control::{Control, Opened};

/// A row of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    key: Key,
    severity: Severity,
    since: Timestamp,
    open: bool,
}

#[derive(Debug, Default)]
struct Stored {
    rows: Vec<Row>,
    /// Operations done, and the row each acted on.
    done: BTreeMap<String, usize>,
    /// How the next operations end: `Before` they are done, or after, the answer being lost.
    faults: VecDeque<Option<Fault>>,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Before,
    AnswerLost,
}

#[derive(Clone, Default)]
struct FakeStore(Arc<Mutex<Stored>>);

impl FakeStore {
    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().expect("no test panics under the lock")
    }

    fn act<T>(&self, act: impl FnOnce(&mut Stored) -> T) -> io::Result<T> {
        let mut stored = self.lock();
        let fault = stored.faults.pop_front().flatten();
        if stored.closed || fault == Some(Fault::Before) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let answer = act(&mut stored);
        match fault {
            None => Ok(answer),
            Some(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    fn open_rows(&self) -> Vec<Row> {
        self.lock()
            .rows
            .iter()
            .filter(|row| row.open)
            .cloned()
            .collect()
    }
}

impl Stored {
    fn current(&self, key: &Key) -> Option<usize> {
        self.rows.iter().position(|row| row.open && row.key == *key)
    }
}

impl IncidentStore for FakeStore {
    type Error = io::Error;

    async fn open(&self, new: NewIncident) -> io::Result<Opened> {
        self.act(|stored| {
            let key = Key {
                host: new.host_id,
                rule: new.rule,
                subject: new.subject,
            };
            let before = stored
                .done
                .get(&new.op_id)
                .copied()
                .or_else(|| stored.current(&key));
            if let Some(row) = before {
                return Opened {
                    number: row as u64 + 1,
                    new: false,
                };
            }
            let severity = Severity::ALL
                .into_iter()
                .find(|one| one.to_wire() == new.severity);
            stored.done.insert(new.op_id, stored.rows.len());
            stored.rows.push(Row {
                key,
                severity: severity.expect("severities are of this module"),
                since: new.since,
                open: true,
            });
            Opened {
                number: stored.rows.len() as u64,
                new: true,
            }
        })
    }

    async fn resolve(&self, end: Resolution) -> io::Result<Option<u64>> {
        self.act(|stored| {
            if stored.done.contains_key(&end.op_id) {
                return None;
            }
            let key = Key {
                host: end.host_id,
                rule: end.rule,
                subject: end.subject,
            };
            let row = stored.current(&key)?;
            stored.rows[row].open = false;
            stored.done.insert(end.op_id, row);
            Some(row as u64 + 1)
        })
    }

    async fn list_open(&self, host: Option<HostId>) -> io::Result<Vec<OpenIncident>> {
        let rows = self.open_rows().into_iter();
        let rows = rows.filter(|row| host.is_none_or(|host| row.key.host == host));
        let rows = rows.map(
            |Row {
                 key,
                 severity,
                 since,
                 ..
             }| OpenIncident {
                key,
                severity,
                since,
            },
        );
        Ok(rows.collect())
    }
}

const HOST: HostId = HostId::from_bytes([7; 16]);

fn opened(subject: &str, severity: Severity, since: i64) -> Transition {
    let change = Change::Opened {
        summary: "it is full".to_owned(),
        evidence: String::new(),
    };
    change_of(subject, severity, since, since + 300, change)
}

fn cleared(subject: &str, severity: Severity, since: i64, at: i64) -> Transition {
    change_of(
        subject,
        severity,
        since,
        at,
        Change::Cleared {
            evidence: String::new(),
        },
    )
}

fn change_of(subject: &str, severity: Severity, since: i64, at: i64, change: Change) -> Transition {
    Transition {
        rule: "filesystem_full",
        subject: subject.to_owned(),
        severity,
        since: Timestamp::from_millis(since * 1000),
        at: Timestamp::from_millis(at * 1000),
        change,
    }
}

/// Carries everything, however often the store fails on the way.
async fn carry(store: &FakeStore, told: &[Transition]) -> Incidents {
    let stop = CancellationToken::new();
    let started = Incidents::start(store.clone(), stop).await;
    let (incidents, _) = started.expect("the fake can always be read");
    let carrier = Carrier {
        store: store.clone(),
        incidents: incidents.clone(),
    };
    // Few enough at once that nothing gives way.
    for batch in told.chunks(PENDING_PER_KEY / 2) {
        incidents.report(HOST, "web-01", batch.to_vec());
        while !carrier.carry_all().await {}
    }
    incidents
}

fn life() -> Vec<Transition> {
    use Severity::{Critical, Warning};
    vec![
        opened("/", Warning, 100),
        cleared("/", Warning, 100, 900),
        opened("/", Critical, 800),
        opened("/var", Warning, 850),
        cleared("/", Critical, 800, 2000),
        opened("/", Warning, 3000),
    ]
}

#[tokio::test]
async fn what_is_reported_is_stored_in_order() {
    let store = FakeStore::default();
    let incidents = carry(&store, &life()).await;
    let rows: Vec<_> = store
        .lock()
        .rows
        .iter()
        .map(|row| (row.key.subject.clone(), row.open))
        .collect();
    let expected =
        [("/", false), ("/", false), ("/", true), ("/var", true)].map(|(s, o)| (s.to_owned(), o));
    let mut sorted = rows;
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!(incidents.open_count(HOST), 2);
    assert_eq!(incidents.open_count(HostId::from_bytes([8; 16])), 0);
    assert_eq!(
        incidents.open_by_severity(HOST).map(|(_, count)| count),
        [0, 2, 0]
    );
    assert_eq!(incidents.totals().waiting, 0);
}

#[tokio::test]
async fn a_full_disk_forgets_nothing_and_blocks_nobody() {
    let store = FakeStore::default();
    let stop = CancellationToken::new();
    let started = Incidents::start(store.clone(), stop).await;
    let (incidents, _) = started.expect("the fake can always be read");
    let carrier = Carrier {
        store: store.clone(),
        incidents: incidents.clone(),
    };
    store.lock().closed = true;
    // A unit that fails and recovers all night, and one filesystem that stays full.
    for night in 0..1000 {
        let since = night * 100;
        let flap = vec![
            opened("/", Severity::Warning, since),
            cleared("/", Severity::Warning, since, since + 400),
        ];
        incidents.report(HOST, "web-01", flap);
        assert!(night % 100 != 0 || !carrier.carry_all().await);
    }
    incidents.report(HOST, "web-01", vec![opened("/var", Severity::Critical, 5)]);
    incidents.report(
        HOST,
        "web-01",
        vec![opened("/", Severity::Warning, 999_999)],
    );
    let kept = incidents
        .lock()
        .pending
        .values()
        .map(|one| one.transitions.len())
        .max();
    assert!(kept <= Some(PENDING_PER_KEY), "{kept:?}");
    assert!(incidents.totals().superseded > 0);

    store.lock().closed = false;
    assert!(carrier.carry_all().await);
    let open: Vec<_> = store
        .open_rows()
        .into_iter()
        .map(|row| (row.key.subject, row.since))
        .collect();
    assert!(open.contains(&("/var".to_owned(), Timestamp::from_millis(5_000))));
    assert!(open.contains(&("/".to_owned(), Timestamp::from_millis(999_999_000))));
    assert_eq!(open.len(), 2);
}

#[tokio::test]
async fn a_host_with_ever_new_subjects_does_not_fill_memory_while_the_store_is_closed() {
    let store = FakeStore::default();
    let incidents = carry(&store, &[opened("/", Severity::Warning, 1)]).await;
    store.lock().closed = true;
    incidents.report(HOST, "web-01", vec![cleared("/", Severity::Warning, 1, 2)]);
    let other = HostId::from_bytes([8; 16]);
    incidents.report(other, "web-02", vec![opened("/", Severity::Warning, 3)]);
    for at in 0..10_000 {
        let subject = format!("/made-up/{at}");
        let flap = vec![
            opened(&subject, Severity::Warning, at),
            cleared(&subject, Severity::Warning, at, at + 400),
        ];
        incidents.report(HOST, "web-01", flap);
        // The fault of each attempt leaves what it carried where it can give way.
        if at % 1000 == 0 {
            let carrier = Carrier {
                store: store.clone(),
                incidents: incidents.clone(),
            };
            assert!(!carrier.carry_all().await);
        }
        assert!(incidents.totals().waiting <= PENDING_PER_HOST as u64 + 1);
    }
    incidents.report(HOST, "web-01", vec![opened("/var", Severity::Warning, 5)]);
    assert!(incidents.totals().superseded > 18_000);
    store.lock().closed = false;
    let carrier = Carrier {
        store: store.clone(),
        incidents,
    };
    assert!(carrier.carry_all().await);
    let open = store.open_rows().into_iter();
    let mut open: Vec<_> = open.map(|row| (row.key.host, row.key.subject)).collect();
    open.sort();
    let expected = [(HOST, "/var".to_owned()), (other, "/".to_owned())];
    assert_eq!(open, expected, "what holds in the end is stored");
}

#[tokio::test(start_paused = true)]
async fn the_task_tries_again_by_itself_and_stores_what_waits_at_the_end() {
    let store = FakeStore::default();
    let stop = CancellationToken::new();
    let started = Incidents::start(store.clone(), stop.clone()).await;
    let (incidents, task) = started.expect("the fake can always be read");
    let task = tokio::spawn(task);
    store.lock().closed = true;
    incidents.report(HOST, "web-01", vec![opened("/", Severity::Warning, 1)]);
    time::sleep(Duration::from_secs(100)).await;
    assert!(incidents.totals().failures >= 3);
    assert_eq!(incidents.waiting_for(), Some(Duration::from_secs(100)));
    store.lock().closed = false;
    time::sleep(RETRY_MAX).await;
    assert_eq!(store.open_rows().len(), 1);
    assert_eq!(incidents.waiting_for(), None);
    incidents.report(HOST, "web-01", vec![cleared("/", Severity::Warning, 1, 2)]);
    stop.cancel();
    task.await.expect("the task does not panic");
    assert_eq!(store.open_rows().len(), 0);
}

#[tokio::test]
async fn what_was_open_before_a_restart_is_known_after_it() {
    let store = FakeStore::default();
    carry(&store, &life()).await;
    let after = carry(&store, &[]).await;
    let open = after.open_on(HOST);
    assert_eq!(open.len(), 2);
    assert_eq!(
        (open[0].subject.as_str(), open[0].since),
        ("/", Timestamp::from_millis(3_000_000))
    );
    assert_eq!(open[0].severity, Severity::Warning);
}

#[tokio::test]
async fn the_control_store_holds_them_over_a_restart() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    for told in [&life()[..], &life()[2..], &[]] {
        let control = Control::open(folder.path()).expect("the folder is ours");
        let started = Incidents::start(control.clone(), CancellationToken::new()).await;
        let (incidents, _) = started.expect("the database is sound");
        let carrier = Carrier {
            store: control.clone(),
            incidents: incidents.clone(),
        };
        for batch in told.chunks(2) {
            incidents.report(HOST, "web-01", batch.to_vec());
            assert!(carrier.carry_all().await);
        }
        let filter = crate::control::IncidentFilter {
            all: true,
            ..Default::default()
        };
        let (rows, _) = control.incidents(filter).await.expect("it can be read");
        let mut rows: Vec<_> = rows
            .into_iter()
            .map(|row| {
                (
                    row.subject,
                    row.since.as_millis() / 1000,
                    row.resolved.is_none(),
                )
            })
            .collect();
        rows.sort();
        let row = |subject: &str, since, open| (subject.to_owned(), since, open);
        assert_eq!(
            rows,
            [
                row("/", 100, false),
                row("/", 800, false),
                row("/", 3000, true),
                row("/var", 850, true),
            ]
        );
        assert_eq!(incidents.open_count(HOST), 2);
    }
}

/// A history that a detector could tell: openings and clearings in turn, each opening known by its time.
fn history() -> impl Strategy<Value = Vec<Transition>> {
    let subject = prop::sample::select(vec!["/", "/var", "/srv"]);
    let severity = prop::sample::select(Severity::ALL.to_vec());
    prop::collection::vec((subject, severity), 1..30).prop_map(|steps| {
        let mut open: BTreeMap<&str, (Severity, i64)> = BTreeMap::new();
        let mut told = Vec::new();
        for ((subject, severity), at) in steps.into_iter().zip((1000..).step_by(1000)) {
            match open.remove(subject) {
                Some((severity, since)) => told.push(cleared(subject, severity, since, at)),
                None => {
                    open.insert(subject, (severity, at));
                    told.push(opened(subject, severity, at));
                }
            }
        }
        told
    })
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop::sample::select(vec![None, Some(Fault::Before), Some(Fault::AnswerLost)])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Faults, lost answers, and a kill after which the log tells again from `from` to the end: the store
    /// holds what it would hold without them, each incident once.
    #[test]
    fn a_replay_changes_nothing(
        told in history(),
        faults in prop::collection::vec(fault(), 0..40),
        from in any::<prop::sample::Index>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a runtime without drivers needs nothing");
        runtime.block_on(async {
            let plain = FakeStore::default();
            carry(&plain, &told).await;
            let mut plain: Vec<Row> = plain.lock().rows.clone();

            let store = FakeStore::default();
            store.lock().faults = faults.into();
            carry(&store, &told).await;
            let again = carry(&store, &told[from.index(told.len())..]).await;
            let mut rows: Vec<Row> = store.lock().rows.clone();
            let order = |row: &Row| (row.key.clone(), row.since);
            plain.sort_by_key(order);
            rows.sort_by_key(order);
            assert_eq!(rows, plain);

            let mut keys: Vec<Key> = store.open_rows().into_iter().map(|row| row.key).collect();
            assert_eq!(again.open_count(HOST) as usize, keys.len());
            keys.sort();
            keys.dedup();
            assert_eq!(again.open_count(HOST) as usize, keys.len(), "one open for each key");
            Ok::<_, Infallible>(())
        }).expect("nothing in there fails but by assertion");
    }
}
