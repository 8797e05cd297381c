"""A node that cannot tell what is mapped: every file counts as mapped."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.snapshots.port import WORKSPACE
from tests.support.trees import TENANT, engine
from tests.unit.snapshots.test_checkpoint import pausing


class Every(Collection[int]):
    """Can only be asked, as the node's is."""

    def __contains__(self, inode: object) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        raise TypeError

    def __len__(self) -> int:
        raise TypeError

    def __bool__(self) -> bool:
        return True


async def test_every_file_may_be_mapped(tmp_path: Path) -> None:
    manager = engine(tmp_path, MemoryObjects())
    tree = await manager.checkout(TENANT, None, "uid")
    (tree.path / WORKSPACE / "a").write_bytes(b"before")
    saved = await manager.checkpoint(TENANT, tree, "snap-1", pausing(mapped=Every))
    (tree.path / WORKSPACE / "a").write_bytes(b"after!")
    again = await manager.checkpoint(TENANT, tree, "snap-2", pausing(mapped=Every))
    for pointer, content in ((saved.pointer, b"before"), (again.pointer, b"after!")):
        assert b"".join([piece async for piece in manager.read(TENANT, pointer, b"workspace/a")]) == content
