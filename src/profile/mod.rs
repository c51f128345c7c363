//! Profiles of this process: where its CPU time goes, and which code holds its heap.
//!
//! Owns the way from a request to the bytes of the answer: samples, the names of their functions,
//! and the two formats (pprof's protobuf and a flamegraph). [`start`] returns at once: every
//! profile is made on a thread of its own. A profiled thread only runs a signal handler that copies
//! its stack. At most one profile of each subject is made at a time. Never knows a route or a
//! client.
//!
//! | file | owns |
//! |---|---|
//! | `cpu.rs` | the timers of a CPU profile, and its end |
//! | `signal.rs` | the signal handler, and the slots for its copies of stacks |
//! | `modules.rs` | the loaded files, and the unwinding of stacks |
//! | `heap.rs` | jemalloc's dump, read and scaled |
//! | `make.rs` | the thread that makes a profile |
//! | `symbols.rs` | from addresses to the names of functions |
//! | `pprof.rs`, `flamegraph.rs` | the two formats |

#[cfg(feature = "profiling")]
mod cpu;
#[cfg(feature = "profiling")]
mod flamegraph;
#[cfg(feature = "profiling")]
mod heap;
#[cfg(feature = "profiling")]
mod make;
#[cfg(feature = "profiling")]
mod modules;
#[cfg(feature = "profiling")]
mod pprof;
#[cfg(feature = "profiling")]
mod signal;
#[cfg(feature = "profiling")]
mod symbols;

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::sync::oneshot;

/// The subject of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The present heap, and beside it everything allocated since the start.
    Heap,
    /// The CPU time of every thread.
    Cpu {
        /// For how long samples are taken.
        duration: Duration,
        /// Samples per second of each thread's CPU time.
        frequency_hz: NonZeroU32,
    },
}

/// The format of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// pprof's protobuf (`profile.proto`), gzipped.
    Pprof,
    /// A flamegraph as SVG, of the value with this index (see [`VALUES_ALLOCATED`] and
    /// [`VALUES_LIVE`]).
    Svg {
        /// The index of the value that the width of a function shows.
        value: usize,
    },
}

/// The index of the value of a heap profile that counts the bytes allocated since the start.
pub const VALUES_ALLOCATED: usize = 1;
/// The index of the value of a heap profile that counts the bytes in use.
pub const VALUES_LIVE: usize = 3;
/// The index of the value of a CPU profile that counts nanoseconds.
pub const VALUES_CPU: usize = 1;

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoProfile {
    /// This build, or this process, cannot make it; the sentence says what to build or to start.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The heap has no samples.
    #[error(
        "the heap has no samples: too little is allocated for one of every {0} bytes; start the \
         server with --heap-sample 16KiB"
    )]
    Empty(i64),
    /// Another profile of the same subject is being made.
    #[error("another profile of the same kind is being made: try again when it has ended")]
    Busy,
    /// The profile failed.
    #[error("the profile failed: {0}")]
    Failed(String),
}

/// A request for a profile. Dropping the receiver of `answer` ends the profile early.
#[derive(Debug)]
pub struct Request {
    /// The subject of the profile.
    pub subject: Subject,
    /// Its format.
    pub format: Format,
    /// Receives the bytes of the profile.
    pub answer: oneshot::Sender<Result<Vec<u8>, NoProfile>>,
}

/// Makes a profile on a thread of its own; returns at once.
pub fn start(request: Request) {
    #[cfg(feature = "profiling")]
    make::start(request);
    #[cfg(not(feature = "profiling"))]
    {
        let sentence = "this server was built without profiles: build it with --features profiling";
        // The receiver may be gone.
        let _ = request.answer.send(Err(NoProfile::Unavailable(sentence)));
    }
}
