//! `os-release`: which distribution the host runs; and since when its package manager wants a reboot.

use std::{
    fs::Metadata,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use muster_proto::catalog;

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, ReadError};

/// Where os-release(5) says to look, in order.
const PATHS: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];

/// Where packages of Debian and its kin leave word that they want a reboot; dnf keeps nothing that could be read.
const REBOOT: [&str; 2] = ["run/reboot-required", "var/run/reboot-required"];

/// Most variables that are kept; distributions have about 15.
const MAX_VARIABLES: usize = 64;

static ABOUT: About = About {
    name: "os",
    every: Duration::from_secs(300),
    reads: "/etc/os-release, /run/reboot-required",
    needs: "",
    what: "name and version of the distribution, since when it wants a reboot",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Os(());

/// The variables of an os-release file.
#[derive(Debug, Default)]
pub struct Release(Vec<(String, String)>);

impl Release {
    /// Reads the first of the two files that exists.
    ///
    /// # Errors
    /// [`ReadError`] of the second when neither can be read.
    pub fn read(host: &HostRoot) -> Result<Self, ReadError> {
        let bytes = host.read(PATHS[0]).or_else(|_| host.read(PATHS[1]))?;
        Ok(Self::parse(&bytes))
    }

    /// Lines that assign nothing are passed over.
    fn parse(bytes: &[u8]) -> Self {
        let assignment = |line: &[u8]| {
            let text = text::lossy(line.trim_ascii());
            let (key, value) = text.split_once('=')?;
            let legal = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            (!key.is_empty() && key.chars().all(legal)).then(|| (key.to_owned(), unquote(value)))
        };
        let variables = text::lines(bytes).filter_map(assignment);
        Self(variables.take(MAX_VARIABLES).collect())
    }

    /// Whether its packages leave word of a reboot they want.
    fn leaves_word(&self) -> bool {
        let kin = self.value("ID_LIKE").split_ascii_whitespace();
        kin.chain([self.value("ID")])
            .any(|id| matches!(id, "debian" | "ubuntu"))
    }

    /// The value of a variable; empty if it is not set.
    #[must_use]
    pub fn value(&self, key: &str) -> &str {
        let found = self.0.iter().rfind(|(known, _)| known == key);
        found.map_or("", |(_, value)| value)
    }
}

/// The value as a shell would read it, for the little that os-release(5) allows.
fn unquote(value: &str) -> String {
    if let Some(inner) = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')) {
        return inner.to_owned();
    }
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let mut plain = String::new();
    let mut chars = quoted.unwrap_or(value).chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            c => plain.push(c),
        }
    }
    plain
}

impl Collector for Os {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let release = match Release::read(host) {
            Ok(release) => release,
            Err(error) if error.is_absent() => return Ok(Outcome::NoData),
            Err(error) => return Err(error.into()),
        };
        if release.0.is_empty() {
            return Err(CollectError::Malformed {
                path: PATHS[0],
                what: "at least one assignment",
            });
        }
        let keys = [
            "BUILD_ID",
            "ID",
            "ID_LIKE",
            "IMAGE_ID",
            "IMAGE_VERSION",
            "NAME",
            "PRETTY_NAME",
            "VARIANT",
            "VARIANT_ID",
            "VERSION",
            "VERSION_CODENAME",
            "VERSION_ID",
        ];
        out.int(catalog::OS_INFO, &keys.map(|key| release.value(key)), 1);
        if let Some(version) = version_number(release.value("VERSION_ID")) {
            let labels = ["ID", "ID_LIKE", "NAME"].map(|key| release.value(key));
            out.float(catalog::OS_VERSION, &labels, version);
        }
        let wanted = reboot_wanted_since(host);
        // Nothing is said where nothing would be: no file is no promise then.
        if wanted.is_some() || release.leaves_word() {
            out.unsigned(catalog::OS_REBOOT_WANTED, &[], wanted.unwrap_or(0));
        }
        Ok(Outcome::Read)
    }
}

/// Since when a reboot is wanted, in seconds since 1970; `None` while none is.
fn reboot_wanted_since(host: &HostRoot) -> Option<u64> {
    // Read, not only looked for: a captured host has what was read.
    let path = REBOOT.iter().find(|path| host.read(path).is_ok())?;
    let metadata = std::fs::metadata(host.join(path)).ok()?;
    first_written(&metadata)?
        .duration_since(UNIX_EPOCH)
        .ok()
        .map(|since| since.as_secs().max(1))
}

/// Each package that wants a reboot writes the file anew. When the first did is known where the filesystem keeps
/// that; elsewhere the last.
fn first_written(metadata: &Metadata) -> Option<SystemTime> {
    let created = metadata.created().ok();
    metadata.modified().ok().into_iter().chain(created).min()
}

/// Major and minor number as one: "22.04.3" is 22.04.
fn version_number(version: &str) -> Option<f64> {
    let mut parts = version.split('.');
    let digits = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let major = parts.next().filter(digits)?;
    match parts.next().filter(digits) {
        Some(minor) => format!("{major}.{minor}").parse().ok(),
        None => major.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn values_are_read_as_a_shell_would() {
        let release = Release::parse(
            b"# comment\nID=debian\nNAME=\"A \\\"B\\\" \\\\C\"\nVERSION_ID='12'\nlower=x\nID_LIKE=\nVARIANT",
        );
        assert_eq!(release.value("ID"), "debian");
        assert_eq!(release.value("NAME"), "A \"B\" \\C");
        assert_eq!(release.value("VERSION_ID"), "12");
        assert_eq!(release.value("lower"), "");
        assert_eq!(release.value("VARIANT"), "");
    }

    #[test]
    fn versions_become_numbers_where_they_are_numbers() {
        let table = [
            ("12", Some(12.0)),
            ("22.04", Some(22.04)),
            ("9.3.1", Some(9.3)),
            ("", None),
            ("rolling", None),
            ("12.beta", Some(12.0)),
        ];
        for (text, number) in table {
            assert_eq!(version_number(text), number, "{text}");
        }
    }

    #[test]
    fn a_wanted_reboot_is_told_with_its_time() {
        let mut host = testing::Host::new();
        let mut told = |path: &str, content: &str| {
            host.write(path, content);
            let values = host.collect(&mut Os::default());
            values
                .get("muster_host_reboot_required_since_seconds")
                .copied()
        };
        let release = "etc/os-release";
        assert_eq!(told(release, "ID=fedora\n"), None, "nobody would say so");
        let kin = "ID=mint\nID_LIKE=\"ubuntu debian\"\n";
        assert_eq!(told(release, kin), Some(0.0));
        let since = told("run/reboot-required", "*** System restart required ***\n");
        assert!(since.is_some_and(|since| since > 1_600_000_000.0));
    }

    testing::garbage!(
        Os::default(),
        PATHS[0],
        "[A-Z_]{0,6}=?[\"'\\\\a-z.0-9]{0,9}\n"
    );
}
