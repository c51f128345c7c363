//! Hydrant is a WebSocket fan-out server: one message goes in, every subscriber gets it, at the price of the bare system
//! call. This page is the map; each module opens with what it owns, what it promises and what it never does.
//!
//! # Words
//!
//! | noun | meaning |
//! |---|---|
//! | [`wire::Frame`] | one message as WebSocket wire bytes, encoded once and shared; the library's own type is always written `fastwebsockets::Frame` |
//! | [`engine::publication::Publication`] | a frame on its way to the sequencer of its channel |
//! | [`engine::publication::Dispatch`] | frames of one channel, in order, on their way from the sequencer to the shards |
//! | [`wire::Batch`] | frames joined into one piece of memory, for one pass |
//! | [`pages::Pages`] | the same bytes where the kernel's sockets can refer to them, in place of a copy each |
//! | [`engine::shard::Shard`] | one thread: a single-threaded tokio runtime that owns its connections, subscriber lists and counters |
//! | [`engine::inbox::Inbox`] | the shard's lock-free queue; the only way into a shard, but for sockets |
//! | [`engine::AcceptedSocket`] | a socket on its way into a shard: few at a time, beside the inbox |
//! | [`config::ListenerConfig`] | a port, and what is to be had there |
//! | [`engine::phases::HttpPhase`] | a socket that asks for something by HTTP; a newcomer until its first request is whole |
//! | [`conn::Session`] | a client's TLS session, between its connection and its socket |
//! | [`conn::Connection`] | one client, owned by one shard for life |
//! | [`registry::Registry`] | `DashMap<ConnId, ConnHandle>`: who is here, and on which shard |
//! | channel | a named stream of publications; a tokio mpsc is never called a channel here |
//! | [`outbox::Outbox`] | the bounded backlog of one connection; it exists only while something waits |
//! | [`fanout::Fanout`] | the trait behind the strategies; a [`fanout::Pass`] sends one batch to one shard's subscribers |
//! | [`admission::Permit`] | the right to be connected, given back on drop |
//! | [`close::CloseReason`] | one row of the table of why a connection ends |
//! | [`metrics::DeliveryCounters`] | what became of every frame for every subscriber |
//!
//! # Threads
//!
//! ```text
//!        accept thread (all ports, least-loaded shard, back-off without descriptors)
//!               │ socket
//!  ┌────────────▼────────────┐   Inbox (lock-free, one wake per batch)   ┌─────────────────────┐
//!  │ shard 0                 │◄─────────────────────────────────────────►│ shard 1 … N-1       │
//!  │ HTTP phase (hyper)      │                                           │ same                │
//!  │ connections, channels,  │                                           │                     │
//!  │ backlogs, counters      │                                           │                     │
//!  └─────────────────────────┘                                           └─────────────────────┘
//!        admin thread (tick, ledger, metrics, purge, signals)
//! ```
//!
//! # The layers
//!
//! A lower layer never uses a higher one:
//!
//! [`keys`], [`jwt`], [`origin`], [`tls`], [`settings`], [`close`], [`metrics`], [`mem`], [`profile`], [`registry`], [`admission`], [`pages`] → [`wire`] → [`outbox`] →
//! [`conn`] → [`fanout`] → [`engine`] → [`http`] → [`server`] → [`cli`]. Only `conn` touches a WebSocket, only `http` parses
//! a request, only `mem` knows an allocator.
//!
//! [`load`], the load generator, stands beside them: it uses [`settings`] only, and nothing but [`cli`] uses it.
//!
//! # The walk of one message
//!
//! 1. `http::publish` (or an event, or the tick) encodes it **once** into a `Frame` and pushes a `Publication` into the
//!    inbox of its channel's **sequencer**, the shard `hash(channel) % shards`. At the bound of pending bytes the publisher
//!    hears so at once.
//! 2. The sequencer drains its inbox (after one yield, so that a burst that has arrived at the sockets joins), gives each
//!    publication the next offset and forwards what it drained, one `Dispatch` for each shard that has subscribers.
//!    One writer per channel: every subscriber sees one order.
//! 3. Each shard joins what waits for the channel into one `Batch` and begins a pass. `direct` writes the batch to each
//!    subscriber's socket in turn: one system call, no task, no copy, no reference count. A large batch lies in pages of
//!    the kernel's, and each socket refers to them: then the kernel copies nothing either. A chunk of
//!    [`engine::PASS_CHUNK`] sockets later everything else on the thread has its turn; channels with few subscribers go before
//!    those with many, whose chunks are half as long (`engine::scheduler`). What arrives meanwhile becomes the next batch: the
//!    busier it gets, the cheaper a delivery is. After a pass of several frames the next one lingers for a hundredth of
//!    its time, so that a burst is not split; after a pass that left most subscribers behind it waits for them, once and
//!    at most [`config::Config::pace_max`], so that a burst does not close those who read.
//! 4. A socket that is full leaves the rest in its connection's outbox, which the shard's readiness loop flushes when the
//!    socket can be written, and which is freed when it is empty. At its bound the policy decides.
//! 5. When the last shard has finished, the receipt goes to whoever asked for one, and the channel's bytes no longer
//!    count as pending.
//!
//! # The walk of one connection
//!
//! 1. The accept thread takes a `Permit` of the least-loaded shard and gives it the socket, of which few wait for a shard: the
//!    others wait in the kernel's queue. Socket options are inherited from the listener: none is set per connection.
//! 2. A handshake that has arrived whole, as nearly all have (the kernel hands over a socket with its first bytes), is
//!    answered at once; any other request is read by hyper in a task, which has few turns until its request is whole
//!    (`engine::turns`): thousands that never get so far delay no message. With TLS, [`conn::Session`] lies between. The subscription is announced to the sequencer of each
//!    channel **before** the 101 can leave: who has seen the 101 misses nothing that is published afterwards.
//! 3. The socket is registered in the shard's own epoll set (and before, taken back from hyper and tokio). From here on the
//!    connection has no task, no buffer and no registration with tokio: under 250 bytes of heap (tokio's readiness record
//!    alone would be 256, a task 128).
//! 4. Reads go through the shard's scratch buffer; [`wire::inbound`] decodes in place and keeps only what arrived in part.
//! 5. Who is silent is asked, and ended if nothing comes: `engine::keepalive`, one sweep over all connections of the shard.
//! 6. The end has a `CloseReason`. The connection leaves its channels and the registry at once, and the socket when both
//!    close frames have passed, when the peer has gone, or after [`config::Config::close_timeout`].
//!
//! # What is never there
//!
//! - No unbounded queue. The inbox has none of its own, but every kind of item is bounded where it comes from.
//! - No lock and no allocation per subscriber on the way of a delivery (strategies with writer tasks are exempt).
//! - No guard of the `DashMap` held across a send or an await.
//! - No slow client that delays a publisher or another client (most of a channel's subscribers together can, once each
//!   time they have caught up).
//! - No drop that is not counted, no close without a reason.
//! - No frame that is cut: one whose first byte has left is finished, or its connection is closed.
//!
//! **The conservation law**, for every channel and in total, whenever the server is quiet:
//! `matched = delivered + dropped{reason} + pending`. `GET /metrics` shows it live. A channel's counters live as long as it has
//! subscribers; the total's are for ever.

pub mod admission;
pub mod cli;
pub mod close;
pub mod conn;
pub mod engine;
pub mod fanout;
pub mod front;
pub mod http;
pub mod jwt;
pub mod keys;
pub mod load;
pub mod mem;
pub mod metrics;
pub mod net;
pub mod origin;
pub mod outbox;
pub mod pages;
pub mod profile;
pub mod registry;
pub mod server;
pub mod settings;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
pub mod tls;
pub mod wire;

pub use settings as config;
