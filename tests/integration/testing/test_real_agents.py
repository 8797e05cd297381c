"""Stock agents against the scripted model: what the recordings and every test of agents rest on."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from cloudclaw.testing.scripted_model import ScriptedModel
from tests.support.processes import eventually
from tests.support.recordings.case import Agent, work
from tests.support.recordings.claude_cases import CLAUDE
from tests.support.recordings.codex_cases import CODEX
from tests.support.recordings.gemini_cases import GEMINI
from tests.support.recordings.openclaw_cases import OPENCLAW
from tests.support.recordings.opencode_cases import OPENCODE
from tests.support.recordings.sandbox import MODEL, Sandbox, signal_agent
from tests.support.require import require_agent, require_bubblewrap
from tests.support.trees import paths_beneath

ALL = [CLAUDE, OPENCODE, OPENCLAW, CODEX, GEMINI]
SCRIPT = {"scenarios": [work("work")]}


def held() -> dict[str, object]:
    """The same work, but its second turn waits for a release. The output of the first one's tool is `KEPT`."""
    scenario = work("work")
    scenario["turns"][0]["tools"] = [{"bash": "echo hello > hello.txt; echo kept | tr a-z A-Z"}]
    scenario["turns"][1]["hold"] = "second"
    return {"scenarios": [scenario]}


KEPT = b"KEPT"


def kept(box: Sandbox) -> bool:
    """The agent has written its first turn down: some do so only after they have asked for the next one."""
    return any(path.is_file() and KEPT in path.read_bytes() for path in paths_beneath(box.home))


async def run(agent: Agent, box: Sandbox, model: ScriptedModel, case: str) -> asyncio.subprocess.Process:
    """Start the agent as in its recording `case`, against `model`."""
    require_bubblewrap()
    require_agent(agent.process)
    for path, content in agent.home.items():
        file = box.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content.replace(MODEL, model.url))
    found = next(one for one in agent.cases if one.name == case)
    env = {name: value.replace(MODEL, model.url) for name, value in agent.env.items()}
    argv = [word.replace(MODEL, model.url) for word in found.argv]
    process = await box.start(argv, env, stdin=found.stdin is not None)
    if process.stdin is not None:
        process.stdin.write((found.stdin or "").encode())
        process.stdin.close()
    return process


@pytest.mark.sandbox
@pytest.mark.timeout(400)
@pytest.mark.parametrize("agent", ALL, ids=lambda agent: agent.name)
async def test_an_agent_uses_its_tools_as_scripted_and_ends_well(agent: Agent, tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    async with ScriptedModel(SCRIPT) as model:
        process = await run(agent, box, model, "success")
        out, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        assert model.turns("work") == [0, 1, 2]
        assert not [entry["problem"] for entry in model.requests if entry["problem"]]
    assert b"The file is written." in out
    assert (box.workspace / "hello.txt").read_text() == "hello\n"
    assert (box.workspace / "turns.txt").read_text() == "turn 2\n"


@pytest.mark.sandbox
@pytest.mark.timeout(400)
@pytest.mark.parametrize("agent", ALL, ids=lambda agent: agent.name)
async def test_a_killed_agent_goes_on_with_the_turn_that_it_was_in(agent: Agent, tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    async with ScriptedModel(held()) as model:
        process = await run(agent, box, model, "killed")
        await model.wait_for(lambda entries: any(entry["turn"] == 1 for entry in entries), 120)
        await eventually("its first turn is kept", lambda: kept(box), 60.0)
        await signal_agent(process, signal.SIGKILL, agent.process)
        await process.communicate()
        await model.release("second")
        process = await run(agent, box, model, "resumed-after-kill")
        out, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        assert model.turns("work") == [0, 1, 1, 2]
    assert b"The file is written." in out
    assert (box.workspace / "turns.txt").read_text() == "turn 2\n"
