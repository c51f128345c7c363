//! The memory of the process: the allocator, its figures, and the memory statistics.
//!
//! Owns the choice of the allocator, every question to the allocator or the kernel about memory,
//! and the statistics of `GET /debug/mem`. A figure that does not exist is `None`, never a guess.

use std::io;
use std::os::fd::RawFd;

use serde::Serialize;

#[cfg(all(feature = "jemalloc", feature = "mimalloc"))]
compile_error!("features `jemalloc` and `mimalloc` exclude each other: for mimalloc add --no-default-features");
#[cfg(not(any(feature = "jemalloc", feature = "mimalloc")))]
compile_error!("an allocator is needed: leave the default features on, or add --features mimalloc");

/// The allocator's own figures, in bytes; `None` where the allocator does not report it.
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

/// Without profiles the heap is not sampled.
#[cfg(not(feature = "profiling"))]
pub fn sample_heap(_: usize) {}

/// Why there is no dump of the heap.
#[derive(Debug, thiserror::Error)]
pub enum NoDump {
    /// The allocator has no heap profiles, as it was built or started; the sentence says what to
    /// do.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The dump could not be written or read.
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

    /// jemalloc's options, which it reads before its first allocation. A thread of jemalloc's own
    /// returns free pages to the system after a second at most. By default free pages would wait
    /// ten seconds, and then for the next allocation.
    #[cfg(not(feature = "profiling"))]
    const OPTIONS: &CStr = c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0";

    /// The same, ready to sample the heap for profiles; [`sample_heap`] sets how often.
    #[cfg(feature = "profiling")]
    const OPTIONS: &CStr = c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,prof:true,prof_accum:true";

    /// The symbol in which jemalloc looks for its options: a pointer to the first byte of a C
    /// string.
    // SAFETY: no other symbol of this name exists: jemalloc declares it weak, for the program to
    // define.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    static MALLOC_CONF: &u8 = &OPTIONS.to_bytes_with_nul()[0];

    /// The allocator's name.
    pub const NAME: &str = "jemalloc";

    /// The present figures.
    #[must_use]
    pub fn figures() -> Figures {
        // jemalloc reports the figures of the last epoch. If the advance fails, they are older or
        // stay unread, and so `None`.
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
        // SAFETY: the name is a C string, and this control neither takes nor returns a value: all
        // other arguments are null.
        let error = unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
        if error != 0 {
            tracing::warn!(error, "jemalloc did not purge");
        }
    }

    /// Returns what the calling thread has freed and keeps for later; otherwise it would count as
    /// allocated.
    pub fn flush() {
        let name = c"thread.tcache.flush";
        // SAFETY: as in `purge`.
        let error = unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
        if error != 0 {
            tracing::warn!(error, "jemalloc did not flush the cache of a thread");
        }
    }

    /// Samples the heap for profiles once every `bytes` allocated, rounded up to a power of two; 0
    /// stops sampling. Earlier samples are dropped.
    #[cfg(feature = "profiling")]
    pub fn sample_heap(bytes: usize) {
        /// 16 times jemalloc's default distance.
        const PAST_NEXT_SAMPLE_BYTES: usize = 8 << 20;
        let log2 = bytes.next_power_of_two().trailing_zeros() as usize;
        // SAFETY: the types are those of jemalloc's manual, and the names end in NUL bytes.
        let result = unsafe { raw::write(b"prof.active\0", false).and_then(|()| raw::write(b"prof.reset\0", log2)) };
        // This thread has drawn the distance to its next sample already, by the default. It draws
        // again once it has passed that; no page of this memory is touched.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(PAST_NEXT_SAMPLE_BYTES)));
        // SAFETY: as above.
        let result = result.and_then(|()| unsafe { raw::write(b"prof.active\0", bytes > 0) });
        if let Err(error) = result {
            tracing::warn!("jemalloc did not change how it samples the heap: {error}");
        }
    }

    /// Excludes the calling thread's later allocations from heap profiles. jemalloc keeps a
    /// thread's samples for ever, also after its end: threads that come and go would add samples
    /// each time.
    #[cfg(feature = "profiling")]
    pub fn take_no_samples() {
        // SAFETY: the type is that of jemalloc's manual, and the name ends in a NUL byte.
        let result = unsafe { raw::write(b"thread.prof.active\0", false) };
        if let Err(error) = result {
            // The process was started with prof:false.
            tracing::debug!("jemalloc still samples this thread: {error}");
        }
    }

