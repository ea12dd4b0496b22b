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

/// A decimal number that fits and may have a minus before it.
#[must_use]
pub fn signed(field: &[u8]) -> Option<i64> {
    match field.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(unsigned(digits)?),
        None => i64::try_from(unsigned(field)?).ok(),
    }
}

/// A hexadecimal number without prefix that fits.
#[must_use]
pub fn hexadecimal(field: &[u8]) -> Option<u64> {
    if field.is_empty() || field.len() > 16 {
        return None;
    }
    field.iter().try_fold(0u64, |value, &byte| {
        let digit = char::from(byte).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
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

/// A number's decimal digits, without an allocation.
#[derive(Debug, Default)]
pub struct Digits {
    /// As many as the largest number has.
    digits: [u8; 20],
}

impl Digits {
    /// The digits of this number.
    pub fn of(&mut self, mut number: u64) -> &str {
        let mut at = self.digits.len();
        loop {
            at -= 1;
            self.digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            if number == 0 || at == 0 {
                break;
            }
        }
        std::str::from_utf8(&self.digits[at..]).unwrap_or_default()
    }
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
        let table: &[(&str, Option<i64>)] = &[
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-", None),
            ("--1", None),
        ];
        for (text, value) in table {
            assert_eq!(signed(text.as_bytes()), *value, "{text}");
        }
        assert_eq!(hexadecimal(b"00Ff"), Some(255));
        assert_eq!(hexadecimal(b"ffffffffffffffff"), Some(u64::MAX));
        for wrong in ["", "g", "-1", "10000000000000000"] {
            assert_eq!(hexadecimal(wrong.as_bytes()), None, "{wrong}");
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
            let mut digits = Digits::default();
            prop_assert_eq!(digits.of(value), value.to_string());
        }

        #[test]
        fn garbage_is_split_without_a_panic(bytes: Vec<u8>) {
            for line in lines(&bytes) {
                for field in fields(line) {
                    prop_assert!(!field.is_empty());
                    let _ = (unsigned(field), signed(field), hexadecimal(field));
                    let _ = (hundredths(field), lossy(field));
                }
            }
        }
    }
}
