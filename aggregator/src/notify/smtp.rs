//! A small SMTP client (RFC 5321): one mail, one connection. TLS from the first byte, by STARTTLS, or none; AUTH PLAIN
//! only over TLS. Mails are plain text in base64, so that no line is too long and no byte is changed on the way, and
//! carry the message's key as Message-ID: a mail that comes twice is known by it.

use std::{fmt::Write as _, time::Duration};

use muster_proto::time::Timestamp;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};

use super::{
    http::{Client, SendError, connect},
    message::Message,
    send::Taken,
};

/// Longest line of an answer (RFC 5321, 4.5.3.1.5), and lines of one answer that are read.
const MAX_LINE: u64 = 2048;
const MAX_LINES: usize = 100;

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// TLS from the first byte (port 465).
    Tls,
    /// STARTTLS, and nothing without it (port 587 or 25).
    StartTls,
    /// None: for a relay on this machine.
    None,
}

/// Where mails are handed in, and from whom to whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Smtp {
    /// `host:port`.
    pub server: String,
    /// How it is protected.
    pub protection: Protection,
    /// Name and password.
    pub login: Option<(String, String)>,
    /// Address of the sender.
    pub from: String,
    /// Addresses of the readers.
    pub to: Vec<String>,
}

impl std::fmt::Debug for Smtp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Smtp({}, {} to {:?})", self.server, self.from, self.to)
    }
}

/// Sends a mail to these readers. Nobody left among them is no error.
///
/// # Errors
/// Whatever stood in the way; when the server takes it for some readers only, it is sent to these, and the others are
/// named.
pub async fn send(
    client: &Client,
    smtp: &Smtp,
    readers: &[&str],
    mail: &str,
    timeout: Duration,
) -> Result<Taken, SendError> {
    if readers.is_empty() {
        return Ok(Taken::default());
    }
    let late = || SendError::Late {
        to: smtp.server.clone(),
        after: timeout,
    };
    let sent = tokio::time::timeout(timeout, deliver(client, smtp, readers, mail)).await;
    sent.map_err(|_| late())?
}

async fn deliver(
    client: &Client,
    smtp: &Smtp,
    readers: &[&str],
    mail: &str,
) -> Result<Taken, SendError> {
    let stream = connect(&smtp.server).await?;
    let (host, _) = smtp.server.rsplit_once(':').unwrap_or((&smtp.server, ""));
    match smtp.protection {
        Protection::None => {
            let mut talk = Talk::new(stream, smtp);
            talk.expect(2).await?;
            talk.hello().await?;
            talk.mail(smtp, readers, mail).await
        }
        Protection::Tls => {
            let stream = client.secure(stream, host, &smtp.server).await?;
            let mut talk = Talk::new(stream, smtp);
            talk.expect(2).await?;
            talk.hello().await?;
            talk.log_in(smtp).await?;
            talk.mail(smtp, readers, mail).await
        }
        Protection::StartTls => {
            let mut talk = Talk::new(stream, smtp);
            talk.expect(2).await?;
            talk.hello().await?;
            talk.say("STARTTLS", 2).await?;
            // What came in before TLS began could have been said by anybody.
            if !talk.stream.buffer().is_empty() {
                return Err(talk.broken("something was said between STARTTLS and TLS"));
            }
            let stream = talk.stream.into_inner();
            let stream = client.secure(stream, host, &smtp.server).await?;
            let mut talk = Talk::new(stream, smtp);
            talk.hello().await?;
            talk.log_in(smtp).await?;
            talk.mail(smtp, readers, mail).await
        }
    }
}

struct Talk<S> {
    stream: BufReader<S>,
    server: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    fn new(stream: S, smtp: &Smtp) -> Self {
        Self {
            stream: BufReader::new(stream),
            server: smtp.server.clone(),
        }
    }

    fn broken(&self, why: impl std::fmt::Display) -> SendError {
        SendError::Broken {
            to: self.server.clone(),
            why: why.to_string(),
        }
    }

    /// Reads an answer, which must begin with this digit.
    async fn expect(&mut self, digit: u8) -> Result<(), SendError> {
        let mut said = String::new();
        for _ in 0..MAX_LINES {
            let mut line = Vec::new();
            let mut bounded = (&mut self.stream).take(MAX_LINE);
            let read = bounded.read_until(b'\n', &mut line).await;
            read.map_err(|error| self.broken(error))?;
            if !line.ends_with(b"\n") {
                return Err(self.broken("it closed the connection or says too much at once"));
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            let (code, rest) = line.split_at_checked(3).unwrap_or((line, ""));
            if code.len() != 3 || !code.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(self.broken("it speaks no SMTP"));
            }
            said = format!("{code}{}", rest.replace(|c: char| c.is_control(), " "));
            if !rest.starts_with('-') {
                break;
            }
        }
        if said.as_bytes().first() == Some(&(b'0' + digit)) {
            return Ok(());
        }
        Err(SendError::Refused {
            to: self.server.clone(),
            answer: said.chars().take(300).collect(),
            for_good: false,
            after: None,
        })
    }

    async fn say(&mut self, line: &str, digit: u8) -> Result<(), SendError> {
        self.write(format!("{line}\r\n").as_bytes()).await?;
        self.expect(digit).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        let stream = self.stream.get_mut();
        let written = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        written.await.map_err(|error| self.broken(error))
    }

    async fn hello(&mut self) -> Result<(), SendError> {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let name = if !name.is_empty() && name.chars().all(fits) {
            name
        } else {
            "localhost".to_owned()
        };
        self.say(&format!("EHLO {name}"), 2).await
    }

