//! The few forms in which the kernel prints: lines, fields between white space, decimal numbers.
//!
//! Works on bytes and allocates nothing. Anything may stand in the input; what is no number is `None`.

use std::borrow::Cow;

/// The lines, without their ends. A last line without an end counts too.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
}

/// The fields of a line: what stands between spaces and tabs.
pub fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b' ' || byte == b'\t')
        .filter(|field| !field.is_empty())
}

/// A decimal number without sign that fits.
#[must_use]
pub fn unsigned(field: &[u8]) -> Option<u64> {
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0u64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// A decimal number with two digits after the point, as load averages have them, in hundredths.
#[must_use]
pub fn hundredths(field: &[u8]) -> Option<u64> {
    let point = field.iter().position(|&byte| byte == b'.')?;
    let (whole, fraction) = (&field[..point], &field[point + 1..]);
    if fraction.len() != 2 {
        return None;
    }
    unsigned(whole)?
        .checked_mul(100)?
        .checked_add(unsigned(fraction)?)
}

/// The bytes as text, those that are not UTF-8 replaced visibly; borrows when nothing is.
#[must_use]
pub fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_exactly_or_not_at_all() {
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("-1", None),
            ("1x", None),
        ];
        for (text, value) in table {
            assert_eq!(unsigned(text.as_bytes()), *value, "{text}");
        }
        let table: &[(&str, Option<u64>)] = &[
            ("0.52", Some(52)),
            ("12.00", Some(1200)),
            ("1.5", None),
            ("1.", None),
            (".50", None),
            ("nan", None),
        ];
        for (text, value) in table {
            assert_eq!(hundredths(text.as_bytes()), *value, "{text}");
        }
    }

    proptest! {
        #[test]
        fn printed_numbers_come_back(value: u64) {
            prop_assert_eq!(unsigned(value.to_string().as_bytes()), Some(value));
        }

        #[test]
        fn garbage_is_split_without_a_panic(bytes: Vec<u8>) {
            for line in lines(&bytes) {
                for field in fields(line) {
                    prop_assert!(!field.is_empty());
                    let _ = (unsigned(field), hundredths(field), lossy(field));
                }
            }
        }
    }
}
