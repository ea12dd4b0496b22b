//! `/proc/vmstat`: paging, swapping and the out-of-memory killer.
//!
//! Printing the file is the most expensive of all a round reads, a third of the whole, and of its 150
//! lines seven are of use: so it is read every few seconds only.

use std::time::Duration;

use muster_proto::catalog::{self, FamilyId};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/vmstat";

const FIELDS: [(&[u8], FamilyId); 7] = [
    (b"pgpgin", catalog::VMSTAT_PGPGIN),
    (b"pgpgout", catalog::VMSTAT_PGPGOUT),
    (b"pswpin", catalog::VMSTAT_PSWPIN),
    (b"pswpout", catalog::VMSTAT_PSWPOUT),
    (b"pgfault", catalog::VMSTAT_PGFAULT),
    (b"pgmajfault", catalog::VMSTAT_PGMAJFAULT),
    (b"oom_kill", catalog::VMSTAT_OOM_KILL),
];

static ABOUT: About = About {
    name: "vmstat",
    every: Duration::from_secs(5),
    reads: "/proc/vmstat",
    needs: "",
    what: "paging, swapping, processes killed for lack of memory",
};

/// See the module.
#[derive(Debug)]
pub struct Vmstat {
    file: KeptFile,
}

impl Default for Vmstat {
    fn default() -> Self {
        Self {
            file: KeptFile::lines(PATH),
        }
    }
}

impl Collector for Vmstat {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let malformed = |what| CollectError::Malformed { path: PATH, what };
        let mut found = 0;
        for line in text::lines(self.file.read(host)?) {
            let mut fields = text::fields(line);
            let key = fields.next();
            let Some((_, family)) = FIELDS.iter().find(|(name, _)| Some(*name) == key) else {
                continue;
            };
            let value = fields.next().and_then(text::unsigned);
            out.unsigned(
                *family,
                &[],
                value.ok_or(malformed("a number after a name"))?,
            );
            found += 1;
            if found == FIELDS.len() {
                break;
            }
        }
        // Kernels before 4.13 have no oom_kill, and those without swap no pswpin.
        if found == 0 {
            return Err(malformed("at least one of the counters of pages"));
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn seven_fields_are_chosen() {
        let mut host = testing::Host::new();
        host.write(
            PATH,
            "nr_free_pages 9\npgpgin 1\npgfault 2\npgfault_x 3\noom_kill 4\n",
        );
        let values = host.collect(&mut Vmstat::default());
        assert_eq!(values.len(), 3);
        assert_eq!(values["node_vmstat_pgfault"], 2.0);
        assert_eq!(values["node_vmstat_oom_kill"], 4.0);
        for text in ["", "nr_free_pages 9\n", "pgpgin\n", "pgpgin x\n"] {
            host.write(PATH, text);
            assert!(host.fails(&mut Vmstat::default()), "{text:?}");
        }
    }

    testing::garbage!(
        Vmstat::default(),
        PATH,
        "(pgpgin|pgfault|oom_kill|x) ?[0-9x]{0,22}\n"
    );
}
