"""CloudClaw's tests of runtimes, on ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from owl_runtime import Owl  # type: ignore[import-not-found]

from cloudclaw_pool_manager.ports.runtime import AgentAdapter
from cloudclaw_pool_manager.runtimes.registry import load_runtimes
from cloudclaw_pool_manager.testing.runtimes import AgentContract


class TestOwl(AgentContract):
    recordings = Path(__file__).parent / "recordings"
    expected: ClassVar = {"success": "COMPLETED", "busy": "MODEL_RATE_LIMIT", "unknown-session": "BAD_CONFIGURATION"}

    def adapter(self, **options: Any) -> AgentAdapter:
        return Owl(**options)  # type: ignore[no-any-return]


def test_a_pool_that_names_it_finds_it_with_its_options() -> None:
    owl = load_runtimes(["owl"], {"owl": {"model": "barn"}})["owl"]
    assert isinstance(owl, Owl)
    assert owl.options.model == "barn"
