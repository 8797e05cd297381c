"""Groups of both kinds on a tree of plain files that looks like theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudclaw_pool_manager.backends import group_files
from cloudclaw_pool_manager.backends.cgroups import CgroupV1, CgroupV2, Hybrid, NoGroups
from cloudclaw_pool_manager.backends.limits import node_group
from cloudclaw_pool_manager.domain.attempt import Limits
from cloudclaw_pool_manager.ports.backend import Mechanism
from cloudclaw_supervisor.cgroup import Groups

LIMITS = Limits(cpu_millis=1500, memory_bytes=1 << 30, pids=100)


def test_v2_writes_every_limit(tmp_path: Path) -> None:
    box = tmp_path / "node/slot-0/box"
    box.mkdir(parents=True)
    (box / "memory.swap.max").touch()
    CgroupV2(tmp_path / "node", "slot-0", frozenset(("cpu", "memory", "pids"))).apply(LIMITS)
    written = {path.name: path.read_text() for path in box.iterdir()}
    assert written == {
        "memory.max": str(1 << 30),
        "memory.swap.max": "0",
        "pids.max": "102",
        "cpu.max": "150000 100000",
    }


def test_v2_without_controllers_only_freezes(tmp_path: Path) -> None:
    groups = CgroupV2(tmp_path, "slot-0", frozenset())
    assert groups.enforcement == NoGroups.enforcement
    assert set(groups.for_supervisor()) == {"procs", "freezer", "freezer_state"}


def test_v1_says_what_holds_when_a_controller_is_missing(tmp_path: Path) -> None:
    groups = CgroupV1({"pids": tmp_path}, "node", "slot-0")
    assert groups.enforcement.pids is Mechanism.CGROUP_V1
    assert groups.enforcement.memory is Mechanism.WATCHED
    assert groups.enforcement.cpu is Mechanism.NONE


def test_the_supervisor_reads_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("populated 1\nfrozen 1\n")
    (tmp_path / "oom").write_text("low 0\noom 3\noom_kill 2\n")
    groups = Groups(
        {
            "freezer": str(tmp_path / "cgroup.freeze"),
            "freezer_state": str(tmp_path / "events"),
            "oom": str(tmp_path / "oom"),
        }
    )
    groups.freeze()
    assert (tmp_path / "cgroup.freeze").read_text() == "1"
    assert groups.frozen()
    assert groups.unified
    assert groups.oom_kills() == 2
    assert groups.refused_forks() == 0


def test_a_hybrid_limits_by_v1_and_freezes_by_v2(tmp_path: Path) -> None:
    groups = Hybrid(
        CgroupV1({"pids": tmp_path / "pids"}, "node", "slot-0"), CgroupV2(tmp_path / "v2/node", "slot-0", frozenset())
    )
    assert groups.enforcement.pids is Mechanism.CGROUP_V1
    files = groups.for_supervisor()
    assert files["freezer"] == str(tmp_path / "v2/node/slot-0/box/cgroup.freeze")
    assert files["procs"] == [str(tmp_path / "v2/node/slot-0/box/cgroup.procs")]
    assert groups.supervisor_enters() == [
        str(tmp_path / "pids/node/slot-0/cgroup.procs"),
        str(tmp_path / "v2/node/slot-0/sup/cgroup.procs"),
    ]


def test_the_supervisor_stays_out_of_what_could_stop_or_starve_it(tmp_path: Path) -> None:
    mounts = {"cpu": tmp_path / "c", "cpuacct": tmp_path / "c", "pids": tmp_path / "p", "freezer": tmp_path / "f"}
    groups = CgroupV1({**mounts, "memory": tmp_path / "m"}, "node", "slot-0")
    assert groups.supervisor_enters() == [str(tmp_path / "p/node/slot-0/cgroup.procs")]
    assert len(groups.for_supervisor()["procs"]) == 3


def test_nodes_on_one_host_have_different_groups(tmp_path: Path) -> None:
    assert node_group(tmp_path / "a") != node_group(tmp_path / "b")
    assert node_group(tmp_path / "a") == node_group(tmp_path / "b/../a")


def test_a_group_that_stays_busy_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_files, "_EMPTY_WITHIN", 0.0)
    (tmp_path / "cgroup.procs").write_text("4194305\n")  # beyond the largest pid: never there
    with pytest.raises(OSError, match="do not die"):
        group_files.until_empty(tmp_path)
