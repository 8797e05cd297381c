"""The AppArmor profile of slot containers, as far as it can be tried without a kernel that has AppArmor, and what an
engine must say of its security."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends.containers import check
from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from tests.support.require import CACHE, missing

PROFILE = Path(__file__).parents[3] / "deploy/apparmor/cloudclaw-slot"


def parse(profile: Path) -> subprocess.CompletedProcess[str]:
    """Compile it, and load it nowhere."""
    fetched = CACHE / "apparmor"
    parser = fetched / "sbin/apparmor_parser"
    rules = fetched / "etc/apparmor.d"
    if not parser.exists():
        found = shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin")
        if found is None:
            missing("apparmor_parser", "run `make setup` as root, which fetches Debian's package apparmor")
        parser, rules = Path(found), Path("/etc/apparmor.d")
    return subprocess.run(
        [parser, "--skip-kernel-load", "--skip-cache", "--base", rules, "--Include", rules, profile],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_profile_can_be_loaded() -> None:
    done = parse(PROFILE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rule", ["pivot_rot,", "mount options=(no-such) -> /x,", "include <abstractions/no-such>"])
def test_the_parser_would_find_a_fault(tmp_path: Path, rule: str) -> None:
    broken = tmp_path / "cloudclaw-slot"
    broken.write_text(PROFILE.read_text().replace("  pivot_root,\n", f"  {rule}\n"))
    assert parse(broken).returncode != 0


class Said:
    """An engine that says `options` of its security, and has every image."""

    def __init__(self, *options: str):
        self._options = options

    async def info(self) -> dict[str, object]:
        return {"SecurityOptions": list(self._options), "Runtimes": {"runc": {}}}

    async def check_image(self, name: str) -> None:
        """It is there."""


async def look(*options: str, apparmor: str = "cloudclaw-slot") -> bool:
    config = DockerConfig(node_dir=Path("/n"), slots=1, incarnation=1, apparmor=apparmor)
    return await check.engine(Said(*options), config)  # type: ignore[arg-type]


async def test_a_node_whose_kernel_lacks_the_profile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tmp_path / "profiles"
    monkeypatch.setattr(check, "_PROFILES", loaded)
    loaded.write_text("docker-default (enforce)\ncloudclaw-slot-old (enforce)\nmy-cloudclaw-slot (enforce)\n")
    with pytest.raises(PreconditionError, match="apparmor_parser -r deploy/apparmor/cloudclaw-slot") as refused:
        await look("name=apparmor", "name=seccomp,profile=default")
    assert refused.value.reason == "NO_APPARMOR_PROFILE"
    assert await look("name=apparmor", apparmor=""), "the engine's own was asked for"
    assert not await look("name=seccomp,profile=default"), "there is no AppArmor"
    loaded.write_text("docker-default (enforce)\ncloudclaw-slot (enforce)\n")
    assert await look("name=apparmor")


@pytest.mark.parametrize(("option", "said"), [("name=userns", "maps the uids"), ("name=rootless", "runs without root")])
async def test_an_engine_with_uids_of_its_own_is_refused(option: str, said: str) -> None:
    with pytest.raises(PreconditionError, match=said):
        await look("name=seccomp", option)
