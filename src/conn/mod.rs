//! The connection of one client: socket, decoder, backlog and the state of the closing handshake.
//!
//! Owns everything that belongs to one client; no other module reads or writes a client's
//! WebSocket. A [`Connection`] belongs to one shard for life and never leaves its thread: plain
//! cells, no lock. With `direct` it has no task (`writer_kind` has those of the other strategies)
//! and no buffer of its own. Reads go through the shard's scratch buffer; only a partly received
//! message is kept. Writes go straight to the socket; only what the socket did not take waits, in
//! an [`Outbox`](crate::outbox::Outbox) that exists as long as it holds something. It never decides
//! when to read or to flush: the shard's readiness loop (`engine::readiness`) does.

mod connection;
pub mod mailbox;
pub mod ring;
#[cfg_attr(not(feature = "tls"), path = "no_session.rs")]
mod session;
mod socket;
mod stream;
pub mod writer_kind;

pub use self::connection::{Connection, Flushed, Liveness, Sent};
pub use self::session::Session;
pub use self::socket::{PlainHttp, Socket};
pub use self::stream::Stream;

/// The meaning of a client's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Events, as `wire::event` reads them.
    Events,
    /// None: each message is sent back unchanged.
    Echo,
}

/// The state of the closing handshake (RFC 6455, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    Open,
    /// The server's close frame is sent or waits; the client's has not arrived.
    Closing,
    /// The client's close frame has arrived; the socket is closed once the server's is sent.
    Closed,
    /// The client violated the protocol: the server's close frame is sent or waits, and further
    /// input is discarded.
    Broken,
}

/// An entry in a channel's list of subscribers; maintained by `fanout::Subscribers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The channel's index on the shard.
    pub channel: u32,
    /// The index in its list.
    pub position: u32,
}
