//! A simulated year: hosts renew, the aggregator is away for a tenth of it, some hosts for weeks, and the authority is
//! rotated twice. Nobody is stranded.
//!
//! Time is virtual and moves by days. Everything else is real: the files of the identities, certificates and their
//! requests, TLS handshakes (in memory) judged at the virtual time, the control store, the rotation on disk. What the
//! network and the gRPC services add is tested elsewhere.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::{path::Path, sync::Arc, time::Duration};

use muster_agent::{
    Credentials,
    enrol::enrol,
    identity::{self, Identity},
    renewal::Renewal,
};
use muster_aggregator::{
    control::{CertificateRefusal, Control, Greeting, Presented, TokenOptions},
    enrol::EnrolDoor,
    listen::{Counters, Limits, bind},
    pki::{Authority, Doors, Phase, Request, Step},
};
use muster_proto::{
    spiffe::{hex, peer_id},
    time::{Clock, FakeClock, SystemClock, Timestamp},
    tls::{TrustedTime, server_name},
    v1,
};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(86_400);
const HOSTS: usize = 5;
/// Days of each step.
const STEP: u32 = 2;

/// TLS judges by the virtual time.
#[derive(Debug)]
struct Virtual(Arc<FakeClock>);

impl TimeProvider for Virtual {
    fn current_time(&self) -> Option<UnixTime> {
        let millis = u64::try_from(self.0.now().as_millis()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(millis)))
    }
}

/// The aggregator's side.
struct World {
    state: tempfile::TempDir,
    clock: Arc<FakeClock>,
    authority: Arc<Authority>,
    doors: Arc<Doors>,
    control: Control,
}

/// A host: its state folder, and what its agent keeps in memory.
struct Host {
    state: tempfile::TempDir,
    credentials: Credentials,
    renewal: Renewal,
    boot: u8,
}

impl World {
    fn new() -> Self {
        let state = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(FakeClock::at(SystemClock.now()));
        let now = clock.now();
        let authority = Arc::new(Authority::init(state.path(), &[], now).expect("an authority"));
        let doors = Arc::new(Doors::new(Arc::clone(&authority), &[], now).expect("doors"));
        Self {
            control: Control::open(state.path()).expect("a store"),
            state,
            clock,
            authority,
            doors,
        }
    }

    async fn join(&self, number: usize) -> Host {
        let state = tempfile::tempdir().expect("a folder");
        let now = self.clock.now();
        let token = self
            .control
            .create_token(self.authority.pin(), TokenOptions::default(), "test", now)
            .await
            .expect("a token");
        let door = EnrolDoor {
            control: self.control.clone(),
            doors: Arc::clone(&self.doors),
            authority: Arc::clone(&self.authority),
            uplink_address: ":7443".to_owned(),
            limits: Limits::default(),
            counters: Arc::new(Counters::default()),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            joined: tokio::sync::mpsc::channel(1).0,
        };
        let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let stop = CancellationToken::new();
        tokio::spawn(door.serve(listener, stop.clone()));
        let facts = v1::HostFacts {
            hostname: format!("web-{number}"),
            ..v1::HostFacts::default()
        };
        enrol(&address, &token, facts, state.path())
            .await
            .expect("joined");
        stop.cancel();
        Host {
            credentials: Credentials::on_disk(state.path(), "192.0.2.1:1".to_owned()),
            renewal: Renewal::new(number as u64),
            boot: 0,
            state,
        }
    }

    /// A handshake at the agents' door; what it proved.
    async fn shake(&self, identity: &Identity) -> Result<Presented, String> {
        let time: Arc<dyn TimeProvider> = Arc::new(Virtual(Arc::clone(&self.clock)));
        let mut client = identity
            .client_config(&TrustedTime::default())
            .map_err(|error| error.to_string())?;
        client.time_provider = Arc::clone(&time);
        let mut server = self.doors.agents.load().as_ref().clone();
        server.time_provider = time;
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connect = TlsConnector::from(Arc::new(client)).connect(server_name(), near);
        let accept = TlsAcceptor::from(Arc::new(server)).accept(far);
        let (near, far) = tokio::join!(connect, accept);
        near.map_err(|error| format!("the host refuses the aggregator: {error}"))?;
        let far = far.map_err(|error| format!("the aggregator refuses the host: {error}"))?;
        let chain = far.get_ref().1.peer_certificates().expect("it showed one");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("parsed");
        let peer = peer_id(&chain[0]).expect("an agent");
        Ok(Presented {
            host_id: peer.id.host().expect("a host"),
            serial: hex(leaf.raw_serial()),
            not_after: Timestamp::from_millis(leaf.validity().not_after.timestamp() * 1000),
            origin: None,
        })
    }

