//! The command line: flags and their environment twins, the log, and exit codes.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::NonBlockingBuilder;

use crate::config::{Config, FILES_KEPT, SayPolicy, SlowPolicy, Strategy, TooFastPolicy, parse_bytes, parse_duration};
use crate::jwt::TokenKey;
pub use crate::load::process::raise_open_files;
use crate::load::{self, LoadError, Report};
use crate::mem;
use crate::server::{Server, ServerError};
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// Log lines that may wait to be written, 32 bytes each and the line; further ones are dropped.
const LOG_LINES_MAX: usize = 4096;
/// Exit code for a wrong command line (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;
/// Exit code for a load that has lost something.
const LOST: u8 = 1;
/// Exit code for a server that could not start, or a load that could not be run (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;
/// Exit code for a server that did not end well (`EX_SOFTWARE`).
const SOFTWARE: u8 = 70;

/// A WebSocket fan-out server: one message in, every subscriber gets it.
#[derive(Debug, Parser)]
#[command(name = "hydrant", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server; the same as no command.
    Serve(Box<Serve>),
    Load(Box<load::Arguments>),
}

/// Sizes are bytes, with units such as 64KiB; durations have units such as 3s or 500ms.
#[derive(Debug, Args)]
#[command(next_line_help = true, args_override_self = true)]
struct Serve {
    /// Address and port to listen on; port 0 lets the kernel choose and the log names it.
    /// Beyond loopback, publish and admin routes need --token
    #[arg(long, env = "HYDRANT_LISTEN", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Number of shards, one thread each [default: the number of cores]
    #[arg(long, env = "HYDRANT_SHARDS")]
    shards: Option<NonZeroUsize>,
    /// How a message reaches the subscribers
    #[arg(long, env = "HYDRANT_FANOUT", value_enum, default_value = "direct")]
    fanout: Strategy,
    /// Interval of the server's message to the channel `all`, at least 1ms; 0 sends none
    #[arg(long, env = "HYDRANT_TICK", value_parser = parse_duration, default_value = "3s")]
    tick: Duration,
    /// Bytes that may wait for one connection, each counted as if it had a copy of its own; at the bound --slow decides
    #[arg(long, env = "HYDRANT_OUTBOX_BYTES", value_parser = parse_bytes, default_value = "1MiB")]
    outbox_bytes: usize,
    /// What happens to a client whose backlog is full: it is closed with 1013, or the newest or the oldest messages are
    /// dropped and counted
    #[arg(long, env = "HYDRANT_SLOW", value_enum, default_value = "disconnect")]
    slow: SlowPolicy,
    /// Longest message that a client or a publisher may send, in bytes; a client's longer one ends it with 1009, a
    /// publisher gets 413
    #[arg(long, env = "HYDRANT_MESSAGE_BYTES", value_parser = parse_bytes, default_value = "64KiB")]
    message_bytes: usize,
    /// Most fragments of one message; one more ends the client with 1008
    #[arg(long, env = "HYDRANT_MESSAGE_FRAGMENTS", default_value_t = 1024)]
    message_fragments: u32,
    /// Bytes accepted for one channel and not yet fanned out; at the bound publishers get 503 and speakers an ERROR
    #[arg(long, env = "HYDRANT_PENDING_BYTES", value_parser = parse_bytes, default_value = "16MiB")]
    pending_bytes: usize,
    /// Bytes that the kernel may hold for one client: unsent, before what follows waits in its backlog; and unread, at least 64KiB
    #[arg(long, env = "HYDRANT_KERNEL_BYTES", value_parser = parse_bytes, default_value = "256KiB")]
    kernel_bytes: usize,
    /// Batches of at least so many bytes are sent from pages that all sockets share, with `--fanout direct`; shorter ones
    /// are copied to each socket
    #[arg(long, alias = "pages-bytes", env = "HYDRANT_SHARED_PAGES_MIN", value_parser = parse_bytes, default_value = "16KiB")]
    shared_pages_min: usize,
    /// Connections that a drain closes in a second, in no order, so that not all of them come back in the same one; more, when
    /// --drain-timeout would not do
    #[arg(long, env = "HYDRANT_DRAIN_RATE", default_value = "2000")]
    drain_rate: NonZeroU32,
    /// How long a drain may take after SIGTERM or SIGINT; what is left then is cut
    #[arg(long, env = "HYDRANT_DRAIN_TIMEOUT", value_parser = parse_duration, default_value = "10s")]
    drain_timeout: Duration,
    /// Most messages of one client in a second, control frames included; at the bound --too-fast decides. 0: any number
    #[arg(long, alias = "client-messages", env = "HYDRANT_CLIENT_MESSAGE_RATE", default_value_t = 0)]
    client_message_rate: u32,
    /// Most bytes of one client in a second, beside one message of the longest; at the bound --too-fast decides. 0: any number
    #[arg(long, alias = "client-bytes", env = "HYDRANT_CLIENT_BYTE_RATE", value_parser = parse_bytes, default_value = "0")]
    client_byte_rate: usize,
    /// What happens to a client that sends too fast: it is closed with 1008, or its messages and pings are dropped and counted
    #[arg(long, env = "HYDRANT_TOO_FAST", value_enum, default_value = "disconnect")]
    too_fast: TooFastPolicy,
    /// Most WebSocket connections; one more is answered with 503. 0: as many as open files allow, less 256
    #[arg(long, env = "HYDRANT_MAX_CONNECTIONS", default_value_t = 0)]
    max_connections: usize,
    /// Most connections of one address, or of one IPv6 network of 64 bits, WebSockets or not; one more is answered with 429, or
    /// by TLS with the end of the stream. 0: any number. Costs a connection 100 bytes more
    #[arg(long, env = "HYDRANT_MAX_PER_ADDRESS", default_value_t = 0)]
    max_per_address: usize,
    /// Most sockets, at each port, whose request is not finished, or that wait to send another; one more takes the place of the one
    /// that has got least far, of those the oldest, but half are kept for those whose first request is not finished; if all are being
    /// answered, it gets 503, or by TLS the end of the stream
    #[arg(long, env = "HYDRANT_MAX_HANDSHAKES", default_value_t = 4096)]
    max_handshakes: usize,
    /// How long a client may take for a request head, for a body, or to use an idle HTTP connection again
    #[arg(long, env = "HYDRANT_HANDSHAKE_TIMEOUT", value_parser = parse_duration, default_value = "10s")]
    handshake_timeout: Duration,
    /// Sockets accepted in a second; the others wait in the kernel's queue, which holds 4,096. 0: any number
    #[arg(long, env = "HYDRANT_ACCEPT_RATE", default_value_t = 0)]
    accept_rate: u32,
    /// Bytes of heap in use from which on WebSockets are answered with 503; 0 is no bound. What waits for clients counts;
    /// what the kernel holds for their sockets does not
    #[arg(long, alias = "memory-max", env = "HYDRANT_MAX_MEMORY", value_parser = parse_bytes, default_value = "0")]
    max_memory: usize,
    /// Origins whose pages may connect, beside the server's own host and clients that are no browsers: for example
    /// https://example.com or https://*.example.com, several with commas; * for all. Others get 403
    #[arg(long, env = "HYDRANT_ALLOW_ORIGIN", value_delimiter = ',')]
    allow_origin: Vec<String>,
    /// How long a client may say nothing before it gets a ping; 0 sends none
    #[arg(long, env = "HYDRANT_PING_INTERVAL", value_parser = parse_duration, default_value = "25s")]
    ping_interval: Duration,
    /// How long a client that got a ping may still say nothing; then it is closed with 1011
    #[arg(long, env = "HYDRANT_IDLE_TIMEOUT", value_parser = parse_duration, default_value = "10s")]
    idle_timeout: Duration,
    /// How long the kernel may hold bytes that a client does not take, or whose arrival it does not confirm; then the
    /// connection is ended
    #[arg(long, env = "HYDRANT_WRITE_TIMEOUT", value_parser = parse_duration, default_value = "30s")]
    write_timeout: Duration,
    /// How long a closing handshake may take before the socket is cut
    #[arg(long, env = "HYDRANT_CLOSE_TIMEOUT", value_parser = parse_duration, default_value = "5s")]
    close_timeout: Duration,
    /// Whom a client's SAY reaches: nobody, the rooms that it joined by name, or these and the channel `all`
    #[arg(long, env = "HYDRANT_SAY", value_enum, default_value = "rooms")]
    say: SayPolicy,
    /// Shared secret of subscribers' tokens (JWT, HS256): WebSockets then need one, in `Authorization: Bearer` or `?token=`,
    /// with `exp`, and with the claim `channels` only those channels (`room-*` for all that begin so)
    #[arg(long, env = "HYDRANT_JWT_SECRET", hide_env_values = true, conflicts_with = "jwt_key")]
    jwt_secret: Option<String>,
    /// The same with a public key in a PEM file: RSA for RS256, P-256 for ES256
    #[arg(long, env = "HYDRANT_JWT_KEY")]
    jwt_key: Option<PathBuf>,
    /// Certificate chain in a PEM file: clients then have to come by TLS, with wss:// and https://, see --tls-listen. Read again
    /// at SIGHUP, for the connections to come
    #[cfg(feature = "tls")]
    #[arg(long, env = "HYDRANT_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key in a PEM file
    #[cfg(feature = "tls")]
    #[arg(long, env = "HYDRANT_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Address and port for TLS; --listen then stays without it. Not set, --listen is the one with TLS
    #[cfg(feature = "tls")]
    #[arg(long, env = "HYDRANT_TLS_LISTEN", requires = "tls_cert")]
    tls_listen: Option<SocketAddr>,
    /// Address and port for the admin routes (/debug and /metrics), which then are nowhere else. Publishers are served there
    /// too, WebSockets are not; without TLS
    #[arg(long, env = "HYDRANT_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Bearer token for publish and admin routes; without one they answer only at loopback addresses, and there to who asks for
    /// localhost or such an address, and not through a proxy that says it is one
    #[arg(long, env = "HYDRANT_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Mean number of bytes between two samples for /debug/pprof/heap, a power of two; 0 takes none. A sample costs a page
    /// of memory: with 16KiB a connection's 210 bytes of heap show well, and cost 100 bytes more
    #[arg(long, env = "HYDRANT_HEAP_SAMPLE", value_parser = parse_heap_sample, default_value = "512KiB")]
    heap_sample: usize,
    /// Least level that is logged to standard error: error, warn, info, debug or trace
    #[arg(long, env = "HYDRANT_LOG", default_value = "info")]
    log: tracing::Level,
}

