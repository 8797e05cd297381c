"""Whether the agents of a pool can run in its slots: asked of their programs, in a sandbox like every other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError, PreconditionError
from cloudclaw.ids import new_id
from cloudclaw.snapshots.port import WorkspaceManager
from cloudclaw_pool_manager.app.slots import SlotEntry, SlotPool
from cloudclaw_pool_manager.app.timing import cancel, wait_until
from cloudclaw_pool_manager.domain.attempt import AttemptId, Exit, KillReason, Limits, Stream
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError, SlotStatus
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, RuntimeAdapter

_log = structlog.get_logger()

TENANT: Final = "cloudclaw-probe"
"""Whose (empty) tree a probe runs in. It has no tasks."""
WITHIN: Final = 60.0
"""Seconds that a program has to tell its version."""
AGAIN: Final = 60.0
"""Seconds after which a program that could not run is asked again."""
WAIT_FOR_SLOT: Final = 600.0
OUTPUT: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is known of one runtime. `reason`: why it is not ready; a runtime that was not asked yet is ready."""

    ready: bool = True
    version: str = ""
    reason: str = ""


class _Asking:
    """The probe's place in its slot."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.exit: Exit | None = None
        self.failure = ""

    def on_status(self, status: SlotStatus) -> None:
        if status.exit is not None:
            self.exit = status.exit
            self.over.set()

    def on_slot_failed(self, message: str) -> None:
        self.failure = message
        self.over.set()


class Probes:
    """Asks the agents of one pool; those that cannot run again and again, until they can."""

    def __init__(
        self,
        slots: SlotPool,
        runtimes: Mapping[str, RuntimeAdapter],
        readiness: dict[str, Readiness],
        limits: Limits,
        workspaces: WorkspaceManager,
        clock: Clock,
        deadline: Callable[[], float],
        changed: Callable[[], None],
    ):
        """`readiness` is filled in; `changed` is called after each answer that is new."""
        self._readiness = readiness
        self._agents = {name: runtime for name, runtime in runtimes.items() if isinstance(runtime, AgentAdapter)}
        self._slots = slots
        self._limits = limits
        self._workspaces = workspaces
        self._clock = clock
        self._deadline = deadline
        self._changed = changed

    async def run(self) -> None:
        """Until all agents can run."""
        open_ones = dict(self._agents)
        while open_ones:
            for name, agent in list(open_ones.items()):
                found = await self._ask(agent)
                if found is None:
                    continue
                if found != self._readiness.get(name):
                    self._readiness[name] = found
                    _log.info("runtime probed", pool=self._slots.name, runtime=name, version=found.version)
                    if not found.ready:
                        _log.warning("a runtime cannot run", pool=self._slots.name, runtime=name, error=found.reason)
                    self._changed()
                if found.ready:
                    del open_ones[name]
            if open_ones:
                await self._clock.sleep(AGAIN)

    async def _ask(self, agent: AgentAdapter) -> Readiness | None:
        """None when there was no slot to ask in, or it failed."""
        asking = _Asking()
        entry = await self._slots.take(asking, WAIT_FOR_SLOT)
        if entry is None:
            return None
        uid = new_id("probe")
        try:
            slot = entry.occupied()
            tree = await self._workspaces.checkout(TENANT, None, uid)
            try:
                found = await self._run(slot, agent, uid, asking, tree.path)
                await slot.release(uid)
            finally:
                await self._workspaces.release(TENANT, tree, None)
        except (SlotFailedError, FencedIncarnationError, CloudClawError, OSError) as error:
            _log.warning("a runtime could not be probed", pool=self._slots.name, runtime=agent.name, error=str(error))
            await self._give_up(entry, str(error))
            return None
        self._slots.give_back(entry)
        return found

    async def _run(self, slot: Slot, agent: AgentAdapter, uid: str, asking: _Asking, tree: Path) -> Readiness:
        attempt = AttemptId(TENANT, "probe", 0, uid, 0)
        await slot.start(attempt, agent.probe(), self._limits, tree, self._deadline())
        keep_alive = asyncio.ensure_future(self._keep_alive(slot, uid))
        try:
            await wait_until(asking.over, self._clock, WITHIN)
        finally:
            await cancel(keep_alive)
        if asking.failure:
            raise SlotFailedError(asking.failure)
        if asking.exit is None:
            await slot.stop(uid, KillReason.RUN_TIMEOUT, 0)
            return Readiness(False, reason=f"{agent.name} told no version within {WITHIN:g} s")
        said = {Stream.STDOUT: b"", Stream.STDERR: b""}
        for frame in await slot.read_log(uid, 0, OUTPUT):
            said[frame.stream] = said.get(frame.stream, b"") + frame.data
        try:
            version = agent.version(asking.exit, _text(said[Stream.STDOUT]), _text(said[Stream.STDERR]))
        except PreconditionError as error:
            return Readiness(False, reason=error.message)
        return Readiness(True, version=version)

    async def _keep_alive(self, slot: Slot, uid: str) -> None:
        while True:
            await self._clock.sleep(0.5)
            await slot.set_deadline(uid, self._deadline())

    async def _give_up(self, entry: SlotEntry, message: str) -> None:
        if entry.slot is not None:
            await self._slots.replace(entry, entry.slot, message)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
