//! `muster export prometheus-config`: the scrape block with the right names in it.

use std::{fmt::Write as _, net::IpAddr};

use muster_proto::v1;

use super::client::split_server;

/// The aggregator's door for scrapes and discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// `https` rather than `http`.
    pub tls: bool,
    /// `host:port`.
    pub address: String,
    /// Whether readers present a bearer token.
    pub token: bool,
}

impl Door {
    /// Takes an URL apart: `http://127.0.0.1:7446`. Where TLS is spoken a token is needed, as the
    /// aggregator demands both beyond loopback.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let address = rest.trim_end_matches('/');
        let known = scheme == "http" || scheme == "https";
        let plain = !address.is_empty() && !address.contains(['/', '?', '#', '"', ' ', '\\']);
        let tls = scheme == "https";
        (known && plain).then(|| Self {
            tls,
            address: address.to_owned(),
            token: tls,
        })
    }

    /// As the aggregator says, if it does. One that listens on every address is reached as `server` is.
    #[must_use]
    pub fn of_status(status: &v1::Status, server: &str) -> Option<Self> {
        if status.http_address.is_empty() {
            return None;
        }
        let (host, port) = split_server(&status.http_address);
        let everywhere = host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_unspecified());
        let address = if everywhere {
            let (name, _) = split_server(server);
            if name.contains(':') {
                format!("[{name}]:{port}")
            } else {
                format!("{name}:{port}")
            }
        } else {
            status.http_address.clone()
        };
        Some(Self {
            tls: status.http_tls,
            address,
            token: status.http_token_needed,
        })
    }
}

/// What the block is made of.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// Where and how to read.
    pub door: Door,
    /// Root certificates as Prometheus will find them; without TLS they are left out.
    pub ca: String,
    /// The file with the bearer token as Prometheus will find it; left out where none is needed.
    pub credentials: String,
    /// Selector of the hosts that this Prometheus scrapes; empty: all.
    pub selector: String,
}

impl Scrape {
    /// The block, in YAML.
    #[must_use]
    pub fn yaml(&self) -> String {
        let address = &self.door.address;
        let scheme = if self.door.tls { "https" } else { "http" };
        let query = if self.selector.is_empty() {
            String::new()
        } else {
            format!("?selector={}", percent_encoded(&self.selector))
        };
        let mut out = String::new();
        if self.door.tls {
            let _ = writeln!(out, "# {}: muster export ca > FILE", self.ca);
        }
        if self.door.token {
            let _ = writeln!(
                out,
                "# {}: a copy of the aggregator's [http] token_file",
                self.credentials
            );
        }
        out.push_str("scrape_configs:\n");
        // The job is called node so that rules and dashboards made for node_exporter work unchanged.
        let _ = writeln!(out, "  - job_name: node");
        self.access(&mut out, "    ", scheme);
        let _ = writeln!(out, "    http_sd_configs:");
        let url = format!("{scheme}://{address}/sd{query}");
        let _ = writeln!(out, "      - url: {}", quoted(&url));
        // Discovery does not inherit what the scrape is given.
        self.access(&mut out, "        ", "");
        let _ = writeln!(out, "  - job_name: muster");
        self.access(&mut out, "    ", scheme);
        let _ = writeln!(out, "    static_configs:");
        let _ = writeln!(out, "      - targets: [{}]", quoted(address));
        out
    }

    /// How to be let in, indented; the scheme where it does not stand in an URL.
    fn access(&self, out: &mut String, indent: &str, scheme: &str) {
        if !scheme.is_empty() {
            let _ = writeln!(out, "{indent}scheme: {scheme}");
        }
        if self.door.tls {
            let _ = writeln!(out, "{indent}tls_config:");
            let _ = writeln!(out, "{indent}  ca_file: {}", quoted(&self.ca));
        }
        if self.door.token {
            let _ = writeln!(out, "{indent}authorization:");
            let _ = writeln!(
                out,
                "{indent}  credentials_file: {}",
                quoted(&self.credentials)
            );
        }
    }
}

/// A YAML string in double quotes is a JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Everything but unreserved characters (RFC 3986) as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_on_every_address_is_reached_like_the_operators() {
        for (bound, server, expected) in [
            ("0.0.0.0:7446", "muster.example:7445", "muster.example:7446"),
            ("[::]:7446", "[fd00::1]:7445", "[fd00::1]:7446"),
            ("127.0.0.1:7446", "muster.example", "127.0.0.1:7446"),
            ("m.example:443", "muster.example", "m.example:443"),
        ] {
            let status = v1::Status {
                http_address: bound.to_owned(),
                ..v1::Status::default()
            };
            let door = Door::of_status(&status, server);
            assert_eq!(door.expect("a door").address, expected);
        }
        assert_eq!(Door::of_status(&v1::Status::default(), "x"), None);
    }
}
