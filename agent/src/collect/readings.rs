//! Where collectors put their values: one table of series that lives as long as the agent.
//!
//! A collector is a pass: between [`Readings::begin`] and [`Readings::end`] it puts one value after the
//! other. Kernels print the same things in the same order, so the places of the last round are kept for
//! each pass and a cursor runs along them: the usual value costs one comparison of its labels, no look-up
//! and no allocation. Where the order differs, an index sorted by family and labels finds the place.
//!
//! Promised: a series has a value exactly if its pass put one in its latest round and did not fail. The
//! table is bounded in series, families and the bytes of a key frame; what is beyond is left out and counted
//! for its pass. Some places are kept for favoured passes, and a pass of like objects (disks, interfaces,
//! units) gets half of the places, so that no single kind of thing crowds out all others.

use std::{borrow::Cow, cmp::Ordering};

use muster_proto::{
    catalog::{self, FamilyId},
    limits,
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::Timestamp,
    v1,
};

use crate::watch::left_out_event;

/// Places of series that are gone are kept up to as many as there are series, and this many more: giving
/// a place away costs a key frame on the wire.
const SPARE_PLACES: usize = 256;

/// Places that only favoured passes may take: about twice what the agent says about itself.
const RESERVED_PLACES: usize = 200;

/// Most bytes of series and their values in a key frame. The rest of [`limits::MAX_PAYLOAD_BYTES`] is for 256
/// events of at most 480 bytes, the names of families, and bitmaps.
const MAX_SERIES_BYTES: usize = limits::MAX_PAYLOAD_BYTES - 160 * 1024;

/// The longest varint of a value.
const VALUE_BYTES: usize = 10;

/// Most events that wait to be sent; a storm of more says nothing that these do not.
const MAX_EVENTS: usize = 4 * limits::MAX_EVENTS_PER_FRAME;

/// No series: the end of a pass's list.
const NOWHERE: u32 = u32::MAX;

/// The values of a host as they are now, and what happened since the last round.
#[derive(Debug)]
pub struct Readings {
    table: Table,
    /// Beside the table: who put the series, and when.
    marks: Vec<Mark>,
    /// Places sorted by family and labels.
    index: Vec<u32>,
    passes: Vec<Pass>,
    /// The pass that is open.
    current: usize,
    /// Numbers the openings of passes, from 1.
    round: u64,
    quota: usize,
    /// Most bytes that the series take in a key frame.
    series_bytes: usize,
    refused: u64,
    events: Vec<v1::Event>,
    /// Events that had no room since the last were taken.
    events_left_out: u64,
    tick: Timestamp,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    pass: usize,
    /// `Readings::round` in which the value was put.
    round: u64,
    /// Where the place stands in the pass's list of its last round.
    at: u32,
}

/// One collector's series.
#[derive(Debug, Default)]
struct Pass {
    last: Vec<u32>,
    now: Vec<u32>,
    cursor: usize,
    /// Whether it may take the places that are reserved.
    favoured: bool,
    /// Values left out in the round that is open, and in the last one.
    leaving_out: u64,
    left_out: u64,
}

impl Default for Readings {
    fn default() -> Self {
        Self::with_quota(limits::MAX_SERIES)
    }
}

impl Readings {
    /// An empty table that never holds more than `quota` series, and never more than
    /// [`limits::MAX_SERIES`].
    #[must_use]
    pub fn with_quota(quota: usize) -> Self {
        Self {
            table: Table {
                families: catalog::families(),
                ..Table::default()
            },
            marks: Vec::new(),
            index: Vec::new(),
            passes: Vec::new(),
            current: 0,
            round: 0,
            quota: quota.min(limits::MAX_SERIES),
            series_bytes: 0,
            refused: 0,
            events: Vec::new(),
            events_left_out: 0,
            tick: Timestamp::default(),
        }
    }

    /// The values as they are now.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The moment for which values are put.
    #[must_use]
    pub fn tick(&self) -> Timestamp {
        self.tick
    }

    /// Sets the moment for which values are put from now on.
    pub fn set_tick(&mut self, tick: Timestamp) {
        self.tick = tick;
    }

    /// Values left out so far because of a bound.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Values of this pass that were left out in its last round because of a bound.
    #[must_use]
    pub fn left_out(&self, pass: usize) -> u64 {
        self.passes.get(pass).map_or(0, |pass| pass.left_out)
    }

