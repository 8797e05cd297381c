"""Versions are committed whole, or not at all, on a real etcd."""

from __future__ import annotations

import asyncio

import pytest

from cloudclaw.coordination import keys
from cloudclaw.coordination.port import Delete, Put
from cloudclaw.coordination.records import SnapshotRecord, WorkspaceRecord, WriterRecord, decode, encode
from cloudclaw.errors import AbortedError, FencedError
from cloudclaw.v1 import workspace_pb2 as pb
from tests.support.workspace_service import WorkspaceStack

pytestmark = pytest.mark.etcd

WITHIN = 30.0


async def test_head_snapshot_and_writer_change_in_one_revision(stack: WorkspaceStack) -> None:
    user = stack.user()
    await user.create("ws")
    start = (await stack.kv.range("")).revision
    written = await user.write("ws", {"a": b"1"})
    events = []
    async with asyncio.timeout(WITHIN):
        async for batch in stack.kv.watch("", start):
            events += [(e.entry.mod_revision, e.op.value, e.entry.key) for e in batch.events]
            if any(key == keys.workspace("acme", "ws") for _, _, key in events):
                break
    commit = next(revision for revision, _, key in events if key == keys.workspace("acme", "ws"))
    assert {(op, key) for revision, op, key in events if revision == commit} == {
        ("put", keys.workspace("acme", "ws")),
        ("put", keys.snapshot("acme", "ws", written.snapshot_id)),
        ("delete", keys.writer("acme", "ws")),
    }


async def test_writers_at_once_make_a_chain_without_gaps(stack: WorkspaceStack) -> None:
    user = stack.user()
    await user.create("ws")

    async def until_written(number: int) -> None:
        while True:
            try:
                await user.write("ws", {f"f{number}": b"x"})
                return
            except AbortedError as error:
                if error.reason != "WRITER_BUSY":
                    raise

    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(until_written(number))
    entry = await stack.kv.get(keys.workspace("acme", "ws"))
    assert entry is not None
    record = decode(entry.value, WorkspaceRecord)
    assert record.generation == 6
    snapshots = {}
    for found in (await stack.kv.range(keys.snapshot("acme", "ws", ""))).entries:
        snapshot = decode(found.value, SnapshotRecord)
        snapshots[snapshot.pointer.id] = snapshot.pointer
    assert record.head is not None
    chain, at = [], record.head.id
    while at:
        chain.append(at)
        at = snapshots[at].parent
    assert len(chain) == len(snapshots) == 6
    assert set(await user.contents("ws")) == {f"f{number}" for number in range(6)}
    assert await stack.writers() == []


async def test_a_zombie_write_is_rejected(stack: WorkspaceStack, monkeypatch: pytest.MonkeyPatch) -> None:
    user = stack.user()
    await user.create("ws")
    real = stack.engine.snapshot
    key = keys.writer("acme", "ws")

    async def lapse(*arguments: object) -> object:
        result = await real(*arguments)  # type: ignore[arg-type]
        await stack.kv.txn([], [Delete(key)])
        await stack.kv.txn([], [Put(key, encode(WriterRecord(holder="task-1")))])
        return result

    monkeypatch.setattr(stack.engine, "snapshot", lapse)
    with pytest.raises(FencedError):
        await user.write("ws", {"a": b"zombie"})
    assert (await user.get("ws")).generation == 0
    assert (await user.get("ws")).writer == "task-1"


async def test_a_write_is_stopped_when_its_lease_is_revoked(stack: WorkspaceStack) -> None:
    user = stack.user()
    await user.create("ws")
    call = user.stub.WriteFiles()
    async with asyncio.timeout(WITHIN):
        await call.write(pb.WriteFilesRequest(header=pb.WriteHeader(workspace="ws")))
        await stack.held()
        (entry,) = (await stack.kv.range(keys.WRITERS)).entries
        await stack.kv.revoke(entry.lease)
        with pytest.raises(FencedError):
            await call
        await stack.quiet()
    assert (await user.get("ws")).generation == 0
    await user.write("ws", {"a": b"1"})


async def test_a_vanished_client_frees_the_key_at_once(stack: WorkspaceStack) -> None:
    user = stack.user()
    await user.create("ws")
    call = user.stub.WriteFiles()
    async with asyncio.timeout(WITHIN):
        await call.write(pb.WriteFilesRequest(header=pb.WriteHeader(workspace="ws")))
        await call.write(pb.WriteFilesRequest(file=pb.FileHeader(path="a")))
        await stack.held()
        call.cancel()
        await stack.quiet()
    await user.write("ws", {"b": b"1"})
    assert await user.contents("ws") == {"b": b"1"}


async def test_listings_page_over_etcd(stack: WorkspaceStack) -> None:
    user = stack.user()
    for name in ("b", "a", "c"):
        await user.create(name)
    made = [(await user.write("a", {"f": str(n).encode()})).snapshot_id for n in range(5)]
    names, snapshots, token = [], [], ""
    while True:
        page = await user.stub.ListWorkspaces(pb.ListWorkspacesRequest(page_size=2, page_token=token))
        names += [workspace.name for workspace in page.workspaces]
        if not (token := page.next_page_token):
            break
    while True:
        found = await user.stub.ListSnapshots(pb.ListSnapshotsRequest(workspace="a", page_size=2, page_token=token))
        snapshots += [snapshot.snapshot_id for snapshot in found.snapshots]
        if not (token := found.next_page_token):
            break
    assert names == ["a", "b", "c"]
    assert snapshots == made[::-1]
