//! Collectors whose files may hang: drivers that wait for a device, text files on a server that is gone.
//!
//! Nothing can interrupt a read that the kernel does not let return, so such a collector runs in a thread that is
//! made for the run and ends with it. A round waits for it for a moment. What comes later is shown as soon as it is
//! there; until then all holds that was told before, and after [`HUNG_AFTER`] the collector has failed. It is not
//! started again before it returns: a thing that hangs costs one thread, whatever the time, and no other collector
//! its round.
//!
//! A host without the thing is not worth a thread: then, and where the host is a folder, the collector runs as any
//! other.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use muster_proto::catalog::{self, FamilyId};

use super::{About, CollectError, Collector, Outcome, Readings, sysfs::Names};
use crate::host::HostRoot;

/// How long a round waits. What is read from memory is there within a millisecond; a bus of sensors takes some.
const PATIENCE: Duration = Duration::from_millis(250);

/// What has not returned for so long hangs.
pub const HUNG_AFTER: Duration = Duration::from_secs(45);

/// Until a run that has not returned is asked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The one pass of a table in which a thread puts its values.
const PASS: usize = 0;

/// Stack of a thread: paths and lines of text.
const STACK_BYTES: usize = 256 * 1024;

/// See the module.
pub struct Aside {
    about: &'static About,
    /// A folder of sysfs that has something in it where the host has the thing; none for a thread in any case.
    there: Option<&'static str>,
    place: Place,
    /// Where its runs in a thread put their values, to be passed on; made for the first. Its own for good: the
    /// collector may keep numbers of families that are of this table.
    readings: Option<Readings>,
    /// Whether it was said to have failed, so that what it told before is gone.
    failed: bool,
    /// Families that were said to have no room where all values are.
    said: BTreeSet<String>,
    names: Names,
    patience: Duration,
    hung_after: Duration,
}

/// Where the collector is.
enum Place {
    Here(Box<dyn Collector>),
    /// In a thread that has not returned.
    Away(Receiver<Returned>, Instant),
    /// Its thread ended without it.
    Lost,
}

/// What a thread gives back.
struct Returned {
    collector: Box<dyn Collector>,
    readings: Readings,
    outcome: Result<Outcome, CollectError>,
}

impl Aside {
    /// This collector, where the folder `there` has something in it, in a thread.
    #[must_use]
    pub fn around(
        collector: Box<dyn Collector>,
        there: Option<&'static str>,
    ) -> Box<dyn Collector> {
        Box::new(Self {
            about: collector.about(),
            there,
            place: Place::Here(collector),
            readings: None,
            failed: false,
            said: BTreeSet::new(),
            names: Names::default(),
            patience: PATIENCE,
            hung_after: HUNG_AFTER,
        })
    }

    fn is_there(&mut self, host: &HostRoot) -> bool {
        let Some(folder) = self.there else {
            return true;
        };
        let listed = self.names.list(host, folder.as_bytes());
        listed.is_ok() && self.names.count() > 0
    }

    /// Starts a run in a thread; gives the collector back where there can be none.
    fn start(
        &mut self,
        collector: Box<dyn Collector>,
        host: &HostRoot,
        out: &Readings,
    ) -> Result<Receiver<Returned>, Option<Box<dyn Collector>>> {
        let tick = out.tick();
        let (sender, back) = sync_channel(1);
        let readings = self.readings.take();
        let readings = readings.unwrap_or_else(|| Readings::with_quota(out.quota()));
        let ours = Arc::new(Mutex::new(Some((collector, readings))));
        let theirs = Arc::clone(&ours);
        let host = host.clone();
        let run = move || {
            let taken = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some((mut collector, mut readings)) = taken else {
                return;
            };
            readings.set_tick(tick);
            readings.begin(PASS);
            let outcome = collector.collect(&host, &mut readings);
            match outcome {
                Ok(Outcome::Unchanged) => {}
                Ok(Outcome::Read) => readings.end(true),
                Ok(Outcome::NoData) | Err(_) => readings.end(false),
            }
            // Who asked may be gone with the agent.
            let _ = sender.send(Returned {
                collector,
                readings,
                outcome,
            });
        };
        let name = self.about.name.to_owned();
        let thread = thread::Builder::new().name(name).stack_size(STACK_BYTES);
        match thread.spawn(run) {
            Ok(_) => Ok(back),
            Err(_) => {
                let left = ours.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(left.map(|(collector, readings)| {
                    self.readings = Some(readings);
                    collector
                }))
            }
        }
    }

