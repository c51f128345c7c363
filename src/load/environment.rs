//! The environment of a measurement: commit, build and machine.
//!
//! Asks git and `/proc`, once. A fact that cannot be found out is `unknown`.

use std::fs;
use std::process::{Command, Stdio};

/// Stands for an unknown commit or processor.
pub const UNKNOWN: &str = "unknown";

/// The commit of the working directory, if git knows it, with a mark for uncommitted changes, and a
/// warning if the build is not optimised.
pub fn commit() -> String {
    let described =
        Command::new("git").args(["describe", "--always", "--dirty", "--exclude", "*"]).stderr(Stdio::null()).output();
    let commit = match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => return UNKNOWN.to_owned(),
    };
    if cfg!(debug_assertions) {
        return commit + " (NOT OPTIMISED: the figures mean nothing)";
    }
    commit
}

/// Processor and kernel.
pub fn machine() -> String {
    // Read from the kernel, since this process may be pinned to some of the cores.
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    let processor = processors.lines().find(|line| line.starts_with("model name"));
    let processor = processor.and_then(|line| Some(line.split_once(':')?.1.trim()));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease");
    format!(
        "{}, {cores} cores, Linux {}",
        processor.unwrap_or("unknown processor"),
        kernel.as_deref().map_or(UNKNOWN, str::trim)
    )
}
