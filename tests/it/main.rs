//! Integration tests: clients and publishers over sockets, against a server in this process or
//! against the real binary.
//!
//! They need no other program and no fixed port. No test waits by sleeping for a fixed time: it
//! looks for the expected event until it has happened, and fails after [`support::PATIENCE`].

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::type_complexity, reason = "tables of cases are read as tables")]

mod admission;
mod closes;
mod events;
mod frames;
mod front;
mod http;
mod keepalive;
mod life;
mod load;
mod loss;
mod memory_stats;
mod metrics;
mod order;
mod pages;
mod profile;
mod settings;
mod signing;
#[allow(unreachable_pub, reason = "a test crate has no outside")]
mod support;
#[cfg(feature = "tls")]
mod tls;
mod tokens;
