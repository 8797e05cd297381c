"""Which control groups this node has, found once at the start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from cloudclaw_pool_manager.backends.cgroups import CgroupV1, CgroupV2, Hybrid, NoGroups, SlotGroups
from cloudclaw_pool_manager.backends.config import BackendConfig

V1 = ("cpu", "cpuacct", "memory", "pids", "freezer")
V2 = frozenset(("cpu", "memory", "pids"))

GroupsFactory = Callable[[str], SlotGroups]


def find_groups(config: BackendConfig) -> GroupsFactory:
    """What makes the groups of a slot on this node: v2 where its controllers can be had, else v1, else none."""
    if not config.use_cgroups:
        return lambda slot: NoGroups()
    node = node_group(config.node_dir)
    v1, v2 = hierarchies()
    if v2 is not None:
        parent = _v2_parent(v2, config)
        controllers = V2 & frozenset((parent / "cgroup.controllers").read_text().split())
        if controllers and os.access(parent, os.W_OK) and _enable(parent, controllers):
            return lambda slot: CgroupV2(parent / node, slot, controllers)
    usable = {
        name: mount / config.cgroup_parent
        for name, mount in v1.items()
        if os.access(mount / config.cgroup_parent, os.W_OK)
    }
    if usable and v2 is not None and os.access(_v2_parent(v2, config), os.W_OK):
        usable.pop("freezer", None)
        unified = _v2_parent(v2, config) / node
        return lambda slot: Hybrid(CgroupV1(usable, node, slot), CgroupV2(unified, slot, frozenset()))
    if usable:
        return lambda slot: CgroupV1(usable, node, slot)
    if v2 is not None and os.access(_v2_parent(v2, config), os.W_OK):
        # No controllers, but its freezer stops fork storms.
        parent = _v2_parent(v2, config)
        return lambda slot: CgroupV2(parent / node, slot, frozenset())
    return lambda slot: NoGroups()


def node_group(node_dir: Path) -> str:
    """Name of a node's group; nodes on one host differ by their directories."""
    return "cloudclaw-" + hashlib.sha256(os.path.realpath(node_dir).encode()).hexdigest()[:12]


def hierarchies() -> tuple[dict[str, Path], Path | None]:
    """Mount points of the v1 controllers and of the unified hierarchy."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        point = Path(mount.split(" ")[4])
        if kind == "cgroup2":
            v2 = v2 or point
        elif kind == "cgroup":
            for name in set(V1) & set(options.split(",")):
                v1.setdefault(name, point)
    return v1, v2


def _v2_parent(mount: Path, config: BackendConfig) -> Path:
    """As root the configured group; otherwise the group that was delegated to this process."""
    if config.cgroup_parent or os.geteuid() == 0:
        return mount / config.cgroup_parent
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return mount / line[3:].lstrip("/")
    return mount


def _enable(parent: Path, controllers: frozenset[str]) -> bool:
    """Hand `controllers` on to the groups below `parent`; False when the kernel refuses."""
    try:
        (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(controllers)))
    except OSError:
        return False  # processes of its own, or not delegated
    return True
