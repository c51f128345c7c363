//! The wire format: frames, batches of frames, events, and the decoder of what clients send. Pure:
//! no I/O, no clock, no shared state.

pub mod batch;
pub mod event;
pub mod frame;
pub mod inbound;

pub use batch::{Batch, Piece};
pub use frame::Frame;
