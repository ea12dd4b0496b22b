//! Queues over a real store and real sockets; dates are the test's.

use std::{collections::BTreeSet, sync::Mutex};

use muster_proto::{id::HostId, time::FakeClock};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{
    detect::Severity,
    incident::pages::{Page, Scope},
    notify::{
        http::Client,
        smtp::{Protection, Smtp},
        testing::{Does, Receiver, certificate, channel, webhook},
    },
};

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

struct Lab {
    queue: Queue,
    clock: Arc<FakeClock>,
    receiver: Receiver,
    _folder: tempfile::TempDir,
}

impl Lab {
    async fn new(limit: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let receiver = Receiver::start(None).await;
        let clock = Arc::new(FakeClock::at(START));
        let mut channel = webhook(&receiver);
        channel.limit_per_hour = limit;
        Self {
            queue: Queue {
                channel: Arc::new(channel),
                control: Control::open(folder.path()).expect("a store"),
                clock: Arc::clone(&clock) as Arc<dyn Clock>,
                wake: Arc::default(),
                told: Told::default(),
            },
            clock,
            receiver,
            _folder: folder,
        }
    }

    async fn queue(&self, page: u64, event: &'static str) {
        self.queue_as(page, event, &format!("{page}.{event}")).await;
    }

    async fn queue_as(&self, page: u64, event: &'static str, key: &str) {
        let key = key.to_owned();
        let mut message =
            Message::about(event, key, "lab", format!("page {page}"), self.clock.now());
        message.incident = format!("I-{page}");
        let delivery = message.for_channel("ops", page, event).expect("JSON");
        let all = crate::control::Consequence {
            deliveries: vec![delivery],
            at: self.clock.now(),
            ..crate::control::Consequence::default()
        };
        self.queue.control.conclude(all).await.expect("written");
    }

    /// The page opens now.
    async fn page(&self, number: u64) {
        let page = Page {
            id: number.to_string(),
            scope: Scope::Host(HostId::from_bytes([1; 16])),
            severity: Severity::Warning,
            opened: self.clock.now(),
            grown: self.clock.now(),
            clear: None,
            tellings: 1,
            told_hosts: 1,
            lead: None,
        };
        let mut all = crate::control::Consequence::default();
        all.changes.pages.insert(number, page);
        self.queue.control.conclude(all).await.expect("written");
    }

    /// Sends until nothing is due.
    async fn drain(&self) -> Vec<String> {
        let before = self.receiver.told().len();
        while self.queue.step(&mut 0).await.is_zero() {}
        let told = self.receiver.told().split_off(before);
        told.into_iter().map(|(key, _)| key).collect()
    }
}

#[tokio::test]
async fn beyond_its_limit_a_channel_says_so_once_and_ends_still_come() {
    let lab = Lab::new(2).await;
    for page in 1..=5 {
        lab.queue(page, "firing").await;
    }
    let hour = START.as_millis() / 3_600_000;
    let notice = format!("limited.ops.{hour}");
    assert_eq!(lab.drain().await, ["1.firing", "2.firing", &notice]);
    lab.queue(1, "resolved").await;
    lab.queue(4, "resolved").await;
    lab.queue(6, "firing").await;
    assert_eq!(lab.drain().await, ["1.resolved"], "4 was never heard of");
    let books = lab
        .queue
        .control
        .channel_books("ops", START)
        .await
        .expect("readable");
    assert_eq!((books.delivered, books.held_back, books.waiting), (4, 5, 0));
    lab.clock.advance(HOUR * 2);
    lab.queue(7, "firing").await;
    assert_eq!(lab.drain().await, ["7.firing"]);
}

#[tokio::test]
async fn one_page_goes_in_its_order_and_others_pass_it() {
    let lab = Lab::new(0).await;
    lab.queue(1, "firing").await;
    lab.queue(1, "resolved").await;
    lab.queue(2, "firing").await;
    lab.receiver.plan([Does::Answers(404)]);
    // The refusal is tried again later; what follows it of the same page waits for it.
    assert_eq!(lab.drain().await, ["1.firing"]);
    assert_eq!(lab.drain().await, ["2.firing"]);
    lab.clock.advance(LONGEST_PAUSE);
    assert_eq!(lab.drain().await, ["1.firing", "1.resolved"]);
    let books = lab
        .queue
        .control
        .channel_books("ops", START)
        .await
        .expect("readable");
    assert_eq!((books.delivered, books.waiting), (3, 0));
}

