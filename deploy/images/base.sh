#!/usr/bin/env bash
# Makes a Debian with the packages of the images, for places where no ordinary base image can be pulled, as an archive
# in the user's cache; prints its path. Needs mmdebstrap, and root. Half a minute, once for each list of packages.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
directory=${XDG_CACHE_HOME:-$HOME/.cache}/cloudclaw/images
suite=bookworm

say() { printf 'images: %s\n' "$*" >&2; }

packages=$(grep -v '^#' deploy/images/slot/packages.txt)
archive=$directory/base-$(printf '%s\n' "$suite" "$packages" | sha256sum | cut -c1-16).tar
if [ ! -e "$archive" ]; then
  [ "$(id -u)" = 0 ] || { say "mmdebstrap needs root here; give BASE=IMAGE"; exit 1; }
  command -v mmdebstrap >/dev/null || { say "mmdebstrap is missing: run deploy/setup.sh docker, or give BASE=IMAGE"; exit 1; }
  mkdir -p "$directory"
  exec 9>"$directory/lock"
  flock 9 # another set-up may be at it
  if [ ! -e "$archive" ]; then
    say "making a $suite base with mmdebstrap"
    rm -f "$directory"/base-*.tar*
    # What is not quite there must not be taken for it.
    mmdebstrap --quiet --variant=minbase --include="$(printf '%s\n' "$packages" | paste -sd,)" --format=tar \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' "$suite" "$archive.new" >&2
    mv "$archive.new" "$archive"
  fi
fi
printf '%s\n' "$archive"
