"""Writes that go wrong: all of a version, or nothing of it, and the writer key free again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloudclaw.clock import SystemClock
from cloudclaw.coordination import keys
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Delete, Put
from cloudclaw.coordination.records import WriterRecord, encode
from cloudclaw.errors import (
    AbortedError,
    FencedError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    QuotaExceededError,
    UnavailableError,
)
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.port import TreeLimits
from cloudclaw.v1 import workspace_pb2 as pb
from tests.support.kv import FaultyKeyValue, ManualClock
from tests.support.trees import TAR_END, tar_header, tar_member
from tests.support.workspace_service import User, WorkspaceStack, workspace_service

WITHIN = 20.0


class Upload:
    """A write that a test drives message by message."""

    def __init__(self, user: User, name: str = "ws") -> None:
        self.call = user.stub.WriteFiles()
        self.name = name

    async def begin(self) -> None:
        await self.call.write(pb.WriteFilesRequest(header=pb.WriteHeader(workspace=self.name)))

    async def file(self, path: str, content: bytes = b"x") -> None:
        await self.call.write(pb.WriteFilesRequest(file=pb.FileHeader(path=path)))
        await self.call.write(pb.WriteFilesRequest(data=content))

    async def finish(self) -> pb.WriteFilesResponse:
        await self.call.done_writing()
        return await self.call


async def test_the_writer_is_shown_while_a_write_runs(stack: WorkspaceStack, user: User) -> None:
    async with asyncio.timeout(WITHIN):
        upload = Upload(user)
        await upload.begin()
        await stack.held()
        writer = (await user.get("ws")).writer
        assert writer.startswith("user:op-")
        page = await user.stub.ListWorkspaces(pb.ListWorkspacesRequest())
        assert [workspace.writer for workspace in page.workspaces] == [writer]
        await upload.file("a")
        await upload.finish()
    assert (await user.get("ws")).writer == ""


async def test_of_two_writes_at_once_one_is_told_that_the_other_holds_it(stack: WorkspaceStack, user: User) -> None:
    async with asyncio.timeout(WITHIN):
        first = Upload(user)
        await first.begin()
        await stack.held()
        with pytest.raises(AbortedError) as refused:
            await user.write("ws", {"b": b"2"})
        assert refused.value.reason == "WRITER_BUSY"
        assert refused.value.metadata["holder"].startswith("user:op-")
        await first.file("a")
        await first.finish()
    assert await user.contents("ws") == {"a": b"x"}
    await user.write("ws", {"b": b"2"})


async def test_many_writers_at_once_never_lose_a_version(user: User) -> None:
    async def until_written(number: int) -> None:
        while True:
            try:
                await user.write("ws", {f"f{number}": b"x"})
                return
            except AbortedError as error:
                if error.reason != "WRITER_BUSY":
                    raise

    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(until_written(number))
    assert set(await user.contents("ws")) == {f"f{number}" for number in range(8)}
    assert (await user.get("ws")).generation == 8


async def test_a_task_that_holds_the_workspace_keeps_users_out(stack: WorkspaceStack, user: User) -> None:
    await stack.kv.txn([], [Put(keys.writer("acme", "ws"), encode(WriterRecord(holder="task-1")))])
    with pytest.raises(AbortedError) as refused:
        await user.write("ws", {"a": b"1"})
    assert refused.value.metadata["holder"] == "task-1"
    assert (await user.get("ws")).writer == "task-1"
    with pytest.raises(PreconditionError) as busy:
        await user.stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(name="ws"))
    assert busy.value.reason == "WRITER_BUSY"
    with pytest.raises(AbortedError):
        await user.upload("ws", TAR_END)
    assert await stack.trees() == []


@pytest.mark.parametrize("when", ["before the header", "after the header", "within a file", "within an archive"])
async def test_a_client_that_vanishes_leaves_nothing(stack: WorkspaceStack, user: User, when: str) -> None:
    await user.write("ws", {"keep": b"me"})
    before = await user.get("ws")
    async with asyncio.timeout(WITHIN):
        if when == "within an archive":
            archive = user.stub.UploadArchive()
            await archive.write(pb.UploadArchiveRequest(header=pb.ArchiveHeader(workspace="ws")))
            await archive.write(pb.UploadArchiveRequest(data=tar_member(b"a", b"x") + tar_header(b"b", size=9000)))
            await stack.held()
            archive.cancel()
        else:
            upload = Upload(user)
            if when != "before the header":
                await upload.begin()
                await stack.held()
            if when == "within a file":
                await upload.file("planted", b"half")
            upload.call.cancel()
        await stack.quiet()
    assert await user.get("ws") == before
    await user.write("ws", {"next": b"1"})
    assert await user.contents("ws") == {"keep": b"me", "next": b"1"}


async def test_a_client_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    kv = MemoryKeyValue(SystemClock())
    async with workspace_service(tmp_path, kv, MemoryObjects(), patience=0.05) as stack, asyncio.timeout(WITHIN):
        user = stack.user()
        await user.create("ws")
        upload = Upload(user)
        await upload.begin()
        with pytest.raises(AbortedError) as given_up:
            await upload.call
        assert given_up.value.reason == "CLIENT_IDLE"
        await stack.quiet()
        assert (await user.get("ws")).generation == 0


async def test_a_write_whose_lease_is_lost_is_stopped(tmp_path: Path) -> None:
    clock = ManualClock()
    kv = MemoryKeyValue(SystemClock())
    async with (
        workspace_service(tmp_path, kv, MemoryObjects(), clock=clock) as stack,
        asyncio.timeout(WITHIN),
    ):
        user = stack.user()
        await user.create("ws")
        upload = Upload(user)
        await upload.begin()
        await upload.file("a")
        await stack.held()
        (entry,) = (await kv.range(keys.WRITERS)).entries
        kv.expire(entry.lease)
        await clock.asleep()
        await clock.advance(3)
        with pytest.raises(FencedError):
            await upload.call
        await stack.quiet()
        assert (await user.get("ws")).generation == 0
        assert await user.contents("ws") == {}


async def test_a_write_whose_key_went_to_another_cannot_commit(
    stack: WorkspaceStack, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease lapses unseen while the snapshot is stored, and a task takes the workspace: the token does not fit."""
    real = stack.engine.snapshot

    async def lapse(*arguments: object) -> object:
        result = await real(*arguments)  # type: ignore[arg-type]
        key = keys.writer("acme", "ws")
        await stack.kv.txn([], [Delete(key)])
        await stack.kv.txn([], [Put(key, encode(WriterRecord(holder="task-1")))])
        return result

    monkeypatch.setattr(stack.engine, "snapshot", lapse)
    with pytest.raises(FencedError):
        await user.write("ws", {"a": b"zombie"})
    assert (await user.get("ws")).generation == 0
    assert (await user.get("ws")).writer == "task-1"
    assert not (await user.stub.ListSnapshots(pb.ListSnapshotsRequest(workspace="ws"))).snapshots
    assert await stack.trees() == []


