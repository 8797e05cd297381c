"""A tenant's snapshots, written and deleted step by step, beside rounds of garbage collection that are watched."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cloudclaw.coordination import keys, life
from cloudclaw.coordination.memory import MemoryKeyValue
from cloudclaw.coordination.port import Absent, CreateIs, Put
from cloudclaw.coordination.records import (
    AttemptState,
    EndReason,
    Mode,
    NodeRecord,
    Plan,
    SnapshotPointer,
    TaskRecord,
    WorkspaceRecord,
)
from cloudclaw.coordination.transactions import Token, Transactions, Versioned
from cloudclaw.errors import NotFoundError
from cloudclaw.history.bundles import ArchivedTask, BundleName, encode_bundle, name_for
from cloudclaw.objects.memory import MemoryObjects
from cloudclaw.objects.port import ObjectInfo
from cloudclaw.snapshots import manifest as manifests
from cloudclaw.snapshots.manifest import Blob, Item, Manifest
from cloudclaw.snapshots.port import FileEntry, FileType
from cloudclaw_workspace.adapters.packlists import StoredPackLists
from cloudclaw_workspace.app.rounds import Rounds
from cloudclaw_workspace.domain.retention import Retention
from tests.support.kv import FaultyKeyValue, ManualClock
from tests.support.workspace_service import rounds_over

TENANT: Final = "acme"
NODE: Final = "node-1"
GRACE: Final = 100.0
LEADER: Final = keys.election("scheduler", 1)

Step = Callable[[], Awaitable[None]]


class Watched:
    """Counts the calls to both stores, and runs something before one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.before: dict[int, Step] = {}

    async def step(self) -> None:
        self.count += 1
        if (meanwhile := self.before.pop(self.count, None)) is not None:
            await meanwhile()


class WatchedKeyValue(FaultyKeyValue):
    """A key-value store whose calls are steps."""

    def __init__(self, inner: MemoryKeyValue, watched: Watched) -> None:
        super().__init__(inner)
        self._watched = watched

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        await self._watched.step()
        return await super().get(*args, **kwargs)

    async def range(self, *args: Any, **kwargs: Any) -> Any:
        await self._watched.step()
        return await super().range(*args, **kwargs)

    async def txn(self, *args: Any, **kwargs: Any) -> Any:
        await self._watched.step()
        return await super().txn(*args, **kwargs)


class WatchedObjects(MemoryObjects):
    """An object store whose calls are steps, each object that is listed one of them."""

    def __init__(self, inner: MemoryObjects, watched: Watched) -> None:
        super().__init__()
        self._objects = inner._objects
        self._watched = watched

    async def put(self, name: str, data: bytes, *, if_absent: bool = False) -> bool:
        await self._watched.step()
        return await super().put(name, data, if_absent=if_absent)

    async def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        await self._watched.step()
        return await super().get(name, offset=offset, length=length)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._watched.step()
        async for info in super().list(prefix, start_after=start_after):
            yield info
            await self._watched.step()

    async def delete(self, name: str) -> None:
        await self._watched.step()
        await super().delete(name)


