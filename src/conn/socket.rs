//! The socket interface of a connection: non-blocking, and usable through a shared reference.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsRawFd;

use mio::net::TcpStream;

use crate::pages::Pages;

/// A byte stream that never blocks: where it would block, it fails with `WouldBlock`.
pub trait Socket {
    /// Writes as much of `bytes` as fits; returns the number of bytes.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; anything else when the stream has failed.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes as much of several pieces as fits, in order; returns the number of bytes.
    ///
    /// # Errors
    /// As [`Socket::send`].
    fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Writes as much of `range` of `pages` as fits, without a copy where the socket can; returns
    /// the number of bytes.
    ///
    /// # Errors
    /// As [`Socket::send`].
    fn send_pages(&self, pages: &Pages, range: Range<usize>) -> io::Result<usize> {
        self.send(&pages.bytes()?[range])
    }

    /// Reads available bytes; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when no bytes are available; anything else when the stream has failed.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Ends the sending side, behind everything that was sent.
    fn shutdown_write(&self);

    /// Writes bytes that `send` has taken and that are still buffered here; a plain socket buffers
    /// none.
    ///
    /// # Errors
    /// As [`Socket::send`].
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Bytes that `send` has taken and that are still buffered here.
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
        // SAFETY: both descriptors are open for as long as the call lasts, and `offset` is valid
        // for reads and writes.
        let sent = unsafe { libc::sendfile(self.as_raw_fd(), pages.file().as_raw_fd(), &raw mut offset, range.len()) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }

    fn shutdown_write(&self) {
        // It fails only when the peer has already disconnected: then there is nothing to end.
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// The error of a TLS session whose client begins with plain HTTP.
#[derive(Debug, thiserror::Error)]
#[error("plain HTTP on a port for TLS")]
pub struct PlainHttp {
    /// The bytes that have arrived.
    pub begin: Vec<u8>,
}

/// Repeats a call that a signal interrupted before it had an effect.
pub(super) fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
