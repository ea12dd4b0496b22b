//! Reads a log that another part of this process writes.
//!
//! The writer owns the [`Log`](super::Log) and cannot be asked while it waits for the disk. Whoever follows it
//! has a clone of its storage and knows from the writer which numbers are durable; what is durable never
//! changes, so it can be read beside the writer. Segments that the writer releases meanwhile are told as
//! missing.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::format::Name;
use super::read::{Gap, Reader, Record};
use super::storage::Storage;
use super::{LogError, Segment};
use crate::time::Timestamp;

/// A second reader of one stream of a log folder.
#[derive(Clone, Debug)]
pub struct Follower<S: Storage> {
    storage: S,
    stream: u64,
}

impl<S: Storage> Follower<S> {
    /// Follows this stream of the folder.
    pub const fn new(storage: S, stream: u64) -> Self {
        Self { storage, stream }
    }

    /// Gives `each` the records from `from` up to, not including, `end`, in order, until it breaks. All below
    /// `end` must have been reported durable by the writer.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`] if the folder cannot be listed. What cannot be read is a [`Gap`] given to `each`.
    pub fn read(
        &self,
        from: u64,
        end: u64,
        mut each: impl FnMut(Result<Record, Gap>) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        let segments = self.segments(end)?;
        for item in Reader::new(&self.storage, self.stream, segments.iter(), from, end) {
            if each(item).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Number of the oldest record that a segment has; `None` without segments.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`] if the folder cannot be listed.
    pub fn first(&self) -> Result<Option<u64>, LogError> {
        Ok(self
            .segments(u64::MAX)?
            .front()
            .map(|segment| segment.first))
    }

    /// The segments below `end` as their names tell; each counts up to the next name above its own.
    fn segments(&self, end: u64) -> Result<VecDeque<Segment>, LogError> {
        let names = self
            .storage
            .list()
            .map_err(|source| LogError::io(&self.storage, "list the files of", ".", source))?;
        let (mut firsts, mut bounds) = (Vec::new(), Vec::new());
        for name in names {
            match Name::parse(&name) {
                Some(Name::Segment { stream, first }) if stream == self.stream => {
                    firsts.push(first);
                    bounds.push(first);
                }
                Some(Name::Bad { stream, first, .. }) if stream == self.stream => {
                    bounds.push(first);
                }
                _ => {}
            }
        }
        firsts.sort_unstable();
        bounds.sort_unstable();
        let segment = |first: u64| {
            let next = bounds.partition_point(|bound| *bound <= first);
            let until = bounds.get(next).copied().unwrap_or(end);
            Segment {
                first,
                end: until.min(end).max(first),
                bytes: 0,
                created: Timestamp::from_millis(0),
            }
        };
        Ok(firsts
            .into_iter()
            .filter(|first| *first < end)
            .map(segment)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{FaultyStorage, Log, LogConfig};

    fn numbers(follower: &Follower<FaultyStorage>, from: u64, end: u64) -> (Vec<u64>, Vec<String>) {
        let (mut read, mut gaps) = (Vec::new(), Vec::new());
        follower
            .read(from, end, |item| {
                match item {
                    Ok(record) => {
                        assert_eq!(record.payload, record.number.to_le_bytes());
                        read.push(record.number);
                    }
                    Err(gap) => gaps.push(gap.to_string()),
                }
                ControlFlow::Continue(())
            })
            .expect("the folder can be listed");
        (read, gaps)
    }

    #[test]
    fn it_reads_what_is_durable_while_the_writer_writes_on() {
        let storage = FaultyStorage::new();
        let config = LogConfig {
            segment_bytes: 200,
            ..LogConfig::aggregator()
        };
        let (mut log, _) = Log::open(storage.clone(), config).expect("an empty folder opens");
        let follower = Follower::new(storage, config.stream);
        assert_eq!(numbers(&follower, 1, 1), (vec![], vec![]));
        for number in 1..=40u64 {
            log.append(1, &number.to_le_bytes()).expect("there is room");
            let durable = log.commit().expect("it is written");
            assert_eq!(
                numbers(&follower, number, durable + 1),
                (vec![number], vec![])
            );
        }
        assert!(log.segments().len() > 5, "several segments");
        assert_eq!(numbers(&follower, 1, 41), ((1..=40).collect(), vec![]));
        assert_eq!(numbers(&follower, 7, 9), (vec![7, 8], vec![]));

        log.release_before(20).expect("the oldest go");
        let first = log.first();
        assert_eq!(follower.first().expect("listed"), Some(first));
        let (read, gaps) = numbers(&follower, 3, 41);
        assert_eq!(read, (first..=40).collect::<Vec<_>>());
        assert_eq!(
            gaps,
            [format!("records 3 to {} are in no segment", first - 1)]
        );
    }
}
