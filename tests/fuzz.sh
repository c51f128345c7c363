#!/usr/bin/env bash
# Runs every fuzz target for a bounded time:
#
#     tests/fuzz.sh [SECONDS]
#
# 10 seconds for each target by default. Programs, logs and inputs are kept in target/fuzz; a run
# starts from the inputs that earlier runs found. Exits with an error when a target finds a fault,
# and says how to repeat it. The last line has the number of runs of each target.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
out=target/fuzz
fail() { printf 'fuzz.sh: %s\n' "$*" >&2; exit 1; }

[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail 'usage: fuzz.sh [SECONDS], a whole number for each target'
command -v c++ >/dev/null || fail 'a C++ compiler is missing, libFuzzer is built from source; run: sudo apt-get install g++'
mkdir -p "$out"

# libFuzzer needs the coverage of every edge and comparison, AddressSanitizer needs -Zsanitizer.
# The stable compiler has both; RUSTC_BOOTSTRAP lets it take the unstable option.
flags='--cfg fuzzing -Zsanitizer=address -Cdebug-assertions -Cpasses=sancov-module'
for coverage in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$coverage"
done
# Without it, branches would be folded before they are counted.
flags+=' -Cllvm-args=-simplifycfg-branch-fold-threshold=0'
# With an explicit target the flags do not apply to build scripts and procedural macros.
triple=$(rustc -vV | sed -n 's/^host: //p')
RUSTC_BOOTSTRAP=1 RUSTFLAGS=$flags cargo build --release --bins --manifest-path tests/fuzz/Cargo.toml \
  --target "$triple" --target-dir "$out" >"$out/build.log" 2>&1 ||
  { cat "$out/build.log" >&2; fail 'the targets do not build'; }

runs=
for target in events inbound outbox publish session; do
  program=$out/$triple/release/$target
  mkdir -p "$out/corpus/$target"
  # An input that takes 10 s counts as a hang. AddressSanitizer alone keeps 300 MB of freed memory.
  "$program" "$out/corpus/$target" "tests/fuzz/seeds/$target" \
    -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="$out/$target-" >"$out/$target.log" 2>&1 || {
    grep -v '^#' "$out/$target.log" | tail -n 60 >&2
    fail "$target found a fault; to repeat it, run: $program INPUT, with the file named above"
  }
  runs+=", $target $(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$target.log")"
done
echo "fuzz: passed; runs: ${runs#, }"
