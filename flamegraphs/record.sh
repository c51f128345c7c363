#!/usr/bin/env bash
# Makes every picture in this directory again: record.sh, without arguments; about five minutes. Builds the release
# binary. Server and load have a core each where the machine has two.
set -euo pipefail
cd "$(dirname "$0")/.."

clients=10000
log=target/flamegraphs.log
fail() { printf 'record.sh: %s\n' "$*" >&2; exit 1; }
for program in curl python3; do command -v "$program" >/dev/null || fail "$program is missing"; done
# The first two cores that this process may use, if there are two.
on_server=() on_load=()
read -ra cores <<<"$(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)))')"
if command -v taskset >/dev/null && [ ${#cores[@]} -ge 2 ]; then
  on_server=(taskset -c "${cores[0]}")
  on_load=(taskset -c "${cores[1]}")
fi

# In each of the two processes a client is a file.
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge $((clients + 200)) ] || fail "$clients clients need as many open files (ulimit -n)"
cargo build --quiet --release
# A copy: another build may put another binary in its place while this runs.
cp target/release/hydrant target/hydrant-flamegraphs
binary=target/hydrant-flamegraphs

. tests/server.sh
load=
trap 'kill $server $load 2>/dev/null || true' EXIT

# start FANOUT: a server of its own for each scenario, so that no heap has a history.
start() {
  start_server "$log" "${on_server[@]}" "$binary" --listen 127.0.0.1:0 --tick 0 --shards 1 --fanout "$1" --heap-sample 16KiB
}

# load ARGUMENTS…: `hydrant load`, in the background.
load() {
  "${on_load[@]}" "$binary" load "$@" --url "ws://$address/ws/bench" --pid "$server" --quiet >"$log.load" 2>&1 &
  load=$!
}

# picture NAME PATH: records one.
picture() {
  curl -sSf -o "flamegraphs/$1.svg" "http://$address/debug/pprof/$2" || fail "no picture $1"
  local bytes
  bytes=$(wc -c <"flamegraphs/$1.svg")
  [ "$bytes" -le $((150 * 1024)) ] || fail "$1.svg has $bytes bytes: a picture has at most 150 KiB"
  printf '%s.svg: %s bytes\n' "$1" "$bytes"
}

# loaded: waits for the end of the load, which has to have got everything it expected.
loaded() {
  wait "$load" || { cat "$log.load" >&2; fail 'the load was not carried out whole'; }
  load=
}

cpu='profile.svg?seconds=10&frequency=500'
for fanout in direct mailbox; do
  for in_flight in 1 16; do
    start "$fanout"
    load fanout --connections "$clients" --in-flight "$in_flight" --payload 100 --duration 20s
    until_connected "$clients"
    # Past the warm-up.
    sleep 3
    picture "cpu-$fanout-$in_flight" "$cpu"
    loaded
    stop_server
  done

  start "$fanout"
  load churn --connections 2000 --churn-rate 2000 --duration 20s
  until_connected 2000
  sleep 3
  picture "cpu-$fanout-connecting" "$cpu"
  loaded
  stop_server

  start "$fanout"
  load idle --connections "$clients" --duration 20s
  until_connected "$clients"
  picture "heap-$fanout-$clients" heap.svg
  picture "heap-$fanout-$clients-allocated" 'heap.svg?sample=alloc_space'
  # They are here still.
  until_connected "$clients"
  loaded
  until_connected 0
  picture "heap-$fanout-left" heap.svg
  stop_server
done
