//! The command line of `hydrant load`, and the checked [`Options`] of a load. Owns every default.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::message::TAG_BYTES;
use super::secrets::Secrets;
use super::target::Target;
use crate::settings::{SlowPolicy, parse_bytes, parse_duration};

/// The load to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// All clients connect, then messages are published: latency, deliveries per second, exactness
    Fanout,
    /// All clients connect and wait: memory, pings. With 1,000 connections or more the report has
    /// the bytes of each; with fewer this figure is noise, and null in JSON
    Idle,
    /// Like fanout, while connections leave and others join; needs a server that subscribes before
    /// it answers 101
    Churn,
    /// The article's test: clients with a name send messages, receive the tick, and leave
    Chat,
    /// Like fanout, beside subscribers that read slowly or not at all
    Slow,
}

/// How messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PublishBy {
    /// `POST` to the publish URL, on keep-alive connections
    Http,
    /// The event SAY of clients in the room; it arrives as a CHAT_MSG
    Say,
}

/// When the next message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub enum Pace {
    /// This many per second, on a schedule.
    Rate(f64),
    /// As soon as fewer than this many are in flight.
    InFlight(usize),
    /// As soon as a publishing connection is free.
    Flood,
}

/// Put a load on a WebSocket server that sends each published message to every subscriber, and
/// count the messages that arrive.
///
/// Sizes are bytes, with units such as 64KiB; durations have units such as 3s or 500ms. Exit codes:
/// 0 when every expected message arrived with every byte; 1 when messages were lost, damaged,
/// repeated or reordered, a connection was lost, more than a hundredth of the messages could not be
/// sent at --rate within --duration, or the load ended early (its report is partial); 64 for a
/// wrong command line; 69 when nothing could be measured. Ctrl-C ends a load with a partial report;
/// a second Ctrl-C ends it without a report.
#[derive(Clone, Debug, Args)]
#[command(next_line_help = true)]
pub struct Arguments {
    /// The load to run
    #[arg(value_enum, default_value = "fanout")]
    scenario: Scenario,
    /// URL for subscribers; with wss:// any certificate is accepted
    #[arg(long, default_value = "ws://127.0.0.1:3000/ws")]
    url: String,
    /// URL for publishing by POST [default: --url with http or https, and /publish in place of
    /// /ws]. If the server answers the default URL with 404 and a Link header, the load publishes
    /// at the port that the header names
    #[arg(long)]
    publish_url: Option<String>,
    /// Bearer token for publishing; the environment hides it from other users of this machine
    #[arg(long, env = "HYDRANT_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Number of rooms: subscriber i is in room i mod N, and the path of both URLs gets /rK
    /// appended; 0 takes the URLs as they are
    #[arg(long, default_value_t = 0)]
    rooms: usize,
    /// Number of connections; for chat, of clients
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// New connections per second; 0 is as fast as the server answers, with 64 handshakes in flight
    #[arg(long, default_value_t = 0)]
    ramp: u32,
    /// Source addresses, used in turn [default: the kernel's choice]. For a server at 127.x the
    /// default is 127.0.0.1 for 20,000 connections, then 127.0.0.2 for the next, and so on
    #[arg(long, value_delimiter = ',')]
    source: Vec<IpAddr>,
    /// How long messages are published; for idle, how long clients stay; for chat, how long clients
    /// start new sessions
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// Number of messages to publish; overrides --duration
    #[arg(long)]
    messages: Option<u64>,
    /// Length of a message in bytes; the first 12 are a tag
    #[arg(long, value_parser = parse_bytes, default_value = "100")]
    payload: usize,
    /// Messages per second, on a schedule [default: 10]. Latency counts from the time on the
    /// schedule. With --in-flight or --flood there is no schedule, so latency counts from the send
    #[arg(long, conflicts_with_all = ["in_flight", "flood"])]
    rate: Option<f64>,
    /// Messages in flight at once; a message is in flight until every subscriber has received it
    #[arg(long, conflicts_with = "flood")]
    in_flight: Option<usize>,
    /// Publish as fast as --publishers connections get responses
    #[arg(long)]
    flood: bool,
    /// How messages are sent
    #[arg(long, value_enum, default_value = "http")]
    publish_by: PublishBy,
    /// Number of connections that publish [default: as many as --in-flight, or 16; with
    /// --publish-by say one for each room]
    #[arg(long)]
    publishers: Option<usize>,
    /// slow: the server's policy for clients that read slowly. With disconnect the server may close
    /// these clients with 1013. Any other close by the server is a fault, in every scenario and
    /// with every code
    #[arg(long, value_enum, default_value = "disconnect")]
    policy: SlowPolicy,
    /// Messages before the measurement: 20 one at a time, the rest with as many in flight as in the
    /// measurement [default: 20, then twice --in-flight and at least 5]
    #[arg(long)]
    warmup: Option<usize>,
    /// How long nothing may arrive before missing messages count as lost
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    patience: Duration,
    /// slow: share of the connections that read slowly, 0 to 1; the last ones
    #[arg(long, default_value_t = 0.1)]
    slow_share: f64,
    /// slow: bytes per second that each slow connection reads; 0: it reads nothing
    #[arg(long, value_parser = parse_bytes, default_value = "10KiB")]
    slow_rate: usize,
    /// churn: connections per second that leave and join again
    #[arg(long, default_value_t = 50.0)]
    churn_rate: f64,
    /// churn: share of the connections that leave and join again, 0 to 1; the first ones
    #[arg(long, default_value_t = 0.5)]
    churn_share: f64,
    /// chat: mean time between two messages of a client; each time is 0.5 to 1.5 times the mean
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    say_interval: Duration,
    /// chat: time from the connection to LEAVE; a client starts its next session 1.5 times this
    /// long after the start of the last one
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    session: Duration,
    /// chat: the server's --tick, the interval of its own messages, which it sends to plain /ws
    /// only; a longer session has to get at least one. 0: the load expects none
    #[arg(long, value_parser = parse_duration, default_value = "3s")]
    tick: Duration,
    /// Processes of the server on this machine, separated by commas or given several times, as in
    /// --pid $(pidof hydrant | tr ' ' ,): the report has their CPU and memory, summed and each
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// fanout, slow: sleep while nothing arrives, instead of polling. This leaves the core to other
    /// processes, but each delivery costs the server more, because it has to wake this process
    #[arg(long)]
    sleep: bool,
    /// Print one JSON document instead of the report
    #[arg(long)]
    json: bool,
    /// No progress on standard error
    #[arg(long)]
    quiet: bool,
    /// Seed of all random choices [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
}

