# Functions for scripts that need a server; to be sourced.
#
#     start_server LOG COMMAND…   starts a server in the background and waits until it listens
#     until_connected NUMBER      waits until it has this many clients
#     stop_server                 ends it and checks that its exit code is 0
#
# They set $server, the pid (empty without a server), $address, where clients connect, and $admin,
# where publishing and administration answer (the same for one port). A script that fails in between
# has to end $server itself, in a trap.

server=
address=
admin=

start_server() {
  local log=$1
  shift
  # Removes the addresses of an earlier run.
  : >"$log"
  # The subshell becomes the command, so that $server is the pid of the server, not of a shell.
  (exec "$@" 2>"$log" </dev/null) &
  server=$!
  server_log=$log
  for _ in $(seq 100); do
    address=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\) for \(clients\|everything\).*/\1/p' "$log")
    admin=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\) for \(publishing\|everything\).*/\1/p' "$log")
    [ -z "$address" ] || [ -z "$admin" ] || return 0
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  cat "$log" >&2
  echo "${0##*/}: the server does not listen" >&2
  return 1
}

until_connected() {
  for _ in $(seq 600); do
    exec 3<>"/dev/tcp/${admin%:*}/${admin#*:}"
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
