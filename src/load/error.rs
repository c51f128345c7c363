//! The reasons why a load could not run, or ended early.

use std::io;

use super::delivery_tracker::Counts;
use super::secrets::Secrets;

/// Why a load could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server cannot be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The first connections failed.
    #[error("{0}")]
    Handshake(String),
    /// Fewer clients are connected than a figure would claim.
    #[error("{missing} of {requested} connections are missing: {first_error}")]
    MissingConnections {
        /// How many are missing.
        missing: u64,
        /// How many were requested.
        requested: u64,
        /// The first error.
        first_error: String,
    },
    /// A publication was not accepted.
    #[error("{0}")]
    Publish(String),
    /// The warm-up received nothing at all.
    #[error(
        "no published message has arrived at --url{0}: check that --url and --publish-url belong to the same channel \
         of the same server"
    )]
    NothingReceived(String),
    /// The warm-up was not exact, so nothing was measured.
    #[error(
        "the warm-up received {} of {} messages, with {} gaps, {} repeats, {} reordered, {} damaged",
        .0.received, .0.expected, .0.gaps, .0.repeats, .0.reordered, .0.damaged
    )]
    WarmUp(Counts),
    /// A process given with --pid cannot be read.
    #[error("--pid {0}: {1}")]
    Process(u32, io::Error),
    /// There are more connections than open files allowed.
    #[error(
        "the load needs {needed} open files and {most} are allowed: use fewer --connections, or raise the hard limit \
         (ulimit -Hn)"
    )]
    OpenFiles {
        /// Files that the load would have open.
        needed: u64,
        /// The hard limit.
        most: u64,
    },
    /// The load was interrupted, or the server has closed all connections: its report is partial.
    #[error("{0}")]
    EndedEarly(String),
    /// A system call failed.
    #[error("the load cannot go on: {0}")]
    Kernel(#[from] io::Error),
}

impl LoadError {
    /// A signal has ended the load.
    pub(super) fn interrupted() -> Self {
        Self::EndedEarly("interrupted by a signal".to_owned())
    }

    /// The same error without secrets in it.
    pub(super) fn masked(self, secrets: &Secrets) -> Self {
        match self {
            Self::Handshake(text) => Self::Handshake(secrets.mask(&text)),
            Self::Publish(text) => Self::Publish(secrets.mask(&text)),
            Self::NothingReceived(text) => Self::NothingReceived(secrets.mask(&text)),
            Self::EndedEarly(text) => Self::EndedEarly(secrets.mask(&text)),
            Self::MissingConnections { missing, requested, first_error } => {
                Self::MissingConnections { missing, requested, first_error: secrets.mask(&first_error) }
            }
            Self::Connect { .. } | Self::WarmUp(_) | Self::Process(..) | Self::OpenFiles { .. } | Self::Kernel(_) => {
                self
            }
        }
    }
}
