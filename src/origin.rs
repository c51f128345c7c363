//! Origins of pages (RFC 6454), and the patterns that allow them.
//!
//! Owns how an origin is read and compared: schemes and hosts without case, `ws` as `http` and
//! `wss` as `https`, default ports, without any path. Patterns are parsed once. Promises bounded
//! memory whatever clients send. Never looks at a request: that is `http::origin`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Most characters of an origin in a log line or an answer.
const SHOWN_CHARS_MAX: usize = 100;

/// The origin that a client names in the header `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `null`: a page in a sandbox, or one whose origin the browser hides.
    Opaque,
    /// `file://`: a page from a file.
    File,
    /// A page of a host.
    Host(HostOrigin),
}

/// The origin of a page that came from a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostOrigin {
    /// In lower case; `None` for a client that names the host alone.
    scheme: Option<String>,
    authority: Authority,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    /// In lower case; an IPv6 address in brackets and in its canonical form.
    host: String,
    port: Option<u16>,
}

impl Authority {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), port)
        } else {
            let (host, _) = text.split_once(':').unwrap_or((text, ""));
            if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
                return None;
            }
            (host.to_ascii_lowercase(), &text[host.len()..])
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { host, port })
    }
}

/// A scheme in its comparable form.
fn normal_scheme(scheme: &str) -> Option<String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(valid) {
        return None;
    }
    Some(match scheme.to_ascii_lowercase().as_str() {
        "ws" => "http".to_owned(),
        "wss" => "https".to_owned(),
        other => other.to_owned(),
    })
}

fn default_port(scheme: Option<&str>) -> Option<u16> {
    match scheme {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    }
}

/// Whether two ports are one, where `None` is the default port of an unknown scheme.
fn same_port(one: Option<u16>, other: Option<u16>) -> bool {
    one == other || matches!((one, other), (None, Some(80 | 443)) | (Some(80 | 443), None))
}

/// The part before the path, the query and the fragment.
fn without_path(text: &str) -> &str {
    text.split(['/', '?', '#']).next().unwrap_or_default()
}

impl Origin {
    /// Reads what a client sent, with or without a scheme, a path or a trailing slash. `None` if it
    /// is no origin.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("null") {
            return Some(Self::Opaque);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(normal_scheme(scheme)?), rest),
            None => (None, text),
        };
        if scheme.as_deref() == Some("file") {
            return Some(Self::File);
        }
        let authority = Authority::parse(without_path(rest))?;
        Some(Self::Host(HostOrigin { scheme, authority }))
    }

    /// Whether the page came from this host, named as in the header `Host`. The schemes are not
    /// compared: a proxy may have ended TLS.
    #[must_use]
    pub fn is_of_host(&self, host: &str) -> bool {
        let (Self::Host(origin), Some(host)) = (self, Authority::parse(host)) else { return false };
        let is_web = matches!(origin.scheme.as_deref(), None | Some("http" | "https"));
        let port = host.port.or_else(|| default_port(origin.scheme.as_deref()));
        // A bare host is no browser's, which always names a scheme, and says nothing of a port.
        let is_bare = origin.scheme.is_none() && origin.authority.port.is_none();
        is_web && origin.authority.host == host.host && (is_bare || same_port(origin.port(), port))
    }

    /// Whether the page came from a server on the machine that the browser runs on.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let Self::Host(origin) = self else { return false };
        // Without a scheme it is no browser's, and no page's.
        let is_web = matches!(origin.scheme.as_deref(), None | Some("http" | "https"));
        is_web && is_loopback_host(&origin.authority.host)
    }
}

impl HostOrigin {
    fn port(&self) -> Option<u16> {
        self.authority.port.or_else(|| default_port(self.scheme.as_deref()))
    }
}

