//! Replaces `tls` in a build without TLS: no session can exist.

use std::io;

use mio::net::TcpStream;

#[derive(Clone)]
pub(crate) enum Tls {}

impl Tls {
    pub(crate) fn new(_: &str) -> io::Result<Self> {
        Err(io::Error::other("this build has no TLS: use ws:// and http://, or build with the feature tls"))
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
