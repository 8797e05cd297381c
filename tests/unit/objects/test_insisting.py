"""Calls to an object store that are made again when one fails."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cloudclaw.errors import NotFoundError, QuotaExceededError, UnavailableError
from cloudclaw.objects.insisting import HELD, PAUSES, InsistingObjects
from cloudclaw.objects.memory import MemoryObjects


class InstantClock:
    """Notes the pauses and makes none."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def wall(self) -> float:
        return 0.0

    def boottime(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


class Flaky(MemoryObjects):
    """Fails the next calls with `errors`, whole puts after they took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.calls = 0

    def _trouble(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        done = await super().put(name, data, if_absent=if_absent)
        self._trouble()
        return done

    async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        self._trouble()
        return await super().put_stream(name, chunks)

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._trouble()
        return await super().get(name, offset=offset, length=length)


def away(times: int) -> list[Exception]:
    return [UnavailableError("away") for _ in range(times)]


async def pieces(size: int, piece: int = 1 << 20) -> AsyncIterator[bytes]:
    while size > 0:
        yield bytes([size % 251]) * min(piece, size)
        size -= piece


@pytest.fixture
def below() -> Flaky:
    return Flaky()


@pytest.fixture
def clock() -> InstantClock:
    return InstantClock()


@pytest.fixture
def store(below: Flaky, clock: InstantClock) -> InsistingObjects:
    return InsistingObjects(below, clock)


async def test_a_call_that_fails_now_and_then_succeeds(
    store: InsistingObjects, below: Flaky, clock: InstantClock
) -> None:
    below.errors = away(2)
    assert await store.put("a", b"x") is True
    below.errors = away(3)
    assert await store.get("a") == b"x"
    assert clock.pauses == [*PAUSES[:2], *PAUSES]


async def test_a_store_that_stays_away_is_told_of(store: InsistingObjects, below: Flaky) -> None:
    below.errors = away(9)
    with pytest.raises(UnavailableError, match="away"):
        await store.get("a")
    assert below.calls == len(PAUSES) + 1


@pytest.mark.parametrize("error", [QuotaExceededError("full", reason="OBJECT_STORE_FULL"), NotFoundError("no")])
async def test_other_errors_pass_at_once(store: InsistingObjects, below: Flaky, error: Exception) -> None:
    below.errors = [error]
    with pytest.raises(type(error)):
        await store.get("a")
    assert below.calls == 1


async def test_a_conditional_put_is_made_once(store: InsistingObjects, below: Flaky) -> None:
    below.errors = away(1)
    with pytest.raises(UnavailableError):
        await store.put("a", b"x", if_absent=True)
    assert below.calls == 1


@pytest.mark.parametrize("size", [0, 1, HELD - 1, HELD, HELD + 1, 3 * HELD + 5])
async def test_a_stream_arrives_whole_whatever_its_length(store: InsistingObjects, below: Flaky, size: int) -> None:
    assert await store.put_stream("a", pieces(size)) == size
    assert await below.get("a") == b"".join([piece async for piece in pieces(size)])


async def test_a_short_stream_is_sent_again_and_a_long_one_is_not(store: InsistingObjects, below: Flaky) -> None:
    below.errors = away(1)
    assert await store.put_stream("a", pieces(100)) == 100
    below.errors = away(1)
    with pytest.raises(UnavailableError):
        await store.put_stream("b", pieces(2 * HELD))


async def test_a_stream_whose_source_fails_stores_nothing(store: InsistingObjects, below: Flaky) -> None:
    async def broken(size: int) -> AsyncIterator[bytes]:
        async for piece in pieces(size):
            yield piece
        raise ValueError("the source broke")

    for size in (10, 2 * HELD):
        with pytest.raises(ValueError, match="source"):
            await store.put_stream("a", broken(size))
    assert [info.name async for info in store.list("")] == []
