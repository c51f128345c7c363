//! The TLS session of one client, between its connection and its socket.
//!
//! Owns the partly received record, and the encrypted bytes that the socket has not taken; an idle
//! session has neither, and no buffer. Input and output go through two buffers that all sessions of
//! a thread share. It never blocks.
//!
//! Encrypted bytes count as sent, because they cannot be withdrawn. These are at most two records
//! of 16 KiB each; a longer backlog waits in the outbox, as it does without TLS.

use std::cell::RefCell;
use std::{fmt, io};

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus, WriteTraffic};

use super::socket::{PlainHttp, Socket, retry};
use super::stream::TLS_SEND_BYTES;
use crate::tls::Tls;

/// Most bytes of a TLS record on the wire, of any version (RFC 5246, section 6.2.3).
const WIRE_BYTES: usize = 5 + 16 * 1024 + 2048;
/// Bytes of the wire that a TLS session reads in one turn: about 150 records without content, the
/// most expensive input.
const TLS_READ_BYTES: usize = 4 * 1024;

/// The buffers of a thread, allocated when its first session needs them.
struct Scratch {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        incoming: vec![0; WIRE_BYTES],
        outgoing: vec![0; TLS_SEND_BYTES + 2 * 2048],
    });
}

type Traffic<'a> = WriteTraffic<'a, ServerConnectionData>;

