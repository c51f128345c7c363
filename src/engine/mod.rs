//! The engine: shards, the inboxes between them, and the channels.
//!
//! [`Engine`] is the state that the shards share, and the interface of other threads to them:
//! enqueue an item, take a permit, look up a connection. Everything else belongs to one shard and
//! never leaves its thread.

pub mod channel;
pub mod connections;
mod events;
pub mod exposition;
pub mod inbox;
mod keepalive;
pub mod publication;
mod rate_limiter;
mod readiness;
mod scheduler;
pub mod sequencer;
pub mod shard;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, TcpStream};
use std::ops::AddAssign;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::inbox::Inbox;
use self::publication::{Accepted, ChannelName, Dispatch, Publication, PublishError};
pub use self::readiness::READ_BYTES;
pub use self::scheduler::PASS_CHUNK;
use crate::admission::{AddressPermit, Addresses, Load, Permit, Rejection, Rejections};
use crate::close::CloseReason;
use crate::conn::{Role, Session};
use crate::jwt::Grant;
use crate::mem::{MemoryStats, Queues};
use crate::metrics::{Counters, HttpError, PublicationResult, Totals};
use crate::profile;
use crate::registry::{ConnHandle, ConnId, Registry};
use crate::settings::Config;
use crate::wire::Frame;

/// How long a shard may take to answer a request for its statistics.
const STATS_TIMEOUT: Duration = Duration::from_secs(5);
/// Most upgraded sockets that wait for a shard; further ones wait in the front.
pub const UPGRADED_MAX: usize = 128;
/// Heap in bytes that a new connection is expected to take until the next sample. An idle one takes
/// a fifth of it, one that is behind takes more.
const CONNECTION_BYTES_PROJECTED: usize = 1024;
/// Heap that its TLS session is expected to take, in bytes.
const TLS_BYTES_PROJECTED: usize = 4 * 1024;

/// A socket on its way from the HTTP front to a shard.
#[derive(Debug)]
pub struct Upgraded {
    /// The socket, non-blocking and in no epoll set.
    pub stream: TcpStream,
    /// Its TLS session, if it has one.
    pub session: Option<Box<Session>>,
    /// The response head. The shard sends it first, after it has registered the connection.
    pub head: Bytes,
    /// Bytes that the client has sent behind its request.
    pub leftover: Bytes,
    /// The meaning of the client's messages.
    pub role: Role,
    /// The subscriptions that its channels' sequencers know of.
    pub pending: PendingSubscription,
    /// The permit of its connection.
    pub permit: Permit,
}

/// An item of a shard's inbox.
#[derive(Debug)]
pub enum Item {
    /// To the channel's sequencer: a message to sequence.
    Publish(Publication),
    /// From the channel's sequencer: frames to fan out.
    Deliver(Arc<Dispatch>),
    /// To the channel's sequencer: a shard has one more subscriber, or one less.
    Count {
        /// The channel.
        channel: ChannelName,
        /// The shard of the subscriber.
        shard: u16,
        /// One more, or one less.
        joined: bool,
    },
    /// A frame for one connection.
    Answer {
        /// The connection's slot.
        slot: u32,
        /// The connection's number: the slot may have a new connection by now.
        id: ConnId,
        /// The frame.
        frame: Frame,
    },
    /// Answers when all earlier items have been forwarded.
    Barrier(oneshot::Sender<()>),
    /// Asks for the shard's statistics.
    StatsRequest(oneshot::Sender<ShardStats>),
    /// Asks for the statistics with the bytes that the kernel holds for each socket.
    SocketStatsRequest(oneshot::Sender<ShardStats>),
    /// Flush, close every connection with 1001, and end, before this deadline.
    Drain(Instant),
    /// The shard panics, for tests.
    #[cfg(debug_assertions)]
    Panic,
}

