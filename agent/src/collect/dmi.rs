//! `/sys/class/dmi/id`: the hardware as the firmware describes it. Serial numbers are not read.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings};
use crate::host::HostRoot;

/// Files, in the order of the labels of `node_dmi_info`.
const FILES: [&str; 13] = [
    "bios_date",
    "bios_vendor",
    "bios_version",
    "board_name",
    "board_vendor",
    "board_version",
    "chassis_vendor",
    "chassis_version",
    "product_family",
    "product_name",
    "product_sku",
    "product_version",
    "sys_vendor",
];

static ABOUT: About = About {
    name: "dmi",
    every: Duration::from_secs(3600),
    reads: "/sys/class/dmi/id",
    needs: "",
    what: "maker and model of the machine, its board and firmware",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Dmi(());

impl Collector for Dmi {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let values = FILES.map(|file| {
            host.word(format!("sys/class/dmi/id/{file}"))
                .unwrap_or_default()
        });
        if values.iter().all(String::is_empty) {
            return Ok(Outcome::NoData);
        }
        let labels = values.each_ref().map(String::as_str);
        out.int(catalog::DMI_INFO, &labels, 1);
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn what_is_there_is_told() {
        let mut host = testing::Host::new();
        assert_eq!(host.run(&mut Dmi::default()).ok(), Some(Outcome::NoData));
        host.write("sys/class/dmi/id/sys_vendor", "QEMU\n");
        host.write("sys/class/dmi/id/product_name", "Standard PC \n");
        let values = host.collect(&mut Dmi::default());
        let (series, _) = values.first_key_value().expect("one series");
        assert!(series.contains(r#"product_name="Standard PC""#), "{series}");
        assert!(series.contains(r#"system_vendor="QEMU""#), "{series}");
    }
}
