//! `/proc/meminfo`: every line becomes a gauge of node_exporter's name.
//!
//! Which lines there are is the kernel's choice, so the families are made as they are met. The names met
//! last time are kept in their order: in a usual round no name is built.

use std::time::Duration;

use muster_proto::{
    catalog::{self, FamilyId},
    series::{Kind, Scale},
};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/meminfo";

/// Most lines that are looked at; kernels have about 60.
const MAX_LINES: usize = 256;

static ABOUT: About = About {
    name: "meminfo",
    every: Duration::ZERO,
    reads: "/proc/meminfo",
    needs: "",
    what: "memory and swap in use, as the kernel counts them",
};

/// See the module.
#[derive(Debug)]
pub struct Meminfo {
    file: KeptFile,
    known: Vec<Known>,
}

/// A line met before.
#[derive(Debug)]
struct Known {
    field: Vec<u8>,
    kibi: bool,
    /// `None` if it can have no family.
    family: Option<FamilyId>,
}

impl Default for Meminfo {
    fn default() -> Self {
        Self {
            file: KeptFile::whole(PATH),
            known: Vec::new(),
        }
    }
}

impl Collector for Meminfo {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let meminfo = self.file.read(host)?;
        let mut total = false;
        for (number, line) in text::lines(meminfo).take(MAX_LINES).enumerate() {
            let (field, value, kibi) =
                parse(line).ok_or(malformed("a name, a number and a unit"))?;
            total |= field == b"MemTotal";
            if let Some(family) = family(&mut self.known, number, field, kibi, out) {
                out.unsigned(family, &[], value);
            }
        }
        if !total {
            return Err(malformed("the line MemTotal"));
        }
        Ok(Outcome::Read)
    }
}

/// Name, number, and whether it is in KiB.
fn parse(line: &[u8]) -> Option<(&[u8], u64, bool)> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let mut fields = text::fields(&line[colon + 1..]);
    let value = text::unsigned(fields.next()?)?;
    Some((&line[..colon], value, fields.next() == Some(b"kB")))
}

fn family(
    known: &mut Vec<Known>,
    number: usize,
    field: &[u8],
    kibi: bool,
    out: &mut Readings,
) -> Option<FamilyId> {
    if let Some(known) = known.get(number)
        && known.field == field
        && known.kibi == kibi
    {
        return known.family;
    }
    // The kernel's list is another from here on.
    known.truncate(number);
    let scale = if kibi { Scale::Kibi } else { Scale::One };
    let family = catalog::memory_name(&text::lossy(field), kibi)
        .and_then(|name| out.dynamic_family(&name, Kind::Gauge, scale, &[]));
    known.push(Known {
        field: field.to_owned(),
        kibi,
        family,
    });
    family
}

fn malformed(what: &'static str) -> CollectError {
    CollectError::Malformed { path: PATH, what }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn lines_keep_their_names_and_units() {
        let mut host = testing::Host::new();
        let mut meminfo = Meminfo::default();
        host.write(
            PATH,
            "MemTotal: 2 kB\nActive(anon):  3 kB\nHugePages_Free: 4\n",
        );
        let values = host.collect(&mut meminfo);
        assert_eq!(values["node_memory_MemTotal_bytes"], 2048.0);
        assert_eq!(values["node_memory_Active_anon_bytes"], 3072.0);
        assert_eq!(values["node_memory_HugePages_Free"], 4.0);
        host.write(PATH, "MemTotal: 2 kB\nHugePages_Free: 5\nZswap: 1 kB\n");
        let values = host.collect(&mut meminfo);
        assert_eq!(values.len(), 3);
        assert_eq!(values["node_memory_HugePages_Free"], 5.0);
        assert_eq!(values["node_memory_Zswap_bytes"], 1024.0);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in ["", "MemFree: 1 kB\n", "MemTotal: kB\n", "MemTotal 5 kB\n"] {
            let mut host = testing::Host::new();
            host.write(PATH, text);
            assert!(host.fails(&mut Meminfo::default()), "{text:?}");
        }
    }

    testing::garbage!(
        Meminfo::default(),
        PATH,
        "([A-Za-z()_]{0,12}: *[0-9x]{1,22}( kB)?\n|MemTotal: 5 kB\n)"
    );
}
