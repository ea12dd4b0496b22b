//! The join token: what a person carries from the aggregator to a new host.
//!
//! ```text
//! mj1-<id: 8>-<secret: 26>-<pin: 52>-<check: 4>      Crockford base32, 5 bits a character
//! ```
//!
//! * *id* names the token's record (40 bits); *secret* proves possession (130 bits, stored only as SHA-256);
//!   *pin* is the SHA-256 of the root's SubjectPublicKeyInfo (256 bits and 4 zero bits), so that a host knows
//!   its aggregator before it sends anything; *check* is the upper 20 bits of the CRC-32C of the rest as it is
//!   written, without dashes.
//! * Case, dashes and white space do not matter; `o` reads as `0`, `i` and `l` as `1`, as Crockford has it.
//!
//! A typing error is found here, before any packet leaves, and the message says where it is when it can tell.

use std::{fmt, str::FromStr};

use ring::{digest, rand::SecureRandom};

const PREFIX: &str = "mj1";
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The groups after the prefix, with their lengths in characters.
const GROUPS: [(&str, usize); 4] = [("id", 8), ("secret", 26), ("fingerprint", 52), ("check", 4)];
const ID_CHARS: usize = GROUPS[0].1;
const SECRET_CHARS: usize = GROUPS[1].1;
const PIN_CHARS: usize = GROUPS[2].1;
const CHECK_CHARS: usize = GROUPS[3].1;
const BODY_CHARS: usize = ID_CHARS + SECRET_CHARS + PIN_CHARS;

/// A join token. It is secret: it has no printable `Debug`, and [`fmt::Display`] is for handing it to a person.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
    pin: [u8; 32],
}

/// Why a text is no join token. Groups are counted from 1, the `mj1` at the beginning being the first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Does not begin with `mj1`.
    #[error("a join token begins with mj1-")]
    Prefix,
    /// Too short or too long; the group is known when the dashes were kept.
    #[error("the token has {found} characters where {wanted} are needed{}", in_group(.group))]
    Length {
        /// Characters of the group, or of the whole token without its dashes.
        found: usize,
        /// How many there should be.
        wanted: usize,
        /// Number and name of the group.
        group: Option<(usize, &'static str)>,
    },
    /// A character that base32 does not have.
    #[error(
        "{character:?} cannot stand in a token: see character {position} of group {group} (the {name})"
    )]
    Character {
        /// What was found.
        character: char,
        /// Counted from 1 within the group.
        position: usize,
        /// Counted from 1.
        group: usize,
        /// The group's name.
        name: &'static str,
    },
    /// The check does not match.
    #[error("the token was not copied correctly{}", at_place(.place))]
    Check {
        /// Group, its name, and the character within it, when changing this one character alone would mend it.
        place: Option<(usize, &'static str, usize)>,
    },
}

fn in_group(group: &Option<(usize, &'static str)>) -> String {
    group.map_or_else(String::new, |(number, name)| {
        format!(" in group {number} (the {name})")
    })
}

fn at_place(place: &Option<(usize, &'static str, usize)>) -> String {
    place.map_or_else(
        || ": more than one character is wrong".to_owned(),
        |(group, name, position)| {
            format!(": character {position} of group {group} (the {name}) looks wrong")
        },
    )
}

impl Token {
    /// A new token for the root with this fingerprint (see [`pin_of`]).
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate(
        pin: [u8; 32],
        random: &dyn SecureRandom,
    ) -> Result<Self, ring::error::Unspecified> {
        let mut bytes = [0; ID_CHARS + SECRET_CHARS];
        random.fill(&mut bytes)?;
        let text: String = bytes.iter().map(|byte| letter(byte % 32)).collect();
        let (id, secret) = text.split_at(ID_CHARS);
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            pin,
        })
    }

    /// A token of its parts; none when id or secret are not the right number of base32 characters in lower case.
    #[must_use]
    pub fn from_parts(id: &str, secret: &str, pin: [u8; 32]) -> Option<Self> {
        let good = |text: &str, length: usize| {
            text.len() == length && text.chars().all(|letter| value(letter).is_some())
        };
        (good(id, ID_CHARS) && good(secret, SECRET_CHARS)).then(|| Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            pin,
        })
    }

    /// Names the token's record: 8 characters, not secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Proves possession: 26 characters. Never to be logged.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// SHA-256 of the root's SubjectPublicKeyInfo.
    #[must_use]
    pub fn pin(&self) -> &[u8; 32] {
        &self.pin
    }

    fn body(&self) -> String {
        let mut body = String::with_capacity(BODY_CHARS);
        body.push_str(&self.id);
        body.push_str(&self.secret);
        encode(&self.pin, &mut body);
        body
    }
}

/// SHA-256 of a secret as the store keeps it.
#[must_use]
pub fn secret_hash(secret: &str) -> [u8; 32] {
    sha256(secret.as_bytes())
}

