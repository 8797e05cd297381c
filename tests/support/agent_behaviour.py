"""What every real agent does in a slot, against a scripted model; a subclass for each agent names its adapter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from cloudclaw.agents.events import ErrorKind, Retry, ToolResult
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, Input
from tests.support import slots
from tests.support.agent_rig import (
    LIMITS,
    WITHIN,
    WORK,
    AgentRig,
    agent_rig,
    answers,
    asked,
    failing,
    playing,
    scenario,
)
from tests.support.processes import with_variable
from tests.support.transcripts import only

ERRORS = {
    "authentication": ("MODEL_AUTHENTICATION", False),
    "permission": ("MODEL_AUTHENTICATION", False),
    "billing": ("MODEL_AUTHENTICATION", False),
    "rate_limit": ("MODEL_RATE_LIMIT", True),
    "overloaded": ("MODEL_OVERLOADED", True),
    "context_too_long": ("MODEL_CONTEXT", False),
    "not_found": ("MODEL_NOT_FOUND", False),
    "server_error": ("MODEL_FAILED", True),
    "invalid_request": ("MODEL_FAILED", False),
}


class AgentBehaviour:
    """Tests of one agent.

    Attributes:
        program: its binary.
        errors: reason and whether it is worth another attempt, by the model's error.
        most_requests: that it sends before it gives a failing model up.
        repeats: errors after which it asks again by itself, and what it tells of that; None: nothing.
        session_files: where its sessions are, below the tree, if it may write a turn down before it tells it.
        stored: bytes that are in these files once the second turn is, and how often.
        unknown_session: an id as it gives them.
        says_unknown: what its end says of such a session.
        kills_itself: a command of its tool that ends it.
    """

    program: ClassVar[str]
    errors: ClassVar[dict[str, tuple[str, bool]]] = ERRORS
    most_requests: ClassVar[int] = 6
    repeats: ClassVar[dict[str, ErrorKind | None]]
    session_files: ClassVar[str] = ""
    stored: ClassVar[tuple[bytes, int]] = (b"", 0)
    unknown_session: ClassVar[str] = "11111111-2222-4333-8444-555555555555"
    says_unknown: ClassVar[str] = ""
    kills_itself: ClassVar[str] = "kill -9 $PPID"

    def adapter(self, rig: AgentRig, **options: Any) -> AgentAdapter:
        raise NotImplementedError

    @pytest.fixture
    async def rig(self) -> AsyncIterator[AgentRig]:
        async with agent_rig(self.program) as made:
            yield made

    async def test_a_task_is_done_by_turns(self, rig: AgentRig) -> None:
        async with playing(rig, WORK) as model:
            run, verdict = await rig.run(self.adapter(rig))
        assert verdict.succeeded, run.text
        assert verdict.final_message == "The file is written."
        assert (run.tree / "workspace/hello.txt").read_bytes().rstrip() == b"hello"
        assert (run.tree / "workspace/turns.txt").read_text() == "task task-1\n"
        assert run.transcript.turns == 3
        assert run.transcript.usage is not None
        assert (run.transcript.usage.input_tokens or 0) > 0
        assert (run.transcript.usage.output_tokens or 0) > 0
        assert verdict.session_id
        assert len(asked(model)) == 3

    async def test_its_probe_tells_the_version(self, rig: AgentRig) -> None:
        adapter = self.adapter(rig)
        run = await rig.start(adapter, rig.request(), launch=adapter.probe())
        await run.ended()
        assert run.exit is not None
        assert adapter.version(run.exit, run.text.partition("\n")[2], "")

    async def test_a_models_error_is_told_by_kind(self, rig: AgentRig) -> None:
        for kind, (reason, retryable) in self.errors.items():
            async with playing(rig, failing(kind)) as model:
                run, verdict = await rig.run(self.adapter(rig))
            assert (verdict.reason, verdict.retryable) == (reason, retryable), f"{kind}: {verdict}\n{run.text[-2000:]}"
            assert len(asked(model)) <= self.most_requests, f"{kind}: it retries for a little while only"

    async def test_a_model_that_fails_once_is_asked_again_and_that_is_told(self, rig: AgentRig) -> None:
        for kind, told in self.repeats.items():
            async with playing(rig, scenario({"text": "It went well.", "error": {"kind": kind, "times": 1}})) as model:
                run, verdict = await rig.run(self.adapter(rig))
            assert verdict.succeeded, f"{kind}: {verdict}\n{run.text[-2000:]}"
            assert verdict.final_message == "It went well."
            statuses = [entry["status"] for entry in asked(model)]
            assert statuses[0] >= 400
            assert statuses[-1] == 200
            assert [(one.kind, one.attempt) for one in only(run.events, Retry)] == ([(told, 1)] if told else []), kind

    async def test_an_endpoint_that_is_not_there_is_unreachable(self, rig: AgentRig) -> None:
        run, verdict = await rig.run(self.adapter(rig))
        assert (verdict.reason, verdict.retryable) == ("MODEL_UNREACHABLE", True), run.text

    async def test_a_session_that_is_not_there_is_a_bad_configuration(self, rig: AgentRig) -> None:
        async with playing(rig, WORK):
            _, verdict = await rig.run(self.adapter(rig), session_id=self.unknown_session)
        assert (verdict.reason, verdict.retryable) == ("BAD_CONFIGURATION", False), verdict
        assert self.says_unknown in verdict.message

    async def test_the_next_task_goes_on_with_its_session(self, rig: AgentRig) -> None:
        adapter = self.adapter(rig)
        async with playing(rig, WORK) as model:
            first, verdict = await rig.run(adapter)
            assert verdict.succeeded, first.text
            before = len(model.requests)
            request = rig.request(session_id=verdict.session_id, prompt="[[scenario:work]] And once more.")
            second = await rig.start(adapter, request, tree=rig.copy(first.tree))
            again = await second.ended()
            assert again.succeeded, second.text
            assert again.session_id == verdict.session_id
            bodies = [json.dumps(one["body"]) for one in model.requests[before:]]
            asked_with = [body for body in bodies if "And once more." in body]
        assert any("Write hello.txt, please." in body and "The file is written." in body for body in asked_with), [
            (one["path"], one.get("scenario"), one.get("turn"), len(json.dumps(one["body"])))
            for one in model.requests[before:]
        ]
        assert first.transcript.usage is not None
        assert second.transcript.usage is not None
        assert second.transcript.usage.output_tokens == first.transcript.usage.output_tokens, "of this attempt alone"

    async def test_endless_tool_calls_are_seen_as_turns_and_leave_no_process(self, rig: AgentRig) -> None:
        mark = f"MARK_OF_ENDLESS_{self.program.upper()}"
        async with playing(rig, scenario({"tools": [{"bash": "echo {turn}"}], "repeat": 0})):
            run = await rig.start(self.adapter(rig), rig.request(env={mark: "1"}))
            await run.until(lambda transcript: transcript.turns >= 4)
            assert with_variable(mark)
            await run.kill()
        assert with_variable(mark) == []

    async def test_after_a_kill_the_session_goes_on_from_a_copy(self, rig: AgentRig) -> None:
        adapter = self.adapter(rig)
        script = scenario(*WORK["scenarios"][0]["turns"][:2], {"text": "The file is written.", "hold": "last"})
        async with playing(rig, script) as model:
            first = await rig.start(adapter, rig.request())
            await model.wait_for(lambda requests: any(one["turn"] == 2 for one in requests), WITHIN)
            if self.session_files:
                await first.wrote(self.session_files, *self.stored)
            else:
                await first.until(lambda transcript: transcript.turns == 2)
                call = only(first.events, ToolResult)[-1].call_id
                trace = adapter.trace(first.transcript.session_id, call)
                if trace is not None:
                    await first.wrote(f"home/{trace.path}", trace.text)
            await first.kill()
            await model.release("last")
            before = len(model.requests)
            session = first.transcript.session_id
            request = rig.request(session_id=session, resumes=True)
            run = await rig.start(adapter, request, tree=rig.copy(first.tree))
            verdict = await run.ended()
            assert verdict.succeeded, run.text
            assert verdict.session_id == session
            bodies = [json.dumps(one["body"]) for one in model.requests[before:]]
            last = next(body for body in reversed(bodies) if "interrupted and goes on" in body)
        assert "Write hello.txt, please." in last
        assert "I write the file." in last
        assert (run.tree / "workspace/turns.txt").read_text() == "task task-1\n", "no turn was run twice"
        assert run.transcript.turns == 1, "of this attempt alone"

    async def test_messages_that_waited_are_answered_with_the_prompt(self, rig: AgentRig) -> None:
        async with playing(rig, scenario({"text": "Yes to both."})) as model:
            run, verdict = await rig.run(self.adapter(rig), inputs=(Input(1, "m1", "And paint it."),))
        assert verdict.final_message == "Yes to both."
        assert run.transcript.inputs == 1
        assert len(asked(model)) == 1

    async def test_an_agent_that_dies_at_work_is_worth_another_attempt(self, rig: AgentRig) -> None:
        async with playing(rig, scenario({"tools": [{"bash": f"{self.kills_itself}; sleep 60"}]})):
            run, verdict = await rig.run(self.adapter(rig), conversation=True)
        assert not verdict.succeeded
        assert verdict.reason in ("KILLED_BY_SIGNAL", "AGENT_FAILED"), run.text
        assert verdict.retryable

    async def test_a_term_signal_is_no_success(self, rig: AgentRig) -> None:
        async with playing(rig, scenario({"hang": "before"})) as model:
            run = await rig.start(self.adapter(rig), rig.request())
            await model.wait_for(lambda requests: bool(asked(model)), WITHIN)
            await rig.slot.stop(run.attempt.uid, KillReason.CANCELED, 5)
            verdict = await run.ended()
        assert not verdict.succeeded
        assert not any(finished.ok for finished in answers(run))


class TalksWhileItRuns:
    """Tests of agents that take input."""

    async def test_a_conversation_answers_each_message_and_ends_when_its_input_does(self, rig: AgentRig) -> None:
        adapter = self.adapter(rig)  # type: ignore[attr-defined]
        async with playing(rig, WORK) as model:
            run = await rig.start(adapter, rig.request(conversation=True))
            await run.until(lambda transcript: transcript.answered)
            await run.say("[[scenario:work]] And once more.", 1)
            seen = await run.until(lambda transcript: transcript.answered and transcript.told == 1)
            assert seen.inputs == 1
            verdict = await run.close()
            assert verdict.succeeded, run.text
            assert len(answers(run)) == 2
            assert run.transcript.turns == 6
            assert "And once more." in json.dumps(asked(model)[-1]["body"])


async def warmed(rig: AgentRig, adapter: AgentAdapter) -> None:
    """An agent waits in the rig's slot."""
    warmth = adapter.warmth()
    assert warmth is not None
    await rig.slot.warm(warmth.launch, LIMITS, warmth.ready)
    status = await slots.until(rig.slot, lambda status: status.warm not in ("", "warming"), 60)
    assert status.warm == "ready", status.warm
    assert (await rig.slot.usage("")).memory_bytes < warmth.memory_bytes
