//! Checks the values of settings against each other, and derives the listeners from them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::value::{KIB, MIB};
use super::{Config, ListenAddress, ListenerConfig, Setting};

/// The port of administration when there is no port of clients to count from.
const ADMIN_PORT: u16 = 3001;
/// The shortest timeout.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// The shortest `--keep-alive-timeout`: the header `Keep-Alive` announces whole seconds.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(1);
/// The bounds of `--max-header-bytes`. hyper has no smaller buffer.
const HEADER_BYTES: std::ops::RangeInclusive<usize> = 8 * KIB..=MIB;
/// Most headers of a request that can be allowed.
const HEADERS_MAX: usize = 1024;
/// The shortest tick.
const TICK_MIN: Duration = Duration::from_millis(1);
/// The longest ping interval and timeout.
const KEEPALIVE_MAX: Duration = Duration::from_hours(1);
/// Bytes that a frame may take beside the message that a client or publisher sent: its header, a
/// name around a `SAY`, and the bookkeeping of a backlog.
pub const FRAME_EXTRA_BYTES: usize = 1024;
/// Most shards: a shard's index has to fit its place in a `ConnId`.
const SHARDS_MAX: usize = 1024;

/// Why a configuration cannot work: one sentence that says what to set.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct ConfigError {
    /// The flags that the sentence is about, without their dashes.
    pub flags: Vec<&'static str>,
    /// The sentence; it names them.
    pub problem: String,
}

impl ConfigError {
    pub(super) fn new(flags: &[&'static str], problem: impl Into<String>) -> Self {
        debug_assert!(flags.iter().all(|flag| Setting::of(flag).flag == *flag));
        Self { flags: flags.to_vec(), problem: problem.into() }
    }
}

impl Config {
    /// Every listener; those of [`Config::listen`] come first.
    #[must_use]
    pub fn listeners(&self) -> Vec<(ListenAddress, ListenerConfig)> {
        let shared = self.admin_is_shared();
        let tls_listen = self.tls_listeners();
        let clients = self.listen.iter().map(|address| (address.clone(), self.tls.is_some() && tls_listen.is_empty()));
        let secure = tls_listen.iter().map(|address| (address.clone(), true));
        let clients = clients.chain(secure).map(|(address, secure)| (address, secure, true, shared));
        let admin = (!shared).then(|| (self.admin_address(), false, false, true));
        let listener_config = |(address, secure, websockets, admin): (ListenAddress, _, _, _)| {
            let is_local = address.is_local();
            (address, ListenerConfig { secure, is_local, websockets, admin })
        };
        clients.chain(admin).map(listener_config).collect()
    }

    /// Whether a listener rejects every publication: it wants a token, and there is none.
    #[must_use]
    pub fn lacks_token(&self, listener: ListenerConfig) -> bool {
        self.token.is_none() && !self.open && listener.needs_token()
    }

    /// Where publishing and administration answer: [`Config::admin_listen`], or 127.0.0.1 and the
    /// port after the first one of [`Config::listen`]. Port 0 stays 0, and a socket without a port
    /// gives port 3001.
    #[must_use]
    pub fn admin_address(&self) -> ListenAddress {
        self.admin_listen.clone().unwrap_or_else(|| {
            let port = match self.listen.first().and_then(ListenAddress::port) {
                Some(0) => 0,
                Some(port) => port.checked_add(1).unwrap_or(ADMIN_PORT),
                None => ADMIN_PORT,
            };
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()
        })
    }

    /// Whether clients' and admin routes are on one port: `--admin-listen` is the address of a
    /// `--listen`. With port 0, too: the same text means the same socket.
    #[must_use]
    pub fn admin_is_shared(&self) -> bool {
        self.admin_listen.as_ref().is_some_and(|address| self.listen.contains(address))
    }

    #[cfg(feature = "tls")]
    fn tls_listeners(&self) -> &[ListenAddress] {
        &self.tls_listen
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_self, reason = "as with TLS")]
    fn tls_listeners(&self) -> &[ListenAddress] {
        &[]
    }

