//! What a monitoring plugin says: exit status, first line, performance data. Pure.
//!
//! The protocol is that of the monitoring plugins' development guidelines: exit 0 to 3, `TEXT | PERFDATA` on
//! the first line, more of both on those that follow. What does not keep to it is left out, never guessed.

use super::{Cause, Finding, Measure, Status};

/// Most numbers that are taken from one plugin.
const MAX_MEASURES: usize = 32;

/// Longest label of a number, in bytes.
const MAX_LABEL_BYTES: usize = 64;

/// What a plugin that ended has to say. `code` is `None` when a signal ended it.
pub(super) fn judge(code: Option<i32>, signal: Option<i32>, output: &[u8]) -> Finding {
    let output = String::from_utf8_lossy(output);
    let (message, perfdata) = split(&output);
    let Some(code) = code else {
        let signal = signal.unwrap_or(0);
        let message = format!("the plugin was ended by signal {signal}; it said {message:?}");
        return Finding::unknown(Cause::Signal, message);
    };
    let status = match code {
        0 => Status::Ok,
        1 => Status::Warning,
        2 => Status::Critical,
        3 => Status::Unknown,
        _ => {
            let message =
                format!("the plugin ended with {code}, which means nothing; it said {message:?}");
            return Finding::unknown(Cause::Error, message);
        }
    };
    let cause = match status {
        Status::Ok => Cause::Ok,
        _ => Cause::Plugin,
    };
    let message = match message {
        "" => "the plugin said nothing",
        message => message,
    };
    Finding {
        measures: measures(&perfdata),
        ..Finding::new(status, cause, message)
    }
}

/// The first line without performance data, and all performance data.
fn split(output: &str) -> (&str, String) {
    let (first, rest) = output.split_once('\n').unwrap_or((output, ""));
    let (message, mut perfdata) = match first.split_once('|') {
        Some((message, data)) => (message, data.to_owned()),
        None => (first, String::new()),
    };
    // In the lines that follow it begins somewhere and goes on to the end.
    if let Some((_, data)) = rest.split_once('|') {
        perfdata.push(' ');
        perfdata.push_str(data);
    }
    (message.trim(), perfdata)
}

/// The numbers of performance data: `'label'=value[unit];[warn];[crit];[min];[max]`, separated by spaces.
fn measures(perfdata: &str) -> Vec<Measure> {
    let mut all: Vec<Measure> = Vec::new();
    let mut rest = perfdata.trim_start();
    while !rest.is_empty() && all.len() < MAX_MEASURES {
        let Some((label, behind)) = label(rest) else {
            // Not of this form: the next word may be.
            rest = rest
                .split_once(char::is_whitespace)
                .map_or("", |(_, rest)| rest.trim_start());
            continue;
        };
        let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
        let (data, behind) = behind.split_at(end);
        rest = behind.trim_start();
        let known = |known: &Measure| known.label == label;
        if let Some((value, unit)) = number(data.split(';').next().unwrap_or(""))
            && !label.is_empty()
            && label.len() <= MAX_LABEL_BYTES
            && !all.iter().any(known)
        {
            all.push(Measure { label, unit, value });
        }
    }
    all
}

/// A label, in quotes if it has spaces, and what stands behind the equals sign.
fn label(text: &str) -> Option<(String, &str)> {
    if !text.starts_with('\'') {
        let (label, rest) = text.split_once('=')?;
        return (!label.contains(char::is_whitespace)).then(|| (label.to_owned(), rest));
    }
    let mut label = String::new();
    let mut letters = text[1..].char_indices();
    while let Some((at, letter)) = letters.next() {
        let rest = &text[1 + at + letter.len_utf8()..];
        if letter != '\'' {
            label.push(letter);
        } else if rest.starts_with('\'') {
            label.push('\'');
            letters.next();
        } else {
            return Some((label, rest.strip_prefix('=')?));
        }
    }
    None
}

