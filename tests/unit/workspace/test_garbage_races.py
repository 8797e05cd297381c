"""What users and tasks do beside a round, at every step of it: nothing that is reachable is ever removed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import structlog

from cloudclaw.coordination.records import Mode
from cloudclaw.errors import UnavailableError
from tests.unit.workspace.garbage_world import GRACE, TENANT, World, drive

Script = Callable[[World], AsyncIterator[None]]

SCRIPTS: dict[str, tuple[Script, int]] = {
    "write": (lambda world: world.write("ws"), 1),
    "write, stored early": (lambda world: world.write("ws"), 2),
    "failed write": (lambda world: world.write("ws", fail=True), 2),
    "first write": (lambda world: world.write("new"), 2),
    "restore": (lambda world: world.restore("ws"), 1),
    "fork": (lambda world: world.fork("ws"), 1),
    "delete": (lambda world: world.remove("ws"), 1),
}
"""What runs beside the rounds, and how many of its parts make up the beginning."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of rounds, each with its lines."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


async def world() -> World:
    """A workspace with a past, of which a round has seen the garbage before, and left more since."""
    made = World()
    await made.begin()
    await made.create("ws")
    await made.create("new")
    for _ in range(4):
        await drive(made.write("ws"))
    await drive(made.write("ws", fail=True))
    await made.rounds().collect(TENANT, dry_run=False)
    made.clock.now += GRACE + 1
    # The next round removes what the last one saw, and its retention makes new garbage.
    for _ in range(2):
        await drive(made.write("ws"))
    return made


async def steps() -> int:
    """Of a round with nothing beside it."""
    made = await world()
    watched, rounds = made.watched()
    report = (await rounds.collect(TENANT, dry_run=False))[0]
    assert report.removed >= 4
    assert report.snapshots >= 2
    return watched.count


@pytest.mark.parametrize("name", SCRIPTS)
async def test_nothing_reachable_goes_whatever_runs_beside_the_round(name: str) -> None:
    # Two rounds, since nothing goes at first sight. For the beginning every second step of them, for the end that very
    # step and every fifth after it.
    last = 2 * await steps()
    turns = [(begin_at, end_at) for begin_at in range(1, last + 1, 2) for end_at in range(begin_at, last + 1, 5)]
    for first, second in turns:
        made = await world()
        script = SCRIPTS[name][0](made)

        async def begin(script: AsyncIterator[None] = script) -> None:
            for _ in range(SCRIPTS[name][1]):
                await anext(script)

        async def end(script: AsyncIterator[None] = script) -> None:
            await drive(script)

        async def both(script: AsyncIterator[None] = script) -> None:
            await drive(script)

        watched, rounds = made.watched()
        watched.before = {first: begin, second: end} if first != second else {first: both}
        for _ in range(2):
            await rounds.collect(TENANT, dry_run=False)
            made.clock.now += GRACE + 1
        await drive(script)
        await made.check()
        # Also in the rounds after it, when what this one noted has waited long enough.
        await made.settle()


async def test_two_rounds_at_once_do_no_harm() -> None:
    for at in range(1, await steps() + 1):
        made = await world()
        watched, rounds = made.watched()

        async def beside(made: World = made) -> None:
            await drive(made.write("ws"))
            await made.rounds().collect(TENANT, dry_run=False)
            made.clock.now += GRACE + 1

        watched.before = {at: beside}
        await rounds.collect(TENANT, dry_run=False)
        await made.check()
        await made.settle()


async def test_a_round_that_dies_at_any_step_is_made_good_by_the_next() -> None:
    for at in range(1, await steps() + 1):
        made = await world()
        watched, rounds = made.watched()

        async def die() -> None:
            raise UnavailableError("killed")

        watched.before = {at: die}
        with pytest.raises(UnavailableError, match="killed"):
            await rounds.collect(TENANT, dry_run=False)
        await made.check()
        await made.settle()


@pytest.mark.parametrize("mode", [Mode.EXCLUSIVE, Mode.FORK, Mode.EPHEMERAL])
async def test_packs_of_a_superseded_checkpoint_stay_while_the_task_may_still_use_them(mode: Mode) -> None:
    """The second attempt began from a checkpoint of the first, dropped a file of it, and gets it back much later."""
    made = await world()

    async def days() -> None:
        for _ in range(3):
            await made.rounds().collect(TENANT, dry_run=False)
            made.clock.now += GRACE + 1
            await made.check()

    task = await made.submit("" if mode is Mode.EPHEMERAL else "ws", mode)
    token, task = await made.claim(task)
    base = made.packs[task.record.base.manifest] if task.record.base is not None else []
    await days()
    task, first = await made.checkpoint(token, task, base)
    await days()
    task = await made.lose(token, task)
    if mode is not Mode.EXCLUSIVE:
        # The head moves on; with retention at work nothing but the task needs what it began from.
        for _ in range(4):
            await drive(made.write("ws"))
    await days()
    token, task = await made.claim(task)
    task, _ = await made.checkpoint(token, task, ())
    await days()
    task, last = await made.checkpoint(token, task, made.packs[first.manifest])
    await days()
    kept = None
    if mode is Mode.EXCLUSIVE:
        kept = await made.store(task.record.uid, shared=made.packs[last.manifest])
        await days()
    await made.succeed(token, task, kept)
    await made.check()
    await days()
    await made.settle()


async def test_what_a_writer_stores_stays_as_long_as_it_writes() -> None:
    made = await world()
    script = made.write("ws")
    await anext(script)
    await anext(script)
    for _ in range(4):
        await made.rounds().collect(TENANT, dry_run=False)
        made.clock.now += GRACE + 1
    await drive(script)
    await made.settle()


async def test_a_claimed_attempt_is_live_from_its_first_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that is claimed, stores and finishes at any step of a round."""
    for at in range(1, await steps() + 1):
        made = await world()
        task = await made.submit("ws", Mode.EXCLUSIVE)
        watched, rounds = made.watched()

        async def run(made: World = made, task: object = task) -> None:
            token, running = await made.claim(task)  # type: ignore[arg-type]
            assert running.record.base is not None
            stored = await made.store(running.record.uid, shared=made.packs[running.record.base.manifest])
            await made.succeed(token, running, stored)

        watched.before = {at: run}
        await rounds.collect(TENANT, dry_run=False)
        await made.check()
        await made.settle()
