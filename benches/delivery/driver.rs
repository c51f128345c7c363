//! The orchestrator's end of the client: starts the process on its core and holds the conversation described in
//! `client.rs`. Dropping it ends the client.

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
    /// Starts a client with this task on `core`. What it has to complain about goes to the bench's own stderr.
    pub(crate) fn start(task: &Task, core: usize) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([client::ROLE, &serde_json::to_string(task)?]).stdin(Stdio::piped()).stdout(Stdio::piped());
        process::pin(&mut command, &[core]);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take();
        let lines = BufReader::new(stdout.ok_or_else(|| io::Error::other("no pipe to the client"))?);
        Ok(Self { child, lines })
    }

    /// Waits until everybody is connected and brings the server to its pace.
    pub(crate) fn warm(&mut self) -> io::Result<()> {
        match self.ask(client::WARM)?.as_str() {
            client::WARM => Ok(()),
            other => Err(io::Error::other(format!("the client said {other:?}"))),
        }
    }

    /// Runs the measured load, of so many messages or as long as the task says, and answers what was counted.
    pub(crate) fn measure(&mut self, messages: Option<u64>) -> io::Result<Counted> {
        let word = messages.map_or(client::MEASURE.to_owned(), |messages| format!("{} {messages}", client::MEASURE));
        Ok(serde_json::from_str(&self.ask(&word)?)?)
    }

    fn ask(&mut self, word: &str) -> io::Result<String> {
        let gone = || io::Error::other("the client gave up, see above");
        let stdin = self.child.stdin.as_mut().ok_or_else(gone)?;
        writeln!(stdin, "{word}").map_err(|_| gone())?;
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(gone());
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
        // Either may fail only because the process is already gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