impl Serve {
    fn config(self) -> Result<Config, String> {
        let default = Config::default();
        #[cfg(feature = "tls")]
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => {
                let wrong = |error| format!("--tls-cert and --tls-key: {error}");
                Some(Tls::load(&cert, &key).map_err(wrong)?.into())
            }
            _ => None,
        };
        #[cfg(feature = "tls")]
        let tls_listen = self.tls_listen;
        #[cfg(not(feature = "tls"))]
        let (tls, tls_listen) = (None, None);
        let subscriber_key = match (self.jwt_secret, self.jwt_key) {
            (Some(secret), _) if secret.is_empty() => {
                return Err("--jwt-secret is empty: leave it out, or set one".to_owned());
            }
            (Some(secret), _) => Some(TokenKey::from_secret(&secret)),
            (None, Some(path)) => {
                let key = fs::read(&path).map_err(|error| error.to_string()).and_then(|pem| TokenKey::from_pem(&pem));
                let wrong = |error| format!("--jwt-key {}: {error}: name a public key in PEM", path.display());
                Some(key.map_err(wrong)?)
            }
            (None, None) => None,
        };
        Ok(Config {
            subscriber_key,
            listen: self.listen,
            shards: self.shards.unwrap_or(default.shards),
            fanout: self.fanout,
            tick: Some(self.tick).filter(|tick| !tick.is_zero()),
            outbox_bytes_max: self.outbox_bytes,
            slow: self.slow,
            message_bytes_max: self.message_bytes,
            message_fragments_max: self.message_fragments,
            pending_bytes_max: self.pending_bytes,
            kernel_bytes_max: self.kernel_bytes,
            pages_bytes_min: self.shared_pages_min,
            drain_rate: self.drain_rate,
            drain_timeout: self.drain_timeout,
            client_messages_max: NonZeroU32::new(self.client_message_rate),
            client_bytes_max: NonZeroUsize::new(self.client_byte_rate),
            too_fast: self.too_fast,
            connections_max: if self.max_connections == 0 { usize::MAX } else { self.max_connections },
            per_address_max: NonZeroUsize::new(self.max_per_address),
            handshakes_max: self.max_handshakes,
            handshake_timeout: self.handshake_timeout,
            accept_rate: NonZeroU32::new(self.accept_rate),
            memory_bytes_max: NonZeroUsize::new(self.max_memory),
            allow_origin: self.allow_origin,
            ping_interval: Some(self.ping_interval).filter(|interval| !interval.is_zero()),
            idle_timeout: self.idle_timeout,
            write_timeout: self.write_timeout,
            close_timeout: self.close_timeout,
            say: self.say,
            tls,
            tls_listen,
            admin_listen: self.admin_listen,
            token: self.token,
            ..default
        })
    }
}

