//! Which pages may connect (RFC 6455, section 10.2; RFC 6454).
//!
//! A browser names the origin of the page that connects, and a page cannot forge it; other clients name none, or what they
//! like. So this keeps strangers' pages from speaking with their visitors' credentials, and keeps out nobody else. Without a
//! pattern, a page may connect to the host that it came from.

use std::net::IpAddr;

use hyper::header::{FORWARDED, HOST, HeaderName, HeaderValue, ORIGIN, VIA};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Uri};

/// In use before `Forwarded` (RFC 7239), and more than that.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whether a handshake with these headers comes from a page that may connect, or from no page at all.
#[must_use]
pub fn may_connect(headers: &HeaderMap<HeaderValue>, patterns: &[String]) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else {
        // Two are nobody's.
        return !headers.contains_key(ORIGIN);
    };
    let Ok(origin) = origin.to_str() else { return false };
    patterns.iter().any(|pattern| matches(pattern, origin)) || is_own(origin, headers.get(HOST))
}

/// Whether the host that was asked for can only be this machine. Another name may be a stranger's, who has it lead here once his page is
/// loaded (DNS rebinding): then the page is of its own host. What a proxy says that it passes on comes from elsewhere.
#[must_use]
pub fn is_for_this_machine(uri: &Uri, headers: &HeaderMap<HeaderValue>) -> bool {
    if [FORWARDED, VIA, FORWARDED_FOR].iter().any(|passed_on| headers.contains_key(passed_on)) {
        return false;
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (host, None) = (hosts.next(), hosts.next()) else { return false };
    // A browser always names one. Where the target does, too, it is the one that counts.
    let host = host.map(|host| host.to_str().ok().and_then(|host| host.parse().ok()));
    let target = uri.authority().cloned().map(Some);
    host.into_iter().chain(target).all(|authority| authority.is_some_and(|authority| is_this_machine(&authority)))
}

fn is_this_machine(authority: &Authority) -> bool {
    let Some(("", port)) = authority.as_str().split_once(authority.host()) else { return false };
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<IpAddr>().map(|address| address.to_canonical());
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Whether this origin is the host that was asked for; the scheme may differ, since a proxy may speak TLS for us.
fn is_own(origin: &str, host: Option<&HeaderValue>) -> bool {
    let (Some((scheme, authority)), Some(Ok(host))) = (origin.split_once("://"), host.map(HeaderValue::to_str)) else {
        return false;
    };
    let default_port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let bare = |authority: &str| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    bare(authority) == bare(host)
}

/// `*` matches every origin, `https://*.example.com` every host below `example.com`, anything else itself.
fn matches(pattern: &str, origin: &str) -> bool {
    let (pattern, origin) = (pattern.to_ascii_lowercase(), origin.to_ascii_lowercase());
    match pattern.split_once("*.") {
        Some((scheme, domain)) => {
            let host = origin.strip_prefix(scheme).and_then(|rest| rest.strip_suffix(domain)?.strip_suffix('.'));
            host.is_some_and(|labels| !labels.is_empty() && !labels.contains(['/', ':', '@']))
        }
        None => pattern == "*" || pattern == origin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(origin: &[&str], host: &str, patterns: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        for origin in origin {
            headers.append(ORIGIN, origin.parse().unwrap());
        }
        may_connect(&headers, &patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn no_origin_and_the_own_host_may() {
        assert!(may(&[], "a.com", &[]));
        assert!(may(&["http://a.com"], "a.com", &[]) && may(&["https://A.com"], "a.COM:443", &[]));
        assert!(may(&["http://127.0.0.1:3000"], "127.0.0.1:3000", &[]));
        for stranger in ["http://b.com", "http://a.com:81", "http://a.com.b.com", "null", "a.com", "http://xa.com", ""]
        {
            assert!(!may(&[stranger], "a.com", &[]), "{stranger}");
        }
        assert!(!may(&["http://a.com", "http://a.com"], "a.com", &["*"]));
    }

    #[test]
    fn only_this_machine_has_a_loopback_name() {
        let path = Uri::from_static("/publish");
        let is = |host: &str| is_for_this_machine(&path, &HeaderMap::from_iter([(HOST, host.parse().unwrap())]));
        for own in ["localhost", "LOCALHOST:3000", "127.0.0.1", "127.1.2.3:80", "[::1]:3000", "[::ffff:127.0.0.1]"] {
            assert!(is(own), "{own}");
        }
        for other in [
            "",
            "a.com",
            "localhost.a.com",
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
        headers.append("x-forwarded-for", HeaderValue::from_static("10.0.0.1"));
        assert!(!is_for_this_machine(&path, &headers), "a proxy passes it on");
        headers.remove("x-forwarded-for");
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert!(!is_for_this_machine(&path, &headers), "two are nobody's");
    }

    #[test]
    fn patterns_name_strangers_who_may() {
        let patterns = ["https://b.com", "https://*.c.com"];
        for good in ["https://b.com", "HTTPS://B.com", "https://x.c.com", "https://x.y.c.com"] {
            assert!(may(&[good], "a.com", &patterns), "{good}");
        }
        for bad in [
            "http://b.com",
            "https://xb.com",
            "https://c.com",
            "https://.c.com",
            "https://evil.com/.c.com",
            "https://xc.com",
        ] {
            assert!(!may(&[bad], "a.com", &patterns), "{bad}");
        }
        assert!(may(&["null"], "a.com", &["*"]));
    }
}
