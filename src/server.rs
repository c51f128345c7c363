//! The life of a server: bind, run, drain.
//!
//! [`Server::bind`] opens the ports and runs nothing; [`Server::run`] starts the shards and the accept thread, is itself the
//! admin thread (tick, memory_stats, metrics, signals by way of `shutdown`), and returns when everything has ended.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use crate::admission::{AcceptPace, Rejection};
use crate::close::CloseReason;
use crate::config::{Config, LISTEN_BACKLOG, ListenAddress, ListenerConfig, READ_BYTES};
use crate::engine::exposition::exposition;
use crate::engine::publication::{ChannelName, Origin, Publication};
use crate::engine::shard::Shard;
use crate::engine::{AdminRequest, Engine, ShardStats};
use crate::mem::{self, MemoryTracker, Sample};
use crate::wire::event;
use crate::{http, profile};

/// Between two samples of the peaks.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The same when the heap has a bound: what comes in between is estimated.
const BOUNDED_SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long the accept thread waits when it may not open another file, before it tries again.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long the accept thread waits for a shard to take the sockets it has.
const ACCEPTED_WAIT: Duration = Duration::from_millis(1);
/// How much the accept thread steps back, see `nice(2)`: beside a busy shard it has a quarter of the core.
const ACCEPT_NICE: libc::c_int = 5;
/// Tasks that a shard's runtime polls between two polls of the shard, of which every second may be given up for them.
const TASKS_PER_TURN: u32 = 31;
/// Requests that may wait for the admin thread; more wait in their HTTP phase.
const ADMIN_REQUESTS_MAX: usize = 16;
/// How long after its deadline a drain may still take to close what it cuts.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Why a server could not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port could not be opened.
    #[error("cannot listen on {address}: {source}{}", if source.kind() == io::ErrorKind::AddrInUse { "; is another server running there?" } else { "" })]
    Listen {
        /// Where it was to listen.
        address: ListenAddress,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread, a runtime or an epoll set could not be had, or failed.
    #[error("{0}: {1}")]
    Thread(&'static str, io::Error),
    /// A thread panicked; its message has been printed.
    #[error("{0} has panicked")]
    Panicked(&'static str),
    /// A drain has not ended although its time was long over.
    #[error("a shard did not end in time")]
    Stuck,
}

/// A port that is open.
struct BoundListener {
    listener: TcpListener,
    address: SocketAddr,
    config: ListenerConfig,
}

/// A server that has its ports.
pub struct Server {
    engine: Arc<Engine>,
    bound: Vec<BoundListener>,
    admin_requests: mpsc::Receiver<AdminRequest>,
}

impl Server {
    /// Opens the ports; nothing runs yet.
    ///
    /// # Errors
    /// [`ServerError::Listen`], for example when another server has a port.
    pub fn bind(config: Config) -> Result<Self, ServerError> {
        let mut bound = Vec::new();
        for (address, listener_config) in config.listeners() {
            let failed = |source| ServerError::Listen { address: address.clone(), source };
            for socket_address in resolve(&address).map_err(failed)? {
                let listener = listen(&config, socket_address).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                bound.push(BoundListener { listener, address, config: listener_config });
            }
        }
        let (admin, admin_requests) = mpsc::channel(ADMIN_REQUESTS_MAX);
        Ok(Self { engine: Engine::new(config, admin), bound, admin_requests })
    }

    /// Where it listens; [`Config::listen`] comes first, in the order of [`Config::listeners`].
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.bound.iter().map(|bound| bound.address)
    }

    /// Where it listens: the address of [`Config::listen`].
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.bound[0].address
    }

    /// What its threads share, to publish and to ask for figures.
    #[must_use]
    pub fn engine(&self) -> Arc<Engine> {
        self.engine.clone()
    }

    /// Runs until `shutdown` completes and the drain that it starts is over; the last figures.
    ///
    /// # Errors
    /// When a thread cannot be started, fails, panics, or does not end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<ShardStats, ServerError> {
        let Self { engine, bound, mut admin_requests } = self;
        // Room for every shard, and the accept thread.
        let (ended_sender, mut ended) = mpsc::channel(engine.config.shards.get() + 1);
        start_shards(&engine, &ended_sender)?;
        tokio::select! {
            () = engine.barrier() => {}
            failed = shard_failure(&mut ended) => return Err(failed),
        }
        mem::flush();
        let baseline = Sample::take();
        engine.note_heap(baseline.in_use_bytes() as usize);
        let tracker = Rc::new(RefCell::new(MemoryTracker::new(baseline)));
        let Config { shards, fanout, .. } = engine.config;
        for BoundListener { address, config, .. } in &bound {
            let ListenerConfig { secure: tls, websockets, admin, .. } = *config;
            tracing::info!(shards, ?fanout, allocator = mem::NAME, tls, websockets, admin, "listening on {address}");
        }
        let acceptor = Acceptor::start(bound, &engine, ended_sender)?;

        let mut shutdown = pin!(shutdown);
        let mut ticks = engine.config.tick.map(timer);
        let bounded = engine.config.memory_bytes_max.is_some();
        let mut samples = timer(if bounded { BOUNDED_SAMPLE_INTERVAL } else { SAMPLE_INTERVAL });
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = next(&mut ticks) => tick(&engine),
                _ = samples.tick() => {
                    let sample = Sample::take();
                    engine.note_heap(sample.in_use_bytes() as usize);
                    tracker.borrow_mut().note(sample, engine.registry.peak());
                }
                Some(request) = admin_requests.recv() => answer(&engine, &tracker, request),
                failed = shard_failure(&mut ended) => return Err(failed),
            }
        }

        tracing::info!(connections = engine.registry.len(), "draining");
        let (begun, deadline) = (Instant::now(), Instant::now() + engine.config.drain_timeout);
        engine.drain(deadline).await;
        let (mut report, mut running) = (ShardStats::default(), engine.config.shards.get());
        while running > 0 {
            tokio::select! {
                // The accept thread, which has the other end too, tells of failures only.
                Some(end) = ended.recv() => {
                    report += end?;
                    running -= 1;
                }
                Some(request) = admin_requests.recv() => answer(&engine, &tracker, request),
                () = sleep_until(deadline + DRAIN_GRACE) => return Err(ServerError::Stuck),
            }
        }
        // Until here, who came was told to try again.
        acceptor.stop()?;
        let (closed, refused) =
            (report.closed[CloseReason::Drain as usize], engine.rejections.get(Rejection::Draining));
        tracing::info!(aborted = report.aborted, closed, refused, took = ?begun.elapsed(), "drained");
        Ok(report)
    }
}

