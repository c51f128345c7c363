//! The candidates. A [`Server`] starts one on its core, learns its address from its output, and
//! keeps its last lines of output for an error message. Dropping a [`Server`] ends the process.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hydrant::load::process;

use crate::floor;
use crate::options::Options;

/// Longest wait for a server to print its address.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Lines of a server's output that are kept.
const LAST_LINES: usize = 20;

/// A server to be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Candidate {
    /// The reference: the bare system call.
    Floor,
    /// Hydrant, the server of this package.
    Hydrant {
        /// Its fan-out strategy, with further flags after colons.
        fanout: String,
        /// Subscribers that never read, in addition to those that do.
        stalled: usize,
    },
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floor => f.pad("floor"),
            Self::Hydrant { fanout, stalled: 0 } => f.pad(fanout),
            Self::Hydrant { fanout, stalled } => f.pad(&format!("{fanout}, {stalled} stalled")),
        }
    }
}

impl Candidate {
    /// Subscribers that never read.
    pub(crate) fn stalled(&self) -> usize {
        match self {
            Self::Floor => 0,
            Self::Hydrant { stalled, .. } => *stalled,
        }
    }

    fn command(&self, options: &Options) -> io::Result<Command> {
        match self {
            Self::Floor => {
                let task = floor::Task { subscribers: options.subscribers(), payload: options.payload };
                let mut command = Command::new(std::env::current_exe()?);
                command.args([floor::ROLE, &serde_json::to_string(&task)?]);
                Ok(command)
            }
            Self::Hydrant { fanout, .. } => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
                // One shard because the floor is one thread; no tick because it is not part of the
                // load.
                command.args(["--listen", "127.0.0.1:0", "--shards", "1", "--tick", "0"]);
                // One port for clients and publishing, as the floor has: the same text is one
                // socket.
                command.args(["--admin-listen", "127.0.0.1:0", "--open"]);
                // `direct:--shared-pages-min=1GiB`: the strategy, then further flags.
                let mut parts = fanout.split(':');
                command.arg("--fanout").args(parts.next()).args(parts);
                Ok(command)
            }
        }
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    /// Reads the server's output to its end, so that the server never waits for a full pipe.
    output: Option<JoinHandle<VecDeque<String>>>,
}

impl Server {
    /// Starts `candidate` on `cores` and waits until it listens.
    pub(crate) fn start(candidate: &Candidate, options: &Options, cores: &[usize]) -> io::Result<Self> {
        let mut command = candidate.command(options)?;
        // One pipe for both: a server may log to either.
        let (reader, writer) = io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        process::pin(&mut command, cores);
        let child = command.spawn()?;
        // The command owns this process's ends of the pipe; while they are open, the output never
        // ends.
        drop(command);

        let (sender, addresses) = mpsc::channel();
        let output = thread::spawn(move || follow(reader, &sender));
        let mut server = Self { child, address: SocketAddr::from(([0, 0, 0, 0], 0)), output: Some(output) };
        match addresses.recv_timeout(START_TIMEOUT) {
            Ok(address) => server.address = address,
            Err(_) => {
                let last_output = server.stop();
                return Err(io::Error::other(format!("the server did not print its address{last_output}")));
            }
        }
        Ok(server)
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process. Returns the last lines of its output, as the end of an error message.
    pub(crate) fn stop(&mut self) -> String {
        // Both fail only when the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let lines = self.output.take().map(JoinHandle::join);
        match lines {
            Some(Ok(lines)) if !lines.is_empty() => {
                format!("\nthe end of the server's output:\n  {}", Vec::from(lines).join("\n  "))
            }
            _ => String::new(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads a server's output to its end, sends every listening address in it, and returns the last
/// lines.
fn follow(reader: PipeReader, addresses: &mpsc::Sender<SocketAddr>) -> VecDeque<String> {
    let mut lines = VecDeque::new();
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        if let Some(address) = listening_address(&line) {
            // Only the first is waited for; a later send may fail.
            let _ = addresses.send(address);
        }
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    lines
}

/// The address in a log line such as `INFO listening on 127.0.0.1:43210`: the first address whose
/// port is not 0. `127.0.0.1:0` is the requested address, not the bound one.
fn listening_address(line: &str) -> Option<SocketAddr> {
    if !line.to_ascii_lowercase().contains("listening") {
        return None;
    }
    line.split(|c: char| !c.is_ascii_hexdigit() && !".:[]".contains(c))
        .filter_map(|word| word.parse::<SocketAddr>().ok())
        .find(|address| address.port() != 0)
}