    /// What a host does with an aggregator that is there: connect, be told what is new, renew when it is time.
    async fn visit(&self, host: &mut Host) -> Result<(), String> {
        let now = self.clock.now();
        let state = host.state.path().to_owned();
        let identity = Identity::load(&state).map_err(|error| error.to_string())?;
        let presented = self.shake(&identity).await?;
        let admitted = self.control.admit_host(presented.clone(), now).await;
        match admitted.expect("readable") {
            Ok(()) => {}
            // Switched off for weeks: it is renewed on the connection that was refused.
            Err(CertificateRefusal::Expired) => {
                self.renew(host, presented).await?;
                return Box::pin(self.visit(host)).await;
            }
            Err(refusal) => return Err(refusal.to_string()),
        }
        if identity.is_next {
            identity::promote_next(&state).map_err(|error| error.to_string())?;
        }
        let greeting = Greeting {
            session: host
                .credentials
                .memory
                .next_session()
                .map_err(|fault| fault.to_string())?,
            boot_id: vec![host.boot; 16],
            ratchet: host.credentials.memory.ratchet(),
            bundle_version: host.credentials.memory.bundle_version(),
        };
        let held = greeting.bundle_version;
        let greeted = self.control.greet(presented.host_id, greeting, now).await;
        let greeted = greeted.expect("written");
        if let Some(sign) = greeted.sign {
            return Err(format!("taken for a copy: {sign}"));
        }
        let bundle = self.authority.bundle();
        let newer = held < bundle.version;
        let version = bundle.version;
        let welcome = v1::Welcome {
            server_wall_ms: now.as_millis(),
            ratchet: greeted.ratchet,
            bundle: newer.then_some(bundle),
            ..v1::Welcome::default()
        };
        host.credentials
            .memory
            .welcomed(&welcome)
            .map_err(|error| error.to_string())?;
        if newer {
            let taken = self.control.bundle_taken(presented.host_id, version);
            taken.await.expect("written");
        }
        let slots = host
            .credentials
            .memory
            .slots()
            .expect("it has certificates");
        let life = slots.life().ok_or("its certificate cannot be read")?;
        if !slots.waiting() && host.renewal.wait(life, now, true).is_zero() {
            self.renew(host, presented).await?;
        }
        Ok(())
    }

    async fn renew(&self, host: &mut Host, presented: Presented) -> Result<(), String> {
        let now = self.clock.now();
        let slots = host
            .credentials
            .memory
            .slots()
            .expect("it has certificates");
        let csr = slots.request().map_err(|fault| fault.to_string())?;
        let csr = Request::check(&csr).map_err(|error| error.to_string())?;
        let (fingerprint, authority) = (*csr.fingerprint(), Arc::clone(&self.authority));
        let issue = move |id| authority.issue_agent(&csr, id, now);
        let issued = self
            .control
            .renew_host(presented, fingerprint, issue, now)
            .await
            .expect("written")
            .map_err(|refusal| refusal.to_string())?;
        let answer = v1::RenewResponse {
            certificate_chain: issued.chain.iter().map(|one| one.to_vec()).collect(),
            bundle: Some(self.authority.bundle()),
            server_wall_ms: now.as_millis(),
        };
        slots.keep(answer).map_err(|fault| fault.to_string())?;
        host.renewal.succeeded();
        Ok(())
    }

    fn rotate(&self, step: Step) {
        let now = self.clock.now();
        self.authority.rotate(step, now).expect("rotated");
        self.doors.reload(now).expect("set up anew");
    }

    /// Whether nobody would be cut off by retiring the old authority.
    async fn may_retire(&self) -> bool {
        let newest = self.authority.generations().last().expect("one").number;
        let holders = self.control.bundle_holders(newest, self.clock.now()).await;
        let version = self.authority.bundle_version();
        let behind = |holder: &muster_aggregator::control::Holder| {
            holder.bundle_version < version || holder.old_certificate
        };
        !holders.expect("readable").iter().any(behind)
    }
}

/// A tenth of the year without an aggregator: six days of every sixty.
fn aggregator_is_up(day: u32) -> bool {
    day % 60 >= 26 || day % 60 < 20
}

