"""The real OpenClaw in a slot, against a scripted model. Each run takes it some seconds."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from cloudclaw_pool_manager.ports.runtime import AgentAdapter
from cloudclaw_pool_manager.runtimes.openclaw import OpenClaw
from tests.support.agent_behaviour import ERRORS, AgentBehaviour
from tests.support.agent_rig import AgentRig

pytestmark = [pytest.mark.sandbox, pytest.mark.agents, pytest.mark.timeout(600)]


class TestOpenClaw(AgentBehaviour):
    program = "openclaw"
    # After the others it retries for up to two minutes; the recordings have them.
    errors: ClassVar = {kind: ERRORS[kind] for kind in ("authentication",)}
    test_a_model_that_fails_once_is_asked_again_and_that_is_told = None  # type: ignore[assignment] # 25 s a try
    says_unknown = "no session"
    kills_itself = "kill -9 -1"  # the parent of a tool's shell is a helper

    def adapter(self, rig: AgentRig, **options: Any) -> AgentAdapter:
        return OpenClaw(**rig.options(model="scripted", **options))
