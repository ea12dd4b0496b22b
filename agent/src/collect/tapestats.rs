//! `/sys/class/scsi_tape`: what tape drives have read and written.

use std::time::Duration;

use super::{
    About, CollectError, Collector, Outcome, Readings,
    attributes::{Attribute, Attributes, attributes},
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/scsi_tape/";

const FILES: &[Attribute] = attributes! {
    "in_flight" "node_tape_io_now" Gauge One;
    "io_ns" "node_tape_io_time_seconds_total" Counter Nano;
    "other_cnt" "node_tape_io_others_total" Counter One;
    "read_byte_cnt" "node_tape_read_bytes_total" Counter One;
    "read_cnt" "node_tape_reads_completed_total" Counter One;
    "read_ns" "node_tape_read_time_seconds_total" Counter Nano;
    "resid_cnt" "node_tape_residual_total" Counter One;
    "write_byte_cnt" "node_tape_written_bytes_total" Counter One;
    "write_cnt" "node_tape_writes_completed_total" Counter One;
    "write_ns" "node_tape_write_time_seconds_total" Counter Nano;
};

static ABOUT: About = About {
    name: "tapestats",
    every: Duration::from_secs(30),
    reads: "/sys/class/scsi_tape",
    needs: "",
    what: "reads, writes and bytes of tape drives",
};

/// See the module.
#[derive(Debug)]
pub struct Tapestats {
    names: Names,
    files: Files,
    attributes: Attributes,
}

impl Default for Tapestats {
    fn default() -> Self {
        Self {
            names: Names::default(),
            files: Files::default(),
            attributes: Attributes::new(FILES, &["device"]),
        }
    }
}

impl Collector for Tapestats {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if !self.names.list(host, CLASS)? {
            return Ok(Outcome::NoData);
        }
        // st0a, nst0 and their like are other names of the same drive.
        for name in self
            .names
            .iter()
            .filter(|name| numbered(name, b"st").is_some())
        {
            let folder: [&[u8]; 3] = [CLASS, name, b"/stats"];
            let device = text::lossy(name);
            self.attributes
                .put(&mut self.files, host, &folder, &[&device], out);
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn drives_are_told_once() {
        let mut host = testing::Host::new();
        let mut tapes = Tapestats::default();
        assert_eq!(host.run(&mut tapes).ok(), Some(Outcome::NoData));
        host.write("sys/class/scsi_tape/st0/stats/write_ns", "5233597394395\n");
        host.write("sys/class/scsi_tape/nst0/stats/write_ns", "1\n");
        host.write("sys/class/scsi_tape/st0/stats/write_cnt", "53772916\n");
        let values = host.collect(&mut tapes);
        assert_eq!(
            values[r#"node_tape_write_time_seconds_total{device="st0"}"#],
            5_233.597_394_395
        );
        assert_eq!(values.len(), 2);
    }

    testing::garbage!(
        Tapestats::default(),
        "sys/class/scsi_tape/st0/stats/io_ns",
        "[0-9x-]{0,22}\n"
    );
}