/// Reads what `--heap-sample` takes: 0 or a power of two, of a gibibyte at most.
fn parse_heap_sample(text: &str) -> Result<usize, String> {
    match parse_bytes(text)? {
        bytes if bytes == 0 || bytes.is_power_of_two() && bytes <= 1 << 30 => Ok(bytes),
        _ => Err("write 0, or a power of two up to 1GiB, for example 16KiB".to_owned()),
    }
}

/// Runs the command line; the exit code of the process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                // clap adds usage and hints in paragraphs of their own; the first one says what is wrong.
                let message = error.to_string();
                let first: Vec<_> = message.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
                eprintln!("{}; see hydrant --help", first.join(" "));
                return ExitCode::from(USAGE);
            }
            // Help and version are what was asked for; a closed output loses nothing that matters.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    let serve = match cli.command {
        Some(Command::Serve(serve)) => *serve,
        Some(Command::Load(arguments)) => return run_load(*arguments),
        None => cli.serve,
    };
    // Written by a thread of its own, which drops lines when it falls behind: nobody who reads the log slowly, or not at
    // all, may hold up a shard. The guard writes what is left.
    let (stderr, _log) = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES_MAX).finish(io::stderr());
    let log = tracing_subscriber::fmt().with_max_level(serve.log).with_writer(stderr).with_ansi(false);
    log.with_target(false).log_internal_errors(false).init();
    let heap_sample = serve.heap_sample;
    let checked = serve.config().and_then(|config| config.check().map(|()| config).map_err(|error| error.to_string()));
    let mut config = match checked {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(USAGE);
        }
    };
    mem::sample_heap(heap_sample);
    abort_on_panic();
    match raise_open_files() {
        Ok(limit) => {
            tracing::info!(limit, "open files");
            let files = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(FILES_KEPT).max(1);
            config.connections_max = config.connections_max.min(files);
        }
        Err(error) => tracing::warn!("cannot raise the limit of open files: {error}"),
    }
    match serve_until_signal(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, ServerError::Listen { .. }) { UNAVAILABLE } else { SOFTWARE })
        }
    }
}

