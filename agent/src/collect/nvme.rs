//! `/sys/class/nvme`: NVMe controllers, their firmware and their state.

use std::time::Duration;

use muster_proto::catalog;

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/nvme/";

/// Files of the labels of `node_nvme_info`, from the second on.
const LABELS: [&[u8]; 5] = [
    b"/firmware_rev",
    b"/model",
    b"/serial",
    b"/state",
    b"/cntlid",
];

static ABOUT: About = About {
    name: "nvme",
    every: Duration::from_secs(60),
    reads: "/sys/class/nvme",
    needs: "",
    what: "model, firmware and state of NVMe controllers",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Nvme {
    names: Names,
    files: Files,
}

impl Collector for Nvme {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if !self.names.list(host, CLASS)? {
            return Ok(Outcome::NoData);
        }
        for name in self.names.iter() {
            if numbered(name, b"nvme").is_none() || !out.admits_object(1) {
                continue;
            }
            let words = LABELS.map(|file| {
                let word = self.files.word(host, &[CLASS, name, file]);
                text::lossy(word.unwrap_or_default()).into_owned()
            });
            let [firmware, model, serial, state, cntlid] = words.each_ref().map(String::as_str);
            let labels = [&*text::lossy(name), firmware, model, serial, state, cntlid];
            out.int(catalog::NVME_INFO, &labels, 1);
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn controllers_are_told() {
        let mut host = testing::Host::new();
        let mut nvme = Nvme::default();
        assert_eq!(host.run(&mut nvme).ok(), Some(Outcome::NoData));
        host.write(
            "sys/class/nvme/nvme0/model",
            "Samsung SSD 970 PRO 512GB   \n",
        );
        host.write("sys/class/nvme/nvme0/state", "live\n");
        let values = host.collect(&mut nvme);
        let (series, _) = values.first_key_value().expect("one series");
        assert!(
            series.contains(r#"device="nvme0""#) && series.contains(r#"970 PRO 512GB""#),
            "{series}"
        );
        assert!(series.contains(r#"state="live""#), "{series}");
    }

    testing::garbage!(
        Nvme::default(),
        "sys/class/nvme/nvme0/model",
        "[ -~]{0,40}\n"
    );
}
