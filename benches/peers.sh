#!/usr/bin/env bash
# Hydrant beside servers that anyone can install, in one run, driven by the same client:
#
#     bash benches/peers.sh            10,000 connections, five rounds, about ten minutes
#     bash benches/peers.sh --test     50 connections, one round: does it still work; figures of no meaning
#     bash benches/peers.sh --help     rounds, cells, candidates
#
# Installs the peers under target/peers, in exact versions, without running their install scripts. What is measured and
# how, is in peers/peers.py; how to read it, in README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

bun_version=1.4.5
ws_version=8.23.0
prefix=target/peers

fail() { printf 'peers.sh: %s\n' "$*" >&2; exit 1; }

command -v cargo >/dev/null || fail 'cargo is missing: install Rust 1.95 or newer, https://rustup.rs'
command -v python3 >/dev/null || fail 'python3 is missing: install Python 3.10 or newer'
command -v node >/dev/null || fail 'node is missing: install Node 20 or newer, the peer ws runs on it'
command -v npm >/dev/null || fail 'npm is missing: the peers are npm packages'

installed() { [ "$(node -p "require('./$prefix/node_modules/$1/package.json').version" 2>/dev/null)" = "$2" ]; }

case " $* " in
  *' --help '* | *' -h '*) ;;
  *)
    if ! installed bun "$bun_version" || ! installed ws "$ws_version"; then
      mkdir -p "$prefix"
      [ -f "$prefix/package.json" ] || echo '{"private":true}' >"$prefix/package.json"
      npm install --prefix "$prefix" --silent --no-audit --no-fund --ignore-scripts --save-exact \
        "bun@$bun_version" "ws@$ws_version" ||
        fail "bun $bun_version and ws $ws_version could not be installed: check that the npm registry can be reached"
    fi
    cargo build --quiet --release
    ;;
esac

# In its place, so that Ctrl-C reaches it and nobody else.
exec python3 benches/peers/peers.py "$@"
