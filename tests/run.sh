#!/usr/bin/env bash
# Runs every check and test of Hydrant: some 14 minutes on two cores from nothing.
#
# On Debian and Ubuntu the script installs missing packages with apt, if it may (as root or with
# sudo); otherwise it prints the one line to run. Everything else is installed under target/.
#
# Steps run in two lanes side by side: the lane `release` tests the release binary with outside
# programs, the lane `debug` checks the source and runs the Rust tests. The log of each step is
# target/run/STEP.log. A line at least every 30 seconds says which steps run. The time of each step
# and then the output of `cargo test` are printed last.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
fail() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }

# --- set-up ------------------------------------------------------------------------------------

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need cc gcc
need c++ g++
need make make
need python3 python3
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
need unshare util-linux
need mount mount
need tc iproute2
need ip iproute2
need nft nftables
command -v cargo >/dev/null || missing+=(curl ca-certificates)
# Without a terminal sudo cannot ask for a password.
as_root=(sudo)
[ -t 0 ] || as_root+=(-n)
[ "$(id -u)" != 0 ] || as_root=(env)
if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  echo "installing with apt: ${missing[*]}"
  { command -v apt-get >/dev/null && command -v "${as_root[0]}" >/dev/null && "${as_root[@]}" apt-get update -q &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
  } || fail "these packages are missing; run: sudo apt-get install ${missing[*]}"
fi
if ! command -v cargo >/dev/null; then
  echo 'installing Rust'
  install_rust='curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy'
  bash -o pipefail -c "$install_rust" || fail "Rust is missing; run: $install_rust"
fi
cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 ||
  rustup component add rustfmt clippy ||
  fail 'rustfmt or clippy is missing; run: rustup component add rustfmt clippy'
# Bad networks are made in namespaces, which some systems allow to root only.
network=(env)
[ "$(id -u)" = 0 ] || unshare --user --map-root-user --net --mount true 2>/dev/null || network=("${as_root[@]}")
"${network[@]}" true ||
  fail 'users may not make namespaces here; run: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0'

# The tests of faults give one server 10,700 connections; each is an open file.
files=11500
hard=$(ulimit -Hn)
[ "$hard" = unlimited ] || [ "$hard" -ge $files ] || ulimit -Hn $files 2>/dev/null ||
  fail "the hard limit of open files is $hard, the tests need $files; run: sudo prlimit --nofile=$files --pid $$"
ulimit -n "$(ulimit -Hn)"

# --- steps -------------------------------------------------------------------------------------

run=target/run
rm -rf $run
mkdir -p $run
# Every crate is compiled once here: what rustc would keep for the next time costs time.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
TIMEFORMAT='%R %U %S'

# Ends at the first command that fails, also in a function.
strictly() (
  set -e
  "$@"
)

# step NAME COMMAND…: runs a command, its output goes to the log. A failure ends the lane.
step() {
  local name=$1 status
  shift
  echo "$name" >"$run/$lane.now"
  set +e
  { time strictly "$@" >"$run/$name.log" 2>&1 </dev/null; } 2>"$run/$name.time"
  status=$?
  set -e
  if [ $status != 0 ]; then
    { printf '\n== %s has failed (exit code %s): %s\n' "$name" $status "$*"; tail -n 100 "$run/$name.log"; } >&2
    exit 1
  fi
  printf '%4d s  %-18s %s\n' $SECONDS "$name" "$(tail -n 1 "$run/$name.log" | cut -c -100)"
  rm "$run/$lane.now"
}

binary=target/release/hydrant
release_lane() {
  lane=release
  step build cargo build --quiet --release
  step faults python3 tests/faults/run.py $binary --seconds 2
  step network "${network[@]}" python3 tests/faults/network.py $binary --seconds 2
  step conformance bash tests/conformance.sh $binary
  step k6 bash tests/k6.sh $binary
  step clients bash tests/clients.sh $binary
  step pprof bash tests/pprof.sh $binary
}

debug_lane() {
  lane=debug
  # Compilers have a lower priority than the programs of the other lane.
  renice -n 5 $BASHPID >/dev/null
  step format check_format
  step crates python3 tests/crates.py
  step clippy check_lints
  step doc env RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --lib
  step fuzz bash tests/fuzz.sh 5
  step loom check_interleavings
  step test-mimalloc integration_tests --quiet --no-default-features --features mimalloc
  # jemalloc as ARM binaries have it, with a real server; its C code is compiled once more.
  JEMALLOC_SYS_WITH_LG_PAGE=16 step test-pages-64k integration_tests --quiet --no-default-features --features jemalloc mem
  # The test profile: figures have no meaning here, and five optimised programs take long to link.
  step benches cargo test --quiet --benches -- --test
  step test-doc cargo test --quiet --doc
  step test all_tests
}

# Integration tests wait most of their time, so more of them run at once than there are cores.
integration_tests() {
  RUST_TEST_THREADS=${RUST_TEST_THREADS:-8} cargo test --test it "$@"
}

all_tests() {
  cargo test --lib
  integration_tests
}

check_format() {
  cargo fmt --check
  cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
  cargo fmt --check --manifest-path tests/clients/drivers/tungstenite/Cargo.toml
}

# With and without profiles and TLS; tests and benches with the default features only, which they do
# not depend on.
check_lints() {
  cargo clippy --quiet --all-targets -- -D warnings
  cargo clippy --quiet --no-default-features --features mimalloc -- -D warnings
  cargo clippy --quiet --no-default-features --features mimalloc,profiling -- -D warnings
}

# The wrapper applies to Hydrant only, so dependencies are not compiled once more.
check_interleavings() {
  RUSTC_WORKSPACE_WRAPPER=$PWD/tests/loom.sh cargo test --quiet --lib --no-default-features --features mimalloc loom_tests
}

progress() {
  while sleep 30; do
    printf '%4d s  running: %s\n' $SECONDS "$(cat $run/*.now 2>/dev/null | paste -sd ' ')"
  done
}

# A process group for each, so that all programs of a lane can be ended.
set -m
release_lane &
lanes=$!
debug_lane &
lanes+=" $!"
progress &
groups="$lanes $!"
set +m
end() { for group in $groups; do kill -- "-$group" 2>/dev/null || true; done; }
trap end EXIT
trap 'exit 130' INT TERM
left=$lanes
while [ -n "${left// /}" ]; do
  wait -n -p ended $left || fail "a step has failed, see above; its log is in $run"
  left=${left/$ended/}
done

printf '\n%-18s %8s %8s\n' step seconds 'CPU s'
for file in $run/*.time; do
  awk -v name="$(basename "$file" .time)" '{ printf "%-18s %8.0f %8.0f\n", name, $1, $2 + $3 }' "$file"
done | sort -k2,2nr
printf '%-18s %8d\n\n' total $SECONDS
cat $run/test.log
