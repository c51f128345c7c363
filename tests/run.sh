#!/usr/bin/env bash
# Every test, with outside programs too: lints, cargo test under both allocators, the benches as tests, the RFC 6455
# conformance suite, a smoke run of k6, go tool pprof, hostile clients and bad networks against the release binary, and a little
# fuzzing. What is missing is installed under target/, or one sentence says what is missing. The last lines are those of cargo
# test.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (after %d s)\n' "$*" "$SECONDS"; }
fail() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }

command -v cargo >/dev/null || fail 'cargo is missing: install Rust 1.95 or newer, https://rustup.rs'
command -v python3 >/dev/null || fail 'python3 is missing: k6, Go and the conformance suite come as Python packages'
PATH=$PATH:/usr/sbin:/sbin
for tool in unshare nsenter ip tc nft; do
  command -v "$tool" >/dev/null || fail "$tool is missing: bad networks are made with util-linux, iproute2 and nftables"
done
# Each test server and its clients are files: 2,000 clients are 4,000 of them, and the faults have 10,700 of one server.
[ "$(ulimit -Hn)" = unlimited ] || [ "$(ulimit -Hn)" -ge 11500 ] ||
  fail "at most $(ulimit -Hn) open files are allowed: the tests need a hard limit of 11500 (ulimit -Hn)"
ulimit -n "$(ulimit -Hn)"

step 'format, lints, documentation'
cargo fmt --check
cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
cargo clippy --quiet --all-targets -- -D warnings
cargo clippy --quiet --all-targets --no-default-features --features jemalloc -- -D warnings
cargo clippy --quiet --all-targets --no-default-features --features mimalloc -- -D warnings
cargo clippy --quiet --all-targets --no-default-features --features mimalloc,profiling -- -D warnings
RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --lib

step 'crates: licences and sources'
python3 tests/crates.py

step 'release binary'
cargo build --quiet --release

step 'conformance: RFC 6455 against /echo'
bash tests/conformance.sh target/release/hydrant

step 'k6: 200 clients'
bash tests/k6.sh target/release/hydrant

step 'profiles: go tool pprof reads them under load'
bash tests/pprof.sh target/release/hydrant

step 'faults: hostile clients and full machines against the release binary'
python3 tests/faults/run.py target/release/hydrant --seconds 2

step 'faults: bad networks'
python3 tests/faults/network.py target/release/hydrant --seconds 2

step 'fuzzing, a little'
bash tests/fuzz.sh 5

step 'benches, as tests'
# In the test profile: what is measured has no meaning here, and five optimised programs less are linked.
cargo test --quiet --benches -- --test

step 'every interleaving of the inbox, by loom'
RUSTFLAGS='--cfg hydrant_loom' cargo test --quiet --lib --no-default-features --features mimalloc --target-dir target/loom loom_tests

step 'cargo test with mimalloc, without profiles'
cargo test --quiet --no-default-features --features mimalloc

step 'cargo test'
cargo test --quiet --doc
cargo test --lib --test it
