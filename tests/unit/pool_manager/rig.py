"""A pool-manager in memory: fake slots, a fake leader, a memory store, and a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from cloudclaw.coordination import keys
from cloudclaw.coordination.lease import NodeLease
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Delete, Put
from cloudclaw.coordination.records import AttemptRecord, NodeRecord, PoolSlots, encode
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import CloudClawError, PreconditionError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_pool_manager.app.fencing import Contact
from cloudclaw_pool_manager.app.manager import Behaviour, Equipment, PoolManager
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.node import Node
from cloudclaw_pool_manager.app.runner import Template
from cloudclaw_pool_manager.app.slots import SlotPool
from cloudclaw_pool_manager.domain.attempt import Limits
from cloudclaw_pool_manager.ports.runtime import RuntimeAdapter
from cloudclaw_pool_manager.runtimes.command import CommandRuntime
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_node import FakeState, FakeWorkspaces
from tests.support.fake_slots import FakeHost, FakePool, FakeSupervisor
from tests.support.kv import ManualClock

NODE = "n1"
TENANT = "acme"
WITHIN = 60.0
"""Seconds of the test's clock within which what must happen happens."""
LEADER = "leader:1"


async def settle() -> None:
    """Let everything run that can run without time."""
    for _ in range(60):
        await asyncio.sleep(0)


_OF_AGENTS = ("inputs", "inputs_done", "answered", "closing", "model_keys", "model_use")
"""Fields of an assignment beside its spec. The session that its base holds is `session`: the spec has one too."""


class FakeLeader:
    """The scheduler as the node sees it: one leader among endpoints, whose answers the test chooses."""

    def __init__(self) -> None:
        self.term = 7
        self.up = True
        self.leads: dict[str, str] = {}
        """Endpoints that do not lead, with the address they name."""
        self.acks = True
        self.verdicts: list[int] = []
        """Verdicts for the next reports; COMMITTED once they are used up, none while `decides` is False."""
        self.decides = True
        self.log_acks = True
        self.opened: list[str] = []
        self.hellos: list[pb.Hello] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.reports: list[pb.AttemptReport] = []
        self.rejects: list[pb.Reject] = []
        self.checkpoints: list[pb.CheckpointReport] = []
        self.checkpoint_verdicts: list[int] = []
        """The same as `verdicts`, for checkpoints."""
        self.decides_checkpoints = True
        self.logs: dict[str, bytearray] = {}
        self.chunks: list[pb.StreamLogsRequest] = []
        self.ended: set[str] = set()
        self._streams: list[_Stream] = []

    def open(self, endpoint: str) -> FakeChannel:
        self.opened.append(endpoint)
        return FakeChannel(self, endpoint)

    @property
    def connected(self) -> bool:
        return any(s.kind == "connect" and s.welcomed for s in self._streams)

    def say(self, **message: object) -> None:
        """Send a `ConnectResponse` to the node."""
        term = message.pop("term", self.term)
        for stream in self._streams:
            if stream.kind == "connect":
                stream.down.put_nowait(pb.ConnectResponse(term=term, **message))  # type: ignore[arg-type]

    def say_logs(self, **message: object) -> None:
        """Send a `StreamLogsResponse` to the node."""
        for stream in self._streams:
            if stream.kind == "logs":
                stream.down.put_nowait(pb.StreamLogsResponse(term=self.term, **message))  # type: ignore[arg-type]

    def cut(self, kind: str = "") -> None:
        """Break the streams."""
        for stream in list(self._streams):
            if not kind or stream.kind == kind:
                stream.down.put_nowait(UnavailableError("the stream broke"))

    def took(self, message: pb.ConnectRequest, stream: _Stream) -> None:
        match message.WhichOneof("message"):
            case "hello":
                self.hellos.append(message.hello)
                stream.welcomed = True
                welcome = pb.Welcome()
                welcome.grace.seconds = 3
                welcome.heartbeat_interval.nanos = 500_000_000
                stream.down.put_nowait(pb.ConnectResponse(term=self.term, welcome=welcome))
            case "heartbeat":
                self.heartbeats.append(message.heartbeat)
                if self.acks:
                    ack = pb.HeartbeatAck(sequence=message.heartbeat.sequence)
                    stream.down.put_nowait(pb.ConnectResponse(term=self.term, heartbeat_ack=ack))
            case "report":
                report = message.report
                self.reports.append(report)
                if self.decides:
                    verdict = self.verdicts.pop(0) if self.verdicts else pb.ReportVerdict.VERDICT_COMMITTED
                    self.decide(report, verdict)
            case "checkpoint":
                checkpoint = message.checkpoint
                self.checkpoints.append(checkpoint)
                if self.decides_checkpoints:
                    chosen = self.checkpoint_verdicts
                    self.decide_checkpoint(checkpoint, chosen.pop(0) if chosen else pb.ReportVerdict.VERDICT_COMMITTED)
            case "reject":
                self.rejects.append(message.reject)

    def decide(self, report: pb.AttemptReport, verdict: int) -> None:
        self.say(
            verdict=pb.ReportVerdict(
                tenant=report.tenant,
                task_id=report.task_id,
                uid=report.uid,
                verdict=verdict,  # type: ignore[arg-type]
            )
        )

    def decide_checkpoint(self, report: pb.CheckpointReport, verdict: int) -> None:
        self.say(
            checkpoint_verdict=pb.CheckpointVerdict(
                uid=report.uid,
                snapshot_id=report.snapshot.snapshot_id,
                request=report.request,
                verdict=verdict,  # type: ignore[arg-type]
            )
        )

    def took_log(self, message: pb.StreamLogsRequest, stream: _Stream) -> None:
        self.chunks.append(message)
        log = self.logs.setdefault(message.uid, bytearray())
        offset, data = message.chunk.offset, message.chunk.data
        if offset > len(log):
            answer = pb.StreamLogsResponse(term=self.term, uid=message.uid, resend_from=len(log))
            stream.down.put_nowait(answer)
            return
        log += data[len(log) - offset :]
        if message.end and offset + len(data) == len(log):
            self.ended.add(message.uid)
        if self.log_acks:
            self.ack_log(message.uid)

    def ack_log(self, uid: str) -> None:
        """All that came of this log is durable."""
        for stream in self._streams:
            if stream.kind == "logs":
                durable = len(self.logs[uid])
                stream.down.put_nowait(pb.StreamLogsResponse(term=self.term, uid=uid, durable_offset=durable))


