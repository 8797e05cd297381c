"""The real Codex in a slot, against a scripted model."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from cloudclaw_pool_manager.ports.runtime import AgentAdapter
from cloudclaw_pool_manager.runtimes.codex import Codex
from tests.support.agent_behaviour import ERRORS, AgentBehaviour
from tests.support.agent_rig import AgentRig

pytestmark = [pytest.mark.sandbox, pytest.mark.agents]


class TestCodex(AgentBehaviour):
    program = "codex"
    most_requests = 16  # it repeats requests, and streams of requests
    errors: ClassVar = {
        kind: ERRORS[kind]
        for kind in (
            "authentication",
            "rate_limit",
            "context_too_long",
            "not_found",
            "server_error",
        )
    }
    says_unknown = "no rollout found"

    def adapter(self, rig: AgentRig, **options: Any) -> AgentAdapter:
        return Codex(**rig.options(model="scripted", **options))
