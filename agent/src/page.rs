//! The optional door for Prometheus on this host: `GET /metrics` with the values of the latest round, as
//! node_exporter serves them. Off unless the configuration names an address.
//!
//! Nothing is collected for a scrape: the page is made from the table that the last tick left. One request a
//! connection, few connections, little time, and nothing is read beyond the head of a request. It needs no
//! password, so that only this host reaches it unless the configuration says otherwise.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time,
};

/// Connections at once; more are closed as they come. Two Prometheus servers and a person need three.
const MAX_CONNECTIONS: usize = 8;

/// From the connection to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest head of a request; Prometheus sends about 300 bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// Until an address that is taken is tried again: node_exporter is often stopped only later.
const RETRY: Duration = Duration::from_secs(30);

/// Between attempts to accept after the process had no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Somebody waits for the page; nothing where no round was taken yet.
pub type Asked = oneshot::Sender<Option<Vec<u8>>>;

/// Pages that may be asked for at once.
pub const MAX_ASKED: usize = MAX_CONNECTIONS;

/// Serves until it is dropped. Pages are asked for through `pages`.
pub async fn serve(address: Option<SocketAddr>, pages: mpsc::Sender<Asked>) {
    let Some(address) = address else {
        return std::future::pending().await;
    };
    let listener = bind(address).await;
    tracing::info!(%address, "serves /metrics");
    accept(listener, pages).await;
}

async fn bind(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    let hint = match error.kind() {
                        io::ErrorKind::AddrInUse => "does node_exporter still run? ",
                        _ => "",
                    };
                    tracing::error!(%address, %error, "cannot serve /metrics; {hint}it is tried again every {} s", RETRY.as_secs());
                }
                time::sleep(RETRY).await;
            }
        }
    }
}

async fn accept(listener: TcpListener, pages: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Ends with this future, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::debug!("a connection beyond {MAX_CONNECTIONS} was closed");
            continue;
        };
        let pages = pages.clone();
        connections.spawn(async move {
            // Who is too slow, or gone, gets nothing; nobody else is concerned.
            let _ = time::timeout(PATIENCE, answer(stream, &pages)).await;
            drop(place);
        });
    }
}

/// Reads one request and answers it.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    pages: &mpsc::Sender<Asked>,
) -> io::Result<()> {
    let Some(head) = read_head(&mut stream).await? else {
        return Ok(());
    };
    let asked = Question::parse(&head);
    let reply = match asked {
        Question::Metrics { .. } => match page(pages).await {
            Some(page) => Reply::page(page),
            None => Reply::text("503 Service Unavailable", "no sample was taken yet\n"),
        },
        Question::Other => Reply::text("404 Not Found", "only /metrics is here\n"),
        Question::Method => Reply::text("405 Method Not Allowed", "only GET and HEAD\n"),
        Question::Nonsense => Reply::text("400 Bad Request", "this is no HTTP/1 request\n"),
    };
    let with_body = !matches!(asked, Question::Metrics { head: true });
    stream.write_all(reply.head().as_bytes()).await?;
    if with_body {
        stream.write_all(&reply.body).await?;
    }
    stream.flush().await?;
    stream.shutdown().await
}

/// Everything up to the empty line; nothing if there is none in time or size.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while head.len() <= MAX_HEAD_BYTES {
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            return Ok(None);
        }
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(&chunk[..count]);
        let fresh = &head[from..];
        if fresh.windows(4).any(|end| end == b"\r\n\r\n")
            || fresh.windows(2).any(|end| end == b"\n\n")
        {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

async fn page(pages: &mpsc::Sender<Asked>) -> Option<Vec<u8>> {
    let (reply, page) = oneshot::channel();
    pages.send(reply).await.ok()?;
    page.await.ok()?
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Metrics { head: bool },
    Other,
    Method,
    Nonsense,
}

impl Question {
    fn parse(head: &[u8]) -> Self {
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line.trim_ascii_end().split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Self::Nonsense;
        };
        if !version.starts_with(b"HTTP/1.") {
            return Self::Nonsense;
        }
        let head = match method {
            b"GET" => false,
            b"HEAD" => true,
            _ => return Self::Method,
        };
        match target.split(|byte| *byte == b'?').next() {
            Some(b"/metrics") => Self::Metrics { head },
            _ => Self::Other,
        }
    }
}

