//! The server as its users meet it: over sockets, in this process or as the real binary.
//!
//! Plain `cargo test` needs no other program. Nothing here waits by sleeping for a fixed time: what has to happen is
//! looked for until it has, or until [`support::PATIENCE`] is over.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::type_complexity, reason = "tables of cases are read as tables")]

mod admission;
mod closes;
mod events;
mod frames;
mod http;
mod keepalive;
mod life;
mod load;
mod loss;
mod memory_stats;
mod order;
mod pages;
mod profile;
#[allow(unreachable_pub, reason = "a test crate has no outside")]
mod support;
#[cfg(feature = "tls")]
mod tls;
mod tokens;
