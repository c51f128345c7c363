//! Progress on standard error: a bar on a terminal, a line each second elsewhere, nothing with
//! `--quiet`.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two updates of a bar, and between two lines, in nanoseconds.
const BAR_NS: u64 = 100_000_000;
const LINE_NS: u64 = 1_000_000_000;

/// See the head of this file.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    next_ns: u64,
}

impl Progress {
    /// Shows nothing yet.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:40} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(1000).with_style(style)
        });
        Self { bar, quiet, next_ns: 0 }
    }

    /// Shows the progress, from 0 to 1, if it is time to.
    pub(crate) fn show(&mut self, now_ns: u64, done: f64, text: impl FnOnce() -> String) {
        if self.quiet || now_ns < self.next_ns {
            return;
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position((1000.0 * done.clamp(0.0, 1.0)) as u64);
                bar.set_message(text());
            }
            // Standard error may be closed; the load goes on.
            None => drop(writeln!(io::stderr(), "{:>3.0} % {}", 100.0 * done.clamp(0.0, 1.0), text())),
        }
        self.next_ns = now_ns + if self.bar.is_some() { BAR_NS } else { LINE_NS };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
