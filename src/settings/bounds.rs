//! Bounds that nobody can set, each with its unit and what happens there.

use std::time::Duration;

use super::value::KIB;

/// Most channels of one connection; a further one is refused (400, or an `ERROR` event).
pub const CHANNELS_PER_CONNECTION_MAX: usize = 64;
/// Sockets that a shard writes to before it looks at reads, accepts and its inbox again: about a millisecond. Of a channel with many
/// subscribers half as many.
pub const PASS_CHUNK: usize = 256;
/// The cost of closing a connection during a pass, in sends: it leaves its channels and is closed.
pub const SENDS_PER_CLOSE: usize = 8;
/// Upgraded sockets that a shard registers before messages have their turn again: a tenth of a
/// millisecond.
pub const UPGRADED_CHUNK: usize = 8;
/// Inbox items that a shard takes before it goes on with its passes.
pub const INBOX_CHUNK: usize = 4096;
/// Most bytes read from a socket in one call; one such buffer per shard, none per connection.
pub const READ_BYTES: usize = 64 * KIB;
/// Bytes read in one turn of a connection, beside what is known to be missing of a message: a turn is bounded by what it
/// may make the shard do, and a ping of 6 bytes is answered by a system call.
pub const TURN_BYTES: usize = KIB;
/// What a shard does for its connections before everything else has its turn, in messages: half a millisecond.
pub const MESSAGES_PER_ROUND: u32 = 128;
/// What a system call on a socket takes of a round, in messages, whatever it finds.
pub const MESSAGES_PER_CALL: u32 = 1;
/// What the end of a connection takes of a round, in messages, and once more when its socket is closed.
pub const MESSAGES_PER_END: u32 = 8;
/// Frames that a `mailbox` connection's queue holds, beside the bound in bytes.
pub const MAILBOX_FRAMES_MAX: usize = 1024;
/// How long a shard may take to answer a stats before it is given up.
pub const STATS_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a channel waits for more frames before a pass; see `engine::channel`.
pub const LINGER_MAX: Duration = Duration::from_millis(1);
/// Subscribers that are looked at to tell whether more than half are behind.
pub const PACE_SAMPLE: usize = 64;
/// Upgraded sockets that wait for a shard, at most; the others wait in the front.
pub const UPGRADED_MAX: usize = 128;
/// Connections that the kernel completes and queues for the front.
pub const LISTEN_BACKLOG: i32 = 4096;

/// What a new connection is expected to add to the heap until the next sample, in bytes: an idle one has a fifth, one that is
/// behind more.
pub const CONNECTION_BYTES_PROJECTED: usize = KIB;
/// The same of its TLS session.
pub const TLS_BYTES_PROJECTED: usize = 4 * KIB;
