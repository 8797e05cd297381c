"""Which versions stay, and versions that go while somebody uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Delete, Exists, Guard, TxnResult
from cloudclaw.errors import (
    InvalidArgumentError,
    NotFoundError,
)
from cloudclaw.v1 import workspace_pb2 as pb
from tests.support.workspace_service import User, WorkspaceStack


async def test_retention_is_set_shown_and_checked(user: User) -> None:
    assert (await user.get("ws")).retention == pb.Retention()
    made = await user.stub.CreateWorkspace(
        pb.CreateWorkspaceRequest(name="few", retention=pb.Retention(keep_last=3, keep_daily=1))
    )
    assert made.workspace.retention == pb.Retention(keep_last=3, keep_daily=1)
    await user.write("few", {"a": b"1"})
    request = pb.UpdateWorkspaceRequest(name="few", retention=pb.Retention(keep_daily=9))
    updated = (await user.stub.UpdateWorkspace(request)).workspace
    assert updated.retention == pb.Retention(keep_daily=9)
    assert updated == await user.get("few")
    assert updated.generation == 1
    for retention, field in (
        (pb.Retention(keep_last=10_001), "retention.keep_last"),
        (pb.Retention(keep_daily=3651), "retention.keep_daily"),
        (None, "retention"),
    ):
        with pytest.raises(InvalidArgumentError) as refused:
            await user.stub.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="few", retention=retention))
        assert refused.value.field == field
    with pytest.raises(NotFoundError):
        await user.stub.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="none", retention=pb.Retention(keep_last=1)))


async def test_retention_that_is_set_during_a_write_does_not_disturb_it(user: User, stack: WorkspaceStack) -> None:
    call = user.stub.WriteFiles()
    await call.write(pb.WriteFilesRequest(header=pb.WriteHeader(workspace="ws")))
    await stack.held()
    await call.write(pb.WriteFilesRequest(file=pb.FileHeader(path="a")))
    await user.stub.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="ws", retention=pb.Retention(keep_last=2)))
    await call.done_writing()
    snapshot = (await call).snapshot
    now = await user.get("ws")
    assert (now.head_snapshot_id, now.generation, now.retention.keep_last) == (snapshot.snapshot_id, 1, 2)


async def test_old_versions_go_and_the_head_stays(user: User, stack: WorkspaceStack) -> None:
    retention = pb.Retention(keep_last=2)
    await user.stub.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="ws", retention=retention))
    made = [(await user.write("ws", {"f": str(n).encode()})).snapshot_id for n in range(5)]
    # All are of today, and the default keeps one of each day: that is the newest anyway.
    operator = stack.user(role="operator")
    report = (await operator.stub.CollectGarbage(pb.CollectGarbageRequest(tenant="acme"))).reports[0]
    assert (report.tenant, report.snapshots_removed, report.objects_removed) == ("acme", 3, 0)
    assert report.objects_waiting == 6
    listed = await user.stub.ListSnapshots(pb.ListSnapshotsRequest(workspace="ws"))
    assert [snapshot.snapshot_id for snapshot in listed.snapshots] == made[:2:-1]
    assert await user.contents("ws") == {"f": b"4"}
    assert await user.read("ws", "f", snapshot=made[3]) == b"3"
    with pytest.raises(NotFoundError):
        await user.read("ws", "f", snapshot=made[2])


@pytest.mark.parametrize("how", ["fork", "restore"])
async def test_a_snapshot_that_goes_meanwhile_is_no_source(
    user: User, stack: WorkspaceStack, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention comes between the look at the snapshot and the transaction that would point to its objects again."""
    old = (await user.write("ws", {"a": b"1"})).snapshot_id
    await user.write("ws", {"a": b"2"})
    real = stack.kv.txn

    async def between(guards: Sequence[Guard], *arguments: Any, **more: Any) -> TxnResult:
        key = keys.snapshot("acme", "ws", old)
        if Exists(key) in guards:
            await real([], [Delete(key)])
        return await real(guards, *arguments, **more)

    monkeypatch.setattr(stack.kv, "txn", between)
    with pytest.raises(NotFoundError):
        if how == "fork":
            await user.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source="ws", name="copy", snapshot_id=old))
        else:
            await user.stub.RestoreSnapshot(pb.RestoreSnapshotRequest(workspace="ws", snapshot_id=old))
    assert [
        workspace.name for workspace in (await user.stub.ListWorkspaces(pb.ListWorkspacesRequest())).workspaces
    ] == ["ws"]
    assert await user.contents("ws") == {"a": b"2"}
    assert await stack.writers() == []