#[tokio::test]
async fn after_three_days_it_is_given_up_and_that_is_seen() {
    let lab = Lab::new(0).await;
    lab.queue(1, "firing").await;
    lab.receiver.plan([Does::Answers(503); 2]);
    lab.drain().await;
    let books = lab
        .queue
        .control
        .channel_books("ops", START)
        .await
        .expect("readable");
    assert_eq!((books.waiting, books.given_up), (1, 0));
    assert!(books.error.contains("answered 503"), "{}", books.error);
    lab.clock.advance(GIVE_UP_AFTER);
    lab.drain().await;
    let books = lab
        .queue
        .control
        .channel_books("ops", START)
        .await
        .expect("readable");
    assert_eq!((books.waiting, books.given_up), (0, 1));
}

#[tokio::test]
async fn what_is_days_old_is_not_sent_but_ends_are() {
    let lab = Lab::new(0).await;
    lab.queue(1, "firing").await;
    assert_eq!(lab.drain().await, ["1.firing"]);
    lab.queue(1, "resolved").await;
    lab.queue(2, "firing").await;
    lab.queue(2, "resolved").await;
    lab.clock.advance(GIVE_UP_AFTER);
    assert_eq!(lab.drain().await, ["1.resolved"]);
    let books = lab
        .queue
        .control
        .channel_books("ops", START)
        .await
        .expect("readable");
    assert_eq!((books.waiting, books.given_up, books.held_back), (0, 1, 1));
}

#[test]
fn pauses_double_within_their_bounds() {
    for (failures, least, most) in [
        (1, 1.6, 2.4),
        (2, 3.2, 4.8),
        (5, 25.6, 38.4),
        (20, 480.0, 720.0),
        (u32::MAX, 480.0, 720.0),
    ] {
        let pause = pause(failures).as_secs_f64();
        assert!((least..=most).contains(&pause), "{failures}: {pause}");
    }
}

#[tokio::test]
async fn tls_is_spoken_to_whom_the_channel_trusts() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tls, root) = certificate(folder.path());
    let receiver = Receiver::start(Some(tls)).await;
    let mut channel = webhook(&receiver);
    let message = Message::about("test", "k".to_owned(), "lab", "a trial".to_owned(), START);
    let refused = send::send(&channel, &message, &To::All, START).await;
    assert!(matches!(refused, Err(SendError::Tls { .. })), "{refused:?}");
    channel.client = Client::new(Some(&root)).expect("a root");
    send::send(&channel, &message, &To::All, START)
        .await
        .expect("trusted");
    assert_eq!(receiver.told().len(), 1);
}

#[tokio::test]
async fn a_redirect_is_a_refusal() {
    let lab = Lab::new(0).await;
    lab.queue(1, "firing").await;
    lab.receiver.plan([Does::Answers(302)]);
    assert_eq!(lab.drain().await.len(), 1);
    assert_eq!(lab.receiver.got().len(), 1, "nobody was asked elsewhere");
}

/// A mail server that says what RFC 5321 and 3207 want of it; the whole conversation, TLS aside.
async fn mail_server(tls: Arc<rustls::ServerConfig>) -> (String, tokio::task::JoinHandle<String>) {
    use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        mut stream: BufReader<S>,
        said: &mut String,
    ) -> Option<S> {
        let mut data = false;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return None;
            }
            said.push_str(&line);
            let word = line.trim_end();
            let reply = match word.split([' ', ':']).next() {
                _ if data && word != "." => continue,
                _ if data => "250 taken\r\n",
                Some("EHLO") => "250-mail.example\r\n250 STARTTLS\r\n",
                Some("STARTTLS") => "220 go on\r\n",
                Some("DATA") => "354 go on\r\n",
                Some("RCPT") if word.contains("nobody") => "550 no such reader\r\n",
                Some("RCPT") if word.contains("grey") => "451 come again\r\n",
                Some("AUTH") => "235 welcome\r\n",
                Some("QUIT") => "221 bye\r\n",
                _ => "250 ok\r\n",
            };
            data = word == "DATA";
            stream.write_all(reply.as_bytes()).await.ok()?;
            stream.flush().await.ok()?;
            match word {
                "STARTTLS" => return Some(stream.into_inner()),
                "QUIT" => return None,
                _ => {}
            }
        }
    }

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let server = tokio::spawn(async move {
        let mut said = String::new();
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream
            .write_all(b"220 mail.example\r\n")
            .await
            .expect("a client");
        if let Some(stream) = serve(BufReader::new(stream), &mut said).await {
            said.push_str("-- TLS\n");
            let acceptor = tokio_rustls::TlsAcceptor::from(tls);
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(BufReader::new(stream), &mut said).await;
            }
        }
        said
    });
    (format!("localhost:{port}"), server)
}

