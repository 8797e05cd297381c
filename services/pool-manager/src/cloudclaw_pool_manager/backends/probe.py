"""Can tasks be isolated here? If not, say what to install or allow; nothing ever runs unisolated."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends import mounts
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_supervisor import seccomp

_TRIAL = [
    "--unshare-user",
    "--disable-userns",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-net",
    "--ro-bind",
    "/",
    "/",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--cap-drop",
    "ALL",
    "--as-pid-1",
    "--new-session",
]
_TRIAL_WITHIN = 20


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs of the host that a slot needs.

    Attributes:
        bwrap: bubblewrap.
        shell: dash, the first process of every sandbox.
    """

    bwrap: Path
    shell: Path


def find_tools() -> Tools:
    """Look for them on PATH.

    Raises:
        PreconditionError: one is missing; the message says what to install.
    """
    return Tools(
        bwrap=_find("bwrap", "bubblewrap is missing: install the package `bubblewrap` (0.8 or newer)"),
        shell=_find("dash", "dash is missing: install the package `dash`; it is the first process of every sandbox"),
    )


def probe(config: BackendConfig) -> Tools:
    """Try what every slot relies on, as the uid that it would run as.

    Raises:
        PreconditionError: it does not work here; the message says what to do.
    """
    tools = find_tools()
    machine = platform.machine()
    try:
        seccomp.program(machine)
    except KeyError:
        raise PreconditionError(
            f"there is no seccomp filter for {machine}: run the node on x86_64 or aarch64", subject="seccomp"
        ) from None
    root = os.geteuid() == 0
    _try_sandbox(tools, config.uid_base if root else None)
    if root:
        try_mapping(config)
    return tools


def _find(name: str, advice: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise PreconditionError(advice, subject=name)
    return Path(os.path.realpath(found))


def _try_sandbox(tools: Tools, uid: int | None) -> None:
    try:
        done = subprocess.run(
            [tools.bwrap, *_TRIAL, "--", tools.shell, "-c", "exit 0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            timeout=_TRIAL_WITHIN,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PreconditionError(f"bubblewrap could not be tried: {error}", subject="bwrap") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
        raise PreconditionError(f"bubblewrap cannot make a sandbox here: {words}. {_advice()}", subject="bwrap")


def _advice() -> str:
    """What usually stands in the way, judged by what this host says."""
    for name, bad, advice in (
        ("user/max_user_namespaces", "0", "set sysctl user.max_user_namespaces to 10000 or more"),
        ("kernel/unprivileged_userns_clone", "0", "set sysctl kernel.unprivileged_userns_clone to 1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "set sysctl kernel.apparmor_restrict_unprivileged_userns to 0, or load a profile for bwrap with `userns,`",
        ),
    ):
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == bad:
            return f"To allow it, {advice}."
    return (
        "Unprivileged user namespaces must be allowed; in a container its seccomp profile must let through "
        "clone and unshare of user namespaces, mount, umount2 and pivot_root, and no path under /proc may be masked."
    )


def try_mapping(config: BackendConfig) -> None:
    """Try idmapped mounts where the slots are to be. Raises `PreconditionError` saying what to do."""
    try:
        config.node_dir.mkdir(parents=True, exist_ok=True)
        mapping = mounts.owner_mapping(config.files_uid, config.uid_base)
        try:
            directory = os.open(config.node_dir, os.O_PATH | os.O_DIRECTORY)
            try:
                os.close(mounts.clone_mapped(directory, mapping))
            finally:
                os.close(directory)
        finally:
            os.close(mapping)
    except OSError as error:
        raise PreconditionError(
            f"{config.node_dir} cannot be mounted with its owners mapped: {error}. Put the node's directory on a "
            "file system with idmapped mounts (ext4, xfs, btrfs, tmpfs from Linux 6.3), keep CAP_SYS_ADMIN, or run "
            "the pool-manager as an ordinary user",
            subject="idmapped mounts",
        ) from error