    /// Most series the table may hold.
    #[must_use]
    pub fn quota(&self) -> usize {
        self.quota
    }

    /// Lets this pass take the places that are reserved.
    pub fn favour(&mut self, pass: usize) {
        self.pass(pass).favoured = true;
    }

    /// Whether the pass that is open may put an object of so many series: a pass of objects gets at most
    /// half of all places, and shows each object whole or not at all. What it may not is counted.
    pub fn admits_object(&mut self, series: usize) -> bool {
        let share = self.quota / 2;
        let admitted = self
            .passes
            .get(self.current)
            .is_some_and(|pass| pass.now.len() + series <= share);
        if !admitted {
            self.leave_out(series as u64);
        }
        admitted
    }

    /// As [`Readings::admits_object`], for what is a detail of a thing that another collector shows: it gets only
    /// what leaves a quarter of all places to others. When they need more, it gives way.
    pub fn admits_detail(&mut self, series: usize) -> bool {
        let own = self.passes.get(self.current);
        let (last, now) = own.map_or((0, 0), |pass| (pass.last.len(), pass.now.len()));
        let others = self.table.series.len().saturating_sub(last.max(now));
        if others + now + series > self.quota - self.quota / 4 {
            self.leave_out(series as u64);
            return false;
        }
        self.admits_object(series)
    }

    /// Counts values that are not put because of a bound, in the pass that is open.
    pub(super) fn leave_out(&mut self, values: u64) {
        self.refused += values;
        if let Some(pass) = self.passes.get_mut(self.current) {
            pass.leaving_out += values;
        }
    }

    fn pass(&mut self, number: usize) -> &mut Pass {
        if self.passes.len() <= number {
            self.passes.resize_with(number + 1, Pass::default);
        }
        &mut self.passes[number]
    }

    /// Something that happened at this tick. Subjects are made printable and cut to their bound.
    pub fn event(&mut self, kind: v1::EventKind, subject: &str, fields: Vec<v1::EventField>) {
        self.event_at(self.tick, kind, subject, fields);
    }

    /// Something that happened at another moment, by the host's clock.
    pub fn event_at(
        &mut self,
        at: Timestamp,
        kind: v1::EventKind,
        subject: &str,
        fields: Vec<v1::EventField>,
    ) {
        if self.events.len() >= MAX_EVENTS {
            self.events_left_out += 1;
            return;
        }
        let mut subject = printable(subject).into_owned();
        subject.truncate(subject.floor_char_boundary(limits::MAX_EVENT_SUBJECT_BYTES));
        self.events.push(v1::Event {
            kind: kind.into(),
            subject,
            at_ms: at.as_millis(),
            fields,
        });
    }

    /// Counts events that were not even put here.
    pub fn leave_out_events(&mut self, count: u64) {
        self.events_left_out += count;
    }

    /// Takes the oldest events, at most as many as a frame may carry; the rest wait for the next. How many had no
    /// room at all is told by the last of them.
    pub fn take_events(&mut self) -> Vec<v1::Event> {
        let left_out = std::mem::take(&mut self.events_left_out);
        let most = limits::MAX_EVENTS_PER_FRAME - usize::from(left_out > 0);
        let count = self.events.len().min(most);
        let mut events: Vec<v1::Event> = self.events.drain(..count).collect();
        if left_out > 0 {
            events.push(left_out_event(self.tick, left_out));
        }
        events
    }

    /// The family of a name that the kernel makes; made if it is new. `None` if the name is no metric name,
    /// is taken by a family of another form, or the bound on families is reached.
    pub fn dynamic_family(
        &mut self,
        name: &str,
        kind: Kind,
        scale: Scale,
        labels: &[&str],
    ) -> Option<FamilyId> {
        let families = &self.table.families;
        if let Some(known) = families.iter().position(|family| family.name == name) {
            let family = &families[known];
            let same = family.kind == kind && family.scale == scale && family.labels == labels;
            return same.then_some(FamilyId(u32::try_from(known).ok()?));
        }
        self.make_family(name, kind, scale, labels)
    }

