//! The real `muster` against a real operator door over TLS, and against everything that is not one: what it
//! prints, what it says on stderr, and its exit code.

use std::{
    fs,
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_aggregator::{
    admin::AdminSocket,
    cli::context::{self, Material},
    control::{Control, OperatorRole},
    detect::{DetectConfig, Transition},
    fleet::{
        Counters as FleetCounters, Enrolled, Fleet, HostState, ReadContext,
        names::Names,
        shard::{Message, TransitionSink},
        start::History,
    },
    history::{EmbeddedStore, HistoryConfig, SampleStore as _},
    listen::{self, Counters, Limits},
    pki::{Authority, Doors, Member, Request},
    query::{About, HttpDoor, IdentityParts, IdentityService, OperatorService, ReplayService},
};
use muster_proto::{
    codec::Intern as _,
    id::HostId,
    log::DiskStorage,
    series::{Family, Kind, Raw, Scale},
    time::{Clock, SystemClock, Timestamp},
    token::Token,
    v1,
};
use tokio::{net::TcpListener, process::Command, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// An aggregator's operator side with two hosts, and a home folder for the operator.
struct Lab {
    folder: tempfile::TempDir,
    authority: Arc<Authority>,
    control: Control,
    stop: CancellationToken,
    door: SocketAddr,
}

impl Lab {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let state = folder.path().join("state");
        fs::create_dir(&state).expect("a folder");
        let now = SystemClock.now();
        let authority = Arc::new(Authority::init(&state, &[], now).expect("an authority"));
        let doors = Arc::new(Doors::new(Arc::clone(&authority), &[], now).expect("doors"));
        let control = Control::open(&state).expect("a store");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let stop = CancellationToken::new();

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let door = listener.local_addr().expect("an address");
        let incoming = listen::tls(
            listener,
            Arc::clone(&doors.operators),
            Limits::default(),
            Arc::new(Counters::default()),
            stop.clone(),
        );
        let about = About {
            fleet_name: "lab".to_owned(),
            started: now,
            certificate_not_after: {
                let doors = Arc::clone(&doors);
                Box::new(move || Some(doors.not_after()))
            },
            problems: Box::new(Vec::new),
            http: HttpDoor {
                address: "0.0.0.0:17446".to_owned(),
                tls: true,
                token_needed: true,
            },
            budget_per_host_week: 1.0,
        };
        let service = OperatorService::new(fleet(), control.clone(), about, Arc::clone(&clock));
        let identity = IdentityService::new(IdentityParts {
            control: control.clone(),
            authority: Arc::clone(&authority),
            doors: Arc::clone(&doors),
            fleet: fleet(),
            sink: Arc::new(Deaf),
            enrolment_address: ":7444".to_owned(),
            clock: Arc::clone(&clock),
        });
        let replay = ReplayService::new(
            fleet(),
            control.clone(),
            Ok(history(&folder.path().join("history"), now)),
            DetectConfig::default(),
            Arc::clone(&clock),
        );
        let server = Server::builder()
            .add_service(replay.into_server())
            .add_service(service.into_server())
            .add_service(identity.into_server());
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));

        let admin = AdminSocket {
            control: control.clone(),
            authority: Arc::clone(&authority),
            operator_address: door.to_string(),
            fleet_name: "lab".to_owned(),
            clock,
        };
        let incoming = listen::unix::listen(&folder.path().join("admin.sock"), stop.clone());
        tokio::spawn(admin.serve(incoming.expect("a socket"), stop.clone()));
        Self {
            folder,
            authority,
            control,
            stop,
            door,
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("home/.config/muster/config.toml")
    }

    async fn muster(&self, arguments: &[&str]) -> Output {
        muster(&self.config(), arguments).await
    }

    async fn login(&self) {
        let socket = self.folder.path().join("admin.sock");
        let socket = socket.to_str().expect("a path in UTF-8");
        let login = [
            "login",
            "--admin-socket",
            socket,
            "--name",
            "jo",
            "--role",
            "viewer",
        ];
        let done = self.muster(&login).await;
        assert_eq!(code(&done), 0, "{}", errors(&done));
    }
}

/// Listens to nobody.
struct Deaf;

