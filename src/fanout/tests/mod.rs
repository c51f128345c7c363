//! A bare shard for the tests of strategies: sockets in memory, no clock, no readiness loop.

mod behind;
mod model;

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::rc::Rc;

use slab::Slab;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::yield_now;

use super::*;
use crate::admission::Load;
use crate::conn::{Flushed, Phase, Role};
use crate::metrics::{DeliveryCounters, DropReason};
use crate::registry::ConnHandle;
use crate::settings::SlowPolicy;
use crate::wire::Frame;

/// A socket that accepts as many bytes as it has room for.
#[derive(Default)]
struct Pipe {
    room: Cell<usize>,
    /// Calls that found no room.
    rejected: Cell<usize>,
    sent: RefCell<Vec<u8>>,
}

impl Socket for Pipe {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_vectored(&[IoSlice::new(bytes)])
    }

    fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = 0;
        for piece in pieces {
            let now = piece.len().min(self.room.get());
            self.sent.borrow_mut().extend(&piece[..now]);
            self.room.set(self.room.get() - now);
            taken += now;
        }
        if taken == 0 {
            self.rejected.set(self.rejected.get() + 1);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(taken)
    }

    fn receive(&self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn shutdown_write(&self) {}
}

type Client = Rc<Connection<Pipe>>;

const CHANNELS: usize = 3;

/// A bare shard.
struct World {
    fanout: Box<dyn Fanout<Pipe>>,
    bound: Bound,
    load: Load,
    registry: Registry,
    connections: Slab<Client>,
    channels: [Subscribers<Pipe>; CHANNELS],
    /// Pages for batches of any size.
    pages: PagePool,
    counters: Rc<DeliveryCounters>,
    of_channels: [Rc<DeliveryCounters>; CHANNELS],
    /// The number of the next message of each channel.
    next: [usize; CHANNELS],
}

impl World {
    fn new(fanout: Box<dyn Fanout<Pipe>>, bound: Bound) -> Self {
        let counters = Rc::new(DeliveryCounters::default());
        Self {
            fanout,
            bound,
            load: Load::default(),
            registry: Registry::default(),
            connections: Slab::new(),
            channels: std::array::from_fn(|channel| Subscribers::new(channel as u32)),
            pages: PagePool::new(0),
            of_channels: std::array::from_fn(|_| DeliveryCounters::within(&counters)),
            counters,
            next: [0; CHANNELS],
        }
    }

    fn connect(&mut self, room: usize) -> Client {
        let entry = self.connections.vacant_entry();
        let slot = entry.key() as u32;
        let id = self.registry.register(ConnHandle { shard: 0, slot });
        let pipe = Pipe { room: Cell::new(room), ..Pipe::default() };
        let client = Rc::new(Connection::new(id, slot, Role::Events, pipe, self.load.permit()));
        entry.insert(client.clone());
        self.fanout.attach(&client);
        client
    }

    /// Ends a client as `Shard::end` and the removal after it do.
    fn end(&mut self, client: &Client, reason: DropReason) {
        // Two passes may end the same client, and a newer one may have its slot by now.
        if self.connections.get(client.slot as usize).is_some_and(|holder| Rc::ptr_eq(holder, client)) {
            self.connections.remove(client.slot as usize);
            for channel in &mut self.channels {
                channel.leave(client);
            }
            self.registry.deregister(client.id);
            client.close(Frame::close_with(1000, ""), reason, Phase::Closing);
            client.abandon(reason);
        }
    }

