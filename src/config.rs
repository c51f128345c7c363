//! Everything that can be set, and every bound, with its name, unit, default and what happens there.
//!
//! Owns plain values only: no I/O, no clock. [`Config::check`] refuses combinations that cannot work, so that
//! nothing above this module has to.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;

use crate::jwt::TokenKey;
use crate::tls::Tls;

/// One kibibyte, in bytes.
const KIB: usize = 1024;
/// One mebibyte, in bytes.
const MIB: usize = 1024 * KIB;

/// What a server is built from; see `hydrant --help` for the flag of each field.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect. Port 0 lets the kernel choose; the log names the port.
    pub listen: SocketAddr,
    /// Number of shards, one OS thread each.
    pub shards: NonZeroUsize,
    /// How a frame reaches the subscribers.
    pub fanout: Strategy,
    /// Interval of the server's message to `all`; `None` sends none.
    pub tick: Option<Duration>,
    /// Backlog of one connection in bytes; at the bound [`Config::slow`] decides.
    pub outbox_bytes_max: usize,
    /// What happens to a client whose backlog is full.
    pub slow: SlowPolicy,
    /// Longest message that a client or a publisher may send, in bytes; a client's longer one ends it with 1009, a
    /// publisher gets 413.
    pub message_bytes_max: usize,
    /// Most fragments of one message; one more ends the client with 1008.
    pub message_fragments_max: u32,
    /// Publications of one channel not yet fanned out, in bytes; beyond it publishers get 503.
    pub pending_bytes_max: usize,
    /// Most bytes that the kernel may hold for one client before it counts as slow, for each of: sent and not
    /// acknowledged (`SO_SNDBUF`), not yet sent (`TCP_NOTSENT_LOWAT`). Also what it may hold unread (`SO_RCVBUF`), at least
    /// [`READ_BYTES`].
    pub kernel_bytes_max: usize,
    /// Batches of at least so many bytes are sent from shared pages (`direct`); shorter ones are copied to each socket.
    pub pages_bytes_min: usize,
    /// Connections that a drain closes in a second, so that not all come back in the same one; at its deadline, all that are
    /// left.
    pub drain_rate: NonZeroU32,
    /// How long a drain may take; then what is left is cut.
    pub drain_timeout: Duration,
    /// Most messages and control frames of one client in a second; at the bound [`Config::too_fast`] decides. `None` for any
    /// number.
    pub client_messages_max: Option<NonZeroU32>,
    /// Most bytes of one client in a second, beside one message of the longest; at the bound [`Config::too_fast`] decides.
    /// `None` for any number.
    pub client_bytes_max: Option<NonZeroUsize>,
    /// What happens to a client that sends too fast.
    pub too_fast: TooFastPolicy,
    /// Most WebSocket connections; one more is answered with 503.
    pub connections_max: usize,
    /// Most connections of one address, WebSockets or not; one more is answered with 429. `None` for any number.
    pub per_address_max: Option<NonZeroUsize>,
    /// Most sockets, at each port, whose request is not finished, or that wait for another; one more takes the place of the one that
    /// has got least far, but half are kept for those whose first request is not finished; or it is answered with 503.
    pub handshakes_max: usize,
    /// How long a client may take to send a request head, or a body, or to use an idle HTTP connection again.
    pub handshake_timeout: Duration,
    /// Sockets accepted in a second; the others wait in the kernel's queue. `None` for any number.
    pub accept_rate: Option<NonZeroU32>,
    /// Bytes of heap from which on WebSockets are answered with 503, by the last sample and what came since; `None` for any
    /// number.
    pub memory_bytes_max: Option<NonZeroUsize>,
    /// Origins whose pages may connect beside those of the server's own host, as patterns; see `http::origin`.
    pub allow_origin: Vec<String>,
    /// How long a client may say nothing before it gets a ping; `None` sends none.
    pub ping_interval: Option<Duration>,
    /// How long a client that got a ping may still say nothing before it is closed with 1011.
    pub idle_timeout: Duration,
    /// How long the kernel may hold bytes that a client does not take before the connection is ended.
    pub write_timeout: Duration,
    /// How long a closing handshake may take before the socket is cut.
    pub close_timeout: Duration,
    /// The longest that a channel waits before a pass when more than half of its subscribers are behind: a burst that is
    /// larger than a backlog then waits where publishers feel it, and closes nobody who reads. A batch in the default time is
    /// 40 Mbit/s for each subscriber. When it was in vain, the channel does not wait again until most have caught up. No flag:
    /// nothing but a test has a reason to change it.
    pub pace_max: Duration,
    /// Whom a client's `SAY` reaches.
    pub say: SayPolicy,
    /// What the tokens of subscribers are verified with; without one, nobody needs a token to subscribe.
    pub subscriber_key: Option<TokenKey>,
    /// The certificate, if clients come by TLS.
    pub tls: Option<Arc<Tls>>,
    /// Where they do; `None`: at [`Config::listen`], and nowhere without.
    pub tls_listen: Option<SocketAddr>,
    /// Where the admin routes are, and no WebSockets; `None`: at the same ports as everything else. Without TLS.
    pub admin_listen: Option<SocketAddr>,
    /// The bearer token of publish and admin routes; without one they answer only on a loopback listener, asked for as such.
    pub token: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)),
            shards: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            fanout: Strategy::Direct,
            tick: Some(Duration::from_secs(3)),
            outbox_bytes_max: MIB,
            slow: SlowPolicy::Disconnect,
            message_bytes_max: 64 * KIB,
            message_fragments_max: 1024,
            pending_bytes_max: 16 * MIB,
            kernel_bytes_max: 256 * KIB,
            pages_bytes_min: 16 * KIB,
            drain_rate: NonZeroU32::new(2000).expect("not zero"),
            drain_timeout: Duration::from_secs(10),
            client_messages_max: None,
            client_bytes_max: None,
            too_fast: TooFastPolicy::Disconnect,
            connections_max: usize::MAX,
            per_address_max: None,
            handshakes_max: 4096,
            handshake_timeout: Duration::from_secs(10),
            accept_rate: None,
            memory_bytes_max: None,
            allow_origin: Vec::new(),
            ping_interval: Some(Duration::from_secs(25)),
            idle_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            pace_max: Duration::from_millis(50),
            say: SayPolicy::Rooms,
            subscriber_key: None,
            tls: None,
            tls_listen: None,
            admin_listen: None,
            token: None,
        }
    }
}

