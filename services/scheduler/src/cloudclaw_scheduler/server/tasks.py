"""The calls of users: tasks, logs, results, status."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration

from cloudclaw.coordination.records import TaskRecord, TaskState
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.refs import ref_of
from cloudclaw.rpc.auth import caller
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2
from cloudclaw_scheduler.app.events import Events
from cloudclaw_scheduler.app.feed import Feed
from cloudclaw_scheduler.app.listing import Listing
from cloudclaw_scheduler.app.lookup import Found, Lookup
from cloudclaw_scheduler.app.metrics import Metrics
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.on_demand import OnDemand
from cloudclaw_scheduler.app.queries import Queries, Waiting
from cloudclaw_scheduler.app.results import Results
from cloudclaw_scheduler.app.send_input import Sender
from cloudclaw_scheduler.app.status import Status
from cloudclaw_scheduler.app.submit import Submitter, task_not_found
from cloudclaw_scheduler.app.tail import Tails
from cloudclaw_scheduler.domain import spec as rules
from cloudclaw_scheduler.ports.relay import RELAYED
from cloudclaw_scheduler.server.convert import draft_of, filter_of, message_of, task_message

Context = grpc.aio.ServicerContext[Any, Any]

_TASK_ID: Final = re.compile(r"task-[0-9a-z]{1,40}")


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases behind the users' calls."""

    mirror: Mirror
    submitter: Submitter
    queries: Queries
    lookup: Lookup
    listing: Listing
    feed: Feed
    tails: Tails
    events: Events
    results: Results
    status: Status
    metrics: Metrics
    on_demand: OnDemand
    sender: Sender


class TaskCalls:
    """Each method validates, converts, calls, converts back."""

    def __init__(self, services: Services) -> None:
        self._mirror = services.mirror
        self._submitter = services.submitter
        self._queries = services.queries
        self._feed = services.feed
        self._tails = services.tails
        self._events = services.events
        self._lookup = services.lookup
        self._listing = services.listing
        self._results = services.results
        self._status = services.status
        self._metrics = services.metrics
        self._on_demand = services.on_demand
        self._sender = services.sender

    async def SubmitTask(self, request: pb.SubmitTaskRequest, context: Context) -> pb.SubmitTaskResponse:
        draft = draft_of(request.spec)
        plan = rules.plan(draft)
        data = request.spec.SerializeToString(deterministic=True)
        done = await self._submitter.submit(caller().tenant, plan, data, request.request_id)
        return pb.SubmitTaskResponse(task=self._message(done.task, request.spec), created=done.created)

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        found = await self._lookup.task(caller().tenant, _task_id(request.task_id))
        task = replace(found.task, record=await self._lookup.whole(found))
        return pb.GetTaskResponse(task=self._message(task, await self._lookup.spec(found)))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        wanted = filter_of(request)
        await self._mirror.caught_up()
        page = await self._listing.page(caller().tenant, wanted, request.page_size, request.page_token)
        return pb.ListTasksResponse(
            tasks=[self._message(task) for task in page.tasks],
            next_page_token=page.next_token,
            revision=page.revision,
        )

    async def CheckpointTask(self, request: pb.CheckpointTaskRequest, context: Context) -> pb.CheckpointTaskResponse:
        taken = await self._on_demand.take(caller().tenant, _task_id(request.task_id))
        frozen = Duration()
        frozen.FromMicroseconds(round(taken.frozen * 1_000_000))
        return pb.CheckpointTaskResponse(checkpoint=ref_of(taken.pointer), frozen=frozen)

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Context) -> pb.CancelTaskResponse:
        task = await self._submitter.cancel(caller().tenant, _task_id(request.task_id))
        return pb.CancelTaskResponse(task=self._message(task, await self._lookup.spec(Found(task))))

    async def WatchTasks(self, request: pb.WatchTasksRequest, context: Context) -> AsyncIterator[pb.WatchTasksResponse]:
        tenant = caller().tenant
        task_id = _task_id(request.task_id) if request.task_id else ""
        await self._mirror.caught_up()
        # "From now on" begins before the client learns that the stream is open.
        changes = self._feed.watch(tenant, task_id, request.after_revision or self._mirror.state.revision)
        await context.send_initial_metadata(())
        async with aclosing(changes):
            async for task in changes:
                yield pb.WatchTasksResponse(task=self._message(task), revision=task.mod_revision)

    async def TailLogs(self, request: pb.TailLogsRequest, context: Context) -> AsyncIterator[pb.TailLogsResponse]:
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        tail = self._tails.tail(
            caller().tenant,
            pb.TailLogsRequest(
                task_id=_task_id(request.task_id),
                attempt=request.attempt,
                offset=request.offset,
                follow=request.follow,
            ),
            str(metadata.get("authorization", "")),
            relayed=RELAYED in metadata,
        )
        with self._metrics.tails.track_inprogress():
            async with aclosing(tail):
                async for response in tail:
                    yield response

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        events = self._events.watch(
            caller().tenant,
            _task_id(request.task_id),
            request.from_sequence,
            str(metadata.get("authorization", "")),
            follow=request.follow,
        )
        with self._metrics.event_streams.track_inprogress():
            async with aclosing(events):
                async for event in events:
                    yield pb.WatchEventsResponse(event=event)

    async def SendInput(self, request: pb.SendInputRequest, context: Context) -> pb.SendInputResponse:
        accepted = await self._sender.send(caller().tenant, _task_id(request.task_id), message_of(request))
        return pb.SendInputResponse(accepted=accepted.fresh, number=accepted.number)

    async def ExplainTask(self, request: pb.ExplainTaskRequest, context: Context) -> pb.ExplainTaskResponse:
        found = await self._lookup.task(caller().tenant, _task_id(request.task_id))
        await self._mirror.reach(found.task.mod_revision)
        task = replace(found.task, record=await self._lookup.whole(found))
        waiting = self._queries.waiting(task.record)
        position = self._queries.position(task.record)
        progress = self._status.progress(task.record)
        return pb.ExplainTaskResponse(
            task=self._message(task, await self._lookup.spec(found)),
            position=position,
            writer=waiting.writer,
            reasons=[*self._queries.reasons(task.record, waiting, position), *progress],
        )

    async def GetResult(self, request: pb.GetResultRequest, context: Context) -> pb.GetResultResponse:
        found = await self._lookup.task(caller().tenant, _task_id(request.task_id))
        return pb.GetResultResponse(result=await self._results.read(await self._lookup.whole(found)))

    async def GetClusterStatus(
        self, request: pb.GetClusterStatusRequest, context: Context
    ) -> pb.GetClusterStatusResponse:
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        return await self._status.get(
            operator="operator" in caller().roles,
            authorization=str(metadata.get("authorization", "")),
            relayed=RELAYED in metadata,
        )

    def _message(self, task: Versioned[TaskRecord], spec: task_pb2.TaskSpec | None = None) -> task_pb2.Task:
        record = task.record
        waiting = self._queries.waiting(record) if record.state is TaskState.QUEUED else Waiting()
        attempt = self._mirror.state.attempt(record.node, record.tenant, record.task) if record.node else None
        token = attempt.revision if attempt and attempt.uid == record.uid else 0
        # What has ended is in the mirror until it is archived.
        archived = record.state.ended and self._mirror.state.task(record.tenant, record.task) is None
        return task_message(task, waiting, spec=spec, token=token, archived=archived)


def _task_id(task_id: str) -> str:
    """`task_id` when it could be one; what is none is no task either."""
    if not _TASK_ID.fullmatch(task_id):
        raise task_not_found(task_id)
    return task_id
