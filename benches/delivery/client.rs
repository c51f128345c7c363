//! Role `client`: all subscribers and the publisher in one process and one event loop, as little work per delivery as
//! it can be, so that the server is what the bench is about. It never sleeps while a load runs, see [`Load::wait`].
//!
//! Keeps a fixed number of messages in flight: a message is, from its publication until every subscriber has it.
//! Does what it is told on stdin, one word a line, with one line of answer each: `warm` brings the server to its pace,
//! `measure` runs the load that counts, the end of stdin ends the client. So the orchestrator reads the server's CPU clock
//! between the words, with nothing going on.

use std::hint;
use std::io::{self, BufRead, Read, Write};
use std::net::SocketAddr;
use std::process;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::message;
use crate::proc;
use crate::publish::Publisher;
use crate::subscribe;
use crate::tally::Tally;

/// The hidden first argument that makes this executable the client.
pub(crate) const ROLE: &str = "role:client";

/// The word that asks for a warm-up, and the answer when it is through.
pub(crate) const WARM: &str = "warm";

/// The word that asks for the measured load; the answer is a [`Counted`] as JSON.
pub(crate) const MEASURE: &str = "measure";

/// Silence after which messages that are still missing count as lost.
const STALL: Duration = Duration::from_secs(10);

/// Messages, one at a time, that every connection gets before anything is measured. Linux answers the first 16 segments
/// of a connection with an acknowledgement at once, later ones when the receiver reads or a timer expires. Over
/// loopback the immediate ones are made and taken in by the sender's core within `send`, which makes a delivery a quarter
/// to a half dearer; the later ones the client pays for, as it does on a real network. The 16 start anew after a silence
/// of 200 ms, so a pass over all subscribers must not take that long in a cell that is to be compared.
const LEAD_IN: usize = 20;

/// How long to listen for messages that should not be there, after the last that should.
const AFTERMATH: Duration = Duration::from_millis(100);

/// One buffer for all reads: nobody looks at a payload, and it stays in the core's cache. Holds more than what is in
/// flight to one subscriber in the default cells.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Pauses between two looks for events, a microsecond or two.
const PAUSES: usize = 100;

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;

/// What the client is told.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    /// Where the server listens.
    pub(crate) server: SocketAddr,
    /// Whether the server is the floor, which takes publications as records on one connection in place of HTTP.
    pub(crate) floor: bool,
    /// Number of subscribers.
    pub(crate) subscribers: usize,
    /// Messages to keep in flight.
    pub(crate) in_flight: usize,
    /// Payload of a message, in bytes.
    pub(crate) payload: usize,
    /// Subscribers that never read, beside those who do.
    pub(crate) stalled: usize,
    /// Messages to measure; `None` for as many as `seconds` allows at the pace of the warm-up.
    pub(crate) messages: Option<u32>,
    /// Duration of the measurement to aim at.
    pub(crate) seconds: f64,
}

/// What the client counted during the measured load.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Counted {
    /// Deliveries that have to follow from what was published.
    pub(crate) expected: u64,
    /// Deliveries that did.
    pub(crate) received: u64,
    /// Reads that returned data; `received / reads` is the number of frames that arrive together.
    pub(crate) reads: u64,
    /// First publication until last delivery.
    pub(crate) elapsed_ns: u64,
    /// CPU time of this process over the same stretch, without what it spent in waiting.
    pub(crate) client_cpu_ns: u64,
    /// Publication until the last subscriber has it, for every message that everybody has.
    pub(crate) latencies_ns: Vec<u64>,
}

/// Runs the task; see the head of this file for the conversation.
pub(crate) fn run(task: &str) -> io::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    proc::raise_open_files()?;
    let mut load = Load::connect(&task)?;
    let mut pace = Duration::from_secs(1);
    for word in io::stdin().lock().lines() {
        match word?.as_str() {
            WARM => {
                pace = load.warm_up()?;
                println!("{WARM}");
            }
            MEASURE => {
                let counted = measure(&mut load, messages(&task, pace))?;
                println!("{}", serde_json::to_string(&counted)?);
            }
            other => return Err(io::Error::other(format!("no such word: {other:?}"))),
        }
    }
    Ok(())
}

/// How many messages to measure: as told, or as many as the time allows at this pace (per message). Never so few that
/// ramp and tail of the load are a large part of it.
fn messages(task: &Task, pace: Duration) -> usize {
    let fitting = (task.seconds / pace.as_secs_f64()) as usize;
    let told = task.messages.map(|messages| messages as usize);
    told.unwrap_or(fitting.max(4 * task.in_flight))
}

/// The measured load.
fn measure(load: &mut Load, messages: usize) -> io::Result<Counted> {
    let received = load.tally.received();
    let complete = load.tally.complete();
    let reads = load.reads;
    let idle = load.idle;
    let cpu = proc::cpu_time(process::id())?;
    let elapsed = load.run(messages)?;
    let client_cpu = proc::cpu_time(process::id())?.saturating_sub(cpu);
    let client_cpu = client_cpu.saturating_sub(load.idle - idle);
    load.turn(AFTERMATH)?;

    let latencies = load.tally.latencies()[complete..].iter();
    Ok(Counted {
        expected: (messages * load.subscribers.len()) as u64,
        received: load.tally.received() - received,
        reads: load.reads - reads,
        elapsed_ns: elapsed.as_nanos() as u64,
        client_cpu_ns: client_cpu.as_nanos() as u64,
        latencies_ns: latencies.map(|latency| latency.as_nanos() as u64).collect(),
    })
}