struct Reply {
    status: &'static str,
    kind: &'static str,
    body: Vec<u8>,
}

impl Reply {
    fn page(body: Vec<u8>) -> Self {
        Self {
            status: "200 OK",
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body,
        }
    }

    fn text(status: &'static str, text: &str) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            body: text.as_bytes().to_vec(),
        }
    }

    fn head(&self) -> String {
        let Self { status, kind, body } = self;
        let allow = match status.starts_with("405") {
            true => "Allow: GET, HEAD\r\n",
            false => "",
        };
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    /// A source of pages: this one, or none.
    fn pages(page: Option<&'static str>) -> mpsc::Sender<Asked> {
        let (sender, mut asked) = mpsc::channel::<Asked>(MAX_ASKED);
        tokio::spawn(async move {
            while let Some(reply) = asked.recv().await {
                let _ = reply.send(page.map(|page| page.as_bytes().to_vec()));
            }
        });
        sender
    }

    async fn ask(request: &[u8], page: Option<&'static str>) -> String {
        let (mut here, there) = tokio::io::duplex(64 * 1024);
        let pages = pages(page);
        let served = tokio::spawn(async move { answer(there, &pages).await });
        here.write_all(request).await.expect("sent");
        here.shutdown().await.expect("ended");
        let mut text = String::new();
        here.read_to_string(&mut text).await.expect("text");
        let _ = served.await;
        text
    }

    #[tokio::test]
    async fn requests_are_answered() {
        let page = Some("node_load1 1\n");
        for (request, page, status, body) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                page,
                "200",
                "node_load1 1\n",
            ),
            (
                "GET /metrics?x=1 HTTP/1.0\n\n",
                page,
                "200",
                "node_load1 1\n",
            ),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", page, "200", ""),
            (
                "GET /metrics HTTP/1.1\r\n\r\n",
                None,
                "503",
                "no sample was taken yet\n",
            ),
            (
                "GET / HTTP/1.1\r\n\r\n",
                page,
                "404",
                "only /metrics is here\n",
            ),
            (
                "GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n",
                page,
                "404",
                "only /metrics is here\n",
            ),
            (
                "POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
                page,
                "405",
                "only GET and HEAD\n",
            ),
            (
                "GET /metrics HTTP/2.0\r\n\r\n",
                page,
                "400",
                "this is no HTTP/1 request\n",
            ),
            (
                "\x16\x03\x01 nonsense\r\n\r\n",
                page,
                "400",
                "this is no HTTP/1 request\n",
            ),
        ] {
            let answer = ask(request.as_bytes(), page).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:?}: {answer}"
            );
            assert_eq!(
                answer.split_once("\r\n\r\n").map(|(_, body)| body),
                Some(body),
                "{request:?}"
            );
            assert_eq!(answer.contains("Allow:"), status == "405");
        }
        let head = ask(b"HEAD /metrics HTTP/1.1\r\n\r\n", page).await;
        assert!(head.contains("Content-Length: 13\r\n"), "{head}");
    }

    #[tokio::test]
    async fn half_requests_and_floods_get_nothing() {
        assert_eq!(ask(b"GET /metrics HTTP/1.1\r\n", Some("x")).await, "");
        let flood = [
            b"GET / HTTP/1.1\r\nX: ".as_slice(),
            &[b'y'; 2 * MAX_HEAD_BYTES],
        ]
        .concat();
        assert_eq!(ask(&flood, Some("x")).await, "");
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_are_closed_and_do_not_block() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(accept(listener, pages(Some("x 1\n"))));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.expect("connected"));
        }
        let mut one_more = TcpStream::connect(address).await.expect("connected");
        let mut text = String::new();
        let _ = one_more.read_to_string(&mut text).await;
        assert_eq!(text, "", "closed without an answer");
        // One that goes makes room.
        drop(silent.pop());
        let mut served = String::new();
        while served.is_empty() {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await;
            let _ = stream.read_to_string(&mut served).await;
        }
        assert!(served.ends_with("\r\n\r\nx 1\n"), "{served}");
    }
}