/// The fingerprint of a root: SHA-256 of its SubjectPublicKeyInfo in DER.
#[must_use]
pub fn pin_of(spki: &[u8]) -> [u8; 32] {
    sha256(spki)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let (id, rest) = body.split_at(ID_CHARS);
        let (secret, pin) = rest.split_at(SECRET_CHARS);
        write!(f, "{PREFIX}-{id}-{secret}-{pin}-{}", check_of(&body))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let head = text.get(..PREFIX.len()).ok_or(TokenError::Prefix)?;
        if !head.eq_ignore_ascii_case(PREFIX) {
            return Err(TokenError::Prefix);
        }
        let rest = &text[PREFIX.len()..];
        check_lengths(rest)?;
        let body_and_check = canonical(rest)?;
        let (body, check) = body_and_check.split_at(BODY_CHARS);
        let pin = decode_pin(&body[ID_CHARS + SECRET_CHARS..]);
        match pin {
            Some(pin) if check == check_of(body) => Ok(Self {
                id: body[..ID_CHARS].to_owned(),
                secret: body[ID_CHARS..ID_CHARS + SECRET_CHARS].to_owned(),
                pin,
            }),
            _ => Err(TokenError::Check {
                place: single_fault(body, check),
            }),
        }
    }
}

fn is_filler(character: char) -> bool {
    character == '-' || character.is_whitespace()
}

/// Compares lengths group by group where the dashes were kept, else as a whole.
fn check_lengths(rest: &str) -> Result<(), TokenError> {
    let significant = |text: &str| text.chars().filter(|c| !is_filler(*c)).count();
    let parts: Vec<&str> = rest.trim_start_matches('-').split('-').collect();
    if parts.len() == GROUPS.len() {
        for (index, (part, (name, wanted))) in parts.iter().zip(GROUPS).enumerate() {
            let found = significant(part);
            if found != wanted {
                return Err(TokenError::Length {
                    found,
                    wanted,
                    group: Some((index + 2, name)),
                });
            }
        }
    }
    let found = significant(rest);
    let wanted = BODY_CHARS + CHECK_CHARS;
    if found != wanted {
        return Err(TokenError::Length {
            found: found + PREFIX.len(),
            wanted: wanted + PREFIX.len(),
            group: None,
        });
    }
    Ok(())
}

/// Without fillers, each character as the alphabet has it.
fn canonical(rest: &str) -> Result<String, TokenError> {
    let mut out = String::with_capacity(BODY_CHARS + CHECK_CHARS);
    for character in rest.chars().filter(|c| !is_filler(*c)) {
        let folded = match character.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            other => other,
        };
        if value(folded).is_none() {
            let (group, name, position) = place_of(out.len());
            return Err(TokenError::Character {
                character,
                position,
                group,
                name,
            });
        }
        out.push(folded);
    }
    Ok(out)
}

/// Group number, its name and the position within it (from 1) of a character of body and check.
fn place_of(mut index: usize) -> (usize, &'static str, usize) {
    for (number, (name, length)) in GROUPS.into_iter().enumerate() {
        if index < length {
            return (number + 2, name, index + 1);
        }
        index -= length;
    }
    (GROUPS.len() + 1, GROUPS[GROUPS.len() - 1].0, CHECK_CHARS)
}

/// The one character whose change alone mends the token; none when several are wrong, or when two places
/// would do. It is only named, never mended: a secret is not to be guessed.
fn single_fault(body: &str, check: &str) -> Option<(usize, &'static str, usize)> {
    let mut suspects = Vec::new();
    let expected = check_of(body);
    let wrong_in_check: Vec<usize> = (0..CHECK_CHARS)
        .filter(|&at| expected.as_bytes()[at] != check.as_bytes()[at])
        .collect();
    if let [at] = wrong_in_check[..] {
        suspects.push(BODY_CHARS + at);
    }
    for at in 0..BODY_CHARS {
        let mends = ALPHABET.iter().any(|&other| {
            let mut tried = body.as_bytes().to_vec();
            tried[at] = other;
            let tried = String::from_utf8(tried).expect("alphabet and body are ASCII");
            check_of(&tried) == check
        });
        if mends {
            suspects.push(at);
        }
    }
    match suspects[..] {
        [at] => Some(place_of(at)),
        _ => None,
    }
}

fn check_of(body: &str) -> String {
    let crc = crc32c::crc32c_append(crc32c::crc32c(PREFIX.as_bytes()), body.as_bytes());
    (0..CHECK_CHARS)
        .map(|at| letter((crc >> (27 - 5 * at)).to_le_bytes()[0] & 31))
        .collect()
}

fn letter(value: u8) -> char {
    char::from(ALPHABET[usize::from(value & 31)])
}

