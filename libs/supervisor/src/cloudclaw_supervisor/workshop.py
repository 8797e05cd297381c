"""Where a slot's sandboxes are built, one at a time; the waiting one is empty or holds a warm program."""

from __future__ import annotations

import os

from cloudclaw_supervisor import command, protocol, seccomp
from cloudclaw_supervisor.sandbox import Sandbox
from cloudclaw_supervisor.server import RequestError
from cloudclaw_supervisor.warm import Warm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloudclaw_supervisor.cgroup import Groups
    from cloudclaw_supervisor.config import Config
    from cloudclaw_supervisor.loop import Loop
    from cloudclaw_supervisor.server import Connection

    Request = dict[str, Any]

_BUILD_TRIES = 3


class Workshop:
    """Builds for one slot.

    Args:
        loop: serves the sandboxes.
        config: as the manager gave it.
        root: where the skeleton of the sandbox's `/` is.
        groups: which sandboxes enter.
        on_change: called when a sandbox became ready, and when a program became warm or failed to.

    Attributes:
        sandbox: the present one, waiting or in use, until `lost`.
        warm: the program in the waiting one; a failed one is remembered until the next start.
    """

    def __init__(self, loop: Loop, config: Config, root: str, groups: Groups, on_change: Callable[[], None]):
        self._loop = loop
        self._config = config
        self._root = root
        self._groups = groups
        self._on_change = on_change
        self._seccomp = os.memfd_create("seccomp")
        os.write(self._seccomp, seccomp.program(os.uname().machine, allow_tracing=config.debug))
        self._tmp_bytes = config.tmp_bytes
        self._condemned = False
        self._errors: list[str] = []
        self._waiting: list[tuple[Connection, Request]] = []
        self.sandbox: Sandbox | None = None
        self.warm: Warm | None = None

    @property
    def ready(self) -> bool:
        """A sandbox waits; what is in it does not keep it from being used."""
        return self.sandbox is not None and self.sandbox.status.ready and not self._condemned

    @property
    def warming(self) -> bool:
        """A program is in the waiting sandbox, ready or not."""
        return self.warm is not None and self.warm.running

    def rebuild(self) -> None:
        """Build the next one ahead, like the last one: the next attempt likely wants the same `/tmp`."""
        if self._config.prebuild:
            self._build(self._tmp_bytes)

    def prepare(self, connection: Connection, request: Request) -> None:
        """Answer when an empty sandbox with this `/tmp` waits, or at once when the warm program is there that the
        request names; a program that it does not name is discarded."""
        if not self._config.prebuild:
            connection.reply(request)
            return
        key, tmp_bytes = request.get("warm_key", ""), request["tmp_bytes"]
        if key:
            self._fitting(key, request["limits"])
            connection.reply(request)
            return
        if self.warm is not None and self.warm.running:
            self.warm.stop()
            self.warm = None
            self._condemn()
        if self.ready and self._tmp_bytes == tmp_bytes:
            connection.reply(request)
            return
        self._waiting.append((connection, request))
        if self.sandbox is None:
            self._build(tmp_bytes)
        elif self.ready:
            self._condemn()  # its end builds the one that is waited for

    def warm_up(self, request: Request) -> None:
        """Start a program in the waiting sandbox, after a `prepare`."""
        if self.warm is not None and self.warm.running:
            if self.warm.key == request["warm_key"]:
                return
            raise RequestError("another program is warm: prepare comes first")
        if not self.ready or self._tmp_bytes != request["limits"]["tmp_bytes"]:
            raise RequestError("no sandbox is ready: prepare comes first")
        assert self.sandbox is not None
        self.warm = Warm(
            self._loop, self._config, self._groups, self.sandbox, self._root, request, self._condemn, self._on_change
        )

    def take(self, request: Request, roots: list[str]) -> tuple[Sandbox, bool]:
        """The sandbox for an attempt, and whether its program runs in it already.

        Args:
            roots: the attempt's workspace and home, bound where trees cannot arrive later.
        """
        key, tmp_bytes = request.get("warm_key", ""), request["limits"]["tmp_bytes"]
        if key:
            self._fitting(key, request["limits"]).hand_over()
        elif not self._config.prebuild:
            self._build(tmp_bytes, [(roots[0], "/workspace"), (roots[1], "/home/agent")])
        elif self._condemned or self._tmp_bytes != tmp_bytes or self.warming:
            raise RequestError("no sandbox is ready: prepare comes first")
        if self.sandbox is None:
            raise RequestError("no sandbox is ready: prepare comes first")
        self.warm = None
        return self.sandbox, bool(key)

    def lost(self, status: int) -> None:
        """The waiting sandbox ended, and nobody's attempt was in it.

        Args:
            status: as wait(2) gave it.
        """
        sandbox, self.sandbox = self.sandbox, None
        assert sandbox is not None
        sandbox.close()
        was_warm = self._condemned or self.warming
        if self.warm is not None:
            self.warm.ended()
        sandbox.close_output()
        if not sandbox.status.ready:
            self._errors.append("; ".join(sandbox.status.messages) or f"wait status {status}")
        if self._waiting and len(self._errors) < _BUILD_TRIES:
            self._build(self._waiting[0][1]["tmp_bytes"])
            return
        waiting, self._waiting = self._waiting, []
        for connection, request in waiting:
            connection.refuse(request, RequestError(f"no sandbox could be built: {self._errors[-1:]}"))
        self._errors = []
        if was_warm and sandbox.status.ready:
            self.rebuild()

    def _fitting(self, key: str, limits: dict[str, int]) -> Warm:
        if self.warm is None or not self.warm.fits(key, limits):
            state = "nothing is warm" if self.warm is None else f"{self.warm.key!r} is {self.warm.state}"
            raise RequestError(f"{key!r} is not ready under these limits: {state}", protocol.NOT_WARM)
        return self.warm

    def _condemn(self) -> None:
        """Kill the waiting sandbox; its end builds the next one."""
        assert self.sandbox is not None
        self._condemned = True
        self.sandbox.kill()

    def _build(self, tmp_bytes: int, writable: list[tuple[str, str]] | None = None) -> None:
        config = self._config
        read_only = [] if config.stage else [*config.read_only, *config.extra]  # else they are in `root` already
        options = command.options(self._root, config.hostname, tmp_bytes, read_only, writable or [], config.egress)
        self._tmp_bytes = tmp_bytes
        self._condemned = False
        self.sandbox = Sandbox(
            self._loop,
            config.bwrap,
            options,
            self._seccomp,
            config.lock_fd,
            self._groups,
            config.open_files,
            self._built,
            config.egress,
        )

    def _built(self) -> None:
        self._errors = []
        waiting, self._waiting = self._waiting, []
        for connection, request in waiting:
            self.prepare(connection, request)
        self._on_change()
