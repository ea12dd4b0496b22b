//! A captured aggregator can't use an agent: nothing that reaches an agent can execute, write or read a
//! path, change what is checked, or name a place to report to.
//!
//! The test walks every message an agent can receive, to the last nested field, and holds each field
//! against the list of those that were judged harmless. A new field, a new message or a new service fails
//! it until someone has thought about it and added the line. Words that stand for power over a host are
//! refused wherever they appear in the contract, whichever way the message goes.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::{
    DescriptorProto, FileDescriptorSet, MethodDescriptorProto, field_descriptor_proto::Type,
};

/// Every field of every message that an agent receives, and why it is harmless.
const RECEIVED_BY_AGENTS: &[(&str, &str)] = &[
    ("AggregatorMessage.welcome", "see its fields"),
    ("AggregatorMessage.ack", "see its fields"),
    ("AggregatorMessage.throttle", "see its fields"),
    ("AggregatorMessage.drain", "see its fields"),
    ("AggregatorMessage.redirect", "see its fields"),
    ("AggregatorMessage.deny", "see its fields"),
    ("AggregatorMessage.recall", "see its fields"),
    (
        "Welcome.server_wall_ms",
        "corrects future ticks, bounded by the agent",
    ),
    ("Welcome.ratchet", "opaque, given back as it is, bounded"),
    ("Welcome.credit_bytes", "how much may be under way"),
    ("Welcome.have", "what is stored already"),
    ("Welcome.epoch", "given back as it is"),
    (
        "Welcome.min_interval_ms",
        "bounded by the agent's own limits",
    ),
    (
        "Welcome.max_interval_ms",
        "bounded by the agent's own limits",
    ),
    ("Welcome.heartbeat_ms", "bounded by the agent's own limits"),
    (
        "Welcome.bundle",
        "roots; kept only if they chain to what is trusted",
    ),
    (
        "Welcome.servers",
        "where else to connect; what answers there must show a certificate of the fleet's authority",
    ),
    ("Welcome.fleet_hint", "spreads reconnections, bounded"),
    ("Have.incarnation", "names frames"),
    ("Have.durable", "names frames"),
    ("Have.decoded_to", "names a frame"),
    ("TrustBundle.version", "number"),
    ("TrustBundle.roots", "certificates"),
    ("ServerList.generation", "number"),
    ("ServerList.servers", "at most 16, after those configured"),
    ("Server.id", "name within the list"),
    (
        "Server.address",
        "host:port, tried with TLS when those before it fail",
    ),
    ("Server.weight", "number, not used"),
    ("Ack.incarnation", "names frames"),
    ("Ack.received", "names a frame"),
    ("Ack.durable", "names frames"),
    ("Ack.rejected", "names frames"),
    ("Ack.credit_bytes", "how much may be under way"),
    ("Ack.epoch", "given back as it is"),
    ("Range.first", "number"),
    ("Range.last", "number"),
    ("Rejected.seq", "names a frame"),
    ("Rejected.reason", "closed set"),
    ("Rejected.samples", "number"),
    ("Throttle.retry_after_ms", "bounded by the agent"),
    ("Drain.spread_ms", "bounded by the agent"),
    (
        "Redirect.server_id",
        "name within the list; obeyed once in ten minutes, for an hour",
    ),
    ("Deny.reason", "closed set"),
    ("Deny.other_address", "shown to people, cut short"),
    ("Deny.other_boot_id", "shown to people as digits"),
    (
        "Recall.from_ms",
        "a moment, cut by the agent to the ten minutes it holds; asks for more of what is sent anyway, seldom",
    ),
    ("Recall.to_ms", "as from_ms"),
    (
        "EnrolResponse.certificate_chain",
        "the agent's own certificate",
    ),
    ("EnrolResponse.bundle", "must hold the pinned root"),
    ("EnrolResponse.host_id", "must be that of the certificate"),
    (
        "EnrolResponse.uplink_address",
        "at enrolment, from the pinned authority only",
    ),
    (
        "EnrolResponse.server_wall_ms",
        "shown and remembered as a lower bound",
    ),
    (
        "RenewResponse.certificate_chain",
        "kept only if it is for this host and for the key just made",
    ),
    (
        "EnrolResponse.wait_ms",
        "when to ask again, bounded by the agent",
    ),
    (
        "EnrolResponse.waiting_number",
        "shown to the person who enrols",
    ),
    (
        "RenewResponse.bundle",
        "from the authenticated aggregator; replaces an older one",
    ),
    (
        "RenewResponse.server_wall_ms",
        "remembered as a lower bound",
    ),
];

/// Services and their methods; a new verb has to be thought about.
const METHODS: &[&str] = &[
    "Admin.IssueOperator",
    "Enrolment.Enrol",
    "Events.FollowEvents",
    "Events.GetRecording",
    "Events.ListEvents",
    "Events.ListRecordings",
    "History.ForgetHistory",
    "History.GetHistoryStatus",
    "History.QueryHistory",
    "History.ReadHistory",
    "Identity.CreateToken",
    "Identity.DecideWaiting",
    "Identity.GetAuthority",
    "Identity.ListTokens",
    "Identity.ListWaiting",
    "Identity.ReleaseHost",
    "Identity.RenewOperator",
    "Identity.RevokeToken",
    "Identity.RotateAuthority",
    "Identity.VerifyAudit",
    "Operator.BanHost",
    "Operator.EvictHost",
    "Operator.GetHost",
    "Operator.GetIncident",
    "Operator.GetStatus",
    "Operator.GetSummary",
    "Operator.ListAnomalies",
    "Operator.ListAudit",
    "Operator.ListHosts",
    "Operator.ListIncidents",
    "Operator.ListServices",
    "Operator.RevokeOperator",
    "Paging.AcknowledgeIncident",
    "Paging.AddQuiet",
    "Paging.EndQuiet",
    "Paging.ListChannels",
    "Paging.ListNoise",
    "Paging.ListQuiets",
    "Paging.TestChannel",
    "Paging.UnacknowledgeIncident",
    "Past.HostAt",
    "Past.HostsAt",
    "Past.IncidentsAt",
    "Past.ServicesAt",
    "Past.SummaryAt",
    // Reads the record and judges it in memory: changes nothing, tells nobody.
    "Replay.ReplayPages",
    "Replay.ReplaySamples",
    "Uplink.Renew",
    "Uplink.Session",
];