    /// The family of a name and labels that people make, of floating-point numbers; made if it is new.
    /// Another type replaces the one it had, and labels it did not have are added behind those it has: its
    /// series have them with an empty value, which is as good as absent. `None` as for
    /// [`Readings::dynamic_family`]; the names of the catalogue are taken.
    pub fn open_family(&mut self, name: &str, kind: Kind, labels: &[&str]) -> Option<FamilyId> {
        let families = &mut self.table.families;
        let Some(known) = families.iter().position(|family| family.name == name) else {
            return self.make_family(name, kind, Scale::Float, labels);
        };
        let family = &mut families[known];
        if known < catalog::METRICS.len() || family.scale != Scale::Float {
            return None;
        }
        let id = u32::try_from(known).ok()?;
        let new = |label: &&&str| !family.labels.iter().any(|known| known == **label);
        let new: Vec<&str> = labels.iter().filter(new).copied().collect();
        if new.is_empty() && family.kind == kind {
            return Some(FamilyId(id));
        }
        if family.labels.len() + new.len() > limits::MAX_LABELS || !new.iter().all(is_good_label) {
            return None;
        }
        family.kind = kind;
        family
            .labels
            .extend(new.iter().map(|&label| label.to_owned()));
        let count = family.labels.len();
        // Empty values behind the others change neither the order nor, by more than these few bytes, the size.
        for series in self.table.series.iter_mut().filter(|s| s.family == id) {
            series.labels.resize(count, String::new());
            self.series_bytes += new.len() * 2;
        }
        self.table.generation += 1;
        Some(FamilyId(id))
    }

    fn make_family(
        &mut self,
        name: &str,
        kind: Kind,
        scale: Scale,
        labels: &[&str],
    ) -> Option<FamilyId> {
        let families = &mut self.table.families;
        let legal = muster_proto::series::is_metric_name(name)
            && labels.len() <= limits::MAX_LABELS
            && labels.iter().all(is_good_label);
        if families.len() >= limits::MAX_FAMILIES || !legal {
            self.refused += 1;
            return None;
        }
        let id = FamilyId(u32::try_from(families.len()).ok()?);
        families.push(Family {
            name: name.to_owned(),
            kind,
            scale,
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
        });
        Some(id)
    }

    /// Opens the pass of the collector with this number; numbers are small and fixed.
    pub fn begin(&mut self, pass: usize) {
        self.current = pass;
        self.round += 1;
        let pass = self.pass(pass);
        pass.cursor = 0;
        pass.leaving_out = 0;
        pass.now.clear();
    }

    /// Closes the pass that is open. Its series without a value in this round have none any more, and
    /// none of them has one when the collector failed (`ok` false).
    pub fn end(&mut self, ok: bool) {
        let Some(pass) = self.passes.get_mut(self.current) else {
            return;
        };
        std::mem::swap(&mut pass.last, &mut pass.now);
        pass.left_out = pass.leaving_out;
        for &place in pass.now.iter().chain(&pass.last) {
            let mark = self.marks[place as usize];
            if mark.pass == self.current && (mark.round != self.round || !ok) {
                self.table.present[place as usize] = false;
            }
        }
        pass.now.clear();
        if !ok {
            pass.last.clear();
        }
        for (at, &place) in pass.last.iter().enumerate() {
            self.marks[place as usize].at = u32::try_from(at).unwrap_or(NOWHERE);
        }
    }

    /// Puts a whole number.
    pub fn int(&mut self, family: FamilyId, labels: &[&str], value: i64) {
        self.put(family, labels, Raw::int(value));
    }

    /// Puts a whole number that cannot be negative.
    pub fn unsigned(&mut self, family: FamilyId, labels: &[&str], value: u64) {
        self.put(family, labels, Raw::unsigned(value));
    }

    /// Puts a floating-point number; the family's scale is [`Scale::Float`].
    pub fn float(&mut self, family: FamilyId, labels: &[&str], value: f64) {
        self.put(family, labels, Raw::float(value));
    }

    /// Puts a value as the family's scale has it.
    pub(super) fn raw(&mut self, family: FamilyId, labels: &[&str], raw: Raw) {
        self.put(family, labels, raw);
    }