class World:
    """One tenant with a leader, a node and memory stores."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.kv = MemoryKeyValue(self.clock)
        self.objects = MemoryObjects(self.clock)
        self.tx = Transactions(self.kv)
        self.ids = itertools.count(1)
        self.packs: dict[str, list[str]] = {}
        """Of each manifest's digest."""
        self.leadership = CreateIs(LEADER, 0)

    async def begin(self) -> None:
        """Elect a leader, and register a node."""
        self.leadership = CreateIs(LEADER, (await self.kv.txn([Absent(LEADER)], [Put(LEADER, b"{}")])).revision)
        lease = await self.kv.grant(10_000)
        await self.tx.register_node(NodeRecord(node=NODE, address="127.0.0.1:1", incarnation=0), lease)

    def watched(self, *, keep: int = 2) -> tuple[Watched, Rounds]:
        """Rounds whose steps are counted."""
        watched = Watched()
        rounds = rounds_over(
            WatchedKeyValue(self.kv, watched),
            WatchedObjects(self.objects, watched),
            self.clock,
            retention=Retention(keep, 0),
            grace=GRACE,
        )
        return watched, rounds

    def rounds(self, *, keep: int = 2) -> Rounds:
        """Rounds that nobody watches."""
        return self.watched(keep=keep)[1]

    def name(self, prefix: str) -> str:
        """A fresh id."""
        return f"{prefix}-{next(self.ids)}"

    async def store(self, uid: str, *, shared: Sequence[str] = (), tenant: str = TENANT) -> SnapshotPointer:
        """Store a snapshot with a pack of its own, and files in packs that are there already."""
        own = f"tenants/{tenant}/packs/{uid}/{self.name('up')}-0"
        await self.objects.put(own, own.encode())
        entries = [Item(FileEntry(b"workspace", FileType.DIRECTORY))]
        for number, pack in enumerate([*shared, own]):
            digest = hashlib.sha256(pack.encode()).hexdigest()
            entry = FileEntry(b"workspace/%d" % number, FileType.REGULAR, size=1, digest=digest)
            entries.append(Item(entry, (Blob(pack, 0, 1, 1, digest),)))
        data, digest = manifests.encode(Manifest(entries))
        pointer = SnapshotPointer(id=self.name("snap"), manifest=digest, uid=uid, files=1, bytes=1)
        self.packs[digest] = [*shared, own]
        await self.objects.put(StoredPackLists(self.objects).name(tenant, pointer), data)
        return pointer

    async def create(self, name: str, tenant: str = TENANT) -> None:
        """An empty workspace."""
        now = self.clock.wall()
        record = WorkspaceRecord(name=name, created=now, updated=now, op_id=self.name("op"))
        await self.tx.create_workspace(tenant, record)

    async def workspace(self, name: str, tenant: str = TENANT) -> Versioned[WorkspaceRecord]:
        """A workspace that is there."""
        found = await self.tx.get_workspace(tenant, name)
        assert found is not None
        return found

    # -- what users do, in steps --

    async def write(self, name: str, *, tenant: str = TENANT, fail: bool = False) -> AsyncIterator[None]:
        """A write that keeps the files of the head and adds one; with `fail` the client vanishes before the commit."""
        op = self.name("op")
        lease = await self.kv.grant(10_000)
        token = await self.tx.acquire_writer(tenant, name, op, lease)
        workspace = await self.workspace(name, tenant)
        yield
        head = workspace.record.head
        # As much of the head as one file less: so some packs fall out of use with each write.
        shared = self.packs[head.manifest][1:] if head is not None else []
        pointer = await self.store(op, shared=shared, tenant=tenant)
        yield
        if fail:
            await self.tx.release_writer(tenant, name, token)
            return
        after = replace(
            workspace.record,
            op_id=op,
            head=pointer,
            generation=workspace.record.generation + 1,
            updated=self.clock.wall(),
        )
        await self.tx.commit_workspace(tenant, workspace, after, pointer, token)

    async def restore(self, name: str) -> AsyncIterator[None]:
        """Make the oldest snapshot the head again, unless it is gone by then."""
        op = self.name("op")
        token = await self.tx.acquire_writer(TENANT, name, op, await self.kv.grant(10_000))
        workspace = await self.workspace(name)
        old = (await self.tx.snapshots_of(TENANT, name))[0].record.pointer
        yield
        pointer = replace(old, id=self.name("snap"))
        after = replace(workspace.record, op_id=op, head=pointer, generation=workspace.record.generation + 1)
        try:
            await self.tx.commit_workspace(TENANT, workspace, after, pointer, token, source=old.id)
        except NotFoundError:
            await self.tx.release_writer(TENANT, name, token)

    async def fork(self, name: str) -> AsyncIterator[None]:
        """Fork the oldest snapshot, unless it is gone by then."""
        old = (await self.tx.snapshots_of(TENANT, name))[0].record.pointer
        yield
        pointer = replace(old, id=self.name("snap"), parent="")
        record = WorkspaceRecord(
            name=self.name("fork"), created=0, updated=0, op_id=self.name("op"), generation=1, head=pointer
        )
        try:
            await self.tx.create_workspace(TENANT, record, snapshot=pointer, source=(name, old.id))
        except NotFoundError:
            return

    async def remove(self, name: str) -> AsyncIterator[None]:
        """Delete the workspace."""
        workspace = await self.workspace(name)
        yield
        await self.tx.delete_workspace(TENANT, workspace)

    # -- what a task does --

    async def submit(
        self, name: str = "", mode: Mode = Mode.EPHEMERAL, *, interactive: bool = False
    ) -> Versioned[TaskRecord]:
        """A queued task."""
        record = life.queued(
            tenant=TENANT,
            task=self.name("task"),
            plan=Plan(workspace=name, mode=mode, interactive=interactive, idle_timeout=60.0),
            now=self.clock.wall(),
            op_id=self.name("op"),
        )
        return (await self.tx.submit(record, b"spec")).task

    async def claim(self, task: Versioned[TaskRecord]) -> tuple[Token, Versioned[TaskRecord]]:
        """The next attempt of a queued task."""
        node = await self.kv.get(keys.node(NODE))
        assert node is not None
        plan = task.record.plan
        entry = await self.kv.get(keys.workspace(TENANT, plan.workspace)) if plan.workspace else None
        head = (await self.workspace(plan.workspace)).record.head if entry is not None else None
        claimed = life.claimed(task.record, NODE, self.name("uid"), head, self.clock.wall(), self.name("op"))
        running = await self.tx.claim(self.leadership, task, claimed, node, workspace=entry)
        return Token(NODE, TENANT, task.record.task, running.mod_revision), running

    async def checkpoint(
        self, token: Token, task: Versioned[TaskRecord], shared: Sequence[str]
    ) -> tuple[Versioned[TaskRecord], SnapshotPointer]:
        """Store a checkpoint, and record it."""
        pointer = await self.store(task.record.uid, shared=shared)
        after = life.checkpointed(task.record, self.clock.wall(), pointer, op_id=self.name("op"))
        return await self.tx.checkpoint(token, task, after, pointer), pointer

    async def lose(self, token: Token, task: Versioned[TaskRecord]) -> Versioned[TaskRecord]:
        """The attempt's node reports that it failed; the task is queued again."""
        after = life.reported(
            task.record,
            self.clock.wall(),
            AttemptState.FAILED,
            EndReason.INTERNAL,
            op_id=self.name("op"),
            retryable=True,
        )
        failed = await self.tx.finish(token, task, after)
        due = life.became_due(failed.record, self.clock.wall(), op_id=self.name("op"))
        return await self.tx.due(self.leadership, failed, due)

    async def succeed(
        self,
        token: Token,
        task: Versioned[TaskRecord],
        snapshot: SnapshotPointer | None = None,
        *,
        result_object: str = "",
        result: str = "",
    ) -> Versioned[TaskRecord]:
        """The attempt's success."""
        after = life.reported(
            task.record,
            self.clock.wall(),
            AttemptState.SUCCEEDED,
            EndReason.COMPLETED,
            op_id=self.name("op"),
            exit_code=0,
            result=result,
            result_object=result_object,
        )
        move = snapshot is not None and task.record.plan.writes
        return await self.tx.finish(token, task, after, snapshot=snapshot, move_head=move)

    async def fail(self, token: Token, task: Versioned[TaskRecord]) -> Versioned[TaskRecord]:
        """The attempt's failure, with which the task ends."""
        after = life.reported(
            task.record,
            self.clock.wall(),
            AttemptState.FAILED,
            EndReason.NONZERO_EXIT,
            op_id=self.name("op"),
            exit_code=1,
        )
        return await self.tx.finish(token, task, after)

    async def bundle(self, *tasks: Versioned[TaskRecord]) -> BundleName:
        """Store a bundle of ended tasks, which stay in the key-value store for now."""
        rows = [ArchivedTask(task, b"spec") for task in tasks]
        name = name_for(rows, self.name("bundle"))
        await self.objects.put(str(name), encode_bundle(rows))
        return name

    # -- what must hold --

    async def names(self, prefix: str = "") -> set[str]:
        """Objects that are stored."""
        return {info.name async for info in self.objects.list(prefix)}

    async def reachable(self) -> set[str]:
        """Objects that the roots need."""
        lists = StoredPackLists(self.objects)
        needed = set()
        for pointer in (await self.tx.roots(TENANT)).pointers:
            needed |= {lists.name(TENANT, pointer), *self.packs[pointer.manifest]}
        return needed

    async def check(self) -> None:
        """Nothing that is reachable is missing."""
        missing = await self.reachable() - await self.names(f"tenants/{TENANT}/")
        assert not missing, f"lost: {sorted(missing)}"

    async def settle(self, *, keep: int = 2) -> None:
        """Rounds with their grace between, with nothing beside them: everything reachable is there, and no more."""
        for _ in range(3):
            await self.rounds(keep=keep).collect(TENANT, dry_run=False)
            await self.check()
            self.clock.now += GRACE + 1
        assert await self.names(f"tenants/{TENANT}/") == await self.reachable()
        assert await self.names("gc/") == set()


async def drive(script: AsyncIterator[None]) -> None:
    """Run a script to its end."""
    async for _ in script:
        pass
