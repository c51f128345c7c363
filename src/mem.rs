//! Where the memory is: the allocator, its figures, and the memory_stats.
//!
//! Owns the choice of the allocator, everything that asks an allocator or the kernel for figures, and the memory_stats of
//! `GET /debug/mem`. A figure that does not exist is `None`, never a guess.

use std::io;
use std::os::fd::RawFd;

use serde::Serialize;

#[cfg(all(feature = "jemalloc", feature = "mimalloc"))]
compile_error!("features `jemalloc` and `mimalloc` exclude each other: for mimalloc add --no-default-features");
#[cfg(not(any(feature = "jemalloc", feature = "mimalloc")))]
compile_error!("an allocator is needed: leave the default features on, or add --features mimalloc");

/// What the allocator itself says; `None` where it does not say it. All in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// In use by the program.
    pub allocated_bytes: Option<u64>,
    /// In pages that hold at least one allocation.
    pub active_bytes: Option<u64>,
    /// For the allocator's own bookkeeping.
    pub metadata_bytes: Option<u64>,
    /// In physical memory.
    pub resident_bytes: Option<u64>,
    /// Mapped and usable.
    pub mapped_bytes: Option<u64>,
    /// Address space kept for later use, without memory behind it.
    pub retained_bytes: Option<u64>,
}

pub use self::allocator::{NAME, dump_heap, figures, flush, purge};
#[cfg(feature = "profiling")]
pub use self::allocator::{sample_heap, take_no_samples};

/// Without profiles nobody takes samples of the heap.
#[cfg(not(feature = "profiling"))]
pub fn sample_heap(_: usize) {}

