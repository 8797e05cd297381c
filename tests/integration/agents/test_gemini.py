"""The real Gemini in a slot, against a scripted model."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from cloudclaw.agents.events import ErrorKind
from cloudclaw_pool_manager.ports.runtime import AgentAdapter
from cloudclaw_pool_manager.runtimes.gemini import Gemini
from tests.support.agent_behaviour import ERRORS, AgentBehaviour
from tests.support.agent_rig import AgentRig

pytestmark = [pytest.mark.sandbox, pytest.mark.agents, pytest.mark.timeout(600)]


class TestGemini(AgentBehaviour):
    program = "gemini"
    # It waits five seconds and more before it asks again; the recordings have the other kinds.
    errors: ClassVar = {
        kind: ERRORS[kind]
        for kind in ("authentication", "permission", "rate_limit", "context_too_long", "not_found", "invalid_request")
    }
    repeats: ClassVar = {"overloaded": ErrorKind.OVERLOADED}
    says_unknown = "No previous sessions"

    def adapter(self, rig: AgentRig, **options: Any) -> AgentAdapter:
        return Gemini(**rig.options(model="gemini-2.5-pro", **options))
