#!/usr/bin/env bash
# Records every picture in this directory again: `bash flamegraphs/record.sh`, about 5 minutes.
# Builds the release binary. With two cores or more, server and load have one each.
set -euo pipefail
cd "$(dirname "$0")/.."

clients=10000
log=target/flamegraphs.log
fail() { printf 'record.sh: %s\n' "$*" >&2; exit 1; }
for program in curl python3; do command -v "$program" >/dev/null || fail "$program is missing"; done
# The first two cores that this process may use, if it has two.
on_server=() on_load=()
read -ra cores <<<"$(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)))')"
if command -v taskset >/dev/null && [ ${#cores[@]} -ge 2 ]; then
  on_server=(taskset -c "${cores[0]}")
  on_load=(taskset -c "${cores[1]}")
fi

# Each client is one open file in the server and one in the load generator.
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge $((clients + 200)) ] || \
  fail "$clients clients need $((clients + 200)) open files: raise ulimit -n"
cargo build --quiet --release
# A copy: a build during this run would replace the binary.
cp target/release/hydrant target/hydrant-flamegraphs
binary=target/hydrant-flamegraphs

. tests/server.sh
load=
trap 'kill $server $load 2>/dev/null || true' EXIT

# start FANOUT: starts a fresh server, so that its heap holds nothing of an earlier scenario.
start() {
  start_server "$log" "${on_server[@]}" "$binary" \
    --listen 127.0.0.1:0 --tick 0 --shards 1 --fanout "$1" --heap-sample 16KiB
}

# load ARGUMENTS…: starts `hydrant load` in the background.
load() {
  "${on_load[@]}" "$binary" load "$@" --url "ws://$address/ws/bench" --pid "$server" --quiet >"$log.load" 2>&1 &
  load=$!
}

# picture NAME PATH: records one picture.
picture() {
  curl -sSf -o "flamegraphs/$1.svg" "http://$admin/debug/pprof/$2" || fail "$1 could not be recorded"
  local bytes
  bytes=$(wc -c <"flamegraphs/$1.svg")
  [ "$bytes" -le $((150 * 1024)) ] || fail "$1.svg has $bytes bytes: a picture has at most 150 KiB"
  printf '%s.svg: %s bytes\n' "$1" "$bytes"
}

# loaded: waits for the end of the load, which fails if a message is missing.
loaded() {
  wait "$load" || { cat "$log.load" >&2; fail 'the load generator failed; its output is above'; }
  load=
}

cpu='profile.svg?seconds=10&frequency=500'
for fanout in direct mailbox; do
  for in_flight in 1 16; do
    start "$fanout"
    load fanout --connections "$clients" --in-flight "$in_flight" --payload 100 --duration 20s
    until_connected "$clients"
    # The warm-up is over.
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
  # All clients must still be connected.
  until_connected "$clients"
  loaded
  until_connected 0
  picture "heap-$fanout-left" heap.svg
  stop_server
done
