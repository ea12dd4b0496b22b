//! Who uses most of the host: processes by CPU, memory and I/O, and units by their cgroups, every ten seconds, or
//! more seldom where that takes long, into a ring.
//!
//! Only names leave the kernel: a process's name as `/proc/<pid>/stat` has it, at most 15 bytes, never arguments
//! or environment. The ring stays on the host; it goes along when a recording is asked for.
//!
//! A scan is bounded: so many processes, so much time. What it did not reach is counted. What processes read
//! and write, only root may see; of units the kernel tells everyone, where I/O is accounted for.
//!
//! The files of a few hundred processes are kept open: reading one again costs half of what opening it anew does.
//! A descriptor of a process that ended reads nothing, whoever has its number now.
//!
//! Most processes and units of a host do nothing. One that used no CPU in two scans is looked at in every third only,
//! and until then is what it was; what it used meanwhile counts for all the time since.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use muster_proto::{event, time::Timestamp, v1};

use super::cgroups;
use crate::{
    collect::{
        processes::Census,
        sysfs::{Files, Names, numbered},
        text,
    },
    host::HostRoot,
};

/// Between two scans.
pub const EVERY: Duration = Duration::from_secs(10);

/// Scans in the ring: ten minutes.
const KEPT: usize = 60;

/// Longest scan of processes; about 10,000 on an idle machine.
const DEADLINE: Duration = Duration::from_millis(250);

/// One scan takes at most this part of a CPU's time until the next, up to [`SELDOM`]: thousands of processes and units
/// are looked at less often.
const SHARE_OF_TIME: u32 = 5_000;

/// Processes whose file is kept open: a quarter of the descriptors that a service has by default.
const MAX_KEPT: usize = 256;

/// Room for the file of a process: 52 numbers and a name.
const STAT_BYTES: usize = 2048;

/// Longest time between two scans, however long one took: a host that is slow because it thrashes or was stopped is
/// the one of which it will be asked who did it.
const SELDOM: Duration = Duration::from_secs(60);

/// After so many scans in which it used no CPU, a process or unit is looked at in one scan of [`REST`] only.
const IDLE_SCANS: u8 = 2;
const REST: u32 = 3;

/// Longest name of a process: `TASK_COMM_LEN` without its end.
const MAX_COMM_BYTES: usize = 15;

/// Longest name of a unit that is kept.
const MAX_UNIT_BYTES: usize = 128;

/// How many are kept by CPU, by memory and by I/O.
const TOP: usize = 5;

/// Processes of which I/O is asked: those that used most CPU, since reading and writing takes some. Those that used
/// none since the scan before have read and written nothing either.
const ASKED_FOR_IO: usize = 48;

/// How it is found out who uses most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusiestConfig {
    /// Whether it is.
    pub enabled: bool,
    /// Most processes looked at in a scan.
    pub max_processes: usize,
}

impl Default for BusiestConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_processes: 4_096,
        }
    }
}

/// What a process or unit had used when it was looked at last.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    cpu_ns: u64,
    memory_bytes: u64,
    io_bytes: Option<u64>,
    /// The scan that looked at it last; 0 for none.
    looked: u32,
    /// Looks in a row that found that it had used no CPU since the one before.
    idle: u8,
}

impl Used {
    /// Whether this scan leaves it alone. Which of three scans looks at it is drawn from `number`, so that each has
    /// about as much to do.
    fn rests(&self, number: u32, scan: u32) -> bool {
        self.looked != 0
            && self.idle >= IDLE_SCANS
            && !number.wrapping_add(scan).is_multiple_of(REST)
            && scan.wrapping_sub(self.looked) < REST
    }

    /// Takes over what it has used by now; gives how much CPU is new.
    fn take(&mut self, cpu_ns: u64, memory_bytes: u64, scan: u32) -> u64 {
        let new = cpu_ns.saturating_sub(self.cpu_ns);
        self.idle = match new {
            0 => self.idle.saturating_add(1),
            _ => 0,
        };
        (self.cpu_ns, self.memory_bytes, self.looked) = (cpu_ns, memory_bytes, scan);
        new
    }
}

/// A process as the last look left it.
#[derive(Debug, Default)]
struct Process {
    used: Used,
    /// When it began, in ticks since the boot: a pid that came again is another process.
    began: u64,
    /// Its file, if it is one of those that are kept open.
    stat: Option<File>,
    /// The last scan in which it was there.
    seen: u32,
    comm: Comm,
    state: u8,
    threads: u32,
}

