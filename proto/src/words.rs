//! Words for the reasons that travel on the wire as numbers: in logs and messages, where the names of the wire have
//! no place.
//!
//! Labels of metrics have their own short words beside the metrics, because dashboards depend on them.

use crate::v1::{DenyReason, FinReason, RejectReason};

/// Why a frame was refused.
#[must_use]
pub fn rejected(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::Malformed => "malformed",
        RejectReason::Checksum => "wrong checksum",
        RejectReason::Future => "from the future",
        RejectReason::SeqConflict => "another frame had this number",
        RejectReason::Quota => "too many series",
        RejectReason::NoKeyFrame => "no key frame",
        RejectReason::Unspecified => "no reason given",
    }
}

/// Why an agent took leave.
#[must_use]
pub fn goodbye(reason: FinReason) -> &'static str {
    match reason {
        FinReason::Stopped => "stopped",
        FinReason::Shutdown => "host shuts down",
        FinReason::Reboot => "host reboots",
        FinReason::Unspecified => "no reason given",
    }
}

/// Why an agent was not let in or was sent away, as its aggregator says it.
#[must_use]
pub fn denied(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::Protocol => "it and its aggregator speak different protocol versions",
        DenyReason::Removed => "an operator removed it from the fleet",
        DenyReason::AlreadyConnected => "another machine with the same identity is connected",
        DenyReason::StaleCopy => "its identity looks like an old copy of another host's",
        DenyReason::Expired => "its certificate has expired",
        DenyReason::ProtocolViolation => "it sent something the protocol does not allow",
        DenyReason::Unspecified => "no reason given",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_for_people_and_tell_reasons_apart() {
        let mut all: Vec<&str> = Vec::new();
        for number in 1..=7 {
            all.extend(RejectReason::try_from(number).ok().map(rejected));
            all.extend(FinReason::try_from(number).ok().map(goodbye));
            all.extend(DenyReason::try_from(number).ok().map(denied));
        }
        assert!(all.len() >= 15, "{all:?}");
        for word in &all {
            assert!(
                !word.contains('_') && word.to_lowercase() == **word,
                "{word}"
            );
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
