//! Space of each mounted filesystem.
//!
//! Mounts come from `/proc/1/mountinfo`, or from the agent's own view where that may not be read; space is
//! asked every 30 s in threads of their own ([`super::prober`]): one for what needs nobody else to answer,
//! one for servers and FUSE daemons, so that those that hang never freeze the others. A mount that does not
//! answer for 5 s is marked as hung, and so are the others of its server; it has no other values until it
//! answers, and after 45 s that is an event. What has not been answered for a minute, for whatever reason,
//! is marked with a device error: a number that may have changed long ago is not shown.
//!
//! The agent's own view may differ from that of PID 1 (a unit with a private /tmp or a masked /home).
//! Where it does, the mount is marked with a device error: never a number of another filesystem.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hasher as _},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::{
    catalog,
    v1::{EventFieldKey, EventKind},
};

use super::{
    About, CollectError, Collector, FilesystemConfig, Outcome, Readings, glob,
    mounts::{self, Mount},
    prober::{Answer, Mounted, Probe, Prober, Space, Statvfs},
    text, word,
};
use crate::host::{HostRoot, KeptFile};

const PID1_PATH: &str = "proc/1/mountinfo";
const SELF_PATH: &str = "proc/self/mountinfo";

/// Beside a captured host's root: the space of its mounts when it was captured.
const CAPTURED_SPACE: &str = "../statvfs.txt";

/// Space changes slowly, and a question may cost a network round trip.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Without an answer for so long nothing is known about a filesystem any more: two questions went by.
const UNKNOWN_AFTER: Duration = ASK_EVERY.saturating_mul(2);

/// Filesystems whose questions the kernel answers without anybody's help, unless a disk is broken. All
/// others may depend on a server or a daemon.
const LOCAL_TYPES: [&str; 20] = [
    "bcachefs", "btrfs", "devtmpfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "hfsplus",
    "jfs", "msdos", "nilfs2", "ntfs3", "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs",
];

/// How long a round waits for the answers, so that they are of this round: longer at the first, which may
/// be the only one (`muster-agent sample`). Local filesystems answer within microseconds.
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(20);

/// When a mount that hangs is an event: servers that fail over are back by then.
const EVENT_AFTER: Duration = Duration::from_secs(45);

/// Most mounts that are asked and shown, if there is room for so many series.
const MAX_MOUNTS: usize = 400;

/// Read-only, info, hung, device error, and five of space.
const SERIES_PER_MOUNT: usize = 9;

static ABOUT: About = About {
    name: "filesystem",
    every: Duration::ZERO,
    reads: "/proc/1/mountinfo (or /proc/self/mountinfo), statvfs(2)",
    needs: "/proc without hidepid to see mounts as PID 1 does; else the agent's own view is shown",
    what: "size and free space of each mounted filesystem",
};

/// See the module.
pub struct Filesystem {
    config: FilesystemConfig,
    pid1: KeptFile,
    own: KeptFile,
    source: Option<Source>,
    /// A clock that nobody sets: ticks jump when the host's clock is corrected.
    clock: Box<dyn Fn() -> Instant + Send>,
    asked: Option<Instant>,
    first_patience: Duration,
    shown: Vec<Shown>,
    /// What the table of mounts looked like when these were made of it.
    table: Option<u64>,
    /// Mount points that hang, and since when.
    hung: HashMap<Vec<u8>, Instant>,
    /// Mount points for which the event was sent.
    reported: BTreeSet<Vec<u8>>,
    /// Whether what was put last no longer holds.
    changed: bool,
    too_many: bool,
}

/// Where space is known from.
enum Source {
    Live(Probers),
    Captured(Captured),
}

/// Each has threads of its own.
struct Probers {
    local: Prober,
    remote: Prober,
}

/// A mount, and whether the agent sees another filesystem there, or none.
type Seen = (Mount, bool);

