//! `/sys/devices/system/edac/mc`: memory errors, by controller and by row of chips.

use std::time::Duration;

use muster_proto::catalog::{
    EDAC_CORRECTABLE, EDAC_CSROW_CORRECTABLE, EDAC_CSROW_UNCORRECTABLE, EDAC_UNCORRECTABLE,
    FamilyId,
};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const CONTROLLERS: &[u8] = b"sys/devices/system/edac/mc/";

/// Errors whose row of chips is not known are shown under this name.
const UNKNOWN: &str = "unknown";

static ABOUT: About = About {
    name: "edac",
    every: Duration::from_secs(60),
    reads: "/sys/devices/system/edac/mc",
    needs: "",
    what: "memory errors that were corrected and that were not",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Edac {
    controllers: Names,
    rows: Names,
    files: Files,
    folder: Vec<u8>,
}

impl Collector for Edac {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.controllers.list(host, CONTROLLERS)?;
        for name in self.controllers.iter() {
            let Some(controller) = numbered(name, b"mc") else {
                continue;
            };
            let controller = text::lossy(controller);
            let files = &mut self.files;
            let plain: [(&[u8], FamilyId); 2] = [
                (b"/ce_count", EDAC_CORRECTABLE),
                (b"/ue_count", EDAC_UNCORRECTABLE),
            ];
            for (file, family) in plain {
                if let Some(errors) = files.unsigned(host, &[CONTROLLERS, name, file]) {
                    out.unsigned(family, &[&controller], errors);
                }
            }
            let without_row: [(&[u8], FamilyId); 2] = [
                (b"/ce_noinfo_count", EDAC_CSROW_CORRECTABLE),
                (b"/ue_noinfo_count", EDAC_CSROW_UNCORRECTABLE),
            ];
            for (file, family) in without_row {
                if let Some(errors) = files.unsigned(host, &[CONTROLLERS, name, file]) {
                    out.unsigned(family, &[&controller, UNKNOWN], errors);
                }
            }
            self.folder.clear();
            self.folder.extend_from_slice(CONTROLLERS);
            self.folder.extend_from_slice(name);
            self.rows.list(host, &self.folder)?;
            for row_name in self.rows.iter() {
                let Some(row) = numbered(row_name, b"csrow") else {
                    continue;
                };
                if !out.admits_object(2) {
                    continue;
                }
                let row = text::lossy(row);
                let of_row: [(&[u8], FamilyId); 2] = [
                    (b"/ce_count", EDAC_CSROW_CORRECTABLE),
                    (b"/ue_count", EDAC_CSROW_UNCORRECTABLE),
                ];
                for (file, family) in of_row {
                    let path = [&*self.folder, b"/", row_name, file];
                    if let Some(errors) = files.unsigned(host, &path) {
                        out.unsigned(family, &[&controller, &row], errors);
                    }
                }
            }
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn errors_are_told_by_controller_and_row() {
        let mut host = testing::Host::new();
        assert!(host.collect(&mut Edac::default()).is_empty());
        let base = "sys/devices/system/edac/mc/mc0";
        for (file, errors) in [
            ("ce_count", 1),
            ("ue_count", 5),
            ("ce_noinfo_count", 2),
            ("ue_noinfo_count", 6),
            ("csrow0/ce_count", 3),
            ("csrow0/ue_count", 4),
        ] {
            host.write(&format!("{base}/{file}"), format!("{errors}\n"));
        }
        let values = host.collect(&mut Edac::default());
        let of = |name: &str| values[&format!("node_edac_{name}")];
        assert_eq!(of(r#"correctable_errors_total{controller="0"}"#), 1.0);
        assert_eq!(of(r#"uncorrectable_errors_total{controller="0"}"#), 5.0);
        let row = |name: &str, row: &str| {
            of(&format!(
                "csrow_{name}_errors_total{{controller=\"0\",csrow={row:?}}}"
            ))
        };
        assert_eq!(
            (row("correctable", "unknown"), row("correctable", "0")),
            (2.0, 3.0)
        );
        assert_eq!(
            (row("uncorrectable", "unknown"), row("uncorrectable", "0")),
            (6.0, 4.0)
        );
        assert_eq!(values.len(), 6);
    }

    testing::garbage!(
        Edac::default(),
        "sys/devices/system/edac/mc/mc0/ce_count",
        "[0-9x-]{0,22}\n"
    );
}
