"""The pool-manager's process: settings, construction, orderly shutdown. Adapters are constructed nowhere else.

The leader counts three seconds from a node's last sign of life, and a restart is to cost no attempt. So the process
first shows that it is there, with no more loaded than that needs, and constructs the rest afterwards.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import REGISTRY

from cloudclaw import config, logging
from cloudclaw.clock import Clock, SystemClock
from cloudclaw.coordination.etcd import open_etcd
from cloudclaw.coordination.lease import NodeLease
from cloudclaw.coordination.records import NodeRecord, PoolSlots
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import InvalidArgumentError, PreconditionError, UnavailableError
from cloudclaw.lifecycle import Stack, run_service
from cloudclaw_pool_manager.adapters.node_dir import NodeDirectory
from cloudclaw_pool_manager.adapters.scheduler import GrpcScheduler
from cloudclaw_pool_manager.app.fencing import Contact
from cloudclaw_pool_manager.app.manager import Behaviour, Equipment, PoolManager
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.node import Node
from cloudclaw_pool_manager.app.runner import Template
from cloudclaw_pool_manager.app.slots import SlotPool
from cloudclaw_pool_manager.config import PoolManagerSettings, PoolSettings
from cloudclaw_pool_manager.domain.attempt import Limits
from cloudclaw_pool_manager.ports.runtime import AgentAdapter, RuntimeAdapter
from cloudclaw_pool_manager.runtimes.registry import load_backend, load_runtimes

if TYPE_CHECKING:
    from cloudclaw.rpc.server import RpcServer

FILES_UID: Final = 199_999
"""Owner of the files in trees, as root; attached to a slot by idmapped mounts."""
UID_BASE: Final = 200_000
POOL_UIDS: Final = 1024
"""Slot n of the i-th pool runs as uid UID_BASE + i * POOL_UIDS + n."""

Runtimes = Mapping[str, Mapping[str, RuntimeAdapter]]


class Process:
    """One pool-manager, constructed in two steps."""

    def __init__(self, settings: PoolManagerSettings, clock: Clock, stack: Stack):
        """What a sign of life needs. Raises `PreconditionError`: directory in use, runtime missing or broken."""
        self._settings = settings
        self._clock = clock
        self._stack = stack
        self._server: RpcServer | None = None
        # What the node remembers; locked, so that a second process on the same directory ends here.
        state = NodeDirectory(settings.node_dir)
        self._directory = state.path
        # Which agents run here, by pool.
        self._runtimes: Runtimes = {
            pool.name: load_runtimes(pool.runtimes, pool.runtime_options) for pool in settings.pools
        }
        # Coordination: the node's lease and key, and what is known of the leader's patience.
        kv = open_etcd(settings.etcd, clock)
        stack.push("etcd", kv.close)
        self._metrics = NodeMetrics(REGISTRY)
        contact = Contact(grace=settings.grace, ttl=settings.lease_ttl, now=clock.boottime())
        self._record = NodeRecord(
            node=settings.node_id,
            address=settings.server.advertise or settings.server.listen,
            incarnation=0,
            pools=tuple(self._slots(pool) for pool in settings.pools),
            labels=settings.labels,
        )
        self._node = Node(
            self._record,
            lease=NodeLease(kv, clock, settings.lease_ttl),
            kv=kv,
            transactions=Transactions(kv),
            state=state,
            contact=contact,
            clock=clock,
            metrics=self._metrics,
        )
        # The way to the leader, and everything together.
        self.manager = PoolManager(
            node=self._node,
            contact=contact,
            state=state,
            gateway=GrpcScheduler(settings.client_tls, _token(settings.token_file)),
            endpoints=settings.scheduler_endpoints,
            clock=clock,
            metrics=self._metrics,
            behaviour=Behaviour(
                stop_slots=settings.stop_slots_on_exit,
                drain_grace=settings.drain_grace,
                cancel_grace=settings.cancel_grace,
                log_rate=settings.log_rate,
                slot_wait=settings.slot_wait,
                store_patience=settings.store_patience,
                turn_spacing=settings.turn_spacing if settings.turn_checkpoints else None,
            ),
            serving=self._serving,
        )

    async def equip(self, generation: int) -> Equipment:
        """The rest. Raises `PreconditionError` when slots cannot be isolated on this host."""
        from cloudclaw.objects.config import open_objects
        from cloudclaw.objects.insisting import InsistingObjects
        from cloudclaw.rpc.auth import Authenticator
        from cloudclaw.rpc.metrics_server import serve_metrics
        from cloudclaw.rpc.server import RpcServer
        from cloudclaw.snapshots.engine import SnapshotEngine
        from cloudclaw.v1.pool_manager_pb2_grpc import add_PoolManagerServiceServicer_to_server
        from cloudclaw_pool_manager.app.operations import Operations
        from cloudclaw_pool_manager.server.pool_manager import SERVICE, PoolManagerServicer

        settings = self._settings
        # Slots, one adapter for each pool.
        files_uid = (settings.files_uid or FILES_UID) if os.geteuid() == 0 else None
        templates = {
            pool.name: await self._template(index, pool, generation, files_uid)
            for index, pool in enumerate(settings.pools)
        }
        # Workspaces: bytes in the object store, trees in the node's directory.
        objects = open_objects(settings.objects)
        self._stack.push("objects", objects.close)
        workspaces = SnapshotEngine(
            InsistingObjects(objects, self._clock),
            self._directory / "trees",
            self._clock,
            files_uid=files_uid,
            limits=settings.limits.tree_limits(),
            cache_bytes=settings.cache_bytes,
        )
        # What operators and Prometheus ask.
        stop_metrics = await asyncio.to_thread(serve_metrics, settings.metrics)
        self._stack.push("metrics", lambda: asyncio.to_thread(stop_metrics))
        authenticator = Authenticator(settings.auth.keys, issuer=settings.auth.issuer, clock=self._clock)
        server = RpcServer(settings.server, authenticator, clock=self._clock)
        operations = Operations(self.manager)
        server.add(SERVICE, add_PoolManagerServiceServicer_to_server, PoolManagerServicer(operations))
        bound = await server.start()
        self._stack.push("server", lambda: server.stop(1.0))
        self._server = server
        self._node.describe(address=settings.server.advertise or bound)
        # The way to models, for agents.
        models = None
        if settings.gateway_socket is not None:
            from cloudclaw_pool_manager.adapters.gateway import UnixModelGateway

            models = UnixModelGateway(
                settings.gateway_socket,
                lambda: self._node.generation,
                self._clock,
                uid=settings.gateway_uid,
            )
            self._stack.push("gateway", models.close)
        return Equipment(templates=templates, workspaces=workspaces, models=models)

    async def _template(self, index: int, pool: PoolSettings, generation: int, files_uid: int | None) -> Template:
        from cloudclaw_pool_manager.backends.options import config_of

        settings = self._settings
        make = load_backend(pool.backend)
        limits = Limits(**pool.limits.model_dump())
        values: dict[str, Any] = {
            "node_dir": self._directory / "pools" / pool.name,
            "slots": pool.hard_cap,
            "incarnation": generation,
            "uid_base": UID_BASE + index * POOL_UIDS,
            "read_only": tuple(str(path) for path in pool.read_only_binds),
            "defaults": limits,
            "log_limit": settings.log_limit,
            "orphan_ttl": float(settings.lease_ttl),
            "egress": settings.gateway_socket is not None and pool.egress and self._has_agents(pool.name),
            "node": settings.node_id,
            "pool": pool.name,
            **({"files_uid": files_uid} if files_uid else {}),
        }
        try:
            backend = config_of(make, {**values, **pool.options})
        except InvalidArgumentError as error:
            raise PreconditionError(f"options of pool {pool.name!r}: {error.message}", reason="BAD_OPTIONS") from error
        backend.node_dir.mkdir(parents=True, exist_ok=True)
        adapter = make(backend, self._clock)
        # However this process ends, also before it serves: what the adapter mounted for slots goes when none is left.
        self._stack.push(f"slots of {pool.name}", adapter.close)
        await adapter.probe()
        slots = SlotPool(
            pool.name,
            adapter,
            self._clock,
            slots=pool.slots,
            hard_cap=pool.hard_cap,
            metrics=self._metrics,
            single_use=backend.single_use,
        )
        return Template(slots, limits, self._runtimes[pool.name], pool.backend, pool.warm)

    def _has_agents(self, pool: str) -> bool:
        """Only agents use a way out, and making one costs every sandbox a millisecond or two."""
        return any(isinstance(runtime, AgentAdapter) for runtime in self._runtimes[pool].values())

    def _serving(self, serving: bool) -> None:
        if self._server is not None:
            from cloudclaw_pool_manager.server.pool_manager import SERVICE

            self._server.set_serving(SERVICE, serving)

    def _slots(self, pool: PoolSettings) -> PoolSlots:
        return PoolSlots(
            pool=pool.name,
            slots=pool.slots,
            runtimes=tuple(sorted(self._runtimes[pool.name])),
            backend=pool.backend,
        )


def _token(path: Path | None) -> Callable[[], str] | None:
    """Reads the token again for every connection, so that a renewed one is used."""
    if path is None:
        return None

    def read() -> str:
        try:
            return path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UnavailableError(f"no token for the scheduler: {error}", reason="NO_TOKEN") from error

    return read


async def serve(settings: PoolManagerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then leave in order: health, attempts, slots, lease, calls, clients."""
    async with Stack() as stack:
        process = Process(settings, SystemClock(), stack)
        await process.manager.run(stop, process.equip)


def main() -> None:
    """Run the service; the exit code is the process's."""
    settings = config.load(PoolManagerSettings)
    logging.configure(settings.log, service="pool-manager")
    sys.exit(asyncio.run(run_service(lambda stop: serve(settings, stop))))


if __name__ == "__main__":
    main()
