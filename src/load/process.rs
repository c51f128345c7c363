//! Asks the kernel about processes: the available cores, the core of a child, CPU time,
//! time spent waiting for a core, memory, the limit of open files. The only file of the load
//! generator with `unsafe` in it.

use std::fs;
use std::io;
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{LoadError, Options};

/// The cores for the server and for the client: the first two that this process may use, since a
/// container may own any two. With a single core both share it.
///
/// # Errors
/// The kernel's error.
pub fn two_cores() -> io::Result<(usize, usize)> {
    // SAFETY: a `cpu_set_t` is an array of integers; all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most `size_of::<cpu_set_t>()` bytes into `set`, which is that
    // large.
    let status = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index is below `CPU_SETSIZE`, the number of bits in the set.
    let allowed = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    let mut cores = (0..libc::CPU_SETSIZE as usize).filter(allowed);
    let first = cores.next().ok_or_else(|| io::Error::other("no core to run on"))?;
    Ok((first, cores.next().unwrap_or(first)))
}

/// Makes `command` run on `cores` alone, with all its future threads, and end when this process
/// ends.
pub fn pin(command: &mut Command, cores: &[usize]) {
    // SAFETY: as in `two_cores`; the cores came from there, so they are valid indices.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: as above.
    cores.iter().for_each(|&core| unsafe { libc::CPU_SET(core, &mut set) });
    let enter = move || {
        // SAFETY: plain system calls; `set` is readable for as long as they last.
        let failed = unsafe {
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and touches only its own
    // stack: no allocation, no lock, nothing that another thread of the parent could have left half
    // done.
    unsafe { command.pre_exec(enter) };
}

/// CPU time of the whole process `pid`, user and system, with threads that have already ended. It
/// is the scheduler's own nanosecond count (the sum of the first fields of
/// `/proc/PID/task/*/schedstat`), without the rounding to clock ticks of `/proc/PID/stat`, and
/// current even for a running thread.
///
/// # Errors
/// When there is no such process, or this one may not read it.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for the one value the call writes.
    let status = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    if status != 0 {
        return Err(io::Error::from_raw_os_error(status));
    }
    read(clock)
}

/// CPU time of the calling thread, user and system.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    // Every Linux has this clock.
    read(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
}

fn read(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the one value the call writes.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // A CPU clock counts up from zero, so both fields are positive and the nanoseconds below 10^9.
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// How long the threads of process `pid` were ready to run and waited for a core, in sum: the
/// second field of `/proc/PID/task/*/schedstat`.
///
/// # Errors
/// As for [`cpu_time`].
pub fn time_waited(pid: u32) -> io::Result<Duration> {
    let mut waited = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let counts = match fs::read_to_string(thread?.path().join("schedstat")) {
            // The thread has ended since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                continue;
            }
            counts => counts?,
        };
        let field = counts.split_ascii_whitespace().nth(1);
        let field = field.ok_or_else(|| io::Error::other("schedstat without a second field"))?;
        waited += field.parse::<u64>().map_err(io::Error::other)?;
    }
    Ok(Duration::from_nanos(waited))
}

/// Resident memory of process `pid`, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn rss_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kib_of(&status, "VmRSS:").ok_or_else(|| io::Error::other(format!("process {pid} has no memory")))
}

/// Available memory of the machine without swapping, in bytes.
///
/// # Errors
/// When the kernel does not say.
pub fn memory_available_bytes() -> io::Result<u64> {
    kib_of(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")
        .ok_or_else(|| io::Error::other("/proc/meminfo without MemAvailable"))
}

/// The bytes in a line of `/proc` that is in KiB.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

/// Open files of a load besides its connections.
const FILES_BESIDE: usize = 16;

/// The hard limit of open files of this process.
///
/// # Errors
/// The kernel's error.
pub fn open_files_max() -> io::Result<u64> {
    Ok(open_files()?.rlim_max)
}

/// Raises the soft limit of open files of this process to the hard one, since each connection is a
/// file. Returns the new limit.
///
/// # Errors
/// The kernel's error.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = open_files()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call only reads `limit`.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_max)
}

/// Raises the limit of open files, and rejects a load that needs more before anything connects.
pub(super) fn require_open_files(options: &Options) -> Result<(), LoadError> {
    let (needed, most) = ((options.connections + options.publishers + FILES_BESIDE) as u64, raise_open_files()?);
    if needed > most { Err(LoadError::OpenFiles { needed, most }) } else { Ok(()) }
}

/// Whether a signal has asked for the end of the load.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on the first SIGINT or SIGTERM does not end this process, and [`interrupted`] reports
/// it. A second one ends it as usual.
///
/// # Errors
/// The kernel's error.
pub(super) fn catch_interrupts() -> io::Result<()> {
    // SAFETY: a `sigaction` is integers and a mask; all zeroes is an empty mask without flags.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESETHAND;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: `action` is readable for the length of the call; its handler only stores into an
        // atomic, which is allowed in a signal handler.
        if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether a signal has asked for the end of the load.
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn open_files() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the one value the call writes.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}
