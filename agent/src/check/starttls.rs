//! STARTTLS: what is said in clear before TLS begins on a port that speaks another protocol first.
//!
//! SMTP (RFC 3207), IMAP (RFC 9051, 6.2.1), POP3 (RFC 2595) and PostgreSQL's SSLRequest. Nothing of what the server
//! says before TLS is believed beyond that, and a server that says more than it was asked for is refused: what came
//! in clear must not be taken for what came over TLS (CVE-2011-0411).

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{Cause, Finding, net};

/// Most bytes of what a server says before TLS.
const MAX_TALK_BYTES: usize = 16 * 1024;

/// PostgreSQL's request for TLS: its length and a number that is no version of the protocol.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The protocol that is spoken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Port 25 and 587.
    Smtp,
    /// Port 143.
    Imap,
    /// Port 110.
    Pop3,
    /// Port 5432.
    Postgres,
}

impl Protocol {
    /// The words of the configuration.
    pub const WORDS: [(&str, Self); 4] = [
        ("smtp", Self::Smtp),
        ("imap", Self::Imap),
        ("pop3", Self::Pop3),
        ("postgres", Self::Postgres),
    ];
}

/// Asks the server to begin with TLS; when this is done the next byte is the client's first of TLS.
pub(super) async fn upgrade(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    protocol: Protocol,
) -> Result<(), Finding> {
    let mut talk = Talk {
        stream,
        heard: Vec::new(),
        total: 0,
    };
    match protocol {
        Protocol::Smtp => {
            talk.reply("220").await?;
            talk.say(b"EHLO localhost\r\n").await?;
            let offers = talk.reply("250").await?;
            let offered = |line: &String| line.trim().eq_ignore_ascii_case("STARTTLS");
            if !offers.iter().any(offered) {
                return Err(refused("the server does not offer STARTTLS"));
            }
            talk.say(b"STARTTLS\r\n").await?;
            talk.reply("220").await?;
        }
        Protocol::Imap => {
            talk.line_with("* ", "* OK").await?;
            talk.say(b"a STARTTLS\r\n").await?;
            talk.line_with("a ", "a OK").await?;
        }
        Protocol::Pop3 => {
            talk.line_with("", "+OK").await?;
            talk.say(b"STLS\r\n").await?;
            talk.line_with("", "+OK").await?;
        }
        Protocol::Postgres => {
            talk.say(&SSL_REQUEST).await?;
            match talk.byte().await? {
                b'S' => {}
                b'N' => return Err(refused("the server has TLS switched off")),
                _ => return Err(odd("it does not answer as PostgreSQL does")),
            }
        }
    }
    match talk.heard.is_empty() {
        true => Ok(()),
        false => Err(odd("it goes on in clear where TLS has to begin")),
    }
}

fn refused(what: &str) -> Finding {
    Finding::critical(Cause::Tls, format!("before TLS: {what}"))
}

fn odd(what: &str) -> Finding {
    Finding::critical(Cause::Protocol, format!("before TLS: {what}"))
}

