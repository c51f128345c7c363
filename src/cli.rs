//! The command line: flags and their environment variables, the log, and exit codes.

use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::engine::Engine;
use crate::jwt::SECRET_BYTES_MIN;
pub use crate::load::process::raise_open_files;
use crate::load::{self, LoadError, Report};
use crate::mem;
use crate::server::{Server, ServerError};
use crate::settings::{self, Flags, Loaded, Reload};

/// Most log lines that wait to be written; further ones are dropped. Each takes 32 bytes and its
/// text.
const LOG_LINES_MAX: usize = 4096;
/// The advice when the machine starts no more threads.
const MORE_THREADS: &str = "allow more threads (ulimit -u) or more memory (ulimit -v)";
/// A second SIGTERM or SIGINT this soon is the first one again: a process group gets it from the
/// terminal and from its leader.
const SAME_SIGNAL: Duration = Duration::from_secs(1);
/// Exit code for a wrong command line (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;
/// Exit code for a load that has lost something.
const LOST: u8 = 1;
/// Exit code for a server that could not start, or a load that could not be run (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;
/// Exit code for a server that did not end well (`EX_SOFTWARE`).
const SOFTWARE: u8 = 70;
/// Open files that connections leave to everything else: listeners, requests, pages, profiles.
const FILES_KEPT: usize = 256;

/// A WebSocket fan-out server: it sends each published message to every subscriber.
///
/// Each setting is a flag, an environment variable or a line of the file of --config:
/// --max-connections 100, HYDRANT_MAX_CONNECTIONS=100 or max_connections = 100. Flags override
/// variables, and variables override the file. Sizes are bytes or have units such as 64KiB;
/// durations have units such as 3s or 500ms.
#[derive(Debug, Parser)]
#[command(name = "hydrant", version, args_conflicts_with_subcommands = true, args_override_self = true)]
#[command(next_line_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server; the same as no command.
    #[command(args_override_self = true, next_line_help = true)]
    Serve(Flags),
    /// Print or check the settings, or print a file with all of them.
    #[command(subcommand)]
    Config(ConfigCommand),
    Load(Box<load::Arguments>),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every setting in effect, and where it comes from: flag, variable, file or default.
    /// Secrets are masked.
    #[command(args_override_self = true, next_line_help = true)]
    Print(Flags),
    /// Check the settings, and the certificates, keys and tokens that they name, and start nothing.
    #[command(args_override_self = true, next_line_help = true)]
    Check(Flags),
    /// Print a file for --config: every setting with its help and its default, as comments.
    Template,
}

/// Runs the command line; the exit code of the process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                eprintln!("{}", in_one_line(&error.to_string()));
                return ExitCode::from(USAGE);
            }
            // Help and version are what was asked for; a closed output loses nothing that matters.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli.command {
        Some(Command::Load(arguments)) => run_load(*arguments),
        Some(Command::Config(ConfigCommand::Template)) => print_text(&settings::template()),
        Some(Command::Config(ConfigCommand::Print(flags))) => {
            with_settings(&flags, |loaded| print_text(&loaded.print()))
        }
        Some(Command::Config(ConfigCommand::Check(flags))) => with_settings(&flags, |loaded| {
            // A limit that cannot be raised is no fault of the settings.
            let clients_max = raise_open_files().map_or(usize::MAX, clients_of);
            let all = settings::misspelt_variables().into_iter().chain(warnings(&loaded, clients_max));
            all.for_each(|sentence| eprintln!("warning: {sentence}"));
            print_text("the settings are right\n")
        }),
        Some(Command::Serve(flags)) => with_settings(&flags, |loaded| serve(&flags, loaded)),
        None => with_settings(&cli.flags, |loaded| serve(&cli.flags, loaded)),
    }
}

/// The first paragraph of clap's message, which names the error, and its hint, without usage, and
/// where to read on.
fn in_one_line(message: &str) -> String {
    let first = message.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    let mut line = first.collect::<Vec<_>>().join(" ");
    if let Some(hint) = message.lines().find_map(|line| line.trim().strip_prefix("tip: ")) {
        line += &format!(": {hint}");
    }
    // An option of the server before a command.
    if let Some(command) = line.strip_prefix("error: the subcommand '").and_then(|rest| rest.split('\'').next()) {
        match command {
            "config" => line += ": write it at the end, as in hydrant config check --config FILE",
            "serve" => line += ": write it at the end, as in hydrant serve --config FILE",
            other => line += &format!(", which has options of its own: see hydrant {other} --help"),
        }
        return line;
    }
    line + "; see hydrant --help"
}

