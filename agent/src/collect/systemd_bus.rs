//! Follows systemd over the system bus and keeps [`Units`](super::systemd) current.
//!
//! On each connection: subscribe, list all units once, then listen. Signals are listened to all the time,
//! also while an answer is awaited, so that none is missed; an answer that a signal overtook is asked for
//! again. One attempt to connect at a time, with growing pauses.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time;
use zbus::{
    Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, connection,
    fdo::DBusProxy, message, names::OwnedUniqueName,
};

use super::{
    systemd::{Listed, Question, Shared, Sort},
    systemd_kinds::{ServiceFacts, SocketFacts, TimerFacts},
};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const TIMER: &str = "org.freedesktop.systemd1.Timer";
const SOCKET: &str = "org.freedesktop.systemd1.Socket";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNIT_PATHS: &str = "/org/freedesktop/systemd1/unit";

/// Pauses between attempts to connect: doubled from the first up to the last, each shortened by chance
/// by up to a half, so that a fleet does not knock in step.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A method that has not returned for so long never will.
const METHOD_TIMEOUT: Duration = Duration::from_secs(20);

/// Units come in crowds (a login, a reload): they are asked for together.
const GATHER: Duration = Duration::from_millis(50);

/// How often sockets with Accept=yes are asked: of their connections systemd sends no signal.
const ASK_SOCKETS: Duration = Duration::from_secs(60);

/// Most units that are named in one question.
const MAX_NAMED: usize = 200;

/// Signals that wait: a boot or a reload sends thousands within a second.
const QUEUE: usize = 4096;

/// Follows the system bus for ever; ends when it is aborted.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = match connect().await {
            Ok(connection) => session(&connection, &shared).await,
            Err(error) => Err(error),
        };
        let why = match ended {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => error.to_string(),
        };
        let was_up = shared.lock().is_up();
        shared.lock().lost(&why);
        tracing::debug!(why, "system bus is not reached");
        if was_up {
            pause = FIRST_PAUSE;
        }
        time::sleep(pause.mul_f64(1.0 - fastrand::f64() / 2.0)).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

async fn connect() -> zbus::Result<Connection> {
    connection::Builder::system()
        .method_timeout(METHOD_TIMEOUT)
        .build()
        .await
}

/// One connection, until it ends or systemd leaves the bus.
pub(super) async fn session(connection: &Connection, shared: &Shared) -> zbus::Result<()> {
    let signals = Signals::of(connection).await?;
    // Without it systemd sends its signals only as long as somebody else is subscribed.
    call(connection, "Subscribe", &()).await?;
    let version: String = property(connection, MANAGER_PATH, MANAGER, "Version").await?;
    shared.lock().begin(&version);
    tokio::select! {
        ended = signals.listen(shared) => ended,
        failed = answer(connection, shared) => failed,
    }
}

/// The signals that matter.
struct Signals {
    properties: MessageStream,
    manager: MessageStream,
    /// Changes of who is systemd; none where there is no bus between.
    owner: Option<MessageStream>,
    /// Who systemd is on the bus: anyone may send a signal to anyone.
    sender: Option<OwnedUniqueName>,
}