/// Fires first after one period; late ones are not made up for.
fn timer(period: Duration) -> Interval {
    let mut timer = interval_at(Instant::now() + period, period);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// The next tick; never without a timer.
async fn next(timer: &mut Option<Interval>) {
    match timer {
        Some(timer) => drop(timer.tick().await),
        None => std::future::pending().await,
    }
}

/// The server's message to `all`.
fn tick(engine: &Engine) {
    let frame = event::chat_msg(event::SERVER_NAME, "hello, this is server", ChannelName::ALL);
    let publication = Publication { channel: ChannelName::all(), frame, origin: Origin::Server, receipt: None };
    if let Err(refused) = engine.publish(publication) {
        tracing::warn!("the tick was not sent: {refused}");
    }
}

/// Answers in a task of its own, or a thread: a stats waits for the shards, a profile takes its time, and the admin
/// thread waits for nobody.
fn answer(engine: &Arc<Engine>, tracker: &Rc<RefCell<MemoryTracker>>, request: AdminRequest) {
    let (engine, tracker) = (engine.clone(), tracker.clone());
    // The tasks end by themselves, at the stats's timeout at the latest. Whoever asked may have gone.
    match request {
        AdminRequest::Profile(request) => profile::start(request),
        AdminRequest::Metrics(answer) => drop(tokio::task::spawn_local(async move {
            let report = engine.stats().await;
            let _ = answer.send(report.map(|report| exposition(&engine, &report)));
        })),
        AdminRequest::MemoryStats(request) => drop(tokio::task::spawn_local(async move {
            if request.purge {
                mem::purge();
            }
            let memory_stats = engine.socket_stats().await.map(|report| {
                let sample = Sample::take();
                let mut tracker = tracker.borrow_mut();
                tracker.note(sample, engine.registry.peak());
                tracker.memory_stats(sample, engine.registry.len(), report.queues)
            });
            let _ = request.answer.send(memory_stats);
        })),
    }
}

/// Every socket address of an address that a user writes.
fn resolve(address: &ListenAddress) -> io::Result<Vec<SocketAddr>> {
    match address {
        ListenAddress::Ip(address) => Ok(vec![*address]),
        ListenAddress::Name { host, port } => Ok((host.as_str(), *port).to_socket_addrs()?.collect()),
        ListenAddress::Any { port } => Ok(vec![(Ipv6Addr::UNSPECIFIED, *port).into()]),
        ListenAddress::Unix(_) | ListenAddress::Systemd | ListenAddress::Fd(_) => {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

/// A listener whose sockets inherit what every client's socket needs, so that no call per connection is spent on it.
fn listen(config: &Config, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // After a restart, connections of the last process may still be in TIME_WAIT. A second server is refused all the same.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    // The kernel doubles the value for its bookkeeping.
    socket.set_send_buffer_size(config.kernel_bytes_max)?;
    socket.set_tcp_notsent_lowat(config.kernel_bytes_max as u32)?;
    // What a client sends faster than it is read waits at the client, not in megabytes that the kernel would take.
    socket.set_recv_buffer_size(config.kernel_bytes_max.max(READ_BYTES))?;
    socket.set_tcp_user_timeout(Some(config.write_timeout))?;
    defer_accept(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Has the kernel hand over a socket with the first bytes of its request, not before: most handshakes are then answered at
/// once. A client that says nothing is handed over when the kernel has asked it again, after about a second.
fn defer_accept(listener: &Socket) -> io::Result<()> {
    let seconds: libc::c_int = 1;
    // SAFETY: the value is a readable `c_int` of the length given, and the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of_val(&seconds) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

type ShardEnd = Result<ShardStats, ServerError>;

/// Tells how a shard's thread ended, even if it panicked.
struct Ending {
    end: Option<ShardEnd>,
    ended: mpsc::Sender<ShardEnd>,
}

impl Ending {
    fn report(mut self, end: ShardEnd) {
        self.end = Some(end);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let end = self.end.take().unwrap_or(Err(ServerError::Panicked("a shard")));
        // There is room for every shard; without a receiver nobody waits any more.
        let _ = self.ended.try_send(end);
    }
}

/// Starts every shard on a thread of its own, which sends its end.
fn start_shards(engine: &Arc<Engine>, ended: &mpsc::Sender<ShardEnd>) -> Result<(), ServerError> {
    for index in 0..engine.config.shards.get() {
        let ending = Ending { end: None, ended: ended.clone() };
        let engine = engine.clone();
        let body = move || {
            let end = run_shard(engine, index as u16);
            ending.report(end);
        };
        let thread = thread::Builder::new().name(format!("shard-{index}")).spawn(body);
        // Not joined: its `Ending` says when and how it has ended.
        drop(thread.map_err(|error| ServerError::Thread("cannot start a shard", error))?);
    }
    Ok(())
}

fn run_shard(engine: Arc<Engine>, index: u16) -> ShardEnd {
    let failed = |error| ServerError::Thread("a shard has failed", error);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(TASKS_PER_TURN)
        .build_local(LocalOptions::default())
        .map_err(failed)?;
    let (shard, set) = Shard::new(engine, index).map_err(failed)?;
    mem::flush();
    runtime.block_on(shard.run(set, http::serve)).map_err(failed)
}

/// Waits until a shard ends although nobody drains: half a server is none.
async fn shard_failure(ended: &mut mpsc::Receiver<ShardEnd>) -> ServerError {
    match ended.recv().await {
        Some(Err(error)) => error,
        Some(Ok(_)) | None => ServerError::Panicked("a shard"),
    }
}

/// The accept thread.
struct Acceptor {
    thread: JoinHandle<()>,
    stopping: Arc<AtomicBool>,
    waker: Waker,
}

impl Acceptor {
    const WAKER: Token = Token(usize::MAX);

    /// Starts it; should it fail, its end arrives in `ended`.
    fn start(
        bound: Vec<BoundListener>,
        engine: &Arc<Engine>,
        ended: mpsc::Sender<ShardEnd>,
    ) -> Result<Self, ServerError> {
        let failed = |error| ServerError::Thread("cannot start the accept thread", error);
        let set = Poll::new().map_err(failed)?;
        let mut listeners = Vec::new();
        for (number, BoundListener { listener, config, .. }) in bound.into_iter().enumerate() {
            let mut listener = mio::net::TcpListener::from_std(listener);
            set.registry().register(&mut listener, Token(number), Interest::READABLE).map_err(failed)?;
            listeners.push((listener, config));
        }
        let waker = Waker::new(set.registry(), Self::WAKER).map_err(failed)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (engine, stop) = (engine.clone(), stopping.clone());
        let body = move || {
            if let Err(error) = accept(&listeners, set, &engine, &stop) {
                // There is room; without a receiver nobody waits any more.
                let _ = ended.try_send(Err(ServerError::Thread("the accept thread has failed", error)));
            }
        };
        let thread = thread::Builder::new().name("accept".to_owned()).spawn(body).map_err(failed)?;
        Ok(Self { thread, stopping, waker })
    }

    /// Closes the port.
    fn stop(self) -> Result<(), ServerError> {
        // Release: pairs with the acquire in `accept`; the wake alone would do, but it may come late.
        self.stopping.store(true, Ordering::Release);
        self.waker.wake().map_err(|error| ServerError::Thread("cannot stop the accept thread", error))?;
        self.thread.join().map_err(|_| ServerError::Panicked("the accept thread"))
    }
}

/// Hands each new socket to the shard with the fewest connections, until told to stop.
fn accept(
    listeners: &[(mio::net::TcpListener, ListenerConfig)],
    mut set: Poll,
    engine: &Engine,
    stopping: &AtomicBool,
) -> io::Result<()> {
    lower_priority();
    let mut events = Events::with_capacity(4);
    let (mut backing_off, mut waits, mut first) = (false, None::<Duration>, 0_usize);
    let mut pace = engine.config.accept_rate.map(|rate| AcceptPace::new(rate, std::time::Instant::now()));
    // Acquire: pairs with the release in `Acceptor::stop`.
    while !stopping.load(Ordering::Acquire) {
        match set.poll(&mut events, waits.take().or(backing_off.then_some(ACCEPT_BACKOFF))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        // Each in turn, whatever the event said: after a wait, any of them may have somebody. One that is left before it has said
        // that it is empty will not tell again, so then there is a wait. And each begins in its turn: the first one may take all the room.
        let mut full = false;
        first += 1;
        for (listener, config) in listeners.iter().cycle().skip(first % listeners.len()).take(listeners.len()) {
            while !stopping.load(Ordering::Acquire) {
                let shard = engine.least_loaded();
                let wait = match shard {
                    None => Some(ACCEPTED_WAIT),
                    Some(_) => pace.as_mut().and_then(|pace| pace.wait(std::time::Instant::now())),
                };
                let (None, Some(shard)) = (wait, shard) else {
                    waits = waits.into_iter().chain(wait).min();
                    break;
                };
                match listener.accept() {
                    Ok((stream, peer)) => {
                        pace.iter_mut().for_each(AcceptPace::accepted);
                        if let Err((stream, rejection)) = engine.hand_over(shard, stream.into(), peer.ip(), *config) {
                            http::refuse(engine, stream, *config, rejection);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if is_full(&error) => {
                        if !backing_off && !full {
                            tracing::warn!("cannot accept: {error}; raise the limit of open files or let clients go");
                        }
                        full = true;
                        break;
                    }
                    // The client has gone again (ECONNABORTED and the like): the next one counts.
                    Err(error) => tracing::debug!("accept: {error}"),
                }
            }
        }
        if std::mem::replace(&mut backing_off, full) && !full {
            tracing::info!("accepting again");
        }
    }
    Ok(())
}

/// Lets the shards go before this thread when they share a core: a handshake can wait longer than a message.
fn lower_priority() {
    // SAFETY: no memory is involved. In Linux it is the calling thread that steps back, which is always granted.
    unsafe { libc::nice(ACCEPT_NICE) };
}

/// Whether the process, or the machine, has no room for another file.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn sockets_inherit_what_they_need_from_the_listener() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { kernel_bytes_max: 64 * 1024, ..Config::default() };
        let listener = listen(&config, address).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.send_buffer_size().unwrap(), 2 * 64 * 1024);
        assert_eq!(socket.recv_buffer_size().unwrap(), 2 * READ_BYTES);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 64 * 1024);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(config.write_timeout));
    }
}
