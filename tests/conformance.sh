#!/usr/bin/env bash
# Runs the WebSocket conformance cases of the Autobahn test suite against a Hydrant binary:
#
#     tests/conformance.sh target/release/hydrant
#
# The cases come from kosoku, which drives Autobahn's own case files without Python 2. It is installed, at
# one fixed version, into target/venv-conformance on the first run (Python 3.10 or newer and network access are
# needed for that, once). The server is started on a free loopback port, and every case but those
# of the compression extension (12.* and 13.*, which Hydrant does not offer) is run against /echo.
#
# Strict: a case passes only as OK or INFORMATIONAL; NON-STRICT is a failure here. Exits 0 when every expected
# case ran and passed, 1 when not, 2 when the run could not be set up, 64 on wrong usage.
# Reports with the wire log of every case are left in target/conformance/report/index.html.
set -euo pipefail

kosoku_version=0.1.0

if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: tests/conformance.sh SERVER_BINARY" >&2
    exit 64
fi
binary=$1
if [ ! -f "$binary" ] || [ ! -x "$binary" ]; then
    echo "conformance: $binary is not an executable file" >&2
    exit 64
fi
binary=$(cd "$(dirname "$binary")" && pwd)/$(basename "$binary")

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$(dirname "$here")/target
venv=$target/venv-conformance
work=$target/conformance
mkdir -p "$work"

# --- the suite -------------------------------------------------------------------------------------------------

have_suite() {
    [ -x "$venv/bin/python" ] && "$venv/bin/python" - "$kosoku_version" <<'PY' >/dev/null 2>&1
import importlib.metadata, sys
import kosoku
sys.exit(importlib.metadata.version("kosoku") != sys.argv[1])
PY
}

if ! have_suite; then
    echo "conformance: installing kosoku $kosoku_version into target/venv-conformance"
    if ! { "${PYTHON:-python3}" -m venv --clear "$venv" &&
        "$venv/bin/python" -m pip install --disable-pip-version-check "kosoku==$kosoku_version"; } \
        >"$work/install.log" 2>&1 || ! have_suite; then
        echo "conformance: kosoku $kosoku_version could not be installed into target/venv-conformance;" \
            "this needs Python 3.10 or newer with venv, and network access (see target/conformance/install.log)" >&2
        exit 2
    fi
fi

# --- the server ------------------------------------------------------------------------------------------------

server=
runner=
stop_all() {
    if [ -n "$runner" ]; then
        kill "$runner" 2>/dev/null || true
        runner=
    fi
    [ -n "$server" ] || return 0
    local pid=$server
    server=
    kill "$pid" 2>/dev/null || true
    for _ in {1..100}; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The limits that the cases need: messages of 16 MiB (9.1.6), 65536 fragments in one message (9.3.1).
log=$work/server.log
: >"$log"
"$binary" --listen 127.0.0.1:0 --tick 0 --message-bytes 16MiB --message-fragments 100000 --outbox-bytes 64MiB --pending-bytes 64MiB \
    >"$work/server.out" 2>"$log" </dev/null &
server=$!

# Only whole lines count: `read` fails on one that is still being written.
port_of_log() {
    local line
    while IFS= read -r line; do
        if [[ $line =~ listening\ on\ ([^0-9]*)127\.0\.0\.1:([0-9]+) ]]; then
            echo "${BASH_REMATCH[2]}"
            return 0
        fi
    done <"$log"
    return 1
}

port=
for _ in {1..100}; do
    if port=$(port_of_log); then break; fi
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
if [ -z "$port" ]; then
    if kill -0 "$server" 2>/dev/null; then
        echo "conformance: the server did not say 'listening on 127.0.0.1:PORT' within 10 s; its last words:" >&2
    else
        echo "conformance: the server ended before it listened; its last words:" >&2
    fi
    tail -n 20 "$log" >&2
    exit 2
fi

# --- the run ---------------------------------------------------------------------------------------------------

status=0
"$venv/bin/python" "$here/conformance/run.py" "ws://127.0.0.1:$port/echo" "$work/report" &
runner=$!
wait "$runner" || status=$?
runner=

if ! kill -0 "$server" 2>/dev/null; then
    echo "conformance: the server ended during the run; its last words:" >&2
    tail -n 20 "$log" >&2
    status=1
fi
stop_all
if grep -n 'panicked at' "$log" >&2; then
    echo "conformance: the server panicked during the run" >&2
    status=1
fi
exit "$status"
