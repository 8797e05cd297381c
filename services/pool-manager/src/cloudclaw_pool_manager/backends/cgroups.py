"""Control groups of the slots: made, limited, reset and removed by the manager."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cloudclaw_pool_manager.backends.group_files import ignoring, pids_in, read_int, remove_empty, until_empty
from cloudclaw_pool_manager.domain.attempt import Limits, Usage
from cloudclaw_pool_manager.ports.backend import Enforcement, Mechanism

OWN_PROCESSES = 2
"""Bubblewrap and the sandbox's first process are in the group and are not the task's."""

_SCAN_PROCESSES = 2
"""Bubblewrap and du, which count directories without permissions (`cloudclaw_supervisor.disk`): where the supervisor
is in the counting group, they must neither fail for the task's processes nor make its forks fail."""

_CPU_PERIOD_US = 100_000

_LEFT = 1 << 20
"""Bytes that may stay charged from one attempt to the next. The kernel keeps about as much in advance for itself, and
takes longer to give it up than a short attempt ran."""


class SlotGroups(Protocol):
    """The groups of one slot."""

    @property
    def enforcement(self) -> Enforcement:
        """What these groups hold."""
        ...

    def create(self, uid: int) -> None:
        """Make the groups anew; `uid` may enter and freeze them, nothing else."""
        ...

    def for_supervisor(self) -> dict[str, Any]:
        """Files that the supervisor uses, see `cloudclaw_supervisor.cgroup`."""
        ...

    def supervisor_enters(self) -> list[str]:
        """`cgroup.procs` files that the supervisor itself enters at its start."""
        ...

    def apply(self, limits: Limits) -> None:
        """Set the limits of the next attempt."""
        ...

    def reset(self) -> None:
        """Between attempts: drop cached pages that are still charged, and forget the peaks (trap 8)."""
        ...

    def inside(self) -> list[int] | None:
        """Processes of the sandbox; None where no group knows them."""
        ...

    def usage(self) -> Usage:
        """Resources used, `disk_bytes` left 0."""
        ...

    def destroy(self) -> None:
        """Kill what is left inside and remove the groups. Harmless when there are none."""
        ...


class NoGroups:
    """A node without usable control groups: rlimits and the supervisor's watch hold what they can."""

    enforcement = Enforcement(Mechanism.NONE, Mechanism.WATCHED, Mechanism.RLIMIT, Mechanism.WATCHED)

    def create(self, uid: int) -> None:
        """Nothing to make."""

    def for_supervisor(self) -> dict[str, Any]:
        return {}

    def supervisor_enters(self) -> list[str]:
        return []

    def apply(self, limits: Limits) -> None:
        """Nothing to set: the supervisor gets the limits with the start."""

    def reset(self) -> None:
        """Nothing to reset."""

    def inside(self) -> list[int] | None:
        return None

    def usage(self) -> Usage:
        return Usage()

    def destroy(self) -> None:
        """Nothing to remove."""


