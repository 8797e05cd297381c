"""From what a scan found to a manifest's items and the tree's next index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cloudclaw.snapshots.index import Index, Seen
from cloudclaw.snapshots.links import Names
from cloudclaw.snapshots.manifest import Item
from cloudclaw.snapshots.pipeline import Contents
from cloudclaw.snapshots.port import FileEntry, FileType
from cloudclaw.snapshots.scan import DIRECTORY, Fresh, Scan

T = TypeVar("T")


def store_copies(scan: Scan[T], store: Callable[[T, bytes], Contents]) -> dict[bytes, Contents]:
    """Store what the scan put aside, by path, in the tree's order."""
    fresh = sorted(
        (node.entry.path, node.content)
        for folder in scan.folders.values()
        for node in folder.names.values()
        if isinstance(node, Fresh) and node.content is not None
    )
    return {path: store(content, path) for path, content in fresh}


def assemble(scan: Scan[T], contents: Callable[[Fresh[T]], Contents], index: Index) -> list[Item]:
    """All items of the tree, in no order; what is known of files and symlinks is entered into `index`, which is new.

    `contents`: of a file that was read. Call it when these are complete.
    """
    items: list[Item] = []
    seen, linked = index.seen, scan.links.has
    for folder in scan.folders.values():
        items.append(Item(folder.entry))
        for node in folder.names.values():
            if isinstance(node, Seen):
                item = node.item
                if item is DIRECTORY:
                    continue
                if linked(item.entry.path):
                    continue
                if item.entry.link:
                    item = Item(replace(item.entry, link=b""), item.blobs)
                    node = Seen(node.ino, node.ctime_ns, item)
                seen[item.entry.path] = node
            else:
                if linked(node.entry.path):
                    continue
                item = _item(node, contents)
                index.add(item, node.status, node.read_ns)
            items.append(item)
    for names in scan.links:
        items += _linked(scan, names, contents, index)
    return items


def _item(node: Fresh[T], contents: Callable[[Fresh[T]], Contents]) -> Item:
    entry = node.entry
    if entry.type is not FileType.REGULAR:
        return Item(entry)
    found = contents(node)
    whole = FileEntry(entry.path, entry.type, found.size, entry.mode, entry.mtime_ns, found.digest, sparse=entry.sparse)
    return Item(whole, tuple(found.blobs))


def _linked(scan: Scan[T], names: Names, contents: Callable[[Fresh[T]], Contents], index: Index) -> list[Item]:
    """The items of one file's names: the first by path carries the content, the others name it."""
    paths = sorted(names.paths)
    nodes = [scan.node(path) for path in paths]
    source = next(node for node in nodes if isinstance(node, Seen) or node.content is not None)
    known = source.item if isinstance(source, Seen) else _item(source, contents)
    items = []
    for path, node in zip(paths, nodes, strict=True):
        link = b"" if path == paths[0] else paths[0]
        entry = known.entry
        if (entry.path, entry.link) != (path, link):
            entry = replace(entry, path=path, link=link)
        item = Item(entry, known.blobs)
        if isinstance(node, Seen):
            index.seen[path] = Seen(node.ino, node.ctime_ns, item)
        else:
            index.add(item, node.status, node.read_ns)
        items.append(item)
    return items