/// Why there is no dump of the heap.
#[derive(Debug, thiserror::Error)]
pub enum NoDump {
    /// This allocator, as it was built or started, has none; the sentence says what to do.
    #[error("{0}")]
    Unavailable(&'static str),
    /// It could not be written or read.
    #[error("the heap could not be dumped: {0}")]
    Failed(#[from] io::Error),
}

#[cfg(feature = "jemalloc")]
mod allocator {
    use std::ffi::{CStr, CString};
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::ptr::null_mut;

    use jemalloc_ctl::{epoch, raw, stats};
    use tikv_jemalloc_sys::mallctl;

    use super::{Figures, NoDump};

    #[global_allocator]
    static GLOBAL: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// What jemalloc reads before its first allocation. Free pages go back to the system after a second at most, by a
    /// thread of jemalloc's own; by default they would wait ten seconds, and for somebody to allocate.
    #[cfg(not(feature = "profiling"))]
    const OPTIONS: &CStr = c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0";

    /// The same, ready to take samples for heap profiles; how many, [`sample_heap`] says.
    #[cfg(feature = "profiling")]
    const OPTIONS: &CStr = c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,prof:true,prof_accum:true";

    /// The symbol under which jemalloc looks for its options: a pointer to the first byte of a C string.
    // SAFETY: no other symbol of this name exists: jemalloc declares it weak, for the program to define.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    static MALLOC_CONF: &u8 = &OPTIONS.to_bytes_with_nul()[0];

    /// The allocator's name.
    pub const NAME: &str = "jemalloc";

    /// The figures of this moment.
    #[must_use]
    pub fn figures() -> Figures {
        // jemalloc's figures are those of the last epoch; a failure leaves them older, or unread and so `None`.
        let _ = epoch::advance();
        let bytes = |read: Result<usize, jemalloc_ctl::Error>| read.ok().map(|bytes| bytes as u64);
        Figures {
            allocated_bytes: bytes(stats::allocated::read()),
            active_bytes: bytes(stats::active::read()),
            metadata_bytes: bytes(stats::metadata::read()),
            resident_bytes: bytes(stats::resident::read()),
            mapped_bytes: bytes(stats::mapped::read()),
            retained_bytes: bytes(stats::retained::read()),
        }
    }

    /// Returns free memory to the system.
    pub fn purge() {
        // 4096 stands for all arenas (MALLCTL_ARENAS_ALL).
        let name = c"arena.4096.purge";
        // SAFETY: the name is a C string, and this control takes and gives no value: all other arguments are null.
        let error = unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
        if error != 0 {
            tracing::warn!(error, "jemalloc did not purge");
        }
    }

    /// Gives back what the calling thread has freed and keeps for later; the figures would count it as allocated.
    pub fn flush() {
        let name = c"thread.tcache.flush";
        // SAFETY: as in `purge`.
        let error = unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
        if error != 0 {
            tracing::warn!(error, "jemalloc did not flush the cache of a thread");
        }
    }

    /// Takes a sample for heap profiles of every `bytes` allocated, a power of two or the next one above; 0 takes none.
    /// What was sampled before is forgotten.
    #[cfg(feature = "profiling")]
    pub fn sample_heap(bytes: usize) {
        let log2 = bytes.next_power_of_two().trailing_zeros() as usize;
        // SAFETY: the types are those of jemalloc's manual, and the names end in NUL bytes.
        let result =
            unsafe { raw::write(b"prof.reset\0", log2).and_then(|()| raw::write(b"prof.active\0", bytes > 0)) };
        if let Err(error) = result {
            tracing::warn!("the samples of the heap are as they were: {error}");
        }
    }

    /// Leaves what the calling thread allocates from now on out of heap profiles. Samples are kept for ever with their
    /// thread, also when it has ended: one that comes and goes would add to them each time.
    #[cfg(feature = "profiling")]
    pub fn take_no_samples() {
        // SAFETY: the type is that of jemalloc's manual, and the name ends in a NUL byte.
        let result = unsafe { raw::write(b"thread.prof.active\0", false) };
        if let Err(error) = result {
            // So it is when the process was started with prof:false.
            tracing::debug!("jemalloc goes on to take samples: {error}");
        }
    }

    /// What jemalloc knows of the heap, in its text format; see `profile::heap`, which reads it.
    ///
    /// # Errors
    /// When it takes no samples, or the dump cannot be written to memory.
    pub fn dump_heap() -> Result<String, NoDump> {
        // SAFETY: the type is that of jemalloc's manual, and the name ends in a NUL byte.
        let takes_samples = unsafe { raw::read::<bool>(b"opt.prof\0") };
        match takes_samples {
            Ok(true) => {}
            Ok(false) => return Err(NoDump::Unavailable("heap profiles are off: start the server with prof:true")),
            Err(_) => {
                let sentence = "this server was built without profiles: build it with --features profiling";
                return Err(NoDump::Unavailable(sentence));
            }
        }
        // SAFETY: the name is a C string; a descriptor or -1 comes back.
        let memory = unsafe { libc::memfd_create(c"heap".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: it was just opened, and nobody else has it.
        let mut memory = unsafe { File::from_raw_fd(memory) };
        let path = CString::new(format!("/proc/self/fd/{}", memory.as_raw_fd())).map_err(io::Error::from)?;
        // SAFETY: the type is that of jemalloc's manual, a pointer to a C string, which outlives the call.
        unsafe { raw::write(b"prof.dump\0", path.as_ptr()) }.map_err(|error| io::Error::other(error.to_string()))?;
        let mut dump = String::new();
        memory.read_to_string(&mut dump)?;
        Ok(dump)
    }

    #[cfg(test)]
    mod tests {
        use jemalloc_ctl::raw;

        #[test]
        fn the_options_are_in_force() {
            // SAFETY: the types are those of jemalloc's manual, and the names end in NUL bytes.
            let (background, decay) =
                unsafe { (raw::read::<bool>(b"opt.background_thread\0"), raw::read::<isize>(b"opt.dirty_decay_ms\0")) };
            assert_eq!((background, decay), (Ok(true), Ok(1000)));
        }
    }
}

#[cfg(feature = "mimalloc")]
mod allocator {
    use std::ptr::null_mut;

    use super::{Figures, NoDump};

    // A fuzzer watches the allocations itself.
    #[cfg(not(fuzzing))]
    #[global_allocator]
    static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

    /// The allocator's name.
    pub const NAME: &str = "mimalloc";

    /// The figures of this moment: mimalloc knows what it has committed, and nothing else of what is asked.
    #[must_use]
    pub fn figures() -> Figures {
        let mut committed = 0;
        // SAFETY: every pointer may be null, or points to a usize that outlives the call.
        unsafe {
            libmimalloc_sys::mi_process_info(
                null_mut(),
                null_mut(),
                null_mut(),
                null_mut(),
                null_mut(),
                &raw mut committed,
                null_mut(),
                null_mut(),
            );
        }
        Figures { mapped_bytes: Some(committed as u64), ..Figures::default() }
    }

    /// mimalloc takes none anyway.
    #[cfg(feature = "profiling")]
    pub fn sample_heap(_: usize) {}

    /// mimalloc takes none anyway.
    #[cfg(feature = "profiling")]
    pub fn take_no_samples() {}

    /// mimalloc has none.
    ///
    /// # Errors
    /// Always.
    pub fn dump_heap() -> Result<String, NoDump> {
        Err(NoDump::Unavailable(
            "mimalloc keeps no heap profiles: build with --features profiling and the default allocator, jemalloc",
        ))
    }

    /// Returns free memory to the system, as far as it belongs to this thread or to none.
    pub fn purge() {
        // SAFETY: no arguments to get wrong; it may be called from any thread.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }

    /// Gives back what the calling thread has freed and keeps for later.
    pub fn flush() {
        // SAFETY: as in `purge`.
        unsafe { libmimalloc_sys::mi_collect(false) };
    }
}

/// The process's resident memory in bytes, from `/proc/self/statm`; `None` without a Linux `/proc`.
#[must_use]
pub fn rss_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: sysconf takes any number and touches no memory of ours.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page_bytes).ok()?)
}

/// What the kernel holds for the queues of a socket, in bytes: received and not read, sent and not acknowledged, with
/// their bookkeeping, and reserved ahead (`SO_MEMINFO`). The socket itself, about 2.5 KiB when idle, is not in it. 0 when
/// the kernel does not say.
#[must_use]
pub fn socket_bytes(socket: RawFd) -> u64 {
    let mut figures = [0_u32; libc::SK_MEMINFO_DROPS as usize + 1];
    let mut length = size_of_val(&figures) as libc::socklen_t;
    // SAFETY: the buffer is writable for `length` bytes, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, figures.as_mut_ptr().cast(), &raw mut length)
    };
    if result != 0 {
        return 0;
    }
    let held = [libc::SK_MEMINFO_RMEM_ALLOC, libc::SK_MEMINFO_FWD_ALLOC, libc::SK_MEMINFO_WMEM_QUEUED];
    held.into_iter().map(|figure| u64::from(figures[figure as usize])).sum()
}

/// Figures of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    figures: Figures,
    rss_bytes: Option<u64>,
}

