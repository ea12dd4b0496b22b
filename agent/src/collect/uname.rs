//! Kernel and host name, as uname(2) gives them: the series by which dashboards choose a host.
//!
//! Another host than this machine is asked through the files of `/proc/sys/kernel`.

use std::time::Duration;

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings};
use crate::host::HostRoot;

static ABOUT: About = About {
    name: "uname",
    every: Duration::from_secs(60),
    reads: "uname(2)",
    needs: "",
    what: "kernel release, architecture and host name",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Uname(());

/// What uname(2) tells; empty where it is not known.
#[derive(Debug, Default)]
pub struct Names {
    /// Kernel: "Linux".
    pub sysname: String,
    /// Kernel release.
    pub release: String,
    /// Kernel version: build number and date.
    pub version: String,
    /// Architecture, in the kernel's words.
    pub machine: String,
    /// Host name.
    pub nodename: String,
    /// NIS domain; "(none)" when it has none.
    pub domainname: String,
}

/// The names of a host.
#[must_use]
pub fn names(host: &HostRoot) -> Names {
    if host.is_live() {
        let uname = rustix::system::uname();
        return Names {
            sysname: uname.sysname().to_string_lossy().into_owned(),
            release: uname.release().to_string_lossy().into_owned(),
            version: uname.version().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            nodename: uname.nodename().to_string_lossy().into_owned(),
            domainname: uname.domainname().to_string_lossy().into_owned(),
        };
    }
    let read = |name: &str| {
        let path = format!("proc/sys/kernel/{name}");
        host.word(path).unwrap_or_default()
    };
    Names {
        sysname: read("ostype"),
        release: read("osrelease"),
        version: read("version"),
        machine: read("arch"),
        nodename: read("hostname"),
        domainname: read("domainname"),
    }
}

impl Collector for Uname {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let names = names(host);
        if names.release.is_empty() && names.nodename.is_empty() {
            return Ok(Outcome::NoData);
        }
        let labels = [
            &names.sysname,
            &names.release,
            &names.version,
            &names.machine,
            &names.nodename,
            &names.domainname,
        ];
        out.int(catalog::UNAME_INFO, &labels.map(String::as_str), 1);
        Ok(Outcome::Read)
    }
}
