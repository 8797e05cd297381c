"""Reading: snapshots, their files, their differences, archives of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from cloudclaw.coordination.records import SnapshotPointer, SnapshotRecord
from cloudclaw.errors import NotFoundError, PreconditionError
from cloudclaw.ids import check_opaque_id
from cloudclaw.snapshots.port import Change, FileEntry, FileType, WorkspaceManager
from cloudclaw_workspace.domain import paging, paths, tar
from cloudclaw_workspace.ports.registry import Registry

_KINDS = {FileType.REGULAR: tar.Kind.FILE, FileType.DIRECTORY: tar.Kind.DIRECTORY, FileType.SYMLINK: tar.Kind.SYMLINK}


@dataclass(frozen=True, slots=True)
class Page:
    """A page's size, and the token that it goes on from."""

    size: int
    token: str = ""


class Browser:
    """Snapshots of a tenant's workspaces. `NotFoundError` for what is not there, or another's."""

    def __init__(self, registry: Registry, manager: WorkspaceManager) -> None:
        self._registry = registry
        self._manager = manager

    async def snapshot(self, tenant: str, name: str, snapshot_id: str) -> SnapshotRecord:
        """One snapshot."""
        return await self._registry.snapshot(tenant, name, check_opaque_id(snapshot_id, "snapshot_id"))

    async def snapshots(self, tenant: str, name: str, page: Page) -> tuple[Sequence[SnapshotRecord], str]:
        """Snapshots, newest first, and the next page's token."""
        scope = ("snapshots", tenant, name)
        cursor = paging.decode(scope, page.token, 1)
        found, more = await self._registry.snapshots(tenant, name, int(cursor[0]) if cursor else 0, page.size)
        token = paging.encode(scope, (str(found[-1][0]),)) if more else ""
        return [record for _, record in found], token

    async def files(
        self, tenant: str, name: str, snapshot_id: str, path: str, *, recursive: bool, page: Page
    ) -> tuple[Sequence[FileEntry], str]:
        """Entries below a directory by path; a listing goes on in the snapshot that it began with.

        Raises `PreconditionError` when `path` is no directory.
        """
        scope = ("files", tenant, name, snapshot_id, path, str(recursive))
        cursor = paging.decode(scope, page.token, 2)
        pointer = await self._pointer(tenant, name, cursor[0] if cursor else snapshot_id)
        if pointer is None:
            if path:
                raise NotFoundError(f"no file {path!r}: workspace {name!r} is still empty", reason="NO_FILE")
            return [], ""
        entries = await self._manager.manifest(tenant, pointer)
        top = paths.TOP
        if path:
            entry = _find(entries, path)
            if entry.type is not FileType.DIRECTORY:
                raise PreconditionError(f"{path!r} is no directory", subject="path", reason="NOT_A_DIRECTORY")
            top = entry.path
        prefix = top + b"/"
        after = bytes.fromhex(cursor[1]) if cursor else b""
        found = [
            entry
            for entry in entries
            if entry.path.startswith(prefix)
            and entry.path > after
            and (recursive or b"/" not in entry.path[len(prefix) :])
        ]
        page_of = found[: page.size]
        more = len(found) > len(page_of)
        return page_of, paging.encode(scope, (pointer.id, page_of[-1].path.hex())) if more else ""

    async def diff(self, tenant: str, name: str, old_id: str, new_id: str, page: Page) -> tuple[Sequence[Change], str]:
        """What differs, by path; by default between the head and its parent, or the empty tree."""
        scope = ("diff", tenant, name, old_id, new_id)
        cursor = paging.decode(scope, page.token, 3)
        if cursor:
            old_id, new_id = cursor[0], cursor[1]
        new = await self._pointer(tenant, name, new_id)
        if new is None:
            return [], ""
        old_id = old_id or new.parent
        old = await self._pointer(tenant, name, old_id) if old_id else None
        changes = await self._manager.diff(tenant, old, new)
        after = bytes.fromhex(cursor[2]) if cursor else b""
        found = [change for change in changes if change.path > after]
        page_of = found[: page.size]
        more = len(found) > len(page_of)
        return page_of, paging.encode(scope, (old_id, new.id, page_of[-1].path.hex())) if more else ""

    async def read(
        self, tenant: str, name: str, snapshot_id: str, path: str, offset: int, length: int
    ) -> AsyncIterator[bytes]:
        """One regular file's bytes, in pieces of at most 256 KiB. `OutOfRangeError`, `PreconditionError`."""
        candidates = paths.candidates(path)
        pointer = await self._pointer(tenant, name, snapshot_id)
        if pointer is None:
            raise NotFoundError(f"no file {path!r}: workspace {name!r} is still empty", reason="NO_FILE")
        place = candidates[0]
        if len(candidates) > 1:
            place = _find(await self._manager.manifest(tenant, pointer), path).path
        try:
            async for piece in self._manager.read(tenant, pointer, place, offset=offset, length=length):
                yield piece
        except (NotFoundError, PreconditionError) as error:
            # A snapshot's own names begin above the workspace; its user knows the file by the name that was asked for.
            if error.reason == "NO_FILE":
                raise NotFoundError(f"no file {path!r} in snapshot {pointer.id}", reason="NO_FILE") from error
            if error.reason == "NOT_A_FILE":
                raise PreconditionError(f"{path!r} is no regular file", subject="path", reason="NOT_A_FILE") from error
            raise

    async def archive(self, tenant: str, name: str, snapshot_id: str) -> AsyncIterator[bytes]:
        """The workspace's files as a tar stream, out of the store: nothing is checked out."""
        pointer = await self._pointer(tenant, name, snapshot_id)
        if pointer is not None:
            # A file whose first name is in `home`, which is no part of the archive: its first name here carries it.
            carriers: dict[bytes, bytes] = {}
            for entry in await self._manager.manifest(tenant, pointer):
                if not entry.path.startswith(paths.PREFIX):
                    continue
                link = entry.link
                if link and not link.startswith(paths.PREFIX):
                    carrier = carriers.setdefault(link, entry.path)
                    link = b"" if carrier == entry.path else carrier
                member = _member(entry, link)
                yield tar.header(member)
                if member.size:
                    async for piece in self._manager.read(tenant, pointer, entry.path):
                        yield piece
                    yield tar.padding(entry.size)
        yield tar.END

    async def _pointer(self, tenant: str, name: str, snapshot_id: str) -> SnapshotPointer | None:
        """A named snapshot, or the head; None while the workspace is empty."""
        if snapshot_id:
            return (await self.snapshot(tenant, name, snapshot_id)).pointer
        return (await self._registry.get(tenant, name)).record.head


def _find(entries: Sequence[FileEntry], path: str) -> FileEntry:
    for place in paths.candidates(path):
        for entry in entries:
            if entry.path == place:
                return entry
    raise NotFoundError(f"no file {path!r}", reason="NO_FILE")


def _member(entry: FileEntry, link: bytes) -> tar.Member:
    """`link`: a file that is in the archive before it, and that it is another name of; no bytes follow then."""
    if link:
        return tar.Member(
            path=paths.to_user(entry.path),
            kind=tar.Kind.HARD_LINK,
            size=0,
            mode=entry.mode,
            mtime_ns=entry.mtime_ns,
            link=paths.to_user(link),
        )
    return tar.Member(
        path=paths.to_user(entry.path),
        kind=_KINDS[entry.type],
        size=entry.size if entry.type is FileType.REGULAR else 0,
        mode=entry.mode,
        mtime_ns=entry.mtime_ns,
        link=entry.target,
    )