    /// A dump of jemalloc's heap samples, in its text format, which `profile::heap` reads.
    ///
    /// # Errors
    /// When the heap is not sampled, or the dump cannot be written to memory.
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
        // SAFETY: the name is a C string; the call returns a descriptor or -1.
        let memory = unsafe { libc::memfd_create(c"heap".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: the descriptor was just opened and has no other owner.
        let mut memory = unsafe { File::from_raw_fd(memory) };
        let path = CString::new(format!("/proc/self/fd/{}", memory.as_raw_fd())).map_err(io::Error::from)?;
        // SAFETY: the type is that of jemalloc's manual, a pointer to a C string, which outlives
        // the call.
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

        /// jemalloc fails on a system whose pages are larger than those that it was built for.
        #[test]
        fn the_page_size_is_the_one_of_the_build() {
            // `.cargo/config.toml` sets it for ARM; elsewhere this variable does, or the machine
            // that builds.
            let page_bits =
                if cfg!(target_arch = "aarch64") { Some("16") } else { option_env!("JEMALLOC_SYS_WITH_LG_PAGE") };
            let expected = page_bits.map_or(crate::mem::page_bytes(), |bits| 1 << bits.parse::<u32>().unwrap());
            // SAFETY: the type is that of jemalloc's manual, and the name ends in a NUL byte.
            assert_eq!(unsafe { raw::read::<usize>(b"arenas.page\0") }, Ok(expected));
            assert!(expected >= crate::mem::page_bytes());
        }
    }
}

#[cfg(feature = "mimalloc")]
mod allocator {
    use std::ptr::null_mut;

    use super::{Figures, NoDump};

    // A fuzzer tracks the allocations itself.
    #[cfg(not(fuzzing))]
    #[global_allocator]
    static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

    /// The allocator's name.
    pub const NAME: &str = "mimalloc";

    /// The present figures: of these, mimalloc reports only the bytes that it has committed.
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

    /// mimalloc has no heap samples.
    #[cfg(feature = "profiling")]
    pub fn sample_heap(_: usize) {}

    /// mimalloc has no heap samples.
    #[cfg(feature = "profiling")]
    pub fn take_no_samples() {}

    /// mimalloc has no heap profiles.
    ///
    /// # Errors
    /// Always.
    pub fn dump_heap() -> Result<String, NoDump> {
        Err(NoDump::Unavailable(
            "mimalloc keeps no heap profiles: build with --features profiling and the default allocator, jemalloc",
        ))
    }

    /// Returns free memory to the system, as far as it belongs to this thread or to no thread.
    pub fn purge() {
        // SAFETY: the call takes no pointer and may come from any thread.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }

    /// Returns what the calling thread has freed and keeps for later.
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
    Some(pages * page_bytes() as u64)
}

/// The system's page size in bytes: 4, 16 or 64 KiB.
#[must_use]
pub fn page_bytes() -> usize {
    // SAFETY: sysconf accepts any number and touches no memory of the program.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("every system has a page size")
}

/// Bytes that the kernel holds for the queues of a socket (`SO_MEMINFO`): received and not read,
/// sent and not acknowledged, with their bookkeeping, and reserved ahead. The socket itself, about
/// 2.5 KiB when idle, is not included. 0 when the kernel does not say.
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

/// The figures of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    figures: Figures,
    rss_bytes: Option<u64>,
}

impl Sample {
    /// The present figures.
    #[must_use]
    pub fn take() -> Self {
        Self { figures: figures(), rss_bytes: rss_bytes() }
    }

    /// Bytes in use by the program; resident bytes if the allocator does not report the former.
    #[must_use]
    pub fn in_use_bytes(&self) -> u64 {
        self.figures.allocated_bytes.or(self.rss_bytes).unwrap_or_default()
    }
}

/// Bytes that wait for the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// In backlogs, counted as if each connection had its own copy.
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

/// The answer of `GET /debug/mem`; all figures are in bytes, except the connections.
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
    /// The figures when the server had begun to listen, before the first connection.
    pub baseline: Baseline,
    /// The highest figures so far. Bytes are sampled once a second and at every request for these
    /// stats.
    pub peak: Peak,
    /// Data that waits in backlogs, counted as if each connection had its own copy; copies are
    /// shared.
    pub outbox_bytes: u64,
    /// Bytes that the kernel holds for the connections' sockets; see [`socket_bytes`].
    pub kernel_socket_bytes: u64,
    /// The cost of one connection.
    pub per_connection: PerConnection,
}

/// Part of a [`MemoryStats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Baseline {
    /// In use by the program.
    pub allocated_bytes: Option<u64>,
    /// In physical memory, as the allocator reports it.
    pub resident_bytes: Option<u64>,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
}

/// Part of a [`MemoryStats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Peak {
    /// The most connections at one time.
    pub connections: usize,
    /// The most bytes in use by the program.
    pub allocated_bytes: Option<u64>,
    /// The most resident memory of the process.
    pub rss_bytes: Option<u64>,
}

/// Part of a [`MemoryStats`]: (now − baseline) ÷ connections; `None` without connections.
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

    /// The stats of `sample`, which [`MemoryTracker::note`] has seen before.
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
    fn growth_is_divided_by_the_connections() {
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
    fn the_kernel_reports_the_bytes_of_a_socket() {
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
    fn this_process_has_resident_memory() {
        assert!(rss_bytes().unwrap() > 100_000);
    }
}