/// The TLS session of one client; the module describes it.
pub struct Session {
    connection: UnbufferedServerConnection,
    /// The beginning of an incomplete record.
    received: Vec<u8>,
    /// Decrypted bytes that the connection has not read yet, in the order of arrival; the first
    /// `plain_taken` bytes are read already.
    plain: Vec<u8>,
    plain_taken: usize,
    /// Encrypted bytes that the socket has not taken.
    unsent: Vec<u8>,
    /// Whether bytes have arrived.
    begun: bool,
    /// Whether the client has ended its side: no more input follows.
    ended: bool,
    /// Whether the last read of the socket returned bytes.
    more: bool,
    /// Whether the session has failed. The library is not called any more: it would continue after
    /// input that is lost.
    failed: bool,
    /// Whether `close_notify` was sent.
    closed: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("unsent", &self.unsent.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A new session, before the client's first byte.
    ///
    /// # Errors
    /// When the library rejects its configuration.
    pub fn new(tls: &Tls) -> io::Result<Self> {
        let connection = UnbufferedServerConnection::new(tls.current()).map_err(io::Error::other)?;
        let (received, plain, unsent) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            connection,
            received,
            plain,
            plain_taken: 0,
            unsent,
            begun: false,
            ended: false,
            more: false,
            failed: false,
            closed: false,
        })
    }

    /// As [`Socket::receive`], with one read of the socket. [`Session::has_more`] says whether
    /// another call makes sense, also when this one failed with `WouldBlock`. So one turn is
    /// bounded by the bytes that it reads, even if their records hold no payload.
    ///
    /// # Errors
    /// As [`Socket::receive`]; `InvalidData` when the client violates the TLS protocol, with
    /// [`PlainHttp`] when it begins with plain HTTP.
    pub fn receive(&mut self, socket: &impl Socket, buffer: &mut [u8]) -> io::Result<usize> {
        if self.plain.is_empty() && !self.ended {
            if self.failed {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let read = self.read(socket);
            self.more = read.is_ok();
            read?;
        }
        match self.take_plain(buffer) {
            0 if !self.ended && !buffer.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    /// Whether there may be input that the socket's readiness does not report.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.plain.is_empty() || self.more || self.ended || self.failed
    }

    fn take_plain(&mut self, buffer: &mut [u8]) -> usize {
        let rest = &self.plain[self.plain_taken..];
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        if taken == rest.len() {
            (self.plain, self.plain_taken) = (Vec::new(), 0);
        } else {
            self.plain_taken += taken;
        }
        taken
    }

    /// Reads the socket once.
    fn read(&mut self, socket: &impl Socket) -> io::Result<()> {
        SCRATCH.with_borrow_mut(|Scratch { incoming, .. }| {
            let kept = self.received.len();
            incoming[..kept].copy_from_slice(&self.received);
            if kept == incoming.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS handshake message is too long"));
            }
            let room = (kept + TLS_READ_BYTES).min(incoming.len());
            let read = retry(|| socket.receive(&mut incoming[kept..room]))?;
            self.ended |= read == 0;
            let is_first = !std::mem::replace(&mut self.begun, true);
            // No type of a TLS record is a letter (RFC 8446, section 5.1), and every HTTP method
            // begins with one.
            if is_first && read > 0 && incoming[0].is_ascii_alphabetic() {
                self.failed = true;
                let plain = PlainHttp { begin: incoming[..read].to_vec() };
                return Err(io::Error::new(io::ErrorKind::InvalidData, plain));
            }
            if self.closed {
                // Input after our close_notify is discarded.
                return Ok(());
            }
            let arrived = &mut incoming[..kept + read];
            let driven = self.drive(arrived, |_| ());
            // Sends the answer of the handshake, or the alert; the part that the socket does not
            // take waits.
            let flushed = self.try_flush(socket);
            let (taken, _) = driven.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.received = arrived[taken..].to_vec();
            flushed.map(drop)
        })
    }

    /// Processes whole records from the front of `incoming`, then calls `write` if the handshake is
    /// complete. Returns the bytes of those records, and the result of `write`.
    fn drive<T>(
        &mut self,
        incoming: &mut [u8],
        write: impl FnOnce(&mut Traffic<'_>) -> T,
    ) -> Result<(usize, Option<T>), rustls::Error> {
        if self.failed {
            return Err(rustls::Error::General("the session has failed".to_owned()));
        }
        let mut taken = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(&mut incoming[taken..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        self.plain.extend_from_slice(record?.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    let start = self.unsent.len();
                    if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
                        self.unsent.resize(start + size.required_size, 0);
                        message
                            .encode(&mut self.unsent[start..])
                            .map_err(|error| rustls::Error::General(error.to_string()))?;
                    }
                }
                // The message is in `unsent` already.
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::PeerClosed) => self.ended = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return Ok((taken + discard, Some(write(&mut traffic))));
                }
                Ok(ConnectionState::BlockedHandshake) => return Ok((taken + discard, None)),
                // Early data is not offered, and nothing is sent after the end.
                Ok(_) => {
                    self.ended = true;
                    return Ok((taken + discard, None));
                }
                Err(error) => {
                    self.put_alert(&mut incoming[taken + discard..]);
                    self.failed = true;
                    return Err(error);
                }
            }
            taken += discard;
        }
    }

    /// Queues the alert that tells the client why its session failed.
    fn put_alert(&mut self, incoming: &mut [u8]) {
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(incoming);
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) = state {
            let mut wire = [0; 64];
            // No alert is longer; without one, the client sees the end of the stream only.
            if let Ok(length) = alert.encode(&mut wire) {
                self.unsent.extend_from_slice(&wire[..length]);
            }
        }
    }

    /// As [`Socket::send`]; the encrypted bytes that the socket does not take wait here: at most
    /// `TLS_SEND_BYTES` and the overhead of encryption.
    ///
    /// # Errors
    /// As [`Socket::send`]; `NotConnected` before the handshake is complete, `BrokenPipe` after
    /// [`Session::close`].
    pub fn send(&mut self, socket: &impl Socket, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.flush(socket)?;
        let mut taken = 0;
        for piece in bytes.chunks(TLS_SEND_BYTES) {
            let fits = self.put(socket, |traffic, wire| traffic.encrypt(piece, wire).map_err(io::Error::other))?;
            taken += piece.len();
            if !fits {
                break;
            }
        }
        Ok(taken)
    }

    /// Sends `close_notify`, if the socket has room.
    pub fn close(&mut self, socket: &impl Socket) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if self.flush(socket).is_ok() {
            let close =
                |traffic: &mut Traffic<'_>, wire: &mut [u8]| traffic.queue_close_notify(wire).map_err(io::Error::other);
            // It fails only if the client has gone: then nothing needs to be sent.
            let _ = self.put(socket, close);
        }
    }

    /// Sends the output of `encrypt`; returns whether the socket took all of it.
    fn put(
        &mut self,
        socket: &impl Socket,
        encrypt: impl FnOnce(&mut Traffic<'_>, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        SCRATCH.with_borrow_mut(|Scratch { outgoing, .. }| {
            // The library needs to see the incomplete record again.
            let mut received = std::mem::take(&mut self.received);
            let driven = self.drive(&mut received, |traffic| encrypt(traffic, outgoing));
            let (taken, length) = driven.map_err(io::Error::other)?;
            received.drain(..taken);
            self.received = received;
            let record = &outgoing[..length.ok_or(io::ErrorKind::NotConnected)??];
            // Messages of the session itself go first.
            let mut sent = 0;
            while self.unsent.is_empty() && sent < record.len() {
                match retry(|| socket.send(&record[sent..])) {
                    Ok(more) => sent += more,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            self.unsent.extend_from_slice(&record[sent..]);
            if sent == 0 {
                // Perhaps no later call flushes the session's own messages.
                return self.try_flush(socket);
            }
            Ok(self.unsent.is_empty())
        })
    }

    /// Writes the bytes that wait for the socket.
    ///
    /// # Errors
    /// `WouldBlock` when some bytes still wait.
    pub fn flush(&mut self, socket: &impl Socket) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match retry(|| socket.send(&self.unsent[sent..])) {
                Ok(more) => sent += more,
                Err(error) => {
                    self.unsent.drain(..sent);
                    return Err(error);
                }
            }
        }
        self.unsent = Vec::new();
        Ok(())
    }

    /// As [`Session::flush`], but a full socket is no error; returns whether no bytes wait.
    fn try_flush(&mut self, socket: &impl Socket) -> io::Result<bool> {
        match self.flush(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            flushed => flushed.map(|()| true),
        }
    }

    /// Bytes that wait for the socket.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.unsent.len()
    }
}
