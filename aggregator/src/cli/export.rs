//! `muster export prometheus-config`: the scrape block with the right names in it.

use std::fmt::Write as _;

/// What the block is made of.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// `https` or `http`.
    pub scheme: String,
    /// `host:port` of the HTTP door.
    pub address: String,
    /// Files for TLS as Prometheus will find them; without TLS they are left out.
    pub ca: String,
    /// Certificate.
    pub cert: String,
    /// Key.
    pub key: String,
    /// Selector of the hosts that this Prometheus scrapes; empty: all.
    pub selector: String,
}

impl Scrape {
    /// Takes an URL apart: `http://127.0.0.1:7446`.
    #[must_use]
    pub fn split_url(url: &str) -> Option<(String, String)> {
        let (scheme, rest) = url.split_once("://")?;
        let address = rest.trim_end_matches('/');
        let known = scheme == "http" || scheme == "https";
        let plain = !address.is_empty() && !address.contains(['/', '?', '#', '"', ' ', '\\']);
        (known && plain).then(|| (scheme.to_owned(), address.to_owned()))
    }

    /// The block, in YAML.
    #[must_use]
    pub fn yaml(&self) -> String {
        let Self {
            scheme, address, ..
        } = self;
        let tls = scheme == "https";
        let query = if self.selector.is_empty() {
            String::new()
        } else {
            format!("?selector={}", percent_encoded(&self.selector))
        };
        let mut out = String::from("scrape_configs:\n");
        // The job is called node so that rules and dashboards made for node_exporter work unchanged.
        let _ = writeln!(out, "  - job_name: node");
        let _ = writeln!(out, "    scheme: {scheme}");
        if tls {
            let _ = writeln!(out, "    tls_config: &muster_tls");
            for (key, file) in [
                ("ca_file", &self.ca),
                ("cert_file", &self.cert),
                ("key_file", &self.key),
            ] {
                let _ = writeln!(out, "      {key}: {}", quoted(file));
            }
        }
        let _ = writeln!(out, "    http_sd_configs:");
        let url = format!("{scheme}://{address}/sd{query}");
        let _ = writeln!(out, "      - url: {}", quoted(&url));
        if tls {
            let _ = writeln!(out, "        tls_config: *muster_tls");
        }
        let _ = writeln!(out, "  - job_name: muster");
        let _ = writeln!(out, "    scheme: {scheme}");
        if tls {
            let _ = writeln!(out, "    tls_config: *muster_tls");
        }
        let _ = writeln!(out, "    static_configs:");
        let _ = writeln!(out, "      - targets: [{}]", quoted(address));
        out
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
