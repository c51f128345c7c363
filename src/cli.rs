//! The command line: flags and their environment twins, the log, and exit codes.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::NonBlockingBuilder;

pub use crate::load::process::raise_open_files;
use crate::load::{self, LoadError, Report};
use crate::mem;
use crate::server::{Server, ServerError};
use crate::settings::{self, Config, FILES_KEPT, Flags, Loaded};

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
///
/// Every flag is an environment variable, too: --max-connections is HYDRANT_MAX_CONNECTIONS. Sizes are bytes or have units such as
/// 64KiB; durations have units such as 3s or 500ms.
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
    Load(Box<load::Arguments>),
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
    let flags = match cli.command {
        Some(Command::Serve(flags)) => flags,
        Some(Command::Load(arguments)) => return run_load(*arguments),
        None => cli.flags,
    };
    let Loaded { mut config, .. } = match settings::load(&flags) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(USAGE);
        }
    };
    // Written by a thread of its own, which drops lines when it falls behind: nobody who reads the log slowly, or not at
    // all, may hold up a shard. The guard writes what is left.
    let (stderr, _log) = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES_MAX).finish(io::stderr());
    let log = tracing_subscriber::fmt().with_max_level(config.log).with_writer(stderr).with_ansi(false);
    log.with_target(false).log_internal_errors(false).init();
    mem::sample_heap(config.heap_sample);
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
        assert_eq!(format!("{:?}", settings::load(&cli.flags).unwrap().config), format!("{:?}", Config::default()));
    }
}
