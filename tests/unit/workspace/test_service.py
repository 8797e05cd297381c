"""The API end to end over loopback gRPC, with stores in memory."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Awaitable

import pytest

from cloudclaw.coordination.records import WorkspaceRecord
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import (
    AbortedError,
    AlreadyExistsError,
    CloudClawError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from cloudclaw.rpc.channel import open_channel
from cloudclaw.v1 import task_pb2
from cloudclaw.v1 import workspace_pb2 as pb
from tests.support.trees import TAR_END, tar_member
from tests.support.workspace_service import User, WorkspaceStack


async def test_a_workspace_begins_empty(user: User) -> None:
    made = await user.get("ws")
    assert (made.name, made.tenant, made.head_snapshot_id, made.generation, made.writer) == ("ws", "acme", "", 0, "")
    assert made.create_time.seconds > 1_600_000_000
    assert await user.files("ws") == []
    assert await user.contents("ws") == {}
    with pytest.raises(NotFoundError):
        await user.read("ws", "file")


async def test_a_name_is_taken_once(user: User) -> None:
    with pytest.raises(AlreadyExistsError):
        await user.create("ws")


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "-a", "a" * 64, "a..b", "a\n"])
async def test_a_bad_name_is_refused_by_its_field(user: User, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await user.create(name)
    assert refused.value.field == "name"
    with pytest.raises(InvalidArgumentError):
        await user.write(name, {"a": b""})


async def test_without_a_token_nothing_is_served(stack: WorkspaceStack) -> None:
    async with open_channel(stack.address, None, None) as channel:
        with pytest.raises(UnauthenticatedError):
            await User(channel).get("ws")


async def test_files_are_written_read_and_removed(user: User) -> None:
    large = os.urandom(700_000)
    first = await user.write("ws", {"a.txt": b"hello", "deep/er/file": large, "empty": b""})
    assert (first.files, first.bytes, first.parent_id) == (3, 700_005, "")
    assert await user.read("ws", "deep/er/file") == large
    assert await user.read("ws", "a.txt", offset=1, length=3) == b"ell"
    assert await user.read("ws", "a.txt", offset=5) == b""
    second = await user.write("ws", {"a.txt": b"other"}, remove=["deep"])
    assert second.parent_id == first.snapshot_id
    assert await user.contents("ws") == {"a.txt": b"other", "empty": b""}
    assert await user.read("ws", "a.txt", snapshot=first.snapshot_id) == b"hello"
    now = await user.get("ws")
    assert (now.head_snapshot_id, now.generation) == (second.snapshot_id, 2)


async def test_reads_that_cannot_be_are_refused_precisely(user: User) -> None:
    await user.write("ws", {"dir/file": b"12345"})
    with pytest.raises(OutOfRangeError):
        await user.read("ws", "dir/file", offset=6)
    with pytest.raises(PreconditionError, match=r"^'dir' is no regular file$"):
        await user.read("ws", "dir")
    with pytest.raises(NotFoundError, match=r"^no file 'dir/other' in snapshot ") as missing:
        await user.read("ws", "dir/other")
    assert missing.value.reason == "NO_FILE"
    with pytest.raises(NotFoundError):
        await user.read("ws", "dir/file", snapshot="snap-unknown")
    with pytest.raises(NotFoundError):
        await user.read("nothing", "dir/file")
    for path in ("", "/etc/passwd", "../x", "dir/../dir/file", "a\0b"):
        with pytest.raises(InvalidArgumentError):
            await user.read("ws", path)
    with pytest.raises(InvalidArgumentError):
        await user.read("ws", "dir/file", snapshot="../../other")


async def test_listings_show_a_level_or_all_of_it(user: User) -> None:
    await user.write("ws", {"b/c/d": b"1", "b/e": b"22", "b-c": b"", "a": b"333"})
    assert [(f.path, f.size) for f in await user.files("ws", recursive=False)] == [("a", 3), ("b", 0), ("b-c", 0)]
    assert [f.path for f in await user.files("ws")] == ["a", "b", "b-c", "b/c", "b/c/d", "b/e"]
    below = await user.files("ws", "b", recursive=False)
    assert [(f.path, f.type) for f in below] == [("b/c", pb.FILE_TYPE_DIRECTORY), ("b/e", pb.FILE_TYPE_REGULAR)]
    with pytest.raises(PreconditionError):
        await user.files("ws", "a")
    with pytest.raises(NotFoundError):
        await user.files("ws", "nowhere")


async def test_a_listing_goes_on_in_the_snapshot_it_began_with(user: User) -> None:
    await user.write("ws", {f"f{n}": b"x" for n in range(5)})
    request = pb.ListFilesRequest(workspace="ws", recursive=True, page_size=2)
    page = await user.stub.ListFiles(request)
    found = [file.path for file in page.files]
    await user.write("ws", {"f1b": b"new"}, remove=["f3"])
    while page.next_page_token:
        request.page_token = page.next_page_token
        page = await user.stub.ListFiles(request)
        found += [file.path for file in page.files]
    assert found == ["f0", "f1", "f2", "f3", "f4"]


async def test_a_page_token_is_good_for_its_request_alone(user: User, stack: WorkspaceStack) -> None:
    await user.write("ws", {"a": b"", "b": b""})
    token = (await user.stub.ListFiles(pb.ListFilesRequest(workspace="ws", page_size=1))).next_page_token
    for request in (
        pb.ListFilesRequest(workspace="ws", page_size=1, recursive=True, page_token=token),
        pb.ListFilesRequest(workspace="ws", page_token="garbage"),
        pb.ListFilesRequest(workspace="ws", page_size=-1),
    ):
        with pytest.raises(InvalidArgumentError):
            await user.stub.ListFiles(request)
    other = stack.user("other")
    await other.create("ws")
    with pytest.raises(InvalidArgumentError):
        await other.stub.ListFiles(pb.ListFilesRequest(workspace="ws", page_size=1, page_token=token))


async def test_workspaces_are_listed_by_name_in_pages(user: User) -> None:
    for name in ("c", "a", "b.x", "b-x"):
        await user.create(name)
    found, token = [], ""
    while True:
        page = await user.stub.ListWorkspaces(pb.ListWorkspacesRequest(page_size=2, page_token=token))
        assert len(page.workspaces) <= 2
        found += [workspace.name for workspace in page.workspaces]
        token = page.next_page_token
        if not token:
            break
    assert found == ["a", "b-x", "b.x", "c", "ws"]


async def test_snapshots_are_listed_newest_first_in_pages(user: User) -> None:
    made = [(await user.write("ws", {"f": str(n).encode()})).snapshot_id for n in range(5)]
    found, token = [], ""
    while True:
        page = await user.stub.ListSnapshots(pb.ListSnapshotsRequest(workspace="ws", page_size=2, page_token=token))
        found += [snapshot.snapshot_id for snapshot in page.snapshots]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]
    one = (await user.stub.GetSnapshot(pb.GetSnapshotRequest(workspace="ws", snapshot_id=made[1]))).snapshot
    assert (one.parent_id, one.files, one.bytes, one.workspace, one.task_id) == (made[0], 1, 1, "ws", "")
    assert len(one.manifest_digest) == 64


async def test_a_diff_says_what_happened_to_each_file(user: User) -> None:
    first = (await user.write("ws", {"same": b"1", "gone": b"22", "changed": b"333"})).snapshot_id
    second = (await user.write("ws", {"changed": b"4444", "added": b"5"}, remove=["gone"])).snapshot_id
    kinds = task_pb2.ChangedFile
    wanted = [
        ("added", kinds.CHANGE_ADDED, 0, 1),
        ("changed", kinds.CHANGE_MODIFIED, 3, 4),
        ("gone", kinds.CHANGE_REMOVED, 2, 0),
    ]

    async def diff(**fields: str) -> list[tuple[str, int, int, int]]:
        found: list[tuple[str, int, int, int]] = []
        token = ""
        while True:
            page = await user.stub.DiffSnapshots(
                pb.DiffSnapshotsRequest(workspace="ws", page_size=2, page_token=token, **fields)
            )
            found += [(f.path, f.change, f.old_size, f.new_size) for f in page.files]
            token = page.next_page_token
            if not token:
                return found

    assert await diff() == wanted
    assert await diff(from_snapshot_id=first, to_snapshot_id=second) == wanted
    assert [path for path, *_ in await diff(to_snapshot_id=first)] == ["changed", "gone", "same"]


async def test_a_restored_snapshot_is_a_new_version(user: User) -> None:
    first = await user.write("ws", {"a": b"1"})
    second = await user.write("ws", {"a": b"2"})
    restored = (
        await user.stub.RestoreSnapshot(pb.RestoreSnapshotRequest(workspace="ws", snapshot_id=first.snapshot_id))
    ).workspace
    assert restored.generation == 3
    assert restored.head_snapshot_id not in (first.snapshot_id, second.snapshot_id)
    assert await user.contents("ws") == {"a": b"1"}
    with pytest.raises(NotFoundError):
        await user.stub.RestoreSnapshot(pb.RestoreSnapshotRequest(workspace="ws", snapshot_id="snap-none"))


async def test_a_fork_begins_with_the_others_files_and_goes_its_own_way(user: User) -> None:
    first = (await user.write("ws", {"a": b"1"})).snapshot_id
    await user.write("ws", {"a": b"2"})
    await user.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source="ws", name="at-head"))
    await user.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source="ws", name="at-first", snapshot_id=first))
    assert await user.contents("at-head") == {"a": b"2"}
    assert await user.contents("at-first") == {"a": b"1"}
    await user.write("at-first", {"a": b"3"})
    assert await user.contents("ws") == {"a": b"2"}
    await user.stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(name="ws"))
    assert await user.contents("at-head") == {"a": b"2"}
    for request in (
        pb.ForkWorkspaceRequest(source="ws", name="x"),
        pb.ForkWorkspaceRequest(source="at-head", name="x", snapshot_id="snap-none"),
    ):
        with pytest.raises(NotFoundError):
            await user.stub.ForkWorkspace(request)
    with pytest.raises(AlreadyExistsError):
        await user.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source="at-head", name="at-first"))


async def test_an_empty_workspace_forks_to_an_empty_one(user: User) -> None:
    made = (await user.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source="ws", name="copy"))).workspace
    assert (made.head_snapshot_id, made.generation) == ("", 0)


async def test_a_deleted_workspace_is_gone_with_its_snapshots(user: User) -> None:
    snapshot = (await user.write("ws", {"a": b"1"})).snapshot_id
    await user.stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(name="ws"))
    with pytest.raises(NotFoundError):
        await user.get("ws")
    with pytest.raises(NotFoundError):
        await user.stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(name="ws"))
    await user.create("ws")
    with pytest.raises(NotFoundError):
        await user.stub.GetSnapshot(pb.GetSnapshotRequest(workspace="ws", snapshot_id=snapshot))


async def test_another_tenants_workspace_is_not_there(user: User, stack: WorkspaceStack) -> None:
    snapshot = (await user.write("ws", {"secret": b"1"})).snapshot_id
    other = stack.user("other")
    calls: list[Awaitable[object]] = [
        other.get("ws"),
        other.files("ws"),
        other.read("ws", "secret"),
        other.read("ws", "secret", snapshot=snapshot),
        other.download("ws"),
        other.write("ws", {"a": b""}),
        other.upload("ws", b""),
        other.stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(name="ws")),
        other.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source="ws", name="mine")),
        other.stub.ForkWorkspace(pb.ForkWorkspaceRequest(source="ws", snapshot_id=snapshot, name="mine")),
        other.stub.ListSnapshots(pb.ListSnapshotsRequest(workspace="ws")),
        other.stub.GetSnapshot(pb.GetSnapshotRequest(workspace="ws", snapshot_id=snapshot)),
        other.stub.DiffSnapshots(pb.DiffSnapshotsRequest(workspace="ws")),
        other.stub.RestoreSnapshot(pb.RestoreSnapshotRequest(workspace="ws", snapshot_id=snapshot)),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            await call
    assert not (await other.stub.ListWorkspaces(pb.ListWorkspacesRequest())).workspaces
    assert await user.contents("ws") == {"secret": b"1"}


async def test_an_expected_head_guards_a_write(user: User) -> None:
    first = (await user.write("ws", {"a": b"1"})).snapshot_id
    second = (await user.write("ws", {"a": b"2"}, expected_head=first)).snapshot_id
    for attempt in (user.write("ws", {"a": b"3"}, expected_head=first), user.upload("ws", b"", expected_head=first)):
        with pytest.raises(AbortedError) as refused:
            await attempt
        assert refused.value.reason == "HEAD_MOVED"
    assert (await user.get("ws")).head_snapshot_id == second


async def test_only_operators_collect_and_delete(user: User) -> None:
    with pytest.raises(PermissionDeniedError):
        await user.stub.CollectGarbage(pb.CollectGarbageRequest())
    with pytest.raises(PermissionDeniedError):
        await user.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"))


async def test_a_name_that_is_no_utf8_is_listed_and_read(user: User, stack: WorkspaceStack) -> None:
    await user.upload("ws", tar_member(b"caf\xe9", b"x") + TAR_END)
    assert [file.path for file in await user.files("ws")] == ["caf%E9"]
    assert await user.read("ws", "caf%E9") == b"x"


async def test_a_damaged_store_is_reported_and_not_served(user: User, stack: WorkspaceStack) -> None:
    await user.write("ws", {"a": os.urandom(1000)})
    async for info in stack.objects.list("tenants/acme/packs/"):
        await stack.objects.put(info.name, b"x" * 2000)
    with pytest.raises(CloudClawError) as lost:
        await user.read("ws", "a")
    assert lost.value.code == "DATA_LOSS"


async def test_hard_links_that_a_task_made_stay_links_in_an_archive(user: User, stack: WorkspaceStack) -> None:
    """Each content is in the archive once; a link to a file outside of the workspace's part is a file there."""
    tree = await stack.engine.checkout("acme", None, "uid-1")
    (tree.path / "workspace" / "a").write_bytes(b"shared")
    (tree.path / "workspace" / "d").mkdir()
    os.link(tree.path / "workspace" / "a", tree.path / "workspace" / "d" / "b")
    (tree.path / "home" / "h").write_bytes(b"home's")
    os.link(tree.path / "home" / "h", tree.path / "workspace" / "of-home")
    pointer = (await stack.engine.snapshot("acme", tree, "snap-linked")).pointer
    await stack.engine.release("acme", tree, None)
    record = WorkspaceRecord(name="linked", created=0, updated=0, op_id="op-1", generation=1, head=pointer)
    await Transactions(stack.kv).create_workspace("acme", record, snapshot=pointer)
    with tarfile.open(fileobj=io.BytesIO(await user.download("linked"))) as archive:
        found = {member.name: (member.islnk(), member.linkname, member.size) for member in archive}
        content = archive.extractfile("d/b")
        assert content is not None
        assert content.read() == b"shared"
    assert found["a"] == (False, "", 6)
    assert found["d/b"] == (True, "a", 0)
    assert found["of-home"] == (False, "", 6)
    # What is written to one name is not written to the other.
    await user.write("linked", {"a": b"alone"})
    assert await user.read("linked", "d/b") == b"shared"
