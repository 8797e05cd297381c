"""Slots for tests: a node directory of their own, trees as an agent's checkout makes them, and waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from cloudclaw.clock import SystemClock
from cloudclaw_pool_manager.backends.bubblewrap import BubblewrapPool
from cloudclaw_pool_manager.backends.config import BackendConfig
from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from cloudclaw_pool_manager.backends.docker import DockerPool
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Launch, Limits, Stream
from cloudclaw_pool_manager.ports.backend import Slot, SlotPhase, SlotStatus
from tests.support.engine import Docker

PYTHON_PREFIX = os.path.realpath(sys.base_prefix)
PYTHON = os.path.realpath(sys.executable)
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/agent", "LANG": "C.UTF-8"}
LIMITS = Limits(cpu_millis=2000, memory_bytes=512 << 20, pids=64, disk_bytes=256 << 20, tmp_bytes=64 << 20)
WITHIN = 20.0
"""Seconds that a test waits for what should take milliseconds."""

_numbers = count(1)

Pool = BubblewrapPool | DockerPool


@dataclass
class Node:
    """One node's directory and the pools on it.

    Attributes:
        directory: of the node.
        config: what `pool` starts from.
    """

    directory: Path
    config: BackendConfig
    pools: list[Pool] = field(default_factory=list)

    def pool(self, *, incarnation: int = 1, **changes: object) -> Pool:
        """Another manager's pool on the same directory."""
        config = replace(self.config, incarnation=incarnation, **changes)  # type: ignore[arg-type]
        pool: Pool
        if isinstance(config, DockerConfig):
            pool = DockerPool(config, SystemClock())
        else:
            pool = BubblewrapPool(config, SystemClock())
        self.pools.append(pool)
        return pool

    def tree(self, files: Mapping[str, bytes] | None = None) -> Path:
        """A fresh tree with `workspace` and `home`, and `files` (paths within the tree) in it."""
        tree = self.directory / "trees" / f"tree-{next(_numbers)}"
        for path in (tree / "workspace", tree / "home"):
            path.mkdir(parents=True)
            self.own(path)
        for name, data in (files or {}).items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
            self.own(tree / name)
        return tree

    def own(self, path: Path) -> None:
        """Give `path` to the owner of files on disk."""
        if os.geteuid() == 0:
            os.chown(path, self.config.files_uid, self.config.files_uid, follow_symlinks=False)


@contextlib.asynccontextmanager
async def node(engine: Docker | None = None, **changes: object) -> AsyncIterator[Node]:
    """A node whose slots are all destroyed afterwards, whoever started them. With `engine` they are its containers."""
    directory = Path(tempfile.mkdtemp(prefix="claw-slots-"))
    config = BackendConfig(
        node_dir=directory / "node", slots=4, incarnation=1, read_only=(PYTHON_PREFIX,), defaults=LIMITS
    )
    if engine is not None:
        config = DockerConfig(**vars_of(config), image=engine.image, engine=engine.url)
    made = Node(directory, replace(config, **changes))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        for pool in made.pools:
            await pool.close()
        last = made.pool(incarnation=1 << 40)
        for slot in await last.adopt():
            await last.destroy(slot)
        await last.close()
        shutil.rmtree(directory)


def vars_of(config: BackendConfig) -> dict[str, Any]:
    """Its fields, by name."""
    return {item.name: getattr(config, item.name) for item in fields(config)}


def attempt(**changes: object) -> AttemptId:
    """A new attempt."""
    number = next(_numbers)
    return replace(AttemptId("acme", f"task-{number}", 1, f"uid-{number}", number), **changes)  # type: ignore[arg-type]


def soon(seconds: float = 60.0) -> float:
    """A deadline in boot time."""
    return SystemClock().boottime() + seconds


@dataclass(frozen=True)
class Ended:
    """One attempt's end with its log."""

    exit: Exit
    stdout: bytes
    stderr: bytes
    id: AttemptId
    tree: Path
    system: bytes = b""

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


async def start(
    node: Node,
    slot: Slot,
    *argv: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    cwd: str = "/workspace",
    limits: Limits = LIMITS,
    tree: Path | None = None,
    deadline: float | None = None,
    **launching: Any,
) -> tuple[AttemptId, Path]:
    """Start `argv` and return its attempt and tree; `launching` are further fields of its `Launch`."""
    identity, tree = attempt(), tree or node.tree()
    launch = Launch(argv, {**ENV, **(env or {})}, stdin, cwd, **launching)
    await slot.start(identity, launch, limits, tree, soon() if deadline is None else deadline)
    return identity, tree


async def until(slot: Slot, wanted: Callable[[SlotStatus], bool], within: float = WITHIN) -> SlotStatus:
    """The first status that is `wanted`."""
    async with asyncio.timeout(within):
        async with contextlib.aclosing(slot.updates()) as updates:  # type: ignore[type-var]
            async for status in updates:
                if wanted(status):
                    return status
    raise AssertionError("the updates ended")


async def exited(slot: Slot, within: float = WITHIN) -> Exit:
    """The attempt's end."""
    status = await until(slot, lambda status: status.phase is SlotPhase.EXITED, within)
    assert status.exit is not None
    return status.exit


async def printed(slot: Slot, uid: str, text: bytes) -> None:
    """Wait until the attempt printed `text` on standard output."""
    await until_async(slot, uid, text)


async def until_async(slot: Slot, uid: str, text: bytes) -> None:
    """Wait until `text` is in the log."""
    async with asyncio.timeout(WITHIN), contextlib.aclosing(slot.updates()) as updates:  # type: ignore[type-var]
        async for status in updates:
            if text in b"".join(await log(slot, uid)):
                return
            assert status.phase is not SlotPhase.EXITED, f"ended without {text!r}: {await log(slot, uid)}"


async def log(slot: Slot, uid: str) -> tuple[bytes, bytes, bytes]:
    """Everything on standard output and standard error so far, and what the supervisor said."""
    out = {Stream.STDOUT: b"", Stream.STDERR: b"", Stream.SYSTEM: b""}
    offset = 0
    while frames := await slot.read_log(uid, offset, 1 << 20):
        for frame in frames:
            assert frame.offset == offset
            out[frame.stream] += frame.data
            offset += len(frame.data)
    return out[Stream.STDOUT], out[Stream.STDERR], out[Stream.SYSTEM]


async def run(node: Node, slot: Slot, *argv: str, release: bool = True, within: float = WITHIN, **how: object) -> Ended:
    """Run `argv` to its end and release the slot."""
    identity, tree = await start(node, slot, *argv, **how)  # type: ignore[arg-type]
    end = await exited(slot, within)
    stdout, stderr, system = await log(slot, identity.uid)
    assert end.log_end == len(stdout) + len(stderr) + len(system)
    if release:
        await slot.release(identity.uid)
    return Ended(end, stdout, stderr, identity, tree, system)


async def python(node: Node, slot: Slot, source: str, **how: object) -> Ended:
    """Run Python source inside the sandbox."""
    return await run(node, slot, PYTHON, "-I", "-c", source, **how)  # type: ignore[arg-type]


async def ended(node: Node, slot: Slot, identity: AttemptId) -> None:
    """Stop and release whatever is left of the attempt."""
    await slot.stop(identity.uid, KillReason.CANCELED, 0)
    await slot.release(identity.uid)


async def gone(pids: list[int]) -> None:
    """Wait until no process of `pids` is left."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(fd, event.set)
        try:
            async with asyncio.timeout(WITHIN):
                await event.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
