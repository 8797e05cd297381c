"""`WatchEvents`: a task's log as events, the same under the same numbers whoever reads it, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from cloudclaw.agents import events as agent
from cloudclaw.agents.pacing import Turn
from cloudclaw.agents.parser import MAX_LINE, JsonLines, StreamParser, mark
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.errors import NotFoundError, QuotaExceededError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw.v1.task_pb2 import LOG_STREAM_STDERR, LOG_STREAM_STDOUT, LogChunk
from cloudclaw_scheduler.app.held import Held
from tests.unit.scheduler.failing import FailingObjects
from tests.unit.scheduler.history_rig import archive
from tests.unit.scheduler.plane import DEADLINE, Plane, duration, soon, until
from tests.unit.scheduler.talking import AGENT, COMMITTED, Host, Talker


class Scribe(JsonLines):
    """An agent that writes `{"say": …}`, `{"do": …}` and the like."""

    def on_object(self, line: Mapping[str, Any]) -> list[agent.AnyEvent]:
        match line:
            case {"say": text}:
                return [agent.Message("assistant", text)]
            case {"do": tool}:
                return [agent.ToolCall("1", tool, "{}"), agent.ToolResult("1", "done")]
            case {"use": tokens, "cost": cost}:
                return [agent.UsageReport(agent.Usage(input_tokens=tokens, cost_usd=cost))]
            case {"turn": number}:
                return [agent.Turn(number)]
            case {"oops": kind}:
                kind = agent.ErrorKind(kind)
                return [agent.Error(kind, "no"), agent.Retry(kind, "no", 1), agent.Finished(False, kind, "no")]
            case {"break": _}:
                raise RuntimeError("a broken parser")
        return []

    def on_end(self) -> list[agent.AnyEvent]:
        return [agent.Note("end", "that was all")]


@pytest.fixture(autouse=True)
def parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    def parser_for(runtime: str) -> StreamParser:
        assert runtime == AGENT
        return Scribe()

    monkeypatch.setattr("cloudclaw_scheduler.app.events.parser_for", parser_for)


def lines(*objects: Mapping[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in objects)


async def follow(talker: Talker, task: str, first: int = 0, *, follow: bool = True) -> AsyncIterator[pb.RunEvent]:
    request = pb.WatchEventsRequest(task_id=task, from_sequence=first, follow=follow)
    async for response in talker.stub.WatchEvents(request):
        yield response.event


async def all_of(talker: Talker, task: str, first: int = 0, *, wait: bool = True) -> list[pb.RunEvent]:
    async with asyncio.timeout(DEADLINE):
        return [event async for event in follow(talker, task, first, follow=wait)]


def said(event: pb.RunEvent) -> str:
    """In a word, what an event says."""
    kind = event.WhichOneof("event")
    assert kind is not None
    text = {"message": event.message.text, "progress": event.progress.phase, "tool_call": event.tool_call.tool}
    return f"{kind} {text[kind]}" if kind in text else kind


async def finish(host: Host, assignment: pb.Assignment, log: bytes, **outcome: Any) -> None:
    await host.write(assignment, 0, log, end=True)
    assert await host.finish(assignment, log_end=len(log), **outcome) == COMMITTED


async def test_a_run_in_events(host: Host, talker: Talker) -> None:
    task = await talker.talk()
    assignment = await host.next()
    log = lines({"say": "hello"}, {"do": "edit"}, {"use": 7, "cost": 0.5}, {"turn": 1}, {"oops": "rate_limit"})
    given = mark("input", id="m1", number=1, text="hi")
    await host.write(assignment, 0, given, stream=task_pb2.LOG_STREAM_SYSTEM)
    await host.write(assignment, len(given), log, end=True)
    await host.finish(assignment, log_end=len(given) + len(log))
    events = await all_of(talker, task)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [said(event) for event in events] == [
        "message hi",
        "message hello",
        "tool_call edit",
        "tool_result",
        "usage",
        "progress turn",
        "error",
        "retry",
        "finished",
        "progress note",
        "progress attempt",
    ]
    assert (events[0].message.role, events[0].message.message_id) == ("user", "m1")
    assert (events[4].usage.input_tokens, events[4].usage.cost_usd) == (7, 0.5)
    assert not events[4].usage.HasField("output_tokens")
    assert (events[6].error.kind, events[6].error.retryable) == ("rate_limit", True)
    assert events[8].finished.reason == task_pb2.END_REASON_MODEL_RATE_LIMIT
    assert all(event.attempt == 1 for event in events)


async def test_events_come_while_it_runs_and_end_with_the_task(host: Host, talker: Talker) -> None:
    task = await talker.talk()
    stream = follow(talker, task)
    assignment = await host.next()
    one, two = lines({"say": "one"}), lines({"say": "two"})
    await host.write(assignment, 0, one)
    assert said(await soon(anext(stream))) == "message one"
    await host.write(assignment, len(one), two, end=True)
    assert said(await soon(anext(stream))) == "message two"
    assert [said(event) for event in await all_of(talker, task, wait=False)] == ["message one", "message two"]
    await host.finish(assignment, log_end=len(one + two))
    async with asyncio.timeout(DEADLINE):
        assert [said(event) async for event in stream] == ["progress note", "progress attempt"]


async def test_numbers_go_on_over_attempts_and_are_the_same_for_everybody(
    plane: Plane, host: Host, talker: Talker, another: Callable[[], Plane]
) -> None:
    task = await talker.talk()
    first = await host.next()
    log = lines({"say": "a"}, {"turn": 1})
    await host.write(first, 0, log, end=True)
    await host.park(first, "c-1", log_end=len(log))
    await talker.parked(task)
    await talker.say(task, "m1")
    second = await host.next()
    await finish(host, second, lines({"say": "b"}), inputs=1)
    events = await all_of(talker, task)
    assert [(event.attempt, said(event)) for event in events] == [
        (1, "message a"),
        (1, "progress turn"),
        (1, "progress note"),
        (1, "progress attempt"),
        (2, "message b"),
        (2, "progress note"),
        (2, "progress attempt"),
    ]
    assert "gave its slot" in events[3].progress.message
    for begin in range(len(events) + 2):
        assert await all_of(talker, task, begin) == events[max(0, begin - 1) :]
    follower = another()
    await follower.start(leads=False)
    assert await all_of(Talker(follower), task) == events
    assert await all_of(Talker(follower), task, 5) == events[4:]
    await archive(plane)
    assert await all_of(talker, task) == events
    assert await all_of(talker, task, 6) == events[5:]


async def test_a_follower_shows_what_runs(
    plane: Plane, host: Host, talker: Talker, another: Callable[[], Plane]
) -> None:
    follower = another()
    await follower.start(leads=False)
    task = await talker.talk()
    assignment = await host.next()
    stream = follow(Talker(follower), task)
    await host.write(assignment, 0, lines({"say": "one"}))
    assert said(await soon(anext(stream))) == "message one"
    await host.write(assignment, len(lines({"say": "one"})), b"", end=True)
    await host.finish(assignment, log_end=len(lines({"say": "one"})))
    async with asyncio.timeout(DEADLINE):
        assert [said(event) async for event in stream] == ["progress note", "progress attempt"]


async def test_what_a_lost_attempt_never_stored_is_taken_back(plane: Plane, host: Host, talker: Talker) -> None:
    assert isinstance(plane.kv, MemoryKeyValue)
    assert isinstance(plane.objects, FailingObjects)
    task = await talker.talk()
    stream = follow(talker, task)
    assignment = await host.next()
    kept, gone = lines({"say": "kept"}), lines({"say": "gone"}, {"say": "gone too"})
    await host.write(assignment, 0, kept)
    assert said(await soon(anext(stream))) == "message kept"
    await until("it is durable", lambda: host.durable.get(assignment.uid, 0) == len(kept))
    plane.objects.full = True
    await host.write(assignment, len(kept), gone)
    assert [(await soon(anext(stream))).sequence for _ in range(2)] == [2, 3]
    await host.disconnect()
    plane.kv.expire(host.lease)
    rest = [await soon(anext(stream)) for _ in range(2)]
    assert [(event.sequence, said(event)) for event in rest] == [(2, "progress note"), (3, "progress attempt")]
    assert "LOST" in rest[1].progress.message
    plane.objects.full = False
    other = Host(plane, "node-2")
    await other.connect()
    await finish(other, await other.next(), lines({"say": "again"}))
    async with asyncio.timeout(DEADLINE):
        rest += [event async for event in stream]
    assert [event.sequence for event in rest] == [2, 3, 4, 5, 6]
    assert (await all_of(talker, task))[1:] == rest


async def test_a_hostile_log_breaks_nothing(host: Host, talker: Talker) -> None:
    task = await talker.talk()
    assignment = await host.next()
    log = b"\xff\xfe\n{\n[]\n" + b'{"say": "\\ud800"}\n' + lines({"say": 7}, {"say": {"a": 1}})
    log += b'{"use": 99999999999999999999999999999, "cost": NaN}\n{"use": -5, "cost": 1e999}\n'
    log += lines({"say": "x" * 100_000}, {"use": "many", "cost": []}, {"say": "last"})
    chunks = [log[at : at + 65_536] for at in range(0, len(log), 65_536)]
    for index, chunk in enumerate(chunks):
        await host.write(assignment, index * 65_536, chunk, end=index == len(chunks) - 1)
    await host.finish(assignment, log_end=len(log))
    events = await all_of(talker, task)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert said(events[0]) == "message ?"
    assert len(events[5].message.text) < 70_000
    assert said(events[7]) == "message last"


async def test_a_line_that_breaks_a_parser_breaks_nothing_else(host: Host, talker: Talker) -> None:
    task = await talker.talk()
    await finish(host, await host.next(), lines({"say": "before"}, {"break": 1}, {"say": "after"}))
    events = await all_of(talker, task)
    assert [said(event) for event in events[:2]] == ["message before", "message after"]
    assert events == await all_of(talker, task)
    assert said(events[-1]) == "progress attempt"


async def test_without_attempts_there_is_nothing_to_see(talker: Talker) -> None:
    await talker.submit()
    task = await talker.talk(retry=task_pb2.RetryPolicy(initial_backoff=duration(1)))
    await talker.cancel(task)
    assert await all_of(talker, task) == []
    with pytest.raises(NotFoundError):
        await all_of(talker, "task-none")


async def test_a_line_without_end_that_many_watch_fills_no_memory(
    host: Host, talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudclaw_scheduler.app.held.MOST", 640 << 10)
    task = await talker.talk()
    assignment = await host.next()
    begun = b'{"say": "' + b"x" * (70 << 10)
    steps = range(0, len(begun), 65_536)
    for at in steps:
        await host.write(assignment, at, begun[at : at + 65_536])
    calls = [talker.stub.WatchEvents(pb.WatchEventsRequest(task_id=task, follow=True)) for _ in range(10)]
    seen = [asyncio.ensure_future(anext(aiter(call))) for call in calls]
    refused, _ = await asyncio.wait(seen, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    [only] = refused
    with pytest.raises(QuotaExceededError) as told:
        await only
    assert told.value.reason == "TOO_MUCH_WATCHED"
    rest = [one for one in seen if one is not only]
    await host.write(assignment, len(begun), b'"}\n', end=True)
    await host.finish(assignment, log_end=len(begun) + 3)
    assert {said(answer.event)[:11] for answer in await asyncio.gather(*rest)} == {"message xxx"}, "the others read on"
    for call in calls:
        call.cancel()
    assert said((await all_of(talker, task))[0]).startswith("message xxx")


async def test_watches_that_end_hold_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudclaw_scheduler.app.held.MOST", 8 * MAX_LINE)
    held = Held()
    for _ in range(9):
        with held.line("acme") as line:
            for chunk in (b"x" * MAX_LINE, b"x", b"x" * 99, b"\n" + b"y" * MAX_LINE):
                line.take(LogChunk(data=chunk, stream=LOG_STREAM_STDOUT))
    lines = [held.line("acme") for _ in range(8)]
    for line in lines:
        line.take(LogChunk(data=b"x" * MAX_LINE, stream=LOG_STREAM_STDOUT))
    with pytest.raises(QuotaExceededError):
        held.line("acme").take(LogChunk(data=b"x", stream=LOG_STREAM_STDOUT))
    held.line("other").take(LogChunk(data=b"x", stream=LOG_STREAM_STDOUT))
    held.line("acme").take(LogChunk(data=b"x" * 99, stream=LOG_STREAM_STDERR))
    lines[0].take(LogChunk(data=b"\n", stream=LOG_STREAM_STDOUT))
    held.line("acme").take(LogChunk(data=b"x", stream=LOG_STREAM_STDOUT))


async def test_all_of_a_log_is_parsed_in_turn(host: Host, talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Callable[[], Any]] = []
    parsed: list[bool] = []

    async def work(turn: Turn, parse: Callable[[], Any]) -> Any:
        turns.append(parse)
        try:
            return parse()
        finally:
            turns.remove(parse)

    class Noting(Scribe):
        def feed(self, stream: int, data: bytes) -> list[agent.AnyEvent]:
            parsed.append(bool(turns))
            return super().feed(stream, data)

        def close(self) -> list[agent.AnyEvent]:
            parsed.append(bool(turns))
            return super().close()

    monkeypatch.setattr(Turn, "work", work)
    monkeypatch.setattr("cloudclaw_scheduler.app.events.parser_for", lambda runtime: Noting())
    task = await talker.talk()
    await finish(host, await host.next(), lines({"say": "whole"}) + b'{"say": "a line that ends with the log"}')
    assert [said(event) for event in await all_of(talker, task)][:2] == [
        "message whole",
        "message a line that ends with the log",
    ]
    assert parsed == [True, True]
