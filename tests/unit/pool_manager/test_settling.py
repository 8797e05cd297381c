"""A turn counts when the agent has written it down: seen in its files, or when the time for that is over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cloudclaw_pool_manager.app.files import end_of
from cloudclaw_pool_manager.app.settling import LOOK, Settling
from cloudclaw_pool_manager.ports.runtime import Trace
from tests.support.kv import ManualClock
from tests.unit.pool_manager.rig import settle

TRACE = Trace(".parrot/s-1", b"call-1")


class Pages:
    """What the files show."""

    def __init__(self) -> None:
        self.shown: set[Trace] = set()
        self.looks = 0

    async def shows(self, trace: Trace) -> bool:
        self.looks += 1
        return trace in self.shown


async def passes(clock: ManualClock, seconds: float) -> None:
    await settle()
    await clock.advance(seconds)
    await settle()


@asynccontextmanager
async def settling(pages: Pages, clock: ManualClock, done: Callable[[], None]) -> AsyncIterator[Settling]:
    made = Settling(clock, pages, done)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


async def test_it_is_settled_as_soon_as_the_files_show_it() -> None:
    pages, clock, settled = Pages(), ManualClock(100.0), []
    async with settling(pages, clock, lambda: settled.append(clock.boottime())) as turns:
        began = clock.boottime()
        turns.turned(5.0, TRACE)
        await passes(clock, 0.5)
        turns.tick()
        assert (settled, turns.pending) == ([], True)
        pages.shown.add(TRACE)
        await passes(clock, LOOK)
        assert len(settled) == 1
        assert settled[0] < began + 1.0
        assert not turns.pending
        looks = pages.looks
        await passes(clock, 6)
        turns.tick()
        assert (len(settled), pages.looks) == (1, looks), "once, and nothing is looked at any more"


@pytest.mark.parametrize("trace", [None, TRACE])
async def test_what_never_shows_is_settled_when_its_time_is_over(trace: Trace | None) -> None:
    pages, clock, settled = Pages(), ManualClock(100.0), []
    async with settling(pages, clock, lambda: settled.append(1)) as turns:
        turns.turned(0.3, trace)
        await passes(clock, 0.2)
        turns.tick()
        assert not settled
        await passes(clock, 0.2)
        turns.tick()
        assert len(settled) == 1


async def test_what_needs_no_time_is_settled_at_once() -> None:
    settled: list[int] = []
    async with settling(Pages(), ManualClock(100.0), lambda: settled.append(1)) as turns:
        turns.turned(0.0, None)
        assert settled == [1]


async def test_a_turn_after_which_the_next_has_begun_is_settled_no_more() -> None:
    pages, clock, settled = Pages(), ManualClock(100.0), []
    async with settling(pages, clock, lambda: settled.append(1)) as turns:
        turns.turned(0.3, TRACE)
        await passes(clock, 0.1)
        turns.moved_on()
        pages.shown.add(TRACE)
        await passes(clock, 1)
        turns.tick()
        assert not settled
        second = Trace(TRACE.path, b"call-2")
        turns.turned(0.3, second)
        pages.shown.add(second)
        await passes(clock, LOOK)
        assert len(settled) == 1


def test_the_end_of_a_file_is_read_and_nothing_that_is_none(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "a").mkdir(parents=True)
    (home / "a/long").write_bytes(b"x" * 600_000 + b"end")
    secret = tmp_path / "secret"
    secret.write_bytes(b"hush")
    (home / "a/link").symlink_to(secret)
    (home / "out").symlink_to(tmp_path)
    os.mkfifo(home / "a/fifo")
    tail = end_of(tmp_path, "a/long")
    assert (len(tail), tail[-4:]) == (256 << 10, b"xend")
    for path in ("a/link", "out/secret", "../secret", "/etc/passwd", "a/fifo", "a", "a/none", "a\0b"):
        assert end_of(tmp_path, path) == b"", path
    assert end_of(tmp_path / "gone", "a/long") == b""