    /// Rejects values that are out of their range, or contradict each other.
    ///
    /// # Errors
    /// One sentence that names the flags and the bound.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_ranges()?;
        self.check_pairs()
    }

    /// Each value by itself.
    fn check_ranges(&self) -> Result<(), ConfigError> {
        let outside = |flag: &'static str, range: &str| {
            Err(ConfigError::new(&[flag], format!("--{flag} is outside of its range: set it to {range}")))
        };
        for (flag, value) in [
            ("message-bytes", self.message_bytes_max),
            ("message-fragments", self.message_fragments_max as usize),
            ("max-connections", self.connections_max),
            ("max-handshakes", self.handshakes_max),
        ] {
            if value == 0 {
                return outside(flag, "1 or more");
            }
        }
        for (flag, value) in [
            ("message-bytes", self.message_bytes_max),
            ("outbox-bytes", self.outbox_bytes_max),
            ("pending-bytes", self.pending_bytes_max),
        ] {
            if u32::try_from(value.saturating_add(FRAME_EXTRA_BYTES)).is_err() {
                return outside(flag, "less than 4GiB");
            }
        }
        for (flag, value) in [
            ("handshake-timeout", self.handshake_timeout),
            ("idle-timeout", self.idle_timeout),
            ("write-timeout", self.write_timeout),
        ] {
            if !(TIMEOUT_MIN..=KEEPALIVE_MAX).contains(&value) {
                return outside(flag, "10ms to 1h");
            }
        }
        if !(KEEP_ALIVE_MIN..=KEEPALIVE_MAX).contains(&self.keep_alive_timeout) {
            return outside("keep-alive-timeout", "1s to 1h");
        }
        if self.ping_interval.is_some_and(|interval| !(TIMEOUT_MIN..=KEEPALIVE_MAX).contains(&interval)) {
            return outside("ping-interval", "10ms to 1h, or to 0 for none");
        }
        if self.tick.is_some_and(|tick| tick < TICK_MIN) {
            return outside("tick", "1ms or more, or to 0 for none");
        }
        if self.token_leeway > KEEPALIVE_MAX {
            return outside("token-leeway", "at most 1h");
        }
        if self.shards.get() > SHARDS_MAX {
            return outside("shards", &format!("at most {SHARDS_MAX}"));
        }
        if self.http_threads.get() > SHARDS_MAX {
            return outside("http-threads", &format!("at most {SHARDS_MAX}"));
        }
        if !(4 * KIB..=64 * MIB).contains(&self.kernel_bytes_max) {
            return outside("kernel-bytes", "4KiB to 64MiB");
        }
        if !HEADER_BYTES.contains(&self.header_bytes_max) {
            return outside("max-header-bytes", "8KiB to 1MiB");
        }
        if !(8..=HEADERS_MAX).contains(&self.headers_max) {
            return outside("max-headers", "8 to 1024");
        }
        Ok(())
    }

    /// Values of several settings.
    fn check_pairs(&self) -> Result<(), ConfigError> {
        let message = self.message_bytes_max;
        let frame = message.saturating_add(FRAME_EXTRA_BYTES);
        for (flag, value) in [("outbox-bytes", self.outbox_bytes_max), ("pending-bytes", self.pending_bytes_max)] {
            if value < frame {
                return Err(ConfigError::new(
                    &[flag, "message-bytes"],
                    format!(
                        "--{flag} {value} cannot hold one message of --message-bytes {message}: set it to at least {frame}"
                    ),
                ));
            }
        }
        if self.listen.is_empty() {
            return Err(ConfigError::new(&["listen"], "--listen names no address: set one"));
        }
        self.check_overlaps()?;
        if self.token.as_deref().is_some_and(str::is_empty) {
            return Err(ConfigError::new(&["token"], "--token is empty: leave it out, or set one"));
        }
        // A client could not send it, or the server would not see it as it was sent: blanks at the
        // ends of a header do not count.
        if self.token.as_deref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(ConfigError::new(
                &["token", "token-file"],
                "--token has a blank, a line break or another character that is not visible ASCII: set one without",
            ));
        }
        if self.proxy_protocol && self.trusted_proxy.is_empty() {
            return Err(ConfigError::new(
                &["proxy-protocol"],
                "--proxy-protocol needs the addresses of the proxies: set --trusted-proxy",
            ));
        }
        #[cfg(feature = "tls")]
        if !self.tls_listen.is_empty() && self.tls.is_none() {
            return Err(ConfigError::new(
                &["tls-listen"],
                "--tls-listen needs a certificate: set --tls-cert and --tls-key",
            ));
        }
        Ok(())
    }

    /// Addresses of which the kernel opens only one.
    fn check_overlaps(&self) -> Result<(), ConfigError> {
        let clients = self.listen.iter().map(|address| ("listen", address.clone()));
        let secure = self.tls_listeners().iter().map(|address| ("tls-listen", address.clone()));
        let admin = (!self.admin_is_shared()).then(|| ("admin-listen", self.admin_address()));
        let mut earlier = Vec::<(&'static str, ListenAddress)>::new();
        for (flag, address) in clients.chain(secure).chain(admin) {
            if let Some((other_flag, other)) = earlier.iter().find(|(_, other)| other.overlaps(&address)) {
                let advice = if flag == "admin-listen" && *other_flag == "listen" {
                    format!("set --admin-listen to another port, or to {other} for one port for everything")
                } else {
                    "leave one of them out, or change its port".to_owned()
                };
                return Err(ConfigError::new(
                    &[flag, other_flag],
                    format!("--{other_flag} {other} and --{flag} {address} are at the same port: {advice}"),
                ));
            }
            earlier.push((flag, address));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn the_default_works() {
        Config::default().check().unwrap();
    }

    #[test]
    fn contradictions_are_named() {
        let rejected = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(rejected(|c| c.outbox_bytes_max = 1024).contains("--outbox-bytes"));
        assert!(rejected(|c| c.pending_bytes_max = 1024).contains("--pending-bytes"));
        assert!(rejected(|c| c.message_bytes_max = 0).contains("--message-bytes"));
        assert!(rejected(|c| c.outbox_bytes_max = 1 << 40).contains("4GiB"));
        assert!(rejected(|c| c.kernel_bytes_max = 1).contains("--kernel-bytes"));
        assert!(rejected(|c| c.tick = Some(Duration::from_nanos(1))).contains("--tick"));
        assert!(rejected(|c| c.ping_interval = Some(Duration::from_millis(1))).contains("--ping-interval"));
        assert!(rejected(|c| c.idle_timeout = Duration::from_hours(2)).contains("--idle-timeout"));
        assert!(rejected(|c| c.keep_alive_timeout = Duration::from_millis(999)).contains("set it to 1s to 1h"));
        assert!(rejected(|c| c.write_timeout = Duration::ZERO).contains("--write-timeout"));
        assert!(rejected(|c| c.token = Some("".into())).contains("--token"));
        assert!(rejected(|c| c.token = Some(" abc ".into())).contains("not visible ASCII"));
        assert!(rejected(|c| c.token = Some("a\nb".into())).contains("not visible ASCII"));
        assert!(rejected(|c| c.token = Some("ä".into())).contains("not visible ASCII"));
        assert!(rejected(|c| c.shards = NonZeroUsize::new(5000).unwrap()).contains("--shards"));
        for outside in
            [|c: &mut Config| c.header_bytes_max = 8 * KIB - 1, |c: &mut Config| c.header_bytes_max = MIB + 1]
        {
            assert!(rejected(outside).contains("--max-header-bytes is outside of its range: set it to 8KiB to 1MiB"));
        }
        assert!(rejected(|c| c.headers_max = 1).contains("--max-headers"));
        assert!(rejected(|c| c.proxy_protocol = true).contains("--trusted-proxy"));
        assert!(rejected(|c| c.listen.clear()).contains("--listen"));
    }

    #[test]
    fn no_address_is_listened_at_twice() {
        let error = |listen: &str, admin: Option<&str>| {
            let listen = listen.split(',').map(|address| address.parse().unwrap()).collect();
            let admin_listen = admin.map(|address| address.parse().unwrap());
            Config { listen, admin_listen, ..Config::default() }.check().err().map(|error| error.to_string())
        };
        assert_eq!(
            error(":27000,:27000", None).unwrap(),
            "--listen :27000 and --listen :27000 are at the same port: leave one of them out, or change its port"
        );
        assert!(error(":27000,127.0.0.1:27000", None).unwrap().contains("--listen 127.0.0.1:27000 are"));
        // The default of --admin-listen counts as well.
        assert_eq!(
            error(":27000,:27001", None).unwrap(),
            "--listen :27001 and --admin-listen 127.0.0.1:27001 are at the same port: set --admin-listen to another \
             port, or to :27001 for one port for everything"
        );
        assert!(error(":27000", Some("127.0.0.1:27000")).is_some());
        assert_eq!(error(":27000", Some(":27000")), None, "one port for everything");
        assert_eq!(error("127.0.0.1:0,127.0.0.1:0", Some("127.0.0.1:0")), None);
        assert_eq!(error("127.0.0.1:27000,[::1]:27000", None), None);
    }

    #[test]
    fn administration_is_next_to_the_clients() {
        let admin = |listen: &str| {
            let listen = listen.split(',').map(|address| address.parse().unwrap()).collect();
            Config { listen, ..Config::default() }.admin_address().to_string()
        };
        assert_eq!(admin("127.0.0.1:3000"), "127.0.0.1:3001");
        assert_eq!(admin(":8080,9000"), "127.0.0.1:8081");
        assert_eq!(admin("127.0.0.1:0"), "127.0.0.1:0");
        assert_eq!(admin("unix:/run/hydrant.sock"), "127.0.0.1:3001");
        assert_eq!(admin("127.0.0.1:65535"), "127.0.0.1:3001");
        let shared = Config { admin_listen: Some("127.0.0.1:3000".parse().unwrap()), ..Config::default() };
        assert!(shared.admin_is_shared() && !Config::default().admin_is_shared());
    }
}
