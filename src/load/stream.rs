//! A socket of the load, with or without TLS. Never waits.

use std::io::{self, Read, Write};

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::tls::{Session, Tls};

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Stream {
    tcp: TcpStream,
    session: Option<Box<Session>>,
}

impl Stream {
    /// A socket that connects or has connected.
    pub(crate) fn new(tcp: TcpStream, tls: Option<&Tls>) -> io::Result<Self> {
        Ok(Self { tcp, session: tls.map(Session::new).transpose()?.map(Box::new) })
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.session {
            None => self.tcp.read(buffer),
            Some(session) => session.read(&mut self.tcp, buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.session {
            None => self.tcp.write(bytes),
            Some(session) => session.write(&mut self.tcp, bytes),
        }
    }

    /// Writes pending bytes of the TLS session as far as the socket takes them; the rest waits for
    /// the next call.
    fn flush(&mut self) -> io::Result<()> {
        self.session.as_mut().map_or(Ok(()), |session| session.flush(&mut self.tcp))
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.tcp.register(registry, token, interest)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.tcp.reregister(registry, token, interest)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.tcp.deregister(registry)
    }
}