/// One of those that use most, and what it used.
#[derive(Debug, Clone, Default)]
struct User {
    /// A unit's; that of a process is made when it is one of those that are told.
    name: String,
    comm: Comm,
    pid: u32,
    /// Since the scan before.
    cpu_new_ns: u64,
    memory_bytes: u64,
    io_bytes: Option<u64>,
    io_new_bytes: Option<u64>,
}

/// A process's name as the kernel has it, and its length.
#[derive(Debug, Clone, Copy, Default)]
struct Comm([u8; MAX_COMM_BYTES], u8);

impl Comm {
    fn new(name: &[u8]) -> Self {
        let length = name.len().min(MAX_COMM_BYTES);
        let mut bytes = [0; MAX_COMM_BYTES];
        bytes[..length].copy_from_slice(&name[..length]);
        Self(bytes, u8::try_from(length).unwrap_or(0))
    }

    fn text(&self) -> String {
        event::printable(&text::lossy(&self.0[..usize::from(self.1)]), MAX_COMM_BYTES)
    }
}

/// What is read of a process.
#[derive(Debug, Clone, Copy)]
struct Stat {
    comm: Comm,
    state: u8,
    cpu_ns: u64,
    threads: u32,
    began: u64,
    memory_bytes: u64,
}

/// The moments of the last scans, the newest first: how long ago one was that looked.
#[derive(Debug, Default)]
struct Past([Option<Instant>; REST as usize + 1]);

impl Past {
    /// Notes the scan that begins.
    fn push(&mut self, now: Instant) {
        self.0.rotate_right(1);
        self.0[0] = Some(now);
    }

    /// Between this scan and the one so many before it, or the oldest that is known.
    fn since(&self, scans: u32) -> Duration {
        let at = usize::try_from(scans).unwrap_or(usize::MAX);
        let [Some(now), ..] = self.0 else {
            return Duration::ZERO;
        };
        let before = self
            .0
            .iter()
            .take(at.saturating_add(1))
            .flatten()
            .next_back();
        before.map_or(Duration::ZERO, |before| {
            now.saturating_duration_since(*before)
        })
    }

    /// Of what was used since the scan that looked last, the part that falls on the time since the scan before this.
    fn part(&self, new: u64, scan: u32, looked: u32) -> u64 {
        let scans = scan.wrapping_sub(looked);
        if looked == 0 || scans <= 1 {
            return new;
        }
        let (own, all) = (self.since(1).as_millis(), self.since(scans).as_millis());
        let part = u128::from(new) * own.max(1) / all.max(1);
        u64::try_from(part).unwrap_or(new).min(new)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Busiest {
    max_processes: usize,
    processes: HashMap<u32, Process>,
    /// Of those, the ones with an open file.
    kept: usize,
    /// Numbers the scans, from 1.
    scan: u32,
    census: Option<Census>,
    /// By their cgroups: units of several users have one name.
    units: HashMap<PathBuf, Used>,
    past: Past,
    names: Names,
    files: Files,
    tick_ns: u64,
    page_bytes: u64,
}

/// The scans of the last ten minutes, or of longer where they are seldom.
#[derive(Debug, Default)]
pub struct Ring(VecDeque<v1::Busiest>);

impl Ring {
    /// Keeps a scan, and forgets the oldest for it.
    pub fn push(&mut self, scan: v1::Busiest) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(scan);
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<v1::Busiest> {
        self.0.iter().cloned().collect()
    }
}

/// Until the next scan, after one that took so much of a CPU's time.
#[must_use]
pub fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE_OF_TIME).clamp(EVERY, SELDOM)
}

impl Busiest {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(config: &BusiestConfig) -> Self {
        let hertz = rustix::param::clock_ticks_per_second().max(1);
        Self {
            max_processes: config.max_processes,
            processes: HashMap::new(),
            kept: 0,
            scan: 0,
            census: None,
            units: HashMap::new(),
            past: Past::default(),
            names: Names::default(),
            files: Files::default(),
            tick_ns: 1_000_000_000 / hertz,
            page_bytes: rustix::param::page_size() as u64,
        }
    }

