"""The real Codex in a slot, against a scripted model."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from cloudclaw.agents.events import ErrorKind
from cloudclaw_pool_manager.ports.runtime import AgentAdapter
from cloudclaw_pool_manager.runtimes.codex import Codex
from tests.support.agent_behaviour import AgentBehaviour
from tests.support.agent_rig import AgentRig

pytestmark = [pytest.mark.sandbox, pytest.mark.agents, pytest.mark.timeout(600)]


class TestCodex(AgentBehaviour):
    program = "codex"
    most_requests = 16  # it repeats requests, and streams of requests
    # It repeats requests without a word, and tells of streams that it begins again.
    repeats: ClassVar = {"permission": ErrorKind.AUTHENTICATION, "overloaded": None, "server_error": None}
    says_unknown = "no rollout found"

    def adapter(self, rig: AgentRig, **options: Any) -> AgentAdapter:
        return Codex(**rig.options(model="scripted", **options))
