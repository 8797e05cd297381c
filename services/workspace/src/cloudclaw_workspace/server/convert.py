"""Between records and `cloudclaw.v1`."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.coordination.records import SnapshotRecord
from cloudclaw.errors import InvalidArgumentError
from cloudclaw.snapshots.port import Change, FileEntry, FileType
from cloudclaw.snapshots.safe import show
from cloudclaw.v1 import task_pb2
from cloudclaw.v1 import workspace_pb2 as pb
from cloudclaw_workspace.app.browsing import Page
from cloudclaw_workspace.app.workspaces import View
from cloudclaw_workspace.domain.edits import Data, Edit, PutFile, Remove
from cloudclaw_workspace.domain.garbage import Report
from cloudclaw_workspace.domain.paging import page_size
from cloudclaw_workspace.domain.paths import to_tree, to_user
from cloudclaw_workspace.domain.retention import MAX_DAILY, MAX_LAST, Retention

MAX_DATA = 256 << 10

_TYPES = {
    FileType.REGULAR: pb.FILE_TYPE_REGULAR,
    FileType.DIRECTORY: pb.FILE_TYPE_DIRECTORY,
    FileType.SYMLINK: pb.FILE_TYPE_SYMLINK,
}


def page(size: int, token: str) -> Page:
    """A request's page."""
    return Page(page_size(size), token)


def workspace(tenant: str, view: View) -> pb.Workspace:
    record = view.record
    return pb.Workspace(
        name=record.name,
        tenant=tenant,
        head_snapshot_id=record.head.id if record.head is not None else "",
        generation=record.generation,
        create_time=_time(record.created),
        update_time=_time(record.updated),
        writer=view.writer,
        retention=pb.Retention(keep_last=view.record.keep_last, keep_daily=view.record.keep_daily),
    )


def retention(wanted: pb.Retention) -> Retention:
    """A workspace's own retention. Raises `InvalidArgumentError` for more than may be kept."""
    for name, value, most in (("keep_last", wanted.keep_last, MAX_LAST), ("keep_daily", wanted.keep_daily, MAX_DAILY)):
        if value > most:
            raise InvalidArgumentError(f"must be 0 (for the default) to {most}, got {value}", field=f"retention.{name}")
    return Retention(wanted.keep_last, wanted.keep_daily)


def report(found: Report) -> pb.GarbageReport:
    return pb.GarbageReport(
        tenant=found.tenant,
        snapshots_removed=found.snapshots,
        objects_kept=found.kept,
        bytes_kept=found.kept_bytes,
        objects_waiting=found.waiting,
        bytes_waiting=found.waiting_bytes,
        objects_removed=found.removed,
        bytes_removed=found.removed_bytes,
        names=found.names,
    )


def snapshot(name: str, record: SnapshotRecord) -> pb.Snapshot:
    pointer = record.pointer
    return pb.Snapshot(
        snapshot_id=pointer.id,
        workspace=name,
        parent_id=pointer.parent,
        manifest_digest=pointer.manifest,
        files=pointer.files,
        bytes=pointer.bytes,
        create_time=_time(record.created),
        task_id=record.task,
        head=record.head,
    )


def file(entry: FileEntry) -> pb.File:
    modified = Timestamp()
    modified.FromNanoseconds(max(_FIRST, min(entry.mtime_ns, _LAST)))
    return pb.File(
        path=show(to_user(entry.path)),
        type=_TYPES[entry.type],
        size=entry.size,
        mode=entry.mode,
        target=show(entry.target),
        modify_time=modified,
    )


def changed(change: Change) -> task_pb2.ChangedFile:
    kinds = task_pb2.ChangedFile
    if change.old_size is None:
        kind = kinds.CHANGE_ADDED
    elif change.new_size is None:
        kind = kinds.CHANGE_REMOVED
    else:
        kind = kinds.CHANGE_MODIFIED
    return kinds(path=show(change.path), change=kind, old_size=change.old_size or 0, new_size=change.new_size or 0)


def edit(request: pb.WriteFilesRequest) -> Edit:
    """One message of a write after its header. Raises `InvalidArgumentError`."""
    match request.WhichOneof("message"):
        case "file":
            mode = request.file.mode
            if mode & ~0o777:
                raise InvalidArgumentError(f"permission bits only, got {mode:o}", field="mode")
            return PutFile(to_user(to_tree(request.file.path)), mode or 0o644)
        case "data":
            return Data(data(request.data))
        case "remove":
            return Remove(to_user(to_tree(request.remove)))
        case "header":
            raise InvalidArgumentError("only the first message is a header", field="header")
        case _:
            raise InvalidArgumentError("the message is empty", field="message")


def data(content: bytes) -> bytes:
    """A chunk of at most 256 KiB. Raises `InvalidArgumentError`."""
    if len(content) > MAX_DATA:
        raise InvalidArgumentError(f"at most {MAX_DATA} bytes at once, got {len(content)}", field="data")
    return content


_FIRST = -62_135_596_800 * 10**9
_LAST = 253_402_300_799 * 10**9


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1_000_000) * 1000)
    return stamp
