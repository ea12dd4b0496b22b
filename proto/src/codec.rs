//! The payload of a frame: how one sample of a host becomes few bytes and comes back.
//!
//! The first payload of a chain is a *key frame*: the dictionary (families and series, numbered from 0 in
//! the order in which they stand) and every value. The following ones carry only what changed since the
//! payload before: a bitmap over the series and one variable-length number for each bit that is set.
//! A payload never changes once it is numbered, so a replay is byte-identical.
//!
//! ```text
//! payload    = version u8 (1) | flags u8 | [events] | [recording] | [dictionary] | values | [absent]
//! flags      = 1 key frame | 2 events | 4 dictionary | 8 absent | 16 recording
//! events     = length varint | muster.v1.EventList
//! recording  = length varint | muster.v1.RecordingPart; only sent to those who asked for it (Recall)
//! dictionary = count varint | family* | count varint | series*         numbered on from what is known
//! family     = name | kind and scale u8 | count varint | label name*   text = length varint | UTF-8
//! series     = family varint | for each label: shared varint | text    shared: bytes in common with the
//!                                                                      same label of the series before
//! absent     = count varint | (id minus the one before) varint*        series that have no value any more
//! values     = series varint | bitmap | number*
//! bitmap     = presence of its bytes (1 bit each) | the bytes that are not 0; bit i of byte j is series 8j+i
//! number     = integers: zigzag varint of the difference from the last value (0 at first)
//!              floats: varint of the bit-reversed XOR with the last value
//! ```
//!
//! Varints are LEB128 of at most 10 bytes. Everything is bounded before anything is allocated.

use std::sync::Arc;

use prost::Message;

use crate::{
    limits, series,
    series::{Family, Kind, Raw, Scale, Table},
    v1,
};

const VERSION: u8 = 1;
const KEY: u8 = 1;
const EVENTS: u8 = 2;
const DICTIONARY: u8 = 4;
const ABSENT: u8 = 8;
const RECORDING: u8 = 16;