/// A mount that is shown.
struct Shown {
    mount: Mount,
    /// Whether the agent sees another filesystem at the mount point, or none.
    hidden: bool,
    answer: Option<Answer>,
    /// When the answer came, or without one when the mount was first seen.
    since: Instant,
    /// Whether that is too long ago.
    unknown: bool,
}

impl Filesystem {
    /// Leaves out what the configuration says.
    #[must_use]
    pub fn new(config: &FilesystemConfig) -> Self {
        Self {
            config: config.clone(),
            pid1: KeptFile::new(PID1_PATH),
            own: KeptFile::new(SELF_PATH),
            source: None,
            clock: Box::new(Instant::now),
            asked: None,
            first_patience: FIRST_PATIENCE,
            shown: Vec::new(),
            table: None,
            hung: HashMap::new(),
            reported: BTreeSet::new(),
            changed: true,
            too_many: false,
        }
    }

    /// Asks `probe` instead of the kernel, and never waits for it; at the time of `clock`.
    #[cfg(test)]
    fn with_probe(
        config: &FilesystemConfig,
        probe: Arc<dyn Probe>,
        clock: impl Fn() -> Instant + Send + 'static,
    ) -> Self {
        Self {
            source: Some(Source::Live(Probers::new(probe))),
            clock: Box::new(clock),
            first_patience: Duration::ZERO,
            ..Self::new(config)
        }
    }

    /// Reads the mounts anew; answers are kept for those that stay. A table that says what it said before is not
    /// parsed again.
    fn list(&mut self, host: &HostRoot, now: Instant) -> Result<(), CollectError> {
        let before = self.table.take();
        let (listed, table) = self.read_mounts(host, before)?;
        self.table = Some(table);
        let Some(listed) = listed else {
            return Ok(());
        };
        let mut before: HashMap<Vec<u8>, Shown> = self
            .shown
            .drain(..)
            .map(|shown| (shown.mount.point.clone(), shown))
            .collect();
        for (mount, hidden) in listed {
            let known = before
                .remove(&mount.point)
                .filter(|known| known.mount == mount && known.hidden == hidden);
            self.shown.push(known.unwrap_or(Shown {
                mount,
                hidden,
                answer: None,
                since: now,
                unknown: false,
            }));
        }
        let too_many = self.shown.len() > MAX_MOUNTS;
        if too_many && !self.too_many {
            tracing::warn!(
                mounts = self.shown.len(),
                shown = MAX_MOUNTS,
                "more filesystems are mounted than are shown; exclude some in the configuration, [collectors.filesystem]"
            );
        }
        self.too_many = too_many;
        self.shown.truncate(MAX_MOUNTS);
        self.changed = true;
        Ok(())
    }

    /// The mounts to show, each with whether it is hidden from the agent, and what their table looks like; no mounts
    /// if that is as it was `before`.
    fn read_mounts(
        &mut self,
        host: &HostRoot,
        before: Option<u64>,
    ) -> Result<(Option<Vec<Seen>>, u64), CollectError> {
        let malformed = |path| CollectError::Malformed {
            path,
            what: "a line of a mount",
        };
        // The kernel tells what was mounted in the agent's own view. Not when a filesystem turns read-only: the table
        // of which that is shown is read each time.
        let own_as_before = !host.is_live() || !self.own.has_news();
        let own = |file: &mut KeptFile| {
            let all = mounts::parse(file.read(host)?).ok_or(malformed(SELF_PATH));
            file.let_go();
            all
        };
        let table;
        let (mut all, seen) = match self.pid1.read(host) {
            Ok(bytes) => {
                table = looks(bytes);
                if before == Some(table) && own_as_before {
                    self.pid1.let_go();
                    return Ok((None, table));
                }
                let all = mounts::parse(bytes).ok_or(malformed(PID1_PATH))?;
                self.pid1.let_go();
                let seen = if host.is_live() {
                    Some(own(&mut self.own)?)
                } else {
                    None
                };
                (all, seen)
            }
            Err(_) => {
                table = looks(self.own.read(host)?);
                if before == Some(table) {
                    self.own.let_go();
                    return Ok((None, table));
                }
                (without_own_binds(own(&mut self.own)?), None)
            }
        };
        all.retain(|mount| !self.is_excluded(mount));
        let seen: Option<HashSet<(Vec<u8>, Vec<u8>)>> = seen.map(|seen| {
            let key = |mount: Mount| (mount.point, mount.device_number);
            seen.into_iter().map(key).collect()
        });
        let hidden = |mount: &Mount| {
            let key = (mount.point.clone(), mount.device_number.clone());
            seen.as_ref().is_some_and(|seen| !seen.contains(&key))
        };
        let with_hidden = all.into_iter().map(|mount| {
            let hidden = hidden(&mount);
            (mount, hidden)
        });
        Ok((Some(with_hidden.collect()), table))
    }

