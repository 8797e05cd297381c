"""A throw-away sandbox for an agent, whose workspace and home outlive one run, so that it can be resumed."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from tests.support.require import CACHE

PORT = 8787
MODEL = f"http://127.0.0.1:{PORT}"


def agents_folder() -> Path:
    """The folder that the symlink `current` means."""
    return (CACHE / "agents" / "current").resolve()


class Sandbox:
    """`/workspace` and `/home/agent` beneath `root`; everything else is new for each program."""

    def __init__(self, root: Path):
        self.workspace = root / "workspace"
        self.home = root / "home"
        self.workspace.mkdir(parents=True)
        self.home.mkdir()

    def prefix(self, env: dict[str, str]) -> list[str]:
        """The command line of bubblewrap up to the program."""
        agents = str(agents_folder())
        return [
            *("bwrap", "--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--unshare-ipc"),
            *("--unshare-uts", "--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv"),
            *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
            *("--symlink", "usr/lib64", "/lib64", "--ro-bind", agents, "/opt/agents", "--proc", "/proc"),
            *("--dev", "/dev", "--tmpfs", "/tmp", "--bind", str(self.workspace), "/workspace"),
            *("--dir", "/home", "--bind", str(self.home), "/home/agent", "--chdir", "/workspace"),
            *(word for name, value in env.items() for word in ("--setenv", name, value)),
        ]

    async def start(self, argv: list[str], env: dict[str, str], *, stdin: bool) -> Process:
        """Start `argv` with exactly `env`, and pipes."""
        return await asyncio.create_subprocess_exec(
            *self.prefix(env), *argv, stdin=PIPE if stdin else DEVNULL, stdout=PIPE, stderr=PIPE, limit=1 << 26
        )


async def signal_agent(process: Process, number: signal.Signals, name: str) -> None:
    """Send a signal to the agent inside, not to bubblewrap: the first descendant whose command holds `name`.

    SIGKILL goes to all of the sandbox: to bubblewrap outside, and with it everything inside dies.
    """
    if number == signal.SIGKILL:
        process.kill()
        return
    for pid in _descendants(process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if not command[0].endswith("bwrap") and any(name in word for word in command[:2]):
            os.kill(pid, number)
            return
    raise LookupError(f"no process {name!r} in the sandbox")


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in children for found in (int(child), *_descendants(int(child)))]