/// Goes on with settings that work, or says in one line why they do not.
fn with_settings(flags: &Flags, go_on: impl FnOnce(Loaded) -> ExitCode) -> ExitCode {
    match settings::load(flags) {
        Ok(loaded) => go_on(loaded),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn print_text(text: &str) -> ExitCode {
    // A closed output, as of `| head`, loses nothing that matters.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Runs the server; the exit code of the process.
fn serve(flags: &Flags, mut loaded: Loaded) -> ExitCode {
    let Some((stderr, _log)) = log_writer() else {
        eprintln!("error: cannot start the thread of the log: {MORE_THREADS}");
        return ExitCode::from(UNAVAILABLE);
    };
    let (level, level_handle) = reload::Layer::new(LevelFilter::from(loaded.config.log));
    let lines = fmt::layer().with_writer(stderr).with_ansi(false).with_target(false).log_internal_errors(false);
    tracing_subscriber::registry().with(level).with(lines).init();
    settings::misspelt_variables().iter().for_each(|sentence| tracing::warn!("{sentence}"));
    mem::sample_heap(loaded.config.heap_sample);
    abort_on_panic();
    let clients_max = clients_of_open_files();
    adapt(&mut loaded, clients_max);
    let reloader = Reloader { flags: flags.clone(), loaded, level: level_handle, clients_max };
    match serve_until_signal(reloader) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use io::ErrorKind::{OutOfMemory, WouldBlock};
            let hint = match &error {
                ServerError::Thread(_, cause) if matches!(cause.kind(), WouldBlock | OutOfMemory) => {
                    format!(": {MORE_THREADS}")
                }
                _ => String::new(),
            };
            eprintln!("error: {error}{hint}");
            ExitCode::from(if matches!(error, ServerError::Listen { .. }) { UNAVAILABLE } else { SOFTWARE })
        }
    }
}

/// The log is written by a thread of its own, which drops lines when it falls behind: a reader of
/// the log that is slow, or has stopped, may not hold up a shard. The guard writes what is left.
/// `None` if the thread cannot be started.
fn log_writer() -> Option<(NonBlocking, WorkerGuard)> {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES_MAX);
    // It panics without a thread; the sentence that says so is ours.
    let print = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let writer = panic::catch_unwind(|| builder.finish(io::stderr()));
    panic::set_hook(print);
    writer.ok()
}

/// Raises the limit of open files, and says how many clients it allows.
fn clients_of_open_files() -> usize {
    match raise_open_files() {
        Ok(limit) => {
            let clients = clients_of(limit);
            tracing::info!("the limit of {limit} open files allows {clients} clients");
            clients
        }
        Err(error) => {
            tracing::warn!("cannot raise the limit of open files: {error}");
            usize::MAX
        }
    }
}

/// The clients that a limit of open files allows.
fn clients_of(open_files_max: u64) -> usize {
    usize::try_from(open_files_max).unwrap_or(usize::MAX).saturating_sub(FILES_KEPT).max(1)
}

/// The warning of a secret for tokens that can be guessed.
fn short_secret_warning(loaded: &Loaded) -> Option<String> {
    let config = &loaded.config;
    config.subscriber_key.as_ref().filter(|key| key.is_short())?;
    let name = loaded.name_of(if config.jwt_secret.is_some() { "jwt-secret" } else { "jwt-secret-file" });
    Some(format!(
        "{name}: the secret is shorter than {SECRET_BYTES_MIN} bytes, so it can be guessed from one token: set a longer \
         one"
    ))
}

/// The warning of more connections than open files allow.
fn open_files_warning(loaded: &Loaded, clients_max: usize) -> Option<String> {
    let wanted = loaded.config.connections_max;
    (wanted != usize::MAX && wanted > clients_max).then(|| {
        let name = loaded.name_of("max-connections");
        format!(
            "{name}: {wanted} is more than the {clients_max} clients that the limit of open files allows: raise it \
             (ulimit -n)"
        )
    })
}

/// The warning of publications that are all rejected.
fn publishing_warning(loaded: &Loaded) -> Option<String> {
    let config = &loaded.config;
    let mut served = config.listeners().into_iter().filter(|(_, served)| served.admin);
    served.all(|(_, served)| config.lacks_token(served)).then(|| {
        let address = config.admin_address();
        format!("nobody can publish, since others reach {address}: set --token, or --open if everybody may")
    })
}

/// The warnings that settings deserve.
fn warnings(loaded: &Loaded, clients_max: usize) -> impl Iterator<Item = String> {
    let all = [open_files_warning(loaded, clients_max), short_secret_warning(loaded), publishing_warning(loaded)];
    all.into_iter().flatten()
}

