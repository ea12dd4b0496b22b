use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::series::{Family, Kind, Raw, Scale, Series, Table};

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