/// The strategies; the contract of each is in `fanout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Write straight to each socket, what is pending joined into one write.
    Direct,
    /// Add to the backlog of each connection and wake its writer task, which joins what waits into one write.
    Wake,
    /// One ring per shard, from which the writer task of each connection takes what it is subscribed to; for shards
    /// with few channels.
    Ring,
    /// A bounded queue and a writer task per connection, one write for each message: the baseline.
    Mailbox,
}

/// What happens when a connection's backlog is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SlowPolicy {
    /// Close the connection with 1013; what was pending for it counts as dropped.
    Disconnect,
    /// Keep what waits, drop the new frame.
    DropNewest,
    /// Drop the frames that have waited longest until the new one fits.
    DropOldest,
}

/// What happens to a client that sends too fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TooFastPolicy {
    /// Close the connection with 1008.
    Disconnect,
    /// Drop its messages, and its pings, until it is slow enough again; they are counted.
    Drop,
}

/// Whom a client's `SAY` reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SayPolicy {
    /// Nobody: accepted and counted.
    Off,
    /// The rooms that the speaker joined by name.
    Rooms,
    /// The rooms, and `all` for a speaker who is in it.
    All,
}

/// A port, and what is to be had there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Its place among [`Config::listeners`].
    pub port: usize,
    /// Clients have to speak TLS.
    pub secure: bool,
    /// Only this machine gets there.
    pub loopback: bool,
    /// There are WebSockets.
    pub websockets: bool,
    /// There are admin routes.
    pub admin: bool,
}