/// The checked options of a load.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Options {
    /// The load to run.
    pub scenario: Scenario,
    /// URL for subscribers.
    pub url: Target,
    /// URL for publishing.
    pub publish_url: Target,
    /// Whether `publish_url` was derived from `url`, so that the server may name another port.
    pub publish_url_derived: bool,
    /// Bearer token for publishing.
    pub token: Option<String>,
    /// Number of rooms; 0 takes the URLs as they are.
    pub rooms: usize,
    /// Connections, slow ones included.
    pub connections: usize,
    /// New connections per second; 0 is as fast as the server answers.
    pub ramp: u32,
    /// Source addresses, used in turn; empty for the default.
    pub sources: Vec<IpAddr>,
    /// How long to publish.
    pub duration: Duration,
    /// Number of messages to publish; overrides the duration.
    pub messages: Option<u64>,
    /// Length of a message in bytes.
    pub payload: usize,
    /// When the next message is sent.
    pub pace: Pace,
    /// How messages are sent.
    pub publish_by: PublishBy,
    /// Number of connections that publish.
    pub publishers: usize,
    /// Whether the server drops messages for slow clients in place of closing them.
    pub drops: bool,
    /// Messages of the warm-up; `None` for the default.
    pub warm_up: Option<usize>,
    /// How long nothing may arrive before missing messages count as lost.
    pub patience: Duration,
    /// Number of connections that read slowly; the last ones.
    pub slow: usize,
    /// Bytes per second that each of them reads.
    pub slow_rate: usize,
    /// Whether slow ones have a small receive buffer, as on a poor network.
    pub slow_small_buffer: bool,
    /// Connections that leave and join again per second.
    pub churn_rate: f64,
    /// Number of connections that do so; the first ones.
    pub churners: usize,
    /// Mean time between two messages of a client of the chat.
    pub say_interval: Duration,
    /// Length of a session of the chat.
    pub session: Duration,
    /// Interval of the server's own messages; zero expects none.
    pub tick: Duration,
    /// Processes of the server.
    pub pids: Vec<u32>,
    /// Whether to sleep while nothing arrives.
    pub sleep: bool,
    /// JSON in place of the report.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
    /// Seed of every random choice.
    pub seed: u64,
}

