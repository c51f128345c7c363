//! The orchestrator's side of the client: starts the process on its core and sends it the commands
//! that `client.rs` describes. Dropping a [`Driver`] ends the client.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use hydrant::load::{Counted, process};

use crate::client::{self, Task};

/// A running client.
pub(crate) struct Driver {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Driver {
    /// Starts a client with this task on `core`. Its errors go to the bench's own stderr.
    pub(crate) fn start(task: &Task, core: usize) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([client::ROLE, &serde_json::to_string(task)?]).stdin(Stdio::piped()).stdout(Stdio::piped());
        process::pin(&mut command, &[core]);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take();
        let lines = BufReader::new(stdout.ok_or_else(|| io::Error::other("no pipe to the client"))?);
        Ok(Self { child, lines })
    }

    /// Waits until all clients are connected, then runs the warm-up.
    pub(crate) fn warm(&mut self) -> io::Result<()> {
        match self.send(client::WARM)?.as_str() {
            client::WARM => Ok(()),
            other => Err(io::Error::other(format!("the client answered {other:?}"))),
        }
    }

    /// Runs the measured load and returns what the client counted. Without `messages` the task sets
    /// how long the load takes.
    pub(crate) fn measure(&mut self, messages: Option<u64>) -> io::Result<Counted> {
        let command = messages.map_or(client::MEASURE.to_owned(), |messages| format!("{} {messages}", client::MEASURE));
        Ok(serde_json::from_str(&self.send(&command)?)?)
    }

    /// Sends a command and waits for its answer.
    fn send(&mut self, command: &str) -> io::Result<String> {
        let ended = || io::Error::other("the client ended early; its error is above");
        let stdin = self.child.stdin.as_mut().ok_or_else(ended)?;
        writeln!(stdin, "{command}").map_err(|_| ended())?;
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(ended());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end();
    }
}

impl Driver {
    /// Ends the client, and with it every connection.
    pub(crate) fn end(&mut self) {
        // Both fail only when the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
