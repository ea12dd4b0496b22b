//! `/proc/net/sockstat` and `sockstat6`: sockets in use by protocol, and the memory they hold.
//!
//! Lines are a protocol and pairs of name and number. `mem` counts pages; it is shown in bytes too.

use std::time::Duration;

use muster_proto::{
    catalog::FamilyId,
    series::{Kind, Scale},
};

use super::{About, CollectError, Collector, Outcome, Readings, memo::Memo, text};
use crate::host::{HostRoot, KeptFile};

const PATHS: [&str; 2] = ["proc/net/sockstat", "proc/net/sockstat6"];

/// Most pairs on a line; TCP has five.
const MAX_PAIRS: usize = 16;

static ABOUT: About = About {
    name: "sockstat",
    every: Duration::from_secs(10),
    reads: "/proc/net/{sockstat,sockstat6}",
    needs: "",
    what: "sockets in use by protocol, orphans, time-wait, memory of their buffers",
};

/// See the module.
#[derive(Debug)]
pub struct Sockstat {
    files: [KeptFile; 2],
    known: [Memo<Option<Families>>; 2],
    page_bytes: u64,
}

/// The family of a pair, and that of its bytes if it counts pages.
#[derive(Debug, Clone, Copy)]
struct Families {
    plain: FamilyId,
    bytes: Option<FamilyId>,
}

impl Default for Sockstat {
    fn default() -> Self {
        Self {
            files: PATHS.map(KeptFile::whole),
            known: [Memo::default(), Memo::default()],
            page_bytes: rustix::param::page_size() as u64,
        }
    }
}

impl Collector for Sockstat {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let mut outcome = Outcome::NoData;
        for ((path, file), known) in PATHS.into_iter().zip(&mut self.files).zip(&mut self.known) {
            // Without IPv6 there is no second file.
            let Some(bytes) = file.read_if_there(host)? else {
                continue;
            };
            let malformed = |what| CollectError::Malformed { path, what };
            for (number, line) in text::lines(bytes).enumerate() {
                let mut fields = text::fields(line);
                let protocol = fields.next().and_then(|name| name.strip_suffix(b":"));
                let protocol = protocol.ok_or(malformed("a protocol with a colon"))?;
                for pair in 0..MAX_PAIRS {
                    let Some(name) = fields.next() else { break };
                    let value = fields.next().and_then(text::signed);
                    let value = value.ok_or(malformed("a number behind each name"))?;
                    let decide = |name: &[u8]| families(protocol, name, out);
                    let place = number * MAX_PAIRS + pair;
                    let Some(families) = known.get(place, name, decide) else {
                        continue;
                    };
                    out.int(families.plain, &[], value);
                    if let Some(bytes) = families.bytes {
                        let pages = u64::try_from(value).unwrap_or(0);
                        out.unsigned(bytes, &[], pages.saturating_mul(self.page_bytes));
                    }
                }
                outcome = Outcome::Read;
            }
        }
        Ok(outcome)
    }
}

fn families(protocol: &[u8], name: &[u8], out: &mut Readings) -> Option<Families> {
    let full = format!(
        "node_sockstat_{}_{}",
        text::lossy(protocol),
        text::lossy(name)
    );
    let mut gauge = |name: &str| out.dynamic_family(name, Kind::Gauge, Scale::One, &[]);
    Some(Families {
        plain: gauge(&full)?,
        bytes: match name {
            b"mem" => gauge(&format!("{full}_bytes")),
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn pairs_become_gauges_and_pages_bytes_too() {
        let mut host = testing::Host::new();
        let mut sockstat = Sockstat::default();
        assert_eq!(host.run(&mut sockstat).ok(), Some(Outcome::NoData));
        host.write(
            PATHS[0],
            "sockets: used 229\nTCP: inuse 4 orphan 0 tw 4 alloc 17 mem 3\nFRAG: inuse 0 memory 0\n",
        );
        host.write(PATHS[1], "TCP6: inuse 17\n");
        let values = host.collect(&mut sockstat);
        assert_eq!(values["node_sockstat_sockets_used"], 229.0);
        assert_eq!(values["node_sockstat_TCP_tw"], 4.0);
        assert_eq!(values["node_sockstat_TCP_mem"], 3.0);
        let page = rustix::param::page_size() as f64;
        assert_eq!(values["node_sockstat_TCP_mem_bytes"], 3.0 * page);
        assert_eq!(values["node_sockstat_TCP6_inuse"], 17.0);
        assert_eq!(values.len(), 10);
        for wrong in ["sockets used 1\n", "TCP: inuse\n", "TCP: inuse many\n"] {
            let mut host = testing::Host::new();
            host.write(PATHS[0], wrong);
            assert!(host.fails(&mut Sockstat::default()), "{wrong:?}");
        }
    }

    testing::garbage!(
        Sockstat::default(),
        PATHS[0],
        "(TCP|x):?( (mem|used|-?[0-9]{1,21}|x)){0,5}\n"
    );
}
