"""The texts of inputs: inline in etcd while they are small, otherwise objects named by their content."""

from __future__ import annotations

import hashlib
from typing import Final

from cloudclaw.coordination.records import InputRecord, TaskRecord
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import DataLossError, NotFoundError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.v1.scheduler_pb2 import TaskInput
from cloudclaw_scheduler.app.mirror import Mirror

MAX_INLINE: Final = 4 * 1024
"""Bytes of a text that is kept in etcd."""
BATCH: Final = 1024 * 1024
"""Bytes of texts in one message to a node, unless a single one has more."""


class Inbox:
    """Stores and reads the texts of inputs."""

    def __init__(self, mirror: Mirror, transactions: Transactions, objects: ObjectStore) -> None:
        self._mirror = mirror
        self._transactions = transactions
        self._objects = objects

    async def place(self, tenant: str, task: str, text: str) -> tuple[str, str]:
        """(inline, object) as the record keeps them; an object is stored by this call."""
        data = text.encode()
        if len(data) <= MAX_INLINE:
            return text, ""
        name = f"inputs/{tenant}/{task}/{hashlib.sha256(data).hexdigest()}"
        await self._objects.put(name, data)
        return "", name

    async def read(self, task: TaskRecord, after: int) -> list[TaskInput]:
        """The inputs of `task` from the number after `after` on, in order: all, or as many as go into one message.

        `task` is as the mirror shows it, or older. `DataLossError` when one is missing; `UnavailableError`.
        """
        if after >= task.inputs:
            return []
        known = self._mirror.state.inputs.get((task.tenant, task.task), {})
        wanted = sorted((i for i in known.values() if after < i.number <= task.inputs), key=lambda i: i.number)
        given: list[TaskInput] = []
        size = 0
        for number, meta in enumerate(wanted, after + 1):
            if meta.number != number:
                raise DataLossError(f"input {number} of {task.task} is missing")
            found = await self._transactions.get_input(task.tenant, task.task, meta.message_id)
            if found is None:
                raise DataLossError(f"input {number} of {task.task} is missing")
            text = await self._text(task, found.record)
            size += len(text.encode())
            if given and size > BATCH:
                break
            given.append(TaskInput(number=number, message_id=meta.message_id, text=text))
        if not given:
            raise DataLossError(f"input {after + 1} of {task.task} is missing")
        return given

    async def _text(self, task: TaskRecord, record: InputRecord) -> str:
        if not record.object:
            return record.text
        try:
            return (await self._objects.get(record.object)).decode()
        except NotFoundError as error:
            raise DataLossError(f"input {record.number} of {task.task} is missing: {record.object}") from error
        except UnicodeDecodeError as error:
            raise DataLossError(f"input {record.number} of {task.task} cannot be read: {error}") from error
