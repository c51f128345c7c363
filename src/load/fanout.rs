//! The load that publishes: connects all clients, warms up, publishes at a pace, and waits until
//! every subscriber has every message.
//!
//! Serves the scenarios fanout, idle (which publishes nothing), churn and slow, and the benches,
//! which call [`Fanout`] step by step. Owns the event loop. Without `--sleep` it never sleeps while
//! a load of fanout or slow runs, see [`EventLoop::wait`].

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use mio::Events;

use super::churn::Churn;
use super::client_pool::ClientPool;
use super::connect::HANDSHAKES_IN_FLIGHT;
use super::counted::Counted;
use super::delivery_tracker::DeliveryTracker;
use super::event_loop::{Clock, EventLoop};
use super::message::Tags;
use super::options::{Options, Pace, PublishBy, Scenario};
use super::progress::Progress;
use super::publish_plan::PublishPlan;
use super::publisher::Publisher;
use super::schedule::{Random, Schedule};
use super::slow::SlowReaders;
use super::subscribers::Subscribers;
use super::target::Target;
use super::{LoadError, QUIET_TIME, process, server_sample};

/// Messages, one at a time, that every connection gets before the measurement. Linux acknowledges
/// the first 16 segments of a connection at once, later ones when the receiver reads or a timer
/// expires. Over loopback the core of the sender makes and handles the immediate acknowledgements
/// within `send`, which makes a delivery a quarter to a half dearer; the client pays for the later
/// ones, as on a real network. The 16 start again after a silence of 200 ms, so a pass over all
/// subscribers must be shorter than that in a load that is to be compared.
const LEAD_IN: usize = 20;
/// How long to listen for unexpected messages after the last expected one, in nanoseconds.
const LISTEN_AFTER_NS: u64 = 100_000_000;
/// Time between two checks for timeouts, in nanoseconds.
const HOUSEKEEPING_NS: u64 = 100_000_000;
/// How long to look for the end of the other connections when one has failed, in nanoseconds.
const EXPLAIN_NS: u64 = 200_000_000;

/// See the head of this file.
pub struct Fanout {
    pub(super) options: Options,
    pub(super) clock: Clock,
    pub(super) event_loop: EventLoop,
    events: Events,
    pub(super) pool: ClientPool,
    pub(super) subscribers: Subscribers,
    publisher: Option<Publisher>,
    pub(super) churn: Option<Churn>,
    pub(super) slow: SlowReaders,
    housekeeping_ns: u64,
    /// Time that connecting took.
    pub(super) connecting: Duration,
    /// CPU time of the server when all clients were connected, if its process is known.
    pub(super) server_cpu_connected: Option<Duration>,
    progress: Progress,
    /// Whether all clients were connected once: from then on the load ends when all have gone.
    connected: bool,
    /// Rejected publications of a publisher that has failed.
    rejected_earlier: u64,
}

/// The first address of a target.
pub(super) fn resolve(target: &Target) -> Result<SocketAddr, LoadError> {
    target.resolve().map_err(|source| LoadError::Connect { address: target.address.clone(), source })
}

impl Fanout {
    /// Connects all clients and the publishing connections. Some may fail, see
    /// [`Self::require_all_connected`].
    ///
    /// # Errors
    /// When there is no server, or it is not a WebSocket server.
    pub fn connect(options: &Options) -> Result<Self, LoadError> {
        let mut load = Self::new(options)?;
        load.connect_all()?;
        load.connect_publisher()?;
        Ok(load)
    }

    /// A load without connections.
    ///
    /// # Errors
    /// When the server has no address, or the kernel has too few files.
    pub(super) fn new(options: &Options) -> Result<Self, LoadError> {
        process::require_open_files(options)?;
        let clock = Clock::start();
        let spins = matches!(options.scenario, Scenario::Fanout | Scenario::Slow) && !options.sleep;
        let server = resolve(&options.url)?;
        let mut random = Random(options.seed);
        let subscribers = Subscribers {
            tracker: DeliveryTracker::new(options.connections, options.room_count()),
            tags: Tags::new(random.next()),
            payload: options.payload,
            first_unexpected: None,
            first_damage: None,
            inside: options.publish_by == PublishBy::Say,
            slow_from: options.connections - options.slow,
            rooms: options.room_count(),
            drops: options.drops,
        };
        Ok(Self {
            clock,
            event_loop: EventLoop::new(clock, spins)?,
            events: EventLoop::events(),
            pool: ClientPool::new(options, server, options.connections, 0, clock)?,
            subscribers,
            publisher: None,
            churn: (options.scenario == Scenario::Churn).then(|| Churn::new(options)),
            slow: SlowReaders::new(options),
            housekeeping_ns: 0,
            connecting: Duration::ZERO,
            server_cpu_connected: None,
            progress: Progress::new(options.quiet),
            connected: false,
            rejected_earlier: 0,
            options: options.clone(),
        })
    }

