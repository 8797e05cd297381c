"""The real Gemini in a slot, against a scripted model."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from cloudclaw_pool_manager.ports.runtime import AgentAdapter
from cloudclaw_pool_manager.runtimes.gemini import Gemini
from tests.support.agent_behaviour import ERRORS, AgentBehaviour
from tests.support.agent_rig import AgentRig

pytestmark = [pytest.mark.sandbox, pytest.mark.agents]


class TestGemini(AgentBehaviour):
    program = "gemini"
    errors: ClassVar = {
        kind: ERRORS[kind]
        for kind in (
            "authentication",
            "rate_limit",
            "context_too_long",
            "not_found",
        )
    }
    says_unknown = "No previous sessions"

    def adapter(self, rig: AgentRig, **options: Any) -> AgentAdapter:
        return Gemini(**rig.options(model="gemini-2.5-pro", **options))
