//! `/proc/sys/fs/file-nr`: file handles in use and allowed.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const PATH: &str = "proc/sys/fs/file-nr";

static ABOUT: About = About {
    name: "filefd",
    every: Duration::from_secs(10),
    reads: "/proc/sys/fs/file-nr",
    needs: "",
    what: "file handles in use and allowed",
};

/// See the module.
#[derive(Debug)]
pub struct Filefd {
    file: KeptFile,
}

impl Default for Filefd {
    fn default() -> Self {
        Self {
            file: KeptFile::whole(PATH),
        }
    }
}

impl Collector for Filefd {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let line = self.file.read(host)?.trim_ascii();
        let mut numbers = text::fields(line).map(text::unsigned);
        // Allocated, allocated and free (0 since Linux 2.6), most.
        let (Some(Some(allocated)), Some(_), Some(Some(maximum))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(CollectError::Malformed {
                path: PATH,
                what: "three numbers",
            });
        };
        out.unsigned(catalog::FILEFD_ALLOCATED, &[], allocated);
        out.unsigned(catalog::FILEFD_MAXIMUM, &[], maximum);
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn the_first_and_the_third_number_count() {
        let mut host = testing::Host::new();
        host.write(PATH, "1376\t0\t9223372036854775807\n");
        let values = host.collect(&mut Filefd::default());
        assert_eq!(values["node_filefd_allocated"], 1376.0);
        assert_eq!(values["node_filefd_maximum"], 9_223_372_036_854_775_807_f64);
        for text in ["", "1 2", "a b c"] {
            host.write(PATH, text);
            assert!(host.fails(&mut Filefd::default()), "{text:?}");
        }
    }

    testing::garbage!(Filefd::default(), PATH, "[0-9x]{0,22}[\t ]");
}
