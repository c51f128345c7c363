//! The rules for which pages may connect and which may publish (RFC 6455, section 10.2).
//!
//! A browser names the origin of the page that sends a request, and a page cannot forge it; other
//! clients name none, or any. So these rules keep pages of other sites from acting through their
//! visitors' browsers, and restrict no other client. Owns the rules; [`crate::origin`] compares
//! origins. Never knows a token: the caller checks it first.

use hyper::header::{FORWARDED, HOST, HeaderName, HeaderValue, ORIGIN, VIA};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Uri};

use crate::origin::{AllowedOrigins, Origin, is_loopback_host, shown};

/// The host that a client asked a proxy for.
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Headers that proxies add. All but two were in use before `Forwarded` (RFC 7239), and more than
/// it.
const PASSED_ON: [HeaderName; 6] = [
    FORWARDED,
    VIA,
    FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// The rules for the requests of one peer at one listener.
#[derive(Clone, Copy, Debug)]
pub struct OriginPolicy<'a> {
    /// The values of `--allow-origin`.
    pub allowed: &'a AllowedOrigins,
    /// Only this machine can connect to the listener.
    pub is_local: bool,
    /// The peer is a proxy of `--trusted-proxy`.
    pub trusted_proxy: bool,
    /// The peer has a loopback address, or none (Unix sockets).
    pub local_peer: bool,
}

/// A page may not do what it asks for: 403.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// More than one header `Origin`.
    #[error("a request has one Origin header: this one has several")]
    Several,
    /// Something that is no origin.
    #[error("the Origin {0} is none: send for example https://example.com, or no Origin")]
    Malformed(String),
    /// The page is of an origin that is not allowed.
    #[error("pages of {origin} may not connect: start the server with --allow-origin {origin}{hint}")]
    NotAllowed {
        /// The origin, escaped and shortened.
        origin: String,
        /// Another possible cause.
        hint: Hint,
    },
    /// The page may subscribe, but not publish without a token.
    #[error(
        "pages of {origin} may not publish without a token: start the server with --token, or with \
         --allow-origin {origin}"
    )]
    NotNamed {
        /// The origin, escaped and shortened.
        origin: String,
    },
    /// The page may subscribe, but not publish without a token, and no `--allow-origin` changes
    /// that: any page can have this origin.
    #[error("pages of {origin} may not publish without a token: start the server with --token")]
    TokenNeeded {
        /// The origin, escaped and shortened.
        origin: String,
    },
    /// The client may be on another machine, by its address or by the host that it asked for.
    #[error(
        "without a token this route answers to this machine only: ask for localhost on it, or set --token or \
         HYDRANT_TOKEN"
    )]
    NotThisMachine,
}

impl OriginError {
    /// The origin to log a rejection under; `None` for a rejection that is not for the origin.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        match self {
            Self::Malformed(origin)
            | Self::NotAllowed { origin, .. }
            | Self::NotNamed { origin }
            | Self::TokenNeeded { origin } => Some(origin),
            Self::Several | Self::NotThisMachine => None,
        }
    }
}

/// A likely cause of a rejection beside a missing `--allow-origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// None.
    None,
    /// A proxy names the right host and is not trusted.
    TrustProxy,
    /// A proxy may have put its own name for the server into `Host`.
    KeepHost,
}

impl std::fmt::Display for Hint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::None => "",
            Self::TrustProxy => ", or with --trusted-proxy and the proxy's address, since its X-Forwarded-Host fits",
            Self::KeepHost => ", or let the proxy pass the Host header on (nginx: proxy_set_header Host $http_host)",
        })
    }
}

