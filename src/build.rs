//! The build script: sets `HYDRANT_COMMIT`, the commit that the binary is built from.
//!
//! It runs again only when the sources change, so that a commit alone rebuilds nothing. A build of
//! changed files says `-dirty`. Without git, or in a tarball, the commit is empty; a packager sets
//! the variable `HYDRANT_COMMIT` in place of that.

use std::env;
use std::path::Path;
use std::process::Command;

/// The output of a git command in `directory`; nothing if it fails.
fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // A build never waits for, nor writes, the index of another git command.
    let output = command.args(arguments).current_dir(directory).env("GIT_OPTIONAL_LOCKS", "0").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The commit of the sources, if they are the whole work tree: a tarball that lies in a repository
/// of something else has none.
fn commit(sources: &Path) -> Option<String> {
    let top = git(sources, &["rev-parse", "--show-toplevel"])?;
    let is_ours = Path::new(&top).canonicalize().ok()? == sources.canonicalize().ok()?;
    git(sources, &["describe", "--always", "--dirty", "--exclude", "*"]).filter(|_| is_ours)
}

fn main() {
    for path in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=HYDRANT_COMMIT");
    let sources = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let commit = env::var("HYDRANT_COMMIT").ok().or_else(|| commit(Path::new(&sources)));
    println!("cargo:rustc-env=HYDRANT_COMMIT={}", commit.unwrap_or_default());
}
