"""A task's spec: inline in etcd while it is small, otherwise an object."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from cloudclaw.coordination.records import MAX_INLINE_SPEC, TaskRecord
from cloudclaw.coordination.transactions import Transactions
from cloudclaw.errors import DataLossError, NotFoundError
from cloudclaw.objects.port import ObjectStore
from cloudclaw.v1.task_pb2 import TaskSpec


class Specs:
    """Stores and reads specs."""

    def __init__(self, transactions: Transactions, objects: ObjectStore) -> None:
        self._transactions = transactions
        self._objects = objects

    async def place(self, tenant: str, task: str, spec: bytes) -> str:
        """The object that holds `spec`, stored by this call; "" when it goes inline with the submit."""
        if len(spec) <= MAX_INLINE_SPEC:
            return ""
        name = f"specs/{tenant}/{task}"
        await self._objects.put(name, spec)
        return name

    async def read(self, record: TaskRecord) -> TaskSpec:
        """The spec of a task. `DataLossError` when it is missing or cannot be read; `UnavailableError`."""
        if record.spec_object:
            try:
                data: bytes | None = await self._objects.get(record.spec_object)
            except NotFoundError:
                data = None
        else:
            data = await self._transactions.get_spec(record.tenant, record.task)
        if data is None:
            raise DataLossError(f"the spec of {record.task} is missing")
        return parse(data, record.task)


def parse(data: bytes, task: str) -> TaskSpec:
    """The spec from its bytes. `DataLossError`."""
    try:
        return TaskSpec.FromString(data)
    except DecodeError as error:
        raise DataLossError(f"the spec of {task} cannot be read: {error}") from error
