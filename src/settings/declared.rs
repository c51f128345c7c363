//! The declaration of every setting, and the [`Config`] that comes of it.
//!
//! To add a setting, add an entry here: the sentence is its help and the doc of its field, then
//! come the field, its type, how its text is read, its default, and the rest of a [`Setting`].

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::value::{
    Secret, TrustedProxy, parse_bytes, parse_bytes_or_none, parse_choice, parse_cores, parse_count, parse_count_or_any,
    parse_duration, parse_duration_or_none, parse_heap_sample, parse_level, parse_limit, parse_list, parse_optional,
    parse_origins, parse_path, parse_rate, parse_secret, parse_subprotocols, parse_switch,
};
use super::{Form, Group, ListenAddress, SayPolicy, Setting, SlowPolicy, Strategy, TooFastPolicy};
use crate::jwt::TokenKey;
use crate::origin::AllowedOrigins;
use crate::tls::Tls;

/// Defines [`Config`], its default and [`SETTINGS`] from one entry for each setting, and a field
/// for each value that is made of several settings.
macro_rules! settings {
    (
        $(
            $(#[doc = $help:literal])+
            $(#[cfg($cfg:meta)])?
            $field:ident: $type:ty = $parse:path[$default:literal] { $($key:ident: $value:expr),+ $(,)? }
        )+
        made {
            $( $(#[doc = $made_doc:literal])+ $made:ident: $made_type:ty = $made_default:expr, )+
        }
    ) => {
        /// The settings that a server is built from. The doc of each is also its help.
        #[derive(Clone, Debug)]
        pub struct Config {
            $( $(#[doc = $help])+ $(#[cfg($cfg)])? pub $field: $type, )+
            $( $(#[doc = $made_doc])+ pub $made: $made_type, )+
        }

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $( $(#[cfg($cfg)])? $field: $parse($default).expect(concat!("the default of ", stringify!($field), " is one")), )+
                    $( $made: $made_default, )+
                }
            }
        }

        /// Every setting, by groups.
        #[allow(clippy::needless_update, reason = "an entry may say everything")]
        pub static SETTINGS: &[Setting] = &[
            $(
                $(#[cfg($cfg)])?
                Setting {
                    default: $default,
                    help: concat!($($help, "\n"),+),
                    set: |config, text| {
                        config.$field = $parse(text)?;
                        Ok(())
                    },
                    $($key: $value,)+
                    ..Setting::NEW
                },
            )+
        ];
    };
}

impl Setting {
    /// The defaults of an entry's optional parts.
    const NEW: Self = Self {
        flag: "",
        was: &[],
        group: Group::Engine,
        default: "",
        unit: "",
        help: "",
        form: Form::Text,
        reloads: false,
        set: |_, _| Ok(()),
    };
}

settings! {
    /// Address where clients connect. For several addresses, separate them with commas or repeat
    /// the flag. Forms: `127.0.0.1:3000`; `localhost:3000` for every address of the name; `3000`
    /// for that port of 127.0.0.1; `:3000` for that port of every address of the machine;
    /// `unix:/run/hydrant.sock`; `systemd` or `fd:3` for a socket that systemd passes. With port 0
    /// the kernel chooses, and the log names the port. The umask of the server decides which users
    /// may connect to a `unix:` socket (007: its user and group); for a socket that systemd passes,
    /// `SocketMode` does.
    listen: Vec<ListenAddress> = parse_list["127.0.0.1:3000"] {
        flag: "listen", group: Group::Listen, unit: "ADDRESS", form: Form::List,
    }

    /// Address of publishing and administration: `/publish`, `/metrics` and `/debug`. Default:
    /// 127.0.0.1 and the port of the first `--listen` plus 1. If it is also an address of
    /// `--listen`, that port serves everything, with TLS if `--listen` has it. An address of its
    /// own never speaks TLS.
    admin_listen: Option<ListenAddress> = parse_optional[""] {
        flag: "admin-listen", group: Group::Listen, unit: "ADDRESS",
    }

    /// Allows publishing and administration without a token, also beyond loopback and on a port
    /// that clients share. Pages in browsers may then publish if they may connect: with
    /// `--allow-origin '*'`, the pages of every site. Without this flag, the server rejects such
    /// requests.
    open: bool = parse_switch["false"] {
        flag: "open", group: Group::Listen, form: Form::Switch,
    }

    /// Threads that accept connections and handle HTTP and TLS. Messages are delivered by the
    /// threads of `--shards`.
    http_threads: NonZeroUsize = parse_count["1"] {
        flag: "http-threads", group: Group::Listen, unit: "COUNT", form: Form::Number,
    }

    /// Trusted proxies: networks such as `10.0.0.0/8`, addresses, or `unix` for every peer of a
    /// Unix socket. Behind one of them, limits and logs use the client's address from `Forwarded`
    /// or `X-Forwarded-For`, and the server compares the origin of a page with `X-Forwarded-Host`.
    /// The proxy has to set one of the two headers. It also has to remove or overwrite the other
    /// one if clients can send it: a WebSocket request gets 400 if the two name different clients,
    /// or if `Forwarded` and `X-Forwarded-Host` name different hosts. WebSockets without such an
    /// address share the limit of the proxy's own address; a proxy at a Unix socket has none, and
    /// no limit.
    trusted_proxy: Vec<TrustedProxy> = parse_list[""] {
        flag: "trusted-proxy", group: Group::Proxies, unit: "NETWORK|unix", form: Form::List, reloads: true,
    }

    /// Expect a header of the PROXY protocol, version 1 or 2, at the beginning of each connection
    /// from a `--trusted-proxy`. The server takes the client's address from it, and closes a
    /// connection from there without the header. A port for administration alone expects no header:
    /// a proxy in front of it must not send one.
    proxy_protocol: bool = parse_switch["false"] {
        flag: "proxy-protocol", group: Group::Proxies, form: Form::Switch, reloads: true,
    }

    /// Origins whose pages may connect, beside those of the server's own host: for example
    /// `https://example.com`, `https://*.example.com`, `http://localhost:*`, `file://`, `null`, or
    /// `*` for all. Pages of other origins get 403. A client that sends no origin may always
    /// connect; browsers always send one. Without `--token`, pages of the origins that are named
    /// here may publish as well; `*` does not allow that.
    allow_origin: AllowedOrigins = parse_origins[""] {
        flag: "allow-origin", group: Group::Proxies, unit: "ORIGIN", form: Form::List, reloads: true,
    }

    /// Subprotocols to choose from when a client offers some. Without this list, the server chooses
    /// the first one that the client offers.
    subprotocol: Vec<String> = parse_subprotocols[""] {
        flag: "subprotocol", group: Group::Proxies, unit: "NAME", form: Form::List, reloads: true,
    }

    /// Bearer token for publishing and administration: visible ASCII characters without blanks.
    /// Without one, these routes answer only to programs on this machine. A proxy on this machine
    /// looks like such a program if it sends neither the Host nor the address of its client: behind
    /// a proxy, set a token.
    token: Option<Secret> = parse_secret[""] {
        flag: "token", group: Group::Auth, unit: "TOKEN", form: Form::Secret, reloads: true,
    }

    /// File with the token of `--token`; the server ignores white space at its ends.
    token_file: Option<PathBuf> = parse_path[""] {
        flag: "token-file", group: Group::Auth, unit: "FILE", reloads: true,
    }

    /// Shared secret of subscribers' tokens (JWT with HS256). Every WebSocket then needs a token,
    /// in `Authorization: Bearer`, as `?token=`, or as subprotocols `bearer, TOKEN`. An example of
    /// its payload: {"sub":"ann","channels":["chat","room-*"],"exp":1795909310}. `exp` is required,
    /// in seconds since 1970: at `exp` plus `--token-leeway` the server closes the connection with
    /// 1008. `channels` limits the token to these channels; `room-*` is every channel whose name
    /// begins with `room-`. A token without `channels` allows every channel, and one with an empty
    /// list allows none. Plain `/ws` subscribes to the channel `all`, so its token has to allow
    /// `all`. `sub` is the client's name in its messages; without `sub` the client chooses its
    /// name.
    jwt_secret: Option<Secret> = parse_secret[""] {
        flag: "jwt-secret", group: Group::Auth, unit: "SECRET", form: Form::Secret, reloads: true,
    }

    /// File with the secret of `--jwt-secret`; the server ignores a line break at its end.
    jwt_secret_file: Option<PathBuf> = parse_path[""] {
        flag: "jwt-secret-file", group: Group::Auth, unit: "FILE", reloads: true,
    }

    /// File with a public key in PEM form, in place of a shared secret: RSA for RS256, or P-256 for
    /// ES256. The claims are those of `--jwt-secret`.
    jwt_key: Option<PathBuf> = parse_path[""] {
        flag: "jwt-key", group: Group::Auth, unit: "FILE", reloads: true,
    }

    /// Longest difference between the clocks of the server and of a token's issuer, for `exp` and
    /// `nbf`.
    token_leeway: Duration = parse_duration["5s"] {
        flag: "token-leeway", group: Group::Auth, unit: "DURATION", form: Form::Number, reloads: true,
    }

    /// Which channels a client's SAY reaches: none, the rooms that the client joined by name, or
    /// these and `all`. A SAY that names another channel gets an ERROR event; a SAY that names none
    /// leaves such channels out, and gets no error.
    say: SayPolicy = parse_choice["rooms"] {
        flag: "say", group: Group::Auth, unit: "off|rooms|all", reloads: true,
    }

    /// File with the certificate chain in PEM form. Clients then connect with `wss://` and
    /// `https://`.
    #[cfg(feature = "tls")]
    tls_cert: Option<PathBuf> = parse_path[""] {
        flag: "tls-cert", group: Group::Tls, unit: "FILE", reloads: true,
    }

    /// File with the private key of the certificate in PEM form.
    #[cfg(feature = "tls")]
    tls_key: Option<PathBuf> = parse_path[""] {
        flag: "tls-key", group: Group::Tls, unit: "FILE", reloads: true,
    }

    /// Address for TLS, written like `--listen`; `--listen` then stays without TLS. Without this
    /// flag, `--listen` speaks TLS.
    #[cfg(feature = "tls")]
    tls_listen: Vec<ListenAddress> = parse_list[""] {
        flag: "tls-listen", group: Group::Tls, unit: "ADDRESS", form: Form::List,
    }

    /// Most WebSocket connections; one more gets 503. 0: as many as the limit of open files allows.
    connections_max: usize = parse_count_or_any["0"] {
        flag: "max-connections", group: Group::Limits, unit: "COUNT", form: Form::Number, reloads: true,
    }

    /// Most connections of one client address, WebSockets or not; an IPv6 network of 64 bits counts
    /// as one address. One more gets 429; with TLS the server closes it without an answer. 0: any
    /// number. A limit costs 100 bytes for each connection.
    per_address_max: Option<NonZeroUsize> = parse_limit["0"] {
        flag: "max-per-address", group: Group::Limits, unit: "COUNT", form: Form::Number, reloads: true,
    }

    /// Most HTTP connections of a listener, with idle ones and those of publishers, but without
    /// WebSockets. At the bound, the server closes the connection with the least progress to accept
    /// a new one. Idle connections are closed first while they are more than half of all. If the
    /// server is answering all of them, the new one gets 503; with TLS the server closes it without
    /// an answer.
    handshakes_max: usize = parse_count["4096"] {
        flag: "max-handshakes", group: Group::Limits, unit: "COUNT", form: Form::Number, reloads: true,
    }

    /// Most connections accepted in a second, at all addresses together. Further ones wait in the
    /// kernel's queue, which holds 4,096. 0: any number.
    accept_rate: Option<NonZeroU32> = parse_rate["0"] {
        flag: "accept-rate", group: Group::Limits, unit: "COUNT", form: Form::Number, reloads: true,
    }

    /// Heap in use at which new WebSockets get 503. Backlogs count; memory of the kernel for
    /// sockets does not. 0: no bound.
    memory_bytes_max: Option<NonZeroUsize> = parse_bytes_or_none["0"] {
        flag: "max-memory", was: &["memory-max"], group: Group::Limits, unit: "BYTES", form: Form::Number, reloads: true,
    }

    /// Longest message from a client or a publisher. A longer one closes the client with 1009; a
    /// publisher gets 413.
    message_bytes_max: usize = parse_bytes["64KiB"] {
        flag: "message-bytes", group: Group::Limits, unit: "BYTES", form: Form::Number,
    }

    /// Most fragments of one message; one more closes the client with 1008.
    message_fragments_max: u32 = parse_count["1024"] {
        flag: "message-fragments", group: Group::Limits, unit: "COUNT", form: Form::Number,
    }

    /// Longest request line and headers of a request, together: from 8KiB to 1MiB. Longer ones get
    /// 431.
    header_bytes_max: usize = parse_bytes["16KiB"] {
        flag: "max-header-bytes", group: Group::Limits, unit: "BYTES", form: Form::Number, reloads: true,
    }

    /// Most headers of a request; one more gets 431.
    headers_max: usize = parse_count["64"] {
        flag: "max-headers", group: Group::Limits, unit: "COUNT", form: Form::Number, reloads: true,
    }

    /// Most messages from one client in a second, control frames included; at the bound
    /// `--too-fast` decides. 0: any number.
    client_messages_max: Option<NonZeroU32> = parse_rate["0"] {
        flag: "client-message-rate", was: &["client-messages"], group: Group::Limits, unit: "COUNT", form: Form::Number,
        reloads: true,
    }

    /// Most bytes from one client in a second. A burst may exceed it once by a message of
    /// `--message-bytes`. At the bound `--too-fast` decides. 0: any number.
    client_bytes_max: Option<NonZeroUsize> = parse_bytes_or_none["0"] {
        flag: "client-byte-rate", was: &["client-bytes"], group: Group::Limits, unit: "BYTES", form: Form::Number,
        reloads: true,
    }

    /// How the server treats a client that sends too fast: it closes the client with 1008, or it
    /// drops and counts the client's messages and pings.
    too_fast: TooFastPolicy = parse_choice["disconnect"] {
        flag: "too-fast", group: Group::Limits, unit: "disconnect|drop", reloads: true,
    }

    /// Most bytes that wait for one client (its backlog); a message that waits for several clients
    /// counts for each. At the bound `--slow` decides.
    outbox_bytes_max: usize = parse_bytes["1MiB"] {
        flag: "outbox-bytes", group: Group::SlowClients, unit: "BYTES", form: Form::Number,
    }

    /// How the server treats a client whose backlog is full: it closes the client with 1013, or it
    /// drops and counts the newest or the oldest messages. Answers to the client's own events are
    /// never dropped: a client that sends events and does not read is closed.
    slow: SlowPolicy = parse_choice["disconnect"] {
        flag: "slow", group: Group::SlowClients, unit: "disconnect|drop-newest|drop-oldest",
    }

    /// Kernel send buffer of each client; messages beyond it wait in the backlog. The kernel's
    /// receive buffer has the same size, and at least 64KiB.
    kernel_bytes_max: usize = parse_bytes["256KiB"] {
        flag: "kernel-bytes", group: Group::SlowClients, unit: "BYTES", form: Form::Number,
    }

    /// Most bytes of one channel that are accepted and not yet sent to its subscribers. At the
    /// bound a publisher gets 503, and a client's SAY gets an ERROR event.
    pending_bytes_max: usize = parse_bytes["16MiB"] {
        flag: "pending-bytes", group: Group::SlowClients, unit: "BYTES", form: Form::Number,
    }

    /// How long a client may take to send the head of a request, or its body. Then the server
    /// answers 408.
    handshake_timeout: Duration = parse_duration["10s"] {
        flag: "handshake-timeout", group: Group::Timeouts, unit: "DURATION", form: Form::Number, reloads: true,
    }

    /// How long an HTTP connection may be idle between two requests, at least 1s. It should be
    /// longer than the same timeout of a proxy in front, which is 60s for most.
    keep_alive_timeout: Duration = parse_duration["75s"] {
        flag: "keep-alive-timeout", group: Group::Timeouts, unit: "DURATION", form: Form::Number, reloads: true,
    }

    /// How long a WebSocket client may be silent before the server sends a ping. 0: it sends none.
    ping_interval: Option<Duration> = parse_duration_or_none["25s"] {
        flag: "ping-interval", group: Group::Timeouts, unit: "DURATION", form: Form::Number,
    }

    /// How long the server waits for the answer to a ping, or for anything else from the client.
    /// Then it closes the client with 1011.
    idle_timeout: Duration = parse_duration["10s"] {
        flag: "idle-timeout", group: Group::Timeouts, unit: "DURATION", form: Form::Number,
    }

    /// How long the kernel may hold bytes that a client does not take or acknowledge. Then the
    /// kernel ends the connection.
    write_timeout: Duration = parse_duration["30s"] {
        flag: "write-timeout", group: Group::Timeouts, unit: "DURATION", form: Form::Number,
    }

    /// How long a client may take to answer a close frame. Then the server closes the socket.
    close_timeout: Duration = parse_duration["5s"] {
        flag: "close-timeout", group: Group::Timeouts, unit: "DURATION", form: Form::Number,
    }

    /// How long a graceful shutdown may take after SIGTERM or SIGINT. Then the server closes the
    /// sockets that are left.
    drain_timeout: Duration = parse_duration["10s"] {
        flag: "drain-timeout", group: Group::Timeouts, unit: "DURATION", form: Form::Number,
    }

    /// Clients that a graceful shutdown closes in a second, in random order, so that they do not
    /// all reconnect at once. The rate rises if `--drain-timeout` would be too short.
    drain_rate: NonZeroU32 = parse_count["2000"] {
        flag: "drain-rate", group: Group::Timeouts, unit: "COUNT", form: Form::Number,
    }

    /// Threads that deliver messages; each owns a share of the connections. 0: one for each core.
    shards: NonZeroUsize = parse_cores["0"] {
        flag: "shards", group: Group::Engine, unit: "COUNT", form: Form::Number,
    }

    /// How a message reaches the subscribers; `direct` is the fastest, and the others are there to
    /// compare.
    fanout: Strategy = parse_choice["direct"] {
        flag: "fanout", group: Group::Engine, unit: "direct|wake|ring|mailbox",
    }

    /// Interval of the server's message to the channel `all`, at least 1ms. 0: it sends none.
    tick: Option<Duration> = parse_duration_or_none["3s"] {
        flag: "tick", group: Group::Engine, unit: "DURATION", form: Form::Number,
    }

    /// Batches of at least this size are sent from memory that all sockets share; smaller ones are
    /// copied to each socket. Only for `--fanout direct`.
    pages_bytes_min: usize = parse_bytes["16KiB"] {
        flag: "shared-pages-min", was: &["pages-bytes"], group: Group::Engine, unit: "BYTES", form: Form::Number,
    }

    /// Lowest level that is logged to standard error.
    log: tracing::Level = parse_level["info"] {
        flag: "log", group: Group::Log, unit: "error|warn|info|debug|trace", reloads: true,
    }

    /// Mean number of bytes between two samples of `/debug/pprof/heap`, a power of two. 0: no
    /// samples. A sample costs about 4KiB of memory. With the default, the profile of a quiet
    /// server is empty; `16KiB` shows the 210 bytes of each connection, and costs about 100 bytes
    /// more for each.
    heap_sample: usize = parse_heap_sample["512KiB"] {
        flag: "heap-sample", group: Group::Log, unit: "BYTES", form: Form::Number,
    }

    made {
        /// Verifies the tokens of subscribers; without it, subscribers need no token. Made
        /// of `jwt_secret`, `jwt_secret_file` or `jwt_key`.
        subscriber_key: Option<TokenKey> = None,
        /// The certificate with its key, if clients connect with TLS. Made of `tls_cert` and
        /// `tls_key`.
        tls: Option<Arc<Tls>> = None,
        /// The longest that a channel waits before a pass when more than half of its subscribers
        /// are behind: a burst that is larger than a backlog then slows the publishers, and closes
        /// no client that reads. A batch in the default time is 40 Mbit/s for each subscriber. When
        /// it was in vain, the channel does not wait again until most subscribers have caught up.
        /// Only tests change it.
        pace_max: Duration = Duration::from_millis(50),
    }
}
