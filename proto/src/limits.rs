//! Bounds on everything a peer can make grow, each with its reason.

use std::time::Duration;

/// The protocol version spoken by this build; the version before it is accepted too, once there is one.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest payload of a frame. A key frame of 10,000 series (the hard quota) with long labels stays
/// below; anything larger is an error or an attack.
pub const MAX_PAYLOAD_BYTES: usize = 512 * 1024;

/// Largest message accepted by the aggregator's uplink: a payload and its envelope.
pub const MAX_UPLINK_MESSAGE_BYTES: usize = MAX_PAYLOAD_BYTES + 4 * 1024;

/// Largest message an agent accepts from an aggregator: an Ack of 32 ranges is under 1 KiB, a trust
/// bundle or server list a few KiB.
pub const MAX_DOWNLINK_MESSAGE_BYTES: usize = 64 * 1024;

/// Largest answer to an operator: 100,000 hosts at about 300 bytes.
pub const MAX_OPERATOR_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Largest message at the enrolment door: a request of 8 KiB, facts and labels.
pub const MAX_ENROLMENT_MESSAGE_BYTES: usize = 32 * 1024;

/// Largest certificate request. RSA 4096 with a long subject is 2 KiB.
pub const MAX_CSR_BYTES: usize = 8 * 1024;

/// Series per host that are never refused.
pub const DEFAULT_SERIES_QUOTA: usize = 4_000;

/// Series per host that no configuration can exceed.
pub const MAX_SERIES: usize = 10_000;

/// Families per host: node_exporter with everything enabled has about 800.
pub const MAX_FAMILIES: usize = 2_000;

/// Longest metric name; the longest of node_exporter has 58 characters.
pub const MAX_NAME_BYTES: usize = 128;

/// Most labels of one family; VictoriaMetrics drops more than 30 by default.
pub const MAX_LABELS: usize = 16;

/// Longest label value. Mount points are the longest in practice; PATH_MAX itself would be 4096.
pub const MAX_LABEL_VALUE_BYTES: usize = 1024;

/// Most bytes of label values in one host's dictionary: 10,000 series at 200 bytes, twice over.
pub const MAX_DICTIONARY_LABEL_BYTES: usize = 4 * 1024 * 1024;

/// Events in one frame; an agent with more sends them with the next.
pub const MAX_EVENTS_PER_FRAME: usize = 256;

/// Longest subject of an event.
pub const MAX_EVENT_SUBJECT_BYTES: usize = 256;

/// Most fields of an event; no kind has more than five.
pub const MAX_EVENT_FIELDS: usize = 8;

/// Longest word in a field of an event.
pub const MAX_EVENT_WORD_BYTES: usize = 64;

/// Longest recording: what a flight recorder holds at most (10 minutes).
pub const MAX_RECORDING: Duration = Duration::from_secs(600);

/// Rounds in a part of a recording: one a second, with room for those that come between.
pub const MAX_RECORDED_ROUNDS: usize = 1_300;

/// Largest part of a recording. It travels beside a sample, which takes at most 352 KiB in a key frame, and
/// events.
pub const MAX_RECORDING_PART_BYTES: usize = 96 * 1024;

/// Most parts of one recording: 2 MiB of rounds and what stands around them.
pub const MAX_RECORDING_PARTS: u32 = 64;

/// Most ranges in one acknowledgement.
pub const MAX_ACK_RANGES: usize = 32;

/// A frame whose tick is further ahead of the aggregator's clock is refused: it would make "latest"
/// stick and poison history.
pub const MAX_FUTURE: Duration = Duration::from_secs(60);

/// Shortest and longest interval between ticks.
pub const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// See [`MIN_INTERVAL`].
pub const MAX_INTERVAL: Duration = Duration::from_secs(600);

/// Most labels a host may carry for selection, and the longest key and value.
pub const MAX_HOST_LABELS: usize = 32;
/// Longest key of a host's label.
pub const MAX_HOST_LABEL_KEY_BYTES: usize = 64;
/// Longest value of a host's label.
pub const MAX_HOST_LABEL_VALUE_BYTES: usize = 256;

/// Whether a host may carry this label, set by its agent or by a join token.
///
/// # Errors
/// What a key or a value has to be.
pub fn check_host_label(key: &str, value: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if key.is_empty() || key.len() > MAX_HOST_LABEL_KEY_BYTES || !key.chars().all(legal) {
        return Err(format!(
            "a label's key is 1 to {MAX_HOST_LABEL_KEY_BYTES} of a-z A-Z 0-9 . _ - /"
        ));
    }
    if value.len() > MAX_HOST_LABEL_VALUE_BYTES || value.chars().any(char::is_control) {
        return Err(format!(
            "a label's value is at most {MAX_HOST_LABEL_VALUE_BYTES} bytes without control characters"
        ));
    }
    Ok(())
}
