"""Changing a checked-out tree on a user's behalf: safe against the tree and against the user."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cloudclaw.errors import InvalidArgumentError, NotFoundError, PreconditionError
from cloudclaw.snapshots import safe
from cloudclaw.snapshots.limits import Budget
from cloudclaw.snapshots.port import WORKSPACE, Tree, TreeLimits
from cloudclaw.snapshots.removal import remove
from cloudclaw.snapshots.restore import open_tree


class TreeEditor:
    """Writes beneath a tree's `workspace`; for one thread. Use `editing`.

    Paths are bytes relative to the workspace. What stands at a path is unlinked and made anew, never written
    through; missing parents are made (0755); a parent that is a symlink or a file is refused. Every method raises
    `InvalidArgumentError(field="path")` or `QuotaExceededError`, naming the path.
    """

    def __init__(self, tree: int, workspace: int, limits: TreeLimits, *, files: int, size: int) -> None:
        self._tree = tree
        self._root = workspace
        self._limits = limits
        self._budget = Budget(limits, files=files, size=size)
        self._directories: dict[bytes, tuple[int, int | None]] = {}

    def write(self, path: bytes, mode: int, chunks: Iterable[bytes], mtime_ns: int | None = None) -> None:
        """A regular file of the concatenated `chunks`, counted against the limits as they come."""
        with self._place(path) as (parent, name):
            self._clear(parent, name, path)
            self._budget.entry(path)
            with safe.closing(safe.open_child(parent, name, safe.CREATE, path=path)) as file:
                size = 0
                for chunk in chunks:
                    size += len(chunk)
                    self._budget.grow(path, len(chunk), size)
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(file, view) :]
                os.fchmod(file, mode & 0o777)
                if mtime_ns is not None:
                    os.utime(file, ns=(mtime_ns, mtime_ns))

    def directory(self, path: bytes, mode: int, mtime_ns: int | None = None) -> None:
        """A directory; one that is there keeps what it holds. Mode and time are set by `finish`."""
        with self._place(path) as (parent, name):
            status = _status(parent, name)
            if status is None or not stat.S_ISDIR(status.st_mode):
                self._clear(parent, name, path)
                self._budget.entry(path)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._directories[path] = (mode & 0o777, mtime_ns)

    def symlink(self, path: bytes, target: bytes, mtime_ns: int | None = None) -> None:
        """A symlink to `target` as it stands; nothing here ever follows it."""
        if not target or b"\0" in target or len(target) > 4095:
            safe.refuse(path, "a symlink's target must have 1 to 4095 bytes, without NUL")
        with self._place(path) as (parent, name):
            self._clear(parent, name, path)
            self._budget.entry(path)
            os.symlink(target, name, dir_fd=parent)
            if mtime_ns is not None:
                os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    def hard_link(self, path: bytes, source: bytes) -> None:
        """A second name of the regular file `source` of this tree; its bytes count once, as in a snapshot."""
        self._check(source)
        try:
            with safe.closing(safe.open_beneath(self._root, source, os.O_PATH)) as handle:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    safe.refuse(path, f"is a hard link to {safe.brief(source)}, which is {safe.kind(status.st_mode)}")
                with self._place(path) as (parent, name):
                    there = _status(parent, name)
                    if there is not None and (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
                        return
                    self._clear(parent, name, path)
                    self._budget.entry(path)
                    # Linked by descriptor: what was judged above is what gets the name.
                    os.link(f"/proc/self/fd/{handle}", name, dst_dir_fd=parent, follow_symlinks=True)
        except FileNotFoundError:
            safe.refuse(path, f"is a hard link to {safe.brief(source)}, which is not there")

    def remove(self, path: bytes) -> None:
        """Remove `path` with all below it. Raises `NotFoundError`."""
        self._check(path)
        try:
            with safe.parent_of(self._root, path) as (parent, name):
                if _status(parent, name) is None:
                    raise NotFoundError(f"no file {safe.brief(path)}")
                with _writable(parent):
                    removed = remove(parent, name, self._tree)
        except FileNotFoundError as error:
            raise NotFoundError(f"no file {safe.brief(path)}") from error
        self._budget.give_back(removed.files, removed.bytes, removed.files * len(path))
        below = path + b"/"
        self._directories = {p: v for p, v in self._directories.items() if p != path and not p.startswith(below)}

    def clear(self) -> None:
        """Remove all of the workspace."""
        for name in [os.fsencode(entry.name) for entry in safe.names(self._root)]:
            removed = remove(self._root, name, self._tree)
            self._budget.give_back(removed.files, removed.bytes)
        self._directories.clear()

    def finish(self) -> None:
        """Give directories the modes and times they are to have, the deepest first."""
        for path in sorted(self._directories, reverse=True):
            mode, mtime_ns = self._directories[path]
            try:
                with safe.closing(safe.open_beneath(self._root, path, safe.DIRECTORY)) as fd:
                    os.fchmod(fd, mode)
                    if mtime_ns is not None:
                        os.utime(fd, ns=(mtime_ns, mtime_ns))
            except FileNotFoundError:
                continue  # an entry that came later took its place

    @contextmanager
    def _place(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The open, writable parent directory of `path`, made when it is missing, and the last step."""
        self._check(path)
        *above, name = path.split(b"/")
        try:
            parents = b"/".join(above)
            fd = safe.open_beneath(self._root, parents, safe.DIRECTORY, named=path) if above else os.dup(self._root)
        except FileNotFoundError:
            fd = self._make(above, path)
        with safe.closing(fd), _writable(fd):
            yield fd, name

    def _make(self, steps: list[bytes], path: bytes) -> int:
        """Open the directory of `steps`, making what is missing on the way to `path`."""
        fd = os.dup(self._root)
        for depth, step in enumerate(steps, 1):
            with safe.closing(fd), _writable(fd):
                if _status(fd, step) is None:
                    self._budget.entry(path)
                    os.mkdir(step, 0o700, dir_fd=fd)
                    self._directories[b"/".join(steps[:depth])] = (0o755, None)
                fd = safe.open_child(fd, step, safe.DIRECTORY, path=path)
        return fd

    def _clear(self, parent: int, name: bytes, path: bytes) -> None:
        """Unlink what stands at `path`; a directory goes only when it is empty."""
        status = _status(parent, name)
        if status is None:
            return
        if stat.S_ISDIR(status.st_mode):
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError as error:
                raise InvalidArgumentError(
                    f"{safe.brief(path)}: is a directory that is not empty; remove it first", field="path"
                ) from error
            self._budget.give_back(1, 0, len(path))
            self._directories.pop(path, None)
            return
        os.unlink(name, dir_fd=parent)
        # Bytes come back with the last name of a file only.
        last = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        self._budget.give_back(1, status.st_size if last else 0, len(path))

    def _check(self, path: bytes) -> None:
        safe.check_path(path, limit=self._limits.path_bytes)
        if path.count(b"/") + 1 > self._limits.depth:
            safe.refuse(path, f"is nested deeper than {self._limits.depth} directories")


