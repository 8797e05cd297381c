"""The writing end of a pipe, by a real pipe and the real loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from cloudclaw_supervisor.loop import Loop
from cloudclaw_supervisor.outlet import Outlet

PIPE = 65_536


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = signal.getsignal(signal.SIGCHLD)
    yield Loop(lambda: None)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def pipe(loop: Loop) -> Iterator[tuple[int, Outlet]]:
    read, write = os.pipe()
    os.set_blocking(write, False)
    outlet = Outlet(loop, write)
    yield read, outlet
    outlet.close()
    os.close(read)


def served(loop: Loop, until: Callable[[], bool]) -> None:
    """Run the loop until `until`."""

    def look() -> None:
        if until():
            loop.stop()
        else:
            loop.call_in(0.001, look)

    look()
    loop.run()


def test_what_fits_into_the_pipe_is_written_at_once(pipe: tuple[int, Outlet]) -> None:
    read, outlet = pipe
    outlet.write(b"one ")
    outlet.write(b"two")
    assert outlet.queued == 0
    assert os.read(read, 100) == b"one two"


def test_the_rest_waits_and_comes_in_order(loop: Loop, pipe: tuple[int, Outlet]) -> None:
    read, outlet = pipe
    sent = [bytes([number]) * 50_000 for number in range(5)]
    for piece in sent:
        outlet.write(piece)
    assert 250_000 - PIPE <= outlet.queued < 250_000
    ended = []
    outlet.finish(lambda: ended.append(True))
    got = b""

    def drained() -> bool:
        nonlocal got
        got += os.read(read, 1 << 20)
        return bool(ended)

    served(loop, drained)
    while data := os.read(read, 1 << 20):
        got += data
    assert got == b"".join(sent)
    assert outlet.queued == 0


def test_nothing_is_taken_after_the_end(pipe: tuple[int, Outlet]) -> None:
    read, outlet = pipe
    outlet.write(b"all")
    outlet.finish()
    outlet.write(b"more")
    assert not outlet.open
    assert os.read(read, 100) == b"all"
    assert os.read(read, 100) == b""


def test_a_reader_that_is_gone_ends_it_and_the_end_is_told(loop: Loop) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    outlet = Outlet(loop, write)
    os.close(read)
    outlet.write(b"nobody reads this")
    assert (outlet.open, outlet.queued) == (False, 0)
    ended = []
    outlet.finish(lambda: ended.append(True))
    assert ended == [True]