class CgroupV1:
    """Groups in the v1 hierarchies.

    Args:
        hierarchies: mount point of each controller that is there and writable: cpu, cpuacct, memory,
            pids, freezer. Several may share one.
        node: name of the node's group, unique to its directory.
        slot: the slot's name.
    """

    def __init__(self, hierarchies: Mapping[str, Path], node: str, slot: str):
        self._at = {name: mount / node / slot for name, mount in hierarchies.items()}
        self._applied: Limits | None = None

    @property
    def enforcement(self) -> Enforcement:
        def by(controller: str, otherwise: Mechanism) -> Mechanism:
            return Mechanism.CGROUP_V1 if controller in self._at else otherwise

        return Enforcement(
            cpu=by("cpu", Mechanism.NONE),
            memory=by("memory", Mechanism.WATCHED),
            pids=by("pids", Mechanism.RLIMIT),
            disk=Mechanism.WATCHED,
        )

    def create(self, uid: int) -> None:
        for group in self._groups():
            group.mkdir(parents=True)
            os.chown(group / "cgroup.procs", uid, uid)
        if "freezer" in self._at:
            os.chown(self._at["freezer"] / "freezer.state", uid, uid)
        if "memory" in self._at:
            (self._at["memory"] / "memory.swappiness").write_text("0")

    def for_supervisor(self) -> dict[str, Any]:
        entered = [group for group in self._groups() if group not in self._shared()]
        found: dict[str, Any] = {"procs": [str(group / "cgroup.procs") for group in entered]}
        if "freezer" in self._at:
            found["freezer"] = found["freezer_state"] = str(self._at["freezer"] / "freezer.state")
        if "memory" in self._at:
            found["oom"] = str(self._at["memory"] / "memory.oom_control")
        if "pids" in self._at:
            found["pids_events"] = str(self._at["pids"] / "pids.events")
        return found

    def supervisor_enters(self) -> list[str]:
        return [str(group / "cgroup.procs") for group in self._shared()]

    def apply(self, limits: Limits) -> None:
        if limits == self._applied:
            return
        if (group := self._at.get("memory")) is not None:
            swap = group / "memory.memsw.limit_in_bytes"
            if swap.exists():  # must never be below the other, so it goes out of the way first
                swap.write_text("-1")
            (group / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
            if swap.exists():
                swap.write_text(str(limits.memory_bytes))
        if (group := self._at.get("pids")) is not None:
            room = _SCAN_PROCESSES if group in self._shared() else 0
            (group / "pids.max").write_text(str(limits.pids + self._own_processes() + room))
        if (group := self._at.get("cpu")) is not None:
            (group / "cpu.cfs_period_us").write_text(str(_CPU_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(limits.cpu_millis * _CPU_PERIOD_US // 1000))
        self._applied = limits

    def reset(self) -> None:
        if (group := self._at.get("cpuacct")) is not None:
            (group / "cpuacct.usage").write_text("0")
        if (group := self._at.get("memory")) is not None:
            if read_int(group / "memory.usage_in_bytes") > _LEFT:
                # EBUSY: something of the slot is still there, and what it holds stays charged.
                with ignoring(errno.EBUSY):
                    (group / "memory.force_empty").write_text("0")
            (group / "memory.max_usage_in_bytes").write_text("0")

    def inside(self) -> list[int] | None:
        entered = [group for group in self._groups() if group not in self._shared()]
        return pids_in(entered[0]) if entered else None

    def usage(self) -> Usage:
        memory, pids, cpu = self._at.get("memory"), self._at.get("pids"), self._at.get("cpuacct")
        return Usage(
            memory_bytes=read_int(memory / "memory.usage_in_bytes") if memory else 0,
            memory_peak_bytes=read_int(memory / "memory.max_usage_in_bytes") if memory else 0,
            pids=max(read_int(pids / "pids.current") - self._own_processes(), 0) if pids else 0,
            cpu_seconds=read_int(cpu / "cpuacct.usage") / 1e9 if cpu else 0.0,
        )

    def destroy(self) -> None:
        groups = [group for group in self._groups() if group.exists()]
        frozen = self._at.get("freezer")
        for group in groups:
            until_empty(group, thaw=frozen / "freezer.state" if frozen in groups and frozen else None)
        for group in groups:
            remove_empty(group)
            with ignoring(errno.EBUSY, errno.ENOTEMPTY):  # other slots of the node are still there
                group.parent.rmdir()
        self._applied = None

    def _groups(self) -> list[Path]:
        return list(dict.fromkeys(self._at.values()))

    def _shared(self) -> list[Path]:
        """Groups that only count, so that the supervisor may sit in them itself: its sandboxes are then
        born there, and moving in, which stops every fork of the host for a moment, is saved."""
        apart = [self._at[name] for name in ("cpu", "memory", "freezer") if name in self._at]
        return [group for group in self._groups() if group not in apart]

    def _own_processes(self) -> int:
        return OWN_PROCESSES + (self._at["pids"] in self._shared())


class CgroupV2:
    """Groups in the unified hierarchy.

    The supervisor sits in `sup` and sandboxes in `box`, both below the slot's group: a process may be
    moved only by who may write `cgroup.procs` of the common parent.

    Args:
        node: the node's group, with the controllers enabled for it.
        slot: the slot's name.
        controllers: of cpu, memory and pids, those to be had.
    """

    def __init__(self, node: Path, slot: str, controllers: frozenset[str]):
        self._slot = node / slot
        self._box = self._slot / "box"
        self._controllers = controllers
        self._applied: Limits | None = None

    @property
    def enforcement(self) -> Enforcement:
        def by(controller: str, otherwise: Mechanism) -> Mechanism:
            return Mechanism.CGROUP_V2 if controller in self._controllers else otherwise

        return Enforcement(
            cpu=by("cpu", Mechanism.NONE),
            memory=by("memory", Mechanism.WATCHED),
            pids=by("pids", Mechanism.RLIMIT),
            disk=Mechanism.WATCHED,
        )

    def create(self, uid: int) -> None:
        enable = " ".join(f"+{name}" for name in sorted(self._controllers))
        self._slot.parent.mkdir(exist_ok=True)
        if enable:
            (self._slot.parent / "cgroup.subtree_control").write_text(enable)
        self._slot.mkdir()
        if enable:
            (self._slot / "cgroup.subtree_control").write_text(enable)
        (self._slot / "sup").mkdir()
        self._box.mkdir()
        for path in (self._slot / "cgroup.procs", self._box / "cgroup.procs", self._box / "cgroup.freeze"):
            os.chown(path, uid, uid)

    def for_supervisor(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "procs": [str(self._box / "cgroup.procs")],
            "freezer": str(self._box / "cgroup.freeze"),
            "freezer_state": str(self._box / "cgroup.events"),
        }
        if "memory" in self._controllers:
            found["oom"] = str(self._box / "memory.events")
        if "pids" in self._controllers:
            found["pids_events"] = str(self._box / "pids.events")
        return found

    def supervisor_enters(self) -> list[str]:
        return [str(self._slot / "sup" / "cgroup.procs")]

    def apply(self, limits: Limits) -> None:
        if limits == self._applied:
            return
        if "memory" in self._controllers:
            (self._box / "memory.max").write_text(str(limits.memory_bytes))
            if (self._box / "memory.swap.max").exists():
                (self._box / "memory.swap.max").write_text("0")
        if "pids" in self._controllers:
            (self._box / "pids.max").write_text(str(limits.pids + OWN_PROCESSES))
        if "cpu" in self._controllers:
            (self._box / "cpu.max").write_text(f"{limits.cpu_millis * _CPU_PERIOD_US // 1000} {_CPU_PERIOD_US}")
        self._applied = limits

    def reset(self) -> None:
        reclaim = self._box / "memory.reclaim"
        if "memory" in self._controllers and reclaim.exists():
            charged = read_int(self._box / "memory.current")
            if charged > _LEFT:
                with ignoring(errno.EAGAIN):  # less could be given back than was asked for
                    reclaim.write_text(str(charged))

    def inside(self) -> list[int] | None:
        return pids_in(self._box)

    def usage(self) -> Usage:
        memory = "memory" in self._controllers
        cpu = dict(line.split() for line in (self._box / "cpu.stat").read_text().splitlines())
        peak = self._box / "memory.peak"
        return Usage(
            memory_bytes=read_int(self._box / "memory.current") if memory else 0,
            memory_peak_bytes=read_int(peak) if memory and peak.exists() else 0,
            pids=max(read_int(self._box / "pids.current") - OWN_PROCESSES, 0) if "pids" in self._controllers else 0,
            cpu_seconds=int(cpu.get("usage_usec", 0)) / 1e6,
        )

    def destroy(self) -> None:
        if not self._slot.exists():
            return
        for group in (self._box, self._slot / "sup"):
            if group.exists():
                until_empty(group)
                remove_empty(group)
        remove_empty(self._slot)
        with ignoring(errno.EBUSY, errno.ENOTEMPTY):
            self._slot.parent.rmdir()
        self._applied = None


class Hybrid:
    """v1 groups that limit, and a v2 group that freezes.

    The v2 freezer stops a fork storm surely and lets SIGKILL through; the v1 freezer can miss a process
    that is about to wait in vfork(2).
    """

    def __init__(self, limits: CgroupV1, freezer: CgroupV2):
        self._limits = limits
        self._freezer = freezer

    @property
    def enforcement(self) -> Enforcement:
        return self._limits.enforcement

    def create(self, uid: int) -> None:
        self._limits.create(uid)
        self._freezer.create(uid)

    def for_supervisor(self) -> dict[str, Any]:
        limits, freezer = self._limits.for_supervisor(), self._freezer.for_supervisor()
        return {**limits, **freezer, "procs": [*limits["procs"], *freezer["procs"]]}

    def supervisor_enters(self) -> list[str]:
        return [*self._limits.supervisor_enters(), *self._freezer.supervisor_enters()]

    def apply(self, limits: Limits) -> None:
        self._limits.apply(limits)

    def reset(self) -> None:
        self._limits.reset()

    def inside(self) -> list[int] | None:
        return self._freezer.inside()

    def usage(self) -> Usage:
        return self._limits.usage()

    def destroy(self) -> None:
        self._freezer.destroy()
        self._limits.destroy()