fn run_load(arguments: load::Arguments) -> ExitCode {
    let options = match arguments.options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let printed = load::run(&options, &format!("hydrant {command}")).and_then(|report| {
        print_report(&report, options.json)?;
        Ok(report.passed)
    });
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(LOST),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, LoadError::WarmUp(_)) { LOST } else { UNAVAILABLE })
        }
    }
}

fn print_report(report: &Report, as_json: bool) -> Result<(), LoadError> {
    let mut stdout = io::stdout().lock();
    if as_json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(report).map_err(io::Error::from)?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    Ok(())
}

fn serve_until_signal(config: Config) -> Result<(), ServerError> {
    let failed = |error| ServerError::Thread("cannot start the admin thread", error);
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).map_err(failed)?;
    runtime.block_on(async {
        let server = Server::bind(config)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let engine = server.engine();
        // The runtime ends it.
        tokio::task::spawn_local(async move {
            while hangup.recv().await.is_some() {
                read_again(&engine.config);
            }
        });
        let (first, seen) = tokio::sync::oneshot::channel();
        tokio::task::spawn_local(async move {
            let mut first = Some(first);
            loop {
                let code = tokio::select! {
                    _ = terminate.recv() => 128 + libc::SIGTERM,
                    _ = interrupt.recv() => 128 + libc::SIGINT,
                };
                match first.take() {
                    Some(first) => drop(first.send(())),
                    None => {
                        tracing::warn!("a second signal: ending at once");
                        std::process::exit(code);
                    }
                }
            }
        });
        server.run(async { drop(seen.await) }).await.map(drop)
    })
}

/// What SIGHUP asks for.
fn read_again(config: &Config) {
    #[cfg(feature = "tls")]
    if let Some(tls) = &config.tls {
        return match tls.reload() {
            Ok(()) => tracing::info!("the certificate was read again"),
            Err(error) => tracing::error!("{error}; the certificate that was read before stays in use"),
        };
    }
    let _ = config;
    tracing::info!("SIGHUP: there is no certificate to read again");
}

/// A panic in any thread ends the process with its message: half a server is worse than none.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn its_defaults_are_those_of_the_config() {
        let cli = Cli::try_parse_from(["hydrant"]).unwrap();
        assert_eq!(format!("{:?}", cli.serve.config().unwrap()), format!("{:?}", Config::default()));
    }

    #[test]
    fn every_flag_has_its_environment_twin() {
        for argument in Serve::augment_args(clap::Command::new("serve")).get_arguments() {
            let twin = format!("HYDRANT_{}", argument.get_id().as_str().to_uppercase());
            assert_eq!(argument.get_env(), Some(twin.as_ref()), "{argument}");
            assert!(argument.get_help().is_some(), "{argument}");
        }
    }
}
