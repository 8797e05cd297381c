"""The link to the leader: find it, say hello, heartbeat, and pass on what it says (design rules 3 and 5)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError, UnavailableError
from cloudclaw.v1 import scheduler_pb2
from cloudclaw.v1.scheduler_pb2 import AttemptReport, CheckpointReport, ConnectRequest, ConnectResponse
from cloudclaw_pool_manager.app.fencing import Contact
from cloudclaw_pool_manager.app.logs import LogShipper
from cloudclaw_pool_manager.app.metrics import NodeMetrics
from cloudclaw_pool_manager.app.table import AttemptTable
from cloudclaw_pool_manager.app.timing import cancel, wait_until
from cloudclaw_pool_manager.domain.attempt import AttemptId
from cloudclaw_pool_manager.ports.scheduler import SchedulerChannel, SchedulerGateway
from cloudclaw_pool_manager.ports.state import NodeState

_log = structlog.get_logger()

BACKOFF: Final = (0.05, 0.5)
"""First and longest pause before the next try to connect, in seconds."""
HEARTBEAT: Final = 0.5
HEARTBEAT_GAP: Final = 0.05
"""Least time between two heartbeats, however many attempts change their phase."""
WELCOME: Final = 3.0
"""Seconds that a replica has to answer a Hello."""
SILENCE: Final = 10.0
"""Seconds without an ack after which a stream is given up."""
REPORT_AGAIN: Final = 1.0
_OUTBOX: Final = 64


class LeaderTerms:
    """The newest leader's term, remembered before it is believed (rule 5)."""

    def __init__(self, state: NodeState):
        self.term = 0
        self._state = state

    async def load(self) -> None:
        """What an earlier process knew: a leader of before is stale for this one too."""
        self.term = await self._state.term()

    async def believe(self, term: int) -> bool:
        """Whether a message of `term` counts."""
        if term > self.term:
            await self._state.remember_term(term)
            self.term = max(self.term, term)
        return term >= self.term


class LeaderLink:
    """What runners say to the leader (`Link`); kept apart from the connection, which knows the runners."""

    def __init__(self) -> None:
        self.dirty = asyncio.Event()
        self.outbox: asyncio.Queue[ConnectRequest] | None = None
        self.term: Callable[[], int] = lambda: 0

    def changed(self) -> None:
        self.dirty.set()

    def report(self, report: AttemptReport) -> None:
        self._send(ConnectRequest(term=self.term(), report=report))

    def checkpoint(self, report: CheckpointReport) -> None:
        self._send(ConnectRequest(term=self.term(), checkpoint=report))

    def reject(self, attempt: AttemptId, message: str) -> None:
        # Lost when there is no leader: then the next Hello says it, by not naming the attempt.
        reject = scheduler_pb2.Reject(tenant=attempt.tenant, task_id=attempt.task, token=attempt.token, message=message)
        self._send(ConnectRequest(term=self.term(), reject=reject))

    def _send(self, message: ConnectRequest) -> None:
        if self.outbox is not None:
            self.outbox.put_nowait(message)


