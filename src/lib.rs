//! Hydrant is a WebSocket fan-out server. A publisher posts one message; every subscriber of its
//! channel gets it, for about the CPU cost of the system call alone. This page is the map of the
//! code. Each module opens with what it owns, what it promises and what it never does.
//!
//! # Words
//!
//! | noun | meaning |
//! |---|---|
//! | [`wire::Frame`] | one message as WebSocket wire bytes, encoded once and shared; the library's own type is always written `fastwebsockets::Frame` |
//! | [`engine::publication::Publication`] | a frame on its way to the sequencer of its channel |
//! | [`engine::publication::Dispatch`] | frames of one channel, in order, on their way from the sequencer to the shards |
//! | [`wire::Batch`] | frames joined into one piece of memory, for one pass |
//! | [`pages::Pages`] | bytes in memory that all sockets share, instead of one copy per socket |
//! | [`engine::shard::Shard`] | one thread: a single-threaded tokio runtime that owns its connections, subscriber lists and counters |
//! | [`engine::inbox::Inbox`] | a lock-free queue with one consumer; the way into a shard |
//! | [`front::Front`] | the threads that accept sockets and speak HTTP and TLS |
//! | [`http::HttpListener`] | the routes and HTTP connections of one listener |
//! | [`engine::Upgraded`] | a socket on its way from the front to a shard, beside the inbox |
//! | [`conn::Session`] | a client's TLS session, between its connection and its socket |
//! | [`conn::Connection`] | one client, owned by one shard for life |
//! | [`registry::Registry`] | `DashMap<ConnId, ConnHandle>`: every connection, and its shard |
//! | channel | a named stream of publications; a tokio mpsc is never called a channel here |
//! | [`outbox::Outbox`] | the bounded backlog of one connection; it exists only while something waits |
//! | [`fanout::Fanout`] | the trait behind the strategies; a [`fanout::Pass`] sends one batch to one shard's subscribers |
//! | [`admission::Permit`] | the right to be connected, given back on drop |
//! | [`close::CloseReason`] | one row of the table of reasons for which a connection ends |
//! | [`metrics::DeliveryCounters`] | the outcome of every frame for every subscriber |
//!
//! # Threads
//!
//! ```text
//!  front threads: http-0 …, http-admin         shard threads (one per core)
//!  ┌──────────────────────────────────┐        ┌─────────────────────────┐     ┌──────────────┐
//!  │ accept, limits, PROXY protocol   │        │ shard 0                 │     │ shard 1 …    │
//!  │ TLS handshake                    │ socket │ connections, channels,  │     │ same         │
//!  │ WebSocket handshake (fast path)  ├───────►│ backlogs, counters      │Inbox│              │
//!  │ router: publish, metrics, debug  ├───────►│ sequencers, passes      │◄───►│              │
//!  └──────────────────────────────────┘ Inbox  └─────────────────────────┘     └──────────────┘
//!        admin thread: tick, memory and other statistics, purge, signals
//! ```
//!
//! # The layers
//!
//! A lower layer never uses a higher one:
//!
//! [`files`], [`keys`], [`jwt`], [`origin`], [`log_throttle`], [`tls`], [`settings`], [`close`],
//! [`metrics`], [`mem`], [`profile`], [`registry`], [`admission`], [`pages`] → [`wire`] →
//! [`outbox`] → [`conn`] → [`fanout`] → [`engine`] → [`net`], [`http`] → [`front`] → [`server`] →
//! [`cli`]. Only `conn` touches a WebSocket, only `http` parses a request, only `mem` knows an
//! allocator.
//!
//! [`load`], the load generator, stands beside them: it uses [`settings`] only, and nothing but
//! [`cli`] uses it.
//!
//! # The path of one message
//!
//! 1. `http::publish` (or an event, or the tick) encodes it **once** into a `Frame` and pushes a
//!    `Publication` into the inbox of its channel's **sequencer**, the shard
//!    `hash(channel) % shards`. Requests that arrive together share one wake of the shard, and
//!    their replies share one wake of the front. At the bound of pending bytes the publisher gets
//!    503 at once.
//! 2. The sequencer drains its inbox, gives each publication the next offset and forwards them, one
//!    `Dispatch` for each shard that has subscribers. One writer per channel: every subscriber sees
//!    one order.
//! 3. Each shard joins the pending frames of the channel into one `Batch` and begins a pass.
//!    `direct` writes the batch to each subscriber's socket in turn: one system call, no task, no
//!    copy, no reference count. A large batch is in shared pages that each socket refers to, so the
//!    kernel copies nothing either. After a chunk of [`engine::PASS_CHUNK`] sockets everything else
//!    on the thread may run; channels with few subscribers go before those with many
//!    (`engine::scheduler`). Frames that arrive meanwhile become the next batch: under load a
//!    delivery gets cheaper. After a pass of several frames the next one lingers for a hundredth of
//!    its time, so that a burst is not split. After a pass that left most subscribers behind, the
//!    next waits for them once, at most [`settings::Config::pace_max`], so that a burst closes no
//!    client that reads.
//! 4. If a socket is full, the rest waits in its connection's outbox. The shard's readiness loop
//!    flushes the outbox when the socket can be written, and frees it when it is empty. At its
//!    bound the policy decides.
//! 5. When the last shard has finished, the publisher gets the receipt that it asked for, and the
//!    bytes no longer count as pending.
//!
//! # The path of one connection
//!
//! 1. A front thread accepts the socket. Its options are inherited from the listener: no system
//!    call per connection sets one. The kernel hands over a socket together with its first bytes.
//! 2. A WebSocket handshake that has arrived whole, as nearly all have, is answered without a task
//!    and without hyper. Any other request gets an HTTP connection: small whole publications are
//!    answered by `http::fast_path`, everything else by hyper and axum. At the bound the connection
//!    with the least progress is closed (`http::conn_table`). With TLS, a [`conn::Session`] is
//!    between the socket and HTTP.
//! 3. A granted handshake takes a [`admission::Permit`] of the least-loaded shard, and its
//!    subscriptions are announced to the sequencer of each channel. Then the socket goes to the
//!    shard with the response head. The shard registers the connection in an epoll set of its own
//!    and **then** sends the head: a client that has seen the 101 misses nothing that is published
//!    later. Any response can leave HTTP in this way, not only a 101.
//! 4. From here on the connection has no task, no buffer and no registration with tokio: under 250
//!    bytes of heap (tokio's readiness record alone would be 256, a task 128).
//! 5. Reads go through the shard's scratch buffer; [`wire::inbound`] decodes in place and keeps
//!    only an incomplete frame.
//! 6. A silent client gets a ping, and is closed without an answer: `engine::keepalive`, one sweep
//!    over all connections of the shard.
//! 7. Every end has a `CloseReason`. The connection leaves its channels and the registry at once.
//!    Its socket is closed when both close frames have passed, when the peer has gone, or after
//!    [`settings::Config::close_timeout`].
//!
//! # Invariants
//!
//! - No unbounded queue. The inbox has no bound of its own, but every kind of item has one where it
//!   comes from.
//! - No lock and no allocation per subscriber on the way of a delivery (strategies with writer
//!   tasks are exempt).
//! - No guard of the `DashMap` held across a send or an await.
//! - No slow client that delays a publisher or another client. One exception: when most subscribers
//!   of a channel are behind, its next pass waits for them, at most [`settings::Config::pace_max`],
//!   and then not again until they have caught up.
//! - No HTTP request is parsed on a shard's thread.
//! - No drop that is not counted, no close without a reason.
//! - No partly written frame: it is finished, or its connection is closed.
//!
//! **The conservation law**, for every channel and in total, whenever the server is quiet:
//! `matched = delivered + dropped{reason} + pending`. `GET /metrics` shows it live. A channel's
//! counters live as long as it has subscribers; the total's live as long as the server.

pub mod admission;
pub mod cli;
pub mod close;
pub mod conn;
pub mod engine;
pub mod error;
pub mod fanout;
pub mod files;
pub mod front;
pub mod http;
pub mod jwt;
pub mod keys;
pub mod load;
pub mod log_throttle;
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