/// Why a payload does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It was cut off, or a length in it points past its end.
    #[error("payload ends within {0}")]
    Truncated(&'static str),
    /// A later version of this format.
    #[error("payload has version {0}, this build reads version 1")]
    Version(u8),
    /// A number or text outside what the format allows.
    #[error("payload has an invalid {0}")]
    Invalid(&'static str),
    /// More than the limits allow.
    #[error("payload has too many {0}")]
    TooMany(&'static str),
    /// A delta, but the state it builds on is not here.
    #[error("delta of sequence number {seq} does not follow {decoded_to}")]
    NoKeyFrame {
        /// The payload's number.
        seq: u64,
        /// The last one decoded, 0 for none.
        decoded_to: u64,
    },
}

/// Encodes the samples of one agent as a chain of payloads.
#[derive(Debug, Default)]
pub struct Encoder {
    /// Place in the table → number in the dictionary.
    ids: Vec<Option<u32>>,
    /// Place of each number.
    places: Vec<u32>,
    /// Family in the table → number in the dictionary.
    families: Vec<Option<u32>>,
    known_families: u32,
    last: Vec<Raw>,
    was_present: Vec<bool>,
    generation: u64,
    started: bool,
    bitmap: Vec<u8>,
    numbers: Vec<u8>,
}

impl Encoder {
    /// An encoder whose first payload is a key frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the payload of the table as it is now to `out`; true if it is a key frame.
    ///
    /// `key` asks for a key frame, which also forgets series that are gone. Without it the payload is a
    /// delta unless one is impossible (the first, or a place of the table was given to another series).
    pub fn encode(
        &mut self,
        table: &Table,
        events: &[v1::Event],
        key: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        self.encode_with(table, events, None, key, out)
    }

    /// As [`Encoder::encode`], with a part of a recording beside the sample.
    pub fn encode_with(
        &mut self,
        table: &Table,
        events: &[v1::Event],
        recording: Option<&v1::RecordingPart>,
        key: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        let key = key || !self.started || self.generation != table.generation;
        if key {
            self.restart(table);
        }
        self.ids.resize(table.series.len(), None);
        self.families.resize(table.families.len(), None);

        let flags_at = out.len() + 1;
        out.extend([VERSION, if key { KEY } else { 0 }]);
        if !events.is_empty() {
            out[flags_at] |= EVENTS;
            let list = v1::EventList {
                events: events.to_vec(),
            };
            put_varint(out, list.encoded_len() as u64);
            // Writing to a Vec cannot run out of room.
            list.encode_raw(out);
        }
        if let Some(part) = recording {
            out[flags_at] |= RECORDING;
            put_varint(out, part.encoded_len() as u64);
            part.encode_raw(out);
        }
        if self.put_dictionary(table, out) {
            out[flags_at] |= DICTIONARY;
        }
        self.put_values(table, out);
        if self.put_absent(table, out) {
            out[flags_at] |= ABSENT;
        }
        key
    }

    fn restart(&mut self, table: &Table) {
        self.ids.clear();
        self.places.clear();
        self.families.clear();
        self.known_families = 0;
        self.last.clear();
        self.was_present.clear();
        self.generation = table.generation;
        self.started = true;
    }

    /// Writes families and series that have a value and no number yet; false if there are none.
    fn put_dictionary(&mut self, table: &Table, out: &mut Vec<u8>) -> bool {
        let fresh_from = self.places.len();
        let mut new_families = Vec::new();
        for (place, series) in table.series.iter().enumerate() {
            if !table.present[place] || self.ids[place].is_some() {
                continue;
            }
            let number = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
            self.ids[place] = Some(number);
            self.places.push(u32::try_from(place).unwrap_or(u32::MAX));
            let family = &mut self.families[series.family as usize];
            if family.is_none() {
                *family = Some(self.known_families);
                self.known_families += 1;
                new_families.push(series.family);
            }
        }
        if self.places.len() == fresh_from {
            return false;
        }
        put_varint(out, new_families.len() as u64);
        for &index in &new_families {
            put_family(out, &table.families[index as usize]);
        }
        put_varint(out, (self.places.len() - fresh_from) as u64);
        let mut before: &[String] = &[];
        for &place in &self.places[fresh_from..] {
            let series = &table.series[place as usize];
            let family = self.families[series.family as usize].unwrap_or(0);
            put_series(out, family, &series.labels, before);
            before = &series.labels;
        }
        self.last.resize(self.places.len(), Raw(0));
        self.was_present.resize(self.places.len(), false);
        true
    }

    fn put_absent(&mut self, table: &Table, out: &mut Vec<u8>) -> bool {
        let gone = |(number, &place): (usize, &u32)| {
            (self.was_present[number] && !table.present[place as usize]).then_some(number)
        };
        let absent: Vec<usize> = self.places.iter().enumerate().filter_map(gone).collect();
        if absent.is_empty() {
            return false;
        }
        put_ids(out, &absent);
        for number in absent {
            self.was_present[number] = false;
        }
        true
    }

    fn put_values(&mut self, table: &Table, out: &mut Vec<u8>) {
        self.bitmap.clear();
        self.bitmap.resize(self.places.len().div_ceil(8), 0);
        self.numbers.clear();
        for (number, &place) in self.places.iter().enumerate() {
            let place = place as usize;
            if !table.present[place] {
                continue;
            }
            let (raw, last) = (table.raw[place], self.last[number]);
            if raw == last && self.was_present[number] {
                continue;
            }
            self.bitmap[number / 8] |= 1 << (number % 8);
            let family = table.series[place].family as usize;
            put_number(&mut self.numbers, table.families[family].scale, raw, last);
            self.last[number] = raw;
            self.was_present[number] = true;
        }
        put_varint(out, self.places.len() as u64);
        put_bitmap(out, &self.bitmap);
        out.extend_from_slice(&self.numbers);
    }
}

/// Gives the decoder the caller's own key for each series, so that names are kept once for a fleet.
pub trait Intern {
    /// What stands for a series.
    type Key: Clone;
    /// The family as the caller holds it. Called once for each family of a dictionary.
    fn family(&mut self, family: Family) -> Arc<Family> {
        Arc::new(family)
    }
    /// What stands for this series. Called once for each series of a dictionary.
    fn series(&mut self, family: &Arc<Family>, labels: &[String]) -> Self::Key;
}

/// What a payload changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// The series were numbered anew: indices from before mean nothing now.
    pub key: bool,
    /// Indices whose value is new or different, rising.
    pub changed: Vec<u32>,
    /// Indices that have no value any more, rising.
    pub absent: Vec<u32>,
    /// What happened on the host.
    pub events: Vec<v1::Event>,
}

impl Changes {
    fn clear(&mut self) {
        self.key = false;
        self.changed.clear();
        self.absent.clear();
        self.events.clear();
    }
}

/// What stands in a payload beside its sample.
#[derive(Debug, Default, PartialEq)]
pub struct Beside {
    /// What happened on the host, in order.
    pub events: Vec<v1::Event>,
    /// A part of what its flight recorder held.
    pub recording: Option<v1::RecordingPart>,
}

impl Beside {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.recording.is_none()
    }
}