    fn is_excluded(&self, mount: &Mount) -> bool {
        glob::any(&self.config.types_exclude, mount.fstype.as_bytes())
            || glob::any(&self.config.mount_points_exclude, &mount.point)
    }

    /// Asks for space, and takes what has been answered.
    fn ask(&mut self, host: &HostRoot, due: bool, now: Instant) {
        let source = self.source.get_or_insert_with(|| Source::of(host));
        let probers = match source {
            Source::Captured(captured) => {
                for shown in &mut self.shown {
                    shown.answer = Some(captured.space(&shown.mount.point));
                }
                return;
            }
            Source::Live(probers) => probers,
        };
        if due {
            let first = self.asked.is_none();
            let patience = if first { self.first_patience } else { PATIENCE };
            probers.ask(&self.shown, patience);
        }
        // In this order: what returns between the two is answered and still hung for one round.
        let hung = probers.hung(&self.shown, now);
        let answers = probers.take_answers();
        self.changed |= !answers.is_empty() || hung != self.hung;
        if self.hung.keys().any(|point| !hung.contains_key(point)) {
            // Others of its server were not asked for its sake: now they are.
            self.asked = None;
        }
        self.hung = hung;
        for shown in &mut self.shown {
            if let Some(answer) = answers.get(&shown.mount.point) {
                shown.answer = Some(*answer);
                shown.since = now;
            }
            let unknown = now.saturating_duration_since(shown.since) > UNKNOWN_AFTER;
            self.changed |= unknown != shown.unknown;
            shown.unknown = unknown;
        }
    }

    /// Events for mounts that have hung for long, and for those of them that came back.
    fn report(&mut self, now: Instant, out: &mut Readings) {
        for (point, since) in &self.hung {
            let long = now.saturating_duration_since(*since) >= EVENT_AFTER;
            if long && self.reported.insert(point.clone()) {
                let name = text::lossy(point);
                tracing::warn!(mountpoint = %name, "filesystem does not answer; its values are absent until it does");
                let fields = vec![word(EventFieldKey::To, "hung")];
                out.event(EventKind::FilesystemHung, &name, fields);
            }
        }
        self.reported.retain(|point| {
            let hung = self.hung.contains_key(point);
            if !hung {
                let name = text::lossy(point);
                tracing::info!(mountpoint = %name, "filesystem answers again");
                let fields = vec![word(EventFieldKey::To, "ok")];
                out.event(EventKind::FilesystemHung, &name, fields);
            }
            hung
        });
    }

