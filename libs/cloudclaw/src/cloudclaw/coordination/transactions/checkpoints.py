"""Transactions on the checkpoints of running attempts, and on requests for them."""

from __future__ import annotations

from cloudclaw.coordination.records import SnapshotPointer, TaskRecord, TaskState
from cloudclaw.coordination.transactions.store import Store
from cloudclaw.coordination.transactions.types import Token, Versioned


class CheckpointTransactions(Store):
    """What records where the next attempt starts."""

    async def checkpoint(
        self, token: Token, task: Versioned[TaskRecord], after: TaskRecord, snapshot: SnapshotPointer
    ) -> Versioned[TaskRecord]:
        """Record a snapshot from which the next attempt starts (`life.checkpointed`).

        Guards: token; task unchanged. Writes: task; for a task with a workspace the snapshot's key, and − the key of
        the checkpoint before it. A workspace that the task does not own may be gone: then its record alone keeps the
        checkpoint. `FencedError` when the token is not valid any more.
        """
        if after.state is not TaskState.RUNNING or after.checkpoint != snapshot:
            raise ValueError("a checkpoint leaves its task RUNNING, with the snapshot as its checkpoint")
        guards, writes = await self._replace_snapshot(task.record, after, snapshot, task.record.checkpoint)
        return await self._change(task, after, guards, writes, token=token)

    async def serve_checkpoint(
        self, token: Token, task: Versioned[TaskRecord], after: TaskRecord
    ) -> Versioned[TaskRecord]:
        """Answer a request for a checkpoint that came to nothing (`life.checkpoint_refused`). Guards: token; task
        unchanged. Nothing is written when the request was answered before (`after` is the task as it is)."""
        _same_checkpoint(task.record, after)
        if after == task.record:
            return task
        return await self._change(task, after, (), (), token=token)

    async def want_checkpoint(self, task: Versioned[TaskRecord], after: TaskRecord) -> Versioned[TaskRecord]:
        """Ask for a checkpoint of a running attempt (`life.checkpoint_wanted`). Guards: task unchanged."""
        _same_checkpoint(task.record, after)
        return await self._change(task, after, (), ())


def _same_checkpoint(before: TaskRecord, after: TaskRecord) -> None:
    running = before.state is after.state is TaskState.RUNNING
    if not running or before.checkpoint != after.checkpoint or before.uid != after.uid:
        raise ValueError("asking for a checkpoint, or answering that there is none, changes nothing else of a task")