@dataclass(eq=False)
class _Stream:
    kind: str
    down: asyncio.Queue[object] = field(default_factory=asyncio.Queue)
    welcomed: bool = False


class FakeChannel:
    """`SchedulerChannel` to the fake leader."""

    def __init__(self, leader: FakeLeader, endpoint: str):
        self._leader = leader
        self._endpoint = endpoint

    def connect(self, requests: AsyncIterator[pb.ConnectRequest]) -> AsyncIterator[pb.ConnectResponse]:
        return self._run("connect", requests, self._leader.took)

    def stream_logs(self, requests: AsyncIterator[pb.StreamLogsRequest]) -> AsyncIterator[pb.StreamLogsResponse]:
        return self._run("logs", requests, self._leader.took_log)

    async def _run(self, kind: str, requests: AsyncIterator[object], took: Callable[..., None]) -> AsyncIterator[Any]:
        leader = self._leader
        if not leader.up:
            raise UnavailableError("nobody listens")
        if self._endpoint in leader.leads:
            error = PreconditionError("this replica does not lead", reason="NOT_LEADER")
            error.metadata = {"leader": leader.leads[self._endpoint]}
            raise error
        stream = _Stream(kind)

        async def read() -> None:
            async for message in requests:
                took(message, stream)

        reading = asyncio.ensure_future(read())
        leader._streams.append(stream)
        try:
            while True:
                message = await stream.down.get()
                if isinstance(message, CloudClawError):
                    raise message
                yield message
        finally:
            leader._streams.remove(stream)
            reading.cancel()

    async def close(self) -> None:
        """Nothing to release."""


