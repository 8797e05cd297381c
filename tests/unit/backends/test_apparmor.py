"""The AppArmor profile of slot containers, as far as it can be tried without a kernel that has AppArmor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

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
