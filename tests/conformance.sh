#!/usr/bin/env bash
# Runs the WebSocket conformance cases of the Autobahn test suite against a Hydrant binary:
#
#     tests/conformance.sh target/release/hydrant
#
# The first run installs kosoku, which runs Autobahn's own case files without Python 2, into
# target/venv-conformance; that needs Python 3.10 or newer and a network. The server listens on a
# free loopback port. All cases run against /echo, except those of the compression extension (12.*
# and 13.*), which Hydrant does not offer.
#
# A case passes only as OK or INFORMATIONAL; NON-STRICT is a failure. Exit codes: 0 if all expected
# cases ran and passed, 1 if not, 2 if the run could not be set up, 64 for wrong usage. The report,
# with the bytes of every case, is target/conformance/report/index.html.
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

# --- the suite ---------------------------------------------------------------------------------

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

# --- the server --------------------------------------------------------------------------------

. "$here/server.sh"
runner=
trap 'kill $runner $server 2>/dev/null || true' EXIT

# Limits for the largest cases: messages of 16 MiB (9.1.6) and of 65,536 fragments (9.3.1).
log=$work/server.log
start_server "$log" "$binary" --listen 127.0.0.1:0 --tick 0 --message-bytes 16MiB --message-fragments 100000 \
    --outbox-bytes 64MiB --pending-bytes 64MiB || exit 2

# --- the run -----------------------------------------------------------------------------------

"$venv/bin/python" "$here/conformance/run.py" "ws://$address/echo" "$work/report" &
runner=$!
status=0
wait "$runner" || status=$?
runner=
stop_server || status=1
exit "$status"
