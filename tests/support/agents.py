"""A whole CloudClaw whose agents are real and whose model is scripted, for tests through the public API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloudclaw.rpc.channel import open_channel
from cloudclaw.testing.scripted_model import ModelClient
from cloudclaw.testing.scripted_model.record import Entry
from cloudclaw.v1 import scheduler_pb2, scheduler_pb2_grpc, task_pb2
from tests.support.processes import eventually
from tests.support.require import require_agent
from tests.support.stack import Stack, Tenant

AGENTS = ("claude-code", "opencode", "openclaw")
BINARIES = {
    "claude-code": "claude",
    "opencode": "opencode",
    "openclaw": "openclaw",
    "codex": "codex",
    "gemini": "gemini",
}
"""Programs of the runtimes, as `make setup` installs them."""


def require_agents(*runtimes: str) -> None:
    """Skip, or fail in CI, where one of them is not installed."""
    for runtime in runtimes:
        require_agent(BINARIES[runtime])


class AgentStack(Stack):
    """`claw dev` with agents and a scripted model that plays `script`."""

    def __init__(self, directory: Path, script: Path, *, extra: Sequence[str] = (), **options: Any):
        super().__init__(directory, agents=True, extra=["--scripted-model", str(script), *extra], **options)

    @property
    def model(self) -> Model:
        """What the model was asked, and what holds it."""
        return Model(self.endpoints["scripted-model"])

    async def wait_ready(self, *runtimes: str, nodes: int) -> None:
        """Until every node's probe has found that these can run."""
        channel = open_channel(self.endpoints["scheduler"], None, self.operator_token)
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)

        async def ready() -> bool:
            answer = await stub.GetClusterStatus(scheduler_pb2.GetClusterStatusRequest())
            found = [
                {status.runtime for status in pool.runtime_status if status.ready}
                for node in answer.nodes
                for pool in node.pools
            ]
            return len(found) == nodes and all(set(runtimes) <= names for names in found)

        try:
            await eventually(f"{runtimes} can run on {nodes} nodes", ready, 60.0)
        finally:
            await channel.close()


class Model:
    """The scripted model's own doors (`ModelClient`), for tests that must not block."""

    def __init__(self, address: str):
        self._client = ModelClient(address)

    async def requests(self, scenario: str) -> list[Entry]:
        """What was asked of a scenario, in order; side calls (titles, counts) are not among them."""
        return await asyncio.to_thread(self._client.requests, scenario)

    async def asked_for(self, scenario: str, turn: int, *, times: int = 1, within: float = 120.0) -> None:
        """Wait until that turn (from 0) was asked for so often."""
        await asyncio.to_thread(self._client.asked_for, scenario, turn, times=times, within=within)

    async def release(self, name: str) -> None:
        """Let a turn that is held go on."""
        await asyncio.to_thread(self._client.release, name)


def answered(entries: Sequence[Entry]) -> list[int]:
    """The turns whose answers reached the agent, in order."""
    return [entry["turn"] for entry in entries if entry["bytes_sent"] and not entry["client_gone"]]


async def ask(tenant: Tenant, runtime: str, prompt: str, **spec: Any) -> str:
    """Submit a task for an agent; answers its id."""
    return await tenant.submit(runtime=runtime, prompt=prompt, **spec)


async def send(tenant: Tenant, task_id: str, text: str, message_id: str, *, end: bool = False) -> bool:
    """Say something in a conversation; whether it was new."""
    request = scheduler_pb2.SendInputRequest(task_id=task_id, message_id=message_id, text=text, end=end)
    return bool((await tenant.scheduler.SendInput(request)).accepted)


async def events(tenant: Tenant, task_id: str, *, start: int = 0) -> list[scheduler_pb2.RunEvent]:
    """The task's events as they are now."""
    request = scheduler_pb2.WatchEventsRequest(task_id=task_id, from_sequence=start)
    return [answer.event async for answer in tenant.scheduler.WatchEvents(request)]


async def parked(tenant: Tenant, task_id: str, *, inputs: int = 0, within: float = 60.0) -> task_pb2.Task:
    """The task once it is parked, with so many messages answered."""
    last = task_pb2.Task()

    async def reached() -> bool:
        nonlocal last
        last = await tenant.get(task_id)
        assert last.state in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING), last
        return bool(last.parked and last.inputs_done >= inputs)

    await eventually(f"{task_id} is parked with {inputs} messages answered", reached, within)
    return last