/// Most shards: a shard's index has to fit its place in a `ConnId`.
pub const SHARDS_MAX: usize = 1024;
/// Longest channel name in bytes; a longer one is refused with 400.
pub const CHANNEL_NAME_BYTES_MAX: usize = 128;
/// Most channels of one connection; a further one is refused (400, or an `ERROR` event).
pub const CHANNELS_PER_CONNECTION_MAX: usize = 64;
/// Longest name that `SET_NAME` takes, in bytes; a longer one gets an `ERROR` event.
pub const USER_NAME_BYTES_MAX: usize = 64;
/// Most bytes that one pass joins into one write, unless a single frame is longer, and never more than a backlog may
/// hold. Larger joins win nothing per byte (the copy dominates) and let a
/// single write overflow the backlog of a healthy client; `benches/delivery` would show a better value.
pub const BATCH_BYTES_MAX: usize = 256 * KIB;
/// Fewest subscribers on a shard for whom a batch is put into shared pages: to make and to free them costs as much as
/// sparing a few copies saves.
pub const PAGES_SUBSCRIBERS_MIN: usize = 16;
/// Most files of shared pages that a shard has open at once, one for each batch that has not left; a further batch is
/// copied, and counted in `hydrant_pages_refused_total`. They count against the limit of open files.
pub const PAGES_FILES_MAX: usize = 64;
/// Sockets that a shard writes to before it looks at reads, accepts and its inbox again: about a millisecond. Of a channel with many
/// subscribers half as many.
pub const PASS_CHUNK: usize = 256;
/// What the end of a connection that a pass comes upon takes of a chunk, in sockets: it leaves its channels, and is closed.
pub const VISITS_PER_END: usize = 8;
/// Sockets that a shard takes, most with a handshake that is answered at once, before messages have their turn again: a
/// sixth of a millisecond.
pub const ACCEPTED_CHUNK: usize = 4;
/// Polls, at each port, of HTTP phases that have not got as far as a whole request, between two turns of the messages: half a
/// millisecond at most.
pub const NEWCOMER_TURNS: usize = 4;
/// The same at a port with TLS, where a turn may be a key exchange and a signature.
pub const NEWCOMER_TURNS_TLS: usize = 2;
/// Inbox items that a shard takes before it goes on with its passes.
pub const INBOX_CHUNK: usize = 4096;
/// Most bytes read from a socket in one call; one such buffer per shard, none per connection.
pub const READ_BYTES: usize = 64 * KIB;
/// Bytes that a TLS session encrypts and sends at once: two records (RFC 8446, section 5.1), so that a batch that is a little longer
/// than one costs one system call.
pub const TLS_SEND_BYTES: usize = 32 * KIB;
/// Bytes of the wire that a TLS session reads in one turn: of records without content, which cost it most, some 150.
pub const TLS_READ_BYTES: usize = 4 * KIB;
/// Bytes read in one turn of a connection, beside what is known to be missing of a message: a turn is bounded by what it
/// may make the shard do, and a ping of 6 bytes is answered by a system call.
pub const TURN_BYTES: usize = KIB;
/// What a shard does for its connections before everything else has its turn, in messages: half a millisecond.
pub const MESSAGES_PER_ROUND: u32 = 128;
/// What a system call on a socket takes of a round, in messages, whatever it finds.
pub const MESSAGES_PER_CALL: u32 = 1;
/// What the end of a connection takes of a round, in messages, and once more when its socket is closed.
pub const MESSAGES_PER_END: u32 = 8;
/// Frames that a `mailbox` connection's queue holds, beside the bound in bytes.
pub const MAILBOX_FRAMES_MAX: usize = 1024;
/// Batches that the ring of a shard holds with `ring`, a power of two; who has not taken the oldest one when the next
/// comes takes all of them into its backlog.
pub const RING_BATCHES_MAX: usize = 1024;
/// How long a shard may take to answer a stats before it is given up.
pub const STATS_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a channel waits for more frames before a pass; see `engine::channel`.
pub const LINGER_MAX: Duration = Duration::from_millis(1);
/// Subscribers that are looked at to tell whether more than half are behind.
pub const PACE_SAMPLE: usize = 64;
/// Sockets that wait for a shard, at most; the others wait in the kernel's queue.
pub const ACCEPTED_MAX: usize = 128;
/// Connections that the kernel completes and queues for the accept thread.
pub const LISTEN_BACKLOG: i32 = 4096;

