#!/usr/bin/env bash
# Compares Hydrant with servers that anyone can install, in one run and with the same client:
#
#     bash benches/peers.sh            10,000 connections, 5 rounds, about 10 minutes
#     bash benches/peers.sh --test     50 connections, 1 round: checks that everything works
#     bash benches/peers.sh --help     rounds, cells, candidates
#
# Installs the peers under target/peers, in exact versions, without running their install scripts.
# peers/peers.py says what is measured and how; README.md says how to read it.
set -euo pipefail
cd "$(dirname "$0")/.."

bun_version=1.4.5
ws_version=8.23.0
prefix=target/peers

fail() { printf 'peers.sh: %s\n' "$*" >&2; exit 1; }

command -v cargo >/dev/null || fail 'cargo is missing: install Rust 1.95 or newer, https://rustup.rs'
command -v python3 >/dev/null || fail 'python3 is missing: install Python 3.10 or newer'
command -v node >/dev/null || fail 'node is missing: install Node 20 or newer; the peer ws runs on it'
command -v npm >/dev/null || fail 'npm is missing: install it; the peers are npm packages'

installed() { [ "$(node -p "require('./$prefix/node_modules/$1/package.json').version" 2>/dev/null)" = "$2" ]; }

case " $* " in
  *' --help '* | *' -h '*) ;;
  *)
    if ! installed bun "$bun_version" || ! installed ws "$ws_version"; then
      mkdir -p "$prefix"
      [ -f "$prefix/package.json" ] || echo '{"private":true}' >"$prefix/package.json"
      npm install --prefix "$prefix" --silent --no-audit --no-fund --ignore-scripts --save-exact \
        "bun@$bun_version" "ws@$ws_version" ||
        fail "bun $bun_version and ws $ws_version could not be installed: check the connection to the npm registry"
    fi
    cargo build --quiet --release
    ;;
esac

# exec: the script becomes this process, so that Ctrl-C reaches no other.
exec python3 benches/peers/peers.py "$@"
