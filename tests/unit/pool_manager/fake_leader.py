"""A leader in memory, as a pool-manager sees it: its streams, what it takes and answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from cloudclaw.errors import CloudClawError, PreconditionError, UnavailableError
from cloudclaw.v1 import scheduler_pb2 as pb

LEADER = "leader:1"


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
