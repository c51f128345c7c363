//! Role `client`: all subscribers and the publisher, as a [`Fanout`] of the load generator in a process of its own.
//!
//! Does what it is told on stdin, one word a line, with one line of answer each: `warm` brings the server to its pace,
//! `measure` runs the load that counts (`measure 48` one of 48 messages), the end of stdin ends the client. So the
//! orchestrator reads the server's CPU clock between the words, with nothing going on. Gives up when a connection is missing
//! before the measurement; one that is lost later is counted.

use std::io::{self, BufRead};
use std::time::Duration;

use hydrant::load::{Fanout, Options, Pace};

/// The hidden first argument that makes this executable the client.
pub(crate) const ROLE: &str = "role:client";

/// The word that asks for a warm-up, and the answer when it is through.
pub(crate) const WARM: &str = "warm";

/// The word that asks for the measured load; the answer is a [`Counted`](hydrant::load::Counted) as JSON.
pub(crate) const MEASURE: &str = "measure";

/// The channel of the bench: a room of its own, so that nothing but the publications of the bench is sent in it.
const CHANNEL: &str = "bench";

/// What the client is told.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    load: Options,
    in_flight: usize,
    /// Messages to measure; `None` for as many as `seconds` allows at the pace of the warm-up.
    messages: Option<u32>,
    /// Duration of the measurement to aim at.
    seconds: f64,
}

impl Task {
    /// A load of these options on this server; with the `stalled` subscribers that never read beside the others.
    pub(crate) fn new(
        server: std::net::SocketAddr,
        options: &crate::options::Options,
        in_flight: usize,
        stalled: usize,
    ) -> io::Result<Self> {
        let load = Options {
            connections: options.subscribers() + stalled,
            slow: stalled,
            slow_rate: 0,
            slow_narrow: false,
            payload: options.payload,
            pace: options.rate.map_or(Pace::InFlight(in_flight), Pace::Rate),
            publishers: in_flight,
            quiet: true,
            ..Options::new(&format!("ws://{server}/ws/{CHANNEL}")).map_err(io::Error::other)?
        };
        load.check().map_err(io::Error::other)?;
        Ok(Self { load, in_flight, messages: options.messages(), seconds: options.seconds })
    }

    /// How many messages to measure: as told, or as many as the time allows at this pace (per message). Never so few that
    /// ramp and tail of the load are a large part of it.
    fn messages(&self, pace: Duration) -> u64 {
        let pace = match self.load.pace {
            Pace::Rate(rate) => Duration::from_secs_f64(1.0 / rate),
            Pace::InFlight(_) | Pace::Flood => pace,
        };
        let fitting = (self.seconds / pace.as_secs_f64()) as u64;
        self.messages.map_or(fitting.max(4 * self.in_flight as u64), u64::from)
    }
}

/// Runs the task; see the head of this file for the conversation.
pub(crate) fn run(task: &str) -> io::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    let mut load = Fanout::connect(&task.load).map_err(io::Error::other)?;
    let mut pace = Duration::from_secs(1);
    for word in io::stdin().lock().lines() {
        let line = word?;
        let (word, number) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            WARM => {
                load.require_everybody().map_err(io::Error::other)?;
                pace = load.warm_up().map_err(io::Error::other)?.unwrap_or(pace);
                load.require_everybody().map_err(io::Error::other)?;
                println!("{WARM}");
            }
            MEASURE => {
                let messages = number.parse().unwrap_or_else(|_| task.messages(pace));
                let counted = load.run(messages).map_err(io::Error::other)?;
                println!("{}", serde_json::to_string(&counted)?);
            }
            other => return Err(io::Error::other(format!("no such word: {other:?}"))),
        }
    }
    Ok(())
}
