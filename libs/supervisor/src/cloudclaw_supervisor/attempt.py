"""One attempt in a slot: its sandbox, log, deadline and limits, until its exit is known."""

from __future__ import annotations

import json
import os
import selectors
import time

from cloudclaw_supervisor import frames, protocol
from cloudclaw_supervisor import loop as loops
from cloudclaw_supervisor.freezing import Freezer
from cloudclaw_supervisor.inputs import Inputs
from cloudclaw_supervisor.limits import Watch
from cloudclaw_supervisor.server import RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloudclaw_supervisor.cgroup import Groups
    from cloudclaw_supervisor.config import Config
    from cloudclaw_supervisor.loop import Loop, Timer
    from cloudclaw_supervisor.sandbox import Sandbox
    from cloudclaw_supervisor.spool import Spool

_READ_BYTES = 1 << 16
_SIGXFSZ = 25
_SCAN_STEP = 0.002

_FULL = b"\n[cloudclaw] The log is full: what follows is dropped, and the task is ended (LOG_LIMIT).\n"

LOG, ORPHANED = "log_limit", "orphaned"
_UNSPECIFIC = frozenset(("", "run_timeout", "silence_timeout"))
"""Reasons that a limit found at the end explains better."""


class Attempt:
    """Runs in `sandbox` what the manager asked for.

    Args:
        identity: the manager's description of the attempt, given back as it is.
        roots: directories on disk that the attempt fills.
        limits: the manager's limits.
        deadline: boot time at which the attempt is frozen.
        last_contact: boot time of the last message of a manager.
        on_change: called after freeze, thaw and exit.
        on_growth: called after growth of the log.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        groups: Groups,
        sandbox: Sandbox,
        spool: Spool,
        identity: dict[str, Any],
        roots: list[str],
        limits: dict[str, int],
        deadline: float,
        last_contact: Callable[[], float],
        on_change: Callable[[], None],
        on_growth: Callable[[], None],
    ):
        self._loop = loop
        self._config = config
        self._groups = groups
        self._sandbox = sandbox
        self._last_contact = last_contact
        self._on_change = on_change
        self._on_growth = on_growth
        self._open = {sandbox.stdout: frames.STDOUT, sandbox.stderr: frames.STDERR}
        self._killed = ""
        self._started = time.time()
        self._fenced = False
        self._deadline_timer: Timer | None = None
        self._grace_timer: Timer | None = None
        memory = limits["memory_bytes"] if config.watch_memory else 0
        self.watch = Watch(groups, sandbox, roots, limits["disk_bytes"], memory, config.bwrap)
        self.freezer = Freezer(loop, groups, sandbox)
        self.spool = spool
        self._log_limit = min(config.log_limit, limits.get("log_bytes") or config.log_limit)
        self._log_full = False
        self._noted = 0
        self._inputs = Inputs(sandbox.stdin)
        self.identity = identity
        self.uid: str = identity["uid"]
        self.last_output = loops.boottime()
        self.exit: dict[str, Any] | None = None
        self._watch_timer = loop.call_in(config.watch_interval, self._look)
        self.read_output()
        self.set_deadline(deadline)

    @property
    def phase(self) -> str:
        """The attempt's phase, as the manager names it."""
        if self.exit is not None:
            return "exited"
        return "frozen" if self.freezer.done else "running"

    @property
    def paused(self) -> bool:
        """Frozen because the manager wanted a pause, and not because a deadline passed."""
        return self.exit is None and self.freezer.done and not self._fenced

    @property
    def input_open(self) -> bool:
        """`input` still reaches the program."""
        return self.exit is None and not self._killed and self._inputs.open

    @property
    def inputs(self) -> list[str]:
        """Ids of the inputs that were taken."""
        return list(self._inputs.ids)

    def note(self, data: bytes) -> None:
        """Log what is not the program's own; it does not count against the program's limit."""
        if data:
            self.spool.append(frames.SYSTEM, data)
            self._noted += len(data)
            self._on_growth()

    def input(self, message_id: str, note: bytes, data: bytes, close: bool) -> bool:
        """Log `note` and give `data` to the program; False, and nothing done, when that happened before.

        Raises:
            RequestError: it cannot be taken now, or never more.
        """
        if self._inputs.known(message_id):
            return False
        if self.exit is not None or self._killed:
            raise RequestError("the program has ended or is being ended", protocol.INPUT_CLOSED)
        self._inputs.check(data)
        if note and self.spool.held + len(note) > self._config.spool_limit + protocol.MAX_INPUT:
            raise RequestError("its log waits to be made durable", protocol.INPUT_FULL)
        self.note(note)
        self._inputs.take(message_id, data, close)
        return True

    def set_deadline(self, deadline: float) -> None:
        """Freeze at boot time `deadline` (design rule 3)."""
        self._deadline = deadline
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        if self.exit is None:
            self._deadline_timer = self._loop.call_at(deadline, self._fence)

    def resume(self, deadline: float) -> bool:
        """End a pause: go on until `deadline`, and answer True. It stays frozen, and the answer is False, when a
        deadline has passed meanwhile or `deadline` has: then only a manager that read the token may `thaw`."""
        if self.exit is not None:
            return False
        if not self._fenced and deadline <= loops.boottime():
            self.set_deadline(deadline)
            self._fence()
        if self._fenced:
            return False
        self.thaw(deadline)
        return True

    def thaw(self, deadline: float) -> None:
        """Go on until `deadline`; one that has passed freezes again at once."""
        self._fenced = False
        self.freezer.thaw()
        self.set_deadline(deadline)
        self._on_change()

    def stop(self, reason: str, grace: float) -> None:
        """End it: SIGTERM, then SIGKILL after `grace` seconds; at once when frozen or without grace."""
        if self.exit is not None:
            return
        self._killed = self._killed or reason
        if grace <= 0 or self.freezer.engaged:
            self.freezer.kill()
        elif self._grace_timer is None:
            self._sandbox.terminate()
            self._grace_timer = self._loop.call_in(grace, self.freezer.kill)

    def forget(self, upto: int) -> None:
        """Drop what is durable elsewhere, and read on when the spool was full."""
        self.spool.forget(upto)
        if self.exit is None:
            self.read_output()

    def read_output(self) -> None:
        """Watch the task's output unless the spool is full; then the task waits in write(2)."""
        full = self.spool.held >= self._config.spool_limit
        for fd in self._open:
            if full:
                self._loop.unwatch(fd)
            else:
                self._loop.watch(fd, selectors.EVENT_READ, lambda fd=fd: self._read(fd))  # type: ignore[misc]

    def ended(self, status: int) -> None:
        """Bubblewrap ended, and with it every process inside: take the rest of the output and record it."""
        for timer in (self._deadline_timer, self._grace_timer, self._watch_timer):
            if timer is not None:
                timer.cancel()
        for fd in list(self._open):
            while fd in self._open and self._take(fd):
                continue
        self._sandbox.close()
        self._sandbox.close_output()
        self.exit = self._record(status)
        self.watch.close()
        self.freezer.reset()
        self.spool.write_exit(json.dumps(self.exit).encode())
        self._on_change()

    def _record(self, status: int) -> dict[str, Any]:
        said = self._sandbox.status
        number = said.signal()
        code = said.code
        if code is None:  # the first process was killed, and everything with it
            code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            number = code - 128 if code > 128 else 0
        by_kernel = self.watch.kernel_limit()
        limit = by_kernel or ("disk_limit" if number == _SIGXFSZ else "")
        killed = limit if limit and self._killed in _UNSPECIFIC else self._killed
        record = {
            "code": code,
            "signal": number,
            "killed": killed,
            "oom_killed": "memory_limit" in (by_kernel, killed),
            "log_end": self.spool.end,
            "started": self._started,
            "ended": time.time(),
        }
        # Without a status line this is not the task's doing: bubblewrap could not build the sandbox, or the first
        # process, which the task cannot touch, was killed from outside. (A dash that cannot fork says nothing
        # either, but ends by itself: the task's own limit of processes may be too low.)
        if said.code is None and not killed and (not said.ready or number):
            words = "; ".join(said.messages) or f"it ended with code {code}"
            record["failed"] = f"the sandbox {'broke' if said.ready else 'could not be built'}: {words}"
        return record

    def _fence(self) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        self._fenced = True
        self.freezer.freeze(self._frozen_by_deadline)

    def _frozen_by_deadline(self) -> None:
        self._on_change()
        frozen = loops.boottime()

        def look() -> None:
            if self._deadline > loops.boottime():
                return  # a manager came, moved the deadline, and decides about the thaw
            due = max(frozen, self._last_contact()) + self._config.orphan_ttl
            if due <= loops.boottime():
                self.stop(ORPHANED, 0)
            else:
                self._deadline_timer = self._loop.call_at(due, look)

        look()

    def _look(self) -> None:
        now = loops.boottime()
        hit = self.watch.look() or self.watch.look_at_disk(now)
        if hit:
            if self._killed in _UNSPECIFIC:
                self._killed = hit
            self.freezer.kill()
            return
        wait = _SCAN_STEP if self.watch.scanning else self._config.watch_interval
        self._watch_timer = self._loop.call_in(wait, self._look)

    def _read(self, fd: int) -> None:
        if self._take(fd) and self.spool.held >= self._config.spool_limit:
            self.read_output()

    def _take(self, fd: int) -> bool:
        """Move one read's worth from the task to the spool; False when there is no more."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.unwatch(fd)
            del self._open[fd]
            return False
        self.last_output = loops.boottime()
        if self._log_full:
            return True
        room = self._log_limit - (self.spool.end - self._noted)
        if room > 0:
            self.spool.append(self._open[fd], data[:room])
        if len(data) > room:
            self._log_full = True
            self.spool.append(frames.SYSTEM, _FULL)
            self.stop(LOG, 0)
        self._on_growth()
        return True
