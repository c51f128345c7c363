//! Batches in memory pages of the kernel, which many sockets share instead of a copy each.
//!
//! [`Pages`] is a file in memory (memfd_create(2)) that is written once. `sendfile` hands the same
//! pages to any number of sockets: the kernel copies nothing per subscriber, and the unsent bytes
//! of ten thousand socket buffers are in memory once. A socket may refer to a page long after the
//! call has returned, so a page is never written again: every [`Pages`] is a file of its own. After
//! the file is closed, the kernel frees each page when the last socket has released it.
//!
//! A [`PagePool`] belongs to one shard. It bounds the number of its open files, so that enough are
//! left for connections.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::rc::Rc;

use memmap2::Mmap;

/// Fewest subscribers on a shard for which a batch is put into shared pages: making and freeing
/// them costs as much as a few copies. `benches/pages.rs` would show a better value.
pub const PAGES_SUBSCRIBERS_MIN: usize = 16;
/// Most files of shared pages that a shard has open at once, one for each batch that has not left.
/// A further batch is copied, and counted in `hydrant_pages_rejected_total`. They count against the
/// limit of open files.
pub const PAGES_FILES_MAX: usize = 64;

/// Makes pages for the batches for which they are cheaper than copies.
#[derive(Debug)]
pub struct PagePool {
    /// Batches below this size are cheaper to copy.
    bytes_min: usize,
    files: Rc<Cell<usize>>,
    rejected: Cell<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Pages {
    file: File,
    bytes: OnceCell<Mmap>,
    _permit: FilePermit,
}

/// One of the files that the pool may have open, released on drop.
#[derive(Debug)]
struct FilePermit(Rc<Cell<usize>>);

impl Drop for FilePermit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl PagePool {
    /// A pool for batches of at least `bytes_min` bytes.
    #[must_use]
    pub fn new(bytes_min: usize) -> Self {
        Self { bytes_min, files: Rc::default(), rejected: Cell::default() }
    }

    /// Batches that should have got pages and were copied instead.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected.get()
    }

    /// Whether the pool has as many open files as it may have.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.files.get() >= PAGES_FILES_MAX
    }

    /// Number of open files, one for each batch in pages that is not yet sent.
    #[must_use]
    pub fn open(&self) -> usize {
        self.files.get()
    }

    /// Pages that hold `bytes`, if that is cheaper than as many copies as there are `subscribers`.
    /// `None` also at the bound of open files, or when the kernel has no file or no memory left:
    /// the caller then copies the bytes.
    #[must_use]
    pub fn hold(&self, bytes: &[u8], subscribers: usize) -> Option<Pages> {
        let is_worth_it = bytes.len() >= self.bytes_min && subscribers >= PAGES_SUBSCRIBERS_MIN;
        if !is_worth_it {
            return None;
        }
        let file = if self.is_full() { None } else { memory_file(bytes).ok() };
        let Some(file) = file else {
            self.rejected.set(self.rejected.get() + 1);
            return None;
        };
        self.files.set(self.files.get() + 1);
        Some(Pages { file, bytes: OnceCell::new(), _permit: FilePermit(self.files.clone()) })
    }
}

impl Pages {
    /// The file; the bytes start at its offset 0.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The bytes, for a caller that cannot use `sendfile`: mapped at the first call, not copied.
    ///
    /// # Errors
    /// When the kernel cannot map the file.
    pub fn bytes(&self) -> io::Result<&[u8]> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes);
        }
        // SAFETY: no other process has the file, and nothing writes or truncates it from here on.
        let bytes = unsafe { Mmap::map(&self.file)? };
        Ok(self.bytes.get_or_init(|| bytes))
    }
}

/// A file in memory that holds `bytes`.
fn memory_file(bytes: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a C string; the call returns a new descriptor or -1.
    let file = unsafe { libc::memfd_create(c"hydrant".as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nothing else owns it.
    let mut file = unsafe { File::from_raw_fd(file) };
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_what_was_written() {
        let pool = PagePool::new(0);
        let bytes: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        let pages = pool.hold(&bytes, PAGES_SUBSCRIBERS_MIN).unwrap();
        assert_eq!(pages.bytes().unwrap(), bytes);
        assert_eq!(pages.bytes().unwrap(), bytes, "at the second call too");
    }

    #[test]
    fn the_files_of_a_pool_are_bounded() {
        let pool = PagePool::new(0);
        let hold = || pool.hold(b"x", PAGES_SUBSCRIBERS_MIN);
        let mut all: Vec<_> = (0..PAGES_FILES_MAX).map(|_| hold().unwrap()).collect();
        assert_eq!((hold().is_none(), pool.rejected()), (true, 1));
        assert_eq!(pool.open(), PAGES_FILES_MAX);
        all.pop();
        assert_eq!(pool.open(), PAGES_FILES_MAX - 1);
        assert_eq!((hold().is_some(), pool.rejected()), (true, 1));
    }

    #[test]
    fn few_bytes_and_few_subscribers_are_copied() {
        let pool = PagePool::new(100);
        assert!(pool.hold(&[0; 99], PAGES_SUBSCRIBERS_MIN).is_none());
        assert!(pool.hold(&[0; 100], PAGES_SUBSCRIBERS_MIN - 1).is_none());
        assert!(pool.hold(&[0; 100], PAGES_SUBSCRIBERS_MIN).is_some());
        assert_eq!(pool.rejected(), 0);
    }
}
