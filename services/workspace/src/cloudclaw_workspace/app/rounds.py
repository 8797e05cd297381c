"""Rounds of retention and garbage collection, over all tenants or one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from cloudclaw.clock import Clock
from cloudclaw.errors import CloudClawError, DataLossError, InvalidArgumentError
from cloudclaw.ids import check_name
from cloudclaw.objects.port import ObjectStore
from cloudclaw_workspace.app.collecting import Collector
from cloudclaw_workspace.app.thinning import Thinner
from cloudclaw_workspace.domain import names
from cloudclaw_workspace.domain.garbage import Report
from cloudclaw_workspace.ports.census import Census, Tombs
from cloudclaw_workspace.ports.uploads import StaleUploads

FIRST_AFTER: Final = 60.0
"""Seconds from becoming leader to the first round, at most: a fleet that restarts has better things to do."""

STALE_UPLOAD: Final = 86_400.0
"""Seconds after which an unfinished upload has no writer any more, at least."""

_log = structlog.get_logger()


class RoundMetrics(Protocol):
    """Told what rounds did."""

    def collected(self, reports: Sequence[Report], failed: int, seconds: float) -> None:
        """A round over all tenants is over."""
        ...

    def removed(self, report: Report) -> None:
        """A tenant's garbage was removed."""
        ...

    def uploads_aborted(self, count: int) -> None:
        """Unfinished uploads were given up."""
        ...


class Rounds:
    """Retention, then garbage collection, tenant by tenant.

    Args:
        uploads: the object store, when it keeps unfinished uploads.
        interval: seconds between two rounds of `run`.
        grace: the collector's; no unfinished upload younger than this, or than a day, is given up.
    """

    def __init__(
        self,
        census: Census,
        tombs: Tombs,
        objects: ObjectStore,
        thinner: Thinner,
        collector: Collector,
        clock: Clock,
        metrics: RoundMetrics,
        *,
        uploads: StaleUploads | None,
        interval: float,
        grace: float,
    ) -> None:
        self._census = census
        self._tombs = tombs
        self._objects = objects
        self._thinner = thinner
        self._collector = collector
        self._clock = clock
        self._metrics = metrics
        self._uploads = uploads
        self._interval = interval
        self._stale = max(grace, STALE_UPLOAD)

    async def run(self) -> None:
        """Do rounds for ever. Failures are logged and counted: the next round tries again."""
        await self._clock.sleep(min(self._interval, FIRST_AFTER))
        while True:
            started = self._clock.boottime()
            try:
                reports, failures = await self._all(dry_run=False)
            except CloudClawError as error:
                _log.warning("a round of garbage collection failed", error=error.message, reason=error.reason)
                self._metrics.collected((), 1, self._clock.boottime() - started)
            else:
                self._metrics.collected(reports, len(failures), self._clock.boottime() - started)
            await self._abort_uploads()
            await self._clock.sleep(self._interval)

    async def collect(self, tenant: str, *, dry_run: bool) -> Sequence[Report]:
        """A round now, of one tenant or (with "") of all; safe beside `run`, here and on other replicas.

        When some of all tenants failed the others are done all the same, and then `DataLossError` says which did not;
        a single one raises what it met.
        """
        if tenant:
            return [await self._one(check_name(tenant, "tenant"), dry_run=dry_run)]
        reports, failures = await self._all(dry_run=dry_run)
        if failures:
            told = "; ".join(f"{name}: {error.message}" for name, error in sorted(failures.items())[:10])
            raise DataLossError(
                f"garbage of {len(failures)} tenants was not collected ({len(reports)} were done): {told}",
                reason="GARBAGE_NOT_COLLECTED",
            )
        return reports

    async def _all(self, *, dry_run: bool) -> tuple[list[Report], dict[str, CloudClawError]]:
        reports: list[Report] = []
        failures: dict[str, CloudClawError] = {}
        for tenant in sorted({*await self._census.tenants(), *await self._stored_tenants()}):
            try:
                reports.append(await self._one(tenant, dry_run=dry_run))
            except CloudClawError as error:
                failures[tenant] = error
        return reports, failures

    async def _one(self, tenant: str, *, dry_run: bool) -> Report:
        report = Report(tenant)
        if await self._tombs.buried(tenant):
            return report  # all of it goes, by another way
        started = self._clock.boottime()
        try:
            report.snapshots = await self._thinner.thin(tenant, dry_run=dry_run)
            await self._collector.sweep(tenant, report, dry_run=dry_run)
        except CloudClawError as error:
            if await self._tombs.buried(tenant):
                return report
            _log.error("garbage is not collected", tenant=tenant, error=error.message, reason=error.reason)
            raise
        finally:
            if not dry_run:
                self._metrics.removed(report)
        _log.info(
            "garbage collected",
            tenant=tenant,
            dry_run=dry_run,
            snapshots=report.snapshots,
            removed=report.removed,
            removed_bytes=report.removed_bytes,
            kept=report.kept,
            waiting=report.waiting,
            seconds=round(self._clock.boottime() - started, 3),
        )
        return report

    async def _stored_tenants(self) -> set[str]:
        """Tenants that have objects, by one small listing for each: some may have no key any more."""
        found: set[str] = set()
        for kind in names.KINDS:
            after = ""
            while tenant := await self._next_tenant(kind, after):
                # "0" is what follows "/": on behind everything of this tenant.
                after = f"{kind}{tenant}0"
                try:
                    found.add(check_name(tenant, "tenant"))
                except InvalidArgumentError:
                    _log.warning("objects of no tenant", prefix=f"{kind}{tenant}/")
        return found

    async def _next_tenant(self, kind: str, after: str) -> str:
        async for info in self._objects.list(kind, start_after=after):
            return info.name[len(kind) :].split("/")[0]
        return ""

    async def _abort_uploads(self) -> None:
        if self._uploads is None:
            return
        try:
            count = await self._uploads.abort_stale_uploads("", self._stale)
        except CloudClawError as error:
            _log.warning("unfinished uploads stay for now", error=error.message)
            return
        self._metrics.uploads_aborted(count)
        if count:
            _log.info("unfinished uploads given up", count=count)