/// Everything that lives in the event loop.
struct Load {
    poll: Poll,
    events: Events,
    /// By token; the tokens after them belong to the publisher.
    subscribers: Vec<TcpStream>,
    /// Kept open, never read.
    _stalled: Vec<std::net::TcpStream>,
    publisher: Publisher,
    tally: Tally,
    in_flight: usize,
    reads: u64,
    /// Time spent in looking for events when there were none.
    idle: Duration,
    scratch: Vec<u8>,
}

impl Load {
    fn connect(task: &Task) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut subscribers = Vec::with_capacity(task.subscribers);
        let mut streams = subscribe::subscribe_all(task)?;
        let stalled = streams.split_off(task.subscribers);
        for stream in streams {
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let token = Token(subscribers.len());
            poll.registry().register(&mut stream, token, Interest::READABLE)?;
            subscribers.push(stream);
        }
        // After the subscribers: the floor takes the last connection as the one that publishes.
        let publisher = Publisher::connect(task, poll.registry(), subscribers.len())?;
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS),
            tally: Tally::new(subscribers.len(), task.payload),
            subscribers,
            _stalled: stalled,
            publisher,
            in_flight: task.in_flight,
            reads: 0,
            idle: Duration::ZERO,
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    /// Brings sockets, caches and batch sizes to where they stay; the answer is the time per message at the end of it.
    fn warm_up(&mut self) -> io::Result<Duration> {
        let in_flight = std::mem::replace(&mut self.in_flight, 1);
        self.run(LEAD_IN)?;
        self.refuse_stall()?;
        self.in_flight = in_flight;
        let messages = (2 * in_flight).max(5);
        let elapsed = self.run(messages)?;
        self.refuse_stall()?;
        Ok(elapsed.div_f64(messages as f64))
    }

    /// Publishes `messages` and returns when everybody has them all, or when nothing has moved for [`STALL`]. The answer
    /// is the time from the first publication to the last delivery.
    fn run(&mut self, messages: usize) -> io::Result<Duration> {
        let goal = self.tally.published() + messages;
        let start = Instant::now();
        let mut end = start;
        self.refill(goal)?;
        while self.tally.complete() < goal || !self.publisher.is_idle() {
            let complete = self.tally.complete();
            if !self.turn_towards(goal, STALL)? {
                break;
            }
            if self.tally.complete() > complete {
                end = Instant::now();
            }
        }
        Ok(end - start)
    }

    /// Takes in what arrives within `patience`, without publishing anything.
    fn turn(&mut self, patience: Duration) -> io::Result<()> {
        self.turn_towards(0, patience).map(|_| ())
    }

    /// One turn of the event loop; `false` if nothing happened within `patience`. Publishes up to message `goal` as soon
    /// as there is room for the next, not only at the end of the turn.
    fn turn_towards(&mut self, goal: usize, patience: Duration) -> io::Result<bool> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        self.wait(&mut events, patience)?;
        for event in &events {
            let Token(token) = event.token();
            match token.checked_sub(self.subscribers.len()) {
                None => self.receive(token, event.is_read_closed())?,
                Some(exchange) => self.publisher.receive(exchange)?,
            }
            self.refill(goal)?;
        }
        let moved = !events.is_empty();
        self.events = events;
        Ok(moved)
    }

    /// Waits for events without going to sleep: a server that sends to somebody asleep has to wake them, which costs it
    /// another 2 µs on a virtual machine, and the more often the slower it is. Over a network it never meets that.
    fn wait(&mut self, events: &mut Events, patience: Duration) -> io::Result<()> {
        let start = Instant::now();
        let mut now = start;
        loop {
            match self.poll.poll(events, Some(Duration::ZERO)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if !events.is_empty() || now - start > patience {
                self.idle += now - start;
                return Ok(());
            }
            // Leaves the execution units to the neighbour, if the server's core is the other half of this one.
            for _ in 0..PAUSES {
                hint::spin_loop();
            }
            now = Instant::now();
        }
    }

    /// An error if messages are missing after a run.
    fn refuse_stall(&self) -> io::Result<()> {
        let (complete, published) = (self.tally.complete(), self.tally.published());
        if complete == published {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "stalled: {complete} of {published} messages have reached everybody, with {} deliveries in place of {}",
            self.tally.received(),
            published * self.subscribers.len()
        )))
    }

    /// Publishes until `in_flight` messages are on their way or `goal` is reached.
    fn refill(&mut self, goal: usize) -> io::Result<()> {
        while self.tally.published() < goal
            && self.tally.published() - self.tally.complete() < self.in_flight
            && self.publisher.is_ready()
        {
            let number = self.tally.publish();
            self.publisher.publish(number)?;
        }
        Ok(())
    }

    /// Reads what a subscriber has. A read that does not fill the buffer has emptied the socket (epoll(7)), which saves
    /// the second call that would only say so; after the end of a stream no further event comes, so then it reads on.
    fn receive(&mut self, subscriber: usize, ended: bool) -> io::Result<()> {
        loop {
            match self.subscribers[subscriber].read(&mut self.scratch) {
                Ok(0) => {
                    return Err(io::Error::other(format!("the server closed subscriber {subscriber}")));
                }
                Ok(read) => {
                    self.reads += 1;
                    let mut bytes = &self.scratch[..read];
                    while let Some(ping) = self.tally.receive(subscriber, bytes)? {
                        let pong = message::client_control(message::PONG, ping.payload);
                        self.subscribers[subscriber].write_all(&pong)?;
                        bytes = ping.rest;
                    }
                    if read < self.scratch.len() && !ended {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
