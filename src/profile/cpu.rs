//! A CPU profile: one timer on the CPU clock of each thread, whose signals copy stacks until the
//! time is over.
//!
//! Each thread has its own timer, because the process-wide one signals at most once a clock tick,
//! whichever thread runs. A thread that starts during the profile is not in it; the threads of a
//! server start with the server.

use std::collections::HashMap;
use std::mem::zeroed;
use std::num::NonZeroU32;
use std::ptr::null_mut;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io, thread};

use super::NoProfile;
use super::make::{Measured, Sample, Value};
use super::modules::{Modules, StackUnwinder};
use super::signal::Activated;

/// The values of a CPU profile; [`super::VALUES_CPU`] is an index into it.
const VALUES: &[Value] = &[Value { what: "samples", unit: "count" }, Value { what: "cpu", unit: "nanoseconds" }];
/// How often the copied stacks are unwound, so that slots become free.
const DRAIN_INTERVAL: Duration = Duration::from_millis(5);

/// Samples every other thread for `duration`, or until `is_wanted` returns false.
pub(super) fn measure(
    modules: &Modules,
    duration: Duration,
    frequency_hz: NonZeroU32,
    is_wanted: impl Fn() -> bool,
) -> Result<Measured, NoProfile> {
    let failed = |error: io::Error| NoProfile::Failed(error.to_string());
    let period = Duration::from_secs(1) / frequency_hz.get();
    let (started, begin) = (SystemTime::now(), Instant::now());
    let mut unwinder = StackUnwinder::new(modules);
    // Dropped last, because no timer may run without it.
    let slots = Activated::new().map_err(failed)?;
    let threads = threads().map_err(failed)?;
    let timers: Vec<_> =
        threads.iter().enumerate().filter_map(|(index, thread)| Timer::start(thread, index, period)).collect();
    if timers.is_empty() {
        return Err(NoProfile::Failed("no thread could be given a timer".to_owned()));
    }
    let mut counts: HashMap<(usize, Vec<u64>), i64> = HashMap::new();
    let mut truncated = 0;
    let mut drain = || {
        slots.drain(|copied| {
            let (stack, is_whole) = unwinder.unwind(copied);
            truncated += if is_whole { 0 } else { copied.periods };
            *counts.entry((copied.thread, stack)).or_default() += copied.periods;
        });
    };
    while is_wanted() && begin.elapsed() < duration {
        thread::sleep(DRAIN_INTERVAL.min(duration.saturating_sub(begin.elapsed())));
        drain();
    }
    drop(timers);
    drain();
    let taken: i64 = counts.values().sum();
    let nanoseconds = i64::try_from(period.as_nanos()).unwrap_or(i64::MAX);
    let mut samples: Vec<_> = counts
        .into_iter()
        .map(|((thread, stack), count)| Sample {
            stack,
            values: vec![count, count.saturating_mul(nanoseconds)],
            thread: threads.get(thread).map(|thread| thread.name.clone()),
        })
        .collect();
    samples.sort_by(|one, other| (&one.thread, &one.stack).cmp(&(&other.thread, &other.stack)));
    let comment = format!(
        "{taken} samples at {frequency_hz} Hz of each thread's CPU time; {} lost because no slot was free, {truncated} without their outermost frames",
        slots.lost(),
    );
    Ok(Measured {
        values: VALUES,
        samples,
        period: (VALUES[1], nanoseconds),
        started,
        duration: begin.elapsed(),
        comments: vec![comment],
    })
}

/// A thread of this process.
struct Thread {
    id: libc::pid_t,
    name: String,
}

/// Every thread but this one.
fn threads() -> io::Result<Vec<Thread>> {
    // SAFETY: a plain system call.
    let own = unsafe { libc::gettid() };
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|id| id.parse().ok());
        let Some(id) = id.filter(|&id| id != own) else { continue };
        // The thread may have ended.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        threads.push(Thread { id, name: name.trim_end().to_owned() });
    }
    threads.sort_by_key(|thread| thread.id);
    Ok(threads)
}

/// A timer on the CPU clock of one thread, deleted on drop.
struct Timer(libc::timer_t);

impl Timer {
    /// Signals the thread with `index` after every `period` of its CPU time. `None` when the thread
    /// has ended, or when the kernel has no timer left (each counts against the limit of pending
    /// signals): the profile lacks that thread.
    fn start(thread: &Thread, index: usize, period: Duration) -> Option<Self> {
        // The kernel's number for the CPU clock of a thread: its id, inverted, above the bits
        // "scheduler" (2) and "per thread" (4).
        let clock: libc::clockid_t = (!thread.id << 3) | 6;
        // SAFETY: zeroes are a valid description, whose fields are set below.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_notify_thread_id = thread.id;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_value = libc::sigval { sival_ptr: index as *mut _ };
        let mut timer = null_mut();
        // SAFETY: both pointers are valid for the call.
        if unsafe { libc::timer_create(clock, &raw mut event, &raw mut timer) } != 0 {
            return None;
        }
        let timer = Self(timer);
        let period = libc::timespec {
            tv_sec: period.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(period.subsec_nanos().cast_signed()),
        };
        let every = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer was created above, and the pointers are valid for the call.
        let set = unsafe { libc::timer_settime(timer.0, 0, &raw const every, null_mut()) };
        (set == 0).then_some(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: it was created, and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::OnceCell;
    use std::hint::black_box;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::profile::symbols::resolve;

    /// The CPU time of this thread, in nanoseconds.
    fn burnt() -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is valid for the call.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    /// Burns CPU time, and stores again and again how much it has burnt.
    #[inline(never)]
    fn spin(spent: &AtomicU64, stop: &AtomicBool) {
        let mut number = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            (0..10_000).for_each(|_| number = black_box(number.wrapping_mul(7) + 1));
            spent.store(burnt(), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_profile_has_the_whole_stack_of_a_spinning_thread() {
        let (spent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let (modules, seconds) = (Modules::loaded(), Duration::from_secs(20));
        let frequency = NonZeroU32::new(500).unwrap();
        let measured = thread::scope(|scope| {
            let body = || spin(&spent, &stop);
            thread::Builder::new().name("spinner".to_owned()).spawn_scoped(scope, body).unwrap();
            // Once it has burnt CPU time, the thread has its name.
            while spent.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            // The profile ends when the thread has burnt enough for fifty samples since its timer
            // was set, however busy the machine is.
            let begun = OnceCell::new();
            let is_wanted = || {
                let now = spent.load(Ordering::Relaxed);
                now - *begun.get_or_init(|| now) < 100_000_000
            };
            let measured = measure(&modules, seconds, frequency, is_wanted);
            stop.store(true, Ordering::Relaxed);
            measured.unwrap()
        });
        let of_spinner = |sample: &&Sample| sample.thread.as_deref() == Some("spinner");
        let samples: i64 = measured.samples.iter().filter(of_spinner).map(|sample| sample.values[0]).sum();
        // There are about fifty; on a busy machine some find no free slot.
        assert!(samples >= 10, "{samples} samples in 100 ms at 500 Hz");
        let stacks = measured.samples.iter().map(|sample| sample.stack.as_slice());
        let symbols = resolve(&modules, stacks);
        let found = measured.samples.iter().enumerate().any(|(index, sample)| {
            let names: Vec<_> = symbols.names(index).collect();
            let from_the_beginning = names.iter().any(|name| name.contains("thread"));
            let is_there = names.iter().any(|name| name.ends_with("tests::spin"));
            sample.thread.as_deref() == Some("spinner") && from_the_beginning && is_there
        });
        assert!(found, "spin is in no stack: {measured:?} {symbols:?}");
    }
}
