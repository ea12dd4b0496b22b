//! The few pieces of Prometheus' text formats that both ends write: values, label values, help texts.
//!
//! What an agent prints and what the aggregator serves come from the same three functions, so they cannot
//! differ. How families and samples are laid out is left to the callers. Everything is appended to the
//! caller's buffer; nothing is allocated.

use std::io::Write;

/// Whole numbers up to here are exact in an `f64` and written without a fraction (2^53).
const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;

/// Appends a value: the shortest decimal that reads back as the same `f64`, `NaN`, `+Inf` or `-Inf`.
pub fn write_value(out: &mut Vec<u8>, value: f64) {
    let magnitude = value.abs();
    let written = if value.is_nan() {
        out.write_all(b"NaN")
    } else if value.is_infinite() {
        out.write_all(if value > 0.0 { b"+Inf" } else { b"-Inf" })
    } else if magnitude < EXACT_INTEGERS && value.fract() == 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a whole number below 2^53 fits an i64"
        )]
        let whole = value as i64;
        write!(out, "{whole}")
    } else if (1e-5..1e21).contains(&magnitude) {
        write!(out, "{value}")
    } else {
        write!(out, "{value:e}")
    };
    written.expect("writing to a Vec does not fail");
}

/// Appends a label value without its quotes: backslash, quote and line feed are escaped, all else is
/// legal as it is.
pub fn write_label_value(out: &mut Vec<u8>, value: &str) {
    write_escaped(out, value, |byte| matches!(byte, b'\\' | b'"' | b'\n'));
}

/// Appends a help text: backslash and line feed are escaped. OpenMetrics escapes quotes too, which the
/// older format does not know: help texts have none.
pub fn write_help(out: &mut Vec<u8>, text: &str) {
    write_escaped(out, text, |byte| matches!(byte, b'\\' | b'\n'));
}

fn write_escaped(out: &mut Vec<u8>, text: &str, special: impl Fn(u8) -> bool) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| special(byte)) {
        out.extend_from_slice(&rest[..at]);
        out.push(b'\\');
        out.push(if rest[at] == b'\n' { b'n' } else { rest[at] });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("only whole characters are written")
    }

    #[test]
    fn values_read_back() {
        for (value, text) in [
            (0.0, "0"),
            (-3.0, "-3"),
            (8_053_063_680.0, "8053063680"),
            (0.25, "0.25"),
            (12_345.67, "12345.67"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e300, "1e300"),
            (5e-324, "5e-324"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
        ] {
            assert_eq!(written(|out| write_value(out, value)), text);
            assert_eq!(text.parse(), Ok(value), "{text}");
        }
        assert_eq!(written(|out| write_value(out, f64::NAN)), "NaN");
    }

    #[test]
    fn texts_are_escaped() {
        let odd = "a\\b\"c\nd é\t";
        let label = written(|out| write_label_value(out, odd));
        assert_eq!(label, "a\\\\b\\\"c\\nd é\t");
        let help = written(|out| write_help(out, odd));
        assert_eq!(help, "a\\\\b\"c\\nd é\t");
    }
}
