"""Folders to tar streams and back, on the user's machine.

Neither side is trusted: what is packed may be swapped for something else meanwhile, and an archive comes from a server
and from what tasks left there. So everything is done by one name in an open directory, never through a symlink.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from cloudclaw.errors import InvalidArgumentError, PreconditionError

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 20
_BLOCK: Final = 64 << 10
_ZEROS: Final = bytes(_BLOCK)
_SECOND: Final = 10**9
_YEAR_9999: Final = 253_402_300_799
_DECIMAL: Final = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]*))?", re.ASCII)
_OF_THE_ENTRY: Final = (
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EMLINK,
    errno.ENOENT,
    errno.EPERM,
)
"""Errors that say something of one entry, not of the disk."""


def pack(sources: Sequence[Path], target: IO[bytes], skipped: Callable[[str], None]) -> int:
    """Write `sources` to `target` as a tar; answers the number of entries.

    The content of a folder goes to the top, a file under its own name. Owners are left out; symlinks stay symlinks,
    and further names of a file that was packed stay hard links to it. What no workspace holds (sockets, FIFOs,
    devices), and what is swapped or removed meanwhile, is told to `skipped`.
    Raises `InvalidArgumentError` for a source that is not there or cannot be read.
    """
    count = 0
    packed: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for source in sources:
            if not os.path.lexists(source):
                raise InvalidArgumentError(f"no such file or folder: {source}", field="SOURCE")
            for directory, folder, name in _entries(source):
                inside = os.path.relpath(os.path.join(folder, name), source) if folder else name
                if _add(tar, directory, name, inside, packed):
                    count += 1
                else:
                    skipped(os.path.join(folder or str(source.parent), name))
    return count


def _entries(source: Path) -> Iterator[tuple[int, str, str]]:
    """(open directory, its path, name) of everything below a folder, or of the one file, with an empty path."""
    if not source.is_dir():
        directory = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield directory, "", source.name
        finally:
            os.close(directory)
        return

    def refuse(error: OSError) -> None:
        raise InvalidArgumentError(f"cannot read {error.filename}: {error.strerror}", field="SOURCE") from error

    for folder, folders, files, directory in os.fwalk(f"{source}/", onerror=refuse):
        folders.sort()
        for name in sorted(folders + files):
            yield directory, folder, name


def _add(tar: tarfile.TarFile, directory: int, name: str, inside: str, packed: dict[tuple[int, int], str]) -> bool:
    info = tarfile.TarInfo(inside)
    try:
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(state.st_mode):
            with open(os.open(name, _READ, dir_fd=directory), "rb") as content:
                state = os.fstat(content.fileno())
                if not stat.S_ISREG(state.st_mode):
                    return False
                first = packed.setdefault((state.st_dev, state.st_ino), inside) if state.st_nlink > 1 else inside
                if first != inside:
                    info.type, info.linkname = tarfile.LNKTYPE, first
                else:
                    info.size = state.st_size
                tar.addfile(_described(info, state), content)
            return True
        if stat.S_ISLNK(state.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=directory)
        elif stat.S_ISDIR(state.st_mode):
            info.type = tarfile.DIRTYPE
        else:
            return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT):
            return False
        raise InvalidArgumentError(f"cannot read {inside}: {error.strerror or error}", field="SOURCE") from error
    tar.addfile(_described(info, state))
    return True


def _described(info: tarfile.TarInfo, state: os.stat_result) -> tarfile.TarInfo:
    info.mode, info.mtime = stat.S_IMODE(state.st_mode), state.st_mtime_ns // _SECOND
    if state.st_mtime_ns % _SECOND:
        # As text: a float holds no nanoseconds of our days.
        sign, (whole, part) = "-" if state.st_mtime_ns < 0 else "", divmod(abs(state.st_mtime_ns), _SECOND)
        info.pax_headers = {"mtime": f"{sign}{whole}.{part:09d}"}
    return info


def unpack(archive: IO[bytes], target: Path, skipped: Callable[[str], None], *, outside_links: bool = False) -> int:
    """Write a tar to the folder `target`, which is new or empty; answers the number of entries.

    Nothing is ever made outside of `target`, whatever the archive says and whoever else writes there: names are
    relative, without `..`, and are walked step by step without following symlinks, which are made last of all. A
    symlink that may lead out (made as it stands with `outside_links`, but never followed), a hard link to anything but
    a file that came before it, devices, FIFOs and sparse files are refused, and told to `skipped`. Permission bits and
    times, to the nanosecond, are the archive's, whatever the umask; setuid, setgid and sticky bits are dropped.

    Raises `InvalidArgumentError` for what is no whole tar (compressed ones are none either).
    """
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise PreconditionError(f"{target} is not empty; give a new or an empty folder", subject=str(target))
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            return _Unpacking(root, tar, skipped, outside_links).run()
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, ValueError) as error:
        raise InvalidArgumentError(f"what came is no whole archive: {error}", field="archive") from error
    finally:
        os.close(root)


class _RefusedError(Exception):
    """Why an entry is not made."""


class _Unpacking:
    def __init__(self, root: int, tar: tarfile.TarFile, skipped: Callable[[str], None], outside_links: bool) -> None:
        self._root = root
        self._tar = tar
        self._skipped = skipped
        self._outside_links = outside_links
        self._files: set[tuple[str, ...]] = set()
        self._folders: dict[tuple[str, ...], tarfile.TarInfo] = {}
        self._symlinks: list[tarfile.TarInfo] = []
        self._count = 0

    def run(self) -> int:
        for entry in self._tar:
            if entry.issym():
                self._symlinks.append(entry)
            else:
                self._guarded(entry, self._entry)
        for entry in self._symlinks:
            self._guarded(entry, self._symlink)
        for steps, entry in sorted(self._folders.items(), reverse=True):
            self._guarded(entry, lambda entry, steps=steps: self._finish(entry, steps))  # type: ignore[misc]
        return self._count

    def _guarded(self, entry: tarfile.TarInfo, work: Callable[[tarfile.TarInfo], None]) -> None:
        try:
            work(entry)
        except _RefusedError as error:
            self._skipped(f"{entry.name}: {error}")
        except OSError as error:
            if error.errno not in _OF_THE_ENTRY:
                raise
            self._skipped(f"{entry.name}: {error.strerror}")

    def _entry(self, entry: tarfile.TarInfo) -> None:
        steps = _steps(entry.name)
        if not steps and entry.isdir():
            return
        with self._place(steps) as (parent, name):
            if entry.isdir():
                self._folder(entry, parent, name, steps)
            elif entry.islnk():
                self._hard_link(entry, parent, name, steps)
            elif entry.isreg() and not entry.issparse():
                self._file(entry, parent, name)
                self._files.add(steps)
            else:
                raise _RefusedError("is no file, folder or link")
        self._count += 1

    def _folder(self, entry: tarfile.TarInfo, parent: int, name: str, steps: tuple[str, ...]) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            os.close(os.open(name, _DIRECTORY, dir_fd=parent))  # refused unless it is one
        self._folders[steps] = entry

    def _file(self, entry: tarfile.TarInfo, parent: int, name: str) -> None:
        _clear(parent, name)
        content = self._tar.extractfile(entry)
        assert content is not None
        with content, open(os.open(name, _CREATE, 0o600, dir_fd=parent), "wb") as file:
            left = entry.size
            while left:
                piece = content.read(min(left, _PIECE))
                if not piece:
                    raise EOFError("it ends within a file")
                left -= len(piece)
                _write(file, piece)
            file.flush()
            file.truncate(entry.size)
            os.fchmod(file.fileno(), entry.mode & 0o777)
            os.utime(file.fileno(), ns=_times(entry))

    def _hard_link(self, entry: tarfile.TarInfo, parent: int, name: str, steps: tuple[str, ...]) -> None:
        source = _steps(entry.linkname)
        if source not in self._files or source == steps:
            raise _RefusedError(f"a hard link to {entry.linkname}, which did not come before it")
        with self._place(source) as (directory, first):
            _clear(parent, name)
            os.link(first, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
        self._files.add(steps)

    def _symlink(self, entry: tarfile.TarInfo) -> None:
        steps = _steps(entry.name)
        _check_target(entry.linkname, len(steps) - 1, self._outside_links)
        with self._place(steps) as (parent, name):
            os.symlink(entry.linkname, name, dir_fd=parent)
            os.utime(name, ns=_times(entry), dir_fd=parent, follow_symlinks=False)
        self._count += 1

    def _finish(self, entry: tarfile.TarInfo, steps: tuple[str, ...]) -> None:
        with self._place(steps) as (parent, name):
            folder = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                os.fchmod(folder, entry.mode & 0o777)
                os.utime(folder, ns=_times(entry))
            finally:
                os.close(folder)

    @contextmanager
    def _place(self, steps: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """The open parent of a path, made where it is missing, and the last step."""
        if not steps:
            raise _RefusedError("names the folder itself")
        fd = os.dup(self._root)
        try:
            for step in steps[:-1]:
                try:
                    below = os.open(step, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(step, 0o755, dir_fd=fd)
                    below = os.open(step, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd, steps[-1]
        finally:
            os.close(fd)


def _write(file: IO[bytes], piece: bytes) -> None:
    """Whole blocks of zeros become holes: what a task never wrote takes no space here either."""
    for start in range(0, len(piece), _BLOCK):
        block = piece[start : start + _BLOCK]
        if block == _ZEROS:
            file.seek(_BLOCK, os.SEEK_CUR)
        else:
            file.write(block)


def _clear(parent: int, name: str) -> None:
    """Of several entries of one name the last one counts; a folder stays."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _steps(name: str) -> tuple[str, ...]:
    if name.startswith("/"):
        raise _RefusedError("the name is absolute")
    if "\0" in name:
        raise _RefusedError("the name holds a NUL byte")
    steps = tuple(step for step in name.split("/") if step not in ("", "."))
    if ".." in steps:
        raise _RefusedError("the name has '..' in it")
    return steps


