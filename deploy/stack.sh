#!/usr/bin/env bash
# A local stack in the background: `claw dev`, its state and its pid file in one folder.
#
#   deploy/stack.sh up DIR       start it (or say that it runs) and return when it is ready
#   deploy/stack.sh down DIR     stop it and return when it is gone; the state stays
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
action=${1:?usage: stack.sh up|down DIR}
dir=${2:?usage: stack.sh up|down DIR}
pid_file=$dir/claw-dev.pid
log=$dir/claw-dev.log
ready=$dir/ready.json

# The pid that the file names, if that process is still the one that `up` started: pids come round
# again, so its start time is in the file too.
running_pid() {
  local pid started
  { read -r pid started <"$pid_file"; } 2>/dev/null || return 1
  [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ] && printf '%s\n' "$pid"
}

start_time() { # field 22 of /proc/PID/stat, counted after the command's closing bracket; nothing for a zombie
  local stat
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  set -- ${stat##*) }
  if [ "$1" != Z ]; then printf '%s\n' "${20:-}"; fi
}

case $action in
  up)
    if pid=$(running_pid); then
      echo "already running (pid $pid): $ready"
      exit 0
    fi
    mkdir -p "$dir"
    chmod 700 "$dir"
    rm -f "$ready"
    setsid nohup .venv/bin/claw dev --data-dir "$dir" >"$log" 2>&1 </dev/null &
    pid=$!
    printf '%s %s\n' "$pid" "$(start_time "$pid")" >"$pid_file"
    echo "starting (pid $pid, log $log)"
    deadline=$((SECONDS + 60))
    until [ -s "$ready" ]; do
      if ! kill -0 "$pid" 2>/dev/null; then
        rm -f "$pid_file"
        echo "it ended before it was ready; the last lines of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
      fi
      if [ "$SECONDS" -ge "$deadline" ]; then
        echo "not ready after 60 s; look into $log and $dir/log, and stop it with 'make down'" >&2
        exit 1
      fi
      sleep 0.1
    done
    echo "ready; endpoints and a token are in $ready"
    ;;
  down)
    if ! pid=$(running_pid); then
      rm -f "$pid_file"
      echo "not running"
      exit 0
    fi
    kill -TERM "$pid"
    deadline=$((SECONDS + 60))
    while running_pid >/dev/null; do
      if [ "$SECONDS" -ge "$deadline" ]; then
        echo "pid $pid still runs 60 s after SIGTERM; look into $log" >&2
        exit 1
      fi
      sleep 0.1
    done
    rm -f "$pid_file"
    echo "stopped; the state stays in $dir"
    ;;
  *)
    echo "usage: stack.sh up|down DIR" >&2
    exit 2
    ;;
esac
