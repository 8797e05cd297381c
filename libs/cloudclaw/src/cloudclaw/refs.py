"""Snapshots between the API's words and the records'."""

from __future__ import annotations

from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.v1.task_pb2 import SnapshotRef


def ref_of(pointer: SnapshotPointer) -> SnapshotRef:
    """The pointer as the API shows it."""
    return SnapshotRef(
        snapshot_id=pointer.id,
        manifest_digest=pointer.manifest,
        parent_id=pointer.parent,
        files=pointer.files,
        bytes=pointer.bytes,
        uid=pointer.uid,
    )


def pointer_of(ref: SnapshotRef) -> SnapshotPointer:
    """The pointer that a message names."""
    return SnapshotPointer(
        id=ref.snapshot_id,
        manifest=ref.manifest_digest,
        parent=ref.parent_id,
        files=ref.files,
        bytes=ref.bytes,
        uid=ref.uid,
    )