/// The shortest tick.
pub const TICK_MIN: Duration = Duration::from_millis(1);
/// The longest ping interval, idle timeout, write timeout and handshake timeout.
pub const KEEPALIVE_MAX: Duration = Duration::from_hours(1);
/// Open files that connections leave to everything else: listeners, requests, pages, profiles.
pub const FILES_KEPT: usize = 256;
/// What a new connection is expected to add to the heap until the next sample, in bytes: an idle one has a fifth, one that is
/// behind more.
pub const CONNECTION_BYTES_PROJECTED: usize = KIB;
/// The same of its TLS session.
pub const TLS_BYTES_PROJECTED: usize = 4 * KIB;
/// What a frame may take beside the message that a client or publisher sent: its header, a name around a `SAY`, and the
/// bookkeeping of a backlog.
pub const FRAME_EXTRA_BYTES: usize = 1024;

/// Reads a size with a unit, such as 64KiB, in bytes.
///
/// # Errors
/// What to write instead.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}: write for example 65536 or 64KiB"))?;
    usize::try_from(size.as_u64()).map_err(|error| error.to_string())
}

/// Reads a duration with a unit, such as 3s or 500ms; 0 needs none.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}: write for example 3s or 500ms"))?;
    // Beyond any use, and before clocks overflow.
    if duration > Duration::from_hours(24 * 365) { Err("more than a year".to_owned()) } else { Ok(duration) }
}

/// Whether this is `*`, or a scheme and an authority whose first label may be `*`.
#[must_use]
pub fn is_origin_pattern(pattern: &str) -> bool {
    let Some((scheme, authority)) = pattern.split_once("://") else { return pattern == "*" };
    let authority = authority.strip_prefix("*.").unwrap_or(authority);
    let plain = |text: &str| !text.is_empty() && !text.contains(['*', '/', '?', '#', '@', ' ', ',']);
    plain(scheme) && plain(authority)
}

