//! How valid bytes become other bytes.

use fastrand::Rng;

/// Numbers at the edges of arithmetic and of the limits, in the width in which they are written.
const EDGES: [u64; 9] = [
    0,
    1,
    0x7f,
    0x80,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 63,
    u64::MAX,
];

/// Most changes of one case.
const MOST_CHANGES: u32 = 6;

/// Changes the bytes in one to six places.
pub(crate) fn mutate(bytes: &mut Vec<u8>, random: &mut Rng) {
    for _ in 0..random.u32(1..=MOST_CHANGES) {
        change(bytes, random);
    }
}

fn change(bytes: &mut Vec<u8>, random: &mut Rng) {
    if bytes.is_empty() {
        bytes.push(random.u8(..));
        return;
    }
    let at = random.usize(..bytes.len());
    match random.u8(..8) {
        0 => bytes[at] ^= 1 << random.u8(..8),
        1 => bytes[at] = random.u8(..),
        2 => bytes.truncate(at),
        3 => {
            let end = at + random.usize(..=(bytes.len() - at).min(64));
            bytes.drain(at..end);
        }
        4 => {
            let end = at + random.usize(..=(bytes.len() - at).min(256));
            let piece = bytes[at..end].to_vec();
            let to = random.usize(..=bytes.len());
            bytes.splice(to..to, piece);
        }
        5 => {
            let number = EDGES[random.usize(..EDGES.len())];
            let width = [1, 2, 4, 8][random.usize(..4)];
            let number = if random.bool() {
                number.to_le_bytes()[..width].to_vec()
            } else {
                number.to_be_bytes()[8 - width..].to_vec()
            };
            for (byte, new) in bytes[at..].iter_mut().zip(number) {
                *byte = new;
            }
        }
        6 => {
            // A varint of the largest length, where lengths and numbers stand.
            let varint = [0xff; 9].into_iter().chain([random.u8(..2)]);
            bytes.splice(at..at, varint);
        }
        _ => {
            let more = (0..random.usize(1..32)).map(|_| random.u8(..));
            let more: Vec<u8> = more.collect();
            bytes.splice(at..at, more);
        }
    }
}