    /// Takes back what returned, and passes its values on.
    fn take_back(
        &mut self,
        returned: Returned,
        out: &mut Readings,
    ) -> Result<Outcome, CollectError> {
        let Returned {
            collector,
            readings,
            mut outcome,
        } = returned;
        self.place = Place::Here(collector);
        if self.failed && matches!(outcome, Ok(Outcome::Unchanged)) {
            // As it was before it hung; here it is told anew.
            outcome = Ok(Outcome::Read);
        }
        self.failed = outcome.is_err();
        if let Ok(Outcome::Read) = outcome {
            self.pass_on(&readings, out);
        }
        self.readings = Some(readings);
        outcome
    }

    fn hangs(&mut self, since: Instant) -> Result<Outcome, CollectError> {
        match since.elapsed() {
            elapsed if elapsed < self.hung_after => Ok(Outcome::Unchanged),
            elapsed => {
                self.failed = true;
                Err(CollectError::Hangs {
                    seconds: elapsed.as_secs(),
                })
            }
        }
    }

    /// Puts all values of a round into the table of all, within the bounds that hold there, and says once what has
    /// no room.
    fn pass_on(&mut self, from: &Readings, out: &mut Readings) {
        out.leave_out(from.left_out(PASS));
        for name in pass_on(from, out) {
            if self.said.contains(&name) {
                continue;
            }
            tracing::warn!(
                collector = self.about.name,
                metric = name,
                "its values are left out: the agent has a metric of this name itself, or there is no room for one more"
            );
            self.said.insert(name);
        }
    }
}

impl Collector for Aside {
    fn about(&self) -> &'static About {
        self.about
    }

    fn every(&self) -> Duration {
        match self.place {
            Place::Here(_) => self.about.every,
            Place::Away(..) | Place::Lost => self.about.every.min(LOOK_AGAIN),
        }
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let in_thread = host.is_live() && host.recorder().is_none() && self.is_there(host);
        let mut collector = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Here(collector) => collector,
            Place::Away(back, since) => match back.try_recv() {
                Ok(returned) => return self.take_back(returned, out),
                Err(TryRecvError::Empty) => {
                    self.place = Place::Away(back, since);
                    return self.hangs(since);
                }
                Err(TryRecvError::Disconnected) => return Err(CollectError::Lost),
            },
            Place::Lost => return Err(CollectError::Lost),
        };
        if !in_thread {
            let outcome = collector.collect(host, out);
            self.place = Place::Here(collector);
            return outcome;
        }
        let since = Instant::now();
        let back = match self.start(collector, host, out) {
            Ok(back) => back,
            Err(collector) => {
                self.place = collector.map_or(Place::Lost, Place::Here);
                return Err(CollectError::Lost);
            }
        };
        match back.recv_timeout(self.patience) {
            Ok(returned) => self.take_back(returned, out),
            Err(RecvTimeoutError::Timeout) => {
                self.place = Place::Away(back, since);
                self.hangs(since)
            }
            Err(RecvTimeoutError::Disconnected) => Err(CollectError::Lost),
        }
    }
}

/// Puts all values of a round into another table. Families that neither has from the catalogue are matched by name;
/// the names of those that have no room.
fn pass_on(from: &Readings, out: &mut Readings) -> BTreeSet<String> {
    let mut without_room = BTreeSet::new();
    let table = from.table();
    let mut labels: Vec<&str> = Vec::new();
    let mut family_of: Option<(u32, Option<FamilyId>)> = None;
    for (place, series) in table.series.iter().enumerate() {
        if !table.present[place] {
            continue;
        }
        let known = match family_of {
            Some((family, known)) if family == series.family => known,
            _ => family_like(from, series.family, out),
        };
        family_of = Some((series.family, known));
        let Some(family) = known else {
            out.leave_out(1);
            without_room.insert(table.families[series.family as usize].name.clone());
            continue;
        };
        if !out.admits_object(1) {
            continue;
        }
        let own = &table.families[series.family as usize].labels;
        let theirs = &out.table().families[family.0 as usize].labels;
        labels.clear();
        match own == theirs {
            true => labels.extend(series.labels.iter().map(String::as_str)),
            false => labels.extend(theirs.iter().map(|label| {
                let at = own.iter().position(|known| known == label);
                let value = at.and_then(|at| series.labels.get(at));
                value.map_or("", String::as_str)
            })),
        }
        out.raw(family, &labels, table.raw[place]);
    }
    without_room
}

