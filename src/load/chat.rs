//! The article's test: clients connect over a ramp, set a name, send messages at intervals, receive
//! the server's tick, send LEAVE at the end of their session, and expect the server to close with
//! 1000. They reconnect until the duration is over.
//!
//! Every session has its checks: it connected, it had no ERROR, it was closed with 1000 after
//! LEAVE, and it got as many ticks as the server owes to a session of that length, plus or minus
//! one. A session that is longer than the interval of the tick has to get at least one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::Serialize;

use super::client_pool::{ClientPool, NORMAL};
use super::connect::HANDSHAKES_IN_FLIGHT;
use super::event_loop::{Clock, EventLoop};
use super::frame_handler::FrameHandler;
use super::options::Options;
use super::progress::Progress;
use super::schedule::{Random, Schedule};
use super::{LoadError, fanout, frames, message, process, server_sample};

/// How long a client waits for the close after LEAVE before it closes by itself, in nanoseconds.
const FORCED_CLOSE_NS: u64 = 3_000_000_000;
/// The longest sleep, in nanoseconds.
const HOUSEKEEPING_NS: u64 = 100_000_000;
/// Length of the start of a message that is looked at, in bytes.
const HEAD_BYTES: usize = 256;
/// Length of the part of it that a description has, in bytes.
const QUOTED_BYTES: usize = 128;

/// The counts of all clients.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ChatCounts {
    /// Sessions begun.
    pub(crate) sessions: u64,
    /// SAY events sent.
    pub(crate) said: u64,
    /// `CHAT_MSG` events received, ticks included.
    pub(crate) messages_received: u64,
    /// Those of them that the server sent on its own.
    pub(crate) ticks_received: u64,
    /// Ticks that the server owed to all sessions.
    pub(crate) ticks_promised: u64,
    /// `ERROR` events received.
    pub(crate) errors_received: u64,
    /// Other messages.
    pub(crate) unknown_received: u64,
    /// The first of them, described.
    #[serde(skip)]
    pub(crate) first_unknown: Option<String>,
    /// Sessions that the server closed with 1000 after LEAVE.
    pub(crate) closed_after_leave: u64,
    /// Checks that held.
    pub(crate) checks_passed: u64,
    /// Checks that did not.
    pub(crate) checks_failed: u64,
    /// The first failed check.
    pub(crate) first_error: Option<String>,
}

/// The kind of a message.
#[derive(Clone, Copy)]
enum MessageKind {
    Tick,
    Message,
    Error,
    Unknown,
}

#[derive(Clone, Copy, Default)]
struct Client {
    /// Number of its session: timers of an earlier session have no effect.
    session: u32,
    joined_ns: Option<u64>,
    left: bool,
    ticks: u64,
    first_tick_ns: Option<u64>,
    errors: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Begin,
    Say,
    Leave,
    ForceClose,
}

/// Due time, client, session, action; the earliest first.
type Timers = BinaryHeap<Reverse<(u64, usize, u32, Action)>>;

struct Clients {
    clients: Vec<Client>,
    counts: ChatCounts,
    tick_ns: u64,
    session_ns: u64,
    /// Clients that have joined since the last call of `greet`.
    joined: Vec<usize>,
    /// Whether a connection has failed or ended wrongly since the last client joined.
    is_server_failing: bool,
}

impl FrameHandler for Clients {
    fn head_bytes(&self) -> usize {
        HEAD_BYTES
    }

    fn joined(&mut self, client: usize, now_ns: u64) {
        self.is_server_failing = false;
        self.clients[client].joined_ns = Some(now_ns);
        self.joined.push(client);
    }

