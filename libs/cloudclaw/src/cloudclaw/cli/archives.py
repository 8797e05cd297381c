"""Folders to tar streams and back, on the user's machine."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from cloudclaw.errors import InvalidArgumentError, PreconditionError


def pack(sources: Sequence[Path], target: IO[bytes], skipped: Callable[[str], None]) -> int:
    """Write `sources` to `target` as a tar; answers the number of entries.

    The content of a folder goes to the top, a file under its own name. Owners are left out; symlinks stay symlinks;
    what no workspace holds (sockets, FIFOs, devices) is told to `skipped`. Raises `InvalidArgumentError` for a source
    that is not there.
    """
    count = 0
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for source in sources:
            if not os.path.lexists(source):
                raise InvalidArgumentError(f"no such file or folder: {source}", field="SOURCE")
            for path, name in _entries(source):
                if _add(tar, path, name):
                    count += 1
                else:
                    skipped(str(path))
    return count


def _entries(source: Path) -> Iterator[tuple[str, str]]:
    """(path, name in the archive) of everything below a folder, or of the one file, by name."""
    if not source.is_dir():
        yield str(source), source.name
        return

    def refuse(error: OSError) -> None:
        raise InvalidArgumentError(f"cannot read {error.filename}: {error.strerror}", field="SOURCE") from error

    for folder, folders, files in os.walk(source, onerror=refuse):
        folders.sort()
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, source)


def _add(tar: tarfile.TarFile, path: str, name: str) -> bool:
    state = os.lstat(path)
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode) or stat.S_ISLNK(state.st_mode)):
        return False
    info = tar.gettarinfo(path, name)
    if info.islnk():
        # The second name of one file: users' writes make no hard links, so it becomes a file of its own.
        info.type, info.linkname, info.size = tarfile.REGTYPE, "", state.st_size
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    if not info.isreg():
        tar.addfile(info)
        return True
    try:
        with open(path, "rb") as content:
            tar.addfile(info, content)
    except OSError as e:
        raise InvalidArgumentError(f"cannot read {path}: {e.strerror}", field="SOURCE") from e
    return True


def unpack(archive: IO[bytes], target: Path, skipped: Callable[[str], None]) -> int:
    """Write a tar to the folder `target`, which is new or empty; answers the number of entries.

    What tasks left in a workspace is not trusted: every entry passes tarfile's `data` filter (nothing outside of
    `target`, no devices, no special bits), and symlinks are made only after everything else, so that no entry is ever
    written through one. What is refused is told to `skipped`.
    """
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise PreconditionError(f"{target} is not empty; give a new or an empty folder", subject=str(target))
    count = 0
    links: list[tarfile.TarInfo] = []
    folders: list[tarfile.TarInfo] = []
    with tarfile.open(fileobj=archive, mode="r:*") as tar:
        for entry in tar:
            try:
                safe = tarfile.data_filter(entry, str(target))
            except tarfile.FilterError as e:
                skipped(f"{entry.name}: {e}")
                continue
            if safe.islnk() and not (target / safe.linkname).is_file():
                skipped(f"{entry.name}: a hard link to {entry.linkname}, which did not come before it")
                continue
            if safe.issym():
                links.append(safe)
                continue
            if safe.isdir():
                folders.append(safe)
                # Writable until everything is in it.
                safe = safe.replace(mode=0o700, deep=False)
            tar.extract(safe, target, set_attrs=True, filter="fully_trusted")
            count += 1
        for link in links:
            try:
                tar.extract(link, target, filter="data")
            except (tarfile.FilterError, OSError) as e:
                skipped(f"{link.name}: {e}")
                continue
            count += 1
    for folder in reversed(folders):
        mode = folder.mode if folder.mode is not None else 0o755
        os.chmod(target / folder.name, stat.S_IMODE(mode) | 0o700, follow_symlinks=True)
    return count
