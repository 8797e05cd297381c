#!/bin/sh
# Installs the packages that the base image does not bring; on a base that has them all it reaches for nothing.
set -eu

wanted=$(grep -v '^#' "$(dirname "$0")/packages.txt")
missing=
for package in $wanted; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  apt-get -qq update
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing
  rm -rf /var/lib/apt/lists/*
fi
