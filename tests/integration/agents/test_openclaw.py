"""The real OpenClaw in a slot, against a scripted model. Each run takes it some seconds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudclaw_pool_manager.runtimes.openclaw import OpenClaw
from tests.support.agent_rig import WORK, AgentRig, agent_rig, asked, failing, playing, scenario

pytestmark = [pytest.mark.sandbox, pytest.mark.agents]


@pytest.fixture
async def rig() -> AsyncIterator[AgentRig]:
    async with agent_rig("openclaw") as made:
        yield made


@pytest.fixture
def openclaw(rig: AgentRig) -> OpenClaw:
    return OpenClaw(**rig.options(model="scripted"))


def with_variable(name: str) -> list[str]:
    """Processes of this machine that have the environment variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if name.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


async def test_a_task_is_done_by_turns(rig: AgentRig, openclaw: OpenClaw) -> None:
    async with playing(rig, WORK) as model:
        run, verdict = await rig.run(openclaw)
    assert verdict.succeeded, run.text
    assert verdict.final_message == "The file is written."
    assert (run.tree / "workspace/hello.txt").read_bytes() == b"hello\n"
    assert (run.tree / "workspace/turns.txt").read_text() == "task task-1\n"
    assert run.transcript.turns == 3
    assert run.transcript.usage is not None
    assert run.transcript.usage.turns == 3
    assert (run.transcript.usage.output_tokens or 0) > 0
    assert len(asked(model)) == 3
    assert not (run.tree / "home/.openclaw/openclaw.json").exists(), "the user's own configuration is left alone"


async def test_its_probe_tells_the_version(rig: AgentRig, openclaw: OpenClaw) -> None:
    run = await rig.start(openclaw, rig.request(), launch=openclaw.probe())
    await run.ended()
    assert run.exit is not None
    assert openclaw.version(run.exit, run.text.partition("\n")[2], "").startswith("20")


async def test_a_refused_key_is_told_as_that(rig: AgentRig, openclaw: OpenClaw) -> None:
    async with playing(rig, failing("authentication")):
        run, verdict = await rig.run(openclaw)
    assert (verdict.reason, verdict.retryable) == ("MODEL_AUTHENTICATION", False), run.text


async def test_a_session_that_is_not_there_is_a_bad_configuration(rig: AgentRig, openclaw: OpenClaw) -> None:
    _, verdict = await rig.run(openclaw, session_id="11111111-2222-4333-8444-555555555555")
    assert (verdict.reason, verdict.retryable) == ("BAD_CONFIGURATION", False)
    assert "no session" in verdict.message


async def test_endless_tool_calls_are_seen_as_turns_and_leave_no_process(rig: AgentRig, openclaw: OpenClaw) -> None:
    async with playing(rig, scenario({"tools": [{"bash": "echo {turn}"}], "repeat": 0})):
        run = await rig.start(openclaw, rig.request(env={"MARK_OF_THE_ENDLESS": "1"}))
        await run.until(lambda transcript: transcript.turns >= 4)
        assert with_variable("MARK_OF_THE_ENDLESS")
        await run.kill()
    assert with_variable("MARK_OF_THE_ENDLESS") == []


async def test_after_a_kill_the_session_goes_on_from_a_copy(rig: AgentRig, openclaw: OpenClaw) -> None:
    script = scenario(*WORK["scenarios"][0]["turns"][:2], {"text": "The file is written.", "hold": "last"})
    async with playing(rig, script) as model:
        first = await rig.start(openclaw, rig.request())
        seen = await first.until(lambda transcript: transcript.turns == 2)
        await model.wait_for(lambda requests: any(one["turn"] == 2 for one in requests))
        await first.kill()
        await model.release("last")
        tree = rig.copy(first.tree)
        run = await rig.start(openclaw, rig.request(session_id=seen.session_id, resumes=True), tree=tree)
        verdict = await run.ended()
        assert verdict.succeeded, run.text
        assert "state writer is active" not in run.text
        assert verdict.session_id == seen.session_id
        last = json.dumps(asked(model)[-1]["body"])
    assert "Write hello.txt, please." in last
    assert "I write the file." in last
    assert "interrupted and goes on" in last
    assert (tree / "workspace/turns.txt").read_text() == "task task-1\n", "no turn was run twice"
