//! The signal handler of a CPU profile, and the slots it copies stacks to.
//!
//! The handler does only what is safe wherever it interrupts a thread, even in the middle of an
//! allocation. It copies the registers and a piece of the stack to a free slot, by one system call
//! that fails where a read would crash, and returns. It takes no lock, allocates nothing and
//! unwinds nothing: the thread that makes the profile does that.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::thread;

use framehop::UnwindRegsNative;

/// Longest piece of a stack that is copied, in bytes. A shard's stack has 3 to 8 KiB in a release
/// build; a longer one loses its outermost frames.
const STACK_BYTES_MAX: usize = 64 * 1024;
const WORDS: usize = STACK_BYTES_MAX / size_of::<u64>();
/// Stacks that may wait to be unwound; a further one is counted as lost. They are unwound every few
/// milliseconds, and at most one arrives per thread and millisecond. A slot takes physical memory
/// only once something was copied to it.
const SLOTS: usize = 64;
/// The smallest page of any system, in bytes; larger pages are multiples of it.
const PAGE_BYTES_MIN: usize = 4096;

/// A slot is free, being filled, or full.
const FREE: u8 = 0;
const FILLING: u8 = 1;
const FULL: u8 = 2;

/// A stack as it was when the signal came.
#[repr(C)]
pub(super) struct Copied {
    pub(super) pc: u64,
    sp: u64,
    fp: u64,
    lr: u64,
    /// The index of the thread's timer.
    pub(super) thread: usize,
    /// The number of periods of CPU time that the stack stands for.
    pub(super) periods: i64,
    bytes: usize,
    words: [u64; WORDS],
}

impl Copied {
    /// The word at this address of the stack.
    pub(super) fn word(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.sp)? as usize;
        let end = offset.checked_add(size_of::<u64>())?;
        // No word lies across two words of the copy: stack pointers are aligned wherever frames are
        // laid out.
        (offset.is_multiple_of(size_of::<u64>()) && end <= self.bytes).then(|| self.words[offset / size_of::<u64>()])
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn registers(&self) -> UnwindRegsNative {
        UnwindRegsNative::new(self.pc, self.sp, self.fp)
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn registers(&self) -> UnwindRegsNative {
        UnwindRegsNative::new(self.lr, self.sp, self.fp)
    }
}

struct Slot {
    state: AtomicU8,
    copied: UnsafeCell<Copied>,
}

/// The slots for copies.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    /// Periods of CPU time for which there was no free slot.
    lost: AtomicUsize,
}

// SAFETY: a cell is written by the handler that has set its state to FILLING, and read by the one
// thread that drains, while it is FULL.
unsafe impl Sync for Slots {}

/// The slots in use; null while no profile is made.
static ACTIVE: AtomicPtr<Slots> = AtomicPtr::new(null_mut());
/// Handlers that may be using the slots.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// The slots, in use until it is dropped. There is at most one.
pub(super) struct Activated(*mut Slots);

