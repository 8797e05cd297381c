"""The real Claude Code in a slot, against a scripted model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from cloudclaw.agents.events import Message, ToolResult
from cloudclaw_pool_manager.domain.attempt import KillReason
from cloudclaw_pool_manager.ports.runtime import Input
from cloudclaw_pool_manager.runtimes.claude_code import ClaudeCode
from tests.support import slots
from tests.support.agent_rig import LIMITS, WORK, AgentRig, agent_rig, answers, asked, failing, playing, scenario
from tests.support.require import require_root
from tests.support.transcripts import only

pytestmark = pytest.mark.sandbox


@pytest.fixture
async def rig() -> AsyncIterator[AgentRig]:
    async with agent_rig("claude") as made:
        yield made


@pytest.fixture
def claude(rig: AgentRig) -> ClaudeCode:
    return ClaudeCode(**rig.options())


async def test_a_task_is_done_by_turns(rig: AgentRig, claude: ClaudeCode) -> None:
    async with playing(rig, WORK) as model:
        run, verdict = await rig.run(claude)
    assert verdict.succeeded, run.text
    assert verdict.final_message == "The file is written."
    assert (run.tree / "workspace/hello.txt").read_bytes() == b"hello\n"
    assert (run.tree / "workspace/turns.txt").read_text() == "task task-1\n"
    assert run.transcript.turns == 3
    assert run.transcript.usage is not None
    assert run.transcript.usage.turns == 3
    assert (run.transcript.usage.output_tokens or 0) > 0
    assert len(asked(model)) == 3
    slug = run.tree / "home/.claude/projects/-workspace" / f"{verdict.session_id}.jsonl"
    assert slug.exists(), "the session is where a snapshot finds it"


async def test_its_probe_tells_the_version(rig: AgentRig, claude: ClaudeCode) -> None:
    run = await rig.start(claude, rig.request(), launch=claude.probe())
    await run.ended()
    assert run.exit is not None
    assert claude.version(run.exit, run.text.partition("\n")[2], "").startswith("2.")


@pytest.mark.parametrize(
    ("kind", "reason", "retryable"),
    [
        ("authentication", "MODEL_AUTHENTICATION", False),
        ("rate_limit", "MODEL_RATE_LIMIT", True),
        ("overloaded", "MODEL_OVERLOADED", True),
        ("context_too_long", "MODEL_CONTEXT", False),
        ("not_found", "MODEL_NOT_FOUND", False),
        ("server_error", "MODEL_FAILED", True),
        ("invalid_request", "MODEL_FAILED", False),
    ],
)
async def test_a_models_error_is_told_by_kind(
    rig: AgentRig, claude: ClaudeCode, kind: str, reason: str, retryable: bool
) -> None:
    async with playing(rig, failing(kind)) as model:
        _, verdict = await rig.run(claude)
    assert (verdict.succeeded, verdict.reason, verdict.retryable) == (False, reason, retryable), verdict
    assert len(asked(model)) <= 6, "it retries for a little while only; a refused request without its extras"


async def test_an_endpoint_that_is_not_there_is_unreachable(rig: AgentRig, claude: ClaudeCode) -> None:
    _, verdict = await rig.run(claude)
    assert (verdict.reason, verdict.retryable) == ("MODEL_UNREACHABLE", True)


async def test_endless_tool_calls_end_at_the_limit_of_turns(rig: AgentRig, claude: ClaudeCode) -> None:
    async with playing(rig, scenario({"tools": [{"bash": "echo {turn}"}], "repeat": 0})):
        run, verdict = await rig.run(claude, max_turns=3)
    assert verdict.reason == "TURN_LIMIT"
    assert run.transcript.turns == 3


async def test_a_session_that_is_not_there_is_a_bad_configuration(rig: AgentRig, claude: ClaudeCode) -> None:
    async with playing(rig, WORK):
        _, verdict = await rig.run(claude, session_id="11111111-2222-4333-8444-555555555555")
    assert (verdict.reason, verdict.retryable) == ("BAD_CONFIGURATION", False)
    assert "No conversation found" in verdict.message


async def test_without_permissions_a_denied_tool_is_no_success(rig: AgentRig) -> None:
    async with playing(rig, WORK):
        run, verdict = await rig.run(ClaudeCode(**rig.options(permissions=False)))
    assert run.exit is not None
    assert run.exit.code == 0
    assert verdict.reason == "PERMISSION_DENIED"
    assert "Write" in verdict.message


async def test_after_a_kill_the_session_goes_on_from_a_copy(rig: AgentRig, claude: ClaudeCode) -> None:
    script = scenario(*WORK["scenarios"][0]["turns"][:2], {"text": "The file is written.", "hold": "last"})
    async with playing(rig, script) as model:
        first = await rig.start(claude, rig.request())
        seen = await first.until(lambda transcript: transcript.turns == 2)
        await model.wait_for(lambda requests: any(one["turn"] == 2 for one in requests))
        assert seen.begun
        await first.kill()
        await model.release("last")
        tree = rig.copy(first.tree)
        request = rig.request(session_id=seen.session_id, resumes=True)
        run = await rig.start(claude, request, tree=tree)
        verdict = await run.ended()
        assert verdict.succeeded, run.text
        assert verdict.session_id == seen.session_id
        last = json.dumps(asked(model)[-1]["body"])
    assert "Write hello.txt, please." in last
    assert "I write the file." in last
    assert "interrupted and goes on" in last
    assert (tree / "workspace/turns.txt").read_text() == "task task-1\n", "no turn was run twice"
    assert run.transcript.usage is not None
    assert run.transcript.usage.turns == 1, "of this attempt alone"


async def test_a_conversation_answers_each_message_and_ends_when_its_input_does(
    rig: AgentRig, claude: ClaudeCode
) -> None:
    async with playing(rig, WORK) as model:
        run = await rig.start(claude, rig.request(conversation=True))
        await run.until(lambda transcript: transcript.answered)
        await run.say("[[scenario:work]] And once more.", 1)
        seen = await run.until(lambda transcript: transcript.answered and transcript.told == 1)
        assert seen.inputs == 1
        verdict = await run.close()
    assert verdict.succeeded, run.text
    assert len(answers(run)) == 2
    assert run.transcript.turns == 6
    assert [event.text for event in only(run.events, Message) if event.role == "user"][1].endswith("once more.")
    assert "And once more." in json.dumps(asked(model)[-1]["body"])


async def test_messages_that_waited_are_answered_with_the_prompt(rig: AgentRig, claude: ClaudeCode) -> None:
    async with playing(rig, scenario({"text": "Yes to both."})) as model:
        run, verdict = await rig.run(claude, inputs=(Input(1, "m1", "And paint it."),))
    assert verdict.final_message == "Yes to both."
    assert run.transcript.inputs == 1
    assert len(asked(model)) == 1


async def test_a_term_signal_is_told_as_one(rig: AgentRig, claude: ClaudeCode) -> None:
    async with playing(rig, scenario({"hang": "before"})) as model:
        run = await rig.start(claude, rig.request())
        await model.wait_for(lambda requests: bool(asked(model)))
        await rig.slot.stop(run.attempt.uid, KillReason.CANCELED, 5)
        verdict = await run.ended()
    assert not verdict.succeeded
    assert answers(run) == []


# -- waiting warm --


async def warmed(rig: AgentRig, claude: ClaudeCode) -> None:
    require_root()
    warmth = claude.warmth()
    assert warmth is not None
    await rig.slot.warm(warmth.launch, LIMITS, warmth.ready)
    status = await slots.until(rig.slot, lambda status: status.warm not in ("", "warming"), 60)
    assert status.warm == "ready", status.warm
    assert (await rig.slot.usage("")).memory_bytes < warmth.memory_bytes


TREE = {
    "workspace/CLAUDE.md": b"PROJECT-MEMORY\n",
    "home/.claude/CLAUDE.md": b"USER-MEMORY\n",
    "workspace/.claude/skills/dig/SKILL.md": b"---\nname: dig\ndescription: SKILL-OF-PROJECT\n---\nDig.\n",
}


async def test_a_spare_that_waited_warm_works_as_a_fresh_one_does(rig: AgentRig, claude: ClaudeCode) -> None:
    await warmed(rig, claude)
    tree = rig.copy(rig.node.tree(TREE))
    async with playing(rig, WORK) as model:
        request = rig.request()
        run = await rig.start(claude, request, tree=tree, launch=claude.join(request))
        verdict = await run.ended()
        first = json.dumps(asked(model)[0]["body"])
    assert verdict.succeeded, run.text
    assert (run.tree / "workspace/hello.txt").read_bytes() == b"hello\n"
    assert (run.tree / "workspace/turns.txt").read_text() == "task task-1\n", "its tools have the task's variables"
    for word in ("PROJECT-MEMORY", "USER-MEMORY", "SKILL-OF-PROJECT"):
        assert word in first, "what it reads at its start, it read in the task's folder"
    assert (run.tree / f"home/.claude/projects/-workspace/{verdict.session_id}.jsonl").exists()
    assert asked(model)[0]["scenario"] == "work"


async def test_a_spares_session_can_be_resumed(rig: AgentRig, claude: ClaudeCode) -> None:
    await warmed(rig, claude)
    async with playing(rig, WORK) as model:
        request = rig.request(conversation=True)
        run = await rig.start(claude, request, launch=claude.join(request))
        seen = await run.until(lambda transcript: transcript.answered)
        await run.close()
        request = rig.request(session_id=seen.session_id, resumes=True, inputs=(Input(1, "m", "Well?"),))
        second = await rig.start(claude, request, tree=rig.copy(run.tree))
        verdict = await second.ended()
        assert verdict.session_id == seen.session_id
        assert "The file is written." in json.dumps(model.requests[-1]["body"])


@pytest.mark.parametrize("name", ["workspace/.claude/settings.json", "home/.claude/settings.json"])
async def test_a_folder_with_settings_gets_a_fresh_process_in_the_same_slot(
    rig: AgentRig, claude: ClaudeCode, name: str
) -> None:
    await warmed(rig, claude)
    tree = rig.copy(rig.node.tree({name: b'{"env": {"OF_SETTINGS": "yes"}}'}))
    script = scenario({"tools": [{"bash": "echo $OF_SETTINGS $CLAW_TASK_ID"}]}, {"text": "Done."})
    async with playing(rig, script):
        request = rig.request()
        run = await rig.start(claude, request, tree=tree, launch=claude.join(request))
        verdict = await run.ended()
    assert verdict.succeeded, run.text
    assert [result.output for result in only(run.events, ToolResult)] == ["yes task-1"]


async def test_a_spare_is_quicker_than_a_fresh_process(rig: AgentRig, claude: ClaudeCode) -> None:
    script = scenario({"text": "Yes."})
    loop = asyncio.get_running_loop()
    took = {}
    async with playing(rig, script) as model:
        for how in ("cold", "warm"):
            request = rig.request()
            if how == "warm":
                await warmed(rig, claude)
            begun = loop.time()
            await model.reset()
            run = await rig.start(claude, request, launch=claude.join(request) if how == "warm" else None)
            await model.wait_for(lambda requests: bool(asked(model)))
            took[how] = loop.time() - begun
            await run.ended()
    print({how: round(seconds, 3) for how, seconds in took.items()})
    assert took["warm"] < took["cold"]
