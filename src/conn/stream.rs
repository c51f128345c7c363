//! A client's socket, with TLS or without.
//!
//! Owns the TCP socket and the TLS session, if there is one. Its behaviour is the same with and
//! without TLS, so no other module needs to know. It never blocks. A dropped stream with TLS sends
//! `close_notify` if there is room.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use mio::net::TcpStream;

use super::session::Session;
use super::socket::Socket;
use crate::pages::Pages;

/// Bytes that a TLS session encrypts and sends at once: two records (RFC 8446, section 5.1), so
/// that a batch that is a little longer than one costs one system call.
pub(super) const TLS_SEND_BYTES: usize = 32 * 1024;

/// A client's TCP socket, and its TLS session if it has one.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    session: Option<Box<RefCell<Session>>>,
}

impl Stream {
    /// A stream of a socket and its session.
    #[must_use]
    pub fn new(tcp: TcpStream, session: Option<Box<Session>>) -> Self {
        Self { tcp, session: session.map(|session| Box::new(RefCell::new(*session))) }
    }

    /// Whether sent data is still unacknowledged, and the client has acknowledged something
    /// `within` this time; false also when the kernel does not say (tcp(7), `TCP_INFO`).
    #[must_use]
    pub fn is_taking(&self, within: Duration) -> bool {
        // SAFETY: a struct of integers, for which zero is a valid value.
        let mut info: libc::tcp_info = unsafe { mem::zeroed() };
        let mut length = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the descriptor is open, and the call writes at most `length` bytes of `info`.
        let result = unsafe {
            let (fd, info) = (self.tcp.as_raw_fd(), (&raw mut info).cast());
            libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut length)
        };
        let acknowledged = Duration::from_millis(info.tcpi_last_ack_recv.into());
        result == 0 && info.tcpi_unacked > 0 && acknowledged < within
    }

    /// Whether there may be input that the socket's readiness does not report.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.borrow().has_more())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl Socket for Stream {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.session {
            None => self.tcp.send(bytes),
            Some(session) => session.borrow_mut().send(&self.tcp, bytes),
        }
    }

    fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.session.is_none() {
            return self.tcp.send_vectored(pieces);
        }
        // Joined, so that small frames share a TLS record.
        let mut record = Vec::new();
        for piece in pieces {
            record.extend_from_slice(&piece[..piece.len().min(TLS_SEND_BYTES - record.len())]);
        }
        self.send(&record)
    }

    fn send_pages(&self, pages: &Pages, range: Range<usize>) -> io::Result<usize> {
        match &self.session {
            None => self.tcp.send_pages(pages, range),
            Some(_) => self.send(&pages.bytes()?[range]),
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.session {
            None => self.tcp.receive(buffer),
            Some(session) => session.borrow_mut().receive(&self.tcp, buffer),
        }
    }

    fn shutdown_write(&self) {
        if let Some(session) = &self.session {
            session.borrow_mut().close(&self.tcp);
        }
        self.tcp.shutdown_write();
    }

    fn flush(&self) -> io::Result<()> {
        self.session.as_ref().map_or(Ok(()), |session| session.borrow_mut().flush(&self.tcp))
    }

    fn unsent_bytes(&self) -> usize {
        self.session.as_ref().map_or(0, |session| session.borrow().unsent_bytes())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            session.borrow_mut().close(&self.tcp);
        }
    }
}
