"""From signals to exit codes, with real processes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from cloudclaw.lifecycle import Stack

_PROGRAM = """
import asyncio, sys
from cloudclaw.errors import UnavailableError
from cloudclaw.lifecycle import run_service

async def main(stop):
    print("up", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    {after}

sys.exit(asyncio.run(run_service(main, stop_timeout={timeout}, one_signal={one_signal})))
"""


@asynccontextmanager
async def service(
    after: str = "pass", timeout: float | None = None, one_signal: float = 0.0
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM.format(after=after, timeout=timeout, one_signal=one_signal),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await line(process, b"up")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process, text: bytes) -> None:
    """Wait for a line of its output that begins with `text`; its log lines go by."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while not (found := await process.stdout.readline()).startswith(text):
            assert found, f"ended without {text!r}"


async def code(process: asyncio.subprocess.Process) -> int:
    return await asyncio.wait_for(process.wait(), 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_stops_in_order(number: signal.Signals) -> None:
    async with service() as process:
        process.send_signal(number)
        await line(process, b"stopping")
        assert await code(process) == 0


async def test_a_second_signal_aborts() -> None:
    async with service("await asyncio.Event().wait()") as process:
        process.terminate()
        await line(process, b"stopping")
        process.terminate()
        assert await code(process) == 128 + signal.SIGTERM


async def test_signals_that_come_at_once_are_one() -> None:
    async with service("sys.stdin.readline()", one_signal=60.0) as process:
        for _ in range(5):
            process.terminate()
        await line(process, b"stopping")
        for _ in range(5):
            process.terminate()
        assert process.stdin is not None
        process.stdin.close()
        assert await code(process) == 0


async def test_a_service_that_does_not_stop_in_time_is_aborted() -> None:
    async with service("await asyncio.Event().wait()", timeout=0.1) as process:
        process.terminate()
        assert await code(process) == 124


async def test_a_failure_is_exit_code_one() -> None:
    async with service("raise UnavailableError('no port')") as process:
        process.terminate()
        assert await code(process) == 1


async def test_the_stack_releases_newest_first_and_all_of_it() -> None:
    released = []

    async def release(name: str) -> None:
        released.append(name)
        if name == "leases":
            raise OSError("gone")

    stack = Stack()
    for name in ("clients", "leases", "intake"):
        stack.push(name, partial(release, name))
    with pytest.raises(ExceptionGroup) as caught:
        await stack.close()
    assert released == ["intake", "leases", "clients"]
    assert [type(e) for e in caught.value.exceptions] == [OSError]


async def test_a_step_that_hangs_does_not_hold_up_the_others() -> None:
    released = asyncio.Event()

    async def last() -> None:
        released.set()

    stack = Stack()
    stack.push("last", last)
    stack.push("hangs", asyncio.Event().wait, timeout=0.05)
    with pytest.raises(ExceptionGroup):
        await stack.close()
    assert released.is_set()