impl Sample {
    /// The figures of this moment.
    #[must_use]
    pub fn take() -> Self {
        Self { figures: figures(), rss_bytes: rss_bytes() }
    }

    /// Bytes in use by the program; resident ones where the allocator does not say.
    #[must_use]
    pub fn in_use_bytes(&self) -> u64 {
        self.figures.allocated_bytes.or(self.rss_bytes).unwrap_or_default()
    }
}

/// What waits for the connections, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// In backlogs, as if each connection had a copy of its own.
    pub outbox_bytes: u64,
    /// In the kernel; see [`socket_bytes`].
    pub kernel_socket_bytes: u64,
}

/// The baseline and the peaks, from which each [`MemoryStats`] is made.
#[derive(Debug)]
pub struct MemoryTracker {
    baseline: Sample,
    peak: Peak,
}

/// What `GET /debug/mem` answers; all figures in bytes, except the connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryStats {
    /// `jemalloc` or `mimalloc`.
    pub allocator: &'static str,
    /// WebSocket connections.
    pub connections: usize,
    /// The allocator's figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
    /// When the server listened and nobody had come.
    pub baseline: Baseline,
    /// The highest figures so far; bytes as sampled once a second and at every memory_stats.
    pub peak: Peak,
    /// Data that waits in backlogs, as if each connection had a copy of its own; copies are shared.
    pub outbox_bytes: u64,
    /// Data kept for clients that come back; none is.
    pub history_bytes: u64,
    /// What the kernel holds for the connections' sockets; see [`socket_bytes`].
    pub kernel_socket_bytes: u64,
    /// What one connection costs.
    pub per_connection: PerConnection,
}

/// Part of a [`MemoryStats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Baseline {
    /// In use by the program.
    pub allocated_bytes: Option<u64>,
    /// In physical memory, by the allocator's account.
    pub resident_bytes: Option<u64>,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
}

