#!/usr/bin/env bash
# Runs a command with a Docker engine: the one that answers already, else one that is started for that time.
#
#   deploy/images/engine.sh COMMAND…
#
# An engine that is started here is root's, has its data in ~/.cache/cloudclaw/docker/images, no network of its own, and
# is stopped when the command ends.
set -euo pipefail

say() { printf 'engine: %s\n' "$*" >&2; }

if docker version >/dev/null 2>&1; then exec "$@"; fi
[ "$(id -u)" = 0 ] && command -v dockerd >/dev/null ||
  { say "no Docker engine answers at ${DOCKER_HOST:-the default socket}, and starting one needs root"; exit 1; }

data=${XDG_CACHE_HOME:-$HOME/.cache}/cloudclaw/docker/images
mkdir -p "$data"
exec 8>"$data.lock"
flock 8
run=$(mktemp -d /tmp/cloudclaw-engine-XXXXXX)
export DOCKER_HOST=unix://$run/sock
say "starting an engine at $DOCKER_HOST"
dockerd --data-root "$data" --exec-root "$run/exec" --pidfile "$run/pid" --host "$DOCKER_HOST" --bridge none \
  --iptables=false --ip-forward=false --ip-masq=false >"$run/log" 2>&1 8>&- &
engine=$!
trap 'kill "$engine"; wait "$engine" || true; rm -rf "$run"' EXIT
until docker version >/dev/null 2>&1; do
  kill -0 "$engine" 2>/dev/null || { tail -n 20 "$run/log" >&2; exit 1; }
  sleep 0.1
done
"$@" 8>&-
