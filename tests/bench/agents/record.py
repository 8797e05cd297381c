"""What the scripted model was asked, and when."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import eventually

_MARK = re.compile(rb"mark=([0-9a-z]+)")


def prompt(scenario: str, mark: str) -> str:
    """What is said to an agent, so that its requests can be found."""
    return f"[[scenario:{scenario}]] Please do it. mark={mark}."


@dataclass(frozen=True)
class Asked:
    """One request that offers tools, so none for a title.

    Attributes:
        time: when it arrived, in seconds since the epoch.
        mark: the newest in the conversation.
    """

    time: float
    mark: str


class Record:
    """Follows the file in which the scripted model of a `claw dev` in `directory` writes what it is asked."""

    def __init__(self, directory: Path):
        self._path = directory / "scripted-model.jsonl"
        self._at = 0
        self._asked: list[Asked] = []

    def read(self) -> list[Asked]:
        """All so far, in order."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    self._at += len(line)
                    self._take(line)
        return self._asked

    def first(self) -> dict[str, float]:
        """When each mark was asked for first."""
        times: dict[str, float] = {}
        for asked in self.read():
            times.setdefault(asked.mark, asked.time)
        return times

    async def asked(self, mark: str, within: float = 60.0) -> float:
        """Wait until `mark` was asked for; answers when that was."""
        await eventually(f"the model was asked for {mark}", lambda: mark in self.first(), within)
        return self.first()[mark]

    def _take(self, line: bytes) -> None:
        marks = _MARK.findall(line)
        if marks and line.startswith(b'{"event": "request"'):
            entry = json.loads(line)
            if isinstance(entry["body"], dict) and entry["body"].get("tools"):
                self._asked.append(Asked(entry["time"], marks[-1].decode()))
