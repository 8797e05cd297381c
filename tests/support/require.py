"""Components that a test needs: a missing one skips loudly on a developer's machine and fails in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cloudclaw"


def missing(what: str, how: str) -> NoReturn:
    """Skip the test because `what` is not there, or fail it when the environment says `CI`."""
    message = f"{what} is missing: {how}"
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def require_binary(name: str) -> Path:
    """The built binary `name` (etcd, etcdctl, minio, grpcurl) from the cache, or from PATH."""
    built = CACHE / "bin" / name
    if built.exists():
        return built
    found = shutil.which(name)
    if found is None:
        missing(name, "run `make setup`, which builds it with the Go toolchain")
    return Path(found)


def require_agent(name: str) -> Path:
    """The installed agent `name` (claude, opencode, openclaw, codex, gemini), or `node`, by its stable path."""
    found = CACHE / "agents" / "current" / "bin" / name
    if not found.exists():
        missing(name, "run `make setup`, which installs the agents with npm")
    return found


def require_root() -> None:
    """Skip unless the tests run as root, which attaching files by idmapped mounts needs."""
    if os.geteuid() != 0:
        missing("root", "run the tests as root to cover slots with a uid of their own")


def require_bubblewrap() -> Path:
    """The bubblewrap binary."""
    found = shutil.which("bwrap")
    if found is None:
        missing("bubblewrap", "install Debian's package `bubblewrap`")
    return Path(found)
