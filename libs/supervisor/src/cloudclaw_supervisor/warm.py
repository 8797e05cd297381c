"""A program that waits, started, in the sandbox for an attempt that is not there yet."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import selectors

from cloudclaw_supervisor import protocol, script
from cloudclaw_supervisor.limits import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloudclaw_supervisor.cgroup import Groups
    from cloudclaw_supervisor.config import Config
    from cloudclaw_supervisor.loop import Loop, Timer
    from cloudclaw_supervisor.sandbox import Sandbox

_READ_BYTES = 1 << 16
_MOST_BEFORE_READY = 256 << 10
_LAST_WORDS = 300
_DRAIN_READS = 64
_FIXED = ("tmp_bytes", "file_bytes")
"""Limits that a program has from its start and keeps. The groups' can be changed while it runs."""


class Warm:
    """Starts the program that the manager asked for, and looks after it until an attempt takes over.

    Its output is nobody's: it is searched for the line that says that the program is ready, and dropped.

    Args:
        sandbox: a waiting one; taken over.
        root: where the skeleton of the sandbox's `/` is.
        request: what the manager asked for.
        condemn: kills the sandbox.
        on_change: called after each change of `state`.

    Attributes:
        key: the manager's name for the program.
        state: as a status tells it.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        groups: Groups,
        sandbox: Sandbox,
        root: str,
        request: dict[str, Any],
        condemn: Callable[[], None],
        on_change: Callable[[], None],
    ):
        limits: dict[str, int] = request["limits"]
        self._loop = loop
        self._interval = config.watch_interval
        self._sandbox = sandbox
        self._limits = limits
        self._processes = limits["pids"] if config.count_processes else 0
        self._pattern = re.compile(request["ready"].encode())
        self._condemn = condemn
        self._on_change = on_change
        memory = limits["memory_bytes"] if config.watch_memory else 0
        self._watch = Watch(groups, sandbox, [f"{root}/workspace"], limits["disk_bytes"], memory, config.bwrap)
        self._printed = 0
        self._line = b""
        self._words = b""
        self.key: str = request["warm_key"]
        self.state = protocol.WARMING
        for fd in (sandbox.stdout, sandbox.stderr):
            loop.watch(fd, selectors.EVENT_READ, lambda fd=fd: self._read(fd))  # type: ignore[misc]
        within: float = request["within"]
        self._late: Timer = loop.call_in(within, lambda: self._fail(f"it was not ready within {within:g} s"))
        self._look_timer: Timer = loop.call_in(self._interval, self._look)
        text = script.compose(request["argv"], request["env"], request["cwd"], limits["file_bytes"], self._processes)
        sandbox.stdin.write(base64.b64decode(request["stdin"]))
        sandbox.run(text, lambda: None)

    @property
    def running(self) -> bool:
        """It warms or is ready."""
        return self.state in (protocol.WARMING, protocol.READY)

    def fits(self, key: str, limits: dict[str, int]) -> bool:
        """An attempt that asks for `key` under `limits` can go on in it."""
        if self.state != protocol.READY or self.key != key:
            return False
        fixed = (*_FIXED, "pids") if self._processes else _FIXED
        return all(self._limits[name] == limits[name] for name in fixed) and not self._sandbox.task_ended()

    def stop(self) -> None:
        """Look after it no more: it is to be killed."""
        self._late.cancel()
        self._look_timer.cancel()
        for fd in (self._sandbox.stdout, self._sandbox.stderr):
            self._loop.unwatch(fd)

    def hand_over(self) -> None:
        """An attempt takes over: what was printed so far is not the attempt's."""
        self.stop()
        for fd in (self._sandbox.stdout, self._sandbox.stderr):
            # No more than a pipe holds: what it prints meanwhile, without end, is the attempt's after all.
            for _ in range(_DRAIN_READS):
                try:
                    if not os.read(fd, _READ_BYTES):
                        break
                except BlockingIOError:
                    break

    def ended(self) -> None:
        """Its sandbox is gone; what was read of its status lines and can be read of its output says why."""
        if not self.running:
            return
        for fd in (self._sandbox.stdout, self._sandbox.stderr):
            with contextlib.suppress(BlockingIOError):
                self._words = (self._words + os.read(fd, _READ_BYTES))[-_LAST_WORDS:]
        code = self._sandbox.status.code
        end = "it was killed" if code is None else f"it ended with code {code}{self._last_words()}"
        self._become_failed(self._watch.kernel_limit() or end)

    def _fail(self, why: str) -> None:
        if self.running:
            self._become_failed(why)
            self._condemn()

    def _become_failed(self, why: str) -> None:
        self.stop()
        self.state = protocol.WARM_FAILED + why
        self._on_change()

    def _look(self) -> None:
        hit = self._watch.look()
        if hit:
            self._fail(hit)
        elif self.running:
            self._look_timer = self._loop.call_in(self._interval, self._look)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.unwatch(fd)
        elif self.state == protocol.WARMING:
            self._printed += len(data)
            self._words = (self._words + data)[-_LAST_WORDS:]
            if fd == self._sandbox.stdout and self._says_ready(data):
                self.state = protocol.READY
                self._late.cancel()
                self._line = self._words = b""
                self._on_change()
            elif self._printed > _MOST_BEFORE_READY:
                self._fail(f"it printed {_MOST_BEFORE_READY} bytes before it was ready{self._last_words()}")

    def _says_ready(self, data: bytes) -> bool:
        *lines, self._line = (self._line + data).split(b"\n")
        return any(self._pattern.search(line) for line in lines)

    def _last_words(self) -> str:
        words = self._words.decode("utf-8", "replace").strip()
        return f": {words}" if words else ""
