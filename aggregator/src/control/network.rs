//! Networks from which a token is good: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::{fmt, net::IpAddr, str::FromStr};

/// A network in CIDR notation (RFC 4632, RFC 4291).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network: write 10.0.0.0/8, 2001:db8::/32 or one address")]
pub struct NetworkError(String);

impl Network {
    /// Whether an address is in it. An IPv4 address is the same when it comes mapped into IPv6.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(other)) => {
                same_prefix(net.to_bits().into(), other.to_bits().into(), 32, self.bits)
            }
            (IpAddr::V6(net), IpAddr::V6(other)) => {
                same_prefix(net.to_bits(), other.to_bits(), 128, self.bits)
            }
            _ => false,
        }
    }
}

/// Whether the first `bits` of `width` are the same.
fn same_prefix(one: u128, other: u128, width: u32, bits: u8) -> bool {
    (one ^ other)
        .checked_shr(width - u32::from(bits))
        .unwrap_or(0)
        == 0
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.chars().take(64).collect());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if bits.bytes().all(|digit| digit.is_ascii_digit()) => {
                let bits: u8 = bits.parse().map_err(|_| wrong())?;
                Some(bits).filter(|bits| *bits <= most).ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        // 10.1.2.3/8 is more likely a slip than meant.
        let network = Self { address, bits };
        let host_bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) & low_bits(32 - u32::from(bits)),
            IpAddr::V6(address) => address.to_bits() & low_bits(128 - u32::from(bits)),
        };
        if host_bits != 0 {
            return Err(wrong());
        }
        Ok(network)
    }
}

fn low_bits(count: u32) -> u128 {
    1u128.checked_shl(count).map_or(u128::MAX, |bit| bit - 1)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_or_out() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db9::1", true),
        ] {
            let parsed: Network = network.parse().expect(network);
            let address = address.parse().expect("an address");
            assert_eq!(parsed.contains(address), inside, "{network} {address}");
        }
    }

    #[test]
    fn what_is_no_network_says_so() {
        for wrong in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.1.2.3/8",
            "2001:db8::1/32",
            "::/129",
            "ten",
            "10.0.0.0/",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
        for right in ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"] {
            assert_eq!(right.parse::<Network>().expect(right).to_string(), right);
        }
    }
}
