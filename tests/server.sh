# To be sourced by scripts that need a server: `start_server LOG COMMAND…` runs one in the background and waits until it
# listens, `until_connected NUMBER` until it has so many clients, `stop_server` ends it and insists on exit code 0. Sets $server (its pid, empty when there is none) and $address.
# A script that fails in between has to end $server itself, in a trap.

server=
address=

start_server() {
  local log=$1
  shift
  # The last run's address must be gone before the first look.
  : >"$log"
  # In a subshell that becomes the command, so that $server is the server's pid and not a shell's.
  (exec "$@" 2>"$log" </dev/null) &
  server=$!
  server_log=$log
  for _ in $(seq 100); do
    address=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\) .*/\1/p' "$log")
    [ -z "$address" ] || return 0
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  cat "$log" >&2
  echo "${0##*/}: the server does not listen" >&2
  return 1
}

until_connected() {
  for _ in $(seq 600); do
    exec 3<>"/dev/tcp/${address%:*}/${address#*:}"
    printf 'GET /debug/mem HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    ! grep -q "^{\"allocator\":\"[a-z]*\",\"connections\":$1," <&3 || return 0
    sleep 0.1
  done
  echo "${0##*/}: there are not $1 clients after a minute" >&2
  return 1
}

stop_server() {
  local pid=$server
  server=
  kill "$pid"
  wait "$pid" && return 0
  cat "$server_log" >&2
  echo "${0##*/}: the server did not end with exit code 0" >&2
  return 1
}