/// Whether a host is this machine by its name: `localhost`, a name below it, or a loopback address.
/// Browsers resolve names below `localhost` themselves and nobody can register one (RFC 6761,
/// section 6.3), so DNS rebinding cannot use them.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_named = host.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"));
    is_named || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// One value of `--allow-origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    Opaque,
    File,
    Host { scheme: Option<String>, subdomains: bool, host: String, port: PortPattern },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortPattern {
    Any,
    Is(Option<u16>),
}

/// A value of `--allow-origin` that allows nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no origin: write for example https://example.com, https://*.example.com, \
     http://localhost:*, example.com, null, file:// or *"
)]
pub struct OriginPatternError {
    text: String,
}

impl FromStr for OriginPattern {
    type Err = OriginPatternError;

    fn from_str(text: &str) -> Result<Self, OriginPatternError> {
        let text = text.trim();
        match Kind::parse(text) {
            Some(kind) => Ok(Self { text: text.to_owned(), kind }),
            None => Err(OriginPatternError { text: shown(text) }),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(normal_scheme(scheme)?), rest),
            None => (None, text),
        };
        let authority = without_path(rest);
        let (authority, port_any) = match authority.strip_suffix(":*") {
            Some(authority) => (authority, true),
            None => (authority, false),
        };
        let (authority, subdomains) = match authority.strip_prefix("*.") {
            Some(authority) => (authority, true),
            None => (authority, false),
        };
        if !port_any && !subdomains {
            match Origin::parse(text)? {
                Origin::Opaque => return Some(Self::Opaque),
                Origin::File => return Some(Self::File),
                Origin::Host(_) => {}
            }
        }
        let Authority { host, port } = Authority::parse(authority)?;
        if port_any && (port.is_some() || authority.ends_with(':')) {
            return None;
        }
        let port = match port_any {
            true => PortPattern::Any,
            false => PortPattern::Is(port.or_else(|| default_port(scheme.as_deref()))),
        };
        Some(Self::Host { scheme, subdomains, host, port })
    }

    fn matches(&self, origin: &Origin) -> bool {
        match (self, origin) {
            (Self::Any, _) | (Self::Opaque, Origin::Opaque) | (Self::File, Origin::File) => true,
            (Self::Host { scheme, subdomains, host, port }, Origin::Host(origin)) => {
                let scheme_fits = match (scheme, &origin.scheme) {
                    (Some(pattern), Some(origin)) => pattern == origin,
                    (None, Some(origin)) => matches!(origin.as_str(), "http" | "https"),
                    (_, None) => true,
                };
                let name = &origin.authority.host;
                let host_fits = match subdomains {
                    false => name == host,
                    true => {
                        name.strip_suffix(host.as_str()).is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
                    }
                };
                let port_fits = match port {
                    PortPattern::Any => true,
                    PortPattern::Is(port) => same_port(*port, origin.port()),
                };
                scheme_fits && host_fits && port_fits
            }
            _ => false,
        }
    }
}

/// Every value of `--allow-origin`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedOrigins(Vec<OriginPattern>);

