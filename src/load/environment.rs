//! The environment of a measurement: version and commit of the binary, date and machine.
//!
//! The commit of the binary is that of its build. The commit of the working directory is asked of
//! git. A fact that cannot be found out is `unknown`.

use std::fs;
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// Stands for an unknown commit or processor.
pub const UNKNOWN: &str = "unknown";

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that this program was built from, with `-dirty` for changes beside it.
#[must_use]
pub fn binary_commit() -> &'static str {
    match env!("HYDRANT_COMMIT") {
        "" => UNKNOWN,
        commit => commit,
    }
}

/// The date and time, for example `2026-11-28T19:20:00Z`.
#[must_use]
pub fn date() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The commit of the working directory, if git knows it, with a mark for uncommitted changes, and a
/// warning if the build is not optimised.
pub fn commit() -> String {
    let described =
        Command::new("git").args(["describe", "--always", "--dirty", "--exclude", "*"]).stderr(Stdio::null()).output();
    let commit = match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => UNKNOWN.to_owned(),
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
