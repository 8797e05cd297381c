"""The life of a pool-manager process, from its first word to the cluster to its last (design rule 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import AttemptEnd
from cloudclaw.coordination.transactions import Token
from cloudclaw.errors import CloudClawError, UnavailableError
from cloudclaw.snapshots.port import WorkspaceManager
from cloudclaw.v1 import scheduler_pb2
from cloudclaw_pool_manager.app.adoption import Found, adopt, find
from cloudclaw_pool_manager.app.connection import Connection, LeaderLink, LeaderTerms
from cloudclaw_pool_manager.app.egress import ModelAccess
from cloudclaw_pool_manager.app.fencing import Contact, Fencing
from cloudclaw_pool_manager.app.logs import LogShipper
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.node import Node
from cloudclaw_pool_manager.app.probes import Probes
from cloudclaw_pool_manager.app.runner import Surroundings, Template
from cloudclaw_pool_manager.app.table import AttemptTable
from cloudclaw_pool_manager.app.timing import cancel, until
from cloudclaw_pool_manager.app.warming import Warmer
from cloudclaw_pool_manager.ports.gateway import ModelGateway
from cloudclaw_pool_manager.ports.scheduler import SchedulerGateway
from cloudclaw_pool_manager.ports.state import Drain, NodeState

_log = structlog.get_logger()

RETRY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Equipment:
    """What is heavy to load and comes after the node's first sign of life."""

    templates: Mapping[str, Template]
    workspaces: WorkspaceManager
    models: ModelGateway | None = None


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Choices of the operator; seconds.

    Attributes:
        stop_slots: on stopping, end attempts and slots; otherwise leave them to be adopted.
        drain_grace: with it, how long running attempts may go on.
        cancel_grace: between SIGTERM and SIGKILL of an attempt.
        log_rate: bytes a second that one log may send on average, 0 for no limit.
        slot_wait: how long an assignment waits for a slot.
        store_patience: how long a step of an attempt waits for an object store that is away or full.
        turn_spacing: of running between two checkpoints at an agent's turns; None for none of these.
    """

    stop_slots: bool = False
    drain_grace: float = 5.0
    cancel_grace: float = 2.0
    log_rate: float = 0.0
    slot_wait: float = 10.0
    store_patience: float = 0.0
    turn_spacing: float | None = None


class PoolManager:
    """One node at work.

    Attributes:
        table: its attempts, once `ready` is set.
        templates: its pools, once `ready` is set.
        ready: set when everything was adopted and the node serves.
    """

    def __init__(
        self,
        *,
        node: Node,
        contact: Contact,
        state: NodeState,
        gateway: SchedulerGateway,
        endpoints: Sequence[str],
        clock: Clock,
        metrics: NodeMetrics,
        behaviour: Behaviour | None = None,
        serving: Callable[[bool], None] = lambda _: None,
    ):
        self.templates: Mapping[str, Template] = {}
        self.ready = asyncio.Event()
        self._node = node
        self._contact = contact
        self._state = state
        self._gateway = gateway
        self._endpoints = endpoints
        self._clock = clock
        self._metrics = metrics
        self._behaviour = behaviour or Behaviour()
        self._serving = serving
        self._link = LeaderLink()
        self._joined = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._group: asyncio.TaskGroup | None = None
        self._table: AttemptTable | None = None
        self._connection: Connection | None = None

    @property
    def node(self) -> str:
        """The node's id."""
        return self._node.name

    @property
    def table(self) -> AttemptTable:
        """Raises `UnavailableError` while the node is starting."""
        if self._table is None:
            raise UnavailableError("the pool-manager is starting")
        return self._table

    async def run(self, stop: asyncio.Event, equip: Callable[[int], Awaitable[Equipment]]) -> None:
        """Serve until `stop`. `equip` gets the generation that the supervisors are to obey.

        Raises `PreconditionError` when the node's id is taken or slots cannot be isolated here.
        """
        await self._node.begin()
        first = await self._try_join()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._spawn(self._life())
                if not await until(stop, self._start(equip, first)):
                    await stop.wait()
                self._serving(False)
                await self._end_attempts()
                for task in self._tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        await self._end_slots()

    async def set_drain(self, drain: Drain) -> None:
        """Take no new work, hand over what runs too, or take work again; kept over restarts. Health says so first."""
        table = self.table
        if drain is not Drain.NONE:
            self._serving(False)
        await self._state.remember_drain(drain)
        table.begin_drain(drain)
        self._link.changed()
        if drain is Drain.NONE:
            self._serving(True)
        _log.info("drain", drain=drain.value, attempts=len(table.runners()))

    async def _leader_drains(self, draining: bool) -> None:
        """The leader knows of no hand-over, and ends none."""
        if draining != self.table.draining:
            await self.set_drain(Drain.FINISH if draining else Drain.NONE)

    def resize(self, pool: str, slots: int) -> None:
        """Change the size of a pool. Raises `InvalidArgumentError` above its hard cap."""
        self.templates[pool].slots.resize(slots)
        self._node.describe(pools=self.table.pool_slots())

    # -- start --

    async def _start(self, equip: Callable[[int], Awaitable[Equipment]], first: bool | None) -> None:
        terms = LeaderTerms(self._state)
        await terms.load()
        equipment = await equip(self._node.generation)
        self.templates = equipment.templates
        shipper = LogShipper(
            terms, self._metrics, self._state.remember_forgotten, self._clock, self._behaviour.log_rate
        )
        access = ModelAccess(equipment.models, lambda: self.table.runners()) if equipment.models is not None else None
        table = AttemptTable(self._surroundings(equipment, shipper, access))
        drain = await self._state.drain()
        table.drain = drain
        self._table = table
        self._spawn(table.run())
        self._spawn(shipper.run())
        found = await find(equipment.templates)
        live = await self._live(found, first)
        resumed = await adopt(found, live, table=table, state=self._state)
        table.begin_drain(drain)
        await self._register()
        await equipment.workspaces.sweep(resumed)
        for template in equipment.templates.values():
            template.slots.changed.append(self._link.dirty)
            self._spawn(template.slots.run())
            self._spawn(self._probes(template, equipment.workspaces).run())
            warm = template.agents.get(template.warm)
            if warm is not None:
                self._spawn(Warmer(template, warm, self._clock).run())
        if access is not None:
            self._spawn(access.run())
        fencing = Fencing(
            self._node.name,
            clock=self._clock,
            runners=table.runners,
            deadline=self._node.deadline,
            owns=self._node.owns,
        )
        self._spawn(fencing.run())
        self._connection = Connection(
            gateway=self._gateway,
            endpoints=self._endpoints,
            link=self._link,
            terms=terms,
            table=table,
            shipper=shipper,
            contact=self._contact,
            hello=lambda: self._hello(equipment.workspaces),
            drain=lambda draining: self._spawn(self._leader_drains(draining)),
            forget=lambda tenant: self._spawn(_forget(equipment.workspaces, tenant)),
            clock=self._clock,
            metrics=self._metrics,
        )
        self._connection.resume()
        self._spawn(self._connection.run())
        self._serving(not table.draining)
        self.ready.set()
        _log.info("ready", resumed=len(resumed), slots=sum(t.slots.size for t in equipment.templates.values()))

    async def _try_join(self) -> bool | None:
        """Whether the remembered lease was alive; None while etcd does not answer."""
        try:
            alive = await self._node.join()
        except UnavailableError as error:
            _log.warning("etcd does not answer; trying again", error=error.message)
            return None
        self._joined.set()
        return alive

    async def _live(self, found: Sequence[Found], joined: bool | None) -> list[tuple[Token, AttemptEnd]]:
        """What may go on running. While etcd is away, the supervisors are told that a manager waits with them."""
        while True:
            if joined is None:
                joined = await self._try_join()
            if joined is False:
                return []
            if joined:
                try:
                    return await self._node.attempts()
                except UnavailableError as error:
                    _log.warning("the attempts of this node cannot be read; trying again", error=error.message)
            for there in found:
                await there.speak()
            await self._clock.sleep(RETRY)

    async def _register(self) -> None:
        """For a new lease: only now, when nothing runs any more."""
        while not self._node.registered:
            try:
                if not await self._node.join():
                    await self._node.register()
            except UnavailableError as error:
                _log.warning("the node is not registered yet", error=error.message)
                await self._clock.sleep(RETRY)

    def _probes(self, template: Template, workspaces: WorkspaceManager) -> Probes:
        def changed() -> None:
            self._node.describe(pools=self.table.pool_slots())
            self._link.changed()

        return Probes(
            template.slots,
            template.runtimes,
            template.readiness,
            template.limits,
            workspaces,
            self._clock,
            self._node.deadline,
            changed,
        )

    def _surroundings(self, equipment: Equipment, shipper: LogShipper, access: ModelAccess | None) -> Surroundings:
        return Surroundings(
            clock=self._clock,
            state=self._state,
            workspaces=equipment.workspaces,
            templates=equipment.templates,
            shipper=shipper,
            metrics=self._metrics,
            link=self._link,
            deadline=self._node.deadline,
            cancel_grace=self._behaviour.cancel_grace,
            slot_wait=self._behaviour.slot_wait,
            store_patience=self._behaviour.store_patience,
            turn_spacing=self._behaviour.turn_spacing,
            access=access,
        )

    def _hello(self, workspaces: WorkspaceManager) -> scheduler_pb2.Hello:
        return scheduler_pb2.Hello(
            node=self._node.name,
            incarnation=self._node.incarnation,
            attempts=self.table.running(),
            pools=self.table.capacities(),
            draining=self.table.draining,
            cached=[
                scheduler_pb2.CachedTree(tenant=tenant, snapshot_id=snapshot)
                for tenant, snapshot in workspaces.cached()
            ],
        )

    # -- life --

    async def _life(self) -> None:
        """The node's life signs, from the moment it has a lease."""
        await self._joined.wait()
        await self._node.run(self._lease_lost, self._lease_back)

    async def _lease_lost(self) -> None:
        if self._connection is not None:
            self._connection.pause()
        if self._table is not None:
            await self._table.fence_all("the node lost its lease")

    def _lease_back(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None:
            raise RuntimeError("not running")
        task = self._group.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    # -- end --

    async def _end_attempts(self) -> None:
        table = self._table
        if not self._behaviour.stop_slots or table is None:
            return
        table.drain = Drain.FINISH
        self._link.changed()
        if not await self._empty(table):
            _log.warning("killing attempts that still run", attempts=len(table.runners()))
            await table.fence_all("the node stops")

    async def _empty(self, table: AttemptTable) -> bool:
        empty = asyncio.ensure_future(table.wait_empty())
        timer = asyncio.ensure_future(self._clock.sleep(self._behaviour.drain_grace))
        await asyncio.wait((empty, timer), return_when=asyncio.FIRST_COMPLETED)
        done = empty.done()
        await cancel(empty, timer)
        return done

    async def _end_slots(self) -> None:
        for template in self.templates.values():
            if self._behaviour.stop_slots:
                await template.slots.destroy_all()
            await template.slots.close()
        if self._behaviour.stop_slots:
            try:
                await self._node.leave()
            except UnavailableError as error:
                _log.warning("the lease could not be ended; it ends by itself", error=error.message)


async def _forget(workspaces: WorkspaceManager, tenant: str) -> None:
    try:
        await workspaces.forget(tenant)
    except (CloudClawError, OSError) as error:
        _log.error("trees of a tenant that is deleted were left behind", tenant=tenant, error=str(error))
    else:
        _log.info("trees of a tenant removed", tenant=tenant)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended everything: what a task of ours raised first, and not what followed from it."""
    inner: BaseException = errors
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner
