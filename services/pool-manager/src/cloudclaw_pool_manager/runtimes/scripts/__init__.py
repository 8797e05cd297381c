"""Small programs that run inside sandboxes, beside an agent. They are passed on the command line, so an image needs
nothing of ours."""

from __future__ import annotations

from importlib.resources import files
from typing import Final


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text()


CLAUDE_SPARE: Final = _read("claude_spare.sh")
"""Keeps a Claude Code process waiting for its task."""
OPENCODE_DRIVER: Final = _read("opencode_driver.py")
"""Speaks for `opencode serve` in lines of JSON."""


def shell(script: str, *arguments: str) -> tuple[str, ...]:
    """A command line that runs `script` with `arguments` as its `$@`."""
    return ("sh", "-c", script, "claw", *arguments)