fn value(letter: char) -> Option<u8> {
    let at = ALPHABET.iter().position(|&own| char::from(own) == letter)?;
    u8::try_from(at).ok()
}

/// Bytes as base32, most significant bits first, the last character filled with zero bits.
fn encode(bytes: &[u8], out: &mut String) {
    let mut held: u32 = 0;
    let mut bits = 0;
    for &byte in bytes {
        held = (held << 8 | u32::from(byte)) & 0xfff;
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(letter((held >> bits).to_le_bytes()[0] & 31));
        }
    }
    if bits > 0 {
        out.push(letter((held << (5 - bits)).to_le_bytes()[0] & 31));
    }
}

/// The 32 bytes of a pin; none when a character or a filling bit is wrong.
fn decode_pin(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let mut filled = 0;
    let mut held: u32 = 0;
    let mut bits = 0;
    for letter in text.chars() {
        held = (held << 5 | u32::from(value(letter)?)) & 0x1fff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            *out.get_mut(filled)? = (held >> bits).to_le_bytes()[0];
            filled += 1;
        }
    }
    let filling = held & ((1 << bits) - 1);
    (filled == out.len() && filling == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let mut pin = [0; 32];
        for (at, byte) in (0u8..).zip(&mut pin) {
            *byte = at.wrapping_mul(37) ^ 0x5a;
        }
        Token {
            id: "0123abcd".to_owned(),
            secret: "zyxwvtsrqpnmkjhgfedcba9876".to_owned(),
            pin,
        }
    }

    #[test]
    fn a_token_reads_what_it_writes_however_it_is_pasted() {
        let text = token().to_string();
        assert_eq!(text.len(), 3 + 1 + 8 + 1 + 26 + 1 + 52 + 1 + 4);
        for pasted in [
            text.clone(),
            text.to_uppercase(),
            text.replace('-', ""),
            format!("  {text}\r\n"),
            text.replace('0', "O")
                .replace('1', "l")
                .replacen("mjl", "mj1", 1),
        ] {
            assert_eq!(pasted.parse(), Ok(token()), "{pasted}");
        }
        let made = Token::generate([7; 32], &ring::rand::SystemRandom::new()).expect("random");
        assert_eq!(made.to_string().parse(), Ok(made));
    }

    #[test]
    fn every_single_wrong_character_is_found_and_mostly_named() {
        let text = token().to_string();
        let (mut named, mut all) = (0, 0);
        for at in 4..text.len() {
            let original = text.as_bytes()[at];
            if original == b'-' {
                continue;
            }
            let other = if original == b'7' { b'8' } else { b'7' };
            let mut bytes = text.clone().into_bytes();
            bytes[at] = other;
            let wrong = String::from_utf8(bytes).expect("ASCII");
            all += 1;
            match wrong.parse::<Token>() {
                Err(TokenError::Check { place: Some(place) }) => {
                    let index = text[4..at].chars().filter(|c| *c != '-').count();
                    assert_eq!(place, place_of(index), "{wrong}");
                    named += 1;
                }
                Err(TokenError::Check { place: None }) => {}
                other => panic_free(format!("{other:?}")),
            }
        }
        assert!(named * 10 > all * 9, "{named} of {all} were named");
    }

    /// Fails with what was seen.
    fn panic_free(seen: String) {
        assert_eq!(seen, "a failed check");
    }

    #[test]
    fn faults_are_said_in_words() {
        let text = token().to_string();
        let swapped = text.replacen("zyxw", "xyzv", 1);
        let cases = [
            (String::new(), "a join token begins with mj1-"),
            ("mk1-0".to_owned(), "a join token begins with mj1-"),
            ("é".to_owned(), "a join token begins with mj1-"),
            (
                text.replacen("0123abcd", "0123abc", 1),
                "the token has 7 characters where 8 are needed in group 2 (the id)",
            ),
            (
                text.replace('-', "").replacen("0123abcd", "0123abc", 1),
                "the token has 92 characters where 93 are needed",
            ),
            (
                text.replacen("zyxw", "zyuw", 1),
                "'u' cannot stand in a token: see character 3 of group 3 (the secret)",
            ),
            (
                text.replacen("zyxw", "zyéw", 1),
                "'é' cannot stand in a token: see character 3 of group 3 (the secret)",
            ),
            (
                swapped,
                "the token was not copied correctly: more than one character is wrong",
            ),
        ];
        for (wrong, wanted) in cases {
            let error = wrong.parse::<Token>().expect_err(&wrong);
            assert_eq!(error.to_string(), wanted, "{wrong}");
        }
    }

    #[test]
    fn debug_tells_no_secret() {
        let shown = format!("{:?}", token());
        assert!(shown.contains("0123abcd"));
        assert!(!shown.contains("zyxw"));
    }
}