/// Messages, or joins, per second: more than one client can send.
const RATE_MAX: f64 = 1_000_000.0;
/// Most publishing connections: each is a file.
const PUBLISHERS_MAX: usize = 4096;
/// Default number of publishing connections.
const PUBLISHERS: usize = 16;
/// Default number of messages per second.
const RATE: f64 = 10.0;
/// Longest message in bytes.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

impl Arguments {
    /// The checked options.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn options(self) -> Result<Options, String> {
        let urls = [Some(self.url.as_str()), self.publish_url.as_deref()];
        let secrets = Secrets::new(self.token.as_deref(), urls.into_iter().flatten());
        self.checked().map_err(|error| secrets.mask(&error))
    }

    fn checked(self) -> Result<Options, String> {
        let url = Target::parse(&self.url, "ws").map_err(|error| format!("--url {}: {error}", self.url))?;
        let publish_url = match &self.publish_url {
            Some(text) => Target::parse(text, "http").map_err(|error| format!("--publish-url {text}: {error}"))?,
            None => url.publish(),
        };
        let pace = match (self.in_flight, self.flood) {
            (Some(in_flight), _) => Pace::InFlight(in_flight),
            (None, true) => Pace::Flood,
            (None, false) => Pace::Rate(self.rate.unwrap_or(RATE)),
        };
        let publishers = self.publishers.unwrap_or(match (self.publish_by, pace) {
            (PublishBy::Say, _) => self.rooms.max(1),
            (PublishBy::Http, Pace::InFlight(in_flight)) => in_flight.min(PUBLISHERS_MAX),
            (PublishBy::Http, _) => PUBLISHERS,
        });
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let share = |share: f64| (share * self.connections as f64).round() as usize;
        let options = Options {
            scenario: self.scenario,
            url,
            publish_url,
            publish_url_derived: self.publish_url.is_none(),
            token: self.token.filter(|token| !token.is_empty()),
            rooms: self.rooms,
            connections: self.connections,
            ramp: self.ramp,
            sources: self.source,
            duration: self.duration,
            messages: self.messages,
            payload: self.payload,
            pace,
            publish_by: self.publish_by,
            publishers,
            drops: self.policy != SlowPolicy::Disconnect,
            warm_up: self.warmup,
            patience: self.patience,
            slow: if self.scenario == Scenario::Slow { share(self.slow_share) } else { 0 },
            slow_rate: self.slow_rate,
            slow_small_buffer: true,
            churn_rate: self.churn_rate,
            churners: if self.scenario == Scenario::Churn { share(self.churn_share) } else { 0 },
            say_interval: self.say_interval,
            session: self.session,
            tick: self.tick,
            pids: self.pid,
            sleep: self.sleep,
            json: self.json,
            quiet: self.quiet,
            seed: self.seed.unwrap_or_else(clock),
        };
        for (flag, share) in [("--slow-share", self.slow_share), ("--churn-share", self.churn_share)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{flag} {share} is outside 0 to 1"));
            }
        }
        options.check()?;
        Ok(options)
    }
}