async def test_a_commit_whose_answer_is_lost_is_found_to_have_happened(tmp_path: Path) -> None:
    kv = FaultyKeyValue(MemoryKeyValue(SystemClock()))
    async with workspace_service(tmp_path, kv, MemoryObjects()) as stack:
        user = stack.user()
        await user.create("ws")
        await user.write("ws", {"a": b"1"})
        real = stack.engine.snapshot

        async def then_fail(*arguments: object) -> object:
            result = await real(*arguments)  # type: ignore[arg-type]
            kv.fail_next("txn", applied=True)
            return result

        stack.engine.snapshot = then_fail  # type: ignore[assignment,method-assign]
        written = await user.write("ws", {"a": b"2"})
        assert (await user.get("ws")).head_snapshot_id == written.snapshot_id
        assert (await user.get("ws")).generation == 2
        assert await stack.writers() == []


async def test_a_commit_that_never_arrived_leaves_the_old_version(tmp_path: Path) -> None:
    kv = FaultyKeyValue(MemoryKeyValue(SystemClock()))
    async with workspace_service(tmp_path, kv, MemoryObjects()) as stack:
        user = stack.user()
        await user.create("ws")
        await user.write("ws", {"a": b"1"})
        real = stack.engine.snapshot

        async def then_fail(*arguments: object) -> object:
            result = await real(*arguments)  # type: ignore[arg-type]
            kv.fail_next("txn")
            return result

        stack.engine.snapshot = then_fail  # type: ignore[assignment,method-assign]
        with pytest.raises(UnavailableError):
            await user.write("ws", {"a": b"2"})
        stack.engine.snapshot = real  # type: ignore[method-assign]
        assert await user.contents("ws") == {"a": b"1"}
        assert await stack.writers() == []
        assert await stack.trees() == []
        await user.write("ws", {"a": b"3"})


