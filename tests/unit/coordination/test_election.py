"""Leader election: one leader at a time, terms that rise, and no leader that cannot commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest

from cloudclaw.coordination import keys
from cloudclaw.coordination.election import Election, Leadership
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Delete, Put
from cloudclaw.coordination.records import LeaderRecord, encode
from cloudclaw.errors import UnavailableError
from tests.support.kv import WITHIN, ManualClock

T = TypeVar("T")


class Candidate:
    """A replica that leads when elected, until it is told to stop."""

    def __init__(self, kv: MemoryKeyValue, clock: ManualClock, address: str) -> None:
        self.election = Election(kv, clock, "scheduler", address)
        self.terms: asyncio.Queue[Leadership] = asyncio.Queue()
        self.leading: Leadership | None = None
        self.stopped = asyncio.Event()
        self.give_up = asyncio.Event()
        self.error: Exception | None = None

    async def lead(self, leadership: Leadership) -> None:
        self.leading = leadership
        self.stopped.clear()
        self.terms.put_nowait(leadership)
        try:
            await self.give_up.wait()
            self.give_up.clear()
            if self.error is not None:
                raise self.error
        finally:
            self.leading = None
            self.stopped.set()

    async def elected(self) -> Leadership:
        async with asyncio.timeout(WITHIN):
            return await self.terms.get()

    @contextlib.asynccontextmanager
    async def campaigning(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.election.run(self.lead))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def kv(clock: ManualClock) -> MemoryKeyValue:
    return MemoryKeyValue(clock)


async def test_a_lone_candidate_leads_at_once(kv: MemoryKeyValue, clock: ManualClock) -> None:
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning():
        leadership = await a.elected()
        assert a.election.leader() == ("a:1", leadership.term)
        assert (await kv.txn([leadership.guard()], [Put("k", b"")])).succeeded


async def test_followers_wait_and_know_the_leader(kv: MemoryKeyValue, clock: ManualClock) -> None:
    a, b = Candidate(kv, clock, "a:1"), Candidate(kv, clock, "b:1")
    async with a.campaigning():
        first = await a.elected()
        async with b.campaigning():
            await candidates(kv, 2)
            await seen(b, ("a:1", first.term))
            assert b.leading is None


async def test_a_leader_that_stops_resigns_and_the_next_has_a_higher_term(
    kv: MemoryKeyValue, clock: ManualClock
) -> None:
    a, b = Candidate(kv, clock, "a:1"), Candidate(kv, clock, "b:1")
    async with a.campaigning() as campaign:
        first = await a.elected()
        async with b.campaigning():
            await candidates(kv, 2)
            campaign.cancel()
            second = await b.elected()
            assert second.term > first.term
            assert a.stopped.is_set()
            assert first.lost.is_set()
            assert not (await kv.txn([first.guard()], [Put("k", b"")])).succeeded


async def test_a_leader_whose_lease_ended_stops_and_campaigns_again(kv: MemoryKeyValue, clock: ManualClock) -> None:
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning():
        first = await a.elected()
        kv.expire(lease_of(first))
        async with asyncio.timeout(WITHIN):
            await first.lost.wait()
            await a.stopped.wait()
        assert (await moving(clock, a.elected())).term > first.term


async def test_a_leader_whose_key_was_removed_stops(kv: MemoryKeyValue, clock: ManualClock) -> None:
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning():
        first = await a.elected()
        await kv.txn([first.guard()], [Delete(first.key)])
        async with asyncio.timeout(WITHIN):
            await first.lost.wait()
            await a.stopped.wait()


async def test_a_leader_cut_off_for_its_ttl_stops_leading(kv: MemoryKeyValue, clock: ManualClock) -> None:
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning():
        first = await a.elected()
        await clock.asleep(2)
        kv.outage = True
        await clock.advance(5)
        await clock.asleep(2)
        assert not first.lost.is_set()
        await clock.advance(5)
        async with asyncio.timeout(WITHIN):
            await first.lost.wait()
            await a.stopped.wait()
        kv.outage = False
        assert (await moving(clock, a.elected())).term > first.term


async def test_a_restarted_leader_need_not_wait_for_its_old_lease(kv: MemoryKeyValue, clock: ManualClock) -> None:
    stale = keys.election("scheduler", 77)
    lease = await kv.grant(10)
    await kv.txn([], [Put(stale, encode(LeaderRecord(address="a:1")), lease)])
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning():
        leadership = await a.elected()
        assert await kv.get(stale) is None
        assert leadership.term


async def test_another_candidate_s_key_is_not_removed(kv: MemoryKeyValue, clock: ManualClock) -> None:
    other = keys.election("scheduler", 77)
    lease = await kv.grant(10)
    put = await kv.txn([], [Put(other, encode(LeaderRecord(address="b:1")), lease)])
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning():
        await candidates(kv, 2)
        await seen(a, ("b:1", put.revision))
        assert a.leading is None
        kv.expire(lease)
        assert (await a.elected()).term > put.revision


async def test_a_leader_that_gives_up_lets_the_next_one_lead(kv: MemoryKeyValue, clock: ManualClock) -> None:
    a, b = Candidate(kv, clock, "a:1"), Candidate(kv, clock, "b:1")
    async with a.campaigning():
        first = await a.elected()
        async with b.campaigning():
            await candidates(kv, 2)
            a.give_up.set()
            assert (await b.elected()).term > first.term


async def test_an_outage_under_the_leader_s_feet_makes_it_campaign_again(
    kv: MemoryKeyValue, clock: ManualClock
) -> None:
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning():
        first = await a.elected()
        a.error = UnavailableError("the store is away")
        a.give_up.set()
        async with asyncio.timeout(WITHIN):
            await a.stopped.wait()
        a.error = None
        assert (await moving(clock, a.elected())).term > first.term


async def test_another_error_of_the_leader_ends_the_campaign(kv: MemoryKeyValue, clock: ManualClock) -> None:
    a = Candidate(kv, clock, "a:1")
    async with a.campaigning() as campaign:
        await a.elected()
        a.error = ValueError("a fault")
        a.give_up.set()
        await asyncio.wait([campaign])
        error = campaign.exception()
        assert isinstance(error, ExceptionGroup)
        assert error.subgroup(ValueError) is not None
    assert not (await kv.range(keys.ELECTION)).entries


async def test_of_many_candidates_one_leads_at_a_time_and_all_get_their_turn(
    kv: MemoryKeyValue, clock: ManualClock
) -> None:
    many = [Candidate(kv, clock, f"c{n}:1") for n in range(5)]
    terms = []
    async with contextlib.AsyncExitStack() as stack:
        campaigns = {candidate: await stack.enter_async_context(candidate.campaigning()) for candidate in many}
        await candidates(kv, len(many))
        left = list(many)
        while left:
            waits = {asyncio.create_task(candidate.elected()): candidate for candidate in left}
            done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in pending:
                wait.cancel()
            assert len([candidate for candidate in left if candidate.leading]) == len(done) == 1
            [won] = done
            terms.append((await won).term)
            campaigns[waits[won]].cancel()
            left.remove(waits[won])
    assert terms == sorted(terms)


async def moving(clock: ManualClock, what: Coroutine[Any, Any, T]) -> T:
    """Wait for `what`, and let time go by for whoever sleeps before trying again."""
    wanted = asyncio.create_task(what)
    while not wanted.done():
        asleep = asyncio.create_task(clock.asleep())
        await asyncio.wait([wanted, asleep], return_when=asyncio.FIRST_COMPLETED)
        asleep.cancel()
        await clock.advance(0.5)
    return await wanted


async def candidates(kv: MemoryKeyValue, count: int) -> None:
    """Wait until so many stand."""
    start = await kv.range(keys.ELECTION)
    standing = {entry.key for entry in start.entries}
    async with asyncio.timeout(WITHIN), contextlib.aclosing(kv.watch(keys.ELECTION, start.revision)) as batches:
        while len(standing) < count:
            for event in (await anext(batches)).events:
                (standing.add if event.entry.value else standing.discard)(event.entry.key)


async def seen(candidate: Candidate, leader: tuple[str, int]) -> None:
    """Wait until the candidate knows this leader."""
    async with asyncio.timeout(WITHIN):
        while candidate.election.leader() != leader:
            await candidate.election.changed()


def lease_of(leadership: Leadership) -> int:
    return int(keys.parts(leadership.key)[-1], 16)