impl Signals {
    async fn of(connection: &Connection) -> zbus::Result<Self> {
        let rule = |interface: &'static str| {
            MatchRule::builder()
                .msg_type(message::Type::Signal)
                .sender(SYSTEMD)
                .interface(interface)
        };
        let stream = async |rule: MatchRule<'static>| {
            MessageStream::for_match_rule(rule, connection, NonZeroUsize::new(QUEUE)).await
        };
        let properties = rule(PROPERTIES)
            .member("PropertiesChanged")
            .path_namespace(UNIT_PATHS)
            .build()?;
        let manager = rule(MANAGER).path(MANAGER_PATH).build()?;
        let mut signals = Self {
            properties: stream(properties).await?,
            manager: stream(manager).await?,
            owner: None,
            sender: None,
        };
        if connection.is_bus() {
            let bus = DBusProxy::new(connection).await?;
            let owner = MatchRule::builder()
                .msg_type(message::Type::Signal)
                .sender("org.freedesktop.DBus")
                .interface("org.freedesktop.DBus")
                .member("NameOwnerChanged")
                .arg(0, SYSTEMD)
                .build()?;
            signals.owner = Some(stream(owner).await?);
            signals.sender = Some(bus.get_name_owner(SYSTEMD.try_into()?).await?);
        }
        Ok(signals)
    }

    async fn listen(mut self, shared: &Shared) -> zbus::Result<()> {
        loop {
            let message = tokio::select! {
                message = self.properties.next() => message,
                message = self.manager.next() => message,
                Some(_) = next(&mut self.owner) => return Ok(()),
            };
            let Some(message) = message else {
                return Ok(());
            };
            let message = message?;
            if self.is_from_systemd(&message) && apply(&message, shared).is_none() {
                tracing::debug!("a signal of systemd was not understood");
            }
            shared.tell();
        }
    }

    fn is_from_systemd(&self, message: &Message) -> bool {
        let sender = self.sender.as_deref();
        sender.is_none() || message.header().sender() == sender
    }
}

/// The next message of a stream that may not be there: then never.
async fn next(stream: &mut Option<MessageStream>) -> Option<zbus::Result<Message>> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Does what a signal says; `None` if it is not understood.
fn apply(message: &Message, shared: &Shared) -> Option<()> {
    let header = message.header();
    let body = message.body();
    let mut units = shared.lock();
    match header.member()?.as_str() {
        "UnitNew" => {
            let (name, _) = body.deserialize::<(String, OwnedObjectPath)>().ok()?;
            units.appeared(&name);
        }
        "UnitRemoved" => {
            let (name, _) = body.deserialize::<(String, OwnedObjectPath)>().ok()?;
            units.vanished(&name);
        }
        "Reloading" => {
            let begins = body.deserialize::<bool>().ok()?;
            units.reloading(begins);
        }
        "PropertiesChanged" => {
            let name = unit_name(header.path()?.as_str())?;
            type Changed = (String, HashMap<String, OwnedVariant>, Vec<String>);
            let (interface, mut values, _) = body.deserialize::<Changed>().ok()?;
            let mut text = |key| String::try_from(values.remove(key)?).ok();
            if interface == UNIT {
                if let Some(state) = text("ActiveState") {
                    units.signalled_state(&name, &state);
                }
            } else if interface == SERVICE {
                let facts = ServiceFacts {
                    kind: text("Type"),
                    result: text("Result"),
                    restarts: values
                        .remove("NRestarts")
                        .and_then(|value| u32::try_from(value).ok()),
                    exit: values
                        .remove("ExecMainStatus")
                        .and_then(|value| i32::try_from(value).ok()),
                    ended: values
                        .remove("ExecMainCode")
                        .and_then(|value| i32::try_from(value).ok()),
                };
                units.set_service(&name, facts);
            } else if interface == TIMER {
                let mut moment = |key| u64::try_from(values.remove(key)?).ok();
                let facts = TimerFacts {
                    last: moment("LastTriggerUSec"),
                    next: next_of(
                        moment("NextElapseUSecRealtime"),
                        moment("NextElapseUSecMonotonic"),
                    ),
                };
                units.set_timer(&name, facts);
            }
        }
        _ => {}
    }
    Some(())
}