class Rig:
    """One node whose manager can be started, crashed and started again."""

    def __init__(self, *, slots: int = 2, max_slots: int = 0, behaviour: Behaviour | None = None):
        self.clock = ManualClock(10_000.0)
        self.kv = MemoryKeyValue(self.clock)
        self.transactions = Transactions(self.kv)
        self.state = FakeState()
        self.host = FakeHost(self.clock, max_slots or slots)
        self.workspaces = FakeWorkspaces()
        self.leader = FakeLeader()
        self.endpoints = [LEADER]
        self.serving: list[bool] = []
        self.behaviour = behaviour or Behaviour(slot_wait=2.0)
        self.slots = slots
        self.limits = Limits()
        self.runtimes: dict[str, RuntimeAdapter] = {"command": CommandRuntime()}
        self.warm = ""
        self.single_use = False
        self.models: FakeGateway | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._number = 0
        self._adapter = FakePool(self.host, 0)
        self.manager: PoolManager
        self.node: Node
        self.contact: Contact
        self.metrics: NodeMetrics

    # -- the process --

    def launch(self, node: str = NODE) -> asyncio.Task[None]:
        """Start a manager and do not wait."""
        metrics = self.metrics = NodeMetrics(None)
        self.contact = Contact(grace=3.0, ttl=10, now=self.clock.boottime())
        self.node = Node(
            NodeRecord(node=node, address="127.0.0.1:1", incarnation=0, pools=(PoolSlots(pool="default", slots=2),)),
            lease=NodeLease(self.kv, self.clock, 10),
            kv=self.kv,
            transactions=self.transactions,
            state=self.state,
            contact=self.contact,
            clock=self.clock,
            metrics=metrics,
        )
        self.manager = PoolManager(
            node=self.node,
            contact=self.contact,
            state=self.state,
            gateway=self.leader,
            endpoints=self.endpoints,
            clock=self.clock,
            metrics=metrics,
            behaviour=self.behaviour,
            serving=self.serving.append,
        )

        async def equip(generation: int) -> Equipment:
            adapter = self._adapter = FakePool(self.host, generation)
            pool = SlotPool(
                "default",
                adapter,
                self.clock,
                slots=self.slots,
                hard_cap=self.host.cap,
                metrics=metrics,
                single_use=self.single_use,
            )
            template = Template(pool, self.limits, self.runtimes, warm=self.warm)
            return Equipment({"default": template}, self.workspaces, self.models)

        self._stop = asyncio.Event()
        self._task = asyncio.ensure_future(self.manager.run(self._stop, equip))
        return self._task

    async def start(self) -> None:
        """Start a manager and wait until it is connected and its slots are warm."""
        task = self.launch()
        await self.until(lambda: task.done() or (self.leader.connected and self.manager.ready.is_set()))
        if task.done():
            task.result()
        await settle()

    async def crash(self) -> None:
        """Kill the manager: nothing is cleaned up, and none of its calls reaches a slot any more."""
        assert self._task is not None
        self._adapter.cut()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def stop(self) -> None:
        """SIGTERM."""
        assert self._task is not None
        self._stop.set()
        await self.until(self._task.done)
        await self._task

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            await self.crash()

    # -- time --

    async def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """Let `seconds` pass for everybody."""
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            await self.clock.advance(min(step, end - self.clock.now))
            self.host.look()
            await settle()

    async def until(self, holds: Callable[[], bool], within: float = WITHIN) -> None:
        """Let time pass until `holds`, at most `within` seconds of it."""
        end = self.clock.now + within
        await settle()
        while not holds():
            assert self.clock.now < end, "it did not happen in time"
            await self.pass_time(0.05)

    # -- attempts --

    async def claim(self, task: str = "", uid: str = "", number: int = 1) -> tuple[str, str, int]:
        """Make an attempt key on the node's lease, as a claim does; answers task, uid and token."""
        self._number += 1
        task, uid = task or f"task-{self._number}", uid or f"att-{self._number:04d}"
        record = encode(AttemptRecord(number=number, uid=uid))
        lease = self.state.lease_id
        assert lease
        result = await self.kv.txn([], [Put(keys.attempt(NODE, TENANT, task), record, lease)])
        return task, uid, result.revision

    async def unclaim(self, task: str) -> None:
        """Take the attempt away, as an early requeue does."""
        await self.kv.txn([], [Delete(keys.attempt(NODE, TENANT, task))])

    async def assign(
        self, *argv: str, number: int = 1, task: str = "", say: bool = True, **spec: object
    ) -> pb.Assignment:
        """Claim and assign a task; answers the assignment."""
        cancel = bool(spec.pop("cancel_requested", False))
        base, head = spec.pop("base", None), spec.pop("head", None)
        resumes = bool(spec.pop("resumes", False))
        more = {name: spec.pop(name) for name in _OF_AGENTS if name in spec}
        session = str(spec.pop("session", ""))
        task, uid, token = await self.claim(task, number=number)
        assignment = pb.Assignment(
            tenant=TENANT,
            task_id=task,
            attempt=number,
            uid=uid,
            token=token,
            spec=task_pb2.TaskSpec(argv=argv or (() if "prompt" in spec else ("true",)), **spec),  # type: ignore[arg-type]
            cancel_requested=cancel,
            base=base,  # type: ignore[arg-type]
            head=head,  # type: ignore[arg-type]
            resumes=resumes,
            session_id=session,
            **more,  # type: ignore[arg-type]
        )
        if say:
            self.leader.say(assignment=assignment)
            await settle()
        return assignment

    async def running(self, *argv: str, **spec: object) -> tuple[pb.Assignment, FakeSupervisor]:
        """Assign a task and wait until it runs."""
        assignment = await self.assign(*argv, **spec)  # type: ignore[arg-type]
        await self.until(lambda: assignment.uid in self.host.running())
        return assignment, self.host.of(assignment.uid)

    def report_of(self, assignment: pb.Assignment) -> pb.AttemptOutcome:
        """The outcome last reported."""
        return [r for r in self.leader.reports if r.uid == assignment.uid][-1].outcome

    async def gone(self, assignment: pb.Assignment) -> None:
        """Wait until the node has forgotten the attempt."""
        await self.until(lambda: assignment.uid not in [r.attempt.uid for r in self.manager.table.runners()])
        await settle()
