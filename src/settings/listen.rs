//! The addresses at which a server listens, as the user writes them. Nothing here opens a socket or
//! asks a name server.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::origin::is_loopback_host;

/// The first descriptor that systemd passes to a service (`sd_listen_fds(3)`).
pub(crate) const FIRST_PASSED_FD: RawFd = 3;
/// Longest path of a Unix socket (`unix(7)`: 108 bytes, with a zero byte at the end).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// One address of `--listen`, `--tls-listen` or `--admin-listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `127.0.0.1:3000`, `[::]:3000`; a bare `3000` is that port of 127.0.0.1. The kernel chooses
    /// port 0.
    Ip(SocketAddr),
    /// `localhost:3000`: every address of the name; the server asks for them when it binds.
    Name {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// `:3000`: every address of the machine, of IPv4 and IPv6.
    Any {
        /// The port.
        port: u16,
    },
    /// `unix:/run/hydrant.sock`: a socket in the file system.
    Unix(PathBuf),
    /// `systemd`: every socket that systemd passes (`LISTEN_FDS`).
    Systemd,
    /// `fd:3`: one of these sockets.
    Fd(RawFd),
}

impl ListenAddress {
    /// The port, unless the address is a socket in the file system or is passed by systemd.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(address) => Some(address.port()),
            Self::Name { port, .. } | Self::Any { port } => Some(*port),
            Self::Unix(_) | Self::Systemd | Self::Fd(_) => None,
        }
    }

    /// Whether only this machine can connect, as far as the text tells: a name or a passed socket
    /// may turn out to be loopback when it is bound.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ip(address) => address.ip().to_canonical().is_loopback(),
            Self::Name { host, .. } => is_loopback_host(host),
            Self::Unix(_) => true,
            Self::Any { .. } | Self::Systemd | Self::Fd(_) => false,
        }
    }
}

