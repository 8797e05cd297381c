"""An agent through the command line: its run as people see it, a conversation, and the tenant's keys.

The agent is the real Claude Code; its model is scripted.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.require import require_agent
from tests.support.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCRIPT = """
[[scenarios]]
name = "greet"
[[scenarios.turns]]
text = "I write it."
tools = [{ write = { path = "hello.txt", content = "hello" } }, { bash = "seq 1 40" }]
[[scenarios.turns]]
text = "It is written."

[[scenarios]]
name = "colour"
[[scenarios.turns]]
text = "Blue it is."

[[scenarios]]
name = "again"
[[scenarios.turns]]
text = "You said blue."

[[scenarios]]
name = "refused"
[[scenarios.turns]]
error = { kind = "authentication" }
"""


class Claw:
    """The `claw` command of one tenant."""

    def __init__(self, stack: Stack, tenant: str):
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "CLAW_ENDPOINT": stack.endpoints["scheduler"],
            "CLAW_WORKSPACE_ENDPOINT": stack.endpoints["workspace"],
            "CLAW_TOKEN": stack.mint(tenant),
        }

    async def __call__(self, *arguments: str, stdin: str = "", code: int = 0) -> str:
        """What it printed; fails unless it ends with `code`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cloudclaw.cli", *arguments, env=self._env,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 90)
        assert process.returncode == code, (arguments, out.decode(), err.decode())
        return out.decode()

    async def objects(self, *arguments: str, stdin: str = "", code: int = 0) -> list[dict[str, Any]]:
        """The same with `--output json`."""
        printed = await self(*arguments, "--output", "json", stdin=stdin, code=code)
        return [json.loads(line) for line in printed.splitlines()]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def agents(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two nodes of one slot that offer agents, whose model plays `SCRIPT`."""
    require_agent("claude")
    folder = tmp_path_factory.mktemp("agents")
    script = folder / "script.toml"
    script.write_text(SCRIPT)
    async with Stack(folder, nodes=2, slots=1, agents=True, extra=["--scripted-model", str(script)]) as stack:
        yield stack


async def test_a_run_is_shown_as_it_happens_with_what_came_of_it(agents: Stack) -> None:
    claw = Claw(agents, "runs")
    await claw("ws", "create", "code")
    shown = await claw(
        "submit", "--runtime", "claude-code", "--workspace", "code", "--wait", "--prompt", "[[scenario:greet]] Greet."
    )
    task_id, *lines = shown.splitlines()
    assert lines[0] == "> [[scenario:greet]] Greet."
    assert lines[1].startswith("claude-code 2.")
    order = [lines.index(line) for line in ("I write it.", "  → Bash  seq 1 40", "It is written.")]
    assert order == sorted(order)
    assert "    │ 8" in lines
    assert "    │ 9" not in lines  # folded
    assert lines.count("It is written.") == 1
    assert "changed 1 file:" in lines
    assert any(line.split()[:2] == ["added", "hello.txt"] for line in lines)
    assert lines[-1].startswith(f"{task_id} succeeded: completed")
    assert "tokens" in lines[-1]
    assert await claw("ws", "cat", "code", "hello.txt") == "hello"
    # Whoever comes later sees the same.
    later = (await claw("events", task_id)).splitlines()
    assert later[: len(lines) - 5] == lines[: len(lines) - 5]
    assert "│ 40" in await claw("events", task_id, "--full")
    assert '"type":"result"' in (await claw("logs", task_id)).replace(" ", "")


async def test_programs_get_events_and_the_result_as_objects(agents: Stack) -> None:
    claw = Claw(agents, "objects")
    task, *events, result = await claw.objects(
        "submit", "--runtime", "claude-code", "--wait", "--prompt", "[[scenario:greet]] Greet."
    )
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    calls = [event["tool_call"]["tool"] for event in events if "tool_call" in event]
    assert calls == ["Write", "Bash"]
    assert result["task_id"] == task["task_id"]
    assert result["final_message"] == "It is written."
    assert result["session_id"]
    assert int(result["model_use"]["requests"]) >= 2
    some = await claw.objects("events", task["task_id"], "--from", "3")
    assert [event["sequence"] for event in some] == [event["sequence"] for event in events[2:]]


async def test_a_refused_key_ends_it_with_the_command_that_sets_one(agents: Stack) -> None:
    claw = Claw(agents, "refused")
    shown = await claw("submit", "--runtime", "claude-code", "--wait", "--prompt", "[[scenario:refused]] Go.", code=1)
    assert "failed: model-authentication" in shown
    assert "claw tenant set-key" in shown


async def test_people_talk_with_an_agent_that_parks_in_between(agents: Stack) -> None:
    claw = Claw(agents, "talk")
    task_id = (
        await claw(
            "submit", "--runtime", "claude-code", "--conversation", "--park-after", "100ms",
            "--prompt", "[[scenario:colour]] Which colour?",
        )
    ).strip()  # fmt: skip
    await agents.tenant("talk").wait_parked(task_id)
    assert "for input since" in await claw("get", task_id)
    said = (await claw("chat", task_id, stdin="[[scenario:again]] What did I say?\n")).splitlines()
    assert said.index("Blue it is.") < said.index("> [[scenario:again]] What did I say?") < said.index("You said blue.")
    ended = (await claw("chat", task_id, "--from", "1", stdin="/end\n")).splitlines()
    assert "You said blue." in ended
    assert ended[-1].startswith(f"{task_id} succeeded")
    refused = await claw("send", task_id, "more", code=6)
    assert refused == ""


async def test_a_tenants_keys_are_kept_and_never_shown(agents: Stack, tmp_path: Path) -> None:
    claw = Claw(agents, "keys")
    key = "sk-test-0123456789-abcdefgh"
    printed = await claw("tenant", "set-key", "anthropic", stdin=key)
    printed += await claw("tenant", "keys") + json.dumps(await claw.objects("tenant", "keys"))
    assert "efgh" in printed
    assert key not in printed
    await claw("tenant", "rm-key", "anthropic")
    await claw("tenant", "rm-key", "anthropic", code=3)
    logs = b"".join(log.read_bytes() for log in (agents.directory / "log").glob("*.log"))
    assert key.encode() not in logs
