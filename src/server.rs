//! The life of a server: bind, run, drain.
//!
//! [`Server::bind`] opens the ports and runs nothing; [`Server::run`] starts the shards and the
//! front, is itself the admin thread (tick, memory and other statistics, signals by way of
//! `shutdown`), and returns when everything has ended.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use crate::admission::Rejection;
use crate::close::CloseReason;
use crate::engine::exposition::exposition;
use crate::engine::publication::{ChannelName, Origin, Publication};
use crate::engine::shard::Shard;
use crate::engine::{AdminRequest, Engine, ShardStats};
pub use crate::error::ServerError;
use crate::front::{self, Front};
use crate::mem::{self, MemoryTracker, Sample};
use crate::net::{self, BoundListener};
use crate::profile;
use crate::settings::Config;
use crate::wire::event;

/// Time between two samples of the peaks.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The same when the heap has a bound. The growth between two samples is estimated.
const BOUNDED_SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Requests that may wait for the admin thread; more wait in their HTTP connections.
const ADMIN_REQUESTS_MAX: usize = 16;
/// How long after its deadline a drain may still take to close what it cuts.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// A server that has its listeners.
pub struct Server {
    engine: Arc<Engine>,
    bound: Vec<BoundListener>,
    admin_requests: mpsc::Receiver<AdminRequest>,
}

impl Server {
    /// Opens the listeners; nothing runs yet.
    ///
    /// # Errors
    /// [`ServerError::Listen`], for example when another server has a port.
    pub fn bind(config: Config) -> Result<Self, ServerError> {
        let mut bound = Vec::new();
        for (address, served) in config.listeners() {
            let is_admin_only = served.admin && !served.websockets;
            let listeners = net::bind(&config, &address, served).map_err(|source| {
                let flag = if is_admin_only { "--admin-listen" } else { "--listen" };
                ServerError::Listen { address: address.to_string(), flag, source }
            })?;
            bound.extend(listeners);
        }
        let (admin, admin_requests) = mpsc::channel(ADMIN_REQUESTS_MAX);
        Ok(Self { engine: Engine::new(config, admin), bound, admin_requests })
    }

    /// Where it listens, in the order of [`Config::listeners`]; without Unix sockets.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.bound.iter().filter_map(|bound| bound.address.ip())
    }

    /// Where clients connect first.
    ///
    /// # Panics
    /// If that is a Unix socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses().next().expect("a listener with an address")
    }

    /// The state that its threads share, to publish and to ask for statistics.
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
        // Room for every shard, and every HTTP thread.
        let threads = engine.config.shards.get() + engine.config.http_threads.get() + 1;
        let (ended_sender, mut ended) = mpsc::channel(threads);
        start_shards(&engine, &ended_sender)?;
        tokio::select! {
            () = engine.barrier() => {}
            failed = shard_failure(&mut ended) => return Err(failed),
        }
        mem::flush();
        let baseline = Sample::take();
        engine.note_heap(baseline.in_use_bytes() as usize);
        let tracker = Rc::new(RefCell::new(MemoryTracker::new(baseline)));
        announce(&engine.config, &bound);
        let front = Front::start(bound, &engine, &ended_sender)?;

        let mut answers = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let mut ticks = engine.config.tick.map(timer);
        let mut sampled = Instant::now();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = next(&mut ticks) => tick(&engine),
                () = sleep_until(sampled + sample_interval(&engine)) => {
                    sampled = Instant::now();
                    let sample = Sample::take();
                    engine.note_heap(sample.in_use_bytes() as usize);
                    tracker.borrow_mut().note(sample, engine.registry.peak());
                }
                Some(request) = admin_requests.recv() => answer(&engine, &tracker, request, &mut answers),
                Some(_) = answers.join_next() => {}
                failed = shard_failure(&mut ended) => return Err(failed),
            }
        }

        engine.begin_drain();
        tracing::info!(connections = engine.registry.len(), "draining");
        let (begun, deadline) = (Instant::now(), Instant::now() + engine.config.drain_timeout);
        engine.drain(deadline).await;
        let (mut report, mut running) = (ShardStats::default(), engine.config.shards.get());
        while running > 0 {
            tokio::select! {
                // The HTTP threads, which have the other end too, tell of failures only.
                Some(end) = ended.recv() => {
                    report += end?;
                    running -= 1;
                }
                Some(request) = admin_requests.recv() => answer(&engine, &tracker, request, &mut answers),
                Some(_) = answers.join_next() => {}
                () = sleep_until(deadline + DRAIN_GRACE) => return Err(ServerError::Stuck),
            }
        }
        // Nobody answers for the shards any more: requests that wait, and later ones, get 503.
        drop(admin_requests);
        answers.shutdown().await;
        // Until here, new clients were told to try again.
        front.stop().await?;
        let (closed, rejected) =
            (report.closed[CloseReason::Drain as usize], engine.rejections.get(Rejection::Draining));
        tracing::info!(aborted = report.aborted, closed, rejected, took = ?begun.elapsed(), "drained");
        Ok(report)
    }
}