    fn head(&mut self, _: usize, head: &[u8]) -> u32 {
        let text = String::from_utf8_lossy(head);
        let has = |field: &str, value: &str| {
            text.contains(&format!("\"{field}\":\"{value}\"")) || text.contains(&format!("\"{field}\": \"{value}\""))
        };
        let kind = match (has("event", "CHAT_MSG"), has("event", "ERROR"), has("user", "server")) {
            (true, _, true) => MessageKind::Tick,
            (true, _, false) => MessageKind::Message,
            (false, true, _) => MessageKind::Error,
            (false, false, _) => MessageKind::Unknown,
        };
        if matches!(kind, MessageKind::Unknown) && self.counts.first_unknown.is_none() {
            self.counts.first_unknown = Some(message::describe(&head[..head.len().min(QUOTED_BYTES)]));
        }
        kind as u32
    }

    fn message(&mut self, client: usize, mark: u32, _: u32, now_ns: u64) {
        let (client, counts) = (&mut self.clients[client], &mut self.counts);
        match mark {
            mark if mark == MessageKind::Tick as u32 => {
                counts.messages_received += 1;
                counts.ticks_received += 1;
                client.ticks += 1;
                client.first_tick_ns.get_or_insert(now_ns);
            }
            mark if mark == MessageKind::Message as u32 => counts.messages_received += 1,
            mark if mark == MessageKind::Error as u32 => {
                counts.errors_received += 1;
                client.errors += 1;
            }
            _ => counts.unknown_received += 1,
        }
    }

    fn ended(&mut self, client: usize, code: u16, now_ns: u64) -> bool {
        let client = self.clients[client];
        let clean = client.left && code == NORMAL;
        self.is_server_failing |= !clean;
        self.counts.closed_after_leave += u64::from(clean);
        self.check(clean, || {
            format!("a session ended with {code} {} LEAVE", if client.left { "after" } else { "before" })
        });
        self.check(client.errors == 0, || format!("a session had {} ERROR events", client.errors));
        if let (Some(joined_ns), true) = (client.joined_ns, self.tick_ns > 0) {
            // A session that was cut short is still owed the ticks of its full length.
            let until_ns = now_ns.max(joined_ns + self.session_ns);
            let promised = promised_ticks(joined_ns, until_ns, client.first_tick_ns, self.tick_ns);
            self.counts.ticks_promised += promised;
            let ticks = client.ticks;
            if ticks == 0 && self.session_ns > self.tick_ns {
                self.check(false, || {
                    format!(
                        "a session had no tick, and {promised} were due: the server sends ticks to plain /ws only, at \
                         its own --tick"
                    )
                });
            } else {
                self.check(promised.abs_diff(ticks) <= 1, || format!("a session had {ticks} ticks of {promised}"));
            }
        }
        clean
    }
}

impl Clients {
    fn check(&mut self, holds: bool, first_error: impl FnOnce() -> String) {
        if holds {
            self.counts.checks_passed += 1;
        } else {
            self.counts.checks_failed += 1;
            self.counts.first_error.get_or_insert_with(first_error);
        }
    }
}

/// How many ticks the server owes a session. Ticks come at fixed times, so one of them gives all
/// the others; those that lie in the session count. A session without any tick is owed the mean.
fn promised_ticks(joined_ns: u64, until_ns: u64, first_tick_ns: Option<u64>, tick_ns: u64) -> u64 {
    let Some(first_ns) = first_tick_ns else {
        return (until_ns - joined_ns + tick_ns / 2) / tick_ns;
    };
    (first_ns - joined_ns).div_ceil(tick_ns).max(1) + until_ns.saturating_sub(first_ns) / tick_ns
}

/// The result of the test.
pub(crate) struct ChatResult {
    pub(crate) counts: ChatCounts,
    pub(crate) pool: ClientPool,
    pub(crate) elapsed_ns: u64,
    pub(crate) client_cpu_ns: u64,
    pub(crate) client_waited_ns: u64,
    /// Most clients at the same time.
    pub(crate) open_max: usize,
    /// Memory of the server at that time.
    pub(crate) rss_bytes_open_max: Option<u64>,
    /// Why the test ended before its time, if it did.
    pub(crate) ended_early: Option<String>,
}