impl ListenAddress {
    /// Whether the kernel cannot open both, as far as the text tells: the same address and port, or
    /// one address of all and any other at the same port. Nothing is known of port 0, which the
    /// kernel chooses, and of names.
    #[must_use]
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        if self.port() == Some(0) {
            return false;
        }
        if self == other {
            return true;
        }
        if self.port() != other.port() {
            return false;
        }
        match (self, other) {
            (Self::Any { .. }, Self::Any { .. } | Self::Ip(_) | Self::Name { .. }) => true,
            (Self::Ip(_) | Self::Name { .. }, Self::Any { .. }) => true,
            (Self::Ip(a), Self::Ip(b)) => {
                let (ip_a, ip_b) = (a.ip().to_canonical(), b.ip().to_canonical());
                // `[::]` has the addresses of IPv4 as well.
                let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
                let scope = |address: &SocketAddr| match address {
                    SocketAddr::V6(address) => address.scope_id(),
                    SocketAddr::V4(_) => 0,
                };
                covers(ip_a, ip_b) || covers(ip_b, ip_a) || (ip_a == ip_b && scope(a) == scope(b))
            }
            _ => false,
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no address: write for example 127.0.0.1:3000, localhost:3000, :3000, 3000, [::]:3000, \
                 unix:/run/hydrant.sock, systemd or fd:3"
            )
        };
        if text == "systemd" {
            return Ok(Self::Systemd);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(wrong()),
                1..=UNIX_PATH_BYTES_MAX if !path.contains('\0') => Ok(Self::Unix(PathBuf::from(path))),
                1..=UNIX_PATH_BYTES_MAX => Err("the path has a zero byte: write one without".to_owned()),
                length => Err(format!(
                    "the path has {length} bytes, and that of a Unix socket has at most {UNIX_PATH_BYTES_MAX}: write \
                     a shorter one"
                )),
            };
        }
        if let Some(fd) = text.strip_prefix("fd:") {
            return match fd.parse() {
                Ok(fd) if fd >= FIRST_PASSED_FD => Ok(Self::Fd(fd)),
                _ => Err(format!("{text:?}: the first socket that systemd passes is fd:{FIRST_PASSED_FD}")),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let port = text.parse().map_err(|_| wrong())?;
            return Ok(Self::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Err(format!("{text:?} has no port: write for example {}", SocketAddr::from((address, 3000))));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        match host {
            "" => Ok(Self::Any { port }),
            _ if host.bytes().all(is_host) => Ok(Self::Name { host: host.to_owned(), port }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Any { port } => write!(f, ":{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd => f.write_str("systemd"),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        let ip = |text: &str| ListenAddress::Ip(text.parse().unwrap());
        let name = |host: &str, port| ListenAddress::Name { host: host.to_owned(), port };
        for (text, address) in [
            ("127.0.0.1:3000", ip("127.0.0.1:3000")),
            ("[::]:3000", ip("[::]:3000")),
            ("localhost:3000", name("localhost", 3000)),
            ("a.example.com:80", name("a.example.com", 80)),
            (":3000", ListenAddress::Any { port: 3000 }),
            ("unix:/run/hydrant.sock", ListenAddress::Unix("/run/hydrant.sock".into())),
            ("systemd", ListenAddress::Systemd),
            ("fd:3", ListenAddress::Fd(3)),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("3000".parse(), Ok(ip("127.0.0.1:3000")));
    }

    #[test]
    fn anything_else_is_told_what_to_write() {
        for text in
            ["", "a", "127.0.0.1", "::1", "[::1]", ":", ":x", "a:70000", "70000", "unix:", "fd:2", "fd:x", "a b:1"]
        {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(error.contains(":3") || error.contains("fd:3"), "{text:?}: {error}");
        }
        assert!("::1".parse::<ListenAddress>().unwrap_err().contains("[::1]:3000"));
    }

    #[test]
    fn addresses_overlap_where_the_kernel_opens_only_one() {
        let overlap = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|text| text.parse::<ListenAddress>().unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a), "{a} {b}");
            a.overlaps(&b)
        };
        for (a, b) in [
            (":3000", ":3000"),
            (":3000", "127.0.0.1:3000"),
            (":3000", "[::1]:3000"),
            (":3000", "localhost:3000"),
            (":3000", "0.0.0.0:3000"),
            ("0.0.0.0:3000", "3000"),
            ("[::]:3000", "3000"),
            ("3000", "127.0.0.1:3000"),
            ("3000", "[::ffff:127.0.0.1]:3000"),
            ("localhost:3000", "localhost:3000"),
            ("unix:/a", "unix:/a"),
        ] {
            assert!(overlap(a, b), "{a} {b}");
        }
        for (a, b) in [
            (":3000", ":3001"),
            ("3000", "127.0.0.2:3000"),
            ("3000", "[::1]:3000"),
            ("0.0.0.0:3000", "[::1]:3000"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            (":0", "3000"),
            ("[fe80::1%1]:3000", "[fe80::1%2]:3000"),
            ("unix:/a", "unix:/b"),
            ("systemd", "unix:/a"),
            ("fd:3", "fd:4"),
        ] {
            assert!(!overlap(a, b), "{a} {b}");
        }
    }

    #[test]
    fn a_path_fits_the_address_of_a_unix_socket() {
        let path = |length: usize| format!("unix:/{}", "x".repeat(length - 1)).parse::<ListenAddress>();
        assert!(path(107).is_ok());
        let error = path(108).unwrap_err();
        assert!(error.contains("has 108 bytes") && error.contains("at most 107"), "{error}");
        assert!("unix:\0abstract".parse::<ListenAddress>().unwrap_err().contains("zero byte"));
    }

    #[test]
    fn loopback_is_this_machine() {
        for text in
            ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1", "a.localhost:1", "3000", "unix:/a"]
        {
            assert!(text.parse::<ListenAddress>().unwrap().is_local(), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", ":1", "example.com:1", "systemd", "fd:3"] {
            assert!(!text.parse::<ListenAddress>().unwrap().is_local(), "{text}");
        }
    }
}