    fn put(&self, out: &mut Readings) {
        let fits = |_: &&Shown| out.admits_object(SERIES_PER_MOUNT);
        let shown: Vec<&Shown> = self.shown.iter().filter(fits).collect();
        // In runs of their own: a key frame shares labels with the series before, and theirs are others.
        for mount in shown.iter().map(|shown| &shown.mount) {
            let hung = i64::from(self.hung.contains_key(&mount.point));
            let point = text::lossy(&mount.point);
            out.int(catalog::FILESYSTEM_HUNG, &[&point], hung);
        }
        for mount in shown.iter().map(|shown| &shown.mount) {
            let mut numbers = mount.device_number.split(|&byte| byte == b':');
            let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
                continue;
            };
            let (major, minor) = (text::lossy(major), text::lossy(minor));
            let labels = [
                &*mount.source,
                &*major,
                &*minor,
                &*text::lossy(&mount.point),
            ];
            out.int(catalog::FILESYSTEM_MOUNT_INFO, &labels, 1);
        }
        for shown in shown {
            let mount = &shown.mount;
            let point = text::lossy(&mount.point);
            let labels = [&*mount.source, &*mount.fstype, &*point];
            let hung = self.hung.contains_key(&mount.point);
            let readonly = i64::from(mount.readonly);
            out.int(catalog::FILESYSTEM_READONLY, &labels, readonly);
            let space = match shown.answer {
                _ if hung || shown.hidden || shown.unknown => Err(()),
                Some(Ok(space)) => Ok(space),
                Some(Err(_)) => Err(()),
                // Asked and not answered yet: neither well nor ill.
                None => continue,
            };
            let error = i64::from(space.is_err());
            out.int(catalog::FILESYSTEM_DEVICE_ERROR, &labels, error);
            let Ok(space) = space else { continue };
            out.unsigned(catalog::FILESYSTEM_SIZE, &labels, space.size);
            out.unsigned(catalog::FILESYSTEM_FREE, &labels, space.free);
            out.unsigned(catalog::FILESYSTEM_AVAIL, &labels, space.available);
            out.unsigned(catalog::FILESYSTEM_FILES, &labels, space.files);
            out.unsigned(catalog::FILESYSTEM_FILES_FREE, &labels, space.files_free);
        }
    }
}

impl Collector for Filesystem {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let now = (self.clock)();
        let due = self
            .asked
            .is_none_or(|asked| now.saturating_duration_since(asked) + super::SLACK >= ASK_EVERY);
        if due && let Err(error) = self.list(host, now) {
            // Ask again at the next tick, and put everything anew then.
            self.asked = None;
            self.changed = true;
            return Err(error);
        }
        self.ask(host, due, now);
        if due {
            self.asked = Some(now);
        }
        self.report(now, out);
        if !std::mem::take(&mut self.changed) {
            return Ok(Outcome::Unchanged);
        }
        self.put(out);
        Ok(Outcome::Read)
    }
}

/// What tells one table from another: a megabyte of it is not worth keeping.
fn looks(table: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(table);
    hasher.finish()
}

/// In its own view a hardened unit finds parts of filesystems mounted upon themselves, read-only or
/// masked, that nobody else sees: of a filesystem that is also mounted whole, its parts are left out.
/// Subvolumes of btrfs are parts too, and are kept.
fn without_own_binds(mut all: Vec<Mount>) -> Vec<Mount> {
    let whole: HashSet<Vec<u8>> = all
        .iter()
        .filter(|mount| mount.root == b"/")
        .map(|mount| mount.device_number.clone())
        .collect();
    all.retain(|mount| {
        mount.root == b"/" || mount.fstype == "btrfs" || !whole.contains(&mount.device_number)
    });
    all
}

impl Source {
    fn of(host: &HostRoot) -> Self {
        let captured = (!host.is_live()).then(|| host.read(CAPTURED_SPACE).ok());
        match captured.flatten() {
            Some(bytes) => Self::Captured(Captured::parse(&bytes)),
            None => Self::Live(Probers::new(Arc::new(Statvfs(host.clone())))),
        }
    }
}

impl Probers {
    fn new(probe: Arc<dyn Probe>) -> Self {
        Self {
            local: Prober::new(Arc::clone(&probe)),
            remote: Prober::new(probe),
        }
    }

    fn ask(&self, shown: &[Shown], patience: Duration) {
        for (prober, local) in [(&self.local, true), (&self.remote, false)] {
            let visible = shown.iter().filter(|shown| !shown.hidden);
            let mounts = visible
                .map(|shown| &shown.mount)
                .filter(|mount| is_local(mount) == local);
            prober.ask(mounts.map(|mount| Mounted {
                point: mount.point.clone(),
                server: server(mount),
            }));
        }
        let until = Instant::now() + patience;
        for prober in [&self.local, &self.remote] {
            prober.wait(until.saturating_duration_since(Instant::now()));
        }
    }