fn family_like(from: &Readings, family: u32, out: &mut Readings) -> Option<FamilyId> {
    if (family as usize) < catalog::METRICS.len() {
        return Some(FamilyId(family));
    }
    let wanted = from.table().families.get(family as usize)?;
    let labels: Vec<&str> = wanted.labels.iter().map(String::as_str).collect();
    let same = out.dynamic_family(&wanted.name, wanted.kind, wanted.scale, &labels);
    // Text files of before may have given it more labels.
    same.or_else(|| out.open_family(&wanted.name, wanted.kind, &labels))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    };

    use muster_proto::series::{Kind, Scale};

    use super::{super::testing, *};

    static ABOUT: About = About {
        name: "it",
        every: Duration::from_secs(30),
        reads: "",
        needs: "",
        what: "",
    };

    /// Reads when it is let; what it read before, it leaves as it is.
    struct Slow {
        go: Receiver<i64>,
        runs: Arc<AtomicUsize>,
        before: Option<i64>,
        made: Option<FamilyId>,
    }

    impl Collector for Slow {
        fn about(&self) -> &'static About {
            &ABOUT
        }

        fn collect(&mut self, _: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
            self.runs.fetch_add(1, Ordering::SeqCst);
            let Ok(value) = self.go.recv() else {
                return Ok(Outcome::NoData);
            };
            if self.before.replace(value) == Some(value) {
                return Ok(Outcome::Unchanged);
            }
            out.int(catalog::LOAD1, &[], value);
            // As collectors do that look at many files: once for good.
            let made = match self.made {
                Some(made) => made,
                None => out
                    .dynamic_family("made_up", Kind::Gauge, Scale::One, &["label"])
                    .expect("room"),
            };
            self.made = Some(made);
            out.int(made, &["x"], value);
            Ok(Outcome::Read)
        }
    }

    fn slow(patience: Duration, hung_after: Duration) -> (Aside, Sender<i64>, Arc<AtomicUsize>) {
        let (sender, go) = channel();
        let runs = Arc::new(AtomicUsize::new(0));
        let collector = Slow {
            go,
            runs: Arc::clone(&runs),
            before: None,
            made: None,
        };
        let aside = Aside {
            about: &ABOUT,
            there: None,
            place: Place::Here(Box::new(collector)),
            readings: None,
            failed: false,
            said: BTreeSet::new(),
            names: Names::default(),
            patience,
            hung_after,
        };
        (aside, sender, runs)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn values_are_passed_on() {
        let (mut aside, go, _) = slow(LONG, LONG);
        let mut host = testing::Host::new();
        // The families of the two tables have other numbers.
        let out = host.readings();
        out.dynamic_family("before", Kind::Gauge, Scale::One, &[]);
        for value in [7, 8] {
            go.send(value).expect("it waits");
            assert_eq!(host.run_live(&mut aside).ok(), Some(Outcome::Read));
            let values = host.values();
            assert_eq!(values.len(), 2);
            let value = catalog::METRICS[catalog::LOAD1.0 as usize]
                .scale
                .value(muster_proto::series::Raw::int(value));
            assert_eq!(values["node_load1"], value);
        }
        assert_eq!(host.values()[r#"made_up{label="x"}"#], 8.0);
        drop(go);
        assert_eq!(host.run_live(&mut aside).ok(), Some(Outcome::NoData));
        assert!(host.values().is_empty());
    }

    #[test]
    fn what_hangs_holds_nobody_up_and_is_not_started_again() {
        let (mut aside, go, runs) = slow(Duration::ZERO, LONG);
        let mut host = testing::Host::new();
        // Nothing is told yet, and nothing is wrong yet.
        assert_eq!(host.run_live(&mut aside).ok(), Some(Outcome::Unchanged));
        assert!(aside.every() < ABOUT.every, "it is looked after sooner");
        aside.hung_after = Duration::ZERO;
        for _ in 0..3 {
            let failed = host.run_live(&mut aside);
            assert!(matches!(failed, Err(CollectError::Hangs { .. })));
        }
        aside.hung_after = LONG;
        go.send(7).expect("it waits");
        // Late, but it comes.
        assert_eq!(until_back(&mut host, &mut aside), Some(Outcome::Read));
        assert_eq!(host.values()[r#"made_up{label="x"}"#], 7.0);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(aside.every(), ABOUT.every);
    }

    /// What it says when its thread has come back.
    fn until_back(host: &mut testing::Host, aside: &mut Aside) -> Option<Outcome> {
        loop {
            let outcome = host.run_live(aside).ok();
            if !matches!(aside.place, Place::Away(..)) {
                return outcome;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn what_it_told_before_it_hung_is_there_again_though_nothing_changed() {
        let (mut aside, go, _) = slow(LONG, LONG);
        let mut host = testing::Host::new();
        go.send(7).expect("it waits");
        assert_eq!(host.run_live(&mut aside).ok(), Some(Outcome::Read));
        go.send(7).expect("it waits");
        assert_eq!(host.run_live(&mut aside).ok(), Some(Outcome::Unchanged));
        (aside.patience, aside.hung_after) = (Duration::ZERO, Duration::ZERO);
        assert!(host.run_live(&mut aside).is_err());
        assert!(host.values().is_empty(), "it failed");
        go.send(7).expect("it waits");
        aside.hung_after = LONG;
        assert_eq!(until_back(&mut host, &mut aside), Some(Outcome::Read));
        assert_eq!(host.values().len(), 2);
        // And not again and again.
        aside.patience = LONG;
        go.send(7).expect("it waits");
        assert_eq!(host.run_live(&mut aside).ok(), Some(Outcome::Unchanged));
    }

    /// Tells a thousand values, and one under a name that another collector has.
    struct Many;

    impl Collector for Many {
        fn about(&self) -> &'static About {
            &ABOUT
        }

        fn collect(&mut self, _: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
            let taken = out.open_family("taken", Kind::Gauge, &[]);
            out.float(taken.expect("room"), &[], 1.0);
            let many = out.open_family("many", Kind::Gauge, &["number"]);
            for number in 0..1000 {
                out.float(many.expect("room"), &[&number.to_string()], 1.0);
            }
            Ok(Outcome::Read)
        }
    }

    #[test]
    fn it_gets_no_more_places_than_if_it_ran_with_the_others() {
        let (mut aside, _, _) = slow(LONG, LONG);
        aside.place = Place::Here(Box::new(Many));
        let mut out = Readings::with_quota(500);
        let names = out.dynamic_family("taken", Kind::Counter, Scale::One, &[]);
        assert!(names.is_some());
        for _ in 0..2 {
            let before = out.refused();
            out.begin(1);
            let outcome = aside.collect(&HostRoot::at("/"), &mut out);
            assert_eq!(outcome.ok(), Some(Outcome::Read));
            out.end(true);
            assert_eq!(out.table().present_count(), 250);
            assert_eq!(out.left_out(1), 1001 - 250);
            assert_eq!(out.refused() - before, 1001 - 250);
        }
        assert!(aside.said.contains("taken"));
        assert_eq!(aside.said.len(), 1);
    }

    #[test]
    fn without_the_thing_there_is_no_thread() {
        let (mut aside, go, _) = slow(Duration::ZERO, LONG);
        aside.there = Some("sys/class/no such class");
        go.send(7).expect("it waits");
        let mut host = testing::Host::new();
        // A thread would not be waited for.
        assert_eq!(host.run_live(&mut aside).ok(), Some(Outcome::Read));
        go.send(8).expect("it waits");
        assert_eq!(host.run(&mut aside).ok(), Some(Outcome::Read));
    }
}