impl TransitionSink for Deaf {
    fn report(&self, _: HostId, _: &str, _: Vec<Transition>) {}
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn fleet() -> Fleet {
    let (sender, mut inbox) = mpsc::channel(8);
    tokio::spawn(async move {
        let now = SystemClock.now();
        let host = |number: u8, name: &str| {
            let id = HostId::from_bytes([number; 16]);
            let who = Enrolled {
                id,
                name: name.to_owned(),
                labels: [("env".to_owned(), "lab".to_owned())].into(),
                facts: v1::HostFacts::default(),
                certificate_not_after: None,
            };
            (id, HostState::new(who, now))
        };
        let hosts = [host(1, "web-01"), host(2, "db-01")].into();
        while let Some(message) = inbox.recv().await {
            if let Message::Read(reader) = message {
                reader(&hosts, &ReadContext { now });
            }
        }
    });
    Fleet::new(vec![sender], Arc::new(FleetCounters::default()))
}

/// Two hours of web-01 up to now: for 15 min its table of connections is full to 85 %.
fn history(folder: &Path, now: Timestamp) -> History {
    fs::create_dir(folder).expect("a folder");
    let storage = DiskStorage::open(folder).expect("it is ours");
    let config = HistoryConfig::default();
    let (store, _) = EmbeddedStore::open(storage, config, now.as_millis()).expect("it opens");
    let mut names = Names::default();
    let keys = ["entries", "entries_limit"].map(|what| {
        let family = names.family(Family {
            name: format!("node_nf_conntrack_{what}"),
            kind: Kind::Gauge,
            scale: Scale::One,
            labels: Vec::new(),
        });
        names.series(&family, &[])
    });
    for tick in 0..720_u32 {
        let at = now.minus(Duration::from_secs(10) * (720 - tick));
        let entries = if (300..390).contains(&tick) { 85 } else { 20 };
        let mut values = keys.iter().zip([Raw::int(entries), Raw::int(100)]);
        let host = HostId::from_bytes([1; 16]);
        store
            .append(u64::from(tick) + 1, host, at.as_millis(), &mut values)
            .expect("it has room");
    }
    History {
        store: Arc::new(store),
        health: Arc::default(),
    }
}

/// The program with nothing of this machine's environment.
async fn muster(config: &Path, arguments: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(arguments)
        .stdin(Stdio::null())
        .env_clear()
        .env("MUSTER_CONFIG", config)
        .env("TZ", "UTC")
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .expect("it ends by itself")
        .expect("it runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn from_login_to_answers() {
    let lab = Lab::new().await;
    let before = lab.muster(&["hosts"]).await;
    assert_eq!(code(&before), 4, "{}", errors(&before));
    assert!(
        errors(&before).contains("error: you are not signed in"),
        "{}",
        errors(&before)
    );
    assert!(errors(&before).contains("try: muster login --admin-socket PATH"));
    lab.login().await;

    let names = lab.muster(&["hosts", "-o", "name"]).await;
    assert_eq!(
        (code(&names), printed(&names)),
        (0, "db-01\nweb-01\n".to_owned())
    );
    let selected = lab
        .muster(&["hosts", "-l", "name=web-[01-04]", "-o", "json"])
        .await;
    let value: serde_json::Value = serde_json::from_slice(&selected.stdout).expect("JSON");
    assert_eq!(value["items"][0]["name"], "web-01");
    assert_eq!(value["items"][0]["cpuRatio"], serde_json::Value::Null);
    let whoami = lab.muster(&["whoami", "-o", "table"]).await;
    assert!(
        printed(&whoami).starts_with("jo, role viewer, certificate "),
        "{}",
        printed(&whoami)
    );
    let summary = lab.muster(&["-o", "table"]).await;
    assert!(
        printed(&summary).starts_with("lab  2 hosts   0 live   2 joined"),
        "{}",
        printed(&summary)
    );
    for list in ["services", "anomalies", "incidents"] {
        let answer = lab.muster(&[list, "-o", "json"]).await;
        assert_eq!(code(&answer), 0, "{list}: {}", errors(&answer));
        let value: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
        assert_eq!(value["items"], serde_json::json!([]), "{list}");
    }
    for list in ["services", "anomalies", "incidents"] {
        let answer = lab.muster(&[list, "--host", "web-*,db-01"]).await;
        assert_eq!(code(&answer), 0, "{list}: {}", errors(&answer));
    }
    for sort in [
        "CPU",
        "-cpuRatio",
        "-NET IN",
        "net",
        "servicesFailed",
        "-ID",
    ] {
        let answer = lab.muster(&["hosts", "-S", sort]).await;
        assert_eq!(code(&answer), 0, "{sort}: {}", errors(&answer));
    }
    let host = lab.muster(&["host", "web-01", "-o", "table"]).await;
    assert!(
        printed(&host).starts_with("web-01  joined"),
        "{}",
        printed(&host)
    );
    let doctor = lab.muster(&["doctor", "-o", "table"]).await;
    assert_eq!(code(&doctor), 0, "{}", printed(&doctor));
    for step in [
        "config",
        "name",
        "tcp",
        "tls",
        "you",
        "clock",
        "aggregator",
        "hosts",
    ] {
        assert!(
            printed(&doctor).contains(&format!("ok    {step} ")),
            "{}",
            printed(&doctor)
        );
    }
    let scrape = lab.muster(&["export", "prometheus-config"]).await;
    assert!(
        printed(&scrape).contains("url: \"https://127.0.0.1:17446/sd\""),
        "{}",
        printed(&scrape)
    );
    assert_eq!(printed(&scrape).matches("authorization:").count(), 3);
    let roots = lab.muster(&["export", "ca"]).await;
    let kept = lab.config().parent().expect("a folder").join("lab/ca.pem");
    assert_eq!(
        roots.stdout,
        fs::read(kept).expect("the roots of the context")
    );
}

#[tokio::test]
async fn what_is_not_there_is_3_and_wrong_usage_is_2() {
    let lab = Lab::new().await;
    lab.login().await;
    for (arguments, expected, told) in [
        (
            &["host", "wbe-01"][..],
            3,
            "no host is called wbe-01, did you mean web-01?",
        ),
        (&["hosts", "nosuch"], 3, "no host is called nosuch"),
        (
            &["services", "--host", "nosuch"],
            3,
            "no host is called nosuch",
        ),
        (
            &["services", "--host", "nosuch-*"],
            3,
            "no host is called nosuch-*",
        ),
        (&["host", "web-*"], 2, "try: muster hosts 'web-*'"),
        (&["incidents", "--host", "web-[1"], 2, "a closing bracket"),
        (&["incident", "I-7"], 3, "there is no incident I-7"),
        (
            &["hosts", "-l", "env="],
            2,
            "column 5: expected a value, found the end",
        ),
        (&["hosts", "web-[1"], 2, "expected a closing bracket"),
        (
            &["hosts", "-S", "colour"],
            2,
            "there is no column \"colour\"",
        ),
        (
            &["hosts", "-c", "colour"],
            2,
            "there is no column \"colour\"",
        ),
        (&["incident", "x"], 2, "an incident is I- and a number"),
        (&["host"], 2, "required"),
        (&["hsots"], 2, "similar subcommand"),
        (&["hosts", "-w"], 2, "--watch redraws a terminal"),
        (&["version", "-w1"], 2, "--watch is for answers that change"),
        (
            &["--context", "nosuch", "hosts"],
            2,
            "there is no context \"nosuch\"",
        ),
    ] {
        let output = lab.muster(arguments).await;
        assert_eq!(
            code(&output),
            expected,
            "{arguments:?}: {}",
            errors(&output)
        );
        assert!(
            errors(&output).contains(told),
            "{arguments:?}: {}",
            errors(&output)
        );
        assert_eq!(printed(&output), "", "{arguments:?}");
    }
}

#[tokio::test]
async fn a_named_host_that_does_not_exist_is_told() {
    let lab = Lab::new().await;
    lab.login().await;
    let some = lab.muster(&["hosts", "web-01,wbe-02", "-o", "name"]).await;
    assert_eq!((code(&some), printed(&some)), (6, "web-01\n".to_owned()));
    assert_eq!(errors(&some), "incomplete: no host is called wbe-02\n");
    // A host that is there and not selected is no mistake.
    let names = ["hosts", "web-*", "db-01", "-l", "name=web-01"];
    let selected = lab.muster(&names).await;
    assert_eq!((code(&selected), errors(&selected)), (0, String::new()));
}

#[tokio::test]
async fn no_names_on_standard_input_are_no_hosts() {
    let lab = Lab::new().await;
    lab.login().await;
    // The tests' standard input is empty.
    for noun in ["hosts", "services"] {
        let output = lab.muster(&[noun, "@-", "-o", "name"]).await;
        assert_eq!((code(&output), printed(&output)), (0, String::new()));
    }
}

#[tokio::test]
async fn another_installation_at_the_address_is_5() {
    let lab = Lab::new().await;
    lab.login().await;
    let other = Lab::new().await;
    let door = other.door.to_string();
    let refused = lab.muster(&["--server", &door, "hosts"]).await;
    assert_eq!(code(&refused), 5, "{}", errors(&refused));
    let told = errors(&refused);
    assert!(
        told.contains("is not the aggregator it should be"),
        "{told}"
    );
}

#[tokio::test]
async fn a_login_keeps_the_context_of_another_installation() {
    let (lab, other) = (Lab::new().await, Lab::new().await);
    lab.login().await;
    let before = fs::read(lab.config()).expect("a configuration");
    let socket = other.folder.path().join("admin.sock");
    let socket = socket.to_str().expect("a path in UTF-8");
    let login = ["login", "--admin-socket", socket, "--name", "jo"];
    let refused = lab.muster(&login).await;
    let told = errors(&refused);
    assert_eq!(code(&refused), 1, "{told}");
    for words in [
        lab.authority.trust_domain().as_str(),
        other.authority.trust_domain().as_str(),
        "try: muster login --context NAME",
    ] {
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(fs::read(lab.config()).expect("a configuration"), before);
    let elsewhere = [&login[..], &["--context", "other"]].concat();
    let done = lab.muster(&elsewhere).await;
    assert_eq!(code(&done), 0, "{}", errors(&done));
}

#[tokio::test]
async fn who_is_not_let_in_is_4() {
    let lab = Lab::new().await;
    let now = SystemClock.now();
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    let request = Request::check(csr.der()).expect("acceptable");
    // A name that the store gives no role, a certificate of another kind, and one whose life is over.
    let unknown = lab.authority.issue_operator(&request, "eve", now);
    let agent = lab.authority.issue_agent(
        &request,
        Member {
            host: HostId::from_bytes([1; 16]),
            joined: now,
        },
        now,
    );
    let week = Duration::from_secs(7 * 86_400);
    let old = lab
        .authority
        .issue_operator(&request, "jo", now.minus(week));
    for (issued, told) in [
        (old, "your certificate for \"lab\" ended"),
        (unknown, "eve has no role, ListHosts needs viewer"),
        (agent, "does not accept your certificate"),
    ] {
        let root = lab.authority.root();
        let material = Material {
            server: &lab.door.to_string(),
            trust_domain: lab.authority.trust_domain(),
            fleet: "lab",
            roots: std::slice::from_ref(&root),
            chain: &issued.expect("issued").chain,
            key_pem: &key.serialize_pem(),
            role: "viewer",
        };
        context::write(&lab.config(), "lab", &material, true).expect("written");
        let refused = lab.muster(&["hosts"]).await;
        assert_eq!(code(&refused), 4, "{}", errors(&refused));
        assert!(errors(&refused).contains(told), "{}", errors(&refused));
        assert!(errors(&refused).contains("try: "), "{}", errors(&refused));
    }
}

/// Signs in `ago` before now, as `role`.
async fn signed_in(lab: &Lab, role: OperatorRole, ago: Duration) {
    let then = SystemClock.now().minus(ago);
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    let request = Request::check(csr.der()).expect("acceptable");
    let issued = lab
        .authority
        .issue_operator(&request, "jo", then)
        .expect("issued");
    lab.control
        .operator_issued("uid 0", "jo", role, &issued, *request.fingerprint(), then)
        .await
        .expect("written");
    let root = lab.authority.root();
    let material = Material {
        server: &lab.door.to_string(),
        trust_domain: lab.authority.trust_domain(),
        fleet: "lab",
        roots: std::slice::from_ref(&root),
        chain: &issued.chain,
        key_pem: &key.serialize_pem(),
        role: &role.to_string(),
    };
    context::write(&lab.config(), "lab", &material, true).expect("written");
}

#[tokio::test]
async fn a_certificate_renews_itself_in_its_last_third_and_without_a_word() {
    let lab = Lab::new().await;
    let key = lab.config().with_file_name("lab").join("key.pem");
    let hour = Duration::from_secs(3600);
    signed_in(&lab, OperatorRole::Viewer, hour * 15).await;
    let before = fs::read(&key).expect("a key");
    let asked = lab.muster(&["hosts"]).await;
    assert_eq!((code(&asked), errors(&asked)), (0, String::new()));
    assert_eq!(fs::read(&key).expect("a key"), before, "not yet");

    signed_in(&lab, OperatorRole::Viewer, hour * 17).await;
    let before = fs::read(&key).expect("a key");
    let kept = lab.folder.path().join("stolen");
    fs::create_dir_all(kept.join("lab")).expect("a folder");
    for file in ["config.toml", "lab/key.pem", "lab/cert.pem", "lab/ca.pem"] {
        fs::copy(lab.config().with_file_name(file), kept.join(file)).expect("copied");
    }
    // Side by side: one renews, the others wait for it.
    let all = tokio::join!(
        lab.muster(&["hosts"]),
        lab.muster(&["hosts"]),
        lab.muster(&["whoami"])
    );
    for asked in [&all.0, &all.1, &all.2] {
        assert_eq!((code(asked), errors(asked)), (0, String::new()));
    }
    assert_ne!(fs::read(&key).expect("a key"), before);
    let log = lab.control.audit_log(100).await.expect("readable");
    let renewals: Vec<_> = log
        .iter()
        .filter(|line| line.1[1] == "renew operator")
        .collect();
    assert_eq!(renewals.len(), 1, "{log:?}");
    // Whoever holds a copy of the old key gets no new one with it, and that is on record.
    muster(&kept.join("config.toml"), &["hosts"]).await;
    let log = lab.control.audit_log(1).await.expect("readable");
    assert!(log[0].1[3].contains("refused: Replaced"), "{log:?}");
}

#[tokio::test]
async fn administration_takes_a_certificate_younger_than_an_hour_and_gets_it() {
    let lab = Lab::new().await;
    let age = Duration::from_secs(2 * 3600);
    signed_in(&lab, OperatorRole::Admin, age).await;
    let asked = lab.muster(&["audit", "--verify"]).await;
    assert_eq!((code(&asked), errors(&asked)), (0, String::new()));
    let head = printed(&asked);
    let head = head
        .split("newest: ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let head = head.expect("the newest line").to_owned();
    let asked = lab.muster(&["audit", "--verify", "--head", &head]).await;
    assert_eq!(code(&asked), 0, "{}", errors(&asked));
    let asked = lab
        .muster(&["audit", "--action", "renew", "-o", "json"])
        .await;
    assert!(
        printed(&asked).contains("\"renew operator\""),
        "{}",
        printed(&asked)
    );

    // Files that somebody else looks after are not touched: there the refusal says what to do.
    signed_in(&lab, OperatorRole::Admin, age).await;
    let text = fs::read_to_string(lab.config()).expect("a configuration");
    let folder = lab.config().with_file_name("lab");
    let text = text.replace("\"lab/", &format!("\"{}/", folder.display()));
    fs::write(lab.config(), text).expect("written");
    let refused = lab.muster(&["audit"]).await;
    assert_eq!(code(&refused), 4, "{}", errors(&refused));
    assert!(
        errors(&refused).contains("younger than an hour"),
        "{}",
        errors(&refused)
    );
}

#[tokio::test]
async fn tokens_are_made_listed_and_withdrawn_over_the_network() {
    let lab = Lab::new().await;
    signed_in(&lab, OperatorRole::Operator, Duration::ZERO).await;
    let refused = lab.muster(&["enrol", "token", "create"]).await;
    assert_eq!(code(&refused), 4, "{}", errors(&refused));
    signed_in(&lab, OperatorRole::Admin, Duration::ZERO).await;
    let create = [
        "enrol",
        "token",
        "create",
        "--uses",
        "5",
        "--ttl",
        "2h",
        "--cidr",
        "10.0.0.0/8",
        "--approve",
        "--label",
        "rack=b4",
    ];
    let made = lab.muster(&create).await;
    assert_eq!(code(&made), 0, "{}", errors(&made));
    let token: Token = printed(&made).trim().parse().expect("a token");
    assert_eq!(*token.pin(), lab.authority.pin());
    let listed = lab.muster(&["enrol", "token", "list", "-o", "json"]).await;
    let listed = printed(&listed);
    for part in [token.id(), "\"live\"", "10.0.0.0/8", "b4"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert!(!listed.contains(token.secret()), "{listed}");
    let gone = lab.muster(&["enrol", "token", "revoke", token.id()]).await;
    assert_eq!(code(&gone), 0, "{}", errors(&gone));
    let again = lab.muster(&["enrol", "token", "revoke", token.id()]).await;
    assert_eq!(code(&again), 3, "{}", errors(&again));
    let nobody = lab.muster(&["enrol", "approve", "7"]).await;
    assert_eq!(code(&nobody), 3, "{}", errors(&nobody));
    assert!(
        errors(&nobody).contains("muster enrol pending"),
        "{}",
        errors(&nobody)
    );
    let log = lab.control.audit_log(20).await.expect("readable");
    let made = log
        .iter()
        .find(|line| line.1[1] == "create token")
        .expect("on record");
    assert_eq!(
        (
            made.1[0].as_str(),
            made.1[3].contains("each to be approved")
        ),
        ("jo", true)
    );
}

#[tokio::test]
async fn a_door_that_does_not_answer_is_5() {
    let lab = Lab::new().await;
    lab.login().await;
    // A port that was free a moment ago, a port that never answers, and one that speaks something else.
    let closed = {
        let listener = StdListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").to_string()
    };
    let mute = StdListener::bind("127.0.0.1:0").expect("a port");
    let mute = (mute.local_addr().expect("an address").to_string(), mute);
    let plain = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let plain_address = plain.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        while let Ok((mut stream, _)) = plain.accept().await {
            // The client closes first when it has seen that this is no TLS.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for (server, told) in [
        (closed.as_str(), "connection refused"),
        (mute.0.as_str(), "no answer within 0.5 s"),
        (plain_address.as_str(), "is not a Muster operator door"),
        (
            "nosuch.invalid:7445",
            "the name nosuch.invalid cannot be resolved",
        ),
    ] {
        let output = lab
            .muster(&["--timeout", "0.5", "--server", server, "hosts"])
            .await;
        assert_eq!(code(&output), 5, "{server}: {}", errors(&output));
        // A resolver that cannot be reached takes longer than the limit.
        let late = errors(&output).contains("no answer within");
        assert!(
            errors(&output).contains(told) || late,
            "{server}: {}",
            errors(&output)
        );
        assert!(
            errors(&output).contains("try: muster doctor"),
            "{server}: {}",
            errors(&output)
        );
    }
    let doctor = lab
        .muster(&["doctor", "-o", "table", "--server", &closed])
        .await;
    assert_eq!(code(&doctor), 1);
    assert!(
        printed(&doctor).contains("FAIL  tcp"),
        "{}",
        printed(&doctor)
    );
    assert!(
        printed(&doctor).contains("–     aggregator    not tried"),
        "{}",
        printed(&doctor)
    );
}

#[tokio::test]
async fn a_configuration_that_is_none_is_told_with_its_line() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = folder.path().join("config.toml");
    fs::write(
        &config,
        "current = \"prod\"\n[contexts.prod]\nsrever = \"x\"\n",
    )
    .expect("written");
    let output = muster(&config, &["hosts"]).await;
    assert_eq!(code(&output), 1, "{}", errors(&output));
    assert!(errors(&output).contains("line 3"), "{}", errors(&output));
    assert!(errors(&output).contains("srever"), "{}", errors(&output));
    let doctor = muster(&config, &["doctor", "-o", "json"]).await;
    assert_eq!(code(&doctor), 1);
    let value: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    assert_eq!(value["items"][0]["result"], "fail");
    assert_eq!(value["items"][7]["result"], "skipped");
}

#[tokio::test]
async fn contexts_are_listed_used_and_removed() {
    let lab = Lab::new().await;
    lab.login().await;
    let listed = lab.muster(&["context", "list", "-o", "name"]).await;
    assert_eq!(printed(&listed), "lab\n");
    let key = lab.config().parent().expect("a folder").join("lab/key.pem");
    assert!(key.exists());
    let removed = lab.muster(&["context", "remove", "lab"]).await;
    assert_eq!(code(&removed), 0, "{}", errors(&removed));
    assert!(!key.exists());
    let output = lab.muster(&["context", "use", "lab"]).await;
    assert_eq!(code(&output), 2, "{}", errors(&output));
}

#[tokio::test]
async fn what_needs_no_aggregator_works_without_one() {
    let nowhere = Path::new("/nonexistent/muster/config.toml");
    for (arguments, told) in [
        (&["version"][..], "muster 0."),
        (&["--help"], "Exit codes:"),
        (&["help", "hosts"], "Names or patterns"),
        (&["man"], ".TH muster"),
        (&["completion", "bash"], "complete -F _muster"),
        (&["completion", "zsh"], "#compdef muster"),
        (&["completion", "fish"], "complete -c muster"),
        (
            &[
                "export",
                "prometheus-config",
                "--url",
                "http://127.0.0.1:7446",
            ],
            "job_name: node",
        ),
    ] {
        let output = muster(nowhere, arguments).await;
        assert_eq!(code(&output), 0, "{arguments:?}: {}", errors(&output));
        assert!(
            printed(&output).contains(told),
            "{arguments:?}: {}",
            printed(&output)
        );
    }
}

#[tokio::test]
async fn an_authority_is_rotated_step_by_step_and_taken_back() {
    let lab = Lab::new().await;
    signed_in(&lab, OperatorRole::Admin, Duration::ZERO).await;
    let rotate = async |words: &[&str]| {
        let done = lab.muster(&[&["ca", "rotate"], words].concat()).await;
        (code(&done), printed(&done), errors(&done))
    };
    let (code_, _, why) = rotate(&["prepare"]).await;
    assert_eq!(code_, 2, "nothing without --yes: {why}");
    let (code_, _, why) = rotate(&["retire", "--yes"]).await;
    assert!(
        code_ == 1 && why.contains("does not sign yet"),
        "{code_} {why}"
    );
    for (step, said) in [
        ("prepare", "prepared, trust bundle version 2"),
        ("activate", "activated, trust bundle version 2"),
        ("back", "prepared, trust bundle version 2"),
        ("back", "settled, trust bundle version 3"),
        ("prepare", "prepared, trust bundle version 4"),
        ("activate", "activated, trust bundle version 4"),
    ] {
        let (code_, out, why) = rotate(&[step, "--yes"]).await;
        assert_eq!(code_, 0, "{step}: {why}");
        assert!(out.contains(said), "{step}: {out}");
    }
    // The certificate of before is good until the old one is retired, and the door shows who it is to both.
    let status = lab.muster(&["ca", "status"]).await;
    assert!(
        printed(&status).contains("known to hosts that know the one before"),
        "{}",
        printed(&status)
    );
    let (code_, out, why) = rotate(&["--now", "--yes"]).await;
    assert!(
        code_ == 0 && out.contains("settled, trust bundle version 5"),
        "{out}{why}"
    );
    let refused = lab.muster(&["hosts"]).await;
    assert_ne!(code(&refused), 0, "{}", printed(&refused));
    fs::remove_dir_all(lab.config().parent().expect("a folder")).expect("removed");
    lab.login().await;
    let asked = lab.muster(&["hosts"]).await;
    assert_eq!(code(&asked), 0, "{}", errors(&asked));
    let log = lab.control.audit_log(50).await.expect("readable");
    let steps = log.iter().filter(|line| line.1[1] == "rotate authority");
    assert_eq!(steps.count(), 7);
}

#[tokio::test]
async fn a_lower_bound_is_judged_over_the_samples_there_are() {
    let lab = Lab::new().await;
    lab.login().await;
    let asked = ["replay", "--since", "1d", "-o", "table", "--all"];
    let same = lab.muster(&asked).await;
    assert_eq!(code(&same), 0, "{}", errors(&same));
    let text = printed(&same);
    assert!(text.contains("nobody was told of anything"), "{text}");

    let file = lab.folder.path().join("lower.toml");
    let rules = "[[rules]]\nrule = \"conntrack_full\"\nabove = 0.8\nclear = 0.7\n";
    fs::write(&file, rules).expect("written");
    let file = file.to_str().expect("a path in UTF-8");
    let asked = ["replay", "--since", "1d", "-o", "table", "--rules", file];
    let lower = lab.muster(&asked).await;
    assert_eq!(code(&lower), 0, "{}", errors(&lower));
    let text = printed(&lower);
    for expected in [
        "conntrack_full      0     1         0              2",
        "conntrack_full: over samples 1 incidents; on record 0",
        "firing, critical conntrack_full on web-01",
        "resolved, critical conntrack_full on web-01",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let record_only = [&asked[..], &["--record-only"]].concat();
    let text = printed(&lab.muster(&record_only).await);
    assert!(!text.contains("firing"), "{text}");

    fs::write(file, "[[rules]]\nrule = \"conntrack_ful\"\n").expect("written");
    let wrong = lab.muster(&asked).await;
    assert_ne!(code(&wrong), 0);
    assert!(
        errors(&wrong).contains("these rules would not be taken"),
        "{}",
        errors(&wrong)
    );
}