    /// Connects the publishing connections.
    pub(super) fn connect_publisher(&mut self) -> Result<(), LoadError> {
        let options = &self.options;
        if options.scenario != Scenario::Idle {
            let servers = (resolve(&options.url)?, resolve(&options.publish_url)?);
            let (tags, first_token) = (self.subscribers.tags, options.connections);
            let event_loop = &mut self.event_loop;
            self.publisher = Some(Publisher::connect(options, servers, tags, event_loop, first_token, self.clock)?);
        }
        Ok(())
    }

    /// Connects all clients. Some may fail.
    pub(super) fn connect_all(&mut self) -> Result<(), LoadError> {
        let (all, start_ns) = (self.pool.len(), self.clock.now_ns());
        let ramp = (self.options.ramp > 0).then(|| Schedule::new(start_ns, self.options.ramp.into()));
        let mut begun = 0;
        while begun < all || self.pool.in_transition() > 0 {
            let now_ns = self.clock.now_ns();
            let due_ns = |number: usize| ramp.map_or(now_ns, |ramp| ramp.due_ns(number as u64));
            while begun < all
                && due_ns(begun) <= now_ns
                && (ramp.is_some() || self.pool.in_transition() < HANDSHAKES_IN_FLIGHT)
            {
                self.pool.connect(begun, due_ns(begun), self.event_loop.registry())?;
                begun += 1;
            }
            let until_ns = if begun < all && ramp.is_some() { due_ns(begun) } else { u64::MAX };
            self.poll_once(&mut None, until_ns)?;
            self.connecting = Duration::from_nanos(self.clock.now_ns() - start_ns);
            if self.pool.open == 0 && self.pool.failed > 0 {
                return Err(self.all_gone());
            }
            if process::interrupted() {
                return Err(LoadError::interrupted());
            }
            let open = self.pool.open;
            self.progress.show(now_ns, open as f64 / all as f64, || format!("connecting: {open} of {all}"));
        }
        if self.pool.open == 0 {
            return Err(self.all_gone());
        }
        self.connected = true;
        thread::sleep(QUIET_TIME);
        if !self.options.pids.is_empty() {
            self.server_cpu_connected = Some(server_sample::cpu_time(&self.options.pids)?);
        }
        Ok(self.slow.stop_events(&mut self.pool, self.event_loop.registry())?)
    }

    /// Checks that all clients are connected, so that a figure is about all of them.
    ///
    /// # Errors
    /// When a connection is missing, other than a slow one that the server closed as its policy
    /// says.
    pub fn require_all_connected(&self) -> Result<(), LoadError> {
        match self.pool.missing() {
            0 => Ok(()),
            missing => Err(LoadError::MissingConnections {
                missing,
                requested: self.pool.len() as u64,
                first_error: self.pool.first_error.clone().unwrap_or_default(),
            }),
        }
    }

    /// Brings sockets, caches and batch sizes to their steady state. Returns the time per message
    /// at the end of it, if there were enough messages.
    ///
    /// # Errors
    /// When a message is missing, or the server fails.
    pub fn warm_up(&mut self) -> Result<Option<Duration>, LoadError> {
        let in_flight = match self.options.pace {
            Pace::InFlight(in_flight) => in_flight,
            Pace::Rate(_) | Pace::Flood => 1,
        };
        let messages = self.options.warm_up.unwrap_or(LEAD_IN + (2 * in_flight).max(5));
        let lead_in = messages.min(LEAD_IN);
        self.publish_all(Pace::InFlight(1), lead_in as u64)?;
        if messages == lead_in {
            return Ok(None);
        }
        let rest = (messages - lead_in) as u64;
        let elapsed = self.publish_all(Pace::InFlight(in_flight), rest)?;
        Ok(Some(elapsed.div_f64(rest as f64)))
    }