/// Asks for what signals do not tell, for ever.
async fn answer(connection: &Connection, shared: &Shared) -> zbus::Result<()> {
    let mut ask_sockets = time::Instant::now() + ASK_SOCKETS;
    loop {
        let question = shared.lock().question();
        let Some(question) = question else {
            tokio::select! {
                () = shared.work.notified() => time::sleep(GATHER).await,
                () = time::sleep_until(ask_sockets) => {
                    ask_sockets = time::Instant::now() + ASK_SOCKETS;
                    let counting = shared.lock().counting_sockets();
                    for name in counting {
                        let facts = socket(connection, &name).await?;
                        shared.lock().set_socket(&name, facts);
                    }
                }
            }
            continue;
        };
        match question {
            Question::All => {
                let listed = list(connection, "ListUnits", &()).await?;
                shared.lock().listed(&listed, true);
            }
            Question::Named(names) => {
                for names in names.chunks(MAX_NAMED) {
                    let listed = match list(connection, "ListUnitsByNames", &names).await {
                        // systemd before 230 cannot list by name.
                        Err(error) if is_refusal(&error) => {
                            list(connection, "ListUnits", &()).await?
                        }
                        answer => answer?,
                    };
                    shared.lock().listed(&listed, false);
                }
            }
            Question::System => {}
        }
        let unknown = shared.lock().unknown();
        for (name, sort) in unknown {
            match sort {
                Sort::Service => {
                    let facts = service(connection, &name).await?;
                    shared.lock().set_service(&name, facts);
                }
                Sort::Timer => {
                    let facts = timer(connection, &name).await?;
                    shared.lock().set_timer(&name, facts);
                }
                Sort::Socket => {
                    let facts = socket(connection, &name).await?;
                    shared.lock().set_socket(&name, facts);
                }
            }
        }
        let state: String = property(connection, MANAGER_PATH, MANAGER, "SystemState").await?;
        shared.lock().set_system_state(&state);
        shared.tell();
    }
}

async fn service(connection: &Connection, name: &str) -> zbus::Result<ServiceFacts> {
    let path = unit_path(name);
    let kind = property(connection, &path, SERVICE, "Type").await;
    let kind = match kind {
        // Gone meanwhile: nothing is known, and a type that says so is not asked for again.
        Err(error) if is_refusal(&error) => {
            return Ok(ServiceFacts {
                kind: Some(String::new()),
                ..ServiceFacts::default()
            });
        }
        kind => kind?,
    };
    Ok(ServiceFacts {
        kind: Some(kind),
        result: optional(property(connection, &path, SERVICE, "Result").await)?,
        restarts: optional(property(connection, &path, SERVICE, "NRestarts").await)?,
        exit: optional(property(connection, &path, SERVICE, "ExecMainStatus").await)?,
        ended: optional(property(connection, &path, SERVICE, "ExecMainCode").await)?,
    })
}

async fn timer(connection: &Connection, name: &str) -> zbus::Result<TimerFacts> {
    let path = unit_path(name);
    let moment = async |key| optional(property::<u64>(connection, &path, TIMER, key).await);
    let last = moment("LastTriggerUSec").await?;
    let wall = moment("NextElapseUSecRealtime").await?;
    let boot = moment("NextElapseUSecMonotonic").await?;
    Ok(TimerFacts {
        last,
        next: next_of(wall, boot),
    })
}

async fn socket(connection: &Connection, name: &str) -> zbus::Result<SocketFacts> {
    let path = unit_path(name);
    let accepts = optional(property::<bool>(connection, &path, SOCKET, "Accept").await)?;
    if accepts != Some(true) {
        return Ok(SocketFacts::default());
    }
    let count = async |key| {
        let count = optional(property::<u32>(connection, &path, SOCKET, key).await)?;
        Ok::<_, zbus::Error>(count.unwrap_or(0))
    };
    Ok(SocketFacts {
        accepts: true,
        accepted: count("NAccepted").await?,
        connections: count("NConnections").await?,
        // Not before systemd 239.
        refused: count("NRefused").await?,
    })
}

