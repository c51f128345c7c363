//! Bytes in pages of the kernel's, for sockets to refer to in place of a copy each.
//!
//! [`Pages`] are a file in memory (memfd_create(2)) that is written once. `sendfile` hands the same pages to any number of
//! sockets: the kernel copies nothing per subscriber, and what waits in ten thousand socket buffers is in memory once. A
//! socket may refer to a page long after the call has returned, so a page is never written again: every [`Pages`] is a
//! file of its own, and closing the file leaves the kernel to free each page when the last socket has let go of it.
//!
//! A [`PagePool`] belongs to one shard. It bounds the number of its files, so that enough are left for connections.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::rc::Rc;

use memmap2::Mmap;

use crate::config::{PAGES_FILES_MAX, PAGES_SUBSCRIBERS_MIN};

/// Gives out pages, and decides who is worth them.
#[derive(Debug)]
pub struct PagePool {
    /// Fewer bytes are cheaper to copy.
    bytes_min: usize,
    files: Rc<Cell<usize>>,
    refused: Cell<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Pages {
    file: File,
    bytes: OnceCell<Mmap>,
    _place: Place,
}

/// One of the files that the pool may have open, given back on drop.
#[derive(Debug)]
struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl PagePool {
    /// A pool for batches of at least `bytes_min` bytes.
    #[must_use]
    pub fn new(bytes_min: usize) -> Self {
        Self { bytes_min, files: Rc::default(), refused: Cell::default() }
    }

    /// Batches that were worth pages and got none.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Whether no further batch can have pages.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.files.get() >= PAGES_FILES_MAX
    }

    /// Files that are open: of batches that have not left.
    #[must_use]
    pub fn open(&self) -> usize {
        self.files.get()
    }

    /// Pages that hold `bytes`, if that is cheaper than as many copies as there are `subscribers`. `None` also at the
    /// bound of files, or when the kernel has no file or no memory to give: the bytes can be copied all the same.
    #[must_use]
    pub fn hold(&self, bytes: &[u8], subscribers: usize) -> Option<Pages> {
        let is_worth_it = bytes.len() >= self.bytes_min && subscribers >= PAGES_SUBSCRIBERS_MIN;
        if !is_worth_it {
            return None;
        }
        let file = if self.is_full() { None } else { memory_file(bytes).ok() };
        let Some(file) = file else {
            self.refused.set(self.refused.get() + 1);
            return None;
        };
        self.files.set(self.files.get() + 1);
        Some(Pages { file, bytes: OnceCell::new(), _place: Place(self.files.clone()) })
    }
}

impl Pages {
    /// The file; the bytes lie in it from byte 0 on.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The bytes, for who cannot refer to pages: not copied, but mapped at the first call.
    ///
    /// # Errors
    /// When the kernel refuses to.
    pub fn bytes(&self) -> io::Result<&[u8]> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes);
        }
        // SAFETY: nobody else has the file, and nothing writes or shortens it any more.
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
    // SAFETY: the descriptor is open, and nobody else has it.
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
        assert_eq!(pages.bytes().unwrap(), bytes, "and goes on to");
    }

    #[test]
    fn the_files_of_a_pool_are_bounded() {
        let pool = PagePool::new(0);
        let hold = || pool.hold(b"x", PAGES_SUBSCRIBERS_MIN);
        let mut all: Vec<_> = (0..PAGES_FILES_MAX).map(|_| hold().unwrap()).collect();
        assert_eq!((hold().is_none(), pool.refused()), (true, 1));
        assert_eq!(pool.open(), PAGES_FILES_MAX);
        all.pop();
        assert_eq!(pool.open(), PAGES_FILES_MAX - 1);
        assert_eq!((hold().is_some(), pool.refused()), (true, 1));
    }

    #[test]
    fn few_bytes_and_few_subscribers_are_copied() {
        let pool = PagePool::new(100);
        assert!(pool.hold(&[0; 99], PAGES_SUBSCRIBERS_MIN).is_none());
        assert!(pool.hold(&[0; 100], PAGES_SUBSCRIBERS_MIN - 1).is_none());
        assert!(pool.hold(&[0; 100], PAGES_SUBSCRIBERS_MIN).is_some());
        assert_eq!(pool.refused(), 0);
    }
}
