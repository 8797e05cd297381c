"""Slots in containers, without an engine: configuration, the container's description, groups."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.backends.bubblewrap import BubblewrapPool
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.backends.containers import groups, handover, seccomp, spec
from cloudclaw_pool_manager.backends.containers.config import SUPERVISOR_BYTES, DockerConfig
from cloudclaw_pool_manager.backends.docker import DockerPool
from cloudclaw_pool_manager.backends.layout import SlotFiles, System
from cloudclaw_pool_manager.backends.options import config_of
from cloudclaw_pool_manager.domain.attempt import Limits

DEFAULTS = Limits(cpu_millis=1500, memory_bytes=1 << 30, pids=100)
BASE: Mapping[str, Any] = {"node_dir": Path("/n"), "slots": 2, "incarnation": 1, "defaults": DEFAULTS}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"imgae": "x"}, "no option 'imgae'"),
        ({"pids": "many"}, "pids: "),
        ({"engine": "/var/run/docker.sock"}, "unix:///PATH"),
        ({"memory_bytes": 1 << 20}, "at least"),
        ({"cpus": -1}, "not below 0"),
        ({"image": " "}, "image of the slots"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        config_of(DockerPool, {**BASE, **options})


def test_options_are_of_the_backend_that_they_are_given_to() -> None:
    made = config_of(DockerPool, {**BASE, "runtime": "runsc", "seccomp_extra": ["kcmp"], "single_use": True})
    assert isinstance(made, DockerConfig)
    assert (made.runtime, made.seccomp_extra, made.single_use) == ("runsc", ("kcmp",), True)
    assert type(config_of(BubblewrapPool, BASE)) is BackendConfig
    with pytest.raises(InvalidArgumentError, match="no option 'runtime'"):
        config_of(BubblewrapPool, {**BASE, "runtime": "runsc"})


def test_a_container_is_as_large_as_its_pool_says_or_its_options() -> None:
    config = DockerConfig(**BASE)
    assert config.container_memory == (1 << 30) + SUPERVISOR_BYTES
    assert config.container_millis == 1500
    config = replace(config, memory_bytes=4 << 30, cpus=0.5, pids=200)
    assert (config.container_memory, config.container_millis, config.container_pids) == (4 << 30, 500, 200)
    cut = config.within(replace(DEFAULTS, memory_bytes=64 << 30, pids=5000))
    assert cut.memory_bytes == (4 << 30) - SUPERVISOR_BYTES
    assert (cut.cpu_millis, cut.pids) == (500, 168)


def test_directories_beneath_the_systems_stay_where_they_are() -> None:
    assert spec.places(("/opt/tools", "/usr/local/go", "/root/x")) == [
        ("/opt/tools", "/slot/extra/0"),
        ("/usr/local/go", "/usr/local/go"),
        ("/root/x", "/slot/extra/1"),
    ]


def test_apparmor_is_asked_for_only_where_there_is_one() -> None:
    def security(*, apparmor: bool, profile: str = "cloudclaw-slot") -> list[str]:
        owner = spec.Owner("a" * 32, Path("/lib"), apparmor)
        made = spec.container(DockerConfig(**BASE, apparmor=profile), owner, SlotFiles(Path("/n"), 0), 200_000)
        return [option for option in made["HostConfig"]["SecurityOpt"] if option.startswith("apparmor")]

    assert security(apparmor=False) == []
    assert security(apparmor=True) == ["apparmor=cloudclaw-slot"]
    assert security(apparmor=True, profile="") == []


def test_a_profile_denies_what_it_does_not_name() -> None:
    profile = json.loads(seccomp.profile("x86_64", ["kcmp"]))
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    unconditional = {name for rule in profile["syscalls"] if not rule["args"] for name in rule["names"]}
    assert "kcmp" in unconditional
    assert not unconditional & {"setns", "unshare", "clone", "bpf", "keyctl", "io_uring_setup", "sethostname", "reboot"}
    assert "modify_ldt" not in seccomp.profile("aarch64")
    with pytest.raises(InvalidArgumentError):
        seccomp.profile("x86_64", ["a b"])
    with pytest.raises(KeyError):
        seccomp.profile("riscv64")


def test_setns_enters_a_user_or_a_network_namespace_and_nothing_else() -> None:
    rules = [rule for rule in seccomp.additions() if rule["names"] == ["setns"]]
    assert [(arg["index"], arg["value"], arg["op"]) for rule in rules for arg in rule["args"]] == [
        (1, 0x10000000, "SCMP_CMP_EQ"),
        (1, 0x40000000, "SCMP_CMP_EQ"),
    ]


def test_groups_are_found_wherever_the_engine_puts_them() -> None:
    text = "5:cpu,cpuacct:/docker/x\n4:memory:/system.slice/docker-x.scope/box\n2:devices:/docker/x\n0::/docker/x/sup\n"
    assert groups._places(text) == {
        "cpu": "docker/x",
        "cpuacct": "docker/x",
        "memory": "system.slice/docker-x.scope",
        "": "docker/x",
    }
    assert groups._places("0::/../../elsewhere\n4:memory:/\n") == {}, "those that cannot be seen are not guessed"


def test_in_the_unified_hierarchy_the_supervisor_moves_down_before_controllers_are_enabled(tmp_path: Path) -> None:
    """No process may sit beside groups that have controllers."""
    group = tmp_path / "docker/x"
    group.mkdir(parents=True)
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (group / name).touch()
    made = groups.ContainerV2(group, frozenset(("memory", "pids")), 4242)
    (group / "box").mkdir()
    for name in ("cgroup.procs", "cgroup.freeze"):
        (group / "box" / name).touch()
    made.create(os.getuid())
    assert (group / "sup/cgroup.procs").read_text() == "4242"
    assert (group / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert made.for_supervisor()["procs"] == [str(group / "box/cgroup.procs")]


def test_what_an_image_says_of_itself_is_not_believed() -> None:
    said = {
        "links": {"bin": "usr/bin", "lib": "../../etc; rm", "evil": "/"},
        "directories": ["usr", "proc", "../etc"],
        "etc_directories": ["alternatives", "../shadow"],
        "etc_files": {"localtime": "", "../passwd": ""},
        "shell": "",
    }
    found = System.parse(said)
    assert dict(found.links) == {"bin": "usr/bin"}
    assert found.directories == ("usr",)
    assert found.etc_directories == ("alternatives",)
    assert set(found.etc_files) == {"localtime"}
    with pytest.raises(ValueError, match="no system"):
        System.parse({"links": []})


def test_the_supervisors_package_is_copied_once_for_each_content(tmp_path: Path) -> None:
    first = handover.library(tmp_path / "lib")
    assert (first / "cloudclaw_supervisor/boot.py").exists()
    assert handover.library(tmp_path / "lib") == first
    assert [path.name for path in (tmp_path / "lib").iterdir()] == [first.name]
    assert all(path.stat().st_mode & 0o004 for path in first.rglob("*"))