/// When a timer elapses next by the wall clock: it may be set by that or by the time since boot. All ones, and
/// nothing, stand for never; `None` where neither was told.
fn next_of(wall: Option<u64>, boot: Option<u64>) -> Option<u64> {
    let real = |usec: &u64| !matches!(*usec, 0 | u64::MAX);
    let since_boot = boot.filter(real).map(|usec| {
        let clock = |id| {
            let now = rustix::time::clock_gettime(id);
            let micros = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1_000;
            micros.unsigned_abs()
        };
        let now = clock(rustix::time::ClockId::Realtime);
        let left = i128::from(usec) - i128::from(clock(rustix::time::ClockId::Monotonic));
        u64::try_from(i128::from(now) + left).unwrap_or(0)
    });
    let soonest = wall.filter(real).into_iter().chain(since_boot).min();
    soonest.or_else(|| wall.or(boot).map(|_| 0))
}

/// Whether an error is systemd's own answer: what it was asked for is not there. Anything else is the connection's.
fn is_refusal(error: &zbus::Error) -> bool {
    use zbus::fdo::Error as Bus;
    match error {
        // Names that are systemd's own (NoSuchUnit).
        zbus::Error::MethodError(..) => true,
        zbus::Error::FDO(error) => matches!(
            **error,
            Bus::UnknownProperty(_)
                | Bus::UnknownInterface(_)
                | Bus::UnknownMethod(_)
                | Bus::UnknownObject(_)
                | Bus::InvalidArgs(_)
                | Bus::Failed(_)
        ),
        _ => false,
    }
}

/// A property that old versions of systemd do not have.
fn optional<T>(answer: zbus::Result<T>) -> zbus::Result<Option<T>> {
    match answer {
        Err(error) if is_refusal(&error) => Ok(None),
        answer => answer.map(Some),
    }
}

async fn list<B>(connection: &Connection, method: &str, body: &B) -> zbus::Result<Vec<Listed>>
where
    B: serde::Serialize + zbus::DynamicType,
{
    /// Name, description, load, active and sub-state, followed unit, path, job's number, type and path.
    type Row = (
        String,
        String,
        String,
        String,
        String,
        String,
        OwnedObjectPath,
        u32,
        String,
        OwnedObjectPath,
    );
    let reply = call(connection, method, body).await?;
    let rows: Vec<Row> = reply.body().deserialize()?;
    let listed = |row: Row| Listed {
        name: row.0,
        load_state: row.2,
        active_state: row.3,
    };
    Ok(rows.into_iter().map(listed).collect())
}

async fn call<B>(connection: &Connection, method: &str, body: &B) -> zbus::Result<Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    connection
        .call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), method, body)
        .await
}

async fn property<T>(
    connection: &Connection,
    path: &str,
    interface: &str,
    name: &str,
) -> zbus::Result<T>
where
    T: TryFrom<OwnedVariant, Error = zbus::Error>,
{
    let reply = connection
        .call_method(
            Some(SYSTEMD),
            path,
            Some(PROPERTIES),
            "Get",
            &(interface, name),
        )
        .await?;
    reply.body().deserialize::<OwnedVariant>()?.try_into()
}

