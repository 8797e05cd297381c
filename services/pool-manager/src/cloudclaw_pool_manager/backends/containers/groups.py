"""Control groups below a container's own: the engine limits the container, the manager what runs in it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, Final

from cloudclaw_pool_manager.backends import limits as host
from cloudclaw_pool_manager.backends.cgroups import CgroupV1, CgroupV2, Hybrid, NoGroups, SlotGroups
from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from cloudclaw_pool_manager.backends.group_files import ignoring, until_empty
from cloudclaw_pool_manager.backends.limits import V1, V2
from cloudclaw_pool_manager.domain.attempt import Limits, Usage
from cloudclaw_pool_manager.ports.backend import Enforcement

BOX: Final = "box"
SUPERVISOR: Final = "sup"


def groups_of(config: DockerConfig, pid: int) -> SlotGroups:
    """The groups of the container whose first process is `pid` on this host.

    Whichever driver put it there, the kernel says where: `/proc/PID/cgroup`.
    """
    if not config.use_cgroups:
        return NoGroups()
    v1, v2 = host.hierarchies()
    places = _places(Path(f"/proc/{pid}/cgroup").read_text())
    limiting = {
        name: mount / places[name] for name, mount in v1.items() if name in places and _writable(mount / places[name])
    }
    unified = v2 / places[""] if v2 is not None and "" in places else None
    if unified is not None and not _writable(unified):
        unified = None
    if unified is not None:
        controllers = V2 & frozenset((unified / "cgroup.controllers").read_text().split())
        if controllers or not limiting:
            return ContainerGroups(config, pid, ContainerV2(unified, controllers, pid))
        limiting.pop("freezer", None)
        hybrid = Hybrid(CgroupV1(limiting, "", BOX), ContainerV2(unified, frozenset(), pid))
        return ContainerGroups(config, pid, hybrid)
    if limiting:
        return ContainerGroups(config, pid, CgroupV1(limiting, "", BOX))
    return NoGroups()


def _places(text: str) -> dict[str, str]:
    """Group of each v1 controller, and of the unified hierarchy (under ""), relative to its mount."""
    found = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        parts = Path(path.lstrip("/")).parts
        if ".." in parts or not parts:
            continue  # the manager sits in a group namespace that does not hold it, or it has no group of its own
        if parts[-1] in (BOX, SUPERVISOR):  # where an earlier manager put it
            parts = parts[:-1]
        for name in names.split(",") if names else [""]:
            if not names or name in V1:
                found[name] = "/".join(parts)
    return found


def _writable(group: Path) -> bool:
    return group.is_dir() and os.access(group, os.W_OK)


class ContainerV2(CgroupV2):
    """As its base, below a group that is there, is the engine's, and has a process already."""

    def __init__(self, group: Path, controllers: frozenset[str], pid: int):
        super().__init__(group.parent, group.name, controllers)
        self._pid = pid

    def create(self, uid: int) -> None:
        # No process may sit beside groups that have controllers, so the supervisor moves down first.
        supervisor = self._slot / SUPERVISOR
        supervisor.mkdir(exist_ok=True)
        (supervisor / "cgroup.procs").write_text(str(self._pid))
        if self._controllers:
            enable = " ".join(f"+{name}" for name in sorted(self._controllers))
            (self._slot / "cgroup.subtree_control").write_text(enable)
        self._box.mkdir(exist_ok=True)
        for path in (self._slot / "cgroup.procs", self._box / "cgroup.procs", self._box / "cgroup.freeze"):
            os.chown(path, uid, uid)

    def supervisor_enters(self) -> list[str]:
        return []

    def destroy(self) -> None:
        # The container's own group is the engine's to remove.
        for group in (self._box, self._slot / SUPERVISOR):
            if group.exists():
                until_empty(group)
                with ignoring(errno.EBUSY, errno.ENOENT):
                    group.rmdir()
        self._applied = None


class ContainerGroups:
    """See `SlotGroups`: groups of one container, gone when it is.

    Args:
        pid: of its first process.
        groups: of what runs in it.
    """

    def __init__(self, config: DockerConfig, pid: int, groups: SlotGroups):
        self._config = config
        self._pid = pid
        self._groups = groups

    @property
    def enforcement(self) -> Enforcement:
        return self._groups.enforcement

    def create(self, uid: int) -> None:
        self._groups.create(uid)
        for procs in self._groups.supervisor_enters():
            Path(procs).write_text(str(self._pid))

    def for_supervisor(self) -> dict[str, Any]:
        found = self._groups.for_supervisor()
        # Inside they are open files, whose names tell nothing.
        return {**found, "unified": str(found.get("freezer", "")).endswith("cgroup.freeze")}

    def supervisor_enters(self) -> list[str]:
        return []

    def apply(self, limits: Limits) -> None:
        self._groups.apply(self._config.within(limits))

    def reset(self) -> None:
        self._groups.reset()

    def inside(self) -> list[int] | None:
        return self._groups.inside()

    def usage(self) -> Usage:
        return self._groups.usage()

    def destroy(self) -> None:
        # They may go at any moment, as the container does.
        with contextlib.suppress(FileNotFoundError), ignoring(errno.ENODEV):
            self._groups.destroy()


def thaw(pid: int) -> None:
    """Let a paused container go on, so that a signal reaches it; without the engine, which may be away."""
    v1, v2 = host.hierarchies()
    try:
        places = _places(Path(f"/proc/{pid}/cgroup").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return
    frozen: dict[Path, str] = {}
    if "freezer" in v1 and "freezer" in places:
        frozen[v1["freezer"] / places["freezer"] / "freezer.state"] = "THAWED"
    if v2 is not None and "" in places:
        frozen[v2 / places[""] / "cgroup.freeze"] = "0"
    for file, word in frozen.items():
        with contextlib.suppress(OSError):
            file.write_text(word)