/// The statistics of one shard, or of several in sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// The outcome of every frame for every subscriber.
    pub totals: Totals,
    /// The same for each channel that has subscribers: unordered, and once for each shard that
    /// has subscribers of it.
    pub channels: Vec<(ChannelName, Totals)>,
    /// Frames that wait in backlogs, counted in the backlogs.
    pub pending: u64,
    /// Bytes that wait in backlogs and, if the request asks for them, in the kernel.
    pub queues: Queues,
    /// Batches in shared pages that have not left; each is an open file.
    pub pages_open: u64,
    /// Batches large enough for shared pages that were copied instead, at the bound of files or
    /// without memory.
    pub pages_rejected: u64,
    /// `SAY` events accepted.
    pub says: u64,
    /// Messages and pings of clients that were dropped because they came too fast.
    pub ignored: u64,
    /// Connections that ended, by reason.
    pub closed: [u64; CloseReason::ALL.len()],
    /// Connections that a drain aborted at its deadline.
    pub aborted: u64,
}

impl AddAssign for ShardStats {
    fn add_assign(&mut self, other: Self) {
        self.totals += other.totals;
        self.channels.extend(other.channels);
        self.pending += other.pending;
        self.queues.outbox_bytes += other.queues.outbox_bytes;
        self.queues.kernel_socket_bytes += other.queues.kernel_socket_bytes;
        self.pages_open += other.pages_open;
        self.pages_rejected += other.pages_rejected;
        self.says += other.says;
        self.ignored += other.ignored;
        self.closed.iter_mut().zip(other.closed).for_each(|(sum, closed)| *sum += closed);
        self.aborted += other.aborted;
    }
}

/// A request to the admin thread.
#[derive(Debug)]
pub enum AdminRequest {
    /// The memory statistics.
    MemoryStats(MemoryRequest),
    /// The metrics, in Prometheus' text format; `None` if a shard did not answer.
    Metrics(oneshot::Sender<Option<String>>),
    /// A profile of the process; the admin thread only starts it.
    Profile(profile::Request),
}

/// The content of [`AdminRequest::MemoryStats`].
#[derive(Debug)]
pub struct MemoryRequest {
    /// Return free memory to the system first.
    pub purge: bool,
    /// Receives the statistics; `None` if a shard did not answer.
    pub answer: oneshot::Sender<Option<MemoryStats>>,
}

/// The subscriptions of a connection that is not registered yet; the channels' sequencers count
/// them already. Dropping it withdraws them.
#[derive(Debug)]
pub struct PendingSubscription {
    engine: Arc<Engine>,
    shard: u16,
    channels: Vec<ChannelName>,
    /// Its reservation in the registry is not used yet.
    reserved: bool,
    grant: Option<Grant>,
}

impl Drop for PendingSubscription {
    fn drop(&mut self) {
        for channel in self.channels.drain(..) {
            self.engine.count(channel, self.shard, false);
        }
        if self.reserved {
            self.engine.registry.release();
        }
    }
}

/// The state that the shards share.
#[derive(Debug)]
pub struct Engine {
    /// The configuration at the start. [`Engine::live`] has the settings that a reload can change.
    pub config: Config,
    /// The settings in effect.
    live: ArcSwap<Config>,
    /// The inbox of each shard.
    pub inboxes: Box<[Inbox<Item>]>,
    /// The connections of each shard, in any phase.
    pub loads: Box<[Load]>,
    /// The upgraded sockets that each shard has not taken yet. They are outside of its inbox, so
    /// that no message waits for them.
    upgraded: Box<[ArrayQueue<Upgraded>]>,
    /// Every WebSocket connection.
    pub registry: Registry,
    /// The queue of the admin thread.
    pub admin: mpsc::Sender<AdminRequest>,
    /// Rejected sockets and handshakes.
    pub rejections: Rejections,
    /// Answers with an error status; see [`Engine::count_answer`].
    pub http_errors: Counters<HttpError>,
    /// Publications by result.
    pub publications: Counters<PublicationResult>,
    /// Connections by address, if their number is limited.
    addresses: Arc<Addresses>,
    /// The heap in bytes at the last sample, and the number of connections then.
    heap: (AtomicUsize, AtomicUsize),
    /// When the drain began: since then the server accepts nothing new.
    draining_since: OnceLock<Instant>,
    drain_begun: Notify,
    /// Has new random keys in each process, so that no client can choose channel names that hit one
    /// shard.
    hasher: RandomState,
}

