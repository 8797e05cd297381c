"""Slots as containers of a Docker engine, each with bubblewrap sandboxes in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import UnavailableError
from cloudclaw_pool_manager.backends import spawn
from cloudclaw_pool_manager.backends.cgroups import NoGroups
from cloudclaw_pool_manager.backends.containers import check, groups, handover, spec
from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from cloudclaw_pool_manager.backends.containers.engine import Container, Engine
from cloudclaw_pool_manager.backends.containers.events import Watcher
from cloudclaw_pool_manager.backends.containers.slot import ContainerSlot
from cloudclaw_pool_manager.backends.layout import SlotFiles, System
from cloudclaw_pool_manager.backends.pool import SupervisedPool
from cloudclaw_pool_manager.ports.backend import FencedIncarnationError, Slot, SlotFailedError
from cloudclaw_supervisor import boot

_log = structlog.get_logger()

_FATE_WITHIN, _FATE_AGAIN = 0.5, 0.02
"""Seconds that the engine has to say why a container ended, and between two questions."""

_ADOPT_WITHIN = 5.0
"""Seconds that the engine has before slots that run are adopted without it: their supervisors wait for a manager."""


class DockerPool(SupervisedPool[ContainerSlot]):
    """See `ports.backend.PoolAdapter`.

    The manager runs as root, where the engine's mounts are. Every slot is a container of its own uid
    (`uid_base + number`) whose first process is the supervisor. The engine makes and removes containers and tells what
    happens to them; everything else goes through the supervisor's socket, so that an engine that is away costs new
    slots only.

    Args:
        config: the node's slots.
        clock: for log lines only; deadlines are the caller's.
    """

    config_type: ClassVar = DockerConfig
    """What the registry constructs it with."""

    def __init__(self, config: DockerConfig, clock: Clock):
        super().__init__(config, clock)
        self._docker = config
        self._engine = Engine(config.engine, config.engine_timeout)
        self._owner: spec.Owner | None = None
        self._apparmor = False
        self._away = False  # when slots were to be adopted
        self._watcher: Watcher | None = None
        self._looking: set[asyncio.Task[None]] = set()

    async def probe(self) -> None:
        waiting = bool(await asyncio.to_thread(self._numbers))
        try:
            async with asyncio.timeout(_ADOPT_WITHIN if waiting else None):
                self._apparmor = await check.engine(self._engine, self._docker)
        except (UnavailableError, TimeoutError):
            # Slots that run go on without an engine, and must not be left without a manager for that.
            if not waiting:
                raise check.absent(self._docker) from None
            _log.warning("docker.away", engine=self._docker.engine)
            self._away = True
            self._apparmor = await asyncio.to_thread(check.host_has_apparmor)
        await asyncio.to_thread(check.host, self._docker)

    async def adopt(self) -> Sequence[Slot]:
        owner = await self._begin()
        found: list[Slot] = []
        listed = {container.name: container for container in await self._listed(owner)}
        for number in await asyncio.to_thread(self._numbers):
            files = self._files(number)
            container = listed.get(owner.name(files.name))
            error: SlotFailedError | None = SlotFailedError("its container is paused")
            if container is None or container.state != "paused":
                slot = self._slot(number)
                error = await self._try_adopt(slot)
                if error is None:
                    if container is not None and container.pid == slot.pid:
                        slot.container = container.id
                    found.append(slot)
                    continue
            _log.info("slot.cleaned", slot=files.name, error=str(error))
            await self._clean(number)
        kept = {owner.name(slot.name) for slot in found}
        for container in await self._listed(owner):
            if container.name not in kept:
                _log.info("container.removed", container=container.name, state=container.state)
                await self._engine.remove(container.id)
        return found

    async def close(self) -> None:
        await super().close()
        if self._watcher is not None:
            await self._watcher.close()
        for task in self._looking:
            task.cancel()
        await self._engine.close()

    async def _start(self, number: int) -> ContainerSlot:
        try:
            slot = await super()._start(number)
        except (SlotFailedError, FencedIncarnationError, UnavailableError, OSError) as error:
            if self._owner is not None and not isinstance(error, spawn.SlotLockedError):
                await self._clean(number)
            raise
        try:
            await slot.ready()
        except (SlotFailedError, FencedIncarnationError):
            await self.destroy(slot)
            raise
        return slot

    async def _spawn(self, number: int) -> ContainerSlot:
        owner = await self._begin()
        files, uid = self._files(number), self._config.uid_base + number
        lock = await asyncio.to_thread(spawn.try_lock, files)
        try:
            await self._remove_container(owner.name(files.name))
            await asyncio.to_thread(spawn.clean, files, NoGroups())
            await asyncio.to_thread(files.create_control, uid)
            meeting = await asyncio.to_thread(handover.Handover, files, uid)
            try:
                container = await self._engine.create(
                    owner.name(files.name), spec.container(self._docker, owner, files, uid)
                )
                await self._engine.start(container)
                started = await self._engine.inspect(container)
                try:
                    if started is None or not started.pid:
                        raise SlotFailedError(f"the container of {files.name} ended at once")
                    await asyncio.to_thread(self._hand_over, files, uid, started.pid, meeting, lock)
                except SlotFailedError as error:
                    words = await self._engine.last_words(container)
                    raise SlotFailedError(f"{error}: {words}" if words else str(error)) from error
            finally:
                await asyncio.to_thread(meeting.close)
        finally:
            os.close(lock)  # the supervisor has its own copy
        return self._slot(number, container)

    async def _end(self, slot: ContainerSlot, number: int) -> None:
        await slot.kill()
        await self._clean(number)

    async def _clean(self, number: int) -> None:
        """Remove the container of slot `number` and what it had; nothing of it is to be adopted.

        Raises:
            SlotFailedError: somebody else's supervisor lives there.
        """
        assert self._owner is not None
        files = self._files(number)
        try:
            await self._remove_container(self._owner.name(files.name))
        except UnavailableError as error:
            # Its processes are gone, or their lock tells below; the next start of this slot removes what is left.
            _log.warning("container.left", slot=files.name, error=str(error))
        lock = await asyncio.to_thread(spawn.lock_when_gone, files)
        try:
            await asyncio.to_thread(spawn.clean, files, NoGroups())
        finally:
            os.close(lock)

    async def _remove_container(self, name: str) -> None:
        assert self._owner is not None
        found = await self._engine.inspect(name)
        if found is None:
            return
        if not self._owner.made(found.name, found.labels):
            raise SlotFailedError(f"a container that is not ours is called {name}; remove it, or rename it")
        await self._engine.remove(found.id)

    def _hand_over(self, files: SlotFiles, uid: int, pid: int, meeting: handover.Handover, lock: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise SlotFailedError(f"the container of {files.name} ended at once") from error
        try:
            made = groups.groups_of(self._docker, pid)
            made.create(uid)
            image = meeting.meet(pidfd)
            system, extra = System.parse(image), spawn.beside_system(self._config.read_only)
            files.fill_box(system, extra)
            settings: dict[str, Any] = spawn.supervisor_settings(self._config, files, made)
            settings |= {
                "directory": boot.DIRECTORY,
                "hostname": "",  # the container's, which nobody may set inside
                "uid": None,
                "stage": False,
                "bwrap": str(image["bwrap"]),
                "read_only": system.read_only,
                "extra": [(place, path) for path, place in spec.places(self._config.read_only) if path in extra],
                "prebuild": True,
                "lock_fd": -1,
                "enter": [],
            }
            opened = handover.open_files(settings["groups"])
            try:
                meeting.give(settings, lock, opened, pidfd)
            finally:
                handover.close_all(opened)
        except (OSError, ValueError, KeyError) as error:
            raise SlotFailedError(f"{files.name} cannot be made: {error}") from error
        finally:
            os.close(pidfd)

    def _slot(self, number: int, container: str = "") -> ContainerSlot:
        files, uid = self._files(number), self._config.uid_base + number
        return ContainerSlot(self._docker, files, uid, lambda: self._fate(number), container)

    async def _begin(self) -> spec.Owner:
        """Once: the slots' directory, whose they are, and the watch over their containers."""
        await asyncio.to_thread(self._prepare)
        assert self._owner is not None
        if self._watcher is None:
            self._watcher = Watcher(self._engine, self._owner.label, self._sick, self._look)
            self._watcher.start()
        return self._owner

    def _equip(self) -> None:
        directory = self._config.node_dir
        self._owner = spec.Owner(_identity(directory), handover.library(directory / "lib"), self._apparmor)

    async def _listed(self, owner: spec.Owner) -> list[Container]:
        """Our containers; none while the engine is away, since it has none to remove either."""
        if self._away:
            return []
        try:
            async with asyncio.timeout(_ADOPT_WITHIN):
                found = await self._engine.labelled(owner.label)
        except (UnavailableError, TimeoutError) as error:
            _log.warning("docker.away", error=str(error) or "it does not answer")
            self._away = True
            return []
        return [one for one in found if owner.made(one.name, one.labels)]

    # What happens to containers behind our back

    def _sick(self, container: str, name: str, what: str) -> None:
        for slot in self._slots.values():
            # By id where that is known: news of a slot's last container may come when it has the next one already.
            if container == slot.container or (not slot.container and name == self._name(slot)):
                slot.sicken(f"the container {name} {what}")

    def _look(self) -> None:
        """The engine is back, or new: see what was missed."""
        task = asyncio.ensure_future(self._look_at_all())
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_at_all(self) -> None:
        assert self._owner is not None
        before = list(self._slots.values())
        try:
            found = await self._engine.labelled(self._owner.label)
        except (UnavailableError, SlotFailedError) as error:
            _log.warning("docker.away", error=str(error))
            return
        states = {key: one.state for one in found for key in (one.id, one.name)}
        for slot in before:
            state = states.get(slot.container or self._name(slot), "removed")
            if state != "running":
                slot.sicken(f"the container {self._name(slot)} was {state}")

    def _name(self, slot: ContainerSlot) -> str:
        assert self._owner is not None
        return self._owner.name(slot.name)

    async def _fate(self, number: int) -> str:
        """Why a container ended, once the engine knows."""
        assert self._owner is not None
        name = self._owner.name(self._files(number).name)
        try:
            async with asyncio.timeout(_FATE_WITHIN):
                while (found := await self._engine.inspect(name)) is not None:
                    if found.end:
                        return f"of the container {name}: {found.end}"
                    await asyncio.sleep(_FATE_AGAIN)
        except (TimeoutError, UnavailableError, SlotFailedError):
            return ""
        return f"the container {name} was removed"


def _identity(directory: Path) -> str:
    """The name by which the node's directory knows its containers. Of two that make it at once both get the same."""
    path = directory / "identity"
    new = directory / f"identity.{secrets.token_hex(8)}"
    if not path.exists():
        new.write_text(f"{secrets.token_hex(16)}\n")
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
        new.unlink()
    return path.read_text().strip()
