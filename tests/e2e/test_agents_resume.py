"""A killed node costs an agent at most the turn it was in: its session goes on elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from cloudclaw.clock import SystemClock
from cloudclaw.coordination.etcd import EtcdKeyValue
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import NotFoundError
from cloudclaw.v1 import task_pb2
from tests.support.agents import AGENTS, AgentStack, answered, ask, events, parked, require_agents, send
from tests.support.processes import eventually
from tests.support.stack import Tenant

SCRIPT = Path(__file__).with_name("agents.toml")
EXCLUSIVE = task_pb2.WORKSPACE_MODE_EXCLUSIVE


@pytest.mark.agents
@pytest.mark.timeout(300)
@pytest.mark.parametrize("runtime", AGENTS)
async def test_a_session_goes_on_elsewhere_and_no_turn_is_run_twice(tmp_path: Path, runtime: str) -> None:
    require_agents(runtime)
    async with AgentStack(tmp_path, SCRIPT, nodes=2, slots=1, restart=False) as stack:
        await stack.wait_ready(runtime, nodes=2)
        await loses_its_node(stack, runtime)


@pytest.mark.agents
@pytest.mark.timeout(300)
async def test_a_conversation_loses_a_node_in_an_answer_and_one_after_it_and_no_word(tmp_path: Path) -> None:
    """The second one before it is parked: nothing follows but the end, and no other attempt has anything to say."""
    require_agents("claude-code")
    async with AgentStack(tmp_path, SCRIPT, nodes=3, slots=1, restart=False) as stack:
        await stack.wait_ready("claude-code", nodes=3)
        tenant = stack.tenant("acme")
        await tenant.create_workspace("tree")
        task = await ask(
            tenant,
            "claude-code",
            "Say hello. [[scenario:recall]]",
            conversation=task_pb2.Conversation(park_after=Duration(seconds=3600)),
            workspace=task_pb2.WorkspaceSelection(name="tree", mode=EXCLUSIVE),
        )
        assert await send(tenant, task, "Write the three lines. [[scenario:resume]]", "m-1")
        await stack.model.asked_for("resume", 2, within=120)
        await checkpointed(tenant, task)
        await stack.kill_node((await tenant.get(task)).attempts[-1].node)
        await stack.model.asked_for("resume", 2, times=2, within=120)
        await stack.model.release("dead")
        await recorded(stack, task)
        await stack.kill_node((await tenant.get(task)).attempts[-1].node)
        waiting = await parked(tenant, task, inputs=1)
        lost, left = task_pb2.ATTEMPT_STATE_LOST, task_pb2.ATTEMPT_STATE_FAILED
        assert [attempt.state for attempt in waiting.attempts] == [lost, lost, left]
        assert await send(tenant, task, "", "bye", end=True)
        assert (await tenant.wait(task)).state == task_pb2.TASK_STATE_SUCCEEDED
        assert (await tenant.result(task)).final_message == "All three are done."
        assert answered(await stack.model.requests("resume")) == [0, 1, 2, 3], "nothing was asked twice"


async def recorded(stack: AgentStack, task: str) -> None:
    """Until a checkpoint holds the answer."""
    kv = EtcdKeyValue([stack.endpoints["etcd"]], None, SystemClock())
    try:

        async def holds() -> bool:
            found = await Transactions(kv).get_task("acme", task)
            return found is not None and found.record.answered and found.record.inputs_done > 0

        await eventually("a checkpoint holds the answer", holds, 120.0)
    finally:
        await kv.close()


async def checkpointed(tenant: Tenant, task: str) -> None:
    """Until the turn that is complete now is in a checkpoint, which nobody asks for: they follow the agent's turns."""

    async def taken() -> bool:
        checkpoint = (await tenant.get(task)).checkpoint.snapshot_id
        try:
            return bool(checkpoint) and await tenant.read_file("tree", "turns", checkpoint) == b"one\ntwo\n"
        except NotFoundError:  # the next one has taken its place meanwhile, or it has no such file yet
            return False

    await eventually("the second turn is in a checkpoint", taken, 60.0)


async def loses_its_node(stack: AgentStack, runtime: str) -> None:
    """In its third turn, for good."""
    tenant = stack.tenant("acme")
    await tenant.create_workspace("tree")
    task = await ask(
        tenant,
        runtime,
        "Write the three lines. [[scenario:resume]]",
        workspace=task_pb2.WorkspaceSelection(name="tree", mode=EXCLUSIVE),
    )
    await stack.model.asked_for("resume", 2, within=120)
    await checkpointed(tenant, task)
    lost = (await tenant.get(task)).attempts[-1].node
    await stack.kill_node(lost)
    await stack.model.asked_for("resume", 2, times=2, within=120)  # again, by the next attempt
    await stack.model.release("dead")
    done = await tenant.wait(task, timeout=120)
    result = await tenant.result(task)
    assert done.state == task_pb2.TASK_STATE_SUCCEEDED, result
    assert [attempt.state for attempt in done.attempts] == [
        task_pb2.ATTEMPT_STATE_LOST,
        task_pb2.ATTEMPT_STATE_SUCCEEDED,
    ]
    assert done.attempts[1].node != lost
    assert done.attempts[1].resumed
    assert await tenant.read_file("tree", "turns") == b"one\ntwo\nthree\n"
    asked = await stack.model.requests("resume")
    assert answered(asked) == [0, 1, 2, 3], "every turn was answered once"
    resumed = json.dumps(asked[-2]["body"])
    assert "Write the three lines." in resumed
    assert "echo one" in resumed
    assert "echo two" in resumed
    assert result.final_message == "All three are done."
    assert result.session_id
    told = await events(tenant, task)
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    assert {event.attempt for event in told} == {1, 2}
