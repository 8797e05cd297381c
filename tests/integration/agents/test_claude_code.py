"""The real Claude Code in a slot, against a scripted model."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from cloudclaw.agents.events import ErrorKind, ToolResult
from cloudclaw_pool_manager.ports.runtime import Input
from cloudclaw_pool_manager.runtimes.claude_code import ClaudeCode
from tests.support.agent_behaviour import AgentBehaviour, TalksWhileItRuns, warmed
from tests.support.agent_rig import WORK, AgentRig, asked, playing, scenario
from tests.support.require import require_root
from tests.support.transcripts import only

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(600)]

TREE = {
    "workspace/CLAUDE.md": b"PROJECT-MEMORY\n",
    "home/.claude/CLAUDE.md": b"USER-MEMORY\n",
    "workspace/.claude/skills/dig/SKILL.md": b"---\nname: dig\ndescription: SKILL-OF-PROJECT\n---\nDig.\n",
}


class TestClaudeCode(TalksWhileItRuns, AgentBehaviour):
    program = "claude"
    repeats: ClassVar = {
        "rate_limit": ErrorKind.RATE_LIMIT,
        "overloaded": ErrorKind.OVERLOADED,
        "server_error": ErrorKind.SERVER,
    }

    def adapter(self, rig: AgentRig, **options: Any) -> ClaudeCode:
        return ClaudeCode(**rig.options(**options))

    async def test_endless_tool_calls_end_at_the_limit_of_turns(self, rig: AgentRig) -> None:
        claude = self.adapter(rig)
        async with playing(rig, scenario({"tools": [{"bash": "echo {turn}"}], "repeat": 0})):
            run, verdict = await rig.run(claude, max_turns=3)
        assert verdict.reason == "TURN_LIMIT"
        assert run.transcript.turns == 3

    async def test_without_permissions_a_denied_tool_is_no_success(self, rig: AgentRig) -> None:
        async with playing(rig, WORK):
            run, verdict = await rig.run(self.adapter(rig, permissions=False))
        assert run.exit is not None
        assert run.exit.code == 0
        assert verdict.reason == "PERMISSION_DENIED"
        assert "Write" in verdict.message

    async def test_a_spare_that_waited_warm_works_as_a_fresh_one_does(self, rig: AgentRig) -> None:
        require_root()
        claude = self.adapter(rig)
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

    async def test_a_spares_session_can_be_resumed(self, rig: AgentRig) -> None:
        require_root()
        claude = self.adapter(rig)
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
    async def test_a_folder_with_settings_gets_a_fresh_process_in_the_same_slot(self, rig: AgentRig, name: str) -> None:
        require_root()
        claude = self.adapter(rig)
        await warmed(rig, claude)
        tree = rig.copy(rig.node.tree({name: b'{"env": {"OF_SETTINGS": "yes"}}'}))
        script = scenario({"tools": [{"bash": "echo $OF_SETTINGS $CLAW_TASK_ID"}]}, {"text": "Done."})
        async with playing(rig, script):
            request = rig.request()
            run = await rig.start(claude, request, tree=tree, launch=claude.join(request))
            verdict = await run.ended()
        assert verdict.succeeded, run.text
        assert [result.output for result in only(run.events, ToolResult)] == ["yes task-1"]
