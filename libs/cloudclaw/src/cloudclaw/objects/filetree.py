"""Where `FilesystemObjects` keeps its files, and how one appears whole or not at all.

root/objects/a/b/c@     the object a/b/c; '@' is in no object's name, so a/b can be an object as well
root/tmp/…              objects being written; their writers hold a lock on them
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloudclaw.errors import NotFoundError, QuotaExceededError, UnavailableError

_SUFFIX: Final = "@"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def file_errors(name: str) -> Iterator[None]:
    """Turn what the file system says of object `name` into the port's errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"no object {name}") from error
    except OSError as error:
        if error.errno in _FULL:
            raise QuotaExceededError(
                f"no room for object {name}: {error.strerror}; free space on the object store's disk",
                subject="object-store",
                reason="OBJECT_STORE_FULL",
            ) from error
        raise UnavailableError(f"object {name}: {error}") from error


class FileTree:
    """The files of one store. Every method blocks, and raises `OSError` unless it says more.

    A missing root (an unmounted disk) is `UnavailableError`, never "no such object", and is never
    created again behind the operator's back.
    """

    def __init__(self, root: Path) -> None:
        """Create what is missing of `root`. Raises `UnavailableError`."""
        self._objects = str(root / "objects")
        self._tmp = str(root / "tmp")
        try:
            for path in (self._objects, self._tmp):
                os.makedirs(path, mode=0o700, exist_ok=True)
            _sync_directory(str(root))
            self.remove_abandoned()
        except OSError as error:
            raise UnavailableError(f"cannot use {root} as an object store: {error}") from error

    def open(self, name: str) -> int:
        """A descriptor for reading. Raises `FileNotFoundError`; `UnavailableError` without a root."""
        try:
            return os.open(self.place(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.require_root()
            raise

    def create(self) -> tuple[str, int]:
        """Path and locked descriptor of a new temporary file."""
        while True:
            path = os.path.join(self._tmp, secrets.token_hex(8))
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError as error:
                raise self._gone() from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Between the two calls another process's start may have taken it for abandoned.
                if os.fstat(fd).st_nlink == 1:
                    return path, fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def publish(self, path: str, name: str, *, replace: bool) -> bool:
        """Let the finished file at `path` become the object `name`, durably.

        Answers False, and leaves the object that is there, when `replace` is not set.
        """
        target = self.place(name)
        while True:
            try:
                if replace:
                    os.rename(path, target)
                else:
                    os.link(path, target)
            except FileExistsError:
                return False
            except FileNotFoundError:
                if not os.path.lexists(path):
                    raise self._gone() from None
                # The directory is new, or a delete has just pruned it: make it and try again.
                self._make_parents(target)
            else:
                break
        _sync_directory(os.path.dirname(target))
        return True

    def exists(self, name: str) -> bool:
        """Whether there is such an object. Raises `UnavailableError` without a root."""
        if os.path.lexists(self.place(name)):
            return True
        self.require_root()
        return False

    def delete(self, name: str) -> None:
        """Remove the object where it exists, and the directories that this leaves empty."""
        target = self.place(name)
        try:
            os.unlink(target)
        except FileNotFoundError:
            self.require_root()
            return
        directory = os.path.dirname(target)
        while directory != self._objects:
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                    raise
                break
            directory = os.path.dirname(directory)

    def walk(self, prefix: str, start_after: str) -> Iterator[tuple[str, os.stat_result]]:
        """Objects whose names begin with `prefix` and come after `start_after`, in byte order.

        Reads one directory at a time, and none that cannot hold such an object.
        """
        parent = prefix.rpartition("/")[0]
        return self._walk(f"{parent}/" if parent else "", prefix, start_after)

    def _walk(self, inside: str, prefix: str, start_after: str) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with os.scandir(os.path.join(self._objects, inside)) as entries:
                # As a name, a directory ends in '/': that is where its objects sort among its siblings.
                names = sorted(
                    inside + (entry.name.removesuffix(_SUFFIX) if is_object else f"{entry.name}/")
                    for entry in entries
                    if (is_object := entry.name.endswith(_SUFFIX)) or entry.is_dir(follow_symlinks=False)
                )
        except FileNotFoundError:
            self.require_root()
            return
        for name in names:
            if name.endswith("/"):
                in_prefix = name.startswith(prefix) or prefix.startswith(name)
                if in_prefix and (name > start_after or start_after.startswith(name)):
                    yield from self._walk(name, prefix, start_after)
            elif name.startswith(prefix) and name > start_after:
                try:
                    yield name, os.lstat(self.place(name))
                except FileNotFoundError:
                    continue  # deleted since the directory was read

    def place(self, name: str) -> str:
        """The path of object `name`."""
        return os.path.join(self._objects, name) + _SUFFIX

    def _make_parents(self, target: str) -> None:
        directory = self._objects
        for segment in os.path.relpath(os.path.dirname(target), self._objects).split("/"):
            if segment == ".":
                break
            above, directory = directory, os.path.join(directory, segment)
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:
                continue
            except FileNotFoundError:
                break  # pruned meanwhile: the caller tries again
            _sync_directory(above)
        self.require_root()

    def remove_abandoned(self) -> int:
        """Remove temporary files that no living process writes (their locks are free); answers how many."""
        count = 0
        with os.scandir(self._tmp) as entries:
            paths = [entry.path for entry in entries]
        for path in paths:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                count += 1
            except (BlockingIOError, FileNotFoundError):
                continue
            finally:
                os.close(fd)
        return count

    def require_root(self) -> None:
        """Raises `UnavailableError` when the store's directory is not there."""
        if not os.path.isdir(self._objects):
            raise self._gone()

    def _gone(self) -> UnavailableError:
        return UnavailableError(f"the object store's directory {self._objects} is gone; mount it again")


def _sync_directory(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # pruned by a concurrent delete, with the object in it
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