@contextmanager
def editing(tree: Tree, limits: TreeLimits, *, files: int = 0, size: int = 0) -> Iterator[TreeEditor]:
    """An editor of `tree`, which holds `files` entries and `size` bytes already; finished when the block ends well."""
    with (
        safe.closing(open_tree(tree.path)) as root,
        safe.closing(safe.open_child(root, WORKSPACE.encode(), safe.DIRECTORY)) as workspace,
    ):
        editor = TreeEditor(root, workspace, limits, files=files, size=size)
        try:
            yield editor
        except PermissionError as error:
            raise _forbidden(os.fsencode(error.filename or b"")) from error
        editor.finish()


@contextmanager
def _writable(fd: int) -> Iterator[None]:
    """Within the block the owner may write the directory, whatever its mode says; the mode comes back."""
    bits = stat.S_IMODE(os.fstat(fd).st_mode)
    if bits & stat.S_IRWXU == stat.S_IRWXU:
        yield
        return
    os.fchmod(fd, bits | stat.S_IRWXU)
    try:
        yield
    finally:
        os.fchmod(fd, bits)


def _status(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _forbidden(path: bytes) -> PreconditionError:
    return PreconditionError(
        f"{safe.brief(path)}: the mode of a directory on the way does not let its owner in", reason="PATH_FORBIDDEN"
    )