/// What stands beside the sample of a payload. Needs no other payload: also what builds on frames that are not
/// here tells its events.
///
/// # Errors
/// When the payload is cut off, of another version, or holds more than the limits allow.
pub fn beside(payload: &[u8]) -> Result<Beside, DecodeError> {
    // Nearly all payloads: nothing is read but two bytes.
    if payload.first() == Some(&VERSION)
        && payload
            .get(1)
            .is_some_and(|flags| flags & (EVENTS | RECORDING) == 0)
    {
        return Ok(Beside::default());
    }
    let mut input = Input(payload);
    read_beside(&mut input).map(|(_, beside)| beside)
}

/// The head of a payload and what stands beside its sample; gives the flags.
fn read_beside(input: &mut Input<'_>) -> Result<(u8, Beside), DecodeError> {
    let version = input.byte("version")?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let flags = input.byte("flags")?;
    if flags & !(KEY | EVENTS | DICTIONARY | ABSENT | RECORDING) != 0 {
        return Err(DecodeError::Invalid("flag"));
    }
    let mut beside = Beside::default();
    if flags & EVENTS != 0 {
        let bytes = input.block("events")?;
        let list = v1::EventList::decode(bytes).map_err(|_| DecodeError::Invalid("event list"))?;
        if list.events.len() > limits::MAX_EVENTS_PER_FRAME {
            return Err(DecodeError::TooMany("events"));
        }
        beside.events = list.events;
    }
    if flags & RECORDING != 0 {
        let bytes = input.block("recording")?;
        let part =
            v1::RecordingPart::decode(bytes).map_err(|_| DecodeError::Invalid("recording"))?;
        if part.rounds.len() > limits::MAX_RECORDED_ROUNDS
            || part.busiest.len() > limits::MAX_RECORDED_ROUNDS
        {
            return Err(DecodeError::TooMany("recorded rounds"));
        }
        beside.recording = Some(part);
    }
    Ok((flags, beside))
}

/// One series as the decoder knows it.
#[derive(Debug, Clone)]
pub struct Slot<K> {
    /// The caller's key.
    pub key: K,
    /// Latest value.
    pub raw: Raw,
    /// Unit of the value.
    pub scale: Scale,
    /// Whether it has a value now.
    pub present: bool,
    family: u32,
}

/// The state of one agent's chain: what its next payload builds on.
#[derive(Debug)]
pub struct Decoder<K> {
    decoded_to: u64,
    label_bytes: usize,
    families: Vec<Arc<Family>>,
    slots: Vec<Slot<K>>,
}

impl<K: Clone> Default for Decoder<K> {
    fn default() -> Self {
        Self {
            decoded_to: 0,
            label_bytes: 0,
            families: Vec::new(),
            slots: Vec::new(),
        }
    }
}

impl<K: Clone> Decoder<K> {
    /// The number of the last payload decoded; 0 when the next must be a key frame.
    #[must_use]
    pub fn decoded_to(&self) -> u64 {
        self.decoded_to
    }

    /// All series in the order of their numbers.
    #[must_use]
    pub fn slots(&self) -> &[Slot<K>] {
        &self.slots
    }

    /// The family of a slot.
    #[must_use]
    pub fn family(&self, slot: &Slot<K>) -> &Family {
        &self.families[slot.family as usize]
    }

    /// Forgets everything: the next payload must be a key frame.
    pub fn reset(&mut self) {
        self.decoded_to = 0;
        self.label_bytes = 0;
        self.families = Vec::new();
        self.slots = Vec::new();
    }

