"""Lists of a tenant's tasks, live and archived ones in one order: newest first.

A page goes on where the one before it ended, at a task's place. Places never change, and a task is either live or in a
bundle that was stored before it left; so a walk over pages shows each task once, though tasks are archived meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from cloudclaw.coordination.records import TaskRecord
from cloudclaw.coordination.transactions import Versioned
from cloudclaw.errors import InvalidArgumentError, UnavailableError
from cloudclaw.history.bundles import Place, place_of
from cloudclaw_scheduler.app.history import ArchivedRow, History
from cloudclaw_scheduler.app.mirror import Mirror
from cloudclaw_scheduler.app.queries import DEFAULT_PAGE, MAX_PAGE, SCAN, Filter, Page
from cloudclaw_scheduler.app.tenant_tasks import TenantTasks

Task = Versioned[TaskRecord]

CHUNK: Final = 250
"""Archived tasks read together at most, when a filter has to see them."""
_TOKEN: Final = re.compile(r"t2:([0-9]{1,15}):([0-9]{1,19})")
_LAST: Final = (0, 0)


@dataclass(slots=True)
class _Part:
    """Tasks of one source, newest first. `end`: the place of the last one looked at when there are more, else None;
    `looked`: how many were looked at."""

    tasks: list[Task]
    end: Place | None = None
    looked: int = 0


class Listing:
    """Answers `ListTasks`; the caller waits for `mirror.caught_up` where it matters."""

    def __init__(self, mirror: Mirror, history: History) -> None:
        self._mirror = mirror
        self._history = history

    async def page(self, tenant: str, wanted: Filter, page_size: int, page_token: str) -> Page:
        """One page. `InvalidArgumentError` for a size or token that is none; where archived tasks may be among those
        wanted also `UnavailableError`, and `DataLossError` naming a bundle that is damaged."""
        if not 0 <= page_size <= MAX_PAGE:
            raise InvalidArgumentError(f"must be 1 to {MAX_PAGE}; got {page_size}", field="page_size")
        size = page_size or DEFAULT_PAGE
        before = _parse_token(page_token)
        if wanted.created_before is not None:
            before = min(before or (wanted.created_before, 0), (wanted.created_before, 0))
        # The live ones first and without a pause: what leaves the mirror after this is in `live`, what left it before
        # is in the bundles that are looked up next.
        revision = self._mirror.state.revision
        seen: set[str] = set()
        live = self._live(tenant, wanted, size, before, seen)
        archived = _Part([])
        if wanted.ended:
            try:
                archived = await self._archived(tenant, wanted, size, before, live, seen)
            except UnavailableError as error:
                # A page without them would look like a page of all there is.
                raise UnavailableError(
                    "archived tasks cannot be listed now; tasks that have not ended can, by naming their states"
                    f" (QUEUED, RUNNING): {error.message}",
                    reason=error.reason,
                    retry_after=error.retry_after,
                ) from error
        ends = [part.end for part in (live, archived) if part.end is not None]
        # Below the higher end one of the two was not looked at.
        end = max(ends, default=None)
        tasks = sorted(live.tasks + archived.tasks, key=place_of, reverse=True)
        if end is not None:
            tasks = [task for task in tasks if place_of(task) >= end]
        if len(tasks) > size:
            tasks = tasks[:size]
            end = place_of(tasks[-1])
        return Page(tasks, _make_token(end) if end else "", revision)

    def _live(self, tenant: str, wanted: Filter, size: int, before: Place | None, seen: set[str]) -> _Part:
        part = _Part([])
        last = _LAST
        for task in self._mirror.state.tenants.get(tenant, TenantTasks()).newest(before):
            place = place_of(task)
            if place[0] < wanted.created_after:
                break
            if len(part.tasks) == size or part.looked == SCAN:
                part.end = last
                break
            last = place
            part.looked += 1
            seen.add(task.record.task)
            if wanted.takes(task.record):
                part.tasks.append(task)
        return part

    async def _archived(
        self, tenant: str, wanted: Filter, size: int, before: Place | None, live: _Part, seen: set[str]
    ) -> _Part:
        """The archived tasks down to where `live` ends, one more than `size` at most."""
        part = _Part([])
        chunk: list[ArchivedRow] = []
        names = await self._history.bundles(tenant)
        rows = self._history.rows(names, before, max(live.end or _LAST, (wanted.created_after, 0)))
        async with aclosing(rows):
            async for row in rows:
                part.looked += 1
                if row.task not in seen and wanted.takes_state(row.index.state(row.row)):
                    chunk.append(row)
                # What a filter has to see is read by the chunk, not by the task.
                full = not wanted.selective and len(part.tasks) + len(chunk) > size
                if full or len(chunk) == CHUNK:
                    part.tasks += await self._read(chunk, wanted.takes)
                    chunk = []
                elif not part.looked % CHUNK:
                    await asyncio.sleep(0)
                if len(part.tasks) > size or live.looked + part.looked >= SCAN:
                    part.end = row.place
                    break
        part.tasks += await self._read(chunk, wanted.takes)
        return part

    async def _read(self, rows: list[ArchivedRow], takes: Callable[[TaskRecord], bool]) -> list[Task]:
        return [each.task for each in await self._history.read(rows) if takes(each.task.record)]


def _make_token(place: Place) -> str:
    return base64.urlsafe_b64encode(f"t2:{place[0]}:{place[1]}".encode()).decode()


def _parse_token(token: str) -> Place | None:
    if not token:
        return None
    try:
        found = _TOKEN.fullmatch(base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode())
    except (binascii.Error, UnicodeError):
        found = None
    if found is None:
        raise InvalidArgumentError("is not a page token of ListTasks", field="page_token")
    return int(found[1]), int(found[2])