impl Engine {
    /// An engine whose shards do not run yet.
    #[must_use]
    pub fn new(config: Config, admin: mpsc::Sender<AdminRequest>) -> Arc<Self> {
        let shards = config.shards.get();
        Arc::new(Self {
            live: ArcSwap::from_pointee(config.clone()),
            config,
            inboxes: (0..shards).map(|_| Inbox::default()).collect(),
            loads: (0..shards).map(|_| Load::default()).collect(),
            upgraded: (0..shards).map(|_| ArrayQueue::new(UPGRADED_MAX)).collect(),
            registry: Registry::default(),
            admin,
            rejections: Rejections::default(),
            http_errors: Counters::default(),
            publications: Counters::default(),
            addresses: Arc::default(),
            heap: Default::default(),
            draining_since: OnceLock::new(),
            drain_begun: Notify::new(),
            hasher: RandomState::new(),
        })
    }

    /// The settings in effect. A guard is for one decision: it is not kept across an await.
    #[must_use]
    pub fn live(&self) -> Guard<Arc<Config>> {
        self.live.load()
    }

    /// Applies the settings that a reload can change; the others are never read from there.
    pub fn reload(&self, config: Config) {
        self.live.store(Arc::new(config));
    }

    /// The shard that sequences a channel.
    fn sequencer_of(&self, channel: &ChannelName) -> usize {
        (self.hasher.hash_one(channel) % self.inboxes.len() as u64) as usize
    }

    fn sequencer_inbox(&self, channel: &ChannelName) -> &Inbox<Item> {
        &self.inboxes[self.sequencer_of(channel)]
    }

    /// The moment within `span` for this number. The moments of all numbers are spread evenly.
    #[must_use]
    pub fn scatter(&self, number: usize, span: Duration) -> Duration {
        span.mul_f64(self.hasher.hash_one(number) as f64 / u64::MAX as f64)
    }

    /// Sends a publication to its channel's sequencer, which may still reject it: see
    /// [`publication::Origin`].
    ///
    /// # Errors
    /// When the sequencer's inbox is at its bound, or the server drains.
    pub fn publish(&self, publication: Publication) -> Result<(), PublishError> {
        self.enqueue(publication).map(|sequencer| self.wake(sequencer))
    }

    /// As [`Engine::publish`], without a wake of the sequencer's shard: [`Engine::wake`] has to
    /// follow, with the value returned. So one wake serves many publications.
    ///
    /// # Errors
    /// As [`Engine::publish`].
    pub fn enqueue(&self, publication: Publication) -> Result<usize, PublishError> {
        let result = self.try_enqueue(publication);
        if let Err(error) = result {
            self.count_publication(Err(error));
        }
        result
    }

    fn try_enqueue(&self, publication: Publication) -> Result<usize, PublishError> {
        if self.is_draining() {
            return Err(PublishError::Draining);
        }
        let sequencer = self.sequencer_of(&publication.channel);
        let inbox = &self.inboxes[sequencer];
        if !inbox.reserve(publication.frame.wire().len(), self.config.pending_bytes_max) {
            return Err(PublishError::Overloaded);
        }
        inbox.push_quietly(Item::Publish(publication));
        Ok(sequencer)
    }

    /// Wakes a shard that has new items in its inbox.
    pub fn wake(&self, shard: usize) {
        self.inboxes[shard].notify();
    }

    /// Counts the answer to an HTTP request, if its status is an error.
    pub fn count_answer(&self, status: u16) {
        if let Some(error) = HttpError::of(status) {
            self.http_errors.count(error);
        }
    }