#[tokio::test]
async fn a_mail_is_handed_in_over_tls_and_the_password_only_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let (tls, root) = certificate(folder.path());
    let (server, heard) = mail_server(tls).await;
    let settings = Smtp {
        server,
        protection: Protection::StartTls,
        login: Some(("muster".to_owned(), "secret".to_owned())),
        from: "muster@example.org".to_owned(),
        to: vec![
            "nobody@example.org".to_owned(),
            "grey@example.org".to_owned(),
            "ops@example.org".to_owned(),
        ],
    };
    let mut channel = channel("mail", Kind::Email(settings));
    channel.client = Client::new(Some(&root)).expect("a root");
    let message = Message::about("test", "k.7".to_owned(), "lab", "a trial".to_owned(), START);
    let taken = send::send(&channel, &message, &To::All, START)
        .await
        .expect("taken");
    assert_eq!(taken.later, ["grey@example.org"]);
    assert!(
        taken
            .refused
            .starts_with("not taken for nobody@example.org: ")
            && taken.refused.ends_with("answered 550 no such reader"),
        "{}",
        taken.refused
    );
    let said = heard.await.expect("the server ends with the conversation");
    let (plain, secure) = said.split_once("-- TLS\n").expect("TLS began");
    assert!(
        !plain.contains("AUTH") && !plain.contains("MAIL"),
        "{plain}"
    );
    assert!(
        secure.contains("AUTH PLAIN AG11c3RlcgBzZWNyZXQ="),
        "{secure}"
    );
    assert!(
        secure.contains("\r\nSubject: [muster lab] TEST a trial\r\n"),
        "{secure}"
    );
    assert!(
        secure.contains("\r\nMessage-ID: <k.7@example.org>\r\n"),
        "{secure}"
    );
    assert!(secure.contains("\r\n.\r\n"), "{secure}");
}

/// A relay on this machine that refuses some readers for now.
struct Relay {
    port: u16,
    refuses: Arc<Mutex<BTreeSet<&'static str>>>,
    /// `1.firing to a, b` for each mail that was taken.
    took: Arc<Mutex<Vec<String>>>,
    _server: AbortOnDropHandle<()>,
}

impl Relay {
    async fn start() -> Self {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let refuses = Arc::new(Mutex::new(BTreeSet::<&'static str>::new()));
        let took = Arc::new(Mutex::new(Vec::new()));
        let (refusing, mails) = (Arc::clone(&refuses), Arc::clone(&took));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                stream.write_all(b"220 relay\r\n").await.expect("a client");
                let (mut data, mut to, mut key) = (false, Vec::new(), String::new());
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                        break;
                    }
                    let line = line.trim_end();
                    if let Some(id) = line.strip_prefix("Message-ID: <") {
                        key = id.split('@').next().unwrap_or_default().to_owned();
                    }
                    let reader = line.strip_prefix("RCPT TO:<");
                    let reader = reader.and_then(|reader| reader.split('@').next());
                    let reply = match (line, reader) {
                        _ if data && line != "." => continue,
                        (_, Some(reader)) if refusing.lock().expect("whole").contains(reader) => {
                            "451 come again\r\n"
                        }
                        (_, Some(reader)) => {
                            to.push(reader.to_owned());
                            "250 ok\r\n"
                        }
                        (".", None) => {
                            let mail = format!("{key} to {}", to.join(", "));
                            mails.lock().expect("whole").push(mail);
                            "250 taken\r\n"
                        }
                        ("DATA", None) => "354 go on\r\n",
                        _ => "250 ok\r\n",
                    };
                    data = line == "DATA";
                    stream.write_all(reply.as_bytes()).await.expect("a client");
                    if line == "QUIT" {
                        break;
                    }
                }
            }
        });
        Self {
            port,
            refuses,
            took,
            _server: AbortOnDropHandle::new(server),
        }
    }

    fn refuse(&self, readers: impl IntoIterator<Item = &'static str>) {
        *self.refuses.lock().expect("whole") = readers.into_iter().collect();
    }

    /// What it took since it was asked last.
    fn took(&self) -> Vec<String> {
        std::mem::take(&mut *self.took.lock().expect("whole"))
    }

    /// A lab whose channel mails by it to these.
    async fn lab(&self, to: &[&str]) -> Lab {
        let mut lab = Lab::new(0).await;
        let settings = Smtp {
            server: format!("localhost:{}", self.port),
            protection: Protection::None,
            login: None,
            from: "muster@example.org".to_owned(),
            to: to.iter().map(|to| format!("{to}@example.org")).collect(),
        };
        lab.queue.channel = Arc::new(channel("ops", Kind::Email(settings)));
        lab
    }
}

