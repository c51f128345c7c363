//! A socket that takes everything at once and counts it.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::rc::Rc;

use hydrant::conn::Socket;

/// Bytes taken by all sockets of a stage.
pub(crate) type Total = Rc<Cell<u64>>;

/// See the module.
pub(crate) struct Sink {
    taken: Cell<u64>,
    total: Total,
}

impl Sink {
    /// A socket that has taken nothing; what it takes is added to `total` too.
    pub(crate) fn new(total: &Total) -> Self {
        Self { taken: Cell::default(), total: total.clone() }
    }

    /// Bytes that this one has taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.get()
    }

    fn take(&self, bytes: usize) -> io::Result<usize> {
        self.taken.set(self.taken.get() + bytes as u64);
        self.total.set(self.total.get() + bytes as u64);
        Ok(bytes)
    }
}

impl Socket for Sink {
    // Never inlined, as a system call is not: or the compiler would fold the bare loop into
    // nothing.
    #[inline(never)]
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes.len())
    }

    #[inline(never)]
    fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.take(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn receive(&self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn shutdown_write(&self) {}
}
