//! `/sys/class/watchdog`: the timers that reset a machine which hangs.

use std::time::Duration;

use muster_proto::catalog::{self, FamilyId};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/watchdog/";

const NUMBERS: [(&[u8], FamilyId); 7] = [
    (b"/access_cs0", catalog::WATCHDOG_ACCESS_CS0),
    (b"/bootstatus", catalog::WATCHDOG_BOOTSTATUS),
    (b"/fw_version", catalog::WATCHDOG_FW_VERSION),
    (b"/nowayout", catalog::WATCHDOG_NOWAYOUT),
    (b"/pretimeout", catalog::WATCHDOG_PRETIMEOUT),
    (b"/timeleft", catalog::WATCHDOG_TIMELEFT),
    (b"/timeout", catalog::WATCHDOG_TIMEOUT),
];

/// Files of the labels of `node_watchdog_info`, from the second on.
const LABELS: [&[u8]; 5] = [
    b"/options",
    b"/identity",
    b"/state",
    b"/status",
    b"/pretimeout_governor",
];
const GOVERNORS: &[u8] = b"/pretimeout_available_governors";

/// Most governors that are told; kernels have two.
const MAX_GOVERNORS: usize = 8;

static ABOUT: About = About {
    name: "watchdog",
    every: Duration::from_secs(60),
    reads: "/sys/class/watchdog",
    needs: "",
    what: "timers that reset a machine which hangs",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Watchdog {
    names: Names,
    files: Files,
}

impl Collector for Watchdog {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.names.list(host, CLASS)?;
        let mut outcome = Outcome::NoData;
        for name in self.names.iter() {
            if numbered(name, b"watchdog").is_none() || !out.admits_object(NUMBERS.len() + 1) {
                continue;
            }
            outcome = Outcome::Read;
            let label = text::lossy(name);
            let files = &mut self.files;
            for (file, family) in NUMBERS {
                if let Some(value) = files.signed(host, &[CLASS, name, file]) {
                    out.int(family, &[&label], value);
                }
            }
            let words = LABELS.map(|file| {
                let word = files.word(host, &[CLASS, name, file]);
                text::lossy(word.unwrap_or_default()).into_owned()
            });
            let [options, identity, state, status, governor] = words.each_ref().map(String::as_str);
            let info = [&*label, options, identity, state, status, governor];
            out.int(catalog::WATCHDOG_INFO, &info, 1);
            let governors = files.word(host, &[CLASS, name, GOVERNORS]);
            for governor in governors
                .unwrap_or_default()
                .split(u8::is_ascii_whitespace)
                .take(MAX_GOVERNORS)
            {
                let labels = [&*label, &text::lossy(governor)];
                out.int(catalog::WATCHDOG_AVAILABLE, &labels, 1);
            }
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn timers_are_told() {
        let mut host = testing::Host::new();
        let mut watchdog = Watchdog::default();
        assert_eq!(host.run(&mut watchdog).ok(), Some(Outcome::NoData));
        host.write("sys/class/watchdog/watchdog0/timeout", "60\n");
        host.write(
            "sys/class/watchdog/watchdog0/identity",
            "Software Watchdog\n",
        );
        let governors = "sys/class/watchdog/watchdog0/pretimeout_available_governors";
        host.write(governors, "noop\npanic\n");
        let values = host.collect(&mut watchdog);
        assert_eq!(
            values[r#"node_watchdog_timeout_seconds{name="watchdog0"}"#],
            60.0
        );
        assert_eq!(values.len(), 4);
    }

    testing::garbage!(
        Watchdog::default(),
        "sys/class/watchdog/watchdog0/timeout",
        "-?[0-9x]{0,22}\n"
    );
}