struct Chat<'a> {
    options: &'a Options,
    pool: ClientPool,
    clients: Clients,
    /// Actions of connected clients.
    timers: Timers,
    /// Times at which clients connect. They may have to wait for each other's handshakes; nothing
    /// else does.
    begins: Timers,
    random: Random,
    end_ns: u64,
}

/// Runs the test.
pub(crate) fn run(options: &Options) -> Result<ChatResult, LoadError> {
    process::require_open_files(options)?;
    let clock = Clock::start();
    let server = fanout::resolve(&options.url)?;
    let mut event_loop = EventLoop::new(clock, false)?;
    let mut progress = Progress::new(options.quiet);
    let duration_ns = options.duration.as_nanos() as u64;
    let clients = Clients {
        clients: vec![Client::default(); options.connections],
        counts: ChatCounts::default(),
        tick_ns: options.tick.as_nanos() as u64,
        session_ns: options.session.as_nanos() as u64,
        joined: Vec::new(),
        is_server_failing: false,
    };
    let mut chat = Chat {
        pool: ClientPool::new(options, server, options.connections, 0, clock)?,
        clients,
        timers: Timers::new(),
        begins: Timers::new(),
        random: Random(options.seed),
        end_ns: clock.now_ns() + duration_ns,
        options,
    };
    let start_ns = clock.now_ns();
    let ramp = Schedule::new(start_ns, if options.ramp == 0 { f64::INFINITY } else { options.ramp.into() });
    (0..options.connections).for_each(|client| chat.at(ramp.due_ns(client as u64), client, Action::Begin));
    let (cpu, waited) = (process::cpu_time(std::process::id())?, process::time_waited(std::process::id())?);
    let idle_ns = event_loop.idle_ns();
    let (mut open_max, mut rss_bytes_open_max, mut look_ns) = (0, None, 0);
    let mut events = EventLoop::events();
    let mut ended_early = None;
    while chat.has_timers() || chat.pool.in_transition() > 0 || chat.pool.open > 0 {
        let now_ns = clock.now_ns();
        let until_ns = chat.due_ns();
        event_loop.wait(&mut events, until_ns.min(now_ns + HOUSEKEEPING_NS))?;
        for event in &events {
            if let Some(client) = chat.pool.client(event.token()) {
                chat.pool.event(client, event, &mut chat.clients);
            }
        }
        let now_ns = clock.now_ns();
        chat.greet(now_ns);
        // Before a client begins its next session, and after: a connection may fail at once.
        chat.count_failures();
        chat.act(now_ns, event_loop.registry())?;
        chat.count_failures();
        let first_error = || chat.pool.first_error.clone().unwrap_or_default();
        if process::interrupted() {
            ended_early = Some(LoadError::interrupted().to_string());
            break;
        }
        if chat.pool.in_transition() == 0 && chat.pool.open == 0 && chat.clients.is_server_failing {
            if chat.pool.opened == 0 {
                return Err(LoadError::Handshake(first_error()));
            }
            ended_early = Some(format!("the server closed all connections: {}", first_error()));
            break;
        }
        if now_ns >= look_ns {
            chat.pool.expire(&mut chat.clients);
            look_ns = now_ns + HOUSEKEEPING_NS;
            if chat.pool.open > open_max {
                open_max = chat.pool.open;
                rss_bytes_open_max = server_sample::rss_bytes(&options.pids).ok().filter(|bytes| *bytes > 0);
            }
            let (open, sessions) = (chat.pool.open, chat.clients.counts.sessions);
            let length_ns = duration_ns + chat.clients.session_ns;
            let done = (now_ns - start_ns) as f64 / length_ns as f64;
            progress.show(now_ns, done, || format!("{sessions} sessions begun, {open} clients are connected"));
        }
    }
    let client_cpu = process::cpu_time(std::process::id())?.saturating_sub(cpu).as_nanos() as u64;
    let client_waited = process::time_waited(std::process::id())?.saturating_sub(waited);
    Ok(ChatResult {
        counts: chat.clients.counts,
        pool: chat.pool,
        elapsed_ns: clock.now_ns() - start_ns,
        client_cpu_ns: client_cpu.saturating_sub(event_loop.idle_ns() - idle_ns),
        client_waited_ns: client_waited.as_nanos() as u64,
        open_max,
        rss_bytes_open_max,
        ended_early,
    })
}