/// Time between two samples of the heap, by the settings in effect.
fn sample_interval(engine: &Engine) -> Duration {
    match engine.live().memory_bytes_max {
        Some(_) => BOUNDED_SAMPLE_INTERVAL,
        None => SAMPLE_INTERVAL,
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
    if let Err(rejected) = engine.publish(publication) {
        tracing::warn!("the tick was not sent: {rejected}");
    }
}

/// Answers in a task or thread of its own. Statistics wait for the shards, and a profile takes
/// seconds, but the admin thread must not wait for a request.
fn answer(
    engine: &Arc<Engine>,
    tracker: &Rc<RefCell<MemoryTracker>>,
    request: AdminRequest,
    answers: &mut JoinSet<()>,
) {
    let (engine, tracker) = (engine.clone(), tracker.clone());
    // The tasks end by themselves, at the latest after `STATS_TIMEOUT`. The receiver may have gone.
    match request {
        AdminRequest::Profile(request) => profile::start(request),
        AdminRequest::Metrics(answer) => drop(answers.spawn_local(async move {
            let report = engine.stats().await;
            let _ = answer.send(report.map(|report| exposition(&engine, &report)));
        })),
        AdminRequest::MemoryStats(request) => drop(answers.spawn_local(async move {
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

/// Logs where the server is, with a line to copy.
fn announce(config: &Config, bound: &[BoundListener]) {
    let Config { shards, fanout, .. } = *config;
    tracing::info!(shards, %fanout, allocator = mem::NAME, "Hydrant {}", env!("CARGO_PKG_VERSION"));
    for BoundListener { address, config: served, .. } in bound {
        let (ws, http) = match address.ip() {
            Some(ip) => {
                (format!("{}://{ip}/ws", if served.secure { "wss" } else { "ws" }), front::url(served.secure, ip))
            }
            None => (address.to_string(), address.to_string()),
        };
        match (served.websockets, served.admin) {
            (true, true) => tracing::info!("listening on {address} for everything: {ws} and {http}"),
            (true, false) => tracing::info!("listening on {address} for clients: {ws}"),
            (false, _) => tracing::info!("listening on {address} for publishing and administration: {http}"),
        }
    }
    let mut publishing = bound.iter().filter(|bound| bound.config.admin && !config.lacks_token(bound.config));
    if let Some((served, ip)) = publishing.find_map(|bound| Some((bound.config, bound.address.ip()?))) {
        let token = if config.token.is_some() { "-H 'Authorization: Bearer TOKEN' " } else { "" };
        tracing::info!("try: curl {token}-d hello {}/publish", front::url(served.secure, ip));
    }
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
        // The channel has room for every shard. It fails only if the receiver is gone.
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
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).map_err(failed)?;
    let (shard, set) = Shard::new(engine, index).map_err(failed)?;
    mem::flush();
    runtime.block_on(shard.run(set)).map_err(failed)
}

/// Waits until a shard ends without a drain: the server cannot run without it.
async fn shard_failure(ended: &mut mpsc::Receiver<ShardEnd>) -> ServerError {
    match ended.recv().await {
        Some(Err(error)) => error,
        Some(Ok(_)) | None => ServerError::Panicked("a shard"),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn a_bound_of_the_heap_that_a_reload_sets_has_more_samples() {
        let engine = Engine::new(Config::default(), mpsc::channel(1).0);
        assert_eq!(sample_interval(&engine), SAMPLE_INTERVAL);
        engine.reload(Config { memory_bytes_max: NonZeroUsize::new(1 << 30), ..Config::default() });
        assert_eq!(sample_interval(&engine), BOUNDED_SAMPLE_INTERVAL);
        engine.reload(Config::default());
        assert_eq!(sample_interval(&engine), SAMPLE_INTERVAL);
    }
}
