"""Starting a supervisor: lock the slot, make its files and groups, run it. Blocking; called in a thread."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloudclaw_supervisor
from cloudclaw_pool_manager.backends.cgroups import SlotGroups
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.backends.layout import SlotFiles, host_system
from cloudclaw_pool_manager.backends.probe import Tools
from cloudclaw_pool_manager.ports.backend import Mechanism, SlotFailedError
from cloudclaw_supervisor.system import DIRECTORIES

_START_WITHIN = 30.0
_UNLOCKED_WITHIN = 10.0

# -I -S: nothing of the environment, the user or site-packages; the package alone is put on the path.
_ENTRY = "import sys; sys.path.insert(0, {!r}); from cloudclaw_supervisor.__main__ import main; main()"


class SlotLockedError(SlotFailedError):
    """The slot's supervisor, or its sandbox, is alive."""


def try_lock(files: SlotFiles) -> int:
    """Lock the slot and return the descriptor that holds it.

    Raises:
        SlotLockedError: somebody else holds it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(files.lock, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise SlotLockedError(f"{files.name} is locked by another supervisor") from error
    return fd


def lock_when_gone(files: SlotFiles) -> int:
    """Lock the slot of a supervisor that was killed: its sandbox's first process may need a moment.

    Raises:
        SlotLockedError: it is still locked after ten seconds.
    """
    limit = time.monotonic() + _UNLOCKED_WITHIN
    while True:
        try:
            return try_lock(files)
        except SlotLockedError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.001)


def kill_rest(files: SlotFiles, groups: SlotGroups) -> None:
    """Kill what a dead supervisor left in its groups.

    Raises:
        SlotFailedError: something does not die.
    """
    try:
        groups.destroy()
    except OSError as error:
        raise SlotFailedError(f"the processes of {files.name} do not end: {error}") from error


def clean(files: SlotFiles, groups: SlotGroups) -> None:
    """Remove what a slot left that is locked by the caller, processes first.

    Raises:
        SlotFailedError: something does not go away.
    """
    try:
        groups.destroy()
        files.remove()
    except OSError as error:
        raise SlotFailedError(f"{files.name} cannot be cleaned: {error}") from error


def spawn(config: BackendConfig, tools: Tools, files: SlotFiles, groups: SlotGroups, number: int) -> None:
    """Start the supervisor of slot `number`; when this returns it listens.

    Raises:
        SlotLockedError: the slot is taken.
        SlotFailedError: it did not start; the message has its last words.
    """
    lock = try_lock(files)
    try:
        clean(files, groups)
        root = os.geteuid() == 0
        uid = config.uid_base + number if root else os.geteuid()
        extra = beside_system(config.read_only)
        try:
            system = host_system(tools.shell)
            files.create(uid, system, extra)
            groups.create(uid)
        except OSError as error:
            raise SlotFailedError(f"{files.name} cannot be made: {error}") from error
        settings = supervisor_settings(config, files, groups)
        settings |= {
            "directory": str(files.root),
            "uid": uid if root else None,
            "stage": root,
            "bwrap": str(tools.bwrap),
            "read_only": system.read_only,
            "extra": [(path, path) for path in extra],
            "prebuild": root,
            "lock_fd": lock,
            "enter": groups.supervisor_enters(),
        }
        _run(config.python or os.path.realpath(sys.executable), files, lock, settings)
    finally:
        os.close(lock)  # the supervisor has its own copy


def beside_system(read_only: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a template's directories that the system's do not bring already."""
    return tuple(path for path in read_only if Path(path).parts[1] not in DIRECTORIES)


def supervisor_settings(config: BackendConfig, files: SlotFiles, groups: SlotGroups) -> dict[str, Any]:
    """What every supervisor is told, wherever it runs (`cloudclaw_supervisor.config`)."""
    enforcement = groups.enforcement
    return {
        "slot": files.name,
        "debug": config.debug,
        "groups": groups.for_supervisor(),
        "watch_memory": enforcement.memory is Mechanism.WATCHED,
        "count_processes": enforcement.pids is Mechanism.RLIMIT,
        "tmp_bytes": config.defaults.tmp_bytes,
        "open_files": config.open_files,
        "orphan_ttl": config.orphan_ttl,
        "log_limit": config.log_limit,
        "spool_limit": config.spool_limit,
        "segment_bytes": config.segment_bytes,
        "watch_interval": config.watch_interval,
        "egress": config.egress,
    }


def _run(python: str, files: SlotFiles, lock: int, settings: dict[str, object]) -> None:
    package = str(Path(cloudclaw_supervisor.__file__).parent.parent)
    # What it says goes to a file: it outlives this process.
    errors = os.open(files.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", _ENTRY.format(package)],
            input=json.dumps(settings).encode(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(lock,),
            env={},
            timeout=_START_WITHIN,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlotFailedError(f"the supervisor of {files.name} did not start: {error}") from error
    finally:
        os.close(errors)
    if done.returncode:
        words = files.errors.read_text(errors="replace").strip().splitlines()[-1:]
        raise SlotFailedError(f"the supervisor of {files.name} did not start: {' '.join(words)}")
