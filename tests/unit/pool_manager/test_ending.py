"""Who ends an attempt, and how its program ended."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw_pool_manager.app.berth import Berth
from cloudclaw_pool_manager.app.ending import Ending
from cloudclaw_pool_manager.app.runner import NotOursError, NotStartedError
from cloudclaw_pool_manager.domain.attempt import Exit, KillReason
from cloudclaw_pool_manager.ports.backend import SlotFailedError


@pytest.fixture
def berth() -> Berth:
    return Berth(None)


@pytest.fixture
def ending(berth: Berth) -> Ending:
    return Ending(berth, canceled=False)


def _exit(code: int = 0, killed: KillReason = KillReason.NONE, failed: str = "") -> Exit:
    return Exit(code, 0, killed, oom_killed=False, log_end=0, started=0.0, ended=0.0, failed=failed)


async def _nobody_stops() -> None:
    raise AssertionError("nobody wants it to end")


def test_the_first_reason_counts_and_a_fence_counts_more(ending: Ending) -> None:
    ending.want(KillReason.RUN_TIMEOUT)
    ending.want(KillReason.CANCELED)
    assert ending.why is KillReason.RUN_TIMEOUT
    assert ending.may_go_on
    ending.fence("its lease is gone")
    assert (ending.why, ending.fenced, ending.fence_reason) == (KillReason.FENCED, True, "its lease is gone")
    assert not ending.may_go_on


def test_only_the_first_exit_counts(ending: Ending) -> None:
    ending.processes_gone.clear()
    assert ending.exited(_exit(code=3))
    assert not ending.exited(_exit(code=4))
    assert ending.exit is not None
    assert ending.exit.code == 3
    assert ending.processes_gone.is_set()


async def test_a_program_that_ends_by_itself_is_stopped_by_nobody(ending: Ending) -> None:
    coming = asyncio.ensure_future(ending.come(_nobody_stops))
    await asyncio.sleep(0)
    ending.exited(_exit(code=7))
    assert (await coming).code == 7


async def test_a_program_is_stopped_once_somebody_wants_it_to_end(ending: Ending) -> None:
    async def stop() -> None:
        ending.exited(_exit(killed=ending.why))

    coming = asyncio.ensure_future(ending.come(stop))
    await asyncio.sleep(0)
    ending.want(KillReason.SILENCE_TIMEOUT)
    assert (await coming).killed is KillReason.SILENCE_TIMEOUT


@pytest.mark.parametrize("how", ["slot", "exit"])
async def test_a_slot_that_fails_is_no_end_of_the_program(ending: Ending, berth: Berth, how: str) -> None:
    if how == "slot":
        ending.exited(_exit(code=0))
        berth.failure = "it broke"
    else:
        ending.exited(_exit(failed="it broke"))
    with pytest.raises(SlotFailedError, match="it broke"):
        await ending.come(_nobody_stops)


def test_what_has_not_started_is_given_up_for_a_drain_unless_it_was_canceled(ending: Ending) -> None:
    assert not ending.before_start()
    ending.drain(True)
    with pytest.raises(NotStartedError):
        ending.before_start()
    ending.cancel()
    assert ending.before_start()
    ending.fence("another has it")
    with pytest.raises(NotOursError):
        ending.before_start()


@pytest.mark.parametrize(("preparing", "pressed"), [(True, True), (False, False)])
def test_a_drain_presses_only_what_still_prepares(ending: Ending, preparing: bool, pressed: bool) -> None:
    assert not ending.pressed(preparing=preparing)
    ending.drain(True)
    assert ending.pressed(preparing=preparing) is pressed
    ending.cancel()
    assert ending.pressed(preparing=preparing)