/// Why a configuration cannot work: one line that says what to set.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Every port to open, the one of [`Config::listen`] first.
    #[must_use]
    pub fn listeners(&self) -> Vec<(SocketAddr, ListenerConfig)> {
        let with_admin = self.admin_listen.is_none();
        let all = [
            (Some(self.listen), self.tls.is_some() && self.tls_listen.is_none(), true, with_admin),
            (self.tls_listen, true, true, with_admin),
            (self.admin_listen, false, false, true),
        ];
        let open = all
            .into_iter()
            .filter_map(|(address, secure, websockets, admin)| Some((address?, secure, websockets, admin)));
        let listener_config = |(port, (address, secure, websockets, admin)): (_, (SocketAddr, _, _, _))| {
            (address, ListenerConfig { port, secure, loopback: address.ip().is_loopback(), websockets, admin })
        };
        open.enumerate().map(listener_config).collect()
    }

    /// Refuses values that contradict each other.
    ///
    /// # Errors
    /// One sentence that names the flag and the bound it breaks.
    pub fn check(&self) -> Result<(), ConfigError> {
        let message = self.message_bytes_max;
        let frame = message.saturating_add(FRAME_EXTRA_BYTES);
        let timeouts = Duration::from_millis(10)..=KEEPALIVE_MAX;
        let wrong = if self.shards.get() > SHARDS_MAX {
            format!("--shards {} is more than {SHARDS_MAX}", self.shards)
        } else if message == 0 || self.message_fragments_max == 0 {
            "--message-bytes and --message-fragments must be at least 1".to_owned()
        } else if u32::try_from(frame.max(self.outbox_bytes_max).max(self.pending_bytes_max)).is_err() {
            "--message-bytes, --outbox-bytes and --pending-bytes must be below 4GiB".to_owned()
        } else if self.outbox_bytes_max < frame {
            format!(
                "--outbox-bytes {} cannot hold one message of --message-bytes {message}: set it to at least {frame}",
                self.outbox_bytes_max
            )
        } else if self.pending_bytes_max < frame {
            format!(
                "--pending-bytes {} cannot hold one message of --message-bytes {message}: set it to at least {frame}",
                self.pending_bytes_max
            )
        } else if !(4 * KIB..=64 * MIB).contains(&self.kernel_bytes_max) {
            format!("--kernel-bytes {} is outside 4KiB to 64MiB", self.kernel_bytes_max)
        } else if self.tick.is_some_and(|tick| tick < TICK_MIN) {
            "--tick is shorter than 1ms: set it to at least that, or to 0 for none".to_owned()
        } else if self.ping_interval.is_some_and(|interval| !timeouts.contains(&interval)) {
            "--ping-interval is outside 10ms to 1h: set it to one of these, or to 0 for none".to_owned()
        } else if ![self.idle_timeout, self.write_timeout, self.handshake_timeout]
            .iter()
            .all(|time| timeouts.contains(time))
        {
            "--idle-timeout, --write-timeout and --handshake-timeout must be within 10ms and 1h".to_owned()
        } else if let Some(wrong) = self.allow_origin.iter().find(|pattern| !is_origin_pattern(pattern)) {
            format!("--allow-origin {wrong:?}: write for example https://example.com, https://*.example.com or *")
        } else if self.connections_max == 0 || self.handshakes_max == 0 {
            "--max-connections and --max-handshakes must be at least 1".to_owned()
        } else if self.tls_listen.is_some() && self.tls.is_none() {
            "--tls-listen needs a certificate: set --tls-cert and --tls-key".to_owned()
        } else if self.token.as_deref().is_some_and(str::is_empty) {
            "--token is empty: leave it out, or set one".to_owned()
        } else {
            return Ok(());
        };
        Err(ConfigError(wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_works() {
        Config::default().check().unwrap();
    }

    #[test]
    fn contradictions_are_named() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(|c| c.outbox_bytes_max = 1024).contains("--outbox-bytes"));
        assert!(refused(|c| c.pending_bytes_max = 1024).contains("--pending-bytes"));
        assert!(refused(|c| c.message_bytes_max = 0).contains("--message-bytes"));
        assert!(refused(|c| c.outbox_bytes_max = 1 << 40).contains("4GiB"));
        assert!(refused(|c| c.kernel_bytes_max = 1).contains("--kernel-bytes"));
        assert!(refused(|c| c.tick = Some(Duration::from_nanos(1))).contains("--tick"));
        assert!(refused(|c| c.ping_interval = Some(Duration::from_millis(1))).contains("--ping-interval"));
        assert!(refused(|c| c.idle_timeout = Duration::from_hours(2)).contains("--idle-timeout"));
        assert!(refused(|c| c.write_timeout = Duration::ZERO).contains("--write-timeout"));
        assert!(refused(|c| c.token = Some(String::new())).contains("--token"));
        assert!(refused(|c| c.shards = NonZeroUsize::new(5000).unwrap()).contains("--shards"));
    }

    #[test]
    fn origin_patterns_have_a_scheme_and_a_host() {
        for good in ["*", "https://example.com", "http://localhost:8080", "https://*.example.com:444"] {
            assert!(is_origin_pattern(good), "{good}");
        }
        for bad in
            ["", "example.com", "https://", "https://a/b", "https://a.*.com", "https://*", "https://a, https://b"]
        {
            assert!(!is_origin_pattern(bad), "{bad}");
        }
    }

    #[test]
    fn values_have_units() {
        let (bytes, duration) = (parse_bytes, parse_duration);
        assert_eq!((bytes("64KiB"), bytes("65536"), bytes("1MiB")), (Ok(65_536), Ok(65_536), Ok(1 << 20)));
        assert_eq!((duration("3s"), duration("0")), (Ok(Duration::from_secs(3)), Ok(Duration::ZERO)));
        assert!(bytes("a lot").unwrap_err().contains("64KiB"));
        assert!(duration("3").unwrap_err().contains("3s"));
    }
}