    /// The mount points that hang, themselves or with their server, and since when.
    fn hung(&self, shown: &[Shown], now: Instant) -> HashMap<Vec<u8>, Instant> {
        let mut points = HashMap::new();
        for prober in [&self.local, &self.remote] {
            prober.watch(now);
            for hung in prober.hung() {
                let server = hung.mounted.server.as_ref();
                for other in shown.iter().map(|shown| &shown.mount) {
                    if server.is_some() && self::server(other).as_ref() == server {
                        points.entry(other.point.clone()).or_insert(hung.since);
                    }
                }
                points.insert(hung.mounted.point, hung.since);
            }
        }
        points
    }

    fn take_answers(&self) -> HashMap<Vec<u8>, Answer> {
        let all = [&self.local, &self.remote];
        all.into_iter().flat_map(Prober::take_answers).collect()
    }
}

fn is_local(mount: &Mount) -> bool {
    LOCAL_TYPES.contains(&mount.fstype.as_str())
}

/// The server of `server:/export` (also `[address]:/export`, `user@server:`) or `//server/share`.
fn server(mount: &Mount) -> Option<String> {
    if is_local(mount) {
        return None;
    }
    let source = mount.source.as_str();
    if let Some(rest) = source.strip_prefix("//") {
        return rest.split('/').next().map(ToOwned::to_owned);
    }
    let (server, _) = source.split_once(":/").or(source.split_once(':'))?;
    (!server.is_empty()).then(|| server.to_owned())
}

/// Lines of a mount point, escaped as in mountinfo, and f_frsize, f_blocks, f_bfree, f_bavail, f_files,
/// f_ffree of statvfs(3). A mount point without a line cannot be asked.
struct Captured(HashMap<Vec<u8>, Space>);

impl Captured {
    fn parse(bytes: &[u8]) -> Self {
        let line = |line: &[u8]| {
            let mut fields = text::fields(line);
            let point = mounts::unescape(fields.next()?);
            let mut number = || text::unsigned(fields.next()?);
            let unit = number()?;
            let blocks = [number()?, number()?, number()?];
            let space = Space::of_blocks(unit, blocks, [number()?, number()?]);
            Some((point, space))
        };
        Self(text::lines(bytes).filter_map(line).collect())
    }

