//! `/proc/mdstat`: software RAID arrays, their members and how far they are in sync.
//!
//! An array is a line `md0 : active raid1 sdb1[1] sda1[0](F)` and, behind it, one with its blocks and `[2/1]`:
//! members it should have and has. A third tells what it is doing about it.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/mdstat";

/// States that are shown, 0 for all but one.
const STATES: [&str; 5] = ["active", "inactive", "recovering", "resync", "check"];

/// Five states, three kinds of member, members required, two of blocks.
const SERIES_PER_ARRAY: usize = 11;

static ABOUT: About = About {
    name: "mdadm",
    every: Duration::from_secs(10),
    reads: "/proc/mdstat",
    needs: "",
    what: "state, members and progress of software RAID arrays",
};

/// See the module.
#[derive(Debug)]
pub struct Mdadm {
    file: KeptFile,
}

impl Default for Mdadm {
    fn default() -> Self {
        Self {
            file: KeptFile::new(PATH),
        }
    }
}

/// What is known of an array so far.
#[derive(Debug)]
struct Array<'a> {
    name: &'a [u8],
    state: &'static str,
    active: u64,
    failed: u64,
    spare: u64,
    required: u64,
    blocks: u64,
    /// Blocks done, while it is syncing; else all are.
    synced: Option<u64>,
}

impl Collector for Mdadm {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let Some(bytes) = self.file.read_if_there(host)? else {
            return Ok(Outcome::NoData);
        };
        let mut array: Option<Array<'_>> = None;
        for line in text::lines(bytes) {
            if is_heading(line) {
                if let Some(array) = array.take() {
                    array.put(out);
                }
            } else if line.first().is_some_and(u8::is_ascii_whitespace) {
                if let Some(array) = &mut array {
                    array.add(line);
                }
            } else {
                if let Some(array) = array.take() {
                    array.put(out);
                }
                let begun = Array::begin(line).ok_or(CollectError::Malformed {
                    path: PATH,
                    what: "an array, a colon and its state",
                })?;
                array = Some(begun);
            }
        }
        if let Some(array) = array {
            array.put(out);
        }
        Ok(Outcome::Read)
    }
}

fn is_heading(line: &[u8]) -> bool {
    line.starts_with(b"Personalities") || line.starts_with(b"unused devices")
}

impl<'a> Array<'a> {
    /// `md0 : active (auto-read-only) raid1 sdb1[1](S) sda1[0](F)`.
    fn begin(line: &'a [u8]) -> Option<Self> {
        let mut fields = text::fields(line);
        let name = fields.next()?;
        if fields.next()? != b":" {
            return None;
        }
        let state = match fields.next()? {
            b"active" => "active",
            _ => "inactive",
        };
        let mut array = Self {
            name,
            state,
            active: 0,
            failed: 0,
            spare: 0,
            required: 0,
            blocks: 0,
            synced: None,
        };
        for member in fields.filter(|field| field.contains(&b'[')) {
            match member.rsplit(|&byte| byte == b']').next() {
                Some(b"(F)") => array.failed += 1,
                Some(b"(S)") => array.spare += 1,
                _ => array.active += 1,
            }
        }
        // A RAID 0 or a linear array does not say how many it should have: all it has.
        array.required = array.active;
        Some(array)
    }

    /// A line that belongs to it: blocks and members, or progress.
    fn add(&mut self, line: &[u8]) {
        let mut fields = text::fields(line).peekable();
        if let Some(blocks) = fields.peek().copied().and_then(text::unsigned) {
            self.blocks = blocks;
            if let Some((required, active)) = fields.find_map(members) {
                self.required = required;
                self.active = active;
            }
            return;
        }
        let doing = [
            (&b"recovery"[..], "recovering"),
            (b"reshape", "recovering"),
            (b"resync", "resync"),
            (b"check", "check"),
        ];
        for field in text::fields(line) {
            let word = field.split(|&byte| byte == b'=').next().unwrap_or_default();
            if let Some((_, state)) = doing.iter().find(|(doing, _)| *doing == word) {
                self.state = state;
                self.synced.get_or_insert(0);
            }
            if let Some((done, _)) = progress(field) {
                self.synced = Some(done);
            }
        }
    }