    /// Publishes without a measurement; an error if a message is missing.
    fn publish_all(&mut self, pace: Pace, messages: u64) -> Result<Duration, LoadError> {
        let now_ns = self.clock.now_ns();
        let published = self.publish(&mut PublishPlan::new(pace, messages, now_ns, u64::MAX));
        let elapsed_ns = published.map_err(|error| self.explain(error))?;
        if process::interrupted() {
            return Err(LoadError::interrupted());
        }
        let counts = self.subscribers.tracker.counts();
        if counts.received == 0 && counts.damaged == 0 && counts.expected > 0 {
            let first = self.subscribers.first_unexpected.as_ref();
            let first = first.map(|first| format!(", but {} others; the first is {first}", counts.unexpected));
            return Err(LoadError::NothingReceived(first.unwrap_or_default()));
        }
        if !counts.is_exact() {
            return Err(LoadError::WarmUp(counts));
        }
        Ok(Duration::from_nanos(elapsed_ns))
    }

    /// Publishes `messages` and counts until every subscriber has all of them, or until nothing has
    /// arrived for [`Options::patience`].
    ///
    /// # Errors
    /// When the server fails. A lost message is counted and is no error.
    pub fn run(&mut self, messages: u64) -> Result<Counted, LoadError> {
        let counted = self.measure(messages, u64::MAX)?;
        counted.ended_early.clone().map_or(Ok(counted), |reason| Err(LoadError::EndedEarly(reason)))
    }

    /// Runs the measured load of the options.
    pub(super) fn run_scenario(&mut self) -> Result<Counted, LoadError> {
        let duration_ns = self.options.duration.as_nanos() as u64;
        match (self.options.scenario, self.options.messages) {
            (Scenario::Idle, _) => self.measure(0, self.clock.now_ns() + duration_ns),
            (_, Some(messages)) => self.measure(messages, u64::MAX),
            (_, None) => self.measure(u64::MAX, self.clock.now_ns() + duration_ns),
        }
    }

    fn measure(&mut self, messages: u64, until_ns: u64) -> Result<Counted, LoadError> {
        self.subscribers.tracker.measure_from_here();
        let counts = self.subscribers.tracker.counts();
        let (reads, idle_ns, rejected) = (self.pool.reads, self.event_loop.idle_ns(), self.rejected());
        let (cpu, waited) = (process::cpu_time(std::process::id())?, process::time_waited(std::process::id())?);
        let mut plan = PublishPlan::new(self.options.pace, messages, self.clock.now_ns(), until_ns);
        if let Some(churn) = &mut self.churn {
            churn.start(self.clock.now_ns());
        }
        let start_ns = self.clock.now_ns();
        let outcome = match self.options.scenario {
            Scenario::Idle => self.wait_until(until_ns),
            _ => self.publish(&mut plan),
        };
        let mut ended_early = process::interrupted().then(|| LoadError::interrupted().to_string());
        let elapsed_ns = outcome.unwrap_or_else(|error| {
            let now_ns = self.clock.now_ns();
            // Messages that would have been due later do not count as unsent.
            plan.stop(now_ns);
            ended_early = Some(self.explain(error).to_string());
            now_ns - start_ns
        });
        let client_cpu = process::cpu_time(std::process::id())?.saturating_sub(cpu);
        let client_cpu_ns = (client_cpu.as_nanos() as u64).saturating_sub(self.event_loop.idle_ns() - idle_ns);
        let client_waited = process::time_waited(std::process::id())?.saturating_sub(waited);
        let reads = self.pool.reads - reads;
        if ended_early.is_none() {
            self.finish().unwrap_or_else(|error| ended_early = Some(self.explain(error).to_string()));
        }
        self.subscribers.tracker.close_slow();
        let tracker = &self.subscribers.tracker;
        Ok(Counted {
            counts: tracker.counts().since(&counts),
            rejected: self.rejected() - rejected,
            unsent: plan.unsent(),
            reads,
            absent: self.pool.missing(),
            elapsed_ns,
            client_cpu_ns,
            client_waited_ns: client_waited.as_nanos() as u64,
            ended_early,
            deliveries: tracker.deliveries.clone(),
            last_subscriber: tracker.last.clone(),
        })
    }

