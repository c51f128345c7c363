//! In place of `tls` in a build without it: nobody has a session.

use std::io;

use mio::net::TcpStream;

#[derive(Clone)]
pub(crate) enum Tls {}

impl Tls {
    pub(crate) fn new(_: &str) -> io::Result<Self> {
        Err(io::Error::other("this hydrant was built without TLS"))
    }
}

#[derive(Debug)]
pub(crate) enum Session {}

impl Session {
    pub(crate) fn new(tls: &Tls) -> io::Result<Self> {
        match *tls {}
    }
    pub(crate) fn read(&mut self, _: &mut TcpStream, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }
    pub(crate) fn write(&mut self, _: &mut TcpStream, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }
    pub(crate) fn flush(&mut self, _: &mut TcpStream) -> io::Result<()> {
        match *self {}
    }
}