def _check_target(target: str, depth: int, outside_links: bool) -> None:
    """Refuse what may lead out of the folder from `depth` folders below it, unless `outside_links`.

    `..` may only come first, and not more often than there are folders: where a symlink stands is known exactly, but
    a `..` behind another name goes up from wherever that name leads. So each symlink stays inside by itself, and any
    row of them does.
    """
    if not target or "\0" in target:
        raise _RefusedError("a symlink to nothing")
    if outside_links:
        return
    steps = [step for step in target.split("/") if step not in ("", ".")]
    up = next((index for index, step in enumerate(steps) if step != ".."), len(steps))
    if target.startswith("/") or up > depth:
        leads = "leads"
    elif ".." in steps[up:]:
        leads = "may lead"
    else:
        return
    raise _RefusedError(
        f"a symlink to {target}, which {leads} out of the folder; --outside-links makes it all the same"
    )


def _times(entry: tarfile.TarInfo) -> tuple[int, int]:
    """Times of access and change in nanoseconds since 1970: of the text itself, which tarfile makes a float of."""
    text = entry.pax_headers["mtime"] if "mtime" in entry.pax_headers else str(entry.mtime)
    found = _DECIMAL.fullmatch(text)
    if found is None or int(found[2]) > _YEAR_9999:
        return 0, 0
    mtime = int(found[2]) * _SECOND + int((found[3] or "")[:9].ljust(9, "0"))
    return (-mtime, -mtime) if found[1] else (mtime, mtime)