    fn rejected(&self) -> u64 {
        self.rejected_earlier + self.publisher.as_ref().map_or(0, Publisher::rejected)
    }

    /// Listens for unexpected messages, lets clients finish joining, and lets slow readers read to
    /// the end.
    fn finish(&mut self) -> Result<(), LoadError> {
        if let Some(churn) = &mut self.churn {
            churn.stop();
        }
        while self.churn.is_some() && self.pool.in_transition() > 0 {
            self.poll_once(&mut None, u64::MAX)?;
        }
        if self.options.scenario == Scenario::Slow {
            self.slow.drain();
        }
        self.wait_until(self.clock.now_ns() + LISTEN_AFTER_NS)?;
        let mut quiet_since_ns = self.clock.now_ns();
        while self.slow.is_draining(quiet_since_ns, self.clock.now_ns()) {
            let learnt = self.learnt_of_slow();
            self.poll_once(&mut None, self.clock.now_ns() + LISTEN_AFTER_NS)?;
            if self.learnt_of_slow() != learnt {
                quiet_since_ns = self.clock.now_ns();
            }
        }
        Ok(())
    }

    /// Changes when a slow reader gets a message of this run, or its end.
    fn learnt_of_slow(&self) -> (u64, usize) {
        (self.subscribers.tracker.counts().slow_received, self.pool.open)
    }

    /// Handles events until `until_ns`; returns how long that was, in nanoseconds.
    fn wait_until(&mut self, until_ns: u64) -> Result<u64, LoadError> {
        let start_ns = self.clock.now_ns();
        let mut now_ns = start_ns;
        while now_ns < until_ns && !process::interrupted() {
            self.poll_once(&mut None, until_ns)?;
            now_ns = self.clock.now_ns();
            let (done, open) = ((now_ns - start_ns) as f64 / (until_ns - start_ns) as f64, self.pool.open);
            if self.options.scenario == Scenario::Idle {
                self.progress.show(now_ns, done, || format!("{open} connections are open"));
            }
        }
        Ok(now_ns - start_ns)
    }

    /// Publishes all messages. Returns when every subscriber has them, or when nothing has arrived
    /// for too long. The return value is the time from the first publication to the last delivery,
    /// in nanoseconds.
    fn publish(&mut self, plan: &mut PublishPlan) -> Result<u64, LoadError> {
        let start_ns = self.clock.now_ns();
        let (mut end_ns, mut moved_ns, mut moved) = (start_ns, start_ns, self.progress_marks());
        let patience_ns = self.options.patience.as_nanos() as u64;
        let total = plan.left;
        let mut plan = Some(plan);
        loop {
            let now_ns = self.clock.now_ns();
            if process::interrupted()
                && let Some(plan) = &mut plan
            {
                plan.stop(now_ns);
            }
            self.refill(&mut plan, now_ns)?;
            let Some(state) = &plan else { break };
            let idle = self.publisher.as_ref().is_none_or(Publisher::is_idle);
            let waits = self.subscribers.tracker.in_flight() > 0 || !idle;
            if state.is_over(now_ns) && !waits {
                break;
            }
            let progress_marks = self.progress_marks();
            if progress_marks != moved {
                if progress_marks.1 != moved.1 {
                    end_ns = now_ns;
                }
                (moved, moved_ns) = (progress_marks, now_ns);
            }
            if waits && now_ns - moved_ns > patience_ns {
                break;
            }
            let done = match state.until_ns {
                u64::MAX => state.sent as f64 / total as f64,
                until_ns => (now_ns - start_ns) as f64 / (until_ns - start_ns).max(1) as f64,
            };
            let (sent, in_flight) = (state.sent, self.subscribers.tracker.in_flight());
            self.progress.show(now_ns, done, || format!("{sent} messages published, {in_flight} in flight"));
            let due_ns = if state.is_over(now_ns) { u64::MAX } else { state.due_ns(now_ns).min(state.until_ns) };
            // A message that is due and cannot be sent waits for an event.
            let until_ns = if due_ns <= now_ns { u64::MAX } else { due_ns };
            self.poll_once(&mut plan, until_ns)?;
        }
        if self.progress_marks().1 != moved.1 {
            end_ns = self.clock.now_ns();
        }
        Ok(end_ns - start_ns)
    }

