"""What can be recorded of an agent, and the scenarios that the cases share."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from typing import Any

from cloudclaw.testing.scripted_model import ScriptedModel
from tests.support.recordings.sandbox import Sandbox

Tree = dict[str, Any]

PATH = "/opt/agents/bin:/usr/bin:/bin"
MARK = "[[scenario:{}]]"


@dataclass(frozen=True)
class Case:
    """One run of an agent that is kept under `name`."""

    name: str
    argv: list[str]
    scenarios: list[Tree]
    note: str
    stdin: str | None = None
    messages: list[Tree] = field(default_factory=list)
    """JSON lines for stdin; after each of type `user`, the next waits until the model answered that turn's end."""
    env: dict[str, str] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)
    continues: str = ""
    """The case whose workspace and home this one goes on with."""
    signal: signal.Signals | None = None
    signal_in_turn: int = 1
    timeout: float = 240.0

    async def answered(self, model: ScriptedModel, number: int) -> None:
        """Return when `number` final answers were sent."""
        scenario = self.scenarios[0]
        last = len(scenario["turns"]) - 1

        def done(entries: list[Tree]) -> bool:
            return sum(1 for e in entries if e["turn"] == last and e["ended"] is not None) >= number

        await model.wait_for(done, 60)

    async def settle(self, box: Sandbox) -> None:
        """Let what the agent wrote before this turn reach its files: it has no sign of its own for that."""
        await asyncio.sleep(1.0)


@dataclass(frozen=True)
class Agent:
    """An agent, its environment in full, and its cases."""

    name: str
    process: str
    env: dict[str, str]
    cases: list[Case]
    home: dict[str, str] = field(default_factory=dict)


def work(name: str, **last: Any) -> Tree:
    """Write a file, look at it, say so."""
    return {
        "name": name,
        "turns": [
            {"text": "I write the file.", "tools": [{"write": {"path": "hello.txt", "content": "hello\n"}}]},
            {"tools": [{"bash": "cat hello.txt; echo turn {turn} >> turns.txt"}]},
            {"text": "The file is written.", **last},
        ],
    }


def failing(kind: str) -> Tree:
    """An error at once."""
    return {"name": "work", "turns": [{"error": {"kind": kind}}]}


def hanging() -> Tree:
    """A first turn with a tool, then silence."""
    return {"name": "work", "turns": [work("work")["turns"][0], {"hang": "before"}]}


LOOP: Tree = {"name": "work", "turns": [{"tools": [{"bash": "echo again {turn}"}], "repeat": 0}]}
PROMPT = "[[scenario:work]] Write hello.txt, please."
