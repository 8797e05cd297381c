"""Child processes: started, watched, started again, and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
RESTART_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 15.0
SHORT_LIFE: Final = 5.0
"""Seconds. A child that lives shorter than this again and again is started ever more slowly."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start one child.

    Attributes:
        name: as in `DIR/run/NAME.pid` and `DIR/log/NAME.log`.
        argv: program and arguments.
        environment: the whole of it.
        stop_seconds: how long it may take to stop before it is killed.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 15.0


class ChildGaveUpError(Exception):
    """A child died and is not started again, or dies at once however often it is started."""


class Child:
    """One child. `run` keeps it alive until `stop`."""

    def __init__(self, spec: ChildSpec, directory: Path, *, restart: bool) -> None:
        self.spec = spec
        self._directory = directory
        self._restart = restart
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()
        """Set by the caller once it has served; after that its deaths are survived."""
        self.left_dead = False
        """It died after it had served, and is not started again."""
        self._deaths = 0
        self._idle = asyncio.Event()
        """`run` is not at work."""
        self._idle.set()

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self._directory / "log" / f"{self.spec.name}.log"

    async def run(self) -> None:
        """Start it, and again whenever it dies. Raises `ChildGaveUpError` when it dies before it ever served
        (three times, or once without restarts); later deaths without restarts leave it dead."""
        self._idle.clear()
        try:
            await self._keep_alive()
        finally:
            self._idle.set()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        pause = RESTART_PAUSE
        while not self._stopping.is_set():
            started = loop.time()
            code = await self._live()
            if self._stopping.is_set():
                return
            self._deaths += 1
            if not self.ready.is_set() and (not self._restart or self._deaths >= 3):
                raise ChildGaveUpError(
                    f"{self.spec.name} ended with {_describe(code)} before it served:\n{self.tail()}"
                )
            if not self._restart:
                say(f"{self.spec.name} ended with {_describe(code)}; not started again (--no-restart)")
                self.left_dead = True
                return
            pause = min(pause * 2, LONGEST_PAUSE) if loop.time() - started < SHORT_LIFE and self._deaths > 2 else (
                RESTART_PAUSE
            )  # fmt: skip
            say(f"{self.spec.name} ended with {_describe(code)}; starting it again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when it takes too long; returns when it is gone."""
        self._stopping.set()
        self._terminate()
        try:
            await asyncio.wait_for(self._idle.wait(), self.spec.stop_seconds)
        except TimeoutError:
            say(f"{self.spec.name} did not stop within {self.spec.stop_seconds:g} s; killing it")
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
            await self._idle.wait()

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            # One that was stopped hears of it only when it goes on.
            self._process.send_signal(signal.SIGCONT)

    def tail(self, lines: int = 15) -> str:
        """The last of its output."""
        if not self.log.exists():
            return ""
        return "\n".join("    " + line for line in self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _live(self) -> int:
        """One life; answers its exit code, negative after a signal."""
        parent = os.getpid()
        pid_file = self._directory / "run" / f"{self.spec.name}.pid"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                env=dict(self.spec.environment),
                cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C on the terminal reaches dev alone, which then stops them in order.
                start_new_session=True,
                preexec_fn=lambda: _begin(parent, pid_file),
            )
        if self._stopping.is_set():
            # `stop` came while it was being started, and found nothing to end.
            self._terminate()
        return await self._process.wait()


def _begin(parent: int, pid_file: Path) -> None:
    """In the child, before it is exec'd: SIGTERM when dev dies, even by SIGKILL; and its pid file, so that the file
    names it before it does anything."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    temporary = pid_file.with_suffix(".new")
    temporary.write_text(str(os.getpid()))
    temporary.replace(pid_file)


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def say(line: str) -> None:
    """A line to the person who started dev."""
    sys.stderr.write(f"dev: {line}\n")
    sys.stderr.flush()
