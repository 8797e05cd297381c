"""The cluster's status: the leader's view, relayed by the others."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import TaskRecord
from cloudclaw.errors import CloudClawError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.leader import Leader
from cloudclaw_scheduler.app.links import NodeLink
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.state import Node
from cloudclaw_scheduler.app.submit import Fullness
from cloudclaw_scheduler.ports.relay import LeaderRelay

_log = structlog.get_logger()


class Status:
    """Answers `GetClusterStatus`."""

    def __init__(
        self,
        mirror: Mirror,
        leader: Leader,
        elected: Callable[[], tuple[str, int] | None],
        fullness: Fullness,
        relay: LeaderRelay,
        clock: Clock,
        version: str,
    ) -> None:
        self._mirror = mirror
        self._leader = leader
        self._elected = elected
        self._fullness = fullness
        self._relay = relay
        self._clock = clock
        self._version = version

    async def get(self, *, operator: bool, authorization: str, relayed: bool) -> pb.GetClusterStatusResponse:
        """Totals for everybody, nodes for operators. Without a leader in reach, what the mirror alone shows."""
        elected = self._elected()
        if self._leader.term is None and elected is not None and not relayed:
            try:
                return await self._relay.cluster_status(elected[0], authorization)
            except CloudClawError as error:
                _log.info("the leader does not answer", leader=elected[0], error=error.message)
        await self._mirror.caught_up()
        return pb.GetClusterStatusResponse(
            leader=elected[0] if elected else "",
            term=elected[1] if elected else 0,
            pools=self._pools(),
            nodes=[self._node(name, node) for name, node in sorted(self._mirror.state.nodes.items())]
            if operator
            else [],
            etcd_bytes=self._fullness.used,
            etcd_limit_bytes=self._fullness.limit,
            version=self._version,
        )

    def progress(self, record: TaskRecord) -> list[str]:
        """How far the files of a running attempt are prepared or saved, for people; nothing when its node did not say
        so, and while another replica leads."""
        link = self._link(record.node)
        attempt = self._mirror.state.attempt(record.node, record.tenant, record.task)
        running = link.running.get(attempt.revision) if link is not None and attempt is not None else None
        if running is None or not running.HasField("progress"):
            return []
        done = running.progress
        files = f"{done.files} of {done.total_files}" if done.total_files else f"{done.files}"
        size = f"{done.bytes} of {done.total_bytes}" if done.total_bytes else f"{done.bytes}"
        work = "saved" if running.phase == pb.ATTEMPT_PHASE_SAVING else "prepared"
        return [f"Its files are being {work}: {files} files, {size} bytes so far."]

    def _link(self, node: str) -> NodeLink | None:
        term = self._leader.term
        return term.links.get(node) if term else None

    def _node(self, name: str, node: Node) -> pb.NodeStatus:
        link = self._link(name)
        held = self._mirror.state.attempts.get(name, {})
        used: dict[str, int] = {}
        for key in held:
            task = self._mirror.state.task(*key)
            if task is not None:
                used[task.record.plan.pool] = used.get(task.record.plan.pool, 0) + 1
        return pb.NodeStatus(
            node=name,
            address=node.record.address,
            incarnation=node.record.incarnation,
            connected=link is not None,
            draining=link.draining if link else False,
            attempts=len(held),
            pools=[
                pb.PoolCapacity(
                    pool=pool.pool,
                    slots=link.pools[pool.pool].slots if link and pool.pool in link.pools else pool.slots,
                    idle=link.pools[pool.pool].idle
                    if link and pool.pool in link.pools
                    else max(0, pool.slots - used.get(pool.pool, 0)),
                    runtimes=pool.runtimes,
                    backend=pool.backend,
                    runtime_status=link.pools[pool.pool].readiness if link and pool.pool in link.pools else None,
                )
                for pool in node.record.pools
            ],
            heartbeat_age_seconds=max(0.0, self._clock.boottime() - link.seen) if link else 0.0,
            labels=node.record.labels,
        )

    def _pools(self) -> list[pb.PoolStatus]:
        state = self._mirror.state
        pools: dict[str, pb.PoolStatus] = {}

        def pool(name: str) -> pb.PoolStatus:
            return pools.setdefault(name, pb.PoolStatus(pool=name))

        for node in state.nodes.values():
            for slots in node.record.pools:
                pool(slots.pool).slots += slots.slots
        for (name, _), count in state.queued_by.items():
            pool(name).queued += count
        for key, delayed in state.delayed.items():
            pool(delayed.pool).delayed += key not in state.parked
        for key in state.running:
            task = state.task(*key)
            if task is not None:
                pool(task.record.plan.pool).running += 1
        for status in pools.values():
            status.idle = max(0, status.slots - status.running)
        return [pools[name] for name in sorted(pools)]
