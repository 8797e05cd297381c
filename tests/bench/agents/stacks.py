"""Stacks with real agents and a scripted model, and what is read of them."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.bench.agents.bare import PREFIX, Bare
from tests.bench.agents.engine import Engine
from tests.bench.agents.record import Record
from tests.support.agents import AgentStack
from tests.support.processes import eventually

WORK = [
    {"text": "I do it.", "tools": [{"bash": "echo done > done.txt"}], "delay": 0.3},
    {"text": "Done.", "delay": 0.3},
]
"""One tool call and an answer, from a model that thinks for 0.3 s."""
NOTE = "model thinks 0.3 s a turn"


class BenchStack(AgentStack):
    """Args:
    turns: what the scenario `work` says.
    engine: keep slots in its containers; None: bubblewrap.
    warm: the runtime that waits in idle slots.
    """

    def __init__(
        self,
        directory: Path,
        *,
        turns: list[dict[str, Any]] | None = None,
        scenarios: Iterable[dict[str, Any]] = (),
        engine: Engine | None = None,
        warm: str = "",
        **options: Any,
    ):
        directory.mkdir(parents=True, exist_ok=True)
        script = directory / "script.json"
        script.write_text(json.dumps({"scenarios": [{"name": "work", "turns": turns or WORK}, *scenarios]}))
        extra = ["--warm", warm] if warm else []
        if engine is not None:
            extra += ["--backend", "docker", "--engine", engine.url, "--image", engine.image, "--agents", str(PREFIX)]
        super().__init__(directory, script, extra=extra, **options)
        self.record = Record(self.directory)
        self._nodes = int(options.get("nodes", 2))
        self._warm = warm

    async def settled(self, *runtimes: str) -> None:
        """Until agents can run, and, when they are to be warm, wait in every slot."""
        await self.wait_ready(*runtimes, nodes=self._nodes)
        await eventually("every slot waits", self._waiting, 90.0)

    async def _waiting(self) -> bool:
        slots = [slot for n in range(1, self._nodes + 1) for slot in await self.slots(f"node-{n}")]
        ready = all(slot.sandbox_ready and slot.warm == self._warm for slot in slots)
        if not ready:
            await asyncio.sleep(0.1)
        return ready

    def bare(self, engine: Engine | None) -> Bare:
        """The same agents asking the same model without CloudClaw."""
        model = self.endpoints["scripted-model"]
        return Bare(model, engine.run, "docker run") if engine else Bare(model)

    def measured(self, name: str) -> dict[str, float]:
        """What a child says of itself: samples by name, summed over labels but `le`."""
        facts = json.loads((self.directory / "ready.json").read_text())
        with urllib.request.urlopen(f"http://{facts['metrics'][name]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name + (f"≤{sample.labels['le']}" if "le" in sample.labels else "")
                found[key] = found.get(key, 0.0) + sample.value
        return found
