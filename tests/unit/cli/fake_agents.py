"""The calls around agents, in memory: events, input, keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cloudclaw.errors import NotFoundError, PreconditionError, UnavailableError
from cloudclaw.rpc.auth import caller
from cloudclaw.v1 import scheduler_pb2 as pb
from cloudclaw.v1 import task_pb2


class FakeAgents:
    """Plays the events in `plays` of a task; a conversation's messages are added to them, each with an answer.

    A stream of events breaks after each message as often as `event_breaks` says. An answer ends the conversation when
    it is closed.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, task_pb2.Task]
        self.plays: dict[str, list[pb.RunEvent]] = {}
        self.event_breaks = 0
        self.event_watches: list[pb.WatchEventsRequest] = []
        self.inputs: list[pb.SendInputRequest] = []
        self.keys: dict[tuple[str, str], str] = {}
        self.sealing = True
        self._more = asyncio.Condition()

    def play(self, task_id: str, *events: pb.RunEvent) -> None:
        """Add events to a task's; they get their numbers, and their attempt unless they have one."""
        told = self.plays.setdefault(task_id, [])
        for event in events:
            event.sequence = len(told) + 1
            event.attempt = event.attempt or 1
            told.append(event)

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Any) -> AsyncIterator[pb.WatchEventsResponse]:
        self.event_watches.append(pb.WatchEventsRequest.FromString(request.SerializeToString()))
        task = self.tasks.get(request.task_id)
        if task is None or task.tenant != caller().tenant:
            raise NotFoundError(f"no task {request.task_id!r}")
        position = max(0, request.from_sequence - 1)
        while True:
            told = self.plays.get(request.task_id, [])
            for event in told[position:]:
                position += 1
                yield pb.WatchEventsResponse(event=event)
                if self.event_breaks > 0:
                    self.event_breaks -= 1
                    raise UnavailableError("restarting")
            if not request.follow or task.state not in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING):
                return
            async with self._more:
                if len(self.plays.get(request.task_id, [])) == position:
                    await self._more.wait()

    async def SendInput(self, request: pb.SendInputRequest, context: Any) -> pb.SendInputResponse:
        task = self.tasks.get(request.task_id)
        if task is None or task.tenant != caller().tenant:
            raise NotFoundError(f"no task {request.task_id!r}")
        if not task.spec.HasField("conversation"):
            raise PreconditionError(f"{task.task_id} is no conversation", reason="NOT_A_CONVERSATION")
        known = [given.message_id for given in self.inputs]
        if request.message_id in known:
            return pb.SendInputResponse(accepted=False, number=known.index(request.message_id) + 1)
        self.inputs.append(pb.SendInputRequest.FromString(request.SerializeToString()))
        if not request.HasField("delay"):
            await self._answer(task, request)
        return pb.SendInputResponse(accepted=True, number=len(self.inputs) if request.text else 0)

    async def _answer(self, task: task_pb2.Task, request: pb.SendInputRequest) -> None:
        if request.text:
            self.play(
                task.task_id,
                pb.RunEvent(message=pb.RunMessage(role="user", text=request.text, message_id=request.message_id)),
                pb.RunEvent(message=pb.RunMessage(role="assistant", text=f"you said {request.text}")),
                pb.RunEvent(finished=pb.RunFinished(ok=True)),
            )
        if request.end:
            task.state = task_pb2.TASK_STATE_SUCCEEDED
        async with self._more:
            self._more.notify_all()

    async def SetModelKey(self, request: pb.SetModelKeyRequest, context: Any) -> pb.SetModelKeyResponse:
        if not self.sealing:
            raise PreconditionError("keys cannot be kept here", reason="NO_SEALING_KEY")
        self.keys[caller().tenant, request.upstream] = request.key
        return pb.SetModelKeyResponse()

    async def ListModelKeys(self, request: Any, context: Any) -> pb.ListModelKeysResponse:
        found = [(upstream, key) for (tenant, upstream), key in sorted(self.keys.items()) if tenant == caller().tenant]
        return pb.ListModelKeysResponse(keys=[pb.ModelKey(upstream=upstream, hint=key[-4:]) for upstream, key in found])

    async def DeleteModelKey(self, request: pb.DeleteModelKeyRequest, context: Any) -> pb.DeleteModelKeyResponse:
        if self.keys.pop((caller().tenant, request.upstream), None) is None:
            raise NotFoundError(f"there is no key for {request.upstream!r}", reason="MODEL_KEY_NOT_FOUND")
        return pb.DeleteModelKeyResponse()
