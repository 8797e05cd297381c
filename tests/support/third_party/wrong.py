"""The same tests on adapters that are wrong: each must be told so by the tests that it names."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from owl_runtime import Owl, OwlParser  # type: ignore[import-not-found]

from cloudclaw.agents.events import AnyEvent, Turn
from cloudclaw.agents.transcript import Transcript
from cloudclaw_pool_manager.domain.attempt import Exit, Launch
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, Input, RunRequest, Verdict
from cloudclaw_pool_manager.testing.runtimes import AgentContract


class _Wrong(AgentContract):
    recordings = Path(__file__).parent / "recordings"
    expected: ClassVar = {"success": "COMPLETED", "busy": "MODEL_RATE_LIMIT"}
    kind: ClassVar[Any]

    def adapter(self, **options: Any) -> AgentAdapter:
        return self.kind(**options)  # type: ignore[no-any-return]


class TestTrustsExitCodes(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
            verdict: Verdict = super().judge(request, exit, transcript)
            return verdict if exit.code else Verdict(True, "COMPLETED", "it ended")


class TestTriesEverythingAgain(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def judge(self, request: RunRequest, exit: Exit, transcript: Transcript) -> Verdict:
            verdict: Verdict = super().judge(request, exit, transcript)
            return replace(verdict, retryable=not verdict.succeeded)


class TestLeaksTheNodesEnvironment(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def launch(self, request: RunRequest) -> Launch:
            launch: Launch = super().launch(request)
            return replace(launch, env={**os.environ, **launch.env})


class TestLetsTheTaskNameItself(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def launch(self, request: RunRequest) -> Launch:
            launch: Launch = super().launch(request)
            return replace(launch, env={**launch.env, **request.env})


class TestSaysThePromptAgain(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def launch(self, request: RunRequest) -> Launch:
            launch: Launch = super().launch(request)
            return replace(launch, stdin=launch.stdin + b"\n" + request.prompt.encode())


class TestInventsSessions(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def launch(self, request: RunRequest) -> Launch:
            launch: Launch = super().launch(replace(request, uid=str(uuid.uuid4())))
            return launch


class TestTakesInputByHalves(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def encode_input(self, given: Input) -> bytes | None:
            return given.text.encode()


class _Silent(OwlParser):  # type: ignore[misc]
    def on_object(self, line: Any) -> list[AnyEvent]:
        return [event for event in super().on_object(line) if not isinstance(event, Turn)]


class TestTellsNoTurns(_Wrong):
    class kind(Owl):  # type: ignore[misc]
        def parser(self) -> _Silent:
            return _Silent()
