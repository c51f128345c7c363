//! The command line of `hydrant load`, and the checked [`Options`] that a load is run with. Owns every default.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::message::TAG_BYTES;
use super::target::Target;
use crate::config::{SlowPolicy, parse_bytes, parse_duration};

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// Everybody is connected, then messages are published: latency, deliveries per second, exactness
    Fanout,
    /// Everybody is connected and waits: memory, pings
    Idle,
    /// As fanout, while connections leave and others join; asks for a server that subscribes before it answers 101
    Churn,
    /// The article's test: clients with a name speak, receive the tick, and leave
    Chat,
    /// As fanout, beside subscribers that read slowly or not at all
    Slow,
}

/// Who sends the messages.
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
    /// So many a second, on a schedule.
    Rate(f64),
    /// As soon as fewer than so many are on their way.
    InFlight(usize),
    /// As soon as a publishing connection is free.
    Flood,
}

/// Put a load on a WebSocket server that sends what is published to every subscriber, and count what arrives.
///
/// Sizes are bytes, with units such as 64KiB; durations have units such as 3s or 500ms. Exit code 0 when everything arrived
/// that had to; 1 when something is missing, came twice or in another order, a connection was lost, or more than a hundredth
/// of the messages could not be sent at the --rate asked for within the --duration; 64 for a wrong command line; 69 when the load could not be
/// run to its end.
#[derive(Clone, Debug, Args)]
#[command(next_line_help = true)]
pub struct Arguments {
    /// What to do
    #[arg(value_enum, default_value = "fanout")]
    scenario: Scenario,
    /// Where subscribers connect; with wss://, the certificate may be anyone's
    #[arg(long, default_value = "ws://127.0.0.1:3000/ws")]
    url: String,
    /// Where messages are posted [default: --url with http or https, and /publish in place of /ws]
    #[arg(long)]
    publish_url: Option<String>,
    /// Bearer token for publishing
    #[arg(long)]
    token: Option<String>,
    /// Rooms: subscriber i is in room i mod N, at the paths of both URLs with /rK behind them; 0 takes the URLs as they are
    #[arg(long, default_value_t = 0)]
    rooms: usize,
    /// Connections; in the chat, clients
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// New connections per second; 0 is as fast as the server answers, 64 handshakes at once
    #[arg(long, default_value_t = 0)]
    ramp: u32,
    /// Source addresses, taken in turn [default: the kernel's choice; towards a 127.x server 127.0.0.1, then .2 and so on,
    /// for 20,000 connections each]
    #[arg(long, value_delimiter = ',')]
    source: Vec<IpAddr>,
    /// How long messages are published; for idle, how long to stay; for chat, how long sessions begin
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// Messages to publish; goes before --duration
    #[arg(long)]
    messages: Option<u64>,
    /// Length of a message in bytes; the first 12 are a tag
    #[arg(long, value_parser = parse_bytes, default_value = "100")]
    payload: usize,
    /// Messages per second, on a schedule [default: 10]. Latency counts from the schedule; with --in-flight and --flood it
    /// counts from the plan, and what waits to be sent is not in it
    #[arg(long, conflicts_with_all = ["in_flight", "flood"])]
    rate: Option<f64>,
    /// Messages on their way at once; a message is, until every subscriber has it
    #[arg(long, conflicts_with = "flood")]
    in_flight: Option<usize>,
    /// Publish as fast as --publishers connections are answered
    #[arg(long)]
    flood: bool,
    /// Who sends the messages
    #[arg(long, value_enum, default_value = "http")]
    publish_by: PublishBy,
    /// Connections that publish [default: as many as --in-flight, or 16; with --publish-by say one for each room]
    #[arg(long)]
    publishers: Option<usize>,
    /// slow: what the server does with clients that read slowly. With disconnect it may close those, with 1013; any other
    /// connection that it closes is a fault, in every scenario and whatever the code
    #[arg(long, value_enum, default_value = "disconnect")]
    policy: SlowPolicy,
    /// Messages before the measured ones: a lead-in of 20 one at a time, the rest with as many in flight as will be measured
    /// [default: 20, then twice --in-flight and at least 5]
    #[arg(long)]
    warmup: Option<usize>,
    /// How long nothing may arrive before what is missing counts as lost
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    patience: Duration,
    /// slow: share of the connections that read slowly, 0 to 1; the last ones
    #[arg(long, default_value_t = 0.1)]
    slow_share: f64,
    /// slow: bytes per second that each of them reads; 0 reads nothing
    #[arg(long, value_parser = parse_bytes, default_value = "10KiB")]
    slow_rate: usize,
    /// churn: connections that leave, and join again, per second
    #[arg(long, default_value_t = 50.0)]
    churn_rate: f64,
    /// churn: share of the connections that do so, 0 to 1; the first ones
    #[arg(long, default_value_t = 0.5)]
    churn_share: f64,
    /// chat: mean time between two messages of a client; each time is between half and one and a half of it
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    say_interval: Duration,
    /// chat: from connected to LEAVE; a client begins its next session one and a half of it after the last
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    session: Duration,
    /// chat: interval of the messages that the server sends on its own, its --tick; 0 expects none
    #[arg(long, value_parser = parse_duration, default_value = "3s")]
    tick: Duration,
    /// Process of the server on this machine: reports its CPU and memory
    #[arg(long)]
    pid: Option<u32>,
    /// fanout, slow: sleep while nothing comes, in place of looking all the time: leaves the core to others, and makes each
    /// delivery dearer for a server that has to wake somebody
    #[arg(long)]
    sleep: bool,
    /// Print one JSON document in place of the report
    #[arg(long)]
    json: bool,
    /// No progress on standard error
    #[arg(long)]
    quiet: bool,
    /// Seed of every random choice [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
}

