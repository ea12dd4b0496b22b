//! What is to be packed next, and what could not be packed.
//!
//! A window that does not pack, because a file of it is damaged or the disk is full, is set aside for a while that
//! doubles from one failure to the next, so that the others have their turn and a damaged page costs its own window
//! only.

use std::{collections::BTreeMap, io, time::Duration};

use super::{HistoryError, Tier, config::GRACE_MS, manifest::FileEntry};

/// How long a window rests after it could not be packed for the first time, and at most.
const REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(3_600);

/// Files to be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    /// Of which tier.
    pub tier: Tier,
    /// Of which group.
    pub group: u32,
    /// From here on.
    pub start: i64,
    /// Up to, not including, here.
    pub end: i64,
}

impl Job {
    /// Whether the file is to be put together with others.
    #[must_use]
    pub fn takes(&self, file: &FileEntry) -> bool {
        file.tier == self.tier
            && file.group == self.group
            && file.start >= self.start
            && file.end <= self.end
    }
}

/// Windows that are over and not in one packed file; samples first, then the oldest.
#[must_use]
pub fn jobs(files: &[FileEntry], now: i64) -> Vec<Job> {
    const DAY: i64 = 86_400_000;
    const LEVELS: [(Tier, i64); 4] = [
        (Tier::Raw, Tier::Raw.window_ms()),
        (Tier::Minute, DAY),
        (Tier::Quarter, DAY),
        (Tier::Quarter, Tier::Quarter.window_ms()),
    ];
    let mut jobs = Vec::new();
    for (tier, length) in LEVELS {
        let mut windows: BTreeMap<(i64, u32), (usize, bool)> = BTreeMap::new();
        for file in files
            .iter()
            .filter(|file| file.tier == tier && file.end - file.start <= length)
        {
            let start = file.start - file.start.rem_euclid(length);
            let (count, loose) = windows.entry((start, file.group)).or_default();
            *count += 1;
            *loose |= !file.packed;
        }
        for ((start, group), (count, loose)) in windows {
            let end = start + length;
            let needed = if tier == Tier::Raw { loose } else { count > 1 };
            if needed && end + GRACE_MS <= now {
                jobs.push(Job {
                    tier,
                    group,
                    start,
                    end,
                });
            }
        }
    }
    jobs
}

/// Why and since when a window is set aside.
#[derive(Debug)]
struct Rest {
    failed_at: i64,
    lasts: Duration,
    why: String,
    /// Whether it will not do later either: a file is damaged or gone. A disk that is full may have room again.
    for_good: bool,
}

/// Windows that could not be packed.
#[derive(Debug, Default)]
pub struct SetAside {
    of: BTreeMap<Job, Rest>,
}

impl SetAside {
    /// The first that does not rest; windows that need no packing any more are forgotten.
    pub fn next(&mut self, jobs: &[Job], now: i64) -> Option<Job> {
        self.of.retain(|job, _| jobs.contains(job));
        let rests = |job: &Job| {
            let rest = self.of.get(job)?;
            // Also when the clock was put back.
            let passed = Duration::from_millis(now.abs_diff(rest.failed_at));
            (passed < rest.lasts).then_some(())
        };
        jobs.iter().copied().find(|job| rests(job).is_none())
    }

    /// It could not be packed, for this reason.
    pub fn failed(&mut self, job: Job, now: i64, why: &HistoryError) {
        let before = self.of.get(&job);
        let lasts = before.map_or(REST, |rest| (rest.lasts * 2).min(LONGEST_REST));
        let rest = Rest {
            failed_at: now,
            lasts,
            why: crate::chain(why),
            for_good: is_for_good(why),
        };
        self.of.insert(job, rest);
    }

    /// It is packed.
    pub fn packed(&mut self, job: &Job) {
        self.of.remove(job);
    }

    /// Whether the file is in a window that will not be packed.
    #[must_use]
    pub fn has_given_up(&self, file: &FileEntry) -> bool {
        let mut all = self.of.iter();
        all.any(|(job, rest)| rest.for_good && job.takes(file))
    }

    /// How many there are, and why the first of them.
    #[must_use]
    pub fn first(&self) -> Option<(usize, &str)> {
        let (_, rest) = self.of.first_key_value()?;
        Some((self.of.len(), &rest.why))
    }
}

fn is_for_good(error: &HistoryError) -> bool {
    match error {
        HistoryError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        HistoryError::Damaged { .. } | HistoryError::NewerVersion { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(group: u32) -> Job {
        Job {
            tier: Tier::Raw,
            group,
            start: 0,
            end: 7_200_000,
        }
    }

    fn damaged() -> HistoryError {
        HistoryError::Damaged {
            name: "f".to_owned(),
            what: "its end",
        }
    }

    fn refused(kind: io::ErrorKind) -> HistoryError {
        HistoryError::Io {
            action: "write",
            name: "f".to_owned(),
            source: kind.into(),
        }
    }

    #[test]
    fn a_full_disk_gives_nothing_up() {
        let file = FileEntry {
            name: "f".to_owned(),
            tier: Tier::Raw,
            group: 0,
            start: 0,
            end: 7_200_000,
            generation: 1,
            bytes: 1,
            points: 1,
            packed: false,
        };
        let mut aside = SetAside::default();
        for (error, given_up) in [
            (refused(io::ErrorKind::StorageFull), false),
            (refused(io::ErrorKind::Other), false),
            (refused(io::ErrorKind::NotFound), true),
            (damaged(), true),
            (refused(io::ErrorKind::StorageFull), false),
        ] {
            aside.failed(job(0), 0, &error);
            assert_eq!(aside.has_given_up(&file), given_up, "{error:?}");
        }
    }

    #[test]
    fn a_window_that_fails_lets_the_others_pass() {
        let both = [job(0), job(1)];
        let mut aside = SetAside::default();
        assert_eq!(aside.next(&both, 0), Some(job(0)));
        aside.failed(job(0), 0, &damaged());
        assert_eq!(aside.next(&both, 0), Some(job(1)));
        assert_eq!(
            aside.first(),
            Some((1, "history file f is damaged: its end"))
        );
        assert_eq!(aside.next(&[job(0)], 59_999), None);
        assert_eq!(aside.next(&[job(0)], 60_000), Some(job(0)));
        aside.failed(job(0), 60_000, &damaged());
        assert_eq!(aside.next(&[job(0)], 179_999), None, "twice as long");
        assert_eq!(aside.next(&[job(0)], -1_000_000), Some(job(0)), "put back");
        for _ in 0..10 {
            aside.failed(job(0), 0, &damaged());
        }
        assert_eq!(aside.next(&[job(0)], 3_600_000), Some(job(0)), "an hour");
        assert_eq!(aside.next(&[], 0), None);
        assert_eq!(aside.first(), None, "its files are gone");
    }
}