impl FromIterator<OriginPattern> for AllowedOrigins {
    fn from_iter<I: IntoIterator<Item = OriginPattern>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl AllowedOrigins {
    /// Parses each value.
    ///
    /// # Errors
    /// The first value that is no pattern.
    pub fn parse<S: AsRef<str>>(values: &[S]) -> Result<Self, OriginPatternError> {
        values.iter().map(|value| value.as_ref().parse()).collect()
    }

    /// Whether every origin is allowed, even something that is no origin.
    #[must_use]
    pub fn allows_any(&self) -> bool {
        self.0.iter().any(|pattern| pattern.kind == Kind::Any)
    }

    /// Whether a pattern matches.
    #[must_use]
    pub fn allows(&self, origin: &Origin) -> bool {
        self.0.iter().any(|pattern| pattern.kind.matches(origin))
    }

    /// Whether a pattern that has a host matches. `*` has none, nor have `null` and `file://`,
    /// which any page or any file can be.
    #[must_use]
    pub fn names(&self, origin: &Origin) -> bool {
        let mut named = self.0.iter().filter(|pattern| matches!(pattern.kind, Kind::Host { .. }));
        named.any(|pattern| pattern.kind.matches(origin))
    }
}

/// Text from a client, safe for a log or an answer: without control characters and cut off.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(SHOWN_CHARS_MAX).flat_map(char::escape_default).collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(patterns: &[&str]) -> AllowedOrigins {
        AllowedOrigins::parse(patterns).unwrap()
    }

    fn allows(patterns: &[&str], origin: &str) -> bool {
        Origin::parse(origin).is_some_and(|origin| allowed(patterns).allows(&origin))
    }

    #[test]
    fn an_origin_is_compared_without_case_path_and_default_port() {
        for same in [
            "https://a.com",
            "HTTPS://A.com",
            "https://a.com:443",
            "https://a.com/",
            "https://a.com/chat?x#y",
            "wss://a.com/ws",
            "wss://a.com:443",
            "https://a.com:",
            "https://a.com:0443",
        ] {
            assert!(Origin::parse(same).unwrap().is_of_host("a.com"), "{same}");
            assert!(Origin::parse(same).unwrap().is_of_host("A.COM:443"), "{same}");
            assert!(allows(&["https://a.com"], same) && allows(&["wss://a.com:443/"], same), "{same}");
        }
        for (origin, host) in [
            ("http://a.com", "a.com"),
            ("http://a.com", "a.com:80"),
            ("ws://a.com:3000", "a.com:3000"),
            ("a.com", "a.com"),
            ("a.com", "a.com:443"),
            ("a.com:8080/", "a.com:8080"),
            ("http://[0:0::1]:3000", "[::1]:3000"),
        ] {
            assert!(Origin::parse(origin).unwrap().is_of_host(host), "{origin} {host}");
        }
        for (origin, host) in [
            ("http://a.com", "a.com:443"),
            ("https://a.com", "a.com:80"),
            ("http://a.com:81", "a.com"),
            ("http://a.com", "b.com"),
            ("http://a.com.b.com", "a.com"),
            ("http://xa.com", "a.com"),
            ("a.com:8080", "a.com"),
            ("app://a.com", "a.com"),
            ("null", "null"),
            ("file://a.com", "a.com"),
            ("http://a.com", ""),
            ("http://a.com", "a.com@b.com"),
        ] {
            assert!(!Origin::parse(origin).unwrap().is_of_host(host), "{origin} {host}");
        }
    }

    #[test]
    fn only_an_origin_is_read() {
        assert_eq!(Origin::parse("null"), Some(Origin::Opaque));
        assert_eq!((Origin::parse("file://"), Origin::parse("file:///a/b")), (Some(Origin::File), Some(Origin::File)));
        for wrong in [
            "",
            " ",
            "/",
            "http://",
            "http:///a",
            "://a.com",
            "http://a.com http://b.com",
            "http://a.com:x",
            "http://a.com:65536",
            "http://a.com:+80",
            "http://user@a.com",
            "http://a:b@a.com",
            "http://a.com\\b",
            "http://é.com",
            "http://[::1",
            "http://[::g]",
            "http://[::1]x",
            "http://::1",
            "1http://a.com",
            "http://*.a.com",
            "about:blank",
        ] {
            assert_eq!(Origin::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pages_of_this_machine_are_known_by_their_host() {
        for own in [
            "http://localhost:5173",
            "https://LOCALHOST",
            "http://127.0.0.1:8000",
            "http://127.9.9.9",
            "http://[::1]:1",
            "http://[::ffff:127.0.0.1]",
            "http://app.localhost:5173",
            "localhost:3000",
            "localhost",
        ] {
            assert!(Origin::parse(own).unwrap().is_loopback(), "{own}");
        }
        for other in [
            "http://localhost.a.com",
            "http://127.0.0.1.a.com",
            "http://10.0.0.1",
            "http://[::2]",
            "http://xlocalhost",
            "capacitor://localhost",
            "null",
            "file://",
        ] {
            assert!(!Origin::parse(other).unwrap().is_loopback(), "{other}");
        }
    }

    #[test]
    fn a_pattern_takes_whatever_a_client_sends() {
        for (pattern, good, bad) in [
            (
                "https://b.com",
                &["https://b.com", "HTTPS://B.com:443/x", "b.com"][..],
                &["http://b.com", "https://xb.com"][..],
            ),
            (
                "https://*.c.com",
                &["https://x.c.com", "https://x.y.c.com"],
                &["https://c.com", "https://xc.com", "https://.c.com", "https://x.c.com:444"],
            ),
            (
                "http://localhost:*",
                &["http://localhost", "http://localhost:5173"],
                &["https://localhost", "http://localhost.b.com"],
            ),
            ("http://localhost:8080/", &["http://localhost:8080"], &["http://localhost"]),
            (
                "b.com",
                &["http://b.com", "https://b.com", "wss://b.com:443", "b.com"],
                &["http://b.com:81", "app://b.com"],
            ),
            ("b.com:81", &["http://b.com:81", "b.com:81"], &["http://b.com"]),
            ("*.b.com:*", &["http://x.b.com:1", "https://x.b.com"], &["http://b.com"]),
            ("null", &["null"], &["file://", "http://null"]),
            ("file://", &["file://", "file:///x.html"], &["null"]),
            (
                "chrome-extension://abc",
                &["chrome-extension://abc", "chrome-extension://abc/"],
                &["http://abc", "chrome-extension://abd"],
            ),
            ("http://[::1]:*", &["http://[::1]:3000"], &["http://[::2]:3000"]),
            ("*", &["null", "file://", "http://a.com:1", "x.y"], &[]),
        ] {
            for good in good {
                assert!(allows(&[pattern], good), "{pattern} {good}");
            }
            for bad in bad {
                assert!(!allows(&[pattern], bad), "{pattern} {bad}");
            }
        }
        assert!(!allows(&[], "http://a.com"));
    }

    #[test]
    fn a_pattern_is_one_origin() {
        for wrong in [
            "",
            "https://",
            "https://*",
            "https://a.*.com",
            "https://a, https://b",
            "https://user@a.com",
            "http://localhost:80*",
            "http://localhost::*",
            "http://localhost:1:*",
            "*.",
            "**",
            "*://a.com",
            "a b",
        ] {
            let error = wrong.parse::<OriginPattern>().unwrap_err().to_string();
            assert!(error.contains("is no origin: write for example https://example.com"), "{wrong}: {error}");
        }
        assert_eq!(" https://A.com/ ".parse::<OriginPattern>().unwrap().to_string(), "https://A.com/");
    }

    #[test]
    fn only_a_pattern_with_a_host_names_an_origin() {
        let origin = |text| Origin::parse(text).unwrap();
        let patterns = allowed(&["*", "null", "file://", "http://b.com"]);
        assert!(patterns.allows_any() && !allowed(&["http://b.com"]).allows_any());
        assert!(patterns.names(&origin("http://b.com")));
        for other in ["http://c.com", "null", "file://"] {
            assert!(patterns.allows(&origin(other)) && !patterns.names(&origin(other)), "{other}");
        }
    }

    #[test]
    fn text_of_a_client_is_shown_escaped_and_short() {
        assert_eq!(shown("http://a.com"), "http://a.com");
        assert_eq!(shown("a\n\u{1b}[31m\"é"), "a\\n\\u{1b}[31m\\\"\\u{e9}");
        assert_eq!(shown(&"x".repeat(101)), format!("{}...", "x".repeat(100)));
        assert!(shown(&"\u{10ffff}".repeat(10_000)).len() <= 1003);
    }
}