    /// Whether the payload with this number can be decoded now.
    #[must_use]
    pub fn accepts(&self, seq: u64, payload: &[u8]) -> bool {
        is_key_frame(payload) || (self.decoded_to != 0 && seq == self.decoded_to + 1)
    }

    /// Applies the payload numbered `seq` and says in `changes` what it changed.
    ///
    /// A delta that does not follow leaves the state as it was. After any other error the state is gone
    /// and the next payload must be a key frame. `most_series` is the quota of this host.
    pub fn apply<I: Intern<Key = K>>(
        &mut self,
        seq: u64,
        payload: &[u8],
        most_series: usize,
        intern: &mut I,
        changes: &mut Changes,
    ) -> Result<(), DecodeError> {
        changes.clear();
        if !self.accepts(seq, payload) {
            return Err(DecodeError::NoKeyFrame {
                seq,
                decoded_to: self.decoded_to,
            });
        }
        let outcome = self.read(payload, most_series, intern, changes);
        match outcome {
            Ok(()) => self.decoded_to = seq,
            Err(_) => {
                self.reset();
                changes.clear();
            }
        }
        outcome
    }

    fn read<I: Intern<Key = K>>(
        &mut self,
        payload: &[u8],
        most_series: usize,
        intern: &mut I,
        changes: &mut Changes,
    ) -> Result<(), DecodeError> {
        let mut input = Input(payload);
        let (flags, beside) = read_beside(&mut input)?;
        if flags & KEY != 0 {
            self.reset();
            changes.key = true;
        }
        // A recording is for whoever keeps it, see `beside`; the sample does not depend on it.
        changes.events = beside.events;
        if flags & DICTIONARY != 0 {
            self.read_dictionary(&mut input, most_series, intern)?;
        }
        self.read_values(&mut input, changes)?;
        if flags & ABSENT != 0 {
            self.read_absent(&mut input, changes)?;
        }
        if input.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Invalid("rest after the values"))
        }
    }

    fn read_dictionary<I: Intern<Key = K>>(
        &mut self,
        input: &mut Input<'_>,
        most_series: usize,
        intern: &mut I,
    ) -> Result<(), DecodeError> {
        let families = input.count("family count")?;
        if self.families.len() + families > limits::MAX_FAMILIES {
            return Err(DecodeError::TooMany("families"));
        }
        self.families.reserve_exact(families.min(input.0.len()));
        for _ in 0..families {
            let family = read_family(input)?;
            self.families.push(intern.family(family));
        }
        let series = input.count("series count")?;
        if self.slots.len() + series > most_series {
            return Err(DecodeError::TooMany("series"));
        }
        // Each takes a byte at least; thousands of hosts hold no more than they need.
        self.slots.reserve_exact(series.min(input.0.len()));
        let mut before: Vec<String> = Vec::new();
        for _ in 0..series {
            let index = input.count("family of a series")?;
            let family = self
                .families
                .get(index)
                .ok_or(DecodeError::Invalid("family of a series"))?;
            let labels = read_labels(input, family.labels.len(), &before)?;
            // Shared prefixes cost the sender nothing, so the sum is bounded too.
            self.label_bytes += labels.iter().map(String::len).sum::<usize>();
            if self.label_bytes > limits::MAX_DICTIONARY_LABEL_BYTES {
                return Err(DecodeError::TooMany("bytes of labels"));
            }
            self.slots.push(Slot {
                key: intern.series(family, &labels),
                raw: Raw(0),
                scale: family.scale,
                present: false,
                family: u32::try_from(index).map_err(|_| DecodeError::Invalid("family"))?,
            });
            before = labels;
        }
        Ok(())
    }

    fn read_absent(
        &mut self,
        input: &mut Input<'_>,
        changes: &mut Changes,
    ) -> Result<(), DecodeError> {
        let count = input.count("absent count")?;
        if count > self.slots.len() {
            return Err(DecodeError::TooMany("absent series"));
        }
        let mut next = 0usize;
        for _ in 0..count {
            let id = next
                .checked_add(input.count("absent series")?)
                .filter(|&id| id < self.slots.len())
                .ok_or(DecodeError::Invalid("absent series"))?;
            self.slots[id].present = false;
            changes
                .absent
                .push(u32::try_from(id).map_err(|_| DecodeError::Invalid("absent series"))?);
            next = id + 1;
        }
        Ok(())
    }

    fn read_values(
        &mut self,
        input: &mut Input<'_>,
        changes: &mut Changes,
    ) -> Result<(), DecodeError> {
        if input.count("series count of the values")? != self.slots.len() {
            return Err(DecodeError::Invalid("series count of the values"));
        }
        let bytes = self.slots.len().div_ceil(8);
        let presence = input.take(bytes.div_ceil(8), "bitmap")?;
        let set = |at: usize| presence[at / 8] >> (at % 8) & 1 == 1;
        if (bytes..presence.len() * 8).any(set) {
            return Err(DecodeError::Invalid("bitmap"));
        }
        let held = (0..bytes).filter(|&at| set(at)).count();
        let mut bitmap = input.take(held, "bitmap")?.iter();
        for at in (0..bytes).filter(|&at| set(at)) {
            let mut bits = *bitmap.next().ok_or(DecodeError::Truncated("bitmap"))?;
            while bits != 0 {
                let number = at * 8 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let slot = self
                    .slots
                    .get_mut(number)
                    .ok_or(DecodeError::Invalid("bitmap"))?;
                slot.raw = input.number(slot.scale, slot.raw)?;
                slot.present = true;
                changes
                    .changed
                    .push(u32::try_from(number).map_err(|_| DecodeError::Invalid("bitmap"))?);
            }
        }
        Ok(())
    }

    /// A key frame that brings another decoder into this state, numbers of series included.
    ///
    /// `labels` gives back the label values of a key. Used to keep the state over a restart.
    pub fn snapshot<'a>(&'a self, labels: impl Fn(&'a K) -> &'a [String], out: &mut Vec<u8>) {
        let absent: Vec<usize> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(number, slot)| (!slot.present).then_some(number))
            .collect();
        let absent_flag = if absent.is_empty() { 0 } else { ABSENT };
        out.extend([VERSION, KEY | DICTIONARY | absent_flag]);
        put_varint(out, self.families.len() as u64);
        for family in &self.families {
            put_family(out, family);
        }
        put_varint(out, self.slots.len() as u64);
        let mut before: &[String] = &[];
        for slot in &self.slots {
            let values = labels(&slot.key);
            put_series(out, slot.family, values, before);
            before = values;
        }
        let mut bitmap = vec![0; self.slots.len().div_ceil(8)];
        let mut numbers = Vec::new();
        for (number, slot) in self.slots.iter().enumerate() {
            bitmap[number / 8] |= 1 << (number % 8);
            put_number(&mut numbers, slot.scale, slot.raw, Raw(0));
        }
        put_varint(out, self.slots.len() as u64);
        put_bitmap(out, &bitmap);
        out.extend_from_slice(&numbers);
        // Absent series keep the value that later differences build on, and lose their presence last.
        if !absent.is_empty() {
            put_ids(out, &absent);
        }
    }
}