#[tokio::test]
async fn a_reader_refused_for_now_gets_the_mail_later_and_the_others_once() {
    let relay = Relay::start().await;
    let lab = relay.lab(&["ops", "grey"]).await;
    relay.refuse(["grey"]);
    lab.queue(1, "firing").await;
    lab.drain().await;
    assert_eq!(relay.took(), ["1.firing to ops"]);
    relay.refuse([]);
    lab.drain().await;
    assert_eq!(relay.took(), [""; 0], "it is not asked again at once");
    lab.clock.advance(LONGEST_PAUSE);
    lab.drain().await;
    assert_eq!(relay.took(), ["1.firing to grey"], "with the same key");
    let books = lab.queue.control.channel_books("ops", START).await;
    let books = books.expect("readable");
    assert_eq!((books.waiting, books.delivered), (0, 1));
}

#[tokio::test]
async fn whom_the_server_refuses_keeps_nobody_waiting_and_gets_all_in_order() {
    let relay = Relay::start().await;
    let lab = relay.lab(&["a", "b", "full"]).await;
    relay.refuse(["full"]);
    for (page, event) in [(1, "firing"), (1, "grew"), (2, "firing")] {
        lab.queue(page, event).await;
        lab.drain().await;
        assert_eq!(relay.took(), [format!("{page}.{event} to a, b")]);
    }
    // Another is refused for a moment, and waits for its own only.
    relay.refuse(["b", "full"]);
    lab.queue(1, "steady").await;
    lab.drain().await;
    assert_eq!(relay.took(), ["1.steady to a"]);
    relay.refuse(["full"]);
    lab.queue(1, "resolved").await;
    lab.drain().await;
    assert_eq!(
        relay.took(),
        ["1.resolved to a", "1.steady to b", "1.resolved to b"]
    );
    relay.refuse([]);
    lab.clock.advance(LONGEST_PAUSE);
    lab.drain().await;
    let full = ["1.firing", "1.grew", "2.firing", "1.steady", "1.resolved"];
    assert_eq!(relay.took(), full.map(|key| format!("{key} to full")));
    lab.queue(2, "resolved").await;
    lab.drain().await;
    assert_eq!(relay.took(), ["2.resolved to a, b, full"]);
}

#[tokio::test]
async fn a_reader_who_is_refused_for_days_is_given_up_and_a_page_that_opens_again_does_not_wait() {
    let relay = Relay::start().await;
    let lab = relay.lab(&["a", "full"]).await;
    relay.refuse(["full"]);
    for event in ["firing", "resolved"] {
        lab.queue(1, event).await;
    }
    lab.drain().await;
    assert_eq!(relay.took(), ["1.firing to a", "1.resolved to a"]);
    // It fails anew: what was said of it before then is not of now.
    lab.clock.advance(HOUR);
    lab.page(1).await;
    lab.queue_as(1, "firing", "1.firing.2").await;
    lab.drain().await;
    assert_eq!(relay.took(), ["1.firing.2 to a"]);
    relay.refuse([]);
    lab.clock.advance(LONGEST_PAUSE);
    lab.drain().await;
    assert_eq!(relay.took(), ["1.firing.2 to full"]);
    // Ends for one reader are not tried for ever.
    relay.refuse(["full"]);
    lab.queue_as(1, "resolved", "1.resolved.2").await;
    lab.drain().await;
    lab.clock.advance(GIVE_UP_AFTER);
    relay.refuse([]);
    lab.drain().await;
    assert_eq!(relay.took(), ["1.resolved.2 to a"]);
    let books = lab.queue.control.channel_books("ops", START).await;
    let books = books.expect("readable");
    assert_eq!((books.waiting, books.given_up, books.held_back), (0, 1, 2));
}

#[tokio::test]
async fn a_program_gets_the_message_and_is_ended_when_it_hangs() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let message = Message::about("test", "k.7".to_owned(), "lab", "a trial".to_owned(), START);
    let program = |script: &str| Kind::Exec {
        program: ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec(),
    };
    let write = format!("cat > {}; echo $MUSTER_KEY >> {0}", out.display());
    let mut channel = channel("run", program(&write));
    send::send(&channel, &message, &To::All, START)
        .await
        .expect("it ran");
    let written = std::fs::read_to_string(&out).expect("written");
    assert!(
        written.contains("\"title\":\"a trial\"") && written.ends_with("k.7\n"),
        "{written}"
    );
    channel.kind = program("exit 3");
    let failed = send::send(&channel, &message, &To::All, START).await;
    assert!(failed.is_err_and(|error| error.to_string().contains("exit status: 3")));
    channel.kind = program("exec sleep 600");
    channel.timeout = Duration::from_millis(50);
    let late = send::send(&channel, &message, &To::All, START).await;
    assert!(matches!(late, Err(SendError::Late { .. })), "{late:?}");
}
