"""A whole CloudClaw on which a model makes real agents attack whatever it can reach.

Tenants' keys are set as users set them, and the model wants one: its record shows that the key came on the way.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.testing.scripted_model import ScriptedModel
from cloudclaw.v1 import scheduler_pb2, task_pb2, workspace_pb2
from tests.support.agents import AgentStack, ask, events
from tests.support.stack import Stack, Tenant

TOOLS = Path(__file__).with_name("hostile_agent.py").read_text()
GOT = re.compile(r"ATTACK .*: GOT .*")
RUNTIMES = ("claude-code", "opencode")
NOTHING = "Nothing could be had."


def runs(name: str, *commands: str, last: str = NOTHING) -> dict[str, Any]:
    """A scenario in which the agent runs these."""
    turns: list[dict[str, Any]] = [{"text": "I try.", "tools": [{"bash": command}]} for command in commands]
    return {"name": name, "turns": [*turns, {"text": last}]}


def tool(section: str) -> str:
    """The command that makes a section's attacks, with the arguments that the test left in a file."""
    return f"python3 hostile_agent.py {section} $(cat arguments) 2>&1"


class Hostile:
    """The stack and its model."""

    def __init__(self, stack: AgentStack, model: ScriptedModel) -> None:
        self.stack = stack
        self.model = model

    async def tenant(self, name: str) -> tuple[Tenant, str]:
        """A tenant with a workspace and a key of its own; and the key."""
        tenant = self.stack.tenant(name)
        key = f"canary-{name}-{secrets.token_hex(16)}"
        await tenant.scheduler.SetModelKey(scheduler_pb2.SetModelKeyRequest(upstream="anthropic", key=key))
        await tenant.create_workspace("tree")
        return tenant, key

    def asked(self, scenario: str) -> list[dict[str, Any]]:
        """Requests of a scenario that reached the model."""
        return [entry for entry in self.model.requests if entry["scenario"] == scenario]

    def keys(self, scenario: str) -> set[str]:
        """The keys that these came with."""
        return {entry["headers"].get("x-api-key", "") for entry in self.asked(scenario)}


class KeyedStack(AgentStack):
    """Its upstreams are set by the environment."""

    def __init__(self, directory: Path, **options: Any) -> None:
        Stack.__init__(self, directory, agents=True, **options)


@asynccontextmanager
async def hostile_stack(directory: Path, scenarios: list[dict[str, Any]]) -> AsyncIterator[Hostile]:
    """One node of two slots, in which Claude Code waits warm; every call to a model needs its tenant's key."""
    async with ScriptedModel({"scenarios": scenarios}) as model:
        prices = {"*": {"input": 3.0, "output": 15.0}}
        upstreams = {"anthropic": {"kind": "anthropic", "url": model.url, "prices": prices}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CLAW_GATEWAY_UPSTREAMS", json.dumps(upstreams))
            async with KeyedStack(directory, nodes=1, slots=2, extra=["--warm", "claude-code"]) as stack:
                await stack.wait_ready(*RUNTIMES, nodes=1)
                yield Hostile(stack, model)


async def run(tenant: Tenant, scenario: str, *arguments: str, **spec: Any) -> tuple[task_pb2.Result, str]:
    """What came of an attack, and what its tools printed, as the agent was shown it."""
    task = await begin(tenant, scenario, *arguments, **spec)
    await tenant.wait(task, timeout=150)
    return await tenant.result(task), await printed(tenant, task)


async def begin(tenant: Tenant, scenario: str, *arguments: str, **spec: Any) -> str:
    """Start an attack; answers the task."""
    await write(tenant, {"hostile_agent.py": TOOLS, "arguments": " ".join(arguments)})
    tree = task_pb2.WorkspaceSelection(name="tree", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)
    prompt, runtime = spec.pop("prompt", "Attack."), spec.pop("runtime", "claude-code")
    return await ask(tenant, runtime, f"{prompt} [[scenario:{scenario}]]", workspace=tree, **spec)


async def write(tenant: Tenant, files: dict[str, str]) -> None:
    """Put files into the tenant's workspace."""

    async def requests() -> AsyncIterator[workspace_pb2.WriteFilesRequest]:
        yield workspace_pb2.WriteFilesRequest(header=workspace_pb2.WriteHeader(workspace="tree"))
        for path, content in files.items():
            yield workspace_pb2.WriteFilesRequest(file=workspace_pb2.FileHeader(path=path))
            yield workspace_pb2.WriteFilesRequest(data=content.encode())

    await tenant.workspaces.WriteFiles(requests())


async def printed(tenant: Tenant, task: str) -> str:
    """What the tools of a task printed, as far as its events show it."""
    told = await events(tenant, task)
    return "\n".join(event.tool_result.output for event in told if event.HasField("tool_result"))


async def archive(tenant: Tenant) -> bytes:
    """Everything in the tenant's workspace."""
    request = workspace_pb2.DownloadArchiveRequest(workspace="tree")
    return b"".join([answer.data async for answer in tenant.workspaces.DownloadArchive(request)])


def nothing_got(result: task_pb2.Result, output: str, section: str) -> None:
    """Every attack of the section was tried and got nothing, and the result says so."""
    assert f"DONE {section}" in output, output[-3000:]
    assert "ATTACK" in output
    assert GOT.findall(output) == []
    assert result.state == task_pb2.TASK_STATE_SUCCEEDED, result
    assert result.final_message == NOTHING