/// Whether a payload is a key frame, from its first bytes.
#[must_use]
pub fn is_key_frame(payload: &[u8]) -> bool {
    payload.len() >= 2 && payload[1] & KEY != 0
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text);
}

fn put_family(out: &mut Vec<u8>, family: &Family) {
    put_text(out, family.name.as_bytes());
    out.push(kind_code(family.kind) << 4 | scale_code(family.scale));
    put_varint(out, family.labels.len() as u64);
    for label in &family.labels {
        put_text(out, label.as_bytes());
    }
}

fn put_series(out: &mut Vec<u8>, family: u32, labels: &[String], before: &[String]) {
    put_varint(out, u64::from(family));
    for (at, label) in labels.iter().enumerate() {
        let shared = before
            .get(at)
            .map_or(0, |other| shared_prefix(label, other));
        put_varint(out, shared as u64);
        put_text(out, &label.as_bytes()[shared..]);
    }
}

fn shared_prefix(one: &str, other: &str) -> usize {
    one.bytes()
        .zip(other.bytes())
        .take_while(|(a, b)| a == b)
        .count()
}

fn put_ids(out: &mut Vec<u8>, ids: &[usize]) {
    put_varint(out, ids.len() as u64);
    let mut next = 0;
    for &id in ids {
        put_varint(out, (id - next) as u64);
        next = id + 1;
    }
}

