"""What a docker pool is constructed with."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.domain.attempt import Limits

SUPERVISOR_BYTES: Final = 64 << 20
"""Memory beside the task's, for the supervisor, bubblewrap and the pages of the spool."""
SUPERVISOR_PIDS: Final = 32

_ENGINE: Final = re.compile(r"(unix:///|https?://|tcp://)\S+")


@dataclass(frozen=True, slots=True)
class DockerConfig(BackendConfig):
    """One node's slots in containers. `python` names the interpreter in the image.

    Attributes:
        image: of the slots; holds Python 3.9 or newer, bubblewrap and dash. It is never pulled.
        engine: the engine's socket, on this host and in its mount namespace.
        runtime: the engine's runtime, such as `runsc` or `kata`; empty for its default.
        memory_bytes: limit of the container, all in all; 0: the pool's limit and what a supervisor needs.
        cpus: the same in cores; 0: the pool's limit.
        pids: the same in processes and threads; 0: the pool's limit and what a supervisor needs.
        apparmor: AppArmor profile of the containers; empty for the engine's default, which forbids bubblewrap its
            mounts. Used where the engine has AppArmor.
        seccomp_extra: system calls that the container may make beyond the generated profile.
        engine_timeout: seconds that the engine has to answer.
    """

    image: str = "cloudclaw/agent:latest"
    engine: str = "unix:///var/run/docker.sock"
    runtime: str = ""
    memory_bytes: int = 0
    cpus: float = 0.0
    pids: int = 0
    apparmor: str = "cloudclaw-slot"
    seccomp_extra: tuple[str, ...] = ()
    engine_timeout: float = 30.0

    def __post_init__(self) -> None:
        if not self.image.strip():
            raise InvalidArgumentError("give the image of the slots", field="image")
        if not _ENGINE.fullmatch(self.engine):
            raise InvalidArgumentError("give the engine's socket as unix:///PATH", field="engine")
        for name in ("memory_bytes", "cpus", "pids"):
            if getattr(self, name) < 0:
                raise InvalidArgumentError("not below 0", field=name)
        if self.memory_bytes and self.memory_bytes < 2 * SUPERVISOR_BYTES:
            raise InvalidArgumentError(f"at least {2 * SUPERVISOR_BYTES}, or 0", field="memory_bytes")
        if self.pids and self.pids < 2 * SUPERVISOR_PIDS:
            raise InvalidArgumentError(f"at least {2 * SUPERVISOR_PIDS}, or 0", field="pids")

    @property
    def container_memory(self) -> int:
        """Bytes of memory of a container."""
        return self.memory_bytes or self.defaults.memory_bytes + SUPERVISOR_BYTES

    @property
    def container_pids(self) -> int:
        """Processes of a container."""
        return self.pids or self.defaults.pids + SUPERVISOR_PIDS

    @property
    def container_millis(self) -> int:
        """Thousandths of a core of a container."""
        return int(self.cpus * 1000) or self.defaults.cpu_millis

    def within(self, limits: Limits) -> Limits:
        """`limits` cut to what the container has room for, so that a task hits its own limit, which names it."""
        return replace(
            limits,
            cpu_millis=min(limits.cpu_millis, self.container_millis),
            memory_bytes=min(limits.memory_bytes, self.container_memory - SUPERVISOR_BYTES),
            pids=min(limits.pids, self.container_pids - SUPERVISOR_PIDS),
        )
