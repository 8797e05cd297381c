#!/usr/bin/env bash
# Builds CloudClaw's images on a Docker engine, and prints one tag a line.
#
#   deploy/images/build.sh [IMAGE…]     IMAGE: slot, agent, scheduler, workspace, pool-manager, gateway (default: all)
#
#   BASE=IMAGE        base image of all of them, instead of those that the Dockerfiles name
#   BASE=mmdebstrap   a Debian made here by mmdebstrap (as root), for places where no image can be pulled
#   DOCKER_HOST       the engine, as for `docker`
#
# Without BASE: the Dockerfiles' own when they can be pulled, otherwise mmdebstrap's. Every image gets a tag that is a
# hash of what it is made of, and is not built again while the engine has that; and the tag `latest`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ordinary=debian:bookworm-slim

say() { printf 'images: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
hash_of() { sha256sum | cut -c1-16; } # of what comes in
has() { docker image inspect "$1" >/dev/null 2>&1; }
files() { git ls-files -z --cached --others --exclude-standard -- "$@" | sort -z | xargs -0 sha256sum; }

made_base() { # prints the tag of a Debian made here
  local archive tag
  archive=$(deploy/images/base.sh)
  tag=${archive##*/base-}
  tag=cloudclaw/base:${tag%.tar}
  if ! has "$tag"; then docker import "$archive" "$tag" >/dev/null; fi
  echo "$tag"
}

base() { # prints the base to use, empty for the Dockerfile's own
  case ${BASE:-} in
    mmdebstrap) made_base ;;
    ?*) echo "$BASE" ;;
    *)
      if has "$ordinary" || timeout 60 docker pull --quiet "$ordinary" >/dev/null 2>&1; then
        echo
      else
        say "$ordinary cannot be pulled"
        made_base
      fi
      ;;
  esac
}

build() { # name, folder of the context, hash of the inputs, further arguments of docker build…
  local name=$1 context=$2 inputs=$3 tag
  shift 3
  tag=cloudclaw/$name:$inputs
  if ! has "$tag"; then
    say "building $tag"
    local log # of interest only when it fails
    log=$(docker build --tag "$tag" "$@" "$context" 2>&1) || { printf '%s\n' "$log" >&2; return 1; }
  fi
  docker tag "$tag" "cloudclaw/$name:latest"
  echo "$tag"
}

with_base() { # prints the argument that sets the base
  [ -z "$base_image" ] || printf -- '--build-arg\nBASE=%s\n' "$base_image"
}

build_slot() {
  local arguments
  mapfile -t arguments < <(with_base)
  build slot deploy/images/slot "$( { echo "$base_image"; files deploy/images/slot; } | hash_of)" "${arguments[@]}"
}

build_agents() { # the agents alone; those that are installed here, when they are
  local prefix hash tag
  prefix=$(deploy/agents/install.sh --where)
  hash=${prefix##*/}
  tag=cloudclaw/agents:$hash
  if ! has "$tag"; then
    if [ -d "$prefix" ]; then
      say "importing $prefix as $tag (2 GB)"
      tar -C "$prefix" --owner=0 --group=0 --transform 's,^\.,usr/local/lib/cloudclaw/agents,S' -c . |
        docker import - "$tag" >/dev/null
    else
      build agents deploy/agents "$hash" --file deploy/images/agents/Dockerfile >/dev/null
    fi
  fi
  echo "$tag"
}

build_agent() {
  local slot agents
  slot=$(build_slot)
  agents=$(build_agents)
  build agent deploy/images/agent "$( { echo "$slot $agents"; files deploy/images/agent; } | hash_of)" \
    --build-arg "BASE=$slot" --build-arg "AGENTS=$agents"
}

build_service() { # name
  local name=$1 hash context uv arguments
  hash=$( { echo "$base_image"; files uv.lock pyproject.toml "deploy/images/$name" libs "services/$name"; } | hash_of)
  context=
  if ! has "cloudclaw/$name:$hash"; then
    uv=$(command -v uv || echo "${XDG_CACHE_HOME:-$HOME/.cache}/cloudclaw/uv/bin/uv")
    context=$(mktemp -d "${TMPDIR:-/tmp}/cloudclaw-image-XXXXXX")
    cp "deploy/images/$name/Dockerfile" "$context"
    "$uv" export --quiet --frozen --no-dev --no-emit-workspace --package "cloudclaw-$name" >"$context/requirements.txt"
    local package
    for package in $(needs "$name"); do
      "$uv" build --quiet --wheel --package "$package" --out-dir "$context/wheels"
    done
    mapfile -t arguments < <(with_base)
    if [[ $base_image == cloudclaw/base:* ]]; then
      # Containers of such a place reach no index; this host's pip does.
      python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version 3.11 \
        --dest "$context/wheels" --requirement "$context/requirements.txt" >&2
      arguments+=(--build-arg PIP_NO_INDEX=1)
    fi
  fi
  build "$name" "$context" "$hash" "${arguments[@]}"
  rm -rf "$context"
}

needs() { # name of a service; prints the packages of this repository that it is made of
  echo "cloudclaw cloudclaw-$1"
  if [ "$1" = pool-manager ]; then echo cloudclaw-supervisor; fi
}

command -v docker >/dev/null || fail "docker is missing: run deploy/setup.sh"
docker version >/dev/null 2>&1 || fail "no Docker engine answers at ${DOCKER_HOST:-the default socket}"
base_image=$(base)
wanted=("$@")
if [ ${#wanted[@]} -eq 0 ]; then wanted=(slot agent scheduler workspace pool-manager gateway); fi
for image in "${wanted[@]}"; do
  case $image in
    slot) build_slot ;;
    agent) build_agent ;;
    scheduler | workspace | pool-manager | gateway) build_service "$image" ;;
    *) fail "there is no image $image" ;;
  esac
done