/// Logs the warnings, and lowers the bound of connections to what open files allow.
fn adapt(loaded: &mut Loaded, clients_max: usize) {
    warnings(loaded, clients_max).for_each(|sentence| tracing::warn!("{sentence}"));
    loaded.config.connections_max = loaded.config.connections_max.min(clients_max);
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

fn serve_until_signal(mut reloader: Reloader) -> Result<(), ServerError> {
    let failed = |error| ServerError::Thread("cannot start the admin thread", error);
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).map_err(failed)?;
    runtime.block_on(async {
        let server = Server::bind(reloader.loaded.config.clone())?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let engine = server.engine();
        // The runtime ends it.
        tokio::task::spawn_local(async move {
            while hangup.recv().await.is_some() {
                reloader.reload(&engine);
            }
        });
        let (first, seen) = tokio::sync::oneshot::channel();
        tokio::task::spawn_local(async move {
            let (mut first, mut shutdown) = (Some(first), Shutdown::default());
            loop {
                let code = tokio::select! {
                    _ = terminate.recv() => 128 + libc::SIGTERM,
                    _ = interrupt.recv() => 128 + libc::SIGINT,
                };
                match shutdown.on_signal(Instant::now()) {
                    // Without a receiver the server has ended already.
                    SignalAction::Drain => drop(first.take().map(|first| first.send(()))),
                    SignalAction::Ignore => {}
                    SignalAction::Exit => {
                        tracing::warn!("a second signal: ending at once");
                        std::process::exit(code);
                    }
                }
            }
        });
        server.run(async { drop(seen.await) }).await.map(drop)
    })
}

/// When SIGTERM or SIGINT came first.
#[derive(Default)]
struct Shutdown {
    begun: Option<Instant>,
}

/// The effect of a SIGTERM or SIGINT.
#[derive(Debug, PartialEq, Eq)]
enum SignalAction {
    /// Begins the drain.
    Drain,
    /// Nothing: it is the first one again.
    Ignore,
    /// Ends the process at once.
    Exit,
}

impl Shutdown {
    fn on_signal(&mut self, now: Instant) -> SignalAction {
        match self.begun {
            None => {
                self.begun = Some(now);
                SignalAction::Drain
            }
            Some(begun) if now.saturating_duration_since(begun) < SAME_SIGNAL => SignalAction::Ignore,
            Some(_) => SignalAction::Exit,
        }
    }
}

/// Loads the settings again at SIGHUP.
struct Reloader {
    flags: Flags,
    /// The settings in effect.
    loaded: Loaded,
    level: reload::Handle<LevelFilter, Registry>,
    /// The clients that open files allow.
    clients_max: usize,
}

impl Reloader {
    /// Puts into effect what can change, and names what cannot. With a fault anywhere, everything
    /// stays as it is.
    fn reload(&mut self, engine: &Engine) {
        let reloaded = settings::load(&self.flags)
            .map_err(|error| error.to_string())
            .and_then(|fresh| self.loaded.reload(&fresh).map_err(|error| error.to_string()));
        let Reload { mut loaded, changes, needs_restart } = match reloaded {
            Ok(reload) => reload,
            Err(error) => return tracing::error!("not reloaded, all settings stay as they are: {error}"),
        };
        adapt(&mut loaded, self.clients_max);
        // It fails only without a log.
        let _ = self.level.reload(LevelFilter::from(loaded.config.log));
        engine.reload(loaded.config.clone());
        match changes[..] {
            [] => tracing::info!("reloaded: no setting has changed"),
            _ => tracing::info!("reloaded: {}", changes.join(", ")),
        }
        if !needs_restart.is_empty() {
            tracing::warn!("only a restart changes: {}", needs_restart.join(", "));
        }
        self.loaded = loaded;
    }
}

/// A panic in any thread ends the process with its message: half a server is worse than none.
fn abort_on_panic() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::settings::Config;

    #[test]
    fn signals_within_a_second_are_one() {
        let (mut shutdown, start) = (Shutdown::default(), Instant::now());
        let mut after = |milliseconds| shutdown.on_signal(start + Duration::from_millis(milliseconds));
        assert_eq!([0, 1, 999].map(&mut after), [SignalAction::Drain, SignalAction::Ignore, SignalAction::Ignore]);
        assert_eq!(after(1000), SignalAction::Exit);
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn its_defaults_are_those_of_the_config() {
        let cli = Cli::try_parse_from(["hydrant"]).unwrap();
        assert_eq!(format!("{:?}", settings::load(&cli.flags).unwrap().config), format!("{:?}", Config::default()));
    }
}
