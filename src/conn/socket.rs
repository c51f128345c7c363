//! What a connection needs of a socket: non-blocking, and usable through a shared reference.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsRawFd;

use mio::net::TcpStream;

use crate::pages::Pages;

/// A byte stream that never blocks: where it would, it fails with `WouldBlock`.
pub trait Socket {
    /// Writes what fits.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; anything else when the stream has failed.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes what fits of several pieces, in order.
    ///
    /// # Errors
    /// As [`Socket::send`].
    fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Hands over as much of `range` of `pages` as fits; without a copy, if it can.
    ///
    /// # Errors
    /// As [`Socket::send`].
    fn send_pages(&self, pages: &Pages, range: Range<usize>) -> io::Result<usize> {
        self.send(&pages.bytes()?[range])
    }

    /// Reads what is there; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else when the stream has failed.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Ends the sending side, after everything that was sent.
    fn shutdown_write(&self);

    /// Writes what was taken and has not left: plain sockets have nothing of the kind.
    ///
    /// # Errors
    /// As [`Socket::send`].
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Bytes that were taken and have not left.
    fn unsent_bytes(&self) -> usize {
        0
    }
}

impl Socket for TcpStream {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        (&mut &*self).write_vectored(pieces)
    }

    fn send_pages(&self, pages: &Pages, range: Range<usize>) -> io::Result<usize> {
        let mut offset = range.start as libc::off_t;
        // SAFETY: both descriptors are open for as long as the call lasts, and `offset` is valid for reads and writes.
        let sent = unsafe { libc::sendfile(self.as_raw_fd(), pages.file().as_raw_fd(), &raw mut offset, range.len()) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }

    fn shutdown_write(&self) {
        // It fails only when the peer has already gone: then there is nothing to end.
        let _ = self.shutdown(Shutdown::Write);
    }
}