class Connection:
    """Keeps the node connected to the leader while it is allowed to be."""

    def __init__(
        self,
        *,
        gateway: SchedulerGateway,
        endpoints: Sequence[str],
        link: LeaderLink,
        terms: LeaderTerms,
        table: AttemptTable,
        shipper: LogShipper,
        contact: Contact,
        hello: Callable[[], scheduler_pb2.Hello],
        drain: Callable[[bool], None],
        forget: Callable[[str], None],
        clock: Clock,
        metrics: NodeMetrics,
    ):
        self._gateway = gateway
        self._endpoints = itertools.cycle(endpoints)
        self._link = link
        self._terms = terms
        self._table = table
        self._shipper = shipper
        self._contact = contact
        self._hello = hello
        self._drain = drain
        self._forget = forget
        self._clock = clock
        self._metrics = metrics
        self._allowed = asyncio.Event()
        self._forbidden = asyncio.Event()
        self._forbidden.set()
        self._interval = HEARTBEAT
        self._sequence = 0
        self._last_ack = 0.0
        self._welcomed = asyncio.Event()
        link.term = lambda: terms.term

    def resume(self) -> None:
        """Connect from now on."""
        self._forbidden.clear()
        self._allowed.set()

    def pause(self) -> None:
        """Disconnect, and stay so until `resume`."""
        self._allowed.clear()
        self._forbidden.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause, hint, told = BACKOFF[0], "", ("", "")
        while True:
            await self._allowed.wait()
            endpoint, hint = hint or next(self._endpoints), ""
            self._welcomed.clear()
            error = await self._session(endpoint)
            if self._welcomed.is_set():
                pause, told = BACKOFF[0], ("", "")
            if error is not None and error.reason == "NOT_LEADER":
                hint = error.metadata.get("leader", "")
                if hint and pause == BACKOFF[0]:
                    pause = BACKOFF[0] * 2  # a second redirect in a row waits
                    continue
            elif self._allowed.is_set():
                what = (endpoint, error.message if error is not None else "the leader closed the stream")
                if what != told:
                    _log.warning("not connected to a leader", endpoint=endpoint, error=what[1])
                told = what
            await self._clock.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])

    async def _session(self, endpoint: str) -> CloudClawError | None:
        """One connection, until it breaks or is forbidden; answers why it broke."""
        channel = self._gateway.open(endpoint)
        outbox: asyncio.Queue[ConnectRequest] = asyncio.Queue()
        outbox.put_nowait(ConnectRequest(term=self._terms.term, hello=self._hello()))
        parts = [
            asyncio.ensure_future(self._receive(channel, outbox)),
            asyncio.ensure_future(self._watch_silence()),
            asyncio.ensure_future(self._heartbeats(outbox)),
            asyncio.ensure_future(self._logs(channel)),
            asyncio.ensure_future(self._forbidden.wait()),
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done():
                    part.result()
        except CloudClawError as error:
            return error
        finally:
            self._link.outbox = None
            self._contact.session_ended()
            await cancel(*parts)
            await channel.close()
        return None

    async def _receive(self, channel: SchedulerChannel, outbox: asyncio.Queue[ConnectRequest]) -> None:
        async for response in channel.connect(_drain(outbox)):
            if not await self._terms.believe(response.term):
                if self._welcomed.is_set():
                    continue
                raise UnavailableError(f"the leader is of term {response.term}, and {self._terms.term} was seen")
            if response.WhichOneof("message") == "welcome":
                self._welcome(response.welcome, outbox)
            else:
                self._said(response)

    def _welcome(self, welcome: scheduler_pb2.Welcome, outbox: asyncio.Queue[ConnectRequest]) -> None:
        grace = welcome.grace.seconds + welcome.grace.nanos / 1e9
        interval = welcome.heartbeat_interval.seconds + welcome.heartbeat_interval.nanos / 1e9
        if grace:
            self._contact.grace = grace
        self._interval = interval or HEARTBEAT
        self._last_ack = self._clock.boottime()
        self._link.outbox = outbox
        self._welcomed.set()
        self._metrics.reconnects.inc()
        _log.info("connected to the leader", term=self._terms.term)
        for runner in self._table.runners():
            runner.delivery.again()
            runner.checkpoints.delivery.again()

    def _said(self, response: ConnectResponse) -> None:
        match response.WhichOneof("message"):
            case "heartbeat_ack":
                self._last_ack = self._clock.boottime()
                self._contact.heartbeat_acked(response.heartbeat_ack.sequence)
            case "assignment":
                self._table.assign(response.assignment)
            case "cancel":
                self._table.cancel(response.cancel)
            case "kill":
                self._table.kill(response.kill)
            case "drain":
                self._drain(response.drain.draining)
            case "verdict":
                self._table.verdict(response.verdict)
            case "take_checkpoint":
                self._table.take_checkpoint(response.take_checkpoint)
            case "deliver_input":
                self._table.deliver(response.deliver_input)
            case "checkpoint_verdict":
                self._table.checkpoint_verdict(response.checkpoint_verdict)
            case "forget_tenant":
                self._forget(response.forget_tenant.tenant)
            case unknown:
                _log.warning("the leader says what this version does not know", message=unknown)

    async def _heartbeats(self, outbox: asyncio.Queue[ConnectRequest]) -> None:
        await self._welcomed.wait()
        while True:
            self._link.dirty.clear()
            now = self._clock.boottime()
            if outbox.qsize() < _OUTBOX:
                self._sequence += 1
                self._contact.heartbeat_sent(self._sequence, now)
                heartbeat = scheduler_pb2.Heartbeat(
                    sequence=self._sequence,
                    attempts=self._table.running(),
                    pools=self._table.capacities(),
                    draining=self._table.draining,
                )
                outbox.put_nowait(ConnectRequest(term=self._terms.term, heartbeat=heartbeat))
            for runner in self._table.runners():
                runner.delivery.repeat(now, REPORT_AGAIN)
                runner.checkpoints.delivery.repeat(now, REPORT_AGAIN)
            await self._clock.sleep(HEARTBEAT_GAP)
            await wait_until(self._link.dirty, self._clock, self._interval - HEARTBEAT_GAP)

    async def _watch_silence(self) -> None:
        if not await wait_until(self._welcomed, self._clock, WELCOME):
            raise UnavailableError("no welcome came")
        while True:
            await self._clock.sleep(SILENCE / 4)
            if self._clock.boottime() - self._last_ack > SILENCE:
                raise UnavailableError(f"no heartbeat was acked for {SILENCE:g} s")

    async def _logs(self, channel: SchedulerChannel) -> None:
        """The log stream beside it; one that breaks alone is opened again."""
        await self._welcomed.wait()
        pause = BACKOFF[0]
        while True:
            begun = self._clock.boottime()
            try:
                await self._shipper.session(channel)
                error = "the leader closed it"
            except CloudClawError as broken:
                error = broken.message
            _log.warning("the log stream broke", error=error)
            if self._clock.boottime() - begun > BACKOFF[1]:
                pause = BACKOFF[0]
            await self._clock.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])


async def _drain(outbox: asyncio.Queue[ConnectRequest]) -> AsyncIterator[ConnectRequest]:
    while True:
        yield await outbox.get()