impl Options {
    /// A load on the server at `url` with every other option at its default.
    ///
    /// # Errors
    /// When the URL is not valid.
    pub fn new(url: &str) -> Result<Self, String> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let line: Line = clap::Parser::try_parse_from(["load", "--url", url]).map_err(|error| error.to_string())?;
        line.arguments.options()
    }

    /// Rejects options that cannot work, before anything connects.
    ///
    /// # Errors
    /// One sentence that names the flag and the bound it breaks.
    pub fn check(&self) -> Result<(), String> {
        let is_rate = |number: f64| number > 0.0 && number <= RATE_MAX;
        let wrong = if self.connections == 0 || self.connections > 1 << 24 {
            format!("--connections {} is outside 1 to 16,777,216", self.connections)
        } else if self.rooms > self.connections {
            format!("--rooms {} is more than --connections {}", self.rooms, self.connections)
        } else if !(TAG_BYTES..=PAYLOAD_BYTES_MAX).contains(&self.payload) {
            format!("--payload {} is outside {TAG_BYTES} bytes to 1GiB", self.payload)
        } else if self.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            "--token has a blank, a line break or a letter beyond ASCII in it".to_owned()
        } else if self.pace == Pace::InFlight(0) || self.messages == Some(0) {
            "--in-flight and --messages have to be at least 1".to_owned()
        } else if !(1..=PUBLISHERS_MAX).contains(&self.publishers) {
            format!("--publishers {} is outside 1 to {PUBLISHERS_MAX}", self.publishers)
        } else if self.publish_by == PublishBy::Say && self.pace == Pace::Flood {
            "--flood needs --publish-by http: a server does not acknowledge a SAY".to_owned()
        } else if self.publish_by == PublishBy::Say && self.publishers < self.rooms {
            format!("--publishers {} is less than --rooms {}: a SAY reaches its own room", self.publishers, self.rooms)
        } else if matches!(self.pace, Pace::Rate(rate) if !is_rate(rate)) {
            format!("--rate has to be more than 0 and at most {RATE_MAX} a second")
        } else if self.messages.is_some_and(|messages| messages >= 1 << 31) {
            "--messages has to be below 2,147,483,648".to_owned()
        } else if self.slow >= self.connections {
            "--slow-share leaves no connection that reads: lower it".to_owned()
        } else if self.scenario == Scenario::Slow && self.slow == 0 {
            "--slow-share of --connections is less than one connection: raise one of them".to_owned()
        } else if self.scenario == Scenario::Churn && self.churners == 0 {
            "--churn-share of --connections is less than one connection: raise one of them".to_owned()
        } else if self.scenario == Scenario::Churn && !is_rate(self.churn_rate) {
            format!("--churn-rate has to be more than 0 and at most {RATE_MAX} a second")
        } else if self.duration.is_zero() && self.messages.is_none() && self.scenario != Scenario::Idle {
            "--duration has to be more than 0".to_owned()
        } else if self.scenario == Scenario::Chat && (self.session.is_zero() || self.say_interval.is_zero()) {
            "--session and --say-interval have to be more than 0".to_owned()
        } else {
            return Ok(());
        };
        Err(wrong)
    }

    /// The secrets, which must not be printed.
    pub(super) fn secrets(&self) -> Secrets {
        let urls = [self.url.to_string(), self.publish_url.to_string()];
        Secrets::new(self.token.as_deref(), urls.iter().map(String::as_str))
    }

    /// Number of rooms, with the one without a name.
    pub(crate) fn room_count(&self) -> usize {
        self.rooms.max(1)
    }

    /// The room of a connection in the paths of the URLs.
    pub(crate) fn room_in_path(&self, number: usize) -> Option<usize> {
        (self.rooms > 0).then(|| number % self.rooms)
    }
}
