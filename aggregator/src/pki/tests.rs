//! The authority's promises, on a temporary folder.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use muster_proto::{id::HostId, spiffe::peer_id};
use x509_parser::prelude::FromDer as _;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn request() -> Request {
    let key = KeyPair::generate().expect("a key");
    let made = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    Request::check(made.der()).expect("acceptable")
}

fn made() -> (tempfile::TempDir, Authority) {
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let authority = Authority::init(folder.path(), &names, NOW).expect("a new authority");
    (folder, authority)
}

#[test]
fn what_init_made_opens_again_and_is_never_overwritten() {
    let (folder, authority) = made();
    let again = Authority::open(folder.path()).expect("it opens");
    assert_eq!(again.trust_domain(), authority.trust_domain());
    assert_eq!(again.pin(), authority.pin());
    let twice = Authority::init(folder.path(), &[], NOW);
    assert!(matches!(twice, Err(PkiError::Exists(_))));
    let none = tempfile::tempdir().expect("a folder");
    assert!(matches!(
        Authority::open(none.path()),
        Err(PkiError::Missing(_))
    ));
}

#[test]
fn works_without_the_roots_key_but_not_with_a_readable_one() {
    let (folder, _) = made();
    for key in ["root.key", "agent.key"] {
        let path = folder.path().join("ca").join(key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = Authority::open(folder.path()).err().expect("refused");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert!(error.to_string().contains(key), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    }
    fs::remove_file(folder.path().join("ca/root.key")).expect("taken offline");
    assert!(Authority::open(folder.path()).is_ok());
}

#[test]
fn a_key_of_another_issuer_is_noticed() {
    let (folder, _) = made();
    let ca = folder.path().join("ca");
    fs::copy(ca.join("operator.key"), ca.join("agent.key")).expect("copied");
    assert!(matches!(
        Authority::open(folder.path()),
        Err(PkiError::Content { .. })
    ));
}

#[test]
fn a_hosts_certificate_says_where_it_comes_from() {
    let (_folder, authority) = made();
    let (_other_folder, other) = made();
    let host = HostId::from_bytes([7; 16]);
    let earlier = NOW.minus(Duration::from_secs(86_400));
    for (joined, told) in [
        (earlier, earlier),
        (Timestamp::from_millis(0), Timestamp::from_millis(0)),
    ] {
        let request = request();
        let member = Member { host, joined };
        let issued = authority
            .issue_agent(&request, member, NOW)
            .expect("issued");
        let origin = Origin::of(&issued.chain[0]).expect("it says so");
        assert_eq!((origin.issued, origin.joined), (NOW, told));
        assert_eq!(origin.fingerprint, *request.fingerprint());
        assert_eq!(authority.generation_of(&origin), Some(1));
        assert_eq!(other.generation_of(&origin), None, "another's");
    }
}

#[test]
fn leaves_say_who_for_how_long_and_for_what() {
    let (_folder, authority) = made();
    let host = HostId::from_bytes([7; 16]);
    let agent = authority
        .issue_agent(&request(), Member { host, joined: NOW }, NOW)
        .expect("issued");
    let operator = authority
        .issue_operator(&request(), "jo", NOW)
        .expect("issued");
    let (server, _) = authority
        .issue_server(authority.names(), NOW)
        .expect("issued");

    let who = peer_id(&agent.chain[0]).expect("named");
    assert_eq!(who.id.host(), Some(host));
    assert_eq!(who.serial, agent.serial);
    assert_eq!(who.serial.len(), 32);
    let who = peer_id(&operator.chain[0]).expect("named");
    assert_eq!(who.id.operator(), Some("jo"));
    let who = peer_id(&server.chain[0]).expect("named");
    assert!(matches!(who.id, SpiffeId::Aggregator { .. }));

    for (chain, days, hours_back, client) in [
        (&agent.chain, 30, 1, true),
        (&operator.chain, 1, 1, true),
        (&server.chain, 90, 24, false),
    ] {
        let (_, leaf) =
            x509_parser::certificate::X509Certificate::from_der(&chain[0]).expect("a certificate");
        let begin = leaf.validity().not_before.timestamp();
        let end = leaf.validity().not_after.timestamp();
        let now = NOW.as_millis() / 1000;
        assert_eq!((now - begin, end - now), (hours_back * 3600, days * 86_400));
        let usage = leaf.extended_key_usage().expect("readable").expect("there");
        assert_eq!(
            (usage.value.client_auth, usage.value.server_auth),
            (client, !client)
        );
        assert!(!leaf.is_ca());
    }
    assert!(matches!(
        authority.issue_operator(&request(), "Jo/..", NOW),
        Err(PkiError::OperatorName(_))
    ));
    assert!(matches!(
        authority.issue_server(&["not a name".to_owned()], NOW),
        Err(PkiError::Name(_))
    ));
}

#[test]
fn the_server_certificate_has_usable_names_without_any_given() {
    let given = ["muster.example".to_owned(), "localhost".to_owned()];
    let more = ["Muster.example".to_owned(), "192.0.2.7".to_owned()];
    assert_eq!(
        names_with(&given, &more, "agg-01"),
        [
            "muster.example",
            "localhost",
            "192.0.2.7",
            "agg-01",
            "127.0.0.1",
            "::1"
        ]
    );
    assert_eq!(names_with(&[], &[], "(none)"), LOOPBACK_NAMES);

    let (_folder, authority) = made();
    let (server, _) = authority
        .issue_server(&names_with(&given, &more, "agg-01"), NOW)
        .expect("issued");
    let leaf =
        rustls::server::ParsedCertificate::try_from(&server.chain[0]).expect("a certificate");
    for (name, carried) in [
        ("muster.example", true),
        ("agg-01", true),
        ("192.0.2.7", true),
        ("::1", true),
        ("other.example", false),
    ] {
        let asked = rustls_pki_types::ServerName::try_from(name).expect("a name");
        let found = rustls::client::verify_server_name(&leaf, &asked).is_ok();
        assert_eq!(found, carried, "{name}");
    }
}

#[test]
fn the_server_certificate_is_renewed_in_its_last_third() {
    let (_folder, authority) = made();
    let doors = Doors::new(Arc::new(authority), &[], NOW).expect("configurations");
    let first = doors.agents.load_full();
    let day = |days: u32| NOW.plus(DAY * days);
    assert!(!doors.renew_if_due(day(59)).expect("looked at"));
    assert!(doors.renew_if_due(day(61)).expect("renewed"));
    assert!(!Arc::ptr_eq(&first, &doors.agents.load_full()));
    assert_eq!(doors.not_after(), day(61).plus(SERVER_LIFE));
}
