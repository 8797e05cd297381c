"""A small cluster's state in a store: a leader, a node, a workspace, and tasks wherever a test needs them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from cloudclaw.coordination import conversation, keys, life
from cloudclaw.coordination.port import Absent, CreateIs, Delete, Entry, KeyValue, Put
from cloudclaw.coordination.records import (
    AttemptState,
    EndReason,
    InputRecord,
    Mode,
    NodeRecord,
    Plan,
    SnapshotPointer,
    TaskRecord,
    WorkspaceRecord,
    encode,
)
from cloudclaw.coordination.transactions import Token, Transactions, Versioned
from tests.support.kv import FaultyKeyValue, store_on

TENANT = "acme"
WORKSPACE = "site"
NODE = "node-1"
LEADER_KEY = keys.election("scheduler", 1)
EXCLUSIVE = Plan(workspace=WORKSPACE, mode=Mode.EXCLUSIVE)
FORK = Plan(workspace=WORKSPACE, mode=Mode.FORK)
EPHEMERAL = Plan()
TALK = Plan(runtime="claude-code", interactive=True, idle_timeout=60.0, workspace=WORKSPACE, mode=Mode.EXCLUSIVE)
NOW = 1_700_000_000.0


def pointer(name: str) -> SnapshotPointer:
    """A snapshot called `name`."""
    return SnapshotPointer(id=f"snap-{name}", manifest=name * 8)


def input_of(after: TaskRecord, before: TaskRecord, due: float = 0.0) -> InputRecord:
    """The message by which `before` became `after`."""
    number = after.inputs if after.inputs > before.inputs else 0
    return InputRecord(op_id=after.op_id, digest="d", created=NOW, number=number, due=due, text="hi")


class Scene:
    """Builds states by the transactions themselves, and breaks what they guard on behind their back."""

    def __init__(self, kv: KeyValue) -> None:
        self.kv = FaultyKeyValue(kv)
        self.tx = Transactions(self.kv)
        self.now = NOW
        self.term = 0
        self.node_lease = 0
        self._ids = itertools.count(1)

    async def set(self) -> None:
        """Elect a leader, register the node, create the workspace with a head."""
        self.term = (await self.kv.txn([Absent(LEADER_KEY)], [Put(LEADER_KEY, b"{}")])).revision
        self.node_lease = await self.kv.grant(60)
        await self.tx.register_node(NodeRecord(node=NODE, address="127.0.0.1:1", incarnation=0), self.node_lease)
        head = pointer("head")
        workspace = WorkspaceRecord(name=WORKSPACE, created=NOW, updated=NOW, op_id="op-ws", generation=1, head=head)
        await self.tx.create_workspace(TENANT, workspace, snapshot=head)

    def op(self) -> str:
        """A fresh operation id."""
        return f"op-{next(self._ids)}"

    @property
    def leadership(self) -> CreateIs:
        """The guard of the present leader."""
        return CreateIs(LEADER_KEY, self.term)

    async def node_entry(self) -> Entry:
        """`nodes/{n}` now."""
        return await self.entry(keys.node(NODE))

    async def workspace_entry(self) -> Entry:
        """`workspaces/…` now."""
        return await self.entry(keys.workspace(TENANT, WORKSPACE))

    async def entry(self, key: str) -> Entry:
        """The key, which must be there."""
        entry = await self.kv.inner.get(key)
        assert entry is not None, key
        return entry

    async def dump(self) -> dict[str, tuple[bytes, int]]:
        """Everything that is stored: value and mod revision by key."""
        entries = (await self.kv.inner.range("")).entries
        return {entry.key: (entry.value, entry.mod_revision) for entry in entries}

    # -- tasks in every state --

    def fresh(self, plan: Plan = EXCLUSIVE) -> TaskRecord:
        """A task nobody stored yet."""
        return life.queued(tenant=TENANT, task=f"task-{next(self._ids)}", plan=plan, now=self.now, op_id=self.op())

    async def queued(self, plan: Plan = EXCLUSIVE) -> Versioned[TaskRecord]:
        """A task in the queue."""
        return (await self.tx.submit(self.fresh(plan), b"spec")).task

    async def running(
        self, plan: Plan = EXCLUSIVE, task: Versioned[TaskRecord] | None = None
    ) -> tuple[Token, Versioned[TaskRecord]]:
        """A task that runs on the node, and its token."""
        task = task or await self.queued(plan)
        claimed = life.claimed(task.record, NODE, f"uid-{next(self._ids)}", pointer("head"), self.now, self.op())
        running = await self.tx.claim(
            self.leadership, task, claimed, await self.node_entry(), workspace=await self.workspace_entry()
        )
        return Token(NODE, TENANT, task.record.task, running.mod_revision), running

    async def checkpointed(self, name: str, plan: Plan = EXCLUSIVE) -> tuple[Token, Versioned[TaskRecord]]:
        """A task that runs on the node and has the checkpoint `name`."""
        token, task = await self.running(plan)
        after = life.checkpointed(task.record, self.now, pointer(name), op_id=self.op())
        return token, await self.tx.checkpoint(token, task, after, pointer(name))

    async def ended(self, plan: Plan = EPHEMERAL) -> Versioned[TaskRecord]:
        """A task that its user canceled before it ran."""
        task = await self.queued(plan)
        return await self.tx.cancel(task, life.canceled(task.record, self.now, op_id=self.op()))

    async def delayed(self, plan: Plan = EXCLUSIVE) -> Versioned[TaskRecord]:
        """A task that failed once and waits its backoff."""
        token, task = await self.running(plan)
        after = life.reported(
            task.record, self.now, AttemptState.FAILED, EndReason.INTERNAL, op_id=self.op(), retryable=True
        )
        return await self.tx.finish(token, task, after)

    async def second_attempt(self) -> tuple[Token, Versioned[TaskRecord]]:
        """A task that runs for the second time."""
        task = await self.delayed()
        due = await self.tx.due(self.leadership, task, life.became_due(task.record, self.now, op_id=self.op()))
        return await self.running(task=due)

    async def parked(self, plan: Plan = TALK, name: str = "parked") -> Versioned[TaskRecord]:
        """A conversation that waits for input."""
        token, task = await self.running(plan)
        after = conversation.parked(task.record, self.now, pointer(name), op_id=self.op())
        return await self.tx.park(token, task, after, pointer(name))

    async def told(self, task: Versioned[TaskRecord], message_id: str, due: float = 0.0) -> Versioned[TaskRecord]:
        """The conversation with one more message."""
        after = conversation.sent(task.record, self.now, op_id=self.op(), due=due)
        return await self.tx.send_input(task, after, message_id, input_of(after, task.record, due))

    # -- behind the transactions' back --

    async def depose(self) -> None:
        """Another leader is elected."""
        await self.kv.inner.txn([], [Delete(LEADER_KEY)])
        await self.kv.inner.txn([], [Put(LEADER_KEY, b"{}")])

    async def remove(self, key: str) -> None:
        """The key vanishes."""
        assert (await self.kv.inner.txn([], [Delete(key)])).succeeded

    async def place(self, key: str, value: bytes) -> None:
        """The key is there with this value."""
        await self.kv.inner.txn([], [Put(key, value)])

    async def touch(self, key: str) -> None:
        """The key is put again as it is."""
        entry = await self.entry(key)
        await self.kv.inner.txn([], [Put(key, entry.value, entry.lease)])

    async def change(self, task: Versioned[TaskRecord]) -> None:
        """Somebody else writes the task."""
        current = await self.tx.get_task(task.record.tenant, task.record.task)
        assert current is not None
        key = keys.task(task.record.tenant, task.record.task)
        await self.place(key, encode(replace(current.record, op_id="op-other")))

    async def remake(self, key: str) -> None:
        """The key goes and comes back: same value, another create revision."""
        entry = await self.entry(key)
        await self.kv.inner.txn([], [Delete(key)])
        await self.kv.inner.txn([], [Put(key, entry.value, entry.lease)])


@contextlib.asynccontextmanager
async def scene_on(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """A set scene on the store that `request.param` names: "memory", or "etcd" by the fixture `etcd_server`."""
    async with store_on(request) as store:
        scene = Scene(store.kv)
        await scene.set()
        yield scene


BOTH_STORES = ["memory", pytest.param("etcd", marks=pytest.mark.etcd)]
"""Parameters of a fixture that uses `scene_on`."""
