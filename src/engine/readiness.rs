//! Which connections can be read or written: one epoll set per shard, watched through tokio's.
//!
//! A socket that is registered with tokio costs 256 bytes of its readiness record and a task; in a set of the shard's own
//! it costs nothing on the heap. The set is itself a file that tokio can wait for: when it is ready, one call fetches
//! up to [`EVENTS`] sockets. It is edge-triggered, so whoever stops before a socket is empty has to remember it.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use tokio::io::unix::AsyncFd;
use tokio::select;

use super::shard::Shard;
use crate::config::READ_BYTES;

/// Sockets fetched in one call; between two calls everything else on the shard has its turn.
const EVENTS: usize = 256;

/// Adds a socket to the set under its slot.
///
/// # Errors
/// When the kernel refuses: out of memory, or at the limit of watched files.
pub(super) fn watch(set: &mio::Registry, stream: &mut mio::net::TcpStream, slot: u32) -> io::Result<()> {
    set.register(stream, Token(slot as usize), Interest::READABLE | Interest::WRITABLE)
}

/// Tells `shard` what can be read and written, for as long as it is polled.
///
/// # Errors
/// When the set itself fails, which ends the shard.
pub(super) async fn run(shard: Rc<Shard>, set: Poll) -> io::Result<Infallible> {
    // SAFETY: `Poll` owns a valid file descriptor and never replaces it; nothing closes it while `AsyncFd` owns it.
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
            // Ready at once, and asked only when there is something: the set is looked at all the same.
            () = std::future::ready(()), if shard.has_unread() => shard.read_on(&mut scratch).await,
        }
        tokio::task::yield_now().await;
    }
}