async def test_a_store_that_fails_while_packs_are_written_leaves_the_old_version(tmp_path: Path) -> None:
    class Failing(MemoryObjects):
        fail = False

        async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
            if self.fail and "/packs/" in name:
                raise UnavailableError("the store is away")
            return await super().put(name, data, if_absent=if_absent)

    objects = Failing()
    async with workspace_service(tmp_path, MemoryKeyValue(SystemClock()), objects) as stack:
        user = stack.user()
        await user.create("ws")
        await user.write("ws", {"a": b"1"})
        objects.fail = True
        with pytest.raises(UnavailableError):
            await user.write("ws", {"a": os.urandom(100)})
        objects.fail = False
        assert await user.contents("ws") == {"a": b"1"}
        assert await stack.writers() == []
        assert await stack.trees() == []


@pytest.mark.parametrize(
    "path", ["", "/etc/planted", "../planted", "a/../b", "a//b", "a/", "n" * 256, "a\0b", "d/" * 200 + "x"]
)
async def test_paths_that_lead_elsewhere_are_refused(stack: WorkspaceStack, user: User, path: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await user.write("ws", {"good": b"x", path: b"evil"})
    assert refused.value.field == "path"
    with pytest.raises((InvalidArgumentError, NotFoundError)):
        await user.write("ws", {}, remove=[path])
    assert (await user.get("ws")).generation == 0
    assert await stack.trees() == []
    assert await stack.writers() == []


async def test_removing_what_is_not_there_fails_whole(user: User) -> None:
    await user.write("ws", {"a": b"1"})
    with pytest.raises(NotFoundError):
        await user.write("ws", {"b": b"2"}, remove=["missing/file"])
    assert await user.contents("ws") == {"a": b"1"}


async def test_messages_out_of_order_are_refused(stack: WorkspaceStack, user: User) -> None:
    async def send(*messages: pb.WriteFilesRequest) -> None:
        async def stream() -> AsyncIterator[pb.WriteFilesRequest]:
            for message in messages:
                yield message

        await user.stub.WriteFiles(stream())

    header = pb.WriteFilesRequest(header=pb.WriteHeader(workspace="ws"))
    file = pb.WriteFilesRequest(file=pb.FileHeader(path="a"))
    data = pb.WriteFilesRequest(data=b"x")
    for messages in ((), (file, data), (header, data), (header, header), (header, pb.WriteFilesRequest())):
        with pytest.raises(InvalidArgumentError):
            await send(*messages)
    with pytest.raises(InvalidArgumentError, match="permission bits"):
        await send(header, pb.WriteFilesRequest(file=pb.FileHeader(path="a", mode=0o4755)))
    with pytest.raises(InvalidArgumentError):
        await send(header, file, pb.WriteFilesRequest(data=bytes((256 << 10) + 1)))
    assert (await user.get("ws")).generation == 0
    assert await stack.trees() == []


async def test_a_stream_over_the_limit_is_refused_while_it_comes(tmp_path: Path) -> None:
    limits = TreeLimits(file_bytes=1 << 20)
    kv = MemoryKeyValue(SystemClock())
    async with workspace_service(tmp_path, kv, MemoryObjects(), limits=limits) as stack, asyncio.timeout(WITHIN):
        user = stack.user()
        await user.create("ws")
        upload = Upload(user)
        await upload.begin()
        await upload.file("large")
        for _ in range(5):
            await upload.call.write(pb.WriteFilesRequest(data=bytes(256 << 10)))
        # The client has not finished, and the write is over: key and tree are free already.
        await stack.engine.finished(1)
        await stack.quiet()
        assert await stack.trees() == []
        with pytest.raises(QuotaExceededError, match="large"):
            await upload.finish()


async def test_a_client_that_sends_much_after_the_refusal_is_told_the_reason(user: User) -> None:
    with pytest.raises(QuotaExceededError, match="large"):
        await user.write("ws", {"large": bytes(64 << 20)})


async def test_a_file_takes_the_place_of_a_file_with_its_mode(user: User) -> None:
    async def stream() -> AsyncIterator[pb.WriteFilesRequest]:
        yield pb.WriteFilesRequest(header=pb.WriteHeader(workspace="ws"))
        for path, mode in (("run.sh", 0o755), ("plain", 0), ("closed", 0o400), ("closed", 0o600)):
            yield pb.WriteFilesRequest(file=pb.FileHeader(path=path, mode=mode))
            yield pb.WriteFilesRequest(data=b"x")
        yield pb.WriteFilesRequest(file=pb.FileHeader(path="empty"))

    await user.stub.WriteFiles(stream())
    assert {file.path: file.mode for file in await user.files("ws")} == {
        "run.sh": 0o755,
        "plain": 0o644,
        "closed": 0o600,
        "empty": 0o644,
    }
