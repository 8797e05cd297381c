"""A user's write: one new version of a workspace, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import structlog
from msgspec.structs import replace

from cloudclaw.coordination.records import SnapshotPointer, WorkspaceRecord
from cloudclaw.errors import AbortedError, InvalidArgumentError
from cloudclaw.ids import new_id
from cloudclaw.snapshots.editing import TreeEditor, editing
from cloudclaw.snapshots.port import FileType, Tree, TreeLimits, WorkspaceManager
from cloudclaw.snapshots.threads import Stopped, TreeThreads
from cloudclaw_workspace.app.feed import Feed
from cloudclaw_workspace.domain.edits import Data, Edit, PutFile, Remove
from cloudclaw_workspace.ports.registry import Registry

_log = structlog.get_logger()

Change = Callable[[TreeEditor, threading.Event], None]
"""Changes a tree, in a thread; looks at the event now and then and raises `Stopped`."""


class Writer:
    """Takes the writer key, changes a private copy of the head, stores it, and commits it by the key's token.

    A failure at any point, a client that vanishes and a crash of this process leave the workspace as it was and its
    writer key free; objects that were stored by then are named by this operation and reachable by nobody (rule 8).
    """

    def __init__(self, registry: Registry, manager: WorkspaceManager, threads: TreeThreads, limits: TreeLimits) -> None:
        """`threads`: as many writes are under way at once as it has; the others wait, without holding a key."""
        self._registry = registry
        self._manager = manager
        self._threads = threads
        self._limits = limits

    async def write(
        self,
        tenant: str,
        name: str,
        change: Change,
        *,
        expected_head: str = "",
        on_cancel: Callable[[], None] | None = None,
    ) -> SnapshotPointer:
        """Apply `change` to the head as a new version.

        Raises `NotFoundError`; `AbortedError` (`WRITER_BUSY`, or `HEAD_MOVED` when `expected_head` is given and is not
        the head); `FencedError` when the key was lost meanwhile; what `change` and the `WorkspaceManager` raise.
        """
        operation = new_id("op")
        _check_head((await self._registry.get(tenant, name)).record, expected_head)
        tree: Tree | None = None
        committed: SnapshotPointer | None = None
        try:
            async with self._registry.writing(tenant, name, operation) as token:
                workspace = await self._registry.get(tenant, name)
                _check_head(workspace.record, expected_head)
                head = workspace.record.head
                files, size = await self._totals(tenant, head)
                tree = await self._manager.checkout(tenant, head, operation)
                await self._apply(tree, change, files, size, on_cancel)
                stored = (await self._manager.snapshot(tenant, tree, new_id("snap"))).pointer
                if head is None or stored.id != head.id:  # else nothing changed, and the head stays what it is
                    await self._registry.commit(tenant, workspace, stored, operation, token)
                committed = stored
        finally:
            if tree is not None:
                await self._manager.release(tenant, tree, committed)
        _log.info("workspace written", workspace=name, snapshot=committed.id, operation=operation)
        return committed

    async def restore(self, tenant: str, name: str, snapshot_id: str) -> WorkspaceRecord:
        """Make an old snapshot the head again, as a new version with the same manifest. Raises as `write`."""
        operation = new_id("op")
        async with self._registry.writing(tenant, name, operation) as token:
            workspace = await self._registry.get(tenant, name)
            old = (await self._registry.snapshot(tenant, name, snapshot_id)).pointer
            head = workspace.record.head
            pointer = replace(old, id=new_id("snap"), parent=head.id if head is not None else "")
            return await self._registry.commit(tenant, workspace, pointer, operation, token, source=snapshot_id)

    async def _totals(self, tenant: str, head: SnapshotPointer | None) -> tuple[int, int]:
        """Entries and bytes that the head holds already; the two top directories are nobody's."""
        if head is None:
            return 0, 0
        entries = await self._manager.manifest(tenant, head)
        return len(entries) - 2, sum(
            entry.size for entry in entries if entry.type is FileType.REGULAR and not entry.link
        )

    async def _apply(
        self, tree: Tree, change: Change, files: int, size: int, on_cancel: Callable[[], None] | None
    ) -> None:
        def work(stop: threading.Event) -> None:
            with editing(tree, self._limits, files=files, size=size) as editor:
                change(editor, stop)

        try:
            await self._threads.run(work, on_cancel=on_cancel)
        except Stopped:
            raise AbortedError("the client went away; nothing was written", reason="CLIENT_GONE") from None


def apply_edits(edits: Feed[Edit]) -> Change:
    """A change that applies a user's stream of edits as they come."""

    def change(editor: TreeEditor, stop: threading.Event) -> None:
        pending: list[Edit] = []

        def content() -> Iterator[bytes]:
            for edit in edits:
                if stop.is_set():
                    raise Stopped
                if not isinstance(edit, Data):
                    pending.append(edit)
                    return
                yield edit.content

        while True:
            edit = pending.pop() if pending else next(edits, None)
            match edit:
                case None:
                    return
                case Data():
                    raise InvalidArgumentError("data came before a file was named", field="data")
                case PutFile(path, mode):
                    editor.write(path, mode, content())
                case Remove(path):
                    editor.remove(path)

    return change


def _check_head(workspace: WorkspaceRecord, expected: str) -> None:
    head = workspace.head.id if workspace.head is not None else ""
    if expected and expected != head:
        raise AbortedError(
            f"the head of workspace {workspace.name!r} is {head or 'still empty'}, not {expected}",
            reason="HEAD_MOVED",
            metadata={"head": head},
        )
