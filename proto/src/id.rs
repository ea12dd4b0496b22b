//! Identifiers, parsed once and valid ever after.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Identity of a host: 128 random bits minted at enrolment and carried in its certificate.
///
/// Written as 32 lower-case hexadecimal digits. Host names and addresses are attributes, not identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostId([u8; 16]);

/// Why a text or a byte string is no [`HostId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a host id is 32 lower-case hexadecimal digits")]
pub struct HostIdError;

impl HostId {
    /// The id with these bits.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The id in a message field, which must be 16 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, HostIdError> {
        bytes.try_into().map(Self).map_err(|_| HostIdError)
    }

    /// Its bits.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A number that spreads hosts evenly: over shards, over an interval.
    #[must_use]
    pub fn spread(&self) -> u64 {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0[8..]);
        u64::from_le_bytes(low)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HostId {
    type Err = HostIdError;

    fn from_str(text: &str) -> Result<Self, HostIdError> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(HostIdError);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

fn hex_digit(digit: u8) -> Result<u8, HostIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(HostIdError),
    }
}

/// One life of an agent process: 64 random bits drawn at its start.
///
/// Frames are numbered within an incarnation, so a number is never used for two contents, whatever was
/// lost on the way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_id_reads_what_it_writes() {
        let id = HostId::from_bytes(*b"\x00\x01\x7f\x80\xff89abcdefghi");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(HostId::from_slice(id.as_bytes()), Ok(id));
    }

    #[test]
    fn host_id_has_one_spelling() {
        for wrong in [
            "",
            "00",
            "0011223344556677889900AABBCCDDEE",
            "00112233-4556-6778-8990-0aabbccddeef",
            "é0112233445566778899aabbccddeef",
            "0x112233445566778899aabbccddeeff",
        ] {
            assert_eq!(wrong.parse::<HostId>(), Err(HostIdError), "{wrong}");
        }
    }
}
