"""Real agents on a whole stack, with a scripted model: answers, endings, limits, conversations, restarts."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from cloudclaw.v1 import scheduler_pb2, task_pb2
from tests.support.agents import AgentStack, answered, ask, events, parked, require_agents, send
from tests.support.processes import alive, with_variable

SCRIPT = Path(__file__).with_name("agents.toml")
RUNTIMES = ("claude-code", "opencode")
ALL = (*RUNTIMES, "openclaw", "codex", "gemini")
pytestmark = [pytest.mark.agents, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentStack]:
    """Two nodes of two slots."""
    require_agents(*ALL)
    async with AgentStack(tmp_path_factory.mktemp("agents"), SCRIPT, nodes=2, slots=2) as stack:
        await stack.wait_ready(*ALL, nodes=2)
        yield stack


def workspace(name: str) -> task_pb2.WorkspaceSelection:
    return task_pb2.WorkspaceSelection(name=name, mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)


def commands(variable: str) -> set[str]:
    """What runs on this machine with the environment variable."""
    return {Path(f"/proc/{pid}/comm").read_text().strip() for pid in with_variable(variable)}


@pytest.mark.parametrize("runtime", ALL)
async def test_an_answer_comes_with_files_usage_session_and_events(stack: AgentStack, runtime: str) -> None:
    tenant = stack.tenant(f"t-{runtime}")
    await tenant.create_workspace("tree")
    task = await ask(tenant, runtime, "Say hello. [[scenario:hello]]", workspace=workspace("tree"))
    done = await tenant.wait(task, timeout=200)
    result = await tenant.result(task)
    assert done.state == task_pb2.TASK_STATE_SUCCEEDED, result
    assert result.final_message == "It is written."
    assert [file.path for file in result.changed_files] == ["hello.txt"]
    assert (await tenant.read_file("tree", "hello.txt")).rstrip() == b"hello"
    assert result.usage.input_tokens > 0
    assert result.usage.output_tokens > 0
    assert result.model_use.requests >= 2
    kinds = [event.WhichOneof("event") for event in await events(tenant, task)]
    for wanted in ("started", "tool_call", "tool_result", "usage", "finished"):
        assert wanted in kinds, kinds
    assert kinds.index("tool_call") < kinds.index("tool_result") < kinds.index("finished")
    told = await events(tenant, task, start=3)
    assert told[0].sequence == 3


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_the_next_task_continues_the_session_that_its_user_names(stack: AgentStack, runtime: str) -> None:
    tenant = stack.tenant(f"s-{runtime}")
    await tenant.create_workspace("tree")
    first = await ask(tenant, runtime, "Say hello. [[scenario:hello]]", workspace=workspace("tree"))
    await tenant.wait(first)
    session = (await tenant.result(first)).session_id
    second = await ask(
        tenant, runtime, "What did you do? [[scenario:recall]]", workspace=workspace("tree"), session_id=session
    )
    done = await tenant.wait(second)
    result = await tenant.result(second)
    assert done.state == task_pb2.TASK_STATE_SUCCEEDED, result
    assert result.session_id == session
    asked = (await stack.model.requests("recall"))[-1]
    assert "It is written." in json.dumps(asked["body"]), "the earlier conversation is in the request"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("denied", task_pb2.END_REASON_MODEL_AUTHENTICATION),
        ("limited", task_pb2.END_REASON_MODEL_RATE_LIMIT),
        ("nobody", task_pb2.END_REASON_MODEL_NOT_FOUND),
        ("long", task_pb2.END_REASON_MODEL_CONTEXT),
    ],
)
async def test_an_error_of_the_model_ends_it_by_its_name(
    stack: AgentStack, runtime: str, scenario: str, reason: task_pb2.EndReason
) -> None:
    tenant = stack.tenant("errors")
    task = await ask(tenant, runtime, f"Do it. [[scenario:{scenario}]]", retry=task_pb2.RetryPolicy(max_attempts=1))
    await tenant.wait(task, timeout=90)
    result = await tenant.result(task)
    assert (result.state, result.reason) == (task_pb2.TASK_STATE_FAILED, reason), result
    told = [event.finished for event in await events(tenant, task) if event.WhichOneof("event") == "finished"]
    assert [(end.ok, end.reason) for end in told] == [(False, reason)]
    assert told[0].message


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_request_that_an_agent_repeats_is_an_event(stack: AgentStack, runtime: str) -> None:
    tenant = stack.tenant(f"busy-{runtime}")
    task = await ask(tenant, runtime, "Do it. [[scenario:busy]]")
    done = await tenant.wait(task, timeout=90)
    result = await tenant.result(task)
    assert (done.state, len(done.attempts)) == (task_pb2.TASK_STATE_SUCCEEDED, 1), result
    assert result.final_message == "It went well."
    retries = [event.retry for event in await events(tenant, task) if event.WhichOneof("event") == "retry"]
    assert [(retry.kind, retry.attempt) for retry in retries] == [("overloaded", 1)]
    assert retries[0].message


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("timeouts", "reason"),
    [
        (task_pb2.Timeouts(silence=Duration(seconds=6)), task_pb2.END_REASON_SILENCE_TIMEOUT),
        (task_pb2.Timeouts(run=Duration(seconds=6)), task_pb2.END_REASON_RUN_TIMEOUT),
    ],
    ids=["silence", "run"],
)
async def test_a_model_that_says_nothing_ends_at_a_timeout(
    stack: AgentStack, runtime: str, timeouts: task_pb2.Timeouts, reason: task_pb2.EndReason
) -> None:
    tenant = stack.tenant("silence")
    task = await ask(tenant, runtime, "Do it. [[scenario:silent]]", timeouts=timeouts)
    await tenant.wait(task, timeout=60)
    assert (await tenant.result(task)).reason == reason


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_model_that_never_stops_is_stopped_by_turns(stack: AgentStack, runtime: str) -> None:
    tenant = stack.tenant("turns")
    limits = task_pb2.ModelLimits(turns=3)
    task = await ask(tenant, runtime, "Do it. [[scenario:endless]]", model_limits=limits)
    await tenant.wait(task, timeout=90)
    result = await tenant.result(task)
    assert result.reason == task_pb2.END_REASON_TURN_LIMIT, result


async def test_a_model_that_never_stops_is_stopped_by_the_gateway(stack: AgentStack) -> None:
    tenant = stack.tenant("requests")
    limits = task_pb2.ModelLimits(requests=4)
    task = await ask(tenant, "claude-code", "Do it. [[scenario:endless]]", model_limits=limits)
    await tenant.wait(task, timeout=90)
    result = await tenant.result(task)
    assert result.reason == task_pb2.END_REASON_REQUEST_LIMIT, result
    assert result.model_use.requests <= 4


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (task_pb2.ModelLimits(tokens=500), task_pb2.END_REASON_TOKEN_LIMIT),
        (task_pb2.ModelLimits(spend_usd=0.000001), task_pb2.END_REASON_SPEND_LIMIT),
    ],
)
async def test_tokens_and_money_are_limited_by_the_gateway(
    stack: AgentStack, limits: task_pb2.ModelLimits, reason: task_pb2.EndReason
) -> None:
    tenant = stack.tenant("spending")
    task = await ask(tenant, "claude-code", "Do it. [[scenario:endless]]", model_limits=limits)
    await tenant.wait(task, timeout=90)
    result = await tenant.result(task)
    assert result.reason == reason, result
    assert result.model_use.requests >= 1


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_cancel_ends_an_agent_and_what_it_started(stack: AgentStack, runtime: str) -> None:
    tenant, scenario, mark = stack.tenant("cancel"), f"orphan-{runtime}", f"MARK_OF_{RUNTIMES.index(runtime)}"
    task = await ask(tenant, runtime, f"Do it. [[scenario:{scenario}]]", env={mark: "1"})
    await stack.model.asked_for(scenario, 1)
    assert "sleep" in commands(mark), "what it started outlives the call of the tool"
    await tenant.scheduler.CancelTask(scheduler_pb2.CancelTaskRequest(task_id=task))
    done = await tenant.wait(task)
    assert done.state == task_pb2.TASK_STATE_CANCELED
    assert commands(mark) == set()


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_conversation_is_parked_and_woken_with_everything_said(stack: AgentStack, runtime: str) -> None:
    tenant = stack.tenant(f"talk-{runtime}")
    talk = task_pb2.Conversation(park_after=Duration(nanos=200_000_000))
    task = await ask(tenant, runtime, "Say hello. [[scenario:hello]]", conversation=talk)
    await parked(tenant, task)
    assert await send(tenant, task, "And? [[scenario:recall]] one", "m-1")
    assert not await send(tenant, task, "And? [[scenario:recall]] one", "m-1"), "the same message again"
    await parked(tenant, task, inputs=1)
    waiting = await tenant.get(task)
    assert waiting.wait_reason == task_pb2.WAIT_REASON_INPUT
    assert await send(tenant, task, "And? [[scenario:recall]] two", "m-2", end=True)
    done = await tenant.wait(task)
    result = await tenant.result(task)
    assert done.state == task_pb2.TASK_STATE_SUCCEEDED, result
    assert result.final_message == "I remember."
    asked = [
        entry
        for entry in await stack.model.requests("recall")
        if "[[scenario:recall]] two" in json.dumps(entry["body"])
    ]
    last = json.dumps(asked[-1]["body"])
    assert last.count("[[scenario:recall]] one") == 1, "it was said once"
    assert "It is written." in last
    said = [event.message.message_id for event in await events(tenant, task) if event.message.role == "user"]
    assert said == ["", "m-1", "m-2"]


@pytest.mark.parametrize("victim", ["pool-manager", "gateway", "scheduler"])
async def test_a_restarted_service_costs_an_agent_nothing(stack: AgentStack, victim: str) -> None:
    tenant, scenario = stack.tenant(f"restart-{victim}"), f"restart-{victim}"
    task = await ask(tenant, "claude-code", f"Do it. [[scenario:{scenario}]]")
    await stack.model.asked_for(scenario, 1)
    node = (await tenant.get(task)).attempts[-1].node
    name = victim if victim == "scheduler" else f"{victim}@{node}"
    old = stack.kill(name, signal.SIGKILL)
    await stack.wait_restarted(name, old)
    assert not alive(old)
    await stack.model.release(f"{victim}-is-back")
    done = await tenant.wait(task, timeout=90)
    result = await tenant.result(task)
    assert done.state == task_pb2.TASK_STATE_SUCCEEDED, result
    assert len(done.attempts) == 1
    assert result.final_message == "It went on."
    assert answered(await stack.model.requests(scenario)) == [0, 1, 2]
