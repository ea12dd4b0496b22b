//! SELinux: whether it is on, and whether it enforces.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, sysfs::Files, text};
use crate::host::HostRoot;

const MOUNT: &[u8] = b"sys/fs/selinux";
const ENFORCE: &[u8] = b"sys/fs/selinux/enforce";
const CONFIG: &[u8] = b"etc/selinux/config";

static ABOUT: About = About {
    name: "selinux",
    every: Duration::from_secs(60),
    reads: "/sys/fs/selinux, /etc/selinux/config",
    needs: "",
    what: "whether SELinux is on and enforces",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Selinux {
    files: Files,
}

impl Collector for Selinux {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let enforces = self.files.signed(host, &[ENFORCE]);
        let enabled = enforces.is_some() || self.files.exists(host, &[MOUNT, b"/status"]);
        out.int(catalog::SELINUX_ENABLED, &[], i64::from(enabled));
        if !enabled {
            return Ok(Outcome::Read);
        }
        if let Some(mode) = enforces {
            out.int(catalog::SELINUX_CURRENT_MODE, &[], mode);
        }
        let config = self.files.word(host, &[CONFIG]).unwrap_or_default();
        let chosen =
            text::lines(config).find_map(|line| line.trim_ascii().strip_prefix(b"SELINUX="));
        let mode = match chosen.map(<[u8]>::trim_ascii) {
            Some(b"enforcing") => 1,
            Some(b"permissive") => 0,
            _ => -1,
        };
        out.int(catalog::SELINUX_CONFIG_MODE, &[], mode);
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn modes_are_told_where_it_is_on() {
        let mut host = testing::Host::new();
        let values = host.collect(&mut Selinux::default());
        assert_eq!((values["node_selinux_enabled"], values.len()), (0.0, 1));
        host.write("sys/fs/selinux/enforce", "0");
        host.write(
            "etc/selinux/config",
            "# SELINUX= can be\nSELINUX=enforcing\nSELINUXTYPE=x\n",
        );
        let values = host.collect(&mut Selinux::default());
        assert_eq!(values["node_selinux_enabled"], 1.0);
        assert_eq!(values["node_selinux_current_mode"], 0.0);
        assert_eq!(values["node_selinux_config_mode"], 1.0);
    }

    testing::garbage!(
        Selinux::default(),
        "sys/fs/selinux/enforce",
        "-?[0-9x]{0,22}\n"
    );
}
