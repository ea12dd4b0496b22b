//! What the command line says when it cannot do what was asked: what failed, why, what to try.
//!
//! The exit codes are an interface: scripts depend on them, `docs/cli.md` lists them.

use std::fmt;

use super::text::{Text, Tone, visible};

/// Exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The command failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// No such host, service or incident.
    NotFound = 3,
    /// Not allowed, or not signed in.
    Denied = 4,
    /// The aggregator cannot be reached, or did not answer in time.
    Unreachable = 5,
    /// Done in part.
    Partial = 6,
    /// Ctrl-C.
    Interrupted = 130,
}

/// One thing to try: a command line and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Try {
    /// To be copied into a shell; empty when it is not a command.
    pub command: String,
    /// What it does, or what to do.
    pub what: String,
}

/// Why a command ended without its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub code: Code,
    /// What failed and the nearest cause, one line.
    pub what: String,
    /// As far as known, one line each.
    pub why: Vec<String>,
    /// What to do next.
    pub tries: Vec<Try>,
}

impl Failure {
    /// A failure without reasons or advice yet.
    #[must_use]
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            why: Vec::new(),
            tries: Vec::new(),
        }
    }

    /// The same with a line of explanation.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why.push(why.into());
        self
    }

    /// The same with something to try.
    #[must_use]
    pub fn hint(mut self, command: impl Into<String>, what: impl Into<String>) -> Self {
        self.tries.push(Try {
            command: command.into(),
            what: what.into(),
        });
        self
    }

    /// The lines for stderr, with colours.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut out = String::new();
        Text::toned(Tone::Bad, "error:")
            .and(" ")
            .and(&self.what)
            .line_to(&mut out);
        for why in &self.why {
            Text::plain("  ").and(why).line_to(&mut out);
        }
        let longest = self.tries.iter().map(|hint| hint.command.len()).max();
        for (at, hint) in self.tries.iter().enumerate() {
            let lead = if at == 0 { "  try: " } else { "       " };
            let mut line = Text::toned(Tone::Dim, lead);
            if !hint.command.is_empty() {
                let pad = longest.unwrap_or(0) - hint.command.len() + 3;
                line = line
                    .with(Tone::Strong, &hint.command)
                    .and(" ".repeat(if hint.what.is_empty() { 0 } else { pad }));
            }
            line.and(&hint.what).line_to(&mut out);
        }
        out
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&visible(&self.what))
    }
}

/// An error with all its causes on one line, each named once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_three_parts() {
        let failure = Failure::new(
            Code::Unreachable,
            "cannot reach m.example:7445 (refused\x07)",
        )
        .because("context \"prod\" from ~/.config/muster/config.toml")
        .hint("muster doctor", "check name, route, TLS and clock")
        .hint("muster --context lab hosts", "use another aggregator");
        let expected = "\
error: cannot reach m.example:7445 (refused\\u{7})
  context \"prod\" from ~/.config/muster/config.toml
  try: muster doctor                check name, route, TLS and clock
       muster --context lab hosts   use another aggregator
";
        let lines = failure.lines();
        assert_eq!(anstream::adapter::strip_str(&lines).to_string(), expected);
    }
}
