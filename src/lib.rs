//! Hydrant, a WebSocket fan-out server: the layers without I/O.

pub mod admission;
pub mod close;
pub mod config;
pub mod metrics;
pub mod outbox;
pub mod registry;
pub mod wire;