/// Parts of names that stand for power over a host.
const POWER: &[&str] = &[
    "exec",
    "execute",
    "command",
    "cmd",
    "run",
    "script",
    "shell",
    "argv",
    "args",
    "env",
    "path",
    "file",
    "dir",
    "directory",
    "folder",
    "write",
    "delete",
    "remove",
    "install",
    "upgrade",
    "update",
    "restart",
    "reboot",
    "kill",
    "signal",
    "eval",
    "plugin",
    "config",
    "url",
    "uri",
    "hook",
];

fn descriptors() -> FileDescriptorSet {
    let files = [
        "muster/v1/uplink.proto",
        "muster/v1/enrolment.proto",
        "muster/v1/operator.proto",
        "muster/v1/history.proto",
        "muster/v1/events.proto",
        "muster/v1/identity.proto",
        "muster/v1/paging.proto",
        "muster/v1/replay.proto",
        "muster/v1/past.proto",
    ];
    protox::compile(files, [env!("CARGO_MANIFEST_DIR")]).expect("the contract compiles")
}

fn messages(set: &FileDescriptorSet) -> BTreeMap<String, &DescriptorProto> {
    let all = set.file.iter().flat_map(|file| &file.message_type);
    all.map(|message| (format!(".muster.v1.{}", message.name()), message))
        .collect()
}

fn methods(set: &FileDescriptorSet) -> Vec<(String, &MethodDescriptorProto)> {
    let services = set.file.iter().flat_map(|file| &file.service);
    let mut all: Vec<_> = services
        .flat_map(|service| {
            service
                .method
                .iter()
                .map(|method| (format!("{}.{}", service.name(), method.name()), method))
        })
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

/// Every `Message.field` below `root`.
fn fields_below(root: &str, messages: &BTreeMap<String, &DescriptorProto>) -> BTreeSet<String> {
    let (mut found, mut todo, mut done) = (BTreeSet::new(), vec![root.to_owned()], BTreeSet::new());
    while let Some(name) = todo.pop() {
        if !done.insert(name.clone()) {
            continue;
        }
        let message = messages[&name];
        assert!(
            message.nested_type.is_empty(),
            "{name} nests; walk that too"
        );
        for field in &message.field {
            found.insert(format!("{}.{}", message.name(), field.name()));
            if field.r#type() == Type::Message {
                todo.push(field.type_name().to_owned());
            }
        }
    }
    found
}

#[test]
fn every_field_that_reaches_an_agent_was_judged() {
    let set = descriptors();
    let messages = messages(&set);
    let mut reaching = BTreeSet::new();
    for (name, method) in methods(&set) {
        if name.starts_with("Uplink.") || name.starts_with("Enrolment.") {
            reaching.extend(fields_below(method.output_type(), &messages));
        }
    }
    let judged: BTreeSet<String> = RECEIVED_BY_AGENTS
        .iter()
        .map(|(field, _)| (*field).to_owned())
        .collect();
    let new: Vec<_> = reaching.difference(&judged).collect();
    assert!(
        new.is_empty(),
        "fields that reach an agent and were not judged: {new:?}"
    );
    let stale: Vec<_> = judged.difference(&reaching).collect();
    assert!(stale.is_empty(), "judged fields that are gone: {stale:?}");
}

#[test]
fn every_verb_was_judged() {
    let set = descriptors();
    let found: Vec<String> = methods(&set).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, METHODS);
}

#[test]
fn agents_are_never_called() {
    // A server-side call to an agent would need a service that an agent serves; all of ours are served by
    // the aggregator, and the agent's crate is built without the serving side.
    // Its tests play the aggregator.
    let manifest = include_str!("../../agent/Cargo.toml");
    let (program, _tests) = manifest
        .split_once("[dev-dependencies]")
        .expect("there are tests");
    assert!(!program.contains("\"server\"") && !program.contains("\"router\""));
}

#[test]
fn no_name_stands_for_power_over_a_host() {
    let set = descriptors();
    let mut names: Vec<String> = methods(&set).into_iter().map(|(name, _)| name).collect();
    for message in messages(&set).values() {
        // Facts and answers for people may name what they show; what is checked here is what goes to agents
        // and what agents are asked by.
        if message.name().ends_with("Request") || message.name().ends_with("Response") {
            names.extend(message.field.iter().map(|field| field.name().to_owned()));
        }
    }
    names.extend(
        RECEIVED_BY_AGENTS
            .iter()
            .map(|(field, _)| (*field).to_owned()),
    );
    for name in names {
        for word in words(&name) {
            assert!(!POWER.contains(&word.as_str()), "{name} contains {word:?}");
        }
    }
}

/// `Operator.GetHost` → operator, get, host; `host_id` → host, id.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter == '.' || letter.is_uppercase() {
            words.push(String::new());
        }
        if letter.is_alphanumeric() {
            let last = words.len() - 1;
            words[last].extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn words_are_found() {
    assert_eq!(words("Operator.RunCommand"), ["operator", "run", "command"]);
    assert_eq!(words("exec_path"), ["exec", "path"]);
}