/// One host is away for six weeks, from before the first preparing until after the activating; the others two days of
/// every seventeen.
fn host_is_up(number: usize, day: u32) -> bool {
    if number == 0 {
        return !(55..97).contains(&day);
    }
    let phase = u32::try_from(number).unwrap_or(0) * 3;
    (day + phase) % 17 >= 2
}

#[tokio::test]
async fn a_year_with_outages_and_two_rotations_strands_nobody() {
    let world = World::new();
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        hosts.push(world.join(number).await);
    }
    let (mut prepared_on, mut retired) = (0, 0);
    for day in (STEP..=366).step_by(2) {
        world.clock.advance(DAY * STEP);
        if aggregator_is_up(day) {
            world
                .doors
                .renew_if_due(world.clock.now())
                .expect("renewed");
            match world.authority.phase() {
                Phase::Settled if day == 60 || day == 210 => {
                    world.rotate(Step::Prepare);
                    prepared_on = day;
                }
                // One host has not heard of it, and does not know the new root.
                Phase::Prepared if day >= prepared_on + 10 => world.rotate(Step::Activate),
                Phase::Activated if world.may_retire().await => {
                    world.rotate(Step::Retire);
                    retired += 1;
                }
                _ => {}
            }
        }
        for (number, host) in hosts.iter_mut().enumerate() {
            if !host_is_up(number, day) {
                continue;
            }
            // The first day after it was away it has booted.
            host.boot += u8::from(!host_is_up(number, day - STEP));
            if aggregator_is_up(day)
                && let Err(error) = world.visit(host).await
            {
                panic!("day {day}, host {number}: {error}");
            }
        }
    }
    assert_eq!(retired, 2);
    assert_eq!(world.authority.generations().len(), 1);
    // What is held at the end is of the last generation.
    for host in &mut hosts {
        world.visit(host).await.expect("nobody is stranded");
        let identity = Identity::load(host.state.path()).expect("an identity");
        assert_eq!(identity.roots, [world.authority.root()]);
    }
    let log = world.control.verify_audit(None).await.expect("readable");
    assert_eq!(log.faults, [""; 0]);
    assert!(world.state.path().join("ca/g3/root.crt").exists());
}

#[tokio::test]
async fn without_the_old_roots_key_a_host_that_was_away_must_enrol_again_and_is_told_so() {
    let world = World::new();
    let mut host = world.join(0).await;
    world.visit(&mut host).await.expect("connected");
    std::fs::remove_file(world.state.path().join("ca/root.key")).expect("taken offline");
    world.rotate(Step::Prepare);
    assert!(!world.authority.generations()[1].cross_signed);
    world.rotate(Step::Activate);
    let told = world
        .visit(&mut host)
        .await
        .expect_err("it knows the old root only");
    assert!(told.contains("the host refuses the aggregator"), "{told}");
    assert!(!world.may_retire().await, "it would be left behind");
    // Taken back, the host is there again and hears of the new root.
    world.rotate(Step::Back);
    world.visit(&mut host).await.expect("connected");
    world.rotate(Step::Activate);
    world
        .visit(&mut host)
        .await
        .expect("it knows the new root now");
}

#[tokio::test]
async fn in_an_emergency_nothing_of_the_old_authority_is_good_any_more() {
    let world = World::new();
    let (mut informed, mut other) = (world.join(0).await, world.join(1).await);
    world.rotate(Step::Prepare);
    world.visit(&mut informed).await.expect("connected");
    world.rotate(Step::Now);
    let refused = vec![1];
    let now = world.clock.now();
    let written = world
        .control
        .rotated("now", refused, String::new(), "jo", now);
    written.await.expect("written");
    for host in [&mut informed, &mut other] {
        assert!(world.visit(host).await.is_err());
        let presented = presented(host.state.path());
        let admitted = world.control.admit_host(presented, now).await;
        let admitted = admitted.expect("readable");
        assert_eq!(
            admitted,
            Err(CertificateRefusal::Untrusted),
            "on a connection that stands, too"
        );
    }
}

/// The certificate in a state folder, as a connection that stands would show it.
fn presented(state: &Path) -> Presented {
    let identity = Identity::load(state).expect("an identity");
    let chain = &identity.credentials.chain;
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("parsed");
    Presented {
        host_id: identity.host_id,
        serial: hex(leaf.raw_serial()),
        not_after: Timestamp::from_millis(leaf.validity().not_after.timestamp() * 1000),
        origin: None,
    }
}