impl Activated {
    /// Installs the handler and gives it empty slots.
    ///
    /// # Errors
    /// When the kernel does not let a process read its own memory by system call, or rejects the
    /// handler.
    pub(super) fn new() -> io::Result<Self> {
        let probe = 7_u64;
        let mut read = 0_u64;
        let bytes = copy_from((&raw const probe) as u64, (&raw mut read).cast(), size_of::<u64>());
        if bytes != size_of::<u64>() || read != probe {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroes are a valid sigaction, whose remaining fields are set below.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: the handler is safe wherever it interrupts. It stays installed, because a signal
        // may still be pending when a profile ends, and would otherwise end the process.
        if unsafe { libc::sigaction(libc::SIGPROF, &raw const action, null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroes are free slots with nothing copied. Zeroed memory is not touched, and so
        // not yet physical.
        let slots = unsafe { Box::<[Slot]>::new_zeroed_slice(SLOTS).assume_init() };
        let slots = Box::into_raw(Box::new(Slots { slots, lost: AtomicUsize::new(0) }));
        // SeqCst: pairs with the load in the handler.
        ACTIVE.store(slots, Ordering::SeqCst);
        Ok(Self(slots))
    }

    fn slots(&self) -> &Slots {
        // SAFETY: made from a box in `new`, freed in `drop`; handlers share it.
        unsafe { &*self.0 }
    }

    /// Hands every waiting stack to `unwind`, and frees its slot.
    pub(super) fn drain(&self, mut unwind: impl FnMut(&Copied)) {
        for slot in &self.slots().slots {
            // Acquire: pairs with the release in the handler, so that its writes are visible.
            if slot.state.load(Ordering::Acquire) == FULL {
                // SAFETY: no handler touches a full slot, and only one thread drains.
                unwind(unsafe { &*slot.copied.get() });
                // Release: pairs with the acquire of the handler that takes the slot next.
                slot.state.store(FREE, Ordering::Release);
            }
        }
    }

    /// Periods of CPU time for which there was no free slot.
    pub(super) fn lost(&self) -> usize {
        self.slots().lost.load(Ordering::Relaxed)
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        // SeqCst, three times: a handler raises INSIDE before it loads ACTIVE. Either the handler
        // sees the null stored here, or its raise is seen below and waited for.
        ACTIVE.store(null_mut(), Ordering::SeqCst);
        while INSIDE.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
        // SAFETY: made from a box in `new`, and no handler uses it or can get at it any more.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// The kernel's description of a timer's signal (`siginfo_t`), as far as it is needed here.
#[repr(C)]
struct TimerInfo {
    signal: c_int,
    error: c_int,
    code: c_int,
    /// A union follows, aligned for a pointer.
    _padding: c_int,
    timer: c_int,
    overrun: c_int,
    value: libc::sigval,
}

extern "C" fn on_signal(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SeqCst: see the drop of `Activated`.
    INSIDE.fetch_add(1, Ordering::SeqCst);
    // SeqCst: as above.
    let slots = ACTIVE.load(Ordering::SeqCst);
    // SAFETY: errno belongs to this thread and always exists. It is restored for the interrupted
    // code.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: `Activated` frees the slots only when no handler is inside; the kernel passes valid
    // descriptions.
    if let Some(slots) = unsafe { slots.as_ref() } {
        // SAFETY: as above.
        unsafe { fill(slots, &*info, &*context.cast()) };
    }
    // SAFETY: as above.
    unsafe { *errno = saved };
    // SeqCst: see the drop of `Activated`; the writes to the slot come before it.
    INSIDE.fetch_sub(1, Ordering::SeqCst);
}

/// Copies the interrupted registers and stack to a free slot.
fn fill(slots: &Slots, info: &libc::siginfo_t, context: &libc::ucontext_t) {
    if info.si_code != libc::SI_TIMER {
        return;
    }
    // SAFETY: the kernel describes a timer's signal like this, and its description is longer.
    let info = unsafe { &*(&raw const *info).cast::<TimerInfo>() };
    // SAFETY: reads the pointer only, which is an index, and no memory behind it.
    let thread = info.value.sival_ptr as usize;
    let periods = 1 + i64::from(info.overrun);
    // Acquire: pairs with the release of the drain that has freed the slot.
    let take = |slot: &&Slot| slot.state.compare_exchange(FREE, FILLING, Ordering::Acquire, Ordering::Relaxed).is_ok();
    let Some(slot) = slots.slots.iter().find(take) else {
        slots.lost.fetch_add(periods as usize, Ordering::Relaxed);
        return;
    };
    let copied = slot.copied.get();
    let (pc, sp, fp, lr) = registers(context);
    // SAFETY: the slot is this handler's until it is full. Fields are written through the pointer:
    // no reference to the words exists while the kernel writes them.
    unsafe {
        (*copied).pc = pc;
        (*copied).sp = sp;
        (*copied).fp = fp;
        (*copied).lr = lr;
        (*copied).thread = thread;
        (*copied).periods = periods;
        (*copied).bytes = copy_from(sp, (&raw mut (*copied).words).cast(), STACK_BYTES_MAX);
    }
    // Release: pairs with the acquire of the drain.
    slot.state.store(FULL, Ordering::Release);
}

/// Copies up to `bytes_max` bytes of this process's own memory, up to the first unmapped page;
/// returns how many.
fn copy_from(address: u64, to: *mut c_void, bytes_max: usize) -> usize {
    const PIECES: usize = STACK_BYTES_MAX / PAGE_BYTES_MIN + 1;
    let mut pieces = [libc::iovec { iov_base: null_mut(), iov_len: 0 }; PIECES];
    let (mut next, mut left, mut used) = (address as usize, bytes_max, 0);
    // One piece for each page: the kernel copies whole pieces, up to the first one that is
    // unmapped.
    while left > 0 && used < PIECES {
        let length = (PAGE_BYTES_MIN - next % PAGE_BYTES_MIN).min(left);
        pieces[used] = libc::iovec { iov_base: next as *mut c_void, iov_len: length };
        (next, left, used) = (next + length, left - length, used + 1);
    }
    let whole = libc::iovec { iov_base: to, iov_len: bytes_max };
    // SAFETY: both lists are valid for the call, and `to` is writable for `bytes_max` bytes. The
    // kernel reports unreadable memory.
    let copied = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const whole, 1, pieces.as_ptr(), used as libc::c_ulong, 0)
    };
    usize::try_from(copied).unwrap_or(0)
}

/// Program counter, stack pointer, frame pointer and link register of the interrupted code.
#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> (u64, u64, u64, u64) {
    let register = |number: c_int| context.uc_mcontext.gregs[number as usize] as u64;
    (register(libc::REG_RIP), register(libc::REG_RSP), register(libc::REG_RBP), 0)
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> (u64, u64, u64, u64) {
    let machine = &context.uc_mcontext;
    (machine.pc, machine.sp, machine.regs[29], machine.regs[30])
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the feature `profiling` knows the stacks of x86_64 and aarch64 only: build without it");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmapped_memory_is_not_read() {
        let words = [1_u64, 2, 3];
        let mut read = [0_u64; 3];
        assert_eq!(copy_from(words.as_ptr() as u64, read.as_mut_ptr().cast(), 24), 24);
        assert_eq!(read, words);
        assert_eq!(copy_from(16, read.as_mut_ptr().cast(), 24), 0);
    }

    #[test]
    fn a_copy_ends_before_an_unreadable_page() {
        let page = crate::mem::page_bytes();
        // SAFETY: a new mapping of two pages; the second is made unreadable and then both are
        // unmapped.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let pages = libc::mmap(null_mut(), 2 * page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(pages.add(page), page, libc::PROT_NONE), 0);
            let mut read = vec![0_u8; 2 * page];
            assert_eq!(copy_from(pages as u64 + 100, read.as_mut_ptr().cast(), 2 * page), page - 100);
            libc::munmap(pages, 2 * page);
        }
    }
}
