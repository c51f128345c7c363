//! The error of a server as a whole: it could not start, or it did not end well.

use std::io;

/// Why a server could not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port could not be opened.
    #[error("cannot listen on {address} ({flag}): {source}{}", if source.kind() == io::ErrorKind::AddrInUse { "; is another server running there?" } else { "" })]
    Listen {
        /// Where it was to listen.
        address: String,
        /// The flag that names another address.
        flag: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A thread, a runtime or an epoll set could not be had, or failed.
    #[error("{0}: {1}")]
    Thread(&'static str, io::Error),
    /// A thread panicked; its message has been printed.
    #[error("{0} has panicked")]
    Panicked(&'static str),
    /// A drain has not ended although its time was long over.
    #[error("a shard did not end in time")]
    Stuck,
}