    async fn log_in(&mut self, smtp: &Smtp) -> Result<(), SendError> {
        let Some((name, password)) = &smtp.login else {
            return Ok(());
        };
        let secret = base64(format!("\0{name}\0{password}").as_bytes());
        self.say(&format!("AUTH PLAIN {secret}"), 2).await
    }

    async fn mail(
        &mut self,
        smtp: &Smtp,
        readers: &[&str],
        mail: &str,
    ) -> Result<Taken, SendError> {
        self.say(&format!("MAIL FROM:<{}>", smtp.from), 2).await?;
        let (mut any, mut last, mut taken) = (false, None, Taken::default());
        let mut refused = Vec::new();
        for to in readers {
            match self.say(&format!("RCPT TO:<{to}>"), 2).await {
                Ok(()) => any = true,
                Err(error @ SendError::Refused { .. }) => {
                    tracing::warn!(server = self.server, to, %error, "a reader was refused");
                    // Greylisting and full mailboxes pass; 5xx does not (RFC 5321, 4.2.1).
                    match &error {
                        SendError::Refused { answer, .. } if answer.starts_with('5') => {
                            refused.push(format!("{to}: {error}"));
                        }
                        _ => taken.later.push((*to).to_owned()),
                    }
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let (false, Some(error)) = (any, last) {
            return Err(error);
        }
        if !refused.is_empty() {
            taken.refused = format!("not taken for {}", refused.join("; "));
        }
        self.say("DATA", 3).await?;
        let mut data = String::with_capacity(mail.len() + 64);
        for line in mail.lines() {
            // A line of one dot would end the mail (RFC 5321, 4.5.2).
            if line.starts_with('.') {
                data.push('.');
            }
            data.push_str(line);
            data.push_str("\r\n");
        }
        data.push('.');
        self.say(&data, 2).await?;
        // Taken is taken, whatever it answers to this.
        let _ = self.say("QUIT", 2).await;
        Ok(taken)
    }
}

/// A mail as it is sent: headers and body.
#[must_use]
pub fn mail(smtp: &Smtp, message: &Message, subject: &str, text: &str, now: Timestamp) -> String {
    let domain = smtp
        .from
        .rsplit_once('@')
        .map_or("localhost", |(_, domain)| domain);
    let mut out = String::new();
    for (name, value) in [
        ("Date", date(now)),
        ("From", smtp.from.clone()),
        ("To", smtp.to.join(", ")),
        ("Subject", header(subject)),
        ("Message-ID", format!("<{}@{domain}>", message.key)),
        // Puts all mails of an incident into one thread.
        ("References", format!("<{}@{domain}>", message.id)),
        ("Auto-Submitted", "auto-generated".to_owned()),
        ("X-Muster-Incident", message.incident.clone()),
        ("X-Muster-Severity", message.severity.clone()),
        ("MIME-Version", "1.0".to_owned()),
        ("Content-Type", "text/plain; charset=utf-8".to_owned()),
        ("Content-Transfer-Encoding", "base64".to_owned()),
    ] {
        let _ = writeln!(out, "{name}: {value}");
    }
    out.push('\n');
    let body = base64(text.replace('\n', "\r\n").as_bytes());
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(76));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out
}

/// A header's text; what is not plain ASCII, or too long for a line, as encoded words (RFC 2047).
fn header(text: &str) -> String {
    let text = text.replace(|c: char| c.is_control(), " ");
    if text.is_ascii() && text.len() <= 900 && !text.contains("=?") {
        return text;
    }
    let mut words: Vec<String> = vec![String::new()];
    for c in text.chars() {
        // 45 bytes are 60 characters in base64; a word has at most 75 with its frame.
        if words
            .last()
            .is_some_and(|word| word.len() + c.len_utf8() > 45)
        {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    let words = words
        .iter()
        .map(|word| format!("=?utf-8?B?{}?=", base64(word.as_bytes())));
    words.collect::<Vec<_>>().join("\n ")
}

fn date(now: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(now.as_millis()).map_or_else(
        |_| String::new(),
        |at| at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
    )
}

/// Base64 (RFC 4648).
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let of = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for place in 0..4 {
            if place > chunk.len() {
                out.push('=');
            } else {
                let index = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap_or(0);
                out.push(char::from(LETTERS[index]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn a_mail_has_its_headers_and_no_line_is_forged() {
        let smtp = Smtp {
            server: "mail.example:587".to_owned(),
            protection: Protection::StartTls,
            login: None,
            from: "muster@example.org".to_owned(),
            to: vec!["ops@example.org".to_owned()],
        };
        // 2026-11-21T14:13:00Z.
        let now = Timestamp::from_millis(1_795_270_380_000);
        let message = Message::about("test", "k.1".to_owned(), "prod", String::new(), now);
        let mail = mail(
            &smtp,
            &message,
            "a\r\nBcc: all@example.org – x",
            "one\n.\ntwo\n",
            now,
        );
        let (head, body) = mail.split_once("\n\n").expect("an empty line");
        assert!(
            head.starts_with("Date: Sat, 21 Nov 2026 14:13:00 +0000\nFrom: muster@example.org\n")
        );
        assert!(head.contains("\nSubject: =?utf-8?B?"), "{head}");
        assert!(!head.contains("\nBcc"), "{head}");
        assert!(head.contains("\nMessage-ID: <k.1@example.org>\n"));
        assert_eq!(body, format!("{}\n", base64(b"one\r\n.\r\ntwo\r\n")));
    }
}
