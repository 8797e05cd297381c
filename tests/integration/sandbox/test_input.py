"""Input to a running program: in order, once for each message, bounded, and told in the log."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from cloudclaw.errors import InvalidArgumentError, PreconditionError, UnavailableError
from cloudclaw_pool_manager.backends.slot import BubblewrapSlot
from cloudclaw_pool_manager.domain.attempt import AttemptId, KillReason, Stream
from cloudclaw_pool_manager.ports.backend import Slot, SlotFailedError, SlotPhase
from cloudclaw_supervisor import protocol
from tests.support import slots
from tests.support.slots import LIMITS, Node

pytestmark = pytest.mark.sandbox

DEAF = ("sh", "-c", "echo up; exec sleep 60")
PIECE = 1 << 20


async def echoing(node: Node, slot: Slot, **how: object) -> AttemptId:
    """A program that repeats its input."""
    identity, _ = await slots.start(node, slot, "cat", keep_stdin=True, **how)  # type: ignore[arg-type]
    return identity


async def test_input_follows_what_the_program_was_started_with_until_it_is_closed(node: Node, slot: Slot) -> None:
    identity = await echoing(node, slot, stdin=b"first\n")
    assert (await slot.status()).input_open
    assert await slot.input(identity.uid, "m-1", data=b"second\n")
    await slots.printed(slot, identity.uid, b"first\nsecond\n")
    assert (await slot.status()).phase is SlotPhase.RUNNING
    assert await slot.input(identity.uid, "m-2", data=b"third\n", close=True)
    ended = await slots.exited(slot)
    assert ended.code == 0
    assert (await slots.log(slot, identity.uid))[0] == b"first\nsecond\nthird\n"


async def test_a_message_is_given_once_whoever_repeats_it(node: Node) -> None:
    first = node.pool(incarnation=1)
    slot = await first.provision(0)
    identity = await echoing(node, slot)
    assert await slot.input(identity.uid, "m-1", note=b"said\n", data=b"one\n")
    assert not await slot.input(identity.uid, "m-1", note=b"said\n", data=b"one\n")
    await first.close()
    (adopted,) = await node.pool(incarnation=2).adopt()
    status = await adopted.status()
    assert (status.input_open, status.inputs) == (True, ("m-1",))
    assert not await adopted.input(identity.uid, "m-1", note=b"said\n", data=b"one\n")
    assert await adopted.input(identity.uid, "m-2", data=b"two\n", close=True)
    assert (await adopted.status()).inputs == ("m-1", "m-2")
    await slots.exited(adopted)
    assert not await adopted.input(identity.uid, "m-2", data=b"two\n"), "it was given, and the end changes nothing"
    stdout, _, system = await slots.log(adopted, identity.uid)
    assert (stdout, system) == (b"one\ntwo\n", b"said\n")


async def test_notes_are_whole_frames_of_the_log_and_the_first_opens_it(node: Node, slot: Slot) -> None:
    opening = json.dumps({"cloudclaw": {"event": "prompt"}}).encode() + b"\n"
    identity = await echoing(node, slot, stdin=b"a\n", note=opening)
    await slots.printed(slot, identity.uid, b"a\n")
    note = b"x" * (PIECE - 1) + b"\n"
    await slot.input(identity.uid, "m-1", note=note, data=b"b\n", close=True)
    ended = await slots.exited(slot)
    frames = [frame for frame in await slot.read_log(identity.uid, 0, 8 << 20) if frame.stream is Stream.SYSTEM]
    assert [(frame.offset, frame.data) for frame in frames] == [(0, opening), (len(opening) + 2, note)]
    assert ended.log_end == len(opening) + len(note) + 4


async def test_notes_leave_the_program_its_own_log(node: Node, slot: Slot) -> None:
    limits = replace(LIMITS, log_bytes=10_000)
    identity = await echoing(node, slot, limits=limits, note=b"n" * 9_999 + b"\n")
    await slot.input(identity.uid, "m-1", note=b"n" * 9_999 + b"\n", data=b"x" * 10_000)
    await slots.until(slot, lambda status: status.log_end == 30_000)
    await slot.input(identity.uid, "m-2", data=b"y")
    assert (await slots.exited(slot)).killed is KillReason.LOG_LIMIT


async def test_without_keeping_it_open_there_is_no_input(node: Node, slot: Slot) -> None:
    identity, _ = await slots.start(node, slot, *DEAF)
    assert not (await slot.status()).input_open
    with pytest.raises(PreconditionError) as caught:
        await slot.input(identity.uid, "m-1", note=b"said\n", data=b"x")
    assert caught.value.reason == "INPUT_CLOSED"
    await slots.printed(slot, identity.uid, b"up\n")
    assert (await slots.log(slot, identity.uid))[2] == b"", "a refused input leaves no note"


@pytest.mark.parametrize("how", ["ended", "closed", "stopped"])
async def test_a_program_that_takes_no_more_is_told_apart_from_a_broken_slot(node: Node, slot: Slot, how: str) -> None:
    argv = ("true",) if how == "ended" else ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done")
    identity, _ = await slots.start(node, slot, *argv, keep_stdin=True)
    stopping = None
    if how == "ended":
        await slots.exited(slot)
    else:
        await slots.printed(slot, identity.uid, b"up")
    if how == "closed":
        await slot.input(identity.uid, "m-0", close=True)
    if how == "stopped":
        stopping = asyncio.ensure_future(slot.stop(identity.uid, KillReason.CANCELED, 20))
        await asyncio.sleep(0)  # it is sent, and comes before the next call
    assert not (await slot.status()).input_open
    with pytest.raises(PreconditionError) as caught:
        await slot.input(identity.uid, "m-1", data=b"x")
    assert caught.value.reason == "INPUT_CLOSED"
    if how != "ended":
        await slot.stop(identity.uid, KillReason.CANCELED, 0)
    if stopping is not None:
        await stopping


async def test_input_for_another_attempt_is_refused(node: Node, slot: Slot) -> None:
    await echoing(node, slot)
    with pytest.raises(SlotFailedError, match="does not hold"):
        await slot.input("another", "m-1", data=b"x")


async def test_a_program_that_never_reads_costs_a_bounded_queue(node: Node, slot: Slot) -> None:
    identity, _ = await slots.start(node, slot, *DEAF, keep_stdin=True)
    taken = 0
    with pytest.raises(UnavailableError) as caught:
        for number in range(40):
            await slot.input(identity.uid, f"m-{number}", data=b"x" * PIECE)
            taken += 1
    assert caught.value.reason == "INPUT_FULL"
    assert taken == protocol.MAX_INPUT // PIECE
    assert len((await slot.status()).inputs) == taken, "a message that was not taken may come again"
    assert (await slot.stop(identity.uid, KillReason.CANCELED, 0)).killed is KillReason.CANCELED
    await slot.release(identity.uid)
    assert (await slots.run(node, slot, "cat", stdin=b"next")).stdout == b"next"


async def test_notes_wait_for_a_log_that_is_not_made_durable(node: Node) -> None:
    slot = await node.pool(spool_limit=1 << 20).provision(0)
    identity = await echoing(node, slot)
    note = b"n" * (PIECE - 1) + b"\n"
    with pytest.raises(UnavailableError) as caught:
        for number in range(40):
            await slot.input(identity.uid, f"m-{number}", note=note)
    assert caught.value.reason == "INPUT_FULL"
    end = (await slot.status()).log_end
    assert end < (1 << 20) + protocol.MAX_INPUT
    await slot.forget_log(identity.uid, end)
    assert await slot.input(identity.uid, "after", note=note)


async def test_a_frozen_program_is_given_its_input_when_it_goes_on(node: Node, slot: Slot) -> None:
    identity = await echoing(node, slot)
    await slot.freeze(identity.uid)
    data = b"y" * (1 << 18)
    assert await slot.input(identity.uid, "m-1", note=b"said\n", data=data, close=True)
    status = await slot.status()
    assert (status.phase, status.log_end) == (SlotPhase.FROZEN, len(b"said\n"))
    assert await slot.resume(identity.uid, slots.soon())
    assert (await slots.exited(slot)).code == 0
    assert (await slots.log(slot, identity.uid))[0] == data


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"message_id": ""}, "message_id"),
        ({"message_id": "x" * 300}, "message_id"),
        ({"note": b"no newline"}, "note"),
        ({"note": b"x" * PIECE + b"\n"}, "note"),
        ({"data": b"x" * (protocol.MAX_INPUT + 1)}, "data"),
    ],
)
async def test_what_could_never_be_taken_is_refused(
    node: Node, slot: Slot, given: dict[str, object], field: str
) -> None:
    identity = await echoing(node, slot)
    message = {"message_id": "m-1", **given}
    with pytest.raises(InvalidArgumentError) as caught:
        await slot.input(identity.uid, **message)  # type: ignore[arg-type]
    assert caught.value.field == field


async def test_a_supervisor_of_an_earlier_release_takes_no_input_and_still_runs_tasks(node: Node) -> None:
    slot = await node.pool().provision(0)
    assert isinstance(slot, BubblewrapSlot)
    slot._version_spoken = 2
    with pytest.raises(PreconditionError) as caught:
        await slots.start(node, slot, "cat", keep_stdin=True)
    assert caught.value.reason == "OLD_SUPERVISOR"
    assert (await slots.run(node, slot, "cat", stdin=b"x", release=False)).stdout == b"x"
    identity = (await slot.status()).attempt
    assert identity is not None
    for call in (slot.input(identity.uid, "m-1", data=b"x"), slot.egress(identity.uid)):
        with pytest.raises(PreconditionError, match="earlier release"):
            await call


async def test_a_task_can_neither_speak_as_the_system_nor_see_its_spool(node: Node, slot: Slot) -> None:
    forged = json.dumps({"cloudclaw": {"event": "input", "id": "forged"}})
    source = f"""
import os, subprocess
for fd in range(64):
    try:
        os.write(fd, b'{forged}\\n')
    except OSError:
        pass
for pid in (1, os.getppid()):
    for fd in range(64):
        try:
            open(f"/proc/{{pid}}/fd/{{fd}}", "w").write("x")
        except OSError:
            continue
        print("wrote to", pid, fd)
for name in ("spool", "ctl", "*.log", "egress"):
    print(subprocess.run(["find", "/", "-xdev", "-name", name, "-path", "*slots*"], capture_output=True).stdout)
"""
    note = b"true words\n"
    ended = await slots.run(node, slot, slots.PYTHON, "-I", "-c", source, keep_stdin=True, note=note)
    assert ended.exit.code == 0, ended.stderr
    assert ended.system == note
    assert ended.text == forged + "\n" + "b''\n" * 4
    assert ended.stderr.decode() == forged + "\n"
