"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from cloudclaw.client.pool import Pool
from cloudclaw.client.results import Consumers
from cloudclaw.client.retry import OnWait, Patience
from cloudclaw.client.streams import ENDED, Events, Tail, Watch
from cloudclaw.client.workspaces import Workspaces
from cloudclaw.config import ClientTls
from cloudclaw.errors import OutOfRangeError
from cloudclaw.ids import new_id
from cloudclaw.rpc.channel import Token, open_channel
from cloudclaw.v1 import scheduler_pb2, scheduler_pb2_grpc, task_pb2

DEFAULT_PATIENCE: Final = 30.0
CALL_TIMEOUT: Final = 30.0
CHECKPOINT_TIMEOUT: Final = 600.0
"""Seconds that a checkpoint may take: its files are stored before it is answered."""
_WORKSPACE_PORT_OFFSET: Final = 2


class AsyncClient:
    """CloudClaw for asyncio.

    Every method raises `cloudclaw.errors`; besides those it documents: `UnauthenticatedError` for a token that does
    not verify, and `UnavailableError` when a service stayed away for longer than `patience`.

    Attributes:
        workspaces: the tenant's file trees.
        consumers: who consumes the tenant's results, and where they stand.
    """

    def __init__(
        self,
        endpoint: str,
        token: Token,
        *,
        workspace_endpoint: str | None = None,
        tls: ClientTls | None = None,
        patience: float = DEFAULT_PATIENCE,
        on_wait: OnWait | None = None,
    ):
        """Prepare the client; it connects at its first call.

        Args:
            endpoint: the scheduler's, `host:port`; `https://host:port` for TLS with the system's certificates.
            token: the bearer token, or a function that answers the present one.
            workspace_endpoint: the workspace service's; default: the scheduler's host, two ports further.
            tls: certificates of its channels.
            patience: seconds that a call or a broken stream is tried again for while a service is away.
            on_wait: told before each pause of these; for people who wonder.
        """
        self._token = token
        self._tls = tls
        self._patience = Patience(patience, on_wait)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._scheduler = scheduler_pb2_grpc.SchedulerServiceStub(self._channel(endpoint))
        self.consumers = Consumers(self._scheduler, self._patience)
        self.workspaces = Workspaces(
            self._channel(workspace_endpoint or neighbour(endpoint, _WORKSPACE_PORT_OFFSET)), self._patience
        )

    def pool(self, endpoint: str) -> Pool:
        """The pool-manager at `endpoint`, for operators."""
        return Pool(self._channel(endpoint), self._patience)

    async def submit(
        self,
        argv: Sequence[str] = (),
        *,
        prompt: str = "",
        runtime: str = "",
        spec: task_pb2.TaskSpec | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        workspace: str = "",
        pool: str = "",
        request_id: str = "",
    ) -> scheduler_pb2.SubmitTaskResponse:
        """Submit a task.

        Args:
            argv: program and arguments, for runtimes that take them.
            prompt: the prompt; for `command` the standard input.
            runtime: which agent runs; default `command`.
            spec: the rest of the specification; the other arguments are laid over a copy of it.
            env: environment.
            labels: for filters.
            workspace: name of the file tree it works in.
            pool: pool of slots.
            request_id: makes it idempotent across processes. Without one a fresh one is used, so that this very call
                can be retried and still submits once.

        Returns:
            The task, and whether this call created it.

        Raises:
            InvalidArgumentError: a field is wrong; `field` names it.
            NotFoundError: no such workspace.
            AlreadyExistsError: the request id was used for another task.
            PreconditionError: no such pool, or it does not offer the runtime.
            QuotaExceededError: the cluster takes no more tasks now.
        """
        whole = task_pb2.TaskSpec()
        if spec is not None:
            whole.CopyFrom(spec)
        whole.MergeFrom(task_pb2.TaskSpec(argv=argv, prompt=prompt, runtime=runtime, env=env, labels=labels, pool=pool))
        if workspace:
            whole.workspace.name = workspace
        request = scheduler_pb2.SubmitTaskRequest(spec=whole, request_id=request_id or new_id("submit"))
        return await self._patience.call(lambda: self._scheduler.SubmitTask(request, timeout=CALL_TIMEOUT))

    async def get(self, task_id: str) -> task_pb2.Task:
        """One task with its spec, attempts and history. Raises `NotFoundError`."""
        request = scheduler_pb2.GetTaskRequest(task_id=task_id)
        return (await self._patience.call(lambda: self._scheduler.GetTask(request, timeout=CALL_TIMEOUT))).task

    async def list_page(self, request: scheduler_pb2.ListTasksRequest) -> scheduler_pb2.ListTasksResponse:
        """One page of tasks, with the revision that a watch can go on from."""
        return await self._patience.call(lambda: self._scheduler.ListTasks(request, timeout=CALL_TIMEOUT))

    async def list(
        self,
        *,
        states: Iterable[task_pb2.TaskState] = (),
        labels: Mapping[str, str] | None = None,
        workspace: str = "",
        create_after: datetime | None = None,
        create_before: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncGenerator[task_pb2.Task, None]:
        """The tenant's tasks, newest first, page after page; those that match all of the filters.

        Args:
            states: only in one of these states.
            labels: only with all of these labels.
            workspace: only of this workspace.
            create_after: only created at or after this time, which knows its time zone.
            create_before: only created before this time.
            page_size: tasks asked for at once.
        """
        request = scheduler_pb2.ListTasksRequest(
            states=states,
            labels=labels,
            workspace=workspace,
            page_size=page_size,
            create_after=_timestamp(create_after),
            create_before=_timestamp(create_before),
        )
        while True:
            page = await self.list_page(request)
            for task in page.tasks:
                yield task
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, task_id: str) -> task_pb2.Task:
        """Ask for a task's end; one that has ended stays as it is. Raises `NotFoundError`."""
        request = scheduler_pb2.CancelTaskRequest(task_id=task_id)
        return (await self._patience.call(lambda: self._scheduler.CancelTask(request, timeout=CALL_TIMEOUT))).task

    def watch(
        self, *, task_id: str = "", after_revision: int = 0
    ) -> AsyncGenerator[scheduler_pb2.WatchTasksResponse, None]:
        """Changes of the tenant's tasks (or of one), from now or after a revision; survives breaks.

        Raises `OutOfRangeError` when the revision was compacted: list, then watch from the list's revision.
        """
        request = scheduler_pb2.WatchTasksRequest(after_revision=after_revision, task_id=task_id)
        return Watch(self._scheduler, self._patience, request).run()

    def tail(
        self, task_id: str, *, attempt: int = 0, offset: int = 0, follow: bool = True
    ) -> AsyncGenerator[scheduler_pb2.TailLogsResponse, None]:
        """What a task wrote, each byte once and in order; survives breaks.

        Args:
            task_id: the task.
            attempt: only this one; 0 goes through all of them.
            offset: first byte wanted of the first attempt read.
            follow: wait for more until the task (or the chosen attempt) has ended.

        Raises:
            NotFoundError: no such task.
            OutOfRangeError: the offset is past the end of an ended attempt.
        """
        request = scheduler_pb2.TailLogsRequest(task_id=task_id, attempt=attempt, offset=offset, follow=follow)
        return Tail(self._scheduler, self._patience, request).run()

    def watch_events(
        self, task_id: str, *, from_sequence: int = 1, follow: bool = True
    ) -> AsyncGenerator[scheduler_pb2.RunEvent, None]:
        """What a task's agent does: messages, tool calls, usage, progress; each once and in order; survives breaks.

        Args:
            task_id: the task.
            from_sequence: number of the first event wanted.
            follow: wait for more until the task has ended.

        Raises:
            NotFoundError: no such task.
        """
        request = scheduler_pb2.WatchEventsRequest(task_id=task_id, from_sequence=from_sequence, follow=follow)
        return Events(self._scheduler, self._patience, request).run()

    async def send_input(
        self, task_id: str, text: str = "", *, message_id: str = "", end: bool = False, delay: timedelta | None = None
    ) -> scheduler_pb2.SendInputResponse:
        """Send a message to a conversation, whatever it does just then.

        Args:
            task_id: the conversation's task.
            text: the message; may be empty with `end`.
            message_id: makes it idempotent across processes. Without one a fresh one is used, so that this very call
                can be retried and still sends once.
            end: close the conversation; the task ends when this and all before is answered.
            delay: deliver it only after so long.

        Returns:
            Whether this call sent it, and its number among the task's inputs.

        Raises:
            NotFoundError: no such task.
            PreconditionError: reason NOT_A_CONVERSATION, TASK_ENDED or CONVERSATION_CLOSED.
            QuotaExceededError: reason TOO_MANY_INPUTS.
        """
        request = scheduler_pb2.SendInputRequest(
            task_id=task_id, message_id=message_id or new_id("input"), text=text, end=end
        )
        if delay is not None:
            request.delay.FromTimedelta(delay)
        return await self._patience.call(lambda: self._scheduler.SendInput(request, timeout=CALL_TIMEOUT))

    async def set_model_key(self, upstream: str, key: str) -> None:
        """Keep the tenant's key for a model endpoint; it is sealed there, and never given back.

        Raises `InvalidArgumentError`; `PreconditionError` (reason NO_SEALING_KEY) when the operator set none up.
        """
        request = scheduler_pb2.SetModelKeyRequest(upstream=upstream, key=key)
        await self._patience.call(lambda: self._scheduler.SetModelKey(request, timeout=CALL_TIMEOUT))

    async def list_model_keys(self) -> Sequence[scheduler_pb2.ModelKey]:
        """Which model endpoints the tenant has keys for."""
        request = scheduler_pb2.ListModelKeysRequest()
        return (await self._patience.call(lambda: self._scheduler.ListModelKeys(request, timeout=CALL_TIMEOUT))).keys

    async def delete_model_key(self, upstream: str) -> None:
        """Forget a key; attempts that run keep it until they end. Raises `NotFoundError`."""
        # Not retried: a second call could not tell its own success from there being none.
        await self._scheduler.DeleteModelKey(
            scheduler_pb2.DeleteModelKeyRequest(upstream=upstream), timeout=CALL_TIMEOUT
        )

    async def wait(self, task_id: str) -> task_pb2.Task:
        """The task, once it has ended. Raises `NotFoundError`."""
        while True:
            task = await self.get(task_id)
            if task.state in ENDED:
                return task
            try:
                async with aclosing(self.watch(task_id=task_id, after_revision=task.revision)) as changes:
                    async for change in changes:
                        if change.task.state in ENDED:
                            break
            except OutOfRangeError:
                continue  # compacted meanwhile: read it again

    async def explain(self, task_id: str) -> scheduler_pb2.ExplainTaskResponse:
        """Why a task waits, and why each of its attempts ended. Raises `NotFoundError`."""
        request = scheduler_pb2.ExplainTaskRequest(task_id=task_id)
        return await self._patience.call(lambda: self._scheduler.ExplainTask(request, timeout=CALL_TIMEOUT))

    async def result(self, task_id: str) -> task_pb2.Result:
        """How a task ended. Raises `NotFoundError`, `PreconditionError(reason="TASK_NOT_ENDED")`."""
        request = scheduler_pb2.GetResultRequest(task_id=task_id)
        return (await self._patience.call(lambda: self._scheduler.GetResult(request, timeout=CALL_TIMEOUT))).result

    def results(
        self,
        consumer: str,
        *,
        visibility: timedelta | None = None,
        from_oldest: bool = False,
        max_outstanding: int = 0,
        drain: bool = False,
    ) -> AsyncGenerator[scheduler_pb2.StreamResultsResponse, None]:
        """Results as tasks end, oldest first, each at least once; survives breaks. `ack` what has been dealt with.

        Args:
            consumer: its name; the first call makes it.
            visibility: how long a delivery waits for its `ack` before it is delivered again; default a minute.
            from_oldest: for a new consumer: begin with the oldest result at hand, not with the next to come.
            max_outstanding: deliveries that may wait for their `ack` at once; 0: the service's default, 100.
            drain: end when nothing is left to deliver.

        Raises:
            InvalidArgumentError: a field is wrong; `field` names it.
            NotFoundError: the consumer was deleted meanwhile.
            QuotaExceededError: the tenant has too many consumers.
        """
        request = scheduler_pb2.StreamResultsRequest(
            consumer=consumer, from_oldest=from_oldest, max_outstanding=max_outstanding, drain=drain
        )
        if visibility is not None:
            request.visibility_timeout.FromTimedelta(visibility)
        return self.consumers.stream(request)

    async def ack(self, consumer: str, *receipts: str) -> Sequence[str]:
        """As `Consumers.ack`, for the receipts of what `results` gave."""
        return await self.consumers.ack(consumer, receipts)

    async def checkpoint(self, task_id: str) -> scheduler_pb2.CheckpointTaskResponse:
        """Take a checkpoint of a running task now; it is recorded when this answers.

        Raises `NotFoundError`; `PreconditionError`, reason TASK_NOT_RUNNING, or CHECKPOINT_REFUSED with the path that
        cannot be kept; `AbortedError` when the attempt ended first.
        """
        request = scheduler_pb2.CheckpointTaskRequest(task_id=task_id)
        return await self._patience.call(lambda: self._scheduler.CheckpointTask(request, timeout=CHECKPOINT_TIMEOUT))

    async def status(self) -> scheduler_pb2.GetClusterStatusResponse:
        """Leader, pools and queue lengths; for operators also the nodes."""
        request = scheduler_pb2.GetClusterStatusRequest()
        return await self._patience.call(lambda: self._scheduler.GetClusterStatus(request, timeout=CALL_TIMEOUT))

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = open_channel(endpoint, self._tls, self._token)
        return self._channels[endpoint]


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValueError(f"a time without a time zone: {moment}")
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def neighbour(endpoint: str, offset: int) -> str:
    """`endpoint` with its port raised by `offset`; as it is when it has no port."""
    head, separator, port = endpoint.rpartition(":")
    return f"{head}:{int(port) + offset}" if separator and port.isdigit() else endpoint
