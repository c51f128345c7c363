//! Replaces `session` in a build without TLS: no value of this type exists.

use std::io;

use super::socket::Socket;
use crate::tls::Tls;

/// Has no values in this build.
#[derive(Debug)]
pub enum Session {}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "none of these can be called")]
impl Session {
    pub fn new(tls: &Tls) -> io::Result<Self> {
        match *tls {}
    }
    pub fn receive(&mut self, _: &impl Socket, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }
    pub fn has_more(&self) -> bool {
        match *self {}
    }
    pub fn send(&mut self, _: &impl Socket, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }
    pub fn close(&mut self, _: &impl Socket) {
        match *self {}
    }
    pub fn flush(&mut self, _: &impl Socket) -> io::Result<()> {
        match *self {}
    }
    pub fn unsent_bytes(&self) -> usize {
        match *self {}
    }
}
