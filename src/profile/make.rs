//! Makes a profile, from the request to the bytes of the answer, on a thread of its own.
//!
//! Owns the right to make a profile (one of each subject at a time) and the types that the parts of
//! a profile share. Never knows how a subject is measured or a format is written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::modules::Modules;
use super::symbols::{Symbols, resolve};
use super::{Format, NoProfile, Request, Subject, cpu, flamegraph, heap, pprof};
use crate::mem;

/// The kind of one number of a sample, as pprof names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
}

/// One stack, and the numbers that were counted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// Addresses inside the instructions that were running or calling; the innermost first.
    pub(super) stack: Vec<u64>,
    /// One number for each [`Value`] of the profile.
    pub(super) values: Vec<i64>,
    /// The thread that ran; `None` when the subject has no threads.
    pub(super) thread: Option<String>,
}

/// The result of a measurement; its addresses have no names yet.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) values: &'static [Value],
    pub(super) samples: Vec<Sample>,
    /// The value that is sampled, and how much of it lies between two samples.
    pub(super) period: (Value, i64),
    pub(super) started: SystemTime,
    pub(super) duration: Duration,
    /// Facts that a reader of the profile has to know.
    pub(super) comments: Vec<String>,
}

/// A profile whose addresses have names.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) measured: Measured,
    /// Its stacks are in the order of the samples.
    pub(super) symbols: Symbols,
}

static HEAP_BUSY: AtomicBool = AtomicBool::new(false);
static CPU_BUSY: AtomicBool = AtomicBool::new(false);

/// The right to make a profile of one subject, given back on drop.
struct Permit(&'static AtomicBool);

impl Permit {
    fn take(subject: Subject) -> Option<Self> {
        let busy = match subject {
            Subject::Heap => &HEAP_BUSY,
            Subject::Cpu { .. } => &CPU_BUSY,
        };
        // Acquire: pairs with the release of the last holder's drop.
        (!busy.swap(true, Ordering::Acquire)).then_some(Self(busy))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Release: pairs with the acquire of the next holder.
        self.0.store(false, Ordering::Release);
    }
}

/// See [`super::start`].
pub(super) fn start(request: Request) {
    let Request { subject, format, answer } = request;
    let Some(permit) = Permit::take(subject) else {
        // The receiver may be gone; the same holds below.
        let _ = answer.send(Err(NoProfile::Busy));
        return;
    };
    let body = move || {
        mem::take_no_samples();
        let made = make(subject, format, &answer);
        drop(permit);
        let _ = answer.send(made);
    };
    // Not joined: the thread ends with the profile, or when the receiver is gone.
    if let Err(error) = thread::Builder::new().name("profile".to_owned()).spawn(body) {
        tracing::warn!("cannot start a thread for a profile: {error}");
    }
}

fn make(
    subject: Subject,
    format: Format,
    answer: &oneshot::Sender<Result<Vec<u8>, NoProfile>>,
) -> Result<Vec<u8>, NoProfile> {
    let modules = Modules::loaded();
    let measured = match subject {
        Subject::Heap => heap::measure()?,
        Subject::Cpu { duration, frequency_hz } => {
            cpu::measure(&modules, duration, frequency_hz, || !answer.is_closed())?
        }
    };
    let mut symbols = resolve(&modules, measured.samples.iter().map(|sample| sample.stack.as_slice()));
    if subject == Subject::Heap {
        symbols.strip(heap::is_allocator);
    }
    let profile = Profile { measured, symbols };
    match format {
        Format::Pprof => pprof::write(&profile, &modules).map_err(|error| NoProfile::Failed(error.to_string())),
        Format::Svg { value } => Ok(flamegraph::write(&profile, value).into_bytes()),
    }
}
