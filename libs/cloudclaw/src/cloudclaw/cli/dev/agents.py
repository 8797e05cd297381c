"""Which agents the pools of `claw dev` offer, and how their slots reach the programs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from cloudclaw.errors import InvalidArgumentError

PROGRAMS: Final = {
    "claude-code": "claude",
    "opencode": "opencode",
    "openclaw": "openclaw",
    "codex": "codex",
    "gemini": "gemini",
}
"""The program of each runtime, as `deploy/agents/install.sh` names it in `bin/`."""
COMMAND: Final = "command"
SCRIPTED: Final = {"codex": "scripted", "gemini": "gemini-2.5-pro"}
"""Models that agents ask a scripted one for. By their own default Codex offers a model that it knows no tools that a
script could use, and Gemini first asks another which one to ask."""
COLD: Final = frozenset(("openclaw", "codex", "gemini"))
"""Agents that do not wait warm; their adapters say why."""
_MEMORY: Final = 3 << 30
"""Bytes for an attempt: the largest of them takes 1.2 GB for itself, and what it starts runs beside it."""
_PIDS: Final = 1024
_TMP: Final = 512 << 20


def default_prefix() -> Path:
    """Where set-up installs the agents."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "cloudclaw" / "agents" / "current"


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents of one pool.

    Attributes:
        runtimes: those that it offers beside `command`.
        prefix: the folder on the host that holds their programs; None when a pool's image has them.
    """

    runtimes: tuple[str, ...]
    prefix: Path | None = None

    def pool_settings(self, warm: str, *, scripted: bool = False) -> dict[str, Any]:
        """What a pool that offers them is set to, beside its size and backend.

        `warm` waits in its idle slots; `scripted`: their model is a scripted one.
        Raises `InvalidArgumentError` when it does not offer `warm`, or that one does not wait.
        """
        if warm and warm not in self.runtimes:
            offered = ", ".join(self.runtimes) or "no agents: `make setup` installs them"
            raise InvalidArgumentError(f"{warm!r} is not offered; there are {offered}", field="--warm")
        if warm in COLD:
            others = ", ".join(name for name in self.runtimes if name not in COLD) or "none that is offered"
            raise InvalidArgumentError(f"{warm} gains nothing by waiting, and does not; {others} can", field="--warm")
        if not self.runtimes:
            return {}
        settings: dict[str, Any] = {
            "runtimes": [COMMAND, *self.runtimes],
            "limits": {"memory_bytes": _MEMORY, "pids": _PIDS, "tmp_bytes": _TMP},
        }
        if warm:
            settings["warm"] = warm
        options: dict[str, dict[str, Any]] = {}
        if scripted:
            options |= {name: {"model": model} for name, model in SCRIPTED.items() if name in self.runtimes}
        if self.prefix is not None:
            programs = self.prefix / "bin"
            for name in self.runtimes:
                options.setdefault(name, {}).update(binary=str(programs / PROGRAMS[name]), path=[str(programs)])
            # The folder itself, not the symlink to it: it stands at the same path inside, and nothing else does.
            settings["read_only_binds"] = [str(self.prefix)]
        if options:
            settings["runtime_options"] = options
        return settings


def in_prefix(directory: Path | None) -> Agents:
    """The agents whose programs are in `directory` (default: where set-up installs them) and lead nowhere else.

    Raises `InvalidArgumentError` when a folder was given and holds none.
    """
    prefix = (directory or default_prefix()).resolve()
    runtimes = tuple(name for name in _installed() if _inside(prefix, prefix / "bin" / PROGRAMS[name]))
    if directory is not None and not runtimes:
        wanted = ", ".join(f"bin/{program}" for program in PROGRAMS.values())
        raise InvalidArgumentError(f"{directory} holds none of {wanted}", field="--agents")
    return Agents(runtimes, prefix) if runtimes else Agents(())


def in_image() -> Agents:
    """Those of a container image, which has them all."""
    return Agents(_installed())


def _installed() -> tuple[str, ...]:
    """The runtimes that a pool-manager of this environment can offer."""
    known = {point.name for point in entry_points(group="cloudclaw.runtimes")}
    return tuple(name for name in PROGRAMS if name in known)


def _inside(prefix: Path, program: Path) -> bool:
    """It can be run, and is still there when only `prefix` can be seen."""
    real = program.resolve()
    return real.is_relative_to(prefix) and os.access(real, os.X_OK)
