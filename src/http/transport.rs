//! The socket of an HTTP connection: TCP, and a TLS session around it if the server has a
//! certificate.
//!
//! hyper reads and writes it through tokio; an upgrade takes both apart again.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::conn::{Session, Socket};
use crate::tls::Tls;

/// See the module.
pub(super) struct Transport {
    tcp: TcpStream,
    session: Option<Box<Session>>,
}

impl Transport {
    /// A socket that has been accepted.
    ///
    /// # Errors
    /// When the runtime cannot watch it, or TLS cannot begin.
    pub(super) fn new(tcp: std::net::TcpStream, tls: Option<&Tls>) -> io::Result<Self> {
        let session = tls.map(|tls| Session::new(tls).map(Box::new)).transpose()?;
        Ok(Self { tcp: TcpStream::from_std(tcp)?, session })
    }

    /// Waits until the client has begun its TLS session.
    ///
    /// # Errors
    /// [`PlainHttp`](crate::conn::PlainHttp) when it begins with plain HTTP; anything else when the
    /// stream has failed.
    pub(super) async fn begin(&mut self) -> io::Result<()> {
        let Self { tcp, session: Some(session) } = self else { return Ok(()) };
        loop {
            match session.receive(tcp, &mut []) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.readable().await?,
                begun => return begun.map(drop),
            }
        }
    }

    /// Goes on without TLS.
    pub(super) fn end_tls(&mut self) {
        self.session = None;
    }

    /// The local address, unless it is a Unix socket.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.tcp.local_addr().ok()
    }

    /// The socket, which the runtime watches no more, and the session.
    ///
    /// # Errors
    /// When the runtime does not let go of it.
    pub(super) fn into_parts(self) -> io::Result<(std::net::TcpStream, Option<Box<Session>>)> {
        Ok((self.tcp.into_std()?, self.session))
    }
}

impl Socket for TcpStream {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(pieces)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn shutdown_write(&self) {
        // It fails only when the peer has already gone: then there is nothing to end.
        let _ = SockRef::from(self).shutdown(std::net::Shutdown::Write);
    }
}

/// Writes what the session has said and the socket has not taken.
fn poll_unsent(tcp: &TcpStream, session: &mut Session, context: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        match session.flush(tcp) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(tcp.poll_write_ready(context))?,
            flushed => return Poll::Ready(flushed),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, session } = self.get_mut();
        let Some(session) = session else { return Pin::new(tcp).poll_read(context, buffer) };
        loop {
            match session.receive(tcp, buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The client may wait for the rest of a handshake before it says more.
                    if let Poll::Ready(Err(error)) = poll_unsent(tcp, session, context) {
                        return Poll::Ready(Err(error));
                    }
                    if session.has_more() {
                        // Other tasks run first.
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    ready!(tcp.poll_read_ready(context))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { tcp, session } = self.get_mut();
        let Some(session) = session else { return Pin::new(tcp).poll_write(context, bytes) };
        ready!(poll_unsent(tcp, session, context))?;
        Poll::Ready(session.send(tcp, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, session } = self.get_mut();
        session.as_mut().map_or(Poll::Ready(Ok(())), |session| poll_unsent(tcp, session, context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, session } = self.get_mut();
        if let Some(session) = session {
            ready!(poll_unsent(tcp, session, context))?;
            session.close(tcp);
        }
        Pin::new(tcp).poll_shutdown(context)
    }
}
