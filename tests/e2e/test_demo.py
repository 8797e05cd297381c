"""The demo, as `make demo` plays it: it checks itself, and ends with an error when something is not as it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.require import require_agent, require_bubblewrap

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(420)
def test_the_demo_plays_to_its_end() -> None:
    require_bubblewrap()
    require_agent("claude")
    played = subprocess.run(
        [sys.executable, "-m", "deploy.demo"],
        cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert played.returncode == 0, played.stdout[-3000:] + played.stderr[-3000:]
    assert "its model here is scripted" in played.stdout.lower()
    assert "each was answered exactly once" in played.stdout
    assert "Nothing is left running" in played.stdout