    fn put(&mut self, family: FamilyId, labels: &[&str], raw: Raw) {
        let place = match self.under_cursor(family, labels) {
            Some(place) => place,
            None => match self.find_or_admit(family, labels) {
                Some(place) => place,
                None => {
                    self.leave_out(1);
                    return;
                }
            },
        };
        let mark = &mut self.marks[place as usize];
        let here = mark.pass == self.current;
        if here && mark.round == self.round {
            self.table.raw[place as usize] = raw;
            return;
        }
        if !here && self.table.present[place as usize] {
            // Two collectors must not own one series: the first to put it keeps it.
            self.refused += 1;
            return;
        }
        mark.pass = self.current;
        mark.round = self.round;
        self.table.raw[place as usize] = raw;
        self.table.present[place as usize] = true;
        let pass = &mut self.passes[self.current];
        // Whatever the order is now, the cursor goes on behind this series' place in the last round.
        if pass.last.get(mark.at as usize) == Some(&place) {
            pass.cursor = mark.at as usize + 1;
        }
        pass.now.push(place);
    }

    fn under_cursor(&self, family: FamilyId, labels: &[&str]) -> Option<u32> {
        let pass = self.passes.get(self.current)?;
        let place = *pass.last.get(pass.cursor)?;
        let series = self.table.series.get(place as usize)?;
        let same = series.family == family.0
            && series.labels.len() == labels.len()
            && series.labels.iter().zip(labels).all(|(a, b)| a == b);
        same.then_some(place)
    }

    fn find_or_admit(&mut self, family: FamilyId, labels: &[&str]) -> Option<u32> {
        let names = &self.table.families.get(family.0 as usize)?.labels;
        if names.len() != labels.len() || self.passes.is_empty() {
            return None;
        }
        let labels: Vec<Cow<'_, str>> = labels.iter().map(|&label| printable(label)).collect();
        match self.search(family, &labels) {
            Ok(at) => Some(self.index[at]),
            Err(_) => self.admit(family, &labels),
        }
    }

