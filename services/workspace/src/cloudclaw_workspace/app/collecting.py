"""Garbage collection: removing the objects that nothing refers to (design §5, rule 8).

A round of one tenant, in this order:

1. read the candidates: what earlier rounds saw unreferenced, and since when;
2. list the tenant's objects;
3. survey its tasks, and then read from the history what the archived ones refer to;
4. read the roots at one revision: heads, snapshots, where tasks began and will go on, and which uids are live;
5. read which packs the roots' manifests need;
6. an object of the list that is neither in use nor of a live uid becomes a candidate; one that was a candidate before
   the round, for longer than the grace, is removed.

**Nothing that is, or will be, reachable is removed**, whatever happens beside the round. Objects get referred to in
these ways only, and what they share is that an object which was listed (2), and is unreferenced at the roots' revision
(4) with a dead uid, stays unreferenced for ever:

- *An attempt or a user's operation publishes what it stored* (checkpoint, finish, commit). Its uid is recorded before
  its first object is put: by the claim, or by the writer key. So when an object is listed its uid was live, and at (4),
  later, either still is (not touched), or the attempt is over: what it published is among the roots, and a transaction
  of its that is still under way fails, because it guards its token and the token is gone. Hence the list comes before
  the roots: the other way round, an attempt that was claimed after the roots were read would look dead.
- *A new snapshot shares packs with an older one.* Only with the tree's base, which is pinned (a user's operation holds
  the writer key, so the head stays; a task's base and checkpoint are roots until it has ended), and with the task's own
  checkpoints. One of these may have been superseded, and then it is no root; so uids of *all* attempts of tasks that
  have not ended count as live, not just that of the one that runs, and retention keeps what any of these attempts began
  from. They are read at (3), before the roots: a task that has ended by (3) has its last snapshot among the roots at
  (4).
- *A fork, a restore, a task that begins from a snapshot.* Each transaction guards that the snapshot's key exists while
  it adds a pointer to the same manifest. What has no pointer at (4) can be the source of none later.
- *Retention and deletion* only take pointers away.
- *An attempt's logs, artifacts and results* are stored after its claim, so when they are listed its task has a record
  that tells of the attempt, in etcd or in the history: a bundle is stored before its tasks leave etcd. So a task of
  which (3) finds no record in etcd is in a bundle that is listed after that. What neither knows is nobody's: a tenant
  that was deleted, an attempt that was given back. *Artifacts and results* of an ended task are decided about by its
  record's choice, which is final; before its end all that its attempts stored stays. Logs stay with the records, for as
  long as these tell of their attempts. A history that cannot be read, or holds what this release does not know, keeps
  everything that may be an archived task's. Specs are not looked at: they are put a moment before the submit.

So one look would be enough, and the grace is not what keeps a commit safe: it is for readers who still read a snapshot
that was just deleted. Two rounds at once do no harm either: each removes only what its own reading proved dead; a
candidate that one of them forgets in the object that both write waits longer, and one that it brings back has been dead
since the time that it says. A round may stop at any step: removing is idempotent, and the candidates are written last.

A manifest that is missing or damaged stops the tenant's sweep, because packs that only it knows of cannot be told from
garbage. (When its pointer went away meanwhile, it was no loss.)

Memory: the names of referenced manifests and packs, about 150 bytes each, and of everything listed, about 50 bytes each
(`Pages`): 200 MB for a tenant with a million objects that are all in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from cloudclaw.clock import Clock
from cloudclaw.coordination.records import SnapshotPointer
from cloudclaw.errors import DataLossError, NotFoundError
from cloudclaw.objects.port import ObjectStore
from cloudclaw_workspace.domain import names, waiting
from cloudclaw_workspace.domain.garbage import Facts, Report
from cloudclaw_workspace.domain.outputs import Outputs
from cloudclaw_workspace.domain.pages import Pages
from cloudclaw_workspace.domain.waiting import Candidates, Cursor
from cloudclaw_workspace.ports.archive import Archive
from cloudclaw_workspace.ports.census import Census
from cloudclaw_workspace.ports.manifests import PackLists

AT_ONCE: Final = 8
"""Objects that are read or removed at the same time."""

_BATCH: Final = 4096

_log = structlog.get_logger()


class Collector:
    """One round of one tenant; the module says why it is safe.

    Args:
        grace: seconds between the first sight of garbage and its removal.
    """

    def __init__(
        self,
        census: Census,
        objects: ObjectStore,
        packs: PackLists,
        archive: Archive,
        clock: Clock,
        *,
        grace: float,
    ) -> None:
        self._census = census
        self._objects = objects
        self._packs = packs
        self._archive = archive
        self._clock = clock
        self._grace = grace

    async def sweep(self, tenant: str, report: Report, *, dry_run: bool) -> None:
        """Do a round, and add to `report` what it found. A dry run changes nothing.

        Raises `DataLossError` naming a manifest without which nothing can be decided, and `UnavailableError`.
        """
        before = await self._remembered(tenant)
        listing = await self._list(names.swept(tenant))
        facts = await self._facts(tenant)
        now = self._clock.wall()
        cursor, after = Cursor(before), Candidates()
        for batch in _batches(listing):
            doomed = await asyncio.to_thread(self._decide, batch, facts, cursor, after, now, report)
            if not dry_run:
                await self._remove(doomed)
        if not dry_run:
            await self._remember(tenant, before, after)

    def _decide(
        self, batch: Sequence[str], facts: Facts, cursor: Cursor, after: Candidates, now: float, report: Report
    ) -> list[str]:
        doomed = []
        for line in batch:
            digits, _, name = line.partition(" ")
            size = int(digits)
            if facts.wanted(name):
                report.keep(size)
                continue
            since = cursor.since(name)
            if since is None or now - since < self._grace:
                after.append(name, now if since is None else since)
                report.wait(size)
            else:
                doomed.append(name)
                report.remove(name, size)
        return doomed

    async def _list(self, prefixes: Sequence[str]) -> Pages:
        listing = Pages()
        for prefix in prefixes:
            async for info in self._objects.list(prefix):
                listing.append(f"{info.size} {info.name}")
        return listing

    async def _facts(self, tenant: str) -> Facts:
        survey = await self._census.survey(tenant, outputs=True)
        archived = await self._archived(tenant)
        pointers, live = await self._census.roots(tenant)
        marked = await self._mark(tenant, pointers)
        return Facts(marked, survey.uids.union(live), survey.outputs, archived)

    async def _archived(self, tenant: str) -> Outputs | None:
        """What archived tasks refer to; None when that cannot be told, and then nothing that may be theirs goes."""
        try:
            return await self._archive.outputs(tenant)
        except (DataLossError, NotFoundError) as error:
            _log.error("outputs and logs of nobody stay, the history is damaged", tenant=tenant, error=error.message)
            return None

    async def _mark(self, tenant: str, pointers: Sequence[SnapshotPointer]) -> set[str]:
        """Names of all manifests that the roots point to, and of the packs that these need."""
        marked: set[str] = set()
        todo = list({(pointer.uid, pointer.manifest): pointer for pointer in pointers}.values())

        async def worker() -> None:
            while todo:
                pointer = todo.pop()
                try:
                    marked.update(await self._packs.packs(tenant, pointer))
                except DataLossError:
                    if await self._still_a_root(tenant, pointer):
                        raise
                    continue
                marked.add(self._packs.name(tenant, pointer))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(todo))):
                    group.create_task(worker())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return marked

    async def _still_a_root(self, tenant: str, pointer: SnapshotPointer) -> bool:
        pointers, _ = await self._census.roots(tenant)
        return any((p.uid, p.manifest) == (pointer.uid, pointer.manifest) for p in pointers)

    async def _remove(self, doomed: Sequence[str]) -> None:
        await remove_all(self._objects, doomed)

    async def _remembered(self, tenant: str) -> Candidates:
        name = names.candidates(tenant)
        try:
            return await asyncio.to_thread(waiting.decode, await self._objects.get(name), name)
        except NotFoundError:
            return Candidates()
        except DataLossError as error:
            _log.warning("the grace of all candidates begins anew", tenant=tenant, error=error.message)
            return Candidates()

    async def _remember(self, tenant: str, before: Candidates, after: Candidates) -> None:
        name = names.candidates(tenant)
        if len(after):
            await self._objects.put(name, await asyncio.to_thread(after.encode))
        elif len(before):
            await self._objects.delete(name)


async def remove_all(objects: ObjectStore, doomed: Sequence[str]) -> None:
    """Remove objects, several at once. Raises `UnavailableError`; some may be gone then."""
    todo = list(reversed(doomed))

    async def worker() -> None:
        while todo:
            await objects.delete(todo.pop())

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(todo))):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _batches(listing: Pages) -> Iterator[list[str]]:
    batch: list[str] = []
    for line in listing:
        batch.append(line)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
