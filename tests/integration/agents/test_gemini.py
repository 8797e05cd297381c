"""The real Gemini in a slot, against a scripted model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from cloudclaw_pool_manager.runtimes.gemini import Gemini
from tests.support.agent_rig import WORK, AgentRig, agent_rig, asked, failing, playing, scenario

pytestmark = [pytest.mark.sandbox, pytest.mark.agents]


@pytest.fixture
async def rig() -> AsyncIterator[AgentRig]:
    async with agent_rig("gemini") as made:
        yield made


@pytest.fixture
def gemini(rig: AgentRig) -> Gemini:
    return Gemini(**rig.options(model="gemini-2.5-pro"))


async def test_a_task_is_done_by_turns_and_its_session_can_go_on(rig: AgentRig, gemini: Gemini) -> None:
    async with playing(rig, WORK) as model:
        run, verdict = await rig.run(gemini)
        assert verdict.succeeded, run.text
        assert verdict.final_message == "The file is written."
        assert (run.tree / "workspace/hello.txt").read_bytes() == b"hello\n"
        assert (run.tree / "workspace/turns.txt").read_text() == "task task-1\n"
        assert run.transcript.turns == 3
        first = run.transcript.usage
        assert first is not None
        second = await rig.start(gemini, rig.request(session_id=verdict.session_id), tree=run.tree)
        again = await second.ended()
        assert again.succeeded, second.text
        assert again.session_id == verdict.session_id
        assert second.transcript.usage is not None
        assert (first.output_tokens or 0) > 0
        assert second.transcript.usage.output_tokens == first.output_tokens, "of this attempt alone"
        assert len(asked(model)) == 6


async def test_its_probe_tells_the_version(rig: AgentRig, gemini: Gemini) -> None:
    run = await rig.start(gemini, rig.request(), launch=gemini.probe())
    await run.ended()
    assert run.exit is not None
    assert gemini.version(run.exit, run.text.partition("\n")[2], "").startswith("0.")


@pytest.mark.parametrize(
    ("kind", "reason", "retryable"),
    [
        ("authentication", "MODEL_AUTHENTICATION", False),
        ("rate_limit", "MODEL_RATE_LIMIT", True),
        ("context_too_long", "MODEL_CONTEXT", False),
        ("not_found", "MODEL_NOT_FOUND", False),
    ],
)
async def test_a_models_error_is_told_by_kind(
    rig: AgentRig, gemini: Gemini, kind: str, reason: str, retryable: bool
) -> None:
    async with playing(rig, failing(kind)):
        run, verdict = await rig.run(gemini)
    assert (verdict.succeeded, verdict.reason, verdict.retryable) == (False, reason, retryable), run.text


async def test_an_endpoint_that_is_not_there_is_unreachable(rig: AgentRig, gemini: Gemini) -> None:
    run, verdict = await rig.run(gemini)
    assert (verdict.reason, verdict.retryable) == ("MODEL_UNREACHABLE", True), run.text


async def test_a_session_that_is_not_there_is_a_bad_configuration(rig: AgentRig, gemini: Gemini) -> None:
    _, verdict = await rig.run(gemini, session_id="11111111-2222-4333-8444-555555555555")
    assert (verdict.reason, verdict.retryable) == ("BAD_CONFIGURATION", False)
    assert "No previous sessions" in verdict.message


async def test_endless_tool_calls_are_seen_as_turns(rig: AgentRig, gemini: Gemini) -> None:
    async with playing(rig, scenario({"tools": [{"bash": "echo {turn}"}], "repeat": 0})):
        run = await rig.start(gemini, rig.request())
        await run.until(lambda transcript: transcript.turns >= 4)
        await run.kill()


async def test_after_a_kill_the_session_goes_on_from_a_copy(rig: AgentRig, gemini: Gemini) -> None:
    script = scenario(*WORK["scenarios"][0]["turns"][:2], {"text": "The file is written.", "hold": "last"})
    async with playing(rig, script) as model:
        first = await rig.start(gemini, rig.request())
        seen = await first.until(lambda transcript: transcript.turns == 2)
        await model.wait_for(lambda requests: any(one["turn"] == 2 for one in requests))
        await first.kill()
        await model.release("last")
        tree = rig.copy(first.tree)
        run = await rig.start(gemini, rig.request(session_id=seen.session_id, resumes=True), tree=tree)
        verdict = await run.ended()
        assert verdict.succeeded, run.text
        assert verdict.session_id == seen.session_id
        last = json.dumps(asked(model)[-1]["body"])
    assert "Write hello.txt, please." in last
    assert "I write the file." in last
    assert "interrupted and goes on" in last
    assert (tree / "workspace/turns.txt").read_text() == "task task-1\n", "no turn was run twice"
    assert run.transcript.usage is not None
    assert run.transcript.usage.turns == 1
