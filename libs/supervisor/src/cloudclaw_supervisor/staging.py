"""Mounts of the supervisor's own, as root and before it drops that: what its sandboxes are built of, and little else.

bubblewrap copies all mounts that it starts with, and reads the list of them once for each of its own. So what a sandbox
costs grows with what is mounted around it; on a host with many containers that would be most of it.
"""

from __future__ import annotations

import errno
import os
import re
import sys

from cloudclaw_supervisor import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cloudclaw_supervisor.config import Config

_STAGES = ("/mnt", "/srv", "/media", "/opt", "/tmp")
_SYSTEM = ("/proc", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
"""What bubblewrap, and `du` beside it, take from the host."""
_WHOLE = ("/proc",)
"""Of these with all that is mounted in them: some of that may be there to hide something."""
_ESCAPE = re.compile(r"\\([0-7]{3})")


def stage(config: Config) -> str:
    """Bind the slot's skeleton, and in it all that is read-only, where the slot's uid reaches them.

    In mounts of the supervisor's own, so that neither the node's directory nor a template's extra directories need to
    be open to other users. What is mounted in the skeleton later, arrives here; nothing else does. Replaces the files
    in `config.groups` by descriptors. Returns the path of the skeleton.
    """
    linux.private_mounts()
    stage_dir = _place()
    # Opened before the skeleton covers `stage_dir`, in case a source lies there.
    sources = [(os.open(source, os.O_PATH), target) for source, target in (*config.read_only, *config.extra)]
    _open_groups(config.groups)
    linux.mount(f"{config.directory}/box", stage_dir, linux.MS_BIND | linux.MS_REC)
    for fd, target in sources:
        linux.mount(f"/proc/self/fd/{fd}", stage_dir + target, linux.MS_BIND | linux.MS_REC)
        linux.set_read_only(stage_dir + target)
        os.close(fd)
    _leave_the_rest(stage_dir, config)
    return stage_dir


def _place() -> str:
    """A directory to cover; if possible one in which nothing is mounted, since what is hidden cannot be dropped."""
    there, points = [path for path in _STAGES if os.path.isdir(path)], _mount_points()
    free = [path for path in there if not any(_below(point, (path,)) for point in points)]
    return (free or there)[0]


def _open_groups(groups: dict[str, Any]) -> None:
    """Control groups are reached by descriptors, and need no mount."""
    groups.setdefault("unified", groups.get("freezer", "").endswith("cgroup.freeze"))
    for name, value in groups.items():
        if isinstance(value, str) and value:
            groups[name] = _reopened(value)
        elif isinstance(value, list):
            groups[name] = [_reopened(path) for path in value]


def _reopened(path: str) -> str:
    """A name that opens `path` anew, with the rights of whoever opens it then."""
    return f"/proc/self/fd/{os.open(path, os.O_PATH)}"


def _leave_the_rest(stage_dir: str, config: Config) -> None:
    """Drop the mounts that nothing of this needs; what the host mounts from now on does not come here."""
    needed = [os.path.realpath(path) for path in (config.directory, config.bwrap, sys.prefix, *sys.path, *_SYSTEM)]
    points = _mount_points()
    inside = [point for point in points if _below(point, (stage_dir, *_WHOLE))]
    kept = {point for point in points if point in inside or _holds(point, (stage_dir, *needed))}
    for point in reversed(points):
        if point not in kept:
            _where_possible(lambda point=point: linux.detach(point))  # type: ignore[misc]
        elif point not in inside or point in _WHOLE:
            _where_possible(lambda point=point: linux.mount("", point, linux.MS_PRIVATE))  # type: ignore[misc]


def _where_possible(change: Callable[[], None]) -> None:
    """Leave a mount as it is that another one hides, or that whoever made this container has locked: it costs time. One
    that the host takes away meanwhile, with its directory, is gone here too."""
    try:
        change()
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def _mount_points() -> list[str]:
    """In the order in which they were mounted."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [_ESCAPE.sub(lambda match: chr(int(match[1], 8)), line.split(" ")[4]) for line in file]


def _below(point: str, tops: Iterable[str]) -> bool:
    return any(point == top or point.startswith(f"{top}/") for top in tops)


def _holds(point: str, paths: Iterable[str]) -> bool:
    """Whether one of `paths` lies in the mount at `point`, or in one that does."""
    return any(_below(path, (point.rstrip("/"),)) for path in paths)
