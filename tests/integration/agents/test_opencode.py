"""The real OpenCode in a slot, against a scripted model."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from cloudclaw.agents.events import ErrorKind
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, Input
from cloudclaw_pool_manager.runtimes.opencode import OpenCode
from tests.support.agent_behaviour import ERRORS, AgentBehaviour, TalksWhileItRuns, warmed
from tests.support.agent_rig import WORK, AgentRig, asked, playing, scenario
from tests.support.require import require_root

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(600)]


class TestOpenCode(TalksWhileItRuns, AgentBehaviour):
    program = "opencode"
    session_files = "home/.local/share/opencode/opencode.db*"
    stored = (b"CLAW_TASK_ID", 1)
    # A server takes seconds to start; the recordings have the other kinds.
    errors: ClassVar = {
        kind: ERRORS[kind] for kind in ("authentication", "rate_limit", "context_too_long", "not_found")
    }
    repeats: ClassVar = {"overloaded": ErrorKind.OVERLOADED}
    unknown_session = "ses_0000000000000000000000000"

    def adapter(self, rig: AgentRig, **options: Any) -> AgentAdapter:
        return OpenCode(**rig.options(**options))

    async def test_it_speaks_with_an_openai_endpoint_too(self, rig: AgentRig) -> None:
        async with playing(rig, WORK) as model:
            run, verdict = await rig.run(self.adapter(rig, api="openai", model="any"))
        assert verdict.succeeded, run.text
        assert asked(model)[0]["path"] == "/openai/v1/chat/completions"

    async def test_without_permissions_a_refused_tool_is_no_success(self, rig: AgentRig) -> None:
        async with playing(rig, WORK):
            run, verdict = await rig.run(self.adapter(rig, permissions=False))
        assert verdict.reason == "PERMISSION_DENIED", run.text

    async def test_a_spare_that_waited_warm_leaves_its_session_in_the_home(self, rig: AgentRig) -> None:
        require_root()
        adapter = self.adapter(rig)
        await warmed(rig, adapter)
        async with playing(rig, WORK) as model:
            request = rig.request()
            run = await rig.start(adapter, request, launch=adapter.join(request))
            verdict = await run.ended()
            assert verdict.succeeded, run.text
            assert (run.tree / "workspace/turns.txt").read_text() == "task task-1\n", "its tools have the variables"
            inputs = (Input(1, "m", "Well?"),)
            request = rig.request(session_id=verdict.session_id, resumes=True, inputs=inputs)
            second = await rig.start(adapter, request, tree=rig.copy(run.tree))
            verdict = await second.ended()
            assert verdict.succeeded, second.text
            assert "The file is written." in json.dumps(model.requests[-1]["body"])

    async def test_a_home_with_sessions_gets_a_fresh_server_in_the_same_slot(self, rig: AgentRig) -> None:
        require_root()
        adapter = self.adapter(rig)
        async with playing(rig, scenario({"text": "Yes."})):
            first, verdict = await rig.run(adapter)
            await warmed(rig, adapter)
            request = rig.request()
            run = await rig.start(adapter, request, tree=rig.copy(first.tree), launch=adapter.join(request))
            again = await run.ended()
            assert again.succeeded, run.text
            request = rig.request(session_id=verdict.session_id)
            third = await rig.start(adapter, request, tree=rig.copy(run.tree))
            assert (await third.ended()).session_id == verdict.session_id, "the earlier session is still there"