impl Chat<'_> {
    fn at(&mut self, due_ns: u64, client: usize, action: Action) {
        let timers = if action == Action::Begin { &mut self.begins } else { &mut self.timers };
        timers.push(Reverse((due_ns, client, self.clients.clients[client].session, action)));
    }

    fn has_timers(&self) -> bool {
        !self.timers.is_empty() || !self.begins.is_empty()
    }

    /// Time of the next action. A client that waits for the handshakes of others waits for an
    /// event.
    fn due_ns(&self) -> u64 {
        let first_ns = |timers: &Timers| timers.peek().map_or(u64::MAX, |Reverse((due_ns, ..))| *due_ns);
        first_ns(&self.timers).min(if self.is_full() { u64::MAX } else { first_ns(&self.begins) })
    }

    /// Removes the first due action, if there is one.
    fn pop_due(&mut self, now_ns: u64) -> Option<(u64, usize, u32, Action)> {
        let begins = if self.is_full() { None } else { Some(&mut self.begins) };
        let timers = [Some(&mut self.timers), begins].into_iter().flatten();
        let is_due = |timers: &&mut Timers| timers.peek().is_some_and(|Reverse((due_ns, ..))| *due_ns <= now_ns);
        let Reverse(due) = timers.filter(is_due).max_by_key(|timers| timers.peek().copied())?.pop()?;
        Some(due)
    }

    /// Whether no client may connect before another one has finished its handshake.
    fn is_full(&self) -> bool {
        self.options.ramp == 0 && self.pool.in_transition() >= HANDSHAKES_IN_FLIGHT
    }

    /// The time of the next SAY: half to one and a half of the mean interval from now.
    fn next_say_ns(&mut self, now_ns: u64) -> u64 {
        let mean_ns = self.options.say_interval.as_nanos() as u64;
        now_ns + mean_ns / 2 + self.random.below(mean_ns + 1)
    }

    fn send(&mut self, client: usize, event: &str) {
        let mut frame = Vec::new();
        frames::write_client_frame(&mut frame, frames::TEXT, event.as_bytes());
        self.pool.send(client, &frame);
    }

    /// The first actions of a client that has connected.
    fn greet(&mut self, now_ns: u64) {
        for client in std::mem::take(&mut self.clients.joined) {
            self.clients.check(true, String::new);
            self.send(client, &format!(r#"{{"event":"SET_NAME","new_name":"Croc {client}"}}"#));
            let say_ns = self.next_say_ns(now_ns);
            self.at(say_ns, client, Action::Say);
            self.at(now_ns + self.clients.session_ns, client, Action::Leave);
        }
    }

    /// Runs all due actions.
    fn act(&mut self, now_ns: u64, registry: &mio::Registry) -> Result<(), LoadError> {
        while let Some((due_ns, client, session, action)) = self.pop_due(now_ns) {
            if session != self.clients.clients[client].session {
                continue;
            }
            match action {
                Action::Begin if self.pool.is_closed(client) => {
                    self.clients.clients[client] = Client { session: session + 1, ..Client::default() };
                    self.clients.counts.sessions += 1;
                    // Without a ramp all clients begin at once; the wait for others is no latency
                    // of the server.
                    let begun_ns = if self.options.ramp == 0 { now_ns } else { due_ns };
                    self.pool.connect(client, begun_ns, registry)?;
                    let again_ns = begun_ns + self.clients.session_ns * 3 / 2;
                    if again_ns < self.end_ns {
                        self.at(again_ns, client, Action::Begin);
                    }
                }
                // Its last session has not ended yet: it begins as soon as that has.
                Action::Begin => self.at(now_ns + HOUSEKEEPING_NS, client, Action::Begin),
                _ if !self.pool.is_open(client) => {}
                Action::Say if self.clients.clients[client].left => {}
                Action::Say => {
                    let words = self.random.next() & 0xf_ffff;
                    self.send(client, &format!(r#"{{"event":"SAY","message":"I'm saying {words:05x}"}}"#));
                    self.clients.counts.said += 1;
                    let say_ns = self.next_say_ns(now_ns);
                    self.at(say_ns, client, Action::Say);
                }
                Action::Leave => {
                    self.clients.clients[client].left = true;
                    self.send(client, r#"{"event":"LEAVE"}"#);
                    self.at(now_ns + FORCED_CLOSE_NS, client, Action::ForceClose);
                }
                Action::ForceClose => {
                    self.clients.check(false, || "a session was not closed within 3 s of LEAVE".to_owned());
                    self.pool.leave(client);
                }
            }
        }
        Ok(())
    }

    /// A connection that could not be opened is a failed check.
    fn count_failures(&mut self) {
        for client in self.pool.take_gone() {
            if self.clients.clients[client].joined_ns.is_none() {
                self.clients.is_server_failing = true;
                let first_error = self.pool.first_error.clone();
                self.clients.check(false, || first_error.unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_ticks_lie_in_the_session() {
        // Ticks at 2, 5, 8 and 11; the session is from 1 to 11.
        assert_eq!(promised_ticks(1, 11, Some(2), 3), 4);
        assert_eq!(promised_ticks(1, 10, Some(2), 3), 3);
        // The client missed the first tick.
        assert_eq!(promised_ticks(1, 11, Some(5), 3), 4);
        assert_eq!(promised_ticks(0, 10, None, 3), 3);
    }

    /// The counts after one session from 1 to 11 with ticks at these times, LEAVE at its end, and
    /// this close code.
    fn session(ticks: &[u64], code: u16) -> ChatCounts {
        session_with(3, ticks, code)
    }

    /// The same where the server is to send a tick at this interval.
    fn session_with(tick_ns: u64, ticks: &[u64], code: u16) -> ChatCounts {
        let mut clients = Clients {
            clients: vec![Client::default()],
            counts: ChatCounts::default(),
            tick_ns,
            session_ns: 10,
            joined: Vec::new(),
            is_server_failing: false,
        };
        clients.joined(0, 1);
        for &now_ns in ticks {
            let mark = clients.head(0, br#"{"event":"CHAT_MSG","user":"server","message":"hello"}"#);
            clients.message(0, mark, 0, now_ns);
        }
        clients.clients[0].left = true;
        clients.ended(0, code, 11);
        clients.counts
    }

    #[test]
    fn a_session_may_lack_one_tick_and_not_two() {
        for (ticks, failed) in [(&[2, 5, 8, 11][..], 0), (&[2, 5, 8], 0), (&[2, 5], 1), (&[2, 3, 4, 5, 6, 7], 1)] {
            let counts = session(ticks, NORMAL);
            assert_eq!((counts.ticks_promised, counts.checks_passed, counts.checks_failed), (4, 3 - failed, failed));
            assert_eq!(counts.first_error, (failed > 0).then(|| format!("a session had {} ticks of 4", ticks.len())));
        }
        assert_eq!(session(&[2, 5, 8, 11], 1006).first_error.unwrap(), "a session ended with 1006 after LEAVE");
    }

    #[test]
    fn a_session_longer_than_the_interval_has_a_tick() {
        let counts = session_with(8, &[], NORMAL);
        assert_eq!((counts.ticks_promised, counts.checks_failed), (1, 1));
        assert!(counts.first_error.unwrap().contains("plain /ws"));
        assert_eq!(session_with(8, &[5], NORMAL).checks_failed, 0);
        // A shorter one may lie between two ticks.
        assert_eq!(session_with(11, &[], NORMAL).checks_failed, 0);
    }
}
