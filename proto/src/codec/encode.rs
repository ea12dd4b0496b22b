//! From a table to a payload: what changed since the one before.

use prost::Message;

use super::{
    ABSENT, DICTIONARY, EVENTS, KEY, RECORDING, VERSION,
    wire::{put_bitmap, put_family, put_ids, put_number, put_series, put_varint},
};
use crate::{
    series::{Raw, Table},
    v1,
};

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
