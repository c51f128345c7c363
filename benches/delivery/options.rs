//! The command line of the bench. Owns every default and gives the reason for it.

use std::io;

use clap::Parser;

use hydrant::load::{TAG_BYTES, process};

use crate::floor::PAYLOAD_BYTES_MAX;
use crate::server::Candidate;

/// The server's CPU time for one delivery, beside the bare system call in the same run.
#[derive(Parser, Debug)]
#[command(name = "delivery")]
pub(crate) struct Options {
    /// Subscribers, all of them in one channel [default: 10000, with --test 50]
    #[arg(long)]
    subscribers: Option<usize>,

    /// Messages to measure in every cell [default: as many as fit in --seconds, with --test 64]
    #[arg(long)]
    messages: Option<u32>,

    /// Duration of the measurement in every cell, in seconds; --messages overrides it
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,

    /// Rounds; each runs every cell once [default: 5, with --test 1; with --idle 1, where each
    /// round connects all subscribers again to the same server]
    #[arg(long)]
    rounds: Option<usize>,

    /// Numbers of messages that the publisher keeps in flight
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    pub(crate) in_flight: Vec<usize>,

    /// Messages per second, on a fixed schedule: latency counts from the scheduled time.
    /// --in-flight is then the number of connections that publish
    #[arg(long)]
    pub(crate) rate: Option<f64>,

    /// Payload of a message, in bytes
    #[arg(long, default_value_t = 100)]
    pub(crate) payload: usize,

    /// Strategies of hydrant to compare with the floor. Flags of hydrant can follow a strategy,
    /// after colons: direct,direct:--shared-pages-min=1GiB
    #[arg(long, value_delimiter = ',', default_value = "direct,wake,ring,mailbox")]
    fanout: Vec<String>,

    /// Measure each strategy also with this number of further subscribers, which never read; prints
    /// the memory that this takes
    #[arg(long, default_value_t = 0)]
    stalled: usize,

    /// Let the server run on the client's core as well, as for direct,direct:--shards=2
    #[arg(long)]
    pub(crate) both_cores: bool,

    /// Measure memory instead of time
    #[arg(long)]
    pub(crate) idle: bool,

    /// Measure the floor alone
    #[arg(long)]
    floor_only: bool,

    /// Print one JSON document instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// Only check that everything works: small numbers, one round, figures without meaning
    #[arg(long)]
    test: bool,

    /// `cargo bench` passes this to every bench; it has no effect here
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Parses this process's arguments; prints the usage and exits if they are wrong.
    pub(crate) fn read() -> Self {
        Self::parse()
    }

    /// All defaults, except for the number of subscribers.
    #[allow(dead_code, reason = "used by the bench `socket`, which shares this file")]
    pub(crate) fn with_subscribers(subscribers: usize) -> Self {
        Self { subscribers: Some(subscribers), ..Self::parse_from(["delivery"]) }
    }

    /// Rejects options that cannot work, before anything is started.
    pub(crate) fn check(&self) -> io::Result<()> {
        let counts = [self.subscribers(), self.rounds()];
        if counts.contains(&0) || self.in_flight.contains(&0) || self.messages == Some(0) {
            return Err(io::Error::other("--subscribers, --messages, --rounds and --in-flight are at least 1"));
        }
        if !(TAG_BYTES..=PAYLOAD_BYTES_MAX).contains(&self.payload) {
            return Err(io::Error::other(format!(
                "--payload must be from {} to {} bytes",
                TAG_BYTES, PAYLOAD_BYTES_MAX
            )));
        }
        // The subscribers, the publisher's connections, and 64 for the files of any process.
        let files = self.subscribers() + self.stalled + self.in_flight.iter().max().copied().unwrap_or_default() + 64;
        let files_max = process::open_files_max()?;
        if files as u64 > files_max {
            return Err(io::Error::other(format!(
                "{} subscribers need about {files} open files in each process, the hard limit here is {files_max}",
                self.subscribers()
            )));
        }
        Ok(())
    }

    /// The cores of the server, and the client's.
    pub(crate) fn cores(&self) -> io::Result<(Vec<usize>, usize)> {
        let (server, client) = process::two_cores()?;
        Ok((if self.both_cores { vec![server, client] } else { vec![server] }, client))
    }

    /// The candidates in the order of the first round. The floor is always among them: the ratios
    /// need it.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = vec![Candidate::Floor];
        if !self.floor_only {
            for fanout in self.fanout.iter().cloned() {
                candidates.push(Candidate::Hydrant { fanout: fanout.clone(), stalled: 0 });
                if self.stalled > 0 {
                    candidates.push(Candidate::Hydrant { fanout, stalled: self.stalled });
                }
            }
        }
        candidates
    }

    /// Subscribers in every cell.
    pub(crate) fn subscribers(&self) -> usize {
        self.subscribers.unwrap_or(if self.test { 50 } else { 10_000 })
    }

    /// Messages in every cell; with `None` the client chooses by the rate of its warm-up.
    pub(crate) fn messages(&self) -> Option<u32> {
        self.messages.or(self.test.then_some(64))
    }

    /// How often every cell is measured. For a small difference, take more rounds and not longer
    /// ones: drift cancels out between rounds, not within a cell.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.test || self.idle { 1 } else { 5 })
    }
}
