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
        self._deaths = 0

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self._directory / "log" / f"{self.spec.name}.log"

    async def run(self) -> None:
        """Start it, and again whenever it dies. Raises `ChildGaveUpError` when it dies before it ever served
        (three times, or once without restarts); later deaths without restarts leave it dead."""
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
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self.spec.stop_seconds)
        except TimeoutError:
            say(f"{self.spec.name} did not stop within {self.spec.stop_seconds:g} s; killing it")
            process.kill()
            await process.wait()

    def tail(self, lines: int = 15) -> str:
        """The last of its output."""
        if not self.log.exists():
            return ""
        return "\n".join("    " + line for line in self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _live(self) -> int:
        """One life; answers its exit code, negative after a signal."""
        parent = os.getpid()
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
                preexec_fn=lambda: _die_with(parent),
            )
        pid_file = self._directory / "run" / f"{self.spec.name}.pid"
        temporary = pid_file.with_suffix(".new")
        temporary.write_text(str(self._process.pid))
        temporary.replace(pid_file)
        return await self._process.wait()


def _die_with(parent: int) -> None:
    """In the child, before it is exec'd: SIGTERM when dev dies, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def say(line: str) -> None:
    """A line to the person who started dev."""
    sys.stderr.write(f"dev: {line}\n")
    sys.stderr.flush()