/// A number in base units. "U" stands for one that could not be measured.
fn number(text: &str) -> Option<(f64, &'static str)> {
    let is_digit = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.');
    let mut end = text.find(|c: char| !is_digit(c)).unwrap_or(text.len());
    // An exponent, unless the letter begins a unit.
    if let Some(rest) = text[end..].strip_prefix(['e', 'E'])
        && rest.starts_with(is_digit)
    {
        let digits = rest.find(|c: char| !is_digit(c)).unwrap_or(rest.len());
        end += 1 + digits;
    }
    let value: f64 = text[..end]
        .parse()
        .ok()
        .filter(|value: &f64| value.is_finite())?;
    let (factor, unit) = match &text[end..] {
        "" => (1.0, ""),
        "s" => (1.0, "seconds"),
        "ms" => (1e-3, "seconds"),
        "us" => (1e-6, "seconds"),
        "ns" => (1e-9, "seconds"),
        "%" => (1.0, "percent"),
        "c" => (1.0, "count"),
        "B" => (1.0, "bytes"),
        // Plugins count in powers of 1024, whatever they call them.
        "KB" | "kB" | "KiB" => (1024.0, "bytes"),
        "MB" | "MiB" => (1024.0 * 1024.0, "bytes"),
        "GB" | "GiB" => (1024.0 * 1024.0 * 1024.0, "bytes"),
        "TB" | "TiB" => (1024.0 * 1024.0 * 1024.0 * 1024.0, "bytes"),
        // One we do not know: the number as it is.
        _ => (1.0, ""),
    };
    Some((value * factor, unit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(output: &str) -> Vec<(String, &'static str, f64)> {
        let finding = judge(Some(0), None, output.as_bytes());
        let tuple = |measure: Measure| (measure.label, measure.unit, measure.value);
        finding.measures.into_iter().map(tuple).collect()
    }

    #[test]
    fn exit_statuses() {
        for (code, status, cause) in [
            (Some(0), Status::Ok, Cause::Ok),
            (Some(1), Status::Warning, Cause::Plugin),
            (Some(2), Status::Critical, Cause::Plugin),
            (Some(3), Status::Unknown, Cause::Plugin),
            (Some(127), Status::Unknown, Cause::Error),
            (Some(-1), Status::Unknown, Cause::Error),
            (None, Status::Unknown, Cause::Signal),
        ] {
            let finding = judge(code, Some(9), b"text");
            assert_eq!((finding.status, finding.cause), (status, cause), "{code:?}");
        }
        assert_eq!(judge(Some(0), None, b"").message, "the plugin said nothing");
    }

    /// As the plugins of Debian 12 print them.
    #[test]
    fn output_of_real_plugins() {
        let disk = "DISK OK - free space: / 25119MB (43% inode=93%);| /=32847MiB;;;0;61255\n";
        let finding = judge(Some(0), None, disk.as_bytes());
        assert_eq!(
            finding.message,
            "DISK OK - free space: / 25119MB (43% inode=93%);"
        );
        assert_eq!(of(disk), [("/".to_owned(), "bytes", 32847.0 * 1_048_576.0)]);
        let http = "HTTP OK: HTTP/1.1 200 OK - 10975 bytes in 0.003 second response time |time=0.002794s;;;0.000000;10.000000 size=10975B;;;0\n";
        assert_eq!(
            of(http),
            [
                ("time".to_owned(), "seconds", 0.002794),
                ("size".to_owned(), "bytes", 10975.0)
            ]
        );
        let load = "LOAD OK - total load average: 0.52, 0.60, 0.71|load1=0.520;10.000;20.000;0; load5=0.600;10.000;20.000;0;\n";
        assert_eq!(of(load).len(), 2);
        let ping = "PING OK - Packet loss = 0%, RTA = 0.04 ms|rta=0.041000ms;100.000000;500.000000;0.000000 pl=0%;20;60;0\n";
        assert_eq!(of(ping)[1], ("pl".to_owned(), "percent", 0.0));
    }

    #[test]
    fn odd_performance_data() {
        for (output, expected) in [
            (
                "x | 'a b'=1 'it''s'=2",
                vec![("a b", "", 1.0), ("it's", "", 2.0)],
            ),
            (
                "x | a=1\nlong text\nmore | b=2\nc=3",
                vec![("a", "", 1.0), ("b", "", 2.0), ("c", "", 3.0)],
            ),
            ("x | a=U;1;2 b=-1.5e3ms", vec![("b", "seconds", -1.5)]),
            ("x | nonsense a=1 =2 b", vec![("a", "", 1.0)]),
            ("x | a=1 a=2", vec![("a", "", 1.0)]),
            ("x | 'open=1", vec![]),
            ("x | a=1e b=5c", vec![("a", "", 1.0), ("b", "count", 5.0)]),
            ("x | a=inf b=nan c=1e999", vec![]),
        ] {
            let found = of(output);
            let found: Vec<_> = found.iter().map(|(l, u, v)| (l.as_str(), *u, *v)).collect();
            assert_eq!(found, expected, "{output}");
        }
        let flood: String = (0..1000).map(|n| format!(" v{n}=1")).collect();
        assert_eq!(of(&format!("x |{flood}")).len(), MAX_MEASURES);
        assert!(of(&format!("x | {}=1", "l".repeat(65))).is_empty());
    }

    proptest! {
        #[test]
        fn any_output_is_survived(bytes: Vec<u8>, text in "[ '=;|a1.e%\n-]{0,40}") {
            judge(Some(0), None, &bytes);
            judge(Some(0), None, text.as_bytes());
        }
    }
}