/// The object path of a unit: every byte that is no letter and no digit is `_` and two hex digits, and so
/// is a digit in front (sd_bus_path_encode(3)).
fn unit_path(name: &str) -> String {
    let mut path = format!("{UNIT_PATHS}/");
    for (at, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
        if plain {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

/// The unit of an object path.
fn unit_name(path: &str) -> Option<String> {
    let mut rest = path.strip_prefix(UNIT_PATHS)?.strip_prefix('/')?.as_bytes();
    let mut name = Vec::with_capacity(rest.len());
    while let Some((&first, after)) = rest.split_first() {
        if first == b'_' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            name.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            name.push(first);
            rest = after;
        }
    }
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use zbus::{Guid, Variant, connection::Builder, interface};

    use super::{
        super::{Outcome, SystemdConfig, systemd::Systemd, testing},
        *,
    };

    /// The few methods of systemd's manager that are called.
    struct Manager;

    type Row = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        OwnedObjectPath,
        u32,
        &'static str,
        OwnedObjectPath,
    );

    fn row(name: &'static str, active: &'static str) -> Row {
        let path = OwnedObjectPath::try_from(unit_path(name)).expect("a path");
        let job = OwnedObjectPath::try_from("/").expect("a path");
        (name, "", "loaded", active, "", "", path, 0, "", job)
    }

    #[interface(name = "org.freedesktop.systemd1.Manager")]
    impl Manager {
        fn subscribe(&self) {}

        fn list_units(&self) -> Vec<Row> {
            vec![row("web-1.service", "active"), row("a.timer", "active")]
        }

        fn list_units_by_names(&self, names: Vec<String>) -> Vec<Row> {
            assert_eq!(names, ["new.service"]);
            vec![row("new.service", "activating")]
        }

        #[zbus(property)]
        fn version(&self) -> &'static str {
            "252.1"
        }

        #[zbus(property)]
        fn system_state(&self) -> &'static str {
            "running"
        }
    }

    /// As an old systemd has it: without ExecMainCode.
    struct Service;

    #[interface(name = "org.freedesktop.systemd1.Service")]
    impl Service {
        #[zbus(property, name = "Type")]
        fn kind(&self) -> &'static str {
            "notify"
        }

        #[zbus(property)]
        fn result(&self) -> &'static str {
            "success"
        }

        #[zbus(property, name = "NRestarts")]
        fn restarts(&self) -> u32 {
            2
        }

        #[zbus(property)]
        fn exec_main_status(&self) -> i32 {
            0
        }
    }

    struct Timer;

    #[interface(name = "org.freedesktop.systemd1.Timer")]
    impl Timer {
        #[zbus(property, name = "LastTriggerUSec")]
        fn last(&self) -> u64 {
            7_500_000
        }

        #[zbus(property, name = "NextElapseUSecRealtime")]
        fn next(&self) -> u64 {
            9_000_000
        }

        #[zbus(property, name = "NextElapseUSecMonotonic")]
        fn next_since_boot(&self) -> u64 {
            u64::MAX
        }
    }

    async fn pair() -> (Connection, Connection) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let server = Builder::unix_stream(theirs)
            .server(Guid::generate())
            .p2p()
            .serve_at(MANAGER_PATH, Manager)
            .serve_at(unit_path("web-1.service"), Service)
            .serve_at(unit_path("new.service"), Service)
            .serve_at(unit_path("a.timer"), Timer);
        let client = Builder::unix_stream(ours).p2p();
        let (server, client) = tokio::join!(server.build(), client.build());
        (server.expect("a server"), client.expect("a client"))
    }

    async fn changed(
        server: &Connection,
        name: &str,
        interface: &str,
        values: &[(&str, Variant<'_>)],
    ) {
        let values: HashMap<&str, &Variant<'_>> = values.iter().map(|(k, v)| (*k, v)).collect();
        let body = (interface, values, Vec::<String>::new());
        server
            .emit_signal(
                None::<&str>,
                unit_path(name),
                PROPERTIES,
                "PropertiesChanged",
                &body,
            )
            .await
            .expect("sent");
    }

    /// Runs the collector until its values are as wished; the test's own time limit ends it otherwise.
    async fn until(
        host: &mut testing::Host,
        collector: &mut Systemd,
        wished: impl Fn(&std::collections::BTreeMap<String, f64>) -> bool,
    ) {
        while !{
            let _ = host.run_live(collector);
            wished(&host.values())
        } {
            tokio::task::yield_now().await;
        }
    }

    fn state(name: &str, state: &str, kind: &str) -> String {
        format!("node_systemd_unit_state{{name=\"{name}\",state=\"{state}\",type=\"{kind}\"}}")
    }

    #[tokio::test]
    async fn units_are_listed_once_and_then_followed() {
        let test = async {
            let (server, client) = pair().await;
            let mut collector = Systemd::new(&SystemdConfig::default(), Arc::default());
            let shared = collector.shared();
            let followed = tokio::spawn(async move { session(&client, &shared).await });
            collector.follows(followed.abort_handle());
            let mut host = testing::Host::new();
            assert_eq!(host.run_live(&mut collector).ok(), Some(Outcome::NoData));

            let active = state("web-1.service", "active", "notify");
            until(&mut host, &mut collector, |values| {
                values.get(&active) == Some(&1.0)
            })
            .await;
            let values = host.values();
            assert_eq!(values[&state("a.timer", "active", "")], 1.0);
            for (family, seconds) in [
                ("node_systemd_timer_last_trigger_seconds", 7.5),
                ("muster_host_systemd_timer_next_trigger_seconds", 9.0),
            ] {
                assert_eq!(values[&format!("{family}{{name=\"a.timer\"}}")], seconds);
            }
            assert_eq!(
                values[r#"node_systemd_service_restart_total{name="web-1.service"}"#],
                2.0
            );

            let facts = [
                ("Result", Variant::from("signal")),
                ("NRestarts", Variant::from(3u32)),
                ("ExecMainStatus", Variant::from(11i32)),
                ("ExecMainCode", Variant::from(3i32)),
            ];
            changed(&server, "web-1.service", SERVICE, &facts).await;
            changed(
                &server,
                "web-1.service",
                UNIT,
                &[("ActiveState", Variant::from("failed"))],
            )
            .await;
            let failed = state("web-1.service", "failed", "notify");
            until(&mut host, &mut collector, |values| {
                values.get(&failed) == Some(&1.0)
            })
            .await;
            assert_eq!(
                host.values()[r#"node_systemd_service_restart_total{name="web-1.service"}"#],
                3.0
            );
            let events = host.readings().take_events();
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].subject, "web-1.service");
            assert_eq!(
                muster_proto::event::words(&events[0]),
                "web-1.service active → failed (signal, signal 11)"
            );

            let path = OwnedObjectPath::try_from(unit_path("new.service")).expect("a path");
            server
                .emit_signal(
                    None::<&str>,
                    MANAGER_PATH,
                    MANAGER,
                    "UnitNew",
                    &("new.service", path),
                )
                .await
                .expect("sent");
            let new = state("new.service", "activating", "notify");
            until(&mut host, &mut collector, |values| {
                values.get(&new) == Some(&1.0)
            })
            .await;

            // The bus goes: the session ends by itself.
            server.close().await.expect("closed");
            assert!(followed.await.is_ok());
        };
        time::timeout(Duration::from_secs(60), test)
            .await
            .expect("in time");
    }

    #[test]
    fn the_next_time_of_a_timer_is_the_sooner_of_two() {
        const NEVER: u64 = u64::MAX;
        for (wall, boot, next) in [
            (None, None, None),
            (Some(5), None, Some(5)),
            (Some(5), Some(NEVER), Some(5)),
            (Some(0), Some(NEVER), Some(0)),
            (Some(NEVER), None, Some(0)),
        ] {
            assert_eq!(next_of(wall, boot), next, "{wall:?} {boot:?}");
        }
        // Told since boot, and so by two clocks that go on meanwhile.
        let later = next_of(Some(NEVER), Some(u64::MAX / 4)).expect("some time");
        assert!(later > u64::MAX / 4);
    }

    #[test]
    fn names_and_paths_are_each_others_inverse() {
        let table = [
            ("ssh.service", "ssh_2eservice"),
            ("1a@b-c.timer", "_31a_40b_2dc_2etimer"),
            ("a1.slice", "a1_2eslice"),
        ];
        for (name, path) in table {
            let path = format!("{UNIT_PATHS}/{path}");
            assert_eq!(unit_path(name), path);
            assert_eq!(unit_name(&path).as_deref(), Some(name));
        }
        for path in [
            "/org",
            UNIT_PATHS,
            "/org/freedesktop/systemd1/unit/",
            "/org/freedesktop/systemd1/unit/a_2",
            "/org/freedesktop/systemd1/unit/a_zz",
        ] {
            assert_eq!(unit_name(path), None, "{path}");
        }
    }
}