/// What a load is run with; checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Options {
    /// What to do.
    pub scenario: Scenario,
    /// Where subscribers connect.
    pub url: Target,
    /// Where messages are posted.
    pub publish_url: Target,
    /// Bearer token for publishing.
    pub token: Option<String>,
    /// Rooms; 0 takes the URLs as they are.
    pub rooms: usize,
    /// Connections, slow ones included.
    pub connections: usize,
    /// New connections per second; 0 is as fast as the server answers.
    pub ramp: u32,
    /// Source addresses, taken in turn; empty for the default.
    pub sources: Vec<IpAddr>,
    /// How long to publish.
    pub duration: Duration,
    /// Messages to publish; goes before the duration.
    pub messages: Option<u64>,
    /// Length of a message in bytes.
    pub payload: usize,
    /// When the next message is sent.
    pub pace: Pace,
    /// Who sends it.
    pub publish_by: PublishBy,
    /// Connections that publish.
    pub publishers: usize,
    /// Whether the server drops messages for slow clients in place of closing them.
    pub drops: bool,
    /// Messages of the warm-up; nothing for the default.
    pub warm_up: Option<usize>,
    /// How long nothing may arrive before what is missing counts as lost.
    pub patience: Duration,
    /// How many of the connections read slowly; the last ones.
    pub slow: usize,
    /// Bytes per second that each of them reads.
    pub slow_rate: usize,
    /// Whether slow ones have a receive buffer as small as on a poor network.
    pub slow_small_buffer: bool,
    /// Connections that leave and join again per second.
    pub churn_rate: f64,
    /// How many of the connections do so; the first ones.
    pub churners: usize,
    /// Mean time between two messages of a client of the chat.
    pub say_interval: Duration,
    /// Length of a session of the chat.
    pub session: Duration,
    /// Interval of the server's own messages; zero expects none.
    pub tick: Duration,
    /// Process of the server.
    pub pid: Option<u32>,
    /// Whether to sleep while nothing comes.
    pub sleep: bool,
    /// JSON in place of the report.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
    /// Seed of every random choice.
    pub seed: u64,
}

/// Messages, or joins, a second: more than one client can send.
const RATE_MAX: f64 = 1_000_000.0;
/// Most publishing connections: each is a file.
const PUBLISHERS_MAX: usize = 4096;
/// Publishing connections where nothing says how many.
const PUBLISHERS: usize = 16;
/// Messages per second where nothing says how many.
const RATE: f64 = 10.0;
/// Longest message in bytes.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

impl Arguments {
    /// The checked options.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn options(self) -> Result<Options, String> {
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
            token: self.token,
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
            pid: self.pid,
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
    /// When the URL is none.
    pub fn new(url: &str) -> Result<Self, String> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let line: Line = clap::Parser::try_parse_from(["load", "--url", url]).map_err(|error| error.to_string())?;
        line.arguments.options()
    }

    /// Refuses what cannot work, before anything is connected.
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
        } else if self.pace == Pace::InFlight(0) || self.messages == Some(0) {
            "--in-flight and --messages count from 1".to_owned()
        } else if !(1..=PUBLISHERS_MAX).contains(&self.publishers) {
            format!("--publishers {} is outside 1 to {PUBLISHERS_MAX}", self.publishers)
        } else if self.publish_by == PublishBy::Say && self.pace == Pace::Flood {
            "--flood needs --publish-by http: nothing answers a SAY".to_owned()
        } else if self.publish_by == PublishBy::Say && self.publishers < self.rooms {
            format!("--publishers {} is less than --rooms {}: a SAY reaches its own room", self.publishers, self.rooms)
        } else if matches!(self.pace, Pace::Rate(rate) if !is_rate(rate)) {
            format!("--rate has to be more than 0 and at most {RATE_MAX} a second")
        } else if self.messages.is_some_and(|messages| messages >= 1 << 31) {
            "--messages has to be below 2,147,483,648".to_owned()
        } else if self.slow >= self.connections {
            "--slow-share leaves nobody who reads".to_owned()
        } else if self.scenario == Scenario::Slow && self.slow == 0 {
            "--slow-share of --connections is nobody".to_owned()
        } else if self.scenario == Scenario::Churn && self.churners == 0 {
            "--churn-share of --connections is nobody".to_owned()
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

    /// Number of rooms, at least the one without a name.
    pub(crate) fn room_count(&self) -> usize {
        self.rooms.max(1)
    }

    /// The room of a connection in the paths of the URLs.
    pub(crate) fn room_in_path(&self, number: usize) -> Option<usize> {
        (self.rooms > 0).then(|| number % self.rooms)
    }
}
