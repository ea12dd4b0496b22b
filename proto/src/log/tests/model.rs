//! Random use of a log, crashes included, against a plain map of what was appended.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Append {
        kind: u8,
        len: usize,
    },
    Commit,
    Flush,
    /// The process ends and starts; nothing is lost but what was in memory.
    Restart,
    /// The power goes.
    Crash {
        seed: u64,
    },
    /// Part of what is there, in 255ths.
    Release {
        part: u8,
    },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (any::<u8>(), 0..150_usize).prop_map(|(kind, len)| Action::Append { kind, len }),
        4 => Just(Action::Commit),
        4 => Just(Action::Flush),
        1 => Just(Action::Restart),
        2 => any::<u64>().prop_map(|seed| Action::Crash { seed }),
        1 => any::<u8>().prop_map(|part| Action::Release { part }),
    ]
}

/// What must be true of the log, kept as simply as it can be said.
#[derive(Default)]
struct Model {
    /// What was appended last under each number.
    appended: BTreeMap<u64, (u8, Vec<u8>)>,
    /// Highest number reported durable or read after a start.
    known: u64,
    /// Everything below may be gone.
    released: u64,
}

impl Model {
    /// All that is kept is what was appended, once, in order, and nothing reported durable is missing.
    fn check(&self, log: &Log<FaultyStorage>) {
        let mut last = 0;
        let mut read = Vec::new();
        for record in log.read_from(1).filter_map(Result::ok) {
            assert!(record.number > last, "{} after {last}", record.number);
            last = record.number;
            let appended = self.appended.get(&record.number);
            assert_eq!(
                appended,
                Some(&(record.kind, record.payload)),
                "record {last}"
            );
            read.push(last);
        }
        for number in self.appended.range(self.released..) {
            if *number.0 > self.known {
                break;
            }
            assert!(
                read.binary_search(number.0).is_ok(),
                "record {} is lost",
                number.0
            );
        }
    }

    fn restarted(&mut self, log: &Log<FaultyStorage>) {
        self.check(log);
        let kept: Vec<u64> = log
            .read_from(1)
            .filter_map(Result::ok)
            .map(|r| r.number)
            .collect();
        let known = self.known;
        self.appended
            .retain(|number, _| *number <= known || kept.binary_search(number).is_ok());
        self.known = log.durable();
    }

    fn run(actions: &[Action]) {
        let storage = FaultyStorage::new();
        let (mut log, _) = open(&storage);
        let mut model = Self::default();
        for action in actions {
            match action {
                Action::Append { kind, len } => {
                    let payload = vec![kind.wrapping_mul(31); *len];
                    let number = log.append(*kind, &payload).expect("there is room");
                    assert!(number > model.known, "{number} was used before");
                    model.appended.insert(number, (*kind, payload));
                }
                Action::Commit => {
                    let durable = log.commit().expect("nothing fails");
                    assert_eq!(durable + 1, log.next());
                    model.known = durable;
                }
                Action::Flush => {
                    log.flush().expect("nothing fails");
                    model.known = model.known.max(log.durable());
                }
                Action::Restart | Action::Crash { .. } => {
                    drop(log);
                    if let Action::Crash { seed } = action {
                        storage.crash(*seed);
                    }
                    log = open(&storage).0;
                    model.restarted(&log);
                }
                Action::Release { part } => {
                    let below = log.first() + (log.next() - log.first()) * u64::from(*part) / 255;
                    log.release_before(below).expect("nothing fails");
                    model.released = model.released.max(below);
                }
            }
            model.check(&log);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_committed_is_lost_and_nothing_comes_twice(actions in prop::collection::vec(action(), 1..80)) {
        Model::run(&actions);
    }
}