    fn search(&self, family: FamilyId, labels: &[Cow<'_, str>]) -> Result<usize, usize> {
        self.index.binary_search_by(|&place| {
            let series = &self.table.series[place as usize];
            let by_label = || {
                series
                    .labels
                    .iter()
                    .map(String::as_str)
                    .cmp(labels.iter().map(AsRef::as_ref))
            };
            match series.family.cmp(&family.0) {
                Ordering::Equal => by_label(),
                unequal => unequal,
            }
        })
    }

    /// Gives a new series a place, if the bounds allow.
    fn admit(&mut self, family: FamilyId, labels: &[Cow<'_, str>]) -> Option<u32> {
        let too_long = |label: &Cow<'_, str>| label.len() > limits::MAX_LABEL_VALUE_BYTES;
        if labels.iter().any(too_long) {
            return None;
        }
        let reserved = match self.passes.get(self.current) {
            Some(pass) if pass.favoured => 0,
            _ => RESERVED_PLACES.min(self.quota / 10),
        };
        let quota = self.quota - reserved;
        let present = self.table.present_count();
        let most = quota.min(2 * present + SPARE_PLACES);
        if self.is_full(labels, most) {
            if present < self.table.series.len() {
                self.forget_the_gone();
            }
            if self.is_full(labels, quota) {
                return None;
            }
        }
        let at = self.search(family, labels).err()?;
        let place = u32::try_from(self.table.series.len()).ok()?;
        self.index.insert(at, place);
        self.series_bytes += series_bytes(self.table.series.last(), labels);
        self.table.series.push(Series {
            family: family.0,
            labels: labels.iter().map(|label| label.to_string()).collect(),
        });
        self.table.raw.push(Raw::default());
        self.table.present.push(false);
        self.marks.push(Mark {
            pass: self.current,
            round: 0,
            at: NOWHERE,
        });
        Some(place)
    }

    fn is_full(&self, labels: &[Cow<'_, str>], most: usize) -> bool {
        let bytes = series_bytes(self.table.series.last(), labels);
        self.table.series.len() >= most || self.series_bytes + bytes > MAX_SERIES_BYTES
    }

    /// Drops every series without a value and moves the others together.
    fn forget_the_gone(&mut self) {
        let mut moved = vec![NOWHERE; self.table.series.len()];
        let mut next = 0u32;
        for (place, &present) in self.table.present.iter().enumerate() {
            if present {
                moved[place] = next;
                next += 1;
            }
        }
        let keep = std::mem::take(&mut self.table.present);
        retain_by(&mut self.table.series, &keep);
        retain_by(&mut self.table.raw, &keep);
        retain_by(&mut self.marks, &keep);
        self.table.present = vec![true; self.table.series.len()];
        self.table.generation += 1;
        let series = &self.table.series;
        let before = std::iter::once(None).chain(series.iter().map(Some));
        let bytes = before.zip(series);
        self.series_bytes = bytes
            .map(|(before, series)| series_bytes(before, &series.labels))
            .sum();
        let remap = |places: &mut Vec<u32>| {
            for place in places.iter_mut() {
                *place = moved[*place as usize];
            }
            places.retain(|&place| place != NOWHERE);
        };
        remap(&mut self.index);
        for pass in &mut self.passes {
            remap(&mut pass.now);
            remap(&mut pass.last);
            for (at, &place) in pass.last.iter().enumerate() {
                self.marks[place as usize].at = u32::try_from(at).unwrap_or(NOWHERE);
            }
            // Finds its way again at the next value.
            pass.cursor = 0;
        }
    }
}

fn is_good_label(label: &&str) -> bool {
    muster_proto::series::is_label_name(label)
}

fn retain_by<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| keep.next().copied().unwrap_or(false));
}

/// Most bytes that a series takes in a key frame behind another: its family, for each label how much it
/// shares with the same label of the one before and the rest, and a value. When the one before is left out
/// because it has no value, the sum over all does not grow: what a label shares with the next but one is
/// at least the lesser of what the two steps share.
fn series_bytes(before: Option<&Series>, labels: &[impl AsRef<str>]) -> usize {
    const VARINTS: usize = 4;
    let before = before.map_or(&[][..], |series| &series.labels);
    let of_label = |(at, label): (usize, &_)| {
        let label: &str = AsRef::as_ref(label);
        let other = before.get(at).map_or("", String::as_str);
        let same = label.bytes().zip(other.bytes());
        VARINTS + label.len() - same.take_while(|(a, b)| a == b).count()
    };
    2 + VALUE_BYTES + labels.iter().enumerate().map(of_label).sum::<usize>()
}

/// The text with every control character replaced visibly; borrows when there is none.
fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Cow::Owned(text.chars().map(shown).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use muster_proto::catalog::{CPU_SECONDS, DISK_IO_NOW, LOAD1};
    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<(u32, Vec<String>), i64>;

    fn present(readings: &Readings) -> Model {
        let table = readings.table();
        let value = |place: usize| {
            let series = &table.series[place];
            let key = (series.family, series.labels.clone());
            (key, table.raw[place].as_int())
        };
        let shown: Vec<_> = (0..table.series.len())
            .filter(|&place| table.present[place])
            .map(value)
            .collect();
        let count = shown.len();
        let model: Model = shown.into_iter().collect();
        assert_eq!(model.len(), count, "a series stands twice");
        model
    }

    #[test]
    fn what_is_not_put_again_loses_its_value_and_its_place_stays() {
        let mut readings = Readings::default();
        for devices in [&["sda", "sdb"][..], &["sdb"], &["sda", "sdb"]] {
            readings.begin(0);
            for device in devices {
                readings.int(DISK_IO_NOW, &[device], 1);
            }
            readings.end(true);
            assert_eq!(readings.table().present_count(), devices.len());
        }
        assert_eq!(readings.table().series.len(), 2);
        assert_eq!(readings.table().generation, 0);
        readings.begin(0);
        readings.int(DISK_IO_NOW, &["sda"], 1);
        readings.end(false);
        assert_eq!(readings.table().present_count(), 0);
    }

    #[test]
    fn odd_labels_are_shown_and_long_ones_refused() {
        let mut readings = Readings::default();
        for _ in 0..2 {
            readings.begin(0);
            readings.int(DISK_IO_NOW, &["a\nb\u{1b}c"], 7);
            readings.int(
                DISK_IO_NOW,
                &[&"x".repeat(limits::MAX_LABEL_VALUE_BYTES + 1)],
                1,
            );
            readings.int(DISK_IO_NOW, &["one", "too many"], 1);
            readings.int(FamilyId(u32::MAX), &[], 1);
            readings.end(true);
        }
        let table = readings.table();
        assert_eq!(table.series.len(), 1);
        assert_eq!(table.series[0].labels, ["a\u{fffd}b\u{fffd}c"]);
        assert_eq!(readings.refused(), 6);
    }

    #[test]
    fn beyond_the_quota_values_are_refused_until_others_are_gone() {
        let mut readings = Readings::with_quota(3);
        for first in [0, 2] {
            readings.begin(0);
            for device in first..first + 5 {
                readings.int(DISK_IO_NOW, &[&device.to_string()], device);
            }
            readings.end(true);
        }
        // 2 was there; 0 and 1 still held their places while 3 to 6 came.
        assert_eq!(present(&readings).len(), 1);
        readings.begin(0);
        for device in 2..7 {
            readings.int(DISK_IO_NOW, &[&device.to_string()], device);
        }
        readings.end(true);
        assert_eq!(present(&readings).len(), 3);
        assert_eq!(readings.table().generation, 1);
    }

    #[test]
    fn a_pass_of_objects_has_half_the_places_and_some_are_reserved() {
        let mut readings = Readings::with_quota(100);
        readings.favour(3);
        for pass in 0..3 {
            readings.begin(pass);
            for number in 0..30 {
                let device = format!("{pass}-{number}");
                if readings.admits_object(2) {
                    readings.int(DISK_IO_NOW, &[&device], 1);
                    readings.int(CPU_SECONDS, &[&device, "user"], 1);
                }
            }
            readings.end(true);
        }
        let left: Vec<u64> = (0..4).map(|pass| readings.left_out(pass)).collect();
        assert_eq!(left, [10, 20, 60, 0], "half, what is left, nothing");
        assert_eq!(readings.refused(), 90);
        readings.begin(3);
        for number in 0..10 {
            readings.int(LOAD1, &[], number);
            readings.int(DISK_IO_NOW, &[&number.to_string()], number);
        }
        readings.end(true);
        assert_eq!(readings.left_out(3), 1, "nine devices and the load");
        readings.begin(1);
        readings.end(true);
        assert_eq!(readings.left_out(1), 0);
    }

    #[test]
    fn a_key_frame_never_exceeds_what_a_payload_may_have() {
        let mut readings = Readings::with_quota(limits::MAX_SERIES);
        readings.begin(0);
        for number in 0..limits::MAX_SERIES {
            // Nothing is shared with the one before.
            let label = format!("{number:05}{}", "x".repeat(200));
            readings.int(DISK_IO_NOW, &[&label], i64::MIN);
        }
        readings.end(true);
        assert!(readings.refused() > 0);
        let events = vec![
            v1::Event {
                kind: v1::EventKind::UnitStateChanged.into(),
                subject: "s".repeat(limits::MAX_EVENT_SUBJECT_BYTES),
                at_ms: i64::MAX,
                fields: (0..3)
                    .map(|_| v1::EventField {
                        key: v1::EventFieldKey::From.into(),
                        value: Some(v1::event_field::Value::Word("w".repeat(64))),
                    })
                    .collect(),
            };
            limits::MAX_EVENTS_PER_FRAME
        ];
        let mut payload = Vec::new();
        muster_proto::codec::Encoder::new().encode(readings.table(), &events, true, &mut payload);
        assert!(
            payload.len() <= limits::MAX_PAYLOAD_BYTES,
            "{}",
            payload.len()
        );
        assert!(
            payload.len() > limits::MAX_PAYLOAD_BYTES / 2,
            "{}",
            payload.len()
        );
    }

    #[test]
    fn a_series_has_one_owner() {
        let mut readings = Readings::default();
        readings.begin(0);
        readings.int(LOAD1, &[], 1);
        readings.end(true);
        readings.begin(1);
        readings.int(LOAD1, &[], 2);
        readings.end(true);
        assert_eq!(readings.table().raw[0].as_int(), 1);
        assert_eq!(readings.refused(), 1);
        readings.begin(0);
        readings.end(true);
        readings.begin(1);
        readings.int(LOAD1, &[], 3);
        readings.end(true);
        assert_eq!(readings.table().raw[0].as_int(), 3);
        assert!(readings.table().present[0]);
    }

    #[test]
    fn families_of_the_kernel_are_made_once() {
        let mut readings = Readings::default();
        let made = readings.dynamic_family("node_memory_New_bytes", Kind::Gauge, Scale::Kibi, &[]);
        let again = readings.dynamic_family("node_memory_New_bytes", Kind::Gauge, Scale::Kibi, &[]);
        assert!(made.is_some());
        assert_eq!(made, again);
        let other = readings.dynamic_family("node_memory_New_bytes", Kind::Gauge, Scale::One, &[]);
        assert_eq!(other, None);
        assert_eq!(
            readings.dynamic_family("not a name", Kind::Gauge, Scale::One, &[]),
            None
        );
        for number in 0..2 * limits::MAX_FAMILIES {
            readings.dynamic_family(&format!("m{number}"), Kind::Gauge, Scale::One, &[]);
        }
        assert_eq!(readings.table().families.len(), limits::MAX_FAMILIES);
    }

    #[test]
    fn events_wait_in_order_and_are_bounded() {
        let mut readings = Readings::default();
        for number in 0..2 * MAX_EVENTS {
            readings.event(
                v1::EventKind::UnitStateChanged,
                &format!("{number}\n{}", "ü".repeat(200)),
                Vec::new(),
            );
        }
        let first = readings.take_events();
        assert_eq!(first.len(), limits::MAX_EVENTS_PER_FRAME);
        assert!(first[0].subject.starts_with("0\u{fffd}ü"));
        assert!(first[0].subject.len() <= limits::MAX_EVENT_SUBJECT_BYTES);
        let rest = std::iter::from_fn(|| Some(readings.take_events()).filter(|e| !e.is_empty()));
        let left_out = first.last().map(muster_proto::event::words);
        assert_eq!(left_out.as_deref(), Some("1024 events were left out"));
        assert_eq!(
            rest.map(|events| events.len()).sum::<usize>(),
            MAX_EVENTS - (first.len() - 1)
        );
    }

    #[test]
    fn details_leave_room_and_give_way() {
        let mut readings = Readings::with_quota(1_000);
        let details = |readings: &mut Readings| {
            readings.begin(1);
            let mut shown = 0;
            for number in 0..200 {
                if readings.admits_detail(4) {
                    for mode in ["a", "b", "c", "d"] {
                        readings.int(CPU_SECONDS, &[&number.to_string(), mode], 1);
                    }
                    shown += 1;
                }
            }
            readings.end(true);
            shown
        };
        assert_eq!(
            details(&mut readings),
            125,
            "half of all places, as any kind of object"
        );
        assert_eq!(details(&mut readings), 125, "and the same again");
        readings.begin(2);
        for device in 0..500 {
            readings.int(DISK_IO_NOW, &[&device.to_string()], 1);
        }
        readings.end(true);
        let left = readings.left_out(2);
        assert!(left < 200, "{left}");
        let shown = details(&mut readings);
        assert!(shown < 125, "{shown}");
        assert!(readings.table().present_count() <= 1_000);
    }

    /// One value: CPU number and mode number.
    fn values() -> impl Strategy<Value = Vec<(u8, u8, i64)>> {
        prop::collection::vec((0..40u8, 0..3u8, any::<i64>()), 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_table_is_what_a_plain_map_would_be(
            rounds in prop::collection::vec((0..3usize, values(), prop::bool::weighted(0.8)), 0..40)
        ) {
            let mut readings = Readings::with_quota(400);
            let mut models = vec![Model::new(); 3];
            for (pass, values, ok) in rounds {
                let mut model = Model::new();
                readings.begin(pass);
                for (cpu, mode, value) in values {
                    // Each pass has labels of its own: owners never meet here.
                    let labels = [format!("{pass}-{cpu}"), format!("m{mode}")];
                    readings.int(CPU_SECONDS, &[&labels[0], &labels[1]], value);
                    model.insert((CPU_SECONDS.0, labels.to_vec()), value);
                }
                readings.end(ok);
                models[pass] = if ok { model } else { Model::new() };
                let all: Model = models.iter().flatten().map(|(k, v)| (k.clone(), *v)).collect();
                prop_assert_eq!(present(&readings), all);
                prop_assert_eq!(readings.refused(), 0);
            }
        }

        #[test]
        fn the_table_stays_in_proportion(rounds in prop::collection::vec(0..100_000u32, 1..200)) {
            let mut readings = Readings::default();
            for first in rounds {
                readings.begin(0);
                for device in first..first + 20 {
                    readings.int(DISK_IO_NOW, &[&device.to_string()], i64::from(device));
                }
                readings.end(true);
                prop_assert_eq!(readings.table().present_count(), 20);
                prop_assert!(readings.table().series.len() <= 2 * 40 + SPARE_PLACES);
            }
        }
    }
}