    fn context(&self, channel: usize) -> PassContext<'_, Pipe> {
        PassContext {
            subscribers: &self.channels[channel],
            channel: channel as u32,
            connections: &self.connections,
            registry: &self.registry,
            shard: 0,
            bound: self.bound,
            pages: &self.pages,
        }
    }

    fn begin(&mut self, channel: usize, sizes: &[usize]) -> Pass<Pipe> {
        let frames: Vec<_> = sizes.iter().map(|&size| Frame::text(&self.message(channel, size))).collect();
        self.channels[channel].begin_pass();
        self.fanout.begin(
            &self.context(channel),
            Batch::new(&frames, self.of_channels[channel].clone()),
            usize::MAX / 3,
        )
    }

    /// The next message of a channel: its number, then letters up to the wanted size.
    fn message(&mut self, channel: usize, size: usize) -> String {
        self.next[channel] += 1;
        format!("{channel}:{:05}{}", self.next[channel] - 1, "x".repeat(size))
    }

    /// Runs one step and ends the clients that it reports. Returns whether the pass continues.
    fn step(&mut self, channel: usize, pass: &mut Pass<Pipe>, budget: usize) -> bool {
        self.fanout.step(&self.context(channel), pass, budget);
        for (client, reason) in std::mem::take(&mut pass.ended) {
            assert_eq!((reason, self.bound.policy), (CloseReason::Slow, SlowPolicy::Disconnect));
            self.end(&client, DropReason::Slow);
        }
        if pass.is_done() {
            self.channels[channel].end_pass();
        }
        !pass.is_done()
    }

    fn publish(&mut self, channel: usize, sizes: &[usize]) -> Pass<Pipe> {
        let mut pass = self.begin(channel, sizes);
        while self.step(channel, &mut pass, 5) {}
        pass
    }

    /// The conservation law, in total and for each channel together, and the bound.
    fn check(&self, context: &str) {
        let pending: u64 = self.connections.iter().map(|(_, client)| client.backlog().1).sum();
        assert_eq!(self.counters.totals().outstanding(), pending, "{context}: {:?}", self.counters.totals());
        let parts: u64 = self.of_channels.iter().map(|counters| counters.totals().outstanding()).sum();
        assert_eq!(parts, pending, "{context}");
        for (_, client) in &self.connections {
            let (bytes, frames) = client.backlog();
            // A started frame is finished regardless of the bound; the longest here is below 400
            // bytes.
            assert!(bytes <= self.bound.bytes_max + 400 + 64, "{context}: {bytes} wait");
            assert_eq!(client.has_backlog(), frames > 0, "{context}");
        }
    }
}

/// Gives the socket `room` bytes more and flushes, as the readiness loop does.
fn writable(client: &Client, room: usize) {
    client.socket().room.set(room);
    if let Some(mailbox) = client.mailbox() {
        mailbox.wake();
    }
    assert_ne!(client.flush(), Flushed::Gone);
}

/// The numbers of the messages of `channel` in the bytes of a pipe; its last frame may be
/// incomplete.
fn received(pipe: &Pipe, channel: usize) -> Vec<usize> {
    let bytes = pipe.sent.borrow();
    let (mut rest, mut seen) = (&bytes[..], Vec::new());
    while let [first, length, more @ ..] = rest {
        assert!([0x81, 0x88].contains(first), "a frame begins where the last one ended");
        let (length, more) = match (length, more) {
            (126, [high, low, more @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), more),
            (126, _) => break,
            (length, more) => (usize::from(*length), more),
        };
        if more.len() < length {
            break;
        }
        if *first == 0x81 {
            let text = std::str::from_utf8(&more[..length]).unwrap();
            assert!(text[7..].bytes().all(|letter| letter == b'x'), "{text}");
            if text[..1].parse() == Ok(channel) {
                seen.push(text[2..7].parse().unwrap());
            }
        }
        rest = &more[length..];
    }
    seen
}

/// Lets every task run.
async fn quiet() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn run(test: impl AsyncFnOnce()) {
    Builder::new_current_thread().build_local(LocalOptions::default()).unwrap().block_on(test());
}

#[test]
fn a_connection_to_close_costs_several_sends() {
    run(async || {
        let bound = Bound { bytes_max: 0, policy: SlowPolicy::Disconnect };
        let mut world = World::new(Strategy::Direct.build(bound), bound);
        for client in 0..20 {
            // The first ten read, the others never do.
            let client = world.connect(if client < 10 { usize::MAX } else { 0 });
            world.channels[0].join(&client);
        }
        let mut pass = world.begin(0, &[100]);
        let mut left = Vec::new();
        while world.step(0, &mut pass, 2 * SENDS_PER_CLOSE) {
            left.push(world.connections.len());
        }
        // The pass begins at the seventh client. The first step ends two after four that read; each
        // further step ends two.
        assert_eq!(left, [18, 16, 14, 12, 10]);
        world.check("ended");
    });
}