impl OriginPolicy<'_> {
    /// Whether a handshake with these headers comes from a page that may connect, or from no page.
    /// Without `--allow-origin` these are the pages of the host that was asked for and, at a
    /// loopback listener, the pages of this machine.
    ///
    /// # Errors
    /// Why not, and what to set.
    pub fn may_connect(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), OriginError> {
        let Some(header) = single(headers)? else { return Ok(()) };
        if self.allowed.allows_any() {
            return Ok(());
        }
        let (origin, text) = parse(header)?;
        let of_this_machine = || self.is_local && origin.is_loopback() && is_for_this_machine(uri, headers);
        if self.allowed.allows(&origin) || self.is_own(&origin, uri, headers) || of_this_machine() {
            return Ok(());
        }
        let forwarded = forwarded_host(headers).is_some_and(|host| origin.is_of_host(host));
        let asked_for = asked_for(uri, headers);
        let hint = if forwarded {
            Hint::TrustProxy
        } else if asked_for.is_some_and(|host| self.is_local && !origin.is_loopback() && is_loopback_authority(host)) {
            Hint::KeepHost
        } else {
            Hint::None
        };
        Err(OriginError::NotAllowed { origin: text, hint })
    }

    /// Whether a request **without a token** may publish or use an admin route, at a server that
    /// has no token. The caller has checked that the listener is of this machine only. The address
    /// of the peer counts as well: the kernel may redirect connections to loopback (DNAT). The
    /// pages that may are those of the host that was asked for and those that `--allow-origin`
    /// names by their host; `*`, `null` and `file://` can be any page.
    ///
    /// # Errors
    /// Why not, and what to set.
    pub fn may_publish(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), OriginError> {
        let origin = match single(headers)? {
            Some(header) => Some(parse(header)?),
            None => None,
        };
        if !self.local_peer || !is_for_this_machine(uri, headers) {
            return Err(OriginError::NotThisMachine);
        }
        match origin {
            Some((origin, text)) if !self.allowed.names(&origin) && !self.is_own(&origin, uri, headers) => {
                Err(match origin {
                    Origin::Host(_) => OriginError::NotNamed { origin: text },
                    Origin::Opaque | Origin::File => OriginError::TokenNeeded { origin: text },
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether the page is of the host that the client asked for.
    fn is_own(&self, origin: &Origin, uri: &Uri, headers: &HeaderMap) -> bool {
        let forwarded = forwarded_host(headers).filter(|_| self.trusted_proxy);
        [asked_for(uri, headers), forwarded].into_iter().flatten().any(|host| origin.is_of_host(host))
    }
}

/// The value of `Origin`, if there is one.
fn single(headers: &HeaderMap) -> Result<Option<&HeaderValue>, OriginError> {
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (origin, None) => Ok(origin),
        _ => Err(OriginError::Several),
    }
}

/// An origin, and its text for people.
fn parse(header: &HeaderValue) -> Result<(Origin, String), OriginError> {
    let text = String::from_utf8_lossy(header.as_bytes());
    let shown = shown(&text);
    match Origin::parse(&text) {
        Some(origin) => Ok((origin, shown)),
        None => Err(OriginError::Malformed(format!("\"{shown}\""))),
    }
}

/// The host that the client asked for: that of the request's target, if it has one, else `Host`
/// (RFC 9112, section 3.2.2).
fn asked_for<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(HOST)?.to_str().ok(),
    }
}

/// The host that the client asked the first proxy for.
fn forwarded_host(headers: &HeaderMap) -> Option<&str> {
    headers.get(FORWARDED_HOST)?.to_str().ok()?.split(',').next().map(str::trim)
}

fn is_loopback_authority(host: &str) -> bool {
    host.parse().is_ok_and(|authority| is_this_machine(&authority))
}

/// Whether the host that was asked for can only be this machine. Another name may be a stranger's,
/// which he points at this machine once his page is loaded (DNS rebinding): then the page is of its
/// own host. A request that a proxy passes on comes from elsewhere.
#[must_use]
pub fn is_for_this_machine(uri: &Uri, headers: &HeaderMap<HeaderValue>) -> bool {
    if PASSED_ON.iter().any(|passed_on| headers.contains_key(passed_on)) {
        return false;
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (host, None) = (hosts.next(), hosts.next()) else { return false };
    // A browser always names one. If the target names one too, the target's counts.
    let host = host.map(|host| host.to_str().ok().and_then(|host| host.parse().ok()));
    let target = uri.authority().cloned().map(Some);
    host.into_iter().chain(target).all(|authority| authority.is_some_and(|authority| is_this_machine(&authority)))
}

fn is_this_machine(authority: &Authority) -> bool {
    let Some(("", port)) = authority.as_str().split_once(authority.host()) else { return false };
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    is_loopback_host(authority.host())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Default)]
    struct Case<'a> {
        host: &'a str,
        forwarded_host: Option<&'a str>,
        patterns: &'a [&'a str],
        is_local: bool,
        trusted_proxy: bool,
        foreign_peer: bool,
    }

    impl Case<'_> {
        fn with(
            self,
            origins: &[&str],
            ask: impl FnOnce(OriginPolicy<'_>, &HeaderMap) -> Result<(), OriginError>,
        ) -> Result<(), OriginError> {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, self.host.parse().unwrap());
            if let Some(host) = self.forwarded_host {
                headers.insert(FORWARDED_HOST, host.parse().unwrap());
            }
            for origin in origins {
                headers.append(ORIGIN, HeaderValue::from_bytes(origin.as_bytes()).unwrap());
            }
            let allowed = AllowedOrigins::parse(self.patterns).unwrap();
            let (is_local, trusted_proxy, local_peer) = (self.is_local, self.trusted_proxy, !self.foreign_peer);
            ask(OriginPolicy { allowed: &allowed, is_local, trusted_proxy, local_peer }, &headers)
        }

        fn connect(self, origins: &[&str]) -> Result<(), OriginError> {
            self.with(origins, |policy, headers| policy.may_connect(&Uri::from_static("/ws"), headers))
        }

        fn publish(self, origins: &[&str]) -> Result<(), OriginError> {
            self.with(origins, |policy, headers| policy.may_publish(&Uri::from_static("/publish"), headers))
        }
    }

    const PUBLIC: Case<'_> = Case {
        host: "a.com",
        forwarded_host: None,
        patterns: &[],
        is_local: false,
        trusted_proxy: false,
        foreign_peer: false,
    };
    const LOCAL: Case<'_> = Case { host: "localhost:3000", is_local: true, ..PUBLIC };

    #[test]
    fn no_origin_and_the_own_host_may_connect() {
        assert_eq!(PUBLIC.connect(&[]), Ok(()));
        for own in ["http://a.com", "https://A.com:443/", "wss://a.com", "a.com", "https://a.com/chat"] {
            assert_eq!(PUBLIC.connect(&[own]), Ok(()), "{own}");
        }
        let port = Case { host: "h:443", ..PUBLIC };
        assert_eq!(port.connect(&["wss://h"]), Ok(()));
        for stranger in ["http://b.com", "http://a.com:81", "http://a.com.b.com", "null", "file://", "http://xa.com"] {
            let error = OriginError::NotAllowed { origin: stranger.to_owned(), hint: Hint::None };
            assert_eq!(PUBLIC.connect(&[stranger]), Err(error), "{stranger}");
        }
        assert_eq!(PUBLIC.connect(&[""]), Err(OriginError::Malformed("\"\"".to_owned())));
        assert_eq!(PUBLIC.connect(&["http://a.com", "http://a.com"]), Err(OriginError::Several));
        let any = Case { patterns: &["*"], ..PUBLIC };
        assert_eq!(any.connect(&["http://a.com", "http://a.com"]), Err(OriginError::Several));
        for whatever in ["", "null", "http://b.com", "é"] {
            assert_eq!(any.connect(&[whatever]), Ok(()), "{whatever}");
        }
        let some = Case { patterns: &["null", "https://*.c.com"], ..PUBLIC };
        assert_eq!((some.connect(&["null"]), some.connect(&["https://x.c.com"])), (Ok(()), Ok(())));
        assert!(some.connect(&["file://"]).is_err());
    }

    #[test]
    fn the_host_of_the_target_counts_before_the_header() {
        let target = |target| {
            PUBLIC.with(&["http://b.com"], |policy, headers| policy.may_connect(&Uri::from_static(target), headers))
        };
        assert_eq!(target("http://b.com/ws"), Ok(()));
        assert!(target("/ws").is_err());
    }

    #[test]
    fn pages_of_this_machine_may_connect_to_a_loopback_listener() {
        for page in ["http://localhost:5173", "http://127.0.0.1:8000", "http://[::1]:9", "http://app.localhost:1"] {
            assert_eq!(LOCAL.connect(&[page]), Ok(()), "{page}");
            assert_eq!(Case { host: "127.0.0.1:3000", ..LOCAL }.connect(&[page]), Ok(()), "{page}");
            assert!(Case { is_local: false, ..LOCAL }.connect(&[page]).is_err(), "{page}");
            // A name that was made to point here, and a proxy for the world.
            assert!(Case { host: "evil.com:3000", ..LOCAL }.connect(&[page]).is_err(), "{page}");
        }
        for stranger in ["http://evil.com", "http://localhost.evil.com", "null", "file://", "http://192.168.0.9:3000"] {
            assert!(LOCAL.connect(&[stranger]).is_err(), "{stranger}");
        }
    }

    #[test]
    fn the_host_that_a_proxy_was_asked_for_counts_if_it_is_trusted() {
        let proxied = Case { host: "127.0.0.1:3000", forwarded_host: Some("a.com"), ..LOCAL };
        let error = OriginError::NotAllowed { origin: "https://a.com".to_owned(), hint: Hint::TrustProxy };
        assert_eq!(proxied.connect(&["https://a.com"]), Err(error.clone()));
        assert!(error.to_string().contains("--allow-origin https://a.com, or with --trusted-proxy"), "{error}");
        let trusted = Case { trusted_proxy: true, ..proxied };
        assert_eq!(trusted.connect(&["https://a.com"]), Ok(()));
        assert_eq!(Case { forwarded_host: Some("a.com, inner"), ..trusted }.connect(&["https://a.com"]), Ok(()));
        assert!(trusted.connect(&["https://b.com"]).is_err());
        // Without the header, a rewritten Host cannot be told from an attack.
        let rewritten = Case { forwarded_host: None, ..trusted };
        let error = OriginError::NotAllowed { origin: "https://a.com".to_owned(), hint: Hint::KeepHost };
        assert_eq!(rewritten.connect(&["https://a.com"]), Err(error.clone()));
        assert!(error.to_string().contains("proxy_set_header Host $http_host"), "{error}");
    }

    #[test]
    fn without_a_token_only_the_own_pages_and_named_ones_publish() {
        assert_eq!(LOCAL.publish(&[]), Ok(()));
        assert_eq!(LOCAL.publish(&["http://localhost:3000"]), Ok(()));
        let page = "http://localhost:5173";
        assert_eq!(LOCAL.publish(&[page]), Err(OriginError::NotNamed { origin: page.to_owned() }));
        for opened in [&["http://localhost:*"][..], &["localhost:5173"]] {
            assert_eq!(Case { patterns: opened, ..LOCAL }.publish(&[page]), Ok(()), "{opened:?}");
        }
        let any = Case { patterns: &["*", "null", "file://"], ..LOCAL };
        assert_eq!(
            any.publish(&["http://evil.com"]),
            Err(OriginError::NotNamed { origin: "http://evil.com".to_owned() })
        );
        for opaque in ["null", "file://"] {
            assert_eq!(any.publish(&[opaque]), Err(OriginError::TokenNeeded { origin: opaque.to_owned() }));
        }
        assert_eq!(LOCAL.publish(&["x y"]), Err(OriginError::Malformed("\"x y\"".to_owned())));
        assert_eq!(LOCAL.publish(&[page, page]), Err(OriginError::Several));
    }

    #[test]
    fn without_a_token_nobody_publishes_under_another_name_of_this_machine() {
        let rebound = Case { host: "evil.com:3000", patterns: &["*"], ..LOCAL };
        for origins in [&[][..], &["http://evil.com:3000"]] {
            assert_eq!(rebound.publish(origins), Err(OriginError::NotThisMachine));
        }
        // Not even if a trusted proxy says so: the proxy is open to the world.
        let proxied = Case { host: "a.com", forwarded_host: Some("localhost:3000"), trusted_proxy: true, ..LOCAL };
        assert_eq!(proxied.publish(&["http://localhost:3000"]), Err(OriginError::NotThisMachine));
    }

    #[test]
    fn without_a_token_no_peer_of_another_machine_publishes() {
        let redirected = Case { foreign_peer: true, ..LOCAL };
        for origins in [&[][..], &["http://localhost:3000"]] {
            assert_eq!(redirected.publish(origins), Err(OriginError::NotThisMachine), "{origins:?}");
            assert_eq!(redirected.connect(origins), Ok(()), "subscribing needs no token");
        }
    }

    #[test]
    fn a_rejection_names_the_origin_safely() {
        let origin = format!("http://{}\u{7f}", "x".repeat(5000));
        let error = HeaderValue::from_bytes(origin.replace('\u{7f}', "\u{e9}").as_bytes()).map(|header| parse(&header));
        let error = error.unwrap().unwrap_err();
        assert!(error.origin().unwrap().len() <= 105 && error.to_string().is_ascii(), "{error}");
        assert_eq!((OriginError::Several.origin(), OriginError::NotThisMachine.origin()), (None, None));
    }

    #[test]
    fn only_this_machine_has_a_loopback_name() {
        let path = Uri::from_static("/publish");
        let is = |host: &str| is_for_this_machine(&path, &HeaderMap::from_iter([(HOST, host.parse().unwrap())]));
        for own in [
            "localhost",
            "LOCALHOST:3000",
            "app.Localhost:3000",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]:3000",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is(own), "{own}");
        }
        for other in [
            "",
            "a.com",
            "localhost.a.com",
            "xlocalhost",
            "127.0.0.1.a.com",
            "10.0.0.1:80",
            "[::2]",
            "localhost:x",
            "a.com@localhost",
            "[::1].a.com",
            "[::1]a:80",
        ] {
            assert!(!is(other), "{other}");
        }
        assert!(is_for_this_machine(&path, &HeaderMap::new()));
        for (target, own) in [("http://localhost:3000/publish", true), ("http://a.com/publish", false)] {
            assert_eq!(is_for_this_machine(&Uri::from_static(target), &HeaderMap::new()), own, "{target}");
        }
        let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost"))]);
        for passed_on in PASSED_ON {
            headers.append(&passed_on, HeaderValue::from_static("10.0.0.1"));
            assert!(!is_for_this_machine(&path, &headers), "{passed_on}");
            headers.remove(&passed_on);
        }
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert!(!is_for_this_machine(&path, &headers), "two are nobody's");
    }
}
