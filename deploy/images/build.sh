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
shopt -s inherit_errexit

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

build_service() { # what all services have
  local hash context=$work/service arguments
  hash=$( { echo "$base_image"; requirements cloudclaw; files deploy/images/service; } | hash_of)
  mkdir -p "$context/packages"
  if ! has "cloudclaw/service:$hash"; then
    cp deploy/images/service/{Dockerfile,install.sh} "$context"
    requirements cloudclaw >"$context/packages/requirements.txt"
    mapfile -t arguments < <(with_base)
    wheels "$context/packages"
  fi
  build service "$context" "$hash" "${arguments[@]}" $no_index
}

build_one_service() { # name
  local name=$1 base hash context=$work/$1 shared
  base=$(build_service)
  hash=$( { echo "$base"; files uv.lock pyproject.toml "deploy/images/$name" libs "services/$name"; } | hash_of)
  mkdir -p "$context/packages/own"
  if ! has "cloudclaw/$name:$hash"; then
    cp "deploy/images/$name/Dockerfile" "$context"
    # shellcheck disable=SC2046
    requirements "cloudclaw-$name" $(requirements cloudclaw | sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p') \
      >"$context/packages/requirements.txt"
    for shared in $(needs "$name"); do
      if [ ! -d "$work/own/$shared" ]; then
        "$uv" build --quiet --wheel --package "$shared" --out-dir "$work/own/$shared"
      fi
      cp "$work/own/$shared"/*.whl "$context/packages/own"
    done
    wheels "$context/packages"
  fi
  build "$name" "$context" "$hash" --build-arg "BASE=$base" $no_index
}

requirements() { # package of this repository, further options; prints what it needs besides such packages, locked
  "$uv" export --quiet --frozen --no-dev --no-emit-workspace --no-header --no-annotate --package "$@"
}

wheels() { # folder with requirements.txt
  # Containers on a base that was made here reach no index; this host's pip does.
  if [ -n "$no_index" ] && grep -q == "$1/requirements.txt"; then
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
      --dest "$1" --requirement "$1/requirements.txt" >&2
  fi
}

needs() { # name of a service; prints the packages of this repository that it is made of
  echo "cloudclaw cloudclaw-$1"
  if [ "$1" = pool-manager ]; then echo cloudclaw-supervisor; fi
}

command -v docker >/dev/null || fail "docker is missing: run deploy/setup.sh"
docker version >/dev/null 2>&1 || fail "no Docker engine answers at ${DOCKER_HOST:-the default socket}"
uv=$(command -v uv || echo "${XDG_CACHE_HOME:-$HOME/.cache}/cloudclaw/uv/bin/uv")
work=$(mktemp -d "${TMPDIR:-/tmp}/cloudclaw-images-XXXXXX")
trap 'rm -rf "$work"' EXIT
base_image=$(base)
no_index=
if [[ $base_image == cloudclaw/base:* ]]; then no_index="--build-arg PIP_NO_INDEX=1"; fi
wanted=("$@")
if [ ${#wanted[@]} -eq 0 ]; then wanted=(slot agent scheduler workspace pool-manager gateway); fi
for image in "${wanted[@]}"; do
  case $image in
    slot) build_slot ;;
    agent) build_agent ;;
    service) build_service ;;
    scheduler | workspace | pool-manager | gateway) build_one_service "$image" ;;
    *) fail "there is no image $image" ;;
  esac
done