    /// One scan. The first finds nothing: it has nothing to compare with.
    pub fn look(&mut self, host: &HostRoot, at: Timestamp) -> Option<v1::Busiest> {
        let now = Instant::now();
        self.past.push(now);
        self.scan = self.scan.wrapping_add(1).max(1);
        let (processes, left_out) = self.processes(host, now + DEADLINE);
        let units = self.units(host);
        let over = Some(self.past.since(1)).filter(|over| !over.is_zero())?;
        Some(v1::Busiest {
            at_ms: at.as_millis(),
            over_ms: u32::try_from(over.as_millis()).unwrap_or(u32::MAX),
            processes: top(processes, over),
            units: top(units, over),
            left_out,
        })
    }

    /// The count of all processes that the last scan made on its way; `None` if it did not reach all.
    pub fn take_census(&mut self) -> Option<Census> {
        self.census.take()
    }

    /// All processes that could be looked at, and how many could not.
    fn processes(&mut self, host: &HostRoot, until: Instant) -> (Vec<User>, u32) {
        let (mut users, mut left_out) = (Vec::new(), 0u32);
        let mut census = Census::default();
        if self.names.list(host, b"proc").is_err() {
            return (users, left_out);
        }
        let units = (self.tick_ns, self.page_bytes);
        // Those of a capture are read anew, so that it sees them.
        let may_keep = host.is_live() && host.recorder().is_none();
        for digits in self.names.iter() {
            let number = numbered(digits, b"").and_then(text::unsigned);
            let Some(pid) = number.and_then(|pid| u32::try_from(pid).ok()) else {
                continue;
            };
            if users.len() >= self.max_processes || Instant::now() > until {
                left_out = left_out.saturating_add(1);
                // Its counters are still those of the scan before.
                if let Some(known) = self.processes.get_mut(&pid) {
                    known.seen = self.scan;
                }
                continue;
            }
            let known = self.processes.entry(pid).or_default();
            let mut cpu_new_ns = 0;
            if !known.used.rests(pid, self.scan) {
                let Some(stat) = known.read(host, digits, units, &mut self.files) else {
                    // It ended in between.
                    continue;
                };
                if may_keep && known.stat.is_none() && self.kept < MAX_KEPT {
                    known.stat = open(host, digits);
                    self.kept += usize::from(known.stat.is_some());
                }
                cpu_new_ns = known.note(&stat, self.scan, &self.past);
            }
            known.seen = self.scan;
            census.count(known.state, known.threads.into());
            users.push(known.user(pid, cpu_new_ns));
        }
        let scan = self.scan;
        self.processes.retain(|_, known| known.seen == scan);
        let kept = self.processes.values();
        self.kept = kept.filter(|known| known.stat.is_some()).count();
        self.census = (left_out == 0).then_some(census);
        self.ask_for_io(host, &mut users);
        (users, left_out)
    }

    fn ask_for_io(&mut self, host: &HostRoot, users: &mut [User]) {
        users.sort_unstable_by_key(|user| std::cmp::Reverse(user.cpu_new_ns));
        for user in users.iter_mut().take(ASKED_FOR_IO) {
            let Some(known) = self.processes.get_mut(&user.pid) else {
                continue;
            };
            if user.cpu_new_ns == 0 {
                user.io_bytes = known.used.io_bytes;
                user.io_new_bytes = new_since(user.io_bytes, user.io_bytes);
                continue;
            }
            let mut digits = text::Digits::default();
            let digits = digits.of(user.pid.into()).as_bytes();
            let Ok(io) = self.files.read(host, &[b"proc/", digits, b"/io"]) else {
                continue;
            };
            user.io_bytes = sum_of(io, &[b"read_bytes:", b"write_bytes:"]);
            user.io_new_bytes = new_since(user.io_bytes, known.used.io_bytes);
            known.used.io_bytes = user.io_bytes;
        }
    }

