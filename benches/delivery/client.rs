//! Role `client`: all subscribers and the publisher, which are a [`Fanout`] of the load generator.
//! The client is a process of its own.
//!
//! It reads commands from stdin, one a line, and answers each with one line on stdout:
//!
//! - `warm` runs a load that is not counted, until the server has reached its rate.
//! - `measure` runs the load that is counted; `measure 48` runs one of 48 messages.
//!
//! At the end of stdin the client ends. Between two commands nothing is sent, so the orchestrator
//! can read the server's CPU clock. A connection that is missing before the measurement is an
//! error; one that is lost later is counted.

use std::io::{self, BufRead};
use std::time::Duration;

use hydrant::load::{Fanout, Options, Pace};

/// The hidden first argument that makes this executable the client.
pub(crate) const ROLE: &str = "role:client";

/// The command that asks for a warm-up; also the answer when the warm-up is over.
pub(crate) const WARM: &str = "warm";

/// The command that asks for the measured load; the answer is a [`Counted`](hydrant::load::Counted)
/// as JSON.
pub(crate) const MEASURE: &str = "measure";

/// The channel of the bench. Only the bench publishes in it.
const CHANNEL: &str = "bench";

/// The client's task, as JSON in its second argument.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    load: Options,
    in_flight: usize,
    /// Messages to measure; `None` for as many as `seconds` allows at the pace of the warm-up.
    messages: Option<u32>,
    /// Intended duration of the measurement, in seconds.
    seconds: f64,
}

impl Task {
    /// A load with these options on this server, with `stalled` further subscribers that never
    /// read.
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
            slow_small_buffer: false,
            payload: options.payload,
            pace: options.rate.map_or(Pace::InFlight(in_flight), Pace::Rate),
            publishers: in_flight,
            quiet: true,
            ..Options::new(&format!("ws://{server}/ws/{CHANNEL}")).map_err(io::Error::other)?
        };
        load.check().map_err(io::Error::other)?;
        Ok(Self { load, in_flight, messages: options.messages(), seconds: options.seconds })
    }

    /// The number of messages to measure. Without one in the task it is as many as `seconds`
    /// allows, where each takes `pace`; at least four times the number in flight, so that the start
    /// and the end of the load are a small part of it.
    fn messages(&self, pace: Duration) -> u64 {
        let pace = match self.load.pace {
            Pace::Rate(rate) => Duration::from_secs_f64(1.0 / rate),
            Pace::InFlight(_) | Pace::Flood => pace,
        };
        let fitting = (self.seconds / pace.as_secs_f64()) as u64;
        self.messages.map_or(fitting.max(4 * self.in_flight as u64), u64::from)
    }
}

/// Runs the task. The head of this file lists the commands.
pub(crate) fn run(task: &str) -> io::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    let mut load = Fanout::connect(&task.load).map_err(io::Error::other)?;
    let mut pace = Duration::from_secs(1);
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (command, number) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            WARM => {
                load.require_all_connected().map_err(io::Error::other)?;
                pace = load.warm_up().map_err(io::Error::other)?.unwrap_or(pace);
                load.require_all_connected().map_err(io::Error::other)?;
                println!("{WARM}");
            }
            MEASURE => {
                let messages = number.parse().unwrap_or_else(|_| task.messages(pace));
                let counted = load.run(messages).map_err(io::Error::other)?;
                println!("{}", serde_json::to_string(&counted)?);
            }
            other => return Err(io::Error::other(format!("unknown command: {other:?}"))),
        }
    }
    Ok(())
}