    /// Counts a publication by its result.
    pub fn count_publication(&self, result: Result<Accepted, PublishError>) {
        self.publications.count(match result {
            Ok(_) => PublicationResult::Accepted,
            Err(PublishError::Overloaded) => PublicationResult::Overloaded,
            Err(PublishError::Draining) => PublicationResult::Draining,
        });
    }

    /// Tells the channel's sequencer that `shard` has one more subscriber, or one less.
    pub fn count(&self, channel: ChannelName, shard: u16, joined: bool) {
        self.sequencer_inbox(&channel).push(Item::Count { channel, shard, joined });
    }

    /// Sends a frame to one connection, if it is still here.
    pub fn answer(&self, id: ConnId, frame: Frame) {
        if let Some(ConnHandle { shard, slot }) = self.registry.find(id) {
            self.inboxes[usize::from(shard)].push(Item::Answer { slot, id, frame });
        }
    }

    /// The index of the shard with the fewest connections, among those with room for another socket
    /// if there are any.
    #[must_use]
    pub fn least_loaded(&self) -> usize {
        let key = |&shard: &usize| (self.upgraded[shard].is_full(), self.loads[shard].get());
        // There is at least one shard.
        (0..self.loads.len()).min_by_key(key).unwrap_or_default()
    }

    /// Counts another connection of `address`; `None` without a limit.
    ///
    /// # Errors
    /// [`Rejection::Address`] when the address is at its limit.
    pub fn permit_address(&self, address: IpAddr) -> Result<Option<AddressPermit>, Rejection> {
        let Some(most) = self.live().per_address_max else { return Ok(None) };
        self.addresses.permit(network(address), most.get()).map(Some).ok_or(Rejection::Address)
    }