    fn units(&mut self, host: &HostRoot) -> Vec<User> {
        let mut before = std::mem::take(&mut self.units);
        let mut users = Vec::new();
        for (number, unit) in (0..).zip(cgroups::units(host)) {
            let path = unit.path.as_os_str().as_bytes();
            let name = event::printable(&unit.name, MAX_UNIT_BYTES);
            let mut used = before.remove(&unit.path).unwrap_or_default();
            let (io_before, looked) = (used.io_bytes, used.looked);
            let mut cpu_new_ns = 0;
            if !used.rests(number, self.scan) {
                let files = &mut self.files;
                let cpu = files.read(host, &[path, b"/cpu.stat"]).ok();
                let Some(cpu) = cpu.and_then(|stat| sum_of(stat, &[b"usage_usec"])) else {
                    continue;
                };
                let memory = files.unsigned(host, &[path, b"/memory.current"]);
                let cpu_ns = cpu.saturating_mul(1_000);
                let new = used.take(cpu_ns, memory.unwrap_or(0), self.scan);
                cpu_new_ns = self.past.part(new, self.scan, looked);
                // Also of one that used no CPU: what it wrote before reaches the disk by the kernel's threads.
                let io = files.read(host, &[path, b"/io.stat"]).ok();
                used.io_bytes = io.map(unit_io);
            }
            self.units.insert(unit.path, used);
            users.push(User {
                pid: 0,
                comm: Comm::default(),
                cpu_new_ns,
                memory_bytes: used.memory_bytes,
                io_bytes: used.io_bytes,
                io_new_bytes: new_since(used.io_bytes, io_before)
                    .map(|new| self.past.part(new, self.scan, looked)),
                name,
            });
        }
        users
    }
}

impl Process {
    /// What its file says now: the one that is open, or else anew.
    fn read(
        &mut self,
        host: &HostRoot,
        digits: &[u8],
        units: (u64, u64),
        files: &mut Files,
    ) -> Option<Stat> {
        if let Some(file) = &self.stat {
            let mut buffer = [0; STAT_BYTES];
            match rustix::io::pread(file, &mut buffer, 0) {
                Ok(length) => return parse(&buffer[..length], units),
                // It ended, and another may have its number.
                Err(_) => self.stat = None,
            }
        }
        parse(files.read(host, &[b"proc/", digits, b"/stat"]).ok()?, units)
    }

    /// Takes over what its file says; gives the CPU it used since the scan before.
    fn note(&mut self, stat: &Stat, scan: u32, past: &Past) -> u64 {
        if self.used.looked == 0 || self.began != stat.began {
            // One that began since has used all it used since.
            self.used = Used::default();
        }
        let looked = self.used.looked;
        (self.began, self.comm) = (stat.began, stat.comm);
        (self.state, self.threads) = (stat.state, stat.threads);
        let new = self.used.take(stat.cpu_ns, stat.memory_bytes, scan);
        past.part(new, scan, looked)
    }

    fn user(&self, pid: u32, cpu_new_ns: u64) -> User {
        User {
            name: String::new(),
            comm: self.comm,
            pid,
            cpu_new_ns,
            memory_bytes: self.used.memory_bytes,
            io_bytes: None,
            io_new_bytes: None,
        }
    }
}

fn open(host: &HostRoot, digits: &[u8]) -> Option<File> {
    let folder = host.join(Path::new("proc").join(OsStr::from_bytes(digits)));
    File::open(folder.join("stat")).ok()
}

fn new_since(now: Option<u64>, before: Option<u64>) -> Option<u64> {
    Some(now?.saturating_sub(before?))
}

/// A process's stat; `units` are nanoseconds a tick and bytes a page.
fn parse(stat: &[u8], units: (u64, u64)) -> Option<Stat> {
    let (tick_ns, page_bytes) = units;
    // The name is in parentheses and may hold some itself.
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let name = stat.get(open + 1..close)?;
    // proc_pid_stat(5) numbers from the pid; the state, number 3, is the first here.
    let mut fields = text::fields(stat.get(close + 1..)?);
    let state = match fields.next()? {
        [letter] => *letter,
        _ => return None,
    };
    let mut at = 4;
    let mut number = |field: usize| {
        let found = fields.nth(field - at);
        at = field + 1;
        text::unsigned(found?)
    };
    Some(Stat {
        comm: Comm::new(name),
        state,
        cpu_ns: number(14)?
            .saturating_add(number(15)?)
            .saturating_mul(tick_ns),
        threads: u32::try_from(number(20)?).unwrap_or(u32::MAX),
        began: number(22)?,
        memory_bytes: number(24)?.saturating_mul(page_bytes),
    })
}

/// The sum of the numbers after these words, one a line; `None` if not one of them stands there.
fn sum_of(file: &[u8], keys: &[&[u8]]) -> Option<u64> {
    let mut sum: Option<u64> = None;
    for line in text::lines(file) {
        let mut fields = text::fields(line);
        if fields.next().is_some_and(|key| keys.contains(&key))
            && let Some(number) = fields.next().and_then(text::unsigned)
        {
            sum = Some(sum.unwrap_or(0).saturating_add(number));
        }
    }
    sum
}