/// A conversation in lines.
struct Talk<'a, S> {
    stream: &'a mut S,
    /// What came and was not looked at.
    heard: Vec<u8>,
    total: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<'_, S> {
    async fn say(&mut self, bytes: &[u8]) -> Result<(), Finding> {
        net::send(self.stream, bytes).await
    }

    async fn hear(&mut self) -> Result<(), Finding> {
        let mut chunk = [0; 1024];
        let count = self.stream.read(&mut chunk).await;
        let count = count.map_err(|error| net::failed("before TLS", &error))?;
        self.total += count;
        match count {
            0 => Err(odd("the server ends the connection")),
            _ if self.total > MAX_TALK_BYTES => Err(odd("the server says too much")),
            _ => {
                self.heard.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }

    async fn byte(&mut self) -> Result<u8, Finding> {
        while self.heard.is_empty() {
            self.hear().await?;
        }
        Ok(self.heard.remove(0))
    }

    async fn line(&mut self) -> Result<String, Finding> {
        loop {
            if let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.hear().await?;
        }
    }

    /// Passes over lines until one begins with `mark`, which must be the answer that is `good`.
    async fn line_with(&mut self, mark: &str, good: &str) -> Result<(), Finding> {
        loop {
            let line = self.line().await?;
            if !line.starts_with(mark) {
                continue;
            }
            return match line.get(..good.len()) {
                Some(begin) if begin.eq_ignore_ascii_case(good) => Ok(()),
                _ => Err(refused(&format!("the server answers {line:?}"))),
            };
        }
    }

    /// A reply of SMTP with this code: the texts of its lines. `-` behind the code says that it goes on.
    async fn reply(&mut self, code: &str) -> Result<Vec<String>, Finding> {
        let mut texts = Vec::new();
        loop {
            let line = self.line().await?;
            let Some(rest) = line.strip_prefix(code) else {
                return Err(refused(&format!("the server answers {line:?}, not {code}")));
            };
            let (goes_on, text) = match rest.strip_prefix('-') {
                Some(text) => (true, text),
                None => (false, rest),
            };
            texts.push(text.to_owned());
            if !goes_on {
                return Ok(texts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What the server says, and what it must hear before it goes on.
    type Script = &'static [(&'static str, &'static [u8])];

    async fn run(protocol: Protocol, script: Script) -> Result<(), Finding> {
        let (mut client, mut server) = tokio::io::duplex(64 * 1024);
        let plays = async move {
            for (says, hears) in script {
                // A client that has refused hears no more.
                let _ = server.write_all(says.as_bytes()).await;
                let mut heard = vec![0; hears.len()];
                if server.read_exact(&mut heard).await.is_err() {
                    return;
                }
                assert_eq!(heard, *hears);
            }
        };
        let asked = async move { upgrade(&mut client, protocol).await };
        tokio::join!(asked, plays).0
    }

    #[tokio::test]
    async fn each_protocol_is_asked_in_its_own_words() {
        let smtp: Script = &[
            ("220-mail\r\n220 ESMTP\r\n", b"EHLO localhost\r\n"),
            ("250-mail\r\n250-starttls\r\n250 SIZE\r\n", b"STARTTLS\r\n"),
            ("220 go ahead\r\n", b""),
        ];
        let imap: Script = &[
            ("* OK [CAPABILITY IMAP4rev1] ready\r\n", b"a STARTTLS\r\n"),
            ("* CAPABILITY x\r\na ok begin\r\n", b""),
        ];
        let pop3: Script = &[("+OK ready\r\n", b"STLS\r\n"), ("+OK\r\n", b"")];
        let postgres: Script = &[("", &SSL_REQUEST), ("S", b"")];
        for (protocol, script) in [
            (Protocol::Smtp, smtp),
            (Protocol::Imap, imap),
            (Protocol::Pop3, pop3),
            (Protocol::Postgres, postgres),
        ] {
            assert_eq!(run(protocol, script).await, Ok(()), "{protocol:?}");
        }
    }

    #[tokio::test]
    async fn what_goes_wrong_before_tls_is_named() {
        let cases: [(Protocol, Script, Cause); 8] = [
            (Protocol::Smtp, &[("554 no\r\n", b"")], Cause::Tls),
            (
                Protocol::Smtp,
                &[("220 x\r\n", b"EHLO localhost\r\n"), ("250 SIZE\r\n", b"")],
                Cause::Tls,
            ),
            // Somebody between says more, to be taken for the first bytes under TLS.
            (
                Protocol::Smtp,
                &[
                    ("220 x\r\n", b"EHLO localhost\r\n"),
                    ("250 STARTTLS\r\n", b"STARTTLS\r\n"),
                    ("220 x\r\n250 injected\r\n", b""),
                ],
                Cause::Protocol,
            ),
            (Protocol::Imap, &[("* BYE\r\n", b"")], Cause::Tls),
            (Protocol::Pop3, &[("-ERR\r\n", b"")], Cause::Tls),
            (Protocol::Postgres, &[("N", b"")], Cause::Tls),
            (Protocol::Postgres, &[("H", b"")], Cause::Protocol),
            (Protocol::Imap, &[("", b"")], Cause::Protocol),
        ];
        for (protocol, script, cause) in cases {
            let found = run(protocol, script).await;
            assert_eq!(
                found.map_err(|finding| finding.cause),
                Err(cause),
                "{script:?}"
            );
        }
        let endless: &'static str = Box::leak("* x\r\n".repeat(10_000).into_boxed_str());
        let script: Script = Box::leak(Box::new([(endless, &b""[..])]));
        let found = run(Protocol::Imap, script).await;
        assert!(found.is_err());
    }
}
