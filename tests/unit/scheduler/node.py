"""A node that the test plays, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from cloudclaw.coordination.records import NodeRecord, PoolSlots
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from tests.unit.scheduler.plane import DEADLINE, Plane, soon, until

if TYPE_CHECKING:
    pass


class Node:
    """A pool-manager as the test plays it: it says what the test says, and beats by itself."""

    def __init__(self, plane: Plane, name: str = "node-1", slots: int = 1, pool: str = "default", **more: Any) -> None:
        self.plane = plane
        self.name = name
        runtimes = more.get("runtimes", ("command",))
        self.pools = [pb.PoolCapacity(pool=pool, slots=slots, idle=slots, runtimes=runtimes, backend="test")]
        self.cached: list[pb.CachedTree] = more.get("cached", [])
        self.ttl = more.get("ttl", 60)
        self.running: dict[int, pb.RunningAttempt] = {}
        self.assignments: asyncio.Queue[pb.Assignment] = asyncio.Queue()
        self.cancels: asyncio.Queue[pb.CancelAttempt] = asyncio.Queue()
        self.kills: asyncio.Queue[pb.KillAttempt] = asyncio.Queue()
        self.verdicts: asyncio.Queue[pb.ReportVerdict] = asyncio.Queue()
        self.wishes: asyncio.Queue[pb.TakeCheckpoint] = asyncio.Queue()
        self.kept: asyncio.Queue[pb.CheckpointVerdict] = asyncio.Queue()
        self.forgets: asyncio.Queue[pb.ForgetTenant] = asyncio.Queue()
        self.inputs: asyncio.Queue[pb.DeliverInput] = asyncio.Queue()
        self.draining = False
        self.acks: asyncio.Queue[pb.StreamLogsResponse] = asyncio.Queue()
        self.durable: dict[str, int] = {}
        self.acked = 0
        self.term = 0
        self.lease = 0
        self.create_revision = 0
        self.record = NodeRecord(
            node=name,
            address="127.0.0.1:1",
            incarnation=0,
            pools=(PoolSlots(pool=pool, slots=slots, runtimes=tuple(runtimes)),),
        )
        self.beats = True
        self._writing = asyncio.Lock()
        self._logging = asyncio.Lock()
        self._sequence = itertools.count(1)
        self._call: Any = None
        self._logs: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def register(self) -> None:
        """Take a lease, the first time, and put the node's key on it with the next incarnation."""
        self.lease = self.lease or await self.plane.kv.grant(self.ttl)
        done = await self.plane.transactions.register_node(self.record, self.lease)
        self.record, self.create_revision = done.record, done.create_revision

    async def touch(self) -> None:
        """Move the key's revision, as a node cut off from the leader does."""
        done = await self.plane.transactions.touch_node(self.record, self.lease, self.create_revision)
        self.record = done.record

    async def connect(self, *, register: bool = True) -> Node:
        """Say Hello and go on beating until `disconnect`."""
        if register and not self.lease:
            await self.register()
        stub = self.plane.stub("internal", ("node",))
        hello = pb.Hello(
            node=self.name,
            incarnation=self.record.incarnation,
            attempts=self.running.values(),
            pools=self.pools,
            cached=self.cached,
            draining=self.draining,
        )
        async with self._writing:  # whatever else is to be said, this comes first
            self._call, self._logs = stub.Connect(), stub.StreamLogs()
            await self._call.write(pb.ConnectRequest(term=self.term, hello=hello))
        first = await soon(self._call.read())
        assert first.WhichOneof("message") == "welcome"
        self.term = first.term
        self._tasks = [
            asyncio.create_task(self._read(self._call)),
            asyncio.create_task(self._read_acks(self._logs)),
            asyncio.create_task(self._beat(self._call)),
        ]
        return self

    async def disconnect(self) -> None:
        """Break both streams."""
        for task in self._tasks:
            task.cancel()
        for call in (self._call, self._logs):
            if call is not None:
                call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def beat(self) -> None:
        """One heartbeat."""
        beat = pb.Heartbeat(
            sequence=next(self._sequence),
            attempts=self.running.values(),
            pools=self.pools,
            draining=self.draining,
        )
        await self._send(pb.ConnectRequest(term=self.term, heartbeat=beat))

    async def _send(self, request: pb.ConnectRequest) -> None:
        """gRPC takes one write of a stream at a time."""
        async with self._writing:
            await self._call.write(request)

    async def heard(self, more: int) -> None:
        """Return after `more` further heartbeats were acked."""
        start = self.acked
        await until(f"{more} more heartbeats", lambda: self.acked >= start + more)

    async def next(self) -> pb.Assignment:
        """The next assignment; from now on the node says that it runs."""
        assignment = await soon(self.assignments.get())
        self.take(assignment)
        return assignment

    def take(self, assignment: pb.Assignment) -> None:
        """Say that it runs."""
        self.running[assignment.token] = pb.RunningAttempt(
            tenant=assignment.tenant,
            task_id=assignment.task_id,
            token=assignment.token,
            uid=assignment.uid,
            phase=pb.ATTEMPT_PHASE_RUNNING,
        )

    async def reject(self, assignment: pb.Assignment) -> None:
        """No slot for it after all."""
        self.running.pop(assignment.token, None)
        reject = pb.Reject(
            tenant=assignment.tenant, task_id=assignment.task_id, token=assignment.token, message="no slot"
        )
        await self._send(pb.ConnectRequest(term=self.term, reject=reject))

    async def report(self, assignment: pb.Assignment, **outcome: Any) -> None:
        """Report its end, by default a success."""
        outcome.setdefault("state", task_pb2.ATTEMPT_STATE_SUCCEEDED)
        outcome.setdefault("reason", task_pb2.END_REASON_COMPLETED)
        if outcome["state"] == task_pb2.ATTEMPT_STATE_SUCCEEDED:
            outcome.setdefault("exit_code", 0)
        report = pb.AttemptReport(
            tenant=assignment.tenant,
            task_id=assignment.task_id,
            token=assignment.token,
            uid=assignment.uid,
            outcome=pb.AttemptOutcome(**outcome),
        )
        await self._send(pb.ConnectRequest(term=self.term, report=report))

    async def finish(self, assignment: pb.Assignment, **outcome: Any) -> int:
        """Report its end, and answer the verdict."""
        await self.report(assignment, **outcome)
        verdict = await soon(self.verdicts.get())
        assert verdict.uid == assignment.uid
        if verdict.verdict != pb.ReportVerdict.VERDICT_RETRY:
            self.running.pop(assignment.token, None)
        return verdict.verdict

    async def save(self, assignment: pb.Assignment, snapshot: str = "", **report: Any) -> None:
        """Report a checkpoint, or without `snapshot` its failure."""
        ref = task_pb2.SnapshotRef(snapshot_id=snapshot, manifest_digest=f"digest of {snapshot}", uid=assignment.uid)
        message = pb.CheckpointReport(
            tenant=assignment.tenant,
            task_id=assignment.task_id,
            token=assignment.token,
            uid=assignment.uid,
            snapshot=ref if snapshot else None,
            **report,
        )
        await self._send(pb.ConnectRequest(term=self.term, checkpoint=message))

    async def checkpoint(self, assignment: pb.Assignment, snapshot: str = "", **report: Any) -> int:
        """Report a checkpoint, or its failure, and answer the verdict."""
        await self.save(assignment, snapshot, **report)
        verdict = await soon(self.kept.get())
        assert (verdict.uid, verdict.snapshot_id) == (assignment.uid, snapshot)
        return verdict.verdict

    async def write(
        self,
        assignment: pb.Assignment,
        offset: int,
        data: bytes,
        *,
        end: bool = False,
        token: int = 0,
        stream: task_pb2.LogStream = task_pb2.LOG_STREAM_STDOUT,
    ) -> None:
        """Send a chunk of its log."""
        request = pb.StreamLogsRequest(
            term=self.term,
            tenant=assignment.tenant,
            task_id=assignment.task_id,
            uid=assignment.uid,
            token=token or assignment.token,
            chunk=task_pb2.LogChunk(attempt=assignment.attempt, offset=offset, data=data, stream=stream),
            end=end,
        )
        async with self._logging:
            await self._logs.write(request)

    async def ack(self, holds: Callable[[pb.StreamLogsResponse], bool]) -> pb.StreamLogsResponse:
        """The first answer on the log stream that `holds`."""
        async with asyncio.timeout(DEADLINE):
            while True:
                response = await self.acks.get()
                if holds(response):
                    return response

    async def _read(self, call: Any) -> None:
        queues: dict[str, asyncio.Queue[Any]] = {
            "assignment": self.assignments,
            "cancel": self.cancels,
            "kill": self.kills,
            "verdict": self.verdicts,
            "checkpoint_verdict": self.kept,
            "take_checkpoint": self.wishes,
            "forget_tenant": self.forgets,
            "deliver_input": self.inputs,
        }
        with contextlib.suppress(Exception):
            while (response := await call.read()) is not grpc.aio.EOF:
                kind = response.WhichOneof("message")
                if kind == "heartbeat_ack":
                    self.acked = response.heartbeat_ack.sequence
                elif kind in queues:
                    queues[kind].put_nowait(getattr(response, kind))

    async def _read_acks(self, call: Any) -> None:
        with contextlib.suppress(Exception):
            while (response := await call.read()) is not grpc.aio.EOF:
                self.durable[response.uid] = max(self.durable.get(response.uid, 0), response.durable_offset)
                self.acks.put_nowait(response)

    async def _beat(self, call: Any) -> None:
        with contextlib.suppress(Exception):
            while True:
                if self.beats:
                    await self.beat()
                await asyncio.sleep(0.1)