    /// Reserves a WebSocket connection on `shard`, and tells the sequencers of `channels`, all
    /// distinct, of its subscriptions. A client that has seen the response head misses nothing
    /// that is published afterwards.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn announce(
        self: &Arc<Self>,
        shard: usize,
        channels: Vec<ChannelName>,
        grant: Option<Grant>,
    ) -> Result<PendingSubscription, Rejection> {
        self.admit()?;
        let shard = shard as u16;
        for channel in &channels {
            self.count(channel.clone(), shard, true);
        }
        Ok(PendingSubscription { engine: self.clone(), shard, channels, reserved: true, grant })
    }

    /// Gives a socket to the shard that its subscriptions were announced for, without a wake of
    /// the shard: [`Engine::wake`] has to follow, with the value returned.
    ///
    /// # Errors
    /// The socket, when the shard has no room for it now.
    #[expect(clippy::result_large_err, reason = "it comes back to be tried again")]
    pub fn hand_over(&self, upgraded: Upgraded) -> Result<usize, Upgraded> {
        let shard = usize::from(upgraded.pending.shard);
        self.upgraded[shard].push(upgraded).map(|()| shard)
    }

    /// Takes the next socket that the front has given to `shard`.
    fn take_upgraded(&self, shard: u16) -> Option<Upgraded> {
        self.upgraded[usize::from(shard)].pop()
    }

    /// Whether `shard` has sockets that it has not taken.
    fn has_upgraded(&self, shard: u16) -> bool {
        !self.upgraded[usize::from(shard)].is_empty()
    }

    /// Reserves a WebSocket connection, if the limits allow it.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(&self) -> Result<(), Rejection> {
        if let Some(bytes_max) = self.live().memory_bytes_max {
            // Relaxed, here and below: an estimate.
            let (bytes, places) = (self.heap.0.load(Ordering::Relaxed), self.heap.1.load(Ordering::Relaxed));
            let new = self.registry.reserved().saturating_sub(places);
            let tls = if self.config.tls.is_some() { TLS_BYTES_PROJECTED } else { 0 };
            if bytes.saturating_add(new * (CONNECTION_BYTES_PROJECTED + tls)) >= bytes_max.get() {
                return Err(Rejection::Memory);
            }
        }
        if self.registry.reserve(self.live().connections_max) { Ok(()) } else { Err(Rejection::Connections) }
    }

    /// Records the size of the heap.
    pub fn note_heap(&self, bytes: usize) {
        self.heap.0.store(bytes, Ordering::Relaxed);
        self.heap.1.store(self.registry.reserved(), Ordering::Relaxed);
    }

    /// Whether the server is draining.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining_since.get().is_some()
    }

    /// Waits until the server drains; returns when the drain began.
    pub async fn draining(&self) -> Instant {
        let mut begun = pin!(self.drain_begun.notified());
        // From here on, no notification is missed.
        begun.as_mut().enable();
        if !self.is_draining() {
            begun.await;
        }
        *self.draining_since.get_or_init(Instant::now)
    }

    /// Begins a drain: the server accepts nothing new.
    pub fn begin_drain(&self) {
        self.draining_since.get_or_init(Instant::now);
        self.drain_begun.notify_waiters();
    }

    /// Accepts nothing new, waits until every shard has the messages that were accepted, then
    /// drains every shard.
    pub async fn drain(&self, deadline: Instant) {
        self.begin_drain();
        // Two barriers: a publication that passed the check just before the flag was set may miss
        // the first one, but not the second. A shard that does not reach the barrier in time gets
        // the drain anyway.
        for _ in 0..2 {
            let _ = timeout_at(deadline, self.barrier()).await;
        }
        self.inboxes.iter().for_each(|inbox| inbox.push(Item::Drain(deadline)));
    }

    /// Returns when every shard has forwarded all items that were pushed before the call.
    pub async fn barrier(&self) {
        for done in self.ask(Item::Barrier) {
            // An error means that the shard has ended and forwards nothing more.
            let _ = done.await;
        }
    }

    /// The sum of all shards' statistics; `None` if a shard has ended or does not answer in time.
    /// The statistics of a shard are of one moment; the moments of the shards differ a little.
    pub async fn stats(&self) -> Option<ShardStats> {
        self.add_up(Item::StatsRequest).await
    }

    /// As [`Engine::stats`], with the bytes that the kernel holds: one system call per connection.
    pub async fn socket_stats(&self) -> Option<ShardStats> {
        self.add_up(Item::SocketStatsRequest).await
    }

    async fn add_up(&self, item: impl Fn(oneshot::Sender<ShardStats>) -> Item) -> Option<ShardStats> {
        let sum = async {
            let mut sum = ShardStats::default();
            for report in self.ask(item) {
                sum += report.await.ok()?;
            }
            Some(sum)
        };
        timeout(STATS_TIMEOUT, sum).await.ok().flatten()
    }

    fn ask<T>(&self, item: impl Fn(oneshot::Sender<T>) -> Item) -> Vec<oneshot::Receiver<T>> {
        let ask = |inbox: &Inbox<Item>| {
            let (answer, answered) = oneshot::channel();
            inbox.push(item(answer));
            answered
        };
        self.inboxes.iter().map(ask).collect()
    }
}

/// The network that counts as one address: an IPv4 address in either notation, or the prefix of an
/// IPv6 address that belongs to a site.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (!0 << 64)).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_counts_as_one_address() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!((of("10.0.0.1"), of("::ffff:10.0.0.1")), ("10.0.0.1".to_owned(), "10.0.0.1".to_owned()));
        assert_eq!((of("2001:db8:1:2:3:4:5:6"), of("::1")), ("2001:db8:1:2::".to_owned(), "::".to_owned()));
    }

    fn engine() -> Arc<Engine> {
        Engine::new(Config { shards: 1.try_into().unwrap(), ..Config::default() }, mpsc::channel(1).0)
    }

    #[test]
    fn a_drain_spreads_its_closes() {
        let (engine, span) = (engine(), Duration::from_secs(10));
        let moments: Vec<_> = (0..10_000).map(|slot| engine.scatter(slot, span)).collect();
        let mut counts = [0; 10];
        moments.iter().for_each(|moment| counts[(moment.as_secs_f64() as usize).min(9)] += 1);
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        // No order: of two neighbours, either may be first.
        let ascending = moments.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((4000..6000).contains(&ascending), "{ascending}");
    }
}
