//! Which text format and which encoding an answer takes, from `Accept` and `Accept-Encoding`.
//!
//! Follows RFC 9110 §12: q-values, the most specific range decides, `q=0` refuses. Unlike a strict server
//! this one never answers 406: a scraper that asks for nothing we have is given the text format 0.0.4, as
//! Prometheus' own clients do. Header text can be anything; what cannot be understood is passed over.

use axum::http::{HeaderMap, HeaderName, header};

/// The exposition formats that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4: the default.
    Text,
    /// OpenMetrics text format 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Value of `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Quality in thousandths, 0 to 1000, so that comparison is exact.
type Quality = u16;

/// The format the asker likes best; [`Format::Text`] when it likes several as much, or none.
#[must_use]
pub fn format(headers: &HeaderMap) -> Format {
    let text = media_quality(headers, "text", "plain", "0.0.4");
    let open = media_quality(headers, "application", "openmetrics-text", "1.0.0");
    if open > text {
        Format::OpenMetrics
    } else {
        Format::Text
    }
}

/// Whether the asker takes gzip and does not prefer the plain bytes.
#[must_use]
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for (coding, mut parameters) in items(headers, header::ACCEPT_ENCODING) {
        let slot = match coding.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => &mut gzip,
            "identity" => &mut identity,
            "*" => &mut any,
            _ => continue,
        };
        *slot = Some(parameters.find_map(quality).unwrap_or(1000));
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// Quality the asker gives to one media type, by the most specific range that covers it; 0 if none does.
fn media_quality(headers: &HeaderMap, kind: &str, subtype: &str, version: &str) -> Quality {
    let mut best = (0, 0);
    for (range, parameters) in items(headers, header::ACCEPT) {
        let Some((range_kind, range_subtype)) = range.split_once('/') else {
            continue;
        };
        let mut specific = match (range_kind.trim(), range_subtype.trim()) {
            ("*", "*") => 1,
            (k, "*") if k.eq_ignore_ascii_case(kind) => 2,
            (k, s) if k.eq_ignore_ascii_case(kind) && s.eq_ignore_ascii_case(subtype) => 3,
            _ => continue,
        };
        let mut weight = 1000;
        let mut other_version = false;
        for (name, value) in parameters {
            if let Some(q) = quality((name, value)) {
                weight = q;
            } else if name.eq_ignore_ascii_case("version") {
                other_version = value != version;
                specific = 4;
            }
        }
        if !other_version && (specific, weight) > best {
            best = (specific, weight);
        }
    }
    best.1
}

/// The comma-separated items of all headers of this name, each with its parameters.
fn items(
    headers: &HeaderMap,
    name: HeaderName,
) -> impl Iterator<Item = (&str, impl Iterator<Item = (&str, &str)>)> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|item| {
            let mut parts = item.split(';');
            let first = parts.next().unwrap_or_default().trim();
            let parameters = parts.filter_map(|part| {
                let (name, value) = part.split_once('=')?;
                Some((name.trim(), value.trim().trim_matches('"')))
            });
            (first, parameters)
        })
}

/// The quality in a parameter `q=0.75`; what is no number from 0 to 1 counts as 0.
fn quality((name, value): (&str, &str)) -> Option<Quality> {
    name.eq_ignore_ascii_case("q").then(|| {
        let number = value.parse::<f32>().unwrap_or(0.0);
        let legal = (0.0..=1.0).contains(&number);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to 1000"
        )]
        let thousandths = if legal {
            (number * 1000.0) as Quality
        } else {
            0
        };
        thousandths
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn with(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn formats() {
        use Format::{OpenMetrics, Text};
        for (accept, expected) in [
            (&[][..], Text),
            (&[""], Text),
            (&["*/*"], Text),
            (
                &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
                Text,
            ),
            (&["text/plain"], Text),
            (&["application/openmetrics-text"], OpenMetrics),
            (
                &["application/openmetrics-text; version=1.0.0; charset=utf-8"],
                OpenMetrics,
            ),
            (
                &["Application/OpenMetrics-Text;Version=\"1.0.0\""],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;version=2.0.0"], Text),
            (&["application/*"], OpenMetrics),
            (
                &["application/openmetrics-text;q=0.5,text/plain;q=0.5"],
                Text,
            ),
            (
                &["application/openmetrics-text;q=0.5,text/plain;q=0.6"],
                Text,
            ),
            (
                &["application/openmetrics-text;q=0.6", "text/plain;q=0.5"],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;q=0,text/plain;q=0"], Text),
            (&["text/plain;q=0,*/*"], OpenMetrics),
            (
                &["text/plain;q=nonsense,application/openmetrics-text;q=0.1"],
                OpenMetrics,
            ),
            (&["application/json"], Text),
            (&[";;;,/,=,q=1"], Text),
            // Prometheus 2.42
            (
                &[
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ],
                OpenMetrics,
            ),
            // Prometheus 3
            (
                &[
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1",
                ],
                OpenMetrics,
            ),
            // Prometheus with scrape_protocols: [PrometheusText1.0.0, PrometheusText0.0.4]
            (
                &["text/plain;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.2"],
                Text,
            ),
        ] {
            assert_eq!(
                format(&with(header::ACCEPT, accept)),
                expected,
                "{accept:?}"
            );
        }
    }

    #[test]
    fn encodings() {
        for (accept, gzip) in [
            (&[][..], false),
            (&[""], false),
            (&["gzip"], true),
            (&["GZIP;q=0.1"], true),
            (&["x-gzip"], true),
            (&["gzip, deflate, br"], true),
            (&["deflate", "gzip"], true),
            (&["gzip;q=0"], false),
            (&["*"], true),
            (&["*;q=0"], false),
            (&["gzip;q=0,*"], false),
            (&["identity;q=1,gzip;q=0.5"], false),
            (&["identity;q=0.5,gzip;q=0.5"], true),
            (&["br"], false),
            (&["gzip;q=2"], false),
        ] {
            let headers = with(header::ACCEPT_ENCODING, accept);
            assert_eq!(accepts_gzip(&headers), gzip, "{accept:?}");
        }
    }
}
