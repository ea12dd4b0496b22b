//! The running kernel, a short list of its settings, and whether the package manager wants a reboot.

use std::collections::BTreeMap;

use muster_proto::{
    event, limits,
    time::Timestamp,
    v1::{EventFieldKey, EventKind},
};
use serde::{Deserialize, Serialize};

use super::Found;
use crate::host::HostRoot;

const RELEASE: &str = "proc/sys/kernel/osrelease";

/// Debian and Ubuntu put a file here; dnf's `needs-restarting` keeps nothing that could be read.
const REBOOT: [&str; 2] = ["run/reboot-required", "var/run/reboot-required"];

/// Settings whose change has brought down services, and that nobody changes by the minute.
const SETTINGS: [&str; 20] = [
    "fs.aio-max-nr",
    "fs.file-max",
    "fs.inotify.max_user_watches",
    "kernel.panic",
    "kernel.pid_max",
    "kernel.threads-max",
    "net.core.somaxconn",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_syncookies",
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv6.conf.all.forwarding",
    "net.netfilter.nf_conntrack_max",
    "vm.dirty_ratio",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "vm.swappiness",
];

/// What is known.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    kernel: Option<String>,
    settings: Option<BTreeMap<String, String>>,
    reboot: Option<bool>,
}

/// Compares with what is known; true if that changed.
pub fn look(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let kernel = look_at_kernel(host, at, known, found);
    let settings = look_at_settings(host, at, known, found);
    let wanted = REBOOT.iter().any(|path| host.join(path).exists());
    let reboot = known.reboot != Some(wanted);
    // That none is wanted at the first look is no news.
    if reboot && known.reboot.replace(wanted).unwrap_or(false) != wanted {
        let to = if wanted { "wanted" } else { "done" };
        let fields = vec![event::word(EventFieldKey::To, to)];
        found.event(at, EventKind::RebootWanted, "", fields);
    }
    kernel | settings | reboot
}

fn look_at_kernel(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let Some(now) = word(host, RELEASE) else {
        return false;
    };
    if known.kernel.as_ref() == Some(&now) {
        return false;
    }
    if let Some(before) = &known.kernel {
        found.event(at, EventKind::KernelChanged, "", from_to(before, &now));
    }
    known.kernel = Some(now);
    true
}

fn look_at_settings(host: &HostRoot, at: Timestamp, known: &mut Known, found: &mut Found) -> bool {
    let now: BTreeMap<String, String> = SETTINGS
        .into_iter()
        .filter_map(|name| {
            let path = format!("proc/sys/{}", name.replace('.', "/"));
            Some((name.to_owned(), word(host, &path)?))
        })
        .collect();
    if known.settings.as_ref() == Some(&now) {
        return false;
    }
    let before = known.settings.replace(now);
    for (name, value) in known.settings.iter().flatten() {
        // One that appears came with a module that was loaded.
        let old = before.as_ref().and_then(|before| before.get(name));
        if let Some(old) = old.filter(|old| *old != value) {
            found.event(at, EventKind::SysctlChanged, name, from_to(old, value));
        }
    }
    true
}

fn from_to(from: &str, to: &str) -> Vec<muster_proto::v1::EventField> {
    vec![
        event::word(EventFieldKey::From, from),
        event::word(EventFieldKey::To, to),
    ]
}

fn word(host: &HostRoot, path: &str) -> Option<String> {
    let word = host.word(path)?.replace('\t', " ");
    Some(event::printable(&word, limits::MAX_EVENT_WORD_BYTES))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Tree, at},
        *,
    };

    #[test]
    fn kernel_settings_and_reboots_that_are_wanted() {
        let tree = Tree::new(&[
            (RELEASE, "6.1.0-1-amd64\n"),
            ("proc/sys/vm/swappiness", "60\n"),
        ]);
        let (mut known, mut found) = (Known::default(), Found::default());
        let mut look = || {
            let changed = look(&tree.host(), at(0), &mut known, &mut found);
            (changed, found.words())
        };
        assert_eq!(look(), (true, vec![]), "the first look only learns");
        assert_eq!(look(), (false, vec![]));
        tree.write(RELEASE, "6.1.0-2-amd64\n");
        tree.write("proc/sys/vm/swappiness", "10\n");
        tree.write("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n");
        tree.write("run/reboot-required", "");
        let expected = [
            "kernel 6.1.0-1-amd64 → 6.1.0-2-amd64",
            "vm.swappiness 60 → 10",
            "a reboot is wanted by the packages",
        ];
        assert_eq!(look(), (true, expected.map(str::to_owned).to_vec()));
        tree.write("proc/sys/net/ipv4/ip_local_port_range", "2048\t65535\n");
        tree.remove("run/reboot-required");
        let expected = [
            "net.ipv4.ip_local_port_range 1024 65535 → 2048 65535",
            "a reboot is no longer wanted",
        ];
        assert_eq!(look(), (true, expected.map(str::to_owned).to_vec()));
    }
}
