//! The URLs of a load: `ws://host:port/path` and `http://host:port/path`, or the same with TLS, and
//! the path of each room. Parses text; does not resolve names.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::tls::Tls;

/// A URL.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Target {
    scheme: String,
    /// Host and port as in the URL: the `Host` header.
    pub(crate) authority: String,
    /// Host and port, with the default port if the URL has none.
    pub(crate) address: String,
    path: String,
    query: String,
}

impl Target {
    /// Parses a URL with this scheme, `ws` or `http`, or the same with TLS.
    ///
    /// # Errors
    /// One sentence that says what to write.
    pub fn parse(text: &str, scheme: &str) -> Result<Self, String> {
        let (found, rest) =
            text.split_once("://").ok_or_else(|| format!("not a URL: write for example {scheme}://127.0.0.1:3000/"))?;
        let secure = found.strip_suffix('s') == Some(scheme);
        if found != scheme && !secure {
            return Err(format!("the scheme has to be {scheme} or {scheme}s, not {found}"));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (path, query) = path.find('?').map_or((path, ""), |at| path.split_at(at));
        let port = authority.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.ends_with(':'));
        let has_port = port.is_some_and(|(host, _)| !host.starts_with('[') || host.ends_with(']'));
        if has_port && port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err("the port is not a number below 65536".to_owned());
        }
        if authority.is_empty()
            || authority.contains('@')
            || text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(format!(
                "the URL has no host, or a user name or a blank: write for example {scheme}://127.0.0.1:3000/"
            ));
        }
        let default_port = if secure { 443 } else { 80 };
        let address = if has_port { authority.to_owned() } else { format!("{authority}:{default_port}") };
        let path = if path.is_empty() { "/" } else { path };
        let target = Self {
            scheme: found.to_owned(),
            authority: authority.to_owned(),
            address,
            path: path.to_owned(),
            query: query.to_owned(),
        };
        target.tls().map_err(|error| error.to_string())?;
        Ok(target)
    }

    /// The settings of its TLS sessions, if it needs TLS.
    ///
    /// # Errors
    /// When this build has no TLS, or the host is not a valid name.
    pub(crate) fn tls(&self) -> io::Result<Option<Tls>> {
        if !matches!(self.scheme.as_str(), "wss" | "https") {
            return Ok(None);
        }
        Tls::new(self.host()).map(Some)
    }

    /// The host without its port and without the brackets of an IPv6 address.
    fn host(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether the host is this machine, by its name.
    fn is_loopback(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether both are on one host: the same name, or loopback both.
    pub(crate) fn is_on_host_of(&self, other: &Self) -> bool {
        self.host().eq_ignore_ascii_case(other.host()) || self.is_loopback() && other.is_loopback()
    }

    /// The path of this one at the scheme, host and port of `other`.
    pub(crate) fn moved_to(&self, other: &Self) -> Self {
        Self { path: self.path.clone(), query: self.query.clone(), ..other.clone() }
    }

    /// Another path at the same scheme, host and port.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), query: String::new(), ..self.clone() }
    }

    /// The first address of the host.
    ///
    /// # Errors
    /// When the name has none.
    pub(crate) fn resolve(&self) -> io::Result<SocketAddr> {
        self.address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))
    }

    /// The URL at which messages for its subscribers are published: HTTP, and `/publish` in place
    /// of `/ws`.
    #[must_use]
    pub fn publish(&self) -> Self {
        let path = match self.path.strip_prefix("/ws") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("/publish{rest}"),
            _ => "/publish".to_owned(),
        };
        let scheme = if self.scheme == "wss" { "https" } else { "http" };
        Self { scheme: scheme.to_owned(), path, query: String::new(), ..self.clone() }
    }

    /// Path and query of a request, in this room if there is one.
    pub(crate) fn request(&self, room: Option<usize>) -> String {
        match room {
            Some(room) => format!("{}/r{room}{}", self.path.trim_end_matches('/'), self.query),
            None => format!("{}{}", self.path, self.query),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}{}", self.scheme, self.authority, self.path, self.query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("ws://localhost:3000/ws/room?x=1", "ws").unwrap();
        assert_eq!((target.authority.as_str(), target.address.as_str()), ("localhost:3000", "localhost:3000"));
        assert_eq!((target.request(None), target.request(Some(7))), ("/ws/room?x=1".into(), "/ws/room/r7?x=1".into()));
        assert_eq!(target.publish().to_string(), "http://localhost:3000/publish/room");
        assert_eq!(target.to_string(), "ws://localhost:3000/ws/room?x=1");
        let bare = Target::parse("ws://[::1]", "ws").unwrap();
        assert_eq!((bare.address.as_str(), bare.request(None)), ("[::1]:80", "/".into()));
        assert_eq!(bare.publish().request(Some(0)), "/publish/r0");
        let six = Target::parse("ws://[::1]:80/wsx", "ws").unwrap();
        assert_eq!((six.address.as_str(), six.publish().request(None)), ("[::1]:80", "/publish".into()));
        assert_eq!(Target::parse("ws://a/ws", "ws").unwrap().publish().to_string(), "http://a/publish");
        #[cfg(feature = "tls")]
        for (text, address, publish) in [
            ("wss://a/ws", "a:443", "https://a/publish"),
            ("wss://[::1]:8443/ws", "[::1]:8443", "https://[::1]:8443/publish"),
        ] {
            let secure = Target::parse(text, "ws").unwrap();
            assert_eq!((secure.address.as_str(), secure.publish().to_string()), (address, publish.into()));
            assert!(secure.tls().unwrap().is_some());
        }
    }

    #[test]
    fn what_cannot_be_a_target_is_rejected() {
        let rejected = |text| Target::parse(text, "ws").unwrap_err();
        assert!(rejected("http://a/ws").contains("ws"));
        for text in ["", "127.0.0.1:3000", "ws://", "ws:///ws", "ws://a:b/", "ws://a:99999/", "ws://a b/", "ws://u@a/"]
        {
            assert!(Target::parse(text, "ws").is_err(), "{text}");
        }
    }
}