    fn space(&self, point: &[u8]) -> Answer {
        self.0.get(point).copied().ok_or(io::ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{
        super::{prober::tests::Gate, testing},
        *,
    };

    const MOUNTS: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                          23 22 0:5 / /hung rw - nfs4 server:/export rw\n\
                          24 22 0:6 / /proc rw - proc proc rw\n\
                          25 22 0:7 / /run/credentials/x rw - ramfs none rw\n";

    fn names(values: &std::collections::BTreeMap<String, f64>, point: &str) -> usize {
        let label = format!("mountpoint=\"{point}\"");
        values.keys().filter(|key| key.contains(&label)).count()
    }

    /// A collector that asks this gate, and its clock in seconds.
    fn gated(gate: &Arc<Gate>) -> (Filesystem, Arc<AtomicU64>) {
        let seconds = Arc::new(AtomicU64::new(0));
        let (shown, began) = (Arc::clone(&seconds), Instant::now());
        let clock = move || began + Duration::from_secs(shown.load(Ordering::SeqCst));
        let probe = Arc::clone(gate) as Arc<dyn Probe>;
        let config = FilesystemConfig::default();
        (Filesystem::with_probe(&config, probe, clock), seconds)
    }

    fn live(filesystem: &Filesystem) -> &Probers {
        match &filesystem.source {
            Some(Source::Live(probers)) => Some(probers),
            _ => None,
        }
        .expect("made with a probe")
    }

    fn wait_for_local(filesystem: &Filesystem) {
        live(filesystem).local.wait(Duration::from_secs(20));
    }

    #[test]
    fn a_hung_mount_is_marked_reported_and_comes_back() {
        let gate = Arc::new(Gate::default());
        let (mut filesystem, clock) = gated(&gate);
        let mut host = testing::Host::new();
        host.write("proc/self/mountinfo", MOUNTS);
        // The ticks stand still: a clock that is set back must not hide what hangs.
        host.set_tick(1000);
        host.collect(&mut filesystem);
        gate.wait_inside(1);
        wait_for_local(&filesystem);
        let values = host.collect(&mut filesystem);
        assert_eq!(names(&values, "/"), 9);
        assert_eq!(names(&values, "/hung"), 3, "not known to hang yet");
        assert_eq!(
            names(&values, "/proc") + names(&values, "/run/credentials/x"),
            0
        );

        clock.store(5, Ordering::SeqCst);
        let values = host.collect(&mut filesystem);
        assert_eq!(
            values[r#"muster_host_filesystem_hung{mountpoint="/hung"}"#],
            1.0
        );
        assert_eq!(names(&values, "/hung"), 4);
        assert_eq!(names(&values, "/"), 9);
        let error = r#"node_filesystem_device_error{device="server:/export",fstype="nfs4",mountpoint="/hung"}"#;
        assert_eq!(values[error], 1.0);
        clock.store(6, Ordering::SeqCst);
        assert_eq!(host.run(&mut filesystem).ok(), Some(Outcome::Unchanged));
        assert!(host.readings().take_events().is_empty());

        clock.store(45, Ordering::SeqCst);
        host.collect(&mut filesystem);
        let events = host.readings().take_events();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].subject, "/hung");
        assert_eq!(events[0].fields, [word(EventFieldKey::To, "hung")]);

        gate.open();
        while !live(&filesystem).remote.hung().is_empty() {
            std::thread::yield_now();
        }
        clock.store(46, Ordering::SeqCst);
        let values = host.collect(&mut filesystem);
        assert_eq!(values[error], 0.0);
        assert_eq!(names(&values, "/hung"), 9);
        let events = host.readings().take_events();
        assert_eq!(events[0].fields, [word(EventFieldKey::To, "ok")]);
    }

    #[test]
    fn hung_servers_neither_freeze_local_disks_nor_leave_old_numbers() {
        let gate = Arc::new(Gate::default());
        let (mut filesystem, clock) = gated(&gate);
        let mut host = testing::Host::new();
        let remote = |number: usize, point: &str| {
            format!(
                "{n} 1 0:{n} / {point} rw - nfs4 s{number}:/e rw\n",
                n = 100 + number
            )
        };
        let good = format!("{MOUNTS}{}", remote(9, "/later")).replace("/hung ", "/also ");
        host.write("proc/self/mountinfo", &good);
        host.collect(&mut filesystem);
        wait_for_local(&filesystem);
        live(&filesystem).remote.wait(Duration::from_secs(20));
        let values = host.collect(&mut filesystem);
        assert_eq!((names(&values, "/"), names(&values, "/later")), (9, 9));

        // As many servers die as may hang, and one more mount of the first of them.
        let dead: String = (0..super::super::prober::MAX_HUNG)
            .map(|number| remote(number, &format!("/hung{number}")))
            .collect();
        let same = remote(0, "/same");
        host.write("proc/self/mountinfo", format!("{dead}{same}{good}"));
        for round in 0..super::super::prober::MAX_HUNG {
            clock.store(40 + 10 * round as u64, Ordering::SeqCst);
            host.collect(&mut filesystem);
            gate.wait_inside(round + 1);
            host.collect(&mut filesystem);
        }
        wait_for_local(&filesystem);
        clock.store(75, Ordering::SeqCst);
        host.collect(&mut filesystem);
        wait_for_local(&filesystem);
        clock.store(95, Ordering::SeqCst);
        let values = host.collect(&mut filesystem);
        assert_eq!(names(&values, "/"), 9, "a local disk is known all the time");
        assert_eq!(names(&values, "/same"), 4, "hangs with its server");
        assert_eq!(
            values[r#"muster_host_filesystem_hung{mountpoint="/same"}"#],
            1.0
        );
        assert_eq!(names(&values, "/later"), 4, "not asked for long: unknown");
        let error =
            r#"node_filesystem_device_error{device="s9:/e",fstype="nfs4",mountpoint="/later"}"#;
        assert_eq!(values[error], 1.0);
        gate.open();
    }

    #[test]
    fn servers_are_found_in_what_is_mounted() {
        for (fstype, source, wanted) in [
            ("nfs4", "one:/export", Some("one")),
            ("nfs", "[fe80::1]:/export", Some("[fe80::1]")),
            ("cifs", "//two/share/part", Some("two")),
            ("fuse.sshfs", "me@three:", Some("me@three")),
            ("fuse.portal", "portal", None),
            ("ext4", "/dev/disk/by-path/pci:0", None),
        ] {
            let line = format!("22 1 0:1 / / rw - {fstype} {source} rw\n");
            let mounts = mounts::parse(line.as_bytes()).expect("understood");
            assert_eq!(server(&mounts[0]).as_deref(), wanted, "{source}");
        }
    }

    #[test]
    fn space_of_a_captured_host_stands_beside_its_root() {
        let mut host = testing::Host::new();
        host.write(
            "proc/1/mountinfo",
            "22 1 8:1 / /a\\040b rw - ext4 /dev/sda1 ro\n23 1 8:2 / /other rw - ext4 /dev/sdb rw\n",
        );
        host.write(
            "../statvfs.txt",
            "/a\\040b 4096 1000 500 400 100 90\nbroken line\n",
        );
        let values = host.collect(&mut Filesystem::new(&FilesystemConfig::default()));
        let value = |name: &str| {
            values[&format!(
                "node_filesystem_{name}{{device=\"/dev/sda1\",fstype=\"ext4\",mountpoint=\"/a b\"}}"
            )]
        };
        assert_eq!(value("size_bytes"), 4_096_000.0);
        assert_eq!(value("avail_bytes"), 1_638_400.0);
        assert_eq!(value("files_free"), 90.0);
        assert_eq!(value("readonly"), 1.0);
        assert_eq!(
            names(&values, "/other"),
            4,
            "read-only, info, hung and device_error"
        );
    }

    #[test]
    fn parts_that_only_the_agent_sees_are_left_out() {
        let mount = |line: &str| line.as_bytes().to_vec();
        let lines = [
            mount("22 1 8:1 / / rw - ext4 /dev/sda1 rw"),
            mount("23 22 8:1 /var/tmp/private /tmp rw - ext4 /dev/sda1 rw"),
            mount("24 22 8:3 /part /srv rw - ext4 /dev/sdc rw"),
            mount("25 22 0:30 / /data rw - btrfs /dev/sdd rw"),
            mount("26 22 0:30 /home /home rw - btrfs /dev/sdd rw"),
        ];
        let parsed = mounts::parse(&lines.join(&b'\n')).expect("understood");
        let left = without_own_binds(parsed);
        let points: Vec<_> = left.iter().map(|m| text::lossy(&m.point)).collect();
        assert_eq!(points, ["/", "/srv", "/data", "/home"]);
    }

    #[test]
    fn mounts_that_are_not_understood_are_an_error_and_then_all_is_put_anew() {
        let mut host = testing::Host::new();
        host.write("../statvfs.txt", "");
        let mut filesystem = Filesystem::new(&FilesystemConfig::default());
        assert!(host.fails(&mut filesystem), "no file at all");
        host.write("proc/self/mountinfo", "garbage\n");
        assert!(host.fails(&mut filesystem));
        host.write("proc/self/mountinfo", MOUNTS);
        assert_eq!(host.collect(&mut filesystem).len(), 8);
    }
}
