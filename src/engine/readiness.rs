//! The readiness loop of a shard: one epoll set for its connections, watched through tokio's.
//!
//! A socket that is registered with tokio costs 256 bytes for its readiness record and a task. In
//! an epoll set of the shard's own it costs nothing on the heap. The set is itself a file that
//! tokio can wait for: when it is ready, one call fetches up to [`EVENTS`] sockets. The set is
//! edge-triggered, so a reader that stops before a socket is empty has to remember the socket.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use tokio::io::unix::AsyncFd;
use tokio::select;

use super::shard::Shard;

/// Most sockets fetched in one call; between two calls the shard's other tasks run.
const EVENTS: usize = 256;
/// Most bytes read from a socket in one call; one such buffer per shard, none per connection.
pub const READ_BYTES: usize = 64 * 1024;

/// Adds a socket to the set under its slot.
///
/// # Errors
/// When the kernel is out of memory, or at the limit of watched files.
pub(super) fn watch(set: &mio::Registry, stream: &mut mio::net::TcpStream, slot: u32) -> io::Result<()> {
    set.register(stream, Token(slot as usize), Interest::READABLE | Interest::WRITABLE)
}

/// Tells `shard` which connections can be read and written, as long as this future is polled.
///
/// # Errors
/// When the set itself fails, which ends the shard.
pub(super) async fn run(shard: Rc<Shard>, set: Poll) -> io::Result<Infallible> {
    // SAFETY: `Poll` owns a valid file descriptor and never replaces it; nothing closes it while
    // `AsyncFd` owns it.
    let mut set = unsafe { AsyncFd::register_with_interest(set, tokio::io::Interest::READABLE)? };
    let mut events = Events::with_capacity(EVENTS);
    let mut scratch = vec![0; READ_BYTES];
    loop {
        select! {
            ready = set.readable_mut() => {
                let mut ready = ready?;
                match ready.get_inner_mut().poll(&mut events, Some(Duration::ZERO)) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    result => result?,
                }
                for event in &events {
                    let Token(slot) = event.token();
                    let read = event.is_readable().then_some(event.is_read_closed());
                    shard.on_ready(slot, read, event.is_writable(), &mut scratch);
                    shard.pause_if_due().await;
                }
                if events.iter().count() < EVENTS {
                    ready.clear_ready();
                }
            }
            // This branch is ready at once, and enabled only when connections have more to read.
            // The set is still polled.
            () = std::future::ready(()), if shard.has_unread() => shard.read_on(&mut scratch).await,
        }
        tokio::task::yield_now().await;
    }
}
