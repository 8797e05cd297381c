"""Artifacts: files that a task's result keeps, apart from any workspace."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Final

from cloudclaw.coordination.records import TaskRecord
from cloudclaw.errors import DataLossError, NotFoundError, PreconditionError
from cloudclaw.ids import check_name
from cloudclaw.objects.port import ObjectStore
from cloudclaw_workspace.ports.census import Census
from cloudclaw_workspace.ports.results import ArtifactLists, History, KeptArtifact

PIECE: Final = 256 << 10
"""Bytes that are given out at once, at most."""


class Artifacts:
    """Finds an artifact by the result of its task, and streams it."""

    def __init__(self, census: Census, objects: ObjectStore, lists: ArtifactLists, history: History) -> None:
        self._census = census
        self._history = history
        self._objects = objects
        self._lists = lists

    async def read(self, tenant: str, task_id: str, path: str) -> AsyncIterator[bytes]:
        """The artifact's bytes, in pieces; compared with the result's digest and size on the way.

        `NotFoundError` (no such task, or no such artifact); `PreconditionError` with reason `TASK_NOT_ENDED`;
        `DataLossError` naming the object, at the latest at the end, when the bytes are not those that the task left.
        """
        task = await self._task(tenant, check_name(task_id, "task_id"))
        kept = self._lists.find(await self._result(task), path)
        if kept is None:
            raise NotFoundError(f"{task_id} has no artifact {path!r}", reason="NO_ARTIFACT", metadata={"task": task_id})
        name = await self._object(task, kept)
        digest, size = hashlib.sha256(), 0
        async for chunk in self._objects.stream(name):
            digest.update(chunk)
            size += len(chunk)
            if size > kept.size:
                break
            # The last piece goes out before the whole is known to be right: the error that follows tells.
            for start in range(0, len(chunk), PIECE):
                yield chunk[start : start + PIECE]
        if size != kept.size or digest.hexdigest() != kept.digest:
            raise DataLossError(f"artifact {name} is not the file of {kept.size} bytes that {task_id} left")

    async def _task(self, tenant: str, task_id: str) -> TaskRecord:
        task = await self._census.task(tenant, task_id)
        if task is None:
            archived = await self._history.find(tenant, task_id)
            task = archived.task.record if archived is not None else None
        if task is None:
            raise NotFoundError(f"no task {task_id!r}", reason="NO_TASK", metadata={"task": task_id})
        if not task.state.ended:
            raise PreconditionError(f"{task_id} has not ended", subject=task_id, reason="TASK_NOT_ENDED")
        return task

    async def _result(self, task: TaskRecord) -> bytes:
        if not task.result_object:
            return base64.b64decode(task.result)
        try:
            return await self._objects.get(task.result_object)
        except NotFoundError as error:
            raise DataLossError(f"the result of {task.task} is missing: {task.result_object}") from error

    async def _object(self, task: TaskRecord, kept: KeptArtifact) -> str:
        """The result names content, and attempts store it each under its own uid; the last that has it is asked."""
        for attempt in reversed(task.attempts):
            name = f"artifacts/{task.tenant}/{task.task}/{attempt.uid}/{kept.digest}"
            try:
                await self._objects.head(name)
            except NotFoundError:
                continue
            return name
        raise DataLossError(f"artifact {kept.digest} of {task.task} is missing")