/// Part of a [`MemoryStats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Peak {
    /// Most connections at once.
    pub connections: usize,
    /// Most bytes in use by the program.
    pub allocated_bytes: Option<u64>,
    /// Most resident memory of the process.
    pub rss_bytes: Option<u64>,
}

/// Part of a [`MemoryStats`]: (now − baseline) ÷ connections; `None` with none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PerConnection {
    /// Of the allocated bytes.
    pub heap_bytes: Option<i64>,
    /// Of the resident memory.
    pub rss_bytes: Option<i64>,
    /// Of the kernel's bytes for the sockets.
    pub kernel_bytes: Option<i64>,
}

impl MemoryTracker {
    /// Takes the baseline.
    #[must_use]
    pub fn new(baseline: Sample) -> Self {
        let mut tracker = Self { baseline, peak: Peak::default() };
        tracker.note(baseline, 0);
        tracker
    }

    /// Raises the peaks to `sample` where it is higher.
    pub fn note(&mut self, sample: Sample, peak_connections: usize) {
        self.peak.connections = self.peak.connections.max(peak_connections);
        self.peak.allocated_bytes = self.peak.allocated_bytes.max(sample.figures.allocated_bytes);
        self.peak.rss_bytes = self.peak.rss_bytes.max(sample.rss_bytes);
    }

    /// The memory_stats of `sample`, which has been noted.
    #[must_use]
    pub fn memory_stats(&self, sample: Sample, connections: usize, queues: Queues) -> MemoryStats {
        let per_connection = |now: Option<u64>, then: Option<u64>| {
            let grown = i64::try_from(now?).ok()? - i64::try_from(then?).ok()?;
            grown.checked_div(i64::try_from(connections).ok()?)
        };
        let baseline = Baseline {
            allocated_bytes: self.baseline.figures.allocated_bytes,
            resident_bytes: self.baseline.figures.resident_bytes,
            rss_bytes: self.baseline.rss_bytes,
        };
        MemoryStats {
            allocator: NAME,
            connections,
            figures: sample.figures,
            rss_bytes: sample.rss_bytes,
            baseline,
            peak: self.peak,
            outbox_bytes: queues.outbox_bytes,
            history_bytes: 0,
            kernel_socket_bytes: queues.kernel_socket_bytes,
            per_connection: PerConnection {
                heap_bytes: per_connection(sample.figures.allocated_bytes, baseline.allocated_bytes),
                rss_bytes: per_connection(sample.rss_bytes, baseline.rss_bytes),
                kernel_bytes: per_connection(Some(queues.kernel_socket_bytes), Some(0)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(allocated: u64, rss: u64) -> Sample {
        let figures = Figures { allocated_bytes: Some(allocated), ..Figures::default() };
        Sample { figures, rss_bytes: Some(rss) }
    }

    #[test]
    fn the_ledger_divides_what_has_grown() {
        let mut tracker = MemoryTracker::new(sample(1000, 5000));
        tracker.note(sample(9000, 20_000), 30);
        let now = sample(3000, 4000);
        tracker.note(now, 10);
        let queues = Queues { outbox_bytes: 7, kernel_socket_bytes: 50 };
        let memory_stats = tracker.memory_stats(now, 10, queues);
        let expected = PerConnection { heap_bytes: Some(200), rss_bytes: Some(-100), kernel_bytes: Some(5) };
        assert_eq!(memory_stats.per_connection, expected);
        assert_eq!(memory_stats.peak, Peak { connections: 30, allocated_bytes: Some(9000), rss_bytes: Some(20_000) });
        assert_eq!((memory_stats.outbox_bytes, memory_stats.figures.active_bytes), (7, None));
        let alone = tracker.memory_stats(now, 0, queues).per_connection;
        assert_eq!(alone, PerConnection { heap_bytes: None, rss_bytes: None, kernel_bytes: None });
    }

    #[test]
    fn the_kernel_counts_what_a_socket_holds() {
        use std::io::Write;
        use std::net::{TcpListener, TcpStream};
        use std::os::fd::AsRawFd;

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(&[0; 10_000]).unwrap();
        server.peek(&mut [0]).unwrap();
        assert!(socket_bytes(server.as_raw_fd()) >= 10_000);
        assert_eq!(socket_bytes(-1), 0);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(rss_bytes().unwrap() > 100_000);
    }
}
