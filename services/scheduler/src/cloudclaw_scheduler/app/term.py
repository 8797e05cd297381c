"""One term of leadership: everything that only the leader does, in one task group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.port import KeyValue
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import CloudClawError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw_scheduler.app.archiver import Archiver
from cloudclaw_scheduler.app.assign import Assigner
from cloudclaw_scheduler.app.checkpoints import Checkpoints
from cloudclaw_scheduler.app.conversations import Conversations
from cloudclaw_scheduler.app.dispatch import Dispatcher
from cloudclaw_scheduler.app.finish import Finisher
from cloudclaw_scheduler.app.forget import Forgetting
from cloudclaw_scheduler.app.inbox import Inbox
from cloudclaw_scheduler.app.leading import Leading
from cloudclaw_scheduler.app.links import Links, NodeLink
from cloudclaw_scheduler.app.logs import LogHub
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.outbox import Outbox
from cloudclaw_scheduler.app.reconcile import Reconciler
from cloudclaw_scheduler.app.recovery import Recovery
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.app.segments import Segments
from cloudclaw_scheduler.app.silence import Silence
from cloudclaw_scheduler.app.spawner import Spawner
from cloudclaw_scheduler.app.specs import Specs
from cloudclaw_scheduler.app.timers import Timers

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tools:
    """What a term is made of, and outlives it."""

    kv: KeyValue
    transactions: Transactions
    mirror: Mirror
    segments: Segments
    specs: Specs
    inbox: Inbox
    results: Results
    clock: Clock
    metrics: Metrics
    grace: float
    heartbeat: float
    archiver: Archiver
    log_limit: int = 0


class Term:
    """The leader's parts, wired. `run` keeps them going until it is cancelled."""

    def __init__(self, tools: Tools, leading: Leading, group: asyncio.TaskGroup) -> None:
        self.leading = leading
        self._tools = tools
        self.spawner = Spawner(group)
        clock, metrics, mirror = tools.clock, tools.metrics, tools.mirror
        self.links = Links()
        self.hub = LogHub(mirror, tools.segments, self.spawner, clock, metrics, leading.term)
        assigner = Assigner(
            mirror,
            leading,
            tools.transactions,
            tools.specs,
            tools.inbox,
            self.links,
            self.hub,
            clock,
            metrics,
            tools.log_limit,
        )
        self.dispatcher = Dispatcher(mirror, self.links, assigner, tools.transactions, self.spawner, clock, metrics)
        self._timers = Timers(clock)
        self._finisher = Finisher(mirror, tools.transactions, self.hub, tools.results, self.spawner, clock, metrics)
        self._conversations = Conversations(
            mirror,
            leading,
            tools.transactions,
            self.links,
            tools.inbox,
            self._finisher,
            self._timers,
            self.spawner,
            clock,
        )
        self.recovery = Recovery(
            mirror,
            leading,
            tools.transactions,
            self.hub,
            self._timers,
            self.spawner,
            clock,
            metrics,
            self._conversations.wake,
        )
        self.silence = Silence(tools.kv, mirror, self.links, self.recovery, self.spawner, clock, tools.grace)
        self._log_streams: set[Outbox[pb.StreamLogsResponse]] = set()
        self._reconciler = Reconciler(mirror, self.links, assigner, self._finisher, self.spawner)
        self._checkpoints = Checkpoints(
            tools.kv, mirror, leading, tools.transactions, self.links, tools.results, self.spawner, clock, metrics
        )
        self._forgetting = Forgetting(mirror, self.links)

    @property
    def term(self) -> int:
        """Its number."""
        return self.leading.term

    async def run(self, ready: Callable[[], None]) -> None:
        """Recover what the last term left, then dispatch, for ever. `ready` is called when nodes may connect."""
        # What was written before this term began must be seen before anything is decided.
        await self._tools.mirror.reach(self.term)
        # Recovery first: it clears the timers that conversations set.
        parts = (
            self.recovery,
            self._conversations,
            self.dispatcher,
            self._reconciler,
            self._checkpoints,
            self._forgetting,
        )
        for part in parts:
            self._tools.mirror.subscribe(part)
        try:
            for part in parts:
                part.reloaded()
            ready()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._timers.run())
                group.create_task(self.recovery.run())
                group.create_task(self.silence.run())
                group.create_task(self._tools.archiver.run())
        finally:
            for part in parts:
                self._tools.mirror.unsubscribe(part)

    def close(self, error: CloudClawError) -> None:
        """The term is over: every node's stream ends with `error`, and tails go on elsewhere."""
        self.links.close(error)
        for outbox in self._log_streams:
            outbox.close(error)
        self.hub.shut_down()

    # -- the nodes' streams --

    async def hello(self, hello: pb.Hello) -> NodeLink:
        """A node connects. `FencedError` when a later incarnation of it is connected."""
        await self.silence.returned(hello.node)
        link = NodeLink(hello, self.term, self._tools.clock.boottime())
        self.links.join(link)
        self.silence.forget(link.node)  # its old stream may have broken while this waited
        self._tools.metrics.nodes.set(len(self.links))
        welcome = pb.Welcome()
        welcome.grace.FromMilliseconds(round(self._tools.grace * 1000))
        welcome.heartbeat_interval.FromMilliseconds(round(self._tools.heartbeat * 1000))
        link.send(pb.ConnectResponse(welcome=welcome))
        self._reconciler.compare(link, hello.attempts, greeting=True)
        self._checkpoints.heard(link)
        self._conversations.heard(link)
        self._forgetting.greet(link)
        self.dispatcher.pump()
        return link

    def follow(self, stream: Outbox[pb.StreamLogsResponse]) -> None:
        """End `stream` with the term."""
        self._log_streams.add(stream)

    def unfollow(self, stream: Outbox[pb.StreamLogsResponse]) -> None:
        """The stream ended by itself."""
        self._log_streams.discard(stream)

    def gone(self, link: NodeLink) -> None:
        """A node's stream ended."""
        if self.links.leave(link):
            self.silence.broken(link.node)
        self._tools.metrics.nodes.set(len(self.links))

    def heartbeat(self, link: NodeLink, heartbeat: pb.Heartbeat) -> None:
        """Ack it, and bring the node's attempts into line (rule 5)."""
        refused = bool(link.refused)
        link.heard(self._tools.clock.boottime())
        link.send(pb.ConnectResponse(heartbeat_ack=pb.HeartbeatAck(sequence=heartbeat.sequence)))
        changed = link.report_pools(heartbeat.pools) or heartbeat.draining != link.draining
        link.draining = heartbeat.draining
        link.report_attempts(heartbeat.attempts)
        self._reconciler.compare(link, heartbeat.attempts, greeting=False)
        self._checkpoints.heard(link)
        self._conversations.heard(link)
        if changed or refused:
            self.dispatcher.pump()

    def report(self, link: NodeLink, report: pb.AttemptReport) -> None:
        """An attempt ended; the verdict follows on the link."""
        self.spawner.spawn(self._finisher.report(link, report))

    def checkpoint(self, link: NodeLink, report: pb.CheckpointReport) -> None:
        """A node took a checkpoint, or could not; the verdict follows on the link."""
        self._checkpoints.report(link, report)

    def reject(self, link: NodeLink, reject: pb.Reject) -> None:
        """The node has no slot for an attempt after all: give it back, and offer this pool nothing until the next
        heartbeat."""
        attempt = self._tools.mirror.state.attempt(link.node, reject.tenant, reject.task_id)
        if attempt is not None and attempt.revision == reject.token:
            task = self._tools.mirror.state.task(*attempt.key)
            if task is not None:
                link.refused.add(task.record.plan.pool)
            self.spawner.spawn(self.recovery.unclaim(attempt, reject.message or "the node had no slot"))
        elif reject.token > self._tools.mirror.state.revision:
            self.spawner.spawn(self._reject_later(link, reject))

    async def _reject_later(self, link: NodeLink, reject: pb.Reject) -> None:
        """The node was quicker than the mirror."""
        await self._tools.mirror.reach(reject.token)
        self.reject(link, reject)
