#!/usr/bin/env bash
# Every fuzz target for a bounded time: fuzz.sh [SECONDS], 10 for each target unless told. Installs cargo-fuzz under target/
# when it is missing. What is built and found stays under target/fuzz; what a run has learnt is where the next one begins.
# Exits non-zero when a target finds something, and says how to repeat it. The last line says how many runs there were.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
version=0.13.1
out=target/fuzz
export PATH=$PWD/target/cargo-fuzz/bin:$PATH
fail() { printf 'fuzz.sh: %s\n' "$*" >&2; exit 1; }

[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail 'usage: fuzz.sh [SECONDS], a whole number for each target'
cargo +nightly --version >/dev/null 2>&1 ||
  fail 'the nightly toolchain is missing, and only it has the sanitizers: rustup toolchain install nightly'
command -v c++ >/dev/null || fail 'a C++ compiler is missing: libFuzzer is built from source'
mkdir -p "$out"
if ! cargo-fuzz --version 2>/dev/null | grep -q " $version$"; then
  cargo install --quiet cargo-fuzz --root target/cargo-fuzz --version "$version" --locked >"$out/install.log" 2>&1 ||
    fail "cargo-fuzz $version could not be installed under target/ (see $out/install.log)"
fi

cargo +nightly fuzz build --fuzz-dir tests/fuzz --target-dir "$out" >"$out/build.log" 2>&1 ||
  { cat "$out/build.log" >&2; fail 'the targets do not build'; }

runs=
for target in events inbound outbox publish session; do
  mkdir -p "$out/corpus/$target"
  # An input that takes 10 s has hung; the sanitizer alone keeps 300 MB of what was freed.
  "$out/x86_64-unknown-linux-gnu/release/$target" "$out/corpus/$target" "tests/fuzz/seeds/$target" \
    -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="$out/$target-" >"$out/$target.log" 2>&1 || {
    grep -v '^#' "$out/$target.log" | tail -n 60 >&2
    fail "$target has found something; to repeat it, give the file named above to $out/x86_64-unknown-linux-gnu/release/$target"
  }
  runs+=", $target $(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$target.log")"
done
echo "fuzz: passed; runs: ${runs#, }"