    fn put(&self, out: &mut Readings) {
        if !out.admits_object(SERIES_PER_ARRAY) {
            return;
        }
        let device = &*text::lossy(self.name);
        for state in STATES {
            let is = i64::from(state == self.state);
            out.int(catalog::MD_STATE, &[device, state], is);
        }
        for (state, count) in [
            ("active", self.active),
            ("failed", self.failed),
            ("spare", self.spare),
        ] {
            out.unsigned(catalog::MD_DISKS, &[device, state], count);
        }
        out.unsigned(catalog::MD_DISKS_REQUIRED, &[device], self.required);
        out.unsigned(catalog::MD_BLOCKS, &[device], self.blocks);
        let synced = self.synced.unwrap_or(self.blocks);
        out.unsigned(catalog::MD_BLOCKS_SYNCED, &[device], synced);
    }
}

/// `[2/1]`.
fn members(field: &[u8]) -> Option<(u64, u64)> {
    pair(field.strip_prefix(b"[")?.strip_suffix(b"]")?)
}

/// `(8813056/195310144)`.
fn progress(field: &[u8]) -> Option<(u64, u64)> {
    pair(field.strip_prefix(b"(")?.strip_suffix(b")")?)
}

fn pair(field: &[u8]) -> Option<(u64, u64)> {
    let slash = field.iter().position(|&byte| byte == b'/')?;
    Some((
        text::unsigned(&field[..slash])?,
        text::unsigned(&field[slash + 1..])?,
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    const MDSTAT: &str = "Personalities : [raid1] [raid6]\n\
        md3 : active raid6 sda1[8] sdh1[7] sdg1[6](F) sdf1[5] sdb1[2](S)\n      \
            5853468288 blocks super 1.2 level 6, 64k chunk, algorithm 2 [8/6] [UUUUU_UU]\n      \
            bitmap: 0/1 pages [0KB], 65536KB chunk\n\n\
        md8 : active raid1 sdb1[1] sda1[0]\n      195310144 blocks [2/2] [UU]\n      \
            [=>...................]  resync =  8.5% (16775552/195310144) finish=17.0min speed=259783K/sec\n\n\
        md4 : inactive raid1 sda3[0](F) sdb3[1](S)\n      4883648 blocks\n\n\
        md9 : active raid0 sdc2[0] sdd2[1]\n      523968 blocks super 1.2 512k chunks\n\n\
        md10 : active (auto-read-only) raid1 sdb2[1] sda2[0]\n      100 blocks [2/2] [UU]\n      \tresync=PENDING\n\n\
        md11 : active raid1 sdb2[1] sda2[2]\n      100 blocks [2/1] [_U]\n      \
            [===>....]  recovery = 16.9% (17/100) finish=0.1min\n\
        unused devices: <none>\n";

    #[test]
    fn arrays_are_told_as_node_exporter_does() {
        let mut host = testing::Host::new();
        let mut mdadm = Mdadm::default();
        assert_eq!(host.run(&mut mdadm).ok(), Some(Outcome::NoData));
        host.write(PATH, MDSTAT);
        let values = host.collect(&mut mdadm);
        // device, state, active, failed, spare, required, blocks, synced
        for (device, state, numbers) in [
            (
                "md3",
                "active",
                [6.0, 1.0, 1.0, 8.0, 5_853_468_288.0, 5_853_468_288.0],
            ),
            (
                "md8",
                "resync",
                [2.0, 0.0, 0.0, 2.0, 195_310_144.0, 16_775_552.0],
            ),
            (
                "md4",
                "inactive",
                [0.0, 1.0, 1.0, 0.0, 4_883_648.0, 4_883_648.0],
            ),
            ("md9", "active", [2.0, 0.0, 0.0, 2.0, 523_968.0, 523_968.0]),
            ("md10", "resync", [2.0, 0.0, 0.0, 2.0, 100.0, 0.0]),
            ("md11", "recovering", [1.0, 0.0, 0.0, 2.0, 100.0, 17.0]),
        ] {
            for other in STATES {
                let series = format!("node_md_state{{device={device:?},state={other:?}}}");
                assert_eq!(
                    values[&series],
                    f64::from(u8::from(other == state)),
                    "{series}"
                );
            }
            let disks = |state: &str| {
                values[&format!("node_md_disks{{device={device:?},state={state:?}}}")]
            };
            let of = |name: &str| values[&format!("node_md_{name}{{device={device:?}}}")];
            let found = [
                disks("active"),
                disks("failed"),
                disks("spare"),
                of("disks_required"),
                of("blocks"),
                of("blocks_synced"),
            ];
            assert_eq!(found, numbers, "{device}");
        }
        host.write(PATH, "md0 active raid1\n");
        assert!(host.fails(&mut mdadm));
    }

    testing::garbage!(
        Mdadm::default(),
        PATH,
        "(md0 : active|   10 blocks|   \\[=>\\] resync =)( [a-z0-9()\\[\\]/=%.]{0,9}){0,4}\n"
    );
}