fn put_bitmap(out: &mut Vec<u8>, bitmap: &[u8]) {
    let presence_at = out.len();
    out.resize(presence_at + bitmap.len().div_ceil(8), 0);
    for (at, &byte) in bitmap.iter().enumerate() {
        if byte != 0 {
            out[presence_at + at / 8] |= 1 << (at % 8);
            out.push(byte);
        }
    }
}

fn put_number(out: &mut Vec<u8>, scale: Scale, raw: Raw, last: Raw) {
    let number = if scale == Scale::Float {
        (raw.0 ^ last.0).reverse_bits()
    } else {
        let difference = raw.as_int().wrapping_sub(last.as_int());
        ((difference << 1) ^ (difference >> 63)).cast_unsigned()
    };
    put_varint(out, number);
}

const fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Counter => 0,
        Kind::Gauge => 1,
        Kind::Untyped => 2,
    }
}

const fn scale_code(scale: Scale) -> u8 {
    match scale {
        Scale::One => 0,
        Scale::Kibi => 1,
        Scale::Sector => 2,
        Scale::Centi => 3,
        Scale::Milli => 4,
        Scale::Micro => 5,
        Scale::Nano => 6,
        Scale::Float => 7,
    }
}

fn read_family(input: &mut Input<'_>) -> Result<Family, DecodeError> {
    let name = input.text("metric name", limits::MAX_NAME_BYTES)?;
    if !series::is_metric_name(&name) {
        return Err(DecodeError::Invalid("metric name"));
    }
    let code = input.byte("type")?;
    let kind = match code >> 4 {
        0 => Kind::Counter,
        1 => Kind::Gauge,
        2 => Kind::Untyped,
        _ => return Err(DecodeError::Invalid("type")),
    };
    let scale = match code & 0xf {
        0 => Scale::One,
        1 => Scale::Kibi,
        2 => Scale::Sector,
        3 => Scale::Centi,
        4 => Scale::Milli,
        5 => Scale::Micro,
        6 => Scale::Nano,
        7 => Scale::Float,
        _ => return Err(DecodeError::Invalid("unit")),
    };
    let count = input.count("label count")?;
    if count > limits::MAX_LABELS {
        return Err(DecodeError::TooMany("labels"));
    }
    let mut labels: Vec<String> = Vec::with_capacity(count);
    for _ in 0..count {
        let label = input.text("label name", limits::MAX_NAME_BYTES)?;
        if !series::is_label_name(&label) || labels.contains(&label) {
            return Err(DecodeError::Invalid("label name"));
        }
        labels.push(label);
    }
    Ok(Family {
        name,
        kind,
        scale,
        labels,
    })
}

fn read_labels(
    input: &mut Input<'_>,
    count: usize,
    before: &[String],
) -> Result<Vec<String>, DecodeError> {
    let mut labels = Vec::with_capacity(count);
    for at in 0..count {
        let shared = input.count("shared length")?;
        let prefix = match before.get(at) {
            Some(other) => other.as_bytes().get(..shared),
            None => (shared == 0).then_some(&[][..]),
        }
        .ok_or(DecodeError::Invalid("shared length"))?;
        let rest = input.block("label value")?;
        if prefix.len() + rest.len() > limits::MAX_LABEL_VALUE_BYTES {
            return Err(DecodeError::Invalid("label value"));
        }
        let label = String::from_utf8([prefix, rest].concat())
            .map_err(|_| DecodeError::Invalid("label value"))?;
        if label.chars().any(char::is_control) {
            return Err(DecodeError::Invalid("label value"));
        }
        labels.push(label);
    }
    Ok(labels)
}

