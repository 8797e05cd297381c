"""Agents, parsers and tasks that say what no node can carry: it harms their attempt only."""

from __future__ import annotations

import pytest

from cloudclaw.agents.events import MOST, AnyEvent, Error, Message, Turn, Usage, UsageReport
from cloudclaw.agents.parser import SYSTEM, PlainParser
from cloudclaw.agents.transcript import Transcript
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.domain.attempt import Exit
from cloudclaw_pool_manager.ports.runtime import RunRequest, Verdict
from cloudclaw_supervisor.frames import MAX_PAYLOAD
from tests.support.fake_agent import Parrot, ParrotParser, say
from tests.unit.pool_manager.agents import agents, asked
from tests.unit.pool_manager.rig import Rig, settle


class Broken(ParrotParser):
    """A third party's, which fails at what a task prints."""

    def feed(self, stream: int, data: bytes) -> list[AnyEvent]:
        raise OverflowError("a number that nobody expected")

    def dump(self) -> bytes:
        raise RecursionError("too deep")


async def test_a_parser_that_fails_ends_its_attempt_and_nothing_else() -> None:
    class Adapter(Parrot):
        def parser(self) -> Broken:
            return Broken()

    rig = await agents(Adapter())
    try:
        task, sandbox = await asked(rig)
        sandbox.write(b"x" * (3 << 20))
        await rig.pass_time(2.0)
        sandbox.finish(0)
        await rig.gone(task)
        assert rig.report_of(task).reason == task_pb2.END_REASON_AGENT_FAILED
        again, sandbox = await asked(rig)
        sandbox.finish(0)
        await rig.gone(again)
    finally:
        await rig.close()


CARELESS: list[AnyEvent] = [
    Message("assistant", "\ud800"),
    Message("user", "x", number="1"),  # type: ignore[arg-type]
    Turn("first"),  # type: ignore[arg-type]
    UsageReport(Usage(input_tokens=2**70)),
    Error("no kind", "x"),  # type: ignore[arg-type]
]
"""What a third party's parser may let pass, and no message can carry."""


@pytest.mark.parametrize("event", CARELESS, ids=range(len(CARELESS)))
async def test_events_that_cannot_be_written_down_harm_their_attempt_only(event: AnyEvent) -> None:
    class Careless(ParrotParser):
        def feed(self, stream: int, data: bytes) -> list[AnyEvent]:
            return [event] if b"half" in data else super().feed(stream, data)

    class Adapter(Parrot):
        def parser(self) -> Careless:
            return Careless()

        def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
            return Verdict(True, "COMPLETED", "an \udcff", final_message="\ud83d", session_id="\ud800")

    rig = await agents(Adapter())
    try:
        task, sandbox = await asked(rig)
        other, neighbour = await asked(rig)
        sandbox.write(b"half\n")
        sandbox.write(b"x" * (2 << 20) + b"\n")
        await rig.until(lambda: sandbox.forgotten > 1 << 20)
        sandbox.finish(0)
        await rig.gone(task)
        assert (rig.report_of(task).state, rig.report_of(task).final_message) == (
            task_pb2.ATTEMPT_STATE_SUCCEEDED,
            "?",
        )
        neighbour.finish(0)
        await rig.gone(other)
    finally:
        await rig.close()


@pytest.mark.parametrize("half", [b"\\ud800", b"\xed\xa0\x80"])
async def test_half_a_character_that_an_agent_says_costs_its_node_nothing(agent_rig: Rig, half: bytes) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    sandbox.write(b'{"session": "s-%s"}\n{"says": "%s"}\n' % (half, half))
    sandbox.write(b"x" * (2 << 20) + b"\n")
    await rig.until(lambda: sandbox.forgotten > 1 << 20)
    await rig.crash()
    await rig.start()
    sandbox.write(b'{"done": "%s"}\n{"done": "whole"}\n' % half)
    await rig.until(lambda: bool(sandbox.inputs))
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.report_of(task).final_message == "whole"


async def test_use_that_no_message_can_carry_is_told_as_the_most(agent_rig: Rig) -> None:
    rig = agent_rig
    task, sandbox = await asked(rig)
    say(sandbox, {"session": "s-1"}, {"used": 2**63 + 7}, {"done": "x"})
    await settle()
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.usage.input_tokens) == (task_pb2.ATTEMPT_STATE_SUCCEEDED, MOST)


async def test_marks_of_many_long_messages_fit_into_the_log(agent_rig: Rig) -> None:
    rig = agent_rig
    inputs = [pb.TaskInput(number=n, message_id=f"m-{n}", text="\x01" * 10_000) for n in range(1, 101)]
    task, sandbox = await asked(rig, "\U0001f600" * 20_000, conversation=task_pb2.Conversation(), inputs=inputs)
    assert sandbox.launch is not None
    assert len(sandbox.launch.note) <= MAX_PAYLOAD
    events = PlainParser().feed(SYSTEM, sandbox.launch.note)
    assert [event.number for event in events if isinstance(event, Message)] == list(range(101))
    sandbox.finish(0)
    await rig.gone(task)