/// `8:0 rbytes=1 wbytes=2 rios=3 …` of each disk.
fn unit_io(stat: &[u8]) -> u64 {
    let numbers = text::lines(stat)
        .flat_map(text::fields)
        .filter_map(|field| {
            let number = field
                .strip_prefix(b"rbytes=")
                .or_else(|| field.strip_prefix(b"wbytes="))?;
            text::unsigned(number)
        });
    numbers.fold(0, u64::saturating_add)
}

/// Those that stand out by CPU, memory or I/O, by CPU first.
fn top(mut users: Vec<User>, over: Duration) -> Vec<v1::Busy> {
    let mut chosen: Vec<User> = Vec::new();
    let by: [fn(&User) -> u64; 3] = [
        |user| user.cpu_new_ns,
        |user| user.memory_bytes,
        |user| user.io_new_bytes.unwrap_or(0),
    ];
    for measure in by {
        users.sort_unstable_by_key(|user| std::cmp::Reverse(measure(user)));
        for user in users.iter().take(TOP).filter(|user| measure(user) > 0) {
            let known = |one: &User| one.pid == user.pid && one.name == user.name;
            if !chosen.iter().any(known) {
                chosen.push(user.clone());
            }
        }
    }
    chosen.sort_by_key(|user| std::cmp::Reverse(user.cpu_new_ns));
    chosen.into_iter().map(|user| busy(user, over)).collect()
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "seven digits do for people"
)]
fn busy(user: User, over: Duration) -> v1::Busy {
    let seconds = over.as_secs_f64();
    v1::Busy {
        name: match user.pid {
            0 => user.name,
            _ => user.comm.text(),
        },
        pid: user.pid,
        cpus: (user.cpu_new_ns as f64 / 1e9 / seconds) as f32,
        memory_bytes: user.memory_bytes,
        io_bytes_per_second: user
            .io_new_bytes
            .map(|bytes| (bytes as f64 / seconds) as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Tree, at},
        *,
    };

    fn stat(pid: u32, name: &str, ticks: u64, began: u64, pages: u64) -> String {
        format!(
            "{pid} ({name}) S 1 1 1 0 -1 4194560 9 9 9 9 {ticks} 0 9 9 20 0 1 0 {began} 9 {pages} 9\n"
        )
    }

    fn busiest(max_processes: usize) -> Busiest {
        Busiest {
            tick_ns: 10_000_000,
            page_bytes: 4096,
            ..Busiest::new(&BusiestConfig {
                enabled: true,
                max_processes,
            })
        }
    }

    /// As if a scan ten seconds ago.
    fn again(busiest: &mut Busiest, tree: &Tree) -> v1::Busiest {
        for moment in busiest.past.0.iter_mut().flatten() {
            *moment = moment
                .checked_sub(Duration::from_secs(10))
                .expect("up for longer");
        }
        busiest.look(&tree.host(), at(10)).expect("a scan")
    }

    #[test]
    fn processes_and_units_by_what_they_used_since() {
        let tree = Tree::new(&[
            ("proc/10/stat", &stat(10, "odd) name (x", 5_000, 7, 100)),
            ("proc/11/stat", &stat(11, "idle", 90_000, 7, 50_000)),
            (
                "proc/11/io",
                "rchar: 9\nread_bytes: 1000\nwrite_bytes: 500\ncancelled_write_bytes: 9\n",
            ),
            ("proc/12/stat", "12 (cut"),
            ("proc/self/stat", &stat(1, "not a pid", 1, 1, 1)),
            (
                "sys/fs/cgroup/system.slice/db.service/cpu.stat",
                "usage_usec 1000000\nuser_usec 9\n",
            ),
            (
                "sys/fs/cgroup/system.slice/db.service/memory.current",
                "8192\n",
            ),
            (
                "sys/fs/cgroup/system.slice/db.service/io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=5 wbytes=0 rios=1\n",
            ),
        ]);
        let mut busiest = busiest(100);
        let first = busiest.look(&tree.host(), at(0));
        assert_eq!(first, None, "nothing to compare with");
        tree.write("proc/10/stat", &stat(10, "odd) name (x", 5_500, 7, 100));
        tree.write("proc/11/stat", &stat(11, "idle", 90_001, 7, 50_000));
        tree.write("proc/11/io", "read_bytes: 2000\nwrite_bytes: 10500\n");
        tree.write(
            "sys/fs/cgroup/system.slice/db.service/cpu.stat",
            "usage_usec 21000000\n",
        );
        tree.write(
            "sys/fs/cgroup/system.slice/db.service/io.stat",
            "8:0 rbytes=1010 wbytes=20\n8:16 rbytes=5\n",
        );
        let scan = again(&mut busiest, &tree);
        let names: Vec<&str> = scan
            .processes
            .iter()
            .map(|busy| busy.name.as_str())
            .collect();
        assert_eq!(names, ["odd) name (x", "idle"]);
        let [odd, idle] = &scan.processes[..] else {
            unreachable!("two")
        };
        assert!(
            (odd.cpus - 0.5).abs() < 0.01 && odd.io_bytes_per_second.is_none(),
            "{odd:?}"
        );
        assert!(idle.cpus < 0.01 && idle.memory_bytes == 50_000 * 4096);
        assert!(
            idle.io_bytes_per_second
                .is_some_and(|rate| (rate - 1_100.0).abs() < 10.0),
            "{idle:?}"
        );
        let unit = &scan.units[0];
        assert!(
            (unit.cpus - 2.0).abs() < 0.01 && unit.memory_bytes == 8192,
            "{unit:?}"
        );
        assert!(
            unit.io_bytes_per_second
                .is_some_and(|rate| (rate - 100.0).abs() < 1.0),
            "{unit:?}"
        );
    }

    #[test]
    fn those_that_used_no_cpu_are_not_asked_for_io_and_a_scan_counts_all() {
        let tree = Tree::new(&[
            ("proc/10/stat", &stat(10, "x", 5, 7, 1)),
            ("proc/10/io", "read_bytes: 1\nwrite_bytes: 1\n"),
        ]);
        let mut busiest = busiest(100);
        busiest.look(&tree.host(), at(0));
        let census = busiest.take_census().expect("all were reached");
        assert_eq!((census.pids, census.threads), (1, 1));
        assert_eq!(busiest.take_census(), None, "one for each scan");
        tree.remove("proc/10/io");
        let scan = again(&mut busiest, &tree);
        assert_eq!(scan.processes[0].io_bytes_per_second, Some(0.0));
        // It has worked: now it is asked, and has no such file any more.
        tree.write("proc/10/stat", &stat(10, "x", 6, 7, 1));
        let scan = again(&mut busiest, &tree);
        assert_eq!(scan.processes[0].io_bytes_per_second, None);
    }

    #[test]
    fn of_this_machine_files_are_kept_and_their_processes_found_again() {
        let live = HostRoot::at("/");
        let mut busiest = busiest(10_000);
        busiest.look(&live, at(0));
        let own = std::process::id();
        let kept = |busiest: &Busiest| {
            let open = busiest.processes.values();
            open.filter(|process| process.stat.is_some()).count()
        };
        assert!((1..=MAX_KEPT).contains(&kept(&busiest)));
        // As if this process's place had been another's, which has ended: its file reads nothing.
        let mut other = std::process::Command::new("true").spawn().expect("starts");
        let ended = open(&live, other.id().to_string().as_bytes());
        other.wait().expect("ends");
        busiest.processes.insert(
            own,
            Process {
                stat: ended,
                ..Process::default()
            },
        );
        busiest.look(&live, at(1));
        let found = &busiest.processes[&own];
        assert!(found.began > 0 && found.seen == busiest.scan);
        assert_eq!(kept(&busiest), busiest.kept);
    }

    #[test]
    fn those_that_do_nothing_rest_and_what_they_use_then_counts_for_the_whole_time() {
        let tree = Tree::new(&[("proc/10/stat", &stat(10, "x", 5, 7, 1))]);
        let mut busiest = busiest(100);
        busiest.look(&tree.host(), at(0));
        for _ in 0..IDLE_SCANS {
            again(&mut busiest, &tree);
        }
        // From now on it is looked at in every third scan; 9 s of CPU in at most 30 s are no more than 0.9 of one.
        tree.write("proc/10/stat", &stat(10, "y", 905, 7, 2));
        let mut shown = Vec::new();
        for _ in 0..REST {
            let scan = again(&mut busiest, &tree);
            let census = busiest.take_census().expect("all are there");
            assert_eq!(census.pids, 1, "also those that rest are counted");
            let process = &scan.processes[0];
            shown.push((process.name.clone(), process.cpus, process.memory_bytes));
        }
        let woke = shown.iter().position(|(name, _, _)| name == "y");
        let woke = woke.expect("looked at within three scans");
        for (name, cpus, memory) in &shown[..woke] {
            assert_eq!((name.as_str(), *cpus, *memory), ("x", 0.0, 4096));
        }
        let (_, cpus, memory) = &shown[woke];
        let expected = 0.9 / f32::from(u8::try_from(woke + 1).expect("few"));
        assert!(
            (cpus - expected).abs() < 0.01 && *memory == 2 * 4096,
            "{shown:?}"
        );
        // It works: it is looked at each time again.
        tree.write("proc/10/stat", &stat(10, "z", 1_005, 7, 2));
        let scan = again(&mut busiest, &tree);
        assert_eq!(scan.processes[0].name, "z");
    }

    #[test]
    fn units_that_do_nothing_rest() {
        let tree = Tree::new(&[]);
        let use_up = |unit: &str, micros: u32, bytes: u32| {
            let unit = format!("sys/fs/cgroup/system.slice/{unit}.service");
            tree.write(
                &format!("{unit}/cpu.stat"),
                &format!("usage_usec {micros}\n"),
            );
            tree.write(&format!("{unit}/memory.current"), &format!("{bytes}\n"));
        };
        let mut busiest = busiest(100);
        use_up("works", 7_000_000, 1);
        use_up("rests", 9_000_000, 2);
        busiest.look(&tree.host(), at(0));
        let mut looked = 0;
        for scan in 1..=6 {
            use_up("works", 7_000_000 + scan * 1_000_000, 1);
            use_up("rests", 9_000_000, 2 + scan);
            let shown = again(&mut busiest, &tree).units;
            let [works, rests] = &shown[..] else {
                unreachable!("two: {shown:?}")
            };
            assert!((works.cpus - 0.1).abs() < 0.01, "{shown:?}");
            assert!(rests.cpus < 0.001, "{shown:?}");
            looked += u32::from(rests.memory_bytes == u64::from(2 + scan));
        }
        // Twice until it is known to do nothing, then every third time.
        assert!((3..=4).contains(&looked), "{looked}");
    }

    #[test]
    fn what_was_used_over_several_scans_is_shared_out() {
        let mut past = Past::default();
        assert_eq!(past.since(1), Duration::ZERO);
        let began = Instant::now();
        for seconds in [0, 10, 20, 30] {
            past.push(began + Duration::from_secs(seconds));
        }
        assert_eq!(past.since(1), Duration::from_secs(10));
        assert_eq!(past.since(9), Duration::from_secs(30), "the oldest known");
        for (looked, part) in [(0, 600), (9, 600), (8, 300), (7, 200), (4, 200)] {
            assert_eq!(past.part(600, 10, looked), part, "{looked}");
        }
    }

    #[test]
    fn a_pid_that_came_again_is_another_process() {
        let tree = Tree::new(&[("proc/10/stat", &stat(10, "old", 90_000, 7, 1))]);
        let mut busiest = busiest(100);
        busiest.look(&tree.host(), at(0));
        tree.write("proc/10/stat", &stat(10, "new", 100, 9_000, 1));
        let scan = again(&mut busiest, &tree);
        assert!((scan.processes[0].cpus - 0.1).abs() < 0.01, "{scan:?}");
    }

    #[test]
    fn a_scan_is_bounded_in_processes_and_the_ring_in_scans() {
        let tree = Tree::new(&[]);
        for pid in 1..=50 {
            tree.write(&format!("proc/{pid}/stat"), &stat(pid, "x", 100, 1, 1));
        }
        let mut busiest = busiest(20);
        busiest.look(&tree.host(), at(0));
        let mut ring = Ring::default();
        for _ in 0..KEPT + 5 {
            let scan = again(&mut busiest, &tree);
            assert_eq!(scan.left_out, 30);
            assert_eq!(busiest.take_census(), None, "not all were counted");
            assert!(scan.processes.len() <= 3 * TOP);
            ring.push(scan);
        }
        assert_eq!(ring.all().len(), KEPT);
    }

    #[test]
    fn scans_that_take_long_are_seldom() {
        for (took_ms, pause_s) in [(0, 10), (1, 10), (2, 10), (8, 40), (900, 60), (90_000, 60)] {
            let found = pause(Duration::from_millis(took_ms));
            assert_eq!(found, Duration::from_secs(pause_s), "{took_ms}");
        }
    }
}