/// What is left of a payload.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?[0])
    }

    fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Invalid(what));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid(what))
    }

    /// A number of things or a place in a list: never more than fits in memory.
    fn count(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.varint(what)?;
        u32::try_from(count)
            .ok()
            .and_then(|count| usize::try_from(count).ok())
            .ok_or(DecodeError::Invalid(what))
    }

    fn block(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.count(what)?;
        self.take(length, what)
    }

    fn text(&mut self, what: &'static str, most: usize) -> Result<String, DecodeError> {
        let bytes = self.block(what)?;
        if bytes.len() > most {
            return Err(DecodeError::Invalid(what));
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Invalid(what))
    }

    fn number(&mut self, scale: Scale, last: Raw) -> Result<Raw, DecodeError> {
        let number = self.varint("value")?;
        Ok(if scale == Scale::Float {
            Raw(number.reverse_bits() ^ last.0)
        } else {
            let difference = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
            Raw::int(last.as_int().wrapping_add(difference))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::series::Series;

    /// Keys are the series themselves.
    struct Names;

    impl Intern for Names {
        type Key = (String, Vec<String>);

        fn series(&mut self, family: &Arc<Family>, labels: &[String]) -> Self::Key {
            (family.name.clone(), labels.to_vec())
        }
    }

    type NamedDecoder = Decoder<(String, Vec<String>)>;

    fn table(series: usize) -> Table {
        let scales = [Scale::One, Scale::Centi, Scale::Float, Scale::Kibi];
        let families = scales.iter().enumerate().map(|(at, &scale)| Family {
            name: format!("node_family_{at}_total"),
            kind: Kind::Counter,
            scale,
            labels: vec!["device".into(), "mode".into()],
        });
        let mut table = Table {
            families: families.collect(),
            ..Table::default()
        };
        for at in 0..series {
            table.series.push(Series {
                family: u32::try_from(at % scales.len()).expect("small"),
                labels: vec![format!("disk{}", at / 3), format!("möde{at}")],
            });
            table.raw.push(Raw(0));
            table.present.push(true);
        }
        table
    }

    /// What a decoder holds, by name.
    fn held(decoder: &NamedDecoder) -> Vec<(Vec<String>, u64)> {
        let mut all: Vec<_> = decoder
            .slots()
            .iter()
            .filter(|slot| slot.present)
            .map(|slot| (slot.key.1.clone(), slot.raw.0))
            .collect();
        all.sort();
        all
    }

    fn expected(table: &Table) -> Vec<(Vec<String>, u64)> {
        let mut all: Vec<_> = (0..table.series.len())
            .filter(|&at| table.present[at])
            .map(|at| (table.series[at].labels.clone(), table.raw[at].0))
            .collect();
        all.sort();
        all
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(usize, i64),
        SetFloat(usize, f64),
        Present(usize, bool),
        Add,
        Recycle(usize),
        Key,
        Restart,
    }

    fn step() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            6 => (0usize..40, any::<i64>()).prop_map(|(at, v)| Step::Set(at, v)),
            6 => (0usize..40, -5i64..300).prop_map(|(at, v)| Step::Set(at, v)),
            2 => (0usize..40, any::<f64>()).prop_map(|(at, v)| Step::SetFloat(at, v)),
            3 => (0usize..40, any::<bool>()).prop_map(|(at, on)| Step::Present(at, on)),
            1 => Just(Step::Add),
            1 => (0usize..40).prop_map(Step::Recycle),
            1 => Just(Step::Key),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(one, 0..12)
    }

    proptest! {
        /// After each payload the decoder holds what the table holds, also when its state was carried
        /// over through a snapshot.
        #[test]
        fn decoder_follows_the_table(rounds in prop::collection::vec(step(), 1..12)) {
            let mut table = table(20);
            let mut encoder = Encoder::new();
            let mut decoder = NamedDecoder::default();
            let mut changes = Changes::default();
            for (round, steps) in rounds.into_iter().enumerate() {
                let (mut key, mut restart) = (false, false);
                for step in steps {
                    let count = table.series.len();
                    match step {
                        Step::Set(at, v) => table.raw[at % count] = Raw::int(v),
                        Step::SetFloat(at, v) => table.raw[at % count] = Raw::float(v),
                        Step::Present(at, on) => table.present[at % count] = on,
                        Step::Add => {
                            table.series.push(Series { family: 1, labels: vec![format!("new{count}"), String::new()] });
                            table.raw.push(Raw::int(7));
                            table.present.push(true);
                        }
                        Step::Recycle(at) => {
                            table.series[at % count].labels[0] = format!("recycled{round}-{at}");
                            table.generation += 1;
                        }
                        Step::Key => key = true,
                        Step::Restart => restart = true,
                    }
                }
                let mut payload = Vec::new();
                let seq = round as u64 + 1;
                let was_key = encoder.encode(&table, &[], key, &mut payload);
                prop_assert_eq!(was_key, is_key_frame(&payload));
                if restart {
                    let mut kept = Vec::new();
                    decoder.snapshot(|key| &key.1, &mut kept);
                    let before = decoder.decoded_to();
                    decoder = NamedDecoder::default();
                    decoder.apply(before, &kept, 1000, &mut Names, &mut changes).expect("a snapshot decodes");
                }
                decoder.apply(seq, &payload, 1000, &mut Names, &mut changes).expect("own payload decodes");
                prop_assert_eq!(held(&decoder), expected(&table));
            }
        }

        /// Whatever bytes arrive, decoding ends with an answer.
        #[test]
        fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = NamedDecoder::default();
            let mut framed = vec![VERSION, KEY | DICTIONARY];
            framed.extend(&bytes);
            for payload in [bytes, framed] {
                // Either outcome is fine; a panic or an endless loop is not.
                let _ = decoder.apply(1, &payload, 1000, &mut Names, &mut Changes::default());
            }
        }

        /// A payload with one byte altered or cut off is decoded or refused, never worse.
        #[test]
        fn damage_is_survived(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<bool>()) {
            let mut payload = Vec::new();
            Encoder::new().encode(&table(30), &[], true, &mut payload);
            let at = at.index(payload.len());
            if cut { payload.truncate(at) } else { payload[at] = with }
            let mut decoder = NamedDecoder::default();
            if decoder.apply(1, &payload, 1000, &mut Names, &mut Changes::default()).is_err() {
                prop_assert_eq!(decoder.decoded_to(), 0);
            }
        }
    }

    #[test]
    fn a_delta_needs_the_payload_before_it() {
        let mut table = table(4);
        let mut encoder = Encoder::new();
        let mut payloads = Vec::new();
        for round in 0..3 {
            table.raw[0] = Raw::int(round);
            let mut payload = Vec::new();
            encoder.encode(&table, &[], false, &mut payload);
            payloads.push(payload);
        }
        let (mut decoder, mut changes) = (NamedDecoder::default(), Changes::default());
        let mut apply =
            |seq, at: usize| decoder.apply(seq, &payloads[at], 100, &mut Names, &mut changes);
        assert_eq!(
            apply(2, 1),
            Err(DecodeError::NoKeyFrame {
                seq: 2,
                decoded_to: 0
            })
        );
        assert_eq!(apply(1, 0), Ok(()));
        assert!(apply(3, 2).is_err());
        assert_eq!((apply(2, 1), apply(3, 2)), (Ok(()), Ok(())));
    }

    #[test]
    fn the_quota_holds() {
        let mut payload = Vec::new();
        Encoder::new().encode(&table(30), &[], true, &mut payload);
        let mut decoder = NamedDecoder::default();
        let outcome = decoder.apply(1, &payload, 29, &mut Names, &mut Changes::default());
        assert_eq!(outcome, Err(DecodeError::TooMany("series")));
    }

    #[test]
    fn an_idle_round_costs_a_few_bytes() {
        let table = table(400);
        let mut encoder = Encoder::new();
        encoder.encode(&table, &[], true, &mut Vec::new());
        let mut payload = Vec::new();
        encoder.encode(&table, &[], false, &mut payload);
        assert!(payload.len() <= 12, "{} bytes", payload.len());
    }

    #[test]
    fn events_travel_in_order() {
        let event = |at_ms| v1::Event {
            kind: v1::EventKind::UnitStateChanged.into(),
            subject: "cron.service".into(),
            at_ms,
            fields: Vec::new(),
        };
        let mut payload = Vec::new();
        Encoder::new().encode(&table(1), &[event(5), event(3)], false, &mut payload);
        let (mut decoder, mut changes) = (NamedDecoder::default(), Changes::default());
        decoder
            .apply(1, &payload, 9, &mut Names, &mut changes)
            .expect("decodes");
        assert_eq!(changes.events, [event(5), event(3)]);
    }
}
