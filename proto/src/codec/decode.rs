//! From payloads to the series of a host as they are now. Whatever a payload says is bounded before it is believed.

use std::sync::Arc;

use super::{
    ABSENT, DICTIONARY, DecodeError, KEY, VERSION, is_key_frame, read_beside,
    wire::{
        Input, put_bitmap, put_family, put_ids, put_number, put_series, put_varint, read_family,
        read_labels,
    },
};
use crate::{
    limits,
    series::{Family, Raw, Scale},
    v1,
};

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