    /// Published and received messages: they change when the load makes progress. A rejection is no
    /// progress.
    fn progress_marks(&self) -> (u64, u64) {
        let counts = self.subscribers.tracker.counts();
        (counts.published, counts.received)
    }

    /// Polls once: handles events until one comes or `until_ns` is reached. It publishes as soon as
    /// there is room for the next message, not only at the end.
    fn poll_once(&mut self, plan: &mut Option<&mut PublishPlan>, until_ns: u64) -> Result<(), LoadError> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let retry_ns = self.publisher.as_ref().map_or(u64::MAX, Publisher::retry_ns);
        let churn_ns = self.churn.as_ref().map_or(u64::MAX, Churn::due_ns);
        let until_ns = until_ns.min(self.housekeeping_ns).min(retry_ns).min(churn_ns).min(self.slow.due_ns());
        let waited = self.event_loop.wait(&mut events, until_ns);
        // An event comes once: after an error the others of this batch are still handled.
        let mut outcome = Ok(());
        for event in &events {
            let handled = match (self.pool.client(event.token()), &mut self.publisher) {
                (Some(client), _) => {
                    self.pool.event(client, event, &mut self.subscribers);
                    Ok(())
                }
                (None, Some(publisher)) => publisher.event(event),
                (None, None) => Ok(()),
            };
            outcome = outcome.and(handled);
            if plan.is_some() && outcome.is_ok() {
                let now_ns = self.clock.now_ns();
                outcome = self.refill(plan, now_ns);
            }
        }
        self.events = events;
        let now_ns = waited?;
        outcome?;
        if let Some(churn) = &mut self.churn {
            churn.step(now_ns, &mut self.pool, &mut self.subscribers, self.event_loop.registry())?;
        }
        self.slow.step(now_ns, &mut self.pool, &mut self.subscribers);
        if now_ns >= self.housekeeping_ns {
            self.pool.expire(&mut self.subscribers);
            self.housekeeping_ns = now_ns + HOUSEKEEPING_NS;
        }
        if self.connected && self.is_everyone_gone() { Err(self.all_gone()) } else { Ok(()) }
    }

    /// Whether no client is left that could receive a message. Slow ones do not show that they have
    /// gone.
    fn is_everyone_gone(&self) -> bool {
        let readers = self.pool.len() - self.options.slow;
        self.pool.open <= self.options.slow
            && self.pool.in_transition() == 0
            && (0..readers).all(|client| self.pool.is_closed(client))
    }

    /// Why no client is there: the server has closed those that were open, or none could be opened.
    fn all_gone(&self) -> LoadError {
        let first_error = self.pool.first_error.clone().unwrap_or_default();
        if self.pool.opened == 0 {
            return LoadError::Handshake(first_error);
        }
        LoadError::EndedEarly(format!("the server closed all connections: {first_error}"))
    }

    /// The reason behind an error: all connections may end with the one that shows it first.
    fn explain(&mut self, error: LoadError) -> LoadError {
        if matches!(error, LoadError::EndedEarly(_)) || !self.connected {
            return error;
        }
        self.rejected_earlier = self.rejected();
        self.publisher = None;
        let until_ns = self.clock.now_ns() + EXPLAIN_NS;
        while self.clock.now_ns() < until_ns {
            if let Err(reason) = self.poll_once(&mut None, until_ns) {
                return reason;
            }
        }
        error
    }

    /// Publishes due messages as far as there is room.
    fn refill(&mut self, plan: &mut Option<&mut PublishPlan>, now_ns: u64) -> Result<(), LoadError> {
        let (Some(plan), Some(publisher)) = (plan, &mut self.publisher) else {
            return Ok(());
        };
        publisher.retry(now_ns, self.event_loop.registry())?;
        let tracker = &mut self.subscribers.tracker;
        loop {
            let room = tracker.counts().published as usize % self.subscribers.rooms;
            let due_ns = plan.due_ns(now_ns);
            if plan.is_over(now_ns)
                || due_ns > now_ns
                || tracker.in_flight() >= plan.in_flight
                || !publisher.is_ready(room)
            {
                return Ok(());
            }
            let number = tracker.publish(room, due_ns);
            publisher.publish(number, room, self.event_loop.registry())?;
            plan.sent += 1;
            plan.left -= 1;
        }
    }
}
