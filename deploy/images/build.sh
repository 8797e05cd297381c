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
    docker build --quiet --tag "$tag" "$@" "$context" >/dev/null
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

command -v docker >/dev/null || fail "docker is missing: run deploy/setup.sh"
docker version >/dev/null 2>&1 || fail "no Docker engine answers at ${DOCKER_HOST:-the default socket}"
base_image=$(base)
wanted=("$@")
if [ ${#wanted[@]} -eq 0 ]; then wanted=(slot agent scheduler workspace pool-manager gateway); fi
for image in "${wanted[@]}"; do
  case $image in
    slot) build_slot ;;
    *) fail "there is no image $image" ;;
  esac
done
