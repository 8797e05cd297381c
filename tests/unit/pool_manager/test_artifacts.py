"""Files that a task keeps beside its snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloudclaw.coordination.records import EndReason
from cloudclaw.errors import QuotaExceededError, UnavailableError
from cloudclaw.rpc.server import MAX_MESSAGE
from cloudclaw.snapshots.port import Kept, KeptFile
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app import messages
from cloudclaw_pool_manager.domain.attempt import AttemptId, KillReason
from cloudclaw_pool_manager.domain.outcome import KeptArtifact, failed
from tests.unit.pool_manager.rig import TENANT, Rig

SUCCEEDED, FAILED = task_pb2.ATTEMPT_STATE_SUCCEEDED, task_pb2.ATTEMPT_STATE_FAILED
EXCLUSIVE = task_pb2.WorkspaceSelection(name="ws", mode=task_pb2.WORKSPACE_MODE_EXCLUSIVE)
EPHEMERAL = task_pb2.WorkspaceSelection()
GLOBS = ["out/**", "*.txt"]


@pytest.mark.parametrize("workspace", [EXCLUSIVE, EPHEMERAL])
@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ({"code": 0}, task_pb2.END_REASON_COMPLETED),
        ({"code": 3}, task_pb2.END_REASON_NONZERO_EXIT),
        ({"code": 137, "killed": KillReason.MEMORY_LIMIT}, task_pb2.END_REASON_MEMORY_LIMIT),
        ({"code": 143, "killed": KillReason.RUN_TIMEOUT}, task_pb2.END_REASON_RUN_TIMEOUT),
    ],
)
async def test_they_are_kept_whether_it_succeeds_or_fails_by_itself(
    rig: Rig, end: dict[str, int], reason: int, workspace: task_pb2.WorkspaceSelection
) -> None:
    rig.workspaces.kept = Kept((KeptFile(b"out/\xff", 5, "ab" * 32), KeptFile(b"x.txt", 0, "cd" * 32)), truncated=True)
    task, sandbox = await rig.running(artifacts=GLOBS, workspace=workspace)
    sandbox.finish(**end)  # type: ignore[arg-type]
    await rig.gone(task)
    assert rig.workspaces.collected == [(tuple(GLOBS), f"artifacts/{TENANT}/{task.task_id}/{task.uid}/")]
    outcome = rig.report_of(task)
    assert outcome.reason == reason
    assert [(a.path, a.size, a.digest) for a in outcome.artifacts] == [
        ("out/%FF", 5, "ab" * 32),
        ("x.txt", 0, "cd" * 32),
    ]
    assert outcome.artifacts_truncated
    assert outcome.HasField("snapshot") == (outcome.state == SUCCEEDED and workspace is EXCLUSIVE)


@pytest.mark.parametrize("killed", [KillReason.ORPHANED, KillReason.DRAINED, KillReason.CANCELED])
async def test_none_are_kept_of_what_was_canceled_lost_or_handed_over(rig: Rig, killed: KillReason) -> None:
    task, sandbox = await rig.running(artifacts=GLOBS)
    sandbox.finish(137, killed=killed)
    await rig.gone(task)
    assert rig.workspaces.collected == []
    assert not rig.report_of(task).artifacts


async def test_none_are_looked_for_where_none_are_asked_for(rig: Rig) -> None:
    task, sandbox = await rig.running(workspace=EXCLUSIVE)
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.workspaces.collected == []


@pytest.mark.parametrize(
    ("error", "retryable"), [(UnavailableError("no store"), True), (QuotaExceededError("too much"), False)]
)
async def test_a_success_whose_artifacts_cannot_be_kept_is_none(rig: Rig, error: Exception, retryable: bool) -> None:
    rig.workspaces.errors["collect"] = [error]
    task, sandbox = await rig.running(artifacts=GLOBS, workspace=EXCLUSIVE)
    sandbox.finish(0)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert (outcome.state, outcome.reason) == (FAILED, task_pb2.END_REASON_SNAPSHOT_FAILED)
    assert outcome.retryable == retryable
    assert str(error) in outcome.message
    assert rig.workspaces.snapshots == []


async def test_a_failure_whose_artifacts_cannot_be_kept_stays_that_failure(rig: Rig) -> None:
    rig.workspaces.errors["collect"] = [UnavailableError("no store")]
    task, sandbox = await rig.running(artifacts=GLOBS)
    sandbox.finish(3)
    await rig.gone(task)
    outcome = rig.report_of(task)
    assert outcome.reason == task_pb2.END_REASON_NONZERO_EXIT
    assert outcome.message.endswith("the artifacts could not be kept: no store")


async def test_a_fence_while_they_are_kept_reports_nothing(rig: Rig) -> None:
    task, sandbox = await rig.running(artifacts=GLOBS)
    rig.leader.say(kill=pb.KillAttempt(tenant=TENANT, task_id=task.task_id, token=task.token))
    sandbox.finish(0)
    await rig.gone(task)
    assert rig.leader.reports == []


def test_a_report_stays_below_the_size_of_a_message_whatever_the_paths() -> None:
    names = [b"out/" + b"\xff" * 4000 + str(number).encode() for number in range(1000)]
    outcome = failed(EndReason.NONZERO_EXIT, "", now=1.0)
    outcome = replace(outcome, artifacts=[KeptArtifact(name, 1, "ab" * 32) for name in names])
    report = messages.report(AttemptId(TENANT, "t", 1, "att-1", 5), outcome)
    assert report.ByteSize() < MAX_MESSAGE / 2
    assert report.outcome.artifacts
    assert report.outcome.artifacts_truncated
