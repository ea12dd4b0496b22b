//! What to do when a rule has opened: for `muster rules explain`, for messages, and as `docs/runbooks.md`.
//!
//! Rules of the pack carry their own; those that are in the program stand here. The page is made from both, so it
//! cannot say anything else than the program.

use std::fmt::Write as _;

use super::{Definition, pack};

/// Where the page is read; each rule has an anchor of its name.
const PAGE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/runbooks.md");

/// A rule that is in the program.
#[derive(Debug, PartialEq, Eq)]
pub struct BuiltIn {
    /// Its name.
    pub name: &'static str,
    /// Its severity, in words.
    pub severity: &'static str,
    /// When it opens.
    pub opens: &'static str,
    /// What to do.
    pub runbook: &'static str,
}

/// The rules that are in the program.
pub const BUILT_IN: [BuiltIn; 6] = [
    BuiltIn {
        name: "host_silent",
        severity: "critical",
        opens: "nothing is heard, and no goodbye; or a planned reboot takes three times as long as the last",
        runbook: "Is the host up (console, hypervisor, ping)? Does the network reach it? Then on it: systemctl status muster-agent; journalctl -u muster-agent -n 50. muster host NAME says what was seen of the cause.",
    },
    BuiltIn {
        name: "filesystem_full_soon",
        severity: "warning",
        opens: "full within 24 h as it grows now (critical: 3 h), of space or of inodes",
        runbook: "du -x --max-depth=1 MOUNTPOINT | sort -n; what grows: find MOUNTPOINT -xdev -mmin -60 -size +100M. Deleted but still open: lsof +L1.",
    },
    BuiltIn {
        name: "filesystem_full",
        severity: "warning",
        opens: "90 % used for 5 min (critical: 97 %), with less than 50 GiB left; of space or of inodes",
        runbook: "du -x --max-depth=1 MOUNTPOINT | sort -n; for inodes, the folder with very many small files. Deleted but still open: lsof +L1.",
    },
    BuiltIn {
        name: "unit_failed",
        severity: "warning",
        opens: "a unit is in state failed",
        runbook: "systemctl status UNIT; journalctl -u UNIT -n 100. Mend it and start it, or systemctl reset-failed UNIT if it is not wanted.",
    },
    BuiltIn {
        name: "memory_leak",
        severity: "warning",
        opens: "the least of each six hours rises day by day, and all memory is used within 72 h",
        runbook: "Who grows: ps -eo rss,etimes,comm --sort=-rss | head, again in an hour. Restart it before the end, and tell who wrote it.",
    },
    BuiltIn {
        name: "host_score",
        severity: "none",
        opens: "all metrics together are unusual for this host; ranks hosts, makes no incident",
        runbook: "muster anomalies; muster host NAME names the metrics that moved.",
    },
];

/// What to do about a rule; `None` when it is not known here.
#[must_use]
pub fn runbook(rule: &str) -> Option<&'static str> {
    let of_pack = || pack().iter().find(|known| known.name == rule);
    let built_in = BUILT_IN.iter().find(|known| known.name == rule);
    built_in
        .map(|known| known.runbook)
        .or_else(|| of_pack().map(|known| &*known.runbook))
}

/// Where that is read with a browser; `None` when it is not known here.
#[must_use]
pub fn link(rule: &str) -> Option<String> {
    runbook(rule).map(|_| format!("{PAGE}#{rule}"))
}

/// Most bytes of an address: more than browsers and the services that are told take.
const MAX_ADDRESS: usize = 2_000;
/// Stands for the name of a rule in an address.
const RULE: &str = "{rule}";

/// Where runbooks are read: Muster's own page, or an address of whoever runs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runbooks(Option<String>);

impl Runbooks {
    /// Pages at this address, in which `{rule}` stands for the name of a rule; empty: Muster's own page.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn at(address: &str) -> Result<Self, String> {
        if address.is_empty() {
            return Ok(Self(None));
        }
        let scheme = ["https://", "http://"]
            .into_iter()
            .find(|scheme| address.starts_with(scheme));
        if scheme.is_none_or(|scheme| address[scheme.len()..].starts_with(['/', '?', '#'])) {
            return Err(format!(
                "{address:?} is no address: write \"https://wiki.example/{RULE}\""
            ));
        }
        // Its place may be in the path, behind a `?` or a `#`; anything else of the kind is a slip of the pen.
        let rest = address.replace(RULE, "");
        if rest == address {
            return Err(format!(
                "{address:?} is the same for all rules: write {RULE} where the name of one belongs"
            ));
        }
        let is_odd = |c: char| !c.is_ascii_graphic() || matches!(c, '{' | '}' | '<' | '>' | '"');
        if address.len() > MAX_ADDRESS || rest.contains(is_odd) {
            return Err(format!(
                "an address has at most {MAX_ADDRESS} characters, all of them ASCII, and no braces but those of {RULE}"
            ));
        }
        Ok(Self(Some(address.to_owned())))
    }

    /// Where it is read what to do about a rule. Without an address of one's own, `None` for a rule that the page does
    /// not have.
    #[must_use]
    pub fn link(&self, rule: &str) -> Option<String> {
        match &self.0 {
            Some(address) => Some(address.replace(RULE, rule)),
            None => link(rule),
        }
    }
}

/// `docs/runbooks.md`.
#[must_use]
pub fn page() -> String {
    let mut out = "# Runbooks\n\n\
        What to do when one of Muster's rules has opened an incident. Messages link here, `muster rules explain RULE` \
        prints the\nsame, and `[[rules]]` in `aggregator.toml` changes bounds, times and severity of those that say so. \
        Made from the program by\n`UPDATE_EXPECT=1 cargo test -p muster-aggregator --lib detect::rules`: change it there.\n"
        .to_owned();
    for known in &BUILT_IN {
        let facts = format!("{}; in the program", known.severity);
        section(&mut out, known.name, &facts, known.opens, known.runbook);
    }
    for known in pack() {
        let facts = format!("{}; can be changed", known.severity.0.as_str());
        section(&mut out, &known.name, &facts, &opens(known), &known.runbook);
    }
    out
}

fn section(out: &mut String, name: &str, facts: &str, opens: &str, runbook: &str) {
    // A String takes everything.
    let _ = write!(
        out,
        "\n## {name}\n\n{facts}\n\nOpens: {opens}.\n\nTo do: {runbook}\n"
    );
}

/// What it looks at and from when on that is wrong.
fn opens(rule: &Definition) -> String {
    let value = &rule.value;
    let of = value.metric.as_deref().or(value.signal.as_deref());
    let mut text = format!("`{}`", of.unwrap_or_default());
    if let Some(per) = &value.per {
        let _ = write!(text, " over `{per}`");
    }
    let _ = write!(text, " {}", rule.condition());
    let minutes = rule.open_after.0.as_secs() / 60;
    if minutes > 0 {
        let _ = write!(text, ", for {minutes} min");
    }
    text
}
